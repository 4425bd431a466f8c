"""Figures and report of `inscape evaluate`, made from its tables alone."""

from __future__ import annotations

import altair as alt
import polars as pl

from inscape.evaluation.bits import bits_table
from inscape.evaluation.choices import accuracies, by_prompt
from inscape.evaluation.translation import over_prompts
from inscape.runs import Headline, Page, Reported, Section
from inscape.runs.folder import RunFolder
from inscape.runs.theme import MUTED, PALETTE
from inscape.studies.evaluate_summary import (
    CHOICES,
    MEASURE,
    extrapolations,
    last_model,
    means_by_model,
    scored,
)

TEXT, TASKS, TRANSLATION = "Text", "Choices", "Translation"
NAMES = {"xcopa": "XCOPA", "rte": "RTE", "crows_pairs": "CrowS-Pairs"}

HEADLINES = (
    Headline("bits_mean", "Bits per byte", "Parallel sentences, mean over languages; less is better. The interval draws sentences.", TEXT),
    Headline("bits_seen_mean", "… languages trained on", "The same, without those said to be unseen.", TEXT),
    Headline("bits_unseen_mean", "… unseen languages", "The same. Bytes carry unlike amounts of text in unlike scripts.", TEXT),
    Headline("bits_mean_1_gram", "… token frequencies alone", "Counted on the model's own training text, scored on the same tokens.", TEXT),
    *(Headline(f"bits_mean_{n}_gram", f"… Kneser-Ney {n}-gram", "Counted on the model's own training text, scored on the same tokens.", TEXT) for n in range(2, 9)),
    Headline("extrapolation_ratio", "Loss at the longest context", "By that at the training length, on the same tokens: 1 is as good, below 1 the longer context helps.", TEXT),
    Headline("extrapolation_length", "… which is, in tokens", "The longest that the model takes.", TEXT),
    Headline("xcopa_accuracy", "XCOPA", "Right choices by likelihood: median over prompts, all languages together; the interval draws items.", TASKS),
    Headline("xcopa_chance", "… by chance", "An interval that holds this value shows nothing.", TASKS),
    Headline("rte_accuracy", "RTE", "Right choices by likelihood, median over prompts.", TASKS),
    Headline("rte_majority", "… answering always alike", "At best; by chance it is 0.5.", TASKS),
    Headline("crows_pairs_share", "CrowS-Pairs", "Pairs whose more stereotyping sentence is likelier, median over prompts; 0.5 is no preference.", TASKS),
    Headline("chrf_truncated", "chrF, first line", "Mean over directions of the median over prompts, 0 to 100.", TRANSLATION),
    Headline("chrf_raw", "… all that was written", "The same, with what came after the first line.", TRANSLATION),
    Headline("chrf_source", "… the source, untranslated", "What a copy of the input would get.", TRANSLATION),
    Headline("bleu_truncated", "BLEU, first line", "Mean over directions of the median over prompts, 0 to 100.", TRANSLATION),
    Headline("bleu_raw", "… all that was written", "The same, with what came after the first line.", TRANSLATION),
    Headline("translation_stopped", "Outputs that end", "Share of outputs that ended before the limit.", TRANSLATION),
)  # fmt: skip

REPORTED = (
    Reported("Zero-shot choices", "near chance at 176 B (RTE 0.520), spread over prompts larger than differences between models", key="rte_accuracy", why="Other prompts; all three editions of RTE."),
    Reported("CrowS-Pairs, English", "0.498", key="crows_pairs_share", why="Full sentences after a line of context, median over prompts."),
    Reported("Over-generation", "French to English 15.5 BLEU raw, 37.2 truncated", key="bleu_truncated", why="Other sentences; the model has no part in why the two differ."),
)  # fmt: skip


def figures(run: RunFolder) -> dict[str, alt.TopLevelMixin]:
    """All figures, by name."""
    charts: dict[str, alt.TopLevelMixin] = {}
    if "bits" in run.tables:
        charts["bits"] = _bits(run)
        if run.table("models").height > 1:
            charts["training"] = _training(run)
    if "positions" in run.tables:
        charts["positions"] = _positions(run)
    if any(task in run.tables for task in CHOICES):
        charts["choices"] = _choices(run)
    if "translation" in run.tables:
        charts["translation"] = _translation(run)
    return charts


