"""What an index says of a pool's tars, for people: counts, damage, gaps, and uids at several places."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmark.pool.index import build_index
from benchmark.pool.index_counts import IndexSummary
from benchmark.pool.index_table import index_path, index_tables, unpack_uids
from benchmark.pool.left_out import left_out_lines
from benchmark.pool.meeting import SHOWN_REPEATS, index_uids
from benchmark.pool.shards import Tar
from benchmark.pool.uids import count_of, format_uids, repeated_uids
from benchmark.runtime.files import atomic_path
from benchmark.runtime.locks import locked
from benchmark.runtime.paths import index_dir_of

REPEATS_NAME = "repeated_uids.csv"  # in the index's folder
COUNTS_NAME = "tars.csv"  # there too: what the index counts of each tar
COUNTED = ("rows", "present", "without_image", "without_text", "without_json", "damage")
MAX_PLACES = 100  # that are named of one uid; a file lists all


@dataclass(frozen=True)
class IndexReport:
    """What a pool's index says of its tars."""

    summary: IndexSummary
    left_out: list[str]  # what the pool leaves out, in sentences
    index_bytes: int
    num_repeated: int  # uids at several places
    repeated: dict[str, list[str]]  # the first of them, and where: "TAR KEY"
    repeats_path: Path
    counts_path: Path

    @property
    def is_whole(self) -> bool:
        return not self.summary.damaged and not self.left_out

    def lines(self) -> list[str]:
        """Return what `winnow pool index` prints."""
        counts, rows = self.summary.counts, self.summary.num_rows
        a_sample = f"{self.index_bytes / rows:.1f} bytes a sample" if rows else "no sample"
        lines = [
            f"tars             {len(self.summary.tars):,}",
            f"samples          {rows:,} that have a uid",
            f"  present        {self.summary.num_present:,} (with image and caption)",
            f"  without image  {sum(each.without_image for each in counts):,}",
            f"  without text   {sum(each.without_text for each in counts):,}",
            f"without json     {sum(each.without_json for each in counts):,} (no uid is known of them)",
            f"index            {self.index_bytes:,} bytes ({a_sample}), each tar's counts in {self.counts_path}",
            f"content hash     {self.summary.content_hash}",
            f"numbering        {numbering(self.summary)}",
            *(f"left out         {line}" for line in self.left_out),
            f"repeated uids    {self.num_repeated:,}"
            + (f", all their places in {self.repeats_path}" if self.num_repeated else ""),
            *repeat_lines(self.repeated),
        ]
        places = sum(each.damage for _, each in self.summary.damaged)
        lines.append(f"damage           {places:,} places in {len(self.summary.damaged):,} tars")
        return lines + [f"  {line}" for line in damage_lines(self.summary)]


def index_pool(pool_dir: Path, *, workers: int | None = None, hash_images: bool = False) -> IndexReport:
    """Index a pool's tars and look for uids at several places, which are listed in a file beside the index.

    Raises FileNotFoundError where there is no tar. Damage is reported, never raised.
    """
    summary = build_index(pool_dir, workers=workers, hash_images=hash_images)
    index_dir = index_dir_of(pool_dir)
    with locked(index_dir):
        with atomic_path(index_dir / COUNTS_NAME) as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["tar", *COUNTED, "damage_places"])
            for tar, counts in zip(summary.tars, summary.counts, strict=True):
                numbers = [getattr(counts, name) for name in COUNTED]
                writer.writerow([tar.label, *numbers, "; ".join(counts.damage_places)])
        repeated = repeated_uids(index_uids(index_dir, summary.tars), index_dir)
        repeats_path = index_dir / REPEATS_NAME
        if not len(repeated):
            repeats_path.unlink(missing_ok=True)
        else:
            with atomic_path(repeats_path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(["uid", "tar", "key"])
                writer.writerows(places_of(index_dir, summary.tars, repeated))
    first = repeated[:SHOWN_REPEATS]
    return IndexReport(
        summary,
        left_out_lines(pool_dir, summary),
        sum(index_path(index_dir, tar).stat().st_size for tar in summary.tars),
        len(repeated),
        by_uid(first, places_of(index_dir, summary.tars, first)),
        repeats_path,
        index_dir / COUNTS_NAME,
    )


def damage_lines(summary: IndexSummary) -> list[str]:
    """Return a line for every damaged place that the index lists."""
    lines = []
    for tar, counts in summary.damaged:
        lines += [f"{tar.label}: {place}" for place in counts.damage_places]
        unlisted = counts.damage - len(counts.damage_places)
        lines += [f"{tar.label}: and {unlisted:,} more"] if unlisted else []
    return lines


def numbering(summary: IndexSummary) -> str:
    gaps = summary.gaps
    if not gaps:
        return "without gaps"
    return f"{len(gaps):,} gaps: {_shortened(gaps)}"


def _shortened(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_REPEATS:,} more" if len(names) > SHOWN_REPEATS else ""
    return ", ".join(names[:SHOWN_REPEATS]) + more


def places_of(index_dir: Path, tars: Sequence[Tar], wanted: np.ndarray) -> Iterator[tuple[str, str, str]]:
    """Yield uid, tar and key of every sample that has one of the sorted uids, in the pool's order."""
    if not len(wanted):
        return
    for tar, table in zip(tars, index_tables(index_dir, tars, ["uid", "key"]), strict=True):
        uids = unpack_uids(table["uid"])
        rows = np.flatnonzero(count_of(uids, wanted))
        for text, row in zip(format_uids(uids[rows]), rows.tolist(), strict=True):
            yield text, tar.label, table["key"][row].as_py()


def by_uid(uids: np.ndarray, found: Iterable[tuple[str, str, str]]) -> dict[str, list[str]]:
    """Collect what was found by uid, the first `MAX_PLACES` of each."""
    places: dict[str, list[str]] = {text: [] for text in format_uids(uids)}
    for text, file, place in found:
        if len(places[text]) < MAX_PLACES:
            places[text].append(f"{file} {place}")
        elif len(places[text]) == MAX_PLACES:
            places[text].append("and more")
    return places


def repeat_lines(repeated: dict[str, list[str]]) -> list[str]:
    return [f"  {text}: {', '.join(places)}" for text, places in repeated.items()]
