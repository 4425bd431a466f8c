"""The measures of `detokenization` against loops, hand-made attention and a model trained to join pieces."""

import numpy as np
import polars as pl
import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import rel_entr, softmax

import inscape
from inscape.attention import Terms, first_layer
from inscape.attention.bigrams import Bigrams
from inscape.attention.scores import bigram_auroc
from inscape.studies.detokenization_gpt2 import AUROC, KINDS, SCORES, compare, is_gpt2_small
from inscape.studies.detokenization_measures import (
    CONTENT,
    DIFFUSE,
    RECENT,
    SELF,
    agreement,
    importance,
    keys_in_effect,
    kind_of_head,
    mean_curves,
    predicted_profile,
    profile,
    published_importance,
)
from inscape.training.corpus import untrained


def made_terms(seed, heads=2, n=9, scale=0.25):
    draw = torch.Generator().manual_seed(seed)
    values = {name: torch.randn(heads, n, n, generator=draw, dtype=torch.float64) for name in ("ee", "ep", "pe", "pp")}
    values["e"] = torch.randn(heads, 1, n, generator=draw, dtype=torch.float64).expand(heads, n, n)
    values["p"] = torch.zeros(heads, n, n, dtype=torch.float64)
    values["r"] = 30 * torch.randn(heads, n, 1, generator=draw, dtype=torch.float64).expand(heads, n, n)
    return Terms(values, tuple(range(heads)), scale, None, None, None)


def looped(terms, name, *, published, context=None):
    """The importance of a term, written out: one head, one query at a time, in numpy."""
    whole = sum(value.numpy() for value in terms.values())
    less = whole - terms[name].numpy()
    if published:
        whole, less = whole / terms.scale, less / terms.scale
    heads, n, _ = whole.shape
    found = []
    for h in range(heads):
        each = []
        for i in range(1, n):
            kl = rel_entr(softmax(whole[h, i, : i + 1]), softmax(less[h, i, : i + 1])).sum()
            if not published:
                each.append(kl)
            elif i + 1 != context and kl / (i + 1) > 1e-10:
                each.append(kl / (i + 1))
        found.append(np.mean(each) if each else np.nan)
    return np.array(found)


@pytest.mark.parametrize("context", [None, 9, 20])
def test_importance_is_the_divergence_written_out(context):
    terms = made_terms(0)
    ours, published = importance(terms), published_importance(terms, context)
    for name in terms:
        np.testing.assert_allclose(ours[name], looped(terms, name, published=False), atol=1e-12)
        if name not in "pr":  # (rounding decides there whether a 0 passes the threshold)
            np.testing.assert_allclose(published[name], looped(terms, name, published=True, context=context), rtol=1e-9)
            assert float((published[name] / ours[name] - 1).abs().max()) > 0.02


def test_a_term_of_zeros_or_the_same_for_all_keys_has_no_importance():
    found = importance(made_terms(1))
    assert found["p"].max() == 0
    assert found["r"].max() < 1e-12
    assert min(found[name].min() for name in ("ee", "ep", "pe", "pp", "e")) > 1e-3
    assert torch.isnan(published_importance(made_terms(1), None)["p"]).all()


def random_attention(seed, heads=3, n=10):
    logits = 2 * torch.randn(heads, n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return logits.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)


@given(st.integers(0, 99), st.integers(1, 8))
@settings(max_examples=20, deadline=None)
def test_profiles_are_means_over_queries_and_sum_to_one(seed, farthest):
    attention = random_attention(seed)
    found = profile(attention, farthest)
    queries = range(farthest, 10)
    for d in range(farthest + 1):
        expected = torch.stack([attention[:, i, i - d] for i in queries]).mean(0)
        torch.testing.assert_close(found[:, d], expected)
    torch.testing.assert_close(found.sum(1), torch.ones(3, dtype=torch.float64))
    for head in range(3):
        again = predicted_profile(lambda i, head=head: attention[head, i, : i + 1], farthest, 10)
        np.testing.assert_allclose(again, found[head], atol=1e-12)


def test_keys_in_effect_of_even_and_of_single_minded_attention():
    n = 12
    even = torch.ones(n, n).tril() / torch.arange(1, n + 1)[:, None]
    one = torch.eye(n)
    found = keys_in_effect(torch.stack([even, one]), 6)
    assert found[0] == pytest.approx(1)
    assert found[1] == pytest.approx(np.mean([1 / (i + 1) for i in range(6, n)]))


