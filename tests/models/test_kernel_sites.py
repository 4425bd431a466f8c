"""What is captured is what the model computes: residual stream, its parts, queries, keys, values, and names for them."""

from typing import Any

import pytest
import torch
from attention_by_hand import attention
from tiny_models import CASES, HEADS, LAYERS, VOCAB, WIDTH, close, forward, prompts, tiny
from torch import Tensor

import inscape
from inscape import InputError
from inscape.models.lm import LM

IDS = prompts(9)[0]


def at(lm: LM, site: str, layer: int | None = None, ids: list[int] = IDS) -> Tensor:
    """``[token, *feature]`` of one prompt."""
    return lm.capture([ids], site, None if layer is None else [layer], "all").values[:, 0]


def test_residual_stream_equals_hidden_states(lm: LM) -> None:
    hidden = forward(lm.model, IDS, output_hidden_states=True).hidden_states
    assert len(hidden) == LAYERS + 1
    for layer in range(LAYERS):
        assert torch.equal(at(lm, "resid_pre", layer), hidden[layer][0])
        if layer + 1 < LAYERS:
            assert torch.equal(at(lm, "resid_post", layer), hidden[layer + 1][0])
    last = at(lm, "resid_post", LAYERS - 1)
    assert last.shape != hidden[-1][0].shape or not torch.allclose(last, hidden[-1][0], rtol=0.01)
    with torch.no_grad():
        assert torch.equal(_after_blocks(lm.model)(last[None])[0], hidden[-1][0])


def _after_blocks(model: Any) -> torch.nn.Module:
    """The final norm; in the post-norm OPT, the projection back to the embedding's width."""
    names = ("project_out", "ln_f", "norm", "final_layer_norm", "final_layernorm", "norm_f")
    inner = model.base_model
    inner = getattr(inner, "decoder", inner)
    return next(getattr(inner, n) for n in names if getattr(inner, n, None) is not None)


def test_embed_and_logits(lm: LM) -> None:
    table = lm.model.get_input_embeddings()
    with torch.no_grad():
        assert torch.equal(at(lm, "embed"), table(torch.tensor(IDS)))
    close(at(lm, "logits"), forward(lm.model, IDS).logits[0], 1e-6)
    assert lm.logits([IDS]).shape == (1, VOCAB)
    close(lm.logits([IDS])[0], forward(lm.model, IDS).logits[0, -1], 1e-6)


def test_parts_sum_up(lm: LM, name: str) -> None:
    case = CASES[name]
    for layer in range(LAYERS):
        pre, attn, mlp, post = (at(lm, s, layer) for s in ("resid_pre", "attn_out", "mlp_out", "resid_post"))
        if case.post_norm:
            with pytest.raises(InputError, match="norm on the residual stream"):
                at(lm, "resid_mid", layer)
            continue
        close(pre + attn + mlp, post, 1e-6)
        if case.parallel:
            with pytest.raises(InputError, match=r"resid_mid.*parallel"):
                at(lm, "resid_mid", layer)
            continue
        mid = at(lm, "resid_mid", layer)
        close(pre + attn, mid, 1e-6)
        close(mid + mlp, post, 1e-6)


def test_resid_mid_is_what_the_mlp_side_reads(sequential: str) -> None:
    lm, reader = tiny(sequential), CASES[sequential].mid_read_by
    assert reader is not None
    for layer in range(LAYERS):
        seen: list[Tensor] = []
        module = lm.sites.blocks[layer].get_submodule(reader)
        handle = module.register_forward_pre_hook(lambda m, args, seen=seen: seen.append(args[0].detach().clone()))
        forward(lm.model, IDS)
        handle.remove()
        assert torch.equal(seen[0].view(len(IDS), WIDTH), at(lm, "resid_mid", layer))


def test_shapes_of_parts(lm: LM, name: str) -> None:
    config = lm.config
    head_dim = getattr(config, "head_dim", None) or WIDTH // HEADS
    kv = at(lm, "k", 0).shape[1]
    assert at(lm, "q", 0).shape == at(lm, "z", 0).shape == (len(IDS), HEADS, head_dim)
    assert at(lm, "v", 0).shape == (len(IDS), kv, head_dim)
    grouped = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2", "stablelm",
               "stablelm_parallel", "phi_qk_norm", "falcon_new")  # fmt: skip
    assert kv == (1 if name == "falcon" else 2 if name in grouped else HEADS)
    down = lm.sites.tap("mlp_act", 1).module
    with torch.no_grad():
        close(down(at(lm, "mlp_act", 1)), _before_norm(lm, "mlp_act", 1), 1e-5)


