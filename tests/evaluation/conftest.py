"""One tiny BLOOM with a byte-level tokenizer of its own, whose parameters are drawn at random."""

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel

import inscape
from inscape.training.corpus import fit_bpe

TEXT = [
    "The old house by the river was empty, because nobody wanted it. Was it sold? Yes or no: true, false.",
    "Das alte Haus am Fluss war leer, weil es niemand wollte.",
    "老房子是空的，因为没有人要它。",
]


@pytest.fixture(scope="session")
def tokenizer():
    return fit_bpe(TEXT * 4, 400)


def randomised(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.3
            parameter.copy_(noise + 1 if "ln" in name and name.endswith("weight") else noise)
    return model.eval()


@pytest.fixture(scope="session")
def bloom(tokenizer):
    config = BloomConfig(
        vocab_size=len(tokenizer), hidden_size=32, n_layer=2, n_head=4, eos_token_id=tokenizer.eos_token_id
    )
    return inscape.load(randomised(BloomForCausalLM(config)), tokenizer)


@pytest.fixture(scope="session")
def gpt2(tokenizer):
    """A context of 48 tokens."""
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=48, bos_token_id=None,
                        eos_token_id=tokenizer.eos_token_id)  # fmt: skip
    return inscape.load(randomised(GPT2LMHeadModel(config)), tokenizer)


@pytest.fixture(scope="session")
def logp():
    """ln p of each token after the first, by the model itself on one sequence: independent of padding and windows."""

    def by_hand(lm, ids):
        with torch.no_grad():
            logits = lm.model(torch.tensor([list(ids)])).logits[0].double().log_softmax(-1)
        return [float(logits[i - 1, ids[i]]) for i in range(1, len(ids))]

    return by_hand
