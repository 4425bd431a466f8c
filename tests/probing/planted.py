"""A planted parallel treebank: some properties of a sentence are written into its features, some are nowhere in them."""

import numpy as np

from inscape.data.treebanks import Sentence, Treebank

PLANTED, ABSENT = "Case=Acc", "Mood=Sub"


def planted_treebank(language: str, n: int = 300) -> Treebank:
    """Sentences ``s0 …``; each property is in about half of them, the same half in every language."""
    rng = np.random.default_rng(7)
    has = rng.random((n, 2)) < 0.5
    lengths = rng.integers(2, 9, n)
    sentences = tuple(
        Sentence(
            f"s{i}", f"{language} " + ("acc " if planted else "nom ") + "x " * length, int(length),
            frozenset([PLANTED] * planted + [ABSENT] * absent), frozenset(), frozenset(),
        )
        for i, ((planted, absent), length) in enumerate(zip(has.tolist(), lengths.tolist(), strict=True))
    )  # fmt: skip
    return Treebank(language, sentences)


def planted_features(treebank: Treebank, shift: float = 0.0, d: int = 16) -> np.ndarray:
    """Noise, all of it moved by ``shift``, with the planted property along one axis."""
    rng = np.random.default_rng([len(treebank), *treebank.language.encode()])
    X = rng.normal(size=(len(treebank), d))
    X[:, 3] = rng.normal(size=len(treebank)) + 5 * treebank.presence().values[:, 0]
    return (X + shift).astype(np.float32)
