"""Reading facts from files: the shared Wikidata tables (acceptance check A13), published rows, and damaged input."""

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inscape.data.fact_files import _tidy
from inscape.data.fact_table import cells_of, escape
from inscape.data.facts import Facts, load_facts, unambiguous
from inscape.data.properties import PROPERTIES
from inscape.errors import InputError

HEADER = "entity_id\tentity_label\tvalue\tpopularity_degree\n"
POPPER = "Q81244\tKarl Popper\t1902\t130\n"
OWN_HEADER = "property\tsplit\tentity_id\tlabel\tvalue\tpopularity\n"


@pytest.fixture(scope="module")
def wikidata(numeric_facts: Path) -> Facts:
    return load_facts(numeric_facts)


def test_counts_of_the_published_splits(wikidata: Facts) -> None:
    """A13: 1,000 / 500 / 500 for each of the nine properties."""
    counts = dict(((p, s), n) for p, s, n in wikidata.rows.group_by("property", "split").len().iter_rows())
    sizes = {"train": 1000, "dev": 500, "test": 500}
    assert counts == {(name, split): n for name in PROPERTIES for split, n in sizes.items()}
    assert sum("global_dev file is the test split" in note for note in wikidata.notes) == 3


def test_no_entity_is_in_two_splits_of_a_property(wikidata: Facts) -> None:
    """A13: disjoint entities, counted without the loader's own check."""
    for name in PROPERTIES:
        splits = [set(wikidata.of(name, split)["entity_id"]) for split in ("train", "dev", "test")]
        assert [len(ids) for ids in splits] == [1000, 500, 500]
        assert not any(a & b for a, b in itertools.combinations(splits, 2))


@pytest.mark.parametrize(
    ("name", "low", "median", "high"),
    [
        ("birth_year", -989, 1918, 2264),
        ("death_year", -3230, 1952, 2023),
        ("population", 58, 80296, 4.66e9),
        ("elevation", -125, 165, 3676),
        ("latitude", -45.9, 43.3, 71.4),
        ("longitude", -164.8, 4.8, 175.6),
        ("inception", -4395, 1905, 2020),
        ("work_start", 1535, 1966, 2017),
        ("area", 0.28, 468, 5.1e8),
    ],
)
def test_train_values_are_those_listed(wikidata: Facts, name: str, low: float, median: float, high: float) -> None:
    values = sorted(wikidata.of(name, "train")["value"])
    # The listed median of 1,000 is the upper one.
    found = (values[0], values[500], values[-1])
    for value, listed in zip(found, (low, median, high), strict=True):
        # Listed whole, but angles to one decimal and the largest values to two or three digits.
        assert value == pytest.approx(listed, rel=0.002 if listed > 1e6 else 0, abs=0.14)


def test_rows_keep_the_order_of_their_files(wikidata: Facts) -> None:
    assert wikidata.of("birth_year", "train")["label"][998] == "Karl Popper"
    assert wikidata.of("elevation", "train")["label"][998] == "Espoo"


def test_labels_lose_escapes_and_invisible_ends(wikidata: Facts) -> None:
    label_of = dict(wikidata.rows.select("entity_id", "label").iter_rows())
    assert label_of["Q8349"] == '"Weird Al" Yankovic'
    assert label_of["Q931502"] == "Order of Isabella the Catholic"
    assert label_of["Q892"] == "J. R. R. Tolkien"
    assert any("J. R. R. Tolkien (Q892)" in note for note in wikidata.notes)


def test_namesakes_in_the_real_tables(wikidata: Facts) -> None:
    kept = unambiguous(wikidata)
    for name, repeated_in_train in (("area", 37), ("population", 26), ("latitude", 16), ("birth_year", 0)):
        labels = wikidata.of(name, "train")["label"]
        assert len(labels) - labels.n_unique() == repeated_in_train
        assert kept.of(name)["label"].is_unique().all()
        assert kept.of(name).height == wikidata.of(name)["label"].n_unique()


def test_a_choice_of_properties_and_a_limit(numeric_facts: Path) -> None:
    facts = load_facts(numeric_facts, ["P2044", "birth_year"], limit=100)
    assert facts.properties == ("birth_year", "elevation")
    assert [facts.of("elevation", split).height for split in ("train", "dev", "test")] == [50, 25, 25]
    assert load_facts(numeric_facts, ["elevation", "P569"], limit=100).sha256 == facts.sha256


def _write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _published(**change: object) -> str:
    row = {
        "entity_idx": 7,
        "entity_id": "Q81244",
        "entity_label": "Karl Popper",
        "value": 1902,
        "unit_label": "annum",
        "value_mean": 1900.5,
        "popularity_degree": 130,
        "pred_id": "P569",
        "pred_label": "date of birth",
    }
    return json.dumps({name: value for name, value in (row | change).items() if value is not ...}) + "\n"


