"""What one head of a first layer does with positions, from weights alone: :class:`Position`."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from inscape.attention.terms import masked_softmax


@dataclass(frozen=True)
class Position:
    """The position terms of one head. Terms T are unscaled, as in the paper; ``mu`` and what is predicted are logits.

    Attributes:
        head: which.
        distances: how many tokens the key lies before the query, [D].
        mu: the general position term μ_Δ, [D]: the mean *logit* over independent query and key tokens under the prior
            (scaled, ALiBi's line included, before a soft-cap). It exists for every scheme. Where positions are additive it
            is not a function of the distance alone: then it is the mean over the query positions that have all of
            ``distances`` before them, the same ones for every distance, so that row constants don't bend it.
        pp: T^pp, [i, j], where positions are additive: the query's σ by its mean (or as asked) over tokens, the key's by the
            mean of 1/σ.
        p: T^p, [j], where positions are additive.
        p_band: its 2.5 % and 97.5 % quantiles over tokens, [2, j].
        pos: T^pos_Δ, [D], where positions are rotary and both queries and keys have a bias.
        slope: how much an ALiBi logit falls per token of distance (scaled as in the logit).
        sigma_ratio: largest σ by least over tokens at one position, the worst one: how far ``pp`` and ``p`` of a real token
            can be from these; 1 where nothing is averaged.
    """

    head: int
    distances: Tensor
    mu: Tensor
    pp: Tensor | None
    p: Tensor | None
    p_band: Tensor | None
    pos: Tensor | None
    slope: float | None
    sigma_ratio: float
    scale: float
    softcap: float | None
    window: int | None
    mean_row: Callable[[int], Tensor]
    """``mean_row(i)``: mean logit over independent tokens, of query position i by key position 0 … i, [i + 1]."""

    def attention(self, i: int) -> Tensor:
        """Attention of the query at position i as positions alone predict it, ``[i + 1]``, from key position 0 to i.

        Additive positions: ``softmax_j((T^pp(i, j) + T^p(j)) · scale)``, as published. Otherwise :meth:`mean_attention`.
        """
        if self.pp is None or self.p is None:
            return self.mean_attention(i)
        self.mean_row(i)  # (refuses a position that the model does not have)
        return self._softmax((self.pp[i, : i + 1] + self.p[: i + 1]) * self.scale)

    def mean_attention(self, i: int) -> Tensor:
        """Softmax of the mean logits of query position i: what is left of attention when tokens are averaged out."""
        return self._softmax(self.mean_row(i))

    def _softmax(self, logits: Tensor) -> Tensor:
        distance = torch.arange(len(logits) - 1, -1, -1, device=logits.device)
        return masked_softmax(logits, distance, self.softcap, self.window)
