"""How well the scores of a head tell which tokens come before a token: AUROC per suffix, the top prefixes, ROC curves.

A head's score for the token ``w`` (key, *prefix*) seen from the token ``v`` (query, *suffix*) is ``Q[v] · K[w]``: two
tables, one row per token of the vocabulary (`first_layer` makes them from the weights). The *detokenization score* of
Kamoda et al. (*Weight-based Analysis of Detokenization in Language Models*, Findings of NAACL 2025, section 4) asks whether
prefixes that a text really holds before ``v`` score higher than other tokens. For one suffix, with all the vocabulary as
candidates, a positive is a prefix ``w`` with a count ``n(w, v) > 0`` and has that weight; every other token is a negative of
weight 1; the score is the area under the ROC curve, a tie counting one half::

    AUROC(v) = sum over positives p, negatives m of n(p, v) · ([s_m < s_p] + [s_m = s_p] / 2) / (sum of n(p, v) · negatives)

**How it is counted.** Never is there a table of vocabulary × vocabulary, and no row is sorted: scores come in blocks of
some suffixes × the vocabulary. With few positives in a row, each is compared with the whole row. With more: what a score
adds to the sum is a step function that changes at the positives only, so each row gets a table of it over bins between its
lowest and highest positive. A score whose bin holds no positive is looked up there; the few others are looked up by binary
search among the positives of their row. All ways give the same whole and half numbers (float64, exact below 2**53), so the
result is exact for the float32 scores of the block, whatever the bins are: they decide on the speed alone. Ill-placed
positives (one far out, all others in one bin) make it slower, never wrong.

Failure: tables that don't fit each other or the counts, numbers that are not finite or too large, and float types other than
float32 are an `InputError`. A suffix that the text never holds after anything has no AUROC: it is nan, never silently zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import polars as pl
import torch
from torch import Tensor

from inscape.attention.bigrams import Bigrams
from inscape.errors import InputError

Averaging = Literal["seen", "paper", "frequency"]

ROWS = 128  # suffixes whose scores exist at a time
STRIP = 16  # of them, those that are ranked at a time
FEW = 6  # positives of a row that are compared with all of it, each in a pass of its own
GROUP = 16  # scores of a row that are asked together whether one of them is in a bin with a positive
BINS = 2**11  # times the root of the number of positives: it balances the making of a table and the searches
MOST_BINS = 2**16


def bigram_auroc(queries: Tensor, keys: Tensor, bigrams: Bigrams, *, rows: int = ROWS) -> np.ndarray:
    """The AUROC of each suffix, for one head.

    Args:
        queries: ``Q``, float32 ``[V, d]``: a row per token as suffix.
        keys: ``K``, float32 ``[V, d]``, on the same device: a row per token as prefix. All V are candidates.
        bigrams: the counts; a token outside ``0 … V-1`` is refused.
        rows: suffixes in a block; a block holds ``rows × V`` float32 and some smaller parts. A GPU wants more than a CPU.

    Returns:
        float64 ``[V]``; nan for a suffix without a prefix (never seen, or only at the start of documents) and for one
        that every token of the vocabulary precedes.

    Raises:
        InputError: see the module.
    """
    _check_tables(queries, keys)
    if rows < 1:
        raise InputError(f"blocks of {rows} rows: expected 1 or more")
    vocab = len(keys)
    bigrams.check_vocab(vocab)
    suffixes, starts, sizes = bigrams.rows()
    order = np.argsort(sizes, kind="stable")  # (rows of a strip have about as many positives)
    suffixes, starts, sizes = suffixes[order], starts[order], sizes[order]
    result = np.full(vocab, np.nan)
    # (The padding of +inf is above every positive: it adds nothing.)
    width = -(-vocab // GROUP) * GROUP
    scores = queries.new_full((max(rows, STRIP), width), torch.inf)
    space = _Space(
        floats=torch.empty_like(scores[:STRIP]),
        places=torch.empty_like(scores[:STRIP], dtype=torch.int32),
        doubles=torch.empty_like(scores[:STRIP], dtype=torch.float64),
        table=scores.new_empty(STRIP * MOST_BINS, dtype=torch.float64),
    )
    for at in range(0, len(suffixes), rows):
        chosen = torch.from_numpy(suffixes[at : at + rows]).to(queries.device)
        torch.matmul(queries[chosen], keys.T, out=scores[: len(chosen), :vocab])
        for low in range(at, at + len(chosen), STRIP):
            strip = slice(low, min(low + STRIP, at + len(chosen)))
            size = sizes[strip]
            row = np.repeat(np.arange(len(size)), size)
            number = np.arange(len(row)) - np.repeat(np.cumsum(size) - size, size)  # of a positive in its row
            here = np.repeat(starts[strip], size) + number
            where = torch.from_numpy(np.stack([row, number, bigrams.prefix[here], bigrams.count[here]]))
            positives = _Positives(len(size), int(size.max()), *where.to(queries.device))
            ranked = _compared if positives.most <= FEW else _binned
            result[suffixes[strip]] = ranked(scores[low - at : strip.stop - at], vocab, positives, space).cpu().numpy()
    return result


def unigram_auroc(bigrams: Bigrams) -> np.ndarray:
    """`bigram_auroc` of a baseline that knows how frequent tokens are, no more: each prefix scores its own count.

    The order is all that counts, so ranks stand for the counts (they are exact in float32); as `bigram_auroc`.
    """
    ranks = np.unique(bigrams.unigram, return_inverse=True)[1].astype(np.float32)
    return bigram_auroc(torch.ones(len(ranks), 1), torch.from_numpy(ranks)[:, None], bigrams)


def mean_auroc(auroc: np.ndarray, bigrams: Bigrams, averaging: Averaging = "seen") -> float:
    """One number for a head from the AUROC of each suffix (float64 ``[V]``, of `bigram_auroc`).

    ``seen``: the mean over suffixes that have one. ``paper``: as published, over the whole vocabulary, a suffix without a
    bigram counting as 0. ``frequency``: over suffixes that have one, each weighted by the number of its bigrams in the text.
    nan where no suffix has one.
    """
    if averaging not in get_args(Averaging):
        raise InputError(f"averaging {averaging!r}: expected one of {', '.join(get_args(Averaging))}")
    bigrams.check_vocab(len(auroc))
    seen = ~np.isnan(auroc)
    if not seen.any():
        return float("nan")
    if averaging == "seen":
        return float(auroc[seen].mean())
    if averaging == "paper":
        return float(np.where(seen, auroc, 0).mean())
    weights = np.bincount(bigrams.suffix, bigrams.count, len(auroc))
    return float(np.average(auroc[seen], weights=weights[seen]))


def top_prefixes(queries: Tensor, keys: Tensor, suffixes: list[int], k: int = 10, *, rows: int = ROWS) -> pl.DataFrame:
    """The prefixes that score highest before each of ``suffixes`` (token ids): a row per suffix and rank.

    Columns: ``suffix`` and ``prefix`` (int64, token ids), ``rank`` (from 1), ``score`` (float32, as ``Q[v] · K[w]``).
    Prefixes of one score stand in the order of their ids. The tables are those of `bigram_auroc`.
    """
    _check_tables(queries, keys)
    vocab = len(keys)
    if not 1 <= k <= vocab:
        raise InputError(f"the top {k} of {vocab} tokens: expected 1 to {vocab}")
    for suffix in suffixes:
        _check_token(suffix, vocab)
    parts = []
    for at in range(0, len(suffixes), rows):
        block = torch.tensor(suffixes[at : at + rows], device=queries.device)
        values, tokens = torch.topk(queries[block] @ keys.T, k, dim=-1)
        parts.append(
            pl.DataFrame(
                {
                    "suffix": block.repeat_interleave(k).cpu().numpy(),
                    "prefix": tokens.flatten().cpu().numpy(),
                    "score": values.flatten().cpu().numpy(),
                    "block_row": torch.arange(len(block)).repeat_interleave(k).numpy() + at,
                }
            )
        )
    columns = ("suffix", "rank", "prefix", "score")
    if not parts:
        return pl.DataFrame(schema=dict(zip(columns, (pl.Int64, pl.Int64, pl.Int64, pl.Float32), strict=True)))
    table = pl.concat(parts).sort("block_row", pl.col("score").neg(), "prefix")
    return table.with_columns(rank=pl.int_range(1, pl.len() + 1, dtype=pl.Int64).over("block_row")).select(columns)


@dataclass(frozen=True)
class RocCurve:
    """Points of one suffix's ROC curve, from (0, 0) to (1, 1), and the exact area, which is not that under these points."""

    false_positive_rate: np.ndarray  # float64 [points], the share of negatives at or above the threshold
    true_positive_rate: np.ndarray  # float64 [points], the share of the positives' weight there
    threshold: np.ndarray  # float64 [points], inf at first
    auroc: float


