import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from inscape.data.facts import Facts, load_facts, save_facts
from inscape.data.properties import PROPERTIES
from inscape.data.worlds.numeric import NumericWorldSpec, numeric_world
from inscape.errors import InputError
from inscape.training import facts as facts_module
from inscape.training.facts import FactsTrainingConfig, build_model, cached_facts_lm, train_facts_lm, training_key
from inscape.training.facts_text import TextMix
from inscape.training.pretraining import OptimisationConfig, learning_rate, pretrain, save_checkpoint, weighted_loss
from inscape.training.tokenizer import fit_tokenizer

MEMORISE = FactsTrainingConfig(
    width=32, layers=2, heads=2, mlp_width=64, mix=TextMix(comparison=0, threshold=0, coarse=0),
    text_weight=0.0, optimisation=OptimisationConfig(steps=400, length=24, rows=16, warmup_steps=20, threads=1),
)  # fmt: skip


def config(steps=12, **kwargs):
    optimisation = OptimisationConfig(
        steps=steps,
        rows=4,
        length=24,
        warmup_steps=2,
        threads=1,
        checkpoint_seconds=kwargs.pop("checkpoint_seconds", 1e-6),
    )
    return FactsTrainingConfig(width=16, layers=1, heads=2, mlp_width=16, optimisation=optimisation, **kwargs)


@pytest.fixture(scope="module")
def facts():
    return numeric_world(NumericWorldSpec(n_people=20, n_places=0, properties=("birth_year",), seed=1))


@pytest.fixture(scope="module")
def trained(facts, tmp_path_factory):
    out = tmp_path_factory.mktemp("lm") / "model"
    return out, train_facts_lm(facts, MEMORISE, out)


def test_twenty_facts_are_memorised_and_generated(facts, trained):
    out, record = trained
    assert record["accuracy"]["birth_year"]["questions"] == 1.0
    assert record["loss"][-1] < 0.2 < 2.0 < record["loss"][0]
    # Teacher-forced accuracy must be what generation says, from the folder, with nothing of ours.
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    for row in facts.of("birth_year").iter_rows(named=True):
        prompt = tokenizer(f"In what year was {row['label']} born?", return_tensors="pt")
        ids = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == PROPERTIES["birth_year"].format(row["value"])


def test_the_folder_and_its_record(facts, trained):
    out, record = trained
    assert json.loads((out / "training.json").read_text()) == record
    assert record["facts"]["sha256"] == facts.sha256
    assert record["facts"]["n"] == {"birth_year": 20}
    assert record["config"] == json.loads(MEMORISE.model_dump_json())
    assert load_facts(out / "facts.tsv").rows.equals(facts.rows)
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= {path.name for path in out.iterdir()}
    assert [path.name for path in out.parent.iterdir()] == ["model"]  # no checkpoint, no temporary folder
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.bos_token_id is None
    assert tokenizer("In what year")["input_ids"] == tokenizer("In what year", add_special_tokens=False)["input_ids"]


def test_training_again_into_the_same_folder(facts, trained):
    out, record = trained
    before = (out / "model.safetensors").stat().st_mtime_ns
    assert train_facts_lm(facts, MEMORISE, out) == record
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="another folder"):
        train_facts_lm(facts, MEMORISE.model_copy(update={"seed": 1}), out)


def model_of(facts, conf):
    tokenizer = fit_tokenizer(facts_module.vocabulary_texts(facts))
    text = facts_module.FactsText(facts, tokenizer, conf.mix, conf.text_weight)
    return build_model(conf, tokenizer), lambda step: text.batch(conf.seed, step, 4, 24)


class Killed(Exception):
    pass


@pytest.mark.parametrize("kill_at", [1, 5, 11])
def test_resumed_training_is_bit_equal(facts, tmp_path, kill_at):
    conf = config()
    whole, batch = model_of(facts, conf)
    losses = pretrain(whole, batch, conf.optimisation)
    assert len(losses) == 12

    def killing(step):
        if step == kill_at:
            raise Killed
        return batch(step)

    path = tmp_path / "checkpoint.pt"
    part, _ = model_of(facts, conf)
    with pytest.raises(Killed):
        pretrain(part, killing, conf.optimisation, checkpoint=path, key="k")
    steps_done = []
    resumed, _ = model_of(facts, conf)
    assert pretrain(resumed, batch, conf.optimisation, checkpoint=path, key="k", advance=steps_done.append) == losses
    assert steps_done[0] == kill_at
    assert sum(steps_done) == 12
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
    # A checkpoint of another run is not this run's.
    other, _ = model_of(facts, conf)
    steps_done = []
    pretrain(other, batch, conf.optimisation, checkpoint=path, key="other", advance=steps_done.append)
    assert steps_done == [1] * 12


def test_same_seed_same_weights_and_the_callers_random_state_is_left_alone(facts):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, _ = model_of(facts, config())
    assert torch.equal(torch.rand(3), expected)
    second, _ = model_of(facts, config())
    other, _ = model_of(facts, config(seed=1))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


