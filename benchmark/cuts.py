"""The exact top fraction of a pool of any size, in fixed memory: a radix selection over score, uid and place.

Every row has a key of four 64-bit words: the score, turned so that a higher one comes first; the uid's two halves, so
that ties go to the smaller uid; and the place, for rows with the same score and uid. Keys are all different. Counting
rows by 16 bits of the key at a time, in one table of 65,536 counts for each pass over the pool, finds the key of the
last row to be kept; once few enough rows share the known bits, they are gathered and sorted instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

DIGIT_BITS = 16
DIGITS_PER_WORD = 64 // DIGIT_BITS
NUM_WORDS = 4
MAX_GATHERED = 1 << 20  # rows, 32 MiB of keys


def score_words(scores: np.ndarray) -> np.ndarray:
    """Return scores (n,) as unsigned words that rise as the scores fall: (n,) uint64; exact up to float64."""
    bits = scores.astype(np.float64).view(np.uint64)
    top = np.uint64(1 << 63)
    return np.where(bits & top, bits, ~(bits | top))


@dataclass(frozen=True)
class RowKeys:
    """The keys of some rows of a metadata shard, the uids looked up only where they decide something."""

    scores: np.ndarray  # (n,) float
    rows: np.ndarray  # (n,) of the shard, rising
    shard: int  # its number
    read_uids: Callable[[np.ndarray], np.ndarray]  # from rows of the shard to UID_DTYPE

    def words(self, number: int, chosen: np.ndarray) -> np.ndarray:
        """Return one word of the chosen rows' keys (places in `rows`): (chosen,) uint64."""
        if number == 0:
            return score_words(self.scores[chosen])
        if number == NUM_WORDS - 1:
            return (np.uint64(self.shard << 40) | self.rows[chosen].astype(np.uint64)).astype(np.uint64)
        return np.ascontiguousarray(self.read_uids(self.rows[chosen])[f"f{number - 1}"])


@dataclass(frozen=True)
class OpenCut:
    """A cut that is not found yet: the leading digits of the last kept row's key, and which of their rows it is."""

    digits: tuple[int, ...] = ()
    rank: int = 0  # of the last kept row among the rows with these digits, from 1
    count: int = 0  # rows with these digits

    @property
    def is_small(self) -> bool:
        """Tell whether the rows with these digits are few enough to be gathered."""
        return self.count <= MAX_GATHERED or len(self.digits) == NUM_WORDS * DIGITS_PER_WORD

    def narrowed(self, histogram: np.ndarray) -> OpenCut:
        """Return the cut with one digit more, from the counts of the next digit: (65,536,) int64."""
        ends = np.cumsum(histogram)
        digit = int(np.searchsorted(ends, self.rank))
        before = int(ends[digit - 1]) if digit else 0
        return OpenCut((*self.digits, digit), self.rank - before, int(histogram[digit]))

    def closed(self, keys: np.ndarray) -> TopCut:
        """Return the cut, from the keys (count, 4) of all rows with these digits."""
        assert len(keys) == self.count
        order = np.lexsort(keys.T[::-1])
        return TopCut(tuple(int(word) for word in keys[order[self.rank - 1]]))


@dataclass(frozen=True)
class TopCut:
    """Keep the rows whose key is not above this one; without words, all that have a score."""

    words: tuple[int, ...] = field(default=())

    def keeps(self, keys: RowKeys) -> np.ndarray:
        """Tell which rows are kept: (n,) bool."""
        if not self.words:
            return np.ones(len(keys.rows), dtype=bool)
        keep = np.zeros(len(keys.rows), dtype=bool)
        tied = np.arange(len(keys.rows))
        for number, limit in enumerate(self.words):
            words = keys.words(number, tied)
            keep[tied[words < np.uint64(limit)]] = True
            tied = tied[words == np.uint64(limit)]
            if not len(tied):
                break
        keep[tied] = True
        return keep


def count_digits(keys: RowKeys, digits: tuple[int, ...]) -> np.ndarray:
    """Count the rows whose keys begin with these digits by their next one: (65,536,) int64."""
    chosen, words = _beginning_with(keys, digits)
    number, place = divmod(len(digits), DIGITS_PER_WORD)
    if place == 0:
        words = keys.words(number, chosen)
    following = (words >> np.uint64(64 - DIGIT_BITS * (place + 1))) & np.uint64((1 << DIGIT_BITS) - 1)
    return np.bincount(following.astype(np.int64), minlength=1 << DIGIT_BITS)


def gather_keys(keys: RowKeys, digits: tuple[int, ...]) -> np.ndarray:
    """Return the keys of the rows that begin with these digits: (rows, 4) uint64."""
    chosen, _ = _beginning_with(keys, digits)
    return np.stack([keys.words(number, chosen) for number in range(NUM_WORDS)], axis=1)


def _beginning_with(keys: RowKeys, digits: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return which rows' keys begin with these digits, and their words that the last digit is of."""
    chosen = np.arange(len(keys.rows))
    words = np.empty(0, dtype=np.uint64)
    for number in range(-(-len(digits) // DIGITS_PER_WORD)):
        known = digits[number * DIGITS_PER_WORD : (number + 1) * DIGITS_PER_WORD]
        shift = np.uint64(64 - DIGIT_BITS * len(known))
        wanted = sum(digit << (DIGIT_BITS * (len(known) - 1 - place)) for place, digit in enumerate(known))
        words = keys.words(number, chosen)
        is_same = (words >> shift) == np.uint64(wanted)
        chosen, words = chosen[is_same], words[is_same]
    return chosen, words
