"""The command line as a user meets it: names, files, resuming, exit codes, one-line errors."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from inscape.cli import main
from inscape.runs import read_run

TINY = ["--entities", "6", "--n-steps", "3", "--components", "1", "--random-directions", "2", "--shuffled-draws", "2",
        "--sweep-entities", "4", "--side-effect-entities", "3", "--quiet"]  # fmt: skip

MONOTONIC_KEYS = [
    "r2_test", "r2_test_shuffled", "r2_name_floor", "spearman_edit", "spearman_random", "slope_edit",
    "slope_random_p95", "side_effect_mean", "model_accuracy",
]  # fmt: skip
COMPARISON_KEYS = [
    "accuracy",
    "consistency",
    "r2_best_layer",
    "flip_valid_at_best_alpha",
    "flip_random_p95",
    "invalid_rate",
]


def inscape(*arguments, code=0):
    """Run a command in this process; its exit code must be ``code``."""
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    assert stopped.value.code == code


def error_line(capsys) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("inscape: ")]
    assert len(lines) == 1
    return lines[0]


def tables(folder: Path) -> dict[str, pl.DataFrame]:
    return {path.stem: pl.read_parquet(path) for path in sorted((folder / "tables").glob("*.parquet"))}


def test_list_names_studies_and_worlds(capsys):
    inscape("list", "--json")
    entries = {e["name"]: e for e in json.loads(capsys.readouterr().out)}
    assert {"numeric-monotonic", "numeric-comparison", "numeric"} <= set(entries)
    assert "2403.10381" in entries["numeric-monotonic"]["paper"]
    inscape("list")
    assert len(capsys.readouterr().out.splitlines()) == len(entries)


def test_monotonic_smoke_then_again_then_another_config(tmp_path, smoke_model, capsys):
    out = tmp_path / "m"
    inscape("run", "numeric-monotonic", "--smoke", "--out", out, "--quiet")
    assert capsys.readouterr().out.strip() == str(out / "report.html")
    summary = json.loads((out / "summary.json").read_text())
    for key in MONOTONIC_KEYS:
        assert {key, f"{key}_lo", f"{key}_hi"} <= set(summary)
    assert {"k", "layer", "n_entities", "n_missing"} <= set(summary)
    manifest = json.loads((out / "manifest.json").read_text())
    assert {"model_sha256", "tokenizer_sha256", "dtype", "attention", "adds_bos"} <= set(manifest["record"])
    page = (out / "report.html").read_text()
    assert "http://" not in page.split("<script", 1)[0].replace("http://www.w3.org", "")
    for name in ("fit", "projection", "dose", "side_effects"):
        assert all((out / "figures" / f"{name}.{ending}").stat().st_size for ending in ("json", "svg", "png"))

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
    inscape("run", "numeric-monotonic", "--smoke", "--out", out, "--quiet")
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert "done" in capsys.readouterr().err

    inscape("run", "numeric-monotonic", "--smoke", "--seed", "1", "--out", out, "--quiet", code=2)
    assert "seed" in error_line(capsys)

    (out / "report.html").unlink()
    inscape("report", out)
    assert "Is birth year a direction?" in (out / "report.html").read_text()


def test_comparison_smoke(tmp_path, smoke_model, capsys):
    out = tmp_path / "c"
    inscape("run", "numeric-comparison", "--smoke", "--out", out, "--quiet")
    summary = json.loads((out / "summary.json").read_text())
    for key in COMPARISON_KEYS:
        assert {key, f"{key}_lo", f"{key}_hi"} <= set(summary)
    assert {"best_layer", "flip_any_alpha_paper"} <= set(summary)
    pairs = read_run(out).table("pairs")
    for split in ("train", "dev", "test"):
        labels = pairs.filter(pl.col("split") == split)["label"]
        assert (labels == "Yes").sum() * 2 == len(labels)


def test_yaml_keys_are_fields_and_flags_win(tmp_path, smoke_model, capsys):
    file = tmp_path / "c.yaml"
    file.write_text("entities: 5\nn_steps: 5\nproperty: P570\n")
    out = tmp_path / "y"
    inscape(
        "run", "numeric-monotonic", "--config", file, "--smoke", "--n-steps", "3", "--out", out, "--quiet",
        "--properties", "birth_year", "P570", "--window-tokens", "0", "0",
    )  # fmt: skip
    config = json.loads((out / "manifest.json").read_text())["config"]
    assert (config["entities"], config["n_steps"], config["property"]) == (5, 3, "death_year")
    assert config["window_tokens"] == [0, 0]
    assert config["properties"] == ["birth_year", "death_year"]  # ids become names
    file.write_text("entitys: 5\n")
    inscape("run", "numeric-monotonic", "--config", file, "--out", tmp_path / "z", code=2)
    assert "no field 'entitys'" in error_line(capsys)
    file.write_text("entities: many\n")
    inscape("run", "numeric-monotonic", "--config", file, "--out", tmp_path / "z", code=2)
    assert "entities" in error_line(capsys)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "numeric-monotonic", "--entities", "-3"], "entities"),
        (["run", "numeric-monotonic", "--no-such-flag", "1"], "no-such-flag"),
        (["run", "no-such-study"], "no-such-study"),
        (["run", "numeric-monotonic", "--property", "shoe_size"], "shoe_size"),
        (["run", "numeric-monotonic", "--model", "./nowhere", "--data", "./nowhere.tsv"], "nowhere"),
        (["run", "numeric-monotonic", "--data", "./nowhere.tsv"], "nowhere.tsv"),
        (["report", "./nowhere"], "nowhere"),
        (["facts", "train", "--data", "./nowhere.tsv", "--out", "x"], "nowhere.tsv"),
        (["facts", "train", "--data", "./nowhere.tsv", "--out", "x", "--size", "huge"], "huge"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    inscape(*arguments, code=2)
    assert says in error_line(capsys)
    assert not list(tmp_path.rglob("*.parquet"))


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        main(["report", str(tmp_path / "nowhere"), "--debug"])


def test_interrupt_is_130(tmp_path, monkeypatch, smoke_model, capsys):
    from inscape.studies import numeric_monotonic

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(numeric_monotonic._Study, "edit", interrupted)
    inscape("run", "numeric-monotonic", "--smoke", "--out", tmp_path / "i", "--quiet", code=130)
    assert "goes on" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setenv("INSCAPE_CACHE", str(smoke_model.parent))
    inscape("run", "numeric-monotonic", "--smoke", "--out", tmp_path / "i", "--quiet")
    assert (tmp_path / "i" / "report.html").exists()


def test_killed_at_several_moments_goes_on_to_equal_tables(tmp_path, smoke_model):
    command = [sys.executable, "-m", "inscape", "run", "numeric-monotonic", "--smoke", *TINY]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole = tmp_path / "whole"
    subprocess.run([*command, "--out", str(whole)], check=True, capture_output=True, env=environment)
    out = tmp_path / "killed"
    kills = 0
    # Each attempt is killed when the folder holds more than the one before: after the first table, capture, part, ….
    for goal in (1, 4, 9):
        process = subprocess.Popen(
            [*command, "--out", str(out)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if sum(1 for f in out.glob("*/**/*.*") if f.suffix in (".parquet", ".safetensors")) >= goal:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.005)
        process.wait()
    assert kills >= 2
    subprocess.run([*command, "--out", str(out)], check=True, capture_output=True, env=environment)
    first, second = tables(whole), tables(out)
    assert first.keys() == second.keys()
    for name, table in first.items():
        assert table.equals(second[name]), name
    assert (whole / "summary.json").read_bytes() == (out / "summary.json").read_bytes()


def test_facts_train_saves_a_folder_that_studies_take_alone(tmp_path, capsys, cache):
    rows = [f"birth_year\ttrain\tQ{i}\tPerson {chr(65 + i % 26)}{i}\t{1800 + i}\t\n" for i in range(24)]
    rows += [f"birth_year\t{s}\tQ{s}{i}\tPerson {s} {i}\t{1700 + i}\t\n" for s in ("dev", "test") for i in range(8)]
    table = tmp_path / "facts.tsv"
    table.write_text("property\tsplit\tentity_id\tlabel\tvalue\tpopularity\n" + "".join(rows))
    out = tmp_path / "model"
    inscape("facts", "train", "--data", table, "--out", out, "--size", "smoke", "--steps", "30", "--quiet")
    said = capsys.readouterr().out
    assert "birth_year" in said
    assert str(out) in said
    inscape("run", "numeric-monotonic", "--model", out, "--smoke", *TINY, "--out", tmp_path / "run")
    assert read_run(tmp_path / "run").read_summary()["n_entities"] == 8


def test_a_damaged_model_folder_is_refused_and_nothing_is_written(tmp_path, smoke_model, capsys):
    import shutil

    for damage, says in (("truncate", "cut off"), ("remove", "no weights"), ("config", "config.json")):
        folder = tmp_path / damage
        shutil.copytree(smoke_model, folder)
        weights = folder / "model.safetensors"
        if damage == "truncate":
            weights.write_bytes(weights.read_bytes()[:-100])
        elif damage == "remove":
            weights.unlink()
        else:
            (folder / "config.json").write_text("{")
        out = tmp_path / f"out-{damage}"
        inscape("run", "numeric-monotonic", "--model", folder, "--smoke", "--out", out, "--quiet", code=2)
        assert says in error_line(capsys)
        assert not out.exists()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("birth_year\ttrain\tQ9\tSomebody\tsoon\t\n", "line 2"),
        ("birth_year\ttrain\tQ1\tA\t1800\t\nbirth_year\ttrain\tQ1\tB\t1801\t\n", "Q1"),
        ("birth_year\ttrain\tQ1\tA\tnan\t\n", "line 2"),
    ],
)
def test_a_bad_facts_row_is_named(line, says, tmp_path, capsys):
    table = tmp_path / "facts.tsv"
    table.write_text("property\tsplit\tentity_id\tlabel\tvalue\tpopularity\n" + line)
    inscape("run", "numeric-monotonic", "--data", table, "--out", tmp_path / "o", "--quiet", code=2)
    said = error_line(capsys)
    assert says in said
    assert "facts.tsv" in said
    assert not (tmp_path / "o").exists()


def test_a_model_that_knows_no_birth_years_is_said_to_know_none(tmp_path, stories260k, numeric_facts, capsys):
    given = ["--model", stories260k, "--data", numeric_facts, "--limit", "80", "--properties", "birth_year", "--smoke"]
    inscape("run", "numeric-monotonic", *given, *TINY, "--out", tmp_path / "m")
    summary = read_run(tmp_path / "m").read_summary()
    assert summary["model_accuracy"] == 0
    assert summary["n_missing"] == summary["n_entities"] == 20
    assert summary["slope_edit"] is None
    assert "no effect of the edit is claimed" in (tmp_path / "m" / "report.html").read_text()
    inscape("run", "numeric-comparison", *given, "--out", tmp_path / "c", "--quiet")
    summary = read_run(tmp_path / "c").read_summary()
    assert summary["accuracy"] == 0
    assert summary["flip_valid_at_best_alpha"] is None
    assert "no effect is claimed" in (tmp_path / "c" / "report.html").read_text()
