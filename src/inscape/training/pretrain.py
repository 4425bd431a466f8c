"""Pretraining from token shards: what is asked for, put together; alone, or as one of the processes that torchrun started.

How long is a budget: steps, tokens, or minutes. Minutes are turned into steps once, before the first step: some steps of a
throw-away model are timed, and the number of steps that fit is kept in `budget.json`. A run that is started again keeps
it, so what is trained depends on the machine's speed at that moment and on nothing later.

The folder is the trainer's (see `trainer`), with `shards/` in it where a corpus was encoded first.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, field_serializer, model_validator
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from inscape.data.corpus.corpus import Corpus
from inscape.data.corpus.shards import TokenShards, encode_corpus, tokenizer_sha256
from inscape.errors import InputError
from inscape.models.loading import usable_device
from inscape.runs.lock import FolderLock
from inscape.runs.progress import ProgressReporter
from inscape.runs.writing import write_text
from inscape.training.architectures import SIZES, ModelConfig, build, flops_per_token
from inscape.training.bpe import padded_vocabulary
from inscape.training.machine import matmul_rate
from inscape.training.order import WindowOrder
from inscape.training.parallel import Layout, Parallel
from inscape.training.run_folder import agreed
from inscape.training.schedule import Course, Schedule
from inscape.training.trainer import BY_THE_WAY, Optimisation, Trained, TrainingConfig, adamw, backward, train

_TRIAL_SHARE, _TRIAL_SECONDS = 0.03, 20.0
"""Of a budget in minutes, what may go into timing steps, and the most of it."""
_FOR_STEPS = 0.96
"""Share of the minutes that go into steps; the rest is for saving."""
_ELSEWHERE = BY_THE_WAY | {"shards", "corpus", "tokenizer", "layout", "device", "threads", "processes"}


class PretrainConfig(Optimisation, Course):
    """``inscape pretrain``. Defaults train a nano model on a CPU for some minutes."""

    model: str | ModelConfig = Field(
        default="nano",
        description=f"a size ({', '.join(SIZES)}) or the fields of a shape; vocabulary, unless given: the tokenizer's",
    )
    shards: Path | None = Field(default=None, description="folder of token shards; or give corpus and tokenizer")
    corpus: Path | None = Field(default=None, description="folder of a built corpus, to be encoded")
    tokenizer: Path | None = Field(
        default=None, description="folder of a tokenizer; with shards only to be saved with the models"
    )
    languages: tuple[str, ...] | None = Field(default=None, description="languages to train on; none: all")
    alpha: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="languages are drawn by their size to this power; 1: one pass over all text (paper: 1)",
    )
    document_mask: bool = Field(default=True, description="attention stays inside a document (paper: it did not)")
    length: int = Field(default=256, ge=8, description="tokens of a row (paper: 2,048)")
    steps: int | None = Field(default=None, ge=1, description="budget: optimizer steps")
    tokens: int | None = Field(default=None, ge=1, description="budget: tokens (paper: 341 and 366 billion)")
    minutes: float | None = Field(
        default=None, gt=0, description="budget: time, turned into steps once, by the speed at the start"
    )
    layout: Layout = Field(default_factory=Layout, description="how the processes of torchrun share model and rows")
    seed: int = Field(default=0, ge=0, description="of the initial weights and of the order of text")
    device: str | None = Field(default=None, description="cpu or cuda (default: cuda if there is one)")
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads of each process (default: as torch has it)"
    )
    processes: int | None = Field(
        default=None, ge=1, description="processes that encode a corpus (default: one per core)"
    )

    @model_validator(mode="after")
    def _one_of_each(self) -> PretrainConfig:
        budgets = [name for name in ("steps", "tokens", "minutes") if getattr(self, name) is not None]
        if len(budgets) != 1:
            raise ValueError(f"budget: found {' and '.join(budgets) or 'none'}, expected one of steps, tokens, minutes")
        if (self.shards is None) == (self.corpus is None):
            raise ValueError("expected shards, or corpus and tokenizer")
        if self.corpus is not None and self.tokenizer is None:
            raise ValueError("a corpus without a tokenizer, expected both")
        if isinstance(self.model, str) and self.model not in SIZES:
            raise ValueError(f"model {self.model!r}: expected one of {', '.join(SIZES)}, or the fields of a shape")
        return self

    @field_serializer("model")
    def _as_given(self, model: str | ModelConfig) -> str | dict[str, Any]:
        # A vocabulary that was not given must not come back as one that was.
        return model if isinstance(model, str) else model.model_dump(exclude_unset=True)

    def identity(self) -> dict[str, Any]:
        """The fields that results depend on; data and tokenizer count by content."""
        return self.model_dump(mode="json", exclude=set(_ELSEWHERE))

    def model_for(self, tokens: int) -> ModelConfig:
        """The model for a tokenizer of so many tokens. Raises InputError if they don't fit."""
        shape = SIZES[self.model] if isinstance(self.model, str) else self.model
        given = set() if isinstance(self.model, str) else shape.model_fields_set
        if "vocabulary" not in given:
            shape = shape.model_copy(update={"vocabulary": padded_vocabulary(tokens)})
        if "context" not in given:
            shape = shape.model_copy(update={"context": max(self.length, shape.context)})
        if shape.vocabulary < tokens:
            raise InputError(
                f"model: a vocabulary of {shape.vocabulary} for a tokenizer of {tokens} tokens, expected as many"
            )
        if shape.context < self.length:
            raise InputError(f"model: a context of {shape.context} for rows of {self.length} tokens, expected as many")
        return shape


