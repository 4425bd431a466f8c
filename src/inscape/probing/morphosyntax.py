"""Which morphosyntactic properties of a sentence a layer's state tells: BLOOM, section 4.9.

For each task of a treebank ("does a word of this sentence have Case=Acc?") a logistic regression on the sentence's state is
fitted on training sentences; its penalty is chosen by the weighted F1 on development sentences; the weighted F1 on test
sentences is the score. Splits are by sentence id, the same for all languages of a parallel treebank, and drawn again for
each seed.

(By log-loss, penalties come out stronger and answers lean to the majority: F1 is lower for models and baselines alike.)

What a score does *not* show: that the model uses the property, or that training put it there. Set beside it the baselines
(:mod:`inscape.probing.baselines`): an untrained model of the same shape, n-grams, the sentence's length, shuffled labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from inscape.data.pairs import entity_split
from inscape.data.treebanks import Tasks, Treebank
from inscape.errors import InputError
from inscape.probing.logistic import Coordinates, Floats, fit_logistic
from inscape.probing.scores import Bools, Predictions, Probed, weighted_f1
from inscape.probing.sentences import SentenceStates

FRACTIONS = {"train": 0.6, "dev": 0.2, "test": 0.2}
STRENGTHS = (0.001, 0.01, 0.1, 1.0)
"""C of scikit-learn's LogisticRegression, from a strong penalty to a weak one."""

Split = Mapping[str, str]
"""Sentence id → "train", "dev" or "test"."""


def sentence_splits(
    treebanks: Treebank | Iterable[Treebank], seeds: Sequence[int] = (0, 1, 2)
) -> dict[int, dict[str, str]]:
    """For each seed, the part of every sentence id of all the treebanks: 60 % train, 20 % dev, 20 % test.

    A sentence that only some languages have moves no other: give all treebanks at once, and no translation of a training
    sentence is tested on.
    """
    given = [treebanks] if isinstance(treebanks, Treebank) else list(treebanks)
    ids = sorted({i for treebank in given for i in treebank.ids})
    if not ids or not seeds:
        raise InputError(f"sentence splits: {len(ids)} sentences and {len(seeds)} seeds, expected some of both")
    return {seed: dict(zip(ids, entity_split(ids, FRACTIONS, seed).to_list(), strict=True)) for seed in seeds}


def rows_of(ids: Sequence[str], split: Split, part: str) -> np.ndarray:
    """Rows (int64) of the sentences in one part. Raises InputError where a sentence is in no part, or the part is empty."""
    if missing := [i for i in ids if i not in split]:
        raise InputError(f"probe: {len(missing)} sentences are in no part of the split ({missing[0]}, …)")
    rows = np.flatnonzero([split[i] == part for i in ids])
    if not len(rows):
        raise InputError(f"probe: none of {len(ids)} sentences is in the {part} part")
    return rows


def probe(
    features: Any,
    treebank: Treebank,
    tasks: Tasks,
    splits: Mapping[int, Split],
    *,
    representation: str,
    layer: int | None = None,
    strengths: Sequence[float] = STRENGTHS,
    note: str = "",
) -> Probed:
    """Fit and test all tasks on one representation of the treebank's sentences, ``[sentence, feature]``, dense or sparse.

    Raises:
        InputError: another number of rows than sentences, NaN, a task with one answer only among the training sentences.
    """
    tested = []
    for seed, split in splits.items():
        tested.append(probe_seed(features, treebank, tasks, seed, split, strengths))
    return Probed(
        representation, layer, treebank.language, treebank.language, tasks.names, tasks.kinds, tuple(tested), note
    )


def probe_seed(
    features: Any, treebank: Treebank, tasks: Tasks, seed: int, split: Split, strengths: Sequence[float] = STRENGTHS
) -> Predictions:
    """:func:`probe` on one split."""
    check_rows(features, treebank, tasks)
    train, dev, test = (rows_of(treebank.ids, split, part) for part in FRACTIONS)
    fitted = FittedTasks(features[train], features[dev], tasks, train, dev, strengths, treebank.language)
    return Predictions(
        seed,
        tuple(np.array(treebank.ids)[test].tolist()),
        tasks.values[test],
        fitted.predict(fitted.coordinates.of(features[test])),
        fitted.C,
        fitted.dev_f1,
    )


class FittedTasks:
    """A regression per task, its penalty chosen on the development sentences.

    Attributes:
        coordinates: of the training sentences (:class:`~inscape.probing.logistic.Coordinates`).
        C: float64 [task].
        dev_f1: float64 [task], weighted F1 on the development sentences at that C.
    """

    def __init__(
        self,
        features_train: Any,
        features_dev: Any,
        tasks: Tasks,
        train: np.ndarray,
        dev: np.ndarray,
        strengths: Sequence[float],
        language: str,
    ) -> None:
        varies = tasks.values[train].any(axis=0) & ~tasks.values[train].all(axis=0)
        if not varies.all():
            name = tasks.names[int(np.argmin(varies))]
            raise InputError(f"probe: {language} {name} has one answer in all {len(train)} training sentences")
        self.coordinates = Coordinates(features_train)
        fit = fit_logistic(self.coordinates, tasks.values[train], strengths)
        truth_NL = tasks.values[dev]
        answers_CNL = fit.decision(self.coordinates.of(features_dev)) > 0
        f1_CL = np.stack([weighted_f1(truth_NL, answers_NL) for answers_NL in answers_CNL])
        best_L, every = f1_CL.argmax(axis=0), np.arange(len(tasks))  # (of equals the first)
        self.weights_RL, self.intercepts_L = fit.weights[best_L, :, every].T, fit.intercepts[best_L, every]
        self.C: Floats = np.array(fit.C)[best_L]
        self.dev_f1: Floats = f1_CL[best_L, every]

    def predict(self, rows: Floats) -> Bools:
        """``[row, task]`` of rows in the training sentences' coordinates."""
        return np.asarray(rows @ self.weights_RL + self.intercepts_L > 0)


def probe_layers(
    states: SentenceStates,
    treebank: Treebank,
    tasks: Tasks,
    splits: Mapping[int, Split],
    *,
    representation: str = "model",
    strengths: Sequence[float] = STRENGTHS,
    note: str = "",
) -> list[Probed]:
    """:func:`probe` on every layer of a model's states."""
    return [
        probe(
            states.at(layer), treebank, tasks, splits, representation=representation, layer=layer, strengths=strengths,
            note=note,
        )
        for layer in states.layers
    ]  # fmt: skip


def check_rows(features: Any, treebank: Treebank, tasks: Tasks) -> None:
    """Refuse features or tasks that aren't of this treebank's sentences."""
    if len(treebank) != features.shape[0] or len(treebank) != len(tasks.values):
        raise InputError(
            f"probe: {treebank.language} has {len(treebank)} sentences; features are of {features.shape[0]}, tasks of"
            f" {len(tasks.values)}"
        )
