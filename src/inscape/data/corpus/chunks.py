"""The passes over chunks: raw lines into clean documents, and clean documents through the filters.

A chunk's documents are sorted by language, so that a later pass reads a language's piece of it, a `Segment`, alone:

``N.jsonl``       one ``[id, source number, text]`` a line
``N.docs.npy``    `DOCUMENTS`: hashes of text and id, source number, number of hashed lines
``N.lines.npy``   uint64: hashes of the lines long enough to be a template, document after document
``N.near.npy``    fingerprints, after the filters
``N.json``        the marker: segments by language, counts
"""

from __future__ import annotations

import hashlib
import json
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from inscape.data.corpus import duplicates, language_id
from inscape.data.corpus.config import CorpusConfig
from inscape.data.corpus.counts import Counts
from inscape.data.corpus.documents import decoded, json_row
from inscape.data.corpus.filters import FILTERS, failed, thresholds
from inscape.data.corpus.markup import remove_markup
from inscape.data.corpus.pii import replace_pii
from inscape.data.corpus.sources import CODE, Source, check_language, stdlib_root
from inscape.data.corpus.writing import read_json, whole, write_array, write_json
from inscape.errors import InputError

DOCUMENTS = np.dtype([("text", "<u8"), ("id", "<u8"), ("source", "<u2"), ("lines", "<u4")])

SHORTEST_LINE = 15
"""Characters from which a line can be a template (ROOTS)."""


@dataclass(frozen=True)
class Job:
    """What every pass needs. ``folder`` is where passes leave their files."""

    config: CorpusConfig
    folder: Path

    @property
    def sources(self) -> tuple[Source, ...]:
        return self.config.sources


@dataclass(frozen=True)
class Chunk:
    """Raw text of one file. ``claims``: numbers of the sources that name the file, by their names.

    ``lines`` are those of a jsonl file, from line ``first`` at byte ``offset`` on; ``texts`` the paragraphs of a plain
    text, from number ``first`` on; ``paths`` modules of the standard library.
    """

    number: int
    file: Path
    claims: Mapping[str, int]
    first: int = 1
    offset: int = 0
    lines: Sequence[bytes] = ()
    texts: Sequence[str] = ()
    paths: Sequence[Path] = ()


class Segment(NamedTuple):
    """One language's piece of a chunk: where its bytes, documents and lines begin and end."""

    chunk: int
    bytes: tuple[int, int]
    documents: tuple[int, int]
    lines: tuple[int, int]

    @property
    def n(self) -> int:
        return self.documents[1] - self.documents[0]


def marker(job: Job, stage: str, number: int) -> Path:
    return job.folder / stage / f"{number:06d}.json"


def segments(job: Job, stage: str, number: int) -> dict[str, Segment]:
    """By language, of a chunk whose marker is there."""
    content = read_json(marker(job, stage, number), "the marker of a chunk")
    return {name: Segment(number, *map(tuple, found)) for name, found in content["segments"].items()}


def clean_chunk(job: Job, chunk: Chunk) -> None:
    """Pass 1. Raises InputError where a line is no document."""
    config, counts = job.config, Counts()
    kept: dict[str, list[tuple[str, int, str]]] = {}
    for name, language, source, text in _documents(job, chunk):
        given, text = len(text), _valid(text)
        where = language, job.sources[source].name
        size = _size(text)
        counts.add("read", *where, size, size)
        if config.held_out or config.languages is not None:
            wanted = language not in config.held_out and (config.languages is None or language in config.languages)
            counts.add("languages", *where, size, size if wanted else None)
            if not wanted:
                continue
        if job.sources[source].weight < 1:
            drawn = _hash(f"{config.seed} sample {name}") < job.sources[source].weight * 2.0**64
            counts.add("sample", *where, size, size if drawn else None)
            if not drawn:
                continue
        if job.sources[source].markup != "none":
            text = remove_markup(text, job.sources[source].markup)
            counts.add("markup", *where, size, after := _size(text))
            size = after
        empty = not given or not text.strip()
        counts.add("empty", *where, size, None if empty else size)
        if not empty:
            kept.setdefault(language, []).append((name, source, text))
    documents, lines = [], []
    for language in sorted(kept):
        for name, source, text in kept[language]:
            hashed = [] if "template_lines" in job.sources[source].skip else [_hash(line) for line in long_lines(text)]
            lines += hashed
            documents.append((_hash(text.strip()), _hash(f"{config.seed} split {name}"), source, len(hashed)))
    arrays = {"docs": np.array(documents, DOCUMENTS), "lines": np.array(lines, np.uint64)}
    _write(job, "clean", chunk.number, kept, arrays, counts)


