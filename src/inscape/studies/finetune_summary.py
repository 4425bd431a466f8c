"""The headline numbers of `finetune`, with their intervals, from the run's table of answers.

A claim is about prompts: prompts are what the bootstrap draws, whole, with all their examples. What the intervals don't
cover: another seed of finetuning, other corpora.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

from inscape.runs import RunFolder
from inscape.runs.folder import Scalar
from inscape.runs.intervals import Interval, bootstrap, bootstrap_paired

BEFORE, AFTER = "before", "finetuned"
NEW = {
    "seen": "new items", "prompt": "new prompts", "language": "new languages", "task": "new tasks",
}  # fmt: skip
MEASURES = {
    "valid": "valid answer", "stopped": "stopped", "correct": "right answer", "ranked": "right option ranked first",
    "bits_per_byte": "bits per target byte", "valid_first_line": "valid first line",
    "correct_first_line": "right first line",
}  # fmt: skip
_DRAWS = 1000
_KEYS = ["id", "task", "prompt", "language", "new"]


def summarise(run: RunFolder, *, seed: int) -> dict[str, Scalar]:
    """Flat: name → number; estimates with ``_lo`` and ``_hi``. ``{new}_{measure}_{before|after}`` for every kind of test."""
    answers = run.table("answers")
    counts = run.table("counts")
    trained = counts.filter(pl.col("new") == "train")
    summary: dict[str, Scalar] = {
        "n_train_examples": int(trained["examples"].sum()),
        "n_train_prompts": trained["prompt"].n_unique(),
        "n_train_clusters": trained["cluster"].n_unique(),
        "n_train_languages": trained["language"].n_unique(),
        "n_prompts": counts["prompt"].n_unique(),
        "n_tests": answers.filter(pl.col("variant") == BEFORE).height,
    }
    names = {BEFORE: "before", AFTER: "after"}
    for variant in answers["variant"].unique(maintain_order=True).to_list():
        here = answers.filter(pl.col("variant") == variant)
        name = names.get(variant, variant.replace(" ", "_"))
        summary |= estimate(here, "valid", seed).summary(f"finetune_valid_{name}")
        summary |= estimate(here, "stopped", seed).summary(f"finetune_stopped_{name}")
        for new in NEW:
            some = here.filter(pl.col("new") == new)
            for measure in ("valid", "stopped", "correct", "ranked", "bits_per_byte"):
                summary |= estimate(some, measure, seed).summary(f"{new}_{measure}_{name}")
        prompts = here.filter(pl.col("new") == "prompt")
        summary |= estimate(prompts, "correct", seed).summary(f"heldout_prompt_accuracy_{name}")
    for new in NEW:
        for measure in ("valid", "correct", "ranked", "bits_per_byte"):
            summary |= change(answers, new, measure, seed).summary(f"{new}_{measure}_change")
        ranked = answers.filter((pl.col("variant") == AFTER) & (pl.col("new") == new) & pl.col("chance").is_not_null())
        summary[f"{new}_chance"] = ranked["chance"].mean()  # type: ignore[assignment]
    return summary


def estimate(answers: pl.DataFrame, measure: str, seed: int) -> Interval:
    """Mean of a measure over examples, drawn by prompt; NaN where no example has it."""
    some = answers.drop_nulls(measure)
    return bootstrap(some[measure].cast(pl.Float64).to_numpy(), groups=some["prompt"].to_list(), seed=seed, n=_DRAWS)


def change(answers: pl.DataFrame, new: str, measure: str, seed: int) -> Interval:
    """Mean of after less before, example by example, drawn by prompt."""
    pairs = paired(answers.filter(pl.col("new") == new), measure)
    return bootstrap_paired(
        pairs["after"].to_numpy(), pairs["before"].to_numpy(), _mean_difference, groups=pairs["prompt"].to_list(),
        seed=seed, n=_DRAWS,
    )  # fmt: skip


def paired(answers: pl.DataFrame, measure: str) -> pl.DataFrame:
    """``before`` and ``after`` of each example that has the measure in both."""
    sides = [
        answers.filter(pl.col("variant") == variant).select(*_KEYS, pl.col(measure).cast(pl.Float64).alias(name))
        for variant, name in ((BEFORE, "before"), (AFTER, "after"))
    ]
    return sides[0].join(sides[1], on=_KEYS, maintain_order="left").drop_nulls()


def table(answers: pl.DataFrame, by: Sequence[str], measures: Sequence[str]) -> pl.DataFrame:
    """Means by group and variant, in the order in which groups first appear; ``examples`` counts those of a variant."""
    return answers.group_by(*by, "variant", maintain_order=True).agg(
        pl.len().alias("examples"), *(pl.col(measure).cast(pl.Float64).mean() for measure in measures)
    )


def _mean_difference(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean(x - y)) if len(x) else float("nan")
