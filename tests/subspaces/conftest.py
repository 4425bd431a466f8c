"""The planted world of the acceptance checks: activations whose value axis, neighbours and nuisances are known."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest


@dataclass
class Planted:
    """X = mean + 6 z0 D0 + 6 z1 D1 + sum_j size_j g_j D_j + N(0, 1); y = 1800 + 100 z0; 1,000 rows to fit, 500 to test."""

    seed: int
    corr: float = 0.0
    nuisances: dict[int, float] = field(default_factory=dict)
    n: int = 1500
    d: int = 256

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.D = np.linalg.qr(rng.normal(size=(self.d, self.d)))[0].T
        self.z = rng.multivariate_normal([0, 0], [[1, self.corr], [self.corr, 1]], size=self.n)
        self.mean = rng.normal(size=self.d)
        self.X = self.mean + 6 * self.z @ self.D[:2] + rng.normal(size=(self.n, self.d))
        for axis, size in self.nuisances.items():
            self.X += size * np.outer(rng.normal(size=self.n), self.D[axis])
        self.y = 1800.0 + 100.0 * self.z[:, 0]
        self.X_fit, self.X_test = self.X[:1000], self.X[1000:]
        self.y_fit, self.y_test = self.y[:1000], self.y[1000:]

    def cos(self, vector: np.ndarray, axis: int) -> float:
        return float(vector @ self.D[axis] / np.linalg.norm(vector))


@pytest.fixture(scope="session")
def planted() -> Callable[..., Planted]:
    return Planted
