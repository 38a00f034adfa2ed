"""Groups of rows that have something in common (score, caption, size, language, planted label), and histograms.

Counts grow metadata shard by metadata shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from benchmark.pool.pool import Pool, planted_path
from benchmark.pool.uids import format_uids, parse_uids
from benchmark.report.row_sample import LANGUAGE_STREAM, RowSample, in_sample
from benchmark.runtime.keyed import keyed_uint64
from benchmark.runtime.tables import iter_batches, read_parquet
from benchmark.toolbox.language import language_of, load_language_model

SCORE_EDGES = np.round(np.linspace(-1, 1, 201), 2)  # cosine similarities, in steps of 0.01
BUCKET_BINS = (5, 10, 20)  # bins per bucket: the first of them that makes no more than MAX_BUCKETS
MAX_BUCKETS = 16
CAPTION_WORDS = (0, 1, 2, 3, 5, 8, 13, 21)  # where each bucket begins
SHORTER_SIDE = (0, 50, 100, 200, 400, 800)  # pixels, before any resizing
MAX_LANGUAGES = 10  # that have a line of their own
LANGUAGE_ROWS = 100_000  # of larger pools the languages of about so many rows are looked at
MAX_PLANTED_VALUES = 20  # a planted column of text is a grouping if it has at most so many values


@dataclass(frozen=True)
class Group:
    """Rows of the pool that have something in common, and how many of them were kept."""

    label: str
    rows: int
    kept: int


@dataclass(frozen=True)
class Grouping:
    """One way to part the pool's rows."""

    title: str
    groups: list[Group]
    is_planted: bool = False  # by labels that only an embedded pool has


@dataclass(frozen=True)
class Histogram:
    """How a score is distributed over kept and dropped rows."""

    name: str  # of the score: a metadata column, or a rule
    edges: np.ndarray  # (bins + 1,)
    kept: np.ndarray  # (bins,) int64
    dropped: np.ndarray  # (bins,) int64
    dropped_by_others: np.ndarray | None  # (bins,) int64; rows that this rule would have kept
    cut_score: float | None  # the lowest score that the rule lets pass
    num_missing: int

    @property
    def num_rows(self) -> int:
        """Return how many rows have a score."""
        others = 0 if self.dropped_by_others is None else self.dropped_by_others.sum()
        return int(self.kept.sum() + self.dropped.sum() + others)


@dataclass(frozen=True)
class Partition:
    """Groups of rows by mask; a row may be in several, or in none."""

    title: str
    labels: list[str]
    members: list[np.ndarray]  # each (rows,) bool
    is_planted: bool = False

    def grouping(self, is_kept: np.ndarray) -> Grouping:
        groups = [
            Group(label, int(is_member.sum()), int((is_member & is_kept).sum()))
            for label, is_member in zip(self.labels, self.members, strict=True)
        ]
        return Grouping(self.title, [group for group in groups if group.rows], self.is_planted)


class ScoreCounts:
    """A histogram that grows shard by shard."""

    def __init__(self) -> None:
        self.counts = np.zeros((2, len(SCORE_EDGES) - 1), dtype=np.int64)  # (dropped and kept, bins)
        self.num_missing = 0

    def add(self, scores: np.ndarray, is_kept: np.ndarray) -> None:
        is_known = ~np.isnan(scores)
        self.num_missing += int((~is_known).sum())
        for side in (0, 1):
            chosen = scores[is_known & (is_kept == bool(side))]
            self.counts[side] += np.histogram(np.clip(chosen, SCORE_EDGES[0], SCORE_EDGES[-1]), SCORE_EDGES)[0]

    def histogram(self, column: str) -> Histogram:
        """Return the bins that hold anything, one bin more on either side."""
        filled = np.flatnonzero(self.counts.sum(axis=0))
        low, high = (0, 0) if len(filled) == 0 else (max(int(filled[0]) - 1, 0), int(filled[-1]) + 2)
        edges = SCORE_EDGES[low : high + 1]
        dropped, kept = self.counts[:, low : low + len(edges) - 1]
        return Histogram(column, edges, kept, dropped, None, None, self.num_missing)

    def groups(self) -> list[Group]:
        groups: list[Group] = []
        for num_bins in BUCKET_BINS:
            edges = SCORE_EDGES[::num_bins].tolist()
            labels = [f"{low:.2f} to {high:.2f}" for low, high in pairwise(edges)]
            groups = _groups(labels, self.counts.reshape(2, -1, num_bins).sum(axis=2))
            if len(groups) <= MAX_BUCKETS:
                break
        return groups


