"""The user's model is the same after every call, whatever happened in it; nothing runs that nobody asked for."""

import copy
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from tiny_models import CASES, LAYERS, NAMES, VOCAB, WIDTH, build, close, prompts, randomise, tiny, words

import inscape
from inscape import EditError, InputError
from inscape.models.lm import LM

IDS = prompts(7, 4)


def hooks(model: torch.nn.Module) -> list[tuple[str, str, tuple[Any, ...]]]:
    """Every entry of every hook dictionary of every module."""
    return [
        (name, attribute, tuple(value))
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if "hook" in attribute and isinstance(value, dict) and len(value)
    ]


class Boom(Exception):
    pass


def _boom(*_: Any) -> None:
    raise Boom


def test_every_call_leaves_the_model_as_it_was(lm: LM) -> None:
    before, state = hooks(lm.model), copy.deepcopy(lm.model.state_dict())
    config = lm.model.config.to_dict()
    vector = torch.ones(WIDTH)
    edit = inscape.add("resid_post", 1, vector)
    lm.capture(IDS, "resid_post", 0)  # stops early
    lm.capture(IDS, "z", None, "all", edits=[edit])
    lm.generate_ids(IDS, max_new_tokens=2, edits=[edit])
    lm.score(IDS, [[3], [4]], edits=[edit])
    with pytest.raises(InputError):
        lm.logits(IDS, edits=[inscape.add("attn_out", 1, torch.ones(WIDTH + 1))])  # raised inside the forward pass
    handle = lm.sites.blocks[2].register_forward_hook(_boom)
    for call in (lambda: lm.logits(IDS, edits=[edit]), lambda: lm.generate_ids(IDS, edits=[edit])):
        with pytest.raises(Boom):
            call()
    handle.remove()
    assert hooks(lm.model) == before
    assert lm.model.config.to_dict() == config
    after = lm.model.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[key], state[key]) for key in state)
    assert not lm.model.training


def test_hooks_are_gone_after_an_edit_error(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny("llama")
    before = hooks(lm.model)
    monkeypatch.setattr(lm.sites.blocks[2], "forward", lambda x, **kwargs: x)  # its parts are never reached
    with pytest.raises(EditError, match="mlp_out of layer 2 fired 0 times"):
        lm.logits(IDS, edits=[inscape.scale("mlp_out", 2, 2.0)])
    with pytest.raises(InputError, match="mlp_out of layer 2 was seen 0 times"):
        lm.capture(IDS, "mlp_out", 2)
    assert hooks(lm.model) == before


def test_users_own_hooks_stay_and_see_the_edit() -> None:
    lm = inscape.load(build("gpt2"), words())
    seen: list[torch.Tensor] = []
    handle = lm.sites.blocks[2].register_forward_pre_hook(lambda m, args: seen.append(args[0].clone()))
    edited = lm.capture(IDS[:1], "resid_post", 1, "all", edits=[inscape.scale("resid_post", 1, 0.0)])
    lm.logits(IDS[:1], edits=[inscape.scale("resid_post", 1, 0.0)])
    assert not edited.values.any()
    assert not seen[-1].any()
    lm.logits(IDS[:1])
    assert seen[-1].any()
    handle.remove()


def test_threads_get_their_own_edits() -> None:
    lm = tiny("llama")
    # Inputs and outputs of modules, and one place twice: a hook that does not know its own thread gives itself away.
    sites = ("resid_post", "resid_post", "resid_pre", "resid_mid", "z")
    edits = []
    for k, site in enumerate(sites, start=1):
        shape = lm.capture(IDS[:1], site, 1).values.shape[2:]
        vector = 2 * k * torch.randn(shape, generator=torch.Generator().manual_seed(k))
        kind = inscape.set_ if site == "resid_mid" else inscape.add  # (set needs the block's own input, add does not)
        edits.append([kind(site, 1, vector, when="always")])
    expected = [(lm.logits(IDS, edits=e), lm.generate_ids(IDS, max_new_tokens=3, edits=e)) for e in edits]
    assert not torch.equal(expected[0][0], expected[1][0])
    before, wrong, errors = hooks(lm.model), [], []
    barrier = threading.Barrier(len(edits))

    def work(n: int) -> None:
        barrier.wait()
        try:
            for _ in range(12):
                if not torch.equal(lm.logits(IDS, edits=edits[n]), expected[n][0]):
                    wrong.append(n)
                if lm.generate_ids(IDS, max_new_tokens=3, edits=edits[n]) != expected[n][1]:
                    wrong.append(n)
        except Exception as error:  # noqa: BLE001 (whatever a thread meets is to be shown by the test)
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(n,)) for n in range(len(edits))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not errors
    assert not wrong
    assert hooks(lm.model) == before


