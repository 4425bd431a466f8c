"""The passes over languages: copies and template lines, near copies, and the files of the corpus."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from inscape.data.corpus import duplicates
from inscape.data.corpus.chunks import Job, Segment, array, dropped, read_segment
from inscape.data.corpus.corpus import SPLITS
from inscape.data.corpus.counts import Counts
from inscape.data.corpus.writing import whole, write_array, write_json


def find_copies(job: Job, language: str, pieces: Sequence[Segment]) -> None:
    """Pass 2: ``copies/<lang>.drop`` (bool, one a document) and ``<lang>.<source>.npy`` (hashes of template lines)."""
    folder = job.folder / "copies"
    n = sum(piece.n for piece in pieces)
    apart = [number for number, source in enumerate(job.sources) if "exact" in source.skip]

    def keys() -> Iterator[np.ndarray]:
        for piece in pieces:
            records = array(job, "clean", piece.chunk, "docs")[slice(*piece.documents)]
            # A source that keeps its copies: keys of their own, from the ids.
            yield np.where(np.isin(records["source"], apart), records["id"] ^ ~records["text"], records["text"])

    with _marks(folder / f"{language}.drop", n) as drop:
        if n > 1:
            with _concatenated(folder / f".{language}.keys", keys(), n, np.dtype(np.uint64)) as found:
                duplicates.mark_copies(found, drop)
        for number, amount in sorted(_lines_by_source(job, pieces).items()):
            if amount < job.sources[number].template_count:
                continue
            lines = _lines_of(job, pieces, number, drop)
            with _concatenated(folder / f".{language}.lines", lines, amount, np.dtype(np.uint64)) as found:
                templates = duplicates.frequent(found, job.sources[number].template_count)
            if len(templates):
                write_array(folder / f"{language}.{number}.npy", templates)
    write_json(folder / f"{language}.json", {}, flush=False)


def _lines_by_source(job: Job, pieces: Sequence[Segment]) -> Counter[int]:
    """How many lines of each source could be a template."""
    found: Counter[int] = Counter()
    for piece in pieces:
        records = array(job, "clean", piece.chunk, "docs")[slice(*piece.documents)]
        for number, amount in enumerate(np.bincount(records["source"], records["lines"], len(job.sources))):
            found[number] += int(amount)
    return found


def _lines_of(job: Job, pieces: Sequence[Segment], source: int, drop: np.ndarray) -> Iterator[np.ndarray]:
    """Hashes of the lines of one source's documents, copies left out."""
    at = 0
    for piece in pieces:
        records = array(job, "clean", piece.chunk, "docs")[slice(*piece.documents)]
        mine = (records["source"] == source) & ~drop[at : at + piece.n]
        at += piece.n
        if mine.any():
            hashed = array(job, "clean", piece.chunk, "lines")[slice(*piece.lines)]
            yield hashed[np.repeat(mine, records["lines"])]


def find_near(job: Job, language: str, pieces: Sequence[Segment]) -> None:
    """Pass 4: ``near/<lang>.drop`` (bool, one a document)."""
    folder = job.folder / "near"
    n = sum(piece.n for piece in pieces)
    apart = [number for number, source in enumerate(job.sources) if "near" in source.skip]
    if n > 1 and job.config.near != "none":
        prints = (array(job, "kept", piece.chunk, "near")[slice(*piece.documents)] for piece in pieces)
        simhash = job.config.near == "simhash"
        dtype = np.dtype(np.uint64) if simhash else np.dtype((np.uint32, (duplicates.PERMUTATIONS,)))
        with (
            _marks(folder / f"{language}.drop", n) as drop,
            _concatenated(folder / f".{language}.prints", prints, n, dtype) as found,
        ):
            (duplicates.mark_near_simhash if simhash else duplicates.mark_near_minhash)(found, drop)
            at = 0
            for piece in pieces if apart else ():
                records = array(job, "kept", piece.chunk, "docs")[slice(*piece.documents)]
                drop[at : at + piece.n] &= ~np.isin(records["source"], apart)
                at += piece.n
    write_json(folder / f"{language}.json", {}, flush=False)


