"""A corpus built end to end from small files: what is kept, counted, resumed, refused."""

import gzip
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time

import polars as pl
import pytest

from inscape.data.corpus import (
    Corpus,
    CorpusConfig,
    Document,
    Source,
    build_corpus,
    read_rows,
    shared_sources,
    stdlib_source,
)
from inscape.data.corpus import build as building
from inscape.data.corpus.sources import TEXT_ONLY
from inscape.errors import InputError

LARGE = """
apple bread chair dance earth fruit glass horse house knife light money night ocean paper queen river shirt table uncle voice
water young bridge castle doctor engine family garden hunter island jacket kitchen letter mother number orange people rabbit
school summer teacher village window winter yellow answer brother church dinner father friend market minute music office
plate radio sister street thing train tree wall week word world year boat book city coat door farm fish gate hand hill king
lake lamp leaf moon nose park rain road roof room rope seed ship shop snow song star stone storm sugar sword tower wheel wind
""".split()  # noqa: SIM905
SMALL = ["the", "of", "and", "in", "to", "is", "was", "on", "with", "for"]


def sentence(i, n=24):
    """English enough for the filters, another for each number."""
    draw = random.Random(i)
    words = [draw.choice(LARGE if k % 2 else SMALL) for k in range(n)]
    return " ".join(words).capitalize() + "."


def rows(n, lang="en", source="pages"):
    texts = ("\n".join(sentence(100 * i + k) for k in range(3)) for i in range(n))
    return [
        {"id": f"{source}/{lang}/{i}", "lang": lang, "source": source, "text": text} for i, text in enumerate(texts)
    ]


def write(path, lines):
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


def counts_of(record):
    return pl.DataFrame(record["counts"], schema=record["columns"], orient="row")


@pytest.fixture
def mixed(tmp_path):
    """Two sources in one file and another alone, with something for every step to find."""
    pages = rows(20)
    pages[1]["text"] = pages[0]["text"]  # a copy
    pages[2]["text"] = pages[3]["text"].replace("the", "The", 1) + "!"  # a near copy, before its original
    for page in pages[4:18]:
        page["text"] += "\nAll rights reserved by the makers of this page."
    pages[5]["text"] += "\nWrite to someone@example.org about it."
    pages[6]["text"] = " \n"
    pages[7]["text"] = "Too short."
    pages[8]["text"] = "<em>So</em> " + pages[8]["text"]
    notes = [{"id": f"n{i}", "lang": "fr", "source": "notes", "text": f"Une note numéro {i}."} for i in range(30)]
    both = write(tmp_path / "both.jsonl.gz", [*pages, *notes])
    plain = tmp_path / "plain.txt"
    plain.write_text("\n\n".join(sentence(9000 + i) for i in range(4)))
    return (
        Source(name="pages", files=(both,), markup="html", licence="CC0-1.0"),
        Source(name="notes", files=(both,), skip=(*TEXT_ONLY, "length", "near")),
        Source(name="plain", kind="text", language="sv", files=(str(plain),), skip=TEXT_ONLY),
    )


def test_every_step_is_counted_and_adds_up(mixed, tmp_path):
    record = build_corpus(CorpusConfig(sources=mixed), tmp_path / "out", processes=1)
    corpus = Corpus.open(tmp_path / "out")
    assert corpus.languages == ["en", "fr", "sv"]
    counts = counts_of(record)
    pages = {row["step"]: row for row in counts.filter(pl.col("source") == "pages").iter_rows(named=True)}
    dropped = {step: row["documents_in"] - row["documents_out"] for step, row in pages.items()}
    assert {step: n for step, n in dropped.items() if n} == {"empty": 1, "exact": 1, "length": 1, "near": 1}
    assert {step: row["changed"] for step, row in pages.items() if row["changed"]} == {
        "markup": 1, "template_lines": 12, "pii": 1,
    }  # fmt: skip
    steps = list(pages)
    for before, after in itertools.pairwise(steps):
        assert pages[before]["documents_out"] == pages[after]["documents_in"]
        assert pages[before]["bytes_out"] == pages[after]["bytes_in"]
    kept = {document.id: document for split in ("train", "validation") for document in corpus.documents(split=split)}
    mine = [document for document in kept.values() if document.source == "pages"]
    assert sum(len(document.text.encode()) for document in mine) == pages["near"]["bytes_out"]
    assert not {"pages/en/1", "pages/en/3", "pages/en/6", "pages/en/7"} & set(kept)
    assert "PI:EMAIL" in kept["pages/en/5"].text
    assert "rights reserved" not in "".join(document.text for document in mine)
    assert kept["pages/en/8"].text.startswith("So ")
    assert "template_lines" not in set(counts.filter(pl.col("source") == "notes")["step"])
    assert len([document for document in kept.values() if document.source == "notes"]) == 30
    assert not (tmp_path / "out" / "work").exists()


