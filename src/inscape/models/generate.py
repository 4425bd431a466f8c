"""Generation under edits: transformers' own ``generate``, with taps on.

Edits of the prompt act in the pass that reads the prompt; later tokens see them through the key/value cache. Without a
cache every pass reads the whole sequence again, and the edits act again at the same tokens: the result is the same.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from inscape.errors import InputError
from inscape.models.capture import NonFiniteError
from inscape.models.edit import check_fired
from inscape.models.forward import input_device
from inscape.models.hooks import Scope, Tap, attached
from inscape.models.sites import TapPoint
from inscape.models.tokens import Batch, Encoded, batches

# transformers fills every option that is None from the model's own generation_config: these are given, so that it can't.
_GREEDY: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "return_dict_in_generate": False,
    "min_length": 0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "length_penalty": 1.0,
    "guidance_scale": 1.0,
    "renormalize_logits": False,
}
# Given only while sampling: then they are those of the library, not of the folder.
_SAMPLING: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "typical_p": 1.0,
    "min_p": 0.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}


def generate_ids(
    model: nn.Module,
    prompts: Sequence[Encoded],
    taps_for: Callable[[Batch], list[Tap]],
    *,
    max_new_tokens: int,
    batch_size: int,
    pad_id: int,
    use_cache: bool = True,
    options: dict[str, Any] | None = None,
    progress: Callable[[Iterator[Batch], int], Iterator[Batch]] | None = None,
) -> list[list[int]]:
    """New token ids for each prompt, up to and without EOS. Greedy unless ``options`` say otherwise.

    ``options`` are fields of transformers' ``GenerationConfig``; an unknown one is refused. What is not given has the
    library's own default: a ``generation_config.json`` beside the model (a temperature, a repetition penalty) does not
    act unasked, except for its EOS tokens and its lists of tokens to forbid or force.
    """
    config, ends = generation_config(model, max_new_tokens, pad_id, use_cache, options or {})
    todo: Iterator[Batch] = batches(prompts, batch_size=batch_size, pad_id=pad_id, device=input_device(model))
    if progress is not None:
        todo = progress(todo, -(-len(prompts) // batch_size))
    result: list[list[int]] = [[] for _ in prompts]
    for batch in todo:
        rows, width = batch.ids.shape
        edits = taps_for(batch)
        taps = [*edits, Tap(TapPoint("logits", None, model, "output"), refuse_nan(batch.index))]
        with torch.no_grad(), attached(model, taps, rows=rows, width=width, cached=use_cache) as scope:
            output = model.generate(  # type: ignore[operator]
                input_ids=batch.ids, attention_mask=batch.mask, generation_config=config
            )
        check_fired(edits, scope)
        for i, ids in zip(batch.index, output[:, width:].tolist(), strict=True):
            result[i] = up_to_end(ids, ends)
    return result


def generation_config(
    model: nn.Module, max_new_tokens: int, pad_id: int, use_cache: bool, given: Mapping[str, Any]
) -> tuple[GenerationConfig, set[int]]:
    """The settings of :func:`generate_ids`, and the tokens that end a text."""
    if max_new_tokens < 1:
        raise InputError(f"generate: max_new_tokens={max_new_tokens}, expected at least 1")
    known = GenerationConfig()
    if unknown := [name for name in given if name not in vars(known) or name.startswith("_")]:
        raise InputError(f"generate: unknown option {unknown[0]!r} (options are the fields of GenerationConfig)")
    for name, only in (("num_return_sequences", 1), ("return_dict_in_generate", False)):
        if given.get(name, only) not in (only, None):
            raise InputError(f"generate: {name}={given[name]!r} is not taken (one text comes back for each prompt)")
    settings: dict[str, Any] = {**_GREEDY, **(_SAMPLING if given.get("do_sample") else {}), **given}
    eos = settings.get("eos_token_id", getattr(model.generation_config, "eos_token_id", None))
    ends = set(eos if isinstance(eos, (list, tuple)) else [] if eos is None else [eos])
    config = GenerationConfig(
        **{
            "eos_token_id": eos,
            **settings,
            "max_new_tokens": max_new_tokens,
            "pad_token_id": pad_id,
            "use_cache": use_cache,
        }
    )
    return config, ends


def up_to_end(ids: Sequence[int], ends: set[int]) -> list[int]:
    """Ids before the first that ends the text."""
    return list(ids[: next((k for k, token in enumerate(ids) if token in ends), len(ids))])


def refuse_nan(index: Sequence[int]) -> Callable[[Tensor, Scope], None]:
    """A look at the logits: the arg max of NaN is a token like any other, and would read as the model's answer."""

    def look(logits_BTV: Tensor, scope: Scope) -> None:
        last = logits_BTV[:, -1]
        bad = (last.isnan() | last.isposinf()).any(-1)
        if bad.any():
            beams = len(bad) // len(index)
            prompt = min(index[row // beams] for row in bad.nonzero()[:, 0].tolist())
            raise NonFiniteError(f"generate: the logits of prompt {prompt} are NaN or Inf")

    return look
