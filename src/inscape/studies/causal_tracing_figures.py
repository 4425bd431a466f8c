"""The figures of `causal-tracing`, made from its tables alone."""

from collections.abc import Sequence
from typing import Any

import altair as alt
import polars as pl

from inscape.runs.folder import RunFolder
from inscape.runs.theme import MUTED, PALETTE, RAMP
from inscape.studies.causal_tracing_maps import ATTRIBUTION, PATCH_MAPS, moved, side_by_side
from inscape.studies.causal_tracing_sweeps import CLEAN, DENOISING, NOISING, SECOND_NOISE, UNRELATED, UNRELATED_PATCH
from inscape.studies.causal_tracing_tokens import FIRST, LAST, LAST_SUBJECT, MIDDLE, ROLES

_SITES = {"resid_post": "hidden state", "mlp_out": "MLP", "attn_out": "attention"}
_STATES = {
    CLEAN: "state of the clean run",
    UNRELATED: "control: state of an unrelated prompt",
    SECOND_NOISE: "control: state of a run with other noise",
}
_MAPS = {
    DENOISING: "activation patching",
    ATTRIBUTION: "attribution (one gradient)",
    NOISING: "noising: share lost",
    UNRELATED_PATCH: "control: unrelated prompt",
}


def figures(run: RunFolder) -> dict[str, alt.TopLevelMixin]:
    """All figures, by name."""
    charts: dict[str, alt.TopLevelMixin] = {}
    if "role_map" in run.tables:
        charts |= {"tracing": _tracing(run), "curves": _curves(run), "example": _example(run)}
    if "patch_map" in run.tables and run.table("patch_map").height:
        charts["patching"] = _patching(run)
    return charts


def _layer_axis(n: int) -> Any:
    every = max(1, n // 12)
    return alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0, values=list(range(0, n, every))))