def page(run: RunFolder) -> Page:
    """The report's content."""
    summary, seed, last = run.read_summary(), run.manifest["seed"], last_model(run)
    sections = []
    if "bits" in run.tables:
        table = bits_table(
            scored(run).filter(pl.col("model").is_in([last, *_counted(run)])), ["model", "language"], seed=seed
        )
        table = table.select(
            "model", "language", pl.col("bits_per_byte").alias("bits per byte"), pl.col("bits_per_byte_lo").alias("from"), pl.col("bits_per_byte_hi").alias("to"),
            pl.col("bits_per_text").alias("per sentence"), pl.col("bits_per_character").alias("per character"), pl.col("bytes_per_token").alias("bytes per token"),
        )  # fmt: skip
        sections.append(Section("Bits by language", "The same sentences in each language. Bits per byte compare models on one language; bits per sentence compare languages, as the content is the same. The first token of a sentence is not scored where the model has no sign to begin with.", figure="bits", table=table, table_limit=40))  # fmt: skip
    if "bits" in run.tables and run.table("models").height > 1:
        sections.append(
            Section("Over training", "Bits per byte, mean over languages, of each checkpoint.", figure="training")
        )
    if "positions" in run.tables:
        sections.append(Section("Longer contexts", "Left: loss of the same last tokens of each text, after contexts of different lengths. Right: loss at each place of the longest texts.", figure="positions", table=extrapolations(run, seed)))  # fmt: skip
    if any(task in run.tables for task in CHOICES):
        rows = pl.concat([run.table(task) for task in CHOICES if task in run.tables]).filter(pl.col("model") == last)
        sections.append(Section("Choices", "Each dot is a prompt, the bar is the interval of their median, the tick marks chance. Prompts were written before any result, and none was left out. `sum`, `per_token`, `per_byte` and `pmi` are ways to compare options of unlike length and frequency.", figure="choices", table=accuracies(rows, seed=seed), table_limit=60))  # fmt: skip
    if "translation" in run.tables:
        table = over_prompts(run.table("translation_scores").filter(pl.col("model") == last))
        sections += [
            Section("Translation", "Raw output, its first line, and the source as it stands; each dot is a prompt.", figure="translation", table=table, table_limit=60),
            Section("Some translations", "The first of each direction.", table=_some(run, last)),
        ]  # fmt: skip
    if "lm_eval" in run.tables:
        sections.append(Section("lm-evaluation-harness", "Its own tasks, prompts and errors.", table="lm_eval"))
    return Page(
        title=f"Evaluation of {run.manifest['record'].get('model', 'a model')}",
        lede=_lede(run),
        headlines=[headline for headline in HEADLINES if headline.key in summary],
        sections=sections,
        reported=[line for line in REPORTED if line.key in summary],
        notes=_notes(run),
        paper="BigScience, BLOOM: A 176B-parameter open-access multilingual language model, 2022 (arXiv 2211.05100), section 4.",
    )


def _counted(run: RunFolder) -> list[str]:
    return run.table("counts")["model"].unique(maintain_order=True).to_list() if "counts" in run.tables else []


def _lede(run: RunFolder) -> str:
    summary = run.read_summary()

    def number(key: str) -> float:
        return float(summary.get(key) or float("nan"))

    parts = []
    if "bits_mean" in summary:
        parts.append(f"Parallel sentences cost {number('bits_mean'):.2f} bits per byte, mean over languages.")
        counted = [name for name in _counted(run) if name != "1-gram"]
        if counted:
            key = f"bits_mean_{counted[0].replace('-', '_')}"
            better = number("bits_mean_hi") < number(f"{key}_lo")
            verdict = "below" if better else "not clearly below"
            parts.append(f"That is {verdict} what a {counted[0]} model of the same training text gives ({number(key):.2f}) and token frequencies ({number('bits_mean_1_gram'):.2f}).")  # fmt: skip
    for task in CHOICES:
        key = f"{task}_share" if task == "crows_pairs" else f"{task}_accuracy"
        if key in summary:
            chance = number(f"{task}_chance")
            apart = number(f"{key}_lo") > chance or number(f"{key}_hi") < chance
            parts.append(f"{NAMES[task]}: {number(key):.3f}, {'apart from' if apart else 'not apart from'} {'no preference' if task == 'crows_pairs' else 'chance'} ({chance:.2f}).")  # fmt: skip
    if "chrf_truncated" in summary:
        parts.append(
            f"Translations get chrF {number('chrf_truncated'):.1f}, an untranslated copy {number('chrf_source'):.1f}."
        )
    return " ".join(parts) or "Tasks of the lm-evaluation-harness."


