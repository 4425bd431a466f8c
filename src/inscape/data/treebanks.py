"""Treebanks: sentences with their morphology and syntax, and the yes/no questions that a probe answers about a sentence.

A treebank is a CoNLL-U file of Universal Dependencies. In the parallel ones (PUD: Zeman et al. 2017) a sentence and all of
its translations share one ``sent_id``, so a split by id keeps translations together, and transfer between languages is
tested on sentences that were trained on in no language.

A *task* asks whether any word of a sentence has a property (BLOOM, section 4.9): ``Case=Acc`` (a morphological feature with
a value), ``upos=ADP`` (a part of speech) or ``deprel=nsubj`` (a dependency relation; its subtypes, ``nsubj:pass``, count as
it). A value that lists several (``Case=Acc,Dat``) counts as each of them. Only words count: not the ranges of multiword
tokens, not empty nodes. Tasks with nearly one answer for all sentences are left out.

What such a task does *not* show: that the property is encoded. A long sentence has more of everything, and many properties
stand and fall with single words ("the" is ``Definite=Def``); :mod:`inscape.probing.baselines` measures both.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, TextIO, get_args

import conllu
import numpy as np
from numpy.typing import NDArray

from inscape.errors import InputError

Kind = Literal["feature", "upos", "deprel"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_ENDINGS = (".conllu", ".conllu.gz")


@dataclass(frozen=True)
class Sentence:
    """A sentence: its id, its text, and the properties that at least one of its words has.

    ``features`` are named ``Case=Acc``, ``upos`` as ``upos=ADP``, ``deprel`` as ``deprel=nsubj``. ``words`` counts words.
    """

    id: str
    text: str
    words: int
    features: frozenset[str]
    upos: frozenset[str]
    deprel: frozenset[str]

    def properties(self, kind: Kind) -> frozenset[str]:
        return {"feature": self.features, "upos": self.upos, "deprel": self.deprel}[kind]


@dataclass(frozen=True)
class Tasks:
    """Yes/no questions about the sentences of one treebank. ``values``: bool [sentence, task], True where it has it."""

    names: tuple[str, ...]
    kinds: tuple[Kind, ...]
    values: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Treebank:
    """The sentences of one language, in the order of the file, each id once."""

    language: str
    sentences: tuple[Sentence, ...]

    @cached_property
    def ids(self) -> tuple[str, ...]:
        return tuple(sentence.id for sentence in self.sentences)

    @cached_property
    def texts(self) -> tuple[str, ...]:
        return tuple(sentence.text for sentence in self.sentences)

    def __len__(self) -> int:
        return len(self.sentences)

    def sample(self, n: int) -> Treebank:
        """At most ``n`` sentences, drawn by a hash of the id: the same ones from every language of a parallel treebank.

        Raises:
            InputError: ``n`` isn't positive.
        """
        if n < 1:
            raise InputError(f"treebank {self.language}: a sample of {n} sentences, expected at least 1")
        drawn = set(sorted(self.ids, key=lambda i: hashlib.sha256(i.encode()).digest())[:n])
        return Treebank(self.language, tuple(sentence for sentence in self.sentences if sentence.id in drawn))

    def presence(self, kinds: Sequence[Kind] = ("feature",), *, least: float = 0.1, most: float = 0.9) -> Tasks:
        """The tasks whose share of sentences with the property is in [``least``, ``most``], by kind, then by name.

        Raises:
            InputError: an unknown kind, bounds that are no shares, or no task within them.
        """
        if unknown := sorted(set(kinds) - set(KINDS)):
            raise InputError(f"presence tasks: unknown kinds {unknown}, expected some of {', '.join(KINDS)}")
        if not 0 < least <= most < 1:
            raise InputError(f"presence tasks: shares from {least} to {most}, expected 0 < least <= most < 1")
        names: list[str] = []
        of_kind: list[Kind] = []
        columns: list[NDArray[np.bool_]] = []
        for kind in dict.fromkeys(kinds):
            held = [sentence.properties(kind) for sentence in self.sentences]
            for name in sorted(set().union(*held)):
                column = np.array([name in properties for properties in held])
                if least <= column.mean() <= most:
                    names.append(name)
                    of_kind.append(kind)
                    columns.append(column)
        if not names:
            raise InputError(
                f"treebank {self.language}: none of {', '.join(kinds)} is in {least:.0%} to {most:.0%} of its"
                f" {len(self)} sentences, expected at least one"
            )
        return Tasks(tuple(names), tuple(of_kind), np.stack(columns, axis=1))


def read_treebank(path: str | Path, language: str | None = None) -> Treebank:
    """The treebank in a CoNLL-U file, plain or gzipped; ``language`` defaults to the file's name before the first dot.

    Raises:
        InputError: no such file; no UTF-8, cut off, or no CoNLL-U; a sentence without ``sent_id``, ``text`` or words; an id
            that stands twice; no sentences.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"treebank {path}: no such file (expected CoNLL-U, plain or gzipped)")
    sentences: dict[str, Sentence] = {}
    try:
        with _opened(path) as file:
            for number, parsed in enumerate(conllu.parse_incr(file), start=1):
                sentence = _sentence(parsed, f"{path.name}, sentence {number}")
                if sentence.id in sentences:
                    raise InputError(f"{path.name}, sentence {number}: sent_id {sentence.id} stands twice")
                sentences[sentence.id] = sentence
    except InputError:
        raise
    except (conllu.exceptions.ParseException, UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"treebank {path}: after {len(sentences)} sentences: not CoNLL-U ({reason})") from error
    if not sentences:
        raise InputError(f"treebank {path}: no sentences")
    return Treebank(language or path.name.split(".")[0], tuple(sentences.values()))


