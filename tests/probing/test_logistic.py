"""The solver has scikit-learn's optimum: dense and sparse, more rows than features and fewer, all labels and C at once."""

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from inscape.errors import InputError
from inscape.probing.logistic import Coordinates, fit_logistic

C = (0.001, 0.1, 1.0, 10.0)


def problem(n: int, d: int, labels: int = 3, seed: int = 0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)
    truth = X @ rng.normal(size=(d, labels)) / d + rng.logistic(size=(n, labels))
    return X, truth > [np.quantile(one, q) for one, q in zip(truth.T, rng.uniform(0.2, 0.8, labels), strict=True)]


def theirs(X, Y, new):
    return np.array([
        [LogisticRegression(C=c, tol=1e-9, max_iter=10_000).fit(X, y).decision_function(new) for y in Y.T] for c in C
    ]).transpose(0, 2, 1)  # fmt: skip


@settings(max_examples=12, deadline=None)
@given(n=st.integers(20, 120), d=st.sampled_from([1, 5, 40, 150]), seed=st.integers(0, 1000))
def test_dense_equals_scikit_learn_on_standardised_features(n, d, seed):
    X, Y = problem(n, d, seed=seed)
    new = X[: n // 2] + 1.0
    coordinates = Coordinates(X)
    ours = fit_logistic(coordinates, Y, C, tolerance=1e-6).decision(coordinates.of(new))
    mean, spread = X.mean(axis=0), X.std(axis=0)
    expected = theirs((X - mean) / spread, Y, (new - mean) / spread)
    np.testing.assert_allclose(ours, expected, atol=2e-3, rtol=1e-3)


def test_sparse_equals_scikit_learn_on_the_features_as_they_are():
    rng = np.random.default_rng(1)
    X = scipy.sparse.random_array((100, 2000), density=0.02, rng=rng, format="csr")
    Y = np.asarray(X[:, :3].todense()) + 0.1 * rng.random((100, 3)) > 0.06
    coordinates = Coordinates(X[:80])
    ours = fit_logistic(coordinates, Y[:80], C, tolerance=1e-6).decision(coordinates.of(X[80:]))
    np.testing.assert_allclose(ours, theirs(X[:80], Y[:80], X[80:]), atol=1e-3)


def test_the_default_tolerance_gives_the_same_answers_as_the_optimum():
    X, Y = problem(600, 192, labels=5)
    coordinates = Coordinates(X)
    loose, tight = (fit_logistic(coordinates, Y, C, tolerance=t).decision(coordinates.rows) for t in (1e-4, 1e-8))
    assert np.abs(loose - tight).max() < 5e-3


def test_constant_and_repeated_features_do_no_harm():
    X, Y = problem(80, 5)
    more = np.column_stack([X, np.full(80, 1e6) + 1e-9, np.zeros(80), X[:, :2]])
    coordinates = Coordinates(more)
    assert coordinates.rows.shape == (80, 5)
    shifted = more.copy()
    shifted[:, 5:7] += 3.0  # what never varied has no weight
    decision = fit_logistic(coordinates, Y).decision
    np.testing.assert_array_equal(decision(coordinates.of(more)), decision(coordinates.of(shifted)))


def test_separable_labels_converge_and_are_right():
    X, _ = problem(60, 100)
    Y = np.random.default_rng(0).random((60, 4)) < 0.5
    coordinates = Coordinates(X)
    assert ((fit_logistic(coordinates, Y, [100.0]).decision(coordinates.rows)[0] > 0) == Y).all()


def test_bad_input_is_refused():
    X, Y = problem(30, 4)
    coordinates = Coordinates(X)
    with pytest.raises(InputError, match="NaN"):
        Coordinates(np.where(X > 2, np.nan, X))
    with pytest.raises(InputError, match="features of shape"):
        Coordinates(X[:, 0])
    with pytest.raises(InputError, match="have 3 features, expected the 4"):
        coordinates.of(X[:, :3])
    with pytest.raises(InputError, match="labels of shape"):
        fit_logistic(coordinates, Y[:10])
    with pytest.raises(InputError, match="label 1 has one value"):
        fit_logistic(coordinates, np.where([False, True, False], True, Y))
    with pytest.raises(InputError, match="positive"):
        fit_logistic(coordinates, Y, [0.0])
    with pytest.raises(InputError, match="did not converge in 1 iterations"):
        fit_logistic(coordinates, Y, [1.0], max_iterations=1)
