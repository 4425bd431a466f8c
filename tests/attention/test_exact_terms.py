"""With known tokens the terms sum to the model's own logits, in every family; and every term is needed for it."""

import copy

import attention_by_hand
import pytest
import torch
import transformers as hf
from tiny_models import (
    CASES,
    CONTEXT,
    HEADS,
    IDS,
    NAMES,
    VOCAB,
    WIDTH,
    build,
    close,
    forward,
    prompts,
    randomise,
    tiny,
    words,
)

import inscape
from inscape.attention import first_layer

ADDITIVE = ["gpt2", "gpt_neo", "opt", "opt_post_norm"]
[PROMPT] = prompts(23)


@pytest.mark.parametrize("name", NAMES)
def test_softmax_of_the_sum_is_the_models_attention(name):
    lm = tiny(name, "eager")
    expected = forward(lm.model, PROMPT, output_attentions=True).attentions[0][0]
    found = first_layer(lm).logits(PROMPT).attention()
    assert (found - expected).abs().max() < 2e-6
    seen = expected > 1e-12
    assert (found[seen].log() - expected[seen].log()).abs().max() < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_attention_written_out_by_hand(name):
    lm = tiny(name, "eager")
    read = lm.capture_sites([PROMPT], ["q", "k", "v"], 0, "all")
    q, k, v = (read[site].values[:, 0] for site in "qkv")
    expected, _ = attention_by_hand.attention(name, lm, 0, q, k, v, eager=True)
    assert (first_layer(lm).logits(PROMPT).attention() - expected).abs().max() < 2e-6


def _raw_logits(model, ids, query, key, scale, heads=HEADS):
    """q · k of the first layer through hooks of torch alone; ``query``, ``key``: module and the columns of its output."""
    got = {}
    handles = [
        module.register_forward_hook(
            lambda m, a, out, site=site, columns=columns: got.update({site: out[..., columns]})
        )
        for site, (module, columns) in {"q": query, "k": key}.items()
    ]
    forward(model, ids)
    for handle in handles:
        handle.remove()
    q, k = (got[site].reshape(len(ids), heads, -1).transpose(0, 1) for site in "qk")
    return q @ k.transpose(1, 2) * scale


def _additive_logits(name, model, ids):
    everything = slice(None)
    width = model.config.hidden_size
    if name == "gpt2":
        c_attn = model.transformer.h[0].attn.c_attn
        return _raw_logits(model, ids, (c_attn, slice(0, width)), (c_attn, slice(width, 2 * width)), 8**-0.5)
    attention = model.transformer.h[0].attn.attention if name == "gpt_neo" else model.model.decoder.layers[0].self_attn
    scale = 1.0 if name == "gpt_neo" else 8**-0.5
    return _raw_logits(model, ids, (attention.q_proj, everything), (attention.k_proj, everything), scale)


@pytest.mark.parametrize("name", ADDITIVE)
def test_exact_to_rounding_in_float64(name):
    lm = tiny(name, dtype=torch.float64)
    terms = first_layer(lm).logits(PROMPT)
    assert terms["ee"].dtype == torch.float64
    assert (terms.total() - _additive_logits(name, lm.model, PROMPT)).abs().max() < 1e-10


@pytest.mark.parametrize("name", ADDITIVE)
def test_exact_to_rounding_in_float32(name):
    lm = tiny(name)
    close(first_layer(lm).logits(PROMPT).total(), _additive_logits(name, lm.model, PROMPT), 1e-5)


def test_project_in_with_a_norm_before_attention():
    config = hf.OPTConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, ffn_dim=48, num_hidden_layers=2, num_attention_heads=HEADS,
        max_position_embeddings=CONTEXT, word_embed_proj_dim=16, **IDS | {"pad_token_id": 1},
    )  # fmt: skip
    model = randomise(hf.OPTForCausalLM(config)).double()
    terms = first_layer(inscape.load(model)).logits(PROMPT)
    assert (terms.total() - _additive_logits("opt", model, PROMPT)).abs().max() < 1e-10


@pytest.mark.parametrize("name", ["gpt2", "gpt_neo", "opt"])
def test_without_the_row_constant_each_row_is_off_by_a_constant_that_is_not_zero(name):
    lm = tiny(name, dtype=torch.float64)
    terms = first_layer(lm).logits(PROMPT)
    off = terms.total(["r"]) - _additive_logits(name, lm.model, PROMPT)
    assert (off - off[..., :1]).abs().max() < 1e-10
    assert off.abs().max() > 0.1
    assert (terms.attention(["r"]) - terms.attention()).abs().max() < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_attention_is_wrong_without_any_one_of_the_terms(name):
    terms = first_layer(tiny(name)).logits(PROMPT)
    for left_out in set(terms) - {"r"}:
        assert (terms.attention([left_out]) - terms.attention()).abs().max() > 1e-3, left_out


