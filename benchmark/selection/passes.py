"""Passes over a pool: what the engine does with one metadata shard in each, and what comes back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from benchmark.pool.images import ImagePlaces
from benchmark.pool.pool import Shard
from benchmark.runtime.errors import UserError
from benchmark.runtime.tables import MAX_WHOLE
from benchmark.selection.copies import Copies
from benchmark.selection.cuts import OpenCut, RowKeys, TopCut, count_digits, gather_words
from benchmark.selection.evaluator import RuleEvaluator
from benchmark.selection.rules import ResolvedRule
from benchmark.selection.shard_evaluation import Cost, refuse_changed_shard
from benchmark.selection.values import Values, common_type

MAX_COPIES = 1000  # of a row, on average


@dataclass(frozen=True)
class Tally:
    """Counts of what one rule returned for rows of the pool."""

    dtype: np.dtype
    num_valued: int
    num_missing: int
    num_kept: int  # by a mask, a threshold or copies
    histogram: np.ndarray | None = None  # of the scores' first digit, for a cut by fraction
    lowest: float = math.inf  # of these scores
    highest: float = -math.inf

    def plus(self, other: Tally) -> Tally:
        counts = ("num_valued", "num_missing", "num_kept")
        histogram = None
        if self.histogram is not None and other.histogram is not None:
            histogram = self.histogram + other.histogram
        return Tally(
            self.dtype,
            **{n: getattr(self, n) + getattr(other, n) for n in counts},
            histogram=histogram,
            lowest=min(self.lowest, other.lowest),
            highest=max(self.highest, other.highest),
        )


@dataclass(frozen=True)
class EvaluatedShard:
    tallies: list[Tally]  # of each filter that was evaluated
    num_passing: int  # rows that these masks and thresholds let pass
    copied: dict[int, frozenset[str]]  # by rule, the columns of which its scores may be a mere copy
    costs: dict[str, Cost]
    image_cost: Cost


@dataclass(frozen=True)
class AppliedShard:
    uids: np.ndarray  # the chosen ones, with their copies
    num_rows: int  # chosen
    kept: np.ndarray  # (rules,)
    only_dropped: np.ndarray  # (rules,)


@dataclass(frozen=True)
class Passes:
    """What is done with one metadata shard in each pass; plain data, so that worker processes can be sent it."""

    evaluator: RuleEvaluator
    within: Copies | None = None
    cuts: dict[int, TopCut] = field(default_factory=dict)  # by rule
    chosen: dict[int, Copies] = field(default_factory=dict)  # by selector

    def evaluate_shard(self, numbers: Sequence[int], item: tuple[Shard, ImagePlaces | None]) -> EvaluatedShard:
        """Evaluate rules on a metadata shard, and count what they returned."""
        shard, places = item
        requested = self._requested(shard)
        found = self.evaluator.values(shard, numbers, requested=requested, places=places)
        tallies, passing = [], requested.copy()
        for number, values in zip(numbers, found.values, strict=True):
            rule = self.evaluator.rules[number]
            if rule.strategy.is_selector:
                continue
            check_values(rule, values)
            if rule.cut is not None and rule.cut.kind == "fraction":
                tallies.append(self._score_tally(shard, values, requested))
                continue
            kept = self._votes(number, values) > 0
            if _is_gate(rule, values):
                passing &= kept
            tallies.append(_tally(values, requested, int((kept & requested).sum())))
        return EvaluatedShard(tallies, int(passing.sum()), found.copied, found.costs, found.image_cost)

    def narrow(self, opened: dict[int, OpenCut], shard: Shard) -> dict[int, np.ndarray]:
        """Count a shard's rows by the next digit of each cut that is open, or gather them where they are few."""
        requested = self._requested(shard)
        found = self.evaluator.values(shard, list(opened), requested=requested).values
        return {
            number: (gather_words if cut.is_small else count_digits)(self._keys(shard, values, requested), cut)
            for (number, cut), values in zip(opened.items(), found, strict=True)
        }

    def apply(self, max_copies: int, shard: Shard) -> AppliedShard:
        """Put all votes on a shard's rows together."""
        path = shard.path
        rules = self.evaluator.rules
        uids = self.evaluator.pool.read_uids(path) if self.within or self.chosen else None
        pool_copies = None if self.within is None or uids is None else self.within.of(shard.number, uids)
        num_rows = self.evaluator.pool.footer(path).num_rows
        requested = np.ones(num_rows, dtype=bool) if pool_copies is None else pool_copies > 0
        filters = [number for number, rule in enumerate(rules) if rule.strategy.is_filter]
        found = dict(zip(filters, self.evaluator.values(shard, filters, requested=requested).values, strict=True))
        gates, wanted = requested.copy(), None
        kept = np.empty((len(rules), num_rows), dtype=bool)
        for number, rule in enumerate(rules):
            if number in self.chosen:
                assert uids is not None
                votes, is_gate = self.chosen[number].of(shard.number, uids), False
            elif number in self.cuts:
                votes, is_gate = np.zeros(num_rows, dtype=np.int64), True
                keys = self._keys(shard, found[number], requested)
                votes[keys.rows[self.cuts[number].keeps(keys)]] = 1
            else:
                votes, is_gate = self._votes(number, found[number]), _is_gate(rule, found[number])
            kept[number] = (votes > 0) & requested
            if is_gate:
                gates &= votes > 0
            else:
                wanted = votes if wanted is None else np.minimum(wanted, votes)
        if wanted is None:
            wanted = np.ones(num_rows, dtype=np.int64) if pool_copies is None else pool_copies
        copies = np.where(gates, wanted, 0)
        total = float(copies.sum(dtype=np.float64))  # whole numbers may overflow
        if total > max_copies:
            raise too_many_copies(total, max_copies // MAX_COPIES)
        is_chosen = copies > 0
        chosen_uids = self.evaluator.pool.read_uids(path, is_chosen) if uids is None else uids[is_chosen]
        if total > is_chosen.sum():
            chosen_uids = np.repeat(chosen_uids, copies[is_chosen])
        refuse_changed_shard(shard)
        num_keepers = kept.sum(axis=0)
        only = (~kept & requested & (num_keepers == len(rules) - 1)).sum(axis=1)
        return AppliedShard(chosen_uids, int(is_chosen.sum()), kept.sum(axis=1), only)

    def _score_tally(self, shard: Shard, values: Values, requested: np.ndarray) -> Tally:
        """Count the scores of a filter that is cut by fraction."""
        keys = self._keys(shard, values, requested)
        return replace(
            _tally(values, requested, int(requested.sum())),
            histogram=count_digits(keys, OpenCut(0, 0)),
            lowest=float(keys.scores.min(initial=math.inf)),
            highest=float(keys.scores.max(initial=-math.inf)),
        )

    def _requested(self, shard: Shard) -> np.ndarray:
        if self.within is None:
            return np.ones(self.evaluator.pool.footer(shard.path).num_rows, dtype=bool)
        return self.within.of(shard.number, self.evaluator.pool.read_uids(shard.path)) > 0

    def _votes(self, number: int, values: Values) -> np.ndarray:
        """Return the copies that a mask, a threshold or ints give: (rows,) int64."""
        cut = self.evaluator.rules[number].cut
        if cut is None:
            return np.where(values.has_value, values.values, 0).astype(np.int64)
        # Compared in the score's own type, as DataComp does: a float32 score passes its own rounded threshold.
        scores = scores_of(values.values)
        return (values.has_value & (scores >= scores.dtype.type(cut.value))).astype(np.int64)

    def _keys(self, shard: Shard, values: Values, requested: np.ndarray) -> RowKeys:
        rows = np.flatnonzero(values.has_value & requested)
        return RowKeys(
            scores_of(values.values[rows]), rows, shard.number, partial(self.evaluator.pool.read_uids, shard.path)
        )


def _is_gate(rule: ResolvedRule, values: Values) -> bool:
    """Tell whether a filter keeps or drops rows; without a cut, ints give copies instead."""
    return rule.cut is not None or values.values.dtype.kind != "i"


def _tally(values: Values, requested: np.ndarray, num_kept: int) -> Tally:
    num_valued = int((values.has_value & requested).sum())
    return Tally(values.values.dtype, num_valued, int(requested.sum()) - num_valued, num_kept)


def scores_of(values: np.ndarray) -> np.ndarray:
    """Return the values of a filter that scores as floats, in their own type where they are: (n,)."""
    return values if values.dtype.kind == "f" else values.astype(np.float64)


def check_values(rule: ResolvedRule, values: Values) -> None:
    """Raise UserError where a filter's values and its cut do not go together."""
    if not values.has_value.any():
        return
    kind = values.values.dtype.kind
    valued = values.values[values.has_value]
    if kind == "i" and rule.cut is None and valued.min() < 0:
        raise UserError(
            f"filter {rule.name!r} returned {valued.min()} copies; copies are 0 or more", code="negative-copies"
        )
    if kind == "i" and rule.cut is not None and np.abs(valued).max() > MAX_WHOLE:
        raise UserError(
            f"filter {rule.name!r} returned the score {valued[np.abs(valued).argmax()]}; whole numbers beyond 2^53 are "
            "not told apart as scores: return smaller ones",
            code="score-too-large",
        )
    if kind == "f" and rule.cut is None:
        raise UserError(
            f"filter {rule.name!r} returned scores but declares no cut: "
            "write @register_filter(fraction=...) or threshold=...",
            code="cut-missing",
        )
    if kind not in "fi" and rule.cut is not None:
        raise UserError(
            f"filter {rule.name!r} has a cut but returned {values.values.dtype} instead of scores, which are numbers",
            code="scores-expected",
        )


def type_of(rule: ResolvedRule, kinds: Sequence[tuple[np.dtype, bool]]) -> np.dtype:
    """Return the type of a rule's values; raises ValueError where it returned bools here and numbers there."""
    try:
        return common_type(kinds)
    except ValueError as error:
        raise UserError(f"filter {rule.name!r} {error}", code="strategy-result") from error


def too_many_copies(total: float, num_rows: int) -> UserError:
    return UserError(
        f"{total:,.0f} copies of {num_rows:,} rows are requested; a filter's ints are copies, such as 2",
        code="strategy-result",
    )
