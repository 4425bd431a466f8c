"""From a folder, a hub id or a module that is already there to an instrument."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from inscape.errors import InputError
from inscape.models.lm import LM
from inscape.models.loading import load_parts, usable_device


def load(
    source: str | Path | nn.Module,
    tokenizer: Any = None,
    *,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
    device_map: Any = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    blocks: str | None = None,
    check: bool = True,
) -> LM:
    """A causal LM from a folder, a hub id, or a module that is already there.

    Args:
        source: path, hub id, or a transformers causal LM.
        tokenizer: overrides the folder's; with a module, the tokenizer to use (None: prompts must be token ids).
        dtype: weights' dtype; the checkpoint's own by default.
        device, device_map: as in transformers; at most one of the two.
        attn_implementation: the attention kernel, as in transformers.
        revision: hub revision.
        blocks: dotted path of the list of blocks, if discovery should not look for it.
        check: run the self-check (a few tokens) that proves the hook points on this model.

    Raises:
        InputError: what was wrong with the folder, the weights, the model or the device.
    """
    if device is not None and device_map is not None:
        raise InputError("load: give device or device_map, not both")
    record: dict[str, Any] = {}
    if isinstance(source, nn.Module):
        model = source
        if device is not None:
            model.to(usable_device(device))
        if model.training:
            raise InputError(
                "the model is in training mode (dropout would change every number): call model.eval() first"
            )
        record["model"] = type(model).__name__
    else:
        model, found, record = load_parts(
            source, dtype=dtype, device=device, device_map=device_map, attn_implementation=attn_implementation,
            revision=revision, trust_remote_code=trust_remote_code,
        )  # fmt: skip
        tokenizer = tokenizer if tokenizer is not None else found
    return LM(model, tokenizer, record=record, blocks=blocks, check=check)