def _heat(
    cells: pl.DataFrame, title: str, *, rows: Sequence[str], y: str, field: str, most: float, show_rows: bool,
    what: str, width: int,
) -> Any:  # fmt: skip
    """One map, layer × row, of about ``width`` pixels; blue is less than nothing, orange more; numbers where they fit."""
    n = _layers(cells)
    base = alt.Chart(cells).encode(
        x=_layer_axis(n),
        y=alt.Y(f"{y}:N", sort=list(rows), title=None, axis=alt.Axis(labels=show_rows, ticks=show_rows)),
    )
    colour = base.mark_rect().encode(
        color=alt.Color(
            f"{field}:Q",
            title=what,
            scale=alt.Scale(scheme="blueorange", domain=[-most, most]),
            legend=alt.Legend(orient="bottom", direction="horizontal", gradientLength=160),
        ),
        tooltip=[f"{y}:N", "layer:O", alt.Tooltip(f"{field}:Q", format=".3f")],
    )
    step = min(56, max(3, width // n))
    size: dict[str, Any] = {"width": alt.Step(step), "height": alt.Step(22), "title": alt.Title(title, fontSize=12)}
    if step < 30:
        return alt.layer(colour).properties(**size)
    strong = (alt.datum[field] > 0.6 * most) | (alt.datum[field] < -0.6 * most)
    text = base.mark_text(fontSize=10).encode(
        text=alt.Text(f"{field}:Q", format=".2f"),
        color=alt.condition(strong, alt.value("#ffffff"), alt.value("#14181c")),
    )
    return alt.layer(colour, text).properties(**size)


def _grid(maps: Sequence[Sequence[Any]], titles: Sequence[str] = ()) -> alt.VConcatChart:
    rows = [alt.hconcat(*row, spacing=14) for row in maps]
    for row, title in zip(rows, titles, strict=False):
        row.title = title
    return alt.vconcat(*rows, spacing=18).resolve_scale(color="shared")


def _roles_in(cells: pl.DataFrame) -> list[str]:
    present = set(cells["role"].unique())
    return [role for role in ROLES if role in present]


def _layers(cells: pl.DataFrame) -> int:
    return int(cells["layer"].to_numpy().max()) + 1


def _most(values: pl.Series) -> float:
    return max(float(values.abs().to_numpy().max()), 1e-6)


def _tracing(run: RunFolder) -> alt.TopLevelMixin:
    cells = run.table("role_map")
    sites = [site for site in _SITES if site in set(cells["site"].unique())]
    states = [state for state in _STATES if state in set(cells["state"].unique())]
    most = _most(cells["effect"])
    return _grid(
        [
            [
                _heat(
                    cells.filter((pl.col("site") == site) & (pl.col("state") == state)),
                    _SITES[site], rows=_roles_in(cells), y="role", field="effect", most=most,
                    show_rows=site == sites[0], what="indirect effect", width=170,
                )
                for site in sites
            ]
            for state in states
        ],
        [_STATES[state] for state in states],
    )  # fmt: skip


def _curves(run: RunFolder) -> alt.TopLevelMixin:
    cells = run.table("role_map").with_columns(pl.col("state").replace(_STATES), pl.col("site").replace(_SITES))
    cells = cells.filter(pl.col("role").is_in([LAST_SUBJECT, LAST]))
    domain = list(_STATES.values())
    n = _layers(cells)
    base = alt.Chart(cells).encode(
        x=_layer_axis(n),
        color=alt.Color(
            "state:N", title=None, scale=alt.Scale(domain=domain, range=[PALETTE[1], PALETTE[0], MUTED]),
            legend=alt.Legend(orient="top", symbolType="stroke", columns=1),
        ),
    )  # fmt: skip
    lines = base.mark_line(point=n <= 16).encode(y=alt.Y("effect:Q", title="indirect effect"))
    bands = base.mark_area(opacity=0.18).encode(y=alt.Y("effect_lo:Q", title="indirect effect"), y2="effect_hi:Q")
    return (
        alt.layer(bands, lines)
        .properties(width=190, height=130)
        .facet(
            row=alt.Row("role:N", title=None, sort=[LAST_SUBJECT, LAST]),
            column=alt.Column("site:N", title=None, sort=list(_SITES.values())),
        )
    )


def _example(run: RunFolder) -> alt.TopLevelMixin:
    """One prompt, token by token: of the prompts traced, that of median total effect."""
    traced = run.table("tracing").filter(pl.col("state") == CLEAN)
    ends = run.table("rows").select("id", "clean").join(
        traced.group_by("id").agg(pl.col("corrupted").first()), on="id", maintain_order="left"
    ).with_columns((pl.col("clean") - pl.col("corrupted")).alias("total")).sort("total", maintain_order=True)  # fmt: skip
    shown = ends["id"][ends.height // 2]
    text = pl.col("token").str.strip_chars().replace("", "␣")
    tokens = (
        run.table("tokens")
        .filter(pl.col("id") == shown)
        .with_columns(
            pl.when(pl.col("role").is_in([FIRST, MIDDLE, LAST_SUBJECT]))
            .then(pl.format("[{}] {}", text, "position"))
            .otherwise(pl.format("{} {}", text, "position"))
            .alias("token")
        )
    )
    cells = (
        traced.filter(pl.col("id") == shown)
        .with_columns((pl.col("restored") - pl.col("corrupted")).alias("effect"))
        .join(tokens.select("position", "token"), on="position", maintain_order="left")
    )
    sites = [site for site in _SITES if site in set(cells["site"].unique())]
    order = cells.select("position", "token").unique(maintain_order=True).sort("position")["token"].to_list()
    return _grid(
        [
            [
                _heat(
                    cells.filter(pl.col("site") == site), _SITES[site], rows=order, y="token", field="effect",
                    most=_most(cells["effect"]), show_rows=site == sites[0],
                    what="indirect effect", width=170,
                )
                for site in sites
            ]
        ]
    )  # fmt: skip


def _patching(run: RunFolder) -> alt.TopLevelMixin:
    cells = run.table("patch_map")
    shown = [name for name in PATCH_MAPS if name in set(cells["map"].unique())]
    roles = _roles_in(cells)
    # (What lies beyond the ends of the scale is only what the estimate overshoots.)
    most = max(1.0, _most(cells.filter(pl.col("map") != ATTRIBUTION)["effect"]))
    maps = [
        _heat(
            cells.filter(pl.col("map") == name), _MAPS[name], rows=roles, y="role", field="effect", most=most,
            show_rows=name in shown[::2], what="share moved", width=240,
        )
        for name in shown
    ]  # fmt: skip
    return alt.vconcat(
        _grid([maps[at : at + 2] for at in range(0, len(maps), 2)]), _cloud(run), spacing=18
    ).resolve_scale(color="independent")


def _cloud(run: RunFolder) -> Any:
    """Every cell of every row: attribution against activation patching."""
    pairs = side_by_side(moved(run.table("patching"), run.table("attribution"), run.table("rows")))
    numbers = pairs.select("activation", "attribution").to_numpy()
    # A cloud of more points shows nothing more.
    points = (
        alt.Chart(pairs.sample(min(3000, pairs.height), seed=0))
        .mark_circle(size=22, opacity=0.5)
        .encode(
            x=alt.X("activation:Q", title="activation patching: change of the logit difference"),
            y=alt.Y("attribution:Q", title="its estimate by attribution"),
            color=alt.Color("layer:O" if _layers(pairs) <= len(RAMP) else "layer:Q", title="layer"),
            tooltip=["id:N", "layer:O", "position:O", "role:N"],
        )
    )
    ends = pl.DataFrame({"x": [float(numbers.min()), float(numbers.max())]})
    diagonal = alt.Chart(ends).mark_line(strokeDash=[4, 3], color=MUTED, strokeWidth=1).encode(x="x:Q", y="x:Q")
    return alt.layer(diagonal, points).properties(
        width=340, height=230, title=alt.Title("every cell of every row", fontSize=12)
    )
