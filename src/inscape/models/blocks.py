"""Driving a model's own blocks one by one, with the arguments that the model itself would give them.

A *dry pass* is the model's forward pass with every block replaced by a function that notes what it was given and hands the
hidden states on: it makes the embeddings, masks, rotary tables and biases, and costs next to nothing. The *head* is the same
with the last block's place taken by hidden states computed elsewhere. Nothing of a block or of the head is written anew.

What a block is given has axes over prompts, queries and keys. Which axis is which is found by two dry passes of different
sizes (:func:`find_roles`), never by name; then the arguments of any part of the tokens are gathered from those of the whole
(:class:`Arguments`). Blocks are replaced for the running context only: another thread may use the model meanwhile.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from inscape.models.discovery import probe_ids
from inscape.models.forward import input_device, may_stop_early, model_inputs
from inscape.models.hooks import StopForward
from inscape.models.sites import first_tensor
from inscape.models.tokens import Batch


class CutError(RuntimeError):
    """Why the forward pass of a model can't be cut into blocks."""


# -- blocks replaced ---------------------------------------------------------------------------------------------------

_Stand = Callable[[int, tuple[Any, ...], dict[str, Any], Callable[..., Any]], Any]
_standing: ContextVar[tuple[Sequence[nn.Module], _Stand] | None] = ContextVar("inscape_standing", default=None)
_replaced: dict[int, tuple[int, Any]] = {}  # block id → (how many contexts, the instance's own forward if it had one)
_replacing = threading.Lock()
_NONE = object()


@contextmanager
def replaced(blocks: Sequence[nn.Module], stand_in: _Stand) -> Iterator[None]:
    """``stand_in(i, args, kwargs, forward)`` in place of block ``i``'s ``forward``, in this context and until its end."""
    token = _standing.set((blocks, stand_in))
    with _replacing:
        for number, block in enumerate(blocks):
            count, own = _replaced.get(id(block), (0, block.__dict__.get("forward", _NONE)))
            if count == 0:
                block.forward = _dispatcher(number, block, block.forward)
            _replaced[id(block)] = count + 1, own
    try:
        yield
    finally:
        _standing.reset(token)
        with _replacing:
            for block in blocks:
                count, own = _replaced.pop(id(block))
                if count > 1:
                    _replaced[id(block)] = count - 1, own
                elif own is _NONE:
                    del block.forward
                else:  # (accelerate has put one there)
                    block.forward = own


