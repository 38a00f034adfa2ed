"""Experiments: one rule at one scale on one pool, with its seeds, and the stages that fill its folder.

exp_dir/subset.npy, subset.json       the filter stage's choice, made once
exp_dir/seed-N/checkpoint/, eval/     a folder per training seed
exp_dir/entry.json                    the scores of all evaluated seeds, as the leaderboard reads them
exp_dir/report/                       what was kept and dropped, as a page (report.py)
exp_dir/costs.jsonl, logs/            times and hosts, outside every hash
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from benchmark.pool.pool import Pool, PoolIdentity, Shard
from benchmark.pool.reshard import SHARDS_NAME, read_resharded, refuse_unknown, resharded_record
from benchmark.pool.subset import SUBSET_NAME, SUBSET_RECORD_NAME, Subset, is_reference_subset, load_subset
from benchmark.pool.uids import UidMarks, find_uids
from benchmark.registry import STRATEGIES, SUITES, TASKS, get_strategy, load_tasks, tasks_named
from benchmark.runtime.console import say, warn
from benchmark.runtime.costs import cost, last_cost
from benchmark.runtime.errors import NotFoundError, UserError
from benchmark.runtime.files import TEMPORARY_SUFFIX, Json, digest, remove_temporary, rename, sha256_of
from benchmark.runtime.locks import LOCK_NAME, locked
from benchmark.runtime.paths import is_remote
from benchmark.runtime.records import Record, finished, read_record, write_record
from benchmark.runtime.storage import file_hash
from benchmark.scales import Scale
from benchmark.selection.assets import as_list, hash_default_assets
from benchmark.selection.filtering import FilterOutcome, RuleReport, check_pool_has, write_filtered
from benchmark.selection.judging import Cost
from benchmark.selection.rules import Rule, as_recorded, without_sources
from benchmark.selection.signals import read_undeclared

if TYPE_CHECKING:
    from benchmark.evaluation.checkpoints import OpenedModel
    from benchmark.evaluation.tasks import Task
    from benchmark.training.ranks import Ranks
    from benchmark.training.train import TrainingData
    from leaderboard.entries import Entry

FILTER_VERSION = 2  # 2: `repeated_uids` counts chosen rows
ENTRY_NAME = "entry.json"
AGAIN_NAME = f"subset-again.npy{TEMPORARY_SUFFIX}"
MAX_NAME = 80  # characters of an entry's name


@dataclass(frozen=True)
class Choice:
    """How the subset comes about: rules (within an earlier subset, perhaps), or a file of somebody else's."""

    rules: tuple[Rule, ...] = ()
    within_path: Path | None = None
    subset_path: Path | None = None
    max_missing: int = 0  # uids of subset_path that a pool of shards alone may lack
    device: str = "cpu"  # that models of filters and signals run on

    def inputs(self, pool: Pool) -> dict[str, Json]:
        """Return what identifies the subset; its hash names the experiment's folder."""
        inputs: dict[str, Json] = {
            "pool": pool.compute_fingerprint(),
            "filters": [rule.as_json(pool) for rule in self.rules],
            "within": sha256_of(self.within_path) if self.within_path else None,
            "subset": sha256_of(self.subset_path) if self.subset_path else None,
        }
        if pool.has_images and any(rule.sees_images(pool) for rule in self.rules):
            inputs["images"] = pool.ensure_index().content_hash  # the fingerprint is of the metadata alone
        if self.device != "cpu" and any(rule.takes_device(pool) for rule in self.rules):
            inputs["device"] = self.device
        return inputs

    @property
    def name(self) -> str:
        """Return the readable part of the folder's name."""
        return "subset" if self.subset_path else "+".join(rule.name for rule in self.rules)


def default_exp_dir(scale: Scale, pool: Pool, choice: Choice) -> Path:
    """Return `experiments/<scale>/<filters>-<hash>`."""
    identity = without_sources(choice.inputs(pool))
    return Path("experiments") / scale.name / f"{choice.name}-{digest(identity)[:8]}"


