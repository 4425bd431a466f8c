"""One suite for all four estimators: scikit-learn's own checks, the shared contract, and each one's independent oracle."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.cross_decomposition import PLSRegression
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression, RidgeCV
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from inscape.errors import InputError
from inscape.subspaces import MeanDifference, PCASubspace, PLSSubspace, RidgeSubspace, subspace

ALL = [
    PLSSubspace(4),
    PLSSubspace(4, scale=False),
    PCASubspace(4),
    RidgeSubspace(),
    MeanDifference(),
    MeanDifference(scale=True),
]


def named(estimator):
    return repr(estimator).replace("\n", "")


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 9)) * rng.uniform(0.1, 20, 9) + rng.normal(size=9) * 50
    return X, X @ rng.normal(size=9) + rng.normal(size=120) + 1900


# Two components: scikit-learn's checks use data of two or three features.
@parametrize_with_checks(
    [
        PLSSubspace(),
        PLSSubspace(scale=False),
        PCASubspace(),
        RidgeSubspace(),
        MeanDifference(),
        MeanDifference(scale=True),
    ]
)
def test_scikit_learn_accepts_it(estimator, check):
    check(estimator)


@pytest.mark.parametrize("estimator", ALL, ids=named)
class TestContract:
    def test_prediction_is_the_linear_map_that_coef_names(self, estimator, data):
        X, y = data
        fitted = clone(estimator).fit(X, y)
        np.testing.assert_allclose(fitted.predict(X), X @ fitted.coef_ + fitted.intercept_, rtol=1e-9)
        assert fitted.score(X, y) == pytest.approx(r2_score(y, fitted.predict(X)))

    def test_last_column_of_the_path_is_the_prediction(self, estimator, data):
        X, y = data
        fitted = clone(estimator).fit(X, y)
        np.testing.assert_allclose(fitted.predict_path(X)[:, -1], fitted.predict(X), rtol=1e-12)

    def test_path_and_truncation_equal_a_refit_with_fewer_components(self, estimator, data):
        X, y = data
        fitted = clone(estimator).fit(X, y)
        path = fitted.predict_path(X)
        for k in range(1, path.shape[1] + 1):
            cut = fitted.truncate(k)
            np.testing.assert_allclose(cut.predict(X), path[:, k - 1], rtol=1e-10)
            if "n_components" in estimator.get_params():
                refit = clone(estimator).set_params(n_components=k).fit(X, y)
                np.testing.assert_allclose(refit.predict(X), path[:, k - 1], rtol=1e-9)
                assert cut.get_params() == refit.get_params()
        assert fitted.transform(X).shape == path.shape

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_non_finite_rows_are_refused_and_counted(self, estimator, data, bad):
        X, y = data[0].copy(), data[1]
        X[[3, 7, 7], [0, 1, 2]] = bad
        with pytest.raises(InputError, match=r"X: NaN or inf in 2 of 120 rows \(first: row 3\)"):
            clone(estimator).fit(X, y)
        with pytest.raises(InputError, match="in 2 of 120 rows"):
            clone(estimator).fit(*data).predict(X)
        with pytest.raises(InputError, match=r"y: NaN or inf in 1 of 120 rows \(first: row 5\)"):
            clone(estimator).fit(data[0], np.where(np.arange(120) == 5, bad, y))

    def test_other_malformed_input_is_refused_in_one_line(self, estimator, data):
        X, y = data
        fitted = clone(estimator).fit(X, y)
        for call in (
            lambda: fitted.predict(X[:, :5]),
            lambda: fitted.transform(X[0]),
            lambda: clone(estimator).fit(X, y[:-1]),
            lambda: clone(estimator).fit(X, ["1902"] * 119 + ["about 1902"]),
            lambda: clone(estimator).fit(X, None),
        ):
            with pytest.raises(InputError) as refused:
                call()
            assert "\n" not in str(refused.value)

    def test_a_constant_feature_changes_nothing(self, estimator, data):
        X, y = data
        with_constant = np.column_stack([X, np.full(len(X), 0.1)])
        got, expected = clone(estimator).fit(with_constant, y), clone(estimator).fit(X, y)
        np.testing.assert_allclose(got.predict(with_constant), expected.predict(X), rtol=1e-9)

    def test_torch_tensors_in_half_precision_are_read(self, estimator, data):
        X, y = torch.tensor(data[0]).bfloat16(), torch.tensor(data[1])
        expected = clone(estimator).fit(X.double().numpy(), data[1]).predict(X.double().numpy())
        np.testing.assert_array_equal(clone(estimator).fit(X, y).predict(X), expected)

    def test_score_range_is_that_of_the_training_scores(self, estimator, data):
        fitted = clone(estimator).fit(*data)
        scores = fitted.transform(data[0])
        np.testing.assert_array_equal(fitted.score_range_, np.stack([scores.min(0), scores.max(0)], 1))

    def test_loadings_are_the_regression_of_the_activation_on_each_score(self, estimator, data):
        fitted = clone(estimator).fit(*data)
        scores = fitted.transform(data[0])
        standardised = (data[0] - fitted.x_mean_) / fitted.x_scale_
        for c in range(scores.shape[1]):
            slopes = LinearRegression().fit(scores[:, [c]], standardised).coef_[:, 0]
            np.testing.assert_allclose(fitted.loadings_[:, c], slopes, atol=1e-9)


def test_pls_is_scikit_learns_with_and_without_scaling(data):
    X, y = data
    for scale in (True, False):
        ours, theirs = PLSSubspace(5, scale=scale).fit(X, y), PLSRegression(5, scale=scale).fit(X, y)
        np.testing.assert_allclose(ours.predict(X), theirs.predict(X), rtol=1e-9)
        np.testing.assert_allclose(ours.transform(X), theirs.transform(X), atol=1e-8)
        np.testing.assert_allclose(ours.weights_, theirs.x_weights_, atol=1e-8)
        np.testing.assert_allclose(ours.coef_, theirs.coef_[0], rtol=1e-6)


def test_pca_and_ridge_are_the_pipelines_they_stand_for(data):
    X, y = data
    pipeline = make_pipeline(StandardScaler(), PCA(4, svd_solver="full"), LinearRegression()).fit(X, y)
    np.testing.assert_allclose(PCASubspace(4).fit(X, y).predict(X), pipeline.predict(X), rtol=1e-9)
    ridge = RidgeSubspace()
    pipeline = make_pipeline(StandardScaler(), RidgeCV(ridge.alphas)).fit(X, y)
    np.testing.assert_allclose(ridge.fit(X, y).predict(X), pipeline.predict(X), rtol=1e-9)
    assert ridge.alpha_ == pipeline[-1].alpha_


def test_truncation_in_the_papers_form_keeps_the_first_scores_only(data):
    """P7: zero the scores beyond k, map back to activations, predict with all components."""
    X, y = data
    reference = PLSRegression(6).fit(X, y)
    scores = reference.transform(X)
    scores[:, 2:] = 0
    expected = reference.predict(reference.inverse_transform(scores))
    np.testing.assert_allclose(PLSSubspace(6).fit(X, y).truncate(2).predict(X), expected, rtol=1e-9)


def test_first_components_are_the_same_for_any_number(planted):
    world = planted(0)
    one, fifty = PLSSubspace(1).fit(world.X_fit, world.y_fit), PLSSubspace(50).fit(world.X_fit, world.y_fit)
    np.testing.assert_allclose(fifty.weights_[:, 0], one.weights_[:, 0], atol=1e-12)
    np.testing.assert_allclose(fifty.truncate(1).predict(world.X_test), one.predict(world.X_test), rtol=1e-12)


def test_mean_difference_is_the_difference_of_means(data):
    X, y = data
    high = y > np.median(y)
    difference = X[high].mean(0) - X[~high].mean(0)
    fitted = MeanDifference().fit(X, y)
    np.testing.assert_allclose(fitted.weights_[:, 0], difference / np.linalg.norm(difference), rtol=1e-9)
    line = LinearRegression().fit(X @ difference[:, None], y)
    np.testing.assert_allclose(fitted.predict(X), line.predict(X @ difference[:, None]), rtol=1e-9)


@pytest.mark.parametrize("ones", [30, 60, 95])
def test_mean_difference_of_a_binary_target_is_between_its_classes(data, ones):
    X = data[0]
    y = (np.arange(120) < ones).astype(float)
    difference = X[y == 1].mean(0) - X[y == 0].mean(0)
    expected = difference / np.linalg.norm(difference)
    np.testing.assert_allclose(MeanDifference().fit(X, y).weights_[:, 0], expected, rtol=1e-9)


def test_a_target_without_variance():
    X, y = np.random.default_rng(0).normal(size=(20, 4)), np.full(20, 7.0)
    with pytest.raises(InputError, match="all 20 values are 7"):
        MeanDifference().fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = PLSSubspace(2).fit(X, y)
    assert fitted.n_components_ == 0
    np.testing.assert_array_equal(fitted.predict(X), y)


def test_components_that_carry_nothing_are_counted_out():
    rng = np.random.default_rng(0)
    X = np.outer(rng.normal(size=50), rng.normal(size=6))  # rank one
    y = X[:, 0] * 3 + 1
    for fitted in (PLSSubspace(3).fit(X, y), PCASubspace(3).fit(X, y)):
        assert fitted.n_components_ == 1
        np.testing.assert_allclose(fitted.predict(X), y, atol=1e-9)
        np.testing.assert_allclose(fitted.predict_path(X), np.tile(y[:, None], 3), atol=1e-9)


@pytest.mark.parametrize("n_components", [0, 10, 1.5, True, "2"])
def test_impossible_numbers_of_components_are_refused(data, n_components):
    for kind in (PLSSubspace, PCASubspace):
        with pytest.raises(InputError, match="n_components"):
            kind(n_components).fit(*data)
    with pytest.raises(InputError, match="has 3 components"):
        PLSSubspace(3).fit(*data).truncate(4)


def test_by_name():
    assert isinstance(subspace("pls", 7), PLSSubspace)
    assert subspace("pca", 7, random_state=3).get_params()["random_state"] == 3
    with pytest.raises(InputError, match="expected one of pls, pca, ridge, mean_difference"):
        subspace("lda")