def roc_curve(queries: Tensor, keys: Tensor, suffix: int, bigrams: Bigrams, *, points: int = 300) -> RocCurve:
    """The ROC curve of one suffix, thinned to at most about ``points`` points of the exact curve (for a figure).

    They are taken where the curve has gone an equal way, to the right and up together: both steep and flat parts keep
    theirs. The tables are those of `bigram_auroc`.

    Raises:
        InputError: also when the text holds no bigram that ends in ``suffix``, or one with every token.
    """
    _check_tables(queries, keys)
    vocab = len(keys)
    bigrams.check_vocab(vocab)
    _check_token(suffix, vocab)
    if points < 2:
        raise InputError(f"a ROC curve of {points} points: expected 2 or more")
    weight = np.zeros(vocab)
    prefixes, counts = bigrams.prefixes(suffix)
    weight[prefixes] = counts
    if not 0 < len(prefixes) < vocab:
        raise InputError(f"token {suffix} has {len(prefixes)} prefixes of {vocab} tokens: expected some, and not all")
    scores = (keys @ queries[suffix]).cpu().numpy().astype(np.float64)
    order = np.argsort(-scores, kind="stable")
    scores, weight = scores[order], weight[order]
    last = np.append(np.flatnonzero(np.diff(scores)), vocab - 1)  # of each run of equal scores
    right = np.append(0, np.cumsum(weight == 0)[last]) / (vocab - len(prefixes))
    up = np.append(0, np.cumsum(weight)[last]) / weight.sum()
    area = float(np.sum(np.diff(right) * (up[1:] + up[:-1]) / 2))
    keep = np.unique(np.searchsorted(right + up, np.linspace(0, (right + up)[-1], points)))
    return RocCurve(right[keep], up[keep], np.append(np.inf, scores[last])[keep], area)


