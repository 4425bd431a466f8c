"""A chunk of a sweep: the runs of some cells on some prompts of a batch, from where they enter up to the last block.

A run enters at the first layer that one of its edits touches, with the base run's residual stream at its *suffix*: the
tokens from the first edited column up to the last one that is read. A chunk grows as it climbs: runs whose edits lie deeper
join where they enter, so every block's weights are read once for all of them. Keys and values of the tokens before the
suffix come from the base run. Two layouts, chosen by the length of the suffix::

    apart     a row for each run; prefix keys and values are copied into each row (cheap beside a long suffix)
    packed    a row for each prompt, its runs side by side as one sequence; a run's queries see the prompt's prefix and
              the run's own tokens. With a suffix of one token, copying 63 tokens' keys and values would cost more than
              the token's own matrix products.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache

from inscape.models.blocks import Arguments, Blocks, Call, Part, Role
from inscape.models.edit import EditError
from inscape.models.forward import run_batch
from inscape.models.hits import Hits, Places, applied
from inscape.models.hooks import Scope, Tap, attached
from inscape.models.sites import first_tensor
from inscape.models.sweep import Placed, Sweep
from inscape.models.tokens import Batch

if TYPE_CHECKING:
    from inscape.models.lm import LM


@dataclass(frozen=True, eq=False)
class Cut:
    """How the forward pass of a model is cut: its blocks, their arguments' axes, and whether runs can be packed."""

    blocks: Blocks
    roles: list[list[tuple[Role, ...]]]
    packed: bool


@dataclass(eq=False)
class Work:
    """What the chunks of a sweep share: ``entries[c]`` is where cell ``c`` enters; ``ran`` counts tokens × blocks."""

    lm: "LM"
    sweep: Sweep
    cut: Cut
    entries: list[int]
    places: Places
    ran: int = 0

    def applied(self, value: Tensor, hits: Sequence[Hits]) -> Tensor:
        return applied(value, hits, len(self.sweep.sequences))


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


class PrefixCache(DynamicCache):
    """Keys and values of the prompts before the suffix, put before what a block makes of the suffix itself."""

    def __init__(self, chunk: "Chunk", keep: bool) -> None:
        super().__init__()
        self.chunk = chunk
        self.kept: dict[int, tuple[Tensor, Tensor]] | None = {} if keep else None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if self.kept is not None:
            self.kept[layer_idx] = key_states, value_states
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


