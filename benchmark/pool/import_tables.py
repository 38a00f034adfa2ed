"""Importing metadata from parquet files: which columns are taken, and how rows meet samples by uid."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmark.pool.folder import iter_row_groups, parquet_writer, read_parquet_schema, write_npz_rows
from benchmark.pool.foreign import tell_foreign
from benchmark.pool.index_counts import IndexSummary
from benchmark.pool.index_scan import assigned_uid
from benchmark.pool.index_table import index_tables, unpack_uids
from benchmark.pool.uids import UID_DTYPE, find_uids, format_uids, parse_uids, uid_order
from benchmark.runtime.errors import NotFoundError, UnknownNameError, UserError, one_line
from benchmark.runtime.files import Json
from benchmark.runtime.names import nearest_name
from benchmark.runtime.paths import index_dir_of
from benchmark.runtime.tables import family_of, is_family, plain_column, without_view_types, without_views

COMMON_TYPES: dict[str, pa.DataType] = {  # CommonPool's columns
    "uid": pa.string(),
    "url": pa.string(),
    "text": pa.string(),
    "original_width": pa.int64(),
    "original_height": pa.int64(),
    "clip_b32_similarity_score": pa.float32(),
    "clip_l14_similarity_score": pa.float32(),
    "face_bboxes": pa.list_(pa.list_(pa.float64())),
    "sha256": pa.string(),
}


@dataclass(frozen=True)
class Tables:
    """Somebody's parquet files, and how their columns become a pool's."""

    paths: tuple[Path, ...]
    columns: Mapping[str, str]  # new name -> old name
    uid_column: str | None
    key_column: str | None

    def names_of(self, path: Path, schema: pa.Schema) -> list[tuple[str, str]]:
        """Return (new, old) of every column that is taken beside the uid.

        Raises KeyError for a column that is not there, ValueError where a name or a type does not fit.
        """
        for new, old in self.columns.items():
            if old not in schema.names:
                raise _no_column(f"--column {new}={old}", old, path, schema.names)
            if new in schema.names and new != old and new not in self.columns.values():
                raise UserError(
                    f"--column {new}={old}: {path} has a column {new!r} already; rename that one too",
                    code="option-value",
                )
        for option, column in (("--uid-column", self.uid_column), ("--key-column", self.key_column)):
            if column is not None and column not in schema.names:
                raise _no_column(f"{option} {column}", column, path, schema.names)
            if column is not None and not is_family(schema.field(column).type, "text"):
                raise UserError(
                    f"{option} {column}: {path} has {schema.field(column).type} there; uids and keys are text, such as "
                    "'000000010023'",
                    code="column-type",
                )
        names = []
        for old in schema.names:
            news = [new for new, given in self.columns.items() if given == old] or [old]
            names += [(new, old) for new in news if new != "uid" and (new != old or old != self.uid_column)]
        for new, old in names:
            _check_type(path, new, old, schema.field(old).type)
        return names


def parquet_paths(given: Sequence[Path]) -> tuple[Path, ...]:
    """Return the files, folders replaced by their parquet files; raises where there is none or two share a name."""
    paths: dict[str, Path] = {}
    for location in given:
        found = sorted(location.glob("*.parquet")) if location.is_dir() else [location] if location.is_file() else []
        tables = sorted(location.glob("*.[ct]sv")) if location.is_dir() else [location]
        if tables and (location.is_file() or not found) and tables[0].suffix.lower() in (".csv", ".tsv"):
            raise UserError(
                f"--metadata {location}: {tables[0].name} is not a parquet file, and only these are read; write one by "
                f"pandas.read_csv({tables[0].name!r}).to_parquet({tables[0].with_suffix('.parquet').name!r})",
                code="metadata-not-parquet",
            )
        if not found:
            raise NotFoundError(f"--metadata {location}: there is no parquet file", code="not-found")
        for path in found:
            if path.name in paths:
                raise UserError(
                    f"--metadata: {paths[path.name]} and {path} have one name; rename one of them", code="name-taken"
                )
            paths[path.name] = path
    return tuple(paths[name] for name in sorted(paths))


def with_uid_source(tables: Tables, tars_name_uids: bool) -> Tables:
    """Decide where rows get their uids from; raises where columns lack, before anything is written."""
    schemas = {path: read_parquet_schema(path) for path in tables.paths}
    if tables.uid_column is not None and tables.key_column is not None:
        raise UserError(
            "--uid-column and --key-column are two ways to a row's uid; give one of them", code="option-conflict"
        )
    if tables.uid_column is None and tables.key_column is None and tars_name_uids:
        old = tables.columns.get("uid", "uid")
        if all(old in schema.names for schema in schemas.values()):
            tables = Tables(tables.paths, {n: o for n, o in tables.columns.items() if n != "uid"}, old, None)
    if "uid" in tables.columns:
        raise UserError(
            f"--column uid={tables.columns['uid']}: write --uid-column {tables.columns['uid']}", code="option-value"
        )
    for path, schema in schemas.items():
        names = [new for new, _ in tables.names_of(path, schema)]
        if tables.uid_column is None and tables.key_column is None:
            lacking = [name for name in ("sha256", "text") if name not in names]
            if lacking:
                foreign = tell_foreign([path])
                raise UserError(
                    f"nothing leads from the rows of {path} to samples: give --uid-column, --key-column, or "
                    f"--column {' and --column '.join(f'{name}=...' for name in lacking)}; it has {schema.names}"
                    + (f"; {foreign}" if foreign else ""),
                    code="no-way-to-samples",
                )
    return tables


def metadata_from_tables(out_dir: Path, tables: Tables, summary: IndexSummary) -> dict[str, Json]:
    if tables.uid_column is not None:
        uids_of = partial(_uids_of_column, tables.uid_column)
    elif tables.key_column is not None:
        uids_of = partial(_uids_of_keys, tables.key_column, *_keys_of_samples(out_dir, summary))
    else:
        names = tables.columns
        uids_of = partial(_uids_of_content, names.get("sha256", "sha256"), names.get("text", "text"))
    rows = left_out = 0
    for path in tables.paths:
        target = out_dir / "metadata" / path.name
        if not target.exists():
            _import_table(path, target, tables, uids_of)
        with path.open("rb") as file:
            num_rows = pq.read_metadata(file).num_rows
        rows += pq.read_metadata(target).num_rows
        left_out += num_rows - pq.read_metadata(target).num_rows
    if not rows:
        remedy = "" if tables.key_column is None else f"; the tars have keys such as {_some_key(out_dir, summary)!r}"
        raise UserError(f"none of {left_out:,} rows has a uid{remedy}; choose another column", code="uid-invalid")
    return {"rows": rows, "left_out": left_out}


def _import_table(
    path: Path, target: Path, tables: Tables, uids_of: Callable[[pa.Table, str], tuple[np.ndarray, np.ndarray]]
) -> None:
    """Write one metadata shard, and the rows of the .npz beside it."""
    source = without_view_types(read_parquet_schema(path))
    names = tables.names_of(path, source)
    schema = pa.schema(
        [("uid", pa.string()), *((new, COMMON_TYPES.get(new, source.field(old).type)) for new, old in names)]
    )
    masks = [np.empty(0, dtype=bool)]
    with parquet_writer(target, schema) as write:
        for number, table in enumerate(map(without_views, iter_row_groups(path))):
            uids, has_uid = uids_of(table, f"{path}, row group {number}")
            masks.append(has_uid)
            chosen = table.filter(pa.array(has_uid))
            arrays = [pa.array(format_uids(uids), pa.string())]
            for new, old in names:
                try:
                    column = chosen[old]
                    if new in COMMON_TYPES:
                        family = family_of(COMMON_TYPES[new])
                        column = plain_column(
                            column, f"{path}: the column {old!r}", family if family in ("text", "number") else None
                        )
                    arrays.append(column.cast(schema.field(new).type))
                except pa.ArrowException as error:
                    raise UserError(
                        f"{path}: column {old!r} does not become {new} of type {schema.field(new).type} "
                        f"({one_line(error)})",
                        code="column-type",
                    ) from error
            if len(uids):
                write(pa.Table.from_arrays(arrays, schema=schema))
        if path.with_suffix(".npz").exists():
            write_npz_rows(path.with_suffix(".npz"), target.with_suffix(".npz"), np.concatenate(masks))


def _check_type(path: Path, new: str, old: str, kind: pa.DataType) -> None:
    """Raise ValueError where a column of CommonPool's name holds something else."""
    wanted = COMMON_TYPES.get(new)
    if wanted is not None and not is_family(kind, family_of(wanted)):
        raise UserError(
            f"{path}: the column {old!r} is {kind}, but {new} is {wanted}; bring it to that, or rename it: "
            f"--column OTHER={old}",
            code="column-type",
        )


