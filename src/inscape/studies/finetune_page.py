"""The report of `finetune`, made from its tables alone."""

from collections.abc import Mapping
from typing import Any

import altair as alt
import polars as pl

from inscape.runs import Headline, Page, Reported, Section
from inscape.runs.folder import RunFolder, Scalar
from inscape.runs.theme import PALETTE
from inscape.studies.finetune_summary import AFTER, BEFORE, MEASURES, NEW, estimate, table

ALL, PROMPTS, ITEMS, LANGUAGES, TASKS = "All tests", "New prompts", "New items", "New languages", "New tasks"

HEADLINES = (
    Headline("finetune_valid_before", "Valid answers before", "Share of answers that have the form asked for and end; all kinds of tests.", ALL),
    Headline("finetune_valid_after", "Valid answers after", "The same tests. Valid is not right.", ALL),
    Headline("finetune_stopped_before", "Answers that end, before", "The end of text came before the limit.", ALL),
    Headline("finetune_stopped_after", "Answers that end, after", "A model that ends at once would end always: see right answers.", ALL),
    Headline("heldout_prompt_accuracy_before", "Right answers before", "Generated, to the letter; prompts that finetuning does not show.", PROMPTS),
    Headline("heldout_prompt_accuracy_after", "Right answers after", "The same.", PROMPTS),
    Headline("prompt_ranked_after", "Right option ranked first", "Tasks of options, by log-probability.", PROMPTS),
    Headline("prompt_chance", "… by chance", "One over the number of options, mean.", PROMPTS),
    Headline("seen_correct_before", "Right answers before", "Prompts, tasks and languages as trained; items are new.", ITEMS),
    Headline("seen_correct_after", "Right answers after", "The same.", ITEMS),
    Headline("seen_bits_per_byte_before", "Bits per target byte before", "Of the target after the input; less is better.", ITEMS),
    Headline("seen_bits_per_byte_after", "Bits per target byte after", "The same.", ITEMS),
    Headline("language_correct_before", "Right answers before", "Languages that finetuning does not show.", LANGUAGES),
    Headline("language_correct_after", "Right answers after", "The same.", LANGUAGES),
    Headline("task_valid_after", "Valid answers after", "Tasks that finetuning does not show (RTE, XCOPA, XQuAD).", TASKS),
    Headline("task_ranked_before", "Right option ranked first, before", "By log-probability.", TASKS),
    Headline("task_ranked_after", "Right option ranked first, after", "The same.", TASKS),
    Headline("task_chance", "… by chance", "One over the number of options, mean.", TASKS),
)  # fmt: skip

REPORTED = (
    Reported("Held-out tasks improve", "yes, from 560 M parameters on (BLOOMZ beats BLOOM on XNLI, XCOPA, XStoryCloze, XWinograd)", key="task_ranked_after", why="A model of millions of parameters knows little to be asked for; its form of answers is what finetuning changes."),
    Reported("Unseen languages improve", "yes, less than seen ones", key="language_correct_change", why="Other tasks and languages."),
    Reported("Answers stop", "generations get short, at times too short", key="finetune_stopped_after", why="The same loss on targets that are mostly short."),
)  # fmt: skip

_ORDER = {BEFORE: PALETTE[6], AFTER: PALETTE[0], "not normalised": PALETTE[1], "all tokens": PALETTE[2]}
_SHOWN = ("valid", "stopped", "correct", "ranked")


def figures(run: RunFolder) -> dict[str, alt.TopLevelMixin]:
    """All figures, by name."""
    answers = run.table("answers")
    return {"kinds": _kinds(answers), "tasks": _tasks(answers), "prompts": _prompts(answers)}


