"""Rerun: a sweep of edits over prompts, at the cost of what the edits can change.

Vocabulary. A *cell* is a set of edits that act together (:mod:`inscape.models.grid`); a *sequence* is what is run for a
prompt (with a continuation, if that is read); a *run* is one cell on one sequence. Everything upstream of a run's first
edited layer and token is known from one base run, so only what lies downstream is computed again
(:mod:`inscape.models.suffix`). Where a model can't be cut, every run is a full forward pass: the naive path, same numbers.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import xarray as xr
from torch import Tensor

from inscape.errors import InputError
from inscape.models.capture import NonFiniteError
from inscape.models.edit import Edit, edit_taps
from inscape.models.forward import run_batch
from inscape.models.grid import Cells, Grid, written_out
from inscape.models.hooks import Scope, Tap
from inscape.models.metrics import Custom, Logits, Metric, asked_positions
from inscape.models.sweep import LogitRows, Placed, Sweep, made_ready
from inscape.models.tokens import Batch, Mention, Prompt, Tokens, batches

if TYPE_CHECKING:
    from inscape.models.lm import LM, Progress


@dataclass(frozen=True, eq=False)
class Rerun:
    """What a sweep gave.

    Attributes:
        values: float32 ``[prompt, *grid dims, *token, *metric dims]`` with named dimensions; ``token`` only where several
            are read for a prompt; NaN where a prompt lacks what the cell names.
        base: the same without the grid's dimensions: the unedited run.
        share: tokens × blocks that ran, the base run included, over those of a full forward pass for every run.
        naive: why every run was a full forward pass; None if the sweep was cut.
    """

    values: xr.DataArray
    base: xr.DataArray
    share: float
    naive: str | None = None


def rerun(
    lm: "LM",
    prompts: Sequence[Prompt],
    edits: Grid | Sequence[Sequence[Edit]],
    metric: Metric | Callable[[Tensor, Tensor, Tensor], Tensor] | None,
    *,
    read: Tokens,
    base: Sequence[Edit],
    mentions: Sequence[Mention] | None,
    occurrence: int | None,
    bos: bool | None,
    batch_size: int,
    padding_side: str,
    naive: bool,
    progress: "Progress | None",
) -> Rerun:
    """:meth:`LM.rerun`."""
    reading = Logits() if metric is None else metric if isinstance(metric, Metric) else Custom(metric)
    encoded = lm.encode(prompts, bos)
    if not encoded:
        raise InputError("rerun: no prompts were given")
    written = written_out(lm, edits, prompts, mentions, occurrence, bos, batch_size)
    asked = asked_positions(encoded, read, mentions=mentions, occurrence=occurrence)
    sequences = reading.sequences(lm, prompts, encoded, asked, bos)
    sweep = made_ready(lm, sequences, written, base, encoded, mentions, occurrence)
    why = "asked for" if naive else lm.uncut
    path = Naive(lm, sweep)
    results = _Results(reading, sweep)
    todo: Iterator[Batch] = batches(
        [one.whole for one in sequences], batch_size=batch_size, pad_id=lm.pad_id, device=lm.device,
        padding_side=padding_side,
    )  # fmt: skip
    if progress is not None:
        todo = progress(todo, -(-len(sequences) // batch_size))
    for batch in todo:
        for rows in path.logits(batch):
            results.add(*rows)
    return Rerun(*results.labelled(written, len(prompts), read), path.share, why)


def warn_naive(model_type: str, why: str) -> None:
    """Say that sweeps on this model run in full."""
    warnings.warn(f"rerun: {model_type} is run in full for every edit: {why}", stacklevel=4)


class _Results:
    """The array of results, filled as logits come."""

    def __init__(self, metric: Metric, sweep: Sweep) -> None:
        self.metric, self.sweep = metric, sweep
        self.width = max(len(one.asked) for one in sweep.sequences)
        self.values: Tensor | None = None
        self.base_logits: dict[tuple[int, int], Tensor] = {}

    def add(self, logits_NV: Tensor, sequence: Tensor, cell: Tensor, nth: Tensor) -> None:
        bad = ~torch.isfinite(logits_NV).any(-1) | logits_NV.isnan().any(-1)
        if bad.any():
            owner = self.sweep.sequences[int(sequence[bad.cpu()][0])].owner
            raise NonFiniteError(f"rerun: the logits of prompt {owner} are NaN or Inf")
        if cell[0] < 0:
            keys = list(zip(sequence.tolist(), nth.tolist(), strict=True))
            self.base_logits = dict(zip(keys, logits_NV, strict=True))
            base_NV = logits_NV
        else:
            base_NV = torch.stack([self.base_logits[k] for k in zip(sequence.tolist(), nth.tolist(), strict=True)])
        found = self.metric.read(logits_NV, base_NV, sequence, nth).float().cpu()
        if self.values is None:
            shape = (len(self.sweep.sequences), 1 + len(self.sweep.cells), self.width, *found.shape[1:])
            self.values = torch.full(shape, torch.nan)
        self.values[sequence, cell + 1, nth] = found

    def labelled(self, written: Cells, prompts: int, read: Tokens) -> tuple[xr.DataArray, xr.DataArray]:
        assert self.values is not None
        self.values[:, 1:][~self.sweep.exists] = torch.nan
        values = self.metric.together(self.values, prompts)
        dims, coords = self.metric.dims, self.metric.coords()
        token: tuple[str, ...] = ("token",)
        if self.metric.sums or self.width == 1:
            token = ()
            values = values if self.metric.sums else values[:, :, 0]
        base, edited = values[:, 0], values[:, 1:].unflatten(1, written.shape)
        shared: dict[str, Any] = {"prompt": range(prompts), **coords}
        return (
            xr.DataArray(
                edited.numpy(), dims=("prompt", *written.dims, *token, *dims), coords={**shared, **written.coords}
            ),
            xr.DataArray(base.numpy(), dims=("prompt", *token, *dims), coords=shared),
        )


class Naive:
    """A full forward pass for every run."""

    def __init__(self, lm: "LM", sweep: Sweep) -> None:
        self.lm, self.sweep = lm, sweep
        self.share = 1 + 1 / max(len(sweep.cells), 1)
        wholes = [one.whole for one in sweep.sequences]

        def taps(edits: Sequence[Placed]) -> Callable[[Batch], list[Tap]]:
            return edit_taps([p.edit for p in edits], lm.sites, wholes, None, placed=[p.at for p in edits])

        self.base_taps = taps(sweep.base)
        self.cell_taps = [taps(cell) for cell in sweep.cells]

    def logits(self, batch: Batch) -> Iterator[LogitRows]:
        asked = [(row, i, nth, t + batch.shift[row]) for row, i in enumerate(batch.index)
                 for nth, t in enumerate(self.sweep.sequences[i].asked)]  # fmt: skip
        rows, sequence, nth, columns = (torch.tensor([a[k] for a in asked]) for k in range(4))
        kept = columns.unique()
        whole = any(p.edit.site == "logits" for edits in (self.sweep.base, *self.sweep.cells) for p in edits)
        got: list[Tensor] = []

        def look(value: Tensor, scope: Scope) -> None:
            narrow = value.shape[1] != batch.ids.shape[1]
            at = torch.searchsorted(kept, columns) if narrow else columns
            got.append(value[rows.to(value.device), at.to(value.device)].float())

        point = self.lm.sites.tap("logits", None)
        for cell, taps in enumerate([None, *self.cell_taps], start=-1):
            edits = self.base_taps(batch) + (taps(batch) if taps is not None else [])
            run_batch(self.lm.model, batch, edits, [Tap(point, look)], logits_at=lambda b: None if whole else kept)
            yield got.pop(), sequence, torch.full_like(sequence, cell), nth
