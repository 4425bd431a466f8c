"""Questions that place one entity on the scale of a property: against a round value, or within a coarse class.

They are what makes a value *readable*. A model that only has to spell "1902" may store it in any form that its later
layers can decode; one that must answer "before 1850?" for many round years needs a quantity that grows with the year.
"""

from __future__ import annotations

import math

import numpy as np

from inscape.data.properties import Comparison, Property

#: Yes/no questions with "{x}" an entity and "{y}" a round value, both polarities.
THRESHOLD_QUESTIONS: dict[str, tuple[Comparison, ...]] = {
    "birth_year": (
        Comparison("Was {x} born before {y}?", "less"),
        Comparison("Was {x} born after {y}?", "greater"),
        Comparison("Did {x} come into the world before {y}?", "less"),
        Comparison("Did {x} come into the world after {y}?", "greater"),
    ),
    "death_year": (
        Comparison("Did {x} die before {y}?", "less"),
        Comparison("Did {x} die after {y}?", "greater"),
        Comparison("Did the life of {x} end before {y}?", "less"),
        Comparison("Did the life of {x} end after {y}?", "greater"),
    ),
    "inception": (
        Comparison("Was {x} established before {y}?", "less"),
        Comparison("Was {x} established after {y}?", "greater"),
    ),
    "work_start": (
        Comparison("Did {x} start working before {y}?", "less"),
        Comparison("Did {x} start working after {y}?", "greater"),
    ),
    "population": (
        Comparison("Does {x} have more than {y} inhabitants?", "greater"),
        Comparison("Does {x} have fewer than {y} inhabitants?", "less"),
    ),
    "elevation": (
        Comparison("Is {x} higher than {y} metres?", "greater"),
        Comparison("Is {x} lower than {y} metres?", "less"),
    ),
    "area": (
        Comparison("Does {x} cover more than {y} square kilometres?", "greater"),
        Comparison("Does {x} cover less than {y} square kilometres?", "less"),
    ),
    "latitude": (
        Comparison("Is {x} north of latitude {y}?", "greater"),
        Comparison("Is {x} south of latitude {y}?", "less"),
    ),
    "longitude": (
        Comparison("Is {x} east of longitude {y}?", "greater"),
        Comparison("Is {x} west of longitude {y}?", "less"),
    ),
}

#: Questions with "{subj}" for the coarse class of a value (see `coarse_answer`).
COARSE_QUESTIONS: dict[str, tuple[str, ...]] = {
    "birth_year": ("In which century was {subj} born?", "What is the century of birth of {subj}?"),
    "death_year": ("In which century did {subj} die?", "What is the century of death of {subj}?"),
    "inception": ("In which century was {subj} established?",),
    "work_start": ("In which century did {subj} start working?",),
    "population": ("How many digits does the population of {subj} have?",),
    "elevation": ("How high is {subj}, to the nearest hundred metres?",),
    "area": ("How many digits does the area of {subj} have, in whole square kilometres?",),
    "latitude": ("What is the latitude of {subj}, to the nearest ten degrees?",),
    "longitude": ("What is the longitude of {subj}, to the nearest ten degrees?",),
}


def coarse_answer(prop: Property, value: float) -> str:
    """The coarse class of `value` in words: "19th century", "1st century BC", "5 digits" as "5", "-40", "300"."""
    if prop.kind == "year":
        # Years 1801-1900 are the 19th century; there is no year zero, so -100 ... -1 are the 1st century BC.
        century = math.ceil(abs(value) / 100)
        return f"{_ordinal(century)} century" + (" BC" if value < 0 else "")
    if prop.kind == "angle":
        return str(round(value / 10) * 10)
    if prop.name == "elevation":
        return str(round(value / 100) * 100)
    return str(len(str(round(abs(value)))))


def round_values(prop: Property, values: np.ndarray, count: int = 50) -> np.ndarray:
    """At most `count` round values spread over `values` as these are: float64, rising, all different.

    Quantiles, so that each splits the entities somewhere; rounded to tens (years), fives (degrees) or two significant
    digits (quantities), so that they are numbers that texts compare with. Sorted ends are left out: a question that
    has the same answer for every entity teaches nothing.
    """
    spread = np.quantile(values, np.linspace(0, 1, count + 2)[1:-1])
    if prop.kind == "year":
        rounded = np.round(spread / 10) * 10
        rounded = rounded[rounded != 0]
    elif prop.kind == "angle":
        rounded = np.round(spread / 5) * 5
    else:
        step = 10.0 ** (np.floor(np.log10(np.maximum(np.abs(spread), 1))) - 1)
        rounded = np.round(spread / step) * step
        rounded = rounded[rounded != 0] if prop.unit == "people" else rounded
    return np.unique(rounded + 0.0)


def _ordinal(number: int) -> str:
    if 10 <= number % 100 <= 20:
        return f"{number}th"
    return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th') }"
