"""The rows of a pool that a report counts: all of them, or a sample of a large pool, in bounded memory.

A row is in the sample where a hash of its uid is small, so neither files nor their order matter, and rows that share a
uid are in it together. How many rows there are and how many are kept is counted over the whole pool.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmark.pool.pool import Pool
from benchmark.pool.subset import Subset
from benchmark.pool.uids import UID_DTYPE, count_of
from benchmark.runtime.keyed import keyed_uint64

MAX_ROWS = 2_000_000  # of larger pools a sample of about so many rows is counted
SHEET_STREAM, LANGUAGE_STREAM, SAMPLE_STREAM = 101, 102, 103  # of the hashes that choose rows; apart from all recipes'


@dataclass(frozen=True, eq=False)
class RowSample:
    """Rows of a pool, in the order of its files, and which of them a subset keeps."""

    uids: np.ndarray  # (rows,) UID_DTYPE
    is_kept: np.ndarray  # (rows,) bool
    parts: list[np.ndarray] | None  # by file: its rows that are in the sample, (n,) each; None where all rows are
    num_rows: int  # of the pool
    num_kept: int  # of the pool

    @property
    def is_whole(self) -> bool:
        """Tell whether it has all rows."""
        return self.parts is None


def is_sampled(pool: Pool) -> bool:
    """Tell whether the pool is too large for all its rows to be counted."""
    return pool.count_rows() > MAX_ROWS


def take_rows(pool: Pool, subset: Subset) -> RowSample:
    """Return all rows of the pool, or of one with more than MAX_ROWS rows a sample of about MAX_ROWS."""
    uids, is_kept = [np.empty(0, dtype=UID_DTYPE)], [np.empty(0, dtype=bool)]
    parts: list[np.ndarray] | None = [] if is_sampled(pool) else None
    num_rows = num_kept = 0
    for found in pool.uid_parts():
        kept = count_of(found, subset.uids) > 0
        num_rows += len(found)
        num_kept += int(kept.sum())
        if parts is not None:
            rows = np.flatnonzero(in_sample(found, pool.count_rows())).astype(np.int32)
            parts.append(rows)
            found, kept = found[rows], kept[rows]
        uids.append(found)
        is_kept.append(kept)
    return RowSample(np.concatenate(uids), np.concatenate(is_kept), parts, num_rows, num_kept)


def in_sample(uids: np.ndarray, num_rows: int) -> np.ndarray:
    """Tell which uids are in the sample of a pool of `num_rows` rows: (n,) bool."""
    below = np.uint64(MAX_ROWS / num_rows * 2**64)
    return keyed_uint64(SAMPLE_STREAM, uids["f0"], uids["f1"]) < below
