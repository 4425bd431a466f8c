"""The logits of a prompt's first layer as a sum of named terms: :class:`Terms`."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from inscape.errors import InputError


@dataclass(frozen=True, eq=False)
class Terms(Mapping[str, Tensor]):
    """First-layer logits term by term: ``terms["ee"]`` is ``[head, i, j]``, query position i by key position j.

    Terms are *scaled*: their sum is what the model's softmax gets (before a soft-cap, where it has one). Divide by ``scale``
    for the T of the paper, which are not. Values at j > i are the formula's; the model masks them. Names, in the notation of
    Kamoda et al. 2025 (first letter: query side; e = token, p = position):

    ========  ==================================================================================================
    additive  ``ee ep pe pp``, ``e p`` (the query's bias with the key's token, position), ``r``
    alibi     ``ee``, ``e``, ``r``, ``alibi``
    rotary    ``ee``, ``e`` (query's bias, key's token), ``q`` (query's token, key's bias), ``pos`` (both biases)
    ========  ==================================================================================================

    ``r`` depends on the query alone, so the softmax does not see it; with rotary positions the terms of the key's bias
    (``q``, ``pos``) do depend on the key's place, and are kept apart. Terms that a model cannot have (no bias) are absent.

    Attributes:
        by_name: the terms, of which this is a read-only mapping.
        heads: the heads, in the order of the first axis.
        scale: what q · k is multiplied with.
        softcap: the logits' cap (Gemma 2), or None.
        window: tokens that a query sees, itself included, or None.
        sigma: σ of each token at its place, [token]; None where positions are not added to embeddings.
    """

    by_name: dict[str, Tensor]
    heads: tuple[int, ...]
    scale: float
    softcap: float | None
    window: int | None
    sigma: Tensor | None

    def __getitem__(self, name: str) -> Tensor:
        return self.by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_name)

    def __len__(self) -> int:
        return len(self.by_name)

    def total(self, leave_out: Collection[str] = ()) -> Tensor:
        """The sum of all terms, or of all but some, ``[head, i, j]``. With none left out: the model's own logits."""
        if isinstance(leave_out, str) or not set(leave_out) <= set(self):
            raise InputError(f"leave_out: expected a list out of {', '.join(self)}; found {leave_out!r}")
        out = torch.zeros_like(self.by_name["ee"])
        for name, value in self.by_name.items():
            if name not in leave_out:
                out += value
        return out

    def attention(self, leave_out: Collection[str] = ()) -> Tensor:
        """Attention weights ``[head, i, j]``: soft-cap, mask and softmax of :meth:`total`."""
        logits = self.total(leave_out)
        n = torch.arange(logits.shape[-1], device=logits.device)
        return masked_softmax(logits, n[:, None] - n, self.softcap, self.window)


def masked_softmax(logits: Tensor, distance: Tensor, softcap: float | None, window: int | None) -> Tensor:
    """Softmax over the last axis of what a query sees: ``distance`` (query minus key position) 0 up to the window."""
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    seen = distance >= 0
    if window is not None:
        seen &= distance < window
    return logits.masked_fill(~seen, -torch.inf).softmax(-1)
