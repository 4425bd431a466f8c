"""Writing into a run folder: a file is whole or it is not there.

Each file is written under a temporary name *in the same folder* (a rename across file systems is a copy, and a copy can
be cut in half), flushed to the disk, and renamed over the final name. The rename is the only moment at which the
folder changes, and the file system makes it atomic. A process killed between two renames leaves the older state plus,
at worst, one temporary file, which the next `Run.open` removes.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from inscape.errors import InputError

_TEMPORARY_SUFFIX = ".inscape-tmp"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class RunWriteError(InputError):
    """A run folder could not be written: the disk is full, read-only or failing. What was there before is untouched."""


def explain(error: OSError, path: Path) -> RunWriteError:
    """The one-line message for an `OSError` met while writing `path`."""
    if error.errno in _FULL:
        return RunWriteError(
            f"no space left for {path} ({error.strerror}): nothing half-written was left behind; "
            "free some space and run the same command again, it goes on from here"
        )
    return RunWriteError(f"cannot write {path}: {error.strerror or error}; a writable folder was expected")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it and rename it over `path`, otherwise remove it.

    Raises:
        RunWriteError: on any `OSError` (disk full, no permission, ...). `path` then holds what it held before.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except OSError as error:
        raise explain(error, path) from error
    finally:
        # After a successful rename there is nothing to remove; after any failure the partial file must go.
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically. Raises RunWriteError."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write `content` to `path` atomically, as UTF-8. Raises RunWriteError."""
    # A lone surrogate (a model can print half an emoji) has no UTF-8 form; it becomes "?" rather than an exception.
    write_bytes(path, content.encode("utf-8", errors="replace"))


def remove_leftovers(folder: Path) -> int:
    """Remove the temporary files that a killed process left anywhere under `folder`; returns how many there were."""
    leftovers = [path for path in folder.rglob(f".*{_TEMPORARY_SUFFIX}") if path.is_file()]
    for path in leftovers:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
    return len(leftovers)


def _flush_folder(folder: Path) -> None:
    # The rename itself lives in the folder's entry: without this a power cut may undo it after a later stage was
    # already marked done.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot flush a folder; the file itself is already safe.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)
