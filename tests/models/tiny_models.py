"""Tiny models of every architecture family, every parameter randomised, and what each family's attention does.

Default initialisation hides mistakes: norms that are one and biases that are zero commute with almost everything. Here
every parameter is drawn from a seeded generator. ``Recipe`` states, independently of the package, how queries, keys and
values of a family become attention weights.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import inscape
from inscape.models.lm import LM

VOCAB, LAYERS, WIDTH, HEADS, CONTEXT = 97, 3, 32, 4, 64
IDS = {"bos_token_id": 0, "eos_token_id": None, "pad_token_id": None}


@dataclass(frozen=True)
class Recipe:
    """Attention of one family: scale, rotary part, norms on queries and keys, caps, windows, ALiBi."""

    scale: float | None = None
    """None: 1 / sqrt(head_dim)."""
    rotary: float = 0.0
    """Share of a head's features that is rotated."""
    theta: Callable[[int], float] = lambda layer: 10_000.0
    interleaved: bool = False
    norm: tuple[str, str] | None = None
    """Paths, within a block, of the norms on queries and keys."""
    norm_over: str = "head"
    softcap: float | None = None
    window: Callable[[int], int | None] = lambda layer: None
    alibi: str | None = None
    clip: float | None = None


@dataclass(frozen=True)
class Case:
    """A tiny model: its config, its recipe, and the module whose input is ``resid_mid`` (None where there is none)."""

    config: Callable[[], Any]
    recipe: Recipe = field(default_factory=Recipe)
    mid_read_by: str | None = None
    parallel: bool = False
    post_norm: bool = False


def _rope(config: type, **more: Any) -> Callable[[], Any]:
    return lambda: config(
        vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        max_position_embeddings=CONTEXT, **{**IDS, **more},
    )  # fmt: skip


def _falcon(**more: Any) -> Callable[[], Any]:
    return lambda: hf.FalconConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, bias=True,
        max_position_embeddings=CONTEXT, **{**IDS, **more},
    )  # fmt: skip


def _opt(**more: Any) -> Callable[[], Any]:
    return lambda: hf.OPTConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, ffn_dim=48, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        max_position_embeddings=CONTEXT, **{**IDS, "pad_token_id": 1, **more},
    )  # fmt: skip


def _gpt2(**more: Any) -> Callable[[], Any]:
    return lambda: hf.GPT2Config(
        vocab_size=VOCAB, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=CONTEXT, **{**IDS, **more}
    )


def _mpt(**more: Any) -> Callable[[], Any]:
    return lambda: hf.MptConfig(
        vocab_size=VOCAB, d_model=WIDTH, n_layers=LAYERS, n_heads=HEADS, max_seq_len=CONTEXT, expansion_ratio=2,
        attn_config={"alibi": True, "clip_qkv": 1.0, "softmax_scale": 0.5}, **{**IDS, **more},
    )  # fmt: skip


def _bloom(**more: Any) -> Callable[[], Any]:
    return lambda: hf.BloomConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, n_layer=LAYERS, n_head=HEADS, hidden_dropout=0.0, attention_dropout=0.0,
        **{**IDS, **more},
    )  # fmt: skip


def _alternating(first: str, second: str) -> list[str]:
    return [first if layer % 2 == 0 else second for layer in range(LAYERS)]


_SLIDING = _alternating("sliding_attention", "full_attention")
_EVEN_WINDOW_4: Callable[[int], int | None] = lambda layer: 4 if layer % 2 == 0 else None  # noqa: E731
_LLAMA_MID, _GEMMA_MID = "post_attention_layernorm", "pre_feedforward_layernorm"