@dataclass(frozen=True)
class _Positives:
    """The positives of some rows, row after row: int64 ``[P]`` each."""

    rows: int
    most: int  # positives of one row
    row: Tensor
    number: Tensor  # within the row
    column: Tensor
    weight: Tensor


@dataclass(frozen=True)
class _Space:
    """Memory for parts of the size of a strip: made once, as fresh memory costs as much as the work that is done in it."""

    floats: Tensor  # float32 [STRIP, V + padding]
    places: Tensor  # int32
    doubles: Tensor  # float64
    table: Tensor  # float64 [STRIP · bins]


def _compared(scores: Tensor, vocab: int, positives: _Positives, space: _Space) -> Tensor:
    """float64 ``[r]`` from scores ``[r, V + padding]``: every positive compared with every score of its row."""
    shape = positives.rows, positives.most
    place = positives.row, positives.number
    value = scores.new_full(shape, -torch.inf).index_put_(place, scores[positives.row, positives.column])
    weight = torch.zeros(shape, dtype=torch.float64, device=scores.device).index_put_(place, positives.weight.double())
    scores = scores[:, :vocab]
    buffer = space.floats[: positives.rows, :vocab]
    # Sums of signs, higher less lower; of positives among themselves (no one here is below -inf, which stands for none).
    amount = (weight > 0).sum(1)
    sign = torch.stack(
        [torch.sub(scores, value[:, i : i + 1], out=buffer).sign_().sum(1) for i in range(positives.most)], 1
    ).double()
    own = (torch.sign(value[:, None, :] - value[:, :, None]).nan_to_num_() * (weight > 0)[:, None, :]).sum(2).double()
    negatives = vocab - amount
    lower = (negatives[:, None] - (sign - own)) / 2  # negatives below each positive, and half of those equal to it
    return (lower * weight).sum(1) / (weight.sum(1) * negatives)  # (0 / 0 is nan: every token is a positive)


