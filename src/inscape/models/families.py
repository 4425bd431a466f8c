"""Where each architecture family keeps its parts: the one table that a new architecture needs.

The residual stream (``embed``, ``resid_pre``, ``resid_post``, ``logits``) is found by discovery and needs no entry here.
The *parts* of a block (``attn_out``, ``resid_mid``, ``mlp_out``, ``q``, ``k``, ``v``, ``z``, ``mlp_act``) are read at
projections, because a projection is a plain module with one tensor in and one tensor out in every family, while the
attention and MLP modules around it return tuples, add the residual (BLOOM, MPT) or flatten the batch (OPT):

* ``z`` is the input of the attention output projection, ``attn_out`` its output;
* ``mlp_act`` is the input of the MLP down projection, ``mlp_out`` its output;
* ``q``, ``k``, ``v`` are the outputs of the input projections, bias included, split into heads, *before* any QK-norm,
  clipping and rotary embedding (the convention of TransformerLens' ``hook_q``).

Families that normalise after a sub-block (OLMo 2, Gemma 2 and 3) name the norm whose output joins the residual, so
``resid_pre + attn_out = resid_mid`` and ``resid_mid + mlp_out = resid_post`` hold in every sequential family, and
``resid_pre + attn_out + mlp_out = resid_post`` in every parallel one. :mod:`inscape.models.check` proves it at load.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Family:
    """Dotted paths, relative to a block, of the projections of one architecture family.

    ``layout`` says how a fused ``qkv`` projection orders its output features:
    ``"concat"`` = all queries, all keys, all values; ``"grouped"`` = per key/value head, its group of queries, then its
    key, then its value (with one query per group this is the ``[head, 3, head_dim]`` form of GPT-NeoX and BLOOM).
    """

    o: str
    down: str
    q: str | None = None
    k: str | None = None
    v: str | None = None
    qkv: str | None = None
    layout: Literal["concat", "grouped"] = "concat"
    attn_out: str | None = None
    """The module whose output joins the residual, where it is not ``o`` itself."""
    mlp_out: str | None = None
    """The module whose output joins the residual, where it is not ``down`` itself."""
    parallel: Callable[[Any], bool] = lambda config: False
    """Whether attention and MLP read the same residual, so that there is no ``resid_mid``."""
    norm_on_stream: Callable[[Any], bool] = lambda config: False
    """Whether a norm sits on the residual stream itself (post-norm), so that parts don't sum to ``resid_post``."""
    clip: Callable[[Any], float | None] = lambda config: None
    """Where queries, keys and values are clipped after their projection (None: they are not)."""


_LLAMA = Family(
    o="self_attn.o_proj", down="mlp.down_proj", q="self_attn.q_proj", k="self_attn.k_proj", v="self_attn.v_proj"
)
_POST_NORMED = Family(
    o="self_attn.o_proj",
    down="mlp.down_proj",
    q="self_attn.q_proj",
    k="self_attn.k_proj",
    v="self_attn.v_proj",
    attn_out="post_attention_layernorm",
    mlp_out="post_feedforward_layernorm",
)

FAMILIES: dict[str, Family] = {
    "gpt2": Family(o="attn.c_proj", down="mlp.c_proj", qkv="attn.c_attn"),
    "gpt_neo": Family(
        o="attn.attention.out_proj",
        down="mlp.c_proj",
        q="attn.attention.q_proj",
        k="attn.attention.k_proj",
        v="attn.attention.v_proj",
    ),
    "gpt_neox": Family(
        o="attention.dense",
        down="mlp.dense_4h_to_h",
        qkv="attention.query_key_value",
        layout="grouped",
        parallel=lambda config: config.use_parallel_residual,
    ),
    "gptj": Family(
        o="attn.out_proj",
        down="mlp.fc_out",
        q="attn.q_proj",
        k="attn.k_proj",
        v="attn.v_proj",
        parallel=lambda config: True,
    ),
    "opt": Family(
        o="self_attn.out_proj",
        down="fc2",
        q="self_attn.q_proj",
        k="self_attn.k_proj",
        v="self_attn.v_proj",
        norm_on_stream=lambda config: not config.do_layer_norm_before,
    ),
    "bloom": Family(
        o="self_attention.dense",
        down="mlp.dense_4h_to_h",
        qkv="self_attention.query_key_value",
        layout="grouped",
        norm_on_stream=lambda config: config.apply_residual_connection_post_layernorm,
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma2": _POST_NORMED,
    "gemma3_text": _POST_NORMED,
    "olmo2": _POST_NORMED,
    "phi": Family(
        o="self_attn.dense",
        down="mlp.fc2",
        q="self_attn.q_proj",
        k="self_attn.k_proj",
        v="self_attn.v_proj",
        parallel=lambda config: True,
    ),
    "phi3": Family(o="self_attn.o_proj", down="mlp.down_proj", qkv="self_attn.qkv_proj"),
    "falcon": Family(
        o="self_attention.dense",
        down="mlp.dense_4h_to_h",
        qkv="self_attention.query_key_value",
        layout="grouped",
        parallel=lambda config: config.new_decoder_architecture or config.parallel_attn,
    ),
    "mpt": Family(
        o="attn.out_proj", down="ffn.down_proj", qkv="attn.Wqkv", clip=lambda config: config.attn_config.clip_qkv
    ),
    "stablelm": Family(
        o="self_attn.o_proj",
        down="mlp.down_proj",
        q="self_attn.q_proj",
        k="self_attn.k_proj",
        v="self_attn.v_proj",
        parallel=lambda config: config.use_parallel_residual,
    ),
}
"""By ``config.model_type``."""
