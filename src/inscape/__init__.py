"""Inscape: a workbench for what a language model knows, where it is, and what happens when it is changed.

>>> import inscape
>>> lm = inscape.load("path/or/hub-id")  # doctest: +SKIP
"""

from importlib.metadata import version

from inscape.errors import InputError
from inscape.models import (
    LM,
    SITES,
    Activations,
    Edit,
    EditError,
    ModelCheckError,
    NonFiniteError,
    Window,
    ablate,
    add,
    load,
    project,
    scale,
    set_,
)

__version__ = version("inscape")

__all__ = [
    "LM",
    "SITES",
    "Activations",
    "Edit",
    "EditError",
    "InputError",
    "ModelCheckError",
    "NonFiniteError",
    "Window",
    "ablate",
    "add",
    "load",
    "project",
    "scale",
    "set_",
]
