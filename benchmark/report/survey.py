"""What a report counts and shows of a pool and a subset: groups of rows, distributions of scores, drawn samples.

Metadata is read shard by shard, and of it what is needed. A row counts as kept where its uid is in the subset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmark.pool.pool import Pool
from benchmark.pool.subset import Subset
from benchmark.pool.uids import format_uids
from benchmark.report.groups import (
    CAPTION_WORDS,
    SHORTER_SIDE,
    BucketCounts,
    Grouping,
    Histogram,
    LanguageCounts,
    ScoreCounts,
    planted_partitions,
)
from benchmark.report.row_sample import take_rows
from benchmark.report.rule_scores import FractionCurves, score_rules
from benchmark.report.sheets import Sheet, choose_rows, index_of, make_sheet
from benchmark.selection.rules import ResolvedRule

SCORE_COLUMNS = ("clip_l14_similarity_score", "clip_b32_similarity_score")


@dataclass(frozen=True)
class Survey:
    """Everything that a report counts and shows of a pool and a subset."""

    num_rows: int
    num_kept: int  # rows of the pool whose uid is in the subset
    num_sampled: int | None  # rows that everything below is counted over; None where these are all
    histograms: list[Histogram]
    groupings: list[Grouping]
    curves: list[FractionCurves]
    sheets: list[Sheet]  # empty where the pool has no images
    failures: dict[str, str]  # rules whose scores could not be had again, and why


def survey_pool(pool: Pool, subset: Subset, rules: Sequence[ResolvedRule] = (), *, is_within: bool = False) -> Survey:
    """Count and show what the subset keeps of the pool.

    Of a pool of shards only these are its samples and their pictures: there are no columns to count by.

    `rules` are the filters with a cut that chose it; their scores are computed again. `is_within` says that they chose
    inside an earlier subset, so that the place of a fraction's cut among the pool's scores is not known.
    """
    sample = take_rows(pool, subset)
    uids, is_kept = sample.uids, sample.is_kept
    index = index_of(pool, sample) if pool.has_images else None
    chosen = choose_rows(index, sample) if index is not None else []
    notes: dict[str, list[str]] = {uid: [] for each in chosen for uid in format_uids(uids[each.rows])}

    columns = [name for name in (*SCORE_COLUMNS, "text", "original_width", "original_height") if has_column(pool, name)]
    scores = {name: ScoreCounts() for name in SCORE_COLUMNS if name in columns}
    words, sides = BucketCounts(CAPTION_WORDS), BucketCounts(SHORTER_SIDE)
    languages = LanguageCounts(uids) if "text" in columns else None
    has_sizes = {"original_width", "original_height"} <= set(columns)
    start = 0
    for number, path in enumerate(pool.metadata_paths):
        rows = pool.read_columns(path, columns)
        if sample.parts is not None:
            rows = rows.iloc[sample.parts[number]]
        end = start + len(rows)
        kept = is_kept[start:end]
        for name, counts in scores.items():
            counts.add(rows[name].to_numpy(dtype=float, na_value=np.nan), kept)
        if languages is not None:
            words.add(rows["text"].map(_num_words, na_action="ignore").to_numpy(dtype=float, na_value=np.nan), kept)
            languages.add(rows["text"], start)
        if has_sizes:
            sizes = rows[["original_width", "original_height"]].to_numpy(dtype=float, na_value=np.nan)
            sides.add(sizes.min(axis=1), kept)
        for each in chosen:
            for row in each.rows[(each.rows >= start) & (each.rows < end)].tolist():
                shown = [f"{short_name(name)} {rows[name].iloc[row - start]:.2f}" for name in scores]
                notes[format_uids(uids[row : row + 1])[0]] += shown
        start = end

    partitions = planted_partitions(pool, sample, notes)
    if languages is not None:
        partitions.append(languages.partition())
    groupings = [each.grouping(is_kept) for each in partitions]
    histograms, curves, failures = score_rules(pool, sample, rules, partitions, is_within)
    cut_columns = {column for rule in rules for column in rule.columns}
    for name, counts in scores.items():
        groupings.append(Grouping(f"By {short_name(name)} similarity", counts.groups()))
        if name not in cut_columns or failures:
            histograms.append(counts.histogram(name))
    if languages is not None:
        groupings.append(Grouping("By caption length (words)", words.groups("no caption")))
    if has_sizes:
        groupings.append(Grouping("By original size (shorter side, pixels)", sides.groups("unknown")))
    sheets = [make_sheet(index, each, uids, notes) for each in chosen] if index is not None else []
    groupings = [each for each in groupings if each.groups]
    num_sampled = None if sample.is_whole else len(uids)
    return Survey(sample.num_rows, sample.num_kept, num_sampled, histograms, groupings, curves, sheets, failures)


def has_column(pool: Pool, column: str) -> bool:
    """Tell whether every metadata shard has the column, in a type that can be read; a pool of shards only has none."""
    if not pool.metadata_paths:
        return False
    try:
        pool.check_columns([column], "report")
    except ValueError:
        return False
    return True


def short_name(column: str) -> str:
    """Spell a similarity's column for people."""
    return column.removeprefix("clip_").removesuffix("_similarity_score")


def _num_words(caption: str) -> int:
    return len(caption.split())
