"""The entry of an experiment: the scores of all its evaluated seeds, under one name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.experiment.folder import ENTRY_NAME, open_experiment, refuse_foreign_checkpoint
from benchmark.pool.pool import Pool
from benchmark.registry import STRATEGIES, SUITES, TASKS, get_strategy, load_tasks
from benchmark.runtime.console import warn
from benchmark.runtime.errors import UserError
from benchmark.runtime.files import Json, digest
from benchmark.runtime.locks import locked
from benchmark.runtime.records import Record, read_record
from benchmark.scales import Scale
from benchmark.selection.assets import as_list, hash_default_assets

if TYPE_CHECKING:
    from leaderboard.entries import Entry

MAX_NAME = 80  # characters of an entry's name


@dataclass(frozen=True)
class FinishedSeed:
    """A seed with results for the whole suite."""

    seed: int
    trained: Record
    data: dict[str, Json]  # task -> hash of the evaluation set
    scores: dict[str, float]  # task -> main metric
    chance: dict[str, float]  # task -> what guessing gets

    @property
    def must_agree(self) -> dict[str, Json]:
        """Return what all seeds of an entry share: all that they were made from but the seed."""
        shared = {key: value for key, value in self.trained.inputs.items() if key != "seed"}
        return {**shared, "evaluation data": self.data}


def finished_seeds(exp_dir: Path, scale: Scale) -> list[FinishedSeed]:
    """Return every seed that has results of this recipe for the whole suite on whole data, in order.

    Raises UserError if two of them were trained or evaluated on different data.
    """
    from benchmark.evaluation.results import read_results, suite_scores
    from benchmark.training.train import CHECKPOINT_RECORD_NAME

    load_tasks()
    if scale.suite not in SUITES:
        return []
    suite = SUITES[scale.suite]
    seeds: list[FinishedSeed] = []
    for seed_dir in exp_dir.glob("seed-*"):
        trained = read_record(seed_dir / "checkpoint" / CHECKPOINT_RECORD_NAME)
        records = read_results(seed_dir, [TASKS[name] for name in suite.tasks])
        if trained is not None and trained.inputs["recipe"]["hash"] == scale.hash and len(records) == len(suite.tasks):
            others = [n for n, record in records.items() if record.inputs["checkpoint"] != trained.result["weights"]]
            if others:
                raise UserError(
                    f"{seed_dir} has results of other weights than its checkpoint's, for {', '.join(others)}; "
                    f"delete {seed_dir / 'eval'} and evaluate again",
                    code="record-differs",
                )
            if partial := [name for name, record in records.items() if "expected_samples" in record.result]:
                warn(
                    f"{seed_dir} is left out of the entry: with strict=false, incomplete evaluation sets were used for "
                    f"{', '.join(partial)}"
                )
                continue
            data = {name: record.inputs["data"] for name, record in records.items()}
            found = suite_scores(suite, TASKS, records)
            seeds.append(FinishedSeed(trained.inputs["seed"], trained, data, found.scores, found.chance))
    seeds.sort(key=lambda finished_seed: finished_seed.seed)
    for other in seeds[1:]:
        differing = [key for key, value in other.must_agree.items() if value != seeds[0].must_agree[key]]
        if differing:
            raise UserError(
                f"{exp_dir}: seeds {seeds[0].seed} and {other.seed} differ in {', '.join(differing)}, so their scores "
                "cannot be joined; train or evaluate one of them again in another folder",
                code="seeds-differ",
            )
    return seeds


def write_experiment_entry(exp_dir: Path, scale: Scale, pool: Pool) -> Entry | None:
    """Join the seeds' scores in `entry.json`; returns None while no seed has the whole suite."""
    from leaderboard.entries import write_entry

    with locked(exp_dir):  # jobs over seeds may end at one time, and each must see the others' results
        seeds = finished_seeds(exp_dir, scale)
        if not seeds:
            return None
        entry = _make_entry(exp_dir, scale, pool, seeds)
        write_entry(exp_dir / ENTRY_NAME, entry)
    return entry


def _make_entry(exp_dir: Path, scale: Scale, pool: Pool, seeds: Sequence[FinishedSeed]) -> Entry:
    from leaderboard.entries import Entry, PoolUsed, StrategyUsed, SubsetUsed, SuiteName

    _, record = open_experiment(exp_dir, pool)
    for each in seeds:
        refuse_foreign_checkpoint(exp_dir / f"seed-{each.seed}", each.trained, record)
    suite = SUITES[scale.suite]
    versions: dict[str, set[str]] = {}
    for each in seeds:
        for package, version in each.trained.result["versions"].items():
            versions.setdefault(package, set()).add(version)
    return Entry(
        name=name_of(exp_dir, record, pool),
        strategy=tuple(StrategyUsed(**rule) for rule in record.inputs["filters"]),
        within=record.inputs["within"],
        given_subset=record.inputs["subset"],
        reference=record.result["reference"],
        scale=scale.name,
        recipe=scale.recipe,
        recipe_hash=scale.hash,
        comparable=scale.is_comparable,
        suite=SuiteName(suite.name, suite.version),
        pool=PoolUsed(**seeds[0].trained.inputs["pool"], damaged_tars=seeds[0].trained.result.get("damaged_tars", 0)),
        subset=SubsetUsed(record.result["size"], record.result["distinct"], record.result["sha256"]),
        seeds={each.seed: each.scores for each in seeds},
        made_with={package: ", ".join(sorted(found)) for package, found in versions.items()},
        chance=seeds[0].chance,
    )


def name_of(exp_dir: Path, record: Record, pool: Pool) -> str:
    """Return the name that an experiment's entry has; raises UserError where it needs a filter that is not loaded."""
    if "name" in record.result:
        return str(record.result["name"])
    unknown = [rule["name"] for rule in record.inputs["filters"] if rule["name"] not in STRATEGIES]
    if unknown:
        raise UserError(
            f"{exp_dir} was filtered by {unknown[0]!r}, which is not a known filter; give plugins= of the file "
            "that defines it: the entry is named after it",
            code="filter-not-loaded",
        )
    return entry_name(record, pool.dir)


def entry_name(record: Record, pool_dir: Path) -> str:
    """Name an entry after its rules, the options that are not the default, and the cuts: `basic+clip_score-0.3`.

    An asset is named, by its hash, where it is not the one that is found without its option.
    """
    if record.inputs["subset"]:
        return f"subset-{record.inputs['subset'][:8]}"
    parts = []
    for rule in record.inputs["filters"]:
        strategy = get_strategy(rule["name"])
        defaults = {name: option.default for name, option in strategy.options.items()}
        defaults |= hash_default_assets(strategy, rule["options"], pool_dir)
        changed = {name: value for name, value in rule["options"].items() if value != defaults[name]}
        for name in changed.keys() & strategy.assets:
            changed[name] = "-".join(sha256[:8] for sha256 in as_list(changed[name]))
        options = [f"{name}-{value}" for name, value in changed.items()]
        cuts = [f"{value:g}" for value in (rule["cut"] or {}).values()]
        parts.append("-".join([rule["name"], *options, *cuts]))
    within = f"-within-{record.inputs['within'][:8]}" if record.inputs["within"] else ""
    name = re.sub(r"[^a-z0-9_.+-]", "_", "+".join(parts).lower() + within)
    # By the name's own hash: the same rules have the same name on every pool.
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 9]}-{digest(name)[:8]}"
