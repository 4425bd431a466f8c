"""Prompts as token ids, and positions named by text: the field's silent errors, made loud.

Rules, stated once:

* **BOS** is added only if the tokenizer does so by itself (``bos=None``), or the user says so (``True``/``False``).
* **Padding** is on the left unless asked otherwise. A batch always carries the mask *and* ``position_ids`` from the mask
  (families without absolute positions take the mask alone). The pad id is the tokenizer's, else its EOS, else 0: it is
  masked, so it can't matter, and the tests show that it doesn't.
* **Positions** come from character offsets of the unpadded prompt, never from counting sub-tokens. A token belongs to a
  mention if it holds at least one of its characters, also when it merges the mention with punctuation.
* A prompt longer than the model's context, an empty prompt without BOS, and a mention that does not occur are refused.
"""

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inscape.errors import InputError

Prompt = str | Sequence[int]
Mention = str | tuple[int, int]
"""A text that must occur in the prompt, or its character span ``(start, end)``."""


@dataclass(frozen=True)
class Window:
    """Positions around an anchor: ``Window("mention_last", -2, 1)`` = two before to one after, both included.

    Positions outside the prompt are left out (the window is clipped).
    """

    anchor: str
    first: int
    last: int

    def __post_init__(self) -> None:
        if self.first > self.last:
            raise InputError(f"Window({self.anchor!r}, {self.first}, {self.last}): the first is after the last")


Tokens = str | Window | Sequence[int] | Sequence[Sequence[int]]
"""``"last"``, ``"first"``, ``"all"``, ``"mention"``, ``"mention_first"``, ``"mention_last"``, a :class:`Window`, an index
per prompt, or a list of indices per prompt. Indices count from 0 in the unpadded prompt, BOS included; negative ones
count from the end."""


@dataclass(frozen=True)
class Encoded:
    """One prompt: its text (None if given as ids), its token ids, and the character span of each token."""

    text: str | None
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...] | None


@dataclass(frozen=True)
class Batch:
    """Prompts padded to one width. ``ids`` and ``mask``: int64 [batch, token]; ``shift``: padding on the left of each."""

    index: tuple[int, ...]
    ids: Tensor
    mask: Tensor
    shift: tuple[int, ...]
    padded: bool

    @property
    def position_ids(self) -> Tensor:
        """int64: 0, 1, … over the real tokens, 0 on padding; [batch, token], or [1, token] where nothing is padded.

        One row for all is what a model makes for itself; a row for each costs GPT-J a copy of its table per prompt.
        """
        if not self.padded:
            return torch.arange(self.ids.shape[1], device=self.ids.device)[None]
        return (self.mask.cumsum(-1) - 1).clamp(min=0)


def encode(
    tokenizer: Any, prompts: Sequence[Prompt], *, bos: bool | None = None, offsets: bool = False
) -> list[Encoded]:
    """Token ids of prompts, which are texts or id lists (taken as they are)."""
    if isinstance(prompts, str):
        raise InputError("prompts: expected a list of prompts, found one text (wrap it in a list)")
    texts = [p for p in prompts if isinstance(p, str)]
    if texts and tokenizer is None:
        raise InputError("prompts are texts, but the model was loaded without a tokenizer: give token ids")
    if offsets and texts and not tokenizer.is_fast:
        raise InputError(
            f"positions by text need a tokenizer with character offsets; {type(tokenizer).__name__} has none "
            "(a *fast* tokenizer has; or give token indices)"
        )
    encoded = iter(_encode_texts(tokenizer, texts, bos, offsets))
    result = []
    for number, prompt in enumerate(prompts):
        one = next(encoded) if isinstance(prompt, str) else Encoded(None, given_ids(prompt, number), None)
        if not one.ids:
            raise InputError(f"prompt {number} is empty, and no BOS token was added: there is nothing to run")
        result.append(one)
    return result


