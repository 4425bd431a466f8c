"""What ``rerun`` saves the numeric studies: the stages that edit, both ways, on the LM that ``make demo`` trains.

Each study is run twice for a pair, into folders that are thrown away: as it is, and with ``LM.rerun`` replaced by what a
study did without it: every prompt repeated for every cell, and all of them generated in full in batches of the same size.
All else is the same, the scoring of the answers included. Both in one process, in alternation, without figures and page::

    seconds    of wall time, of the stage as the run's own manifest has it: the median over the pairs
    ratio      seconds in full / seconds with rerun: the median of the pairs' own ratios
    run        tokens × blocks that rerun ran, new tokens included, over those in full: the mean over the sweeps of a study
    differ     answers (texts) that are not the same both ways, in all pairs together

The LM is trained first if it is not in the cache (not timed). Without ``--smoke`` a pair takes about a minute.

    python benchmarks/studies.py [--repeat 3] [--smoke]
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import torch
from transformers.utils import logging

from inscape.models import LM, Edit, Generated, add
from inscape.runs import Run
from inscape.studies import STUDIES

STAGES = {
    "numeric-monotonic": {"layer_sweep": "output", "edits": "output", "side_effects": None},
    "numeric-comparison": {"layer_sweep": "edited", "interventions": "edited"},
}
"""By study: the stages that edit, and the column of their table that holds answers."""


def in_full(
    lm: LM, prompts: Sequence[str], cells: Sequence[Sequence[Edit]], wanted: Generated, *, mentions: Sequence[Any],
    batch_size: int,
) -> SimpleNamespace:  # fmt: skip
    """In place of ``LM.rerun``, for cells that add vectors at the same places, or nothing."""
    edits = []
    for turn, like in enumerate(max(cells, key=len)):
        added = [
            (cell[turn].strength * cell[turn].vector).expand(len(prompts), -1)
            if cell
            else torch.zeros(len(prompts), lm.d_model)
            for cell in cells
        ]
        edits.append(add(like.site, like.layer, torch.stack(added, 1).flatten(0, 1), tokens=like.tokens))
    ids = lm.generate_ids(
        [prompt for prompt in prompts for _ in cells], edits=edits, max_new_tokens=wanted.max_new_tokens,
        mentions=[mention for mention in mentions for _ in cells], batch_size=batch_size,
    )  # fmt: skip
    values = np.empty(len(ids), dtype=object)
    values[:] = list(map(tuple, ids)) if wanted.ids else lm.decode(ids)
    return SimpleNamespace(values=SimpleNamespace(values=values.reshape(len(prompts), len(cells))), share=1.0)


def measured(
    name: str, config: Any, facts: Any, rerun: Callable[..., Any]
) -> tuple[dict[str, float], list[pl.Series], list[float]]:
    """Seconds by stage, the answers, and the share of each sweep, of a study run with ``rerun``."""
    study, own, shares = STUDIES[name], LM.rerun, []

    def noted(*given: Any, **named: Any) -> Any:
        found = rerun(*given, **named)
        shares.append(found.share)
        return found

    LM.rerun = noted  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder, Run.open(
            Path(folder) / "run", name, config.identity(), seed=config.seed, inputs=study.inputs(config, facts), quiet=True
        ) as run:  # fmt: skip
            study.run(config, facts, run)
            stages = STAGES[name]
            seconds = {stage: run.manifest["stages"][stage]["seconds"] for stage in stages}
            answers = [run.table(stage)[column] for stage, column in stages.items() if column is not None]
            return seconds, answers, shares
    finally:
        LM.rerun = own  # type: ignore[method-assign]


def rows_of(name: str, repeat: int, smoke: bool) -> list[list[str]]:
    """The table's rows: one for each stage, and one for all."""
    study = STUDIES[name]
    config = study.config(threads=1, **(study.smoke if smoke else {}))
    facts = study.facts(config)
    pairs: list[tuple[dict[str, float], dict[str, float]]] = []
    differ = answers = 0
    for number in range(repeat):
        found = {}
        for way in (in_full, LM.rerun) if number % 2 == 0 else (LM.rerun, in_full):
            found[way is in_full] = measured(name, config, facts, way)
        (full, texts, _), (cut, same, shares) = found[True], found[False]
        pairs.append((full, cut))
        differ += sum(int(a.ne_missing(b).sum()) for a, b in zip(texts, same, strict=True))
        answers += sum(map(len, texts))
    rows = []
    for what, stages in [*((stage, [stage]) for stage in STAGES[name]), ("all of them", list(STAGES[name]))]:
        sums = [(sum(full[s] for s in stages), sum(cut[s] for s in stages)) for full, cut in pairs]
        slow, fast, ratio = (
            statistics.median(each) for each in zip(*((full, cut, full / cut) for full, cut in sums), strict=True)
        )
        rows.append([name, what, f"{slow:.2f}", f"{fast:.2f}", f"{ratio:.1f} ×", "", ""])
    rows[-1][-2:] = f"{statistics.mean(shares):.2f}", f"{differ} of {answers}"
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="pairs (default 3; at least 3 for a report)")
    parser.add_argument(
        "--smoke", action="store_true", help="the smallest sizes: shows that it runs, not what it costs"
    )
    args = parser.parse_args()
    if args.repeat < 1:
        parser.error("--repeat: expected 1 or more")
    logging.disable_progress_bar()
    print(
        "| study | stage | in full, s | rerun, s | ratio | run | differ |\n| --- | --- | ---: | ---: | ---: | ---: | ---: |"
    )
    for name in STAGES:
        for row in rows_of(name, args.repeat, args.smoke):
            print(f"| {' | '.join(row)} |", flush=True)
    print(f"\n{args.repeat} pairs, one thread, torch {torch.__version__}.")


if __name__ == "__main__":
    main()
