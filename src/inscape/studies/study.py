"""What the command line needs to know of a study."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inscape.runs import Page, Run, RunFolder


@dataclass(frozen=True)
class Study:
    """How the command line sees a study, or a command that makes something and reports on it."""

    name: str
    title: str
    paper: str
    config: type[Any]
    smoke: Mapping[str, Any]
    facts: Callable[[Any], Any]
    inputs: Callable[[Any, Any], dict[str, str]]
    run: Callable[[Any, Any, Run], None]
    figures: Callable[[RunFolder], Mapping[str, Any]]
    page: Callable[[RunFolder], Page]
    follow: Callable[[Any, Any, Path], None] | None = None  # what the other processes of a launch (torchrun) do
