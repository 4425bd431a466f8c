"""What the tests of `inscape.training.parallel` run in several processes, and in one to compare with.

``python parallel_jobs.py JOBS PROCESSES FOLDER SECONDS`` imports once, forks the processes, and runs each of the `JOBS`
(functions of this file, with commas) in all of them, with what ``torchrun`` would have put in the environment. Each
process leaves ``FOLDER/JOB-RANK.json``. All are gone when it returns: it ends with 1 when one failed, 124 when time was
up. Under ``torchrun`` itself, which has its own way to start and end processes, it runs the jobs at once.
"""

import hashlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from inscape.errors import InputError
from inscape.training.architectures import ModelConfig, build
from inscape.training.batches import Batch, share
from inscape.training.parallel import Layout, Parallel, by_mesh
from inscape.training.schedule import Schedule
from inscape.training.trainer import TrainingConfig, train

WORDS, LENGTH, ROWS, STEPS = 64, 12, 6, 5
CLIP = 0.5

# fmt: off
LAYOUTS: dict[int, dict[str, Layout]] = {
    2: {
        "shards": Layout(),
        "gathered": Layout(reshard_after_forward=False),
        "replicate": Layout(replicate=2),
        "checkpointing": Layout(activation_checkpointing=True),
        "tensor": Layout(tensor_parallel=2),
    },
    4: {
        "shards": Layout(data_shards=4),
        "replicate x shards": Layout(replicate=2, data_shards=2),
        "shards x tensor": Layout(tensor_parallel=2),
        "replicate x tensor": Layout(replicate=2, tensor_parallel=2, activation_checkpointing=True),
    },
}
# fmt: on


def shape(kind: str = "bloom", position: str = "alibi", heads: int = 6, width: int = 48) -> ModelConfig:
    return ModelConfig(
        kind=kind, position=position, width=width, layers=2, heads=heads, context=32, vocabulary=WORDS, init_std=0.1
    )


def batch(step: int, rows: int = ROWS) -> Batch:
    """Rows of several documents with uneven weights: a mean over processes would not be the mean over the step."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, WORDS, (rows, LENGTH + 1), generator=generator)
    weights = torch.rand(rows, LENGTH, generator=generator) * torch.arange(1, rows + 1)[:, None]
    segments = (torch.rand(rows, LENGTH, generator=generator) < 0.2).cumsum(1).int()
    return Batch(tokens[:, :-1], tokens[:, 1:], weights, segments)


def optimizer_of(model: nn.Module) -> torch.optim.AdamW:
    groups = [{"params": group} for group in by_mesh(model.parameters())]
    return torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), weight_decay=0.1, fused=True)


def loss_of(model: nn.Module, rows: Batch) -> Tensor:
    logits = model(rows.ids, rows.segments) @ model.head_weight.T
    return rows.weights.flatten() @ F.cross_entropy(
        logits.flatten(0, 1).float(), rows.targets.flatten(), reduction="none"
    )


def step(
    parallel: Parallel, model: nn.Module, optimizer: torch.optim.Optimizer, number: int, micro: int = 1
) -> list[float]:
    """One step on this process's rows in `micro` parts: loss and gradient norm of the whole step."""
    whole = batch(number)
    divisor = whole.weights.sum().item()
    first, last = share(whole.rows, parallel.data_rank, parallel.data_ranks)
    loss = torch.zeros(())
    for part in range(micro):
        start, end = share(last - first, part, micro)
        parallel.last_micro_batch(model, part == micro - 1)
        here = loss_of(model, whole.part(first + start, first + end)) / divisor
        here.backward()
        loss += here.detach()
    norm = parallel.grad_norm_and_clip(model.parameters(), CLIP)
    optimizer.step()
    optimizer.zero_grad()
    return [parallel.sum(loss).item(), norm.item()]


