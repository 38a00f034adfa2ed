"""Subsets: sorted 128-bit uids, in DataComp's file format byte for byte; a uid may occur several times."""

from __future__ import annotations

import math
import string
from collections.abc import Iterable
from dataclasses import dataclass
from os import SEEK_END
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from benchmark.pool.uids import (
    BLOCK,
    UID_DTYPE,
    format_uids,
    is_sorted,
    parse_uids,
    sort_uids,
    unique_uids,
    walk_together,
)
from benchmark.runtime.console import warn
from benchmark.runtime.errors import NotFoundError, UserError, one_line
from benchmark.runtime.files import atomic_path
from benchmark.runtime.records import read_record
from benchmark.runtime.tables import read_footer, read_parquet

if TYPE_CHECKING:
    import pandas as pd

NPY_MAGIC = b"\x93NUMPY"
PARQUET_MAGIC = b"PAR1"  # at both ends
OTHER_FORMATS = {  # by their first bytes
    b"PK\x03\x04": "a zip archive (as .npz is)",
    b"\x1f\x8b\x08\x00": "compressed by gzip",
    b"\x1f\x8b\x08\x08": "compressed by gzip",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"ARROW1": "an Arrow file",
    b"\x80\x04\x95": "a pickle, which is never read",
    b"\x80\x05\x95": "a pickle, which is never read",
    b"\x89HDF": "an HDF5 file",
}
TEXT_BYTES = string.printable.encode()
SNIFFED = 4096  # bytes at the beginning that tell text from numbers
SUBSET_NAME = "subset.npy"
SUBSET_RECORD_NAME = "subset.json"  # beside an experiment's subset


@dataclass(frozen=True)
class Subset:
    """The chosen uids, sorted; as many copies of a uid as training should see of its sample."""

    uids: np.ndarray  # (n,) UID_DTYPE

    def __post_init__(self) -> None:
        if self.uids.dtype != UID_DTYPE or self.uids.ndim != 1:
            raise UserError(
                f"a subset is a one-dimensional array of {UID_DTYPE}, not {self.uids.dtype}", code="subset-invalid"
            )

    def __len__(self) -> int:
        return len(self.uids)

    @property
    def num_distinct(self) -> int:
        """Return the number of different uids."""
        return sum(len(uids) for uids, _ in walk_together([self.uids]))

    @property
    def max_copies(self) -> int:
        """Return how many copies the most repeated uid has."""
        return max((int(copies.max()) for _, copies in walk_together([self.uids])), default=0)

    @classmethod
    def of(cls, uids: np.ndarray) -> Subset:
        """Make a subset of uids in any order."""
        return cls(sort_uids(uids))

    def write(self, path: str | Path) -> None:
        """Write the subset file (.npy, sorted pairs of dtype 'u8,u8') as DataComp's code does, atomically."""
        write_subset(Path(path), (self.uids[start : start + BLOCK] for start in range(0, len(self), BLOCK)))

    def to_series(self) -> pd.Series:
        """Return the number of copies (int64, named `copies`) by uid: 32 hex digits, sorted, each once.

        >>> subset.to_series().head(2)
        uid
        00003a2c5e6e45a8a9b7b9d1e6a1f0c4    1
        0000d6d3f2b94a1c8f0e7a55c3b1e2d9    2
        Name: copies, dtype: int64
        """
        import pandas as pd

        uids, copies = unique_uids(np.asarray(self.uids))
        index = pd.Index(format_uids(uids), dtype="str", name="uid")
        return pd.Series(copies, index=index, name="copies", dtype=np.int64)


def write_subset(path: Path, blocks: Iterable[np.ndarray]) -> int:
    """Write sorted blocks of uids as one subset file, atomically; return how many uids it has.

    The bytes are those of `np.save` of all blocks together. Raises ValueError where uids go backwards.
    """
    count, last = 0, np.empty(0, dtype=UID_DTYPE)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        _write_header(file, 0)
        for block in blocks:
            if not is_sorted(np.concatenate([last, block[:1]])) or not is_sorted(block):
                raise UserError(
                    f"the uids for {path} go backwards after {count:,}; a subset file is sorted", code="subset-invalid"
                )
            file.write(np.ascontiguousarray(block).data)
            count += len(block)
            last = np.array(block[-1:] if len(block) else last)
        file.seek(0)
        _write_header(file, count)
    return count


