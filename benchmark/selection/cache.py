"""The cache of values, row by row: what filters and signals returned for a pool's rows.

    signals_dir/<strategy>-<key>/strategy.json      what its values depend on: options, assets, its code
    signals_dir/<strategy>-<key>/<shard>.parquet    a row for each of the metadata shard's: value, state (a signal: uid)
    signals_dir/<strategy>-<key>/<shard>.parts/     what a run that is under way, or was killed, has of it so far

A shard's values are of its metadata file (and .npz, and the pool's tars) as they were; others are computed anew. Any of
it may be deleted while nothing runs.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmark.runtime.errors import UserError
from benchmark.runtime.files import Json, atomic_path, read_json, remove_temporary, write_json
from benchmark.runtime.tables import (
    read_footer,
    read_parquet,
)
from benchmark.runtime.watch import Undeclared
from benchmark.selection.values import NOT_EVALUATED, RowValues, Values, from_arrow, joined_values

CACHE_VERSION = 1  # raised by hand when the values of an unchanged strategy change
PART_SECONDS = 20.0  # of work at most are lost by a kill
INPUTS_KEY = b"winnow_inputs"
REMEDY = "delete it, and its values are computed again"
UNDECLARED_NAME = "undeclared.json"


class CachedValues:
    """The values of one strategy on one metadata shard: those that are there, and those that are being added."""

    def __init__(self, path: Path, inputs: Callable[[], str], num_rows: int) -> None:
        """Open what is there; `inputs` identifies what the values are computed from, and is called where it matters."""
        self.path = path
        self.inputs = inputs
        self.num_rows = num_rows
        self.parts_dir = path.with_suffix(".parts")
        self._pieces: list[RowValues] = []
        self._num_saved = 0  # pieces that are in parts already
        self._saved_at = time.monotonic()
        if path.exists() and (found := self._read(path)) is not None:
            self._pieces.append(RowValues(np.arange(num_rows), *found))
        self._is_whole = bool(self._pieces)  # the file holds all there is
        for part in sorted(self.parts_dir.glob("*.parquet")):
            if (found := self._read(part)) is None:
                continue  # it goes with the others when the file is written
            rows = read_parquet(part, ["row"], REMEDY)["row"].to_numpy()
            self._pieces.append(RowValues(rows, *found))
            self._is_whole = False
        self._num_saved = len(self._pieces)

    def states(self) -> np.ndarray:
        """Return what is known of every row: (rows,) uint8."""
        states = np.zeros(self.num_rows, dtype=np.uint8)
        for piece in self._pieces:
            is_known = piece.states != NOT_EVALUATED
            states[piece.rows[is_known]] = piece.states[is_known]
        return states

    def add(self, piece: RowValues) -> None:
        """Take values in; now and then they are saved, so that a kill loses little."""
        self._pieces.append(piece)
        self._is_whole = False
        if time.monotonic() - self._saved_at >= PART_SECONDS:
            self.save_part()

    def save_part(self) -> None:
        """Save what was added since the last time."""
        fresh = self._pieces[self._num_saved :]
        if fresh:
            joined = joined_values(fresh, sum(len(piece.rows) for piece in fresh), in_order=True)
            rows = pa.array(np.concatenate([piece.rows for piece in fresh]))
            number = 1 + max((int(part.stem) for part in self.parts_dir.glob("*.parquet")), default=0)
            self._write(self.parts_dir / f"{number:06d}.parquet", joined, {"row": rows})
            self._num_saved = len(self._pieces)
        self._saved_at = time.monotonic()

    def values(self) -> Values:
        """Return all rows' values; raises ValueError where they are of different kinds."""
        return joined_values(self._pieces, self.num_rows)

    def finish(self, values: Values, uids: pa.ChunkedArray | None = None) -> None:
        """Write all rows' values as one file, with the uids where they are given, and remove the parts."""
        if not self._is_whole:
            self._write(self.path, values, {} if uids is None else {"uid": uids})
        self.forget_parts()

    def forget_parts(self) -> None:
        """Remove the parts."""
        if self.parts_dir.exists():
            shutil.rmtree(self.parts_dir)

    def _read(self, path: Path) -> tuple[np.ndarray, np.ndarray] | None:
        """Return values and states, or None where they are of other inputs."""
        try:
            footer = read_footer(path)
        except ValueError as error:
            raise UserError(f"{error}; {REMEDY}", code="signals-changed") from error
        if (footer.metadata or {}).get(INPUTS_KEY) != self.inputs().encode():
            return None
        table = read_parquet(path, ["value", "state"], REMEDY)
        return from_arrow(table["value"]), table["state"].to_numpy()

    def _write(self, path: Path, values: Values, more: dict[str, pa.Array]) -> None:
        column = pa.array(values.values, mask=~values.has_value)
        table = pa.table({**more, "value": column, "state": pa.array(values.states)})
        table = table.replace_schema_metadata({INPUTS_KEY: self.inputs()})
        with atomic_path(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")


def begin_caching(folder: Path, identity: dict[str, Json], *, anew: bool = False) -> bool:
    """Make a strategy's folder and say in it what its values depend on; the caller has locked it.

    Return whether there are values of an earlier run; `anew` removes them first.
    """
    remove_temporary(folder)
    if anew:
        forget_values(folder)
    if not (folder / "strategy.json").exists():
        write_json(folder / "strategy.json", identity)
    return _has_values(folder)


def end_caching(folder: Path, *, forget: bool) -> None:
    """Remove a strategy's values where they are not to be cached, and its folder where nothing is left in it."""
    if forget:
        forget_values(folder)
    if not _has_values(folder) and not (folder / UNDECLARED_NAME).exists():
        shutil.rmtree(folder, ignore_errors=True)


def forget_values(folder: Path) -> None:
    """Remove every value of a strategy."""
    for path in folder.glob("*.par*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _has_values(folder: Path) -> bool:
    return any(folder.glob("*.par*"))


def write_undeclared(folder: Path, inputs: Sequence[Undeclared]) -> None:
    """Say in a strategy's folder what it was seen to read without declaring it: no later run is to trust its values."""
    write_json(folder / UNDECLARED_NAME, [[each.kind, each.name] for each in inputs])


def read_undeclared(folder: Path) -> list[Undeclared]:
    """Return what a strategy was seen to read in some process, as `write_undeclared` said."""
    path = folder / UNDECLARED_NAME
    return [Undeclared(*each) for each in read_json(path)] if path.exists() else []


# --- What users bring ----------------------------------------------------------------------------------------------
