"""Which model is trained: BLOOM, its twins with other positions, and the GPT-2, Llama and GPT-NeoX of transformers.

All have one interface (`TrainableLM`): ``forward(ids, segments)`` gives the hidden states after the final norm,
``head_weight`` the output layer, ``blocks`` the layers. The loss is made outside, so that logits of a whole batch need
never exist at once. All can be written as a folder that `AutoModelForCausalLM` loads (`save_hf`).

A BLOOM with learned positions, or with none, is no type of transformers, yet it is written exactly, as a GPT-2: the
LayerNorm after the word embedding acts on every word by itself, so it is folded into the input embedding, and the
output layer keeps the embedding as it was (input and output are then two matrices).

Failure: a shape that can't be (heads that don't divide the width) is refused when the config is made; a folder without a
model, or of a type that is not offered, when it is read.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from inscape.errors import InputError
from inscape.runs.writing import explain
from inscape.training.bloom import Bloom, alibi_slopes, as_gpt2, positions

Kind = Literal["bloom", "gpt2", "llama", "gpt_neox"]
_CLASSES = {
    "bloom": "BloomForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "gpt_neox": "GPTNeoXForCausalLM",
}


class ModelConfig(BaseModel):
    """The shape of a model. Input and output embeddings are one matrix in all kinds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind = Field(default="bloom", description="architecture; its type in transformers has the same name")
    position: Literal["alibi", "learned", "none"] = Field(
        default="alibi", description="how a bloom knows positions; the other kinds have their own way, and ignore it"
    )
    width: int = Field(default=192, ge=1, description="size of the hidden state (paper: 1,024 to 14,336)")
    layers: int = Field(default=6, ge=1, description="blocks (paper: 24 to 70)")
    heads: int = Field(default=6, ge=1, description="attention heads; they divide the width (paper: 16 to 112)")
    context: int = Field(
        default=2048,
        ge=1,
        description="longest sequence, tokens; alibi and rotary positions may go beyond (paper: 2,048)",
    )
    vocabulary: int = Field(default=8192, ge=4, description="words in the embedding, padding included (paper: 250,880)")
    init_std: float | None = Field(
        default=None,
        gt=0,
        description="standard deviation of initial weights; none: sqrt(1 / (3 width)) (paper: 0.0048)",
    )

    @model_validator(mode="after")
    def _possible(self) -> ModelConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} with {self.heads} heads: expected a multiple of the heads")
        if self.kind in ("llama", "gpt_neox") and (self.width // self.heads) % 2:
            raise ValueError(f"heads of size {self.width // self.heads}: rotary positions need an even size")
        return self

    @property
    def std(self) -> float:
        """The standard deviation of the initial weights."""
        return self.init_std if self.init_std is not None else math.sqrt(1 / (3 * self.width))


# fmt: off
#: The miniatures that train on a CPU, and the released sizes (Table 3 of the paper; 176B is BLOOM itself).
SIZES: dict[str, ModelConfig] = {
    name: ModelConfig(layers=layers, width=width, heads=heads, vocabulary=vocabulary, init_std=std)
    for name, layers, width, heads, vocabulary, std in [
        ("nano", 4, 128, 4, 8192, None),
        ("micro", 6, 192, 6, 8192, None),
        ("mini", 8, 256, 8, 16384, None),
        ("560m", 24, 1024, 16, 250_880, 0.0048),
        ("1b1", 24, 1536, 16, 250_880, 0.0048),
        ("1b7", 24, 2048, 16, 250_880, 0.0048),
        ("3b", 30, 2560, 32, 250_880, 0.0048),
        ("7b1", 30, 4096, 32, 250_880, 0.0048),
        ("176b", 70, 14336, 112, 250_880, 0.0048),
    ]
}
# fmt: on


class TrainableLM(Protocol):
    """What the trainer needs of a model; every one here is an `nn.Module` as well."""

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers, in order."""

    @property
    def head_weight(self) -> Tensor:
        """The output layer, [V, D]; logits are ``hidden @ head_weight.T``."""

    @property
    def hf_config(self) -> PretrainedConfig:
        """The config under which transformers loads `hf_state_dict`."""

    def hf_state_dict(self) -> dict[str, Tensor]:
        """Weights under the names of transformers, a tied matrix once."""

    def __call__(self, ids_BT: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        """Hidden states after the final norm, [B, T, D]."""


class HuggingFaceLM(nn.Module):
    """A causal LM of transformers behind the trainer's interface.

    Documents in a row are kept apart by a mask [B, 1, T, T], and each starts again at position 0.
    """

    def __init__(self, causal_lm: PreTrainedModel) -> None:
        super().__init__()
        self.causal_lm = causal_lm

    @property
    def blocks(self) -> nn.ModuleList:
        return next(module for module in self.causal_lm.base_model.children() if isinstance(module, nn.ModuleList))

    @property
    def head_weight(self) -> Tensor:
        return self.causal_lm.get_output_embeddings().weight

    @property
    def hf_config(self) -> PretrainedConfig:
        return self.causal_lm.config

    def hf_state_dict(self) -> dict[str, Tensor]:
        return to_hf(self.state_dict(), self.hf_config)

    def forward(self, ids_BT: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        mask = None
        if segments_BT is not None:
            T = ids_BT.shape[1]
            causal_TT = torch.ones(T, T, dtype=torch.bool, device=ids_BT.device).tril()
            mask = (causal_TT & (segments_BT[:, :, None] == segments_BT[:, None, :]))[:, None]
        at_BT = positions(ids_BT, segments_BT)
        return self.causal_lm.base_model(ids_BT, attention_mask=mask, position_ids=at_BT, use_cache=False)[0]


def build(config: ModelConfig, seed: int = 0) -> Bloom | HuggingFaceLM:
    """A model with new weights, drawn from `seed`; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.kind == "bloom":
            return Bloom(_hf_config(config), position=config.position, context=config.context, seed=seed)
        return HuggingFaceLM(AutoModelForCausalLM.from_config(_hf_config(config), attn_implementation="sdpa"))


def parameters(config: ModelConfig) -> int:
    """How many parameters the model has, the tied embedding counted once; no memory is taken for them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build(config).parameters())


def flops_per_token(config: ModelConfig, length: int) -> float:
    """Floating-point operations that a training step must spend per token, in rows of `length` tokens.

    Six for each weight of a matrix that multiplies (the output layer once, the input embedding not at all), and
    6 * layers * width * length for attention, of which the causal half is counted. Nothing is counted for recomputation.
    """
    with torch.device("meta"):
        model = build(config)
    multiplied = sum(
        parameter.numel() for block in model.blocks for parameter in block.parameters() if parameter.dim() > 1
    )
    multiplied += config.vocabulary * config.width
    return 6.0 * multiplied + 6.0 * config.layers * config.width * length


def to_hf(state: Mapping[str, Tensor], config: PretrainedConfig) -> dict[str, Tensor]:
    """The state dict of a model made here, under the names of transformers and with a tied matrix once.

    Only names and the config are read, so that a state gathered from many processes can be written without a module.
    """
    if config.model_type == "gpt2" and "transformer.word_embeddings.weight" in state:
        return as_gpt2(state, config)
    tensors = {name.removeprefix("causal_lm."): tensor.detach() for name, tensor in state.items()}
    if config.tie_word_embeddings:
        tensors = {
            name: tensor for name, tensor in tensors.items() if name not in ("lm_head.weight", "embed_out.weight")
        }
    return tensors


def save_hf(
    model: Bloom | HuggingFaceLM | Mapping[str, Tensor],
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: Path,
) -> None:
    """Write a folder that `AutoModelForCausalLM.from_pretrained` loads: it is there whole, or not at all.

    Args:
        model: a model of `build` or `load_hf`, or its whole state dict.
        config: `hf_config` of that model.
        tokenizer: saved with it; its words must fit the model's vocabulary.
        folder: replaced if it exists.

    Raises:
        InputError: the tokenizer has more words than the model; the folder can't be written (`RunWriteError`).
    """
    if tokenizer is not None and len(tokenizer) > config.vocab_size:
        raise InputError(
            f"the tokenizer has {len(tokenizer)} words and the model {config.vocab_size}, expected at most as many"
        )
    state = model.state_dict() if isinstance(model, nn.Module) else model
    tensors = {name: tensor.cpu().contiguous() for name, tensor in to_hf(state, config).items()}
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        part.mkdir(parents=True)
        saved = config.__class__.from_dict(config.to_dict())
        saved.architectures = [_CLASSES[config.model_type]]
        if tokenizer is not None:
            for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
                setattr(saved, token, getattr(tokenizer, token))
        saved.dtype = next(iter(tensors.values())).dtype
        saved.save_pretrained(part)
        save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
        if tokenizer is not None:
            tokenizer.save_pretrained(part)
        for file in part.iterdir():
            with file.open("rb+") as written:
                os.fsync(written.fileno())
        if folder.exists():
            os.replace(folder, old)
        os.replace(part, folder)
    except OSError as error:
        raise explain(error, folder) from error
    finally:
        for leftover in (part, old):
            with contextlib.suppress(OSError):
                shutil.rmtree(leftover)


def load_hf(folder: Path | str) -> Bloom | HuggingFaceLM:
    """A model saved by `save_hf` or by transformers (or on the hub), in float32, ready to train.

    A twin of a BLOOM comes back as the GPT-2 that it was saved as.

    Raises:
        InputError: there is no such model, weights are missing, or its type is none of bloom, gpt2, llama, gpt_neox.
    """
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: no model there ({_first_line(error)}), expected a Hugging Face folder") from error
    kind = config.model_type
    if kind not in _CLASSES:
        raise InputError(f"{folder}: a model of type {kind}, expected one of {', '.join(_CLASSES)}")
    # transformers' Bloom knows eager attention only; it is just read here, never run.
    how = {"dtype": torch.float32, "attn_implementation": "eager" if kind == "bloom" else "sdpa"}
    try:
        model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **how)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder}: weights can't be read ({_first_line(error)})") from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise InputError(f"{folder}: {len(missing)} weights are missing, such as {missing[0]}; expected a whole model")
    if kind != "bloom":
        return HuggingFaceLM(model)
    with torch.device("meta"):
        bloom = Bloom(config)
    bloom.load_state_dict(model.state_dict(), assign=True)
    bloom.slopes = alibi_slopes(config.n_head)
    return bloom


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _hf_config(config: ModelConfig) -> PretrainedConfig:
    words = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    shape = {"vocab_size": config.vocabulary, "initializer_range": config.std, "tie_word_embeddings": True, **words}
    if config.kind == "bloom":
        return BloomConfig(hidden_size=config.width, n_layer=config.layers, n_head=config.heads, **shape)
    if config.kind == "gpt2":
        none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        shape |= {
            "n_embd": config.width,
            "n_layer": config.layers,
            "n_head": config.heads,
            "n_positions": config.context,
        }
        return GPT2Config(**shape, **none)
    shape |= {"hidden_size": config.width, "num_hidden_layers": config.layers, "num_attention_heads": config.heads}
    shape |= {"max_position_embeddings": config.context}
    if config.kind == "gpt_neox":
        return GPTNeoXConfig(intermediate_size=4 * config.width, **shape)
    # Three matrices in Llama's MLP: 8/3 of the width gives as many weights as four times the width in two.
    return LlamaConfig(intermediate_size=-(-8 * config.width // 3 // 8) * 8, **shape)
