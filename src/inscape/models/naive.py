"""A sweep run in full: a forward pass of the whole model for every cell. The slow way, and the measure of the other."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inscape.models.edit import edit_taps
from inscape.models.forward import run_batch
from inscape.models.hooks import Scope, Tap
from inscape.models.sweep import LogitRows, Placed, Sweep
from inscape.models.tokens import Batch

if TYPE_CHECKING:
    from inscape.models.lm import LM


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
