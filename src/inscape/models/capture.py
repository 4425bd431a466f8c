"""Capture: read activations at sites, layers and tokens, and keep just those.

Slices are taken *in* the hook and copied, so memory is what was asked for (a kept view would hold the whole tensor); the
forward pass ends at the deepest site; the LM head runs only if logits are asked for, and then only at the asked columns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inscape.errors import InputError
from inscape.models.hooks import Scope, Tap
from inscape.models.sites import LAYERLESS, Sites, TapPoint, parse_site
from inscape.models.tokens import Batch


class NonFiniteError(InputError):
    """A captured activation is NaN or Inf: nothing computed from it would mean anything."""


@dataclass(frozen=True, eq=False)
class Activations:
    """What was captured at one site. A *row* is one token of one prompt, in the order of the prompts.

    With one token per prompt (``tokens="last"``), row ``i`` is prompt ``i``.

    Attributes:
        site: the site's name.
        layers: the layers, in the order of the second axis; ``(None,)`` for ``embed`` and ``logits``.
        values: ``[row, layer, *feature]``, in the model's dtype unless another was asked for.
        prompt: int64 ``[row]``, the prompt's number.
        position: int64 ``[row]``, the token's index in the unpadded prompt.
    """

    site: str
    layers: tuple[int | None, ...]
    values: Tensor
    prompt: Tensor
    position: Tensor

    def at(self, layer: int | None = None) -> Tensor:
        """``[row, *feature]`` of one layer (of the only one, if None)."""
        if layer is None and len(self.layers) == 1:
            return self.values[:, 0]
        if layer not in self.layers:
            raise InputError(f"layer {layer} of {self.site} was not captured; there are {self.layers}")
        return self.values[:, self.layers.index(layer)]

    def __len__(self) -> int:
        return len(self.values)


def tap_points(
    sites: Sites, site: str | Sequence[str], layers: int | Sequence[int] | None
) -> dict[str, list[TapPoint]]:
    """Tap points by site, in the order of the layers; ``layers=None`` means all of them."""
    names = [site] if isinstance(site, str) else list(site)
    if not names:
        raise InputError("capture: no site was asked for")
    result: dict[str, list[TapPoint]] = {}
    for name in names:
        parsed, named_layer = parse_site(name)
        if parsed in LAYERLESS:
            wanted: list[int | None] = [None]
        elif named_layer is not None:
            wanted = [named_layer]
        elif layers is None:
            wanted = list(range(len(sites.blocks)))
        else:
            wanted = [layers] if isinstance(layers, int) else list(layers)
        if not wanted:
            raise InputError(f"capture: no layer of {parsed} was asked for")
        points = [sites.tap(parsed, layer) for layer in wanted]
        known = result.setdefault(parsed, [])
        known.extend(p for p in points if all(p.layer != k.layer for k in known))
    return result


class Collector:
    """Collects the asked rows of all tap points over all batches."""

    def __init__(
        self,
        points: dict[str, list[TapPoint]],
        at: Sequence[Sequence[int]],
        device: torch.device | str,
        dtype: torch.dtype | None,
    ) -> None:
        self.points = points
        self.at = at
        self.device = torch.device(device)
        self.dtype = dtype
        self.prompt = torch.tensor([i for i, tokens in enumerate(at) for _ in tokens], dtype=torch.int64)
        self.position = torch.tensor([t for tokens in at for t in tokens], dtype=torch.int64)
        counts = torch.tensor([len(tokens) for tokens in at])
        self.first_row = (counts.cumsum(0) - counts).tolist()
        self.values: dict[str, Tensor] = {}

    def columns(self, batch: Batch) -> Tensor:
        """The padded columns that anybody looks at in this batch, sorted."""
        wanted = {t + batch.shift[row] for row, i in enumerate(batch.index) for t in self.at[i]}
        return torch.tensor(sorted(wanted), dtype=torch.int64)

    def taps(self, batch: Batch) -> list[Tap]:
        hits = [
            (row, t + batch.shift[row], self.first_row[i] + j)
            for row, i in enumerate(batch.index)
            for j, t in enumerate(self.at[i])
        ]
        if not hits:
            return []
        rows, columns, slots = torch.tensor(hits, dtype=torch.int64).T.contiguous()
        return [
            Tap(point, self._look(point, nth, rows, columns, slots, batch))
            for points in self.points.values()
            for nth, point in enumerate(points)
        ]

    def _look(
        self, point: TapPoint, nth: int, rows: Tensor, columns: Tensor, slots: Tensor, batch: Batch
    ) -> Callable[[Tensor, Scope], None]:
        def look(value: Tensor, scope: Scope) -> None:
            at = columns
            if point.site == "logits" and value.shape[1] != batch.ids.shape[1]:
                kept = self.columns(batch)
                if value.shape[1] != len(kept):
                    raise InputError(f"asked the model for logits at {len(kept)} tokens, it gave {value.shape[1]}")
                at = torch.searchsorted(kept, columns)
            part = value[rows.to(value.device), at.to(value.device)]  # advanced indexing copies
            if point.site not in self.values:
                shape = (len(self.prompt), len(self.points[point.site]), *part.shape[1:])
                self.values[point.site] = torch.empty(shape, dtype=self.dtype or part.dtype, device=self.device)
            self.values[point.site][slots.to(self.device), nth] = part.to(self.device, self.dtype or part.dtype)

        return look

    def results(self) -> dict[str, Activations]:
        for site, points in self.points.items():
            self._refuse_non_finite(site, points)
        return {
            site: Activations(site, tuple(p.layer for p in points), self.values[site], self.prompt, self.position)
            for site, points in self.points.items()
        }

    def _refuse_non_finite(self, site: str, points: Sequence[TapPoint]) -> None:
        for nth, point in enumerate(points):
            finite = self.values[site][:, nth].flatten(1).isfinite().all(-1)
            if not finite.all():
                bad = sorted(set(self.prompt[~finite.cpu()].tolist()))
                which = ", ".join(map(str, bad[:5])) + (", …" if len(bad) > 5 else "")
                raise NonFiniteError(f"{point} is NaN or Inf for {len(bad)} of {len(self.at)} prompts: {which}")
