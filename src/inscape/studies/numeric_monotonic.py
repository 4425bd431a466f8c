"""Numeric properties as monotonic directions (P7: Heinzerling & Inui, ACL 2024, arXiv 2403.10381).

Question. Is a numeric property of an entity (a birth year, an elevation) a linear direction in a language model's
activations, and does moving along it move the number that the model writes, monotonically?

Method, in the order of the paper:

1. ask every entity for its property, read the number, score it against the fact;
2. capture the residual stream at the last token of the entity's mention;
3. fit PLS on the training entities, choose the number of components on dev, report on test, beside PCA + regression,
   ridge, shuffled labels, random representations and a reader of names alone;
4. add a component's vector, over its range of training scores, at a window of layers and tokens, and let the model
   answer again; hold the effect against equal-norm random directions and directions fitted to shuffled labels;
5. fit on property A, measure on property B: the side effects.

Departures from the published code are deliberate and listed on the study's docs page: k is chosen on dev and reported on
test, an unparsable answer is missing and not 0, and the token window is found in the prompt that is measured.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import polars as pl
import torch
from pydantic import Field

from inscape.data.facts import Facts
from inscape.data.properties import PROPERTIES, Property
from inscape.errors import InputError
from inscape.models import LM, Generated, Window, add
from inscape.runs import Run
from inscape.studies.numeric_monotonic_plan import plan_edits
from inscape.studies.numeric_monotonic_summary import summarise
from inscape.studies.numeric_setup import (
    Asked,
    NumericConfig,
    Subject,
    ask,
    batches,
    check_facts,
    hidden_site,
    hidden_states,
    is_correct,
    read_number,
    sample,
    subject_of,
)
from inscape.subspaces.controls import ControlKind, control_curve, random_directions, summarise_draws
from inscape.subspaces.directions import DirectionKind, edit_vectors, steps
from inscape.subspaces.effects import effects_table
from inscape.subspaces.estimators import PLSSubspace
from inscape.subspaces.name_floor import name_floor
from inscape.subspaces.selection import choose_k, fit_curve
from inscape.subspaces.targets import TargetTransform


class Config(NumericConfig):
    """``inscape run numeric-monotonic``. Defaults are the paper's where it has a value; otherwise the text says why."""

    question: int = Field(default=0, ge=0, description="which paraphrase of the question (P7: 0)")
    suffix: str | None = Field(
        default=None,
        description="text after the question (default: P7's ' One word answer only: ', nothing for an LM trained here)",
    )
    target: Literal["raw", "yeo-johnson"] = Field(
        default="raw", description="scale of the values that PLS is fitted to"
    )
    k_max: int = Field(default=50, ge=1, description="most components (P7: 50)")
    layer: int | None = Field(
        default=None,
        ge=0,
        description="hidden state to read and edit, 0 = embeddings (P7: 0.3 × layers; default: each chosen on dev)",
    )
    direction: DirectionKind = Field(
        default="loadings", description="which vector of a component is added (P7: loadings)"
    )
    components: int = Field(default=6, ge=1, description="components edited one by one (P7's table: 6)")
    n_steps: int = Field(default=21, ge=3, description="edit steps from -1 to 1 (P7: 21)")
    window_layers: int | None = Field(
        default=None,
        ge=0,
        description="layers on each side that are edited too (P7: 2 of 40; default: layers / 16, at most 2)",
    )
    window_tokens: tuple[int, int] = Field(
        default=(-2, 1), description="tokens edited, from and to, counted from the mention's last (P7: -2 1)"
    )
    entities: int = Field(default=100, ge=2, description="test entities whose answers are edited (P7: 100)")
    sweep_entities: int = Field(default=40, ge=2, description="dev entities of the layer sweep")
    sweep_steps: int = Field(default=7, ge=3, description="edit steps of the layer sweep")
    side_effect_entities: int = Field(
        default=40, ge=2, description="test entities per cell of the side-effect matrix (P7: 100)"
    )
    side_effect_steps: int = Field(default=11, ge=3, description="edit steps of the side-effect matrix (P7: 40)")
    random_directions: int = Field(
        default=20, ge=1, description="draws of equal-norm random directions (20 or more for a p95)"
    )
    shuffled_draws: int = Field(
        default=20, ge=2, description="draws of shuffled labels, for the fit and for directions"
    )
    show: tuple[str, ...] = Field(
        default=(), description="names of test entities whose answers the report shows step by step (P7: Karl Popper)"
    )
    max_new_tokens: int = Field(default=8, ge=1, description="tokens generated per answer (P7: 6)")


