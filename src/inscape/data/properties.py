"""The nine numeric properties: how each is asked for, stated, compared and written.

The properties and their Wikidata identifiers are those of Heinzerling & Inui 2024 (arXiv 2403.10381); the comparison
questions serve the task of El-Shangiti et al. 2025 (arXiv 2410.13194). The first question of a property is the plain
default prompt of the former; all other wordings are our own. Polarity belongs to the *template*, not to the property:
"before" and "older" ask for the smaller birth year, "after" and "younger" for the larger one, and the answer must
follow the words. Templates name entities as plain noun phrases, so that the last token of a mention is a token of the
name and not of a possessive ending.
"""

import math
from dataclasses import dataclass
from string import Formatter
from typing import Literal

from inscape.errors import InputError

Kind = Literal["year", "quantity", "angle"]
Answer = Literal["Yes", "No"]

#: Largest absolute angle in degrees, by property name; a value beyond it is an error of the data, not a place.
ANGLE_LIMITS: dict[str, float] = {"latitude": 90.0, "longitude": 180.0}


def _require_fields(template: str, fields: set[str]) -> None:
    """Check that `template` has exactly the named fields, each once: a mention that occurs twice has no single span."""
    found = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    if sorted(found) != sorted(fields):
        raise InputError(f"template {template!r}: fields {sorted(found)}, expected each of {sorted(fields)} once")


@dataclass(frozen=True)
class Comparison:
    """A yes/no question over two entities, with the side of the comparison that "Yes" stands for.

    Attributes:
        template: question with "{x}" and "{y}", ending in "?".
        yes_if: "less" means Yes iff value(x) < value(y); "greater" means Yes iff value(x) > value(y).
    """

    template: str
    yes_if: Literal["less", "greater"]

    def __post_init__(self) -> None:
        _require_fields(self.template, {"x", "y"})
        if not self.template.endswith("?"):
            raise InputError(f"comparison template {self.template!r}: expected a question that ends with '?'")
        if self.yes_if not in ("less", "greater"):
            raise InputError(f"comparison template {self.template!r}: yes_if {self.yes_if!r}, expected less or greater")

    def ask(self, x: str, y: str) -> str:
        """The question about the entities labelled `x` and `y`, in this order."""
        return self.template.format(x=x, y=y)

    def answer(self, x_value: float, y_value: float) -> Answer | None:
        """The right answer for two values; None for a tie or a NaN, which no comparison can decide."""
        if not (x_value < y_value or x_value > y_value):
            return None
        return "Yes" if (x_value < y_value) == (self.yes_if == "less") else "No"


@dataclass(frozen=True)
class Property:
    """A numeric property of entities.

    Attributes:
        name: our name, e.g. "birth_year".
        wikidata: Wikidata property, e.g. "P569"; the two coordinates are "P625.lat" and "P625.long" as in the data.
        unit: "year", "people", "metres", "square kilometres" or "degrees".
        kind: how a value is written and read: "year" (whole, BC for negative), "quantity" or "angle" (signed degrees).
        questions: paraphrases with "{subj}"; the first is the default prompt.
        statements: paraphrases with "{subj}" and "{value}".
        comparisons: yes/no questions over two entities, both polarities.
    """

    name: str
    wikidata: str
    unit: str
    kind: Kind
    questions: tuple[str, ...]
    statements: tuple[str, ...]
    comparisons: tuple[Comparison, ...]

    def __post_init__(self) -> None:
        for question in self.questions:
            _require_fields(question, {"subj"})
        for statement in self.statements:
            _require_fields(statement, {"subj", "value"})

    def format(self, value: float) -> str:
        """Write `value` as text does: "1902", "44 BC", "80296", "43.3", "-33.9"; no thousands separators.

        Years and people are rounded to whole numbers and angles to one decimal. Other quantities are rounded to whole
        numbers from 10 upwards and to two significant digits below (an islet of 0.28 square kilometres is not "0").
        Negative years are BC without an offset: -44 is "44 BC", as in the Wikidata values. There is no year zero.

        Raises:
            InputError: `value` is NaN or infinite, or rounds to the year zero.
        """
        if not math.isfinite(value):
            raise InputError(f"{self.name}: value {value} can't be written, expected a finite number")
        if self.kind == "year":
            year = round(value)
            if year == 0:
                raise InputError(f"{self.name}: value {value} rounds to the year 0, which the calendar doesn't have")
            return str(year) if year > 0 else f"{-year} BC"
        if self.kind == "angle":
            # Adding 0.0 turns -0.0, which a small negative angle rounds to, into 0.0.
            return f"{round(value, 1) + 0.0:.1f}"
        if self.unit == "people" or abs(value) >= 10 or value == 0:
            return str(round(value))
        decimals = 1 - math.floor(math.log10(abs(value)))
        return f"{value:.{decimals}f}".rstrip("0").rstrip(".")


