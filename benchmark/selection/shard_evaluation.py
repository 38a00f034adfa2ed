"""The evaluation of rules on one metadata shard: cached values are read, the others computed and cached."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import Image

from benchmark.pool.images import ImagePlaces, read_images
from benchmark.pool.pool import Pool, Shard, planted_path
from benchmark.pool.uids import format_uids
from benchmark.runtime.errors import UserError
from benchmark.runtime.paths import is_remote
from benchmark.runtime.storage import changed, state_of
from benchmark.runtime.tables import read_parquet
from benchmark.selection.cache import CachedValues
from benchmark.selection.row_independence import (
    Answers,
    note_repeated,
    num_to_repeat,
    refuse_dependence,
    spread,
    telling_rows,
)
from benchmark.selection.rules import ResolvedRule
from benchmark.selection.strategy_calls import call_strategy, model_of
from benchmark.selection.user_signals import UserSignal, read_user_signal
from benchmark.selection.values import (
    HAS_VALUE,
    MISSING,
    NO_IMAGE,
    NOT_EVALUATED,
    UNDECODABLE,
    RowValues,
    Values,
    joined_values,
)

if TYPE_CHECKING:
    from benchmark.selection.evaluator import RuleEvaluator

SLICE_ROWS = 8192  # a filter is handed at most this many rows at once
SLICE_FEATURES = 4096  # with features


@dataclass
class Cost:
    """What one strategy cost on some rows; its fields are keys of costs.jsonl."""

    rows: int = 0  # that were evaluated now, and not cached
    seconds: float = 0.0  # in the strategy's function, summed over processes
    asked: int = 0  # rows that were requested, cached or not
    absent: int = 0  # and of these, rows without an image
    undecodable: int = 0

    def plus(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(Cost)))


@dataclass
class ShardValues:
    """The values of all rules on one metadata shard."""

    values: list[Values]  # of each rule
    copied: dict[int, frozenset[str]]  # by rule, the columns of which its scores may be a mere copy
    costs: dict[str, Cost] = field(default_factory=dict)  # by strategy, signals among them
    image_cost: Cost = field(default_factory=Cost)  # reading and decoding


class ShardEvaluation:
    """The evaluation of one metadata shard."""

    def __init__(
        self, evaluator: RuleEvaluator, shard: Shard, requested: np.ndarray | None, places: ImagePlaces | None
    ) -> None:
        self.evaluator = evaluator
        self.rules = evaluator.all_rules
        self.pool = evaluator.pool
        self.shard = shard
        self.path = shard.path
        self.num_rows = evaluator.pool.footer(shard.path).num_rows
        self.requested = np.ones(self.num_rows, dtype=bool) if requested is None else requested
        self.places = places
        self.costs: dict[str, Cost] = {}
        self.image_cost = Cost()
        self.found: dict[int, Values] = {}
        self.copied: dict[int, frozenset[str]] = {}
        self._columns: dict[str, pd.Series] = {}
        self._features: dict[str, np.ndarray] = {}
        self._numbers: Sequence[int] = ()

    def evaluate(self, numbers: Sequence[int]) -> None:
        """Evaluate the rules of these numbers, and first the signals that they use."""
        waiting = [number for number in numbers if number not in self.found]
        self._numbers = [*self._numbers, *waiting]
        inner = [each for number in waiting for each in self.evaluator.inner(number)]
        if inner:
            self.evaluate(list(dict.fromkeys(inner)))
        seeing = [number for number in waiting if self.rules[number].strategy.images]
        for number in waiting:
            if self.rules[number].strategy.is_selector:
                self.found[number] = joined_values([], self.num_rows)
            elif number not in seeing:
                self._evaluate_rows(number)
        if seeing:
            self._evaluate_images(seeing)

    def _evaluate_rows(self, number: int) -> None:
        if number in self.evaluator.copied:
            column = self._column(self.evaluator.copied[number])
            # Of a shard without values the column has no type.
            scores = column.to_numpy() if column.dtype.kind == "f" else np.full(self.num_rows, np.nan)
            has_value = ~np.isnan(scores)
            self.found[number] = Values(
                np.where(has_value, scores, 0).astype(scores.dtype) + 0,
                np.where(has_value, HAS_VALUE, MISSING).astype(np.uint8),
            )
            return
        cached, states = self._opened(number)
        todo = np.flatnonzero(self.requested & (states == NOT_EVALUATED))
        table = self.table(number) if len(todo) else pd.DataFrame()
        step = SLICE_FEATURES if self.rules[number].features else SLICE_ROWS
        for start in range(0, len(todo), step):
            cached.add(self._call(number, table, todo[start : start + step]))
        self._close(number, cached, len(todo))

    def _evaluate_images(self, numbers: Sequence[int]) -> None:
        """Evaluate several rules in one pass over the tars; rows without an image say so in their states."""
        opened = {number: self._opened(number) for number in numbers}
        todo = {number: self.requested & (states == NOT_EVALUATED) for number, (_, states) in opened.items()}
        tables = {number: self.table(number) for number in numbers if todo[number].any()}

        def settle(rows: np.ndarray, state: int) -> None:
            for number in numbers:
                own = rows[todo[number][rows]]
                if len(own):
                    states = np.full(len(own), state, dtype=np.uint8)
                    opened[number][0].add(RowValues(own, np.zeros(len(own), dtype=bool), states))

        wanted = np.logical_or.reduce(list(todo.values()))
        if wanted.any():
            if self.places is None:
                raise UserError(
                    f"the cached values of {self.path.name} went while they were needed; run it again",
                    code="signals-changed",
                )
            places = self.places.of_rows(wanted)
            has_place = np.zeros(self.num_rows, dtype=bool)
            has_place[places.rows] = True
            settle(np.flatnonzero(wanted & ~has_place), NO_IMAGE)
            began = time.perf_counter()
            for chosen, images, undecodable in read_images(places):
                self.image_cost.rows += len(images) + len(undecodable)
                self.image_cost.seconds += time.perf_counter() - began
                settle(undecodable, UNDECODABLE)
                for number in numbers if len(chosen) else ():
                    mine = todo[number][chosen]
                    if not mine.any():
                        continue
                    own = [image for image, is_mine in zip(images, mine, strict=True) if is_mine]
                    own = own if len(numbers) == 1 else [image.copy() for image in own]
                    opened[number][0].add(self._call(number, tables[number], chosen[mine], own))
                began = time.perf_counter()
        for number in numbers:
            self._close(number, opened[number][0], int(todo[number].sum()))

    def _opened(self, number: int) -> tuple[CachedValues, np.ndarray]:
        """Return a rule's cached values, and the state of every row."""
        path = self.rules[number].cache_dir / f"{self.path.stem}.parquet"
        cached = CachedValues(path, partial(self.evaluator.inputs, self.shard, number), self.num_rows)
        return cached, cached.states()

    def _close(self, number: int, cached: CachedValues, num_evaluated: int) -> None:
        rule = self.rules[number]
        cost = self.costs.setdefault(self.evaluator.labels[number], Cost())
        cost.rows += num_evaluated
        try:
            values = cached.values()
        except ValueError as error:
            raise UserError(f"{rule.strategy.label} {error}", code="strategy-failed") from error
        self.found[number] = values
        states = values.states[self.requested]
        cost.asked += len(states)
        cost.absent += int((states == NO_IMAGE).sum())
        cost.undecodable += int((states == UNDECODABLE).sum())
        has_any = bool(values.has_value.any())
        if num_evaluated or not has_any:
            self.copied[number] = self._copied(rule, values)
        if not num_evaluated:
            return
        if has_any and self.copied[number]:
            cached.forget_parts()
            return
        cached.finish(values, read_parquet(self.path, ["uid"])["uid"] if rule.strategy.is_signal else None)

    def _copied(self, rule: ResolvedRule, values: Values) -> frozenset[str]:
        """Return the declared columns that hold just these scores, null where a value is missing.

        They can be read again instead of being cached. Of rows without any value, those are the columns that are null
        on all of them.
        """
        strategy = rule.strategy
        if not strategy.is_filter or strategy.features or strategy.images or strategy.signals:
            return frozenset()
        rows = np.flatnonzero(values.states != NOT_EVALUATED)
        has_any = bool(values.has_value[rows].any())
        scores = None
        if has_any and values.values.dtype.kind == "f":
            scores = np.where(values.has_value, values.values, np.nan)[rows]
        found = set()
        for name in rule.columns:
            column = self._column(name).iloc[rows]
            if not has_any:
                is_copy = bool(column.isna().all())
            else:
                is_copy = (
                    scores is not None
                    and column.dtype == scores.dtype
                    and np.array_equal(column.to_numpy() + 0, scores, equal_nan=True)
                )
            if is_copy:
                found.add(name)
        return frozenset(found)

    def _call(
        self, number: int, table: pd.DataFrame, chosen: np.ndarray, images: list[Image.Image] | None = None
    ) -> RowValues:
        """Call a strategy on the chosen rows of its table, which are ascending or in the order of the tars."""
        rule = self.rules[number]
        where = f"{self.path.name}, rows from {chosen[0]}" + (" in the order of the tars" if images is not None else "")
        given = self._arguments(number, table, chosen, images)
        num_repeated = num_to_repeat(rule, len(chosen))
        # Copied before a filter, which may draw on what it is handed, sees them.
        seen = [] if images is None else spread(len(chosen), num_repeated).tolist()
        probes = None if images is None else {row: images[row].copy() for row in seen}
        began = time.perf_counter()
        values, has_value = call_strategy(rule.rule, given, len(chosen), where)
        self.costs.setdefault(self.evaluator.labels[number], Cost()).seconds += time.perf_counter() - began
        if num_repeated:
            answers = Answers(values, has_value)
            repeated = telling_rows(answers, num_repeated) if probes is None else np.array(seen)

            def call_again(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
                own = None if probes is None else [probes[int(row)].copy() for row in rows]
                return call_strategy(rule.rule, self._arguments(number, table, chosen[rows], own), len(rows), where)

            refuse_dependence(rule, answers, repeated, call_again)
            note_repeated(rule, len(repeated))
        return RowValues(chosen, values, np.where(has_value, HAS_VALUE, MISSING).astype(np.uint8))

    def _arguments(
        self, number: int, table: pd.DataFrame, chosen: np.ndarray, images: list[Image.Image] | None
    ) -> list[Any]:
        """Return what a strategy is handed for some rows; copies, as it may change them."""
        rule = self.rules[number]
        is_run = len(chosen) > 0 and np.array_equal(chosen, np.arange(chosen[0], chosen[0] + len(chosen)))
        part = table.iloc[int(chosen[0]) : int(chosen[-1]) + 1] if is_run else table.iloc[chosen]
        return [
            part.reset_index(drop=True),
            *([{name: self._feature(name)[chosen] for name in rule.features}] if rule.features else []),
            *([images] if images is not None else []),
            *([model_of(self.evaluator, number)] if rule.strategy.setup else []),
        ]

    def table(self, number: int) -> pd.DataFrame:
        """Return the columns that a rule declares, of all rows: metadata, its signals, and planted labels."""
        rule = self.rules[number]
        parts = {name: self._column(name) for name in rule.columns}
        for name, signal in self.evaluator.signals[number].items():
            if isinstance(signal, UserSignal):
                parts[name] = read_user_signal(signal, self.pool.read_uids(self.path)).to_series()
            else:
                parts[name] = self.found[signal].to_series()
        if rule.strategy.planted and self.num_rows:
            planted = _planted_rows(self.pool, self.pool.read_uids(self.path), rule.strategy.planted)
            parts |= {str(name): planted[name] for name in planted}
        # A plain RangeIndex even where no column is declared.
        return pd.DataFrame(parts, index=pd.RangeIndex(self.num_rows))

    def _column(self, name: str) -> pd.Series:
        if name not in self._columns:
            wanted = [name, *(each for each in self._needed() if each not in self._columns and each != name)]
            read = self.pool.read_columns(self.path, wanted)
            refuse_changed_shard(self.shard)
            self._columns |= {each: read[each] for each in wanted}
        return self._columns[name]

    def _needed(self) -> list[str]:
        """Return the columns of the rules that are evaluated here: they are read together."""
        numbers = [number for number in self._numbers if number not in self.evaluator.copied]
        return list(dict.fromkeys(column for number in numbers for column in self.rules[number].columns))

    def _feature(self, name: str) -> np.ndarray:
        if name not in self._features:
            self._features |= self.pool.read_features(self.path, [name])
            refuse_changed_shard(self.shard)
        return self._features[name]


def refuse_changed_shard(shard: Shard) -> None:
    """Raise ValueError where a metadata shard's files are no longer what they were when the pool was opened."""
    for path, state in ((shard.path, shard.state), (shard.npz_path, shard.npz_state)):
        if state is not None and not is_remote(path) and state_of(path) != state:
            raise changed(path)


def _planted_rows(pool: Pool, uids: np.ndarray, names: Sequence[str]) -> pd.DataFrame:
    labels = read_parquet(planted_path(pool), ["uid", *names]).to_pandas().drop_duplicates("uid")
    return labels.set_index("uid").reindex(format_uids(uids))[list(names)].reset_index(drop=True)
