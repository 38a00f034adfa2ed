"""Values kept row by row: what filters and signals said of a pool's rows, and what users bring as a parquet.

    signals_dir/<strategy>-<key>/strategy.json      what its values hang on: options, assets, its code
    signals_dir/<strategy>-<key>/<shard>.parquet    a row for each of the metadata shard's: value, state (a signal: uid)
    signals_dir/<strategy>-<key>/<shard>.parts/     what a run that is under way, or was killed, has of it so far
    signals_dir/my_scores.parquet                   a user's: a column `uid`, and columns that filters ask for by name;
                                                    several files with a column of one name are one signal
    signals_dir/joined/<sha256>-<column>/           the same, sorted by uid

A shard's values are of its metadata file (and .npz, and the pool's tars) as they were; others are computed anew. Any of
it may be deleted while nothing runs.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmark.pool.uids import UID_DTYPE, find_uids, format_uids, parse_uids, sorted_blocks
from benchmark.runtime.errors import NotFoundError, UserError
from benchmark.runtime.files import Json, atomic_path, digest, read_json, remove_temporary, write_json
from benchmark.runtime.locks import locked
from benchmark.runtime.names import nearest_name
from benchmark.runtime.storage import file_hash, list_files
from benchmark.runtime.tables import (
    family_of,
    is_family,
    iter_batches,
    plain_column,
    plain_type,
    read_footer,
    read_parquet,
)
from benchmark.runtime.watch import Undeclared

if TYPE_CHECKING:
    from benchmark.pool.pool import Pool

KEPT_VERSION = 1  # raised by hand when the values of an unchanged strategy change
PART_SECONDS = 20.0  # of work at most are lost by a kill
INPUTS_KEY = b"winnow_inputs"
REMEDY = "delete it, and its values are computed again"
MAX_TEXTS = 1 << 16  # different ones in a user's column of texts
JOINED_NAME = "joined"
UNDECLARED_NAME = "undeclared.json"

# States of a row; the last three are "no verdict".
NOT_ASKED, JUDGED, NO_VERDICT, ABSENT, UNDECODABLE = range(5)


@dataclass(frozen=True)
class Values:
    """One value per row, and what is known of it."""

    values: np.ndarray  # (rows,) bool, int64, float, or object for texts; anything where the state is not JUDGED
    states: np.ndarray  # (rows,) uint8

    @property
    def is_judged(self) -> np.ndarray:
        return self.states == JUDGED


@dataclass(frozen=True)
class RowValues:
    """Values of some rows of a metadata shard."""

    rows: np.ndarray  # (n,) int64, each at most once
    values: np.ndarray
    states: np.ndarray


class KeptValues:
    """The values of one strategy on one metadata shard: those that are there, and those that are being added."""

    def __init__(self, path: Path, inputs: Callable[[], str], num_rows: int) -> None:
        """Open what is there; `inputs` identifies what the values are computed from, and is asked where it matters."""
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
            asked = piece.states != NOT_ASKED
            states[piece.rows[asked]] = piece.states[asked]
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
        column = pa.array(values.values, mask=~values.is_judged)
        table = pa.table({**more, "value": column, "state": pa.array(values.states)})
        table = table.replace_schema_metadata({INPUTS_KEY: self.inputs()})
        with atomic_path(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")


def from_arrow(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column as numpy has it, with anything where it is null: (rows,) bool, int64, float or object."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type) or pa.types.is_null(column.type):
        return column.to_numpy() if len(column) else np.empty(0, dtype=object)
    filled = pc.fill_null(column, False if pa.types.is_boolean(column.type) else pa.scalar(0, column.type))
    return filled.to_numpy()


def joined_values(pieces: Sequence[RowValues], num_rows: int, *, in_order: bool = False) -> Values:
    """Put pieces where their rows stand (`in_order`: behind each other); rows of no piece are not asked.

    Raises ValueError where a piece has bools and another numbers.
    """
    kind = common_type([(piece.values.dtype, bool((piece.states == JUDGED).any())) for piece in pieces])
    values, states = np.zeros(num_rows, dtype=kind), np.zeros(num_rows, dtype=np.uint8)
    start = 0
    for piece in pieces:
        rows = np.arange(start, start + len(piece.rows)) if in_order else piece.rows
        asked = slice(None) if in_order else piece.states != NOT_ASKED
        values[rows[asked]] = piece.values[asked].astype(kind, copy=False)
        states[rows[asked]] = piece.states[asked]
        start += len(piece.rows)
    return Values(values, states)


def common_type(kinds: Sequence[tuple[np.dtype, bool]]) -> np.dtype:
    """Return the type that holds all of these, each with whether any value is judged; raises UserError for a mix.

    Whole numbers and others go together: a column of whole numbers is one of floats where some are missing.
    """
    # Without a verdict, as of rows without images, there is no type.
    typed = {kind for kind, is_judged in kinds if is_judged} or {np.dtype(bool)}
    if len({kind.kind.replace("i", "f") for kind in typed}) > 1:
        raise UserError(
            f"returned different types on different rows: {sorted(map(str, typed))}", code="strategy-result"
        )
    return np.result_type(*typed)


def begin_keeping(folder: Path, identity: dict[str, Json], *, anew: bool = False) -> bool:
    """Make a strategy's folder and say in it what its values hang on; the caller has locked it.

    Return whether there are values of an earlier run; `anew` removes them first.
    """
    remove_temporary(folder)
    if anew:
        forget_values(folder)
    if not (folder / "strategy.json").exists():
        write_json(folder / "strategy.json", identity)
    return _has_values(folder)


def end_keeping(folder: Path, *, forget: bool) -> None:
    """Remove a strategy's values where they are not to be kept, and its folder where nothing is left in it."""
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


