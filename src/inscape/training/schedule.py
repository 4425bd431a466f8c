"""What changes along a run: the learning rate, and how many rows a step has.

Both count **rows** seen, as BLOOM's did, not steps: while the batch grows, a step is worth less. The rate rises linearly
for a share of all rows, then falls by a cosine to `final_share` of its peak at the last row. The batch grows from
`ramp_from` rows by `ramp_by` at a time over the first `ramp_share` of the steps.

A `Course` is all of that but the number of steps, which a budget of tokens gives too.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from inscape.errors import InputError


class Course(BaseModel):
    """Rows and learning rate of a run whose number of steps is not yet known."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: int = Field(default=32, ge=1, description="rows of a step, once the ramp is over (paper: 256 to 2,048)")
    ramp_from: int | None = Field(default=None, ge=1, description="rows of the first step (paper: 192); none: no ramp")
    ramp_by: int = Field(default=4, ge=1, description="rows by which the batch grows at a time (paper: 16 or 32)")
    ramp_share: float = Field(
        default=0.05, ge=0, le=1, description="share of the steps over which it grows (paper: 5%)"
    )
    learning_rate: float = Field(default=1e-3, gt=0, description="its peak (paper: 6e-5 to 3e-4)")
    shape: Literal["cosine", "constant"] = Field(default="cosine", description="of the learning rate after warm-up")
    warmup_share: float = Field(
        default=0.02, ge=0, lt=1, description="share of all rows over which the rate rises (paper: 0.1%)"
    )
    final_share: float = Field(default=0.1, ge=0, le=1, description="share of the peak that the cosine ends at")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.ramp_from is not None and self.ramp_from > self.rows:
            raise ValueError(f"ramp_from {self.ramp_from} with rows {self.rows}: expected at most as many")
        return self

    def over(self, steps: int) -> Schedule:
        """This course over so many steps."""
        return Schedule(steps=steps, **{name: getattr(self, name) for name in Course.model_fields})

    def within(self, tokens: int, length: int) -> Schedule:
        """This course over as many steps as rows of `length` tokens hold `tokens`, never more.

        Raises:
            InputError: the budget is less than a single step.
        """
        first = self.ramp_from or self.rows
        if tokens < length * first:
            raise InputError(f"a budget of {tokens} tokens, expected at least those of one step, {length * first}")
        least, more = 1, tokens // (length * first) + 1
        while more - least > 1:
            middle = (least + more) // 2
            if self.over(middle).total_rows * length <= tokens:
                least = middle
            else:
                more = middle
        return self.over(least)


class Schedule(Course):
    """Steps, rows and learning rate of a run."""

    steps: int = Field(default=1000, ge=1, description="optimizer steps")

    def rows_at(self, step: int) -> int:
        """Rows of a step, numbered from 0."""
        return int(self._ramp[step]) if step < len(self._ramp) else self.rows

    def rows_before(self, step: int) -> int:
        """Rows of all earlier steps."""
        ramped = min(step, len(self._ramp))
        return int(self._ramp[:ramped].sum()) + (step - ramped) * self.rows

    @cached_property
    def total_rows(self) -> int:
        """Rows of all steps."""
        return self.rows_before(self.steps)

    def rate_at(self, step: int) -> float:
        """The learning rate of a step: that of its last row."""
        seen = (self.rows_before(step) + self.rows_at(step)) / self.total_rows
        if seen < self.warmup_share:
            return self.learning_rate * seen / self.warmup_share
        if self.shape == "constant":
            return self.learning_rate
        cosine = 0.5 * (1 + math.cos(math.pi * (seen - self.warmup_share) / (1 - self.warmup_share)))
        return self.learning_rate * (self.final_share + (1 - self.final_share) * cosine)

    @cached_property
    def _ramp(self) -> np.ndarray:
        """Rows of the steps before the batch has its full size."""
        if self.ramp_from is None or self.ramp_from == self.rows:
            return np.zeros(0, np.int64)
        steps = math.ceil(self.steps * self.ramp_share)
        levels = math.ceil((self.rows - self.ramp_from) / self.ramp_by)
        return self.ramp_from + np.arange(steps) * levels // max(steps, 1) * self.ramp_by
