"""What a subspace accepts: a finite (n, d) matrix of activations and a finite (n,) numeric target.

Half-precision hidden states overflow to Inf, and one such row silently spoils every mean and every direction. The
released code of P4 imputes them; here they are refused, and the message says how many rows and which one is first.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import column_or_1d, validate_data

from inscape.errors import InputError

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]


def as_array(values: Any) -> Any:
    """A torch tensor (any dtype, bfloat16 too, any device) becomes a numpy array; anything else is returned as it
    is.
    """
    if hasattr(values, "detach"):
        return values.detach().cpu().double().numpy()
    return values


def refuse_non_finite(values: NDArray[Any], name: str) -> None:
    """Raise InputError when a row (n, ...) or entry (n,) is NaN or infinite, with the count and the first row's
    index.
    """
    flat = np.asarray(values).reshape(len(values), -1)
    bad = ~np.isfinite(flat).all(axis=1)
    if bad.any():
        raise InputError(
            f"{name}: NaN or inf in {int(bad.sum())} of {len(bad)} rows (first: row {int(bad.argmax())}); "
            "expected finite values: drop these rows or capture in a wider dtype"
        )


def matrix(values: ArrayLike, name: str = "X") -> Matrix:
    """(n, d) float64, finite; InputError otherwise. Outside an estimator: no feature count to compare with."""
    try:
        array = np.asarray(as_array(values), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: {error}; expected a matrix of numbers (rows, features)") from None
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(f"{name}: shape {array.shape}; expected a non-empty matrix (rows, features)")
    refuse_non_finite(array, name)
    return array


def vector(values: ArrayLike, name: str = "y", length: int | None = None) -> Vector:
    """(n,) float64, finite, of `length` where one is given; InputError otherwise."""
    try:
        array = np.asarray(as_array(values), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: {error}; expected a vector of numbers") from None
    if array.ndim != 1 or len(array) == 0:
        raise InputError(f"{name}: shape {array.shape}; expected a non-empty vector (rows,)")
    if length is not None and len(array) != length:
        raise InputError(f"{name}: {len(array)} values for {length} rows; expected one per row")
    refuse_non_finite(array, name)
    return array


def training_data(estimator: Any, X: ArrayLike, y: ArrayLike | None) -> tuple[Matrix, Vector]:
    """X (n, d) and y (n,) as float64 copies for `fit`; records `n_features_in_`. InputError on anything else."""
    X_nd = _checked(estimator, X, y=y if y is None else "no_validation", ensure_min_samples=2, copy=True)
    refuse_non_finite(X_nd, "X")
    try:
        y_n: Vector = column_or_1d(as_array(y), warn=True).astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"y: {error}; expected numbers, one per row") from None
    if len(y_n) != len(X_nd):
        raise InputError(f"y: {len(y_n)} values for {len(X_nd)} rows of X; expected one per row")
    refuse_non_finite(y_n, "y")
    return X_nd, y_n


def new_data(estimator: Any, X: ArrayLike) -> Matrix:
    """X (n, d) as float64 for a fitted estimator; InputError on NaN/inf or another number of features than at `fit`."""
    X_nd = _checked(estimator, X, reset=False)
    refuse_non_finite(X_nd, "X")
    return X_nd


def _checked(estimator: Any, X: ArrayLike, **options: Any) -> Matrix:
    """scikit-learn's own validation (shape, feature count and names, complex), its refusals as one-line InputErrors."""
    try:
        X_nd: Matrix = validate_data(estimator, as_array(X), dtype=np.float64, ensure_all_finite=False, **options)
    except ValueError as error:
        raise InputError(" ".join(str(error).split())) from None
    return X_nd
