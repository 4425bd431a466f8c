"""A sweep runs what its edits can change and no more, and leaves the user's model as it was, whatever happens in it."""

import copy
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from rerun_by_hand import noise, tensor
from test_kernel_hygiene import hooks
from tiny_models import CASES, LAYERS, WIDTH, build, close, prompts, randomise, tiny, words
from torch import Tensor
from transformers.models.llama import modeling_llama

import inscape
from inscape import KL, Generated, Grid, InputError, NonFiniteError, Probability
from inscape.models.lm import LM

IDS = prompts(8, 8, 8)
V = noise(WIDTH)


def watched(lm: LM, run: Callable[[], Any]) -> tuple[Any, list[int], list[int]]:
    """The result; tokens (rows × columns) that went through the attention of each block; rows of each call of the head.

    From plain hooks inside the blocks: while the arguments of blocks are looked at, blocks are called, and nothing in them.
    """
    tokens, head = [0] * lm.n_layers, []

    def count(number: int) -> Callable[..., None]:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            tokens[number] += (args[0] if args else kwargs["hidden_states"]).shape[:2].numel()

        return hook

    handles = [
        lm.sites.tap("z", n).module.register_forward_pre_hook(count(n), with_kwargs=True) for n in range(lm.n_layers)
    ]
    table = lm.model.get_output_embeddings()
    handles.append(table.register_forward_pre_hook(lambda m, args: head.append(args[0].shape[:-1].numel())))
    try:
        return run(), tokens, head
    finally:
        for handle in handles:
            handle.remove()


# -- no more than asked for --------------------------------------------------------------------------------------------


def test_blocks_below_and_tokens_before_do_not_run(lm: LM) -> None:
    lm.cut  # noqa: B018 (the proof's own runs come first)
    cells = [[inscape.add("resid_pre", layer, V, tokens=[[6]] * 3)] for layer in (1, 2)]
    result, tokens, head = watched(lm, lambda: lm.rerun(IDS, cells))
    # The base run is 3 × 8 tokens; a run is 2 (the 6th and the 7th) of 3 prompts: one run in block 1, two in block 2.
    assert tokens == [24, 24 + 6, 24 + 2 * 6]
    assert result.share == sum(tokens) / (2 * 24 * LAYERS)
    assert head == [3, 2 * 3]  # the last tokens of the base run, and of two runs


@pytest.mark.parametrize(
    ("cell", "ran"),
    [
        ([inscape.add("resid_post", LAYERS - 1, V, tokens="last")], 0),  # after the last block
        ([inscape.add("resid_post", 0, V, tokens=[[5]] * 3)], (LAYERS - 1) * 3 * 3),
        ([inscape.add("resid_pre", 0, V, tokens="first")], LAYERS * 3 * 8),
        ([inscape.add("embed", None, V, tokens="last")], LAYERS * 3),
        ([inscape.scale("mlp_out", 1, 2.0, tokens=[[7], [], []])], 2 * 1),  # two prompts without an edit do not run
        ([inscape.scale("logits", None, 2.0, tokens="last")], 0),
        ([inscape.scale("z", 2, 2.0, tokens="last"), inscape.scale("z", 1, 2.0, tokens="last")], 2 * 3),
    ],
)
def test_the_share_is_what_ran(cell: Any, ran: int) -> None:
    lm = tiny("gpt2")
    result = lm.rerun(IDS, [cell])
    assert result.share == pytest.approx(1 + ran / (3 * 8 * LAYERS))
    assert lm.rerun(IDS, [cell], naive=True).share == 2.0


def test_tokens_after_the_last_one_read_do_not_run() -> None:
    lm = tiny("llama")
    result = lm.rerun(IDS, [[inscape.add("resid_pre", 1, V, tokens=[[2]] * 3)]], read=[[4]] * 3)
    assert result.share == pytest.approx(1 + 2 * 3 * 3 / (3 * 8 * LAYERS))
    before = lm.rerun(IDS, [[inscape.add("resid_pre", 1, V, tokens=[[5]] * 3)]], read=[[4]] * 3)
    assert before.share == 1.0
    assert torch.equal(tensor(before.values)[:, 0], tensor(before.base))


