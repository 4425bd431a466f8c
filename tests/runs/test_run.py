"""A run folder: opening, refusing, stages, maps, arrays, summary, lock."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import polars as pl
import pytest

from inscape.errors import InputError
from inscape.runs import Page, Run, RunWriteError, read_run


def opened(folder, study="s", config=None, seed=0, **options):
    return Run.open(folder, study, {"k": 3} if config is None else config, seed=seed, quiet=True, **options)


def never():
    raise AssertionError("a finished stage was computed again")


def test_stage_is_computed_once_and_read_back_the_same(tmp_path):
    frame = pl.DataFrame({"a": [1, None], "b": ["x", "ü"], "c": [0.1, float("nan")]})
    with opened(tmp_path / "r") as run:
        first = run.stage("fit", lambda: {"fit": frame, "curve": frame.head(1)})
    with opened(tmp_path / "r") as run:
        again = run.stage("fit", never)
    assert list(first) == list(again) == ["fit", "curve"]
    assert first["fit"].equals(frame, null_equal=True)
    assert again["fit"].equals(frame, null_equal=True)
    assert read_run(tmp_path / "r").tables == ["fit", "curve"]


def test_arrays_survive_transposition_and_scalars(tmp_path):
    arrays = {"t": np.arange(6.0).reshape(2, 3).T, "zero_d": np.float32(2.5), "sliced": np.arange(10)[::3]}
    with opened(tmp_path / "r") as run:
        run.arrays("x", lambda: arrays)
    with opened(tmp_path / "r") as run:
        back = run.arrays("x", never)
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].shape == np.shape(array)


def test_map_goes_on_where_it_stopped_and_keeps_the_order_of_keys(tmp_path):
    keys = [f"k/{i} ü" for i in (3, 1, 2, 0)]
    done = []

    def compute(key):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(key)
        return pl.DataFrame({"key": [key], "n": [None if key == keys[0] else 7]})

    with opened(tmp_path / "r") as run, pytest.raises(KeyboardInterrupt):
        run.map("edit", keys, compute)
    later = []
    with opened(tmp_path / "r") as run:
        table = run.map("edit", keys, lambda key: later.append(key) or pl.DataFrame({"key": [key], "n": [7]}))
        assert run.map("edit", keys, lambda key: never()).equals(table)
    assert (done, later) == (keys[:2], keys[2:])
    assert table["key"].to_list() == keys
    assert table["n"].to_list() == [None, 7, 7, 7]
    assert not (tmp_path / "r" / "parts").exists()
    stage = read_run(tmp_path / "r").manifest["stages"]["edit"]
    assert (stage["parts"], stage["parts_from_earlier_sessions"]) == (4, 2)


def test_map_without_rows_and_with_wrong_parts(tmp_path):
    with opened(tmp_path / "r") as run:
        assert run.map("none", [], never).height == 0
        with pytest.raises(ValueError, match="repeat"):
            run.map("twice", ["a", "a"], lambda key: pl.DataFrame({"x": [1]}))
        with pytest.raises(ValueError, match="fit together"):
            run.map("odd", ["a", "b"], lambda key: pl.DataFrame({key: [1]}))


def test_another_run_is_refused_with_the_keys_that_differ(tmp_path):
    folder = tmp_path / "r"
    config = {"layers": (1, 2), "window": {"tokens": 2}, "on": True}
    with opened(folder, config=config, inputs={"facts": "aa"}) as run:
        run.stage("fit", lambda: {"fit": pl.DataFrame({"a": [1]})})
    opened(folder, config={**config, "layers": [1, 2]}, inputs={"facts": "aa"}).close()  # a tuple is its list
    with pytest.raises(InputError) as refusal:
        opened(folder, config={**config, "window": {"tokens": 3}, "on": 1}, seed=4, inputs={"facts": "bb"})
    message = str(refusal.value)
    for part in ("seed", "inputs.facts", "config.window.tokens (was 2, now 3)", "config.on"):
        assert part in message
    assert "layers" not in message
    assert "\n" not in message
    with pytest.raises(InputError, match="study"):
        opened(folder, study="t", config=config, inputs={"facts": "aa"})
    opened(folder, config=config, inputs={"facts": "aa"}).close()  # a refusal leaves no lock behind


def test_a_start_without_any_result_does_not_block_another_config(tmp_path):
    folder = tmp_path / "r"

    def fails():
        raise InputError("no such model")

    with opened(folder, config={"k": 3}, inputs={"facts": "aa"}) as run:
        run.record(dtype="float32")
        with pytest.raises(InputError, match="no such model"):
            run.stage("fit", fails)
    with opened(folder, study="t", config={"k": 4}, seed=1, inputs={"facts": "bb"}) as run:
        manifest = read_run(folder).manifest
        assert (run.study, manifest["config"], manifest["seed"], manifest["inputs"]) == (
            "t",
            {"k": 4},
            1,
            {"facts": "bb"},
        )
        assert (manifest["record"], manifest["resumed"]) == ({}, [])
        with pytest.raises(InputError, match="differs in"):  # the run that is open would be lost
            opened(folder, config={"k": 5})
        run.stage("fit", lambda: {"fit": pl.DataFrame({"a": [1]})})
    with pytest.raises(InputError, match="differs in"):
        opened(folder, config={"k": 5})


def test_parts_of_a_stopped_map_are_results_that_block_another_config(tmp_path):
    def stops_at_b(key):
        if key == "b":
            raise KeyboardInterrupt
        return pl.DataFrame({"key": [key]})

    with opened(tmp_path / "r") as run, pytest.raises(KeyboardInterrupt):
        run.map("edit", ["a", "b"], stops_at_b)
    assert read_run(tmp_path / "r").manifest["stages"] == {}
    with pytest.raises(InputError, match=r"config\.k"):
        opened(tmp_path / "r", config={"k": 4})


def test_folder_that_is_no_run_is_refused_untouched(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match=r"no manifest.*thesis\.tex"):
        opened(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match="not a run folder"):
        read_run(tmp_path)
    with pytest.raises(RunWriteError, match="cannot write"):
        opened(tmp_path / "thesis.tex" / "below")


@pytest.mark.parametrize("content", ["{", "[]", '{"format": "other/9"}', '{"format": "inscape-run/1"}'])
def test_damaged_manifest_is_refused(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=r"manifest\.json"):
        opened(tmp_path)


def test_changed_table_is_refused_and_deleted_one_computed_again(tmp_path):
    path = tmp_path / "r" / "tables" / "fit.parquet"
    with opened(tmp_path / "r") as run:
        run.stage("fit", lambda: {"fit": pl.DataFrame({"a": [1]})})
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with opened(tmp_path / "r") as run, pytest.raises(InputError, match="sha256"):
        run.stage("fit", never)
    with pytest.raises(InputError, match=r"fit\.parquet"):
        read_run(tmp_path / "r").table("fit")
    path.unlink()
    with opened(tmp_path / "r") as run:
        assert run.stage("fit", lambda: {"fit": pl.DataFrame({"a": [1]})})["fit"].item() == 1


def test_names_and_owners_of_tables(tmp_path):
    with opened(tmp_path / "r") as run:
        run.stage("a", lambda: {"t": pl.DataFrame({"x": [1]})})
        with pytest.raises(ValueError, match="already made"):
            run.stage("b", lambda: {"t": pl.DataFrame({"x": [2]})})
        with pytest.raises(ValueError, match="cannot name a file"):
            run.stage("../up", never)
        with pytest.raises(ValueError, match="cannot name a file"):
            run.stage("c", lambda: {"x/y": pl.DataFrame()})
        with pytest.raises(ValueError, match="made as 'tables'"):
            run.arrays("a", never)
        with pytest.raises(InputError, match=r"no table 'z'.* t"):
            run.table("z")


def test_summary_is_flat_sorted_and_has_null_for_nan(tmp_path):
    with opened(tmp_path / "r") as run:
        run.summary({"z": np.float32(0.5), "a": float("nan"), "k": np.int64(3), "ok": True, "who": "é", "none": None})
        text = (tmp_path / "r" / "summary.json").read_text(encoding="utf-8")
        assert json.loads(text) == {"a": None, "k": 3, "none": None, "ok": True, "who": "é", "z": 0.5}
        assert list(json.loads(text)) == sorted(json.loads(text))
        with pytest.raises(ValueError, match="'nested'"):
            run.summary({"nested": {"a": 1}})
        assert run.read_summary()["k"] == 3


def test_manifest_tells_how_it_was_made(tmp_path):
    with opened(tmp_path / "r", inputs={"facts": "ff"}) as run:
        run.record(dtype="float32", spans=(1, 2))
        run.stage("fit", lambda: time.sleep(0.05) or {"fit": pl.DataFrame({"a": [1]})})
        assert not run.done
        run.finish(Page("t", "l"))
        assert run.done
    manifest = read_run(tmp_path / "r").manifest
    assert manifest["record"] == {"dtype": "float32", "spans": [1, 2]}
    assert manifest["versions"]["polars"] == pl.__version__
    assert manifest["inputs"] == {"facts": "ff"}
    assert 0.05 <= manifest["stages"]["fit"]["seconds"] < 5
    before = (tmp_path / "r" / "manifest.json").read_bytes()
    with opened(tmp_path / "r", inputs={"facts": "ff"}) as run:
        assert run.done
    assert (tmp_path / "r" / "manifest.json").read_bytes() == before


def test_a_library_that_changed_between_sessions_is_named(tmp_path):
    opened(tmp_path / "r").close()
    path = tmp_path / "r" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["versions"]["torch"] = "2.0.0"
    path.write_text(json.dumps(manifest))
    opened(tmp_path / "r").close()
    assert json.loads(path.read_text())["resumed"][0]["changed_versions"]["torch"][0] == "2.0.0"


HOLDER = """
import sys, time
from inscape.runs import Run
run = Run.open(sys.argv[1], "s", {"k": 3}, seed=0, quiet=True)
print("held", flush=True)
time.sleep(60)
"""


def test_two_processes_cannot_write_one_folder_and_a_dead_one_holds_nothing(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "r")], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"process {holder.pid}"):
            opened(tmp_path / "r")
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    opened(tmp_path / "r").close()


def test_the_same_process_may_open_its_folder_twice(tmp_path):
    first, second = opened(tmp_path / "r"), opened(tmp_path / "r")
    first.close()
    first.close()
    code = f"from inscape.runs import Run; Run.open({str(tmp_path / 'r')!r}, 's', {{'k': 3}}, seed=0)"
    refused = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"process {os.getpid()}" in refused.stderr
    second.close()
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_progress_is_silent_when_quiet_and_sparse_in_a_log(tmp_path, capsys, monkeypatch):
    clock = iter(np.arange(0.0, 1000.0, 4.0))
    monkeypatch.setattr("inscape.runs.progress.time.monotonic", lambda: next(clock))
    with opened(tmp_path / "a") as run:
        assert list(run.track(range(9), "loop")) == list(range(9))
    assert capsys.readouterr() == ("", "")
    run = Run.open(tmp_path / "b", "s", {}, seed=0)
    assert list(run.track(range(9), "loop")) == list(range(9))
    out, err = capsys.readouterr()
    run.close()
    assert out == ""
    # 9 steps, 4 s each: a line each 12 s.
    assert [line.split(" (")[0] for line in err.splitlines()] == ["loop: 3/9", "loop: 6/9", "loop: 9/9"]
