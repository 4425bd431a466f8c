"""A part of `multilingual-pretraining`: what sentence states tell of morphology and syntax (BLOOM, section 4.9).

Whether a sentence of PUD has a property (``Case=Acc``) is read from the mean of its tokens' states by logistic regression,
on splits by sentence id that are the same in all languages; scores are weighted F1 (`inscape.probing`).

1. *Series*: every layer of checkpoints spread over the training, and of an untrained model of the same shape, on a sample
   of the sentences.
2. *Languages*: the last checkpoint on more sentences, and on the very same ones what it is held against: the untrained
   model, n-grams, shuffled labels, length, majority, guess. A layer is chosen on development sentences, by language, for
   the trained and the untrained model alike.
3. *Transfer*: probes fitted in one language answer in another, on the tasks that all languages have.
4. *Factors*: how scores go with the amount of pretraining text, script and family.

Tasks are features with their values; a language with fewer than eight of them is also asked for parts of speech and
dependency relations. A task with few sentences of either answer to train on is left out, in all four.

Every row of a table keeps its bootstrap draws of sentences (`inscape.probing.scores`), which are the same for all rows: so
means over languages and differences are paired, whatever is put together later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from inscape.data.treebanks import KINDS, Tasks, Treebank, read_treebanks
from inscape.errors import InputError
from inscape.models import LM, load
from inscape.probing.baselines import guess, length, majority, ngrams, shuffled, untrained_twin
from inscape.probing.factors import Factor, family_test, script_test, size_correlations
from inscape.probing.morphosyntax import Split, probe, probe_layers, rows_of, sentence_splits
from inscape.probing.scores import Probed, best_layer, sentence_weights, weighted_f1
from inscape.probing.sentences import SentenceStates, sentence_states
from inscape.probing.transfer import transfer
from inscape.runs import Run
from inscape.studies.multilingual_bits import spread
from inscape.studies.multilingual_probing_page import figures, headlines, notes, reported, sections
from inscape.studies.multilingual_probing_summary import best_mean_layer, difference, language_rows, summary
from inscape.studies.multilingual_setup import Made
from inscape.training.checkpoints import Checkpoints

_SAMPLE = 300
"""Sentences of a language that the series is probed on, at most."""
_TIMES = 10
"""Times the recipe's sentences, at most, for the last checkpoint."""
_FEATURES = 8
"""With fewer tasks of morphology, parts of speech and relations are asked for too."""
_EITHER = 12
"""Training sentences of the sample that have either answer of a task, at least; in every split."""
_DRAWS = 1000
_BATCH = 32


def stages(run: Run, made: Made) -> None:
    """Tables ``probing_…``."""
    asked = _Asked(made)
    steps = [checkpoint.step for checkpoint in asked.checkpoints]
    shown = spread([step for step in steps if step > 0] or steps, made.recipe.probe_checkpoints)
    run.map("probing_series", ["untrained", *map(str, shown)], lambda key: _series(asked, key))
    run.map("probing_languages", asked.languages, lambda language: _language(asked, language))
    run.stage("probing_transfer", lambda: {"probing_transfer": _transfer(run, asked)})
    run.stage("probing_factors", lambda: {"probing_factors": _factors(run, made)})


class _Asked:
    """Sentences, tasks, splits and models; each is read when it is first needed (a finished stage needs none)."""

    def __init__(self, made: Made) -> None:
        self.made = made
        self.checkpoints = Checkpoints(made.model)

    @cached_property
    def languages(self) -> list[str]:
        return sorted(file.name.split(".")[0] for file in self.made.asked.pud.glob("*.conllu*"))

    @cached_property
    def treebanks(self) -> dict[str, Treebank]:
        few = _TIMES * self.made.recipe.sentences
        return {language: bank.sample(few) for language, bank in read_treebanks(self.made.asked.pud).items()}

    @cached_property
    def splits(self) -> dict[int, dict[str, str]]:
        seed = self.made.config.seed
        return sentence_splits(self.treebanks.values(), range(seed, seed + self.made.recipe.probe_seeds))

    @cached_property
    def samples(self) -> dict[str, Treebank]:
        return {language: treebank.sample(_SAMPLE) for language, treebank in self.treebanks.items()}

    @cached_property
    def all_tasks(self) -> dict[str, Tasks]:
        """Those of all kinds that can be trained on, by language."""
        return {
            language: enough(treebank.presence(KINDS), treebank, self.samples[language], self.splits)
            for language, treebank in self.treebanks.items()
        }

    @cached_property
    def tasks(self) -> dict[str, Tasks]:
        """Features; or all kinds, where there are few features."""
        found = {}
        for language, tasks in self.all_tasks.items():
            features = [name for name, kind in zip(tasks.names, tasks.kinds, strict=True) if kind == "feature"]
            found[language] = only(tasks, features) if len(features) >= _FEATURES else tasks
        return found

    @cached_property
    def last(self) -> LM:
        return self.model(self.checkpoints[-1].step)

    @cached_property
    def untrained(self) -> LM:
        return untrained_twin(self.last, self.made.config.seed)

    def model(self, step: int) -> LM:
        checkpoint = self.checkpoints.at(step)
        return load(checkpoint.load(), checkpoint.tokenizer(), device=self.made.config.device)

    def states(self, lm: LM, treebank: Treebank, layers: list[int] | None = None) -> SentenceStates:
        return sentence_states(lm, treebank.texts, layers, batch_size=_BATCH)


