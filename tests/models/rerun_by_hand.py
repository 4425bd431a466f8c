"""Edits by plain torch hooks on a transformers model, one unpadded prompt at a time: the oracle for sweeps."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from test_kernel_edits import features
from tiny_models import HEADS, forward
from torch import Tensor

from inscape.models.lm import LM

SITES = ("embed", "resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post", "q", "k", "v", "z", "mlp_act")
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ByHand:
    """``rows → change(rows)`` at tokens (from 0) of one prompt; heads side by side, in the order of the site."""

    site: str
    layer: int | None
    tokens: Sequence[int]
    change: Change


def sites_of(lm: LM) -> list[str]:
    return [site for site in SITES if site in lm.sites.available()]


def shape_of(lm: LM, site: str) -> tuple[int, ...]:
    return tuple(lm.capture([[3]], site, None if site in ("embed", "logits") else 1).values.shape[2:])


def noise(*shape: int, seed: int = 0, size: float = 3.0) -> Tensor:
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@contextmanager
def hooked(name: str, lm: LM, edits: Sequence[ByHand], rows: int = 1) -> Iterator[None]:
    """Plain hooks on the modules; each acts on every row of the batch, in forward passes that hold its tokens."""
    handles = [handle for edit in edits for handle in _hooks(name, lm, edit, rows)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hooks(name: str, lm: LM, edit: ByHand, rows: int) -> list[Any]:
    site, tokens = edit.site, list(edit.tokens)
    pre: list[Tensor] = []

    def change(x: Tensor) -> Tensor:
        y = x.clone().view(rows, -1, x.shape[-1])
        if site == "resid_mid":
            stream = pre[-1][:, tokens]
            y[:, tokens] = edit.change(stream + y[:, tokens]) - stream
        elif site in ("q", "k", "v", "z"):
            heads = HEADS if site in ("q", "z") else lm.sites.head_shape(edit.layer or 0)[1]
            parts = [features(name, lm, site, head) for head in range(heads)]
            old = torch.cat([y[:, tokens, part] for part in parts], -1)
            for part, new in zip(parts, edit.change(old).chunk(heads, -1), strict=True):
                y[:, tokens, part] = new
        else:
            y[:, tokens] = edit.change(y[:, tokens])
        return y.view_as(x)

    def on_output(module: Any, args: Any, out: Any) -> Any:
        return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    def on_input(module: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    def remember(module: Any, args: Any, kwargs: Any) -> None:
        pre.append((args[0] if args else kwargs["hidden_states"]).clone())

    if site == "embed":
        return [lm.model.get_input_embeddings().register_forward_hook(on_output)]
    block = lm.sites.blocks[edit.layer or 0]
    if site == "resid_pre":
        return [block.register_forward_pre_hook(on_input, with_kwargs=True)]
    if site == "resid_post":
        return [block.register_forward_hook(on_output)]
    module = lm.sites.tap("attn_out" if site == "resid_mid" else site, edit.layer).module
    if site in ("z", "mlp_act"):
        return [module.register_forward_pre_hook(on_input, with_kwargs=True)]
    handles = [module.register_forward_hook(on_output)]
    if site == "resid_mid":
        handles.append(block.register_forward_pre_hook(remember, with_kwargs=True))
    return handles


def logits_by_hand(name: str, lm: LM, ids: list[int], edits: Sequence[ByHand]) -> Tensor:
    """``[token, vocab]`` of one unpadded prompt."""
    with hooked(name, lm, edits):
        return forward(lm.model, ids).logits[0]


def add(vector: Tensor) -> Change:
    return lambda x: x + vector.flatten()


def put(vector: Tensor) -> Change:
    return lambda x: vector.flatten().expand_as(x)


def tensor(array: Any) -> Tensor:
    return torch.tensor(array.values)
