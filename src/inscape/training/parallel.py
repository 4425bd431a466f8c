"""One training step over many processes: tensor parallel, sharded data parallel, both, or a single process.

`Parallel.start` reads what ``torchrun`` put into the environment and makes a mesh of processes with three sides:

- **replicate**: whole copies of the model, each of which sees other rows;
- **data shards**: the weights, gradients and optimizer state of one copy are cut in as many pieces (FSDP2,
  `torch.distributed.fsdp.fully_shard`), and each process sees other rows; a block's weights are gathered while it works;
- **tensor parallel**: the matrices of a block are cut between processes that see the *same* rows (DTensor,
  `parallelize_module`): query, key, value and the MLP's first matrix by output (whole heads), the two matrices that write
  to the residual stream by input, so that one sum follows each half of a block. A process that has a part of the heads has
  that part of the ALiBi slopes.

Gradients are **summed** over the data processes, not averaged: each process divides the loss of its rows by the weight of
the whole step, and the step is then the same whatever the number of processes. After tensor parallel
some gradients live on two sides of the mesh and some (LayerNorms, embeddings) on one: `grad_norm_and_clip` combines the
parts, so that every process clips by the same number.

In a single process nothing is wrapped, no group of processes exists, and every method here is the plain one.

Failure: a layout that doesn't fit the number of processes, heads that the tensor-parallel processes can't share, and
tensor parallel of another model than BLOOM are refused (`InputError`). Every process builds the whole model before it
is cut, so a model must fit in the memory of one machine's process once.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Literal, Self, TypeVar, cast

import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from inscape.errors import InputError
from inscape.training.bloom import Bloom
from inscape.training.state import load_state, save_state

Module = TypeVar("Module", bound=nn.Module)


class Layout(BaseModel):
    """How a model and its rows lie on the processes: replicate * data_shards * tensor_parallel = processes.

    A guide: up to 3B parameters data shards without `reshard_after_forward`; 7B with it; above, tensor parallel inside
    a machine, data shards across machines, and activation checkpointing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data_shards: int | None = Field(
        default=None, ge=1, description="pieces that one copy's weights are cut in; none: all processes that are left"
    )
    tensor_parallel: int = Field(
        default=1, ge=1, description="processes that share the heads of one block (paper: 4); bloom only"
    )
    replicate: int = Field(default=1, ge=1, description="copies of the model, each cut in data shards (paper: 8)")
    reshard_after_forward: bool = Field(
        default=True,
        description="free a block's gathered weights after its forward pass, and gather them again for the backward pass",
    )
    activation_checkpointing: bool = Field(
        default=False, description="keep only the input of each block and compute the rest again in the backward pass"
    )
    dtype: Literal["fp32", "bf16"] = Field(
        default="fp32",
        description="in which weights are gathered; gradients are summed and weights kept in fp32; bf16 needs bf16 products",
    )

    def shards(self, processes: int) -> int:
        """Data shards for this number of processes. Raises InputError if the layout doesn't fit it."""
        others = self.replicate * self.tensor_parallel
        shards = self.data_shards if self.data_shards is not None else max(processes // others, 1)
        if shards * others != processes:
            raise InputError(
                f"replicate {self.replicate} x data_shards {shards} x tensor_parallel {self.tensor_parallel} = "
                f"{shards * others} processes, but {processes} were started: expected as many "
                f"(torchrun --nproc-per-node {shards * others})"
            )
        return shards


class Parallel:
    """The processes of one training run, seen from one of them; made by `start`, closed by `close` or `with`.

    Attributes:
        layout: as given.
        rank, world: this process among all.
        data_rank, data_ranks: which of the different parts of a step's rows this process takes. Processes that share
            a block by tensor parallel have the same one.
        device: where this process keeps its model.
        mesh: the processes, with sides ``replicate``, ``shard``, ``tensor``; none in a single process.
    """

    def __init__(self, layout: Layout, mesh: DeviceMesh | None, device: torch.device, owns_group: bool) -> None:
        self.layout, self.mesh, self.device = layout, mesh, device
        self._owns_group = owns_group
        self.rank = dist.get_rank() if mesh is not None else 0
        self.world = mesh.size() if mesh is not None else 1
        self.data_ranks = self.world // layout.tensor_parallel
        self.data_rank = self.rank // layout.tensor_parallel

    @classmethod
    def start(
        cls,
        layout: Layout | None = None,
        *,
        device: str | torch.device | None = None,
        init_method: str | None = None,
        timeout: timedelta = timedelta(minutes=30),
    ) -> Self:
        """Join the processes that ``torchrun`` started; alone without it.

        Args:
            layout: how the processes are used; none: all of them as data shards.
            device: ``cpu`` (gloo) or ``cuda`` (NCCL, one GPU per process); none: cuda where there is one.
            init_method: where the processes meet, if not at MASTER_ADDR and MASTER_PORT (``file://...``).
            timeout: how long a process waits for another before it fails.

        Raises:
            InputError: the layout doesn't fit the processes, there are fewer GPUs than processes, or the environment
                holds half of what ``torchrun`` sets.
        """
        layout = layout or Layout()
        processes, rank = _launch()
        shards = layout.shards(processes)
        place = _device(device)
        if processes == 1:
            return cls(layout, None, place, owns_group=False)
        owns = not dist.is_initialized()
        if owns:
            backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
            dist.init_process_group(
                backend,
                init_method=init_method or "env://",
                rank=rank,
                world_size=processes,
                timeout=timeout,
                device_id=place if place.type == "cuda" else None,
            )
        shape = (layout.replicate, shards, layout.tensor_parallel)
        mesh = init_device_mesh(place.type, shape, mesh_dim_names=("replicate", "shard", "tensor"))
        return cls(layout, mesh, place, owns)

    def close(self) -> None:
        """Leave the group of processes, if `start` made it."""
        if self._owns_group and dist.is_initialized():
            dist.destroy_process_group()
        self._owns_group = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes what only one may write."""
        return self.rank == 0

    def apply(self, model: Module) -> Module:
        """Cut `model` over the processes, in place, and put it on this process's device; returns it.

        To be called once, before the optimizer is made: the parameters become new ones. All processes must hold the same
        weights. The model is one of `inscape.training.architectures` (its layers are ``model.blocks``).

        Raises:
            InputError: tensor parallel of a model other than BLOOM, or of heads that can't be shared evenly.
        """
        blocks = cast(nn.ModuleList, model.blocks)
        if self.layout.tensor_parallel > 1:
            self._cut_blocks(model, blocks)
        model.to(self.device)
        if self.layout.activation_checkpointing:
            for block in blocks:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        if self.data_ranks > 1:
            self._shard(model, blocks)
        return model

    def _cut_blocks(self, model: nn.Module, blocks: nn.ModuleList) -> None:
        n = self.layout.tensor_parallel
        if not isinstance(model, Bloom):
            kind = getattr(getattr(model, "hf_config", None), "model_type", type(model).__name__)
            raise InputError(f"tensor_parallel {n} of a {kind} model: expected bloom (others take data_shards)")
        heads = model.config.n_head
        if heads % n:
            raise InputError(f"{heads} heads over tensor_parallel {n}: expected a multiple of it")
        assert self.mesh is not None
        mesh = self.mesh["tensor"]
        plan = {
            "self_attention.query_key_value": ColwiseParallel(),
            "self_attention.dense": RowwiseParallel(),
            "mlp.dense_h_to_4h": ColwiseParallel(),
            "mlp.dense_4h_to_h": RowwiseParallel(),
        }
        for block in blocks:
            # Rows of the fused matrix lie head after head (query, key, value of each), so even pieces are whole heads.
            parallelize_module(block, mesh, plan)
        model.slopes = model.slopes.chunk(n)[mesh.get_local_rank()].clone()

    def _shard(self, model: nn.Module, blocks: nn.ModuleList) -> None:
        assert self.mesh is not None
        mesh = self.mesh["replicate", "shard"] if self.layout.replicate > 1 else self.mesh["shard"]
        policy = MixedPrecisionPolicy()
        if self.layout.dtype == "bf16":
            # Autocast decides what each operation computes in, as in a single process; here only what travels is halved.
            policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        for block in blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=self.layout.reshard_after_forward)
        # The embedding and the last norm stay gathered until the backward pass: the output layer, which is used outside
        # of the model's forward, is (tied to) the embedding.
        fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)

    def last_micro_batch(self, model: nn.Module, last: bool) -> None:
        """Say before a backward pass whether its gradients are exchanged, or kept (in float32) for the next one."""
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(last)

    def precision(self, dtype: Literal["fp32", "bf16"]) -> contextlib.AbstractContextManager[object]:
        """The context of the forward pass and the loss; ``bf16`` is autocast.

        Raises:
            InputError: ``fp32`` products of weights that the layout gathers in ``bf16``.
        """
        if dtype == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        if self.layout.dtype == "bf16" and self.data_ranks > 1:
            raise InputError("products in fp32 of weights gathered in bf16 (layout dtype): expected bf16 for both")
        return contextlib.nullcontext()

    def sum(self, tensor: Tensor) -> Tensor:
        """`tensor` (losses, weights, counts of this process's rows) summed over all rows of the step; a new tensor."""
        if self.data_ranks == 1:
            return tensor
        total = tensor.detach().clone().to(self.device)
        # A tensor-parallel group counts the same rows on each of its processes: one side of the mesh, then the other.
        assert self.mesh is not None
        for side in ("replicate", "shard"):
            dist.all_reduce(total, group=self.mesh.get_group(side))
        return total

    def grad_norm_and_clip(self, parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
        """Scale all gradients so that their Euclidean norm is at most `max_norm`.

        Returns:
            The norm of the whole gradient before, the same on every process: float32, no dimensions.
        """
        groups = [[parameter for parameter in group if parameter.grad is not None] for group in by_mesh(parameters)]
        norms = []
        with _quiet():
            for group in groups:
                norm = get_total_norm([parameter.grad for parameter in group if parameter.grad is not None])
                norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        norm = norms[0] if len(norms) == 1 else torch.stack(norms).norm()
        if self.mesh is not None:
            # Sums taken in another order differ in the last bit, and copies of a weight that are scaled by numbers
            # that differ drift apart.
            dist.broadcast(norm, src=0)
        for group in groups:
            clip_grads_with_norm_(group, max_norm, norm)
        return norm

    def save(self, model: nn.Module, optimizer: Optimizer, folder: Path) -> None:
        """Write model and optimizer into `folder`, see `state.save_state`; all processes must call it."""
        save_state(model, optimizer, folder)

    def load(self, model: nn.Module, optimizer: Optimizer, folder: Path) -> None:
        """Read them back, whatever layout wrote them, see `state.load_state`; all processes must call it."""
        load_state(model, optimizer, folder)

    def full_state(self, model: nn.Module) -> dict[str, Tensor]:
        """The whole weights on the CPU in the first process, `{}` in the others; all processes must call it."""
        if self.mesh is None:
            return {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        with _quiet():
            state = cast(dict[str, Tensor], get_model_state_dict(model, options=options))
        return state if self.is_first else {}

    def barrier(self) -> None:
        """Wait until all processes are here."""
        if self.mesh is not None:
            dist.barrier()


def by_mesh(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """The parameters in groups that live on the same processes, which one fused operation can take together.

    An optimizer whose kernel takes many tensors at once needs a group of its own for each.
    """
    groups: dict[object, list[nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault(parameter.device_mesh if isinstance(parameter, DTensor) else None, []).append(parameter)
    yield from groups.values()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No advice from DTensor that a tensor cut on two sides of the mesh takes two exchanges: it does."""
    logger = logging.getLogger("torch.distributed.tensor._redistribute")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _launch() -> tuple[int, int]:
    """How many processes were started, and which this is."""
    told = os.environ.get("WORLD_SIZE", "1"), os.environ.get("RANK", "0" if "WORLD_SIZE" not in os.environ else "none")
    if not all(number.isdecimal() for number in told) or not 0 <= int(told[1]) < int(told[0]):
        raise InputError(f"WORLD_SIZE {told[0]} with RANK {told[1]}, expected two numbers as torchrun sets them")
    return int(told[0]), int(told[1])


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    place = torch.device(device)
    if place.type != "cuda" or place.index is not None:
        return place
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= torch.cuda.device_count():
        raise InputError(
            f"process {local} of this machine found {torch.cuda.device_count()} GPUs, expected one per process"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)
