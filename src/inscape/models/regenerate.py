"""Sweeps that generate: every cell's run goes on into a continuation, from a cache that is right in every layer.

Below the layer where a run enters, its keys and values are the base run's; above it, those of the tokens before its suffix
are, and its own follow. transformers' own ``generate`` goes on from there: its first forward pass, over the prompt's last
token, is handed what the run ended with; later ones are plain.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inscape.errors import InputError
from inscape.models.chunk import Base, Chunk
from inscape.models.edit import edit_taps
from inscape.models.generate import generate_ids, generation_config, refuse_nan, up_to_end
from inscape.models.hits import Hits
from inscape.models.hooks import Scope, Tap, attached
from inscape.models.naive import Naive
from inscape.models.sites import TapPoint
from inscape.models.suffix import Suffixes
from inscape.models.sweep import Placed
from inscape.models.tokens import Batch

if TYPE_CHECKING:
    from inscape.models.lm import LM

GeneratedIds = tuple[int, int, list[int]]
"""Sequence, cell (-1: the base run), new token ids."""


@dataclass(frozen=True)
class Generated:
    """Continuations instead of numbers: ``lm.rerun(prompts, grid, Generated(8))``.

    Attributes:
        max_new_tokens: at most so many, up to EOS and without it.
        ids: give tuples of token ids, not text.
        options: fields of transformers' ``GenerationConfig``, as in :meth:`LM.generate_ids`.
    """

    max_new_tokens: int = 16
    ids: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


def generated_in_full(path: Naive, batch: Batch, wanted: Generated) -> Iterator[GeneratedIds]:
    """Every cell by a generation of its own."""
    lm, sweep = path.lm, path.sweep
    wholes = [one.whole for one in sweep.sequences]
    here = [wholes[i] for i in batch.index]
    for cell, placed in enumerate([[], *sweep.cells], start=-1):
        both = [*sweep.base, *placed]
        taps = edit_taps([p.edit for p in both], lm.sites, wholes, None, placed=[p.at for p in both])

        def for_all(part: Batch, taps: Callable[[Batch], list[Tap]] = taps) -> list[Tap]:
            index = tuple(batch.index[i] for i in part.index)
            edits = taps(Batch(index, part.ids, part.mask, part.shift, part.padded))
            return [*edits, Tap(lm.sites.tap("logits", None), refuse_nan(index))]  # (which knows the sweep's prompts)

        found = generate_ids(
            lm.model, here, for_all, max_new_tokens=wanted.max_new_tokens, batch_size=len(here), pad_id=lm.pad_id,
            options=dict(wanted.options),
        )  # fmt: skip
        yield from ((i, cell, ids) for i, ids in zip(batch.index, found, strict=True))


def generated_from_cut(path: Suffixes, batch: Batch, wanted: Generated) -> Iterator[GeneratedIds]:
    """The base run's continuations, then those of all cells, a chunk of runs at a time."""
    n = path.n_layers
    base = path.base(batch)
    rows = torch.arange(len(batch.index))
    own = _continued(path, base, wanted, base.keys_values, base.stream[n][:, -1], rows, [-1])
    plain = dict(zip(batch.index, own, strict=True))
    yield from ((i, -1, ids) for i, ids in plain.items())
    for cells, prompts, start in path.groups(base):
        sequences = [batch.index[row] for row in prompts.tolist()]
        # A cell that changes nothing in the prompt may yet change what is generated.
        idle = [c for c in cells if start is None and not any(p.edit.when != "prompt" for p in path.sweep.cells[c])]
        yield from ((i, cell, plain[i]) for cell in idle for i in sequences)
        if start is None:
            late = [cell for cell in cells if cell not in idle]
            for cell in late:
                pairs = {
                    layer: (k[prompts.to(k.device)], v[prompts.to(v.device)])
                    for layer, (k, v) in base.keys_values.items()
                }
                last = base.stream[n][prompts.to(base.stream[n].device), -1]
                found = _continued(path, base, wanted, pairs, last, prompts, [cell])
                yield from ((i, cell, ids) for i, ids in zip(sequences, found, strict=True))
            continue
        for chunk in path.chunks(base, cells, prompts, start, most_rows=path.batch_size):
            final, kept = chunk.run(keep=True)
            assert kept is not None
            last = _last_tokens(chunk, final, base)
            found = _continued(
                path, base, wanted, chunk.keys_values(kept), last, prompts.repeat(len(chunk.cells)), chunk.cells
            )
            keys = [(i, cell) for cell in chunk.cells for i in sequences]
            yield from ((i, cell, ids) for (i, cell), ids in zip(keys, found, strict=True))


