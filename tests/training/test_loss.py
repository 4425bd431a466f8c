"""The output layer's loss against torch's own, value and gradients."""

import pytest
import torch
import torch.nn.functional as F

from inscape.training import loss as module
from inscape.training.loss import token_loss, token_losses


def layer(n=50, width=16, words=70, seed=0):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, width, generator=g).requires_grad_()
    weight = torch.randn(words, width, generator=g).requires_grad_()
    return hidden, weight, torch.randint(0, words, (n,), generator=g), torch.rand(n, generator=g)


def plain(hidden, weight, targets, weights):
    return (F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="none") * weights).sum()


@pytest.mark.parametrize("chunk", [1, 16 * 70, 24 * 70, 1 << 20])
def test_value_and_gradients_are_those_of_cross_entropy(chunk, monkeypatch):
    monkeypatch.setitem(module._CHUNK_ELEMENTS, "cpu", chunk)
    hidden, weight, targets, weights = layer()
    expected = plain(hidden, weight, targets, weights)
    wanted = torch.autograd.grad(expected, (hidden, weight))
    found = token_loss(hidden, weight, targets, weights)
    torch.testing.assert_close(found, expected)
    for one, other in zip(torch.autograd.grad(3 * found, (hidden, weight)), wanted, strict=True):
        torch.testing.assert_close(one, 3 * other, atol=1e-5, rtol=1e-5)
    each = token_losses(hidden, weight, targets)
    torch.testing.assert_close((each * weights).sum(), expected)
    assert not each.requires_grad


def test_in_bfloat16_it_is_as_near_to_float32_as_autocast_of_torch_itself():
    hidden, weight, targets, weights = layer(400, 64, 500)
    exact = torch.autograd.grad(plain(hidden, weight, targets, weights), (hidden, weight))
    with torch.autocast("cpu", torch.bfloat16):
        theirs = torch.autograd.grad(plain(hidden, weight, targets, weights), (hidden, weight))
        found = token_loss(hidden, weight, targets, weights)
    assert found.dtype == torch.float32
    ours = torch.autograd.grad(found, (hidden, weight))
    for one, other, true in zip(ours, theirs, exact, strict=True):
        assert one.dtype == torch.float32
        assert (one - true).norm() < 1.3 * (other - true).norm()
        assert (one - true).norm() > 0  # (it did run in bfloat16)


def test_what_needs_no_gradient_gets_none_and_no_rows_give_zero():
    hidden, weight, targets, weights = layer()
    with torch.no_grad():
        assert not token_loss(hidden, weight, targets, weights).requires_grad
    nothing = token_loss(hidden[:0], weight, targets[:0], weights[:0])
    nothing.backward()
    assert nothing == 0
    assert weight.grad.abs().sum() == 0
