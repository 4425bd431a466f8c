"""The figures and the report of `numeric-monotonic`, made from its tables alone."""

from collections.abc import Mapping
from typing import Any

import altair as alt
import numpy as np
import polars as pl

from inscape.data.properties import PROPERTIES
from inscape.runs import Headline, Page, Reported, Section
from inscape.runs.folder import RunFolder, Scalar
from inscape.runs.theme import MUTED, PALETTE

HEADLINES = (
    Headline("model_accuracy", "Facts answered", "Share of test entities whose fact the model writes exactly.", "The model"),
    Headline("n_missing", "Answers without a number", "Test entities whose answer could not be read; never counted as 0.", "The model"),
    Headline("r2_test", "R² on test", "Variance of the value that PLS reads from the entity's last token, entities never seen.", "Reading"),
    Headline("r2_test_shuffled", "R² with shuffled labels", "The same fit on permuted labels: what chance gives.", "Reading"),
    Headline("r2_above_names", "R² beyond names", "R² of the activations less R² of the names, on the same entities.", "Reading"),
    Headline("r2_name_floor", "R² from names alone", "A reader of character n-grams, without any model: names carry era and place.", "Reading"),
    Headline("k", "Components", "Chosen on dev entities.", "Reading"),
    Headline("layer", "Hidden state read", "Best on dev entities; 0 is the embeddings.", "Reading"),
    Headline("edit_layer", "Hidden state edited", "Of those that read at least half as well as the best, the one where an edit moves dev answers most.", "Editing"),
    Headline("n_never_moved", "Entities that never moved", "Of those edited; they have a slope of 0 and no rank correlation.", "Editing"),
    Headline("spearman_edit", "Spearman of dose and answer", "Mean over entities, signed. Blind to the size of the effect: read it with the slope.", "Editing"),
    Headline("spearman_random", "… random directions", "Mean over draws of |mean over entities|, equal norm at every step.", "Editing"),
    Headline("slope_edit", "Slope", "Change of the written number per unit of step; a step of 1 reaches the training extreme.", "Editing"),
    Headline("slope_edit_median", "Slope, median entity", "Not moved by a few wild answers.", "Editing"),
    Headline("slope_random_p95", "… random directions, 95th percentile", "Of |mean slope| over the random draws.", "Editing"),
    Headline("slope_shuffled", "… directions fitted to shuffled labels", "Mean |slope|. They lie where activations vary most, so they move answers too where the property is most of the variance.", "Editing"),
    Headline("share_parsed_edit", "Edited answers with a number", "Share over all steps.", "Editing"),
    Headline("share_in_range_edit", "Edited answers within the range of known values", "The rest are numbers that no training entity has.", "Editing"),
    Headline("main_effect_slope", "Effect on the property itself", "Mean |slope| in standard deviations of the property.", "Side effects"),
    Headline("side_effect_slope", "Effect on other properties", "The same direction, questions about other properties; mean |slope| in their standard deviations.", "Side effects"),
    Headline("side_effect_slope_random", "… random directions", "One of the same norm for every entity.", "Side effects"),
    Headline("main_effect_mean", "|Spearman|, the property itself", "Blind to size.", "Side effects"),
    Headline("side_effect_mean", "|Spearman|, other properties", "Blind to size.", "Side effects"),
    Headline("side_effect_random", "… random directions", "How high |Spearman| is for no reason.", "Side effects"),
    Headline("perplexity_unedited", "Perplexity of unedited answers", "Under the unedited model.", "Quality of the text"),
    Headline("perplexity_extremes", "… at the ends of the range", "Steps -1 and 1, scored by the unedited model.", "Quality of the text"),
)  # fmt: skip

REPORTED = (
    Reported("R² of birth year, Llama-2-13B, layer 12, 100 dev entities", "0.906 at k = 7 (README of the published code)", key="r2_test",
             why="Another model and other entities; here k is chosen on dev and R² is that of untouched test entities."),
    Reported("|Spearman| of one entity (Karl Popper), components 1 to 6", "0.91 0.87 0.72 0.97 0.98 0.39 (the paper's table)", key="abs_spearman_edit",
             why="Here: mean over entities of the first component. |Spearman| is near 1 for random directions too."),
    Reported("Random-direction baseline of the edit", "none in the published code", key="slope_random_p95", why="Added: without it |Spearman| can't be read."),
    Reported("Side effects", "a figure only; no number could be verified", key="side_effect_slope",
             why="Here the token window is found in the prompt that is measured."),
)  # fmt: skip


