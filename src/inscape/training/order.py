"""Which tokens a step is trained on: windows of the token shards, in an order that seed and step alone decide.

Each part (a language) is cut into *windows* of `length` inputs, one after another; a window's targets are the tokens that
follow, so windows share one token at their borders and every token but a part's first is a target once. The last window
of a part is shorter and is filled up with positions of weight 0.

**Natural** order (`alpha` = 1) is one pass over the windows of all languages together in random order, then another in
another order: each window once per pass, languages by their size. Otherwise each row draws its language with probability
proportional to ``tokens ** alpha`` (less than 1: small languages more often) and takes that language's next window in
random order; a small language then begins its second pass early.

The random order is a *permutation computed at one place at a time*: a Feistel network over the pairs (i // b, i % b),
each round of which adds a hash of one half to the other, walked on until the result is in range. It needs no memory,
whatever the size of the corpus, and any step can be asked for at once.

Documents: where one ends in a window another begins. `segments` number them, so that attention can stay inside. The
end-of-document token is a target of the document that it ends, and as an input the beginning of the next: so a model
learns how documents begin, and a text is scored with that token before it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from inscape.errors import InputError
from inscape.training.batches import Batch
from inscape.training.schedule import Schedule

Ints = NDArray[np.int64]

_ROUNDS = 6
_BLOCK = 1 << 16
"""Rows whose languages are drawn at a time."""


class Part(Protocol):
    """Tokens of one language: `inscape.data.corpus.shards.TokenPart` is one.

    Attributes:
        tokens: integers [n].
        starts: int64 [documents + 1], where documents begin; the last is n.
    """

    @property
    def tokens(self) -> np.ndarray: ...

    @property
    def starts(self) -> np.ndarray: ...


class WindowOrder:
    """The batches of a run: call it with a step, numbered from 0.

    Args:
        parts: by language; empty ones are passed over.
        schedule: how many rows each step has.
        length: inputs of a row.
        seed: of the order.
        alpha: exponent of the language weights, see the module.
        document_mask: number the documents of a row, so that attention stays inside; otherwise `segments` is None.
        filler: token that fills up the last window of a part.

    Raises:
        InputError: there are no tokens to train on.
    """

    def __init__(
        self,
        parts: Mapping[str, Part],
        schedule: Schedule,
        length: int,
        *,
        seed: int,
        alpha: float = 1.0,
        document_mask: bool = True,
        filler: int = 0,
    ) -> None:
        self.languages = [name for name, part in parts.items() if len(part.tokens) > 1]
        if not self.languages:
            raise InputError("no tokens to train on in any language, expected some")
        self.schedule, self.length, self.seed = schedule, length, seed
        self.document_mask, self.filler = document_mask, filler
        self._parts = [parts[name] for name in self.languages]
        #: Windows of each language, int64.
        self.windows: Ints = np.array([-(-(len(part.tokens) - 1) // length) for part in self._parts])
        self._ends = np.cumsum(self.windows)
        sizes = np.array([len(part.tokens) for part in self._parts], np.float64)
        self._shares = None if alpha == 1 else sizes**alpha / (sizes**alpha).sum()
        # Rows of each language before each block of rows that was met so far.
        self._before: list[Ints] = [np.zeros(len(self._parts), np.int64)]

    def __call__(self, step: int) -> Batch:
        """The batch of a step."""
        first = self.schedule.rows_before(step)
        languages, windows, _ = self.rows(first, first + self.schedule.rows_at(step))
        return self.batch(languages, windows)

    def rows(self, first: int, last: int) -> tuple[Ints, Ints, Ints]:
        """Language, window in it, and pass (from 0) of the rows `first` to `last - 1` of the whole run; int64 [rows]."""
        if self._shares is None:
            places = np.arange(first, last)
            passes, at = np.divmod(places, int(self._ends[-1]))
            everywhere = _permuted(at, int(self._ends[-1]), passes, self.seed)
            languages = np.searchsorted(self._ends, everywhere, "right")
            return languages, everywhere - (self._ends - self.windows)[languages], passes
        languages, ranks = self._drawn(first, last)
        windows, passes = np.empty_like(ranks), np.empty_like(ranks)
        for language in np.unique(languages):
            here = languages == language
            size = int(self.windows[language])
            passes[here], at = np.divmod(ranks[here], size)
            windows[here] = _permuted(at, size, passes[here], self.seed + 1 + int(language))
        return languages, windows, passes

    def passes_after(self, step: int) -> dict[str, float]:
        """How often each language has been read after `step` steps."""
        rows = self.schedule.rows_before(step)
        if self._shares is None:
            return dict.fromkeys(self.languages, rows / int(self._ends[-1]))
        block, within = divmod(rows, _BLOCK)
        counts = self._counts_before(block)
        counts = counts + np.bincount(self._block(block)[:within], minlength=len(self._parts))
        return dict(zip(self.languages, (counts / self.windows).tolist(), strict=True))

    def batch(self, languages: Ints, windows: Ints) -> Batch:
        """The rows of these windows."""
        B, T = len(windows), self.length
        tokens_BT1 = np.full((B, T + 1), self.filler, np.int64)
        begins_BT1 = np.zeros((B, T + 1), bool)
        weights_BT = np.zeros((B, T), np.float32)
        for row, (language, window) in enumerate(zip(languages.tolist(), windows.tolist(), strict=True)):
            part, start = self._parts[language], window * T
            tokens = part.tokens[start : start + T + 1]
            n = len(tokens)
            tokens_BT1[row, :n] = tokens
            # The end of one document, as an input, is the beginning of the next: its first token is foretold from that.
            low, high = np.searchsorted(part.starts, (start + 1, start + n + 1))
            begins_BT1[row, part.starts[low:high] - 1 - start] = True
            weights_BT[row, : n - 1] = 1
            if n <= T:  # (what fills the row up is a document of its own)
                begins_BT1[row, n] = True
        begins_BT1[:, 0] = False
        segments = torch.from_numpy(begins_BT1[:, :-1].cumsum(axis=1, dtype=np.int32)) if self.document_mask else None
        tokens = torch.from_numpy(tokens_BT1)
        return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), torch.from_numpy(weights_BT), segments)

    def _drawn(self, first: int, last: int) -> tuple[Ints, Ints]:
        """Language of each row, and how many rows of that language came before it."""
        languages, ranks = [], []
        for block in range(first // _BLOCK, -(-last // _BLOCK)):
            drawn = self._block(block)
            low, high = max(first - block * _BLOCK, 0), min(last - block * _BLOCK, _BLOCK)
            counts = self._counts_before(block) + np.bincount(drawn[:low], minlength=len(self._parts))
            here = drawn[low:high]
            rank = np.empty_like(here)
            for language in np.unique(here):
                same = here == language
                rank[same] = counts[language] + np.arange(same.sum())
            languages.append(here)
            ranks.append(rank)
        return np.concatenate(languages), np.concatenate(ranks)

    def _block(self, block: int) -> Ints:
        """The languages of a block of rows."""
        if getattr(self, "_kept", (None, None))[0] != block:
            drawn = np.random.default_rng([self.seed, 71, block]).choice(len(self._parts), _BLOCK, p=self._shares)
            self._kept = block, drawn.astype(np.int64)
        return self._kept[1]

    def _counts_before(self, block: int) -> Ints:
        while len(self._before) <= block:
            counts = np.bincount(self._block(len(self._before) - 1), minlength=len(self._parts))
            self._before.append(self._before[-1] + counts)
        return self._before[block]


def _permuted(at: Ints, size: int, passes: Ints, seed: int) -> Ints:
    """Where places ``at`` (in [0, size)) lie in the random order of each pass; a bijection of [0, size) for every pass."""
    a = max(1, math.isqrt(size))
    b = -(-size // a)
    key = _mixed(passes.astype(np.uint64) + _mixed(np.array(seed, np.uint64)))
    result = _feistel(at, a, b, key)
    # The pairs are a few more than the places: what lands outside is sent on until it is inside.
    while (outside := result >= size).any():
        result[outside] = _feistel(result[outside], a, b, key[outside])
    return result


def _feistel(at: Ints, a: int, b: int, key: NDArray[np.uint64]) -> Ints:
    high, low = np.divmod(at, b)
    for number in range(_ROUNDS):
        if number % 2:
            high = (
                high + (_mixed(low.astype(np.uint64) ^ key + np.uint64(number)) % np.uint64(a)).astype(np.int64)
            ) % a
        else:
            low = (low + (_mixed(high.astype(np.uint64) ^ key + np.uint64(number)) % np.uint64(b)).astype(np.int64)) % b
    return high * b + low


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64 (Steele et al. 2014): a hash of 64 bits."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
