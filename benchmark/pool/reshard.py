"""Resharding: a subset's samples cut out of the pool's tars into new ones, bytes copied without decoding.

The layout is that of DataComp's resharder: tars of `shard_size` samples in pool order, the copies of a sample side by
side under the keys `{uid}-{copy}`, members in the order of their extensions; `NNNNNNNN_stats.json`, `sample_ids.npy`
and `meta.json` beside them. reshard.json, written last, says what they were made from and what was not there.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmark.pool.index import (
    INDEX_SCHEMA,
    PoolIndex,
    Tar,
    build_index,
    caption_of,
    index_tables,
    present_rows,
    read_index,
    read_note,
    unpack_uids,
)
from benchmark.pool.pool import Pool
from benchmark.pool.subset import SUBSET_NAME, Subset, load_subset
from benchmark.pool.tars import ARCHIVE_END, BLOCK, member_header, padding
from benchmark.pool.uids import UidMarks, count_of, format_uids, runs_of
from benchmark.runtime.console import say, warn
from benchmark.runtime.costs import cost
from benchmark.runtime.errors import UserError
from benchmark.runtime.executor import map_items
from benchmark.runtime.files import (
    Json,
    announce,
    atomic_path,
    digest,
    read_json,
    remove_temporary,
    sha256_of,
    write_json,
)
from benchmark.runtime.locks import LOCK_NAME, locked
from benchmark.runtime.paths import index_dir_of
from benchmark.runtime.ranges import SequentialReader, open_sequential
from benchmark.runtime.records import Record, finished, read_record, write_record
from benchmark.runtime.storage import format_bytes

RESHARD_VERSION = 1
SHARDS_NAME = "shards"  # in an experiment: what it is trained on
RECORD_NAME = "reshard.json"
PLAN_NAME = "resharding.json"  # while it is under way
SUBSET_COPY_NAME = "sample_ids.npy"
SHARD_FORMAT, STATS_FORMAT = "{:08d}.tar", "{:08d}_stats.json"
WRITE_BYTES = 1 << 20  # handed to the system at once


@dataclass(frozen=True)
class Coverage:
    """How much of a subset a pool has."""

    requested: int  # samples, copies counted
    distinct: int  # uids
    absent: int  # of the distinct uids, without a sample that has image and caption; the links are dead
    unknown: int  # and of these, neither in the metadata nor in the index
    repeated: int  # samples beyond the first of their uid, copies not counted


@dataclass(frozen=True)
class ShardPlan:
    """One output shard: a range of P, and the tars it comes from."""

    number: int
    start: int  # in P
    stop: int
    tars: tuple[Tar, ...]
    first: int  # the place in P of the first tar's first sample


def reshard(
    pool: Pool,
    subset_path: Path,
    out_dir: Path,
    *,
    shard_size: int,
    max_missing: int = 0,
    workers: int | None = None,
) -> Record:
    """Write the subset's samples into `out_dir`, or reuse what is there and fits; a killed run goes on.

    Raises ValueError where the pool does not know more than `max_missing` of the uids, and where the folder was made
    from something else.
    """
    subset = load_subset(subset_path)
    if not len(subset):
        raise UserError(f"{subset_path} is empty", code="subset-empty")
    inputs: dict[str, Json] = {
        "pool": pool.identify().as_json(),
        "subset": sha256_of(subset_path),
        "shard_size": shard_size,
    }
    finished(out_dir / RECORD_NAME, "reshard", RESHARD_VERSION, inputs)  # before the folder is touched
    refuse_foreign(out_dir)
    with locked(out_dir):
        remove_temporary(out_dir)
        record = finished(out_dir / RECORD_NAME, "reshard", RESHARD_VERSION, inputs)
        if record is not None:
            _drop_changed(out_dir, record)
        shards = 0 if record is None else record.result["shards"]
        if record is not None and all((out_dir / STATS_FORMAT.format(n)).exists() for n in range(shards)):
            (out_dir / PLAN_NAME).unlink(missing_ok=True)  # what a kill right after the record left
            samples = record.result["samples"]
            say(f"reshard: as before, {samples:,} samples in {shards:,} tars ({out_dir})")
            return record
        counts, coverage = count_samples(pool, subset, subset_path, max_missing)
        plans = plan_shards(pool.ensure_index().tars, counts, shard_size)
        if not plans:
            raise UserError(
                f"none of the {coverage.distinct:,} uids of {subset_path} has a sample in {pool.dir}",
                code="subset-foreign",
            )
        # Finished tars are taken over only where all would be cut as they were: the order of the pool's is its names'.
        order = digest([[t.label, t.size, int(n)] for t, n in zip(pool.ensure_index().tars, counts, strict=True)])
        plan_made_from = {**inputs, "order of tars": order}
        if finished(out_dir / PLAN_NAME, "resharding", RESHARD_VERSION, plan_made_from) is None:
            write_record(out_dir / PLAN_NAME, Record("resharding", RESHARD_VERSION, plan_made_from, {}))
        todo = [plan for plan in plans if not _is_written(out_dir, plan)]
        workers = min(os.cpu_count() or 1, len(todo)) if workers is None else workers
        with cost(out_dir, "reshard", workers=workers, shards=len(todo)):
            subset.write(out_dir / SUBSET_COPY_NAME)  # sorted, whatever the given one was
            note = read_note(pool.dir)
            caption_field = None if note is None else note.caption_field
            write = partial(write_shard, out_dir=out_dir, index_dir=index_dir_of(pool.dir), caption_field=caption_field)
            written = 0
            for plan, size in zip(todo, map_items(write, todo, workers=workers, name="reshard"), strict=True):
                written += size
                if workers:  # who follows the renames of this process has not seen the workers'
                    announce(out_dir / SHARD_FORMAT.format(plan.number))
                    announce(out_dir / STATS_FORMAT.format(plan.number))
        result: dict[str, Json] = {
            "samples": int(counts.sum()),
            "shards": len(plans),
            **asdict(coverage),
            "damaged_tars": len(pool.ensure_index().damaged),
            "tar_sizes": [(out_dir / SHARD_FORMAT.format(plan.number)).stat().st_size for plan in plans],
        }
        write_json(out_dir / "meta.json", _meta(pool, subset_path, out_dir, shard_size, result))
        record = Record("reshard", RESHARD_VERSION, inputs, result)
        write_record(out_dir / RECORD_NAME, record)
        (out_dir / PLAN_NAME).unlink()
    say(
        f"reshard: {result['samples']:,} samples in {len(plans):,} tars, {format_bytes(written)} written ({out_dir}); "
        f"{describe_coverage(coverage)}"
    )
    return record


def count_samples(pool: Pool, subset: Subset, subset_path: Path, max_missing: int) -> tuple[np.ndarray, Coverage]:
    """Return how many samples of P each of the pool's tars gives, (tars,), and how much of the subset is there.

    One pass over the index and, where uids are left over, one over the metadata; memory does not grow with either.
    Raises ValueError where the pool does not know more than `max_missing` of the uids.
    """
    marks, known = UidMarks(subset.uids), UidMarks(subset.uids)
    counts = np.zeros(len(pool.ensure_index().tars), dtype=np.int64)
    places = 0
    columns = ["uid", "image_offset", "text_offset"]
    for number, table in enumerate(index_tables(index_dir_of(pool.dir), pool.ensure_index().tars, columns)):
        uids = unpack_uids(table["uid"])
        first, end = runs_of(uids, subset.uids)
        copies = end - first
        is_chosen, is_present = copies > 0, present_rows(table)
        marks.mark_places(first[is_chosen & is_present])
        known.mark_places(first[is_chosen & ~is_present])
        counts[number] = copies[is_present].sum()
        places += int((is_chosen & is_present).sum())
    known.mark_all(marks)
    for path in pool.metadata_paths if known.num_marked < known.num_distinct else []:
        known.mark(pool.read_uids(path))
    refuse_unknown(known, pool, subset_path, max_missing)
    return counts, Coverage(
        requested=len(subset),
        distinct=marks.num_distinct,
        absent=marks.num_distinct - marks.num_marked,
        unknown=known.num_distinct - known.num_marked,
        repeated=places - marks.num_marked,
    )


def refuse_unknown(known: UidMarks, pool: Pool, subset_path: Path, max_missing: int) -> None:
    """Raise ValueError where more of a subset's uids than are allowed are unmarked: the pool does not know them."""
    num_unknown = known.num_distinct - known.num_marked
    if not num_unknown:
        return
    example = ", ".join(format_uids(known.unmarked(3)))
    told = f"{subset_path}: {num_unknown:,} of {known.num_distinct:,} uids are not in {pool.dir}, such as {example}"
    if pool.metadata_paths:
        note = "; max_missing= is for pools of shards alone" if max_missing else ""
        raise UserError(f"{told}; is it a subset of another pool?{note}", code="uid-unknown")
    if num_unknown > max_missing:
        raise UserError(
            f"{told}. It has shards alone; where images are missing from them, allow for it with "
            f"max_missing={num_unknown}",
            code="uid-unknown",
        )


