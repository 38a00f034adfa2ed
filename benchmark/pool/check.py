"""Looking a pool over: what its index counts, how rows and samples meet, and what is wrong."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmark.pool.cosines import Agreement, other_order
from benchmark.pool.index import (
    IndexSummary,
    Tar,
    build_index,
    index_path,
    index_tables,
    present_rows,
    unpack_uids,
)
from benchmark.pool.left_out import left_out_lines
from benchmark.pool.pool import Pool, npz_shapes
from benchmark.pool.samples import MAX_UNDECODABLE, decode_pixels
from benchmark.pool.subset import load_subset, write_subset
from benchmark.pool.uids import UID_DTYPE, count_of, format_uids, repeated_uids, sorted_blocks, walk_together
from benchmark.runtime.files import Json, atomic_path
from benchmark.runtime.locks import locked
from benchmark.runtime.paths import cache_dir, index_dir_of
from benchmark.runtime.ranges import RangeReader
from benchmark.runtime.tables import COMMON_FAMILIES, column_problem, family_of, plain_type

REPEATS_NAME = "repeated_uids.csv"  # in the index's folder
COUNTS_NAME = "tars.csv"  # there too: what the index counts of each tar
COUNTED = ("rows", "present", "without_image", "without_text", "without_json", "damage")
SHOWN = 10  # repeated uids that are named
MAX_PLACES = 100  # that are named of one uid; a file lists all
MAX_PICTURES, MAX_TARS = 256, 64  # that are decoded as a sample, and tars that they are of
PICTURE_BLOCK_BYTES = 1 << 20  # what one picture of a remote tar costs
NAMED_PICTURES = 3


# --- The index -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class IndexReport:
    """What a pool's index says of its tars."""

    summary: IndexSummary
    left_out: list[str]  # what the pool leaves out, in sentences
    index_bytes: int
    num_repeated: int  # uids at several places
    repeated: dict[str, list[str]]  # the first of them, and where: "TAR KEY"
    repeats_path: Path
    counts_path: Path

    @property
    def is_whole(self) -> bool:
        return not self.summary.damaged and not self.left_out

    def lines(self) -> list[str]:
        """Return what `winnow pool index` prints."""
        counts, rows = self.summary.counts, self.summary.num_rows
        a_sample = f"{self.index_bytes / rows:.1f} bytes a sample" if rows else "no sample"
        lines = [
            f"tars             {len(self.summary.tars):,}",
            f"samples          {rows:,} that have a uid",
            f"  present        {self.summary.num_present:,} (with image and caption)",
            f"  without image  {sum(each.without_image for each in counts):,}",
            f"  without text   {sum(each.without_text for each in counts):,}",
            f"without json     {sum(each.without_json for each in counts):,} (no uid is known of them)",
            f"index            {self.index_bytes:,} bytes ({a_sample}), each tar's counts in {self.counts_path}",
            f"content hash     {self.summary.content_hash}",
            f"numbering        {_gaps(self.summary)}",
            *(f"left out         {line}" for line in self.left_out),
            f"repeated uids    {self.num_repeated:,}"
            + (f", all their places in {self.repeats_path}" if self.num_repeated else ""),
            *_repeat_lines(self.repeated),
        ]
        places = sum(each.damage for _, each in self.summary.damaged)
        lines.append(f"damage           {places:,} places in {len(self.summary.damaged):,} tars")
        return lines + [f"  {line}" for line in damage_lines(self.summary)]


