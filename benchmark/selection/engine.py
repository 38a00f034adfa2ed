"""The filter engine: from a pool and a list of strategies to a subset, with a count of who dropped what.

Filters vote on every row of the pool: masks and cut scores gate, ints give copies (the minimum of several). A
selector sees the whole pool, and its subset counts as an int vote. Nothing depends on the order of files or rows, but
that of a uid on several rows the earlier rows get the odd copies of an earlier subset.

The pool is walked shard by shard, and memory does not grow with it: rules are evaluated on all rows, the cheap ones
first, and their values are cached (evaluator.py, cache.py); cuts are found by counting (cuts.py); then every shard's
votes are put together (passes.py), and the chosen uids are sorted through files.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.pool.pool import Pool
from benchmark.pool.subset import Subset, load_subset, write_subset
from benchmark.pool.uids import (
    format_uids,
    is_sorted,
    sort_uids,
    sorted_blocks,
    unique_uids,
)
from benchmark.runtime.console import warn
from benchmark.runtime.errors import UserError
from benchmark.runtime.executor import map_items
from benchmark.runtime.files import TEMPORARY_SUFFIX, Json
from benchmark.selection.copies import Copies, LocatedSubset, locate
from benchmark.selection.cuts import NOTHING, OpenCut, TopCut
from benchmark.selection.evaluator import (
    COLUMN,
    IMAGE,
    RuleEvaluator,
    caching,
    image_places,
    repeat_if_undeclared,
)
from benchmark.selection.passes import MAX_COPIES, Passes, Tally, too_many_copies, type_of
from benchmark.selection.rules import ResolvedRule, Rule, resolve_rules
from benchmark.selection.shard_evaluation import Cost
from benchmark.selection.strategy_calls import failure, file_not_found
from benchmark.selection.views import write_view

MAX_QUIET_TIES = 0.01  # of the kept rows: where more are chosen by their uid alone, there is a warning
MANY_SHARDS = 40  # of metadata
MAX_SORTED = 1 << 20  # uids that are sorted in memory; more go through files
DECODING = "images read and decoded"  # among the costs
PUBLISHED_KEYS = {"missing": "no_verdict"}  # of a report in subset.json
SCRATCH_NAME = f"filter{TEMPORARY_SUFFIX}"  # beside the subset, while it is made


@dataclass(frozen=True)
class RuleReport:
    """What one rule did to the pool's rows."""

    name: str
    kept: int
    dropped: int
    only_dropped: int  # rows that every other rule would have kept
    missing: int  # rows without a value; dropped
    tied: int = 0  # rows with the lowest kept score, where not all of them are kept
    tied_kept: int = 0  # and of these, the rows with the smaller uids, which are kept

    def as_json(self) -> dict[str, Json]:
        """Return the report as it stands in records, where rows without a value are `no_verdict`."""
        return {PUBLISHED_KEYS.get(name, name): value for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, value: dict[str, Json]) -> RuleReport:
        """Return a report from a record."""
        names = {published: name for name, published in PUBLISHED_KEYS.items()}
        return cls(**{names.get(key, key): each for key, each in value.items()})


@dataclass(frozen=True)
class FilterOutcome:
    """A subset and how it came about."""

    subset: Subset
    distinct: int  # uids
    max_copies: int  # of the most repeated one
    rows: int  # of the pool, or of `within`
    repeated_uids: int  # chosen rows beyond the first of their uid
    reports: list[RuleReport]
    costs: dict[str, Cost]  # by strategy, signals among them


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
    """Apply the rules to the pool, or to the rows of `within`, and return the subset in memory.

    `device` is what strategies with a `setup` compute on. Raises UserError, before anything expensive, where the pool
    lacks what a rule needs, and where nothing is left.
    """
    resolved = resolve_rules(pool, rules, device=device)
    with tempfile.TemporaryDirectory(prefix="winnow-") as folder:
        outcome = write_filtered(
            pool,
            resolved,
            Path(folder) / "subset.npy",
            within=within,
            workers=workers,
            plugins=plugins,
            executor=executor,
        )
        return FilterOutcome(**{**vars(outcome), "subset": Subset(np.array(outcome.subset.uids))})


