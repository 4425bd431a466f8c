"""The folder of a training run: what it belongs to, and the states from which it goes on.

A state is a folder `state/step-N`, written as `state/step-N.part` and renamed when all processes have written their pieces
and everything is on the disk. So a folder of that name is whole, the last one counts, and a `.part` is rubbish of a kill.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from inscape.errors import InputError
from inscape.runs.manifest import differences, plain, versions
from inscape.runs.writing import explain, write_text
from inscape.training.parallel import Parallel

FORMAT = "inscape training 1"
_STATE = re.compile(r"step-(\d+)")


def checked_identity(folder: Path, identity: Mapping[str, Any], parallel: Parallel) -> None:
    """Write `training.json`, or compare with the one that is there.

    Raises:
        InputError: the folder belongs to another run (the message names what differs), or its file is damaged.
        RunWriteError: it can't be written.
    """
    asked = plain(dict(identity))
    path = folder / "training.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        before = found["identity"] if found.get("format") == FORMAT else None
    except FileNotFoundError:
        if parallel.is_first:
            content = {"format": FORMAT, "identity": asked, "versions": versions()}
            write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        return
    except (OSError, ValueError, AttributeError, KeyError) as error:
        raise InputError(
            f"{path}: not readable ({type(error).__name__}: {error}), expected the record of a run"
        ) from None
    if before is None:
        raise InputError(f"{path}: format {found.get('format')!r}, expected {FORMAT!r}")
    if changed := differences(before, asked):
        raise InputError(f"{folder} holds another run, which differs in {'; '.join(changed)}: choose another folder")


def agreed(parallel: Parallel, value: int) -> int:
    """What the first process says, in all of them."""
    if parallel.world == 1:
        return value
    told = torch.tensor(value, device=parallel.device)
    dist.broadcast(told, 0)
    return int(told)


def latest_state(folder: Path) -> int | None:
    """The number of steps after which the last whole state was written; None where there is none."""
    states = folder / "state"
    if not states.is_dir():
        return None
    return max((int(named[1]) for path in states.iterdir() if (named := _STATE.fullmatch(path.name))), default=None)


def save_run(
    folder: Path, step: int, counters: Mapping[str, Any], model: nn.Module, optimizer: Optimizer, parallel: Parallel
) -> None:
    """Write the state after `step` steps and remove older ones; all processes must call it together.

    Raises:
        RunWriteError: it can't be written (disk full). The state before is still there, and what was half written is not.
    """
    final = folder / "state" / f"step-{step}"
    part = final.with_name(final.name + ".part")
    try:
        if parallel.is_first:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        parallel.barrier()
        parallel.save(model, optimizer, part)
        if parallel.is_first:
            write_text(part / "counters.json", json.dumps(counters) + "\n")
            os.replace(part, final)
    except (OSError, InputError) as error:
        if parallel.is_first:
            shutil.rmtree(part, ignore_errors=True)
        raise explain(error, final) if isinstance(error, OSError) else error from error
    if parallel.is_first:
        for old in (folder / "state").iterdir():
            if old != final:
                shutil.rmtree(old, ignore_errors=True)
    parallel.barrier()


def load_run(folder: Path, step: int, model: nn.Module, optimizer: Optimizer, parallel: Parallel) -> dict[str, Any]:
    """Read the state after `step` steps into model and optimizer; returns its counters. All processes must call it.

    Raises:
        InputError: it is damaged, or of another model.
    """
    path = folder / "state" / f"step-{step}"
    try:
        counters = json.loads((path / "counters.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: a damaged training state ({error}); remove it to start from scratch") from error
    parallel.load(model, optimizer, path)
    return counters