def steps_of(parallel: Parallel, config: ModelConfig, micro: int = 1) -> dict[str, Any]:
    """Losses and norms of some steps, and what the weights are in the end."""
    model = parallel.apply(build(config, seed=0))
    optimizer = optimizer_of(model)
    taken = [step(parallel, model, optimizer, number, micro) for number in range(STEPS)]
    weights = {name: tensor.double().norm().item() for name, tensor in parallel.full_state(model).items()}
    norms = b"".join(
        local(parameter).numpy().tobytes() for name, parameter in model.named_parameters() if is_norm(name)
    )
    return {
        "steps": taken,
        "weights": weights,
        "norms": hashlib.sha256(norms).hexdigest(),
        "place": [parallel.data_rank, parallel.data_ranks],
        "slopes": getattr(model, "slopes", torch.zeros(0)).tolist(),
        "meshes": len(list(by_mesh(model.parameters()))),
        "numbers": sum(local(parameter).numel() for parameter in model.parameters()),
    }


def is_norm(name: str) -> bool:
    return "norm" in name or "ln_f" in name


def local(parameter: Tensor) -> Tensor:
    return (parameter.to_local() if isinstance(parameter, DTensor) else parameter).detach()


def start(folder: Path, layout: Layout) -> Parallel:
    meet = None if "TORCHELASTIC_RUN_ID" in os.environ else f"file://{folder}/meet"
    return Parallel.start(layout, device="cpu", init_method=meet, timeout=timedelta(seconds=60))


