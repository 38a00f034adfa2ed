"""The index: where in which tar every sample's members lie, one parquet per tar, made in one pass over headers.

Columns: `uid` (16 bytes, big endian), `key`, and for image, text and json the offset and length in bytes of the
member's data in the tar (-1 where the sample has none); `image_extension`; `image_sha256` (32 bytes, from the JSON's
`sha256` where there is one, else null). Rows stand in tar order. Names of tars and rows together are the pool's order.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from benchmark.stage import atomic_path, locked
from benchmark.tables import read_parquet
from benchmark.tars import IMAGE_FORMATS, iter_members
from benchmark.uids import UID_DTYPE, parse_uids

INDEX_VERSION = 1
MAX_JSON_BYTES = 1 << 20

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
    ]
)


@dataclass(frozen=True)
class PoolIndex:
    """The present samples of a pool (image and caption are there), in pool order; all arrays have shape (n,)."""

    tar_paths: list[Path]
    uids: np.ndarray  # UID_DTYPE
    tar_number: np.ndarray  # into tar_paths
    image_offset: np.ndarray
    image_length: np.ndarray
    text_offset: np.ndarray
    text_length: np.ndarray
    content_hash: str  # sum modulo 2^256 of the image hashes, as 64 hex characters
    num_incomplete: int  # samples in the tars without image or caption
    num_without_json: int  # samples in the tars that no uid is known of

    def __len__(self) -> int:
        return len(self.uids)


def build_index(pool_dir: Path) -> None:
    """Index every tar that has no index or has changed since; each index is written atomically."""
    if all(_is_indexed(pool_dir, path) for path in _tar_paths(pool_dir)):
        return
    with locked(pool_dir / "index"):
        for tar_path in tqdm(_tar_paths(pool_dir), desc="index", unit="tar", disable=None, leave=False):
            if not _is_indexed(pool_dir, tar_path):
                time_of_tar = tar_path.stat().st_mtime_ns
                with atomic_path(_index_path(pool_dir, tar_path)) as temporary:
                    pq.write_table(index_tar(tar_path), temporary, compression="zstd")
                    # The index has its tar's time: sizes alone do not tell a change, as tars are padded to 10 kB.
                    os.utime(temporary, ns=(time_of_tar, time_of_tar))


def index_tar(path: Path) -> pa.Table:
    """Return the index of one tar; raises ValueError that names the tar and the byte where it is damaged."""
    rows: list[dict[str, object]] = []
    num_without_json = 0
    size = path.stat().st_size
    with path.open("rb") as file:
        for key, members in _samples(path):
            if "json" not in members:
                num_without_json += 1
                continue
            offset, length = members["json"]
            if length > MAX_JSON_BYTES:
                raise ValueError(f"{path}: the json of sample {key!r} has {length} bytes, more than {MAX_JSON_BYTES}")
            file.seek(offset)
            try:
                fields = json.loads(file.read(length))
                uid, sha256 = fields["uid"], fields.get("sha256")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{path}: the json of sample {key!r} names no uid ({error})") from error
            image = next((extension for extension in members if extension in IMAGE_FORMATS), None)
            row: dict[str, object] = {"uid": uid, "key": key, "image_extension": image}
            for name, member in (("image", image), ("text", "txt"), ("json", "json")):
                row[f"{name}_offset"], row[f"{name}_length"] = members.get(member or "", (-1, -1))
            row["image_sha256"] = bytes.fromhex(sha256) if isinstance(sha256, str) and len(sha256) == 64 else None
            rows.append(row)
    uids = parse_uids([row["uid"] if isinstance(row["uid"], str) else None for row in rows], str(path))
    packed = np.stack([uids["f0"], uids["f1"]], axis=1).astype(">u8").tobytes()
    for number, row in enumerate(rows):
        row["uid"] = packed[16 * number : 16 * number + 16]
    # The sum over the samples that are there, so that content hashes need no second pass.
    total = sum(int.from_bytes(_image_digest(row)) for row in rows if _is_present(row)) % 2**256
    return pa.Table.from_pylist(rows, schema=INDEX_SCHEMA).replace_schema_metadata(
        {
            "winnow_index_version": str(INDEX_VERSION),
            "tar_size": str(size),
            "num_without_json": str(num_without_json),
            "content_sum": f"{total:064x}",
        }
    )


def read_index(pool_dir: Path) -> PoolIndex:
    """Read the pool's index, making what is missing of it first.

    Raises FileNotFoundError where the pool has no tars.
    """
    tar_paths = _tar_paths(pool_dir)
    if not tar_paths:
        raise FileNotFoundError(f"{pool_dir} has no images: there is no tar in {pool_dir / 'shards'}")
    build_index(pool_dir)
    columns = ["uid", "image_offset", "image_length", "text_offset", "text_length"]
    tables, tar_numbers = [], []
    total = num_incomplete = num_without_json = 0
    for number, tar_path in enumerate(tar_paths):
        path = _index_path(pool_dir, tar_path)
        table = read_parquet(path, columns, remedy="delete it to have it made again")
        total += int(table.schema.metadata[b"content_sum"], 16)
        num_without_json += int(table.schema.metadata[b"num_without_json"])
        is_present = (table["image_offset"].to_numpy() >= 0) & (table["text_offset"].to_numpy() >= 0)
        num_incomplete += int((~is_present).sum())
        tables.append(table.filter(pa.array(is_present)))
        tar_numbers.append(np.full(int(is_present.sum()), number, dtype=np.int32))
    table = pa.concat_tables(tables).combine_chunks()
    return PoolIndex(
        tar_paths=tar_paths,
        uids=_unpack_uids(table["uid"]),
        tar_number=np.concatenate(tar_numbers),
        **{name: table[name].to_numpy() for name in columns[1:]},
        content_hash=f"{total % 2**256:064x}",
        num_incomplete=num_incomplete,
        num_without_json=num_without_json,
    )


def _samples(path: Path) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """Group a tar's members into samples, neighbours with one key: (key, extension -> offset and length)."""
    for key, members in groupby(iter_members(path), key=lambda member: member.key):
        places: dict[str, tuple[int, int]] = {}
        for member in members:
            places.setdefault(member.extension, (member.offset, member.size))
        yield key, places


