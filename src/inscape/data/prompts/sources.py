"""The data that prompts are filled from, read once from a folder laid out as the corpora pack is.

``parallel/`` has sentence pairs with English, the last fifth of each file a test part; ``pretrain/`` has documents;
``eval/`` has evaluation sets. Documents are split by a hash of what their translations have in common (the page, not the
language), so that no page is trained on in one language and tested on in another.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from inscape.errors import InputError

_TAG = re.compile(r"<[^<>\n]{1,200}>")
_ROLE = re.compile(r":[a-z:+-]+:`[!~]?([^`<]*?)(?:\s*<[^`]*>)?`")
_SENTENCE_END = re.compile(r"(?<=[.!?।])\s+|(?<=[。！？])\s*")
_DOCUMENTS = 600  # read per language: more than any mixture draws
_LINES = 12  # of a document that are read
_BYTES = 350  # of a text shown in a prompt


def corpora_folder() -> Path:
    """The corpora pack under ``INSCAPE_SHARED``. Raises InputError where that is not set or has no pack."""
    shared = os.environ.get("INSCAPE_SHARED")
    if not shared:
        raise InputError("no folder of corpora: give one, or set INSCAPE_SHARED to the folder that holds data/corpora")
    folder = Path(shared) / "data" / "corpora"
    if not folder.is_dir():
        raise InputError(
            f"INSCAPE_SHARED: {folder} is not there, expected a folder with parallel/, pretrain/ and eval/"
        )
    return folder


@dataclass(frozen=True)
class Pair:
    """A sentence and its English translation."""

    language: str
    number: int
    sentence: str
    english: str
    test: bool


@dataclass(frozen=True)
class Article:
    """A titled document: ``lines`` are its text, markup removed."""

    id: str
    group: str
    language: str
    title: str
    lines: tuple[str, ...]
    test: bool


@dataclass(frozen=True)
class Question:
    """A question about a sentence that holds the answer."""

    id: str
    language: str
    sentence: str
    question: str
    answer: str


class Sources:
    """Data of some languages under ``root``.

    Raises (from every property):
        InputError: a file that is missing, damaged or not of the expected form, with its line.
    """

    def __init__(self, root: Path | str, languages: Sequence[str]) -> None:
        self.root = Path(root)
        self.languages = tuple(languages)
        if not self.root.is_dir():
            raise InputError(f"corpora {self.root}: no such folder, expected one with parallel/, pretrain/ and eval/")
        for language in self.languages:
            names = (f"parallel/tatoeba.{language}-en.tsv.gz", f"pretrain/{language}.jsonl.gz")
            if not any((self.root / name).is_file() for name in names):
                raise InputError(f"corpora {self.root}: nothing in {language!r}, expected {' or '.join(names)}")

    def only(self, languages: Sequence[str], named: Sequence[str] | None = None) -> Sources:
        """The same data in some of the languages, read once for both.

        Args:
            named: languages that may be named (as a wrong option, say); by default the same ones.
        """
        part = Sources(self.root, languages)
        for name in ("pairs", "articles", "questions"):
            part.__dict__[name] = [one for one in getattr(self, name) if one.language in part.languages]
        part.__dict__["english"] = self.english
        part.__dict__["named"] = tuple(code for code in self.named if code in (named or languages))
        return part

    @cached_property
    def pairs(self) -> list[Pair]:
        """Tatoeba pairs of the languages that have them, file by file; a file's last fifth is its test part."""
        found: list[Pair] = []
        for language in self.languages:
            file = self.root / "parallel" / f"tatoeba.{language}-en.tsv.gz"
            if not file.exists():
                continue
            rows = []
            for number, line in _lines(file):
                sides = line.split("\t")
                if len(sides) != 2 or not all(side.strip() for side in sides):
                    raise InputError(f"{file}, line {number}: expected a sentence, a tab and its English")
                rows.append(sides)
            first_test = len(rows) - len(rows) // 5
            found += [Pair(language, i, s.strip(), e.strip(), i >= first_test) for i, (s, e) in enumerate(rows)]
        return found

    @cached_property
    def english(self) -> list[Pair]:
        """The distinct English sentences of the pairs, both sides alike; a test one if it is so in any file."""
        tests = {pair.english for pair in self.pairs if pair.test}
        distinct = dict.fromkeys(pair.english for pair in self.pairs)
        return [Pair("en", i, text, text, text in tests) for i, text in enumerate(distinct)]

    @cached_property
    def sentences(self) -> list[Pair]:
        """Sentences of each language, the English ones with them if English is asked for."""
        return [*self.pairs, *(self.english if "en" in self.languages else ())]

    @cached_property
    def named(self) -> tuple[str, ...]:
        """The languages that have sentences."""
        return tuple(dict.fromkeys(sentence.language for sentence in self.sentences))

    @cached_property
    def articles(self) -> list[Article]:
        """Titled documents of the languages (help pages, manuals, encyclopedia), at most 600 per language and source."""
        found: list[Article] = []
        for language in self.languages:
            file = self.root / "pretrain" / f"{language}.jsonl.gz"
            if not file.exists():
                continue
            counts: dict[str, int] = {}
            for number, line in _lines(file):
                row = _json(file, line, number)
                if not isinstance(row, dict) or any(
                    not isinstance(row.get(name), str) for name in ("id", "source", "text")
                ):
                    raise InputError(f"{file}, line {number}: expected an object with the texts id, source and text")
                if counts.get(row["source"], 0) < _DOCUMENTS and (one := _article(row, language)) is not None:
                    counts[row["source"]] = counts.get(row["source"], 0) + 1
                    found.append(one)
        return found

    @cached_property
    def questions(self) -> list[Question]:
        """XQuAD of the languages that it has, each question with the one sentence that holds its first answer."""
        found = []
        for language in self.languages:
            file = self.root / "eval" / "xquad" / f"{language}.json.gz"
            if not file.exists():
                continue
            content = _json(file, "\n".join(line for _, line in _lines(file)))
            try:
                items = [
                    (paragraph["context"], item)
                    for article in content["data"]
                    for paragraph in article["paragraphs"]
                    for item in paragraph["qas"]
                ]
                for context, item in items:
                    answer = item["answers"][0]
                    sentence = _sentence_around(context, answer["answer_start"], answer["text"])
                    found.append(Question(item["id"], language, sentence, item["question"].strip(), answer["text"]))
            except (KeyError, IndexError, TypeError) as error:
                raise InputError(f"{file}: not in the form of SQuAD 1.1 ({type(error).__name__} {error})") from error
        return [one for one in found if one.answer and len(one.sentence.encode()) <= 2 * _BYTES]

    @cached_property
    def causes(self) -> list[tuple[str, dict[str, Any]]]:
        """(language, item) of XCOPA's test parts."""
        fields = {"premise": str, "choice1": str, "choice2": str, "question": str, "label": int, "idx": int}
        found = []
        for language in self.languages:
            file = self.root / "eval" / "xcopa" / f"{language}.test.jsonl"
            if file.exists():
                found += [(language, row) for row in _rows(file, fields)]
        return found

    @cached_property
    def entailments(self) -> list[tuple[str, dict[str, Any]]]:
        """(id, item) of the test parts of RTE 1–3, which are English."""
        fields = {"premise": str, "hypothesis": str, "label": str}
        found = []
        for part in (1, 2, 3):
            file = self.root / "eval" / "rte" / f"rte{part}_test.jsonl"
            found += [(f"rte{part}/{number}", row) for number, row in enumerate(_rows(file, fields))]
        return found

    def files(self) -> list[Path]:
        """Every file that the properties read, for hashing; in a fixed order."""
        names = [
            f"{folder}/{pattern.format(language)}"
            for language in sorted(self.languages)
            for folder, pattern in (
                ("parallel", "tatoeba.{}-en.tsv.gz"), ("pretrain", "{}.jsonl.gz"), ("eval/xquad", "{}.json.gz"),
                ("eval/xcopa", "{}.test.jsonl"),
            )
        ]  # fmt: skip
        names += [f"eval/rte/rte{part}_test.jsonl" for part in (1, 2, 3)]
        return [file for name in names if (file := self.root / name).is_file()]