def filter_stage(
    exp_dir: Path,
    pool: Pool,
    choice: Choice,
    *,
    workers: int,
    plugins: Sequence[str],
    executor: str = "local",
) -> Record:
    """Choose the subset, or reuse the one that is there and fits."""
    check_pool_has(pool, choice.rules)
    inputs = choice.inputs(pool)
    record_path = exp_dir / SUBSET_RECORD_NAME
    pool_inputs = _pool_inputs(pool, choice)
    # Looked at before the folder is touched, so that a refusal leaves nothing behind.
    _finished_choice(record_path, inputs)
    with locked(exp_dir):
        remove_temporary(exp_dir)
        record = _finished_choice(record_path, inputs)
        if record is not None and (exp_dir / SUBSET_NAME).exists():
            refuse_changed(exp_dir / SUBSET_NAME, record.result["sha256"])
            if record.result.get("undeclared") or _undeclared(pool, choice):
                return _choose_again(exp_dir, pool, choice, record, workers=workers, plugins=plugins, executor=executor)
            before = last_cost(exp_dir, "filter").get("inputs")
            if None not in (before, pool_inputs) and before != pool_inputs:
                raise UserError(
                    f"{exp_dir} was filtered from other metadata, features or images under the same uids: what is in "
                    f"{pool.dir} has changed since; choose another folder, or delete this one",
                    code="pool-differs",
                )
            kept, rows = record.result["size"], record.result["rows"]
            say(f"filter: as before, {kept:,} of {rows:,} rows ({exp_dir / SUBSET_NAME})")
            return record
        try:
            with cost(exp_dir, "filter", workers=workers, executor=executor) as spent:
                if choice.subset_path is not None:
                    result = _take(exp_dir, pool, choice.subset_path, choice.max_missing)
                else:
                    path = exp_dir / SUBSET_NAME
                    outcome = _choose(path, pool, choice, workers=workers, plugins=plugins, executor=executor)
                    result = _outcome_as_json(outcome)
                    spent["strategies"] = {name: asdict(effort) for name, effort in outcome.efforts.items()}
                spent["inputs"] = pool_inputs
                result |= _more_of_result(exp_dir / SUBSET_NAME, pool, choice, inputs)
        except BaseException:
            _remove_if_empty(exp_dir)
            raise
        record = Record("filter", FILTER_VERSION, inputs, result)
        for path in sorted(exp_dir.glob("seed-*/checkpoint/checkpoint.json")):
            trained = read_record(path)
            assert trained is not None
            _refuse_foreign_checkpoint(path.parent.parent, trained, record)
        write_record(record_path, record)
    _say_kept(exp_dir, result)
    return record


def _say_kept(exp_dir: Path, result: dict[str, Json]) -> None:
    copies = "" if result["size"] == result["distinct"] else f", {result['size']:,} samples with copies"
    missing = f"; the pool lacks {result['unknown_uids']:,} of these" if result["unknown_uids"] else ""
    say(
        f"filter: kept {result['distinct']:,} uids{copies}, of {result['rows']:,} rows{missing} "
        f"({exp_dir / SUBSET_NAME})"
    )


def _finished_choice(record_path: Path, inputs: dict[str, Json]) -> Record | None:
    """Return the record of a choice that fits, as `finished` does; rules fit by what identifies them."""
    there = read_record(record_path)
    wanted = inputs if there is None else as_recorded(inputs, there.inputs)
    return finished(record_path, "filter", FILTER_VERSION, wanted)


def _undeclared(pool: Pool, choice: Choice) -> dict[str, list[list[str]]]:
    """Return what the rules of a choice, and their signals, are known to read undeclared: kind and name of each."""
    found: dict[str, list[list[str]]] = {}
    for rule in (each for chosen in choice.rules for each in chosen.with_signals(pool)):
        undeclared = [*rule.strategy.undeclared(), *read_undeclared(rule.kept_dir(pool, choice.device))]
        if undeclared:
            found[rule.name] = [[each.kind, each.name] for each in dict.fromkeys(undeclared)]
    return found


def _choose(
    path: Path, pool: Pool, choice: Choice, *, workers: int, plugins: Sequence[str], executor: str
) -> FilterOutcome:
    """Let the rules choose, and write the subset file."""
    within = load_subset(choice.within_path) if choice.within_path else None
    for rule in choice.rules:
        for package, version in rule.strategy.package_versions().items():
            if version is None:
                warn(f"filter {rule.name!r}: {rule.strategy.packages[package]}")
    return write_filtered(
        pool,
        choice.rules,
        path,
        within=within,
        workers=workers,
        plugins=plugins,
        executor=executor,
        device=choice.device,
    )


