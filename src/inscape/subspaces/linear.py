"""What all subspaces share once fitted: scores are linear in the activation, the prediction is linear in the scores.

Notation (capital letters are (d, k) matrices in *standardised* space, where x_s = (x - x_mean_) / x_scale_):

- W `weights_`: the axes on which the estimator looks for y (unit columns).
- R `rotations_`: scores t = x_s R. For PLS, R = W (P'W)^-1, since later axes are found after earlier scores are
  removed.
- P `loadings_`: P_c = X_s' t_c / t_c't_c, how the activation moves when score c moves (the "pattern" of the axis).
- q `y_loadings_`: the prediction is y_mean_ + y_scale_ * sum_c t_c q_c.

Because R'P = I, adding P_c * x_scale_ to an activation changes score c by exactly 1 and no other score (P7's edit
vector); adding W_c * x_scale_ (P4's) also changes score c by 1, but moves later scores as well.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, RegressorMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from inscape.errors import InputError
from inscape.subspaces.inputs import Matrix, Vector, new_data, training_data


class LinearSubspace(ClassNamePrefixFeaturesOutMixin, RegressorMixin, TransformerMixin, BaseEstimator):
    """A numeric subspace of activations: `fit(X, y)`, `transform` (scores), `predict`, `score` (R2), `truncate(k)`.

    X is (n, d) activations, y (n,) numbers in the property's unit. Learned: `x_mean_`, `x_scale_` (d,); `weights_`,
    `rotations_`, `loadings_` (d, k); `y_loadings_` (k,); `y_mean_`, `y_scale_` floats; `score_range_` (k, 2), the
    least and greatest training score per component; `n_components_` (components that carry anything; later ones are
    zero). All float64. A good fit shows that y is linearly *readable* from X, not that the model *uses* it: that
    takes an edit and its controls.
    """

    x_mean_: Vector
    x_scale_: Vector
    weights_: Matrix
    rotations_: Matrix
    loadings_: Matrix
    y_loadings_: Vector
    y_mean_: float
    y_scale_: float
    score_range_: Matrix
    n_components_: int

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """X (n, d), y (n,); NaN or inf in either is an InputError that counts the rows."""
        X_nd, y_n = training_data(self, X, y)
        self._learn(X_nd, y_n)
        scores_nk = self.transform(X_nd)
        self.score_range_ = np.stack([scores_nk.min(axis=0), scores_nk.max(axis=0)], axis=1)
        return self

    @abstractmethod
    def _learn(self, X: Matrix, y: Vector) -> None:
        """Set every learned attribute but `score_range_`, from finite float64 data."""

    def transform(self, X: ArrayLike) -> Matrix:
        """Scores (n, k) of activations X (n, d): standardised units of the component's axis."""
        check_is_fitted(self)
        return ((new_data(self, X) - self.x_mean_) / self.x_scale_) @ self.rotations_

    def predict_path(self, X: ArrayLike) -> Matrix:
        """Predictions (n, k): column j uses the first j+1 components of this one fit (P7's choice of k by truncation).

        Components are found one after another, so the first ones do not depend on how many follow, and column j
        equals the prediction of an estimator fitted with j+1 components; the cost is one fit instead of k.
        """
        scores_nk = self.transform(X)
        return self.y_mean_ + self.y_scale_ * np.cumsum(scores_nk * self.y_loadings_, axis=1)

    def predict(self, X: ArrayLike) -> Vector:
        """Predictions (n,) from all components, in the unit of the y that was fitted."""
        scores_nk = self.transform(X)
        return self.y_mean_ + self.y_scale_ * (scores_nk @ self.y_loadings_)

    def truncate(self, n_components: int) -> Self:
        """A fitted copy that keeps the first `n_components` components; this one stays as it is. InputError if there
        are fewer.
        """
        check_is_fitted(self)
        available = self.rotations_.shape[1]
        if not 1 <= n_components <= available:
            raise InputError(f"truncate({n_components}): this {type(self).__name__} has {available} components")
        kept = copy.deepcopy(self)
        if "n_components" in kept.get_params():
            kept.set_params(n_components=n_components)
        for name in ("weights_", "rotations_", "loadings_"):
            setattr(kept, name, getattr(self, name)[:, :n_components].copy())
        kept.y_loadings_ = self.y_loadings_[:n_components].copy()
        kept.score_range_ = self.score_range_[:n_components].copy()
        kept.n_components_ = min(self.n_components_, n_components)
        return kept

    @property
    def coef_(self) -> Vector:
        """Raw-space regression coefficient (d,): prediction change per unit of activation, all components together."""
        return self.rotations_ @ self.y_loadings_ * self.y_scale_ / self.x_scale_

    @property
    def intercept_(self) -> float:
        """Prediction at the zero activation."""
        return float(self.y_mean_ - self.x_mean_ @ self.coef_)

    @property
    def _n_features_out(self) -> int:
        return int(self.rotations_.shape[1])

    def _check_n_components(self, X: Matrix, n_components: Any) -> int:
        """`n_components` as an int within 1..min(n, d); InputError names the shape that bounds it."""
        if not isinstance(n_components, (int, np.integer)) or isinstance(n_components, bool) or n_components < 1:
            raise InputError(f"n_components={n_components!r}: expected a whole number of at least 1")
        if n_components > min(X.shape):
            raise InputError(
                f"n_components={n_components} is more than n_samples={X.shape[0]} rows with n_features={X.shape[1]} allow; "
                f"expected at most {min(X.shape)}"
            )
        return int(n_components)


def standardise(X: Matrix, *, ddof: int, scale: bool = True) -> tuple[Matrix, Vector, Vector]:
    """(X - mean) / sd per feature, the mean (d,) and the sd (d,); a constant feature keeps scale 1 (and so is 0
    throughout).
    """
    mean = X.mean(axis=0)
    centred = X - mean
    if not scale:
        return centred, mean, np.ones(X.shape[1])
    sd = np.sqrt((centred**2).sum(axis=0) / max(len(X) - ddof, 1))
    # Rounding leaves a constant feature with a tiny sd; dividing by it would turn rounding noise into a feature.
    constant = sd <= 10 * np.finfo(np.float64).eps * np.abs(mean)
    centred[:, constant] = 0.0
    sd[constant] = 1.0
    return centred / sd, mean, sd


def pattern(X_s: Matrix, scores: Matrix) -> Matrix:
    """Loadings P (d, k): P_c = X_s' t_c / t_c't_c, for standardised X_s (n, d) and scores (n, k); a zero score gives
    zeros.
    """
    norm = (scores**2).sum(axis=0)
    return (X_s.T @ scores) / np.where(norm > 0, norm, 1.0)
