"""Controls: nothing found where nothing is, equal norms, the name-only floor of the real tables, and errors on a circle."""

import numpy as np
import polars as pl
import pytest
from sklearn.cross_decomposition import PLSRegression
from sklearn.metrics import r2_score

from inscape.data.facts import load_facts
from inscape.errors import InputError
from inscape.subspaces import (
    PLSSubspace,
    RidgeSubspace,
    circular_error,
    control_curve,
    direction,
    name_floor,
    random_directions,
    random_directions_within,
    shuffled_directions,
    summarise_draws,
)

# Finding 6: (R2 raw, R2 power target), fitted on 1,000 training names, scored on 500 dev names.
NAME_FLOOR = {
    "birth_year": (0.13, 0.21),
    "death_year": (0.18, 0.24),
    "inception": (0.03, 0.11),
    "work_start": (0.05, 0.05),
    "population": (0.05, 0.23),
    "elevation": (0.02, 0.02),
    "area": (-0.51, 0.31),
    "latitude": (0.12, 0.15),
    "longitude": (0.37, 0.37),
}


@pytest.fixture(scope="module")
def facts(numeric_facts):
    return load_facts(numeric_facts)


@pytest.mark.parametrize("name", NAME_FLOOR)
def test_the_name_floor_of_the_real_tables(facts, name):
    train, dev = facts.of(name, "train"), facts.of(name, "dev")
    for target, expected in zip(("raw", "yeo-johnson"), NAME_FLOOR[name], strict=True):
        floor = name_floor(train["label"], train["value"], dev["label"], dev["value"], target=target)
        assert floor.r2 == pytest.approx(expected, abs=0.02), target
        assert floor.target == target
        assert len(floor.predictions) == dev.height


def test_the_power_target_of_the_floor_never_sees_the_test_values(facts):
    train, dev = facts.of("birth_year", "train"), facts.of("birth_year", "dev")
    runs = [
        name_floor(train["label"], train["value"], dev["label"], values, target="yeo-johnson")
        for values in (dev["value"].to_numpy(), dev["value"].to_numpy() - 300.0)
    ]
    np.testing.assert_array_equal(runs[0].predictions, runs[1].predictions)
    assert runs[0].r2 != runs[1].r2


def test_names_that_tell_nothing_have_a_floor_of_nothing():
    rng = np.random.default_rng(0)
    names = ["".join(rng.choice(list("abcdefgh"), 6)) for _ in range(400)]
    y = rng.normal(size=400)
    assert name_floor(names[:300], y[:300], names[300:], y[300:]).r2 < 0.05
    told = [("north " if v > 0 else "south ") + n for n, v in zip(names, y, strict=True)]
    assert name_floor(told[:300], y[:300], told[300:], y[300:]).r2 > 0.5
    with pytest.raises(InputError, match="2 values for 300 rows"):
        name_floor(names[:300], y[:2], names[300:], y[300:])
    with pytest.raises(InputError, match="expected names that share characters"):
        name_floor(["", ""], [1.0, 2.0], [""], [1.0])


