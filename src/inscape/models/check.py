"""The self-check at load: prove the hook points on this very model, or refuse.

On a few tokens, in the model's own dtype:

1. every ``resid_pre`` is bit-equal to ``output_hidden_states``, and so is every ``resid_post`` but the last, whose
   entry transformers gives *after* the final norm. The last is checked against the input of whatever module beside the
   blocks runs next (the final norm), or against the entry itself where there is no norm;
2. where the family has parts: ``resid_pre + attn_out + mlp_out = resid_post``, to the rounding of the dtype;
3. what moves what, with every block's input held where it was (so that all layers are tried in one pass, each group of
   rows with another change): the last token moves no earlier one (the model is causal); ``attn_out`` moves ``mlp_out``
   just where the table says that the block is sequential (and so has a ``resid_mid``); ``q`` moves ``z`` at its own
   token and nowhere else, and not at the first, which has one key to choose from; ``k`` moves ``z`` at later tokens;
4. at the first token ``z`` of each head is ``v`` of its key/value head: this proves the order of heads and of a fused
   projection's features.

A change that *must* show is asked for only where it can: a hand-built model may hold zeros.
"""

from collections.abc import Sequence
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
        wanted += ["attn_out", "mlp_out", "mlp_act"]
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
    if sites.family is not None and not sites.family.norm_on_stream(sites.config):
        _check_sums(seen, len(sites.blocks))
    _check_causes(sites, ids, [seen["resid_pre", layer] for layer in layers])


def _run(
    model: nn.Module,
    points: list[TapPoint],
    ids: Tensor,
    *,
    edits: Sequence[Tap] = (),
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

    taps = [*edits, *map(look_at, points)]
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


def _check_causes(sites: Sites, ids: Tensor, inputs: list[Tensor]) -> None:
    family, layers = sites.family, range(len(sites.blocks))
    kinds = ["as it is", "resid_pre"] + (["attn_out", "q", "k"] if family is not None else [])
    group = {kind: slice(n * len(ids), (n + 1) * len(ids)) for n, kind in enumerate(kinds)}
    tokens = {"resid_pre": [-1], "attn_out": list(range(ids.shape[1])), "q": [0, -1], "k": [0]}

    def change(kind: str, layer: int) -> Tap:
        def function(value: Tensor, scope: Scope) -> Tensor:
            new = inputs[layer].repeat(len(kinds), 1, 1) if kind == "resid_pre" else value.clone()
            new[group[kind], tokens[kind]] += _far(new[group[kind], tokens[kind]])
            return new

        return Tap(sites.tap(kind, layer), function)

    edits = [change(kind, layer) for kind in kinds[1:] for layer in layers]
    looks = ["resid_post"] + (["mlp_out", "q", "k", "v", "z"] if family is not None else [])
    points = [sites.tap(site, layer) for site in looks for layer in layers]
    seen, _ = _run(sites.model, points, ids.repeat(len(kinds), 1), edits=edits)
    for layer in layers:
        base = {site: seen[site, layer][group["as it is"]] for site in looks}

        def moved(site: str, by: str, room: float = 16.0, layer: int = layer, base: dict[str, Tensor] = base) -> Tensor:
            """Per token, whether the change shows beyond ``room`` roundings (0: at all, for what must show)."""
            off = (seen[site, layer][group[by]].double() - base[site].double()).abs().flatten(2).amax((0, 2))
            return off > room * torch.finfo(base[site].dtype).eps * base[site].abs().max().double()

        if moved("resid_post", "resid_pre")[:-1].any():
            raise ModelCheckError(
                f"layer {layer} gives earlier tokens what a later one holds: expected a causal language model"
            )
        if family is None:
            continue
        _check_first_token(base["v"], base["z"], family.clip(sites.config), layer)
        varied = {site: bool((x != x[:, :1]).any()) for site, x in base.items()}
        parallel = family.parallel(sites.config)
        if (
            moved("mlp_out", "attn_out").any()
            if parallel
            else varied["mlp_out"] and not moved("mlp_out", "attn_out", 0).any()
        ):
            raise ModelCheckError(
                f"the family table says that blocks are {'parallel' if parallel else 'sequential'}, but attn_out "
                f"{'moves' if parallel else 'does not move'} mlp_out in layer {layer}"
            )
        must = varied["q"] and varied["k"] and varied["v"]
        if moved("z", "q")[:-1].any() or (must and not moved("z", "q", 0)[-1]):
            raise ModelCheckError(
                f"q of layer {layer} does not act on attention as queries do: the family table is wrong"
            )
        if moved("z", "k")[0] or (must and not moved("z", "k", 0)[1:].any()):
            raise ModelCheckError(f"k of layer {layer} does not act on attention as keys do: the family table is wrong")


def _far(x: Tensor) -> Tensor:
    """A change of ``x`` that is large against it, and different for every feature."""
    ramp = torch.linspace(-1, 1, x[0, 0].numel(), device=x.device).reshape(x.shape[2:])
    return (30 * (1 + x.abs().max()) * ramp).to(x.dtype)


def _check_first_token(v_RTKD: Tensor, z_RTHD: Tensor, clip: float | None, layer: int) -> None:
    v, z = v_RTKD[:, 0].double(), z_RTHD[:, 0].double()
    expected = (v if clip is None else v.clamp(-clip, clip)).repeat_interleave(max(z.shape[1] // v.shape[1], 1), dim=1)
    room = 4 * torch.finfo(z_RTHD.dtype).eps * v.abs().max().item()
    if expected.shape != z.shape or (expected - z).abs().max().item() > room:
        raise ModelCheckError(
            f"at the first token, z is not v in layer {layer}: the heads are not laid out as the family table says"
        )
