"""`evaluate` from end to end on planted sets and a tiny BLOOM: its tables, its headlines, resumption, refusals."""

import csv
import gzip
import json
import shutil
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import polars as pl
import pytest
from transformers import BloomConfig

sys.path.append(str(Path(__file__).parents[1] / "data"))
from planted_corpora import sentence, write_corpora

from inscape.data.corpus.build import build_corpus
from inscape.data.corpus.config import CorpusConfig
from inscape.data.corpus.corpus import Corpus
from inscape.data.corpus.shards import encode_corpus
from inscape.data.corpus.sources import Source, Step
from inscape.errors import InputError
from inscape.evaluation.bits import bits_per_byte
from inscape.models import load
from inscape.runs import Run
from inscape.studies import evaluate, evaluate_page
from inscape.studies.evaluate_summary import scored
from inscape.training.architectures import save_hf
from inscape.training.bloom import Bloom
from inscape.training.corpus import fit_bpe


def add_sets(root):
    """PUD and CrowS-Pairs beside what `write_corpora` writes."""
    (root / "eval" / "pud").mkdir()
    for language in ("en", "fr", "de"):
        text = "".join(f"# sent_id = n{i}\n# text = {sentence(language, i)}\n1\tx\n\n" for i in range(30))
        (root / "eval" / "pud" / f"{language}.conllu.gz").write_bytes(gzip.compress(text.encode()))
    with (root / "eval" / "crows_pairs.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["", "sent_more", "sent_less", "stereo_antistereo", "bias_type"])
        rows.writerows(
            [i, f"sun {i} moon.", f"sun {i} river.", ("stereo", "antistereo")[i % 2], "age"] for i in range(8)
        )
    return root


def tiny_model(folder, tokenizer, seed):
    config = BloomConfig(vocab_size=len(tokenizer), hidden_size=16, n_layer=1, n_head=2, initializer_range=0.3)
    model = Bloom(config, seed=seed)
    save_hf(model, model.hf_config, tokenizer, folder)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    root = add_sets(write_corpora(tmp_path_factory.mktemp("pack") / "corpora"))
    top = root.parent
    tokenizer = fit_bpe([sentence(language, i) for language in ("en", "fr") for i in range(30)], 320)
    for step in (1, 20):
        tiny_model(top / "series" / "checkpoints" / f"step-{step}", tokenizer, step)
    rows = [
        {"id": f"{language}/{i}", "lang": language, "source": "s",
         "text": " ".join(sentence(language, i + k) for k in range(30, 60))}
        for language in ("en", "fr") for i in range(40)
    ]  # fmt: skip
    (top / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shards = planted_shards(top, tokenizer)
    return {
        "model": str(top / "series"), "checkpoints": "all", "corpora": str(root), "shards": str(shards), "unseen": ("de",),
        "device": "cpu", **evaluate.SMOKE, "sentences": 12, "pairs": 4,
    }  # fmt: skip


def planted_shards(top, tokenizer):
    source = Source(name="s", language=None, files=(str(top / "text.jsonl"),), skip=get_args(Step))
    config = CorpusConfig(sources=(source,), languages=("en", "fr"), validation=0.1, near="none")
    build_corpus(config, top / "built", processes=1)
    return encode_corpus(Corpus.open(top / "built"), tokenizer, top / "shards", processes=1).folder


def carry_out(config, folder):
    """As `run_study` does it."""
    asked = evaluate.asked_for(config)
    inputs = evaluate.inputs_of(config, asked)
    with Run.open(folder, "evaluate", config.identity(), seed=config.seed, inputs=inputs, quiet=True) as run:
        if not run.done:
            evaluate.run(config, asked, run)
            for name, chart in evaluate_page.figures(run).items():
                run.figure(name, chart)
            run.finish(evaluate_page.page(run))
    return run


@pytest.fixture(scope="module")
def done(given, tmp_path_factory):
    return carry_out(evaluate.Config(**given), tmp_path_factory.mktemp("run") / "r")


def test_every_task_has_its_rows_for_every_checkpoint(done):
    assert done.table("models").rows() == [("step 1", 1, None), ("step 20", 20, None)]
    for task in evaluate.ALL:
        rows = done.table(task)
        assert rows["model"].unique(maintain_order=True).to_list() == ["step 1", "step 20"]
        assert rows.group_by("model").len()["len"].n_unique() == 1
    bits = scored(done)
    assert bits["model"].unique(maintain_order=True).to_list() == ["step 1", "step 20", "1-gram", "3-gram"]
    assert set(bits.group_by("model", "language").len()["len"]) == {12}
    assert bits.group_by("language").agg(pl.col("sentence").unique().sort())["sentence"].n_unique() == 1
    choices = done.table("xcopa")
    assert set(choices["language"]) == {"en", "fr", "sw", "de"}
    directions = done.table("translation").select("language", "into").unique()
    assert directions.height == 6


def test_headlines_are_those_of_the_last_checkpoint(done):
    summary = done.read_summary()
    rows = scored(done).filter(pl.col("language") == "fr")
    last = rows.filter(pl.col("model") == "step 20")
    assert summary["bits_per_byte_fr"] == pytest.approx(last["bits"].sum() / last["bytes"].sum())
    assert summary["bits_per_byte_fr_lo"] < summary["bits_per_byte_fr"] < summary["bits_per_byte_fr_hi"]
    assert summary["bits_per_sentence_fr"] == pytest.approx(last["bits"].mean())
    by_language = [
        bits_per_byte(some).value
        for _, some in scored(done).filter(pl.col("model") == "step 20").group_by("language", maintain_order=True)
    ]
    assert summary["bits_mean"] == pytest.approx(np.mean(by_language))
    seen, unseen = summary["bits_seen_mean"], summary["bits_unseen_mean"]
    assert summary["bits_mean"] == pytest.approx((2 * seen + unseen) / 3)
    # Counting the words of the text beats a model that was never trained; more context counts for more.
    assert summary["bits_seen_mean_3_gram"] < summary["bits_seen_mean_1_gram"] < seen
    for name in ("xcopa_accuracy", "rte_accuracy", "crows_pairs_share"):
        task = name.rpartition("_")[0]
        assert 0 <= summary[f"{task}_least"] <= summary[name] <= summary[f"{task}_most"] <= 1
        assert summary[f"{task}_chance"] == 0.5
    assert summary["extrapolation_length"] == 64
    assert summary["chrf_source"] > summary["chrf_truncated"]


def test_the_report_says_what_was_measured(done):
    report = (done.folder / "report.html").read_text()
    for text in (
        "Bits by language",
        "Over training",
        "Longer contexts",
        "Choices",
        "Some translations",
        "3-gram model",
    ):
        assert text in report


def test_a_stopped_run_goes_on_and_gives_the_same(given, done, tmp_path, monkeypatch):
    shutil.copytree(done.folder, tmp_path / "r")
    manifest = json.loads((tmp_path / "r" / "manifest.json").read_text())
    manifest["finished"] = None
    for stage in ("rte", "counts"):
        del manifest["stages"][stage]
        (tmp_path / "r" / "tables" / f"{stage}.parquet").unlink()
    (tmp_path / "r" / "manifest.json").write_text(json.dumps(manifest))
    loads = []
    monkeypatch.setattr(evaluate, "load", lambda source, **options: loads.append(source) or load(source, **options))
    again = carry_out(evaluate.Config(**given), tmp_path / "r")
    assert len(loads) == 2
    for stage in ("rte", "counts"):
        assert again.table(stage).equals(done.table(stage))
    assert again.read_summary() == done.read_summary()


def test_one_model_and_some_tasks(given, tmp_path):
    one = {
        **given,
        "model": given["model"] + "/checkpoints/step-20",
        "checkpoints": "last",
        "shards": None,
        "unseen": (),
    }
    run = carry_out(evaluate.Config(**one | {"tasks": ("bits", "rte"), "languages": ("en", "fr")}), tmp_path / "r")
    assert set(run.tables) == {"models", "bits", "rte"}
    assert run.table("models")["model"].to_list() == ["model"]
    assert set(run.table("bits")["language"]) == {"en", "fr"}
    assert "n-gram models" in (run.folder / "report.html").read_text()


def test_long_texts_from_files(given, tmp_path):
    file = Path(given["model"]).parent / "text.jsonl"
    config = {**given, "shards": None, "long_texts": (str(file),), "tasks": ("positions",), "checkpoints": "last"}
    run = carry_out(evaluate.Config(**config), tmp_path / "r")
    assert set(run.tables) == {"models", "positions"}
    found = run.table("positions").drop_nulls("length")
    assert sorted(found["length"].unique()) == [32, 64]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": None}, "no model, expected --model"),
        ({"model": "./nowhere"}, "nowhere"),
        ({"corpora": "/nowhere"}, "corpora /nowhere: no such folder"),
        (
            {"tasks": ("positions",), "shards": None},
            "task positions: no data for it, expected token shards or long texts",
        ),
        ({"trained_length": 48}, r"trained length 48, expected one of the lengths \[32, 64\]"),
        ({"shards": "nowhere"}, "nowhere"),
    ],
)
def test_refusals(given, change, message):
    with pytest.raises(InputError, match=message):
        evaluate.asked_for(evaluate.Config(**{**given, **change}))


