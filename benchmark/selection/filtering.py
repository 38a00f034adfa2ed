"""The filter engine: from a pool and a list of strategies to a subset, with a count of who dropped what.

Filters vote on every row of the pool: masks and cut scores gate, ints give copies (the minimum of several). A
selector sees the whole pool, and its subset counts as an int vote. Nothing depends on the order of files or rows, but
that of a uid on several rows the earlier rows get the odd copies of an earlier subset.

The pool is walked shard by shard, and memory does not grow with it: rules judge the rows, the cheap ones first, and
what they say is kept (judging.py); cuts are found by counting (cuts.py); then every shard's votes
are put together, and the chosen uids are sorted through files.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa

from benchmark.pool.images import ImagePlaces, locate_images
from benchmark.pool.index import shards_dir_of
from benchmark.pool.pool import Pool, Shard, planted_path
from benchmark.pool.subset import Subset, load_subset, write_subset
from benchmark.pool.uids import (
    UID_DTYPE,
    UidMarks,
    count_of,
    find_uids,
    format_uids,
    is_sorted,
    sort_uids,
    sorted_blocks,
    uid_order,
    unique_uids,
)
from benchmark.runtime.console import warn
from benchmark.runtime.errors import NotFoundError, UserError, one_line
from benchmark.runtime.executor import map_items
from benchmark.runtime.files import TEMPORARY_SUFFIX
from benchmark.runtime.locks import locked
from benchmark.runtime.storage import has_file
from benchmark.runtime.tables import MAX_WHOLE
from benchmark.selection.cuts import NOTHING, OpenCut, RowKeys, TopCut, count_digits, gather_words
from benchmark.selection.judging import (
    COLUMN,
    IMAGE,
    Cost,
    RuleEvaluator,
    UndeclaredInputError,
    failure,
    file_not_found,
    refuse_changed_shard,
)
from benchmark.selection.rules import Rule, known_strategies, make_rule
from benchmark.selection.signals import Values, begin_keeping, common_type, end_keeping, user_signal

Result = TypeVar("Result")

MAX_COPIES = 1000  # of a row, on average
TOLD_TIES = 0.01  # of the kept rows: where more are chosen by their uid alone, there is a warning
LOCKS_NAME = ".locks"  # in the folder of signals
MANY_SHARDS = 40  # of metadata
MAX_SORTED = 1 << 20  # uids that are sorted in memory; more go through files
DECODING = "images read and decoded"  # among the efforts
SCRATCH_NAME = f"filter{TEMPORARY_SUFFIX}"  # beside the subset, while it is made


@dataclass(frozen=True)
class RuleReport:
    """What one rule did to the pool's rows."""

    name: str
    kept: int
    dropped: int
    only_dropped: int  # rows that every other rule would have kept
    no_verdict: int  # rows with a missing value; dropped
    tied: int = 0  # rows with the lowest kept score, where not all of them are kept
    tied_kept: int = 0  # and of these, the rows with the smaller uids, which are kept


@dataclass(frozen=True)
class FilterOutcome:
    """A subset and how it came about."""

    subset: Subset
    distinct: int  # uids
    max_copies: int  # of the most repeated one
    rows: int  # of the pool, or of `within`
    repeated_uids: int  # chosen rows beyond the first of their uid
    reports: list[RuleReport]
    efforts: dict[str, Cost]  # by strategy, signals among them


@dataclass(frozen=True)
class PoolView:
    """What a selector sees: every row of the pool, with the columns and features that it declared."""

    uids: np.ndarray  # (rows,) UID_DTYPE
    columns: pd.DataFrame  # (rows, declared columns and signals)
    features: dict[str, np.ndarray]  # each (rows, dimension), memory-mapped


def run_filters(
    pool: Pool,
    rules: Sequence[Rule],
    *,
    within: Subset | None = None,
    workers: int = 0,
    plugins: Sequence[str] = (),
    executor: str = "local",
    device: str = "cpu",
) -> FilterOutcome:
    """Apply the rules as `write_filtered` does, and return the subset in memory."""
    with tempfile.TemporaryDirectory(prefix="winnow-") as folder:
        outcome = write_filtered(
            pool,
            rules,
            Path(folder) / "subset.npy",
            within=within,
            workers=workers,
            plugins=plugins,
            executor=executor,
            device=device,
        )
        return FilterOutcome(**{**vars(outcome), "subset": Subset(np.array(outcome.subset.uids))})


