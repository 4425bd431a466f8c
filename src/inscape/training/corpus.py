"""Train a small GPT-2 or BLOOM on text files, and save it as a Hugging Face folder.

Enough of a language model for what its first layer does with tokens and positions: a byte-level BPE fitted to the text,
windows drawn from it at random, and a held-out part of the documents on which the loss is told beside that of word
frequencies alone. The same files and config give the same folder (`cached_corpus_lm` keeps one of each).

The vocabulary is small by default: most words are then several tokens, and a model has pieces to join. With some thousand
tokens and a few megabytes of text most words are one token, and little is learned of pairs.

`untrained` gives the same architecture with the weights that training began from, or would begin from: the model that
a claim about learned weights has to be held against.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from inscape.data.corpus import corpus_hash, read_documents
from inscape.data.corpus import documents as corpus_files
from inscape.errors import InputError
from inscape.runs.lock import FolderLock
from inscape.runs.progress import ProgressReporter
from inscape.runs.writing import explain, write_text
from inscape.training import pretraining
from inscape.training.facts import RECORD, finished_record
from inscape.training.pretraining import Batch, OptimisationConfig, pretrain, threads, weighted_loss
from inscape.training.tokenizer import END

_CHECKPOINT = "checkpoint.pt"
_LOSS_CURVE_POINTS = 200
_VALIDATION_ROWS = 128


class CorpusTrainingConfig(BaseModel):
    """A small LM, and how it is trained on a text."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["gpt2", "bloom"] = Field(
        default="gpt2", description="architecture: learned positions (gpt2) or ALiBi (bloom)"
    )
    vocabulary: int = Field(default=1024, ge=300, le=100_000, description="tokens of the BPE, 257 of them given")
    width: int = Field(default=128, ge=8, le=4096, description="dimensions of the residual stream")
    layers: int = Field(default=1, ge=1, le=64, description="number of blocks")
    heads: int = Field(default=4, ge=1, le=64, description="attention heads per block")
    context: int = Field(default=128, ge=16, description="tokens of a training window, and longest input of gpt2")
    held_out: float = Field(default=0.02, gt=0, lt=1, description="share of documents that training never sees")
    optimisation: OptimisationConfig = OptimisationConfig(steps=4000, rows=8, length=128, learning_rate=4e-3)
    seed: int = Field(default=0, ge=0, description="fixes initial weights, held-out documents and windows")

    @model_validator(mode="after")
    def _shapes_fit(self) -> CorpusTrainingConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width}: expected a multiple of heads ({self.heads})")
        if self.optimisation.length > self.context:
            raise ValueError(f"optimisation.length {self.optimisation.length}: expected at most context {self.context}")
        return self


def train_corpus_lm(
    files: Sequence[str | Path],
    config: CorpusTrainingConfig,
    out: Path | str,
    *,
    progress: ProgressReporter | None = None,
) -> dict[str, Any]:
    """Train a model on the documents of `files` and save it in the folder `out`.

    `out` appears at the end, whole; until then the state of training lives in `.<name>.training` beside it, and the same
    call after a kill goes on from there. If `out` holds the model of these files and this config, nothing is done.

    Returns:
        The record, also saved as `training.json`: key, config, corpus (sha256, documents, tokens), versions, `loss` (means
        over equal stretches), `validation_loss` and `unigram_entropy` (nats per token of the held-out documents: what the
        model needs, and what word frequencies of the training part need), seconds.

    Raises:
        InputError: no or unreadable files, a text too small for the config, an `out` that is something else, a training
            that diverges.
    """
    out = Path(out)
    key = corpus_training_key(files, config)
    done = finished_record(out)
    if done is not None:
        if done["key"] == key:
            return done
        raise InputError(f"{out} holds a model of other text, config or code: choose another folder or remove it")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not a model trained here: expected a new or empty folder")
    partial = out.parent / f".{out.name}.training"
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain(error, partial) from error
    lock = FolderLock(partial)
    try:
        # Another process may have finished it while this one was on its way to the lock.
        done = finished_record(out)
        if done is None:
            done = _train(files, config, partial, key, out, progress or ProgressReporter(quiet=True))
    finally:
        lock.release()
    shutil.rmtree(partial, ignore_errors=True)
    return done


def cached_corpus_lm(
    files: Sequence[str | Path],
    config: CorpusTrainingConfig,
    cache_dir: Path | str,
    *,
    progress: ProgressReporter | None = None,
) -> Path:
    """The folder of the model for these files and this config in `cache_dir`; trained first if it isn't there."""
    folder = Path(cache_dir) / f"corpus-lm-{corpus_training_key(files, config)[:16]}"
    train_corpus_lm(files, config, folder, progress=progress)
    return folder


def corpus_training_key(files: Sequence[str | Path], config: CorpusTrainingConfig) -> str:
    """SHA-256 of all that the trained weights follow from: config, text, and the code that reads and trains.

    Raises:
        InputError: no file, or one that can't be read.
    """
    digest = hashlib.sha256()
    digest.update(config.model_dump_json(exclude={"optimisation": {"checkpoint_seconds"}}).encode())
    digest.update(corpus_hash(files).encode())
    for source in (corpus_files.__file__, pretraining.__file__, __file__):
        digest.update(Path(str(source)).read_bytes())
    return digest.hexdigest()


