"""Scanning a tar: its members put together to samples, which become the rows of its index."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic_core import from_json

from benchmark.pool.index_counts import TarCounts, UnusableSamples, counts_of
from benchmark.pool.index_table import INDEX_SCHEMA, unpack_uids
from benchmark.pool.tars import Damage, Member, ReadAt, reading_ahead, scan_tar
from benchmark.pool.uids import count_of, parse_uids
from benchmark.runtime.errors import UserError
from benchmark.runtime.files import Json
from benchmark.runtime.ranges import open_sequential

IMAGE_ORDER = ("jpg", "png", "jpeg", "webp")  # of a sample with several, the one that open_clip's loader takes
MAX_JSON_BYTES = 1 << 20
MAX_EXTENSION = 60  # characters; a longer one leaves no room for a key in a plain tar header
MAX_MEMBER_BYTES = (1 << 31) - 1  # lengths are 32-bit numbers


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
    `{uid}-{copy}`, as in resharded tars, and the JSON is not read. `caption_field`: of the JSON, that is the caption.
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
    unusable: UnusableSamples = field(default_factory=UnusableSamples)  # those that become no rows
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
        text = None if self.caption_field is None else fields.get(self.caption_field)
        caption = text.encode() if isinstance(text, str) else None
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


def assigned_uid(image_sha256: bytes, caption: bytes) -> str:
    """Return the uid of a sample that has none: 32 hex characters of the sha256 of image hash and caption."""
    return hashlib.sha256(image_sha256 + caption).hexdigest()[:32]


def _start(members: Iterable[Member]) -> int:
    return min(member.offset for member in members)


_IMAGES = frozenset(IMAGE_ORDER)
_UID = re.compile(r"[0-9a-fA-F]{32}")


def is_uid(text: str) -> bool:
    """Tell whether a text is 32 hex characters."""
    return _UID.fullmatch(text) is not None
