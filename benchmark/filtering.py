"""The filter engine: from a pool and a list of strategies to a subset, with a count of who dropped what.

Filters vote on every row of the pool: masks and cut scores gate, ints give copies (the minimum of several). A
selector sees the whole pool, and its subset counts as an int vote. Nothing depends on the order of files or rows.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from benchmark.executor import map_items
from benchmark.pool import Pool
from benchmark.registry import Strategy, get_strategy
from benchmark.stage import Json, sha256_of, warn
from benchmark.subset import Subset
from benchmark.uids import count_of, format_uids, sort_uids, uid_order, unique_uids

SLICE_ROWS = 4096  # a filter is handed at most this many rows at once


@dataclass(frozen=True)
class Cut:
    """How scores become choices: the top `fraction` of the pool's rows, or scores >= `threshold`."""

    kind: str  # "fraction" or "threshold"
    value: float

    def __post_init__(self) -> None:
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

    def as_json(self) -> dict[str, Json]:
        """Return what identifies the rule: name, options, cut, and the hash of the file that it stands in."""
        return {
            "name": self.name,
            "options": self.options,
            "cut": None if self.cut is None else {self.cut.kind: self.cut.value},
            "source": sha256_of(self.strategy.source_path),
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
    filters = [rule for rule in rules if rule.strategy.kind == "filter"]
    uids, values = _filter_values(pool, filters, workers, plugins)

    pool_copies = np.ones(len(uids), dtype=np.int64) if within is None else _copies_per_row(uids, within)
    in_pool = pool_copies > 0
    if within is not None:
        _check_within(uids, within)
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

    subset = Subset(sort_uids(np.repeat(uids, copies)))
    reports = _reports(rules, votes, unjudged)
    if len(subset) == 0:
        story = "; ".join(
            f"{r.name} kept {r.kept:,} of {len(uids):,} rows ({r.no_verdict:,} without a verdict)" for r in reports
        )
        raise ValueError(f"nothing is left of the pool: {story}")
    return FilterOutcome(subset, len(uids), len(uids) - len(unique_uids(sort_uids(uids))[0]), reports)


def check_pool_has(pool: Pool, rules: Sequence[Rule]) -> None:
    """Raise ValueError or FileNotFoundError where the pool lacks a column, array or file that a rule needs."""
    for rule in rules:
        needed_by = f"{rule.strategy.kind} {rule.name!r}"
        pool.check_columns(rule.strategy.needed_columns(rule.options), needed_by)
        pool.check_features(rule.strategy.needed_features(rule.options), needed_by)
        if rule.strategy.planted and not planted_path(pool).exists():
            raise FileNotFoundError(f"{needed_by} is a reference for embedded pools; {planted_path(pool)} is not there")


def score_pool(pool: Pool, rule: Rule) -> tuple[np.ndarray, np.ndarray]:
    """Return a filter's values and which rows have a verdict, both (rows,) in the order of the pool's metadata.

    Raises ValueError or FileNotFoundError where the pool lacks what the filter needs, or where the filter fails.
    """
    check_pool_has(pool, [rule])
    _, (verdicts,) = _filter_values(pool, [rule], 0, ())
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


def _filter_values(
    pool: Pool, rules: Sequence[Rule], workers: int, plugins: Sequence[str]
) -> tuple[np.ndarray, list[_Verdicts]]:
    evaluate = partial(_evaluate_shard, pool.dir, list(rules))
    parts = list(map_items(evaluate, pool.metadata_paths, workers=workers, plugins=plugins, name="filter"))
    uids = np.concatenate([part[0] for part in parts])
    values = []
    for number, rule in enumerate(rules):
        pieces = [part[1][number] for part in parts if len(part[0])]
        kinds = {piece.values.dtype for piece in pieces}
        if len({kind.kind for kind in kinds}) > 1:
            raise ValueError(
                f"filter {rule.name!r} returned different types on different rows: {sorted(map(str, kinds))}"
            )
        values.append(
            _Verdicts(
                np.concatenate([piece.values for piece in pieces] or [np.empty(0, dtype=bool)]),
                np.concatenate([piece.is_judged for piece in pieces] or [np.empty(0, dtype=bool)]),
            )
        )
    return uids, values


def _evaluate_shard(pool_dir: Path, rules: list[Rule], path: Path) -> tuple[np.ndarray, list[_Verdicts]]:
    """Run the filters on one metadata shard; runs in worker processes."""
    pool = Pool(pool_dir)
    uids = pool.read_uids(path)
    columns = dict.fromkeys(column for rule in rules for column in rule.strategy.needed_columns(rule.options))
    rows = pool.read_columns(path, list(columns))
    features = pool.read_features(
        path, list(dict.fromkeys(f for rule in rules for f in rule.strategy.needed_features(rule.options)))
    )
    verdicts = []
    for rule in rules:
        if len(uids) == 0:
            verdicts.append(_Verdicts(np.empty(0, dtype=bool), np.empty(0, dtype=bool)))
            continue
        needed = rows[rule.strategy.needed_columns(rule.options)]
        if rule.strategy.planted:
            needed = pd.concat([needed, _planted_rows(pool, uids, rule.strategy.planted)], axis=1)
        pieces = []
        for start in range(0, len(uids), SLICE_ROWS):
            part = needed.iloc[start : start + SLICE_ROWS].reset_index(drop=True)
            # Copies: a filter may change what it is handed.
            arrays = {
                name: features[name][start : start + SLICE_ROWS].copy()
                for name in rule.strategy.needed_features(rule.options)
            }
            pieces.append(_call_filter(rule, part, arrays, f"{path.name}, rows from {start}"))
        values = [piece.values for piece in pieces]
        verdicts.append(_Verdicts(np.concatenate(values), np.concatenate([piece.is_judged for piece in pieces])))
    return uids, verdicts


def _call_filter(rule: Rule, rows: pd.DataFrame, features: dict[str, np.ndarray], where: str) -> _Verdicts:
    arguments = (rows, features) if rule.strategy.features else (rows,)
    num_rows = len(rows)
    try:
        result = rule.strategy.function(*arguments, **rule.options)
    except FileNotFoundError:
        raise
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
    """Say which strategy failed on what, and in which line of its file."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == rule.strategy.source_path]
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    told = f"{type(error).__name__}: {error}"
    return ValueError(f"{rule.strategy.kind} {rule.name!r} failed on {where}: {told}{place}")


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
    except FileNotFoundError:
        raise
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
            f"within: {len(unknown):,} of {len(distinct):,} uids are not in the pool, such as {_spell(unknown)}"
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
    labels = pq.read_table(planted_path(pool), columns=["uid", *names]).to_pandas().drop_duplicates("uid")
    return labels.set_index("uid").reindex(format_uids(uids))[list(names)].reset_index(drop=True)


def _spell(uids: np.ndarray) -> str:
    return ", ".join(format_uids(uids[:3]))
