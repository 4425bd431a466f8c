"""Bad input: each an :class:`InputError` in one line that says what and where. Nothing else comes out."""

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import CONTEXT, VOCAB, WIDTH, build, prompts, tiny, with_bos, words

import inscape
from inscape import InputError, NonFiniteError
from inscape.models.lm import LM

IDS = prompts(5, 3)


def refused(call: Callable[[], Any], *parts: str) -> str:
    """The message of the InputError that ``call`` must raise: one line, with every part in it."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    for part in parts:
        assert part in message, f"{part!r} is not in {message!r}"
    return message


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (lambda lm: lm.capture(IDS, "resid"), ["unknown site 'resid'", "resid_post"]),
        (lambda lm: lm.capture(IDS, "resid_post", 3), ["no layer 3", "0 to 2"]),
        (lambda lm: lm.capture(IDS, "resid_post", [0, -4]), ["no layer -4"]),
        (lambda lm: lm.capture(IDS, "resid_post", []), ["no layer of resid_post"]),
        (lambda lm: lm.capture_sites(IDS, []), ["no site"]),
        (lambda lm: lm.capture([]), ["no prompts"]),
        (lambda lm: lm.capture(IDS, tokens=[[], []]), ["no tokens"]),
        (lambda lm: lm.capture("t1 t2"), ["one text", "wrap it in a list"]),
        (lambda lm: lm.capture([3, 4, 5]), ["prompt 0", "list of token ids", "3"]),
        (lambda lm: lm.capture([[1.5, 2]]), ["prompt 0", "list of token ids"]),
        (lambda lm: lm.capture([[3], []]), ["prompt 1 is empty"]),
        (lambda lm: lm.capture(["t3", ""]), ["prompt 1 is empty", "BOS"]),
        (lambda lm: lm.capture([[3], [VOCAB]]), ["prompt 1", f"token id {VOCAB}"]),
        (lambda lm: lm.capture([[3, -1, 8]]), ["prompt 0", "token id -1"]),
        (lambda lm: lm.capture(prompts(5, CONTEXT + 1)), ["prompt 1", f"{CONTEXT + 1} tokens", f"context is {CONTEXT}"]),
        (lambda lm: lm.capture(IDS, tokens="mean"), ["unknown tokens 'mean'", "mention_last"]),
        (lambda lm: lm.capture(IDS, tokens=3), ["expected an entry per prompt (2), found 3"]),
        (lambda lm: lm.capture(IDS, tokens=[0]), ["expected an entry per prompt (2), found 1"]),
        (lambda lm: lm.capture(IDS, tokens=[0, 3]), ["prompt 1 has 3 tokens: no index 3"]),
        (lambda lm: lm.capture(IDS, tokens=[0, 0.5]), ["indices for prompt 1"]),
        (lambda lm: lm.capture(IDS, tokens=inscape.Window("middle", 0, 1)), ["unknown tokens 'middle'"]),
        (lambda lm: inscape.Window("last", 1, -1), ["the first is after the last"]),
        (lambda lm: lm.capture(IDS, tokens="mention"), ["one mention per prompt", "none"]),
        (lambda lm: lm.capture(IDS, tokens="mention", mentions=["t1", "t2"]), ["prompt 0", "not as token ids"]),
        (lambda lm: lm.capture(IDS, padding_side="middle"), ["padding_side", "'middle'"]),
        (lambda lm: lm.capture(["t3"], bos=True), ["no BOS token"]),
        (lambda lm: lm.score(["t3"], []), ["1 prompts, but 0 continuations"]),
        (lambda lm: lm.score(["t3"], [""]), ["continuation 0 has no tokens"]),
        (lambda lm: lm.score([[3]], [[]]), ["continuation 0 has no tokens"]),
        (lambda lm: lm.score([""], ["t3"]), ["pair 0 leaves no token to condition on"]),
        (lambda lm: lm.score([[3]], ["t3"]), ["pair 0 mixes text and token ids"]),
    ],
)  # fmt: skip
def test_arguments(call: Callable[[LM], Any], parts: list[str]) -> None:
    refused(lambda: call(tiny("gpt2")), *parts)


def test_a_prompt_of_exactly_the_context_fits() -> None:
    assert len(tiny("gpt2").capture(prompts(CONTEXT), "resid_post", 0)) == 1


def test_without_a_tokenizer_ids_still_work() -> None:
    lm = inscape.load(build("gpt2"))
    assert torch.equal(lm.logits(IDS), tiny("gpt2").logits(IDS))
    refused(lambda: lm.logits(["t1"]), "without a tokenizer", "token ids")
    refused(lambda: lm.generate(IDS, max_new_tokens=1), "without a tokenizer")
    assert lm.record()["tokenizer_sha256"] is None


def test_training_mode_is_refused_at_load_and_later() -> None:
    model = build("gpt2")
    refused(lambda: inscape.load(model.train()), "training mode", "model.eval()")
    lm = inscape.load(model.eval(), words())
    model.train()
    for call in (lm.logits, lm.capture, lm.generate_ids):
        refused(lambda call=call: call(IDS), "training mode")


def test_what_is_no_model_is_refused() -> None:
    refused(lambda: inscape.load(torch.nn.Linear(3, 3).eval()), "expected a transformers causal LM", "Linear")


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_non_finite_activations_name_site_layer_and_prompt(value: float) -> None:
    model = build("llama")
    lm = inscape.load(model, words())
    with torch.no_grad():
        model.model.embed_tokens.weight[50] = value
    many = [[3, 4], [5, 50, 6], [7, 8]]
    with pytest.raises(NonFiniteError, match="resid_post of layer 1 is NaN or Inf for 1 of 3 prompts: 1"):
        lm.capture(many, "resid_post", 1)
    with pytest.raises(NonFiniteError, match="embed is NaN"):
        lm.capture(many, "embed", tokens="all")
    with pytest.raises(NonFiniteError, match="logits is NaN or Inf for 1 of 3"):
        lm.logits(many)
    refused(lambda: lm.score(many, [[1]] * 3), "log-probability of pair 1 is not finite")
    assert lm.logits([[3, 4]]).isfinite().all()


def test_float16_overflow_of_a_cast_is_not_hidden() -> None:
    model = build("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[3] *= 1e6
    with pytest.raises(NonFiniteError):
        inscape.load(model, words()).capture([[3]], "embed", dtype=torch.float16)


# -- folders ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    build("llama").save_pretrained(path)
    words().save_pretrained(path)
    return path


def test_a_good_folder_loads_and_is_the_same_model(folder: Path) -> None:
    lm = inscape.load(folder)
    assert torch.equal(lm.logits(["t5 t9"]), tiny("llama").logits([[5, 9]]))
    record = lm.record()
    assert record["model"] == "model"
    assert len(record["model_sha256"]) == 64
    state = load_file(folder / "model.safetensors")
    state["model.norm.weight"] += 1
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    assert inscape.load(folder).record()["model_sha256"] != record["model_sha256"]


def test_folder_without_tokenizer_loads_without_one(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert inscape.load(folder).tokenizer is None


def _edit_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def _weights(folder: Path) -> Path:
    return folder / "model.safetensors"


def _cut(folder: Path, keep: float) -> None:
    data = _weights(folder).read_bytes()
    _weights(folder).write_bytes(data[: int(len(data) * keep)])


def _shard(folder: Path) -> None:
    build("llama").save_pretrained(folder, max_shard_size="20KB")
    _weights(folder).unlink()
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def _drop(folder: Path, name: str) -> None:
    state = load_file(_weights(folder))
    del state[name]
    save_file(state, _weights(folder), metadata={"format": "pt"})


def _reshape(folder: Path, name: str) -> None:
    state = load_file(_weights(folder))
    state[name] = state[name][:, :-1].contiguous()
    save_file(state, _weights(folder), metadata={"format": "pt"})


def _as_bin(folder: Path, write: Callable[[Path], Any]) -> None:
    _weights(folder).unlink()
    write(folder / "pytorch_model.bin")


class _Payload:
    def __reduce__(self) -> Any:
        return print, ("unpickled",)


def _huge_header(folder: Path) -> None:
    _weights(folder).write_bytes(struct.pack("<Q", 1 << 50) + b"{}")


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (lambda f: (f / "config.json").unlink(), ["no config.json"]),
        (lambda f: (f / "config.json").write_text('{"model_type": "lla'), ["config.json", "not readable as JSON"]),
        (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), ["config.json", "not readable as JSON"]),
        (lambda f: (f / "config.json").write_text("[1]"), ["config.json", "expected a JSON object, found list"]),
        (lambda f: (f / "config.json").write_text("{}"), ["model_type"]),
        (lambda f: _edit_config(f, model_type="llamma"), ["llamma"]),
        (lambda f: _edit_config(f, hidden_size="wide"), ["hidden_size"]),
        (lambda f: _edit_config(f, num_attention_heads=0), ["model"]),
        (lambda f: _weights(f).unlink(), ["no weights"]),
        (lambda f: _cut(f, 0.7), ["model.safetensors", "damaged or cut off"]),
        (lambda f: _cut(f, 0.0001), ["model.safetensors", "damaged or cut off"]),
        (_huge_header, ["model.safetensors", "damaged or cut off"]),
        (_shard, ["shard model-00002-of-", "is missing"]),
        (lambda f: _drop(f, "model.layers.1.mlp.down_proj.weight"), ["1 weights are missing", "layers.1.mlp.down_proj"]),
        (lambda f: _reshape(f, "model.layers.1.mlp.down_proj.weight"), ["model.layers.1.mlp.down_proj"]),
        (lambda f: _as_bin(f, lambda p: p.write_bytes(b"PK\x03\x04 cut")), ["pytorch_model.bin"]),
        (lambda f: _as_bin(f, lambda p: p.write_bytes(b"")), ["pytorch_model.bin"]),
        (lambda f: _as_bin(f, lambda p: p.write_bytes(pickle.dumps(_Payload(), protocol=2))), ["pytorch_model.bin"]),
        (lambda f: _as_bin(f, lambda p: torch.save({"x": _Payload()}, p)), ["pytorch_model.bin"]),
        (lambda f: (f / "tokenizer.json").write_text("{"), ["tokenizer"]),
        (lambda f: (f / "tokenizer.json").write_text('{"model": {"type": "none"}}'), ["tokenizer"]),
    ],
)  # fmt: skip
def test_damaged_folders(
    folder: Path, damage: Callable[[Path], Any], parts: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    damage(folder)
    refused(lambda: inscape.load(folder), str(folder), *parts)
    assert "unpickled" not in capfd.readouterr().out


def test_an_index_that_is_no_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": ["a"]}')
    refused(lambda: inscape.load(folder), "model.safetensors.index.json", "weight_map")


def test_no_such_folder_or_hub_id(tmp_path: Path) -> None:
    refused(lambda: inscape.load(tmp_path / "nowhere"), "nowhere", "no such folder")
    refused(lambda: inscape.load("nobody/has-such-a-model"), "nobody/has-such-a-model")
    refused(lambda: inscape.load("not a name!"), "not a name!")


def test_not_a_causal_decoder(tmp_path: Path) -> None:
    config = transformers.T5Config(vocab_size=VOCAB, d_model=WIDTH, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    refused(lambda: inscape.load(tmp_path / "t5"), "t5", "encoder-decoder")
    two_way = transformers.BertConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    )
    transformers.BertLMHeadModel(two_way).save_pretrained(tmp_path / "bert")
    refused(lambda: inscape.load(tmp_path / "bert"), "earlier tokens", "causal")


@pytest.mark.parametrize("device", ["cudaa", "cuda:99", torch.device("cuda:99")])
def test_a_device_that_is_not_there(folder: Path, device: str | torch.device) -> None:
    for source in (folder, str(folder), build("llama")):
        refused(lambda source=source: inscape.load(source, device=device), f"device '{device}'")
    assert inscape.load(folder, device="cpu").device == inscape.load(build("llama"), device="cpu").device


def test_unknown_dtype(folder: Path) -> None:
    refused(lambda: inscape.load(folder, dtype="float31"), "float31")
    assert inscape.load(folder, dtype="bfloat16").dtype == torch.bfloat16


def test_a_tokenizer_with_more_tokens_than_the_model_has_embeddings() -> None:
    tokenizer = words(VOCAB + 3)
    tokenizer.pad_token = f"t{VOCAB + 2}"
    lm = inscape.load(build("llama"), tokenizer)
    assert lm.pad_id == 0
    assert torch.equal(lm.logits(["t3 t4 t5", "t6"]), tiny("llama").logits([[3, 4, 5], [6]]))
    refused(lambda: lm.logits([f"t{VOCAB}"]), f"token id {VOCAB} is not in the model's {VOCAB} embeddings")


def test_bos_rule() -> None:
    model = build("llama")
    plain, adds = inscape.load(model, words()), inscape.load(model, with_bos())
    text, ids = "t5 t9", [5, 9]
    assert torch.equal(plain.logits([text]), plain.logits([ids]))
    assert torch.equal(adds.logits([text]), plain.logits([[0, *ids]]))
    assert torch.equal(adds.logits([text], bos=True), plain.logits([[0, *ids]]))
    assert torch.equal(adds.logits([text], bos=False), plain.logits([ids]))
    assert (plain.record()["adds_bos"], adds.record()["adds_bos"]) == (False, True)
    # An empty prompt with a BOS is that one token.
    assert torch.equal(adds.logits([""]), plain.logits([[0]]))
