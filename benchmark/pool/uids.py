"""Uids: 128-bit sample ids, spelt as 32 hex characters in metadata and held as DataComp's `u8,u8` pairs."""

from __future__ import annotations

import binascii
import hashlib
import mmap
import shutil
import string
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa

from benchmark.runtime.errors import UserError
from benchmark.runtime.tables import is_family, plain_column

UID_DTYPE = np.dtype("u8,u8")  # upper and lower 64 bits, as in DataComp's subset files
BLOCK = 2**20  # uids that are looked at together
DENSE = 8  # uids held for each uid wanted, up to which reading all of them is faster than searching
MAX_HELD = 2**24  # uids that are sorted in memory, 256 MiB of them

_HEX_CHARACTERS = np.frombuffer(string.hexdigits.encode(), dtype=np.uint8)
_NEW_SHA256 = hashlib.sha256()


def parse_uids(texts: pa.Array | pa.ChunkedArray | pd.Series | list[str], where: str = "uids") -> np.ndarray:
    """Read hex uids into an array of `UID_DTYPE`, shape (n,).

    Raises ValueError naming `where`, the row and the value of the first uid that is null or is not 32 hex characters.
    """
    array = texts if isinstance(texts, pa.Array | pa.ChunkedArray) else pa.array(texts, type=pa.string())
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if len(array) == 0:  # of whatever type: writers give a column without values any
        return np.empty(0, dtype=UID_DTYPE)
    if not is_family(array.type, "text"):
        raise UserError(f"{where}: uids are {array.type}, expected strings of 32 hex characters", code="column-type")
    if not pa.types.is_string(array.type):
        array = plain_column(array, f"{where}: the column of uids", "text").cast(pa.string())
    if array.null_count:
        row = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
        raise UserError(f"{where}: the uid in row {row} is null ({array.null_count} in all)", code="uid-invalid")
    count = len(array)
    offsets = np.frombuffer(array.buffers()[1], dtype=np.int32, count=count + 1, offset=array.offset * 4)
    _refuse_malformed(np.flatnonzero(np.diff(offsets) != 32), array, where)
    characters = memoryview(array.buffers()[2])[int(offsets[0]) : int(offsets[0]) + 32 * count]
    try:
        data = binascii.unhexlify(characters)
    except binascii.Error:
        each = np.frombuffer(characters, dtype=np.uint8).reshape(count, 32)
        _refuse_malformed(np.flatnonzero(~np.isin(each, _HEX_CHARACTERS).all(axis=1)), array, where)
        raise
    return np.frombuffer(data, dtype=">u8").astype(np.uint64).view(UID_DTYPE)


def format_uids(uids: np.ndarray) -> list[str]:
    """Spell uids as 32 lower-case hex characters each."""
    return [f"{high:016x}{low:016x}" for high, low in zip(uids["f0"].tolist(), uids["f1"].tolist(), strict=True)]


def uid_order(uids: np.ndarray) -> np.ndarray:
    """Return the stable permutation that sorts uids, shape (n,)."""
    # Uids are hashes: hardly any share their upper halves, and a merge of sorted runs takes linear time.
    order = np.argsort(np.ascontiguousarray(uids["f0"]), kind="stable")
    return order if is_sorted(np.take(uids, order)) else np.lexsort((uids["f1"], uids["f0"]))


def sort_uids(uids: np.ndarray) -> np.ndarray:
    """Return the uids sorted as 128-bit numbers, repeats included."""
    return np.take(uids, uid_order(uids))


def is_sorted(uids: np.ndarray, block_size: int = BLOCK) -> bool:
    """Tell whether uids never decrease; a memory-mapped file is read in blocks, as far as the first decrease."""
    for start in range(0, len(uids) - 1, block_size):
        block = uids[start : start + block_size + 1]
        high, low = block["f0"], block["f1"]
        if not np.all((high[:-1] < high[1:]) | ((high[:-1] == high[1:]) & (low[:-1] <= low[1:]))):
            return False
        _let_go(uids)
    return True


