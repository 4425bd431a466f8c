"""Attribution patching: what a sweep of edits would do to a metric, estimated from gradients instead of run.

Mechanism. An edit turns a site's value ``x`` into ``f(x)`` at some tokens. To first order the metric then changes by
``⟨f(x) - x, ∂metric/∂x⟩``, with value and gradient both of the base run. So one forward and one backward pass give every
cell of a grid, where :meth:`LM.rerun` needs a run for each (Nanda 2023, *Attribution patching: activation patching at
industrial scale*; Syed, Rager and Conmy 2023, *Attribution patching outperforms automated circuit discovery*,
arXiv:2310.10348). A zero is added to each site's value that the grid names; its gradient is the value's.

Vocabulary. *Cell*, *sequence* and *base run* as in :mod:`inscape.models.rerun`. An *entry* is one number that the metric
gives for a prompt; there are several where several tokens are read.

Failure. It is a tangent, not a run. It is exact where everything above the edit is linear, and good for small doses. It is
wrong where the model bends on the way from ``x`` to ``f(x)``: whole values that are replaced, norms, saturated attention
(its gradient is near 0 though the edit may change it; Kramár et al. 2024, *AtP\\**, arXiv:2403.00745), probabilities near 0
or 1 (the estimate may leave [0, 1]). The terms of several edits in a cell are added up, so a window over layers that carry
the same information counts it once for each layer. Check what matters with :meth:`LM.rerun`, which gives the same grid.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
import xarray as xr
from torch import Tensor

from inscape.errors import InputError
from inscape.models.capture import NonFiniteError
from inscape.models.edit import Edit, EditOnBatch, check_fired, edit_taps
from inscape.models.forward import check_looks, model_inputs
from inscape.models.grid import Cells, Grid, written_out
from inscape.models.hooks import Scope, Tap, attached
from inscape.models.metrics import KL, Custom, Logits, Metric, asked_positions
from inscape.models.rerun import Rerun, as_arrays
from inscape.models.sites import TapPoint
from inscape.models.sweep import Sweep, made_ready
from inscape.models.tokens import Batch, Mention, Prompt, Tokens, batches

if TYPE_CHECKING:
    from inscape.models.lm import LM, Progress


def attribute(
    lm: "LM",
    prompts: Sequence[Prompt],
    edits: Grid | Sequence[Sequence[Edit]],
    metric: Metric | Callable[[Tensor, Tensor, Tensor], Tensor],
    *,
    read: Tokens,
    base: Sequence[Edit],
    mentions: Sequence[Mention] | None,
    occurrence: int | None,
    bos: bool | None,
    batch_size: int,
    padding_side: str,
    progress: "Progress | None",
) -> Rerun:
    """:meth:`LM.attribute`."""
    reading = _differentiable(metric)
    if any(parameter.is_inference() for parameter in lm.model.parameters()):
        raise InputError("attribute: the model's weights were made in torch.inference_mode, and have no gradients")
    # (Inside the caller's inference mode no tensor could be kept for a backward pass.)
    with torch.inference_mode(False):
        encoded = lm.encode(prompts, bos)
        if not encoded:
            raise InputError("attribute: no prompts were given")
        written = written_out(lm, edits, prompts, mentions, occurrence, bos, batch_size)
        asked = asked_positions(encoded, read, mentions=mentions, occurrence=occurrence)
        sequences = reading.sequences(lm, prompts, encoded, asked, bos)
        sweep = made_ready(lm, sequences, written, base, encoded, mentions, occurrence)
        estimates = _Estimates(lm, reading, sweep, len(prompts))
        todo: Iterator[Batch] = batches(
            [one.whole for one in sequences], batch_size=batch_size, pad_id=lm.pad_id, device=lm.device,
            padding_side=padding_side,
        )  # fmt: skip
        if progress is not None:
            todo = progress(todo, -(-len(sequences) // batch_size))
        for batch in todo:
            estimates.add(batch)
        return Rerun(*estimates.labelled(written), estimates.passes / (len(sequences) * len(written.cells)))


def _differentiable(metric: object) -> Metric:
    if metric is None or isinstance(metric, Logits):
        raise InputError("attribute: the logits themselves need a gradient for each vocabulary entry: give a metric")
    if isinstance(metric, KL):
        raise InputError(
            "attribute: the gradient of KL is 0 at the base run, its minimum, so it estimates nothing: use rerun, or "
            "another metric"
        )
    if isinstance(metric, Metric):
        return metric
    if not callable(metric):
        raise InputError(f"attribute: expected a metric or a function of logits, found {type(metric).__name__}")
    return Custom(metric)


class _Seen:
    """A tap on one site's value: keeps the value, and adds a zero whose gradient is the value's."""

    value: Tensor
    zero: Tensor

    def __call__(self, value: Tensor, scope: Scope) -> Tensor:
        self.value = value.detach()
        self.zero = torch.zeros_like(value, requires_grad=True)
        return value + self.zero


class _Estimates:
    """Base values and estimated changes, filled batch by batch. Nothing of a batch's graph outlives it."""

    def __init__(self, lm: "LM", metric: Metric, sweep: Sweep, prompts: int) -> None:
        self.lm, self.metric, self.sweep, self.prompts = lm, metric, sweep, prompts
        if any(placed.edit.site == "logits" for cell in sweep.cells for placed in cell):
            raise InputError("attribute: an edit of 'logits' has no model above it to be estimated: use rerun")
        self.points = {
            (p.edit.site, p.edit.layer): lm.sites.tap(p.edit.site, p.edit.layer) for cell in sweep.cells for p in cell
        }
        if not self.points:
            raise InputError("attribute: no cell has an edit")
        self.base_taps = edit_taps(
            [p.edit for p in sweep.base], lm.sites, [one.whole for one in sweep.sequences], None,
            placed=[p.at for p in sweep.base],
        )  # fmt: skip
        self.owners = torch.tensor([one.owner for one in sweep.sequences])
        # Which of its prompt's sequences each one is.
        self.rank = torch.arange(len(self.owners)) - torch.searchsorted(self.owners, self.owners)
        self.width = max(len(one.asked) for one in sweep.sequences)
        self.read: Tensor | None = None
        """Float32 ``[sequence, 1, asked, *dims]``: what the metric read in the base run, NaN where nothing is asked."""
        self.changes: Tensor | None = None
        """Float32 ``[prompt, cell, entry]``."""
        self.passes = 0
        """Forward and backward passes, times sequences in them."""

    def add(self, batch: Batch) -> None:
        seen = {point: _Seen() for point in dict.fromkeys(self.points.values())}
        logits_NV, sequence, nth = self._forward(batch, seen)
        final_PE = self._final(logits_NV, sequence, nth)
        if self.changes is None:
            self.changes = torch.zeros(self.prompts, len(self.sweep.cells), final_PE.shape[1])
        here = torch.tensor(batch.index)
        functions = [[(seen[self.points[p.edit.site, p.edit.layer]], EditOnBatch(p.edit, batch, p.at)) for p in cell]
                     for cell in self.sweep.cells]  # fmt: skip
        has = ~final_PE.isnan()
        # Where a sequence makes one entry alone (a continuation), one backward pass serves all entries; else each entry
        # of a prompt's only sequence has its own.
        alone = self.metric.sums and final_PE.numel() == len(self.owners)
        if not alone and len(self.owners) != self.prompts:
            raise InputError("attribute: the metric makes a value of several sequences together, which may run apart")
        entries = [slice(None)] if alone else [slice(e, e + 1) for e in has.any(0).nonzero()[:, 0].tolist()]
        self.passes += (1 + len(entries)) * len(here)
        for number, these in enumerate(entries):
            slopes = torch.autograd.grad(
                final_PE[:, these][has[:, these]].sum(), [one.zero for one in seen.values()],
                retain_graph=number + 1 < len(entries), allow_unused=True,
            )  # fmt: skip
            for point, slope in zip(seen, slopes, strict=True):
                if slope is None:
                    raise InputError(f"attribute: the logits have no gradient with respect to {point}")
            change_BC = _changes(functions, dict(zip(seen.values(), slopes, strict=True)), len(here))
            _refuse_non_finite(change_BC, self.owners[here], "the estimate for an edit")
            entry = self.rank[here] if alone else torch.full_like(here, these.start)
            self.changes[self.owners[here], :, entry] = change_BC

    def _forward(self, batch: Batch, seen: dict[TapPoint, _Seen]) -> tuple[Tensor, Tensor, Tensor]:
        """The base run with its graph: float32 logits ``[n, vocab]`` of the asked tokens; sequence and nth ``[n]``."""
        asked = [(row, i, nth, t + batch.shift[row]) for row, i in enumerate(batch.index)
                 for nth, t in enumerate(self.sweep.sequences[i].asked)]  # fmt: skip
        rows, sequence, nth, columns = (torch.tensor([a[k] for a in asked]) for k in range(4))
        kept = columns.unique()
        model, got = self.lm.model, []
        given = model_inputs(model, batch)
        whole = any(p.edit.site == "logits" for p in self.sweep.base)
        if not whole and "logits_to_keep" in inspect.signature(model.forward).parameters:
            given["logits_to_keep"] = kept.to(batch.ids.device)

        def look(value: Tensor, scope: Scope) -> None:
            narrow = value.shape[1] != batch.ids.shape[1]
            at = torch.searchsorted(kept, columns) if narrow else columns
            got.append(value[rows.to(value.device), at.to(value.device)].float())

        base = self.base_taps(batch)
        looks = [*(Tap(point, one) for point, one in seen.items()), Tap(self.lm.sites.tap("logits", None), look)]
        with (
            torch.enable_grad(),
            attached(model, [*base, *looks], rows=len(batch.index), width=batch.ids.shape[1]) as scope,
        ):
            model(**given)
        check_fired(base, scope)
        check_looks(looks)
        logits_NV = got.pop()
        bad = ~torch.isfinite(logits_NV).any(-1) | logits_NV.isnan().any(-1)
        _refuse_non_finite(torch.where(bad, torch.nan, 0.0), self.owners[sequence], "the logits")
        return logits_NV, sequence, nth

    def _final(self, logits_NV: Tensor, sequence: Tensor, nth: Tensor) -> Tensor:
        """``[prompt, entry]``: the metric's final values that this batch makes, with their graph; NaN elsewhere."""
        with torch.enable_grad():
            # The base run's logits are what they are: only the edited run's would move.
            found = self.metric.read(logits_NV, logits_NV.detach(), sequence, nth)
            if not found.requires_grad:
                raise InputError("attribute: the metric has no gradient with respect to the logits")
            found = found.float().cpu()
            _refuse_non_finite(found.detach(), self.owners[sequence], "the metric")
            empty = torch.full((len(self.owners), 1, self.width, *found.shape[1:]), torch.nan)
            at = (sequence, torch.zeros_like(sequence), nth)
            self.read = empty.clone() if self.read is None else self.read
            self.read[at] = found.detach()
            return self.metric.together(empty.index_put(at, found), self.prompts)[:, 0].reshape(self.prompts, -1)

    def labelled(self, written: Cells) -> tuple[xr.DataArray, xr.DataArray]:
        assert self.read is not None
        assert self.changes is not None
        base = self.metric.together(self.read, self.prompts)[:, 0]
        changes = self.changes.masked_fill(~written.exists.expand(self.prompts, -1)[..., None], torch.nan)
        if self.width == 1 and not self.metric.sums:
            base = base[:, 0]
        edited = (base.reshape(self.prompts, 1, -1) + changes).reshape(*changes.shape[:2], *base.shape[1:])
        return as_arrays(edited, base, written, self.metric, self.width > 1)