@pytest.mark.parametrize(
    ("mass", "keys", "kind"),
    [
        ([0.6, 0.2, 0.1, 0.1], 0.9, SELF),
        ([0.1, 0.3, 0.4, 0.2], 0.9, RECENT),
        ([0.1, 0.1, 0.1, 0.7], 0.1, CONTENT),
        ([0.1, 0.1, 0.1, 0.7], 0.5, DIFFUSE),
    ],
)
def test_kinds_of_heads(mass, keys, kind):
    assert kind_of_head(np.array(mass), 2, keys) == kind


def test_agreement_of_profiles():
    a = np.array([0.5, 0.3, 0.1, 0.1])
    assert agreement(a, a) == (pytest.approx(1), 0)
    b = np.array([0.1, 0.3, 0.5, 0.1])
    assert agreement(a, b) == (pytest.approx(np.corrcoef(a[:3], b[:3])[0, 1]), pytest.approx(0.4))
    assert np.isnan(agreement(np.full(4, 0.25), a)[0])


def some_bigrams(vocab=23, seed=0):
    counts = (
        np.random.default_rng(seed).poisson(0.4, (vocab, vocab)) * np.arange(1, vocab + 1)[:, None]
    )  # [prefix, suffix]
    suffix, prefix = np.nonzero(counts.T)
    unigram = counts.sum(1)
    return Bigrams(
        suffix.astype(np.int32), prefix.astype(np.int32), counts[prefix, suffix].astype(np.int64), unigram.astype(np.int64),
        documents=1, tokens=int(unigram.sum()), cuts=0,
    ), counts  # fmt: skip


def test_areas_of_mean_curves_are_aurocs():
    bigrams, counts = some_bigrams()
    draw = torch.Generator().manual_seed(0)
    queries, keys = (torch.randn(23, 4, generator=draw).round() for _ in range(2))  # (rounded: there are ties)
    suffixes = bigrams.rows()[0]
    found = mean_curves({"head": lambda v: (keys @ queries[v]).numpy()}, bigrams, suffixes)
    np.testing.assert_allclose(found["auroc"], bigram_auroc(queries, keys, bigrams)[suffixes], atol=1e-12)
    for row in found.iter_rows(named=True):
        scores = (keys @ queries[row["suffix"]]).numpy()
        positive = counts[:, row["suffix"]]
        negative = np.where(positive == 0, bigrams.unigram, 0)
        wins = (scores[:, None] > scores) + 0.5 * (scores[:, None] == scores)
        expected = (positive[:, None] * negative * wins).sum() / (positive.sum() * negative.sum())
        assert row["auroc_matched"] == pytest.approx(expected)
        assert row["tpr"][-1] == 1
        assert row["tpr"] == sorted(row["tpr"])


def test_equally_frequent_negatives_take_away_what_frequency_knows():
    vocab, draw = 400, np.random.default_rng(1)
    share = 1 / np.arange(1, vocab + 1)
    pairs = draw.choice(vocab, (6000, 2), p=share / share.sum())  # (no pair is more than its parts)
    counts = np.zeros((vocab, vocab), dtype=np.int64)
    np.add.at(counts, (pairs[:, 0], pairs[:, 1]), 1)
    suffix, prefix = np.nonzero(counts.T)
    bigrams = Bigrams(
        suffix.astype(np.int32), prefix.astype(np.int32), counts[prefix, suffix], counts.sum(1), 1, 6000, 0
    )
    found = mean_curves({"unigram": lambda v: counts.sum(1)}, bigrams, np.flatnonzero(counts.sum(0))[100:])
    assert found["auroc"].mean() > 0.85
    assert found["auroc_matched"].mean() < found["auroc"].mean() - 0.1


# -- a model that has to join pieces ------------------------------------------------------------------------------------

PREFIXES, SUFFIXES, VALID = 40, 40, 4


def pieces(draw, valid, rows, units):
    """Units of (prefix, prefix, suffix, the one of the two prefixes that the suffix can follow), ids [rows, 4 units]."""
    suffix = draw.integers(0, SUFFIXES, (rows, units))
    right = valid[suffix, draw.integers(0, VALID, (rows, units))]
    wrong = draw.integers(0, PREFIXES, (rows, units))
    while (clash := (valid[suffix] == wrong[..., None]).any(-1)).any():
        wrong[clash] = draw.integers(0, PREFIXES, clash.sum())
    first = draw.random((rows, units)) < 0.5
    pair = np.where(first, right, wrong), np.where(first, wrong, right)
    return np.stack([*pair, suffix + PREFIXES, right], -1).reshape(rows, -1)


