"""Scoring: log-probabilities of continuations under a model, edited or not."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inscape.errors import InputError
from inscape.models.hooks import Scope, Tap
from inscape.models.sites import TapPoint
from inscape.models.tokens import Batch, Encoded, Prompt


@dataclass(frozen=True, eq=False)
class Scores:
    """Log-probabilities (natural log) of continuations.

    Attributes:
        total: float32 ``[pair]``, summed over the continuation's tokens.
        tokens: int64 ``[pair]``, how many they are.
        each: per pair, float32 ``[token]``.
        greedy: bool ``[pair]``, whether every token of the continuation was the model's first choice.
    """

    total: Tensor
    tokens: Tensor
    each: list[Tensor]
    greedy: Tensor

    @property
    def mean(self) -> Tensor:
        """float32 ``[pair]``: per token; ``exp(-mean)`` is the perplexity."""
        return self.total / self.tokens


def continuation_start(prompt: Prompt, continuation: Prompt, whole: Encoded, number: int) -> int:
    """Where the continuation begins in ``whole`` = prompt + continuation, encoded as one.

    A token belongs to the continuation if it reaches beyond the prompt's last character: a token that merges both sides
    is scored, never dropped. Tokenising the two apart would score a sequence that the model was not trained to see.
    """
    if not isinstance(prompt, str):
        start = len(whole.ids) - len(continuation)
        found: int | None = start if len(continuation) else None
    elif whole.offsets is None:
        raise InputError("score of texts needs a fast tokenizer (character offsets)")
    else:
        boundary = len(prompt)
        # (Also a token without characters of its own: a lone space, whose offsets some tokenizers trim to (end, end).)
        found = next((i for i, (_, b) in enumerate(whole.offsets) if b > boundary), None)
    if found is None:
        raise InputError(f"score: continuation {number} has no tokens")
    if found == 0:
        raise InputError(f"score: pair {number} leaves no token to condition on (empty prompt and no BOS)")
    return found


class Scorer:
    """Gathers log-probabilities of each sequence's tokens from ``start`` on, batch by batch."""

    def __init__(self, sequences: Sequence[Encoded], starts: Sequence[int]) -> None:
        self.sequences = sequences
        self.starts = starts
        self.each: list[Tensor] = [torch.empty(0)] * len(sequences)
        self.greedy = torch.zeros(len(sequences), dtype=torch.bool)

    def columns(self, batch: Batch) -> Tensor:
        """The padded columns whose logits are read: one before each scored token."""
        wanted = {
            batch.shift[row] + t - 1
            for row, i in enumerate(batch.index)
            for t in range(self.starts[i], len(self.sequences[i].ids))
        }
        return torch.tensor(sorted(wanted), dtype=torch.int64)

    def tap(self, batch: Batch, point: TapPoint) -> Tap:
        kept = self.columns(batch)
        lengths = [len(self.sequences[i].ids) - self.starts[i] for i in batch.index]
        rows = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
        columns = torch.cat([
            torch.arange(self.starts[i], len(self.sequences[i].ids)) + batch.shift[row] - 1
            for row, i in enumerate(batch.index)
        ])  # fmt: skip
        target = torch.tensor([t for i in batch.index for t in self.sequences[i].ids[self.starts[i] :]])

        def look(logits_BTV: Tensor, scope: Scope) -> None:
            narrow = logits_BTV.shape[1] != batch.ids.shape[1]
            if narrow and logits_BTV.shape[1] != len(kept):
                raise InputError(f"asked the model for logits at {len(kept)} tokens, it gave {logits_BTV.shape[1]}")
            device = logits_BTV.device
            at = (rows.to(device), (torch.searchsorted(kept, columns) if narrow else columns).to(device))
            # A piece at a time: the float32 copy of all rows could be larger than the logits themselves.
            step = max(1, (1 << 25) // logits_BTV.shape[2])
            logp, first = [], []
            for piece in range(0, len(rows), step):
                some = slice(piece, piece + step)
                logits_NV, wanted = logits_BTV[at[0][some], at[1][some]].float(), target[some].to(device)
                logp.append(logits_NV.gather(1, wanted[:, None])[:, 0] - logits_NV.logsumexp(-1))
                first.append(logits_NV.argmax(-1) == wanted)
            each, greedy = torch.cat(logp).cpu().split(lengths), torch.cat(first).cpu().split(lengths)
            for i, logp_T, first_T in zip(batch.index, each, greedy, strict=True):
                self.each[i] = logp_T.clone()
                self.greedy[i] = bool(first_T.all())

        return Tap(point, look)

    def results(self) -> Scores:
        total = torch.stack([e.sum() for e in self.each]) if self.each else torch.empty(0)
        if not torch.isfinite(total).all():
            bad = [i for i, t in enumerate(total) if not torch.isfinite(t)]
            raise InputError(f"score: the log-probability of pair {bad[0]} is not finite ({len(bad)} of {len(total)})")
        return Scores(total, torch.tensor([len(e) for e in self.each]), self.each, self.greedy)
