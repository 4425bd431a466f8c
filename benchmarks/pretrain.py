"""What a pretraining step costs: tokens per second of ours, of the Hugging Face Trainer, and of a bare PyTorch loop.

One shape, one set of rows, one process. In each turn every arm takes some steps, in an order that alternates; a ratio is
ours over the other's in one turn, the median of the turns. Both in wall time and in processor time, which other jobs on
the machine disturb less. AdamW (fused), clipping at 1 and no dropout in all arms; in bf16 all use autocast.

========== ==========================================================================================================
ours       the trainer's own step (`training.trainer.backward`, clipping, AdamW) on `training.bloom`
packed     the same with three documents in each row, kept apart by the mask; no other arm does that
no trainer the same model and loss in a loop of five lines: what the trainer itself costs
bare       plain modules, scaled_dot_product_attention with the ALiBi bias, cross_entropy over all logits, the same loop
hf         `transformers.Trainer` on `BloomForCausalLM`, from the end of its first step in a turn to the end of its last
========== ==========================================================================================================

`share` is the operations that the step needs (`architectures.flops_per_token`) per second, by the machine's rate in square
matrix products of the same dtype, measured in every turn, in the same kind of time.

    python benchmarks/pretrain.py [--size micro mini] [--dtype fp32 bf16] [--rows 16] [--length 256] [--threads 1]
                                  [--repeat 5] [--steps 2] [--arms ours hf ...] [--json FILE]
"""

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # (before torch: idle threads would count as work)

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BloomForCausalLM, Trainer, TrainerCallback, TrainingArguments

from inscape.training.architectures import SIZES, ModelConfig, build, flops_per_token
from inscape.training.batches import Batch
from inscape.training.bloom import alibi_slopes
from inscape.training.loss import token_loss
from inscape.training.parallel import Parallel
from inscape.training.trainer import TrainingConfig, adamw, backward

RATE, CLIP = 1e-4, 1.0
Steps = Callable[[int], tuple[float, float]]
"""Takes so many steps; wall seconds and processor seconds."""


def rows_of(config: ModelConfig, rows: int, length: int) -> Tensor:
    """Token ids as frequent as words are, int64 [rows, length + 1]."""
    drawn = np.random.default_rng(0).zipf(1.2, size=(rows, length + 1)) + 3
    return torch.from_numpy(drawn % config.vocabulary)


def timed(steps: Callable[[int], None]) -> Steps:
    def run(number: int) -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        steps(number)
        return time.perf_counter() - wall, time.process_time() - cpu

    return run


def precision(dtype: str) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16")


def ours(config: ModelConfig, ids: Tensor, dtype: str, packed: bool = False) -> Steps:
    parallel, training = Parallel.start(), TrainingConfig(dtype=dtype)
    model = parallel.apply(build(config)).train()
    optimizer, parameters = adamw(model, training), list(model.parameters())
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    segments = None
    if packed:
        segments = (torch.arange(inputs.shape[1]) * 3 // inputs.shape[1]).to(torch.int32).expand_as(inputs)
    batch = Batch(inputs, targets, torch.ones(targets.shape), segments)

    def steps(number: int) -> None:
        for _ in range(number):
            backward(model, batch, training, parallel)
            parallel.grad_norm_and_clip(parameters, training.clip)
            optimizer.step()
            optimizer.zero_grad()

    return timed(steps)


def looped(model: nn.Module, loss: Callable[[], Tensor], dtype: str) -> Steps:
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)

    def steps(number: int) -> None:
        for _ in range(number):
            with precision(dtype):
                value = loss()
            value.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()

    return timed(steps)


def no_trainer(config: ModelConfig, ids: Tensor, dtype: str) -> Steps:
    model = build(config)
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].flatten()
    weights = torch.full(targets.shape, 1 / len(targets))
    return looped(model, lambda: token_loss(model(inputs).flatten(0, 1), model.head_weight, targets, weights), dtype)


class Bare(nn.Module):
    """A decoder of BLOOM's shape as one writes it down in a quarter of an hour."""

    def __init__(self, config: ModelConfig, length: int) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.words = nn.Embedding(config.vocabulary, width)
        nn.init.normal_(self.words.weight, std=config.std)
        self.first, self.last = nn.LayerNorm(width), nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(width),
                    "qkv": nn.Linear(width, 3 * width),
                    "out": nn.Linear(width, width),
                    "norm2": nn.LayerNorm(width),
                    "up": nn.Linear(width, 4 * width),
                    "down": nn.Linear(4 * width, width),
                }
            )
            for _ in range(config.layers)
        )
        at = torch.arange(length)
        distance = (at[:, None] - at).float()
        bias = -alibi_slopes(config.heads)[:, None, None] * distance
        self.register_buffer("bias", bias.masked_fill(distance < 0, -math.inf)[None])

    def forward(self, ids: Tensor) -> Tensor:
        x = self.first(self.words(ids))
        B, T, D = x.shape
        for block in self.blocks:
            q, k, v = block["qkv"](block["norm1"](x)).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)
            x = x + block["out"](attended.transpose(1, 2).reshape(B, T, D))
            x = x + block["down"](F.gelu(block["up"](block["norm2"](x)), approximate="tanh"))
        return F.linear(self.last(x), self.words.weight)


