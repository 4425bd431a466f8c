"""The numbers of the probing of `multilingual-pretraining`, made from its tables: means over languages and differences.

Intervals are 95 % percentiles over draws of sentences that all rows share. They cover neither the choice of the layer nor
another training, and languages are not drawn: a mean is of these languages.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from inscape.runs import RunFolder
from inscape.runs.folder import Scalar
from inscape.runs.intervals import Interval
from inscape.studies.multilingual_setup import Config

FLOORS = ("untrained", "n-grams", "shuffled labels", "length", "majority", "guess")
"""What the trained model is held against; "n-grams" is the best of words, characters and tokens on development sentences."""


def difference(rows: pl.DataFrame, minus: pl.DataFrame | None = None) -> Interval:
    """Mean F1 of rows; or by how much it exceeds that of ``minus``. ``n`` counts rows."""
    value, drawn = _mean(rows)
    if minus is not None:
        less, drawn_less = _mean(minus)
        value, drawn = value - less, drawn - drawn_less
    return _interval(value, drawn, rows.height)


def _mean(rows: pl.DataFrame) -> tuple[float, np.ndarray]:
    return float(np.mean(rows["f1"].to_numpy())), np.mean([np.array(draws) for draws in rows["drawn"]], axis=0)


def _interval(value: float, drawn: np.ndarray, n: int) -> Interval:
    if np.isnan(drawn).mean() > 0.5:
        return Interval(value, np.nan, np.nan, n)
    lo, hi = np.nanquantile(drawn, [0.025, 0.975])
    return Interval(value, float(lo), float(hi), n)


def language_rows(run: RunFolder, representation: str) -> pl.DataFrame:
    """A row per language: of layers, or of kinds of n-grams, the one that is best on development sentences."""
    rows = run.table("probing_languages")
    if representation == "n-grams":
        return best_on_dev(rows.filter(pl.col("representation").str.ends_with("n-grams")))
    return best_on_dev(rows.filter(representation=representation))


def best_on_dev(rows: pl.DataFrame, by: tuple[str, ...] = ("language",)) -> pl.DataFrame:
    """Of each group the row with the highest F1 on development sentences, the first of equals; in the order of the rows.

    (Answers without features have no choice to make, and one row a language.)
    """
    place = pl.int_range(pl.len()).alias("_place")
    best = rows.with_columns(place).sort("dev_f1", descending=True, maintain_order=True).unique(by, keep="first")
    return best.sort("_place").drop("_place")


def best_mean_layer(run: RunFolder, representation: str) -> int:
    """The layer that is best on development sentences in the mean over languages."""
    rows = run.table("probing_languages").filter(representation=representation)
    means = rows.group_by("layer").agg(pl.col("dev_f1").mean())
    return int(means.sort("dev_f1", "layer", descending=[True, False])["layer"][0])


def moved(run: RunFolder) -> pl.DataFrame:
    """Between languages, in the target's units: representation, source, target, F1 with its interval."""
    rows = run.table("probing_transfer").filter((pl.col("units") == "own") & (pl.col("representation") != "majority"))
    found = [difference(rows[i]) for i in range(rows.height)]
    ends = {end: pl.Series([getattr(one, end) for one in found], dtype=pl.Float64) for end in ("lo", "hi")}
    return rows.with_columns(source="trained_on", **ends).rename({"language": "target"})


def by_task(run: RunFolder) -> pl.DataFrame:
    """A row per task: mean over the languages that have it, and how much the untrained model and n-grams are below."""
    drawn: dict[str, dict[tuple[str, str], tuple[float, np.ndarray]]] = {}
    for name in ("trained", "untrained", "n-grams"):
        drawn[name] = {}
        for one in language_rows(run, name).iter_rows(named=True):
            draws = np.array(one["task_drawn"]).reshape(len(one["task"]), -1)
            for task, f1, some in zip(one["task"], one["task_f1"], draws, strict=True):
                drawn[name][task, one["language"]] = (f1, some)
    rows = []
    for task in sorted({task for task, _ in drawn["trained"]}):
        languages = [language for one, language in drawn["trained"] if one == task]
        values = {name: float(np.mean([of[task, code][0] for code in languages])) for name, of in drawn.items()}
        means = {name: np.mean([of[task, code][1] for code in languages], axis=0) for name, of in drawn.items()}
        row: dict[str, object] = {"task": task, "languages": len(languages), "f1": values["trained"]}
        for name in ("untrained", "n-grams"):
            gain = _interval(values["trained"] - values[name], means["trained"] - means[name], len(languages))
            row |= {f"above {name}": gain.value, f"above {name}, lo": gain.lo, f"above {name}, hi": gain.hi}
        rows.append(row)
    return pl.DataFrame(rows).sort("above untrained", descending=True)


def summary(run: RunFolder, config: Config) -> dict[str, Scalar]:
    """Flat numbers; those of transfer only where the languages have tasks in common."""
    own = language_rows(run, "trained")
    found: dict[str, Scalar] = {}
    for (language,), row in own.group_by("language", maintain_order=True):
        found |= difference(row).summary(f"probe_f1_{language}")
    found |= difference(own).summary("probe_f1_mean")
    floors = {name: language_rows(run, name) for name in FLOORS}
    for name, key in (("untrained", "random_init"), ("n-grams", "ngrams"), ("shuffled labels", "shuffled")):
        found |= difference(floors[name]).summary(f"probe_f1_{key}")
        found |= difference(own, floors[name]).summary(f"probe_above_{key}")
    for name in ("length", "majority"):
        found |= difference(floors[name]).summary(f"probe_f1_{name}")
    for seen, key in ((True, "seen"), (False, "unseen")):
        some = own.filter(seen=seen)
        if some.height:
            found |= difference(some).summary(f"probe_f1_{key}_mean")
            found |= difference(some, floors["untrained"].filter(seen=seen)).summary(f"probe_above_random_init_{key}")
    found |= {
        "probe_best_layer": best_mean_layer(run, "trained"),
        "probe_languages": own.height,
        "probe_test_sentences": int(own["test_sentences"].max()),  # type: ignore[arg-type]
    }
    rows = moved(run)
    if rows.height:
        apart, same = (
            rows.filter(pl.col("source") != pl.col("target")),
            rows.filter(pl.col("source") == pl.col("target")),
        )
        trained, untrained = (apart.filter(representation=name) for name in ("trained", "untrained"))
        found |= difference(trained).summary("probe_transfer_mean")
        found |= difference(same.filter(representation="trained")).summary("probe_transfer_same_language")
        found |= difference(untrained).summary("probe_transfer_random_init")
        found |= difference(trained, untrained).summary("probe_transfer_above_random_init")
        floor = run.table("probing_transfer").filter(representation="majority")
        found |= difference(floor).summary("probe_transfer_majority")
        found |= difference(trained, floor).summary("probe_transfer_above_majority")
    return found
