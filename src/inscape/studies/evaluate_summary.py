"""The headline numbers of `evaluate`, with their intervals, from the run's tables: those of the last model measured."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import polars as pl

from inscape.evaluation.bits import bits_table
from inscape.evaluation.choices import accuracies
from inscape.evaluation.positions import extrapolation
from inscape.evaluation.translation import over_prompts, scores
from inscape.runs import RunFolder, bootstrap
from inscape.runs.folder import Scalar
from inscape.runs.intervals import Interval

CHOICES = ("xcopa", "rte", "crows_pairs")
#: The measure that the headline of choices reads: as the lm-evaluation-harness has it.
MEASURE = "sum"


def summarise(run: RunFolder, *, seed: int) -> dict[str, Scalar]:
    """Flat: name → number; estimates with ``_lo`` and ``_hi``."""
    last = last_model(run)
    summary: dict[str, Scalar] = {"n_models": run.table("models").height}
    if "bits" in run.tables:
        summary |= _bits(run, last, seed)
    if "positions" in run.tables:
        losses = extrapolations(run, seed).filter(pl.col("model") == last).sort("length")
        longest = losses.row(-1, named=True)
        summary["extrapolation_length"] = longest["length"]
        summary |= {f"extrapolation_{name}": longest[name] for name in ("ratio", "ratio_lo", "ratio_hi")}
    for task in CHOICES:
        if task in run.tables:
            rows = run.table(task).filter(pl.col("model") == last)
            one = accuracies(rows, ["task"], seed=seed).filter(pl.col("measure") == MEASURE).row(0, named=True)
            name = f"{task}_share" if task == "crows_pairs" else f"{task}_accuracy"
            summary |= {name: one["median"], f"{name}_lo": one["lo"], f"{name}_hi": one["hi"]}
            summary |= {
                f"{task}_{key}": one[key] for key in ("least", "most", "chance", "majority", "items", "prompts")
            }
    if "translation" in run.tables:
        found = over_prompts(run.table("translation_scores").filter(pl.col("model") == last))
        for (output, metric), some in found.group_by("output", "metric", maintain_order=True):
            summary[f"{metric}_{output}"] = some["median"].mean()  # type: ignore[assignment]
        summary["translation_stopped"] = found["stopped"].mean()  # type: ignore[assignment]
    if "lm_eval" in run.tables:
        for row in run.table("lm_eval").filter(pl.col("model") == last).iter_rows(named=True):
            summary[f"lm_eval_{row['task']}_{row['metric']}_{row['filter']}"] = row["value"]
    return summary


def last_model(run: RunFolder) -> str:
    """The model that headlines are of."""
    return str(run.table("models")["model"][-1])


def scored(run: RunFolder) -> pl.DataFrame:
    """Rows of ``bits`` of the models and, where they were fitted, of the n-gram models."""
    rows = run.table("bits")
    return pl.concat([rows, run.table("counts")]) if "counts" in run.tables else rows


def extrapolations(run: RunFolder, seed: int) -> pl.DataFrame:
    """``model, length, loss, ratio, ratio_lo, ratio_hi``."""
    config = run.manifest["config"]
    trained = config["trained_length"] or min(config["lengths"])
    parts = []
    for (model,), rows in run.table("positions").drop_nulls("length").group_by("model", maintain_order=True):
        found = extrapolation(rows, trained, seed=seed)
        parts.append(found.select(pl.lit(model).alias("model"), pl.all()))
    return pl.concat(parts, how="vertical_relaxed")


def translation_scores(run: RunFolder, seed: int) -> pl.DataFrame:
    """`scores` of every model."""
    parts = []
    for (model,), rows in run.table("translation").group_by("model", maintain_order=True):
        parts.append(scores(rows, seed=seed).select(pl.lit(model).alias("model"), pl.all()))
    return pl.concat(parts, how="vertical_relaxed")


def _bits(run: RunFolder, last: str, seed: int) -> dict[str, Scalar]:
    rows = scored(run)
    unseen = run.manifest["config"]["unseen"]
    summary: dict[str, Scalar] = {}
    for row in bits_table(rows.filter(pl.col("model") == last), ["language"], seed=seed).iter_rows(named=True):
        language = row["language"]
        for measure in ("bits_per_byte", "bits_per_text"):
            name = f"{measure.replace('text', 'sentence')}_{language}"
            summary |= {name + end: row[measure + end] for end in ("", "_lo", "_hi")}
    for model in rows["model"].unique(maintain_order=True):
        here = rows.filter(pl.col("model") == model)
        name = {last: ""}.get(model, f"_{model.replace('-', '_').replace(' ', '_')}")
        summary |= _mean(here, seed).summary(f"bits_mean{name}")
        if unseen:
            summary |= _mean(here.filter(~pl.col("language").is_in(unseen)), seed).summary(f"bits_seen_mean{name}")
            summary |= _mean(here.filter(pl.col("language").is_in(unseen)), seed).summary(f"bits_unseen_mean{name}")
    return summary


def _mean(rows: pl.DataFrame, seed: int) -> Interval:
    """Bits per byte, mean over languages; drawn by sentence, with all of its translations."""
    if not rows.height:
        return bootstrap([])
    bits, sizes = (_wide(rows, name) for name in ("bits", "bytes"))

    def mean(at: np.ndarray) -> float:
        chosen = at.astype(int)
        with np.errstate(divide="ignore", invalid="ignore"):
            return float((bits[chosen].sum(0) / sizes[chosen].sum(0)).mean())

    return bootstrap(np.arange(len(bits)), mean, n=1000, seed=seed)


def _wide(rows: pl.DataFrame, value: str) -> np.ndarray:
    """``[sentence, language]``."""
    table = rows.pivot(on="language", index="sentence", values=value, maintain_order=True)
    return table.drop("sentence").to_numpy()


def means_by_model(run: RunFolder, models: Iterable[str], seed: int) -> pl.DataFrame:
    """``model, bits_mean, lo, hi``: mean over languages of bits per byte."""
    rows = scored(run)
    found = [(model, _mean(rows.filter(pl.col("model") == model), seed)) for model in models]
    return pl.DataFrame(
        [{"model": m, "bits_mean": one.value, "lo": one.lo, "hi": one.hi} for m, one in found]
    ).fill_nan(None)
