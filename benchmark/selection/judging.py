"""What filters and signals say of one metadata shard: called on slices of rows, kept row by row, gone on with.

Each row is asked of a strategy once: what it said before is read (signals.py), the rest is computed. Signals
come before the rules that use them, and rules over images share one pass over the tars.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from PIL import Image

from benchmark.pool.images import ImagePlaces, read_images
from benchmark.pool.pool import Pool, Shard, planted_path
from benchmark.pool.uids import format_uids
from benchmark.runtime.console import warn
from benchmark.runtime.errors import NotFoundError, UserError
from benchmark.runtime.files import digest
from benchmark.runtime.paths import is_remote
from benchmark.runtime.storage import changed, file_hash, hash_file, state_of
from benchmark.runtime.tables import read_parquet
from benchmark.runtime.undeclared import spell_undeclared
from benchmark.runtime.watch import Undeclared
from benchmark.selection.company import Answers, refuse_company, spread, telling_rows
from benchmark.selection.rules import Rule, kept_dir_of
from benchmark.selection.signals import (
    ABSENT,
    JUDGED,
    NO_VERDICT,
    NOT_ASKED,
    UNDECODABLE,
    KeptValues,
    RowValues,
    UserSignal,
    Values,
    join_user_signal,
    joined_values,
    read_undeclared,
    read_user_signal,
    user_signal,
    write_undeclared,
)

SLICE_ROWS = 8192  # a filter is handed at most this many rows at once
SLICE_FEATURES = 4096  # with features
COLUMN, FEATURE, IMAGE = range(3)  # what a rule reads, the cheapest first


@dataclass
class Cost:
    """What one strategy cost on some rows."""

    rows: int = 0  # that it was asked of now, not before
    seconds: float = 0.0  # in the strategy's function, summed over processes
    asked: int = 0  # rows, now or before
    absent: int = 0  # and of these, rows without an image
    undecodable: int = 0

    def plus(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(Cost)))


_ASKED_AGAIN: dict[str, int] = {}  # rows that this process has asked again and found the same, by a rule's identity
NUM_AGAIN = 256  # rows
NUM_AGAIN_COSTLY = 32  # where images or a model are involved


def _labels(rules: Sequence[Rule]) -> list[str]:
    """Return what each of a run's rules is called in its costs: by its name, and its options where two share it."""
    labels = []
    for rule in rules:
        others = [each.options for each in rules if each.name == rule.name and each.key != rule.key]
        told = [f"{name}={value}" for name, value in rule.options.items() if any(o[name] != value for o in others)]
        labels.append(f"{rule.name} ({', '.join(told)})" if told else rule.name)
    return labels


@dataclass
class ShardValues:
    """What all rules say of one metadata shard."""

    values: list[Values]  # of each rule
    copied: dict[int, frozenset[str]]  # by rule, the columns of which its scores may be a mere copy
    efforts: dict[str, Cost] = field(default_factory=dict)  # by strategy, signals among them
    image_effort: Cost = field(default_factory=Cost)  # reading and decoding


_TOLD: set[tuple[str, str]] = set()  # strategies, and which load of them, that were spoken of


class UndeclaredInputError(Exception):
    """A strategy read what it has not declared, after values of an earlier run were used: begin again without them."""


