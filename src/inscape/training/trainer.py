"""The training loop: AdamW on whole steps, in one process or in many, with checkpoints from which a run goes on exactly.

A step. Every process makes the step's `Batch`, works on its rows in micro-batches whose gradients add up in float32, and
the gradients of all processes are summed. The loss is the weighted mean over the whole step, however its rows are
divided. Then the norm of the gradient is clipped and AdamW takes its step, unless the step is a *spike*: a gradient
norm or a loss far above the recent median, or no number at all. The update is then left out, counted and written down.

The folder of a run::

    training.json            what is trained on what; a run with anything else is refused
    metrics.jsonl            one line per step
    state/step-N/            model, optimizer and counters after N steps (torch.distributed.checkpoint): to go on from
    checkpoints/step-N/      Hugging Face folders, at step 0, at powers of two and at every N steps: to study
    tensorboard/             if asked for

A state is written as `step-N.part` and renamed when it is whole, so a kill or a full disk leaves the one before. The batch
of a step depends on the step alone: a run that is started again takes the same steps, in any number of processes.

Failure: more than `spikes_allowed` spikes in a row end the run with an error that says so; nothing is lost.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from inscape.errors import InputError
from inscape.training.architectures import TrainableLM, save_hf
from inscape.training.batches import Batch, Batches, share
from inscape.training.loss import token_loss
from inscape.training.metrics_log import MetricsLog, StepMetrics, read_metrics
from inscape.training.parallel import Parallel, by_mesh
from inscape.training.run_folder import agreed, checked_identity, latest_state, load_run, save_run
from inscape.training.schedule import Schedule
from inscape.training.spikes import Spikes


class Optimisation(BaseModel):
    """How a model is trained, apart from how long."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight_decay: float = Field(default=0.1, ge=0, description="on matrices and embeddings, not on norms and biases")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="AdamW's decay of the first moment")
    beta2: float = Field(default=0.95, ge=0, lt=1, description="AdamW's decay of the second moment")
    epsilon: float = Field(default=1e-8, gt=0, description="AdamW's epsilon")
    clip: float = Field(default=1.0, gt=0, description="largest norm of the gradient")
    micro_rows: int | None = Field(
        default=None, ge=1, description="rows that one process works on at a time; none: all of its rows"
    )
    dtype: Literal["fp32", "bf16"] = Field(
        default="fp32", description="of matrix products; weights, gradients and AdamW stay fp32"
    )
    spike_factor: float = Field(
        default=20.0, gt=1, description="a gradient norm of so many times the recent median is a spike: no update"
    )
    spikes_allowed: int = Field(default=20, ge=1, description="spikes in a row before the run ends with an error")
    save_seconds: float = Field(default=120.0, ge=0, description="time between states from which a run can go on")
    export_every: int | None = Field(
        default=None, ge=1, description="a Hugging Face folder every so many steps, beside those at powers of two"
    )
    export_powers: bool = Field(default=True, description="Hugging Face folders at step 0 and at powers of two")
    tensorboard: bool = Field(default=False, description="also log to tensorboard/ (needs the extra logs)")
    compiled: bool = Field(default=False, description="compile each block (torch.compile): worth it on a GPU")


#: Fields that change how a run is carried out, not what it is: they may differ when it goes on.
BY_THE_WAY = frozenset({"micro_rows", "spikes_allowed", "save_seconds", "tensorboard", "compiled"})


class TrainingConfig(Optimisation):
    """How a model is trained on a stream of batches."""

    schedule: Schedule = Field(default_factory=Schedule, description="steps, rows and learning rate")

    def exports(self) -> list[int]:
        """The numbers of steps after which a Hugging Face folder is written; the last step is always one."""
        steps = self.schedule.steps
        asked = {steps}
        if self.export_powers:
            asked |= {0, *(2**power for power in range(steps.bit_length()) if 2**power <= steps)}
        if self.export_every:
            asked |= set(range(self.export_every, steps, self.export_every))
        return sorted(asked)


_MOST = 0.9
"""If fewer of the targets count than this share, the others' logits aren't computed."""


@dataclass(frozen=True)
class Trained:
    """What came of a run.

    Attributes:
        steps: optimizer steps, spikes included.
        tokens: positions that the model saw, padding included.
        losses: weighted mean loss of every step, in nats; NaN where it was no number.
        skipped: steps (counted from 1) whose update was left out.
        tokens_per_second: median over steps, all processes together.
        mfu: the operations that a step needs by the matmul rate; None where `train` was told neither.
    """

    steps: int
    tokens: int
    losses: list[float]
    skipped: list[int]
    tokens_per_second: float
    mfu: float | None


