"""Adjacent tokens of a text counted: ``n(w, v)``, how often the token ``w`` stands right before ``v`` within a document.

**Vocabulary.** ``v`` is the *suffix*, ``w`` the *prefix*; a *document* is a line, a file, a stretch between blank lines or
one field of a JSON line. No token is put before or after a document, and no pair reaches from one into the next.

**Mechanism.** One process reads (a piece at a time) and hands out batches of documents; the others tokenise and count them
and give back sorted sums. These are added up in memory; when more than ``most_pairs`` of them are held, they are written
as one sorted run to a file that has no name (so that nothing is left behind, however the process ends), and the runs are
merged key range by key range at the end. Sums don't depend on their order: any number of processes gives the same counts.

**Memory** beyond the result (16 bytes per distinct bigram) is bounded, whatever the size of the text: about 80 bytes ×
``most_pairs``, and per process a batch with its tokens. A document of more than `LONGEST` characters is cut,
before a line break where there is one, and counted as several (`Bigrams.cuts` says how often that was done); only a line of
JSON has to fit the memory as a whole.

**Failure.** A file that is missing, unreadable, or not UTF-8 (told with the byte's offset), a line that is not what was
announced, a text without two tokens in a row, and a token beyond the vocabulary are an `InputError`.
"""

from __future__ import annotations

import codecs
import gzip
import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import re
import tempfile
import threading
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, get_args

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerBase

from inscape.errors import InputError

Documents = Literal["line", "file", "blank line", "jsonl"]

LONGEST = 2**20  # characters of a document before it is cut
BATCH = 2**18  # characters that are tokenised at a time
READ = 2**18  # bytes that are read at a time
LARGE = 2**26  # bytes of files from which on several processes are worth their start
MOST_RUNS = 64  # files open at a time
_SEPARATORS = {"line": re.compile("\r?\n"), "jsonl": re.compile("\n"), "blank line": re.compile("\n(?:[ \t\r]*\n)+")}
_ARRAYS = {"suffix": "I32", "prefix": "I32", "count": "I64", "unigram": "I64"}
_NUMBERS = ("documents", "tokens", "cuts")


