"""What `detokenization` runs on: a causal LM and a text, given or made here; and the texts drawn from it.

Without a model, a small GPT-2 or BLOOM is trained on the text (once; it is cached). Without a text, a given model is
read from its weights alone: nothing is counted and no attention is observed. With neither, a text is made as well.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from inscape.attention.bigrams import Documents
from inscape.data.corpus import corpus_hash, read_documents
from inscape.errors import InputError
from inscape.models import LM, load
from inscape.models.loading import check_folder, folder_hash, usable_device
from inscape.runs import Run
from inscape.studies.numeric_setup import cache_dir
from inscape.training.corpus import CorpusTrainingConfig, cached_corpus_lm, corpus_training_key
from inscape.training.corpus_recipes import CorpusSize, Kind, corpus_training_of, default_corpus
from inscape.training.facts import RECORD, finished_record

_CHARACTERS_PER_TOKEN = 24
"""More than any tokenizer puts into a token on average: what lies beyond need not be tokenised."""

_SPARE = 20
"""Documents kept for each that is wanted: most may turn out too short."""


class Config(BaseModel):
    """``inscape run detokenization``. Defaults are the paper's where it has a value; otherwise the text says why."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = Field(
        default=None, description="folder or hub id of a causal LM; without one, a small LM is trained on the corpus"
    )
    revision: str | None = Field(default=None, description="revision of a hub model (branch, tag or commit)")
    corpus: tuple[str, ...] | None = Field(
        default=None,
        description="text files, plain (an empty line ends a document) or .jsonl with a field text, also .gz (paper: "
        "OpenWebText); without them a given model is read from its weights alone",
    )
    kind: Kind = Field(default="gpt2", description="which LM is trained here: learned positions, or ALiBi (bloom)")
    size: CorpusSize = Field(default="standard", description="size of the LM trained here and of a text made here")
    texts: int = Field(default=100, ge=2, description="documents whose attention is looked at (paper: 100 and 5,000)")
    length: int = Field(
        default=128, ge=8, description="tokens of each, from its start; at most the model's context (paper: 1,024)"
    )
    recent: int = Field(default=15, ge=1, description="tokens before the query that count as recent past (paper: 15)")
    suffixes: tuple[str, ...] | None = Field(
        default=None,
        description="texts of one token each whose prefixes are shown (paper: iens, tarian and ' Jackson'; default: those "
        "of them that are tokens, and the most frequent ones inside words)",
    )
    top: int = Field(default=10, ge=1, le=100, description="prefixes shown for each")
    published: bool = Field(
        default=False,
        description="headline numbers in the published form: suffixes without a bigram count as 0 in the mean AUROC, and "
        "the importance of terms is taken at logits that are not scaled",
    )
    seed: int = Field(default=0, ge=0, description="of training, of the texts drawn and of the untrained model")
    device: str | None = Field(
        default=None, description="where the model runs, e.g. cuda (default: CUDA if there is one)"
    )
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads (default: 1 for models under 50 M parameters)"
    )
    processes: int | None = Field(
        default=None,
        ge=1,
        description="processes that count bigrams (default: one per core from 50 MB of text on, else 1)",
    )

    def identity(self) -> dict[str, object]:
        """The fields that results depend on: not where it runs, nor how files are spelled (their hashes are inputs)."""
        elsewhere = {"model", "corpus", "revision", "device", "threads", "processes"}
        return self.model_dump(mode="json", exclude=elsewhere)


SMOKE = {"size": "smoke", "texts": 8, "length": 32, "recent": 5, "top": 5}
"""What ``--smoke`` sets: the whole pipeline at the smallest sizes."""


@dataclass(frozen=True)
class Asked:
    """The text of a run, or none, and how its LM is trained if it is."""

    files: tuple[Path, ...]
    recipe: CorpusTrainingConfig | None
    sha256: str


def asked_for(config: Config) -> Asked:
    """What a config asks for. Raises InputError for files that can't be read."""
    recipe = None if config.model is not None else corpus_training_of(config.kind, config.size, config.seed)
    if config.corpus is not None:
        files = tuple(Path(file).expanduser() for file in config.corpus)
    elif config.model is None:
        files = (default_corpus(config.size, config.seed, cache_dir()),)
    else:
        return Asked((), None, "none")
    kinds = {documents_of(file) for file in files}
    if len(kinds) > 1:
        raise InputError("corpus: plain text and JSON lines together, expected files of one kind")
    return Asked(files, recipe, corpus_hash(files))


