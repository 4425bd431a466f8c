"""The headline numbers of `numeric-comparison`, with their intervals, from the run's tables.

A single α can turn one class only: making Y later turns "No, X was not before Y" at most. So beside the flips at the best
single α there are the flips where each class gets the α of its own sign. Both α are chosen on dev; a random direction gets
its own best ones on test, which favours the control.
"""

from functools import partial

import numpy as np
import polars as pl

from inscape.runs import RunFolder
from inscape.runs.folder import Scalar
from inscape.runs.intervals import Interval, bootstrap, proportion

OPPOSITE = {"yes": "no", "no": "yes"}
MAIN, FIRST = "PLS, second entity", "PLS, first entity"


def summarise(
    run: RunFolder, *, r2_best: Interval, layer: int, alpha: float | None, one_entity: np.ndarray, seed: int
) -> dict[str, Scalar]:
    """Flat: name → number; estimates with ``_lo`` and ``_hi``.

    Args:
        r2_best: R² of the values, from the layer that reads best.
        layer, alpha: of the intervention, chosen on dev; ``alpha`` None if there was nothing to choose by.
        one_entity: per test question, whether looking at X alone answers it.
    """
    test = run.table("pairs").filter(pl.col("split") == "test")
    correct = test["correct"].cast(pl.Float64).to_numpy()
    entities = test["x_id"].to_list()
    estimates: dict[str, Interval] = {
        "accuracy": bootstrap(correct, groups=entities, seed=seed),
        "accuracy_one_entity_floor": bootstrap(one_entity, groups=entities, seed=seed),
        "accuracy_above_floor": bootstrap(correct - one_entity, groups=entities, seed=seed),
        "consistency": bootstrap(test["consistent"].cast(pl.Float64).to_numpy(), groups=entities, seed=seed),
        "r2_best_layer": r2_best,
    }
    if correct.min() == correct.max():  # a bootstrap of equal values has no width
        estimates["accuracy"] = proportion(correct)
    flips, edits = run.table("flips"), run.table("interventions")
    nothing = proportion(np.array([]))
    draws = flips.filter(pl.col("direction").str.starts_with("random")).partition_by("direction", maintain_order=True)
    measured = alpha is not None and edits.height > 0
    signs = best_signs(run.table("layer_flips").filter(pl.col("layer") == layer)) if measured else None
    at_best = _turned(edits, MAIN, alpha, alpha) if measured else np.array([])
    p95 = partial(np.quantile, q=0.95)
    estimates |= {
        "flip_valid_at_best_alpha": proportion(at_best) if measured else nothing,
        "flip_first_entity": proportion(_turned(edits, FIRST, -alpha, -alpha))
        if alpha is not None and measured
        else nothing,
        "flip_random_p95": bootstrap([_most(d["flip_valid"]) for d in draws], p95, seed=seed) if measured else nothing,
        "flip_both_signs": proportion(_turned(edits, MAIN, *signs[:2])) if signs else nothing,
        "flip_both_signs_random_p95": bootstrap([best_signs(d)[2] for d in draws], p95, seed=seed)
        if signs
        else nothing,
        "invalid_rate": proportion(_invalid(edits, alpha)) if measured else nothing,
    }
    summary: dict[str, Scalar] = {}
    for name, interval in estimates.items():
        summary |= interval.summary(name)
    paper = _most(flips.filter(pl.col("direction") == MAIN)["changed_any_so_far"]) if measured else None
    return summary | {
        "best_layer": layer if measured else None,
        "best_alpha": alpha if measured else None,
        "n_pairs": test.height,
        "n_edited": len(at_best),
        "n_random": len(draws),
        "n_invalid_answers": int((~test["answer"].is_in(list(OPPOSITE))).sum()),
        "flip_any_alpha_paper": paper,
        "flip_any_alpha_random": float(np.mean([_most(d["changed_any_so_far"]) for d in draws])) if measured else None,
    }


def best_signs(flips: pl.DataFrame) -> tuple[float, float, float]:
    """``(α for Yes, α for No, share turned)``: the best pair of α of opposite signs, one per class of answers."""
    options = []
    for sign in (-1, 1):
        chosen = []
        for answer, side in (("yes", sign), ("no", -sign)):
            rows = flips.filter(pl.col("sign") == side).with_columns(pl.col("alpha").abs().alias("size"))
            best = rows.sort([f"flip_from_{answer}", "size"], descending=[True, False], nulls_last=True).row(
                0, named=True
            )
            chosen.append((float(best["alpha"]), float(best[f"flip_from_{answer}"])))
        (yes, turned_yes), (no, turned_no) = chosen
        options.append((yes, no, (turned_yes + turned_no) / 2))
    return max(options, key=lambda option: option[2])


def _turned(edits: pl.DataFrame, direction: str, alpha_yes: float | None, alpha_no: float | None) -> np.ndarray:
    """Per question: 1.0 if its answer became the valid opposite at its class's α."""
    at = pl.when(pl.col("answer") == "yes").then(pl.lit(alpha_yes)).otherwise(pl.lit(alpha_no))
    rows = edits.filter((pl.col("direction") == direction) & ((pl.col("alpha") - at).abs() < 1e-9))
    return np.array([OPPOSITE[a] == b for a, b in zip(rows["answer"], rows["edited"], strict=True)], dtype=float)


def _invalid(edits: pl.DataFrame, alpha: float | None) -> np.ndarray:
    rows = edits.filter((pl.col("direction") == MAIN) & (pl.col("alpha") == alpha))
    return (~rows["edited"].is_in(list(OPPOSITE))).cast(pl.Float64).to_numpy()


def _most(shares: pl.Series) -> float:
    most = shares.drop_nans().max()
    return float("nan") if most is None else float(most)  # type: ignore[arg-type]