SMOKE = {
    "size": "smoke", "k_max": 8, "components": 2, "n_steps": 5, "entities": 12, "sweep_entities": 6, "sweep_steps": 3,
    "side_effect_entities": 5, "side_effect_steps": 3, "random_directions": 3, "shuffled_draws": 3, "limit": 120,
}  # fmt: skip
"""What ``--smoke`` sets: the whole pipeline at the smallest sizes."""

RANDOM = "random direction"
"""The row of the side-effect matrix that was fitted on nothing."""


def run(config: Config, facts: Facts, run: Run) -> None:
    """All stages, each resumable; writes the tables and the summary."""
    study = _Study(config, facts, run)
    study.answers()
    study.fit()
    study.choose_layers()
    study.read()
    study.edit()
    study.side_effects()
    study.summarise()


class _Study:
    """The state that stages hand on. The model is loaded when the first stage that needs it is not yet done."""

    def __init__(self, config: Config, facts: Facts, run: Run) -> None:
        self.config, self.facts, self.run = config, facts, run
        self.prop = PROPERTIES[config.property]
        check_facts(facts, config.property)
        names = facts.of(config.property, "test")["label"]
        if unknown := [name for name in config.show if name not in names]:
            raise InputError(f"show {unknown[0]!r}: no test entity of {config.property} has this name")
        if config.question >= len(self.prop.questions):
            raise InputError(f"question {config.question}: {self.prop.name} has {len(self.prop.questions)} paraphrases")
        if config.window_tokens[0] > config.window_tokens[1]:
            raise InputError(f"window_tokens {config.window_tokens}: expected first ≤ last")
        self._subject: Subject | None = None

    @property
    def lm(self) -> LM:
        if self._subject is None:
            self._subject = subject_of(self.config, self.facts, self.run)
        return self._subject.lm

    def asked(self, prop: Property, labels: Sequence[str]) -> Asked:
        suffix = self.config.suffix
        if suffix is None:
            _ = self.lm
            assert self._subject is not None
            suffix = "" if self._subject.trained_here else " One word answer only: "
        return ask(
            prop.questions[min(self.config.question, len(prop.questions) - 1)], labels, self.config.prefix, suffix
        )

    # -- 1. what the model answers ---------------------------------------------------------------------------------

    def answers(self) -> None:
        def compute() -> dict[str, pl.DataFrame]:
            tables = []
            for name in self.facts.properties:
                prop, rows = PROPERTIES[name], self.facts.of(name)
                if name != self.prop.name:
                    rows = rows.filter(pl.col("split") == "test")
                asked = self.asked(prop, rows["label"].to_list())
                outputs = self.lm.generate(
                    asked.prompts, max_new_tokens=self.config.max_new_tokens, batch_size=self.config.batch_size,
                    progress=batches(self.run, f"answers: {name}"),
                )  # fmt: skip
                numbers = [read_number(prop, output) for output in outputs]
                tables.append(
                    rows.with_columns(
                        pl.Series("prompt", asked.prompts),
                        pl.Series("output", outputs),
                        pl.Series("number", numbers, dtype=pl.Float64),
                        pl.Series(
                            "correct", [is_correct(prop, v, n) for v, n in zip(rows["value"], numbers, strict=True)]
                        ),
                    )
                )
            return {"answers": pl.concat(tables)}

        self.run.stage("answers", compute)

    # -- 2 and 3. where it is readable -----------------------------------------------------------------------------

    def captured(self, name: str, layers: list[int] | None) -> dict[str, np.ndarray]:
        """``X`` float32 [entity, layer, d]: hidden states 0 to n_layers at the last token of the mention."""

        def compute() -> dict[str, np.ndarray]:
            asked = self.asked(PROPERTIES[name], self.facts.of(name)["label"].to_list())
            progress = batches(self.run, f"capture: {name}")
            size = self.config.batch_size
            return {"X": hidden_states(self.lm, asked, layers, "mention_last", batch_size=size, progress=progress)}

        return self.run.arrays(f"capture_{name}", compute)

    def split(self, name: str, X: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray, pl.DataFrame]]:
        """``{split: (X [n, d], y [n], rows)}`` of one layer."""
        rows = self.facts.of(name)
        result = {}
        for part in ("train", "dev", "test"):
            here = (rows["split"] == part).to_numpy()
            if here.sum() < 3:
                raise InputError(f"{name}: {here.sum()} entities in split {part}, expected at least 3")
            result[part] = (X[here], rows["value"].to_numpy()[here], rows.filter(here))
        return result

    def curve(self, layer: int, kinds: Sequence[Literal["pls", "pca", "ridge"]]) -> pl.DataFrame:
        data = self.split(self.prop.name, self.X[:, layer])
        (Xa, ya, a), (Xb, yb, b), (Xc, yc, c) = data["train"], data["dev"], data["test"]
        return fit_curve(
            Xa, ya, Xb, yb, Xc, yc, ks=range(1, self.k_max + 1), kinds=kinds, target=self.config.target,
            groups_train=a["entity_id"].to_list(), groups_dev=b["entity_id"].to_list(), groups_test=c["entity_id"].to_list(),
            random_state=self.config.seed,
        )  # fmt: skip

    def fit(self) -> None:
        self.X = self.captured(self.prop.name, None)["X"]
        n_train = (self.facts.of(self.prop.name)["split"] == "train").sum()
        self.k_max = min(self.config.k_max, n_train - 1, self.X.shape[2])

        def compute() -> dict[str, pl.DataFrame]:
            tables = []
            for layer in self.run.track(range(self.X.shape[1]), "fit: layers"):
                curve = self.curve(layer, ["pls"])
                k = choose_k(curve)
                tables.append(curve.filter(pl.col("k") == k).with_columns(pl.lit(layer).alias("layer")))
            return {"layers": pl.concat(tables).select("layer", "k", "split", "r2", "spearman")}

        self.layers = self.run.stage("layers", compute)["layers"]

    # -- where it is editable, and the choice of the layer ---------------------------------------------------------

    def training(self, name: str, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Training activations ``[entity, d]`` and values on the target's scale."""
        Xa, ya, _ = self.split(name, X)["train"]
        return Xa, TargetTransform(self.config.target).fit(ya).transform(ya)

    def k_at(self, layer: int) -> int:
        return int(self.layers.filter(pl.col("layer") == layer)["k"][0])

    def fitted(self, layer: int) -> PLSSubspace:
        """PLS of one layer; for ``coefficient``, which is the sum over components, cut at the k that dev chose there."""
        full = PLSSubspace(self.k_max).fit(*self.training(self.prop.name, self.X[:, layer]))
        return full.truncate(self.k_at(layer)) if self.config.direction == "coefficient" else full

    def choose_layers(self) -> None:
        if self.config.layer is not None and self.config.layer >= self.X.shape[1]:
            raise InputError(f"layer {self.config.layer}: the model has hidden states 0 to {self.X.shape[1] - 1}")
        rows = sample(self.facts.of(self.prop.name, "dev"), self.config.sweep_entities, self.config.seed)

        def one_layer(key: str) -> pl.DataFrame:
            layer = int(key)
            vectors = edit_vectors(self.fitted(layer), 0, self.config.sweep_steps, self.config.direction)
            edited = self.edited(self.prop, rows, vectors, [layer], steps(self.config.sweep_steps))
            return edited.with_columns(pl.lit(layer).alias("layer"))

        sweep = self.run.map("layer_sweep", [str(i) for i in range(self.X.shape[1])], one_layer)
        effects = effects_table(sweep, ["layer", "entity_id"], output="number")
        self.run.stage("layer_effects", lambda: {"layer_effects": effects})
        if self.config.layer is not None:
            self.layer = self.edit_layer = self.config.layer
            return
        # Where it reads best and where it moves most are two questions; dev answers both. An edit is tried only where at
        # least half as much can be read as at the best place: elsewhere the direction means little.
        read = self.layers.filter(pl.col("split") == "dev").sort("layer")["r2"].to_numpy()
        self.layer = int(np.nanargmax(read))
        readable = np.flatnonzero(read >= min(read[self.layer], read[self.layer] / 2))
        moved = effects.group_by("layer").agg(pl.col("slope").drop_nans().mean()).sort("layer")["slope"]
        gain = moved.fill_null(0.0).fill_nan(0.0).to_numpy()
        self.edit_layer = int(readable[np.argmax(gain[readable])])

    # -- 4. edits and their controls -------------------------------------------------------------------------------

    def edited(
        self, prop: Property, rows: pl.DataFrame, vectors: np.ndarray, layers: Sequence[int], dose: np.ndarray
    ) -> pl.DataFrame:
        """Answers of each entity at each step: entity_id, step, output, number, nll (of the output, unedited model).

        ``vectors`` are ``[step, d]`` for all entities, or ``[entity, step, d]``.
        """
        asked = self.asked(prop, rows["label"].to_list())
        added = torch.from_numpy(vectors).float()
        window = Window("mention_last", *self.config.window_tokens)
        # At step 0 nothing is added: a run without edits, which the sweep makes anyway.
        cells = [
            [add(*hidden_site(self.lm, layer), added[..., s, :], tokens=window) for layer in layers] if step else []
            for s, step in enumerate(dose)
        ]
        wrote = self.lm.rerun(
            asked.prompts, cells, Generated(self.config.max_new_tokens, ids=True), mentions=asked.spans,
            batch_size=self.config.batch_size,
        )  # fmt: skip
        ids: list[tuple[int, ...]] = wrote.values.values.ravel().tolist()
        outputs = self.lm.decode(ids)
        prompts = [prompt for prompt in asked.prompts for _ in dose]
        return pl.DataFrame(
            {
                "entity_id": np.repeat(rows["entity_id"].to_numpy(), len(dose)),
                "step": np.tile(dose, rows.height),
                "output": outputs,
                "number": pl.Series([read_number(prop, output) for output in outputs], dtype=pl.Float64),
                "nll": pl.Series(self.unedited_nll(prompts, ids), dtype=pl.Float64),
            }
        )

    def unedited_nll(self, prompts: list[str], ids: list[tuple[int, ...]]) -> list[float | None]:
        """Nats per token of each output under the unedited model: does the edited text still read like text?"""
        wrote = list(dict.fromkeys((prompt, new) for prompt, new in zip(prompts, ids, strict=True) if new))
        if not wrote:
            return [None] * len(ids)
        before = self.lm.token_ids([prompt for prompt, _ in wrote])
        scores = self.lm.score(before, [new for _, new in wrote], batch_size=self.config.batch_size)
        nll = dict(zip(wrote, (-scores.mean).tolist(), strict=True))
        return [nll.get(one) for one in zip(prompts, ids, strict=True)]

    @property
    def window(self) -> range:
        # P7 edits 5 of 40 layers. All of a shallow model would be another experiment: displacements add up and overshoot.
        w = self.config.window_layers
        if w is None:
            w = min(2, round((self.X.shape[1] - 1) / 16))
        return range(max(self.edit_layer - w, 0), min(self.edit_layer + w, self.X.shape[1] - 1) + 1)

    def read(self) -> None:
        """The fit at the layer that reads best, beside its controls."""
        curve = self.curve(self.layer, ["pls", "pca", "ridge"])
        self.k = choose_k(curve)
        self.run.stage("fit_curve", lambda: {"fit_curve": curve})
        self.run.stage("fit_controls", self.fit_controls)
        self.run.stage("projection", lambda: {"projection": self.projection(self.fitted(self.layer))})

    def edit(self) -> None:
        config, pls, at = self.config, self.fitted(self.edit_layer), self.X[:, self.edit_layer]
        test = self.facts.of(self.prop.name, "test")
        rows = pl.concat(
            [sample(test, config.entities, config.seed), test.filter(pl.col("label").is_in(list(config.show)))]
        ).unique("entity_id", maintain_order=True)
        dose = steps(config.n_steps)
        plans = plan_edits(
            pls, self.k_at(self.edit_layer), *self.training(self.prop.name, at), config.direction,
            components=config.components, n_steps=config.n_steps, n_random=config.random_directions,
            n_shuffled=config.shuffled_draws, seed=config.seed,
        )  # fmt: skip

        def one_plan(key: str) -> pl.DataFrame:
            table = self.edited(self.prop, rows, plans[key], self.window, dose)
            kind, _, rest = key.partition(" ")
            norms = np.tile(np.linalg.norm(plans[key], axis=1), rows.height)
            return table.with_columns(
                pl.lit(key).alias("direction"), pl.lit(kind).alias("kind"), pl.lit(rest).alias("which"),
                pl.Series("norm", norms),
            )  # fmt: skip

        edits = self.run.map("edits", list(plans), one_plan)
        by = ["direction", "kind", "which", "entity_id"]
        self.run.stage("effects", lambda: {"effects": effects_table(edits, by, output="number")})

    def fit_controls(self) -> dict[str, pl.DataFrame]:
        data = self.split(self.prop.name, self.X[:, self.layer])
        (Xa, ya, a), (Xc, yc, c) = data["train"], data["test"]
        scale = TargetTransform(self.config.target).fit(ya)
        za, zc = scale.transform(ya), scale.transform(yc)
        k = min(self.k_max, 20)
        kinds: tuple[ControlKind, ...] = ("shuffled", "random")
        draws = [
            control_curve(
                PLSSubspace(k),
                Xa,
                za,
                Xc,
                zc,
                control=kind,
                n_draws=self.config.shuffled_draws,
                random_state=self.config.seed,
            )
            for kind in kinds
        ]
        floor = name_floor(a["label"].to_list(), ya, c["label"].to_list(), yc, target=self.config.target)
        pls = PLSSubspace(self.k).fit(Xa, za)
        return {
            "fit_controls": summarise_draws(pl.concat(draws)),
            "predictions": c.select("entity_id", "label").with_columns(
                pl.Series("y", zc), pl.Series("pls", pls.predict(Xc)), pl.Series("name_only", floor.predictions)
            ),
        }

    def projection(self, pls: PLSSubspace) -> pl.DataFrame:
        scores = pls.transform(self.X[:, self.layer])
        second = scores[:, 1] if scores.shape[1] > 1 else np.zeros(len(scores))
        return self.facts.of(self.prop.name).with_columns(
            pl.Series("component_1", scores[:, 0]), pl.Series("component_2", second)
        )

    # -- 5. side effects -------------------------------------------------------------------------------------------

    def side_effects(self) -> None:
        names, S = self.facts.properties, self.config.side_effect_steps
        norm = np.linalg.norm(self.side_vectors(self.prop.name), axis=1)

        def one_cell(key: str) -> pl.DataFrame:
            fitted_on, measured = key.split(" > ")
            rows = sample(self.facts.of(measured, "test"), self.config.side_effect_entities, self.config.seed)
            if fitted_on == RANDOM:  # a direction of its own for every entity, at the studied property's norms
                draws = random_directions(self.X.shape[2], n_draws=rows.height, random_state=self.config.seed)
                vectors = draws[:, None] * (np.sign(steps(S)) * norm)[None, :, None]
            else:
                vectors = self.side_vectors(fitted_on)
            table = self.edited(PROPERTIES[measured], rows, vectors, self.window, steps(S))
            sd = float(np.std(self.facts.of(measured, "train")["value"].to_numpy()))
            return effects_table(table, ["entity_id"], output="number").with_columns(
                pl.lit(fitted_on).alias("fitted_on"), pl.lit(measured).alias("measured"),
                (pl.col("slope") / sd).alias("slope_sd"),
            )  # fmt: skip

        self.run.map("side_effects", [f"{a} > {b}" for a in (*names, RANDOM) for b in names], one_cell)

    def side_vectors(self, name: str) -> np.ndarray:
        """``[step, d]``: the first component of a property's own fit at the layer that is edited."""
        mine = name == self.prop.name
        X = self.X[:, self.edit_layer] if mine else self.captured(name, [self.edit_layer])["X"][:, 0]
        k = self.k_at(self.edit_layer) if self.config.direction == "coefficient" else 1
        return edit_vectors(
            PLSSubspace(k).fit(*self.training(name, X)), 0, self.config.side_effect_steps, self.config.direction
        )

    # -- what came out ---------------------------------------------------------------------------------------------

    def summarise(self) -> None:
        self.run.summary(
            summarise(
                self.run,
                property=self.prop.name,
                direction=self.config.direction,
                k=self.k,
                layer=self.layer,
                edit_layer=self.edit_layer,
                n_layers=self.X.shape[1] - 1,
                seed=self.config.seed,
                raw=self.config.target == "raw",
            )
        )
