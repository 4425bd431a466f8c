"""BLOOM for training against `BloomForCausalLM`, packed rows against separate documents, and every attention kernel."""

import math

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

from inscape.errors import InputError
from inscape.training import bloom
from inscape.training.bloom import Bloom, alibi_slopes, positions

VOCABULARY = 97


def config(heads: int = 6, **changes: object) -> BloomConfig:
    shape = {"vocab_size": VOCABULARY, "hidden_size": 48, "n_layer": 3, "n_head": heads}
    return BloomConfig(**(shape | changes))


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every parameter random: biases and norms at their initial values would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return model


def ids(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def logits(model: Bloom, *args: torch.Tensor) -> torch.Tensor:
    return model(*args) @ model.head_weight.T


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 8, 12, 48])
def test_slopes_are_those_of_transformers(heads: int) -> None:
    theirs = build_alibi_tensor(torch.ones(1, 2, dtype=torch.long), heads, torch.float32)[:, 0, 1]
    torch.testing.assert_close(alibi_slopes(heads), theirs, rtol=1e-6, atol=0)


def test_six_heads_take_every_second_slope_of_the_power_above() -> None:
    assert alibi_slopes(6).tolist() == [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3]


@pytest.mark.parametrize("heads", [4, 6])
@pytest.mark.parametrize("length", [1, 40, 300])
def test_logits_and_gradients_of_transformers(heads: int, length: int) -> None:
    theirs = randomise(BloomForCausalLM(config(heads)))
    ours = Bloom(config(heads))
    ours.load_state_dict(theirs.state_dict())
    tokens = ids(2, length)
    expected = theirs(tokens).logits
    got = logits(ours, tokens)
    assert (got - expected).abs().max() <= 1e-4
    into = torch.randn(got.shape, generator=torch.Generator().manual_seed(1)) / length
    expected.backward(into)
    got.backward(into)
    gradients = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        error = (gradients[name].grad - parameter.grad).norm() / parameter.grad.norm().clamp_min(1e-3)
        assert error < 1e-4, name


