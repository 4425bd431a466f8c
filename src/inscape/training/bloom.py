"""BLOOM, to be trained: the architecture of `transformers.BloomForCausalLM` under the same parameter names, in one file.

A decoder as GPT-2 laid it out: LayerNorms before attention and MLP and at the end, biases everywhere, GELU (tanh form),
one matrix for words in and out. Two things are its own. A LayerNorm follows the word embedding at once. And no position
is embedded: each head adds to its attention scores a straight line, ``-slope * distance`` (ALiBi, Press et al. 2022).
For a number of heads n that is a power of two the slopes are 2^(-8i/n); otherwise they are those of the power of two
below n, followed by every second slope of the power of two above it. Softmax does not see a constant, so released code
adds ``slope * key_index`` instead; the distance is what stays exact in bfloat16.

Query, key and value come from one matrix whose rows are **interleaved by head**: ``[heads, 3, head_size, width]``.

Rows may hold several documents. Given `segments`, the number of the document that each position belongs to, no position
looks outside its own document; with ALiBi, where only distances count, a packed document then has the very hidden
states that it has alone.

Failure: dropout, and residuals taken after the norm, which a `BloomConfig` can ask for and no released BLOOM has, are
refused, as are heads that don't divide the width.

Letters in names of tensors: B rows, T positions, D width, H heads, K size of a head, V words.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import BloomConfig, GPT2Config, PretrainedConfig

from inscape.errors import InputError

Position = Literal["alibi", "learned", "none"]


def alibi_slopes(heads: int) -> Tensor:
    """The slope of every head: float32 [H], all positive."""
    below = 2 ** int(math.log2(heads))
    slopes = [2 ** (-8 * i / below) for i in range(1, below + 1)]
    slopes += [2 ** (-8 * i / (2 * below)) for i in range(1, 2 * below, 2)]
    return torch.tensor(slopes[:heads], dtype=torch.float32)


class Attention(nn.Module):
    """Causal self-attention. The number of heads is read from the width of its matrix: a slice of it is fewer heads."""

    def __init__(self, config: BloomConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.head_size = width // config.n_head
        self.query_key_value = nn.Linear(width, 3 * width)
        self.dense = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor, bias: Tensor | FlexBias) -> Tensor:
        B, T, _ = x_BTD.shape
        qkv = self.query_key_value(x_BTD).view(B, T, -1, 3, self.head_size)
        q_BHTK, k_BHTK, v_BHTK = qkv.permute(3, 0, 2, 1, 4).unbind(0)
        out_BHTK = attend(q_BHTK, k_BHTK, v_BHTK, bias)
        return self.dense(out_BHTK.transpose(1, 2).reshape(B, T, -1))


#: Queries that `attend_in_blocks` takes at a time, and the longest row that it is used for.
BLOCK, LONGEST_IN_BLOCKS = 128, 1024


@dataclass(frozen=True)
class FlexBias:
    """ALiBi and who sees whom, as FlexAttention takes them: nothing of size T x T is ever made."""

    slopes_H: Tensor
    visible: BlockMask


def attend(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, bias: Tensor | FlexBias) -> Tensor:
    """Attention with scores + bias, by the kernel that is fastest on the device; the bias is [B, H, T, T]."""
    if isinstance(bias, FlexBias):
        return attend_flex(q_BHTK, k_BHTK, v_BHTK, bias)
    if q_BHTK.device.type == "cpu" and q_BHTK.shape[2] <= LONGEST_IN_BLOCKS:
        return attend_in_blocks(q_BHTK, k_BHTK, v_BHTK, bias)
    return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, attn_mask=bias)


def attend_in_blocks(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, bias_BHTT: Tensor) -> Tensor:
    """Causal attention as plain matrix products, a block of queries at a time with the keys up to its end.

    torch's fused kernel for the CPU visits every key when it is given a bias, and computes scores anew in the backward
    pass. Here scores far above the diagonal are never computed and probabilities are kept: for short rows half the time
    in bfloat16, at the price of memory that grows with the square of the row.
    """
    B, H, T, K = q_BHTK.shape
    q, k, v, bias = (x.reshape(B * H, T, -1) for x in (q_BHTK, k_BHTK, v_BHTK, bias_BHTT))
    blocks = []
    for start in range(0, T, BLOCK):
        end = min(start + BLOCK, T)
        scores = torch.baddbmm(bias[:, start:end, :end], q[:, start:end], k[:, :end].mT, alpha=K**-0.5)
        blocks.append(scores.softmax(dim=-1) @ v[:, :end])
    return torch.cat(blocks, dim=1).view(B, H, T, K)


def attend_flex(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, bias: FlexBias) -> Tensor:
    """FlexAttention: one fused kernel on a GPU; elsewhere the same result by plain operations, for tests."""
    slopes_H = bias.slopes_H

    def with_alibi(score: Tensor, _row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score - slopes_H[head] * (query - key)

    kernel = _compiled_flex() if q_BHTK.is_cuda else flex_attention
    return kernel(q_BHTK, k_BHTK, v_BHTK, score_mod=with_alibi, block_mask=bias.visible)


@functools.cache
def _compiled_flex() -> Any:
    return torch.compile(flex_attention)


class MLP(nn.Module):
    def __init__(self, config: BloomConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, 4 * config.hidden_size)
        self.dense_4h_to_h = nn.Linear(4 * config.hidden_size, config.hidden_size)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.dense_4h_to_h(F.gelu(self.dense_h_to_4h(x_BTD), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, config: BloomConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.self_attention = Attention(config)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x_BTD: Tensor, bias: Tensor | FlexBias) -> Tensor:
        x_BTD = x_BTD + self.self_attention(self.input_layernorm(x_BTD), bias)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


class Transformer(nn.Module):
    """Everything but the output layer; its attributes carry the names of the released weights."""

    def __init__(self, config: BloomConfig, learned_positions: int) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_epsilon
        self.word_embeddings = nn.Embedding(config.vocab_size, width)
        self.word_embeddings_layernorm = nn.LayerNorm(width, eps=eps)
        if learned_positions:
            self.position_embeddings = nn.Embedding(learned_positions, width)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(width, eps=eps)


class Bloom(nn.Module):
    """A BLOOM of the shape that a `BloomConfig` gives.

    Args:
        config: as transformers has it; ``initializer_range`` is the standard deviation of the initial weights.
        position: ``alibi`` is BLOOM. ``learned`` adds an embedding of the position (after the embedding's LayerNorm)
            instead, ``none`` knows no position at all: twins for comparisons, the same in everything else.
        context: the longest sequence of a twin (rows of the table of learned positions); ALiBi knows no end.
        seed: of the initial weights.

    Raises:
        InputError: the config asks for what no BLOOM has (see the module).
    """

    slopes: Tensor

    def __init__(
        self, config: BloomConfig, *, position: Position = "alibi", context: int = 2048, seed: int = 0
    ) -> None:
        super().__init__()
        _check(config)
        self.config = config
        self.position: Position = position
        self.context = context
        self.transformer = Transformer(config, context if position == "learned" else 0)
        self.register_buffer("slopes", alibi_slopes(config.n_head), persistent=False)
        self._bias: tuple[object, Tensor, Tensor] | None = None
        self.register_load_state_dict_pre_hook(_without_head)
        if self.slopes.device.type != "meta":
            self.initialise(seed)

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers, in order."""
        return self.transformer.h

    @property
    def head_weight(self) -> Tensor:
        """The output layer, which is the word embedding: [V, D]."""
        return self.transformer.word_embeddings.weight

    @property
    def hf_config(self) -> PretrainedConfig:
        """The config under which transformers loads `hf_state_dict`."""
        return self.config if self.position == "alibi" else gpt2_config(self.config, self.context)

    def hf_state_dict(self) -> dict[str, Tensor]:
        """The weights under the names of transformers, the tied matrix once (for a twin see `as_gpt2`)."""
        state = {name: tensor.detach() for name, tensor in self.state_dict().items()}
        return state if self.position == "alibi" else as_gpt2(state, self.hf_config)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Draw all weights anew, and refill the slopes (after `to_empty`).

        Normal with the config's ``initializer_range``, divided by sqrt(2 layers) in the two matrices of a block that write
        to the residual stream (as Megatron's code, by which BLOOM was trained, does); biases 0, norms 1.
        """
        generator = torch.Generator(self.slopes.device).manual_seed(seed)
        self.slopes.copy_(alibi_slopes(self.config.n_head))
        for name, module in self.named_modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                writes = name.endswith(("self_attention.dense", "dense_4h_to_h"))
                std = self.config.initializer_range / (math.sqrt(2 * self.config.n_layer) if writes else 1)
                module.weight.normal_(0.0, std, generator=generator)
            elif isinstance(module, nn.LayerNorm):
                module.weight.fill_(1.0)
            if isinstance(module, (nn.Linear, nn.LayerNorm)):
                module.bias.zero_()

    def forward(self, ids_BT: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        """Hidden states after the final LayerNorm, [B, T, D].

        Args:
            ids_BT: int64.
            segments_BT: int, the number of each position's document in its row, never falling along the row.

        Raises:
            InputError: rows longer than the table of learned positions.
        """
        transformer = self.transformer
        x_BTD = transformer.word_embeddings_layernorm(transformer.word_embeddings(ids_BT))
        if self.position == "learned":
            if ids_BT.shape[1] > self.context:
                raise InputError(
                    f"rows of {ids_BT.shape[1]} tokens, expected at most {self.context}: positions are learned"
                )
            x_BTD = x_BTD + transformer.position_embeddings(positions(ids_BT, segments_BT))
        # FlexAttention wants heads of 16 and more.
        flex = ids_BT.is_cuda and self.config.hidden_size // self.config.n_head >= 16
        bias = self.flex_bias(ids_BT, segments_BT) if flex else self.attention_bias(ids_BT, segments_BT)
        for block in transformer.h:
            x_BTD = block(x_BTD, bias)
        return transformer.ln_f(x_BTD)

    def attention_bias(self, ids_BT: Tensor, segments_BT: Tensor | None) -> Tensor:
        """What is added to the attention scores, [B, H, T, T] in the dtype of the products; -inf where nothing is seen."""
        (B, T), device = ids_BT.shape, ids_BT.device
        dtype = self.head_weight.dtype
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        key = (B, T, device, dtype)
        if self._bias is None or self._bias[0] != key or self._bias[1] is not self.slopes:
            at_T = torch.arange(T, device=device)
            distance_TT = (at_T[:, None] - at_T).float()
            bias_HTT = (-self._slopes()[:, None, None] * distance_TT).masked_fill(distance_TT < 0, -math.inf)
            bias_BHTT = bias_HTT.to(dtype).expand(B, -1, -1, -1)
            # Matrix products need one for each row; the fused kernel of longer rows doesn't.
            self._bias = (key, self.slopes, bias_BHTT.contiguous() if T <= LONGEST_IN_BLOCKS else bias_BHTT)
        if segments_BT is None:
            return self._bias[2]
        other_BTT = segments_BT[:, :, None] != segments_BT[:, None, :]
        return self._bias[2].masked_fill(other_BTT[:, None], -math.inf)

    def flex_bias(self, ids_BT: Tensor, segments_BT: Tensor | None) -> FlexBias:
        """The same for FlexAttention."""
        (B, T), device = ids_BT.shape, str(ids_BT.device)

        def visible(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            causal = query >= key
            return causal if segments_BT is None else causal & (segments_BT[row, query] == segments_BT[row, key])

        rows = None if segments_BT is None else B
        return FlexBias(self._slopes(), create_block_mask(visible, rows, None, T, T, device))

    def _slopes(self) -> Tensor:
        return self.slopes if self.position == "alibi" else torch.zeros_like(self.slopes)


def positions(ids_BT: Tensor, segments_BT: Tensor | None) -> Tensor:
    """The position of each token in its document: int64 [B, T]."""
    at_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device).expand_as(ids_BT)
    if segments_BT is None:
        return at_BT
    starts = F.pad(segments_BT[:, 1:] != segments_BT[:, :-1], (1, 0), value=True)
    return at_BT - torch.where(starts, at_BT, 0).cummax(dim=1).values


def gpt2_config(config: BloomConfig, context: int) -> GPT2Config:
    """The GPT-2 that a twin of a BLOOM is written as."""
    return GPT2Config(
        vocab_size=config.vocab_size,
        n_positions=context,
        n_embd=config.hidden_size,
        n_layer=config.n_layer,
        n_head=config.n_head,
        layer_norm_epsilon=config.layer_norm_epsilon,
        initializer_range=config.initializer_range,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        tie_word_embeddings=False,
    )


def as_gpt2(state: Mapping[str, Tensor], config: GPT2Config) -> dict[str, Tensor]:
    """The weights of a twin (learned positions, or none) as those of a GPT-2, exactly.

    The LayerNorm after the word embedding acts on every word by itself, so it is folded into the input embedding; the
    output layer keeps the embedding as it was, and the two are no longer tied. Without positions their table is 0.
    """
    words_VD = state["transformer.word_embeddings.weight"]
    scale_D, shift_D = (state[f"transformer.word_embeddings_layernorm.{part}"] for part in ("weight", "bias"))
    width = words_VD.shape[1]
    learned = state.get("transformer.position_embeddings.weight")
    result = {
        "transformer.wte.weight": F.layer_norm(words_VD, (width,), scale_D, shift_D, config.layer_norm_epsilon),
        "transformer.wpe.weight": words_VD.new_zeros(config.n_positions, width) if learned is None else learned,
        "lm_head.weight": words_VD,
    }
    for name, tensor in state.items():
        if not name.startswith(("transformer.h.", "transformer.ln_f.")):
            continue
        if "query_key_value" in name:
            by_head = tensor.view(config.n_head, 3, width // config.n_head, *tensor.shape[1:])
            tensor = by_head.transpose(0, 1).reshape(tensor.shape)
        for ours, theirs in _GPT2_NAMES.items():
            name = name.replace(ours, theirs)
        # GPT-2 keeps its matrices transposed.
        result[name] = tensor.T.contiguous() if tensor.dim() == 2 else tensor
    return result


_GPT2_NAMES = {
    "self_attention.query_key_value": "attn.c_attn",
    "self_attention.dense": "attn.c_proj",
    "post_attention_layernorm": "ln_2",
    "input_layernorm": "ln_1",
    "dense_h_to_4h": "c_fc",
    "dense_4h_to_h": "c_proj",
}


def _check(config: BloomConfig) -> None:
    if config.hidden_size % config.n_head:
        raise InputError(f"width {config.hidden_size} with {config.n_head} heads: expected a multiple of the heads")
    if config.hidden_dropout or config.attention_dropout:
        raise InputError("a BLOOM with dropout was asked for, expected hidden_dropout = attention_dropout = 0")
    if config.apply_residual_connection_post_layernorm:
        raise InputError("apply_residual_connection_post_layernorm is true, expected false, as in every released BLOOM")


def _without_head(module: nn.Module, state: dict[str, Any], *_: object) -> None:
    # transformers lists the tied matrix under both of its names.
    head = state.pop("lm_head.weight", None)
    words = state.get("transformer.word_embeddings.weight")
    if head is not None and words is not None and head is not words and not torch.equal(head, words):
        raise InputError("lm_head.weight differs from transformer.word_embeddings.weight, expected one tied matrix")
