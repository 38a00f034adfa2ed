"""The index: where in which tar every sample's members lie, one parquet per tar, made in one pass over headers.

Columns: `uid` (16 bytes, big endian), `key`, and for image, text and json the offset and length in bytes of the
member's data in the tar (-1 where the sample has none); `image_extension`; `image_sha256` (32 bytes: the JSON's
`sha256`, else the hash of the bytes where they were read, else null); `others`, the members beside these. Rows stand
in tar order. Names of tars and rows together are the pool's order. The footer holds the tar's counts and its damage.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic_core import from_json

from benchmark.pool import shards
from benchmark.pool.shards import tell_contents
from benchmark.pool.subset import Subset, load_subset
from benchmark.pool.tars import IMAGE_FORMATS, Damage, Member, ReadAt, reading_ahead, scan_tar
from benchmark.pool.uids import UID_DTYPE, count_of, fingerprint_of, parse_uids
from benchmark.runtime.console import warn
from benchmark.runtime.errors import NotFoundError, UserError, one_line
from benchmark.runtime.executor import map_items
from benchmark.runtime.files import Json, atomic_path, read_json, write_bytes, write_json
from benchmark.runtime.locks import locked
from benchmark.runtime.paths import as_location, index_dir_of, is_remote
from benchmark.runtime.ranges import open_sequential

INDEX_VERSION = 2
IMAGE_ORDER = ("jpg", "png", "jpeg", "webp")  # of a sample with several, the one that open_clip's loader takes
MAX_JSON_BYTES = 1 << 20
MAX_EXTENSION = 60  # characters; a longer one leaves no room for a key in a plain tar header
MAX_MEMBER_BYTES = (1 << 31) - 1  # lengths are 32-bit numbers
MANY_TARS = 4  # from here on they are indexed by several processes
MAX_KINDS = 8  # of unusable samples that are told of a tar, by their members
MAX_MEMBERS = 6  # of such a sample that are named
HASHED_MARK = "hash_images"  # beside an index: images without a hash in their JSON are read and hashed
SHARDS_NOTE = "shards.json"  # in a pool whose tars lie elsewhere

INDEX_SCHEMA = pa.schema(
    [
        ("uid", pa.binary(16)),
        ("key", pa.string()),
        ("image_offset", pa.int64()),
        ("image_length", pa.int32()),
        ("image_extension", pa.dictionary(pa.int8(), pa.string())),
        ("text_offset", pa.int64()),
        ("text_length", pa.int32()),
        ("json_offset", pa.int64()),
        ("json_length", pa.int32()),
        ("image_sha256", pa.binary(32)),
        (
            "others",
            pa.list_(pa.struct([("extension", pa.string()), ("offset", pa.int64()), ("length", pa.int32())])),
        ),
    ]
)
PLACE_COLUMNS = ("image_offset", "image_length", "text_offset", "text_length")


Tar = shards.Tar  # of a pool, as it was when it was listed


@dataclass(frozen=True)
class ShardsNote:
    """Where a pool's tars lie when they are not its own, and how their samples are taken."""

    shards_dir: str  # a folder or a URL; relative ones from the pool's folder
    only: str | None = None  # a subset file in the pool's folder: other samples are none of this pool's
    assign_uids: bool = False  # from the hashes of image and caption, whatever the JSON says
    hash_images: bool = False  # those whose JSON names no sha256
    names: tuple[str, ...] | None = None  # of the tars below the folder; None: all at its top
    caption_field: str | None = None  # of the JSON, that captions are taken from; None: from the txt


@dataclass(frozen=True)
class Lacking:
    """Samples that cannot be used and have the same members."""

    members: tuple[str, ...]  # their extensions, sorted
    count: int
    example: str  # a key


@dataclass(frozen=True)
class TarCounts:
    """What a tar's index says of it, without its rows."""

    rows: int  # samples that have a uid
    present: int  # and of these, with image and caption
    without_image: int
    without_text: int
    without_json: int  # samples that no uid is known of; they are no rows
    content_sum: str  # of the image hashes of the present samples, modulo 2^256: 64 hex characters
    uid_sum: str  # the fingerprint of the rows' uids
    damage: int  # places that could not be read
    damage_places: tuple[str, ...]  # the first of them
    # What follows is written into an index only where something is left out; its being there tells that an index knows.
    empty: int = 0  # samples with neither picture nor caption where uids are made of these; they are no rows
    dotted: int = 0  # pictures or captions that a dot in their names hides from their samples
    dotted_example: str = ""  # a name
    lacking: tuple[Lacking, ...] = ()  # the samples that cannot be used, the most frequent kinds

    @property
    def num_incomplete(self) -> int:
        return self.rows - self.present

    @property
    def is_sound(self) -> bool:
        """Tell whether all that the tar holds is in samples that can be used."""
        left_out = self.num_incomplete + self.without_json + self.damage + self.empty + self.dotted
        return not left_out


