"""Prompts and what goes along with them, read once from iterables of any length: numbered, hashed, in windows.

The hash is a sha256 over all prompts (and their tokens, mentions and ids) up to a number. A resumed capture reads its
prompts from the beginning again, and :meth:`PromptStream.skip_to` sees at the end of each shard that they are the same.
"""

import hashlib
import json
import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from inscape.errors import InputError
from inscape.models.tokens import Mention, Prompt, given_ids

WINDOW_BATCHES = 16
WINDOW_LENGTH = 4_000_000
"""A window ends after so many batches of prompts, or so many characters (of texts) and ids."""


@dataclass(frozen=True)
class PromptWindow:
    """Consecutive prompts: the number of the first, what came along, and the hash of the stream up to each."""

    first: int
    prompts: list[Prompt]
    tokens: list[Any] | None
    mentions: list[Mention] | None
    ids: list[str | int] | None
    digests: list[str]


class PromptStream:
    """The prompts and what comes along with them, read once, numbered and hashed."""

    def __init__(
        self,
        prompts: Iterable[Prompt],
        tokens: Iterable[Any] | None,
        mentions: Iterable[Mention] | None,
        ids: Iterable[str | int] | None,
    ) -> None:
        if isinstance(prompts, str):
            raise InputError("prompts: expected an iterable of prompts, found one text (wrap it in a list)")
        self._prompts = iter(prompts)
        self._along = {
            name: iter(given)
            for name, given in {"tokens": tokens, "mentions": mentions, "prompt_ids": ids}.items()
            if given is not None
        }
        self._expected: dict[int, tuple[str, str]] = {}
        self.number = 0
        self.digest = hashlib.sha256()

    def __iter__(self) -> Iterator[tuple[Prompt, dict[str, Any]]]:
        missing = object()
        for prompt in self._prompts:
            number = self.number
            item: Prompt = prompt if isinstance(prompt, str) else given_ids(prompt, number)
            along = {}
            for name, given in self._along.items():
                if (value := next(given, missing)) is missing:
                    raise InputError(f"{name} end after {number} entries, and there are more prompts")
                along[name] = _plain(name, value, number)
            content = (
                item.encode("utf-8", "surrogatepass") if isinstance(item, str) else repr(item).encode(),
                json.dumps(along).encode() if along else b"",
            )
            self.digest.update(f"{type(item).__name__} {len(content[0])} {len(content[1])} ".encode())
            self.digest.update(content[0])
            self.digest.update(content[1])
            self.number += 1
            if self.number in self._expected:
                expected, shard = self._expected.pop(self.number)
                if self.digest.hexdigest() != expected:
                    raise InputError(
                        f"the prompts up to number {number} are not those that {shard} was written from: give the same "
                        "ones, or choose another folder"
                    )
            yield item, along
        for name, given in self._along.items():
            if next(given, missing) is not missing:
                raise InputError(f"{name} have more entries than the {self.number} prompts")

    def skip_to(self, index: dict[str, Any]) -> int:
        """Pass over the prompts whose rows are in whole shards, seeing that they are the same; the next window's row."""
        shards = index["shards"]
        for shard in reversed(shards):  # (of the shards that end in one prompt the first is named)
            self._expected[shard["last_prompt"] + 1] = (shard["prompts_sha256"], shard["file"])
        resume = shards[-1]["resume"] if shards else {"prompt": 0, "row": 0}
        wanted = None if index["finished"] else resume["prompt"]
        if wanted != 0:
            for _ in self:
                if self.number == wanted:
                    break
        short = self.number < (shards[-1]["last_prompt"] + 1 if index["finished"] else resume["prompt"])
        if short or (index["finished"] and [self.number, self.digest.hexdigest()] != index["prompts"]):
            written = index["prompts"][0] if index["finished"] else resume["prompt"]
            raise InputError(
                f"the store was written from {written} prompts{'' if index['finished'] else ' or more'}, and these "
                f"{self.number} are not those: give the same ones, or choose another folder"
            )
        return int(resume["row"])

    def windows(self, most: int) -> Iterator[PromptWindow]:
        items = iter(self)
        while True:
            first, length = self.number, 0
            prompts: list[Prompt] = []
            along: dict[str, list[Any]] = {name: [] for name in self._along}
            digests = []
            for prompt, more in items:
                prompts.append(prompt)
                for name, value in more.items():
                    along[name].append(value)
                digests.append(self.digest.hexdigest())
                length += len(prompt)
                if len(prompts) == most or length >= WINDOW_LENGTH:
                    break
            if not prompts:
                break
            yield PromptWindow(
                first, prompts, along.get("tokens"), along.get("mentions"), along.get("prompt_ids"), digests
            )
        if self._expected:
            shard = min(self._expected.items())[1][1]
            raise InputError(f"the prompts end after {self.number}, and {shard} was written from more of them")


def _plain(name: str, value: Any, number: int) -> Any:
    """An entry that goes along with a prompt, as something that JSON can hold."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if name == "prompt_ids":
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise InputError(f"prompt_ids: expected a text or an integer for prompt {number}, found {value!r:.80}")
        return value
    if isinstance(value, str):
        return value
    try:
        return tuple(map(operator.index, value)) if isinstance(value, Iterable) else operator.index(value)
    except TypeError:
        raise InputError(f"{name}: expected indices for prompt {number}, found {value!r:.80}") from None