def write_filtered(
    pool: Pool,
    rules: Sequence[Rule],
    subset_path: Path,
    *,
    within: Subset | None = None,
    workers: int = 0,
    plugins: Sequence[str] = (),
    executor: str = "local",
    device: str = "cpu",
) -> FilterOutcome:
    """Apply the rules to the pool, or to the rows of `within`, and write the subset file.

    `device` is what strategies with a `setup` compute on. Raises ValueError, before anything expensive, where the pool
    lacks what a rule needs, and where nothing is left.
    """
    check_pool_has(pool, rules)
    rules = [rule.with_assets(pool.dir) for rule in rules]
    if any(rule.runs_here_alone(pool) for rule in rules):
        workers, executor = 0, "local"
    scratch_dir = subset_path.parent / SCRATCH_NAME
    spread = partial(map_items, workers=workers, plugins=plugins, executor=executor)
    try:
        return _again_where_undeclared(
            lambda: _Engine(pool, rules, _emptied(scratch_dir), spread, device).write(subset_path, within)
        )
    finally:
        shutil.rmtree(scratch_dir, ignore_errors=True)


def check_pool_has(pool: Pool, rules: Sequence[Rule]) -> None:
    """Raise ValueError or FileNotFoundError where a column, array, signal or file that a rule needs is missing."""
    if rules and not pool.metadata_paths:
        raise UserError(
            f"{pool.dir} has shards alone, and filters need metadata: `winnow pool import` makes them from the tars; "
            "or give subset= of a file",
            code="metadata-missing",
        )
    waiting = list(rules)
    while waiting:
        rule = waiting.pop(0)
        needed_by = f"{rule.strategy.kind} {rule.name!r}"
        pool.check_columns(rule.strategy.needed_columns(rule.options), needed_by)
        pool.check_features(rule.strategy.needed_features(rule.options), needed_by)
        rule.with_assets(pool.dir)
        for name, signal in rule.signal_rules(pool).items():
            if signal is None:
                user_signal(pool, name, rule.name)
            else:
                waiting.append(signal)
        if rule.strategy.planted and not has_file(planted_path(pool)):
            raise NotFoundError(
                f"{needed_by} is a reference for embedded pools; {planted_path(pool)} is not there",
                code="no-embedded-pool",
            )
        if rule.strategy.images and not pool.has_images:
            raise NotFoundError(
                f"{needed_by} needs the images, but there is no tar in {shards_dir_of(pool.dir)}", code="images-missing"
            )


def filters_of(pool: Pool) -> dict[str, str | None]:
    """Say of every registered strategy with default options what the pool lacks for it; None where it can run."""
    lacking: dict[str, str | None] = {}
    for strategy in known_strategies():
        lacking[strategy.name] = None
        if not pool.metadata_paths:
            lacking[strategy.name] = "needs metadata; `winnow pool import` makes it from tars"
            continue
        try:
            check_pool_has(pool, [make_rule(strategy.name, {})])
        except (ValueError, FileNotFoundError) as error:
            told = one_line(error).removeprefix(f"{strategy.kind} {strategy.name!r} ")
            lacking[strategy.name] = told.split(" It has [")[0].split("; the two files")[0].rstrip(".")
    return lacking


def filter_lines(filters: dict[str, str | None]) -> list[str]:
    """Return the lines that say which filters can run, and what the others lack."""
    can = [name for name, lacking in filters.items() if lacking is None]
    lines = [f"filters       {len(can)} of {len(filters)} can run with default options: {', '.join(can) or 'none'}"]
    return lines + [f"  {name} {lacking}" for name, lacking in filters.items() if lacking is not None]


def score_pool(pool: Pool, rule: Rule) -> tuple[np.ndarray, np.ndarray]:
    """Return a filter's values and which rows have a verdict, both (rows,) in the order of the pool's metadata.

    Raises ValueError or FileNotFoundError where the pool lacks what the filter needs, or where the filter fails.
    """
    check_pool_has(pool, [rule])
    return _again_where_undeclared(lambda: _score(pool, rule))


def _score(pool: Pool, rule: Rule) -> tuple[np.ndarray, np.ndarray]:
    judge = RuleEvaluator(pool, [rule.with_assets(pool.dir)])
    places = _places(judge, [0], None)
    with _keeping(judge):
        parts = [
            judge.values(shard, [0], places=each).values[0] for shard, each in zip(pool.shards, places, strict=True)
        ]
    kind = _common_type(rule, [(part.values.dtype, bool(part.is_judged.any())) for part in parts])
    return np.concatenate([p.values.astype(kind) for p in parts]), np.concatenate([p.is_judged for p in parts])


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


# --- Copies of a subset, spread over the pool's rows -----------------------------------------------------------------