@dataclass(frozen=True)
class IndexSummary:
    """What the footers of a whole index say."""

    tars: list[Tar]
    counts: list[TarCounts]  # of each tar

    @property
    def content_hash(self) -> str:
        """Return the sum modulo 2^256 of the image hashes, as 64 hex characters."""
        return f"{sum(int(each.content_sum, 16) for each in self.counts) % 2**256:064x}"

    @property
    def fingerprint(self) -> str:
        """Return the fingerprint of the index's uids: of a pool that has no metadata."""
        return f"{sum(int(each.uid_sum, 16) for each in self.counts) % 2**256:064x}"

    @property
    def num_rows(self) -> int:
        return sum(each.rows for each in self.counts)

    @property
    def num_present(self) -> int:
        return sum(each.present for each in self.counts)

    @property
    def damaged(self) -> list[tuple[Tar, TarCounts]]:
        return [(tar, each) for tar, each in zip(self.tars, self.counts, strict=True) if each.damage]

    @property
    def gaps(self) -> list[str]:
        """Return the numbers that the tars' names leave out, as "3" or "5-8"."""
        found = [re.fullmatch(r"(.*?)(\d+)", tar.path.stem) for tar in self.tars]
        if not all(found):
            return []
        numbers = sorted({int(match[2]) for match in found if match})
        missing = [(a + 1, b - 1) for a, b in pairwise(numbers) if b > a + 1]
        return [str(first) if first == last else f"{first}-{last}" for first, last in missing]

    def tell_damage(self) -> str:
        """Say how many tars are damaged, with an example; there must be one."""
        tar, counts = self.damaged[0]
        return (
            f"{len(self.damaged):,} of {len(self.tars):,} tars are damaged ({sum(c.damage for _, c in self.damaged):,} "
            f"places), such as {tar.path}: {counts.damage_places[0]}"
        )

    def refuse_damage(self, strict: bool) -> None:
        """Raise ValueError where a tar is damaged, or warn where `strict` is False."""
        if not self.damaged:
            return
        what = self.tell_damage()
        if strict:
            raise UserError(
                f"{what}. `winnow pool index` lists them; fetch them again, or go on with what can be read of them by "
                "strict=false",
                code="tar-damaged",
            )
        warn(f"{what}; going on with what can be read (strict=false)")


@dataclass(frozen=True)
class PoolIndex:
    """The present samples of a pool (image and caption are there), or some of them, in pool order.

    All arrays have shape (n,).
    """

    summary: IndexSummary
    uids: np.ndarray  # UID_DTYPE
    tar_number: np.ndarray  # into summary.tars
    image_offset: np.ndarray
    image_length: np.ndarray
    text_offset: np.ndarray
    text_length: np.ndarray
    caption_field: str | None = None  # of the JSON that stands there; None: the caption itself does
    index_dir: Path | None = None  # where more is known of them, such as keys

    def __len__(self) -> int:
        return len(self.uids)


def list_tars(pool_dir: Path) -> list[Tar]:
    """Return the pool's tars in its order; raises FileNotFoundError where it has none."""
    shards_dir, note = shards_dir_of(pool_dir), read_note(pool_dir)
    tars = shards.tars_in(shards_dir, None if note is None else note.names)
    if not tars:
        if not is_remote(pool_dir) and not pool_dir.is_dir():
            raise NotFoundError(f"there is no pool at {pool_dir}", code="pool-not-found")
        raise NotFoundError(
            f"{pool_dir} has no images: there is no tar in {shards_dir}; {tell_contents(shards_dir)}", code="no-tars"
        )
    return tars


def workers_for(tars: Sequence[Tar], workers: int | None) -> int:
    """Return how many processes take tars one by one: as many as asked for, else a core each where there are many."""
    if workers is not None:
        return workers
    return 0 if len(tars) < MANY_TARS else min(os.cpu_count() or 1, len(tars))


def tars_left_out(pool_dir: Path) -> list[shards.LeftOut]:
    """Return the files in the folder of the pool's tars that look like more samples, and are not taken."""
    note = read_note(pool_dir)
    return [] if note is not None and note.names is not None else shards.files_left_out(shards_dir_of(pool_dir))


def has_tars(pool_dir: Path) -> bool:
    """Tell whether a pool has any tar; it may be metadata alone."""
    note = read_note(pool_dir)
    try:
        return bool(list_tars(pool_dir))
    except FileNotFoundError as error:
        if note is not None:
            raise NotFoundError(
                f"the tars of {pool_dir} are gone: its {SHARDS_NOTE} says that they are in {note.shards_dir} ({error})",
                code="images-missing",
            ) from error
        return False


