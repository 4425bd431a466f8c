import gzip
import json

import pytest

from inscape.data.corpus import corpus_hash, read_documents
from inscape.errors import InputError


def test_plain_text_is_cut_at_empty_lines(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes("\n\nerste Zeile\r\nzweite\n \t\n\nnaïve\n".encode())
    assert list(read_documents([file])) == ["erste Zeile\nzweite", "naïve"]


def test_json_lines_also_compressed_and_in_order(tmp_path):
    rows = [{"text": "one\n\ntwo", "id": 1}, {"text": " "}, {"text": "three"}]
    lines = "\n".join(json.dumps(row) for row in rows) + "\n\n"
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    found = list(read_documents([tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"]))
    assert found == ["one\n\ntwo", "three"] * 2


@pytest.mark.parametrize("compressed", [False, True])
def test_what_is_not_utf8_is_named_with_its_offset(tmp_path, compressed):
    content = "äb\ncd".encode() + b"\xff" + b"e\n"
    file = tmp_path / ("a.txt.gz" if compressed else "a.txt")
    file.write_bytes(gzip.compress(content) if compressed else content)
    with pytest.raises(InputError, match=rf"{file}: not UTF-8 at byte {content.index(255)} \(line 2, byte 0xff\)"):
        list(read_documents([file]))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": 3}\n', "line 2: expected an object with a text"),
        ("a.jsonl", b"[1]\n", "line 1: expected an object"),
        ("a.jsonl", b"{text\n", "line 1: not JSON"),
        ("a.txt.gz", b"plain", "not a whole gzip file"),
        ("a.txt.gz", gzip.compress(b"some text" * 99)[:-9], "not a whole gzip file"),
        ("b.txt", None, "No such file"),
    ],
)
def test_what_is_no_corpus_is_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(read_documents([tmp_path / name]))


def test_the_hash_is_of_contents_and_their_order(tmp_path):
    for name, text in (("a.txt", "x"), ("b.txt", "y"), ("c.txt", "x"), ("d.jsonl", "x")):
        (tmp_path / name).write_text(text)
    a, b, c, d = (tmp_path / name for name in ("a.txt", "b.txt", "c.txt", "d.jsonl"))
    assert corpus_hash([a, b]) == corpus_hash([c, b])
    assert len({corpus_hash(files) for files in ([a], [b], [d], [a, b], [b, a])}) == 5
    with pytest.raises(InputError, match="no files"):
        corpus_hash([])
    with pytest.raises(InputError, match="No such file"):
        corpus_hash([tmp_path / "none"])