def _more_of_result(path: Path, pool: Pool, choice: Choice, inputs: dict[str, Json]) -> dict[str, Json]:
    """Return the record's results that a choice has however it came about."""
    found: dict[str, Json] = {
        "reference": _is_reference(choice),
        "sha256": sha256_of(path),
        "name": entry_name(Record("filter", FILTER_VERSION, inputs, {}), pool.dir),
    }
    if undeclared := _undeclared(pool, choice):
        found["undeclared"] = undeclared  # so that it is chosen again the next time
    return found


def _choose_again(
    exp_dir: Path, pool: Pool, choice: Choice, before: Record, *, workers: int, plugins: Sequence[str], executor: str
) -> Record:
    """Choose once more, as what a rule read undeclared may have changed; the caller has locked the folder.

    Raises UserError, and leaves all as it was, where another subset comes out than something here was made from.
    """
    path = exp_dir / AGAIN_NAME
    inputs = choice.inputs(pool)
    try:
        with cost(exp_dir, "filter", workers=workers, executor=executor) as spent:
            outcome = _choose(path, pool, choice, workers=workers, plugins=plugins, executor=executor)
            result = _outcome_as_json(outcome) | _more_of_result(path, pool, choice, inputs)
            spent["strategies"] = {name: asdict(effort) for name, effort in outcome.efforts.items()}
            spent["inputs"] = _pool_inputs(pool, choice)
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
    record = Record("filter", FILTER_VERSION, inputs, result)
    write_record(exp_dir / SUBSET_RECORD_NAME, record)
    _say_kept(exp_dir, result)
    return record


def _pool_inputs(pool: Pool, choice: Choice) -> str | None:
    """Identify the files that rules read, which the fingerprint, of uids alone, does not.

    It is kept beside the costs, outside every hash: the same pool elsewhere is the same. None where no file is read, or
    a remote one, which is not read for this.
    """
    if not choice.rules or is_remote(pool.dir):
        return None
    used = [each.strategy for rule in choice.rules for each in rule.with_signals(pool)]
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


def describe_filters(exp_dir: Path, record: Record) -> list[str]:
    """Return one line per rule: what it dropped, alone and together with others, its ties, and the time it took.

    Then one for each signal and for reading images, where that took any.
    """
    reports = [RuleReport(**report) for report in record.result["rules"]]
    spent = {name: Cost(**each) for name, each in last_cost(exp_dir, "filter").get("strategies", {}).items()}
    others = [name for name in spent if name not in {report.name for report in reports}]
    width = max([len(name) for name in (*others, *(report.name for report in reports))], default=0)
    return [
        f"  {report.name:<{width}}  kept {report.kept:>10,}   dropped {report.dropped:>10,}"
        f"   only it dropped {report.only_dropped:>10,}   no verdict {report.no_verdict:>8,}"
        f"{_describe_ties(report)}   {_describe_effort(spent.get(report.name))}".rstrip()
        for report in reports
    ] + [f"  {name:<{width}}  {_describe_effort(spent[name])}" for name in others]


def _describe_ties(report: RuleReport) -> str:
    """Spell how many of the rows that tie at the cut are kept; nothing where all of them are."""
    return f"   tied at the cut {report.tied:,}, the {report.tied_kept:,} smallest uids kept" if report.tied else ""


def _describe_effort(effort: Cost | None) -> str:
    """Spell what a strategy cost; of rows that it had judged before, nothing."""
    if effort is None:
        return ""
    if effort.rows == 0:
        return "as kept before"
    told = f"{effort.seconds:.1f} s" if effort.seconds >= 0.05 else "<0.1 s"
    return told if effort.rows >= effort.asked else f"{told} for {effort.rows:,} rows, the others as kept before"