@pytest.mark.parametrize("metric", [None, KL(), Probability([[3], [4], [5]])])
def test_the_head_runs_where_logits_are_read(metric: Any) -> None:
    for name in ("gpt2", "gemma2"):
        lm = tiny(name)
        lm.cut  # noqa: B018
        grid = Grid("resid_post", [0, 1], "each", vector=V)
        _, _, head = watched(lm, lambda lm=lm, grid=grid: lm.rerun(IDS, grid, metric))
        assert sum(head) == 3 + 3 * 2 * 8  # (the runs of a prompt: two layers, eight tokens)


def test_generation_does_not_read_the_prompt_again(name: str) -> None:
    lm = tiny(name)
    lm.cut  # noqa: B018
    cells = [[inscape.add("resid_post", 1, k * V, tokens="last")] for k in (1, 2)]
    result, tokens, _ = watched(lm, lambda: lm.rerun(IDS, cells, Generated(4, ids=True)))
    # Three tokens are fed back in each of 3 × 3 continuations; the edited runs' last tokens go through the last block.
    assert tokens == [24 + 27, 24 + 27, 24 + 27 + 2 * 3]
    assert result.share == sum(tokens) / (2 * 24 * LAYERS + 2 * 9 * LAYERS)


# -- as it was ---------------------------------------------------------------------------------------------------------


def _raises(*_: Any) -> Any:
    raise ZeroDivisionError


def test_the_model_is_the_same_after_every_call(name: str) -> None:
    lm = inscape.load(build(name), words())
    before, state = hooks(lm.model), copy.deepcopy(lm.model.state_dict())
    attributes = {n: set(vars(m)) for n, m in lm.model.named_modules()}
    logits, config = lm.logits(IDS), lm.model.config.to_dict()
    grid = Grid("z", None, vector=noise(*lm.sites.head_shape(0)[::2], seed=2), heads=None)
    calls: list[tuple[type[Exception] | None, Callable[[], Any]]] = [
        (None, lambda: lm.rerun(IDS, grid)),
        (None, lambda: lm.rerun(IDS, grid, Generated(2, ids=True))),
        (None, lambda: lm.rerun(IDS, grid, KL(), naive=True)),
        (ZeroDivisionError, lambda: lm.rerun(IDS, grid, _raises)),
        (InputError, lambda: lm.rerun(IDS, [[inscape.add("attn_out", 1, V[1:])]])),  # raised inside a block
        (InputError, lambda: lm.rerun(IDS, [[inscape.add("embed", None, V[3:])]])),
        (InputError, lambda: lm.rerun(IDS, [[]], base=[inscape.add("z", 1, V[1:])])),
        (InputError, lambda: lm.rerun(IDS, [[inscape.add("z", 1, V[1:], when="decode")]], Generated(3, ids=True))),
        (NonFiniteError, lambda: lm.rerun(IDS, [[inscape.scale("logits", None, 3e38, tokens="last")]])),
    ]
    for error, call in calls:
        if error is None:
            call()
        else:
            with pytest.raises(error):
                call()
        assert hooks(lm.model) == before
        assert {n: set(vars(m)) for n, m in lm.model.named_modules()} == attributes
        assert not any("forward" in vars(m) for m in lm.model.modules())
    after = lm.model.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[key], state[key]) for key in state)
    assert lm.model.config.to_dict() == config
    assert torch.equal(lm.logits(IDS), logits)
    assert not lm.model.training


@pytest.mark.parametrize("name", ["gpt2", "falcon"])
def test_a_users_error_inside_a_block_or_the_head(name: str) -> None:
    lm = tiny(name)
    lm.cut  # noqa: B018
    before = hooks(lm.model)
    for module in (lm.sites.blocks[2], lm.model.get_output_embeddings(), lm.model.get_input_embeddings()):
        handle = module.register_forward_hook(_raises)
        for metric in (None, Generated(2, ids=True)):
            with pytest.raises(ZeroDivisionError):
                lm.rerun(IDS, Grid(vector=V), metric)
        handle.remove()
        assert hooks(lm.model) == before
        assert not any("forward" in vars(m) for m in lm.model.modules())


