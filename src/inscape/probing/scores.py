"""What probes score: weighted F1 of predictions of tasks, and intervals over sentences.

The unit of every interval is the sentence, by its id: a draw takes sentences again, with all their tasks, in all seeds that
test them, and (in a treebank that is parallel) with all their translations. The same draws serve all results, so that
differences between two of them are paired. What the interval does not hold: the draw of the training sentences.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from inscape.errors import InputError
from inscape.runs.intervals import Interval

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


def weighted_f1(true: ArrayLike, predicted: ArrayLike, weights: ArrayLike | None = None) -> Floats:
    """F1 of both answers, averaged by how many sentences have each (scikit-learn's ``average="weighted"``), by task.

    Args:
        true, predicted: bool [sentence, task].
        weights: how often each sentence counts, [sentence] or [draw, sentence]; None for once.

    Returns:
        float64 [task], or [draw, task]; NaN where no sentence counts.
    """
    true_NL, predicted_NL = np.asarray(true, dtype=bool), np.asarray(predicted, dtype=bool)
    if true_NL.shape != predicted_NL.shape or true_NL.ndim != 2:
        raise InputError(
            f"F1: truth {true_NL.shape} and predictions {predicted_NL.shape}, expected one [sentence, task]"
        )
    w = np.ones(len(true_NL)) if weights is None else np.asarray(weights, dtype=np.float64)
    # Every count follows from three sums.
    both = w @ (true_NL & predicted_NL).astype(np.float64)
    yes_true, yes_predicted = w @ true_NL.astype(np.float64), w @ predicted_NL.astype(np.float64)
    total = w.sum(axis=-1)[..., None]
    no_true, no_predicted = total - yes_true, total - yes_predicted
    neither = total - yes_true - yes_predicted + both
    with np.errstate(divide="ignore", invalid="ignore"):
        # A class that is neither there nor predicted has F1 0 and no weight.
        f1_yes = np.nan_to_num(2 * both / (yes_true + yes_predicted))
        f1_no = np.nan_to_num(2 * neither / (no_true + no_predicted))
        return np.asarray((f1_yes * yes_true + f1_no * no_true) / total)


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions for the test sentences of one seed. ``true``, ``predicted``: bool [test sentence, task].

    ``C`` and ``dev_f1`` [task]: the strength chosen on the development sentences and the weighted F1 there; NaN where
    nothing was chosen.
    """

    seed: int
    ids: tuple[str, ...]
    true: Bools
    predicted: Bools
    C: Floats
    dev_f1: Floats


@dataclass(frozen=True, eq=False)
class Probed:
    """Results of one representation on the tasks of one language, over seeds (each its own split of the sentences).

    ``trained_on`` is the language of the training sentences; another than ``language`` is transfer. ``layer`` is None for a
    representation that has none. ``note`` tells results of the same representation apart (a checkpoint, say).
    """

    representation: str
    layer: int | None
    language: str
    trained_on: str
    tasks: tuple[str, ...]
    kinds: tuple[str, ...]
    tested: tuple[Predictions, ...]
    note: str = ""

    @property
    def f1(self) -> float:
        """Mean weighted F1 over tasks and seeds."""
        return float(np.mean([weighted_f1(t.true, t.predicted) for t in self.tested]))

    @property
    def dev_f1(self) -> float:
        """The same on the development sentences: what a layer is chosen by."""
        return float(np.mean([t.dev_f1 for t in self.tested]))

    def drawn(self, draws: int = 1000, seed: int = 0) -> Floats:
        """``[draw]``: mean weighted F1 with sentences drawn again. NaN where a draw has no test sentence of a seed."""
        drawn = [
            weighted_f1(t.true, t.predicted, sentence_weights(t.ids, draws, seed)).mean(axis=1) for t in self.tested
        ]
        return np.asarray(np.mean(drawn, axis=0))

    def table(self) -> pl.DataFrame:
        """A row per task and seed: see :func:`f1_table`."""
        rows = [
            (self.representation, self.layer, self.language, self.trained_on, self.note, task, kind, t.seed, len(t.ids),
             float(t.true[:, nth].mean()), None if np.isnan(t.C[nth]) else float(t.C[nth]), float(f1))
            for t in self.tested
            for nth, (task, kind, f1) in enumerate(
                zip(self.tasks, self.kinds, weighted_f1(t.true, t.predicted), strict=True)
            )
        ]  # fmt: skip
        return pl.DataFrame(rows, schema=F1_SCHEMA, orient="row")


F1_SCHEMA = {
    "representation": pl.String,
    "layer": pl.Int64,
    "language": pl.String,
    "trained_on": pl.String,
    "note": pl.String,
    "task": pl.String,
    "kind": pl.String,
    "seed": pl.Int64,
    "test_sentences": pl.Int64,
    "prevalence": pl.Float64,
    "C": pl.Float64,
    "f1": pl.Float64,
}


def f1_table(results: Iterable[Probed]) -> pl.DataFrame:
    """All results, a row per representation, layer, language, task and seed; ``prevalence`` is that among the tested."""
    return pl.concat([pl.DataFrame(schema=F1_SCHEMA), *(result.table() for result in results)])


def f1_interval(
    results: Probed | Sequence[Probed],
    minus: Probed | Sequence[Probed] | None = None,
    *,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean F1 over results (languages, say), each counting once; or by how much it exceeds that of ``minus``.

    The interval is a percentile bootstrap over sentences (see the module); ``n`` counts different test sentences.
    """
    of, less = _listed(results), _listed(minus)
    if not of or not 0 < level < 1 or draws < 2:
        raise InputError(
            f"F1 interval: {len(of)} results, level {level}, {draws} draws; expected results, 0 < level < 1"
        )
    value = float(np.mean([one.f1 for one in of])) - (float(np.mean([one.f1 for one in less])) if less else 0.0)
    drawn = np.mean([one.drawn(draws, seed) for one in of], axis=0)
    if less:
        drawn = drawn - np.mean([one.drawn(draws, seed) for one in less], axis=0)
    ids = {i for one in of for t in one.tested for i in t.ids}
    if len(ids) < 2 or np.isnan(drawn).mean() > 0.5:
        return Interval(value, np.nan, np.nan, len(ids), 0, level)
    lo, hi = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(lo), float(hi), len(ids), 0, level)


def best_layer(results: Sequence[Probed]) -> Probed:
    """The result with the highest F1 on the *development* sentences; the first of equals."""
    if not results:
        raise InputError("best layer: no results")
    return max(results, key=lambda result: result.dev_f1)


@lru_cache(maxsize=64)
def sentence_weights(ids: tuple[str, ...], draws: int, seed: int) -> Floats:
    """How often each sentence counts in each draw, [draw, sentence]: Poisson(1), from the sentence's id and the seed alone.

    The Poisson bootstrap (Hanley & MacGibbon 2006) draws sentences independently of each other, so a sentence has the same
    weights in whatever set it stands: all seeds, languages and models then share their draws.
    """
    return np.stack([np.random.default_rng([seed, *i.encode()]).poisson(1.0, draws) for i in ids], axis=1).astype(
        np.float64
    )


def _listed(results: Probed | Sequence[Probed] | None) -> list[Probed]:
    if results is None:
        return []
    return [results] if isinstance(results, Probed) else list(results)
