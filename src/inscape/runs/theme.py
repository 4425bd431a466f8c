"""The look of all figures: calm, colour-blind safe, legible on light and on dark.

A chart is drawn once, with transparent ground and the colours below. Each of these colours has a counterpart for dark
surroundings, and a style sheet exchanges one for the other wherever it stands in the SVG. So one drawing serves both,
a change of the system's setting needs no redrawing, and print gets the light one. Colours between
those of a scale, and any that a study picks itself, stay as they are.
"""

from __future__ import annotations

from typing import Any

INK = "#1f2328"
"""Text and titles."""
MUTED = "#59636e"
"""Tick labels, reference lines, things that are there for comparison."""
GRID = "#d9dee3"
"""Grid lines."""
PAPER = "#fefefd"
"""The page's ground, for outlines around marks and text that lie on other marks."""

PALETTE = ("#0a6cb0", "#cc4a00", "#0b9970", "#93348c", "#cf9a0c", "#4fa9df", "#8b949e")
"""Categories, in this order (after Okabe and Ito's set, with the lightness evened for thin lines on white)."""

RAMP = ("#4a4fc4", "#2f83c8", "#1fa08f", "#7bb03c", "#d9a514")
"""Quantities, from low to high. Lightness rises all the way, but neither end drowns in a white or a black ground, as
viridis' ends do."""

DARK = {
    INK: "#e8ebee",
    MUTED: "#a3adb7",
    GRID: "#363c43",
    PAPER: "#16191d",
    "#0a6cb0": "#4ba3e3",
    "#cc4a00": "#f58a45",
    "#0b9970": "#2fc199",
    "#93348c": "#e08cc0",
    "#cf9a0c": "#e8b93c",
    "#4fa9df": "#a5d8fb",
    "#8b949e": "#7f8993",
}
"""Light colour -> the one that stands for it on dark ground."""

# Arial first: the SVG is laid out without a browser, with Liberation Sans, and shown with the reader's font. Of the common
# ones only Arial and Helvetica have the same widths; with another one titles run into tick labels.
_FONT = "Arial, 'Liberation Sans', Helvetica, sans-serif"


def theme() -> dict[str, Any]:
    """The Vega-Lite config. No label is cut to a length: what a label says may be the finding."""
    uncut = {"labelLimit": 0, "titleLimit": 0}
    text = {"labelColor": MUTED, "titleColor": INK, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": 500}
    return {
        "background": "transparent",
        "font": _FONT,
        "padding": 8,
        "view": {"stroke": "transparent", "continuousWidth": 560, "continuousHeight": 300, "discreteWidth": {"step": 26}},
        "title": {
            "color": INK, "subtitleColor": MUTED, "anchor": "start", "fontSize": 14, "fontWeight": 600,
            "subtitleFontSize": 12, "subtitlePadding": 5, "offset": 12, "limit": 0, "frame": "group",
        },
        "axis": {
            **text, **uncut, "domainColor": MUTED, "tickColor": MUTED, "gridColor": GRID, "gridWidth": 1,
            "domainWidth": 1, "tickSize": 4, "labelPadding": 4, "titlePadding": 8, "labelFlush": False,
        },
        "axisBand": {"grid": False},
        "legend": {
            **text, **uncut, "symbolType": "circle", "symbolSize": 80, "rowPadding": 4,
            "gradientStrokeColor": "transparent", "symbolStrokeColor": MUTED, "symbolOpacity": 1,
        },
        "header": {**text, **uncut, "labelFontWeight": 500, "labelColor": INK},
        "range": {
            "category": list(PALETTE), "ordinal": list(RAMP), "ramp": list(RAMP),
            "heatmap": list(RAMP), "diverging": {"scheme": "blueorange"},
        },
        "mark": {"color": PALETTE[0]},
        "point": {"size": 40, "filled": True, "opacity": 0.85},
        "circle": {"size": 40, "opacity": 0.85},
        "line": {"strokeWidth": 2, "strokeCap": "round", "strokeJoin": "round"},
        "area": {"opacity": 0.2},
        "errorband": {"opacity": 0.18},
        "rule": {"color": MUTED},
        "text": {"color": INK, "fontSize": 12},
        "concat": {"spacing": 28},
        "facet": {"spacing": 24},
    }  # fmt: skip


def dark_rules(scope: str) -> str:
    """CSS that exchanges every theme colour below the selector `scope` for its dark counterpart."""
    return "".join(
        f'{scope} [{attribute}="{light}"]{{{attribute}:{dark}}}'
        for light, dark in DARK.items()
        for attribute in ("fill", "stroke")
    )
