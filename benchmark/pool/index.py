"""The index: where in which tar every sample's members lie; built tar by tar, reused where it fits, and read whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmark.pool.index_counts import IndexSummary, Lacking, TarCounts, counts_of
from benchmark.pool.index_scan import index_tar
from benchmark.pool.index_table import (
    INDEX_SCHEMA,
    INDEX_VERSION,
    PLACE_COLUMNS,
    index_path,
    index_tables,
    present_rows,
    unpack_uids,
)
from benchmark.pool.shards import Tar
from benchmark.pool.shards_note import list_tars, only_path, read_note
from benchmark.pool.subset import Subset, load_subset
from benchmark.pool.tars import Damage
from benchmark.pool.uids import count_of
from benchmark.runtime.executor import map_items
from benchmark.runtime.files import atomic_path, read_json, write_bytes, write_json
from benchmark.runtime.locks import locked
from benchmark.runtime.paths import index_dir_of, is_remote

MANY_TARS = 4  # from here on they are indexed by several processes
HASHED_MARK = "hash_images"  # beside an index: images without a hash in their JSON are read and hashed


@dataclass(frozen=True)
class PoolIndex:
    """The present samples of a pool (image and caption are there), or some of them, in pool order.

    All arrays have shape (n,).
    """

    summary: IndexSummary
    uids: np.ndarray  # UID_DTYPE
    tar_number: np.ndarray  # into summary.tars
    image_offset: np.ndarray
    image_length: np.ndarray
    text_offset: np.ndarray
    text_length: np.ndarray
    caption_field: str | None = None  # of the JSON that stands there; None: the caption itself does
    index_dir: Path | None = None  # where more is known of them, such as keys

    def __len__(self) -> int:
        return len(self.uids)


def workers_for(tars: Sequence[Tar], workers: int | None) -> int:
    """Return how many processes take tars one by one: as many as requested, else a core each where there are many."""
    if workers is not None:
        return workers
    return 0 if len(tars) < MANY_TARS else min(os.cpu_count() or 1, len(tars))


def build_index(
    pool_dir: Path, *, workers: int | None = None, hash_images: bool = False, uids_in_keys: bool = False
) -> IndexSummary:
    """Index every tar that has no index or has changed since; return what all their footers say.

    Each tar's index is written atomically, so a killed pass resumes. `workers` None: one process per core where there
    is much to do. With `hash_images` the images whose JSON names no sha256 are read and hashed, now and whenever a tar
    of this pool is indexed again: the content hash must not depend on when that was.
    """
    tars, index_dir, note = list_tars(pool_dir), index_dir_of(pool_dir), read_note(pool_dir)
    if hash_images and not (index_dir / HASHED_MARK).exists():
        write_bytes(index_dir / HASHED_MARK, b"")
    hash_images = hashes_images(pool_dir)
    found = [_read_counts(index_dir, tar, hash_images) for tar in tars]
    if any(counts is None for counts in found):
        with locked(index_dir):
            _take_over_index(pool_dir, index_dir, tars, hash_images)
            found = [counts or _read_counts(index_dir, t, hash_images) for counts, t in zip(found, tars, strict=True)]
            todo = [tar for tar, counts in zip(tars, found, strict=True) if counts is None]
            only = only_path(pool_dir)
            work = partial(
                _index_one,
                index_dir=index_dir,
                hash_images=hash_images,
                only=only,
                assign_uids=note is not None and note.assign_uids,
                uids_in_keys=uids_in_keys,
                caption_field=None if note is None else note.caption_field,
            )
            done = map_items(work, todo, workers=workers_for(todo, workers), name="index")
            made = dict(zip(todo, done, strict=True))
            found = [counts or made[tar] for counts, tar in zip(found, tars, strict=True)]
    return IndexSummary(tars, [counts for counts in found if counts is not None])


def unindexed_tars(pool_dir: Path) -> list[Tar]:
    """Return the tars that `build_index` would read."""
    index_dir, hash_images = index_dir_of(pool_dir), hashes_images(pool_dir)
    return [tar for tar in list_tars(pool_dir) if _read_counts(index_dir, tar, hash_images) is None]


def hashes_images(pool_dir: Path) -> bool:
    """Tell whether a pool's images are hashed where their JSON names no sha256."""
    note = read_note(pool_dir)
    return (index_dir_of(pool_dir) / HASHED_MARK).exists() or (note is not None and note.hash_images)


def narrow_index(pool_dir: Path, source_dir: Path) -> IndexSummary:
    """Index a pool that has some of another pool's samples, from that one's index as far as it is there and fits.

    The bytes are those of `build_index`, which does the rest.
    """
    note, path = read_note(pool_dir), only_path(pool_dir)
    assert note is not None and path is not None
    only, index_dir, source_index_dir = load_subset(path).uids, index_dir_of(pool_dir), index_dir_of(source_dir)
    for tar in list_tars(pool_dir):
        counts = _read_counts(source_index_dir, tar, note.hash_images)
        if counts is None or _read_counts(index_dir, tar, note.hash_images) is not None:
            continue
        (table,) = index_tables(source_index_dir, [tar], INDEX_SCHEMA.names)
        table = table.filter(pa.array(count_of(unpack_uids(table["uid"]), only) > 0)).cast(INDEX_SCHEMA)
        damage = Damage(counts.damage, list(counts.damage_places))
        counts = counts_of(table, unpack_uids(table["uid"]), damage)
        write_index(index_dir, tar, table, counts, hash_images=note.hash_images)
    return build_index(pool_dir)


