"""Where edits act in part of a batch, and acting there: the edits of many runs in a few tensor operations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inscape.errors import InputError
from inscape.models.edit import hit_vectors, rule
from inscape.models.sweep import Placed
from inscape.models.tokens import Batch


@dataclass(frozen=True, eq=False)
class Hits:
    """Where one edit acts in a chunk: rows and tokens of the chunk, and for each the sequence and which vector.

    ``turn``: its place among the edits of its run; edits of different runs with one turn are made together.
    """

    placed: Placed
    turn: int
    rows: Tensor
    tokens: Tensor
    sequence: Tensor
    nth: Tensor


class Places:
    """Tokens of edits as tensors, made once for all edits that name the same ones."""

    def __init__(self) -> None:
        self.columns_of: dict[int, tuple[Tensor, Tensor]] = {}

    def of(self, placed: Placed, batch: Batch, prompts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``(which of the prompts, column, sequence, nth)`` of the tokens that an edit writes to.

        ``prompts``: int64, rows of the batch.
        """
        key = id(placed.at)
        if key not in self.columns_of:
            widest = max(map(len, placed.at))
            padded = [[*one, *[(-1, -1)] * (widest - len(one))] for one in placed.at]
            both = torch.tensor(padded, dtype=torch.int64).reshape(len(placed.at), widest, 2)
            self.columns_of[key] = both[..., 0], both[..., 1]
        positions, nths = self.columns_of[key]
        sequence = torch.tensor(batch.index)[prompts]
        here = positions[sequence]
        which, slot = (here >= 0).nonzero(as_tuple=True)
        shift = torch.tensor(batch.shift)[prompts]
        return which, here[which, slot] + shift[which], sequence[which], nths[sequence[which], slot]


@torch.no_grad()
def applied(value: Tensor, hits: Sequence[Hits], sequences: int) -> Tensor:
    """The value ``[row, token, *feature]`` with edits made; those of one kind and turn (other runs') together."""
    out = value.clone()
    hits = [one for one in hits if len(one.rows)]  # (an edit may name no token of these prompts)
    together: dict[tuple[Any, ...], list[Hits]] = {}
    for one in hits:
        edit = one.placed.edit
        basis = id(edit.vector) if edit.kind == "project" else None
        together.setdefault((one.turn, edit.kind, edit.head, basis, edit.vector is None), []).append(one)
    for (_, kind, head, basis, _), group in sorted(together.items(), key=lambda item: item[0][0]):
        rows, tokens = (
            torch.cat(each).to(value.device) for each in zip(*((h.rows, h.tokens) for h in group), strict=True)
        )
        part = out if head is None else out[:, :, _head_of(head, value, group[0].placed.edit.site)]
        x = part[rows, tokens]
        strengths, vectors, first = [], [], 0
        for one in group:
            edit, many = one.placed.edit, len(one.rows)
            strength = edit.strength
            strengths.append(strength[one.sequence].to(x.device) if isinstance(strength, Tensor) else
                             torch.full((many,), strength, device=x.device))  # fmt: skip
            found = hit_vectors(edit, x[first : first + many], sequences, one.sequence, one.nth)
            vectors.append(found if basis is not None or found is None else found.expand(many, *x.shape[1:]))
            first += many
        vector = vectors[0] if basis is not None or vectors[0] is None else torch.cat(vectors)  # type: ignore[arg-type]
        part[rows, tokens] = rule(kind, x, vector, torch.cat(strengths)).to(value.dtype)
    return out


def _head_of(head: int, value: Tensor, site: str) -> int:
    if not -value.shape[2] <= head < value.shape[2]:
        raise InputError(f"edit of {site}: no head {head}, there are {value.shape[2]}")
    return head
