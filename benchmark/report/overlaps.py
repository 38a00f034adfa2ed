"""Overlap with what the shipped strategies choose, each alone with its defaults.

A strategy's subset is read from an experiment beside this one, or from the user's cache. Filters that are found
nowhere are run here on pools of up to DIRECT_ROWS rows; selectors and filters that look at images may take minutes
and are never run here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmark.experiment.choice import FILTER_VERSION, subset_inputs
from benchmark.pool.pool import Pool
from benchmark.pool.subset import SUBSET_NAME, SUBSET_RECORD_NAME, Subset, load_subset
from benchmark.pool.subset_algebra import overlaps_of
from benchmark.registry import FILTERS_DIR, STRATEGIES
from benchmark.report.survey import has_column
from benchmark.runtime.errors import UserError
from benchmark.runtime.files import Json, digest, sha256_of
from benchmark.runtime.locks import locked
from benchmark.runtime.paths import cache_dir
from benchmark.runtime.records import Record, read_record, write_record
from benchmark.runtime.storage import file_hash
from benchmark.runtime.strategies import Strategy
from benchmark.selection.asset_kinds import NO_WEIGHTS
from benchmark.selection.assets import find_default
from benchmark.selection.engine import run_filters
from benchmark.selection.rule_records import as_recorded, without_sources
from benchmark.selection.rules import ResolvedRule, filter_defaults, make_rule

CACHE_VERSION = 1
DIRECT_ROWS = 200_000


@dataclass(frozen=True)
class StrategyOverlap:
    """What two subsets share, in uids: one with several copies counts once."""

    name: str
    cut: str
    size: int
    shared: int
    only_this: int  # uids of the experiment's subset alone
    only_that: int

    @property
    def jaccard(self) -> float:
        """Return the Jaccard index of uids: shared over all of either subset (`subset_algebra.Overlap.uid_jaccard`)."""
        return self.shared / (self.shared + self.only_this + self.only_that)


@dataclass(frozen=True)
class Comparable:
    """A shipped strategy with its defaults, and where its subset of the pool is to be had."""

    rule: ResolvedRule
    known_path: Path | None  # of its subset; None where it is not known yet
    is_direct: bool  # it may be run here

    def as_json(self) -> dict[str, Json]:
        """Return what a report depends on: where a filter may be run, its subset follows from the rule."""
        known = None if self.is_direct or self.known_path is None else sha256_of(self.known_path)
        return {**without_sources(self.rule.as_json()), "subset": known}


def comparables(pool: Pool, exp_dir: Path) -> tuple[list[Comparable], dict[str, str]]:
    """Return the shipped strategies that the pool can run with their defaults, and why others are left out."""
    found, skipped = [], {}
    beside = _experiments_beside(exp_dir)
    for name in sorted(STRATEGIES):
        strategy = STRATEGIES[name]
        if strategy.source_path.parent != FILTERS_DIR or strategy.is_signal:
            continue
        if reason := _why_not(pool, strategy):
            skipped[name] = reason
            continue
        try:
            rule = make_rule(name, filter_defaults(strategy)).resolve(pool)
        except UserError as error:  # a signal of it lacks something; without paths, as below
            skipped[name] = f"the pool lacks what it needs ({error.code})"
            continue
        is_direct = strategy.is_filter and not rule.sees_images and pool.count_rows() <= DIRECT_ROWS
        found.append(Comparable(rule, _known_path(pool, rule, beside), is_direct))
    return found, skipped


def overlaps_with(
    pool: Pool, subset: Subset, strategies: Sequence[Comparable]
) -> tuple[list[StrategyOverlap], list[str], dict[str, str]]:
    """Compare the subset with the strategies' own.

    Return the overlaps, the names of those whose subset is not known yet, and why others could not be had.
    """
    overlaps, unknown, failures = [], [], {}
    for each in strategies:
        rule = each.rule
        if each.known_path is not None:
            chosen = load_subset(each.known_path)
        elif each.is_direct:
            try:
                chosen = run_filters(pool, [rule.rule]).subset
            except (ValueError, FileNotFoundError) as error:
                failures[rule.name] = str(error)
                continue
            keep_default_subset(pool, rule, chosen)
        else:
            unknown.append(rule.name)
            continue
        (found,) = overlaps_of(("this", rule.name), (subset.uids, chosen.uids))  # walked through block by block
        own, other, shared = subset.num_distinct, chosen.num_distinct, found.shared_uids
        overlaps.append(StrategyOverlap(rule.name, spell_cut(rule), other, shared, own - shared, other - shared))
    return overlaps, unknown, failures


def spell_cut(rule: ResolvedRule) -> str:
    """Spell a rule's cut, empty where it has none."""
    return "" if rule.cut is None else f"{rule.cut.kind} {rule.cut.value:g}"


