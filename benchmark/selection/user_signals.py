"""Signals that users bring: columns of their parquet files, looked up by uid.

signals_dir/my_scores.parquet            a column `uid`, and columns that filters name in `signals`;
                                         several files with a column of one name are one signal
signals_dir/joined/<sha256>-<column>/    the same, sorted by uid
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmark.pool.pool import Pool
from benchmark.pool.uids import UID_DTYPE, find_uids, format_uids, parse_uids, sorted_blocks
from benchmark.runtime.errors import NotFoundError, UserError
from benchmark.runtime.files import atomic_path, digest, remove_temporary, write_json
from benchmark.runtime.locks import locked
from benchmark.runtime.names import nearest_name
from benchmark.runtime.storage import file_hash, list_files
from benchmark.runtime.tables import family_of, is_family, iter_batches, plain_column, plain_type, read_footer
from benchmark.selection.values import HAS_VALUE, MISSING, Values

MAX_TEXTS = 1 << 16  # different ones in a user's column of texts
JOINED_NAME = "joined"


@dataclass(frozen=True)
class UserSignal:
    """A column of a user's parquet files, which are one signal together."""

    paths: tuple[Path, ...]
    column: str
    sha256: str  # of the file; of several, of all their hashes
    joined_dir: Path  # where its values are, sorted by uid


def find_user_signal(pool: Pool, name: str, needed_by: str) -> UserSignal:
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
            message = f"{file.path} has no column 'uid', so its {name!r} belongs to no sample; it has {names}"
            raise UserError(message, code="column-missing")
        for each in ("uid", name):
            if names.count(each) > 1:
                raise UserError(f"{file.path} has {names.count(each)} columns {each!r}; leave one", code="column-type")
    _common_kind({file.path: schemas[file].field(name).type for file in found}, name)
    hashes = [file_hash(file.path, file.state) for file in found]
    sha256 = hashes[0] if len(hashes) == 1 else digest(sorted(hashes))
    joined_dir = pool.signals_dir / JOINED_NAME / f"{sha256[:16]}-{name}"
    return UserSignal(tuple(file.path for file in found), name, sha256, joined_dir)


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


def join_user_signal(signal: UserSignal) -> None:
    """Sort a user's values by uid, once, in bounded memory; raises ValueError where a uid has two rows with a value."""
    folder = signal.joined_dir
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
        message = f"{found[0]} names the uid {spelt} twice; keep one row of each uid"
        return UserError(message, code="uid-twice-in-signal")
    first, second = list(dict.fromkeys(found))[:2]
    return UserError(
        f"both {first} and {second} have {signal.column!r} of the uid {spelt}, and files with one name are one signal; "
        "keep one row of each uid, or rename the column of one",
        code="uid-twice-in-signal",
    )


def read_user_signal(signal: UserSignal, uids: np.ndarray) -> Values:
    """Return a joined column's values of these uids; those that it lacks, or has null or NaN, are missing."""
    folder = signal.joined_dir
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
    return Values(values, np.where(is_there, HAS_VALUE, MISSING).astype(np.uint8))


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
            message = f"{path}: {name!r} has numbers beyond 64 bits with a sign"
            raise UserError(message, code="number-too-large") from error
    return column.to_numpy(zero_copy_only=False)
