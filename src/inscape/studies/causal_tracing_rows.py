"""What `causal-tracing` asks about: rows of {prompt, subject, answer}, from a JSONL file or made from facts.

A row that cannot mean anything (a field missing, a subject that the prompt does not hold, an empty answer) is refused with
its file and line, before a model is loaded. A row that means something but can't be used (the model does not know it, no
other row to pair it with) is for the study to count and name.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from inscape.data.facts import Facts
from inscape.data.properties import Property
from inscape.errors import InputError

FIELDS = ("prompt", "subject", "answer", "corrupt_subject", "corrupt_answer", "id")
_NEEDED = ("prompt", "subject", "answer")


@dataclass(frozen=True)
class Row:
    """A prompt, the text in it that names the subject, and the answer that should follow.

    Attributes:
        id: distinct among the rows of a run.
        prompt: holds ``subject`` exactly once.
        answer: continues the prompt, with the space before it if there is one.
        corrupt_subject: what stands in the subject's place in the corrupted prompt; None: another row's subject.
        corrupt_answer: what should follow then; None: the model's own first choice.
        place: where the row comes from, for messages.
    """

    id: str
    prompt: str
    subject: str
    answer: str
    corrupt_subject: str | None = None
    corrupt_answer: str | None = None
    place: str = ""

    @property
    def start(self) -> int:
        """The subject's first character in the prompt."""
        return self.prompt.index(self.subject)

    @property
    def template(self) -> tuple[str, str]:
        """The prompt before and after its subject."""
        return self.prompt[: self.start], self.prompt[self.start + len(self.subject) :]

    def about(self, subject: str) -> str:
        """The prompt with another subject."""
        before, after = self.template
        return before + subject + after


@dataclass(frozen=True)
class Rows:
    """The rows of a run, where they come from, their hash, and what a reader should know of them."""

    rows: tuple[Row, ...]
    source: str
    sha256: str
    notes: tuple[str, ...] = ()


def read_rows(path: Path | str, prefix: str = "") -> Rows:
    """Rows of a JSONL file: one object a line, empty lines left out; ``prefix`` goes before every prompt.

    Raises:
        InputError: file, line, what was found and what was expected.
    """
    path = Path(path).expanduser()
    try:
        content = path.read_bytes()
        text = content.decode("utf-8")
    except OSError as error:
        raise InputError(f"--prompts {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--prompts {path}: not UTF-8 text (byte {error.start})") from error
    rows: list[Row] = []
    lines: dict[str, int] = {}
    # (Not splitlines: a text may hold characters, such as U+2028, that end lines for Python and not for JSONL.)
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        row = _row(line, f"{path}, line {number}", number, prefix)
        if row.id in lines:
            raise InputError(
                f"{row.place}: the id {row.id!r} is that of line {lines[row.id]} too, expected distinct ids"
            )
        lines[row.id] = number
        rows.append(row)
    if not rows:
        raise InputError(f"--prompts {path}: no rows, expected a JSON object with {', '.join(_NEEDED)} a line")
    return Rows(tuple(rows), str(path), hashlib.sha256(content).hexdigest(), _joined_notes(rows))


def rows_of_facts(facts: Facts, prop: Property, template: int, prefix: str = "") -> Rows:
    """A row for each fact of a property: its question, the entity as subject, the value as text writes it as answer.

    Raises:
        InputError: these facts have none of this property, or there is no such wording.
    """
    if template >= len(prop.questions):
        raise InputError(f"template {template}: {prop.name} has {len(prop.questions)} questions (from 0)")
    question = prefix + prop.questions[template]
    rows, twice = [], 0
    for fact in facts.of(prop.name).iter_rows(named=True):
        prompt = question.replace("{subj}", fact["label"])
        if prompt.count(fact["label"]) == 1:
            rows.append(
                Row(fact["entity_id"], prompt, fact["label"], " " + prop.format(fact["value"]), place=facts.source)
            )
        else:
            twice += 1
    notes = list(facts.notes)
    if twice:
        notes.append(f"{twice} entities were left out: their names occur twice in the question.")
    return Rows(tuple(rows), f"{facts.source}: {question}", facts.sha256, tuple(notes))


def table_of(rows: Rows) -> pl.DataFrame:
    """The rows as a table, in their order."""
    columns = ("id", "prompt", "subject", "answer", "corrupt_subject", "corrupt_answer")
    return pl.DataFrame(
        {name: [getattr(row, name) for row in rows.rows] for name in columns}, schema=dict.fromkeys(columns, pl.String)
    )


def _row(line: str, place: str, number: int, prefix: str) -> Row:
    try:
        given = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: not JSON ({error}), expected an object with {', '.join(_NEEDED)}") from error
    if not isinstance(given, Mapping):
        raise InputError(f"{place}: {_kind(given)}, expected an object with {', '.join(_NEEDED)}")
    if unknown := [key for key in given if key not in FIELDS]:
        raise InputError(f"{place}: no field {unknown[0]!r}; fields are {', '.join(FIELDS)}")
    fields = {name: value for name, value in given.items() if value is not None}
    if isinstance(fields.get("id"), int) and not isinstance(fields["id"], bool):
        fields["id"] = str(fields["id"])
    for name in _NEEDED:
        if name not in fields:
            raise InputError(f"{place}: no {name}, expected {', '.join(_NEEDED)}")
    for name, value in fields.items():
        if not isinstance(value, str):
            raise InputError(f"{place}: {name} is {_kind(value)}, expected a text")
        if not value.strip():
            raise InputError(f"{place}: {name} is empty")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise InputError(f"{place}: {name} holds half of a surrogate pair, expected Unicode text")
    fields["prompt"] = prefix + fields["prompt"]
    row = Row(**{"id": f"line {number}", **fields, "place": place})
    _check(row)
    return row


def _check(row: Row) -> None:
    found = _count(row.prompt, row.subject)
    if found != 1:
        often = "does not occur" if not found else f"occurs {found} times"
        raise InputError(f"{row.place}: the subject {row.subject!r} {often} in {row.prompt!r}, expected once")
    if row.corrupt_answer is not None and row.corrupt_subject is None:
        raise InputError(f"{row.place}: a corrupt_answer without a corrupt_subject")
    if row.corrupt_subject == row.subject:
        raise InputError(f"{row.place}: corrupt_subject is the subject, expected another")
    if row.corrupt_answer == row.answer:
        raise InputError(f"{row.place}: corrupt_answer is the answer, expected another")


def _count(text: str, part: str) -> int:
    """Occurrences of ``part``, overlapping ones too."""
    return sum(text.startswith(part, at) for at in range(len(text) - len(part) + 1))


def _joined_notes(rows: list[Row]) -> tuple[str, ...]:
    joined = [row.id for row in rows if not row.prompt[-1].isspace() and not row.answer[0].isspace()]
    # Languages without spaces, answers like "'s" or ".": no mistake by itself, but the usual one.
    return (
        (
            f"In {len(joined)} rows ({named(joined)}) neither the prompt ends nor the answer begins with a space: they are "
            "read as one word.",
        )
        if joined
        else ()
    )


def named(ids: list[str], most: int = 5) -> str:
    """The first few ids, for a sentence."""
    return ", ".join(ids[:most]) + (", …" if len(ids) > most else "")


def _kind(value: Any) -> str:
    kinds = {
        bool: "a truth value",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
        str: "a text",
    }
    return "null" if value is None else kinds.get(type(value), type(value).__name__)
