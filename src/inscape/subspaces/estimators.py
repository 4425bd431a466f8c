"""Four estimators of a numeric subspace, interchangeable in one sweep: PLS, PCA with regression, ridge, mean
difference.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
from sklearn.cross_decomposition import PLSRegression
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression, RidgeCV
from sklearn.utils import Tags

from inscape.errors import InputError
from inscape.subspaces.inputs import Matrix, Vector
from inscape.subspaces.linear import LinearSubspace, pattern, standardise

SubspaceKind = Literal["pls", "pca", "ridge", "mean_difference"]
RIDGE_PENALTIES = tuple(float(alpha) for alpha in np.logspace(-1, 6, 15))


class PLSSubspace(LinearSubspace):
    """Partial least squares on a one-dimensional target (P4, P7): components are axes of greatest covariance with y.

    `n_components`: components to find (P7: 50, then truncated to 1..10; P4: 5). `scale`: divide features and target
    by their training sd (both papers do so in effect). The fit is scikit-learn's PLSRegression (NIPALS).
    """

    def __init__(self, n_components: int = 2, *, scale: bool = True) -> None:
        self.n_components = n_components
        self.scale = scale

    def _learn(self, X: Matrix, y: Vector) -> None:
        k = self._check_n_components(X, self.n_components)
        X_s, self.x_mean_, self.x_scale_ = standardise(X, ddof=1, scale=self.scale)
        y_s, y_mean, y_scale = standardise(y[:, None], ddof=1, scale=self.scale)
        self.y_mean_, self.y_scale_ = float(y_mean[0]), float(y_scale[0])
        # Standardised here and not in PLSRegression, whose means and deviations are private attributes.
        pls = PLSRegression(k, scale=False, copy=False)
        with warnings.catch_warnings():
            # Nothing of y is left to explain: not an accident but the number of components there are.
            warnings.filterwarnings("ignore", message="y residual is constant")
            pls.fit(X_s, y_s)
        self.n_components_ = len(pls.n_iter_)
        found = np.arange(k) < self.n_components_  # the pseudo-inverse leaves rounding noise in the columns after these
        self.weights_ = pls.x_weights_ * found
        self.rotations_ = pls.x_rotations_ * found
        self.loadings_ = pls.x_loadings_ * found
        self.y_loadings_ = pls.y_loadings_[0] * found
        if not all(np.isfinite(a).all() for a in (self.rotations_, self.loadings_, self.y_loadings_)):
            raise InputError(
                f"X: PLS found no {k} components in {X.shape[0]} rows; expected fewer n_components or more varied rows"
            )


class PCASubspace(LinearSubspace):
    """StandardScaler, PCA(k), LinearRegression: P7's unsupervised baseline. Components are ordered by variance, blind
    to y.

    `svd_solver="full"` is exact, so that components are nested and `predict_path` equals refits; "randomized" is
    faster for very wide activations and uses `random_state`.
    """

    def __init__(
        self,
        n_components: int = 2,
        *,
        svd_solver: Literal["full", "randomized", "covariance_eigh", "arpack"] = "full",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_components = n_components
        self.svd_solver = svd_solver
        self.random_state = random_state

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.regressor_tags.poor_score = (
            True  # axes are chosen without y: a low R2 at small k is what it is a baseline for
        )
        return tags

    def _learn(self, X: Matrix, y: Vector) -> None:
        k = self._check_n_components(X, self.n_components)
        X_s, self.x_mean_, self.x_scale_ = standardise(X, ddof=0)
        pca = PCA(k, svd_solver=self.svd_solver, random_state=self.random_state).fit(X_s)
        # A component of (numerically) no variance is rounding noise: regressing on it would give it a huge coefficient.
        carries = pca.explained_variance_ > 1e-12 * max(float(pca.explained_variance_[0]), np.finfo(np.float64).tiny)
        self.n_components_ = int(carries.sum())
        axes_dk = pca.components_.T * carries
        scores_nk = X_s @ axes_dk
        slopes = np.zeros(k)
        if carries.any():
            slopes[carries] = LinearRegression().fit(scores_nk[:, carries], y).coef_
        self.weights_ = self.rotations_ = axes_dk
        self.loadings_ = pattern(X_s, scores_nk)
        self.y_loadings_, self.y_mean_, self.y_scale_ = slopes, float(y.mean()), 1.0


class RidgeSubspace(LinearSubspace):
    """StandardScaler, RidgeCV (leave-one-out over `alphas`): one axis, the ridge coefficient in standardised space.

    The strongest plain linear reader; a subspace of one component, whose loading is the axis's pattern X_s't / t't.
    Learned besides: `alpha_`, the chosen penalty (per standardised feature).
    """

    def __init__(self, alphas: Sequence[float] = RIDGE_PENALTIES) -> None:
        self.alphas = alphas

    def _learn(self, X: Matrix, y: Vector) -> None:
        X_s, self.x_mean_, self.x_scale_ = standardise(X, ddof=0)
        ridge = RidgeCV(alphas=self.alphas).fit(X_s, y)
        self.alpha_ = float(ridge.alpha_)
        norm = float(np.linalg.norm(ridge.coef_))
        self.weights_ = self.rotations_ = (ridge.coef_ / (norm or 1.0))[:, None]
        self.loadings_ = pattern(X_s, X_s @ self.rotations_)
        self.y_loadings_, self.y_mean_, self.y_scale_ = np.array([norm]), float(y.mean()), 1.0
        self.n_components_ = int(norm > 0)


class MeanDifference(LinearSubspace):
    """One axis: the mean of the rows with high y minus the mean of those with low y, and a line fitted along it.

    y is split at its median (a binary y into its two classes); of "above" and "at or above" the more even split is
    taken. `scale`: standardise the features first (False: the plain difference of means, as in steering work).
    """

    def __init__(self, *, scale: bool = False) -> None:
        self.scale = scale

    def _learn(self, X: Matrix, y: Vector) -> None:
        median = np.median(y)
        high = min((y > median, y >= median), key=lambda side: abs(side.mean() - 0.5))
        if high.all() or not high.any():
            raise InputError(f"y: all {len(y)} values are {median:g}; expected at least two different values")
        X_s, self.x_mean_, self.x_scale_ = standardise(X, ddof=0, scale=self.scale)
        difference = X_s[high].mean(axis=0) - X_s[~high].mean(axis=0)
        norm = float(np.linalg.norm(difference))
        self.weights_ = self.rotations_ = (difference / (norm or 1.0))[:, None]
        scores_n1 = X_s @ self.rotations_
        self.loadings_ = pattern(X_s, scores_n1)
        spread = float((scores_n1**2).sum())
        slope = float(scores_n1[:, 0] @ (y - y.mean())) / spread if spread > 0 else 0.0
        self.y_loadings_, self.y_mean_, self.y_scale_ = np.array([slope]), float(y.mean()), 1.0
        self.n_components_ = int(norm > 0)


def subspace(kind: SubspaceKind, n_components: int = 1, random_state: int | None = None) -> LinearSubspace:
    """An unfitted estimator by name; `n_components` is for "pls" and "pca" (the other two have one axis)."""
    if kind == "pls":
        return PLSSubspace(n_components)
    if kind == "pca":
        return PCASubspace(n_components, random_state=random_state)
    if kind == "ridge":
        return RidgeSubspace()
    if kind == "mean_difference":
        return MeanDifference()
    raise InputError(f"subspace {kind!r}: expected one of pls, pca, ridge, mean_difference")
