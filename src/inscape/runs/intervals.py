"""Intervals: how much a headline number would move with other entities, prompts or seeds.

The unit that is drawn again is the one the claim generalises over. Rows that share a unit (ten prompts about one
entity, all layers of one seed) are not independent; drawing rows then gives intervals that are far too narrow, so
`groups` draws whole units (the cluster bootstrap). Intervals are percentile intervals (Efron & Tibshirani 1993, ch. 13).

A share of few cases is not for the bootstrap: none of 18 stays none of 18 however often they are drawn, and an interval
without width claims certainty. `proportion` gives Wilson's score interval instead.

What an interval here does *not* cover: the choice of layer, k or prompt made on the same data, and the training seed
of the model, unless those are the groups.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

# Drawn index matrices are cut into blocks of at most this many numbers (64 MiB of int64).
_BLOCK = 8_000_000


@dataclass(frozen=True)
class Interval:
    """An estimate and the bounds between which it would fall with other units.

    `lo` and `hi` are NaN where no interval can be had: no values, fewer than two units to draw from, or a statistic
    that is undefined on more than half of the draws. `n` counts the values used, `n_missing` those left out because
    they were NaN.
    """

    value: float
    lo: float
    hi: float
    n: int
    n_missing: int = 0
    level: float = 0.95

    def summary(self, name: str) -> dict[str, float | None]:
        """`{name, name_lo, name_hi}` for `summary.json`; NaN becomes None."""
        numbers = {name: self.value, f"{name}_lo": self.lo, f"{name}_hi": self.hi}
        return {key: None if np.isnan(number) else float(number) for key, number in numbers.items()}

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.lo:.4g}, {self.hi:.4g}]"


def bootstrap(
    values: ArrayLike,
    statistic: Callable[..., Any] = np.mean,
    *,
    groups: Sequence[Any] | ArrayLike | None = None,
    n: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of a statistic of one array.

    Args:
        values: (N,) numbers; NaN (or None) is missing: left out and counted.
        statistic: `(N,) -> float`. One that takes `axis` is applied to all draws at once.
        groups: (N,) labels of the units to draw (entity, prompt, seed); None draws single values.
        n: number of draws.
        level: coverage asked for, in (0, 1).
        seed: of the draws.

    Raises:
        ValueError: infinite values, lengths that differ, or `level`/`n` out of range.
    """
    return _bootstrap([_column(values)], statistic, groups, n, level, seed)


