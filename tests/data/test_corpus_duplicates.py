"""Copies and near copies, against all pairs compared one by one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inscape.data.corpus import duplicates
from inscape.data.corpus.duplicates import (
    bit_counts,
    frequent,
    mark_copies,
    mark_near_minhash,
    mark_near_simhash,
    minhash,
    simhash,
)

TEXT = (
    "Every bird that crosses the strait in autumn rests on the same three rocks, and the fishermen who know them by their "
    "calls have kept a list of their arrivals for as long as anybody can remember."
)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 5), max_size=60), st.sampled_from([1, 4, 7, 1000]))
def test_copies_and_frequent_keys_are_those_of_a_dictionary(values, budget):
    keys = np.array(values, np.uint64)
    drop = np.zeros(len(keys), bool)
    mark_copies(keys, drop, budget)
    assert drop.tolist() == [value in values[:i] for i, value in enumerate(values)]
    assert frequent(keys, 3, budget).tolist() == sorted({value for value in values if values.count(value) >= 3})


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1200), st.integers(0, 2**32))
def test_bits_counted_by_adders_are_bits_counted(n, seed):
    words = np.random.default_rng(seed).integers(0, 2**64, n, dtype=np.uint64)
    each = (words[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert bit_counts(words).tolist() == each.sum(0, dtype=np.int64).tolist()


@pytest.mark.parametrize("budget", [50, 1 << 20])
def test_no_near_pair_of_fingerprints_is_missed_and_no_other_is_taken(budget):
    draw = np.random.default_rng(0)
    base = draw.integers(0, 2**64, 60, dtype=np.uint64)
    prints = []
    for value in base:
        prints.append(value)
        for distance in draw.integers(1, 8, 4):
            flips = draw.permutation(64)[:distance]
            prints.append(np.uint64(int(value) ^ sum(1 << int(bit) for bit in flips)))
    fingerprints = np.array(prints, np.uint64)[draw.permutation(len(prints))]
    far = np.array([[bin(int(a) ^ int(b)).count("1") for b in fingerprints] for a in fingerprints])
    expected = [bool((far[i, :i] <= 4).any()) for i in range(len(fingerprints))]
    drop = np.zeros(len(fingerprints), bool)
    mark_near_simhash(fingerprints, drop, budget)
    assert drop.tolist() == expected
    assert 0 < sum(expected) < len(expected) - len(base) // 2


def test_simhash_ignores_case_and_punctuation_and_tells_texts_apart():
    assert simhash(TEXT) == simhash(TEXT.upper().replace(",", " ;"))
    near = bin(simhash(TEXT * 20) ^ simhash(TEXT * 20 + " One more line.")).count("1")
    far = bin(simhash(TEXT) ^ simhash("Something else that has nothing to do with birds or rocks at all.")).count("1")
    assert near <= 4 < 12 < far
    assert simhash("!?") != simhash("??")  # (without letters, the characters themselves)


def words(draw, n):
    return [f"{'aeiou'[i % 5]}w{i}" for i in draw.integers(0, 5000, n)]


def test_minhash_finds_what_shares_most_windows():
    draw = np.random.default_rng(1)
    a = words(draw, 300)
    edited = [*a[:150], "changed", *a[151:]]
    half = [*a[:150], *words(draw, 150)]
    other = words(draw, 300)
    minima = np.stack([minhash(" ".join(text)) for text in (a, other, edited, half, a)])
    drop = np.zeros(5, bool)
    mark_near_minhash(minima, drop)
    assert drop.tolist() == [False, False, True, False, True]


def test_minhash_estimates_the_jaccard_similarity_of_windows():
    draw = np.random.default_rng(2)
    a = words(draw, 400)
    b = [*a[:300], *words(draw, 100)]

    def shingles(text):
        letters = "".join(filter(str.isalnum, " ".join(text)))
        return {letters[i : i + 12] for i in range(len(letters) - 11)}

    true = len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))
    estimated = float((minhash(" ".join(a)) == minhash(" ".join(b))).mean())
    assert abs(estimated - true) < 4 * (true * (1 - true) / duplicates.PERMUTATIONS) ** 0.5


def test_in_a_chain_the_first_stays():
    drop = np.zeros(3, bool)
    mark_near_simhash(np.array([0, 0b1111, 0b11111111], np.uint64), drop)
    assert drop.tolist() == [False, True, True]