_BIRTH_YEAR = Property(
    name="birth_year",
    wikidata="P569",
    unit="year",
    kind="year",
    questions=(
        "In what year was {subj} born?",
        "When was {subj} born?",
        "What is the birth year of {subj}?",
        "Which year saw the birth of {subj}?",
        "In which year did {subj} come into the world?",
        "What year was the year of birth of {subj}?",
    ),
    statements=(
        "{subj} was born in {value}.",
        "The birth year of {subj} is {value}.",
        "{subj} came into the world in {value}.",
        "The birth of {subj} was in {value}.",
        "The year in which {subj} was born is {value}.",
        "It was in {value} that {subj} was born.",
    ),
    comparisons=(
        Comparison("Was {x} born before {y}?", "less"),
        Comparison("Was {x} born after {y}?", "greater"),
        Comparison("Is {x} older than {y}?", "less"),
        Comparison("Is {x} younger than {y}?", "greater"),
        Comparison("Did the birth of {x} come earlier than the birth of {y}?", "less"),
        Comparison("Did the birth of {x} come later than the birth of {y}?", "greater"),
    ),
)

_DEATH_YEAR = Property(
    name="death_year",
    wikidata="P570",
    unit="year",
    kind="year",
    questions=(
        "In what year did {subj} die?",
        "When did {subj} die?",
        "What is the year of death of {subj}?",
        "Which year saw the death of {subj}?",
        "In which year did the life of {subj} end?",
        "What year was the death year of {subj}?",
    ),
    statements=(
        "{subj} died in {value}.",
        "The death year of {subj} is {value}.",
        "The life of {subj} ended in {value}.",
        "The death of {subj} was in {value}.",
        "The year in which {subj} died is {value}.",
        "It was in {value} that {subj} died.",
    ),
    comparisons=(
        Comparison("Did {x} die before {y}?", "less"),
        Comparison("Did {x} die after {y}?", "greater"),
        Comparison("Did the death of {x} come earlier than the death of {y}?", "less"),
        Comparison("Did the death of {x} come later than the death of {y}?", "greater"),
    ),
)

_INCEPTION = Property(
    name="inception",
    wikidata="P571",
    unit="year",
    kind="year",
    questions=(
        "In what year was {subj} established?",
        "When was {subj} founded?",
        "What is the founding year of {subj}?",
        "Which year saw the beginning of {subj}?",
        "In which year did {subj} come into being?",
        "What year was {subj} created?",
    ),
    statements=(
        "{subj} was established in {value}.",
        "The founding year of {subj} is {value}.",
        "{subj} came into being in {value}.",
        "The beginning of {subj} was in {value}.",
        "The year in which {subj} was created is {value}.",
        "It was in {value} that {subj} was founded.",
    ),
    comparisons=(
        Comparison("Was {x} established before {y}?", "less"),
        Comparison("Was {x} established after {y}?", "greater"),
        Comparison("Is {x} older than {y}?", "less"),
        Comparison("Is {x} more recent than {y}?", "greater"),
    ),
)

_WORK_START = Property(
    name="work_start",
    wikidata="P2031",
    unit="year",
    kind="year",
    questions=(
        "In what year did {subj} start working?",
        "When did {subj} start working?",
        "What is the first year of work of {subj}?",
        "Which year saw the start of the career of {subj}?",
        "In which year did {subj} become active?",
        "What year was the beginning of the working life of {subj}?",
    ),
    statements=(
        "{subj} started working in {value}.",
        "The first year of work of {subj} is {value}.",
        "The career of {subj} began in {value}.",
        "{subj} became active in {value}.",
        "The year in which {subj} started to work is {value}.",
        "It was in {value} that {subj} started working.",
    ),
    comparisons=(
        Comparison("Did {x} start working before {y}?", "less"),
        Comparison("Did {x} start working after {y}?", "greater"),
        Comparison("Did the career of {x} begin earlier than the career of {y}?", "less"),
        Comparison("Did the career of {x} begin later than the career of {y}?", "greater"),
    ),
)

_POPULATION = Property(
    name="population",
    wikidata="P1082",
    unit="people",
    kind="quantity",
    questions=(
        "What is the population of {subj}?",
        "How many people live in {subj}?",
        "How large is the population of {subj}?",
        "What is the number of inhabitants of {subj}?",
        "How many inhabitants does {subj} have?",
        "How many people call {subj} their home?",
    ),
    statements=(
        "The population of {subj} is {value}.",
        "{subj} has a population of {value}.",
        "There are {value} people living in {subj}.",
        "The number of inhabitants of {subj} is {value}.",
        "{subj} is home to {value} people.",
        "{subj} has {value} inhabitants.",
    ),
    comparisons=(
        Comparison("Is the population of {x} larger than the population of {y}?", "greater"),
        Comparison("Is the population of {x} smaller than the population of {y}?", "less"),
        Comparison("Does {x} have more inhabitants than {y}?", "greater"),
        Comparison("Does {x} have fewer inhabitants than {y}?", "less"),
    ),
)

