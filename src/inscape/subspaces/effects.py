"""How an output moves as an edit's step rises: one row of numbers per (entity, component), many rows at once.

|Spearman| alone is blind to size: in a toy linear model an equal-norm random direction reaches 0.96 while it moves
the output by 17 years where the fitted direction moves it by 318. So every correlation comes with the slope and the
total change, and with the share of outputs that could be parsed at all. Two rules hold throughout:

- An output that could not be parsed (None, NaN, infinite) is *missing*: left out of every measure, never counted as 0.
- An output that never moves has no correlation: NaN and `constant = True`, never 0. (Its slope and change are 0, and
  measured.)
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from inscape.errors import InputError
from inscape.subspaces.inputs import Matrix, as_array

EFFECT_COLUMNS = (
    "spearman",
    "abs_spearman",
    "pearson",
    "kendall",
    "slope",
    "change",
    "monotonicity",
    "strict_monotonicity",
    "parsed",
    "n_parsed",
    "constant",
)
_PAIR_BUDGET = 4_000_000  # entries of the pairwise sign table held at once (int8: 4 MB each for steps and outputs)


def effects(steps: ArrayLike, outputs: Any) -> pl.DataFrame:
    """One row per row of `outputs` (R, S): numbers, with None or NaN where missing; `steps` is (S,) or (R, S),
    finite, distinct.

    Columns: `spearman`, `abs_spearman`, `pearson`, `kendall` (tau-b) of step and output; `slope` (least squares,
    output units per unit of step); `change` (output at the highest parsed step minus that at the lowest);
    `monotonicity` = |mean sign of the non-zero differences between successive parsed outputs|; `strict_monotonicity`
    = the same over all differences (P7); `parsed` (share), `n_parsed`, `constant` (at least two parsed outputs, all
    equal). NaN: not defined for this row.
    """
    y = _numbers(outputs)
    x = np.asarray(as_array(steps), dtype=np.float64)
    if x.shape not in (y.shape, y.shape[1:]):
        raise InputError(f"steps: shape {x.shape} for outputs of shape {y.shape}; expected {y.shape[1:]} or {y.shape}")
    x = np.broadcast_to(x, y.shape)
    order = np.argsort(x, axis=1)
    x, y = np.take_along_axis(x, order, axis=1), np.take_along_axis(y, order, axis=1)
    if not np.isfinite(x).all() or (np.diff(x, axis=1) <= 0).any():
        raise InputError("steps: expected finite values, each once per row")
    rows_per_chunk = max(1, _PAIR_BUDGET // max(y.shape[1] ** 2, 1))
    chunks = [_measure(x[i : i + rows_per_chunk], y[i : i + rows_per_chunk]) for i in range(0, len(y), rows_per_chunk)]
    if not chunks:
        chunks = [_measure(x, y)]
    return pl.DataFrame({name: np.concatenate([chunk[name] for chunk in chunks]) for name in EFFECT_COLUMNS})


def effects_table(
    edits: pl.DataFrame, by: Sequence[str] = ("entity_id", "component"), step: str = "step", output: str = "output"
) -> pl.DataFrame:
    """`effects` for a long table with a row per (by..., step): the `by` columns, then the measures, in order of first
    appearance.

    A null or NaN output, or a step that a group lacks, is missing. InputError when a (group, step) occurs twice or a
    column lacks.
    """
    lacking = [name for name in (*by, step, output) if name not in edits.columns]
    if lacking:
        raise InputError(f"edits: no column {', '.join(lacking)}; expected {', '.join((*by, step, output))}")
    if edits.select([*by, step]).is_duplicated().any():
        raise InputError(f"edits: a combination of {', '.join((*by, step))} occurs twice; expected one output for each")
    grid = np.sort(edits[step].unique().to_numpy())
    groups = edits.select(by).unique(maintain_order=True).with_row_index("_row")
    rows = (
        edits.select(by)
        .join(groups, on=list(by), how="left", maintain_order="left", nulls_equal=True)["_row"]
        .to_numpy()
    )
    outputs = np.full((len(groups), len(grid)), np.nan)
    values = edits[output].cast(pl.Float64).to_numpy()  # null becomes NaN
    outputs[rows, np.searchsorted(grid, edits[step].to_numpy())] = values
    return pl.concat([groups.drop("_row"), effects(grid, outputs)], how="horizontal")


def _numbers(outputs: Any) -> Matrix:
    """(R, S) float64 with NaN for whatever is missing: None, NaN, infinite."""
    try:
        y = np.array(as_array(outputs), dtype=np.float64)  # None becomes NaN
    except (TypeError, ValueError) as error:
        raise InputError(f"outputs: {error}; expected parsed numbers (rows, steps), None where unparsable") from None
    if y.ndim != 2:
        raise InputError(f"outputs: shape {y.shape}; expected a table (rows, steps)")
    y[~np.isfinite(y)] = np.nan
    return y


def _measure(x: Matrix, y: Matrix) -> dict[str, NDArray[Any]]:
    """All measures for x, y (R, S) sorted by x; NaN in y is missing."""
    ok = ~np.isnan(y)
    n = ok.sum(axis=1)
    # One table of pairwise signs serves both rank correlations: Kendall counts agreements in it, and the average-tie rank
    # of entry i is half its row sum plus a constant. A pair with a missing member has sign 0 (NaN compares false both ways).
    sign_y = (y[:, :, None] > y[:, None, :]).astype(np.int8) - (y[:, :, None] < y[:, None, :])
    sign_x = np.sign(x[:, :, None] - x[:, None, :]).astype(np.int8) * (ok[:, :, None] & ok[:, None, :])
    rank_y, rank_x = sign_y.sum(axis=2, dtype=np.int32), sign_x.sum(axis=2, dtype=np.int32)
    agreement = (sign_x * sign_y).sum(axis=(1, 2), dtype=np.int64)
    untied_x, untied_y = (
        np.abs(sign_x).sum(axis=(1, 2), dtype=np.int64),
        np.abs(sign_y).sum(axis=(1, 2), dtype=np.int64),
    )

    constant = (n >= 2) & (untied_y == 0)
    defined = (n >= 2) & ~constant
    kendall = _ratio(agreement, np.sqrt(untied_x.astype(np.float64) * untied_y), defined)
    spearman, _ = _correlation(rank_x.astype(np.float64), rank_y.astype(np.float64), ok, defined)
    pearson, slope = _correlation(x, y, ok, defined)
    slope = np.where(constant, 0.0, slope)

    # Carrying the last parsed output over a gap makes the gap's differences 0 and the next one the true difference.
    filled = np.take_along_axis(y, np.maximum.accumulate(np.where(ok, np.arange(y.shape[1]), 0), axis=1), axis=1)
    difference = np.diff(filled, axis=1)
    sign = np.where(np.isnan(difference), 0.0, np.sign(difference))
    total = np.abs(sign.sum(axis=1))
    first = np.take_along_axis(y, ok.argmax(axis=1)[:, None], axis=1)[:, 0]
    return {
        "spearman": spearman,
        "abs_spearman": np.abs(spearman),
        "pearson": pearson,
        "kendall": kendall,
        "slope": slope,
        "change": np.where(n >= 2, filled[:, -1] - first, np.nan),
        "monotonicity": _ratio(total, (sign != 0).sum(axis=1), defined),
        "strict_monotonicity": _ratio(total, n - 1, defined),
        "parsed": n / y.shape[1],
        "n_parsed": n,
        "constant": constant,
    }


def _correlation(x: Matrix, y: Matrix, ok: NDArray[np.bool_], defined: NDArray[np.bool_]) -> tuple[Matrix, Matrix]:
    """Pearson correlation and least-squares slope of y on x per row, over the entries marked ok; NaN where not
    defined.
    """
    count = np.maximum(ok.sum(axis=1, keepdims=True), 1)
    x_c = np.where(ok, x - np.where(ok, x, 0.0).sum(axis=1, keepdims=True) / count, 0.0)
    y_c = np.where(ok, y - np.where(ok, y, 0.0).sum(axis=1, keepdims=True) / count, 0.0)
    # Scaled by its largest entry, so that outputs near the float limit don't overflow when squared.
    size = np.abs(y_c).max(axis=1, initial=0.0)
    y_u = y_c / np.where(size > 0, size, 1.0)[:, None]
    xy, xx, yy = (x_c * y_u).sum(axis=1), (x_c**2).sum(axis=1), (y_u**2).sum(axis=1)
    return np.clip(_ratio(xy, np.sqrt(xx * yy), defined), -1.0, 1.0), _ratio(xy, xx, defined) * size


def _ratio(top: NDArray[Any], bottom: NDArray[Any], defined: NDArray[np.bool_]) -> NDArray[np.float64]:
    """top / bottom where defined and bottom is not 0, NaN elsewhere."""
    use = defined & (bottom != 0)
    return np.where(use, top / np.where(use, bottom, 1), np.nan)
