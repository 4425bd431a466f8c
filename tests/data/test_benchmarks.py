"""Evaluation sets: what is read from small files, every refusal, and the real sets where they are at hand."""

import csv
import gzip
import json
import os
from pathlib import Path

import pytest

from inscape.data.benchmarks import (
    Choice,
    Translated,
    read_crows_pairs,
    read_parallel,
    read_rte,
    read_tatoeba,
    read_xcopa,
)
from inscape.errors import InputError

XCOPA = {"premise": " It rained. ", "choice1": "Wet.", "choice2": "Dry.", "question": "effect", "label": 1, "idx": 7}
RTE = {"premise": "It rained.", "hypothesis": "Water fell.", "label": "not_entailment"}
CROWS = ["", "sent_more", "sent_less", "stereo_antistereo", "bias_type"]


def write_jsonl(file, *rows):
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file.parent


def write_csv(file, *rows):
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return file


def test_items_as_they_are_read(tmp_path):
    write_jsonl(tmp_path / "et.val.jsonl", XCOPA)
    fields = {"premise": "It rained.", "choice1": "Wet.", "choice2": "Dry."}
    assert read_xcopa(tmp_path, "et", "val") == [Choice("val/7", "xcopa", "et", fields, 2, 1, "effect")]
    write_jsonl(tmp_path / "rte2_dev.jsonl", RTE, RTE | {"label": "entailment"})
    first, second = read_rte(tmp_path, [2], "dev")
    assert first == Choice(
        "rte2/dev/0", "rte", "en", {"premise": "It rained.", "hypothesis": "Water fell."}, 2, 1, "rte2"
    )
    assert (second.id, second.label) == ("rte2/dev/1", 0)
    file = write_csv(
        tmp_path / "c.csv", CROWS, [0, 'She, "x"', "He", "stereo", "gender"], [1, "A", "B", "antistereo", "age"]
    )
    assert read_crows_pairs(file) == [
        Choice("0", "crows_pairs", "en", {"more": 'She, "x"', "less": "He"}, 2, 0, "gender"),
        Choice("1", "crows_pairs", "en", {"more": "A", "less": "B"}, 2, 1, "age"),
    ]


def test_sentence_pairs_and_parallel_sentences(tmp_path):
    lines = "".join(f"satz {i}\tsentence {i}\n" for i in range(11))
    (tmp_path / "tatoeba.de-en.tsv.gz").write_bytes(gzip.compress(lines.encode()))
    pairs = read_tatoeba(tmp_path, "de")
    assert pairs[9] == Translated("de/9", "de", "satz 9", "sentence 9", True)
    assert [pair.test for pair in pairs] == [False] * 9 + [True] * 2
    (tmp_path / "pud").mkdir()
    for language, ids in (("en", "abc"), ("fr", "cxa")):
        text = "".join(f"# newdoc id = n\n# sent_id = {i}\n# text = {language} {i}\n1\tx\n\n" for i in ids)
        (tmp_path / "pud" / f"{language}.conllu.gz").write_bytes(gzip.compress(text.encode()))
    found = read_parallel(tmp_path / "pud")
    assert found == {"en": {"a": "en a", "c": "en c"}, "fr": {"a": "fr a", "c": "fr c"}}
    assert list(found["fr"]) == ["a", "c"]
    assert list(read_parallel(tmp_path / "pud", ["fr"])["fr"]) == ["c", "x", "a"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: list, expected an object"),
        (XCOPA | {"label": 2}, "line 2: label 2, expected 0 or 1"),
        (XCOPA | {"label": True}, "line 2: label True"),
        (XCOPA | {"question": "why"}, "line 2: question 'why', expected cause or effect"),
        (XCOPA | {"choice1": " "}, "line 2: choice1 is ' ', expected a text"),
        (XCOPA | {"premise": 3}, "line 2: premise is 3"),
        (XCOPA, "item val/7 stands 2 times"),
    ],
)
def test_bad_lines_of_xcopa(tmp_path, row, message):
    write_jsonl(tmp_path / "et.val.jsonl", XCOPA, row)
    with pytest.raises(InputError, match=message):
        read_xcopa(tmp_path, "et", "val")


