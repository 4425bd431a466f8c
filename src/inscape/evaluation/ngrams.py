"""N-gram language models on token ids: what a model must beat before it can be said to have learned more than counts.

`KneserNey` is interpolated Kneser-Ney smoothing (Chen and Goodman 1999, section 4.1.6), with the modified discounts or a
given one. For a context ``c`` of order k - 1 and a token ``w``::

    p_k(w | c) = max(0, n_k(c, w) - D(n_k(c, w))) / sum_v n_k(c, v)  +  share_k(c) * p_(k-1)(w | c without its first token)

``n_k`` are counts at the highest order, and below it the number of different tokens that stand before the k-gram. The
unigram is interpolated with the uniform distribution over the vocabulary, so that no token has probability 0; a context
that was never followed by anything gives way to the shorter one. ``order=1`` is a smoothed table of token frequencies.

Documents are apart: each stands after a start sign that no document holds and that is never predicted. What should end a
document (end-of-sequence, as in token shards) has to be its last token.

Mechanism. The k-grams of an order are the sorted distinct values of ``(number of the (k-1)-gram before) * vocabulary +
token``, so any order and vocabulary fits in 64 bits, counting is one sort per order, and looking up is a binary search.
12 bytes for each distinct k-gram are kept, and as many for each context; fitting needs some 40 bytes more per training
token.

Failure: a token outside the vocabulary, no text. The probabilities are exact, in float64; nothing is pruned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from inscape.errors import InputError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Order:
    """The k-grams of one order.

    Args:
        keys: int64 ``[grams]``, sorted: context * vocabulary + token.
        counts: int32 ``[grams]``, as the order counts them.
        total: int32 ``[contexts]``, sum of a context's counts; 0 where nothing follows it.
        share: float64 ``[contexts]``, what discounting leaves for the shorter context.
        discounts: float64 ``[3]``, of a count of one, two, three or more.
    """

    keys: Ints
    counts: NDArray[np.int32]
    total: NDArray[np.int32]
    share: Floats
    discounts: Floats


class KneserNey:
    """An interpolated Kneser-Ney model; `fit` it on documents, then ask for `log2_probabilities`.

    Args:
        order: length of the longest n-gram.
        discount: one discount in (0, 1) for all counts and orders; None: the three of each order that its counts of
            counts call for (Chen and Goodman 1999, eq. 26).

    Attributes:
        vocabulary_: number of token ids.
        n_tokens_: tokens fitted on.
        discounts_: float64 ``[order, 3]``.
        n_grams_: number of distinct k-grams, by order.
    """

    def __init__(self, order: int = 5, discount: float | None = None) -> None:
        self.order = order
        self.discount = discount

    def fit(
        self, documents: Iterable[ArrayLike], vocabulary: int, progress: Callable[[int], None] | None = None
    ) -> KneserNey:
        """Count the n-grams of documents (token ids, all below ``vocabulary``); empty documents are passed over.

        Args:
            progress: called with 1 after each order.

        Raises:
            InputError: no token at all, an id outside the vocabulary, an order below 1, a discount outside (0, 1).
        """
        if self.order < 1 or vocabulary < 1:
            raise InputError(f"n-grams: order {self.order} and vocabulary {vocabulary}, expected at least 1")
        if self.discount is not None and not 0 < self.discount < 1:
            raise InputError(f"n-grams: discount {self.discount}, expected one between 0 and 1")
        self.vocabulary_ = vocabulary
        tokens, begins = _stream(documents, vocabulary)
        event = _places(~begins)
        if not len(event):
            raise InputError("n-grams: no token to count, expected at least one document with some")
        self.n_tokens_ = len(event)
        grams: list[tuple[Ints, NDArray[np.int32] | None, int]] = []  # keys, counts of the highest order, contexts
        continuations: list[NDArray[np.int32]] = []
        before = np.zeros(len(event), np.int32)  # the number of the (k-1)-gram before each token
        contexts = 1
        last = np.zeros(0, np.int32)
        for k in range(1, self.order + 1):
            place = before.astype(np.int64)
            place *= vocabulary
            place += tokens[event]
            keys, some, gram, counts = _distinct(place, counted=k == self.order)
            del place
            if k > 1:
                # A k-gram stands for one token before the (k-1)-gram that ends it.
                continuations.append(np.bincount(last[some], minlength=len(grams[-1][0])).astype(np.int32))
            grams.append((keys, counts, contexts))
            if k < self.order:
                whole = np.full(len(tokens), len(keys), np.int32)  # the start sign is a k-gram of its own, the last
                whole[event] = gram
                before, last, contexts = whole[event - 1], gram, len(keys) + 1
            if progress is not None:
                progress(1)
        del tokens, begins, event, before, last, gram, some
        self._orders = []
        for k, (keys, highest, contexts) in enumerate(grams):
            found = highest if highest is not None else continuations[k]
            self._orders.append(_smoothed(keys, found, contexts, vocabulary, self.discount))
        self.discounts_ = np.stack([one.discounts for one in self._orders])
        self.n_grams_ = [len(one.keys) for one in self._orders]
        return self

    def log2_probabilities(self, documents: Sequence[ArrayLike]) -> list[Floats]:
        """Base-2 logarithm of the probability of each token, given all tokens of its document before it.

        Returns:
            One float64 ``[tokens]`` for each document.

        Raises:
            InputError: an id outside the vocabulary.
        """
        tokens, begins = _stream(documents, self.vocabulary_)
        event = _places(~begins)
        new = tokens[event].astype(np.int64)
        chance = np.full(len(event), 1 / self.vocabulary_)
        before = np.zeros(len(event), np.int64)
        for k, one in enumerate(self._orders, 1):
            total = np.where(before >= 0, one.total[before], 0)
            there = total > 0
            key = before * self.vocabulary_ + new
            at = np.minimum(np.searchsorted(one.keys, key), len(one.keys) - 1)
            known = (before >= 0) & (one.keys[at] == key)
            counts = np.where(known, one.counts[at], 0).astype(np.float64)
            kept = counts - _discounted(counts, one.discounts)
            with np.errstate(divide="ignore", invalid="ignore"):
                chance = np.where(there, kept / total + one.share[before] * chance, chance)
            if k < self.order:
                whole = np.full(len(tokens), len(one.keys), np.int64)
                whole[event] = np.where(known, at, -1)
                before = whole[event - 1]
        return np.split(np.log2(chance), np.cumsum([np.size(one) for one in documents])[:-1]) if len(documents) else []


def _stream(documents: Iterable[ArrayLike], vocabulary: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """All documents on end, a start sign before each: tokens ``[n]``, and where the start signs are ``[n]``."""
    start = np.array([-1], np.int32)
    parts: list[NDArray[np.int32]] = []
    for number, document in enumerate(documents):
        ids = np.asarray(document)
        if ids.size and (ids.ndim != 1 or ids.dtype.kind not in "iu"):
            raise InputError(
                f"n-grams: document {number} is {ids.dtype} {list(ids.shape)}, expected a list of token ids"
            )
        if ids.size and not 0 <= (wrong := int(ids.min())) <= (wrong := int(ids.max())) < vocabulary:
            raise InputError(f"n-grams: document {number} holds token {wrong}, expected ids from 0 to {vocabulary - 1}")
        parts += [start, ids.astype(np.int32)]
    tokens = np.concatenate(parts) if parts else np.zeros(0, np.int32)
    return tokens, tokens == -1


def _places(true: NDArray[np.bool_]) -> NDArray[np.int32]:
    if len(true) >= 1 << 31:
        raise InputError(f"n-grams: {len(true)} tokens, expected fewer than 2^31")
    return np.flatnonzero(true).astype(np.int32)


def _distinct(
    values: Ints, counted: bool
) -> tuple[Ints, NDArray[np.int32], NDArray[np.int32], NDArray[np.int32] | None]:
    """Sorted distinct values, one place of each, the number of each place's value, and, if asked for, how often each is."""
    order = np.argsort(values).astype(np.int32)
    arranged = values[order]
    new = np.empty(len(values), bool)
    new[0] = True
    np.not_equal(arranged[1:], arranged[:-1], out=new[1:])
    first = _places(new)
    keys = arranged[first]
    del arranged
    number = np.empty(len(values), np.int32)
    number[order] = np.cumsum(new, dtype=np.int32) - 1
    counts = np.diff(first, append=np.int32(len(values))) if counted else None
    return keys, order[first], number, counts


