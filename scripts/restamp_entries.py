"""Stamp the shipped entries with the identity of their strategies' code, where the same subset proves that it fits.

Run it when a filter or the toolbox has changed: `python scripts/restamp_entries.py`. The strategies choose from the
board's pools again, which are generated under --work-dir, and an entry is stamped where the subset's sha256 is the
entry's. What cannot be proved is listed and left as it is, and the exit code is 1. It resumes where it was stopped.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmark.embedded.pool import build_pool
from benchmark.experiment.choice import Choice
from benchmark.experiment.filter_stage import filter_stage
from benchmark.pool.pool import Pool
from benchmark.registry import get_strategy, load_strategies
from benchmark.runtime.console import say
from benchmark.runtime.context import Context
from benchmark.runtime.files import digest
from benchmark.scales import SCALES
from benchmark.selection.rules import Rule, make_rule, resolve_rules
from leaderboard.board import BOARDS_DIR, ENTRIES_NAME, OTHER_POOLS_NAME
from leaderboard.entries import Entry, StrategyUsed, read_entry, write_entry


def main(arguments: Sequence[str] | None = None) -> int:
    """Stamp the entries of a board; return 1 where some could not be proved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--board", default="nano", help="the board's name (default: nano)")
    parser.add_argument(
        "--work-dir", type=Path, default=Path("restamp"), help="for pools and subsets (default: restamp)"
    )
    parser.add_argument("--workers", type=int, default=2, help="worker processes (default: 2)")
    options = parser.parse_args(arguments)
    load_strategies()
    board_dir = BOARDS_DIR / options.board
    paths = [*(board_dir / ENTRIES_NAME).glob("*.json"), *(board_dir / OTHER_POOLS_NAME).glob("*.json")]
    unproved = {}
    for path in sorted(paths, key=pool_seed_of):
        entry = read_entry(path)
        try:
            stamped = restamped(entry, pool_seed_of(path), options.work_dir, options.workers)
        except (ValueError, OSError) as error:
            unproved[path.name] = str(error)
            say(f"{path.name}: {error}")
            continue
        if stamped != entry:
            write_entry(path, stamped)
        say(f"{path.name}: {'stamped' if stamped != entry else 'as it was'}")
    say(f"{len(paths) - len(unproved)} of {len(paths)} entries are proved" + "".join(f"\n  not: {e}" for e in unproved))
    return 1 if unproved else 0


def pool_seed_of(path: Path) -> int:
    """Return the generation seed of the embedded pool that an entry's file is about."""
    found = re.search(r"-pool(\d+)$", path.stem)
    return int(found[1]) if found else 0


def restamped(entry: Entry, pool_seed: int, work_dir: Path, workers: int) -> Entry:
    """Return the entry with the identities of its strategies; raises ValueError where another subset comes out."""
    if entry.within is not None or entry.given_subset is not None:
        raise ValueError("it was made from a subset file, which is not at hand")
    scale = SCALES[entry.scale]
    pool_dir = work_dir / f"{scale.pool_scale}-{pool_seed}"
    build_pool(pool_dir, SCALES[scale.pool_scale], pool_seed)
    pool = Pool(pool_dir)
    if pool.compute_fingerprint() != entry.pool.fingerprint:
        raise ValueError(f"it is of another pool than {pool_dir}")
    rules = tuple(rule_of(used) for used in entry.strategy)
    now = [rule.as_json() for rule in resolve_rules(pool, rules)]
    strategy = tuple(StrategyUsed(**stamped(used, each)) for used, each in zip(entry.strategy, now, strict=True))
    for used, each in zip(strategy, now, strict=True):
        if (
            without_assets(used.name, used.options) != without_assets(used.name, each["options"])
            or used.cut != each["cut"]
        ):
            raise ValueError(f"{used.name} has other options now: {used.options} then, {each['options']} now")
        if used.packages != each.get("packages", {}):
            raise ValueError(f"{used.name} ran with {used.packages}; here is {each.get('packages', {})}")
    if strategy == entry.strategy:
        return entry  # it was proved when it was stamped, and its code is the same
    exp_dir = work_dir / f"{entry.name[:40]}-{digest([pool_seed, *now])[:16]}"
    record = filter_stage(exp_dir, pool, Choice(rules=rules), Context(workers=workers))
    if record.result["sha256"] != entry.subset.sha256:
        raise ValueError(f"another subset comes out: {record.result['sha256'][:12]}, not {entry.subset.sha256[:12]}")
    return replace(entry, strategy=strategy)


def without_assets(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options but for assets: a pool that another processor generates has embeddings with other last bits.

    Whether the subset depends on these, the comparison of the subsets shows.
    """
    return {option: value for option, value in options.items() if option not in get_strategy(name).assets}


def rule_of(used: StrategyUsed) -> Rule:
    """Return the rule of an entry's strategy, with its assets where they are found without an option."""
    strategy = get_strategy(used.name)
    options: dict[str, Any] = {name: value for name, value in used.options.items() if name not in strategy.assets}
    cut: dict[str, Any] = {str(kind): value for kind, value in (used.cut or {}).items()}
    return make_rule(used.name, options | cut)


def stamped(used: StrategyUsed, now: dict[str, Any]) -> dict[str, Any]:
    """Return what an entry says of a strategy, with the identity of now, its signals' too."""

    def stamp(then: Any, new: Any) -> Any:
        if not (isinstance(then, dict) and isinstance(new, dict)):
            return then
        signals = {
            name: stamp(each, new.get("signals", {}).get(name)) for name, each in then.get("signals", {}).items()
        }
        return {**then, "identity": new["identity"], **({"signals": signals} if signals else {})}

    found: dict[str, Any] = stamp(vars(used), now)
    return {name: found[name] for name in vars(used) if not name.startswith("_")} | {"identity": found["identity"]}


if __name__ == "__main__":
    raise SystemExit(main())