def figures(run: RunFolder) -> dict[str, alt.TopLevelMixin]:
    """All figures, by name."""
    charts = {
        "fit": _fit(run),
        "layers": _layers(run),
        "projection": _projection(run),
        "dose": _dose(run),
        "slopes": _slopes(run),
    }
    if run.table("side_effects")["measured"].n_unique() > 1:
        charts["side_effects"] = _side_effects(run)
    return charts


def _fit(run: RunFolder) -> alt.TopLevelMixin:
    names = {"pls": "PLS", "pca": "PCA + regression", "ridge": "ridge (all dimensions)"}
    curve = run.table("fit_curve").filter(pl.col("split") == "test").with_columns(pl.col("kind").replace(names))
    ridge = curve.filter(pl.col("kind").str.starts_with("ridge"))
    most = int(curve["k"].max())  # type: ignore[arg-type]
    ridge = pl.concat([ridge, ridge.with_columns(pl.lit(most, dtype=ridge["k"].dtype).alias("k"))])
    lines = pl.concat([curve.filter(~pl.col("kind").str.starts_with("ridge")), ridge]).select("kind", "k", "r2")
    controls = run.table("fit_controls").with_columns(
        pl.col("control").replace({"shuffled": "PLS, shuffled labels", "random": "PLS, random representations"})
    )
    floor = float(run.read_summary().get("r2_name_floor") or float("nan"))
    low = max(-1.0, float(controls["r2_lo"].min()))  # type: ignore[arg-type]
    scale = alt.Scale(domain=[min(low, 0.0) - 0.05, 1.0], clamp=True)
    base = alt.Chart(lines).mark_line(point=lines["k"].n_unique() < 12)
    fitted = base.encode(
        x=alt.X("k:Q", title="components"),
        y=alt.Y("r2:Q", title="R² on test entities", scale=scale),
        color=alt.Color("kind:N", title=None),
    )
    band = (
        alt.Chart(controls)
        .mark_area(opacity=0.18)
        .encode(x="k:Q", y=alt.Y("r2_lo:Q", title="R² on test entities"), y2="r2_hi:Q", color="control:N")
    )
    middle = alt.Chart(controls).mark_line(strokeDash=[4, 3]).encode(x="k:Q", y="r2:Q", color="control:N")
    rule = (
        alt.Chart(pl.DataFrame({"r2": [floor], "name": ["names alone, no model"]}))
        .mark_rule(strokeDash=[2, 2])
        .encode(y="r2:Q", tooltip="name:N")
    )
    return (band + middle + fitted + rule).properties(width=520, height=300)


def _layers(run: RunFolder) -> alt.TopLevelMixin:
    read = (
        run.table("layers")
        .filter(pl.col("split") != "train")
        .with_columns(pl.format("{} entities", "split").alias("on"))
    )
    moved = run.table("layer_effects").group_by("layer").agg(pl.col("slope").drop_nans().mean()).sort("layer")
    x = alt.X("layer:O", title="hidden state (0: embeddings)", axis=alt.Axis(labelAngle=0))
    top = (
        alt.Chart(read)
        .mark_line(point=True)
        .encode(x=x, y=alt.Y("r2:Q", title="readable: R²"), color=alt.Color("on:N", title=None))
    )
    bottom = alt.Chart(moved).mark_bar(width={"band": 0.6}).encode(x=x, y=alt.Y("slope:Q", title="editable: slope"))
    return alt.vconcat(top.properties(width=420, height=170), bottom.properties(width=420, height=170))


def _projection(run: RunFolder) -> alt.TopLevelMixin:
    table = run.table("projection").filter(pl.col("split") == "test")
    prop = PROPERTIES[str(run.read_summary()["property"])]
    # Colour by rank where values are heavy-tailed, or nearly all points would share one colour.
    skewed = prop.kind == "quantity"
    table = table.with_columns((pl.col("value").rank() / table.height).alias("rank"))
    colour = (
        alt.Color("rank:Q", title=f"{prop.name.replace('_', ' ')} (rank)")
        if skewed
        else alt.Color(
            "value:Q",
            title=prop.name.replace("_", " "),
            legend=alt.Legend(format="d" if prop.kind == "year" else ".3~f"),
        )
    )
    return (
        alt.Chart(table)
        .mark_circle(size=42, opacity=0.85)
        .encode(
            x=alt.X("component_1:Q", title="score on component 1"), y=alt.Y("component_2:Q", title="score on component 2"),
            color=colour, tooltip=["label:N", "value:Q"],
        ).properties(width=460, height=340)
    )  # fmt: skip


