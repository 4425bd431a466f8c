"""Text files as a stream of documents: plain text, JSON lines, either of them compressed with gzip.

A ``.jsonl`` line is one document, its text under ``text`` (the form of most corpora); any other file is plain text, in
which an empty line ends a document, so that a file of any size is read in little memory. A text that is not UTF-8 is
refused with its file and offset rather than read with replacement signs, which would be counted as words.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from inscape.errors import InputError


def read_documents(files: Sequence[str | Path]) -> Iterator[str]:
    """The documents of the files, in order, as they are written; empty ones are passed over.

    Raises:
        InputError: a file that is missing, is not UTF-8 (named with the byte offset) or holds a line that is no document.
    """
    for file in map(Path, files):
        yield from _json_lines(file) if _kind(file) == ".jsonl" else _paragraphs(file)


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


def _kind(file: Path) -> str:
    """``.jsonl`` or ``.txt``."""
    name = file.name.removesuffix(".gz")
    return ".jsonl" if name.endswith((".jsonl", ".ndjson")) else ".txt"


def _opened(file: Path) -> IO[bytes] | gzip.GzipFile:
    return gzip.open(file) if file.suffix == ".gz" else file.open("rb")


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of each line, without its end."""
    offset = 0
    try:
        with _opened(file) as stream:
            for number, line in enumerate(stream, 1):
                try:
                    yield number, line.decode("utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    raise InputError(
                        f"corpus {file}: not UTF-8 at byte {offset + error.start} (line {number}, byte "
                        f"0x{line[error.start]:02x}), expected UTF-8 text"
                    ) from error
                offset += len(line)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"corpus {file}: not a whole gzip file ({error})") from error
    except OSError as error:
        raise InputError(f"corpus {file}: {error.strerror}, expected a text file") from error


def _json_lines(file: Path) -> Iterator[str]:
    for number, line in _lines(file):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(
                f"corpus {file}, line {number}: not JSON ({error}), expected an object with text"
            ) from error
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise InputError(f"corpus {file}, line {number}: expected an object with a text under the key text")
        if row["text"].strip():
            yield row["text"]


def _paragraphs(file: Path) -> Iterator[str]:
    held: list[str] = []
    for _, line in _lines(file):
        if line.strip():
            held.append(line)
        elif held:
            yield "\n".join(held)
            held = []
    if held:
        yield "\n".join(held)