def shards_dir_of(pool_dir: Path) -> Path:
    """Return the folder of the pool's tars: `shards/`, or the one that its shards.json names."""
    note = read_note(pool_dir)
    return pool_dir / "shards" if note is None else _beside(pool_dir, note.shards_dir)


def read_note(pool_dir: Path) -> ShardsNote | None:
    """Read what a pool says of tars that lie elsewhere, or None where they are its own."""
    path = pool_dir / SHARDS_NOTE
    if not path.exists():
        return None
    value = read_json(path)
    try:
        note = ShardsNote(**value)
    except TypeError as error:
        raise UserError(f"{path} is no note on shards: {error}", code="record-damaged") from error
    return note if note.names is None else replace(note, names=tuple(note.names))


def only_path(pool_dir: Path) -> Path | None:
    """Return the subset file outside of which the tars' samples are none of this pool's, or None where all are."""
    note = read_note(pool_dir)
    return None if note is None or note.only is None else _beside(pool_dir, note.only)


def write_note(pool_dir: Path, note: ShardsNote) -> None:
    """Write where a pool's tars lie when they are not its own."""
    later = ("names", "caption_field")  # fields; left out where they say nothing, so that notes stay the same bytes
    write_json(
        pool_dir / SHARDS_NOTE,
        {name: value for name, value in asdict(note).items() if value is not None or name not in later},
    )


def build_index(
    pool_dir: Path, *, workers: int | None = None, hash_images: bool = False, uids_in_keys: bool = False
) -> IndexSummary:
    """Index every tar that has no index or has changed since; return what all their footers say.

    Each tar's index is written atomically, so a killed pass goes on. `workers` None: one process per core where there
    is much to do. With `hash_images` the images whose JSON names no sha256 are read and hashed, now and whenever a tar
    of this pool is indexed again: the content hash must not hang on when that was.
    """
    tars, index_dir, note = list_tars(pool_dir), index_dir_of(pool_dir), read_note(pool_dir)
    if hash_images and not (index_dir / HASHED_MARK).exists():
        write_bytes(index_dir / HASHED_MARK, b"")
    hash_images = hashes_images(pool_dir)
    found = [_read_counts(index_dir, tar, hash_images) for tar in tars]
    if any(counts is None for counts in found):
        with locked(index_dir):
            _take_over_index(pool_dir, index_dir, tars, hash_images)
            found = [counts or _read_counts(index_dir, t, hash_images) for counts, t in zip(found, tars, strict=True)]
            todo = [tar for tar, counts in zip(tars, found, strict=True) if counts is None]
            only = only_path(pool_dir)
            work = partial(
                _index_one,
                index_dir=index_dir,
                hash_images=hash_images,
                only=only,
                assign_uids=note is not None and note.assign_uids,
                uids_in_keys=uids_in_keys,
                caption_field=None if note is None else note.caption_field,
            )
            done = map_items(work, todo, workers=workers_for(todo, workers), name="index")
            made = dict(zip(todo, done, strict=True))
            found = [counts or made[tar] for counts, tar in zip(found, tars, strict=True)]
    return IndexSummary(tars, [counts for counts in found if counts is not None])


def unindexed_tars(pool_dir: Path) -> list[Tar]:
    """Return the tars that `build_index` would read."""
    index_dir, hash_images = index_dir_of(pool_dir), hashes_images(pool_dir)
    return [tar for tar in list_tars(pool_dir) if _read_counts(index_dir, tar, hash_images) is None]


def hashes_images(pool_dir: Path) -> bool:
    """Tell whether a pool's images are hashed where their JSON names no sha256."""
    note = read_note(pool_dir)
    return (index_dir_of(pool_dir) / HASHED_MARK).exists() or (note is not None and note.hash_images)


def narrow_index(pool_dir: Path, source_dir: Path) -> IndexSummary:
    """Index a pool that has some of another pool's samples, from that one's index as far as it is there and fits.

    The bytes are those of `build_index`, which does the rest.
    """
    note, path = read_note(pool_dir), only_path(pool_dir)
    assert note is not None and path is not None
    only, index_dir, source_index_dir = load_subset(path).uids, index_dir_of(pool_dir), index_dir_of(source_dir)
    for tar in list_tars(pool_dir):
        counts = _read_counts(source_index_dir, tar, note.hash_images)
        if counts is None or _read_counts(index_dir, tar, note.hash_images) is not None:
            continue
        (table,) = index_tables(source_index_dir, [tar], INDEX_SCHEMA.names)
        table = table.filter(pa.array(count_of(unpack_uids(table["uid"]), only) > 0)).cast(INDEX_SCHEMA)
        damage = Damage(counts.damage, list(counts.damage_places))
        counts = counts_of(table, unpack_uids(table["uid"]), damage)
        write_index(index_dir, tar, table, counts, hash_images=note.hash_images)
    return build_index(pool_dir)


