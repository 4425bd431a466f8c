"""First layers whose positions are added to the embeddings (GPT-2, OPT, GPT-Neo): token tables with σ averaged.

With known tokens nothing is approximate: a logit is a sum of products of token and position rows, each divided by its σ
(:meth:`Additive.terms`). Of weights alone σ must be averaged, see :mod:`inscape.attention.sigma`.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from inscape.attention.folding import folded_bias, folded_weight
from inscape.attention.schemes import Scheme
from inscape.attention.sigma import Sigma, sigma, sigma_averages
from inscape.models import LM, NonFiniteError


class Additive:
    """Folded weights and averaged σ of one model. Nothing here is scaled. ``sigma``: the averages."""

    def __init__(self, lm: LM, scheme: Scheme, norm: nn.Module | None, prior: Tensor, dtype: torch.dtype) -> None:
        assert scheme.positions is not None
        self.lm, self.norm, self.prior, self.dtype = lm, norm, prior, dtype
        self.eps: float | None = None if norm is None else float(norm.eps)  # type: ignore[arg-type]
        path, _, name = (scheme.project_in or "").rpartition(".")
        self.project_in: Any = getattr(lm.model.get_submodule(path), name, None) if name else None
        table: Any = lm.model.get_submodule(scheme.positions).weight
        self.positions: Tensor = table.detach()[scheme.offset :].to(lm.device, dtype)
        self.query_bias = folded_bias(lm, "q", norm, dtype)
        self.key_bias = folded_bias(lm, "k", norm, dtype)

    @cached_property
    def words(self) -> Tensor:
        """Embeddings as they join the residual stream, [V, d]."""
        return self._words(self.lm.model.get_input_embeddings().weight)  # type: ignore[operator]

    def _words(self, rows: Tensor) -> Tensor:
        rows = rows.detach().to(self.dtype)
        if self.project_in is None:
            return rows
        return functional.linear(rows, self.project_in.weight.detach().to(self.dtype))

    @cached_property
    def sigma(self) -> Sigma:
        if bool((wrong := ~self.words.isfinite().all(1)).any()):
            token = int(wrong.int().argmax())
            raise NonFiniteError(
                f"first_layer: {int(wrong.sum())} embeddings are NaN or Inf, first that of token {token}"
            )
        return sigma_averages(self.words, self.positions, self.eps, self.prior)

    def weights(self, head: int) -> tuple[Tensor, Tensor]:
        """Folded query and key weights of a head, each [d, head_dim]."""
        return tuple(folded_weight(self.lm, site, self.norm, head, self.dtype) for site in "qk")  # type: ignore[return-value]

    def tables(self, head: int, distance: int) -> tuple[Tensor, Tensor]:
        query, key = self.weights(head)
        by_token = self.sigma.by_token[:, None]
        return self.words @ query / by_token, self.words @ key / by_token

    def token(self, head: int, distance: int) -> Tensor:
        return self.words @ self._key_seen_by_bias(head) * self.sigma.inverse_by_token

    def _key_seen_by_bias(self, head: int) -> Tensor:
        key = self.weights(head)[1]
        return torch.zeros_like(key[:, 0]) if self.query_bias is None else key @ self.query_bias[head]

    def mean_product(self, head: int) -> Tensor:
        """Mean of q · k over independent query and key tokens under the prior, [i, j]: σ is not averaged here."""
        query, key = self.weights(head)
        inverse = self.sigma.inverse_by_position[:, None]
        mean_PD = self.sigma.words_over_sigma + self.positions * inverse
        query_PK, key_PK = mean_PD @ query, mean_PD @ key
        if self.query_bias is not None:
            query_PK = query_PK + self.query_bias[head]
        if self.key_bias is not None:
            key_PK = key_PK + self.key_bias[head]
        return query_PK @ key_PK.T

    def position_position(self, head: int, query_sigma: str) -> Tensor:
        """T^pp, [i, j]; σ of the query by its mean, min or max over tokens."""
        query, key = self.weights(head)
        query_PK = self.positions @ query / self.sigma.by_position[query_sigma][:, None]
        key_PK = self.positions @ key * self.sigma.inverse_by_position[:, None]
        return query_PK @ key_PK.T

    def key_position(self, head: int) -> tuple[Tensor, Tensor]:
        """T^p, [j], and its 2.5 % and 97.5 % quantiles over tokens, [2, j]."""
        raw = self.positions @ self._key_seen_by_bias(head)
        # (A negative product turns the order of its quantiles round.)
        return raw * self.sigma.inverse_by_position, (raw * self.sigma.inverse_band).sort(dim=0).values

    def terms(self, ids: Sequence[int], heads: Sequence[int]) -> tuple[dict[str, Tensor], Tensor]:
        """Unscaled terms ``[head, i, j]`` of a prompt, and σ of its tokens ``[token]``."""
        embeddings = self.lm.model.get_input_embeddings().weight  # type: ignore[operator]
        words = self._words(embeddings[torch.tensor(ids, device=embeddings.device)]).to(self.lm.device)
        places = self.positions[: len(ids)]
        spread = torch.ones_like(words[:, 0]) if self.eps is None else sigma(words, places, self.eps)
        parts: dict[str, list[Tensor]] = {name: [] for name in ("ee", "ep", "pe", "pp", "e", "p", "r")}
        for head in heads:
            query, key = self.weights(head)
            q = {"e": words @ query / spread[:, None], "p": places @ query / spread[:, None]}
            k = {"e": words @ key / spread[:, None], "p": places @ key / spread[:, None]}
            zero = torch.zeros_like(query[0])
            query_bias = zero if self.query_bias is None else self.query_bias[head]
            key_bias = zero if self.key_bias is None else self.key_bias[head]
            for name in ("ee", "ep", "pe", "pp"):
                parts[name].append(q[name[0]] @ k[name[1]].T)
            for name in "ep":
                parts[name].append(k[name] @ query_bias)
            parts["r"].append((q["e"] + q["p"]) @ key_bias + query_bias @ key_bias)
        out = {name: torch.stack(each) for name, each in parts.items()}
        # What depends on one side alone is kept once, and shown [head, i, j].
        axis = {"e": 1, "p": 1, "r": 2}
        shown = {name: out[name].unsqueeze(axis[name]).expand_as(out["ee"]) for name in axis}
        return out | shown, spread