def _dose(run: RunFolder) -> alt.TopLevelMixin:
    edits = run.table("edits")
    main = run.manifest["config"]["direction"] + " 1"
    curves = (
        edits.filter((pl.col("direction") == main) | pl.col("kind").is_in(["random", "shuffled"]))
        .group_by("direction", "kind", "step")
        .agg(pl.col("number").median())
        .sort("direction", "step")
        .with_columns(
            pl.when(pl.col("direction") == main)
            .then(pl.lit("PLS component 1"))
            .otherwise(pl.col("kind") + pl.lit(" direction"))
            .alias("of")
        )
    )
    domain = ["PLS component 1", "random direction", "shuffled direction"]
    return (
        alt.Chart(curves)
        .mark_line()
        .encode(
            x=alt.X("step:Q", title="edit step (±1: extremes of the training scores)"),
            y=alt.Y("number:Q", title="median of the numbers written", scale=alt.Scale(zero=False), axis=alt.Axis(format="d")),
            color=alt.Color("of:N", title=None, scale=alt.Scale(domain=domain, range=[PALETTE[0], MUTED, PALETTE[1]])),
            detail="direction:N",
            opacity=alt.condition(alt.datum.of == "PLS component 1", alt.value(1.0), alt.value(0.4)),
            size=alt.condition(alt.datum.of == "PLS component 1", alt.value(3), alt.value(1)),
        ).properties(width=520, height=300)
    )  # fmt: skip


def effects_by_direction(run: RunFolder) -> pl.DataFrame:
    """One row per direction: means over entities."""
    return (
        run.table("effects")
        .group_by("direction", "kind", maintain_order=True)
        .agg(
            pl.col("spearman").drop_nans().mean().alias("Spearman"),
            pl.col("abs_spearman").drop_nans().mean().alias("|Spearman|"),
            pl.col("slope").drop_nans().mean().alias("slope"),
            pl.col("slope").drop_nans().median().alias("median slope"),
            pl.col("change").drop_nans().mean().alias("total change"),
            pl.col("parsed").mean().alias("share parsed"),
            pl.col("constant").sum().alias("never moved"),
        )
    )


def effects_in_short(run: RunFolder) -> pl.DataFrame:
    """`effects_by_direction` with the control draws of one kind in one row: means of sizes over draws."""
    table = effects_by_direction(run)
    controls = (
        table.filter(pl.col("kind").is_in(["random", "shuffled"]))
        .with_columns(pl.col("Spearman", "slope", "median slope", "total change").abs())
        .group_by("kind", maintain_order=True)
        .agg(pl.len().alias("draws"), pl.exclude("direction", "kind").mean())
        .with_columns(pl.format("{} ({} draws, mean size)", "kind", "draws").alias("direction"))
    )
    fitted = table.filter(~pl.col("kind").is_in(["random", "shuffled"])).with_columns(
        pl.col("never moved").cast(pl.Float64)
    )
    return pl.concat([fitted, controls.select(fitted.columns)]).drop("kind")


def _slopes(run: RunFolder) -> alt.TopLevelMixin:
    table = effects_by_direction(run).with_columns(
        pl.col("|Spearman|").alias("abs_rho"), pl.col("slope").abs().alias("size")
    )
    kinds = ["loadings", "weights", "coefficient", "random", "shuffled"]
    return (
        alt.Chart(table)
        .mark_point(filled=True, size=60, opacity=0.8)
        .encode(
            x=alt.X("abs_rho:Q", title="|Spearman|, mean over entities", scale=alt.Scale(domain=[0, 1])),
            y=alt.Y("size:Q", title="|slope|, mean over entities"),
            color=alt.Color("kind:N", title="direction", scale=alt.Scale(domain=kinds)), shape=alt.Shape("kind:N", title="direction", scale=alt.Scale(domain=kinds)),
            tooltip=["direction:N", alt.Tooltip("Spearman:Q", format=".3f"), alt.Tooltip("slope:Q", format=".3~f"), alt.Tooltip("share parsed:Q", format=".2f")],
        ).properties(width=460, height=300)
    )  # fmt: skip


