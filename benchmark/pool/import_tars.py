"""Importing metadata from tars only: what their samples say, probed first and then written shard by shard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic_core import from_json

from benchmark.pool.folder import parquet_writer
from benchmark.pool.import_tables import COMMON_TYPES, Tables
from benchmark.pool.index import workers_for
from benchmark.pool.index_counts import IndexSummary
from benchmark.pool.index_scan import MAX_JSON_BYTES, is_uid
from benchmark.pool.index_table import caption_of, index_tables, is_utf8, present_rows, unpack_uids
from benchmark.pool.shards import Tar
from benchmark.pool.tars import Damage, reading_ahead, scan_tar
from benchmark.pool.uids import format_uids
from benchmark.runtime.console import warn
from benchmark.runtime.errors import UnknownNameError, UserError
from benchmark.runtime.executor import map_items
from benchmark.runtime.files import Json
from benchmark.runtime.names import nearest_name
from benchmark.runtime.paths import index_dir_of
from benchmark.runtime.ranges import open_sequential

FROM_TARS = ("uid", "text", "sha256")  # what the samples say themselves; the text may stand in their JSON instead
STAND_INS = {"original_width": "width", "original_height": "height"}  # fields that are taken where there is no better
CAPTION_FIELDS = ("caption", "text", "alt_text", "alt", "title")  # that captions often stand in
PROBED = 16  # samples at the front of each tar that tell which fields the JSON has
BATCH = 50_000  # rows of a row group


@dataclass(frozen=True)
class Probe:
    """What the first samples of every tar have."""

    fields: dict[str, Json]  # of the JSON, each with a value that is not null where one was met
    num_json: int
    num_uids: int  # and of these, that name a uid
    num_texts: int  # samples with a txt
    odd_uid: str | None = None  # of a JSON, that is not 32 hex characters

    @property
    def all_have_uids(self) -> bool:
        return 0 < self.num_json == self.num_uids

    @property
    def text_fields(self) -> list[str]:
        """Return the fields of the JSON that captions may stand in, the likeliest first."""
        texts = [name for name, value in self.fields.items() if isinstance(value, str)]
        named = [name for name in CAPTION_FIELDS if name in texts]
        return named + [name for name in texts if name not in named and " " in str(self.fields[name])]


def probe_tars(tars: Sequence[Tar]) -> Probe:
    """Look at the first samples of every tar."""
    fields: dict[str, Json] = {}
    num_json = num_uids = num_texts = 0
    odd_uid: str | None = None
    for tar in tars:
        with open_sequential(tar.path) as file:
            read = reading_ahead(file.read_up_to)
            keys: set[str] = set()
            for member in scan_tar(read, tar.size, Damage()):
                keys.add(member.key)
                if len(keys) > PROBED:
                    break
                num_texts += member.extension == "txt"
                if member.extension == "json" and member.size <= MAX_JSON_BYTES:
                    try:
                        record = from_json(read(member.offset, member.size))
                    except ValueError:
                        continue  # the index will list it
                    if isinstance(record, dict):
                        num_json += 1
                        fields |= {name: value for name, value in record.items() if fields.get(name) is None}
                        uid = record.get("uid")
                        if isinstance(uid, str) and is_uid(uid):
                            num_uids += 1
                        elif uid is not None and odd_uid is None:
                            odd_uid = repr(uid)[:80]
    return Probe(fields, num_json, num_uids, num_texts, odd_uid)


def check_fields(tables: Tables, probe: Probe) -> None:
    """Raise ValueError or KeyError where an option does not go with tars only."""
    if tables.key_column is not None:
        raise UserError(
            f"--key-column {tables.key_column} goes with --metadata: tars only are joined with nothing",
            code="option-conflict",
        )
    if tables.uid_column not in (None, "uid"):
        raise UserError(
            f"--uid-column {tables.uid_column} goes with --metadata; of tars only it is their json's uid",
            code="option-conflict",
        )
    for new, old in tables.columns.items():
        if new == "text" and probe.num_texts:
            raise UserError(
                f"--column text={old}: without --metadata text is made from the tars' txt, where they have some",
                code="captions-in-txt",
            )
        if new in FROM_TARS and new != "text":
            raise UserError(
                f"--column {new}={old}: without --metadata {new} is made from the tars' samples", code="option-value"
            )
        if old not in probe.fields:
            raise UnknownNameError(
                f"--column {new}={old}: the tars' json have no field {old!r}.{nearest_name(old, probe.fields)} "
                f"Fields: {', '.join(sorted(probe.fields)) or 'none'}.",
                code="column-missing",
            )
        value = probe.fields[old]
        if new == "text" and not isinstance(value, str):
            raise UserError(
                f"--column text={old}: captions are text, but a json of the tars has {value!r} there"[:300]
                + f"; fields with text: {', '.join(probe.text_fields) or 'none'}",
                code="captions-not-text",
            )


def wanted_fields(columns: Mapping[str, str], fields: Mapping[str, Json]) -> dict[str, tuple[str, pa.DataType]]:
    """Return field and type of every column that the JSON gives."""
    wanted = {}
    for name, kind in COMMON_TYPES.items():
        if name not in FROM_TARS and (name in fields or STAND_INS.get(name) in fields):
            wanted[name] = (name, kind)
    for new, old in columns.items():
        wanted[new] = (old, COMMON_TYPES.get(new) or _type_of(fields[old]))
    return wanted


def _type_of(value: Json) -> pa.DataType:
    """Return the type of a column from one of its values; whole numbers may be followed by others."""
    if value is None:
        return pa.string()
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return pa.float64() if is_number else pa.array([value]).type


def metadata_from_tars(
    out_dir: Path,
    summary: IndexSummary,
    wanted: dict[str, tuple[str, pa.DataType]],
    caption_field: str | None,
    workers: int | None,
) -> dict[str, Json]:
    """Write a metadata shard for each tar; return the counts of rows and of samples that are left out."""
    work = partial(_write_metadata_of, out_dir=out_dir, wanted=wanted, caption_field=caption_field)
    found = list(map_items(work, summary.tars, workers=workers_for(summary.tars, workers), name="metadata"))
    rows = sum(each.rows for each in found)
    if examples := [each.example for each in found if each.example]:
        warn(
            f"{sum(each.not_utf8 for each in found):,} captions are not UTF-8, such as that of {examples[0]}; "
            "what cannot be decoded becomes U+FFFD"
        )
    return {"rows": rows, "left_out": summary.num_rows - rows}


@dataclass(frozen=True)
class _Written:
    """What a metadata shard was made of."""

    rows: int
    not_utf8: int = 0  # captions
    example: str = ""


def _write_metadata_of(
    tar: Tar, *, out_dir: Path, wanted: dict[str, tuple[str, pa.DataType]], caption_field: str | None
) -> _Written:
    """Write the metadata shard of a tar's samples that have image and caption, unless it is there."""
    target = out_dir / "metadata" / f"{tar.stem}.parquet"
    if target.exists():
        return _Written(int(pq.read_metadata(target).num_rows))
    names = ["uid", "key", "image_offset", "text_offset", "text_length", "json_offset", "json_length", "image_sha256"]
    (table,) = index_tables(index_dir_of(out_dir), [tar], names)
    table = table.filter(pa.array(present_rows(table)))
    schema = pa.schema(
        [(name, COMMON_TYPES[name]) for name in FROM_TARS] + [(new, kind) for new, (_, kind) in wanted.items()]
    )
    not_utf8: list[str] = []  # keys
    with open_sequential(tar.path, state=tar.state) as file, parquet_writer(target, schema) as write:
        read = reading_ahead(file.read_up_to)
        for start in range(0, table.num_rows, BATCH):
            part = table.slice(start, BATCH)
            texts, records = [], []
            for key, text_offset, text_length, json_offset, json_length in zip(
                part["key"].to_pylist(),
                *(part[f"{kind}_{what}"].to_pylist() for kind in ("text", "json") for what in ("offset", "length")),
                strict=True,
            ):
                text = caption_of(read(text_offset, text_length), caption_field)
                texts.append(text.decode("utf-8", "replace"))
                if not is_utf8(text):
                    not_utf8.append(key)
                records.append(_read_record(read(json_offset, json_length)) if json_offset >= 0 and wanted else {})
            hashes = [None if value is None else value.hex() for value in part["image_sha256"].to_pylist()]
            arrays = [pa.array(format_uids(unpack_uids(part["uid"]))), pa.array(texts), pa.array(hashes, pa.string())]
            for new, (old, kind) in wanted.items():
                values = [_field(record, new, old) for record in records]
                arrays.append(_as_array(values, kind, f"{tar.path}: column {new!r} (field {old!r})", part["key"]))
            write(pa.Table.from_arrays(arrays, schema=schema))
    example = f"{not_utf8[0]!r} in {tar.label}" if not_utf8 else ""
    return _Written(table.num_rows, len(not_utf8), example)


def _read_record(data: bytes) -> dict[str, Json]:
    record = from_json(data)
    assert isinstance(record, dict)  # else the index would not have it
    return record


def _field(record: dict[str, Json], new: str, old: str) -> Json:
    value = record.get(old)
    return record.get(STAND_INS[new]) if value is None and old == new and new in STAND_INS else value


def _as_array(values: list[Json], kind: pa.DataType, where: str, keys: pa.ChunkedArray) -> pa.Array:
    """Return values as a column; raises ValueError that names the first one that does not fit."""
    try:
        return pa.array(values, kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        for value, key in zip(values, keys, strict=True):
            try:
                pa.array([value], kind)
            except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
                raise UserError(
                    f"{where}: {value!r} of sample {key.as_py()!r} is not {kind}", code="column-type"
                ) from error
        raise