def filter_chunk(job: Job, number: int, offsets: Mapping[str, int]) -> None:
    """Pass 3. ``offsets``: where the chunk's documents stand among those of their language."""
    counts = Counts()
    kept: dict[str, list[tuple[str, int, str]]] = {}
    documents: list[tuple[int, int, int, int]] = []
    near: list[Any] = []
    docs, lines = array(job, "clean", number, "docs"), array(job, "clean", number, "lines")
    for language, segment in segments(job, "clean", number).items():
        copies = dropped(job, "copies", language, segment, offsets[language])
        records = docs[slice(*segment.documents)]
        ends = np.cumsum(records["lines"], dtype=np.int64) + segment.lines[0]
        for i, (name, source, text) in enumerate(read_segment(job, "clean", segment)):
            hashed = lines[ends[i] - records["lines"][i] : ends[i]]
            text_out = _filtered(job, language, source, text, bool(copies[i]), hashed, counts)
            if text_out is None:
                continue
            kept.setdefault(language, []).append((name, source, text_out))
            documents.append((0, int(records["id"][i]), source, 0))
            if job.config.near == "simhash":
                near.append(duplicates.simhash(text_out))
            elif job.config.near == "minhash":
                near.append(duplicates.minhash(text_out))
    arrays: dict[str, np.ndarray] = {"docs": np.array(documents, DOCUMENTS)}
    if job.config.near == "simhash":
        arrays["near"] = np.array(near, np.uint64)
    elif job.config.near == "minhash":
        arrays["near"] = np.array(near, np.uint32).reshape(-1, duplicates.PERMUTATIONS)
    _write(job, "kept", number, kept, arrays, counts)


def _filtered(
    job: Job, language: str, number: int, text: str, copy: bool, hashed: np.ndarray, counts: Counts
) -> str | None:
    """The text that the filters leave, or None where they leave nothing."""
    source = job.sources[number]
    size = _size(text)

    def passed(step: str, after: str | None) -> bool:
        nonlocal text, size
        left = None if after is None else size if after is text else _size(after)
        counts.add(step, language, source.name, size, left)
        if after is None or left is None:
            return False
        text, size = after, left
        return True

    if "exact" not in source.skip and not passed("exact", None if copy else text):
        return None
    if "template_lines" not in source.skip:
        templates = _templates(job.folder, language, number)
        if len(hashed) and len(templates):
            at = np.minimum(np.searchsorted(templates, hashed), len(templates) - 1)
            found = templates[at] == hashed
            left = without_lines(text, found) if found.any() else text
        else:
            left = text
        if not passed("template_lines", left if left.strip() else None):
            return None
    bad = failed(text, language, source.skip)
    for step in FILTERS:
        if step not in source.skip and not passed(step, None if step == bad else text):
            return None
    if "language_id" not in source.skip:
        probability = language_id.probability(text, language)
        known = probability is None or probability >= thresholds(language).language_id
        if not passed("language_id", text if known else None):
            return None
    if source.pii:
        passed("pii", replace_pii(text, source.pii)[0])
    return text


def long_lines(text: str) -> Iterator[str]:
    """The lines that can be a template, without the space around them."""
    return (line for line in map(str.strip, text.split("\n")) if len(line) >= SHORTEST_LINE)


def without_lines(text: str, drop: np.ndarray) -> str:
    """The text without those of its `long_lines` that ``drop`` (bool, one for each) says."""
    gone = iter(drop.tolist())
    return "\n".join(line for line in text.split("\n") if len(line.strip()) < SHORTEST_LINE or not next(gone)).strip(
        "\n"
    )


