"""A built corpus: documents by language, with a part held back for validation.

``manifest.json``         sources, languages, counts of every step, hashes
``text/<lang>.jsonl.gz``  one document a line: ``id``, ``lang``, ``source``, ``split``, ``text``
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from inscape.data.corpus.documents import Document, json_lines, json_row
from inscape.data.corpus.writing import read_json
from inscape.errors import InputError

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")
FORMAT = "inscape corpus 1"


class Corpus:
    """Reads a corpus folder; `Corpus.open` makes one.

    Attributes:
        folder: where it is.
        manifest: what ``manifest.json`` holds.
        languages: codes, sorted.
        sha256: of the documents by language, whatever they are packed with.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.languages: list[str] = sorted(manifest["languages"])
        self.sha256: str = sha256_of({name: row["sha256"] for name, row in manifest["languages"].items()})

    @classmethod
    def open(cls, folder: str | Path) -> Corpus:
        """A folder that `build_corpus` made, or a run folder with one in ``corpus/``.

        Raises:
            InputError: it is neither, or was not finished.
        """
        folder = Path(folder)
        for place in (folder, folder / "corpus"):
            if not (place / "manifest.json").is_file():
                continue
            manifest = read_json(place / "manifest.json", "the manifest of a corpus")
            if manifest.get("format") == FORMAT:
                return cls(place, manifest)
        raise InputError(
            f"corpus {folder}: no manifest of a built corpus in it, expected what `inscape corpus build` made"
        )

    def file(self, language: str) -> Path:
        """The file of a language. Raises InputError for one that the corpus does not have."""
        if language not in self.manifest["languages"]:
            raise InputError(
                f"corpus {self.folder}: no language {language!r}, expected one of {', '.join(self.languages)}"
            )
        return self.folder / "text" / f"{language}.jsonl.gz"

    def documents(self, languages: Sequence[str] | None = None, split: Split = "train") -> Iterator[Document]:
        """The documents of a split, language by language (all, or those named), in the order of the sources.

        Raises:
            InputError: a language that the corpus does not have, or a damaged file.
        """
        for file in [self.file(language) for language in (self.languages if languages is None else languages)]:
            for number, line in json_lines(file):
                row = json_row(line, f"corpus {file}, line {number}")
                if row["split"] == split:
                    yield Document(row["id"], row["lang"], row["source"], row["text"])

    def bytes_by_language(self, split: Split = "train") -> dict[str, int]:
        """UTF-8 bytes of text, by language."""
        return {name: int(self.manifest["languages"][name][split]["bytes"]) for name in self.languages}

    def documents_by_language(self, split: Split = "train") -> dict[str, int]:
        """Number of documents, by language."""
        return {name: int(self.manifest["languages"][name][split]["documents"]) for name in self.languages}


def sha256_of(parts: dict[str, str]) -> str:
    """One hash for named ones, in whatever order."""
    return hashlib.sha256("".join(f"{name} {part}\n" for name, part in sorted(parts.items())).encode()).hexdigest()
