"""A part of `multilingual-pretraining`: bits per byte and per parallel sentence, and how positions hold on longer text.

1. *Series*: PUD's sentences, the same ones in all its languages, are scored by checkpoints spread over the training (each
   sentence after the token that ends documents, as documents begin in training); the last checkpoint scores more of them,
   and paragraphs of XQuAD in the languages that PUD lacks.
2. *N-grams*: a unigram and an interpolated Kneser-Ney 5-gram model of the very tokens that could be trained on score the
   same sentences in the same tokens.
3. *Positions*: the main model and its twins (ALiBi, learned positions, none; trained alike) predict the last tokens of
   windows of long held-back documents from contexts up to eight times as long as the rows that they were trained on.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping

import numpy as np
import polars as pl
from transformers import AutoTokenizer

from inscape.data.benchmarks import read_parallel
from inscape.errors import InputError
from inscape.evaluation.bits import ngram_bits, text_bits
from inscape.evaluation.ngrams import KneserNey
from inscape.evaluation.positions import context_losses, long_windows
from inscape.models import LM, load
from inscape.runs import Run
from inscape.studies.multilingual_bits_page import figures, headlines, notes, reported, sections
from inscape.studies.multilingual_bits_summary import summary
from inscape.studies.multilingual_setup import Made
from inscape.training.checkpoints import Checkpoint, Checkpoints

_SERIES = 10
"""Checkpoints that are scored, at most; also at most twice as many as are probed."""
_LAST = 4
"""Times as many sentences for the last one."""
_WINDOWS = 16
_TARGETS = 32
_FACTORS = (1, 2, 4, 8)


def stages(run: Run, made: Made) -> None:
    """Tables ``bits_…``."""
    texts = _texts(made)
    shown = spread(
        [checkpoint.step for checkpoint in Checkpoints(made.model)], min(_SERIES, 2 * made.recipe.probe_checkpoints)
    )
    checkpoints = {str(c.step): c for c in Checkpoints(made.model) if c.step in shown}
    last = str(max(shown))

    def score(step: str) -> pl.DataFrame:
        lm = _lm(checkpoints[step], made)
        parts = []
        for (source, language), lines in texts.items():
            if source == "PUD" or step == last:
                few = _few(made, source, step == last)
                rows = text_bits(lm, list(lines.values())[:few], start=made.tokens.eos_id)
                parts.append(_of(rows, source, language, made))
        tokens = checkpoints[step].tokens
        return pl.concat(parts).with_columns(step=pl.lit(int(step)), read=pl.lit(tokens, pl.Int64))

    run.map("bits_series", list(checkpoints), score)
    run.stage("bits_ngrams", lambda: {"bits_ngrams": _ngrams(run, made, texts)})
    run.stage("bits_positions", lambda: {"bits_positions": _positions(run, made)})


def spread(steps: list[int], most: int) -> list[int]:
    """At most `most` of the steps, the first and the last among them, evenly by the logarithm."""
    steps = sorted(steps)
    if len(steps) <= most:
        return steps
    logs = np.log1p(steps)
    wanted = np.linspace(logs[0], logs[-1], most)
    return sorted({steps[int(np.abs(logs - place).argmin())] for place in wanted})


def _texts(made: Made) -> dict[tuple[str, str], Mapping[str, str]]:
    """Sentences by source and language: those of PUD, and paragraphs of XQuAD in languages that PUD lacks."""
    found: dict[tuple[str, str], Mapping[str, str]] = {
        ("PUD", language): lines for language, lines in read_parallel(made.asked.pud).items()
    }
    languages = {language for _, language in found}
    for file in sorted((made.asked.eval / "xquad").glob("*.json.gz")):
        language = file.name.partition(".")[0]
        if language not in languages:
            found["XQuAD", language] = xquad_paragraphs(file)
    return found


def xquad_paragraphs(file: object) -> dict[str, str]:
    """The paragraphs of an XQuAD file, by place. Raises InputError for another file."""
    try:
        with gzip.open(str(file), "rt", encoding="utf-8") as stream:
            articles = json.load(stream)["data"]
        return {
            f"{i}-{j}": paragraph["context"]
            for i, article in enumerate(articles)
            for j, paragraph in enumerate(article["paragraphs"])
        }
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file}: not a file of XQuAD ({type(error).__name__}: {error}), expected SQuAD's JSON"
        ) from error


def _few(made: Made, source: str, last: bool) -> int:
    """Texts of a language that are scored; a paragraph is some ten sentences."""
    return made.recipe.sentences * (_LAST if last and source == "PUD" else 1)


def _lm(checkpoint: Checkpoint, made: Made) -> LM:
    return load(checkpoint.load(), checkpoint.tokenizer(), device=made.config.device)


def _of(rows: pl.DataFrame, source: str, language: str, made: Made) -> pl.DataFrame:
    seen = language in made.config.languages
    return rows.with_columns(source=pl.lit(source), language=pl.lit(language), seen=pl.lit(seen))


def _ngrams(run: Run, made: Made, texts: Mapping[tuple[str, str], Mapping[str, str]]) -> pl.DataFrame:
    """The same sentences as the last checkpoint's, by models of all training tokens."""
    tokenizer = AutoTokenizer.from_pretrained(made.tokenizer)
    parts = [made.tokens.part("train", language) for language in made.tokens.languages]
    found = []
    for order, name in ((1, "unigram"), (5, "5-gram")):
        with run.progress(f"{name}: orders", order) as advance:
            documents = (part.document(i) for part in parts for i in range(part.n_documents))
            model = KneserNey(order).fit(documents, made.tokens.vocabulary, advance)
        for (source, language), lines in texts.items():
            few = _few(made, source, True)
            rows = ngram_bits(model, tokenizer, list(lines.values())[:few], start=made.tokens.eos_id)
            found.append(_of(rows, source, language, made).with_columns(model=pl.lit(name)))
    return pl.concat(found)


def _positions(run: Run, made: Made) -> pl.DataFrame:
    """Loss of the last tokens of long windows, by model and length of context."""
    trained = made.recipe.length
    documents = [
        part.document(i)
        for language in made.tokens.languages
        if language != "code"
        for part in [made.tokens.part("validation", language)]
        for i in range(part.n_documents)
    ]
    longest = max(map(len, documents), default=0)
    lengths = [trained * factor for factor in _FACTORS if trained * factor <= longest]
    if not lengths:
        run.record(no_long_documents=longest)
        return pl.DataFrame(schema={"model": pl.String, "length": pl.Int64})
    windows = long_windows(documents, lengths[-1], _WINDOWS, seed=made.config.seed)
    parts = []
    for name, folder in {"model": made.model, **made.twins}.items():
        lm = _lm(Checkpoints(folder)[-1], made)
        losses = context_losses(lm, windows, lengths, targets=min(_TARGETS, trained // 2))
        parts.append(losses.with_columns(model=pl.lit(name)))
    return pl.concat(parts)


__all__ = ["figures", "headlines", "notes", "reported", "sections", "spread", "stages", "summary", "xquad_paragraphs"]
