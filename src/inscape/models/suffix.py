"""Sweeps cut to what their edits can change: the blocks above an edit, on the tokens from the edited one on.

For a batch of prompts one *base run* keeps the key/value cache of every layer and the residual stream at the layers where
runs will enter. A run then *enters* at the first layer that one of its edits touches, with the base run's stream at its
tokens from the first edited column up to the last one whose logits are read (its *suffix*); keys and values of the tokens
before come from the base run. Runs are batched in *chunks*: the runs of some cells on some prompts. A chunk grows as it
climbs: runs whose edits lie deeper join where they enter, so that every block's weights are read once for all of them.

Two layouts of a chunk, chosen by the length of the suffix::

    apart     a row for each run; prefix keys and values are copied into each row (cheap beside a long suffix)
    packed    a row for each prompt, its runs side by side as one sequence; a run's queries see the prompt's prefix and
              the run's own tokens. With a suffix of one token, copying 63 tokens' keys and values would cost more than
              the token's own matrix products.

Both run the model's own blocks with arguments gathered from the model's own (:mod:`inscape.models.blocks`). A model whose
attention counts its own columns (GPT-Neo's causal buffer, MPT's bias) can't be packed, and runs apart. What holds on the
model at hand is not looked up but proven, on a few tokens, before the first sweep (:func:`proven_cut`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache

from inscape.errors import InputError
from inscape.models.blocks import Arguments, Blocks, Call, NotedCache, Part, Role, find_blocks_form, find_roles
from inscape.models.discovery import probe_ids
from inscape.models.edit import EditError, hit_vectors, rule
from inscape.models.forward import run_batch
from inscape.models.grid import Grid, written_out
from inscape.models.hooks import Scope, Tap, attached
from inscape.models.metrics import Asked
from inscape.models.naive import Naive
from inscape.models.sites import first_tensor
from inscape.models.sweep import LogitRows, Placed, Sweep, made_ready
from inscape.models.tokens import Batch, batches

if TYPE_CHECKING:
    from inscape.models.lm import LM

PACKED_QUERIES = 128
"""Most tokens of a packed row: beyond it, scores of queries with other runs' keys, all masked, would begin to cost."""


@dataclass(frozen=True, eq=False)
class Cut:
    """How the forward pass of a model is cut: its blocks, their arguments' axes, and whether runs can be packed."""

    blocks: Blocks
    roles: list[list[tuple[Role, ...]]]
    packed: bool


@dataclass(frozen=True, eq=False)
class Hits:
    """Where one edit acts in a chunk: rows and tokens of the chunk, and for each the sequence and which vector.

    ``turn``: its place among the edits of its run; edits of different runs with one turn are made together.
    """

    placed: Placed
    turn: int
    rows: Tensor
    tokens: Tensor
    sequence: Tensor
    nth: Tensor


@dataclass(frozen=True, eq=False)
class Base:
    """The base run of a batch.

    ``stream[e]`` ``[row, token, d]``: the residual stream that enters block ``e``; the last is what leaves the last block.
    """

    batch: Batch
    calls: list[Call]
    keys_values: dict[int, tuple[Tensor, Tensor]]
    stream: dict[int, Tensor]
    end: int
    """Columns that anybody reads: none after this one is run."""


