"""How a pool's metadata rows and its tars' samples meet, by uid: counted in memory that does not grow with the pool."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmark.pool.index_counts import IndexSummary
from benchmark.pool.index_table import index_tables, present_rows, unpack_uids
from benchmark.pool.pool import Pool
from benchmark.pool.shards import Tar
from benchmark.pool.subset import load_subset, write_subset
from benchmark.pool.uids import UID_DTYPE, sorted_blocks, walk_together
from benchmark.runtime.locks import locked
from benchmark.runtime.paths import cache_dir, index_dir_of

SHOWN_REPEATS = 10  # repeated uids that are named


def index_uids(index_dir: Path, tars: Sequence[Tar], *, present: bool = False) -> Iterator[np.ndarray]:
    """Yield the uids of each tar's index, or of its samples with image and caption only."""
    for table in index_tables(index_dir, tars, ["uid", "image_offset", "text_offset"]):
        uids = unpack_uids(table["uid"])
        if present:
            uids = uids[present_rows(table)]
        yield uids


@dataclass(frozen=True)
class Meeting:
    """How the metadata's rows and the tars' samples meet, by uid."""

    rows: int  # of the metadata
    rows_present: int  # and of these, rows that have a sample with image and caption
    samples: int  # in the tars that have a uid
    present: int  # and of these, samples with image and caption
    samples_without_row: int
    repeated_in_rows: int  # uids on several rows
    repeated_in_tars: int  # uids of several samples
    repeated: np.ndarray = field(repr=False)  # the first uids of either, (n,) sorted

    @property
    def coverage(self) -> float | None:
        """Return the share of rows that have a sample with image and caption; None without rows."""
        return self.rows_present / self.rows if self.rows else None


def measure_meeting(pool: Pool, summary: IndexSummary | None, metadata_paths: Sequence[Path] | None = None) -> Meeting:
    """Count how rows and samples meet, by uid, in memory that does not grow with either.

    `metadata_paths`: the shards to read, else all; `summary` None: the pool has no tars.
    """
    index_dir = index_dir_of(pool.dir)
    paths = pool.metadata_paths if metadata_paths is None else metadata_paths
    tars = [] if summary is None else summary.tars
    # A pool without an index is left as it is.
    folder = cache_dir() / "sorting" if summary is None else index_dir
    rows_present = without_row = in_rows = in_tars = 0
    repeated = [np.empty(0, dtype=UID_DTYPE)]
    parts = {
        "rows": (pool.read_uids(path) for path in paths),
        "samples": index_uids(index_dir, tars),
        "present": index_uids(index_dir, tars, present=True),
    }
    with _sorted_on_disk(folder, parts) as arrays:
        for uids, (rows, samples, present) in walk_together(arrays):
            rows_present += int(rows[present > 0].sum())
            without_row += int(samples[rows == 0].sum())
            in_rows += int((rows > 1).sum())
            in_tars += int((samples > 1).sum())
            if sum(map(len, repeated)) < SHOWN_REPEATS:
                repeated.append(uids[(rows > 1) | (samples > 1)])
        sizes = [len(array) for array in arrays]
    return Meeting(
        sizes[0],
        rows_present,
        sizes[1],
        sizes[2],
        without_row,
        in_rows,
        in_tars,
        np.concatenate(repeated)[:SHOWN_REPEATS],
    )


@contextmanager
def _sorted_on_disk(folder: Path, parts: dict[str, Iterator[np.ndarray]]) -> Iterator[list[np.ndarray]]:
    """Give the uids of each part sorted, in files that are mapped into memory and removed at the end."""
    with locked(folder):
        paths = [folder / f"sorted-{name}.npy" for name in parts]
        try:
            for path, arrays in zip(paths, parts.values(), strict=True):
                write_subset(path, sorted_blocks(arrays, folder))
            yield [load_subset(path).uids for path in paths]
        finally:
            for path in paths:
                path.unlink(missing_ok=True)
