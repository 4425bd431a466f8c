"""From single cells to maps of `causal-tracing`: layer × role, means over rows.

Intervals draw subjects again: rows about one subject are not independent."""

from functools import partial

import numpy as np
import polars as pl

from inscape.runs.intervals import Interval, bootstrap, bootstrap_paired
from inscape.studies.causal_tracing_sweeps import DENOISING, NOISING, UNRELATED_PATCH

ATTRIBUTION = "attribution"
PATCH_MAPS = (DENOISING, ATTRIBUTION, NOISING, UNRELATED_PATCH)

_MAP = {
    "effect": pl.Float64,
    "effect_lo": pl.Float64,
    "effect_hi": pl.Float64,
    "n_rows": pl.Int64,
}


def per_row(traced: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """Indirect effects by row: id, subject, site, state, layer, role, effect; tokens of one role are averaged."""
    return (
        traced.group_by("id", "site", "state", "layer", "role", maintain_order=True)
        .agg((pl.col("restored") - pl.col("corrupted")).mean().alias("effect"))
        .join(rows.select("id", "subject"), on="id", maintain_order="left")
    )


def role_map(traced: pl.DataFrame, rows: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Average indirect effects: site, state, layer, role, effect with its interval, n_rows."""
    by = ["site", "state", "layer", "role"]
    cells = []
    for key, here in per_row(traced, rows).group_by(by, maintain_order=True):
        effect = bootstrap(here["effect"].to_numpy(), groups=here["subject"].to_list(), seed=seed)
        cells.append(dict(zip(by, key, strict=True)) | _told(effect, here.height))
    schema = {"site": pl.String, "state": pl.String, "layer": pl.Int64, "role": pl.String, **_MAP}
    return pl.DataFrame(cells, schema=schema)


def moved(patched: pl.DataFrame, estimated: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """By cell, how far the logit difference moves towards the run whose state was put in, and how far it could.

    Columns: map, id, subject, layer, position, role, moved, gap (clean less corrupted run). Rows whose answer is
    not preferred more in the clean run than in the corrupted one have nothing to move, and are left out.
    """
    ends = patched.group_by("id", "direction").agg(pl.col("unpatched").first())
    clean = ends.filter(pl.col("direction") == NOISING).select("id", pl.col("unpatched").alias("clean"))
    corrupt = ends.filter(pl.col("direction") == DENOISING).select("id", pl.col("unpatched").alias("corrupt"))
    gaps = clean.join(corrupt, on="id").select("id", (pl.col("clean") - pl.col("corrupt")).alias("gap"))
    both = pl.concat(
        [
            patched.rename({"direction": "map"}),
            estimated.with_columns(pl.lit(ATTRIBUTION).alias("map")).drop("direction"),
        ],
        how="diagonal",
    )
    sign = pl.when(pl.col("map") == NOISING).then(-1.0).otherwise(1.0)
    return (
        both.join(gaps.filter(pl.col("gap") > 0), on="id", how="inner", maintain_order="left")
        .with_columns(((pl.col("patched") - pl.col("unpatched")) * sign).alias("moved"))
        .join(rows.select("id", "subject"), on="id", maintain_order="left")
        .select("map", "id", "subject", "layer", "position", "role", "moved", "gap")
    )


def patch_map(cells: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Share of the difference between the two runs that is moved: map, layer, role, effect with its interval, n_rows.

    A ratio of means over rows (a mean of ratios would be ruled by rows whose two runs hardly differ).
    """
    by = ["map", "layer", "role"]
    found = []
    rows_of = cells.group_by("map", "id", "subject", "layer", "role", maintain_order=True).agg(
        pl.col("moved").mean(), pl.col("gap").first()
    )
    for key, rows in rows_of.group_by(by, maintain_order=True):
        found.append(dict(zip(by, key, strict=True)) | _told(share(rows, seed), rows.height))
    return pl.DataFrame(found, schema={"map": pl.String, "layer": pl.Int64, "role": pl.String, **_MAP})


def share(rows: pl.DataFrame, seed: int) -> Interval:
    """Mean of ``moved`` over mean of ``gap``; subjects are drawn."""
    sums = rows.group_by("subject", maintain_order=True).agg(pl.col("moved").sum(), pl.col("gap").sum())
    return bootstrap_paired(sums["moved"].to_numpy(), sums["gap"].to_numpy(), _ratio, seed=seed)


def side_by_side(cells: pl.DataFrame) -> pl.DataFrame:
    """Denoising twice, by patching and by its estimate: id, subject, layer, position, role, activation, attribution."""
    at = ["id", "subject", "layer", "position", "role"]
    full = cells.filter(pl.col("map") == DENOISING).select(*at, pl.col("moved").alias("activation"))
    quick = cells.filter(pl.col("map") == ATTRIBUTION).select(*at, pl.col("moved").alias("attribution"))
    return full.join(quick, on=at, how="inner", maintain_order="left")


def agreement(pairs: pl.DataFrame, seed: int) -> Interval:
    """Pearson correlation over all cells of all rows; subjects are drawn."""
    x, y = pl.col("activation"), pl.col("attribution")
    sums = pairs.group_by("subject", maintain_order=True).agg(
        pl.len().cast(pl.Float64).alias("n"), x.sum(), y.sum(), (x * x).sum().alias("xx"), (y * y).sum().alias("yy"),
        (x * y).sum().alias("xy"),
    )  # fmt: skip
    numbers = sums.select("n", "activation", "attribution", "xx", "yy", "xy").to_numpy()
    return bootstrap(np.arange(len(numbers)), partial(_correlation, numbers), seed=seed)


def _ratio(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.asarray(np.sum(x, axis=axis) / np.sum(y, axis=axis))


def _correlation(sums: np.ndarray, drawn: np.ndarray) -> float:
    n, x, y, xx, yy, xy = sums[drawn.astype(int)].sum(0)
    spread = (xx - x * x / n) * (yy - y * y / n)
    return float((xy - x * y / n) / np.sqrt(spread)) if spread > 0 else float("nan")


def _told(interval: Interval, n_rows: int) -> dict[str, float | int]:
    return {"effect": interval.value, "effect_lo": interval.lo, "effect_hi": interval.hi, "n_rows": n_rows}
