"""``inscape tokenizer train``: a BLOOM tokenizer for a corpus, and how well it serves each language.

1. shares of languages in the sample, sizes to the power alpha (see `inscape.training.bpe`), and the tokenizer itself, in
   ``tokenizer/`` of the run folder, as `AutoTokenizer` loads it;
2. for each language of the evaluation sentences: whether every sentence comes back from its tokens to the byte, tokens per
   word and per character, and the same of a BPE with as large a vocabulary trained on that language alone (all its text);
3. its longest tokens, where text that repeats shows.

Sentences are those of treebanks (``<lang>.conllu``, the lines ``# text =``; PUD is the same sentences in all languages),
lines of text files (``<lang>.txt``), or, where none are given, lines of the corpus' validation part.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import polars as pl
from pydantic import BaseModel, ConfigDict, Field
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from inscape.data.corpus.corpus import Corpus
from inscape.errors import InputError
from inscape.runs import Run
from inscape.runs.folder import Scalar
from inscape.runs.writing import explain
from inscape.training.bpe import (
    BAR,
    SPECIAL,
    Texts,
    fertility,
    not_restored,
    padded_vocabulary,
    sample_shares,
    texts_of,
    token_ratio,
    train_bpe,
    train_monolingual,
)

TOKENIZER = "tokenizer"
"""The folder, in the run's, that the tokenizer is in."""

_LINES = 1000
_LONGEST = 60
_FILE = re.compile(r"(?P<language>[A-Za-z][\w-]*)\.(?P<kind>conllu|txt)(\.gz)?")


class Config(BaseModel):
    """``inscape tokenizer train``. Defaults are the paper's where it has a value."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    corpus: str | None = Field(default=None, description="folder that `inscape corpus build` made; needed")
    vocabulary: int = Field(
        default=16_384, ge=260, description="tokens, the 4 special ones and 256 bytes included (paper: 250,680)"
    )
    alpha: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="power of a language's size that is its share (paper: 0.3; 1: as in the corpus)",
    )
    sample_bytes: int | None = Field(
        default=15_000_000,
        ge=1,
        description="text to learn merges from; languages with less than their share are taken whole, the others share "
        "the rest; none (in YAML: null): as much as the shares allow before a language runs out, the paper's rule",
    )
    languages: tuple[str, ...] | None = Field(
        default=None, description="languages that the merges are learned from (default: all of the corpus)"
    )
    least_bytes: int = Field(
        default=100_000, ge=0, description="languages with less text have no share, unless they are named"
    )
    evaluation: str | None = Field(
        default=None,
        description="folder of sentences, <lang>.conllu or <lang>.txt, also .gz (default: lines of the corpus held back)",
    )
    monolingual: bool = Field(
        default=True, description="also train a tokenizer for each evaluated language alone, to compare with"
    )
    seed: int = Field(default=0, ge=0, description="of the sample and of the intervals")

    def identity(self) -> dict[str, object]:
        """The fields that results depend on: not how files are spelled (their hashes are inputs)."""
        return self.model_dump(mode="json", exclude={"corpus", "evaluation"})


SMOKE = {"vocabulary": 512, "sample_bytes": 200_000}
"""What ``--smoke`` sets: the whole pipeline at the smallest sizes."""


@dataclass(frozen=True, eq=False)
class Asked:
    """The corpus, the languages that have a share, and the sentences to judge by."""

    corpus: Corpus
    languages: tuple[str, ...]
    sentences: Mapping[str, list[str]]


def asked_for(config: Config) -> Asked:
    """What a config asks for. Raises InputError for a corpus, a language or sentences that aren't there."""
    if config.corpus is None:
        raise InputError("corpus: none given, expected the folder that `inscape corpus build` made (--corpus)")
    corpus = Corpus.open(Path(config.corpus).expanduser())
    sizes = corpus.bytes_by_language("train")
    if config.languages is None:
        languages = tuple(language for language in corpus.languages if sizes[language] >= max(config.least_bytes, 1))
        if not languages:
            raise InputError(f"corpus {config.corpus}: no language with {config.least_bytes} bytes of text or more")
    else:
        languages = config.languages
        if unknown := [language for language in languages if not sizes.get(language)]:
            raise InputError(
                f"languages: no training text in {unknown[0]!r}, expected some of {', '.join(corpus.languages)}"
            )
    sentences = _held_back(corpus, languages) if config.evaluation is None else read_sentences(Path(config.evaluation))
    return Asked(corpus, languages, sentences)


