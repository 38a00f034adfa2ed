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

from benchmark.pool.index_table import index_tables, present_rows, unpack_uids
from benchmark.pool.pool import Pool
from benchmark.pool.reshard_tars import SHARD_FORMAT, STATS_FORMAT, SUBSET_COPY_NAME, ShardPlan, write_shard
from benchmark.pool.resharded import RESHARD_RECORD_NAME
from benchmark.pool.shards import Tar
from benchmark.pool.shards_note import read_note
from benchmark.pool.subset import Subset, load_subset
from benchmark.pool.uids import UidMarks, format_uids, runs_of
from benchmark.runtime.console import say, warn
from benchmark.runtime.costs import cost
from benchmark.runtime.errors import UserError
from benchmark.runtime.executor import map_items
from benchmark.runtime.files import (
    Json,
    announce,
    digest,
    read_json,
    remove_temporary,
    sha256_of,
    write_json,
)
from benchmark.runtime.locks import LOCK_NAME, locked
from benchmark.runtime.paths import index_dir_of
from benchmark.runtime.records import Record, finished, write_record
from benchmark.runtime.storage import format_bytes

RESHARD_VERSION = 1
PLAN_NAME = "resharding.json"  # while it is under way


@dataclass(frozen=True)
class Coverage:
    """How much of a subset a pool has."""

    requested: int  # samples, copies counted
    distinct: int  # uids
    absent: int  # of the distinct uids, without a sample that has image and caption; the links are dead
    unknown: int  # and of these, neither in the metadata nor in the index
    repeated: int  # samples beyond the first of their uid, copies not counted


def reshard(
    pool: Pool,
    subset_path: Path,
    out_dir: Path,
    *,
    shard_size: int,
    max_missing: int = 0,
    workers: int | None = None,
) -> Record:
    """Write the subset's samples into `out_dir`, or reuse what is there and fits; a killed run resumes.

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
    finished(out_dir / RESHARD_RECORD_NAME, "reshard", RESHARD_VERSION, inputs)  # before the folder is touched
    refuse_foreign(out_dir)
    with locked(out_dir):
        remove_temporary(out_dir)
        if (record := _up_to_date(out_dir, inputs)) is not None:
            return record
        counts, coverage = count_samples(pool, subset, subset_path, max_missing)
        plans = plan_shards(pool.ensure_index().tars, counts, shard_size)
        if not plans:
            raise UserError(
                f"none of the {coverage.distinct:,} uids of {subset_path} has a sample in {pool.dir}",
                code="subset-foreign",
            )
        _write_plan(pool, out_dir, inputs, counts)
        subset.write(out_dir / SUBSET_COPY_NAME)  # sorted, whatever the given one was
        written = _write_shards(pool, out_dir, plans, workers)
        result: dict[str, Json] = {
            "samples": int(counts.sum()),
            "shards": len(plans),
            **asdict(coverage),
            "damaged_tars": len(pool.ensure_index().damaged),
            "tar_sizes": [(out_dir / SHARD_FORMAT.format(plan.number)).stat().st_size for plan in plans],
        }
        write_json(out_dir / "meta.json", _meta(pool, subset_path, out_dir, shard_size, result))
        record = Record("reshard", RESHARD_VERSION, inputs, result)
        write_record(out_dir / RESHARD_RECORD_NAME, record)
        (out_dir / PLAN_NAME).unlink()
    say(
        f"reshard: {result['samples']:,} samples in {len(plans):,} tars, {format_bytes(written)} written ({out_dir}); "
        f"{describe_coverage(coverage)}"
    )
    return record


def _up_to_date(out_dir: Path, inputs: dict[str, Json]) -> Record | None:
    """Return the record of a finished resharding whose tars are all there, None where something is to be written."""
    record = finished(out_dir / RESHARD_RECORD_NAME, "reshard", RESHARD_VERSION, inputs)
    if record is None:
        return None
    _drop_changed(out_dir, record)
    samples, shards = record.result["samples"], record.result["shards"]
    if not all((out_dir / STATS_FORMAT.format(number)).exists() for number in range(shards)):
        return None
    (out_dir / PLAN_NAME).unlink(missing_ok=True)  # what a kill right after the record left
    say(f"reshard: up to date, skipping: {samples:,} samples in {shards:,} tars ({out_dir})")
    return record


def _write_plan(pool: Pool, out_dir: Path, inputs: dict[str, Json], counts: np.ndarray) -> None:
    """Write what is under way; raises ValueError where tars are there that would be others now."""
    # Finished tars are taken over only where all would be as they were: the pool's order is that of its tars' names.
    order = digest([[t.label, t.size, int(n)] for t, n in zip(pool.ensure_index().tars, counts, strict=True)])
    plan_inputs = {**inputs, "order of tars": order}
    if finished(out_dir / PLAN_NAME, "resharding", RESHARD_VERSION, plan_inputs) is None:
        write_record(out_dir / PLAN_NAME, Record("resharding", RESHARD_VERSION, plan_inputs, {}))


def _write_shards(pool: Pool, out_dir: Path, plans: Sequence[ShardPlan], workers: int | None) -> int:
    """Write the shards that are not finished; return their bytes."""
    todo = [plan for plan in plans if not _is_written(out_dir, plan)]
    workers = min(os.cpu_count() or 1, len(todo)) if workers is None else workers
    note = read_note(pool.dir)
    caption_field = None if note is None else note.caption_field
    write = partial(write_shard, out_dir=out_dir, index_dir=index_dir_of(pool.dir), caption_field=caption_field)
    written = 0
    with cost(out_dir, "reshard", workers=workers, shards=len(todo)):
        for plan, size in zip(todo, map_items(write, todo, workers=workers, name="reshard"), strict=True):
            written += size
            if workers:  # who follows the renames of this process has not seen the workers'
                announce(out_dir / SHARD_FORMAT.format(plan.number))
                announce(out_dir / STATS_FORMAT.format(plan.number))
    return written


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
    what = f"{subset_path}: {num_unknown:,} of {known.num_distinct:,} uids are not in {pool.dir}, such as {example}"
    if pool.metadata_paths:
        note = "; max_missing= is for pools of shards only" if max_missing else ""
        raise UserError(f"{what}; is it a subset of another pool?{note}", code="uid-unknown")
    if num_unknown > max_missing:
        raise UserError(
            f"{what}. It has shards only; where images are missing from them, allow for it with "
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


def _is_written(out_dir: Path, plan: ShardPlan) -> bool:
    """Tell whether an output shard is finished: its statistics come after it."""
    stats_path = out_dir / STATS_FORMAT.format(plan.number)
    return (
        stats_path.exists()
        and (out_dir / SHARD_FORMAT.format(plan.number)).exists()
        and read_json(stats_path) == {"successes": plan.stop - plan.start}
    )


def refuse_foreign(out_dir: Path) -> None:
    """Raise ValueError where anything stands in a folder that this program has not begun."""
    if not out_dir.exists() or any((out_dir / name).exists() for name in (RESHARD_RECORD_NAME, PLAN_NAME)):
        return
    if not out_dir.is_dir():
        raise UserError(f"{out_dir} is not a folder; give another out_dir=", code="folder-not-empty")
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
