"""Prompted examples, and which of them are trained on: some prompts, tasks, languages and items are kept for testing.

A mixture is drawn from the tasks of `inscape.data.prompts`. Training sees trained prompts of trained tasks in trained
languages, on training items. What is tested is told apart by what was new:

- ``seen``: trained prompts, tasks and languages; only the items are new;
- ``prompt``: prompts that training did not see;
- ``language``: languages that training did not see (in any prompt, also not as a language to choose from);
- ``task``: tasks that training did not see (RTE, XCOPA, XQuAD).

Items are split so that translations of one sentence or page are on one side. What finetuning does not see may still have
been read in pretraining, as plain text: documents are, test sentences and the held-out tasks are not.
"""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from inscape.data.prompts import TASKS, Kind, Prompt, Record, Sources, Task, corpora_folder
from inscape.data.prompts.languages import language_name
from inscape.errors import InputError

New = Literal["seen", "prompt", "language", "task"]


@dataclass(frozen=True)
class Example:
    """An input, the target that should follow, and where both are from.

    ``target`` and ``options`` begin with the space that parts them from the input, where their script has spaces: an input
    never ends in one. ``new`` says what of a test example training did not see; None for training examples.
    """

    id: str
    task: str
    cluster: str
    prompt: str
    language: str
    kind: Kind
    input: str
    target: str
    options: tuple[str, ...] | None
    new: New | None

    @property
    def answer(self) -> int | None:
        """Which option the target is."""
        return None if self.options is None else self.options.index(self.target)


class MixtureConfig(BaseModel):
    """What is drawn."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    languages: tuple[str, ...] = Field(
        default=("ar", "en", "es", "fr", "hi", "id", "ja", "pt", "sw", "vi", "zh"),
        min_length=1,
        description="languages trained on; each has sentence pairs, documents, or both",
    )
    held_out_languages: tuple[str, ...] = Field(
        default=("de", "ru"), description="languages only tested, with the trained tasks and prompts"
    )
    tasks: tuple[str, ...] | None = Field(default=None, description="names of the tasks (default: all)")
    per_prompt: int = Field(default=500, ge=1, description="most training examples of one prompt, over all languages")
    test_per_prompt: int = Field(default=24, ge=1, description="most test examples of one prompt, in each kind of test")
    seed: int = Field(default=0, ge=0, description="of the draw, of wrong options and of shuffled words")

    @model_validator(mode="after")
    def _apart(self) -> MixtureConfig:
        for code in (*self.languages, *self.held_out_languages):
            language_name(code)
        if both := set(self.languages) & set(self.held_out_languages):
            raise ValueError(f"language {min(both)!r} is both trained on and held out")
        if unknown := [name for name in self.tasks or () if name not in TASKS]:
            raise ValueError(f"no task {unknown[0]!r}: tasks are {', '.join(TASKS)}")
        return self


@dataclass(frozen=True)
class Mixture:
    """Examples to train on, in an order drawn by seed, and examples to test, by what is new."""

    train: tuple[Example, ...]
    tests: tuple[Example, ...]

    def counts(self) -> list[dict[str, Any]]:
        """A row for each task, prompt, language and ``new`` (``train`` for training examples) with its ``examples``."""
        found: dict[tuple[str, ...], int] = defaultdict(int)
        for example in (*self.train, *self.tests):
            found[example.task, example.cluster, example.prompt, example.language, example.new or "train"] += 1
        names = ("task", "cluster", "prompt", "language", "new")
        return [dict(zip(names, key, strict=True)) | {"examples": n} for key, n in found.items()]


def build_mixture(config: MixtureConfig, root: Path | str | None = None) -> Mixture:
    """Draw the examples from the corpora under ``root`` (default: data/corpora under ``INSCAPE_SHARED``).

    Raises:
        InputError: no such folder, a damaged file, or nothing to train on.
    """
    root = corpora_folder() if root is None else Path(root)
    every = Sources(root, (*config.languages, *config.held_out_languages))
    trained = every.only(config.languages)
    chosen = [TASKS[name] for name in config.tasks or TASKS]
    found = {task.name: task.records(every if task.held_out else trained, config.seed) for task in chosen}
    # Here a wrong option may be any of the languages; training uses only `found`.
    others = every.only(config.held_out_languages, named=every.languages)
    unseen = {task.name: task.records(others, config.seed) for task in chosen if not task.held_out}
    tested = {r.group for some in (*found.values(), *unseen.values()) for r in some if r.test}
    train: list[Example] = []
    tests: list[Example] = []
    for task in chosen:
        of_test = [r for r in found[task.name] if r.test]
        for prompt in task.prompts:
            new: New = "task" if task.held_out else "prompt" if prompt.held_out else "seen"
            tests += _draw(task, prompt, of_test, config.test_per_prompt, config.seed, new)
            if new == "seen":
                of_unseen = [r for r in unseen[task.name] if r.test]
                tests += _draw(task, prompt, of_unseen, config.test_per_prompt, config.seed, "language")
                fit = [r for r in found[task.name] if not r.test and r.group not in tested]
                train += _draw(task, prompt, fit, config.per_prompt, config.seed, None)
    if not train:
        raise InputError(f"mixture: no training example in {', '.join(config.languages)} under {root}, expected some")
    random.Random(f"{config.seed} order").shuffle(train)
    return Mixture(tuple(train), tuple(tests))


def data_hash(config: MixtureConfig, root: Path | str | None = None) -> str:
    """SHA-256 of the files that a mixture is drawn from."""
    root = corpora_folder() if root is None else Path(root)
    digest = hashlib.sha256()
    for file in Sources(root, (*config.languages, *config.held_out_languages)).files():
        digest.update(f"{file.relative_to(root)} ".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def token_ids(input_: str, target: str, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids of an input and of a target, tokenised apart.

    A model that generates is given the input's tokens alone: were the two tokenised as one, a token that merges both sides
    (in scripts without spaces) would be trained on and could never be met.

    Raises:
        InputError: one of them has no token.
    """
    ids = [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (input_, target)]
    if not all(ids):
        raise InputError(f"example {input_[:40]!r} … {target[:40]!r}: a side without tokens")
    return ids[0], ids[1]


