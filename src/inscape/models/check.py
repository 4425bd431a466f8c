"""The self-check at load: prove the hook points on this very model, or refuse.

On a few tokens, in the model's own dtype:

1. every ``resid_pre`` is bit-equal to ``output_hidden_states``, and so is every ``resid_post`` but the last, whose
   entry transformers gives *after* the final norm. The last is checked against the input of whatever module beside the
   blocks runs next (the final norm), or against the entry itself where there is no norm;
2. where the family has parts: ``resid_pre + attn_out + mlp_out = resid_post``, and ``resid_pre + attn_out = resid_mid``
   is the MLP side's input, to the rounding of the dtype;
3. for a single token, attention has nothing to choose from, so ``z`` of each head is ``v`` of its key/value head: this
   proves the order of heads and of a fused projection's features.
"""

from typing import Any

import torch
from torch import Tensor, nn

from inscape.models.discovery import ModelCheckError
from inscape.models.hooks import Scope, Tap, attached
from inscape.models.sites import Sites, TapPoint, first_tensor


def self_check(sites: Sites, ids: Tensor) -> None:
    """Raise :class:`ModelCheckError` naming the first site that is not what it should be."""
    model, layers = sites.model, range(len(sites.blocks))
    wanted = ["resid_pre", "resid_post"]
    if sites.family is not None:
        wanted += ["attn_out", "mlp_out"]
    points = [sites.tap(site, layer) for site in wanted for layer in layers]
    beside: list[Tensor] = []
    seen, output = _run(model, points, ids, hidden_states=True, beside=_beside_blocks(sites), inputs=beside)
    hidden = output.hidden_states
    if hidden is None or len(hidden) != len(sites.blocks) + 1:
        found = "none" if hidden is None else str(len(hidden))
        raise ModelCheckError(
            f"found {len(sites.blocks)} blocks, but the model reports {found} hidden states: name the blocks (blocks=…)"
        )
    for layer in layers:
        _same(seen["resid_pre", layer], hidden[layer], f"resid_pre of layer {layer}")
        if layer + 1 < len(sites.blocks):
            _same(seen["resid_post", layer], hidden[layer + 1], f"resid_post of layer {layer}")
    last = seen["resid_post", layers[-1]]
    if not any(t.shape == last.shape and torch.equal(t.to(last.device), last) for t in (*beside, hidden[-1])):
        raise ModelCheckError(f"resid_post of layer {layers[-1]} is not what the model reads after its last block")
    if sites.family is not None:
        if not sites.family.norm_on_stream(sites.config):
            _check_sums(seen, len(sites.blocks))
        _check_heads(sites, ids[:1, :1])


def _run(
    model: nn.Module,
    points: list[TapPoint],
    ids: Tensor,
    *,
    hidden_states: bool = False,
    beside: list[nn.Module] | None = None,
    inputs: list[Tensor] | None = None,
) -> tuple[dict[tuple[str, int], Tensor], Any]:
    seen: dict[tuple[str, int], Tensor] = {}

    def look_at(point: TapPoint) -> Tap:
        def look(value: Tensor, scope: Scope) -> None:
            seen[point.site, point.layer or 0] = value.detach().clone()

        return Tap(point, look)

    def keep_input(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and inputs is not None and isinstance(args[0], Tensor):
            inputs.append(args[0].detach().clone())

    taps = [look_at(point) for point in points]
    handles = [m.register_forward_pre_hook(keep_input) for m in beside or []]
    try:
        with torch.no_grad(), attached(model, taps, rows=ids.shape[0], width=ids.shape[1]):
            output = model(
                input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, output_hidden_states=hidden_states
            )
    finally:
        for handle in handles:
            handle.remove()
    for tap in taps:
        if tap.fired != 1:
            raise ModelCheckError(f"{tap.point} was reached {tap.fired} times in one forward pass, expected once")
    return seen, output


def _beside_blocks(sites: Sites) -> list[nn.Module]:
    """The modules that stand beside the list of blocks in its parent: embeddings, final norm, projections."""
    for module in sites.model.modules():
        children = list(module.children())
        if any(list(child.children())[: len(sites.blocks)] == list(sites.blocks) for child in children):
            return [child for child in children if list(child.children()) != list(sites.blocks)]
    return []


def _same(ours: Tensor, theirs: Tensor, what: str) -> None:
    theirs = first_tensor(theirs).to(ours.device)
    if ours.shape != theirs.shape:
        raise ModelCheckError(f"{what} has shape {tuple(ours.shape)}, the model reports {tuple(theirs.shape)}")
    if not torch.equal(ours, theirs):
        off = (ours.float() - theirs.float()).abs().max().item()
        raise ModelCheckError(f"{what} differs from the model's own hidden state by {off:.3g}, expected no difference")


def _check_sums(seen: dict[tuple[str, int], Tensor], layers: int) -> None:
    for layer in range(layers):
        terms = [seen[site, layer].double() for site in ("resid_pre", "attn_out", "mlp_out")]
        post = seen["resid_post", layer]
        # Two roundings of sums whose size is that of the largest term.
        room = 4 * torch.finfo(post.dtype).eps * max(t.abs().max().item() for t in (*terms, post.double()))
        off = (sum(terms) - post.double()).abs().max().item()
        if off > room:
            raise ModelCheckError(
                f"resid_pre + attn_out + mlp_out differs from resid_post by {off:.3g} in layer {layer}: "
                "the family table does not fit this model"
            )


def _check_heads(sites: Sites, one_token: Tensor) -> None:
    points = [sites.tap(site, layer) for layer in range(len(sites.blocks)) for site in ("v", "z")]
    seen, _ = _run(sites.model, points, one_token)
    for layer in range(len(sites.blocks)):
        v, z = seen["v", layer], seen["z", layer]
        expected = v.repeat_interleave(z.shape[2] // v.shape[2], dim=2)
        room = 4 * torch.finfo(z.dtype).eps * v.abs().max().item()
        if expected.shape != z.shape or (expected.double() - z.double()).abs().max().item() > room:
            raise ModelCheckError(
                f"for one token, z is not v in layer {layer}: the heads are not laid out as the family table says"
            )
