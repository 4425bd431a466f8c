"""What the report of `multilingual-pretraining` says of bits per byte and of longer text."""

from __future__ import annotations

import altair as alt
import polars as pl

from inscape.evaluation.bits import bits_table
from inscape.runs import Headline, Reported, RunFolder, Section
from inscape.runs.theme import MUTED, PALETTE
from inscape.studies.multilingual_bits_summary import extrapolated, last_rows

_POSITIONS = {"model": "ALiBi, main model", "alibi": "ALiBi", "learned": "learned", "none": "none"}


def headlines(run: RunFolder) -> list[Headline]:
    """Of this part."""
    return [
        Headline("bits_seen_mean", "Bits per byte, languages read", "Mean over the languages of PUD that were trained on; the interval is over sentences.", "Text"),
        Headline("bits_unseen_mean", "… held-out languages", "The same for those never trained on. More than 8 is worse than knowing nothing: bytes that were hardly ever seen are thought impossible.", "Text"),
        Headline("bits_per_byte_en", "… English", "On PUD's English sentences (news and encyclopedia), while most English that was trained on is documentation.", "Text"),
        Headline("bits_below_5gram_en", "… English, below a 5-gram model", "Kneser-Ney of the same training tokens, less the model's, on the same sentences; positive: the model needs less.", "Text"),
        Headline("bits_below_unigram_en", "… English, below a unigram model", "The same for token frequencies alone.", "Text"),
        Headline("alibi_extrapolation_ratio", "Loss on eight times the training length", "Of the main model, by its loss at the training length, on the same tokens. Below 1: more context helps.", "Text"),
    ]  # fmt: skip


def figures(run: RunFolder) -> dict[str, alt.TopLevelMixin]:
    """All figures of this part, by name."""
    charts: dict[str, alt.TopLevelMixin] = {"bits_series": _series(run), "bits_languages": _languages(run)}
    if run.table("bits_positions").height:
        charts["bits_positions"] = _lengths(run)
    return charts


def sections(run: RunFolder) -> list[Section]:
    """Sections of the page."""
    by_language = bits_table(last_rows(run), ["source", "language", "seen"]).drop("bits_per_character")
    found = [
        Section("Bits over training", "Bits per byte of PUD's sentences at checkpoints, by language. Strokes: held-out languages.", figure="bits_series"),
        Section("Bits by language", "The last checkpoint beside n-gram models of the same training tokens. Bytes carry unlike amounts of text in unlike scripts; `bits_per_text` is per sentence, and PUD's sentences say the same in every language.", figure="bits_languages", table=by_language, table_limit=40),
    ]  # fmt: skip
    if "bits_positions" in run.figures or run.table("bits_positions").height:
        trained = int(run.manifest["config"]["recipe"]["length"])
        found.append(
            Section(
                "Longer text",
                f"The same tokens predicted from contexts of growing length; rows of {trained} tokens were trained on. A table of learned positions is random beyond those.",
                figure="bits_positions",
                table=extrapolated(run, trained).drop("longest").with_columns(pl.col("model").replace(_POSITIONS)),
            )
        )  # fmt: skip
    return found


def reported(run: RunFolder) -> list[Reported]:
    """Lines of the table "paper and here"."""
    return [
        Reported("Trained and untrained languages", "byte perplexity on Flores: fr 1.94, ar 1.71, en 1.88; hau 8.9, luo 12.0; but jpn 2.26, deu 2.34 (evaluation repository)", key="bits_unseen_mean", why="Bits per byte here (perplexity 2 is 1 bit), other sentences; scripts that the tokenizer never saw are split into bytes."),
        Reported("ALiBi beyond the training length", "chosen over learned and rotary positions at 1.3B (remembered, not checked)", key="alibi_extrapolation_ratio"),
    ]  # fmt: skip


def notes(run: RunFolder) -> list[str]:
    """What a careful reader should know of this part."""
    found = [
        "No sentence of PUD or XQuAD was trained on. N-gram models were fitted to all training tokens, the language model read what its budget allowed."
    ]
    longest = run.manifest["record"].get("no_long_documents")
    if longest is not None:
        found.append(f"Positions were not tested: the longest held-back document has {longest} tokens.")
    return found


def _series(run: RunFolder) -> alt.TopLevelMixin:
    rows = (
        run.table("bits_series")
        .filter((pl.col("source") == "PUD") & (pl.col("read") > 0))
        .group_by("read", "language", "seen", maintain_order=True)
        .agg((pl.col("bits").sum() / pl.col("bytes").sum()).alias("value"))
    )
    return (
        alt.Chart(rows)
        .mark_line(point=True)
        .encode(
            x=alt.X("read:Q", scale=alt.Scale(type="log", nice=False), title="tokens read"),
            y=alt.Y("value:Q", scale=alt.Scale(type="log", zero=False, nice=False), title="bits per byte"),
            color=alt.Color("language:N", title=None, scale=alt.Scale(scheme="tableau10")),
            strokeDash=alt.StrokeDash("seen:N", scale=alt.Scale(domain=[True, False], range=[[1, 0], [4, 3]]), legend=None),
            tooltip=["language", "read", alt.Tooltip("value", format=".3f")],
        )
    )  # fmt: skip


def _languages(run: RunFolder) -> alt.TopLevelMixin:
    both = pl.concat(
        [
            bits_table(last_rows(run), ["language", "seen"]).with_columns(model=pl.lit("language model")),
            bits_table(run.table("bits_ngrams"), ["model", "language", "seen"]).select(
                pl.exclude("model"), pl.col("model")
            ),
        ]
    )
    names = ["language model", "5-gram", "unigram"]
    base = alt.Chart(both).encode(
        y=alt.Y("language:N", title=None),
        color=alt.Color("model:N", title=None, scale=alt.Scale(domain=names, range=[PALETTE[0], PALETTE[1], MUTED])),
    )
    return base.mark_point(filled=True, size=55).encode(
        x=alt.X(
            "bits_per_byte:Q", title="bits per byte (log scale)", scale=alt.Scale(type="log", zero=False, nice=False)
        ),
        tooltip=["model", "language", alt.Tooltip("bits_per_byte", format=".3f")],
    ) + base.mark_rule().encode(x="bits_per_byte_lo:Q", x2="bits_per_byte_hi:Q")


def _lengths(run: RunFolder) -> alt.TopLevelMixin:
    rows = (
        run.table("bits_positions")
        .group_by("model", "length", maintain_order=True)
        .agg((pl.col("nats").sum() / pl.col("targets").sum()).alias("loss"))
        .with_columns(pl.col("model").replace(_POSITIONS))
    )
    return (
        alt.Chart(rows)
        .mark_line(point=True)
        .encode(
            x=alt.X("length:Q", scale=alt.Scale(type="log", base=2, nice=False), title="tokens of context"),
            y=alt.Y("loss:Q", scale=alt.Scale(zero=False), title="nats per token"),
            color=alt.Color("model:N", title="positions", scale=alt.Scale(range=list(PALETTE[:4]))),
            tooltip=["model", "length", alt.Tooltip("loss", format=".3f")],
        )
    )