CASES: dict[str, Case] = {
    "gpt2": Case(_gpt2(), mid_read_by="ln_2"),
    "gpt_neo": Case(
        lambda: hf.GPTNeoConfig(
            vocab_size=VOCAB, hidden_size=WIDTH, num_layers=LAYERS, num_heads=HEADS, window_size=4, intermediate_size=48,
            max_position_embeddings=CONTEXT, attention_types=[[["local"], 1], [["global", "local"], 1]], **IDS,
        ),
        Recipe(scale=1.0, window=_EVEN_WINDOW_4), mid_read_by="ln_2",
    ),
    "gpt_neox": Case(_rope(hf.GPTNeoXConfig, use_parallel_residual=True), Recipe(rotary=0.25), parallel=True),
    "gpt_neox_sequential": Case(
        _rope(hf.GPTNeoXConfig, use_parallel_residual=False, rotary_pct=0.5),
        Recipe(rotary=0.5), mid_read_by="post_attention_layernorm",
    ),
    "gptj": Case(
        lambda: hf.GPTJConfig(
            vocab_size=VOCAB, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=CONTEXT, rotary_dim=4, **IDS
        ),
        Recipe(rotary=0.5, interleaved=True), parallel=True,
    ),
    "opt": Case(_opt(), mid_read_by="final_layer_norm"),
    "opt_post_norm": Case(_opt(do_layer_norm_before=False, word_embed_proj_dim=16), post_norm=True),
    "bloom": Case(_bloom(), Recipe(alibi="bloom"), mid_read_by="post_attention_layernorm"),
    "bloom_post_norm": Case(
        _bloom(apply_residual_connection_post_layernorm=True), Recipe(alibi="bloom"), post_norm=True
    ),
    "llama": Case(_rope(hf.LlamaConfig, num_key_value_heads=2), Recipe(rotary=1.0), _LLAMA_MID),
    "mistral": Case(
        _rope(hf.MistralConfig, num_key_value_heads=2, sliding_window=4, head_dim=16),
        Recipe(rotary=1.0, window=lambda layer: 4), _LLAMA_MID,
    ),
    "qwen2": Case(_rope(hf.Qwen2Config, num_key_value_heads=2), Recipe(rotary=1.0), _LLAMA_MID),
    "qwen3": Case(
        _rope(hf.Qwen3Config, num_key_value_heads=2, head_dim=16),
        Recipe(rotary=1.0, norm=("self_attn.q_norm", "self_attn.k_norm")), _LLAMA_MID,
    ),
    "gemma2": Case(
        _rope(
            hf.Gemma2Config, num_key_value_heads=2, head_dim=16, sliding_window=4, query_pre_attn_scalar=9,
            attn_logit_softcapping=3.0, final_logit_softcapping=5.0, layer_types=_SLIDING,
        ),
        Recipe(rotary=1.0, scale=1 / 3, softcap=3.0, window=_EVEN_WINDOW_4), _GEMMA_MID,
    ),
    "gemma3_text": Case(
        _rope(
            hf.Gemma3TextConfig, num_key_value_heads=2, head_dim=16, sliding_window=4, query_pre_attn_scalar=9,
            layer_types=_SLIDING,
            rope_parameters={
                "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        ),
        Recipe(
            rotary=1.0, scale=1 / 3, norm=("self_attn.q_norm", "self_attn.k_norm"), window=_EVEN_WINDOW_4,
            theta=lambda layer: 100.0 if layer % 2 == 0 else 1e6,
        ), _GEMMA_MID,
    ),
    "phi": Case(_rope(hf.PhiConfig, num_key_value_heads=4), Recipe(rotary=0.5), parallel=True),
    "phi_qk_norm": Case(
        _rope(hf.PhiConfig, num_key_value_heads=2, qk_layernorm=True),
        Recipe(rotary=0.5, norm=("self_attn.q_layernorm", "self_attn.k_layernorm")), parallel=True,
    ),
    "phi3": Case(_rope(hf.Phi3Config, num_key_value_heads=2), Recipe(rotary=1.0), _LLAMA_MID),
    "olmo2": Case(
        _rope(hf.Olmo2Config, num_key_value_heads=2),
        Recipe(rotary=1.0, norm=("self_attn.q_norm", "self_attn.k_norm"), norm_over="all"), "mlp",
    ),
    "falcon": Case(_falcon(multi_query=True), Recipe(rotary=1.0), parallel=True),
    "falcon_new": Case(
        _falcon(new_decoder_architecture=True, num_kv_heads=2), Recipe(rotary=1.0), parallel=True
    ),
    "falcon_alibi": Case(
        _falcon(alibi=True, multi_query=False), Recipe(alibi="falcon"), parallel=True
    ),
    "falcon_sequential": Case(
        _falcon(parallel_attn=False, multi_query=False), Recipe(rotary=1.0), "post_attention_layernorm"
    ),
    "mpt": Case(_mpt(), Recipe(alibi="mpt", scale=0.5, clip=1.0), "norm_2"),
    "stablelm": Case(
        _rope(hf.StableLmConfig, num_key_value_heads=2, use_qkv_bias=True),
        Recipe(rotary=0.25), "post_attention_layernorm",
    ),
    "stablelm_parallel": Case(
        _rope(hf.StableLmConfig, num_key_value_heads=2, use_parallel_residual=True, qk_layernorm=True),
        Recipe(rotary=0.25, norm=("self_attn.q_layernorm", "self_attn.k_layernorm"), norm_over="list"), parallel=True,
    ),
}  # fmt: skip

NAMES = list(CASES)
SEQUENTIAL = [name for name, case in CASES.items() if case.mid_read_by is not None]


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every parameter from a seeded generator; scales that start at one stay around one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            one = parameter.ndim == 1 and bool((parameter == 1).all())
            parameter.copy_(1 + 0.3 * noise if one else 0.25 * noise)
    return model.eval()


def build(name: str, *, attn: str | None = None, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A fresh model, for tests that change it."""
    config = CASES[name].config()
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config, **({"attn_implementation": attn} if attn else {}))
    return randomise(model, seed).to(dtype)


def words(count: int = VOCAB) -> Any:
    """A tokenizer whose words are ``t0 t1 …``: text and ids say the same, and nothing is added."""
    tokenizer = Tokenizer(models.WordLevel({f"t{i}": i for i in range(count)}, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def with_bos(count: int = VOCAB) -> Any:
    """The same, with a BOS token ``t0`` that the tokenizer adds by itself."""
    tokenizer = words(count).backend_tokenizer
    tokenizer.post_processor = processors.TemplateProcessing(single="t0 $A", special_tokens=[("t0", 0)])
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="t0")


@cache
def tiny(name: str, attn: str | None = None, dtype: torch.dtype = torch.float32) -> LM:
    """A shared instrument on a tiny model; tests must not change it (and one test sees that they don't)."""
    return inscape.load(build(name, attn=attn, dtype=dtype), words())


def prompts(*lengths: int, seed: int = 1) -> list[list[int]]:
    """Random id lists (ids 2 … 96) of the given lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, VOCAB, (n,), generator=generator).tolist() for n in lengths]


def close(a: torch.Tensor, b: torch.Tensor, relative: float = 1e-5) -> None:
    """Equal to ``relative`` times the largest magnitude."""
    assert a.shape == b.shape
    off, size = (a.double() - b.double()).abs().max().item(), b.double().abs().max().item()
    assert off <= relative * size, f"off by {off:.3g} where the largest value is {size:.3g}"


def forward(model: Any, ids: list[int], **options: Any) -> Any:
    """The plain forward pass of one unpadded prompt: transformers alone."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False, **options)
