"""What the report of `multilingual-pretraining` says of probing, with its figures. Every claim follows from an interval."""

from __future__ import annotations

from collections.abc import Mapping

import altair as alt
import polars as pl

from inscape.runs import Headline, Reported, RunFolder, Section
from inscape.runs.folder import Scalar
from inscape.runs.theme import MUTED, PALETTE, RAMP
from inscape.studies.multilingual_probing_summary import (
    best_mean_layer,
    best_on_dev,
    by_task,
    difference,
    language_rows,
    moved,
)

PROBING = "Probing"
_COLOURS = {
    "trained": PALETTE[0], "untrained": PALETTE[1], "n-grams": PALETTE[2], "shuffled labels": PALETTE[3], "majority": MUTED,
}  # fmt: skip


def headlines(run: RunFolder) -> list[Headline]:
    """Those whose number is there."""
    lines = [
        Headline("probe_f1_mean", "Weighted F1, mean over languages", "Last checkpoint, each language at the layer that is best on development sentences.", PROBING),
        Headline("probe_f1_random_init", "… of an untrained model", "The same shape and tokens with random weights: what pooling random vectors of the words gives.", PROBING),
        Headline("probe_f1_ngrams", "… of n-grams", "TF-IDF of words, characters or tokens, whichever is best on development sentences.", PROBING),
        Headline("probe_f1_shuffled", "… with shuffled labels", "The same states, the answers of other sentences.", PROBING),
        Headline("probe_above_random_init", "Above the untrained model", "Paired over sentences. What training added, for a linear reader. The interval covers no other draw of the random weights.", PROBING),
        Headline("probe_above_ngrams", "Above n-grams", "Paired over sentences. Below 0, counting pieces of words tells more.", PROBING),
        Headline("probe_above_random_init_unseen", "Above the untrained model, held-out languages", "Languages that were never trained on.", PROBING),
        Headline("probe_best_layer", "Best layer", "In the mean over languages, on development sentences; 0 is what enters the first block.", PROBING),
        Headline("probe_transfer_mean", "F1 in another language", "Fitted in one language, tested in another, on sentences whose translations were in no training part.", PROBING),
        Headline("probe_transfer_majority", "… of the majority's answer", "On the same tasks and sentences.", PROBING),
    ]  # fmt: skip
    there = run.read_summary()
    return [line for line in lines if line.key in there]


def sections(run: RunFolder) -> list[Section]:
    """Languages, layers, properties, transfer, factors."""
    summary = run.read_summary()
    series = _at_best_layer(run)
    found = [
        Section("Grammar in sentence states", _languages_text(run, summary), figure="probing_languages", table=_languages_table(run)),
        Section("By layer and checkpoint", _layers_text(run, series), figure="probing_layers", table=series.drop("order")),
        Section("Each language by layer", "One panel a language; the lines are checkpoints, from early to late, and dashed the untrained model. Scores of two languages are of different tasks: compare lines in a panel, not panels.", figure="probing_layers_by_language"),
        Section("By property", _task_text(run), table=by_task(run), table_limit=80),
    ]  # fmt: skip
    if moved(run).height:
        found.append(Section("From one language to another", _transfer_text(run, summary), figure="probing_transfer", table=_transfer_table(run)))  # fmt: skip
    found.append(Section("Amount of text, script and family", _factor_text(run), table=run.table("probing_factors")))
    return found


def reported(run: RunFolder) -> list[Reported]:
    """Lines of the table "paper and here"."""
    rows = run.table("probing_factors").filter((pl.col("score") == "F1") & (pl.col("test") == "Pearson, log size"))
    size = rows.row(0, named=True)
    own = language_rows(run, "trained").sort("f1")["language"].to_list()
    return [
        Reported("Probes against TF-IDF n-grams", "both models are above", key="probe_above_ngrams", why="Paired difference of mean F1 from the best n-grams; 600 training sentences at most, and a small model."),
        Reported("F1 and amount of pretraining text", "correlated, in the 1.7 B model more than in the 176 B one", ours=_statistic(size), why="Few languages."),
        Reported("Languages with the lowest F1", "Bengali, Wolof, Yoruba", ours=", ".join(own[:3]), why="Other languages: those of PUD. Their tasks differ."),
    ]  # fmt: skip


