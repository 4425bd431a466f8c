"""Templates and the written form of values."""

import math

import pytest

from inscape.data.properties import PROPERTIES, Comparison, Property, property_named
from inscape.errors import InputError

# Identifiers, units and default prompts as listed for the published data set.
PUBLISHED = {
    "birth_year": ("P569", "year", "In what year was {subj} born?"),
    "death_year": ("P570", "year", "In what year did {subj} die?"),
    "inception": ("P571", "year", "In what year was {subj} established?"),
    "work_start": ("P2031", "year", "In what year did {subj} start working?"),
    "population": ("P1082", "people", "What is the population of {subj}?"),
    "elevation": ("P2044", "metres", "How high is {subj}?"),
    "area": ("P2046", "square kilometres", "What is the area of {subj}?"),
    "latitude": ("P625.lat", "degrees", "What is the latitude of {subj}?"),
    "longitude": ("P625.long", "degrees", "What is the longitude of {subj}?"),
}


def test_the_nine_properties_are_those_published() -> None:
    assert {p.name: (p.wikidata, p.unit, p.questions[0]) for p in PROPERTIES.values()} == PUBLISHED
    for name, (wikidata, _, _) in PUBLISHED.items():
        assert property_named(name) is property_named(wikidata) is PROPERTIES[name]


@pytest.mark.parametrize("prop", PROPERTIES.values(), ids=PROPERTIES)
def test_wordings_are_many_and_complete(prop: Property) -> None:
    assert len(set(prop.questions)) == len(prop.questions) >= 5
    assert len(set(prop.statements)) == len(prop.statements) >= 5
    assert len({c.template for c in prop.comparisons}) == len(prop.comparisons) >= 3
    assert {c.yes_if for c in prop.comparisons} == {"less", "greater"}
    assert all(question.endswith("?") for question in prop.questions)
    assert all(statement.endswith(".") for statement in prop.statements)
    templates = (*prop.questions, *prop.statements, *(c.template for c in prop.comparisons))
    # A possessive ending would merge with the last token of the mention.
    assert not any("}'" in template or "}’" in template for template in templates)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("birth_year", 1902.0, "1902"),
        ("birth_year", -44.0, "44 BC"),
        ("inception", -9600.0, "9600 BC"),
        ("population", 80296.0, "80296"),
        ("population", 4657399808.0, "4657399808"),
        ("population", 3.4, "3"),
        ("elevation", -428.0, "-428"),
        ("elevation", 0.0, "0"),
        ("area", 0.2800000012, "0.28"),
        ("area", 5.3, "5.3"),
        ("area", 3.0, "3"),
        ("area", 9.996, "10"),
        ("area", 53.0600013733, "53"),
        ("area", 5.1e8, "510000000"),
        ("latitude", 43.3, "43.3"),
        ("latitude", -33.86, "-33.9"),
        ("longitude", -0.0163888894, "0.0"),
    ],
)
def test_values_are_written_as_in_text(name: str, value: float, text: str) -> None:
    assert PROPERTIES[name].format(value) == text


@pytest.mark.parametrize(("name", "value"), [("birth_year", 0.2), ("area", math.nan), ("latitude", math.inf)])
def test_what_cannot_be_written_is_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=name):
        PROPERTIES[name].format(value)


def test_polarity_of_answers() -> None:
    before, after = Comparison("Was {x} born before {y}?", "less"), Comparison("Was {x} born after {y}?", "greater")
    assert [before.answer(1, 2), before.answer(2, 1)] == ["Yes", "No"]
    assert [after.answer(1, 2), after.answer(2, 1)] == ["No", "Yes"]
    assert before.answer(1, 1) is after.answer(1, 1) is before.answer(math.nan, 1) is None
    assert before.ask("Ada {y}", "Bo") == "Was Ada {y} born before Bo?"


@pytest.mark.parametrize(
    "template", ["Is {x} older?", "Is {x} older than {y}", "Is {x} or {x} older than {y}?", "{z}?"]
)
def test_templates_that_lack_something_are_refused(template: str) -> None:
    with pytest.raises(InputError, match="expected"):
        Comparison(template, "less")


def test_unknown_property_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"unknown property 'P1', expected one of birth_year \(P569\), death_year"):
        property_named("P1")
