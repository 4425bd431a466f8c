"""BLOOM's tokenizer: byte-level BPE without a normaliser, trained on a sample that small languages have a say in.

Every text has an encoding, and decoding gives the text back to the byte: nothing is normalised, white space (also runs
of it, in code) is kept, and what no merge covers stays bytes. Merges never cross the borders that `PATTERN` sets: a word
with the space before it, or what stands between words (punctuation and white space together). Digits are not split, and
where words aren't written apart (Chinese, Japanese, Thai) a whole clause is one "word", so that tokens can be as long as a
phrase.

How much of each language the merges are learned from decides how well it is encoded. Shares are sizes to the power
alpha (0.3 in the paper: 1 keeps the corpus as it is, 0 makes all languages equal). A language that has less text than its
share is taken whole. Lines that repeat are taken once: a notice on a thousand pages would become a token.

How good a tokenizer is for a language is said by *fertility*, tokens per word, best held against a BPE with a vocabulary
of the same size for that language alone: the paper asks that the shared one need at most 10 % more tokens.

Failure: a text too small for the vocabulary asked for, a language without text, a text that has no UTF-8 form.

Le Scao et al. 2022 (arXiv 2211.05100), section 3.2; alpha sampling after Conneau & Lample 2019 (arXiv 1901.07291).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from typing import Any, Protocol

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from inscape.errors import InputError
from inscape.runs.intervals import Interval, bootstrap_paired
from inscape.runs.progress import ProgressReporter

Texts = Mapping[str, Callable[[], Iterator[str]]]
"""Language -> a function that starts its texts from the beginning."""

SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")
"""Ids 0 to 3. ``</s>`` ends a document; ``<unk>`` is never used (bytes encode everything)."""

PATTERN = r" ?[^(\s|[.,!?…。，、।۔،])]+"
"""What merges stay inside of, as Oniguruma reads it: the inner brackets are a class within the class."""

BAR = 1.1
"""Tokens at most, as a multiple of those of a tokenizer for one language (the paper's requirement)."""

_LEAST = len(SPECIAL) + 256
_MIN_FREQUENCY = 2
_PIECE = 4096
_REPEATED_LINE = 15
_BATCH = 1000
_DRAWS = 1000


class _Document(Protocol):
    @property
    def text(self) -> str: ...


class TextCorpus(Protocol):
    """What is asked of a corpus folder (`inscape.data.corpus.corpus.Corpus`)."""

    @property
    def languages(self) -> Sequence[str]: ...

    def documents(self, languages: Sequence[str] | None = None, split: Any = "train") -> Iterator[_Document]: ...

    def bytes_by_language(self, split: Any = "train") -> Mapping[str, int]: ...


@dataclass(frozen=True)
class Share:
    """How much of a language there is, and how much of it the sample takes at most, in UTF-8 bytes."""

    bytes: int
    sampled: int


def texts_of(corpus: TextCorpus, languages: Iterable[str] | None = None, split: str = "train") -> Texts:
    """The texts of a corpus folder by language: of those named, or of all that have any in the split."""

    def starter(language: str) -> Callable[[], Iterator[str]]:
        return lambda: (document.text for document in corpus.documents([language], split))

    sizes = corpus.bytes_by_language(split)
    chosen = [language for language in corpus.languages if sizes[language]] if languages is None else languages
    return {language: starter(language) for language in chosen}


def text_sizes(texts: Texts, progress: ProgressReporter | None = None) -> dict[str, int]:
    """UTF-8 bytes by language; reads all texts. Raises InputError where one has no UTF-8 form."""
    reporter = progress or ProgressReporter(quiet=True)
    return {
        language: sum(_utf8_size(text, language) for text in start())
        for language, start in reporter.track(texts.items(), "tokenizer: languages measured", len(texts))
    }


def sample_shares(sizes: Mapping[str, int], alpha: float = 0.3, sample_bytes: int | None = None) -> dict[str, Share]:
    """What `train_bpe` samples of each language.

    Args:
        sizes: bytes by language.
        sample_bytes: size of the sample. Languages that have less than their share are taken whole, and the others
            share the rest. None: as large as the shares allow, all of which are then met exactly (the paper's rule: the
            sample ends with the first language to run out).

    Raises:
        InputError: no language, or one without text; alpha outside [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha {alpha}: expected a number from 0 (all languages alike) to 1 (as in the corpus)")
    if not sizes:
        raise InputError("tokenizer: no language, expected texts of at least one")
    if sample_bytes is not None and sample_bytes < 1:
        raise InputError(f"sample of {sample_bytes} bytes, expected 1 or more")
    if empty := [language for language, size in sizes.items() if not size]:
        raise InputError(f"tokenizer: language {empty[0]!r} has no text, expected some (or leave it out)")
    weights = {language: size**alpha for language, size in sizes.items()}
    if sample_bytes is None:
        per_weight = min(sizes[language] / weights[language] for language in sizes)
    else:
        per_weight = _filled(sizes, weights, sample_bytes)
    return {
        language: Share(size, math.ceil(min(size, weights[language] * per_weight))) for language, size in sizes.items()
    }


def train_bpe(
    texts: Texts | TextCorpus,
    vocabulary: int,
    *,
    alpha: float = 0.3,
    sample_bytes: int | None = None,
    seed: int = 0,
    progress: ProgressReporter | None = None,
) -> PreTrainedTokenizerFast:
    """A tokenizer of `vocabulary` tokens: `SPECIAL`, the 256 bytes, and merges.

    The same texts in the same order give the same tokenizer. No token is added to an encoded text. Names of special
    tokens in a text are read as these tokens; set ``tokenizer.split_special_tokens`` for text that isn't trusted.

    Args:
        texts: by language, or a corpus folder (its training part).
        alpha, sample_bytes: see `sample_shares`.
        seed: of the sample.

    Raises:
        InputError: a vocabulary below 260; texts that hold fewer merges than it needs; and as `sample_shares`.
    """
    if vocabulary < _LEAST:
        raise InputError(
            f"vocabulary of {vocabulary}, expected at least {_LEAST}: special tokens and one for each byte"
        )
    if isinstance(texts, Mapping):
        by_language, sizes = texts, text_sizes(texts, progress)
    else:
        by_language = texts_of(texts)
        sizes = {language: texts.bytes_by_language()[language] for language in by_language}
    shares = sample_shares(sizes, alpha, sample_bytes)
    tokenizer = _fit(_sample(by_language, shares, seed, progress), vocabulary)
    if len(tokenizer) < vocabulary:
        raise InputError(
            f"vocabulary of {vocabulary}: a sample of {sum(share.sampled for share in shares.values())} bytes holds pairs "
            f"for {len(tokenizer)} tokens; expected more text or a smaller vocabulary"
        )
    return tokenizer


def train_monolingual(
    texts: Texts, vocabulary: int, *, sample_bytes: int | None = None, seed: int = 0
) -> PreTrainedTokenizerFast:
    """A tokenizer to hold the shared one against: all of `texts` (one language, in one or more scripts) to itself.

    Has fewer tokens than `vocabulary` where the text holds no more pairs that occur twice; see ``len(tokenizer)``.
    """
    shares = sample_shares(text_sizes(texts), 1.0, sample_bytes)
    return _fit(_sample(texts, shares, seed, None), vocabulary)


def padded_vocabulary(tokens: int, multiple: int = 128) -> int:
    """Rows of an embedding for `tokens` tokens, such that they can be split evenly.

    The paper's 250,680 tokens, to be split over 4 GPUs in multiples of 128: ``padded_vocabulary(250_680, 4 * 128)``.
    """
    return -(-tokens // multiple) * multiple


def token_counts(tokenizer: PreTrainedTokenizerFast, sentences: Sequence[str]) -> np.ndarray:
    """Tokens of each sentence, int64 [n]."""
    encoded = tokenizer(list(sentences), add_special_tokens=False)["input_ids"] if sentences else []
    return np.array([len(ids) for ids in encoded], dtype=np.int64)


@dataclass(frozen=True)
class Fertility:
    """How many tokens a set of sentences becomes.

    `words` are separated by white space: where a language isn't written so (`per_word` then is tokens per clause or
    sentence), read `per_character`, and compare tokenizers only on the same sentences.
    """

    sentences: int
    words: int
    characters: int
    bytes: int
    tokens: int

    @property
    def per_word(self) -> float:
        return self.tokens / self.words

    @property
    def per_character(self) -> float:
        return self.tokens / self.characters

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / self.tokens


def fertility(tokenizer: PreTrainedTokenizerFast, sentences: Sequence[str]) -> Fertility:
    """Counts over `sentences`. Raises InputError where they hold no word."""
    words = sum(len(sentence.split()) for sentence in sentences)
    if not words:
        raise InputError(f"fertility of {len(sentences)} sentences without a word, expected at least one")
    return Fertility(
        sentences=len(sentences),
        words=words,
        characters=sum(map(len, sentences)),
        bytes=sum(len(sentence.encode()) for sentence in sentences),
        tokens=int(token_counts(tokenizer, sentences).sum()),
    )


def token_ratio(
    tokenizer: PreTrainedTokenizerFast, other: PreTrainedTokenizerFast, sentences: Sequence[str], seed: int = 0
) -> Interval:
    """Tokens of `tokenizer` for one token of `other` on the same sentences; the bootstrap draws sentences."""
    ours, theirs = (token_counts(one, sentences).astype(float) for one in (tokenizer, other))
    return bootstrap_paired(ours, theirs, lambda a, b, axis=-1: a.sum(axis) / b.sum(axis), n=_DRAWS, seed=seed)


def not_restored(tokenizer: PreTrainedTokenizerFast, sentences: Sequence[str]) -> list[str]:
    """The sentences that are not the same, to the byte, after encoding and decoding. Empty: the round trip is lossless."""
    encoded = tokenizer(list(sentences), add_special_tokens=False)["input_ids"] if sentences else []
    return [text for text, ids in zip(sentences, encoded, strict=True) if tokenizer.decode(ids) != text]


def _filled(sizes: Mapping[str, int], weights: Mapping[str, float], total: int) -> float:
    """The bytes per weight at which the languages together give `total`, none more than it has."""
    left, weight_left = float(total), sum(weights.values())
    for language in sorted(sizes, key=lambda name: sizes[name] / weights[name]):
        if sizes[language] / weights[language] >= left / weight_left:
            return left / weight_left
        left, weight_left = left - sizes[language], weight_left - weights[language]
    return math.inf


def _sample(texts: Texts, shares: Mapping[str, Share], seed: int, progress: ProgressReporter | None) -> Iterator[str]:
    """Pieces of text, each language as many bytes as its share, to a few pieces: one is drawn of every 1 / rate in a row."""
    reporter = progress or ProgressReporter(quiet=True)
    for number, (language, start) in enumerate(
        reporter.track(texts.items(), "tokenizer: languages sampled", len(texts))
    ):
        rate = shares[language].sampled / shares[language].bytes
        draw = np.random.default_rng([seed, 71, number])
        seen: set[bytes] = set()
        position, wanted = 0.0, draw.random()
        for piece in (piece for text in start() for piece in _pieces(text)):
            position += rate
            if position > wanted:
                wanted = math.floor(wanted) + 1 + draw.random()
                if kept := _without_repeats(piece, seen):
                    yield kept


def _pieces(text: str) -> Iterator[str]:
    """A text cut at ends of lines into pieces that are not much longer than `_PIECE`, so that one page is not all or
    nothing."""
    start = 0
    while start < len(text):
        end = text.find("\n", start + _PIECE) + 1 or len(text)
        yield text[start:end]
        start = end


def _without_repeats(piece: str, seen: set[bytes]) -> str:
    kept = []
    for line in piece.splitlines(keepends=True):
        if len(line.strip()) >= _REPEATED_LINE:
            # (eight bytes for a line: the sample may be larger than memory)
            digest = blake2b(line.strip().encode(errors="replace"), digest_size=8).digest()
            if digest in seen:
                continue
            seen.add(digest)
        kept.append(line)
    return "".join(kept)


def _fit(pieces: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    # Offsets are those of the visible characters: the space before a word belongs to no mention of it.
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=_MIN_FREQUENCY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_batches(pieces), trainer)
    unk, bos, eos, pad = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=unk, bos_token=bos, eos_token=eos, pad_token=pad, padding_side="left",
        clean_up_tokenization_spaces=False, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def _batches(pieces: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(pieces)
    while batch := list(islice(iterator, _BATCH)):
        yield batch


def _utf8_size(text: str, language: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise InputError(
            f"tokenizer: a text of {language!r} has no UTF-8 form ({error.reason} at character {error.start}), "
            "expected Unicode text"
        ) from error
