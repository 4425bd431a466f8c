"""What the report of `multilingual-pretraining` says of corpus, tokenizer, training and its costs."""

from __future__ import annotations

import altair as alt
import numpy as np
import polars as pl

from inscape.runs import Headline, Reported, RunFolder, Section
from inscape.runs.theme import MUTED, PALETTE
from inscape.studies.multilingual_making import removed

_STEPS = {
    "languages": "languages left out", "sample": "sampling", "markup": "markup", "empty": "empty", "exact": "exact copies",
    "template_lines": "template lines", "length": "length", "character_repetition": "repeated characters",
    "word_repetition": "repeated words", "special_characters": "special characters", "stop_words": "stop words",
    "language_id": "other language", "pii": "personal data", "near": "near copies",
}  # fmt: skip


def headlines(run: RunFolder) -> list[Headline]:
    """Of the training itself."""
    return [
        Headline("tokens_trained", "Tokens read", "Positions of the main model, padding included.", "Training"),
        Headline("tokens_per_second", "Tokens per second", "Median over steps, of the main model.", "Training"),
        Headline("mfu", "Share of the matmul rate", "Operations that a step needs, by the rate of large square products measured at its start.", "Training"),
        Headline("final_loss", "Training loss at the end", "Nats per token, mean over the last stretch of steps.", "Training"),
        Headline("energy_kwh", "Energy", "kWh of main model and twins, by formula: seconds of the steps × 10 W a core; not measured.", "Training"),
    ]  # fmt: skip


def figures(run: RunFolder) -> dict[str, alt.TopLevelMixin]:
    """All figures of this part, by name."""
    return {"making_steps": _steps(run), "making_loss": _loss(run)}


def sections(run: RunFolder) -> list[Section]:
    """The first sections of the page."""
    text = run.table("making_text")
    law = run.table("making_law").row(0, named=True)
    cost = run.table("making_model_cost")
    tokenizer = run.table("making_tokenizer")
    if law["b"] is None:
        fitted = "No law of the form floor + a × FLOPs^-b fits the curve."
    else:
        fitted = (
            f"Dashed: {law['floor']:.2f} + {law['a']:.2f} × (FLOPs / {law['flops']:.2e})^-{law['b']:.2f}, fitted after the "
            f"first twentieth (root mean square error {law['rms']:.3f}). It describes one curve under one falling learning "
            "rate; it is no scaling law across model sizes."
        )
    within = tokenizer.filter(pl.col("ratio") <= 1.1).height
    compared = tokenizer["ratio"].drop_nulls().len()
    return [
        Section(
            "Corpus",
            "Bytes that each step of cleaning took away, over all sources. Held-out languages and those not asked for go "
            "first and are not shown.",
            figure="making_steps",
            table=text,
            caption="What is left, by language.",
            table_limit=60,
        ),
        Section(
            "Tokenizer",
            f"Tokens of the shared tokenizer for one token of a BPE of the same size that was fitted to the language alone, "
            f"on parallel sentences. The paper asks for at most 1.1: {within} of {compared} languages are within that. "
            f"{int(tokenizer['not_restored'].sum())} of {int(tokenizer['sentences'].sum()):,} sentences came back changed.",
            table=tokenizer.drop("not_restored"),
            table_limit=40,
        ),
        Section("Training", f"The training loss over what was computed. {fitted}", figure="making_loss", table=cost.select("steps", "tokens", "skipped", "seconds", "tokens_per_second", "mfu", "kwh", "co2_kg", "parameters")),
    ]  # fmt: skip


def reported(run: RunFolder) -> list[Reported]:
    """Lines of the table "paper and here"."""
    cost = run.table("making_model_cost").row(0, named=True)
    text = run.table("making_text")
    return [
        Reported("Parameters", "176 billion (559 million the smallest)", f"{cost['parameters']:,}", why="Trained in minutes on a CPU."),
        Reported("Tokens", "366 billion", f"{cost['tokens']:,}"),
        Reported("Text", "1.61 TB, 46 languages and 13 programming languages", f"{int(text['bytes'].sum()) / 1e6:,.1f} MB, {text.height} languages with code", why="Documentation, help pages and parts of Wikipedia instead of the web."),
        Reported("Fertility against one language's own tokenizer", "at most 10 % more tokens was asked for", key="languages_within_10_percent", why="A small vocabulary is shared by all scripts."),
        Reported("Energy", "433 MWh", f"{cost['kwh'] * 1000:,.1f} Wh (by formula)"),
    ]  # fmt: skip


def notes(run: RunFolder) -> list[str]:
    """What a careful reader should know of this part."""
    cost = run.table("making_model_cost")
    found = [
        "Energy is a formula (seconds × 10 W a core, no overhead, 480 g CO2 per kWh), not a measurement, and leaves out "
        "corpus, tokenizer, tests and finetuning.",
        "Tokens per second, share of the matmul rate and seconds depend on what else the machine did.",
    ]
    if skipped := int(cost["skipped"][0]):
        found.append(f"{skipped} steps of the main model were left out as spikes.")
    return found


def _steps(run: RunFolder) -> alt.TopLevelMixin:
    rows = (
        removed(run)
        .filter(~pl.col("step").is_in(["read", "languages", "sample"]))
        .with_columns(
            pl.col("step").replace(_STEPS),
            ((pl.col("bytes_in") - pl.col("bytes_out")) / 1e6).alias("MB"),
            (1 - pl.col("bytes_out") / pl.col("bytes_in")).alias("share"),
        )
    )
    return (
        alt.Chart(rows)
        .mark_bar(color=PALETTE[0])
        .encode(
            x=alt.X("MB:Q", title="MB removed"),
            y=alt.Y("step:N", sort=None, title=None),
            tooltip=["step", alt.Tooltip("MB", format=".2f"), alt.Tooltip("share", format=".1%"), "documents_in", "documents_out"],
        )
    )  # fmt: skip


def _loss(run: RunFolder) -> alt.TopLevelMixin:
    per_token = float(run.table("making_model_cost")["flops_per_token"][0])
    curve = run.table("making_model").with_columns((pl.col("tokens") * per_token).alias("FLOPs"))
    line = (
        alt.Chart(curve)
        .mark_line(color=PALETTE[0])
        .encode(
            x=alt.X("FLOPs:Q", scale=alt.Scale(type="log", nice=False), axis=alt.Axis(format=".0e", tickCount=5)),
            y=alt.Y("loss:Q", scale=alt.Scale(zero=False), title="nats per token"),
            tooltip=["step", "tokens", alt.Tooltip("loss", format=".3f")],
        )
    )
    law = run.table("making_law").row(0, named=True)
    if law["b"] is None:
        return line
    x = np.geomspace(float(curve["FLOPs"][-1]) * 0.05, float(curve["FLOPs"][-1]), 60)
    fitted = pl.DataFrame({"FLOPs": x, "loss": law["floor"] + law["a"] * (x / law["flops"]) ** -law["b"]})
    dashed = alt.Chart(fitted).mark_line(color=MUTED, strokeDash=[5, 4]).encode(x="FLOPs:Q", y="loss:Q")
    return line + dashed
