"""What a pretraining costs before it is started: parameters, memory of each GPU by layout, operations, days, energy.

*Operations.* Forward, a token costs 2 operations for each weight of a matrix and 4 * width * length for each layer's
attention scores; backward twice as much. With activation checkpointing the blocks run forward once more: this is work
that the hardware does (`hardware_flops`) and the model doesn't need (`model_flops`). Attention is counted whole, not its
causal half, as Narayanan et al. 2021 (arXiv 2104.04473, eq. 2) do, so that TFLOP/s compare with the paper's 150.

*Memory.* A parameter has its float32 value, gradient and two moments, 16 bytes, split over the processes of FSDP2 (and of
tensor parallelism, all but the embedding and the norms). Beside these: the bfloat16 copies that are gathered for
computing (two blocks and the embedding, or everything where blocks are kept after the forward pass) with a block's
gradients before they are scattered; activations, after Korthikanti et al. 2022 (arXiv 2205.05198) without attention
matrices, which the kernels never make; logits and the output layer for the loss. What a framework itself takes (1 to
3 GiB) and fragmentation are not counted: a layout fits that leaves a tenth of the memory free.

*Time* follows from an assumed speed. The paper's share of a GPU's peak was reached with 176B parameters on hundreds of
GPUs; models below a billion reach far less, so measure theirs and give it.

The paper's own layout (Megatron-DeepSpeed: tensor and pipeline parallelism, optimizer states split over the replicas) is
one of those shown, for sizes whose GPUs it divides.

Failure: sizes, GPUs or layouts that don't exist or don't divide are refused with what was expected.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from inscape.errors import InputError
from inscape.training.architectures import SIZES, ModelConfig, build
from inscape.training.energy import FRANCE, GPUS, JEAN_ZAY, Gpu, co2_kg, energy_kwh

PAPER_TOKENS = {"560m": 341e9, "1b1": 341e9, "1b7": 341e9, "3b": 341e9, "7b1": 341e9, "176b": 366e9}
"""Tokens that the released sizes were trained on."""

PUBLISHED_SHARE = 150 / 312
"""Of a GPU's peak, in operations that the hardware does: what the paper reports of 384 A100 for 176B."""

_PER_PARAMETER = 20
_GIB = 2**30
_NODE = 8
_TIMES = ((86_400.0, "days"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))
_ENERGIES = ((1e3, "MWh"), (1.0, "kWh"), (1e-3, "Wh"))
_MASSES = ((1e3, "t"), (1.0, "kg"), (1e-3, "g"))
_PER_LOGIT = 12.0
_LOGITS_AT_ONCE = 1 << 27  # (as `inscape.training.loss` on a GPU)


@dataclass(frozen=True)
class Counts:
    """Parameters: all, of one block, of the word embedding (the output layer is the same matrix), and those of a block
    that stand in matrices."""

    all: int
    block: int
    embedding: int
    block_matrices: int

    @property
    def non_embedding(self) -> int:
        return self.all - self.embedding


@dataclass(frozen=True)
class Split:
    """How a model lies on GPUs. Their number is ``replicate * data_shards * tensor_parallel * pipeline_parallel``.

    Attributes:
        data_shards: processes over which FSDP2 splits what belongs to a parameter. 1: every process has all of it.
        reshard_after_forward: a block's parameters are freed between its forward and its backward pass.
        megatron: the paper's engine: bfloat16 weights and float32 gradients whole on every replica, only the optimizer's
            12 bytes (with its float32 weights) split over the replicas.
    """

    name: str
    replicate: int = 1
    data_shards: int = 1
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    reshard_after_forward: bool = True
    megatron: bool = False

    @property
    def gpus(self) -> int:
        return self.replicate * self.data_shards * self.tensor_parallel * self.pipeline_parallel


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU: parameters with gradients and optimizer, what is gathered for computing, activations, the loss."""

    states: float
    gathered: float
    activations: float
    loss: float

    @property
    def gib(self) -> float:
        return (self.states + self.gathered + self.activations + self.loss) / _GIB


@dataclass(frozen=True)
class Plan:
    """What training one model costs. Operations are per token; energy is that of the GPUs, with the building's overhead."""

    name: str
    config: ModelConfig
    counts: Counts
    gpus: int
    gpu: Gpu
    tokens: float
    model_flops: float
    hardware_flops: float
    tflops: float
    pue: float
    grams_per_kwh: float
    memory: tuple[tuple[Split, Memory], ...]

    @property
    def seconds(self) -> float:
        return self.tokens * self.hardware_flops / (self.gpus * self.tflops * 1e12)

    @property
    def days(self) -> float:
        return self.seconds / 86_400

    @property
    def gpu_hours(self) -> float:
        return self.seconds * self.gpus / 3600

    @property
    def mfu(self) -> float:
        """Share of the GPU's peak that goes into operations which the model needs."""
        return self.tflops / self.gpu.peak * self.model_flops / self.hardware_flops

    @property
    def kwh(self) -> float:
        return energy_kwh(self.seconds, self.gpu.watts * self.gpus, self.pue)

    @property
    def co2_kg(self) -> float:
        return co2_kg(self.kwh, self.grams_per_kwh)


