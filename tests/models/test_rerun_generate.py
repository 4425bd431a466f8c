"""Continuations of a sweep are those of transformers' own generate with plain hooks on, and of runs in full."""

from typing import Any

import pytest
import torch
from rerun_by_hand import ByHand, add, hooked, noise, shape_of, sites_of
from tiny_models import CONTEXT, LAYERS, NAMES, WIDTH, build, prompts, tiny, words

import inscape
from inscape import Donors, Generated, Grid, InputError, NonFiniteError
from inscape.models.lm import LM

IDS = prompts(9, 3, 1, 6)
NEW = 4


def theirs(name: str, lm: LM, ids: list[int], edits: list[ByHand], new: int = NEW) -> tuple[int, ...]:
    """transformers' generate without a cache: hooks on tokens of the prompt act in every forward pass alike."""
    with hooked(name, lm, edits), torch.no_grad():
        out = lm.model.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.int64), max_new_tokens=new,
            do_sample=False, use_cache=False, pad_token_id=0,
        )  # fmt: skip
    return tuple(out[0, len(ids) :].tolist())


def test_every_site_equals_plain_hooks(name: str) -> None:
    # (Of the two kernels, each has half of the families.)
    lm = tiny(name, "eager" if NAMES.index(name) % 2 else None)
    cells, by_hand = [], []
    at = [[2, 8], [1], [0], [0, 5]]
    for number, site in enumerate(sites_of(lm)):
        layer = None if site == "embed" else number % LAYERS
        vector = noise(*shape_of(lm, site), seed=number, size=6)
        cells.append([inscape.add(site, layer, vector, tokens=at)])
        by_hand.append([ByHand(site, layer, one, add(vector)) for one in at])
    found = lm.rerun(IDS, cells, Generated(NEW, ids=True), batch_size=3)
    assert found.naive is None
    assert found.values.dims == ("prompt", "cell")
    for row, ids in enumerate(IDS):
        assert found.base.values[row] == theirs(name, lm, ids, [])
        # (one site of each prompt by hand; all of them against runs in full)
        nth = (row * 3 + len(name)) % len(cells)
        assert found.values.values[row, nth] == theirs(name, lm, ids, [by_hand[nth][row]])
    full = lm.rerun(IDS, cells, Generated(NEW, ids=True), naive=True)
    assert found.values.values.tolist() == full.values.values.tolist()
    assert any(
        values != base for base, row in zip(found.base.values, found.values.values, strict=True) for values in row
    )


@pytest.mark.parametrize("when", ["decode", "always"])
def test_edits_while_decoding(name: str, when: Any) -> None:
    lm = tiny(name)
    vector, key = noise(WIDTH, seed=3), noise(4, *shape_of(lm, "v"), seed=5)
    cells = [
        [inscape.add("resid_post", 1, vector, tokens=[[0, 8], [1], [0], [3]], when=when)],
        [
            inscape.add("v", 2, key, tokens="last", when=when),
            inscape.scale("mlp_act", 0, -1.0, tokens="last", when=when),
        ],
        [inscape.add("resid_pre", 2, vector, tokens="last"), inscape.ablate("attn_out", 0, tokens="first", when=when)],
        [inscape.add("embed", None, noise(*shape_of(lm, "embed")), when=when, strength=torch.tensor([1.0, 0, 2, -1]))],
    ]
    base = [] if when == "decode" else [inscape.add("z", 1, noise(*shape_of(lm, "z")), tokens="all", when=when)]
    cut = lm.rerun(IDS, cells, Generated(NEW, ids=True), base=base)
    assert cut.naive is None
    assert [list(one) for one in cut.base.values] == lm.generate_ids(IDS, max_new_tokens=NEW, edits=base)
    for nth, cell in enumerate(cells):
        ids = lm.generate_ids(IDS, max_new_tokens=NEW, edits=[*base, *cell])
        assert [list(one) for one in cut.values.values[:, nth]] == ids
    assert (cut.values.values != cut.base.values[:, None]).any()


def test_a_grid_of_texts() -> None:
    lm = tiny("gpt2")
    texts = [" ".join(f"t{i}" for i in ids) for ids in IDS]
    grid = Grid("resid_post", [0, 2], "each", "set", donors=Donors(IDS[:1] * 4), strengths=(1.0, 0.5))
    ids = lm.rerun(texts, grid, Generated(NEW, ids=True), batch_size=2)
    found = lm.rerun(texts, grid, Generated(NEW), batch_size=3)
    assert found.values.dims == ids.values.dims == ("prompt", "layer", "position", "strength")
    assert found.values["position"].values.tolist() == list(range(9))
    for at, one in zip(
        torch.cartesian_prod(*(torch.arange(n) for n in ids.values.shape)).tolist(),
        ids.values.values.ravel(),
        strict=True,
    ):
        text = found.values.values[tuple(at)]
        if at[2] >= len(IDS[at[0]]):
            assert one is text is None
        else:
            assert text == " ".join(f"t{i}" for i in one)
            assert len(one) == NEW
    assert found.base.values.tolist() == lm.generate(texts, max_new_tokens=NEW)


