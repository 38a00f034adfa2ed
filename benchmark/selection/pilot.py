"""The pilot of `dry_run=true`: what filters and signals will cost on the whole pool, measured on some of its rows."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmark.pool.images import locate_images
from benchmark.pool.pool import Pool, Shard
from benchmark.pool.subset import Subset
from benchmark.pool.uids import count_of, parse_uids
from benchmark.runtime.storage import format_bytes
from benchmark.runtime.tables import iter_batches, read_footer, without_view_types, without_views
from benchmark.selection.cache import CachedValues
from benchmark.selection.engine import DECODING
from benchmark.selection.evaluator import RuleEvaluator
from benchmark.selection.rules import ResolvedRule, resolve_rules
from benchmark.selection.shard_evaluation import Cost
from benchmark.selection.user_signals import UserSignal
from benchmark.selection.values import NOT_EVALUATED

PILOT_ROWS = 10_000


@dataclass(frozen=True)
class Forecast:
    """What a part of the work will cost on the rows that are still to be evaluated."""

    what: str
    rows: int  # still to be evaluated
    cached: int  # rows
    seconds_per_row: float  # of one process
    bytes_per_row: float = 0.0  # that the cached values take
    copied: str | None = None  # the column that the scores only copy

    def line(self, workers: int) -> str:
        """Say it in one line."""
        if not self.rows:
            return f"{self.what}: all {self.cached:,} rows are cached"
        line = f"{self.what}: {self.rows:,} rows to evaluate"
        if self.cached:
            line += f", {self.cached:,} cached"
        if self.seconds_per_row:
            line += f"; {1 / self.seconds_per_row:,.0f} rows/s"
        line += f"; {spell_times(self.rows * self.seconds_per_row, workers)}"
        if self.copied is not None:
            return f"{line}; only copies {self.copied}, so nothing is cached"
        return f"{line}; {format_bytes(round(self.rows * self.bytes_per_row))} to cache" if self.bytes_per_row else line


def pilot_lines(
    pool: Pool, rules: Sequence[ResolvedRule], *, within: Subset | None = None, workers: int = 0, device: str = "cpu"
) -> list[str]:
    """Run the pilot and say what it found; nothing is written beside the pool.

    The rules are resolved against the pool and the device. Raises UserError where a strategy fails.
    """
    shard, requested = _pilot_rows(pool, within)
    path = shard.path
    with tempfile.TemporaryDirectory(prefix="winnow-") as folder:
        # Values are cached there for as long as the pilot takes, and show what they take.
        scratch = pool.with_signals_dir(Path(folder))
        _bring_user_signals(scratch, rules, pool.read_uids(path, requested))
        evaluator = RuleEvaluator(scratch, resolve_rules(scratch, [rule.rule for rule in rules], device=device))
        cache_dirs = {each.key: each.cache_dir for rule in rules for each in rule.with_signals}
        forecasts = _forecasts(pool, evaluator, cache_dirs, shard, requested, within)
    lines = [f"pilot: {int(requested.sum()):,} rows of {path.name} on {device}"]
    lines += [f"  {each.line(workers)}" for each in forecasts]
    lines += [
        f"  {rule.strategy.label}: sees the whole pool at once, so it is not tried"
        for rule in rules
        if rule.strategy.is_selector
    ]
    total = sum(each.rows * each.seconds_per_row for each in forecasts)
    untried = ", without the selectors" if any(rule.strategy.is_selector for rule in rules) else ""
    return [*lines, f"  together{untried}: {spell_times(total, workers)}"]


def spell_times(seconds: float, workers: int) -> str:
    """Spell how long work takes one process and, where there are several, all of them."""
    spelt = f"{_spell(seconds)} of one process"
    return spelt if workers <= 1 or seconds < 60 else f"{spelt}, {_spell(seconds / workers)} with workers={workers}"


def _spell(seconds: float) -> str:
    if seconds < 60:
        return "< 1 minute"
    return f"{seconds / 60:,.0f} minutes" if seconds < 7200 else f"{seconds / 3600:,.1f} hours"


def _pilot_rows(pool: Pool, within: Subset | None) -> tuple[Shard, np.ndarray]:
    """Return the first metadata shard with rows, and a mask of its first ones."""
    shard, requested = pool.shards[0], np.zeros(0, dtype=bool)
    for shard in pool.shards:
        requested = np.ones(pool.footer(shard.path).num_rows, dtype=bool)
        if within is not None:
            requested = count_of(pool.read_uids(shard.path), within.uids) > 0
        requested &= np.cumsum(requested) <= PILOT_ROWS
        if requested.any():
            break
    return shard, requested


def _bring_user_signals(scratch: Pool, rules: Sequence[ResolvedRule], uids: np.ndarray) -> None:
    """Write what the user's parquets say of these uids into the scratch pool's folder of signals."""
    wanted = Subset.of(uids).uids
    for rule in (each for chosen in rules for each in chosen.with_signals):
        for name, signal in rule.signals.items():
            if isinstance(signal, UserSignal):
                for number, path in enumerate(signal.paths):
                    found = read_footer(path).schema.to_arrow_schema()
                    schema = without_view_types(pa.schema([found.field(each) for each in ("uid", name)]))
                    with pq.ParquetWriter(scratch.signals_dir / f"{name}-{number}.parquet", schema) as writer:
                        for batch in iter_batches(path, ["uid", name]):
                            is_wanted = count_of(parse_uids(batch["uid"], str(path)), wanted) > 0
                            table = without_views(pa.Table.from_batches([batch.select(schema.names)]))
                            writer.write_table(table.filter(pa.array(is_wanted)))


def _forecasts(
    pool: Pool,
    evaluator: RuleEvaluator,
    cache_dirs: Mapping[str, Path],
    shard: Shard,
    requested: np.ndarray,
    within: Subset | None,
) -> list[Forecast]:
    """Return what reading, images and every filter and signal will cost."""
    path = shard.path
    num_rows = pool.count_rows() if within is None else within.num_distinct
    numbers = [n for n, rule in enumerate(evaluator.all_rules) if not rule.strategy.is_selector]
    cached = {
        number: _num_cached(pool, evaluator, number, cache_dirs[evaluator.all_rules[number].key], within)
        for number in numbers
    }
    left = {number: max(0, num_rows - cached[number]) for number in numbers}
    is_seen = any(left[number] and evaluator.all_rules[number].strategy.images for number in numbers)
    places = locate_images(pool, Subset.of(pool.read_uids(path, requested)), [path])[0] if is_seen else None
    num_requested = max(1, int(requested.sum()))
    found = evaluator.values(shard, [number for number in numbers if left[number]], requested=requested, places=places)
    reading = _reading_seconds(pool, path, [evaluator.all_rules[number] for number in numbers if left[number]])
    forecasts = []
    if reading:
        forecasts.append(Forecast("columns and arrays read", num_rows, 0, reading / len(requested)))
    if is_seen:
        rows = max(left[n] for n in numbers if evaluator.all_rules[n].strategy.images)
        forecasts.append(Forecast(DECODING, rows, 0, found.image_cost.seconds / num_requested))
    for number in reversed(numbers):  # signals stand behind what uses them
        rule = evaluator.all_rules[number]
        cost = found.costs.get(evaluator.labels[number], Cost())
        forecasts.append(
            Forecast(
                rule.strategy.label,
                left[number],
                cached[number],
                cost.seconds / max(1, cost.rows),
                _bytes_per_row(rule.cache_dir / f"{path.stem}.parquet", num_requested),
                min(found.copied.get(number, ()), default=None) if cost.rows else None,
            )
        )
    return forecasts


def _num_cached(pool: Pool, evaluator: RuleEvaluator, number: int, folder: Path, within: Subset | None) -> int:
    """Count the rows of which a strategy's values are cached in a folder."""
    num_cached = 0
    for shard in pool.shards if folder.exists() else []:
        path = shard.path
        states = CachedValues(
            folder / f"{path.stem}.parquet", partial(evaluator.inputs, shard, number), pool.footer(path).num_rows
        ).states()
        known = states != NOT_EVALUATED
        if within is not None and known.any():
            known &= count_of(pool.read_uids(path), within.uids) > 0
        num_cached += int(known.sum())
    return num_cached


def _reading_seconds(pool: Pool, path: Path, rules: Sequence[ResolvedRule]) -> float:
    """Time the reading of what the rules need of a metadata shard beside the images."""
    columns = {name for rule in rules for name in rule.columns}
    features = {name for rule in rules for name in rule.features}
    if not columns and not features:
        return 0.0
    began = time.perf_counter()
    pool.read_columns(path, sorted(columns))
    pool.read_features(path, sorted(features))
    return time.perf_counter() - began


def _bytes_per_row(path: Path, num_requested: int) -> float:
    """Return what a row takes in a file of cached values, of whose rows some were requested."""
    if not path.exists():
        return 0.0
    footer = read_footer(path)
    sizes = dict.fromkeys(footer.schema.names, 0)
    for group in range(footer.num_row_groups):
        for number in range(footer.num_columns):
            chunk = footer.row_group(group).column(number)
            sizes[chunk.path_in_schema] += chunk.total_compressed_size
    return (sizes["value"] + sizes["state"]) / num_requested + sizes.get("uid", 0) / footer.num_rows
