"""The numeric world: invented people and places, with numbers that their names don't give away.

People have a birth year and, if they died by `last_year`, a death year; places have a population, an elevation, a
latitude and a longitude. Names and values are drawn from two independent random streams, so that whatever a probe
reads from a model beyond chance the model must have learned from text: a real name carries era and region, an invented
one carries nothing (the name-only floor of R² is 0 up to chance).

What is made easy on purpose, and why:

- A name is two words, the first shared with others ("Moru", "Port Talen"), the last unique unless `shared_last_names`
  says otherwise. Small models then bind a value to one word; with shared last words they have to combine two, which
  they memorise but hardly make readable in the same training time.
- Years are uniform over [first_year, last_birth_year]: a value axis shows over its whole range.
- Populations carry two significant digits, as people say them, and angles the one decimal they are written with.

The order of facts, their splits and all values follow from the seed alone.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field, model_validator

from inscape.data.facts import Facts
from inscape.data.worlds.names import invent_names
from inscape.errors import InputError

PERSON_PROPERTIES = ("birth_year", "death_year")
PLACE_PROPERTIES = ("population", "elevation", "latitude", "longitude")


class NumericWorldSpec(BaseModel):
    """How many invented entities, what is known about them, and the seed that fixes all of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_people: int = Field(default=400, ge=0, le=20_000, description="number of people")
    n_places: int = Field(default=400, ge=0, le=20_000, description="number of places")
    properties: tuple[str, ...] = Field(
        default=PERSON_PROPERTIES + PLACE_PROPERTIES, description="which properties to make facts for"
    )
    first_year: int = Field(default=1500, ge=1, le=2500, description="earliest year of birth")
    last_birth_year: int = Field(default=1999, ge=1, le=2500, description="latest year of birth")
    last_year: int = Field(
        default=2024, ge=1, le=2600, description="the present: who would die later has no death year"
    )
    first_names: int = Field(default=40, ge=1, le=1000, description="size of the pool that first words are drawn from")
    shared_last_names: int = Field(
        default=1, ge=1, le=20, description="entities that share one last word (1: the last word names the entity)"
    )
    dev_fraction: float = Field(default=0.2, gt=0, lt=1, description="share of entities in the dev split")
    test_fraction: float = Field(default=0.3, gt=0, lt=1, description="share of entities in the test split")
    seed: int = Field(default=0, ge=0, description="fixes names, values and splits")

    @model_validator(mode="after")
    def _consistent(self) -> NumericWorldSpec:
        unknown = [name for name in self.properties if name not in PERSON_PROPERTIES + PLACE_PROPERTIES]
        if unknown or not self.properties or len(set(self.properties)) < len(self.properties):
            raise ValueError(
                f"properties {self.properties}: expected different ones of {PERSON_PROPERTIES + PLACE_PROPERTIES}"
            )
        if not self.first_year < self.last_birth_year <= self.last_year:
            raise ValueError(
                f"first_year {self.first_year}, last_birth_year {self.last_birth_year}, last_year {self.last_year}: "
                "expected first_year < last_birth_year <= last_year"
            )
        if self.dev_fraction + self.test_fraction >= 1:
            raise ValueError("dev_fraction + test_fraction must leave entities for the train split")
        if self.shared_last_names > self.first_names:
            raise ValueError(
                f"shared_last_names {self.shared_last_names} needs as many first words, got first_names "
                f"{self.first_names}"
            )
        return self


def numeric_world(spec: NumericWorldSpec) -> Facts:
    """The facts of the world that `spec` describes: one row per entity and property, in the order of the entities.

    Raises:
        InputError: the properties asked for need people or places, and the spec has fewer than 10 of them (a split
            of fewer leaves no entity to test on).
    """
    names_stream, people_stream, places_stream, splits_stream = np.random.SeedSequence(spec.seed).spawn(4)
    of_people = [name for name in spec.properties if name in PERSON_PROPERTIES]
    of_places = [name for name in spec.properties if name in PLACE_PROPERTIES]
    for kind, wanted, count in (("people", of_people, spec.n_people), ("places", of_places, spec.n_places)):
        if wanted and count < 10:
            raise InputError(f"numeric world: {', '.join(wanted)} of {count} {kind}, expected at least 10 {kind}")
    # Both kinds are always named and split, whatever the properties, so that dropping a property changes nothing else.
    people, places = invent_names(
        (spec.n_people, spec.n_places), spec.first_names, spec.shared_last_names, np.random.default_rng(names_stream)
    )
    splits = np.random.default_rng(splits_stream)
    frames = [
        _rows("person", people, _people(spec, np.random.default_rng(people_stream)), of_people, spec, splits),
        _rows("place", places, _places(spec, np.random.default_rng(places_stream)), of_places, spec, splits),
    ]
    notes = []
    if "death_year" in of_people:
        living = spec.n_people - frames[0].filter(pl.col("property") == "death_year").height
        notes.append(f"{living} of {spec.n_people} people are alive in {spec.last_year} and have no death_year")
    return Facts(
        rows=pl.concat(frames),
        source=f"numeric world {spec.model_dump_json()}",
        notes=tuple(notes),
    )


def _people(spec: NumericWorldSpec, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Birth and death years, float64 (n_people,); NaN where a person still lives."""
    birth = rng.integers(spec.first_year, spec.last_birth_year + 1, spec.n_people).astype(np.float64)
    death = birth + np.clip(np.round(rng.normal(62, 18, spec.n_people)), 18, 99)
    return {"birth_year": birth, "death_year": np.where(death <= spec.last_year, death, np.nan)}


def _places(spec: NumericWorldSpec, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Values of places, float64 (n_places,): people (2 significant digits), whole metres, degrees (1 decimal)."""
    n = spec.n_places
    population = np.exp(rng.normal(np.log(30_000), 1.5, n)).clip(100, 20_000_000)
    step = 10.0 ** (np.floor(np.log10(population)) - 1)
    elevation = np.exp(rng.normal(np.log(200), 1.1, n)).clip(1, 4_500)
    return {
        "population": np.round(population / step) * step,
        "elevation": np.round(elevation),
        "latitude": np.round(rng.uniform(-55, 70, n), 1),
        "longitude": np.round(rng.uniform(-179.9, 179.9, n), 1),
    }


def _rows(
    kind: str,
    labels: list[str],
    values: dict[str, np.ndarray],
    properties: list[str],
    spec: NumericWorldSpec,
    rng: np.random.Generator,
) -> pl.DataFrame:
    """One row per entity and property; an entity is in the same split for all its properties."""
    n = len(labels)
    split = np.full(n, "train", dtype=object)
    order = rng.permutation(n)
    n_dev, n_test = round(n * spec.dev_fraction), round(n * spec.test_fraction)
    split[order[:n_dev]] = "dev"
    split[order[n_dev : n_dev + n_test]] = "test"
    frames = [
        pl.DataFrame(
            {
                "property": [name] * n,
                "split": split.tolist(),
                "entity_id": [f"{kind}-{i:05d}" for i in range(n)],
                "label": labels,
                "value": values[name],
                "popularity": pl.Series([None] * n, dtype=pl.Float64),
            },
            schema_overrides={"split": pl.String, "property": pl.String, "entity_id": pl.String, "label": pl.String},
        ).filter(pl.col("value").is_not_nan())
        for name in properties
    ]
    empty = pl.DataFrame(
        schema={
            "property": pl.String,
            "split": pl.String,
            "entity_id": pl.String,
            "label": pl.String,
            "value": pl.Float64,
            "popularity": pl.Float64,
        }
    )
    return pl.concat([empty, *frames])