def describe_coverage(coverage: Coverage) -> str:
    """Say in one line what of a subset is not there."""
    there = coverage.distinct - coverage.absent
    text = f"{there:,} of {coverage.distinct:,} uids are there"
    if coverage.absent:
        text += f"; {coverage.absent:,} have no sample with image and caption in the pool"
    if coverage.unknown:
        text += f", {coverage.unknown:,} of these are not known to it at all"
    if coverage.repeated:
        text += f"; {coverage.repeated:,} more samples repeat a uid"
    return text


def plan_shards(tars: Sequence[Tar], counts: np.ndarray, shard_size: int) -> list[ShardPlan]:
    """Cut P into output shards; each names the tars that it comes from."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    plans = []
    for number, start in enumerate(range(0, total, shard_size)):
        stop = min(start + shard_size, total)
        first = int(np.searchsorted(ends, start, side="right"))
        last = int(np.searchsorted(ends, stop, side="left"))
        before = int(ends[first - 1]) if first else 0
        plans.append(ShardPlan(number, start, stop, tuple(tars[first : last + 1]), before))
    return plans


def write_shard(plan: ShardPlan, *, out_dir: Path, index_dir: Path, caption_field: str | None = None) -> int:
    """Write one output shard of the subset that lies in `out_dir`, and its statistics; return its bytes.

    `caption_field`: of the JSON, that becomes a txt; None where the samples have one.
    """
    subset = load_subset(out_dir / SUBSET_COPY_NAME, known_sorted=True)
    path = out_dir / SHARD_FORMAT.format(plan.number)
    with atomic_path(path) as temporary, TarWriter(temporary) as writer:
        first = plan.first
        for tar, table in zip(plan.tars, index_tables(index_dir, plan.tars, INDEX_SCHEMA.names), strict=True):
            first = _copy_samples(plan, first, tar, table, subset, writer, caption_field)
        writer.finish()
        size = writer.size
    write_json(out_dir / STATS_FORMAT.format(plan.number), {"successes": plan.stop - plan.start})
    return size


class TarWriter:
    """Writes a tar through one buffer, which its members are read into, so that their bytes are moved but once."""

    def __init__(self, path: Path) -> None:
        self.size = 0  # bytes written and buffered
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        self._buffer = bytearray(WRITE_BYTES)
        self._filled = 0

    def room(self, length: int) -> memoryview:
        """Return the next `length` bytes of the archive, to be filled in before anything else is asked for."""
        if self._filled + length > len(self._buffer):
            self.flush()
            if length > len(self._buffer):
                self._buffer = bytearray(length)
        start = self._filled
        self._filled += length
        self.size += length
        return memoryview(self._buffer)[start : start + length]

    def flush(self) -> None:
        """Write what is buffered."""
        waiting = memoryview(self._buffer)[: self._filled]
        while len(waiting):
            waiting = waiting[os.write(self._file, waiting) :]
        self._filled = 0

    def finish(self) -> None:
        """End the archive as tarfile does: two blocks of zeros, and more up to a multiple of ten kilobytes."""
        zeros = bytes(2 * BLOCK + -(self.size + 2 * BLOCK) % ARCHIVE_END)
        self.room(len(zeros))[:] = zeros
        self.flush()

    def __enter__(self) -> TarWriter:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)


def _copy_samples(
    plan: ShardPlan,
    first: int,
    tar: Tar,
    table: pa.Table,
    subset: Subset,
    writer: TarWriter,
    caption_field: str | None,
) -> int:
    """Copy what an output shard has of one tar; return the place in P after the tar's last sample."""
    uids = unpack_uids(table["uid"])
    copies = count_of(uids, subset.uids) * present_rows(table)
    ends = first + np.cumsum(copies)
    rows = np.flatnonzero((copies > 0) & (ends > plan.start) & (ends - copies < plan.stop))
    chosen = table.take(pa.array(rows))
    spelt = format_uids(uids[rows])
    others = chosen["others"].to_pylist() if chosen["others"].null_count < len(rows) else [None] * len(rows)
    extensions = chosen["image_extension"].to_pylist()
    places = {name: chosen[name].to_pylist() for name in _PLACES}
    with open_sequential(tar.path, state=tar.state) as file:
        for number, row in enumerate(rows.tolist()):
            members = [
                (extensions[number], places["image_offset"][number], places["image_length"][number]),
                ("txt", places["text_offset"][number], places["text_length"][number]),
            ]
            if places["json_offset"][number] >= 0:
                members.append(("json", places["json_offset"][number], places["json_length"][number]))
            for other in others[number] or ():
                members.append((other["extension"], other["offset"], other["length"]))
            caption: bytes | None = None
            if caption_field is not None:  # the caption's place is the JSON's
                caption = caption_of(file.read(*members[1][1:]), caption_field)
                members = [m for m in members if m[0] != "txt"] + [("txt", _NOT_IN_TAR, len(caption))]
            members.sort()
            before = int(ends[row] - copies[row])
            for copy in range(max(plan.start - before, 0), min(plan.stop - before, int(copies[row]))):
                _copy_sample(f"{spelt[number]}-{copy}", members, file, writer, caption)
    return int(ends[-1]) if len(ends) else first


