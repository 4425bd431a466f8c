"""The figures of `detokenization`, made from its tables alone."""

from typing import Any

import altair as alt
import polars as pl

from inscape.runs.folder import RunFolder
from inscape.runs.theme import GRID, MUTED, PALETTE
from inscape.studies.detokenization_summary import AT_INIT, TRAINED, UNIGRAM, by_scorer, term_importance

_MEASURED = {
    "observed": "on texts",
    "predicted": "positions alone",
    "by_frequency": "positions, tokens by frequency",
}
"""Profiles, as the legend names them. The last averages tokens by their frequency in the text, the second all alike."""

_COLOURS = {"on texts": PALETTE[0], "positions alone": PALETTE[1], "positions, tokens by frequency": PALETTE[2]}
_ROC = {TRAINED: "best head", AT_INIT: "best head at init", UNIGRAM: "token frequency"}
_TERMS = {
    "ee": "token × token", "ep": "token × position", "pe": "position × token", "pp": "position × position",
    "e": "bias × token", "p": "bias × position", "q": "token × bias", "pos": "bias × bias", "alibi": "ALiBi",
}  # fmt: skip
_BOUNDS = {"auroc": "", "lo": "_lo", "hi": "_hi"}
_MANY_HEADS = 16


def figures(run: RunFolder) -> dict[str, alt.TopLevelMixin]:
    """All figures, by name."""
    charts: dict[str, alt.TopLevelMixin] = {"profiles": _profiles(run)}
    if "attention" in run.tables:
        charts["importance"] = _importance(run)
    if "auroc" in run.tables:
        charts["auroc"] = _auroc(run)
        charts["roc"] = _roc(run)
        charts["heads"] = _one_head(run)
    return charts


def _profile_rows(run: RunFolder) -> pl.DataFrame:
    """``head``, ``distance``, ``of``, ``mass``; the last entry of a profile, all that is farther, is left out."""
    rows = run.table("positions").select("head", "distance", "predicted")
    if "attention" in run.tables:
        observed = run.table("attention").select("head", "profile").explode("profile")
        width = rows["distance"].n_unique()
        observed = (
            observed.with_columns((pl.int_range(pl.len()) % width).alias("distance"))
            .group_by("head", "distance")
            .agg(pl.col("profile").mean().alias("observed"))
        )
        again = run.table("positions_by_frequency").select(
            "head", "distance", pl.col("predicted").alias("by_frequency")
        )
        for more in (observed, again):
            rows = rows.join(more, on=["head", "distance"], how="left", maintain_order="left")
    rows = rows.filter(pl.col("distance") < pl.col("distance").max())
    long = rows.unpivot(index=["head", "distance"], variable_name="of", value_name="mass")
    return long.with_columns(pl.col("of").replace_strict(_MEASURED))


def _lines(rows: pl.DataFrame) -> alt.Chart:
    return (
        alt.Chart(rows)
        .mark_line()
        .encode(
            x=alt.X("distance:Q", title="tokens back (0: itself)"),
            y=alt.Y("mass:Q", title="attention"),
            color=alt.Color(
                "of:N", title=None, sort=list(_COLOURS),
                scale=alt.Scale(domain=list(_COLOURS), range=list(_COLOURS.values())),
                legend=alt.Legend(orient="top", symbolType="stroke"),
            ),
            strokeDash=alt.StrokeDash(
                "of:N", legend=None, scale=alt.Scale(domain=list(_COLOURS), range=[[1, 0], [6, 3], [2, 3]])
            ),
        )
    )  # fmt: skip


def _profiles(run: RunFolder) -> alt.TopLevelMixin:
    rows = _profile_rows(run).filter(pl.col("head") < _MANY_HEADS)
    columns = min(4, rows["head"].n_unique())
    return (
        _lines(rows)
        .properties(width=130, height=110)
        .facet(
            facet=alt.Facet("head:O", title=None, header=alt.Header(labelExpr="'head ' + datum.value")), columns=columns
        )
        .resolve_scale(y="independent")
    )


