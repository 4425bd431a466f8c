"""Grids of edits: what a sweep varies, as named dimensions.

A *cell* is a tuple of edits that act together in one run of every prompt. A :class:`Grid` is the product of what varies
(sites, layers, positions, heads, vectors or donors, strengths) and gives its cells in that order, with the dimension names
and coordinates of the result. Activation patching is a grid with ``donors``: the value comes from another prompt's run, at
the same site, layer and token.
"""

import itertools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from inscape.errors import InputError
from inscape.models.edit import Edit, Kind, When, project
from inscape.models.sites import LAYERLESS, parse_site
from inscape.models.tokens import Mention, Prompt, Tokens

if TYPE_CHECKING:
    from inscape.models.lm import LM

Vector = Tensor | Mapping[int, Tensor]
"""One for all layers, or one by layer. Shapes as in :class:`~inscape.models.edit.Edit`."""

Cell = tuple[Edit, ...]


@dataclass(frozen=True, eq=False)
class Donors:
    """Prompts whose activations are put into others: ``prompts[i]`` gives to the sweep's prompt ``i``.

    Attributes:
        prompts: one per prompt of the sweep.
        tokens: which tokens give (default: the grid's own ``tokens``); as many per prompt as are written.
        mentions, occurrence: as in ``capture``, for the donors' texts.
        edits: edits of the donors' own run (a corrupted run can give, too).
    """

    prompts: Sequence[Prompt]
    tokens: Tokens | Mapping[str, Tokens] | None = None
    mentions: Sequence[Mention] | None = None
    occurrence: int | None = None
    edits: Sequence[Edit] = ()


@dataclass(frozen=True, eq=False)
class Grid:
    """A sweep: every site × layer × position × head × vector or donor × strength is one run of every prompt.

    Attributes:
        site: a site, or several (dimension ``site``).
        layers: layers (dimension ``layer``; None: all of them). ``embed`` has none, and no such dimension.
        tokens: which tokens are edited (dimension ``position``): one name as in ``capture``, several by label, or
            ``"each"``: every token of the prompt by itself, NaN where a shorter prompt has none.
        kind: the rule, as in :class:`~inscape.models.edit.Edit`.
        vector: what is added or set; ``{layer: vector}`` where it differs by layer; ``{"name": vector}`` for several
            (dimension ``vector``). For ``project`` directions ``[d]`` or ``[r, d]``; for ``ablate`` the mean, or None.
        donors: activation patching (``kind="set"``): where values come from; several for a dimension ``donor``.
        strengths: numbers (dimension ``strength``), or a tensor ``[prompt, strength]`` for each prompt its own.
        heads: for ``q, k, v, z``: heads to be edited one by one (dimension ``head``).
        window: layers on each side that are edited together with the layer (clipped at the ends).
        when: as in ``Edit``.
    """

    site: str | Sequence[str] = "resid_post"
    layers: int | Sequence[int] | None = None
    tokens: Tokens | Mapping[str, Tokens] = "last"
    kind: Kind = "add"
    vector: Vector | Mapping[str, Vector] | None = None
    donors: Donors | Sequence[Donors] | None = None
    strengths: Sequence[float] | Tensor = (1.0,)
    heads: Sequence[int] | None = None
    window: int = 0
    when: When = "prompt"

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InputError(f"grid: kind={self.kind!r}, expected one of {', '.join(get_args(Kind))}")
        if self.donors is not None and (self.kind != "set" or self.vector is not None or self.heads is not None):
            raise InputError("grid: donors give whole values: they need kind='set', no vector and no heads")
        if self.kind in ("add", "set", "project") and self.vector is None and self.donors is None:
            raise InputError(f"grid: kind={self.kind!r} needs a vector" + (" or donors" if self.kind == "set" else ""))
        if self.window < 0:
            raise InputError(f"grid: window={self.window}, expected 0 or more layers on each side")


@dataclass(frozen=True, eq=False)
class Cells:
    """A grid written out: ``cells`` in row-major order of ``dims``; ``exists`` bool ``[prompt, cell]``."""

    dims: tuple[str, ...]
    coords: dict[str, list[Any]]
    cells: list[Cell]
    exists: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(self.coords[dim]) for dim in self.dims)


