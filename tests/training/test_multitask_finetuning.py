"""Finetuning through the trainer: a planted task is learned, and what weights leave out is not."""

import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig

from inscape.errors import InputError
from inscape.training.architectures import save_hf
from inscape.training.bloom import Bloom
from inscape.training.multitask import FinetuningConfig, Tokens, batches_of, finetune, pack_examples

END, PAD, WORDS = 2, 3, 24
QUICK = FinetuningConfig(steps=60, rows=4, length=24, learning_rate=1e-2)


def planted(n=40, seed=0):
    """The answer to (mark, word …) is the last word for one mark and the first for the other; then the text ends."""
    rng = np.random.default_rng(seed)
    examples = []
    for _ in range(n):
        words = rng.integers(6, WORDS, 3).tolist()
        mark = int(rng.integers(4, 6))
        examples.append(Tokens([mark, *words, mark], [words[0] if mark == 4 else words[-1], END]))
    return examples


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained") / "model"
    model = Bloom(BloomConfig(vocab_size=WORDS, hidden_size=32, n_layer=2, n_head=2, initializer_range=0.1), seed=0)
    save_hf(model, model.hf_config, None, folder)
    return folder


def answers(folder, examples):
    """Mean target loss, and whether the first choice is right, at the answer and at the end; by transformers' own Bloom."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    losses, right = [], []
    for one in examples:
        ids = torch.tensor([one.input + one.target])
        with torch.no_grad():
            logits = model(ids).logits[0, len(one.input) - 1 : -1]
        target = torch.tensor(one.target)
        losses.append(float(torch.nn.functional.cross_entropy(logits, target)))
        right.append((logits.argmax(-1) == target).tolist())
    return float(np.mean(losses)), np.mean(right, axis=0)


@pytest.fixture(scope="module")
def finetuned(source, tmp_path_factory):
    rows = pack_examples(planted(300), QUICK.length, pad_id=PAD)
    out = tmp_path_factory.mktemp("finetuned") / "run"
    folder, trained = finetune(source, rows, QUICK, out, identity={"data": "planted"}, tokenizer=None, device="cpu")
    return folder, trained, rows, out


def test_a_planted_task_is_learned_on_new_items(source, finetuned):
    new = planted(60, seed=1)
    before, right_before = answers(source, new)
    after, right_after = answers(finetuned[0], new)
    assert before > math.log(WORDS) / 2
    assert right_before[1] < 0.5
    assert after < before / 2
    assert right_after[1] == 1  # (it learned to end)
    assert right_after[0] > right_before[0] + 0.2


def test_the_same_again_changes_nothing_and_something_else_is_refused(source, finetuned):
    folder, trained, rows, out = finetuned
    before = (folder / "model.safetensors").read_bytes()
    again = finetune(source, rows, QUICK, out, identity={"data": "planted"}, tokenizer=None, device="cpu")
    assert again[0] == folder
    assert again[1].losses == trained.losses
    assert (folder / "model.safetensors").read_bytes() == before
    other = QUICK.model_copy(update={"normalise": False})
    with pytest.raises(InputError, match="normalise"):
        finetune(source, rows, other, out, identity={"data": "planted"}, tokenizer=None, device="cpu")


def test_the_trainers_settings_are_those_of_finetuning():
    training = QUICK.training
    assert [training.schedule.rate_at(step) for step in (0, 30, 59)] == [1e-2] * 3
    assert training.weight_decay == 1e-4
    assert training.exports() == [60]


def test_the_first_loss_is_the_mean_over_examples_of_the_untrained_model(source, finetuned):
    _, trained, rows, _ = finetuned
    examples = planted(300)
    first = batches_of(rows, QUICK)(0)
    numbers = [
        number
        for row in range(4)
        for number in rows.examples[next(r for r in range(len(rows)) if torch.equal(rows.ids[r], first.ids[row]))]
    ]
    assert float(first.weights.sum()) == pytest.approx(len(numbers))
    assert trained.losses[0] == pytest.approx(answers(source, [examples[n] for n in numbers])[0], rel=1e-4)


def test_a_token_without_an_embedding_is_refused(source, tmp_path):
    rows = pack_examples([Tokens([5], [WORDS, END])], 24, pad_id=PAD)
    with pytest.raises(InputError, match=f"token id {WORDS} has no embedding"):
        finetune(source, rows, QUICK, tmp_path, identity={}, tokenizer=None)
