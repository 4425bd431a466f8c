"""Hooks on a user's model: put on, run, taken off, whatever happens in between.

Vocabulary. A *tap* is a function on a site's value: it gets the view (see :mod:`inscape.models.sites`) and returns
``None`` (it only looked) or a new value. A *scope* is one run of the model with its taps. Hooks live only inside
:func:`attached` and are removed in its ``finally``. They are inert unless the running context is the one that put them
on (a context variable holds the scope), so two threads may use one model at the same time.

Order on one module: taps fire in the order in which they were given, so edits come before captures and a capture sees
the edited value. Everything is out of place: the tensors of the model's own graph are never written.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from inscape.errors import InputError
from inscape.models.sites import TapPoint, first_tensor

_scope: ContextVar["Scope | None"] = ContextVar("inscape_scope", default=None)
# torch numbers hooks with a counter that it reads and then raises: two threads could get the same number.
_registering = threading.Lock()


class StopForward(Exception):
    """Raised by a tap when nothing above it was asked for; :func:`attached`'s caller catches it."""


@dataclass
class Tap:
    """A function on a site's value, and how often it has fired."""

    point: TapPoint
    function: Callable[[Tensor, "Scope"], Tensor | None]
    fired: int = 0


@dataclass
class Scope:
    """One batch on its way through the model.

    Attributes:
        rows: prompts in the batch (OPT's MLP flattens the batch; this is how its tensors are shaped back).
        forwards: forward passes begun so far; more than one while generating.
        width: tokens in the prompt part, padding included.
        cached: whether a key/value cache is on, so that later forward passes see only the newest token.
        tokens: tokens in the forward pass under way.
        offset: position, in the padded sequence, of the first token of the forward pass under way.
    """

    rows: int
    width: int
    cached: bool = False
    forwards: int = 0
    tokens: int = 0
    offset: int = 0
    stash: dict[int, Tensor] = field(default_factory=dict)


@contextmanager
def attached(model: nn.Module, taps: Sequence[Tap], *, rows: int, width: int, cached: bool = False) -> Iterator[Scope]:
    """Taps on ``model`` for the duration of the ``with`` block; none left after it, exception or not."""
    scope = Scope(rows=rows, width=width, cached=cached)
    handles: list[Any] = []
    token = _scope.set(scope)
    try:
        with _registering:
            handles.append(model.register_forward_pre_hook(_count_forward(scope), with_kwargs=True))
            for tap in taps:
                if tap.point.side == "input":
                    handles.append(tap.point.module.register_forward_pre_hook(_on_input(tap, scope), with_kwargs=True))
                else:
                    handles.append(tap.point.module.register_forward_hook(_on_output(tap, scope)))
            # After the taps, so that what is stashed holds the edits of the block's input.
            blocks = {id(tap.point.plus): tap.point.plus for tap in taps if tap.point.plus is not None}.values()
            handles += [b.register_forward_pre_hook(_stash_input(scope), with_kwargs=True) for b in blocks]
        yield scope
    finally:
        _scope.reset(token)
        with _registering:
            for handle in handles:
                handle.remove()


def _count_forward(scope: Scope) -> Callable[..., None]:
    # (kwargs has a default in every hook: torch leaves it out if the hook's owner, another thread, has just removed it.)
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        if _scope.get() is not scope or kwargs is None:
            return
        ids = kwargs["input_ids"] if kwargs.get("input_ids") is not None else args[0]
        scope.forwards += 1
        scope.tokens = ids.shape[1]
        if scope.tokens != (scope.width if scope.forwards == 1 else 1) and (scope.cached or scope.forwards == 1):
            raise InputError(
                f"generate: forward pass {scope.forwards} read {scope.tokens} tokens; reading the prompt in parts, or "
                "several tokens at once after it, is not taken"
            )
        # With a key/value cache only the new token comes in; without one the whole sequence does, each time.
        scope.offset = scope.width + scope.forwards - 2 if scope.cached and scope.forwards > 1 else 0

    return hook


def _stash_input(scope: Scope) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        if _scope.get() is scope and kwargs is not None:
            # Of the block under way only: older ones would keep every block's input alive.
            scope.stash = {id(module): _block_input(args, kwargs)}

    return hook


def _block_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return first_tensor(args[0] if args else kwargs["hidden_states"])


def _on_input(tap: Tap, scope: Scope) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        if _scope.get() is not scope or kwargs is None:
            return None
        new = _apply(tap, _block_input(args, kwargs), scope)
        if new is None:
            return None
        if args:
            return (new, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": new}

    return hook


def _on_output(tap: Tap, scope: Scope) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if _scope.get() is not scope:
            return None
        if tap.point.site == "logits":
            new = _apply(tap, output.logits if hasattr(output, "logits") else first_tensor(output), scope)
            if new is None:
                return None
            if hasattr(output, "logits"):
                replaced = type(output)(**output)
                replaced.logits = new
                return replaced
        else:
            new = _apply(tap, first_tensor(output), scope)
            if new is None:
                return None
        # Blocks return tensors in most families and tuples in some: give back the kind that came.
        if isinstance(output, tuple):
            return (new, *output[1:])
        return [new, *output[1:]] if isinstance(output, list) else new

    return hook


def _apply(tap: Tap, tensor: Tensor, scope: Scope) -> Tensor | None:
    """Run a tap on a module's tensor; the whole new tensor if the tap changed the value, else None."""
    tap.fired += 1
    flattened = tensor.ndim == 2 and tap.point.site != "logits"
    x_BTF = tensor.unflatten(0, (scope.rows, -1)) if flattened else tensor
    if x_BTF.shape[0] != scope.rows and tap.point.site != "logits":  # (beams' logits are looked at, never edited)
        raise InputError(
            f"{tap.point} came with {x_BTF.shape[0]} rows for {scope.rows} prompts (beams and several sequences per "
            "prompt are not taken together with edits)"
        )
    view, stream = tap.point.view, None
    if tap.point.plus is not None:
        stream = scope.stash[id(tap.point.plus)].to(x_BTF.device)
        value = stream + x_BTF
    else:
        value = x_BTF if view is None else view.read(x_BTF)
    new = tap.function(value, scope)
    if new is None:
        return None
    if new.shape != value.shape:
        raise InputError(f"an edit of {tap.point} changed its shape from {tuple(value.shape)} to {tuple(new.shape)}")
    if stream is not None:
        # Less what the skip connection will add: then a value of 0 comes out as 0, not as what rounding leaves of it. What
        # is as it was keeps its bits (and its gradient with respect to a change that is yet 0).
        new = torch.where(new == value, x_BTF + (new - value), new - stream)
    elif view is not None:
        new = view.write(x_BTF, new)
    return new.flatten(0, 1) if flattened else new
