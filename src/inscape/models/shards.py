"""One shard of an activation store: a safetensors file that is filled row by row, in any order, and never held in memory.

A *row* is one token of one prompt. A *column* is one tensor of the shard, whose first axis is the row: five that say
which token it is (:data:`INDEX`), and one per captured site and layer. Every shard of a store but the last holds the
same number of rows, so the place of each row in the file is known before anything is computed: rows go straight to their
place with ``pwrite``, and the header, whose size is reserved, is written last. The last shard is shorter; its columns are
moved together when it is closed.

A shard is written under a temporary name, flushed to the disk and renamed: under its own name it is whole. What can go
wrong is the disk; :func:`explained` says so with the file's name.
"""

import contextlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from inscape.errors import InputError

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8",
}  # fmt: skip
"""What safetensors calls the dtypes that a shard may hold."""

PART = ".part"
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Column:
    """One tensor of a shard: its dtype, and the shape of one row of it (``()`` for a number per row)."""

    dtype: torch.dtype
    shape: tuple[int, ...] = ()

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))


INDEX = {
    "prompt": Column(torch.int64),
    "position": Column(torch.int32),
    "start": Column(torch.int32),
    "end": Column(torch.int32),
    "token": Column(torch.int32),
}
"""Which token a row is: the prompt's number, the token's index in the unpadded prompt, its characters ``[start, end)`` in
the text (-1 where the prompt was ids, or the tokenizer has no offsets), its id."""


@dataclass(frozen=True)
class Layout:
    """Where things are in a shard: ``columns`` by name, and ``capacity``, the rows of every shard but the last."""

    columns: Mapping[str, Column]
    capacity: int

    @property
    def order(self) -> list[str]:
        """Columns in the order of the file: wide elements first, so that every column starts aligned."""
        return sorted(self.columns, key=lambda name: -self.columns[name].dtype.itemsize)

    @property
    def header_bytes(self) -> int:
        """Bytes before the data, the same in every shard."""
        longest = self._json(self.capacity, 10**18, 10**18)
        return 8 + -(-len(longest) // 8) * 8

    def header(self, rows: int, first_row: int, id_bytes: int | None) -> bytes:
        """The first :attr:`header_bytes` bytes of a shard: a safetensors header, filled up with blanks."""
        size = self.header_bytes - 8
        return size.to_bytes(8, "little") + self._json(rows, first_row, id_bytes).ljust(size)

    def offsets(self, rows: int) -> dict[str, int]:
        """The byte in the file where each column of a shard of ``rows`` rows begins; ``""`` is the end of the last."""
        at, result = self.header_bytes, {}
        for name in self.order:
            result[name] = at
            at += rows * self.columns[name].row_bytes
        return {**result, "": at}

    def _json(self, rows: int, first_row: int, id_bytes: int | None) -> bytes:
        entries: dict[str, Any] = {"__metadata__": {"format": "inscape activations", "first_row": str(first_row)}}
        at = 0
        for name in self.order:
            column = self.columns[name]
            end = at + rows * column.row_bytes
            entries[name] = {"dtype": DTYPES[column.dtype], "shape": [rows, *column.shape], "data_offsets": [at, end]}
            at = end
        if id_bytes is not None:
            entries["prompt_ids"] = {"dtype": "U8", "shape": [id_bytes], "data_offsets": [at, at + id_bytes]}
        return json.dumps(entries, separators=(",", ":")).encode()


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.safetensors"


class OpenShard:
    """A shard that is being filled, under its temporary name."""

    def __init__(self, folder: Path, number: int, layout: Layout) -> None:
        self.path = folder / shard_name(number)
        self.layout = layout
        self._part = self.path.with_name(self.path.name + PART)
        self._offsets = layout.offsets(layout.capacity)
        with explained(self.path):
            self._file: int = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)

    def write(self, name: str, row: int, content: np.ndarray) -> None:
        """Put rows (a C-contiguous array) of one column where they belong, beginning at the shard's row ``row``."""
        with explained(self.path):
            self._put(content.data.cast("B"), self._offsets[name] + row * self.layout.columns[name].row_bytes)

    def close(self, rows: int, first_row: int, ids: bytes | None) -> dict[str, Any]:
        """Make it a whole file under its own name; ``file``, ``rows``, ``bytes``, ``crc32`` and ``id_bytes`` of it."""
        with explained(self.path):
            if rows < self.layout.capacity:
                self._move_together(rows)
            end = self.layout.offsets(rows)[""]
            os.ftruncate(self._file, end)
            if ids is not None:
                self._put(memoryview(ids), end)
                end += len(ids)
            self._put(memoryview(self.layout.header(rows, first_row, None if ids is None else len(ids))), 0)
            crc = checksum(self._file)
            os.fsync(self._file)
            self._close_file()
            os.replace(self._part, self.path)
            flush_folder(self.path.parent)
        return {
            "file": self.path.name, "rows": rows, "first_row": first_row, "bytes": end, "crc32": crc,
            "id_bytes": None if ids is None else len(ids),
        }  # fmt: skip

    def discard(self) -> None:
        """Leave nothing of it."""
        self._close_file()
        self._part.unlink(missing_ok=True)

    def _close_file(self) -> None:
        if self._file >= 0:  # (never twice: the number may be another file's by then)
            file, self._file = self._file, -1
            os.close(file)

    def _move_together(self, rows: int) -> None:
        new = self.layout.offsets(rows)
        for name in self.layout.order:
            size, done = rows * self.layout.columns[name].row_bytes, 0
            while done < size:  # always towards the beginning of the file, so nothing is written over before it is read
                block = os.pread(self._file, min(_BLOCK, size - done), self._offsets[name] + done)
                self._put(memoryview(block), new[name] + done)
                done += len(block)

    def _put(self, content: memoryview, at: int) -> None:
        while content:
            written = os.pwrite(self._file, content, at)
            content, at = content[written:], at + written


def checksum(file: int) -> int:
    """CRC-32 of a whole open file."""
    crc = at = 0
    while block := os.pread(file, _BLOCK, at):
        crc, at = zlib.crc32(block, crc), at + len(block)
    return crc


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file as a whole: a reader sees the old one or the new one."""
    part = path.with_name(path.name + PART)
    with explained(path):
        with part.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Flush a folder's entries: a rename is on the disk only then. (Some network file systems have no such thing.)"""
    file = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(file)
    finally:
        os.close(file)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` into an :class:`InputError` that names the file."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; the shards before it are whole, and the same call goes on "
            "from there"
        ) from error
