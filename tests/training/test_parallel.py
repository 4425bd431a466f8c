"""One step over many processes: the same as in one, whatever the layout; what is refused; what is saved.

Each test starts its processes once, for all that is asked of them: starting is what takes the time.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import parallel_jobs as jobs
import pytest
import torch
from parallel_jobs import batch, go_on, loss_of, optimizer_of, save_two_steps, shape, steps_of
from pydantic import ValidationError

from inscape import InputError
from inscape.runs.writing import RunWriteError
from inscape.training.architectures import build, load_hf, save_hf
from inscape.training.bloom import alibi_slopes
from inscape.training.parallel import Layout, Parallel
from inscape.training.state import load_state, save_state

SECONDS = 120
CLOSE = 1e-5


def launch(names: str, world: int, folder: Path, expected: int = 0) -> dict[str, list[Any]]:
    """Run jobs in `world` processes; the result of each process, by job."""
    command = [sys.executable, "-W", "ignore", jobs.__file__, names, str(world), str(folder), str(SECONDS)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=SECONDS + 60, check=False)
    assert done.returncode == expected, done.stderr[-4000:]
    results = {name: sorted(folder.glob(f"{name}-*.json")) for name in names.split(",")}
    return {name: [json.loads(path.read_text()) for path in paths] for name, paths in results.items()}


def alone(kind: str = "bloom", position: str = "alibi", heads: int = 6) -> dict[str, Any]:
    return steps_of(Parallel.start(device="cpu"), shape(kind, position, heads))


def same(taken: list[list[float]], expected: list[list[float]]) -> None:
    torch.testing.assert_close(torch.tensor(taken), torch.tensor(expected), rtol=0, atol=CLOSE)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def equal_to_one(results: list[Any], world: int, others: dict[str, Any]) -> None:
    reference = alone()
    # The reference is clipped, or nothing would be seen of a wrong norm in the steps that follow.
    assert all(norm > jobs.CLIP for _, norm in reference["steps"])
    assert len(results) == world
    for result in results:
        assert result.keys() == jobs.LAYOUTS[world].keys() | others.keys() | {"micro-batches"}
        for name, got in result.items():
            same(got["steps"], others.get(name, reference)["steps"])
    for name, got in results[0].items():
        assert got["weights"] == pytest.approx(others.get(name, reference)["weights"], abs=CLOSE), name
    assert all(got["weights"] == {} for result in results[1:] for got in result.values())


def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    others = {kind: alone(kind, heads=4) for kind in ("gpt2", "llama", "gpt_neox")}
    others |= {f"position {position}": alone(position=position) for position in ("learned", "none")}
    results = launch("equality", 2, tmp_path)["equality"]
    equal_to_one(results, 2, others)
    assert [result["shards"]["place"] for result in results] == [[0, 2], [1, 2]]
    assert [result["tensor"]["place"] for result in results] == [[0, 1], [0, 1]]


def test_four_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    """And what lies where: slopes by heads, rows by group, LayerNorms the same bit for bit after training."""
    results = launch("equality", 4, tmp_path)["equality"]
    equal_to_one(results, 4, {})

    rank = [result["shards x tensor"] for result in results]
    slopes = alibi_slopes(6).tolist()
    assert slopes[:3] != slopes[3:]
    for number in range(4):
        assert rank[number]["slopes"] == slopes[3 * (number % 2) : 3 * (number % 2) + 3]
        assert rank[number]["place"] == [number // 2, 2]
        assert rank[number]["meshes"] == 2
    # Each LayerNorm is cut in two data shards; the two tensor-parallel processes of a shard hold the same numbers.
    assert rank[0]["norms"] == rank[1]["norms"] != rank[2]["norms"] == rank[3]["norms"]
    # A quarter of what tensor parallel cuts (matrices, and biases of those cut by output), half of all the rest.
    cut = 2 * (12 * 48 * 48 + (3 + 4) * 48)
    assert [part["numbers"] for part in rank] == [cut // 4 + (alone()["numbers"] - cut) // 2] * 4


def test_states_go_from_any_layout_to_any_other(tmp_path: Path) -> None:
    save_two_steps(Parallel.start(device="cpu"), tmp_path / "state alone")
    expected = alone()["steps"][2:]
    for taken in (results := launch("states,full_disk,bfloat16,refusals", 2, tmp_path))["states"]:
        assert len(taken) == 6
        for steps in taken.values():
            same(steps, expected)
    for saved in ("state 0", "state 1", "state alone"):
        same(go_on(Parallel.start(device="cpu"), tmp_path / saved), expected)

    for disk in results["full_disk"]:
        assert "no space left" in disk["refused"]
        assert "no complete training state" in disk["torn"]
        same(disk["good"], expected)
        same(disk["again"], expected)

    for low in results["bfloat16"]:
        assert low["dtypes"] == ["torch.float32"]
        assert low["refused"] == "products in fp32 of weights gathered in bf16 (layout dtype): expected bf16 for both"
        difference = torch.tensor(low["steps"]) - torch.tensor(alone()["steps"])
        assert 1e-4 < difference.abs().max() < 0.05

    for messages in results["refusals"]:
        assert messages == {
            "gpt2": "tensor_parallel 2 of a gpt2 model: expected bloom (others take data_shards)",
            "heads": "3 heads over tensor_parallel 2: expected a multiple of it",
            "layout": "replicate 1 x data_shards 3 x tensor_parallel 1 = 3 processes, but 2 were started: "
            "expected as many (torchrun --nproc-per-node 3)",
        }


def test_alone_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    model = build(shape(), seed=0)
    before = dict(model.named_parameters())
    with Parallel.start(device="cpu") as parallel:
        assert parallel.apply(model) is model
        assert all(parameter is before[name] for name, parameter in model.named_parameters())
        assert not torch.distributed.is_initialized()
        assert (parallel.rank, parallel.world, parallel.data_rank, parallel.data_ranks) == (0, 1, 0, 1)
        assert parallel.is_first
        total = torch.ones(3)
        assert parallel.sum(total) is total
        parallel.barrier()
        state = parallel.full_state(model)
        assert all(torch.equal(state[name], parameter) for name, parameter in before.items())


def test_norm_and_clip_alone() -> None:
    parallel, model = Parallel.start(device="cpu"), build(shape(), seed=0)
    loss_of(model, batch(0)).backward()
    gradients = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).double()
    norm = parallel.grad_norm_and_clip(model.parameters(), 0.25)
    clipped = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).double()
    assert norm.item() == pytest.approx(gradients.norm().item(), rel=1e-6)
    torch.testing.assert_close(clipped, gradients * 0.25 / gradients.norm(), rtol=1e-4, atol=1e-9)
    assert parallel.grad_norm_and_clip(model.parameters(), 1.0).item() == pytest.approx(0.25, rel=1e-4)
    assert clipped.norm() == pytest.approx(0.25, rel=1e-4)


@pytest.mark.parametrize("kind", ["bloom", "llama"])
def test_activation_checkpointing_keeps_less_and_changes_nothing(kind: str) -> None:
    kept, gradients = [], []
    for checkpointing in (False, True):
        parallel = Parallel.start(Layout(activation_checkpointing=checkpointing), device="cpu")
        model = parallel.apply(build(shape(kind, heads=4), seed=0))
        sizes: list[int] = []

        def pack(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = loss_of(model, batch(0))
        kept.append(sum(sizes))
        loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert kept[1] < 0.7 * kept[0]
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_full_state_is_a_model_of_transformers(tmp_path: Path) -> None:
    model = Parallel.start(device="cpu").apply(build(shape(), seed=0))
    save_hf(Parallel.start(device="cpu").full_state(model), model.hf_config, None, tmp_path / "hf")
    rows = batch(0)
    again = load_hf(tmp_path / "hf")
    torch.testing.assert_close(again(rows.ids, rows.segments), model(rows.ids, rows.segments))


def test_state_before_the_first_step(tmp_path: Path) -> None:
    """AdamW counts its steps: a state without any must not come back as one."""
    model = build(shape(), seed=0)
    optimizer = optimizer_of(model)
    save_state(model, optimizer, tmp_path / "state")
    assert not optimizer.state
    other = build(shape(), seed=1)
    again = optimizer_of(other)
    load_state(other, again, tmp_path / "state")
    assert not again.state
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))


def test_bad_states(tmp_path: Path) -> None:
    model = build(shape(), seed=0)
    saved = tmp_path / "state"
    save_state(model, optimizer_of(model), saved)

    def refused(other: torch.nn.Module) -> str:
        before = [parameter.detach().clone() for parameter in other.parameters()]
        with pytest.raises(InputError) as caught:
            load_state(other, optimizer_of(other), saved)
        assert all(torch.equal(one, two) for one, two in zip(before, other.parameters(), strict=True))
        message = str(caught.value)
        assert "\n" not in message
        assert message.startswith(str(saved))
        return message

    assert "transformer.h.0.input_layernorm.bias is (48,), expected (24,)" in refused(build(shape(width=24)))
    assert "it has no transformer.position_embeddings.weight" in refused(build(shape(position="learned")))
    assert "it has no causal_lm.lm_head.weight" in refused(build(shape("gpt2", heads=4)))
    piece = next(saved.glob("*.distcp"))
    content = piece.read_bytes()
    piece.unlink()
    assert "a damaged training state" in refused(build(shape(), seed=1))
    piece.write_bytes(content)
    (saved / ".metadata").write_bytes(b"nothing")
    assert "a damaged training state" in refused(build(shape(), seed=1))
    (saved / ".metadata").unlink()
    assert "no complete training state" in refused(build(shape(), seed=1))


def test_state_of_a_model_with_more(tmp_path: Path) -> None:
    learned, alibi = build(shape(position="learned")), build(shape())
    save_state(learned, optimizer_of(learned), tmp_path / "state")
    with pytest.raises(InputError, match=r"another model, this one has no transformer\.position_embeddings\.weight"):
        load_state(alibi, optimizer_of(alibi), tmp_path / "state")


def test_state_that_cannot_be_written(tmp_path: Path) -> None:
    model = build(shape(), seed=0)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunWriteError, match="cannot write"):
        save_state(model, optimizer_of(model), tmp_path / "file" / "state")


@pytest.mark.parametrize(
    ("layout", "world", "shards"),
    [
        (Layout(), 6, 6),
        (Layout(tensor_parallel=2), 6, 3),
        (Layout(replicate=3, tensor_parallel=2), 6, 1),
        (Layout(), 1, 1),
    ],
)
def test_data_shards_are_what_is_left(layout: Layout, world: int, shards: int) -> None:
    assert layout.shards(world) == shards


NOT_FITTING = [
    (Layout(tensor_parallel=2), 1, 2),
    (Layout(tensor_parallel=2), 3, 2),
    (Layout(data_shards=4), 2, 4),
    (Layout(replicate=4), 6, 4),
]


@pytest.mark.parametrize(("layout", "world", "needs"), NOT_FITTING)
def test_layouts_that_do_not_fit(layout: Layout, world: int, needs: int) -> None:
    with pytest.raises(InputError, match=rf"= {needs} processes, but {world} were started.*nproc-per-node {needs}"):
        layout.shards(world)


@pytest.mark.parametrize("field", ["data_shards", "tensor_parallel", "replicate"])
def test_layouts_that_cannot_be(field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        Layout(**{field: 0})


@pytest.mark.parametrize(("world", "rank"), [("2", None), ("2", "2"), ("two", "0"), ("0", "0"), ("2", "-1")])
def test_half_an_environment(monkeypatch: pytest.MonkeyPatch, world: str, rank: str | None) -> None:
    monkeypatch.setenv("WORLD_SIZE", world)
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    with pytest.raises(InputError, match=f"WORLD_SIZE {world} with RANK {rank or 'none'}, expected two numbers"):
        Parallel.start(device="cpu")


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(InputError, match="process 1 of this machine found 1 GPUs, expected one per process"):
        Parallel.start(device="cuda")