@torch.no_grad()
def _changes(cells: Sequence[Sequence[tuple[_Seen, EditOnBatch]]], slopes: dict[_Seen, Tensor], rows: int) -> Tensor:
    """Float32 ``[row, cell]`` on the CPU: the sum over a cell's edits and their tokens of ⟨f(x) - x, slope⟩."""
    device = next(iter(slopes.values())).device
    return torch.stack([_change(cell, slopes, torch.zeros(rows, device=device)) for cell in cells], 1).cpu()


def _change(cell: Sequence[tuple[_Seen, EditOnBatch]], slopes: dict[_Seen, Tensor], total: Tensor) -> Tensor:
    # Edits of one place act one after the other, as they do in a run: each on what those before it left.
    left: dict[_Seen, Tensor] = {}
    for number, (seen, function) in enumerate(cell):
        if not len(function.rows):
            continue
        value, slope = left.get(seen, seen.value), slopes[seen]
        at = tuple(index.to(value.device) for index in (function.rows, function.columns))
        if function.edit.head is not None:
            at = (*at, torch.full_like(at[0], function.head_of(value)))
        x = value[at]
        if function.edit.kind == "add":
            x = torch.zeros_like(x)  # adds the same to every x: no rounding of a small step beside a large x
        step = function.made_of(x, function.prompt, function.nth) - x
        total.index_add_(0, at[0].to(total.device), (step * _wide(slope[at])).flatten(1).sum(1).to(total))
        if any(seen is later for later, _ in cell[number + 1 :]):
            left[seen] = _wide(value).clone()
            left[seen][at] += step
    return total


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _refuse_non_finite(values: Tensor, owners: Tensor, what: str) -> None:
    """``values`` ``[n, ...]``, of the prompts ``owners`` ``[n]``."""
    finite = values.flatten(1).isfinite().all(1) if values.ndim > 1 else values.isfinite()
    if not finite.all():
        raise NonFiniteError(f"attribute: NaN or Inf in {what} of prompt {int(owners[~finite.cpu()][0])}")
