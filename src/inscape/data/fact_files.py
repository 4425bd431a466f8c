"""Reading facts from files: the Wikidata tables, the rows of Heinzerling & Inui 2024, and our own tables.

Readers return plain rows together with the place (file and line) of each, so that every later complaint can name it.
Nothing is guessed: a cell that isn't what its column promises is refused.
"""

import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import polars as pl

from inscape.data.fact_table import SCHEMA, cells_of, typed
from inscape.data.properties import property_named
from inscape.errors import InputError

Row = tuple[Any, ...]

_FILE_SPLITS = ("train", "dev", "global_dev", "test")
_WIKIDATA_COLUMNS = ("entity_id", "entity_label", "value", "popularity_degree")
_FILE_NAME = re.compile(
    r"(?:numprop_)?(?P<property>P\d+(?:\.lat|\.long)?)(?:\.quantile_\d+\.sample_\d+)?"
    r"\.(?P<split>[^.]+)\.(?P<ending>tsv|jsonl)"
)
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class _Part:
    """A file of one property and split."""

    path: Path
    property: str
    split: str


def read_fact_files(path: Path, wanted: tuple[str, ...] | None) -> tuple[list[Row], list[str], list[str]]:
    """Rows in the columns of `SCHEMA`, the place of each, and notes on what was left out or changed.

    Args:
        path: folder or file, see `load_facts`.
        wanted: our names of the properties to read; None for all.

    Raises:
        InputError: there is nothing to read, or a file isn't what its name and header say.
    """
    if path.is_dir():
        return _read_parts(path, wanted)
    if not path.is_file():
        raise InputError(f"{path}: no such file or folder, expected a folder of P*.tsv tables or a facts table")
    if path.suffix == ".parquet":
        rows, places = _read_parquet(path)
    elif path.suffix == ".tsv" and "property" in _text(path).partition("\n")[0].rstrip("\r").split("\t"):
        rows, places = _read_own_table(path)
    elif path.suffix in (".tsv", ".jsonl"):
        part = _part_named(path)
        if part is None:
            raise InputError(f"{path}: the name doesn't say property and split, expected one like P569.train.tsv")
        notes: list[str] = []
        rows, places = _read_part(part, notes)
        return rows, places, notes
    else:
        raise InputError(f"{path}: can't read facts from {path.suffix!r}, expected .tsv, .jsonl or .parquet")
    kept = [index for index, row in enumerate(rows) if wanted is None or row[0] in wanted]
    if not kept:
        raise InputError(f"{path}: no facts of {', '.join(wanted or ())}, expected at least one row")
    return [rows[index] for index in kept], [places[index] for index in kept], []


def _read_parts(folder: Path, wanted: tuple[str, ...] | None) -> tuple[list[Row], list[str], list[str]]:
    """Read all files of a folder that are named as parts, `global_dev` before `test`."""
    try:
        files = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder}: folder can't be read ({error.strerror})") from error
    parts: dict[tuple[str, str], _Part] = {}
    ignored: list[str] = []
    for file in files:
        if _FILE_NAME.fullmatch(file.name) is None:
            ignored.append(file.name)
            continue
        part = _part_named(file, wanted)
        if part is not None and parts.setdefault((part.property, part.split), part) is not part:
            other = parts[part.property, part.split].path.name
            raise InputError(f"{file}: same property and split as {other}, expected one file for each")
    notes = [f"not read, as the name says no property and split: {', '.join(ignored)}"] if ignored else []
    if not parts:
        names = "P569.train.tsv or numprop_P569.quantile_9.sample_0.train.jsonl"
        raise InputError(f"{folder}: no files with the facts asked for, expected names like {names}")
    rows: list[Row] = []
    places: list[str] = []
    for (name, split), part in parts.items():
        if split == "test" and (name, "global_dev") in parts:
            notes.append(f"{name}: {part.path.name} left out, the global_dev file is the test split")
            continue
        part_rows, part_places = _read_part(part, notes)
        rows += part_rows
        places += part_places
    return rows, places, notes


def _part_named(path: Path, wanted: tuple[str, ...] | None = None) -> _Part | None:
    """What a file's name says; None if that isn't the name of a part, or if it names a property that isn't wanted."""
    match = _FILE_NAME.fullmatch(path.name)
    if match is None:
        return None
    try:
        name = property_named(match["property"]).name
    except InputError as error:
        if wanted is not None:
            return None
        raise InputError(f"{path}: {error}") from error
    if wanted is not None and name not in wanted:
        return None
    if match["split"] not in _FILE_SPLITS:
        raise InputError(f"{path}: split {match['split']!r} in the name, expected one of {', '.join(_FILE_SPLITS)}")
    return _Part(path, name, match["split"])


def _read_part(part: _Part, notes: list[str]) -> tuple[list[Row], list[str]]:
    """Rows of one Wikidata file; labels are tidied, which is noted."""
    entries = _jsonl_entries(part) if part.path.suffix == ".jsonl" else _tsv_entries(part.path)
    split = "test" if part.split == "global_dev" else part.split
    rows: list[Row] = []
    places: list[str] = []
    tidied: list[str] = []
    for place, (entity, label, value, popularity) in entries:
        tidy = _tidy(label)
        if tidy != label:
            tidied.append(f"{tidy} ({entity})")
        rows.append((part.property, split, entity, tidy, value, popularity))
        places.append(place)
    if not rows:
        raise InputError(f"{part.path}: no rows, expected at least one")
    if tidied:
        what = "labels tidied (no-break spaces, invisible ends)"
        notes.append(f"{part.path.name}: {len(tidied)} {what}: {', '.join(tidied)}")
    return rows, places


