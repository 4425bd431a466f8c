"""Weighted F1 is scikit-learn's; a draw of sentences is a count of sentences; paired draws cancel what two results share."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from inscape.errors import InputError
from inscape.probing.scores import Predictions, Probed, best_layer, f1_interval, f1_table, sentence_weights, weighted_f1


def result(n: int = 200, right: float = 0.8, seed: int = 0, dev: float = 0.5, layer: int | None = None) -> Probed:
    rng = np.random.default_rng(seed)
    true = rng.random((n, 2)) < [0.3, 0.6]
    predicted = np.where(rng.random((n, 2)) < right, true, ~true)
    ids = tuple(f"s{i}" for i in range(n))
    tested = Predictions(0, ids, true, predicted, np.array([1.0, np.nan]), np.full(2, dev))
    return Probed("model", layer, "en", "en", ("a", "b"), ("feature", "upos"), (tested,))


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 12), seed=st.integers(0, 10_000))
def test_weighted_f1_equals_scikit_learn(n, seed):
    rng = np.random.default_rng(seed)
    share = rng.random()
    true, predicted = rng.random((2, n, 3)) < share
    counts = rng.integers(0, 3, (4, n))
    counts[:, 0] = 1
    ours = weighted_f1(true, predicted, counts)
    for draw, weights in enumerate(counts):
        for task in range(3):
            theirs = f1_score(
                true[:, task], predicted[:, task], average="weighted", sample_weight=weights, zero_division=0
            )
            assert ours[draw, task] == pytest.approx(theirs)
    once = [f1_score(t, p, average="weighted", zero_division=0) for t, p in zip(true.T, predicted.T, strict=True)]
    np.testing.assert_allclose(weighted_f1(true, predicted), once)


def test_weights_follow_the_sentence_not_its_place():
    few, many = sentence_weights(("b", "c"), 50, 0), sentence_weights(("a", "b", "c"), 50, 0)
    np.testing.assert_array_equal(few, many[:, 1:])
    assert (sentence_weights(("b", "c"), 50, 1) != few).any()
    counts = sentence_weights(tuple(map(str, range(200))), 500, 0)
    assert counts.mean() == pytest.approx(1.0, abs=0.02)
    assert counts.var() == pytest.approx(1.0, abs=0.05)


def test_interval_is_about_the_spread_of_fresh_sentences():
    fresh = [result(seed=seed).f1 for seed in range(200)]
    interval = f1_interval(result(seed=0))
    assert interval.lo < interval.value < interval.hi
    assert interval.hi - interval.lo == pytest.approx(np.diff(np.quantile(fresh, [0.025, 0.975]))[0], rel=0.3)
    assert interval.n == 200


def test_differences_are_paired():
    one = result()
    assert f1_interval(one, minus=one).hi == 0.0
    assert f1_interval([one, result(seed=1)]).value == pytest.approx((one.f1 + result(seed=1).f1) / 2)
    better, worse = result(right=0.95), result(right=0.6)
    assert f1_interval(better, minus=worse).lo > 0
    with pytest.raises(InputError, match="0 results"):
        f1_interval([])


def test_the_best_layer_is_the_development_sentences_choice():
    few = [result(right=0.9, dev=0.6, layer=0), result(right=0.7, dev=0.8, layer=1), result(dev=0.8, layer=2)]
    assert best_layer(few).layer == 1
    with pytest.raises(InputError, match="no results"):
        best_layer([])


def test_table_has_a_row_per_task_and_seed():
    table = f1_table([result(layer=3)])
    assert table["task"].to_list() == ["a", "b"]
    assert table["C"].to_list() == [1.0, None]
    assert table["f1"].mean() == pytest.approx(result().f1)
    assert f1_table([]).columns == table.columns
    with pytest.raises(InputError, match="F1"):
        weighted_f1(np.zeros((3, 2)), np.zeros((2, 2)))
