"""Somebody else's pairs as a pool: tars by reference, metadata from their parquet files or from the tars alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic_core import from_json

from benchmark.pool.check import Meeting, measure_meeting
from benchmark.pool.folder import iter_row_groups, make_pool, parquet_writer, read_parquet_schema, write_npz_rows
from benchmark.pool.foreign import tell_foreign
from benchmark.pool.index import (
    MAX_JSON_BYTES,
    IndexSummary,
    ShardsNote,
    Tar,
    assigned_uid,
    build_index,
    caption_of,
    index_tables,
    is_uid,
    present_rows,
    unpack_uids,
    workers_for,
    write_note,
)
from benchmark.pool.left_out import tell_dotted, tell_nothing_usable, unusable_lines
from benchmark.pool.pool import Pool
from benchmark.pool.shards import Found, find_tars, is_packed, tell_left_out
from benchmark.pool.tars import Damage, reading_ahead, scan_tar
from benchmark.pool.uids import UID_DTYPE, find_uids, format_uids, parse_uids, uid_order
from benchmark.runtime.console import warn
from benchmark.runtime.errors import NotFoundError, UnknownNameError, UserError, one_line
from benchmark.runtime.executor import map_items
from benchmark.runtime.files import Json, digest, sha256_of
from benchmark.runtime.mirror import local_copy
from benchmark.runtime.names import nearest_name
from benchmark.runtime.paths import index_dir_of
from benchmark.runtime.ranges import open_sequential
from benchmark.runtime.records import Record
from benchmark.runtime.tables import family_of, is_family, plain_column, without_view_types, without_views

IMPORT_VERSION = 1
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
FROM_TARS = ("uid", "text", "sha256")  # what the samples say themselves; the text may stand in their JSON instead
STAND_INS = {"original_width": "width", "original_height": "height"}  # fields that are taken where there is no better
CAPTION_FIELDS = ("caption", "text", "alt_text", "alt", "title")  # that captions often stand in
PROBED = 16  # samples at the front of each tar that tell which fields the JSON has
BATCH = 50_000  # rows of a row group


@dataclass(frozen=True)
class ImportReport:
    """What became of the rows and samples, and what can be done with them."""

    record: Record
    summary: IndexSummary
    meeting: Meeting
    found: Found  # the tars, and the files that are left out

    def lines(self) -> list[str]:
        """Return the report for people."""
        inputs, result, meeting = self.record.inputs, self.record.result, self.meeting
        uids = "made from image hash and caption" if inputs["assign_uids"] else "those that the tars' json name"
        lines = [
            f"uids          {uids}",
            f"samples       {meeting.samples:,} with a uid in {len(self.summary.tars):,} tars, {meeting.present:,} of "
            "them with image and caption",
        ]
        if num_without_json := sum(c.without_json for c in self.summary.counts):
            lines.append(f"              {num_without_json:,} more without a json are left out")
        if self.found.names is not None:
            folders = sorted({name.rpartition("/")[0] or "." for name in self.found.names})
            shown = ", ".join(folders[:3]) + (", ..." if len(folders) > 3 else "")
            lines.insert(1, f"tars          {len(self.found.names):,} in {self.found.folder}, folders: {shown}")
        if num_empty := sum(c.empty for c in self.summary.counts):
            lines.append(f"              {num_empty:,} more with neither image nor caption are left out")
        needs_json = not inputs["assign_uids"]
        lines += [f"              {line}" for line in unusable_lines(self.summary, needs_json=needs_json)]
        if inputs["metadata"]:
            lines += [
                f"rows          {meeting.rows:,}, and {result['left_out']:,} left out, which have no uid",
                f"              {meeting.rows - meeting.rows_present:,} rows meet no sample with image and caption",
                f"              {meeting.samples_without_row:,} samples meet no row",
            ]
        else:
            lines.append(f"rows          {meeting.rows:,}; {result['left_out']:,} incomplete samples have no row")
            if meeting.samples_without_row > result["left_out"]:
                lines.append(f"              {meeting.samples_without_row:,} samples meet no row")
        repeated = meeting.repeated_in_rows, meeting.repeated_in_tars
        if any(repeated):
            lines.append(f"repeated uids {repeated[0]:,} on several rows, {repeated[1]:,} at several places")
        return lines


@dataclass(frozen=True)
class Tables:
    """Somebody's parquet files, and how their columns become a pool's."""

    paths: tuple[Path, ...]
    columns: Mapping[str, str]  # new name -> old name
    uid_column: str | None
    key_column: str | None

    def names_of(self, path: Path, schema: pa.Schema) -> list[tuple[str, str]]:
        """Return (new, old) of every column that is kept beside the uid.

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


@dataclass(frozen=True)
class Probe:
    """What the first samples of every tar have."""

    fields: dict[str, Json]  # of the JSON, each with a value that is not null where one was met
    num_json: int
    num_uids: int  # and of these, that name a uid
    num_texts: int  # samples with a txt

    @property
    def all_have_uids(self) -> bool:
        return 0 < self.num_json == self.num_uids

    @property
    def text_fields(self) -> list[str]:
        """Return the fields of the JSON that captions may stand in, the likeliest first."""
        texts = [name for name, value in self.fields.items() if isinstance(value, str)]
        named = [name for name in CAPTION_FIELDS if name in texts]
        return named + [name for name in texts if name not in named and " " in str(self.fields[name])]


