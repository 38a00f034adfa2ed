"""What somebody's data is that is not in tars: parquet files with pictures inside, csv files, pictures as files."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmark.runtime.errors import one_line
from benchmark.runtime.storage import open_file

HOW_TO_TARS = 'Winnow reads pictures from tars; docs/shards.md, "To tars", has the lines that write them'
PICTURE_FILES = (".jpg", ".jpeg", ".png", ".webp")
MAX_LINE = 1 << 16  # bytes of a csv's first line


def tell_foreign(files: Iterable[Path]) -> str | None:
    """Say of the first file that is known what it is and how to get tars; None where there is none."""
    paths = list(files)
    for path in paths:
        if path.suffix.lower() == ".parquet" and (what := _tell_parquet(path)):
            return f"{what}. {HOW_TO_TARS}"
    for path in paths:
        if path.suffix.lower() in (".csv", ".tsv"):
            return f"{path} is a table of text with the columns {_columns_of(path)}, without pictures. {HOW_TO_TARS}"
    pictures = [path for path in paths if path.suffix.lower() in PICTURE_FILES]
    if pictures:
        return f"{len(pictures):,} pictures lie there as files, such as {pictures[0]}. {HOW_TO_TARS}"
    return None


def picture_columns(schema: pa.Schema) -> list[str]:
    """Return the columns that hold pictures: of bytes, or as `datasets` writes them, structs of `bytes` and `path`."""
    return [field.name for field in schema if _holds_bytes(field.type)]


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or kind == pa.binary_view())


def _tell_parquet(path: Path) -> str | None:
    try:
        with open_file(path) as file:
            schema = pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        return f"{path} is called a parquet file, and cannot be read as one ({one_line(error)})"
    names = picture_columns(schema)
    if not names:
        return None
    shape = "structs of bytes and path, as the `datasets` library writes them"
    shape = shape if pa.types.is_struct(schema.field(names[0]).type) else "bytes"
    return f"{path} holds pictures inside, in its column {names[0]!r} ({shape})"


def _columns_of(path: Path) -> str:
    with open_file(path) as file:
        line = file.read(MAX_LINE).decode("utf-8-sig", "replace").partition("\n")[0]
    names = next(csv.reader([line.rstrip("\r")], delimiter="\t" if "\t" in line else ","), [])
    return ", ".join(names[:10]) or "none"
