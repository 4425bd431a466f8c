"""The sweeps of `causal-tracing`, over some rows at a time: every layer × every token from the subject on.

Tokens before the subject are not swept: a causal model gives them the same states in every run.

Shapes: R rows, S noise samples, L layers, K token places counted from the subject's first token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from inscape.models import LM
from inscape.models.edit import Edit, add
from inscape.models.grid import Donors, Grid
from inscape.models.metrics import LogitDifference, Metric, Probability
from inscape.models.rerun import Rerun
from inscape.models.tokens import Tokens
from inscape.studies.causal_tracing_tokens import Question, counterparts

CLEAN, UNRELATED, SECOND_NOISE = "clean", "unrelated prompt", "second noise"
"""Whose state is restored into the corrupted run: the clean run's, and the two controls."""

DENOISING, NOISING, UNRELATED_PATCH = "denoising", "noising", "denoising, unrelated prompt"

Sweeper = Callable[..., Rerun]
"""``lm.rerun`` or ``lm.attribute``."""


@dataclass(frozen=True)
class Swept:
    """``values`` float ``[target, site, L, K]``, NaN where a token has no counterpart; ``base`` ``[target]``."""

    values: np.ndarray
    base: np.ndarray
    share: float


def sweep(
    sweeper: Sweeper, targets: Sequence[Question], givers: Sequence[Question], metric: Metric, *, sites: Sequence[str],
    window: int = 0, base: Sequence[Edit] = (), donor_edits: Sequence[Edit] = (), batch_size: int, read: Any = "last",
) -> Swept:  # fmt: skip
    """Put the givers' states into the targets' runs: each layer, each token by itself."""
    matched = [counterparts(t, g) for t, g in zip(targets, givers, strict=True)]
    places = range(max(len(t.ids) - t.first for t in targets))
    used = [k for k in places if any(t.first + k in m for t, m in zip(targets, matched, strict=True))]
    written: dict[str, Tokens] = {}
    given: dict[str, Tokens] = {}
    for k in used:
        at = [t.first + k for t in targets]
        written[str(k)] = [[i] if i in m else [] for i, m in zip(at, matched, strict=True)]
        given[str(k)] = [[m[i]] if i in m else [] for i, m in zip(at, matched, strict=True)]
    grid = Grid(
        site=list(sites), tokens=written, kind="set", window=window,
        donors=Donors([g.ids for g in givers], tokens=given, edits=donor_edits),
    )  # fmt: skip
    result = sweeper([t.ids for t in targets], grid, metric, base=base, read=read, batch_size=batch_size)
    found = result.values.isel(strength=0).transpose("prompt", "site", "layer", "position").to_numpy()
    there = np.array([[t.first + k in m for k in used] for t, m in zip(targets, matched, strict=True)])
    values = np.full((*found.shape[:3], len(places)), np.nan)
    values[..., used] = np.where(there[:, None, None, :], found, np.nan)
    return Swept(values, result.base.to_numpy(), result.share)


# -- noise on the subject ----------------------------------------------------------------------------------------------


def noise_edit(
    questions: Sequence[Question], numbers: Sequence[int], scale: float, d: int, draw: int, seed: int
) -> Edit:
    """N(0, scale²) on the embeddings of every subject token.

    Args:
        numbers: for each question what its noise follows from, with ``draw`` and ``seed`` alone.
    """
    width = max(q.last - q.first + 1 for q in questions)
    noise_QTD = torch.zeros(len(questions), width, d)
    for i, (q, number) in enumerate(zip(questions, numbers, strict=True)):
        rng = np.random.default_rng([seed, draw, number])
        n = q.last - q.first + 1
        noise_QTD[i, :n] = torch.from_numpy(rng.normal(0.0, scale, (n, d))).float()
    return add("embed", None, noise_QTD, tokens=[list(range(q.first, q.last + 1)) for q in questions])


