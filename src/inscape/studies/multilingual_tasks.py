"""A part of `multilingual-pretraining`: the model is finetuned on prompted tasks, and what that changes.

1. *Finetuning* is `inscape finetune` inside this run: examples of many tasks in the languages that were pretrained on;
   tests by what was new (items, prompts, languages, tasks); and two ablations, a loss on every token instead of on targets,
   and targets that count by their length instead of alike. Its languages that are held out, German and Russian, were
   not read in pretraining either.
2. *Choices* between answers by likelihood, before and after: XCOPA in the languages that were read, RTE, CrowS-Pairs.
3. *Translation* of Tatoeba test pairs, before and after, with no example in the prompt and with one.

Tables of finetuning are named as `inscape finetune` names them (``examples, counts, answers``), others ``tasks_…``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import polars as pl
import torch

from inscape.data.benchmarks import Choice, read_crows_pairs, read_rte, read_tatoeba, read_xcopa
from inscape.data.prompts.languages import NAMES
from inscape.evaluation.choices import rank
from inscape.evaluation.translation import translate
from inscape.models import LM, load
from inscape.runs import Run
from inscape.studies import finetune
from inscape.studies.finetune_summary import AFTER, BEFORE
from inscape.studies.multilingual_setup import Made
from inscape.studies.multilingual_tasks_page import figures, headlines, notes, reported, sections
from inscape.studies.multilingual_tasks_summary import score_translations, summary
from inscape.training.checkpoints import Checkpoints

HELD_OUT = ("de", "ru")
"""Languages that no finetuning sees. The mixture's own default; the model's tokenizer knows little of them."""

SHOTS = (0, 1)
_LENGTH = 256  # tokens of a row: prompts are longer than the rows that the smallest models are pretrained on
_PER_LANGUAGE = 10  # pairs of a language that are translated at least
_NEW_TOKENS = 64

T = TypeVar("T")


def stages(run: Run, made: Made) -> None:
    """Finetuning with its tests, then choices and translation by the model before and after it."""
    config, asked = finetuning(made)
    finetune.run(config, asked, run)
    models = {BEFORE: asked.model, AFTER: _last(finetuned(run))}

    def lm(variant: str) -> LM:
        return load(str(models[variant]), device=config.device or "cpu", dtype=torch.float32)

    def of(variant: str, rows: pl.DataFrame) -> pl.DataFrame:
        return rows.select(pl.lit(variant).alias("variant"), pl.all())

    run.map("tasks_choices", list(models), lambda variant: of(variant, _choices(lm(variant), run, made)))
    if languages := _to_translate(made):
        rows = run.map(
            "tasks_translation",
            list(models),
            lambda variant: of(variant, _translations(lm(variant), run, made, languages)),
        )
        run.stage("tasks_scores", lambda: {"tasks_scores": score_translations(rows, made.config.seed)})


def finetuning(made: Made) -> tuple[finetune.Config, finetune.Asked]:
    """What `inscape finetune` is asked for, with the study's sizes."""
    recipe, root = made.recipe, made.asked.corpora

    def there(language: str) -> bool:
        files = (root / "parallel" / f"tatoeba.{language}-en.tsv.gz", root / "pretrain" / f"{language}.jsonl.gz")
        return language in NAMES and any(file.is_file() for file in files)

    config = finetune.Config(
        languages=tuple(filter(there, made.config.languages)),
        held_out_languages=tuple(one for one in HELD_OUT if there(one) and one not in made.config.languages),
        per_prompt=recipe.per_prompt, test_per_prompt=recipe.test_per_prompt, steps=recipe.finetuning_steps,
        rows=recipe.rows, length=max(_LENGTH, recipe.length), ablate=True, dtype=recipe.dtype, seed=made.config.seed,
        device=made.config.device,
    )  # fmt: skip
    return config, finetune.Asked(_last(made.model), root)


def finetuned(run: Run) -> Path:
    """The training folder of the finetuned model."""
    return run.folder / "training" / AFTER


def _last(folder: Path) -> Path:
    return Path(Checkpoints(folder)[-1].source)


def _drawn(items: Sequence[T], most: int, *seed: object) -> list[T]:
    """At most ``most`` items, in their order."""
    places = random.Random(" ".join(map(str, seed))).sample(range(len(items)), min(most, len(items)))
    return [items[place] for place in sorted(places)]


def _choices(lm: LM, run: Run, made: Made) -> pl.DataFrame:
    """Rows of `rank`. Each language of XCOPA has items of its own, so that translations of one are not counted as two."""
    folder = made.asked.eval
    sets: list[list[Choice]] = [
        read_xcopa(folder / "xcopa", language)
        for language in made.config.languages
        if (folder / "xcopa" / f"{language}.test.jsonl").is_file()
    ]
    sets += [read_rte(folder / "rte"), read_crows_pairs(folder / "crows_pairs.csv")]
    parts = []
    for items in run.track(sets, "choices: sets", len(sets)):
        task, language = items[0].task, items[0].language
        parts.append(rank(lm, _drawn(items, made.recipe.items, made.config.seed, task, language)))
    return pl.concat(parts)


def _to_translate(made: Made) -> list[str]:
    """Languages with sentence pairs, those with most training text; as many as give each some of the pairs."""
    sizes = made.corpus.bytes_by_language()
    there = [
        language
        for language in sorted(made.config.languages, key=lambda one: -sizes.get(one, 0))
        if language in NAMES and (made.asked.parallel / f"tatoeba.{language}-en.tsv.gz").is_file()
    ]
    return there[: max(1, made.recipe.items // _PER_LANGUAGE)]


def _translations(lm: LM, run: Run, made: Made, languages: Sequence[str]) -> pl.DataFrame:
    """Rows of `translate` with ``shots``, both ways."""
    most, seed = max(2, made.recipe.items // len(languages)), made.config.seed
    parts = []
    for language in run.track(languages, "translation: languages", len(languages)):
        pairs = read_tatoeba(made.asked.parallel, language)
        asked = _drawn([pair for pair in pairs if pair.test], most, seed, language)
        example = _drawn([pair for pair in pairs if not pair.test], 1, seed, "example", language)
        for shots in SHOTS:
            for into in ("en", language):
                rows = translate(
                    lm, asked, NAMES, into=into, examples=example[:shots], max_new_tokens=_NEW_TOKENS, batch_size=64
                )
                parts.append(rows.with_columns(pl.lit(shots).alias("shots")))
    return pl.concat(parts)


__all__ = ["figures", "headlines", "notes", "reported", "sections", "stages", "summary"]
