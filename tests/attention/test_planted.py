"""Models whose weights were made by hand: what the terms say must be what was planted, and what the model then does."""

import pytest
import torch
import transformers as hf
from tiny_models import words

import inscape
from inscape.attention import first_layer

WIDTH, HEAD, LENGTH, VOCAB, FREQUENCIES = 128, 32, 48, 60, 10
_POSITIONS, _TOKENS = slice(1, 21), slice(21, 64)


def _previous_token_head(token_norms=(1.0, 1.0), position_norms=(1.0, 1.0)):
    """A GPT-2 whose head 0 turns a query's position one step back; head 1 finds, for token v, the token v - 1.

    Positions and tokens live in subspaces apart, both apart from the all-ones direction that the norm takes out.
    """
    generator = torch.Generator().manual_seed(0)
    config = hf.GPT2Config(
        vocab_size=VOCAB, n_embd=WIDTH, n_layer=1, n_head=WIDTH // HEAD, n_positions=LENGTH,
        bos_token_id=0, eos_token_id=None, attn_implementation="eager",
    )  # fmt: skip
    model = hf.GPT2LMHeadModel(config).double().eval()
    basis = torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64)
    basis[:, 0] = 1
    basis = torch.linalg.qr(basis)[0].T  # rows; the first is the all-ones direction
    theta = torch.linspace(0.1, 2.9, FREQUENCIES, dtype=torch.float64)
    angles = torch.arange(LENGTH, dtype=torch.float64)[:, None] * theta
    waves = torch.stack([angles.cos(), angles.sin()], -1).flatten(1) / FREQUENCIES**0.5

    def norms(low, high, count):
        return low + (high - low) * torch.rand(count, 1, generator=generator, dtype=torch.float64)

    tokens = torch.nn.functional.normalize(
        torch.randn(VOCAB, 43, generator=generator, dtype=torch.float64), dim=1
    ) * norms(*token_norms, VOCAB)  # fmt: skip
    values = torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64)
    step = torch.block_diag(*[torch.tensor([[c, -s], [s, c]]) for c, s in zip(theta.cos(), theta.sin(), strict=True)])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.transformer.wpe.weight.copy_(waves * norms(*position_norms, LENGTH) @ basis[_POSITIONS])
        model.transformer.wte.weight.copy_(tokens @ basis[_TOKENS])
        model.transformer.ln_f.weight.fill_(1)
        block = model.transformer.h[0]
        block.ln_1.weight.fill_(1)
        block.ln_2.weight.fill_(1)
        query, key = block.attn.c_attn.weight[:, :HEAD], block.attn.c_attn.weight[:, WIDTH : WIDTH + HEAD]
        # Row vectors: p_i step = p_{i - 1}.
        query[:, :20] = basis[_POSITIONS].T @ step
        key[:, :20] = 4.0 * basis[_POSITIONS].T
        block.attn.c_attn.weight[:, 2 * WIDTH :] = values
    return model


def _observed(model, texts=12):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, VOCAB, (texts, LENGTH), generator=generator)
    with torch.no_grad():
        return model(input_ids=ids, output_attentions=True).attentions[0][:, 0].mean(0)


def test_a_previous_token_head_is_predicted_from_weights():
    model = _previous_token_head()
    terms = first_layer(inscape.load(model, words(VOCAB)))
    position, observed = terms.position(0), _observed(model)
    for i in range(5, LENGTH):
        predicted = position.attention(i)
        assert predicted.argmax() == i - 1
        assert predicted[i - 1] > 0.9997
        assert (predicted - observed[i, : i + 1]).abs().sum() / 2 < 1e-6
        assert (position.mean_attention(i) - predicted).abs().sum() < 1e-6
    assert position.mu.argmax() == 1
    assert position.sigma_ratio < 1.01
    # A head without weights does nothing with positions.
    assert not terms.position(1).mu.any()


def test_where_norms_differ_the_same_plan_degrades_and_the_ratio_says_so():
    model = _previous_token_head(token_norms=(2, 6), position_norms=(0.6, 1.4))
    terms = first_layer(inscape.load(model, words(VOCAB)))
    position, observed = terms.position(0), _observed(model)
    distance = [float((position.attention(i) - observed[i, : i + 1]).abs().sum() / 2) for i in range(5, LENGTH)]
    assert sum(distance) / len(distance) > 0.01
    assert terms.sigma_ratio > 2
    assert position.sigma_ratio > 2


def test_a_planted_prefix_is_on_top():
    model = _previous_token_head()
    pairs = {7: 31, 12: 5, 40: 41}
    with torch.no_grad():
        words_VD = model.transformer.wte.weight
        inverse = torch.linalg.pinv(words_VD)
        # Head 2: the query of token v is one feature per pair, and so is the key of its prefix.
        target = torch.zeros(VOCAB, HEAD, dtype=torch.float64)
        source = torch.zeros(VOCAB, HEAD, dtype=torch.float64)
        for feature, (suffix, prefix) in enumerate(pairs.items()):
            target[suffix, feature] = source[prefix, feature] = 1
        weight = model.transformer.h[0].attn.c_attn.weight
        weight[:, 2 * HEAD : 3 * HEAD] = inverse @ target
        weight[:, WIDTH + 2 * HEAD : WIDTH + 3 * HEAD] = inverse @ source
    terms = first_layer(inscape.load(model, words(VOCAB)))
    for suffix, prefix in pairs.items():
        [best] = terms.token_token(query=f"t{suffix}", head=2).top(1).to_dicts()
        assert (best["token_id"], best["token"]) == (prefix, f"t{prefix}")
        [best] = terms.token_token(key=prefix, head=2).top(1).to_dicts()
        assert best["token_id"] == suffix
    # In the others there is nothing of the kind.
    assert not terms.token_token(query=7, head=3).values.any()


@pytest.mark.parametrize("head", [0, 1, 2, 3])
def test_orthogonal_subspaces_have_no_mixed_terms(head):
    terms = first_layer(inscape.load(_previous_token_head(), words(VOCAB))).logits(list(range(LENGTH)))
    assert terms["ep"][head].abs().max() < 1e-10
    assert terms["pe"][head].abs().max() < 1e-10
    assert (terms["pp"][head].abs().max() > 1) == (head == 0)
