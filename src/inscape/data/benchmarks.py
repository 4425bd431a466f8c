"""Evaluation sets, read as they are given out: XCOPA, RTE, CrowS-Pairs, Tatoeba pairs, PUD sentences.

A `Choice` is an item with texts to be filled into prompts and, where it has one, the number of its right answer; how it
is asked is not the data's business (:mod:`inscape.evaluation.choices`). Every reader refuses a file that is missing, is
not UTF-8, or holds a line that is not what it should be, and names the line; it never skips one.

None of it may be trained on. CrowS-Pairs holds offensive stereotypes by design.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from inscape.errors import InputError

Split = Literal["val", "test"]

RTE_LABELS = ("entailment", "not_entailment")


@dataclass(frozen=True)
class Choice:
    """An item of an evaluation set.

    Attributes:
        id: unique in its set and language; the same for translations of one item.
        task: ``xcopa``, ``rte`` or ``crows_pairs``.
        language: BCP 47-like code.
        fields: its texts, by name.
        options: how many answers there are.
        label: the right one, from 0. Of CrowS-Pairs: the sentence that the set marks as the more stereotyping one.
        group: a kind of items to tell apart: cause or effect, the edition of RTE, the type of bias.
    """

    id: str
    task: str
    language: str
    fields: dict[str, str]
    options: int
    label: int
    group: str


@dataclass(frozen=True)
class Translated:
    """A sentence and its English translation; ``test``: it is of the file's last fifth, which no training saw."""

    id: str
    language: str
    sentence: str
    english: str
    test: bool


def read_xcopa(folder: str | Path, language: str, split: Split = "test") -> list[Choice]:
    """XCOPA (Ponti et al. 2020): which of two is the cause, or the effect, of the premise.

    Fields: ``premise, choice1, choice2``; group ``cause`` or ``effect``; file ``<language>.<split>.jsonl``.
    """
    file = Path(folder) / f"{language}.{split}.jsonl"
    items = []
    for where, row in _json_rows(file):
        texts = {name: _text(row, name, where) for name in ("premise", "choice1", "choice2")}
        if row.get("question") not in ("cause", "effect"):
            raise InputError(f"{where}: question {row.get('question')!r}, expected cause or effect")
        if row.get("label") not in (0, 1) or isinstance(row["label"], bool):
            raise InputError(f"{where}: label {row.get('label')!r}, expected 0 or 1")
        items.append(Choice(f"{split}/{row.get('idx')}", "xcopa", language, texts, 2, row["label"], row["question"]))
    return _distinct(items, file)


def read_rte(
    folder: str | Path, editions: Sequence[int] = (1, 2, 3), split: Literal["dev", "test"] = "test"
) -> list[Choice]:
    """RTE 1 to 3 (Dagan et al. 2006 and after): does the hypothesis follow from the premise?

    Fields: ``premise, hypothesis``; label 0 is entailment, 1 is not; group ``rte1`` …; file ``rte<edition>_<split>.jsonl``.
    """
    items = []
    for edition in editions:
        file = Path(folder) / f"rte{edition}_{split}.jsonl"
        for number, (where, row) in enumerate(_json_rows(file)):
            texts = {name: _text(row, name, where) for name in ("premise", "hypothesis")}
            if row.get("label") not in RTE_LABELS:
                raise InputError(f"{where}: label {row.get('label')!r}, expected {' or '.join(RTE_LABELS)}")
            name = f"rte{edition}"
            items.append(
                Choice(f"{name}/{split}/{number}", "rte", "en", texts, 2, RTE_LABELS.index(row["label"]), name)
            )
    return items


def read_crows_pairs(file: str | Path) -> list[Choice]:
    """CrowS-Pairs (Nangia et al. 2020): two sentences that differ in who they are about.

    Fields: ``more, less`` (``sent_more``: the sentence about the disadvantaged group); options in this order. The label
    is the more stereotyping sentence: 0 where ``stereo_antistereo`` is ``stereo``, 1 where it is ``antistereo``. Group:
    the type of bias.
    """
    file = Path(file)
    items: list[Choice] = []
    names = ("sent_more", "sent_less", "stereo_antistereo", "bias_type")
    rows = csv.DictReader((line + "\n" for line in _lines(file)), strict=True)
    try:
        if missing := [name for name in names if name not in (rows.fieldnames or ())]:
            raise InputError(f"{file}: no column {missing[0]}, expected {', '.join(names)}")
        for row in rows:
            where = f"{file}, line {rows.line_num}"
            more, less, direction, kind = (_text(row, name, where) for name in names)
            if direction not in ("stereo", "antistereo"):
                raise InputError(f"{where}: stereo_antistereo {direction!r}, expected stereo or antistereo")
            items.append(
                Choice(str(len(items)), "crows_pairs", "en", {"more": more, "less": less}, 2,
                       ("stereo", "antistereo").index(direction), kind)
            )  # fmt: skip
    except csv.Error as error:
        raise InputError(f"{file}, line {rows.line_num}: not CSV ({error})") from error
    return _distinct(items, file)


