"""Reading parquet files that may be damaged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def read_parquet(path: Path, columns: Sequence[str] | None = None, remedy: str = "fetch or build it again") -> pa.Table:
    """Read columns of a parquet file, all of them where none are named.

    Raises ValueError that names the file, and the remedy, where it is damaged.
    """
    try:
        return pq.read_table(path, columns=None if columns is None else list(columns))
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged ({one_line(error)}); {remedy}") from error


def one_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its type's name."""
    return (str(error) or type(error).__name__).splitlines()[0]
