"""Packing of prompted examples: against brute force, against examples alone in a model, and the weights by hand."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from transformers import BloomConfig, BloomForCausalLM

from inscape.errors import InputError
from inscape.training.multitask import Tokens, pack, pack_examples, rows_of_step

VOCAB, PAD = 50, 3

examples_of = st.lists(
    st.builds(
        Tokens,
        st.lists(st.integers(4, VOCAB - 1), min_size=1, max_size=9),
        st.lists(st.integers(4, VOCAB - 1), min_size=1, max_size=5),
    ),
    min_size=1,
    max_size=40,
)


@given(st.lists(st.integers(1, 20), max_size=120), st.integers(20, 40))
def test_each_item_stands_once_and_no_row_is_too_full(lengths, room):
    rows = pack(lengths, room)
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    assert all(sum(lengths[item] for item in row) <= room for row in rows)
    # First fit: of rows that are open together, no two could have been one (at most one is half empty).
    if len(rows) <= 32:
        assert sum(2 * sum(lengths[item] for item in row) <= room for row in rows) <= 1


def fewest_rows(lengths, room):
    """By trying everything."""
    best = [len(lengths)]

    def place(item, left):
        if len(left) >= best[0]:
            return
        if item == len(lengths):
            best[0] = len(left)
            return
        for i, space in enumerate(left):
            if space >= lengths[item]:
                place(item + 1, [*left[:i], space - lengths[item], *left[i + 1 :]])
        place(item + 1, [*left, room - lengths[item]])

    place(0, [])
    return best[0]


@given(st.lists(st.integers(1, 10), min_size=1, max_size=8), st.integers(10, 14))
def test_rows_are_near_the_fewest_possible(lengths, room):
    assert len(pack(lengths, room)) <= int(1.7 * fewest_rows(lengths, room))  # (first fit's bound, Dósa & Sgall 2013)


@pytest.mark.parametrize("length", [0, 11])
def test_an_item_that_fits_no_row_is_refused(length):
    with pytest.raises(InputError, match=rf"item 1 has length {length}, expected 1 to 10"):
        pack([3, length], 10)


def brute_force(examples, length, targets_only, normalise):
    """What each example must contribute: {number: [(given, predicted, weight), …]}."""
    expected = {}
    for number, one in enumerate(examples):
        whole = list(one.input) + list(one.target)
        pairs = list(itertools.pairwise(whole))
        if len(pairs) > length:
            continue
        start = len(one.input) - 1 if targets_only else 0
        n = len(pairs) - start
        weight = 1 / n if normalise else 1.0
        expected[number] = [(a, b, weight if at >= start else 0.0) for at, (a, b) in enumerate(pairs)]
    return expected


@given(examples_of, st.booleans(), st.booleans(), st.integers(8, 24))
def test_rows_hold_exactly_what_the_examples_ask_for(examples, targets_only, normalise, length):
    expected = brute_force(examples, length, targets_only, normalise)
    if not expected:
        with pytest.raises(InputError, match=f"rows of {length} tokens hold none of {len(examples)} examples"):
            pack_examples(examples, length, pad_id=PAD, targets_only=targets_only, normalise=normalise)
        return
    rows = pack_examples(examples, length, pad_id=PAD, targets_only=targets_only, normalise=normalise)
    found = {}
    for r, members in enumerate(rows.examples):
        for segment, number in enumerate(members):
            at = (rows.segments[r] == segment).nonzero()[:, 0]
            assert at.tolist() == list(range(int(at[0]), int(at[0]) + len(at)))
            found[number] = list(
                zip(rows.ids[r, at].tolist(), rows.targets[r, at].tolist(), rows.weights[r, at].tolist(), strict=True)
            )
        empty = rows.segments[r] == len(members)
        assert (rows.ids[r, empty] == PAD).all()
        assert (rows.weights[r, empty] == 0).all()
        assert rows.segments[r].max() <= len(members)
    assert sorted(found) == sorted(expected)
    assert rows.left_out == sorted(set(range(len(examples))) - set(expected))
    for number, triples in expected.items():
        assert [t[:2] for t in found[number]] == [t[:2] for t in triples]
        np.testing.assert_allclose([t[2] for t in found[number]], [t[2] for t in triples], rtol=1e-6)
    used = sum(map(len, expected.values()))
    assert rows.filled == pytest.approx(used / rows.ids.numel())
    if normalise:
        assert float(rows.weights.sum()) == pytest.approx(len(expected), rel=1e-5)


def test_weights_of_known_examples():
    examples = [Tokens([10, 11, 12], [13, 2]), Tokens([20], [21, 22, 23, 2])]
    rows = pack_examples(examples, 10, pad_id=PAD)
    assert rows.ids.tolist() == [[10, 11, 12, 13, 20, 21, 22, 23, PAD, PAD]]
    assert rows.targets.tolist() == [[11, 12, 13, 2, 21, 22, 23, 2, PAD, PAD]]
    assert rows.segments.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1, 2, 2]]
    assert rows.weights.tolist() == [[0, 0, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 0, 0]]
    plain = pack_examples(examples, 10, pad_id=PAD, normalise=False)
    assert plain.weights.tolist() == [[0, 0, 1, 1, 1, 1, 1, 1, 0, 0]]
    whole = pack_examples(examples, 10, pad_id=PAD, targets_only=False, normalise=False)
    assert whole.weights.tolist() == [[1, 1, 1, 1, 1, 1, 1, 1, 0, 0]]


def randomised_bloom(heads=6):
    model = BloomForCausalLM(BloomConfig(vocab_size=VOCAB, hidden_size=24, n_layer=2, n_head=heads)).eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    return model


def test_the_loss_of_packed_rows_is_the_mean_of_the_examples_alone():
    """Normalised and on targets: the mean over examples of their mean target loss, whatever stands beside them."""
    from inscape.training.bloom import Bloom

    reference = randomised_bloom()
    packed = Bloom(reference.config)
    packed.load_state_dict(reference.state_dict())
    rng = np.random.default_rng(0)
    examples = [
        Tokens(rng.integers(4, VOCAB, rng.integers(1, 8)).tolist(), rng.integers(4, VOCAB, rng.integers(1, 5)).tolist())
        for _ in range(12)
    ]
    alone = []
    for one in examples:
        ids = torch.tensor([one.input + one.target])
        with torch.no_grad():
            losses = F.cross_entropy(reference(ids).logits[0, :-1], ids[0, 1:], reduction="none")
        alone.append(float(losses[-len(one.target) :].mean()))
    rows = pack_examples(examples, 20, pad_id=PAD)
    assert max(map(len, rows.examples)) > 1
    with torch.no_grad():
        logits = packed(rows.ids, rows.segments) @ packed.head_weight.T
    losses = F.cross_entropy(logits.flatten(0, 1), rows.targets.flatten(), reduction="none")
    weights = rows.weights.flatten()
    assert float((losses * weights).sum() / weights.sum()) == pytest.approx(np.mean(alone), rel=1e-5)


def test_an_example_without_a_target_is_refused():
    with pytest.raises(InputError, match="example 1: 1 input and 0 target tokens"):
        pack_examples([Tokens([4], [5]), Tokens([4], [])], 10, pad_id=PAD)


@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 5))
def test_every_row_is_seen_once_in_each_epoch(rows, n_rows, seed):
    steps = -(-3 * n_rows // rows)
    seen = np.concatenate([rows_of_step(step, rows, n_rows, seed) for step in range(steps)])
    for epoch in range(3):
        assert sorted(seen[epoch * n_rows : (epoch + 1) * n_rows]) == list(range(n_rows))


def test_the_order_depends_on_seed_and_epoch_and_nothing_else():
    first = rows_of_step(0, 100, 100, 1)
    assert rows_of_step(0, 100, 100, 1).tolist() == first.tolist()
    assert rows_of_step(1, 100, 100, 1).tolist() != first.tolist()
    assert rows_of_step(0, 100, 100, 2).tolist() != first.tolist()
    # A step may cross into the next epoch; the rows of both are as they are asked for apart.
    assert rows_of_step(1, 60, 100, 1).tolist() == [*first[60:].tolist(), *rows_of_step(1, 100, 100, 1)[:20].tolist()]
    with pytest.raises(InputError, match="0 of 5"):
        rows_of_step(0, 0, 5, 0)
