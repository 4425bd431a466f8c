"""Padding and batches are invisible: left = right = one prompt alone, in every family, float32 and bfloat16."""

import pytest
import torch
from tiny_models import LAYERS, NAMES, VOCAB, close, forward, prompts, tiny

from inscape.models.lm import LM

# One prompt far longer than every window (4), one shorter than it, one of a single token.
MANY = prompts(12, 3, 7, 1)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_equals_alone(lm: LM, side: str) -> None:
    batch = lm.capture_sites(MANY, ["resid_post", "z", "k", "logits"], [0, LAYERS - 1], "all", padding_side=side)
    for number, ids in enumerate(MANY):
        rows = batch["resid_post"].prompt == number
        alone = lm.capture_sites([ids], ["z", "k"], [0, LAYERS - 1], "all")
        for site in ("z", "k"):
            close(batch[site].values[rows], alone[site].values)
        plain = forward(lm.model, ids, output_hidden_states=True)
        close(batch["resid_post"].at(0)[rows], plain.hidden_states[1][0])
        close(batch["logits"].at()[rows], plain.logits[0])


def test_pad_token_does_not_matter(lm: LM) -> None:
    expected = lm.logits(MANY)
    for pad in (2, VOCAB - 1):
        lm.tokenizer.pad_token = f"t{pad}"
        try:
            assert lm.pad_id == pad
            close(lm.logits(MANY), expected)
        finally:
            lm.tokenizer.pad_token = None


@pytest.mark.parametrize("name", NAMES)
def test_padded_equals_alone_in_bfloat16(name: str) -> None:
    lm, exact = tiny(name, dtype=torch.bfloat16), tiny(name)
    sides = [lm.capture(MANY, "resid_post", None, "all", padding_side=side).values for side in ("left", "right")]
    assert sides[0].dtype == torch.bfloat16
    truth = exact.capture(MANY, "resid_post", None, "all").values
    start = 0
    for ids in MANY:
        alone = lm.capture([ids], "resid_post", None, "all").values
        rows = slice(start, start + len(ids))
        start += len(ids)
        # What bfloat16 itself loses on this prompt is the measure: padding may not add to it.
        own = (alone.double() - truth[rows].double()).abs().max()
        for padded in sides:
            assert (padded[rows].double() - alone.double()).abs().max() <= 2 * own
            assert own < 0.1 * truth[rows].abs().max()


def test_order_and_batch_size_do_not_matter() -> None:
    lm, many = tiny("mistral"), prompts(5, 12, 1, 9, 12, 2, 7)
    expected = lm.logits(many)
    for size in (1, 2, 3, 64):
        close(lm.logits(many, batch_size=size), expected)
    close(lm.logits(many[::-1], batch_size=3).flip(0), expected)


def test_edits_reach_the_same_tokens_on_either_side(lm: LM) -> None:
    import inscape

    edit = inscape.add("resid_post", 0, torch.linspace(-2, 2, lm.d_model), tokens=[[4, 9], [0], [-1], [0]])
    left, right = (lm.logits(MANY, edits=[edit], padding_side=side) for side in ("left", "right"))
    close(left, right)
    for number, ids in enumerate(MANY):
        one = inscape.add("resid_post", 0, torch.linspace(-2, 2, lm.d_model), tokens=[edit.tokens[number]])
        close(left[number], lm.logits([ids], edits=[one])[0])
