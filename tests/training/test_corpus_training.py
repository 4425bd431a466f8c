import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from inscape.errors import InputError
from inscape.training.corpus import (
    CorpusTrainingConfig,
    cached_corpus_lm,
    corpus_training_key,
    train_corpus_lm,
    untrained,
)
from inscape.training.corpus_recipes import corpus_training_of, default_corpus, world_corpus
from inscape.training.pretraining import OptimisationConfig


def config(kind="gpt2", steps=20, rate=5e-3, **more):
    optimisation = OptimisationConfig(steps=steps, rows=4, length=16, warmup_steps=2, learning_rate=rate)
    given = {"vocabulary": 320, "width": 16, "layers": 1, "heads": 2, "context": 16, "held_out": 0.2, **more}
    return CorpusTrainingConfig(kind=kind, optimisation=optimisation, **given)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    draw = random.Random(0)
    words = ["mara", "selvo", "tin", "over", "the", "hill", "ran", "small", "cat"]
    # Each word is followed by one of two: there is more to know than how frequent words are.
    documents = []
    for _ in range(60):
        at = [draw.randrange(len(words))]
        while len(at) < 30:
            at.append((at[-1] * 2 + draw.randrange(2)) % len(words))
        documents.append(" ".join(words[i] for i in at))
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("\n\n".join(documents))
    return file


@pytest.mark.parametrize("kind", ["gpt2", "bloom"])
def test_a_model_learns_more_than_frequencies(text, tmp_path, kind):
    record = train_corpus_lm([text], config(kind, steps=150), tmp_path / "lm")
    assert record["validation_loss"] < record["unigram_entropy"] - 0.3
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "lm"),
        AutoTokenizer.from_pretrained(tmp_path / "lm"),
    )
    assert model.config.model_type == kind
    assert record["vocabulary"] == len(tokenizer) == model.config.vocab_size
    sample = "the cat über 猫"
    assert tokenizer.decode(tokenizer(sample)["input_ids"]) == sample
    assert record["corpus"]["n_documents"] == 60


def test_untrained_is_where_training_began(text, tmp_path):
    train_corpus_lm([text], config(steps=1, rate=1e-12, seed=3), tmp_path / "lm")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "lm")
    torch.manual_seed(8)
    before = torch.rand(1)
    torch.manual_seed(8)
    first = untrained(model.config, seed=3)
    assert torch.equal(torch.rand(1), before)  # (the caller's random state is left alone)
    for (name, a), b in zip(model.named_parameters(), first.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=0, msg=name)
    other = untrained(model.config, seed=4)
    assert not torch.allclose(other.get_input_embeddings().weight, first.get_input_embeddings().weight)


def test_the_cache_holds_one_folder_for_each_text_and_config(text, tmp_path):
    folder = cached_corpus_lm([text], config(), tmp_path)
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert cached_corpus_lm([text], config(), tmp_path) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    other = tmp_path / "other.txt"
    other.write_text(text.read_text() + "\n\nmore text")
    assert corpus_training_key([other], config()) != corpus_training_key([text], config())
    assert corpus_training_key([text], config(seed=1)) != corpus_training_key([text], config())
    with pytest.raises(InputError, match="other text, config or code"):
        train_corpus_lm([other], config(), folder)
    weights = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    train_corpus_lm([text], config(), tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again").state_dict()
    assert all(torch.equal(weights[name], again[name]) for name in weights)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "0 documents"),
        ("one document", "1 documents"),
        ("a b\n\nc d\n\ne f\n\ng h\n\ni j\n\nk l", "expected more than one window"),
    ],
)
def test_too_little_text_is_refused_and_leaves_no_model(tmp_path, content, message):
    file = tmp_path / "text.txt"
    file.write_text(content)
    with pytest.raises(InputError, match=message):
        train_corpus_lm([file], config(), tmp_path / "lm")
    assert not (tmp_path / "lm").exists()


def test_a_folder_with_other_files_is_refused(text, tmp_path):
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm" / "notes").write_text("mine")
    with pytest.raises(InputError, match="not a model trained here"):
        train_corpus_lm([text], config(), tmp_path / "lm")


@pytest.mark.parametrize("wrong", [{"width": 17}, {"context": 15}, {"kind": "t5"}, {"context": 16, "steps": 0}])
def test_shapes_that_do_not_fit_are_refused(wrong):
    with pytest.raises(ValueError):
        config(**wrong)


def test_the_text_made_here_is_the_same_each_time_and_gives_way_to_the_shared_one(tmp_path, monkeypatch):
    monkeypatch.delenv("INSCAPE_SHARED", raising=False)
    first = default_corpus("standard", 0, tmp_path / "a")
    content = first.read_text()
    assert content == world_corpus("standard", 0, tmp_path / "b").read_text()
    assert content != world_corpus("standard", 1, tmp_path / "b").read_text()
    assert len(content.split("\n\n")) == 2000
    shared = tmp_path / "data" / "corpora" / "pretrain" / "en.jsonl.gz"
    shared.parent.mkdir(parents=True)
    shared.write_bytes(b"")
    monkeypatch.setenv("INSCAPE_SHARED", str(tmp_path))
    assert default_corpus("standard", 0, tmp_path / "a") == shared
    assert default_corpus("smoke", 0, tmp_path / "a") != shared
    assert corpus_training_of("bloom", "standard", 5).seed == 5