def array(job: Job, stage: str, number: int, name: str) -> np.ndarray:
    """One of a chunk's arrays, mapped where it holds anything."""
    path = job.folder / stage / f"{number:06d}.{name}.npy"
    with path.open("rb") as stream:
        np.lib.format.read_magic(stream)
        empty = 0 in np.lib.format.read_array_header_1_0(stream)[0]
    return np.load(path, mmap_mode=None if empty else "r", allow_pickle=False)


def dropped(job: Job, stage: str, language: str, segment: Segment, offset: int) -> np.ndarray:
    """Bool ``[documents of the segment]``: which of them the pass over the language said are to go."""
    path = job.folder / stage / f"{language}.drop"
    if not path.exists():
        return np.zeros(segment.n, bool)
    return np.fromfile(path, bool, segment.n, offset=offset)


def read_segment(job: Job, stage: str, segment: Segment) -> Iterator[tuple[str, int, str]]:
    """Id, source number and text of its documents."""
    with (job.folder / stage / f"{segment.chunk:06d}.jsonl").open("rb") as stream:
        stream.seek(segment.bytes[0])
        for _ in range(segment.n):
            yield tuple(json.loads(stream.readline()))


@cache
def _templates(folder: Path, language: str, source: int) -> np.ndarray:
    path = folder / "copies" / f"{language}.{source}.npy"
    return np.load(path) if path.exists() else np.zeros(0, np.uint64)


def _write(
    job: Job,
    stage: str,
    number: int,
    kept: Mapping[str, list[tuple[str, int, str]]],
    arrays: Mapping[str, np.ndarray],
    counts: Counts,
) -> None:
    stem = f"{number:06d}"
    found: dict[str, Any] = {}
    at = documents = lines = 0
    with whole(job.folder / stage / f"{stem}.jsonl", flush=False) as temporary, temporary.open("wb") as stream:
        for language in sorted(kept):
            begin = at, documents, lines
            for row in kept[language]:
                at += stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            documents += len(kept[language])
            lines += int(arrays["docs"]["lines"][begin[1] : documents].sum())
            found[language] = list(zip(begin, (at, documents, lines), strict=True))
    for name, content in arrays.items():
        write_array(job.folder / stage / f"{stem}.{name}.npy", content)
    write_json(marker(job, stage, number), {"segments": found, "counts": counts.rows()}, flush=False)


def _documents(job: Job, chunk: Chunk) -> Iterator[tuple[str, str, int, str]]:
    """Id, language, source number and text."""
    alone = next(iter(chunk.claims.items())) if len(chunk.claims) == 1 else None
    for path in chunk.paths:
        assert alone is not None
        relative = path.relative_to(stdlib_root())
        yield f"{alone[0]}/{relative.as_posix()}", CODE, alone[1], _module(path)
    for number, text in enumerate(chunk.texts, chunk.first):
        assert alone is not None
        yield f"{alone[0]}/{chunk.file.name}:{number}", job.sources[alone[1]].language or "", alone[1], text
    for number, line in decoded(chunk.lines, chunk.file, first=chunk.first, offset=chunk.offset):
        if not line.strip():
            continue
        where = f"corpus {chunk.file}, line {number}"
        row = json_row(line, where)
        if alone is None:
            if row.get("source") not in chunk.claims:
                raise InputError(
                    f"{where}: source {row.get('source')!r}, expected one of those that name the file: "
                    f"{', '.join(chunk.claims)}"
                )
            source = chunk.claims[row["source"]]
        else:
            source = alone[1]
        language = job.sources[source].language or row.get("lang")
        if not isinstance(language, str):
            raise InputError(f"{where}: no language under the key lang, and none given for the source")
        yield str(row.get("id", f"{chunk.file.name}:{number}")), _checked(language, where), source, row["text"]


def _module(path: Path) -> str:
    try:
        with tokenize.open(path) as stream:  # (honours the encoding that a module declares)
            return stream.read()
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}), expected a Python module") from error


_KNOWN: set[str] = set()


def _checked(language: str, where: str) -> str:
    if language not in _KNOWN:
        _KNOWN.add(check_language(language, where))
    return language


def _valid(text: str) -> str:
    """The text; half a surrogate pair (an escape cut in two) becomes U+FFFD, for it has no UTF-8."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
