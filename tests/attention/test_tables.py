"""Tables of tokens by head and distance, the centred ones, and the position terms, against pairs written out one by one."""

import math

import pytest
import torch
from attention_by_hand import _normed, _rotated
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import CASES, CONTEXT, HEADS, NAMES, VOCAB, build, close, prompts, tiny

import inscape
from inscape.attention import first_layer
from inscape.attention.kernels import Rotation

STATIC = [name for name in NAMES if not name.startswith(("gpt2", "opt", "gpt_neo")) or name.startswith("gpt_neox")]
ADDITIVE = ["gpt2", "gpt_neo", "opt", "opt_post_norm"]
[PROMPT] = prompts(21)


def test_both_kinds_of_models_are_among_the_tests():
    assert len(STATIC) + len(ADDITIVE) == len(NAMES)


def _everything(name, distance, head):
    """Scaled first-layer logits of all pairs ``[query token, key token]``, key at position 0, query ``distance`` later.

    Projections by the kernel's taps, from one prompt per token; the rest by the oracle of the kernel's tests.
    """
    lm, recipe = tiny(name), CASES[name].recipe
    read = lm.capture_sites([[token] for token in range(VOCAB)], ["q", "k"], 0, "all")
    q, k = (read[site].values[:, 0].double() for site in "qk")
    if recipe.clip is not None:
        q, k = q.clamp(-recipe.clip, recipe.clip), k.clamp(-recipe.clip, recipe.clip)
    if recipe.norm is not None:
        block = lm.sites.blocks[0]
        q, k = (
            _normed(x, block.get_submodule(path), recipe.norm_over) for x, path in zip((q, k), recipe.norm, strict=True)
        )
    k = k[:, head // (HEADS // k.shape[1])]
    q = q[:, head]
    if recipe.rotary:
        later = torch.zeros(distance + 1, *q.shape, dtype=torch.float64)
        later[distance] = q
        q = _rotated(later, recipe, 0)[distance]
    logits = q @ k.T * (recipe.scale if recipe.scale is not None else 1 / math.sqrt(q.shape[-1]))
    if recipe.alibi is not None:
        fall = 2.0 ** (-8 * (head + 1) / HEADS) * distance
        logits = logits - (fall / math.sqrt(q.shape[-1]) if recipe.alibi == "falcon" else fall)
    return logits


@pytest.mark.parametrize("name", STATIC)
@pytest.mark.parametrize("distance", [0, 1, 9])
def test_centred_tables_and_mu_are_the_two_way_anova_of_all_pairs(name, distance):
    head = 2
    prior = torch.rand(VOCAB, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    terms = first_layer(tiny(name), prior=prior)
    prior = prior / prior.sum()
    pairs = _everything(name, distance, head)
    by_query, by_key, mu = pairs @ prior, prior @ pairs, prior @ pairs @ prior
    position = terms.position(head, [4, distance])
    assert position.mu[1].item() == pytest.approx(mu.item(), abs=2e-6, rel=1e-5)
    queries, keys = terms.tables(head, distance, center=True)
    together = queries @ keys.T * terms.scale
    assert together.dtype == torch.float32
    expected = pairs - by_query[:, None] - by_key + mu
    close(together, expected, 2e-5)
    assert (prior.float() @ queries).abs().max() < 1e-5
    # The four centred parts sum back to the logit.
    close(mu + (by_key - mu) + (by_query - mu)[:, None] + together.double(), pairs, 1e-5)


@pytest.mark.parametrize("name", STATIC)
def test_tables_at_a_distance_are_the_exact_terms_at_that_distance(name):
    terms = first_layer(tiny(name))
    exact = terms.logits(PROMPT)
    assert exact.sigma is None
    for head in (0, 3):
        for distance in (0, 1, 5, 20):
            queries, keys = terms.tables(head, distance)
            i = torch.arange(distance, len(PROMPT))
            ids = torch.tensor(PROMPT)
            table = (queries[ids[i]] * keys[ids[i - distance]]).sum(-1) * terms.scale
            size = exact["ee"].abs().max().item()
            assert (table - exact["ee"][head, i, i - distance]).abs().max() < 2e-5 * size
            if "e" in exact:
                token = terms.token(head, distance)[ids[i - distance]] * terms.scale
                assert (token - exact["e"][head, i, i - distance]).abs().max() < 2e-5 * size
    if "e" not in exact:
        assert not terms.token(0).any()


@pytest.mark.parametrize("name", ["gpt_neox", "gptj", "qwen2", "phi", "stablelm", "falcon_new"])
def test_the_product_of_biases_depends_on_the_distance_alone(name):
    terms = first_layer(tiny(name))
    exact = terms.logits(PROMPT)["pos"]
    n = len(PROMPT)
    for head in range(HEADS):
        position = terms.position(head, range(n))
        i, j = torch.tril_indices(n, n)
        off = exact[head, i, j] - position.pos[i - j] * terms.scale
        assert off.abs().max() < 2e-5 * exact.abs().max()
        for i in (0, 4, 20):
            assert torch.allclose(position.mean_row(i), position.mu[: i + 1].flip(0), atol=1e-6)
    assert terms.position(0).pp is None
    assert terms.position(0).p is None


@pytest.mark.parametrize("name", ["llama", "bloom", "mpt", "qwen3"])
def test_no_product_of_biases_where_it_cannot_be(name):
    assert first_layer(tiny(name)).position(0).pos is None


def _additive_everything(name, i, j, head):
    """Scaled logits of all pairs, query token at i, key token at j, by hooks on prompts that hold the token there."""
    lm = tiny(name)

    def at(position, site):
        ids = [[5] * position + [token] for token in range(VOCAB)]
        return lm.capture(ids, site, 0, "last").values[:, 0, head].double()

    scale = 1.0 if name == "gpt_neo" else 8**-0.5
    return at(i, "q") @ at(j, "k").T * scale


@pytest.mark.parametrize("name", ADDITIVE)
def test_mean_logits_of_additive_positions_are_means_over_all_pairs(name):
    prior = torch.rand(VOCAB, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    uniform, weighted = first_layer(tiny(name)), first_layer(tiny(name), prior=prior)
    prior = prior / prior.sum()
    for i, j in ((0, 0), (9, 4), (30, 29)):
        pairs = _additive_everything(name, i, j, 1)
        for terms, expected in ((uniform, pairs.mean()), (weighted, prior @ pairs @ prior)):
            assert terms.position(1).mean_row(i)[j].item() == pytest.approx(expected.item(), abs=5e-6, rel=1e-5)


def test_mu_of_additive_positions_is_a_mean_over_the_same_queries_for_every_distance():
    terms = first_layer(tiny("gpt2"))
    position = terms.position(3, [0, 2, 11])
    rows = [position.mean_row(i) for i in range(11, CONTEXT)]
    for place, distance in enumerate((0, 2, 11)):
        expected = torch.stack([row[len(row) - 1 - distance] for row in rows]).mean()
        assert position.mu[place].item() == pytest.approx(expected.item(), abs=1e-6)
    assert position.distances.tolist() == [0, 2, 11]


@pytest.mark.parametrize("name", ADDITIVE)
def test_predicted_attention_is_the_published_softmax(name):
    terms = first_layer(tiny(name))
    position = terms.position(1)
    for i in (0, 3, 17):
        logits = (position.pp[i, : i + 1] + position.p[: i + 1]) * terms.scale
        if name == "gpt_neo":  # its first layer sees four tokens
            logits[: max(0, i - 3)] = -torch.inf
        torch.testing.assert_close(position.attention(i), logits.softmax(0))
        mean = position.mean_row(i).clone()
        if name == "gpt_neo":
            mean[: max(0, i - 3)] = -torch.inf
        torch.testing.assert_close(position.mean_attention(i), mean.softmax(0))


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "bloom"])
def test_predicted_attention_elsewhere_is_the_softmax_of_mean_logits(name):
    terms = first_layer(tiny(name))
    position = terms.position(1)
    logits = torch.stack([terms.position(1, [17 - j]).mu[0] for j in range(18)])
    if name == "gemma2":
        logits = 3 * torch.tanh(logits / 3)
    if name in ("mistral", "gemma2"):
        logits[:14] = -torch.inf
    torch.testing.assert_close(position.attention(17), logits.softmax(0))


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 999), pairs=st.integers(1, 4), rest=st.integers(0, 3), interleaved=st.booleans(),
    i=st.integers(0, 39), j=st.integers(0, 39),
)  # fmt: skip
def test_rotation_is_sums_of_cosines_and_sines_of_the_distance(seed, pairs, rest, interleaved, i, j):
    """A_m = q1 k1 + q2 k2 and B_m = q1 k2 - q2 k1, on the frequencies of the pairs; the rest does not turn."""
    i, j = max(i, j), min(i, j)
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, 2 * pairs + rest, generator=generator, dtype=torch.float64)
    theta = torch.rand(pairs, generator=generator, dtype=torch.float64)
    angles = torch.arange(40, dtype=torch.float64)[:, None] * theta
    angles = angles.repeat_interleave(2, -1) if interleaved else torch.cat([angles, angles], -1)
    kernel = Rotation(angles.cos(), angles.sin(), interleaved)
    m = torch.arange(pairs)
    first, second = (2 * m, 2 * m + 1) if interleaved else (m, m + pairs)
    a, b = q[first] * k[first] + q[second] * k[second], q[first] * k[second] - q[second] * k[first]
    wave = (a * (theta * (i - j)).cos() + b * (theta * (i - j)).sin()).sum()
    expected = wave + q[2 * pairs :] @ k[2 * pairs :]
    assert (q @ kernel.key_back(k, i - j) - expected).abs() < 1e-10
    placed = torch.zeros(40, 1, len(q), dtype=torch.float64)
    placed[i], placed[j] = q, placed[j]
    turned_q = kernel.at_positions(placed)[i, 0]
    placed[j] = k
    turned_k = kernel.at_positions(placed)[j, 0]
    assert (turned_q @ turned_k - expected).abs() < 1e-10


def test_the_rotated_product_is_turned_the_right_way():
    """The mirror image of the distance (keys turned on, not back) is another product."""
    terms = first_layer(tiny("llama"))
    kernel = terms._static._rotation_for(8)
    keys = terms._static.by_token["k"][:, 0]
    right, mirrored = kernel.key_back(keys, 5), Rotation(kernel.cos, -kernel.sin, False).key_back(keys, 5)
    assert (right - mirrored).abs().max() > 0.5


def test_tables_are_the_callers_own():
    terms = first_layer(inscape.load(build("llama")))
    before = terms.tables(1, 0)[0].clone()
    for table in terms.tables(1, 0):
        assert table.is_contiguous()
        table.zero_()
    assert torch.equal(terms.tables(1, 0)[0], before)