class BucketCounts:
    """Rows per bucket of whole numbers, growing shard by shard; the last bucket is for missing values."""

    def __init__(self, begins: Sequence[int]) -> None:
        self.begins = begins
        self.counts = np.zeros((2, len(begins) + 1), dtype=np.int64)  # (dropped and kept, buckets)

    def add(self, values: np.ndarray, is_kept: np.ndarray) -> None:
        buckets = np.where(np.isnan(values), len(self.begins), np.maximum(np.digitize(values, self.begins) - 1, 0))
        for side in (0, 1):
            self.counts[side] += np.bincount(buckets[is_kept == bool(side)], minlength=self.counts.shape[1])

    def groups(self, missing: str) -> list[Group]:
        ends = [next_begin - 1 for next_begin in self.begins[1:]]
        labels = [
            str(begin) if begin == end else f"{begin} to {end}"
            for begin, end in zip(self.begins[:-1], ends, strict=True)
        ]
        return _groups([*labels, f"{self.begins[-1]} and more", missing], self.counts)


class LanguageCounts:
    """The language of every caption, or of a sample that a hash of the uid draws; grows shard by shard."""

    def __init__(self, uids: np.ndarray) -> None:
        self.is_drawn = np.ones(len(uids), dtype=bool)
        if len(uids) > LANGUAGE_ROWS:
            below = np.uint64(LANGUAGE_ROWS / len(uids) * 2**64)
            self.is_drawn = keyed_uint64(LANGUAGE_STREAM, uids["f0"], uids["f1"]) < below
        self.model = load_language_model(None, option="report")
        self.codes = np.full(len(uids), -1, dtype=np.int16)  # places in names; -1 where no caption is known
        self.names: dict[str, int] = {}

    def add(self, captions: pd.Series, start: int) -> None:
        is_wanted = captions.notna().to_numpy() & self.is_drawn[start : start + len(captions)]
        for row, caption in zip(np.flatnonzero(is_wanted).tolist(), captions[is_wanted], strict=True):
            name = language_of(self.model, caption)
            self.codes[start + row] = self.names.setdefault(name, len(self.names))

    def partition(self) -> Partition:
        counts = {name: int((self.codes == code).sum()) for name, code in self.names.items()}
        own = sorted(counts, key=lambda name: (-counts[name], name))[:MAX_LANGUAGES]
        own_codes = [self.names[name] for name in own]
        is_missing = self.is_drawn & (self.codes < 0)
        members = [self.codes == code for code in own_codes]
        members += [(self.codes >= 0) & ~np.isin(self.codes, own_codes), is_missing]
        drawn = int(self.is_drawn.sum())
        of_sample = "" if self.is_drawn.all() else f", of {drawn:,} rows drawn by a hash of the uid"
        title = f"By caption language (fastText's guess{of_sample})"
        labels = [*own, "other languages", "no caption"]
        shown = [number for number, is_member in enumerate(members) if is_member.any()]
        return Partition(title, [labels[number] for number in shown], [members[number] for number in shown])


def _groups(labels: Sequence[str], counts: np.ndarray) -> list[Group]:
    """Return the groups that have rows; `counts` are (dropped and kept, groups)."""
    rows = counts.sum(axis=0)
    return [Group(label, int(rows[i]), int(counts[1, i])) for i, label in enumerate(labels) if rows[i]]


def planted_partitions(pool: Pool, sample: RowSample, notes: dict[str, list[str]]) -> list[Partition]:
    """Part the rows by planted labels, where there are any, and note the kinds of the samples that are shown.

    Columns of truth values are kinds, together one partition; a column of text with few values is one more.
    """
    path = planted_path(pool)
    if not path.exists():
        return []
    table = read_parquet(path) if sample.is_whole else _planted_of(path, sample)
    kinds = [field.name for field in table.schema if pa.types.is_boolean(field.type)]
    texts = [field.name for field in table.schema if _is_text(field.type) and field.name != "uid"]
    labels = table.select(["uid", *kinds, *texts]).to_pandas().drop_duplicates("uid").set_index("uid")
    rows = labels.reindex(format_uids(sample.uids))
    masks = {kind: rows[kind].eq(True).to_numpy(dtype=bool) for kind in kinds}
    for uid in notes:
        if uid in labels.index:
            notes[uid] += [kind for kind in kinds if labels.at[uid, kind]]
    partitions = []
    if shown := [kind for kind in kinds if masks[kind].any()]:
        title = "By planted kind (a row may have several; no filter sees them)"
        partitions.append(Partition(title, shown, [masks[kind] for kind in shown], is_planted=True))
    for name in texts:
        values = sorted(rows[name].dropna().unique().tolist())
        if 0 < len(values) <= MAX_PLANTED_VALUES:
            members = [rows[name].eq(value).to_numpy(dtype=bool) for value in values]
            partitions.append(Partition(f"By planted {name} (no filter sees it)", values, members, is_planted=True))
    return partitions


def _planted_of(path: Path, sample: RowSample) -> pa.Table:
    """Read the planted labels of a sample's rows, a part of the file at a time."""
    schema = pq.read_schema(path)
    parts = []
    for batch in iter_batches(path, schema.names):
        is_wanted = in_sample(parse_uids(batch.column("uid"), str(path)), sample.num_rows)
        parts.append(batch.filter(pa.array(is_wanted)))
    return pa.Table.from_batches(parts, schema)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)
