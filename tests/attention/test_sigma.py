"""σ(position, token) and its averages against brute force; what depends on tokens, what on positions; averaging."""

import numpy as np
import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import CONTEXT, HEADS, IDS, VOCAB, WIDTH, prompts, randomise, tiny

import inscape
from inscape.attention import first_layer, sigma
from inscape.attention.additive import Additive

[PROMPT] = prompts(19)


def _brute(words, positions, eps, ddof=0):
    """The whole table, [P, V], by numpy."""
    return np.sqrt((words[None] + positions[:, None]).var(-1, ddof=ddof) + eps)


@settings(max_examples=40, deadline=None)
@given(
    vocab=st.integers(1, 60), total=st.integers(1, 30), width=st.integers(2, 12), block=st.integers(1, 500),
    seed=st.integers(0, 99), uniform=st.booleans(),
)  # fmt: skip
def test_averages_are_those_of_the_whole_table(vocab, total, width, block, seed, uniform):
    rng = np.random.default_rng(seed)
    words, positions = rng.normal(1, 2, (vocab, width)), rng.normal(-1, 1, (total, width))
    prior = np.ones(vocab) / vocab if uniform else rng.dirichlet(np.ones(vocab))
    before, sigma._BLOCK = sigma._BLOCK, block
    try:
        found = sigma.sigma_averages(torch.tensor(words), torch.tensor(positions), 1e-5, torch.tensor(prior))
    finally:
        sigma._BLOCK = before
    table = _brute(words, positions, 1e-5)

    def same(tensor, expected, tolerance=1e-9):
        assert np.abs(tensor.numpy() - expected).max() <= tolerance * np.abs(expected).max()

    same(found.by_token, table.mean(0))
    same(found.inverse_by_token, (1 / table).mean(0))
    same(found.by_position["mean"], table @ prior)
    same(found.by_position["min"], table.min(1))
    same(found.by_position["max"], table.max(1))
    same(found.inverse_by_position, (1 / table) @ prior)
    same(found.words_over_sigma, np.einsum("pv,v,vd->pd", 1 / table, prior, words))
    weights = np.ones(vocab) if uniform else prior  # (counts, so that a share of 1 / 40 is just that)
    band = [[np.quantile(1 / row, q, weights=weights, method="inverted_cdf") for row in table] for q in (0.025, 0.975)]
    same(found.inverse_band, np.array(band))
    assert found.ratio == pytest.approx(table.max() / table.min())
    assert found.over_positions == pytest.approx((table.max(0) / table.min(0)).max())
    assert found.over_tokens == pytest.approx((table.max(1) / table.min(1)).max())


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_the_table_is_the_biased_variance_of_the_models_own_sums(name):
    model = tiny(name, dtype=torch.float64).model
    if name == "gpt2":
        words, positions, eps = model.transformer.wte, model.transformer.wpe.weight, model.config.layer_norm_epsilon
    else:
        decoder = model.model.decoder
        words, positions, eps = decoder.embed_tokens, decoder.embed_positions.weight[2:], 1e-5
    words, positions = words.weight.detach().numpy(), positions.detach().numpy()
    terms = first_layer(tiny(name, dtype=torch.float64))
    exact = terms.logits(PROMPT).sigma.numpy()
    brute, wrong = (_brute(words, positions, eps, ddof)[range(len(PROMPT)), PROMPT] for ddof in (0, 1))
    assert np.abs(exact - brute).max() < 1e-12
    assert np.abs(exact - wrong).max() > 1e-3
    assert terms.sigma_ratio == pytest.approx(_brute(words, positions, eps).max() / _brute(words, positions, eps).min())


def test_the_sample_variance_would_be_refused(monkeypatch):
    monkeypatch.setattr(
        "inscape.attention.additive.sigma", lambda words, places, eps: (words + places).var(-1).add(eps).sqrt()
    )
    with pytest.raises(inscape.InputError, match=r"off by 0\.\d+"):
        first_layer(tiny("gpt2"))


def _raw(terms):
    """Terms with σ taken out: what each is a product of."""
    row, column = terms.sigma[:, None], terms.sigma[None]
    sides = {"ee": row * column, "ep": row * column, "pe": row * column, "pp": row * column, "e": column, "p": column}
    return {name: terms[name] * factor for name, factor in sides.items()}


