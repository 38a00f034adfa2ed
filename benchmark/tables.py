"""Reading parquet files that may be damaged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmark.errors import UserError
from benchmark.storage import is_remote, one_line, open_file, storage_errors


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
        raise UserError(f"{path} is damaged ({one_line(error)}); {remedy}") from error


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
        raise UserError(f"{path} is not a parquet file ({one_line(error)})") from error
