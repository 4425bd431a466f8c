"""How well a language model foretells text: bits per byte and per sentence, and what longer contexts give it.

Loss per token depends on how a tokenizer cuts, so texts are compared in bits: the sum of -log2 p over a text's tokens.
*Per byte* (UTF-8) compares models on one language. Between languages bytes carry unlike amounts of text; there *bits per
parallel sentence* compares, the same content in each language.

What is scored. A token needs something before it. Where the tokenizer adds a BOS token, all of the text is scored after it;
where the caller gives ``start`` (a token id), after that. Otherwise the first token is context alone: it, and those that
end a character that it begins, are not scored, and their bytes are not counted. (A model trained on packed documents never
learned what comes first in one.) N-gram models (`ngram_bits`) are scored on the very same tokens.

Texts longer than ``window`` tokens are read in windows that overlap: each token is scored once, with at least
``window - stride`` tokens before it, but for those of the first window.

Failure: a text without characters, a tokenizer without character offsets. The intervals are over texts; they do not cover
the seed of the training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from inscape.errors import InputError
from inscape.evaluation.ngrams import KneserNey
from inscape.models import LM
from inscape.models.lm import Progress
from inscape.models.tokens import encode
from inscape.runs.intervals import Interval, bootstrap, bootstrap_paired

_WINDOW = 2048
_LOGITS = {"cpu": 1 << 24, "cuda": 1 << 28}
"""Logits of a batch at most, in numbers: 64 MB in float32 (a CPU is slower on more than it can cache), and 1 GB."""

BITS = {"text": pl.Int64, "tokens": pl.Int64, "bytes": pl.Int64, "characters": pl.Int64, "bits": pl.Float64}


@dataclass(frozen=True)
class Passage:
    """A text as it is scored.

    Attributes:
        ids: its tokens, after a token to begin with where there is one.
        lead: 1 where there is one, else 0.
        first: the first token that is scored.
        bytes, characters: of the text that is scored.
    """

    ids: tuple[int, ...]
    lead: int
    first: int
    bytes: int
    characters: int


def passages(tokenizer: Any, texts: Sequence[str], *, start: int | None = None) -> list[Passage]:
    """Texts as they are scored; see the module.

    Raises:
        InputError: a text that is empty, or no fast tokenizer.
    """
    if empty := [number for number, text in enumerate(texts) if not text.strip()]:
        raise InputError(f"text {empty[0]} is empty, expected something to score")
    found = []
    for text, one in zip(texts, encode(tokenizer, texts, offsets=True), strict=True):
        assert one.offsets is not None
        adds = len(one.ids) > 1 and one.ids[0] == tokenizer.bos_token_id and one.offsets[0][1] == 0
        ids = one.ids if adds or start is None else (start, *one.ids)
        if adds or start is not None:
            found.append(Passage(ids, 1, 1, len(text.encode()), len(text)))
            continue
        # A byte-level token may end within a character: then the next one has that character in its span too.
        end, first = max(one.offsets[0][1], 1), 1
        while first < len(ids) and one.offsets[first][0] < end:
            end, first = max(end, one.offsets[first][1]), first + 1
        rest = text[end:]
        found.append(Passage(ids, 0, first, len(rest.encode()), len(rest)))
    return found


def text_bits(
    lm: LM,
    texts: Sequence[str],
    *,
    start: int | None = None,
    window: int | None = None,
    stride: int | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> pl.DataFrame:
    """One row for each text, columns as in ``BITS``: how many tokens, bytes and characters are scored, and their bits.

    A text with nothing to score (one token, no start) has 0 of all.

    Args:
        window: most tokens read at once (default: the model's context, at most 2,048).
        stride: tokens by which windows move on (default: half of one).
        batch_size: windows at a time (default: as many as keep logits under 64 MB, on a GPU 1 GB).

    Raises:
        InputError: see the module; also a window of fewer than 2 tokens, or a stride that is not within it.
    """
    window = min(lm.context or _WINDOW, _WINDOW) if window is None else window
    stride = max(1, window // 2) if stride is None else stride
    if window < 2 or not 1 <= stride < window:
        raise InputError(f"window of {window} tokens with stride {stride}, expected 2 or more and 1 to {window - 1}")
    given = passages(lm.tokenizer, texts, start=start)
    pieces = [(i, *piece) for i, one in enumerate(given) for piece in _windows(one, window, stride)]
    bits = np.zeros(len(given))
    if pieces:
        nats = score_nats(
            lm, [given[i].ids[a:s] for i, a, s, _ in pieces], [given[i].ids[s:b] for i, _, s, b in pieces],
            batch_size, progress,
        )  # fmt: skip
        np.add.at(bits, [piece[0] for piece in pieces], [one.sum() / math.log(2) for one in nats])
    return _rows(given, bits)


def ngram_bits(model: KneserNey, tokenizer: Any, texts: Sequence[str], *, start: int | None = None) -> pl.DataFrame:
    """The rows of `text_bits` by an n-gram model on the same tokens, with its own start sign before each text."""
    given = passages(tokenizer, texts, start=start)
    scores = model.log2_probabilities([one.ids[one.lead :] for one in given])
    return _rows(given, [-score[one.first - one.lead :].sum() for one, score in zip(given, scores, strict=True)])


def _rows(given: Sequence[Passage], bits: Sequence[float] | np.ndarray) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "text": range(len(given)), "tokens": [len(one.ids) - one.first for one in given],
            "bytes": [one.bytes for one in given], "characters": [one.characters for one in given],
            "bits": [float(value) for value in bits],
        },
        schema=BITS,
    )  # fmt: skip


def _windows(one: Passage, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """``(begin, first scored, end)``: each token from ``one.first`` on is scored in one of them."""
    scored, end = one.first, min(len(one.ids), window)
    while True:
        if scored < end:
            yield max(0, end - window), scored, end
            scored = end
        if end == len(one.ids):
            return
        end = min(len(one.ids), end + stride)


def score_nats(
    lm: LM, contexts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], batch_size: int | None,
    progress: Progress | None = None,
) -> list[np.ndarray]:  # fmt: skip
    """-ln p of each target token, by pair."""
    longest = max(len(c) + len(t) for c, t in zip(contexts, targets, strict=True))
    rows = batch_size or min(256, max(1, _LOGITS.get(lm.device.type, _LOGITS["cpu"]) // (longest * lm.vocab)))
    each = lm.score(contexts, targets, batch_size=rows, progress=progress).each
    return [-one.double().numpy() for one in each]


# -- intervals ---------------------------------------------------------------------------------------------------------


def ratio(x: np.ndarray, y: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Sum of ``x`` by sum of ``y``; NaN where ``y`` adds up to 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return x.sum(axis) / y.sum(axis)


def bits_per_byte(rows: pl.DataFrame, *, seed: int = 0) -> Interval:
    """All bits by all bytes; the interval is over texts."""
    return bootstrap_paired(rows["bits"].to_numpy(), rows["bytes"].to_numpy(), ratio, seed=seed)


def bits_per_text(rows: pl.DataFrame, *, seed: int = 0) -> Interval:
    """Mean bits of a text; the interval is over texts."""
    return bootstrap(rows["bits"].to_numpy(), seed=seed)


def bits_table(rows: pl.DataFrame, by: Sequence[str], *, seed: int = 0) -> pl.DataFrame:
    """For each group, in the order in which they come: texts, bits per byte and per text with bounds, per character."""
    found = []
    for key, some in rows.group_by(*by, maintain_order=True):
        byte, text = bits_per_byte(some, seed=seed), bits_per_text(some, seed=seed)
        characters = float(some["characters"].sum())
        found.append(
            {
                **dict(zip(by, key, strict=True)), "texts": some.height,
                "bits_per_byte": byte.value, "bits_per_byte_lo": byte.lo, "bits_per_byte_hi": byte.hi,
                "bits_per_text": text.value, "bits_per_text_lo": text.lo, "bits_per_text_hi": text.hi,
                "bits_per_character": float(some["bits"].sum()) / characters if characters else math.nan,
                "bytes_per_token": float(some["bytes"].sum()) / max(1.0, float(some["tokens"].sum())),
            }
        )  # fmt: skip
    return pl.DataFrame(found, infer_schema_length=None).fill_nan(None)
