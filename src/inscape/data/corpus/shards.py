"""Token shards: a corpus encoded once, mapped into memory by whoever trains on it.

A part is what one language has in one split: the tokens of its documents on end, each document followed by the
end-of-sequence token, and the places where documents start. Parts are raw little-endian files, so that opening one costs
nothing and a reader holds only the pages that it touches::

    manifest.json                    the tokenizer's hash, the corpus' hash, sizes
    <split>/<lang>.tokens            uint16 where the vocabulary has at most 65,536 tokens, else uint32
    <split>/<lang>.starts            int64 [documents + 1]: document i is tokens[starts[i]:starts[i + 1]]
    <split>/<lang>.bytes             int64 [documents]: UTF-8 bytes of its text

A part that is done is not encoded again after a kill; the manifest is written last.
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inscape.data.corpus.corpus import SPLITS, Corpus, Split
from inscape.data.corpus.writing import read_json, whole, write_json
from inscape.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

Progress = Callable[[int], None]

FORMAT = "inscape token shards 1"
_BATCH = 1_000_000
"""Characters of text encoded at a time."""
_MANY_BYTES = 50_000_000
"""Text from which several processes are worth their start (they import torch)."""
_DTYPES = {"tokens": None, "starts": np.dtype("<i8"), "bytes": np.dtype("<i8")}


@dataclass(frozen=True)
class TokenPart:
    """One language in one split.

    Args:
        tokens: uint16 or uint32 ``[n]``, read only.
        starts: int64 ``[documents + 1]``; the last is ``n``.
        bytes: int64 ``[documents]``, UTF-8 bytes of the text (without the end-of-sequence token).
    """

    tokens: np.ndarray
    starts: np.ndarray
    bytes: np.ndarray

    @property
    def n_documents(self) -> int:
        return len(self.bytes)

    def document(self, i: int) -> np.ndarray:
        """The tokens of a document, end-of-sequence included."""
        return self.tokens[self.starts[i] : self.starts[i + 1]]


class TokenShards:
    """Reads a folder of `encode_corpus`; `TokenShards.open` makes one.

    Attributes:
        n_tokens, n_documents: over all parts.
        vocabulary: tokens of the tokenizer (a model may have more rows).
        eos_id: the token that ends each document.
        tokenizer_sha256: of the tokenizer's JSON.
        corpus_sha256: of the corpus.
        languages: codes, sorted.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.vocabulary: int = manifest["vocabulary"]
        self.eos_id: int = manifest["eos_id"]
        self.tokenizer_sha256: str = manifest["tokenizer_sha256"]
        self.corpus_sha256: str = manifest["corpus_sha256"]
        self.languages: list[str] = list(manifest["languages"])
        self._parts: dict[tuple[str, str], TokenPart] = {}

    @classmethod
    def open(cls, folder: str | Path) -> TokenShards:
        """Raises InputError where the folder is none of `encode_corpus`, or a file has another size than it should."""
        folder = Path(folder)
        manifest = read_json(folder / "manifest.json", "the manifest of token shards")
        if manifest.get("format") != FORMAT:
            raise InputError(f"{folder / 'manifest.json'}: not of token shards, expected format {FORMAT!r}")
        shards = cls(folder, manifest)
        for split in SPLITS:
            for language in shards.languages:
                for kind, count in _lengths(manifest["parts"][split][language]).items():
                    file, size = _file(folder, split, language, kind), count * shards._dtype(kind).itemsize
                    found = file.stat().st_size if file.is_file() else -1
                    if found != size:
                        raise InputError(
                            f"{file}: {'missing' if found < 0 else f'{found} bytes'}, expected {size} bytes"
                        )
        return shards

    @cached_property
    def n_tokens(self) -> int:
        return sum(row["tokens"] for parts in self.manifest["parts"].values() for row in parts.values())

    @cached_property
    def n_documents(self) -> int:
        return sum(row["documents"] for parts in self.manifest["parts"].values() for row in parts.values())

    def tokens_by_language(self, split: Split = "train") -> dict[str, int]:
        return {name: int(self.manifest["parts"][split][name]["tokens"]) for name in self.languages}

    def part(self, split: Split, language: str) -> TokenPart:
        """One language in one split, mapped on first use; a part may be empty. Raises InputError for an unknown one."""
        if (split, language) not in self._parts:
            if split not in SPLITS or language not in self.languages:
                raise InputError(
                    f"{self.folder}: no part {split}/{language}, expected train or validation and one of "
                    f"{', '.join(self.languages)}"
                )
            lengths = _lengths(self.manifest["parts"][split][language])
            arrays = {kind: self._mapped(split, language, kind, count) for kind, count in lengths.items()}
            self._parts[split, language] = TokenPart(**arrays)
        return self._parts[split, language]

    def _mapped(self, split: Split, language: str, kind: str, count: int) -> np.ndarray:
        if count == 0:  # (an empty file can't be mapped)
            return np.zeros(0, self._dtype(kind))
        return np.memmap(_file(self.folder, split, language, kind), self._dtype(kind), "r", shape=(count,))

    def _dtype(self, kind: str) -> np.dtype:
        return _DTYPES[kind] or np.dtype(self.manifest["dtype"])