def test_a_hook_that_another_thread_removed_midway_is_harmless() -> None:
    """torch copies a module's hooks, then looks up whether each takes kwargs: a hook removed in between gets none."""
    from inscape.models.hooks import Tap, attached

    lm = tiny("llama")
    taps = [Tap(lm.sites.tap(site, 1), _boom) for site in ("resid_pre", "resid_mid", "z")]
    found: list[Callable[..., Any]] = []

    def other_thread() -> None:
        with attached(lm.model, taps, rows=1, width=3):
            found.extend(h for m in lm.model.modules() for h in m._forward_pre_hooks.values())

    thread = threading.Thread(target=other_thread)
    thread.start()
    thread.join()
    assert len(found) == 4
    assert all(hook(lm.model, ()) is None for hook in found)


@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "resid_post"])
def test_nothing_above_the_deepest_site_runs(lm: LM, site: str) -> None:
    ran: list[str] = []
    head = lm.model.get_output_embeddings()
    watched = {f"block {n}": block for n, block in enumerate(lm.sites.blocks)} | {"head": head}
    handles = [
        module.register_forward_pre_hook(lambda m, a, name=name: ran.append(name)) for name, module in watched.items()
    ]
    lm.capture(IDS, site, [0, 1], batch_size=64)
    # (the pre-hook of a block runs even where its input is the last thing looked at)
    assert ran == ["block 0", "block 1"]
    ran.clear()
    lm.capture(IDS, "embed")
    assert ran == []
    lm.logits(IDS)
    assert ran == [*(f"block {n}" for n in range(LAYERS)), "head"]
    for handle in handles:
        handle.remove()


def test_the_head_runs_only_where_logits_are_read(lm: LM, name: str) -> None:
    rows: list[int] = []
    head = lm.model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda m, args: rows.append(args[0].shape[1]))
    lm.logits(prompts(9, 9))
    handle.remove()
    assert rows == [1]


def test_batches_that_nobody_looks_at_do_not_run() -> None:
    lm, many = tiny("gpt2"), prompts(7, 6, 5)
    ran: list[int] = []
    handle = lm.sites.blocks[0].register_forward_pre_hook(lambda m, args: ran.append(args[0].shape[1]))
    acts = lm.capture(many, "resid_post", 0, [[2], [], [1, 4]], batch_size=1)
    handle.remove()
    assert ran == [7, 5]
    assert acts.prompt.tolist() == [0, 2, 2]
    close(acts.at()[1:], lm.capture(many[2:], "resid_post", 0, [[1, 4]]).at())


def test_captured_values_hold_no_more_than_was_asked_for(lm: LM) -> None:
    for site in lm.sites.available():
        values = lm.capture(IDS, site, None if site in ("embed", "logits") else [1], "last").values
        assert values.untyped_storage().nbytes() == values.numel() * values.element_size()
        assert values._base is None
        assert not values.requires_grad


