"""Figures: one Altair chart becomes `NAME.json` (Vega-Lite), `NAME.svg` and `NAME.png`, without a browser.

The JSON is the source: it holds the data and the theme, and the other two are drawn from it. The SVG carries a style
sheet for dark surroundings; the PNG has a white ground and is legible anywhere.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inscape.errors import InputError
from inscape.runs.theme import dark_rules, theme
from inscape.runs.writing import write_bytes, write_text

if TYPE_CHECKING:
    import altair as alt

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
_PNG_SCALE = 2.0


def draw(folder: Path, name: str, chart: alt.TopLevelMixin) -> None:
    """Write the chart's three files into `folder`. Raises RunWriteError."""
    _write(folder, name, specification(chart))


def redraw(folder: Path, name: str) -> None:
    """Draw `NAME.svg` and `NAME.png` again from `NAME.json`. Raises InputError when that is missing or damaged."""
    _write(folder, name, read_specification(folder, name))


def specification(chart: alt.TopLevelMixin) -> dict[str, Any]:
    """The chart's Vega-Lite specification, data inside, in the workbench's theme (the chart's own config wins)."""
    import altair as alt

    # All rows, whatever Altair's limit for notebooks; and no theme that a notebook may have switched on.
    with alt.theme.enable("none"), alt.data_transformers.enable("default", max_rows=None):
        spec: dict[str, Any] = chart.to_dict()
    spec["config"] = _merged(theme(), spec.get("config", {}))
    return spec


def read_specification(folder: Path, name: str) -> dict[str, Any]:
    """A figure's Vega-Lite specification. Raises InputError."""
    path = folder / f"{name}.json"
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): a Vega-Lite specification was expected") from error
    if not isinstance(spec, dict):
        raise InputError(f"{path} holds a {type(spec).__name__}: a Vega-Lite specification was expected")
    return spec


def inline_svg(folder: Path, name: str, description: str) -> str:
    """A figure's SVG as markup that is safe inside a page.

    Ids inside it are made the figure's own and numbered anew: two drawings may both have a `clip0`, and on one page the
    second would be clipped by the first one's. Whatever could run or load something is left out: a run folder may have
    come from somebody else.

    Raises:
        InputError: the SVG is missing or damaged.
    """
    path = folder / f"{name}.svg"
    try:
        root = ET.fromstring(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, ET.ParseError) as error:
        raise InputError(f"{path} cannot be read ({error}): an SVG drawing was expected") from error
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("script", "style", "foreignObject", "image", "iframe", "animate", "set"):
                parent.remove(child)
    defined = [value for element in root.iter() for key, value in element.attrib.items() if _local(key) == "id"]
    ids = {old: f"{name}-{number}" for number, old in enumerate(dict.fromkeys(defined))}
    for element in root.iter():
        for attribute, value in list(element.attrib.items()):
            bare = _local(attribute)
            target = _reference(value)
            if bare == "id":
                element.attrib[attribute] = ids[value]
            elif bare == "href" and value.startswith("#") and value[1:] in ids:
                element.attrib[attribute] = f"#{ids[value[1:]]}"
            elif target in ids:
                element.attrib[attribute] = f"url(#{ids[target]})"
            elif bare.startswith("on") or bare in ("href", "style") or target is not None:
                del element.attrib[attribute]
    root.set("role", "img")
    root.set("aria-label", description)
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    return ET.tostring(root, encoding="unicode")


def _write(folder: Path, name: str, spec: dict[str, Any]) -> None:
    import vl_convert

    # Figures hold their data: a specification that asks for a URL must not make this process go and fetch it.
    closed: dict[str, Any] = {"allowed_base_urls": []}
    try:
        svg = vl_convert.vegalite_to_svg(spec, **closed)
        png = vl_convert.vegalite_to_png({**spec, "background": "white"}, scale=_PNG_SCALE, **closed)
    except ValueError as error:
        raise InputError(f"figure {name!r} cannot be drawn: {' '.join(str(error).split())[:300]}") from error
    style = f"<style>@media (prefers-color-scheme: dark){{{dark_rules('svg.marks')}}}</style>"
    svg = re.sub(r"(<svg\b[^>]*>)", lambda opening: opening[1] + style, svg, count=1)
    write_text(folder / f"{name}.json", json.dumps(spec, ensure_ascii=False) + "\n")
    write_text(folder / f"{name}.svg", svg)
    write_bytes(folder / f"{name}.png", png)


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _reference(value: str) -> str | None:
    """What an attribute's `url(...)` refers to; "" for anything but an id; None where there is no `url(`."""
    if "url(" not in value:
        return None
    found = re.fullmatch(r"url\(['\"]?#([^'\")]*)['\"]?\)", value.strip())
    return found[1] if found else ""


def _local(name: str) -> str:
    return name.rpartition("}")[2]