def train_stage(
    exp_dir: Path,
    pool: Pool | None,
    scale: Scale,
    seeds: Sequence[int],
    *,
    device: str,
    workers: int | None,
    accumulation: int = 1,
    ranks: Ranks | None = None,
    wandb: str = "disabled",
) -> None:
    """Train every seed that is not trained yet; of several ranks the first alone looks, locks and writes.

    The samples are read from the experiment's own shards where `winnow reshard` has cut them out (then no pool is
    needed), else in place from the pool's.
    """
    from benchmark.training.ranks import SINGLE_PROCESS, check_split
    from benchmark.training.train import train

    ranks = ranks or SINGLE_PROCESS
    ranks.run_on_rank0(lambda: check_split(scale.batch_size, ranks.size, accumulation))
    subset_path, subset_record = ranks.run_on_rank0(lambda: open_experiment(exp_dir, pool))
    shards = ranks.run_on_rank0(lambda: own_shards(exp_dir, subset_record))
    identity = ranks.run_on_rank0(lambda: _identity(pool, shards))
    if scale.is_comparable and identity.rows < scale.pool_size and ranks.is_first:
        warn(f"the pool has {identity.rows:,} rows; scale {scale.name!r} is for pools of {scale.pool_size:,} or more")
    data: TrainingData | None = None
    for seed in seeds:
        inputs = {
            "recipe": scale.identity,
            "pool": identity.as_json(),
            "subset": subset_record.result["sha256"],
            "seed": seed,
            "device": device,
        }
        checkpoint_dir = exp_dir / f"seed-{seed}" / "checkpoint"
        with ExitStack() as held:
            claim = partial(_claim, exp_dir, checkpoint_dir, inputs, held)
            if not ranks.run_on_rank0(claim):
                continue
            if data is None:
                data = _training_data(exp_dir, pool, shards, subset_path, scale)
            record = train(
                data,
                seed,
                checkpoint_dir,
                inputs,
                device=device,
                workers=workers,
                accumulation=accumulation,
                ranks=ranks,
                wandb=wandb,
            )
            if record is not None:
                say(
                    f"train: seed {seed}, {scale.steps:,} steps of {scale.batch_size}, final loss "
                    f"{record.result['final_loss']:.3f} ({checkpoint_dir})"
                )


def own_shards(exp_dir: Path, subset_record: Record) -> Record | None:
    """Return the record of the experiment's own shards; raises ValueError where they are another subset's."""
    shards = resharded_record(exp_dir)
    if shards is not None and (
        shards.inputs["subset"] != subset_record.result["sha256"]
        or shards.inputs["pool"]["fingerprint"] != subset_record.inputs["pool"]
    ):
        raise UserError(
            f"{exp_dir / SHARDS_NAME} was cut out by another subset or of another pool than the experiment's; delete "
            "it, or choose another folder",
            code="record-differs",
        )
    return shards


def _identity(pool: Pool | None, shards: Record | None) -> PoolIdentity:
    """Return the identity of the pool that is trained on: of shards cut out of it, as it was then."""
    if shards is not None:
        return PoolIdentity(**shards.inputs["pool"])
    assert pool is not None
    return pool.identify()


def _training_data(
    exp_dir: Path, pool: Pool | None, shards: Record | None, subset_path: Path, scale: Scale
) -> TrainingData:
    """Return the samples to train on, of the experiment's own shards or in place; say how many are not there."""
    from benchmark.training.train import TrainingData

    if shards is not None:
        say(f"train: reads {exp_dir / SHARDS_NAME}")
        resharded = read_resharded(exp_dir, shards)
        lost = {"num_absent": shards.result["absent"], "num_damaged": shards.result["damaged_tars"]}
        data = TrainingData(resharded.index, resharded.samples, scale, **lost)
    else:
        assert pool is not None
        subset = load_subset(subset_path)
        data = TrainingData.of(pool.load_index(subset), subset, scale)
    if data.num_absent:
        say(
            f"train: {data.num_absent:,} chosen uids have no image in the pool; {len(data.samples):,} samples are there"
        )
    return data


