"""The headline numbers of `numeric-monotonic`, with their intervals, from the run's tables."""

from functools import partial

import numpy as np
import polars as pl

from inscape.runs import RunFolder
from inscape.runs.folder import Scalar
from inscape.runs.intervals import Interval, bootstrap, bootstrap_paired, proportion, r2
from inscape.subspaces.controls import circular_error


def summarise(
    run: RunFolder,
    *,
    property: str,
    direction: str,
    k: int,
    layer: int,
    edit_layer: int,
    n_layers: int,
    seed: int,
    raw: bool,
) -> dict[str, Scalar]:
    """Flat: name → number; estimates with ``_lo`` and ``_hi``. Units: entities, except draws for random directions."""
    predictions, effects, cells = run.table("predictions"), run.table("effects"), run.table("side_effects")
    controls = run.table("fit_controls").filter(pl.col("control") == "shuffled")
    at_k = controls.filter(pl.col("k") == min(k, int(controls["k"].max()))).row(0, named=True)  # type: ignore[arg-type]
    y, predicted = predictions["y"].to_numpy(), predictions["pls"].to_numpy()
    answers = run.table("answers").filter((pl.col("property") == property) & (pl.col("split") == "test"))
    headline = effects.filter(pl.col("direction") == f"{direction} 1")
    main = run.table("edits").filter(pl.col("direction") == f"{direction} 1")
    random, shuffled = _per_draw(effects, "random"), _per_draw(effects, "shuffled")
    mine = cells.filter(pl.col("fitted_on") == property)
    off, on = mine.filter(pl.col("measured") != property), mine.filter(pl.col("measured") == property)
    chance = cells.filter((pl.col("fitted_on") == "random direction") & (pl.col("measured") != property))
    known = run.table("projection").filter(pl.col("split") == "train")["value"].to_numpy()
    numbers = main["number"].drop_nulls().to_numpy()
    floor = predictions["name_only"].to_numpy()
    estimates: dict[str, Interval] = {
        "r2_test": bootstrap_paired(y, predicted, r2, seed=seed),
        "r2_name_floor": bootstrap_paired(y, floor, r2, seed=seed),
        "r2_above_names": bootstrap(np.arange(len(y)), partial(_r2_gain, y, predicted, floor), seed=seed),
        "model_accuracy": proportion(answers["correct"].cast(pl.Float64).to_numpy()),
        "spearman_edit": bootstrap(headline["spearman"].to_numpy(), seed=seed),
        "abs_spearman_edit": bootstrap(headline["abs_spearman"].to_numpy(), seed=seed),
        "slope_edit": bootstrap(headline["slope"].to_numpy(), seed=seed),
        "slope_edit_median": bootstrap(headline["slope"].to_numpy(), np.median, seed=seed),
        "share_parsed_edit": bootstrap(headline["parsed"].to_numpy(), seed=seed),
        "spearman_random": bootstrap(random["spearman"], seed=seed),
        "abs_spearman_random": bootstrap(random["abs_spearman"], seed=seed),
        "slope_random_p95": bootstrap(random["slope"], partial(np.quantile, q=0.95), seed=seed),
        "slope_random_median_p95": bootstrap(random["median"], partial(np.quantile, q=0.95), seed=seed),
        "slope_shuffled": bootstrap(shuffled["slope"], seed=seed),
        "side_effect_mean": _by_entity(off, "abs_spearman", seed),
        "side_effect_random": _by_entity(chance, "abs_spearman", seed),
        "main_effect_mean": _by_entity(on, "abs_spearman", seed),
        "side_effect_slope": _by_entity(off, "slope_sd", seed),
        "side_effect_slope_random": _by_entity(chance, "slope_sd", seed),
        "main_effect_slope": _by_entity(on, "slope_sd", seed),
        "perplexity_unedited": _perplexity(main.filter(pl.col("step") == 0), seed),
        "perplexity_extremes": _perplexity(main.filter(pl.col("step").abs() == 1), seed),
    }
    if property == "longitude" and raw:
        # A circle: 179 and -179 degrees are neighbours, which R2 does not know.
        estimates["circular_error_test"] = bootstrap(circular_error(predicted, y), seed=seed)
    summary: dict[str, Scalar] = {}
    for name, interval in estimates.items():
        summary |= interval.summary(name)
    return summary | {
        "r2_test_shuffled": at_k["r2"],
        "r2_test_shuffled_lo": at_k["r2_lo"],
        "r2_test_shuffled_hi": at_k["r2_hi"],
        "k": k,
        "layer": layer,
        "edit_layer": edit_layer,
        "n_layers": n_layers,
        "property": property,
        "direction": direction,
        "n_entities": answers.height,
        "n_entities_edited": headline.height,
        "n_never_moved": int(headline["constant"].sum()),
        "n_random": len(random["slope"]),
        "share_in_range_edit": float(((numbers >= known.min()) & (numbers <= known.max())).mean())
        if len(numbers)
        else None,
        "n_missing": int(answers["number"].is_null().sum()),
    }


def _r2_gain(y: np.ndarray, predicted: np.ndarray, floor: np.ndarray, drawn: np.ndarray) -> float:
    """R² of the activations less R² of the names, on the same drawn entities."""
    at = drawn.astype(int)
    return float(r2(y[at], predicted[at]) - r2(y[at], floor[at]))


def _per_draw(effects: pl.DataFrame, kind: str) -> dict[str, np.ndarray]:
    """Per draw of a control: mean over entities; of signed measures the size, since a draw's sign means nothing."""
    draws = (
        effects.filter(pl.col("kind") == kind)
        .group_by("direction", maintain_order=True)
        .agg(
            pl.col("spearman").drop_nans().mean().abs(),
            pl.col("slope").drop_nans().mean().abs(),
            pl.col("slope").drop_nans().median().abs().alias("median"),
            pl.col("abs_spearman").drop_nans().mean(),
        )
    )
    return {
        name: draws[name].fill_null(float("nan")).to_numpy() for name in ("spearman", "slope", "median", "abs_spearman")
    }


def _by_entity(cells: pl.DataFrame, column: str, seed: int) -> Interval:
    # Sizes: to move another property up or down is a side effect either way.
    return bootstrap(cells[column].abs().to_numpy(), groups=cells["entity_id"].to_list(), seed=seed)


def _perplexity(rows: pl.DataFrame, seed: int) -> Interval:
    """exp(mean nats per token), with entities as the unit."""
    return bootstrap(
        rows["nll"].fill_null(float("nan")).to_numpy(), _exp_mean, groups=rows["entity_id"].to_list(), seed=seed
    )


def _exp_mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.exp(np.mean(values, axis=axis))
