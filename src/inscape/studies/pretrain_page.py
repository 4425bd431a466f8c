"""Figures and report of `inscape pretrain`, made from its tables alone."""

from typing import Any

import altair as alt
import polars as pl

from inscape.runs import Headline, Page, Section
from inscape.runs.folder import RunFolder
from inscape.runs.theme import MUTED, PALETTE
from inscape.studies.pretrain import by_language

_POINTS = 300
"""Points of a curve over steps: each is the mean of as many steps as it takes."""
_MANY = 7
"""Languages with a colour of their own; of more, only the mean and the single lines are told apart."""

HEADLINES = (
    Headline("validation_loss", "Held-back text, loss", "Nats per token of the last checkpoint on documents that were never trained on; the interval is over windows of text.", "Loss"),
    Headline("bits_per_byte_mean", "… bits per byte, mean over languages", "Loss times tokens per byte. Bytes carry unlike amounts of text in unlike scripts: compare a language with itself.", "Loss"),
    Headline("train_loss", "Training text, loss", "Mean over the last twentieth of the steps.", "Loss"),
    Headline("parameters", "Parameters", "The tied embedding counted once.", "Run"),
    Headline("tokens", "Tokens seen", "Positions, padding included.", "Run"),
    Headline("steps", "Steps", "Optimizer steps, spikes included.", "Run"),
    Headline("passes_most", "Passes over the text", "Of the language that was read most often. Beyond some four passes text teaches little more.", "Run"),
    Headline("spikes", "Spikes", "Steps left out because the gradient or the loss was far above the recent median.", "Run"),
    Headline("tokens_per_second", "Tokens per second", "Median over steps, all processes together.", "Run"),
    Headline("mfu", "Share of the machine's matmul rate", "Operations that a step needs, by the rate of large square matrix products measured at the start.", "Run"),
)  # fmt: skip


def figures(run: RunFolder) -> dict[str, alt.TopLevelMixin]:
    """All figures, by name."""
    charts: dict[str, alt.TopLevelMixin] = {"loss": _loss(run), "gradient": _gradient(run)}
    if by_language(run).height:
        charts["languages"] = _languages(run)
    return charts


def thinned(steps: pl.DataFrame) -> pl.DataFrame:
    """Means over runs of steps, `_POINTS` of them at most, shorter where the run is young."""
    # Evenly spread over the logarithm: half of the story is in the first hundredth of the steps.
    place = ((pl.col("step").log() / pl.lit(max(2, steps.height)).log()) * _POINTS).floor()
    return (
        steps.with_columns(place.alias("place"))
        .group_by("place", maintain_order=True)
        .agg(pl.col("step", "tokens").max(), pl.col("loss", "grad_norm", "learning_rate").mean())
        .drop("place")
    )


def _x() -> alt.X:
    return alt.X("tokens:Q", scale=alt.Scale(type="log", nice=False), title="tokens seen")


def _loss(run: RunFolder) -> alt.TopLevelMixin:
    names = ["training", "held back"]
    rows = thinned(run.table("steps")).select("tokens", "loss", pl.lit(names[0]).alias("of"))
    held_back = by_language(run).filter(pl.col("tokens") > 0)
    base = alt.Chart(rows).encode(
        x=_x(),
        y=alt.Y("loss:Q", scale=alt.Scale(zero=False), title="nats per token"),
        color=alt.Color(
            "of:N", title=None, scale=alt.Scale(domain=names, range=list(PALETTE[:2])), legend=alt.Legend(orient="top")
        ),
    )
    layers = [base.mark_line()]
    if held_back.height:
        means = held_back.group_by("tokens", maintain_order=True).agg(
            pl.col("loss").mean(), pl.lit(names[1]).alias("of")
        )
        layers.append(base.mark_line(point=True).properties(data=alt.Data(values=means.to_dicts())))
    return alt.layer(*layers)


