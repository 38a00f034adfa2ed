"""Scores of a whole pool in memory, and the top fraction of an array: for reports, notebooks and selectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmark.pool.pool import Pool
from benchmark.pool.uids import uid_order
from benchmark.selection.evaluator import RuleEvaluator, caching, image_places, repeat_if_undeclared
from benchmark.selection.passes import type_of
from benchmark.selection.rules import ResolvedRule


def score_pool(
    pool: Pool, rule: ResolvedRule, *, rows: Sequence[np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return a filter's values and which rows have one, both (rows,) in the order of the pool's metadata.

    With `rows` these are of some rows only, by metadata shard, and no others are held.
    The rule is resolved against the pool. Raises UserError where the filter fails.
    """
    return repeat_if_undeclared(lambda: _score(pool, rule, rows))


def _score(pool: Pool, rule: ResolvedRule, rows: Sequence[np.ndarray] | None) -> tuple[np.ndarray, np.ndarray]:
    evaluator = RuleEvaluator(pool, [rule])
    places = image_places(evaluator, [0], None)
    with caching(evaluator):
        parts, kinds = [], []
        for shard, each in zip(pool.shards, places, strict=True):
            found = evaluator.values(shard, [0], places=each).values[0]
            kinds.append((found.values.dtype, bool(found.has_value.any())))
            wanted = slice(None) if rows is None else rows[shard.number]
            parts.append((found.values[wanted], found.has_value[wanted]))
    kind = type_of(rule, kinds)
    return np.concatenate([v.astype(kind) for v, _ in parts]), np.concatenate([has_value for _, has_value in parts])


def top_fraction(scores: np.ndarray, uids: np.ndarray, fraction: float, num_rows: int) -> np.ndarray:
    """Keep exactly round(fraction * num_rows) of the highest scores, or all where there are fewer: a mask, (n,) bool.

    Ties go to the smaller uid; rows with the same score and uid stand in file order.
    """
    wanted = min(round(fraction * num_rows), len(scores))
    keep = np.zeros(len(scores), dtype=bool)
    if wanted == 0:
        return keep
    cut_score = np.partition(scores, len(scores) - wanted)[len(scores) - wanted]
    keep[scores > cut_score] = True
    tied = np.flatnonzero(scores == cut_score)
    keep[tied[uid_order(uids[tied])[: wanted - int(keep.sum())]]] = True
    return keep
