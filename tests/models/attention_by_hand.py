"""Attention from captured queries, keys and values, written out in loops over tokens: the oracle for ``q``, ``k``, ``v``."""

import math
from typing import Any

import torch
from tiny_models import CASES, Recipe
from torch import Tensor

from inscape.models.lm import LM


def attention(
    name: str, lm: LM, layer: int, q_TND: Tensor, k_TKD: Tensor, v_TKD: Tensor, *, eager: bool
) -> tuple[Tensor, Tensor]:
    """``(weights [head, to, from], z [to, head, head_dim])`` of one prompt, float64."""
    recipe = CASES[name].recipe
    block = lm.sites.blocks[layer]
    q, k, v = q_TND.double(), k_TKD.double(), v_TKD.double()
    if recipe.clip is not None:
        q, k, v = (x.clamp(-recipe.clip, recipe.clip) for x in (q, k, v))
    if recipe.norm is not None:
        q = _normed(q, block.get_submodule(recipe.norm[0]), recipe.norm_over)
        k = _normed(k, block.get_submodule(recipe.norm[1]), recipe.norm_over)
    if recipe.rotary:
        q, k = (_rotated(x, recipe, layer) for x in (q, k))
    tokens, heads, width = q.shape
    per_group = heads // k.shape[1]
    scale = recipe.scale if recipe.scale is not None else 1 / math.sqrt(width)
    weights = torch.zeros(heads, tokens, tokens, dtype=torch.float64)
    z = torch.zeros(tokens, heads, width, dtype=torch.float64)
    window = recipe.window(layer)
    for head in range(heads):
        group = head // per_group
        slope = 2.0 ** (-8 * (head + 1) / heads)
        for to in range(tokens):
            first = 0 if window is None else max(0, to - window + 1)
            logits = []
            for origin in range(first, to + 1):
                logit = float(q[to, head] @ k[origin, group]) * scale
                if recipe.softcap is not None:
                    logit = recipe.softcap * math.tanh(logit / recipe.softcap)
                if recipe.alibi is not None:
                    bias = slope * (origin - to)
                    # Falcon adds the bias before it scales; transformers' eager kernel for it does so once in the mask
                    # and once again beside it.
                    logit += bias * scale * (2 if eager else 1) if recipe.alibi == "falcon" else bias
                logits.append(logit)
            p = torch.softmax(torch.tensor(logits, dtype=torch.float64), 0)
            weights[head, to, first : to + 1] = p
            z[to, head] = sum(p[n] * v[first + n, group] for n in range(len(p)))
    return weights, z


def _normed(x_THD: Tensor, norm: Any, over: str) -> Tensor:
    if over == "all":
        return _norm(x_THD.flatten(1), norm).view_as(x_THD)
    if over == "list":
        return torch.stack([_norm(x_THD[:, h], norm.norms[h]) for h in range(x_THD.shape[1])], 1)
    return _norm(x_THD, norm)


def _norm(x: Tensor, norm: Any) -> Tensor:
    weight = norm.weight.detach().double()
    if isinstance(norm, torch.nn.LayerNorm):
        bias = 0 if norm.bias is None else norm.bias.detach().double()
        centred = x - x.mean(-1, keepdim=True)
        return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + norm.eps) * weight + bias
    eps = getattr(norm, "variance_epsilon", None) or norm.eps
    # Gemma's norms store their distance from one.
    weight = 1 + weight if "Gemma" in type(norm).__name__ else weight
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def _rotated(x_THD: Tensor, recipe: Recipe, layer: int) -> Tensor:
    """Each pair of features turned by an angle that grows with the token's position."""
    width = int(x_THD.shape[-1] * recipe.rotary)
    out = x_THD.clone()
    for t in range(x_THD.shape[0]):
        for n in range(width // 2):
            angle = t * recipe.theta(layer) ** (-2 * n / width)
            a, b = (2 * n, 2 * n + 1) if recipe.interleaved else (n, n + width // 2)
            cos, sin = math.cos(angle), math.sin(angle)
            out[t, :, a] = x_THD[t, :, a] * cos - x_THD[t, :, b] * sin
            out[t, :, b] = x_THD[t, :, b] * cos + x_THD[t, :, a] * sin
    return out