def import_pool(
    out_dir: Path,
    *,
    shards: Sequence[Path],
    metadata: Sequence[Path] = (),
    columns: Mapping[str, str] | None = None,
    uid_column: str | None = None,
    key_column: str | None = None,
    strict: bool = True,
    workers: int | None = None,
) -> ImportReport:
    """Make a pool of somebody's tars, which are referred to, and of their parquet files (or folders of such).

    `shards`: folders, patterns or files, as `find_tars` takes them. Without `metadata` it is made from the tars: uid,
    text, sha256, and of the JSON url, original_width and original_height (or width and height), CommonPool's other
    columns, and `columns` (new name -> field); `text` may be one of these where the tars have no txt. With it,
    `columns` renames. Uids are the tars' where their JSON names some, else those of image hash and caption; rows get
    theirs from `uid_column`, from the sample whose key is in `key_column`, or from the columns sha256 and text. A row
    without a uid is left out and counted. A finished import is left as it is, a killed call goes on, and one that fails
    leaves nothing.

    Raises UserError where files that hold samples are left out, tars are damaged or dots in names hide members; with
    `strict` False it warns.
    """
    found = find_tars(shards)
    if found.left_out:
        where = " ".join(map(str, shards))
        told = "Unpack what is compressed, and name" if any(is_packed(each) for each in found.left_out) else "Name"
        left_out = UserError(
            f"--shards {where}: {tell_left_out(found.left_out, len(found.tars))}. {told} "
            f"what is meant, such as '{found.folder}/*.tar' (the top alone) or '{found.folder}/**/*.tar' (folders too)",
            code="tars-left-out",
        )
        _refuse(left_out, strict)
    tars, given = found.tars, dict(columns or {})
    probe = probe_tars(tars)
    if uid_column is not None and not probe.num_uids:
        raise UserError(
            f"--uid-column {uid_column}: the json of the first samples in {found.folder} have no field 'uid' of 32 hex "
            "characters; leave it out, and uids are made from image hash and caption",
            code="uid-invalid",
        )
    if uid_column is None and 0 < probe.num_uids < probe.num_json:
        raise UserError(
            f"of the first {probe.num_json:,} json in {found.folder} only {probe.num_uids:,} name a uid of 32 hex "
            "characters; --uid-column uid keeps these and leaves the other samples out",
            code="uid-invalid",
        )
    tables = Tables(_parquet_paths(metadata), given, uid_column, key_column)
    caption_field = None
    if tables.paths:
        tables = _with_uids(tables, probe.all_have_uids)
        is_by_content = tables.uid_column is None and tables.key_column is None
        assign_uids = is_by_content or (tables.key_column is not None and not probe.all_have_uids)
    else:
        _check_fields(tables, probe)
        caption_field = given.pop("text", None)
        assign_uids = uid_column is None and not probe.all_have_uids
    inputs: dict[str, Json] = {
        "shards_dir": str(found.folder.resolve()),
        "assign_uids": assign_uids,
        "tars": digest([[tar.label, tar.size] for tar in tars]),
        "metadata": [[path.name, sha256_of(local_copy(path))] for path in tables.paths],
        "columns": {**tables.columns, **({} if caption_field is None else {"text": caption_field})},
        "uid_column": tables.uid_column,
        "key_column": tables.key_column,
    }
    text_fields = [] if caption_field else probe.text_fields

    def make() -> dict[str, Json]:
        note = ShardsNote(
            str(found.folder.resolve()),
            assign_uids=assign_uids,
            hash_images=not tables.paths,
            names=found.names,
            caption_field=caption_field,
        )
        write_note(out_dir, note)
        summary = build_index(out_dir, workers=workers)
        if not summary.num_present:
            told = tell_nothing_usable(summary, needs_json=not assign_uids, fields=text_fields)
            raise UserError(
                f"no sample in {found.folder} can be used, as none has image, caption and a uid: {told}",
                code="no-usable-sample",
            )
        _refuse_unsound(summary, strict)
        if tables.paths:
            return _import_tables(out_dir, tables, summary)
        return _import_tars(out_dir, summary, _wanted_fields(given, probe.fields), caption_field, workers)

    is_new = not (out_dir / "import.json").exists()
    record = make_pool(out_dir, "import", IMPORT_VERSION, inputs, make)
    summary = build_index(out_dir)
    if not is_new:
        _refuse_unsound(summary, strict)
    pool = Pool(out_dir, strict=False)
    return ImportReport(record, summary, measure_meeting(pool, summary), found)


def _refuse_unsound(summary: IndexSummary, strict: bool) -> None:
    """Raise UserError where tars are damaged or dots hide members; warn where that is allowed."""
    if summary.damaged:
        _refuse(UserError(f"{summary.tell_damage()}. Fetch them again", code="tar-damaged"), strict)
    if dotted := tell_dotted(summary):
        _refuse(UserError(dotted, code="dotted-names"), strict)