def counts_of(config: ModelConfig) -> Counts:
    """Parameters of a model; no memory is taken for them."""
    with torch.device("meta"):
        model = build(config)
    block = list(model.blocks[0].parameters())
    return Counts(
        all=sum(parameter.numel() for parameter in model.parameters()),
        block=sum(parameter.numel() for parameter in block),
        embedding=model.head_weight.numel(),
        block_matrices=sum(parameter.numel() for parameter in block if parameter.dim() > 1),
    )


def flops_of(config: ModelConfig, counts: Counts, recompute: bool, length: int | None = None) -> float:
    """Operations per token of a training step, in rows of `length` tokens (default: the model's context)."""
    attention = 4 * config.width * (length or config.context)
    blocks = config.layers * (2 * counts.block_matrices + attention)
    return (4 if recompute else 3) * blocks + 3 * 2 * counts.embedding


def splits(config: ModelConfig, gpus: int) -> Iterator[Split]:
    """The layouts worth thinking of on so many GPUs, from the simplest on."""
    yield Split("a whole model on each", replicate=gpus)
    if gpus > 1:
        yield Split("FSDP2, parameters kept", data_shards=gpus, reshard_after_forward=False)
        yield Split("FSDP2", data_shards=gpus)
    if gpus > _NODE and gpus % _NODE == 0:
        yield Split("FSDP2 in a node, copies between", replicate=gpus // _NODE, data_shards=_NODE)
        if config.heads % _NODE == 0:
            yield Split(f"FSDP2 × tensor {_NODE}", data_shards=gpus // _NODE, tensor_parallel=_NODE)
    # (the embedding counts as a layer at both ends: 70 + 2 layers on 12 stages)
    if gpus % 48 == 0 and config.heads % 4 == 0 and (config.layers + 2) % 12 == 0:
        yield Split(
            "Megatron, tensor 4 × pipeline 12 (paper)",
            replicate=gpus // 48,
            tensor_parallel=4,
            pipeline_parallel=12,
            megatron=True,
        )


def memory_of(
    config: ModelConfig,
    counts: Counts,
    split: Split,
    micro_batch: int = 1,
    recompute: bool = True,
    length: int | None = None,
) -> Memory:
    """Memory of the fullest GPU of a layout, at `micro_batch` rows of `length` tokens (default: the model's context)."""
    matrices = counts.block_matrices * config.layers / split.tensor_parallel
    rest = counts.all - counts.block_matrices * config.layers  # (embedding, norms, biases: on every process)
    tokens = micro_batch * (length or config.context)
    per_block = tokens * config.width * (10 + 24 / split.tensor_parallel)
    # A pipeline keeps as many micro-batches on their way as it has stages: together all layers again.
    kept = config.layers * (2 * tokens * config.width if recompute else per_block)
    activations = kept + (per_block if recompute else 0)
    if split.megatron:
        here = counts.all / (split.tensor_parallel * split.pipeline_parallel)
        logits = _PER_LOGIT * tokens * config.vocabulary / split.tensor_parallel
        return Memory(here * (6 + 12 / split.replicate), 0.0, activations, logits)
    # The loss works on some logits at a time; it has the output layer in bfloat16 and its gradient, twice, in float32.
    loss = _PER_LOGIT * min(tokens * config.vocabulary, _LOGITS_AT_ONCE) + 10.0 * counts.embedding
    if split.data_shards == 1:
        return Memory(16.0 * (matrices + rest), 2.0 * matrices, activations, loss)
    block = counts.block_matrices / split.tensor_parallel + (counts.block - counts.block_matrices)
    at_once = 2 * block + counts.embedding if split.reshard_after_forward else matrices + rest
    gathered = 2.0 * at_once + 4.0 * block
    return Memory(16.0 * (matrices + rest) / split.data_shards, gathered, activations, loss)


def plan(
    config: ModelConfig,
    gpus: int,
    *,
    name: str = "model",
    gpu: str = "a100-80gb",
    tokens: float | None = None,
    tflops: float | None = None,
    length: int | None = None,
    micro_batch: int = 1,
    recompute: bool = True,
    pue: float = JEAN_ZAY,
    grams_per_kwh: float = FRANCE,
) -> Plan:
    """What training `config` on `gpus` GPUs costs.

    Args:
        name: of a released size, for its number of tokens, or any other.
        tokens: default: as many as the paper's for a released size, else 20 per parameter (Hoffmann et al. 2022).
        tflops: what each GPU does, recomputation included (default: the paper's share of its peak, 150 of 312).
        length: tokens of a row (default: the model's context).
        micro_batch: rows that a process works on at a time.
        recompute: activation checkpointing.

    Raises:
        InputError: no such GPU, or a number below 1.
    """
    if gpu not in GPUS:
        raise InputError(f"gpu {gpu!r}: expected one of {', '.join(GPUS)}")
    for what, number in (("gpus", gpus), ("micro_batch", micro_batch)):
        if number < 1:
            raise InputError(f"{what} {number}: expected 1 or more")
    if (tokens is not None and tokens <= 0) or (tflops is not None and tflops <= 0):
        raise InputError(f"tokens {tokens}, tflops {tflops}: expected numbers above 0")
    counts = counts_of(config)
    return Plan(
        name=name,
        config=config,
        counts=counts,
        gpus=gpus,
        gpu=GPUS[gpu],
        tokens=tokens or PAPER_TOKENS.get(name, float(_PER_PARAMETER * counts.all)),
        model_flops=flops_of(config, counts, False, length),
        hardware_flops=flops_of(config, counts, recompute, length),
        tflops=tflops or PUBLISHED_SHARE * GPUS[gpu].peak,
        pue=pue,
        grams_per_kwh=grams_per_kwh,
        memory=tuple(
            (split, memory_of(config, counts, split, micro_batch, recompute, length)) for split in splits(config, gpus)
        ),
    )


def plan_command(
    config: str,
    *,
    gpus: int = 1,
    gpu: str = "a100-80gb",
    tokens: float | None = None,
    tflops: float | None = None,
    micro_batch: int = 1,
    recompute: bool = True,
    pue: float = JEAN_ZAY,
    grams_per_kwh: float = FRANCE,
) -> None:
    """What a pretraining costs: parameters, memory per GPU by layout, operations, days and energy.

    Parameters
    ----------
    config: a YAML file (that of `inscape pretrain`, or the fields of a model), a size (nano … 176b), or `sizes` for all.
    gpus: how many.
    gpu: v100-32gb, a100-40gb, a100-80gb, h100-80gb or h200-141gb.
    tokens: to train on (default: the config's; the paper's for a released size; else 20 per parameter).
    tflops: what each GPU does, recomputation included (default: the paper's share of the peak, 150 of 312).
    micro_batch: rows that a GPU works on at a time.
    recompute: activation checkpointing.
    pue: energy of the building for one unit in the machines.
    grams_per_kwh: CO2-equivalent of the grid.
    """
    models = [_read(name) for name in PAPER_TOKENS] if config == "sizes" else [_read(config)]
    plans = [
        plan(
            model, gpus, name=name, gpu=gpu, tokens=tokens or found, tflops=tflops, length=length,
            micro_batch=micro_batch, recompute=recompute, pue=pue, grams_per_kwh=grams_per_kwh,
        )
        for name, model, found, length in models
    ]  # fmt: skip
    console = Console()
    console.print(costs(plans, gpu))
    for one in plans:
        console.print(layouts(one, gpu))


def costs(plans: Sequence[Plan], gpu: str) -> Table:
    """One line for each plan."""
    title = (
        f"{plans[0].gpus} × {gpu}, assumed to do {plans[0].tflops:.0f} TFLOP/s each (small models do less: --tflops)"
    )
    table = Table(title=title, title_justify="left")
    for column in (
        "size", "parameters M", "without embedding M", "tokens G", "GFLOP / token", "… recomputed",
        "MFU", "time", "GPU hours", "energy", "CO2",
    ):  # fmt: skip
        table.add_column(column, justify="left" if column == "size" else "right")
    for one in plans:
        numbers = (
            f"{one.counts.all / 1e6:,.1f}", f"{one.counts.non_embedding / 1e6:,.1f}", _short(one.tokens / 1e9),
            _short(one.model_flops / 1e9), _short(one.hardware_flops / 1e9), f"{one.mfu:.0%}", _in(one.seconds, _TIMES),
            _short(one.gpu_hours), _in(one.kwh, _ENERGIES), _in(one.co2_kg, _MASSES),
        )  # fmt: skip
        table.add_row(one.name, *numbers)
    return table


def layouts(one: Plan, gpu: str) -> Table:
    """One line for each layout of a plan."""
    table = Table(title=f"{one.name}: GiB per GPU, of {one.gpu.memory:g}", title_justify="left")
    for column in ("layout", "parameters and optimizer", "gathered", "activations", "loss", "together", "fits"):
        table.add_column(column, justify="left" if column == "layout" else "right")
    for split, memory in one.memory:
        parts = (memory.states, memory.gathered, memory.activations, memory.loss)
        fits = "yes" if memory.gib <= 0.9 * one.gpu.memory else "no"
        table.add_row(split.name, *(f"{part / _GIB:.1f}" for part in parts), f"{memory.gib:.1f}", fits)
    return table


def _in(number: float, units: Sequence[tuple[float, str]]) -> str:
    """A number in the largest unit of which it is one or more."""
    size, name = next((unit for unit in units if number >= unit[0]), units[-1])
    return f"{_short(number / size)} {name}"


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 1000 else f"{number:.3g}"


def _read(source: str) -> tuple[str, ModelConfig, float | None, int | None]:
    """Name, model, tokens to train on and tokens of a row of what stands in a config file, or of a size."""
    if source in SIZES:
        return source, SIZES[source], None, None
    path = Path(source)
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"plan {source}: {error.strerror}; expected a YAML file, sizes, or one of {', '.join(SIZES)}"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"plan {source}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(found, dict):
        raise InputError(f"plan {source}: expected fields of a config (key: value), found {type(found).__name__}")
    length = found.get("length")
    return path.stem, _model(found, source), _tokens(found), length if isinstance(length, int) and length > 0 else None


def _model(found: dict[str, Any], source: str) -> ModelConfig:
    given = found.get("model", {key: value for key, value in found.items() if key in ModelConfig.model_fields})
    if isinstance(given, str):
        if given not in SIZES:
            raise InputError(f"plan {source}: model {given!r}, expected one of {', '.join(SIZES)}, or its fields")
        return SIZES[given]
    if not given:
        raise InputError(f"plan {source}: no model in it, expected model: with a size, or its width, layers and heads")
    try:
        return ModelConfig(**given)
    except (ValidationError, TypeError) as error:
        first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise InputError(f"plan {source}: {first}") from error


def _tokens(found: dict[str, Any]) -> float | None:
    """The budget of a pretraining config, where it is tokens or steps; the growing of the batch is left out."""
    if isinstance(found.get("tokens"), int | float):
        return float(found["tokens"])
    factors = [found.get(key) for key in ("steps", "rows", "length")]
    return float(math.prod(factors)) if all(isinstance(factor, int) for factor in factors) else None  # type: ignore[arg-type]
