"""Bigram counting against `collections.Counter` on whole documents, and what it needs and leaves behind."""

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from inscape.attention import bigrams as module
from inscape.attention.bigrams import Bigrams, count_bigrams
from inscape.errors import InputError


@pytest.fixture(scope="module")
def tokenizer():
    """A token per byte, and some pairs of letters; it would cut and pad if it were let."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = ["ab", "Ġa", "ba"]
    vocab = {word: i for i, word in enumerate([*alphabet, *pairs, "<end>"])}
    built = Tokenizer(models.BPE(vocab, [tuple(pair) for pair in pairs]))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=built, eos_token="<end>", pad_token="<end>", model_max_length=4)
    fast.backend_tokenizer.enable_truncation(4)
    fast.backend_tokenizer.enable_padding(length=9)
    return fast


def by_counter(texts: list[str], tokenizer) -> tuple[Counter, Counter]:
    pairs: Counter = Counter()
    single: Counter = Counter()
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        pairs.update(zip(ids[1:], ids[:-1], strict=True))
        single.update(ids)
    return pairs, single


def check(found: Bigrams, texts: list[str], tokenizer) -> None:
    pairs, single = by_counter(texts, tokenizer)
    keys = list(zip(found.suffix.tolist(), found.prefix.tolist(), strict=True))
    assert keys == sorted(pairs)
    assert dict(zip(keys, found.count.tolist(), strict=True)) == pairs
    assert {i: n for i, n in enumerate(found.unigram.tolist()) if n} == single
    assert found.tokens == single.total()
    assert found.documents == len(texts)
    assert len(found) == len(pairs)


words = st.text("ab \tcé語\u2028", max_size=12)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_counts_are_those_of_a_counter(tmp_path, tokenizer, data, monkeypatch):
    """For every kind of document, any size of what is read, tokenised and held at a time."""
    kind = data.draw(st.sampled_from(["line", "file", "blank line", "jsonl"]))
    texts = data.draw(st.lists(words, max_size=12))
    ends = data.draw(st.sampled_from(["\n", "\r\n"]))
    if kind == "line":
        body = ends.join(texts)
        texts = re.split("\r?\n", body)
    elif kind == "file":
        body = ends.join(texts)
        texts = [body]
    elif kind == "blank line":
        gaps = data.draw(
            st.lists(st.sampled_from(["\n", "\n\n", "\n \n", "\n\n\t\n\n"]), min_size=len(texts), max_size=len(texts))
        )
        body = "".join(text + gap for text, gap in zip(texts, gaps, strict=True))
        texts = re.split(r"\n(?:[ \t\r]*\n)+", body)
    else:
        body = "\n".join(json.dumps({"n": 1, "text": text}, ensure_ascii=False) for text in texts)
    texts = [text for text in texts if text.strip()]
    path = tmp_path / "text"
    path.write_bytes(body.encode())
    for name, most in (("READ", 40), ("BATCH", 40)):
        monkeypatch.setattr(module, name, data.draw(st.integers(1, most)))
    monkeypatch.setattr(module, "MOST_RUNS", 3)
    most_pairs = data.draw(st.integers(1, 20))
    if not by_counter(texts, tokenizer)[0]:
        with pytest.raises(InputError, match=r"an empty corpus: no document of .*text has two tokens"):
            count_bigrams(path, tokenizer, documents=kind, most_pairs=most_pairs)
        return
    found = count_bigrams(path, tokenizer, documents=kind, processes=1, most_pairs=most_pairs)
    check(found, texts, tokenizer)
    assert found.cuts == 0


@pytest.fixture
def corpus(tmp_path) -> tuple[list[Path], list[str]]:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["ab", "ba", "c", "é", "abc"], rng.integers(1, 30))) for _ in range(300)]
    plain, packed = tmp_path / "a.txt", tmp_path / "b.txt.gz"
    plain.write_text("\n".join(texts[:200]) + "\n", encoding="utf-8")
    packed.write_bytes(gzip.compress("\n".join(texts[200:]).encode()))
    return [plain, packed], texts


def same(one: Bigrams, other: Bigrams) -> bool:
    arrays = ("suffix", "prefix", "count", "unigram")
    return (one.documents, one.tokens, one.cuts) == (other.documents, other.tokens, other.cuts) and all(
        getattr(one, name).dtype == getattr(other, name).dtype
        and np.array_equal(getattr(one, name), getattr(other, name))
        for name in arrays
    )


def test_processes_and_memory_change_nothing_and_a_file_holds_it_all(corpus, tokenizer, tmp_path, monkeypatch):
    files, texts = corpus
    monkeypatch.setattr(module, "BATCH", 500)
    one = count_bigrams(files, tokenizer, processes=1)
    check(one, texts, tokenizer)
    assert same(count_bigrams(files, tokenizer, processes=2), one)
    assert same(count_bigrams(files, tokenizer, processes=1, most_pairs=7), one)
    one.save(tmp_path / "one")
    assert same(Bigrams.load(tmp_path / "one"), one)
    one.save(tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    suffixes, starts, sizes = one.rows()
    for suffix, start, size in zip(suffixes, starts, sizes, strict=True):
        prefixes, counts = one.prefixes(int(suffix))
        np.testing.assert_array_equal(prefixes, one.prefix[start : start + size])
        np.testing.assert_array_equal(counts, one.count[start : start + size])
    assert len(one.prefixes(0)[0]) == 0


def test_an_error_of_another_process_is_told_here(corpus, tokenizer):
    with pytest.raises(InputError, match=r"token \d+ \('.+'\) of the text is beyond the 3 rows of the embedding"):
        count_bigrams(corpus[0], tokenizer, processes=2, vocab=3)


def test_a_long_document_is_cut_before_a_line_break(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(module, "LONGEST", 10)
    path = tmp_path / "long"
    path.write_text("aaaa\naab\nbbcc" + "c" * 12)
    found = count_bigrams(path, tokenizer, documents="file")
    pieces = ["aaaa\naab", "\nbbcc" + "c" * 5, "c" * 7]
    assert found.cuts == 2
    check(found, pieces, tokenizer)


def test_memory_does_not_grow_with_the_text(tmp_path, tokenizer, monkeypatch):
    """numpy's memory (which tracemalloc sees) beyond the result: the same for four times the text, and within the bound."""
    most = 5_000
    monkeypatch.setattr(module, "BATCH", 2_000)
    monkeypatch.setattr(module, "READ", 2_000)
    rng = np.random.default_rng(0)
    beyond = []
    for lines in (500, 2000):
        path = tmp_path / str(lines)
        # (Any byte pair is as likely as another: nearly all of the 100 × 100 bigrams are seen in either.)
        path.write_text(
            "\n".join("".join(map(chr, rng.integers(192, 292, 200))) for _ in range(lines)), encoding="utf-8"
        )
        tracemalloc.start()
        found = count_bigrams(path, tokenizer, processes=1, most_pairs=most)
        kept, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert found.tokens > 20 * most
        beyond.append(peak - kept)
    assert beyond[1] < 1.2 * beyond[0]
    assert beyond[1] < 80 * most + 2**21


