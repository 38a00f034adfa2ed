"""Somebody else's pairs as a pool: tars by reference, metadata from their parquet files or from the tars only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmark.pool.folder import make_pool
from benchmark.pool.import_tables import Tables, metadata_from_tables, parquet_paths, with_uid_source
from benchmark.pool.import_tars import Probe, check_fields, metadata_from_tars, probe_tars, wanted_fields
from benchmark.pool.index import build_index
from benchmark.pool.index_counts import IndexSummary
from benchmark.pool.left_out import tell_dotted, tell_nothing_usable, unusable_lines
from benchmark.pool.meeting import Meeting, measure_meeting
from benchmark.pool.pool import Pool
from benchmark.pool.shards import Found, find_tars, is_packed, tell_left_out
from benchmark.pool.shards_note import ShardsNote, write_note
from benchmark.runtime.console import warn
from benchmark.runtime.errors import UserError
from benchmark.runtime.files import Json, digest, sha256_of
from benchmark.runtime.mirror import local_copy
from benchmark.runtime.records import Record

IMPORT_VERSION = 1


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
    without a uid is left out and counted. A finished import is left as it is, a killed call resumes, and one that fails
    leaves nothing.

    Raises UserError where files that hold samples are left out, tars are damaged or dots in names hide members; with
    `strict` False it warns.
    """
    plan = _plan(shards, metadata, dict(columns or {}), uid_column, key_column, strict)

    def make() -> dict[str, Json]:
        write_note(out_dir, plan.note())
        summary = build_index(out_dir, workers=workers)
        if not summary.num_present:
            fields = [] if plan.caption_field else plan.probe.text_fields
            why = tell_nothing_usable(summary, needs_json=not plan.assign_uids, fields=fields)
            raise UserError(
                f"no sample in {plan.found.folder} can be used, as none has image, caption and a uid: {why}",
                code="no-usable-sample",
            )
        _refuse_unsound(summary, strict)
        if plan.tables.paths:
            return metadata_from_tables(out_dir, plan.tables, summary)
        wanted = wanted_fields(plan.fields, plan.probe.fields)
        return metadata_from_tars(out_dir, summary, wanted, plan.caption_field, workers)

    is_new = not (out_dir / "import.json").exists()
    record = make_pool(out_dir, "import", IMPORT_VERSION, plan.inputs(), make)
    summary = build_index(out_dir)
    if not is_new:
        _refuse_unsound(summary, strict)
    pool = Pool(out_dir, strict=False)
    return ImportReport(record, summary, measure_meeting(pool, summary), plan.found)


@dataclass(frozen=True)
class _Plan:
    """What is imported, and where uids and captions come from."""

    found: Found
    probe: Probe
    tables: Tables
    fields: dict[str, str]  # of the JSON that become columns, where the metadata is made from the tars
    caption_field: str | None
    assign_uids: bool

    def inputs(self) -> dict[str, Json]:
        """Return what the import is recorded by."""
        tables, caption = self.tables, self.caption_field
        return {
            "shards_dir": str(self.found.folder.resolve()),
            "assign_uids": self.assign_uids,
            "tars": digest([[tar.label, tar.size] for tar in self.found.tars]),
            "metadata": [[path.name, sha256_of(local_copy(path))] for path in tables.paths],
            "columns": {**tables.columns, **({} if caption is None else {"text": caption})},
            "uid_column": tables.uid_column,
            "key_column": tables.key_column,
        }

    def note(self) -> ShardsNote:
        """Return what the pool says of its tars."""
        return ShardsNote(
            str(self.found.folder.resolve()),
            assign_uids=self.assign_uids,
            hash_images=not self.tables.paths,
            names=self.found.names,
            caption_field=self.caption_field,
        )


def _plan(
    shards: Sequence[Path],
    metadata: Sequence[Path],
    columns: dict[str, str],
    uid_column: str | None,
    key_column: str | None,
    strict: bool,
) -> _Plan:
    """Look at tars and tables and decide what is taken from which; raises UserError before anything is written."""
    found = find_tars(shards)
    _refuse_left_out(found, shards, strict)
    probe = probe_tars(found.tars)
    _refuse_unclear_uids(found, probe, uid_column)
    tables = Tables(parquet_paths(metadata), columns, uid_column, key_column)
    caption_field = None
    if tables.paths:
        tables = with_uid_source(tables, probe.all_have_uids)
        is_by_content = tables.uid_column is None and tables.key_column is None
        assign_uids = is_by_content or (tables.key_column is not None and not probe.all_have_uids)
    else:
        check_fields(tables, probe)
        caption_field = columns.pop("text", None)
        assign_uids = uid_column is None and not probe.all_have_uids
    if assign_uids and probe.odd_uid is not None:
        warn(
            f"json in {found.folder} name uids that are not 32 hex characters, such as {probe.odd_uid}; uids are made "
            "from image hash and caption instead"
        )
    return _Plan(found, probe, tables, columns, caption_field, assign_uids)


def _refuse_left_out(found: Found, shards: Sequence[Path], strict: bool) -> None:
    if found.left_out:
        where = " ".join(map(str, shards))
        remedy = "Unpack what is compressed, and name" if any(is_packed(each) for each in found.left_out) else "Name"
        left_out = UserError(
            f"--shards {where}: {tell_left_out(found.left_out, len(found.tars))}. {remedy} "
            f"what is meant, such as '{found.folder}/*.tar' (the top only) or '{found.folder}/**/*.tar' (folders too)",
            code="tars-left-out",
        )
        _refuse(left_out, strict)


def _refuse_unclear_uids(found: Found, probe: Probe, uid_column: str | None) -> None:
    """Raise UserError where some JSON have no uid of the right form, or none of them although it is requested."""
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
