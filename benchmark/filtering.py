"""The filter engine: from a pool and a list of strategies to a subset, with a count of who dropped what.

Filters vote on every row of the pool: masks and cut scores gate, ints give copies (the minimum of several). A
selector sees the whole pool, and its subset counts as an int vote. Nothing depends on the order of files or rows.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from benchmark.assets import find_assets, hash_assets
from benchmark.executor import map_items
from benchmark.images import ImagePlaces, locate_images, read_images
from benchmark.index import shards_dir_of
from benchmark.pool import Pool
from benchmark.registry import Strategy, get_strategy
from benchmark.stage import Json, sha256_of, warn
from benchmark.storage import has_file
from benchmark.subset import Subset
from benchmark.tables import read_parquet
from benchmark.uids import count_of, format_uids, sort_uids, uid_order, unique_uids

MAX_COPIES = 1000  # of a row, on average
SLICE_ROWS = 4096  # a filter is handed at most this many rows at once


@dataclass(frozen=True)
class Cut:
    """How scores become choices: the top `fraction` of the pool's rows, or scores >= `threshold`."""

    kind: str  # "fraction" or "threshold"
    value: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"{self.kind}={self.value} is not a finite number")
        if self.kind == "fraction" and not 0 < self.value <= 1:
            raise ValueError(f"fraction={self.value} is outside (0, 1]; 0.3 keeps the top 30 % of the pool")


@dataclass(frozen=True)
class Rule:
    """A strategy with its options, and its cut where it scores. Plain data, so that worker processes can be sent it."""

    name: str
    options: dict[str, Json] = field(default_factory=dict)
    cut: Cut | None = None

    @property
    def strategy(self) -> Strategy:
        return get_strategy(self.name)

    def with_assets(self, pool_dir: Path) -> Rule:
        """Return the rule with the paths of its assets among its options; raises FileNotFoundError."""
        return replace(self, options=find_assets(self.strategy, self.options, pool_dir))

    def as_json(self, pool_dir: Path) -> dict[str, Json]:
        """Return what identifies the rule: name, options, cut, and the hashes of assets and of the file it stands in.

        And the versions of optional packages, where the strategy declares any. Raises FileNotFoundError where an asset
        is nowhere.
        """
        packages = self.strategy.package_versions()
        return {
            "name": self.name,
            "options": hash_assets(self.strategy, self.with_assets(pool_dir).options),
            "cut": None if self.cut is None else {self.cut.kind: self.cut.value},
            "source": sha256_of(self.strategy.source_path),
            **({"packages": packages} if packages else {}),
        }


@dataclass(frozen=True)
class RuleReport:
    """What one rule did to the pool's rows."""

    name: str
    kept: int
    dropped: int
    only_dropped: int  # rows that every other rule would have kept
    no_verdict: int  # rows with a missing value; dropped


@dataclass(frozen=True)
class FilterOutcome:
    """A subset and how it came about."""

    subset: Subset
    rows: int  # of the pool, or of `within`
    repeated_uids: int  # rows beyond the first of their uid
    reports: list[RuleReport]


@dataclass(frozen=True)
class PoolView:
    """What a selector sees: every row of the pool, with the columns and features that it declared."""

    uids: np.ndarray  # (rows,) UID_DTYPE
    columns: pd.DataFrame  # (rows, declared columns)
    features: dict[str, np.ndarray]  # each (rows, dimension)


