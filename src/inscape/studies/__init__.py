"""The studies: one module per published system. A study composes the rooms below and holds no mechanism of its own.

A study is a ``Config`` (every field typed, bounded, documented), a function that fills a run, and a page made from the
run's tables. The command line, a YAML file and a notebook all build the same ``Config``::

    from inscape.studies import STUDIES, run_study
    folder = run_study("numeric-monotonic", {"model": "path/or/hub-id", "data": "facts.tsv"}, "runs/mine")
    folder.read_summary()["r2_test"]
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inscape.errors import InputError
from inscape.runs import Run, RunFolder, read_run
from inscape.runs.figures import draw
from inscape.studies import (
    causal_tracing,
    causal_tracing_figures,
    causal_tracing_page,
    detokenization,
    detokenization_figures,
    detokenization_page,
    multilingual_pretraining,
    numeric_comparison,
    numeric_comparison_page,
    numeric_monotonic,
    numeric_monotonic_page,
    numeric_setup,
)
from inscape.studies.commands import COMMANDS
from inscape.studies.study import Study

STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        Study(
            "numeric-monotonic",
            "numeric properties as monotonic directions: read them, move them, see what else moves",
            "Heinzerling & Inui, ACL 2024 (arXiv 2403.10381)",
            numeric_monotonic.Config,
            numeric_monotonic.SMOKE,
            numeric_setup.facts_for,
            numeric_setup.inputs_of,
            numeric_monotonic.run,
            numeric_monotonic_page.figures,
            numeric_monotonic_page.page,
        ),
        Study(
            "numeric-comparison",
            "comparing numbers in a linear subspace: behaviour, where it is readable, what turns the answer",
            "El-Shangiti et al., NAACL 2025 (arXiv 2410.13194)",
            numeric_comparison.Config,
            numeric_comparison.SMOKE,
            numeric_setup.facts_for,
            numeric_setup.inputs_of,
            numeric_comparison.run,
            numeric_comparison_page.figures,
            numeric_comparison_page.page,
        ),
        Study(
            "causal-tracing",
            "which states carry a fact to the answer: restored under noise, patched between prompts, estimated by gradient",
            "Meng et al., NeurIPS 2022 (arXiv 2202.05262)",
            causal_tracing.Config,
            causal_tracing.SMOKE,
            causal_tracing.asked_for,
            causal_tracing.inputs_of,
            causal_tracing.run,
            causal_tracing_figures.figures,
            causal_tracing_page.page,
        ),
        Study(
            "detokenization",
            "first-layer attention read from weights: which tokens and positions a head looks for, and how far that holds",
            "Kamoda et al., Findings of NAACL 2025 (arXiv 2501.15754)",
            detokenization.Config,
            detokenization.SMOKE,
            detokenization.asked_for,
            detokenization.inputs_of,
            detokenization.run,
            detokenization_figures.figures,
            detokenization_page.page,
        ),
        Study(
            "multilingual-pretraining",
            "a BLOOM in miniature: corpus, tokenizer, training, finetuning, and what it learned of which language",
            "BigScience, 2022 (arXiv 2211.05100)",
            multilingual_pretraining.Config,
            multilingual_pretraining.SMOKE,
            multilingual_pretraining.asked_for,
            multilingual_pretraining.inputs_of,
            multilingual_pretraining.run,
            multilingual_pretraining.figures,
            multilingual_pretraining.page,
        ),
    )
}


def study_named(name: str) -> Study:
    """A study or a command by name; InputError otherwise."""
    known = STUDIES | COMMANDS
    if name not in known:
        raise InputError(f"no study {name!r}: expected one of {', '.join(known)}")
    return known[name]


def run_study(name: str, config: Any, out: str | Path, *, quiet: bool = False) -> RunFolder:
    """Run a study into a folder, or go on where a killed run stopped, or do nothing where it is done.

    Args:
        config: the study's ``Config``, or a mapping of its fields.

    Raises:
        InputError: a bad config, model or facts table; or a folder of another run.
    """
    study = study_named(name)
    if isinstance(config, Mapping):
        config = study.config(**config)
    facts = study.facts(config)
    if study.follow is not None and int(os.environ.get("RANK", "0")) > 0:
        study.follow(config, facts, Path(out))
        return RunFolder(Path(out), {})
    with Run.open(
        out, name, config.identity(), seed=config.seed, inputs=study.inputs(config, facts), quiet=quiet
    ) as run:
        if not run.done:
            study.run(config, facts, run)
            for figure, chart in study.figures(run).items():
                run.figure(figure, chart)
            run.finish(study.page(run))
        return run


def rebuild_report(folder: str | Path) -> Path:
    """Draw the figures and write the page again from the tables of a run; returns the page's path."""
    run = read_run(folder)
    study = study_named(run.study)
    if not run.done:
        return run.rewrite_report()
    for name, chart in study.figures(run).items():
        draw(run.folder / "figures", name, chart)
    return run.rewrite_report(study.page(run))


__all__ = ["COMMANDS", "STUDIES", "Study", "rebuild_report", "run_study", "study_named"]
