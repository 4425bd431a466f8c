"""Model and optimizer of a training run on disk, through `torch.distributed.checkpoint`.

Each process writes the pieces of tensors that it holds, and any number of processes reads them back, each the pieces that
it needs: a run may go on with another layout. The index (``.metadata``) is written last, by the first process: a folder
without it is torn, and refused. Who calls this gives a folder its name only when it is whole.

Failure: when one process can't write, all of them raise. A state of another model (other names or shapes) is refused with
the first difference. torch unpickles the index of a state: read only states that you wrote.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from inscape.errors import InputError
from inscape.runs.writing import explain

# One entry per parameter name, so that the optimizer's groups may differ between the run that saved and the one that loads.
_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def save_state(model: nn.Module, optimizer: Optimizer, folder: Path) -> None:
    """Write model and optimizer into `folder`, flushed to the disk; all processes must call it together.

    Raises:
        RunWriteError: in every process, if one of them could not write; `folder` is then torn.
    """
    state: dict[str, Any] = {"model": get_model_state_dict(model)}
    # Before its first step an optimizer has no state, and being asked for one it would count a step.
    if optimizer.state:
        state["optimizer"] = get_optimizer_state_dict(model, optimizer, options=_FLAT)
    with _quiet():
        try:
            dcp.save(state, storage_writer=dcp.FileSystemWriter(folder), no_dist=not dist.is_initialized())
        except (Exception, CheckpointException) as error:
            for cause in _causes(error):
                if isinstance(cause, OSError):
                    raise explain(cause, folder) from error
            raise


def load_state(model: nn.Module, optimizer: Optimizer, folder: Path) -> None:
    """Read model and optimizer back, in place; all processes must call it together.

    Raises:
        InputError: `folder` is torn, damaged, or the state of another model.
    """
    if not (folder / ".metadata").is_file():
        raise InputError(f"{folder}: no complete training state, expected the folder of a step")
    with _quiet():
        try:
            saved = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
        except (Exception, CheckpointException) as error:
            raise _damaged(folder, error) from error
        state: dict[str, Any] = {"model": get_model_state_dict(model)}
        _same_model(folder, state["model"], saved)
        if any(name.startswith("optimizer.") for name in saved):
            state["optimizer"] = get_optimizer_state_dict(model, optimizer, options=_FLAT)
        try:
            dcp.load(state, storage_reader=dcp.FileSystemReader(folder), no_dist=not dist.is_initialized())
        except (Exception, CheckpointException) as error:
            raise _damaged(folder, error) from error
    set_model_state_dict(model, state["model"])
    if "optimizer" in state:
        set_optimizer_state_dict(model, optimizer, state["optimizer"], options=_FLAT)


def _same_model(folder: Path, ours: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    theirs = {name.removeprefix("model."): entry for name, entry in saved.items() if name.startswith("model.")}
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in theirs:
            raise InputError(f"{folder}: the state of another model, it has no {name}")
        if name not in ours:
            raise InputError(f"{folder}: the state of another model, this one has no {name}")
        there, here = tuple(theirs[name].size), tuple(ours[name].shape)
        if there != here:
            raise InputError(f"{folder}: the state of another model, {name} is {there}, expected {here}")


def _damaged(folder: Path, error: BaseException) -> InputError:
    lines = [line for cause in _causes(error) for line in str(cause).splitlines() if line]
    return InputError(f"{folder}: a damaged training state ({lines[-1] if lines else type(error).__name__})")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was raised from; a `CheckpointException` holds one of each process that failed."""
    yield error
    for failure in getattr(error, "failures", {}).values():
        yield from _causes(failure[0])
    if error.__cause__ is not None:
        yield from _causes(error.__cause__)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # A single process is meant where there is one: torch warns that it takes it so.
        warnings.filterwarnings("ignore", message=".*in a single process.*")
        yield
