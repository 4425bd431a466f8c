"""A corpus built from sources: every step counted by language and source, in memory that does not grow with the text.

The steps, in order, and the pass in which each runs:

1. *clean* (by chunk of a few megabytes): languages left out, sampling, markup, empty documents;
2. *copies* (by language): exact copies found by their hashes, and lines that a source has too often;
3. *filter* (by chunk): those removed; length, repetition, special characters, stop words, language, personal data;
4. *near* (by language): near copies;
5. *write* (by language): what is left, with a part for validation.

Chunks and languages are dealt with by several processes. Each leaves a marker file behind when it is done, so a build that
was stopped goes on where it was; passes hand on files, not objects. What comes out is the same for any number of processes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import multiprocessing
import os
import platform
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from inscape.data.corpus import language_id
from inscape.data.corpus.chunks import Chunk, Job, Segment, clean_chunk, filter_chunk, marker, segments
from inscape.data.corpus.config import CorpusConfig
from inscape.data.corpus.corpus import FORMAT, SPLITS
from inscape.data.corpus.counts import COLUMNS, Counts
from inscape.data.corpus.documents import corpus_hash, paragraphs, raw_lines
from inscape.data.corpus.filters import stop_words
from inscape.data.corpus.languages import find_copies, find_near, write_language
from inscape.data.corpus.sources import CODE, by_name
from inscape.data.corpus.writing import flush, read_json, write_json
from inscape.errors import InputError

Loop = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]
"""``with progress(description, total) as advance: advance(1)``, as a run's ``progress``."""

_CHUNK = 4_000_000
"""Bytes of raw text in a chunk, about: a process holds one, with what is made of it."""

_MANY_BYTES = 20_000_000
"""Size of the files on disk from which several processes are worth their start (they import torch)."""

_WORK = "work"


