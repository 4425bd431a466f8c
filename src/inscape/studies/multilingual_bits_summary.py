"""The numbers of `multilingual_bits`, from its tables."""

from __future__ import annotations

import numpy as np
import polars as pl

from inscape.evaluation.bits import bits_per_byte, ratio
from inscape.evaluation.positions import extrapolation
from inscape.runs import RunFolder
from inscape.runs.folder import Scalar
from inscape.runs.intervals import Interval, bootstrap_paired
from inscape.studies.multilingual_setup import Config


def last_rows(run: RunFolder) -> pl.DataFrame:
    """What the last checkpoint scored."""
    series = run.table("bits_series")
    return series.filter(pl.col("step") == pl.col("step").max())


def summary(run: RunFolder, config: Config) -> dict[str, Scalar]:
    """Bits per byte by language, means of seen and held-out ones, n-grams, and how the positions extrapolate."""
    last, seed = last_rows(run), config.seed
    found: dict[str, Scalar] = {}
    for (language,), rows in last.group_by("language", maintain_order=True):
        found |= _three(f"bits_per_byte_{language}", bits_per_byte(rows, seed=seed))
    pud = last.filter(pl.col("source") == "PUD")
    for key, rows in (("seen", pud.filter("seen")), ("unseen", pud.filter(~pl.col("seen")))):
        if rows.height:
            found |= _three(f"bits_{key}_mean", _mean_over_languages(rows, seed))
    grams = run.table("bits_ngrams").filter((pl.col("source") == "PUD") & (pl.col("language") == "en"))
    english = pud.filter(pl.col("language") == "en")
    for name, key in (("unigram", "unigram"), ("5-gram", "5gram")):
        rows = grams.filter(pl.col("model") == name)
        if rows.height and english.height:
            found |= _three(f"bits_{key}_en", bits_per_byte(rows, seed=seed))
            gain = rows["bits"].to_numpy() - english["bits"].to_numpy()
            found |= _three(
                f"bits_below_{key}_en", bootstrap_paired(gain, english["bytes"].to_numpy(), ratio, seed=seed)
            )
    for row in extrapolated(run, config.recipe.length, seed).iter_rows(named=True):
        if row["length"] == row["longest"]:
            key = "alibi" if row["model"] == "model" else f"twin_{row['model']}"
            found[f"{key}_extrapolation_ratio"] = row["ratio"]
            found[f"{key}_extrapolation_ratio_lo"] = row["ratio_lo"]
            found[f"{key}_extrapolation_ratio_hi"] = row["ratio_hi"]
    return found


def _three(key: str, found: Interval) -> dict[str, Scalar]:
    return {key: found.value, f"{key}_lo": found.lo, f"{key}_hi": found.hi}


def _mean_over_languages(rows: pl.DataFrame, seed: int) -> Interval:
    """Mean over languages of bits per byte; the bootstrap draws sentences, the same in every language."""
    bits, sizes = (
        np.stack([part[column].to_numpy().astype(float) for part in rows.partition_by("language", maintain_order=True)])
        for column in ("bits", "bytes")
    )
    draws = np.random.default_rng([seed, 83]).multinomial(
        bits.shape[1], np.full(bits.shape[1], 1 / bits.shape[1]), 1000
    )
    means = np.mean((bits @ draws.T) / (sizes @ draws.T), axis=0)
    value = float(np.mean(bits.sum(axis=1) / sizes.sum(axis=1)))
    lo, hi = np.quantile(means, (0.025, 0.975)).tolist()
    return Interval(value, lo, hi, n=bits.shape[1])


def extrapolated(run: RunFolder, trained: int, seed: int = 0) -> pl.DataFrame:
    """``model, length, loss, ratio, ratio_lo, ratio_hi, longest``: by the loss at the training length."""
    losses = run.table("bits_positions")
    parts = [
        extrapolation(rows, trained, seed=seed).with_columns(
            model=pl.lit(name), longest=pl.lit(int(losses["length"].max()))  # type: ignore[arg-type]
        )
        for (name,), rows in losses.group_by("model", maintain_order=True)
    ]  # fmt: skip
    return pl.concat(parts, how="vertical_relaxed") if parts else losses.with_columns(longest=pl.lit(0))
