"""Order of training text: every window once per pass, the same for anyone who asks, rows as brute force makes them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inscape.errors import InputError
from inscape.training.order import WindowOrder, _permuted
from inscape.training.schedule import Schedule

T = 8


def part(lengths, first_token=0):
    """Documents of these lengths; each token has an id of its own, so that a target tells which one it is."""
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return SimpleNamespace(tokens=np.arange(first_token, first_token + starts[-1], dtype=np.uint32), starts=starts)


PARTS = {"en": part([5, 1, 17, 30, 2]), "empty": part([]), "fr": part([9, 3], 1000), "wo": part([3], 2000)}


def order(rows=4, steps=50, **options):
    return WindowOrder(PARTS, Schedule(rows=rows, steps=steps), T, seed=3, **{"filler": 7, **options})


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(0, 5), st.integers(0, 10))
def test_the_random_order_is_a_permutation_in_every_pass(size, number, seed):
    places = _permuted(np.arange(size), size, np.full(size, number), seed)
    assert sorted(places.tolist()) == list(range(size))
    if size > 50:
        assert (places != _permuted(np.arange(size), size, np.full(size, number + 1), seed)).any()
        assert (places != _permuted(np.arange(size), size, np.full(size, number), seed + 1)).any()


def test_the_random_order_looks_random():
    size = 10_000
    places = _permuted(np.arange(size), size, np.zeros(size, np.int64), 0)
    # Neighbours are as far apart as those of a random order (size / 3 on average), and places don't tell where they lie.
    assert abs(np.abs(np.diff(places)).mean() / size - 1 / 3) < 0.02
    assert abs(np.corrcoef(np.arange(size), places)[0, 1]) < 0.05


def test_a_pass_has_every_token_but_the_first_once_as_a_target():
    asked = order(rows=1)
    n = int(asked.windows.sum())
    found = []
    for step in range(n):
        batch = asked(step)
        found += batch.targets[batch.weights > 0].tolist()
    assert sorted(found) == sorted(int(token) for p in PARTS.values() for token in p.tokens[1:])
    assert asked.passes_after(n) == {"en": 1.0, "fr": 1.0, "wo": 1.0}


def test_rows_are_those_of_brute_force():
    asked = order()
    for number, name in enumerate(asked.languages):
        p = PARTS[name]
        lasts = set((p.starts[1:] - 1).tolist())  # (the token that ends a document, as an input, begins the next)
        for window in range(int(asked.windows[number])):
            batch = asked.batch(np.array([number]), np.array([window]))
            segment = 0
            for i in range(T):
                at = window * T + i
                segment += i > 0 and (at in lasts or at == len(p.tokens))
                assert batch.segments[0, i] == segment
                if at >= len(p.tokens):
                    assert (batch.ids[0, i], batch.weights[0, i]) == (7, 0)
                    continue
                assert batch.ids[0, i] == p.tokens[at]
                assert batch.weights[0, i] == (at + 1 < len(p.tokens))
                if at + 1 < len(p.tokens):
                    assert batch.targets[0, i] == p.tokens[at + 1]


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_a_step_can_be_asked_for_at_once(alpha):
    through = order(alpha=alpha, steps=40_000)
    last = [through(step) for step in range(33_000)[-3:]]
    for step, batch in zip(range(33_000)[-3:], last, strict=True):
        alone = order(alpha=alpha, steps=40_000)(step)
        for name in ("ids", "targets", "weights", "segments"):
            assert torch.equal(getattr(alone, name), getattr(batch, name))


def test_small_languages_are_drawn_more_often_with_a_small_exponent_and_each_in_passes():
    asked = order(alpha=0.3)
    languages, windows, passes = asked.rows(0, 100_000)
    sizes = np.array([55, 12, 3]) ** 0.3
    assert np.bincount(languages) / 100_000 == pytest.approx(sizes / sizes.sum(), abs=0.01)
    for language in range(3):
        here = languages == language
        n = int(asked.windows[language])
        whole = windows[here][: here.sum() // n * n].reshape(-1, n)
        assert (np.sort(whole, axis=1) == np.arange(n)).all()
        assert (passes[here] == np.arange(here.sum()) // n).all()
    expected = np.bincount(languages[: 4 * 20_000]) / asked.windows
    assert list(order(alpha=0.3, steps=20_000).passes_after(20_000).values()) == pytest.approx(expected)


def test_without_a_document_mask_rows_have_no_segments_and_the_same_targets():
    masked, open_ = order()(0), order(document_mask=False)(0)
    assert open_.segments is None
    assert torch.equal(masked.weights, open_.weights)


def test_no_text_is_refused():
    with pytest.raises(InputError, match="no tokens to train on"):
        WindowOrder({"en": part([]), "fr": part([1])}, Schedule(), T, seed=0)
