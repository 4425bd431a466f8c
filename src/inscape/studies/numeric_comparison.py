"""Comparing numbers in a linear subspace (P4: El-Shangiti, Hiraoka, AlQuabeh, Heinzerling & Inui, NAACL 2025, 2410.13194).

Question. When a language model says whether X was born before Y, does it read the two values from a low-dimensional
linear subspace, and does moving the second entity along it turn the answer?

Method, in the order of the paper:

1. yes/no questions over pairs of entities, half Yes, half No; accuracy, and consistency with the swapped question;
2. the residual stream at the last token of *each* entity inside these questions, questions answered wrongly dropped;
3. PLS with 5 components per layer on the entities' values; test entities are in no training question (the published
   split is by row, and lets an entity stand on both sides);
4. h → h + α·v at one layer, at the last token of the second entity, over α of both signs: how many answers become the
   *valid opposite*, how many become invalid; against equal-norm random directions, and against the same edit of the
   *first* entity, which must turn answers the other way.

The layer and the α of the headline are chosen on dev questions and reported on test questions.
"""

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
import polars as pl
import torch
from pydantic import Field

from inscape.data.facts import Facts
from inscape.data.pairs import comparison_pairs, pair_entities, require_entity_disjoint, swapped
from inscape.data.properties import PROPERTIES
from inscape.errors import InputError
from inscape.models import LM, Generated, add
from inscape.runs import Run
from inscape.runs.intervals import bootstrap_paired, r2
from inscape.studies.numeric_comparison_summary import FIRST, MAIN, OPPOSITE, summarise
from inscape.studies.numeric_setup import (
    Asked,
    NumericConfig,
    Subject,
    batches,
    check_facts,
    hidden_site,
    hidden_states,
    sample,
    subject_of,
)
from inscape.subspaces.controls import random_directions
from inscape.subspaces.directions import DirectionKind, direction, unit
from inscape.subspaces.estimators import PLSSubspace
from inscape.subspaces.flips import flips, normalise_answer
from inscape.subspaces.selection import fit_curve


class Config(NumericConfig):
    """``inscape run numeric-comparison``. Defaults are the paper's where it has a value; otherwise the text says why."""

    template: int = Field(default=0, ge=0, description="which wording of the comparison")
    suffix: str | None = Field(
        default=None,
        description="text after the question (default: P4's ' Output only Yes or No.', nothing for an LM trained here)",
    )
    n_pairs: int = Field(
        default=1000, ge=10, description="questions per split, or as many as there are pairs (P4: 5,000 in all)"
    )
    min_gap: float = Field(default=0.0, ge=0, description="smallest difference of the two values")
    k: int = Field(default=5, ge=1, description="PLS components (P4: 5)")
    k_max: int = Field(default=10, ge=1, description="most components in the fit curve")
    only_correct: bool = Field(
        default=True, description="fit on questions answered rightly (P4: yes, but not for latitude)"
    )
    direction: DirectionKind = Field(default="weights", description="which vector of the first component (P4: weights)")
    flip_pairs: int = Field(default=100, ge=4, description="questions edited, half answered Yes, half No (P4: 100)")
    alpha_max: float = Field(default=2.0, gt=0, description="largest |α|, in units of alpha_unit (P4: 30, absolute)")
    n_alphas: int = Field(
        default=21,
        ge=3,
        description="α values from -alpha_max to alpha_max, 0 included; an even number becomes odd (P4: 40)",
    )
    alpha_unit: Literal["norm", "absolute"] = Field(
        default="norm",
        description="α times the mean norm of the residual at that layer and token, or as it is (P4: absolute)",
    )
    layer: int | None = Field(
        default=None,
        ge=0,
        description="hidden state of the headline intervention, 0 = embeddings (default: chosen on dev)",
    )
    random_directions: int = Field(default=20, ge=1, description="equal-norm random directions (P4: 1)")
    max_new_tokens: int = Field(default=2, ge=1, description="tokens generated per answer (P4: 1)")


SMOKE = {"size": "smoke", "n_pairs": 40, "flip_pairs": 12, "n_alphas": 5, "random_directions": 3, "limit": 120}
"""What ``--smoke`` sets: the whole pipeline at the smallest sizes."""


def run(config: Config, facts: Facts, run: Run) -> None:
    """All stages, each resumable; writes the tables and the summary."""
    study = _Study(config, facts, run)
    study.behave()
    study.fit()
    study.sweep_layers()
    study.intervene()
    study.summarise()


