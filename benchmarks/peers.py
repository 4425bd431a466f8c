"""The ways to run a sweep without ``rerun``: by hand with hooks, and with the libraries that are installed.

A :class:`Way` runs one cell of a sweep, ``resid_post`` of a layer plus a vector at a token, over all prompts in one batch,
and gives the logits of the last token. Each is written as its library's documentation writes a patch, and each is given
what helps it: logits of the last token only (``logits_to_keep=1``, except in plain "hooks", which is how such loops are
mostly written), no key/value cache, no attention mask. The libraries get copies of the model, for both change the modules.

* ``hooks``: a forward hook on the block. ``hooks, last logit``: the same without the logits that nobody reads.
* ``transformer-lens``: ``TransformerBridge.run_with_hooks``. (Its ``start_at_layer`` would gain nothing here: the earlier
  blocks "still execute internally", as its docstring says.)
* ``nnsight``: a trace that sets the block's output. ``nnsight, blocks skipped``: the outputs of the blocks are kept from one
  trace, and in each cell the blocks up to the edited one are skipped with ``.skip``: what a careful user can write by hand.
"""

import contextlib
import copy
import io
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Way:
    """How a cell is run.

    Attributes:
        name: what the tables call it.
        cell: ``cell(layer, token, shift)``: logits ``[prompt, vocab]`` of the last token when ``shift`` (``[width]``) is
            added to the output of block ``layer`` at ``token``.
        base: what is run once for each sweep, before its cells; None if nothing is.
    """

    name: str
    cell: Callable[[int, int, Tensor], Tensor]
    base: Callable[[], Any] | None = None


def all_ways(model: nn.Module, ids_PT: Tensor) -> list[Way]:
    """By hand, and with every library that can be imported."""
    ways = [
        Way("hooks", _by_hooks(model, ids_PT)),
        Way("hooks, last logit", _by_hooks(model, ids_PT, logits_to_keep=1)),
    ]
    if find_spec("transformer_lens") is not None:
        ways.append(Way("transformer-lens", _by_transformer_lens(model, ids_PT)))
    if find_spec("nnsight") is not None:
        ways += _by_nnsight(model, ids_PT)
    return ways


def _shifted(value_PTD: Tensor, token: int, shift_D: Tensor) -> Tensor:
    value_PTD = value_PTD.clone()
    value_PTD[:, token] += shift_D
    return value_PTD


def _by_hooks(model: Any, ids_PT: Tensor, **more: Any) -> Callable[[int, int, Tensor], Tensor]:
    def cell(layer: int, token: int, shift_D: Tensor) -> Tensor:
        def hook(block: nn.Module, given: Any, value: Any) -> Any:
            if isinstance(value, tuple):
                return (_shifted(value[0], token, shift_D), *value[1:])
            return _shifted(value, token, shift_D)

        handle = model.transformer.h[layer].register_forward_hook(hook)
        try:
            with torch.no_grad():
                return model(input_ids=ids_PT, use_cache=False, **more).logits[:, -1]
        finally:
            handle.remove()

    return cell


def _by_transformer_lens(model: Any, ids_PT: Tensor) -> Callable[[int, int, Tensor], Tensor]:
    import transformers
    from tokenizers import Tokenizer, models
    from transformer_lens.model_bridge import TransformerBridge

    # The bridge wants a tokenizer, or looks for one on the hub. This one is never used: prompts are token ids.
    unused = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), eos_token="a"
    )
    with contextlib.redirect_stdout(io.StringIO()):
        bridge = TransformerBridge.boot_transformers(
            "gpt2", hf_model=copy.deepcopy(model), tokenizer=unused, device=str(ids_PT.device)
        )

    def cell(layer: int, token: int, shift_D: Tensor) -> Tensor:
        def hook(value_PTD: Tensor, hook: Any) -> Tensor:
            return _shifted(value_PTD, token, shift_D)

        with torch.no_grad():
            logits: Tensor = bridge.run_with_hooks(
                ids_PT, fwd_hooks=[(f"blocks.{layer}.hook_resid_post", hook)], use_cache=False, logits_to_keep=1
            )
        return logits[:, -1]

    return cell


def _by_nnsight(model: nn.Module, ids_PT: Tensor) -> list[Way]:
    import nnsight

    traced: Any = nnsight.NNsight(copy.deepcopy(model))
    blocks = traced.transformer.h
    given: dict[str, Any] = {"use_cache": False, "logits_to_keep": 1}
    kept: list[Tensor] = []

    def cell(layer: int, token: int, shift_D: Tensor) -> Tensor:
        with torch.no_grad(), traced.trace(ids_PT, **given):
            blocks[layer].output = _shifted(blocks[layer].output, token, shift_D)
            logits = traced.lm_head.output.save()
        return logits[:, -1]

    def base() -> None:
        with torch.no_grad(), traced.trace(ids_PT, **given):
            outputs = [block.output for block in blocks].save()
        kept[:] = outputs

    def cell_from_block(layer: int, token: int, shift_D: Tensor) -> Tensor:
        edited_PTD = _shifted(kept[layer], token, shift_D)
        with torch.no_grad(), traced.trace(ids_PT, **given):
            for block in list(blocks)[: layer + 1]:
                block.skip(edited_PTD)
            logits = traced.lm_head.output.save()
        return logits[:, -1]

    return [Way("nnsight", cell), Way("nnsight, blocks skipped", cell_from_block, base)]
