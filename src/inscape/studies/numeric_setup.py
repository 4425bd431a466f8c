"""What the two numeric studies share: where facts and model come from, how an entity is asked about, how it answers.

A study takes any causal LM (``model``) and a facts table (``data``). Without a model, a small one is trained on the facts
(once; it is cached); without a table, the facts are those saved beside the model, or a numeric world is built.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import platformdirs
import polars as pl
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator

from inscape.data.facts import Facts, load_facts, unambiguous
from inscape.data.numbers import parse_number
from inscape.data.properties import Property, property_named
from inscape.errors import InputError
from inscape.models import LM, load
from inscape.models.lm import Progress
from inscape.models.loading import check_folder, folder_hash, usable_device
from inscape.models.tokens import Tokens
from inscape.runs import Run
from inscape.training.facts import FactsTrainingConfig, cached_facts_lm, training_key
from inscape.training.sizes import Size, training_of, world_of

FACTS_FILE = "facts.tsv"
"""Saved beside a model that was trained on facts, so that a study needs the folder alone."""


class NumericConfig(BaseModel):
    """Fields of every numeric study."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = Field(
        default=None, description="folder or hub id of a causal LM; without one, a small LM is trained on the facts"
    )
    revision: str | None = Field(default=None, description="revision of a hub model (branch, tag or commit)")
    data: str | None = Field(
        default=None, description="facts: a folder or file of tables; without one, those beside the model, or a world"
    )
    size: Size = Field(
        default="demo", description="size of the world and of the LM trained here (no effect on a given model)"
    )
    limit: int | None = Field(
        default=None, ge=20, description="most entities per property of a facts table, over all splits (paper: 2,000)"
    )
    properties: tuple[str, ...] | None = Field(
        default=None, description="properties to take from the facts, for training and for side effects (default: all)"
    )
    property: str = Field(default="birth_year", description="the property under study, by name or Wikidata id")
    prefix: str = Field(default="", description="text before every prompt (P7: one space)")
    seed: int = Field(default=0, ge=0, description="of the world, the sampling of entities and all random controls")
    device: str | None = Field(
        default=None, description="where the model runs, e.g. cuda (default: CUDA if there is one)"
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        default=None, description="dtype of the weights (default: the checkpoint's)"
    )
    batch_size: int = Field(default=256, ge=1, description="prompts in a batch")
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads (default: 1 for models under 50 M parameters)"
    )

    @field_validator("property")
    @classmethod
    def _known(cls, value: str) -> str:
        return property_named(value).name

    @field_validator("properties")
    @classmethod
    def _all_known(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return value if value is None else tuple(dict.fromkeys(property_named(name).name for name in value))

    def identity(self) -> dict[str, object]:
        """The fields that results depend on: not where it runs, nor how files are spelled (their hashes are inputs)."""
        elsewhere = {"model", "data", "revision", "device", "batch_size", "threads"}
        return self.model_dump(mode="json", exclude=elsewhere)


@dataclass(frozen=True, eq=False)
class Subject:
    """A loaded model and the facts that it is asked about."""

    lm: LM
    facts: Facts
    trained_here: bool


def facts_for(config: NumericConfig) -> Facts:
    """The facts table of a config, names that stand for two values left out (counted in its notes)."""
    if config.data is not None:
        source = Path(config.data).expanduser()
    elif config.model is not None:
        source = Path(config.model).expanduser() / FACTS_FILE
        if not source.exists():
            raise InputError(
                f"model {config.model} has no {FACTS_FILE} beside it: say which facts to ask about (--data)"
            )
    else:
        return world_of(config.size, config.seed, config.properties)
    return unambiguous(load_facts(source, config.properties, config.limit))


def check_facts(facts: Facts, studied: str, least: int = 3) -> None:
    """Refuse, before anything is computed, facts that some stage could not use."""
    if studied not in facts.properties:
        raise InputError(f"property {studied}: not in these facts ({', '.join(facts.properties)})")
    for name in facts.properties:
        rows = facts.of(name)
        for split in ("train", "dev", "test"):
            here = rows.filter(pl.col("split") == split)
            if here.height < least:
                raise InputError(
                    f"{facts.source}: {name} has {here.height} entities in split {split}, expected {least} or more"
                )
        if rows.filter(pl.col("split") == "train")["value"].n_unique() < 2:
            raise InputError(f"{facts.source}: all training values of {name} are equal, expected different ones")


def inputs_of(config: NumericConfig, facts: Facts) -> dict[str, str]:
    """What a run depends on, by content: facts, model and tokenizer."""
    if config.model is None:
        return {"facts": facts.sha256, "model": f"trained here {training_key(facts, recipe_of(config))}"}
    path = Path(config.model).expanduser()
    if not path.exists():
        return {"facts": facts.sha256, "model": f"hub {config.model} {config.revision or 'default revision'}"}
    check_folder(path)
    tokenizer = path / "tokenizer.json"
    known = hashlib.sha256(tokenizer.read_bytes()).hexdigest() if tokenizer.exists() else "none"
    return {"facts": facts.sha256, "model": folder_hash(path)["model_sha256"], "tokenizer": known}


def recipe_of(config: NumericConfig) -> FactsTrainingConfig:
    """How the LM of a study without a model is trained."""
    # Real facts are more, and mostly to be remembered: they have a recipe of their own.
    return training_of("facts" if config.data is not None and config.size != "smoke" else config.size, config.seed)


def subject_of(config: NumericConfig, facts: Facts, run: Run) -> Subject:
    """Load the model, training it first if need be, and put into the record what it is."""
    device = str(usable_device(config.device or ("cuda" if torch.cuda.is_available() else "cpu")))
    source = config.model
    if source is None:
        folder = cached_facts_lm(facts, recipe_of(config), cache_dir(), progress=run.reporter)
        source = str(folder)
    dtype = getattr(torch, config.dtype) if config.dtype else None
    lm = load(source, device=device, dtype=dtype, revision=config.revision)
    small = sum(p.numel() for p in lm.model.parameters()) < 50_000_000
    if config.threads is not None or small:
        # Below some 50 M parameters, handing work between threads costs more than it saves.
        torch.set_num_threads(config.threads or 1)
    run.record(
        **lm.record(),
        device=str(lm.device),
        facts=facts.source,
        facts_notes=list(facts.notes),
        threads=torch.get_num_threads(),
    )
    trained = config.model is None or (Path(config.model).expanduser() / "training.json").exists()
    return Subject(lm, facts, trained)


def cache_dir() -> Path:
    """``INSCAPE_CACHE``, else the user's cache folder."""
    return Path(os.environ.get("INSCAPE_CACHE") or platformdirs.user_cache_dir("inscape"))


@dataclass(frozen=True, eq=False)
class Asked:
    """Prompts about entities: texts, and the character span of each mention."""

    prompts: list[str]
    spans: list[tuple[int, int]]


def ask(template: str, labels: Sequence[str], prefix: str = "", suffix: str = "") -> Asked:
    """Fill ``{subj}``; the span comes from the template, so a name that also occurs elsewhere can't mislead it."""
    before, after = template.split("{subj}")
    start = len(prefix) + len(before)
    return Asked(
        [f"{prefix}{before}{label}{after}{suffix}" for label in labels],
        [(start, start + len(label)) for label in labels],
    )


def hidden_site(lm: LM, layer: int) -> tuple[str, int]:
    """The site of hidden state ``layer``, counted as transformers (and P7) count: 0 is what enters the first block.

    Hidden state ``n_layers`` is the last block's output (before the final norm, unlike transformers' last entry).
    """
    return ("resid_pre", layer) if layer < lm.n_layers else ("resid_post", lm.n_layers - 1)


def hidden_states(
    lm: LM,
    asked: Asked,
    layers: Sequence[int] | None,
    tokens: Tokens,
    *,
    batch_size: int,
    progress: Progress,
) -> np.ndarray:
    """float32 ``[row, layer, d_model]``: hidden states 0 to n_layers (or those asked for) at ``tokens``."""
    wanted = range(lm.n_layers + 1) if layers is None else layers
    names = [f"blocks.{at}.hook_{site}" for site, at in (hidden_site(lm, layer) for layer in wanted)]
    acts = lm.capture_sites(
        asked.prompts, names, tokens=tokens, mentions=asked.spans or None, dtype=torch.float32, batch_size=batch_size,
        progress=progress,
    )  # fmt: skip
    return np.stack([acts[site].at(at).numpy() for site, at in (hidden_site(lm, layer) for layer in wanted)], axis=1)


def read_number(prop: Property, output: str) -> float | None:
    """The number in a model's output, in the property's unit; None if there is none."""
    return parse_number(output, prop.kind, None if prop.unit == "year" else prop.unit)


def is_correct(prop: Property, value: float, number: float | None) -> bool:
    """Whether an answer, written as text writes it, is the fact."""
    if number is None or not np.isfinite(number):
        return False
    try:
        return prop.format(number) == prop.format(value)
    except InputError:  # a year 0 can't be written, and is nobody's birth year
        return False


def batches(run: Run, description: str) -> Progress:
    """The run's progress bar, as the kernel takes it."""
    return lambda todo, total: run.track(todo, description, total)


def sample(rows: pl.DataFrame, n: int, seed: int) -> pl.DataFrame:
    """``n`` rows (all, if fewer) drawn by ``seed``, in their own order."""
    if rows.height <= n:
        return rows
    keep = np.sort(np.random.default_rng([seed, 77]).choice(rows.height, n, replace=False))
    return rows[keep]