def test_a_metric_may_use_the_model() -> None:
    lm = tiny("llama")
    inner: list[Tensor] = []

    def metric(logits: Tensor, base: Tensor, prompt: Tensor) -> Tensor:
        inner.append(lm.logits(IDS[:1], edits=[inscape.add("resid_post", 0, V)]))
        inner.append(tensor(lm.rerun(IDS[:1], Grid("z", 1, kind="ablate")).values).flatten()[None])
        with torch.no_grad():
            inner.append(lm.model(torch.tensor(IDS[:1])).logits[:, -1])
        return logits[:, 3]

    grid = Grid("resid_post", None, vector=V)
    expected = [
        lm.logits(IDS[:1], edits=[inscape.add("resid_post", 0, V)]),
        lm.logits(IDS[:1], edits=[inscape.ablate("z", 1, tokens="last")]), lm.logits(IDS[:1]),
    ]  # fmt: skip
    close(tensor(lm.rerun(IDS, grid, metric).values), tensor(lm.rerun(IDS, grid).values)[..., 3])
    for number, found in enumerate(inner):
        close(found, expected[number % 3])


def test_threads_sweep_one_model_while_others_use_it() -> None:
    lm = tiny("llama")
    grids = [Grid(site, None, "each", vector=noise(WIDTH, seed=n)) for n, site in enumerate(("resid_pre", "mlp_out"))]
    metric = Probability([[3, 4], [5, 6], [7, 8]])
    work: list[tuple[Callable[[], Any], Any]] = []
    for grid in grids:
        for reading in (None, metric, Generated(3, ids=True)):
            run = lambda grid=grid, reading=reading: lm.rerun(IDS, grid, reading).values  # noqa: E731
            work.append((run, run()))

    def plain() -> Any:
        with torch.no_grad():
            return lm.model(torch.tensor(IDS)).logits

    work.append((plain, plain()))
    work.append((lambda: lm.generate_ids(IDS, max_new_tokens=3), lm.generate_ids(IDS, max_new_tokens=3)))
    before, wrong, errors = hooks(lm.model), [], []
    barrier = threading.Barrier(len(work))

    def body(number: int) -> None:
        run, expected = work[number]
        barrier.wait()
        try:
            for _ in range(3):
                found = run()
                same = (
                    torch.equal(found, expected)
                    if isinstance(expected, Tensor)
                    else found == expected
                    if isinstance(expected, list)
                    else found.equals(expected)
                )
                if not same:
                    wrong.append(number)
        except Exception as error:  # noqa: BLE001 (whatever a thread meets is to be shown by the test)
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=body, args=(n,)) for n in range(len(work))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not errors
    assert not wrong
    assert hooks(lm.model) == before
    assert not any("forward" in vars(m) for m in lm.model.modules())


def test_a_users_own_hooks_and_forward_stay_and_act() -> None:
    lm = inscape.load(build("gpt2"), words())
    block = lm.sites.blocks[1]
    handle = block.register_forward_hook(
        lambda m, a, out: (out[0] * 0.5, *out[1:]) if isinstance(out, tuple) else out * 0.5
    )
    own = block.forward
    block.forward = lambda *args, **kwargs: own(*args, **kwargs)  # an instance's own, as accelerate has it
    mine = block.forward
    grid = Grid("resid_post", None, "first", vector=V)
    cut, full = lm.rerun(IDS, grid), lm.rerun(IDS, grid, naive=True)
    assert cut.naive is None
    close(tensor(cut.values), tensor(full.values))
    assert vars(block)["forward"] is mine
    assert (tensor(cut.base) - tensor(tiny("gpt2").rerun(IDS, grid).base)).abs().max() > 0.01
    handle.remove()


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "falcon_new", "gemma3_text", "bloom"])
def test_offloaded_weights(name: str) -> None:
    from accelerate import cpu_offload

    lm, plain = inscape.load(cpu_offload(build(name), execution_device=torch.device("cpu")), words()), tiny(name)
    grid = Grid("resid_post", None, {"a": [[1], [5], [7]], "last": "last"}, vector=V)
    found = lm.rerun(IDS, grid)
    assert found.naive is None
    close(tensor(found.values), tensor(plain.rerun(IDS, grid).values))
    wanted = Generated(3, ids=True)
    assert lm.rerun(IDS, grid, wanted).values.equals(plain.rerun(IDS, grid, wanted).values)
    embed = [[inscape.add("embed", None, noise(WIDTH), tokens="last")]]
    close(tensor(lm.rerun(IDS, embed).values), tensor(plain.rerun(IDS, embed).values))
    with pytest.raises(InputError):
        lm.rerun(IDS, [[inscape.add("attn_out", 1, V[1:])]])
    assert all(p.device.type == "meta" for p in lm.model.parameters())