_OWN = PretrainConfig.model_fields.keys() - Optimisation.model_fields.keys() - Course.model_fields.keys()
"""Fields that the trainer doesn't already compare."""


@dataclass(frozen=True)
class Pretrained:
    """A finished run.

    Attributes:
        model: Hugging Face folder of the last checkpoint.
        shape: of the model.
        training: settings, with the number of steps that the budget gave.
        trained: losses and speed.
        passes: how often each language's text was read.
        shards: what it was trained on.
        matmul_rate: floating-point operations per second of one process's device, against which mfu is.
    """

    folder: Path
    model: Path
    shape: ModelConfig
    training: TrainingConfig
    trained: Trained
    passes: dict[str, float]
    shards: TokenShards
    matmul_rate: float


def pretrain(config: PretrainConfig, out: Path | str, *, progress: ProgressReporter | None = None) -> Pretrained:
    """Pretrain a model into `out`, or go on where an earlier call was stopped. All processes of a launch call it alike.

    Raises:
        InputError: data, tokenizer and model don't fit; `out` holds another run (the message names the field), or is
            being written by another process; training diverged. RunWriteError: `out` can't be written.
    """
    out = Path(out)
    progress = progress or ProgressReporter(quiet=True)
    device = None if config.device is None else str(usable_device(config.device))
    with _threads(config.threads), Parallel.start(config.layout, device=device) as parallel, _lock(out, parallel):
        tokenizer = None if config.tokenizer is None else read_tokenizer(config.tokenizer)
        shards = _shards(config, tokenizer, out, parallel, progress)
        shape = config.model_for(shards.vocabulary if tokenizer is None else max(shards.vocabulary, len(tokenizer)))
        schedule = _schedule(config, shape, shards, out, parallel)
        training = TrainingConfig(
            schedule=schedule, **{name: getattr(config, name) for name in Optimisation.model_fields}
        )
        order = _order(config, schedule, shards)
        dtype = torch.bfloat16 if config.dtype == "bf16" else torch.float32
        rate = matmul_rate(parallel.device, dtype)
        with progress.loop("pretraining: steps", schedule.steps) as advance:
            trained = train(
                build(shape, config.seed),
                order,
                training,
                out,
                identity={
                    "pretraining": {name: value for name, value in config.identity().items() if name in _OWN},
                    "shape": shape.model_dump(mode="json"),
                    "data": data_of(shards),
                },
                parallel=parallel,
                tokenizer=tokenizer,
                flops_per_token=flops_per_token(shape, config.length),
                matmul_rate=rate,
                advance=advance,
            )
    model = out / "checkpoints" / f"step-{schedule.steps}"
    return Pretrained(out, model, shape, training, trained, order.passes_after(schedule.steps), shards, rate)


def data_of(shards: TokenShards) -> dict[str, str]:
    """What the tokens are, by content."""
    return {"corpus": shards.corpus_sha256, "tokenizer": shards.tokenizer_sha256}


