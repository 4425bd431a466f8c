"""Sweeps cut to what their edits can change: the blocks above an edit, on the tokens from the edited one on.

For a batch of prompts one *base run* keeps the key/value cache of every layer and the residual stream at the layers where
runs will enter. Cells whose edits start at the same tokens are run together, on prompts whose suffixes are about as long, in
chunks (:mod:`inscape.models.chunk`); then the model's own head reads the tokens asked for.

Everything runs the model's own blocks with arguments gathered from the model's own (:mod:`inscape.models.blocks`). A model
whose attention counts its own columns (GPT-Neo's causal buffer, MPT's bias) can't be packed, and runs apart.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inscape.models.blocks import NotedCache
from inscape.models.chunk import Base, Chunk, Cut, Work
from inscape.models.forward import run_batch
from inscape.models.hits import Hits, Places
from inscape.models.hooks import Scope, Tap
from inscape.models.sweep import LogitRows, Placed, Sweep
from inscape.models.tokens import Batch

if TYPE_CHECKING:
    from inscape.models.lm import LM

PACKED_QUERIES = 128
"""Most tokens of a packed row: beyond it, scores of queries with other runs' keys, all masked, would begin to cost."""


class Suffixes:
    """Runs a sweep batch by batch. ``share``: tokens × blocks run so far, over those of the naive sweep."""

    def __init__(self, lm: "LM", sweep: Sweep, cut: Cut, batch_size: int) -> None:
        self.lm, self.sweep, self.cut, self.batch_size = lm, sweep, cut, batch_size
        self.n_layers = lm.n_layers
        self.naive = 0
        base_pre = {
            p.edit.layer % self.n_layers for p in sweep.base if p.edit.site == "resid_pre" and p.edit.layer is not None
        }

        def entry(placed: Placed) -> int:
            """The stream in which an edit is the first thing to be different."""
            edit = placed.edit
            if edit.site in ("embed", "logits"):
                return 0 if edit.site == "embed" else self.n_layers
            assert edit.layer is not None
            layer = edit.layer % self.n_layers
            # (An edit of the base run at the next block's input comes after it.)
            return layer + 1 if edit.site == "resid_post" and layer + 1 not in base_pre else layer

        entries = [min((entry(p) for p in cell), default=self.n_layers) for cell in sweep.cells]
        self.work = Work(lm, sweep, cut, entries, Places())

    @property
    def share(self) -> float:
        return self.work.ran / max(self.naive, 1)

    # -- a batch ---------------------------------------------------------------------------------------------------

    def logits(self, batch: Batch) -> Iterator[LogitRows]:
        """The base run's logits, then those of all cells, in pieces."""
        base = self.base(batch)
        asked = [
            (row, nth, t + batch.shift[row])
            for row, i in enumerate(batch.index)
            for nth, t in enumerate(self.sweep.sequences[i].asked)
        ]
        rows, nths, columns = (torch.tensor(axis, dtype=torch.int64) for axis in zip(*asked, strict=True))
        sequence = torch.tensor(batch.index)[rows]
        hidden_ND = base.stream[self.n_layers][rows.to(self._device(base)), columns.to(self._device(base))]
        logits_NV = torch.cat([logits for _, logits in self._head(hidden_ND)])
        yield self._with_logit_edits(logits_NV, sequence, torch.full_like(sequence, -1), nths)
        for cells, prompts, start in self.groups(base):
            reads = torch.isin(rows, prompts)
            if start is None:
                at = reads.nonzero()[:, 0]
                for number in cells:
                    same = logits_NV[at.to(logits_NV.device)]
                    yield self._with_logit_edits(same, sequence[at], torch.full_like(at, number), nths[at])
                continue
            row_of = torch.full((len(batch.index),), -1, dtype=torch.int64)
            row_of[prompts] = torch.arange(len(prompts))
            for chunk in self.chunks(base, cells, prompts, start):
                final, _ = chunk.run()
                at = reads.nonzero()[:, 0].repeat(len(chunk.cells))
                cell = torch.tensor(chunk.cells).repeat_interleave(int(reads.sum()))
                nth_cell = torch.arange(len(chunk.cells)).repeat_interleave(int(reads.sum()))
                hidden = chunk.at(final, base.stream[self.n_layers], nth_cell, row_of[rows[at]], columns[at])
                for piece, logits in self._head(hidden):
                    where = at[piece]
                    yield self._with_logit_edits(logits, sequence[where], cell[piece], nths[where])

    def _device(self, base: Base) -> torch.device:
        return base.stream[self.n_layers].device

    def base(self, batch: Batch) -> Base:
        """One forward pass without the head, and one dry pass for the arguments of the blocks."""
        n = self.n_layers
        stream: dict[int, Tensor] = {}
        needed = sorted({entry for entry in self.work.entries if entry < n})

        def look_at(entry: int) -> Tap:
            def look(value: Tensor, scope: Scope) -> None:
                stream[entry] = value.clone()

            point = self.lm.sites.tap("resid_pre", entry) if entry < n else self.lm.sites.tap("resid_post", n - 1)
            return Tap(point, look)

        cache = NotedCache()
        edits = [self._base_tap(placed, batch) for placed in self.sweep.base if placed.edit.site != "logits"]
        run_batch(self.lm.model, batch, edits, [look_at(entry) for entry in (*needed, n)], cache=cache)
        ends = [max(self.sweep.sequences[i].asked) + batch.shift[row] + 1 for row, i in enumerate(batch.index)]
        rows, width = batch.ids.shape
        # One more column, of padding: a kernel may do without a mask where there is none, and here one is needed.
        more = torch.zeros_like(batch.ids[:, :1])
        wider = Batch(batch.index, torch.cat([batch.ids, more], 1), torch.cat([batch.mask, more], 1), batch.shift, True)
        calls = self.cut.blocks.dry(wider)
        lengths = sum(len(self.sweep.sequences[i].whole.ids) for i in batch.index)
        self.work.ran += rows * width * n
        self.naive += lengths * n * len(self.sweep.cells)
        kept = {layer: (k.contiguous(), v.contiguous()) for layer, (k, v) in cache.kept.items()}
        return Base(batch, calls, kept, stream, max(ends))

    def _base_tap(self, placed: Placed, batch: Batch) -> Tap:
        here = Hits(placed, 0, *self.work.places.of(placed, batch, torch.arange(len(batch.index))))
        return Tap(
            self.lm.sites.tap(placed.edit.site, placed.edit.layer),
            lambda value, scope: self.work.applied(value, [here]),
        )

    def _head(self, hidden_ND: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Float32 logits in pieces of some 2^25 numbers."""
        step = max(1, (1 << 25) // max(self.lm.vocab, 1))
        for first in range(0, len(hidden_ND), step):
            piece = slice(first, min(first + step, len(hidden_ND)))
            yield piece, self.cut.blocks.head(hidden_ND[piece]).float()

    def _with_logit_edits(self, logits_NV: Tensor, sequence: Tensor, cell: Tensor, nth: Tensor) -> LogitRows:
        for number in sorted(set(cell.tolist())):
            for placed in [*self.sweep.base, *(self.sweep.cells[number] if number >= 0 else [])]:
                if placed.edit.site != "logits":
                    continue
                hits = []
                for row in (cell == number).nonzero()[:, 0].tolist():
                    one = self.sweep.sequences[int(sequence[row])]
                    position = one.asked[int(nth[row])]
                    hits += [(row, k) for p, k in placed.at[int(sequence[row])] if p == position]
                if hits:
                    rows, nths = (torch.tensor(axis) for axis in zip(*hits, strict=True))
                    here = Hits(placed, 0, rows, torch.zeros_like(rows), sequence[rows], nths)
                    logits_NV = self.work.applied(logits_NV[:, None], [here])[:, 0]
        return logits_NV, sequence, cell, nth

    # -- chunks ----------------------------------------------------------------------------------------------------

    def _starts(self, cell: Sequence[Placed], batch: Batch, end: int) -> tuple[int, ...]:
        """For each row the first column that the cell changes; ``end`` if none that matters."""
        starts = torch.full((len(batch.index),), end, dtype=torch.int64)
        for placed in cell:
            if placed.edit.site != "logits":
                which, columns, _, _ = self.work.places.of(placed, batch, torch.arange(len(batch.index)))
                starts.scatter_reduce_(0, which, columns, "amin")
        return tuple(starts.clamp(max=end).tolist())

    def groups(self, base: Base) -> Iterator[tuple[list[int], Tensor, int | None]]:
        """Cells that start alike, prompts whose suffixes are about as long, and the column where those start.

        The column is None where a cell changes nothing that is read.
        """
        known: dict[tuple[int, ...], tuple[int, ...]] = {}
        alike: dict[tuple[int, ...], list[int]] = {}
        for number, cell in enumerate(self.sweep.cells):
            key = tuple(id(p.at) for p in cell if p.edit.site != "logits")
            if key not in known:
                known[key] = self._starts(cell, base.batch, base.end)
            alike.setdefault(known[key], []).append(number)
        for starts, cells in alike.items():
            cells.sort(key=lambda number: self.work.entries[number])
            order = sorted(range(len(starts)), key=lambda row: starts[row])
            idle = [row for row in order if starts[row] >= base.end]
            if idle:
                yield cells, torch.tensor(sorted(idle)), None
            together: list[int] = []
            wasted = 0
            for row in (row for row in order if starts[row] < base.end):
                waste = starts[row] - starts[together[0]] if together else 0
                # A few tokens too many cost less than another, smaller batch.
                if together and (wasted + waste) * len(cells) > max(
                    64, len(together) * (base.end - starts[together[0]]) / 8
                ):
                    yield cells, torch.tensor(sorted(together)), starts[together[0]]
                    together, wasted, waste = [], 0, 0
                together.append(row)
                wasted += waste
            if together:
                yield cells, torch.tensor(sorted(together)), min(starts[row] for row in together)

    def chunks(
        self, base: Base, cells: list[int], prompts: Tensor, start: int, most_rows: int | None = None
    ) -> Iterator[Chunk]:
        """Chunks of as many cells as go together; ``most_rows`` runs at most in each, if given."""
        suffix, many = base.end - start, len(prompts)
        tokens = self.batch_size * base.batch.ids.shape[1]
        packed = self.cut.packed and suffix * 4 <= PACKED_QUERIES
        if packed:
            at_once = min(PACKED_QUERIES // suffix, max(1, tokens // (many * suffix)))
        else:
            at_once = max(1, min(tokens // (many * suffix), 4 * self.batch_size // many))
        if most_rows is not None:
            at_once = min(at_once, max(1, most_rows // many))
        for first in range(0, len(cells), at_once):
            yield Chunk(self.work, base, cells[first : first + at_once], prompts, start, packed)
