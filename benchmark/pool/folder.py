"""A pool's folder while it is made from files of others: a claim first, files by rename, a record last."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmark.pool.npz import DAMAGE, npz_shapes
from benchmark.runtime.console import say
from benchmark.runtime.costs import cost
from benchmark.runtime.errors import UserError, one_line
from benchmark.runtime.files import Json, atomic_path, remove_temporary
from benchmark.runtime.locks import LOCK_NAME, locked
from benchmark.runtime.records import Record, finished, read_record, write_record
from benchmark.runtime.tables import without_view_types, without_views


def make_pool(
    out_dir: Path, stage: str, version: int, inputs: dict[str, Json], make: Callable[[], dict[str, Json]]
) -> Record:
    """Call `make` to fill a folder, once: return the record of what it made, now or before.

    `make` leaves what is there already, so that a killed call resumes with the same settings; with others it
    starts again. Where `make` raises what the user can mend, nothing of it stays. Raises ValueError where the folder
    was made with other settings, or holds what is not ours.
    """
    record_path, claim_path = out_dir / f"{stage}.json", out_dir / f"{stage}-begun.json"
    if out_dir.exists() and not out_dir.is_dir():
        raise UserError(f"--out {out_dir} is a file; choose a new or empty folder", code="folder-not-empty")
    names = {path.name for path in out_dir.iterdir()} - {LOCK_NAME} if out_dir.exists() else set()
    if names and not names & {record_path.name, claim_path.name, f"{claim_path.name}.tmp"}:
        raise UserError(
            f"--out {out_dir} is not empty (found {min(names)}); choose a new or empty folder", code="folder-not-empty"
        )
    was_there = out_dir.exists()
    with locked(out_dir):
        record = finished(record_path, stage, version, inputs)
        if record is None:
            claim = read_record(claim_path)
            wanted = Record(stage, version, inputs, {})
            if claim is not None and claim.hash != wanted.hash:
                say(f"{out_dir}: begun with other settings and not finished; starting again")
                _remove_begun(out_dir)
            if claim is None or claim.hash != wanted.hash:
                write_record(claim_path, wanted)
            remove_temporary(out_dir)
            try:
                with cost(out_dir, f"pool {stage}"):
                    record = Record(stage, version, inputs, make())
            except UserError:
                _remove_begun(out_dir)
                claim_path.unlink()
                (out_dir / LOCK_NAME).unlink(missing_ok=True)
                if not was_there and not any(out_dir.iterdir()):
                    out_dir.rmdir()
                raise
            write_record(record_path, record)
        claim_path.unlink(missing_ok=True)
    return record


# All that imports and samples write beside their record and claim, so that what is somebody else's is never removed.
_BEGUN = ("metadata", "index", "assets", "shards.json", "uids.npy", "planted.parquet", "costs.jsonl")


def _remove_begun(out_dir: Path) -> None:
    """Remove what a call that did not finish has written."""
    remove_temporary(out_dir)
    for name in _BEGUN:
        path = out_dir / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def as_out_dir(text: str) -> Path:
    """Return the folder that a pool is made in; raises ValueError for a URL."""
    if "://" in text:
        raise UserError(f"--out {text} is not a local folder; make the pool here and upload it", code="option-value")
    return Path(text).expanduser()


def iter_row_groups(path: Path) -> Iterator[pa.Table]:
    """Yield the row groups of a parquet file. Raises ValueError that names the file where it is damaged."""
    try:
        with path.open("rb") as file:
            parquet = pq.ParquetFile(file)
            for number in range(parquet.num_row_groups):
                yield parquet.read_row_group(number)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path} is damaged ({one_line(error)}); fetch or build it again", code="file-damaged"
        ) from error


def read_parquet_schema(path: Path) -> pa.Schema:
    """Read the columns of a parquet file and their types. Raises ValueError where it is none."""
    try:
        with path.open("rb") as file:
            return pq.read_schema(file)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a parquet file ({one_line(error)})", code="file-damaged") from error


@contextmanager
def parquet_writer(path: Path, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """Give a function that appends a row group to a parquet file, which is there when all are written."""
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        yield writer.write_table


def write_parquet_rows(source: Path, target: Path, chosen: np.ndarray) -> None:
    """Write some rows of a parquet file, in order; `chosen` is a mask, (rows,) bool."""
    start = 0
    with parquet_writer(target, without_view_types(read_parquet_schema(source))) as write:
        for table in map(without_views, iter_row_groups(source)):
            chosen = chosen[start : start + table.num_rows]
            start += table.num_rows
            if chosen.any():
                write(table.filter(pa.array(chosen)))


def write_npz_rows(source: Path, target: Path, chosen: np.ndarray) -> None:
    """Write some rows of every array of an .npz, as `np.savez` does, array by array; `chosen` is a mask, (rows,)."""
    with atomic_path(target) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, shape in npz_shapes(source).items():
            if shape[:1] != chosen.shape:
                raise UserError(
                    f"{source}: {name} has shape {shape}, but there are {len(chosen):,} rows", code="array-shape"
                )
            array = _read_array(source, name)
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array[chosen], allow_pickle=False)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's bytes."""
    with source.open("rb") as file, atomic_path(target) as temporary, temporary.open("wb") as copy:
        shutil.copyfileobj(file, copy)


def _read_array(path: Path, name: str) -> np.ndarray:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return np.asarray(arrays[name])
    except DAMAGE as error:
        raise UserError(
            f"{path} is damaged ({one_line(error)}); fetch or build it again", code="file-damaged"
        ) from error
