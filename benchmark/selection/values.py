"""Values of rows, and what is known of each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from benchmark.runtime.errors import UserError

# States of a row; of the last three it has no value, which is "missing".
NOT_EVALUATED, HAS_VALUE, MISSING, NO_IMAGE, UNDECODABLE = range(5)


@dataclass(frozen=True)
class Values:
    """One value per row, and what is known of it."""

    values: np.ndarray  # (rows,) bool, int64, float, or object for texts; anything where the state is not HAS_VALUE
    states: np.ndarray  # (rows,) uint8

    @property
    def has_value(self) -> np.ndarray:
        return self.states == HAS_VALUE

    def to_series(self) -> pd.Series:
        """Return values as a column of a table, null where a value is missing."""
        has_value = self.has_value
        if self.values.dtype == object:
            return pd.Series(pa.array(self.values, mask=~has_value, type=pa.string()).to_pandas(), dtype="str")
        if self.values.dtype.kind == "f":
            return pd.Series(np.where(has_value, self.values, np.array(np.nan, dtype=self.values.dtype)))
        series = pd.Series(self.values)
        return series if has_value.all() else series.convert_dtypes().mask(~has_value)


@dataclass(frozen=True)
class RowValues:
    """Values of some rows of a metadata shard."""

    rows: np.ndarray  # (n,) int64, each at most once
    values: np.ndarray
    states: np.ndarray


def from_arrow(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column as numpy has it, with anything where it is null: (rows,) bool, int64, float or object."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type) or pa.types.is_null(column.type):
        return column.to_numpy() if len(column) else np.empty(0, dtype=object)
    filled = pc.fill_null(column, False if pa.types.is_boolean(column.type) else pa.scalar(0, column.type))
    return filled.to_numpy()


def joined_values(pieces: Sequence[RowValues], num_rows: int, *, in_order: bool = False) -> Values:
    """Put pieces where their rows stand (`in_order`: behind each other); rows of no piece are not evaluated.

    Raises ValueError where a piece has bools and another numbers.
    """
    kind = common_type([(piece.values.dtype, bool((piece.states == HAS_VALUE).any())) for piece in pieces])
    values, states = np.zeros(num_rows, dtype=kind), np.zeros(num_rows, dtype=np.uint8)
    start = 0
    for piece in pieces:
        rows = np.arange(start, start + len(piece.rows)) if in_order else piece.rows
        is_known = slice(None) if in_order else piece.states != NOT_EVALUATED
        values[rows[is_known]] = piece.values[is_known].astype(kind, copy=False)
        states[rows[is_known]] = piece.states[is_known]
        start += len(piece.rows)
    return Values(values, states)


def common_type(kinds: Sequence[tuple[np.dtype, bool]]) -> np.dtype:
    """Return the type that holds all of these, each with whether any row has a value; raises UserError for a mix.

    Whole numbers and others go together: a column of whole numbers is one of floats where some are missing.
    """
    # Where all are missing, as of rows without images, there is no type.
    typed = {kind for kind, has_value in kinds if has_value} or {np.dtype(bool)}
    if len({kind.kind.replace("i", "f") for kind in typed}) > 1:
        raise UserError(
            f"returned different types on different rows: {sorted(map(str, typed))}", code="strategy-result"
        )
    return np.result_type(*typed)