class Chunk:
    """Some cells on some prompts of a batch. Row and token of a run: see :meth:`place`."""

    def __init__(self, work: Work, base: Base, cells: list[int], prompts: Tensor, start: int, packed: bool) -> None:
        self.work, self.base, self.cells, self.prompts, self.start, self.packed = (
            work, base, cells, prompts, start, packed
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
        self.arguments = Arguments(base.calls, work.cut.roles, part)
        self.entries = [work.entries[number] for number in cells]
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
        sweep = self.work.sweep
        both = [*((p, True) for p in sweep.base), *((p, False) for p in sweep.cells[self.cells[cell]])]
        yield from ((turn, placed, from_base) for turn, (placed, from_base) in enumerate(both))

    def _find_edits(self) -> None:
        n = self.work.lm.n_layers
        found: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]] = {}
        for nth_cell, entry in enumerate(self.entries):
            for turn, placed, from_base in self._edits_of(nth_cell):
                edit = placed.edit
                if edit.site in ("embed", "logits"):
                    continue
                assert edit.layer is not None
                layer = edit.layer % n
                if id(placed.at) not in found:
                    which, columns, sequence, nth = self.work.places.of(placed, self.base.batch, self.prompts)
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

    def run(self, keep: bool = False) -> tuple[Tensor, dict[int, tuple[Tensor, Tensor]] | None]:
        """The residual stream after the last block, ``[row, token, d]``; and the suffixes' keys and values if to be kept."""
        work, n = self.work, self.work.lm.n_layers
        taps = []
        for (_, site, layer), hits in sorted(self.inside.items(), key=lambda item: item[0][0]):
            taps.append(Tap(work.lm.sites.tap(site, layer), self._edit(hits)))
        hidden: Tensor | None = None
        cache = PrefixCache(self, keep)
        with torch.no_grad(), attached(work.lm.model, taps, rows=self.rows, width=self.suffix) as scope:
            for entry in range(min(self.entries), n + 1):
                joining = [nth for nth, at in enumerate(self.entries) if at == entry]
                if joining:
                    hidden = self._joined(hidden, joining, entry)
                assert hidden is not None
                for hits in self.at_entry.get(entry, ()):
                    if hits:
                        hidden = work.applied(hidden, hits)
                if entry == n:
                    break
                rows, tokens = hidden.shape[:2]
                work.ran += rows * tokens
                scope.rows = rows
                call = self.arguments.of(entry, rows, tokens, self.start + tokens, hidden, cache)
                hidden = first_tensor(work.cut.blocks.blocks[entry](*call.args, **call.kwargs))
        for tap in taps:
            if tap.fired != 1:
                raise EditError(f"the edit of {tap.point} fired {tap.fired} times in one pass through its block")
        assert hidden is not None
        return hidden, cache.kept

    def keys_values(self, kept: dict[int, tuple[Tensor, Tensor]]) -> dict[int, tuple[Tensor, Tensor]]:
        """Of all tokens, right in every layer, ``[run, head, token, head_dim]`` by layer; runs cell by cell."""
        runs = len(self.cells)

        def whole(base: Tensor, own: Tensor | None) -> Tensor:
            rows = base if self.all_prompts else base[self.prompts.to(base.device)]
            out = rows.repeat(runs, 1, 1, 1)
            if own is None:  # no run had entered yet
                return out
            if self.packed:  # [prompt, head, run × suffix, head_dim]
                own = own.unflatten(2, (-1, self.suffix)).movedim(2, 0).flatten(0, 1)
            out[: len(own), :, self.start : self.base.end] = own
            return out

        result = {}
        for layer, pair in self.base.keys_values.items():
            own = kept.get(layer, (None, None))
            result[layer] = whole(pair[0], own[0]), whole(pair[1], own[1])
        return result

    def _edit(self, hits: list[Hits]) -> Callable[[Tensor, Scope], Tensor]:
        return lambda value, scope: self.work.applied(value, hits)

    def _joined(self, hidden: Tensor | None, joining: list[int], entry: int) -> Tensor:
        """The stream with the runs of some cells joined to it."""
        stream = self.base.stream[entry]
        if not self.all_prompts:
            stream = stream[self.prompts.to(stream.device)]
        base = stream[:, self.start : self.base.end]
        new = [base] * len(joining)
        if entry == 0 and (embedded := [c for c in joining if self._embeds(c)]):
            found = self._embedded(embedded)
            new = [found.get(c, base) for c in joining]
        axis = 1 if self.packed else 0
        return torch.cat([*([] if hidden is None else [hidden]), *(x.to(base.device) for x in new)], axis)

    def _embeds(self, cell: int) -> bool:
        return any(p.edit.site == "embed" for p in self.work.sweep.cells[self.cells[cell]])

    def _embedded(self, cells: list[int]) -> dict[int, Tensor]:
        """What enters the first block after edits of the embeddings: the model's forward pass up to there."""
        work, batch, many = self.work, self.base.batch, len(self.prompts)
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
                first = layer is not None and layer % work.lm.n_layers == 0
                if site == "embed" or (from_base and site == "resid_pre" and first):
                    which, columns, sequence, nth = work.places.of(placed, batch, self.prompts)
                    hits.setdefault((turn, site), []).append(
                        Hits(placed, turn, k * many + which, columns, sequence, nth)
                    )
        edits = [
            Tap(work.lm.sites.tap(site, None if site == "embed" else 0), self._edit(one))
            for (_, site), one in sorted(hits.items())
        ]
        seen: list[Tensor] = []
        look = Tap(work.lm.sites.tap("resid_pre", 0), lambda value, scope: seen.append(value.clone()))
        run_batch(work.lm.model, here, edits, [look])
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
