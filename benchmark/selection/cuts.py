"""The exact top fraction of a pool of any size, in fixed memory: a radix selection over score, uid and place.

Every row has a key of four 64-bit words: the score, turned so that a higher one comes first; the uid's two halves, so
that ties go to the smaller uid; and the place, for rows with the same score and uid. Keys are all different. Counting
rows by 16 bits of a word at a time, in one table of 65,536 counts for each pass over the pool, finds that word of the
last row to be kept; once few enough rows share the known bits, their words are gathered instead. The next word is
looked at only where some of the rows that tie in this one are kept and others are not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

DIGIT_BITS = 16
DIGITS_PER_WORD = 64 // DIGIT_BITS
NUM_WORDS = 4
MAX_GATHERED = 1 << 20  # rows, 8 MiB of words


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
        if not len(chosen):
            return np.empty(0, dtype=np.uint64)
        if number == 0:
            return score_words(self.scores[chosen])
        if number == NUM_WORDS - 1:
            return (np.uint64(self.shard << 40) | self.rows[chosen].astype(np.uint64)).astype(np.uint64)
        return np.ascontiguousarray(self.read_uids(self.rows[chosen])[f"f{number - 1}"])


@dataclass(frozen=True)
class Ties:
    """The rows with the lowest score that is kept: where not all of them are kept, their uids decided."""

    rows: int = 0
    kept: int = 0


@dataclass(frozen=True)
class OpenCut:
    """A cut that is not found yet: the first words of the last kept row's key, and the next word's leading digits."""

    rank: int  # of the last kept row among the rows that begin like this, from 1
    count: int  # rows that begin like this
    words: tuple[int, ...] = ()
    digits: tuple[int, ...] = ()
    ties: Ties | None = None  # once the score's word is known

    @property
    def is_small(self) -> bool:
        """Tell whether the rows that begin like this are few enough to be gathered, or nothing is left to count by."""
        return self.count <= MAX_GATHERED or len(self.digits) == DIGITS_PER_WORD

    def narrowed(self, histogram: np.ndarray) -> OpenCut:
        """Return the cut with one digit more, from the counts of the next digit: (65,536,) int64."""
        ends = np.cumsum(histogram)
        digit = int(np.searchsorted(ends, self.rank))
        before = int(ends[digit - 1]) if digit else 0
        return OpenCut(self.rank - before, int(histogram[digit]), self.words, (*self.digits, digit), self.ties)

    def with_word(self, gathered: np.ndarray) -> OpenCut | TopCut:
        """Return the cut with one word more, from that word of all rows that begin like this: (count,) uint64."""
        assert len(gathered) == self.count
        word = int(np.partition(gathered, self.rank - 1)[self.rank - 1])
        words = (*self.words, word)
        rank = self.rank - int((gathered < np.uint64(word)).sum())
        count = int((gathered == np.uint64(word)).sum())
        ties = Ties(count, rank) if self.ties is None else self.ties
        return TopCut(words, ties) if rank == count else OpenCut(rank, count, words, ties=ties)


@dataclass(frozen=True)
class TopCut:
    """Keep the rows whose key does not begin with more than these words; without words, all that have a score."""

    words: tuple[int, ...] = ()
    ties: Ties = Ties()

    def keeps(self, keys: RowKeys) -> np.ndarray:
        """Tell which rows are kept: (n,) bool."""
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


NOTHING = TopCut((0, 0, 0, 0))  # no key is below; a score's word is 0 for none, as NaN is a missing score


def count_digits(keys: RowKeys, cut: OpenCut) -> np.ndarray:
    """Count the rows that begin like the cut by their next digit: (65,536,) int64."""
    shift = np.uint64(64 - DIGIT_BITS * (len(cut.digits) + 1))
    following = (gather_words(keys, cut) >> shift) & np.uint64((1 << DIGIT_BITS) - 1)
    return np.bincount(following.astype(np.int64), minlength=1 << DIGIT_BITS)


def gather_words(keys: RowKeys, cut: OpenCut) -> np.ndarray:
    """Return the next word of the rows that begin like the cut: (rows,) uint64."""
    chosen = np.arange(len(keys.rows))
    for number, known in enumerate(cut.words):
        chosen = chosen[keys.words(number, chosen) == np.uint64(known)]
    words = keys.words(len(cut.words), chosen)
    if not cut.digits:
        return words
    shift = np.uint64(64 - DIGIT_BITS * len(cut.digits))
    wanted = sum(digit << (DIGIT_BITS * place) for place, digit in enumerate(reversed(cut.digits)))
    return words[(words >> shift) == np.uint64(wanted)]