class RuleEvaluator:
    """Judges metadata shards by rules whose assets are found; plain data, so that worker processes can be sent it."""

    def __init__(self, pool: Pool, rules: Sequence[Rule], *, device: str = "cpu") -> None:
        """Find the signals, and where values are kept; raises where a signal is nowhere."""
        self.pool = pool
        self.rules = list(rules)
        self.device = device
        self.all_rules = list(rules)  # and their signals
        self.signals: list[dict[str, int | None]] = []  # of each rule: names, and numbers where they are registered
        self.user_signals: dict[str, UserSignal] = {}  # the others
        self.copied: dict[int, str] = {}  # rules whose scores are known to be a column, with its name
        self.identities: list[dict[str, Any]] = []
        self.kept_dirs: list[Path] = []
        numbers = {rule.key: number for number, rule in enumerate(self.all_rules)}
        for rule in self.all_rules:  # grows while it is walked: signals have signals
            self.signals.append({})
            for name, signal in rule.signal_rules(pool).items():
                if signal is None:
                    self.user_signals[name] = user_signal(pool, name, rule.name)
                    join_user_signal(pool, self.user_signals[name])
                elif signal.key not in numbers:
                    numbers[signal.key] = len(self.all_rules)
                    self.all_rules.append(signal)
                self.signals[-1][name] = None if signal is None else numbers[signal.key]
            self.identities.append(rule.kept_identity(pool, device))
            for option in rule.strategy.assets:
                _forget_if_changed(str(rule.options[option]), str(self.identities[-1]["options"][option]))
            _forget_if_changed(str(rule.strategy.source_path), rule.strategy.version)
            self.kept_dirs.append(kept_dir_of(pool, self.identities[-1]))
        self.labels = _labels(self.all_rules)
        self.model_keys = {
            number: json.dumps([rule.name, device, rule.strategy.setup_options(rule.options)], sort_keys=True)
            for number, rule in enumerate(self.all_rules)
            if rule.strategy.setup is not None
        }
        # What each rule reads undeclared, as far as it is known; and the rules of which values of before are used.
        self.undeclared: dict[int, list[Undeclared]] = {}
        self.has_kept: set[int] = set()
        for number, rule in enumerate(self.all_rules):
            if inputs := list(dict.fromkeys([*rule.strategy.undeclared(), *read_undeclared(self.kept_dirs[number])])):
                self.undeclared[number] = inputs
        # Not the sum of the images' hashes: that says nothing of which image is whose.
        self.tars = pool.hash_tar_contents() if any(rule.strategy.images for rule in self.all_rules) else ""

    def inner(self, number: int) -> list[int]:
        """Return the registered signals that a rule uses."""
        return [each for each in self.signals[number].values() if each is not None]

    def used_by(self, number: int) -> set[int]:
        """Return a rule and the registered signals that it uses, itself or through others."""
        return {number}.union(*(self.used_by(each) for each in self.inner(number)))

    def keeps(self, number: int) -> bool:
        """Tell whether a rule's values may be kept for other runs: neither it nor a signal of it reads undeclared."""
        for each in self.used_by(number):
            if each in self.undeclared or read_undeclared(self.kept_dirs[each]):
                return False
        return True

    def _look_for_undeclared(self) -> None:
        """Say in the folders what strategies were seen to read; UndeclaredInputError where older values are used."""
        for number, rule in enumerate(self.all_rules):
            inputs = rule.strategy.undeclared()
            if inputs and number not in self.undeclared:
                self.undeclared[number] = inputs
                write_undeclared(self.kept_dirs[number], inputs)
                if any(number in self.used_by(each) for each in self.has_kept):
                    raise UndeclaredInputError(rule.name)

    def tell_undeclared(self) -> None:
        """Say once what each strategy reads undeclared, as far as it is known."""
        for number, rule in enumerate(self.all_rules):
            inputs = [*rule.strategy.undeclared(), *read_undeclared(self.kept_dirs[number])]
            if inputs and (rule.name, rule.strategy.version) not in _TOLD:
                _TOLD.add((rule.name, rule.strategy.version))
                warn(spell_undeclared(f"{rule.strategy.kind} {rule.name!r}", list(dict.fromkeys(inputs))))

    def tier(self, number: int) -> int:
        """Return what a rule reads, itself or through its signals: COLUMN, FEATURE or IMAGE."""
        strategy = self.all_rules[number].strategy
        own = IMAGE if strategy.images else FEATURE if strategy.features else COLUMN
        return max([own, *(self.tier(each) for each in self.inner(number))])

    def needs_gpu(self, numbers: Sequence[int]) -> bool:
        """Tell whether one of these rules, or a signal that it uses, computes on a GPU."""
        if self.device != "cuda":
            return False
        return any(self.all_rules[n].strategy.takes_device or self.needs_gpu(self.inner(n)) for n in numbers)

    def values(
        self,
        shard: Shard,
        numbers: Sequence[int],
        *,
        asked: np.ndarray | None = None,
        places: ImagePlaces | None = None,
    ) -> ShardValues:
        """Return what the rules of these numbers say of a metadata shard's rows, of those `asked` ((rows,) bool).

        What was not said before is computed and kept. Raises ValueError or FileNotFoundError where a strategy fails, or
        where its file, or the shard's, are no longer what they were.
        """
        for rule, identity in zip(self.all_rules, self.identities, strict=True):
            if rule.strategy.identity != identity["identity"]:  # a worker loads it anew
                raise changed(rule.strategy.source_path)
        work = _ShardWork(self, shard, asked, places)
        work.judge_by(numbers)
        self._look_for_undeclared()
        return ShardValues([work.found[number] for number in numbers], work.copied, work.efforts, work.images)

    def num_to_ask_again(self, number: int, num_rows: int) -> int:
        """Return how many rows of a slice of a rule's are to be asked again.

        No more once this process has asked enough of them, and none where the rule must not be asked twice.
        """
        strategy = self.all_rules[number].strategy
        wanted = NUM_AGAIN_COSTLY if strategy.images or strategy.setup else NUM_AGAIN
        wanted = min(wanted - _ASKED_AGAIN.get(self._again_key(number), 0), num_rows)
        return 0 if strategy.asks_server or num_rows < 2 or wanted < 2 else wanted

    def passed_again(self, number: int, num_rows: int) -> None:
        """Note that so many rows of a rule's were asked again and said the same; one that is refused stays unknown."""
        key = self._again_key(number)
        _ASKED_AGAIN[key] = _ASKED_AGAIN.get(key, 0) + num_rows

    def _again_key(self, number: int) -> str:
        return json.dumps([self.identities[number], self.device])

    def inputs(self, shard: Shard, number: int) -> str:
        """Identify what a rule's values of a metadata shard are computed from, beside its options."""
        strategy = self.all_rules[number].strategy
        found = [file_hash(shard.path, shard.state)]
        if strategy.features:
            assert shard.npz_state is not None  # checked before anything ran
            found.append(file_hash(shard.npz_path, shard.npz_state))
        if strategy.images:
            found.append(self.tars)
        if strategy.planted:
            found.append(hash_file(planted_path(self.pool)))
        return digest([found, [self.inputs(shard, each) for each in self.inner(number)]])

    def table(self, shard: Shard, number: int, *, asked: np.ndarray) -> pd.DataFrame:
        """Return the columns and signals that a selector declared, of all rows of a metadata shard."""
        work = _ShardWork(self, shard, asked, None)
        work.judge_by([number])
        return work.table(number)


