"""Mean-pooled states equal a mean over one unpadded forward pass, sentence by sentence; BOS is left out."""

import numpy as np
import pytest
import torch
from tiny_models import CONTEXT, LAYERS, build, with_bos, words

from inscape.errors import InputError
from inscape.models.lm import LM
from inscape.probing.sentences import sentence_states

TEXTS = ["t5 t6 t7", "t8", "t9 t10 t11 t12 t13 t14", "t2 t3", "t30 t31 t32"]


def lm_of(name: str, tokenizer) -> LM:
    return LM(build(name), tokenizer, record={"model": name})


def by_hand(lm: LM, text: str, skip: int) -> np.ndarray:
    """Means ``[layer, d]`` of ``output_hidden_states``, whose last entry is after the final norm: left out."""
    ids = torch.tensor([lm.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        hidden = lm.model(ids, output_hidden_states=True).hidden_states
    return torch.stack([h[0, skip:].mean(dim=0) for h in hidden[:-1]]).numpy()


@pytest.mark.parametrize("name", ["bloom", "gpt2", "llama"])
def test_states_are_means_over_tokens(name):
    lm = lm_of(name, words())
    states = sentence_states(lm, TEXTS, batch_size=2)
    assert states.layers == tuple(range(LAYERS + 1))
    for nth, text in enumerate(TEXTS):
        np.testing.assert_allclose(states.values[:-1, nth], by_hand(lm, text, 0), atol=2e-4, rtol=1e-4)
    after = lm.capture(TEXTS[1:2], "resid_post", LAYERS - 1).at()
    np.testing.assert_allclose(states.at(LAYERS)[1], after[0], atol=2e-4, rtol=1e-4)


def test_bos_is_left_out_of_the_mean():
    lm = lm_of("gpt2", with_bos())
    states = sentence_states(lm, TEXTS, layers=[2, 0])
    assert states.layers == (2, 0)
    for nth, text in enumerate(TEXTS):
        np.testing.assert_allclose(states.values[:, nth], by_hand(lm, text, 1)[[2, 0]], atol=2e-4, rtol=1e-4)


def test_batches_are_shown_as_they_pass():
    seen = []

    def track(items, description, total):
        for item in items:
            yield item
            seen.append((description, total))

    sentence_states(lm_of("bloom", words()), TEXTS, batch_size=2, track=track)
    assert seen == [("sentences", 3)] * 3


def test_bad_input_is_refused():
    lm = lm_of("gpt2", words())
    with pytest.raises(InputError, match="0 sentences"):
        sentence_states(lm, [])
    with pytest.raises(InputError, match=f"no layer {LAYERS + 1}, expected 0 to {LAYERS}"):
        sentence_states(lm, TEXTS, [LAYERS + 1])
    with pytest.raises(InputError, match="prompt 1 is empty"):
        sentence_states(lm, ["t1", ""])
    with pytest.raises(InputError, match="context"):
        sentence_states(lm, ["t1 " * (CONTEXT + 1)])
    with pytest.raises(InputError, match="no layer 3, there are"):
        sentence_states(lm, TEXTS, [0]).at(3)
    with pytest.raises(InputError, match="without a tokenizer"):
        sentence_states(lm_of("gpt2", None), TEXTS)
