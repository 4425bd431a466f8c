"""One vector per sentence and layer: the mean over its tokens of the residual stream.

Layer 0 is what enters the first block (for BLOOM the embedding after its LayerNorm), layer l what leaves the l-th block;
the last is before the model's final norm. A BOS token is left out of the mean: it holds nothing of the sentence, and in
many models its state is some hundred times longer than any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inscape.errors import InputError
from inscape.models.lm import LM

Track = Callable[[Iterable[Any], str, int], Iterator[Any]]
"""``track(items, description, total)`` gives the items back, showing them pass."""


@dataclass(frozen=True, eq=False)
class SentenceStates:
    """``values``: float32 [layer, sentence, d_model]; ``layers``: the number of each, 0 for what enters the first block."""

    layers: tuple[int, ...]
    values: NDArray[np.float32]

    def at(self, layer: int) -> NDArray[np.float32]:
        """``[sentence, d_model]`` of one layer."""
        if layer not in self.layers:
            raise InputError(f"sentence states: no layer {layer}, there are {self.layers}")
        return self.values[self.layers.index(layer)]


def sentence_states(
    lm: LM,
    texts: Sequence[str],
    layers: Sequence[int] | None = None,
    *,
    batch_size: int = 16,
    track: Track | None = None,
) -> SentenceStates:
    """Mean-pooled states of sentences at ``layers`` (0 to ``lm.n_layers``; all of them if None).

    Memory beside the result: the states of all tokens of one batch. Sentences of like length share a batch.

    Raises:
        InputError: no sentences, an empty one, one that is longer than the model's context, or an unknown layer.
    """
    wanted = tuple(range(lm.n_layers + 1)) if layers is None else tuple(dict.fromkeys(layers))
    if bad := [layer for layer in wanted if not 0 <= layer <= lm.n_layers]:
        raise InputError(f"sentence states: no layer {bad[0]}, expected 0 to {lm.n_layers}")
    if not texts or not wanted:
        raise InputError(
            f"sentence states: {len(texts)} sentences at {len(wanted)} layers, expected at least one of both"
        )
    ids = lm.token_ids(texts)
    bos = getattr(lm.tokenizer, "bos_token_id", None)
    first = [int(len(one) > 1 and one[0] == bos) for one in ids]
    blocks = sorted(layer - 1 for layer in wanted if layer > 0)
    sites = ["blocks.0.hook_resid_pre"] * (0 in wanted) + [f"blocks.{block}.hook_resid_post" for block in blocks]
    values = np.empty((len(wanted), len(texts), lm.d_model), dtype=np.float32)
    order = sorted(range(len(ids)), key=lambda i: (-len(ids[i]), i))
    starts: Iterable[int] = range(0, len(order), batch_size)
    if track is not None:
        starts = track(starts, "sentences", -(-len(order) // batch_size))
    for start in starts:
        rows = order[start : start + batch_size]
        found = lm.capture_sites(
            [ids[i] for i in rows], sites, tokens=[list(range(first[i], len(ids[i]))) for i in rows],
            batch_size=batch_size, dtype=torch.float32,
        )  # fmt: skip
        for acts in found.values():
            sums = torch.zeros(len(rows), *acts.values.shape[1:]).index_add_(0, acts.prompt, acts.values)
            means_BLD = sums / torch.bincount(acts.prompt, minlength=len(rows))[:, None, None]
            for nth, block in enumerate(acts.layers):
                assert block is not None
                layer = 0 if acts.site == "resid_pre" else block + 1
                values[wanted.index(layer), rows] = means_BLD[:, nth].numpy()
    return SentenceStates(wanted, values)
