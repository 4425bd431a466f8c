"""The first part of `multilingual-pretraining`: corpus, tokenizer, model and its twins are made, and what that cost."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl
from scipy.optimize import curve_fit
from transformers import AutoTokenizer

from inscape.data.corpus.build import build_corpus
from inscape.data.corpus.config import CorpusConfig
from inscape.data.corpus.corpus import Corpus
from inscape.data.corpus.shards import encode_corpus
from inscape.data.corpus.shared import shared_sources
from inscape.runs import Run, RunFolder
from inscape.runs.folder import Scalar
from inscape.studies.multilingual_setup import Asked, Config, Made
from inscape.studies.tokenizer_train import read_sentences
from inscape.training.architectures import flops_per_token, parameters
from inscape.training.bpe import (
    fertility,
    not_restored,
    padded_vocabulary,
    texts_of,
    token_ratio,
    train_bpe,
    train_monolingual,
)
from inscape.training.energy import CPU_CORE, WORLD, co2_kg, energy_kwh
from inscape.training.metrics_log import read_metrics
from inscape.training.pretrain import PretrainConfig, Pretrained, pretrain

TWINS = ("alibi", "learned", "none")
_SAMPLE_BYTES = 15_000_000
_CURVE_POINTS = 200
_EXPORTS = 8


def make(run: Run, config: Config, asked: Asked) -> Made:
    """Everything that later parts measure; each folder is finished, taken up again, or there already."""
    corpus = _corpus(run, config, asked)
    tokenizer = _tokenizer(run, config, asked, corpus)
    fast = AutoTokenizer.from_pretrained(tokenizer)
    size = sum(sum(corpus.bytes_by_language(split).values()) for split in ("train", "validation"))
    with run.progress("tokens: bytes", size) as advance:
        tokens = encode_corpus(corpus, fast, run.folder / "tokens", processes=config.n_threads, progress=advance)
    made = Made(
        run=run, config=config, asked=asked, corpus=corpus, tokenizer=tokenizer, tokens=tokens, model=run.folder / "model",
        twins={position: run.folder / "twins" / position for position in TWINS},
    )  # fmt: skip
    run.stage("making_text", lambda: {"making_text": _text(made)})
    _pretrained(run, made, "model", made.model, config.recipe.tokens, "alibi")
    for position, folder in made.twins.items():
        _pretrained(run, made, f"twin_{position}", folder, config.recipe.twin_tokens, position)
    run.stage("making_law", lambda: {"making_law": _law(run)})
    return made


def _corpus(run: Run, config: Config, asked: Asked) -> Corpus:
    sources = tuple(
        source.model_copy(update={"weight": config.recipe.share}) for source in shared_sources(asked.corpora)
    )
    held_out = tuple(language for language in config.held_out)
    wanted = CorpusConfig(sources=sources, languages=config.languages, held_out=held_out, seed=config.seed)

    def build() -> dict[str, pl.DataFrame]:
        started = time.monotonic()
        record = build_corpus(wanted, run.folder / "corpus", processes=config.n_threads, progress=run.progress)
        run.record(seconds_corpus=round(time.monotonic() - started, 1))
        rows = pl.DataFrame(record["counts"], schema=record["columns"], orient="row", infer_schema_length=None)
        return {"making_corpus": rows}

    run.stage("making_corpus", build)
    return Corpus.open(run.folder / "corpus")


def _tokenizer(run: Run, config: Config, asked: Asked, corpus: Corpus) -> Path:
    """Train the tokenizer, and hold it against one for each language of the parallel sentences alone."""
    folder = run.folder / "tokenizer"
    texts = texts_of(corpus)

    def train() -> dict[str, pl.DataFrame]:
        started = time.monotonic()
        shared = train_bpe(
            corpus, config.recipe.vocabulary, sample_bytes=_SAMPLE_BYTES, seed=config.seed, progress=run.reporter
        )
        shared.save_pretrained(folder)
        run.record(seconds_tokenizer=round(time.monotonic() - started, 1))
        rows = []
        sentences = read_sentences(asked.pud)
        compared = [language for language in sorted(sentences) if language in texts][: config.recipe.compared]
        for language, lines in run.track(sorted(sentences.items()), "tokenizer: languages", len(sentences)):
            found = fertility(shared, lines)
            row = {
                "language": language, "seen": language in corpus.languages, "sentences": len(lines),
                "not_restored": len(not_restored(shared, lines)), "bytes_per_token": found.bytes_per_token,
                "tokens_per_word": found.per_word, "ratio": None, "ratio_lo": None, "ratio_hi": None,
            }  # fmt: skip
            if language in compared:
                alone = train_monolingual(
                    {language: texts[language]}, config.recipe.vocabulary, sample_bytes=_SAMPLE_BYTES, seed=config.seed
                )
                ratio = token_ratio(shared, alone, lines, seed=config.seed)
                row |= {"ratio": ratio.value, "ratio_lo": ratio.lo, "ratio_hi": ratio.hi}
            rows.append(row)
        return {"making_tokenizer": pl.DataFrame(rows, infer_schema_length=None)}

    run.stage("making_tokenizer", train)
    return folder


def _text(made: Made) -> pl.DataFrame:
    """By language: what is trained on."""
    documents, sizes = made.corpus.documents_by_language(), made.corpus.bytes_by_language()
    counts = made.tokens.tokens_by_language()
    return pl.DataFrame(
        [
            {"language": name, "documents": documents[name], "bytes": sizes[name], "tokens": counts[name]}
            for name in made.corpus.languages
        ]
    ).sort("bytes", descending=True)


def _pretrained(run: Run, made: Made, name: str, folder: Path, budget: int, position: str) -> None:
    """Train one model, and keep its loss curve and its costs as tables ``making_<name>`` and ``..._cost``."""
    recipe, config = made.recipe, made.config
    shape = config.model.model_copy(
        update={
            "position": position,
            "vocabulary": padded_vocabulary(len(AutoTokenizer.from_pretrained(made.tokenizer))),
            # (Learned positions: rows that training never meets, so that longer text can be put to the twin at all. A model
            # without positions is written as a GPT-2, which has such a table too.)
            "context": recipe.length * (1 if position == "alibi" else 8),
        }
    )
    steps = budget // (recipe.rows * recipe.length)

    def train() -> dict[str, pl.DataFrame]:
        result = pretrain(
            PretrainConfig(
                model=shape, shards=made.tokens.folder, tokenizer=made.tokenizer, length=recipe.length, rows=recipe.rows,
                tokens=budget, learning_rate=recipe.learning_rate, dtype=recipe.dtype, seed=config.seed,
                export_every=max(1, steps // _EXPORTS) if name == "model" else None, export_powers=name == "model",
                device=config.device, threads=config.threads,
            ),
            folder,
            progress=run.reporter,
        )  # fmt: skip
        return {f"making_{name}": _curve(folder), f"making_{name}_cost": _cost(result, recipe.length, config)}

    run.stage(f"making_{name}", train)


def _curve(folder: Path) -> pl.DataFrame:
    """The loss by step, as means over equal stretches."""
    rows = pl.DataFrame([asdict(line) for line in read_metrics(folder)], infer_schema_length=None)
    stretch = -(-rows.height // _CURVE_POINTS)
    return (
        rows.group_by((pl.int_range(pl.len()) // stretch).alias("stretch"), maintain_order=True)
        .agg(pl.col("step", "tokens").last(), pl.col("loss", "grad_norm", "learning_rate").mean())
        .drop("stretch")
    )


def _cost(result: Pretrained, length: int, config: Config) -> pl.DataFrame:
    trained = result.trained
    found = read_metrics(result.folder)
    speeds = np.array([row.tokens_per_second for row in found])
    counts = np.diff([0, *(row.tokens for row in found)])
    seconds = float((counts / speeds).sum())
    per_token = flops_per_token(result.shape, length)
    kwh = energy_kwh(seconds, CPU_CORE * config.n_threads)
    return pl.DataFrame(
        [
            {
                "steps": trained.steps, "tokens": trained.tokens, "skipped": len(trained.skipped), "seconds": seconds,
                "tokens_per_second": float(np.median(speeds)), "flops_per_token": per_token,
                "mfu": float(np.median(speeds)) * per_token / result.matmul_rate, "matmul_rate": result.matmul_rate,
                "kwh": kwh, "co2_kg": co2_kg(kwh, WORLD), "parameters": parameters(result.shape),
                **{f"passes_{name}": value for name, value in result.passes.items()},
            }
        ]
    )  # fmt: skip


def _law(run: RunFolder) -> pl.DataFrame:
    """Loss = floor + a * FLOPs^-b, fitted to the loss curve after warm-up."""
    curve, cost = run.table("making_model"), run.table("making_model_cost")
    after = curve.filter(pl.col("tokens") > 0.05 * pl.col("tokens").max())
    flops = after["tokens"].to_numpy().astype(float) * float(cost["flops_per_token"][0])
    return pl.DataFrame([fitted_law(flops, after["loss"].to_numpy())])


def fitted_law(flops: np.ndarray, loss: np.ndarray) -> dict[str, float | None]:
    """``floor``, ``a`` and ``b`` of ``floor + a (flops / last)^-b``, so ``a`` is what is above the floor at the last.

    None where nothing fits.
    """
    last = float(flops[-1])

    def law(x: np.ndarray, floor: float, a: float, b: float) -> np.ndarray:
        return floor + a * x**-b

    try:
        (floor, a, b), _ = curve_fit(
            law, flops / last, loss, p0=(loss[-1] / 2, loss[-1] / 2, 0.3), bounds=([0, 0, 0], [np.inf, np.inf, 3])
        )
    except (RuntimeError, ValueError):
        return {"floor": None, "a": None, "b": None, "flops": last, "rms": None}
    rms = float(np.sqrt(np.mean((law(flops / last, floor, a, b) - loss) ** 2)))
    return {"floor": float(floor), "a": float(a), "b": float(b), "flops": last, "rms": rms}


def summary(run: RunFolder, config: Config) -> dict[str, Scalar]:
    """Speed, energy and size of what was made."""
    cost = run.table("making_model_cost").row(0, named=True)
    law = run.table("making_law").row(0, named=True)
    text = run.table("making_text")
    tokenizer = run.table("making_tokenizer")
    twins = [run.table(f"making_twin_{position}_cost") for position in TWINS]
    return {
        "tokens_per_second": cost["tokens_per_second"],
        "mfu": cost["mfu"],
        "tokens_trained": cost["tokens"],
        "final_loss": float(run.table("making_model")["loss"][-1]),
        "energy_kwh": cost["kwh"] + sum(float(twin["kwh"][0]) for twin in twins),
        "co2_kg": cost["co2_kg"] + sum(float(twin["co2_kg"][0]) for twin in twins),
        "law_exponent": law["b"],
        "n_languages": text.height,
        "corpus_bytes": int(text["bytes"].sum()),
        "corpus_tokens": int(text["tokens"].sum()),
        "sentences_not_restored": int(tokenizer["not_restored"].sum()),
        "languages_within_10_percent": int((tokenizer["ratio"].drop_nulls() <= 1.1).sum()),
        "languages_compared": tokenizer["ratio"].drop_nulls().len(),
    }


def removed(run: RunFolder) -> pl.DataFrame:
    """By step of the corpus' cleaning: documents and bytes in and out, over languages and sources."""
    return (
        run.table("making_corpus")
        .group_by("step", maintain_order=True)
        .agg(pl.col("documents_in", "documents_out", "bytes_in", "bytes_out").sum())
    )