@dataclass(frozen=True)
class _Copies:
    """A subset's copies for the rows of a pool: of a uid on several rows, evenly, earlier rows first."""

    path: Path  # of the subset file
    repeated: np.ndarray  # uids on several rows, sorted
    num_rows_of: np.ndarray  # rows of each in the pool
    num_before: dict[int, tuple[np.ndarray, np.ndarray]]  # by shard: which of them it has, and their rows before it
    within: _Copies | None = None  # of the rows with copies of this one alone

    def of(self, shard: int, uids: np.ndarray) -> np.ndarray:
        """Return the copies of a metadata shard's rows, from their uids: (rows,) int64."""
        if self.within is None:
            return self._dealt(shard, uids)
        copies = np.zeros(len(uids), dtype=np.int64)
        is_shown = self.within.of(shard, uids) > 0
        copies[is_shown] = self._dealt(shard, uids[is_shown])
        return copies

    def _dealt(self, shard: int, uids: np.ndarray) -> np.ndarray:
        copies = count_of(uids, load_subset(self.path, known_sorted=True).uids)
        if shard in self.num_before:
            which, before = self.num_before[shard]
            numbers = find_uids(uids, self.repeated)
            rows = np.flatnonzero(numbers >= 0)
            place = _rank_among_equals(numbers[rows]) + before[np.searchsorted(which, numbers[rows])]
            num_rows = self.num_rows_of[numbers[rows]]
            copies[rows] = copies[rows] // num_rows + (place < copies[rows] % num_rows)
        return copies


@dataclass(frozen=True)
class _Found:
    """How a subset lies in a pool."""

    copies: _Copies
    rows: int  # of the pool that have a copy
    num_unknown: int  # its uids that are on no row
    unknown: np.ndarray  # and some of them


def _rank_among_equals(numbers: np.ndarray) -> np.ndarray:
    """Return for each number how many equal ones stand before it: (n,) int64."""
    order = np.argsort(numbers, kind="stable")
    _, starts, counts = np.unique(numbers[order], return_index=True, return_counts=True)
    ranks = np.empty(len(numbers), dtype=np.int64)
    ranks[order] = np.arange(len(numbers)) - np.repeat(starts, counts)
    return ranks


def _places_of(pool: Pool, subset_path: Path, within: _Copies | None, shard: Shard) -> tuple[np.ndarray, np.ndarray]:
    """Return which of a subset's uids (first places) a metadata shard has, and on how many rows; runs in workers.

    Only the rows with copies of `within` count.
    """
    uids = pool.read_uids(shard.path)
    if within is not None:
        uids = uids[within.of(shard.number, uids) > 0]
    places = find_uids(uids, load_subset(subset_path, known_sorted=True).uids)
    found: tuple[np.ndarray, np.ndarray] = np.unique(places[places >= 0], return_counts=True)
    return found


# --- Passes over the pool --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tally:
    """What one rule said of a metadata shard's rows of the pool."""

    dtype: np.dtype
    num_judged: int
    num_unjudged: int
    num_kept: int  # by a mask, a threshold or copies
    histogram: np.ndarray | None = None  # of the scores' first digit, for a cut by fraction
    lowest: float = math.inf  # of these scores
    highest: float = -math.inf

    def plus(self, other: _Tally) -> _Tally:
        counts = ("num_judged", "num_unjudged", "num_kept")
        histogram = None
        if self.histogram is not None and other.histogram is not None:
            histogram = self.histogram + other.histogram
        return _Tally(
            self.dtype,
            **{n: getattr(self, n) + getattr(other, n) for n in counts},
            histogram=histogram,
            lowest=min(self.lowest, other.lowest),
            highest=max(self.highest, other.highest),
        )


@dataclass(frozen=True)
class _JudgedShard:
    tallies: list[_Tally]  # of each rule that was asked
    num_passing: int  # rows that these masks and thresholds let pass
    copied: dict[int, frozenset[str]]  # by rule, the columns of which its scores may be a mere copy
    efforts: dict[str, Cost]
    image_effort: Cost


@dataclass(frozen=True)
class _AppliedShard:
    uids: np.ndarray  # the chosen ones, with their copies
    num_rows: int  # chosen
    kept: np.ndarray  # (rules,)
    only_dropped: np.ndarray  # (rules,)


