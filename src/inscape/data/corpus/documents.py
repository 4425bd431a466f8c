"""Text files as a stream of documents: plain text, JSON lines, either of them compressed with gzip.

A ``.jsonl`` line is one document, its text under ``text`` (the form of most corpora); any other file is plain text, in
which an empty line ends a document, so that a file of any size is read in little memory. A text that is not UTF-8 is
refused with its file and offset rather than read with replacement signs, which would be counted as words.

A `Document` is a text that knows where it is from: its id, its language and its source.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from inscape.errors import InputError


@dataclass(frozen=True, slots=True)
class Document:
    """One text. ``language`` is a BCP 47-like code (``en``, ``zh-Hant``), or ``code`` for source code."""

    id: str
    language: str
    source: str
    text: str


def read_documents(files: Sequence[str | Path]) -> Iterator[str]:
    """The texts of the files' documents, in order, as they are written; empty ones are passed over.

    Raises:
        InputError: a file that is missing, is not UTF-8 (named with the byte offset) or holds a line that is no document.
    """
    for file in map(Path, files):
        texts: Iterator[str] = paragraphs(file)
        if _kind(file) == ".jsonl":
            texts = (json_row(line, f"corpus {file}, line {number}")["text"] for number, line in json_lines(file))
        yield from (text for text in texts if text.strip())


def read_rows(files: Sequence[str | Path]) -> Iterator[Document]:
    """The documents of JSON lines ``{"id", "lang", "source", "text"}``, in order, empty ones too.

    Raises:
        InputError: as `read_documents`, and a line without one of the four.
    """
    for file in map(Path, files):
        for number, line in json_lines(file):
            row = json_row(line, where := f"corpus {file}, line {number}")
            if missing := [key for key in ("id", "lang", "source") if not isinstance(row.get(key), str)]:
                raise InputError(f"{where}: no text under the key {missing[0]}, expected id, lang, source and text")
            yield Document(row["id"], row["lang"], row["source"], row["text"])


def corpus_hash(files: Sequence[str | Path]) -> str:
    """SHA-256 of the files' contents, in order; names and places don't count.

    Raises:
        InputError: no file, or one that can't be read.
    """
    if not files:
        raise InputError("corpus: no files, expected at least one text file")
    digest = hashlib.sha256()
    for file in map(Path, files):
        try:
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest() + _kind(file).encode())
        except OSError as error:
            raise InputError(f"corpus {file}: {error.strerror}, expected a text file") from error
    return digest.hexdigest()


def raw_lines(file: Path) -> Iterator[bytes]:
    """The lines of a file, unpacked, as bytes with their ends. Raises InputError where it can't be read."""
    try:
        with _opened(file) as stream:
            yield from stream
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"corpus {file}: not a whole gzip file ({error})") from error
    except OSError as error:
        raise InputError(f"corpus {file}: {error.strerror}, expected a text file") from error


def decoded(lines: Iterable[bytes], file: Path, *, first: int = 1, offset: int = 0) -> Iterator[tuple[int, str]]:
    """Number and text of each line, without its end; ``first`` and ``offset`` (bytes) say where the lines begin.

    Raises:
        InputError: a line that is not UTF-8.
    """
    for number, line in enumerate(lines, first):
        try:
            yield number, line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(
                f"corpus {file}: not UTF-8 at byte {offset + error.start} (line {number}, byte "
                f"0x{line[error.start]:02x}), expected UTF-8 text"
            ) from error
        offset += len(line)


def json_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line that is not empty. Raises InputError."""
    return ((number, line) for number, line in decoded(raw_lines(file), file) if line.strip())


def json_row(line: str, where: str) -> dict[str, Any]:
    """The object of a JSON line, with a text under ``text``. Raises InputError, which begins with ``where``."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({error}), expected an object with text") from error
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise InputError(f"{where}: expected an object with a text under the key text")
    return row


def paragraphs(file: Path) -> Iterator[str]:
    """The documents of a plain text file: runs of lines that are not empty. Raises InputError."""
    held: list[str] = []
    for _, line in decoded(raw_lines(file), file):
        if line.strip():
            held.append(line)
        elif held:
            yield "\n".join(held)
            held = []
    if held:
        yield "\n".join(held)


def _kind(file: Path) -> str:
    """``.jsonl`` or ``.txt``."""
    name = file.name.removesuffix(".gz")
    return ".jsonl" if name.endswith((".jsonl", ".ndjson")) else ".txt"


def _opened(file: Path) -> IO[bytes] | gzip.GzipFile:
    return gzip.open(file) if file.suffix == ".gz" else file.open("rb")