def _uids_of_column(column: str, table: pa.Table, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the uids of the rows that have one, and which they are."""
    texts = plain_column(table[column], f"{where}, column {column!r}", "text").cast(pa.string())
    has_uid = texts.is_valid().to_numpy()
    return parse_uids(texts.fill_null("0" * 32), f"{where}, column {column!r}")[has_uid], has_uid


def _uids_of_content(sha256: str, text: str, table: pa.Table, where: str) -> tuple[np.ndarray, np.ndarray]:
    uids, has_uid = [], np.zeros(table.num_rows, dtype=bool)
    hashes, captions = (plain_column(table[name], f"{where}, column {name!r}", "text") for name in (sha256, text))
    for row, (hashed, caption) in enumerate(zip(hashes.to_pylist(), captions.to_pylist(), strict=True)):
        if hashed is None or caption is None:
            continue
        try:
            uids.append(assigned_uid(_digest(hashed), caption.encode()))
        except ValueError as error:
            raise UserError(
                f"{where}: {sha256} in row {row} is {hashed!r}; a sha256 is 64 hex characters", code="column-type"
            ) from error
        has_uid[row] = True
    return parse_uids(uids, where), has_uid


def _digest(text: str) -> bytes:
    data = bytes.fromhex(text)
    if len(data) != 32:
        raise UserError(text, code="column-type")
    return data


def _uids_of_keys(
    column: str, hashes: np.ndarray, sample_uids: np.ndarray, table: pa.Table, where: str
) -> tuple[np.ndarray, np.ndarray]:
    keys = plain_column(table[column], f"{where}, column {column!r}", "text")
    places = find_uids(_hash_keys(keys.to_pylist()), hashes)
    has_uid = (places >= 0) & keys.is_valid().to_numpy()
    return sample_uids[places[has_uid]], has_uid


def _keys_of_samples(out_dir: Path, summary: IndexSummary) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted hashes of the samples' keys and the samples' uids in that order, both (n,) UID_DTYPE.

    Raises ValueError where two samples have one key.
    """
    hashes, uids = [np.empty(0, dtype=UID_DTYPE)], [np.empty(0, dtype=UID_DTYPE)]
    for table in index_tables(index_dir_of(out_dir), summary.tars, ["uid", "key"]):
        hashes.append(_hash_keys(table["key"].to_pylist()))
        uids.append(unpack_uids(table["uid"]))
    together = np.concatenate(hashes)
    order = uid_order(together)
    ordered = np.take(together, order)
    repeated = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(repeated):
        ends = np.cumsum([len(part) for part in hashes[1:]])
        places = order[repeated[0] : repeated[0] + 2]
        first, second = (summary.tars[int(np.searchsorted(ends, place, side="right"))] for place in places)
        raise UserError(
            f"--key-column: {len(repeated):,} keys stand for several samples, one of them in {first.path.name} and "
            f"{second.path.name}; join by a column with the image's sha256 instead: --column sha256=...",
            code="key-repeated",
        )
    return ordered, np.take(np.concatenate(uids), order)


def _hash_keys(keys: Sequence[str | None]) -> np.ndarray:
    data = b"".join(hashlib.blake2b((key or "").encode(), digest_size=16).digest() for key in keys)
    return np.frombuffer(data, dtype=UID_DTYPE)


def _some_key(out_dir: Path, summary: IndexSummary) -> str | None:
    tables: Iterator[pa.Table] = index_tables(index_dir_of(out_dir), summary.tars, ["key"])
    return next((table["key"][0].as_py() for table in tables if table.num_rows), None)


def _no_column(option: str, column: str, path: Path, names: Sequence[str]) -> UnknownNameError:
    return UnknownNameError(
        f"{option}: {path} has no column {column!r}.{nearest_name(column, names)} It has {list(names)}.",
        code="column-missing",
    )