def read_index(pool_dir: Path, summary: IndexSummary | None = None, subset: Subset | None = None) -> PoolIndex:
    """Read the pool's index (making it first where no summary of it is given); with `subset`, only its samples.

    Raises FileNotFoundError where the pool has no tars, ValueError where one is damaged and no summary is given.
    """
    if summary is None:
        summary = build_index(pool_dir)
        summary.refuse_damage(strict=True)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("uids", "tar_number", *PLACE_COLUMNS)}
    columns = ["uid", *PLACE_COLUMNS]
    for number, table in enumerate(index_tables(index_dir_of(pool_dir), summary.tars, columns)):
        uids = unpack_uids(table["uid"])
        arrays = {name: table[name].to_numpy() for name in PLACE_COLUMNS}
        wanted = present_rows(table)
        if subset is not None:
            wanted &= count_of(uids, subset.uids) > 0
        parts["uids"].append(uids[wanted])
        parts["tar_number"].append(np.full(int(wanted.sum()), number, dtype=np.int32))
        for name in PLACE_COLUMNS:
            parts[name].append(arrays[name][wanted])
    whole = {name: np.concatenate(pieces) for name, pieces in parts.items()}
    note = read_note(pool_dir)
    caption_field = None if note is None else note.caption_field
    return PoolIndex(summary, **whole, caption_field=caption_field, index_dir=index_dir_of(pool_dir))


def write_index(index_dir: Path, tar: Tar, table: pa.Table, counts: TarCounts, *, hash_images: bool = False) -> None:
    """Write a tar's index, its counts in the footer, atomically."""
    values = asdict(counts)
    if counts.is_sound:
        values = {name: value for name, value in values.items() if name not in _LEFT_OUT}
    about = {"version": INDEX_VERSION, "state": _recorded_state(tar), "hash_images": hash_images, **values}
    table = table.replace_schema_metadata({"winnow_index": json.dumps(about)})
    with atomic_path(index_path(index_dir, tar)) as temporary:
        pq.write_table(table, temporary, compression="zstd")
        _keep_time(temporary, index_path(index_dir, tar), tar)


def _keep_time(path: Path, target: Path, tar: Tar) -> None:
    """Give the file that becomes a local tar's index the tar's time.

    Where its file system keeps times less precisely than the tar's, a note beside the index says which one was meant.
    """
    if is_remote(tar.path):
        return
    os.utime(path, ns=(_time_of(tar), _time_of(tar)))
    stored, note_path = path.stat().st_mtime_ns, _time_note_path(target)
    if stored != _time_of(tar):
        write_json(note_path, {"kept": stored, "meant": _time_of(tar)})
    else:
        note_path.unlink(missing_ok=True)


def _is_of_time(path: Path, tar: Tar) -> bool:
    """Tell whether an index was made from a local tar as it is now."""
    stored = path.stat().st_mtime_ns
    if stored == _time_of(tar):
        return True
    try:
        return bool(read_json(_time_note_path(path)) == {"kept": stored, "meant": _time_of(tar)})
    except (OSError, ValueError):
        return False


def _time_note_path(path: Path) -> Path:
    return path.with_suffix(".time.json")


def _index_one(
    tar: Tar,
    *,
    index_dir: Path,
    hash_images: bool,
    only: Path | None,
    assign_uids: bool,
    uids_in_keys: bool,
    caption_field: str | None,
) -> TarCounts:
    table, counts = index_tar(
        tar.path,
        tar.size,
        hash_images=hash_images,
        only=None if only is None else load_subset(only, known_sorted=True).uids,
        assign_uids=assign_uids,
        uids_in_keys=uids_in_keys,
        caption_field=caption_field,
    )
    write_index(index_dir, tar, table, counts, hash_images=hash_images)
    return counts


def _read_counts(index_dir: Path, tar: Tar, hash_images: bool) -> TarCounts | None:
    """Return the counts of a tar's index, or None where there is none that fits the tar as it is now."""
    path = index_path(index_dir, tar)
    try:
        about = json.loads((pq.read_schema(path).metadata or {})[b"winnow_index"])
        is_older = not is_remote(tar.path) and not _is_of_time(path, tar)
    except (pa.ArrowException, OSError, KeyError, ValueError):
        return None  # absent, of an older version, or damaged, and made again
    fits = about.pop("version", None) == INDEX_VERSION and about.pop("state", None) == _recorded_state(tar)
    if is_older or not fits or (hash_images and not about["hash_images"]):
        return None
    if "lacking" not in about and (about["rows"] > about["present"] or about["without_json"] or about["damage"]):
        return None  # made before members that stand apart were put together, and something is left out
    del about["hash_images"]
    lacking = tuple(Lacking(**{**each, "members": tuple(each["members"])}) for each in about.pop("lacking", ()))
    return TarCounts(**{**about, "damage_places": tuple(about["damage_places"]), "lacking": lacking})


def _recorded_state(tar: Tar) -> str:
    # A local tar's time is stored as the time of its index, so that the same tars give the same bytes of index.
    return tar.state if is_remote(tar.path) else str(tar.size)


def _time_of(tar: Tar) -> int:
    """Return a local tar's time, in nanoseconds."""
    return int(tar.state.partition("/")[2])


def _take_over_index(pool_dir: Path, index_dir: Path, tars: Sequence[Tar], hash_images: bool) -> None:
    """Copy what fits of the index that a read-only pool has inside, as none can be made there."""
    inside = pool_dir / "index"
    if is_remote(pool_dir) or inside == index_dir:
        return
    for tar in tars:
        if _read_counts(index_dir, tar, hash_images) is None and _read_counts(inside, tar, hash_images) is not None:
            with atomic_path(index_path(index_dir, tar)) as temporary:
                shutil.copy2(index_path(inside, tar), temporary)
                _keep_time(temporary, index_path(index_dir, tar), tar)


_LEFT_OUT = ("empty", "dotted", "dotted_example", "lacking")  # fields of TarCounts
