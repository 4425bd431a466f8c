"""One process per run folder.

The lock is an advisory `flock` on `.lock`, not the file's existence: the kernel drops it when the holder dies, however
it dies, so a killed run never has to be unlocked by hand and a recycled process id cannot fool anybody. The file's
text (host and process) only serves the message that a second process prints.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import warnings
from pathlib import Path

from inscape.errors import InputError
from inscape.runs.writing import explain

_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

# (process, folder) -> descriptor and number of holders. A notebook cell that opens its run a second time must not be
# refused by itself; the process id keeps a forked worker from believing that it holds its parent's lock.
_held: dict[tuple[int, Path], list[int]] = {}


class FolderLock:
    """The right to write one run folder; `release` gives it back, and so does the end of the process."""

    def __init__(self, folder: Path) -> None:
        """Take the lock of `folder` (an existing folder).

        Raises:
            InputError: another live process holds it.
            RunWriteError: the lock file cannot be written.
        """
        self._key = (os.getpid(), folder.resolve())
        self._released = False
        if self._key in _held:
            _held[self._key][1] += 1
            return
        path = folder / ".lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise explain(error, path) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS_HERE:
                warnings.warn(
                    f"{folder} is on a file system without locks: do not run two processes into it", stacklevel=3
                )
            else:
                holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
                os.close(descriptor)
                raise InputError(
                    f"{folder} is being written by {holder}: wait for it, stop it, or choose another folder"
                ) from error
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)
        except OSError as error:
            os.close(descriptor)
            raise explain(error, path) from error
        _held[self._key] = [descriptor, 1]

    @property
    def alone(self) -> bool:
        """Whether nobody else in this process holds the folder too; no other process does."""
        return self._key in _held and _held[self._key][1] == 1

    def release(self) -> None:
        """Give the lock back; calling it twice is harmless."""
        if self._released or self._key not in _held or self._key[0] != os.getpid():
            return
        self._released = True
        entry = _held[self._key]
        entry[1] -= 1
        if entry[1] == 0:
            os.close(entry[0])
            del _held[self._key]