class _Study:
    """The state that stages hand on. The model is loaded when the first stage that needs it is not yet done."""

    def __init__(self, config: Config, facts: Facts, run: Run) -> None:
        self.config, self.facts, self.run = config, facts, run
        self.prop = PROPERTIES[config.property]
        check_facts(facts, config.property)
        if config.template >= len(self.prop.comparisons):
            raise InputError(
                f"template {config.template}: {self.prop.name} has {len(self.prop.comparisons)} comparisons"
            )
        self._subject: Subject | None = None

    @property
    def lm(self) -> LM:
        if self._subject is None:
            self._subject = subject_of(self.config, self.facts, self.run)
        return self._subject.lm

    @property
    def suffix(self) -> str:
        if self.config.suffix is not None:
            return self.config.suffix
        _ = self.lm
        assert self._subject is not None
        return "" if self._subject.trained_here else " Output only Yes or No."

    # -- 1. behaviour ----------------------------------------------------------------------------------------------

    def behave(self) -> None:
        def compute() -> dict[str, pl.DataFrame]:
            tables = []
            for _, rows in self.facts.of(self.prop.name).group_by("split", maintain_order=True):
                rows = rows.unique("label", keep="first", maintain_order=True)
                n = min(self.config.n_pairs, _pairs_to_be_had(rows["value"].to_numpy(), self.config.min_gap))
                if n < 4:
                    raise InputError(f"{self.prop.name}: {n} pairs in split {rows['split'][0]}, expected at least 4")
                tables.append(
                    comparison_pairs(
                        rows,
                        self.prop.comparisons[self.config.template],
                        n - n % 2,
                        self.config.seed,
                        min_gap=self.config.min_gap,
                    )
                )
            pairs = pl.concat(tables)
            answers = self.answers(pairs["prompt"].to_list(), "compare")
            turned = self.answers(swapped(pairs)["prompt"].to_list(), "compare, swapped")
            return {
                "pairs": pairs.with_columns(
                    pl.Series("answer", answers),
                    pl.Series("answer_swapped", turned),
                    pl.Series(
                        "correct", [a == want.casefold() for a, want in zip(answers, pairs["label"], strict=True)]
                    ),
                    pl.Series("consistent", [OPPOSITE.get(a) == b for a, b in zip(answers, turned, strict=True)]),
                )
            }

        self.pairs = self.run.stage("pairs", compute)["pairs"]

    def answers(self, questions: Sequence[str], what: str) -> list[str]:
        prompts = [self.config.prefix + q + self.suffix for q in questions]
        outputs = self.lm.generate(
            prompts, max_new_tokens=self.config.max_new_tokens, batch_size=self.config.batch_size,
            progress=batches(self.run, what),
        )  # fmt: skip
        return [first_word(output) for output in outputs]

    # -- 2 and 3. where the values are readable --------------------------------------------------------------------

    def spans(self, pairs: pl.DataFrame, which: Literal["x", "y"]) -> list[tuple[int, int]]:
        """Character spans of one of the two entities, from the template: names may occur inside each other."""
        template, other = self.prop.comparisons[self.config.template].template, "y" if which == "x" else "x"
        before = template.split(f"{{{which}}}")[0]
        spans = []
        for row in pairs.iter_rows(named=True):
            start = len(self.config.prefix) + len(before.replace(f"{{{other}}}", row[f"{other}_label"]))
            spans.append((start, start + len(row[f"{which}_label"])))
        return spans

    def prompts(self, pairs: pl.DataFrame) -> list[str]:
        return [self.config.prefix + q + self.suffix for q in pairs["prompt"]]

    def fit(self) -> None:
        pairs = self.pairs.filter("correct") if self.config.only_correct else self.pairs
        if min(pairs.filter(pl.col("split") == s).height for s in ("train", "dev", "test")) < 3:
            # A model that answers (nearly) nothing rightly can still be read; the record says that all were used.
            pairs = self.pairs
            self.run.record(fitted_on="all questions: too few were answered rightly")
        self.fit_pairs = pairs

        def compute() -> dict[str, np.ndarray]:
            prompts = self.prompts(pairs)
            x = self.lm.positions(prompts, "mention_last", mentions=self.spans(pairs, "x"))
            y = self.lm.positions(prompts, "mention_last", mentions=self.spans(pairs, "y"))
            X = hidden_states(
                self.lm, Asked(prompts, []), None, [[*a, *b] for a, b in zip(x, y, strict=True)],
                batch_size=self.config.batch_size, progress=batches(self.run, "capture"),
            )  # fmt: skip
            return {"X": X}

        self.X = self.run.arrays("capture", compute)["X"]
        parts = {s: pairs.filter(pl.col("split") == s) for s in ("train", "dev", "test")}
        require_entity_disjoint(pair_entities(parts["train"]), pair_entities(parts["test"]))
        self.k = min(self.config.k, self.X.shape[2], 2 * parts["train"].height - 1)

        def curves() -> dict[str, pl.DataFrame]:
            tables = []
            for layer in self.run.track(range(self.X.shape[1]), "fit: layers"):
                (Xa, ya, a), (Xb, yb, b), (Xc, yc, c) = (self.data(s, layer) for s in ("train", "dev", "test"))
                most = max(self.k, min(self.config.k_max, self.X.shape[2], len(ya) - 1))
                curve = fit_curve(
                    Xa, ya, Xb, yb, Xc, yc, ks=range(1, most + 1), kinds=["pls"],
                    groups_train=a, groups_dev=b, groups_test=c,
                )  # fmt: skip
                tables.append(curve.with_columns(pl.lit(layer).alias("layer")))
            return {"layers": pl.concat(tables)}

        self.layers = self.run.stage("layers", curves)["layers"]
        read = self.layers.filter((pl.col("split") == "dev") & (pl.col("k") == self.k)).sort("layer")["r2"].to_numpy()
        self.r2_layer = int(np.nanargmax(read))

    def data(self, split: str, layer: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """``X`` [2 × question, d], values, entity ids of one split: x, y of the first question, x, y of the second, …"""
        here = (self.fit_pairs["split"] == split).to_numpy()
        rows = self.fit_pairs.filter(here)
        values = np.stack([rows["x_value"].to_numpy(), rows["y_value"].to_numpy()], 1).reshape(-1)
        ids = [i for pair in zip(rows["x_id"], rows["y_id"], strict=True) for i in pair]
        return self.X[np.repeat(here, 2)][:, layer], values, ids

    # -- 4. intervention -------------------------------------------------------------------------------------------

    @property
    def alphas(self) -> np.ndarray:
        half = np.linspace(0, self.config.alpha_max, self.config.n_alphas // 2 + 1)
        return np.concatenate([-half[:0:-1], half])

    def axis(self, layer: int) -> np.ndarray:
        """The unit vector of the first component."""
        X, y, _ = self.data("train", layer)
        fitted = PLSSubspace(self.k).fit(X, y)
        return unit(direction(fitted, self.config.direction, None if self.config.direction == "coefficient" else 0))

    def scale(self, layer: int) -> float:
        if self.config.alpha_unit == "absolute":
            return 1.0
        return float(np.linalg.norm(self.data("train", layer)[0][1::2], axis=1).mean())  # the second entities

    def chosen(self, split: str) -> pl.DataFrame:
        """Questions to edit: rightly answered ones, half Yes, half No; none if a class has fewer than two."""
        right = self.pairs.filter((pl.col("split") == split) & pl.col("correct"))
        half = min(self.config.flip_pairs // 2, *(int((right["answer"] == a).sum()) for a in OPPOSITE))
        half = half if half >= 2 else 0
        return pl.concat([sample(right.filter(pl.col("answer") == a), half, self.config.seed) for a in OPPOSITE])

    def turned(self, rows: pl.DataFrame, which: Literal["x", "y"], layer: int, axis: np.ndarray) -> pl.DataFrame:
        """Answers of each question at each α: pair_id, answer (unedited), alpha, edited."""
        alphas, n = self.alphas, rows.height
        site, vector = hidden_site(self.lm, layer), torch.from_numpy(axis).float()
        outputs: list[str] = []
        if n:  # (A model that answers nothing rightly leaves no question to edit.)
            # At α = 0 nothing is added: a run without edits, which the sweep makes anyway.
            cells = [
                [add(*site, vector, tokens="mention_last", strength=float(a))] if a else []
                for a in alphas * self.scale(layer)
            ]
            wrote = self.lm.rerun(
                self.prompts(rows), cells, Generated(self.config.max_new_tokens), mentions=self.spans(rows, which),
                batch_size=self.config.batch_size,
            )  # fmt: skip
            outputs = wrote.values.values.ravel().tolist()
        return pl.DataFrame(
            {
                "pair_id": np.repeat(rows["pair_id"].to_numpy(), len(alphas)),
                "answer": np.repeat(rows["answer"].to_numpy(), len(alphas)),
                "alpha": np.tile(alphas, n),
                "edited": [first_word(output) for output in outputs],
            },
            schema={"pair_id": pl.String, "answer": pl.String, "alpha": pl.Float64, "edited": pl.String},
        )

    def sweep_layers(self) -> None:
        if self.config.layer is not None and self.config.layer >= self.X.shape[1]:
            raise InputError(f"layer {self.config.layer}: the model has hidden states 0 to {self.X.shape[1] - 1}")
        rows = self.chosen("dev")
        tables = self.run.map(
            "layer_sweep",
            [str(layer) for layer in range(self.X.shape[1])],
            lambda key: self.turned(rows, "y", int(key), self.axis(int(key))).with_columns(
                pl.lit(int(key)).alias("layer")
            ),
        )
        counted = self.run.stage("layer_flips", lambda: {"layer_flips": _counted(tables, "layer")})["layer_flips"]
        self.layer: int = 0 if self.config.layer is None else self.config.layer
        self.alpha: float | None = None
        if self.config.layer is not None:
            counted = counted.filter(pl.col("layer") == self.config.layer)
        if counted.height:
            # Most valid flips; of equals the gentlest edit, then the lowest layer.
            best = counted.with_columns(pl.col("alpha").abs().alias("size")).sort(
                ["flip_valid", "size", "layer"], descending=[True, False, False], nulls_last=True
            )
            self.layer, self.alpha = int(best["layer"][0]), float(best["alpha"][0])

    def intervene(self) -> None:
        rows = self.chosen("test")
        axes: dict[str, tuple[Literal["x", "y"], np.ndarray]] = {
            MAIN: ("y", self.axis(self.layer)),
            FIRST: ("x", self.axis(self.layer)),
        }
        draws = random_directions(self.X.shape[2], n_draws=self.config.random_directions, random_state=self.config.seed)
        axes |= {f"random {i + 1}": ("y", u) for i, u in enumerate(draws)}
        self.edits = self.run.map(
            "interventions",
            list(axes),
            lambda key: self.turned(rows, axes[key][0], self.layer, axes[key][1]).with_columns(
                pl.lit(key).alias("direction")
            ),
        )
        self.flips = self.run.stage("flips", lambda: {"flips": _counted(self.edits, "direction")})["flips"]

    # -- what came out ---------------------------------------------------------------------------------------------

    def summarise(self) -> None:
        X, y, entities = self.data("test", self.r2_layer)
        fitted = PLSSubspace(self.k).fit(*self.data("train", self.r2_layer)[:2])
        own = {"r2_layer": self.r2_layer, "k": self.k, "n_layers": self.X.shape[1] - 1, "property": self.prop.name}
        self.run.summary(
            summarise(
                self.run, layer=self.layer, alpha=self.alpha, one_entity=self.by_one_entity(), seed=self.config.seed,
                r2_best=bootstrap_paired(y, fitted.predict(X), r2, groups=entities, seed=self.config.seed),
            )
            | own
        )  # fmt: skip

    def by_one_entity(self) -> np.ndarray:
        """Per test question, whether it is answered by asking if X alone lies below the training median."""
        middle = float(np.median(self.facts.of(self.prop.name, "train")["value"].to_numpy()))
        comparison = self.prop.comparisons[self.config.template]
        test = self.pairs.filter(pl.col("split") == "test")
        guess = [comparison.answer(x, middle) for x in test["x_value"]]
        return np.array([g == label for g, label in zip(guess, test["label"], strict=True)], dtype=float)


def first_word(output: str) -> str:
    """The answer as compared: the first word, without case and stops; empty if nothing was written."""
    # Instruct models wrap it: **Yes**, "Yes", (Yes):
    words = [stripped for word in output.split() if (stripped := re.sub(r"^\W+|\W+$", "", word))]
    return normalise_answer(words[0]) if words else ""


def _pairs_to_be_had(values: np.ndarray, min_gap: float) -> int:
    """Unordered pairs whose values differ, by ``min_gap`` at least."""
    ordered = np.sort(values)
    side: Literal["left", "right"] = "left" if min_gap > 0 else "right"
    return int((len(ordered) - np.searchsorted(ordered, ordered + min_gap, side)).sum())


def _counted(table: pl.DataFrame, by: str) -> pl.DataFrame:
    """`flips` of each group of a long table of interventions."""
    counted = []
    for (key,), rows in table.group_by(by, maintain_order=True):
        wide = rows.pivot("pair_id", index="alpha", values="edited", maintain_order=True).sort("alpha")
        ids = [name for name in wide.columns if name != "alpha"]
        base = dict(zip(rows["pair_id"], rows["answer"], strict=True))
        result = flips([base[i] for i in ids], wide.select(ids).rows(), wide["alpha"].to_numpy(), OPPOSITE)
        counted.append(result.per_alpha.with_columns(pl.lit(key).alias(by)))
    return (
        pl.concat(counted)
        if counted
        else pl.DataFrame(
            schema={by: pl.String, "alpha": pl.Float64, "flip_valid": pl.Float64, "changed_any_so_far": pl.Float64}
        )
    )