def _last_tokens(chunk: Chunk, final: Tensor, base: Base) -> Tensor:
    many = len(chunk.prompts)
    cell = torch.arange(len(chunk.cells)).repeat_interleave(many)
    prompt = torch.arange(many).repeat(len(chunk.cells))
    return chunk.at(final, base.stream[chunk.work.lm.n_layers], cell, prompt, torch.full_like(cell, base.end - 1))


def _continued(
    path: Suffixes, base: Base, wanted: Generated, keys_values: dict[int, tuple[Tensor, Tensor]], last_RD: Tensor,
    rows: Tensor, cells: Sequence[int],
) -> list[list[int]]:  # fmt: skip
    """New ids of runs: ``rows`` (of the batch) for each of ``cells``, cell by cell."""
    lm, batch, here = path.lm, base.batch, rows.to(base.batch.ids.device)
    index = [batch.index[row] for row in rows.tolist()]
    config, ends = generation_config(lm.model, wanted.max_new_tokens, lm.pad_id, True, wanted.options)
    taps = _decode_taps(path, cells, index)
    point = TapPoint("logits", None, lm.model, "output")
    with attached(lm.model, [*taps, Tap(point, refuse_nan(index))], rows=len(index), width=1, cached=True) as scope:
        output = path.cut.blocks.generate(
            keys_values, last_RD, input_ids=batch.ids[here], attention_mask=batch.mask[here], generation_config=config
        )
    decoded = (scope.forwards - 1) * len(index) * path.n_layers
    path.work.ran += decoded
    path.naive += decoded if cells[0] >= 0 else 0
    return [up_to_end(ids, ends) for ids in output[:, batch.ids.shape[1] :].tolist()]


def _decode_taps(path: Suffixes, cells: Sequence[int], index: Sequence[int]) -> list[Tap]:
    """Edits that act on every token fed back, from the second forward pass on."""
    many = len(index) // len(cells)
    grouped: dict[tuple[int, str, int | None], list[Hits]] = {}
    for nth, cell in enumerate(cells):
        rows = torch.arange(nth * many, (nth + 1) * many)
        zeros = torch.zeros_like(rows)
        both: list[Placed] = [*path.sweep.base, *(path.sweep.cells[cell] if cell >= 0 else [])]
        for turn, placed in enumerate(both):
            if placed.edit.when != "prompt":
                hits = Hits(placed, turn, rows, zeros, torch.tensor(index)[rows], zeros)
                grouped.setdefault((turn, placed.edit.site, placed.edit.layer), []).append(hits)

    def tap(site: str, layer: int | None, hits: list[Hits]) -> Tap:
        def function(value: Tensor, scope: Scope) -> Tensor | None:
            return path.work.applied(value, hits) if scope.forwards > 1 else None

        return Tap(path.lm.sites.tap(site, layer), function)

    return [tap(site, layer, hits) for (_, site, layer), hits in sorted(grouped.items(), key=lambda item: item[0][0])]


def refuse_options(lm: "LM", wanted: Generated) -> None:
    """Options by which transformers would read the prompt, or keep its cache, in another way than a sweep does."""
    if not wanted.ids and lm.tokenizer is None:
        raise InputError(
            "rerun: text was asked for, but the model was loaded without a tokenizer (Generated(ids=True))"
        )
    for name in ("num_beams", "cache_implementation", "prefill_chunk_size", "prompt_lookup_num_tokens"):
        if wanted.options.get(name) not in (None, 1):
            raise InputError(f"rerun: {name}={wanted.options[name]!r} is not taken while a sweep generates")


def refuse_logits(lm: "LM", edits: Sequence[Sequence[Placed]]) -> None:
    """Edits of logits don't reach what is generated."""
    if any(placed.edit.site == "logits" for cell in edits for placed in cell):
        raise InputError(
            "rerun: edits of 'logits' are not taken while generating (use a LogitsProcessor of transformers)"
        )
