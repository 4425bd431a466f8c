"""How much text each step of a build took in and let through, by language and source."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

COLUMNS = ("step", "language", "source", "documents_in", "documents_out", "bytes_in", "bytes_out", "changed")
"""Of the rows that a build reports; bytes are UTF-8, ``changed`` are documents that stayed with another text."""

STEPS = (
    "read", "languages", "sample", "markup", "empty", "exact", "template_lines", "length", "character_repetition",
    "word_repetition", "special_characters", "stop_words", "language_id", "pii", "near",
)  # fmt: skip
"""In the order in which they are applied."""


class Counts:
    """Adds up documents one by one, or the rows of other counts."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str, str], list[int]] = {}

    def add(self, step: str, language: str, source: str, before: int, after: int | None) -> None:
        """A document of ``before`` bytes that left the step with ``after``, or went (None)."""
        sums = self._of((step, language, source))
        sums[0] += 1
        sums[2] += before
        if after is not None:
            sums[1] += 1
            sums[3] += after
            sums[4] += after != before

    def add_rows(self, rows: Iterable[list[Any]]) -> None:
        for step, language, source, *more in rows:
            sums = self._of((step, language, source))
            for i, value in enumerate(more):
                sums[i] += value

    def rows(self) -> list[list[Any]]:
        """Rows of `COLUMNS`, by step in order, language and source."""
        ordered = sorted(self._sums.items(), key=lambda item: (STEPS.index(item[0][0]), *item[0][1:]))
        return [[*key, *sums] for key, sums in ordered]

    def _of(self, key: tuple[str, str, str]) -> list[int]:
        if key not in self._sums:
            self._sums[key] = [0] * 5
        return self._sums[key]