def write_filtered(
    pool: Pool,
    rules: Sequence[ResolvedRule],
    subset_path: Path,
    *,
    within: Subset | None = None,
    workers: int = 0,
    plugins: Sequence[str] = (),
    executor: str = "local",
) -> FilterOutcome:
    """Apply rules to the pool that they are resolved against, or to the rows of `within`, and write the subset file.

    Raises UserError where a strategy fails, and where nothing is left.
    """
    if any(rule.is_single_process for rule in rules):
        workers, executor = 0, "local"
    scratch_dir = subset_path.parent / SCRATCH_NAME
    spread = partial(map_items, workers=workers, plugins=plugins, executor=executor)
    try:
        return repeat_if_undeclared(
            lambda: _Engine(pool, rules, _emptied(scratch_dir), spread).write(subset_path, within)
        )
    finally:
        shutil.rmtree(scratch_dir, ignore_errors=True)


class _Engine:
    """One run: the passes over the pool, and what is put together between them."""

    def __init__(
        self,
        pool: Pool,
        rules: Sequence[ResolvedRule],
        scratch_dir: Path,
        spread: Callable[..., Iterator[Any]],
    ) -> None:
        self.pool = pool
        self.rules = rules
        self.scratch_dir = scratch_dir
        self.spread = spread
        self.evaluator = RuleEvaluator(pool, rules)
        self.shards = pool.shards
        self.costs: dict[str, Cost] = {}

    def _walk(self, function: Callable[[Any], Any], name: str) -> Iterator[Any]:
        """Read and count every metadata shard: in this process where they are few, as others take seconds to start."""
        if len(self.shards) < MANY_SHARDS:
            return map_items(function, self.shards, workers=0, name=name)
        return self.spread(function, self.shards, name=name)

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
        passes = Passes(self.evaluator, None if found is None else found.copies)
        with caching(self.evaluator):
            tallies = self._evaluate(passes, within, num_rows)
            passes = Passes(self.evaluator, passes.within, self._find_cuts(passes, tallies, num_rows))
            for number, rule in enumerate(self.rules):
                if rule.strategy.is_selector:
                    passes.chosen[number] = self._select(passes, number, rule)
            return self._apply(passes, tallies, num_rows, subset_path)

    def _evaluate(self, passes: Passes, within: Subset | None, num_rows: int) -> dict[int, Tally]:
        """Evaluate all rules on all rows, those first that read least; end as soon as nothing can be left."""
        tallies: dict[int, Tally] = {}
        for tier in range(COLUMN, IMAGE + 1):
            numbers = [number for number in range(len(self.rules)) if self.evaluator.tier(number) == tier]
            if not numbers:
                continue
            places = image_places(self.evaluator, numbers, within)
            items = list(zip(self.shards, places, strict=True))
            filters = [number for number in numbers if self.rules[number].strategy.is_filter]
            num_passing, image_cost = 0, Cost()
            types: dict[int, list[tuple[np.dtype, bool]]] = {number: [] for number in filters}
            copied: dict[int, frozenset[str] | None] = dict.fromkeys(filters)
            num_gpus = float(self.evaluator.needs_gpu(numbers))
            for part in self.spread(partial(passes.evaluate_shard, numbers), items, name="filter", num_gpus=num_gpus):
                num_passing += part.num_passing
                image_cost = image_cost.plus(part.image_cost)
                for name, cost in part.costs.items():
                    self.costs[name] = self.costs.get(name, Cost()).plus(cost)
                for number, tally in zip(filters, part.tallies, strict=True):
                    types[number].append((tally.dtype, tally.num_valued > 0))
                    # A shard without any value counts: the column may have values there.
                    columns, before = part.copied.get(number, frozenset()), copied[number]
                    copied[number] = columns if before is None else before & columns
                    tallies[number] = tallies[number].plus(tally) if number in tallies else tally
            for number in filters:
                type_of(self.rules[number], types[number])
                if columns := copied[number]:
                    self.evaluator.copied[number] = min(columns)
                _refuse_constant(self.rules[number], tallies[number], num_rows)
            if image_cost.rows:
                self.costs[DECODING] = image_cost
            if tier == IMAGE:
                self._warn_of_images()
            if filters and num_passing == 0 and num_rows:
                kept = {number: self._num_kept(number, tallies[number], num_rows) for number in filters}
                raise _nothing_left(self.rules, kept, tallies, num_rows)
        return tallies

    def _num_kept(self, number: int, tally: Tally, num_rows: int) -> int:
        """Return how many rows a rule keeps, or will keep."""
        cut = self.rules[number].cut
        if cut is None or cut.kind == "threshold":
            return tally.num_kept
        return min(round(cut.value * num_rows), tally.num_valued)

    def _warn_of_images(self) -> None:
        """Warn of rows whose image could not be seen; raises ValueError where none could."""
        numbers = [number for number, rule in enumerate(self.evaluator.all_rules) if rule.strategy.images]
        cost = self.costs[self.evaluator.labels[numbers[0]]]
        labels = " and ".join(self.evaluator.all_rules[number].strategy.label for number in numbers)
        counts = (
            f"{cost.absent:,} of {cost.asked:,} rows have no image in the shards, {cost.undecodable:,} one that "
            "cannot be decoded"
        )
        unseen = cost.absent + cost.undecodable
        if cost.asked and unseen == cost.asked:
            raise UserError(f"{labels}: no image can be read: {counts}", code="images-missing")
        if unseen:
            warn(f"{labels}: {counts}; their values are missing")

    def _find_cuts(self, passes: Passes, tallies: dict[int, Tally], num_rows: int) -> dict[int, TopCut]:
        """Find where each fraction cuts, by further passes over its scores."""
        cuts: dict[int, TopCut] = {}
        opened: dict[int, OpenCut] = {}
        for number, tally in tallies.items():
            rule = self.rules[number]
            if rule.cut is None or tally.histogram is None:
                continue
            wanted = round(rule.cut.value * num_rows)
            if wanted > tally.num_valued > 0:  # of none, the error that nothing is left says enough
                warn(
                    f"filter {rule.name!r}: {wanted:,} rows were wanted but only {tally.num_valued:,} have a score; "
                    "all are kept"
                )
            if wanted >= tally.num_valued:
                cuts[number] = TopCut()
            elif wanted == 0:
                cuts[number] = NOTHING
            else:
                opened[number] = OpenCut(wanted, tally.num_valued).narrowed(tally.histogram)
        while opened:
            parts: dict[int, list[np.ndarray]] = {number: [] for number in opened}
            for part in self._walk(partial(passes.narrow, opened), "cut"):
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
                    _warn_of_ties(self.rules[number], following, num_rows)
                    del opened[number]
                else:
                    opened[number] = following
        return cuts

    def _apply(self, passes: Passes, tallies: dict[int, Tally], num_rows: int, subset_path: Path) -> FilterOutcome:
        """Put the votes together and write the subset."""
        kept = np.zeros(len(self.rules), dtype=np.int64)
        only_dropped = np.zeros(len(self.rules), dtype=np.int64)
        total = num_chosen = distinct = max_copies = 0

        def chosen() -> Iterator[np.ndarray]:
            nonlocal kept, only_dropped, total, num_chosen
            for part in self._walk(partial(passes.apply, MAX_COPIES * num_rows), "write"):
                kept, only_dropped = kept + part.kept, only_dropped + part.only_dropped
                total, num_chosen = total + len(part.uids), num_chosen + part.num_rows
                if total > MAX_COPIES * num_rows:
                    raise too_many_copies(total, num_rows)
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
                missing=tallies[number].num_missing if number in tallies else 0,
                **_ties_of(passes.cuts.get(number, TopCut())),
            )
            for number, rule in enumerate(self.rules)
        ]
        subset = load_subset(subset_path, known_sorted=True)
        return FilterOutcome(subset, distinct, max_copies, num_rows, num_chosen - distinct, reports, self.costs)

    def _locate(self, subset: Subset, name: str, within: Copies | None = None) -> LocatedSubset:
        path = self.scratch_dir / f"{name}.npy"
        return locate(self.pool, subset, path, walk=lambda find: self._walk(find, name), within=within)

    def _select(self, passes: Passes, number: int, rule: ResolvedRule) -> Copies:
        """Let a selector choose, and find its choice in the pool."""
        folder = self.scratch_dir / f"view-{number}"
        view = write_view(self.evaluator, number, passes.within, folder)
        began = time.perf_counter()
        try:
            chosen = rule.strategy.function(view, **rule.options)
        except FileNotFoundError as error:
            raise file_not_found(rule.rule, error) from error
        except (Exception, SystemExit) as error:
            raise failure(rule.rule, "the pool", error) from error
        if not isinstance(chosen, Subset):
            raise UserError(
                f"selector {rule.name!r} must return a Subset, not {type(chosen).__name__}", code="strategy-result"
            )
        self.costs[rule.name] = Cost(len(view.uids), time.perf_counter() - began, len(view.uids))
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


