"""A run: named stages written into a folder, each of which survives a kill.

A study is a sequence of stages. Each stage names its result and gives a function that computes it; when the folder
already holds the result, the function is not called. So the study's code is the same for a first run, for one that
goes on after a kill, and for one that is already done; there is no separate path for resuming that could go wrong.

    with Run.open(out, "numeric-monotonic", config, seed=0) as run:
        fits = run.stage("fit", lambda: {"fit": fit_all_layers()})["fit"]
        edits = run.map("edit", entities, edit_one_entity)
        run.summary({"r2_test": 0.91})
        run.finish(Page(title="...", lede="..."))

Results are always read back from the file that was written: the first run and a resumed one see the same dtypes and
the same rows, whatever parquet makes of them. Stages must be deterministic given config and seed.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import polars as pl

from inscape.errors import InputError
from inscape.runs.folder import RunFolder, Scalar, read_table
from inscape.runs.lock import FolderLock
from inscape.runs.manifest import command, differences, file_hash, fresh, now, plain, read_manifest, versions
from inscape.runs.page import Page
from inscape.runs.page import to_json as page_to_json
from inscape.runs.progress import Advance, ProgressReporter
from inscape.runs.writing import explain, remove_leftovers, replacing, write_text

if TYPE_CHECKING:
    import altair as alt

T = TypeVar("T")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")


class Run(RunFolder):
    """An open run folder, held by this process until `finish`, `close` or the end of a `with` block.

    `reporter` shows the progress of all its loops; hand it to whatever has loops of its own (a trainer, say).
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], lock: FolderLock, quiet: bool) -> None:
        super().__init__(folder, manifest)
        self._lock = lock
        self.reporter = ProgressReporter(quiet)

    @classmethod
    def open(
        cls,
        out: Path | str,
        study: str,
        config: Mapping[str, Any],
        *,
        seed: int,
        inputs: Mapping[str, str] | None = None,
        quiet: bool = False,
    ) -> Run:
        """Create the run folder `out`, or open it again where it was made for the same study, config, seed and inputs.

        A folder whose run failed before it had any result is taken over by whatever is asked for now.

        Args:
            config: anything JSON can hold (also tuples, paths, enums, numpy scalars).
            inputs: name -> content hash of each input (data, model).
            quiet: no progress on stderr.

        Raises:
            InputError: the folder belongs to another run (the message names the keys that differ), holds files but
                no manifest, or is being written by another process.
            RunWriteError: it cannot be written.
        """
        folder = Path(out)
        asked = fresh(study, config, seed, inputs or {})
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _refuse_foreign(folder)
            lock = FolderLock(folder)
        except OSError as error:
            raise explain(error, folder) from error
        try:
            # Looked at only with the lock in hand: another process may have finished it a moment ago.
            manifest = read_manifest(folder) if (folder / "manifest.json").exists() else None
            differing = [
                line
                for key in ("study", "seed", "inputs", "config")
                for line in (differences(manifest[key], asked[key], key) if manifest else [])
            ]
            if manifest is None or (differing and lock.alone and not _has_results(folder, manifest)):
                remove_leftovers(folder)
                run = cls(folder, asked, lock, quiet)
                run._save()
                return run
            if differing:
                raise InputError(
                    f"{folder} holds another run, which differs in {'; '.join(differing)}: choose another folder"
                )
            run = cls(folder, manifest, lock, quiet)
            if not run.done:
                remove_leftovers(folder)
                run._note_resumed()
            return run
        except OSError as error:
            lock.release()
            raise explain(error, folder) from error
        except BaseException:
            lock.release()
            raise

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes write the folder. The run can still be read."""
        self._lock.release()

    def record(self, **facts: Any) -> None:
        """Add facts to the manifest's record: model hash, dtype, attention kernel, token spans, ..."""
        facts = plain(facts)
        if any(self.manifest["record"].get(key, self) != value for key, value in facts.items()):
            self.manifest["record"].update(facts)
            self._save()

    def stage(self, name: str, compute: Callable[[], Mapping[str, pl.DataFrame]]) -> dict[str, pl.DataFrame]:
        """Tables by name: read from the folder where the stage is done, otherwise computed, written and marked done.

        Raises:
            InputError: a finished stage's file was changed since. RunWriteError: a table cannot be written.
            ValueError: a name that is no file name, or a table that another stage has already made.
        """
        if not self._has(name, "tables"):
            started = time.monotonic()
            tables = compute()
            paths = [self._write_table(name, table, frame) for table, frame in tables.items()]
            self._mark_done(name, "tables", paths, time.monotonic() - started)
        return {Path(path).stem: read_table(self.folder / path) for path in self.manifest["stages"][name]["files"]}

    def arrays(self, name: str, compute: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Arrays by name, kept in `arrays/NAME.safetensors`; otherwise as `stage`."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file, save_file

        path = self.folder / "arrays" / f"{_checked(name)}.safetensors"
        if not self._has(name, "arrays"):
            started = time.monotonic()
            # safetensors writes the buffer as it lies in memory: a transposed view would come back scrambled.
            arrays = {key: np.asarray(array).copy(order="C") for key, array in compute().items()}
            with replacing(path) as temporary:
                try:
                    save_file(arrays, temporary)
                except SafetensorError as error:
                    raise _as_os_error(error) from error
            self._mark_done(name, "arrays", [f"arrays/{name}.safetensors"], time.monotonic() - started)
        try:
            return dict(load_file(path))
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path} cannot be read ({error}): a whole safetensors file was expected") from error

    def map(self, name: str, keys: Sequence[str], compute: Callable[[str], pl.DataFrame]) -> pl.DataFrame:
        """One table from many independent parts, in the order of `keys`; a killed run loses at most one part.

        Args:
            name: of the stage and of its table.
            keys: distinct texts (entities, layers, ...).
            compute: key -> that key's rows; called only for keys whose part is not there yet.

        Raises:
            ValueError: keys that repeat, or parts whose columns cannot be put under one another.
            RunWriteError: a part cannot be written.
        """
        if not self._has(name, "map"):
            if len(set(keys)) != len(keys):
                raise ValueError(f"map stage {name!r} has keys that repeat")
            folder = self.folder / "parts" / _checked(name)
            started, resumed = time.monotonic(), 0
            parts: list[pl.DataFrame] = []
            with self.progress(name, len(keys)) as advance:
                for key in keys:
                    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.parquet"
                    if path.exists():
                        resumed += 1
                    else:
                        _write_parquet(path, compute(key))
                    parts.append(read_table(path))
                    advance(1)
            try:
                # relaxed: a part whose column is all null has no dtype of its own.
                merged = pl.concat([part for part in parts if part.width] or [pl.DataFrame()], how="vertical_relaxed")
            except pl.exceptions.PolarsError as error:
                raise ValueError(f"the parts of map stage {name!r} do not fit together: {error}") from error
            written = self._write_table(name, name, merged)
            extra = {"parts": len(keys), "parts_from_earlier_sessions": resumed}
            self._mark_done(name, "map", [written], time.monotonic() - started, **extra)
        # Also where the kill came between marking the stage done and removing its parts.
        shutil.rmtree(self.folder / "parts" / name, ignore_errors=True)
        if (self.folder / "parts").is_dir() and not any((self.folder / "parts").iterdir()):
            (self.folder / "parts").rmdir()
        return self.table(name)

    def track(self, iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """Yield from `iterable` with progress on stderr: a bar on a terminal, else a line at most every 10 s."""
        return self.reporter.track(iterable, description, total)

    def progress(self, description: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """The same for a loop that is elsewhere: `with run.progress("train", steps) as advance: ... advance(1)`."""
        return self.reporter.loop(description, total)

    def figure(self, name: str, chart: alt.TopLevelMixin) -> None:
        """Write `figures/NAME.{json,svg,png}` in the workbench's theme. Raises RunWriteError."""
        from inscape.runs.figures import draw

        draw(self.folder / "figures", _checked(name), chart)
        if name not in self.manifest["figures"]:
            self.manifest["figures"].append(name)
            self._save()

    def summary(self, values: Mapping[str, Scalar]) -> None:
        """Write `summary.json`: flat, keys sorted, NaN and infinity as null. Replaces an earlier one.

        Raises:
            ValueError: a value that is not a number, a text, a truth value or None.
        """
        flat = {key: _scalar(key, value) for key, value in sorted(values.items())}
        write_text(self.folder / "summary.json", json.dumps(flat, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def finish(self, page: Page) -> Path:
        """Write the report, mark the run done, release the folder; returns the path of `report.html`."""
        from inscape.runs.report import write_report

        content = json.dumps(page_to_json(page), ensure_ascii=False)
        write_text(self.folder / "page.json", content)
        self.manifest["finished"] = now()
        try:
            report = write_report(self, page)
            self._save()
        except BaseException:
            self.manifest["finished"] = None
            raise
        self.close()
        return report

    def _save(self) -> None:
        write_text(
            self.folder / "manifest.json", json.dumps(self.manifest, indent=2, ensure_ascii=False, default=str) + "\n"
        )

    def _note_resumed(self) -> None:
        before, at_present = self.manifest["versions"], versions()
        changed = {key: [before.get(key), new] for key, new in at_present.items() if before.get(key) != new}
        self.manifest["resumed"].append({"at": now(), "command": command(), "changed_versions": changed})
        self._save()

    def _has(self, name: str, kind: str) -> bool:
        """Whether the stage is done and its files are there; one that was deleted is computed again."""
        stage = self.manifest["stages"].get(_checked(name))
        if stage is None:
            return False
        if stage["kind"] != kind:
            raise ValueError(f"stage {name!r} was made as {stage['kind']!r} and is now asked for as {kind!r}")
        for path, recorded in stage["files"].items():
            file = self.folder / path
            if not file.exists():
                return False
            if file_hash(file) != recorded:
                raise InputError(
                    f"{file} is not what stage {name!r} wrote (its sha256 differs): restore it, or delete it to have "
                    "the stage computed again"
                )
        return True

    def _write_table(self, stage: str, table: str, frame: pl.DataFrame) -> str:
        path = f"tables/{_checked(table)}.parquet"
        for other, made in self.manifest["stages"].items():
            if other != stage and path in made["files"]:
                raise ValueError(f"stage {stage!r} makes table {table!r}, which stage {other!r} has already made")
        _write_parquet(self.folder / path, frame)
        return path

    def _mark_done(self, name: str, kind: str, paths: Sequence[str], seconds: float, **extra: int) -> None:
        self.manifest["stages"][name] = {
            "kind": kind,
            "files": {path: file_hash(self.folder / path) for path in paths},
            "seconds": round(seconds, 3),
            "finished": now(),
            **extra,
        }
        self._save()


def _refuse_foreign(folder: Path) -> None:
    if (folder / "manifest.json").exists():
        return
    # Hidden files are our own lock and temporaries of a run that was killed before its first manifest.
    strange = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if strange:
        shown = ", ".join(strange[:3]) + (", ..." if len(strange) > 3 else "")
        raise InputError(f"{folder} holds files but no manifest.json ({shown}): an empty or new folder was expected")


def _has_results(folder: Path, manifest: Mapping[str, Any]) -> bool:
    # Also files of no finished stage: the parts of a map that was stopped are hours of work, and another run that found
    # them would take them for its own.
    if manifest["stages"] or manifest.get("finished") is not None:
        return True
    shown = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return any(str(path) != "manifest.json" and not path.name.startswith(".") for path in shown)


def _checked(name: str) -> str:
    if not _NAME.match(name):
        raise ValueError(f"{name!r} cannot name a file: letters, digits, '_', '-' and '.' were expected")
    return name


def _write_parquet(path: Path, frame: pl.DataFrame) -> None:
    with replacing(path) as temporary:
        try:
            frame.write_parquet(temporary)
        except pl.exceptions.PolarsError as error:
            raise _as_os_error(error) from error


def _as_os_error(error: Exception) -> OSError:
    """The operating system's error behind a library's one; libraries keep its text and number but not its type."""
    found = re.search(r"os error (\d+)", str(error), re.IGNORECASE)
    if found is None:
        raise error
    return OSError(int(found[1]), str(error))


def _scalar(key: str, value: Any) -> Scalar:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    raise ValueError(f"summary value {key!r} is a {type(value).__name__}: a number, text, truth value or None expected")