def trace(
    lm: LM, ids: Sequence[str], questions: Sequence[Question], unrelated: Sequence[Question | None], numbers: Sequence[int],
    *, sites: Sequence[str], window: int, n_noise: int, scale: float, seed: int, batch_size: int,
) -> pl.DataFrame:  # fmt: skip
    """What restoring gives back: the answer's probability in corrupted runs with one state put back, means over samples.

    Columns: id, site, layer, position, role, restored, corrupted, share, state (whose state is put back).
    """
    parts = []
    for state in (CLEAN, UNRELATED, SECOND_NOISE):
        rows = [i for i in range(len(ids)) if state != UNRELATED or unrelated[i] is not None]
        if not rows:
            continue
        # Sample s of row i has its own noise, whatever other rows are traced beside it.
        repeated = [i for i in rows for _ in range(n_noise)]
        seeds = [numbers[i] * n_noise + s for i in rows for s in range(n_noise)]
        targets = [questions[i] for i in repeated]
        givers = [u if state == UNRELATED and (u := unrelated[i]) is not None else questions[i] for i in repeated]
        first, second = (noise_edit(targets, seeds, scale, lm.d_model, draw, seed) for draw in (0, 1))
        for group, width in ((["resid_post"], 0), ([s for s in sites if s != "resid_post"], window)):
            if not group:
                continue
            swept = sweep(
                lm.rerun, targets, givers, Probability([list(t.answer) for t in targets]), sites=group, window=width,
                base=[first], donor_edits=[second] if state == SECOND_NOISE else [], batch_size=batch_size,
            )  # fmt: skip
            restored = swept.values.reshape(len(rows), n_noise, *swept.values.shape[1:]).mean(1)
            corrupted = swept.base.reshape(len(rows), n_noise).mean(1)
            parts.append(
                _long(
                    [ids[i] for i in rows], [questions[i] for i in rows], group, restored=restored, corrupted=corrupted
                ).with_columns(pl.lit(swept.share).alias("share"), pl.lit(state).alias("state"))
            )
    return pl.concat(parts)


# -- clean and corrupted prompts ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """A clean and a corrupted prompt, both continued by what their answers share; then ``correct`` or ``wrong`` follows.

    ``unrelated`` is a third prompt, continued alike, or None.
    """

    id: str
    clean: Question
    corrupt: Question
    correct: int
    wrong: int
    unrelated: Question | None = None


def patch(lm: LM, pairs: Sequence[Pair], *, batch_size: int) -> pl.DataFrame:
    """Logit differences (correct - wrong answer) with one state of another run put in.

    Columns: id, layer, position and role (in the run that is patched), patched, unpatched, share, direction.
    """
    parts = []
    for direction in (DENOISING, NOISING, UNRELATED_PATCH):
        here = [p for p in pairs if direction != UNRELATED_PATCH or p.unrelated is not None]
        if not here:
            continue
        targets = [p.clean if direction == NOISING else p.corrupt for p in here]
        givers = [
            p.corrupt
            if direction == NOISING
            else p.unrelated
            if direction == UNRELATED_PATCH and p.unrelated
            else p.clean
            for p in here
        ]
        parts.append(
            _patched(lm.rerun, here, targets, givers, batch_size).with_columns(pl.lit(direction).alias("direction"))
        )
    return pl.concat(parts)


def attribute(lm: LM, pairs: Sequence[Pair], *, batch_size: int) -> pl.DataFrame:
    """First-order estimates of denoising, the same columns (attribution patching)."""
    table = _patched(lm.attribute, pairs, [p.corrupt for p in pairs], [p.clean for p in pairs], batch_size)
    return table.with_columns(pl.lit(DENOISING).alias("direction"))


def _patched(
    sweeper: Sweeper, pairs: Sequence[Pair], targets: Sequence[Question], givers: Sequence[Question], batch_size: int
) -> pl.DataFrame:
    metric = LogitDifference([p.correct for p in pairs], [p.wrong for p in pairs])
    swept = sweep(sweeper, targets, givers, metric, sites=["resid_post"], batch_size=batch_size)
    table = _long([p.id for p in pairs], targets, ["resid_post"], patched=swept.values, unpatched=swept.base)
    return table.drop("site").with_columns(pl.lit(swept.share).alias("share"))


def _long(
    ids: Sequence[str], questions: Sequence[Question], sites: Sequence[str], **values: np.ndarray
) -> pl.DataFrame:
    """A row for each cell that is there, from two named arrays: cells ``[row, site, L, K]``, starting values ``[row]``."""
    (name, cells), (other, start) = values.items()
    row, site, layer, place = np.nonzero(~np.isnan(cells))
    position = place + np.array([q.first for q in questions])[row]
    roles = [q.roles() for q in questions]
    return pl.DataFrame(
        {
            "id": [ids[i] for i in row.tolist()],
            "site": [sites[i] for i in site.tolist()],
            "layer": layer,
            "position": position,
            "role": [roles[i][p] for i, p in zip(row.tolist(), position.tolist(), strict=True)],
            name: cells[row, site, layer, place].astype(np.float64),
            other: start[row].astype(np.float64),
        }
    )


def embedding_spread(lm: LM, questions: Sequence[Question], batch_size: int) -> float:
    """Standard deviation over all numbers of the embeddings of the subjects' tokens."""
    tokens = [list(range(q.first, q.last + 1)) for q in questions]
    found: Tensor = lm.capture([q.ids for q in questions], "embed", None, tokens, batch_size=batch_size).values
    return float(found.float().std())