def tokenizer_sha256(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 of the tokenizer's JSON: vocabulary, merges, pre-tokenizer."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def encode_corpus(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    out: str | Path,
    *,
    processes: int | None = None,
    progress: Progress | None = None,
) -> TokenShards:
    """Encode all documents of both splits, an end-of-sequence token after each; the same arrays for any ``processes``.

    A folder that holds the same corpus in the same tokens is opened, and one that was stopped goes on.

    Args:
        out: the folder; new, or one of an earlier call.
        processes: None is one per core from 50 MB of text on, else 1, which encodes in this process.
        progress: told the UTF-8 bytes that were encoded since the last call.

    Raises:
        InputError: the tokenizer has no end-of-sequence token or is not a fast one, or ``out`` holds something else.
    """
    out = Path(out)
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise InputError(f"tokenizer {type(tokenizer).__name__}: not a fast one, expected a PreTrainedTokenizerFast")
    if tokenizer.eos_token_id is None:
        raise InputError("tokenizer: no end-of-sequence token, expected one to end documents with (</s> in BLOOM's)")
    vocabulary = len(tokenizer)
    plan = {
        "format": FORMAT,
        "corpus_sha256": corpus.sha256,
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
        "vocabulary": vocabulary,
        "eos_id": int(tokenizer.eos_token_id),
        "dtype": "<u2" if vocabulary <= 1 << 16 else "<u4",
        "languages": corpus.languages,
    }
    if (out / "manifest.json").exists():
        shards = TokenShards.open(out)
        if changed := [key for key, value in plan.items() if shards.manifest[key] != value]:
            raise InputError(
                f"{out}: holds other token shards ({changed[0]} differs), expected a new or an empty folder"
            )
        return shards
    if (out / "plan.json").exists():
        begun = read_json(out / "plan.json", "the plan of token shards")
        if changed := [key for key, value in plan.items() if begun.get(key) != value]:
            raise InputError(f"{out}: was begun for others ({changed[0]} differs), expected a new or an empty folder")
    elif out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise InputError(f"{out}: holds other files, expected a new or an empty folder")
    else:
        write_json(out / "plan.json", plan)
    if processes is None and sum(sum(corpus.bytes_by_language(split).values()) for split in SPLITS) < _MANY_BYTES:
        processes = 1
    parts: dict[str, dict[str, Any]] = {split: {} for split in SPLITS}
    with _encoder(tokenizer, processes) as encode:
        for language in corpus.languages:
            for split in SPLITS:
                done = out / split / f"{language}.json"
                if not done.exists():
                    texts = (document.text for document in corpus.documents([language], split))
                    write_json(done, _encode_part(texts, encode, out, split, language, plan, progress))
                elif progress is not None:
                    progress(corpus.bytes_by_language(split)[language])
                parts[split][language] = read_json(done, "the sizes of a part")
    write_json(out / "manifest.json", {**plan, "parts": parts})
    for split in SPLITS:
        for language in corpus.languages:
            (out / split / f"{language}.json").unlink()
    (out / "plan.json").unlink()
    return TokenShards.open(out)