@pytest.mark.slow
def test_nothing_is_left_behind_by_a_kill(corpus, tmp_path, tokenizer):
    """SIGTERM in the middle of counting, with runs on the disk and two processes at work: no file, no process."""
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    folder = tmp_path / "temporary"
    folder.mkdir()
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, time\n"
        "from transformers import AutoTokenizer\n"
        "from inscape.attention import bigrams as m\n"
        "if __name__ == '__main__':\n"
        "    m.BATCH = 2000\n"
        "    documents = m._documents\n"
        "    def slow(*a):\n"
        "        for n, text in enumerate(documents(*a)):\n"
        "            if n == 150:\n"
        "                import multiprocessing\n"
        "                print(*[p.pid for p in multiprocessing.active_children()], flush=True)\n"
        "                time.sleep(60)\n"
        "            yield text\n"
        "    m._documents = slow\n"
        f"    tokenizer = AutoTokenizer.from_pretrained({str(tmp_path / 'tokenizer')!r})\n"
        f"    m.count_bigrams({str(corpus[0][0])!r}, tokenizer, processes=2, most_pairs=10)\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(folder)}
    )
    assert process.stdout is not None
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert workers
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM
    assert list(folder.glob("tmp*")) == []
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() and "Z" not in _state(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return "Z"


def test_bad_files_are_refused(tmp_path, tokenizer, monkeypatch):
    def refused(says: str, body: bytes | None = None, name: str = "text", **options) -> None:
        path = tmp_path / name
        if body is not None:
            path.write_bytes(body)
        with pytest.raises(InputError, match=says):
            count_bigrams(path, tokenizer, **options)

    refused(r"missing: no such file, expected a text file", name="missing")
    (tmp_path / "folder").mkdir()
    refused(r"folder: a folder, expected a text file", name="folder")
    for size in (1, 3, 2**18):
        monkeypatch.setattr(module, "READ", size)
        refused(r"text: not UTF-8 at byte 6 \(0xff: invalid start byte\)", "aé語".encode() + b"\xff aa")
        refused(r"text: not UTF-8 at byte 3 \(0xe8: unexpected end of data\)", b"aaa\xe8\xaa")
        refused(r"b.gz: not UTF-8 at byte 2 of the unpacked text", gzip.compress(b"aa\xff"), "b.gz")
    refused(r"c.gz: can't be read", b"aaa", "c.gz")
    refused(r"d.gz: can't be read", gzip.compress(b"abc" * 99)[:-9], "d.gz")
    refused(r"an empty corpus: no document of .*text has two tokens", b"")
    refused(r"an empty corpus: no document of .*text has two tokens", b"\n \n\na\n")
    refused(r"text:3: not a line of JSON", b'{"text": "ab c"}\n\n{"text"\n', documents="jsonl")
    says = r"text:1: expected an object with a text 'body', found the fields id, text"
    refused(says, b'{"id": 1, "text": "a"}', documents="jsonl", field="body")
    refused(r"text:1: expected an object with a text 'text', found list", b"[1]", documents="jsonl")
    refused(r"documents 'word': expected one of line, file, blank line, jsonl", b"abc", documents="word")
    refused(r"processes 0: expected 1 or more", b"abc", processes=0)
    refused(r"most_pairs 0: expected 1 or more", b"abc", most_pairs=0)
    with pytest.raises(InputError, match=r"an empty corpus: no file was given"):
        count_bigrams([], tokenizer)


def test_a_byte_order_mark_is_no_text(tmp_path, tokenizer):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfcc")
    check(count_bigrams(tmp_path / "a", tokenizer), ["cc"], tokenizer)


def test_bad_files_of_bigrams_are_refused(tmp_path, tokenizer):
    (tmp_path / "text").write_text("abc cab")
    good = count_bigrams(tmp_path / "text", tokenizer)
    path = tmp_path / "saved"
    with pytest.raises(InputError, match=r"saved: not a readable file of bigrams"):
        Bigrams.load(path)
    path.write_bytes(b"x" * 100)
    with pytest.raises(InputError, match=r"saved: not a readable file of bigrams"):
        Bigrams.load(path)
    arrays = {name: getattr(good, name) for name in ("suffix", "prefix", "count", "unigram")}
    metadata = {"bigrams": json.dumps({"documents": 1, "tokens": good.tokens, "cuts": 0})}
    for changed, about, says in (
        ({}, None, r"not a file of bigrams \(KeyError"),
        ({}, {"bigrams": "[]"}, r"not a file of bigrams \(TypeError"),
        ({"count": good.count.astype(np.int32)}, metadata, r"not a file of bigrams: expected .*found"),
        ({"suffix": good.suffix[::-1].copy()}, metadata, r"out of order or out of range"),
        ({"prefix": good.prefix + 10**6}, metadata, r"out of order or out of range"),
        ({"count": good.count[1:].copy()}, metadata, r"out of order or out of range"),
        ({"unigram": good.unigram * 2}, metadata, r"out of order or out of range"),
    ):
        save_file({**arrays, **changed}, path, metadata=about)
        with pytest.raises(InputError, match=says):
            Bigrams.load(path)
    save_file(arrays, path, metadata=metadata)
    assert same(Bigrams.load(path), good)


def test_tokens_of_gpt2(tmp_path, tokenizer_gpt2):
    """Within documents only, and a name in one document of a real vocabulary."""
    (tmp_path / "a").write_text("Michael Jackson\nJackson Michael Jackson\n")
    gpt2 = AutoTokenizer.from_pretrained(tokenizer_gpt2)
    found = count_bigrams(tmp_path / "a", gpt2)
    michael, jackson = (gpt2(f" {name}")["input_ids"][0] for name in ("Michael", "Jackson"))
    start = gpt2("Michael")["input_ids"]
    prefixes, counts = found.prefixes(jackson)
    assert dict(zip(prefixes.tolist(), counts.tolist(), strict=True)) == {start[-1]: 1, michael: 1}
    assert len(found.unigram) == len(gpt2)
