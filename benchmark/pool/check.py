"""Looking a pool over: what its index counts, how rows and samples meet, and what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmark.pool.cosines import Agreement, other_order
from benchmark.pool.index import build_index
from benchmark.pool.index_counts import IndexSummary
from benchmark.pool.index_report import by_uid, damage_lines, numbering, places_of, repeat_lines
from benchmark.pool.index_table import PLACE_COLUMNS, index_tables, is_utf8, present_rows
from benchmark.pool.left_out import left_out_lines
from benchmark.pool.meeting import Meeting, measure_meeting
from benchmark.pool.npz import npz_shapes
from benchmark.pool.pool import Pool
from benchmark.pool.samples import MAX_UNDECODABLE, decode_pixels
from benchmark.pool.shards_note import read_note
from benchmark.pool.uids import count_of, format_uids
from benchmark.runtime.files import Json
from benchmark.runtime.paths import index_dir_of
from benchmark.runtime.ranges import RangeReader
from benchmark.runtime.tables import COMMON_FAMILIES, column_problem, family_of, plain_type

MAX_PICTURES, MAX_TARS = 256, 64  # that are decoded as a sample, and tars that they are of
PICTURE_BLOCK_BYTES = 1 << 20  # what one picture of a remote tar costs
NAMED_PICTURES = 3


def _rows(pool: Pool, paths: Sequence[Path], wanted: np.ndarray) -> Iterator[tuple[str, str, str]]:
    """Yield uid, file and row of every metadata row that has one of the sorted uids."""
    for path in paths if len(wanted) else []:
        uids = pool.read_uids(path)
        rows = np.flatnonzero(count_of(uids, wanted))
        for text, row in zip(format_uids(uids[rows]), rows.tolist(), strict=True):
            yield text, path.name, f"row {row:,}"


@dataclass(frozen=True)
class Cosines:
    """How the .npz of all metadata shards agree with one score column."""

    shards: int  # that have both
    rows: int  # of them that were compared
    difference: float  # of cosine and score, on average


@dataclass(frozen=True)
class Pictures:
    """A sample of the pool's pictures, decoded, and what of their captions is not text."""

    sampled: int
    undecodable: int
    examples: list[str]  # of these, "TAR KEY"
    not_utf8: list[str] = field(default_factory=list)  # captions of the same samples, "TAR KEY"

    def as_json(self) -> dict[str, Json]:
        return {"sampled": self.sampled, "undecodable": self.undecodable, "examples": self.examples}


@dataclass(frozen=True)
class PoolReport:
    """What `winnow pool check` finds; `problems` are what makes it fail."""

    pool_dir: Path
    fingerprint: str | None  # None where uids cannot be read
    content_hash: str | None  # None without tars, as of `num_tars` 0
    num_shards: int  # of the metadata
    num_tars: int
    without_json: int  # samples that no uid is known of
    numbering: str  # of the tars, and its gaps
    meeting: Meeting
    repeated: dict[str, list[str]]  # the first repeated uids, and where they are
    columns: dict[str, str]  # of the first metadata shard, with their types
    num_npz: int
    features: dict[str, list[int]]  # arrays of the first .npz, with their dimensions
    cosines: dict[str, Cosines]  # by score column, how the .npz's embeddings agree with it
    pictures: Pictures | None  # a sample that was decoded; None without tars
    problems: list[str]

    def as_json(self) -> dict[str, Json]:
        """Return the report as one object."""
        meeting = self.meeting
        return {
            "pool_dir": str(self.pool_dir),
            "fingerprint": self.fingerprint,
            "content_hash": self.content_hash,
            "metadata_shards": self.num_shards,
            "rows": meeting.rows,
            "tars": self.num_tars,
            "samples": meeting.samples,
            "present": meeting.present,
            "without_json": self.without_json,
            "numbering": self.numbering,
            "coverage": {
                "rows_present": meeting.rows_present,
                "share": meeting.coverage,
                "samples_without_row": meeting.samples_without_row,
            },
            "repeated_uids": {
                "in_rows": meeting.repeated_in_rows,
                "in_tars": meeting.repeated_in_tars,
                "first": self.repeated,
            },
            "columns": self.columns,
            "npz": {
                "files": self.num_npz,
                "arrays": self.features,
                "cosines": {column: asdict(each) for column, each in self.cosines.items()},
            },
            "pictures": None if self.pictures is None else self.pictures.as_json(),
            "problems": self.problems,
        }

    def lines(self, filters: Sequence[str] = ()) -> list[str]:
        """Return the report for people, with the lines that say which filters can run."""
        meeting = self.meeting
        lines = [f"fingerprint   {self.fingerprint or 'none: there are uids that cannot be read'}"]
        if self.num_shards:
            lines.append(f"rows          {meeting.rows:,} in {self.num_shards:,} metadata shards")
        else:
            lines.append("rows          none: the pool has shards only")
        if self.num_tars:
            lines.append(
                f"samples       {meeting.samples:,} with a uid in {self.num_tars:,} tars, "
                f"{meeting.present:,} of them with image and caption"
            )
            if meeting.coverage is not None:
                lines += [
                    f"coverage      {meeting.rows_present:,} of {meeting.rows:,} rows have a sample with image and "
                    f"caption ({meeting.coverage:.2%})",
                    f"              {meeting.samples_without_row:,} samples are in no row",
                ]
            lines += [
                f"              {self.without_json:,} samples have no json, and no uid is known of them",
                f"content hash  {self.content_hash}",
                f"numbering     {self.numbering}",
            ]
            if self.pictures is not None:
                lines.append(
                    f"pictures      {self.pictures.sampled:,} decoded as a sample, "
                    f"{self.pictures.undecodable:,} of them cannot be"
                )
                if captions := self.pictures.not_utf8:
                    lines.append(
                        f"captions      {len(captions):,} of the same samples are not UTF-8, such as that of "
                        f"{captions[0]}; what cannot be decoded is read as U+FFFD"
                    )
        else:
            lines.append("samples       none: the pool is metadata only")
        if self.num_shards:
            lines.append(f"columns       {', '.join(f'{name} ({kind})' for name, kind in self.columns.items())}")
            arrays = ", ".join(f"{name} ({' x '.join(map(str, dims))})" for name, dims in self.features.items())
            lines.append(
                f"npz           for {self.num_npz:,} of {self.num_shards:,} metadata shards"
                + (f": {arrays}" if arrays else "")
            )
            lines += [
                f"              {each.rows:,} rows of {each.shards:,} shards compared with {column}: "
                f"{each.difference:.5f} apart on average"
                for column, each in self.cosines.items()
            ]
        lines += filters
        lines.append(
            f"repeated uids {meeting.repeated_in_rows:,} on several rows, "
            f"{meeting.repeated_in_tars:,} at several places"
        )
        lines += repeat_lines(self.repeated)
        lines.append(f"problems      {len(self.problems):,}" if self.problems else "problems      none")
        return lines + [f"  {problem}" for problem in self.problems]


