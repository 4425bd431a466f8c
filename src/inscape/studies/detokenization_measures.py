"""What is measured on first-layer attention: importance of terms, mass by distance, kinds of heads, ROC curves.

Attention is ``[head, i, j]``, query position i, key position j. The *profile* of a head is its mean mass by distance
Δ = i - j, over query positions that have all of 0 … D before them; what lies farther back is one last entry, so that a
profile sums to 1.
"""

from collections.abc import Callable

import numpy as np
import polars as pl
import torch
from torch import Tensor

from inscape.attention.bigrams import Bigrams
from inscape.attention.terms import Terms

SELF, RECENT, CONTENT, DIFFUSE = "self", "recent past", "content", "diffuse"

_DROPPED = 1e-10
"""Divergences up to this are left out of the published mean."""


def importance(terms: Terms) -> dict[str, Tensor]:
    """By term, ``[head]``: KL(attention ‖ attention without the term), in nats, mean over the queries i ≥ 1.

    What a term adds may be undone by another: importances don't add up. A term that is the same for all keys has 0.
    """
    whole = terms.attention()
    return {name: _divergence(whole, terms.attention([name]))[:, 1:].mean(1) for name in terms}


def published_importance(terms: Terms, context: int | None) -> dict[str, Tensor]:
    """`importance` as the published code has it (Kamoda et al. 2025, section 6.1), ``[head]`` by term.

    The logits are not scaled, so attention is far sharper than the model's; each query's divergence is divided by the number
    of its keys (a mean over j where a sum is meant); divergences up to 1e-10, the query 0 and that of the last position of
    the context are left out. nan where nothing is left.
    """
    whole = terms.total() / terms.scale
    n = whole.shape[-1]
    hidden = torch.ones(n, n, dtype=torch.bool, device=whole.device).triu(1)
    keys = torch.arange(1, n + 1, device=whole.device)
    last = n - 1 if context == n else n

    def attention(logits: Tensor) -> Tensor:
        return logits.masked_fill(hidden, -torch.inf).softmax(-1)

    found = {}
    for name, term in terms.items():
        each = (_divergence(attention(whole), attention(whole - term / terms.scale)) / keys)[:, 1:last]
        counted = each > _DROPPED
        found[name] = torch.where(counted, each, 0).sum(1) / counted.sum(1)
    return found


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) over the last axis, ``[head, i]``; where p is 0 nothing is added, q is kept from 0."""
    tiny = torch.finfo(p.dtype).tiny
    return (p * (p.clamp_min(tiny).log() - q.clamp_min(tiny).log())).sum(-1).clamp_min(0)


def profile(attention: Tensor, farthest: int) -> Tensor:
    """Mean mass ``[head, farthest + 2]`` at distances 0 … ``farthest`` and beyond, over queries i ≥ ``farthest``."""
    by_distance = torch.stack(
        [attention.diagonal(-distance, 1, 2)[:, farthest - distance :].mean(1) for distance in range(farthest + 1)], 1
    )
    return torch.cat([by_distance, (1 - by_distance.sum(1, keepdim=True)).clamp_min(0)], 1)


def predicted_profile(row: Callable[[int], Tensor], farthest: int, length: int) -> np.ndarray:
    """`profile` of the attention rows ``row(i)`` (``[i + 1]``), over i from ``farthest`` to ``length`` - 1; float64."""
    total = np.zeros(farthest + 2)
    for i in range(farthest, length):
        mass = row(i).flip(0).double().cpu().numpy()
        total[:-1] += mass[: farthest + 1]
        total[-1] += mass[farthest + 1 :].sum()
    return total / (length - farthest)


def keys_in_effect(attention: Tensor, farthest: int) -> Tensor:
    """Perplexity of a query's attention relative to the number of its keys, mean over i ≥ ``farthest``, [head]."""
    entropy = torch.special.entr(attention).sum(-1)
    keys = torch.arange(1, attention.shape[1] + 1, device=attention.device)
    return (entropy.exp() / keys)[:, farthest:].mean(1)


def kind_of_head(mass: np.ndarray, recent: int, keys: float) -> str:
    """Self, recent past, content or diffuse, from a profile ``[D + 2]`` and `keys_in_effect`.

    The largest of three masses decides: at distance 0, at 1 to ``recent``, farther back. A head that mostly looks farther
    back is a content head if its queries give their mass to less than a quarter of their keys, and diffuse otherwise.
    """
    parts = {SELF: mass[0], RECENT: mass[1 : recent + 1].sum(), "far": mass[recent + 1 :].sum()}
    largest = max(parts, key=lambda name: parts[name])
    return largest if largest != "far" else CONTENT if keys < 0.25 else DIFFUSE


def agreement(predicted: np.ndarray, observed: np.ndarray) -> tuple[float, float]:
    """Pearson correlation over the distances 0 … D, and total variation over all of two profiles ``[D + 2]``."""
    a, b = predicted[:-1], observed[:-1]
    flat = np.ptp(a) < 1e-12 or np.ptp(b) < 1e-12
    return float("nan") if flat else float(np.corrcoef(a, b)[0, 1]), float(np.abs(predicted - observed).sum() / 2)


def mean_curves(
    scores: dict[str, Callable[[int], np.ndarray]], bigrams: Bigrams, suffixes: np.ndarray, points: int = 101
) -> pl.DataFrame:
    """Mean ROC curve over some suffixes, for each scorer; twice: against all tokens, and against tokens as frequent.

    Args:
        scores: by name: suffix -> the score of each token as its prefix, ``[V]``.
        suffixes: token ids, each with some prefixes in the text and not all.
        points: of the curve, at equal steps of the false positive rate.

    Returns:
        Columns ``scorer``, ``suffix``, ``auroc`` (negatives of weight 1, as in `bigram_auroc`), ``auroc_matched`` (a
        negative has the weight of its own count in the text: knowing how frequent tokens are then helps little), and
        ``tpr``, the curve as a list of ``points`` true positive rates.
    """
    grid = np.linspace(0, 1, points)
    rows = []
    for suffix in suffixes.tolist():
        prefixes, counts = bigrams.prefixes(suffix)
        weight = np.zeros(len(bigrams.unigram))
        weight[prefixes] = counts
        negative = weight == 0
        for name, score_of in scores.items():
            score = score_of(suffix)
            order = np.argsort(-score, kind="stable")
            ends = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)  # of each run of equal scores
            up = np.append(0, np.cumsum(weight[order])[ends]) / weight.sum()
            right = np.append(0, np.cumsum(negative[order])[ends]) / negative.sum()
            matched = np.append(0, np.cumsum((negative * bigrams.unigram)[order])[ends])
            areas = [np.sum(np.diff(x) * (up[1:] + up[:-1]) / 2) for x in (right, matched)]
            rows.append(
                {
                    "scorer": name,
                    "suffix": suffix,
                    "auroc": float(areas[0]),
                    "auroc_matched": float(areas[1] / matched[-1]) if matched[-1] else float("nan"),
                    "tpr": np.interp(grid, right, up).tolist(),
                }
            )
    return pl.DataFrame(rows)
