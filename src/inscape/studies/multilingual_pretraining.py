"""A BLOOM in miniature, from text to probes (P9: BigScience, arXiv 2211.05100; BLOOMZ, arXiv 2211.01786).

Question. What does a multilingual language model learn of the languages that it reads, and of those that it doesn't?

1. *making* (`multilingual_making`): text is cleaned and counted, a tokenizer fitted, a BLOOM trained, and its twins with
   learned positions and with none;
2. *bits* (`multilingual_bits`): bits per byte and per parallel sentence by language and checkpoint, beside n-gram models
   of the same text; how each position scheme holds on longer text;
3. *tasks* (`multilingual_tasks`): multitask prompted finetuning with its ablations, choices between answers, translation;
4. *probing* (`multilingual_probing`): what sentence states tell of morphology and syntax, by layer and checkpoint.

Departures: everything is small, and the text is other text; what that means for each number is on the study's page.
"""

from __future__ import annotations

import hashlib
import platform

import altair as alt
import torch

from inscape.errors import InputError
from inscape.runs import Page, Run, RunFolder
from inscape.studies import (
    multilingual_bits,
    multilingual_making,
    multilingual_making_page,
    multilingual_probing,
    multilingual_tasks,
)
from inscape.studies.multilingual_setup import SMOKE, Asked, Config, asked_for

_PARTS = (multilingual_bits, multilingual_tasks, multilingual_probing)


def inputs_of(config: Config, asked: Asked) -> dict[str, str]:
    """The texts by content, and the Python whose library is the code."""
    digest = hashlib.sha256()
    for part in ("pretrain", "eval", "parallel"):
        for file in sorted((asked.corpora / part).rglob("*")):
            if file.is_file():
                try:
                    with file.open("rb") as stream:
                        found = hashlib.file_digest(stream, "sha256").hexdigest()
                except OSError as error:
                    raise InputError(f"corpora {file}: {error.strerror}, expected a readable file") from error
                digest.update(f"{file.relative_to(asked.corpora)} {found}\n".encode())
    return {"corpora": digest.hexdigest(), "python": platform.python_version()}


def run(config: Config, asked: Asked, run: Run) -> None:
    """All stages, each resumable; writes the tables and the summary."""
    before = torch.get_num_threads()
    torch.set_num_threads(config.n_threads)
    try:
        made = multilingual_making.make(run, config, asked)
        for part in _PARTS:
            part.stages(run, made)
    finally:
        torch.set_num_threads(before)
    summary = multilingual_making.summary(run, config)
    for part in _PARTS:
        summary |= part.summary(run, config)
    run.summary(summary)


def figures(run: RunFolder) -> dict[str, alt.TopLevelMixin]:
    """All figures, by name."""
    charts = multilingual_making_page.figures(run)
    for part in _PARTS:
        charts |= part.figures(run)
    return charts


def page(run: RunFolder) -> Page:
    """The report's content."""
    parts = (*_PARTS, multilingual_making_page)
    return Page(
        title="A multilingual language model, made from scratch",
        lede=verdict(run),
        headlines=[line for part in parts for line in part.headlines(run)],
        sections=[
            *multilingual_making_page.sections(run),
            *(section for part in _PARTS for section in part.sections(run)),
        ],
        reported=[line for part in (multilingual_making_page, *_PARTS) for line in part.reported(run)],
        notes=[line for part in (multilingual_making_page, *_PARTS) for line in part.notes(run)],
        paper=(
            "BigScience Workshop, BLOOM: A 176B-Parameter Open-Access Multilingual Language Model (arXiv 2211.05100); "
            "Muennighoff et al., ACL 2023 (arXiv 2211.01786)"
        ),
    )


def verdict(run: RunFolder) -> str:
    """What came out, from the summary's numbers alone."""
    summary = run.read_summary()
    config = run.manifest["config"]
    cost = run.table("making_model_cost").row(0, named=True)

    def number(key: str, form: str = ".2f") -> str:
        value = summary.get(key)
        return "–" if value is None else format(float(value), form)

    below, lo, hi = (summary.get(f"bits_below_5gram_en{bound}") for bound in ("", "_lo", "_hi"))
    if below is None or lo is None or hi is None:
        beside = "was not held against n-grams"
    elif float(lo) > 0 or float(hi) < 0:
        how = "less" if float(lo) > 0 else "more"
        beside = f"needs {abs(float(below)):.2f} bits per byte {how} than a 5-gram model of the same text on English"
    else:
        beside = "needs no clearly different number of bits than a 5-gram model of the same text on English"
    return (
        f"A BLOOM of {cost['parameters'] / 1e6:.2g} million parameters read {cost['tokens'] / 1e6:.2g} million tokens in "
        f"{summary.get('n_languages')} languages. It {beside}, and {number('bits_seen_mean')} bits per byte on the parallel "
        f"sentences of languages that it read, {number('bits_unseen_mean')} on those held out "
        f"({', '.join(config['held_out'])}). Finetuned on prompted tasks, {number('finetune_valid_after', '.0%')} of its "
        f"answers are valid ({number('finetune_valid_before', '.0%')} before). Probes find grammar in its states at F1 "
        f"{number('probe_f1_mean')}, in an untrained model's at {number('probe_f1_random_init')}."
    )


__all__ = ["SMOKE", "Config", "asked_for", "figures", "inputs_of", "page", "run"]