def bootstrap_paired(
    x: ArrayLike,
    y: ArrayLike,
    statistic: Callable[..., Any],
    *,
    groups: Sequence[Any] | ArrayLike | None = None,
    n: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of a statistic of two arrays that belong together row by row, such as `r2(y, prediction)`.

    Args:
        x, y: (N,) numbers; a row with a NaN in either is left out and counted.
        statistic: `((N,), (N,)) -> float`, called as `statistic(x, y)`, with `axis=-1` where it takes it.
        groups, n, level, seed: as in `bootstrap`.

    Raises:
        ValueError: infinite values, lengths that differ, or `level`/`n` out of range.
    """
    return _bootstrap([_column(x), _column(y)], statistic, groups, n, level, seed)


def proportion(successes: ArrayLike, *, level: float = 0.95) -> Interval:
    """Share of ones among zeros and ones, with Wilson's score interval (Wilson 1927); cases are taken as independent.

    Args:
        successes: (N,) 0/1 or truth values; NaN (or None) is missing: left out and counted.
        level: coverage asked for, in (0, 1).

    Raises:
        ValueError: a value that is neither 0 nor 1, or `level` out of range.
    """
    from scipy.stats import binomtest  # slow to import, and a reader of run folders needs none of it

    if not 0 < level < 1:
        raise ValueError(f"proportion needs 0 < level < 1, not level={level}")
    column = _column(successes)
    used = column[~np.isnan(column)]
    missing = len(column) - len(used)
    if not np.isin(used, (0, 1)).all():
        raise ValueError("proportion takes zeros and ones")
    if len(used) == 0:
        return Interval(np.nan, np.nan, np.nan, 0, missing, level)
    bounds = binomtest(int(used.sum()), len(used)).proportion_ci(confidence_level=level, method="wilson")
    return Interval(float(used.mean()), float(bounds.low), float(bounds.high), len(used), missing, level)


def r2(true: ArrayLike, predicted: ArrayLike, axis: int = -1) -> Any:
    """Share of the variance of `true` that `predicted` explains along `axis`; NaN where `true` does not vary."""
    true, predicted = np.asarray(true, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    residual = ((true - predicted) ** 2).sum(axis=axis)
    total = ((true - true.mean(axis=axis, keepdims=True)) ** 2).sum(axis=axis)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(total > 0, 1 - residual / total, np.nan)[()]


def _column(values: ArrayLike) -> Floats:
    column = np.asarray(values, dtype=np.float64)
    if column.ndim != 1:
        raise ValueError(f"intervals take one-dimensional arrays, not shape {column.shape}")
    if np.isinf(column).any():
        raise ValueError("an interval met an infinite value: say what it means (missing, clipped) before averaging it")
    return column


def _bootstrap(
    columns: list[Floats],
    statistic: Callable[..., Any],
    groups: Sequence[Any] | ArrayLike | None,
    n: int,
    level: float,
    seed: int,
) -> Interval:
    if not 0 < level < 1 or n < 2:
        raise ValueError(f"bootstrap needs 0 < level < 1 and n >= 2, not level={level}, n={n}")
    lengths = {len(column) for column in columns}
    if groups is not None:
        lengths.add(len(groups))  # type: ignore[arg-type]
    if len(lengths) > 1:
        raise ValueError(f"bootstrap takes arrays and groups of one length, not {sorted(lengths)}")

    present = ~np.any([np.isnan(column) for column in columns], axis=0)
    used = [column[present] for column in columns]
    size, missing = int(present.sum()), int((~present).sum())
    if size == 0:
        return Interval(np.nan, np.nan, np.nan, 0, missing, level)
    value = float(statistic(*used))

    rng = np.random.default_rng(seed)
    if groups is None:
        draws = _draw_rows(used, statistic, n, rng) if size > 1 else None
    else:
        labels = np.asarray(groups)[present]
        draws = _draw_groups(used, statistic, labels, n, rng) if len(np.unique(labels)) > 1 else None
    if draws is None or np.isnan(draws).mean() > 0.5:
        # One unit says nothing about other units: a bound equal to the value would look like certainty.
        return Interval(value, np.nan, np.nan, size, missing, level)
    lo, hi = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(lo), float(hi), size, missing, level)


def _takes_axis(statistic: Callable[..., Any]) -> bool:
    try:
        return "axis" in inspect.signature(statistic).parameters
    except (TypeError, ValueError):
        return False


def _draw_rows(columns: list[Floats], statistic: Callable[..., Any], n: int, rng: np.random.Generator) -> Floats:
    size = len(columns[0])
    vectorised = _takes_axis(statistic)
    per_block = max(1, _BLOCK // size)
    draws: list[Floats] = []
    for start in range(0, n, per_block):
        rows = rng.integers(0, size, (min(per_block, n - start), size))  # (draws, N)
        samples = [column[rows] for column in columns]
        if vectorised:
            draws.append(np.asarray(statistic(*samples, axis=-1), dtype=np.float64))
        else:
            draws.append(np.array([statistic(*one) for one in zip(*samples, strict=True)], dtype=np.float64))
    return np.concatenate(draws)


def _draw_groups(
    columns: list[Floats], statistic: Callable[..., Any], labels: NDArray[Any], n: int, rng: np.random.Generator
) -> Floats:
    _, member = np.unique(labels, return_inverse=True)  # (N,) group number of each row
    n_groups = int(member.max()) + 1
    drawn = rng.integers(0, n_groups, (n, n_groups))  # (draws, groups): which groups a draw holds
    if statistic is np.mean and len(columns) == 1:
        # A mean of drawn groups is a ratio of sums; this is exact and needs no copies of the rows.
        sums = np.bincount(member, weights=columns[0], minlength=n_groups)
        counts = np.bincount(member, minlength=n_groups)
        return np.asarray(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), dtype=np.float64)
    order = np.argsort(member, kind="stable")
    rows_of = np.split(order, np.cumsum(np.bincount(member, minlength=n_groups))[:-1])
    draws = np.empty(n)
    for i, groups_of_draw in enumerate(drawn):
        rows = np.concatenate([rows_of[group] for group in groups_of_draw])
        draws[i] = statistic(*(column[rows] for column in columns))
    return draws
