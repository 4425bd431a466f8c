"""What a corpus is built from and how."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from inscape.data.corpus.sources import Source, check_language


class CorpusConfig(BaseModel):
    """All that the content of a corpus depends on, besides the files themselves."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sources: tuple[Source, ...] = Field(min_length=1, description="what it is made of")
    languages: tuple[str, ...] | None = Field(default=None, description="only these languages (default: all there are)")
    held_out: tuple[str, ...] = Field(default=(), description="languages left out, to test a model on")
    near: Literal["simhash", "minhash", "none"] = Field(
        default="simhash", description="how near copies are found (ROOTS: SimHash)"
    )
    validation: float = Field(
        default=0.05, ge=0, lt=1, description="share of each language's documents kept for validation (BLOOM: 0.05)"
    )
    seed: int = Field(default=0, ge=0, description="of the documents drawn for validation, and by weight")

    @field_validator("languages", "held_out")
    @classmethod
    def _known(cls, codes: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return codes if codes is None else tuple(check_language(code, "languages") for code in codes)
