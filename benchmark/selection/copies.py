"""Copies of a subset, spread over a pool's rows: of a uid on several rows evenly, earlier rows first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmark.pool.pool import Pool, Shard
from benchmark.pool.subset import Subset, load_subset
from benchmark.pool.uids import UidMarks, count_of, find_uids


@dataclass(frozen=True)
class Copies:
    """A subset's copies for the rows of a pool: of a uid on several rows, evenly, earlier rows first."""

    path: Path  # of the subset file
    repeated: np.ndarray  # uids on several rows, sorted
    num_rows_of: np.ndarray  # rows of each in the pool
    num_before: dict[int, tuple[np.ndarray, np.ndarray]]  # by shard: which of them it has, and their rows before it
    within: Copies | None = None  # only rows with copies of this one have any

    def of(self, shard: int, uids: np.ndarray) -> np.ndarray:
        """Return the copies of a metadata shard's rows, from their uids: (rows,) int64."""
        if self.within is None:
            return self._dealt(shard, uids)
        copies = np.zeros(len(uids), dtype=np.int64)
        is_shown = self.within.of(shard, uids) > 0
        copies[is_shown] = self._dealt(shard, uids[is_shown])
        return copies

    def _dealt(self, shard: int, uids: np.ndarray) -> np.ndarray:
        copies = count_of(uids, load_subset(self.path, known_sorted=True).uids)
        if shard in self.num_before:
            which, before = self.num_before[shard]
            numbers = find_uids(uids, self.repeated)
            rows = np.flatnonzero(numbers >= 0)
            place = _rank_among_equals(numbers[rows]) + before[np.searchsorted(which, numbers[rows])]
            num_rows = self.num_rows_of[numbers[rows]]
            copies[rows] = copies[rows] // num_rows + (place < copies[rows] % num_rows)
        return copies


@dataclass(frozen=True)
class LocatedSubset:
    """How a subset lies in a pool."""

    copies: Copies
    rows: int  # of the pool that have a copy
    num_unknown: int  # its uids that are on no row
    unknown: np.ndarray  # and some of them


def locate(
    pool: Pool,
    subset: Subset,
    path: Path,
    *,
    walk: Callable[[Callable[[Shard], tuple[np.ndarray, np.ndarray]]], Iterator[tuple[np.ndarray, np.ndarray]]],
    within: Copies | None = None,
) -> LocatedSubset:
    """Find on which rows of the pool, or of those with copies of `within`, a subset's uids are.

    `walk` calls a function on every metadata shard, in order. The subset is written to `path`, unless it is a whole
    file already.
    """
    mapped = getattr(subset.uids, "filename", None)  # of a slice of a map too, which is not the whole file
    if mapped is not None and len(load_subset(mapped, known_sorted=True)) == len(subset):
        path = Path(mapped)
    else:
        np.save(path, subset.uids)
    marks, num_rows, repeated = UidMarks(subset.uids), 0, [np.empty(0, dtype=np.int64)]
    find = partial(_uid_places, pool, path, within)
    for places, counts in walk(find):
        num_rows += int(counts.sum())
        repeated.append(places[(counts > 1) | marks.are_marked(places)])
        marks.mark_places(places)
    places_of_repeated = np.unique(np.concatenate(repeated))
    uids = np.asarray(subset.uids)[places_of_repeated]
    num_rows_of = np.zeros(len(uids), dtype=np.int64)
    num_before: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    if len(uids):
        for shard, (places, counts) in enumerate(walk(find)):
            which = np.flatnonzero(np.isin(places_of_repeated, places))
            if len(which):
                num_before[shard] = which, num_rows_of[which].copy()
                num_rows_of[which] += counts[np.searchsorted(places, places_of_repeated[which])]
    wanted = count_of(uids, subset.uids)
    num_rows -= int(np.maximum(num_rows_of - wanted, 0).sum())  # rows for which no copy is left
    num_unknown = marks.num_distinct - marks.num_marked
    copies = Copies(path, np.array(uids), num_rows_of, num_before, within)
    return LocatedSubset(copies, num_rows, num_unknown, marks.unmarked(3) if num_unknown else subset.uids[:0])


def _rank_among_equals(numbers: np.ndarray) -> np.ndarray:
    """Return for each number how many equal ones stand before it: (n,) int64."""
    order = np.argsort(numbers, kind="stable")
    _, starts, counts = np.unique(numbers[order], return_index=True, return_counts=True)
    ranks = np.empty(len(numbers), dtype=np.int64)
    ranks[order] = np.arange(len(numbers)) - np.repeat(starts, counts)
    return ranks


def _uid_places(pool: Pool, subset_path: Path, within: Copies | None, shard: Shard) -> tuple[np.ndarray, np.ndarray]:
    """Return which of a subset's uids (first places) a metadata shard has, and on how many rows; runs in workers.

    Only the rows with copies of `within` count.
    """
    uids = pool.read_uids(shard.path)
    if within is not None:
        uids = uids[within.of(shard.number, uids) > 0]
    places = find_uids(uids, load_subset(subset_path, known_sorted=True).uids)
    found: tuple[np.ndarray, np.ndarray] = np.unique(places[places >= 0], return_counts=True)
    return found