def notes(run: RunFolder) -> list[str]:
    """What a careful reader should know of this part."""
    own = language_rows(run, "trained")
    more = own.filter(pl.col("kind").list.unique().list.len() > 1)["language"].to_list()
    found = [
        "Probing: a score says what a linear reader finds in the mean of a sentence's states, not that the model uses it. "
        "Many properties stand and fall with single words or endings, which n-grams have as they are.",
        "Probing: intervals draw test sentences, the same for all languages (they are translations), models and "
        "baselines. They cover neither the choice of the layer, nor the training sentences, nor another training of the model.",
        "Probing: the untrained model is drawn anew from the configuration, with one seed.",
    ]  # fmt: skip
    tested = (rows["test_sentences"].max() for rows in (run.table("probing_series"), own))
    if len({*tested}) > 1:
        found.append(
            "Probing: the checkpoints of the series are probed on fewer sentences than the last one beside its baselines, "
            "so scores there are lower. Only numbers on the same sentences are compared."
        )
    if more:
        found.append(
            f"Probing: {', '.join(more)} {'have' if len(more) > 1 else 'has'} few features that can be asked for, so parts "
            "of speech and dependency relations are among the tasks."
        )
    if run.manifest["record"].get("probing_common_tasks") == []:
        found.append("Probing: the languages have no task in common, so transfer was not tested.")
    return found


# -- text --------------------------------------------------------------------------------------------------------------


def told(summary: Mapping[str, Scalar], key: str, thing: str) -> str:
    """Whether a difference's interval leaves 0, in words, with its numbers."""
    value, lo, hi = (summary.get(f"{key}{end}") for end in ("", "_lo", "_hi"))
    if value is None or lo is None or hi is None:
        return f"not compared with {thing}"
    side = "above" if float(lo) > 0 else "below" if float(hi) < 0 else "not told apart from"
    return f"{side} {thing} ({float(value):+.3f} [{float(lo):+.3f}, {float(hi):+.3f}])"


def _languages_text(run: RunFolder, summary: Mapping[str, Scalar]) -> str:
    own = language_rows(run, "trained")
    beside = {}
    for name in ("untrained", "n-grams"):
        other = language_rows(run, name)
        ends = [
            difference(row, other.filter(language=language)).summary("x")
            for (language,), row in own.group_by("language", maintain_order=True)
        ]
        beside[name] = sum(end["x_lo"] is not None and end["x_lo"] > 0 for end in ends)
    parts = [
        f"Does a word of this sentence have this property? Logistic regressions read it from the mean of a sentence's states: {sum(map(len, own['task']))} tasks in {own.height} languages, {summary['probe_test_sentences']} sentences of each tested in some split. In the mean over languages, F1 of the last checkpoint is {float(summary['probe_f1_mean'] or 0):.3f}.",
        f"That is {told(summary, 'probe_above_random_init', 'an untrained model of the same shape')}, {told(summary, 'probe_above_ngrams', 'n-grams')} and {told(summary, 'probe_above_shuffled', 'the same states with shuffled labels')}.",
        f"Language by language it is clearly above the untrained model in {beside['untrained']} of {own.height}, and above n-grams in {beside['n-grams']}.",
    ]  # fmt: skip
    hi, lo = summary.get("probe_above_ngrams_hi"), summary.get("probe_above_ngrams_lo")
    if hi is not None and float(hi) < 0:
        parts.append("Pieces of words tell these properties better than this model's states do: what a probe finds here is no sign of grammar beyond word forms.")  # fmt: skip
    elif lo is not None and float(lo) <= 0:
        parts.append("So nothing shows that the states hold more of grammar than pieces of words do.")
    seen, unseen = summary.get("probe_above_random_init_seen_lo"), summary.get("probe_above_random_init_unseen_lo")
    if seen is not None and unseen is not None:
        parts.append(f"Languages that were trained on are {told(summary, 'probe_above_random_init_seen', 'the untrained model')}; held-out ones are {told(summary, 'probe_above_random_init_unseen', 'it')}.")  # fmt: skip
    return " ".join(parts)


