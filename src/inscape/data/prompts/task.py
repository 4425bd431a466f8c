"""What a task is: records of real data, and prompts that turn a record into an input and a target.

A *record* knows nothing of wording: an id, a language, named texts, and, where the answer is one of several, its number.
A *prompt* is wording alone: templates with the records' names in braces. A record and a prompt make an *example*. Prompts
are in English for every language, as in xP3 (Muennighoff et al. 2023); all wording is this project's own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from inscape.data.prompts.sources import Sources
from inscape.errors import InputError

#: How an answer can be right in form: one of the options; the given words in any order; a part of the input; any one line.
Kind = Literal["choice", "words", "span", "text"]


@dataclass(frozen=True)
class Record:
    """One item of a task.

    Attributes:
        id: unique within the task and language.
        group: what must not stand on both sides of a split: an item's translations share it.
        language: of the text that the task is about.
        fields: texts that templates name.
        answer: which option is right, for tasks of options; None for the others.
        test: on the test side of the split.
        choices: the options, where they are not a matter of wording.
    """

    id: str
    group: str
    language: str
    fields: Mapping[str, str]
    answer: int | None
    test: bool
    choices: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Prompt:
    """Wording: a template of the ``target``, or of ``options`` in the order of ``Record.answer``, or neither of them.

    With neither, the options are the record's choices. ``held_out`` prompts are never trained on.
    """

    name: str
    input: str
    target: str | None = None
    options: tuple[str, ...] | None = None
    held_out: bool = False

    def fill(self, record: Record) -> tuple[str, str, tuple[str, ...] | None]:
        """Input, target and options of a record, without the space that joins them."""
        text = self.input.format_map(record.fields)
        if self.target is not None:
            return text, self.target.format_map(record.fields), None
        if self.options is not None:
            options = tuple(option.format_map(record.fields) for option in self.options)
        else:
            options = record.choices or ()
        if record.answer is None or not 0 <= record.answer < len(options):
            raise InputError(
                f"prompt {self.name}: record {record.id} has answer {record.answer} of {len(options)} options"
            )
        return text, options[record.answer], options


@dataclass(frozen=True)
class Task:
    """Records and the prompts for them; ``held_out`` tasks are never trained on, whatever the prompt.

    ``records(sources, seed)`` gives all records of the sources' languages.
    """

    name: str
    cluster: str
    kind: Kind
    records: Callable[[Sources, int], list[Record]]
    prompts: tuple[Prompt, ...]
    held_out: bool = False
