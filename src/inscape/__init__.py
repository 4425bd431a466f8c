"""Inscape: a workbench for what a language model knows, where it is, and what happens when it is changed.

>>> import inscape
>>> lm = inscape.load("path/or/hub-id")  # doctest: +SKIP
"""

from importlib.metadata import version

from inscape import attention
from inscape.errors import InputError
from inscape.models import (
    KL,
    LM,
    SITES,
    Activations,
    ActivationStore,
    Donors,
    Edit,
    EditError,
    Generated,
    Grid,
    LogitDifference,
    Logits,
    ModelCheckError,
    NonFiniteError,
    Probability,
    Rerun,
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
    "KL",
    "LM",
    "SITES",
    "ActivationStore",
    "Activations",
    "Donors",
    "Edit",
    "EditError",
    "Generated",
    "Grid",
    "InputError",
    "LogitDifference",
    "Logits",
    "ModelCheckError",
    "NonFiniteError",
    "Probability",
    "Rerun",
    "Window",
    "ablate",
    "add",
    "attention",
    "load",
    "project",
    "scale",
    "set_",
]
