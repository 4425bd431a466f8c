"""The BLOOM tokenizer: lossless on any text, merges inside of the pattern's borders, shares of languages as asked for."""

import gzip
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers
from transformers import AutoTokenizer

from inscape.errors import InputError
from inscape.training.bpe import (
    PATTERN,
    SPECIAL,
    fertility,
    not_restored,
    padded_vocabulary,
    sample_shares,
    text_sizes,
    texts_of,
    token_counts,
    token_ratio,
    train_bpe,
    train_monolingual,
)

FLATTENED = re.compile(r" ?[^(\s|.,!?…。，、।۔،)]+")
"""`PATTERN` as Python's `re` has to be given it."""

ENGLISH = [f"the cat {i} sat on the mat, and the dog (a hound) ran away\n\n    return the_cat" for i in range(60)]
GREEK = [f"η γάτα {i} κάθισε στο χαλί, και ο σκύλος έφυγε" for i in range(20)]
TEXTS = {"en": lambda: iter(ENGLISH), "el": lambda: iter(GREEK)}


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(TEXTS, 330)


@pytest.fixture(scope="module")
def reloaded(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_special_tokens_have_the_first_ids_and_none_is_added(tokenizer):
    assert tokenizer.convert_ids_to_tokens(range(4)) == list(SPECIAL)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id) == (2, 3, 1)
    assert len(tokenizer) == 330
    assert not set(tokenizer("the cat")["input_ids"]) & {0, 1, 2, 3}
    assert tokenizer("")["input_ids"] == []


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_every_text_comes_back(tokenizer, reloaded, text):
    for one in (tokenizer, reloaded):
        assert not_restored(one, [text]) == []


def test_text_that_looks_like_markup_spaces_or_special_tokens_comes_back(reloaded):
    texts = [" a  b\n\t c ", "</s> <pad>x", "don 't , .", "e\u0301\x00\r\n", "日本語、。", "👩‍👩‍👧 ۔،", "   "]
    assert not_restored(reloaded, texts) == []


def test_what_does_not_come_back_is_named(tokenizer):
    class Lossy:
        def __call__(self, texts, **_):
            return tokenizer([text.lower() for text in texts], add_special_tokens=False)

        def decode(self, ids):
            return tokenizer.decode(ids)

    assert not_restored(Lossy(), ["the cat", "The cat"]) == ["The cat"]


@settings(max_examples=200, deadline=None)
@given(st.text("ab 1\n\t(),.|!?…。、।۔،é日[]&", max_size=30))
def test_the_pattern_cuts_as_its_flattened_form_does(text):
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    found = [piece for piece, _ in split.pre_tokenize_str(text)]
    matched = [piece for piece in found if FLATTENED.fullmatch(piece)]
    assert matched == FLATTENED.findall(text)
    assert "".join(found) == text


def test_no_merge_crosses_a_border_and_words_take_their_space(tokenizer):
    for i in range(4 + 256, len(tokenizer)):
        token = tokenizer.decode([i])
        if "\ufffd" not in token:
            assert FLATTENED.fullmatch(token) or not FLATTENED.search(token), token
    assert tokenizer.decode(tokenizer("on the mat, and")["input_ids"][-1:]) == " and"
    assert "the" in {tokenizer.decode([i]).strip() for i in range(len(tokenizer))}


def test_offsets_are_those_of_visible_characters(tokenizer):
    encoded = tokenizer("on the mat", return_offsets_mapping=True)
    assert "on the mat"[slice(*encoded["offset_mapping"][1])] == "the"


def test_the_same_texts_give_the_same_tokenizer_and_another_seed_another_sample():
    def made(seed):
        return train_bpe(TEXTS, 300, sample_bytes=1500, seed=seed).backend_tokenizer.to_str()

    assert made(0) == made(0)
    assert made(0) != made(1)


def test_a_line_that_repeats_is_learned_from_once():
    def longest_of(notice):
        texts = {"de": lambda: iter([f"Satz {i} von der Katze im Haus\n{notice}\n" for i in range(80)])}
        tokenizer = train_bpe(texts, 285)
        return max((tokenizer.decode([i]) for i in range(260, 285)), key=lambda token: len(token) * (token in notice))

    assert longest_of("Zugegeben") == "Zugegeben"  # (too short to be a notice)
    assert len(longest_of("Zugegeben unverzichtbar")) < 4


def test_shares_are_sizes_to_the_power_alpha_until_a_language_runs_out():
    sizes = {"a": 10**6, "b": 10**5, "c": 10**4}
    shares = sample_shares(sizes, 0.3)
    weights = np.array([size**0.3 for size in sizes.values()])
    sampled = np.array([share.sampled for share in shares.values()])
    np.testing.assert_allclose(sampled / sampled.sum(), weights / weights.sum(), rtol=1e-3)
    assert shares["c"].sampled == 10**4  # (the first to run out)
    assert all(share.sampled == share.bytes for share in sample_shares(sizes, 1.0).values())


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(1, 10**7), min_size=1, max_size=8), st.floats(0, 1), st.integers(1, 10**8)
)  # (brute force: the water level is found by bisection)
def test_a_sample_of_a_given_size_fills_up_what_small_languages_lack(sizes, alpha, total):
    named = {str(i): size for i, size in enumerate(sizes)}
    found = [share.sampled for share in sample_shares(named, alpha, total).values()]
    low, high = 0.0, 1e9
    for _ in range(200):
        level = (low + high) / 2
        filled = sum(min(size, level * size**alpha) for size in sizes)
        low, high = (level, high) if filled < min(total, sum(sizes)) else (low, level)
    expected = [min(size, high * size**alpha) for size in sizes]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1.001)