def train(
    model: nn.Module,
    batches: Batches,
    config: TrainingConfig,
    folder: Path,
    *,
    identity: Mapping[str, Any],
    parallel: Parallel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    flops_per_token: float | None = None,
    matmul_rate: float | None = None,
    advance: Callable[[int], None] | None = None,
) -> Trained:
    """Train `model` in place, going on from the last state in `folder`; nothing is done where the run is finished.

    Args:
        model: one of `inscape.training.architectures`, not yet cut over processes.
        batches: the batch of a step; see `inscape.training.batches`.
        config: see there.
        folder: of this run (see the module); made if need be.
        identity: whatever the result depends on beside `config`: data, model, seeds. JSON values.
        parallel: the launch; ``Parallel.start()`` without torchrun is this process alone.
        tokenizer: saved in the Hugging Face folders.
        flops_per_token, matmul_rate: for `mfu`; see `architectures.flops_per_token` and `machine.matmul_rate`.
        advance: told how many steps were just done.

    Raises:
        InputError: `folder` holds a run of something else; training diverged; a batch has fewer rows than processes, or no
            target that counts. RunWriteError: the folder can't be written; the last state is still there.
    """
    asked = {"training": config.model_dump(mode="json", exclude=set(BY_THE_WAY)), **identity}
    checked_identity(folder, asked, parallel)
    writer = _Writer(model, config, folder, parallel, tokenizer)
    model = parallel.apply(model).train()
    if config.compiled:
        for block in cast(nn.ModuleList, model.blocks):
            block.compile()
    parameters = list(model.parameters())
    optimizer = adamw(model, config)
    done, counters = writer.resume(model, optimizer)
    tokens, spikes = counters["tokens"], Spikes(config.spike_factor, counters["spikes"])
    metrics = [line for line in read_metrics(folder) if line.step <= done]
    steps = config.schedule.steps
    if advance is not None and done:
        advance(done)
    with writer.logging(done):
        if done == 0:
            writer.export(model, 0)
        following = batches(done) if done < steps else None
        ended = time.monotonic()
        for step in range(done, steps):
            batch = following
            assert batch is not None
            rate = config.schedule.rate_at(step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            part = backward(model, batch, config, parallel)
            norm = parallel.grad_norm_and_clip(parameters, config.clip)
            total = parallel.sum(part)
            # A GPU is still at work now: time to make the next batch.
            following = batches(step + 1) if step + 1 < steps else None
            loss, grad_norm = torch.stack((total, norm.to(total.dtype))).tolist()
            spike = spikes.is_spike(step + 1, loss, grad_norm)
            if not spike:
                optimizer.step()
            optimizer.zero_grad()

            tokens += batch.n_tokens
            now = time.monotonic()
            speed, ended = batch.n_tokens / (now - ended), now
            mfu = speed * (flops_per_token or math.nan) / ((matmul_rate or math.nan) * parallel.world)
            metrics.append(StepMetrics(step + 1, tokens, loss, grad_norm, rate, speed, mfu, spike))
            writer.log(metrics[-1])
            if spikes.in_a_row > config.spikes_allowed:
                raise InputError(
                    f"training diverged: {spikes.in_a_row} spikes in a row up to step {step + 1} (loss {loss:.3g}, gradient "
                    f"norm {grad_norm:.3g}), expected fewer; try a learning_rate below {config.schedule.learning_rate}"
                )
            writer.export(model, step + 1)
            if writer.save_if_due(model, optimizer, step + 1, {"tokens": tokens, "spikes": spikes.state()}):
                ended = time.monotonic()
            if advance is not None:
                advance(1)
    model.eval()
    return Trained(
        steps=steps,
        tokens=tokens,
        losses=[line.loss for line in metrics],
        skipped=spikes.skipped,
        tokens_per_second=statistics.median(line.tokens_per_second for line in metrics),
        mfu=_number(statistics.median(line.mfu for line in metrics)),
    )


def batch_loss(model: nn.Module, batch: Batch, divisor: float, device: torch.device | str = "cpu") -> Tensor:
    """Sum of weight * cross-entropy over the rows of a batch, divided by `divisor`: a scalar to call `backward` on.

    The output layer runs only where a target counts, if many don't.

    Args:
        model: gives hidden states from ``(ids, segments)`` and has ``head_weight``.
        batch: on the CPU.
        divisor: the weight of the whole step.
    """
    counted_N = batch.weights.flatten().nonzero().squeeze(1)
    some = len(counted_N) < _MOST * batch.n_tokens
    batch = batch.to(device)
    hidden_ND = model(batch.ids, batch.segments).flatten(0, 1)
    targets_N, weights_N = batch.targets.flatten(), batch.weights.flatten() / divisor
    if some:
        counted_N = counted_N.to(device)
        hidden_ND, targets_N, weights_N = hidden_ND[counted_N], targets_N[counted_N], weights_N[counted_N]
    return token_loss(hidden_ND, model.head_weight, targets_N, weights_N)  # type: ignore[arg-type]


def backward(model: nn.Module, batch: Batch, config: TrainingConfig, parallel: Parallel) -> Tensor:
    """Add this process's part of the gradient of a step's mean loss; returns its part of the loss, no longer attached.

    Raises:
        InputError: fewer rows than processes, or no target counts.
    """
    if batch.rows < parallel.data_ranks:
        raise InputError(f"a step of {batch.rows} rows for {parallel.data_ranks} processes, expected one row for each")
    divisor = float(batch.weights.sum(dtype=torch.float64))
    if divisor <= 0:
        raise InputError("a step without a target that counts, expected positive weights")
    mine = batch.part(*share(batch.rows, parallel.data_rank, parallel.data_ranks))
    # The same number in all processes, since each micro-batch is a conversation between them.
    n = math.ceil(math.ceil(batch.rows / parallel.data_ranks) / (config.micro_rows or batch.rows))
    total = torch.zeros((), device=parallel.device)
    for i in range(n):
        first, last = share(mine.rows, i, n)
        # A process that is out of rows computes one that counts nothing.
        rows = mine.part(first, last) if last > first else _silent(mine.part(0, 1))
        parallel.last_micro_batch(model, i == n - 1)
        with parallel.precision(config.dtype):
            loss = batch_loss(model, rows, divisor, parallel.device)
        loss.backward()
        total += loss.detach()
    return total


def adamw(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW in its fused form; weight decay on matrices only."""
    groups = [
        {"params": group, "weight_decay": config.weight_decay if matrices else 0.0}
        for matrices in (True, False)
        for group in by_mesh(parameter for parameter in model.parameters() if (parameter.dim() > 1) == matrices)
    ]
    rate = config.schedule.rate_at(0)
    return torch.optim.AdamW(groups, lr=rate, betas=(config.beta1, config.beta2), eps=config.epsilon, fused=True)


class _Writer:
    """All that a run writes: states, Hugging Face folders, the log. Collective where processes must act together."""

    def __init__(
        self,
        model: nn.Module,
        config: TrainingConfig,
        folder: Path,
        parallel: Parallel,
        tokenizer: PreTrainedTokenizerBase | None,
    ) -> None:
        self._config, self._folder, self._parallel, self._tokenizer = config, folder, parallel, tokenizer
        self._hf_config = cast(TrainableLM, model).hf_config
        self._exports = set(config.exports())
        self._log: MetricsLog | None = None
        self._saved = time.monotonic()

    def resume(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, dict[str, Any]]:
        """Steps done before, and the counters; model and optimizer are as they were then."""
        done = agreed(self._parallel, latest_state(self._folder) or 0)
        if done == 0:
            return 0, {"tokens": 0, "spikes": None}
        return done, load_run(self._folder, done, model, optimizer, self._parallel)

    @contextlib.contextmanager
    def logging(self, done: int) -> Iterator[None]:
        """Keep the log open, in the first process."""
        if not self._parallel.is_first:
            yield
            return
        self._log = MetricsLog(self._folder, done, self._config.tensorboard)
        try:
            yield
        finally:
            self._log.close()

    def log(self, metrics: StepMetrics) -> None:
        if self._log is not None:
            self._log.write(metrics)

    def export(self, model: nn.Module, step: int) -> None:
        """Write a Hugging Face folder, if one is wanted after this step."""
        if step not in self._exports:
            return
        weights = self._parallel.full_state(model)
        if self._parallel.is_first:
            save_hf(weights, self._hf_config, self._tokenizer, self._folder / "checkpoints" / f"step-{step}")

    def save_if_due(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, counters: Mapping[str, Any]
    ) -> bool:
        """Write a state after the last step, and when the last one is old; whether it did."""
        due = step == self._config.schedule.steps or time.monotonic() - self._saved > self._config.save_seconds
        if not agreed(self._parallel, int(due)):
            return False
        if self._log is not None:
            self._log.flush()
        save_run(self._folder, step, counters, model, optimizer, self._parallel)
        self._saved = time.monotonic()
        return True


def _silent(batch: Batch) -> Batch:
    return Batch(batch.ids, batch.targets, torch.zeros_like(batch.weights), batch.segments)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
