"""Copies found among any number of documents in bounded memory: exact ones, frequent lines, near copies.

Everything is a question about equal 64-bit keys. `sorted_parts` answers it part by part: keys are spread over parts by
their leading bits (after mixing), each part is small enough to be sorted in memory, and equal keys are always in one part.
Keys lie in memory-mapped files; nothing here holds more than `BUDGET` of them at once.

- exact: the hash of the text; all but the first go. With 64 bits, one false copy is expected at some 6 billion documents.
- template lines: the hashes of lines that a source has too often.
- near, SimHash (Charikar 2002; ROOTS' setting): 64 bits from windows of 6 characters, two documents are near where at most
  4 bits differ. Cut into 6 blocks, two fingerprints with 4 differing bits share at least 2 blocks, so each of the 15 pairs
  of blocks serves as a key: no near pair is missed.
- near, MinHash (Broder 1997; datasketch): 128 minima over windows of 12 characters. Bands are chosen by datasketch for the
  threshold; what shares a band is compared on all minima.

A document goes where an *earlier* one is near, whether or not that one itself went: the outcome does not depend on the
order in which pairs are met, and in a chain of near copies the first stays.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator

import numpy as np

from inscape.data.corpus.filters import code_points, letters_and_digits, windows

BUDGET = 1 << 22
"""Keys sorted at a time."""
_BLOCK = 1 << 20

DISTANCE, BLOCKS = 4, 6
SIMILARITY, PERMUTATIONS = 0.8, 128
_SIMHASH_WINDOW, _MINHASH_WINDOW = 6, 12


def mixed(keys: np.ndarray) -> np.ndarray:
    """Uint64 keys, one to one, so that every bit depends on every bit (splitmix64)."""
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))


def sorted_parts(
    n: int, keys_of: Callable[[slice], np.ndarray], budget: int = BUDGET
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All ``n`` keys, part by part: indices (int64) sorted by key and then by index, and their mixed keys.

    Args:
        keys_of: the uint64 keys of a slice of documents.
    """
    bits = max(0, int(np.ceil(np.log2(max(n, 1) / budget)))) if n > budget else 0
    for part in range(1 << bits):
        indices, held = [], []
        for at in range(0, n, _BLOCK):
            keys = mixed(keys_of(slice(at, min(at + _BLOCK, n))))
            if bits:
                mine = np.flatnonzero(keys >> np.uint64(64 - bits) == part)
                indices.append(at + mine)
                held.append(keys[mine])
            else:
                indices.append(np.arange(at, at + len(keys)))
                held.append(keys)
        if not indices:
            return
        keys, index = np.concatenate(held), np.concatenate(indices)
        order = np.argsort(keys, kind="stable")
        yield index[order], keys[order]


def mark_copies(keys: np.ndarray, drop: np.ndarray, budget: int = BUDGET) -> None:
    """Set ``drop`` (bool ``[n]``) where an earlier of ``keys`` (uint64 ``[n]``) is equal."""
    for index, key in sorted_parts(len(keys), lambda part: keys[part], budget):
        drop[index[1:][key[1:] == key[:-1]]] = True


def frequent(keys: np.ndarray, least: int, budget: int = BUDGET) -> np.ndarray:
    """The keys that occur ``least`` times or more, sorted."""
    found = [np.zeros(0, np.uint64)]
    for index, key in sorted_parts(len(keys), lambda part: keys[part], budget):
        starts = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
        often = np.diff(np.append(starts, len(key))) >= least
        found.append(np.asarray(keys[index[starts[often]]]))
    return np.sort(np.concatenate(found))


def simhash(text: str) -> int:
    """The fingerprint of a text; case, punctuation and white space don't count."""
    hashes = mixed(windows(_letters(text), _SIMHASH_WINDOW))
    if not len(hashes):
        hashes = mixed(windows(code_points(text), 1))
    majority = bit_counts(hashes) * 2 > len(hashes)
    return int(np.packbits(majority, bitorder="little").view(np.uint64)[0])


def minhash(text: str) -> np.ndarray:
    """The minima of a text, uint32 ``[128]``."""
    from datasketch import MinHash

    hashes = mixed(windows(_letters(text), _MINHASH_WINDOW))
    if not len(hashes):
        hashes = mixed(windows(code_points(text), 1))
    # datasketch mixes what a hash function gives; ours are hashes already, so it is handed them as they are.
    unique = np.unique(hashes >> np.uint64(32)).tolist()
    sketch = MinHash(PERMUTATIONS, seed=1, hashfunc=_same)
    for at in range(0, len(unique), 4096):
        sketch.update_batch(unique[at : at + 4096])
    return sketch.hashvalues.astype(np.uint32)