def _layers_text(run: RunFolder, series: pl.DataFrame) -> str:
    layer, last = best_mean_layer(run, "trained"), series.filter(pl.col("order") >= 0)
    n_layers = int(run.table("probing_languages")["layer"].max())  # type: ignore[arg-type]
    text = f"Means over languages, on one sample of sentences for all checkpoints. On development sentences the last checkpoint is best at layer {layer} of {n_layers}."  # fmt: skip
    if last.height > 1:
        rows = _series_rows(run)
        first, end = int(last["order"][0]), int(last["order"][-1])
        change = difference(best_on_dev(rows.filter(order=end)), best_on_dev(rows.filter(order=first)))
        text += f" From step {first} to step {end}, F1 at the best layers changes by {change.value:+.3f} [{change.lo:+.3f}, {change.hi:+.3f}]."  # fmt: skip
    return text


def _task_text(run: RunFolder) -> str:
    rows = by_task(run)
    above = {name: rows.filter(pl.col(f"above {name}, lo") > 0)["task"].to_list() for name in ("untrained", "n-grams")}
    below = rows.filter(pl.col("above n-grams, hi") < 0).height

    def listed(names: list[str]) -> str:
        shown = ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
        return f"{len(names)} ({shown})" if names else "none"

    return (
        f"Means over the languages that have a task. Of {rows.height} tasks, the last checkpoint is clearly above the "
        f"untrained model in {listed(above['untrained'])}, above n-grams in {listed(above['n-grams'])} and below them in "
        f"{below}. So many intervals at 95 %: one in forty would lie above 0 by chance alone."
    )


def _transfer_text(run: RunFolder, summary: Mapping[str, Scalar]) -> str:
    tasks = run.manifest["record"].get("probing_common_tasks", [])
    return (
        f"Probes of one language (rows) answer in another (columns), on the {len(tasks)} tasks that all have "
        f"({', '.join(tasks)}), with each language's states centred and scaled by its own training sentences. Between "
        f"languages F1 is {float(summary['probe_transfer_mean'] or 0):.3f}, within one "
        f"{float(summary['probe_transfer_same_language'] or 0):.3f}. Between languages this is "
        f"{told(summary, 'probe_transfer_above_random_init', 'an untrained model, which shares tokens (digits, names, commas) between languages too')} and "
        f"{told(summary, 'probe_transfer_above_majority', 'answering as the majority does')}."
    )  # fmt: skip


def _factor_text(run: RunFolder) -> str:
    rows = run.table("probing_factors")
    said = "; ".join(
        f"{row['score']} with {row['factor']} ({row['test']}): {_statistic(row)}"
        for row in rows.filter(pl.col("test") == "Pearson, log size").iter_rows(named=True)
    )
    tested = rows.drop_nulls("p")
    small = tested.filter(pl.col("p") < 0.05).height
    return (
        f"{said}. Of {tested.height} tests, {small} have p below 0.05, uncorrected. Languages are few, and amount of text, "
        "script and family go together: no test here separates them. Held-out languages have size 0 and count for ranks alone. "
        "F1 by itself also depends on which tasks a language has; what it is above the baselines does so less."
    )


def _statistic(row: Mapping[str, object]) -> str:
    if row["statistic"] is None:
        return str(row["note"])
    ends = "" if row["lo"] is None else f" [{row['lo']:+.2f}, {row['hi']:+.2f}]"
    return f"{row['statistic']:+.2f}{ends}, p = {row['p']:.2f}, {row['languages']} languages"


# -- tables ------------------------------------------------------------------------------------------------------------


def _languages_table(run: RunFolder) -> pl.DataFrame:
    own = language_rows(run, "trained")
    others = {name: language_rows(run, name) for name in list(_COLOURS)[1:]}
    rows = []
    for (language,), one in own.group_by("language", maintain_order=True):
        row = one.row(0, named=True)
        found = {"language": language, "trained on": row["seen"], "tasks": len(row["task"]), "layer": row["layer"], "F1": row["f1"]}  # fmt: skip
        for name in ("untrained", "n-grams"):
            gain = difference(one, others[name].filter(language=language))
            found |= {f"above {name}": gain.value, f"above {name}, lo": gain.lo, f"above {name}, hi": gain.hi}
        grams = others["n-grams"].filter(language=language)["representation"][0]
        found["best n-grams of"] = grams.removesuffix(" n-grams")
        for name in ("shuffled labels", "majority"):
            found[name] = others[name].filter(language=language)["f1"][0]
        rows.append(found)
    return pl.DataFrame(rows)