def written_out(
    lm: "LM",
    grid: Grid | Sequence[Sequence[Edit]],
    prompts: Sequence[Prompt],
    mentions: Sequence[Mention] | None,
    occurrence: int | None,
    bos: bool | None,
    batch_size: int,
) -> Cells:
    """The cells of a grid; a plain list of lists of edits has the one dimension ``cell``."""
    if not isinstance(grid, Grid):
        if not isinstance(grid, Sequence) or not all(_is_cell(cell) for cell in grid):
            raise InputError("rerun: expected a Grid, or a list with a list of edits for each run")
        cells = [tuple(cell) for cell in grid]
        if not cells:
            raise InputError("rerun: no edits were given")
        return Cells(
            ("cell",), {"cell": list(range(len(cells)))}, cells, torch.ones(len(prompts), len(cells), dtype=torch.bool)
        )
    sites = [grid.site] if isinstance(grid.site, str) else list(grid.site)
    layers = _layers(lm, sites, grid.layers)
    by_label, exists = _positions_by_label(lm, grid.tokens, prompts, bos)
    vectors, vector_dim = _vectors(lm, grid, sites, layers, by_label, prompts, mentions, occurrence, bos, batch_size)
    strengths, strength_coords = _strengths(grid.strengths, len(prompts))
    # (dimension, coordinates, whether it is shown)
    axes: list[tuple[str, list[Any], bool]] = [
        ("site", sites, not isinstance(grid.site, str)),
        ("layer", list(layers), layers != [None]),
        ("position", list(by_label), True),
        ("head", list(grid.heads) if grid.heads is not None else [None], grid.heads is not None),
        (vector_dim or "vector", list(vectors), vector_dim is not None),
        ("strength", list(range(len(strengths))), True),
    ]
    cells = []
    for site, layer, label, head, name, nth in itertools.product(*(coords for _, coords, _ in axes)):
        cells.append(
            tuple(
                Edit(
                    site,
                    at,
                    by_label[label],
                    grid.kind,
                    vectors[name](site, at, label),
                    strengths[nth],
                    grid.when,
                    head,
                )
                for at in _window(layer, grid.window, lm.n_layers)
            )
        )
    shown = [(dim, coords) for dim, coords, show in axes if show]
    named = dict(shown) | {"strength": strength_coords}
    if not cells:
        raise InputError("grid: a dimension is empty (no layers, positions, vectors or strengths)")
    return Cells(tuple(dim for dim, _ in shown), named, cells, _exists(axes, list(by_label), exists))


def _is_cell(cell: object) -> bool:
    return isinstance(cell, Sequence) and all(isinstance(edit, Edit) for edit in cell)


def _layers(lm: "LM", sites: Sequence[str], layers: int | Sequence[int] | None) -> list[int | None]:
    names = [parse_site(site)[0] for site in sites]
    without = [name in LAYERLESS for name in names]
    if any(without):
        if not all(without) or layers is not None:
            raise InputError(
                f"grid: site {names[without.index(True)]!r} has no layers; sweep it by itself, without layers"
            )
        return [None]
    try:
        given = range(lm.n_layers) if layers is None else layers if isinstance(layers, Iterable) else [layers]
        wanted = [operator.index(layer) for layer in given]
    except TypeError:
        raise InputError(f"grid: layers={layers!r:.80}, expected layers by number") from None
    for layer in wanted:
        if not -lm.n_layers <= layer < lm.n_layers:
            raise InputError(f"grid: no layer {layer}: the model has layers 0 to {lm.n_layers - 1}")
    return [layer % lm.n_layers for layer in wanted]


def _window(layer: int | None, window: int, n_layers: int) -> list[int | None]:
    if layer is None:
        return [None]
    return list(range(max(0, layer - window), min(n_layers, layer + window + 1)))


def _positions_by_label(
    lm: "LM", tokens: Tokens | Mapping[str, Tokens], prompts: Sequence[Prompt], bos: bool | None
) -> tuple[dict[Any, Tokens], dict[Any, list[bool]]]:
    """Tokens by label, and by label whether each prompt has them (where it may not)."""
    if isinstance(tokens, Mapping):
        return dict(tokens), {}
    if isinstance(tokens, str) and tokens == "each":
        lengths = [len(ids) for ids in lm.token_ids(prompts, bos=bos)]
        columns = range(max(lengths, default=0))
        return (
            {j: [[j] if j < n else [] for n in lengths] for j in columns},
            {j: [j < n for n in lengths] for j in columns},
        )
    return {tokens if isinstance(tokens, str) else "tokens": tokens}, {}


def _strengths(strengths: Sequence[float] | Tensor, prompts: int) -> tuple[list[float | Tensor], list[Any]]:
    if isinstance(strengths, Tensor) and strengths.ndim == 2:
        if strengths.shape[0] != prompts:
            raise InputError(f"grid: strengths for {strengths.shape[0]} prompts, there are {prompts}")
        return list(strengths.T), list(range(strengths.shape[1]))
    try:
        if isinstance(strengths, Tensor) and strengths.ndim != 1:
            raise TypeError
        numbers = [float(s) for s in strengths]
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            f"grid: strengths are a {type(strengths).__name__}; expected numbers, or a tensor [prompt, strength]"
        ) from None
    return list(numbers), numbers


def _exists(axes: list[tuple[str, list[Any], bool]], labels: list[Any], exists: dict[Any, list[bool]]) -> Tensor:
    sizes = [len(coords) for _, coords, _ in axes]
    prompts = len(next(iter(exists.values()))) if exists else 1
    has_PL = torch.tensor([exists.get(label, [True] * prompts) for label in labels], dtype=torch.bool).T
    return has_PL.reshape(prompts, 1, 1, -1, 1, 1, 1).expand(prompts, *sizes).reshape(prompts, -1)


_Named = dict[Any, Callable[[str, int | None, Any], Tensor | None]]


