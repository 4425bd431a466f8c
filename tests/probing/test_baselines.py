"""Baselines against what scikit-learn's own pipeline and dummies say; the untrained twin is random, seeded and alike."""

import dataclasses

import numpy as np
import pytest
import torch
from planted import ABSENT, PLANTED
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from tiny_models import build
from tiny_models import words as word_tokenizer

from inscape.errors import InputError
from inscape.models.lm import LM
from inscape.probing.baselines import guess, length, majority, ngrams, shuffled, untrained_twin, words
from inscape.probing.morphosyntax import sentence_splits


@pytest.fixture(scope="module")
def tasks(treebank):
    return treebank.presence()


@pytest.fixture(scope="module")
def splits(treebank):
    return sentence_splits(treebank, [0])


@pytest.fixture(scope="module")
def part(treebank, splits):
    return np.array([splits[0][i] for i in treebank.ids])


def test_majority_is_the_dummy_classifiers(treebank, tasks, splits, part):
    f1 = majority(treebank, tasks, splits).table()["f1"]
    for nth in range(2):
        y = tasks.values[:, nth]
        dummy = DummyClassifier(strategy="most_frequent").fit(y[part == "train"], y[part == "train"])
        assert f1[nth] == pytest.approx(
            f1_score(y[part == "test"], dummy.predict(y[part == "test"]), average="weighted")
        )


def test_guess_answers_at_the_training_rate(treebank, tasks, part):
    many = guess(treebank, tasks, sentence_splits(treebank, range(20)))
    rate = np.mean([t.predicted.mean(axis=0) for t in many.tested], axis=0)
    np.testing.assert_allclose(rate, tasks.values.mean(axis=0), atol=0.05)
    assert many.f1 == pytest.approx(0.5, abs=0.05)


def test_ngrams_find_the_word_and_equal_scikit_learns_pipeline(treebank, tasks, splits, part):
    found = ngrams(treebank, tasks, splits, "words", strengths=[1.0])
    texts = np.array(treebank.texts)
    vectorizer = TfidfVectorizer(ngram_range=(1, 4), token_pattern=r"\S+", lowercase=False)
    X = vectorizer.fit_transform(texts[part == "train"])
    for nth, name in enumerate(found.tasks):
        model = LogisticRegression(C=1.0, tol=1e-8, max_iter=1000).fit(X, tasks.values[part == "train", nth])
        theirs = model.predict(vectorizer.transform(texts[part == "test"]))
        np.testing.assert_array_equal(found.tested[0].predicted[:, nth], theirs)
        assert (found.table()["f1"][nth] == 1.0) == (name == PLANTED)


def test_units_of_ngrams(treebank, tasks, splits):
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(["acc", "nom", "x", "xx"])
    for unit in ("characters", "tokens"):
        table = ngrams(treebank, tasks, splits, unit, tokenizer=tokenizer).table()
        by_task = dict(zip(table["task"], table["f1"], strict=True))
        assert by_task[PLANTED] == 1.0
        assert by_task[ABSENT] < 0.7
    with pytest.raises(InputError, match="no tokenizer"):
        ngrams(treebank, tasks, splits, "tokens")
    with pytest.raises(InputError, match="expected words"):
        ngrams(treebank, tasks, splits, "lines")


def test_words_keep_vowel_marks_and_part_punctuation():
    assert words("किताबें हैं, don't.") == ["किताबें", "हैं", ",", "don", "'", "t", "."]


def test_length_tells_what_is_in_long_sentences_and_nothing_else(treebank, tasks, splits):
    values = np.stack([np.array([s.words > 4 for s in treebank.sentences]), tasks.values[:, 1]], axis=1)
    f1 = length(treebank, dataclasses.replace(tasks, values=values), splits).table()["f1"]
    assert f1[0] > 0.95
    assert f1[1] < 0.65


def test_shuffled_answers_stay_together_and_keep_their_counts(tasks):
    mixed = shuffled(tasks, 3)
    assert (mixed.values != tasks.values).any()
    assert sorted(map(tuple, mixed.values.tolist())) == sorted(map(tuple, tasks.values.tolist()))
    np.testing.assert_array_equal(mixed.values, shuffled(tasks, 3).values)


def test_untrained_twin_is_alike_in_shape_and_random_by_seed():
    lm = LM(build("bloom"), word_tokenizer(), record={"model": "m"})
    before = {name: weight.clone() for name, weight in lm.model.state_dict().items()}
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    twins = [untrained_twin(lm, seed).model.state_dict() for seed in (0, 0, 1)]
    assert torch.equal(torch.random.get_rng_state(), state)
    key = next(name for name in before if "query_key_value.weight" in name)
    assert {n: w.shape for n, w in twins[0].items()} == {n: w.shape for n, w in before.items()}
    assert torch.equal(twins[0][key], twins[1][key])
    assert not torch.equal(twins[0][key], twins[2][key])
    assert not torch.equal(twins[0][key], before[key])
    assert all(torch.equal(weight, before[name]) for name, weight in lm.model.state_dict().items())
    assert untrained_twin(lm).record()["model"] == "untrained, seed 0, of m"
