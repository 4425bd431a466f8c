"""A4, A5, A6: the exact identities of edits along a direction, purity, and the paper's step range."""

import copy
import pickle

import numpy as np
import pytest
from sklearn.cross_decomposition import PLSRegression

from inscape.errors import InputError
from inscape.subspaces import (
    MeanDifference,
    PCASubspace,
    PLSSubspace,
    RidgeSubspace,
    direction,
    edit_range,
    edit_vectors,
    edit_weights,
    prediction_change,
    score_change,
    steps,
    unit,
)

KINDS = ("weights", "loadings", "coefficient")
ESTIMATORS = [PLSSubspace(6), PCASubspace(6), RidgeSubspace(), MeanDifference(), MeanDifference(scale=True)]


@pytest.fixture(scope="module")
def world(planted):
    return planted(3, corr=0.4, nuisances={3: 20.0})


@pytest.fixture(scope="module")
def pls(world):
    return PLSSubspace(6).fit(world.X_fit, world.y_fit)


class TestA4Identities:
    @pytest.mark.parametrize("component", range(6))
    @pytest.mark.parametrize("t", [-3.0, 0.5, 7.0])
    def test_a_loading_moves_one_score_and_the_prediction_by_its_share(self, pls, world, component, t):
        h = world.X_test[:5]
        shift = t * pls.loadings_[:, component] * pls.x_scale_
        moved = pls.transform(h + shift) - pls.transform(h)
        np.testing.assert_allclose(moved, np.tile(t * np.eye(6)[component], (5, 1)), atol=1e-6)
        expected = t * pls.y_loadings_[component] * pls.y_scale_
        np.testing.assert_allclose(pls.predict(h + shift) - pls.predict(h), expected, atol=1e-6)
        assert prediction_change(pls, shift) == pytest.approx(expected, abs=1e-6)

    def test_a_weight_moves_its_score_and_later_ones_but_none_before(self, pls):
        for component in range(6):
            moved = score_change(pls, pls.weights_[:, component] * pls.x_scale_)
            assert moved[component] == pytest.approx(1.0, abs=1e-6)
            np.testing.assert_allclose(moved[:component], 0.0, atol=1e-6)
        first = score_change(pls, pls.weights_[:, 0] * pls.x_scale_)
        assert abs(first[1]) > 0.01

    def test_the_vector_is_the_papers_difference_of_inverse_transforms(self, world):
        reference = PLSRegression(6).fit(world.X_fit, world.y_fit)
        fitted = PLSSubspace(6).fit(world.X_fit, world.y_fit)
        for component in range(6):
            weight = np.zeros((1, 6))
            weight[0, component] = edit_weights(fitted, component, 21)[-1]
            expected = reference.inverse_transform(weight) - reference.inverse_transform(np.zeros((1, 6)))
            np.testing.assert_allclose(edit_vectors(fitted, component, 21)[-1], expected[0], atol=1e-6)


class TestA5Purity:
    @pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: repr(e))
    def test_asked_twice_the_answer_and_the_model_are_the_same(self, estimator, world):
        fitted = copy.deepcopy(estimator).fit(world.X_fit, world.y_fit)
        before = pickle.dumps(fitted.__dict__)
        for kind in KINDS:
            first = direction(fitted, kind, 0)
            expected = first.copy()
            first *= 100.0  # a caller may scale what it was given
            np.testing.assert_array_equal(direction(fitted, kind, 0), expected)
            vectors = edit_vectors(fitted, 0, 5, kind)
            vectors += 1.0
        edit_range(fitted), steps(5), unit(direction(fitted)), fitted.truncate(1)
        assert pickle.dumps(fitted.__dict__) == before


class TestOrientation:
    @pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: repr(e))
    def test_its_score_moves_the_way_y_rises(self, estimator, world):
        for y in (world.y_fit, -world.y_fit):
            fitted = copy.deepcopy(estimator).fit(world.X_fit, y)
            for component, q in enumerate(fitted.y_loadings_):
                for kind in KINDS:
                    assert score_change(fitted, direction(fitted, kind, component))[component] * q > 0
                assert prediction_change(fitted, direction(fitted, "loadings", component)) > 0
                for kind in ("loadings", "coefficient"):
                    assert (np.diff(edit_vectors(fitted, component, 7, kind) @ fitted.coef_) > 0).all()
            assert prediction_change(fitted, direction(fitted, "coefficient")) > 0
            assert prediction_change(fitted, direction(fitted, "weights")) > 0

    def test_negating_y_reverses_it(self, world):
        up, down = PLSSubspace(3).fit(world.X_fit, world.y_fit), PLSSubspace(3).fit(world.X_fit, -world.y_fit)
        for kind in KINDS:
            np.testing.assert_allclose(direction(up, kind), -direction(down, kind), atol=1e-9)

    def test_the_coefficient_is_the_sum_of_its_components(self, pls):
        parts = sum(direction(pls, "coefficient", c) for c in range(6))
        np.testing.assert_allclose(parts, direction(pls, "coefficient"), atol=1e-9)
        np.testing.assert_allclose(direction(pls, "coefficient"), pls.coef_, atol=1e-12)


