"""The facts table: checks, order, hash, limit, namesakes, saving and reading back."""

import hashlib
import os
import stat
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inscape.data.fact_table import SCHEMA
from inscape.data.facts import Facts, limited, load_facts, save_facts, unambiguous
from inscape.errors import InputError

ROW = ("birth_year", "train", "Q9061", "Karl Marx", 1818.0, 50.0)


def _facts(*rows: tuple) -> Facts:
    return Facts(pl.DataFrame(list(rows), schema=SCHEMA, orient="row"), "here")


def _changed(**change: object) -> tuple:
    return tuple(change.get(name, value) for name, value in zip(SCHEMA, ROW, strict=True))


def test_rows_are_ordered_by_property_and_split_and_else_stay() -> None:
    facts = _facts(
        _changed(property="latitude", value=4.0, entity_id="Q1"),
        _changed(split="test", entity_id="Q4"),
        _changed(entity_id="Q3"),
        _changed(entity_id="Q2"),
        _changed(split="dev", entity_id="Q5"),
    )
    assert facts.rows["entity_id"].to_list() == ["Q3", "Q2", "Q5", "Q4", "Q1"]
    assert facts.properties == ("birth_year", "latitude")
    assert facts.of("P569", "train")["entity_id"].to_list() == ["Q3", "Q2"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"property": "height"}, "row 1: unknown property 'height'"),
        ({"split": "global_dev"}, "row 1: split 'global_dev', expected one of train, dev, test"),
        ({"entity_id": ""}, "row 1: entity_id is empty"),
        ({"label": " \u2028"}, "row 1: label of 'Q2' is empty"),
        ({"value": None}, "row 1: value of 'Q2' is missing"),
        ({"value": float("nan")}, "value nan, expected a finite number"),
        ({"value": float("-inf")}, "value -inf, expected a finite number"),
        ({"value": 1818.5}, "value 1818.5, expected a whole year"),
        ({"value": 0.0}, "value 0, expected a whole year other than 0"),
        ({"property": "latitude", "value": 91.0}, "value 91, expected degrees from -90 to 90"),
        ({"popularity": float("nan")}, "popularity nan"),
        ({"entity_id": "Q9061"}, "twice in split train, first at here: row 0"),
        ({"entity_id": "Q9061", "split": "test"}, "in splits train and test, first at here: row 0"),
    ],
)
def test_what_cannot_be_a_fact_is_refused_with_its_row(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        _facts(ROW, _changed(**{"entity_id": "Q2"} | change))
    assert "\n" not in str(raised.value)


def test_missing_columns_and_wrong_types_are_refused() -> None:
    with pytest.raises(InputError, match="columns popularity are missing"):
        Facts(_facts(ROW).rows.drop("popularity"), "here")
    with pytest.raises(InputError, match="wrong type"):
        Facts(_facts(ROW).rows.with_columns(value=pl.lit("many")), "here")


def test_asking_for_what_is_not_there_is_refused() -> None:
    facts = _facts(ROW)
    with pytest.raises(InputError, match="no facts of latitude, expected one of birth_year"):
        facts.of("latitude")
    with pytest.raises(InputError, match="no facts of birth_year, split dev"):
        facts.of("birth_year", "dev")
    with pytest.raises(InputError, match="split 'valid'"):
        facts.of("birth_year", "valid")


_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1) | st.text('\t\n\r\\"tnr ü\u2028\x00', min_size=1)
_values = {
    "birth_year": st.integers(-3000, 3000).filter(bool).map(float),
    "elevation": st.floats(allow_nan=False, allow_infinity=False),
    "longitude": st.floats(-180, 180),
}
_popularity = st.none() | st.floats(allow_nan=False, allow_infinity=False)
_row = st.sampled_from(sorted(_values)).flatmap(
    lambda name: st.tuples(
        st.just(name),
        st.sampled_from(["train", "dev", "test"]),
        _text,
        _text.filter(lambda label: not label.isspace()),
        _values[name],
        _popularity,
    )
)


