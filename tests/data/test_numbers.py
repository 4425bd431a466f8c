"""One reader of numbers: cases by hand, round trips with every property's way of writing, and arbitrary text."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from inscape.data.numbers import YEAR_RANGE, parse_number
from inscape.data.properties import PROPERTIES, Property

YEARS = [
    ("1902", 1902),
    (" about 1902.", 1902),
    ("born in1902", 1902),
    ("c. 1902", 1902),
    ("44 BC", -44),
    ("44 B.C.", -44),
    ("44 B. C. E.", -44),
    ("in 44bce, in Rome", -44),
    ("BC 44", -44),
    ("-44", -44),
    ("-44 BC", -44),
    ("\u221244", -44),
    ("AD 44", 44),
    ("44 CE", 44),
    ("100-44 BC", -100),
    ("5 BC - 20 AD", -5),
    ("10,000 BC", -10000),
    ("1902 because", 1902),
    ("1902 (not BC)", 1902),
    ("1902-1994", 1902),
    ("1902\u20131994", 1902),
    ("mid-1902", 1902),
    ("1902 or 1903", 1902),
    ("1,902", 1902),
    ("1902.0", 1902),
    ("the 1960s", 1960),
    ("5 May 1902", 1902),
    ("5th of May, 1902", 1902),
    ("May 5, 1902", 1902),
    ("May 1902", 1902),
    ("Sept. 23, 1902", 1902),
    ("15 March 44 BC", -44),
    ("March 15, 44 BC", -44),
    ("March 44 BC", -44),
    ("05/06/1902", 1902),
    ("28.7.1902", 1902),
    ("1902-07-28", 1902),
    ("at the age of 30 years, in 1902", 1902),
    ("late 19th century, perhaps 1894", 1894),
    ("1902\n1950", 1902),
    # missing
    ("", None),
    ("\n1902", None),
    ("unknown", None),
    ("MCMII", None),
    ("nineteen hundred", None),
    ("0", None),
    ("the year 0 BC", None),
    ("1902.5", None),
    ("19021", None),
    ("-98765", None),
    ("19th century", None),
    ("4 billion years ago", None),
    ("30 years ago", None),
    ("5 May", None),
    ("٣٤", None),
]

QUANTITIES = [
    ("80296", None, 80296),
    ("80,296 people", "people", 80296),
    ("about 1,234,567.8", None, 1234567.8),
    ("12,34,567", None, 1234567),
    ("1 234 567", None, 1234567),
    ("1\u202f234\u00a0567", None, 1234567),
    ("1'234'567", None, 1234567),
    ("1.234.567", None, 1234567),
    ("1.234.567,8", None, 1234567.8),
    ("80.296", None, 80.296),
    ("43,3", None, 43.3),
    ("1,2,3", None, 1),
    ("In 2010 123 people", None, 2010),
    (".5", None, 0.5),
    ("well...5", None, 5),
    ("0", None, 0),
    ("-0", None, 0),
    ("-12.5", None, -12.5),
    ("\u221212.5", None, -12.5),
    ("5 - 10", None, 5),
    ("5-10", None, 5),
    ("1.3 million", "people", 1.3e6),
    ("1.3-million", "people", 1.3e6),
    ("12 thousand.", "people", 12_000),
    ("2 billion", None, 2e9),
    ("80k", "people", 80_000),
    ("1.3M people", "people", 1.3e6),
    ("1.3e6", None, 1.3e6),
    ("1.3 x 10^6", None, 1.3e6),
    ("1.3 × 10⁶", None, 1.3e6),
    ("3 x 106", None, 3),
    ("12 m", "metres", 12),
    ("12 metres above sea level", "metres", 12),
    ("1,609 m (5,280 ft)", "metres", 1609),
    ("5,280 ft", "metres", 1609.344),
    ("1 mile", "metres", 1609.344),
    ("12 km", "metres", 12_000),
    ("12 km", None, 12),
    ("12 mountains", "metres", 12),
    ("430 m below sea level", "metres", -430),
    ("-430 m below sea level", "metres", -430),
    ("3 km²", "square kilometres", 3),
    ("3 km2", "square kilometres", 3),
    ("2 million square kilometres", "square kilometres", 2e6),
    ("1 sq mi", "square kilometres", 2.589988110336),
    ("100 hectares", "square kilometres", 1),
    ("1000000 m²", "square kilometres", 1),
    # missing
    ("3 km²", "metres", None),
    ("3 km", "square kilometres", None),
    ("zero", None, None),
    ("two million", None, None),
    ("-", None, None),
    ("9" * 400, None, None),
    ("1e999", None, None),
    ("1e-999", None, None),
]

ANGLES = [
    ("43.3", 43.3),
    ("43.3°S", -43.3),
    ("43.3° W", -43.3),
    ("43.3 N", 43.3),
    ("43.3° e", 43.3),
    ("43.3 degrees south of the equator", -43.3),
    ("-43.3° S", -43.3),
    ("S 43.3", -43.3),
    ("43.3 Switzerland", 43.3),
    ("43,300", 43.3),
    ("43.3, 5.4", 43.3),
    ("43°18'36\"N", 43.31),
    ("4° 53′ west", -(4 + 53 / 60)),
    ("0.0", 0.0),
    ("200", None),
    ("north", None),
]


@pytest.mark.parametrize(("text", "value"), YEARS)
def test_years(text: str, value: float | None) -> None:
    assert parse_number(text, "year") == value


@pytest.mark.parametrize(("text", "unit", "value"), QUANTITIES)
def test_quantities(text: str, unit: str | None, value: float | None) -> None:
    assert parse_number(text, "quantity", unit) == (value if value is None else pytest.approx(value, rel=1e-12))


@pytest.mark.parametrize(("text", "value"), ANGLES)
def test_angles(text: str, value: float | None) -> None:
    assert parse_number(text, "angle") == (value if value is None else pytest.approx(value, rel=1e-12))


def _values(prop: Property) -> st.SearchStrategy[float]:
    if prop.kind == "year":
        return st.integers(*YEAR_RANGE).filter(bool).map(float)
    if prop.kind == "angle":
        return st.floats(-180, 180)
    low = 0.0 if prop.name != "elevation" else -11_000.0
    return st.floats(low, 1e12, allow_subnormal=False)


@pytest.mark.parametrize("prop", PROPERTIES.values(), ids=PROPERTIES)
@given(data=st.data())
def test_what_a_property_writes_is_read_back(prop: Property, data: st.DataObject) -> None:
    value = data.draw(_values(prop))
    text = prop.format(value)
    unit = {"metres": " metres", "square kilometres": " square kilometres"}.get(prop.unit, "")
    for answer in (text, f" {text}{unit}.", f"{text}{unit}, as far as we know\n77", f"It is {text}."):
        read = parse_number(answer, prop.kind, prop.unit)
        assert read is not None
        # Half a unit of the last place that is written: 0.05 degrees, half a person, 5 % of a quantity below 10.
        half = {"year": 0.0, "angle": 0.05}.get(prop.kind, 0.5 if abs(value) >= 10 or prop.unit == "people" else 0.0)
        assert math.isclose(read, value, abs_tol=half + 1e-9, rel_tol=0.0 if half else 0.051)
        assert prop.format(read) == text


@pytest.mark.parametrize("kind", ["year", "quantity", "angle"])
@given(text=st.text(), unit=st.sampled_from([None, "year", "people", "metres", "square kilometres", "degrees"]))
@example(text="1e999", unit=None)
@example(text="-.", unit=None)
@example(text="²", unit="metres")
def test_any_text_is_read_or_missing(kind, text: str, unit: str | None) -> None:
    number = parse_number(text, kind, unit)
    assert number is None or math.isfinite(number)
    if not any(character in "0123456789" for character in text):
        assert number is None


@pytest.mark.parametrize("kind", ["year", "quantity", "angle"])
@given(text=st.text("0123456789-–.,'°′ \u00a0⁶xeEkmMBCADNSW/²½^*", max_size=60))
def test_text_made_of_number_parts_never_raises_nor_invents_zero(kind, text: str) -> None:
    number = parse_number(text, kind, "metres")
    assert number is None or math.isfinite(number)
    if number == 0:
        assert kind != "year"
        assert "0" in text