class TestA6Range:
    @pytest.mark.parametrize("n_steps", [3, 4, 21, 40, 200])
    def test_the_middle_is_exactly_zero_and_the_ends_are_score_extremes(self, pls, world, n_steps):
        scores = pls.transform(world.X_fit)
        middle = -(-n_steps // 2) - 1
        s = steps(n_steps)
        assert (s[0], s[middle], s[-1], len(s)) == (-1.0, 0.0, 1.0, n_steps)
        assert (np.diff(s) > 0).all()
        for component in range(6):
            weights = edit_weights(pls, component, n_steps)
            assert weights[middle] == 0.0
            assert np.count_nonzero(weights) == n_steps - 1
            low, high = scores[:, component].min(), scores[:, component].max()
            ends = (low, high) if pls.y_loadings_[component] > 0 else (high, low)
            assert (weights[0], weights[-1]) == pytest.approx(ends, abs=1e-6)
            assert edit_range(pls, component) == pytest.approx(ends, abs=1e-6)
            assert not edit_vectors(pls, component, n_steps)[middle].any()

    def test_each_half_is_spaced_evenly_on_its_own(self, pls):
        weights = edit_weights(pls, 0, 21)
        np.testing.assert_allclose(np.diff(weights[:11]), -weights[0] / 10)
        np.testing.assert_allclose(np.diff(weights[10:]), weights[-1] / 10)

    def test_signs_flip_when_y_is_negated(self, world):
        up, down = PLSSubspace(3).fit(world.X_fit, world.y_fit), PLSSubspace(3).fit(world.X_fit, -world.y_fit)
        for n_steps in (21, 41):  # odd counts: the two halves have as many steps
            np.testing.assert_allclose(edit_vectors(up, 0, n_steps), edit_vectors(down, 0, n_steps)[::-1], atol=1e-9)
        start, end = edit_range(up)
        assert sorted((start, end)) == sorted(edit_range(up))
        assert (
            np.sign(up.y_loadings_[0] * (end - start))
            == 1
            == np.sign(down.y_loadings_[0] * np.subtract(*edit_range(down)[::-1]))
        )

    def test_a_step_is_the_same_dose_under_every_name(self, pls):
        for component in range(6):
            weights = edit_weights(pls, component, 5)
            for kind in ("weights", "loadings"):
                moved = [score_change(pls, v)[component] for v in edit_vectors(pls, component, 5, kind)]
                np.testing.assert_allclose(moved, weights, atol=1e-6)
            vectors = edit_vectors(pls, component, 5, "coefficient")
            expected = weights * pls.y_loadings_[component] * pls.y_scale_
            np.testing.assert_allclose(vectors @ pls.coef_, expected, atol=1e-6)
            np.testing.assert_allclose(unit(vectors[-1]), unit(pls.coef_), atol=1e-12)


class TestRefusals:
    def test_unknown_kinds_and_components(self, pls):
        with pytest.raises(InputError, match="expected one of weights, loadings, coefficient"):
            direction(pls, "gradient")
        for component in (-1, 6):
            with pytest.raises(InputError, match=r"components 0\.\.5"):
                direction(pls, "weights", component)
        for n_steps in (2, 0, -3, 2.5, True):
            with pytest.raises(InputError, match="n_steps"):
                steps(n_steps)

    def test_a_component_that_carries_nothing(self):
        X = np.outer(np.arange(10.0), np.ones(3))
        fitted = PLSSubspace(2).fit(X, np.arange(10.0))
        with pytest.raises(InputError, match="spread"):
            edit_vectors(fitted, 1)
        with pytest.raises(InputError, match="norm 0"):
            unit(direction(fitted, "weights", 1))
