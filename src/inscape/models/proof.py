"""Whether a model can be cut is not looked up but proven, on a few tokens of the model at hand, before its first sweep."""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inscape.models.blocks import find_blocks_form, find_roles
from inscape.models.chunk import Cut
from inscape.models.discovery import probe_ids
from inscape.models.edit import add
from inscape.models.grid import Grid, written_out
from inscape.models.metrics import Asked
from inscape.models.naive import Naive
from inscape.models.suffix import Suffixes
from inscape.models.sweep import Sweep, made_ready
from inscape.models.tokens import Batch, batches

if TYPE_CHECKING:
    from inscape.models.lm import LM


def proven_cut(lm: "LM") -> Cut | str:
    """How this model is cut, shown on a few tokens to give what full forward passes give; or why it can't be.

    Seven runs on two prompts of unlike length: an edit of the stream at the first, the middle and the last layer, at an
    early token and at the last, and one of the embeddings (which a model may read again higher up); apart, then packed.
    Off by more than rounding: not taken.
    """
    try:
        blocks = find_blocks_form(lm.model, lm.sites.blocks, lm.vocab, lm.device)
        roles = find_roles(blocks, lm.vocab, lm.device)
        sweep, batch = _trial(lm)
        expected = _gathered(Naive(lm, sweep), batch)

        def off(packed: bool) -> tuple[float, float]:
            """From full forward passes: the largest difference, and root mean squares, both relative."""
            wrong = _gathered(Suffixes(lm, sweep, Cut(blocks, roles, packed), 2), batch) - expected
            return (
                (wrong.abs().max() / expected.abs().max()).item(),
                (wrong.square().mean() / expected.square().mean()).sqrt().item(),
            )

        most, usual = off(packed=False)
        room = max(1e-4, 16 * torch.finfo(lm.dtype).eps)
        if not most <= room:
            return f"cut at a block, its logits are off by {most:.2g} of the largest (room: {room:.2g})"
        # Half precision could hide an attention that counts columns by itself (MPT's is off by a hundredth in all): so
        # packing may add no more error than cutting alone does, or than one rounding.
        no_more = max(2 * usual, 1e-5, torch.finfo(lm.dtype).eps)
        try:
            most, packed = off(packed=True)
        except (RuntimeError, IndexError, ValueError):  # (tables made for fewer columns than a packed row has)
            return Cut(blocks, roles, packed=False)
        return Cut(blocks, roles, packed=most <= room and packed <= no_more)
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


def _trial(lm: "LM") -> tuple[Sweep, Batch]:
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
    embedded = lm.capture(prompts, "embed", dtype=torch.float32).at()
    ramp = torch.linspace(-1, 1, embedded.shape[1])
    cell = (add("embed", None, 3 * embedded.std() * ramp, tokens=[1, 1]),)
    exists = torch.ones(len(prompts), len(written.cells) + 1, dtype=torch.bool)
    written = replace(written, cells=[*written.cells, cell], exists=exists)
    asked = [Asked(i, one, one, (len(one.ids) - 1,)) for i, one in enumerate(encoded)]
    sweep = made_ready(lm, asked, written, (), encoded, None, None)
    return sweep, next(batches(encoded, batch_size=2, pad_id=lm.pad_id, device=lm.device))


def _gathered(path: "Suffixes | Naive", batch: Batch) -> Tensor:
    """``[cell, sequence, vocab]``"""
    rows: dict[tuple[int, int], Tensor] = {}
    for logits, sequence, cell, _ in path.logits(batch):
        rows |= {
            key: row for key, row in zip(zip(cell.tolist(), sequence.tolist(), strict=True), logits.cpu(), strict=True)
        }
    return torch.stack([rows[key] for key in sorted(rows)])
