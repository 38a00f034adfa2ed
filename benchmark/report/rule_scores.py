"""How the scores of the rules are distributed, and what each rule would keep at other fractions of the pool."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmark.pool.pool import Pool
from benchmark.pool.subset import SUBSET_NAME
from benchmark.pool.uids import count_of
from benchmark.report.groups import Histogram, Partition
from benchmark.report.row_sample import RowSample
from benchmark.selection.engine import write_filtered
from benchmark.selection.rules import ResolvedRule
from benchmark.selection.scoring import score_pool, top_fraction

FRACTIONS = np.round(np.arange(1, 21) / 20, 2)  # of the curves: 0.05 to 1.0
RULE_BINS = 80  # of a rule's histogram
OUTLIERS = 0.0005  # share of scores on either side that the outermost bins gather


@dataclass(frozen=True)
class FractionCurves:
    """What one rule alone would keep of each group at other fractions of the pool."""

    rule: str
    title: str  # of the groups
    is_planted: bool
    labels: list[str]
    rows: list[int]  # per group
    shares: np.ndarray  # (groups, FRACTIONS)
    cut_fraction: float | None  # the share of the pool that the rule's own cut lets pass


def kept_at_fractions(
    scores: np.ndarray, is_judged: np.ndarray, uids: np.ndarray, members: Sequence[np.ndarray]
) -> np.ndarray:
    """Return the share of each group that a cut at each of FRACTIONS keeps: (groups, fractions).

    `members` are masks of the rows; a fraction counts all rows, as `filtering.top_fraction` does.
    """
    judged = np.flatnonzero(is_judged)
    order = judged[np.lexsort((uids["f1"][judged], uids["f0"][judged], -scores[judged].astype(np.float64)))]
    wanted = [round(fraction * len(uids)) for fraction in FRACTIONS.tolist()]
    shares = np.zeros((len(members), len(FRACTIONS)))
    for number, is_member in enumerate(members):
        places = np.flatnonzero(is_member[order])  # of the group's rows, best first
        shares[number] = np.searchsorted(places, wanted) / max(int(is_member.sum()), 1)
    return shares


def score_rules(
    pool: Pool,
    sample: RowSample,
    rules: Sequence[ResolvedRule],
    partitions: Sequence[Partition],
    is_within: bool,
) -> tuple[list[Histogram], list[FractionCurves], dict[str, str]]:
    """Return each rule's histogram, its curves by partition, and why the scores of others are not available."""
    histograms: list[Histogram] = []
    curves: list[FractionCurves] = []
    failures: dict[str, str] = {}
    for rule in rules:
        try:
            scores, is_judged = score_pool(pool, rule, rows=sample.parts)
            passes = _passing(pool, sample, rule, scores, is_judged, is_within)
        except (ValueError, FileNotFoundError) as error:
            failures[rule.name] = str(error)
            continue
        histograms.append(_rule_histogram(rule.name, scores, is_judged, sample.is_kept, passes))
        for each in partitions:
            if len(each.labels) > 1 or each.is_planted:
                shares = kept_at_fractions(scores, is_judged, sample.uids, each.members)
                rows = [int(is_member.sum()) for is_member in each.members]
                at_cut = None if passes is None else float(passes.mean())
                curves.append(FractionCurves(rule.name, each.title, each.is_planted, each.labels, rows, shares, at_cut))
    return histograms, curves, failures


def _passing(
    pool: Pool, sample: RowSample, rule: ResolvedRule, scores: np.ndarray, is_judged: np.ndarray, is_within: bool
) -> np.ndarray | None:
    """Return the rows that the rule's cut alone lets pass, as the filter engine does; None where that is not known."""
    cut, uids = rule.cut, sample.uids
    assert cut is not None
    if cut.kind == "threshold":
        return is_judged & (scores >= scores.dtype.type(cut.value))
    if is_within:
        return None
    if not sample.is_whole:  # where the whole pool's scores are cut does not follow from a sample of them
        with tempfile.TemporaryDirectory(prefix="winnow-") as folder:
            outcome = write_filtered(pool, [rule], Path(folder) / SUBSET_NAME)
            return is_judged & (count_of(uids, outcome.subset.uids) > 0)
    passes = np.zeros(len(scores), dtype=bool)
    judged = np.flatnonzero(is_judged)
    passes[judged[top_fraction(scores[judged], uids[judged], cut.value, len(uids))]] = True
    return passes


def _rule_histogram(
    name: str, scores: np.ndarray, is_judged: np.ndarray, is_kept: np.ndarray, passes: np.ndarray | None
) -> Histogram:
    known = scores[is_judged & np.isfinite(scores)].astype(np.float64)
    low, high = np.quantile(known, [OUTLIERS, 1 - OUTLIERS]).tolist() if len(known) else (0.0, 1.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    width = (high - low) / RULE_BINS
    cut_score = float(scores[passes].min()) if passes is not None and passes.any() else None
    if cut_score is not None and low < cut_score < high:
        low = cut_score - np.ceil((cut_score - low) / width) * width  # so that no bin lies on both sides of the cut
    edges = low + width * np.arange(np.ceil((high - low) / width) + 1)

    def count(mask: np.ndarray) -> np.ndarray:
        return np.histogram(np.clip(scores[mask & is_judged].astype(np.float64), edges[0], edges[-1]), edges)[0]

    num_missing = int((~is_judged).sum())
    if passes is None:
        return Histogram(name, edges, count(is_kept), count(~is_kept), None, None, num_missing)
    by_itself, by_others = count(~is_kept & ~passes), count(~is_kept & passes)
    return Histogram(name, edges, count(is_kept), by_itself, by_others, cut_score, num_missing)
