"""Multitask prompted finetuning (P9: BLOOMZ, Muennighoff et al., ACL 2023, arXiv 2211.01786), and what it changes.

Question. Does a model that learned text, finetuned on answers to prompts, do better on what finetuning did not show: other
items, other prompts, other languages, other tasks?

Method:

1. examples are drawn from the tasks of `inscape.data.prompts`: trained prompts of trained tasks in trained languages, and
   tests of each kind of newness (see `inscape.data.prompted`);
2. the model answers all tests as it is;
3. it is finetuned: examples packed into rows, attention inside an example, loss on targets, every target counting alike;
   constant learning rate, no warm-up, a fresh optimizer;
4. it answers the tests again. With ``ablate``, so do models that were finetuned without normalisation by target length,
   and with a loss on every token.

Departures: the learning rate is a small model's; tasks are made from the sentences, documents and evaluation sets at hand.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch
from pydantic import BaseModel, ConfigDict, Field
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from inscape.data.prompted import Example, MixtureConfig, build_mixture, data_hash, end_id, token_ids
from inscape.data.prompts import corpora_folder
from inscape.errors import InputError
from inscape.evaluation.prompted import ask
from inscape.models import load
from inscape.models.loading import check_folder, folder_hash, usable_device
from inscape.runs import Run, RunFolder
from inscape.studies.finetune_summary import AFTER, BEFORE, summarise
from inscape.training.multitask import FinetuningConfig, Rows, Tokens, finetune, pack_examples

#: What each ablation leaves out.
ABLATIONS = {"not normalised": {"normalise": False}, "all tokens": {"targets_only": False}}


class Config(BaseModel):
    """``inscape finetune``. Defaults are a small model's; the text says the paper's value."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = Field(
        default=None, description="folder of the pretrained model, as `inscape pretrain` or transformers writes it"
    )
    corpora: str | None = Field(
        default=None,
        description="folder with parallel/, pretrain/ and eval/ (default: data/corpora under INSCAPE_SHARED)",
    )
    languages: tuple[str, ...] = Field(
        default=MixtureConfig().languages, min_length=1, description="languages trained on (paper: 46)"
    )
    held_out_languages: tuple[str, ...] = Field(
        default=MixtureConfig().held_out_languages, description="languages that are only tested"
    )
    tasks: tuple[str, ...] | None = Field(default=None, description="names of the tasks (default: all)")
    per_prompt: int = Field(default=500, ge=1, description="most training examples of a prompt (paper: 100,000)")
    test_per_prompt: int = Field(default=24, ge=1, description="most test examples of a prompt, in each kind of test")
    steps: int = Field(default=250, ge=1, description="optimizer steps (paper: 3,100; the released model: 498)")
    rows: int = Field(default=16, ge=1, description="rows of a step (paper: 2,048)")
    length: int = Field(default=256, ge=8, description="tokens of a row (paper: 2,048)")
    learning_rate: float = Field(
        default=1e-3, gt=0, description="constant (paper: 2e-5, for 560 M parameters and more)"
    )
    weight_decay: float = Field(default=1e-4, ge=0, description="on matrices (paper: 1e-4)")
    targets_only: bool = Field(default=True, description="the loss is on targets, not on inputs (paper: yes)")
    normalise: bool = Field(default=True, description="every target counts alike, however long (paper: yes)")
    ablate: bool = Field(
        default=False, description="also finetune without normalisation, and with a loss on all tokens"
    )
    dtype: str = Field(default="fp32", pattern="^(fp32|bf16)$", description="of matrix products, fp32 or bf16")
    seed: int = Field(default=0, ge=0, description="of the examples drawn and of their order")
    device: str | None = Field(default=None, description="where it runs, e.g. cuda (default: CUDA if there is one)")
    threads: int | None = Field(default=None, ge=1, description="CPU threads (default: as torch has it)")

    def identity(self) -> dict[str, object]:
        """The fields that results depend on; the model and the corpora count by content."""
        return self.model_dump(mode="json", exclude={"model", "corpora", "device", "threads"})

    @property
    def mixture(self) -> MixtureConfig:
        """What is drawn."""
        return MixtureConfig(**{name: getattr(self, name) for name in MixtureConfig.model_fields})

    @property
    def finetuning(self) -> FinetuningConfig:
        """How it is trained."""
        return FinetuningConfig(**{name: getattr(self, name) for name in FinetuningConfig.model_fields})


SMOKE = {"per_prompt": 8, "test_per_prompt": 2, "steps": 4, "rows": 4}
"""What ``--smoke`` sets: the whole pipeline at the smallest sizes."""


@dataclass(frozen=True)
class Asked:
    """The folders of a run."""

    model: Path
    corpora: Path


def asked_for(config: Config) -> Asked:
    """What a config asks for. Raises InputError where the model or the corpora are not there."""
    if config.model is None:
        raise InputError("finetune: no model, expected --model FOLDER (a folder that `inscape pretrain` wrote)")
    model = Path(config.model).expanduser()
    check_folder(model)
    corpora = corpora_folder() if config.corpora is None else Path(config.corpora).expanduser()
    if not corpora.is_dir():
        raise InputError(f"corpora {corpora}: no such folder, expected one with parallel/, pretrain/ and eval/")
    return Asked(model, corpora)


