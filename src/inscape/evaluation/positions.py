"""What a longer context gives a model, and whether it holds beyond the length that it was trained at.

The same target tokens are predicted from contexts of different lengths (`context_losses`): the last tokens of a window,
after so many of the tokens before them. So neither the text nor the place in a document differs between lengths, as it
does where loss is averaged over sequences cut at each length. A model that extrapolates loses nothing beyond its training
length (Press et al. 2022, ALiBi); `extrapolation` says by how much the loss at each length exceeds that at the training
length.

`position_losses` gives the loss at each place of the longest windows, in bands of places. Later places have more context;
where the curve turns up, the model can't use it.

Lengths beyond the model's context are left out. Documents shorter than the longest length are not used: the text is that
of long documents.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import polars as pl

from inscape.errors import InputError
from inscape.evaluation.bits import ratio, score_nats
from inscape.models import LM
from inscape.models.lm import Progress
from inscape.runs.intervals import bootstrap_paired

LENGTHS = (256, 512, 1024, 2048)


def long_windows(
    documents: Sequence[Sequence[int] | np.ndarray], length: int, n: int, *, seed: int = 0
) -> list[list[int]]:
    """At most ``n`` windows of ``length`` token ids, one from each document that is long enough, drawn by seed.

    Raises:
        InputError: no document is long enough.
    """
    if length < 2 or n < 1:
        raise InputError(f"{n} windows of {length} tokens, expected at least one of at least 2")
    rng = np.random.default_rng(seed)
    fit = [i for i, ids in enumerate(documents) if len(ids) >= length]
    if not fit:
        longest = max(map(len, documents), default=0)
        raise InputError(f"no document has {length} tokens (the longest has {longest}): ask for shorter lengths")
    chosen = sorted(rng.permutation(fit)[:n].tolist())
    begins = [int(rng.integers(len(documents[i]) - length + 1)) for i in chosen]
    return [[int(token) for token in documents[i][a : a + length]] for i, a in zip(chosen, begins, strict=True)]


def context_losses(
    lm: LM,
    windows: Sequence[Sequence[int]],
    lengths: Sequence[int] = LENGTHS,
    *,
    targets: int = 64,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> pl.DataFrame:
    """``window, length, nats, targets``: -ln p of each window's last ``targets`` tokens, in its last ``length`` tokens.

    Raises:
        InputError: windows shorter than the longest length, a length that leaves no context, or none within the model's.
    """
    lengths = sorted(set(lengths))
    if not lengths or lengths[0] <= targets or targets < 1:
        raise InputError(f"lengths {lengths} with {targets} targets, expected lengths above the number of targets")
    _refuse_short(windows, lengths[-1])
    within = [length for length in lengths if lm.context is None or length <= lm.context]
    if not within:
        raise InputError(f"lengths {lengths}: none is within the model's context of {lm.context}")
    rows = []
    for length in within:
        nats = score_nats(
            lm, [w[len(w) - length : len(w) - targets] for w in windows], [w[len(w) - targets :] for w in windows],
            batch_size, progress,
        )  # fmt: skip
        rows += [
            {"window": i, "length": length, "nats": float(one.sum()), "targets": targets} for i, one in enumerate(nats)
        ]
    return pl.DataFrame(rows)


def extrapolation(losses: pl.DataFrame, trained: int, *, seed: int = 0) -> pl.DataFrame:
    """``length, loss, ratio, ratio_lo, ratio_hi``: loss at each length, and by that at the training length.

    Below 1: the longer context helps. The interval is over windows.

    Raises:
        InputError: no losses at the training length.
    """
    at = losses.filter(pl.col("length") == trained).sort("window")
    if not at.height:
        there = ", ".join(map(str, losses["length"].unique().sort()))
        raise InputError(f"extrapolation from {trained} tokens: lengths are {there}, expected {trained} among them")
    rows = []
    for (length,), some in losses.sort("length", "window").group_by("length", maintain_order=True):
        found = bootstrap_paired(some["nats"].to_numpy(), at["nats"].to_numpy(), ratio, seed=seed)
        loss = float(some["nats"].sum()) / float(some["targets"].sum())
        rows.append({"length": length, "loss": loss, "ratio": found.value, "ratio_lo": found.lo, "ratio_hi": found.hi})
    return pl.DataFrame(rows, infer_schema_length=None).fill_nan(None)


def position_losses(
    lm: LM, windows: Sequence[Sequence[int]], *, batch_size: int | None = None, progress: Progress | None = None
) -> pl.DataFrame:
    """``window, first, last, nats, targets``: -ln p summed over the places ``first`` to ``last`` (from 0) of each window.

    Bands are half an octave wide. Windows are cut at the model's context.
    """
    _refuse_short(windows, 2)
    length = min(len(window) for window in windows)
    length = length if lm.context is None else min(length, lm.context)
    nats = score_nats(lm, [w[:1] for w in windows], [w[1:length] for w in windows], batch_size, progress)
    edges = np.unique(np.round(2 ** np.arange(0, np.log2(length) + 0.5, 0.5)).astype(int))
    edges = np.append(edges[edges < length], length)
    rows = [
        {
            "window": i,
            "first": int(a),
            "last": int(b) - 1,
            "nats": float(one[a - 1 : b - 1].sum()),
            "targets": int(b - a),
        }
        for i, one in enumerate(nats)
        for a, b in itertools.pairwise(edges)
    ]
    return pl.DataFrame(rows)


def _refuse_short(windows: Sequence[Sequence[int]], length: int) -> None:
    if not windows or (shortest := min(map(len, windows))) < length:
        found = f"the shortest has {shortest} tokens" if windows else "there are none"
        raise InputError(f"windows: {found}, expected {length} or more")
