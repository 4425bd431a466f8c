"""The report: one HTML file that opens offline, in light and dark, on paper and on a narrow screen.

Vega, Vega-Lite and Vega-Embed are put into the page once; each chart is there as its specification (drawn live) and as
SVG (shown where scripts do not run). A content security policy admits only the page's own two scripts, by hash, and
no network at all: a label that contains markup stays a label.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from inscape.errors import InputError
from inscape.runs.display import format_column, format_interval, format_number
from inscape.runs.figures import inline_svg, read_specification
from inscape.runs.folder import RunFolder, Scalar
from inscape.runs.page import Page, Section, simple
from inscape.runs.theme import DARK, GRID, INK, MUTED, PALETTE, PAPER, dark_rules
from inscape.runs.writing import write_text

_HERE = Path(__file__).parent


def write_report(run: RunFolder, page: Page) -> Path:
    """Write `report.html` into the run's folder and return its path.

    Raises:
        InputError: a figure or a table that the page names is not in the folder, or is damaged.
        RunWriteError: the page cannot be written.
    """
    path = run.folder / "report.html"
    write_text(path, render(run, page))
    return path


def page_so_far(run: RunFolder) -> Page:
    """A plain page for a run that was not finished: its figures, and the head of each table."""
    sections = [Section(name.replace("_", " ").capitalize(), figure=name) for name in run.figures]
    sections += [Section(f"Table {name}", table=name, table_limit=10) for name in run.tables]
    stages = ", ".join(run.manifest["stages"]) or "none"
    lede = f"This run is not finished. Stages done so far: {stages}. Run the same command again to go on."
    return Page(title=f"{run.study} (unfinished)", lede=lede, sections=sections)


def render(run: RunFolder, page: Page) -> str:
    """The page as HTML text. Raises InputError as `write_report`."""
    summary = run.read_summary()
    figures = run.folder / "figures"
    sections = []
    for section in page.sections:
        content: dict[str, Any] = {"section": section, "paragraphs": _paragraphs(section.text)}
        if section.figure is not None:
            if section.figure not in run.figures:
                there = ", ".join(run.figures) or "none"
                raise InputError(f"{run.folder} has no figure {section.figure!r}: its figures are {there}")
            content["svg"] = Markup(inline_svg(figures, section.figure, section.caption or section.heading))
            content["spec"] = _json_in_html(read_specification(figures, section.figure))
        if section.table is not None:
            content["table"] = _table(run, section)
        sections.append(content)

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Inside <script> only these three sequences mean anything to an HTML parser.
    scripts = {"bundle": "", "script": ""}
    if any("spec" in content for content in sections):
        scripts = {"bundle": _vega(), "script": (_HERE / "page.js").read_text(encoding="utf-8")}
    for text in scripts.values():
        if re.search(r"</script|<!--|\r", text, re.IGNORECASE):
            raise RuntimeError("a script of the report cannot be put into a page as it is")
    return environment.get_template("page.html.j2").render(
        page=page,
        lede=_paragraphs(page.lede),
        run=run,
        manifest=run.manifest,
        groups=_headlines(page, summary),
        reported=_reported(page, summary),
        sections=sections,
        notes=[_inline(note) for note in page.notes],
        config=json.dumps(run.manifest["config"], indent=2, ensure_ascii=False),
        record={key: _plain_text(value) for key, value in run.manifest["record"].items()},
        inputs=run.manifest["inputs"],
        stages=_stages(run),
        style=Markup(_style()),
        script_hashes=" ".join(_hash(text) for text in scripts.values() if text),
        **{name: Markup(text) for name, text in scripts.items()},
    )


def _headlines(page: Page, summary: Mapping[str, Scalar]) -> list[tuple[str, list[dict[str, Any]]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for line in page.headlines:
        shown = {"label": line.label, "meaning": _inline(line.meaning), **_measured(line.key, summary)}
        groups.setdefault(line.group, []).append(shown)
    return list(groups.items())


def _measured(key: str, summary: Mapping[str, Scalar]) -> dict[str, str]:
    value = summary.get(key)
    return {
        "value": format_number(value),
        "interval": format_interval(summary.get(f"{key}_lo"), summary.get(f"{key}_hi")),
    }


def _reported(page: Page, summary: Mapping[str, Scalar]) -> list[dict[str, Any]]:
    lines = []
    for line in page.reported:
        ours = {"value": line.ours, "interval": ""} if line.ours or not line.key else _measured(line.key, summary)
        lines.append({"what": _inline(line.what), "paper": _inline(line.paper), "why": _inline(line.why), **ours})
    return lines


def _table(run: RunFolder, section: Section) -> dict[str, Any]:
    name = section.table if isinstance(section.table, str) else None
    frame = run.table(section.table) if isinstance(section.table, str) else section.table
    assert frame is not None
    # In the dtypes that `page.json` keeps, so that a page written again looks the same.
    shown = simple(frame.head(section.table_limit))
    numeric = [dtype.is_numeric() for dtype in shown.dtypes]
    columns = [
        format_column(column.to_list()) if number else [_plain_text(value) for value in column]
        for column, number in zip(shown, numeric, strict=True)
    ]
    return {
        "name": name,
        "head": list(zip(shown.columns, numeric, strict=True)),
        "rows": [list(zip(row, numeric, strict=True)) for row in zip(*columns, strict=True)],
        "shown": shown.height,
        "total": section.table_rows or frame.height,
    }


def _plain_text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_plain_text(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_plain_text(item)}" for key, item in value.items())
    return format_number(value) if not isinstance(value, str) else value


def _stages(run: RunFolder) -> list[dict[str, str]]:
    return [
        {
            "name": name,
            "seconds": f"{stage['seconds']:.1f}",
            "files": ", ".join(stage["files"]),
            "note": f"{stage['parts_from_earlier_sessions']} of {stage['parts']} parts from an earlier session"
            if stage.get("parts_from_earlier_sessions")
            else "",
        }
        for name, stage in run.manifest["stages"].items()
    ]


def _paragraphs(text: str) -> list[Markup]:
    return [_inline(" ".join(block.split())) for block in re.split(r"\n\s*\n", text) if block.strip()]


def _inline(text: str) -> Markup:
    # Escaped first: what stands between the backticks is as foreign as the rest.
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _json_in_html(value: Any) -> Markup:
    """JSON that may stand inside <script>: no `<`, `>`, `&`, and none of the two line ends that JSON allows in text."""
    text = json.dumps(value, ensure_ascii=False)
    return Markup(text.translate({ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}))


def _style() -> str:
    css = (_HERE / "page.css").read_text(encoding="utf-8")
    names = {"ink": INK, "muted": MUTED, "line": GRID, "paper": PAPER, "accent": PALETTE[0]}
    light = "".join(f"--{name}:{colour};" for name, colour in names.items())
    dark = "".join(f"--{name}:{DARK[colour]};" for name, colour in names.items())
    # "screen": paper is white, whatever the system's setting.
    switch = f"@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}{dark_rules('.chart')}}}"
    return f":root{{color-scheme:light dark;{light}}}{switch}\n{css}"


@functools.cache
def _vega() -> str:
    import vl_convert

    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
