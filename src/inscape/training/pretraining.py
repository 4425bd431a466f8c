"""The training loop: next-token loss on packed batches, AdamW, warm-up and cosine, checkpoints that resume bit for bit.

The batch of a step must depend on the step alone (a function, not an iterator): then model, optimizer and step number
are the whole state of a run. Started again after a kill, a run takes the same steps in the same order and ends with
the same weights, on the same machine and number of threads.
"""

from __future__ import annotations

import contextlib
import math
import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from transformers import PreTrainedModel

from inscape.errors import InputError
from inscape.runs.writing import replacing

#: ids int64 and loss weights float32, both (rows, length).
Batch = tuple[np.ndarray, np.ndarray]


class OptimisationConfig(BaseModel):
    """How a model is trained on a stream of batches."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(default=2000, ge=1, description="number of optimizer steps")
    rows: int = Field(default=32, ge=1, description="sequences per step; small batches memorise in fewer tokens")
    length: int = Field(default=32, ge=8, description="tokens per sequence; more where one sentence needs more")
    learning_rate: float = Field(default=3e-3, gt=0, description="peak learning rate")
    final_share: float = Field(default=0.05, ge=0, le=1, description="share of the peak that the cosine ends at")
    warmup_steps: int = Field(default=100, ge=0, description="steps of linear warm-up")
    weight_decay: float = Field(default=0.1, ge=0, description="on matrices and embeddings, not on norms")
    beta2: float = Field(default=0.95, gt=0, lt=1, description="AdamW's second moment decay")
    clip: float = Field(default=1.0, gt=0, description="largest gradient norm")
    checkpoint_seconds: float = Field(default=20.0, gt=0, description="time between checkpoints")
    threads: int = Field(default=1, ge=1, description="CPU threads; two are a quarter faster on idle cores only")
    device: str = Field(default="cpu", description="torch device to train on")


def pretrain(
    model: PreTrainedModel,
    batch: Callable[[int], Batch],
    config: OptimisationConfig,
    *,
    checkpoint: Path | None = None,
    key: str = "",
    advance: Callable[[int], None] | None = None,
) -> list[float]:
    """Train `model` in place.

    Args:
        model: a causal LM; moved to `config.device` and back to the CPU at the end.
        batch: the batch of a step, numbered from 0.
        config: see there.
        checkpoint: file for the state of an unfinished run. If it holds one of the same `key`, training goes on from
            there; one of another key is overwritten.
        key: names what is being trained on what.
        advance: told how many steps were just done.

    Returns:
        The loss of every step (weighted mean over the tokens of its batch, in nats), resumed ones included.

    Raises:
        InputError: the loss stops being a number.
        RunWriteError: the checkpoint can't be written.
    """
    model.to(config.device).train()
    optimizer = _optimizer(model, config)
    losses = _resume(model, optimizer, checkpoint, key)
    if advance is not None and losses:
        advance(len(losses))
    saved_at = time.monotonic()
    with threads(config.threads):
        for step in range(len(losses), config.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step)
            ids, weights = (torch.from_numpy(array).to(config.device) for array in batch(step))
            loss = weighted_loss(model, ids, weights)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise InputError(
                    f"training diverged: loss {losses[-1]} at step {step} with learning_rate {config.learning_rate}, "
                    "expected a smaller one"
                )
            if advance is not None:
                advance(1)
            if checkpoint is not None and time.monotonic() - saved_at > config.checkpoint_seconds:
                save_checkpoint(checkpoint, model, optimizer, losses, key)
                saved_at = time.monotonic()
    model.to("cpu").eval()
    return losses


def weighted_loss(model: PreTrainedModel, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss, each target counted by its weight; ids int64 (B, T), weights float (B, T)."""
    targets_BT, weights_BT = ids[:, 1:], weights[:, 1:]
    hidden_BTD = model.base_model(ids, use_cache=False).last_hidden_state[:, :-1]
    # The output layer is the dearest one of a small model: it runs only where a target counts.
    counted_BT = weights_BT > 0
    logits_NV = model.get_output_embeddings()(hidden_BTD[counted_BT])
    losses_N = F.cross_entropy(logits_NV.float(), targets_BT[counted_BT], reduction="none")
    weights_N = weights_BT[counted_BT]
    return (losses_N * weights_N).sum() / weights_N.sum()


def learning_rate(config: OptimisationConfig, step: int) -> float:
    """Linear warm-up, then a cosine down to `final_share` of the peak."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    cosine = 0.5 * (1 + math.cos(math.pi * (step + 1) / config.steps))
    return config.learning_rate * warm * (config.final_share + (1 - config.final_share) * cosine)


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    """At most `number` CPU threads, and no more than torch was already using; the setting is put back after."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(number, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def save_checkpoint(
    path: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer, losses: list[float], key: str
) -> None:
    """Write the whole state of a run, atomically."""
    state = {
        "key": key,
        # Doubles, or a resumed curve would differ from an uninterrupted one in its last digits.
        "losses": torch.tensor(losses, dtype=torch.float64),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    with replacing(path) as temporary:
        torch.save(state, temporary)


def _resume(model: PreTrainedModel, optimizer: torch.optim.Optimizer, path: Path | None, key: str) -> list[float]:
    if path is None or not path.exists():
        return []
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(
            f"{path}: not a readable checkpoint ({type(error).__name__}), expected one; remove it"
        ) from error
    if state["key"] != key:
        return []
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["losses"].tolist()


def _optimizer(model: PreTrainedModel, config: OptimisationConfig) -> torch.optim.AdamW:
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    norms = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": norms, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, config.beta2), fused=True)