def inputs_of(config: Config, asked: Asked) -> dict[str, str]:
    """What a run depends on, by content."""
    digest = hashlib.sha256()
    for language, lines in sorted(asked.sentences.items()):
        digest.update(hashlib.sha256("\n".join([language, *lines]).encode(errors="replace")).digest())
    return {"corpus": asked.corpus.sha256, "sentences": digest.hexdigest()}


def run(config: Config, asked: Asked, run: Run) -> None:
    """All stages, each resumable; writes the tables, the summary and ``tokenizer/``."""
    shares = run.stage("shares", lambda: {"shares": _shares(config, asked)})["shares"]
    tokenizer = _tokenizer(config, asked, run)

    def one(language: str) -> pl.DataFrame:
        return pl.DataFrame([_row(config, asked, tokenizer, language)], infer_schema_length=None)

    rows = run.map("fertility", sorted(asked.sentences), one)
    run.stage("longest", lambda: {"longest": _longest(tokenizer)})
    run.summary(_summary(config, tokenizer, shares, rows))


def read_sentences(folder: Path) -> dict[str, list[str]]:
    """Sentences by language of a folder of CoNLL-U or text files.

    Raises:
        InputError: no such folder, no such file in it, a file that can't be read or has no sentence, a language twice.
    """
    folder = folder.expanduser()
    if not folder.is_dir():
        raise InputError(f"evaluation {folder}: no such folder, expected one with files <lang>.conllu or <lang>.txt")
    found: dict[str, list[str]] = {}
    for file in sorted(folder.iterdir()):
        named = _FILE.fullmatch(file.name)
        if named is None:
            continue
        language = named["language"]
        if language in found:
            raise InputError(f"evaluation {folder}: two files of {language!r}, expected one for each language")
        try:
            with (
                gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as text
            ):
                lines = [line.rstrip("\n") for line in text]
        except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
            raise InputError(f"evaluation {file}: can't be read as UTF-8 text ({error})") from error
        if named["kind"] == "conllu":
            lines = [line.removeprefix("# text =").strip() for line in lines if line.startswith("# text =")]
        found[language] = [line for line in lines if line.strip()]
        if not found[language]:
            raise InputError(f"evaluation {file}: no sentence in it, expected at least one")
    if not found:
        raise InputError(f"evaluation {folder}: no file <lang>.conllu or <lang>.txt in it, expected at least one")
    return found


def _held_back(corpus: Corpus, languages: tuple[str, ...]) -> dict[str, list[str]]:
    """Lines of the validation part, by language; languages without any are left out."""
    found = {}
    for language in languages:
        lines = (line for document in corpus.documents([language], "validation") for line in document.text.splitlines())
        if kept := list(islice((line for line in lines if line.strip()), _LINES)):
            found[language] = kept
    if not found:
        raise InputError("corpus: nothing in its validation part to judge by, expected some (or --evaluation)")
    return found


def _texts(asked: Asked, languages: tuple[str, ...]) -> Texts:
    return texts_of(asked.corpus, languages)


def _shares(config: Config, asked: Asked) -> pl.DataFrame:
    sizes = asked.corpus.bytes_by_language("train")
    shares = sample_shares({name: sizes[name] for name in asked.languages}, config.alpha, config.sample_bytes)
    frame = pl.DataFrame(
        {
            "language": list(shares),
            "bytes": [share.bytes for share in shares.values()],
            "sampled": [share.sampled for share in shares.values()],
        }
    )
    return frame.with_columns(
        (pl.col("bytes") / pl.col("bytes").sum()).alias("share"),
        (pl.col("sampled") / pl.col("sampled").sum()).alias("share_sampled"),
    ).sort("bytes", "language", descending=[True, False])


def _tokenizer(config: Config, asked: Asked, run: Run) -> PreTrainedTokenizerFast:
    """The run's tokenizer, trained where its folder isn't there (training is deterministic)."""
    folder = run.folder / TOKENIZER
    if not (folder / "tokenizer.json").is_file():
        started = time.monotonic()
        made = train_bpe(
            _texts(asked, asked.languages), config.vocabulary, alpha=config.alpha, sample_bytes=config.sample_bytes,
            seed=config.seed, progress=run.reporter,
        )  # fmt: skip
        _save(made, folder)
        run.record(seconds_of_training=round(time.monotonic() - started, 1))
    sha256 = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    if run.manifest["record"].get("tokenizer_sha256", sha256) != sha256:
        raise InputError(
            f"{folder} is not the tokenizer that this run made: restore it, or delete it to have it made again"
        )
    run.record(tokenizer_sha256=sha256)
    return AutoTokenizer.from_pretrained(folder)