def _binned(scores: Tensor, vocab: int, positives: _Positives, space: _Space) -> Tensor:
    """float64 ``[r]`` from scores ``[r, V + padding]``, by a table of bins per row; see the module."""
    r, width = scores.shape
    row, weight = positives.row, positives.weight.double()
    value = scores[row, positives.column]
    total = torch.zeros(r, dtype=torch.float64, device=scores.device).index_add_(0, row, weight)
    negatives = vocab - torch.bincount(row, minlength=r)

    # Bins: 0 holds all that is well below the lowest positive, the last one all that is well above the highest. They must
    # not have a positive themselves, even by rounding: hence a bin between, and a span that is much more than the rounding.
    bins = min(int(BINS * positives.most**0.5), MOST_BINS)
    low = scores.new_full((r,), torch.inf).scatter_reduce_(0, row, value, "amin")
    high = scores.new_full((r,), -torch.inf).scatter_reduce_(0, row, value, "amax")
    span = torch.maximum(high - low, torch.maximum(low.abs(), high.abs()) * 1e-3).clamp_(min=1e-30)
    step = span / (bins - 4)
    scaled = torch.sub(scores, (low - 2 * step)[:, None], out=space.floats[:r]).mul_((1 / step)[:, None])
    place = space.places[:r].copy_(scaled.clamp_(0, bins - 1))
    place.add_(torch.arange(0, r * bins, bins, dtype=torch.int32, device=scores.device)[:, None])

    # What a score in a bin adds: the weight of the positives in higher bins; -1 in a bin that has one itself.
    taken = place[row, positives.column].long()
    above = space.table[: r * bins].view(r, bins).zero_()
    above[:, 0] = total
    above.view(-1).index_add_(0, taken, -weight)
    above = above.cumsum_(1).view(-1).index_fill_(0, taken, -1)
    added = torch.index_select(above, 0, place.view(-1), out=space.doubles[:r].view(-1))
    result = added.view(r, width).sum(1)

    # Scores in a bin with a positive, found in two steps: the groups that hold one, then the scores.
    apart = width // GROUP
    hit = (added.view(r, GROUP, apart).amin(1) < 0).nonzero()
    flat = (hit[:, 0] * width + hit[:, 1])[:, None] + torch.arange(0, width, apart, device=scores.device)
    inside = added.index_select(0, flat.view(-1)).view_as(flat) < 0
    flat, at = flat[inside], hit[:, :1].expand_as(flat)[inside]
    unresolved = _sortable(scores.view(-1).index_select(0, flat), at)

    own = _sortable(value, row)
    ranked, order = torch.sort(own)
    below = torch.cat([weight.new_zeros(1), weight[order].cumsum(0)])
    equal = torch.cat([below[torch.searchsorted(ranked, ranked, right=True)] - below[:-1], weight.new_zeros(1)])
    ends = total.cumsum(0)

    def higher(sought: Tensor, of: Tensor) -> Tensor:
        """The weight of the positives of row ``of`` that are above ``sought``, with half of those equal to it."""
        found = torch.searchsorted(ranked, sought)  # (the first of those that are equal)
        same = ranked.index_select(0, found.clamp(max=len(ranked) - 1)) == sought
        return ends.index_select(0, of) - below.index_select(0, found) - equal.index_select(0, found) * same / 2

    result.index_add_(0, at, higher(unresolved, at) + 1)  # (+ 1: it had been added as -1)
    result.index_add_(0, row, -higher(own, row))  # (positives are not compared with each other)
    return result / (total * negatives)  # (0 / 0 is nan: every token is a positive)


def _sortable(values: Tensor, row: Tensor) -> Tensor:
    """int64 keys in the order of (row, value), equal for equal values only: the row above, the float's bits below."""
    bits = (values + 0.0).contiguous().view(torch.int32)  # (+ 0.0 turns -0.0, which equals 0.0, into it)
    return (row << 32) + (bits ^ ((bits >> 31) & 0x7FFFFFFF))


def _check_tables(queries: Tensor, keys: Tensor) -> None:
    if queries.ndim != 2 or queries.shape != keys.shape or queries.numel() == 0:
        shapes = f"{list(queries.shape)} and {list(keys.shape)}"
        raise InputError(f"tables of queries and keys of shapes {shapes}: expected the same [tokens, numbers] for both")
    largest = []
    for name, table in (("queries", queries), ("keys", keys)):
        if table.dtype != torch.float32:
            raise InputError(f"the table of {name} is {table.dtype}: expected torch.float32")
        largest.append(table.abs().amax(1))  # (nan wins)
        if not (good := largest[-1].isfinite()).all():
            raise InputError(f"the table of {name} is not finite for token {int((~good).nonzero()[0, 0])}")
    highest = float(largest[0].amax()) * float(largest[1].amax()) * queries.shape[1]
    if highest > 1e37:
        raise InputError(f"scores may be as large as {highest:.0e}: expected at most 1e+37, so that they fit float32")


def _check_token(token: int, vocab: int) -> None:
    if not 0 <= token < vocab:
        raise InputError(f"token {token} is not in the vocabulary: expected 0 to {vocab - 1}")
