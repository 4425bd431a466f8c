"""Losses by context length and by position against the model's own logits, and what extrapolation reads off them."""

import numpy as np
import polars as pl
import pytest

from inscape.errors import InputError
from inscape.evaluation.positions import context_losses, extrapolation, long_windows, position_losses


@pytest.fixture(scope="module")
def windows():
    rng = np.random.default_rng(0)
    return [rng.integers(4, 300, 64).tolist() for _ in range(5)]


def test_the_same_tokens_after_contexts_of_several_lengths(bloom, windows, logp):
    rows = context_losses(bloom, windows, (16, 64, 32), targets=8, batch_size=2)
    assert rows.height == 15
    for row in rows.iter_rows(named=True):
        ids = windows[row["window"]][64 - row["length"] :]
        assert row["nats"] == pytest.approx(-sum(logp(bloom, ids)[-8:]), rel=1e-5)
        assert row["targets"] == 8


def test_lengths_beyond_the_models_context_are_left_out(gpt2, windows):
    rows = context_losses(gpt2, windows, (16, 32, 64), targets=8)
    assert sorted(rows["length"].unique()) == [16, 32]
    assert position_losses(gpt2, windows)["last"].max() == 47
    with pytest.raises(InputError, match="none is within the model's context of 48"):
        context_losses(gpt2, windows, (64,), targets=8)


def test_losses_by_position(bloom, windows, logp):
    rows = position_losses(bloom, windows)
    one = rows.filter(pl.col("window") == 1)
    nats = [-x for x in logp(bloom, windows[1])]  # (of the tokens at places 1, 2, …)
    bands = zip(one["first"], one["last"], strict=True)
    assert one["nats"].to_list() == pytest.approx([sum(nats[a - 1 : b]) for a, b in bands], rel=1e-5)
    assert one["first"][0] == 1
    assert one["last"][-1] == 63
    assert one["first"].to_list()[1:] == [b + 1 for b in one["last"].to_list()[:-1]]
    assert one["targets"].sum() == 63


def test_extrapolation_is_loss_by_loss_at_the_training_length():
    rng = np.random.default_rng(0)
    base = rng.uniform(100, 200, 40)
    rows = pl.concat(
        pl.DataFrame({"window": range(40), "length": [n] * 40, "nats": base * factor, "targets": [50] * 40})
        for n, factor in ((256, 1.0), (512, 0.9), (1024, 1.5))
    )
    found = extrapolation(rows.sample(fraction=1, shuffle=True, seed=1), 256)
    assert found["length"].to_list() == [256, 512, 1024]
    assert found["ratio"].to_list() == pytest.approx([1, 0.9, 1.5])
    # Windows are drawn with all of their lengths: what is hard about a window cancels.
    assert (found["ratio_hi"] - found["ratio_lo"]).max() < 1e-9
    assert found["loss"][0] == pytest.approx(base.mean() / 50)
    with pytest.raises(InputError, match=r"lengths are 256, 512, 1024, expected 128"):
        extrapolation(rows, 128)


def test_windows_are_drawn_from_documents_that_are_long_enough():
    documents = [list(range(100 * i, 100 * i + n)) for i, n in enumerate((5, 30, 20, 40))]
    found = long_windows(documents, 20, 2, seed=3)
    assert found == long_windows(documents, 20, 2, seed=3)
    assert len({w[0] // 100 for w in found}) == 2
    assert all(w == list(range(w[0], w[0] + 20)) and w[0] // 100 in (1, 2, 3) for w in found)
    assert len(long_windows(documents, 20, 10)) == 3
    with pytest.raises(InputError, match=r"no document has 41 tokens \(the longest has 40\)"):
        long_windows(documents, 41, 2)
    with pytest.raises(InputError, match="0 windows"):
        long_windows(documents, 20, 0)


def test_refusals(bloom, windows):
    with pytest.raises(InputError, match="lengths above the number of targets"):
        context_losses(bloom, windows, (8, 16), targets=8)
    with pytest.raises(InputError, match="the shortest has 64 tokens, expected 128"):
        context_losses(bloom, windows, (128,), targets=8)
    with pytest.raises(InputError, match="there are none"):
        position_losses(bloom, [])