def _claim(exp_dir: Path, checkpoint_dir: Path, inputs: dict[str, Json], held: ExitStack) -> bool:
    """Lock a seed's folder for as long as `held` lasts; tell whether the seed is still to be trained."""
    from benchmark.training.train import STATE_NAMES, WEIGHTS_NAME, checkpoint_if_finished

    checkpoint_if_finished(checkpoint_dir, inputs)  # before the folder is touched: a refusal leaves nothing behind
    held.enter_context(locked(checkpoint_dir.parent))
    record = checkpoint_if_finished(checkpoint_dir, inputs)
    if record is not None:
        refuse_changed(checkpoint_dir / WEIGHTS_NAME, record.result["weights"])
        for name in STATE_NAMES:  # what a kill between the record and this clean-up left
            (checkpoint_dir / name).unlink(missing_ok=True)
        say(f"train: as before, seed {inputs['seed']} ({checkpoint_dir})")
        return False
    refuse_changed(exp_dir / SUBSET_NAME, inputs["subset"])
    checkpoint_dir.mkdir(parents=True, exist_ok=True)
    return True


def evaluate_stage(
    exp_dir: Path,
    pool: Pool,
    scale: Scale,
    seeds: Sequence[int],
    eval_dir: Path,
    task_names: Sequence[str],
    *,
    device: str,
    workers: int | None = None,
    strict: bool = True,
    ranks: Ranks | None = None,
    curve: bool = False,
    wandb: str = "disabled",
) -> None:
    """Evaluate every trained seed on every task that has no result yet; with `curve`, its kept checkpoints too.

    Raises BadSetsError at the end, when all else is evaluated, where the sets of some tasks cannot be.
    """
    from benchmark.evaluation.eval_sets import BadSetsError, bad_sets
    from benchmark.evaluation.evaluate import evaluate
    from benchmark.evaluation.preprocess import Preprocess
    from benchmark.evaluation.results import read_results, result_path
    from benchmark.models.build import build_model, build_tokenizer
    from benchmark.training.health import WandbRun
    from benchmark.training.ranks import SINGLE_PROCESS
    from benchmark.training.train import WEIGHTS_NAME, kept_name, load_weights, recipe_threads

    tasks = chosen_tasks(scale, task_names)
    ranks = ranks or SINGLE_PROCESS
    _, subset_record = open_experiment(exp_dir, pool)
    failed: BadSetsError | None = None
    _name_of(exp_dir, subset_record, pool)
    # Of all seeds at first: what one of them lacks is not to be met after hours with another.
    trained = {seed: _trained_record(exp_dir, scale, seed, subset_record) for seed in seeds}
    for seed in seeds:
        seed_dir = exp_dir / f"seed-{seed}"
        wanted = [(trained[seed].result["weights"], seed_dir / "checkpoint" / WEIGHTS_NAME, seed_dir)]
        kept = trained[seed].result.get("kept", {}).items() if curve else ()
        for step, weights in kept:
            path, out_dir = seed_dir / "checkpoint" / kept_name(int(step)), curve_dir(seed_dir, int(step))
            # None: training said that it was gone. One that was deleted after its evaluation is not needed again.
            if weights is not None and (path.exists() or not _has_results(out_dir, tasks, weights)):
                wanted.append((weights, path, out_dir))
        own: dict[str, Json] = {} if scale.is_comparable else {"recipe": scale.identity}
        with recipe_threads(scale), ExitStack() as held:
            ranks.run_on_rank0(partial(held.enter_context, locked(seed_dir)))
            model = build_model(scale.model, image_size=scale.image_size)
            for weights, path, out_dir in wanted:
                refuse_changed(path, weights)
                load_weights(model, path)
                missing = [task for task in tasks if not result_path(out_dir, task).exists()]
                is_timed = missing and ranks.is_first
                with cost(exp_dir, "evaluate", seed=seed, tasks=len(missing)) if is_timed else nullcontext():
                    try:
                        evaluate(
                            model,
                            build_tokenizer(scale.model),
                            tasks,
                            eval_dir,
                            out_dir,
                            inputs={"model": scale.model, "checkpoint": weights, "device": device, **own},
                            preprocess=Preprocess(scale.image_size, tuple(scale.mean), tuple(scale.std)),
                            device=device,
                            workers=evaluation_workers(device, workers),
                            strict=strict,
                            ranks=ranks,
                            costs_dir=exp_dir,
                            seed=seed if out_dir == seed_dir else None,
                        )
                    except BadSetsError as error:
                        earlier = failed or error
                        failed = bad_sets(
                            earlier.unreadable | error.unreadable, earlier.odd | error.odd, num_tasks=len(tasks)
                        )
                if done := [task for task in missing if result_path(out_dir, task).exists()]:
                    say(f"evaluate: seed {seed}, {len(done)} tasks ({out_dir / 'eval'})")
        if ranks.is_first:
            metrics = {name: record.result["metrics"] for name, record in read_results(seed_dir, tasks).items()}
            scores = {name: each["main_metric"] for name, each in metrics.items() if each["main_metric"] is not None}
            WandbRun(wandb, exp_dir, seed).log_scores(scores, {"recipe_hash": scale.hash})
    if failed is not None:
        failed.out_dir = exp_dir
        raise failed


