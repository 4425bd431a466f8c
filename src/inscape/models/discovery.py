"""Finding the transformer blocks of any causal LM: the longest ``ModuleList`` whose outputs look like the residual."""

from typing import Any

import torch
from torch import Tensor, nn

from inscape.errors import InputError


class ModelCheckError(InputError):
    """The model is not what its config or the family table says: nothing read from it could be trusted."""


def probe_ids(vocab: int, device: torch.device | str, *, rows: int = 2, tokens: int = 5) -> Tensor:
    """A few fixed token ids, int64 ``[rows, tokens]``, spread over the vocabulary (neither first nor last)."""
    step = max((vocab - 2) // (rows * tokens), 1)
    return (1 + step * torch.arange(rows * tokens) % max(vocab - 2, 1)).reshape(rows, tokens).to(device)


def find_blocks(model: nn.Module, ids: Tensor, d_model: int) -> nn.ModuleList:
    """Run ``model`` on ``ids`` once and pick the longest list of modules whose outputs are ``[batch, token, d_model]``."""
    candidates = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 0}
    seen: dict[int, bool] = {}
    handles: list[Any] = []

    def look(module: nn.Module, args: Any, output: Any) -> None:
        out = output[0] if isinstance(output, (tuple, list)) else output
        seen[id(module)] = isinstance(out, Tensor) and out.shape == (*ids.shape, d_model)

    try:
        for modules in candidates.values():
            handles.extend(m.register_forward_hook(look) for m in modules)
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    fitting = [m for m in candidates.values() if all(seen.get(id(child), False) for child in m)]
    if not fitting:
        names = ", ".join(candidates) or "none"
        raise ModelCheckError(
            f"no list of modules puts out hidden states of shape [batch, token, {d_model}] (lists found: {names}): "
            "name the blocks by dotted path (blocks=…)"
        )
    return max(fitting, key=len)


def blocks_at(model: nn.Module, path: str) -> nn.ModuleList:
    """The blocks at a dotted path given by the user."""
    try:
        found = model.get_submodule(path)
    except AttributeError:
        raise InputError(f"blocks={path!r}: the model has no such module") from None
    if not isinstance(found, (nn.ModuleList, nn.Sequential)) or len(found) == 0:
        raise InputError(f"blocks={path!r}: expected a non-empty list of modules, found {type(found).__name__}")
    return found  # type: ignore[return-value]
