"""Progress that suits whoever is watching: a bar on a terminal, a line now and then in a log, nothing when quiet.

All of it goes to stderr, so that what a command prints on stdout can be piped.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")
Advance = Callable[[int], None]

_SECONDS_BETWEEN_LINES = 10.0


class ProgressReporter:
    """Shows any number of loops, nested or not, on one display.

    Args:
        quiet: show nothing at all.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._console = Console(stderr=True)
        self._display: Progress | None = None
        self._loops = 0

    @contextlib.contextmanager
    def loop(self, description: str, total: int | None = None) -> Iterator[Advance]:
        """Show one loop while the block runs; yields `advance(steps)`."""
        if self.quiet:
            yield lambda steps: None
        elif self._console.is_terminal:
            with self._bar(description, total) as advance:
                yield advance
        else:
            yield _lines(description, total)

    def track(self, iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """Yield from `iterable`, showing how far it is; `total` defaults to its length where it has one."""
        if total is None and isinstance(iterable, Sized):
            total = len(iterable)
        with self.loop(description, total) as advance:
            for item in iterable:
                yield item
                advance(1)

    @contextlib.contextmanager
    def _bar(self, description: str, total: int | None) -> Iterator[Advance]:
        # One live display for all loops: two at once would overwrite each other's lines.
        if self._display is None:
            self._display = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._display.start()
        display = self._display
        task = display.add_task(description, total=total)
        self._loops += 1
        try:
            yield lambda steps: display.advance(task, steps)
        finally:
            display.remove_task(task)
            self._loops -= 1
            if self._loops == 0:
                display.stop()
                self._display = None


def _lines(description: str, total: int | None) -> Advance:
    started = last = time.monotonic()
    done = 0

    def advance(steps: int) -> None:
        nonlocal done, last
        done += steps
        now = time.monotonic()
        if now - last < _SECONDS_BETWEEN_LINES:
            return
        last = now
        passed = now - started
        if total:
            left = passed / done * (total - done) if done else 0.0
            line = f"{description}: {done}/{total} ({done / total:.0%}) after {passed:.0f} s, about {left:.0f} s left"
        else:
            line = f"{description}: {done} after {passed:.0f} s"
        print(line, file=sys.stderr, flush=True)

    return advance
