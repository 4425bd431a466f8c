"""What a report says, apart from how it looks: the study fills a `Page`, `report.py` sets it.

Texts are plain text. A blank line starts a paragraph, `backticks` set code; everything else is shown as it is written,
whatever a model or a data file put into it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import polars as pl


@dataclass(frozen=True)
class Headline:
    """One number of `summary.json`, told to a reader.

    Its interval is read from `KEY_lo` and `KEY_hi`. `meaning` is one sentence that says what the number says, and
    what it does not.
    """

    key: str
    label: str
    meaning: str
    group: str = ""


@dataclass(frozen=True)
class Reported:
    """A line of the table "paper and here": what the paper reports, what was measured, why they differ.

    `ours` is a text; where it is empty the number stands in `summary.json` under `key`.
    """

    what: str
    paper: str
    ours: str = ""
    key: str = ""
    why: str = ""


@dataclass(frozen=True)
class Section:
    """A heading, text, and at most one figure and one table.

    Args:
        figure: name of a figure of the run.
        table: a frame, or the name of a table of the run.
        caption: under the figure, or above the table where there is no figure.
        table_limit: rows shown; the page says how many there are in all.
    """

    heading: str
    text: str = ""
    figure: str | None = None
    table: pl.DataFrame | str | None = None
    caption: str = ""
    table_limit: int = 30
    table_rows: int | None = None
    """Rows of the whole table where `table` was cut before (a page read back from a folder)."""


@dataclass(frozen=True)
class Page:
    """A study's report.

    Args:
        lede: what was asked and what came out, in a few sentences.
        paper: the work that the study follows, as a reference.
        notes: rows that were left out and why, warnings, anything a careful reader should know.
    """

    title: str
    lede: str
    headlines: Sequence[Headline] = ()
    sections: Sequence[Section] = ()
    reported: Sequence[Reported] = ()
    notes: Sequence[str] = field(default_factory=tuple)
    paper: str = ""


def to_json(page: Page) -> dict[str, Any]:
    """The page as JSON values; frames are cut to the rows that the page shows."""
    content = asdict(replace(page, sections=()))
    content["sections"] = []
    for section in page.sections:
        plain = asdict(replace(section, table=None))
        if isinstance(section.table, pl.DataFrame):
            shown = simple(section.table.head(section.table_limit))
            plain["table"] = {
                "dtypes": {name: str(dtype) for name, dtype in shown.schema.items()},
                "columns": shown.to_dict(as_series=False),
            }
            plain["table_rows"] = section.table_rows or section.table.height
        else:
            plain["table"] = section.table
        content["sections"].append(plain)
    return content


def from_json(content: dict[str, Any]) -> Page:
    """The page that `to_json` saved. Raises KeyError or TypeError on anything else."""
    sections = []
    for section in content["sections"]:
        table = section["table"]
        if isinstance(table, dict):
            dtypes = {name: getattr(pl, dtype) for name, dtype in table["dtypes"].items() if dtype in _SIMPLE}
            table = pl.DataFrame(table["columns"], schema={name: dtypes[name] for name in table["columns"]})
        sections.append(Section(**{**section, "table": table}))
    return Page(
        **{
            **content,
            "sections": tuple(sections),
            "headlines": tuple(Headline(**line) for line in content["headlines"]),
            "reported": tuple(Reported(**line) for line in content["reported"]),
            "notes": tuple(content["notes"]),
        }
    )


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


_SIMPLE = ("Int64", "Float64", "Boolean", "String")


def simple(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame in the four dtypes that JSON can give back; anything else becomes text."""
    columns = []
    for column in frame:
        if column.dtype.is_integer():
            columns.append(column.cast(pl.Int64, strict=False))
        elif column.dtype.is_float():
            columns.append(column.cast(pl.Float64))
        elif column.dtype in (pl.Boolean, pl.String):
            columns.append(column)
        else:
            values = [None if value is None else _text(value) for value in column.to_list()]
            columns.append(pl.Series(column.name, values, dtype=pl.String))
    return pl.DataFrame(columns)
