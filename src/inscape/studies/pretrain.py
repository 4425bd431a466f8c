"""`inscape pretrain`: a language model trained from token shards, and a report on how that went.

Alone, or as the processes of ``torchrun --nproc-per-node N``: the first one writes and reports, the others follow. The
folder holds the training (see `inscape.training.trainer`) beside the tables and the page. Each checkpoint is then read
back as a user would, and its loss on held-back text is measured by language.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from pydantic import Field

from inscape.data.corpus.corpus import Corpus
from inscape.data.corpus.shards import TokenShards, tokenizer_sha256
from inscape.runs import Run, bootstrap_paired
from inscape.runs.folder import RunFolder, Scalar
from inscape.training.architectures import load_hf, parameters
from inscape.training.checkpoints import Checkpoint, Checkpoints
from inscape.training.loss import token_losses
from inscape.training.metrics_log import read_metrics
from inscape.training.order import WindowOrder
from inscape.training.pretrain import PretrainConfig, Pretrained, pretrain, read_tokenizer
from inscape.training.schedule import Schedule

_ROWS = 16
_LAST = 0.05
"""Share of the steps whose mean is the final training loss."""


class Config(PretrainConfig):
    """``inscape pretrain``: data, shape, budget and recipe of a run."""

    validation_windows: int = Field(
        default=16, ge=1, description="rows of held-back text that each checkpoint is tested on, by language"
    )


SMOKE = {
    "model": {"width": 32, "layers": 2, "heads": 2}, "steps": 20, "rows": 8, "length": 32, "learning_rate": 5e-3,
    "ramp_from": 4, "ramp_share": 0.2, "validation_windows": 2,
}  # fmt: skip
"""What ``--smoke`` sets: the whole pipeline at the smallest sizes. Data must be given."""


@dataclass(frozen=True)
class Asked:
    """Content of what a run is trained on."""

    corpus: str
    tokenizer: str


def asked_for(config: Config) -> Asked:
    """What a config asks for. Raises InputError for data that can't be read."""
    if config.shards is not None:
        shards = TokenShards.open(config.shards)
        return Asked(shards.corpus_sha256, shards.tokenizer_sha256)
    assert config.corpus is not None
    assert config.tokenizer is not None
    return Asked(Corpus.open(config.corpus).sha256, tokenizer_sha256(read_tokenizer(config.tokenizer)))


def inputs_of(config: Config, asked: Asked) -> dict[str, str]:
    """What a run depends on, by content."""
    return {"corpus": asked.corpus, "tokenizer": asked.tokenizer}


def follow(config: Config, asked: Asked, out: Path) -> None:
    """What all processes of a launch but the first do."""
    pretrain(config, out)


def run(config: Config, asked: Asked, run: Run) -> None:
    """Train, test every checkpoint, and write tables and summary."""
    made = pretrain(config, run.folder, progress=run.reporter)
    run.record(
        model=made.shape.model_dump(mode="json"),
        parameters=parameters(made.shape),
        steps=made.training.schedule.steps,
        matmul_rate=made.matmul_rate,
        final_model=str(made.model.relative_to(run.folder)),
    )
    run.stage("steps", lambda: {"steps": pl.DataFrame(read_metrics(run.folder))})
    run.stage("languages", lambda: {"languages": _languages(made)})
    checkpoints = {str(checkpoint.step): checkpoint for checkpoint in Checkpoints(run.folder)}
    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    run.map("validation", list(checkpoints), lambda step: _validated(checkpoints[step], made, config, device))
    run.summary(summarise(run, config.seed))


def _languages(made: Pretrained) -> pl.DataFrame:
    train, held_back = (made.shards.tokens_by_language(split) for split in ("train", "validation"))
    rows = [
        {
            "language": name,
            "tokens": train[name],
            "validation_tokens": held_back[name],
            "tokens_per_byte": _tokens_per_byte(made.shards, name),
            "passes": passes,
        }
        for name, passes in made.passes.items()
    ]
    return pl.DataFrame(rows, infer_schema_length=None).sort("tokens", descending=True)


def _tokens_per_byte(shards: TokenShards, language: str) -> float | None:
    part = shards.part("validation", language)
    size = int(part.bytes.sum())
    return len(part.tokens) / size if size else None