def _series_rows(run: RunFolder) -> pl.DataFrame:
    """``order``: the step, -1 for the untrained model; ``name``: as shown."""
    step = pl.col("step")
    return run.table("probing_series").with_columns(
        order=step.fill_null(-1),
        name=pl.when(step.is_null()).then(pl.lit("untrained")).otherwise(pl.format("step {}", step)),
    )


def _at_best_layer(run: RunFolder) -> pl.DataFrame:
    rows = []
    for (order, name), some in _series_rows(run).group_by("order", "name", maintain_order=True):
        found = difference(best_on_dev(some))
        rows.append({"order": order, "model": name, "tokens read": some["read"][0], "F1 at the best layers": found.value, "lo": found.lo, "hi": found.hi})  # fmt: skip
    return pl.DataFrame(rows, schema_overrides={"tokens read": pl.Int64})


def _transfer_table(run: RunFolder) -> pl.DataFrame:
    rows, floor = moved(run), run.table("probing_transfer").filter(representation="majority")
    found = []
    for (target,), some in rows.group_by("target", maintain_order=True):
        others = some.filter(pl.col("source") != target)
        trained = others.filter(representation="trained")
        mean = difference(trained)
        above = difference(trained, others.filter(representation="untrained"))
        found.append(
            {
                "tested in": target, "fitted in it": some.filter((pl.col("source") == target) & (pl.col("representation") == "trained"))["f1"][0],
                "fitted in the others": mean.value, "lo": mean.lo, "hi": mean.hi, "above untrained": above.value,
                "above untrained, lo": above.lo, "above untrained, hi": above.hi, "majority": floor.filter(language=target)["f1"][0],
            }
        )  # fmt: skip
    return pl.DataFrame(found)


# -- figures -----------------------------------------------------------------------------------------------------------


def figures(run: RunFolder) -> dict[str, alt.TopLevelMixin]:
    """All figures of this part, by name."""
    charts = {
        "probing_languages": _languages(run),
        "probing_layers": _layers(run),
        "probing_layers_by_language": _layers_by_language(run),
    }
    if moved(run).height:
        charts["probing_transfer"] = _transfer(run)
    return charts


def _languages(run: RunFolder) -> alt.TopLevelMixin:
    rows = []
    for name in _COLOURS:
        for (language, seen), one in language_rows(run, name).group_by("language", "seen", maintain_order=True):
            found = difference(one)
            rows.append({"language": f"{language}{'' if seen else ' (held out)'}", "seen": seen, "model": name, "F1": found.value, "lo": found.lo, "hi": found.hi})  # fmt: skip
    frame = pl.DataFrame(rows)
    order = frame.filter(model="trained").sort(["seen", "F1"], descending=True)["language"].to_list()
    base = alt.Chart(frame).encode(
        y=alt.Y("language:N", title=None, sort=order),
        yOffset=alt.YOffset("model:N", sort=list(_COLOURS)),
        color=alt.Color("model:N", title=None, sort=list(_COLOURS), scale=alt.Scale(domain=list(_COLOURS), range=list(_COLOURS.values())), legend=alt.Legend(orient="top")),
    )  # fmt: skip
    points = base.mark_point(filled=True, size=36).encode(
        x=alt.X("F1:Q", title="weighted F1, mean over tasks", scale=alt.Scale(zero=False)),
        tooltip=["language", "model", *(alt.Tooltip(f"{key}:Q", format=".3f") for key in ("F1", "lo", "hi"))],
    )
    return (base.mark_rule().encode(x="lo:Q", x2="hi:Q") + points).properties(width=460, height=alt.Step(9))


