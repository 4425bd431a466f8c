"""Generation under edits: transformers' own ``generate``, with taps on.

Edits of the prompt act in the pass that reads the prompt; later tokens see them through the key/value cache. Without a
cache every pass reads the whole sequence again, and the edits act again at the same tokens: the result is the same.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from inscape.errors import InputError
from inscape.models.edit import check_fired
from inscape.models.hooks import Tap, attached
from inscape.models.tokens import Batch, Encoded, batches


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

    ``options`` are fields of transformers' ``GenerationConfig``; an unknown one is refused.
    """
    settings: dict[str, Any] = {"do_sample": False, "num_beams": 1, **(options or {})}
    known = GenerationConfig()
    if unknown := [name for name in settings if not hasattr(known, name)]:
        raise InputError(f"generate: unknown option {unknown[0]!r} (options are the fields of GenerationConfig)")
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
    device = model.get_input_embeddings().weight.device  # type: ignore[operator]
    if device.type == "meta":
        device = torch.device("cpu")
    todo: Iterator[Batch] = batches(prompts, batch_size=batch_size, pad_id=pad_id, device=device)
    if progress is not None:
        todo = progress(todo, -(-len(prompts) // batch_size))
    result: list[list[int]] = [[] for _ in prompts]
    for batch in todo:
        rows, width = batch.ids.shape
        taps = taps_for(batch)
        with torch.no_grad(), attached(model, taps, rows=rows, width=width, cached=use_cache) as scope:
            output = model.generate(  # type: ignore[operator]
                input_ids=batch.ids, attention_mask=batch.mask, generation_config=config
            )
        check_fired(taps, scope)
        for i, ids in zip(batch.index, output[:, width:].tolist(), strict=True):
            end = next((k for k, token in enumerate(ids) if token in ends), len(ids))
            result[i] = ids[:end]
    return result