_ELEVATION = Property(
    name="elevation",
    wikidata="P2044",
    unit="metres",
    kind="quantity",
    questions=(
        "How high is {subj}?",
        "What is the elevation of {subj}?",
        "How many metres above sea level is {subj}?",
        "At what height above the sea does {subj} lie?",
        "What is the altitude of {subj}?",
        "How far above sea level is {subj}?",
    ),
    statements=(
        "The elevation of {subj} is {value} metres.",
        "{subj} is {value} metres above sea level.",
        "{subj} lies at a height of {value} metres.",
        "The altitude of {subj} is {value} metres.",
        "The height of {subj} above the sea is {value} metres.",
        "{subj} has an elevation of {value} metres.",
    ),
    comparisons=(
        Comparison("Is {x} higher than {y}?", "greater"),
        Comparison("Is {x} lower than {y}?", "less"),
        Comparison("Does {x} lie further above the sea than {y}?", "greater"),
        Comparison("Is the elevation of {x} less than the elevation of {y}?", "less"),
    ),
)

_AREA = Property(
    name="area",
    wikidata="P2046",
    unit="square kilometres",
    kind="quantity",
    questions=(
        "What is the area of {subj}?",
        "How large is the area of {subj}?",
        "How many square kilometres does {subj} cover?",
        "How much land does {subj} take up?",
        "What is the size of {subj} in square kilometres?",
        "Over how large an area does {subj} extend?",
    ),
    statements=(
        "The area of {subj} is {value} square kilometres.",
        "{subj} covers {value} square kilometres.",
        "{subj} has an area of {value} square kilometres.",
        "{subj} extends over {value} square kilometres.",
        "The size of {subj} is {value} square kilometres.",
        "{subj} takes up {value} square kilometres.",
    ),
    comparisons=(
        Comparison("Is the area of {x} larger than the area of {y}?", "greater"),
        Comparison("Is the area of {x} smaller than the area of {y}?", "less"),
        Comparison("Does {x} cover more land than {y}?", "greater"),
        Comparison("Does {x} cover less land than {y}?", "less"),
    ),
)

_LATITUDE = Property(
    name="latitude",
    wikidata="P625.lat",
    unit="degrees",
    kind="angle",
    questions=(
        "What is the latitude of {subj}?",
        "At what latitude does {subj} lie?",
        "How far north or south is {subj}, in degrees?",
        "On which parallel is {subj}?",
        "Which latitude does {subj} have?",
        "At how many degrees of latitude is {subj} found?",
    ),
    statements=(
        "The latitude of {subj} is {value} degrees.",
        "{subj} lies at latitude {value}.",
        "{subj} has a latitude of {value} degrees.",
        "The parallel of {subj} is {value}.",
        "{subj} is found at a latitude of {value}.",
        "In degrees of latitude, {subj} is at {value}.",
    ),
    comparisons=(
        Comparison("Is {x} further north than {y}?", "greater"),
        Comparison("Is {x} further south than {y}?", "less"),
        Comparison("Does {x} have a higher latitude than {y}?", "greater"),
        Comparison("Does {x} have a lower latitude than {y}?", "less"),
    ),
)

_LONGITUDE = Property(
    name="longitude",
    wikidata="P625.long",
    unit="degrees",
    kind="angle",
    questions=(
        "What is the longitude of {subj}?",
        "At what longitude does {subj} lie?",
        "How far east or west is {subj}, in degrees?",
        "On which meridian is {subj}?",
        "Which longitude does {subj} have?",
        "At how many degrees of longitude is {subj} found?",
    ),
    statements=(
        "The longitude of {subj} is {value} degrees.",
        "{subj} lies at longitude {value}.",
        "{subj} has a longitude of {value} degrees.",
        "The meridian of {subj} is {value}.",
        "{subj} is found at a longitude of {value}.",
        "In degrees of longitude, {subj} is at {value}.",
    ),
    comparisons=(
        # East of Greenwich is positive; "further east" is read on the map from 180 W to 180 E, without wrapping.
        Comparison("Is {x} further east than {y}?", "greater"),
        Comparison("Is {x} further west than {y}?", "less"),
        Comparison("Does {x} have a higher longitude than {y}?", "greater"),
        Comparison("Does {x} have a lower longitude than {y}?", "less"),
    ),
)

_ALL = (_BIRTH_YEAR, _DEATH_YEAR, _INCEPTION, _WORK_START, _POPULATION, _ELEVATION, _AREA, _LATITUDE, _LONGITUDE)

#: All properties by name, in the order of reports and frames.
PROPERTIES: dict[str, Property] = {prop.name: prop for prop in _ALL}

_BY_WIKIDATA: dict[str, Property] = {prop.wikidata: prop for prop in PROPERTIES.values()}


def property_named(name: str) -> Property:
    """The property with our name or this Wikidata identifier ("birth_year" or "P569").

    Raises:
        InputError: there is none of that name.
    """
    found = PROPERTIES.get(name) or _BY_WIKIDATA.get(name)
    if found is None:
        known = ", ".join(f"{prop.name} ({prop.wikidata})" for prop in PROPERTIES.values())
        raise InputError(f"unknown property {name!r}, expected one of {known}")
    return found
