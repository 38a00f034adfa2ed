"""Subset files combined and compared: multisets of uids, walked through in step, in memory that files do not grow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from benchmark.pool.subset import Subset, is_reference_subset, load_subset, write_subset
from benchmark.pool.uids import BLOCK, format_uids, walk_together
from benchmark.runtime.console import warn
from benchmark.runtime.errors import UserError
from benchmark.runtime.files import sha256_of


def least_copies(copies: np.ndarray) -> np.ndarray:
    """Keep of each uid the least copies that any subset has of it: none, where one lacks it."""
    return copies.min(axis=0)


def most_copies(copies: np.ndarray) -> np.ndarray:
    """Keep of each uid the most copies that any subset has of it."""
    return copies.max(axis=0)


def copies_less(copies: np.ndarray) -> np.ndarray:
    """Keep the first subset's copies of each uid less those of all others, and never below 0."""
    return np.maximum(copies[0] - copies[1:].sum(axis=0), 0)


def copies_restricted(copies: np.ndarray) -> np.ndarray:
    """Keep all copies that the first subset has of a uid, for uids that every other subset has at all."""
    return np.where((copies[1:] > 0).all(axis=0), copies[0], 0)


# Each takes the copies that the subsets have of some uids, (subsets, n), and returns those of the result, (n,).
OPERATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "and": least_copies,
    "or": most_copies,
    "minus": copies_less,
    "restrict": copies_restricted,
}


@dataclass(frozen=True)
class Overlap:
    """What some subsets share, copies counted."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    shared: int  # sum over uids of the least copies
    largest: int  # sum over uids of the most copies
    shared_uids: int  # that all subsets have
    uids: int  # that any subset has

    @property
    def jaccard(self) -> float | None:
        """Return the Jaccard index of copies, shared / largest; None where all subsets are empty."""
        return self.shared / self.largest if self.largest else None

    @property
    def uid_jaccard(self) -> float | None:
        """Return the Jaccard index of uids, each counted once, as a report gives it; None where all are empty."""
        return self.shared_uids / self.uids if self.uids else None


def combined(operation: str, subsets: Sequence[np.ndarray], block_size: int = BLOCK) -> Iterator[np.ndarray]:
    """Apply one of OPERATIONS to sorted uids; yield the result's, sorted, in blocks of at most `block_size`."""
    for uids, copies in walk_together(subsets, block_size):
        ends = np.cumsum(OPERATIONS[operation](copies))
        for start in range(0, int(ends[-1]), block_size):
            places = np.arange(start, min(start + block_size, int(ends[-1])))
            yield np.take(uids, np.searchsorted(ends, places, side="right"))


def overlaps_of(names: Sequence[str], subsets: Sequence[np.ndarray], block_size: int = BLOCK) -> list[Overlap]:
    """Compare every two of some subsets, and last all of them where they are more than two."""
    groups: list[tuple[int, ...]] = list(combinations(range(len(subsets)), 2))
    groups += [tuple(range(len(subsets)))] if len(subsets) > 2 else []
    sums = np.zeros((len(groups), 4), dtype=np.int64)
    for _, copies in walk_together(subsets, block_size):
        for number, group in enumerate(groups):
            chosen = copies[list(group)]
            least, most = chosen.min(axis=0), chosen.max(axis=0)
            sums[number] += least.sum(), most.sum(), np.count_nonzero(least), np.count_nonzero(most)
    return [
        Overlap(tuple(names[each] for each in group), tuple(len(subsets[each]) for each in group), *map(int, pair))
        for group, pair in zip(groups, sums, strict=True)
    ]


def combine_files(operation: str, paths: Sequence[Path], out_path: Path) -> list[str]:
    """Apply one of OPERATIONS to subset files and write the result; return the lines that say what it is.

    Raises ValueError where `out_path` is there with other bytes. Warns where the result is empty, and where an input
    is a reference's choice.
    """
    if out_path.is_dir():
        raise UserError(f"--out {out_path} is a folder; name a file in it", code="option-value")
    subsets = [load_subset(path).uids for path in paths]
    for path in filter(is_reference_subset, dict.fromkeys(paths)):
        warn(
            f"{path} is the choice of a reference, which knows the planted labels; "
            f"what comes from it, as {out_path} does, cannot be submitted"
        )
    is_there = out_path.exists()
    written = out_path.with_name(f"{out_path.name}.again") if is_there else out_path
    write_subset(written, combined(operation, subsets))
    sha256 = sha256_of(written)
    if is_there:
        written.unlink()
        if sha256 != sha256_of(out_path):
            raise UserError(
                f"{out_path} is there and has other bytes; choose another --out, or delete it", code="file-exists"
            )
    subset = load_subset(out_path)
    if len(subset) == 0:
        warn(f"{out_path} is empty: no uid is left")
    return [f"{out_path}{' (was there already, with the same bytes)' if is_there else ''}", *_numbers(subset, sha256)]


def describe_file(path: Path) -> list[str]:
    """Return the lines that say what is in a subset file."""
    subset = load_subset(path)
    first, last = format_uids(subset.uids[[0, -1]]) if len(subset) else ("none", "none")
    return [f"{path}", *_numbers(subset, sha256_of(path)), f"  first uid      {first}", f"  last uid       {last}"]


def overlap_files(paths: Sequence[Path], style: str) -> str:
    """Compare subset files: a table for every two of them and, of more than two, for all, as text, csv or markdown."""
    from benchmark.runtime.text_tables import markdown_table, text_table

    overlaps = overlaps_of([str(path) for path in paths], [load_subset(path).uids for path in paths])
    header = ["a", "b", "shared", "only a", "only b", "Jaccard of copies", "Jaccard of uids"]
    rows: list[list[str | int | float | None]] = []
    for each in overlaps:
        if len(each.names) == 2:
            only = [size - each.shared for size in each.sizes]
            rows.append([*each.names, each.shared, *only, each.jaccard, each.uid_jaccard])
        else:
            rows.append([f"all {len(each.names)} files", None, each.shared, None, None, each.jaccard, each.uid_jaccard])
    if style == "csv":
        return pd.DataFrame(rows, columns=header, dtype=object).to_csv(index=False).rstrip("\n")
    cells = [["" if value is None else _spelt(value) for value in row] for row in rows]
    spell = markdown_table if style == "markdown" else text_table
    if style == "markdown":
        cells = [[text.replace("|", "\\|") for text in line] for line in cells]
    about = (
        "shared and only count copies. Jaccard of copies: sum(least copies) / sum(most copies); Jaccard of uids: uids "
        "that all have / uids that any has, as in a report."
    )
    return "\n".join([*spell(header, cells, {0, 1}), "", about])


def _spelt(value: str | int | float) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else value


def _numbers(subset: Subset, sha256: str) -> list[str]:
    return [
        f"  samples        {len(subset):,} (copies counted)",
        f"  distinct uids  {subset.num_distinct:,}",
        f"  most copies    {subset.max_copies:,}",
        f"  sha256         {sha256}",
    ]