def bit_counts(words: np.ndarray) -> np.ndarray:
    """How many of the uint64 ``words`` have each bit: int64 ``[64]``, lowest first.

    Three words become a sum and a carry of twice the weight (a full adder in each bit), until few are left.
    """
    counts = np.zeros(64, np.int64)
    waiting = [(words, 1)]
    while waiting:
        words, weight = waiting.pop()
        third = len(words) // 3
        if third >= 32:
            a, b, c = words[:third], words[third : 2 * third], words[2 * third : 3 * third]
            either = a ^ b
            waiting += [(either ^ c, weight), ((a & b) | (either & c), 2 * weight)]
            words = words[3 * third :]
        bits = np.unpackbits(
            np.ascontiguousarray(words, "<u8").view(np.uint8).reshape(-1, 8), axis=1, bitorder="little"
        )
        counts += weight * bits.sum(0, dtype=np.int64)
    return counts


def mark_near_simhash(fingerprints: np.ndarray, drop: np.ndarray, budget: int = BUDGET) -> None:
    """Set ``drop`` (bool ``[n]``) where an earlier of ``fingerprints`` (uint64 ``[n]``) differs in at most 4 bits."""
    edges = [round(64 * i / BLOCKS) for i in range(BLOCKS + 1)]
    masks = [((1 << hi) - 1) ^ ((1 << lo) - 1) for lo, hi in itertools.pairwise(edges)]

    def near(i: np.ndarray, j: np.ndarray) -> np.ndarray:
        differing = np.ascontiguousarray(fingerprints[i] ^ fingerprints[j])
        return _ONES[differing.view(np.uint8).reshape(-1, 8)].sum(1) <= DISTANCE

    for pair in itertools.combinations(masks, 2):
        mask = np.uint64(pair[0] | pair[1])

        def keys_of(part: slice, mask: np.uint64 = mask) -> np.ndarray:
            return fingerprints[part] & mask

        _mark(len(fingerprints), keys_of, near, drop, budget)


def mark_near_minhash(minima: np.ndarray, drop: np.ndarray, budget: int = BUDGET) -> None:
    """Set ``drop`` (bool ``[n]``) where an earlier of ``minima`` (uint32 ``[n, 128]``) agrees in a share of at least 0.8."""
    bands, rows = _bands()

    def near(i: np.ndarray, j: np.ndarray) -> np.ndarray:
        return (minima[i] == minima[j]).mean(1) >= SIMILARITY

    for band in range(bands):
        columns = slice(band * rows, (band + 1) * rows)

        def keys_of(part: slice, columns: slice = columns) -> np.ndarray:
            keys = np.zeros(part.stop - part.start, np.uint64)
            for column in np.asarray(minima[part, columns]).T:
                keys = mixed(keys + column.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15))
            return keys

        _mark(len(minima), keys_of, near, drop, budget)


def _mark(
    n: int,
    keys_of: Callable[[slice], np.ndarray],
    near: Callable[[np.ndarray, np.ndarray], np.ndarray],
    drop: np.ndarray,
    budget: int,
) -> None:
    for index, key in sorted_parts(n, keys_of, budget):
        starts = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
        rank = np.arange(len(key)) - np.repeat(starts, np.diff(np.append(starts, len(key))))
        # All pairs with one key, those `step` apart at a time; one that goes need not be looked at again.
        later = np.flatnonzero(rank >= 1)
        for step in itertools.count(1):
            later = later[(rank[later] >= step) & ~drop[index[later]]]
            if not len(later):
                break
            for at in range(0, len(later), 1 << 16):
                some = later[at : at + (1 << 16)]
                drop[index[some[near(index[some], index[some - step])]]] = True


def _letters(text: str) -> np.ndarray:
    """Code points of the lower-case letters, marks and digits."""
    characters = code_points(text.lower())
    return characters[letters_and_digits()[characters]]


def _same(value: int) -> int:
    return value


@functools.cache
def _bands() -> tuple[int, int]:
    from datasketch import MinHashLSH

    chosen = MinHashLSH(threshold=SIMILARITY, num_perm=PERMUTATIONS, weights=(0.2, 0.8))
    return int(chosen.b), int(chosen.r)


_ONES = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)
