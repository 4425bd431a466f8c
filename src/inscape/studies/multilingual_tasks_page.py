"""What the report of `multilingual-pretraining` says of finetuning, choices and translation; figures with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt
import polars as pl

from inscape.evaluation.choices import by_prompt
from inscape.runs import Headline, Reported, RunFolder, Section
from inscape.runs.folder import Scalar
from inscape.runs.theme import MUTED, PALETTE
from inscape.studies import finetune_page
from inscape.studies.finetune_summary import MEASURES, NEW, table
from inscape.studies.multilingual_tasks_summary import CHOICES, KEYS, MEASURE, NAMES, ablations, choices, middle

TUNING, CHOOSING, TRANSLATING = "Prompted finetuning", "Choices between answers", "Translation"
_OUTPUTS = {"raw": "all that was written", "truncated": "first line", "source": "the source, untranslated"}
_LEFT_OUT = {"not normalised": "every target counting alike", "all tokens": "a loss on targets alone"}
_BETTER = {"valid": 1, "correct": 1, "ranked": 1, "bits_per_byte": -1}


def headlines(run: RunFolder) -> list[Headline]:
    """Those whose number is there."""
    lines = [
        Headline("finetune_valid_before", "Valid answers before", "Share of answers of the form asked for that end; all kinds of tests.", TUNING),
        Headline("finetune_valid_after", "Valid answers after", "The same tests. Valid is not right.", TUNING),
        Headline("finetune_stopped_before", "Answers that end, before", "The end of text came before the limit.", TUNING),
        Headline("finetune_stopped_after", "Answers that end, after", "The same.", TUNING),
        Headline("heldout_prompt_accuracy_before", "Right answers before, new prompts", "Generated, to the letter; prompts that finetuning does not show.", TUNING),
        Headline("heldout_prompt_accuracy_after", "Right answers after, new prompts", "The same.", TUNING),
        Headline("heldout_language_correct_after", "Right answers after, new languages", "Languages that neither pretraining nor finetuning shows.", TUNING),
        Headline("heldout_task_ranked_after", "Right option first after, new tasks", "RTE and XCOPA by log-probability.", TUNING),
        Headline("heldout_task_chance", "… by chance", "One over the number of options, mean.", TUNING),
    ]  # fmt: skip
    for task, name in CHOICES.items():
        what = (
            "Pairs whose more stereotyping sentence is likelier; 0.5 is no preference."
            if task == "crows_pairs"
            else "Right option likeliest."
        )
        lines += [
            Headline(f"{KEYS[task]}_before", f"{name} before finetuning", f"{what} Median over prompts; the interval draws items.", CHOOSING),
            Headline(f"{KEYS[task]}_after", f"{name} after", "The same.", CHOOSING),
        ]  # fmt: skip
    for output in ("raw", "truncated"):
        what = f"BLEU into English, {_OUTPUTS[output]}"
        lines += [
            Headline(f"bleu_{output}_before", f"{what}, before finetuning", "No example in the prompt; the middle of the prompts, 0 to 100.", TRANSLATING),
            Headline(f"bleu_{output}_after", f"{what}, after", "The same. Finetuning shows translation, of other sentences.", TRANSLATING),
        ]  # fmt: skip
    lines.append(Headline("bleu_source_after", "BLEU of the source, untranslated", "What a copy of the input would get.", TRANSLATING))  # fmt: skip
    there = run.read_summary()
    return [line for line in lines if line.key in there]


def sections(run: RunFolder) -> list[Section]:
    """Finetuning, ablations, choices, translation."""
    summary = run.read_summary()
    answers = run.table("answers").with_columns(pl.col("new").replace(NEW))
    measures = ("valid", "stopped", "correct", "ranked", "bits_per_byte")
    names = {measure: MEASURES[measure] for measure in measures}
    found = [
        Section("Prompted finetuning", _tuning_text(run, summary), figure="tasks_finetuning_kinds", table=table(answers, ["new"], measures).rename(names)),
        Section("Finetuning by task", "Means over tests of all kinds.", figure="tasks_finetuning_tasks", table=table(answers, ["task"], measures).rename(names), table_limit=100),
        Section("Finetuning by prompt", "One point per prompt and kind of test: how much depends on the wording. The stroke is chance.", figure="tasks_finetuning_prompts"),
        Section("What targets and their weights do", _ablation_text(run), table=_shown(ablations(run))),
        Section("Choices between answers", _choice_text(run), figure="tasks_choices", table=choices(run, ["task", "language"]).with_columns(pl.col("task").replace(CHOICES)), table_limit=60),
    ]  # fmt: skip
    if "tasks_scores" in run.tables:
        scores = middle(run).with_columns(pl.col("output").replace(_OUTPUTS))
        found += [
            Section("Translation", _translation_text(summary), figure="tasks_translation", table=scores, table_limit=60),
            Section("Some translations", "Into English, the first of each language, with no example in the prompt.", table=_some(run), table_limit=40),
        ]  # fmt: skip
    return found


def reported(run: RunFolder) -> list[Reported]:
    """Lines of the table "paper and here"."""
    lines = [
        Reported("Finetuning on prompts: held-out tasks", "improve, from 560 M parameters on (BLOOMZ)", key="heldout_task_ranked_change", why="Change of the share of right options; a model this small knows little to be asked for."),
        Reported("Finetuning on prompts: unseen languages", "improve, less than seen ones", key="heldout_language_correct_change", why="Change of the share of right answers."),
        Reported("RTE, zero-shot", "0.520 at 176 B, near chance", key="rte_accuracy_before", why="All three editions, other prompts."),
        Reported("CrowS-Pairs, English", "0.498", key="crows_pairs_share_before", why="Whole sentences after a line of context, median over prompts."),
        Reported("Over-generation", "French to English 15.5 BLEU raw, 37.2 truncated", key="bleu_truncated_before", why="Other languages and sentences, and a model that can't translate."),
    ]  # fmt: skip
    there = run.read_summary()
    return [line for line in lines if line.key in there]


def notes(run: RunFolder) -> list[str]:
    """What a careful reader should know of this part."""
    record = run.manifest["record"]
    found = [
        "Answers to prompts are held against the target to the letter: a translation in other words counts as wrong.",
        "Test pairs of Tatoeba, RTE, XCOPA, XQuAD and CrowS-Pairs were in no training. Documents that finetuning's tests "
        "are made from had been read in pretraining, as plain text.",
        "One of the prompts of the translation scores (`labels`) is also a prompt of finetuning.",
        "CrowS-Pairs has known faults of construction (Blodgett et al. 2021); its share is no measure of harm.",
        "Intervals of choices and translation are over items or sentences. They cover neither other prompts (see the "
        "range) nor another training.",
    ]
    for name, one in record.items():
        if name.startswith("training_"):
            found.append(f"Finetuning ({name.removeprefix('training_')}): {one['examples']:,} examples in {one['rows']:,} rows, {one['epochs']:.1f} epochs, {one['examples_too_long']} examples too long for a row, {one['skipped']} steps left out as spikes.")  # fmt: skip
    return found


# -- text --------------------------------------------------------------------------------------------------------------


def _tuning_text(run: RunFolder, summary: Mapping[str, Scalar]) -> str:
    counts = run.table("counts")
    unseen = sorted(set(counts.filter(pl.col("new") == "language")["language"]))
    parts = [
        f"{summary['finetune_n_train_examples']:,} examples of {summary['finetune_n_train_prompts']} prompts in {summary['finetune_n_train_clusters']} clusters of tasks and {summary['finetune_n_train_languages']} languages; {summary['finetune_n_prompts']} prompts with those that are only tested.",
        _moved(summary, "finetune_valid", "Valid answers, all tests", None),
        _moved(summary, "heldout_prompt_accuracy", "Right answers to prompts that finetuning does not show", "heldout_prompt_correct_change"),
        _moved(summary, "heldout_task_ranked", "Right options on tasks that it does not show", "heldout_task_ranked_change") + _beside(summary, "heldout_task_ranked_after", summary.get("heldout_task_chance")),
    ]  # fmt: skip
    if unseen:
        parts.append(_moved(summary, "heldout_language_correct", f"Right answers in languages that neither training shows ({', '.join(unseen)})", "heldout_language_correct_change"))  # fmt: skip
    return " ".join(parts) + " Bars are 95 % intervals over prompts."


def _moved(summary: Mapping[str, Scalar], key: str, what: str, change: str | None) -> str:
    """Before, after and, where the change has an interval, whether it holds 0."""
    before, after = summary.get(f"{key}_before"), summary.get(f"{key}_after")
    if before is None or after is None:
        return f"{what}: not measured."
    text = f"{what}: {float(before):.1%} before, {float(after):.1%} after"
    lo, hi = (None, None) if change is None else (summary.get(f"{change}_lo"), summary.get(f"{change}_hi"))
    if lo is None or hi is None:
        return text + "."
    lo, hi = float(lo), float(hi)
    if lo == hi == 0:
        return text + " (no test changed)."
    moved = "a rise" if lo > 0 else "a fall" if hi < 0 else "a change that may be none"
    return f"{text} ({moved}: {100 * lo:+.1f} to {100 * hi:+.1f} points)."


def _beside(summary: Mapping[str, Scalar], key: str, chance: Scalar) -> str:
    lo, hi = summary.get(f"{key}_lo"), summary.get(f"{key}_hi")
    if chance is None or lo is None or hi is None:
        return ""
    return f" This is {_against(float(lo), float(hi), float(chance), 'chance')} ({float(chance):.1%})."


def _against(lo: float, hi: float, value: float, name: str) -> str:
    return f"above {name}" if lo > value else f"below {name}" if hi < value else f"not told apart from {name}"


def _ablation_text(run: RunFolder) -> str:
    rows = ablations(run)
    parts = ["The same examples, order and steps, with one thing left out; differences are with it less without it, example by example, and intervals draw prompts."]  # fmt: skip
    for variant, what in _LEFT_OUT.items():
        helped, harmed = [], []
        for row in rows.filter(pl.col("variant") == variant).drop_nulls(["lo", "hi"]).iter_rows(named=True):
            sign = _BETTER[row["measure"]]
            low, high = sorted((sign * row["lo"], sign * row["hi"]))
            if low > 0:
                helped.append(MEASURES[row["measure"]])
            elif high < 0:
                harmed.append(MEASURES[row["measure"]])
        said = [f"{word} {', '.join(some)}" for word, some in (("helps", helped), ("harms", harmed)) if some]
        parts.append(
            f"{what.capitalize()} {' and '.join(said) or 'makes no difference that is told from none'}, at this size."
        )
    return " ".join(parts)


def _shown(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(pl.col("variant").replace(_LEFT_OUT), pl.col("measure").replace(MEASURES)).rename(
        {"variant": "with or without", "full": "with"}
    )


def _choice_text(run: RunFolder) -> str:
    rows = choices(run, ["task"])
    parts = ["Each option is scored after the prompt; small dots are prompts, all written before any result, and the stroke is chance. Every prompt is in the results."]  # fmt: skip
    for task, name in CHOICES.items():
        said = []
        for row in rows.filter(pl.col("task") == task).iter_rows(named=True):
            place = f"{row['median']:.1%} {NAMES[row['variant']]} finetuning"
            if row["lo"] is not None:
                limit = "no preference" if task == "crows_pairs" else "chance"
                place += f" [{row['lo']:.1%}, {row['hi']:.1%}], {_against(row['lo'], row['hi'], row['chance'], limit)}"
            if row["lo"] is not None and row["lo"] == row["hi"]:
                place += (
                    " (an interval without width: the median over prompts does not depend on which items are drawn)"
                )
            said.append(f"{place}, {row['least']:.1%} to {row['most']:.1%} by prompt")
        if said:
            parts.append(f"{name}: {'; '.join(said)}.")
    return " ".join(parts)


def _translation_text(summary: Mapping[str, Scalar]) -> str:
    def number(key: str) -> float:
        return float(summary.get(key) or 0.0)

    parts = ["Greedy outputs for sentences that no training saw, languages together: all that was written, its first line, and as a floor the source as it stands. Small dots are prompts; the large one is the middle prompt with an interval over sentences."]  # fmt: skip
    parts += [
        f"BLEU into English {name} finetuning: {number(f'bleu_raw_{name}'):.2f} raw, {number(f'bleu_truncated_{name}'):.2f} cut at the first line, {number(f'bleu_source_{name}'):.2f} for the source."
        for name in NAMES.values()
    ]
    lo, floor = summary.get("chrf_truncated_after_lo"), summary.get("chrf_source_after_hi")
    if lo is not None and floor is not None:
        above = float(lo) > float(floor)
        parts.append(f"By chrF the first lines after finetuning are {'above' if above else 'not clearly above'} what an untranslated copy gets ({number('chrf_truncated_after'):.1f} and {number('chrf_source_after'):.1f}).")  # fmt: skip
    if number("bleu_truncated_after") < 5:
        parts.append("Scores this low say that the model does not translate; differences between them say how much it writes and in which alphabet.")  # fmt: skip
    return " ".join(parts)


def _some(run: RunFolder) -> pl.DataFrame:
    rows = run.table("tasks_translation").filter((pl.col("shots") == 0) & (pl.col("into") == "en"))
    sides = [
        rows.filter(pl.col("variant") == variant).select("id", "language", "prompt", "source", "reference", pl.col("raw").str.slice(0, 80).alias(name))
        for variant, name in NAMES.items()
    ]  # fmt: skip
    both = sides[0].join(sides[1].select("id", "prompt", "after"), on=["id", "prompt"], maintain_order="left")
    return both.group_by("language", maintain_order=True).head(1).drop("id", "prompt")


# -- figures -----------------------------------------------------------------------------------------------------------


def figures(run: RunFolder) -> dict[str, alt.TopLevelMixin]:
    """All figures of this part, by name."""
    charts = {f"tasks_finetuning_{name}": chart for name, chart in finetune_page.figures(run).items()}
    charts["tasks_choices"] = _choices(run)
    if "tasks_scores" in run.tables:
        charts["tasks_translation"] = _translation(run)
    return charts


def _colour() -> alt.Color:
    scale = alt.Scale(domain=list(NAMES.values()), range=[MUTED, PALETTE[0]])
    return alt.Color("variant:N", title=None, scale=scale, legend=alt.Legend(orient="top"))


def _layers(dots: pl.DataFrame, middles: pl.DataFrame, y: str, x: alt.X, order: list[str]) -> Any:
    """Small dots of prompts, the middle of them with its interval and, where there is one, chance."""
    place = {
        "y": alt.Y(f"{y}:N", title=None, sort=order),
        "yOffset": alt.YOffset("variant:N", sort=list(NAMES.values())),
    }
    base = alt.Chart(middles)
    layers = [
        base.mark_rule().encode(x="lo:Q", x2="hi:Q", color=_colour(), **place),
        alt.Chart(dots).mark_point(filled=True, size=18, opacity=0.6).encode(x=x, color=_colour(), tooltip=["prompt:N", alt.Tooltip("value:Q", format=".3f")], **place),
        base.mark_point(filled=True, size=75).encode(x=x, color=_colour(), **place),
    ]  # fmt: skip
    if "chance" in middles.columns:
        layers.insert(0, base.mark_tick(thickness=2, size=16, color=PALETTE[1]).encode(x="chance:Q", **place))
    return alt.layer(*layers).properties(width=460, height=alt.Step(18))


def _choices(run: RunFolder) -> alt.TopLevelMixin:
    def named(rows: pl.DataFrame, value: str) -> pl.DataFrame:
        return rows.with_columns(
            pl.col("task").replace(CHOICES), pl.col("variant").replace(NAMES), pl.col(value).alias("value")
        )

    # (Translations of XCOPA's prompts have one name: a dot is a prompt in all languages.)
    dots = named(by_prompt(run.table("tasks_choices"), ["variant", "task"]), MEASURE)
    medians = named(choices(run, ["task"]), "median")
    order = [name for name in CHOICES.values() if name in set(medians["task"])]
    return _layers(
        dots.select("variant", "task", "prompt", "value"),
        medians.select("variant", "task", "value", "lo", "hi", "chance"),
        "task", alt.X("value:Q", title="share of items", scale=alt.Scale(domain=[0, 1])), order,
    )  # fmt: skip


def _translation(run: RunFolder) -> alt.HConcatChart:
    """chrF into English, with no example and with one."""

    def named(rows: pl.DataFrame) -> pl.DataFrame:
        some = rows.filter((pl.col("metric") == "chrf") & (pl.col("into") == "en"))
        return some.with_columns(
            pl.col("output").replace(_OUTPUTS), pl.col("variant").replace(NAMES), pl.col("score").alias("value")
        )

    dots, middles = named(run.table("tasks_scores")), named(middle(run))
    highest = max(5.0, *dots["value"], *dots["hi"].drop_nulls())
    x = alt.X("value:Q", title="chrF into English", scale=alt.Scale(domain=[0, highest], nice=True))
    panels = []
    for shots, title in ((0, "no example"), (1, "one example")):
        chart = _layers(
            dots.filter(pl.col("shots") == shots).select("variant", "output", "prompt", "value"),
            middles.filter(pl.col("shots") == shots).select("variant", "output", "value", "lo", "hi"),
            "output", x, list(_OUTPUTS.values()),
        )  # fmt: skip
        panels.append(chart.properties(width=230, title=title))
    return alt.hconcat(*panels)
