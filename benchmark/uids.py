"""Uids: 128-bit sample ids, spelt as 32 hex characters in metadata and held as DataComp's `u8,u8` pairs."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd
import pyarrow as pa

UID_DTYPE = np.dtype("u8,u8")  # upper and lower 64 bits, as in DataComp's subset files

_HEX_VALUE = np.full(256, 255, dtype=np.uint8)
for _value, _characters in enumerate(zip("0123456789abcdef", "0123456789ABCDEF", strict=True)):
    for _character in _characters:
        _HEX_VALUE[ord(_character)] = _value
_SHIFTS = np.arange(60, -1, -4, dtype=np.uint64)


def parse_uids(texts: pa.Array | pa.ChunkedArray | pd.Series | list[str], where: str = "uids") -> np.ndarray:
    """Read hex uids into an array of `UID_DTYPE`, shape (n,).

    Raises ValueError naming `where`, the row and the value of the first uid that is null or is not 32 hex characters.
    """
    array = texts if isinstance(texts, pa.Array | pa.ChunkedArray) else pa.array(texts, type=pa.string())
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if len(array) == 0:  # of whatever type: writers give a column without values any
        return np.empty(0, dtype=UID_DTYPE)
    if not pa.types.is_string(array.type):
        if not (pa.types.is_large_string(array.type) or pa.types.is_string_view(array.type)):
            raise ValueError(f"{where}: uids are {array.type}, expected strings of 32 hex characters")
        array = array.cast(pa.string())
    if array.null_count:
        row = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(f"{where}: the uid in row {row} is null ({array.null_count} in all)")
    count = len(array)
    offsets = np.frombuffer(array.buffers()[1], dtype=np.int32, count=count + 1, offset=array.offset * 4)
    _refuse_malformed(np.flatnonzero(np.diff(offsets) != 32), array, where)
    characters = np.frombuffer(array.buffers()[2], dtype=np.uint8, count=32 * count, offset=int(offsets[0]))
    nibbles = _HEX_VALUE[characters].reshape(count, 2, 16)
    _refuse_malformed(np.flatnonzero((nibbles == 255).any(axis=(1, 2))), array, where)
    halves = np.bitwise_or.reduce(nibbles.astype(np.uint64) << _SHIFTS, axis=2)  # (n, 2)
    return np.ascontiguousarray(halves).view(UID_DTYPE).reshape(count)


def format_uids(uids: np.ndarray) -> list[str]:
    """Spell uids as 32 lower-case hex characters each."""
    return [f"{high:016x}{low:016x}" for high, low in zip(uids["f0"].tolist(), uids["f1"].tolist(), strict=True)]


def uid_order(uids: np.ndarray) -> np.ndarray:
    """Return the stable permutation that sorts uids, shape (n,)."""
    return np.lexsort((uids["f1"], uids["f0"]))


def sort_uids(uids: np.ndarray) -> np.ndarray:
    """Return the uids sorted as 128-bit numbers, repeats kept."""
    return uids[uid_order(uids)]


def is_sorted(uids: np.ndarray) -> bool:
    """Tell whether uids never decrease."""
    high, low = uids["f0"], uids["f1"]
    return bool(np.all((high[:-1] < high[1:]) | ((high[:-1] == high[1:]) & (low[:-1] <= low[1:]))))


def unique_uids(sorted_uids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct uids of a sorted array and how many times each occurs."""
    if len(sorted_uids) == 0:
        return sorted_uids, np.empty(0, dtype=np.int64)
    is_first = np.concatenate(([True], sorted_uids[1:] != sorted_uids[:-1]))
    starts = np.flatnonzero(is_first)
    return sorted_uids[starts], np.diff(np.append(starts, len(sorted_uids)))


def count_of(uids: np.ndarray, sorted_uids: np.ndarray) -> np.ndarray:
    """Return for each of `uids` how many times `sorted_uids` holds it, shape (n,), int64."""
    distinct, counts = unique_uids(sorted_uids)
    result = np.zeros(len(uids), dtype=np.int64)
    if len(distinct) == 0 or len(uids) == 0:
        return result
    # Dense ranks stand in for 128-bit comparison, which numpy's searchsorted does slowly on pairs.
    together = np.concatenate([distinct, uids])
    order = uid_order(together)
    ordered = together[order]
    rank = np.empty(len(together), dtype=np.int64)
    rank[order] = np.cumsum(np.concatenate(([False], ordered[1:] != ordered[:-1])))
    count_of_rank = np.zeros(int(rank.max()) + 1, dtype=np.int64)
    count_of_rank[rank[: len(distinct)]] = counts
    return count_of_rank[rank[len(distinct) :]]


def find_uids(uids: np.ndarray, sorted_uids: np.ndarray) -> np.ndarray:
    """Return for each of `uids` its first place in `sorted_uids`, or -1: shape (n,), int64."""
    high, low = np.ascontiguousarray(sorted_uids["f0"]), np.ascontiguousarray(sorted_uids["f1"])
    first, end = (np.searchsorted(high, uids["f0"], side) for side in ("left", "right"))
    # Distinct upper halves are the rule; among uids that share one, the lower half is searched.
    for row in np.flatnonzero(end - first > 1):
        first[row] += np.searchsorted(low[first[row] : end[row]], uids["f1"][row])
    places = np.full(len(uids), -1, dtype=np.int64)
    candidates = np.flatnonzero(first < end)
    is_found = low[first[candidates]] == uids["f1"][candidates]
    places[candidates[is_found]] = first[candidates[is_found]]
    return places


def fingerprint_of(uids: np.ndarray) -> int:
    """Return the sum modulo 2^256 of the sha256 of every uid's 16 big-endian bytes; order does not matter."""
    data = np.stack([uids["f0"], uids["f1"]], axis=1).astype(">u8").tobytes()
    total = sum(int.from_bytes(hashlib.sha256(data[start : start + 16]).digest()) for start in range(0, len(data), 16))
    return total % 2**256


def _refuse_malformed(rows: np.ndarray, array: pa.Array, where: str) -> None:
    if len(rows):
        row = int(rows[0])
        raise ValueError(
            f"{where}: the uid in row {row} is {array[row].as_py()!r}; "
            f"a uid is 32 hex characters ({len(rows)} malformed in all)"
        )
