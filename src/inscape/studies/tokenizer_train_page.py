"""The figures and the report of ``inscape tokenizer train``, made from its tables alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt
import polars as pl

from inscape.runs import Headline, Page, Reported, Section
from inscape.runs.folder import RunFolder, Scalar
from inscape.runs.theme import MUTED, PALETTE
from inscape.training.bpe import BAR

HEADLINES = (
    Headline("vocabulary", "Tokens", "Special tokens, the 256 bytes and merges."),
    Headline("padded_vocabulary", "Rows of an embedding", "The next multiple of 128."),
    Headline("n_languages", "Languages learned from", "Each with its share of the sample."),
    Headline("sentences_not_restored", "Sentences not restored", "Sentences that differ by a byte or more after encoding and decoding."),
    Headline("bytes_per_token_mean", "Bytes per token", "Mean over the evaluated languages that were learned from."),
    Headline("ratio_mean", "Tokens against one language's own tokenizer", "1: as few as a tokenizer of the same size for that language alone. Mean over languages."),
    Headline("languages_within_bar", f"Languages at {BAR:g} or less", "The paper's bar for a shared tokenizer."),
    Headline("languages_compared", "… of so many compared", "Evaluated languages with text in the corpus."),
)  # fmt: skip

REPORTED = (
    Reported("Tokens against a monolingual tokenizer", "at most 10 % more in each language, at 250,680 tokens", key="ratio_mean", why="A vocabulary many times smaller is shared by almost as many languages here, and the corpus is small."),
    Reported("Vocabulary", "250,680, padded to 250,880", key="vocabulary"),
    Reported("Languages' shares", "sizes to the power 0.3", ours="see the shares below"),
)  # fmt: skip


def figures(run: RunFolder) -> dict[str, alt.TopLevelMixin]:
    """All figures, by name."""
    rows = run.table("fertility")
    charts: dict[str, alt.TopLevelMixin] = {"bytes_per_token": _bytes_per_token(rows)}
    if rows["ratio"].is_not_null().any():
        charts["ratio"] = _ratio(rows.filter(pl.col("ratio").is_not_null()))
    charts["shares"] = _shares(run.table("shares"))
    return charts


def page(run: RunFolder) -> Page:
    """The report's content."""
    summary = run.read_summary()
    rows = run.table("fertility")
    sections = []
    if "ratio" in figures(run):
        sections.append(Section("Against a tokenizer for one language", "Tokens that the shared tokenizer needs for one token of a BPE of the same size trained on all text of that language alone, on the same sentences; 95 % intervals from drawing sentences. The line is the paper's bar. A language with little text gives its own tokenizer fewer merges than asked for (column “its own vocabulary”): the comparison then flatters the shared one.", figure="ratio"))  # fmt: skip
    sections += [
        Section("Bytes per token", "How much text a token holds. Scripts differ in bytes per character: compare tokenizers, not languages.", figure="bytes_per_token", table=_table(rows), table_limit=100, caption="Words are separated by white space; where a language isn't written so, read the column per character."),
        Section("What the merges are learned from", "Share of each language in the corpus, and in the sample.", figure="shares", table="shares", table_limit=60),
        Section("Longest tokens", "Text that stands on many pages becomes tokens. Lines that repeat were sampled once; phrases inside of lines still show here (␣ is a space, ⏎ the end of a line).", table="longest", table_limit=60),
    ]  # fmt: skip
    return Page(
        title="A tokenizer for many languages",
        lede=verdict(summary),
        headlines=HEADLINES,
        sections=sections,
        reported=REPORTED,
        notes=_notes(rows, summary),
        paper="Le Scao et al., BLOOM: A 176B-Parameter Open-Access Multilingual Language Model (arXiv 2211.05100), section 3.2",
    )


def verdict(summary: Mapping[str, Scalar]) -> str:
    """What came out, in a few sentences."""
    lost = int(summary["sentences_not_restored"] or 0)
    sentences = int(summary["sentences"] or 0)
    restored = f"all {sentences:,} sentences" if not lost else f"all but {lost:,} of {sentences:,} sentences"
    text = f"A byte-level BPE of {int(summary['vocabulary'] or 0):,} tokens, learned from {int(summary['sample_bytes'] or 0) / 1e6:.1f} MB of text in {summary['n_languages']} languages, gives back {restored} to the byte."
    if summary.get("ratio_mean") is None:
        return text
    within, compared = int(summary["languages_within_bar"] or 0), int(summary["languages_compared"] or 0)
    return f"{text} It needs {float(summary['ratio_mean'] or 0):.2f} times as many tokens as a tokenizer of that size for one language alone; {within} of {compared} languages stay within the paper's {BAR:g}."