def _before_norm(lm: LM, site: str, layer: int) -> Tensor:
    """The output of the projection that reads ``site``, from a plain hook."""
    seen: list[Tensor] = []
    handle = lm.sites.tap(site, layer).module.register_forward_hook(lambda m, a, out: seen.append(out.detach().clone()))
    forward(lm.model, IDS)
    handle.remove()
    return seen[0].view(len(IDS), -1)


def test_queries_keys_values_reproduce_eager_attention(name: str) -> None:
    lm, ids = tiny(name, "eager"), prompts(9, seed=3)[0]
    reported = forward(lm.model, ids, output_attentions=True).attentions
    assert reported is not None, "output_attentions was not honoured"
    assert len(reported) == LAYERS
    for layer in range(LAYERS):
        q, k, v, z = (at(lm, site, layer, ids) for site in "qkvz")
        weights, by_hand = attention(name, lm, layer, q, k, v, eager=True)
        assert reported[layer].shape == (1, HEADS, len(ids), len(ids))
        close(reported[layer][0], weights)
        close(z, by_hand)
        # Not a test of nothing: attention is neither uniform nor all on one token.
        assert 0.13 < weights[:, -1].amax(-1).mean() < 0.999


def test_queries_keys_values_reproduce_the_default_kernel(name: str, lm: LM) -> None:
    for layer in range(LAYERS):
        q, k, v, z = (at(lm, site, layer) for site in "qkvz")
        close(z, attention(name, lm, layer, q, k, v, eager=False)[1])


def test_transformer_lens_names() -> None:
    lm = tiny("llama")
    for alias, site in {
        "hook_resid_pre": "resid_pre", "hook_resid_mid": "resid_mid", "hook_resid_post": "resid_post",
        "hook_attn_out": "attn_out", "hook_mlp_out": "mlp_out", "attn.hook_q": "q", "attn.hook_k": "k",
        "attn.hook_v": "v", "attn.hook_z": "z", "mlp.hook_post": "mlp_act",
    }.items():  # fmt: skip
        acts = lm.capture([IDS], f"blocks.1.{alias}", tokens="all")
        assert (acts.site, acts.layers) == (site, (1,))
        assert torch.equal(acts.at(), at(lm, site, 1))
    assert torch.equal(lm.capture([IDS], "hook_embed", tokens="all").at(), at(lm, "embed"))
    edit = inscape.add("blocks.2.hook_mlp_out", None, torch.ones(WIDTH))
    assert (edit.site, edit.layer) == ("mlp_out", 2)
    with pytest.raises(InputError, match="names layer 2, but layer=1"):
        inscape.add("blocks.2.hook_mlp_out", 1, torch.ones(WIDTH))
    with pytest.raises(InputError, match="no layer 3"):
        lm.capture([IDS], "blocks.3.hook_resid_post")


def test_rows_say_where_they_come_from() -> None:
    lm, many = tiny("gpt2"), prompts(4, 9, 6)
    acts = lm.capture(many, "resid_post", [2, 0], [[1, 3], [8], [0, -1]], batch_size=2)
    assert acts.layers == (2, 0)
    assert acts.prompt.tolist() == [0, 0, 1, 2, 2]
    assert acts.position.tolist() == [1, 3, 8, 0, 5]
    for row in range(5):
        one = forward(lm.model, many[acts.prompt[row]], output_hidden_states=True).hidden_states
        close(acts.at(0)[row], one[1][0, acts.position[row]])
    assert torch.equal(acts.at(2), acts.values[:, 0])
    with pytest.raises(InputError, match="layer 1 of resid_post was not captured"):
        acts.at(1)


def test_several_sites_in_one_pass_equal_each_alone() -> None:
    lm, many = tiny("gemma2"), prompts(5, 8)
    both = lm.capture_sites(many, ["z", "resid_mid", "logits", "embed"], [0, 2], "all")
    for site, acts in both.items():
        alone = lm.capture(many, site, [0, 2], "all")
        assert torch.equal(acts.values, alone.values)
        assert acts.layers == alone.layers