def _save(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        tokenizer.save_pretrained(part)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)
    except OSError as error:
        raise explain(error, folder) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _row(config: Config, asked: Asked, tokenizer: PreTrainedTokenizerFast, language: str) -> dict[str, object]:
    sentences = asked.sentences[language]
    found = fertility(tokenizer, sentences)
    row: dict[str, object] = {
        "language": language,
        "trained_on": any(_base(name) == _base(language) for name in asked.languages),
        "sentences": found.sentences,
        "lost": len(not_restored(tokenizer, sentences)),
        "words": found.words,
        "tokens": found.tokens,
        "per_word": found.per_word,
        "per_character": found.per_character,
        "bytes_per_token": found.bytes_per_token,
        "alone_vocabulary": None,
        "alone_bytes": None,
        "alone_bytes_per_token": None,
        "ratio": None,
        "ratio_lo": None,
        "ratio_hi": None,
    }
    sizes = asked.corpus.bytes_by_language("train")
    # A language in another script or variant is the same language here: zh and zh-Hant, sr and sr-Latn.
    same = tuple(name for name in asked.corpus.languages if _base(name) == _base(language) and sizes[name])
    if config.monolingual and same:
        alone = train_monolingual(_texts(asked, same), config.vocabulary, seed=config.seed)
        ratio = token_ratio(tokenizer, alone, sentences, config.seed)
        row |= {
            "alone_vocabulary": len(alone),
            "alone_bytes": sum(sizes[name] for name in same),
            "alone_bytes_per_token": fertility(alone, sentences).bytes_per_token,
            "ratio": ratio.value,
            "ratio_lo": ratio.lo,
            "ratio_hi": ratio.hi,
        }
    return row


def _base(language: str) -> str:
    return language.partition("-")[0]


def _longest(tokenizer: PreTrainedTokenizerFast) -> pl.DataFrame:
    texts = [(i, tokenizer.decode([i])) for i in range(len(SPECIAL), len(tokenizer))]
    # (a token that is a part of a character decodes to replacement signs)
    whole = [(i, text) for i, text in texts if "\ufffd" not in text and text.strip()]
    longest = sorted(whole, key=lambda pair: (-len(pair[1]), pair[0]))[:_LONGEST]
    return pl.DataFrame(
        {
            "id": [i for i, _ in longest],
            "characters": [len(text) for _, text in longest],
            "token": [text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥") for _, text in longest],
        },
        schema={"id": pl.Int64, "characters": pl.Int64, "token": pl.String},
    )


def _summary(
    config: Config, tokenizer: PreTrainedTokenizerFast, shares: pl.DataFrame, rows: pl.DataFrame
) -> dict[str, Scalar]:
    compared = rows.filter(pl.col("ratio").is_not_null())
    # A tokenizer for the language alone that found no more merges has an unfairly small vocabulary.
    full = compared.filter(pl.col("alone_vocabulary") == config.vocabulary)
    summary: dict[str, Scalar] = {
        "vocabulary": len(tokenizer),
        "padded_vocabulary": padded_vocabulary(len(tokenizer)),
        "n_languages": shares.height,
        "sample_bytes": int(shares["sampled"].sum()),
        "sentences": int(rows["sentences"].sum()),
        "sentences_not_restored": int(rows["lost"].sum()),
        "bytes_per_token_mean": _mean(rows.filter(pl.col("trained_on"))["bytes_per_token"]),
        "ratio_mean": _mean(compared["ratio"]),
        "languages_compared": compared.height,
        "languages_compared_in_full": full.height,
        "languages_within_bar": compared.filter(pl.col("ratio") <= BAR).height,
    }
    for row in rows.iter_rows(named=True):
        summary[f"fertility_{row['language']}"] = row["per_word"]
        summary[f"bytes_per_token_{row['language']}"] = row["bytes_per_token"]
        for end in ("", "_lo", "_hi"):
            summary[f"ratio_{row['language']}{end}"] = row[f"ratio{end}"]
    return summary


def _mean(values: pl.Series) -> float | None:
    return float(values.cast(pl.Float64).to_numpy().mean()) if len(values) else None