def _importance(run: RunFolder) -> alt.TopLevelMixin:
    rows = _named_terms(run)
    base = alt.Chart(rows).encode(
        x=alt.X("head:O", title="head", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("term:N", title=None, sort=list(_TERMS.values())),
    )
    most = float(rows["importance"].max() or 1.0)  # type: ignore[arg-type]
    cells = base.mark_rect().encode(color=alt.Color("importance:Q", title="KL", scale=alt.Scale(domainMin=0)))
    text = base.mark_text(fontSize=11).encode(
        text=alt.Text("importance:Q", format=".2f"),
        color=alt.condition(alt.datum.importance > most / 2, alt.value("#1f2328"), alt.value("#fefefd")),
    )
    chart = alt.layer(cells, text) if rows["head"].n_unique() <= _MANY_HEADS else alt.layer(cells)
    return chart.properties(width={"step": 44}, height={"step": 26})


def _named_terms(run: RunFolder) -> pl.DataFrame:
    config = run.manifest["config"]
    rows = term_importance(run, config["published"], config["seed"]).filter(pl.col("term") != "r")
    return rows.with_columns(pl.col("term").replace_strict(_TERMS), pl.col("importance").fill_nan(None))


def _auroc(run: RunFolder) -> alt.TopLevelMixin:
    summary = run.read_summary()
    rows = pl.DataFrame(
        [
            {"head": head, **{name: summary[f"auroc_head_{head}{end}"] for name, end in _BOUNDS.items()}}
            for scorer, head in by_scorer(run, False)
            if scorer == TRAINED
        ]
    )  # fmt: skip
    lines = pl.DataFrame(
        {
            "what": [_ROC[UNIGRAM], _ROC[AT_INIT]],
            "at": [summary["auroc_unigram"], summary["auroc_best_head_at_init"]],
        }
    )
    x = alt.X("head:O", title="head", axis=alt.Axis(labelAngle=0))
    y = alt.Y("auroc:Q", title="mean AUROC", scale=alt.Scale(domain=[0, 1]))
    bars = alt.Chart(rows).mark_bar(width={"band": 0.6}).encode(x=x, y=y)
    spans = alt.Chart(rows).mark_rule(color=MUTED, strokeWidth=2).encode(x=x, y="lo:Q", y2="hi:Q")
    rules = (
        alt.Chart(lines)
        .mark_rule(strokeWidth=2, strokeDash=[6, 3])
        .encode(
            y="at:Q",
            color=alt.Color(
                "what:N", title=None, scale=alt.Scale(domain=lines["what"].to_list(), range=[PALETTE[1], MUTED]),
                legend=alt.Legend(orient="top", symbolType="stroke"),
            ),
        )
    )  # fmt: skip
    return alt.layer(bars, spans, rules).properties(width=max(260, 30 * rows.height), height=220)


def _roc(run: RunFolder) -> alt.TopLevelMixin:
    areas = run.table("roc").group_by("scorer", "head", maintain_order=True).agg(pl.col("tpr").mean().alias("area"))
    best = areas.sort("area", descending=True, maintain_order=True).group_by("scorer", maintain_order=True).first()
    rows = run.table("roc").join(best.select("scorer", "head"), on=["scorer", "head"], maintain_order="left")
    rows = rows.with_columns(pl.col("scorer").replace_strict(_ROC))
    curves = (
        alt.Chart(rows)
        .mark_line()
        .encode(
            x=alt.X("fpr:Q", title="share of other tokens above"),
            y=alt.Y("tpr:Q", title="share of true prefixes above"),
            color=alt.Color(
                "scorer:N", title=None, sort=list(_ROC.values()),
                scale=alt.Scale(domain=list(_ROC.values()), range=[PALETTE[0], MUTED, PALETTE[1]]),
                legend=alt.Legend(orient="top", symbolType="stroke"),
            ),
        )
    )  # fmt: skip
    chance = (
        alt.Chart(pl.DataFrame({"x": [0.0, 1.0]}))
        .mark_line(color=GRID, strokeWidth=1)
        .encode(x=alt.X("x:Q"), y=alt.Y("x:Q"))
    )
    return alt.layer(chance, curves).properties(width=320, height=300)


def _one_head(run: RunFolder) -> alt.TopLevelMixin:
    """All that is known of one head, with a picker."""
    n = run.table("heads").height
    best = int(run.read_summary()["best_head"])  # type: ignore[arg-type]
    head = alt.param(name="head", value=best, bind=alt.binding_select(options=list(range(n)), name="Head "))
    here = alt.datum.head == head
    profile = (
        _lines(_profile_rows(run))
        .transform_filter(here)
        .properties(width=250, height=150, title=_small("Attention by distance"))
    )
    bars = (
        alt.Chart(_named_terms(run))
        .transform_filter(here)
        .mark_bar(color=PALETTE[2])
        .encode(
            x=alt.X("importance:Q", title="KL when left out"), y=alt.Y("term:N", title=None, sort=list(_TERMS.values()))
        )
        .properties(width=190, height=150, title=_small("Terms"))
    )
    top = alt.hconcat(profile, bars)
    return alt.vconcat(top, _prefixes(run).transform_filter(here)).add_params(head).resolve_scale(color="independent")


def _prefixes(run: RunFolder) -> alt.Chart:
    rows = run.table("prefixes").with_columns(
        pl.coalesce("prefix_text", pl.format("#{}", "prefix"))
        .map_elements(_visible, return_dtype=pl.String)
        .alias("token"),
        pl.coalesce("suffix_text", pl.format("#{}", "suffix"))
        .map_elements(_visible, return_dtype=pl.String)
        .alias("of"),
        (pl.col("count") > 0).alias("seen"),
    )
    order = rows.select("of").unique(maintain_order=True)["of"].to_list()
    return (
        alt.Chart(rows)
        .mark_text(fontSize=12)
        .encode(
            x=alt.X(
                "of:N", title="suffix", sort=order,
                axis=alt.Axis(orient="top", labelAngle=0, ticks=False, domain=False),
            ),
            y=alt.Y("rank:O", title=None),
            text="token:N",
            color=alt.Color(
                "seen:N", title=None, scale=alt.Scale(domain=[True, False], range=[PALETTE[0], PALETTE[6]]),
                legend=alt.Legend(orient="bottom", labelExpr="datum.value ? 'before it in the text' : 'never before it'"),
            ),
            tooltip=["token:N", "of:N", alt.Tooltip("score:Q", format=".2f"), "count:Q"],
        )
        .properties(width={"step": 88}, height={"step": 18}, title=_small("Prefixes that score highest"))
    )  # fmt: skip


def _visible(text: str) -> str:
    """A token as a reader can see it: its spaces marked, its control characters named."""
    shown = text.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥")
    return "".join(sign if sign.isprintable() else f"\\x{ord(sign):02x}" for sign in shown) or "(empty)"


def _small(text: str) -> Any:
    return alt.Title(text, fontSize=12)
