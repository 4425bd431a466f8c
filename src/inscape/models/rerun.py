"""Rerun: a sweep of edits over prompts, at the cost of what the edits can change.

Vocabulary. A *cell* is a set of edits that act together (:mod:`inscape.models.grid`); a *sequence* is what is run for a
prompt (with a continuation, if that is read); a *run* is one cell on one sequence. Everything upstream of a run's first
edited layer and token is known from one base run, so only what lies downstream is computed again
(:mod:`inscape.models.suffix`). Where a model can't be cut, every run is a full forward pass: the naive path, same numbers.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from inscape.errors import InputError
from inscape.models.capture import NonFiniteError
from inscape.models.edit import Edit
from inscape.models.grid import Cells, Grid, written_out
from inscape.models.metrics import Custom, Logits, Metric, asked_positions
from inscape.models.naive import Naive
from inscape.models.regenerate import Generated, generated_from_cut, generated_in_full, refuse_logits, refuse_options
from inscape.models.suffix import Suffixes
from inscape.models.sweep import Sweep, made_ready
from inscape.models.tokens import Batch, Mention, Prompt, Tokens, batches

if TYPE_CHECKING:
    from inscape.models.lm import LM, Progress


@dataclass(frozen=True, eq=False)
class Rerun:
    """What a sweep gave.

    Attributes:
        values: float32 ``[prompt, *grid dims, *token, *metric dims]`` with named dimensions; ``token`` only where several
            are read for a prompt; NaN (None among continuations) where a prompt lacks what the cell names.
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
    metric: Metric | Generated | Callable[[Tensor, Tensor, Tensor], Tensor] | None,
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
    generated = metric if isinstance(metric, Generated) else None
    reading = Logits() if generated is not None or metric is None else _reading(metric)
    if batch_size < 1:
        raise InputError(f"rerun: batch_size={batch_size}, expected at least 1")
    encoded = lm.encode(prompts, bos, new_tokens=generated.max_new_tokens if generated is not None else 0)
    if not encoded:
        raise InputError("rerun: no prompts were given")
    if generated is not None:
        refuse_options(lm, generated)
        if not isinstance(read, str) or read != "last" or padding_side != "left":
            raise InputError("rerun: what is generated follows the last token, of prompts padded on the left")
    written = written_out(lm, edits, prompts, mentions, occurrence, bos, batch_size)
    asked = asked_positions(encoded, read, mentions=mentions, occurrence=occurrence)
    sequences = reading.sequences(lm, prompts, encoded, asked, bos)
    sweep = made_ready(lm, sequences, written, base, encoded, mentions, occurrence)
    _refuse_idle(sweep, generated)
    cut = "asked for" if naive else lm.cut
    path = Naive(lm, sweep) if isinstance(cut, str) else Suffixes(lm, sweep, cut, batch_size)
    todo: Iterator[Batch] = batches(
        [one.whole for one in sequences], batch_size=batch_size, pad_id=lm.pad_id, device=lm.device,
        padding_side=padding_side,
    )  # fmt: skip
    if progress is not None:
        todo = progress(todo, -(-len(sequences) // batch_size))
    why = cut if isinstance(cut, str) else None
    if generated is not None:
        return Rerun(*_continuations(lm, path, todo, generated, written), path.share, why)
    results = _Results(reading, sweep)
    for batch in todo:
        for rows in path.logits(batch):
            results.add(*rows)
    return Rerun(*results.labelled(written, len(prompts)), path.share, why)


def _reading(metric: object) -> Metric:
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, type) or not callable(metric):
        raise InputError(f"rerun: metric={metric!r:.80}, expected a Metric like KL(), Generated() or a function")
    return Custom(metric)


def _refuse_idle(sweep: Sweep, generated: Generated | None) -> None:
    """Edits that wait for tokens after the prompt, where there are none: their result would be the base run's."""
    fed_back = generated.max_new_tokens > 1 if generated is not None else False
    if fed_back or any(len(one.whole.ids) > len(one.prompt.ids) for one in sweep.sequences):
        return
    for placed in (placed for cell in (sweep.base, *sweep.cells) for placed in cell):
        if placed.edit.when == "decode":
            what = "one new token" if generated is not None else "this metric"
            raise InputError(
                f"edit of {placed.edit.site}: when='decode' acts on tokens after the prompt; {what} has none"
            )


def _continuations(
    lm: "LM", path: Naive | Suffixes, todo: Iterator[Batch], wanted: Generated, written: Cells
) -> tuple[xr.DataArray, xr.DataArray]:
    refuse_logits(lm, [path.sweep.base, *path.sweep.cells])
    found = np.full((len(path.sweep.sequences), 1 + len(written.cells)), None, dtype=object)
    for batch in todo:
        some = (
            generated_in_full(path, batch, wanted)
            if isinstance(path, Naive)
            else generated_from_cut(path, batch, wanted)
        )
        for sequence, cell, ids in some:
            found[sequence, cell + 1] = tuple(ids)
    if not wanted.ids:
        texts = lm.decode([list(ids) for ids in found.ravel()])
        for place, text in zip(np.ndindex(*found.shape), texts, strict=True):
            found[place] = text
    prompts = {"prompt": range(len(found))}
    edited = xr.DataArray(
        found[:, 1:].reshape(len(found), *written.shape), dims=("prompt", *written.dims),
        coords={**prompts, **written.coords},
    )  # fmt: skip
    # (After xarray has the texts: it would make NaN of None among them, and of None among tuples it would not.)
    edited.values.reshape(len(found), -1)[~path.sweep.exists.numpy()] = None
    return edited, xr.DataArray(found[:, 0], dims=("prompt",), coords=prompts)


class _Results:
    """The array of results, filled as logits come."""

    def __init__(self, metric: Metric, sweep: Sweep) -> None:
        self.metric, self.sweep = metric, sweep
        self.width = max(len(one.asked) for one in sweep.sequences)
        self.values: Tensor | None = None
        self.base_NV = torch.empty(0)
        self.base_row: dict[tuple[int, int], int] = {}

    @torch.no_grad()
    def add(self, logits_NV: Tensor, sequence: Tensor, cell: Tensor, nth: Tensor) -> None:
        # (The largest is NaN if any is, and infinite if any is or all are minus infinity.)
        bad = ~torch.isfinite(logits_NV.amax(-1))
        if bad.any():
            owner = self.sweep.sequences[int(sequence[bad.cpu()][0])].owner
            raise NonFiniteError(f"rerun: the logits of prompt {owner} are NaN or Inf")
        if cell[0] < 0:
            self.base_row = {key: n for n, key in enumerate(zip(sequence.tolist(), nth.tolist(), strict=True))}
            self.base_NV = base_NV = logits_NV
        elif self.metric.uses_base:
            same = [self.base_row[key] for key in zip(sequence.tolist(), nth.tolist(), strict=True)]
            base_NV = self.base_NV[torch.tensor(same, device=logits_NV.device)]
        else:
            base_NV = logits_NV
        found = self.metric.read(logits_NV, base_NV, sequence, nth).float().cpu()
        if self.values is None:
            shape = (len(self.sweep.sequences), 1 + len(self.sweep.cells), self.width, *found.shape[1:])
            self.values = torch.full(shape, torch.nan)
        self.values[sequence, cell + 1, nth] = found

    def labelled(self, written: Cells, prompts: int) -> tuple[xr.DataArray, xr.DataArray]:
        assert self.values is not None
        self.values[:, 1:][~self.sweep.exists] = torch.nan
        values = self.metric.together(self.values, prompts)
        values = values if self.metric.sums or self.width > 1 else values[:, :, 0]
        return as_arrays(values[:, 1:], values[:, 0], written, self.metric, self.width > 1)


def as_arrays(
    edited: Tensor, base: Tensor, written: Cells, metric: Metric, several: bool
) -> tuple[xr.DataArray, xr.DataArray]:
    """``[prompt, cell, ...]`` and ``[prompt, ...]`` with named dimensions; ``several``: there is an axis of tokens read."""
    rest = (*(("token",) if several and not metric.sums else ()), *metric.dims)
    shared: dict[str, Any] = {"prompt": range(len(base)), **metric.coords()}
    return (
        xr.DataArray(
            edited.unflatten(1, written.shape).numpy(), dims=("prompt", *written.dims, *rest),
            coords={**shared, **written.coords},
        ),
        xr.DataArray(base.numpy(), dims=("prompt", *rest), coords=shared),
    )  # fmt: skip