def read_treebanks(folder: str | Path, languages: Iterable[str] | None = None) -> dict[str, Treebank]:
    """Treebanks by language, from files ``<language>.conllu[.gz]`` of a folder; all that are there if None.

    Raises:
        InputError: no such folder, no treebank in it, a language without a file, or what :func:`read_treebank` raises.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"treebanks {folder}: no such folder (expected files like en.conllu.gz)")
    files = {f.name.split(".")[0]: f for f in sorted(folder.iterdir()) if f.name.endswith(_ENDINGS)}
    wanted = sorted(files) if languages is None else list(dict.fromkeys(languages))
    if missing := [language for language in wanted if language not in files]:
        raise InputError(f"treebanks {folder}: none for {', '.join(missing)}; there are {', '.join(files) or 'none'}")
    if not wanted:
        raise InputError(f"treebanks {folder}: no treebank is there or asked for (expected files like en.conllu.gz)")
    return {language: read_treebank(files[language], language) for language in wanted}


def _opened(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _sentence(parsed: conllu.TokenList, place: str) -> Sentence:
    words = [token for token in parsed if isinstance(token["id"], int)]
    for key in ("sent_id", "text"):
        if not parsed.metadata.get(key):
            raise InputError(f"{place}: no {key} line, expected '# {key} = …'")
    if not words:
        raise InputError(f"{place}: no words")
    if short := next((word for word in words if not {"upos", "feats", "deprel"} <= set(word)), None):
        raise InputError(f"{place}: word {short['id']} has {len(short)} columns, expected the 10 of CoNLL-U")
    features = (pair for word in words for pair in (word["feats"] or {}).items())
    return Sentence(
        parsed.metadata["sent_id"],
        parsed.metadata["text"],
        len(words),
        frozenset(f"{name}={value}" for name, values in features for value in _listed(values)),
        frozenset(f"upos={word['upos']}" for word in words if word["upos"] not in (None, "_")),
        frozenset(f"deprel={word['deprel'].split(':')[0]}" for word in words if word["deprel"] not in (None, "_")),
    )


def _listed(values: str | None) -> Iterator[str]:
    yield from (value for value in (values or "").split(",") if value)
