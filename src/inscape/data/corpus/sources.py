"""What a corpus is made of: sources with their language, licence and files, and what is done to each.

A manifest in the manner of ROOTS (Laurençon et al., NeurIPS 2022, arXiv 2303.03915): one entry per source. The text of
different sources needs different care: a sentence collection has no document of 20 words, and source code no stop words.
So each source says which steps are left out for it, as each catalogue source of ROOTS had its own list.
"""

from __future__ import annotations

import glob
import os
import re
import sysconfig
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from inscape.data.corpus.pii import TAGS, Tag
from inscape.errors import InputError

Step = Literal[
    "exact",
    "template_lines",
    "length",
    "character_repetition",
    "word_repetition",
    "special_characters",
    "stop_words",
    "language_id",
    "near",
]
"""Steps that a source can do without; markup and personal data have fields of their own."""

CODE = "code"
"""The language of source code."""

TEXT_ONLY: tuple[Step, ...] = (
    "template_lines", "character_repetition", "word_repetition", "special_characters", "stop_words", "language_id",
)  # fmt: skip
"""Steps that hold for running text, not for source code."""

# ISO 639-1, all of it: a code of two letters that is not here is a typing error.
_ISO_639_1 = """
aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el
en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu
ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na
nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg sh si sk sl sm sn
so sq sr ss st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu
"""
_TWO_LETTERS = frozenset(_ISO_639_1.split())
_CODE = re.compile(r"([a-z]{2,3})(-[A-Z][a-z]{3})?(-(?:[A-Z]{2}|[0-9]{3}))?")


def check_language(code: str, where: str) -> str:
    """The code itself. Raises InputError, which begins with ``where``, for one that nobody knows.

    Known are the two-letter codes of ISO 639-1 and anything of three letters (ISO 639-3 has some 7,900 of them), either
    with a script and a region: ``sr-Latn``, ``pt-BR``; and ``code``.
    """
    found = _CODE.fullmatch(code)
    if code != CODE and (found is None or (len(found[1]) == 2 and found[1] not in _TWO_LETTERS)):
        raise InputError(f"{where}: no language has the code {code!r}, expected one such as en, zh-Hant or code")
    return code


class Source(BaseModel):
    """One source of text."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name in counts and documents")
    kind: Literal["jsonl", "text", "python-stdlib"] = Field(
        default="jsonl",
        description="jsonl: a document a line; text: an empty line ends a document; python-stdlib: the modules of the "
        "Python that runs this",
    )
    files: tuple[str, ...] = Field(
        default=(),
        description="paths or patterns (*, **). Several sources may name the same jsonl file: then each line's own "
        "`source` says whose it is",
    )
    language: str | None = Field(default=None, description="language code (default: each line's own `lang`)")
    licence: str = Field(default="not stated", description="licence, in words or as an SPDX name")
    weight: float = Field(
        default=1.0, gt=0, le=1, description="share of the documents that is taken, drawn by their ids"
    )
    markup: Literal["none", "html", "mallard", "rest"] = Field(default="none", description="mark-up to remove")
    skip: tuple[Step, ...] = Field(default=(), description="steps left out for this source")
    template_count: int = Field(
        default=10, ge=2, description="a line of 15 characters or more goes when the source has it as often (ROOTS: 10, "
        "newspapers 2)"
    )  # fmt: skip
    pii: tuple[Tag, ...] = Field(default=TAGS, description="kinds of personal data replaced")

    @field_validator("language")
    @classmethod
    def _known(cls, code: str | None) -> str | None:
        return None if code is None else check_language(code, "language")

    @model_validator(mode="after")
    def _complete(self) -> Source:
        if self.kind == "python-stdlib":
            if self.files or self.language not in (None, CODE):
                raise ValueError(f"source {self.name}: python-stdlib finds its files, and its language is code")
        elif not self.files:
            raise ValueError(f"source {self.name}: no files, expected at least one")
        elif self.kind == "text" and self.language is None:
            raise ValueError(f"source {self.name}: plain text does not name its language, expected one here")
        return self

    def paths(self) -> list[Path]:
        """The files, sorted, each once. Raises InputError where a path or a pattern finds none."""
        if self.kind == "python-stdlib":
            return stdlib_files()
        found: dict[Path, None] = {}
        for pattern in self.files:
            expanded = str(Path(pattern).expanduser())
            matches = sorted(glob.glob(expanded, recursive=True)) if glob.has_magic(expanded) else [expanded]
            files = [Path(match) for match in matches if Path(match).is_file()]
            if not files:
                raise InputError(f"source {self.name}: no file {pattern}, expected a text file")
            found.update(dict.fromkeys(files))
        return list(found)


def stdlib_root() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


@cache
def stdlib_files() -> list[Path]:
    """The standard library's modules, sorted, without tests and whatever is installed beside them."""
    aside = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    found = []
    for folder, below, names in os.walk(stdlib_root()):
        below[:] = [name for name in below if name not in aside]
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(found)


def stdlib_source(weight: float = 1.0) -> Source:
    """The standard library of the Python that runs this, as source code."""
    return Source(
        name="python-stdlib",
        kind="python-stdlib",
        language=CODE,
        licence="PSF-2.0",
        weight=weight,
        skip=TEXT_ONLY,
        pii=(),
    )


def by_name(sources: Iterable[Source]) -> dict[str, Source]:
    """Raises InputError where two have one name."""
    found: dict[str, Source] = {}
    for source in sources:
        if source.name in found:
            raise InputError(f"sources: two are named {source.name!r}, expected each name once")
        found[source.name] = source
    return found