def test_what_stands_on_disk_is_what_the_manifest_says(mixed, tmp_path):
    build_corpus(CorpusConfig(sources=mixed, validation=0.3), tmp_path / "out", processes=1)
    corpus = Corpus.open(tmp_path / "out")
    for split in ("train", "validation"):
        documents = list(corpus.documents(split=split))
        for language in corpus.languages:
            mine = [document for document in documents if document.language == language]
            assert len(mine) == corpus.documents_by_language(split)[language] > 0
            assert sum(len(document.text.encode()) for document in mine) == corpus.bytes_by_language(split)[language]
    assert next(corpus.documents(["sv"])) == Document("plain/plain.txt:1", "sv", "plain", sentence(9000))
    with pytest.raises(InputError, match="no language 'de', expected one of en, fr, sv"):
        next(corpus.documents(["de"]))


def test_a_language_of_two_documents_has_one_for_validation(tmp_path):
    for n, validation in ((1, 0), (2, 1), (3, 1)):
        source = Source(name="s", files=(write(tmp_path / f"{n}.jsonl", rows(n)),), skip=("near",))
        record = build_corpus(CorpusConfig(sources=(source,), validation=1e-9), tmp_path / f"out{n}", processes=1)
        assert record["languages"]["en"]["validation"]["documents"] == validation
        assert record["languages"]["en"]["train"]["documents"] == n - validation


def test_the_same_from_any_number_of_processes_and_chunks(mixed, tmp_path, monkeypatch):
    config = CorpusConfig(sources=mixed)
    one = build_corpus(config, tmp_path / "one", processes=1)
    monkeypatch.setattr(building, "_CHUNK", 2000)
    two = build_corpus(config, tmp_path / "two", processes=2)
    for record in (one, two):
        record.pop("seconds")
    assert one == two
    for file in sorted((tmp_path / "one" / "text").iterdir()):
        assert file.read_bytes() == (tmp_path / "two" / "text" / file.name).read_bytes()


