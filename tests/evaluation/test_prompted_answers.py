"""Answers to prompts: each column against the model itself, run by hand, and the forms of valid answers one by one."""

import math

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM

import inscape
from inscape.data.prompted import Example
from inscape.errors import InputError
from inscape.evaluation.prompted import SCHEMA, ask, is_valid
from inscape.training.corpus import fit_bpe

TEXT = ["the red fox and the blue bird are here", "yes or no ? A B yes no the end", "answer : the fox is red"]


def example(kind="choice", text="the red fox ?", target=" yes", options=(" yes", " no"), task="t", prompt="p"):
    return Example(f"{task}/{text}", task, "c", prompt, "en", kind, text, target, options, "seen")


@pytest.fixture(scope="module")
def lm():
    tokenizer = fit_bpe(TEXT * 5, 300)
    ids = {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        "pad_token_id": None,
    }
    model = BloomForCausalLM(BloomConfig(hidden_size=24, n_layer=2, n_head=3, **ids)).eval()
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=draw))
    return inscape.load(model, tokenizer)


EXAMPLES = [
    *(
        example(text=f"{a} {b} ?", options=(" yes", " no", " the end"))
        for a in ("the", "red", "A")
        for b in ("fox", "B")
    ),
    *(example("text", f"{a} :", " the blue bird", None, task="u") for a in ("answer", "the", "no yes")),
]


def by_hand(lm, e, limit):
    """Greedy text, whether it ended, and log-probabilities of the options, one forward pass at a time."""
    tokenizer, model = lm.tokenizer, lm.model
    start = tokenizer(e.input)["input_ids"]
    ids, stopped = list(start), False
    with torch.no_grad():
        for _ in range(limit):
            token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
            if token == tokenizer.eos_token_id:
                stopped = True
                break
            ids.append(token)
        logps = []
        for option in (e.target, *(e.options or ())):
            more = tokenizer(option)["input_ids"]
            logp = model(torch.tensor([start + more])).logits[0].double().log_softmax(-1)
            logps.append(sum(float(logp[len(start) + i - 1, token]) for i, token in enumerate(more)))
    return tokenizer.decode(ids[len(start) :], skip_special_tokens=True), stopped, logps


def test_answers_are_those_of_the_model_run_by_hand(lm):
    found = ask(lm, EXAMPLES, batch_size=3)
    assert dict(found.schema) == SCHEMA
    assert found["id"].to_list() == [e.id for e in EXAMPLES]
    longest = {
        task: max(len(lm.tokenizer(e.target)["input_ids"]) for e in EXAMPLES if e.task == task) for task in ("t", "u")
    }
    for e, row in zip(EXAMPLES, found.iter_rows(named=True), strict=True):
        text, stopped, logps = by_hand(lm, e, 2 * longest[e.task] + 4)
        assert (row["answer"], row["stopped"]) == (text, stopped)
        assert row["bits_per_byte"] == pytest.approx(-logps[0] / math.log(2) / len(e.target.encode()), rel=1e-4)
        if e.options is None:
            assert row["ranked"] is row["ranked_per_byte"] is row["chance"] is None
        else:
            sums = logps[1:]
            rates = [p / len(o.encode()) for p, o in zip(sums, e.options, strict=True)]
            assert row["ranked"] == (sums.index(max(sums)) == 0)
            assert row["ranked_per_byte"] == (rates.index(max(rates)) == 0)
            assert row["chance"] == pytest.approx(1 / 3)


def constant(lm, text):
    """The same model made to say one text and end, whatever it is asked: the next token follows from the last alone."""
    tokenizer = lm.tokenizer
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    assert len(set(ids)) == len(ids)
    size = len(tokenizer)
    model = BloomForCausalLM(
        BloomConfig(vocab_size=size, hidden_size=2 * size, n_layer=1, n_head=2, tie_word_embeddings=False,
                    eos_token_id=tokenizer.eos_token_id, bos_token_id=None, pad_token_id=None)
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for name, module in model.named_modules():
            if "layernorm" in name or name.endswith("ln_f"):
                module.weight.fill_(1)
        model.transformer.word_embeddings.weight.copy_(torch.eye(size, 2 * size))
        after = dict.fromkeys(range(size), ids[0]) | dict(zip(ids, ids[1:] + ids[:1], strict=True))
        for token, following in after.items():
            model.lm_head.weight[following, token] = 1
    return inscape.load(model, tokenizer)


def test_a_model_that_always_says_yes_is_valid_stops_and_is_right_when_yes_is(lm):
    examples = [example(text="the fox ?"), example(text="the bird ?", target=" no")]
    found = ask(constant(lm, " yes"), examples)
    assert found["answer"].to_list() == [" yes", " yes"]
    for column, expected in (
        ("stopped", [True, True]),
        ("valid", [True, True]),
        ("correct", [True, False]),
        ("ranked", [True, False]),
    ):
        assert found[column].to_list() == expected, column


def test_an_answer_that_goes_on_after_its_first_line_is_right_only_when_cut(lm):
    found = ask(constant(lm, " yes\nA"), [example()])
    row = found.row(0, named=True)
    assert row["answer"] == " yes\nA"
    assert row["stopped"]
    assert (row["valid"], row["correct"]) == (False, False)
    assert (row["valid_first_line"], row["correct_first_line"]) == (True, True)


def test_a_model_that_gives_all_options_the_same_is_never_right(lm):
    model = constant(lm, " yes").model
    with torch.no_grad():
        model.lm_head.weight.zero_()
    found = ask(inscape.load(model, lm.tokenizer), [example(options=(" yes", " no")), example(target=" no", text="x")])
    assert found["ranked"].to_list() == [False, False]


@pytest.mark.parametrize(
    ("kind", "answer", "valid"),
    [
        ("choice", "yes", True), ("choice", "Yes", False), ("choice", "yes no", False), ("choice", "", False),
        ("words", "b a yes", True), ("words", "a b", False), ("words", "a b yes yes", False), ("words", "yes\na b", True),
        ("span", "red fox", True), ("span", "fox red", False), ("span", "", False),
        ("text", "anything", True), ("text", "", False), ("text", "two\nlines", False),
    ],
)  # fmt: skip
def test_forms_of_valid_answers(kind, answer, valid):
    target = " a b yes" if kind == "words" else " yes"
    assert is_valid(example(kind, target=target), answer) is valid


def test_what_cannot_be_asked_is_refused_or_left_out(lm):
    bare = inscape.load(lm.model, None)
    with pytest.raises(InputError, match="no end-of-text token"):
        ask(bare, EXAMPLES)
    from transformers import GPT2Config

    from inscape.training.corpus import untrained

    config = GPT2Config(vocab_size=len(lm.tokenizer), n_embd=8, n_layer=1, n_head=1, n_positions=16, eos_token_id=0)
    short = inscape.load(untrained(config).eval(), lm.tokenizer)
    long = example(text="the red fox " * 8 + "?", task="long")
    assert ask(short, [EXAMPLES[0], long])["id"].to_list() == [EXAMPLES[0].id]
    with pytest.raises(InputError, match="none of 1 examples fits into the model's context of 16 tokens"):
        ask(short, [long])
