"""The self-check: models without a table, tables that are wrong, and lists that are not the blocks."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as hf
from tiny_models import (
    CASES,
    CONTEXT,
    HEADS,
    IDS,
    LAYERS,
    VOCAB,
    WIDTH,
    build,
    close,
    forward,
    prompts,
    randomise,
    words,
)

import inscape
from inscape import InputError, ModelCheckError
from inscape.models import FAMILIES, Family

MANY = prompts(9, 4)


def _config(config: Any, **more: Any) -> Any:
    return config(
        vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        max_position_embeddings=CONTEXT, **{**IDS, **more},
    )  # fmt: skip


UNLISTED: dict[str, Any] = {
    "cohere": lambda: _config(hf.CohereConfig, num_key_value_heads=2),
    "granite": lambda: _config(hf.GraniteConfig, num_key_value_heads=2, residual_multiplier=0.7),
    "starcoder2": lambda: _config(hf.Starcoder2Config, num_key_value_heads=2),
    "olmo": lambda: _config(hf.OlmoConfig),
    "mixtral": lambda: _config(hf.MixtralConfig, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2),
}


@pytest.mark.parametrize("kind", UNLISTED)
def test_an_architecture_without_a_table(kind: str) -> None:
    assert kind not in FAMILIES
    lm = inscape.load(randomise(hf.AutoModelForCausalLM.from_config(UNLISTED[kind]())), words())
    assert lm.sites.available() == ("embed", "resid_pre", "resid_post", "logits")
    hidden = forward(lm.model, MANY[0], output_hidden_states=True)
    for layer in range(LAYERS):
        close(lm.capture(MANY[:1], "resid_pre", layer, "all").at(), hidden.hidden_states[layer][0], 1e-6)
        if layer + 1 < LAYERS:
            close(lm.capture(MANY[:1], "resid_post", layer, "all").at(), hidden.hidden_states[layer + 1][0], 1e-6)
    close(lm.logits(MANY[:1])[0], hidden.logits[0, -1], 1e-5)
    edit = inscape.add("resid_post", 1, torch.linspace(-1, 1, WIDTH))
    assert not torch.allclose(lm.logits(MANY, edits=[edit]), lm.logits(MANY))
    for site in ("q", "z", "attn_out", "resid_mid", "mlp_act"):
        with pytest.raises(InputError, match=f"'{site}'.*'{kind}' has no family table.*FAMILIES.*down projection"):
            lm.capture(MANY, site, 0)
        with pytest.raises(InputError, match="has no family table"):
            lm.logits(MANY, edits=[inscape.scale(site, 0, 2.0)])


def test_an_architecture_whose_hidden_states_are_others_is_refused() -> None:
    """transformers' Mamba reports the stream after each block, not before it: what is where can't be proven."""
    config = hf.MambaConfig(vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=LAYERS, state_size=4, **IDS)
    with pytest.raises(ModelCheckError, match="resid_pre of layer 0 differs from the model's own hidden state"):
        inscape.load(randomise(hf.AutoModelForCausalLM.from_config(config)))


def _swap(family: Family, a: str, b: str) -> Family:
    return replace(family, **{a: getattr(family, b), b: getattr(family, a)})


def _mangled() -> list[tuple[str, str, Family]]:
    """``(case, what is wrong, the wrong table)``."""
    found: list[tuple[str, str, Family]] = []
    for name, case in CASES.items():
        kind = case.config().model_type
        table = FAMILIES[kind]
        if table.qkv is None:
            found += [(name, f"{a} and {b} swapped", _swap(table, a, b)) for a, b in ("qk", "qv", "kv")]
            found.append((name, "k is q", replace(table, k=table.q)))
            found.append((name, "q is k", replace(table, q=table.k)))
            found.append((name, "k is v", replace(table, k=table.v)))
        # One key/value head: all queries, the key, the value: both layouts are one and the same.
        elif name != "falcon":
            other = "concat" if table.layout == "grouped" else "grouped"
            found.append((name, f"{other} layout", replace(table, layout=other)))
        if not case.post_norm:
            found.append((name, "o and down swapped", _swap(table, "o", "down")))
        if table.attn_out is not None:
            found.append((name, "norms after the parts forgotten", replace(table, attn_out=None, mlp_out=None)))
            found.append((name, "norms swapped", _swap(table, "attn_out", "mlp_out")))
        found.append(
            (name, "parallel and sequential", replace(table, parallel=lambda c, is_so=case.parallel: not is_so))
        )
        found.append((name, "no such module", replace(table, down="mlp.nothing")))
        if case.post_norm:
            found.append((name, "norm on the stream forgotten", replace(table, norm_on_stream=lambda c: False)))
    return found


@pytest.mark.parametrize(("name", "wrong", "table"), [pytest.param(*m, id=f"{m[0]}: {m[1]}") for m in _mangled()])
def test_a_wrong_table_is_refused(name: str, wrong: str, table: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(name)
    monkeypatch.setitem(FAMILIES, model.config.model_type, table)
    with pytest.raises(InputError) as caught:
        inscape.load(model, words())
    assert "\n" not in str(caught.value)


def test_clipping_forgotten_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "mpt", replace(FAMILIES["mpt"], clip=lambda config: None))
    with pytest.raises(ModelCheckError, match="z is not v"):
        inscape.load(build("mpt"), words())


def test_the_check_can_be_left_out_and_the_model_is_found_wanting_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "llama", replace(FAMILIES["llama"], down="self_attn.nothing"))
    lm = inscape.load(build("llama"), words(), check=False)
    with pytest.raises(InputError, match=r"'self_attn\.nothing', but LlamaDecoderLayer has no such module"):
        lm.capture(MANY, "mlp_out", 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_default_initialisation_passes(name: str, dtype: torch.dtype) -> None:
    """Small weights, zero biases and norms of one must not look like a wrong table."""
    torch.manual_seed(3)
    model = hf.AutoModelForCausalLM.from_config(CASES[name].config()).eval().to(dtype)
    assert inscape.load(model).n_layers == LAYERS


@pytest.mark.parametrize("part", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj"])
def test_a_hand_built_model_with_zeros_passes(part: str) -> None:
    model = build("llama")
    with torch.no_grad():
        for block in model.model.layers:
            block.get_submodule(part).weight.zero_()
    assert inscape.load(model).n_layers == LAYERS


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("model.layer", "no such module"),
        ("model.norm", "expected a non-empty list of modules"),
        ("decoys", "no such module"),
        ("model.layers.0", "expected a non-empty list"),
        ("part", "found 2 blocks, but the model reports 4 hidden states"),
        ("reversed", "resid_pre of layer 0 differs"),
    ],
)
def test_blocks_by_a_wrong_path(path: str, message: str) -> None:
    model = build("llama")
    layers = model.model.layers
    model.decoys = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))
    model.part = torch.nn.ModuleList(layers[:2])
    model.reversed = torch.nn.ModuleList(list(layers)[::-1])
    with pytest.raises(InputError, match=message):
        inscape.load(model, words(), blocks=path)


def test_blocks_by_the_right_path() -> None:
    lm = inscape.load(build("gpt2"), words(), blocks="transformer.h")
    assert list(lm.sites.blocks) == list(lm.model.transformer.h)


def test_no_list_of_blocks_to_be_found() -> None:
    model = build("llama")
    blocks = list(model.model.layers)
    first = blocks[0]

    class Chain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.only = first

        def forward(self, hidden_states: Any, **kwargs: Any) -> Any:
            return self.only(hidden_states, **kwargs)

        def __getitem__(self, where: slice) -> list[Any]:
            return [self]

    model.model.layers = Chain()
    with pytest.raises(ModelCheckError, match=r"no list of modules.*blocks="):
        inscape.load(model, words())


def test_bloom_cut_for_pretraining_is_refused() -> None:
    """With ``slow_but_exact`` BLOOM multiplies slices of its projections' weights: the modules never run."""
    model = build("bloom")
    for block in model.transformer.h:
        block.self_attention.slow_but_exact, block.self_attention.pretraining_tp = True, 2
    with pytest.raises(ModelCheckError, match="attn_out of layer 0 was reached 0 times"):
        inscape.load(model, words())
