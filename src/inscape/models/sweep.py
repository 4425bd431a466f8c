"""A sweep made ready to run: sequences, and every edit of every cell with its tokens found.

Shared by the two ways to run a sweep: in full (:mod:`inscape.models.rerun`) and cut (:mod:`inscape.models.suffix`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inscape.errors import InputError
from inscape.models.edit import Edit, checked_strength, prompt_positions
from inscape.models.grid import Cells
from inscape.models.metrics import Asked
from inscape.models.tokens import Encoded, Mention

if TYPE_CHECKING:
    from inscape.models.lm import LM


@dataclass(frozen=True, eq=False)
class Placed:
    """An edit with its tokens found: ``at[s]`` are ``(position, nth)`` in sequence ``s``; nth picks a vector."""

    edit: Edit
    at: list[list[tuple[int, int]]]


@dataclass(frozen=True, eq=False)
class Sweep:
    """A sweep made ready: sequences, the edits of the base run, the edits of each cell."""

    sequences: list[Asked]
    base: list[Placed]
    cells: list[list[Placed]]
    exists: Tensor
    """bool ``[sequence, cell]``"""


LogitRows = tuple[Tensor, Tensor, Tensor, Tensor]
"""Float32 logits ``[n, vocab]``, and int64 ``[n]``: sequence, cell (-1: the base run), which of the asked tokens."""


def made_ready(
    lm: "LM", sequences: list[Asked], written: Cells, base: Sequence[Edit], encoded: Sequence[Encoded],
    mentions: Sequence[Mention] | None, occurrence: int | None,
) -> Sweep:  # fmt: skip
    """Find the tokens of all edits, once for all that name them alike, and give every edit a row per sequence."""
    owners = torch.tensor([one.owner for one in sequences])
    tails = [range(len(one.prompt.ids), len(one.whole.ids)) for one in sequences]
    # Many edits of a grid name the same tokens: what is found is kept under the identity of what names them.
    found: dict[tuple[int, str], list[list[tuple[int, int]]]] = {}
    vectors: dict[int, Tensor] = {}

    def hits(edit: Edit) -> list[list[tuple[int, int]]]:
        at = [[] for _ in encoded] if edit.when == "decode" else prompt_positions(edit, encoded, mentions, occurrence)
        for one in sequences:
            named = max(at[one.owner], default=-1) + 1
            if one.prompt.ids[:named] != encoded[one.owner].ids[:named]:
                raise InputError(
                    f"edit of {edit.site}: token {named - 1} of prompt {one.owner} merges with the continuation"
                )
        return [
            [(p, nth) for nth, p in enumerate(at[one.owner])]
            + [(p, 0) for p in (tail if edit.when != "prompt" else ())]
            for one, tail in zip(sequences, tails, strict=True)
        ]

    def placed(edit: Edit) -> Placed:
        lm.sites.tap(edit.site, edit.layer)  # refuses what this model doesn't have
        key = (id(edit.tokens), edit.when)
        if key not in found:
            found[key] = hits(edit)
        return Placed(_by_sequence(edit, owners, len(encoded), vectors), found[key])

    cells = [[placed(edit) for edit in cell] for cell in written.cells]
    exists = written.exists.expand(len(encoded), -1)[owners]
    return Sweep(sequences, [placed(edit) for edit in base], cells, exists)


def _by_sequence(edit: Edit, owners: Tensor, prompts: int, vectors: dict[int, Tensor]) -> Edit:
    """The edit with what is per prompt made per sequence."""
    edit = checked_strength(edit, prompts)
    if len(owners) == prompts:
        return edit
    if isinstance(edit.strength, Tensor):
        edit = replace(edit, strength=edit.strength[owners])
    feature_ndim = 2 if edit.site in ("q", "k", "v", "z") and edit.head is None else 1
    if edit.vector is not None and edit.kind != "project" and edit.vector.ndim > feature_ndim:
        if edit.vector.shape[0] != prompts:
            raise InputError(
                f"edit of {edit.site}: vector has shape {tuple(edit.vector.shape)}; expected a first axis per prompt "
                f"({prompts})"
            )
        if id(edit.vector) not in vectors:
            vectors[id(edit.vector)] = edit.vector[owners.to(edit.vector.device)]
        edit = replace(edit, vector=vectors[id(edit.vector)])
    return edit
