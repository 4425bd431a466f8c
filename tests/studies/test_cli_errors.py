"""What the command line says of bad flags, devices and folders: one line, exit code 2, and nothing done before."""

import os

import pytest

from inscape.cli import main

TABLE = "property\tsplit\tentity_id\tlabel\tvalue\tpopularity\n" + "".join(
    f"birth_year\t{split}\tQ{split}{i}\tPerson {split} {i}\t{1800 + i}\t\n"
    for split in ("train", "dev", "test")
    for i in range(4)
)


def refused(capsys, *arguments) -> str:
    """The one line that a command gives on stderr when it stops with exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("inscape: ")
    assert len(err.splitlines()) == 1
    return err.strip()


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "facts.tsv"
    path.write_text(TABLE)
    return path


@pytest.mark.parametrize("study", ["numeric-monotonic", "numeric-comparison"])
def test_a_refused_flag_reads_like_a_refused_key_of_a_yaml_file(study, tmp_path, capsys):
    says = "inscape: seed: Input should be greater than or equal to 0 (found "
    assert refused(capsys, "run", study, "--seed", "-3", "--out", tmp_path / "o") == says + "'-3')"
    (tmp_path / "c.yaml").write_text("seed: -3\n")
    assert refused(capsys, "run", study, "--config", tmp_path / "c.yaml", "--out", tmp_path / "o") == says + "-3)"
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("command", [("run", "numeric-monotonic"), ("run", "numeric-comparison"), ("facts", "train")])
def test_lists_have_no_flags_that_empty_them(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert "--properties" in said
    assert "--empty" not in said
    required = ("--data", "d", "--out", "o") if command == ("facts", "train") else ()
    assert "Unknown option: --empty-properties" in refused(capsys, *command, *required, "--empty-properties")


@pytest.mark.parametrize(
    ("out", "says"), [("n" * 300, "name too long"), ("file/out", "Not a directory"), ("file", "Not a directory")]
)
@pytest.mark.parametrize("command", [("run", "numeric-monotonic", "--smoke"), ("facts", "train", "--size", "smoke")])
def test_an_impossible_out_is_refused_before_any_work(command, out, says, tmp_path, table, monkeypatch, capsys):
    def never(*_, **__):
        raise AssertionError("work was begun for a folder that cannot be there")

    monkeypatch.setattr("inscape.studies.run_study", never)
    monkeypatch.setattr("inscape.training.facts.train_facts_lm", never)
    (tmp_path / "file").write_text("mine")
    said = refused(capsys, *command, "--data", table, "--out", tmp_path / out)
    assert says in said
    assert f"--out {tmp_path / out}" in said
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into any folder")
def test_an_unwritable_out_is_refused(tmp_path, table, capsys):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    for command in (("run", "numeric-monotonic", "--smoke"), ("facts", "train", "--size", "smoke")):
        assert "cannot write" in refused(capsys, *command, "--data", table, "--out", closed / "out", "--quiet")


def test_training_on_a_device_that_is_not_there_is_refused_before_it_begins(tmp_path, table, capsys):
    said = refused(capsys, "facts", "train", "--data", table, "--out", tmp_path / "m", "--device", "cudaa")
    assert "device 'cudaa' cannot be used" in said
    assert [path.name for path in tmp_path.iterdir()] == ["facts.tsv"]


def test_flags_and_file_are_checked_together_and_a_shape_that_can_t_be_is_named(tmp_path, capsys):
    """A budget in the file, rows as a flag: neither alone is a whole config of `pretrain`."""
    file = tmp_path / "c.yaml"
    file.write_text("model: {width: 30, heads: 4}\ncorpus: nowhere\ntokenizer: nowhere\nsteps: 5\n")
    says = refused(capsys, "pretrain", file, "--rows", "2", "--out", tmp_path / "o")
    assert says.startswith("inscape: model: Value error, width 30 with 4 heads")
    file.write_text("corpus: nowhere\ntokenizer: nowhere\nsteps: 5\n")
    assert "nowhere" in refused(capsys, "pretrain", file, "--rows", "2", "--out", tmp_path / "o")
    assert "expected one of steps, tokens, minutes" in refused(
        capsys, "pretrain", file, "--tokens", "9", "--out", tmp_path / "o"
    )
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("corpus", "build", "--no-such", "1"), "no-such"),
        (("tokenizer", "train"), "corpus"),
        (("finetune",), "no model"),
        (("plan", "nowhere"), "nowhere"),
        (("run", "multilingual-pretraining", "--corpora", "nowhere"), "nowhere"),
        (("run", "multilingual-pretraining", "--width", "30", "--heads", "4"), "multiple of the heads"),
    ],
)
def test_commands_that_make_something_refuse_in_one_line(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert says in refused(capsys, *arguments)
    assert not list(tmp_path.iterdir())
