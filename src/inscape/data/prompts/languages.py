"""English names of the languages whose data has prompts."""

from inscape.errors import InputError

NAMES = {
    "ar": "Arabic", "ca": "Catalan", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek", "en": "English",
    "eo": "Esperanto", "es": "Spanish", "et": "Estonian", "eu": "Basque", "fa": "Persian", "fi": "Finnish", "fr": "French",
    "gl": "Galician", "gu": "Gujarati", "hi": "Hindi", "hr": "Croatian", "ht": "Haitian Creole", "hu": "Hungarian",
    "id": "Indonesian", "it": "Italian", "ja": "Japanese", "kk": "Kazakh", "ko": "Korean", "lv": "Latvian",
    "ml": "Malayalam", "mr": "Marathi", "nl": "Dutch", "pl": "Polish", "pt": "Portuguese", "qu": "Quechua", "ru": "Russian",
    "sl": "Slovenian", "sr": "Serbian", "sv": "Swedish", "sw": "Swahili", "ta": "Tamil", "te": "Telugu", "th": "Thai",
    "tr": "Turkish", "uk": "Ukrainian", "vi": "Vietnamese", "wo": "Wolof", "zh": "Chinese", "zh-Hant": "Traditional Chinese",
    "zu": "Zulu",
}  # fmt: skip


def language_name(code: str) -> str:
    """The English name of a language. Raises InputError for a code without one."""
    if code not in NAMES:
        raise InputError(f"language {code!r} has no name here: expected one of {', '.join(NAMES)}")
    return NAMES[code]