@pytest.mark.parametrize("name", ["gpt2", "opt", "gpt_neo"])
def test_each_term_depends_on_what_its_name_says(name):
    terms = first_layer(tiny(name, dtype=torch.float64))
    base = _raw(terms.logits(PROMPT))
    order = torch.randperm(len(PROMPT), generator=torch.Generator().manual_seed(0))
    shuffled = _raw(terms.logits([PROMPT[n] for n in order]))
    for name in ("pp", "p"):
        assert (shuffled[name] - base[name]).abs().max() < 1e-12
    for name in ("ee", "e"):  # tokens moved, and their terms with them
        assert (shuffled[name] - base[name][:, order][..., order]).abs().max() < 1e-12
    assert (shuffled["ep"] - base["ep"][:, order]).abs().max() < 1e-12
    assert (shuffled["pe"] - base["pe"][..., order]).abs().max() < 1e-12
    for name in ("ee", "ep", "pe", "e"):
        assert (shuffled[name] - base[name]).abs().max() > 1e-2
    # One token changed: only its row, its column, or nothing.
    other = list(PROMPT)
    other[6] = 1 if PROMPT[6] != 1 else 0
    changed = {name: (value - base[name]).abs() > 1e-9 for name, value in _raw(terms.logits(other)).items()}
    rows, columns = (torch.zeros_like(changed["ee"]) for _ in range(2))
    rows[:, 6], columns[..., 6] = True, True
    assert torch.equal(changed["ep"], rows)
    assert torch.equal(changed["pe"], columns)
    assert torch.equal(changed["e"], columns)
    assert torch.equal(changed["ee"], rows | columns)
    assert not changed["pp"].any()
    assert not changed["p"].any()


@pytest.mark.parametrize("name", ["gpt2", "opt", "gpt_neo"])
def test_averaging_is_a_positive_factor_and_exactly_that_of_the_sigmas(name):
    lm = tiny(name, dtype=torch.float64)
    terms = first_layer(lm)
    exact = terms.logits(PROMPT)
    mean = terms._additive.sigma.by_token[PROMPT]
    inverse = terms._additive.sigma.inverse_by_token[PROMPT]
    worst = 1.0
    for head in range(HEADS):
        queries, keys = terms.tables(head)
        averaged = queries[PROMPT] @ keys[PROMPT].T * terms.scale
        factor = exact.sigma[:, None] * exact.sigma / (mean[:, None] * mean)
        assert (averaged - exact["ee"][head] * factor).abs().max() < 1e-10
        assert torch.equal(averaged.sign(), exact["ee"][head].sign())
        worst = max(worst, float(factor.max()), float(1 / factor.min()))
        token = terms.token(head)[PROMPT] * terms.scale
        assert (token - exact["e"][head][0] * exact.sigma * inverse).abs().max() < 1e-10
        position = terms.position(head, [0, 1])
        pp, p = position.pp[:19, :19] * terms.scale, position.p[:19] * terms.scale
        by_position, inverse_p = terms._additive.sigma.by_position, terms._additive.sigma.inverse_by_position[:19]
        factor = exact.sigma[:, None] / by_position["mean"][:19, None] * exact.sigma * inverse_p
        assert (pp - exact["pp"][head] * factor).abs().max() < 1e-10
        assert (p - exact["p"][head][0] * exact.sigma * inverse_p).abs().max() < 1e-10
        low, high = position.p_band
        assert (low <= position.p + 1e-12).all()
        assert (position.p <= high + 1e-12).all()
    reported = terms.token_token(query=3, head=0).sigma_ratio
    assert 1 < worst <= reported**2
    assert reported <= terms.sigma_ratio
    assert position.sigma_ratio <= terms.sigma_ratio


def test_the_querys_sigma_can_be_its_mean_least_or_largest():
    terms = first_layer(tiny("gpt2"))
    curves = {name: terms.position(1, query_sigma=name).pp for name in ("min", "mean", "max")}
    by_position = terms._additive.sigma.by_position
    for name in ("min", "max"):
        ratio = (by_position["mean"] / by_position[name])[:, None]
        torch.testing.assert_close(curves[name], curves["mean"] * ratio, rtol=1e-4, atol=1e-5)
    with pytest.raises(inscape.InputError, match="query_sigma is mean, min or max, found 'median'"):
        terms.position(1, query_sigma="median")


@pytest.mark.parametrize("name", ["opt_post_norm", "llama", "bloom", "qwen2"])
def test_where_nothing_is_averaged_the_ratio_is_one(name):
    terms = first_layer(tiny(name))
    assert terms.sigma_ratio == 1
    assert terms.token_token(query=3, head=0).sigma_ratio == 1
    assert terms.position(0).sigma_ratio == 1


def test_without_a_norm_tables_are_the_terms_themselves():
    terms = first_layer(tiny("opt_post_norm", dtype=torch.float64))
    exact = terms.logits(PROMPT)
    queries, keys = terms.tables(2)
    assert (queries[PROMPT] @ keys[PROMPT].T * terms.scale - exact["ee"][2]).abs().max() < 1e-12
    position = terms.position(2, [0])
    assert (position.pp[:19, :19] * terms.scale - exact["pp"][2]).abs().max() < 1e-12


def test_embeddings_that_are_not_numbers_are_named():
    model = randomise(
        hf.GPT2LMHeadModel(
            hf.GPT2Config(vocab_size=VOCAB, n_embd=WIDTH, n_layer=1, n_head=HEADS, n_positions=CONTEXT, **IDS)
        )
    )
    terms = first_layer(inscape.load(model))
    assert isinstance(terms._additive, Additive)
    with torch.no_grad():
        model.transformer.wte.weight[41, 3] = torch.nan
    with pytest.raises(inscape.NonFiniteError, match="1 embeddings are NaN or Inf, first that of token 41"):
        terms.tables(0)
