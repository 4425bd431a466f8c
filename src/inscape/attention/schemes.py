"""How each architecture family makes first-layer logits: the one table that a new family needs here.

A *scheme* says where positions come in. ``additive``: a learned row per position is added to the token's embedding, before
the norm. ``alibi``: a line in the distance is added to the logit. ``rotary``: queries and keys are turned by an angle that
grows with the position. Where the projections are is the kernel's knowledge (:mod:`inscape.models.families`); this table
adds the norm in front of them, the scale, and what is done to queries and keys after them. Rotary angles, ALiBi lines and
QK-norms are the model's own, never computed anew.

Whatever is looked up here is proven on the model at hand before it is used (:func:`inscape.attention.first_layer`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from inscape.errors import InputError
from inscape.models import LM

Kind = Literal["additive", "alibi", "rotary"]


@dataclass(frozen=True)
class Scheme:
    """First-layer attention of one family. Callables get the config or the attention module of the first block."""

    kind: Callable[[Any], Kind] = lambda config: "rotary"
    norm: Callable[[Any], str | None] = lambda config: "input_layernorm"
    """Path, within the block, of the norm in front of the projections (None: there is none)."""
    positions: str | None = None
    """Path, within the model, of the table of learned positions."""
    offset: int = 0
    """The row of that table for position 0."""
    project_in: str | None = None
    """Path, within the model, of a projection between word embeddings and residual stream (where the model has one)."""
    scale: Callable[[Any], float] = lambda attention: float(attention.scaling)
    """What q · k is multiplied with."""
    qk_norm: tuple[str, str] | None = None
    """Norms on queries and keys, within the attention module (where the model has them)."""
    norm_over_heads: bool = False
    """Whether those norms are over all heads at once."""
    interleaved: bool = False
    """Whether rotary pairs are features (2m, 2m + 1); otherwise (m, m + r/2)."""
    bias_times: Callable[[Any, float], float] = lambda config, scale: 1.0
    """What an ALiBi bias, as the model hands it to a block, is multiplied with in the logits."""
    window: Callable[[Any], int | None] = lambda attention: getattr(attention, "sliding_window", None)
    """How many tokens a query sees, itself included (None: all)."""


def _falcon_bias(config: Any, scale: float) -> float:
    # Falcon adds the bias before it scales. transformers' eager kernel for it does so once in the mask and once beside it.
    return scale * (2 if config._attn_implementation == "eager" else 1)


def _falcon_norm(config: Any) -> str:
    two = config.num_ln_in_parallel_attn == 2 or (
        config.num_ln_in_parallel_attn is None and config.new_decoder_architecture
    )
    return "ln_attn" if two and config.parallel_attn else "input_layernorm"


_LLAMA = Scheme()
_QK_NORM = Scheme(qk_norm=("q_norm", "k_norm"))
_QK_LAYERNORM = Scheme(qk_norm=("q_layernorm", "k_layernorm"))
_CONFIG_WINDOW = Scheme(window=lambda attention: getattr(attention.config, "sliding_window", None))

SCHEMES: dict[str, Scheme] = {
    "gpt2": Scheme(kind=lambda config: "additive", norm=lambda config: "ln_1", positions="transformer.wpe"),
    "gpt_neo": Scheme(
        kind=lambda config: "additive",
        norm=lambda config: "ln_1",
        positions="transformer.wpe",
        scale=lambda attention: 1.0,
        window=lambda attention: attention.config.window_size if attention.attention_type == "local" else None,
    ),
    "opt": Scheme(
        kind=lambda config: "additive",
        norm=lambda config: "self_attn_layer_norm" if config.do_layer_norm_before else None,
        positions="model.decoder.embed_positions",
        offset=2,
        project_in="model.decoder.project_in",
    ),
    "bloom": Scheme(kind=lambda config: "alibi", scale=lambda attention: attention.inv_norm_factor),
    "mpt": Scheme(
        kind=lambda config: "alibi", norm=lambda config: "norm_1", scale=lambda attention: attention.softmax_scale
    ),
    "falcon": Scheme(
        kind=lambda config: "alibi" if config.alibi else "rotary",
        norm=_falcon_norm,
        scale=lambda attention: attention.inv_norm_factor,
        bias_times=_falcon_bias,
    ),
    "gptj": Scheme(
        norm=lambda config: "ln_1", scale=lambda attention: 1 / float(attention.scale_attn), interleaved=True
    ),
    "gpt_neox": _LLAMA,
    "llama": _LLAMA,
    "mistral": _CONFIG_WINDOW,
    "qwen2": _LLAMA,
    "qwen3": _QK_NORM,
    "gemma2": _LLAMA,
    "gemma3_text": _QK_NORM,
    "phi": _QK_LAYERNORM,
    "phi3": _CONFIG_WINDOW,
    "olmo2": Scheme(norm=lambda config: None, qk_norm=("q_norm", "k_norm"), norm_over_heads=True),
    "stablelm": _QK_LAYERNORM,
}
"""By ``config.model_type``."""

_REFUSED = {
    "bert": "three embeddings (word, position, segment) are added and normed together",
    "deberta": "its logits mix contents with relative positions in three products (disentangled attention)",
    "t5": "relative positions come in learned buckets",
}


def scheme_of(lm: LM) -> Scheme:
    """The scheme of a model; InputError with the reason where its first layer can't be read from weights."""
    kind = lm.config.model_type
    if getattr(lm.config, "add_cross_attention", False):
        raise InputError(
            f"first_layer: this {kind} has cross-attention, whose keys come from another model's states and not from tokens"
        )
    if kind not in SCHEMES or lm.sites.family is None:
        known = next((reason for name, reason in _REFUSED.items() if kind.startswith(name)), None)
        raise InputError(
            f"first_layer: model type {kind!r} is not handled"
            + (f": {known}" if known else "")
            + f" (handled: {', '.join(sorted(SCHEMES))})"
        )
    return SCHEMES[kind]


def attention_module(lm: LM) -> nn.Module:
    """The module of the first block that holds the attention output projection."""
    family = lm.sites.family
    assert family is not None
    return lm.sites.blocks[0].get_submodule(family.o.rpartition(".")[0])
