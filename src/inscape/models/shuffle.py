"""A random order of any number of rows that takes no memory: a permutation that is computed, not stored.

A Feistel network on the bits of a number is a bijection whatever its round function is (each round adds to one part a
function of the other, which can be taken off again). On ``b`` bits with ``2**b >= n`` a number that comes out at ``n`` or
above is sent through again until it comes out below (*cycle walking*; Black and Rogaway, *Ciphers with Arbitrary Finite
Domains*, 2002): a bijection of ``0 … n-1``, with less than two passes per number on average.
"""

import numpy as np

from inscape.errors import InputError

ROUNDS = 8
_ODD = np.uint64(0x9E3779B97F4A7C15)
_MORE_ODD = np.uint64(0xBF58476D1CE4E5B9)
_SHIFT = np.uint64(29)


class Permutation:
    """A pseudo-random permutation of ``0 … n-1``, the same for the same ``n`` and ``seed`` (integers, none negative)."""

    def __init__(self, n: int, seed: tuple[int, ...]) -> None:
        if n < 1:
            raise InputError(f"a permutation of {n} rows: expected at least one")
        bits = max(2, (n - 1).bit_length())
        self._n = np.uint64(n)
        self._low = np.uint64(bits // 2)
        self._masks = [
            np.uint64((1 << part) - 1) for part in (bits - bits // 2, bits // 2)
        ]  # of the high, the low part
        self._keys = np.random.SeedSequence(seed).generate_state(ROUNDS, np.uint64)

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """int64, the number at each place; places are int64 in ``0 … n-1``."""
        result = self._once(places.astype(np.uint64))
        while len(outside := np.flatnonzero(result >= self._n)):
            result[outside] = self._once(result[outside])
        return result.astype(np.int64)

    def _once(self, x: np.ndarray) -> np.ndarray:
        parts = [x >> self._low, x & self._masks[1]]
        for number, key in enumerate(self._keys):
            this = number % 2
            mixed = (parts[1 - this] + key) * _ODD
            mixed ^= mixed >> _SHIFT
            mixed *= _MORE_ODD
            mixed ^= mixed >> _SHIFT
            parts[this] ^= mixed & self._masks[this]
        return (parts[0] << self._low) | parts[1]
