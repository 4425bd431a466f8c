"""Which language a text is in, by py3langid: a model of 97 languages that comes with the package, nothing is fetched.

ROOTS kept a document where fastText gave the language that it was listed under at least 0.7 to 0.9. Here the probability
is that of the declared language together with those it is easily taken for (Bosnian, Croatian, Serbian; the Scandinavian
written languages; Malay and Indonesian; …): no model of this kind tells them apart on a page of help texts. Languages that
the model does not know, and texts of less than `SHORTEST` characters, are passed.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

SHORTEST = 100
"""Characters below which no language is told."""
_LONGEST = 1000
"""Characters looked at, from the start."""

_ALIKE = (
    {"bs", "hr", "sr"}, {"nb", "nn", "no", "da"}, {"id", "ms", "jv"}, {"xh", "zu"}, {"gl", "pt", "es"}, {"cs", "sk"},
    {"ca", "es", "oc", "an"}, {"hi", "mr", "ne"}, {"fa", "ps", "ur"}, {"bg", "mk"}, {"be", "ru", "uk"}, {"as", "bn"},
    {"zh", "wuu", "yue", "lzh"},
)  # fmt: skip


@functools.cache
def _identifier() -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@functools.cache
def _accepted(language: str) -> frozenset[str]:
    """The model's labels that count as the language; none where it does not know it."""
    base = language.partition("-")[0]
    if base not in _identifier().labels:
        return frozenset()
    return frozenset({base}.union(*(alike for alike in _ALIKE if base in alike)))


def knows(language: str) -> bool:
    """Whether the model knows the language."""
    return bool(_accepted(language))


def probability(text: str, language: str) -> float | None:
    """That the text is in the language or one it is taken for; None where the model can't tell."""
    accepted = _accepted(language)
    if not accepted or len(text) < SHORTEST:
        return None
    return sum(p for label, p in _identifier().rank(text[:_LONGEST]) if label in accepted)
