"""Many logistic regressions on the same rows at once: all labels and all strengths of the penalty in one solver.

Each label l and each C is scikit-learn's problem, with its free intercept and its optimum::

    minimise over w, b:   sum_n log(1 + exp(-y_n (w·x_n + b)))  +  |w|² / (2 C)          y_n = ±1

Three facts make it quick. A rotation of the features changes nothing, and at the optimum w lies in the span of the training
rows: so the features are replaced by their principal coordinates, at most as many as rows, also for a million n-grams. In
these coordinates the Hessian's upper bound (Böhning 1992), X'X / 4 + I / C, is diagonal, for every C at once: scaled by it,
a plain gradient step can't overshoot. And the iterations (L-BFGS, Liu & Nocedal 1989; its memory per column) are then two
matrix products over all columns together. A column that is done leaves the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike, NDArray

from inscape.errors import InputError

Floats = NDArray[np.float64]

_MEMORY = 8  # pairs of steps and gradient changes that L-BFGS keeps
_ARMIJO = 1e-4
_NOISE = 1e-13  # rounding of a sum of log-losses, relative: no step is refused for less


class Coordinates:
    """Principal coordinates of training rows; new rows are put into the same ones.

    Dense features are standardised first (a feature that doesn't vary is left out); sparse ones are taken as they are, as
    their scale (TF-IDF, say) is their meaning. Both are centred, which the free intercept makes harmless.

    Attributes:
        rows: float64 [training row, coordinate].
        spectrum: float64 [coordinate], the sums of squares of each.
    """

    def __init__(self, X: Any) -> None:
        self._sparse = scipy.sparse.issparse(X)
        if self._sparse:
            self._train = X = scipy.sparse.csr_array(X, dtype=np.float64)
            self._mean, self._scale = np.asarray(X.mean(axis=0)).ravel(), None
            gram = self._centred_products(X)
        else:
            X = _matrix(X)
            self._mean, scale = X.mean(axis=0), X.std(axis=0)
            # A constant column has a spread of rounding errors: divided by it, they would become a feature.
            self._scale = np.where(scale > 1e-10 * (np.abs(self._mean) + scale), scale, np.inf)
            self._train = self._standardised(X)
            gram = self._train @ self._train.T if len(X) <= X.shape[1] else self._train.T @ self._train
        spectrum, vectors = np.linalg.eigh(gram)
        kept = spectrum > max(X.shape) * np.finfo(np.float64).eps * max(float(spectrum[-1]), 1e-300)
        self.spectrum, vectors = spectrum[kept], vectors[:, kept]
        if self._sparse or len(X) <= X.shape[1]:
            self.rows = vectors * np.sqrt(self.spectrum)
            into = vectors / np.sqrt(self.spectrum)
            self._into = into if self._sparse else self._train.T @ into
        else:
            self.rows = self._train @ vectors
            self._into = vectors

    def of(self, X: Any) -> Floats:
        """Coordinates ``[row, coordinate]`` of other rows with the same features."""
        if self._sparse:
            return self._centred_products(scipy.sparse.csr_array(X, dtype=np.float64)) @ self._into
        X = _matrix(X)
        if X.shape[1] != len(self._mean):
            raise InputError(f"probe: rows have {X.shape[1]} features, expected the {len(self._mean)} of training")
        return self._standardised(X) @ self._into

    def _standardised(self, X: Floats) -> Floats:
        return (X - self._mean) / self._scale

    def _centred_products(self, X: Any) -> Floats:
        """Inner products ``[row, training row]`` of centred rows, without making the sparse rows dense."""
        products = np.asarray((X @ self._train.T).todense())
        of_rows, of_train = X @ self._mean, self._train @ self._mean
        return products - of_rows[:, None] - of_train[None, :] + self._mean @ self._mean


@dataclass(frozen=True, eq=False)
class LogisticFit:
    """Fitted regressions. ``weights``: float64 [C, coordinate, label]; ``intercepts``: [C, label]."""

    C: tuple[float, ...]
    weights: Floats
    intercepts: Floats
    iterations: int

    def decision(self, rows: Floats) -> Floats:
        """Log-odds ``[C, row, label]`` of rows in the training's coordinates."""
        return rows @ self.weights + self.intercepts[:, None, :]


def fit_logistic(
    coordinates: Coordinates,
    labels: ArrayLike,
    C: Sequence[float] = (1.0,),
    *,
    tolerance: float = 1e-4,
    max_iterations: int = 1000,
) -> LogisticFit:
    """Fit every label of ``labels`` (bool [training row, label]) at every C.

    Args:
        tolerance: norm of the scaled gradient at which a column is done; in these units the Hessian is at most 1.
        max_iterations: of L-BFGS.

    Raises:
        InputError: labels of another length, a label with one value only, a C that isn't positive, or no convergence.
    """
    truth_NL = np.asarray(labels, dtype=bool)
    n = len(coordinates.rows)
    if truth_NL.ndim != 2 or len(truth_NL) != n:
        raise InputError(f"probe: labels of shape {truth_NL.shape}, expected ({n}, labels)")
    if not C or not all(0 < c < np.inf for c in C):
        raise InputError(f"probe: C is {tuple(C)}, expected positive numbers")
    yes_L = truth_NL.sum(axis=0)
    if (bad := np.flatnonzero((yes_L == 0) | (yes_L == n))).size:
        raise InputError(f"probe: label {bad[0]} has one value in all {n} training rows, expected both")

    # Columns K are all (C, label) pairs.
    y_NK = np.tile(truth_NL.astype(np.float64), (1, len(C)))
    penalty_K = np.repeat(1.0 / np.asarray(C, dtype=np.float64), truth_NL.shape[1])
    problem = _Problem(coordinates.rows, coordinates.spectrum, y_NK, penalty_K)
    solution, iterations = _minimise(problem, tolerance, max_iterations)
    solution *= problem.scale_RK
    weights, intercepts = solution[:-1], solution[-1]
    rank, many = len(weights), truth_NL.shape[1]
    return LogisticFit(
        tuple(float(c) for c in C),
        np.ascontiguousarray(weights.reshape(rank, len(C), many).transpose(1, 0, 2)),
        intercepts.reshape(len(C), many),
        iterations,
    )


class _Problem:
    """Objective and gradient of columns, in coordinates scaled so that the Hessian is at most 1. Last row: intercepts."""

    def __init__(self, rows_NR: Floats, spectrum_R: Floats, y_NK: Floats, penalty_K: Floats) -> None:
        self.rows_NR, self.y_NK, self.penalty_K = rows_NR, y_NK, penalty_K
        bound_RK = np.empty((len(spectrum_R) + 1, len(penalty_K)))
        bound_RK[:-1] = spectrum_R[:, None] / 4 + penalty_K
        bound_RK[-1] = len(rows_NR) / 4  # (centred rows: the intercept has no cross terms in the bound)
        self.scale_RK = 1 / np.sqrt(bound_RK)

    def value_and_gradient(self, at_RK: Floats, columns: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Values ``[column]`` and gradients ``[coordinate + 1, column]`` at ``at_RK`` of the given columns."""
        scale_RK, y_NK, penalty_K = self.scale_RK[:, columns], self.y_NK[:, columns], self.penalty_K[columns]
        theta_RK = at_RK * scale_RK
        w_RK = theta_RK[:-1]
        z_NK = self.rows_NR @ w_RK + theta_RK[-1]
        shrunk_NK = np.exp(-np.abs(z_NK))
        losses_NK = np.maximum(z_NK, 0) - y_NK * z_NK + np.log1p(shrunk_NK)
        probability_NK = np.where(z_NK > 0, 1.0, shrunk_NK) / (1 + shrunk_NK)
        error_NK = probability_NK - y_NK
        gradient_RK = np.empty_like(at_RK)
        gradient_RK[:-1] = self.rows_NR.T @ error_NK + penalty_K * w_RK
        gradient_RK[-1] = error_NK.sum(axis=0)
        value_K = losses_NK.sum(axis=0) + penalty_K * (w_RK**2).sum(axis=0) / 2
        return value_K, gradient_RK * scale_RK


def _minimise(problem: _Problem, tolerance: float, max_iterations: int) -> tuple[Floats, int]:
    """L-BFGS on all columns at once; returns the minimisers ``[coordinate + 1, column]`` and the iterations."""
    done_RK = np.zeros_like(problem.scale_RK)
    columns = np.arange(done_RK.shape[1])
    x = np.zeros_like(done_RK)
    value, gradient = problem.value_and_gradient(x, columns)
    memory: list[tuple[Floats, Floats, Floats]] = []  # (step, change of gradient, 1 / their product or 0), oldest first
    for iteration in range(max_iterations + 1):
        running = np.sqrt((gradient**2).sum(axis=0)) > tolerance
        if not running.any():
            done_RK[:, columns] = x
            return done_RK, iteration
        if running.mean() <= 0.7:
            done_RK[:, columns] = x
            columns, x, value, gradient = columns[running], x[:, running], value[running], gradient[:, running]
            memory = [(s[:, running], y[:, running], rho[running]) for s, y, rho in memory]
        step = -_inverse_hessian(gradient, memory)
        slope = (gradient * step).sum(axis=0)
        value_new, gradient_new = problem.value_and_gradient(x + step, columns)
        worse = value_new > value + _ARMIJO * slope + _NOISE * np.abs(value)
        if worse.any():
            # The plain gradient step always goes down: the Hessian is at most 1.
            step[:, worse] = -gradient[:, worse]
            value_new[worse], gradient_new[:, worse] = problem.value_and_gradient((x + step)[:, worse], columns[worse])
        change = gradient_new - gradient
        product = (step * change).sum(axis=0)
        squared = (change**2).sum(axis=0)
        usable = product > 1e-12 * squared
        rho = np.divide(1.0, product, out=np.zeros_like(product), where=usable)
        memory = [*memory[-_MEMORY + 1 :], (step, change, rho)]
        x, value, gradient = x + step, value_new, gradient_new
    raise InputError(
        f"probe: {int(running.sum())} regressions did not converge in {max_iterations} iterations; give a smaller C"
    )


def _inverse_hessian(gradient: Floats, memory: list[tuple[Floats, Floats, Floats]]) -> Floats:
    """The two-loop recursion, column by column. A pair with rho 0 does nothing."""
    q = gradient.copy()
    alphas = []
    for step, change, rho in reversed(memory):
        alpha = rho * (step * q).sum(axis=0)
        q -= alpha * change
        alphas.append(alpha)
    if memory:
        step, change, rho = memory[-1]
        curvature = rho * (change**2).sum(axis=0)  # at most 1, as the Hessian is
        q /= np.where(curvature > 0, curvature, 1.0)
    for (step, change, rho), alpha in zip(memory, reversed(alphas), strict=True):
        q += (alpha - rho * (change * q).sum(axis=0)) * step
    return q


def _matrix(X: Any) -> Floats:
    array = np.asarray(X, dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(f"probe: features of shape {array.shape}, expected (rows, features)")
    if not np.isfinite(array).all():
        raise InputError("probe: a feature is NaN or infinite")
    return array
