"""Energy and CO2 of a computation, by formula: time x power x overhead of the building x intensity of the grid.

An estimate from a device's rated power, not a measurement: a device that waits draws less, and fans, disks and the making
of the machine are not counted. The paper's own figure is of this kind ("dynamic" consumption): 1.08 million hours of an
A100 at 400 W are 433 MWh, at 57 g/kWh 24.7 t (Luccioni et al. 2022, arXiv 2211.02001); idle nodes doubled it, and the
making of the machines brought it to three times as much.
"""

from __future__ import annotations

from dataclasses import dataclass

from inscape.errors import InputError

FRANCE = 57.0
"""Grams of CO2-equivalent per kWh where BLOOM was trained (Luccioni et al. 2022)."""

WORLD = 480.0
"""Grams per kWh of the world's electricity in 2023 (Ember, Global Electricity Review 2024)."""

JEAN_ZAY = 1.2
"""PUE of the computing centre where BLOOM was trained: energy of the building for one unit in the machines."""

CPU_CORE = 10.0
"""Watts of a busy CPU core with its share of memory: an assumption, between a server's 5 and a desktop's 20."""


@dataclass(frozen=True)
class Gpu:
    """What a data sheet says of a GPU: memory in GiB, watts, and dense half-precision TFLOP/s of its matrix units."""

    memory: float
    watts: float
    peak: float


GPUS = {
    "v100-32gb": Gpu(32, 300, 125),
    "a100-40gb": Gpu(40, 400, 312),
    "a100-80gb": Gpu(80, 400, 312),
    "h100-80gb": Gpu(80, 700, 989),
    "h200-141gb": Gpu(141, 700, 989),
}
"""SXM versions; fp16 for V100, bf16 otherwise."""


def energy_kwh(seconds: float, watts: float, pue: float = 1.0) -> float:
    """Energy of `watts` (all devices together) for `seconds`, times the overhead of the building, in kWh.

    Raises:
        InputError: a negative time or power, or an overhead below 1.
    """
    if seconds < 0 or watts < 0 or pue < 1:
        raise InputError(f"energy of {seconds} s at {watts} W with a PUE of {pue}: expected s, W >= 0 and a PUE >= 1")
    return seconds * watts * pue / 3.6e6


def co2_kg(kwh: float, grams_per_kwh: float = WORLD) -> float:
    """CO2-equivalent of `kwh` in kg. Raises InputError for a negative one."""
    if kwh < 0 or grams_per_kwh < 0:
        raise InputError(f"CO2 of {kwh} kWh at {grams_per_kwh} g/kWh: expected both >= 0")
    return kwh * grams_per_kwh / 1000
