"""The pictures that training could not decode: noted as they are met, and listed with tar and key where a run stops.

`seed-N/logs/undecodable.csv` has each of them once, `undecodable.npy` their uids as a subset that can be taken out of
another; both are outside every hash.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from benchmark.pool.index import PoolIndex
from benchmark.pool.index_table import index_tables
from benchmark.pool.subset import SUBSET_NAME, write_subset
from benchmark.pool.uids import count_of, format_uids, parse_uids, sort_uids
from benchmark.runtime.files import atomic_path

LIST_NAME, SUBSET_OF_THEM = "undecodable.csv", "undecodable.npy"
COLUMNS = ("uid", "tar", "image_offset", "key")  # keys are looked up where a run stops
NAMED = 3  # in the error


class UndecodablePictures:
    """Those of one training run, this process's and those of the processes that it was killed in before."""

    def __init__(self, logs_dir: Path, index: PoolIndex, samples: np.ndarray) -> None:
        """Go on with what the folder has; `samples`: P, places in the index."""
        self.dir, self.index, self.samples = logs_dir, index, samples
        self.known: dict[tuple[str, int], tuple[str, str]] = {}  # (tar, offset) -> (uid, key or "")
        if (logs_dir / LIST_NAME).exists():
            with (logs_dir / LIST_NAME).open(newline="", encoding="utf-8") as file:
                for row in csv.reader(file):
                    if len(row) == len(COLUMNS) and row[2].isdigit():  # a kill may have cut a line off
                        self.known[row[1], int(row[2])] = row[0], row[3]

    def note(self, places: Iterable[int]) -> None:
        """Take in pictures by their places in P, in a line each; those known already change nothing."""
        lines = []
        for row in np.unique(self.samples[np.array(list(places), dtype=np.int64)]).tolist():
            tar = self.index.summary.tars[self.index.tar_number[row]].label
            place = (tar, int(self.index.image_offset[row]))
            if place not in self.known:
                (uid,) = format_uids(self.index.uids[row : row + 1])
                self.known[place] = uid, ""
                lines.append((uid, *place, ""))
        if not lines:
            return
        self.dir.mkdir(parents=True, exist_ok=True)
        is_new = not (self.dir / LIST_NAME).exists()
        with (self.dir / LIST_NAME).open("a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *lines] if is_new else lines)

    def tell(self) -> str:
        """List all of them with tar and key; return which the first are, where the rest stands and how to go on."""
        self._look_up_keys()
        ordered = sorted(self.known.items())
        with atomic_path(self.dir / LIST_NAME) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            rows = [(uid, tar, offset, key) for (tar, offset), (uid, key) in ordered]
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
        uids = np.unique(parse_uids([uid for uid, _ in self.known.values()], str(self.dir)))
        # As often as the subset may have them, so that taking them out leaves no copy.
        copies = count_of(uids, sort_uids(self.index.uids[self.samples]))
        write_subset(self.dir / SUBSET_OF_THEM, [np.repeat(uids, np.maximum(copies, 1))])
        first = ", ".join(f"{key!r} in {tar}" for (tar, _), (_, key) in ordered[:NAMED])
        subset_path = self.dir.parent.parent / SUBSET_NAME
        subset = subset_path if subset_path.exists() else "SUBSET"
        return (
            f"such as {first}; {len(ordered):,} pictures met so far are listed in {self.dir / LIST_NAME}. Fetch their "
            f"tars again, or go on without them: winnow subset minus {subset} {self.dir / SUBSET_OF_THEM} "
            "--out decodable.npy, and train on subset=decodable.npy"
        )

    def _look_up_keys(self) -> None:
        lacking = {tar for (tar, _), (_, key) in self.known.items() if not key}
        tars = [tar for tar in self.index.summary.tars if tar.label in lacking]
        if self.index.index_dir is None or not tars:
            return
        for tar, table in zip(tars, index_tables(self.index.index_dir, tars, ["key", "image_offset"]), strict=True):
            keys = dict(zip(table["image_offset"].to_pylist(), table["key"].to_pylist(), strict=True))
            for (label, offset), (uid, _) in list(self.known.items()):
                if label == tar.label:
                    self.known[label, offset] = uid, keys.get(offset, "")
