"""Writing the tars of a resharding: bytes copied out of the pool's tars without decoding."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmark.pool.index_table import INDEX_SCHEMA, caption_of, index_tables, present_rows, unpack_uids
from benchmark.pool.shards import Tar
from benchmark.pool.subset import Subset, load_subset
from benchmark.pool.tars import ARCHIVE_END, BLOCK, member_header, padding
from benchmark.pool.uids import count_of, format_uids
from benchmark.runtime.files import atomic_path, write_json
from benchmark.runtime.ranges import SequentialReader, open_sequential

SUBSET_COPY_NAME = "sample_ids.npy"
SHARD_FORMAT, STATS_FORMAT = "{:08d}.tar", "{:08d}_stats.json"
WRITE_BYTES = 1 << 20  # handed to the system at once


@dataclass(frozen=True)
class ShardPlan:
    """One output shard: a range of P, and the tars it comes from."""

    number: int
    start: int  # in P
    stop: int
    tars: tuple[Tar, ...]
    first: int  # the place in P of the first tar's first sample


def write_shard(plan: ShardPlan, *, out_dir: Path, index_dir: Path, caption_field: str | None = None) -> int:
    """Write one output shard of the subset that lies in `out_dir`, and its statistics; return its bytes.

    `caption_field`: of the JSON, that becomes a txt; None where the samples have one.
    """
    subset = load_subset(out_dir / SUBSET_COPY_NAME, known_sorted=True)
    path = out_dir / SHARD_FORMAT.format(plan.number)
    with atomic_path(path) as temporary, TarWriter(temporary) as writer:
        first = plan.first
        for tar, table in zip(plan.tars, index_tables(index_dir, plan.tars, INDEX_SCHEMA.names), strict=True):
            first = _copy_samples(plan, first, tar, table, subset, writer, caption_field)
        writer.finish()
        size = writer.size
    write_json(out_dir / STATS_FORMAT.format(plan.number), {"successes": plan.stop - plan.start})
    return size


class TarWriter:
    """Writes a tar through one buffer, which its members are read into, so that their bytes are moved but once."""

    def __init__(self, path: Path) -> None:
        self.size = 0  # bytes written and buffered
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        self._buffer = bytearray(WRITE_BYTES)
        self._filled = 0

    def room(self, length: int) -> memoryview:
        """Return the next `length` bytes of the archive, to be filled in before the next call."""
        if self._filled + length > len(self._buffer):
            self.flush()
            if length > len(self._buffer):
                self._buffer = bytearray(length)
        start = self._filled
        self._filled += length
        self.size += length
        return memoryview(self._buffer)[start : start + length]

    def flush(self) -> None:
        """Write what is buffered."""
        waiting = memoryview(self._buffer)[: self._filled]
        while len(waiting):
            waiting = waiting[os.write(self._file, waiting) :]
        self._filled = 0

    def finish(self) -> None:
        """End the archive as tarfile does: two blocks of zeros, and more up to a multiple of ten kilobytes."""
        zeros = bytes(2 * BLOCK + -(self.size + 2 * BLOCK) % ARCHIVE_END)
        self.room(len(zeros))[:] = zeros
        self.flush()

    def __enter__(self) -> TarWriter:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)


def _copy_samples(
    plan: ShardPlan,
    first: int,
    tar: Tar,
    table: pa.Table,
    subset: Subset,
    writer: TarWriter,
    caption_field: str | None,
) -> int:
    """Copy what an output shard has of one tar; return the place in P after the tar's last sample."""
    uids = unpack_uids(table["uid"])
    copies = count_of(uids, subset.uids) * present_rows(table)
    ends = first + np.cumsum(copies)
    rows = np.flatnonzero((copies > 0) & (ends > plan.start) & (ends - copies < plan.stop))
    chosen = table.take(pa.array(rows))
    spelt = format_uids(uids[rows])
    others = chosen["others"].to_pylist() if chosen["others"].null_count < len(rows) else [None] * len(rows)
    extensions = chosen["image_extension"].to_pylist()
    places = {name: chosen[name].to_pylist() for name in _PLACES}
    with open_sequential(tar.path, state=tar.state) as file:
        for number, row in enumerate(rows.tolist()):
            members = [
                (extensions[number], places["image_offset"][number], places["image_length"][number]),
                ("txt", places["text_offset"][number], places["text_length"][number]),
            ]
            if places["json_offset"][number] >= 0:
                members.append(("json", places["json_offset"][number], places["json_length"][number]))
            for other in others[number] or ():
                members.append((other["extension"], other["offset"], other["length"]))
            caption: bytes | None = None
            if caption_field is not None:  # the caption's place is the JSON's
                caption = caption_of(file.read(*members[1][1:]), caption_field)
                members = [m for m in members if m[0] != "txt"] + [("txt", _NOT_IN_TAR, len(caption))]
            members.sort()
            before = int(ends[row] - copies[row])
            for copy in range(max(plan.start - before, 0), min(plan.stop - before, int(copies[row]))):
                _copy_sample(f"{spelt[number]}-{copy}", members, file, writer, caption)
    return int(ends[-1]) if len(ends) else first


def _copy_sample(
    key: str,
    members: list[tuple[str, int, int]],
    file: SequentialReader,
    writer: TarWriter,
    caption: bytes | None = None,
) -> None:
    """Copy a sample's members, (extension, offset, length) in their new order; raises ValueError where one is cut off.

    Members that stand in this order already are read in one piece, headers and all, which are then written over.
    """
    padded = [BLOCK + length + padding(length) for _, _, length in members]
    room = writer.room(sum(padded))
    start = members[0][1]
    expected = start
    for (_, offset, _), size in zip(members, padded, strict=True):
        if offset != expected:
            break
        expected += size
    else:
        length = expected - start - BLOCK - padding(members[-1][2])
        file.readinto(start, room[BLOCK : BLOCK + length])
        start = -1
    at = 0
    for (extension, offset, length), size in zip(members, padded, strict=True):
        room[at : at + BLOCK] = member_header(f"{key}.{extension}", length)
        if offset == _NOT_IN_TAR:
            room[at + BLOCK : at + BLOCK + length] = caption or b""
        elif start >= 0:
            file.readinto(offset, room[at + BLOCK : at + BLOCK + length])
        room[at + BLOCK + length : at + size] = bytes(size - BLOCK - length)
        at += size


_NOT_IN_TAR = -1  # the place of a member that stands in another
_PLACES = ("image_offset", "image_length", "text_offset", "text_length", "json_offset", "json_length")