def test_sets_that_are_not_there(given, tmp_path, monkeypatch):
    monkeypatch.delenv("INSCAPE_SHARED", raising=False)
    (tmp_path / "empty").mkdir()
    bare = {**given, "corpora": str(tmp_path / "empty"), "shards": None}
    with pytest.raises(InputError, match="no data for any task"):
        evaluate.asked_for(evaluate.Config(**bare))
    with pytest.raises(InputError, match="task rte: no data for it, expected a folder of corpora"):
        evaluate.asked_for(evaluate.Config(**bare | {"corpora": None, "tasks": ("rte",)}))
    config = evaluate.Config(**given | {"languages": ("xx",), "tasks": ("bits",), "shards": None})
    with pytest.raises(InputError, match=r"parallel sentences: none of xx in .*, expected some of de, en, fr"):
        carry_out(config, tmp_path / "r")


def test_shards_of_another_tokenizer_are_refused(given, tmp_path):
    tiny_model(tmp_path / "other", fit_bpe(["other words"], 300), 0)
    config = evaluate.Config(**given | {"model": str(tmp_path / "other"), "tasks": ("bits",)})
    with pytest.raises(InputError, match="made with another tokenizer"):
        carry_out(config, tmp_path / "r")


def test_data_count_by_content(given, tmp_path):
    config = evaluate.Config(**given)
    before = evaluate.inputs_of(config, evaluate.asked_for(config))
    assert set(before) == {"step 1", "step 20", "corpora", "shards"}
    assert before["step 1"] != before["step 20"]
    shutil.copytree(given["corpora"], tmp_path / "corpora")
    moved = evaluate.Config(**given | {"corpora": str(tmp_path / "corpora")})
    assert evaluate.inputs_of(moved, evaluate.asked_for(moved)) == before
    with (tmp_path / "corpora" / "eval" / "rte" / "rte1_test.jsonl").open("a") as stream:
        stream.write("\n")
    assert evaluate.inputs_of(moved, evaluate.asked_for(moved))["corpora"] != before["corpora"]