def end_id(tokenizer: Any) -> int:
    """The token that ends a target. Raises InputError for a tokenizer without one."""
    if tokenizer is None or tokenizer.eos_token_id is None:
        raise InputError("tokenizer: no end-of-text token, expected one to end targets with")
    return int(tokenizer.eos_token_id)


def _draw(
    task: Task, prompt: Prompt, records: Iterable[Record], most: int, seed: int, new: New | None
) -> list[Example]:
    """At most ``most`` examples, as many from each language as it has, up to an even share."""
    by_language: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_language[record.language].append(record)
    for language, some in by_language.items():
        random.Random(f"{seed} {prompt.name} {language} {new}").shuffle(some)
    drawn: list[Record] = []
    for rank in range(max(map(len, by_language.values()), default=0)):
        drawn += [some[rank] for some in by_language.values() if rank < len(some)]
        if len(drawn) >= most:
            break
    return [_example(task, prompt, record, new) for record in drawn[:most]]


def _example(task: Task, prompt: Prompt, record: Record, new: New | None) -> Example:
    text, target, options = prompt.fill(record)
    return Example(
        record.id, task.name, task.cluster, prompt.name, record.language, task.kind, text.rstrip(), spaced(target),
        None if options is None else tuple(map(spaced, options)), new,
    )  # fmt: skip


def spaced(target: str) -> str:
    """A target with the space before it that its script asks for: none before Chinese, Japanese and Thai."""
    first = target[:1]
    without = "\u2e80" <= first <= "\u9fff" or "\uf900" <= first <= "\ufaff" or "\uff00" <= first <= "\uffef"
    return target if without or "\u0e00" <= first <= "\u0e7f" else f" {target}"
