"""Tasks of the lm-evaluation-harness (Gao et al.) on a checkpoint, for numbers that others can compare with theirs.

A checkpoint is a Hugging Face folder, which the harness loads by itself. It comes with the extra ``eval``; data that its
tasks need are downloaded, unless a task reads local files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from inscape.errors import InputError
from inscape.models.loading import check_folder

ROWS = {
    "task": pl.String, "metric": pl.String, "filter": pl.String, "value": pl.Float64, "stderr": pl.Float64,
    "items": pl.Int64, "version": pl.String,
}  # fmt: skip


def run_tasks(
    model: str | Path,
    tasks: Sequence[str],
    *,
    include: str | Path | None = None,
    limit: int | None = None,
    shots: int | None = None,
    batch_size: int = 16,
    device: str = "cpu",
    seed: int = 0,
) -> pl.DataFrame:
    """Results of tasks and of their subtasks, columns as in ``ROWS``.

    Args:
        model: checkpoint folder.
        tasks: names as the harness has them (``xcopa_et``, ``lambada_openai``).
        include: folder with more task files.
        limit: most items of a task.
        shots: examples in each prompt (default: the task's own).

    Raises:
        InputError: the harness is not installed, it has no such task, or the data can't be had; no checkpoint there.
    """
    check_folder(Path(model))
    if not tasks:
        raise InputError("lm-evaluation-harness: no task named, expected some")
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise InputError(
            f"tasks {', '.join(tasks)} need the lm-evaluation-harness ({error}): install the extra, inscape[eval]"
        ) from error
    manager = TaskManager(include_path=None if include is None else str(include))
    if unknown := [name for name in tasks if name not in manager.all_tasks]:
        raise InputError(f"lm-evaluation-harness has no task {unknown[0]!r} (`lm_eval ls tasks` lists them)")
    try:
        found = simple_evaluate(
            model="hf", model_args={"pretrained": str(model), "dtype": "float32"}, tasks=list(tasks), num_fewshot=shots,
            batch_size=batch_size, device=device, limit=limit, task_manager=manager, bootstrap_iters=1000,
            random_seed=seed, numpy_random_seed=seed, torch_random_seed=seed, fewshot_random_seed=seed,
        )  # fmt: skip
    except OSError as error:  # (no network, no data)
        raise InputError(f"lm-evaluation-harness: data of {', '.join(tasks)} not to be had ({error})") from error
    return table(found)


def table(found: dict[str, Any]) -> pl.DataFrame:
    """Rows of what ``simple_evaluate`` returns; a standard error that is no number is null."""
    rows = []
    for task, values in found["results"].items():
        for key, value in values.items():
            metric, _, chosen = key.partition(",")
            if metric.endswith("_stderr") or not chosen or not isinstance(value, int | float):
                continue
            error = values.get(f"{metric}_stderr,{chosen}")
            items = found.get("n-samples", {}).get(task, {}).get("effective")
            rows.append(
                {
                    "task": task, "metric": metric, "filter": chosen, "value": float(value),
                    "stderr": float(error) if isinstance(error, int | float) else None, "items": items,
                    "version": str(found.get("versions", {}).get(task, "")),
                }
            )  # fmt: skip
    return pl.DataFrame(rows, schema=ROWS)
