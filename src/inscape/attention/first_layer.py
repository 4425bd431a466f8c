"""What the heads of a first layer do with tokens and positions, read from weights: :func:`first_layer`.

In the first layer, and only there, queries and keys depend on the token and its position alone. So a logit of query token v
at position i and key token w at position j falls into terms of tokens, of positions and of both, with no text needed
(Kamoda, Heinzerling, Inaba, Kudo, Sakaguchi, Inui: Weight-based Analysis of Detokenization in Language Models, Findings of
NAACL 2025, for GPT-2; here for every position scheme of :mod:`inscape.attention.schemes`)::

    terms = inscape.attention.first_layer(lm)
    terms.token_token(query=" Jackson", head=7).top(10)  # which prefixes does it look for?
    terms.position(head=7).mu                            # how does it weigh distances?
    terms.logits(prompt).total()                         # the model's own logits, term by term

**Exact**: with known tokens (:meth:`FirstLayer.logits`) the terms sum to what the model's softmax gets. **Marginalised**: of
weights alone, where positions are added to embeddings, the norm's σ couples the two and must be averaged
(:mod:`inscape.attention.sigma`); the size of what that hides is reported beside every such term as ``sigma_ratio``. ALiBi
and rotary models need no average: their ratio is 1.

**Units**: a T of weights alone (:meth:`~FirstLayer.tables`, :meth:`~FirstLayer.token_token`, :meth:`~FirstLayer.token`) is
unscaled, as in the paper: multiply by ``scale`` for a logit. Everything called a logit is scaled.

**Failure**: before the first answer the decomposition is proven on the model at hand: attention computed from the summed
terms, applied to the model's own values, must be what its output projection reads (the error says how far it is off).
Deeper layers, cross-attention and schemes with no entry are refused with the reason. What was read of the weights is kept:
after changing them, call it again.
"""

import operator
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from inscape.attention.additive import Additive
from inscape.attention.position import Position
from inscape.attention.schemes import Kind, attention_module, scheme_of
from inscape.attention.static import Static
from inscape.attention.terms import Terms
from inscape.attention.token_scores import TokenScores, token_id
from inscape.errors import InputError
from inscape.models import LM
from inscape.models.discovery import probe_ids
from inscape.models.tokens import Prompt


def first_layer(lm: LM, *, prior: Tensor | None = None, layer: int = 0) -> "FirstLayer":
    """The first layer's attention, term by term.

    Args:
        lm: a model from :func:`inscape.load`.
        prior: weights of tokens, [V], not negative (bigger for frequent ones): what "mean over tokens" means, for σ,
            for centring and for μ. Uniform by default, as in the paper.
        layer: 0. It is here to be refused: above the first layer queries and keys depend on the text.

    Raises:
        InputError: a family, layer or prior that is not handled, with the reason; or the proof failed on this model.
    """
    if layer != 0:
        raise InputError(
            f"first_layer: layer {layer} asked for, but only in layer 0 do queries and keys depend on token and position "
            "alone; deeper ones read what earlier layers wrote"
        )
    terms = FirstLayer(lm, prior)
    _prove(terms)
    return terms