def unique_uids(sorted_uids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct uids of a sorted array and how many times each occurs."""
    if len(sorted_uids) == 0:
        return sorted_uids, np.empty(0, dtype=np.int64)
    is_first = np.concatenate(([True], sorted_uids[1:] != sorted_uids[:-1]))
    starts = np.flatnonzero(is_first)
    return sorted_uids[starts], np.diff(np.append(starts, len(sorted_uids)))


def count_of(uids: np.ndarray, sorted_uids: np.ndarray) -> np.ndarray:
    """Return for each of `uids` how many times `sorted_uids` holds it, shape (n,), int64.

    A memory-mapped `sorted_uids` is searched where it lies, never copied whole.
    """
    first, end = runs_of(uids, sorted_uids)
    return end - first


def find_uids(uids: np.ndarray, sorted_uids: np.ndarray) -> np.ndarray:
    """Return for each of `uids` its first place in `sorted_uids`, or -1: shape (n,), int64.

    A memory-mapped `sorted_uids` is searched where it lies, never copied whole.
    """
    first, end = runs_of(uids, sorted_uids)
    return np.where(first < end, first, -1)


def runs_of(uids: np.ndarray, sorted_uids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where each uid's run in `sorted_uids` begins and ends, (n,) each; they are equal where it has none.

    A memory-mapped `sorted_uids` is searched where it lies, never copied whole.
    """
    first, end = np.empty(len(uids), dtype=np.int64), np.empty(len(uids), dtype=np.int64)
    sorted_uids = np.asarray(sorted_uids)  # of a map, the plain array: its own indexing is slow
    order = uid_order(uids)
    for start in range(0, len(uids), BLOCK):
        rows = order[start : start + BLOCK]
        first[rows], end[rows] = _runs_of_block(np.take(uids, rows), sorted_uids)
    return first, end


class UidMarks:
    """Which of a sorted, perhaps memory-mapped subset's uids have been seen; one bit of memory each."""

    def __init__(self, sorted_uids: np.ndarray, *, block_size: int = BLOCK) -> None:
        self._uids = sorted_uids
        self._block_size = block_size  # uids that are looked through at a time
        self._bits = np.zeros(-(-len(sorted_uids) // 8), dtype=np.uint8)  # of each uid's first place

    def mark(self, uids: np.ndarray) -> None:
        """Mark those of the subset's uids that occur in `uids`, which may be in any order, repeated or foreign."""
        places = find_uids(uids, self._uids)
        self.mark_places(places[places >= 0])

    def mark_places(self, places: np.ndarray) -> None:
        """Mark uids by the first places that they have in the subset."""
        np.bitwise_or.at(self._bits, places >> 3, (1 << (places & 7)).astype(np.uint8))

    def are_marked(self, places: np.ndarray) -> np.ndarray:
        """Tell which of the uids with these first places are marked: (n,) bool."""
        return (self._bits[places >> 3] >> (places & 7) & 1) == 1

    def mark_all(self, others: UidMarks) -> None:
        """Mark what is marked in others of the same subset."""
        self._bits |= others._bits

    @property
    def num_marked(self) -> int:
        """Return how many distinct uids are marked."""
        return int(np.bitwise_count(self._bits).sum(dtype=np.int64))

    @cached_property
    def num_distinct(self) -> int:
        """Return how many distinct uids the subset has."""
        return sum(len(uids) for uids, _ in walk_together([self._uids], self._block_size))

    def unmarked(self, limit: int) -> np.ndarray:
        """Return the first `limit` distinct uids that are not marked, or all where there are fewer."""
        found, num_found, end = [np.empty(0, dtype=UID_DTYPE)], 0, 0
        for uids, copies in walk_together([self._uids], self._block_size):
            if num_found >= limit:
                break
            ends = end + np.cumsum(copies[0])
            places, end = ends - copies[0], int(ends[-1])
            found.append(uids[self._bits[places >> 3] >> (places & 7) & 1 == 0][: limit - num_found])
            num_found += len(found[-1])
        return np.concatenate(found)


def walk_together(arrays: Sequence[np.ndarray], block_size: int = BLOCK) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Walk through sorted arrays in step, in memory that does not grow with them or with the copies of a uid.

    Yields the distinct uids of all arrays in rising order, (n,), n at most `block_size` (or one for each array),
    with the copies that each array holds of them, (arrays, n) int64.
    """
    size = max(1, block_size // len(arrays))
    starts = [0] * len(arrays)
    while any(start < len(array) for start, array in zip(starts, arrays, strict=True)):
        windows = [np.asarray(array[start : start + size]) for start, array in zip(starts, arrays, strict=True)]
        last = min((window[-1:] for window in windows if len(window)), key=lambda uid: uid[0].item())
        parts = []
        for each, (array, window) in enumerate(zip(arrays, windows, strict=True)):
            length = int(_bisect(last, window, 0, len(window), "right")[0])
            distinct, counts = unique_uids(window[:length])
            starts[each] += length
            if length == len(window) and _holds(array, np.array([starts[each]]), last)[0]:  # the window cut a run
                end = int(_bisect(last, array, starts[each], len(array), "right")[0])
                counts[-1] += end - starts[each]
                starts[each] = end
            parts.append((distinct, counts))
        yield _merged(parts)
        for array in arrays:
            _let_go(array)


def sorted_blocks(parts: Iterable[np.ndarray], folder: Path, *, max_held: int = MAX_HELD) -> Iterator[np.ndarray]:
    """Sort more uids than fit into memory: yield sorted blocks, each above the one before; no uid is in two of them.

    The uids may be records that have more fields behind their two halves. Up to `max_held` of them stay in memory.
    More are spilled into files in `folder`/uid-buckets, by their first byte (and its files by the next one, and so on,
    where they are larger than that), and removed at the end, however it comes; one sort at a time in a folder.
    """
    buckets_dir = folder / "uid-buckets"
    if buckets_dir.exists():  # of a sort that was killed
        shutil.rmtree(buckets_dir)
    try:
        yield from _sorted_blocks(iter(parts), buckets_dir, 0, max_held)
    finally:
        if buckets_dir.exists():
            shutil.rmtree(buckets_dir)


def _sorted_blocks(parts: Iterator[np.ndarray], buckets_dir: Path, byte: int, max_held: int) -> Iterator[np.ndarray]:
    """Sort records that share their first `byte` bytes."""
    held: list[np.ndarray] = []
    num_held = 0
    for part in parts:
        held.append(part)
        num_held += len(part)
        if num_held > max_held and byte < UID_DTYPE.itemsize:
            break
    else:
        if num_held:
            yield sort_uids(np.concatenate(held))
        return
    held_type = held[0].dtype
    buckets_dir.mkdir(parents=True)
    half, shift = f"f{byte // 8}", np.uint64(56 - byte % 8 * 8)
    with ExitStack() as stack:
        files: dict[int, BinaryIO] = {}  # by byte, of those that occur
        for part in chain((held.pop() for _ in range(len(held))), parts):
            bytes_ = (part[half] >> shift).astype(np.uint8)
            ordered = np.take(part, np.argsort(bytes_, kind="stable"))
            ends = np.cumsum(np.bincount(bytes_, minlength=256))
            for number, bucket in enumerate(np.split(ordered, ends[:-1])):
                if len(bucket):
                    if number not in files:
                        files[number] = stack.enter_context((buckets_dir / f"{number:02x}").open("wb"))
                    files[number].write(bucket.data)
    for number in sorted(files):
        path = buckets_dir / f"{number:02x}"
        inner_dir = path.with_name(f"{path.name}-buckets")
        yield from _sorted_blocks(_blocks_of(path, held_type, max_held), inner_dir, byte + 1, max_held)
        path.unlink()


def _blocks_of(path: Path, dtype: np.dtype, size: int) -> Iterator[np.ndarray]:
    with path.open("rb") as file:
        while len(block := np.fromfile(file, dtype=dtype, count=max(1, size))):
            yield block


def repeated_uids(parts: Iterable[np.ndarray], folder: Path, *, max_held: int = MAX_HELD) -> np.ndarray:
    """Return the uids that occur more than once, each once and sorted; memory and files as `sorted_blocks`."""
    repeated = [np.empty(0, dtype=UID_DTYPE)]
    for block in sorted_blocks(parts, folder, max_held=max_held):
        distinct, counts = unique_uids(block)
        repeated.append(distinct[counts > 1])
    return np.concatenate(repeated)


def fingerprint_of(uids: np.ndarray) -> int:
    """Return the sum modulo 2^256 of the sha256 of every uid's 16 big-endian bytes; order does not matter."""
    total = 0
    for start in range(0, len(uids), BLOCK):
        block = uids[start : start + BLOCK]
        data = np.stack([block["f0"], block["f1"]], axis=1).astype(">u8")
        digests = b"".join(map(_sha256_digest, data.view("V16").ravel().tolist()))
        words = np.frombuffer(digests, dtype=">u4").reshape(-1, 8).sum(axis=0, dtype=np.uint64)
        total += sum(word << 32 * place for place, word in enumerate(reversed(words.tolist())))
    return total % 2**256


def _sha256_digest(data: bytes) -> bytes:
    digest = _NEW_SHA256.copy()  # costs half of what a new one does
    digest.update(data)
    return digest.digest()


def _refuse_malformed(rows: np.ndarray, array: pa.Array, where: str) -> None:
    if len(rows):
        row = int(rows[0])
        raise UserError(
            f"{where}: the uid in row {row} is {array[row].as_py()!r}; "
            f"a uid is 32 hex characters ({len(rows)} malformed in all)",
            code="uid-invalid",
        )


def _runs_of_block(wanted: np.ndarray, held: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Do the work of `runs_of` for few uids that are sorted."""
    start = int(_bisect(wanted[:1], held, 0, len(held), "left")[0])
    window = held[start : int(_bisect(wanted[-1:], held, start, len(held), "right")[0])]
    if len(window) <= DENSE * len(wanted):
        upper = np.ascontiguousarray(window["f0"])  # numpy's own search would copy it anyway
        low, high = (np.searchsorted(upper, wanted["f0"], side) for side in ("left", "right"))
    else:
        low, high = np.zeros(len(wanted), dtype=np.int64), np.full(len(wanted), len(window))
    first = _bisect(wanted, window, low, high, "left")
    end = first + _holds(window, first, wanted)
    rows = np.flatnonzero(_holds(window, first + 1, wanted))  # few, mostly: one copy is the rule
    end[rows] = _bisect(wanted[rows], window, first[rows] + 1, high[rows], "right")
    return start + first, start + end


def _bisect(
    wanted: np.ndarray, held: np.ndarray, low: np.ndarray | int, high: np.ndarray | int, side: str
) -> np.ndarray:
    """Return the bound of each wanted uid among held[low:high], as numpy's searchsorted, which copies what it searches.

    All are searched at once, and only what is compared is read.
    """
    low, high = np.broadcast_to(low, wanted.shape), np.broadcast_to(high, wanted.shape)
    wanted_high, wanted_low = np.ascontiguousarray(wanted["f0"]), wanted["f1"]
    held_high, held_low = held["f0"], held["f1"]
    before = np.less if side == "left" else np.less_equal
    for _ in range(int((high - low).max(initial=0)).bit_length()):
        middle = (low + high) >> 1
        there = np.minimum(middle, len(held) - 1)  # that of a search that has ended may be the end
        found = held_high[there]
        is_before = found < wanted_high
        ties = np.flatnonzero(found == wanted_high)
        is_before[ties] = before(held_low[there[ties]], wanted_low[ties])
        is_before &= middle < high
        low, high = np.where(is_before, middle + 1, low), np.where(is_before, high, middle)
    return np.array(low, dtype=np.int64)


def _holds(held: np.ndarray, places: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Tell whether each wanted uid stands at its place, which may be the end."""
    if len(held) == 0:
        return np.zeros(len(places), dtype=bool)
    there = np.minimum(places, len(held) - 1)
    return (places < len(held)) & (held["f0"][there] == wanted["f0"]) & (held["f1"][there] == wanted["f1"])


def _merged(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Join distinct uids and their counts: all distinct uids, sorted, and the counts of each part, (parts, n)."""
    if len(parts) == 1:
        return parts[0][0], parts[0][1][np.newaxis]
    together = np.concatenate([distinct for distinct, _ in parts])
    order = uid_order(together)
    ordered = np.take(together, order)
    is_first = np.concatenate(([True], ordered[1:] != ordered[:-1]))
    rank = np.empty(len(together), dtype=np.int64)
    rank[order] = np.cumsum(is_first) - 1
    copies = np.zeros((len(parts), int(is_first.sum())), dtype=np.int64)
    start = 0
    for each, (distinct, counts) in enumerate(parts):
        copies[each, rank[start : start + len(distinct)]] = counts
        start += len(distinct)
    return ordered[is_first], copies


def _let_go(uids: np.ndarray) -> None:
    """Give back the memory of what has been read of a file's memory map; it is read again when needed."""
    if isinstance(uids, np.memmap) and uids.mode == "r" and isinstance(uids.base, mmap.mmap):
        uids.base.madvise(mmap.MADV_DONTNEED)