def index_tar(
    path: Path,
    size: int,
    *,
    hash_images: bool = False,
    only: np.ndarray | None = None,
    assign_uids: bool = False,
    uids_in_keys: bool = False,
    caption_field: str | None = None,
) -> tuple[pa.Table, TarCounts]:
    """Return the index of one tar and its counts; what cannot be read is listed there, and no more than it is lost.

    Neighbours with one key are a sample. Members of a key that stand apart are put together too, where none of them is
    there twice, at the place of the first of them.

    `only`: sorted uids, outside of which a sample is left out as if it were not there. `uids_in_keys`: the keys are
    `{uid}-{copy}`, as in resharded tars, and the JSON is not asked. `caption_field`: of the JSON, that is the caption.
    """
    rows = _Rows(hash_images, assign_uids, uids_in_keys, caption_field)
    with open_sequential(path) as file:
        read = reading_ahead(file.read_up_to)
        members: dict[str, Member] = {}
        key = ""
        for member in scan_tar(read, size, rows.damage):
            # A member that the sample has already begins the next, as in open_clip.
            if member.key != key or member.extension in members:
                rows.add(key, members, read)
                key, members = member.key, {}
            members[member.extension] = member
        rows.add(key, members, read)
        rows.put_together(read)
    return rows.table(str(path), only)