class TestControlCurve:
    def test_shuffled_labels_in_the_papers_form_permute_rows_of_both_splits(self, planted):
        """P7 permutes X; permuting y by the inverse pairs the same rows, so an explicit permutation of X is the oracle."""
        world = planted(0)
        X, y, X_test, y_test = world.X_fit[:200], world.y_fit[:200], world.X_test[:100], world.y_test[:100]
        rng = np.random.default_rng(7)
        train_order, test_order = rng.permutation(200), rng.permutation(100)
        reference = PLSRegression(4).fit(X[np.argsort(train_order)], y)
        expected = r2_score(y_test, reference.predict(X_test[np.argsort(test_order)]))
        got = control_curve(PLSSubspace(4), X, y, X_test, y_test, n_draws=1, random_state=7)
        assert got.filter(pl.col("k") == 4)["r2"].item() == pytest.approx(expected, abs=1e-9)

    def test_draws_are_summarised_by_mean_and_interval(self, planted):
        world = planted(0)
        args = (world.X_fit[:200], world.y_fit[:200], world.X_test[:100], world.y_test[:100])
        draws = control_curve(PLSSubspace(3), *args, n_draws=20, random_state=0)
        assert draws.equals(control_curve(PLSSubspace(3), *args, n_draws=20, random_state=0))
        table = summarise_draws(draws)
        assert table["k"].to_list() == [1, 2, 3]
        for row in table.iter_rows(named=True):
            values = draws.filter(pl.col("k") == row["k"])["r2"].to_numpy()
            assert row["n_draws"] == 20
            assert row["r2"] == pytest.approx(values.mean())
            assert (row["r2_lo"], row["r2_hi"]) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))

    def test_the_estimator_that_was_passed_stays_unfitted(self, planted):
        world, estimator = planted(0), RidgeSubspace()
        draws = control_curve(
            *(estimator, world.X_fit[:50], world.y_fit[:50], world.X_test, world.y_test), control="random", n_draws=2
        )
        assert not hasattr(estimator, "rotations_")
        assert draws["k"].to_list() == [1, 1]
        with pytest.raises(InputError, match="expected shuffled or random"):
            control_curve(estimator, world.X_fit, world.y_fit, world.X_test, world.y_test, control="permuted")


class TestRandomDirections:
    def test_they_have_the_norm_and_point_anywhere(self):
        vectors = random_directions(64, 2.5, n_draws=2000, random_state=0)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 2.5)
        np.testing.assert_allclose(vectors.T @ vectors / 2000, np.eye(64) * 2.5**2 / 64, atol=0.02)
        np.testing.assert_array_equal(vectors, random_directions(64, 2.5, n_draws=2000, random_state=0))

    def test_one_norm_per_draw(self):
        norms = np.linspace(0, 3, 20)
        np.testing.assert_allclose(
            np.linalg.norm(random_directions(8, norms, random_state=0), axis=1), norms, atol=1e-12
        )
        with pytest.raises(InputError, match="expected one number or one per draw"):
            random_directions(8, norms[:3])

    def test_within_the_covariance_they_move_where_activations_vary(self):
        rng = np.random.default_rng(0)
        basis = np.linalg.qr(rng.normal(size=(30, 3)))[0]
        X = rng.normal(size=(500, 3)) * [5.0, 2.0, 1.0] @ basis.T + 10.0
        vectors = random_directions_within(X, n_draws=4000, random_state=1)
        np.testing.assert_allclose(vectors @ basis @ basis.T, vectors, atol=1e-9)  # never leaves the span
        draws = rng.multivariate_normal(np.zeros(30), np.cov(X.T), size=4000)
        oracle = np.abs(draws / np.linalg.norm(draws, axis=1, keepdims=True) @ basis).mean(axis=0)
        np.testing.assert_allclose(np.abs(vectors @ basis).mean(axis=0), oracle, atol=0.03)

    def test_directions_of_shuffled_labels_miss_the_planted_axis(self, planted):
        world = planted(0)
        fitted = direction(PLSSubspace(1).fit(world.X_fit, world.y_fit))
        norm = float(np.linalg.norm(fitted))
        vectors = shuffled_directions(PLSSubspace(1), world.X_fit, world.y_fit, norm, random_state=0)
        assert vectors.shape == (20, 256)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), norm)
        assert np.abs([world.cos(v, 0) for v in vectors]).mean() < 0.35


def test_errors_around_a_circle():
    predicted, actual = [179.0, -179.0, 0.0, 10.0, 90.0, 725.0, np.nan], [-179.0, 179.0, 180.0, 350.0, 90.0, 0.0, 1.0]
    np.testing.assert_allclose(circular_error(predicted, actual), [2, 2, 180, 20, 0, 5, np.nan])
    np.testing.assert_allclose(circular_error([23.0], [1.0], period=24.0), [2.0])