@pytest.fixture(scope="module")
def toy():
    """(untrained, trained) one-layer models, the valid prefixes of each suffix, and ids of some texts."""
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    valid = np.stack([draw.choice(PREFIXES, VALID, replace=False) for _ in range(SUFFIXES)])
    config = hf.GPT2Config(
        vocab_size=PREFIXES + SUFFIXES, n_embd=64, n_layer=1, n_head=4, n_positions=16, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    first, model = untrained(config), untrained(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(300):
        ids = torch.from_numpy(pieces(draw, valid, 64, 4))
        logits = model(ids).logits[:, 2::4]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 3::4].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    ids = torch.from_numpy(pieces(draw, valid, 256, 4))
    right = (model(ids).logits[:, 2::4].argmax(-1) == ids[:, 3::4]).float().mean()
    assert right > 0.95
    return inscape.load(first), inscape.load(model), valid, ids


def test_a_head_that_joins_pieces_has_a_high_auroc_and_did_not_at_first(toy):
    first, trained, valid, _ = toy
    vocab = PREFIXES + SUFFIXES
    suffix = np.repeat(np.arange(PREFIXES, vocab), VALID)
    prefix = np.sort(valid, 1).flatten()
    bigrams = Bigrams(
        suffix.astype(np.int32), prefix.astype(np.int32), np.ones(len(suffix), np.int64), np.ones(vocab, np.int64),
        documents=1, tokens=vocab, cuts=0,
    )  # fmt: skip
    means = {
        name: np.array([np.nanmean(bigram_auroc(*terms.tables(head), bigrams)) for head in range(4)])
        for name, terms in (("first", first_layer(first)), ("trained", first_layer(trained)))
    }
    assert np.abs(means["first"] - 0.5).max() < 0.1
    assert means["trained"].max() > 0.9
    assert means["trained"].mean() > 0.8


def test_positions_alone_foretell_where_it_looks(toy):
    _, trained, _, ids = toy
    terms = first_layer(trained)
    trained.model.set_attn_implementation("eager")
    with torch.no_grad():
        own = trained.model(ids, output_attentions=True).attentions[0].mean(0)
    # (At the suffixes: only there did training say anything.)
    found = [
        np.corrcoef(own[head, 14, :15].numpy(), terms.position(head).attention(14).detach().numpy())[0, 1]
        for head in range(4)
    ]
    assert np.mean(found) > 0.9, found
    assert min(found) > 0.8, found


# -- the paper's model ---------------------------------------------------------------------------------------------------


def test_gpt2_small_is_known_by_its_shape():
    assert is_gpt2_small(hf.GPT2Config())
    assert not is_gpt2_small(hf.GPT2Config(n_layer=6))
    assert not is_gpt2_small(hf.GPT2Config(vocab_size=32000))
    assert not is_gpt2_small(hf.BloomConfig(vocab_size=50257, hidden_size=768, n_layer=12, n_head=12))


TOPS = {
    ("iens", 7): ["Al", " sap", " al", " AL", "af"],
    (" Jackson", 7): [" Michael", " Peter", "Michael", " Jesse", "Peter"],
}


def test_the_authors_own_numbers_agree_with_themselves():
    found = compare(AUROC, {**dict.fromkeys(range(12), CONTENT), **KINDS}, SCORES, TOPS)
    assert found["agrees"].to_list() == [True] * found.height
    assert found.height == 2 + 12 + 5 + 2 + 2
    assert found.filter(pl.col("check") == "best 5 heads, in order")["here"].item() == "7, 11, 6, 0, 4"


def test_what_differs_and_what_was_not_measured_is_said():
    other = {**AUROC, 4: 0.9}
    found = dict(
        compare(other, {**KINDS, 3: RECENT}, {"Al": 41.6, " sap": 41.05}, {}).select("check", "agrees").iter_rows()
    )
    assert found["best head"] is False
    assert (found["mean AUROC, head 4"], found["mean AUROC, head 7"]) == (False, True)
    assert (found["head 3 attends to"], found["head 1 attends to"]) == (False, True)
    assert found["score of 'Al' before 'iens', head 7, unscaled"] is False
    assert found["score of ' sap' before 'iens', head 7, unscaled"] is True
    assert found["first prefixes of 'iens', head 7"] is None
    none = compare(None, None, {}, {})
    assert none["agrees"].null_count() == none.height
    assert "not measured: no corpus" in none["here"].to_list()
