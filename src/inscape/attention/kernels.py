"""Position kernels: what the model itself does with positions between projections and logits.

Both kernels are read from the arguments that the model hands to its first block in a dry pass (no weights run), so that
scaled frequencies (Llama 3, YaRN), partial rotation and slopes for odd numbers of heads are the model's own.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inscape.errors import InputError
from inscape.models import LM
from inscape.models.blocks import find_blocks_form
from inscape.models.tokens import Batch


def block_arguments(lm: LM, tokens: int) -> dict[str, Any]:
    """The named arguments of the first block in a pass over ``tokens`` tokens."""
    ids = torch.zeros((1, tokens), dtype=torch.int64, device=lm.device)
    batch = Batch((0,), ids, torch.ones_like(ids), (0,), False)
    blocks = find_blocks_form(lm.model, lm.sites.blocks, lm.vocab, lm.device)
    return blocks.dry(batch)[0].kwargs


@dataclass(frozen=True)
class Rotation:
    """Rotary embedding. ``cos``, ``sin``: [position, r] for the r features that turn, scaled as the model scales them.

    Source: Su et al. 2021, RoFormer, eq. 34; partial rotation as in GPT-NeoX, interleaved pairs as in GPT-J.
    """

    cos: Tensor
    sin: Tensor
    interleaved: bool

    def at_positions(self, x_THD: Tensor) -> Tensor:
        """Token t's heads turned to position t, as the model does it."""
        tokens = x_THD.shape[0]
        return self._turned(x_THD, self.cos[:tokens, None], self.sin[:tokens, None])

    def key_back(self, k_XD: Tensor, distance: int | Tensor) -> Tensor:
        """Keys such that ``q · key_back(k, Δ)`` is what a query meets that comes Δ tokens after the key.

        ``distance``: one for all keys, or one for each.

        The model turns both sides: (R_i q) · (R_j k) = q · (R_{j-i} k); a factor on its cosines (YaRN) comes in twice.
        """
        scaling = self.cos[0]  # (the cosine of zero, times that factor)
        return self._turned(k_XD, self.cos[distance] * scaling, -self.sin[distance] * scaling)

    def _turned(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        width = cos.shape[-1]
        part, rest = x[..., :width], x[..., width:]
        if self.interleaved:
            half = torch.stack((-part[..., 1::2], part[..., ::2]), -1).flatten(-2)
        else:
            half = torch.cat((-part[..., width // 2 :], part[..., : width // 2]), -1)
        return torch.cat((part * cos + half * sin, rest), -1)


def rotation(lm: LM, attention: Any, tokens: int, interleaved: bool, dtype: torch.dtype) -> Rotation:
    """The model's rotation for positions 0 … tokens - 1. InputError where it would depend on the prompt's length."""
    parameters = getattr(lm.config, "rope_parameters", None) or {}
    kind = parameters.get("rope_type", "default")
    original = parameters.get("original_max_position_embeddings") or lm.context
    if kind in ("dynamic", "longrope") and original is not None and tokens > original:
        raise InputError(
            f"first_layer: {tokens} positions asked for, but beyond {original} this model's rotary angles ({kind}) depend "
            "on the length of the prompt"
        )
    if interleaved:  # GPT-J keeps a table of its own: sines, then cosines
        table = attention.embed_positions[:tokens].to(lm.device, dtype)
        sin, cos = (half.repeat_interleave(2, -1) for half in table.chunk(2, -1))
    else:
        cos, sin = (x[0].to(lm.device, dtype) for x in block_arguments(lm, tokens)["position_embeddings"])
    return Rotation(cos, sin, interleaved)


def alibi(lm: LM, tokens: int, heads: int, dtype: torch.dtype) -> Tensor:
    """ALiBi biases ``[head, key position]`` for a prompt of that many tokens, as the model hands them to a block.

    Source: Press et al. 2022, Train Short, Test Long; up to a constant per row, which the softmax does not see.
    """
    given = block_arguments(lm, tokens)
    bias = given["position_bias"] if "position_bias" in given else given["alibi"]
    # (MPT makes the bias for its longest prompt and uses the end of it.)
    return bias.reshape(heads, -1)[:, -tokens:].to(lm.device, dtype)