def _trained_record(exp_dir: Path, scale: Scale, seed: int, subset_record: Record) -> Record:
    """Return the record of a seed's training; raises where there is none, or it was another training."""
    from benchmark.training.train import RECORD_NAME

    seed_dir = exp_dir / f"seed-{seed}"
    trained = read_record(seed_dir / "checkpoint" / RECORD_NAME)
    if trained is None:
        raise NotFoundError(
            f"{seed_dir} has no checkpoint yet; run `winnow train scale={scale.name} exp_dir={exp_dir} seeds={seed}`",
            code="checkpoint-not-found",
        )
    _refuse_foreign_checkpoint(seed_dir, trained, subset_record)
    if trained.inputs["recipe"]["hash"] != scale.hash:
        there = trained.inputs["recipe"]
        raise UserError(
            f"{seed_dir} was trained by recipe {there['version']} of scale {there['scale']!r}, "
            f"not by recipe {scale.recipe} of {scale.name!r}",
            code="record-differs",
        )
    return trained


def _has_results(out_dir: Path, tasks: Sequence[Task], weights: str) -> bool:
    """Tell whether all tasks have results of these weights."""
    from benchmark.evaluation.results import predictions_path, result_path

    records = [read_record(result_path(out_dir, task)) for task in tasks if predictions_path(out_dir, task).exists()]
    return len(records) == len(tasks) and all(each and each.inputs["checkpoint"] == weights for each in records)


def default_out_dir(opened: OpenedModel) -> Path:
    """Return `evaluations/<model>-<hash of the weights>`, where the results of a model go that has no other folder."""
    return Path("evaluations") / f"{opened.name}-{opened.checkpoint.split(':')[-1][:12]}"


def evaluate_model(
    opened: OpenedModel,
    tasks: Sequence[Task],
    eval_dir: Path,
    out_dir: Path,
    *,
    device: str,
    workers: int | None = None,
    strict: bool = True,
    ranks: Ranks | None = None,
) -> None:
    """Evaluate any open_clip model (`evaluation.checkpoints.open_model`) on tasks; raises as `evaluate` does."""
    from benchmark.evaluation.evaluate import evaluate
    from benchmark.training.ranks import SINGLE_PROCESS

    evaluate(
        opened.model,
        opened.tokenizer,
        tasks,
        eval_dir,
        out_dir,
        inputs={"model": opened.name, "checkpoint": opened.checkpoint, "device": device},
        preprocess=opened.preprocess,
        device=device,
        workers=evaluation_workers(device, workers),
        strict=strict,
        ranks=ranks or SINGLE_PROCESS,
    )


def evaluation_workers(device: str, workers: int | None) -> int:
    """Return how many processes decode images: for a GPU one per core, which alone can feed it; for a CPU none."""
    from benchmark.training.train import default_workers

    return workers if workers is not None else default_workers() if device == "cuda" else 0


def curve_dir(seed_dir: Path, step: int) -> Path:
    """Return the folder of the results of the weights that were kept after a step."""
    return seed_dir / "curve" / f"step-{step:09d}"


def check_evaluation_data(scale: Scale, task_names: Sequence[str], eval_dir: Path, *, strict: bool = True) -> None:
    """Raise FileNotFoundError or ValueError that says what the tasks lack, before hours of training are spent."""
    from benchmark.evaluation.evaluate import check_sets

    check_sets(chosen_tasks(scale, task_names), eval_dir, strict=strict)


def chosen_tasks(scale: Scale, names: Sequence[str]) -> list[Task]:
    """Return the named tasks or groups, or the scale's suite where none is named."""
    load_tasks()
    return tasks_named(names or [scale.suite], scale.suite)


