"""σ(position, token) where positions are added to embeddings: the one thing that couples the two.

The LayerNorm of ``e_v + p_i`` divides by ``σ_iv = sqrt(Var(e_v + p_i) + eps)`` (variance over the channels, biased), and ::

    Var(e_v + p_i) = Var(e_v) + Var(p_i) + 2 Cov(e_v, p_i)

so the whole table follows from weights. It is made in blocks of positions and only its averages are kept; the table itself,
[positions, vocab], never exists. A term of weights alone must say *which* average it divides by (Kamoda et al. 2025)::

    T^ee   mean of σ over positions, for both tokens            T^e   mean of 1/σ over positions
    T^pp   mean, least or largest σ over tokens for the query,  T^p   mean of 1/σ over tokens
           mean of 1/σ over tokens for the key

All are positive factors: no sign ever flips. How far σ really varies is kept beside them: ``over_positions`` (for terms of
tokens), ``over_tokens`` (for terms of positions), ``ratio`` (largest σ by least, over the whole table).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = 1 << 22  # numbers of the table that exist at a time


@dataclass(frozen=True)
class Sigma:
    """Averages of the table; [V] by token, [P] by position. Averages over tokens are under the prior."""

    by_token: Tensor
    """Mean over positions of σ, [V]."""
    inverse_by_token: Tensor
    """Mean over positions of 1/σ, [V]."""
    by_position: dict[str, Tensor]
    """``mean``, ``min``, ``max`` over tokens of σ, each [P]."""
    inverse_by_position: Tensor
    """Mean over tokens of 1/σ, [P]."""
    inverse_band: Tensor
    """2.5 % and 97.5 % quantile over tokens of 1/σ, [2, P]."""
    words_over_sigma: Tensor
    """Mean over tokens of e_v / σ_iv, [P, d]."""
    over_positions: float
    """Largest σ by least over positions, for the token for which it is largest."""
    over_tokens: float
    """Largest σ by least over tokens, for the position for which it is largest."""
    ratio: float


def sigma(words: Tensor, positions: Tensor, eps: float) -> Tensor:
    """σ of ``words [n, d]`` added to ``positions [n, d]``, row by row: [n]."""
    return (words + positions).var(-1, correction=0).add(eps).sqrt()


def sigma_averages(words_VD: Tensor, positions_PD: Tensor, eps: float | None, prior: Tensor) -> Sigma:
    """All averages of the table in one pass. ``eps`` None: there is no norm, and σ is 1 everywhere."""
    vocab, width = words_VD.shape
    total = len(positions_PD)
    new = words_VD.new_empty
    if eps is None:
        one_V, one_P = torch.ones_like(words_VD[:, 0]), torch.ones_like(positions_PD[:, 0])
        mean_word = (prior @ words_VD).expand(total, width)
        each = dict.fromkeys(("mean", "min", "max"), one_P)
        return Sigma(one_V, one_V, each, one_P, one_P.expand(2, total), mean_word, 1.0, 1.0, 1.0)
    summed, inverse_summed = words_VD.new_zeros(vocab), words_VD.new_zeros(vocab)
    least, most = words_VD.new_full((vocab,), torch.inf), words_VD.new_zeros(vocab)
    by_position = {name: new(total) for name in ("mean", "min", "max")}
    inverse, band, weighted = new(total), new(2, total), new(total, width)
    variance_V, variance_P = words_VD.var(-1, correction=0), positions_PD.var(-1, correction=0)
    centred_PD = positions_PD - positions_PD.mean(-1, keepdim=True)
    step = max(1, _BLOCK // vocab)
    for first in range(0, total, step):
        part = slice(first, first + step)
        # (Cov(e, p) = e · (p - mean p) / d: one of the two centred is enough.)
        table_PV = torch.addmm(variance_P[part, None] + eps, centred_PD[part], words_VD.T, alpha=2 / width)
        # (Never below eps but for rounding, where a token's embedding undoes a position's.)
        table_PV = table_PV.add_(variance_V).clamp_(min=eps).sqrt_()
        summed += table_PV.sum(0)
        low, high = table_PV.aminmax(dim=0)
        least, most = torch.minimum(least, low), torch.maximum(most, high)
        by_position["mean"][part] = table_PV @ prior
        by_position["min"][part], by_position["max"][part] = table_PV.aminmax(dim=1)
        table_PV = table_PV.reciprocal_()
        inverse_summed += table_PV.sum(0)
        inverse[part] = table_PV @ prior
        weighted[part] = table_PV.mul(prior) @ words_VD
        band[:, part] = _quantiles(table_PV, prior)
    return Sigma(
        by_token=summed / total,
        inverse_by_token=inverse_summed / total,
        by_position=by_position,
        inverse_by_position=inverse,
        inverse_band=band,
        words_over_sigma=weighted,
        over_positions=float((most / least).max()),
        over_tokens=float((by_position["max"] / by_position["min"]).max()),
        ratio=float(most.max() / least.min()),
    )


def _quantiles(values_PV: Tensor, prior: Tensor) -> Tensor:
    """The least value that is not exceeded for 2.5 % (97.5 %) of the tokens, weighted by the prior: [2, P]."""
    vocab = values_PV.shape[1]
    shares = (0.025, 0.975)
    if bool((prior == prior[0]).all()):  # (no sorting: a tenth of the time)
        ranks = [min(vocab, max(1, math.ceil(share * vocab - 1e-9))) for share in shares]
        return torch.stack([values_PV.kthvalue(rank, dim=1).values for rank in ranks])
    ordered, order = values_PV.sort(dim=1)
    below = prior.double()[order].cumsum(1)
    at = torch.searchsorted(below, below.new_tensor([shares]).expand(len(below), 2).contiguous() - 1e-12)
    return ordered.gather(1, at.clamp(max=vocab - 1)).T
