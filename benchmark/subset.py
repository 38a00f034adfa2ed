"""Subsets: sorted 128-bit uids, in DataComp's file format byte for byte; a uid may occur several times."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmark.stage import atomic_path, warn
from benchmark.uids import UID_DTYPE, is_sorted, sort_uids, unique_uids

NPY_MAGIC = b"\x93NUMPY"


@dataclass(frozen=True)
class Subset:
    """The chosen uids, sorted; as many copies of a uid as training should see of its sample."""

    uids: np.ndarray  # (n,) UID_DTYPE

    def __post_init__(self) -> None:
        if self.uids.dtype != UID_DTYPE or self.uids.ndim != 1:
            raise ValueError(f"a subset is a one-dimensional array of {UID_DTYPE}, not {self.uids.dtype}")

    def __len__(self) -> int:
        return len(self.uids)

    @property
    def num_distinct(self) -> int:
        """Return the number of different uids."""
        return len(unique_uids(self.uids)[0])

    @property
    def max_copies(self) -> int:
        """Return how many copies the most repeated uid has."""
        return int(unique_uids(self.uids)[1].max(initial=0))

    @classmethod
    def of(cls, uids: np.ndarray) -> Subset:
        """Make a subset of uids in any order."""
        return cls(sort_uids(uids))

    def save(self, path: Path) -> None:
        """Write `subset.npy` as DataComp's code does, atomically."""
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.save(file, self.uids)


def load_subset(path: str | Path) -> Subset:
    """Read a subset file, memory-mapped: .npy, or raw `u8,u8` pairs without a header.

    Raises FileNotFoundError or ValueError naming the file. One that is not sorted is sorted, with a warning.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no subset file {path}")
    with path.open("rb") as file:
        has_header = file.read(len(NPY_MAGIC)) == NPY_MAGIC
    try:
        if has_header:
            uids = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            uids = np.memmap(path, dtype=UID_DTYPE, mode="r")
    except ValueError as error:
        raise ValueError(f"{path} is not a subset file (.npy or raw pairs of 8-byte integers): {error}") from error
    if uids.dtype != UID_DTYPE or uids.ndim != 1:
        raise ValueError(f"{path} holds {uids.dtype} of shape {uids.shape}; a subset file holds (n,) pairs {UID_DTYPE}")
    if not is_sorted(uids):
        warn(f"{path} is not sorted, as DataComp's resharder needs it; it is read in sorted order here")
        return Subset.of(np.asarray(uids))
    return Subset(uids)