def open_experiment(exp_dir: Path, pool: Pool | None) -> tuple[Path, Record]:
    """Return the experiment's subset file and record; raises where there is none or it was made from another pool."""
    record = read_record(exp_dir / SUBSET_RECORD_NAME)
    if record is None:
        raise NotFoundError(
            f"{exp_dir} has no subset yet; run `winnow filter exp_dir={exp_dir} ...` first", code="subset-not-found"
        )
    if pool is not None and record.inputs["pool"] != pool.compute_fingerprint():
        raise UserError(
            f"{exp_dir} was filtered from pool {record.inputs['pool'][:12]}, but {pool.dir} is pool "
            f"{pool.compute_fingerprint()[:12]}; give pool_dir= of the pool that it was filtered from",
            code="pool-differs",
        )
    return exp_dir / SUBSET_NAME, record


def refuse_changed(path: Path, sha256: str) -> None:
    """Raise where a file is not the one that its record speaks of."""
    if not path.is_file():
        raise NotFoundError(
            f"{path} is gone, though its record is there; run `winnow run` again to make it anew", code="output-lost"
        )
    if sha256_of(path) != sha256:
        raise UserError(
            f"{path} was changed after it was made: its sha256 is not the one in its record; "
            "restore it, or delete it and run `winnow run` again to make it anew",
            code="file-changed",
        )


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

    Raises ValueError where two of them were trained or evaluated on different data.
    """
    from benchmark.evaluation.results import read_results, suite_scores
    from benchmark.training.train import RECORD_NAME

    load_tasks()
    if scale.suite not in SUITES:
        return []
    suite = SUITES[scale.suite]
    seeds: list[FinishedSeed] = []
    for seed_dir in exp_dir.glob("seed-*"):
        trained = read_record(seed_dir / "checkpoint" / RECORD_NAME)
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
                    f"{seed_dir} is in no entry: made with strict=false from data that is not whole are its results of "
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
        _refuse_foreign_checkpoint(exp_dir / f"seed-{each.seed}", each.trained, record)
    suite = SUITES[scale.suite]
    versions: dict[str, set[str]] = {}
    for each in seeds:
        for package, version in each.trained.result["versions"].items():
            versions.setdefault(package, set()).add(version)
    return Entry(
        name=_name_of(exp_dir, record, pool),
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


def _name_of(exp_dir: Path, record: Record, pool: Pool) -> str:
    """Return the name that an experiment's entry has; raises UserError where it needs a filter that is not loaded."""
    if "name" in record.result:
        return str(record.result["name"])
    unknown = [rule["name"] for rule in record.inputs["filters"] if rule["name"] not in STRATEGIES]
    if unknown:
        raise UserError(
            f"{exp_dir} was filtered by {unknown[0]!r}, which is no filter that is known here; give plugins= of the "
            "file that it stands in, which its entry is named by",
            code="filter-not-loaded",
        )
    return entry_name(record, pool.dir)


def _outcome_as_json(outcome: FilterOutcome) -> dict[str, Json]:
    """Return the record's results for a subset that rules chose."""
    return {
        "size": len(outcome.subset),
        "distinct": outcome.distinct,
        "max_copies": outcome.max_copies,
        "rows": outcome.rows,
        "repeated_uids": outcome.repeated_uids,
        "unknown_uids": 0,
        "rules": [asdict(report) for report in outcome.reports],
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


def _is_reference(choice: Choice) -> bool:
    """Tell whether a subset comes about by what no participant may use."""
    return any(rule.strategy.reference for rule in choice.rules) or any(
        is_reference_subset(path) for path in (choice.within_path, choice.subset_path) if path
    )


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


def _refuse_foreign_checkpoint(seed_dir: Path, trained: Record, subset_record: Record) -> None:
    """Raise ValueError where a checkpoint was trained on another subset or pool than the experiment's."""
    if trained.inputs["subset"] != subset_record.result["sha256"]:
        raise UserError(
            f"{seed_dir} was trained on another subset ({trained.inputs['subset'][:12]}) than the experiment's "
            f"({subset_record.result['sha256'][:12]}); delete it or choose another folder",
            code="record-differs",
        )
    if trained.inputs["pool"]["fingerprint"] != subset_record.inputs["pool"]:
        raise UserError(
            f"{seed_dir} was trained on another pool than the experiment's; choose another folder",
            code="record-differs",
        )


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