def inputs_of(config: Config, asked: Asked) -> dict[str, str]:
    """What a run depends on, by content."""
    return {
        "model": folder_hash(asked.model)["model_sha256"],
        "corpora": data_hash(config.mixture, asked.corpora),
    }


def run(config: Config, asked: Asked, run: Run) -> None:
    """All stages, each resumable; writes the tables, the finetuned model (see `model_folder`) and the summary."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = str(usable_device(config.device or ("cuda" if torch.cuda.is_available() else "cpu")))

    def draw() -> dict[str, pl.DataFrame]:
        mixture = build_mixture(config.mixture, asked.corpora)
        return {"examples": _frame((*mixture.train, *mixture.tests)), "counts": pl.DataFrame(mixture.counts())}

    examples = _examples(run.stage("examples", draw)["examples"])
    train = [example for example in examples if example.new is None]
    tests = [example for example in examples if example.new is not None]

    tokenizer = _tokenizer(asked.model)
    tokens = _tokens(train, tokenizer)
    _rows(tokens, config.finetuning, tokenizer)  # (rows that are too short should be told before anything long is done)

    def answers(variant: str) -> pl.DataFrame:
        folder = asked.model if variant == BEFORE else _trained(config, asked, run, variant, tokens, tokenizer, device)
        lm = load(str(folder), device=device, dtype=torch.float32)
        if variant == BEFORE:
            run.record(**lm.record(), device=device)
        found = ask(lm, tests, track=lambda names, text: run.track(names, f"{variant}: {text}"))
        run.record(**{f"tests_too_long_{variant}": len(tests) - found.height})
        return found.with_columns(pl.lit(variant).alias("variant"))

    variants = [BEFORE, AFTER, *(ABLATIONS if config.ablate else ())]
    run.map("answers", variants, answers)
    run.summary(summarise(run, seed=config.seed))


def model_folder(run: RunFolder, variant: str = AFTER) -> Path:
    """Where a run's finetuned model lies, a Hugging Face folder."""
    return _training_folder(run, variant) / "checkpoints" / f"step-{run.manifest['config']['steps']}"


def _training_folder(run: RunFolder, variant: str) -> Path:
    return run.folder / "training" / variant.replace(" ", "-")


def _tokens(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> list[Tokens]:
    end = end_id(tokenizer)
    found = []
    for example in examples:
        given, target = token_ids(example.input, example.target, tokenizer)
        found.append(Tokens(given, [*target, end]))
    return found


def _rows(tokens: Sequence[Tokens], how: FinetuningConfig, tokenizer: PreTrainedTokenizerBase) -> Rows:
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return pack_examples(tokens, how.length, pad_id=pad, targets_only=how.targets_only, normalise=how.normalise)


def _trained(
    config: Config, asked: Asked, run: Run, variant: str, tokens: Sequence[Tokens], tokenizer: PreTrainedTokenizerBase,
    device: str,
) -> Path:  # fmt: skip
    """Finetune (or go on with it) and return the model's folder."""
    how = config.finetuning.model_copy(update=ABLATIONS.get(variant, {}))
    rows = _rows(tokens, how, tokenizer)
    with run.progress(f"finetuning ({variant})", how.steps) as advance:
        folder, trained = finetune(
            asked.model, rows, how, _training_folder(run, variant), identity=dict(run.manifest["inputs"]),
            tokenizer=tokenizer, device=device, advance=advance,
        )  # fmt: skip
    run.record(
        **{
            f"training_{variant}": {
                "rows": len(rows), "rows_filled": rows.filled, "examples": len(tokens) - len(rows.left_out),
                "examples_too_long": len(rows.left_out), "epochs": how.steps * how.rows / len(rows),
                "first_loss": trained.losses[0], "last_loss": trained.losses[-1], "skipped": len(trained.skipped),
                "tokens": trained.tokens, "tokens_per_second": trained.tokens_per_second,
            }
        }
    )  # fmt: skip
    return folder


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # (the tokenizers library raises bare Exceptions)
        raise InputError(f"{folder}: no tokenizer there ({' '.join(str(error).split())[:200]})") from error


def _frame(examples: Sequence[Example]) -> pl.DataFrame:
    names = list(Example.__dataclass_fields__)
    schema = dict.fromkeys(names, pl.String()) | {"options": pl.List(pl.String)}
    columns = {name: [getattr(e, name) for e in examples] for name in names}
    columns["options"] = [None if e.options is None else list(e.options) for e in examples]
    return pl.DataFrame(columns, schema=schema)


def _examples(frame: pl.DataFrame) -> list[Example]:
    rows: Iterator[dict] = frame.iter_rows(named=True)
    return [Example(**{**row, "options": None if row["options"] is None else tuple(row["options"])}) for row in rows]
