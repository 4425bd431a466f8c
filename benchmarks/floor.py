"""The floor of a sweep: floating point operations of the part that must run, counted by hand for a GPT-2.

An operation is a multiplication or an addition; only matrix products are counted. A block costs at a token ``t`` (from 0)
twice its matrices' weights, and ``4 · width · (t + 1)`` for attention (scores and sums over the tokens up to ``t``); the
head costs ``2 · width · vocab`` for a token whose logits are read. What must run, for an edit of ``resid_post`` at layer
``l`` and token ``t`` whose effect is read at the last token:

* once, the base run: every block at every token, the head at the last one;
* for every cell, the blocks after ``l`` at the tokens from ``t`` on, the head at the last one. Nothing is shared between
  cells. After the last block a token no longer reaches another, so an edit there at an earlier token costs nothing.

This floor runs blocks whole. A method that takes the last block apart can do with less: keys and values are all that it
needs from the tokens that nobody reads. That is ``least``.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

Cell = tuple[int, int]
"""Layer and token of an edit."""


@dataclass(frozen=True)
class Flops:
    """Counts for ``prompts`` of ``tokens`` each, on a GPT-2; ``weights``: elements of one block's matrices."""

    layers: int
    width: int
    vocab: int
    weights: int
    prompts: int
    tokens: int

    @classmethod
    def of(cls, model: Any, ids_PT: Tensor) -> "Flops":
        config = model.config
        weights = sum(p.numel() for p in model.transformer.h[0].parameters() if p.ndim == 2)
        return cls(config.n_layer, config.n_embd, config.vocab_size, weights, *ids_PT.shape)

    def block(self, first: int = 0) -> int:
        """One block at the tokens from ``first`` on."""
        seen = sum(t + 1 for t in range(first, self.tokens))
        return self.prompts * ((self.tokens - first) * 2 * self.weights + 4 * self.width * seen)

    def last_block(self, first: int = 0) -> int:
        """One block of which only the last token's output is read: of the others from ``first`` on, keys and values."""
        return self.block(self.tokens - 1) + self.prompts * (self.tokens - 1 - first) * 4 * self.width**2

    def head(self, read: int = 1) -> int:
        """Logits of ``read`` tokens of each prompt."""
        return self.prompts * read * 2 * self.width * self.vocab

    def forward(self, read: int = 1) -> int:
        """A full forward pass, with the logits of ``read`` tokens."""
        return self.layers * self.block() + self.head(read)

    def floor(self, cells: Iterable[Cell]) -> int:
        return self._sweep(cells, last=self.block)

    def least(self, cells: Iterable[Cell]) -> int:
        return self._sweep(cells, last=self.last_block)

    def _sweep(self, cells: Iterable[Cell], last: Any) -> int:
        total = (self.layers - 1) * self.block() + last() + self.head()
        for layer, token in cells:
            after = self.layers - 1 - layer
            if after:
                total += (after - 1) * self.block(token) + last(token)
            if after or token == self.tokens - 1:
                total += self.head()
        return total

    def agrees(self, model: Any, ids_PT: Tensor) -> bool:
        """Whether torch's own counter finds the same for a forward pass with the last token's logits.

        It knows attention only where it is spelled out in products of matrices, of all tokens with all tokens.
        """
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(input_ids=ids_PT, use_cache=False, logits_to_keep=1)
        unseen = self.tokens**2 - self.tokens * (self.tokens + 1) // 2
        expected = self.forward() + self.layers * self.prompts * 4 * self.width * unseen
        return counter.get_total_flops() == expected
