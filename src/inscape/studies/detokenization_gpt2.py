"""GPT-2 small is the model of the paper: what its authors report for it, beside what a run here found.

The numbers are those that the authors recomputed with the paper's definitions (notes of the published code, gokamoda/
lm-detokenization). Their mean AUROC is over bigrams of all of OpenWebText and counts suffixes without a bigram as 0;
a smaller text marks true bigrams as negatives, and another level with the same best heads is to be expected.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from inscape.attention import FirstLayer
from inscape.attention.token_scores import token_id
from inscape.errors import InputError
from inscape.runs import RunFolder
from inscape.studies.detokenization_measures import DIFFUSE, RECENT, SELF
from inscape.studies.detokenization_summary import head_scores, observed_heads

AUROC = {
    7: 0.876,
    11: 0.806,
    6: 0.793,
    0: 0.732,
    4: 0.694,
    3: 0.634,
    10: 0.615,
    2: 0.549,
    8: 0.445,
    1: 0.404,
    9: 0.401,
    5: 0.286,
}
"""Mean AUROC by head."""

KINDS = {3: SELF, 1: SELF, 7: RECENT, 4: RECENT, 11: DIFFUSE}
"""What a head attends to (authors' notes: mass seen from position 500)."""

SCORES = {"Al": 41.4, " sap": 41.0}
"""Unscaled token-token scores of "iens" in head 7."""

TOP = {
    ("iens", 7): ("Aliens", " sapiens", " aliens", " ALiens", "afiens"),
    (" Jackson", 7): (" Michael", " Peter", "Michael", " Jesse", "Peter"),
}
"""First prefixes; those of "iens" with the suffix put to them, as the authors show them."""

_SHOULD_HOLD = 0.01
_SCORE_HOLDS = 0.1
_BEST = 5


def is_gpt2_small(config: Any) -> bool:
    """Whether a transformers config has the shape of GPT-2 small with its vocabulary (a fine-tuned one has it too)."""
    shape = {"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257}
    return all(getattr(config, name, None) == value for name, value in shape.items())


def gpt2_checks(run: RunFolder, terms: FirstLayer, recent: int) -> pl.DataFrame:
    """The comparison for a run whose model is a GPT-2 small; `compare` says what is in it."""
    aurocs = None
    if "auroc" in run.tables:
        aurocs = dict(head_scores(run, published=True).select("head", "auroc").iter_rows())
    kinds = None
    if "attention" in run.tables:
        kinds = dict(observed_heads(run, recent).select("head", "kind_observed").iter_rows())
    try:
        scores = terms.token_token(query="iens", head=7)
        found = {text: float(scores.values[token_id(terms.lm, text)]) for text in SCORES}
        tops = {
            (text, head): [str(token) for token in terms.token_token(query=text, head=head).top(_BEST)["token"]]
            for text, head in TOP
        }
    except InputError:  # (a vocabulary of the same size that is another one, or no tokenizer)
        found, tops = {}, {}
    return compare(aurocs, kinds, found, tops)


def compare(
    aurocs: Mapping[int, float] | None,
    kinds: Mapping[int, str] | None,
    scores: Mapping[str, float],
    tops: Mapping[tuple[str, int], Sequence[str]],
) -> pl.DataFrame:
    """What the authors report and what was found, line by line.

    Args:
        aurocs: mean AUROC by head, in the published form; None without a text.
        kinds: what each head attends to on texts; None without a text.
        scores: unscaled scores of "iens" in head 7, by prefix; empty where the tokens aren't there.
        tops: first prefixes by suffix and head, best first; empty likewise.

    Returns:
        Columns ``check``, ``paper``, ``here`` (texts) and ``agrees`` (null where nothing was measured).
    """
    rows: list[tuple[str, str, str, bool | None]] = []
    missing = "not measured: no corpus"
    if aurocs is None:
        rows.append(("best head", "7", missing, None))
        rows += [(f"mean AUROC, head {head}", f"{value:.3f}", missing, None) for head, value in AUROC.items()]
    else:
        order = sorted(aurocs, key=lambda head: -aurocs[head])
        theirs, ours = list(AUROC)[:_BEST], order[:_BEST]
        rows.append(("best head", "7", str(order[0]), order[0] == 7))
        rows.append(
            (f"best {_BEST} heads, in order", ", ".join(map(str, theirs)), ", ".join(map(str, ours)), ours == theirs)
        )  # fmt: skip
        rows += [
            (
                f"mean AUROC, head {head}",
                f"{value:.3f}",
                f"{aurocs[head]:.3f}",
                abs(aurocs[head] - value) <= _SHOULD_HOLD,
            )
            for head, value in AUROC.items()
        ]
    for head, kind in KINDS.items():
        found = missing if kinds is None else kinds[head]
        rows.append((f"head {head} attends to", kind, found, None if kinds is None else found == kind))
    for text, value in SCORES.items():
        here = scores.get(text)
        rows.append(
            (f"score of {text!r} before 'iens', head 7, unscaled", f"{value:.1f}",
             "no such token" if here is None else f"{here:.1f}",
             None if here is None else abs(here - value) <= _SCORE_HOLDS)
        )  # fmt: skip
    for (suffix, head), expected in TOP.items():
        best = tops.get((suffix, head))
        # (Inside a word the authors show prefix and suffix as one.)
        shown = None if best is None else [token if suffix.startswith(" ") else token + suffix for token in best]
        rows.append(
            (f"first prefixes of {suffix!r}, head {head}", ", ".join(map(repr, expected)),
             "no such token" if shown is None else ", ".join(map(repr, shown)),
             None if shown is None else shown == list(expected))
        )  # fmt: skip
    return pl.DataFrame(rows, schema=["check", "paper", "here", ("agrees", pl.Boolean)], orient="row")
