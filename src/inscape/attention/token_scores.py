"""Scores of one token against every other: :class:`TokenScores`, and how a token is named."""

from dataclasses import dataclass

import polars as pl
from torch import Tensor

from inscape.errors import InputError
from inscape.models import LM


@dataclass(frozen=True)
class TokenScores:
    """A score for every token of the vocabulary.

    Attributes:
        values: [V], unscaled.
        token_id: the token that they are scores with.
        side: what ``token_id`` is: ``"query"`` (the values are keys': prefixes) or ``"key"`` (queries': suffixes).
        head, distance: of which head; how many tokens apart (it matters where positions are rotary).
        sigma_ratio: largest σ by least over positions, for the worst token: the scores have an average σ in them, and that
            of a real position can be off by up to this factor on each side; 1 where nothing is averaged.
    """

    values: Tensor
    token_id: int
    side: str
    head: int
    distance: int
    sigma_ratio: float
    lm: LM

    def top(self, count: int = 10) -> pl.DataFrame:
        """The tokens with the highest scores, highest first: ``token_id``, ``token`` (null without text), ``score``."""
        return self._table(count, largest=True)

    def bottom(self, count: int = 10) -> pl.DataFrame:
        """The tokens with the lowest scores, lowest first; columns as in :meth:`top`."""
        return self._table(count, largest=False)

    def _table(self, count: int, largest: bool) -> pl.DataFrame:
        if count < 1:
            raise InputError(f"expected a number of tokens from 1, found {count}")
        scores, ids = self.values.topk(min(count, len(self.values)), largest=largest)
        return pl.DataFrame(
            {
                "token_id": ids.tolist(),
                "token": [token_text(self.lm, int(one)) for one in ids],
                "score": scores.tolist(),
            },
            schema={"token_id": pl.Int64, "token": pl.String, "score": pl.Float64},
        )


def token_text(lm: LM, token: int) -> str | None:
    """A token as text, its spaces as they are; None without a tokenizer, or where it has no such token."""
    if lm.tokenizer is None or token >= len(lm.tokenizer):
        return None
    return str(lm.tokenizer.decode([token], clean_up_tokenization_spaces=False))


def token_id(lm: LM, token: str | int) -> int:
    """The one token that a text is, or a token id that the model has.

    Raises:
        InputError: the text is several tokens (they are named) or none, or the model has no such embedding.
    """
    vocab = lm.vocab
    if isinstance(token, str):
        if lm.tokenizer is None:
            raise InputError(f"token {token!r} was given as text, but the model was loaded without a tokenizer")
        ids = lm.tokenizer(token, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            pieces = ", ".join(repr(token_text(lm, one)) for one in ids)
            raise InputError(
                f"token {token!r}: expected a text of one token, found {len(ids)}" + (f": {pieces}" if ids else "")
            )
        if ids[0] >= vocab:
            raise InputError(
                f"token {token!r} has id {ids[0]}, but the model has {vocab} embeddings (the tokenizer knows more tokens)"
            )
        return int(ids[0])
    if isinstance(token, bool) or not isinstance(token, int):
        raise InputError(f"expected a token as text or id, found {type(token).__name__}")
    if not 0 <= token < vocab:
        raise InputError(f"token id {token} is not in the model's {vocab} embeddings (0 to {vocab - 1})")
    return token