def run_filters(
    pool: Pool,
    rules: Sequence[Rule],
    *,
    within: Subset | None = None,
    workers: int = 0,
    plugins: Sequence[str] = (),
) -> FilterOutcome:
    """Apply the rules to the pool, or to the rows of `within`.

    Raises ValueError, before anything expensive, where the pool lacks what a rule needs, and where nothing is left.
    """
    check_pool_has(pool, rules)
    if within is not None:
        _check_within(np.concatenate([pool.read_uids(path) for path in pool.metadata_paths]), within)
    rules = [rule.with_assets(pool.dir) for rule in rules]
    filters = [rule for rule in rules if rule.strategy.kind == "filter"]
    uids, values = _filter_values(pool, filters, within, workers, plugins)

    pool_copies = np.ones(len(uids), dtype=np.int64) if within is None else _copies_per_row(uids, within)
    in_pool = pool_copies > 0
    uids, pool_copies = uids[in_pool], pool_copies[in_pool]

    votes: list[np.ndarray] = []  # per rule, copies per row: (rows,) int64
    unjudged: list[int] = []
    gates = np.ones(len(uids), dtype=bool)
    wanted_copies: np.ndarray | None = None
    for rule in rules:
        if rule.strategy.kind == "selector":
            vote, num_unjudged, is_gate = _run_selector(pool, rule, uids, in_pool), 0, False
        else:
            verdicts = values[filters.index(rule)]
            vote, num_unjudged, is_gate = _vote(rule, verdicts.values[in_pool], verdicts.is_judged[in_pool], uids)
        votes.append(vote)
        unjudged.append(num_unjudged)
        if is_gate:
            gates &= vote > 0
        else:
            wanted_copies = vote if wanted_copies is None else np.minimum(wanted_copies, vote)
    copies = np.where(gates, pool_copies if wanted_copies is None else wanted_copies, 0)

    total = copies.sum(dtype=np.float64)  # whole numbers may overflow
    if total > MAX_COPIES * len(uids):
        raise ValueError(
            f"{total:,.0f} copies of {len(uids):,} rows are asked for; a filter's ints are copies, such as 2"
        )
    subset = Subset(sort_uids(np.repeat(uids, copies)))
    reports = _reports(rules, votes, unjudged)
    if len(subset) == 0:
        story = "; ".join(
            f"{r.name} kept {r.kept:,} of {len(uids):,} rows ({r.no_verdict:,} without a verdict)" for r in reports
        )
        raise ValueError(f"nothing is left of the pool: {story}")
    return FilterOutcome(subset, len(uids), len(uids) - len(unique_uids(sort_uids(uids))[0]), reports)


def check_pool_has(pool: Pool, rules: Sequence[Rule]) -> None:
    """Raise ValueError or FileNotFoundError where a column, array or file that a rule needs is missing."""
    if rules and not pool.metadata_paths:
        raise ValueError(
            f"{pool.dir} has shards alone, and filters need metadata: `winnow pool import` makes them from the tars; "
            "or give subset= of a file"
        )
    for rule in rules:
        needed_by = f"{rule.strategy.kind} {rule.name!r}"
        pool.check_columns(rule.strategy.needed_columns(rule.options), needed_by)
        pool.check_features(rule.strategy.needed_features(rule.options), needed_by)
        rule.with_assets(pool.dir)
        if rule.strategy.planted and not has_file(planted_path(pool)):
            raise FileNotFoundError(f"{needed_by} is a reference for embedded pools; {planted_path(pool)} is not there")
        if rule.strategy.images and not pool.has_images:
            raise FileNotFoundError(f"{needed_by} needs the images, but there is no tar in {shards_dir_of(pool.dir)}")


def score_pool(pool: Pool, rule: Rule) -> tuple[np.ndarray, np.ndarray]:
    """Return a filter's values and which rows have a verdict, both (rows,) in the order of the pool's metadata.

    Raises ValueError or FileNotFoundError where the pool lacks what the filter needs, or where the filter fails.
    """
    check_pool_has(pool, [rule])
    _, (verdicts,) = _filter_values(pool, [rule.with_assets(pool.dir)], None, 0, ())
    return verdicts.values, verdicts.is_judged


def planted_path(pool: Pool) -> Path:
    """Return where an embedded pool keeps the labels that were planted when it was drawn."""
    return pool.dir / "planted.parquet"


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


@dataclass(frozen=True)
class _Verdicts:
    values: np.ndarray  # (rows,) bool, int or float
    is_judged: np.ndarray  # (rows,) bool


@dataclass(frozen=True)
class _ShardResult:
    """What the filters said of one metadata shard."""

    uids: np.ndarray  # (rows,)
    verdicts: list[_Verdicts]  # in the order of the rules
    num_undecodable: int = 0  # rows whose image was read and is no picture


