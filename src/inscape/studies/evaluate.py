"""`inscape evaluate`: how good a language model is, with intervals, chance and what counting words would give.

Measured, each as far as the data are there and ``tasks`` asks for it:

- ``bits``: bits per byte and per parallel sentence (PUD), by language; beside a unigram and a Kneser-Ney 5-gram on the same
  tokens, where the token shards that the model was trained on are given;
- ``positions``: the same tokens foretold from longer and longer contexts, beyond the training length;
- ``xcopa``, ``rte``, ``crows_pairs``: choices by likelihood, several prompts each;
- ``translation``: Tatoeba into English and back, raw and cut at the first line;
- tasks of the lm-evaluation-harness, where they are named.

A series of checkpoints (a run folder of `inscape pretrain`) is measured at its last one, or at all.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import torch
from pydantic import BaseModel, ConfigDict, Field

from inscape.data.benchmarks import Choice, read_crows_pairs, read_parallel, read_rte, read_tatoeba, read_xcopa
from inscape.data.corpus import read_documents
from inscape.data.corpus.shards import TokenShards, tokenizer_sha256
from inscape.data.prompts.languages import NAMES
from inscape.errors import InputError
from inscape.evaluation.bits import ngram_bits, text_bits
from inscape.evaluation.choices import rank
from inscape.evaluation.lm_eval import run_tasks
from inscape.evaluation.ngrams import KneserNey
from inscape.evaluation.positions import context_losses, long_windows, position_losses
from inscape.evaluation.translation import translate
from inscape.models import LM, load
from inscape.models.loading import check_folder, folder_hash, usable_device
from inscape.runs import Run
from inscape.studies.evaluate_summary import summarise, translation_scores
from inscape.training.checkpoints import Checkpoints

Task = Literal["bits", "positions", "xcopa", "rte", "crows_pairs", "translation"]
CHOICES: tuple[Task, ...] = ("xcopa", "rte", "crows_pairs")
ALL: tuple[Task, ...] = ("bits", "positions", *CHOICES, "translation")

_DOCUMENTS = 5000
"""Documents of files with long texts that are looked through."""


class Config(BaseModel):
    """``inscape evaluate``. How much of each set is used decides how wide the intervals are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = Field(
        default=None, description="model folder or hub id, or a run folder with checkpoints (`inscape pretrain`)"
    )
    revision: str | None = Field(default=None, description="revision of a hub model (branch, tag or commit)")
    checkpoints: Literal["last", "all"] = Field(default="last", description="which of a run folder's are measured")
    corpora: str | None = Field(
        default=None, description="folder with eval/ and parallel/ (default: data/corpora under INSCAPE_SHARED)"
    )
    tasks: tuple[Task, ...] | None = Field(
        default=None, description="what is measured (default: all there is data for)"
    )
    languages: tuple[str, ...] | None = Field(
        default=None, description="languages of sentences, XCOPA and translation (default: all that the sets have)"
    )
    unseen: tuple[str, ...] = Field(default=(), description="languages that the model was not trained on, told apart")
    shards: str | None = Field(
        default=None,
        description="token shards that the model was trained on: n-gram models are fitted to them, and their held-back "
        "documents are the long texts",
    )
    long_texts: tuple[str, ...] | None = Field(
        default=None, description="text files whose long documents are the long texts, instead of the shards'"
    )
    sentences: int = Field(default=200, ge=2, description="parallel sentences of a language (PUD has 1,000)")
    items: int = Field(default=200, ge=2, description="most items of a task and language (paper: all)")
    pairs: int = Field(default=50, ge=2, description="sentence pairs translated, by language and direction")
    new_tokens: int = Field(default=64, ge=1, description="tokens of a translation at most (paper: 64 to 512)")
    shots: int = Field(default=0, ge=0, le=8, description="translations shown in the prompt (paper: 0 and 1)")
    lengths: tuple[int, ...] = Field(default=(256, 512, 1024, 2048), min_length=1, description="contexts, in tokens")
    trained_length: int | None = Field(
        default=None, ge=2, description="tokens of a row in training, one of the lengths (default: the shortest)"
    )
    targets: int = Field(default=64, ge=1, description="tokens foretold at the end of each long text")
    windows: int = Field(default=32, ge=2, description="long texts")
    order: int = Field(default=5, ge=2, le=8, description="of the n-gram model")
    lm_eval: tuple[str, ...] = Field(default=(), description="tasks of the lm-evaluation-harness (extra: eval)")
    batch_size: int = Field(default=16, ge=1, description="sequences at a time (on a GPU, give more)")
    seed: int = Field(default=0, ge=0, description="of the items drawn and of the intervals")
    device: str | None = Field(default=None, description="where it runs, e.g. cuda (default: CUDA if there is one)")
    threads: int | None = Field(default=None, ge=1, description="CPU threads (default: as torch has it)")

    def identity(self) -> dict[str, object]:
        """The fields that results depend on; model and data count by content."""
        elsewhere = {"model", "revision", "corpora", "shards", "long_texts", "batch_size", "device", "threads"}
        return self.model_dump(mode="json", exclude=elsewhere)


