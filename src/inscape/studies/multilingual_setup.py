"""What `multilingual-pretraining` asks for: the miniature's sizes, its languages, and the text that it is made from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from inscape.data.corpus.corpus import Corpus
from inscape.data.corpus.shards import TokenShards
from inscape.errors import InputError
from inscape.runs import RunFolder
from inscape.training.architectures import ModelConfig

Size = Literal["smoke", "standard", "mini"]

LANGUAGES = (
    "ar", "as", "ca", "code", "en", "es", "eu", "fr", "gu", "hi", "id", "ja", "ml", "mr", "pt", "sw", "ta", "te", "vi", "wo",
    "zh", "zh-Hant", "zu",
)  # fmt: skip
"""Those of ROOTS that the text at hand holds, and Japanese, which has much of it."""

HELD_OUT = ("ko", "ru")
"""Never trained on, by the paper's model neither: Korean's script appears nowhere else, Russian's neither in ROOTS."""


class Recipe(BaseModel):
    """How large everything is. Times are of the whole study on two CPU cores."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: float = Field(description="of each source's documents")
    vocabulary: int
    width: int
    layers: int
    heads: int
    length: int
    rows: int
    tokens: int = Field(description="that the model reads, by rows * length a step")
    learning_rate: float
    dtype: Literal["fp32", "bf16"] = "fp32"
    export_every: int | None = None
    twin_tokens: int = Field(description="that each of the three position twins reads")
    compared: int = Field(description="languages that the tokenizer is held against one of their own in")
    sentences: int = Field(description="parallel sentences of a language that every checkpoint is tested on")
    finetuning_steps: int
    per_prompt: int
    test_per_prompt: int
    items: int = Field(description="most items of a task, or sentence pairs to translate")
    probe_seeds: int
    probe_checkpoints: int = Field(description="checkpoints that are probed, the last one included")


RECIPES: dict[Size, Recipe] = {
    "smoke": Recipe(
        share=0.02,
        vocabulary=512,
        width=32,
        layers=2,
        heads=2,
        length=64,
        rows=8,
        tokens=40_000,
        learning_rate=5e-3,
        twin_tokens=10_000,
        compared=1,
        sentences=10,
        finetuning_steps=4,
        per_prompt=6,
        test_per_prompt=2,
        items=8,
        probe_seeds=1,
        probe_checkpoints=2,
    ),
    "standard": Recipe(
        share=1.0,
        vocabulary=8192,
        width=128,
        layers=4,
        heads=4,
        length=256,
        rows=4,
        tokens=6_000_000,
        learning_rate=2.5e-3,
        dtype="bf16",
        twin_tokens=1_000_000,
        compared=10,
        sentences=150,
        finetuning_steps=250,
        per_prompt=300,
        test_per_prompt=12,
        items=100,
        probe_seeds=3,
        probe_checkpoints=4,
    ),
    "mini": Recipe(
        share=1.0,
        vocabulary=16384,
        width=384,
        layers=8,
        heads=6,
        length=512,
        rows=32,
        tokens=150_000_000,
        learning_rate=2e-3,
        dtype="bf16",
        twin_tokens=10_000_000,
        compared=10,
        sentences=500,
        finetuning_steps=1500,
        per_prompt=1000,
        test_per_prompt=24,
        items=500,
        probe_seeds=3,
        probe_checkpoints=8,
    ),
}


class Config(BaseModel):
    """``inscape run multilingual-pretraining``. Fields of the recipe can be set one by one; None takes the size's value."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    corpora: str | None = Field(
        default=None,
        description="folder with pretrain/, eval/ and parallel/ (default: data/corpora under INSCAPE_SHARED)",
    )
    size: Size = Field(
        default="standard", description="smoke: under a minute; standard: half an hour on two cores; mini"
    )
    languages: tuple[str, ...] = Field(default=LANGUAGES, min_length=1, description="trained on (paper: 46 and code)")
    held_out: tuple[str, ...] = Field(default=HELD_OUT, min_length=1, description="only tested")
    tokens: int | None = Field(default=None, ge=1000, description="that the model reads (paper: 366 billion)")
    twin_tokens: int | None = Field(
        default=None, ge=1000, description="that each twin reads, for the test of positions"
    )
    width: int | None = Field(default=None, ge=8, description="of the hidden state (paper: 14,336)")
    layers: int | None = Field(default=None, ge=1, description="blocks (paper: 70)")
    heads: int | None = Field(default=None, ge=1, description="attention heads (paper: 112)")
    vocabulary: int | None = Field(default=None, ge=300, description="tokens (paper: 250,680)")
    learning_rate: float | None = Field(default=None, gt=0, description="peak (paper: 6e-5)")
    finetuning_steps: int | None = Field(default=None, ge=1, description="of each finetuning (paper: 498)")
    seed: int = Field(default=0, ge=0, description="of everything that is drawn")
    device: str = Field(default="cpu", description="torch device")
    threads: int | None = Field(default=None, ge=1, description="CPU threads (default: all cores)")

    @model_validator(mode="after")
    def _apart(self) -> Config:
        if both := set(self.languages) & set(self.held_out):
            raise ValueError(f"language {min(both)!r} is both trained on and held out")
        _ = self.model  # (a shape that can't be is refused here)
        return self

    @cached_property
    def recipe(self) -> Recipe:
        """The size's values, with those that were given."""
        given = {name: getattr(self, name) for name in Recipe.model_fields if getattr(self, name, None) is not None}
        return RECIPES[self.size].model_copy(update=given)

    @property
    def model(self) -> ModelConfig:
        """The shape of the model; its vocabulary is the tokenizer's, padded."""
        r = self.recipe
        return ModelConfig(
            width=r.width, layers=r.layers, heads=r.heads, vocabulary=-(-r.vocabulary // 128) * 128, context=r.length
        )

    @property
    def n_threads(self) -> int:
        """CPU threads."""
        return self.threads or os.cpu_count() or 1

    def identity(self) -> dict[str, object]:
        """The fields that results depend on; corpora count by content."""
        named = self.model_dump(mode="json", include={"size", "languages", "held_out", "seed"})
        return {**named, "recipe": self.recipe.model_dump()}


SMOKE = {"size": "smoke"}
"""What ``--smoke`` sets."""


@dataclass(frozen=True)
class Asked:
    """The folder of texts."""

    corpora: Path

    @property
    def pretrain(self) -> Path:
        return self.corpora / "pretrain"

    @property
    def pud(self) -> Path:
        return self.corpora / "eval" / "pud"

    @property
    def eval(self) -> Path:
        return self.corpora / "eval"

    @property
    def parallel(self) -> Path:
        return self.corpora / "parallel"


def asked_for(config: Config) -> Asked:
    """The texts. Raises InputError where they are not there."""
    shared = os.environ.get("INSCAPE_SHARED", "../shared")
    root = Path(config.corpora).expanduser() if config.corpora else Path(shared) / "data" / "corpora"
    for part in ("pretrain", "eval/pud", "parallel"):
        if not (root / part).is_dir():
            raise InputError(
                f"corpora {root}: no folder {part}, expected one with pretrain/, eval/ and parallel/ "
                "(give --corpora FOLDER)"
            )
    return Asked(root)


@dataclass(frozen=True)
class Made:
    """What the first stages made, for those that measure it. Every folder lies in the run's."""

    run: RunFolder
    config: Config
    asked: Asked
    corpus: Corpus
    tokenizer: Path
    tokens: TokenShards
    model: Path
    """Run folder of the pretraining, with ``checkpoints/step-N``."""
    twins: dict[str, Path]
    """The same for each of alibi, learned and none."""

    @property
    def recipe(self) -> Recipe:
        return self.config.recipe
