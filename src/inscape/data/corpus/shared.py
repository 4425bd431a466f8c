"""The sources of the corpora pack (``data/corpora`` of the shared folder), and of the standard library beside it."""

from __future__ import annotations

from pathlib import Path

from inscape.data.corpus.pii import Tag
from inscape.data.corpus.sources import Source, Step, stdlib_source
from inscape.errors import InputError

_LICENCES = {
    "gnome-help": "CC-BY-SA-3.0",
    "python-docs": "PSF-2.0, translations CC0-1.0",
    "jaquad": "CC-BY-SA-3.0",
    "drcd": "CC-BY-SA-3.0",
    "cmrc2018": "CC-BY-SA-4.0",
    "tashkeela": "MIT",
    "bible-nt": "CC0-1.0",
    "udhr": "public domain",
    "tatoeba": "CC-BY-2.0-FR",
}


def shared_sources(root: str | Path, *, code: float = 1.0) -> tuple[Source, ...]:
    """The nine sources of the pack's ``pretrain`` folder and the standard library.

    Sentences have no length, help pages have no sentences in their titles, and ``@property`` is no user: which steps are
    left out for which source is written here, and why in the documentation of the corpus.

    Args:
        code: share of the library's modules that is taken; 0 for none.

    Raises:
        InputError: ``root`` (the pack, or its ``pretrain``) has no such files.
    """
    root = Path(root).expanduser()
    folder = root / "pretrain" if (root / "pretrain").is_dir() else root
    if not any(folder.glob("*.jsonl.gz")):
        raise InputError(f"corpora {root}: no pretrain/*.jsonl.gz in it, expected the corpora pack")
    skip: dict[str, tuple[Step, ...]] = {"tatoeba": ("length", "stop_words"), "tashkeela": ("length",)}
    markup = {"gnome-help": "mallard", "python-docs": "rest"}
    pii: dict[str, tuple[Tag, ...]] = {"python-docs": ("KEY", "EMAIL", "IP_ADDRESS")}
    found = [
        Source(
            name=name,
            files=(str(folder / "*.jsonl.gz"),),
            licence=licence,
            markup=markup.get(name, "none"),  # type: ignore[arg-type]
            skip=skip.get(name, ()),
            **({"pii": pii[name]} if name in pii else {}),  # type: ignore[arg-type]
        )
        for name, licence in _LICENCES.items()
    ]
    return (*found, stdlib_source(code)) if code else tuple(found)