def untrained(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """The model of a transformers config with random weights that follow from `seed`, in eval mode, float32.

    With the config and seed of a model of `train_corpus_lm`, these are the weights that its training began from. The
    caller's random state is left alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()


def fit_bpe(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE with at most `vocabulary` tokens, pre-tokenised as GPT-2's; adds no token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def model_config(config: CorpusTrainingConfig, tokenizer: PreTrainedTokenizerFast) -> PretrainedConfig:
    """The transformers config of the model; no dropout, output layer tied to the embedding."""
    end = int(tokenizer.eos_token_id)
    # No pad_token_id: a padding index would freeze END's embedding, and END is a token of the text.
    ids = {"bos_token_id": None, "eos_token_id": end, "pad_token_id": None}
    if config.kind == "gpt2":
        return GPT2Config(
            vocab_size=len(tokenizer), n_embd=config.width, n_layer=config.layers, n_head=config.heads,
            n_positions=config.context, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **ids,
        )  # fmt: skip
    return BloomConfig(
        vocab_size=len(tokenizer), hidden_size=config.width, n_layer=config.layers, n_head=config.heads,
        hidden_dropout=0.0, attention_dropout=0.0, **ids,
    )  # fmt: skip


class _Windows:
    """The documents as token ids, END after each, in a training and a held-out part."""

    def __init__(self, files: Sequence[str | Path], config: CorpusTrainingConfig) -> None:
        texts = list(read_documents(files))
        rng = np.random.default_rng([config.seed, 41])
        held = rng.random(len(texts)) < config.held_out
        if len(texts) > 1 and not held.any():
            held[-1] = True
        if len(texts) < 2 or held.all():
            raise InputError(f"corpus: {len(texts)} documents, expected at least 2, to hold one out")
        self.n_documents = len(texts)
        self.tokenizer = fit_bpe([text for text, out in zip(texts, held, strict=True) if not out], config.vocabulary)
        end = int(self.tokenizer.eos_token_id)
        parts: tuple[list[int], list[int]] = ([], [])
        for ids, out in zip(self.tokenizer(texts)["input_ids"], held, strict=True):
            parts[int(out)].extend([*ids, end])
        self.training, self.validation = (np.array(part, dtype=np.int64) for part in parts)
        self._length = config.optimisation.length
        for name, part in (("training", self.training), ("held-out", self.validation)):
            if len(part) <= self._length:
                raise InputError(
                    f"corpus: {len(part)} tokens in the {name} documents, expected more than one window "
                    f"({self._length}): give more text"
                )

    def batch(self, part: np.ndarray, seed: Sequence[int], rows: int) -> Batch:
        starts = np.random.default_rng(seed).integers(0, len(part) - self._length, rows)
        ids = part[starts[:, None] + np.arange(self._length)]
        return ids, np.ones(ids.shape, dtype=np.float32)

    def unigram_entropy(self) -> float:
        """Nats per held-out token under the frequencies of the training part, one added to each count."""
        counts = np.bincount(self.training, minlength=len(self.tokenizer)) + 1.0
        return float(-np.log(counts / counts.sum())[self.validation].mean())


def _train(
    files: Sequence[str | Path],
    config: CorpusTrainingConfig,
    partial: Path,
    key: str,
    out: Path,
    progress: ProgressReporter,
) -> dict[str, Any]:
    started = time.monotonic()
    optimisation = config.optimisation
    text = _Windows(files, config)
    model = untrained(model_config(config, text.tokenizer), config.seed)
    with progress.loop("training on text", optimisation.steps) as advance:
        losses = pretrain(
            model,
            lambda step: text.batch(text.training, [config.seed, step], optimisation.rows),
            optimisation,
            checkpoint=partial / _CHECKPOINT,
            key=key,
            advance=advance,
        )
    ids, weights = text.batch(text.validation, [config.seed, 43, 0], _VALIDATION_ROWS)
    with threads(optimisation.threads), torch.no_grad():
        validation_loss = float(weighted_loss(model, torch.from_numpy(ids), torch.from_numpy(weights)))
    stretches = np.array_split(np.array(losses), min(len(losses), _LOSS_CURVE_POINTS))
    record = {
        "key": key,
        "config": config.model_dump(),
        "corpus": {
            "sha256": corpus_hash(files),
            "files": [Path(file).name for file in files],
            "n_documents": text.n_documents,
            "n_tokens": {"training": len(text.training), "held_out": len(text.validation)},
        },
        "loss": [float(stretch.mean()) for stretch in stretches],
        "validation_loss": validation_loss,
        "unigram_entropy": text.unigram_entropy(),
        "seconds": time.monotonic() - started,
        "n_parameters": model.num_parameters(),
        "vocabulary": len(text.tokenizer),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("inscape", "torch", "transformers", "tokenizers", "numpy")},
        },
    }
    _save(model, text.tokenizer, record, out)
    return record


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, record: dict[str, Any], out: Path) -> None:
    """Write the model folder under another name beside `out`, then rename it."""
    temporary = out.parent / f".{out.name}.{os.getpid()}.saving"
    try:
        try:
            temporary.mkdir()
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            # The record last: a folder that has one is whole.
            write_text(temporary / RECORD, json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False))
            # safetensors' file is private; a saved model is as open as any other new file.
            mode = temporary.stat().st_mode & 0o666
            for path in temporary.iterdir():
                path.chmod(mode)
            os.replace(temporary, out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise explain(error, out) from error
