"""An index file, one parquet per tar: its columns, and how they are read.

Columns: `uid` (16 bytes, big endian), `key`, and for image, text and json the offset and length in bytes of the
member's data in the tar (-1 where the sample has none); `image_extension`; `image_sha256` (32 bytes: the JSON's
`sha256`, else the hash of the bytes where they were read, else null); `others`, the members beside these. Rows stand
in tar order. Names of tars and rows together are the pool's order. The footer holds the tar's counts and its damage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic_core import from_json

from benchmark.pool.shards import Tar
from benchmark.pool.uids import UID_DTYPE
from benchmark.runtime.errors import UserError, one_line

INDEX_VERSION = 2
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


def caption_of(data: bytes, caption_field: str | None) -> bytes:
    """Return a caption's bytes from what stands at its place: itself, or a JSON that has it in a field."""
    return data if caption_field is None else str(from_json(data)[caption_field]).encode()


def is_utf8(data: bytes) -> bool:
    """Tell whether a caption's bytes are text."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


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


def index_path(index_dir: Path, tar: Tar) -> Path:
    """Return where a tar's index is written."""
    return index_dir / f"{tar.stem}.parquet"


def knows_all_images(path: Path) -> bool:
    """Tell whether a tar's index names the hash of every image; it says so in its statistics."""
    footer = pq.read_metadata(path)
    number = footer.schema.names.index("image_sha256")
    statistics = [footer.row_group(group).column(number).statistics for group in range(footer.num_row_groups)]
    return all(each is not None and each.null_count == 0 for each in statistics)
