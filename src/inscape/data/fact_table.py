"""The rows of a facts table: columns, checks, order and canonical text.

Everything that makes a row a fact stands here, below both the table in memory (`facts.py`) and the files it is read
from (`fact_files.py`), so that a world, a Wikidata file and a user's own table pass the same checks.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import polars as pl

from inscape.data.properties import ANGLE_LIMITS, PROPERTIES, Property
from inscape.errors import InputError

SPLITS: tuple[str, ...] = ("train", "dev", "test")

#: Columns of a facts table, in order. `popularity` is null where unknown.
SCHEMA: dict[str, Any] = {
    "property": pl.String,
    "split": pl.String,
    "entity_id": pl.String,
    "label": pl.String,
    "value": pl.Float64,
    "popularity": pl.Float64,
}


def typed(frame: pl.DataFrame, source: str) -> pl.DataFrame:
    """The columns of `SCHEMA`, in its order and types.

    Raises:
        InputError: a column is missing, or one of its values has no counterpart in the type.
    """
    missing = [name for name in SCHEMA if name not in frame.columns]
    if missing:
        raise InputError(f"{source}: columns {', '.join(missing)} are missing, expected {', '.join(SCHEMA)}")
    try:
        return frame.select(pl.col(name).cast(dtype) for name, dtype in SCHEMA.items())
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{source}: a column has the wrong type ({reason}), expected text and numbers") from error


def value_problem(prop: Property, value: float) -> str | None:
    """Why `value` can't be a value of `prop`, as "found …, expected …"; None if it can."""
    if not math.isfinite(value):
        return f"value {value}, expected a finite number"
    if prop.kind == "year" and (value != round(value) or value == 0):
        return f"value {value:g}, expected a whole year other than 0 (negative for BC)"
    limit = ANGLE_LIMITS.get(prop.name)
    if limit is not None and abs(value) > limit:
        return f"value {value:g}, expected degrees from {-limit:g} to {limit:g}"
    return None


def check_rows(rows: Iterable[tuple[Any, ...]], places: Sequence[str]) -> None:
    """Check rows of the six columns of `SCHEMA`, where `places[i]` says where row i comes from.

    Raises:
        InputError: a property, split, id, label, value or popularity that can't be; an entity that occurs twice in
            one property, be it in one split (a duplicate) or in two (the answer would leak into the test).
    """
    seen: dict[tuple[str, str], tuple[str, str]] = {}
    for (name, split, entity, label, value, popularity), place in zip(rows, places, strict=True):
        if name not in PROPERTIES:
            raise InputError(f"{place}: unknown property {name!r}, expected one of {', '.join(PROPERTIES)}")
        if split not in SPLITS:
            raise InputError(f"{place}: split {split!r}, expected one of {', '.join(SPLITS)}")
        if not entity:
            raise InputError(f"{place}: entity_id is empty, expected an identifier such as 'Q9061'")
        if not label or label.isspace():
            raise InputError(f"{place}: label of {entity!r} is empty, expected a name")
        if value is None:
            raise InputError(f"{place}: value of {entity!r} is missing, expected a number")
        problem = value_problem(PROPERTIES[name], value)
        if problem is not None:
            raise InputError(f"{place}: {name} of {entity!r} ({label}): {problem}")
        if popularity is not None and not math.isfinite(popularity):
            raise InputError(f"{place}: popularity {popularity} of {entity!r}, expected a finite number or nothing")
        before = seen.setdefault((name, entity), (split, place))
        if before[1] != place:
            what = "twice in split" if before[0] == split else f"in splits {before[0]} and"
            raise InputError(
                f"{place}: {name}: entity {entity!r} ({label}) is {what} {split}, first at {before[1]};"
                " expected each entity once per property"
            )


def in_order(rows: pl.DataFrame) -> pl.DataFrame:
    """Sort rows by property and split; a stable sort, so the order of the source remains within a split."""
    property_rank = pl.col("property").replace_strict({name: i for i, name in enumerate(PROPERTIES)})
    split_rank = pl.col("split").replace_strict({name: i for i, name in enumerate(SPLITS)})
    return rows.sort(property_rank, split_rank, maintain_order=True) if rows.height else rows


_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def escape(text: str) -> str:
    r"""Write a cell of a .tsv table: backslash, tab, line feed and carriage return as \\ \t \n \r."""
    return text.translate(_ESCAPES)


def number_text(value: float | None) -> str:
    """Shortest text that reads back as the same float64; whole numbers without ".0"; nothing for null."""
    return "" if value is None else repr(value).removesuffix(".0")


def table_text(rows: pl.DataFrame) -> str:
    """The canonical table: a header and one line per row, tab-separated, each line closed by a line feed."""
    lines = ["\t".join(SCHEMA)]
    for name, split, entity, label, value, popularity in rows.select(list(SCHEMA)).iter_rows():
        cells = (name, split, escape(entity), escape(label), number_text(value), number_text(popularity))
        lines.append("\t".join(cells))
    return "\n".join(lines) + "\n"


_READ = {"\\": "\\", "t": "\t", "n": "\n", "r": "\r", "\t": "\t", '"': '"'}


def cells_of(line: str, place: str) -> list[str]:
    r"""Split one line of a .tsv table at its tabs and undo the escapes in its cells.

    Besides `escape`'s own \\ \t \n \r, two escapes of the Wikidata tables are understood: a backslash before a real
    tab (the tab belongs to the cell) and before a double quote (the JSON escape that was left in five labels).

    Raises:
        InputError: a backslash before anything else, or at the end of the line.
    """
    if "\\" not in line:
        return line.split("\t")
    cells: list[str] = []
    cell: list[str] = []
    characters = iter(line)
    for character in characters:
        if character == "\t":
            cells.append("".join(cell))
            cell = []
        elif character == "\\":
            escaped = next(characters, "")
            if escaped not in _READ:
                found = f"a backslash before {escaped!r}" if escaped else "a backslash at the end of the line"
                raise InputError(f"{place}: {found}, expected one of " + r"\\ \t \n \r \"")
            cell.append(_READ[escaped])
        else:
            cell.append(character)
    cells.append("".join(cell))
    return cells
