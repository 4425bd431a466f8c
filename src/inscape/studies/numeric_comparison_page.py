"""The figures and the report of `numeric-comparison`, made from its tables alone."""

from collections.abc import Mapping

import altair as alt
import polars as pl

from inscape.runs import Headline, Page, Reported, Section
from inscape.runs.folder import RunFolder, Scalar
from inscape.runs.theme import MUTED, PALETTE
from inscape.studies.numeric_comparison_summary import FIRST, MAIN

HEADLINES = (
    Headline("accuracy", "Questions answered rightly", "Test pairs; chance is 0.5.", "The model"),
    Headline("accuracy_one_entity_floor", "… by looking at one entity only", "Whether X lies below the median: what can be had without comparing.", "The model"),
    Headline("consistency", "Consistency", "The swapped question gets the opposite answer.", "The model"),
    Headline("n_invalid_answers", "Neither Yes nor No", "Test questions.", "The model"),
    Headline("r2_best_layer", "R² of the value", "PLS at the entities' last tokens inside the questions, test entities in no training question; layer chosen on dev.", "Reading"),
    Headline("r2_layer", "… at layer", "Best on dev.", "Reading"),
    Headline("flip_valid_at_best_alpha", "Answers turned", "To the valid opposite, at one α and one layer chosen on dev. One α turns one class, so 0.5 is about the most.", "Intervention"),
    Headline("flip_random_p95", "… random directions, 95th percentile", "Each draw at its own best α.", "Intervention"),
    Headline("flip_both_signs", "Answers turned, each class at its sign", "Both α chosen on dev, of opposite signs.", "Intervention"),
    Headline("flip_both_signs_random_p95", "… random directions, 95th percentile", "Each draw at its own best pair of α.", "Intervention"),
    Headline("flip_first_entity", "First entity edited instead", "At the opposite α: editing the first entity must turn answers the other way.", "Intervention"),
    Headline("flip_any_alpha_paper", "Changed at any α (the paper's count)", "Any change, garbage too, at any α: saturates.", "Intervention"),
    Headline("flip_any_alpha_random", "… random directions, mean", "The same count.", "Intervention"),
    Headline("invalid_rate", "Invalid answers", "Edited answers that are neither Yes nor No, at the best α.", "Intervention"),
    Headline("best_layer", "Layer of the intervention", "Most valid flips on dev questions.", "Intervention"),
)  # fmt: skip

REPORTED = (
    Reported("R² with 5 components", "no table value could be verified", key="r2_best_layer",
             why="The published split is by row: an entity may stand on both sides. Here it is by entity."),
    Reported("Share of answers changed by the intervention", "a figure only; any change at any α counts", key="flip_any_alpha_paper",
             why="Reported beside the stricter count: one α, valid opposite."),
    Reported("Random baseline", "one vector", key="flip_random_p95", why="Here at least 20 draws, at the same norms."),
)  # fmt: skip


def figures(run: RunFolder) -> dict[str, alt.TopLevelMixin]:
    """All figures, by name."""
    charts: dict[str, alt.TopLevelMixin] = {"layers": _layers(run)}
    if run.table("flips").height:
        charts["flips"] = _flips(run)
        charts["classes"] = _classes(run)
    return charts


def _layers(run: RunFolder) -> alt.TopLevelMixin:
    k = int(run.read_summary()["k"])  # type: ignore[arg-type]
    read = (
        run.table("layers")
        .filter((pl.col("k") == k) & (pl.col("split") != "train"))
        .with_columns(pl.format("{} entities", "split").alias("on"))
    )
    x = alt.X("layer:O", title="hidden state (0: embeddings)", axis=alt.Axis(labelAngle=0))
    top = (
        alt.Chart(read)
        .mark_line(point=True)
        .encode(x=x, y=alt.Y("r2:Q", title=f"readable: R², {k} components"), color=alt.Color("on:N", title=None))
    )
    charts = [top.properties(width=420, height=170)]
    turned = run.table("layer_flips")
    if turned.height:
        best = turned.group_by("layer").agg(pl.col("flip_valid").max()).sort("layer")
        bars = (
            alt.Chart(best)
            .mark_bar(width={"band": 0.6})
            .encode(x=x, y=alt.Y("flip_valid:Q", title="turned, best α (dev)"))
        )
        charts.append(bars.properties(width=420, height=170))
    return alt.vconcat(*charts)


def _named(run: RunFolder) -> pl.DataFrame:
    return run.table("flips").with_columns(
        pl.when(pl.col("direction").str.starts_with("random"))
        .then(pl.lit("random, second entity"))
        .otherwise(pl.col("direction"))
        .alias("of")
    )


def _flips(run: RunFolder) -> alt.TopLevelMixin:
    domain = [MAIN, FIRST, "random, second entity"]
    unit = "residual norms" if run.manifest["config"]["alpha_unit"] == "norm" else "absolute"
    base = alt.Chart(_named(run)).encode(
        x=alt.X("alpha:Q", title=f"α ({unit})"),
        color=alt.Color(
            "of:N",
            title=None,
            scale=alt.Scale(domain=domain, range=[PALETTE[0], PALETTE[1], MUTED]),
            legend=alt.Legend(orient="top", symbolType="stroke"),
        ),
        detail="direction:N",
        opacity=alt.condition(alt.datum.of == "random, second entity", alt.value(0.35), alt.value(1.0)),
    )
    valid = base.mark_line().encode(
        y=alt.Y("flip_valid:Q", title="turned to the valid opposite", scale=alt.Scale(domain=[0, 1]))
    )
    invalid = base.mark_line().encode(y=alt.Y("invalid:Q", title="neither Yes nor No", scale=alt.Scale(domain=[0, 1])))
    return alt.hconcat(valid.properties(width=300, height=240), invalid.properties(width=300, height=240))


