"""The filter stage: rules, or somebody's file, choose the subset of an experiment."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from benchmark.experiment.choice import FILTER_VERSION, Choice, ResolvedChoice, is_reference
from benchmark.experiment.entry import entry_name
from benchmark.experiment.folder import refuse_changed, refuse_foreign_checkpoint
from benchmark.pool.pool import Pool, Shard
from benchmark.pool.reshard import refuse_unknown
from benchmark.pool.resharded import SHARDS_NAME
from benchmark.pool.subset import SUBSET_NAME, SUBSET_RECORD_NAME, Subset, load_subset
from benchmark.pool.uids import UidMarks, find_uids
from benchmark.runtime.console import say, warn
from benchmark.runtime.context import Context
from benchmark.runtime.costs import cost, last_cost
from benchmark.runtime.errors import UserError
from benchmark.runtime.files import TEMPORARY_SUFFIX, Json, digest, remove_temporary, rename, sha256_of
from benchmark.runtime.locks import LOCK_NAME, locked
from benchmark.runtime.paths import is_remote
from benchmark.runtime.records import Record, finished, read_record, write_record
from benchmark.runtime.storage import file_hash
from benchmark.selection.cache import read_undeclared
from benchmark.selection.engine import FilterOutcome, write_filtered
from benchmark.selection.rule_records import as_recorded

AGAIN_NAME = f"subset-again.npy{TEMPORARY_SUFFIX}"


def filter_stage(exp_dir: Path, pool: Pool, choice: Choice, context: Context) -> Record:
    """Choose the subset, or reuse the one that is there and fits; return its record."""
    resolved = choice.resolve(pool)
    pool_inputs = _pool_inputs(pool, resolved)
    # Looked at before the folder is touched, so that a refusal leaves nothing behind.
    _finished_choice(exp_dir, resolved.inputs)
    with locked(exp_dir):
        remove_temporary(exp_dir)
        record = _finished_choice(exp_dir, resolved.inputs)
        if record is None or not (exp_dir / SUBSET_NAME).exists():
            return _choose_first(exp_dir, pool, resolved, pool_inputs, context)
        refuse_changed(exp_dir / SUBSET_NAME, record.result["sha256"])
        if record.result.get("undeclared") or _undeclared(resolved):
            return _choose_again(exp_dir, pool, resolved, record, context)
        before = last_cost(exp_dir, "filter").get("inputs")
        if None not in (before, pool_inputs) and before != pool_inputs:
            raise UserError(
                f"{exp_dir} was filtered from other metadata, features or images under the same uids: what is in "
                f"{pool.dir} has changed since; choose another folder, or delete this one",
                code="pool-differs",
            )
        size, rows = record.result["size"], record.result["rows"]
        say(f"filter: up to date, skipping ({size:,} of {rows:,} rows; {exp_dir / SUBSET_NAME})")
        return record


def _choose_first(
    exp_dir: Path,
    pool: Pool,
    resolved: ResolvedChoice,
    pool_inputs: str | None,
    context: Context,
) -> Record:
    """Choose the subset of an experiment that has none; the caller has locked the folder."""
    choice = resolved.choice
    try:
        with cost(exp_dir, "filter", workers=context.workers or 0, executor=context.executor) as spent:
            if choice.subset_path is not None:
                result = _take(exp_dir, pool, choice.subset_path, choice.max_missing)
            else:
                outcome = _choose(exp_dir / SUBSET_NAME, pool, resolved, context)
                result = _outcome_as_json(outcome)
                spent["strategies"] = {name: asdict(each) for name, each in outcome.costs.items()}
            spent["inputs"] = pool_inputs
            result |= _more_of_result(exp_dir / SUBSET_NAME, pool, resolved)
    except BaseException:
        _remove_if_empty(exp_dir)
        raise
    record = Record("filter", FILTER_VERSION, resolved.inputs, result)
    for path in sorted(exp_dir.glob("seed-*/checkpoint/checkpoint.json")):
        trained = read_record(path)
        assert trained is not None
        refuse_foreign_checkpoint(path.parent.parent, trained, record)
    write_record(exp_dir / SUBSET_RECORD_NAME, record)
    _say_chosen(exp_dir, result)
    return record


def _say_chosen(exp_dir: Path, result: dict[str, Json]) -> None:
    copies = "" if result["size"] == result["distinct"] else f", {result['size']:,} samples with copies"
    missing = f"; the pool lacks {result['unknown_uids']:,} of these" if result["unknown_uids"] else ""
    say(
        f"filter: kept {result['distinct']:,} uids{copies}, of {result['rows']:,} rows{missing} "
        f"({exp_dir / SUBSET_NAME})"
    )


def _finished_choice(exp_dir: Path, inputs: dict[str, Json]) -> Record | None:
    """Return the record of a choice that fits, as `finished` does; rules fit by what identifies them."""
    record_path = exp_dir / SUBSET_RECORD_NAME
    there = read_record(record_path)
    wanted = inputs if there is None else as_recorded(inputs, there.inputs)
    return finished(record_path, "filter", FILTER_VERSION, wanted)


def _undeclared(resolved: ResolvedChoice) -> dict[str, list[list[str]]]:
    """Return what the rules of a choice, and their signals, are known to read undeclared: kind and name of each."""
    found: dict[str, list[list[str]]] = {}
    for rule in (each for chosen in resolved.rules for each in chosen.with_signals):
        undeclared = [*rule.strategy.undeclared(), *read_undeclared(rule.cache_dir)]
        if undeclared:
            found[rule.name] = [[each.kind, each.name] for each in dict.fromkeys(undeclared)]
    return found


def _choose(path: Path, pool: Pool, resolved: ResolvedChoice, context: Context) -> FilterOutcome:
    """Let the rules choose, and write the subset file."""
    choice = resolved.choice
    within = load_subset(choice.within_path) if choice.within_path else None
    for rule in resolved.rules:
        for package, version in rule.strategy.package_versions().items():
            if version is None:
                warn(f"filter {rule.name!r}: {rule.strategy.packages[package]}")
    return write_filtered(
        pool,
        resolved.rules,
        path,
        within=within,
        workers=context.workers or 0,
        plugins=context.plugins,
        executor=context.executor,
    )


def _more_of_result(path: Path, pool: Pool, resolved: ResolvedChoice) -> dict[str, Json]:
    """Return the record's results that a choice has however it came about."""
    found: dict[str, Json] = {
        "reference": is_reference(resolved.choice),
        "sha256": sha256_of(path),
        "name": entry_name(Record("filter", FILTER_VERSION, resolved.inputs, {}), pool.dir),
    }
    if undeclared := _undeclared(resolved):
        found["undeclared"] = undeclared  # so that it is chosen again the next time
    return found


