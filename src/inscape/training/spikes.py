"""Loss spikes: steps whose gradient would throw the model back, told from the steps before them.

A step is a spike if its gradient norm or its loss is no number, if the norm exceeds `factor` times the median of the last
`_KEPT` norms, or the loss the median of the last losses by `_LOSS_MARGIN` nats (BLOOM's one spike: a norm of 960 and a loss
from 2.2 to 5.1). Spikes count among the norms that follow are compared with, so that a change that stays is a spike
only for a while. The first `_LEAST` steps are never judged by a median: norms fall fast there.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Any

_KEPT = 100
_LEAST = 20
_LOSS_MARGIN = 2.0


class Spikes:
    """Judges one step after another.

    Args:
        factor: see above.
        state: what `state` of an earlier one gave, to go on from there.
    """

    def __init__(self, factor: float, state: dict[str, Any] | None = None) -> None:
        state = state or {"norms": [], "losses": [], "in_a_row": 0, "skipped": []}
        self.factor = factor
        self.norms: deque[float] = deque(state["norms"], _KEPT)
        self.losses: deque[float] = deque(state["losses"], _KEPT)
        self.in_a_row: int = state["in_a_row"]
        self.skipped: list[int] = list(state["skipped"])

    def state(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "norms": list(self.norms),
            "losses": list(self.losses),
            "in_a_row": self.in_a_row,
            "skipped": self.skipped,
        }

    def is_spike(self, step: int, loss: float, norm: float) -> bool:
        """Whether the update of this step must be left out; remembers the step."""
        finite = math.isfinite(loss) and math.isfinite(norm)
        spike = not finite
        if finite and len(self.norms) >= _LEAST:
            spike = norm > self.factor * statistics.median(self.norms)
            spike |= loss > statistics.median(self.losses) + _LOSS_MARGIN
        if finite:
            self.norms.append(norm)
            self.losses.append(loss)
        if spike:
            self.skipped.append(step)
        self.in_a_row = self.in_a_row + 1 if spike else 0
        return spike
