"""How fast this machine multiplies matrices: what a training step is measured against."""

from __future__ import annotations

import time

import torch

_SECONDS = 0.3


def matmul_rate(device: torch.device | str, dtype: torch.dtype) -> float:
    """Floating-point operations per second in square matrix products: the best of several, measured for a moment.

    The matrices are large enough to be bound by arithmetic: 1024 wide on a CPU, 8192 on a GPU. A GPU's float32 products
    are as fast as `torch.get_float32_matmul_precision` lets them be.
    """
    place = torch.device(device)
    size = 1024 if place.type == "cpu" else 8192
    left, right = (torch.randn(size, size, device=place).to(dtype) for _ in range(2))
    best, until = float("inf"), time.monotonic() + _SECONDS
    while time.monotonic() < until or best == float("inf"):
        _wait(place)
        started = time.perf_counter()
        left @ right
        _wait(place)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
