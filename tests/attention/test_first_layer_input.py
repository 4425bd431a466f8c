"""What is refused, and how; tokens by text and id; vocabularies that don't fit; the proof on the model at hand."""

import copy
from dataclasses import replace

import polars as pl
import pytest
import torch
import transformers as hf
from tiny_models import CONTEXT, HEADS, IDS, VOCAB, WIDTH, build, prompts, randomise, tiny, with_bos, words

import inscape
from inscape.attention import first_layer
from inscape.attention.kernels import Rotation
from inscape.attention.schemes import SCHEMES, Scheme

[PROMPT] = prompts(9)


def _refused(match):
    return pytest.raises(inscape.InputError, match=match)


# -- models ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [1, 2, -1])
def test_deeper_layers(layer):
    with _refused(
        f"layer {layer} asked for, but only in layer 0 do queries and keys depend on token and position alone"
    ):
        first_layer(tiny("gpt2"), layer=layer)


def test_cross_attention():
    config = hf.GPT2Config(
        vocab_size=VOCAB, n_embd=WIDTH, n_layer=2, n_head=HEADS, n_positions=CONTEXT, add_cross_attention=True, **IDS
    )
    with _refused("this gpt2 has cross-attention, whose keys come from another model's states"):
        first_layer(inscape.load(hf.GPT2LMHeadModel(config).eval()))


_SMALL = {
    "vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": HEADS, "intermediate_size": 48,
}  # fmt: skip


def test_disentangled_attention():
    config = hf.DebertaV2Config(**_SMALL, relative_attention=True, pos_att_type=["p2c", "c2p"])
    model = hf.DebertaV2ForMaskedLM(config).eval()
    lm = inscape.load(model, blocks="deberta.encoder.layer", check=False)
    with _refused(r"'deberta-v2' is not handled: .* relative positions in three products"):
        first_layer(lm)


def test_segments():
    lm = inscape.load(hf.BertLMHeadModel(hf.BertConfig(**_SMALL, is_decoder=True)).eval())
    with _refused(r"'bert' is not handled: three embeddings .* \(handled: bloom, falcon,"):
        first_layer(lm)


def test_a_family_without_an_entry():
    lm = inscape.load(hf.GraniteForCausalLM(hf.GraniteConfig(**_SMALL)).eval())
    with _refused(r"model type 'granite' is not handled \(handled: bloom"):
        first_layer(lm)


def test_quantised_weights():
    model = copy.deepcopy(build("gpt2"))
    projection = model.transformer.h[0].attn.c_attn
    lm = inscape.load(model)
    projection.weight = torch.nn.Parameter(projection.weight.detach().char(), requires_grad=False)
    with _refused("weights of the first layer's q projection are quantised; expected floats in memory"):
        first_layer(lm)