@pytest.mark.parametrize("ending", ["tsv", "parquet"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rows=st.lists(_row, min_size=1, unique_by=lambda row: (row[0], row[2])))
def test_saved_facts_are_read_back_exactly(tmp_path: Path, ending: str, rows: list[tuple]) -> None:
    facts = _facts(*rows)
    path = save_facts(facts, tmp_path / f"facts.{ending}")
    again = load_facts(path)
    assert again.rows.equals(facts.rows, null_equal=True)
    assert again.sha256 == facts.sha256
    if ending == "tsv":
        assert hashlib.sha256(path.read_bytes()).hexdigest() == facts.sha256
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_the_hash_sees_every_cell_and_the_order() -> None:
    other = _changed(entity_id="Q2", label="Max")
    tables = [_facts(ROW, other), _facts(other, ROW), _facts(ROW)]
    changes = ({"label": "Karl"}, {"value": 1819.0}, {"popularity": None}, {"split": "dev"}, {"entity_id": "Q1"})
    tables += [_facts(_changed(**change)) for change in changes]
    assert len({facts.sha256 for facts in tables}) == len(tables)
    assert _facts(ROW).sha256 == _facts(ROW).sha256


def test_a_place_that_cannot_be_written_to_is_refused_and_left_clean(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a name in \.tsv or \.parquet"):
        save_facts(_facts(ROW), tmp_path / "facts.csv")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="facts can't be written"):
        save_facts(_facts(ROW), tmp_path / "file" / "facts.tsv")
    (tmp_path / "facts.tsv").mkdir()
    with pytest.raises(InputError, match="facts can't be written"):
        save_facts(_facts(ROW), tmp_path / "facts.tsv")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["facts.tsv", "file"]


def test_saving_over_an_older_table_replaces_it(tmp_path: Path) -> None:
    path = save_facts(_facts(ROW), tmp_path / "facts.tsv")
    save_facts(_facts(_changed(label="Groucho")), path)
    assert load_facts(path).rows["label"].to_list() == ["Groucho"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_a_limit_keeps_the_shares_of_splits_and_the_same_entities() -> None:
    rows = [
        _changed(property=name, split=split, entity_id=f"Q{i}", value=float(i % 90 + 1))
        for name in ("latitude", "longitude")
        for i, split in enumerate(["train"] * 100 + ["dev"] * 50 + ["test"] * 50)
    ]
    facts = limited(_facts(*rows), 30)
    assert [facts.of("latitude", split).height for split in ("train", "dev", "test")] == [15, 8, 7]
    latitude, longitude = (facts.of(name)["entity_id"].to_list() for name in ("latitude", "longitude"))
    assert latitude == longitude
    assert limited(_facts(*rows[::-1]), 30).of("latitude")["entity_id"].sort().to_list() == sorted(latitude)
    assert facts.notes == tuple(f"{n}: 170 of 200 entities left out by limit 30" for n in ("latitude", "longitude"))
    assert limited(_facts(*rows), 1000).rows.equals(_facts(*rows).rows)
    assert [limited(_facts(*rows), 3).of("latitude", s).height for s in ("train", "dev", "test")] == [1, 1, 1]
    with pytest.raises(InputError, match="limit 2 for latitude: expected at least 3"):
        limited(_facts(*rows), 2)


@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=3), limit=st.integers(3, 200))
@settings(deadline=None)
def test_a_limit_is_met_exactly(sizes: list[int], limit: int) -> None:
    splits = [split for split, size in zip(("train", "dev", "test"), sizes, strict=False) for _ in range(size)]
    facts = _facts(*(_changed(entity_id=f"Q{i}", split=split) for i, split in enumerate(splits)))
    kept = limited(facts, limit)
    assert kept.rows.height == min(limit, len(splits))
    for split, size in zip(("train", "dev", "test"), sizes, strict=False):
        share = kept.of("birth_year", split).height
        assert 1 <= share <= size
        assert abs(share - min(1, limit / len(splits)) * size) < 2


def test_of_namesakes_only_the_most_popular_stays() -> None:
    facts = _facts(
        _changed(entity_id="Q1", label="Monroe County", popularity=5.0),
        _changed(entity_id="Q2", label="Monroe County", popularity=9.0, split="test"),
        _changed(entity_id="Q3", label="Monroe County", popularity=None),
        _changed(entity_id="Q4", label="Tie"),
        _changed(entity_id="Q5", label="Tie"),
        _changed(entity_id="Q1", label="Monroe County", property="latitude", value=4.0, popularity=5.0),
    )
    kept = unambiguous(facts)
    assert kept.of("birth_year")["entity_id"].to_list() == ["Q4", "Q2"]
    assert kept.of("latitude")["entity_id"].to_list() == ["Q1"]
    assert kept.notes == (
        "birth_year: 3 left out, a more popular entity has the same name: "
        "Monroe County (Q1), Monroe County (Q3), Tie (Q5)",
    )
    assert unambiguous(kept).rows.equals(kept.rows)
