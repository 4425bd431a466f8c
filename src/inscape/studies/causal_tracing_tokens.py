"""Rows of `causal-tracing` as tokens: which token plays which role, which token of one prompt stands for which of another.

Prompt and answer are encoded as one text, and from then on a prompt is token ids: what is traced is what the model would
see if it wrote the answer, whether or not a token merges the two.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inscape.errors import InputError
from inscape.models import LM
from inscape.models.score import continuation_start
from inscape.models.tokens import tokens_of
from inscape.studies.causal_tracing_rows import Row

BEFORE = "before the subject"
FIRST, MIDDLE, LAST_SUBJECT = "first subject token", "middle subject tokens", "last subject token"
NEXT, FURTHER, LAST = "first subsequent token", "further tokens", "last token"
SO_FAR = "answer so far"
ROLES = (BEFORE, FIRST, MIDDLE, LAST_SUBJECT, NEXT, FURTHER, LAST, SO_FAR)
"""In the order of the prompt. ROME's six are those in between."""


@dataclass(frozen=True)
class Question:
    """A prompt as token ids.

    Attributes:
        ids: of the prompt.
        first, last: the subject's tokens, from 0, both included.
        answer: ids of the answer.
        told: how many tokens at the end of ``ids`` are the answer's first ones, given with the prompt.
    """

    ids: tuple[int, ...]
    first: int
    last: int
    answer: tuple[int, ...]
    told: int = 0

    def telling(self, tokens: Sequence[int]) -> "Question":
        """The same prompt, continued by the first tokens of an answer."""
        return Question((*self.ids, *tokens), self.first, self.last, self.answer, len(tokens))

    def roles(self) -> list[str]:
        """The role of each token of ``ids``: exactly one. A token of the subject is that and nothing else."""
        return [self._role(i) for i in range(len(self.ids))]

    def _role(self, i: int) -> str:
        end = len(self.ids) - self.told
        if i < self.first:
            return BEFORE
        if i <= self.last:
            return LAST_SUBJECT if i == self.last else FIRST if i == self.first else MIDDLE
        if i >= end:
            return SO_FAR
        return LAST if i == end - 1 else NEXT if i == self.last + 1 else FURTHER


def question(lm: LM, prompt: str, subject_start: int, subject: str, answer: str, place: str) -> Question:
    """A prompt as token ids, its subject found by its characters.

    Raises:
        InputError: the subject's last token also holds the answer's first characters, or the prompt does not fit.
    """
    try:
        whole = lm.encode([prompt + answer])[0]
        start = continuation_start(prompt, answer, whole, 0)
        subject_at = tokens_of(whole, (subject_start, subject_start + len(subject)), 0)
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
    if subject_at[-1] >= start:
        raise InputError(f"{place}: one token holds the end of the subject and the beginning of the answer {answer!r}")
    return Question(whole.ids[:start], subject_at[0], subject_at[-1], whole.ids[start:])


def question_of(lm: LM, row: Row) -> Question:
    """A row's own prompt."""
    return question(lm, row.prompt, row.start, row.subject, row.answer, row.place)


def counterparts(target: Question, donor: Question) -> dict[int, int]:
    """Which token of ``donor`` stands for which of ``target``, from the subject on.

    Subject tokens are matched from the subject's last token backwards, later ones from the prompt's last token backwards;
    a token without a counterpart is left out.
    """
    here, there = len(target.ids) - 1, len(donor.ids) - 1
    subject = min(target.last - target.first, donor.last - donor.first) + 1
    later = min(here - target.last, there - donor.last)
    pairs = {target.last - k: donor.last - k for k in range(subject)}
    return dict(sorted((pairs | {here - k: there - k for k in range(later)}).items()))


@dataclass(frozen=True)
class Partners:
    """For a row, the numbers of others: whose subject corrupts it, whose prompt is the unrelated one (None: no such)."""

    corrupt: int | None
    unrelated: int | None


def partners(rows: Sequence[Row], questions: Sequence[Question], usable: Sequence[int], seed: int) -> list[Partners]:
    """Partners of each of ``usable`` among them, drawn by ``seed``; both have another subject and another answer.

    The corrupting one has the same template; of these, one with as many subject tokens is preferred. A row that says what
    corrupts it has none. The unrelated one has yet another subject, and is preferred with the same template and length.
    """
    result = []
    for i in usable:
        order = np.random.default_rng([seed, i]).permutation(len(usable))
        drawn = [usable[k] for k in order]
        others = [k for k in drawn if rows[k].subject != rows[i].subject and _other(questions[k], questions[i])]
        unlike = {
            k: (rows[k].template != rows[i].template, _width(questions[k]) != _width(questions[i])) for k in others
        }
        ranked = sorted(others, key=unlike.__getitem__)
        corrupt = next((k for k in ranked if rows[k].template == rows[i].template), None)
        if rows[i].corrupt_subject is not None:
            corrupt = None
        taken = rows[i].corrupt_subject if corrupt is None else rows[corrupt].subject
        result.append(Partners(corrupt, next((k for k in ranked if rows[k].subject != taken), None)))
    return result


def _width(one: Question) -> int:
    return one.last - one.first + 1


def _other(one: Question, two: Question) -> bool:
    """Whether two answers differ, and neither begins with the other."""
    return first_difference(one.answer, two.answer) is not None


def first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    """The first place where two lists differ; None where one begins with the other."""
    return next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)


def token_texts(lm: LM, ids: Sequence[int]) -> list[str]:
    """Each token as text."""
    return [lm.tokenizer.decode([i]) for i in ids]