@dataclass(frozen=True)
class UserSignal:
    """A column of a user's parquet files, which are one signal together."""

    paths: tuple[Path, ...]
    column: str
    sha256: str  # of the file; of several, of all their hashes

    def joined_path(self, pool: Pool) -> Path:
        """Return where its values are, sorted by uid."""
        return pool.signals_dir / JOINED_NAME / f"{self.sha256[:16]}-{self.column}"


def user_signal(pool: Pool, name: str, needed_by: str) -> UserSignal:
    """Find the parquet files in the signals' folder that have a column of that name: one, or one per shard.

    Raises FileNotFoundError where there is none, ValueError where one has no uids, or no values that can be read.
    """
    try:
        files = [file for file in list_files(pool.signals_dir) if file.path.suffix == ".parquet"]
    except FileNotFoundError:
        files = []
    schemas = {file: _schema_of(file.path, file.state) for file in files}
    found = [file for file, schema in schemas.items() if name in schema.names]
    if not found:
        known = sorted({each for schema in schemas.values() for each in schema.names} - {"uid"})
        raise NotFoundError(
            f"{needed_by!r} needs the signal {name!r}: no file registers one of that name, and no parquet file in "
            f"{pool.signals_dir} has a column of that name beside `uid`.{nearest_name(name, known)}",
            code="signal-not-found",
        )
    for file in found:
        names = schemas[file].names
        if "uid" not in names:
            told = f"{file.path} has no column 'uid', so its {name!r} belongs to no sample; it has {names}"
            raise UserError(told, code="column-missing")
        for each in ("uid", name):
            if names.count(each) > 1:
                raise UserError(f"{file.path} has {names.count(each)} columns {each!r}; leave one", code="column-type")
    _common_kind({file.path: schemas[file].field(name).type for file in found}, name)
    hashes = [file_hash(file.path, file.state) for file in found]
    return UserSignal(
        tuple(file.path for file in found), name, hashes[0] if len(hashes) == 1 else digest(sorted(hashes))
    )


@lru_cache(maxsize=1 << 16)
def _schema_of(path: Path, _state: str) -> pa.Schema:
    return read_footer(path).schema.to_arrow_schema()


def _common_kind(types: Mapping[Path, pa.DataType], name: str) -> np.dtype | None:
    """Return the type of a signal's values in several files, texts as whole numbers; None where none has any.

    Raises ValueError where a file holds something else than text, numbers or bools, or another kind than the others.
    """
    kinds: dict[str, tuple[Path, list[np.dtype]]] = {}
    for path, kind in types.items():
        family = "text" if is_family(kind, "text") else family_of(kind)
        if pa.types.is_null(kind):
            continue
        if family not in ("text", "number", "bool"):
            raise UserError(
                f"{path}: {name!r} holds {kind}; a signal holds numbers, bools or texts", code="column-type"
            )
        plain = pa.int64() if family == "text" or pa.types.is_integer(plain_type(kind)) else plain_type(kind)
        kinds.setdefault(family, (path, []))[1].append(np.dtype(plain.to_pandas_dtype()))
    if len(kinds) > 1:
        (first, (path, _)), (second, (other, _)) = list(kinds.items())[:2]
        raise UserError(
            f"{path} has {name!r} as {first} and {other} as {second}, and files with one name are one signal; "
            "write both alike, or rename one",
            code="signal-types",
        )
    return np.result_type(*next(iter(kinds.values()))[1]) if kinds else None