def test_other_refusals(tmp_path):
    write_jsonl(tmp_path / "rte1_test.jsonl", RTE | {"label": "yes"})
    with pytest.raises(InputError, match=r"rte1_test.jsonl, line 1: label 'yes', expected entailment or"):
        read_rte(tmp_path, [1])
    (tmp_path / "rte2_test.jsonl").write_text("")
    with pytest.raises(InputError, match=r"rte2_test.jsonl: no line"):
        read_rte(tmp_path, [2])
    with pytest.raises(InputError, match=r"rte3_test.jsonl: No such file"):
        read_rte(tmp_path, [3])
    with pytest.raises(InputError, match="no column bias_type"):
        read_crows_pairs(write_csv(tmp_path / "a.csv", CROWS[:-1], [0, "a", "b", "stereo"]))
    with pytest.raises(InputError, match="line 2: stereo_antistereo 'x'"):
        read_crows_pairs(write_csv(tmp_path / "b.csv", CROWS, [0, "a", "b", "x", "age"]))
    with pytest.raises(InputError, match="line 2: bias_type is None"):
        read_crows_pairs(write_csv(tmp_path / "c.csv", CROWS, [0, "a", "b", "stereo"]))
    with pytest.raises(InputError, match=r"d.csv: no item"):
        read_crows_pairs(write_csv(tmp_path / "d.csv", CROWS))
    bad = {b"a\tb\tc\n": "line 1: expected a sentence", b"a\t \n": "line 1", b"": "no line", b"\xff\t\n": "not UTF-8"}
    for content, message in bad.items():
        (tmp_path / "tatoeba.x-en.tsv.gz").write_bytes(gzip.compress(content))
        with pytest.raises(InputError, match=message):
            read_tatoeba(tmp_path, "x")
    (tmp_path / "tatoeba.x-en.tsv.gz").write_bytes(gzip.compress(b"a\tb\n" * 100)[:-9])
    with pytest.raises(InputError, match="not a whole gzip file"):
        read_tatoeba(tmp_path, "x")


def test_parallel_sentences_are_refused_with_a_reason(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        read_parallel(tmp_path / "no")
    with pytest.raises(InputError, match="no file of any language, expected some of nothing"):
        read_parallel(tmp_path)
    (tmp_path / "en.conllu").write_text("# sent_id = a\n# text = x\n")
    (tmp_path / "fr.conllu").write_text("# sent_id = b\n# text = y\n")
    with pytest.raises(InputError, match="no file of 'de', expected some of en, fr"):
        read_parallel(tmp_path, ["en", "de"])
    with pytest.raises(InputError, match="no sentence id is in all of en, fr"):
        read_parallel(tmp_path)
    sentence = "# sent_id = a\n# text = x\n"
    for text, message in (("1\tx\n", "no sentence with sent_id"), (sentence * 2, "line 4: sentence 'a' twice")):
        (tmp_path / "en.conllu").write_text(text)
        with pytest.raises(InputError, match=message):
            read_parallel(tmp_path, ["en"])


@pytest.fixture(scope="module")
def corpora():
    folder = Path(os.environ.get("INSCAPE_SHARED", Path(__file__).parents[3] / "shared")) / "data/corpora"
    if not folder.is_dir():
        pytest.skip("needs shared/data/corpora (set INSCAPE_SHARED)")
    return folder


def test_the_real_sets_have_the_sizes_that_their_authors_report(corpora):
    for language in ("et", "ht", "id", "it", "qu", "sw", "ta", "th", "tr", "vi", "zh"):
        for split, n in (("val", 100), ("test", 500)):
            assert len(read_xcopa(corpora / "eval/xcopa", language, split)) == n
    assert sum(len(read_rte(corpora / "eval/rte", split=split)) for split in ("dev", "test")) == 4167
    pairs = read_crows_pairs(corpora / "eval/crows_pairs.csv")
    assert len(pairs) == 1508
    assert len({pair.group for pair in pairs}) == 9
    assert sum(pair.label for pair in pairs) == 218  # (antistereo)
    assert sum(pair.test for pair in read_tatoeba(corpora / "parallel", "sw")) == 78


def test_the_real_parallel_sentences(corpora):
    found = read_parallel(corpora / "eval/pud", ["en", "ja"])
    assert len(found["en"]) == len(found["ja"]) == 1000
    assert list(found["en"]) == list(found["ja"])