@pytest.mark.parametrize("stage", ["clean_chunk", "find_copies", "filter_chunk", "find_near", "write_language"])
def test_a_build_that_was_stopped_goes_on(mixed, tmp_path, monkeypatch, stage):
    config = CorpusConfig(sources=mixed)
    whole = build_corpus(config, tmp_path / "whole", processes=1)
    monkeypatch.setattr(building, "_CHUNK", 2000)
    work, calls = getattr(building, stage), []

    def stopping(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        work(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(building, stage, stopping)
        with pytest.raises(KeyboardInterrupt):
            build_corpus(config, tmp_path / "out", processes=1)
    (tmp_path / "out" / "work" / ".left.123.part").write_text("half")
    done = []
    monkeypatch.setattr(building, stage, lambda *arguments: (done.append(arguments), work(*arguments)))
    again = build_corpus(config, tmp_path / "out", processes=1)
    assert calls[0][1:] not in [arguments[1:] for arguments in done]
    assert again["languages"] == whole["languages"]
    assert again["counts"] == whole["counts"]
    assert not list((tmp_path / "out").rglob("*.part"))


def test_a_killed_build_goes_on(tmp_path, monkeypatch):
    """SIGKILL at some moment between the first chunk and the end."""
    source = Source(name="s", files=(write(tmp_path / "a.jsonl", rows(600)),), skip=("near",))
    config = CorpusConfig(sources=(source,))
    program = (
        "from inscape.data.corpus import *; from inscape.data.corpus import build; build._CHUNK = 20000\n"
        f"config = CorpusConfig.model_validate_json({config.model_dump_json()!r})\n"
        f"build_corpus(config, {str(tmp_path / 'out')!r}, processes=1)"
    )
    process = subprocess.Popen([sys.executable, "-c", program])
    clean = tmp_path / "out" / "work" / "clean"
    for _ in range(1200):
        if clean.exists() and len(list(clean.glob("*.json"))) >= 3:
            break
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / "manifest.json").exists()
    with monkeypatch.context() as patched:
        patched.setattr(building, "_CHUNK", 20000)
        resumed = build_corpus(config, tmp_path / "out", processes=1)
    whole = build_corpus(config, tmp_path / "whole", processes=1)
    assert resumed["languages"] == whole["languages"]


def test_done_is_done_and_another_corpus_is_refused(mixed, tmp_path):
    config = CorpusConfig(sources=mixed)
    out = tmp_path / "out"
    first = build_corpus(config, out, processes=1)
    stamp = (out / "text" / "en.jsonl.gz").stat().st_mtime_ns
    assert build_corpus(config, out, processes=1) == first
    assert (out / "text" / "en.jsonl.gz").stat().st_mtime_ns == stamp
    with pytest.raises(InputError, match=r"holds another corpus, config\.validation was 0\.05 and is 0\.1"):
        build_corpus(config.model_copy(update={"validation": 0.1}), out, processes=1)
    (tmp_path / "plain.txt").write_text("anything else")
    with pytest.raises(InputError, match=r"inputs\.plain was"):
        build_corpus(config, out, processes=1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="holds other files"):
        build_corpus(config, tmp_path / "other", processes=1)


def test_languages_chosen_and_held_out_and_documents_sampled(tmp_path):
    file = write(tmp_path / "a.jsonl", [*rows(200), *rows(5, "de"), *rows(5, "ko")])
    source = Source(name="pages", files=(file,), weight=0.5, skip=(*TEXT_ONLY, "near"))
    record = build_corpus(CorpusConfig(sources=(source,), held_out=("ko",)), tmp_path / "a", processes=1)
    assert "ko" not in record["languages"]
    kept = record["languages"]["en"]
    assert 70 < kept["train"]["documents"] + kept["validation"]["documents"] < 130
    whole = source.model_copy(update={"weight": 1.0})
    record = build_corpus(CorpusConfig(sources=(whole,), languages=("de",)), tmp_path / "b", processes=1)
    assert list(record["languages"]) == ["de"]
    row = counts_of(record).filter((pl.col("step") == "languages") & (pl.col("language") == "en"))
    assert row["documents_in"].item() == 200
    assert row["documents_out"].item() == 0


def test_minhash_finds_the_near_copy_too_and_none_leaves_it(mixed, tmp_path):
    kept = {}
    for near in ("minhash", "none"):
        build_corpus(CorpusConfig(sources=mixed, near=near), tmp_path / near, processes=1)
        corpus = Corpus.open(tmp_path / near)
        kept[near] = {document.id for split in ("train", "validation") for document in corpus.documents(["en"], split)}
    assert kept["none"] - kept["minhash"] == {"pages/en/3"}


def test_code_keeps_its_lines_and_half_a_surrogate_becomes_a_sign(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(
        json.dumps({"lang": "en", "text": sentence(1) + " \\ud800 "}).replace("\\\\ud800", "\\ud800") + "\n"
    )
    sources = (Source(name="s", files=(str(file),), skip=TEXT_ONLY), stdlib_source(weight=0.02))
    build_corpus(CorpusConfig(sources=sources, validation=0), tmp_path / "out", processes=1)
    corpus = Corpus.open(tmp_path / "out")
    (document,) = corpus.documents(["en"])
    assert document.id == "a.jsonl:1"
    assert "\ufffd" in document.text
    code = list(corpus.documents(["code"]))
    assert code
    for document in code:
        compile(document.text, document.id, "exec", dont_inherit=True)


@pytest.mark.parametrize(
    ("content", "fields", "message"),
    [
        (b'{"text": "a", "lang": "en"}\n{"text": 3}\n', {}, r"a\.jsonl, line 2: expected an object with a text"),
        (b'{"text": "a", "lang": "en"}\nnot json\n', {}, r"a\.jsonl, line 2: not JSON"),
        (b'{"text": "a", "lang": "en"}\n\xff\n', {}, r"not UTF-8 at byte 28 \(line 2, byte 0xff\)"),
        (b'{"text": "a", "lang": "qq"}\n', {}, "line 1: no language has the code 'qq'"),
        (b'{"text": "a"}\n', {}, "line 1: no language under the key lang"),
        (b'{"text": " ", "lang": "en"}\n', {}, "no document is left after all steps"),
    ],
)
def test_bad_lines_are_named(tmp_path, content, fields, message):
    (tmp_path / "a.jsonl").write_bytes(content)
    source = Source(name="s", files=(str(tmp_path / "a.jsonl"),), **fields)
    with pytest.raises(InputError, match=message):
        build_corpus(CorpusConfig(sources=(source,)), tmp_path / "out", processes=1)


def test_a_line_of_a_shared_file_that_no_source_claims(tmp_path):
    file = write(tmp_path / "a.jsonl", rows(2, source="third"))
    sources = tuple(Source(name=name, files=(file,)) for name in ("first", "second"))
    with pytest.raises(
        InputError, match="line 1: source 'third', expected one of those that name the file: first, second"
    ):
        build_corpus(CorpusConfig(sources=sources), tmp_path / "out", processes=1)


@pytest.mark.slow
def test_an_error_in_another_process_is_the_same_error(tmp_path):
    file = write(tmp_path / "a.jsonl", [{"text": "x", "lang": "qq"}])
    with pytest.raises(InputError, match="no language has the code 'qq'"):
        build_corpus(CorpusConfig(sources=(Source(name="s", files=(file,)),)), tmp_path / "out", processes=2)


def test_the_pack_has_its_sources(tmp_path):
    with pytest.raises(InputError, match="expected the corpora pack"):
        shared_sources(tmp_path)
    (tmp_path / "pretrain").mkdir()
    rows_ = [{"id": "1", "lang": "en", "source": "tatoeba", "text": "Sami earned good money."}]
    write(tmp_path / "pretrain" / "en.jsonl.gz", rows_)
    sources = shared_sources(tmp_path)
    assert sources[-1].kind == "python-stdlib"
    assert len({source.name for source in sources}) == 10
    record = build_corpus(CorpusConfig(sources=sources[:-1]), tmp_path / "out", processes=1)
    assert record["languages"]["en"]["train"]["documents"] == 1
    assert next(read_rows(sources[0].paths())).text == "Sami earned good money."


def test_what_is_no_corpus_is_not_opened(tmp_path):
    with pytest.raises(InputError, match="expected what `inscape corpus build` made"):
        Corpus.open(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="expected the manifest of a corpus"):
        Corpus.open(tmp_path)