def _refuse(error: UserError, strict: bool) -> None:
    """Raise an error, with the option that allows it; warn where it is allowed."""
    if strict:
        raise UserError(f"{error}; or go on without them by --no-strict", code=error.code)
    warn(f"{error}; going on without them (--no-strict)")


def probe_tars(tars: Sequence[Tar]) -> Probe:
    """Look at the first samples of every tar."""
    fields: dict[str, Json] = {}
    num_json = num_uids = num_texts = 0
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
                        num_uids += isinstance(record.get("uid"), str) and is_uid(record["uid"])
    return Probe(fields, num_json, num_uids, num_texts)


# --- Metadata from the tars ----------------------------------------------------------------------------------------


def _check_fields(tables: Tables, probe: Probe) -> None:
    """Raise ValueError or KeyError where an option does not go with tars alone."""
    if tables.key_column is not None:
        raise UserError(
            f"--key-column {tables.key_column} goes with --metadata: tars alone are joined with nothing",
            code="option-conflict",
        )
    if tables.uid_column not in (None, "uid"):
        raise UserError(
            f"--uid-column {tables.uid_column} goes with --metadata; of tars alone it is their json's uid",
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


def _wanted_fields(columns: Mapping[str, str], fields: Mapping[str, Json]) -> dict[str, tuple[str, pa.DataType]]:
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


def _import_tars(
    out_dir: Path,
    summary: IndexSummary,
    wanted: dict[str, tuple[str, pa.DataType]],
    caption_field: str | None,
    workers: int | None,
) -> dict[str, Json]:
    work = partial(_write_metadata_of, out_dir=out_dir, wanted=wanted, caption_field=caption_field)
    rows = sum(map_items(work, summary.tars, workers=workers_for(summary.tars, workers), name="metadata"))
    return {"rows": rows, "left_out": summary.num_rows - rows}


def _write_metadata_of(
    tar: Tar, *, out_dir: Path, wanted: dict[str, tuple[str, pa.DataType]], caption_field: str | None
) -> int:
    """Write the metadata shard of a tar's samples that have image and caption; return how many they are."""
    target = out_dir / "metadata" / f"{tar.stem}.parquet"
    if target.exists():
        return int(pq.read_metadata(target).num_rows)
    names = ["uid", "key", "image_offset", "text_offset", "text_length", "json_offset", "json_length", "image_sha256"]
    (table,) = index_tables(index_dir_of(out_dir), [tar], names)
    table = table.filter(pa.array(present_rows(table)))
    schema = pa.schema(
        [(name, COMMON_TYPES[name]) for name in FROM_TARS] + [(new, kind) for new, (_, kind) in wanted.items()]
    )
    with open_sequential(tar.path, state=tar.state) as file, parquet_writer(target, schema) as write:
        read = reading_ahead(file.read_up_to)
        for start in range(0, table.num_rows, BATCH):
            part = table.slice(start, BATCH)
            texts, records = [], []
            for text_offset, text_length, json_offset, json_length in zip(
                *(part[f"{kind}_{what}"].to_pylist() for kind in ("text", "json") for what in ("offset", "length")),
                strict=True,
            ):
                text = caption_of(read(text_offset, text_length), caption_field)
                texts.append(text.decode("utf-8", "replace"))
                records.append(_read_record(read(json_offset, json_length)) if json_offset >= 0 and wanted else {})
            hashes = [None if value is None else value.hex() for value in part["image_sha256"].to_pylist()]
            arrays = [pa.array(format_uids(unpack_uids(part["uid"]))), pa.array(texts), pa.array(hashes, pa.string())]
            for new, (old, kind) in wanted.items():
                values = [_field(record, new, old) for record in records]
                arrays.append(_as_array(values, kind, f"{tar.path}: column {new!r} (field {old!r})", part["key"]))
            write(pa.Table.from_arrays(arrays, schema=schema))
    return table.num_rows


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
                    f"{where}: {value!r} of sample {key.as_py()!r} is no {kind}", code="column-type"
                ) from error
        raise


# --- Metadata from parquet files -----------------------------------------------------------------------------------


def _parquet_paths(given: Sequence[Path]) -> tuple[Path, ...]:
    """Return the files, folders replaced by their parquet files; raises where there is none or two share a name."""
    paths: dict[str, Path] = {}
    for location in given:
        found = sorted(location.glob("*.parquet")) if location.is_dir() else [location] if location.is_file() else []
        tables = sorted(location.glob("*.[ct]sv")) if location.is_dir() else [location]
        if tables and (location.is_file() or not found) and tables[0].suffix.lower() in (".csv", ".tsv"):
            raise UserError(
                f"--metadata {location}: {tables[0].name} is no parquet file, and only these are read; write one by "
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


def _with_uids(tables: Tables, tars_name_uids: bool) -> Tables:
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


def _import_tables(out_dir: Path, tables: Tables, summary: IndexSummary) -> dict[str, Json]:
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
            kept = table.filter(pa.array(has_uid))
            arrays = [pa.array(format_uids(uids), pa.string())]
            for new, old in names:
                try:
                    column = kept[old]
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