def _emptied(folder: Path) -> Path:
    """Return a folder that is new, or was emptied of what a run that was killed left."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


def _refuse_constant(rule: ResolvedRule, tally: Tally, num_rows: int) -> None:
    """Raise UserError where a fraction would be chosen by uid alone, all scores being the same."""
    if rule.cut is None or rule.cut.kind != "fraction" or tally.lowest != tally.highest:
        return
    if 0 < (wanted := round(rule.cut.value * num_rows)) < tally.num_valued:
        raise UserError(
            f"filter {rule.name!r} gives all {tally.num_valued:,} scored rows the score {tally.lowest:g}, so "
            f"fraction={rule.cut.value:g} would keep the {wanted:,} smallest uids, whatever their samples are; look at "
            f"what it reads, or keep them all with filters.{rule.name}.fraction=1",
            code="constant-score",
        )


def _warn_of_ties(rule: ResolvedRule, cut: TopCut, num_rows: int) -> None:
    """Warn where a good part of what a cut keeps is chosen by uid alone."""
    assert rule.cut is not None
    wanted = round(rule.cut.value * num_rows)
    if cut.ties.kept < cut.ties.rows and cut.ties.kept > MAX_QUIET_TIES * wanted:
        warn(
            f"filter {rule.name!r}: {cut.ties.rows:,} rows have the lowest score that is kept, and only "
            f"{cut.ties.kept:,} of them are kept, the smallest uids: their scores did not choose these, of the "
            f"{wanted:,} kept rows"
        )


def _ties_of(cut: TopCut) -> dict[str, int]:
    """Return how many rows tied at a cut, and how many of them it keeps; none where it keeps all of them."""
    ties = cut.ties
    return {"tied": ties.rows, "tied_kept": ties.kept} if ties.kept < ties.rows else {}


def _nothing_left(
    rules: Sequence[ResolvedRule], kept: dict[int, int], tallies: dict[int, Tally], num_rows: int
) -> UserError:
    story = "; ".join(
        f"{rules[number].name} kept {count:,} of {num_rows:,} rows "
        f"({tallies[number].num_missing if number in tallies else 0:,} missing)"
        for number, count in kept.items()
    )
    return UserError(f"nothing is left of the pool: {story}", code="nothing-left")


def _spell(uids: np.ndarray) -> str:
    return ", ".join(format_uids(uids[:3]))