def join_user_signal(pool: Pool, signal: UserSignal) -> None:
    """Sort a user's values by uid, once, in bounded memory; raises ValueError where a uid has two rows with a value."""
    folder = signal.joined_path(pool)
    if (folder / "texts.json").exists():
        return
    with locked(folder):
        if (folder / "texts.json").exists():
            return
        remove_temporary(folder)
        texts: dict[str, int] = {}
        types = {path: read_footer(path).schema.to_arrow_schema().field(signal.column).type for path in signal.paths}
        kind = _common_kind(types, signal.column) or np.dtype(bool)
        dtype = np.dtype([("f0", "u8"), ("f1", "u8"), ("value", kind)])

        def records() -> Iterator[np.ndarray]:
            for path in signal.paths:
                for uids, column in _valued_rows(path, signal.column):
                    part = np.empty(len(uids), dtype=dtype)
                    part["f0"], part["f1"] = uids["f0"], uids["f1"]
                    part["value"] = _numbers(column, texts, path, signal.column)
                    yield part

        with atomic_path(folder / "values.bin") as temporary, temporary.open("wb") as file:
            for block in sorted_blocks(records(), folder):
                uids = np.empty(len(block), dtype=UID_DTYPE)
                uids["f0"], uids["f1"] = block["f0"], block["f1"]
                repeated = np.flatnonzero(uids[1:] == uids[:-1])
                if len(repeated):
                    raise _repeated(signal, uids[repeated[0]])
                file.write(block.data)
        write_json(folder / "texts.json", {"dtype": kind.str, "texts": list(texts)})


def _valued_rows(path: Path, name: str) -> Iterator[tuple[np.ndarray, pa.Array]]:
    """Yield the uids of a user's file and the column, of the rows that have a value, batch by batch."""
    for batch in iter_batches(path, ["uid", name]):
        family = "text" if is_family(batch[name].type, "text") else None
        values = plain_column(batch[name], f"{path}: {name!r}", None if pa.types.is_null(batch[name].type) else family)
        uids = plain_column(batch["uid"], f"{path}: the column 'uid'", "text")
        has_value = pc.is_valid(values)
        yield parse_uids(uids.filter(has_value), str(path)), values.filter(has_value)


def _repeated(signal: UserSignal, uid: np.void) -> UserError:
    """Return the error for a uid that has a value on several rows, with the files in which they are."""
    found = [path for path in signal.paths for uids, _ in _valued_rows(path, signal.column) for _ in uids[uids == uid]]
    (spelt,) = format_uids(np.array([uid], dtype=UID_DTYPE))
    if len(set(found)) == 1:
        told = f"{found[0]} names the uid {spelt} twice; keep one row of each uid"
        return UserError(told, code="uid-twice-in-signal")
    first, second = list(dict.fromkeys(found))[:2]
    return UserError(
        f"both {first} and {second} have {signal.column!r} of the uid {spelt}, and files with one name are one signal; "
        "keep one row of each uid, or rename the column of one",
        code="uid-twice-in-signal",
    )


def read_user_signal(pool: Pool, signal: UserSignal, uids: np.ndarray) -> Values:
    """Return a joined column's values of these uids; those that it lacks, or has null or NaN, have no verdict."""
    folder = signal.joined_path(pool)
    note = json.loads((folder / "texts.json").read_bytes())
    dtype = np.dtype([("f0", "u8"), ("f1", "u8"), ("value", note["dtype"])])
    if (folder / "values.bin").stat().st_size:
        held = np.asarray(np.memmap(folder / "values.bin", dtype=dtype, mode="r"))
    else:
        held = np.empty(0, dtype=dtype)
    places = find_uids(uids, held)
    values = np.zeros(len(uids), dtype=dtype["value"])
    values[places >= 0] = held["value"][places[places >= 0]]
    is_there = places >= 0
    if values.dtype.kind == "f":
        is_there &= ~np.isnan(values)
    if note["texts"]:
        values = np.array(note["texts"], dtype=object)[values]
    return Values(values, np.where(is_there, JUDGED, NO_VERDICT).astype(np.uint8))


def _numbers(column: pa.Array, texts: dict[str, int], path: Path, name: str) -> np.ndarray:
    """Return a plain column of a user's without nulls as numbers, texts as their places in `texts`, which grows."""
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        encoded = column.dictionary_encode()
        places = np.array(
            [texts.setdefault(text, len(texts)) for text in encoded.dictionary.to_pylist()], dtype=np.int64
        )
        if len(texts) > MAX_TEXTS:
            raise UserError(f"{path}: {name!r} has more than {MAX_TEXTS:,} different texts", code="too-many-texts")
        return places[encoded.indices.to_numpy()] if len(places) else np.empty(0, dtype=np.int64)
    if pa.types.is_integer(kind):
        try:
            return column.cast(pa.int64()).to_numpy()
        except pa.ArrowInvalid as error:
            told = f"{path}: {name!r} has numbers beyond 64 bits with a sign"
            raise UserError(told, code="number-too-large") from error
    return column.to_numpy(zero_copy_only=False)
