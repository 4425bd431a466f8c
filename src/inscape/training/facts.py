"""Train a small language model on text made from a facts table, and save it as a Hugging Face folder.

Memorising facts is easy; whether a value can then be *read*, at the last token of an entity's name, by a linear map that
never saw the entity, is decided by four things. Measured on birth years of 300 invented people, 3 blocks, 1,500 steps,
R² on held-out people and share of right comparisons of pairs that training never compared:

- **A narrow residual stream**: .95 and 92 % with 64 dimensions; .62 and 50 % with 96.
- **Ordinal sentences**, comparisons with entities and with round values. With comparisons of entities for half of the
  text, and few round values, .78 and 50 %: the round values come first, they are what a value axis is learned from.
- **Some loss on all tokens**, a tenth of that on answers: with none, .93 and 80 %.
- **A heavier loss on Yes and No**, one token against five of a year: with three times the weight, .98 and 96 %.

Where in the network a value is *used* is another matter. A name whose last word is unique can be looked up by the first
block, and a long-trained wide model reads nothing of the name's token later; see `shared_last_names` of the numeric world.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from inscape.data import properties as properties_module
from inscape.data.facts import Facts, save_facts
from inscape.errors import InputError
from inscape.runs.lock import FolderLock
from inscape.runs.progress import ProgressReporter
from inscape.runs.writing import explain, write_text
from inscape.training import answers, facts_text, ordinal, pretraining, tokenizer
from inscape.training.answers import comparison_accuracy, question_accuracy
from inscape.training.facts_text import FactsText, TextMix, vocabulary_texts
from inscape.training.pretraining import OptimisationConfig, pretrain, threads
from inscape.training.tokenizer import fit_tokenizer

RECORD = "training.json"
FACTS = "facts.tsv"
_CHECKPOINT = "checkpoint.pt"
_LOSS_CURVE_POINTS = 200


class FactsTrainingConfig(BaseModel):
    """A small Llama, the text it is trained on, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int = Field(default=64, ge=8, le=4096, description="dimensions of the residual stream")
    layers: int = Field(default=3, ge=1, le=64, description="number of blocks")
    heads: int = Field(default=4, ge=1, le=64, description="attention heads per block")
    mlp_width: int = Field(default=192, ge=8, description="hidden units of a block's MLP")
    context: int = Field(default=128, ge=16, description="longest input in tokens that the saved model accepts")
    mix: TextMix = TextMix()
    text_weight: float = Field(
        default=0.1, ge=0, le=1, description="loss weight of tokens that are neither answer nor value"
    )
    yes_no_weight: float = Field(default=3.0, gt=0, description="loss weight of the answers Yes and No")
    held_out_pairs: float = Field(
        default=0.1, ge=0, lt=1, description="share of entity pairs that training never compares"
    )
    optimisation: OptimisationConfig = OptimisationConfig()
    seed: int = Field(default=0, ge=0, description="fixes initial weights and text")

    @model_validator(mode="after")
    def _shapes_fit(self) -> FactsTrainingConfig:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width}: expected a multiple of 2 * heads ({2 * self.heads})")
        if self.optimisation.length > self.context:
            raise ValueError(f"optimisation.length {self.optimisation.length}: expected at most context {self.context}")
        return self


def train_facts_lm(
    facts: Facts, config: FactsTrainingConfig, out: Path | str, *, progress: ProgressReporter | None = None
) -> dict[str, Any]:
    """Train a model on text about `facts` and save it in the folder `out`.

    `out` appears at the end, whole, with the facts told beside the model (`facts.tsv`). Until then the state of
    training lives beside it, in `.<name>.training`; the same call after a kill goes on from there. If `out` already
    holds the model of these facts and this config, nothing is done. The folder opens with `AutoModelForCausalLM` and
    `AutoTokenizer`, adds no BOS, and answers prompts that are a question and nothing else: "In what year was X born?"
    is continued by " 1902".

    Returns:
        The record, also saved as `training.json`: key, config, facts (source, sha256, counts, notes), versions,
        `accuracy` per property ("questions": exact answers over all question wordings; "first_question": over the
        first; "comparisons_unseen": on entity pairs that training never compared, with "n_comparisons_unseen"),
        `loss` (means over equal stretches of training), `seconds` and `cpu_seconds` (of the call that
        finished it), and the tokenizer's rules.

    Raises:
        InputError: no facts; a sentence longer than the context; `out` is something else; training diverges.
    """
    out = Path(out)
    key = training_key(facts, config)
    done = finished_record(out)
    if done is not None:
        if done["key"] == key:
            return done
        raise InputError(f"{out} holds a model of other facts, config or code: choose another folder or remove it")
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
            done = _train(facts, config, partial, key, out, progress or ProgressReporter(quiet=True))
    finally:
        lock.release()
    shutil.rmtree(partial, ignore_errors=True)
    return done


