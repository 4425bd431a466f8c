"""Filters of a document's form: length, repetition, special characters, stop words; thresholds by language.

The measures are those of the BigScience data tools (Laurençon et al. 2022, appendix; thresholds chosen by fluent speakers
for OSCAR), computed on arrays of code points. Where ours differ:

- a word of a script without spaces (Han, kana, Thai, …) is one character; BigScience cut with SentencePiece models;
- stop words are short hand-made lists of the most frequent function words, not the long ones of the original; a language
  without a list passes;
- flagged words and the perplexity of a 5-gram model are not measured: their lists and models are not here.
"""

from __future__ import annotations

import re
import string
import unicodedata
from dataclasses import dataclass
from functools import cache

import numpy as np

from inscape.data.corpus.sources import Step
from inscape.data.corpus.stop_words import STOP_WORDS


@dataclass(frozen=True)
class Thresholds:
    """``words`` and ``stop_words`` at least, the others at most; ``language_id`` is a probability, at least."""

    words: int
    character_repetition: float
    word_repetition: float
    special_characters: float
    stop_words: float
    language_id: float


# ROOTS' values: words, repetition of characters, of words, special characters, stop words, language identification.
THRESHOLDS: dict[str, Thresholds] = {
    "en": Thresholds(20, 0.106, 0.19, 0.4, 0.3, 0.8),
    "fr": Thresholds(13, 0.14, 0.13, 0.34, 0.27, 0.8),
    "es": Thresholds(16, 0.14, 0.25, 0.34, 0.4, 0.8),
    "zh": Thresholds(1, 0.2, 0.96, 0.3, 0.169, 0.85),
    "ar": Thresholds(20, 0.2, 0.34, 0.3, 0.07, 0.81),
    "hi": Thresholds(38, 0.18, 0.47, 0.45, 0.01, 0.9),
}
DEFAULT = Thresholds(10, 0.2, 0.3, 0.4, 0.1, 0.7)
_BY_CHARACTER = Thresholds(10, 0.2, 0.96, 0.4, 0.1, 0.7)
"""Where a word is a character, five in a row recur in any text: the limit of Chinese, which hardly binds."""
_SPACELESS_LANGUAGES = {
    "ja",
    "th",
    "lo",
    "km",
    "my",
    "bo",
    "dz",
    "shn",
    "wuu",
    "yue",
    "hak",
    "nan",
    "gan",
    "hsn",
    "cjy",
}

FILTERS: tuple[Step, ...] = ("length", "character_repetition", "word_repetition", "special_characters", "stop_words")
"""In the order in which they are applied."""

_WINDOW, _WORDS = 10, 5
_B = np.uint64(0x9E3779B97F4A7C15)  # (odd, so that a product keeps all bits)
_NO_SPACES = (
    "\u0e00-\u0e7f\u0e80-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_SPACELESS = re.compile(f"[{_NO_SPACES}]")
_WORD = re.compile(f"[{_NO_SPACES}]|[^\\s{_NO_SPACES}]+")
_EDGES = string.punctuation + "«»“”„‘’‚…–—·•،؛؟।॥。、！？：；（）「」『』《》"


def thresholds(language: str) -> Thresholds:
    """Of a language; ``zh-Hant`` has those of ``zh``."""
    base = language.partition("-")[0]
    return THRESHOLDS.get(base) or (_BY_CHARACTER if base in _SPACELESS_LANGUAGES else DEFAULT)


def failed(text: str, language: str, skip: tuple[Step, ...] = ()) -> Step | None:
    """The first filter that the text does not pass, or None."""
    limits = thresholds(language)
    asked = [step for step in FILTERS if step not in skip]
    characters = code_points(" ".join(text.split()))  # (indentation is no repetition)
    words: list[str] | None = None
    for step in asked:
        if step == "character_repetition":
            bad = character_repetition(characters) > limits.character_repetition
        elif step == "special_characters":
            bad = special_ratio(characters) > limits.special_characters
        else:
            if words is None:
                words = words_of(text)
            if step == "length":
                bad = len(words) < limits.words
            elif step == "word_repetition":
                bad = word_repetition(words) > limits.word_repetition
            else:
                ratio = stop_ratio(words, language)
                bad = ratio is not None and ratio < limits.stop_words
        if bad:
            return step
    return None


def code_points(text: str) -> np.ndarray:
    """uint32 ``[characters]``."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def windows(values: np.ndarray, n: int) -> np.ndarray:
    """A hash of each run of ``n`` values: uint64 ``[len - n + 1]``, none where there are fewer; the same everywhere."""
    count = len(values) - n + 1
    if count <= 0:
        return np.zeros(0, np.uint64)
    wide = values.astype(np.uint64) + np.uint64(1)
    hashes = np.zeros(count, np.uint64)
    for k in range(n):
        hashes *= _B
        hashes += wide[k : k + count]
    return hashes


def character_repetition(characters: np.ndarray) -> float:
    """Share of the runs of 10 characters that the √n most frequent of the n different ones make up, repeated ones only."""
    hashes = np.sort(windows(characters, _WINDOW))
    if not len(hashes):
        return 0.0
    borders = np.flatnonzero(hashes[1:] != hashes[:-1]) + 1
    counts = np.diff(np.concatenate([[0], borders, [len(hashes)]]))
    repeated = np.sort(counts[counts > 1])[::-1]
    return float(repeated[: int(len(counts) ** 0.5)].sum() / len(hashes))


def word_repetition(words: list[str]) -> float:
    """Share of the runs of 5 words that stand in the text more than once."""
    if len(words) < _WORDS:
        return 0.0
    number: dict[str, int] = {}
    ids = np.array([number.setdefault(word, len(number)) for word in words], np.int64)
    hashes = np.sort(windows(ids, _WORDS))
    same = hashes[1:] == hashes[:-1]
    repeated = np.concatenate([[False], same]) | np.concatenate([same, [False]])
    return float(repeated.mean())


def special_ratio(characters: np.ndarray) -> float:
    """Share of characters that are no letters or marks: punctuation, symbols, digits, white space."""
    return float(_special()[characters].mean()) if len(characters) else 1.0


def stop_words(language: str) -> frozenset[str] | None:
    """The list of a language, or of the language whose script or region it names; None without one."""
    return STOP_WORDS.get(language) or STOP_WORDS.get(language.partition("-")[0])


def stop_ratio(words: list[str], language: str) -> float | None:
    """Share of words that are stop words; None for a language without a list."""
    listed = stop_words(language)
    if listed is None:
        return None
    return sum(word in listed for word in words) / len(words) if words else 0.0


def words_of(text: str) -> list[str]:
    """Lower-case words without punctuation at their ends; in scripts without spaces, each character."""
    lowered = unicodedata.normalize("NFC", text.lower())
    words = _WORD.findall(lowered) if _SPACELESS.search(lowered) else lowered.split()
    return [stripped for word in words if (stripped := word.strip(_EDGES))]


@cache
def _special() -> np.ndarray:
    """bool ``[0x110000]``."""
    return ~np.isin(_categories(), [b"L", b"M"])


@cache
def letters_and_digits() -> np.ndarray:
    """bool ``[0x110000]``: letters, marks and digits."""
    return np.isin(_categories(), [b"L", b"M", b"N"])


@cache
def _categories() -> np.ndarray:
    """The first letter of each code point's Unicode category."""
    category = unicodedata.category
    return np.array([category(chr(code))[0] for code in range(0x110000)], "S1")