def bare(config: ModelConfig, ids: Tensor, dtype: str) -> Steps:
    model = Bare(config, ids.shape[1] - 1)
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].flatten()
    return looped(model, lambda: F.cross_entropy(model(inputs).float().flatten(0, 1), targets), dtype)


class Clock(TrainerCallback):
    """The time at the end of each step."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append((time.perf_counter(), time.process_time()))


def hf(config: ModelConfig, ids: Tensor, dtype: str) -> Steps:
    model = BloomForCausalLM(build(config).hf_config)
    model.config.use_cache = False
    data = [{"input_ids": row, "labels": row} for row in ids[:, :-1]]
    folder = tempfile.mkdtemp()

    def run(number: int) -> tuple[float, float]:
        clock = Clock()
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=number + 1,
            per_device_train_batch_size=len(data),
            learning_rate=RATE,
            optim="adamw_torch_fused",
            max_grad_norm=CLIP,
            bf16=dtype == "bf16",
            use_cpu=True,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
        )
        Trainer(model=model, args=arguments, train_dataset=data, callbacks=[clock]).train()
        (wall, cpu), (wall_end, cpu_end) = clock.ends[0], clock.ends[-1]
        return wall_end - wall, cpu_end - cpu

    return run


def products(dtype: str) -> Steps:
    """Square matrix products, and how long they take."""
    left, right = (torch.randn(1024, 1024).to(torch.bfloat16 if dtype == "bf16" else torch.float32) for _ in range(2))

    def steps(number: int) -> None:
        for _ in range(number):
            left @ right

    return timed(steps)


ARMS: dict[str, Callable[[ModelConfig, Tensor, str], Steps]] = {
    "ours": ours,
    "packed": lambda config, ids, dtype: ours(config, ids, dtype, packed=True),
    "no trainer": no_trainer,
    "bare": bare,
    "hf": hf,
}
PRODUCTS = 20


def measure(size: str, dtype: str, rows: int, length: int, repeat: int, number: int, arms: list[str]) -> dict[str, Any]:
    config = SIZES[size]
    ids = rows_of(config, rows, length)
    running = {name: ARMS[name](config, ids, dtype) for name in arms}
    multiply = products(dtype)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in [*arms, "products"]}
    for turn in range(repeat + 1):
        for name in arms[:: 1 if turn % 2 else -1]:
            taken = running[name](number)
            if turn:  # (the first is for warming up)
                seconds[name].append(taken)
        if turn:
            seconds["products"].append(min(multiply(PRODUCTS) for _ in range(3)))
    tokens = number * rows * length
    result: dict[str, Any] = {"size": size, "dtype": dtype, "rows": rows, "length": length, "arms": {}}
    for at, clock in enumerate(("wall", "cpu")):
        rate = 2 * 1024**3 * PRODUCTS / min(taken[at] for taken in seconds["products"])
        result[f"matmul_gflops_{clock}"] = rate / 1e9
        for name in arms:
            speeds = [tokens / taken[at] for taken in seconds[name]]
            ratios = [other[at] / mine[at] for other, mine in zip(seconds[name], seconds[arms[0]], strict=True)]
            row = result["arms"].setdefault(name, {})
            row[f"tokens_per_second_{clock}"] = statistics.median(speeds)
            row[f"share_{clock}"] = statistics.median(speeds) * flops_per_token(config, length) / rate
            row[f"{arms[0]}_over_this_{clock}"] = statistics.median(ratios)
            row[f"each_{clock}"] = [taken[at] for taken in seconds[name]]
    return result


def table(result: dict[str, Any], first: str) -> str:
    lines = [
        f"\n{result['size']}, {result['dtype']}, {result['rows']} x {result['length']} tokens; "
        f"matrix products {result['matmul_gflops_wall']:.0f} GFLOP/s "
        f"(per processor second: {result['matmul_gflops_cpu']:.0f})\n",
        f"| arm | tokens/s | per processor second | {first} / arm, wall | {first} / arm, cpu | share, wall | share, cpu |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in result["arms"].items():
        cells = [f"{row[f'tokens_per_second_{clock}']:,.0f}" for clock in ("wall", "cpu")]
        cells += [f"{row[f'{first}_over_this_{clock}']:.2f}" for clock in ("wall", "cpu")]
        cells += [f"{row[f'share_{clock}']:.0%}" for clock in ("wall", "cpu")]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", default=["micro", "mini"], choices=list(SIZES))
    parser.add_argument("--dtype", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--rows", type=int, default=16, help="rows of a step (default 16)")
    parser.add_argument("--length", type=int, default=256, help="tokens of a row (default 256)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--repeat", type=int, default=5, help="timed turns (default 5)")
    parser.add_argument("--steps", type=int, default=2, help="steps of an arm in a turn (default 2)")
    parser.add_argument(
        "--arms", nargs="+", default=list(ARMS), choices=list(ARMS), help="the first is compared with all"
    )
    parser.add_argument("--json", type=Path, help="write the numbers there as well")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = []
    for size in args.size:
        for dtype in args.dtype:
            results.append(measure(size, dtype, args.rows, args.length, args.repeat, args.steps, args.arms))
            print(table(results[-1], args.arms[0]), flush=True)
    if args.json is not None:
        record = {"threads": args.threads, "torch": torch.__version__, "results": results}
        temporary = args.json.with_name(args.json.name + ".part")
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, args.json)


if __name__ == "__main__":
    main()