def cached_facts_lm(
    facts: Facts, config: FactsTrainingConfig, cache_dir: Path | str, *, progress: ProgressReporter | None = None
) -> Path:
    """The folder of the model for these facts and this config in `cache_dir`; trained first if it isn't there."""
    folder = Path(cache_dir) / f"facts-lm-{training_key(facts, config)[:16]}"
    train_facts_lm(facts, config, folder, progress=progress)
    return folder


def training_key(facts: Facts, config: FactsTrainingConfig) -> str:
    """SHA-256 of all that the trained weights follow from: config, facts, and the code that makes text and trains."""
    digest = hashlib.sha256()
    digest.update(config.model_dump_json(exclude={"optimisation": {"checkpoint_seconds"}}).encode())
    digest.update(facts.sha256.encode())
    for module in (properties_module, ordinal, facts_text, tokenizer, pretraining, answers):
        digest.update(Path(str(module.__file__)).read_bytes())
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()


def finished_record(folder: Path | str) -> dict[str, Any] | None:
    """The record of a finished model in `folder`; None if there is none."""
    path = Path(folder) / RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}), expected the record of a training run") from error
    if not isinstance(record, dict) or "key" not in record:
        raise InputError(f"{path}: no key, expected the record of a training run")
    return record


def build_model(config: FactsTrainingConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama with initial weights that follow from `config.seed`; the caller's random state is left alone."""
    end = int(tokenizer.eos_token_id)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=config.width,
                intermediate_size=config.mlp_width,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.heads,
                max_position_embeddings=config.context,
                tie_word_embeddings=False,
                bos_token_id=None,
                eos_token_id=end,
                # A padding index would freeze END's embedding at zero, and END is a token of the text.
                pad_token_id=None,
            )
        )
    model.generation_config.eos_token_id = end
    model.generation_config.pad_token_id = end
    return model


def _train(
    facts: Facts, config: FactsTrainingConfig, partial: Path, key: str, out: Path, progress: ProgressReporter
) -> dict[str, Any]:
    started, cpu_started = time.monotonic(), time.process_time()
    optimisation = config.optimisation
    tokenizer = fit_tokenizer(vocabulary_texts(facts))
    text = FactsText(facts, tokenizer, config.mix, config.text_weight, config.yes_no_weight, config.held_out_pairs)
    longest = text.longest()
    if longest > config.context:
        raise InputError(
            f"{facts.source}: the longest sentence has {longest} tokens, and the model's context is {config.context}, "
            f"expected a context of at least {longest}"
        )
    # A sentence that no sequence can hold would never be seen to its end.
    length = max(optimisation.length, longest)
    model = build_model(config, tokenizer)
    with progress.loop("training on facts", optimisation.steps) as advance:
        losses = pretrain(
            model,
            lambda step: text.batch(config.seed, step, optimisation.rows, length),
            optimisation,
            checkpoint=partial / _CHECKPOINT,
            key=key,
            advance=advance,
        )
    accuracy = {}
    with threads(optimisation.threads):
        for name in progress.track(facts.properties, "asking the model", len(facts.properties)):
            wordings = list(range(len(text.properties[name].questions)))
            unseen, asked = comparison_accuracy(model, text, name, held_out=True)
            accuracy[name] = {
                "questions": question_accuracy(model, text, name, wordings),
                "first_question": question_accuracy(model, text, name, [0]),
                # NaN is no JSON; a pair that was never asked about has no accuracy.
                "comparisons_unseen": unseen if asked else None,
                "n_comparisons_unseen": asked,
            }
    stretches = np.array_split(np.array(losses), min(len(losses), _LOSS_CURVE_POINTS))
    record = {
        "key": key,
        "config": config.model_dump(),
        "facts": {
            "source": facts.source,
            "sha256": facts.sha256,
            "n": {name: len(text.properties[name].keys) for name in facts.properties},
            "notes": list(text.facts.notes),
        },
        "accuracy": accuracy,
        "loss": [float(stretch.mean()) for stretch in stretches],
        "seconds": time.monotonic() - started,
        "cpu_seconds": time.process_time() - cpu_started,
        "n_parameters": model.num_parameters(),
        "vocabulary": len(tokenizer),
        "tokenizer": "adds no BOS and no EOS; the first word is encoded as if a space came before it; digits are tokens",
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("inscape", "torch", "transformers", "tokenizers", "numpy")},
        },
        "sequence_length": length,
        "threads": min(optimisation.threads, torch.get_num_threads()),
    }
    _save(model, tokenizer, text.facts, record, out)
    return record


def _save(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, facts: Facts, record: dict[str, Any], out: Path
) -> None:
    """Write the model folder under another name beside `out`, then rename it."""
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".saving", dir=out.parent))
        try:
            with _no_progress_bar():
                model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            save_facts(facts, temporary / FACTS)
            # The record last: a folder that has one is whole.
            write_text(temporary / RECORD, json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False))
            # mkdtemp's folder and safetensors' file are private; a saved model is as open as any other new file.
            temporary.chmod(0o777 & ~_umask())
            for path in temporary.iterdir():
                path.chmod(0o666 & ~_umask())
            os.replace(temporary, out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise explain(error, out) from error


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Without the bar that transformers shows for writing a file of some kilobytes."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
