"""`inscape corpus build` as a run: tables, summary and page from a small corpus; the same again; bad input."""

import json

import pytest
import yaml

from inscape.data.corpus import Corpus
from inscape.errors import InputError
from inscape.runs import Run
from inscape.studies import corpus_build, corpus_build_page
from inscape.studies.corpus_build import Config, asked_for, inputs_of


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "a.jsonl"
    lines = [
        {"id": f"{i}", "lang": lang, "text": f"{lang} text of number {i}, <b>{i * i}</b> & more"}
        for i in range(30)
        for lang in ("wo", "sw")
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    skip = ["length", "near", "special_characters", "stop_words"]
    return {"name": "notes", "files": [str(file)], "markup": "html", "licence": "CC0-1.0", "skip": skip}


def build(config, out):
    asked = asked_for(config)
    with Run.open(
        out, "corpus build", config.identity(), seed=config.seed, inputs=inputs_of(config, asked), quiet=True
    ) as run:
        if not run.done:
            corpus_build.run(config, asked, run)
            for name, chart in corpus_build_page.figures(run).items():
                run.figure(name, chart)
            run.finish(corpus_build_page.page(run))
        return run


def test_a_run_holds_the_corpus_and_says_what_each_step_took(source, tmp_path):
    config = Config.model_validate(yaml.safe_load(yaml.safe_dump({"sources": [source], "code": 0.01})))
    run = build(config, tmp_path / "run")
    corpus = Corpus.open(tmp_path / "run")
    assert corpus.folder == tmp_path / "run" / "corpus"
    assert corpus.languages == ["code", "sw", "wo"]
    summary = run.read_summary()
    kept = sum(sum(corpus.bytes_by_language(split).values()) for split in ("train", "validation"))
    assert summary["megabytes_kept"] == pytest.approx(kept / 1e6)
    taken = sum(value for key, value in summary.items() if key.startswith("removed_"))
    assert 1 - taken == pytest.approx(summary["share_kept"], abs=1e-4)  # (what PI: tags add or save is not taken)
    assert summary["removed_markup"] > 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "CC0-1.0" in page
    assert "2 languages are unknown" not in page
    assert "1 languages have no list of stop words" in page
    again = build(config, tmp_path / "run")
    assert again.read_summary() == summary


def test_results_do_not_depend_on_where_files_are_or_on_processes(source, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / "b.jsonl"
    moved.write_bytes((tmp_path / "a.jsonl").read_bytes())
    one = Config(sources=[source], code=0, processes=1)
    two = Config(sources=[{**source, "files": [str(moved)]}], code=0, processes=2)
    assert one.identity() == two.identity()
    assert inputs_of(one, asked_for(one)) == inputs_of(two, asked_for(two))
    assert one.identity() != Config(sources=[{**source, "markup": "none"}], code=0).identity()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"code": 0}, "sources: none, expected some"),
        ({"corpora": "nowhere"}, "expected the corpora pack"),
    ],
)
def test_nothing_to_build_from(fields, message):
    with pytest.raises(InputError, match=message):
        asked_for(Config(**fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"held_out": ("xx",)}, "no language has the code 'xx'"),
        ({"sources": [{"name": "a"}]}, "no files"),
        ({"near": "fuzzy"}, "simhash"),
        ({"validation": 1}, "less than 1"),
    ],
)
def test_fields_that_make_no_sense(fields, message):
    with pytest.raises(ValueError, match=message):
        asked_for(Config(**fields))
