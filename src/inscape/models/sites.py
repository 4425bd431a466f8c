"""The named places of a language model where an activation can be read and written.

Vocabulary. A *site* is a kind of place (``resid_post``); a site at a layer is realised by a *tap point*: one module, its
input or its output, and the view of that tensor which is the site's value. A view has the prompt and the token as its
first two axes::

    embed, resid_pre, attn_out, resid_mid, mlp_out, resid_post   [batch, token, d_model]
    q, z                                                         [batch, token, head, head_dim]
    k, v                                                         [batch, token, kv_head, head_dim]
    mlp_act                                                      [batch, token, d_mlp]
    logits                                                       [batch, token, vocab]

``resid_mid`` is no module's tensor alone (the skip connection carries it past the norm), so it is realised at
``attn_out``: its value is ``resid_pre + attn_out``, and writing it moves ``attn_out`` by the difference.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from inscape.errors import InputError
from inscape.models.families import Family

RESIDUAL_SITES = ("embed", "resid_pre", "resid_post", "logits")
PART_SITES = ("attn_out", "resid_mid", "mlp_out", "q", "k", "v", "z", "mlp_act")
SITES = (
    "embed",
    "resid_pre",
    "attn_out",
    "resid_mid",
    "mlp_out",
    "resid_post",
    "q",
    "k",
    "v",
    "z",
    "mlp_act",
    "logits",
)
LAYERLESS = ("embed", "logits")

_TRANSFORMER_LENS = {
    "hook_resid_pre": "resid_pre",
    "hook_attn_out": "attn_out",
    "hook_resid_mid": "resid_mid",
    "hook_mlp_out": "mlp_out",
    "hook_resid_post": "resid_post",
    "attn.hook_q": "q",
    "attn.hook_k": "k",
    "attn.hook_v": "v",
    "attn.hook_z": "z",
    "mlp.hook_post": "mlp_act",
}


def parse_site(name: str) -> tuple[str, int | None]:
    """``"resid_post"`` → ``("resid_post", None)``; a TransformerLens name also gives the layer.

    ``"blocks.3.hook_resid_post"`` → ``("resid_post", 3)``, ``"hook_embed"`` → ``("embed", None)``.
    Raises :class:`InputError` for anything else.
    """
    if name in SITES:
        return name, None
    if name == "hook_embed":
        return "embed", None
    if (match := re.fullmatch(r"blocks\.(\d+)\.(.+)", name)) and match[2] in _TRANSFORMER_LENS:
        return _TRANSFORMER_LENS[match[2]], int(match[1])
    raise InputError(
        f"unknown site {name!r}: expected one of {', '.join(SITES)}, or a name like blocks.3.hook_resid_post"
    )


@dataclass(frozen=True)
class HeadView:
    """How a projection's features ``[batch, token, f]`` hold heads, and back.

    ``heads`` and ``head_dim`` are those of the site. ``start`` is where they begin in a concatenated projection.
    ``group`` is set for the grouped layout: queries per key/value head; ``role`` picks the site's part of a group.
    """

    heads: int
    head_dim: int
    start: int = 0
    group: int | None = None
    role: Literal["q", "k", "v"] = "q"

    def read(self, x_BTF: Tensor) -> Tensor:
        if self.group is None:
            x_BTF = x_BTF[..., self.start : self.start + self.heads * self.head_dim]
            return x_BTF.unflatten(-1, (self.heads, self.head_dim))
        x_BTKGD = x_BTF.unflatten(-1, (-1, self.group + 2, self.head_dim))
        return x_BTKGD[..., self._in_group(), :].flatten(-3, -2)

    def write(self, x_BTF: Tensor, new_BTHD: Tensor) -> Tensor:
        out = x_BTF.clone()
        if self.group is None:
            out[..., self.start : self.start + self.heads * self.head_dim] = new_BTHD.flatten(-2)
            return out
        per_group = self.group if self.role == "q" else 1
        out.unflatten(-1, (-1, self.group + 2, self.head_dim))[..., self._in_group(), :] = new_BTHD.unflatten(
            -2, (-1, per_group)
        )
        return out

    def _in_group(self) -> slice:
        assert self.group is not None
        return {
            "q": slice(0, self.group),
            "k": slice(self.group, self.group + 1),
            "v": slice(self.group + 1, self.group + 2),
        }[self.role]


@dataclass(frozen=True)
class TapPoint:
    """One module's input or output, and the view of it that is a site's value.

    ``plus`` (for ``resid_mid``) is a module whose *input* is added to this tensor to give the value.
    """

    site: str
    layer: int | None
    module: nn.Module
    side: Literal["input", "output"]
    view: HeadView | None = None
    plus: nn.Module | None = None

    def __str__(self) -> str:
        return self.site if self.layer is None else f"{self.site} of layer {self.layer}"


@dataclass(frozen=True)
class Sites:
    """The tap points of one model: blocks from discovery, parts from the family table.

    Attributes:
        model: the causal LM as the user gave it.
        blocks: its transformer blocks, in order.
        family: the family table's entry, or None.
    """

    model: nn.Module
    blocks: Sequence[nn.Module]
    family: Family | None
    config: Any

    def available(self) -> tuple[str, ...]:
        return tuple(site for site in SITES if self.why_not(site) is None)

    def why_not(self, site: str) -> str | None:
        """Why this model has no such site, in words; None if it has."""
        if site in RESIDUAL_SITES:
            return None
        kind = self.config.model_type
        if self.family is None:
            return (
                f"model type {kind!r} has no family table: add an entry to inscape.models.families.FAMILIES with the "
                "paths of the attention output projection (o), the MLP down projection (down), and q, k, v or qkv"
            )
        if site == "resid_mid" and self.family.parallel(self.config):
            return (
                f"{kind} blocks are parallel here (attention and MLP read the same residual): use resid_pre or attn_out"
            )
        if site == "resid_mid" and self.family.norm_on_stream(self.config):
            return f"{kind} puts a norm on the residual stream here: there is no sum of resid_pre and attn_out in the model"
        return None

    def tap(self, site: str, layer: int | None) -> TapPoint:
        """The tap point of a site (at a layer, except for ``embed`` and ``logits``)."""
        if (reason := self.why_not(site)) is not None:
            raise InputError(f"site {site!r} is not to be had: {reason}")
        if site == "embed":
            return TapPoint(site, None, self.model.get_input_embeddings(), "output")  # type: ignore[operator]
        if site == "logits":
            return TapPoint(site, None, self.model, "output")
        if layer is None:
            raise InputError(f"site {site!r} needs a layer (0 to {len(self.blocks) - 1})")
        if not -len(self.blocks) <= layer < len(self.blocks):
            raise InputError(f"no layer {layer}: the model has layers 0 to {len(self.blocks) - 1}")
        layer %= len(self.blocks)
        block = self.blocks[layer]
        if site in ("resid_pre", "resid_post"):
            return TapPoint(site, layer, block, "input" if site == "resid_pre" else "output")
        return self._part(site, layer, block)

    def _part(self, site: str, layer: int, block: nn.Module) -> TapPoint:
        family = self.family
        assert family is not None
        match site:
            case "attn_out":
                return TapPoint(site, layer, _at(block, family.attn_out or family.o), "output")
            case "resid_mid":
                return TapPoint(site, layer, _at(block, family.attn_out or family.o), "output", plus=block)
            case "mlp_out":
                return TapPoint(site, layer, _at(block, family.mlp_out or family.down), "output")
            case "mlp_act":
                return TapPoint(site, layer, _at(block, family.down), "input")
        heads, kv_heads, head_dim = self.head_shape(layer)
        if site == "z":
            return TapPoint(site, layer, _at(block, family.o), "input", HeadView(heads, head_dim))
        of_site = heads if site == "q" else kv_heads
        if family.qkv is None:
            return TapPoint(site, layer, _at(block, getattr(family, site)), "output", HeadView(of_site, head_dim))
        role: Any = site
        if family.layout == "grouped":
            view = HeadView(of_site, head_dim, group=heads // kv_heads, role=role)
        else:
            start = {"q": 0, "k": heads * head_dim, "v": (heads + kv_heads) * head_dim}[site]
            view = HeadView(of_site, head_dim, start=start, role=role)
        return TapPoint(site, layer, _at(block, family.qkv), "output", view)

    def head_shape(self, layer: int) -> tuple[int, int, int]:
        """``(heads, key/value heads, head_dim)`` of a layer, from the config and the width of the output projection."""
        family, block = self.family, self.blocks[layer]
        assert family is not None
        heads = self.config.num_attention_heads
        z_width = _in_features(_at(block, family.o))
        head_dim = z_width // heads
        if family.qkv is None:
            widths = [_out_features(_at(block, str(path))) for path in (family.q, family.k, family.v)]
            kv_heads = widths[1] // head_dim
            fits = widths == [z_width, kv_heads * head_dim, kv_heads * head_dim]
        else:
            widths = [_out_features(_at(block, family.qkv))]
            kv_heads = (widths[0] - z_width) // (2 * head_dim)
            fits = widths == [z_width + 2 * kv_heads * head_dim]
        if not fits or kv_heads < 1 or heads % kv_heads or z_width != heads * head_dim:
            raise InputError(
                f"the family table does not fit {type(block).__name__}: z has {z_width} features for {heads} heads, and "
                f"{'q, k, v have' if family.qkv is None else 'qkv has'} {', '.join(map(str, widths))}"
            )
        return heads, kv_heads, head_dim


def _at(block: nn.Module, path: str) -> nn.Module:
    try:
        return block.get_submodule(path)
    except AttributeError as error:
        raise InputError(f"the family table says {path!r}, but {type(block).__name__} has no such module") from error


def _in_features(module: nn.Module) -> int:
    # transformers' Conv1D holds its weight as [in, out] and names neither.
    return module.in_features if isinstance(module, nn.Linear) else module.get_parameter("weight").shape[0]


def _out_features(module: nn.Module) -> int:
    return module.out_features if isinstance(module, nn.Linear) else module.get_parameter("weight").shape[1]


def first_tensor(value: Any) -> Tensor:
    """The hidden states in what a module was given or gave back: a tensor, or the first of a tuple."""
    tensor = value[0] if isinstance(value, (tuple, list)) else value
    if not isinstance(tensor, torch.Tensor):
        raise InputError(f"expected hidden states, found {type(tensor).__name__}")
    return tensor