# -- models that can't be cut ------------------------------------------------------------------------------------------


def _counting(model: Any) -> None:
    """A block with a state of its own: what it gives depends on how many tokens it was called with."""
    block = model.model.layers[1]
    forward = block.forward

    def own(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return forward(hidden_states * (1 + 0.1 * hidden_states.shape[1]), *args, **kwargs)

    block.forward = own


def _without_cache(model: Any) -> None:
    attention = model.model.layers[0].self_attn
    forward = attention.forward

    def own(*args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        if past_key_values is not None:
            raise NotImplementedError("this attention\nkeeps no cache")
        return forward(*args, **kwargs)

    attention.forward = own


@pytest.mark.parametrize(
    ("break_", "why"),
    [(_counting, "its logits are off by"), (_without_cache, "NotImplementedError: this attention keeps no")],
)
def test_a_model_that_cannot_be_cut_is_run_in_full_and_says_so_once(break_: Any, why: str) -> None:
    model = build("llama")
    break_(model)
    lm = inscape.load(model, words(), check=False)
    grid = Grid("resid_post", None, "each", vector=V)
    with pytest.warns(UserWarning, match=f"llama is run in full for every edit: .*{why}") as said:
        found = lm.rerun(IDS, grid)
    assert len(said) == 1
    assert "\n" not in str(said[0].message)
    assert found.naive is not None
    assert why in found.naive
    assert found.share == 1 + 1 / 24
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lm.rerun(IDS, grid, KL()).naive == found.naive
    for token in (0, 7):
        expected = lm.logits(IDS, edits=[inscape.add("resid_post", 1, V, tokens=[[token]] * 3)])
        close(tensor(found.values.sel(layer=1, position=token))[:, 0], expected)
    assert not any(
        "forward" in vars(m)
        for m in lm.model.modules()
        if m not in (model.model.layers[1], model.model.layers[0].self_attn)
    )


class _ReadsEmbeddingsAgain(modeling_llama.LlamaDecoderLayer):
    def forward(self, hidden_states: Tensor, first: Any = None, **kwargs: Any) -> Any:
        return super().forward(hidden_states + 0.5 * first, **kwargs)


class _GivesEmbeddingsToBlocks(modeling_llama.LlamaModel):
    def forward(self, input_ids: Any = None, inputs_embeds: Any = None, **kwargs: Any) -> Any:
        embedded = self.embed_tokens(input_ids)
        return super().forward(inputs_embeds=embedded, first=embedded, **kwargs)


def test_a_model_whose_blocks_read_the_embeddings_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """An edit of the embeddings reaches every block there, beside the stream; the proof must notice."""
    monkeypatch.setattr(modeling_llama, "LlamaDecoderLayer", _ReadsEmbeddingsAgain)
    monkeypatch.setattr(modeling_llama, "LlamaModel", _GivesEmbeddingsToBlocks)
    lm = inscape.load(randomise(transformers.LlamaForCausalLM(CASES["llama"].config())), words(), check=False)
    edit = inscape.add("embed", None, V, tokens="last")
    with pytest.warns(UserWarning, match="is run in full"):
        found = lm.rerun(IDS, [[edit]])
    close(tensor(found.values)[:, 0], lm.logits(IDS, edits=[edit]))


def test_a_model_without_a_family_table_has_its_residual_stream() -> None:
    config = transformers.Starcoder2Config(
        vocab_size=97, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    lm = inscape.load(randomise(transformers.Starcoder2ForCausalLM(config)), words())
    assert lm.sites.family is None
    grid = Grid(["resid_pre", "resid_post"], None, "each", vector=V)
    cut, full = lm.rerun(IDS, grid), lm.rerun(IDS, grid, naive=True)
    assert cut.naive is None
    close(tensor(cut.values), tensor(full.values))
    with pytest.raises(InputError, match="has no family table"):
        lm.rerun(IDS, Grid("z", vector=V))


def test_progress_sees_every_batch() -> None:
    seen: list[Any] = []

    def progress(batches: Any, total: int) -> Any:
        for batch in batches:
            seen.append((len(batch.index), total))
            yield batch

    tiny("gpt2").rerun(IDS, Grid(vector=V), batch_size=2, progress=progress)
    assert seen == [(2, 2), (1, 2)]