@dataclass(frozen=True)
class Bigrams:
    """Counts of a text, sparse, in the order of (suffix, prefix): ``n`` distinct bigrams in a vocabulary of ``V`` tokens."""

    suffix: np.ndarray  # int32 [n]
    prefix: np.ndarray  # int32 [n]
    count: np.ndarray  # int64 [n], at least 1
    unigram: np.ndarray  # int64 [V]: how often each token occurs, first ones of documents as well
    documents: int  # that are not empty, cut ones counted once per part
    tokens: int
    cuts: int  # places where a document was cut for its length

    def __len__(self) -> int:
        """The number of distinct bigrams."""
        return len(self.suffix)

    def rows(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Suffixes that have a prefix (ascending), where the bigrams of each start, and how many it has: int64 each."""
        suffixes, starts, sizes = np.unique(self.suffix, return_index=True, return_counts=True)
        return suffixes.astype(np.int64), starts.astype(np.int64), sizes.astype(np.int64)

    def prefixes(self, suffix: int) -> tuple[np.ndarray, np.ndarray]:
        """The prefixes of one suffix (int32, ascending) and their counts (int64); empty when the text holds none."""
        low, high = np.searchsorted(self.suffix, [suffix, suffix + 1])
        return self.prefix[low:high], self.count[low:high]

    def check_vocab(self, vocab: int) -> None:
        """Raise an `InputError` unless the counts are for a vocabulary of ``vocab`` tokens."""
        if len(self.unigram) != vocab:
            raise InputError(
                f"the bigrams were counted for {len(self.unigram)} tokens, the tables have {vocab}: expected the same "
                f"number (count_bigrams(..., vocab={vocab}))"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file (under another name first: a file of that name is always whole)."""
        path = Path(path)
        part = path.with_name(path.name + ".part")
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
        try:
            save_file(arrays, part, metadata={"bigrams": json.dumps({name: getattr(self, name) for name in _NUMBERS})})
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Bigrams:
        """Read what `save` wrote.

        Raises:
            InputError: the file is missing or holds something else.
        """
        try:
            with safe_open(path, "numpy") as file:
                kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
                found = json.loads((file.metadata() or {})["bigrams"])
                numbers = {name: int(found[name]) for name in _NUMBERS}
                arrays = {name: file.get_tensor(name) for name in kinds}
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: not a readable file of bigrams ({error})") from error
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(f"{path}: not a file of bigrams ({type(error).__name__}: {error})") from error
        if kinds != _ARRAYS:
            raise InputError(f"{path}: not a file of bigrams: expected {_ARRAYS}, found {kinds}")
        suffix, prefix, count, unigram = (arrays[name] for name in _ARRAYS)
        if not (
            suffix.shape == prefix.shape == count.shape == (len(count),)
            and all(((tokens >= 0) & (tokens < len(unigram))).all() for tokens in (suffix, prefix))
            and (np.diff(_keys(prefix, suffix)) > 0).all()
            and (count > 0).all()
            and unigram.sum() == numbers["tokens"]
        ):
            raise InputError(f"{path}: the bigrams are out of order or out of range; count them again")
        return cls(suffix, prefix, count, unigram, **numbers)


def count_bigrams(
    files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    documents: Documents = "line",
    field: str = "text",
    vocab: int | None = None,
    processes: int | None = None,
    most_pairs: int = 2**22,
) -> Bigrams:
    """Count the adjacent tokens of a text of any size; see the module for the mechanism and what it needs.

    Args:
        files: one or more UTF-8 text files, packed with gzip when the name ends in ``.gz``.
        tokenizer: adds no token of its own here; a special token that is spelled out in the text counts as that token.
        documents: what a document is. ``jsonl``: the string ``field`` of the object on each line. Documents of nothing but
            white space are passed over.
        vocab: rows of the model's embedding; by default the tokenizer's length.
        processes: that tokenise. With 1 all is done in this process; more are started afresh, which takes seconds, and a
            script that asks for them needs ``if __name__ == "__main__":``. By default one per core for files of more than
            `LARGE` bytes together, else 1.
        most_pairs: partial sums that are held before they go to the disk (about 80 bytes each while they are merged).

    Raises:
        InputError: see the module.
    """
    paths = [Path(files)] if isinstance(files, str | os.PathLike) else [Path(file) for file in files]
    if documents not in get_args(Documents):
        raise InputError(f"documents {documents!r}: expected one of {', '.join(get_args(Documents))}")
    vocab = len(tokenizer) if vocab is None else vocab
    for name, value in (("processes", processes), ("vocab", vocab), ("most_pairs", most_pairs)):
        if value is not None and value < 1:
            raise InputError(f"{name} {value}: expected 1 or more")
    if not paths:
        raise InputError("an empty corpus: no file was given")
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path}: {'a folder' if path.is_dir() else 'no such file'}, expected a text file")
    if processes is None:
        processes = (os.cpu_count() or 1) if sum(path.stat().st_size for path in paths) > LARGE else 1

    cut = [0]  # (counted by the reading side while it goes)
    batches = _batches(text for path in paths for text in _documents(path, documents, field, cut))
    sums = _Sums(most_pairs)
    unigram = np.zeros(vocab, np.int64)
    number = 0
    for pairs, singles, texts in _counted(batches, tokenizer, vocab, processes):
        sums.add(*pairs)
        unigram[singles[0]] += singles[1]
        number += texts
    suffix, prefix, count = sums.result()
    if not len(count):
        names = ", ".join(str(path) for path in paths[:3]) + (", …" if len(paths) > 3 else "")
        raise InputError(f"an empty corpus: no document of {names} has two tokens")
    return Bigrams(suffix, prefix, count, unigram, documents=number, tokens=int(unigram.sum()), cuts=cut[0])


# --- reading


def _documents(path: Path, documents: Documents, field: str, cut: list[int]) -> Iterator[str]:
    """The documents of a file that hold more than white space, none longer than `LONGEST`; ``cut[0]`` counts the cuts."""
    if documents == "jsonl":
        lines = _split(_text(path), _SEPARATORS[documents], None, cut)
        whole = (_field(line, field, f"{path}:{n}") for n, line in enumerate(lines, 1) if line and not line.isspace())
        pieces: Iterator[str] = (piece for text in whole for piece in _split([text], None, LONGEST, cut))
    else:
        pieces = _split(_text(path), _SEPARATORS.get(documents), LONGEST, cut)
    return (piece for piece in pieces if piece and not piece.isspace())