def only(tasks: Tasks, names: Iterable[str], rows: np.ndarray | None = None) -> Tasks:
    """The tasks of these names, in their order; of some rows, if given."""
    columns = [tasks.names.index(name) for name in names]
    values = tasks.values[:, columns]
    return Tasks(
        tuple(tasks.names[c] for c in columns),
        tuple(tasks.kinds[c] for c in columns),
        values if rows is None else values[rows],
    )


def enough(tasks: Tasks, treebank: Treebank, sample: Treebank, splits: Mapping[int, Split]) -> Tasks:
    """The tasks with at least twelve training sentences of either answer in the sample, in every split.

    Raises:
        InputError: there is none.
    """
    values = tasks.values[_rows(treebank, sample)]
    kept = np.ones(len(tasks), dtype=bool)
    for split in splits.values():
        train = values[rows_of(sample.ids, split, "train")]
        yes = train.sum(axis=0)
        kept &= (yes >= _EITHER) & (len(train) - yes >= _EITHER)
    if not kept.any():
        raise InputError(
            f"probing {treebank.language}: no property has {_EITHER} training sentences with it and {_EITHER} without "
            f"among {len(sample)} sentences, expected more sentences"
        )
    return only(tasks, [name for name, keep in zip(tasks.names, kept, strict=True) if keep])


def _rows(treebank: Treebank, sample: Treebank) -> np.ndarray:
    """Where the sample's sentences stand in the treebank."""
    place = {one: row for row, one in enumerate(treebank.ids)}
    return np.array([place[one] for one in sample.ids])


def _series(asked: _Asked, key: str) -> pl.DataFrame:
    """All languages and layers of one checkpoint, or of the untrained model."""
    untrained = key == "untrained"
    lm = asked.untrained if untrained else asked.model(int(key))
    read = 0 if untrained else asked.checkpoints.at(int(key)).tokens
    found = []
    for language, sample in asked.samples.items():
        tasks = asked.tasks[language]
        tasks = only(tasks, tasks.names, _rows(asked.treebanks[language], sample))
        found += probe_layers(asked.states(lm, sample), sample, tasks, asked.splits, representation=key)
    step = pl.lit(None if untrained else int(key), pl.Int64)
    return table(found, asked.made).with_columns(step=step, read=pl.lit(read, pl.Int64))


def _language(asked: _Asked, language: str) -> pl.DataFrame:
    """One language: the last checkpoint's layers and everything they are held against, on the same sentences."""
    treebank, tasks, splits = asked.treebanks[language], asked.tasks[language], asked.splits
    states, random = asked.states(asked.last, treebank), asked.states(asked.untrained, treebank)
    trained = probe_layers(states, treebank, tasks, splits, representation="trained")
    untrained = probe_layers(random, treebank, tasks, splits, representation="untrained")
    best = best_layer(trained)
    assert best.layer is not None
    mixed = shuffled(tasks, asked.made.config.seed)
    grams = [
        ngrams(treebank, tasks, splits, "words"),
        ngrams(treebank, tasks, splits, "characters"),
        ngrams(treebank, tasks, splits, "tokens", tokenizer=asked.last.tokenizer),
    ]
    results = [
        *trained, *untrained, *grams,
        probe(states.at(best.layer), treebank, mixed, splits, representation="shuffled labels", layer=best.layer),
        length(treebank, tasks, splits), majority(treebank, tasks, splits), guess(treebank, tasks, splits),
    ]  # fmt: skip
    return table(results, asked.made, by_task=(best, best_layer(untrained), best_layer(grams)))