def _colour(rows: pl.DataFrame) -> tuple[alt.Color, alt.StrokeDash]:
    """Checkpoints from early to late along the ramp; the untrained model dashed."""
    names = rows.sort("order")["name"].unique(maintain_order=True).to_list()
    steps = [name for name in names if name != "untrained"]
    last = max(1, len(steps) - 1)
    shades = dict(
        zip(steps, (RAMP[round(i * (len(RAMP) - 1) / last)] for i in range(len(steps))), strict=True), untrained=MUTED
    )
    dashes = [[4, 3] if name == "untrained" else [1, 0] for name in names]
    return (
        alt.Color("name:N", title=None, sort=names, scale=alt.Scale(domain=names, range=[shades[n] for n in names])),
        alt.StrokeDash("name:N", title=None, sort=names, scale=alt.Scale(domain=names, range=dashes)),
    )


def _layer_axis(rows: pl.DataFrame, title: str | None) -> alt.X:
    layers = sorted(set(rows["layer"]))
    return alt.X("layer:Q", title=title, axis=alt.Axis(values=layers[:: -(-len(layers) // 13)], format="d"))


def _layers(run: RunFolder) -> alt.TopLevelMixin:
    rows = _series_rows(run)
    means = []
    for (order, name, layer), some in rows.group_by("order", "name", "layer", maintain_order=True):
        found = difference(some)
        means.append({"order": order, "name": name, "layer": layer, "F1": found.value, "lo": found.lo, "hi": found.hi})
    frame = pl.DataFrame(means)
    colour, dash = _colour(frame)
    base = alt.Chart(frame).encode(x=_layer_axis(frame, "layer"), color=colour)
    f1 = alt.Y("F1:Q", title="weighted F1, mean over languages", scale=alt.Scale(zero=False))
    return (
        base.mark_rule(opacity=0.5).encode(y="lo:Q", y2="hi:Q")
        + base.mark_line().encode(y=f1, strokeDash=dash)
        + base.mark_point(filled=True, size=40).encode(y=f1, tooltip=["name", "layer", alt.Tooltip("F1:Q", format=".3f")])
    ).properties(width=460, height=280)  # fmt: skip


def _layers_by_language(run: RunFolder) -> alt.TopLevelMixin:
    rows = _series_rows(run).select("order", "name", "layer", "language", "f1")
    colour, dash = _colour(rows)
    line = alt.Chart().mark_line(point=alt.OverlayMarkDef(size=15)).encode(
        x=_layer_axis(rows, None),
        y=alt.Y("f1:Q", title="F1", scale=alt.Scale(zero=False)), color=colour, strokeDash=dash,
        tooltip=["language", "name", "layer", alt.Tooltip("f1:Q", format=".3f")],
    )  # fmt: skip
    return line.properties(width=115, height=100).facet(
        facet=alt.Facet("language:N", title=None), columns=5, data=rows
    ).resolve_scale(y="independent")  # fmt: skip


def _transfer(run: RunFolder) -> alt.TopLevelMixin:
    rows = moved(run).select("representation", "source", "target", "f1", "lo", "hi")
    ends = (float(rows["f1"].min()), float(rows["f1"].max()))  # type: ignore[arg-type]
    middle = sum(ends) / 2
    languages = rows["target"].unique(maintain_order=True).sort().to_list()
    panels = []
    for name in ("trained", "untrained"):
        base = alt.Chart(rows.filter(representation=name)).encode(
            x=alt.X("target:N", title="tested in", sort=languages, axis=alt.Axis(labelAngle=0)),
            y=alt.Y("source:N", title="fitted in", sort=languages),
        )
        cells = base.mark_rect().encode(
            color=alt.Color("f1:Q", title="F1", scale=alt.Scale(domain=list(ends))),
            tooltip=["source", "target", *(alt.Tooltip(f"{key}:Q", format=".3f") for key in ("f1", "lo", "hi"))],
        )
        text = base.mark_text(fontSize=9).encode(
            text=alt.Text("f1:Q", format=".2f"),
            color=alt.condition(alt.datum.f1 < middle, alt.value("#ffffff"), alt.value("#14181c")),
        )
        panels.append((cells + text).properties(title=name, width=alt.Step(26), height=alt.Step(22)))
    return alt.hconcat(*panels).resolve_scale(color="shared")