def _notes(rows: pl.DataFrame, summary: Mapping[str, Scalar]) -> list[str]:
    notes = []
    if unseen := rows.filter(~pl.col("trained_on"))["language"].to_list():
        notes.append(f"Evaluated, but nothing of them was learned from: {', '.join(unseen)}.")
    short = rows.filter(pl.col("alone_vocabulary") < summary["vocabulary"])
    if short.height:
        listed = ", ".join(f"{name} ({n:,})" for name, n in short.select("language", "alone_vocabulary").iter_rows())
        notes.append(f"Too little text for a vocabulary of that size of its own: {listed}.")
    return notes


def _table(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select(
        "language",
        pl.col("trained_on").alias("learned from"),
        "sentences",
        pl.col("lost").alias("not restored"),
        pl.col("per_word").alias("tokens per word"),
        pl.col("per_character").alias("per character"),
        pl.col("bytes_per_token").alias("bytes per token"),
        pl.col("alone_bytes_per_token").alias("its own tokenizer"),
        pl.col("alone_vocabulary").alias("its own vocabulary"),
        pl.col("alone_bytes").alias("bytes of its text"),
        "ratio",
    )


def _ratio(rows: pl.DataFrame) -> alt.TopLevelMixin:
    order = rows.sort("ratio")["language"].to_list()
    x = alt.X("language:N", title=None, sort=order, axis=alt.Axis(labelAngle=0))
    bars = (
        alt.Chart(rows).mark_bar(width={"band": 0.6}).encode(x=x, y=alt.Y("ratio:Q", title="tokens, own tokenizer = 1"))
    )
    spans = alt.Chart(rows).mark_rule(color=MUTED, strokeWidth=2).encode(x=x, y="ratio_lo:Q", y2="ratio_hi:Q")
    bar = alt.Chart(pl.DataFrame({"at": [BAR]})).mark_rule(color=PALETTE[1], strokeWidth=2, strokeDash=[6, 3])
    return alt.layer(bars, spans, bar.encode(y="at:Q")).properties(width=_width(rows), height=220)


def _bytes_per_token(rows: pl.DataFrame) -> alt.TopLevelMixin:
    names = {"bytes_per_token": "shared", "alone_bytes_per_token": "its own"}
    long = (
        rows.select("language", *(pl.col(column).cast(pl.Float64).alias(name) for column, name in names.items()))
        .unpivot(index="language", variable_name="tokenizer", value_name="bytes")
        .drop_nulls("bytes")
    )
    encoded: dict[str, Any] = {
        "x": alt.X("language:N", title=None, axis=alt.Axis(labelAngle=0)),
        "y": alt.Y("bytes:Q", title="bytes per token"),
        "color": alt.Color(
            "tokenizer:N", title="tokenizer",
            scale=alt.Scale(domain=list(names.values()), range=[PALETTE[0], PALETTE[1]]),
            legend=alt.Legend(orient="top"),
        ),
        "shape": alt.Shape("tokenizer:N", title="tokenizer"),
    }  # fmt: skip
    return alt.Chart(long).mark_point(size=70, filled=True).encode(**encoded).properties(width=_width(rows), height=220)


def _shares(rows: pl.DataFrame) -> alt.TopLevelMixin:
    rows = rows.head(60)
    names = {"share": "in the corpus", "share_sampled": "in the sample"}
    long = rows.select("language", *(pl.col(column).alias(name) for column, name in names.items())).unpivot(
        index="language", variable_name="of", value_name="share"
    )
    return (
        alt.Chart(long)
        .mark_bar()
        .encode(
            x=alt.X("language:N", title=None, sort=rows["language"].to_list()),
            xOffset=alt.XOffset("of:N", sort=list(names.values())),
            y=alt.Y("share:Q", title="share of bytes", axis=alt.Axis(format="%")),
            color=alt.Color(
                "of:N", title=None, sort=list(names.values()),
                scale=alt.Scale(domain=list(names.values()), range=[MUTED, PALETTE[0]]), legend=alt.Legend(orient="top"),
            ),
        )
        .properties(width=_width(rows), height=200)
    )  # fmt: skip


def _width(rows: pl.DataFrame) -> int:
    return min(760, max(260, 36 * rows.height))