def test_weights_go_back_into_transformers() -> None:
    ours = randomise(Bloom(config()))
    theirs = BloomForCausalLM(config())
    missing, unexpected = theirs.load_state_dict(ours.hf_state_dict(), strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    assert (theirs(ids(2, 50)).logits - logits(ours, ids(2, 50))).abs().max() <= 1e-4


def test_an_untied_head_is_refused() -> None:
    state = BloomForCausalLM(config()).state_dict()
    state["lm_head.weight"] = state["lm_head.weight"] + 1
    with pytest.raises(InputError, match="one tied matrix"):
        Bloom(config()).load_state_dict(state)


@pytest.mark.parametrize("position", ["alibi", "learned", "none"])
@pytest.mark.parametrize("lengths", [[40, 100], [1, 1, 138], [140], [130, 10]])
def test_a_packed_document_has_the_states_that_it_has_alone(position: bloom.Position, lengths: list[int]) -> None:
    model = randomise(Bloom(config(), position=position, context=256))
    tokens = ids(2, sum(lengths))
    segments = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).expand(2, -1)
    packed = model(tokens, segments)
    alone = torch.cat([model(document) for document in tokens.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)


def test_rows_of_a_batch_have_their_own_borders() -> None:
    model = randomise(Bloom(config()))
    tokens = ids(2, 30)
    segments = torch.zeros(2, 30, dtype=torch.int32)
    segments[0, 10:], segments[1, 25:] = 1, 1
    packed = model(tokens, segments)
    torch.testing.assert_close(packed[:1, 10:], model(tokens[:1, 10:]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(packed[1:, 25:], model(tokens[1:, 25:]), rtol=1e-4, atol=1e-4)
    # The bias of unpacked rows is kept between calls; segments must not have written to it.
    torch.testing.assert_close(model(tokens)[:, :10], packed[:, :10], rtol=1e-4, atol=1e-4)


def test_positions_restart() -> None:
    segments = torch.tensor([[0, 0, 0, 1, 1, 4], [3, 5, 5, 5, 6, 7]])
    assert positions(segments, segments).tolist() == [[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 0, 0]]
    assert positions(segments, None).tolist() == [[0, 1, 2, 3, 4, 5]] * 2


def by_hand(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
    """Attention as the papers write it, one query at a time."""
    B, H, T, K = q.shape
    out = torch.zeros_like(q)
    for b in range(B):
        for h in range(H):
            for t in range(T):
                seen = [s for s in range(t + 1) if segments[b, s] == segments[b, t]]
                scores = [q[b, h, t] @ k[b, h, s] / math.sqrt(K) - float(alibi_slopes(H)[h]) * (t - s) for s in seen]
                out[b, h, t] = torch.stack(scores).softmax(0) @ v[b, h, seen]
    return out


@pytest.mark.parametrize("kernel", ["blocks", "fused", "flex"])
@pytest.mark.parametrize("packed", [False, True])
def test_kernels(kernel: str, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Bloom(config(heads=3))
    qkv = torch.randn(3, 2, 3, 20, 16, generator=torch.Generator().manual_seed(0))
    q, k, v = qkv.requires_grad_(kernel != "flex").unbind(0)
    tokens, segments = ids(2, 20), torch.arange(20).expand(2, -1) // 7 if packed else torch.zeros(2, 20)
    given = segments if packed else None
    monkeypatch.setattr(bloom, "BLOCK", 8)
    if kernel == "fused":
        monkeypatch.setattr(bloom, "LONGEST_IN_BLOCKS", 0)
    bias = model.flex_bias(tokens, given) if kernel == "flex" else model.attention_bias(tokens, given)
    got, expected = bloom.attend(q, k, v, bias), by_hand(q, k, v, segments)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    if kernel == "flex":  # (it has no backward pass on a CPU)
        return
    into = torch.randn(got.shape, generator=torch.Generator().manual_seed(1))
    for mine, theirs in zip(
        torch.autograd.grad(got, (q, k, v), into), torch.autograd.grad(expected, (q, k, v), into), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_bfloat16_stays_near() -> None:
    """Also far to the right, where slope * key_index would have lost the last bits of the scores."""
    model = randomise(Bloom(config()))
    exact = model(ids(1, 700))
    with torch.autocast("cpu", torch.bfloat16):
        near = model(ids(1, 700))
    error = (near - exact).norm(dim=2) / exact.norm(dim=2)
    assert error.mean() < 0.05
    assert error[:, -100:].mean() < 0.05


def test_a_change_of_dtype_or_rows_changes_the_kept_bias() -> None:
    model = randomise(Bloom(config()))
    alone = [model(ids(rows, 30)) for rows in (1, 2)]
    with torch.autocast("cpu", torch.bfloat16):
        model(ids(2, 30))
    for rows, before in zip((1, 2), alone, strict=True):
        assert torch.equal(model(ids(rows, 30)), before)


def test_fewer_heads_with_their_slopes_are_a_slice_of_the_attention() -> None:
    """What tensor parallelism does: rows of whole heads, columns of the output, and the slopes that belong to them."""
    model = randomise(Bloom(config()))
    attention, x = model.blocks[0].self_attention, torch.randn(1, 20, 48)
    whole = attention(x, model.attention_bias(ids(1, 20), None))
    width, parts = 48 // 2, []
    weight, bias = attention.query_key_value.weight.data, attention.query_key_value.bias.data
    out = attention.dense.weight.data
    all_slopes = model.slopes
    for half in range(2):
        attention.query_key_value.weight.data = weight[3 * width * half : 3 * width * (half + 1)]
        attention.query_key_value.bias.data = bias[3 * width * half : 3 * width * (half + 1)]
        attention.dense.weight.data = out[:, width * half : width * (half + 1)]
        model.slopes = all_slopes.chunk(2)[half].clone()
        parts.append(attention(x, model.attention_bias(ids(1, 20), None)) - attention.dense.bias)
    torch.testing.assert_close(parts[0] + parts[1] + attention.dense.bias, whole, rtol=1e-4, atol=1e-4)


def test_initial_weights() -> None:
    first, again, other = (Bloom(config(initializer_range=0.1), seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    words = "transformer.word_embeddings.weight"
    assert not torch.equal(first[words], other[words])
    assert first[words].std().item() == pytest.approx(0.1, rel=0.05)
    writes = first["transformer.h.1.mlp.dense_4h_to_h.weight"].std().item()
    assert writes == pytest.approx(0.1 / math.sqrt(6), rel=0.05)
    assert first["transformer.h.0.mlp.dense_h_to_4h.bias"].abs().max() == 0
    assert (first["transformer.ln_f.weight"] == 1).all()


def test_a_model_without_memory_is_filled_later() -> None:
    with torch.device("meta"):
        model = Bloom(config())
    model.to_empty(device="cpu").initialise(seed=3)
    tokens = ids(1, 10)
    assert torch.equal(model(tokens), Bloom(config(), seed=3)(tokens))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 50}, "width 50 with 6 heads: expected a multiple"),
        ({"hidden_dropout": 0.1}, "hidden_dropout = attention_dropout = 0"),
        ({"apply_residual_connection_post_layernorm": True}, "expected false"),
    ],
)
def test_what_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Bloom(config(**changes))


def test_learned_positions_end() -> None:
    with pytest.raises(InputError, match="rows of 9 tokens, expected at most 8"):
        Bloom(config(), position="learned", context=8)(ids(1, 9))


def test_long_rows_of_several_documents() -> None:
    """Rows beyond `LONGEST_IN_BLOCKS` take the fused kernel; several rows share one bias there."""
    model = randomise(Bloom(config(n_layer=1)))
    tokens = ids(2, bloom.LONGEST_IN_BLOCKS + 8)
    with torch.no_grad():
        rows = model(tokens)
        alone = model(tokens[1:])
        segments = torch.zeros_like(tokens)
        segments[:, 1000:] = 1
        packed = model(tokens, segments)
        torch.testing.assert_close(rows[1:], alone, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(packed[:, 1000:], model(tokens[:, 1000:]), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(packed[:, :1000], model(tokens[:, :1000]), rtol=1e-4, atol=1e-4)