class _ShardWork:
    """The judging of one metadata shard."""

    def __init__(
        self, judge: RuleEvaluator, shard: Shard, asked: np.ndarray | None, places: ImagePlaces | None
    ) -> None:
        self.judge = judge
        self.pool = judge.pool
        self.shard = shard
        self.path = shard.path
        self.num_rows = judge.pool.footer(shard.path).num_rows
        self.asked = np.ones(self.num_rows, dtype=bool) if asked is None else asked
        self.places = places
        self.efforts: dict[str, Cost] = {}
        self.images = Cost()
        self.found: dict[int, Values] = {}
        self.copied: dict[int, frozenset[str]] = {}
        self._columns: dict[str, pd.Series] = {}
        self._features: dict[str, np.ndarray] = {}
        self._numbers: Sequence[int] = ()

    def judge_by(self, numbers: Sequence[int]) -> None:
        """RuleEvaluator by the rules of these numbers, and first by the signals they use."""
        waiting = [number for number in numbers if number not in self.found]
        self._numbers = [*self._numbers, *waiting]
        inner = [each for number in waiting for each in self.judge.inner(number)]
        if inner:
            self.judge_by(list(dict.fromkeys(inner)))
        seeing = [number for number in waiting if self.judge.all_rules[number].strategy.images]
        for number in waiting:
            if self.judge.all_rules[number].strategy.kind == "selector":
                self.found[number] = joined_values([], self.num_rows)
            elif number not in seeing:
                self._judge_rows(number)
        if seeing:
            self._judge_images(seeing)

    def _judge_rows(self, number: int) -> None:
        if number in self.judge.copied:
            column = self._column(self.judge.copied[number])
            # Of a shard without values the column has no type.
            scores = column.to_numpy() if column.dtype.kind == "f" else np.full(self.num_rows, np.nan)
            is_judged = ~np.isnan(scores)
            self.found[number] = Values(
                np.where(is_judged, scores, 0).astype(scores.dtype) + 0,
                np.where(is_judged, JUDGED, NO_VERDICT).astype(np.uint8),
            )
            return
        rule = self.judge.all_rules[number]
        kept, states = self._opened(number)
        missing = np.flatnonzero(self.asked & (states == NOT_ASKED))
        table = self.table(number) if len(missing) else pd.DataFrame()
        step = SLICE_FEATURES if rule.strategy.features else SLICE_ROWS
        for start in range(0, len(missing), step):
            kept.add(self._call(number, table, missing[start : start + step]))
        self._close(number, kept, len(missing))

    def _judge_images(self, numbers: Sequence[int]) -> None:
        """Let several rules judge the images in one pass over the tars; rows without one are told in their states."""
        opened = {number: self._opened(number) for number in numbers}
        missing = {number: self.asked & (states == NOT_ASKED) for number, (_, states) in opened.items()}
        tables = {number: self.table(number) for number in numbers if missing[number].any()}

        def settle(rows: np.ndarray, state: int) -> None:
            for number in numbers:
                own = rows[missing[number][rows]]
                if len(own):
                    told = np.full(len(own), state, dtype=np.uint8)
                    opened[number][0].add(RowValues(own, np.zeros(len(own), dtype=bool), told))

        wanted = np.logical_or.reduce(list(missing.values()))
        if wanted.any():
            if self.places is None:
                raise UserError(
                    f"the kept values of {self.path.name} went while they were needed; run it again",
                    code="signals-changed",
                )
            places = self.places.of_rows(wanted)
            has_place = np.zeros(self.num_rows, dtype=bool)
            has_place[places.rows] = True
            settle(np.flatnonzero(wanted & ~has_place), ABSENT)
            began = time.perf_counter()
            for chosen, images, undecodable in read_images(places):
                self.images.rows += len(images) + len(undecodable)
                self.images.seconds += time.perf_counter() - began
                settle(undecodable, UNDECODABLE)
                for number in numbers if len(chosen) else ():
                    mine = missing[number][chosen]
                    if not mine.any():
                        continue
                    own = [image for image, is_mine in zip(images, mine, strict=True) if is_mine]
                    own = own if len(numbers) == 1 else [image.copy() for image in own]
                    opened[number][0].add(self._call(number, tables[number], chosen[mine], own))
                began = time.perf_counter()
        for number in numbers:
            self._close(number, opened[number][0], int(missing[number].sum()))

    def _opened(self, number: int) -> tuple[KeptValues, np.ndarray]:
        """Return where a rule's values are kept, and the state of every row."""
        path = self.judge.kept_dirs[number] / f"{self.path.stem}.parquet"
        kept = KeptValues(path, partial(self.judge.inputs, self.shard, number), self.num_rows)
        return kept, kept.states()

    def _close(self, number: int, kept: KeptValues, num_missing: int) -> None:
        rule = self.judge.all_rules[number]
        effort = self.efforts.setdefault(self.judge.labels[number], Cost())
        effort.rows += num_missing
        try:
            values = kept.values()
        except ValueError as error:
            raise UserError(f"{rule.strategy.kind} {rule.name!r} {error}", code="strategy-failed") from error
        self.found[number] = values
        states = values.states[self.asked]
        effort.asked += len(states)
        effort.absent += int((states == ABSENT).sum())
        effort.undecodable += int((states == UNDECODABLE).sum())
        has_verdict = bool(values.is_judged.any())
        if num_missing or not has_verdict:
            self.copied[number] = self._copied(rule, values)
        if not num_missing:
            return
        if has_verdict and self.copied[number]:
            kept.forget_parts()
            return
        kept.finish(values, read_parquet(self.path, ["uid"])["uid"] if rule.strategy.kind == "signal" else None)

    def _copied(self, rule: Rule, values: Values) -> frozenset[str]:
        """Return the declared columns that hold just these scores, missing ones where there is no verdict.

        They can be read again instead of being kept. Of rows without any verdict, those are the columns that are
        missing on all of them.
        """
        strategy = rule.strategy
        if strategy.kind != "filter" or strategy.features or strategy.images or strategy.signals:
            return frozenset()
        rows = np.flatnonzero(values.states != NOT_ASKED)
        is_scored = values.values.dtype.kind == "f" and bool(values.is_judged[rows].any())
        scores = np.where(values.is_judged, values.values, np.nan)[rows] if is_scored else None
        found = set()
        for name in strategy.needed_columns(rule.options):
            column = self._column(name).iloc[rows]
            if not values.is_judged[rows].any():
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
        """Let a rule judge the chosen rows of its table, which are ascending or in the order of the tars."""
        rule = self.judge.all_rules[number]
        is_run = len(chosen) > 0 and int(chosen[-1]) - int(chosen[0]) == len(chosen) - 1 and images is None
        part = table.iloc[int(chosen[0]) : int(chosen[-1]) + 1] if is_run else table.iloc[chosen]
        # Copies: a filter may change what it is handed.
        arrays = {name: self._feature(name)[chosen] for name in rule.strategy.needed_features(rule.options)}
        where = f"{self.path.name}, rows from {chosen[0]}" + (" in the order of the tars" if images is not None else "")
        given = [
            part.reset_index(drop=True),
            *([arrays] if rule.strategy.features else []),
            *([images] if images is not None else []),
            *([_model(self.judge, number)] if rule.strategy.setup else []),
        ]
        num_again = self.judge.num_to_ask_again(number, len(chosen))
        # Copied before a filter, which may draw on what it is handed, sees them.
        seen = [] if images is None else spread(len(chosen), num_again).tolist()
        probes = None if images is None else {row: images[row].copy() for row in seen}
        began = time.perf_counter()
        values, is_judged = call_strategy(rule, given, len(chosen), where)
        self.efforts.setdefault(self.judge.labels[number], Cost()).seconds += time.perf_counter() - began
        if num_again:
            answers = Answers(values, is_judged)
            again = telling_rows(answers, num_again) if probes is None else np.array(seen)

            def ask(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
                handed: list[Any] = [table.iloc[chosen[rows]].reset_index(drop=True)]
                if rule.strategy.features:
                    names = rule.strategy.needed_features(rule.options)
                    handed.append({name: self._feature(name)[chosen[rows]] for name in names})
                if probes is not None:
                    handed.append([probes[int(row)].copy() for row in rows])
                if rule.strategy.setup:
                    handed.append(_model(self.judge, number))
                return call_strategy(rule, handed, len(rows), where)

            is_exact = self.judge.device == "cpu" or not rule.strategy.takes_device
            refuse_company(rule, answers, again, ask, is_exact=is_exact)
            self.judge.passed_again(number, len(again))
        return RowValues(chosen, values, np.where(is_judged, JUDGED, NO_VERDICT).astype(np.uint8))

    def table(self, number: int) -> pd.DataFrame:
        """Return the columns that a rule asks for, of all rows: metadata, its signals, and planted labels."""
        rule = self.judge.all_rules[number]
        parts = {name: self._column(name) for name in rule.strategy.needed_columns(rule.options)}
        for name, signal in self.judge.signals[number].items():
            if signal is None:
                parts[name] = self._user_column(name)
            else:
                parts[name] = _as_series(self.found[signal])
        if rule.strategy.planted and self.num_rows:
            planted = _planted_rows(self.pool, self.pool.read_uids(self.path), rule.strategy.planted)
            parts |= {str(name): planted[name] for name in planted}
        # A plain RangeIndex even where no column is asked for.
        return pd.DataFrame(parts, index=pd.RangeIndex(self.num_rows))

    def _column(self, name: str) -> pd.Series:
        if name not in self._columns:
            wanted = [name, *(each for each in self._needed() if each not in self._columns and each != name)]
            read = self.pool.read_columns(self.path, wanted)
            refuse_changed_shard(self.shard)
            self._columns |= {each: read[each] for each in wanted}
        return self._columns[name]

    def _needed(self) -> list[str]:
        """Return the columns of the rules that are asked here: they are read together."""
        return list(
            dict.fromkeys(
                column
                for number in self._numbers
                if number not in self.judge.copied
                for column in self.judge.all_rules[number].strategy.needed_columns(self.judge.all_rules[number].options)
            )
        )

    def _user_column(self, name: str) -> pd.Series:
        uids = self.pool.read_uids(self.path)
        return _as_series(read_user_signal(self.pool, self.judge.user_signals[name], uids))

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


def _told_value(value: Any) -> str:
    if value is None:
        return "None; does it lack a return?"
    dimensions = np.ndim(value)
    return f"a {type(value).__name__}" + (f" of {dimensions} dimensions" if dimensions else "")


def call_strategy(rule: Rule, given: Sequence[Any], num_rows: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Call a filter or signal; return its values (bool, int64, float or object for texts) and which rows have one.

    Raises ValueError that names the strategy, the rows and what was wrong.
    """
    told = f"{rule.strategy.kind} {rule.name!r}"
    try:
        result = rule.strategy.function(*given, **rule.options)
    except FileNotFoundError as error:
        raise file_not_found(rule, error) from error
    except (Exception, SystemExit) as error:
        raise failure(rule, where, error) from error
    if np.ndim(result) != 1:
        raise UserError(
            f"{told} must return one value per row, such as a column of rows; it returned {_told_value(result)} "
            f"({where})",
            code="strategy-result",
        )
    series = result if isinstance(result, pd.Series) else pd.Series(np.asarray(result))
    if len(series) != num_rows or not series.index.equals(pd.RangeIndex(num_rows)):
        raise UserError(
            f"{told} must return one value per row, in the rows' order; it was handed {num_rows} rows "
            f"and returned {len(series)}" + ("" if len(series) != num_rows else " with another index") + f" ({where})",
            code="strategy-result",
        )
    if series.dtype == object:  # a list with None in it
        kinds = {"boolean": "boolean", "floating": "float64", "integer": "Int64", "string": "str"}
        kinds["mixed-integer-float"] = "float64"
        inferred = pd.api.types.infer_dtype(series, skipna=True)
        if inferred == "empty":  # nothing but None
            return np.zeros(num_rows, dtype=bool), np.zeros(num_rows, dtype=bool)
        if inferred in kinds:
            series = pd.Series(series, dtype=kinds[inferred])
    is_judged = series.notna().to_numpy(dtype=bool)
    kind = getattr(series.dtype, "kind", "O")
    if kind == "b":
        return series.fillna(False).to_numpy(dtype=bool), is_judged
    if kind in "iu":
        wide = series.fillna(0).to_numpy()
        values = wide.astype(np.int64)
        if wide.dtype.kind == "u" and (values < 0).any():
            raise UserError(
                f"{told} returned {wide.max()}; whole numbers go up to {2**63 - 1} ({where})", code="strategy-result"
            )
        is_copies = rule.strategy.kind == "filter" and rule.cut is None and not rule.strategy.has_cut
        if is_copies and (values < 0).any():
            raise UserError(
                f"{told} returned {values.min()} copies; copies are 0 or more ({where})", code="strategy-result"
            )
        return values, is_judged
    if kind == "f":
        return np.asarray(series.fillna(0.0).to_numpy()) + 0, is_judged  # -0.0 becomes 0.0
    if rule.strategy.kind == "signal" and isinstance(series.dtype, pd.StringDtype):
        return series.to_numpy(dtype=object), is_judged
    wanted = "bool (keep), float (score) or int (copies)"
    if rule.strategy.kind == "signal":
        wanted = "bools, numbers or texts"
    raise UserError(f"{told} returned values of type {series.dtype}; return {wanted}", code="strategy-result")


def failure(rule: Rule, where: str, error: BaseException) -> UserError:
    """Say which strategy failed on what, and in which line of its file; what it says of its own option stands alone."""
    if isinstance(error, ValueError) and str(error).startswith(f"filters.{rule.name}."):
        return UserError(str(error), code=error.code if isinstance(error, UserError) else "option-value")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == rule.strategy.source_path]
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    told = f"{type(error).__name__}: {error}"
    return UserError(f"{rule.strategy.kind} {rule.name!r} failed on {where}: {told}{place}", code="strategy-failed")


def file_not_found(rule: Rule, error: FileNotFoundError) -> FileNotFoundError:
    """Say which strategy misses a file, unless the sentence says so already."""
    if str(error).startswith(f"filters.{rule.name}.") or (error.errno is None and rule.name in str(error)):
        return error
    told = f"{error.strerror}: {error.filename}" if error.strerror else str(error)
    return NotFoundError(f"{rule.strategy.kind} {rule.name!r} misses a file: {told}", code="asset-not-found")


_ASSETS: dict[str, str] = {}  # by path, the hash of what this process has used


def _forget_if_changed(path: str, found: str) -> None:
    """Empty what modules remember of files by their paths, where one is no longer what it was."""
    if _ASSETS.setdefault(path, found) != found:
        _ASSETS.clear()
        _MODELS.clear()
        for name, module in list(sys.modules.items()):
            if name.startswith(("benchmark.", "winnow_")):
                for each in list(vars(module).values()):
                    if hasattr(each, "cache_clear"):
                        each.cache_clear()
        _ASSETS[path] = found


_MODELS: dict[str, Any] = {}  # by strategy and what it is made from


def _model(judge: RuleEvaluator, number: int) -> Any:
    """Return what a rule's `setup` makes: once per process, for as long as rules of the same judge use it."""
    key = judge.model_keys[number]
    if key not in _MODELS:
        for other in set(_MODELS) - set(judge.model_keys.values()):
            del _MODELS[other]  # before the next one takes memory
        rule = judge.all_rules[number]
        assert rule.strategy.setup is not None
        device = {"device": device_of_worker(judge.device)} if rule.strategy.takes_device else {}
        try:
            _MODELS[key] = rule.strategy.setup(**rule.strategy.setup_options(rule.options), **device)
        except FileNotFoundError as error:
            raise file_not_found(rule, error) from error
        except (Exception, SystemExit) as error:
            raise failure(rule, "its setup", error) from error
    return _MODELS[key]


def device_of_worker(device: str) -> str:
    """Return the device of this process: of several GPUs, worker processes take turns."""
    identity = multiprocessing.current_process()._identity
    if device != "cuda" or not identity:
        return device
    import torch

    return f"cuda:{(identity[-1] - 1) % torch.cuda.device_count()}"


def _as_series(values: Values) -> pd.Series:
    """Return values as a column of a table, missing where there is no verdict."""
    is_judged = values.is_judged
    if values.values.dtype == object:
        return pd.Series(pa.array(values.values, mask=~is_judged, type=pa.string()).to_pandas(), dtype="str")
    if values.values.dtype.kind == "f":
        return pd.Series(np.where(is_judged, values.values, np.array(np.nan, dtype=values.values.dtype)))
    series = pd.Series(values.values)
    return series if is_judged.all() else series.convert_dtypes().mask(~is_judged)


def _planted_rows(pool: Pool, uids: np.ndarray, names: Sequence[str]) -> pd.DataFrame:
    labels = read_parquet(planted_path(pool), ["uid", *names]).to_pandas().drop_duplicates("uid")
    return labels.set_index("uid").reindex(format_uids(uids))[list(names)].reset_index(drop=True)