def _validated(checkpoint: Checkpoint, made: Pretrained, config: Config, device: str) -> pl.DataFrame:
    """Loss of one checkpoint on windows of held-back text: ``step, tokens, language, window, nats, targets``."""
    parts = {name: made.shards.part("validation", name) for name in made.passes}
    held_back = {name: part for name, part in parts.items() if len(part.tokens) > 1}
    if not held_back:
        return pl.DataFrame(schema=_VALIDATION)
    windows = WindowOrder(held_back, Schedule(), config.length, seed=0, filler=made.shards.eos_id)
    assert checkpoint.path is not None
    model = load_hf(checkpoint.path).to(device).eval()
    rows = []
    for number, language in enumerate(windows.languages):
        n = min(config.validation_windows, int(windows.windows[number]))
        for first in range(0, n, _ROWS):
            which = np.arange(first, min(first + _ROWS, n))
            batch = windows.batch(np.full(len(which), number), which)
            with torch.no_grad():
                hidden_BTD = model(batch.ids.to(device), None if batch.segments is None else batch.segments.to(device))
                losses_N = token_losses(hidden_BTD.flatten(0, 1), model.head_weight, batch.targets.flatten().to(device))
            counted_BT = losses_N.cpu().view(batch.ids.shape).double() * batch.weights
            rows += [
                {"step": checkpoint.step, "tokens": checkpoint.tokens, "language": language, "window": int(window),
                 "nats": float(nats), "targets": int(targets)}
                for window, nats, targets in zip(which, counted_BT.sum(1), batch.weights.sum(1), strict=True)
            ]  # fmt: skip
    return pl.DataFrame(rows, schema=_VALIDATION)


_VALIDATION = {
    "step": pl.Int64, "tokens": pl.Int64, "language": pl.String, "window": pl.Int64, "nats": pl.Float64, "targets": pl.Int64,
}  # fmt: skip


def by_language(run: RunFolder) -> pl.DataFrame:
    """``step, tokens, language, loss`` (nats per token) ``, bits_per_byte`` of every checkpoint."""
    return (
        run.table("validation")
        .group_by("step", "tokens", "language", maintain_order=True)
        .agg((pl.col("nats").sum() / pl.col("targets").sum()).alias("loss"))
        .join(run.table("languages").select("language", "tokens_per_byte"), on="language", how="left")
        .with_columns((pl.col("loss") / math.log(2) * pl.col("tokens_per_byte")).alias("bits_per_byte"))
        .drop("tokens_per_byte")
        .sort("step", "language")
    )


def summarise(run: RunFolder, seed: int) -> dict[str, Scalar]:
    """The headline numbers, from the run's tables."""
    steps, languages = run.table("steps"), run.table("languages")
    last = steps.tail(max(1, round(_LAST * steps.height)))
    speed = float(steps["tokens_per_second"].median())  # type: ignore[arg-type]
    summary: dict[str, Scalar] = {
        "parameters": run.manifest["record"]["parameters"],
        "steps": steps.height,
        "tokens": int(steps["tokens"][-1]),
        "train_loss": float(last["loss"].mean()),  # type: ignore[arg-type]
        "tokens_per_second": speed,
        "mfu": float(steps["mfu"].median()),  # type: ignore[arg-type]
        "spikes": int(steps["skipped"].sum()),
        "passes_most": languages["passes"].max(),  # type: ignore[dict-item]
    }
    held_back = by_language(run)
    if held_back.height:
        final = held_back.filter(pl.col("step") == held_back["step"].max())
        windows = run.table("validation").filter(pl.col("step") == held_back["step"].max(), pl.col("targets") > 0)

        def mean(nats: np.ndarray, targets: np.ndarray, axis: int | None = None) -> np.ndarray:
            return nats.sum(axis) / targets.sum(axis)

        found = bootstrap_paired(windows["nats"], windows["targets"], mean, seed=seed)
        summary |= found.summary("validation_loss")
        summary["bits_per_byte_mean"] = final["bits_per_byte"].mean()  # type: ignore[assignment]
        summary |= {
            f"bits_per_byte_{language}": bits
            for language, bits in zip(final["language"], final["bits_per_byte"], strict=True)
        }
    return summary