def _copy_sample(
    key: str,
    members: list[tuple[str, int, int]],
    file: SequentialReader,
    writer: TarWriter,
    caption: bytes | None = None,
) -> None:
    """Copy a sample's members, (extension, offset, length) in their new order; raises ValueError where one is cut off.

    Members that stand in this order already are read in one piece, headers and all, which are then written over.
    """
    padded = [BLOCK + length + padding(length) for _, _, length in members]
    room = writer.room(sum(padded))
    start = members[0][1]
    expected = start
    for (_, offset, _), size in zip(members, padded, strict=True):
        if offset != expected:
            break
        expected += size
    else:
        length = expected - start - BLOCK - padding(members[-1][2])
        file.readinto(start, room[BLOCK : BLOCK + length])
        start = -1
    at = 0
    for (extension, offset, length), size in zip(members, padded, strict=True):
        room[at : at + BLOCK] = member_header(f"{key}.{extension}", length)
        if offset == _NOT_IN_TAR:
            room[at + BLOCK : at + BLOCK + length] = caption or b""
        elif start >= 0:
            file.readinto(offset, room[at + BLOCK : at + BLOCK + length])
        room[at + BLOCK + length : at + size] = bytes(size - BLOCK - length)
        at += size


_NOT_IN_TAR = -1  # the place of a member that stands in another
_PLACES = ("image_offset", "image_length", "text_offset", "text_length", "json_offset", "json_length")