def test_published_rows_and_slim_tables_give_the_same_facts(tmp_path: Path) -> None:
    (tmp_path / "slim").mkdir()
    (tmp_path / "full").mkdir()
    _write(tmp_path / "slim", "P569.train.tsv", HEADER + POPPER + 'Q8349\t\\"Weird Al\\" Yankovic\t1959\t62\n')
    _write(tmp_path / "slim", "P569.global_dev.tsv", HEADER + "Q1\tErdoğan\t1954\t56\n")
    weird_al = _published(entity_id="Q8349", entity_label='"Weird Al" Yankovic', value=1959, popularity_degree=62)
    names = [f"numprop_P569.quantile_9.sample_0.{split}.jsonl" for split in ("train", "global_dev")]
    _write(tmp_path / "full", names[0], _published() + weird_al)
    erdogan = _published(entity_id="Q1", entity_label="Erdoğan", value=1954, popularity_degree=56)
    _write(tmp_path / "full", names[1], erdogan)
    slim, full = load_facts(tmp_path / "slim"), load_facts(tmp_path / "full")
    assert slim.rows.equals(full.rows)
    assert slim.rows["split"].to_list() == ["train", "train", "test"]
    one = load_facts(tmp_path / "full" / names[1])
    assert one.rows.row(0) == ("birth_year", "test", "Q1", "Erdoğan", 1954.0, 56.0)


def test_coordinates_are_known_by_their_file_names(tmp_path: Path) -> None:
    row = _published(pred_id="P625.lat", value=43.25, unit_label="degree")
    path = _write(tmp_path, "numprop_P625.lat.quantile_9.sample_0.dev.jsonl", row)
    assert load_facts(path).rows.row(0)[:2] == ("latitude", "dev")


def test_global_dev_is_the_test_and_other_files_are_named(tmp_path: Path) -> None:
    for split, entity in (("train", "Q1"), ("global_dev", "Q2"), ("test", "Q3")):
        _write(tmp_path, f"P569.{split}.tsv", HEADER + f"{entity}\tName\t1902\t1\n")
    _write(tmp_path, "P570.test.tsv", HEADER + POPPER)
    _write(tmp_path, "README.md", "")
    facts = load_facts(tmp_path)
    assert facts.rows["entity_id"].to_list() == ["Q1", "Q2", "Q81244"]
    assert facts.notes == (
        "not read, as the name says no property and split: README.md",
        "birth_year: P569.test.tsv left out, the global_dev file is the test split",
    )


def test_windows_line_ends_byte_order_marks_and_odd_spaces_are_understood(tmp_path: Path) -> None:
    text = "\ufeff" + (HEADER + "Q1\tWindows\u00a010\u200e\t2015\t\nQ2\tA\\\tB\u2028C\t-44\t3\n").replace("\n", "\r\n")
    facts = load_facts(_write(tmp_path, "P571.train.tsv", text))
    assert facts.rows.select("label", "value", "popularity").rows() == [
        ("Windows 10", 2015.0, None),
        ("A\tB\u2028C", -44.0, 3.0),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty, expected a header"),
        (HEADER, "no rows below the header"),
        (HEADER + "Q1\tName\t19O2\t1\n", "line 2: value '19O2', expected a number"),
        (HEADER + POPPER + "Q1\tName\tnan\t1\n", "line 3: value 'nan', expected a number"),
        (HEADER + "Q1\tName\t-inf\t1\n", "line 2: value '-inf', expected a number"),
        (HEADER + "Q1\tName\t1_902\t1\n", "line 2: value '1_902', expected a number"),
        (HEADER + "Q1\tName\t١٩٠٢\t1\n", "line 2: value '١٩٠٢', expected a number"),
        (HEADER + "Q1\tName\t1e999\t1\n", "line 2: birth_year of 'Q1' .Name.: value inf, expected a finite"),
        (HEADER + "Q1\tName\t\t1\n", "line 2: value of 'Q1' is missing"),
        (HEADER + "Q1\tName\t1902\tmany\n", "line 2: popularity_degree 'many', expected a number"),
        (HEADER + "Q1\t\u200e\t1902\t1\n", "line 2: label of 'Q1' is empty"),
        (HEADER + POPPER + "Q1\tNa", "line 3: 2 cells, expected 4"),
        (HEADER + "Q1\tName\t1902\t1\textra\n", "line 2: 5 cells, expected 4"),
        (HEADER + "Q1\tAC\\DC\t1902\t1\n", "line 2: a backslash before 'D', expected"),
        ("entity_id\tvalue\nQ1\t1902\n", "line 1: header .* lacks entity_label, popularity_degree, expected"),
        (HEADER + POPPER + POPPER, "line 3: birth_year: entity 'Q81244' .* twice in split train, first at .*line 2"),
        ((HEADER + POPPER).encode() + b"Q1\tErdo\xf0an\t1954\t1\n", "line 3: byte 0xf0 at offset 82 isn't UTF-8"),
        ((HEADER + POPPER).encode("utf-16"), "line 1: byte 0xff at offset 0 isn't UTF-8"),
    ],
)
def test_damaged_tables_are_refused_with_file_and_line(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = _write(tmp_path, "P569.train.tsv", content)
    for where in (path, tmp_path):
        with pytest.raises(InputError, match=message) as raised:
            load_facts(where)
        assert str(raised.value).startswith(str(path))
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("{}\n", "line 1: fields entity_id, entity_label, value, popularity_degree are missing"),
        ("[1]\n", "line 1: a JSON list, expected an object"),
        (_published() + _published()[:50], "line 2: not a JSON object"),
        (_published(value=float("nan")), "line 1: not a JSON object .NaN is no JSON number"),
        (_published(value="1902"), "line 1: value '1902', expected a number"),
        (_published(value=True), "line 1: value True, expected a number"),
        (_published(value=None), "line 1: value of 'Q81244' is missing"),
        (_published(value=10**400), "line 1: value has 401 digits"),
        (_published(value=...), "line 1: fields value are missing"),
        (_published(entity_label=7), "line 1: entity_label 7, expected text"),
        (_published(entity_label="\ud800"), "line 1: entity_label '.ud800', expected text"),
        (_published(pred_id="P570"), "line 1: pred_id 'P570', expected 'P569' as in the file's name"),
        ("[" * 100_000, "line 1: not a JSON object"),
    ],
)
def test_damaged_published_rows_are_refused_with_file_and_line(tmp_path: Path, content: str, message: str) -> None:
    path = _write(tmp_path, "numprop_P569.quantile_9.sample_0.train.jsonl", content)
    with pytest.raises(InputError, match=message) as raised:
        load_facts(path)
    assert str(raised.value).startswith(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (OWN_HEADER + "birth_year\ttrain\tQ1\tName\t1902\t1", "the last line has no end"),
        (OWN_HEADER + "height\ttrain\tQ1\tName\t1902\t1\n", "line 2: unknown property 'height'"),
        (OWN_HEADER + "birth_year\tvalid\tQ1\tName\t1902\t1\n", "line 2: split 'valid'"),
        (OWN_HEADER, "no rows below the header"),
        ("property\tvalue\nbirth_year\t2\n", "line 1: header .* lacks split, entity_id, label, popularity"),
    ],
)
def test_damaged_facts_tables_are_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_facts(_write(tmp_path, "facts.tsv", content))


