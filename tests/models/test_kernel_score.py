"""Scores against brute force, and the real little Llama that a user may start with."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from tiny_models import CASES, WIDTH, build, close, forward, prompts, tiny

import inscape
from inscape.models.lm import LM

PROMPTS, MORE = prompts(5, 2, 7, seed=8), prompts(3, 1, 4, seed=9)


def by_hand(model: Any, prompt: list[int], more: list[int]) -> torch.Tensor:
    logp = forward(model, [*prompt, *more]).logits[0].double().log_softmax(-1)
    return torch.stack([logp[len(prompt) + n - 1, token] for n, token in enumerate(more)])


def test_scores_equal_log_softmax_of_the_whole_sequence(lm: LM) -> None:
    scores = lm.score(PROMPTS, MORE, batch_size=2)
    assert scores.tokens.tolist() == [3, 1, 4]
    for n, (prompt, more) in enumerate(zip(PROMPTS, MORE, strict=True)):
        expected = by_hand(lm.model, prompt, more)
        close(scores.each[n], expected)
        close(scores.total[n], expected.sum())
        close(torch.exp(-scores.mean[n]), torch.exp(-expected.mean()), 1e-4)


def test_greedy_says_whether_the_model_would_have_said_it() -> None:
    lm = tiny("llama")
    said = lm.generate_ids(PROMPTS, max_new_tokens=3)
    other = [[*ids[:2], (ids[2] + 1) % 97] for ids in said]
    assert lm.score(PROMPTS, said).greedy.tolist() == [True] * 3
    assert lm.score(PROMPTS, other).greedy.tolist() == [False] * 3


@pytest.mark.parametrize("when", ["prompt", "decode", "always"])
def test_edits_act_in_scoring_as_in_generation(when: Any) -> None:
    """What an edited model says greedily, the same edited model must score as its own first choice, step by step."""
    for name in ("llama", "gpt2", "opt", "bloom"):
        lm = tiny(name)
        vector = 3 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(4))
        for tokens in ("last", "all", [[0, 1]] * 3):
            edit = inscape.add("resid_post", 1, vector, tokens=tokens, when=when)
            said = lm.generate_ids(PROMPTS, max_new_tokens=4, edits=[edit])
            assert lm.score(PROMPTS, said, edits=[edit]).greedy.all()
        assert not torch.allclose(lm.score(PROMPTS, said, edits=[edit]).total, lm.score(PROMPTS, said).total, rtol=1e-3)


def test_a_token_that_merges_prompt_and_continuation_is_scored(tokenizer_gpt2: Path) -> None:
    tokenizer = hf.AutoTokenizer.from_pretrained(tokenizer_gpt2)
    config = CASES["gpt2"].config()
    config.vocab_size = len(tokenizer)
    torch.manual_seed(0)
    lm = inscape.load(hf.GPT2LMHeadModel(config).eval(), tokenizer)
    prompt, more = "Hello wor", "ld again"
    whole, apart = tokenizer(prompt + more)["input_ids"], tokenizer(prompt)["input_ids"] + tokenizer(more)["input_ids"]
    assert whole != apart
    at = next(n for n, i in enumerate(whole) if tokenizer.decode([i]) == " world")
    expected = by_hand(lm.model, whole[:at], whole[at:])
    scores = lm.score([prompt], [more])
    close(scores.each[0], expected)
    assert scores.tokens.tolist() == [len(whole) - at]
    # An ordinary boundary: the prompt's tokens are not scored.
    plain = lm.score(["Hello world"], [" again"])
    close(plain.each[0], by_hand(lm.model, whole[: at + 1], whole[at + 1 :]))


def test_a_lone_space_before_the_continuation_is_scored(tokenizer_gpt2: Path) -> None:
    """Its offsets are trimmed to nothing, (6, 6) for the sixth character: it is a token of the continuation all the same."""
    tokenizer = hf.AutoTokenizer.from_pretrained(tokenizer_gpt2)
    config = CASES["gpt2"].config()
    config.vocab_size = len(tokenizer)
    torch.manual_seed(0)
    lm = inscape.load(hf.GPT2LMHeadModel(config).eval(), tokenizer)
    prompt, more = "Hello", " 中"
    whole = tokenizer(prompt + more)["input_ids"]
    n = len(tokenizer(prompt)["input_ids"])
    assert tokenizer.convert_ids_to_tokens(whole)[n] == "\u0120"
    score = lm.score([prompt], [more])
    close(score.each[0], by_hand(lm.model, whole[:n], whole[n:]))
    # A space at the prompt's end is the prompt's.
    assert lm.score([prompt + " "], ["中"]).tokens.tolist() == [len(whole) - n - 1]


def test_mentions_are_looked_for_in_the_prompt_alone(tokenizer_gpt2: Path) -> None:
    tokenizer = hf.AutoTokenizer.from_pretrained(tokenizer_gpt2)
    config = CASES["gpt2"].config()
    config.vocab_size = len(tokenizer)
    lm = inscape.load(hf.GPT2LMHeadModel(config).eval(), tokenizer)
    edit = inscape.add("resid_post", 0, torch.ones(WIDTH), tokens="mention_last")
    by_index = inscape.add("resid_post", 0, torch.ones(WIDTH), tokens=[[1]])
    a, b = (lm.score(["In Paris"], [" we saw Paris"], edits=[e], mentions=["Paris"]).total for e in (edit, by_index))
    assert torch.equal(a, b)


def test_stories260k_tells_its_story_and_its_sites_agree_with_transformers(stories260k: Path) -> None:
    lm = inscape.load(stories260k)
    assert (lm.n_layers, lm.d_model, lm.dtype) == (5, 64, torch.float32)
    prompt = "Once upon a time"
    ids = lm.tokenizer(prompt)["input_ids"]
    reference = hf.AutoModelForCausalLM.from_pretrained(stories260k).eval()
    with torch.no_grad():
        told = reference.generate(torch.tensor([ids]), max_new_tokens=30, do_sample=False)[0, len(ids) :]
    (text,) = lm.generate([prompt], max_new_tokens=30)
    assert text == lm.tokenizer.decode(told, skip_special_tokens=True)
    assert text.startswith(", there was a little girl named Lily. She loved to play outside in the park.")
    hidden = forward(reference, ids, output_hidden_states=True)
    for layer in range(5):
        assert torch.equal(lm.capture([prompt], "resid_pre", layer, "all").at(), hidden.hidden_states[layer][0])
    close(lm.logits([prompt])[0], hidden.logits[0, -1])
    record = lm.record()
    assert record["adds_bos"] == (ids[0] == 1)
    assert record["parameters"] == sum(p.numel() for p in reference.parameters())
    # Silencing the last block's output at the last token leaves nothing of the story.
    assert lm.generate([prompt], max_new_tokens=30, edits=[inscape.ablate("resid_post", 4)]) != [text]


def test_the_model_of_these_tests_is_not_uniform() -> None:
    totals = tiny("gpt2").score(PROMPTS, MORE).mean
    assert (totals + torch.log(torch.tensor(97.0))).abs().max() > 0.1
    assert build("gpt2", seed=1).lm_head.weight.std() > 0
