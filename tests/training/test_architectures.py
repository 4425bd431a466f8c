"""Every architecture: the same logits after saving and loading with transformers, packed rows, sizes, refusals."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, BertConfig, PreTrainedTokenizerFast

from inscape.errors import InputError
from inscape.runs.writing import RunWriteError
from inscape.training.architectures import SIZES, ModelConfig, build, flops_per_token, load_hf, parameters, save_hf

SHAPE = {"width": 48, "heads": 6, "layers": 2, "vocabulary": 64, "context": 64}
CHOICES: dict[str, dict[str, str]] = {
    "bloom": {},
    "learned": {"position": "learned"},
    "none": {"position": "none"},
    "gpt2": {"kind": "gpt2"},
    "llama": {"kind": "llama"},
    "gpt_neox": {"kind": "gpt_neox"},
}


def shape(name: str) -> ModelConfig:
    return ModelConfig.model_validate(SHAPE | CHOICES[name])


def randomised(name: str) -> torch.nn.Module:
    model = build(shape(name))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2, generator=generator)
    return model


def ids(rows: int = 2, length: int = 40) -> torch.Tensor:
    return torch.randint(4, 64, (rows, length), generator=torch.Generator().manual_seed(0))


def words(number: int) -> PreTrainedTokenizerFast:
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3} | {f"w{i}": i for i in range(4, number)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


@pytest.mark.parametrize("name", CHOICES)
def test_transformers_loads_what_is_saved(name: str, tmp_path: Path) -> None:
    model = randomised(name)
    logits = model(ids()) @ model.head_weight.T
    save_hf(model, model.hf_config, words(60), tmp_path / "model")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert (theirs(ids()).logits - logits).abs().max() <= 1e-4
    assert theirs.config.eos_token_id == 2
    again = load_hf(tmp_path / "model")
    assert (again(ids()) @ again.head_weight.T - logits).abs().max() <= 1e-4
    assert all(parameter.requires_grad for parameter in again.parameters())
    # From the bare state dict, as rank 0 of many processes has it.
    save_hf(model.state_dict(), model.hf_config, None, tmp_path / "state")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "state"))
    assert list(one) == list(other)
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert any(key in one for key in ("lm_head.weight", "embed_out.weight")) is (name in ("learned", "none"))
    state = model.hf_state_dict()
    assert sum(tensor.numel() for tensor in state.values()) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("name", CHOICES)
def test_documents_in_a_row_do_not_see_each_other(name: str) -> None:
    model = randomised(name)
    tokens = ids()
    segments = torch.zeros(2, 40, dtype=torch.int32)
    segments[0, 15:], segments[1, 1:], segments[1, 30:] = 1, 1, 2
    packed = model(tokens, segments)
    for row, first, last in [(0, 0, 15), (0, 15, 40), (1, 0, 1), (1, 1, 30), (1, 30, 40)]:
        alone = model(tokens[row : row + 1, first:last])[0]
        torch.testing.assert_close(packed[row, first:last], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CHOICES)
def test_weights_follow_the_seed_and_nothing_else(name: str) -> None:
    before = torch.get_rng_state()
    first, again, other = (build(shape(name), seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)
    matrix = next(t for key, t in first.items() if t.dim() == 2 and ".0." in key)
    assert matrix.std().item() == pytest.approx(shape(name).std, rel=0.1)


@pytest.mark.parametrize("name", CHOICES)
def test_counts(name: str) -> None:
    config, model = shape(name), build(shape(name))
    assert parameters(config) == sum(parameter.numel() for parameter in model.parameters())
    assert len(model.blocks) == 2
    assert model.head_weight.shape == (64, 48)
    # Every kind spends about 12 width^2 weights on a block.
    weights = 2 * 12 * 48**2 + 64 * 48
    assert flops_per_token(config, 32) == 6 * weights + 6 * 2 * 48 * 32


@pytest.mark.parametrize(
    ("name", "millions"),
    [("560m", 559.2), ("1b1", 1065.3), ("1b7", 1722.4), ("3b", 3002.6), ("7b1", 7069.0), ("176b", 176247.3)],
)
def test_released_sizes(name: str, millions: float) -> None:
    assert parameters(SIZES[name]) / 1e6 == pytest.approx(millions, abs=0.05)


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for seed in (0, 1):
        model = build(shape("bloom"), seed)
        save_hf(model, model.hf_config, None, folder)
    assert torch.equal(load_hf(folder).head_weight, build(shape("bloom"), 1).head_weight)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_cannot_be_written_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(shape("bloom"))
    save_hf(model, model.hf_config, None, tmp_path / "model")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("inscape.training.architectures.save_file", full)
    with pytest.raises(RunWriteError, match="no space left"):
        save_hf(build(shape("bloom"), 1), model.hf_config, None, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert torch.equal(load_hf(tmp_path / "model").head_weight, model.head_weight)


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="width 50 with 6 heads: expected a multiple of the heads"):
        ModelConfig(width=50, heads=6)
    with pytest.raises(ValidationError, match="even size"):
        ModelConfig(kind="llama", width=30, heads=6)
    model = build(shape("bloom"))
    with pytest.raises(InputError, match="the tokenizer has 70 words and the model 64"):
        save_hf(model, model.hf_config, words(70), tmp_path / "model")
    with pytest.raises(InputError, match="no model there"):
        load_hf(tmp_path / "nothing")
    BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2).save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match="type bert, expected one of bloom, gpt2, llama, gpt_neox"):
        load_hf(tmp_path / "bert")
    save_hf(model, model.hf_config, None, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="weights can't be read"):
        load_hf(tmp_path / "model")
    state = model.state_dict()
    del state["transformer.ln_f.bias"]
    save_hf(state, model.hf_config, None, tmp_path / "model")
    with pytest.raises(InputError, match=r"1 weights are missing, such as transformer.ln_f.bias"):
        load_hf(tmp_path / "model")
