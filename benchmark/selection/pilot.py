"""The pilot of `dry_run=true`: what filters and signals will cost on the whole pool, measured on some of its rows."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
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
from benchmark.selection.filtering import DECODING, check_pool_has
from benchmark.selection.judging import Cost, RuleEvaluator
from benchmark.selection.rules import Rule
from benchmark.selection.signals import NOT_ASKED, KeptValues, user_signal

PILOT_ROWS = 10_000


@dataclass(frozen=True)
class Forecast:
    """What a part of the work will cost on the rows that are still to be asked."""

    what: str
    rows: int  # still to be asked
    kept: int  # rows whose values are kept from before
    seconds_per_row: float  # of one process
    bytes_per_row: float = 0.0  # that the kept values take
    copied: str | None = None  # the column that the scores only copy

    def line(self, workers: int) -> str:
        """Say it in one line."""
        if not self.rows:
            return f"{self.what}: all {self.kept:,} rows are kept from before"
        told = f"{self.what}: {self.rows:,} rows to ask"
        if self.kept:
            told += f", {self.kept:,} kept from before"
        if self.seconds_per_row:
            told += f"; {1 / self.seconds_per_row:,.0f} rows/s"
        told += f"; {spell_times(self.rows * self.seconds_per_row, workers)}"
        if self.copied is not None:
            return f"{told}; only copies {self.copied}, so nothing is kept"
        return f"{told}; {format_bytes(round(self.rows * self.bytes_per_row))} to keep" if self.bytes_per_row else told


def pilot_lines(
    pool: Pool, rules: Sequence[Rule], *, within: Subset | None = None, workers: int = 0, device: str = "cpu"
) -> list[str]:
    """Run the pilot and say what it found; nothing is written beside the pool.

    Raises ValueError or FileNotFoundError where the pool lacks what a rule needs, or where a strategy fails.
    """
    check_pool_has(pool, rules)
    rules = [rule.with_assets(pool.dir) for rule in rules]
    shard, asked = _pilot_rows(pool, within)
    path = shard.path
    with tempfile.TemporaryDirectory(prefix="winnow-") as folder:
        # Values are kept there for as long as the pilot takes, and show what they take.
        scratch = pool.with_signals_dir(Path(folder))
        _bring_user_signals(pool, scratch, rules, pool.read_uids(path, asked))
        judge = RuleEvaluator(scratch, rules, device=device)
        forecasts = _forecasts(pool, judge, shard, asked, within)
    lines = [f"pilot: {int(asked.sum()):,} rows of {path.name} on {device}"]
    lines += [f"  {each.line(workers)}" for each in forecasts]
    lines += [
        f"  {rule.strategy.kind} {rule.name!r}: sees the whole pool at once, so it is not tried"
        for rule in rules
        if rule.strategy.kind == "selector"
    ]
    total = sum(each.rows * each.seconds_per_row for each in forecasts)
    untried = ", without the selectors" if any(rule.strategy.kind == "selector" for rule in rules) else ""
    return [*lines, f"  together{untried}: {spell_times(total, workers)}"]


def spell_times(seconds: float, workers: int) -> str:
    """Spell how long work takes one process and, where there are several, all of them."""
    told = f"{_spell(seconds)} of one process"
    return told if workers <= 1 or seconds < 60 else f"{told}, {_spell(seconds / workers)} with workers={workers}"


def _spell(seconds: float) -> str:
    if seconds < 60:
        return "< 1 minute"
    return f"{seconds / 60:,.0f} minutes" if seconds < 7200 else f"{seconds / 3600:,.1f} hours"


def _pilot_rows(pool: Pool, within: Subset | None) -> tuple[Shard, np.ndarray]:
    """Return the first metadata shard with rows, and a mask of its first ones."""
    shard, asked = pool.shards[0], np.zeros(0, dtype=bool)
    for shard in pool.shards:
        asked = np.ones(pool.footer(shard.path).num_rows, dtype=bool)
        if within is not None:
            asked = count_of(pool.read_uids(shard.path), within.uids) > 0
        asked &= np.cumsum(asked) <= PILOT_ROWS
        if asked.any():
            break
    return shard, asked


def _bring_user_signals(pool: Pool, scratch: Pool, rules: Sequence[Rule], uids: np.ndarray) -> None:
    """Write what the user's parquets say of these uids into the scratch pool's folder of signals."""
    wanted = Subset.of(uids).uids
    for rule in (each for chosen in rules for each in chosen.with_signals(pool)):
        for name, signal in rule.signal_rules(pool).items():
            if signal is None:
                for number, path in enumerate(user_signal(pool, name, rule.name).paths):
                    found = read_footer(path).schema.to_arrow_schema()
                    schema = without_view_types(pa.schema([found.field(each) for each in ("uid", name)]))
                    with pq.ParquetWriter(scratch.signals_dir / f"{name}-{number}.parquet", schema) as writer:
                        for batch in iter_batches(path, ["uid", name]):
                            is_wanted = count_of(parse_uids(batch["uid"], str(path)), wanted) > 0
                            table = without_views(pa.Table.from_batches([batch.select(schema.names)]))
                            writer.write_table(table.filter(pa.array(is_wanted)))


def _forecasts(
    pool: Pool, judge: RuleEvaluator, shard: Shard, asked: np.ndarray, within: Subset | None
) -> list[Forecast]:
    """Return what reading, images and every filter and signal will cost."""
    path = shard.path
    num_rows = pool.count_rows() if within is None else within.num_distinct
    numbers = [n for n, rule in enumerate(judge.all_rules) if rule.strategy.kind != "selector"]
    kept = {number: _num_kept(pool, judge, number, within) for number in numbers}
    left = {number: max(0, num_rows - kept[number]) for number in numbers}
    is_seen = any(left[number] and judge.all_rules[number].strategy.images for number in numbers)
    places = locate_images(pool, Subset.of(pool.read_uids(path, asked)), [path])[0] if is_seen else None
    num_asked = max(1, int(asked.sum()))
    found = judge.values(shard, [number for number in numbers if left[number]], asked=asked, places=places)
    reading = _reading_seconds(pool, path, [judge.all_rules[number] for number in numbers if left[number]])
    forecasts = []
    if reading:
        forecasts.append(Forecast("columns and arrays read", num_rows, 0, reading / len(asked)))
    if is_seen:
        rows = max(left[n] for n in numbers if judge.all_rules[n].strategy.images)
        forecasts.append(Forecast(DECODING, rows, 0, found.image_effort.seconds / num_asked))
    for number in reversed(numbers):  # signals stand behind what uses them
        rule = judge.all_rules[number]
        effort = found.efforts.get(judge.labels[number], Cost())
        folder = judge.kept_dirs[number]
        forecasts.append(
            Forecast(
                f"{rule.strategy.kind} {rule.name!r}",
                left[number],
                kept[number],
                effort.seconds / max(1, effort.rows),
                _bytes_per_row(folder / f"{path.stem}.parquet", num_asked),
                min(found.copied.get(number, ()), default=None) if effort.rows else None,
            )
        )
    return forecasts


def _num_kept(pool: Pool, judge: RuleEvaluator, number: int, within: Subset | None) -> int:
    """Count the rows of which a strategy's values are kept from before."""
    folder = judge.all_rules[number].kept_dir(pool, judge.device)
    num_kept = 0
    for shard in pool.shards if folder.exists() else []:
        path = shard.path
        states = KeptValues(
            folder / f"{path.stem}.parquet", partial(judge.inputs, shard, number), pool.footer(path).num_rows
        ).states()
        known = states != NOT_ASKED
        if within is not None and known.any():
            known &= count_of(pool.read_uids(path), within.uids) > 0
        num_kept += int(known.sum())
    return num_kept


def _reading_seconds(pool: Pool, path: Path, rules: Sequence[Rule]) -> float:
    """Time the reading of what the rules need of a metadata shard beside the images."""
    columns = {name for rule in rules for name in rule.strategy.needed_columns(rule.options)}
    features = {name for rule in rules for name in rule.strategy.needed_features(rule.options)}
    if not columns and not features:
        return 0.0
    began = time.perf_counter()
    pool.read_columns(path, sorted(columns))
    pool.read_features(path, sorted(features))
    return time.perf_counter() - began


def _bytes_per_row(path: Path, num_asked: int) -> float:
    """Return what a row takes in a file of kept values, of whose rows some were asked."""
    if not path.exists():
        return 0.0
    footer = read_footer(path)
    sizes = dict.fromkeys(footer.schema.names, 0)
    for group in range(footer.num_row_groups):
        for number in range(footer.num_columns):
            chunk = footer.row_group(group).column(number)
            sizes[chunk.path_in_schema] += chunk.total_compressed_size
    return (sizes["value"] + sizes["state"]) / num_asked + sizes.get("uid", 0) / footer.num_rows
