"""Recipes: sizes of the LM that is trained on text files, and a text for when there are none.

Where nobody gives a text, it is made of the facts of the numeric world: some hundred names, years and wordings, told again
and again. It has few bigrams, and they say little of any language; but it needs no download.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np

from inscape.runs.writing import write_text
from inscape.training.corpus import CorpusTrainingConfig
from inscape.training.facts_text import FactsText, TextMix, vocabulary_texts
from inscape.training.pretraining import OptimisationConfig
from inscape.training.sizes import world_of
from inscape.training.tokenizer import fit_tokenizer

Kind = Literal["gpt2", "bloom"]
CorpusSize = Literal["smoke", "standard"]

_SENTENCES: dict[CorpusSize, int] = {"smoke": 3000, "standard": 20_000}
_A_DOCUMENT = 10  # sentences

SHARED_TEXT = Path("data/corpora/pretrain/en.jsonl.gz")
"""The English text below the folder that ``INSCAPE_SHARED`` names."""


def corpus_training_of(kind: Kind, size: CorpusSize, seed: int) -> CorpusTrainingConfig:
    """How the LM of a size is trained."""
    if size == "smoke":
        return CorpusTrainingConfig(
            kind=kind, vocabulary=400, width=32, layers=1, heads=2, context=64, held_out=0.1, seed=seed,
            optimisation=OptimisationConfig(steps=60, rows=8, length=32, warmup_steps=10, learning_rate=1e-2),
        )  # fmt: skip
    return CorpusTrainingConfig(kind=kind, seed=seed)


def default_corpus(size: CorpusSize, seed: int, cache: Path) -> Path:
    """The text that a study without one runs on: the shared one, or the world's (always for ``smoke``)."""
    shared = os.environ.get("INSCAPE_SHARED")
    if size != "smoke" and shared and (text := Path(shared) / SHARED_TEXT).is_file():
        return text
    return world_corpus(size, seed, cache)


def world_corpus(size: CorpusSize, seed: int, cache: Path) -> Path:
    """A text file of the numeric world's sentences in ``cache``, made first if it isn't there."""
    path = cache / f"world-text-{size}-{seed}.txt"
    if path.is_file():
        return path
    facts = world_of("smoke" if size == "smoke" else "demo", seed)
    tokenizer = fit_tokenizer(vocabulary_texts(facts))
    text = FactsText(facts, tokenizer, TextMix())
    rng = np.random.default_rng([seed, 47])
    sentences = [tokenizer.decode(text.sentence(rng).ids, skip_special_tokens=True) for _ in range(_SENTENCES[size])]
    documents = ["\n".join(sentences[at : at + _A_DOCUMENT]) for at in range(0, len(sentences), _A_DOCUMENT)]
    write_text(path, "\n\n".join(documents) + "\n")
    return path