def test_resid_mid_keeps_no_blocks_input_alive() -> None:
    config = CASES["llama"].config()
    config.num_hidden_layers = 8
    model = randomise(transformers.LlamaForCausalLM(config))
    lm = inscape.load(model, words())
    inputs: list[weakref.ref[torch.Tensor]] = []
    most = {}

    def watch(module: Any, args: Any) -> None:
        inputs.append(weakref.ref(args[0]))
        most[site] = max(most.get(site, 0), sum(ref() is not None for ref in inputs))

    handles = [block.register_forward_pre_hook(watch) for block in lm.sites.blocks]
    for site in ("resid_post", "resid_mid"):
        inputs.clear()
        lm.capture(IDS, site)
        assert len(inputs) == 8
    for handle in handles:
        handle.remove()
    assert most["resid_mid"] <= most["resid_post"] + 1


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_near_float32(name: str) -> None:
    half, full = tiny(name, dtype=torch.bfloat16), tiny(name)
    vector = torch.linspace(-1, 1, WIDTH)
    edit = inscape.add("resid_post", 0, vector, tokens="last")
    assert half.dtype == torch.bfloat16
    # The edit itself: float32 arithmetic, one rounding.
    before = half.capture(IDS, "resid_post", 0).at()
    after = half.capture(IDS, "resid_post", 0, edits=[edit]).at()
    assert torch.equal(after, (before.float() + vector).to(torch.bfloat16))
    close(half.logits(IDS, edits=[edit]).float(), full.logits(IDS, edits=[edit]), 0.15)
    assert half.capture(IDS, "z", 1, dtype=torch.float32).values.dtype == torch.float32


@pytest.mark.parametrize("name", ["gpt2", "llama", "falcon_new", "gemma3_text"])
def test_device_map(name: str, tmp_path: Any) -> None:
    model = build(name)
    model.save_pretrained(tmp_path)
    mapped, plain = inscape.load(tmp_path, device_map={"": "cpu"}), tiny(name)
    edit = inscape.add("resid_post", 1, torch.ones(WIDTH))
    assert torch.equal(mapped.logits(IDS, edits=[edit]), plain.logits(IDS, edits=[edit]))
    assert mapped.record()["parameters"] == sum(p.numel() for p in model.parameters())
    with pytest.raises(InputError, match="device or device_map, not both"):
        inscape.load(tmp_path, device="cpu", device_map={"": "cpu"})


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "falcon_new", "gemma3_text", "bloom"])
def test_offloaded_weights(name: str) -> None:
    """accelerate brings weights in around each module: an early stop may not leave them there."""
    from accelerate import cpu_offload

    plain = tiny(name)
    model = cpu_offload(build(name), execution_device=torch.device("cpu"))
    lm = inscape.load(model, words())
    assert all(p.device.type == "meta" for p in model.parameters())
    edit = inscape.add("resid_post", 1, torch.ones(WIDTH))
    for site in ("resid_post", "z", "attn_out"):
        assert torch.equal(lm.capture(IDS, site, 0).values, plain.capture(IDS, site, 0).values)
    assert torch.equal(lm.logits(IDS, edits=[edit]), plain.logits(IDS, edits=[edit]))
    assert lm.generate_ids(IDS, max_new_tokens=3, edits=[edit]) == plain.generate_ids(
        IDS, max_new_tokens=3, edits=[edit]
    )
    with pytest.raises(InputError):
        lm.logits(IDS, edits=[inscape.add("attn_out", 1, torch.ones(WIDTH + 1))])
    assert all(p.device.type == "meta" for p in model.parameters())


def test_an_early_stop_leaves_no_offloaded_weights_behind() -> None:
    """Whole blocks brought in at once: leaving from within one would skip the step that takes it out again."""
    from accelerate import cpu_offload

    cpu = torch.device("cpu")
    model = cpu_offload(build("llama"), execution_device=cpu, preload_module_classes=["LlamaDecoderLayer"])
    lm = inscape.load(model, words())
    assert torch.equal(lm.capture(IDS, "z", 0).values, tiny("llama").capture(IDS, "z", 0).values)
    assert all(p.device.type == "meta" for p in model.parameters())


def test_the_record_says_what_ran() -> None:
    record = tiny("qwen2").record()
    assert record["model_type"] == "qwen2"
    assert (record["n_layers"], record["d_model"], record["dtype"]) == (LAYERS, WIDTH, "float32")
    assert record["attention"] == "sdpa"
    assert record["adds_bos"] is False
    assert len(record["tokenizer_sha256"]) == 64
    assert record["tokenizer_sha256"] != inscape.load(build("qwen2"), words(VOCAB - 1)).record()["tokenizer_sha256"]