def _order(config: PretrainConfig, schedule: Schedule, shards: TokenShards) -> WindowOrder:
    languages = shards.languages if config.languages is None else config.languages
    parts = {language: shards.part("train", language) for language in languages}
    return WindowOrder(
        parts,
        schedule,
        config.length,
        seed=config.seed,
        alpha=config.alpha,
        document_mask=config.document_mask,
        filler=shards.eos_id,
    )


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder, or of a run folder with one in ``tokenizer/``. Raises InputError where there is none."""
    for place in (folder, folder / "tokenizer"):
        if (place / "tokenizer.json").is_file():
            try:
                return AutoTokenizer.from_pretrained(place)
            except (OSError, ValueError) as error:
                raise InputError(f"tokenizer {folder}: not readable ({str(error).splitlines()[0]})") from error
    raise InputError(
        f"tokenizer {folder}: no tokenizer.json in it, expected a folder that `inscape tokenizer train` made"
    )


def _shards(
    config: PretrainConfig,
    tokenizer: PreTrainedTokenizerFast | None,
    out: Path,
    parallel: Parallel,
    progress: ProgressReporter,
) -> TokenShards:
    if config.shards is not None:
        shards = TokenShards.open(config.shards)
        if tokenizer is not None and tokenizer_sha256(tokenizer) != shards.tokenizer_sha256:
            raise InputError(f"tokenizer {config.tokenizer}: not the one that {config.shards} was encoded with")
        return shards
    assert config.corpus is not None
    assert tokenizer is not None
    if parallel.is_first:
        corpus = Corpus.open(config.corpus)
        size = sum(sum(corpus.bytes_by_language(split).values()) for split in ("train", "validation"))
        with progress.loop("encoding: bytes", size) as advance:
            encode_corpus(corpus, tokenizer, out / "shards", processes=config.processes, progress=advance)
    parallel.barrier()
    return TokenShards.open(out / "shards")


def _schedule(
    config: PretrainConfig, shape: ModelConfig, shards: TokenShards, out: Path, parallel: Parallel
) -> Schedule:
    """The course over as many steps as the budget gives."""
    course = Course(**{name: getattr(config, name) for name in Course.model_fields})
    if config.steps is not None:
        return course.over(config.steps)
    if config.tokens is not None:
        return course.within(config.tokens, config.length)
    kept = out / "budget.json"
    if not agreed(parallel, int(kept.exists())):
        speed = _speed(config, course, shape, shards, parallel)
        if parallel.is_first:
            assert config.minutes is not None
            tokens = int(speed * config.minutes * 60 * _FOR_STEPS)
            found = {"minutes": config.minutes, "tokens_per_second": speed, "tokens": tokens}
            write_text(kept, json.dumps(found | {"steps": course.within(tokens, config.length).steps}) + "\n")
        parallel.barrier()
    try:
        return course.over(int(json.loads(kept.read_text(encoding="utf-8"))["steps"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{kept}: not readable ({error}), expected the number of steps of this run") from error


def _speed(
    config: PretrainConfig, course: Course, shape: ModelConfig, shards: TokenShards, parallel: Parallel
) -> float:
    """Tokens per second of full steps, all processes together, on a model that is thrown away."""
    assert config.minutes is not None
    training = TrainingConfig(
        schedule=course.model_copy(update={"ramp_from": None}).over(1000),
        **{name: getattr(config, name) for name in Optimisation.model_fields},
    )
    batches = _order(config, training.schedule, shards)
    model: nn.Module = parallel.apply(build(shape, config.seed))
    optimizer = adamw(model, training)
    seconds: list[float] = []
    until = time.monotonic() + min(_TRIAL_SHARE * config.minutes * 60, _TRIAL_SECONDS)
    # The first step also allocates; three are the least that say anything.
    while agreed(parallel, int(len(seconds) < 4 or time.monotonic() < until)):
        started = time.monotonic()
        float(backward(model, batches(len(seconds)), training, parallel))
        float(parallel.grad_norm_and_clip(model.parameters(), training.clip))
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.monotonic() - started)
    return course.rows * config.length / statistics.median(seconds[1:])


@contextlib.contextmanager
def _lock(out: Path, parallel: Parallel) -> Iterator[None]:
    """One launch per folder; its first process holds the lock for all."""
    if not parallel.is_first:
        yield
        return
    out.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(out)
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