class FirstLayer:
    """First-layer attention of one model, from weights. Build it with :func:`first_layer`.

    Attributes:
        scheme: ``"additive"``, ``"alibi"`` or ``"rotary"``.
        heads, kv_heads, head_dim: of the first layer; head h reads the keys of head ``h // (heads // kv_heads)``.
        vocab: rows of the embedding table (a tokenizer may know fewer tokens, or more).
        scale: what q · k is multiplied with to give a logit.
        softcap, window: the logits' cap; the tokens that a query sees, itself included; None where there is none.
        norm: the module in front of the projections, or None.
        prior: weights of tokens, [V], summing to 1.
        dtype: float32, or float64 for a float64 model.
    """

    def __init__(self, lm: LM, prior: Tensor | None = None) -> None:
        scheme = scheme_of(lm)
        block, attention = lm.sites.blocks[0], attention_module(lm)
        self.lm = lm
        self.scheme: Kind = scheme.kind(lm.config)
        self.heads, self.kv_heads, self.head_dim = lm.sites.head_shape(0)
        self.vocab = lm.vocab
        self.scale = scheme.scale(attention)
        self.softcap: float | None = getattr(attention, "attn_logit_softcapping", None)
        self.window = scheme.window(attention)
        self.dtype = torch.float64 if lm.dtype == torch.float64 else torch.float32
        self.prior = _normalised(prior, self.vocab).to(lm.device, self.dtype)
        path = scheme.norm(lm.config)
        self.norm: nn.Module | None = None if path is None else block.get_submodule(path)
        self._static = self._additive = None
        if self.scheme == "additive":
            self._additive = Additive(lm, scheme, self.norm, self.prior, self.dtype)
        else:
            self._static = Static(lm, scheme, self.norm, self.prior, self.dtype, self.scale)

    @property
    def sigma_ratio(self) -> float:
        """Largest σ by least, over all positions and tokens: the factor that averaging hides at most, on either side."""
        return 1.0 if self._additive is None else self._additive.sigma.ratio

    @property
    def positions(self) -> int | None:
        """Positions that the model has; None: no end."""
        return self.lm.context if self._additive is None else len(self._additive.positions)

    # -- tokens ------------------------------------------------------------------------------------------------------

    def tables(self, head: int, distance: int = 1, center: bool = False) -> tuple[Tensor, Tensor]:
        """``(Q, K)``, each ``[V, head_dim]``, on the model's device: ``Q[v] @ K[w]`` is T^ee(v, w), query v and key w.

        Additive positions: ``e_v W^QK e_w / (mean σ_v · mean σ_w)``; ALiBi: exact; rotary: exact at ``distance`` (the key
        lies so many tokens before the query; keys are turned back). Biases are not in it, see :meth:`token`. Unscaled.

        ``center``: each table less its mean under the prior, so that ``Q[v] @ K[w]`` is what query and key token do
        *together*: two-way ANOVA's interaction (for additive positions that of the marginalised term).
        """
        tables = self._of().tables(self._head(head), self._distance(distance))
        return (tables[0] - self.prior @ tables[0], tables[1] - self.prior @ tables[1]) if center else tables

    def token_token(
        self,
        query: str | int | None = None,
        key: str | int | None = None,
        *,
        head: int,
        distance: int = 1,
        center: bool = False,
    ) -> TokenScores:
        """T^ee of one token with all: give ``query`` for scores of keys (prefixes), or ``key`` for those of queries.

        A token is a text of exactly one token (with its space: ``" Jackson"``) or an id.
        """
        if (query is None) == (key is None):
            raise InputError("token_token: give either query or key")
        side = "query" if key is None else "key"
        token = token_id(self.lm, query if query is not None else key)  # type: ignore[arg-type]
        queries, keys = self.tables(head, distance, center)
        values = keys @ queries[token] if side == "query" else queries @ keys[token]
        return TokenScores(values, token, side, self._head(head), distance, self._over_positions(), self.lm)

    def token(self, head: int, distance: int = 1) -> Tensor:
        """T^e(w), [V]: the query's bias with the key's token; zero where queries have none. Unscaled.

        Additive positions: times the mean of 1/σ over positions. Rotary: at ``distance``.
        """
        return self._of().token(self._head(head), self._distance(distance))

    # -- positions ---------------------------------------------------------------------------------------------------

    def position(
        self,
        head: int,
        distances: Sequence[int] | None = None,
        query_sigma: Literal["mean", "min", "max"] = "mean",
    ) -> Position:
        """What a head does with positions: see :class:`Position`.

        ``distances``: 0 to 63 by default, or as many as the model has; ``query_sigma``: the σ of queries in T^pp.
        """
        head = self._head(head)
        if query_sigma not in ("mean", "min", "max"):
            raise InputError(f"position: query_sigma is mean, min or max, found {query_sigma!r}")
        if distances is None:
            distances = range(min(64, self.positions or 64))
        asked = [self._distance(distance) for distance in distances]
        if not asked:
            raise InputError("position: no distances were given")
        pp = p = band = pos = slope = None
        ratio = 1.0
        if self._additive is not None:
            mean = self._additive.mean_product(head) * self.scale
            rows = torch.arange(max(asked), len(mean), device=mean.device)
            mu = torch.stack([mean[rows, rows - distance].mean() for distance in asked])
            pp = self._additive.position_position(head, query_sigma)
            p, band = self._additive.key_position(head)
            ratio = self._additive.sigma.over_tokens

            def mean_row(i: int) -> Tensor:
                i = self._position(i)
                return mean[i, : i + 1]
        else:
            static = self._static
            assert static is not None
            if self.scheme == "alibi":
                slope = float(static.slopes()[head])
            pos = static.bias_products(head, asked)
            falls = slope or 0.0

            def by_distance(some: Sequence[int]) -> Tensor:
                line = torch.tensor(some, dtype=self.dtype, device=self.lm.device) * falls
                return static.mean_products(head, some) * self.scale - line

            def mean_row(i: int) -> Tensor:
                return by_distance(range(self._position(i), -1, -1))

            mu = by_distance(asked)
        return Position(
            head,
            torch.tensor(asked),
            mu,
            pp,
            p,
            band,
            pos,
            slope,
            ratio,
            self.scale,
            self.softcap,
            self.window,
            mean_row,
        )

    # -- prompts -----------------------------------------------------------------------------------------------------

    def logits(self, prompt: Prompt, heads: Sequence[int] | None = None, *, bos: bool | None = None) -> Terms:
        """The first layer's logits of a prompt (text, or token ids), term by term and exact: see :class:`Terms`.

        ``heads``: which (all by default); ``bos`` as in :meth:`inscape.LM.capture`. Memory: a ``[head, i, j]`` per term.
        """
        [ids] = self.lm.token_ids([prompt], bos=bos)
        which = tuple(range(self.heads)) if heads is None else tuple(self._head(head) for head in heads)
        if not which:
            raise InputError("logits: no heads were given")
        spread = None
        if self._additive is not None:
            unscaled, spread = self._additive.terms(ids, which)
            values = {name: value * self.scale for name, value in unscaled.items()}
        else:
            assert self._static is not None
            values = self._static.terms(ids, which, self.scale)
        return Terms(values, which, self.scale, self.softcap, self.window, spread)

    # -- what was asked for -------------------------------------------------------------------------------------------

    def _of(self) -> Additive | Static:
        found = self._additive or self._static
        assert found is not None
        return found

    def _over_positions(self) -> float:
        return 1.0 if self._additive is None else self._additive.sigma.over_positions

    def _head(self, head: int) -> int:
        number = _whole(head, "a head")
        if not 0 <= number < self.heads:
            raise InputError(f"no head {number}: the first layer has heads 0 to {self.heads - 1}")
        return number

    def _distance(self, distance: int) -> int:
        number, end = _whole(distance, "a distance"), self.positions
        if number < 0 or (end is not None and number >= end):
            raise InputError(
                f"distance {number}: expected a number of tokens from 0" + ("" if end is None else f" to {end - 1}")
            )
        return number

    def _position(self, i: int) -> int:
        number, end = _whole(i, "a position"), self.positions
        if number < 0 or (end is not None and number >= end):
            raise InputError(f"position {number}: expected one from 0" + ("" if end is None else f" to {end - 1}"))
        return number