def index_tables(index_dir: Path, tars: Sequence[Tar], columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield columns of each tar's index, in the pool's order."""
    for tar in tars:
        path = index_path(index_dir, tar)
        try:
            with pq.ParquetFile(path) as file:  # without threads, which cost more than they bring for so few rows
                yield file.read(list(columns), use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{path} is damaged ({one_line(error)}); delete it to have it made again", code="file-damaged"
            ) from error


def read_index(pool_dir: Path, summary: IndexSummary | None = None, subset: Subset | None = None) -> PoolIndex:
    """Read the pool's index (making it first where no summary of it is given); with `subset`, only its samples.

    Raises FileNotFoundError where the pool has no tars, ValueError where one is damaged and no summary is given.
    """
    if summary is None:
        summary = build_index(pool_dir)
        summary.refuse_damage(strict=True)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("uids", "tar_number", *PLACE_COLUMNS)}
    columns = ["uid", *PLACE_COLUMNS]
    for number, table in enumerate(index_tables(index_dir_of(pool_dir), summary.tars, columns)):
        uids = unpack_uids(table["uid"])
        arrays = {name: table[name].to_numpy() for name in PLACE_COLUMNS}
        wanted = present_rows(table)
        if subset is not None:
            wanted &= count_of(uids, subset.uids) > 0
        parts["uids"].append(uids[wanted])
        parts["tar_number"].append(np.full(int(wanted.sum()), number, dtype=np.int32))
        for name in PLACE_COLUMNS:
            parts[name].append(arrays[name][wanted])
    whole = {name: np.concatenate(pieces) for name, pieces in parts.items()}
    note = read_note(pool_dir)
    caption_field = None if note is None else note.caption_field
    return PoolIndex(summary, **whole, caption_field=caption_field, index_dir=index_dir_of(pool_dir))


def caption_of(data: bytes, caption_field: str | None) -> bytes:
    """Return a caption's bytes from what stands at its place: itself, or a JSON that has it in a field."""
    return data if caption_field is None else str(from_json(data)[caption_field]).encode()


def present_rows(table: pa.Table) -> np.ndarray:
    """Tell of an index's rows whether image and caption are there: (rows,) bool, from the columns of their offsets."""
    return (table["image_offset"].to_numpy() >= 0) & (table["text_offset"].to_numpy() >= 0)


def unpack_uids(column: pa.ChunkedArray) -> np.ndarray:
    """Return an index's column of uids as an array of `UID_DTYPE`."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], pa.binary(16))
    pairs = np.frombuffer(array.buffers()[1], dtype=">u8", offset=16 * array.offset, count=2 * len(array))
    return pairs.astype("<u8").view(UID_DTYPE)


class _Unusable:
    """Collects what samples that cannot be used consist of, and what dots in names hide."""

    def __init__(self) -> None:
        self.kinds: dict[tuple[str, ...], list[str]] = {}
        self.counts: dict[tuple[str, ...], int] = defaultdict(int)
        self.dotted = 0
        self.dotted_example = ""

    def add(self, key: str, extensions: Iterable[str]) -> None:
        """Take in a sample that cannot be used."""
        named = sorted(extensions)
        members = tuple(named[:MAX_MEMBERS]) + (("...",) if len(named) > MAX_MEMBERS else ())
        self.kinds.setdefault(members, [key])
        self.counts[members] += 1
        self.look_for_dots(key, named)

    def look_for_dots(self, key: str, extensions: Sequence[str]) -> None:
        """Count the pictures and captions that hide behind a dot.

        Beside a picture and a caption that are the sample's own, only pairs that look like a sample count: members
        such as `thumb.jpg` are nobody's loss.
        """
        split = [(each, *each.rpartition(".")[::2]) for each in extensions if "." in each]
        if not split:
            return
        pictures = {before: each for each, before, last in split if last in IMAGE_FORMATS}
        captions = {before: each for each, before, last in split if last == "txt"}
        if IMAGE_FORMATS.keys() & set(extensions) and "txt" in extensions:
            hidden = {before: pictures[before] for before in pictures if before in captions}
        else:
            lacked = [] if IMAGE_FORMATS.keys() & set(extensions) else [pictures]
            lacked += [] if "txt" in extensions else [captions]
            hidden = max(lacked, key=len)
        self.dotted += len(hidden)
        if hidden and not self.dotted_example:
            self.dotted_example = f"{key}.{min(hidden.values())}"

    def lacking(self) -> tuple[Lacking, ...]:
        """Return the most frequent kinds."""
        ordered = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))[:MAX_KINDS]
        return tuple(Lacking(members, count, self.kinds[members][0]) for members, count in ordered)


@dataclass
class _Rows:
    """The rows of a tar's index while they are collected, column by column."""

    hash_images: bool
    assign_uids: bool
    uids_in_keys: bool
    caption_field: str | None = None
    damage: Damage = field(default_factory=Damage)
    without_json: int = 0
    empty: int = 0
    unusable: _Unusable = field(default_factory=_Unusable)  # those that are no rows
    apart: list[tuple[str, dict[str, Member]]] = field(default_factory=list)  # may have more members elsewhere
    uids: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    extensions: list[str | None] = field(default_factory=list)
    places: list[int] = field(default_factory=list)  # six to a row: offset and length of image, text, json
    hashes: list[bytes | None] = field(default_factory=list)
    others: list[list[dict[str, Json]] | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        needs_json = self.caption_field is not None or not (self.assign_uids or self.uids_in_keys)
        # Beside a picture, of a sample to which nothing is missing.
        self.needed = {*(["json"] if needs_json else []), *(["txt"] if self.caption_field is None else [])}

    def add(self, key: str, members: dict[str, Member], read: ReadAt) -> None:
        """Take neighbours with one key up; nothing where there are none."""
        if not members:
            return
        if self.needed <= members.keys() and not _IMAGES.isdisjoint(members):
            self._take(key, members, read)
        else:
            self.apart.append((key, members))

    def put_together(self, read: ReadAt) -> None:
        """Take up what waits for members elsewhere in the tar, joined by key where no member is there twice."""
        if not self.apart:
            return
        parts: dict[str, list[dict[str, Member]]] = {}
        for key, members in self.apart:
            parts.setdefault(key, []).append(members)
        rows: dict[str, list[int]] = {}
        for row, key in enumerate(self.keys):
            if key in parts:
                rows.setdefault(key, []).append(row)
        samples: list[tuple[str, dict[str, Member]]] = []
        replaced: set[int] = set()
        for key, pieces in parts.items():
            whole = pieces + [self._members_of(row) for row in rows.get(key, ())]
            joined = {extension: member for piece in whole for extension, member in piece.items()}
            if len(joined) == sum(map(len, whole)):
                in_order = sorted(joined.values(), key=lambda member: member.offset)
                samples.append((key, {member.extension: member for member in in_order}))
                replaced.update(rows.get(key, ()))
            else:
                samples += [(key, piece) for piece in pieces]
        self._keep([row for row in range(len(self.keys)) if row not in replaced])
        for key, members in sorted(samples, key=lambda sample: _start(sample[1].values())):
            self._take(key, members, read)
        starts = [_start(self._members_of(row).values()) for row in range(len(self.keys))]
        self._keep(sorted(range(len(starts)), key=starts.__getitem__))

    def _keep(self, rows: list[int]) -> None:
        """Keep some rows, in the order given."""
        columns: tuple[list[Any], ...] = (self.uids, self.keys, self.extensions, self.hashes, self.others)
        for column in columns:
            column[:] = [column[row] for row in rows]
        self.places = [place for row in rows for place in self.places[6 * row : 6 * row + 6]]

    def _members_of(self, row: int) -> dict[str, Member]:
        key, places = self.keys[row], self.places[6 * row : 6 * row + 6]
        found = [(str(each["extension"]), each["offset"], each["length"]) for each in self.others[row] or ()]
        text = None if self.caption_field is not None else "txt"  # else it is the json once more
        for number, extension in enumerate((self.extensions[row], text, "json")):
            if extension is not None and places[2 * number] >= 0:
                found.append((extension, places[2 * number], places[2 * number + 1]))
        return {each: Member(f"{key}.{each}", key, each, int(start), int(size)) for each, start, size in found}

    def _take(self, key: str, members: dict[str, Member], read: ReadAt) -> None:
        """Make a row of a sample, or count it where it can be none."""
        record = members.get("json")
        if record is None and not (self.assign_uids or self.uids_in_keys):
            self.without_json += 1
            self.unusable.add(key, members)
            return
        image = next((members[extension] for extension in IMAGE_ORDER if extension in members), None)
        text = members.get("txt")
        uid, digest = "", None
        caption: bytes | None = None
        if self.uids_in_keys:
            uid = key.rpartition("/")[2].partition("-")[0]
            if not is_uid(uid):
                self.damage.add(
                    min(member.offset for member in members.values()), f"the key {key!r} is no uid and copy"
                )
                return
        elif record is not None:
            try:
                uid, digest, caption = self._identity(record, read)
            except ValueError as error:
                self.damage.add(record.offset, f"the json of sample {key!r} {error}")
                return
        if self.caption_field is not None:
            text = None if caption is None else record
        for member in members.values():
            if len(member.extension) > MAX_EXTENSION:
                self.damage.add(member.offset, f"the extension of {member.name[:80]!r}... is too long")
                return
            if member.size > MAX_MEMBER_BYTES:
                self.damage.add(member.offset, f"the member {member.name!r} has {member.size:,} bytes, 2 GiB or more")
                return
        if self.assign_uids and image is None and text is None:
            self.empty += 1  # the hash of nothing would be one uid for all of them
            self.unusable.add(key, members)
            return
        if image is not None and digest is None and (self.hash_images or self.assign_uids):
            digest = hashlib.sha256(read(image.offset, image.size)).digest()
        if self.assign_uids:
            if caption is None:
                caption = b"" if text is None else read(text.offset, text.size)
            uid = assigned_uid(digest or b"", caption)
        self.uids.append(uid)
        self.keys.append(key)
        self.extensions.append(None if image is None else image.extension)
        for each in (image, text, record):
            self.places += (-1, -1) if each is None else (each.offset, each.size)
        self.hashes.append(digest)
        known = (image is not None) + (text is not None and text is not record) + (record is not None)
        self.others.append(
            None
            if len(members) == known
            else [
                {"extension": extension, "offset": member.offset, "length": member.size}
                for extension, member in members.items()
                if member is not image and member is not text and member is not record
            ]
        )

    def _identity(self, record: Member, read: ReadAt) -> tuple[str, bytes | None, bytes | None]:
        """Read uid, image hash and, where captions stand there, the caption from a sample's JSON.

        Raises ValueError that says what is wrong with it.
        """
        if record.size > MAX_JSON_BYTES:
            raise UserError(f"has {record.size:,} bytes, more than {MAX_JSON_BYTES:,}", code="file-damaged")
        try:
            fields = from_json(read(record.offset, record.size))
        except ValueError as error:
            raise UserError(f"cannot be read ({error})", code="file-damaged") from error
        if not isinstance(fields, dict):
            raise UserError("is no object with a uid", code="uid-invalid")
        uid, sha256 = fields.get("uid"), fields.get("sha256")
        digest = None
        if isinstance(sha256, str) and len(sha256) == 64:
            try:
                digest = bytes.fromhex(sha256)
            except ValueError:
                digest = None
        told = None if self.caption_field is None else fields.get(self.caption_field)
        caption = told.encode() if isinstance(told, str) else None
        if self.assign_uids:
            return "", digest, caption
        if not isinstance(uid, str):
            raise UserError(
                "names no uid" if uid is None else f"names the uid {uid!r}, which is no text", code="uid-invalid"
            )
        if not is_uid(uid):
            raise UserError(f"names the uid {uid!r}; a uid is 32 hex characters", code="uid-invalid")
        return uid, digest, caption

    def table(self, where: str, only: np.ndarray | None) -> tuple[pa.Table, TarCounts]:
        """Return the table, with its counts in the footer."""
        uids = parse_uids(self.uids, where)
        packed = np.stack([uids["f0"], uids["f1"]], axis=1).astype(">u8")
        places = np.array(self.places, dtype=np.int64).reshape(-1, 6)
        columns: dict[str, pa.Array] = {
            "uid": pa.Array.from_buffers(pa.binary(16), len(uids), [None, pa.py_buffer(packed.tobytes())]),
            "key": pa.array(self.keys, pa.string()),
            "image_extension": pa.array(self.extensions, pa.string()).dictionary_encode(),
            "image_sha256": pa.array(self.hashes, pa.binary(32)),
            "others": pa.array(self.others, INDEX_SCHEMA.field("others").type),
        }
        for number, name in enumerate(("image", "text", "json")):
            columns[f"{name}_offset"] = pa.array(places[:, 2 * number])
            columns[f"{name}_length"] = pa.array(places[:, 2 * number + 1].astype(np.int32))
        table = pa.table({f.name: columns[f.name].cast(f.type) for f in INDEX_SCHEMA}, schema=INDEX_SCHEMA)
        if only is not None:
            table = table.filter(pa.array(count_of(uids, only) > 0))
            uids = unpack_uids(table["uid"])
        if only is not None:
            return table, counts_of(table, uids, self.damage)
        return table, counts_of(table, uids, self.damage, self.without_json, self.empty, self.unusable)


def counts_of(
    table: pa.Table,
    uids: np.ndarray,
    damage: Damage,
    without_json: int = 0,
    empty: int = 0,
    unusable: _Unusable | None = None,
) -> TarCounts:
    """Count what a tar's index holds; `unusable` has the samples that are no rows, and takes in rows."""
    has_image, has_text = (table[f"{name}_offset"].to_numpy() >= 0 for name in ("image", "text"))
    is_present = present_rows(table)
    # The sums over the samples that are there, so that content hashes need no second pass.
    total = 0
    hashes, lengths = table["image_sha256"].to_pylist(), table["image_length"].to_numpy()
    packed = table["uid"].to_pylist()
    for row in np.flatnonzero(is_present).tolist():
        # Without an image hash, uid and length stand in: enough to see that another set of samples is there.
        digest = hashes[row] or hashlib.sha256(f"{packed[row]!r}{lengths[row]}".encode()).digest()
        total += int.from_bytes(digest)
    unusable = unusable or _Unusable()
    _look_over(table, is_present, unusable)
    return TarCounts(
        rows=table.num_rows,
        present=int(is_present.sum()),
        without_image=int((~has_image).sum()),
        without_text=int((~has_text).sum()),
        without_json=without_json,
        content_sum=f"{total % 2**256:064x}",
        uid_sum=f"{fingerprint_of(uids):064x}",
        damage=damage.count,
        damage_places=tuple(damage.places),
        empty=empty,
        dotted=unusable.dotted,
        dotted_example=unusable.dotted_example,
        lacking=unusable.lacking(),
    )


def _look_over(table: pa.Table, is_present: np.ndarray, unusable: _Unusable) -> None:
    """Take in the rows that cannot be used, and of the others those whose members have dots in their extensions."""
    others = table["others"].combine_chunks()
    parents, extensions = pc.list_parent_indices(others), pc.struct_field(pc.list_flatten(others), "extension")
    has_dots = parents.filter(pc.match_substring(extensions, ".")).unique()
    rows = np.union1d(np.flatnonzero(~is_present), has_dots.to_numpy()).astype(np.int64)
    columns = ["key", "image_extension", "text_offset", "json_offset", "others"]
    for row, values in zip(rows.tolist(), table.select(columns).take(pa.array(rows)).to_pylist(), strict=True):
        named = [] if values["image_extension"] is None else [values["image_extension"]]
        named += ["txt"] if values["text_offset"] not in (-1, values["json_offset"]) else []
        named += ["json"] if values["json_offset"] >= 0 else []
        named += [each["extension"] for each in values["others"] or ()]
        if is_present[row]:
            unusable.look_for_dots(values["key"], sorted(named))
        else:
            unusable.add(values["key"], named)


def write_index(index_dir: Path, tar: Tar, table: pa.Table, counts: TarCounts, *, hash_images: bool = False) -> None:
    """Write a tar's index, its counts in the footer, atomically."""
    told = asdict(counts)
    if counts.is_sound:
        told = {name: value for name, value in told.items() if name not in _LEFT_OUT}
    about = {"version": INDEX_VERSION, "state": _kept_state(tar), "hash_images": hash_images, **told}
    table = table.replace_schema_metadata({"winnow_index": json.dumps(about)})
    with atomic_path(index_path(index_dir, tar)) as temporary:
        pq.write_table(table, temporary, compression="zstd")
        _keep_time(temporary, index_path(index_dir, tar), tar)


def _keep_time(path: Path, target: Path, tar: Tar) -> None:
    """Give the file that becomes a local tar's index the tar's time.

    Where its file system keeps times less precisely than the tar's, a note beside the index says which one was meant.
    """
    if is_remote(tar.path):
        return
    os.utime(path, ns=(_time_of(tar), _time_of(tar)))
    kept, note_path = path.stat().st_mtime_ns, _time_note_path(target)
    if kept != _time_of(tar):
        write_json(note_path, {"kept": kept, "meant": _time_of(tar)})
    else:
        note_path.unlink(missing_ok=True)


def _is_of_time(path: Path, tar: Tar) -> bool:
    """Tell whether an index was made from a local tar as it is now."""
    kept = path.stat().st_mtime_ns
    if kept == _time_of(tar):
        return True
    try:
        return bool(read_json(_time_note_path(path)) == {"kept": kept, "meant": _time_of(tar)})
    except (OSError, ValueError):
        return False


def _time_note_path(path: Path) -> Path:
    return path.with_suffix(".time.json")


def assigned_uid(image_sha256: bytes, caption: bytes) -> str:
    """Return the uid of a sample that has none: 32 hex characters of the sha256 of image hash and caption."""
    return hashlib.sha256(image_sha256 + caption).hexdigest()[:32]


def _index_one(
    tar: Tar,
    *,
    index_dir: Path,
    hash_images: bool,
    only: Path | None,
    assign_uids: bool,
    uids_in_keys: bool,
    caption_field: str | None,
) -> TarCounts:
    table, counts = index_tar(
        tar.path,
        tar.size,
        hash_images=hash_images,
        only=None if only is None else load_subset(only, known_sorted=True).uids,
        assign_uids=assign_uids,
        uids_in_keys=uids_in_keys,
        caption_field=caption_field,
    )
    write_index(index_dir, tar, table, counts, hash_images=hash_images)
    return counts


def _read_counts(index_dir: Path, tar: Tar, hash_images: bool) -> TarCounts | None:
    """Return the counts of a tar's index, or None where there is none that fits the tar as it is now."""
    path = index_path(index_dir, tar)
    try:
        about = json.loads((pq.read_schema(path).metadata or {})[b"winnow_index"])
        is_older = not is_remote(tar.path) and not _is_of_time(path, tar)
    except (pa.ArrowException, OSError, KeyError, ValueError):
        return None  # absent, of an older version, or damaged, and made anew
    fits = about.pop("version", None) == INDEX_VERSION and about.pop("state", None) == _kept_state(tar)
    if is_older or not fits or (hash_images and not about["hash_images"]):
        return None
    if "lacking" not in about and (about["rows"] > about["present"] or about["without_json"] or about["damage"]):
        return None  # made before members that stand apart were put together, and something is left out
    del about["hash_images"]
    lacking = tuple(Lacking(**{**each, "members": tuple(each["members"])}) for each in about.pop("lacking", ()))
    return TarCounts(**{**about, "damage_places": tuple(about["damage_places"]), "lacking": lacking})


def _kept_state(tar: Tar) -> str:
    # A local tar's time is kept as the time of its index, so that the same tars give the same bytes of index.
    return tar.state if is_remote(tar.path) else str(tar.size)


def _time_of(tar: Tar) -> int:
    """Return a local tar's time, in nanoseconds."""
    return int(tar.state.partition("/")[2])


def _take_over_index(pool_dir: Path, index_dir: Path, tars: Sequence[Tar], hash_images: bool) -> None:
    """Copy what fits of the index that a read-only pool has inside, as none can be made there."""
    inside = pool_dir / "index"
    if is_remote(pool_dir) or inside == index_dir:
        return
    for tar in tars:
        if _read_counts(index_dir, tar, hash_images) is None and _read_counts(inside, tar, hash_images) is not None:
            with atomic_path(index_path(index_dir, tar)) as temporary:
                shutil.copy2(index_path(inside, tar), temporary)
                _keep_time(temporary, index_path(index_dir, tar), tar)


def index_path(index_dir: Path, tar: Tar) -> Path:
    """Return where a tar's index is written."""
    return index_dir / f"{tar.stem}.parquet"


def knows_all_images(path: Path) -> bool:
    """Tell whether a tar's index names the hash of every image; it says so in its statistics."""
    footer = pq.read_metadata(path)
    number = footer.schema.names.index("image_sha256")
    statistics = [footer.row_group(group).column(number).statistics for group in range(footer.num_row_groups)]
    return all(each is not None and each.null_count == 0 for each in statistics)


def _beside(pool_dir: Path, text: str) -> Path:
    """Return a path or URL that stands in a pool's note."""
    location = as_location(text)
    return location if location.is_absolute() else pool_dir / text


def _start(members: Iterable[Member]) -> int:
    return min(member.offset for member in members)


_IMAGES = frozenset(IMAGE_ORDER)
_LEFT_OUT = ("empty", "dotted", "dotted_example", "lacking")  # fields of TarCounts
_UID = re.compile(r"[0-9a-fA-F]{32}")


def is_uid(text: str) -> bool:
    """Tell whether a text is 32 hex characters."""
    return _UID.fullmatch(text) is not None
