"""Cross-entropy of the output layer without the logits of a whole batch.

The logits of a step are its largest tensor by far: rows * positions * words. Here they exist for some hundred positions
at a time. While a chunk is at hand its loss is known to be a weighted sum, so its gradient is computed there and then,
in place: softmax minus one at the target, times the weight. Nothing is kept for the backward pass and nothing is
computed twice; what goes through memory is a fraction of what ``linear`` and ``cross_entropy`` move.

Letters in names of tensors: N positions, D width, V words.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor

_CHUNK_ELEMENTS = {"cpu": 1 << 24, "cuda": 1 << 27}
"""Logits that exist at a time, at most."""
_CHUNK_POSITIONS = {"cpu": 256, "cuda": 1 << 14}
"""Positions at a time, at most: on a CPU as few as keep its cores busy, so that their logits stay in the cache."""


def token_loss(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, weights_N: Tensor) -> Tensor:
    """``sum(weights * cross_entropy(hidden @ weight.T, targets))``: a float32 scalar, differentiable in hidden and weight.

    Matrix products run in autocast's dtype where it is on; logits, softmax and the sum over chunks are float32.

    Args:
        hidden_ND: any floating dtype.
        weight_VD: the output layer; a DTensor is gathered.
        targets_N: int64.
        weights_N: float32.
    """
    if isinstance(weight_VD, DTensor):
        weight_VD = weight_VD.full_tensor()
    device = hidden_ND.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VD.dtype
    with torch.autocast(device, enabled=False):
        return _TokenLoss.apply(hidden_ND, weight_VD, targets_N, weights_N, dtype)


def token_losses(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """The cross-entropy of each position, float32 [N], to be measured and not trained on."""
    weight_VD = weight_VD.full_tensor() if isinstance(weight_VD, DTensor) else weight_VD
    chunk = _chunk(hidden_ND.device.type, weight_VD.shape[0])
    with torch.no_grad():
        return torch.cat(
            [
                F.cross_entropy((hidden.to(weight_VD.dtype) @ weight_VD.T).float(), targets, reduction="none")
                for hidden, targets in zip(hidden_ND.split(chunk), targets_N.split(chunk), strict=True)
            ]
        )


def _chunk(device: str, words: int) -> int:
    kind = device if device in _CHUNK_ELEMENTS else "cuda"
    return max(16, min(_CHUNK_POSITIONS[kind], _CHUNK_ELEMENTS[kind] // words))


class _TokenLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, weights_N: Tensor, dtype: torch.dtype
    ) -> Tensor:
        N, V = len(hidden_ND), len(weight_VD)
        differentiated = any(ctx.needs_input_grad[:2])
        matrix_VD = weight_VD.to(dtype)
        grad_ND = torch.empty_like(hidden_ND) if differentiated else None
        grad_VD = torch.zeros(weight_VD.shape, device=weight_VD.device) if differentiated else None
        loss = torch.zeros((), device=hidden_ND.device)
        chunk = min(_chunk(hidden_ND.device.type, V), max(N, 1))
        logits = torch.empty(chunk, V, dtype=dtype, device=hidden_ND.device)
        softmax = torch.empty(chunk, V, device=hidden_ND.device)
        for start in range(0, N, chunk):
            here = slice(start, start + chunk)
            hidden_nD, targets_n1, weights_n1 = hidden_ND[here].to(dtype), targets_N[here, None], weights_N[here, None]
            n = len(hidden_nD)
            logits_nV = torch.mm(hidden_nD, matrix_VD.T, out=logits[:n])
            softmax_nV = torch.softmax(logits_nV.float(), dim=1, out=softmax[:n])
            # A target so unlikely that float32 has no number for it counts as the least one there is: 87 nats.
            likelihood_n1 = softmax_nV.gather(1, targets_n1).clamp_min(torch.finfo(torch.float32).tiny)
            loss -= (likelihood_n1.log() * weights_n1).sum()
            if grad_ND is None or grad_VD is None:
                continue
            softmax_nV.scatter_add_(1, targets_n1, torch.full_like(likelihood_n1, -1.0))
            slopes_nV = softmax_nV.to(dtype)
            # The weights go to the narrow side of both products.
            grad_ND[here] = (slopes_nV @ matrix_VD) * weights_n1
            weighted_nD = (hidden_nD * weights_n1).to(dtype)
            if dtype == torch.float32:
                grad_VD.addmm_(slopes_nV.T, weighted_nD)
            else:
                grad_VD += slopes_nV.T @ weighted_nD
        if grad_ND is not None and grad_VD is not None:
            ctx.save_for_backward(grad_ND, grad_VD.to(weight_VD.dtype))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_ND, grad_VD = ctx.saved_tensors
        return grad_ND.mul_(grad), grad_VD.mul_(grad), None, None, None
