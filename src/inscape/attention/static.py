"""First layers whose positions are not added to the embeddings (ALiBi, rotary): tables by token alone, and exact.

The block's input depends on the token alone, so queries and keys before any rotation do too. They are read from the model's
own modules (embedding, norms, projections), by running every token once through the first block up to its projections; clips
and QK-norms, also the model's own, come after. A bias b̃ (:mod:`inscape.attention.folding`; where there is a QK-norm: its
β) is split off, so that ``q(v) = q_token(v) + b̃``.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from inscape.attention.folding import folded_bias, norm_gain_and_bias
from inscape.attention.kernels import Rotation, alibi, rotation
from inscape.attention.schemes import Scheme, attention_module
from inscape.models import LM

_PROMPT = 256  # tokens of the vocabulary that share a pass' row


class Static:
    """Queries and keys by token of one model. Nothing here is scaled but ALiBi's line, which is added after the scale."""

    def __init__(
        self, lm: LM, scheme: Scheme, norm: nn.Module | None, prior: Tensor, dtype: torch.dtype, scale: float
    ) -> None:
        self.lm, self.scheme, self.prior, self.dtype = lm, scheme, prior, dtype
        self.rotary = scheme.kind(lm.config) == "rotary"
        self.bias_times = 1.0 if self.rotary else scheme.bias_times(lm.model.config, scale)
        self.attention: Any = attention_module(lm)
        family = lm.sites.family
        assert family is not None
        self.clip = family.clip(lm.config)
        self.heads, self.kv_heads, self.head_dim = lm.sites.head_shape(0)
        names = scheme.qk_norm or ("", "")
        self.qk_norm: dict[str, nn.Module | None] = {
            site: getattr(self.attention, name, None) if name else None for site, name in zip("qk", names, strict=True)
        }
        self.bias = {site: self._bias(site, norm) for site in "qk"}
        """[head or kv_head, head_dim], or None."""
        self._rotation: Rotation | None = None

    def _bias(self, site: str, norm: nn.Module | None) -> Tensor | None:
        if self.clip is not None:  # (no longer a sum)
            return None
        qk_norm = self.qk_norm[site]
        if qk_norm is None:
            return folded_bias(self.lm, site, norm, self.dtype)
        _, beta = norm_gain_and_bias(qk_norm)
        heads = self.heads if site == "q" else self.kv_heads
        return None if beta is None else beta.to(self.dtype).expand(heads, self.head_dim)

    def kv_head(self, head: int) -> int:
        return head // (self.heads // self.kv_heads)

    # -- queries and keys --------------------------------------------------------------------------------------------

    def _read(self, prompts: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Queries ``[token, head, head_dim]``, keys ``[token, kv_head, head_dim]``, as the model has them unturned."""
        read = self.lm.capture_sites(prompts, ["q", "k"], 0, "all", bos=False, batch_size=16, device=self.lm.device)
        return {site: self._normed(site, read[site].values[:, 0]) for site in "qk"}

    def _normed(self, site: str, x_THD: Tensor) -> Tensor:
        if self.clip is not None:
            x_THD = x_THD.clamp(-self.clip, self.clip)
        if (norm := self.qk_norm[site]) is None:
            return x_THD
        with torch.no_grad():
            if self.scheme.norm_over_heads:
                return norm(x_THD.flatten(1)).view_as(x_THD)
            return norm(x_THD.transpose(0, 1)[None])[0].transpose(0, 1)

    @cached_property
    def by_token(self) -> dict[str, Tensor]:
        """Queries and keys of every token, bias included, in the model's dtype: [V, head or kv_head, head_dim]."""
        longest = min(_PROMPT, self.lm.context or _PROMPT)
        ids = list(range(self.lm.vocab))
        return self._read([ids[first : first + longest] for first in range(0, len(ids), longest)])

    def _without_bias(self, site: str, head: int) -> Tensor:
        table = self.by_token[site][:, head].to(self.dtype)
        bias = self.bias[site]
        return table if bias is None else table - bias[head]

    def _bias_of(self, site: str, head: int) -> Tensor:
        bias = self.bias[site]
        return torch.zeros(self.head_dim, dtype=self.dtype, device=self.lm.device) if bias is None else bias[head]

    def at_distance(self, keys: Tensor, distance: int) -> Tensor:
        """Keys ``[..., head_dim]`` as a query meets them that comes ``distance`` tokens later."""
        return self._rotation_for(distance + 1).key_back(keys, distance) if self.rotary else keys

    def _rotation_for(self, tokens: int) -> Rotation:
        if self._rotation is None or len(self._rotation.cos) < tokens:
            self._rotation = rotation(self.lm, self.attention, tokens, self.scheme.interleaved, self.dtype)
        return self._rotation

    # -- terms -------------------------------------------------------------------------------------------------------

    def tables(self, head: int, distance: int) -> tuple[Tensor, Tensor]:
        keys = self.at_distance(self._without_bias("k", self.kv_head(head)), distance)
        return self._without_bias("q", head).contiguous(), keys.contiguous()

    def token(self, head: int, distance: int) -> Tensor:
        keys = self.at_distance(self._without_bias("k", self.kv_head(head)), distance)
        return keys @ self._bias_of("q", head)

    @cached_property
    def means(self) -> dict[str, Tensor]:
        """Mean query and key of each head under the prior, bias included: [head or kv_head, head_dim]."""
        return {
            site: torch.stack([self.prior @ table[:, head].to(self.dtype) for head in range(table.shape[1])])
            for site, table in self.by_token.items()
        }

    def mean_products(self, head: int, distances: Sequence[int]) -> Tensor:
        """Mean of q · k over independent query and key tokens under the prior, by distance."""
        return self._products(self.means["q"][head], self.means["k"][self.kv_head(head)], distances)

    def bias_products(self, head: int, distances: Sequence[int]) -> Tensor | None:
        """T^pos: product of both biases by distance (rotary only; None where one side has none)."""
        if not self.rotary or self.bias["q"] is None or self.bias["k"] is None:
            return None
        return self._products(self.bias["q"][head], self.bias["k"][self.kv_head(head)], distances)

    def _products(self, query: Tensor, key: Tensor, distances: Sequence[int]) -> Tensor:
        keys = key.expand(len(distances), -1)
        if self.rotary:
            at = torch.tensor(distances, device=keys.device)
            keys = self._rotation_for(max(distances) + 1).key_back(keys, at)
        return keys @ query

    def slopes(self) -> Tensor:
        """How much an ALiBi logit falls per token of distance, [head]."""
        line = alibi(self.lm, 2, self.heads, self.dtype) * self.bias_times
        return line[:, 1] - line[:, 0]

    def terms(self, ids: Sequence[int], heads: Sequence[int], scale: float) -> dict[str, Tensor]:
        """Scaled terms ``[head, i, j]`` of a prompt."""
        read = self._read([ids])
        picked = {"q": list(heads), "k": [self.kv_head(head) for head in heads]}
        token, bias = {}, {}
        for site in "qk":
            values = read[site][:, picked[site]].to(self.dtype)
            of_site = self.bias[site]
            bias[site] = torch.zeros_like(values[:1]) if of_site is None else of_site[picked[site]][None]
            token[site], bias[site] = values - bias[site], bias[site].expand_as(values)
        if self.rotary:
            turn = self._rotation_for(len(ids)).at_positions
            token, bias = ({site: turn(x) for site, x in part.items()} for part in (token, bias))

        def product(query: Tensor, key: Tensor) -> Tensor:
            return torch.einsum("ihd,jhd->hij", query, key) * scale

        out = {"ee": product(token["q"], token["k"])}
        if self.bias["q"] is not None:
            out["e"] = product(bias["q"], token["k"])
        if self.rotary:
            if self.bias["k"] is not None:
                out["q"] = product(token["q"], bias["k"])
            if self.bias["q"] is not None and self.bias["k"] is not None:
                out["pos"] = product(bias["q"], bias["k"])
            return out
        if self.bias["k"] is not None:
            out["r"] = product(token["q"] + bias["q"], bias["k"])
        line = alibi(self.lm, len(ids), self.heads, self.dtype)[list(heads)] * self.bias_times
        out["alibi"] = line[:, None].expand_as(out["ee"])
        return out
