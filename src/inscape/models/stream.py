"""Capture of a stream: activations of any number of tokens to a folder of safetensors shards, in bounded memory.

Vocabulary. The prompts are read in *windows* of some batches; inside a window prompts of like length share a batch (little
padding), and each batch's rows go straight to their places in the *shards* (:mod:`inscape.models.shards`), so rows on disk
are in the order of the prompts. One thread writes while the model computes; it is at most two batches behind.
``index.json`` lists the shards that are whole, and is replaced after each.

Windows, batches and shards follow from the prompts and the settings alone. So a run that was killed goes on at the window
in which its last whole shard ends, and ends with the same bytes as one that was not killed. Each shard's entry holds the
hash of all prompts up to its last row; a resumed run reads the prompts again (without running the model), and refuses
prompts that are not those the shard was written from, other settings, and another model. A lock keeps a second writer out.
"""

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from inscape.errors import InputError
from inscape.models.capture import Collector, tap_points
from inscape.models.forward import run
from inscape.models.prompt_stream import WINDOW_BATCHES, WINDOW_LENGTH, PromptStream, PromptWindow
from inscape.models.shards import PART, write_json
from inscape.models.store import FORMAT, INDEX_FILE, VERSION, ActivationStore, check_shards, read_index
from inscape.models.tokens import Encoded, Mention, Prompt, Tokens, Window, encode, positions
from inscape.models.writer import ShardWriter, point_name

if TYPE_CHECKING:
    from inscape.models.lm import LM


def capture_to(
    lm: "LM",
    prompts: Iterable[Prompt],
    folder: str | Path,
    site: str | Sequence[str] = "resid_post",
    layers: int | Sequence[int] | None = None,
    tokens: Tokens | Iterable[int | Sequence[int]] = "all",
    *,
    mentions: Iterable[Mention] | None = None,
    occurrence: int | None = None,
    prompt_ids: Iterable[str | int] | None = None,
    max_tokens: int | None = None,
    bos: bool | None = None,
    dtype: torch.dtype = torch.bfloat16,
    batch_size: int = 64,
    shard_tokens: int = 262_144,
) -> ActivationStore:
    """Activations of a stream of prompts, on disk; the same call again goes on where the last one was stopped.

    Args:
        lm: the instrument; anything with the kernel's :class:`~inscape.models.lm.LM` interface.
        prompts: any iterable of texts or id lists, read once and never held as a whole. To resume, give it from its
            beginning again. (To see progress, wrap it, e.g. in ``tqdm``.)
        folder: where the shards go; made if absent.
        site, layers: as in :meth:`LM.capture`; several sites share one pass.
        tokens: as in :meth:`LM.capture`. Indices are an iterable too, an entry per prompt.
        mentions, prompt_ids: iterables with an entry per prompt. A prompt's id is a text or an integer of the user's.
        occurrence: as in :meth:`LM.capture`.
        max_tokens: prompts with more tokens are cut to their first ``max_tokens``. None: one that is longer than the
            model's context is refused.
        dtype: of the stored values (float64, float32, float16 or bfloat16); values are rounded once.
        batch_size: prompts per forward pass.
        shard_tokens: rows per shard. A killed run loses at most the shard under way.

    Returns:
        the finished store.

    Raises:
        InputError: what the kernel refuses in a prompt (with its number in the stream), a folder that another process is
            writing or that holds something else, settings, a model or prompts other than those it was begun with, a shard
            that is missing or cut off, a disk that is full.
        NonFiniteError: an activation is NaN or Inf, or too large for ``dtype``.
    """
    folder = Path(folder).expanduser()
    if dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        raise InputError(f"dtype: expected float64, float32, float16 or bfloat16 of torch, found {dtype!r}")
    for name, value in {"batch_size": batch_size, "shard_tokens": shard_tokens, "max_tokens": max_tokens}.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise InputError(f"{name}: expected a whole number of at least 1, found {value!r}")
    if max_tokens is not None and lm.context is not None and max_tokens > lm.context:
        raise InputError(f"max_tokens={max_tokens}, but the model's context is {lm.context}")
    points = tap_points(lm.sites, site, layers)
    fixed = tokens if isinstance(tokens, str | Window) else None
    settings = {
        "sites": [point_name(p) for of_site in points.values() for p in of_site],
        "tokens": repr(fixed) if fixed is not None else "given",
        "mentions": mentions is not None, "occurrence": occurrence, "prompt_ids": prompt_ids is not None,
        "max_tokens": max_tokens, "bos": bos, "dtype": str(dtype).removeprefix("torch."), "batch_size": batch_size,
        "shard_tokens": shard_tokens, "window": [WINDOW_BATCHES, WINDOW_LENGTH],
    }  # fmt: skip
    stream = PromptStream(prompts, tokens if fixed is None else None, mentions, prompt_ids)  # type: ignore[arg-type]
    with _only_writer(folder):
        index = _begun(folder, settings, identity(lm))
        first_row = stream.skip_to(index)
        if index["finished"]:
            return ActivationStore(folder)
        writer = ShardWriter(folder, index, {s: [point_name(p) for p in of] for s, of in points.items()}, dtype)
        with contextlib.closing(writer), _InOrder() as later:
            for window in stream.windows(WINDOW_BATCHES * batch_size):
                encoded, at = _encoded(lm, window, fixed, occurrence, bos, max_tokens)
                starts = list(itertools.accumulate(map(len, at), initial=first_row))
                by_length = sorted(range(len(at)), key=lambda i: -len(encoded[i].ids))
                for cut in range(0, len(by_length), batch_size):
                    batch = sorted(by_length[cut : cut + batch_size])
                    slots = [(window.first + i, starts[i], len(at[i])) for i in batch if at[i]]
                    if not any(row + count > writer.done for _, row, count in slots):
                        continue  # no token was asked for, or all are in a shard that is whole
                    collector = Collector(points, [at[i] for i in batch], lm.device, dtype)
                    run(
                        lm.model, [encoded[i] for i in batch], lambda b, c=collector: ([], c.taps(b)),  # type: ignore[misc]
                        batch_size=batch_size, pad_id=lm.pad_id,
                        logits_at=collector.columns if "logits" in points else None,
                    )  # fmt: skip
                    # (Taken out: what is left of the collector may wait for the garbage collector, tensors must not.)
                    values, collector.values = collector.values, {}
                    later.do(writer.values, slots, values)
                    del values
                later.do(
                    writer.window, window.first, first_row, _index(window, encoded, at), window.ids, window.digests
                )
                first_row = starts[-1]
            later.do(writer.finish, stream.number, stream.digest.hexdigest())
    return ActivationStore(folder)