SMOKE = {
    "sentences": 6, "items": 4, "pairs": 2, "new_tokens": 8, "lengths": (32, 64), "targets": 8, "windows": 4, "order": 3,
}  # fmt: skip
"""What ``--smoke`` sets: the whole pipeline at the smallest sizes. A model must be given."""


@dataclass(frozen=True)
class Subject:
    """One model to be measured; ``step`` and ``tokens`` where it is of a series."""

    name: str
    source: str
    revision: str | None
    step: int | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Asked:
    """What is measured on what."""

    subjects: tuple[Subject, ...]
    corpora: Path | None
    shards: TokenShards | None
    tasks: tuple[Task, ...]


def asked_for(config: Config) -> Asked:
    """What a config asks for. Raises InputError where a model or data that it names is not there."""
    if config.model is None:
        raise InputError("evaluate: no model, expected --model FOLDER (or a hub id)")
    subjects = _subjects(config)
    corpora = _corpora(config)
    shards = None if config.shards is None else TokenShards.open(config.shards)
    needs = {
        "bits": corpora and corpora / "eval" / "pud",
        "positions": True if shards or config.long_texts else None,
        "xcopa": corpora and corpora / "eval" / "xcopa",
        "rte": corpora and corpora / "eval" / "rte",
        "crows_pairs": corpora and corpora / "eval" / "crows_pairs.csv",
        "translation": corpora and corpora / "parallel",
    }
    there = {task for task, need in needs.items() if need is True or (need and need.exists())}
    if missing := [task for task in config.tasks or () if task not in there]:
        what = "token shards or long texts" if missing[0] == "positions" else "a folder of corpora that has it"
        raise InputError(f"task {missing[0]}: no data for it, expected {what}")
    tasks = tuple(task for task in ALL if task in (there if config.tasks is None else config.tasks))
    if not tasks and not config.lm_eval:
        raise InputError(f"evaluate: no data for any task in {corpora}, expected a folder of corpora (--corpora)")
    if "positions" in tasks and config.trained_length not in (None, *config.lengths):
        raise InputError(f"trained length {config.trained_length}, expected one of the lengths {list(config.lengths)}")
    return Asked(subjects, corpora, shards, tasks)


def _subjects(config: Config) -> tuple[Subject, ...]:
    assert config.model is not None
    path = Path(config.model).expanduser()
    if path.is_dir() and not (path / "config.json").exists():
        series = list(Checkpoints(path))[0 if config.checkpoints == "all" else -1 :]
        return tuple(Subject(f"step {c.step}", c.source, c.revision, c.step, c.tokens) for c in series)
    if path.exists() or config.model.startswith((".", "/", "~")):
        check_folder(path)
    return (Subject("model", config.model, config.revision),)


def _corpora(config: Config) -> Path | None:
    shared = os.environ.get("INSCAPE_SHARED")
    if config.corpora is None and shared is None:
        return None
    folder = Path(shared or "", "data", "corpora") if config.corpora is None else Path(config.corpora).expanduser()
    if config.corpora is not None and not folder.is_dir():
        raise InputError(f"corpora {folder}: no such folder, expected one with eval/ and parallel/")
    return folder


def inputs_of(config: Config, asked: Asked) -> dict[str, str]:
    """What a run depends on, by content."""
    found = {}
    for subject in asked.subjects:
        path = Path(subject.source).expanduser()
        local = path.is_dir()
        found[subject.name] = (
            folder_hash(path)["model_sha256"]
            if local
            else f"hub {subject.source} {subject.revision or 'default revision'}"
        )
    if asked.corpora is not None:
        files = [f for part in ("eval", "parallel") for f in sorted((asked.corpora / part).rglob("*")) if f.is_file()]
        found["corpora"] = _hash(files)
    if asked.shards is not None:
        found["shards"] = f"{asked.shards.corpus_sha256} {asked.shards.tokenizer_sha256}"
    if config.long_texts is not None:
        found["long texts"] = _hash([Path(file).expanduser() for file in config.long_texts])
    return found


