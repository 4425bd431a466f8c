"""Numeric subspaces of activations: estimators, the directions read from them, controls, and measures of what an edit
did.

Numpy arrays in and out (torch tensors are accepted); nothing here knows about a language model. A sweep reads

    curve = fit_curve(X_train, y_train, X_dev, y_dev, X_test, y_test, groups_train=..., groups_dev=..., groups_test=...)
    pls = PLSSubspace(choose_k(curve)).fit(X_train, y_train)
    vectors = edit_vectors(pls, component=0, n_steps=21)          # (21, d), to be added at a site
    table = effects(steps(21), outputs)                           # outputs (rows, 21), None where unparsable

and sets `control_curve`, `name_floor` and `random_directions` beside it. `selection` refuses splits that share
entities.
"""

from inscape.subspaces.controls import (
    circular_error,
    control_curve,
    random_directions,
    random_directions_within,
    shuffled_directions,
    summarise_draws,
)
from inscape.subspaces.directions import (
    DirectionKind,
    direction,
    edit_range,
    edit_vectors,
    edit_weights,
    prediction_change,
    score_change,
    steps,
    unit,
)
from inscape.subspaces.effects import effects, effects_table
from inscape.subspaces.estimators import (
    MeanDifference,
    PCASubspace,
    PLSSubspace,
    RidgeSubspace,
    SubspaceKind,
    subspace,
)
from inscape.subspaces.flips import Flips, flips, normalise_answer
from inscape.subspaces.linear import LinearSubspace
from inscape.subspaces.name_floor import NameFloor, name_floor
from inscape.subspaces.selection import (
    choose_k,
    chosen,
    component_spearman,
    fit_curve,
    refuse_shared_groups,
    shared_groups,
    smallest_k,
)
from inscape.subspaces.targets import TargetScale, TargetTransform

__all__ = [
    "DirectionKind",
    "Flips",
    "LinearSubspace",
    "MeanDifference",
    "NameFloor",
    "PCASubspace",
    "PLSSubspace",
    "RidgeSubspace",
    "SubspaceKind",
    "TargetScale",
    "TargetTransform",
    "choose_k",
    "chosen",
    "circular_error",
    "component_spearman",
    "control_curve",
    "direction",
    "edit_range",
    "edit_vectors",
    "edit_weights",
    "effects",
    "effects_table",
    "fit_curve",
    "flips",
    "name_floor",
    "normalise_answer",
    "prediction_change",
    "random_directions",
    "random_directions_within",
    "refuse_shared_groups",
    "score_change",
    "shared_groups",
    "shuffled_directions",
    "smallest_k",
    "steps",
    "subspace",
    "summarise_draws",
    "unit",
]
