"""Probes across languages: fitted on one language's sentences, tested on another's.

Tasks that both languages have are tested. The split by sentence id is the same in all languages, so no translation of a
training sentence is tested on. Languages lie apart by a shift that has nothing to do with the property, so two readings are
given: ``source``, the target's sentences in the source's units (mean and spread), and ``own``, each language centred and
scaled by its own training sentences, without their labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from inscape.data.pairs import require_entity_disjoint
from inscape.data.treebanks import Tasks, Treebank
from inscape.errors import InputError
from inscape.probing.morphosyntax import FRACTIONS, STRENGTHS, FittedTasks, Split, check_rows, rows_of
from inscape.probing.scores import Predictions, Probed

Units = Literal["source", "own"]
UNITS: tuple[Units, ...] = get_args(Units)


def transfer(
    features: Mapping[str, Any],
    treebanks: Mapping[str, Treebank],
    tasks: Mapping[str, Tasks],
    splits: Mapping[int, Split],
    *,
    layer: int | None = None,
    units: Sequence[Units] = UNITS,
    strengths: Sequence[float] = STRENGTHS,
    representation: str = "model",
) -> list[Probed]:
    """All pairs of languages, each with itself too, that share a task.

    Args:
        features: by language, ``[sentence, d]`` at one layer.
        treebanks, tasks: by language; those of ``features`` are used.
        splits: by seed, of all treebanks together (:func:`~inscape.probing.morphosyntax.sentence_splits`).

    Returns:
        Results with ``note`` "source" or "own" (the units), ordered by source and target. ``dev_f1`` is the source's own.

    Raises:
        InputError: features that differ in width, unknown units, a training sentence among the tested ones.
    """
    if len({f.shape[1] for f in features.values()}) > 1:
        raise InputError(f"transfer: widths {[f.shape[1] for f in features.values()]}, expected features of one model")
    if unknown := sorted(set(units) - set(UNITS)):
        raise InputError(f"transfer: unknown units {unknown}, expected some of {', '.join(UNITS)}")
    for language, one in features.items():
        check_rows(one, treebanks[language], tasks[language])
    parts = {
        (language, seed): tuple(rows_of(treebanks[language].ids, split, part) for part in FRACTIONS)
        for language in features
        for seed, split in splits.items()
    }
    collected: dict[tuple[str, str, Units], list[Predictions]] = {}
    for source in features:
        for seed in splits:
            train, dev, _ = parts[source, seed]
            X = np.asarray(features[source], dtype=np.float64)
            fitted = FittedTasks(X[train], X[dev], tasks[source], train, dev, strengths, source)
            for target in features:
                names = _shared(tasks[source], tasks[target])
                if not names:
                    continue
                own_train, _, test = parts[target, seed]
                ids = tuple(treebanks[target].ids[row] for row in test)
                require_entity_disjoint((treebanks[source].ids[row] for row in train), ids)
                here = [tasks[source].names.index(name) for name in names]
                there = [tasks[target].names.index(name) for name in names]
                for unit in units:
                    rows = np.asarray(features[target], dtype=np.float64)
                    if unit == "own":
                        rows = _in_units(rows, rows[own_train], X[train])
                    predicted = fitted.predict(fitted.coordinates.of(rows[test]))[:, here]
                    truth = tasks[target].values[test][:, there]
                    collected.setdefault((source, target, unit), []).append(
                        Predictions(seed, ids, truth, predicted, fitted.C[here], fitted.dev_f1[here])
                    )
    results = []
    for (source, target, unit), tested in collected.items():
        names = _shared(tasks[source], tasks[target])
        kinds = tuple(tasks[source].kinds[tasks[source].names.index(name)] for name in names)
        results.append(Probed(representation, layer, target, source, names, kinds, tuple(tested), unit))
    return results


def _shared(one: Tasks, other: Tasks) -> tuple[str, ...]:
    return tuple(name for name in one.names if name in other.names)


def _in_units(X: np.ndarray, own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Rows moved and stretched, feature by feature, so that ``own`` gets the mean and the spread of ``other``."""
    mean, spread = own.mean(axis=0), own.std(axis=0)
    spread = np.where(spread > 1e-10 * (np.abs(mean) + spread), spread, np.inf)  # (a constant feature says nothing)
    return (X - mean) / spread * other.std(axis=0) + other.mean(axis=0)
