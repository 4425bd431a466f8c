"""Documents with id, language and source; the tools that other studies read text with are in test_corpus.py."""

import json

import pytest

from inscape.data.corpus import Document, Source, read_rows
from inscape.data.corpus.sources import CODE, by_name, check_language, stdlib_files
from inscape.errors import InputError


def test_rows_keep_what_a_line_says(tmp_path):
    row = {"id": "a/1", "lang": "zh-Hant", "source": "s", "text": "一\n二"}
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(row) + "\n\n" + json.dumps({**row, "text": ""}) + "\n")
    assert list(read_rows([file])) == [Document("a/1", "zh-Hant", "s", "一\n二"), Document("a/1", "zh-Hant", "s", "")]


def test_a_row_without_a_language_is_named_with_its_line(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"id": "1", "lang": "en", "source": "s", "text": "x"}\n{"id": "2", "source": "s", "text": "x"}\n')
    with pytest.raises(InputError, match=r"a\.jsonl, line 2: no text under the key lang"):
        list(read_rows([file]))


@pytest.mark.parametrize("code", ["en", "zh-Hant", "pt-BR", "sr-Latn", "tzm-Tfng", "mn-Mong-CN", CODE])
def test_known_language_codes(code):
    assert check_language(code, "x") == code


@pytest.mark.parametrize("code", ["xx", "EN", "english", "en_US", "", "zh-hant", "e", "../a"])
def test_language_codes_that_nobody_knows(code):
    with pytest.raises(InputError, match="here: no language has the code"):
        check_language(code, "here")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"files": ()}, "no files"),
        ({"files": ("a",), "kind": "text"}, "does not name its language"),
        ({"files": ("a",), "kind": "python-stdlib"}, "finds its files"),
        ({"files": ("a",), "language": "xx"}, "no language has the code 'xx'"),
        ({"files": ("a",), "weight": 1.5}, "less than or equal to 1"),
        ({"files": ("a",), "name": "a/b"}, "pattern"),
        ({"files": ("a",), "skip": ("lenght",)}, "length"),
    ],
)
def test_sources_that_make_no_sense(fields, message):
    with pytest.raises(ValueError, match=message):
        Source(**{"name": "s", **fields})


def test_files_by_pattern_sorted_and_missing_ones_refused(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "c.txt"):
        (tmp_path / name).write_text("")
    source = Source(name="s", files=(str(tmp_path / "*.jsonl"), str(tmp_path / "a.jsonl")))
    assert [path.name for path in source.paths()] == ["a.jsonl", "b.jsonl"]
    with pytest.raises(InputError, match=r"source s: no file .*none\*"):
        Source(name="s", files=(str(tmp_path / "none*"),)).paths()


def test_names_once():
    with pytest.raises(InputError, match="two are named 's'"):
        by_name([Source(name="s", files=("a",)), Source(name="s", files=("b",))])


def test_standard_library_has_no_tests_and_no_packages():
    files = stdlib_files()
    parts = {part for path in files for part in path.parts}
    assert {"dataclasses.py", "decoder.py"} <= {path.name for path in files}
    assert not parts & {"site-packages", "tests", "__pycache__"}