def _is_present(row: dict[str, object]) -> bool:
    return row["image_offset"] != -1 and row["text_offset"] != -1


def _image_digest(row: dict[str, object]) -> bytes:
    digest = row["image_sha256"]
    # Without an image hash, uid and length stand in: enough to see that another set of samples is there.
    return (
        digest
        if isinstance(digest, bytes)
        else hashlib.sha256(f"{row['uid']!r}{row['image_length']}".encode()).digest()
    )


def _unpack_uids(column: pa.ChunkedArray) -> np.ndarray:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], pa.binary(16))
    pairs = np.frombuffer(array.buffers()[1], dtype=">u8", offset=16 * array.offset, count=2 * len(array))
    return pairs.astype("<u8").view(UID_DTYPE)


def _tar_paths(pool_dir: Path) -> list[Path]:
    return sorted((pool_dir / "shards").glob("*.tar"))


def _index_path(pool_dir: Path, tar_path: Path) -> Path:
    return pool_dir / "index" / f"{tar_path.stem}.parquet"


def _is_indexed(pool_dir: Path, tar_path: Path) -> bool:
    path = _index_path(pool_dir, tar_path)
    if not path.exists() or path.stat().st_mtime_ns != tar_path.stat().st_mtime_ns:
        return False
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (pa.ArrowException, OSError):
        return False  # damaged, and made anew
    is_current = metadata.get(b"winnow_index_version") == str(INDEX_VERSION).encode()
    return is_current and metadata.get(b"tar_size") == str(tar_path.stat().st_size).encode()