def _text(path: Path) -> Iterator[str]:
    """The text of a file, a part at a time, without a byte order mark."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            while True:
                part = file.read(READ)
                pending = decoder.getstate()[0]
                try:
                    text = decoder.decode(part, final=not part)
                except UnicodeDecodeError as error:
                    place = offset - len(pending) + error.start
                    unpacked = " of the unpacked text" if path.suffix == ".gz" else ""
                    raise InputError(
                        f"{path}: not UTF-8 at byte {place}{unpacked} (0x{error.object[error.start]:02x}: {error.reason})"
                    ) from error
                yield text if offset else text.removeprefix("\ufeff")
                offset += len(part)
                if not part:
                    return
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: can't be read ({error})") from error


def _split(
    parts: Iterable[str], separator: re.Pattern[str] | None, longest: int | None, cut: list[int]
) -> Iterator[str]:
    """What stands between separators, cut into pieces of at most ``longest`` characters; empty ones as well."""
    carry: list[str] = []  # (joined only when there is something to find: a long line is not copied again and again)
    size = 0
    for part in itertools.chain(parts, [None]):
        carry.append(part or "")
        size += len(carry[-1])
        if part is not None and (longest is None or size <= longest) and (separator is None or "\n" not in part):
            continue
        text = "".join(carry)
        found = list(separator.finditer(text)) if separator else []
        if part is not None and found and not text[found[-1].end() :].strip():
            found.pop()  # (what comes next may belong to this separator)
        low = 0
        for match in found:
            yield from _pieces(text[low : match.start()], longest, cut)
            low = match.end()
        *pieces, last = _pieces(text[low:], longest, cut)
        yield from pieces
        carry, size = [last], len(last)
    yield from carry


def _pieces(text: str, longest: int | None, cut: list[int]) -> Iterator[str]:
    while longest is not None and len(text) > longest:
        at = text.rfind("\n", longest // 2, longest)
        at = longest if at < 0 else at
        cut[0] += 1
        yield text[:at]
        text = text[at:]
    yield text


def _field(line: str, field: str, where: str) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not a line of JSON ({error})") from error
    if not isinstance(row, dict) or not isinstance(row.get(field), str):
        found = f"the fields {', '.join(sorted(row))}" if isinstance(row, dict) else type(row).__name__
        raise InputError(f"{where}: expected an object with a text {field!r}, found {found}")
    return str(row[field])


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


# --- counting

_Sum = tuple[np.ndarray, np.ndarray]  # distinct keys (ascending) and their counts, int64
_Counted = tuple[_Sum, _Sum, int]  # of pairs (see `_keys`), of tokens, and the number of documents


def _count(texts: list[str], tokenizer: PreTrainedTokenizerBase, vocab: int) -> _Counted:
    rows = tokenizer(
        texts, add_special_tokens=False, truncation=False, padding=False, return_attention_mask=False, verbose=False
    )["input_ids"]
    ids = np.fromiter((token for row in rows for token in row), np.int64)
    if len(ids) and ids.max() >= vocab:
        token = int(ids[ids >= vocab][0])
        raise InputError(
            f"token {token} ({tokenizer.convert_ids_to_tokens(token)!r}) of the text is beyond the {vocab} rows of the "
            "embedding: expected the tokenizer of the model"
        )
    inside = np.ones(len(ids), dtype=bool)  # whether the token before is of the same document
    inside[np.cumsum([0, *map(len, rows)])[:-1][[len(row) > 0 for row in rows]]] = False
    second = np.flatnonzero(inside)
    return (
        np.unique(_keys(ids[second - 1], ids[second]), return_counts=True),
        np.unique(ids, return_counts=True),
        sum(len(row) > 0 for row in rows),
    )


def _keys(prefix: np.ndarray, suffix: np.ndarray) -> np.ndarray:
    """int64, in the order of (suffix, prefix)."""
    return (suffix.astype(np.int64) << 32) | prefix


_worker: tuple[PreTrainedTokenizerBase, int]


def _start_worker(tokenizer: PreTrainedTokenizerBase, vocab: int) -> None:
    """Runs once in each process: keeps the tokenizer, uses one thread, and ends with the process that started it."""
    global _worker
    _worker = tokenizer, vocab
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _count_in_worker(texts: list[str]) -> _Counted:
    return _count(texts, *_worker)


def _counted(
    batches: Iterator[list[str]], tokenizer: PreTrainedTokenizerBase, vocab: int, processes: int
) -> Iterator[_Counted]:
    if processes == 1:
        yield from (_count(batch, tokenizer, vocab) for batch in batches)
        return
    # (Not by fork: the threads of this process, torch's and the tokenizer's, would not be there in the copy.)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _start_worker, (tokenizer, vocab)) as pool:
        waiting: deque[Future[_Counted]] = deque()
        try:
            for batch in batches:
                waiting.append(pool.submit(_count_in_worker, batch))
                if len(waiting) > 2 * processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


# --- adding up


class _Sums:
    """Sums of counts by key, at most ``most`` of them in memory, the rest in sorted runs on the disk."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: list[_Sum] = []
        self._size = 0
        self._runs: list[IO[bytes]] = []

    def add(self, keys: np.ndarray, counts: np.ndarray) -> None:
        for low in range(0, len(keys), self._most):
            self._held.append((keys[low : low + self._most], counts[low : low + self._most]))
            self._size += len(self._held[-1][0])
            if self._size > self._most:
                self._held = [_added(self._held)]
                self._size = len(self._held[0][0])
                if 2 * self._size > self._most:  # (else: mostly the same keys again, and there is room for more)
                    self._spill(iter(self._held))
                    self._held, self._size = [], 0
                if len(self._runs) == MOST_RUNS:
                    self._spill(_merged([_mapped(run) for run in self._runs], self._most))
                    del self._runs[:-1]

    def result(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Suffixes and prefixes (int32) and counts (int64), in the order of the keys."""
        held = _added(self._held) if self._held else (np.zeros(0, np.int64), np.zeros(0, np.int64))
        if self._runs:
            self._spill(iter([held]))
            self._held = []
            self._spill(_merged([_mapped(run) for run in self._runs], self._most))
            held = _mapped(self._runs[-1])
        keys, counts = held
        suffix, prefix = np.empty(len(keys), np.int32), np.empty(len(keys), np.int32)
        for low in range(0, len(keys), self._most):
            part = slice(low, low + self._most)
            suffix[part], prefix[part] = keys[part] >> 32, keys[part] & 0xFFFFFFFF
        return suffix, prefix, np.array(counts)

    def _spill(self, parts: Iterator[_Sum]) -> None:
        """A new run: a file without a name that holds pairs (key, count), ascending."""
        run = tempfile.TemporaryFile()  # noqa: SIM115  (it lives as long as the run)
        for keys, counts in parts:
            run.write(np.stack([keys, counts], 1).tobytes())
        run.flush()
        self._runs.append(run)


def _mapped(run: IO[bytes]) -> _Sum:
    size = os.fstat(run.fileno()).st_size
    pairs: np.ndarray[Any, Any] = np.memmap(run, np.int64, "r").reshape(-1, 2) if size else np.zeros((0, 2), np.int64)
    return pairs[:, 0], pairs[:, 1]


def _added(parts: list[_Sum]) -> _Sum:
    keys = np.concatenate([part[0] for part in parts])
    counts = np.concatenate([part[1] for part in parts])
    order = np.argsort(keys, kind="stable")  # (fast here: the parts are in order)
    keys, counts = keys[order], counts[order]
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[first], np.add.reduceat(counts, first) if len(first) else counts


def _merged(runs: list[_Sum], most: int) -> Iterator[_Sum]:
    """The sum of sorted runs, range of keys by range of keys, at most about ``most`` pairs of the runs at a time.

    Every ``step``-th key of each run is a mark. Between two marks that are ``len(runs)`` apart lie at most
    ``2 · len(runs) · step`` pairs.
    """
    step = max(1, most // (2 * len(runs)))
    marks = np.sort(np.concatenate([np.array(keys[::step]) for keys, _ in runs]))
    starts = [0] * len(runs)
    for bound in [*np.unique(marks[:: len(runs)])[1:], np.iinfo(np.int64).max]:
        ends = [int(np.searchsorted(keys, bound)) for keys, _ in runs]
        yield _added([(k[a:b], c[a:b]) for (k, c), a, b in zip(runs, starts, ends, strict=True)])
        starts = ends