Encoded = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Tokens of a batch (uint32), tokens of each document with its end, UTF-8 bytes of each."""
Encode = Callable[[Iterator[str]], Iterator[Encoded]]


def _encode_part(
    texts: Iterator[str],
    encode: Encode,
    out: Path,
    split: str,
    language: str,
    plan: dict[str, Any],
    progress: Progress | None,
) -> dict[str, int]:
    n_tokens = n_documents = n_bytes = 0
    with contextlib.ExitStack() as stack:
        streams = {
            kind: stack.enter_context(stack.enter_context(whole(_file(out, split, language, kind))).open("wb"))
            for kind in _DTYPES
        }
        streams["starts"].write(np.zeros(1, "<i8").tobytes())
        for tokens, lengths, sizes in encode(texts):
            streams["tokens"].write(tokens.astype(plan["dtype"]).tobytes())
            streams["starts"].write((n_tokens + np.cumsum(lengths)).astype("<i8").tobytes())
            streams["bytes"].write(sizes.astype("<i8").tobytes())
            n_tokens, n_documents = n_tokens + len(tokens), n_documents + len(sizes)
            n_bytes += (more := int(sizes.sum()))
            if progress is not None:
                progress(more)
    return {"tokens": n_tokens, "documents": n_documents, "bytes": n_bytes}


@contextlib.contextmanager
def _encoder(tokenizer: PreTrainedTokenizerFast, processes: int | None) -> Iterator[Encode]:
    n = processes or os.cpu_count() or 1
    content, eos = tokenizer.backend_tokenizer.to_str(), int(tokenizer.eos_token_id)
    if n == 1:
        _start(content, eos)
        yield lambda texts: map(_encode, _batches(texts))
        return
    # spawn: a fork of a process with threads (torch, tokenizers) can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n, mp_context=context, initializer=_start, initargs=(content, eos, True)) as pool:

        def encode(texts: Iterator[str]) -> Iterator[Encoded]:
            waiting: deque[Future[Encoded]] = deque()
            for batch in _batches(texts):
                waiting.append(pool.submit(_encode, batch))
                if len(waiting) > 2 * n:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

        yield encode


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    held: list[str] = []
    size = 0
    for text in texts:
        held.append(text)
        size += len(text)
        if size >= _BATCH:
            yield held
            held, size = [], 0
    if held:
        yield held


_TOKENIZER: tuple[Tokenizer, int] | None = None


def _start(content: str, eos: int, alone: bool = False) -> None:
    """``alone``: one thread, where other processes use the other cores."""
    from tokenizers import Tokenizer

    global _TOKENIZER
    if alone:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    backend = Tokenizer.from_str(content)
    backend.encode_special_tokens = True  # (a text that spells a special token is text)
    backend.no_truncation()
    backend.no_padding()
    _TOKENIZER = backend, eos


def _encode(texts: list[str]) -> Encoded:
    assert _TOKENIZER is not None
    backend, eos = _TOKENIZER
    found = [[*encoding.ids, eos] for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
    lengths = np.array([len(ids) for ids in found], np.int64)
    tokens = np.fromiter((i for ids in found for i in ids), np.uint32, int(lengths.sum()))
    return tokens, lengths, np.array([len(text.encode("utf-8", "surrogatepass")) for text in texts], np.int64)


def _file(folder: Path, split: str, language: str, kind: str) -> Path:
    return folder / split / f"{language}.{kind}"


def _lengths(row: dict[str, int]) -> dict[str, int]:
    return {"tokens": row["tokens"], "starts": row["documents"] + 1, "bytes": row["documents"]}