def _is_written(out_dir: Path, plan: ShardPlan) -> bool:
    """Tell whether an output shard is finished: its statistics come after it."""
    stats_path = out_dir / STATS_FORMAT.format(plan.number)
    return (
        stats_path.exists()
        and (out_dir / SHARD_FORMAT.format(plan.number)).exists()
        and read_json(stats_path) == {"successes": plan.stop - plan.start}
    )


@dataclass(frozen=True)
class Resharded:
    """A finished resharding: what it was cut out of, and its samples as training takes them."""

    record: Record
    index: PoolIndex
    samples: np.ndarray  # P: places in the index, those of a sample's copies alike


def resharded_record(exp_dir: Path) -> Record | None:
    """Return the record of an experiment's own shards, or None where it has none and is trained in place.

    Raises ValueError where they are not finished.
    """
    shards_dir = exp_dir / SHARDS_NAME
    if not shards_dir.exists():
        return None
    record = read_record(shards_dir / RECORD_NAME)
    if record is None:
        raise UserError(
            f"{shards_dir} is not finished (it has no {RECORD_NAME}); run `winnow reshard exp_dir={exp_dir}` again, or "
            "delete the folder to train on the pool in place",
            code="shards-unfinished",
        )
    return record


def read_resharded(exp_dir: Path, record: Record) -> Resharded:
    """Open an experiment's own shards; raises ValueError where they are not those that their record speaks of."""
    shards_dir = exp_dir / SHARDS_NAME
    index = read_index(exp_dir, build_index(exp_dir, uids_in_keys=True))
    if index.summary.damaged:
        tar, damaged = index.summary.damaged[0]
        raise UserError(
            f"{tar.path} is damaged: {damaged.damage_places[0]}; delete it, and `winnow reshard exp_dir={exp_dir}`, "
            "with the shard_size that it had, makes it anew",
            code="tar-damaged",
        )
    for tar, counts in zip(index.summary.tars, index.summary.counts, strict=True):
        stats_path = shards_dir / f"{tar.path.stem}_stats.json"
        if not stats_path.exists() or read_json(stats_path) != {"successes": counts.present}:
            raise UserError(
                f"{tar.path} does not hold the samples that {stats_path.name} counts; delete it and reshard again",
                code="record-differs",
            )
    if (len(index.summary.tars), len(index)) != (record.result["shards"], record.result["samples"]):
        raise UserError(
            f"{shards_dir} holds {len(index):,} samples in {len(index.summary.tars):,} tars, but its {RECORD_NAME} "
            f"says {record.result['samples']:,} in {record.result['shards']:,}; reshard again",
            code="record-differs",
        )
    subset = load_subset(exp_dir / SUBSET_NAME)
    num_foreign = int((count_of(index.uids, subset.uids) == 0).sum())
    if num_foreign:
        raise UserError(
            f"{shards_dir} holds {num_foreign:,} samples that are none of {SUBSET_NAME}; reshard again",
            code="record-differs",
        )
    # Copies of one sample follow each other from copy 0 on; all of them are read where that one stands.
    tables = index_tables(index_dir_of(exp_dir), index.summary.tars, ["key"])
    is_first = np.concatenate([pc.ends_with(table["key"], "-0").to_numpy() for table in tables])
    return Resharded(record, index, np.maximum.accumulate(np.where(is_first, np.arange(len(index)), 0)))