def _gradient(run: RunFolder) -> alt.VConcatChart:
    steps = thinned(run.table("steps"))
    norm = (
        alt.Chart(steps.select("tokens", "grad_norm"))
        .mark_line(color=PALETTE[0])
        .encode(x=_x(), y=alt.Y("grad_norm:Q", scale=alt.Scale(type="log"), title="gradient norm"))
        .properties(height=160)
    )
    rate = (
        alt.Chart(steps.select("tokens", "learning_rate"))
        .mark_line(color=PALETTE[1])
        .encode(x=_x(), y=alt.Y("learning_rate:Q", title="learning rate"))
        .properties(height=120)
    )
    return alt.vconcat(norm, rate)


def _languages(run: RunFolder) -> alt.TopLevelMixin:
    rows = by_language(run).filter(pl.col("tokens") > 0, pl.col("bits_per_byte").is_not_null())
    several = rows["language"].n_unique() > _MANY
    colour: Any = alt.value(MUTED) if several else alt.Color("language:N", title=None)
    lines = (
        alt.Chart(rows.select("tokens", "language", "bits_per_byte"))
        .mark_line(point=not several, opacity=0.7)
        .encode(
            x=_x(),
            y=alt.Y("bits_per_byte:Q", scale=alt.Scale(zero=False), title="bits per byte"),
            detail="language:N",
            color=colour,
            tooltip=["language:N", "tokens:Q", alt.Tooltip("bits_per_byte:Q", format=".3f")],
        )
    )
    if not several:
        return lines
    last = rows.filter(pl.col("tokens") == rows["tokens"].max()).select("tokens", "language", "bits_per_byte")
    names = (
        alt.Chart(last)
        .mark_text(align="left", dx=5, fontSize=10)
        .encode(x=_x(), y="bits_per_byte:Q", text="language:N")
    )
    return alt.layer(lines, names)


def page(run: RunFolder) -> Page:
    """The report's content."""
    summary, record = run.read_summary(), run.manifest["record"]
    final = by_language(run)
    drawn = figures(run)
    sections = [
        Section("Loss", "Mean loss of the training steps, and of every checkpoint on held-back text (all languages alike). Tokens on a logarithmic axis.", figure="loss"),
    ]  # fmt: skip
    if "languages" in drawn:
        last = final.filter(pl.col("step") == final["step"].max()).select("language", "loss", "bits_per_byte")
        sections.append(Section("Languages", "Held-back text by language. Loss per token depends on how the tokenizer cuts; bits per byte don't.", figure="languages", table=run.table("languages").join(last, on="language", how="left"), table_limit=60))  # fmt: skip
    sections.append(Section("Gradient and learning rate", "The norm before clipping. A step with a norm far above the recent median is left out.", figure="gradient", table=_spikes(run)))  # fmt: skip
    shape = ", ".join(f"{name} {value}" for name, value in record["model"].items() if value is not None)
    return Page(
        title="A language model, pretrained",
        lede=verdict(summary),
        headlines=HEADLINES,
        sections=sections,
        notes=(
            f"Model: {shape}. The last checkpoint is `{record['final_model']}`, a Hugging Face folder.",
            "Held-back text: the first windows of each language's validation part, each row read from its start; a document's first token is foretold from the token that ended the one before.",
            "Bits per byte are the loss per token times the part's tokens per byte, end-of-sequence tokens included.",
        ),
        paper="BigScience Workshop, BLOOM: A 176B-Parameter Open-Access Multilingual Language Model, 2022 (arXiv 2211.05100)",
    )


def verdict(summary: Any) -> str:
    """What came out, in a sentence or two."""
    text = f"{summary['parameters']:,} parameters were trained on {summary['tokens']:,} tokens in {summary['steps']:,} steps."
    if summary.get("validation_loss") is not None:
        text += f" Text held back is foretold at {summary['validation_loss']:.3f} nats per token"
        text += f", training text at {summary['train_loss']:.3f}."
    if summary["spikes"]:
        text += f" {summary['spikes']} steps were spikes and left out."
    return text


def _spikes(run: RunFolder) -> pl.DataFrame | None:
    skipped = run.table("steps").filter(pl.col("skipped")).select("step", "loss", "grad_norm")
    return skipped if skipped.height else None