def page(run: RunFolder) -> Page:
    """The report's content."""
    summary = run.read_summary()
    answers = run.table("answers").with_columns(pl.col("new").replace(NEW))
    measures = ("valid", "stopped", "correct", "ranked", "bits_per_byte")
    names = {measure: MEASURES[measure] for measure in measures}
    truncated = ("valid", "valid_first_line", "correct", "correct_first_line")
    counts = run.table("counts").group_by("cluster", "task", "new", maintain_order=True).agg(
        pl.col("examples").sum(), pl.col("prompt").n_unique().alias("prompts"), pl.col("language").n_unique().alias("languages")
    )  # fmt: skip
    return Page(
        title="Multitask prompted finetuning",
        lede=verdict(summary),
        headlines=HEADLINES,
        sections=[
            Section("What was new", "Each test was new to finetuning in one way: its item alone, its prompt, its language, or its whole task. Bars are 95 % intervals over prompts.", figure="kinds", table=table(answers, ["new"], measures).rename(names)),
            Section("By task", "Means over tests of all kinds.", figure="tasks", table=table(answers, ["cluster", "task"], measures).rename(names), table_limit=100),
            Section("By prompt", "One point per prompt and kind of test: how much depends on the wording. Options are ranked by log-probability; the stroke is chance.", figure="prompts", table=table(answers, ["task", "prompt", "new"], measures).rename(names), table_limit=200),
            Section("By language", "English prompts about texts in each language.", table=table(answers, ["language"], measures).rename(names), table_limit=60),
            Section("Raw and truncated", "An answer that goes on after its first line is not valid. Cut at the first line, it may be: the difference is over-generation.", table=table(answers, ["new"], truncated).rename({name: MEASURES[name] for name in truncated})),
            Section("Some answers", "The first new-prompt tests of each task.", table=_some(answers), table_limit=60),
            Section("Examples", "`train` is what finetuning saw.", table=counts, table_limit=100),
        ],
        reported=REPORTED,
        notes=_notes(run),
        paper="Muennighoff et al., Crosslingual Generalization through Multitask Finetuning, ACL 2023 (arXiv 2211.01786); Scao et al., BLOOM (arXiv 2211.05100), §3.6 and §4.4",
    )  # fmt: skip


def verdict(summary: Mapping[str, Scalar]) -> str:
    """What came out, in words that follow from the intervals alone."""

    def text(key: str, share: bool = True) -> str:
        value = summary.get(key)
        return "–" if value is None else f"{float(value):.0%}" if share else f"{float(value):.2f}"

    lines = [
        f"Of all test prompts, {text('finetune_valid_before')} got a valid answer before finetuning and {text('finetune_valid_after')} after it.",
        f"With prompts that finetuning did not show, {text('heldout_prompt_accuracy_before')} of answers were right before and {text('heldout_prompt_accuracy_after')} after.",
    ]  # fmt: skip
    for new, words in (("language", "in languages"), ("task", "on tasks")):
        measure, what = ("correct", "right answers") if new == "language" else ("ranked", "right options")
        lo, hi = summary.get(f"{new}_{measure}_change_lo"), summary.get(f"{new}_{measure}_change_hi")
        if lo is None or hi is None:
            continue
        moved = "rose" if float(lo) > 0 else "fell" if float(hi) < 0 else "did not move beyond its interval"
        lines.append(
            f"The share of {what} {words} that finetuning did not show {moved} ({text(f'{new}_{measure}_before')} → {text(f'{new}_{measure}_after')})."
        )
    return " ".join(lines)


def _notes(run: RunFolder) -> list[str]:
    record = run.manifest["record"]
    notes = [
        "Items are split so that translations of a sentence or a page are on one side. Test sentences of Tatoeba and the held-out tasks were not read in pretraining on the corpora pack; documents were, as plain text.",
        "Answers are held against the target to the letter: a translation in other words counts as wrong.",
    ]
    for name, value in record.items():
        if name.startswith("training_"):
            notes.append(f"{name.removeprefix('training_').capitalize()}: {value['examples']:,} examples in {value['rows']:,} rows ({value['rows_filled']:.0%} filled), {value['epochs']:.1f} epochs, {value['examples_too_long']} examples too long for a row, {value['tokens']:,} tokens at {value['tokens_per_second']:,.0f} a second.")  # fmt: skip
        if name.startswith("tests_too_long_") and value:
            notes.append(
                f"{value} tests were too long for the model ({name.removeprefix('tests_too_long_')}) and left out."
            )
    return notes


def _some(answers: pl.DataFrame) -> pl.DataFrame:
    after = answers.filter((pl.col("variant") == AFTER) & (pl.col("new") == NEW["prompt"]))
    first = after.group_by("task", maintain_order=True).head(2)
    before = answers.filter(pl.col("variant") == BEFORE).select("id", "prompt", "new", pl.col("answer").alias("before"))
    shown = first.join(before, on=["id", "prompt", "new"], maintain_order="left")
    return shown.select(
        "task",
        "language",
        "target",
        pl.col("answer").str.slice(0, 80).alias("finetuned"),
        pl.col("before").str.slice(0, 80),
    )