def write_language(job: Job, out: Path, language: str, pieces: Sequence[Segment]) -> None:
    """Pass 5: ``text/<lang>.jsonl.gz`` in ``out``, none where nothing is left, and ``written/<lang>.json``."""
    counts = Counts()
    offsets = np.cumsum([0, *(piece.n for piece in pieces)]).tolist()
    border = _border(job, language, pieces, offsets)
    sizes: dict[str, dict[str, int]] = {split: {"documents": 0, "bytes": 0} for split in SPLITS}
    digest = hashlib.sha256()
    path = out / "text" / f"{language}.jsonl.gz"
    with contextlib.ExitStack() as stack:
        stream = None
        for piece, offset in zip(pieces, offsets, strict=False):
            gone = dropped(job, "near", language, piece, offset)
            ids = array(job, "kept", piece.chunk, "docs")["id"][slice(*piece.documents)]
            for i, (name, number, text) in enumerate(read_segment(job, "kept", piece)):
                source = job.sources[number]
                size = len(text.encode())
                if job.config.near != "none" and "near" not in source.skip:
                    counts.add("near", language, source.name, size, None if gone[i] else size)
                if gone[i]:
                    continue
                split = SPLITS[int(ids[i] < border)]
                sizes[split]["documents"] += 1
                sizes[split]["bytes"] += size
                row = {"id": name, "lang": language, "source": source.name, "split": split, "text": text}
                line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
                digest.update(line)
                if stream is None:
                    raw = stack.enter_context(stack.enter_context(whole(path, flush=False)).open("wb"))
                    stream = stack.enter_context(gzip.GzipFile("", "wb", 6, raw, mtime=0))
                stream.write(line)
    content: dict[str, object] = {"sha256": digest.hexdigest(), **sizes, "counts": counts.rows()}
    write_json(job.folder / "written" / f"{language}.json", content, flush=False)


def _border(job: Job, language: str, pieces: Sequence[Segment], offsets: Sequence[int]) -> float:
    """A document is for validation where its id's hash is below: at least one of two documents or more."""
    share = job.config.validation * 2.0**64
    if share == 0:
        return 0.0
    least, n = 2.0**64, 0
    for piece, offset in zip(pieces, offsets, strict=False):
        ids = array(job, "kept", piece.chunk, "docs")["id"][slice(*piece.documents)]
        left = ids[~dropped(job, "near", language, piece, offset)]
        n += len(left)
        least = min(least, float(left.min())) if len(left) else least
    # (np.nextafter: the next number that a float can tell from it)
    return max(share, float(np.nextafter(least, np.inf))) if n > 1 else 0.0


@contextlib.contextmanager
def _marks(path: Path, n: int) -> Iterator[np.ndarray]:
    """Bool ``[n]``, all False, on disk; takes its place when the block is done."""
    with whole(path, flush=False) as temporary:
        with temporary.open("wb") as stream:
            stream.truncate(n)
        drop = np.memmap(temporary, bool, "r+", shape=(n,)) if n else np.zeros(0, bool)
        yield drop
        if isinstance(drop, np.memmap):
            drop.flush()


@contextlib.contextmanager
def _concatenated(path: Path, parts: Iterable[np.ndarray], n: int, dtype: np.dtype) -> Iterator[np.ndarray]:
    """The parts on end, of ``n`` items at most; many of them in a file that is there as long as the block runs."""
    if n * dtype.itemsize <= 8 * duplicates.BUDGET:
        yield np.concatenate([np.zeros((0, *dtype.shape), dtype.base), *parts])
        return
    try:
        with path.open("wb") as stream:
            for part in parts:
                stream.write(np.ascontiguousarray(part, dtype.base).tobytes())
        shape = (path.stat().st_size // dtype.itemsize, *dtype.shape)
        yield np.memmap(path, dtype.base, "r", shape=shape) if shape[0] else np.zeros(shape, dtype.base)
    finally:
        path.unlink(missing_ok=True)
