"""The numbers of the part *tasks* of `multilingual-pretraining`, with their intervals, from the run's tables."""

from __future__ import annotations

import polars as pl
from pydantic import BaseModel

from inscape.evaluation.choices import accuracies
from inscape.evaluation.translation import scores
from inscape.runs import RunFolder
from inscape.runs.folder import Scalar
from inscape.runs.intervals import bootstrap
from inscape.studies import finetune
from inscape.studies.finetune_summary import AFTER, BEFORE, paired, summarise

CHOICES = {"xcopa": "XCOPA", "rte": "RTE", "crows_pairs": "CrowS-Pairs"}
KEYS = {"xcopa": "xcopa_accuracy", "rte": "rte_accuracy", "crows_pairs": "crows_pairs_share"}
NAMES = {BEFORE: "before", AFTER: "after"}

#: What the headlines of choices read: the log-probability of an option, as the lm-evaluation-harness has it.
MEASURE = "sum"

#: Ablations are compared on these, all tests together.
ABLATED = ("valid", "correct", "ranked", "bits_per_byte")

_NEW = {
    "seen_": "heldout_items_",
    "prompt_": "heldout_prompt_",
    "language_": "heldout_language_",
    "task_": "heldout_task_",
}


def summary(run: RunFolder, config: BaseModel) -> dict[str, Scalar]:
    """Flat: name → number; estimates with ``_lo`` and ``_hi``.

    Those of finetuning are `inscape finetune`'s; ``heldout_{items|prompt|language|task}_{measure}_{before|after|change}``
    are of tests that were new in this way.
    """
    seed = int(run.manifest["seed"])
    found = {_renamed(name): value for name, value in summarise(run, seed=seed).items()}
    for row in ablations(run).iter_rows(named=True):
        name = f"ablation_{row['variant'].replace(' ', '_')}_{row['measure']}"
        found |= {name: row["difference"], f"{name}_lo": row["lo"], f"{name}_hi": row["hi"]}
    for row in choices(run, ["task"]).iter_rows(named=True):
        name = f"{KEYS[row['task']]}_{NAMES[row['variant']]}"
        found |= {name: row["median"], f"{name}_lo": row["lo"], f"{name}_hi": row["hi"]}
        found |= {f"{name}_least": row["least"], f"{name}_most": row["most"], f"{row['task']}_chance": row["chance"]}
    if "tasks_scores" in run.tables:
        for row in middle(run).iter_rows(named=True):
            shots, way = ("_1shot" if row["shots"] else ""), ("" if row["into"] == "en" else "_from_en")
            name = f"{row['metric']}_{row['output']}{way}{shots}_{NAMES[row['variant']]}"
            found |= {name: row["score"], f"{name}_lo": row["lo"], f"{name}_hi": row["hi"]}
    return found


def _renamed(name: str) -> str:
    if name.startswith("n_"):
        return f"finetune_{name}"
    if name.startswith("heldout_"):
        return name
    return next((new + name.removeprefix(old) for old, new in _NEW.items() if name.startswith(old)), name)


def ablations(run: RunFolder) -> pl.DataFrame:
    """The finetuned model less each ablated one, example by example, drawn by prompt.

    Columns: ``variant, measure, full, without, difference, lo, hi, examples``.
    """
    answers = run.table("answers")
    rows = []
    for variant in finetune.ABLATIONS:
        both = answers.filter(pl.col("variant").is_in([variant, AFTER]))
        both = both.with_columns(pl.col("variant").replace({variant: BEFORE}))
        for measure in ABLATED:
            pairs = paired(both, measure)
            difference = (pairs["after"] - pairs["before"]).to_numpy()
            found = bootstrap(difference, groups=pairs["prompt"].to_list(), seed=int(run.manifest["seed"]))
            rows.append(
                {
                    "variant": variant, "measure": measure, "full": pairs["after"].mean(),
                    "without": pairs["before"].mean(), "difference": found.value, "lo": found.lo, "hi": found.hi,
                    "examples": pairs.height,
                }
            )  # fmt: skip
    return pl.DataFrame(rows, infer_schema_length=None).fill_nan(None)


def choices(run: RunFolder, by: list[str]) -> pl.DataFrame:
    """Accuracies of `MEASURE`, before and after."""
    found = accuracies(run.table("tasks_choices"), ["variant", *by], seed=int(run.manifest["seed"]))
    return found.filter(pl.col("measure") == MEASURE).drop("measure")


def score_translations(rows: pl.DataFrame, seed: int) -> pl.DataFrame:
    """BLEU and chrF of all sentences into English, and chrF of all sentences out of it, languages together.

    Columns: ``variant, shots`` and those of `scores`; ``language`` and, out of English, ``into`` are ``all``. Out of English
    there is no BLEU: languages are cut into words in different ways.
    """
    together = rows.with_columns(
        pl.lit("all").alias("language"),
        pl.when(pl.col("into") == "en").then(pl.col("into")).otherwise(pl.lit("all")).alias("into"),
    )
    parts = []
    for (variant, shots), some in together.group_by("variant", "shots", maintain_order=True):
        found = scores(some, seed=seed).filter((pl.col("into") == "en") | (pl.col("metric") == "chrf"))
        parts.append(found.select(pl.lit(variant).alias("variant"), pl.lit(shots).alias("shots"), pl.all()))
    return pl.concat(parts, how="vertical_relaxed")


def middle(run: RunFolder) -> pl.DataFrame:
    """The middle prompt's score (the lower one of two) with its interval over sentences, and the range over prompts."""
    key = ["variant", "shots", "into", "output", "metric"]
    ordered = run.table("tasks_scores").sort("score", maintain_order=True)
    at = (pl.len() - 1) // 2
    return (
        ordered.group_by(key, maintain_order=True)
        .agg(
            pl.col("sentences").first(),
            *(pl.col(name).get(at) for name in ("score", "lo", "hi")),
            pl.col("score").min().alias("least"),
            pl.col("score").max().alias("most"),
            pl.col("stopped", "length").mean(),
        )
        .sort("shots", "into", "metric", "output", "variant", maintain_order=True)
    )