def _tidy(label: str) -> str:
    """Make no-break spaces plain and take invisible characters off both ends of a Wikidata label.

    A few labels end in a direction mark, which would become the "last token of the mention" that a probe reads.
    """
    text = "".join(" " if unicodedata.category(character) == "Zs" else character for character in label)
    visible = [index for index, character in enumerate(text) if unicodedata.category(character)[0] not in "ZC"]
    return text[visible[0] : visible[-1] + 1] if visible else ""


def _tsv_entries(path: Path) -> Iterator[tuple[str, Row]]:
    for place, (entity, label, value, popularity) in _table(path, _WIKIDATA_COLUMNS):
        yield place, (entity, label, _number(value, place, "value"), _number(popularity, place, "popularity_degree"))


def _read_own_table(path: Path) -> tuple[list[Row], list[str]]:
    if not _text(path).endswith("\n"):
        # Our tables always end in a line feed; without it the last number may have lost digits.
        raise InputError(f"{path}: the last line has no end, expected a line feed: the file is cut off")
    rows: list[Row] = []
    places: list[str] = []
    for place, (name, split, entity, label, value, popularity) in _table(path, tuple(SCHEMA)):
        number = _number(value, place, "value")
        rows.append((name, split, entity, label, number, _number(popularity, place, "popularity")))
        places.append(place)
    return rows, places


def _table(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
    """Place and cells of each line of a tab-separated table, cells in the order of `columns`."""
    # Only a line feed ends a line: labels may hold other Unicode line separators.
    lines = _text(path).split("\n")
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise InputError(f"{path}: the file is empty, expected a header line with {', '.join(columns)}")
    header = lines[0].removesuffix("\r").split("\t")
    missing = [name for name in columns if header.count(name) != 1]
    if missing:
        found = ", ".join(header)
        raise InputError(f"{path}: line 1: header {found!r} lacks {', '.join(missing)}, expected {', '.join(columns)}")
    positions = [header.index(name) for name in columns]
    if len(lines) == 1:
        raise InputError(f"{path}: no rows below the header, expected at least one")
    for number, line in enumerate(lines[1:], start=2):
        place = f"{path}: line {number}"
        cells = cells_of(line.removesuffix("\r"), place)
        if len(cells) != len(header):
            raise InputError(f"{place}: {len(cells)} cells, expected {len(header)} ({', '.join(header)})")
        yield place, [cells[position] for position in positions]


def _number(text: str, place: str, column: str) -> float | None:
    if text == "":
        return None
    if _NUMBER.fullmatch(text) is None:
        raise InputError(f"{place}: {column} {text!r}, expected a number such as 1902 or -43.25")
    return float(text)


def _jsonl_entries(part: _Part) -> Iterator[tuple[str, Row]]:
    """Place and (entity_id, entity_label, value, popularity_degree) of each published row; other fields are unused."""
    lines = _text(part.path).split("\n")
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise InputError(f"{part.path}: the file is empty, expected one JSON object per line")
    wikidata = property_named(part.property).wikidata
    for number, line in enumerate(lines, start=1):
        place = f"{part.path}: line {number}"
        try:
            row = json.loads(line, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{place}: not a JSON object ({error}), expected one per line") from error
        if not isinstance(row, dict):
            raise InputError(f"{place}: a JSON {type(row).__name__}, expected an object")
        missing = [name for name in _WIKIDATA_COLUMNS if name not in row]
        if missing:
            raise InputError(f"{place}: fields {', '.join(missing)} are missing, expected {_WIKIDATA_COLUMNS}")
        if row.get("pred_id", wikidata) != wikidata:
            raise InputError(f"{place}: pred_id {row['pred_id']!r}, expected {wikidata!r} as in the file's name")
        for name in ("entity_id", "entity_label"):
            if not isinstance(row[name], str) or not _is_text(row[name]):
                raise InputError(f"{place}: {name} {row[name]!r}, expected text")
        value, popularity = (_json_number(row[name], place, name) for name in ("value", "popularity_degree"))
        yield place, (row["entity_id"], row["entity_label"], value, popularity)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _is_text(text: str) -> bool:
    """False for text with half of a surrogate pair, which JSON can escape but no file can hold."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _json_number(value: Any, place: str, name: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{place}: {name} {value!r}, expected a number")
    try:
        return float(value)
    except OverflowError as error:
        raise InputError(f"{place}: {name} has {len(str(value))} digits, expected a number in range") from error


def _read_parquet(path: Path) -> tuple[list[Row], list[str]]:
    try:
        frame = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(f"{path}: not a parquet table ({str(error).splitlines()[0]})") from error
    rows = typed(frame, str(path)).rows()
    if not rows:
        raise InputError(f"{path}: no rows, expected at least one")
    return rows, [f"{path}: row {index}" for index in range(len(rows))]


def _text(path: Path) -> str:
    """The file as UTF-8 text, without a byte order mark."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: file can't be read ({error.strerror})") from error
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        raise InputError(
            f"{path}: line {line}: byte 0x{byte:02x} at offset {error.start} isn't UTF-8, expected UTF-8 text"
        ) from error