def documents_of(file: Path) -> Documents:
    """What a document is in a file of this name; as `inscape.data.corpus` reads it."""
    return "jsonl" if file.name.removesuffix(".gz").endswith((".jsonl", ".ndjson")) else "blank line"


def inputs_of(config: Config, asked: Asked) -> dict[str, str]:
    """What a run depends on, by content: text, model and tokenizer."""
    if config.model is None:
        assert asked.recipe is not None
        key = corpus_training_key(asked.files, asked.recipe)
        return {"corpus": asked.sha256, "model": f"trained here {key}"}
    path = Path(config.model).expanduser()
    if not path.exists():
        return {"corpus": asked.sha256, "model": f"hub {config.model} {config.revision or 'default revision'}"}
    check_folder(path)
    tokenizer = path / "tokenizer.json"
    known = hashlib.sha256(tokenizer.read_bytes()).hexdigest() if tokenizer.exists() else "none"
    return {"corpus": asked.sha256, "model": folder_hash(path)["model_sha256"], "tokenizer": known}


@dataclass(frozen=True, eq=False)
class Subject:
    """A loaded model; ``training`` is the record of its training where it was trained here."""

    lm: LM
    name: str
    training: dict[str, object] | None


def subject_of(config: Config, asked: Asked, run: Run) -> Subject:
    """Load the model, training it first if need be, and put into the record what it is."""
    device = str(usable_device(config.device or ("cuda" if torch.cuda.is_available() else "cpu")))
    source = config.model
    if source is None:
        assert asked.recipe is not None
        source = str(cached_corpus_lm(asked.files, asked.recipe, cache_dir(), progress=run.reporter))
    lm = load(source, device=device, dtype=torch.float32, revision=config.revision)
    small = sum(p.numel() for p in lm.model.parameters()) < 50_000_000
    if config.threads is not None or small:
        # Below some 50 M parameters, handing work between threads costs more than it saves.
        torch.set_num_threads(config.threads or 1)
    record = None
    folder = Path(source).expanduser()
    if (folder / RECORD).is_file() and "unigram_entropy" in (found := finished_record(folder) or {}):
        record = found
    if asked.files and lm.tokenizer is None:
        raise InputError(f"model {source}: no tokenizer in the folder, expected one to read the corpus with")
    run.record(
        **lm.record(),
        device=str(lm.device),
        corpus=[file.name for file in asked.files],
        tokenizer_length=None if lm.tokenizer is None else len(lm.tokenizer),
        embedding_rows=lm.vocab,
        trained_here=None
        if record is None
        else {name: record[name] for name in ("validation_loss", "unigram_entropy", "seconds", "n_parameters")},
        threads=torch.get_num_threads(),
    )
    return Subject(lm, str(source), record)


def draw_texts(lm: LM, files: Sequence[Path], n: int, length: int, least: int, seed: int) -> list[list[int]]:
    """Token ids of at most ``n`` documents drawn by seed, each cut at ``length`` tokens, none with fewer than ``least``.

    Raises:
        InputError: no document is long enough, or an id has no embedding.
    """
    rng = np.random.default_rng([seed, 53])
    # A sample of more than enough documents from one pass over a text of any size (reservoir sampling).
    kept: list[str] = []
    met = 0
    for text in read_documents(files):
        start = text[: length * _CHARACTERS_PER_TOKEN]
        if len(start.encode()) < least:  # (a token is a byte or more)
            continue
        met += 1
        if len(kept) < _SPARE * n:
            kept.append(start)
        elif (at := int(rng.integers(met))) < len(kept):
            kept[at] = start
    rng.shuffle(kept)
    found: list[list[int]] = []
    for text in kept:
        ids = list(lm.tokenizer(text, truncation=True, max_length=length)["input_ids"])[:length]
        if len(ids) >= least:
            found.append(ids)
        if len(found) == n:
            break
    if not found:
        raise InputError(f"corpus: no document of {least} tokens or more, expected some; ask for a smaller --length")
    if wrong := [i for ids in found for i in ids if i >= lm.vocab]:
        raise InputError(
            f"corpus: token id {wrong[0]} of the text has no embedding ({lm.vocab} rows, tokenizer of "
            f"{len(lm.tokenizer)} tokens): expected the tokenizer of the model"
        )
    return found