def build_corpus(
    config: CorpusConfig, out: str | Path, *, processes: int | None = None, progress: Loop | None = None
) -> dict[str, Any]:
    """Build a corpus into a folder, go on where a stopped build was, or do nothing where it is done.

    Args:
        out: a new folder, or one of an earlier call with the same config and files.
        processes: None is one per core for files of 20 MB or more, else 1, which does everything in this process.

    Returns:
        What ``manifest.json`` holds: ``config``, ``inputs`` (hash by source), ``languages`` (``sha256`` and, by split,
        ``documents`` and ``bytes``), ``columns`` and ``counts`` (rows by step, language and source), ``sources``,
        ``without_stop_words`` and ``without_language_id`` (languages that pass these filters), ``seconds`` by pass.

    Raises:
        InputError: a source without files, a line that is no document, an unknown language; a folder of another corpus.
    """
    out = Path(out)
    job = Job(config, out / _WORK)
    by_name(config.sources)
    plan = _plan(config)
    if (finished := _checked(out, plan)) is not None:
        return finished
    loop = progress or _silent
    seconds: dict[str, float] = {}
    if processes is None and sum(path.stat().st_size for path in _files(config)) < _MANY_BYTES:
        processes = 1
    with _pool(processes) as each:

        @contextlib.contextmanager
        def stage(name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
            started = time.monotonic()
            with loop(f"corpus: {name}", total) as advance:
                yield advance
            seconds[name] = round(time.monotonic() - started, 2)

        n = 0

        def to_clean() -> Iterator[Chunk]:
            nonlocal n
            for chunk in _chunks(config):
                n = chunk.number + 1
                if not marker(job, "clean", chunk.number).exists():
                    yield chunk

        with stage("clean") as advance:
            each(functools.partial(clean_chunk, job), ((chunk,) for chunk in to_clean()), advance)
        pieces = _by_language(job, "clean", n)
        with stage("copies", len(pieces)) as advance:
            each(functools.partial(find_copies, job), _to_do(job, "copies", pieces), advance)
        with stage("filter", n) as advance:
            offsets = _offsets(pieces)
            tasks = ((i, offsets.get(i, {})) for i in range(n) if not marker(job, "kept", i).exists())
            each(functools.partial(filter_chunk, job), tasks, advance)
        kept = _by_language(job, "kept", n)
        with stage("near copies", len(kept)) as advance:
            each(functools.partial(find_near, job), _to_do(job, "near", kept), advance)
        with stage("write", len(kept)) as advance:
            each(functools.partial(write_language, job, out), _to_do(job, "written", kept), advance)
    record = {**plan, **_results(job, n, sorted(kept)), "seconds": seconds}
    flush(out / "text")
    write_json(out / "manifest.json", record)
    shutil.rmtree(job.folder)
    return record


def _files(config: CorpusConfig) -> set[Path]:
    return {path for source in config.sources for path in source.paths()}


def input_hashes(config: CorpusConfig) -> dict[str, str]:
    """SHA-256 of each source's files, by its name. Raises InputError where a source has none."""
    hashes: dict[Path, str] = {}
    inputs = {}
    for source in config.sources:
        digest = hashlib.sha256()
        for path in source.paths():
            if path not in hashes:
                hashes[path] = corpus_hash([path])
            digest.update(hashes[path].encode())
        inputs[source.name] = digest.hexdigest()
    return inputs


def _plan(config: CorpusConfig) -> dict[str, Any]:
    """What has to be the same for a build to go on; files count by their content, not by their names."""
    content = config.model_dump(mode="json", exclude={"sources": {"__all__": {"files"}}})
    return {"format": FORMAT, "config": content, "inputs": input_hashes(config)}


def _checked(out: Path, plan: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest where the corpus is there already. Raises InputError where the folder is something else's."""
    manifest = out / "manifest.json"
    begun = out / _WORK / "plan.json"
    before = next((read_json(path, "the plan of a corpus") for path in (manifest, begun) if path.exists()), None)
    if before is None:
        if out.is_dir() and any(not path.name.startswith(".") and path.name != _WORK for path in out.iterdir()):
            raise InputError(f"{out}: holds other files, expected a new or an empty folder")
        write_json(begun, plan)
        return None
    for key in ("format", "config", "inputs"):
        if before.get(key) != plan[key]:
            raise InputError(
                f"{out}: holds another corpus, {_difference(before.get(key), plan[key], key)}; expected a new folder"
            )
    return before if manifest.exists() else None


def _difference(before: Any, asked: Any, where: str) -> str:
    """The first key at which two values differ, in words."""
    if isinstance(before, dict) and isinstance(asked, dict):
        for key in [*before, *asked]:
            if before.get(key) != asked.get(key):
                return _difference(before.get(key), asked.get(key), f"{where}.{key}")
    if isinstance(before, list) and isinstance(asked, list) and len(before) == len(asked):
        for i, (a, b) in enumerate(zip(before, asked, strict=True)):
            if a != b:
                return _difference(a, b, f"{where}.{i}")
    shown = [str(value) if len(str(value)) <= 60 else f"{str(value)[:60]}…" for value in (before, asked)]
    return f"{where} was {shown[0]} and is {shown[1]}"


def _chunks(config: CorpusConfig) -> Iterator[Chunk]:
    """All raw text, in the order of the sources and their files; numbered from 0, the same at each call."""
    claims: dict[Path, dict[str, int]] = {}
    for number, source in enumerate(config.sources):
        if source.kind == "jsonl":
            for path in source.paths():
                claims.setdefault(path, {})[source.name] = number
    n = 0
    seen: set[Path] = set()
    for number, source in enumerate(config.sources):
        mine = {source.name: number}
        if source.kind == "python-stdlib":
            for paths in _batches(source.paths(), lambda path: path.stat().st_size):
                yield Chunk(n, paths[0], mine, paths=paths)
                n += 1
            continue
        for path in source.paths():
            if source.kind == "text":
                first = 1
                for texts in _batches(paragraphs(path), len):
                    yield Chunk(n, path, mine, first=first, texts=texts)
                    n, first = n + 1, first + len(texts)
            elif path not in seen:
                seen.add(path)
                first, offset = 1, 0
                for lines in _batches(raw_lines(path), len):
                    yield Chunk(n, path, claims[path], first, offset, lines)
                    n, first, offset = n + 1, first + len(lines), offset + sum(map(len, lines))


def _batches(items: Iterable[Any], size_of: Callable[[Any], int]) -> Iterator[list[Any]]:
    held: list[Any] = []
    size = 0
    for item in items:
        held.append(item)
        size += size_of(item)
        if size >= _CHUNK:
            yield held
            held, size = [], 0
    if held:
        yield held


def _by_language(job: Job, stage: str, n: int) -> dict[str, list[Segment]]:
    found: dict[str, list[Segment]] = {}
    for number in range(n):
        for language, segment in segments(job, stage, number).items():
            found.setdefault(language, []).append(segment)
    return found


def _offsets(pieces: dict[str, list[Segment]]) -> dict[int, dict[str, int]]:
    """By chunk and language: how many documents of the language stand in earlier chunks."""
    found: dict[int, dict[str, int]] = {}
    for language, segments_of in pieces.items():
        at = 0
        for segment in segments_of:
            found.setdefault(segment.chunk, {})[language] = at
            at += segment.n
    return found


def _to_do(job: Job, stage: str, pieces: dict[str, list[Segment]]) -> Iterator[tuple[str, list[Segment]]]:
    # The largest first, so that no process is left with it at the end.
    for language in sorted(pieces, key=lambda name: (-sum(piece.n for piece in pieces[name]), name)):
        if not (job.folder / stage / f"{language}.json").exists():
            yield language, pieces[language]


def _results(job: Job, n: int, languages: list[str]) -> dict[str, Any]:
    counts = Counts()
    for stage in ("clean", "kept"):
        for number in range(n):
            counts.add_rows(read_json(marker(job, stage, number), "the marker of a chunk")["counts"])
    written = {}
    for name in languages:
        content = read_json(job.folder / "written" / f"{name}.json", "the marker of a language")
        counts.add_rows(content.pop("counts"))
        if sum(content[split]["documents"] for split in SPLITS):
            written[name] = content
    if not written:
        raise InputError(
            "corpus: no document is left after all steps, expected some; the sources' `skip` leaves steps out"
        )
    natural = [name for name in written if name != CODE]
    return {
        "languages": written,
        "sources": [
            source.model_dump(mode="json", include={"name", "language", "licence", "weight"}) for source in job.sources
        ],
        "python": platform.python_version(),
        "without_stop_words": [name for name in natural if stop_words(name) is None],
        "without_language_id": [name for name in natural if not language_id.knows(name)],
        "columns": list(COLUMNS),
        "counts": counts.rows(),
    }


Each = Callable[[Callable[..., None], Iterable[tuple[Any, ...]], Callable[[int], None]], None]


@contextlib.contextmanager
def _pool(processes: int | None) -> Iterator[Each]:
    n = processes or os.cpu_count() or 1
    if n == 1:

        def one_by_one(
            work: Callable[..., None], tasks: Iterable[tuple[Any, ...]], advance: Callable[[int], None]
        ) -> None:
            for task in tasks:
                work(*task)
                advance(1)

        yield one_by_one
        return
    # spawn: a fork of a process with threads (torch) can hang.
    with ProcessPoolExecutor(n, mp_context=multiprocessing.get_context("spawn")) as pool:

        def each(work: Callable[..., None], tasks: Iterable[tuple[Any, ...]], advance: Callable[[int], None]) -> None:
            waiting: deque[Future[None]] = deque()
            try:
                for task in tasks:
                    waiting.append(pool.submit(work, *task))
                    if len(waiting) > 2 * n:
                        waiting.popleft().result()
                        advance(1)
                while waiting:
                    waiting.popleft().result()
                    advance(1)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

        yield each


@contextlib.contextmanager
def _silent(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    yield lambda steps: None
