"""An experiment's own shards, as training reads them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from benchmark.pool.index import PoolIndex, build_index, read_index
from benchmark.pool.index_table import index_tables
from benchmark.pool.subset import SUBSET_NAME, load_subset
from benchmark.pool.uids import count_of
from benchmark.runtime.errors import UserError
from benchmark.runtime.files import read_json
from benchmark.runtime.paths import index_dir_of
from benchmark.runtime.records import Record, read_record

SHARDS_NAME = "shards"  # in an experiment: what it is trained on
RESHARD_RECORD_NAME = "reshard.json"


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
    record = read_record(shards_dir / RESHARD_RECORD_NAME)
    if record is None:
        raise UserError(
            f"{shards_dir} is not finished (it has no {RESHARD_RECORD_NAME}); run `winnow reshard exp_dir={exp_dir}` "
            "again, or delete the folder to train on the pool in place",
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
            "with the shard_size that it had, makes it again",
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
            f"{shards_dir} holds {len(index):,} samples in {len(index.summary.tars):,} tars, but its "
            f"{RESHARD_RECORD_NAME} says {record.result['samples']:,} in {record.result['shards']:,}; reshard again",
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