def _classes(run: RunFolder) -> alt.TopLevelMixin:
    rows = run.table("flips").filter(pl.col("direction").str.starts_with("PLS"))
    long = rows.unpivot(
        ["flip_from_yes", "flip_from_no"], index=["direction", "alpha"], variable_name="from", value_name="share"
    ).with_columns(
        pl.col("from").replace({"flip_from_yes": "answered Yes before", "flip_from_no": "answered No before"})
    )
    return (
        alt.Chart(long)
        .mark_line()
        .encode(
            x=alt.X("alpha:Q", title="α"), y=alt.Y("share:Q", title="turned", scale=alt.Scale(domain=[0, 1])), color=alt.Color("from:N", title=None, legend=alt.Legend(orient="top", symbolType="stroke")),
            column=alt.Column("direction:N", title=None),
        ).properties(width=280, height=220)
    )  # fmt: skip


def verdict(summary: Mapping[str, Scalar]) -> str:
    """What came out, in words that follow from the intervals alone."""

    def number(key: str) -> float:
        value = summary.get(key)
        return float("nan") if value is None else float(value)

    if number("n_invalid_answers") >= number("n_pairs"):
        behaviour = "The model answers neither Yes nor No."
    elif number("accuracy_above_floor_lo") > 0:
        behaviour = f"The model compares: {number('accuracy'):.0%} right, where looking at one entity gives {number('accuracy_one_entity_floor'):.0%}."
    elif number("accuracy_lo") > 0.5:
        behaviour = f"The model is right in {number('accuracy'):.0%}, better than chance but not better than looking at one entity only."
    elif number("accuracy_hi") < 0.5:
        behaviour = f"The model is right in only {number('accuracy'):.0%} of the questions, less than chance."
    else:
        behaviour = "The model does not compare better than chance."
    n = summary.get("n_random")
    if summary.get("flip_both_signs") is None:
        turned = "It gave too few right answers of both kinds for any to be turned: no effect is claimed."
    elif number("flip_both_signs_lo") > number("flip_both_signs_random_p95"):
        rival = (
            "95 % of random directions"
            if number("n_random") >= 20
            else f"the 95th percentile of only {n} random directions"
        )
        turned = f"Moving the second entity along the first PLS component turns {number('flip_both_signs'):.0%} of the answers to the valid opposite, more than {rival} ({number('flip_both_signs_random_p95'):.0%})."
    else:
        turned = "Moving the second entity along the first PLS component turns no more answers than random directions may: no effect is claimed."
    return f"{behaviour} {turned}"


def examples(run: RunFolder) -> pl.DataFrame:
    """Some questions, with the answers before and at the ends of the α range."""
    edits = run.table("interventions").filter(pl.col("direction") == MAIN)
    ends = [edits["alpha"].min(), run.read_summary()["best_alpha"], edits["alpha"].max()]
    rows = edits.filter(pl.col("alpha").is_in(ends)).with_columns(
        pl.format("α = {}", pl.col("alpha").round(2)).alias("at")
    )
    wide = rows.pivot("at", index="pair_id", values="edited", aggregate_function="first")
    pairs = (
        run.table("pairs").filter(pl.col("split") == "test").select("pair_id", "prompt", "x_value", "y_value", "answer")
    )
    joined = pairs.join(wide, on="pair_id")
    half = joined.height // 2
    return pl.concat([joined.sort("answer").head(half).head(6), joined.sort("answer").tail(half).head(6)]).drop(
        "pair_id"
    )


def page(run: RunFolder) -> Page:
    """The report."""
    summary = run.read_summary()
    config = run.manifest["config"]
    prop = str(summary["property"]).replace("_", " ")
    sections = [
        Section("Where the values are readable, and where moving them turns the answer",
                "Above: R² of PLS on the values of both entities. Below: share of dev answers turned to the valid opposite, at each layer's best α. "
                "After the last block nothing at an entity's token can reach the answer.", "layers")
    ]  # fmt: skip
    notes = list(run.manifest["record"].get("facts_notes", []))
    if run.table("flips").height:
        sections += [
            Section("Turning the answer", "Test questions at the layer chosen on dev, both classes of answers together. Thin grey: random directions of the "
                    "same norm.", "flips"),
            Section("One sign turns one class", "Making the second entity's value larger can only turn the answers of one class; a count over both signs "
                    "and any α hides that. Editing the first entity is a control with a known outcome: each class must turn at the opposite sign.", "classes"),
            Section("Questions and answers", table=examples(run), caption="The column “answer” is the unedited one."),
        ]  # fmt: skip
    else:
        notes.append("No test question got a valid answer, so there was none to turn.")
    if summary.get("n_invalid_answers"):
        notes.append(f"{summary['n_invalid_answers']} of {summary['n_pairs']} test questions got neither Yes nor No.")
    if fitted_on := run.manifest["record"].get("fitted_on"):
        notes.append(f"PLS was fitted on {fitted_on}.")
    return Page(
        title=f"Is {prop} compared in a linear subspace?",
        lede=f"{verdict(summary)} Model: {run.manifest['record'].get('model')}, property: {prop}, direction: {config['direction']} of component 1 "
        f"at hidden state {summary['best_layer']} of {summary['n_layers']}.",
        headlines=HEADLINES, sections=sections, reported=REPORTED, notes=notes,
        paper="El-Shangiti, Hiraoka, AlQuabeh, Heinzerling & Inui: The Geometry of Numerical Reasoning. NAACL 2025 (short), arXiv 2410.13194",
    )  # fmt: skip
