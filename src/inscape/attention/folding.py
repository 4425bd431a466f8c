"""Projections of one head with the norm in front of them folded in.

A LayerNorm is ``(x C / σ) diag(γ) + β`` with ``C = I - 1 1ᵀ / d``; followed by a projection, all of it but the division by σ
is one matrix and one bias::

    q(x) = x W̃ / σ(x) + b̃,     W̃ = C diag(γ) W,     b̃ = β W + b

(Kamoda et al. 2025, Weight-based Analysis of Detokenization in Language Models, section 3; weights are never changed.)
"""

from typing import Any

import torch
from torch import Tensor, nn

from inscape.errors import InputError
from inscape.models import LM


def projection(lm: LM, site: str) -> tuple[Tensor, Tensor | None]:
    """Weight ``[d_model, head, head_dim]``, bias ``[head, head_dim]`` or None, of the first layer's ``q`` or ``k``."""
    point = lm.sites.tap(site, 0)
    module, view = point.module, point.view
    assert view is not None
    weight: Any = module.weight
    if not weight.is_floating_point() or weight.is_meta:
        raise InputError(
            f"first_layer: the weights of the first layer's {site} projection are "
            f"{'offloaded' if weight.is_meta else 'quantised'}; expected floats in memory"
        )
    if isinstance(module, nn.Linear):  # (transformers' Conv1D holds [in, out])
        weight = weight.T
    bias: Any = getattr(module, "bias", None)
    return view.read(weight.detach()), None if bias is None else view.read(bias.detach())


def norm_gain_and_bias(norm: nn.Module | None) -> tuple[Tensor | None, Tensor | None]:
    """γ and β of a norm, None for what it does not have."""
    gain, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    return None if gain is None else gain.detach(), None if bias is None else bias.detach()


def folded_bias(lm: LM, site: str, norm: nn.Module | None, dtype: torch.dtype) -> Tensor | None:
    """b̃ = β W + b, ``[head, head_dim]``; None where there is neither a β nor a bias."""
    weight, bias = projection(lm, site)
    _, beta = norm_gain_and_bias(norm)
    if beta is None:
        return None if bias is None else bias.to(dtype)
    folded = torch.einsum("d,dhk->hk", beta.to(dtype), weight.to(dtype))
    return folded if bias is None else folded + bias.to(dtype)


def folded_weight(lm: LM, site: str, norm: nn.Module | None, head: int, dtype: torch.dtype) -> Tensor:
    """W̃ of one head, ``[d_model, head_dim]``: with γ and centring of a LayerNorm, or as it is where there is no norm."""
    weight = projection(lm, site)[0][:, head].to(dtype)
    if norm is None:
        return weight
    gain, _ = norm_gain_and_bias(norm)
    if gain is not None:
        weight = gain.to(dtype)[:, None] * weight
    return weight - weight.mean(0)