def _vectors(
    lm: "LM", grid: Grid, sites: list[str], layers: list[int | None], by_label: dict[Any, Tokens],
    prompts: Sequence[Prompt], mentions: Sequence[Mention] | None, occurrence: int | None, bos: bool | None,
    batch_size: int,
) -> tuple[_Named, str | None]:  # fmt: skip
    """By name, a function of (site, layer, label) that gives the vector; and the dimension's name, if there is one."""
    if grid.donors is not None:
        many = [grid.donors] if isinstance(grid.donors, Donors) else list(grid.donors)
        needed = sorted({at for layer in layers for at in _window(layer, grid.window, lm.n_layers) if at is not None})
        named: _Named = {
            n: _donated(lm, d, sites, needed, by_label, prompts, mentions, occurrence, bos, batch_size)
            for n, d in enumerate(many)
        }
        return named, None if isinstance(grid.donors, Donors) else "donor"
    if isinstance(grid.vector, Mapping) and all(isinstance(key, str) for key in grid.vector):
        return {name: _by_layer(grid.kind, v) for name, v in grid.vector.items()}, "vector"
    return {None: _by_layer(grid.kind, grid.vector)}, None


def _by_layer(kind: Kind, vector: Any) -> Callable[[str, int | None, Any], Tensor | None]:
    made: dict[int | None, Tensor | None] = {}

    def at(site: str, layer: int | None, label: Any) -> Tensor | None:
        key = layer if isinstance(vector, Mapping) else None
        if key not in made:
            if isinstance(vector, Mapping) and layer not in vector:
                raise InputError(f"grid: no vector for layer {layer} (there are {', '.join(map(str, vector))})")
            value = vector[layer] if isinstance(vector, Mapping) and layer is not None else vector
            try:
                made[key] = value if value is None else torch.as_tensor(value)
            except (TypeError, ValueError, RuntimeError):
                raise InputError(f"grid: the vector is a {type(value).__name__}, expected numbers") from None
            if kind == "project" and value is not None:  # the edit wants an orthonormal basis
                made[key] = project("embed", None, torch.as_tensor(value)).vector
        return made[key]

    return at


def _donated(
    lm: "LM", donors: Donors, sites: list[str], layers: list[int], by_label: dict[Any, Tokens],
    prompts: Sequence[Prompt], mentions: Sequence[Mention] | None, occurrence: int | None, bos: bool | None,
    batch_size: int,
) -> Callable[[str, int | None, Any], Tensor]:  # fmt: skip
    """Activations of the donors at the tokens that give, ``[prompt, token, *feature]`` (0 where a prompt has fewer)."""
    if len(donors.prompts) != len(prompts):
        raise InputError(f"donors: expected one for each of the {len(prompts)} prompts, found {len(donors.prompts)}")
    giving = _giving(lm, donors, by_label, bos)
    their_mentions = donors.mentions if donors.mentions is not None else mentions
    their_occurrence = donors.occurrence if donors.occurrence is not None else occurrence
    values: dict[tuple[str, int | None, Any], Tensor] = {}
    at = {
        label: lm.positions(donors.prompts, tokens, mentions=their_mentions, occurrence=their_occurrence, bos=bos)
        for label, tokens in giving.items()
    }
    for label, tokens in by_label.items():
        own = lm.positions(prompts, tokens, mentions=mentions, occurrence=occurrence, bos=bos)
        for number, (here, there) in enumerate(zip(own, at[label], strict=True)):
            if len(here) != len(there):
                raise InputError(
                    f"donor {number} gives {len(there)} tokens for the {len(here)} of {label!r} in its prompt"
                )
    union = [sorted({t for label in at for t in at[label][i]}) for i in range(len(prompts))]
    rows: dict[tuple[int, int], int] = {}
    first = 0
    for i, tokens_of in enumerate(union):
        rows |= {(i, t): first + k for k, t in enumerate(tokens_of)}
        first += len(tokens_of)
    acts = lm.capture_sites(
        donors.prompts, sites, layers or None, union, mentions=their_mentions, occurrence=their_occurrence,
        edits=donors.edits, bos=bos, batch_size=batch_size,
    )  # fmt: skip
    for label, tokens_by_prompt in at.items():
        width = max(map(len, tokens_by_prompt))
        index = torch.tensor(
            [[rows[i, t] for t in one] + [0] * (width - len(one)) for i, one in enumerate(tokens_by_prompt)],
            dtype=torch.int64,
        )
        for site in sites:
            found = acts[parse_site(site)[0]]
            for nth, layer in enumerate(found.layers):
                values[site, layer, label] = found.values[index, nth]
    return lambda site, layer, label: values[site, layer, label]


def _giving(lm: "LM", donors: Donors, by_label: dict[Any, Tokens], bos: bool | None) -> dict[Any, Tokens]:
    if donors.tokens is None:
        return by_label
    giving, _ = _positions_by_label(lm, donors.tokens, donors.prompts, bos)
    if len(giving) == len(by_label) == 1:
        return dict(zip(by_label, giving.values(), strict=True))
    if set(giving) != set(by_label):
        raise InputError(
            f"donors: tokens for {', '.join(map(repr, giving))}; the grid has {', '.join(map(repr, by_label))}"
        )
    return giving
