"""What a sweep reads off the logits: a number for each run instead of a row of the whole vocabulary.

A metric sees the logits of some runs at the tokens asked for, computed on the fly, and keeps a number (or a few). Where the
continuation has several tokens it is read by teacher forcing: prompt and continuation are one sequence, and the tokens
before each of its tokens are asked for.
"""

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inscape.errors import InputError
from inscape.models.score import continuation_start
from inscape.models.tokens import Encoded, Prompt, Tokens, positions

if TYPE_CHECKING:
    from inscape.models.lm import LM


@dataclass(frozen=True)
class Asked:
    """What is run for a prompt: ``whole`` ids, of which ``prompt`` is the head; ``asked`` tokens' logits are read."""

    owner: int
    whole: Encoded
    prompt: Encoded
    asked: tuple[int, ...]


class Metric(ABC):
    """A reading of logits. ``dims`` and ``coords`` name what it adds to a sweep's dimensions, beyond ``token``."""

    dims: tuple[str, ...] = ()
    uses_base = False
    """Whether :meth:`read` looks at the base run's logits; if not, it is not given them."""
    sums = False
    """Whether the asked tokens make one value together, so that the result has no dimension ``token``."""

    def coords(self) -> dict[str, list[Any]]:
        return {}

    def sequences(
        self, lm: "LM", prompts: Sequence[Prompt], encoded: Sequence[Encoded], asked: list[list[int]], bos: bool | None
    ) -> list[Asked]:
        """What is run: here the prompts themselves."""
        return [Asked(i, one, one, tuple(at)) for i, (one, at) in enumerate(zip(encoded, asked, strict=True))]

    @abstractmethod
    def read(self, logits_NV: Tensor, base_NV: Tensor, sequence: Tensor, nth: Tensor) -> Tensor:
        """``[n, *dims]``: a value for each row of float32 logits.

        ``base`` are the unedited ones of the same token (if ``uses_base``);
        ``sequence`` and ``nth`` (int64 ``[n]``) say whose token it is, and which of the asked ones.
        """

    def together(self, values: Tensor, prompts: int) -> Tensor:
        """``[sequence, cell, asked, *dims]`` (NaN: not asked) as ``[prompt, cell, asked, *dims]``, summed if ``sums``."""
        return values


class Logits(Metric):
    """The logits themselves, float32: dimension ``vocab``. Memory: prompts × runs × vocabulary × 4 bytes."""

    dims = ("vocab",)

    def read(self, logits_NV: Tensor, base_NV: Tensor, sequence: Tensor, nth: Tensor) -> Tensor:
        return logits_NV


@dataclass(frozen=True)
class LogitDifference(Metric):
    """logit(correct) - logit(wrong): one token for each prompt on either side, as text or id."""

    correct: Sequence[str | int]
    wrong: Sequence[str | int]
    _ids: list[Tensor] = field(default_factory=list, init=False, repr=False, compare=False)

    def sequences(
        self, lm: "LM", prompts: Sequence[Prompt], encoded: Sequence[Encoded], asked: list[list[int]], bos: bool | None
    ) -> list[Asked]:
        self._ids[:] = [
            single_tokens(lm, tokens, len(prompts), side)
            for side, tokens in (("correct", self.correct), ("wrong", self.wrong))
        ]
        return super().sequences(lm, prompts, encoded, asked, bos)

    def read(self, logits_NV: Tensor, base_NV: Tensor, sequence: Tensor, nth: Tensor) -> Tensor:
        correct, wrong = (logits_NV.gather(1, ids[sequence].to(logits_NV.device)[:, None])[:, 0] for ids in self._ids)
        return correct - wrong


