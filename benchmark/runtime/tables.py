"""Reading parquet files of any writer: what is damaged is named, and columns come in the few types that pandas gets.

Writers spell one column in many Arrow types. Here text of any of them (large, views, dictionaries) is text; decimals
are float64; dictionaries are their values; integers, floats (halves too) and bools stay as they are, since a score is
compared in its own type. Bytes are text in CommonPool's text columns only, and bytes elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmark.runtime.errors import UserError, one_line
from benchmark.runtime.paths import is_remote
from benchmark.runtime.storage import open_file, storage_errors

# What CommonPool's columns hold, whatever the type they are written in.
COMMON_FAMILIES = {
    "uid": "text",
    "url": "text",
    "text": "text",
    "original_width": "number",
    "original_height": "number",
    "clip_b32_similarity_score": "number",
    "clip_l14_similarity_score": "number",
    "sha256": "text",
}

EMPTY_TYPES = {"text": pa.string(), "number": pa.float64()}
REMEDY = "write it as text, numbers or bools"
MAX_WHOLE = 1 << 53  # up to here float64 tells whole numbers apart

Column = TypeVar("Column", pa.Array, pa.ChunkedArray)


def read_parquet(path: Path, columns: Sequence[str] | None = None, remedy: str = "fetch or build it again") -> pa.Table:
    """Read columns of a parquet file, all of them where none are named.

    Raises ValueError that names the file, and the remedy, where it is damaged.
    """
    chosen = None if columns is None else list(columns)
    try:
        if not is_remote(path):
            return pq.read_table(path, columns=chosen)  # by name: mapped into memory
        with storage_errors(path), open_file(path) as file:
            return pq.read_table(file, columns=chosen)
    except (FileNotFoundError, PermissionError):
        raise
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is damaged ({one_line(error)}); {remedy}", code="file-damaged") from error


def iter_batches(path: Path, columns: Sequence[str], remedy: str = "write it again") -> Iterator[pa.RecordBatch]:
    """Yield columns of a local parquet file in batches of rows.

    Raises ValueError that names the file, and the remedy, where it is damaged.
    """
    try:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(columns=list(columns))
    except (FileNotFoundError, PermissionError):
        raise
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is damaged ({one_line(error)}); {remedy}", code="file-damaged") from error


def read_footer(path: Path) -> pq.FileMetaData:
    """Read what a parquet file says of itself. Raises ValueError that names the file where it is none."""
    try:
        if not is_remote(path):
            return pq.read_metadata(path)
        with storage_errors(path), open_file(path) as file:
            return pq.read_metadata(file)
    except (FileNotFoundError, PermissionError):
        raise
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a parquet file ({one_line(error)})", code="file-damaged") from error


# --- Types ---------------------------------------------------------------------------------------------------------


def family_of(kind: pa.DataType) -> str:
    """Return what a type holds, however written: text, number, bool, bytes, null, list of ..., or its own name."""
    if isinstance(kind, pa.BaseExtensionType) and family_of(kind.storage_type) == "text":
        return "text"  # such as JSON's
    if pa.types.is_dictionary(kind):
        return family_of(kind.value_type)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "text"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number"
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return "bytes"
    if pa.types.is_boolean(kind) or pa.types.is_null(kind):
        return str(kind)
    if _is_list(kind):
        return f"list of {family_of(kind.value_type)}"
    return str(kind)


def is_family(kind: pa.DataType, family: str | None) -> bool:
    """Tell whether a column of a type can be read as text or numbers; None asks for nothing, and nulls are anything."""
    found = family_of(kind)
    return family is None or found in (family, "null") or (family == "text" and found == "bytes")


def plain_type(kind: pa.DataType, family: str | None = None) -> pa.DataType:
    """Return the type in which a column is read: one that pandas takes and that can be filtered.

    `family`: what the column is to hold, where that is known; bytes are text where it is text.
    """
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type, family)
    if isinstance(kind, pa.BaseExtensionType) and family_of(kind) == "text":
        return plain_type(kind.storage_type, family)
    if pa.types.is_decimal(kind):
        return pa.float64()
    if family == "text" and family_of(kind) == "bytes":
        return pa.large_string()
    return _without_views(kind)


def plain_column(column: Column, where: str, family: str | None = None) -> Column:
    """Return a column in its `plain_type`, its values the same; decimals become the nearest float64.

    Raises ValueError that begins with `where` (file and column) and names the type where it cannot be had, or does not
    hold what `family` says.
    """
    kind = column.type
    if family is not None and column.null_count == len(column):  # writers give a column without values any type
        kind = EMPTY_TYPES[family]
        nulls = pa.nulls(len(column), kind)
        return pa.chunked_array([nulls]) if isinstance(column, pa.ChunkedArray) else nulls
    if not is_family(kind, family):
        raise wrong_type(where, kind, family)
    wanted = plain_type(kind, family)
    try:
        if kind != wanted and isinstance(column, pa.ChunkedArray):
            column = pa.chunked_array([_converted(chunk, wanted) for chunk in column.chunks], wanted)
        elif kind != wanted:
            column = _converted(column, wanted)
        if family_of(wanted) == "text":
            column.validate(full=True)  # no reader looks whether it is UTF-8, and a filter would stumble over it
    except pa.ArrowException as error:
        row = _row_without_text(column)
        if row is not None:
            what = f"{where} has bytes in row {row} that are not UTF-8; write it as text"
            raise UserError(what, code="column-type") from error
        raise UserError(
            f"{where} is {kind}, which cannot be read as {wanted} ({one_line(error)}); {REMEDY}", code="column-type"
        ) from error
    return column


def wrong_type(where: str, kind: pa.DataType, family: str | None) -> UserError:
    """Return the error for a column whose type is not what it should hold."""
    wanted = {"text": "text", "number": "numbers"}.get(family or "", family)
    return UserError(f"{where} is {kind}, where {wanted} should be; write it as {wanted}", code="column-type")


def column_problem(footer: pq.FileMetaData, name: str) -> str | None:
    """Say why rules cannot read a column that a metadata file has, from its footer only; None where they can."""
    schema = footer.schema.to_arrow_schema()
    count = schema.names.count(name)
    if count > 1:
        return f"there are {count} columns {name!r}; leave one of them"
    kind, family = schema.field(name).type, COMMON_FAMILIES.get(name)
    if is_family(kind, family) or _num_nulls(footer, name) == footer.num_rows:
        return None
    return str(wrong_type(f"the column {name!r}", kind, family))


def _num_nulls(footer: pq.FileMetaData, name: str) -> int:
    """Return how many rows a plain column lacks, as far as the footer says."""
    total = 0
    for group in range(footer.num_row_groups):
        for number in range(footer.num_columns):
            chunk = footer.row_group(group).column(number)
            if chunk.path_in_schema == name and chunk.is_stats_set and chunk.statistics.has_null_count:
                total += chunk.statistics.null_count
    return total


def plain_frame(table: pa.Table, path: Path) -> pd.DataFrame:
    """Return the columns of a metadata file with pandas' default types and rows counted from 0, whoever wrote them.

    Raises ValueError that names file, column and type where that cannot be.
    """
    columns = {
        name: plain_column(table[name], f"{path}: the column {name!r}", COMMON_FAMILIES.get(name))
        for name in table.column_names
    }
    for name, column in columns.items():
        _refuse_rounded(column, f"{path}: the column {name!r}")
    try:
        # What pandas notes of its index and types would give one pool's columns other rows or types than another's.
        return pa.table(columns).to_pandas(ignore_metadata=True)
    except pa.ArrowException:
        for name, column in columns.items():
            try:
                column.to_pandas()
            except pa.ArrowException as error:
                what = f"{path}: the column {name!r} is {column.type}, which pandas cannot hold ({one_line(error)})"
                raise UserError(f"{what}; {REMEDY}", code="column-type") from error
        raise


def _refuse_rounded(column: pa.ChunkedArray, where: str) -> None:
    """Raise UserError for whole numbers that pandas would round: those with gaps become float64."""
    if not pa.types.is_integer(column.type) or column.type.bit_width < 64 or not column.null_count:
        return
    ends = pc.min_max(column)
    found = max((ends["min"].as_py() or 0, ends["max"].as_py() or 0), key=abs)
    if abs(found) > MAX_WHOLE:
        raise UserError(
            f"{where} has missing values and whole numbers such as {found}; with gaps they are read as float64, which "
            "rounds what is beyond 2^53: write it as text, or without gaps",
            code="column-type",
        )


def without_views(table: pa.Table) -> pa.Table:
    """Return a table with every view (of text, bytes or lists) as what it shows: Arrow cannot filter rows of views."""
    schema = without_view_types(table.schema)
    return table if schema.equals(table.schema) else table.cast(schema)


def without_view_types(schema: pa.Schema) -> pa.Schema:
    """Return the columns of a table `without_views`."""
    fields = [field.with_type(_without_views(field.type)) for field in schema]
    return pa.schema(fields, metadata=schema.metadata)


def _without_views(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary_view(kind):
        return pa.large_binary()
    if _is_list(kind):
        inner = _without_views(kind.value_type)
        if inner != kind.value_type:
            field = kind.value_field.with_type(inner)
            if pa.types.is_fixed_size_list(kind):
                return pa.list_(field, kind.list_size)
            return pa.list_(field) if pa.types.is_list(kind) else pa.large_list(field)
    return kind


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
        or pa.types.is_list_view(kind)
        or pa.types.is_large_list_view(kind)
    )


def _converted(array: pa.Array, wanted: pa.DataType) -> pa.Array:
    if isinstance(array, pa.ExtensionArray):
        return _converted(array.storage, wanted)
    if isinstance(array, pa.DictionaryArray):
        return _converted(array.dictionary, wanted).take(array.indices)
    if array.type == wanted:
        return array
    return pc.cast(array, wanted)


def _row_without_text(column: Column) -> int | None:
    """Return the first row whose bytes are no UTF-8, None where there is none."""
    for row, value in enumerate(column):
        try:
            found = value.as_py()
            if isinstance(found, bytes):
                found.decode()
        except UnicodeDecodeError:
            return row
    return None