@pytest.mark.parametrize("name", ["gpt_neox", "gptj", "qwen2", "phi", "phi_qk_norm", "falcon_new", "stablelm"])
def test_terms_of_the_keys_bias_matter_where_positions_are_rotary(name):
    terms = first_layer(tiny(name)).logits(PROMPT)
    assert tuple(terms) == ("ee", "e", "q", "pos")
    assert (terms.attention(["q", "pos"]) - terms.attention()).abs().max() > 0.02


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2"])
def test_models_without_any_bias_have_one_term(name):
    assert tuple(first_layer(tiny(name)).logits(PROMPT)) == ("ee",)


@pytest.mark.parametrize("part", ["ln_1.weight", "ln_1.bias", "attn.c_attn.bias"])
def test_every_part_of_the_fold_is_in_the_sum(part):
    """The terms of a model with one part changed are not those of the model: nothing of it is overlooked."""
    model = build("gpt2", dtype=torch.float64)
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.transformer.h[0].get_parameter(part).fill_(1.0 if part == "ln_1.weight" else 0.0)
    total = first_layer(inscape.load(changed)).logits(PROMPT).total()
    assert (total - _additive_logits("gpt2", changed, PROMPT)).abs().max() < 1e-10
    assert (total - _additive_logits("gpt2", model, PROMPT)).abs().max() > 0.1


@pytest.mark.parametrize("name", ["gpt2", "llama", "bloom"])
def test_some_heads_are_rows_of_all_heads(name):
    terms = first_layer(tiny(name))
    everything, some = terms.logits(PROMPT), terms.logits(PROMPT, [3, 0])
    assert some.heads == (3, 0)
    for term in everything:
        close(some[term], everything[term][[3, 0]], 1e-6)


def test_text_is_read_as_the_kernel_reads_it():
    lm = tiny("llama")
    terms = first_layer(lm)
    assert torch.equal(terms.logits("t5 t9 t7").total(), terms.logits([5, 9, 7]).total())