def keep_default_subset(pool: Pool, rule: ResolvedRule, subset: Subset) -> None:
    """Keep what a strategy with its defaults chose, for the reports of other experiments on the pool."""
    path = _cached_path(pool, rule)
    with locked(path.parent):
        subset.write(path)
        result = {"sha256": sha256_of(path)}
        write_record(path.with_suffix(".json"), Record("default subset", CACHE_VERSION, _cache_key(pool, rule), result))


def _known_path(pool: Pool, rule: ResolvedRule, beside: Sequence[tuple[Path, Record]]) -> Path | None:
    wanted = subset_inputs(pool, [rule])
    candidates = [(folder / SUBSET_NAME, record.result["sha256"]) for folder, record in beside]
    inputs = [record.inputs for _, record in beside]
    places = [place for place, there in zip(candidates, inputs, strict=True) if there == as_recorded(wanted, there)]
    if not any(_cached_subsets().glob(f"{rule.name}-*.npy")):  # spares hashing large .npz files
        return _unchanged(places)
    cached_path = _cached_path(pool, rule)
    try:
        record = read_record(cached_path.with_suffix(".json"))
    except ValueError:
        record = None  # damaged, so not known
    if record is not None and record.inputs == _cache_key(pool, rule):
        places.append((cached_path, record.result["sha256"]))
    return _unchanged(places)


def _unchanged(places: Sequence[tuple[Path, str]]) -> Path | None:
    """Return the first file that still has its sha256."""
    return next((path for path, sha256 in places if path.is_file() and sha256_of(path) == sha256), None)


def _experiments_beside(exp_dir: Path) -> list[tuple[Path, Record]]:
    """Return the experiments next to this one, itself among them, that have a subset of this version."""
    found = []
    for path in sorted(exp_dir.resolve().parent.glob(f"*/{SUBSET_RECORD_NAME}")):
        try:
            record = read_record(path)
        except (ValueError, OSError):
            continue  # somebody else's file, or damaged: theirs to mend
        if record is not None and (record.stage, record.version) == ("filter", FILTER_VERSION):
            found.append((path.parent, record))
    return found


def _cache_key(pool: Pool, rule: ResolvedRule) -> dict[str, Json]:
    """Return what a default subset depends on; also what is in metadata and features, not in the fingerprint."""
    return {
        "pool": pool.compute_fingerprint(),
        "rule": without_sources(rule.as_json()),
        "metadata": metadata_contents(pool, [rule]),
        "filter": FILTER_VERSION,
    }


def metadata_contents(pool: Pool, rules: Sequence[ResolvedRule]) -> str:
    """Return a hash of what is in every metadata shard, and in the .npz beside it where one of the rules reads that.

    A file is read again only when its size or time changed.
    """
    with_features = any(each.strategy.features for rule in rules for each in rule.with_signals)
    files = [(shard.path, shard.state) for shard in pool.shards]
    if with_features:
        files += [(shard.npz_path, shard.npz_state) for shard in pool.shards if shard.npz_state is not None]
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # hashing large files leaves the others free
        return digest(list(threads.map(file_hash, *zip(*files, strict=True)))) if files else digest([])


def _cached_subsets() -> Path:
    return cache_dir() / "subsets"


def _cached_path(pool: Pool, rule: ResolvedRule) -> Path:
    return _cached_subsets() / f"{rule.name}-{digest(_cache_key(pool, rule))[:32]}.npy"


def _why_not(pool: Pool, strategy: Strategy) -> str:
    """Say why the pool cannot run a strategy with its defaults; empty where it can."""
    if strategy.reference:
        return "a reference"
    if not pool.metadata_paths:
        return "the pool has shards only, and filters need metadata"
    required = [option.name for option in strategy.options.values() if option.is_required]
    if required:
        return f"its option {required[0]!r} has no default"
    options = {option.name: option.default for option in strategy.options.values()}
    lacking = [column for column in strategy.needed_columns(options) if not has_column(pool, column)]
    for feature in strategy.needed_features(options):
        try:
            pool.check_features([feature], strategy.name)
        except (ValueError, FileNotFoundError):
            lacking.append(feature)
    if lacking:
        return f"the pool lacks {', '.join(lacking)}"
    needed = [name for name in strategy.needed_assets(options).values() if name != NO_WEIGHTS]
    absent = [name for name in needed if not find_default(name, pool.dir)]
    # Without the folders' paths: the page is the same wherever the pool lies.
    return f"it needs {' and '.join(absent)}" if absent else ""
