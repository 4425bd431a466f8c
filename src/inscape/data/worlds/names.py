"""Invented names: pronounceable, unique, and drawn without looking at anything that they will name."""

from __future__ import annotations

import numpy as np

_ONSETS = (*"bdfgklmnprstvz", "br", "dr", "gr", "kl", "kr", "pl", "sk", "st", "tr", "th", "sh")
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "ou")
_CODAS = ("l", "m", "n", "r", "s", "t", "k", "nd", "rn", "sh")
_PLACE_PREFIXES = ("Port", "New", "Upper", "Lower", "Old", "Little", "Great", "Fort")


def invent_names(
    counts: tuple[int, int], first_names: int, shared_last_names: int, rng: np.random.Generator
) -> tuple[list[str], list[str]]:
    """Names for `counts[0]` people ("Moru Stalen") and `counts[1]` places ("Port Grisut"), all different.

    Every word outside the pools of first words is used for one group of `shared_last_names` entities only; a word is
    never both a person's and a place's.
    """
    words = _Words(rng)
    given = [words.new(1) for _ in range(first_names)]
    prefixes = [*_PLACE_PREFIXES, *(words.new(1) for _ in range(first_names))][:first_names]
    people, places = (
        _combine(count, pool, shared_last_names, words, rng)
        for count, pool in zip(counts, (given, prefixes), strict=True)
    )
    return people, places


class _Words:
    """Draws words that it has not drawn before (letter case aside)."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._seen = {prefix.lower() for prefix in _PLACE_PREFIXES}

    def new(self, syllables: int) -> str:
        """A capitalised word of `syllables` open syllables and a closed one; five letters or more."""
        while True:
            parts = [self._pick(_ONSETS) + self._pick(_VOWELS) for _ in range(syllables + 1)]
            word = "".join(parts) + self._pick(_CODAS)
            # The words of the templates are short or everyday English; five letters keep them apart from these.
            if len(word) >= 5 and word not in self._seen:
                self._seen.add(word)
                return word.capitalize()

    def _pick(self, choices: tuple[str, ...]) -> str:
        return choices[int(self._rng.integers(len(choices)))]


def _combine(count: int, pool: list[str], shared: int, words: _Words, rng: np.random.Generator) -> list[str]:
    """`count` names: groups of `shared` entities get one new last word and different first words from `pool`."""
    names: list[str] = []
    while len(names) < count:
        last = words.new(1)
        firsts = rng.choice(len(pool), size=min(shared, count - len(names)), replace=False)
        names += [f"{pool[first]} {last}" for first in firsts]
    # Neighbours in the list would otherwise share their last word, and an order is information.
    return [names[i] for i in rng.permutation(count)]
