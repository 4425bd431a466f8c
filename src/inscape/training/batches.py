"""What one optimizer step is computed on.

Every process of a launch makes the whole `Batch` of a step (it is a function of seed and step alone, and cheap beside
the step), then works on its own rows. So each knows the sum of all weights, by which the loss is divided, without asking
the others: the loss is the weighted mean over the *step*, however the rows are divided into micro-batches and processes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from inscape.errors import InputError


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of tokens with what is to be foretold at each position. All tensors are [B, T].

    Attributes:
        ids: int64, the tokens that go in.
        targets: int64, the token to be foretold at each position (``ids`` moved by one).
        weights: float32, how much each target counts; 0 for padding and where a target must not be learned.
        segments: int32, the number of each position's document in its row, never falling along the row. Attention stays
            inside a segment; None: rows hold one document each, or attention may cross borders.
    """

    ids: Tensor
    targets: Tensor
    weights: Tensor
    segments: Tensor | None = None

    def __post_init__(self) -> None:
        for name, dtype in (("ids", torch.int64), ("targets", torch.int64), ("weights", torch.float32)):
            _expect(name, getattr(self, name), dtype, self.ids.shape)
        if self.segments is not None:
            _expect("segments", self.segments, torch.int32, self.ids.shape)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.ids.shape[0]

    @property
    def n_tokens(self) -> int:
        """Positions that the model works on, padding included."""
        return self.ids.numel()

    def part(self, first: int, last: int) -> Batch:
        """Rows ``first`` to ``last - 1``; no data is copied."""
        segments = None if self.segments is None else self.segments[first:last]
        return Batch(self.ids[first:last], self.targets[first:last], self.weights[first:last], segments)

    def to(self, device: torch.device | str) -> Batch:
        """The same on a device; the copy to a GPU does not wait."""
        moved = (tensor if tensor is None else _moved(tensor, torch.device(device)) for tensor in self._tensors())
        return Batch(*moved)  # type: ignore[arg-type]

    def _tensors(self) -> tuple[Tensor | None, ...]:
        return self.ids, self.targets, self.weights, self.segments


#: The batch of a step, numbered from 0: it must depend on the step alone, or a run could not be taken up again.
Batches = Callable[[int], Batch]


def share(rows: int, part: int, parts: int) -> tuple[int, int]:
    """First and last (exclusive) of the rows that are one part's, as even as can be."""
    return rows * part // parts, rows * (part + 1) // parts


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type == "cpu" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _expect(name: str, tensor: Tensor, dtype: torch.dtype, shape: torch.Size) -> None:
    if tensor.dtype != dtype or tensor.shape != shape or len(shape) != 2:
        raise InputError(
            f"batch: {name} is {tensor.dtype} {list(tensor.shape)}, expected {dtype} {list(shape)} (rows, positions)"
        )