def _notes(run: RunFolder) -> list[str]:
    record = run.manifest["record"]
    notes = ["Intervals are over sentences or items. They do not cover another training of the model, nor other prompts: for those, see the range over prompts."]  # fmt: skip
    left = {name.removeprefix("too_long_"): n for name, n in record.items() if name.startswith("too_long_") and n}
    if left:
        notes.append(
            "Items too long for the model, left out: " + ", ".join(f"{name} {n}" for name, n in left.items()) + "."
        )
    if "bits" in run.tables and not _counted(run):
        notes.append("No n-gram models stand beside the model: they need the token shards that it was trained on.")
    if record.get("tokens_counted"):
        notes.append(f"N-gram models: {record['tokens_counted']:,} tokens of training text, interpolated modified Kneser-Ney, nothing pruned.")  # fmt: skip
    if "crows_pairs" in run.tables:
        notes.append(
            "CrowS-Pairs has known faults of construction (Blodgett et al. 2021); its share is no measure of harm."
        )
    return notes


def _bits(run: RunFolder) -> alt.LayerChart:
    models = [last_model(run), *_counted(run)]
    rows = bits_table(
        scored(run).filter(pl.col("model").is_in(models)), ["model", "language"], seed=run.manifest["seed"]
    )
    rows = rows.select("model", "language", "bits_per_byte", "bits_per_byte_lo", "bits_per_byte_hi", "bits_per_text")
    order = rows.filter(pl.col("model") == models[0]).sort("bits_per_byte")["language"].to_list()
    colour = alt.Color("model:N", title=None, sort=models, legend=alt.Legend(orient="top"), scale=alt.Scale(domain=models, range=list(PALETTE[: len(models)])))  # fmt: skip
    y = alt.Y("language:N", title=None, sort=order)
    base = alt.Chart(rows).properties(width=460, height=alt.Step(20))
    bars = base.mark_rule().encode(x=alt.X("bits_per_byte_lo:Q"), x2="bits_per_byte_hi:Q", y=y, color=colour)
    points = base.mark_point(filled=True, size=55).encode(
        x=alt.X("bits_per_byte:Q", title="bits per byte", scale=alt.Scale(zero=False)), y=y, color=colour,
        tooltip=["model:N", "language:N", alt.Tooltip("bits_per_byte:Q", format=".3f"), alt.Tooltip("bits_per_text:Q", format=".0f", title="bits per sentence")],
    )  # fmt: skip
    return bars + points


def _training(run: RunFolder) -> alt.LayerChart:
    models = run.table("models")
    rows = models.join(means_by_model(run, models["model"], run.manifest["seed"]), on="model", maintain_order="left")
    by_tokens = models["tokens"].null_count() == 0
    x = alt.X("at:Q", title="tokens seen" if by_tokens else "step", scale=alt.Scale(type="symlog"))
    base = alt.Chart(rows.with_columns(pl.col("tokens" if by_tokens else "step").alias("at")))
    band = base.mark_errorband().encode(
        x=x, y=alt.Y("lo:Q", title="bits per byte", scale=alt.Scale(zero=False)), y2="hi:Q"
    )
    return band + base.mark_line(point=True).encode(x=x, y=alt.Y("bits_mean:Q", scale=alt.Scale(zero=False)))