WRONG = {
    "opt without its offset": ("opt", {"offset": 0}),
    "opt with another offset": ("opt", {"offset": 1}),
    "opt with a norm that it has later": ("opt_post_norm", {"norm": lambda config: "self_attn_layer_norm"}),
    "gpt2 without its norm": ("gpt2", {"norm": lambda config: None}),
    "gpt2 with another norm": ("gpt2", {"norm": lambda config: "ln_2"}),
    "neox with another norm": ("gpt_neox", {"norm": lambda config: "post_attention_layernorm"}),
    "bloom with another norm": ("bloom", {"norm": lambda config: "post_attention_layernorm"}),
    "olmo2 with a norm that it has later": ("olmo2", {"norm": lambda config: "post_attention_layernorm"}),
    "gpt_neo scaled": ("gpt_neo", {"scale": lambda attention: 8**-0.5}),
    "gpt_neo without its window": ("gpt_neo", {"window": lambda attention: None}),
    "mistral without its window": ("mistral", {"window": lambda attention: None}),
    "qwen3 without its QK-norm": ("qwen3", {"qk_norm": None}),
    "phi without its QK-norm": ("phi_qk_norm", {"qk_norm": None}),
    "falcon's bias unscaled": ("falcon_alibi", {"bias_times": lambda config, scale: 1.0}),
    "gemma2 scaled by its head": ("gemma2", {"scale": lambda attention: 0.25}),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_entry_in_the_table_does_not_survive_the_proof(monkeypatch, case):
    name, change = WRONG[case]
    kind = tiny(name).config.model_type
    monkeypatch.setitem(SCHEMES, kind, replace(SCHEMES[kind], **change))
    with _refused(rf"this {kind} model's first layer is not what its family's is: .* is off by [0-9.]+ of the largest"):
        first_layer(tiny(name))


def test_rotary_pairs_of_the_wrong_kind_do_not_survive_the_proof(monkeypatch):
    right = Rotation._turned

    def wrong(self, x, cos, sin):
        return right(replace(self, interleaved=not self.interleaved), x, cos, sin)

    monkeypatch.setattr(Rotation, "_turned", wrong)
    for name in ("gptj", "llama"):
        with _refused("attention from the summed terms is off by"):
            first_layer(tiny(name))


def test_angles_that_depend_on_the_prompts_length():
    half = [1.0 + n for n in range(4)]
    config = hf.Phi3Config(
        **_SMALL, max_position_embeddings=CONTEXT, original_max_position_embeddings=32, num_key_value_heads=2,
        rope_parameters={"rope_type": "longrope", "rope_theta": 100.0, "short_factor": half, "long_factor": half[::-1],
                         "original_max_position_embeddings": 32, "factor": 2.0}, **IDS,
    )  # fmt: skip
    terms = first_layer(inscape.load(randomise(hf.Phi3ForCausalLM(config)), words()))
    assert terms.logits(list(range(32))).total().isfinite().all()
    with _refused(
        r"33 positions asked for, but beyond 32 this model's rotary angles \(longrope\) depend on the length"
    ):
        terms.logits(list(range(33)))
    with _refused("beyond 32"):
        terms.position(0, [40])


# -- arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [4, -1, 99])
def test_a_head_that_is_not_there(head):
    terms = first_layer(tiny("llama"))
    for ask in (terms.tables, terms.token, terms.position):
        with _refused(f"no head {head}: the first layer has heads 0 to 3"):
            ask(head)
    with _refused(f"no head {head}"):
        terms.token_token(query=3, head=head)
    with _refused(f"no head {head}"):
        terms.logits(PROMPT, [0, head])


@pytest.mark.parametrize(("value", "found"), [(True, "True"), (1.5, "1.5"), ("7", "'7'")])
def test_numbers_that_are_not_whole(value, found):
    terms = first_layer(tiny("llama"))
    with _refused(f"expected a head as a whole number, found {found}"):
        terms.tables(value)
    with _refused(f"expected a distance as a whole number, found {found}"):
        terms.tables(0, value)


def test_numbers_of_numpy_are_numbers():
    heads = torch.tensor([1]).numpy()
    terms = first_layer(tiny("gpt2"))
    assert torch.equal(terms.tables(heads[0])[0], terms.tables(1)[0])


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("distance", [-1, CONTEXT])
def test_a_distance_that_the_model_does_not_have(name, distance):
    terms = first_layer(tiny(name))
    with _refused(f"distance {distance}: expected a number of tokens from 0 to {CONTEXT - 1}"):
        terms.tables(0, distance)
    with _refused(f"distance {distance}"):
        terms.position(0, [0, distance])
    with _refused(f"position {distance}: expected one from 0 to {CONTEXT - 1}"):
        terms.position(0).attention(distance)


def test_alibi_has_no_last_distance():
    terms = first_layer(tiny("bloom"))
    position = terms.position(0, [0, 100_000])
    assert position.mu[0] - position.mu[1] == pytest.approx(100_000 * position.slope, rel=1e-5)
    with _refused("distance -1: expected a number of tokens from 0$"):
        terms.tables(0, -1)


def test_nothing_asked_for():
    terms = first_layer(tiny("gpt2"))
    with _refused("no distances were given"):
        terms.position(0, [])
    with _refused("no heads were given"):
        terms.logits(PROMPT, [])
    for given in ({}, {"query": 1, "key": 2}):
        with _refused("give either query or key"):
            terms.token_token(head=0, **given)


@pytest.mark.parametrize("left_out", ["ee", ["ee", "zz"]])
def test_terms_to_leave_out_that_are_none(left_out):
    terms = first_layer(tiny("gpt2")).logits(PROMPT)
    with _refused(r"leave_out: expected a list out of ee, ep, pe, pp, e, p, r; found"):
        terms.total(left_out)


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (
            torch.ones(VOCAB + 1),
            rf"a weight for each of the model's {VOCAB} embeddings, found a tensor of shape \[98\]",
        ),
        (-torch.ones(VOCAB), "finite weights, none negative and not all zero"),
        (torch.zeros(VOCAB), "finite weights, none negative and not all zero"),
        (torch.full((VOCAB,), torch.nan), "finite weights"),
    ],
)
def test_priors_that_are_none(prior, message):
    with _refused(f"prior: expected {message}"):
        first_layer(tiny("gpt2"), prior=prior)


def test_a_prior_is_taken_up_to_a_factor():
    counts = torch.arange(VOCAB)
    some, same = (first_layer(tiny("gpt2"), prior=one) for one in (counts, counts / 7))
    torch.testing.assert_close(some.position(1).mu, same.position(1).mu)
    assert not torch.allclose(some.position(1).mu, first_layer(tiny("gpt2")).position(1).mu, atol=1e-3)


