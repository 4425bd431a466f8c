"""SIGKILL at any moment, the same command again: the tables are those of a run that was left alone."""

import contextlib
import os
import signal
import subprocess
import sys

import polars as pl
import pytest

import inscape.runs
from inscape.runs import read_run

# The room needs nothing of the package but `inscape.errors`; without the rest (torch, transformers) a process of these
# tests starts in a third of the time.
ROOM_ALONE = f"""
import sys, types
package = types.ModuleType("inscape")
package.__path__ = [{os.path.dirname(os.path.dirname(inscape.runs.__file__))!r}]
sys.modules["inscape"] = package
"""

# The kill is injected here, around the two system calls that every write ends with; the product knows nothing of it.
SCRIPT = """
import os, signal, sys
import numpy as np, polars as pl
import inscape.runs.writing as writing
from inscape.runs import Run, Page

countdown = int(os.environ.get("KILL_AT", "0"))
def deadly(call):
    def wrapped(*args, **kwargs):
        global countdown
        countdown -= 1
        if countdown == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)
    return wrapped
writing.os.fsync, writing.os.replace = deadly(os.fsync), deadly(os.replace)

run = Run.open(sys.argv[1], "killed", {"n": 5}, seed=7, quiet=True)
rng = np.random.default_rng(7)
first = run.stage("first", lambda: {"a": pl.DataFrame({"x": rng.normal(size=50)}), "b": pl.DataFrame({"y": [1, 2]})})
scale = run.arrays("scale", lambda: {"s": np.array([first["a"]["x"].sum()])})["s"][0]
def part(key):
    draw = np.random.default_rng(int(key))
    return pl.DataFrame({"key": [key] * 3, "z": draw.normal(size=3) * scale})
mapped = run.map("mapped", [str(i) for i in range(5)], part)
run.stage("last", lambda: {"last": mapped.group_by("key", maintain_order=True).agg(pl.col("z").mean())})
run.summary({"mean": mapped["z"].mean()})
run.finish(Page("Killed", "and resumed"))
"""


def start(folder, kill_at=0):
    environment = {**os.environ, "KILL_AT": str(kill_at), "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    command = [sys.executable, "-c", ROOM_ALONE + SCRIPT, str(folder)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def finished(folder, kill_at=0):
    process = start(folder, kill_at)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "run"
    code, errors = finished(folder)
    assert code == 0, errors
    return folder


def assert_same(folder, reference):
    run, expected = read_run(folder), read_run(reference)
    assert run.done
    assert run.tables == expected.tables == ["a", "b", "mapped", "last"]
    for name in run.tables:
        assert run.table(name).equals(expected.table(name)), name
        assert run.table(name).schema == expected.table(name).schema
    arrays = "arrays/scale.safetensors"
    assert (folder / arrays).read_bytes() == (reference / arrays).read_bytes()
    assert run.read_summary() == expected.read_summary()
    everything = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    assert everything == {str(path.relative_to(reference)) for path in reference.rglob("*")}


# A run makes about 60 such calls: before the first manifest, between table and manifest, among the parts of the map,
# between merging and removing them, in the report.
@pytest.mark.parametrize("kill_at", [1, 2, 5, 12, 19, 23, 34, 38, 41, 47, 53])
def test_killed_at_a_system_call(tmp_path, left_alone, kill_at):
    folder = tmp_path / "run"
    code, errors = finished(folder, kill_at)
    assert code == -signal.SIGKILL, errors
    for table in folder.glob("tables/*.parquet"):
        pl.read_parquet(table)  # whole or not there
    code, errors = finished(folder)
    assert code == 0, errors
    assert_same(folder, left_alone)


def test_killed_again_and_again(tmp_path, left_alone):
    folder = tmp_path / "run"
    kills = 0
    while (outcome := finished(folder, kill_at=17))[0] != 0:
        assert outcome[0] == -signal.SIGKILL, outcome[1]
        kills += 1
        assert kills < 12, "no progress between kills"
    assert kills >= 3
    assert_same(folder, left_alone)


@pytest.mark.parametrize("seconds", [0.3, 0.5, 0.6, 0.7, 0.8])
def test_killed_from_outside(tmp_path, left_alone, seconds):
    folder = tmp_path / "run"
    process = start(folder)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=seconds)
    process.kill()
    process.communicate()
    code, errors = finished(folder)
    assert code == 0, errors
    assert_same(folder, left_alone)
