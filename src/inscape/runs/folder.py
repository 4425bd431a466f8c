"""A run folder as a reader sees it: finished or not, nothing in it is changed by looking.

manifest.json            what was asked for, how it was made, which stages are done
tables/*.parquet         one file per table
arrays/*.safetensors     one file per arrays stage
parts/STAGE/*.parquet    finished parts of a map stage that is still running
figures/*.{json,svg,png} each chart three times
summary.json             flat: headline name -> number
page.json, report.html   the page's content, and the page
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl

from inscape.errors import InputError
from inscape.runs.manifest import read_manifest
from inscape.runs.page import Page
from inscape.runs.page import from_json as page_from_json

Scalar = float | int | str | bool | None


class RunFolder:
    """Reads one run folder. `Run` adds the writing."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest

    @property
    def study(self) -> str:
        return str(self.manifest["study"])

    @property
    def done(self) -> bool:
        """Whether the run was finished, its report written."""
        return self.manifest.get("finished") is not None

    @property
    def tables(self) -> list[str]:
        """Names of the tables of finished stages, in the order in which they were made."""
        files = (path for stage in self.manifest["stages"].values() for path in stage["files"])
        return [Path(path).stem for path in files if path.startswith("tables/")]

    @property
    def figures(self) -> list[str]:
        """Names of the figures, in the order in which they were drawn."""
        return list(self.manifest.get("figures", []))

    def table(self, name: str) -> pl.DataFrame:
        """One table. Raises InputError when there is no such table, or when its file is damaged."""
        path = self.folder / "tables" / f"{name}.parquet"
        if not path.is_file():
            there = ", ".join(self.tables) or "none yet"
            raise InputError(f"{self.folder} has no table {name!r}: its tables are {there}")
        return read_table(path)

    def read_summary(self) -> dict[str, Scalar]:
        """The headline numbers; empty where none were written yet. Raises InputError when the file is damaged."""
        path = self.folder / "summary.json"
        try:
            summary = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read ({error}): a JSON object was expected") from error
        if not isinstance(summary, dict):
            raise InputError(f"{path} holds a {type(summary).__name__}: a JSON object was expected")
        return summary

    def read_page(self) -> Page | None:
        """The page as the study wrote it, or None in a folder that was not finished."""
        path = self.folder / "page.json"
        if not path.exists():
            return None
        try:
            return page_from_json(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path} cannot be read ({error}): the content of a report was expected") from error

    def rewrite_report(self, page: Page | None = None) -> Path:
        """Draw the figures and write the report again, from the figures' JSON, the summary and the tables.

        Without `page` it is the study's own one; an unfinished run gets a plain page of what is there so far.

        Raises:
            InputError: a file of the folder is damaged. RunWriteError: it cannot be written.
        """
        from inscape.runs.figures import redraw
        from inscape.runs.report import page_so_far, write_report

        for name in self.figures:
            redraw(self.folder / "figures", name)
        return write_report(self, page or self.read_page() or page_so_far(self))


def read_run(folder: Path | str) -> RunFolder:
    """Open an existing run folder for reading. Raises InputError when it is not one."""
    folder = Path(folder)
    return RunFolder(folder, read_manifest(folder))


def read_table(path: Path) -> pl.DataFrame:
    """A parquet file, whole. Raises InputError when it is damaged."""
    try:
        # memory_map=False: the file may be replaced later while the frame is still in use.
        return pl.read_parquet(path, memory_map=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(f"{path} cannot be read ({error}): a whole parquet file was expected") from error