def check_pool(pool_dir: Path, *, workers: int | None = None) -> PoolReport:
    """Look a whole pool over; nothing is written but the index, where it is not there yet.

    Memory does not grow with the pool: uids are sorted in files beside the index. Raises FileNotFoundError where there
    is no pool there.
    """
    pool = Pool(pool_dir, strict=False)
    summary = build_index(pool.dir, workers=workers) if pool.has_images else None
    fingerprint, readable, problems = _read_fingerprint(pool, summary)
    meeting = measure_meeting(pool, summary, readable)
    repeated = by_uid(meeting.repeated, _rows(pool, readable, meeting.repeated))
    if summary is not None:
        found = places_of(index_dir_of(pool.dir), summary.tars, meeting.repeated)
        repeated = {text: repeated[text] + places for text, places in by_uid(meeting.repeated, found).items()}
    if meeting.repeated_in_rows or meeting.repeated_in_tars:
        problems.append(
            f"{meeting.repeated_in_rows:,} uids are on several rows, {meeting.repeated_in_tars:,} at several places"
        )
    columns, differing = _check_schemas(pool)
    num_npz, features, cosines, mismatched = _check_npz(pool)
    problems += differing + mismatched
    if pool.metadata_paths and not meeting.rows:
        problems.append("the metadata has no row that can be read")
    pictures = None
    if summary is not None:
        pictures = sample_pictures(pool, summary)
        problems += damage_lines(summary) + _unusable(pool, meeting, pictures)
    problems += left_out_lines(pool.dir, summary)
    return PoolReport(
        pool.dir,
        fingerprint,
        None if summary is None else summary.content_hash,
        len(pool.metadata_paths),
        0 if summary is None else len(summary.tars),
        0 if summary is None else sum(each.without_json for each in summary.counts),
        "" if summary is None else numbering(summary),
        meeting,
        repeated,
        columns,
        num_npz,
        features,
        cosines,
        pictures,
        problems,
    )


def _unusable(pool: Pool, meeting: Meeting, pictures: Pictures) -> list[str]:
    """Say why nothing can be trained on, and which pictures training would stop at."""
    problems = []
    if not meeting.present:
        problems.append("no sample has image, caption and a uid: there is nothing to train on")
    elif meeting.rows and not meeting.rows_present:
        problems.append(
            "no row of the metadata has a sample with image and caption: the tars' uids and the metadata's do not meet"
        )
    if pictures.undecodable > MAX_UNDECODABLE * pictures.sampled:
        problems.append(
            f"{pictures.undecodable:,} of {pictures.sampled:,} pictures that were tried cannot be decoded, such as "
            f"{', '.join(pictures.examples)}; training stops at {MAX_UNDECODABLE:.0%}"
        )
    return problems


