"""The target's scale: raw values, or Yeo-Johnson-transformed ones (P7's `value_power`), fitted on the training split
only.

P7 fits the transform on train, dev and test together; here it sees train alone. On years the fitted exponent runs
from 2.5 to 26.5: such a curve is so flat at one end that float64 cannot tell centuries apart there, and for exponents
outside [0, 2] it does not even cover all of the real line. So a prediction is mapped back only where the curve can be
inverted.
"""

from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from inscape.errors import InputError
from inscape.subspaces.inputs import Vector, vector

TargetScale = Literal["raw", "yeo-johnson"]


class TargetTransform(BaseEstimator):
    """y in (n,), z out (n,): the identity for "raw"; for "yeo-johnson" the power curve, standardised on the training
    values.

    Learned: `lambda_` (the exponent; NaN for raw), `sd_` (of the training values, in y's unit).
    """

    def __init__(self, scale: TargetScale = "raw") -> None:
        self.scale = scale

    def fit(self, y: ArrayLike) -> Self:
        """Learn the curve from training values y (n,), finite."""
        if self.scale not in ("raw", "yeo-johnson"):
            raise InputError(f"target scale {self.scale!r}: expected raw or yeo-johnson")
        values = vector(y)
        self.sd_ = float(values.std())
        self.lambda_ = float("nan")
        if self.scale == "yeo-johnson":
            if not self.sd_ > 0:
                raise InputError(
                    f"y: all {len(values)} training values are {values[0]:g}; a Yeo-Johnson curve needs different values"
                )
            curved, self.lambda_ = stats.yeojohnson(values)
            self._curve_mean, self._curve_sd = float(curved.mean()), float(curved.std())
            if not (np.isfinite(self._curve_sd) and self._curve_sd > 0):
                raise InputError(
                    f"y: the Yeo-Johnson curve (exponent {self.lambda_:g}) over- or underflows on the training values"
                )
        return self

    def transform(self, y: ArrayLike) -> Vector:
        """z (n,) for y (n,). InputError where the curve overflows (a value far above the training ones)."""
        check_is_fitted(self, "sd_")
        values = vector(y)
        if self.scale == "raw":
            return values
        with np.errstate(over="ignore"):
            z = (stats.yeojohnson(values, lmbda=self.lambda_) - self._curve_mean) / self._curve_sd
        if not np.isfinite(z).all():
            raise InputError(
                f"y: {int((~np.isfinite(z)).sum())} of {len(z)} values overflow the Yeo-Johnson curve fitted on train"
            )
        return z

    def inverse(self, z: ArrayLike, *, tolerance: float = 1e-3) -> Vector:
        """Values (n,) in y's unit for z (n,); NaN where the curve cannot be inverted.

        Where z lies outside the curve's range there is no value; where moving z by one part in 1e9 of a standard
        deviation moves the value by more than `tolerance` training sds, whatever comes out is rounding noise. Both
        are NaN: count them, don't impute.
        """
        check_is_fitted(self, "sd_")
        scores = vector(z, "z")
        if self.scale == "raw":
            return scores
        below, value, above = (self._curve_inverse(scores + nudge) for nudge in (-1e-9, 0.0, 1e-9))
        settled = np.abs(above - below) <= tolerance * (self.sd_ or 1.0)  # False for NaN
        return np.where(settled, value, np.nan)

    def _curve_inverse(self, z: Vector) -> Vector:
        """Closed-form inverse; NaN outside the curve's range (1 + lambda*x and 1 - (2 - lambda)*x must be positive)."""
        x = z * self._curve_sd + self._curve_mean
        lam = self.lambda_
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            up = np.expm1(x) if abs(lam) < 1e-12 else (lam * x + 1.0) ** (1.0 / lam) - 1.0
            rest = 2.0 - lam
            down = -np.expm1(-x) if abs(rest) < 1e-12 else 1.0 - (1.0 - rest * x) ** (1.0 / rest)
            value = np.where(x >= 0, up, down)
        return np.where(np.isfinite(value), value, np.nan)
