"""A series of checkpoints of one training: folders of a run, or revisions of a repository on the hub.

    for checkpoint in Checkpoints("runs/pretrain"):
        model = checkpoint.load()      # only now are weights read
        print(checkpoint.step, checkpoint.tokens)

Listing reads names and small files only, so a series may be longer than memory or the disk holds: one model lives at a
time, as long as the caller keeps it. A folder counts once it is whole: one that is being written (its name starts with a
dot or ends with `.part`) or that lacks its config or a part of its weights is never listed.

Steps of hub revisions are read from their names as the known series have them: `step1000` (Pythia), `global_step1000`
(BLOOM), `step1000-tokens4B` and `stage1-step1000-tokens3B` (OLMo). Other names need their steps given.

Failure: no checkpoint where some are expected, a revision without a step in its name, steps that repeat.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from inscape.errors import InputError
from inscape.models.loading import check_folder

_FOLDER = re.compile(r"step-(\d+)")
_REVISION = re.compile(r"(?:^|[_-])step[-_]?(\d+)(?:$|[-_])")
_TOKENS = re.compile(r"tokens(\d+(?:\.\d+)?)([MBT])\b")
_UNITS = {"M": 10**6, "B": 10**9, "T": 10**12}


@dataclass(frozen=True)
class Checkpoint:
    """One model of a series.

    Attributes:
        step: optimizer steps before it.
        tokens: tokens trained on before it; None where that is not known.
        source: folder, or hub id.
        revision: of the hub; None for a folder.
    """

    step: int
    tokens: int | None
    source: str
    revision: str | None = None

    @property
    def path(self) -> Path | None:
        """The folder; None on the hub."""
        return Path(self.source) if self.revision is None else None

    def load(self, **options: Any) -> PreTrainedModel:
        """The model, in eval mode; options go to `AutoModelForCausalLM.from_pretrained`.

        Raises:
            InputError: it is not there (any more), or can't be read.
        """
        try:
            return AutoModelForCausalLM.from_pretrained(self.source, **self._at, **options).eval()
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(f"checkpoint {self}: {str(error).splitlines()[0]}") from error

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer saved with it. Raises InputError where there is none."""
        try:
            return AutoTokenizer.from_pretrained(self.source, **self._at)
        except (OSError, ValueError) as error:
            raise InputError(f"checkpoint {self}: no tokenizer ({str(error).splitlines()[0]})") from error

    @property
    def _at(self) -> dict[str, str]:
        return {} if self.revision is None else {"revision": self.revision}

    def __str__(self) -> str:
        return self.source if self.revision is None else f"{self.source} @ {self.revision}"


class Checkpoints(Sequence[Checkpoint]):
    """The checkpoints of a run folder or a hub repository, by rising step.

    Args:
        source: a run folder (with `checkpoints/step-N`), a folder with `step-N` folders in it, or a hub id.
        revisions: of a hub id: names, or names with their steps. None: all branches and tags that name a step.
        tokens_per_step: where neither the run nor the names tell how many tokens were seen.

    Raises (on first use):
        InputError: nothing there, or see the module.
    """

    def __init__(
        self,
        source: str | Path,
        revisions: Sequence[str] | Mapping[str, int] | None = None,
        *,
        tokens_per_step: int | None = None,
    ) -> None:
        self.source = source
        self.revisions = revisions
        self.tokens_per_step = tokens_per_step

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[Checkpoint]:
        return iter(self._found)

    def __getitem__(self, index: Any) -> Any:
        return self._found[index]

    def at(self, step: int) -> Checkpoint:
        """The checkpoint after so many steps. Raises InputError where there is none."""
        for checkpoint in self:
            if checkpoint.step == step:
                return checkpoint
        there = ", ".join(str(checkpoint.step) for checkpoint in self)
        raise InputError(f"{self.source}: no checkpoint at step {step}, expected one of {there}")

    def refresh(self) -> Checkpoints:
        """The same series as it is now (a training may go on)."""
        return Checkpoints(self.source, self.revisions, tokens_per_step=self.tokens_per_step)

    @cached_property
    def _found(self) -> list[Checkpoint]:
        path = Path(self.source).expanduser()
        if self.revisions is None and path.is_dir():
            found = self._of_folder(path)
        elif path.is_dir():
            raise InputError(f"{self.source}: a folder has no revisions, expected none or a hub id")
        elif str(self.source).startswith((".", "/", "~")):
            raise InputError(f"{self.source}: no such folder, expected a run folder or a hub id")
        else:
            found = self._of_hub(str(self.source))
        found.sort(key=lambda checkpoint: checkpoint.step)
        for one, following in itertools.pairwise(found):
            if one.step == following.step:
                raise InputError(f"checkpoints {one} and {following} are both of step {one.step}, expected one")
        return found

    def _of_folder(self, path: Path) -> list[Checkpoint]:
        inside = path / "checkpoints" if (path / "checkpoints").is_dir() else path
        tokens = _tokens_of_run(inside.parent)
        found = []
        for folder in inside.iterdir():
            named = _FOLDER.fullmatch(folder.name)
            if named is None or not _whole(folder):
                continue
            step = int(named[1])
            found.append(Checkpoint(step, tokens.get(step, self._estimate(step)), str(folder)))
        if not found:
            raise InputError(f"{path}: no checkpoint in it, expected folders checkpoints/step-N with a model in each")
        return found

    def _of_hub(self, source: str) -> list[Checkpoint]:
        names = _hub_revisions(source) if self.revisions is None else list(self.revisions)
        given = self.revisions if isinstance(self.revisions, Mapping) else {}
        found = []
        for name in names:
            named = _REVISION.search(name)
            if name not in given and named is None:
                if self.revisions is None:
                    continue
                raise InputError(
                    f"{source} @ {name}: no step in the name, expected names like step1000, or their steps"
                )
            step = given[name] if name in given else int(named[1])  # type: ignore[index]
            size = _TOKENS.search(name)
            tokens = self._estimate(step) if size is None else int(float(size[1]) * _UNITS[size[2]])
            found.append(Checkpoint(step, tokens, source, name))
        if not found:
            raise InputError(f"{source}: no branch or tag that names a step, expected some like step1000")
        return found

    def _estimate(self, step: int) -> int | None:
        if step == 0:
            return 0
        return None if self.tokens_per_step is None else step * self.tokens_per_step


def _whole(folder: Path) -> bool:
    try:
        check_folder(folder)
    except InputError:
        return False
    return True


def _tokens_of_run(folder: Path) -> dict[int, int]:
    """Step -> tokens seen, as far as the run's `metrics.jsonl` tells. A last line that was cut off is passed over."""
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    tokens = {}
    for line in lines:
        try:
            row = json.loads(line)
            tokens[int(row["step"])] = int(row["tokens"])
        except (ValueError, KeyError, TypeError):
            continue
    return tokens


def _hub_revisions(source: str) -> list[str]:
    from huggingface_hub import list_repo_refs
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        refs = list_repo_refs(source)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise InputError(f"{source}: its revisions can't be listed ({str(error).splitlines()[0]})") from error
    return sorted({ref.name for ref in [*refs.branches, *refs.tags]})
