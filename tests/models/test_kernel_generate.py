"""Generation: with and without cache, batch and single, equal to a loop that recomputes everything at each step."""

from typing import Any

import pytest
import torch
from tiny_models import NAMES, VOCAB, WIDTH, build, forward, prompts, tiny, words

import inscape
from inscape import InputError, NonFiniteError
from inscape.models.lm import LM

MANY = prompts(9, 3, 6)
NEW = 6


def naive(
    lm: LM, ids: list[int], new: int = NEW, vector: Any = None, layer: int = 1, tokens: Any = (), when: str = "prompt"
) -> list[int]:
    """Greedy ids from a full forward pass per token; ``vector`` is added by a plain hook at the block's output."""
    out = list(ids)

    def hook(module: Any, args: Any, output: Any) -> Any:
        x = output[0] if isinstance(output, tuple) else output
        x = x.clone()
        at = [t % len(ids) for t in tokens] if when != "decode" else []
        if when != "prompt":
            at += range(len(ids), len(out))
        x[0, at] += vector
        return (x, *output[1:]) if isinstance(output, tuple) else x

    handle = lm.sites.blocks[layer].register_forward_hook(hook) if vector is not None else None
    for _ in range(new):
        out.append(int(forward(lm.model, out).logits[0, -1].argmax()))
    if handle is not None:
        handle.remove()
    return out[len(ids) :]


def text(ids: list[int]) -> str:
    return " ".join(f"t{i}" for i in ids)


def test_unedited_equals_transformers_and_the_naive_loop(lm: LM) -> None:
    for cache in (True, False):
        assert lm.generate_ids(MANY, max_new_tokens=NEW, use_cache=cache) == [naive(lm, ids) for ids in MANY]
    with torch.no_grad():
        theirs = lm.model.generate(
            torch.tensor(MANY[:1]), attention_mask=torch.ones(1, len(MANY[0]), dtype=torch.int64), max_new_tokens=NEW,
            do_sample=False, pad_token_id=0,
        )  # fmt: skip
    assert lm.generate(MANY[:1], max_new_tokens=NEW) == [text(theirs[0, len(MANY[0]) :].tolist())]


@pytest.mark.parametrize("when", ["prompt", "decode", "always"])
def test_edited_equals_the_naive_loop(lm: LM, when: Any) -> None:
    vector = 3 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(4))
    tokens = [[0, -1], [1], [2, 3]]
    edit = inscape.add("resid_post", 1, vector, tokens=tokens, when=when)
    expected = [naive(lm, ids, vector=vector, tokens=at, when=when) for ids, at in zip(MANY, tokens, strict=True)]
    for cache in (True, False):
        found = lm.generate_ids(MANY, max_new_tokens=NEW, use_cache=cache, edits=[edit])
        assert found == expected
    for ids, at, one in zip(MANY, tokens, expected, strict=True):
        single = inscape.add("resid_post", 1, vector, tokens=[at], when=when)
        assert lm.generate_ids([ids], max_new_tokens=NEW, edits=[single]) == [one]


@pytest.mark.parametrize("name", NAMES)
def test_the_edits_of_these_tests_do_something(name: str) -> None:
    """Guards the tests above: an edit of this size changes some continuation in every family."""
    lm = tiny(name)
    vector = 3 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(4))
    edit = inscape.add("resid_post", 1, vector, when="always")
    assert lm.generate_ids(MANY, max_new_tokens=NEW, edits=[edit]) != lm.generate_ids(MANY, max_new_tokens=NEW)


def test_parts_and_heads_while_decoding() -> None:
    """Cache on and off agree for edits inside the block too (OPT flattens its MLP, Falcon fuses its heads)."""
    for name, site in (("opt", "mlp_act"), ("falcon_new", "k"), ("gpt2", "v"), ("olmo2", "resid_mid"), ("bloom", "z")):
        lm = tiny(name)
        shape = lm.capture(MANY[:1], site, 1).values.shape[2:]
        vector = 20 * torch.randn(shape, generator=torch.Generator().manual_seed(6))
        edit = inscape.add(site, 1, vector, tokens="last", when="always")
        on, off = (lm.generate_ids(MANY, max_new_tokens=NEW, edits=[edit], use_cache=c) for c in (True, False))
        assert on == off
        assert on != lm.generate_ids(MANY, max_new_tokens=NEW)


