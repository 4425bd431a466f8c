"""Controls of a fit and of an edit: what the same numbers look like where there is nothing to find.

Of a fit: shuffled labels, random representations (both in P7's form) and, in `name_floor`, a reader of names without
any model. Of an edit: directions of the same norm that are random, random within the activations' own covariance, or
fitted to shuffled labels.
"""

from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import ArrayLike
from sklearn.base import clone

from inscape.errors import InputError
from inscape.subspaces.directions import DirectionKind, direction, unit
from inscape.subspaces.inputs import Matrix, Vector, matrix, vector
from inscape.subspaces.linear import LinearSubspace
from inscape.subspaces.selection import r2_columns

ControlKind = Literal["shuffled", "random"]


def control_curve(
    estimator: LinearSubspace,
    X_train: ArrayLike,
    y_train: ArrayLike,
    X_test: ArrayLike,
    y_test: ArrayLike,
    *,
    control: ControlKind = "shuffled",
    n_draws: int = 20,
    random_state: int | None = None,
) -> pl.DataFrame:
    """Test R2 of an unfitted estimator on data that hold nothing: columns `control`, `draw`, `k` (1..components), `r2`.

    `shuffled` (P7): rows of X are permuted within train *and*, independently, within test. Permuting train alone is a
    weak null: the permuted fit still predicts in the subspace where the test rows vary, and scores up to 0.38 by
    chance. `random` (P7): every entry of X, train and test, is drawn from N(mean, sd) of its training feature.
    """
    X_fit, y_fit = matrix(X_train, "X_train"), vector(y_train, "y_train")
    X_new, y_new = matrix(X_test, "X_test"), vector(y_test, "y_test")
    if len(X_fit) != len(y_fit) or len(X_new) != len(y_new):
        raise InputError(
            f"X, y: {len(X_fit)}, {len(y_fit)} training and {len(X_new)}, {len(y_new)} test rows; expected equal counts"
        )
    if control not in ("shuffled", "random"):
        raise InputError(f"control {control!r}: expected shuffled or random")
    _check_draws(n_draws)
    rng = np.random.default_rng(random_state)
    mean, sd = X_fit.mean(axis=0), X_fit.std(axis=0)
    tables = []
    for draw in range(n_draws):
        if control == "shuffled":
            # Permuting y instead of the rows of X is the same pairing, and leaves the large array where it is.
            fitted = clone(estimator).fit(X_fit, rng.permutation(y_fit))
            r2 = r2_columns(rng.permutation(y_new), fitted.predict_path(X_new))
        else:
            fitted = clone(estimator).fit(rng.normal(mean, sd, X_fit.shape), y_fit)
            r2 = r2_columns(y_new, fitted.predict_path(rng.normal(mean, sd, X_new.shape)))
        tables.append(pl.DataFrame({"control": control, "draw": draw, "k": np.arange(1, len(r2) + 1), "r2": r2}))
    return pl.concat(tables)


def summarise_draws(draws: pl.DataFrame, level: float = 0.95) -> pl.DataFrame:
    """Mean and central interval over draws per control and k: `control`, `k`, `n_draws`, `r2`, `r2_lo`, `r2_hi`.

    The interval is of single draws (where one more shuffle would fall), not of their mean: it is what a measured R2
    is held against.
    """
    tail = (1 - level) / 2
    return draws.group_by(["control", "k"], maintain_order=True).agg(
        pl.len().alias("n_draws"),
        pl.col("r2").mean(),
        pl.col("r2").quantile(tail, "linear").alias("r2_lo"),
        pl.col("r2").quantile(1 - tail, "linear").alias("r2_hi"),
    )


def random_directions(
    n_features: int, norm: float | ArrayLike = 1.0, *, n_draws: int = 20, random_state: int | None = None
) -> Matrix:
    """Isotropic random directions (n_draws, n_features), each of the given norm (one for all, or one per draw)."""
    _check_draws(n_draws)
    rng = np.random.default_rng(random_state)
    return _with_norm(rng.normal(size=(n_draws, n_features)), norm)


def random_directions_within(
    X: ArrayLike, norm: float | ArrayLike = 1.0, *, n_draws: int = 20, random_state: int | None = None
) -> Matrix:
    """Random directions (n_draws, d) drawn from N(0, covariance of X), then given the norm: they move where
    activations vary.

    A fairer rival than the isotropic kind when activations fill few dimensions: an isotropic vector lies mostly where
    nothing reads.
    """
    _check_draws(n_draws)
    X_nd = matrix(X)
    rng = np.random.default_rng(random_state)
    # A Gaussian mixture of the centred rows has exactly the sample covariance; the (d, d) matrix is never formed.
    return _with_norm(rng.normal(size=(n_draws, len(X_nd))) @ (X_nd - X_nd.mean(axis=0)), norm)


def shuffled_directions(
    estimator: LinearSubspace,
    X: ArrayLike,
    y: ArrayLike,
    norm: float | ArrayLike = 1.0,
    *,
    kind: DirectionKind = "weights",
    component: int | None = None,
    n_draws: int = 20,
    random_state: int | None = None,
) -> Matrix:
    """Directions (n_draws, d) of the given norm, read by `direction` from fits of `estimator` to permuted y."""
    _check_draws(n_draws)
    X_nd, y_n = matrix(X), vector(y)
    rng = np.random.default_rng(random_state)
    fits = (clone(estimator).fit(X_nd, rng.permutation(y_n)) for _ in range(n_draws))
    return _with_norm(np.stack([direction(fitted, kind, component) for fitted in fits]), norm)


def circular_error(predicted: ArrayLike, actual: ArrayLike, period: float = 360.0) -> Vector:
    """Distance (n,) around a circle, 0..period/2: 179 and -179 degrees are 2 apart. NaN predictions give NaN.

    R2 of longitude counts them as 358 apart, so a probe of longitude is reported with both.
    """
    difference = np.asarray(predicted, dtype=np.float64) - np.asarray(actual, dtype=np.float64)
    return np.abs((difference + period / 2) % period - period / 2)


def _with_norm(vectors: Matrix, norm: float | ArrayLike) -> Matrix:
    norms = np.asarray(norm, dtype=np.float64)
    if norms.ndim and norms.shape != (len(vectors),):
        raise InputError(f"norm: shape {norms.shape} for {len(vectors)} draws; expected one number or one per draw")
    if not (np.isfinite(norms) & (norms >= 0)).all():
        raise InputError("norm: expected finite numbers of at least 0")
    return unit(vectors) * norms.reshape(-1, 1)


def _check_draws(n_draws: int) -> None:
    if n_draws < 1:
        raise InputError(f"n_draws={n_draws}: expected at least 1 (20 or more for a percentile)")