def _by_the_book(name, model, ids):
    """ee, e, q, pos (or ee, e, r) by the formulas, all of it written out; [head, i, j], float64."""
    state = {key: value.double() for key, value in model.state_dict().items()}
    base, norm, q, k = {
        "gptj": ("transformer.h.0.", "ln_1", "attn.q_proj", "attn.k_proj"),
        "phi": ("model.layers.0.", "input_layernorm", "self_attn.q_proj", "self_attn.k_proj"),
        "qwen2": ("model.layers.0.", "input_layernorm", "self_attn.q_proj", "self_attn.k_proj"),
        "gpt_neox": ("gpt_neox.layers.0.", "input_layernorm", "attention.query_key_value", None),
        "bloom": ("transformer.h.0.", "input_layernorm", "self_attention.query_key_value", None),
    }[name]
    words_VD = model.get_input_embeddings().weight.detach().double()
    if name == "bloom":
        layer_norm = model.transformer.word_embeddings_layernorm
        words_VD = torch.nn.functional.layer_norm(
            words_VD, (WIDTH,), layer_norm.weight.double(), layer_norm.bias.double(), layer_norm.eps
        )
    x, gain = words_VD[ids], state[f"{base}{norm}.weight"]
    if name == "qwen2":  # RMSNorm: nothing is centred
        beta, centre = torch.zeros(WIDTH).double(), torch.eye(WIDTH).double()
        spread = (x.square().mean(-1) + model.config.rms_norm_eps).sqrt()
    else:
        beta, centre = state[f"{base}{norm}.bias"], torch.eye(WIDTH).double() - 1 / WIDTH
        spread = (x.var(-1, correction=0) + 1e-5).sqrt()
    token, bias = {}, {}
    for place, (site, path) in enumerate({"q": q, "k": k or q}.items()):
        weight = state[f"{base}{path}.weight"].T
        constant = state.get(f"{base}{path}.bias", torch.zeros(weight.shape[1]).double())
        if k is None:  # [head, (query, key, value), head_dim]
            weight = weight.reshape(WIDTH, HEADS, 3, -1)[:, :, place].flatten(1)
            constant = constant.reshape(HEADS, 3, -1)[:, place].flatten()
        per_head = weight.shape[1] // 8
        token[site] = ((x @ centre * gain) @ weight / spread[:, None]).reshape(len(ids), per_head, 8)
        bias[site] = (beta @ weight + constant).reshape(1, per_head, 8).expand(len(ids), -1, -1)
    recipe = CASES[name].recipe
    if recipe.rotary:
        token, bias = (
            {site: attention_by_hand._rotated(part[site], recipe, 0) for site in "qk"} for part in (token, bias)
        )
    for part in (token, bias):
        part["k"] = part["k"].repeat_interleave(HEADS // part["k"].shape[1], 1)

    def product(one, other):
        return torch.einsum("ihd,jhd->hij", one["q"], other["k"]) * 8**-0.5

    both = {
        "ee": product(token, token),
        "e": product(bias, token),
        "q": product(token, bias),
        "pos": product(bias, bias),
    }
    if name == "bloom":
        both["r"] = both.pop("q") + both.pop("pos")
    return both


@pytest.mark.parametrize("name", ["gptj", "phi", "qwen2", "gpt_neox", "bloom"])
def test_terms_are_those_of_the_formulas(name):
    lm = tiny(name)
    found = first_layer(lm).logits(PROMPT)
    for term, expected in _by_the_book(name, lm.model, PROMPT).items():
        close(found[term], expected, 1e-5)


# -- position schemes as the model has them ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rope", "scaled"),
    [
        ({"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 16}, True),
        ({"rope_type": "llama3", "rope_theta": 100.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}, False),
        ({"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0}, False),
    ],
)  # fmt: skip
def test_scaled_rotary_frequencies_are_the_models_own(rope, scaled):
    config = hf.LlamaConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2, num_attention_heads=HEADS,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, rope_parameters=rope, attn_implementation="eager", **IDS,
    )  # fmt: skip
    lm = inscape.load(randomise(hf.LlamaForCausalLM(config)))
    terms = first_layer(lm)
    exact = terms.logits(PROMPT)
    expected = forward(lm.model, PROMPT, output_attentions=True).attentions[0][0]
    assert (exact.attention() - expected).abs().max() < 2e-6
    for distance in (0, 1, 7):
        queries, keys = terms.tables(2, distance)
        i, j = distance + 3, 3
        table = queries[PROMPT[i]] @ keys[PROMPT[j]] * terms.scale
        assert table.item() == pytest.approx(exact["ee"][2, i, j].item(), rel=1e-4, abs=1e-5)
    assert (lm.model.model.rotary_emb.attention_scaling != 1) == scaled


@pytest.mark.parametrize(("name", "scale"), [("bloom", 1.0), ("mpt", 1.0), ("falcon_alibi", 8**-0.5)])
def test_alibi_is_a_line_that_no_token_changes(name, scale):
    terms = first_layer(tiny(name))
    slopes = torch.tensor([2.0 ** (-8 * (head + 1) / HEADS) for head in range(HEADS)]) * scale
    line, other = terms.logits(PROMPT)["alibi"], terms.logits(PROMPT[::-1])["alibi"]
    assert torch.equal(line, other)
    assert torch.allclose(line[..., 1:] - line[..., :-1], slopes[:, None, None].expand(-1, 23, 22), atol=1e-6)
    assert [terms.position(head).slope for head in range(HEADS)] == pytest.approx(slopes.tolist(), rel=1e-6)
    # The row constant is the model's own too: BLOOM's and Falcon's lines begin at 0, MPT's end there.
    assert not line[..., -1 if name == "mpt" else 0].any()
    # The same two tokens at another distance: the whole logit moves by the slope.
    total = terms.logits([7] * 23).total()
    assert torch.allclose(total[..., 1:] - total[..., :-1], slopes[:, None, None].expand(-1, 23, 22), atol=1e-5)


def test_falcons_eager_kernel_adds_its_bias_twice_and_so_do_its_terms():
    once, twice = (first_layer(tiny("falcon_alibi", kernel)).position(1).slope for kernel in ("sdpa", "eager"))
    assert twice == pytest.approx(2 * once)


@pytest.mark.parametrize("heads", [3, 6])
def test_slopes_for_a_number_of_heads_that_is_no_power_of_two(heads):
    config = hf.BloomConfig(vocab_size=VOCAB, hidden_size=8 * heads, n_layer=1, n_head=heads, **IDS)
    config._attn_implementation = "eager"
    lm = inscape.load(randomise(hf.BloomForCausalLM(config)))
    expected = forward(lm.model, PROMPT, output_attentions=True).attentions[0][0]
    assert (first_layer(lm).logits(PROMPT).attention() - expected).abs().max() < 2e-6


@pytest.mark.parametrize("name", ["gpt2", "llama", "bloom", "qwen2"])
def test_half_precision_models_are_read_in_float32(name):
    lm = inscape.load(build(name, dtype=torch.bfloat16), words())
    terms = first_layer(lm)
    assert {table.dtype for table in terms.tables(1)} == {torch.float32}
    expected = first_layer(tiny(name)).logits(PROMPT).total()
    assert (terms.logits(PROMPT).total() - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize("name", ["gpt2", "opt", "bloom", "gptj", "stablelm_parallel"])
def test_the_model_stays_as_it_was(name):
    model = build(name)
    forward(model, PROMPT, output_attentions=True)  # (transformers puts hooks of its own on, once)
    hooks = _hooks(model)
    before = {key: value.clone() for key, value in [*model.named_parameters(), *model.named_buffers()]}
    terms = first_layer(inscape.load(model))
    terms.logits(PROMPT)
    terms.tables(0, center=True)
    terms.position(0)
    for key, value in [*model.named_parameters(), *model.named_buffers()]:
        assert torch.equal(value, before[key]), key
    assert _hooks(model) == hooks


def _hooks(model):
    return [(list(module._forward_hooks), list(module._forward_pre_hooks)) for module in model.modules()]