def _transfer(run: Run, asked: _Asked) -> pl.DataFrame:
    """Every language to every language, on the tasks that all of them have; with the majority's answers as a floor."""
    every = list(asked.all_tasks.values())
    names = [name for name in every[0].names if all(name in tasks.names for tasks in every)]
    run.record(probing_common_tasks=names)
    if not names or len(every) < 2:
        return table([], asked.made)
    tasks = {language: only(of, names) for language, of in asked.all_tasks.items()}
    found = []
    for name, lm in (("trained", asked.last), ("untrained", asked.untrained)):
        layer = best_mean_layer(run, name)
        features = {language: asked.states(lm, t, [layer]).at(layer) for language, t in asked.treebanks.items()}
        found += transfer(features, asked.treebanks, tasks, asked.splits, layer=layer, representation=name)
    found += [majority(treebank, tasks[language], asked.splits) for language, treebank in asked.treebanks.items()]
    return table(found, asked.made)


def table(results: Iterable[Probed], made: Made, by_task: tuple[Probed, ...] = ()) -> pl.DataFrame:
    """A row per result. ``drawn``: mean F1 of each bootstrap draw; ``task_drawn``: that of each task, one task after
    another, of the results in ``by_task``."""
    rows: list[dict[str, Any]] = []
    for result in results:
        drawn_DL = np.mean(
            [weighted_f1(t.true, t.predicted, sentence_weights(t.ids, _DRAWS, 0)) for t in result.tested], axis=0
        )
        f1_L = np.mean([weighted_f1(t.true, t.predicted) for t in result.tested], axis=0)
        rows.append(
            {
                "representation": result.representation, "layer": result.layer, "language": result.language,
                "trained_on": result.trained_on, "units": result.note, "seen": result.language in made.config.languages,
                "test_sentences": len({one for t in result.tested for one in t.ids}), "f1": float(f1_L.mean()),
                "dev_f1": result.dev_f1, "task": list(result.tasks), "kind": list(result.kinds), "task_f1": f1_L.tolist(),
                "drawn": drawn_DL.mean(axis=1).tolist(),
                "task_drawn": drawn_DL.T.ravel().tolist() if any(result is one for one in by_task) else [],
            }
        )  # fmt: skip
    return pl.DataFrame(rows, schema=_SCHEMA)


_SCHEMA: dict[str, Any] = {
    "representation": pl.String, "layer": pl.Int64, "language": pl.String, "trained_on": pl.String, "units": pl.String,
    "seen": pl.Boolean, "test_sentences": pl.Int64, "f1": pl.Float64, "dev_f1": pl.Float64, "task": pl.List(pl.String),
    "kind": pl.List(pl.String), "task_f1": pl.List(pl.Float64), "drawn": pl.List(pl.Float32),
    "task_drawn": pl.List(pl.Float32),
}  # fmt: skip


def _factors(run: Run, made: Made) -> pl.DataFrame:
    """Tests of scores, and of what they are above the untrained model's and the n-grams', against facts of languages."""
    read = made.corpus.bytes_by_language()
    own = language_rows(run, "trained")
    # (A treebank's "zh" is in traditional characters: text in either counts.)
    sizes = {
        language: sum(read.get(code, 0) for code in made.config.languages if code.split("-")[0] == language)
        for language in own["language"]
    }
    scores: dict[str, dict[str, float]] = {"F1": dict(zip(own["language"], own["f1"], strict=True))}
    for other in ("untrained", "n-grams"):
        floor = language_rows(run, other)
        scores[f"F1 above {other}"] = {
            language: difference(own.filter(language=language), floor.filter(language=language)).value
            for language in own["language"]
        }
    rows = []
    for name, by_language in scores.items():
        found: list[Factor] = [
            *size_correlations("bytes of pretraining text", by_language, sizes),
            script_test(by_language),
            family_test(by_language),
        ]
        rows += [
            {
                "score": name, "factor": one.name, "test": one.test, "languages": one.n,
                **{key: None if np.isnan(getattr(one, key)) else getattr(one, key) for key in _NUMBERS},
                "groups": "; ".join(f"{group}: {', '.join(codes)}" for group, codes in one.groups.items()),
                "note": one.note,
            }
            for one in found
        ]  # fmt: skip
    return pl.DataFrame(rows, schema_overrides=dict.fromkeys(_NUMBERS, pl.Float64), infer_schema_length=None)


_NUMBERS = ("statistic", "lo", "hi", "p")

__all__ = ["enough", "figures", "headlines", "notes", "only", "reported", "sections", "stages", "summary", "table"]