def _smoothed(keys: Ints, counts: NDArray[np.int32], contexts: int, vocabulary: int, discount: float | None) -> _Order:
    discounts = _modified(counts) if discount is None else np.full(3, discount)
    context = keys // vocabulary
    total = np.bincount(context, weights=counts, minlength=contexts)  # (sums of whole numbers: exact)
    taken = np.bincount(context, weights=_discounted(counts, discounts), minlength=contexts)
    share = np.divide(taken, total, out=np.ones(contexts), where=total > 0)
    return _Order(keys, counts, total.astype(np.int32), share, discounts)


def _discounted(counts: NDArray, discounts: Floats) -> Floats:
    """What is taken from each count."""
    return np.concatenate([[0.0], discounts])[np.minimum(counts, 3).astype(np.int8)]


def _modified(counts: NDArray[np.int32]) -> Floats:
    """Discounts of counts of one, two and more. Where counts of counts are 0 (few data), one of 0.5 for all."""
    n1, n2, n3, n4 = (int((counts == c).sum()) for c in (1, 2, 3, 4))
    if not (n1 and n2 and n3 and n4):
        return np.full(3, 0.5)
    y = n1 / (n1 + 2 * n2)
    found = np.array([1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    # Counts of counts that do not fall as they do in text could ask for more than there is, or less than nothing.
    return np.clip(found, 0.05, [0.95, 1.95, 2.95])
