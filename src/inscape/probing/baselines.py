"""What a probe scores without a trained model: the floors that a score is held against.

* ``majority``: the more frequent answer of the training sentences. ``guess``: answers drawn at their frequency there.
* ``length``: a regression on the sentence's length alone, in characters and in words. A long sentence has more
  of everything.
* n-grams: a regression on TF-IDF of n-grams, 1 to 4, of words, of characters, or of a model's tokens.
* shuffled labels: the same features and the answers of other sentences (control tasks, Hewitt & Liang 2019); a score minus
  this one is the *selectivity*. The answers of one sentence stay together, so tasks go with each other as before.
* an untrained model of the same shape: random features of the tokens that are there.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Literal

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from transformers import AutoModelForCausalLM

from inscape.data.treebanks import Tasks, Treebank
from inscape.errors import InputError
from inscape.models.lm import LM
from inscape.probing.morphosyntax import FRACTIONS, FittedTasks, Split, check_rows, probe, rows_of
from inscape.probing.scores import Predictions, Probed, weighted_f1

Unit = Literal["words", "characters", "tokens"]

_NGRAMS = (1, 4)
_FEATURES = 250_000
_NGRAM_STRENGTHS = (
    1.0,
    10.0,
    100.0,
    1000.0,
)  # rows of TF-IDF have length 1: they need weaker penalties than standardised ones


def majority(treebank: Treebank, tasks: Tasks, splits: Mapping[int, Split]) -> Probed:
    """Each task's more frequent answer among the training sentences, for every test sentence."""

    def answers(share_L: np.ndarray, rows: int, seed: int) -> np.ndarray:
        return np.tile(share_L > 0.5, (rows, 1))

    return _without_features("majority", treebank, tasks, splits, answers)


def guess(treebank: Treebank, tasks: Tasks, splits: Mapping[int, Split]) -> Probed:
    """Answers drawn at random, as often yes as among the training sentences."""

    def answers(share_L: np.ndarray, rows: int, seed: int) -> np.ndarray:
        return np.random.default_rng(seed).random((rows, len(share_L))) < share_L

    return _without_features("guess", treebank, tasks, splits, answers)


def _without_features(name: str, treebank: Treebank, tasks: Tasks, splits: Mapping[int, Split], answers: Any) -> Probed:
    check_rows(tasks.values, treebank, tasks)
    nothing = np.full(len(tasks), np.nan)
    tested = []
    for seed, split in splits.items():
        train, dev, test = (rows_of(treebank.ids, split, part) for part in FRACTIONS)
        predicted = answers(tasks.values[train].mean(axis=0), len(dev) + len(test), seed)
        tested.append(
            Predictions(
                seed, tuple(treebank.ids[row] for row in test), tasks.values[test], predicted[len(dev) :], nothing,
                weighted_f1(tasks.values[dev], predicted[: len(dev)]),
            )
        )  # fmt: skip
    return Probed(name, None, treebank.language, treebank.language, tasks.names, tasks.kinds, tuple(tested))


def length(treebank: Treebank, tasks: Tasks, splits: Mapping[int, Split]) -> Probed:
    """Regressions on two features: the logarithms of the numbers of characters and of words."""
    sizes = np.log([(len(s.text), s.words) for s in treebank.sentences])
    return probe(sizes, treebank, tasks, splits, representation="length")


def ngrams(
    treebank: Treebank,
    tasks: Tasks,
    splits: Mapping[int, Split],
    unit: Unit,
    *,
    tokenizer: Any = None,
    strengths: Sequence[float] = _NGRAM_STRENGTHS,
) -> Probed:
    """Regressions on TF-IDF of 1- to 4-grams (the 250,000 most frequent of the training sentences).

    Words are runs of letters, marks and digits; every other character that is no space is one (Chinese and Japanese, which
    put no spaces, have whole clauses for words). Upper case counts. ``tokens`` needs the tokenizer.
    """
    texts = treebank.texts
    if unit == "words":
        units: list[Any] = [words(text) for text in texts]
    elif unit == "characters":
        units = [list(text) for text in texts]
    elif unit == "tokens":
        if tokenizer is None:
            raise InputError("n-grams of tokens: no tokenizer given")
        units = [[str(i) for i in ids] for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
    else:
        raise InputError(f"n-grams of {unit!r}: expected words, characters or tokens")
    check_rows(tasks.values, treebank, tasks)
    grams = [_grams(one) for one in units]
    tested = []
    for seed, split in splits.items():
        train, dev, test = (rows_of(treebank.ids, split, part) for part in FRACTIONS)
        # The n-grams are made here: scikit-learn's own pattern for words drops the marks of Hindi vowels.
        vectorizer = TfidfVectorizer(analyzer=list, max_features=_FEATURES)
        fitted = FittedTasks(
            vectorizer.fit_transform(grams[row] for row in train), vectorizer.transform(grams[row] for row in dev),
            tasks, train, dev, strengths, treebank.language,
        )  # fmt: skip
        rows = fitted.coordinates.of(vectorizer.transform(grams[row] for row in test))
        ids = tuple(treebank.ids[row] for row in test)
        tested.append(Predictions(seed, ids, tasks.values[test], fitted.predict(rows), fitted.C, fitted.dev_f1))
    name = f"{unit} n-grams"
    return Probed(name, None, treebank.language, treebank.language, tasks.names, tasks.kinds, tuple(tested))


def words(text: str) -> list[str]:
    """Runs of letters, marks and digits, and every other character that is no space."""
    found: list[str] = []
    for inside, run in groupby(text, key=lambda character: unicodedata.category(character)[0] in "LMN"):
        if inside:
            found.append("".join(run))
        else:
            found.extend(character for character in run if not character.isspace())
    return found


def _grams(units: list[str]) -> list[str]:
    return [
        "\0".join(units[start : start + n])
        for n in range(_NGRAMS[0], _NGRAMS[1] + 1)
        for start in range(len(units) - n + 1)
    ]


def shuffled(tasks: Tasks, seed: int = 0) -> Tasks:
    """The same answers, given to other sentences at random."""
    return Tasks(tasks.names, tasks.kinds, np.random.default_rng(seed).permutation(tasks.values, axis=0))


def untrained_twin(lm: LM, seed: int = 0) -> LM:
    """A model of the same configuration with the random weights that training would begin with, and the same tokenizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # (The architectures' own initialisation runs on the CPU: seeded alike whatever device is used after.)
        model = AutoModelForCausalLM.from_config(lm.model.config, dtype=lm.dtype)
    record = {"model": f"untrained, seed {seed}, of {lm.record()['model']}"}
    return LM(model.to(lm.device).eval(), lm.tokenizer, record=record)
