"""Multitask prompted finetuning: examples packed into rows, and a loss on their targets alone.

Rows hold several examples, each in a *segment* of its own: a model that masks attention between segments sees every example
as if it stood alone. An example of n input and m target tokens (the last of which ends the text) takes n + m − 1 positions:
position t is given token t and predicts token t + 1, so that the last m positions predict the target.

Weights say what counts (BLOOMZ, Muennighoff et al. 2023, §2 and its released code):

- *targets only*: predicting the input counts nothing. Targets are known by where they begin, not found again as runs of
  masked tokens, which two adjacent examples would merge;
- *normalised*: the weights of an example add up to one, 1/m each, so that every example counts alike. Without it a long
  answer outweighs hundreds of one-word ones.

Examples that don't fit a row are left out and counted, never cut: a cut target would teach to stop early.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from inscape.errors import InputError
from inscape.training.architectures import load_hf
from inscape.training.batches import Batch, Batches
from inscape.training.parallel import Layout, Parallel
from inscape.training.schedule import Schedule
from inscape.training.trainer import Trained, TrainingConfig, train

_OPEN_ROWS = 32


class FinetuningConfig(BaseModel):
    """How a model is finetuned on packed examples."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(default=250, ge=1, description="optimizer steps (paper: 3,100; the released model: 498)")
    rows: int = Field(default=16, ge=1, description="rows of a step (paper: 2,048)")
    length: int = Field(default=256, ge=8, description="tokens of a row (paper: 2,048)")
    learning_rate: float = Field(
        default=1e-3, gt=0, description="constant (paper: 2e-5, for 560 M parameters and more)"
    )
    weight_decay: float = Field(default=1e-4, ge=0, description="on matrices (paper: 1e-4)")
    targets_only: bool = Field(default=True, description="the loss is on targets, not on inputs (paper: yes)")
    normalise: bool = Field(default=True, description="every target counts alike, however long (paper: yes)")
    dtype: Literal["fp32", "bf16"] = Field(default="fp32", description="of matrix products")
    seed: int = Field(default=0, ge=0, description="of the order of rows")

    @property
    def training(self) -> TrainingConfig:
        """The trainer's settings: constant rate, no warm-up, the other values of pretraining, and one model at the end."""
        schedule = Schedule(
            steps=self.steps, rows=self.rows, learning_rate=self.learning_rate, shape="constant", warmup_share=0
        )
        return TrainingConfig(schedule=schedule, weight_decay=self.weight_decay, dtype=self.dtype, export_powers=False)


class Tokens(NamedTuple):
    """An example's ids; those of the target end with the token that ends a text."""

    input: list[int]
    target: list[int]

    @property
    def positions(self) -> int:
        """How many positions of a row it takes."""
        return len(self.input) + len(self.target) - 1