def refuse_foreign(out_dir: Path) -> None:
    """Raise ValueError where anything stands in a folder that this program has not begun."""
    if not out_dir.exists() or any((out_dir / name).exists() for name in (RECORD_NAME, PLAN_NAME)):
        return
    if not out_dir.is_dir():
        raise UserError(f"{out_dir} is no folder; give another out_dir=", code="folder-not-empty")
    found = sorted(path.name for path in out_dir.iterdir() if path.name != LOCK_NAME)
    if found:
        raise UserError(
            f"{out_dir} is not empty and not of `winnow reshard` (it holds {found[0]}); give another out_dir=",
            code="folder-not-empty",
        )


def _drop_changed(out_dir: Path, record: Record) -> None:
    """Remove the statistics of tars that are gone or of another size, so that these are made again."""
    for number, size in enumerate(record.result["tar_sizes"]):
        path = out_dir / SHARD_FORMAT.format(number)
        if not path.exists() or path.stat().st_size != size:
            warn(f"{path} is gone or was changed after it was made, and is made again")
            (out_dir / STATS_FORMAT.format(number)).unlink(missing_ok=True)


def _meta(pool: Pool, subset_path: Path, out_dir: Path, shard_size: int, result: dict[str, Json]) -> dict[str, Json]:
    """Return what DataComp's programs read of a resharding, and what it counted."""
    return {
        "input_dir": str(pool.dir),
        "output_dir": str(out_dir),
        "subset_file": str(subset_path),
        "shard_size": str(shard_size),
        "output_shard_format": SHARD_FORMAT,
        "output_shard_stats_format": STATS_FORMAT,
        "output_shard_count": result["shards"],
        "output_count": result["samples"],
        **{name: value for name, value in result.items() if name not in ("shards", "samples", "tar_sizes")},
    }