def _positions(run: RunFolder) -> alt.HConcatChart:
    last = last_model(run)
    losses = extrapolations(run, run.manifest["seed"]).filter(pl.col("model") == last)
    config = run.manifest["config"]
    trained = pl.DataFrame({"length": [config["trained_length"] or min(config["lengths"])]})
    x = alt.X("length:Q", title="tokens of context and targets", scale=alt.Scale(type="log", base=2, nice=False))
    y = alt.Y("loss:Q", title="nats per token", scale=alt.Scale(zero=False))
    left = alt.Chart(losses).mark_line(point=True).encode(x=x, y=y) + alt.Chart(trained).mark_rule(
        strokeDash=[4, 3], color=MUTED
    ).encode(x="length:Q")
    places = (
        run.table("positions")
        .filter((pl.col("model") == last) & pl.col("first").is_not_null())
        .group_by("first", maintain_order=True)
        .agg((pl.col("nats").sum() / pl.col("targets").sum()).alias("loss"))
    )
    right = (
        alt.Chart(places)
        .mark_line(point={"color": PALETTE[1]}, color=PALETTE[1])
        .encode(x=alt.X("first:Q", title="place in the text", scale=alt.Scale(type="log", base=2, nice=False)), y=y)
    )
    return alt.hconcat(left.properties(width=270), right.properties(width=270))


def _choices(run: RunFolder) -> alt.LayerChart:
    last = last_model(run)
    rows = pl.concat([run.table(task) for task in CHOICES if task in run.tables]).filter(pl.col("model") == last)
    name = pl.concat_str(pl.col("task").replace_strict(NAMES), pl.lit(" "), "language").alias("set")
    means = by_prompt(rows, seed=run.manifest["seed"]).select(name, "prompt", "sum", "chance")
    medians = accuracies(rows, seed=run.manifest["seed"]).filter(pl.col("measure") == MEASURE).select(name, "lo", "hi")
    y = alt.Y("set:N", title=None, sort=means["set"].unique(maintain_order=True).to_list())
    base = alt.Chart(means).properties(width=460, height=alt.Step(22))
    chance = base.mark_tick(thickness=2, size=18, color=PALETTE[4]).encode(x="chance:Q", y=y)
    bars = alt.Chart(medians).mark_bar(size=10, opacity=0.2, color=PALETTE[0]).encode(x="lo:Q", x2="hi:Q", y=y)
    points = base.mark_point(filled=True, size=40, color=PALETTE[0], opacity=0.8).encode(
        x=alt.X("sum:Q", title="share of items", scale=alt.Scale(domain=[0, 1])), y=y,
        tooltip=["set:N", "prompt:N", alt.Tooltip("sum:Q", format=".3f")],
    )  # fmt: skip
    return bars + chance + points


def _translation(run: RunFolder) -> alt.Chart:
    found = run.table("translation_scores").filter((pl.col("model") == last_model(run)) & (pl.col("metric") == "chrf"))
    shown = {"raw": "all that was written", "truncated": "first line", "source": "the source, untranslated"}
    rows = found.select(
        pl.concat_str("language", pl.lit(" → "), "into").str.replace(r"^(\S+) → (\S+)$", "$1 → $2").alias("direction"),
        "prompt", pl.col("output").replace_strict(shown), "score", "into", "language",
    ).with_columns(
        pl.when(pl.col("into") == "en").then(pl.col("direction")).otherwise(pl.concat_str(pl.lit("en → "), "language")).alias("direction")
    )  # fmt: skip
    return (
        alt.Chart(rows.select("direction", "prompt", "output", "score"))
        .mark_point(filled=True, size=45)
        .encode(
            x=alt.X("score:Q", title="chrF"),
            y=alt.Y("direction:N", title=None, sort=rows["direction"].unique(maintain_order=True).to_list()),
            color=alt.Color("output:N", title=None, sort=list(shown.values()), legend=alt.Legend(orient="top"), scale=alt.Scale(domain=list(shown.values()), range=[PALETTE[1], PALETTE[0], PALETTE[6]])),
            tooltip=["direction:N", "prompt:N", "output:N", alt.Tooltip("score:Q", format=".1f")],
        )
        .properties(width=460, height=alt.Step(18))
    )  # fmt: skip


def _some(run: RunFolder, last: str) -> pl.DataFrame:
    rows = run.table("translation").filter(pl.col("model") == last)
    first = rows.group_by("language", "into", maintain_order=True).head(1)
    return first.select("into", "source", "reference", pl.col("raw").str.slice(0, 120), "prompt")