def pack(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Which items stand in which row: first fit, in the order given, among the last 32 rows that are open.

    Args:
        lengths: of the items, each at least 1 and at most ``room``.
        room: of a row.

    Returns:
        Rows of item numbers: every item once, in rows whose lengths add up to at most ``room``.

    Raises:
        InputError: an item that fits no row.
    """
    rows: list[list[int]] = []
    left: list[int] = []
    for item, length in enumerate(lengths):
        if not 1 <= length <= room:
            raise InputError(f"packing: item {item} has length {length}, expected 1 to {room}")
        first = max(0, len(rows) - _OPEN_ROWS)
        row = next((r for r in range(first, len(rows)) if left[r] >= length), None)
        if row is None:
            rows.append([])
            left.append(room)
            row = len(rows) - 1
        rows[row].append(item)
        left[row] -= length
    return rows


@dataclass(frozen=True)
class Rows:
    """Packed rows, all of one length T.

    Attributes:
        ids, targets: int64 [R, T]; where nothing stands, the padding id.
        weights: float32 [R, T], of predicting ``targets``; 0 where nothing is learned.
        segments: int32 [R, T], number of the example in its row, from 0; padding is a segment of its own at the end.
        examples: which examples stand in each row, in the order of their segments.
        left_out: numbers of the examples that fit no row.
    """

    ids: Tensor
    targets: Tensor
    weights: Tensor
    segments: Tensor
    examples: list[list[int]]
    left_out: list[int]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def filled(self) -> float:
        """Share of positions that hold an example."""
        counts_R = torch.tensor([len(row) for row in self.examples])
        return float((self.segments < counts_R[:, None]).float().mean())

    def batch(self, numbers: np.ndarray) -> Batch:
        """Some of the rows, as the trainer takes them."""
        at = torch.from_numpy(numbers)
        return Batch(self.ids[at], self.targets[at], self.weights[at], self.segments[at])


def pack_examples(
    examples: Sequence[Tokens],
    length: int,
    *,
    pad_id: int,
    targets_only: bool = True,
    normalise: bool = True,
) -> Rows:
    """Rows of ``length`` positions that hold the examples, in about their order.

    Args:
        targets_only: inputs count nothing; otherwise every token but the first of an example is learned.
        normalise: an example's weights add up to 1; otherwise each learned token has weight 1.

    Raises:
        InputError: an example without input or target, or none that fits.
    """
    for number, one in enumerate(examples):
        if not one.input or not one.target:
            raise InputError(
                f"example {number}: {len(one.input)} input and {len(one.target)} target tokens, expected some"
            )
    fit = [number for number, one in enumerate(examples) if one.positions <= length]
    if not fit:
        shortest = min((one.positions for one in examples), default=0)
        raise InputError(
            f"rows of {length} tokens hold none of {len(examples)} examples (the shortest takes {shortest}): "
            "expected longer rows"
        )
    packed = [[fit[item] for item in row] for row in pack([examples[number].positions for number in fit], length)]
    shape = len(packed), length
    ids, targets = np.full(shape, pad_id, np.int64), np.full(shape, pad_id, np.int64)
    weights, segments = np.zeros(shape, np.float32), np.zeros(shape, np.int32)
    for r, row in enumerate(packed):
        at = 0
        for segment, number in enumerate(row):
            one = examples[number]
            whole = [*one.input, *one.target]
            end = at + one.positions
            ids[r, at:end], targets[r, at:end], segments[r, at:end] = whole[:-1], whole[1:], segment
            learned = len(one.target) if targets_only else one.positions
            weights[r, end - learned : end] = 1 / learned if normalise else 1
            at = end
        segments[r, at:] = len(row)
    ids_RT, targets_RT, weights_RT, segments_RT = map(torch.from_numpy, (ids, targets, weights, segments))
    left_out = sorted(set(range(len(examples))) - set(fit))
    return Rows(ids_RT, targets_RT, weights_RT, segments_RT, packed, left_out)


def rows_of_step(step: int, rows: int, n_rows: int, seed: int) -> np.ndarray:
    """Which of ``n_rows`` packed rows a step sees: int64 [rows], from (seed, step) alone.

    Every row is seen once before any is seen again, in another order each time.
    """
    if n_rows < 1 or rows < 1:
        raise InputError(f"rows of a step: {rows} of {n_rows}, expected at least one of at least one")
    wanted = np.arange(step * rows, (step + 1) * rows)
    epochs, places = np.divmod(wanted, n_rows)
    orders = {
        epoch: np.random.default_rng([seed, 71, epoch]).permutation(n_rows) for epoch in np.unique(epochs).tolist()
    }
    return np.array([orders[epoch][place] for epoch, place in zip(epochs.tolist(), places.tolist(), strict=True)])


def batches_of(rows: Rows, config: FinetuningConfig) -> Batches:
    """The batch of each step."""
    return lambda step: rows.batch(rows_of_step(step, config.rows, len(rows), config.seed))


def finetune(
    source: Path,
    rows: Rows,
    config: FinetuningConfig,
    out: Path,
    *,
    identity: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase | None,
    device: str | None = None,
    advance: Callable[[int], None] | None = None,
) -> tuple[Path, Trained]:
    """Finetune the model in ``source`` on packed rows, in this process, going on from the last state in ``out``.

    Args:
        source: a Hugging Face folder of a type that the trainer has; it is not changed.
        identity: what ``source`` and ``rows`` are, by content; a folder of something else is refused.
        out: folder of the training (see `inscape.training.trainer`).

    Returns:
        The Hugging Face folder of the finetuned model, in ``out``; and what came of training.

    Raises:
        InputError: the model can't be read; a token of the rows has no embedding; training diverged.
    """
    model = load_hf(source)
    words = model.head_weight.shape[0]
    if (largest := int(max(rows.ids.max(), rows.targets.max()))) >= words:
        raise InputError(f"{source}: token id {largest} has no embedding ({words} words): not this model's tokenizer")
    trained = train(
        model, batches_of(rows, config), config.training, out,
        identity={**identity, "finetuning": config.model_dump(mode="json")},
        parallel=Parallel.start(Layout(), device=device), tokenizer=tokenizer, advance=advance,
    )  # fmt: skip
    return out / "checkpoints" / f"step-{config.steps}", trained