def _choose_again(exp_dir: Path, pool: Pool, resolved: ResolvedChoice, before: Record, context: Context) -> Record:
    """Choose once more, as what a rule read undeclared may have changed; the caller has locked the folder.

    Raises UserError, and leaves all as it was, where another subset comes out than something here was made from.
    """
    path = exp_dir / AGAIN_NAME
    try:
        with cost(exp_dir, "filter", workers=context.workers or 0, executor=context.executor) as spent:
            outcome = _choose(path, pool, resolved, context)
            result = _outcome_as_json(outcome) | _more_of_result(path, pool, resolved)
            spent["strategies"] = {name: asdict(each) for name, each in outcome.costs.items()}
            spent["inputs"] = _pool_inputs(pool, resolved)
        made = [*exp_dir.glob("seed-*/checkpoint/checkpoint.json"), *exp_dir.glob(SHARDS_NAME)]
        if result["sha256"] != before.result["sha256"] and made:
            raise UserError(
                f"{exp_dir}: what a filter reads undeclared has changed, and another subset comes out than {made[0]} "
                "was made from; choose another folder, or delete this one",
                code="undeclared-changed",
            )
        rename(path, exp_dir / SUBSET_NAME)
    finally:
        path.unlink(missing_ok=True)
    record = Record("filter", FILTER_VERSION, resolved.inputs, result)
    write_record(exp_dir / SUBSET_RECORD_NAME, record)
    _say_chosen(exp_dir, result)
    return record