def load_subset(path: str | Path, *, known_sorted: bool = False) -> Subset:
    """Read a subset file, memory-mapped: .npy, or raw `u8,u8` pairs without a header; or a parquet's column `uid`.

    Of a parquet every row is a copy, and it is held in memory. Raises FileNotFoundError or ValueError naming the file.
    One that is not sorted is sorted, with a warning; `known_sorted` spares one of our own the pass that finds out.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"there is no subset file {path}", code="subset-not-found")
    with path.open("rb") as file:
        beginning = file.read(SNIFFED)
        if beginning.startswith(PARQUET_MAGIC) and _ends_with(file, PARQUET_MAGIC):
            return Subset.of(_uids_of_parquet(path))
        has_header = beginning.startswith(NPY_MAGIC)
        if not has_header:
            _refuse_other_format(path, beginning)
        count = _count_of_npy(path, file) if has_header else _count_of_raw(path)
        start = file.tell() if has_header else 0
    if count == 0:
        return Subset(np.empty(0, dtype=UID_DTYPE))
    uids = np.memmap(path, dtype=UID_DTYPE, mode="r", offset=start, shape=(count,))
    if not known_sorted and not is_sorted(uids):
        warn(f"{path} is not sorted, as DataComp's resharder needs it; it is read in sorted order here")
        return Subset.of(np.asarray(uids))
    return Subset(uids)


def is_reference_subset(path: Path) -> bool:
    """Tell whether a subset file lies in an experiment that is marked as a reference."""
    record = read_record(path.with_name(SUBSET_RECORD_NAME))
    return record is not None and record.stage == "filter" and bool(record.result["reference"])


def _write_header(file: BinaryIO, count: int) -> None:
    """Write the header of a .npy file, of 128 bytes whatever the count."""
    descr = np.lib.format.dtype_to_descr(UID_DTYPE)
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": (count,)})
    assert file.tell() == 128


def _ends_with(file: BinaryIO, ending: bytes) -> bool:
    file.seek(-len(ending), SEEK_END)
    return file.read() == ending


def _uids_of_parquet(path: Path) -> np.ndarray:
    """Read the column `uid` of a parquet file, in its order: (rows,)."""
    names = read_footer(path).schema.to_arrow_schema().names
    if names.count("uid") != 1:
        found = "no column" if "uid" not in names else f"{names.count('uid')} columns"
        what = f"{path} is a parquet file with {found} 'uid', where one names the samples"
        raise UserError(f"{what}; it has {names}", code="column-missing")
    return parse_uids(read_parquet(path, ["uid"], "write it again")["uid"], str(path))


def _refuse_other_format(path: Path, beginning: bytes) -> None:
    """Raise ValueError where a file is of a known format: raw pairs of random numbers do not look like one."""
    found = next((name for magic, name in OTHER_FORMATS.items() if beginning.startswith(magic)), None)
    if found is None and len(beginning) >= UID_DTYPE.itemsize and not beginning.translate(None, TEXT_BYTES):
        found = "a text file"
    if found is not None:
        raise UserError(
            f"{path} is not a subset file, but {found}; a subset is .npy (pairs of dtype 'u8,u8', as `winnow filter` "
            "and DataComp write), the same pairs without a header, or .parquet with a column 'uid'",
            code="subset-invalid",
        )


def _count_of_npy(path: Path, file: BinaryIO) -> int:
    """Check a .npy file and return how many uids it has; `file` is left where they begin."""
    file.seek(0)
    try:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
    except (ValueError, SyntaxError, TokenError) as error:  # numpy lets all three through
        raise UserError(
            f"{path} begins like a .npy file, but its header is damaged ({one_line(error)}); make or fetch it again",
            code="subset-invalid",
        ) from error
    if dtype.hasobject:
        raise UserError(
            f"{path} holds pickled objects, which are never read; save pairs of dtype 'u8,u8'", code="subset-invalid"
        )
    if dtype != UID_DTYPE or len(shape) != 1:
        other_order = dtype.newbyteorder() == UID_DTYPE
        raise UserError(
            f"{path} holds {dtype} of shape {shape}{', in the other byte order' if other_order else ''}; "
            f"a subset file holds (n,) pairs {UID_DTYPE}",
            code="subset-invalid",
        )
    size, expected = path.stat().st_size - file.tell(), math.prod(shape) * UID_DTYPE.itemsize
    if size != expected:
        raise UserError(
            f"{path} {'is cut short' if size < expected else 'has bytes after its end'}: its header says {shape[0]:,} "
            f"uids, that is {expected:,} bytes, and {size:,} bytes follow; make or fetch it again",
            code="subset-invalid",
        )
    return int(shape[0])


def _count_of_raw(path: Path) -> int:
    size = path.stat().st_size
    if size == 0:
        raise UserError(
            f"{path} is an empty file; even a subset without uids has the header of a .npy file", code="subset-invalid"
        )
    if size % UID_DTYPE.itemsize:
        raise UserError(
            f"{path} is not a subset file: neither .npy nor raw pairs of 8-byte integers, "
            f"as its {size:,} bytes are not a multiple of {UID_DTYPE.itemsize}",
            code="subset-invalid",
        )
    return size // UID_DTYPE.itemsize