def _filter_values(
    pool: Pool, rules: Sequence[Rule], within: Subset | None, workers: int, plugins: Sequence[str]
) -> tuple[np.ndarray, list[_Verdicts]]:
    seeing = [rule.name for rule in rules if rule.strategy.images]
    places = locate_images(pool, within) if seeing else [None] * len(pool.metadata_paths)
    items = list(zip(pool.metadata_paths, places, strict=True))
    evaluate = partial(_evaluate_shard, pool, list(rules))
    parts = list(map_items(evaluate, items, workers=workers, plugins=plugins, name="filter"))
    if seeing:
        _report_images(seeing, [each for each in places if each is not None], sum(p.num_undecodable for p in parts))
    uids = np.concatenate([part.uids for part in parts])
    values = []
    for number, rule in enumerate(rules):
        pieces = [part.verdicts[number] for part in parts if len(part.uids)]
        kind = _common_type(rule, pieces)
        values.append(
            _Verdicts(
                np.concatenate([piece.values.astype(kind, copy=False) for piece in pieces] or [np.empty(0, kind)]),
                np.concatenate([piece.is_judged for piece in pieces] or [np.empty(0, dtype=bool)]),
            )
        )
    return uids, values


def _common_type(rule: Rule, pieces: list[_Verdicts]) -> np.dtype:
    """Return the type of a rule's values; raises ValueError where it returned bools here and numbers there."""
    # Pieces without any verdict, such as rows without images, have no type of their own.
    typed = [piece for piece in pieces if piece.is_judged.any()] or pieces
    kinds = {piece.values.dtype for piece in typed} or {np.dtype(bool)}
    if len({kind.kind for kind in kinds}) > 1:
        raise ValueError(f"filter {rule.name!r} returned different types on different rows: {sorted(map(str, kinds))}")
    return np.result_type(*kinds)


def _report_images(names: list[str], places: Sequence[ImagePlaces], num_undecodable: int) -> None:
    """Warn of rows that the filters over images could not see; raises ValueError where they saw none."""
    rows, absent = sum(each.num_wanted for each in places), sum(each.num_absent for each in places)
    told = " and ".join(repr(name) for name in names)
    counts = f"{absent:,} of {rows:,} rows have no image in the shards, {num_undecodable:,} one that cannot be decoded"
    if rows and absent + num_undecodable == rows:
        raise ValueError(f"filter {told} has no image to judge: {counts}")
    if absent or num_undecodable:
        warn(f"filter {told}: {counts}; they get no verdict")


def _evaluate_shard(pool: Pool, rules: list[Rule], item: tuple[Path, ImagePlaces | None]) -> _ShardResult:
    """Run the filters on one metadata shard; runs in worker processes."""
    path, places = item
    uids = pool.read_uids(path)
    columns = dict.fromkeys(column for rule in rules for column in rule.strategy.needed_columns(rule.options))
    rows = pool.read_columns(path, list(columns))
    features = pool.read_features(
        path, list(dict.fromkeys(f for rule in rules for f in rule.strategy.needed_features(rule.options)))
    )
    tables = []
    for rule in rules:
        needed = rows[rule.strategy.needed_columns(rule.options)]
        if rule.strategy.planted and len(uids):
            needed = pd.concat([needed, _planted_rows(pool, uids, rule.strategy.planted)], axis=1)
        tables.append(needed)

    def call(number: int, chosen: np.ndarray, *images: list[Image.Image]) -> _Verdicts:
        """Let a rule judge the chosen rows, which are ascending or in the order of the tars."""
        part = tables[number].iloc[chosen].reset_index(drop=True)
        # Copies: a filter may change what it is handed.
        arrays = {
            name: features[name][chosen] for name in rules[number].strategy.needed_features(rules[number].options)
        }
        where = f"{path.name}, rows from {chosen[0]}" + (" in the order of the tars" if images else "")
        return _call_filter(rules[number], part, arrays, images, where)

    pieces: list[list[tuple[np.ndarray, _Verdicts]]] = [[] for _ in rules]
    for number in (number for number, rule in enumerate(rules) if not rule.strategy.images):
        for start in range(0, len(uids), SLICE_ROWS):
            chosen = np.arange(start, min(start + SLICE_ROWS, len(uids)))
            pieces[number].append((chosen, call(number, chosen)))
    num_undecodable = 0
    if places is not None:
        seeing = [number for number, rule in enumerate(rules) if rule.strategy.images]
        for chosen, images, num_refused in read_images(places):
            num_undecodable += num_refused
            for number in seeing if len(chosen) else ():
                own = images if len(seeing) == 1 else [image.copy() for image in images]
                pieces[number].append((chosen, call(number, chosen, own)))
    return _ShardResult(
        uids, [_gather(rule, each, len(uids)) for rule, each in zip(rules, pieces, strict=True)], num_undecodable
    )


