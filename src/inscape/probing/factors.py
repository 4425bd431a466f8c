"""What goes with a language's score: how much of it was trained on, its script, its family.

As in BLOOM, section 4.9: Pearson's correlation with the size of the pretraining data and of the probe's data, Mann and
Whitney's test between scripts, analysis of variance between families. With some ten languages these tests see only what is
large, and the languages of a corpus are no sample: script, family and amount of text go together. So each result has its
number of languages, and what can't be tested (one language in a group) says so in ``note`` with NaN for the statistic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from inscape.errors import InputError
from inscape.runs.intervals import bootstrap_paired


@dataclass(frozen=True)
class Language:
    """English name; ISO 15924 name of the script; family and branch as in Glottolog and Universal Dependencies."""

    name: str
    script: str
    family: str
    branch: str


_IE, _NC, _AA, _DR, _TK, _UR, _AN = (
    "Indo-European", "Atlantic-Congo", "Afro-Asiatic", "Dravidian", "Turkic", "Uralic", "Austronesian",
)  # fmt: skip

LANGUAGES: dict[str, Language] = {
    "ar": Language("Arabic", "Arabic", _AA, "Semitic"),
    "as": Language("Assamese", "Bengali", _IE, "Indo-Aryan"),
    "bm": Language("Bambara", "Latin", "Mande", "Western Mande"),
    "bn": Language("Bengali", "Bengali", _IE, "Indo-Aryan"),
    "ca": Language("Catalan", "Latin", _IE, "Romance"),
    "cs": Language("Czech", "Latin", _IE, "Slavic"),
    "de": Language("German", "Latin", _IE, "Germanic"),
    "el": Language("Greek", "Greek", _IE, "Greek"),
    "en": Language("English", "Latin", _IE, "Germanic"),
    "eo": Language("Esperanto", "Latin", "constructed", "constructed"),
    "es": Language("Spanish", "Latin", _IE, "Romance"),
    "eu": Language("Basque", "Latin", "Basque", "Basque"),
    "fa": Language("Persian", "Arabic", _IE, "Iranian"),
    "fi": Language("Finnish", "Latin", _UR, "Finnic"),
    "fr": Language("French", "Latin", _IE, "Romance"),
    "gl": Language("Galician", "Latin", _IE, "Romance"),
    "gu": Language("Gujarati", "Gujarati", _IE, "Indo-Aryan"),
    "hi": Language("Hindi", "Devanagari", _IE, "Indo-Aryan"),
    "hr": Language("Croatian", "Latin", _IE, "Slavic"),
    "hu": Language("Hungarian", "Latin", _UR, "Hungarian"),
    "id": Language("Indonesian", "Latin", _AN, "Malayo-Polynesian"),
    "it": Language("Italian", "Latin", _IE, "Romance"),
    "ja": Language("Japanese", "Japanese", "Japonic", "Japanese"),
    "kk": Language("Kazakh", "Cyrillic", _TK, "Kipchak"),
    "ko": Language("Korean", "Hangul", "Koreanic", "Korean"),
    "ml": Language("Malayalam", "Malayalam", _DR, "South Dravidian"),
    "mr": Language("Marathi", "Devanagari", _IE, "Indo-Aryan"),
    "nl": Language("Dutch", "Latin", _IE, "Germanic"),
    "pl": Language("Polish", "Latin", _IE, "Slavic"),
    "pt": Language("Portuguese", "Latin", _IE, "Romance"),
    "ru": Language("Russian", "Cyrillic", _IE, "Slavic"),
    "sr": Language("Serbian", "Cyrillic", _IE, "Slavic"),
    "sv": Language("Swedish", "Latin", _IE, "Germanic"),
    "sw": Language("Swahili", "Latin", _NC, "Bantu"),
    "ta": Language("Tamil", "Tamil", _DR, "South Dravidian"),
    "te": Language("Telugu", "Telugu", _DR, "South-Central Dravidian"),
    "th": Language("Thai", "Thai", "Tai-Kadai", "Tai"),
    "tr": Language("Turkish", "Latin", _TK, "Oghuz"),
    "uk": Language("Ukrainian", "Cyrillic", _IE, "Slavic"),
    "ur": Language("Urdu", "Arabic", _IE, "Indo-Aryan"),
    "vi": Language("Vietnamese", "Latin", "Austroasiatic", "Vietic"),
    "wo": Language("Wolof", "Latin", _NC, "Senegambian"),
    "yo": Language("Yoruba", "Latin", _NC, "Defoid"),
    "zh": Language("Chinese", "Han", "Sino-Tibetan", "Sinitic"),
    "zh-Hant": Language("Traditional Chinese", "Han", "Sino-Tibetan", "Sinitic"),
    "zu": Language("Zulu", "Latin", _NC, "Bantu"),
}


@dataclass(frozen=True)
class Factor:
    """One test. ``statistic`` and ``p`` are NaN where there is too little to test, and ``note`` says what.

    ``lo`` and ``hi``: 95 % bootstrap over languages, for correlations; else NaN. ``groups``: languages by group.
    """

    name: str
    test: str
    statistic: float
    p: float
    n: int
    lo: float = float("nan")
    hi: float = float("nan")
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    note: str = ""


def language_facts(code: str) -> Language:
    """Script and family of a language. Raises InputError for a code that is not in :data:`LANGUAGES`."""
    if code not in LANGUAGES:
        raise InputError(f"language {code!r}: no script and family known; expected one of {', '.join(LANGUAGES)}")
    return LANGUAGES[code]


def size_correlations(name: str, scores: Mapping[str, float], sizes: Mapping[str, float]) -> list[Factor]:
    """Pearson's r of scores with the logarithm of sizes, and Spearman's rho.

    ``sizes`` are bytes of pretraining text, or numbers of tasks, say. A language of size 0 has a rank but no logarithm: it
    counts for rho only.

    Raises:
        InputError: a score that isn't finite, a size that is missing or negative.
    """
    languages = _checked(name, scores)
    if missing := [one for one in languages if not (np.isfinite(sizes.get(one, np.nan)) and sizes[one] >= 0)]:
        raise InputError(f"{name}: no size of {', '.join(missing)}, expected a number of at least 0")
    positive = [one for one in languages if sizes[one] > 0]
    left_out = f"{len(languages) - len(positive)} languages of size 0 are left out" if positive != languages else ""
    return [
        _correlation(name, "Pearson, log size", _pearson, positive, scores, sizes, np.log, left_out),
        _correlation(name, "Spearman", _spearman, languages, scores, sizes, np.asarray, ""),
    ]


def script_test(scores: Mapping[str, float]) -> Factor:
    """Mann–Whitney U between languages in Latin script and all others, two-sided; ``statistic`` is U of the Latin ones."""
    groups = _groups(scores, lambda code: "Latin" if language_facts(code).script == "Latin" else "other scripts")
    if len(groups) < 2 or min(map(len, groups.values())) < 2:
        return _untested("script", "Mann-Whitney", groups, "expected at least two languages on both sides")
    found = stats.mannwhitneyu(*([scores[code] for code in groups[side]] for side in ("Latin", "other scripts")))
    return Factor("script", "Mann-Whitney", float(found.statistic), float(found.pvalue), len(scores), groups=groups)


def family_test(scores: Mapping[str, float]) -> Factor:
    """One-way analysis of variance between families; those with one language here are taken together as "other families"."""
    by_family = _groups(scores, lambda code: language_facts(code).family)
    alone = tuple(code for codes in by_family.values() if len(codes) == 1 for code in codes)
    groups = {family: codes for family, codes in by_family.items() if len(codes) > 1}
    if alone:
        groups["other families"] = alone
    if len(groups) < 2 or min(map(len, groups.values())) < 2:
        return _untested("family", "ANOVA", groups, "expected at least two groups of at least two languages")
    found = stats.f_oneway(*([scores[code] for code in codes] for codes in groups.values()))
    return Factor("family", "ANOVA", float(found.statistic), float(found.pvalue), len(scores), groups=groups)


def _checked(name: str, scores: Mapping[str, float]) -> list[str]:
    if bad := [code for code, score in scores.items() if not np.isfinite(score)]:
        raise InputError(f"{name}: the scores of {', '.join(bad)} are not finite")
    return list(scores)


def _groups(scores: Mapping[str, float], group_of: Callable[[str], str]) -> dict[str, tuple[str, ...]]:
    groups: dict[str, list[str]] = {}
    for code in _checked("groups of languages", scores):
        groups.setdefault(group_of(code), []).append(code)
    return {group: tuple(codes) for group, codes in sorted(groups.items())}


def _untested(name: str, test: str, groups: dict[str, tuple[str, ...]], expected: str) -> Factor:
    sizes = ", ".join(f"{group} {len(codes)}" for group, codes in groups.items()) or "no languages"
    n = sum(map(len, groups.values()))
    return Factor(name, test, float("nan"), float("nan"), n, groups=groups, note=f"not tested: {sizes}; {expected}")


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.corrcoef(x, y)[0, 1]) if x.std() > 0 and y.std() > 0 else float("nan")


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    return _pearson(stats.rankdata(x), stats.rankdata(y))


def _correlation(
    name: str,
    test: str,
    statistic: Callable[[np.ndarray, np.ndarray], float],
    languages: list[str],
    scores: Mapping[str, float],
    sizes: Mapping[str, float],
    scale: Callable[..., np.ndarray],
    note: str,
) -> Factor:
    nan = float("nan")
    x = scale(np.array([sizes[code] for code in languages], dtype=np.float64))
    y = np.array([scores[code] for code in languages], dtype=np.float64)
    if len(x) < 3 or np.isnan(statistic(x, y)):
        why = f"not tested: {len(x)} languages, expected at least 3 that differ in both"
        return Factor(name, test, nan, nan, len(x), note="; ".join(filter(None, (why, note))))
    interval = bootstrap_paired(x, y, statistic)
    p = (stats.pearsonr if statistic is _pearson else stats.spearmanr)(x, y).pvalue
    return Factor(name, test, interval.value, float(p), len(x), interval.lo, interval.hi, note=note)