def read_tatoeba(folder: str | Path, language: str) -> list[Translated]:
    """Sentences with English (Artetxe and Schwenk 2018): file ``tatoeba.<language>-en.tsv.gz``, its last fifth a test."""
    file = Path(folder) / f"tatoeba.{language}-en.tsv.gz"
    rows = []
    for number, line in enumerate(_lines(file), 1):
        sides = [side.strip() for side in line.split("\t")]
        if len(sides) != 2 or not all(sides):
            raise InputError(f"{file}, line {number}: expected a sentence, a tab and its English")
        rows.append(sides)
    if not rows:
        raise InputError(f"{file}: no line, expected sentence pairs")
    first = len(rows) - len(rows) // 5
    return [Translated(f"{language}/{i}", language, a, b, i >= first) for i, (a, b) in enumerate(rows)]


def read_parallel(folder: str | Path, languages: Sequence[str] | None = None) -> dict[str, dict[str, str]]:
    """Text by sentence id, by language, of CoNLL-U files ``<language>.conllu.gz`` (such as PUD) or ``….conllu``.

    Only the ids that all of the languages have are kept, in the order of the first, so that texts compare.

    Args:
        languages: which (default: all in the folder).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"parallel sentences {folder}: no such folder, expected one with files <language>.conllu.gz")
    files = {file.name.partition(".conllu")[0]: file for file in sorted(folder.iterdir()) if ".conllu" in file.name}
    wanted = sorted(files) if languages is None else list(dict.fromkeys(languages))
    if not wanted or (unknown := [name for name in wanted if name not in files]):
        missing = repr(unknown[0]) if wanted else "any language"
        there = ", ".join(files) or "nothing"
        raise InputError(f"parallel sentences {folder}: no file of {missing}, expected some of {there}")
    found = {name: _sentences(files[name]) for name in wanted}
    shared = [one for one in found[wanted[0]] if all(one in texts for texts in found.values())]
    if not shared:
        raise InputError(f"parallel sentences {folder}: no sentence id is in all of {', '.join(wanted)}")
    return {name: {one: texts[one] for one in shared} for name, texts in found.items()}


def _sentences(file: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    name: str | None = None
    for number, line in enumerate(_lines(file), 1):
        key, _, value = line.partition("=")
        if key == "# sent_id ":
            name = value.strip()
        elif key == "# text " and name is not None:
            if name in found or not value.strip():
                raise InputError(f"{file}, line {number}: sentence {name!r} twice, or without text")
            found[name], name = value.strip(), None
    if not found:
        raise InputError(f"{file}: no sentence with sent_id and text, expected CoNLL-U")
    return found


def _lines(file: Path) -> Iterator[str]:
    """Lines without their ends. Raises InputError for a file that can't be read."""
    try:
        with (
            gzip.open(file, "rt", encoding="utf-8-sig", newline="")
            if file.suffix == ".gz"
            else file.open(encoding="utf-8-sig", newline="") as stream
        ):
            for line in stream:
                yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 ({error.reason} at byte {error.start} of a block)") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{file}: not a whole gzip file ({error})") from error
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}, expected an evaluation set") from error


def _json_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    for number, line in enumerate(_lines(file), 1):
        where = f"{file}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise InputError(f"{where}: {type(row).__name__}, expected an object")
        yield where, row
    if number == 0:
        raise InputError(f"{file}: no line, expected one item on each")


def _text(row: dict[str, Any], name: str, where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: {name} is {value!r}, expected a text")
    return value.strip()


def _distinct(items: list[Choice], file: Path) -> list[Choice]:
    if not items:
        raise InputError(f"{file}: no item, expected some")
    name, times = Counter(item.id for item in items).most_common(1)[0]
    if times > 1:
        raise InputError(f"{file}: item {name} stands {times} times, expected once")
    return items
