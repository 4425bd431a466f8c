"""A10: a transformer whose value axis is planted and whose decoder is linear, edited through the kernel.

Each entity is one token; its embedding is `1·c + x·u + z·w + noise`, with c a constant, u the value axis, w an unrelated
property. The blocks write nothing, so the residual is the embedding. The head of number token j is `2·v_j·u - v_j²·c`:
its arg max is the v_j nearest to x, whatever the final norm divides by. So the number written is known in closed form.
"""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import inscape
from inscape.subspaces.directions import edit_vectors, edit_weights, steps
from inscape.subspaces.effects import effects
from inscape.subspaces.estimators import PLSSubspace

N, D, TRAIN = 200, 48, 150
NUMBERS = np.arange(-300, 301)


@pytest.fixture(scope="module")
def planted():
    rng = np.random.default_rng(3)
    names = [f"entity{i}" for i in range(N)]
    vocab = {word: i for i, word in enumerate(["<unk>", "Ask", *names, *map(str, NUMBERS)])}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocab),
            hidden_size=D,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    ).eval()
    axes = np.linalg.qr(rng.normal(size=(D, D)))[0].T
    c, u, w = axes[:3]
    x, z = rng.uniform(-100, 100, N), rng.uniform(-100, 100, N)
    # Unrelated means unrelated in the training sample too: take out what chance correlation there is.
    centred = x[:TRAIN] - x[:TRAIN].mean()
    z -= (centred @ z[:TRAIN]) / (centred @ centred) * (x - x[:TRAIN].mean())
    entities = 100 * c + np.outer(x, u) + np.outer(z, w) + rng.normal(size=(N, D)) @ axes[3:].T @ axes[3:] / 10
    # The number written is the v nearest to 100 · (h·u)/(h·c): the scale of c sets the unit.
    heads = 2 * np.outer(NUMBERS, u) - np.outer(NUMBERS**2, c) / 100
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight[2 : 2 + N] = torch.tensor(entities, dtype=torch.float32)
        model.lm_head.weight.fill_(0)
        model.lm_head.weight[: 2 + N] = torch.tensor(-1e6 * c, dtype=torch.float32)
        model.lm_head.weight[2 + N :] = torch.tensor(heads, dtype=torch.float32)
    return inscape.load(model, tokenizer), names, x, z, u, w


def written(lm, names, vectors_Sd, layer=1):
    """Numbers written for each name under each vector, [name, step]."""
    prompts = [f"Ask {name}" for name in names for _ in vectors_Sd]
    edit = inscape.add(
        "resid_post", layer, torch.from_numpy(np.tile(vectors_Sd, (len(names), 1))).float(), tokens="mention_last"
    )
    mentions = [name for name in names for _ in vectors_Sd]
    texts = lm.generate(prompts, edits=[edit], mentions=mentions, max_new_tokens=1, batch_size=512)
    return np.array([float(t) for t in texts]).reshape(len(names), len(vectors_Sd))


def fitted(lm, names, values):
    acts = lm.capture([f"Ask {n}" for n in names], "resid_post", 1, "mention_last", mentions=names)
    X = acts.at(1).numpy()
    return PLSSubspace(3).fit(X[:TRAIN], values[:TRAIN])


@pytest.mark.parametrize("kind", ["weights", "loadings"])
def test_output_is_monotone_with_the_closed_form_slope(planted, kind):
    lm, names, x, _, u, _ = planted
    pls = fitted(lm, names, x)
    vectors = edit_vectors(pls, 0, 11, kind)
    outputs = written(lm, names[TRAIN:], vectors)
    assert np.abs(outputs[:, 5] - x[TRAIN:]).max() <= 0.501  # step 0: the model itself, so the world is as planted
    measured = effects(steps(11), outputs)
    assert measured["spearman"].to_numpy() == pytest.approx(1.0, abs=1e-12)
    expected = x[TRAIN:, None] + vectors @ u  # an edit moves the value by its part along u, and c not at all
    assert np.abs(outputs - expected).max() <= 0.5 + 1.5  # rounding to a number, and the little of c in a fitted axis
    assert np.median(np.abs(outputs - expected)) <= 0.5


def test_reversed_direction_reverses_the_answer(planted):
    lm, names, x, _, _, _ = planted
    vectors = edit_vectors(fitted(lm, names, x), 0, 11, "weights")
    reversed_ = effects(steps(11), written(lm, names[TRAIN:], -vectors))
    assert reversed_["spearman"].to_numpy() == pytest.approx(-1.0, abs=1e-12)


def test_random_directions_and_the_other_property_move_it_a_tenth_as_much_at_most(planted):
    lm, names, x, z, _, _ = planted
    pls = fitted(lm, names, x)
    vectors = edit_vectors(pls, 0, 11, "loadings")
    main = effects(steps(11), written(lm, names[TRAIN:], vectors))["slope"].mean()
    signed = np.sign(steps(11)) * np.linalg.norm(vectors, axis=1)
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(20, D))
    draws /= np.linalg.norm(draws, axis=1, keepdims=True)
    sizes = [
        abs(effects(steps(11), written(lm, names[TRAIN : TRAIN + 15], np.outer(signed, d)))["slope"].mean())
        for d in draws
    ]
    # An isotropic direction of D dimensions has a part of about sqrt(2 / pi / D) along u: 0.115 for D = 48.
    assert np.mean(sizes) / main < 2 * np.sqrt(2 / np.pi / D)
    other = edit_vectors(fitted(lm, names, z), 0, 11, "loadings")
    side = effects(steps(11), written(lm, names[TRAIN:], other))["slope"].abs().mean()
    assert side / main < 0.10


def test_doses_reach_the_training_extremes(planted):
    lm, names, x, _, u, _ = planted
    pls = fitted(lm, names, x)
    weights = edit_weights(pls, 0, 11)
    vectors = edit_vectors(pls, 0, 11, "loadings")
    moved = vectors @ u
    # A score is centred: the extremes of x, seen from its mean, are what the ends of the range move by.
    low, high = x[:TRAIN].min() - x[:TRAIN].mean(), x[:TRAIN].max() - x[:TRAIN].mean()
    assert weights[5] == 0.0
    assert moved[0] == pytest.approx(low, rel=0.05)
    assert moved[-1] == pytest.approx(high, rel=0.05)