def _dispatcher(number: int, block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def dispatch(*args: Any, **kwargs: Any) -> Any:
        standing = _standing.get()
        if standing is None or standing[0][number] is not block:
            return forward(*args, **kwargs)
        return standing[1](number, args, kwargs, forward)

    return dispatch


# -- dry passes and the head -------------------------------------------------------------------------------------------


class NotedCache(DynamicCache):
    """A key/value cache that keeps what it is given by layer, as it comes, and claims ``past`` earlier tokens."""

    def __init__(self, past: int = 0) -> None:
        super().__init__()
        self.past = past
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.kept[layer_idx] = key_states, value_states
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.past

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.past + query_length, 0


@dataclass(frozen=True)
class Call:
    """What a block was given: hidden states first, then whatever the model adds."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    hidden: Tensor
    cache: NotedCache


@dataclass(frozen=True)
class Blocks:
    """The blocks of a model and what they give back: ``forms[i]`` is None for a tensor, else the length of a tuple."""

    model: nn.Module
    blocks: Sequence[nn.Module]
    forms: tuple[int | None, ...]

    def as_output(self, number: int, hidden: Tensor) -> Any:
        form = self.forms[number]
        return hidden if form is None else (hidden, *[None] * (form - 1))

    def dry(self, batch: Batch, past: int = 0) -> list[Call]:
        """What each block would be given for a batch (its mask may be longer than its ids, by ``past``)."""
        calls: list[Call] = []
        cache = NotedCache(past)
        stop = may_stop_early(self.model)

        def note(number: int, args: tuple[Any, ...], kwargs: dict[str, Any], forward: Any) -> Any:
            hidden = first_tensor(args[0] if args else kwargs["hidden_states"])
            calls.append(Call(args, kwargs, hidden, cache))
            if stop and number == len(self.blocks) - 1:
                raise StopForward
            return self.as_output(number, hidden)

        given = model_inputs(self.model, batch) | {"past_key_values": cache, "use_cache": True}
        if past and "position_ids" in given:
            given["position_ids"] = given["position_ids"][:, past:]
        with torch.no_grad(), replaced(self.blocks, note), suppress(StopForward):
            self.model(**given)
        if len(calls) != len(self.blocks):
            raise CutError(f"{len(calls)} of {len(self.blocks)} blocks were called in a forward pass")
        return calls

    def head(self, hidden_ND: Tensor) -> Tensor:
        """Logits ``[n, vocab]`` of the last block's output at ``n`` tokens: the model's own final norm and head."""

        def hand_in(number: int, args: tuple[Any, ...], kwargs: dict[str, Any], forward: Any) -> Any:
            hidden = first_tensor(args[0] if args else kwargs["hidden_states"])
            if number == len(self.blocks) - 1:
                hidden = hidden_ND[:, None].to(hidden.device)
            return self.as_output(number, hidden)

        ids = torch.zeros((len(hidden_ND), 1), dtype=torch.int64, device=input_device(self.model))
        batch = Batch(tuple(range(len(ids))), ids, torch.ones_like(ids), (0,) * len(ids), False)
        with torch.no_grad(), replaced(self.blocks, hand_in):
            return self.model(**model_inputs(self.model, batch)).logits[:, 0]

    def generate(self, keys_values: dict[int, tuple[Tensor, Tensor]], hidden_RD: Tensor, **inputs: Any) -> Tensor:
        """transformers' ``generate`` from where a run stands; ``inputs`` as for it, ids of the whole prompt included.

        ``keys_values``: for each layer, of all tokens of the prompt; ``hidden_RD``: the last block's output at the last
        of them. The first forward pass, over that token, is handed both; later ones are the model's own.
        """
        cache = DynamicCache()
        for layer, (keys, values) in sorted(keys_values.items()):
            cache.update(keys[:, :, :-1], values[:, :, :-1], layer)
        passes = 0

        def first_handed(number: int, args: tuple[Any, ...], kwargs: dict[str, Any], forward: Any) -> Any:
            nonlocal passes
            if passes:
                return forward(*args, **kwargs)
            hidden = first_tensor(args[0] if args else kwargs["hidden_states"])
            keys, values = keys_values[number]
            cache.update(keys[:, :, -1:], values[:, :, -1:], number)
            if number == len(self.blocks) - 1:
                passes = 1
                hidden = hidden_RD[:, None].to(hidden.device)
            return self.as_output(number, hidden)

        with torch.no_grad(), replaced(self.blocks, first_handed):
            return self.model.generate(past_key_values=cache, **inputs)  # type: ignore[operator]


def find_blocks_form(model: nn.Module, blocks: Sequence[nn.Module], vocab: int, device: torch.device) -> Blocks:
    """Run a few tokens to see in what form the blocks give back hidden states."""
    forms: list[int | None] = []
    handles = [
        b.register_forward_hook(lambda m, a, out: forms.append(len(out) if isinstance(out, tuple) else None))
        for b in blocks
    ]
    ids = probe_ids(vocab, device, rows=1, tokens=2)
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=DynamicCache(), use_cache=True)
    finally:
        for handle in handles:
            handle.remove()
    if len(forms) != len(blocks):
        raise CutError(f"{len(forms)} of {len(blocks)} blocks were called in a forward pass")
    return Blocks(model, blocks, tuple(forms))


# -- which axis is which -----------------------------------------------------------------------------------------------

Role = tuple[str, int]
"""``("row", m)``: prompts, ``m`` entries each; ``("query", 1)``; ``("key", 1)``; ``("", 1)``: the same for all."""

_SIZES = ((2, 3, 4), (3, 5, 6))  # (prompts, queries, past): no two of 2:3, 3:5 and 7:11 are alike


def find_roles(blocks: Blocks, vocab: int, device: torch.device) -> list[list[tuple[Role, ...]]]:
    """For each block, the role of every axis of every tensor that it is given beside the hidden states."""
    shapes = []
    for rows, queries, past in _SIZES:
        ids = probe_ids(vocab, device, rows=rows, tokens=queries)
        mask = torch.ones((rows, past + queries), dtype=torch.int64, device=device)
        mask[0, 0] = 0  # padding somewhere, or a kernel may do without a mask
        batch = Batch(tuple(range(rows)), ids, mask, (0,) * rows, True)
        shapes.append([[tuple(t.shape) for t in tensors_of(call)] for call in blocks.dry(batch, past)])
    return [
        [tuple(map(_role, a, b)) for a, b in zip(here, there, strict=True)] for here, there in zip(*shapes, strict=True)
    ]


def _role(a: int, b: int) -> Role:
    (rows_a, queries_a, past_a), (rows_b, queries_b, past_b) = _SIZES
    if a == b:
        return "", 1
    if (a, b) == (queries_a, queries_b):
        return "query", 1
    if (a, b) == (queries_a + past_a, queries_b + past_b):
        return "key", 1
    if a % rows_a == 0 and b % rows_b == 0 and a // rows_a == b // rows_b:
        return "row", a // rows_a
    raise CutError(f"an argument of its blocks has an axis of {a} for {_SIZES[0]} and {b} for {_SIZES[1]}")


def tensors_of(call: Call) -> list[Tensor]:
    """The tensors beside the hidden states, in a fixed order."""
    found: list[Tensor] = []

    def note(value: Any) -> Any:
        if isinstance(value, Tensor) and value is not call.hidden:
            found.append(value)
        return value

    _mapped(note, (call.args, call.kwargs))
    return found


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(_mapped(function, v) for v in value)
    if isinstance(value, dict):
        return {key: _mapped(function, v) for key, v in value.items()}
    return function(value)


@dataclass(frozen=True)
class Part:
    """Which part of a batch is run: rows by prompt, queries and keys by padded column.

    ``apart``: bool ``[query, key]``, True where a query must not see a key that it would see by its column (it belongs to
    another run packed into the same row); None where there is no such pair.
    """

    rows: Tensor
    queries: Tensor
    keys: Tensor
    apart: Tensor | None


class Arguments:
    """The arguments of each block for a part of a batch, gathered from those of a dry pass over the whole of it."""

    def __init__(self, calls: Sequence[Call], roles: Sequence[Sequence[tuple[Role, ...]]], part: Part) -> None:
        self.calls, self.roles, self.part = calls, roles, part
        # Blocks share masks and tables: each is gathered once.
        self.gathered: dict[int, Tensor] = {}

    def of(self, number: int, rows: int, queries: int, keys: int, hidden: Tensor, cache: Any) -> Call:
        """Block ``number``'s arguments for the first so many rows, queries and keys of the part."""
        call, roles = self.calls[number], iter(self.roles[number])
        size = {"row": rows, "query": queries, "key": keys}

        def put(value: Any) -> Any:
            if value is call.hidden:
                return hidden
            if value is call.cache:
                return cache
            if not isinstance(value, Tensor):
                return value
            role = next(roles)
            if id(value) not in self.gathered:
                self.gathered[id(value)] = self._gather(value, role)
            part = self.gathered[id(value)]
            for axis, (kind, times) in enumerate(role):
                if kind:
                    part = part.narrow(axis, 0, size[kind] * times)
            return part

        args, kwargs = _mapped(put, (call.args, call.kwargs))
        return Call(args, kwargs, hidden, cache)

    def _gather(self, value: Tensor, role: tuple[Role, ...]) -> Tensor:
        part, kinds = self.part, [kind for kind, _ in role]
        out = value
        never = None
        if part.apart is not None and "query" in kinds and "key" in kinds:
            # What a mask holds where nothing may be seen: the first token's query on the last column, which is padding.
            never = out.narrow(kinds.index("query"), 0, 1)
            never = never.narrow(kinds.index("key"), out.shape[kinds.index("key")] - 1, 1)
            never = self._rows(never, role)
        for axis, kind in enumerate(kinds):
            if kind in ("query", "key"):
                out = out.index_select(axis, (part.queries if kind == "query" else part.keys).to(out.device))
        out = self._rows(out, role)
        if never is not None and part.apart is not None:
            shape = [out.shape[axis] if kind in ("query", "key") else 1 for axis, kind in enumerate(kinds)]
            apart = part.apart if kinds.index("query") < kinds.index("key") else part.apart.T
            out = torch.where(apart.reshape(shape).to(out.device), never, out)
        return out

    def _rows(self, value: Tensor, role: tuple[Role, ...]) -> Tensor:
        for axis, (kind, times) in enumerate(role):
            if kind == "row":
                split = value.unflatten(axis, (-1, times)) if times > 1 else value
                split = split.index_select(axis, self.part.rows.to(value.device))
                value = split.flatten(axis, axis + 1) if times > 1 else split
        return value