def _gather(rule: Rule, pieces: list[tuple[np.ndarray, _Verdicts]], num_rows: int) -> _Verdicts:
    """Put a rule's verdicts on some rows each where the rows stand; a row that none of them has is not judged."""
    kind = _common_type(rule, [verdicts for _, verdicts in pieces])
    values, is_judged = np.zeros(num_rows, dtype=kind), np.zeros(num_rows, dtype=bool)
    for chosen, verdicts in pieces:
        values[chosen], is_judged[chosen] = verdicts.values.astype(kind, copy=False), verdicts.is_judged
    return _Verdicts(values, is_judged)


def _call_filter(
    rule: Rule,
    rows: pd.DataFrame,
    features: dict[str, np.ndarray],
    images: tuple[list[Image.Image], ...],
    where: str,
) -> _Verdicts:
    arguments = (rows, *([features] if rule.strategy.features else []), *images)
    num_rows = len(rows)
    try:
        result = rule.strategy.function(*arguments, **rule.options)
    except FileNotFoundError as error:
        raise _file_not_found(rule, error) from error
    except (Exception, SystemExit) as error:
        raise _failure(rule, where, error) from error
    if np.ndim(result) != 1:
        raise ValueError(
            f"filter {rule.name!r} must return one value per row, not {np.ndim(result)} dimensions ({where})"
        )
    series = result if isinstance(result, pd.Series) else pd.Series(np.asarray(result))
    if len(series) != num_rows or not series.index.equals(pd.RangeIndex(num_rows)):
        raise ValueError(
            f"filter {rule.name!r} must return one value per row, in the rows' order; it was handed {num_rows} rows "
            f"and returned {len(series)}" + ("" if len(series) != num_rows else " with another index") + f" ({where})"
        )
    if series.dtype == object:  # a list with None in it
        inferred = pd.api.types.infer_dtype(series, skipna=True)
        if inferred == "boolean":
            series = series.astype("boolean")
        elif inferred == "floating":
            series = series.astype("float64")
        elif inferred == "integer":
            series = series.astype("Int64")
    is_judged = series.notna().to_numpy(dtype=bool)
    kind = getattr(series.dtype, "kind", "O")
    if kind == "b":
        values = series.fillna(False).to_numpy(dtype=bool)
    elif kind in "iu":
        values = series.fillna(0).to_numpy(dtype=np.int64)
        if (values < 0).any():
            raise ValueError(f"filter {rule.name!r} returned {values.min()} copies; copies are 0 or more ({where})")
    elif kind == "f":
        values = np.asarray(series.fillna(0.0).to_numpy()) + 0  # -0.0 becomes 0.0
    else:
        raise ValueError(
            f"filter {rule.name!r} returned values of type {series.dtype}; "
            "return bool (keep), float (score) or int (copies)"
        )
    return _Verdicts(values, is_judged)


def _failure(rule: Rule, where: str, error: BaseException) -> ValueError:
    """Say which strategy failed on what, and in which line of its file; what it says of its own option stands alone."""
    if isinstance(error, ValueError) and str(error).startswith(f"filters.{rule.name}."):
        return ValueError(str(error))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == rule.strategy.source_path]
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    told = f"{type(error).__name__}: {error}"
    return ValueError(f"{rule.strategy.kind} {rule.name!r} failed on {where}: {told}{place}")


def _file_not_found(rule: Rule, error: FileNotFoundError) -> FileNotFoundError:
    """Say which strategy misses a file, unless the sentence says so already."""
    if str(error).startswith(f"filters.{rule.name}.") or (error.errno is None and rule.name in str(error)):
        return error
    told = f"{error.strerror}: {error.filename}" if error.strerror else str(error)
    return FileNotFoundError(f"{rule.strategy.kind} {rule.name!r} misses a file: {told}")