def test_an_entity_in_two_splits_is_refused_with_both_places(tmp_path: Path) -> None:
    _write(tmp_path, "P569.train.tsv", HEADER + POPPER)
    path = _write(tmp_path, "P569.dev.tsv", HEADER + "Q1\tName\t1902\t1\n" + POPPER)
    with pytest.raises(InputError, match=rf"{re.escape(str(path))}: line 3|in splits dev and train") as raised:
        load_facts(tmp_path)
    assert "P569.train.tsv: line 2" in str(raised.value)


def _parquet(folder: Path) -> Path:
    return _write(folder, "facts.parquet", b"PAR1 but no table")


@pytest.mark.parametrize(
    ("make", "properties", "message"),
    [
        (lambda f: f / "absent", None, "no such file or folder"),
        (lambda f: f, None, "no files with the facts asked for"),
        (lambda f: _write(f, "facts.csv", "a,b\n"), None, "can't read facts from '.csv'"),
        (lambda f: _write(f, "people.tsv", HEADER + POPPER), None, "the name doesn't say property and split"),
        (lambda f: _write(f, "P9999.train.tsv", HEADER + POPPER).parent, None, "unknown property 'P9999'"),
        (lambda f: _write(f, "P9999.train.tsv", HEADER + POPPER).parent, ["P569"], "no files with the facts"),
        (lambda f: _write(f, "P569.valid.tsv", HEADER + POPPER).parent, None, "split 'valid' in the name"),
        (lambda f: _write(f, "P569.train.tsv", HEADER + POPPER).parent, ["P569", "P570"], "no facts of death_year"),
        (lambda f: _write(f, "P569.train.tsv", HEADER + POPPER).parent, [], "an empty list"),
        (lambda f: _write(f, "P569.train.tsv", HEADER + POPPER).parent, ["height"], "unknown property 'height'"),
        (lambda f: _write(f, "P569.train.tsv", HEADER + POPPER), ["P570"], "no facts of death_year"),
        (_parquet, None, "not a parquet table"),
    ],
)
def test_what_holds_no_facts_is_refused(
    tmp_path: Path, make: Callable[[Path], Path], properties: list[str] | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_facts(make(tmp_path), properties)


def test_two_files_of_one_split_are_refused(tmp_path: Path) -> None:
    _write(tmp_path, "P569.train.tsv", HEADER + POPPER)
    _write(tmp_path, "numprop_P569.quantile_9.sample_0.train.jsonl", _published())
    with pytest.raises(InputError, match="same property and split as"):
        load_facts(tmp_path)


@given(st.lists(st.text('ab\\\t\n\r"tnr ü'), min_size=1))
def test_escaped_cells_are_read_back(cells: list[str]) -> None:
    line = "\t".join(escape(cell) for cell in cells)
    assert "\n" not in line
    assert cells_of(line, "here") == cells


@given(st.text())
def test_tidy_labels_stay_tidy(label: str) -> None:
    assert _tidy(_tidy(label)) == _tidy(label)
