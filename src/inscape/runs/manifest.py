"""What a run folder says about itself: study, config, seed, inputs, versions, platform, stages.

The manifest is the only file that is rewritten during a run, and the only one that says that a stage is done. Keys:

- `format`, `study`, `config`, `seed`, `inputs` (name -> hash): what was asked for; a folder that was made for
  anything else is refused.
- `versions`, `platform`, `command`, `started`, `finished`: how it was made.
- `stages`: name -> `{kind, files: {path: sha256}, seconds, finished}`.
- `figures`: names in the order drawn. `record`: facts the study adds (model hash, dtype, attention kernel, ...).
- `resumed`: one entry per later session, with the versions that had changed by then.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inscape.errors import InputError

FORMAT = "inscape-run/1"
_LIBRARIES = (
    "inscape", "torch", "transformers", "tokenizers", "safetensors", "scikit-learn", "scipy", "numpy", "polars",
    "altair", "vl-convert-python",
)  # fmt: skip


def now() -> str:
    """The present moment in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str | None]:
    """Installed versions by distribution name, read from metadata (nothing is imported); None where not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def machine() -> dict[str, str | int | None]:
    """Operating system, architecture and number of cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"system": platform.platform(), "architecture": platform.machine(), "cores": cores}


def command() -> str:
    """The command line of this process, as it could be typed again."""
    program = Path(sys.argv[0]).name or "python"
    return shlex.join([*(["python"] if program.endswith(".py") else []), program, *sys.argv[1:]])


def plain(value: Any) -> Any:
    """`value` as JSON would give it back: tuples become lists, paths and enums text, keys text.

    Comparing configs in this form keeps a tuple and the list it was saved as from looking like a difference.
    """
    return json.loads(json.dumps(value, default=_as_json, sort_keys=True))


def _as_json(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, set | frozenset):
        return sorted(value)
    return str(value)


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """The dotted keys at which two plain values differ, each as `key (was old, now new)`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found: list[str] = []
        for name in sorted(set(old) | set(new)):
            below = f"{key}.{name}" if key else name
            if name not in old:
                found.append(f"{below} (new: {_short(new[name])})")
            elif name not in new:
                found.append(f"{below} (was {_short(old[name])}, now absent)")
            else:
                found += differences(old[name], new[name], below)
        return found
    # Compared as text, so that True is not 1 and NaN equals itself.
    return [] if json.dumps(old) == json.dumps(new) else [f"{key} (was {_short(old)}, now {_short(new)})"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def fresh(study: str, config: Mapping[str, Any], seed: int, inputs: Mapping[str, str]) -> dict[str, Any]:
    """The manifest of a run that starts now."""
    return {
        "format": FORMAT,
        "study": study,
        "config": plain(dict(config)),
        "seed": seed,
        "inputs": plain(dict(inputs)),
        "versions": versions(),
        "platform": machine(),
        "command": command(),
        "started": now(),
        "finished": None,
        "stages": {},
        "figures": [],
        "record": {},
        "resumed": [],
    }


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of `folder`. Raises InputError when there is none, or when it is not one of ours."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder} is not a run folder: it has no manifest.json") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): a run's manifest was expected") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise InputError(f"{path} has format {found!r}: {FORMAT!r} was expected")
    missing = sorted({"study", "config", "seed", "inputs", "stages", "record"} - manifest.keys())
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}: a run's manifest was expected")
    return manifest


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
