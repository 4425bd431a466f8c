"""`inscape pretrain` on a small corpus: learns, goes on after a stop, the same alone and in two processes."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import ValidationError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from inscape.data.corpus.corpus import FORMAT, Corpus
from inscape.data.corpus.shards import TokenShards, encode_corpus
from inscape.errors import InputError
from inscape.runs import Run
from inscape.studies import pretrain as study
from inscape.studies import pretrain_page
from inscape.training.checkpoints import Checkpoints
from inscape.training.metrics_log import read_metrics
from inscape.training.parallel import Layout
from inscape.training.pretrain import PretrainConfig, pretrain

WORDS = {
    "aa": ["the", "cat", "sat", "on", "mat", "and", "ate", "fish"],
    "bb": ["le", "chien", "dort", "sous", "un", "pont"],
}
TINY = {"width": 16, "layers": 1, "heads": 2}
FEW = {
    "model": TINY, "steps": 6, "rows": 4, "length": 16, "device": "cpu", "threads": 1, "learning_rate": 1e-2,
    "export_powers": False,
}  # fmt: skip


def write_corpus(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    languages = {}
    for lang, words in WORDS.items():
        rows = []
        for i in range(120 if lang == "aa" else 40):
            # Every word is followed by one of two, so that there is something to learn.
            at, text = 0, []
            for _ in range(int(rng.integers(5, 40))):
                text.append(words[at])
                at = (at + 1 + int(rng.integers(2))) % len(words)
            split = "validation" if i % 10 == 0 else "train"
            rows.append({"id": f"{lang}{i}", "lang": lang, "source": "s", "split": split, "text": " ".join(text)})
        languages[lang] = {"sha256": lang * 32} | {
            split: {
                "documents": sum(row["split"] == split for row in rows),
                "bytes": sum(len(row["text"]) for row in rows if row["split"] == split),
            }
            for split in ("train", "validation")
        }
        (folder / "text").mkdir(parents=True, exist_ok=True)
        with gzip.open(folder / "text" / f"{lang}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    (folder / "manifest.json").write_text(json.dumps({"format": FORMAT, "languages": languages}))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folders of a corpus, a tokenizer and the shards made with both."""
    root = tmp_path_factory.mktemp("data")
    corpus = write_corpus(root / "corpus")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    texts = [" ".join(words) for words in WORDS.values()] * 3
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=330,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    names = dict(zip(("unk_token", "bos_token", "eos_token", "pad_token"), special, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, **names)
    tokenizer.save_pretrained(root / "tokenizer")
    encode_corpus(Corpus.open(corpus), tokenizer, root / "shards", processes=1)
    return root


def made(data, out, **options):
    return pretrain(PretrainConfig(**{**FEW, "shards": data / "shards", **options}), out)


@pytest.fixture(scope="module")
def ran(data, tmp_path_factory):
    """The study's run folder, from corpus and tokenizer."""
    folder = tmp_path_factory.mktemp("runs") / "pretrain"
    config = study.Config(
        **{**study.SMOKE, "corpus": data / "corpus", "tokenizer": data / "tokenizer", "device": "cpu", "steps": 60},
        processes=1,
    )
    asked = study.asked_for(config)
    with Run.open(
        folder, "pretrain", config.identity(), seed=config.seed, inputs=study.inputs_of(config, asked), quiet=True
    ) as run:
        study.run(config, asked, run)
        for name, chart in pretrain_page.figures(run).items():
            run.figure(name, chart)
        run.finish(pretrain_page.page(run))
    return run


def test_it_learns_and_the_summary_is_what_the_tables_say(ran):
    summary = ran.read_summary()
    assert summary["steps"] == 60
    # log(2) for the two words that may follow, per word; an untrained model has log(384) = 5.95.
    assert summary["validation_loss"] < 4
    assert summary["validation_loss_lo"] <= summary["validation_loss"] <= summary["validation_loss_hi"]
    final = ran.table("validation").filter(pl.col("step") == 60)
    assert summary["validation_loss"] == pytest.approx(final["nats"].sum() / final["targets"].sum())
    assert set(final["language"]) == {"aa", "bb"}
    assert summary["tokens"] == ran.table("steps")["tokens"][-1] == 32 * sum(map(_rows, range(60)))
    assert 0 < summary["mfu"] < 1
    assert ran.table("languages")["language"].to_list() == ["aa", "bb"]
    assert ran.table("languages")["passes"][0] == pytest.approx(summary["passes_most"])


def _rows(step):
    return 4 if step < 12 else 8


def test_the_losses_on_held_back_text_are_those_of_the_saved_model(ran):
    shards = TokenShards.open(ran.folder / "shards")
    part = shards.part("validation", "bb")
    model = Checkpoints(ran.folder).at(60).load()
    rows = ran.table("validation").filter(pl.col("step") == 60, pl.col("language") == "bb").sort("window")
    # The first window by hand: its documents one by one, each after the token that ended the one before.
    nats = n = 0
    for start, end in zip(part.starts[:-1].tolist(), part.starts[1:].tolist(), strict=True):
        ids = torch.tensor(part.tokens[max(start - 1, 0) : min(end, 33)].astype(np.int64))[None]
        if start <= 32 and ids.shape[1] > 1:
            with torch.no_grad():
                nats += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
            n += ids.shape[1] - 1
    assert (rows["nats"][0], rows["targets"][0], n) == (pytest.approx(nats, rel=1e-4), 32, 32)


def test_the_report_and_the_models_can_be_read(ran):
    report = (ran.folder / "report.html").read_text()
    assert "A language model, pretrained" in report
    assert "parameters were trained on" in report
    assert set(ran.figures) == {"loss", "gradient", "languages"}
    folder = ran.folder / ran.manifest["record"]["final_model"]
    ids = AutoTokenizer.from_pretrained(folder)("the cat", return_tensors="pt").input_ids
    assert AutoModelForCausalLM.from_pretrained(folder)(ids).logits.shape[-1] == 384


def test_shards_give_the_same_run_as_the_corpus_they_were_made_from(data, tmp_path):
    one = made(data, tmp_path / "one")
    other = made(data, tmp_path / "two", shards=None, corpus=data / "corpus", tokenizer=data / "tokenizer", processes=1)
    assert one.trained.losses == other.trained.losses
    assert one.shape.vocabulary == 384
    assert one.passes["aa"] == pytest.approx(6 * 4 / sum(_windows(one.shards)))


def _windows(shards):
    return [-(-(len(shards.part("train", name).tokens) - 1) // 16) for name in shards.languages]


def test_two_processes_of_torchrun_train_the_same_as_one(data, tmp_path):
    alone = made(data, tmp_path / "alone")
    config = PretrainConfig(**{**FEW, "shards": data / "shards", "layout": Layout()})
    (tmp_path / "config.json").write_text(config.model_dump_json())
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from inscape.training.pretrain import PretrainConfig, pretrain\n"
        "config = PretrainConfig.model_validate_json(open(sys.argv[1]).read())\n"
        "pretrain(config, sys.argv[2])\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", script]
    subprocess.run(
        [*command, tmp_path / "config.json", tmp_path / "two"],
        check=True, capture_output=True, timeout=200, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    found = [line.loss for line in read_metrics(tmp_path / "two")]
    assert found == pytest.approx(alone.trained.losses, abs=1e-5)
    # And one process finds the run of two finished, and its own.
    assert made(data, tmp_path / "two").trained.losses == found


def test_minutes_become_steps_once(data, tmp_path):
    class Stop(Exception):
        pass

    class Stopping:
        def loop(self, *_):
            raise Stop

    config = PretrainConfig(**{**FEW, "shards": data / "shards", "steps": None, "minutes": 0.02})
    with pytest.raises(Stop):
        pretrain(config, tmp_path, progress=Stopping())
    kept = json.loads((tmp_path / "budget.json").read_text())
    assert kept["steps"] == int(0.02 * 60 * 0.96 * kept["tokens_per_second"]) // (4 * 16)
    (tmp_path / "budget.json").write_text(json.dumps({**kept, "steps": 5}))  # (as if the machine had been slower then)
    assert pretrain(config, tmp_path).trained.steps == 5
    (tmp_path / "budget.json").write_text("{}")
    with pytest.raises(InputError, match=r"budget.json: not readable .*expected the number of steps"):
        pretrain(config, tmp_path)


def test_a_budget_of_tokens(data, tmp_path):
    assert made(data, tmp_path, steps=None, tokens=200).trained.steps == 3
    with pytest.raises(InputError, match="a budget of 10 tokens"):
        made(data, tmp_path / "less", steps=None, tokens=10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": None}, "budget: found none, expected one of steps, tokens, minutes"),
        ({"minutes": 3}, "budget: found steps and minutes"),
        ({"shards": None}, "expected shards, or corpus and tokenizer"),
        ({"shards": None, "corpus": "x"}, "a corpus without a tokenizer"),
        ({"model": "huge"}, "model 'huge': expected one of nano, micro"),
        ({"model": {"width": 10, "heads": 3}}, "width 10 with 3 heads"),
    ],
)
def test_impossible_configs_are_refused(data, options, message):
    with pytest.raises(ValidationError, match=message):
        PretrainConfig(**{**FEW, "shards": data / "shards", **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": {**TINY, "vocabulary": 100}}, r"a vocabulary of 100 for a tokenizer of \d+ tokens"),
        ({"model": {**TINY, "context": 8}}, "a context of 8 for rows of 16 tokens"),
        ({"shards": "nowhere"}, "nowhere"),
        ({"tokenizer": "nowhere"}, "tokenizer nowhere: no tokenizer.json in it"),
        ({"languages": ("xx",)}, "no part train/xx"),
        ({"device": "quantum"}, "quantum"),
        ({"layout": Layout(tensor_parallel=2)}, "but 1 were started"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(data, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        made(data, tmp_path / "out", **options)
    assert not (tmp_path / "out" / "training.json").exists()


def test_the_tokenizer_must_be_that_of_the_shards(data, tmp_path):
    other = AutoTokenizer.from_pretrained(data / "tokenizer")
    other.add_tokens(["new"])
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match=r"not the one that .* was encoded with"):
        made(data, tmp_path / "out", tokenizer=tmp_path / "other")


def test_a_changed_config_is_refused_by_its_name(data, tmp_path):
    made(data, tmp_path)
    for options, name in (
        ({"seed": 1}, "pretraining.seed"),
        ({"alpha": 0.5}, "pretraining.alpha"),
        ({"model": {**TINY, "layers": 2}}, "pretraining.model.layers"),
        ({"model": {**TINY, "vocabulary": 512}}, "pretraining.model.vocabulary"),
        ({"learning_rate": 0.5}, "training.schedule.learning_rate"),
    ):
        with pytest.raises(InputError, match=rf"differs in {name}"):
            made(data, tmp_path, **options)