def equality(folder: Path) -> dict[str, Any]:
    """Every layout for this number of processes, one after the other in one group; micro-batches; in two, other kinds."""
    results = {}
    world = int(os.environ["WORLD_SIZE"])
    for name, layout in LAYOUTS[world].items():
        results[name] = steps_of(start(folder, layout), shape())
    results["micro-batches"] = steps_of(start(folder, Layout(tensor_parallel=world // 2)), shape(), micro=2)
    if world > 2:
        return results
    for position in ("learned", "none"):
        results[f"position {position}"] = steps_of(start(folder, Layout(tensor_parallel=2)), shape(position=position))
    for kind in ("gpt2", "llama", "gpt_neox"):
        results[kind] = steps_of(start(folder, Layout()), shape(kind, heads=4))
    return results


def states(folder: Path) -> dict[str, Any]:
    """Save after two steps of each layout, and go on from every state (also those found there) with every layout."""
    results: dict[str, Any] = {}
    layouts = list(LAYOUTS[int(os.environ["WORLD_SIZE"])].values())
    layouts = [layouts[0], layouts[-1]]
    for number, layout in enumerate(layouts):
        save_two_steps(start(folder, layout), folder / f"state {number}")
    for saved in sorted(path for path in folder.iterdir() if path.name.startswith("state ")):
        for number, layout in enumerate(layouts):
            results[f"{saved.name} -> {number}"] = go_on(start(folder, layout), saved)
    return results


def save_two_steps(parallel: Parallel, folder: Path) -> None:
    model = parallel.apply(build(shape(), seed=0))
    optimizer = optimizer_of(model)
    for number in range(2):
        step(parallel, model, optimizer, number)
    parallel.save(model, optimizer, folder)


def go_on(parallel: Parallel, saved: Path) -> list[list[float]]:
    """Load a state of two steps into a model with other weights, and take the other steps."""
    model = parallel.apply(build(shape(), seed=1))
    optimizer = optimizer_of(model)
    parallel.load(model, optimizer, saved)
    return [step(parallel, model, optimizer, number) for number in range(2, STEPS)]


def bfloat16(folder: Path) -> dict[str, Any]:
    parallel = start(folder, Layout(dtype="bf16"))
    model = parallel.apply(build(shape(), seed=0))
    optimizer = optimizer_of(model)
    with parallel.precision("bf16"):
        taken = [step(parallel, model, optimizer, number) for number in range(STEPS)]
    try:
        parallel.precision("fp32")
    except InputError as error:
        refused = str(error)
    dtypes = sorted({str(parameter.dtype) for parameter in model.parameters()})
    return {"steps": taken, "refused": refused, "dtypes": dtypes}


def refusals(folder: Path) -> dict[str, Any]:
    """What must be refused, and the message."""
    messages = {}
    parallel = start(folder, Layout(tensor_parallel=2))
    for name, config in {
        "gpt2": shape("gpt2", heads=4),
        "heads": shape(heads=3),
    }.items():
        try:
            parallel.apply(build(config))
        except InputError as error:
            messages[name] = str(error)
    try:
        start(folder, Layout(data_shards=3))
    except InputError as error:
        messages["layout"] = str(error)
    return messages


def full_disk(folder: Path) -> dict[str, Any]:
    """The last process may write no more than a kilobyte when the second state is saved."""
    parallel = start(folder, Layout())
    save_two_steps(parallel, folder / "good")
    model = parallel.apply(build(shape(), seed=1))
    optimizer = optimizer_of(model)
    parallel.load(model, optimizer, folder / "good")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    if parallel.rank == 1:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limit[1]))
    try:
        parallel.save(model, optimizer, folder / "torn")
    except InputError as error:
        refused = str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    # The run itself is not hurt: it may go on and save again.
    parallel.save(model, optimizer, folder / "again")
    try:
        parallel.load(model, optimizer, folder / "torn")
    except InputError as error:
        torn = str(error)
    return {
        "refused": refused,
        "torn": torn,
        "good": go_on(parallel, folder / "good"),
        "again": go_on(parallel, folder / "again"),
    }


def trained(folder: Path) -> dict[str, Any]:
    """The trainer's own run in ``FOLDER/run``, with a state after every step; ``FOLDER/kill`` says who dies when."""
    with start(folder, Layout(tensor_parallel=2 if int(os.environ.get("WORLD_SIZE", "1")) == 4 else 1)) as parallel:
        return {"losses": trained_by(parallel, folder)}


def trained_by(parallel: Parallel, folder: Path) -> list[float]:
    def batches(number: int) -> Batch:
        kill = folder / "kill"
        if kill.exists() and json.loads(kill.read_text()) == [parallel.rank, number]:
            os.kill(os.getpid(), signal.SIGKILL)
        return batch(number)

    schedule = Schedule(steps=2 * STEPS, rows=ROWS, learning_rate=0.01)
    config = TrainingConfig(schedule=schedule, clip=CLIP, save_seconds=0.0, export_powers=False)
    run = folder / "run"
    return train(build(shape(), seed=0), batches, config, run, identity={"test": 1}, parallel=parallel).losses


def _run(jobs: str, folder: Path) -> None:
    for job in jobs.split(","):
        result = globals()[job](folder)
        (folder / f"{job}-{os.environ['RANK']}.json").write_text(json.dumps(result))


def _child(jobs: str, rank: int, world: int, folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    code = 1
    try:
        _run(jobs, folder)
        code = 0
    except BaseException:  # noqa: BLE001 (what happened must be seen in the parent's output)
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    # A process that failed must not wait for the others while it takes its group apart.
    os._exit(code)


def main(jobs: str, world: int, folder: Path, seconds: float) -> int:
    end = time.monotonic() + seconds
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            _child(jobs, rank, world, folder)
        children.append(child)
    codes: dict[int, int] = {}
    while len(codes) < world and time.monotonic() < end:
        for child in children:
            if child not in codes and (ended := os.waitpid(child, os.WNOHANG))[0]:
                codes[child] = os.waitstatus_to_exitcode(ended[1])
        time.sleep(0.02)
    for child in set(children) - codes.keys():
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return 124 if len(codes) < world else int(any(codes.values()))


if __name__ == "__main__":
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        _run(sys.argv[1], Path(sys.argv[3]))
    else:
        sys.exit(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4])))