def _hash(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        try:
            digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
        except OSError as error:
            raise InputError(f"{file}: {error.strerror}, expected a file to evaluate on") from error
    return digest.hexdigest()


def run(config: Config, asked: Asked, run: Run) -> None:
    """All stages, each resumable; writes the tables and the summary."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    study = _Study(config, asked, run)
    names = [subject.name for subject in asked.subjects]
    run.stage("models", lambda: {"models": _models(asked.subjects)})
    for task in asked.tasks:
        run.map(task, names, study.of(task))
    if "bits" in asked.tasks and (shards := asked.shards) is not None:
        run.stage("counts", lambda: {"counts": study.counts(shards)})
    if "translation" in asked.tasks:
        run.stage("translation_scores", lambda: {"translation_scores": translation_scores(run, config.seed)})
    if config.lm_eval:
        run.map("lm_eval", names, study.lm_eval)
    run.summary(summarise(run, seed=config.seed))


def _models(subjects: Sequence[Subject]) -> pl.DataFrame:
    schema = {"model": pl.String, "step": pl.Int64, "tokens": pl.Int64}
    return pl.DataFrame([(s.name, s.step, s.tokens) for s in subjects], schema=schema, orient="row")


class _Study:
    """The measurements, each a function of a model's name; the model that was loaded last is kept."""

    def __init__(self, config: Config, asked: Asked, run: Run) -> None:
        self.config, self.asked, self.run = config, asked, run
        self.device = str(usable_device(config.device or ("cuda" if torch.cuda.is_available() else "cpu")))
        self._loaded: tuple[str, LM] | None = None

    def of(self, task: Task) -> Callable[[str], pl.DataFrame]:
        measure = {"bits": self.bits, "positions": self.positions, "translation": self.translation}.get(
            task, lambda lm: self.choices(task, lm)
        )
        return lambda name: measure(self.lm(name)).select(pl.lit(name).alias("model"), pl.all())

    def lm(self, name: str) -> LM:
        if self._loaded is None or self._loaded[0] != name:
            self._loaded = None
            subject = next(s for s in self.asked.subjects if s.name == name)
            lm = load(subject.source, device=self.device, dtype=torch.float32, revision=subject.revision)
            if lm.tokenizer is None:
                raise InputError(f"model {subject.source}: no tokenizer in the folder, expected one to read texts with")
            if self.asked.shards is not None and self.asked.shards.tokenizer_sha256 != tokenizer_sha256(lm.tokenizer):
                raise InputError(
                    f"shards {self.config.shards}: made with another tokenizer than that of {subject.source}"
                )
            self.run.record(**lm.record(), device=self.device)
            self._loaded = name, lm
        return self._loaded[1]

    @property
    def root(self) -> Path:
        assert self.asked.corpora is not None
        return self.asked.corpora

    # -- bits ------------------------------------------------------------------------------------------------------

    @cached_property
    def sentences(self) -> dict[str, dict[str, str]]:
        """By language and id: the same ones of each."""
        folder = self.root / "eval" / "pud"
        there = _languages(folder, ".conllu.gz", self.config.languages, "parallel sentences")
        every = read_parallel(folder, there)
        ids = list(next(iter(every.values())))
        chosen = [ids[i] for i in _drawn(len(ids), self.config.sentences, self.config.seed)]
        return {language: {one: texts[one] for one in chosen} for language, texts in every.items()}

    def bits(self, lm: LM) -> pl.DataFrame:
        return self._scored(lambda texts: text_bits(lm, texts, batch_size=self.config.batch_size))

    def _scored(self, score: Callable[[Sequence[str]], pl.DataFrame]) -> pl.DataFrame:
        parts = []
        for language, texts in self.run.track(self.sentences.items(), "bits: languages", len(self.sentences)):
            rows = score(list(texts.values())).with_columns(
                pl.Series("sentence", list(texts)), pl.lit(language).alias("language")
            )
            parts.append(rows.select("language", "sentence", pl.exclude("language", "sentence", "text")))
        return pl.concat(parts)

    def counts(self, shards: TokenShards) -> pl.DataFrame:
        """The sentences by n-gram models of all training text, as rows of `bits`."""
        lm = self.lm(self.asked.subjects[-1].name)
        parts = []
        for order in (1, self.config.order):
            with self.run.progress(f"{order}-gram counts: orders", order) as advance:
                counted = KneserNey(order).fit(_documents(shards, "train"), lm.vocab, advance)
            found = self._scored(lambda texts, counted=counted: ngram_bits(counted, lm.tokenizer, texts))  # type: ignore[misc]
            parts.append(found.select(pl.lit(f"{order}-gram").alias("model"), pl.all()))
            self.run.record(**{f"n_grams_{order}": counted.n_grams_, "tokens_counted": counted.n_tokens_})
        return pl.concat(parts)

    # -- positions -------------------------------------------------------------------------------------------------

    def positions(self, lm: LM) -> pl.DataFrame:
        """Rows of `context_losses` (``length``) and, of the longest windows, of `position_losses` (``first, last``)."""
        config = self.config
        if config.long_texts is not None:
            texts = islice(read_documents([Path(file).expanduser() for file in config.long_texts]), _DOCUMENTS)
            documents: list[Sequence[int]] = [lm.tokenizer(text)["input_ids"] for text in texts]
        else:
            assert self.asked.shards is not None
            documents = [ids.tolist() for ids in _documents(self.asked.shards, "validation")]
        windows = long_windows(documents, max(config.lengths), config.windows, seed=config.seed)
        contexts = context_losses(lm, windows, config.lengths, targets=config.targets)
        return pl.concat([contexts, position_losses(lm, windows)], how="diagonal")

    # -- choices and translation -----------------------------------------------------------------------------------

    def choices(self, task: Task, lm: LM) -> pl.DataFrame:
        folder = self.root / "eval"
        sets: dict[str, list[Choice]]
        if task == "xcopa":
            there = _languages(folder / "xcopa", ".test.jsonl", self.config.languages, task)
            sets = {language: read_xcopa(folder / "xcopa", language) for language in there}
        else:
            sets = {"en": read_rte(folder / "rte") if task == "rte" else read_crows_pairs(folder / "crows_pairs.csv")}
        parts = []
        for items in self.run.track(sets.values(), f"{task}: languages", len(sets)):
            drawn = [items[i] for i in _drawn(len(items), self.config.items, self.config.seed)]
            rows = rank(lm, drawn, batch_size=self.config.batch_size)
            self.run.record(**{f"too_long_{task}_{drawn[0].language}": len(drawn) - rows["id"].n_unique()})
            parts.append(rows)
        return pl.concat(parts)

    def translation(self, lm: LM) -> pl.DataFrame:
        folder, config = self.root / "parallel", self.config
        there = [
            code
            for code in _languages(folder, "-en.tsv.gz", config.languages, "translation", "tatoeba.")
            if code in NAMES
        ]
        parts = []
        for language in self.run.track(there, "translation: languages"):
            pairs = read_tatoeba(folder, language)
            tests = [pair for pair in pairs if pair.test]
            drawn = [tests[i] for i in _drawn(len(tests), config.pairs, config.seed)]
            shown = [pair for pair in pairs if not pair.test][: config.shots]
            parts += [
                translate(lm, drawn, NAMES, into=into, examples=shown, max_new_tokens=config.new_tokens,
                          batch_size=config.batch_size)
                for into in ("en", language)
            ]  # fmt: skip
        return pl.concat(parts)

    def lm_eval(self, name: str) -> pl.DataFrame:
        subject = next(s for s in self.asked.subjects if s.name == name)
        rows = run_tasks(
            subject.source, self.config.lm_eval, limit=self.config.items, batch_size=self.config.batch_size,
            device=self.device, seed=self.config.seed,
        )  # fmt: skip
        return rows.select(pl.lit(name).alias("model"), pl.all())


def _languages(folder: Path, ending: str, wanted: Sequence[str] | None, what: str, before: str = "") -> list[str]:
    """The languages that a folder has files of and that are wanted. Raises InputError where there are none."""
    names = sorted(file.name for file in folder.iterdir())
    there = [n.removesuffix(ending).removeprefix(before) for n in names if n.startswith(before) and n.endswith(ending)]
    found = [language for language in there if wanted is None or language in wanted]
    if not found:
        raise InputError(f"{what}: none of {', '.join(wanted or ())} in {folder}, expected some of {', '.join(there)}")
    return found


def _drawn(size: int, n: int, seed: int) -> list[int]:
    """At most ``n`` of ``size`` places, in order; the same ones for sets of one size."""
    return sorted(np.random.default_rng([seed, 71]).permutation(size)[:n].tolist())


def _documents(shards: TokenShards, split: Literal["train", "validation"]) -> Iterator[np.ndarray]:
    for language in shards.languages:
        part = shards.part(split, language)
        yield from (part.document(i) for i in range(part.n_documents))