def _side_effects(run: RunFolder) -> alt.TopLevelMixin:
    cells = run.table("side_effects").group_by("fitted_on", "measured", maintain_order=True).agg(
        pl.col("abs_spearman").drop_nans().mean(), pl.col("slope_sd").drop_nans().mean()
    )  # fmt: skip
    order = cells["fitted_on"].unique(maintain_order=True).to_list()
    panels = []
    kinds: tuple[tuple[str, str, Any], ...] = (
        ("abs_spearman", "|Spearman|", "blues"),
        ("slope_sd", "slope, in sd of the property", "purpleorange"),
    )
    for field, title, scheme in kinds:
        most = float(cells[field].abs().drop_nulls().max() or 1.0)  # type: ignore[arg-type]
        domain = [0, 1] if field == "abs_spearman" else [-most, most]
        base = alt.Chart(cells).encode(
            x=alt.X("measured:N", sort=order, title="asked about", axis=alt.Axis(labelAngle=-35)),
            y=alt.Y("fitted_on:N", sort=order, title="direction fitted on"),
        )
        strong = (
            (alt.datum[field] > 0.6)
            if field == "abs_spearman"
            else ((alt.datum[field] > 0.6 * most) | (alt.datum[field] < -0.6 * most))
        )
        colour = base.mark_rect().encode(
            color=alt.Color(
                f"{field}:Q",
                title=None,
                legend=alt.Legend(orient="bottom", gradientLength=200),
                scale=alt.Scale(scheme=scheme, domain=domain),
            )
        )
        text = base.mark_text().encode(
            text=alt.Text(f"{field}:Q", format=".2f"),
            color=alt.condition(strong, alt.value("#ffffff"), alt.value("#14181c")),
        )
        panels.append((colour + text).properties(width=250, height=220, title=title))
    return alt.hconcat(*panels).resolve_scale(color="independent")