def index_pool(pool_dir: Path, *, workers: int | None = None, hash_images: bool = False) -> IndexReport:
    """Index a pool's tars and look for uids at several places, which are listed in a file beside the index.

    Raises FileNotFoundError where there is no tar. Damage is reported, never raised.
    """
    summary = build_index(pool_dir, workers=workers, hash_images=hash_images)
    index_dir = index_dir_of(pool_dir)
    with locked(index_dir):
        with atomic_path(index_dir / COUNTS_NAME) as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["tar", *COUNTED, "damage_places"])
            for tar, counts in zip(summary.tars, summary.counts, strict=True):
                numbers = [getattr(counts, name) for name in COUNTED]
                writer.writerow([tar.label, *numbers, "; ".join(counts.damage_places)])
        repeated = repeated_uids(index_uids(index_dir, summary.tars), index_dir)
        repeats_path = index_dir / REPEATS_NAME
        if not len(repeated):
            repeats_path.unlink(missing_ok=True)
        else:
            with atomic_path(repeats_path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(["uid", "tar", "key"])
                writer.writerows(_places(index_dir, summary.tars, repeated))
    first = repeated[:SHOWN]
    return IndexReport(
        summary,
        left_out_lines(pool_dir, summary),
        sum(index_path(index_dir, tar).stat().st_size for tar in summary.tars),
        len(repeated),
        _gather(first, _places(index_dir, summary.tars, first)),
        repeats_path,
        index_dir / COUNTS_NAME,
    )


def index_uids(index_dir: Path, tars: Sequence[Tar], *, present: bool = False) -> Iterator[np.ndarray]:
    """Yield the uids of each tar's index, or of its samples with image and caption alone."""
    for table in index_tables(index_dir, tars, ["uid", "image_offset", "text_offset"]):
        uids = unpack_uids(table["uid"])
        if present:
            uids = uids[present_rows(table)]
        yield uids


def damage_lines(summary: IndexSummary) -> list[str]:
    """Return a line for every damaged place that the index lists."""
    lines = []
    for tar, counts in summary.damaged:
        lines += [f"{tar.label}: {place}" for place in counts.damage_places]
        unlisted = counts.damage - len(counts.damage_places)
        lines += [f"{tar.label}: and {unlisted:,} more"] if unlisted else []
    return lines


def _gaps(summary: IndexSummary) -> str:
    gaps = summary.gaps
    if not gaps:
        return "without gaps"
    return f"{len(gaps):,} gaps: {_told(gaps)}"


def _told(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _places(index_dir: Path, tars: Sequence[Tar], wanted: np.ndarray) -> Iterator[tuple[str, str, str]]:
    """Yield uid, tar and key of every sample that has one of the sorted uids, in the pool's order."""
    if not len(wanted):
        return
    for tar, table in zip(tars, index_tables(index_dir, tars, ["uid", "key"]), strict=True):
        uids = unpack_uids(table["uid"])
        rows = np.flatnonzero(count_of(uids, wanted))
        for text, row in zip(format_uids(uids[rows]), rows.tolist(), strict=True):
            yield text, tar.label, table["key"][row].as_py()


def _rows(pool: Pool, paths: Sequence[Path], wanted: np.ndarray) -> Iterator[tuple[str, str, str]]:
    """Yield uid, file and row of every metadata row that has one of the sorted uids."""
    for path in paths if len(wanted) else []:
        uids = pool.read_uids(path)
        rows = np.flatnonzero(count_of(uids, wanted))
        for text, row in zip(format_uids(uids[rows]), rows.tolist(), strict=True):
            yield text, path.name, f"row {row:,}"


def _gather(uids: np.ndarray, found: Iterable[tuple[str, str, str]]) -> dict[str, list[str]]:
    """Collect what was found by uid, the first `MAX_PLACES` of each."""
    places: dict[str, list[str]] = {text: [] for text in format_uids(uids)}
    for text, file, place in found:
        if len(places[text]) < MAX_PLACES:
            places[text].append(f"{file} {place}")
        elif len(places[text]) == MAX_PLACES:
            places[text].append("and more")
    return places


def _repeat_lines(repeated: dict[str, list[str]]) -> list[str]:
    return [f"  {text}: {', '.join(places)}" for text, places in repeated.items()]


# --- The pool ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Meeting:
    """How the metadata's rows and the tars' samples meet, by uid."""

    rows: int  # of the metadata
    rows_present: int  # and of these, rows that have a sample with image and caption
    samples: int  # in the tars that have a uid
    present: int  # and of these, samples with image and caption
    samples_without_row: int
    repeated_in_rows: int  # uids on several rows
    repeated_in_tars: int  # uids of several samples
    repeated: np.ndarray = field(repr=False)  # the first uids of either, (n,) sorted

    @property
    def coverage(self) -> float | None:
        """Return the share of rows that have a sample with image and caption; None without rows."""
        return self.rows_present / self.rows if self.rows else None


@dataclass(frozen=True)
class Cosines:
    """How the .npz of all metadata shards agree with one score column."""

    shards: int  # that have both
    rows: int  # of them that were compared
    difference: float  # of cosine and score, on average


@dataclass(frozen=True)
class Pictures:
    """A sample of the pool's pictures, decoded."""

    sampled: int
    undecodable: int
    examples: list[str]  # of these, "TAR KEY"


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
            "pictures": None if self.pictures is None else asdict(self.pictures),
            "problems": self.problems,
        }

    def lines(self, filters: Sequence[str] = ()) -> list[str]:
        """Return the report for people, with the lines that say which filters can run."""
        meeting = self.meeting
        lines = [f"fingerprint   {self.fingerprint or 'none: there are uids that cannot be read'}"]
        if self.num_shards:
            lines.append(f"rows          {meeting.rows:,} in {self.num_shards:,} metadata shards")
        else:
            lines.append("rows          none: the pool has shards alone")
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
        else:
            lines.append("samples       none: the pool is metadata alone")
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
        lines += _repeat_lines(self.repeated)
        lines.append(f"problems      {len(self.problems):,}" if self.problems else "problems      none")
        return lines + [f"  {problem}" for problem in self.problems]


def check_pool(pool_dir: Path, *, workers: int | None = None) -> PoolReport:
    """Look a whole pool over; nothing is written but the index, where it is not there yet.

    Memory does not grow with the pool: uids are sorted in files beside the index. Raises FileNotFoundError where there
    is no pool.
    """
    pool = Pool(pool_dir, strict=False)
    summary = build_index(pool.dir, workers=workers) if pool.has_images else None
    fingerprint, readable, problems = _read_fingerprint(pool, summary)
    meeting = measure_meeting(pool, summary, readable)
    repeated = _gather(meeting.repeated, _rows(pool, readable, meeting.repeated))
    if summary is not None:
        found = _places(index_dir_of(pool.dir), summary.tars, meeting.repeated)
        repeated = {text: repeated[text] + places for text, places in _gather(meeting.repeated, found).items()}
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
        "" if summary is None else _gaps(summary),
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
    sampled, bad = 0, []
    reader = RangeReader(block_bytes=PICTURE_BLOCK_BYTES)
    columns = ["key", "image_offset", "image_length", "text_offset"]
    for tar, table in zip(chosen, index_tables(index_dir, chosen, columns), strict=True):
        there = np.flatnonzero(present_rows(table))
        for row in there[_spread(len(there), MAX_PICTURES // len(chosen))].tolist():
            offset, length = (table[name][row].as_py() for name in ("image_offset", "image_length"))
            data = reader.read(tar.path, offset, length, state=tar.state)
            sampled += 1
            if decode_pixels(data) is None:
                bad.append(f"{tar.path.name} {table['key'][row].as_py()}")
    reader.close()
    return Pictures(sampled, len(bad), bad[:NAMED_PICTURES])


def _spread(count: int, most: int) -> np.ndarray:
    """Return at most so many places of `count`, evenly spread, the first and the last among them."""
    if count <= most:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, most).round().astype(np.int64))


def measure_meeting(pool: Pool, summary: IndexSummary | None, metadata_paths: Sequence[Path] | None = None) -> Meeting:
    """Count how rows and samples meet, by uid, in memory that does not grow with either.

    `metadata_paths`: the shards to read, else all; `summary` None: the pool has no tars.
    """
    index_dir = index_dir_of(pool.dir)
    paths = pool.metadata_paths if metadata_paths is None else metadata_paths
    tars = [] if summary is None else summary.tars
    # A pool without an index is left as it is.
    folder = cache_dir() / "sorting" if summary is None else index_dir
    rows_present = without_row = in_rows = in_tars = 0
    repeated = [np.empty(0, dtype=UID_DTYPE)]
    parts = {
        "rows": (pool.read_uids(path) for path in paths),
        "samples": index_uids(index_dir, tars),
        "present": index_uids(index_dir, tars, present=True),
    }
    with _sorted_on_disk(folder, parts) as arrays:
        for uids, (rows, samples, present) in walk_together(arrays):
            rows_present += int(rows[present > 0].sum())
            without_row += int(samples[rows == 0].sum())
            in_rows += int((rows > 1).sum())
            in_tars += int((samples > 1).sum())
            if sum(map(len, repeated)) < SHOWN:
                repeated.append(uids[(rows > 1) | (samples > 1)])
        sizes = [len(array) for array in arrays]
    return Meeting(
        sizes[0], rows_present, sizes[1], sizes[2], without_row, in_rows, in_tars, np.concatenate(repeated)[:SHOWN]
    )


@contextmanager
def _sorted_on_disk(folder: Path, parts: dict[str, Iterator[np.ndarray]]) -> Iterator[list[np.ndarray]]:
    """Give the uids of each part sorted, in files that are mapped into memory and removed at the end."""
    with locked(folder):
        paths = [folder / f"sorted-{name}.npy" for name in parts]
        try:
            for path, arrays in zip(paths, parts.values(), strict=True):
                write_subset(path, sorted_blocks(arrays, folder))
            yield [load_subset(path).uids for path in paths]
        finally:
            for path in paths:
                path.unlink(missing_ok=True)


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
