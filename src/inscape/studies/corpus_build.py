"""``inscape corpus build``: a corpus from sources, cleaned step by step, and what each step took away.

The steps are those of ROOTS (Laurençon et al., NeurIPS 2022, arXiv 2303.03915), the corpus of BLOOM (arXiv 2211.05100):
markup removed, copies and template lines dropped, filters with thresholds by language, personal data replaced, near copies
dropped. The corpus stands in ``corpus/`` of the run folder; `inscape.data.corpus.Corpus` reads it.
"""

from typing import Annotated, Literal

import polars as pl
from cyclopts import Parameter
from pydantic import BaseModel, ConfigDict, Field

from inscape.data.corpus import CorpusConfig, Source, build_corpus, shared_sources, stdlib_source
from inscape.data.corpus.build import input_hashes
from inscape.data.corpus.counts import STEPS
from inscape.errors import InputError
from inscape.runs import Run
from inscape.runs.folder import RunFolder, Scalar


class Config(BaseModel):
    """``inscape corpus build``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sources: Annotated[tuple[Source, ...], Parameter(parse=False)] = Field(
        default=(), description="sources, each with name, files, language, licence, weight, ... (in a config file)"
    )
    corpora: str | None = Field(
        default=None, description="folder of the corpora pack (data/corpora): its nine sources are taken too"
    )
    code: float = Field(
        default=1.0, ge=0, le=1, description="share of the Python standard library that is taken as source code"
    )
    languages: tuple[str, ...] | None = Field(default=None, description="only these languages (default: all there are)")
    held_out: tuple[str, ...] = Field(default=(), description="languages left out, to test a model on")
    near: Literal["simhash", "minhash", "none"] = Field(
        default="simhash", description="how near copies are found (paper: SimHash)"
    )
    validation: float = Field(
        default=0.05, ge=0, lt=1, description="share of each language's documents kept for validation (paper: 0.05)"
    )
    seed: int = Field(default=0, ge=0, description="of the documents drawn for validation, and by weight")
    processes: int | None = Field(default=None, ge=1, description="processes (default: one per core)")

    def identity(self) -> dict[str, object]:
        """The fields that results depend on; files by their content alone (their hashes are inputs)."""
        return self.model_dump(
            mode="json", exclude={"corpora": True, "processes": True, "sources": {"__all__": {"files"}}}
        )


SMOKE = {"code": 0.05, "processes": 1}
"""What ``--smoke`` sets: a twentieth of the standard library, unless sources are given."""


def asked_for(config: Config) -> CorpusConfig:
    """The corpus that a config asks for. Raises InputError where it asks for no source."""
    sources = config.sources
    if config.corpora is not None:
        sources += shared_sources(config.corpora, code=0)
    if config.code > 0:
        sources += (stdlib_source(config.code),)
    if not sources:
        raise InputError(
            "sources: none, expected some in a config file, --corpora with the pack's folder, or --code above 0"
        )
    return CorpusConfig(
        sources=sources,
        languages=config.languages,
        held_out=config.held_out,
        near=config.near,
        validation=config.validation,
        seed=config.seed,
    )


def inputs_of(config: Config, asked: CorpusConfig) -> dict[str, str]:
    """What a run depends on, by content. Raises InputError for files that can't be read."""
    return input_hashes(asked)


def run(config: Config, asked: CorpusConfig, run: Run) -> None:
    """Build the corpus; tables ``counts``, ``languages`` and ``sources``; the summary."""

    def build() -> dict[str, pl.DataFrame]:
        made = build_corpus(asked, run.folder / "corpus", processes=config.processes, progress=run.progress)
        counts = pl.DataFrame(made["counts"], schema=_COUNTS, orient="row")
        languages = [
            {"language": name, "split": split, **row[split]}
            for name, row in made["languages"].items()
            for split in ("train", "validation")
        ]
        run.record(
            python=made["python"],
            corpus_seconds=made["seconds"],
            without_stop_words=made["without_stop_words"],
            without_language_id=made["without_language_id"],
        )
        return {
            "counts": counts,
            "languages": pl.DataFrame(languages),
            "sources": pl.DataFrame(made["sources"], schema_overrides={"language": pl.String}),
        }

    run.stage("corpus", build)
    run.summary(summarise(run))


_COUNTS = {
    **dict.fromkeys(("step", "language", "source"), pl.String),
    **dict.fromkeys(("documents_in", "documents_out", "bytes_in", "bytes_out", "changed"), pl.Int64),
}


def removed_by(run: RunFolder, *by: str) -> pl.DataFrame:
    """``step``, the columns of ``by``, sums over the rest, and the shares of ``documents`` and ``bytes`` that went.

    Shares are of what entered the step.
    """
    sums = run.table("counts").group_by("step", *by).agg(pl.col(name).sum() for name in list(_COUNTS)[3:])
    order = pl.col("step").replace_strict({step: i for i, step in enumerate(STEPS)}, return_dtype=pl.Int64)
    return sums.sort(order, *by).with_columns(
        (1 - pl.col("documents_out") / pl.col("documents_in")).alias("documents"),
        pl.when(pl.col("bytes_in") > 0)
        .then(1 - pl.col("bytes_out") / pl.col("bytes_in"))
        .otherwise(0.0)
        .alias("bytes"),
    )


def summarise(run: RunFolder) -> dict[str, Scalar]:
    """The flat summary: sizes before and after, and by step the share of all bytes read that it took away."""
    steps = {row["step"]: row for row in removed_by(run).iter_rows(named=True)}
    read = steps["read"]
    languages = run.table("languages")
    kept = {split: languages.filter(pl.col("split") == split) for split in ("train", "validation")}
    seconds = sum(run.manifest["record"]["corpus_seconds"].values())
    return {
        "megabytes_read": read["bytes_in"] / 1e6,
        "documents_read": read["documents_in"],
        "megabytes_kept": float(languages["bytes"].sum()) / 1e6,
        "documents_kept": int(languages["documents"].sum()),
        "share_kept": float(languages["bytes"].sum()) / max(1, read["bytes_in"]),
        "megabytes_validation": float(kept["validation"]["bytes"].sum()) / 1e6,
        "n_languages": languages["language"].n_unique(),
        **{
            f"removed_{step}": (row["bytes_in"] - row["bytes_out"]) / max(1, read["bytes_in"])
            for step, row in steps.items()
            if step not in ("read", "pii")
        },
        "documents_with_personal_data": steps["pii"]["changed"] if "pii" in steps else 0,
        "megabytes_per_second": read["bytes_in"] / 1e6 / max(seconds, 1e-3),
    }