@dataclass(frozen=True)
class _Passes:
    """What is done with one metadata shard in each pass; plain data, so that worker processes can be sent it."""

    judge: RuleEvaluator
    within: _Copies | None = None
    cuts: dict[int, TopCut] = field(default_factory=dict)  # by rule
    chosen: dict[int, _Copies] = field(default_factory=dict)  # by selector

    def judge_shard(self, numbers: Sequence[int], item: tuple[Shard, ImagePlaces | None]) -> _JudgedShard:
        """Let rules judge a metadata shard."""
        shard, places = item
        asked = self._asked(shard)
        found = self.judge.values(shard, numbers, asked=asked, places=places)
        tallies, passing = [], asked.copy()
        for number, values in zip(numbers, found.values, strict=True):
            rule = self.judge.rules[number]
            if rule.strategy.kind == "selector":
                continue
            _check_kind(rule, values)
            num_judged = int((values.is_judged & asked).sum())
            num_unjudged = int(asked.sum()) - num_judged
            if rule.cut is not None and rule.cut.kind == "fraction":
                keys = self._keys(shard, values, asked)
                tallies.append(
                    _Tally(
                        values.values.dtype,
                        num_judged,
                        num_unjudged,
                        int(asked.sum()),
                        count_digits(keys, OpenCut(0, 0)),
                        float(keys.scores.min(initial=math.inf)),
                        float(keys.scores.max(initial=-math.inf)),
                    )
                )
                continue
            kept = self._votes(number, values) > 0
            if rule.cut is not None or values.values.dtype.kind != "i":
                passing &= kept
            tallies.append(_Tally(values.values.dtype, num_judged, num_unjudged, int((kept & asked).sum())))
        return _JudgedShard(tallies, int(passing.sum()), found.copied, found.efforts, found.image_effort)

    def narrow(self, opened: dict[int, OpenCut], shard: Shard) -> dict[int, np.ndarray]:
        """Count a shard's rows by the next digit of each cut that is open, or gather them where they are few."""
        asked = self._asked(shard)
        found = self.judge.values(shard, list(opened), asked=asked).values
        return {
            number: (gather_words if cut.is_small else count_digits)(self._keys(shard, values, asked), cut)
            for (number, cut), values in zip(opened.items(), found, strict=True)
        }

    def apply(self, max_copies: int, shard: Shard) -> _AppliedShard:
        """Put all votes on a shard's rows together."""
        path = shard.path
        rules = self.judge.rules
        uids = self.judge.pool.read_uids(path) if self.within or self.chosen else None
        pool_copies = None if self.within is None or uids is None else self.within.of(shard.number, uids)
        num_rows = self.judge.pool.footer(path).num_rows
        asked = np.ones(num_rows, dtype=bool) if pool_copies is None else pool_copies > 0
        filters = [number for number, rule in enumerate(rules) if rule.strategy.kind == "filter"]
        found = dict(zip(filters, self.judge.values(shard, filters, asked=asked).values, strict=True))
        gates, wanted = asked.copy(), None
        kept = np.empty((len(rules), num_rows), dtype=bool)
        for number in range(len(rules)):
            if number in self.chosen:
                assert uids is not None
                votes, is_gate = self.chosen[number].of(shard.number, uids), False
            else:
                values = found[number]
                if number in self.cuts:
                    votes, is_gate = np.zeros(num_rows, dtype=np.int64), True
                    keys = self._keys(shard, values, asked)
                    votes[keys.rows[self.cuts[number].keeps(keys)]] = 1
                else:
                    votes = self._votes(number, values)
                    is_gate = rules[number].cut is not None or values.values.dtype.kind != "i"
            kept[number] = (votes > 0) & asked
            if is_gate:
                gates &= votes > 0
            else:
                wanted = votes if wanted is None else np.minimum(wanted, votes)
        if wanted is None:
            wanted = np.ones(num_rows, dtype=np.int64) if pool_copies is None else pool_copies
        copies = np.where(gates, wanted, 0)
        total = float(copies.sum(dtype=np.float64))  # whole numbers may overflow
        if total > max_copies:
            raise _too_many(total, max_copies // MAX_COPIES)
        is_chosen = copies > 0
        chosen_uids = self.judge.pool.read_uids(path, is_chosen) if uids is None else uids[is_chosen]
        if total > is_chosen.sum():
            chosen_uids = np.repeat(chosen_uids, copies[is_chosen])
        refuse_changed_shard(shard)
        num_keepers = kept.sum(axis=0)
        only = (~kept & asked & (num_keepers == len(rules) - 1)).sum(axis=1)
        return _AppliedShard(chosen_uids, int(is_chosen.sum()), kept.sum(axis=1), only)

    def _asked(self, shard: Shard) -> np.ndarray:
        if self.within is None:
            return np.ones(self.judge.pool.footer(shard.path).num_rows, dtype=bool)
        return self.within.of(shard.number, self.judge.pool.read_uids(shard.path)) > 0

    def _votes(self, number: int, values: Values) -> np.ndarray:
        """Return the copies that a mask, a threshold or ints give: (rows,) int64."""
        cut = self.judge.rules[number].cut
        if cut is None:
            return np.where(values.is_judged, values.values, 0).astype(np.int64)
        # Compared in the score's own type, as DataComp does: a float32 score passes its own rounded threshold.
        scores = _scores(values.values)
        return (values.is_judged & (scores >= scores.dtype.type(cut.value))).astype(np.int64)

    def _keys(self, shard: Shard, values: Values, asked: np.ndarray) -> RowKeys:
        rows = np.flatnonzero(values.is_judged & asked)
        return RowKeys(_scores(values.values[rows]), rows, shard.number, partial(self.judge.pool.read_uids, shard.path))


class _Engine:
    """One run: the passes over the pool, and what is put together between them."""

    def __init__(
        self,
        pool: Pool,
        rules: Sequence[Rule],
        scratch_dir: Path,
        spread: Callable[..., Iterator[Any]],
        device: str,
    ) -> None:
        self.pool = pool
        self.rules = rules
        self.scratch_dir = scratch_dir
        self.spread = spread
        self.judge = RuleEvaluator(pool, rules, device=device)
        self.shards = pool.shards
        self.efforts: dict[str, Cost] = {}

    def _walk(self, function: Callable[[Any], Any], items: Sequence[Any], name: str) -> Iterator[Any]:
        """Do what only reads and counts: in this process where the shards are few, as others take seconds to start."""
        if len(items) < MANY_SHARDS:
            return map_items(function, items, workers=0, name=name)
        return self.spread(function, items, name=name)

    def write(self, subset_path: Path, within: Subset | None) -> FilterOutcome:
        found = None if within is None else self._locate(within, "within")
        if found is not None and found.num_unknown:
            assert within is not None
            raise UserError(
                f"within=: {found.num_unknown:,} of {within.num_distinct:,} uids of the subset file are not in the "
                f"pool, such as {_spell(found.unknown)}",
                code="uid-unknown",
            )
        num_rows = self.pool.count_rows() if found is None else found.rows
        passes = _Passes(self.judge, None if found is None else found.copies)
        with _keeping(self.judge):
            tallies = self._judge(passes, within, num_rows)
            passes = _Passes(self.judge, passes.within, self._find_cuts(passes, tallies, num_rows))
            for number, rule in enumerate(self.rules):
                if rule.strategy.kind == "selector":
                    passes.chosen[number] = self._select(passes, number, rule)
            return self._apply(passes, tallies, num_rows, subset_path)

    def _judge(self, passes: _Passes, within: Subset | None, num_rows: int) -> dict[int, _Tally]:
        """Let all rules judge all rows, those first that read least; end as soon as nothing can be left."""
        tallies: dict[int, _Tally] = {}
        for tier in range(COLUMN, IMAGE + 1):
            numbers = [number for number in range(len(self.rules)) if self.judge.tier(number) == tier]
            if not numbers:
                continue
            places = _places(self.judge, numbers, within)
            items = list(zip(self.shards, places, strict=True))
            filters = [number for number in numbers if self.rules[number].strategy.kind == "filter"]
            num_passing, image_effort = 0, Cost()
            types: dict[int, list[tuple[np.dtype, bool]]] = {number: [] for number in filters}
            copied: dict[int, frozenset[str] | None] = dict.fromkeys(filters)
            num_gpus = float(self.judge.needs_gpu(numbers))
            for part in self.spread(partial(passes.judge_shard, numbers), items, name="filter", num_gpus=num_gpus):
                num_passing += part.num_passing
                image_effort = image_effort.plus(part.image_effort)
                for name, effort in part.efforts.items():
                    self.efforts[name] = self.efforts.get(name, Cost()).plus(effort)
                for number, tally in zip(filters, part.tallies, strict=True):
                    types[number].append((tally.dtype, tally.num_judged > 0))
                    # A shard without a verdict counts: the column may have values there.
                    columns, before = part.copied.get(number, frozenset()), copied[number]
                    copied[number] = columns if before is None else before & columns
                    tallies[number] = tallies[number].plus(tally) if number in tallies else tally
            for number in filters:
                _common_type(self.rules[number], types[number])
                if columns := copied[number]:
                    self.judge.copied[number] = min(columns)
                _refuse_constant(self.rules[number], tallies[number], num_rows)
            if image_effort.rows:
                self.efforts[DECODING] = image_effort
            if tier == IMAGE:
                self._tell_images()
            if filters and num_passing == 0 and num_rows:
                kept = {number: self._num_kept(number, tallies[number], num_rows) for number in filters}
                raise _nothing_left(self.rules, kept, tallies, num_rows)
        return tallies

    def _num_kept(self, number: int, tally: _Tally, num_rows: int) -> int:
        """Return how many rows a rule keeps, or will keep."""
        cut = self.rules[number].cut
        if cut is None or cut.kind == "threshold":
            return tally.num_kept
        return min(round(cut.value * num_rows), tally.num_judged)

    def _tell_images(self) -> None:
        """Warn of rows whose image could not be seen; raises ValueError where none could."""
        numbers = [number for number, rule in enumerate(self.judge.all_rules) if rule.strategy.images]
        strategies = [self.judge.all_rules[number].strategy for number in numbers]
        effort = self.efforts[self.judge.labels[numbers[0]]]
        told = " and ".join(f"{strategy.kind} {strategy.name!r}" for strategy in strategies)
        counts = (
            f"{effort.absent:,} of {effort.asked:,} rows have no image in the shards, {effort.undecodable:,} one that "
            "cannot be decoded"
        )
        unseen = effort.absent + effort.undecodable
        if effort.asked and unseen == effort.asked:
            raise UserError(f"{told} has no image to judge: {counts}", code="images-missing")
        if unseen:
            warn(f"{told}: {counts}; they get no verdict")

    def _find_cuts(self, passes: _Passes, tallies: dict[int, _Tally], num_rows: int) -> dict[int, TopCut]:
        """Find where each fraction cuts, by further passes over its scores."""
        cuts: dict[int, TopCut] = {}
        opened: dict[int, OpenCut] = {}
        for number, tally in tallies.items():
            rule = self.rules[number]
            if rule.cut is None or tally.histogram is None:
                continue
            wanted = round(rule.cut.value * num_rows)
            if wanted > tally.num_judged > 0:  # of none, the error that nothing is left says enough
                warn(
                    f"filter {rule.name!r}: {wanted:,} rows were wanted but only {tally.num_judged:,} have a verdict; "
                    "all are kept"
                )
            if wanted >= tally.num_judged:
                cuts[number] = TopCut()
            elif wanted == 0:
                cuts[number] = NOTHING
            else:
                opened[number] = OpenCut(wanted, tally.num_judged).narrowed(tally.histogram)
        while opened:
            parts: dict[int, list[np.ndarray]] = {number: [] for number in opened}
            for part in self._walk(partial(passes.narrow, opened), self.shards, name="cut"):
                for number, found in part.items():
                    if opened[number].is_small or not parts[number]:
                        parts[number].append(found)
                    else:
                        parts[number][0] += found
            for number, cut in list(opened.items()):
                following = (
                    cut.with_word(np.concatenate(parts[number])) if cut.is_small else cut.narrowed(parts[number][0])
                )
                if isinstance(following, TopCut):
                    cuts[number] = following
                    _tell_ties(self.rules[number], following, num_rows)
                    del opened[number]
                else:
                    opened[number] = following
        return cuts

    def _apply(self, passes: _Passes, tallies: dict[int, _Tally], num_rows: int, subset_path: Path) -> FilterOutcome:
        """Put the votes together and write the subset."""
        kept = np.zeros(len(self.rules), dtype=np.int64)
        only_dropped = np.zeros(len(self.rules), dtype=np.int64)
        total = num_chosen = distinct = max_copies = 0

        def chosen() -> Iterator[np.ndarray]:
            nonlocal kept, only_dropped, total, num_chosen
            for part in self._walk(partial(passes.apply, MAX_COPIES * num_rows), self.shards, name="write"):
                kept, only_dropped = kept + part.kept, only_dropped + part.only_dropped
                total, num_chosen = total + len(part.uids), num_chosen + part.num_rows
                if total > MAX_COPIES * num_rows:
                    raise _too_many(total, num_rows)
                yield part.uids

        def counted(blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
            nonlocal distinct, max_copies
            for block in blocks:
                uids, copies = unique_uids(block)
                distinct, max_copies = distinct + len(uids), max(max_copies, int(copies.max(initial=0)))
                yield block
            if not total:
                raise _nothing_left(self.rules, dict(enumerate(kept.tolist())), tallies, num_rows)

        write_subset(subset_path, counted(sorted_blocks(chosen(), self.scratch_dir, max_held=MAX_SORTED)))
        reports = [
            RuleReport(
                rule.name,
                kept=int(kept[number]),
                dropped=num_rows - int(kept[number]),
                only_dropped=int(only_dropped[number]),
                no_verdict=tallies[number].num_unjudged if number in tallies else 0,
                **_ties_of(passes.cuts.get(number, TopCut())),
            )
            for number, rule in enumerate(self.rules)
        ]
        subset = load_subset(subset_path, known_sorted=True)
        return FilterOutcome(subset, distinct, max_copies, num_rows, num_chosen - distinct, reports, self.efforts)

    def _locate(self, subset: Subset, name: str, within: _Copies | None = None) -> _Found:
        """Find on which rows of the pool, or of those with copies of `within`, a subset's uids are."""
        path = self.scratch_dir / f"{name}.npy"
        mapped = getattr(subset.uids, "filename", None)  # of a slice of a map too, which is not the whole file
        if mapped is not None and len(load_subset(mapped, known_sorted=True)) == len(subset):
            path = Path(mapped)
        else:
            np.save(path, subset.uids)
        marks, num_rows, repeated = UidMarks(subset.uids), 0, [np.empty(0, dtype=np.int64)]
        find = partial(_places_of, self.pool, path, within)
        for places, counts in self._walk(find, self.shards, name=name):
            num_rows += int(counts.sum())
            repeated.append(places[(counts > 1) | marks.are_marked(places)])
            marks.mark_places(places)
        places_of_repeated = np.unique(np.concatenate(repeated))
        uids = np.asarray(subset.uids)[places_of_repeated]
        num_rows_of = np.zeros(len(uids), dtype=np.int64)
        num_before: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        if len(uids):
            for shard, (places, counts) in enumerate(self._walk(find, self.shards, name=name)):
                which = np.flatnonzero(np.isin(places_of_repeated, places))
                if len(which):
                    num_before[shard] = which, num_rows_of[which].copy()
                    num_rows_of[which] += counts[np.searchsorted(places, places_of_repeated[which])]
        wanted = count_of(uids, subset.uids)
        num_rows -= int(np.maximum(num_rows_of - wanted, 0).sum())  # rows for which no copy is left
        num_unknown = marks.num_distinct - marks.num_marked
        copies = _Copies(path, np.array(uids), num_rows_of, num_before, within)
        return _Found(copies, num_rows, num_unknown, marks.unmarked(3) if num_unknown else subset.uids[:0])

    def _select(self, passes: _Passes, number: int, rule: Rule) -> _Copies:
        """Let a selector choose, and find its choice in the pool."""
        folder = self.scratch_dir / f"view-{number}"
        view = self._view(passes, number, rule, folder)
        began = time.perf_counter()
        try:
            chosen = rule.strategy.function(view, **rule.options)
        except FileNotFoundError as error:
            raise file_not_found(rule, error) from error
        except (Exception, SystemExit) as error:
            raise failure(rule, "the pool", error) from error
        if not isinstance(chosen, Subset):
            raise UserError(
                f"selector {rule.name!r} must return a Subset, not {type(chosen).__name__}", code="strategy-result"
            )
        self.efforts[rule.name] = Cost(len(view.uids), time.perf_counter() - began, len(view.uids))
        uids = np.asarray(chosen.uids)
        in_order = Subset(uids if is_sorted(uids) else sort_uids(uids))
        found = self._locate(in_order, f"chosen-{number}", passes.within)
        if found.num_unknown:
            raise UserError(
                f"selector {rule.name!r} chose {found.num_unknown} uids that it was not shown, such as "
                f"{_spell(found.unknown)}",
                code="selector-strange-uid",
            )
        del view
        shutil.rmtree(folder)
        return found.copies

    def _view(self, passes: _Passes, number: int, rule: Rule, folder: Path) -> PoolView:
        """Write what a selector declared to files, shard by shard, and map them into memory."""
        folder.mkdir()
        has_columns = bool(rule.strategy.columns or rule.strategy.signals)
        names = rule.strategy.needed_features(rule.options)
        total = 0
        tables: list[pa.Table] = []
        shapes: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
        with ExitStack() as stack:
            uid_file = stack.enter_context((folder / "uids").open("wb"))
            files = {name: stack.enter_context((folder / f"feature-{name}").open("wb")) for name in names}
            for shard in self.shards:
                uids = self.pool.read_uids(shard.path)
                rows = np.ones(len(uids), dtype=bool)
                if passes.within is not None:
                    rows = passes.within.of(shard.number, uids) > 0
                uid_file.write(np.ascontiguousarray(uids[rows]).data)
                total += int(rows.sum())
                for name, array in self.pool.read_features(shard.path, names).items():
                    shape = array.shape[1:], array.dtype
                    if shapes.setdefault(name, shape) != shape:
                        raise UserError(
                            f"{shard.npz_path}: {name} has rows {shape[0]} of {shape[1]}, those of the shards before "
                            f"it are {shapes[name][0]} of {shapes[name][1]}",
                            code="array-shape",
                        )
                    files[name].write(np.ascontiguousarray(array[rows]).data)
                if has_columns:
                    table = self.judge.table(shard, number, asked=rows)
                    path = folder / f"columns-{shard.number}"
                    batch = pa.Table.from_pandas(table[rows], preserve_index=False)
                    with pa.ipc.new_file(path, batch.schema) as writer:
                        writer.write_table(batch)
                    tables.append(pa.ipc.open_file(pa.memory_map(str(path))).read_all())
                refuse_changed_shard(shard)
        frame = pd.DataFrame(index=pd.RangeIndex(total))
        if has_columns:  # of types that differ from shard to shard, the wider
            frame = pa.concat_tables(tables, promote_options="permissive").to_pandas()
        return PoolView(
            # Mapped copy on write: a selector may change what it is handed.
            _mapped(folder / "uids", UID_DTYPE, (total,)),
            frame,
            {name: _mapped(folder / f"feature-{name}", dtype, (total, *s)) for name, (s, dtype) in shapes.items()},
        )


def _mapped(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    return np.memmap(path, dtype=dtype, mode="c", shape=shape) if 0 not in shape else np.empty(shape, dtype=dtype)


@contextmanager
def _keeping(judge: RuleEvaluator) -> Iterator[None]:
    """Hold the folders in which values are kept; one in which none is kept is removed at the end."""
    numbers = {folder: number for number, folder in enumerate(judge.kept_dirs)}
    with ExitStack() as held:
        for folder in sorted(numbers):
            number = numbers[folder]
            # The lock lies beside the folder, which goes where nothing is kept.
            held.enter_context(locked(folder.parent / LOCKS_NAME / folder.name))
            if begin_keeping(folder, judge.identities[number], anew=not judge.keeps(number)):
                judge.has_kept.add(number)
        judge.tell_undeclared()
        try:
            yield
        finally:
            judge.tell_undeclared()
            keeps = {folder: judge.keeps(number) for folder, number in numbers.items()}
            for folder in numbers:
                end_keeping(folder, forget=not keeps[folder])


def _again_where_undeclared(work: Callable[[], Result]) -> Result:
    """Do some work, and again where older values were used of a strategy that is then seen to read undeclared.

    Each time one more strategy is known for it, so this ends.
    """
    while True:
        try:
            return work()
        except UndeclaredInputError:
            continue


def _emptied(folder: Path) -> Path:
    """Return a folder that is new, or was emptied of what a run that was killed left."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


def _places(judge: RuleEvaluator, numbers: Sequence[int], within: Subset | None) -> Sequence[ImagePlaces | None]:
    """Find the images of every metadata shard where one of these rules, or of their signals, sees images."""
    if all(judge.tier(number) != IMAGE for number in numbers):
        return [None] * len(judge.pool.metadata_paths)
    return locate_images(judge.pool, within)


def _scores(values: np.ndarray) -> np.ndarray:
    """Return the values of a filter that scores as floats, in their own type where they are: (n,)."""
    return values if values.dtype.kind == "f" else values.astype(np.float64)


def _refuse_constant(rule: Rule, tally: _Tally, num_rows: int) -> None:
    """Raise UserError where a fraction would be chosen by uid alone, all scores being the same."""
    if rule.cut is None or rule.cut.kind != "fraction" or tally.lowest != tally.highest:
        return
    if 0 < (wanted := round(rule.cut.value * num_rows)) < tally.num_judged:
        raise UserError(
            f"filter {rule.name!r} gives all {tally.num_judged:,} rows with a verdict the score {tally.lowest:g}, so "
            f"fraction={rule.cut.value:g} would keep the {wanted:,} smallest uids, whatever their samples are; look at "
            f"what it reads, or keep them all with filters.{rule.name}.fraction=1",
            code="constant-score",
        )


def _tell_ties(rule: Rule, cut: TopCut, num_rows: int) -> None:
    """Warn where a good part of what a cut keeps is chosen by uid alone."""
    assert rule.cut is not None
    wanted = round(rule.cut.value * num_rows)
    if cut.ties.kept < cut.ties.rows and cut.ties.kept > TOLD_TIES * wanted:
        warn(
            f"filter {rule.name!r}: {cut.ties.rows:,} rows have the lowest score that is kept, and only "
            f"{cut.ties.kept:,} of them are kept, the smallest uids: their scores did not choose these, of the "
            f"{wanted:,} kept rows"
        )


def _ties_of(cut: TopCut) -> dict[str, int]:
    """Return how many rows tied at a cut, and how many of them it keeps; none where it keeps all of them."""
    ties = cut.ties
    return {"tied": ties.rows, "tied_kept": ties.kept} if ties.kept < ties.rows else {}


def _check_kind(rule: Rule, values: Values) -> None:
    """Raise UserError where a filter's values and its cut do not go together."""
    if not values.is_judged.any():
        return
    kind = values.values.dtype.kind
    judged = values.values[values.is_judged]
    if kind == "i" and rule.cut is None and judged.min() < 0:
        raise UserError(
            f"filter {rule.name!r} returned {judged.min()} copies; copies are 0 or more", code="negative-copies"
        )
    if kind == "i" and rule.cut is not None and np.abs(judged).max() > MAX_WHOLE:
        raise UserError(
            f"filter {rule.name!r} returned the score {judged[np.abs(judged).argmax()]}; whole numbers beyond 2^53 are "
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


def _common_type(rule: Rule, kinds: Sequence[tuple[np.dtype, bool]]) -> np.dtype:
    """Return the type of a rule's values; raises ValueError where it returned bools here and numbers there."""
    try:
        return common_type(kinds)
    except ValueError as error:
        raise UserError(f"filter {rule.name!r} {error}", code="strategy-result") from error


def _nothing_left(rules: Sequence[Rule], kept: dict[int, int], tallies: dict[int, _Tally], num_rows: int) -> UserError:
    story = "; ".join(
        f"{rules[number].name} kept {count:,} of {num_rows:,} rows "
        f"({tallies[number].num_unjudged if number in tallies else 0:,} without a verdict)"
        for number, count in kept.items()
    )
    return UserError(f"nothing is left of the pool: {story}", code="nothing-left")


def _too_many(total: float, num_rows: int) -> UserError:
    return UserError(
        f"{total:,.0f} copies of {num_rows:,} rows are asked for; a filter's ints are copies, such as 2",
        code="strategy-result",
    )


def _spell(uids: np.ndarray) -> str:
    return ", ".join(format_uids(uids[:3]))