def _vote(rule: Rule, values: np.ndarray, is_judged: np.ndarray, uids: np.ndarray) -> tuple[np.ndarray, int, bool]:
    """Turn a filter's values into copies per row; return them, the rows without a verdict, and whether it is a gate."""
    unjudged = int((~is_judged).sum())
    kind = values.dtype.kind
    if kind == "f" and rule.cut is None:
        raise ValueError(
            f"filter {rule.name!r} returned scores but declares no cut: "
            "write @register_filter(fraction=...) or threshold=..."
        )
    if kind != "f" and rule.cut is not None:
        raise ValueError(f"filter {rule.name!r} declares a cut but returned {values.dtype} instead of float scores")
    if rule.cut is None:
        return np.where(is_judged, values, 0).astype(np.int64), unjudged, kind == "b"
    if rule.cut.kind == "threshold":
        # Compared in the score's own type, as DataComp does: a float32 score passes its own rounded threshold.
        return (is_judged & (values >= values.dtype.type(rule.cut.value))).astype(np.int64), unjudged, True
    judged = np.flatnonzero(is_judged)
    wanted = round(rule.cut.value * len(uids))
    if wanted > len(judged):
        warn(f"filter {rule.name!r}: {wanted:,} rows were wanted but only {len(judged):,} have a verdict; all are kept")
    vote = np.zeros(len(uids), dtype=np.int64)
    vote[judged[top_fraction(values[judged], uids[judged], rule.cut.value, len(uids))]] = 1
    return vote, unjudged, True


def _run_selector(pool: Pool, rule: Rule, uids: np.ndarray, in_pool: np.ndarray) -> np.ndarray:
    strategy = rule.strategy
    columns = [pool.read_columns(path, strategy.needed_columns(rule.options)) for path in pool.metadata_paths]
    names = strategy.needed_features(rule.options)
    features = [pool.read_features(path, names) for path in pool.metadata_paths] if names else []
    view = PoolView(
        uids.copy(),  # a selector may change what it is handed
        pd.concat(columns, ignore_index=True)[in_pool].reset_index(drop=True),
        {name: np.concatenate([part[name] for part in features])[in_pool] for name in names},
    )
    try:
        chosen = strategy.function(view, **rule.options)
    except FileNotFoundError as error:
        raise _file_not_found(rule, error) from error
    except (Exception, SystemExit) as error:
        raise _failure(rule, "the pool", error) from error
    if not isinstance(chosen, Subset):
        raise ValueError(f"selector {rule.name!r} must return a Subset, not {type(chosen).__name__}")
    foreign = chosen.uids[count_of(chosen.uids, sort_uids(uids)) == 0]
    if len(foreign):
        raise ValueError(
            f"selector {rule.name!r} chose {len(foreign)} uids that it was not shown, such as {_spell(foreign)}"
        )
    return _copies_per_row(uids, chosen)


def _copies_per_row(uids: np.ndarray, subset: Subset) -> np.ndarray:
    """Spread each uid's copies in the subset evenly over its rows, earlier rows first: (rows,) int64."""
    copies = count_of(uids, subset.uids)
    order = uid_order(uids)
    ordered = uids[order]
    if len(ordered) == 0:
        return copies
    is_first = np.concatenate(([True], ordered[1:] != ordered[:-1]))
    starts = np.flatnonzero(is_first)
    lengths = np.diff(np.append(starts, len(ordered)))
    place = np.arange(len(ordered)) - np.repeat(starts, lengths)  # of a row among its uid's rows
    rows_of_uid = np.repeat(lengths, lengths)
    spread = np.empty_like(copies)
    total = copies[order]
    spread[order] = total // rows_of_uid + (place < total % rows_of_uid)
    return spread


def _check_within(uids: np.ndarray, within: Subset) -> None:
    distinct, _ = unique_uids(within.uids)
    unknown = distinct[count_of(distinct, sort_uids(uids)) == 0]
    if len(unknown):
        raise ValueError(
            f"within=: {len(unknown):,} of {len(distinct):,} uids of the subset file are not in the pool, such as "
            f"{_spell(unknown)}"
        )


def _reports(rules: Sequence[Rule], votes: list[np.ndarray], unjudged: list[int]) -> list[RuleReport]:
    kept = np.array([vote > 0 for vote in votes])  # (rules, rows)
    num_keepers = kept.sum(axis=0)
    return [
        RuleReport(
            rule.name,
            kept=int(kept[number].sum()),
            dropped=int((~kept[number]).sum()),
            only_dropped=int((~kept[number] & (num_keepers == len(rules) - 1)).sum()),
            no_verdict=unjudged[number],
        )
        for number, rule in enumerate(rules)
    ]


def _planted_rows(pool: Pool, uids: np.ndarray, names: Sequence[str]) -> pd.DataFrame:
    labels = read_parquet(planted_path(pool), ["uid", *names]).to_pandas().drop_duplicates("uid")
    return labels.set_index("uid").reindex(format_uids(uids))[list(names)].reset_index(drop=True)


def _spell(uids: np.ndarray) -> str:
    return ", ".join(format_uids(uids[:3]))
