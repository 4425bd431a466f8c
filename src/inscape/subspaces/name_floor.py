"""How much of a number a name gives away by itself: the floor under every probe of an entity's property.

Names carry era and place (a name-only reader explains 0.2 of the variance of birth years and 0.37 of longitudes), so
a probe that does not beat this floor may be reading name culture, not knowledge.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import RidgeCV

from inscape.errors import InputError
from inscape.subspaces.inputs import Vector, vector
from inscape.subspaces.selection import r2_columns, spearman_columns
from inscape.subspaces.targets import TargetScale, TargetTransform

PENALTIES = tuple(float(alpha) for alpha in np.logspace(-2, 3, 26))


@dataclass(frozen=True)
class NameFloor:
    """R2 and Spearman on held-out names, on the `target` scale; `predictions` (n,) on that scale too; `alpha` the
    chosen penalty.

    A low floor does not show that a property cannot be told from names, only that character n-grams and ridge cannot
    tell it.
    """

    target: TargetScale
    r2: float
    spearman: float
    alpha: float
    predictions: Vector


def name_floor(
    labels_train: Sequence[str],
    y_train: ArrayLike,
    labels_test: Sequence[str],
    y_test: ArrayLike,
    *,
    target: TargetScale = "raw",
) -> NameFloor:
    """Character 1-4-gram TF-IDF (within words, seen in two names at least, log counts), ridge by leave-one-out, on
    labels alone.

    Everything, the target's scale too, is fitted on train. InputError on empty labels or counts that differ.
    """
    train, test = list(labels_train), list(labels_test)
    y_fit, y_new = vector(y_train, "y_train", len(train)), vector(y_test, "y_test", len(test))
    scale = TargetTransform(target).fit(y_fit)
    z_fit, z_new = scale.transform(y_fit), scale.transform(y_new)
    grams = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), min_df=2, sublinear_tf=True)
    try:
        features = grams.fit_transform(train)
    except ValueError as error:
        raise InputError(f"labels_train: {error}; expected names that share characters") from None
    ridge = RidgeCV(alphas=PENALTIES).fit(features, z_fit)
    predictions = ridge.predict(grams.transform(test))
    return NameFloor(
        target=target,
        r2=float(r2_columns(z_new, predictions[:, None])[0]),
        spearman=float(spearman_columns(z_new, predictions[:, None])[0]),
        alpha=float(ridge.alpha_),
        predictions=predictions,
    )
