"""Sub-pools: the rows of a pool whose uids come first in a random order that only the seed and the uids decide."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmark.pool.folder import copy_file, iter_row_groups, make_pool, write_npz_rows, write_parquet_rows
from benchmark.pool.index import hashes_images, narrow_index
from benchmark.pool.meeting import index_uids
from benchmark.pool.pool import ASSETS_NAME, Pool, planted_path
from benchmark.pool.shards_note import ShardsNote, only_path, read_note, shards_dir_of, write_note
from benchmark.pool.subset import load_subset, write_subset
from benchmark.pool.uids import UID_DTYPE, count_of, parse_uids, sort_uids, sorted_blocks, unique_uids
from benchmark.runtime.errors import UserError
from benchmark.runtime.files import Json
from benchmark.runtime.keyed import keyed_uint64
from benchmark.runtime.paths import index_dir_of
from benchmark.runtime.records import Record
from benchmark.runtime.storage import list_files

SAMPLE_VERSION = 1
SAMPLE_STREAM = 103  # of random numbers; apart from those of recipes and reports
UIDS_NAME = "uids.npy"  # of the samples that are the sub-pool's
TOP_BITS = 16  # of the hashes that are counted first


@dataclass(frozen=True)
class SampleCut:
    """Which uids are sampled: those whose hash is below `key`, and of those that have it, the uids up to `last`."""

    seed: int
    key: int
    last: np.ndarray | None  # (1,) UID_DTYPE

    def holds(self, uids: np.ndarray) -> np.ndarray:
        """Tell which uids are sampled, (n,) bool."""
        keys, key = hash_uids(uids, self.seed), np.uint64(self.key)
        if self.last is None:
            return keys < key
        is_up_to = (uids["f0"] < self.last["f0"]) | ((uids["f0"] == self.last["f0"]) & (uids["f1"] <= self.last["f1"]))
        return (keys < key) | ((keys == key) & is_up_to)


def hash_uids(uids: np.ndarray, seed: int) -> np.ndarray:
    """Return the random numbers that put uids in order, (n,) uint64."""
    return keyed_uint64(SAMPLE_STREAM, seed, uids["f0"], uids["f1"])


def sample_pool(pool_dir: Path, out_dir: Path, *, size: int, seed: int = 0) -> Record:
    """Make a pool of `size` rows of another one: the same rows whatever that one's files and their order.

    More rows with the same seed hold fewer. A uid on several rows is sampled with all of them, so there may be fewer
    rows than requested, by fewer than that uid has. The tars are referred to, not copied. A finished sub-pool is
    left as it is, a killed call resumes. Raises ValueError where `size` is not from 1 to the pool's rows.
    """
    pool = Pool(pool_dir, strict=False)
    if not 1 <= size <= pool.count_rows():
        raise UserError(
            f"--size {size:,} is not from 1 to {pool.count_rows():,}, the rows of {pool.dir}", code="option-value"
        )
    if seed < 0:
        raise UserError(f"--seed {seed} is not a whole number from 0 on", code="option-value")
    shards_dir = str(shards_dir_of(pool.dir).resolve()) if pool.has_images else None
    inputs: dict[str, Json] = {
        "fingerprint": pool.compute_fingerprint(),
        "shards_dir": shards_dir,
        "size": size,
        "seed": seed,
    }
    return make_pool(out_dir, "sample", SAMPLE_VERSION, inputs, lambda: _make(pool, out_dir, size, seed, shards_dir))


def find_cut(parts: Callable[[], Iterator[np.ndarray]], size: int, seed: int) -> SampleCut:
    """Find the cut below which at most `size` rows lie, and with one more uid more than that.

    `parts` gives the uids of all rows, and is called twice. Raises ValueError where the first uid has more rows.
    """
    shift = np.uint64(64 - TOP_BITS)
    counts = np.zeros(1 << TOP_BITS, dtype=np.int64)
    for uids in parts():
        counts += np.bincount((hash_uids(uids, seed) >> shift).astype(np.int64), minlength=len(counts))
    ends = np.cumsum(counts)
    bucket = int(np.searchsorted(ends, size))  # the first one at whose end there are enough
    left = size - int(ends[bucket] - counts[bucket])
    found = [uids[hash_uids(uids, seed) >> shift == np.uint64(bucket)] for uids in parts()]
    distinct, copies = unique_uids(sort_uids(np.concatenate(found)))
    keys = hash_uids(distinct, seed)
    order = np.lexsort((distinct["f1"], distinct["f0"], keys))
    taken = int(np.searchsorted(np.cumsum(copies[order]), left, side="right"))
    if taken:
        last = order[taken - 1]
        return SampleCut(seed, int(keys[last]), distinct[last : last + 1])
    if bucket == 0 or ends[bucket - 1] == 0:
        raise UserError(
            f"--size {size:,} is too small: the first uid sampled has {copies[order[0]]:,} rows", code="option-value"
        )
    return SampleCut(seed, bucket << (64 - TOP_BITS), None)


def _make(pool: Pool, out_dir: Path, size: int, seed: int, shards_dir: str | None) -> dict[str, Json]:
    cut = find_cut(lambda: _uids_of(pool), size, seed)
    rows = 0
    for path in pool.metadata_paths:
        chosen, target = cut.holds(pool.read_uids(path)), out_dir / "metadata" / path.name
        rows += int(chosen.sum())
        if not chosen.any() or target.exists():
            continue
        if path.with_suffix(".npz").exists():
            write_npz_rows(path.with_suffix(".npz"), target.with_suffix(".npz"), chosen)
        write_parquet_rows(path, target, chosen)
    _take_along(pool, out_dir, cut)
    if shards_dir is None:
        return {"rows": rows, "present": 0}
    note = read_note(pool.dir)
    parents_only = only_path(pool.dir)
    within = None if parents_only is None else load_subset(parents_only).uids
    parts = (uids[cut.holds(uids)] for uids in _uids_of(pool))
    if within is not None:
        parts = (uids[count_of(uids, within) > 0] for uids in parts)
    write_subset(out_dir / UIDS_NAME, (unique_uids(block)[0] for block in sorted_blocks(parts, out_dir)))
    assign_uids = note is not None and note.assign_uids
    names, caption_field = (None, None) if note is None else (note.names, note.caption_field)
    write_note(out_dir, ShardsNote(shards_dir, UIDS_NAME, assign_uids, hashes_images(pool.dir), names, caption_field))
    summary = narrow_index(out_dir, pool.dir)
    summary.refuse_damage(strict=False)
    return {"rows": rows or summary.num_rows, "present": summary.num_present}


def _uids_of(pool: Pool) -> Iterator[np.ndarray]:
    """Yield the uids of the metadata's rows; of the samples where the pool has shards only."""
    if pool.metadata_paths:
        return (pool.read_uids(path) for path in pool.metadata_paths)
    return index_uids(index_dir_of(pool.dir), pool.ensure_index().tars)


def _take_along(pool: Pool, out_dir: Path, cut: SampleCut) -> None:
    """Write what lies beside the metadata: assets as they are, and the sampled rows' planted labels."""
    source, target = planted_path(pool), out_dir / planted_path(pool).name
    if source.exists() and not target.exists():
        uids = [parse_uids(table["uid"], str(source)) for table in iter_row_groups(source)]
        write_parquet_rows(source, target, cut.holds(np.concatenate([np.empty(0, UID_DTYPE), *uids])))
    assets_dir = pool.dir / ASSETS_NAME
    for file in list_files(assets_dir) if assets_dir.is_dir() else []:
        if file.path.is_file() and not (out_dir / ASSETS_NAME / file.path.name).exists():
            copy_file(file.path, out_dir / ASSETS_NAME / file.path.name)
