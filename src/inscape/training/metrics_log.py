"""`metrics.jsonl`: one line per step, appended as training goes; and the same for TensorBoard.

The file is only a record: a run goes on from its last state, and lines of later steps, or half a line that a kill left,
are cut off first. So the file of a run that was stopped any number of times has each step once, in order.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inscape.errors import InputError
from inscape.runs.writing import explain


@dataclass(frozen=True)
class StepMetrics:
    """What is known of a step.

    Attributes:
        step: optimizer steps done, this one included: that of the checkpoint after it.
        tokens: positions seen so far, padding included.
        loss: weighted mean over the step, nats; NaN where it was no number.
        grad_norm: before clipping.
        learning_rate: of this step.
        tokens_per_second: of this step, over all processes.
        mfu: floating-point operations that the step needs by the machine's measured matmul rate; NaN where unknown.
        skipped: whether the update was left out (a spike).
    """

    step: int
    tokens: int
    loss: float
    grad_norm: float
    learning_rate: float
    tokens_per_second: float
    mfu: float
    skipped: bool


def read_metrics(folder: Path | str) -> list[StepMetrics]:
    """All whole lines of a folder's `metrics.jsonl`; none where there is no such file.

    Raises:
        InputError: a line that is none of ours, other than a last one cut short.
    """
    path = Path(folder) / "metrics.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # (what follows the last line end is half a line)
    except FileNotFoundError:
        return []
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(_metrics(line))
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{path}:{number}: no metrics of a step ({error})") from error
    return found


class MetricsLog:
    """Appends to the file of `folder`, in which the lines of the first `steps` steps are kept.

    Args:
        tensorboard: also write for TensorBoard, if it is installed.

    Raises:
        InputError: TensorBoard is asked for and not installed, or the file lacks steps. RunWriteError: it can't be written.
    """

    def __init__(self, folder: Path, steps: int, tensorboard: bool = False) -> None:
        self._path = folder / "metrics.jsonl"
        self._writer = _writer(folder / "tensorboard", steps + 1) if tensorboard else None
        found = [metrics.step for metrics in read_metrics(folder)][:steps]
        if found != list(range(1, steps + 1)):
            raise InputError(f"{self._path}: {len(found)} lines of {steps} steps done, expected one of each, in order")
        try:
            self._flushed = time.monotonic()
            self._file = self._path.open("r+b" if self._path.exists() else "w+b")
            for _ in range(steps):
                self._file.readline()
            self._file.truncate(self._file.tell())
        except OSError as error:
            raise explain(error, self._path) from error

    def write(self, metrics: StepMetrics) -> None:
        """Append one line, for others to read within the second."""
        try:
            self._file.write(_line(metrics))
            if time.monotonic() - self._flushed > 1:
                self._file.flush()
                self._flushed = time.monotonic()
        except OSError as error:
            raise explain(error, self._path) from error
        if self._writer is not None:
            for name in ("loss", "grad_norm", "learning_rate", "tokens_per_second", "mfu"):
                self._writer.add_scalar(name, getattr(metrics, name), metrics.step)

    def flush(self) -> None:
        """Return when all lines are on the disk."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise explain(error, self._path) from error

    def close(self) -> None:
        """Write what is left."""
        try:
            self._file.close()
        except OSError as error:
            raise explain(error, self._path) from error
        if self._writer is not None:
            self._writer.close()


def _line(metrics: StepMetrics) -> bytes:
    # JSON has no NaN, though Python would write one.
    known = {name: None if value != value else value for name, value in asdict(metrics).items()}
    return json.dumps(known).encode() + b"\n"


def _metrics(line: str) -> StepMetrics:
    found: dict[str, Any] = {name: math.nan if value is None else value for name, value in json.loads(line).items()}
    return StepMetrics(**found)


def _writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            "tensorboard is not installed: pip install 'inscape[logs]', or leave tensorboard out"
        ) from error
    return SummaryWriter(str(folder), purge_step=step)