def _whole(value: int, what: str) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise InputError(f"expected {what} as a whole number, found {value!r}")
    return operator.index(value)


def _normalised(prior: Tensor | None, vocab: int) -> Tensor:
    if prior is None:
        return torch.full((vocab,), 1 / vocab, dtype=torch.float64)
    weights = torch.as_tensor(prior).detach().double()
    if weights.shape != (vocab,):
        raise InputError(
            f"prior: expected a weight for each of the model's {vocab} embeddings, found a tensor of shape "
            f"{list(weights.shape)}"
        )
    if not bool(weights.isfinite().all()) or bool((weights < 0).any()) or not bool(weights.sum() > 0):
        raise InputError("prior: expected finite weights, none negative and not all zero")
    return weights / weights.sum()


def _prove(terms: FirstLayer) -> None:
    """Refuse a model whose first layer does not do what the terms say, on a few tokens of its own vocabulary.

    Two things are held against the model: that its queries and keys are projections of the norm named in the table (the
    split of a bias rests on it), and that attention from the summed terms mixes the model's values as the model does.
    """
    lm, family = terms.lm, terms.lm.sites.family
    assert family is not None
    ids = probe_ids(terms.vocab, lm.device, rows=1, tokens=min(24, lm.context or 24))[0].tolist()
    read = lm.capture_sites([ids], ["resid_pre", "q", "k", "v", "z"], 0, "all", bos=False, device=lm.device)
    seen = {site: found.values[:, 0] for site, found in read.items()}
    room = max(1e-4, 16 * torch.finfo(lm.dtype).eps)
    with torch.no_grad():
        normed = seen["resid_pre"] if terms.norm is None else terms.norm(seen["resid_pre"])
        for site in "qk":
            point = lm.sites.tap(site, 0)
            assert point.view is not None
            _refuse_off(lm, f"{site} from the norm", point.view.read(point.module(normed)), seen[site], room)
    values = seen["v"].to(terms.dtype).repeat_interleave(terms.heads // terms.kv_heads, 1)
    if (clip := family.clip(lm.config)) is not None:
        values = values.clamp(-clip, clip)
    ours = torch.einsum("hij,jhd->ihd", terms.logits(ids, bos=False).attention(), values)
    _refuse_off(lm, "attention from the summed terms", ours, seen["z"], room)


def _refuse_off(lm: LM, what: str, ours: Tensor, theirs: Tensor, room: float) -> None:
    theirs = theirs.to(ours.dtype)
    off = float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(torch.finfo(ours.dtype).tiny))
    if not off <= room:
        raise InputError(
            f"first_layer: this {lm.config.model_type} model's first layer is not what its family's is: {what} is off by "
            f"{off:.2g} of the largest value (room: {room:.2g})"
        )