def test_eos_ends_a_run_and_no_other() -> None:
    lm = inscape.load(build("llama"), words())
    cells = [[inscape.add("resid_post", 1, noise(WIDTH, seed=k), tokens="last")] for k in range(5)]
    free = lm.rerun(IDS, cells, Generated(8, ids=True)).values.values
    end = free[0, 0][3]
    cut = {tuple(one[: one.index(end)]) if end in one else one for one in free.ravel()}
    expected = [tuple(one[: one.index(end)]) if end in one else one for one in free.ravel()]
    assert len({len(one) for one in cut}) > 1
    for naive in (False, True):
        found = lm.rerun(IDS, cells, Generated(8, ids=True, options={"eos_token_id": end}), naive=naive)
        assert found.values.values.ravel().tolist() == expected
    lm.model.generation_config.eos_token_id = end
    assert lm.rerun(IDS, cells, Generated(8, ids=True)).values.values.ravel().tolist() == expected


def test_up_to_the_end_of_the_context(name: str) -> None:
    lm, many = tiny(name), prompts(CONTEXT - 3, 2)
    edits = [[inscape.add("resid_post", 1, noise(WIDTH), tokens="first")], []]
    cut, full = (lm.rerun(many, edits, Generated(3, ids=True), naive=naive) for naive in (False, True))
    assert cut.values.values.tolist() == full.values.values.tolist()
    assert cut.values.values[:, 1].tolist() == cut.base.values.tolist()
    assert cut.base.values[0] == theirs(name, lm, many[0], [], 3)
    if lm.context is not None:
        with pytest.raises(InputError, match="prompt 0 has 61 tokens and 4 new ones; the model's context is 64"):
            lm.rerun(many, edits, Generated(4))


def test_options_act_as_in_generate() -> None:
    lm = tiny("qwen2")
    edits = [[inscape.add("resid_post", 0, noise(WIDTH), tokens="first")]]
    for options in ({"repetition_penalty": 3.0}, {"min_new_tokens": 4, "eos_token_id": list(range(50))}, {"top_k": 1}):
        options = options | ({"do_sample": True} if "top_k" in options else {})
        found = lm.rerun(IDS, edits, Generated(NEW, ids=True, options=options)).values.values[:, 0]
        assert [list(one) for one in found] == lm.generate_ids(IDS, max_new_tokens=NEW, edits=edits[0], **options)


@pytest.mark.parametrize(
    ("wanted", "more", "message"),
    [
        (Generated(0), {}, "max_new_tokens=0"),
        (Generated(4, options={"temprature": 1}), {}, "unknown option 'temprature'"),
        (Generated(4, options={"num_beams": 2}), {}, "num_beams=2 is not taken"),
        (Generated(4, options={"num_return_sequences": 2}), {}, "num_return_sequences=2 is not taken"),
        (Generated(4, options={"cache_implementation": "static"}), {}, "cache_implementation='static' is not taken"),
        (Generated(4, options={"prefill_chunk_size": 2}), {}, "prefill_chunk_size=2 is not taken"),
        (Generated(4, options={"prompt_lookup_num_tokens": 2}), {}, "prompt_lookup_num_tokens=2 is not taken"),
        (Generated(4), {"read": "all"}, "follows the last token"),
        (Generated(4), {"read": [[0]] * 4}, "follows the last token"),
        (Generated(4), {"padding_side": "right"}, "padded on the left"),
        (Generated(1), {"edits": [[inscape.scale("mlp_out", 0, 2.0, when="decode")]]}, "one new token has none"),
        (Generated(4), {"edits": [[inscape.scale("logits", None, 2.0)]]}, "edits of 'logits' are not taken"),
        (Generated(4), {"base": [inscape.scale("logits", None, 2.0)]}, "edits of 'logits' are not taken"),
    ],
)
@pytest.mark.parametrize("naive", [False, True])
def test_what_is_not_taken(wanted: Generated, more: dict[str, Any], message: str, naive: bool) -> None:
    options = {"edits": [[inscape.scale("mlp_out", 0, 2.0)]], "naive": naive, **more}
    with pytest.raises(InputError, match=message):
        tiny("llama").rerun(IDS, metric=wanted, **options)


def test_texts_without_a_tokenizer_are_refused_before_anything_runs() -> None:
    lm = inscape.load(build("gpt2"))
    ran: list[int] = []
    handle = lm.sites.blocks[0].register_forward_hook(lambda *_: ran.append(1))
    with pytest.raises(InputError, match="without a tokenizer"):
        lm.rerun(IDS, [[]], Generated(3))
    handle.remove()
    assert not ran
    assert lm.rerun(IDS, [[]], Generated(3, ids=True)).values.shape == (4, 1)


@pytest.mark.parametrize("naive", [False, True])
def test_not_a_number_is_no_answer(naive: bool) -> None:
    lm = inscape.load(build("llama"), words())
    assert lm.rerun([[5]], [[]]).naive is None
    with torch.no_grad():
        lm.model.model.embed_tokens.weight[7] = float("nan")
    many, edits = [[3, 4, 5], [3, 5], [3, 7]], [[inscape.scale("mlp_out", 0, 2.0)]]
    for wanted in (Generated(2), None):
        with pytest.raises(NonFiniteError, match="logits of prompt 2 are NaN or Inf"):
            lm.rerun(many, edits, wanted, batch_size=1, naive=naive)
        with pytest.raises(NonFiniteError, match="logits of prompt 2 are NaN or Inf"):
            lm.rerun(many, edits, wanted, naive=naive)
        assert lm.rerun(many[:2], edits, wanted, naive=naive).values.shape[0] == 2