def _pool_inputs(pool: Pool, resolved: ResolvedChoice) -> str | None:
    """Identify the files that rules read, which the fingerprint, of uids alone, does not.

    It is kept beside the costs, outside every hash: the same pool elsewhere is the same. None where no file is read, or
    a remote one, which is not read for this.
    """
    if not resolved.rules or is_remote(pool.dir):
        return None
    used = [each.strategy for rule in resolved.rules for each in rule.with_signals]
    with_features = any(strategy.features for strategy in used)
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # hashing large files leaves the others free
        hashing = threads.map(partial(_hash_shard, with_features), pool.shards)
        bar = tqdm(hashing, total=len(pool.shards), desc="metadata", disable=None, leave=False)
        found: list[Json] = list(bar)
    if any(strategy.images for strategy in used):
        found.append(pool.hash_tar_contents())
    return digest(found)


def _hash_shard(with_features: bool, shard: Shard) -> list[str]:
    hashes = [file_hash(shard.path, shard.state)]
    if with_features and shard.npz_state is not None:
        hashes.append(file_hash(shard.npz_path, shard.npz_state))
    return hashes


def _outcome_as_json(outcome: FilterOutcome) -> dict[str, Json]:
    """Return the record's results for a subset that rules chose."""
    return {
        "size": len(outcome.subset),
        "distinct": outcome.distinct,
        "max_copies": outcome.max_copies,
        "rows": outcome.rows,
        "repeated_uids": outcome.repeated_uids,
        "unknown_uids": 0,
        "rules": [report.as_json() for report in outcome.reports],
    }


def _take(exp_dir: Path, pool: Pool, path: Path, max_missing: int) -> dict[str, Json]:
    """Write subset.npy from somebody else's file and return the record's results."""
    given = _given_subset(pool, path, max_missing)
    given.subset.write(exp_dir / SUBSET_NAME)
    return {
        "size": len(given.subset),
        "distinct": given.subset.num_distinct,
        "max_copies": given.subset.max_copies,
        "rows": given.rows,
        "repeated_uids": given.repeated_uids,
        "unknown_uids": given.unknown_uids,
        "rules": [],
    }


@dataclass(frozen=True)
class _Given:
    """A subset file of somebody's, against the pool."""

    subset: Subset
    rows: int  # of the pool
    repeated_uids: int  # rows of the subset's uids beyond the first of each
    unknown_uids: int


def _given_subset(pool: Pool, path: Path, max_missing: int) -> _Given:
    subset = load_subset(path)
    if len(subset) == 0:
        raise UserError(f"{path} is empty", code="subset-empty")
    found, rows, rows_found = UidMarks(subset.uids), 0, 0
    for uids in pool.uid_parts():
        places = find_uids(uids, subset.uids)
        found.mark_places(places[places >= 0])
        rows, rows_found = rows + len(uids), rows_found + int((places >= 0).sum())
    refuse_unknown(found, pool, path, max_missing)
    num_unknown = found.num_distinct - found.num_marked
    return _Given(subset, rows, rows_found - found.num_marked, num_unknown)


def _remove_if_empty(folder: Path) -> None:
    """Remove an experiment's folder in which nothing was made."""
    if {path.name for path in folder.iterdir()} <= {LOCK_NAME}:
        (folder / LOCK_NAME).unlink(missing_ok=True)
        folder.rmdir()