@dataclass(frozen=True)
class Probability(Metric):
    """Probability (or natural log-probability) of continuations after each prompt, summed over their tokens.

    ``continuations``: one for each prompt, or a list of as many for each (dimension ``continuation``); texts or id lists
    as the prompts are. Texts are tokenised with their prompt as one, as in :meth:`LM.score`.
    """

    continuations: Sequence[Any]
    log: bool = False
    sums = True
    _targets: list[Tensor] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def dims(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("continuation",) if self._many else ()

    def coords(self) -> dict[str, list[Any]]:
        return {"continuation": list(range(len(self.continuations[0])))} if self._many else {}

    @property
    def _many(self) -> bool:
        first = self.continuations[0] if len(self.continuations) else ""
        return not isinstance(first, str) and len(first) > 0 and not hasattr(first[0], "__index__")

    def sequences(
        self, lm: "LM", prompts: Sequence[Prompt], encoded: Sequence[Encoded], asked: list[list[int]], bos: bool | None
    ) -> list[Asked]:
        if isinstance(self.continuations, str) or len(self.continuations) != len(prompts):
            found = "one text" if isinstance(self.continuations, str) else len(self.continuations)
            raise InputError(f"Probability: {found} for continuations of {len(prompts)} prompts")
        if self._many and any(
            isinstance(c, str) or any(hasattr(x, "__index__") for x in c) for c in self.continuations
        ):
            raise InputError("Probability: expected one continuation for each prompt, or a list of them for each")
        lists = [list(c) for c in self.continuations] if self._many else [[c] for c in self.continuations]
        if len({len(one) for one in lists}) != 1:
            raise InputError("Probability: expected as many continuations for each prompt")
        for owner, (prompt, several) in enumerate(zip(prompts, lists, strict=True)):
            if any(isinstance(prompt, str) != isinstance(continuation, str) for continuation in several):
                raise InputError(f"Probability: prompt {owner} and its continuation mix text and token ids")
        # (By continuation, so that a message counts prompts.)
        wholes = [lm.encode(list(map(_joined, prompts, nth)), bos=bos) for nth in zip(*lists, strict=True)]
        result, targets = [], []
        for owner, (prompt, several) in enumerate(zip(prompts, lists, strict=True)):
            for continuation, encoded_wholes in zip(several, wholes, strict=True):
                whole = encoded_wholes[owner]
                start = continuation_start(prompt, continuation, whole, owner)
                head = Encoded(
                    prompt if isinstance(prompt, str) else None,
                    whole.ids[:start],
                    whole.offsets and whole.offsets[:start],
                )
                result.append(Asked(owner, whole, head, tuple(range(start - 1, len(whole.ids) - 1))))
                targets.append(torch.tensor(whole.ids[start:]))
        self._targets[:] = targets
        return result

    def read(self, logits_NV: Tensor, base_NV: Tensor, sequence: Tensor, nth: Tensor) -> Tensor:
        target = torch.stack([self._targets[s][k] for s, k in zip(sequence.tolist(), nth.tolist(), strict=True)])
        target = target.to(logits_NV.device)
        return logits_NV.gather(1, target[:, None])[:, 0] - logits_NV.logsumexp(-1)

    def together(self, values: Tensor, prompts: int) -> Tensor:
        missing = values.isnan().all(2)
        total = values.nansum(2).masked_fill(missing, torch.nan)
        total = total if self.log else total.exp()
        if not self._many:
            return total
        return total.unflatten(0, (prompts, -1)).movedim(1, -1)


class KL(Metric):
    """KL(base ‖ edited) of the next-token distribution, in nats."""

    uses_base = True

    def read(self, logits_NV: Tensor, base_NV: Tensor, sequence: Tensor, nth: Tensor) -> Tensor:
        base, edited = base_NV.log_softmax(-1), logits_NV.log_softmax(-1)
        # (A token that can't come, of a padded vocabulary, adds nothing; 0 times minus infinity would be NaN.)
        return torch.where(base.isneginf(), 0, base.exp() * (base - edited)).sum(-1)


@dataclass(frozen=True)
class Custom(Metric):
    """A function ``f(logits [n, vocab], base [n, vocab], prompt [n]) → [n]`` of the user's own."""

    function: Callable[[Tensor, Tensor, Tensor], Tensor]
    uses_base = True

    def read(self, logits_NV: Tensor, base_NV: Tensor, sequence: Tensor, nth: Tensor) -> Tensor:
        found = self.function(logits_NV, base_NV, sequence)
        if not isinstance(found, Tensor) or found.shape != sequence.shape:
            what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise InputError(f"metric: expected a tensor with one number per row ({len(sequence)}), found {what}")
        return found


def _joined(prompt: Any, continuation: Any) -> Any:
    return prompt + continuation if isinstance(prompt, str) else [*prompt, *continuation]


def single_tokens(lm: "LM", tokens: Sequence[str | int], prompts: int, side: str) -> Tensor:
    """int64 ``[prompt]``: one token id for each prompt; a text must be one token."""
    if isinstance(tokens, str) or len(tokens) != prompts:
        raise InputError(f"{side}: expected one token for each of the {prompts} prompts, found {len(tokens)}")
    ids = []
    for number, token in enumerate(tokens):
        if isinstance(token, str):
            found = lm.tokenizer(token, add_special_tokens=False)["input_ids"] if lm.tokenizer is not None else []
            if len(found) != 1:
                raise InputError(f"{side}: {token!r} of prompt {number} is {len(found)} tokens, expected one")
            ids.append(found[0])
        else:
            try:
                ids.append(operator.index(token))
            except TypeError:
                raise InputError(
                    f"{side}: expected a text or a token id for prompt {number}, found {token!r}"
                ) from None
        if not 0 <= ids[-1] < lm.vocab:
            raise InputError(
                f"{side}: token id {ids[-1]} of prompt {number} is not in the model's {lm.vocab} embeddings"
            )
    return torch.tensor(ids, dtype=torch.int64)


def asked_positions(encoded: Sequence[Encoded], read: Tokens, **named: Any) -> list[list[int]]:
    """The tokens whose logits are read, for each prompt at least one."""
    asked = positions(encoded, read, **named)
    for number, at in enumerate(asked):
        if not at:
            raise InputError(f"rerun: read={read!r} names no token of prompt {number}")
    return asked