class Suffixes:
    """Runs a sweep batch by batch. ``share``: tokens × blocks run so far, over those of the naive sweep."""

    def __init__(self, lm: "LM", sweep: Sweep, cut: Cut, batch_size: int) -> None:
        self.lm, self.sweep, self.cut, self.batch_size = lm, sweep, cut, batch_size
        self.n_layers = lm.n_layers
        self.ran = self.naive = 0
        base_pre = {p.edit.layer for p in sweep.base if p.edit.site == "resid_pre"}

        def entry(placed: Placed) -> int:
            """The stream in which an edit is the first thing to be different."""
            edit = placed.edit
            if edit.site in ("embed", "logits"):
                return 0 if edit.site == "embed" else self.n_layers
            assert edit.layer is not None
            layer = edit.layer % self.n_layers
            # (An edit of the base run at the next block's input comes after it.)
            return layer + 1 if edit.site == "resid_post" and layer + 1 not in base_pre else layer

        self.entries = [min((entry(p) for p in cell), default=self.n_layers) for cell in sweep.cells]
        self.columns_of: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def share(self) -> float:
        return self.ran / max(self.naive, 1)

    # -- a batch ---------------------------------------------------------------------------------------------------

    def logits(self, batch: Batch) -> Iterator[LogitRows]:
        """The base run's logits, then those of all cells, in pieces."""
        base = self._base(batch)
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
        for cells, prompts, start in self._groups(base):
            reads = torch.isin(rows, prompts)
            if start is None:
                picked = [(reads.nonzero()[:, 0], cell) for cell in cells]
                for at, cell in picked:
                    yield self._with_logit_edits(logits_NV[at], sequence[at], torch.full_like(at, cell), nths[at])
                continue
            row_of = torch.full((len(batch.index),), -1, dtype=torch.int64)
            row_of[prompts] = torch.arange(len(prompts))
            for chunk in self._chunks(base, cells, prompts, start):
                final = chunk.run()
                at = reads.nonzero()[:, 0].repeat(len(chunk.cells))
                cell = torch.tensor(chunk.cells).repeat_interleave(int(reads.sum()))
                nth_cell = torch.arange(len(chunk.cells)).repeat_interleave(int(reads.sum()))
                hidden = chunk.at(final, base.stream[self.n_layers], nth_cell, row_of[rows[at]], columns[at])
                for piece, logits in self._head(hidden):
                    where = at[piece]
                    yield self._with_logit_edits(logits, sequence[where], cell[piece], nths[where])

    def _device(self, base: Base) -> torch.device:
        return base.stream[self.n_layers].device

    def _base(self, batch: Batch) -> Base:
        """One forward pass without the head, and one dry pass for the arguments of the blocks."""
        n, stream = self.n_layers, {}
        needed = sorted({entry for entry in self.entries if entry < n})

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
        self.ran += rows * width * n
        self.naive += lengths * n * len(self.sweep.cells)
        kept = {layer: (k.contiguous(), v.contiguous()) for layer, (k, v) in cache.kept.items()}
        return Base(batch, calls, kept, stream, max(ends))

    def _base_tap(self, placed: Placed, batch: Batch) -> Tap:
        here = Hits(placed, 0, *self.hits(placed, batch, torch.arange(len(batch.index))))
        return Tap(
            self.lm.sites.tap(placed.edit.site, placed.edit.layer), lambda value, scope: self.applied(value, [here])
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
                    logits_NV = self.applied(logits_NV[:, None], [here])[:, 0]
        return logits_NV, sequence, cell, nth

    # -- chunks ----------------------------------------------------------------------------------------------------

    def hits(self, placed: Placed, batch: Batch, prompts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``(which of the prompts, column, sequence, nth)`` of the tokens that an edit writes to."""
        key = id(placed.at)
        if key not in self.columns_of:
            widest = max(map(len, placed.at))
            padded = [[*one, *[(-1, -1)] * (widest - len(one))] for one in placed.at]
            both = torch.tensor(padded, dtype=torch.int64).reshape(len(placed.at), widest, 2)
            self.columns_of[key] = both[..., 0], both[..., 1]
        positions, nths = self.columns_of[key]
        sequence = torch.tensor(batch.index)[prompts]
        here = positions[sequence]
        which, slot = (here >= 0).nonzero(as_tuple=True)
        shift = torch.tensor(batch.shift)[prompts]
        return which, here[which, slot] + shift[which], sequence[which], nths[sequence[which], slot]

    def _starts(self, cell: Sequence[Placed], batch: Batch, end: int) -> tuple[int, ...]:
        """For each row the first column that the cell changes; ``end`` if none that matters."""
        starts = torch.full((len(batch.index),), end, dtype=torch.int64)
        for placed in cell:
            if placed.edit.site != "logits":
                which, columns, _, _ = self.hits(placed, batch, torch.arange(len(batch.index)))
                starts.scatter_reduce_(0, which, columns, "amin")
        return tuple(starts.clamp(max=end).tolist())

    def _groups(self, base: Base) -> Iterator[tuple[list[int], Tensor, int | None]]:
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
            cells.sort(key=lambda number: self.entries[number])
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

    def _chunks(self, base: Base, cells: list[int], prompts: Tensor, start: int) -> Iterator["_Chunk"]:
        suffix, many = base.end - start, len(prompts)
        tokens = self.batch_size * base.batch.ids.shape[1]
        packed = self.cut.packed and suffix * 4 <= PACKED_QUERIES
        if packed:
            at_once = min(PACKED_QUERIES // suffix, max(1, tokens // (many * suffix)))
        else:
            at_once = max(1, min(tokens // (many * suffix), 4 * self.batch_size // many))
        for first in range(0, len(cells), at_once):
            yield _Chunk(self, base, cells[first : first + at_once], prompts, start, packed)

    def applied(self, value: Tensor, hits: Sequence[Hits]) -> Tensor:
        """The value ``[row, token, *feature]`` with edits made; those of one kind and turn (other runs') together."""
        out = value.clone()
        together: dict[tuple[Any, ...], list[Hits]] = {}
        for one in hits:
            edit = one.placed.edit
            basis = id(edit.vector) if edit.kind == "project" else None
            together.setdefault((one.turn, edit.kind, edit.head, basis, edit.vector is None), []).append(one)
        for (_, kind, head, basis, _), group in sorted(together.items(), key=lambda item: item[0][0]):
            rows, tokens = (
                torch.cat(each).to(value.device) for each in zip(*((h.rows, h.tokens) for h in group), strict=True)
            )
            part = out if head is None else out[:, :, self._head_of(head, value)]
            x = part[rows, tokens]
            strengths, vectors, first = [], [], 0
            for one in group:
                edit, many = one.placed.edit, len(one.rows)
                strength = edit.strength
                strengths.append(strength[one.sequence].to(x.device) if isinstance(strength, Tensor) else
                                 torch.full((many,), strength, device=x.device))  # fmt: skip
                found = hit_vectors(edit, x[first : first + many], len(self.sweep.sequences), one.sequence, one.nth)
                vectors.append(found if basis is not None or found is None else found.expand(many, *x.shape[1:]))
                first += many
            vector = vectors[0] if basis is not None or vectors[0] is None else torch.cat(vectors)  # type: ignore[arg-type]
            part[rows, tokens] = rule(kind, x, vector, torch.cat(strengths)).to(value.dtype)
        return out

    def _head_of(self, head: int, value: Tensor) -> int:
        if not -value.shape[2] <= head < value.shape[2]:
            raise InputError(f"edit: no head {head}, there are {value.shape[2]}")
        return head


class _PrefixCache(DynamicCache):
    """Keys and values of the prompts before the suffix, put before what a block makes of the suffix itself."""

    def __init__(self, chunk: "_Chunk") -> None:
        super().__init__()
        self.chunk = chunk

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        keys, values = self.chunk.base.keys_values[layer_idx]
        return self._joined(keys, key_states), self._joined(values, value_states)

    def _joined(self, base: Tensor, own: Tensor) -> Tensor:
        chunk = self.chunk
        if not chunk.all_prompts:
            base = base[chunk.prompts.to(base.device)]
        prefix = base[:, :, : chunk.start]
        if chunk.packed:
            return torch.cat([prefix, own], dim=2)
        rows, heads, tokens, width = own.shape
        joined = own.new_empty(rows, heads, chunk.start + tokens, width)
        joined[:, :, chunk.start :] = own
        joined.view(-1, len(prefix), *joined.shape[1:])[:, :, :, : chunk.start] = prefix
        return joined

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.chunk.start


class _Chunk:
    """Some cells on some prompts of a batch. Row and token of a run: see :meth:`place`."""

    def __init__(
        self, owner: Suffixes, base: Base, cells: list[int], prompts: Tensor, start: int, packed: bool
    ) -> None:
        self.owner, self.base, self.cells, self.prompts, self.start, self.packed = (
            owner, base, cells, prompts, start, packed
        )  # fmt: skip
        self.suffix = base.end - start
        self.all_prompts = len(prompts) == len(base.batch.index)
        many, runs = len(prompts), len(cells)
        own = torch.arange(start, base.end)
        apart = None
        if packed:
            run_of_token = torch.arange(runs).repeat_interleave(self.suffix)
            foreign = run_of_token[:, None] != run_of_token[None]
            apart = torch.cat([torch.zeros((len(foreign), start), dtype=torch.bool), foreign], 1)
            own = own.repeat(runs)
        part = Part(prompts if packed else prompts.repeat(runs), own, torch.cat([torch.arange(start), own]), apart)
        self.rows = many if packed else many * runs
        self.arguments = Arguments(base.calls, owner.cut.roles, part)
        self.entries = [owner.entries[number] for number in cells]
        # By the entry: after the block below, and before the block; and by turn, site and layer inside the blocks.
        self.at_entry: dict[int, tuple[list[Hits], list[Hits]]] = {}
        self.inside: dict[tuple[int, str, int], list[Hits]] = {}
        self._find_edits()

    def place(self, cell: Tensor | int, prompt: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        """Row and token, in this chunk, of a column of the ``prompt``-th prompt under the ``cell``-th cell."""
        if self.packed:
            return prompt, cell * self.suffix + column - self.start
        return cell * len(self.prompts) + prompt, column - self.start

    def _edits_of(self, cell: int) -> Iterator[tuple[int, Placed, bool]]:
        """``(turn, edit, whether it is the base run's)``: the base run's act first, as in a full forward pass."""
        sweep = self.owner.sweep
        both = [*((p, True) for p in sweep.base), *((p, False) for p in sweep.cells[self.cells[cell]])]
        yield from ((turn, placed, from_base) for turn, (placed, from_base) in enumerate(both))

    def _find_edits(self) -> None:
        n = self.owner.n_layers
        found: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]] = {}
        for nth_cell, entry in enumerate(self.entries):
            for turn, placed, from_base in self._edits_of(nth_cell):
                edit = placed.edit
                if edit.site in ("embed", "logits"):
                    continue
                assert edit.layer is not None
                layer = edit.layer % n
                if id(placed.at) not in found:
                    which, columns, sequence, nth = self.owner.hits(placed, self.base.batch, self.prompts)
                    seen = (columns >= self.start) & (columns < self.base.end)
                    found[id(placed.at)] = which[seen], columns[seen], sequence[seen], nth[seen]
                which, columns, sequence, nth = found[id(placed.at)]
                if not len(which):
                    continue
                rows, tokens = self.place(nth_cell, which, columns)
                here = Hits(placed, turn, rows, tokens, sequence, nth)
                if edit.site in ("resid_pre", "resid_post"):
                    before = edit.site == "resid_pre"
                    at = layer if before else layer + 1
                    # What the base run did where the run enters is in the stream that it enters with.
                    if at > entry or (at == entry and not from_base):
                        self.at_entry.setdefault(at, ([], []))[before].append(here)
                elif layer >= entry:
                    self.inside.setdefault((turn, edit.site, layer), []).append(here)

    # -- run -------------------------------------------------------------------------------------------------------

    def run(self) -> Tensor:
        """The residual stream after the last block, ``[row, token, d]``."""
        owner, n = self.owner, self.owner.n_layers
        taps = []
        for (_, site, layer), hits in sorted(self.inside.items(), key=lambda item: item[0][0]):
            taps.append(Tap(owner.lm.sites.tap(site, layer), self._edit(hits)))
        hidden: Tensor | None = None
        cache = _PrefixCache(self)
        with torch.no_grad(), attached(owner.lm.model, taps, rows=self.rows, width=self.suffix) as scope:
            for entry in range(min(self.entries), n + 1):
                joining = [nth for nth, at in enumerate(self.entries) if at == entry]
                if joining:
                    hidden = self._joined(hidden, joining, entry)
                assert hidden is not None
                for hits in self.at_entry.get(entry, ()):
                    if hits:
                        hidden = owner.applied(hidden, hits)
                if entry == n:
                    break
                rows, tokens = hidden.shape[:2]
                owner.ran += rows * tokens
                scope.rows = rows
                call = self.arguments.of(entry, rows, tokens, self.start + tokens, hidden, cache)
                hidden = first_tensor(owner.cut.blocks.blocks[entry](*call.args, **call.kwargs))
        for tap in taps:
            if tap.fired != 1:
                raise EditError(f"the edit of {tap.point} fired {tap.fired} times in one pass through its block")
        assert hidden is not None
        return hidden

    def _edit(self, hits: list[Hits]) -> Callable[[Tensor, Scope], Tensor]:
        return lambda value, scope: self.owner.applied(value, hits)

    def _joined(self, hidden: Tensor | None, joining: list[int], entry: int) -> Tensor:
        """The stream with the runs of some cells joined to it."""
        stream = self.base.stream[entry]
        if not self.all_prompts:
            stream = stream[self.prompts.to(stream.device)]
        base = stream[:, self.start : self.base.end]
        new = [base] * len(joining)
        if entry == 0 and (embedded := [c for c in joining if self._embeds(c)]):
            found = self._embedded(embedded)
            new = [found[c] if c in found else base for c in joining]
        axis = 1 if self.packed else 0
        return torch.cat([*([] if hidden is None else [hidden]), *(x.to(base.device) for x in new)], axis)

    def _embeds(self, cell: int) -> bool:
        return any(p.edit.site == "embed" for p in self.owner.sweep.cells[self.cells[cell]])

    def _embedded(self, cells: list[int]) -> dict[int, Tensor]:
        """What enters the first block after edits of the embeddings: the model's forward pass up to there."""
        owner, batch, many = self.owner, self.base.batch, len(self.prompts)
        rows = self.prompts.repeat(len(cells)).tolist()
        at = torch.tensor(rows, device=batch.ids.device)
        here = Batch(
            tuple(batch.index[r] for r in rows), batch.ids[at], batch.mask[at], tuple(batch.shift[r] for r in rows),
            batch.padded,
        )  # fmt: skip
        hits: dict[tuple[int, str], list[Hits]] = {}
        for k, cell in enumerate(cells):
            for turn, placed, from_base in self._edits_of(cell):
                site, layer = placed.edit.site, placed.edit.layer
                if site == "embed" or (from_base and site == "resid_pre" and layer == 0):
                    which, columns, sequence, nth = owner.hits(placed, batch, self.prompts)
                    hits.setdefault((turn, site), []).append(
                        Hits(placed, turn, k * many + which, columns, sequence, nth)
                    )
        edits = [
            Tap(owner.lm.sites.tap(site, None if site == "embed" else 0), self._edit(one))
            for (_, site), one in sorted(hits.items())
        ]
        seen: list[Tensor] = []
        look = Tap(owner.lm.sites.tap("resid_pre", 0), lambda value, scope: seen.append(value.clone()))
        run_batch(owner.lm.model, here, edits, [look])
        parts = seen[0][:, self.start : self.base.end].split(many)
        return dict(zip(cells, parts, strict=True))

    def at(self, final: Tensor, base: Tensor, cell: Tensor, prompt: Tensor, column: Tensor) -> Tensor:
        """The last stream ``[n, d]`` at columns of runs; the base run's where a column comes before the suffix."""
        rows, tokens = self.place(cell, prompt, column.clamp(min=self.start))
        found = final[rows.to(final.device), tokens.to(final.device)]
        before = column < self.start
        if before.any():
            batch_row = self.prompts[prompt[before]]
            found[before.to(found.device)] = base[batch_row.to(base.device), column[before].to(base.device)].to(found)
        return found


# -- proof on the model at hand --------------------------------------------------------------------------------------------


def proven_cut(lm: "LM") -> Cut | str:
    """How this model is cut, shown on a few tokens to give what full forward passes give; or why it can't be.

    Six runs on two prompts of unlike length: an edit of the stream at the first, the middle and the last layer, at an
    early token and at the last, all packed together; then apart. Off by more than rounding: not taken.
    """
    try:
        blocks = find_blocks_form(lm.model, lm.sites.blocks, lm.vocab, lm.device)
        roles = find_roles(blocks, lm.vocab, lm.device)
        reason = ""
        for packed in (True, False):
            if (found := _off(lm, Cut(blocks, roles, packed))) is None:
                return Cut(blocks, roles, packed)
            reason = found
        return reason
    # (A model that can't be driven block by block may fail in any way; it is run in full, and the reason is told.)
    except (
        RuntimeError,
        TypeError,
        ValueError,
        LookupError,
        AttributeError,
        NotImplementedError,
        AssertionError,
    ) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _off(lm: "LM", cut: Cut) -> str | None:
    ids = probe_ids(lm.vocab, lm.device, rows=2, tokens=7).tolist()
    prompts = [ids[0], ids[1][:5]]
    ramp = torch.linspace(-1, 1, lm.d_model)
    layers = sorted({0, lm.n_layers // 2, lm.n_layers - 1})
    vectors = {
        layer: 3 * lm.capture(prompts, "resid_pre", layer, dtype=torch.float32).at().std() * ramp.roll(layer)
        for layer in layers
    }
    grid = Grid("resid_pre", layers, {"early": [1, 1], "last": "last"}, vector=vectors, strengths=(1.0, -2.0))
    encoded = lm.encode(prompts)
    written = written_out(lm, grid, prompts, None, None, None, 2)
    asked = [Asked(i, one, one, (len(one.ids) - 1,)) for i, one in enumerate(encoded)]
    sweep = made_ready(lm, asked, written, (), encoded, None, None)
    batch = next(batches(encoded, batch_size=2, pad_id=lm.pad_id, device=lm.device))
    try:
        found, expected = (_gathered(path, batch) for path in (Suffixes(lm, sweep, cut, 2), Naive(lm, sweep)))
    except (RuntimeError, IndexError, ValueError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    off = (found - expected).abs().max().item() / expected.abs().max().item()
    room = max(1e-4, 16 * torch.finfo(lm.dtype).eps)
    return None if off <= room else f"cut at a block, its logits are off by {off:.2g} of the largest (room: {room:.2g})"


def _gathered(path: "Suffixes | Naive", batch: Batch) -> Tensor:
    """``[cell, sequence, vocab]``"""
    rows = {}
    for logits, sequence, cell, _ in path.logits(batch):
        rows |= {
            key: row for key, row in zip(zip(cell.tolist(), sequence.tolist(), strict=True), logits.cpu(), strict=True)
        }
    return torch.stack([rows[key] for key in sorted(rows)])