def popper_tables(run: RunFolder) -> list[tuple[str, pl.DataFrame]]:
    """The paper's table of outputs along the direction: of the entities asked for, else of one of median slope.

    ``[(label, table)]``: a row per step, a column per component edited, first lines of the outputs as written.
    """
    config = run.manifest["config"]
    facts = run.table("projection").select("entity_id", "label")
    effects = run.table("effects").filter(pl.col("direction") == f"{config['direction']} 1").join(facts, on="entity_id")
    shown = effects.filter(pl.col("label").is_in(list(config["show"])))
    if shown.is_empty():
        typical = effects.drop_nans("slope").sort("slope")
        pool = typical if typical.height else effects
        shown = pool[pool.height // 2 : pool.height // 2 + 1]
    edits = (
        run.table("edits")
        .filter((pl.col("kind") == config["direction"]) & ~pl.col("direction").str.contains("norm"))
        .with_columns(
            pl.col("output").str.strip_chars().str.split("\n").list.first(), ("component " + pl.col("which")).alias("c")
        )
    )
    return [
        (
            label,
            edits.filter(pl.col("entity_id") == entity)
            .pivot("c", index="step", values="output")
            .sort("step", descending=True),
        )
        for entity, label in shown.select("entity_id", "label").iter_rows()
    ]


def examples(run: RunFolder) -> pl.DataFrame:
    """Answers of some test entities along the first component: a row per entity, steps from -1 to 1."""
    config = run.manifest["config"]
    rows = run.table("edits").filter(pl.col("direction") == f"{config['direction']} 1")
    facts = run.table("projection").select("entity_id", "label", "value")
    steps = sorted(rows["step"].unique().to_list())
    shown = [
        steps[i]
        for i in sorted({0, len(steps) // 4, len(steps) // 2, -1 - len(steps) // 4 + len(steps), len(steps) - 1})
    ]
    ids = (
        facts.filter(pl.col("entity_id").is_in(rows["entity_id"].unique().implode()))
        .sort("value")["entity_id"]
        .to_list()
    )
    some = ids[:: max(1, len(ids) // 8)][:9]
    wide = rows.filter(pl.col("entity_id").is_in(some) & pl.col("step").is_in(shown)).with_columns(
        pl.col("output").str.strip_chars().str.split("\n").list.first(),
        pl.format("step {}", pl.col("step").round(2)).alias("at"),
    )
    return (
        facts.join(wide.pivot("at", index="entity_id", values="output"), on="entity_id").sort("value").drop("entity_id")
    )


def verdict(summary: Mapping[str, Scalar]) -> str:
    """What came out, in words that follow from the intervals alone."""

    def number(key: str) -> float:
        value = summary.get(key)
        return float("nan") if value is None else float(value)

    beyond_chance = number("r2_test_lo") > number("r2_test_shuffled_hi") and number("r2_test_lo") > 0
    if beyond_chance and number("r2_above_names_lo") > 0:
        reading = "The value can be read from the activations, beyond chance and beyond what names alone give away."
    elif beyond_chance:
        reading = "The value can be read from the activations beyond chance, but not clearly beyond what names alone give away: this is no evidence of knowledge."
    elif np.isnan(number("r2_test_lo")):
        reading = "Whether the value can be read from the activations could not be determined."
    else:
        reading = "The value can not be read from the activations beyond chance."
    if summary.get("slope_edit") is None or number("n_missing") >= number("n_entities"):
        return f"{reading} The model writes no numbers here, so there is nothing to move: no effect of the edit is claimed."
    rival = (
        "95 % of random directions"
        if number("n_random") >= 20
        else f"the 95th percentile of only {summary['n_random']} random directions"
    )
    if number("slope_edit_hi") < -number("slope_random_p95"):
        editing = (
            "Moving along the direction moves the number written *against* the direction in which the value rises."
        )
    elif number("slope_edit_lo") > number("slope_random_p95"):
        editing = f"Moving along the direction moves the number that the model writes, by more than {rival} of the same norm do ({number('slope_edit'):.3g} against {number('slope_random_p95'):.3g} per unit of step)."
        if number("slope_edit_median_lo") <= number("slope_random_median_p95"):
            editing += " That is so for the mean over entities, not for the median: a few entities carry the effect."
        editing += (
            f" Directions fitted to shuffled labels move it by {number('slope_shuffled'):.3g}, one way or the other."
        )
    else:
        editing = "The edit moves the written number no more than random directions of the same norm may: no effect is claimed."
    return f"{reading} {editing}"


def page(run: RunFolder) -> Page:
    """The report."""
    summary = run.read_summary()
    config = run.manifest["config"]
    prop = str(summary["property"])
    sections = [
        Section("Where the value is readable, and where it is editable",
                "For each layer: how well PLS reads the value (dev chose the number of components), and how far an edit at this layer alone "
                "moves the number written, on dev entities. Readable and editable are two questions: after the last block nothing at the "
                "entity's token can reach the answer.", "layers"),
        Section("Reading the value", "R² on test entities against the number of components, beside the controls. Bands: 95 % of single draws. "
                "The dashed line is the reader of names, which needs no model.", "fit"),
        Section("Entities on the first two components", "Test entities, none of which the fit has seen, coloured by value.", "projection"),
        Section("Editing the value", "The median number written over the entities, as the first component is moved over the range of its training "
                "scores; thin lines are directions of the same norm.", "dose"),
        Section("Rank correlation is blind to size", "Each point is a direction. A direction that moves the answer by a little, always the same "
                "way, has the same |Spearman| as one that moves it by centuries: read both axes.", "slopes", effects_in_short(run),
                caption="Means over entities; slope per unit of step, in the property's unit."),
        *(
            Section(f"Outputs along the components: {label}", "The paper's table (2a): what is written as each component is moved.", table=table,
                    caption="Rows: step. Columns: component.")
            for label, table in popper_tables(run)
        ),
        Section("Outputs along the first component", "Entities from the lowest to the highest value.", table=examples(run)),
    ]  # fmt: skip
    if "side_effects" in run.figures or run.table("side_effects")["measured"].n_unique() > 1:
        sections.append(
            Section("Side effects", "A direction fitted on one property, questions about another. The diagonal is the effect, the rest are side "
                    "effects. Properties of the same people or places are correlated, so some are expected.", "side_effects")
        )  # fmt: skip
    notes = list(run.manifest["record"].get("facts_notes", []))
    if summary.get("n_missing"):
        notes.append(
            f"{summary['n_missing']} of {summary['n_entities']} test entities got no readable answer before any edit; they count as missing."
        )
    return Page(
        title=f"Is {prop.replace('_', ' ')} a direction?",
        lede=f"{verdict(summary)} Model: {run.manifest['record'].get('model')}, property: {prop}, direction: {config['direction']} of "
        f"component 1, read at hidden state {summary['layer']} and edited at {summary['edit_layer']} of {summary['n_layers']}.",
        headlines=HEADLINES, sections=sections, reported=REPORTED, notes=notes,
        paper="Heinzerling & Inui: Monotonic Representation of Numeric Attributes in Language Models. ACL 2024 (short), arXiv 2403.10381",
    )  # fmt: skip