def test_text_in_text_out_and_eos() -> None:
    lm = inscape.load(build("llama"), words())
    prompt = text(MANY[0])
    free = naive(lm, MANY[0])
    assert lm.generate([prompt], max_new_tokens=NEW) == [text(free)]
    lm.model.generation_config.eos_token_id = free[2]
    assert lm.generate_ids([prompt], max_new_tokens=NEW) == [free[: free.index(free[2])]]
    assert lm.generate_ids([prompt], max_new_tokens=NEW, eos_token_id=[VOCAB - 1, free[1]]) == [
        free[: free.index(free[1])]
    ]


def test_a_models_own_generation_config_does_not_act_unasked() -> None:
    model = build("llama")
    lm = inscape.load(model, words())
    expected = [naive(lm, ids, 12) for ids in MANY]
    config = model.generation_config
    config.do_sample, config.temperature, config.top_k, config.repetition_penalty = True, 9.0, 3, 5.0
    config.no_repeat_ngram_size, config.num_beams, config.max_length, config.min_new_tokens = 1, 3, 10, 2
    config.guidance_scale, config.min_p = 4.0, 0.9
    assert lm.generate_ids(MANY, max_new_tokens=12) == expected
    asked = lm.generate_ids(MANY, max_new_tokens=12, repetition_penalty=5.0)
    assert asked != expected
    assert config.repetition_penalty == 5.0


def test_sampling_follows_the_seed() -> None:
    lm = tiny("gpt2")
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(lm.generate_ids(MANY, max_new_tokens=NEW, do_sample=True, temperature=3.0))
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temprature": 1.0}, "unknown option 'temprature'"),
        ({"to_dict": 1}, "unknown option 'to_dict'"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"num_return_sequences": 2, "do_sample": True}, "num_return_sequences=2"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate=True"),
        ({"max_new_tokens": 60}, "prompt 0 has 9 tokens and 60 new ones; the model's context is 64"),
        ({"num_beams": 2, "edits": [inscape.scale("resid_post", 1, 2.0)]}, "beams"),
        ({"prompt_lookup_num_tokens": 2}, "several tokens at once"),
        ({"prefill_chunk_size": 2}, "in parts"),
        ({"max_new_tokens": 1, "edits": [inscape.scale("resid_post", 1, 2.0, when="decode")]}, "none is"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    repeating = [[5, 6, 7, 5, 6, 7, 5, 6, 7]]
    with pytest.raises(InputError, match=message):
        tiny("llama").generate_ids(repeating, **{"max_new_tokens": NEW, **options})


def test_beams_without_edits_are_taken() -> None:
    lm = tiny("llama")
    with torch.no_grad():
        theirs = lm.model.generate(
            torch.tensor(MANY[:1]), max_new_tokens=NEW, num_beams=3, do_sample=False, pad_token_id=0
        )
    assert lm.generate_ids(MANY[:1], max_new_tokens=NEW, num_beams=3) == [theirs[0, len(MANY[0]) :].tolist()]


def test_not_a_number_is_no_answer() -> None:
    model = build("llama")
    lm = inscape.load(model, words())
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = float("nan")
    clean, broken = [[3, 4, 5, 6]], [[3, 4], [3, 7, 5]]
    assert len(lm.generate_ids(clean, max_new_tokens=1)) == 1
    with pytest.raises(NonFiniteError, match="logits of prompt 1 are NaN or Inf"):
        lm.generate_ids(broken, max_new_tokens=2, batch_size=1)


def test_no_prompts_give_no_texts(stories260k):
    assert inscape.load(stories260k).generate([]) == []
