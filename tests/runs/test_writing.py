"""Disks that fill up, folders that cannot be written: one clear line, nothing half-written."""

import contextlib
import errno
import os
import shutil
import subprocess

import altair as alt
import numpy as np
import polars as pl
import pytest

from inscape.errors import InputError
from inscape.runs import Page, Run, RunWriteError
from inscape.runs.writing import remove_leftovers, replacing, write_text


@contextlib.contextmanager
def mounted(folder, options):
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root to mount a small tmpfs")
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def visible(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


noise = np.random.default_rng(0).normal(size=600_000)


@pytest.mark.parametrize(
    "write",
    [
        lambda run: run.stage("big", lambda: {"big": pl.DataFrame({"x": noise})}),
        lambda run: run.arrays("big", lambda: {"x": noise}),
        lambda run: run.map("big", ["a"], lambda key: pl.DataFrame({"x": noise})),
        lambda run: run.figure("big", alt.Chart(pl.DataFrame({"x": noise[:60_000]})).mark_tick().encode(x="x:Q")),
        lambda run: run.summary({"x": "y" * 4_000_000}),
        lambda run: run.finish(Page("t", "y" * 4_000_000)),
    ],
    ids=["table", "arrays", "part", "figure", "summary", "report"],
)
def test_full_disk(tmp_path, write):
    with mounted(tmp_path / "disk", "size=2m") as disk:
        run = Run.open(disk / "r", "s", {}, seed=0, quiet=True)
        run.stage("small", lambda: {"small": pl.DataFrame({"x": [1]})})
        before = visible(disk)
        with pytest.raises(RunWriteError, match=r"no space left for .*run the same command again") as refusal:
            write(run)
        assert "\n" not in str(refusal.value)
        # What did fit is whole (a figure's JSON before its drawing), and nothing else came to lie there.
        for extra in set(visible(disk)) - set(before):
            assert extra in ("r/figures/big.json", "r/figures/big.svg", "r/page.json")
            assert (disk / extra).stat().st_size > 0
        assert not any("tmp" in name for name in visible(disk))
        assert run.tables == ["small"]
        assert run.figures == []
        run.close()
        with Run.open(disk / "r", "s", {}, seed=0, quiet=True) as again:
            assert again.stage("small", lambda: {})["small"].item() == 1
            assert not again.done


def test_read_only_disk(tmp_path):
    with mounted(tmp_path / "disk", "ro,size=1m") as disk, pytest.raises(RunWriteError, match="Read-only file system"):
        Run.open(disk / "r", "s", {}, seed=0)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_failing_flush_leaves_the_old_file(tmp_path, monkeypatch, number):
    path = tmp_path / "a.json"
    write_text(path, "old")

    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("inscape.runs.writing.os.fsync", fail)
    with pytest.raises(RunWriteError, match=r"a\.json"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert visible(tmp_path) == ["a.json"]


def test_any_failure_removes_the_temporary(tmp_path):
    def interrupted():
        with replacing(tmp_path / "a") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert visible(tmp_path) == []


def test_leftovers_of_a_killed_process_go_and_other_hidden_files_stay(tmp_path):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / ".fit.parquet.123.inscape-tmp").write_text("half")
    (tmp_path / ".mine").write_text("keep")
    assert remove_leftovers(tmp_path) == 1
    assert visible(tmp_path) == [".mine"]


def test_run_write_error_is_an_input_error():
    assert issubclass(RunWriteError, InputError)