def identity(lm: "LM") -> dict[str, Any]:
    """What must be the same for a run to go on: the model's record, its kind of device, and a sample of its weights.

    The sample is a sha256 over at most 1,024 evenly spaced values of each parameter: weights that were changed in memory
    are another model, whatever the folder's hash says.
    """
    digest = hashlib.sha256()
    for name, parameter in lm.model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        if parameter.device.type != "meta" and parameter.numel():
            flat = parameter.detach().flatten()
            some = flat[:: max(1, flat.numel() // 1024)].cpu().contiguous()
            digest.update(some.view(torch.uint8).numpy().tobytes())
    return {**lm.record(), "device": lm.device.type, "weights_sample_sha256": digest.hexdigest()}


def _encoded(
    lm: "LM",
    window: PromptWindow,
    fixed: str | Window | None,
    occurrence: int | None,
    bos: bool | None,
    max_tokens: int | None,
) -> tuple[list[Encoded], list[list[int]]]:
    """The window's prompts as the kernel encodes them, and the tokens asked for; errors name the prompt in the stream."""
    try:
        if max_tokens is None:
            encoded = lm.encode(window.prompts, bos)
        else:
            fast = lm.tokenizer is not None and lm.tokenizer.is_fast
            encoded = [
                Encoded(one.text, one.ids[:max_tokens], one.offsets and one.offsets[:max_tokens])
                for one in encode(lm.tokenizer, window.prompts, bos=bos, offsets=fast)
            ]
            lm.encode([one.ids for one in encoded], None)  # its checks
        tokens = fixed if fixed is not None else window.tokens
        return encoded, positions(encoded, tokens, window.mentions, occurrence)  # type: ignore[arg-type]
    except InputError as error:
        # The kernel counts from the beginning of what it is given; it names the number before it quotes any text.
        message = re.sub(r"\bprompt (\d+)", lambda m: f"prompt {int(m[1]) + window.first}", str(error), count=1)
        raise InputError(message) from error


def _index(window: PromptWindow, encoded: Sequence[Encoded], at: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """The columns that say which token each row of the window is."""
    counts = [len(tokens) for tokens in at]
    rows = sum(counts)
    spans = np.full((rows, 2), -1, np.int32)
    token = np.empty(rows, np.int32)
    row = 0
    for one, tokens in zip(encoded, at, strict=True):
        end = row + len(tokens)
        token[row:end] = np.array(one.ids, np.int32)[tokens] if tokens else []
        if one.offsets is not None and tokens:
            spans[row:end] = np.array(one.offsets, np.int32)[tokens]
        row = end
    return {
        "prompt": np.repeat(np.arange(window.first, window.first + len(at), dtype=np.int64), counts),
        "position": np.fromiter(itertools.chain.from_iterable(at), np.int32, rows),
        "start": np.ascontiguousarray(spans[:, 0]),
        "end": np.ascontiguousarray(spans[:, 1]),
        "token": token,
    }


class _InOrder:
    """One thread that does things in the order in which they are given, and nothing more after one that failed.

    An error comes out of :meth:`do`, or of the end of the ``with`` block, which waits for what is still to be done.
    """

    def __init__(self, waiting: int = 2) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="inscape-shards")
        self._todo: deque[Future[None]] = deque()
        self._waiting = waiting
        self._failed = False

    def do(self, function: Callable[..., None], *args: Any) -> None:
        while self._todo and (len(self._todo) >= self._waiting or self._todo[0].done()):
            self._todo.popleft().result()
        self._todo.append(self._pool.submit(self._one, function, args))

    def _one(self, function: Callable[..., None], args: tuple[Any, ...]) -> None:
        if self._failed:  # (what was waiting must not close a shard that lacks rows)
            return
        self._failed = True
        function(*args)
        self._failed = False

    def __enter__(self) -> "_InOrder":
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        self._pool.shutdown(wait=True)
        if kind is None:
            for future in self._todo:
                future.result()


@contextlib.contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """The right to write a folder. The system drops the lock when its holder dies, however it dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise InputError(f"cannot write into {folder}: {error.strerror}; expected a folder") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{folder} is being written by another capture: wait for it, or choose another folder"
            ) from error
        yield
    finally:
        os.close(lock)


def _begun(folder: Path, settings: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """The folder's index: a new one, or that of a run with the same settings and model, cleared of what was half done."""
    if not (folder / INDEX_FILE).exists():
        if other := sorted(p.name for p in folder.iterdir() if p.name != ".lock" and not p.name.endswith(PART)):
            raise InputError(f"{folder} holds {other[0]} and no {INDEX_FILE}: expected a new or empty folder")
        index = {
            "format": FORMAT, "version": VERSION, "settings": settings, "model": model, "columns": {},
            "finished": False, "rows": 0, "prompts": None, "shards": [],
        }  # fmt: skip
        write_json(folder / INDEX_FILE, index)
        return index
    begun: dict[str, Any] = read_index(folder)
    for what, given in (("settings", settings), ("model", model)):
        before, now = dict(begun[what]), dict(json.loads(json.dumps(given)))
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                raise InputError(
                    f"{folder} was begun with other {what}: {name} was {before.get(name)!r} and is {now.get(name)!r}; "
                    "give the same, or choose another folder"
                )
    check_shards(folder, begun)
    whole = {shard["file"] for shard in begun["shards"]}
    for path in (*folder.glob("shard-*"), *folder.glob(f"*{PART}")):
        if path.name not in whole:  # cut off by a kill, or renamed just before one: it will be written again
            path.unlink(missing_ok=True)
    return begun


__all__ = ["capture_to", "identity"]