def test_the_sample_is_as_large_as_its_share():
    from inscape.training.bpe import _sample

    lines = [f"line {i} {i * 7919 % 10007:060d}" for i in range(20_000)]
    texts = {"x": lambda: iter(["\n".join(lines)])}
    shares = sample_shares(text_sizes(texts), 0.3, 300_000)
    taken = sum(len(piece) for piece in _sample(texts, shares, 0, None))
    assert abs(taken / 300_000 - 1) < 0.05
    assert {line for piece in _sample(texts, shares, 0, None) for line in piece.split("\n")} <= {*lines, ""}


def test_fertility_counts_tokens(tokenizer):
    sentences = ["the cat sat", "η γάτα"]
    found = fertility(tokenizer, sentences)
    tokens = [len(tokenizer(text)["input_ids"]) for text in sentences]
    assert token_counts(tokenizer, sentences).tolist() == tokens
    assert (found.words, found.characters, found.bytes, found.tokens) == (5, 17, 22, sum(tokens))
    assert found.per_word == sum(tokens) / 5
    assert found.per_character == sum(tokens) / 17
    assert found.bytes_per_token == 22 / sum(tokens)
    with pytest.raises(InputError, match="without a word"):
        fertility(tokenizer, [" "])


def test_a_tokenizer_for_one_language_needs_fewer_tokens_of_it(tokenizer):
    alone = train_monolingual({"el": TEXTS["el"]}, 330)
    ratio = token_ratio(tokenizer, alone, GREEK)
    counts = [token_counts(one, GREEK).sum() for one in (tokenizer, alone)]
    assert ratio.value == counts[0] / counts[1] > 1
    assert ratio.lo <= ratio.value <= ratio.hi


def test_the_papers_vocabulary_is_padded_as_in_the_paper():
    assert padded_vocabulary(250_680, 4 * 128) == 250_880
    assert padded_vocabulary(8192) == 8192
    assert padded_vocabulary(8193) == 8320


class _Corpus:
    """As `inscape.data.corpus` has it: a language with all of its text held back among the others."""

    languages = ("el", "en", "xx")

    class _Document:
        def __init__(self, text):
            self.text = text

    def bytes_by_language(self, split="train"):
        texts = {"el": GREEK, "en": ENGLISH, "xx": []}
        return {name: sum(len(text.encode()) for text in texts[name]) for name in self.languages}

    def documents(self, languages=None, split="train"):
        assert split == "train"
        for language in languages:
            yield from map(self._Document, {"el": GREEK, "en": ENGLISH, "xx": []}[language])


def test_a_corpus_folder_gives_the_tokenizer_of_its_texts():
    by_hand = train_bpe({"el": TEXTS["el"], "en": TEXTS["en"]}, 300).backend_tokenizer.to_str()
    assert train_bpe(_Corpus(), 300).backend_tokenizer.to_str() == by_hand
    assert list(texts_of(_Corpus())) == ["el", "en"]


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (TEXTS, {"vocabulary": 259}, "vocabulary of 259, expected at least 260"),
        (TEXTS, {"vocabulary": 5000}, "expected more text or a smaller vocabulary"),
        ({}, {}, "no language"),
        ({"en": lambda: iter([])}, {}, "language 'en' has no text"),
        ({"en": lambda: iter(["a \ud800 b"])}, {}, "'en' has no UTF-8 form"),
        (TEXTS, {"alpha": 1.5}, "alpha 1.5"),
        (TEXTS, {"sample_bytes": 0}, "sample of 0 bytes"),
    ],
)
def test_what_cannot_be_is_refused(texts, options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        train_bpe(texts, **{"vocabulary": 300, **options})


def test_parallel_sentences_of_ten_languages_come_back(tokenizer, pud):
    languages = 0
    for file in sorted(pud.glob("*.conllu.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            sentences = [line[9:].rstrip("\n") for line in lines if line.startswith("# text = ")]
        assert len(sentences) == 1000
        assert not_restored(tokenizer, sentences) == []
        languages += 1
    assert languages == 10


@pytest.fixture
def pud():
    shared = Path(os.environ.get("INSCAPE_SHARED", Path(__file__).parents[3] / "shared"))
    folder = shared / "data" / "corpora" / "eval" / "pud"
    if not folder.exists():
        pytest.skip("needs shared/data/corpora/eval/pud (set INSCAPE_SHARED)")
    return folder