def sample_pictures(pool: Pool, summary: IndexSummary) -> Pictures:
    """Decode some pictures: the same for the same tars, evenly spread over MAX_TARS of them and within each."""
    index_dir = index_dir_of(pool.dir)
    present = [number for number, counts in enumerate(summary.counts) if counts.present]
    chosen = [summary.tars[present[place]] for place in _spread(len(present), MAX_TARS)]
    sampled, bad, not_utf8 = 0, [], []
    reader = RangeReader(block_bytes=PICTURE_BLOCK_BYTES)
    columns = ["key", *PLACE_COLUMNS]
    note = read_note(pool.dir)
    has_texts = note is None or note.caption_field is None  # else captions stand in the JSON, which is UTF-8
    for tar, table in zip(chosen, index_tables(index_dir, chosen, columns), strict=True):
        there = np.flatnonzero(present_rows(table))
        for row in there[_spread(len(there), MAX_PICTURES // len(chosen))].tolist():
            offset, length, text_offset, text_length = (table[name][row].as_py() for name in PLACE_COLUMNS)
            data = reader.read(tar.path, offset, length, state=tar.state)
            sampled += 1
            where = f"{tar.path.name} {table['key'][row].as_py()}"
            if decode_pixels(data) is None:
                bad.append(where)
            if has_texts and not is_utf8(reader.read(tar.path, text_offset, text_length, state=tar.state)):
                not_utf8.append(where)
    reader.close()
    return Pictures(sampled, len(bad), bad[:NAMED_PICTURES], not_utf8)


def _spread(count: int, most: int) -> np.ndarray:
    """Return at most so many places of `count`, evenly spread, the first and the last among them."""
    if count <= most:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, most).round().astype(np.int64))


def _read_fingerprint(pool: Pool, summary: IndexSummary | None) -> tuple[str | None, list[Path], list[str]]:
    """Return the fingerprint, the metadata shards whose uids can be read, and what is wrong with the others."""
    if not pool.metadata_paths:
        return None if summary is None else summary.fingerprint, [], []
    try:
        return pool.compute_fingerprint(), pool.metadata_paths, []
    except ValueError:
        readable, problems = [], []
        for path in pool.metadata_paths:
            try:
                pool.read_uids(path)
                readable.append(path)
            except ValueError as error:
                problems.append(str(error))
        return None, readable, problems


def _check_schemas(pool: Pool) -> tuple[dict[str, str], list[str]]:
    """Return the columns of the first metadata shard with their types, and what rules cannot read, or not alike."""
    columns: dict[str, str] = {}
    problems = []
    for path in pool.metadata_paths:
        footer = pool.footer(path)
        schema = footer.schema.to_arrow_schema()
        here = {column.name: str(column.type) for column in schema}
        alike = {column.name: _type_as_read(column) for column in schema}
        if not columns:
            columns, wanted = here, alike
        unreadable = {name: problem for name in here if (problem := column_problem(footer, name)) is not None}
        problems += [f"{path}: {problem}" for problem in unreadable.values()]
        differences = [
            f"{name} is {here.get(name, 'absent')} there and {columns.get(name, 'absent')} in the first"
            for name in dict.fromkeys([*columns, *here])
            if alike.get(name) != wanted.get(name) and name not in unreadable
        ]
        if differences:
            problems.append(f"{path} has other columns than {pool.metadata_paths[0].name}: {'; '.join(differences)}")
    return columns, problems


def _type_as_read(column: pa.Field) -> str:
    """Spell the type in which rules get a column: text of all types is alike, a score of 32 bits is not one of 64."""
    family = COMMON_FAMILIES.get(column.name)
    plain = plain_type(column.type, family)
    return "text" if family_of(plain) == "text" else str(plain)


def _check_npz(pool: Pool) -> tuple[int, dict[str, list[int]], dict[str, Cosines], list[str]]:
    """Return how many .npz there are, the first one's arrays, their agreement with the scores, and what does not fit.

    That is an .npz that does not fit to the rows of its parquet, or has other arrays than the first.
    """
    count = 0
    agreements: list[Agreement] = []
    features: dict[str, list[int]] | None = None
    problems = []
    for path in pool.metadata_paths:
        npz_path = path.with_suffix(".npz")
        if not npz_path.exists():
            continue
        count += 1
        try:
            shapes = npz_shapes(npz_path)
        except ValueError as error:
            problems.append(str(error))
            continue
        num_rows = pool.footer(path).num_rows
        problems += [
            f"{npz_path}: {name} has shape {shape}, but {path.name} has {num_rows:,} rows"
            for name, shape in shapes.items()
            if shape[:1] != (num_rows,)
        ]
        here = {name: list(shape[1:]) for name, shape in shapes.items()}
        if features is None:
            features = here
        elif here != features:
            problems.append(f"{npz_path} has other arrays than the first: {here}, not {features}")
        found = pool.cosines(path)
        agreements += found
        problems += [other_order(path, each) for each in found if not each.agrees]
    cosines = {}
    for column in sorted({each.column for each in agreements}):
        own = [each for each in agreements if each.column == column]
        rows = sum(each.compared for each in own)
        cosines[column] = Cosines(len(own), rows, sum(each.difference * each.compared for each in own) / rows)
    return count, features or {}, cosines, problems
