"""The suffixes whose prefixes the report shows."""

from collections.abc import Sequence

import numpy as np

from inscape.attention.bigrams import Bigrams
from inscape.attention.token_scores import token_id, token_text
from inscape.errors import InputError
from inscape.models import LM

OF_THE_PAPER = ("iens", "tarian", " Jackson")
_SHOWN = 6
_LETTERS = 3


def chosen_suffixes(lm: LM, bigrams: Bigrams, asked: Sequence[str] | None) -> list[int]:
    """Token ids: of the texts asked for; else the paper's that are one token here, and the most frequent inside words.

    "Inside words": three letters or more without a space before them. They are chosen by how frequent they are, not by how
    well a head scores them: the report would otherwise show what a head is good at by choice.

    Raises:
        InputError: a text that is not one token.
    """
    if asked is not None:
        return list(dict.fromkeys(token_id(lm, text) for text in asked))
    found: list[int] = []
    for text in OF_THE_PAPER:
        try:
            found.append(token_id(lm, text))
        except InputError:
            continue
    found = [token for token in found if bigrams.unigram[token]]
    with_prefix = set(bigrams.rows()[0].tolist())
    fallback: list[int] = []
    for token in np.argsort(-bigrams.unigram, kind="stable").tolist():
        if len(found) >= _SHOWN or bigrams.unigram[token] == 0:
            break
        if token not in with_prefix or token in found:
            continue
        text = _inside(lm, token)
        if text.isalpha() and len(text) >= _LETTERS:
            found.append(token)
        elif len(fallback) < _SHOWN:
            fallback.append(token)
    return found or fallback


def shown(lm: LM, token: int) -> str | None:
    """A token as a reader can tell it: its text; where that is a part of a sign's bytes, the tokenizer's name for it."""
    text = token_text(lm, token)
    if text is None or (text and "\N{REPLACEMENT CHARACTER}" not in text):
        return text
    return str(lm.tokenizer.convert_ids_to_tokens(token))


def _inside(lm: LM, token: int) -> str:
    """The token's text as it stands inside a word: with its space, where it has one."""
    text = token_text(lm, token) or ""
    piece = lm.tokenizer.convert_ids_to_tokens(token) or ""
    # (A tokenizer that puts a space before the first word drops it again when it decodes.)
    return f" {text}" if piece.startswith(("Ġ", "▁")) and not text.startswith(" ") else text