def given_ids(prompt: Any, number: int) -> tuple[int, ...]:
    """The ids of a prompt that is no text; refused if they are no whole numbers."""
    try:
        return tuple(operator.index(i) for i in prompt)
    except TypeError:
        raise InputError(f"prompt {number}: expected a text or a list of token ids, found {prompt!r:.80}") from None


def _encode_texts(tokenizer: Any, texts: list[str], bos: bool | None, offsets: bool) -> list[Encoded]:
    if not texts:
        return []
    if bos is not None and tokenizer.bos_token_id is None:
        raise InputError(f"bos={bos}, but this tokenizer has no BOS token (leave bos=None)")
    given = tokenizer(
        texts, add_special_tokens=bos is None, return_offsets_mapping=offsets, return_attention_mask=False
    )
    spans = given["offset_mapping"] if offsets else [None] * len(texts)
    result = []
    for text, ids, span in zip(texts, given["input_ids"], spans, strict=True):
        if bos is None and ids and ids[-1] == tokenizer.eos_token_id and not text.endswith(tokenizer.eos_token or "\0"):
            # Some tokenizers close every text with EOS; a prompt is to be continued.
            ids, span = ids[:-1], span[:-1] if span is not None else None
        if bos:
            ids, span = [tokenizer.bos_token_id, *ids], [(0, 0), *span] if span is not None else None
        result.append(Encoded(text, tuple(ids), tuple(map(tuple, span)) if span is not None else None))
    return result


def refuse_too_long(prompts: Sequence[Encoded], limit: int | None, new_tokens: int = 0) -> None:
    """Refuse prompts that, with the tokens to be generated, don't fit in the model's context."""
    if limit is None:
        return
    for number, prompt in enumerate(prompts):
        if len(prompt.ids) + new_tokens > limit:
            more = f" and {new_tokens} new ones" if new_tokens else ""
            raise InputError(f"prompt {number} has {len(prompt.ids)} tokens{more}; the model's context is {limit}")


def mention_span(text: str, mention: str, number: int, occurrence: int | None = None) -> tuple[int, int]:
    """The character span of ``mention`` in ``text``; it must occur once, or ``occurrence`` says which."""
    if not mention:
        raise InputError(f"prompt {number}: the mention is empty")
    starts, at = [], text.find(mention)
    while at >= 0:
        starts.append(at)
        at = text.find(mention, at + 1)
    if not starts:
        raise InputError(f"prompt {number}: the mention {mention!r} does not occur in {text!r}")
    if occurrence is None and len(starts) > 1:
        raise InputError(
            f"prompt {number}: the mention {mention!r} occurs {len(starts)} times in {text!r}: say which (occurrence)"
        )
    try:
        start = starts[occurrence or 0]
    except IndexError:
        raise InputError(
            f"prompt {number}: {mention!r} occurs {len(starts)} times; no occurrence {occurrence}"
        ) from None
    return start, start + len(mention)


def tokens_of(prompt: Encoded, span: tuple[int, int], number: int) -> list[int]:
    """Indices of the tokens that hold at least one character of ``span``."""
    if prompt.offsets is None:
        raise InputError(
            f"prompt {number}: positions by text need the prompt as text, not as token ids"
            if prompt.text is None
            else f"prompt {number}: positions by text need a tokenizer with character offsets (a *fast* one has them); "
            "or give token indices"
        )
    found = [i for i, (a, b) in enumerate(prompt.offsets) if a < span[1] and b > span[0]]
    if not found:
        raise InputError(f"prompt {number}: no token holds the characters {span[0]}–{span[1]} of {prompt.text!r}")
    return found


