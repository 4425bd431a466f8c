"""Which vectors `numeric-monotonic` adds: the fitted components, the other directions of that name, and the controls."""

from typing import get_args

import numpy as np

from inscape.subspaces.controls import random_directions, shuffled_directions
from inscape.subspaces.directions import DirectionKind, direction, edit_vectors, steps, unit
from inscape.subspaces.estimators import PLSSubspace
from inscape.subspaces.inputs import Matrix, Vector


def plan_edits(
    fitted: PLSSubspace,
    k: int,
    X: Matrix,
    z: Vector,
    kind: DirectionKind,
    *,
    components: int,
    n_steps: int,
    n_random: int,
    n_shuffled: int,
    seed: int,
) -> dict[str, Matrix]:
    """``{"<kind> <which>": vectors [step, d]}`` to add at each step from -1 to 1.

    ``"loadings 1"`` … are the components of ``fitted`` over their own ranges of training scores (P7); ``coefficient`` is one
    direction, whatever the number of components. Everything else has the norm of the first of them at every step, so that a
    difference is one of direction and not of dose: the directions of the other two kinds, random ones, and ones fitted to
    shuffled values of ``X`` [entity, d], ``z`` [entity].
    """
    one = kind == "coefficient"
    own = range(1 if one else min(components, fitted.n_components_))
    plans = {f"{kind} {c + 1}": edit_vectors(fitted, c, n_steps, kind) for c in own}
    dose = steps(n_steps)
    signed_norm = np.sign(dose) * np.linalg.norm(plans[f"{kind} 1"], axis=1)
    for other in get_args(DirectionKind):
        if other != kind:
            toward = fitted.truncate(k).coef_ if other == "coefficient" else direction(fitted, other, 0)
            plans[f"{other} (same norm)"] = np.outer(signed_norm, unit(toward))
    draws = {
        "random": random_directions(X.shape[1], n_draws=n_random, random_state=seed),
        "shuffled": shuffled_directions(
            PLSSubspace(k if one else 1), X, z, kind=kind, component=None if one else 0, n_draws=n_shuffled,
            random_state=seed,
        ),
    }  # fmt: skip
    for control, vectors in draws.items():
        plans |= {f"{control} {i + 1}": np.outer(signed_norm, v) for i, v in enumerate(vectors)}
    return plans