# -- tokens ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "llama", "bloom"])
@pytest.mark.parametrize("side", ["query", "key"])
def test_scores_of_one_token_are_a_row_or_a_column_of_the_tables(name, side):
    terms = first_layer(tiny(name))
    queries, keys = terms.tables(2, 3)
    whole = queries @ keys.T
    expected = whole[11] if side == "query" else whole[:, 11]
    scores = terms.token_token(**{side: "t11"}, head=2, distance=3)
    torch.testing.assert_close(scores.values, expected, rtol=1e-4, atol=1e-5)
    assert (scores.token_id, scores.side, scores.head, scores.distance) == (11, side, 2, 3)
    order = expected.argsort(descending=True).tolist()
    top, bottom = scores.top(4), scores.bottom(4)
    assert top["token_id"].to_list() == order[:4]
    assert bottom["token_id"].to_list() == order[:-5:-1]
    assert top["token"].to_list() == [f"t{n}" for n in order[:4]]
    assert top.schema == {"token_id": pl.Int64, "token": pl.String, "score": pl.Float64}
    assert top["score"].to_list() == pytest.approx(scores.values[order[:4]].tolist())
    assert len(scores.top(1000)) == VOCAB
    with _refused("a number of tokens from 1, found 0"):
        scores.top(0)


def test_centred_scores_have_no_mean():
    terms = first_layer(tiny("gpt2"))
    plain, centred = (terms.token_token(query=5, head=1, center=center).values for center in (False, True))
    assert centred.mean().abs() < 1e-5
    assert plain.mean().abs() > 1e-3


def test_a_text_of_several_tokens_is_named_with_its_pieces():
    terms = first_layer(tiny("gpt2"))
    with _refused("token 't3 t44': expected a text of one token, found 2: 't3', 't44'"):
        terms.token_token(query="t3 t44", head=0)
    with _refused("token '': expected a text of one token, found 0$"):
        terms.token_token(key="", head=0)


def test_special_tokens_that_the_tokenizer_adds_are_not_counted():
    lm = inscape.load(build("gpt2"), with_bos())
    assert first_layer(lm).token_token(query="t9", head=0).token_id == 9


@pytest.mark.parametrize("token", [VOCAB, -1])
def test_an_id_that_has_no_embedding(token):
    with _refused(f"token id {token} is not in the model's {VOCAB} embeddings"):
        first_layer(tiny("gpt2")).token_token(query=token, head=0)


@pytest.mark.parametrize("token", [1.0, True, [3]])
def test_what_is_no_token(token):
    with _refused(f"expected a token as text or id, found {type(token).__name__}"):
        first_layer(tiny("gpt2")).token_token(query=token, head=0)


def test_a_tokenizer_that_knows_more_tokens_than_the_model():
    lm = inscape.load(build("gpt2"), words(VOCAB + 10))
    terms = first_layer(lm)
    assert terms.vocab == VOCAB
    assert terms.token_token(query="t96", head=0).values.shape == (VOCAB,)
    with _refused(
        rf"token 't101' has id 101, but the model has {VOCAB} embeddings \(the tokenizer knows more tokens\)"
    ):
        terms.token_token(query="t101", head=0)


def test_embeddings_that_the_tokenizer_has_no_token_for():
    lm = inscape.load(build("gpt2"), words(50))
    scores = first_layer(lm).token_token(query=80, head=0)
    table = scores.top(VOCAB)
    assert table.filter(pl.col("token").is_null())["token_id"].sort().to_list() == list(range(50, VOCAB))


def test_without_a_tokenizer_tokens_are_ids():
    terms = first_layer(inscape.load(build("llama")))
    assert terms.token_token(key=4, head=0).top(3)["token"].to_list() == [None] * 3
    with _refused("token 't4' was given as text, but the model was loaded without a tokenizer"):
        terms.token_token(key="t4", head=0)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_an_output_head_of_its_own_is_not_the_embedding(name):
    """Tied or not, tables are of the embeddings that go in."""
    tied = build(name)
    untied = copy.deepcopy(tied)
    untied.lm_head.weight = torch.nn.Parameter(torch.randn(VOCAB, WIDTH))
    for a, b in zip(*(first_layer(inscape.load(model)).tables(1) for model in (tied, untied)), strict=True):
        assert torch.equal(a, b)


def test_the_default_scheme_is_that_of_llama():
    assert SCHEMES["llama"] == Scheme()
    terms = first_layer(tiny("llama"))
    assert (terms.scheme, terms.heads, terms.kv_heads, terms.head_dim) == ("rotary", 4, 2, 8)
    assert terms.scale == pytest.approx(8**-0.5)
    assert terms.positions == CONTEXT
    assert first_layer(tiny("bloom")).positions is None