def sentences_of(text: str) -> list[str]:
    """Sentences by their final marks: good enough to show one, not to count them."""
    return [part.strip() for part in _SENTENCE_END.split(text) if part.strip()]


def cut(text: str, most: int = _BYTES) -> str:
    """The beginning of a text, at most ``most`` bytes of UTF-8, whole words where it has spaces."""
    if len(text.encode()) <= most:
        return text
    short = text.encode()[:most].decode("utf-8", errors="ignore")
    head, space, _ = short.rpartition(" ")
    return head if space and len(head) > len(short) // 2 else short


def in_test(group: str) -> bool:
    """Whether a group is on the test side: one in five, by hash."""
    return hashlib.sha256(group.encode()).digest()[0] % 5 == 0


def _article(row: dict[str, Any], language: str) -> Article | None:
    lines = [
        " ".join(_ROLE.sub(r"\1", _TAG.sub("", line)).split()) for line in row["text"].split("\n", _LINES)[:_LINES]
    ]
    lines = [line for line in lines if line]
    if len(lines) < 3:
        return None
    parts = row["id"].split("/")
    if row["source"] == "gnome-help" and len(parts) == 4:
        # Line one tells what the page is for, line two is its title.
        title, text, group = lines[1], (lines[0], *lines[2:]), f"gnome/{parts[1]}/{parts[3]}"
    elif row["source"] == "python-docs" and len(parts) > 3:
        title, text, group = lines[0], tuple(lines[1:]), f"python-docs/{'/'.join(parts[3:])}"
    elif row["source"] in ("jaquad", "drcd", "cmrc2018"):
        title, text, group = lines[0], tuple(lines[1:]), row["id"]
    else:
        return None
    if len(title.encode()) > 90 or any("%" in part or "``" in part for part in (title, text[0])):
        return None
    return Article(row["id"], group, language, title, tuple(text), in_test(group))


def _sentence_around(context: str, start: int, answer: str) -> str:
    """The sentence of ``context`` that holds the answer; more than one where the answer spans them."""
    at = 0
    for end in [match.start() for match in _SENTENCE_END.finditer(context)] + [len(context)]:
        if end >= start + len(answer):
            return context[at:end].strip()
        if end <= start:
            at = end
    return context[at:].strip()


def _rows(file: Path, fields: Mapping[str, type]) -> list[dict[str, Any]]:
    rows = []
    for number, line in _lines(file):
        row = _json(file, line, number)
        if not isinstance(row, dict) or any(not isinstance(row.get(name), kind) for name, kind in fields.items()):
            raise InputError(f"{file}, line {number}: expected an object with {', '.join(fields)}")
        rows.append(row)
    return rows


def _json(file: Path, text: str, number: int | None = None) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        where = f"{file}" if number is None else f"{file}, line {number}"
        raise InputError(f"{where}: not JSON ({error})") from error


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield number, line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 ({error.reason})") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{file}: not a whole gzip file ({error})") from error
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}, expected a file of the corpora pack") from error