def test_killed_process_goes_on_and_ends_with_the_same_weights(facts, tmp_path):
    """SIGKILL in the middle: the same call afterwards gives the model that an uninterrupted run gives."""
    conf = config(steps=100, checkpoint_seconds=0.2)
    save_facts(facts, tmp_path / "facts.tsv")
    program = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from inscape.data.facts import load_facts\n"
        "from inscape.training.facts import FactsTrainingConfig, train_facts_lm\n"
        "conf = FactsTrainingConfig.model_validate_json(sys.argv[2])\n"
        "conf = conf.model_copy(update={'optimisation': conf.optimisation.model_copy(update={'steps': 1000000})})\n"
        "train_facts_lm(load_facts(sys.argv[1]), conf, sys.argv[3])\n"
    )
    command = [sys.executable, "-c", program, tmp_path / "facts.tsv", conf.model_dump_json(), tmp_path / "killed"]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    checkpoint = tmp_path / ".killed.training" / "checkpoint.pt"
    deadline = time.monotonic() + 60
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed").exists()
    assert len(torch.load(checkpoint, weights_only=True)["losses"]) > 0
    record = train_facts_lm(facts, conf, tmp_path / "killed")
    assert record == train_facts_lm(facts, conf, tmp_path / "killed")
    train_facts_lm(facts, conf, tmp_path / "whole")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("killed", "whole")]
    assert weights[0] == weights[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["facts.tsv", "killed", "whole"]


def test_cache_is_keyed_by_config_facts_and_code(facts, tmp_path, monkeypatch):
    first = cached_facts_lm(facts, config(), tmp_path)
    made = (first / "model.safetensors").stat().st_mtime_ns
    assert cached_facts_lm(facts, config(), tmp_path) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == made
    assert cached_facts_lm(facts, config(seed=1), tmp_path) != first
    fewer = Facts(facts.rows.head(10), "fewer")
    assert training_key(fewer, config()) != training_key(facts, config())
    # How often a run is saved changes nothing in its outcome, and the code does.
    assert training_key(facts, config(checkpoint_seconds=5)) == training_key(facts, config())
    altered = tmp_path / "ordinal.py"
    altered.write_text("other code")
    key = training_key(facts, config())
    monkeypatch.setattr(facts_module.ordinal, "__file__", str(altered))
    assert training_key(facts, config()) != key


def test_weighted_loss_against_the_plain_formula(facts):
    model, batch = model_of(facts, config())
    ids, weights = (torch.from_numpy(array) for array in batch(0))
    weights[:, 5:9] = 0.0
    logits = model(ids).logits[:, :-1].log_softmax(-1)
    per_token = -logits.gather(-1, ids[:, 1:, None])[..., 0]
    expected = (per_token * weights[:, 1:]).sum() / weights[:, 1:].sum()
    assert weighted_loss(model, ids, weights).item() == pytest.approx(expected.item(), rel=1e-5)


def test_learning_rate_schedule():
    conf = OptimisationConfig(steps=100, warmup_steps=10, learning_rate=1.0, final_share=0.1)
    rates = [learning_rate(conf, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1, rel=0.01)
    assert max(rates) == rates[9] == pytest.approx(1.0, abs=0.03)
    assert rates[-1] == pytest.approx(0.1)
    assert np.all(np.diff(rates[9:]) < 0)


def test_a_context_too_small_for_the_text(facts, tmp_path):
    long = facts.rows.with_columns(label=pl.col("label") + " of the Long Name")
    optimisation = config().optimisation.model_copy(update={"length": 16})
    small = config().model_copy(update={"optimisation": optimisation, "context": 16})
    with pytest.raises(InputError, match=r"longest sentence has 25 tokens.* context is 16, .* at least 25"):
        train_facts_lm(Facts(long, "long names"), small, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    # A sequence shorter than the longest sentence is lengthened to hold it.
    record = train_facts_lm(Facts(long, "long names"), small.model_copy(update={"context": 32}), tmp_path / "model")
    assert record["sequence_length"] == 25


def test_no_facts_and_unknown_properties(facts, tmp_path):
    with pytest.raises(InputError, match="no facts"):
        train_facts_lm(Facts(facts.rows.head(0), "empty"), config(), tmp_path / "model")
    with pytest.raises(InputError, match="weight"):
        facts.of("weight")


def test_a_folder_of_something_else_is_left_alone(facts, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="expected a new or empty folder"):
        train_facts_lm(facts, config(), tmp_path / "model")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["notes.txt"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="new or empty folder"):
        train_facts_lm(facts, config(), tmp_path / "file")


def test_a_damaged_record_or_checkpoint_is_named(facts, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "training.json").write_text('{"key": ')
    with pytest.raises(InputError, match=r"training\.json: not JSON"):
        train_facts_lm(facts, config(), tmp_path / "model")
    model, batch = model_of(facts, config())
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, model, torch.optim.AdamW(model.parameters()), [1.0], "k")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"checkpoint\.pt: not a readable checkpoint"):
        pretrain(model, batch, config().optimisation, checkpoint=path, key="k")


def test_divergence_is_said(facts):
    model, batch = model_of(facts, config())
    wild = config().optimisation.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(InputError, match="diverged: loss nan at step"):
        pretrain(model, batch, wild)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"width": 30}, "multiple of 2"), ({"context": 16}, "at most context"), ({"depth": 3}, "depth")],
)
def test_bad_configs(change, named):
    with pytest.raises(ValidationError, match=named):
        FactsTrainingConfig(**{"heads": 4, **change})
