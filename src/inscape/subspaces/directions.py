"""Directions in activation space read from a fitted subspace, and the edits made along them.

Three different vectors are called "the direction" (finding: they part ways as soon as X has a strong nuisance axis or
y a correlated neighbour), so each has its name:

- `weights`: W_c * sd, the axis along which y is *sought* (P4). Robust to a nuisance axis; leans to properties
  correlated with y.
- `loadings`: P_c * sd, how activations *vary* with score c (P7). Moves one score and no other; carries nuisance
  variance along.
- `coefficient`: the gradient of the prediction, which alone corrects for correlated properties (at k >= 2).

All functions are pure: nothing here writes into the fitted subspace (the released code of P4 does, and its direction
changes when it is asked for twice). Vectors are raw-space float64, to be added to an activation, and point the way in
which y rises with the score.
"""

from typing import Literal, get_args

import numpy as np
from sklearn.utils.validation import check_is_fitted

from inscape.errors import InputError
from inscape.subspaces.inputs import Matrix, Vector, vector
from inscape.subspaces.linear import LinearSubspace

DirectionKind = Literal["weights", "loadings", "coefficient"]


def direction(subspace: LinearSubspace, kind: DirectionKind = "weights", component: int | None = None) -> Vector:
    """Raw-space direction (d,), not normalised.

    `weights`, `loadings`: of `component` (None: the first), signed by `y_loadings_` so that y rises with the score;
    adding it once changes that score by exactly 1 (or -1, where y falls with it). Along a loading the prediction always
    rises; along a weight of a later component it usually does, since still later scores move too.
    `coefficient`: None gives the whole regression coefficient, the gradient of the prediction (all components: truncate
    first to choose k); a component gives its term of that sum.
    InputError on another kind or a component that is not there.
    """
    check_is_fitted(subspace)
    if kind not in get_args(DirectionKind):
        raise InputError(f"direction kind {kind!r}: expected one of {', '.join(get_args(DirectionKind))}")
    if kind == "coefficient":
        columns = slice(None) if component is None else slice(_index(subspace, component), component + 1)
        gradient = subspace.rotations_[:, columns] @ subspace.y_loadings_[columns]
        return gradient * subspace.y_scale_ / subspace.x_scale_
    c = _index(subspace, component or 0)
    axis = (subspace.weights_ if kind == "weights" else subspace.loadings_)[:, c]
    return _rising(subspace, c) * axis * subspace.x_scale_


def unit(vectors: Matrix | Vector) -> Matrix | Vector:
    """Vectors (..., d) divided by their norms; InputError for one of norm 0 (it has no direction)."""
    norm = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if not (norm > 0).all():
        raise InputError("direction: a vector of norm 0 has no direction; expected a component that carries something")
    return vectors / norm


def score_change(subspace: LinearSubspace, shift: Vector) -> Vector:
    """How much each score (k,) changes when `shift` (d,) is added to an activation: shift_s R. Exact, since scores
    are linear.
    """
    check_is_fitted(subspace)
    shift = vector(shift, "shift", len(subspace.x_mean_))
    return (shift / subspace.x_scale_) @ subspace.rotations_


def prediction_change(subspace: LinearSubspace, shift: Vector) -> float:
    """How much the prediction changes (in y's unit) when `shift` (d,) is added: what a linear reader expects of the
    edit.
    """
    return float(score_change(subspace, shift) @ subspace.y_loadings_ * subspace.y_scale_)


def edit_range(subspace: LinearSubspace, component: int = 0) -> tuple[float, float]:
    """(start, end): training-score extremes of a component, in the order in which y rises (P7, step range).

    Min then max where `y_loadings_` is positive, max then min where it is negative. InputError for a component
    without spread.
    """
    check_is_fitted(subspace)
    c = _index(subspace, component)
    low, high = (float(bound) for bound in subspace.score_range_[c])
    if c >= subspace.n_components_ or not high > low:
        raise InputError(
            f"component {component}: its training scores are all {low:g}; expected a component with spread to edit along"
        )
    return (low, high) if _rising(subspace, c) > 0 else (high, low)


def steps(n_steps: int = 21) -> Vector:
    """Edit steps (n_steps,) from -1 to 1 with an exact 0 at index ceil(n_steps / 2) - 1 (P7: 21 steps; 40 for side
    effects).

    With an even count the positive half has one step more: each half is spaced evenly on its own, so that the
    unedited model is always among the steps.
    """
    if isinstance(n_steps, bool) or not isinstance(n_steps, (int, np.integer)) or n_steps < 3:
        raise InputError(f"n_steps={n_steps!r}: expected a whole number of at least 3 (down, none, up)")
    middle = (int(n_steps) + 1) // 2 - 1
    return np.concatenate([np.linspace(-1.0, 0.0, middle + 1), np.linspace(0.0, 1.0, int(n_steps) - middle)[1:]])


def edit_weights(subspace: LinearSubspace, component: int = 0, n_steps: int = 21) -> Vector:
    """Score changes (n_steps,): |s| * start below the middle, 0 in it, s * end above (P7): each half reaches its own
    extreme.
    """
    start, end = edit_range(subspace, component)
    s = steps(n_steps)
    return np.where(s < 0, -s * start, s * end)


def edit_vectors(
    subspace: LinearSubspace, component: int = 0, n_steps: int = 21, kind: DirectionKind = "loadings"
) -> Matrix:
    """Vectors (n_steps, d) to add to an activation, one per step; the middle one is exactly zero.

    - `loadings` is P7's: inverse_transform(weight * e_c) - inverse_transform(0) = weight * P_c * sd.
    - `weights` changes score c by the same weight along W_c * sd.
    - `coefficient` goes along the whole gradient, as far as changes the *prediction* by what the loading's edit does.

    So a step means the same dose under every name, while the norms differ: give the random controls these norms.
    """
    weights = edit_weights(subspace, component, n_steps)
    if kind != "coefficient":
        # edit_weights already turns with the sign of q_c, so the unsigned axis is wanted here.
        return np.outer(weights, direction(subspace, kind, component) * _rising(subspace, component))
    gradient = direction(subspace, kind)
    dose = weights * subspace.y_loadings_[component] * subspace.y_scale_
    if not dose.any():
        raise InputError(f"component {component}: the prediction does not depend on it; expected one that carries y")
    return np.outer(dose, gradient / (gradient @ gradient))


def _index(subspace: LinearSubspace, component: int) -> int:
    """`component` if it is there (0-based), InputError otherwise: a negative index would silently name another
    component.
    """
    available = subspace.rotations_.shape[1]
    if not 0 <= component < available:
        raise InputError(f"component {component}: this {type(subspace).__name__} has components 0..{available - 1}")
    return int(component)


def _rising(subspace: LinearSubspace, c: int) -> float:
    """+1 where y rises with score c, -1 where it falls: component signs are arbitrary, the sign of q_c undoes that."""
    return -1.0 if subspace.y_loadings_[c] < 0 else 1.0