def _colour(answers: pl.DataFrame) -> alt.Color:
    there = {name: colour for name, colour in _ORDER.items() if name in set(answers["variant"])}
    return alt.Color("variant:N", title=None, sort=list(there), scale=alt.Scale(domain=list(there), range=list(there.values())), legend=alt.Legend(orient="top"))  # fmt: skip


def _long(answers: pl.DataFrame, by: list[str]) -> pl.DataFrame:
    means = table(answers, by, _SHOWN)
    long = means.unpivot(on=list(_SHOWN), index=[*by, "variant"], variable_name="measure", value_name="share")
    return long.drop_nulls("share").with_columns(pl.col("measure").replace_strict(MEASURES))


def _panels(rows: pl.DataFrame, chart: Any, height: Any) -> alt.FacetChart:
    return chart.properties(width=140, height=height).facet(
        column=alt.Column("measure:N", title=None, sort=[MEASURES[name] for name in _SHOWN]), data=rows
    )


def _kinds(answers: pl.DataFrame) -> alt.FacetChart:
    rows = []
    for (variant, new), some in answers.group_by("variant", "new", maintain_order=True):
        for measure in _SHOWN:
            found = estimate(some, measure, 0)
            if found.n:
                lo, hi = (found.lo, found.hi) if found.lo == found.lo else (None, None)
                rows.append({"variant": variant, "new": NEW[str(new)], "measure": MEASURES[measure], "share": found.value, "lo": lo, "hi": hi})  # fmt: skip
    frame = pl.DataFrame(rows, schema_overrides={"lo": pl.Float64, "hi": pl.Float64}, infer_schema_length=None)
    y = alt.Y("new:N", title=None, sort=list(NEW.values()))
    offset = alt.YOffset("variant:N", sort=list(_ORDER))
    x = alt.X("share:Q", title="share of tests", scale=alt.Scale(domain=[0, 1]))
    points = alt.Chart().mark_point(filled=True, size=50).encode(x=x, y=y, yOffset=offset, color=_colour(answers))
    bars = alt.Chart().mark_rule().encode(x=alt.X("lo:Q"), x2="hi:Q", y=y, yOffset=offset, color=_colour(answers))
    return _panels(frame, alt.layer(bars, points), alt.Step(16))


def _tasks(answers: pl.DataFrame) -> alt.FacetChart:
    rows = _long(answers, ["task"])
    order = rows["task"].unique(maintain_order=True).to_list()
    chart = alt.Chart().mark_point(filled=True, size=45).encode(
        x=alt.X("share:Q", title="share of tests", scale=alt.Scale(domain=[0, 1])), y=alt.Y("task:N", title=None, sort=order),
        color=_colour(answers), tooltip=["task:N", "variant:N", alt.Tooltip("share:Q", format=".2f")],
    )  # fmt: skip
    return _panels(rows, chart, alt.Step(17))


def _prompts(answers: pl.DataFrame) -> alt.FacetChart:
    """Right options by prompt, for tasks of options; a prompt is tested in one or two ways."""
    some = answers.drop_nulls("ranked").with_columns(pl.col("ranked").cast(pl.Float64), pl.col("new").replace(NEW))
    rows = some.group_by("task", "prompt", "new", "variant", maintain_order=True).agg(
        pl.col("ranked").mean(), pl.col("chance").mean()
    )
    y = alt.Y("task:N", title=None, sort=rows["task"].unique(maintain_order=True).to_list())
    news = list(NEW.values())
    colour = alt.Color("new:N", title=None, sort=news, scale=alt.Scale(domain=news, range=list(PALETTE[:4])), legend=alt.Legend(orient="top"))  # fmt: skip
    chance = alt.Chart().mark_tick(thickness=2, size=16, color=PALETTE[6]).encode(x="chance:Q", y=y)
    points = alt.Chart().mark_point(filled=True, size=45, opacity=0.7).encode(
        x=alt.X("ranked:Q", title="right option first", scale=alt.Scale(domain=[0, 1])), y=y, color=colour,
        tooltip=["prompt:N", "new:N", alt.Tooltip("ranked:Q", format=".2f")],
    )  # fmt: skip
    return (
        alt.layer(chance, points)
        .properties(width=190, height=alt.Step(20))
        .facet(column=alt.Column("variant:N", title=None, sort=list(_ORDER)), data=rows)
    )