def positions(
    prompts: Sequence[Encoded],
    tokens: Tokens,
    mentions: Sequence[Mention] | None = None,
    occurrence: int | None = None,
) -> list[list[int]]:
    """Token indices (from 0, unpadded) for each prompt; see :data:`Tokens`."""
    if isinstance(tokens, Window):
        anchors = positions(prompts, tokens.anchor, mentions, occurrence)
        return [
            [i for i in range(at[-1] + tokens.first, at[-1] + tokens.last + 1) if 0 <= i < len(p.ids)]
            for at, p in zip(anchors, prompts, strict=True)
        ]
    if not isinstance(tokens, str):
        return _given_positions(prompts, tokens)
    if tokens in ("first", "last", "all"):
        pick = {"first": slice(0, 1), "last": slice(-1, None), "all": slice(None)}[tokens]
        return [list(range(len(p.ids)))[pick] for p in prompts]
    if tokens in ("mention", "mention_first", "mention_last"):
        if mentions is None or len(mentions) != len(prompts):
            found = "none" if mentions is None else str(len(mentions))
            raise InputError(f"tokens={tokens!r} needs one mention per prompt: {len(prompts)} prompts, {found} given")
        pick = {"mention": slice(None), "mention_first": slice(0, 1), "mention_last": slice(-1, None)}[tokens]
        result = []
        for number, (prompt, mention) in enumerate(zip(prompts, mentions, strict=True)):
            if prompt.text is None:
                raise InputError(f"prompt {number}: positions by mention need the prompt as text, not as token ids")
            span = mention_span(prompt.text, mention, number, occurrence) if isinstance(mention, str) else mention
            if not 0 <= span[0] < span[1] <= len(prompt.text):
                raise InputError(f"prompt {number}: {span} is no character span of {prompt.text!r}")
            result.append(tokens_of(prompt, span, number)[pick])
        return result
    raise InputError(
        f"unknown tokens {tokens!r}: expected last, first, all, mention, mention_first, mention_last, a Window, or indices"
    )


def _given_positions(prompts: Sequence[Encoded], tokens: Sequence[Any]) -> list[list[int]]:
    if hasattr(tokens, "tolist"):  # an array or a tensor
        tokens = tokens.tolist()
    if not isinstance(tokens, Sequence) or len(tokens) != len(prompts):
        found = len(tokens) if isinstance(tokens, Sequence) else repr(tokens)
        raise InputError(f"tokens: expected an entry per prompt ({len(prompts)}), found {found}")
    result = []
    for number, (prompt, given) in enumerate(zip(prompts, tokens, strict=True)):
        length = len(prompt.ids)
        try:
            indices = [operator.index(i) for i in (given if isinstance(given, Sequence) else [given])]
        except TypeError:
            raise InputError(f"tokens: expected indices for prompt {number}, found {given!r:.80}") from None
        for i in indices:
            if not -length <= i < length:
                raise InputError(f"prompt {number} has {length} tokens: no index {i}")
        result.append([i % length for i in indices])
    return result


def batches(
    prompts: Sequence[Encoded], *, batch_size: int, pad_id: int, device: torch.device | str, padding_side: str = "left"
) -> Iterator[Batch]:
    """Prompts in batches of like length (longest first, so that too large a batch fails at once), padded on one side."""
    if padding_side not in ("left", "right"):
        raise InputError(f"padding_side: expected 'left' or 'right', found {padding_side!r}")
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].ids))
    for start in range(0, len(order), batch_size):
        index = tuple(order[start : start + batch_size])
        width = max(len(prompts[i].ids) for i in index)
        ids = torch.full((len(index), width), pad_id, dtype=torch.int64)
        mask = torch.zeros((len(index), width), dtype=torch.int64)
        shift = []
        for row, i in enumerate(index):
            length = len(prompts[i].ids)
            at = width - length if padding_side == "left" else 0
            ids[row, at : at + length] = torch.tensor(prompts[i].ids)
            mask[row, at : at + length] = 1
            shift.append(at)
        padded = any(len(prompts[i].ids) < width for i in index)
        yield Batch(index, ids.to(device), mask.to(device), tuple(shift), padded)
