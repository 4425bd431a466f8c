"""Running a model over prompts in padded batches, doing no work that nobody asked for.

:func:`run` is the one place that calls the model for capture and scoring. It stops at the deepest tap (by raising out of
the forward pass once every look has been had), and asks for logits only where they are read.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inscape.errors import InputError
from inscape.models.edit import check_fired
from inscape.models.hooks import Scope, StopForward, Tap, attached
from inscape.models.tokens import Batch, Encoded, batches


def may_stop_early(model: nn.Module) -> bool:
    """Whether leaving a forward pass midway is safe: not when accelerate moves weights in and out around it."""
    return not any(getattr(getattr(m, "_hf_hook", None), "offload", False) for m in model.modules())


def run(
    model: nn.Module,
    prompts: Sequence[Encoded],
    taps_for: Callable[[Batch], tuple[list[Tap], list[Tap]]],
    *,
    batch_size: int,
    pad_id: int,
    padding_side: str = "left",
    logits_at: Callable[[Batch], Tensor | None] | None = None,
    progress: Callable[[Iterator[Batch], int], Iterator[Batch]] | None = None,
) -> None:
    """Run all prompts. ``taps_for(batch)`` gives ``(edits, looks)``; looks see the values after the edits.

    ``logits_at(batch)`` is None if nobody reads logits (then the run stops at the deepest look), else a function that
    gives the padded columns to keep (int64), or None for all.
    """
    device = input_device(model)
    todo: Iterator[Batch] = batches(
        prompts, batch_size=batch_size, pad_id=pad_id, device=device, padding_side=padding_side
    )
    if progress is not None:
        todo = progress(todo, -(-len(prompts) // batch_size))
    for batch in todo:
        run_batch(model, batch, *taps_for(batch), logits_at=logits_at)


def run_batch(
    model: nn.Module,
    batch: Batch,
    edits: list[Tap],
    looks: list[Tap],
    *,
    logits_at: Callable[[Batch], Tensor | None] | None = None,
    cache: Any = None,
) -> None:
    """Run one batch; arguments as in :func:`run`. ``cache``: a key/value cache to be filled, or None."""
    if not looks:  # nobody looks at a token of this batch
        return
    if logits_at is None and may_stop_early(model):
        _stop_after(looks)
    given = model_inputs(model, batch)
    if cache is not None:
        given |= {"past_key_values": cache, "use_cache": True}
    columns = torch.tensor([batch.ids.shape[1] - 1]) if logits_at is None else logits_at(batch)
    if columns is not None and "logits_to_keep" in inspect.signature(model.forward).parameters:
        given["logits_to_keep"] = columns.to(batch.ids.device)
    with (
        torch.no_grad(),
        attached(model, [*edits, *looks], rows=len(batch.index), width=batch.ids.shape[1]) as scope,
    ):
        try:
            model(**given)
        except StopForward:
            # An edit above the last look did not run, and could not have changed what was seen.
            edits = [tap for tap in edits if tap.fired]
    check_fired(edits, scope)
    check_looks(looks)


def input_device(model: nn.Module) -> torch.device:
    """Where token ids go in; the CPU where accelerate offloads, whose hooks bring the inputs to where the weights go."""
    device = model.get_input_embeddings().weight.device  # type: ignore[operator]
    return torch.device("cpu") if device.type == "meta" else device


def model_inputs(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """What the model is called with: ids, mask, and position ids where it takes them; no cache."""
    given: dict[str, Any] = {"input_ids": batch.ids, "attention_mask": batch.mask, "use_cache": False}
    if "position_ids" in inspect.signature(model.forward).parameters:
        given["position_ids"] = batch.position_ids
    return given


def _stop_after(looks: list[Tap]) -> None:
    """Make the last of the looks to fire end the forward pass."""
    waiting = {id(tap) for tap in looks}

    # (By the tap's id: a function that held its own tap would keep what it collected until the cycle is found.)
    def stopping(tap: int, look: Callable[[Tensor, Scope], Tensor | None]) -> Callable[[Tensor, Scope], Tensor | None]:
        def function(value: Tensor, scope: Scope) -> Tensor | None:
            look(value, scope)
            waiting.discard(tap)
            if not waiting:
                raise StopForward
            return None

        return function

    for tap in looks:
        tap.function = stopping(id(tap), tap.function)


def check_looks(looks: Sequence[Tap]) -> None:
    """Refuse a pass in which a site was not seen just once."""
    for tap in looks:
        if tap.fired != 1:
            raise InputError(
                f"{tap.point} was seen {tap.fired} times in one forward pass: this model does not run it as its family does"
            )
