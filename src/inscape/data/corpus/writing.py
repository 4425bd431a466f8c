"""Files of a corpus are whole or not there: written under a temporary name, flushed, renamed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from inscape.errors import InputError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def whole(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it takes its place, otherwise it is removed.

    Args:
        flush: wait until the disk has it. Without, a power cut (not a kill) may leave it empty: for what is made again.

    Raises:
        InputError: it can't be written (no space, no permission); what stood there before is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if flush:
            with temporary.open("rb+") as written:
                os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        _remove(temporary)
        again = "; free some space and run the same command again, it goes on" if error.errno in _FULL else ""
        raise InputError(f"cannot write {path}: {error.strerror or error}{again}") from error
    except BaseException:
        _remove(temporary)
        raise


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def flush(folder: Path) -> None:
    """Wait until the disk has all files of a folder (much faster than one by one as they are written)."""
    for file in folder.iterdir():
        with file.open("rb+") as written:
            os.fsync(written.fileno())


def write_json(path: Path, content: Mapping[str, Any], *, flush: bool = True) -> None:
    with whole(path, flush=flush) as temporary:
        temporary.write_text(
            json.dumps(content, ensure_ascii=False, indent=1 if flush else None) + "\n", encoding="utf-8"
        )


def write_array(path: Path, array: np.ndarray) -> None:
    """Not flushed."""
    with whole(path, flush=False) as temporary, temporary.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)


def read_json(path: Path, expected: str) -> dict[str, Any]:
    """An object. Raises InputError, which says that ``expected`` was expected."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}), expected {expected}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, expected {expected}")
    return content
