"""What the verbs do: from plain option values to stages. Nothing here sees Hydra or argparse."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from benchmark.cli.options import (
    DEFAULT_SCALE,
    MISSING,
    as_accumulation,
    as_count,
    as_device,
    as_executor,
    as_flag,
    as_list,
    as_model_device,
    as_path,
    as_positive,
    as_seeds,
    as_signals_dir,
    as_wandb,
    as_workers,
    default_pool_dir,
    scale_and_pool_dir,
)
from benchmark.evaluation.results import EVAL_FOLDER
from benchmark.evaluation.tasks import Suite, Task
from benchmark.experiment.choice import Choice, default_exp_dir
from benchmark.experiment.entry import write_experiment_entry
from benchmark.experiment.evaluate_stage import (
    check_evaluation_data,
    chosen_tasks,
    default_out_dir,
    evaluate_model,
    evaluate_stage,
)
from benchmark.experiment.filter_lines import describe_filters
from benchmark.experiment.filter_stage import filter_stage
from benchmark.experiment.folder import ENTRY_NAME, curve_dir, open_experiment, refuse_changed
from benchmark.experiment.train_stage import train_stage
from benchmark.pool.pool import Pool
from benchmark.pool.resharded import SHARDS_NAME
from benchmark.pool.shards_note import has_tars
from benchmark.pool.subset import SUBSET_RECORD_NAME, load_subset
from benchmark.registry import SUITES, load_tasks, tasks_named
from benchmark.report.make import report_stage
from benchmark.runtime.console import rank_of_process, say
from benchmark.runtime.context import Context
from benchmark.runtime.errors import NotFoundError, UserError
from benchmark.runtime.failures import keep_tracebacks_in
from benchmark.runtime.files import write_bytes
from benchmark.runtime.mirror import local_copy, mirrored
from benchmark.runtime.paths import is_remote, is_writable
from benchmark.runtime.records import read_record
from benchmark.runtime.stopping import OtherRankFailed
from benchmark.runtime.storage import has_file, storage_errors
from benchmark.scales import SCALES, Scale, get_scale
from benchmark.selection.rules import make_rule, resolve_rules
from benchmark.toolbox.hub_rows import rows_folder

if TYPE_CHECKING:
    from benchmark.evaluation.eval_sets import BadSetsError
    from benchmark.training.ranks import Ranks
    from leaderboard.entries import Entry
    from leaderboard.table import Table

Config = dict[str, Any]

CURVE_NAME = "curve"
OWN_CHOICE = "of your choice"  # a suite of tasks that no registered suite has together
LOGS_NAME = "logs"  # in an experiment: commands that worked on it, and tracebacks
MODEL_SCALE = "small"  # whose suite scores a model that belongs to no experiment


def run(config: Config, command: list[str]) -> None:
    """Filter, train, evaluate, print the run's table, and make its report."""
    scale, pool_dir, pool_seed = scale_and_pool_dir(config)
    if not scale.is_embedded and not is_remote(pool_dir) and not pool_dir.exists():
        Pool(pool_dir)  # which says how to get one, before it is said that this machine has no GPU
    seeds, device = as_seeds(config["seeds"]), as_device(config["device"], scale)
    # What strategies compute with a model is computed where training is.
    choice, workers, wandb = _choice(config, device), as_workers(config["workers"]), as_wandb(config["wandb"])
    accumulation = as_accumulation(config["accumulation"])
    with_report = as_flag(config["report"], "report")
    as_executor(config["executor"])
    tasks = [str(name) for name in as_list(config["tasks"], "tasks")]
    load_tasks(config["plugins"])
    chosen_tasks(scale, tasks)
    if as_flag(config["dry_run"], "dry_run"):
        _say_reads(config, pool_dir, choice, scale)
        return
    signals_dir = as_signals_dir(config["signals_dir"])
    pool = open_pool(scale, pool_dir, pool_seed, strict=_is_strict(config), signals_dir=signals_dir)
    eval_dir = _eval_dir(config, pool_dir, chosen_tasks(scale, tasks))
    context = Context(
        device=device,
        workers=workers,
        executor=as_executor(config["executor"]),
        plugins=tuple(config["plugins"]),
        strict=_is_strict(config),
        wandb=wandb,
    )
    check_evaluation_data(chosen_tasks(scale, tasks), eval_dir, strict=_is_strict(config))
    with mirrored(as_path(config["exp_dir"], "exp_dir") or default_exp_dir(scale, pool, choice)) as exp_dir:
        keep_tracebacks_in(exp_dir / LOGS_NAME)
        _filter(exp_dir, config, command, pool, choice)
        train_stage(exp_dir, pool, scale, seeds, context, accumulation=accumulation)
        bad_sets = _bad_sets_of(
            lambda: evaluate_stage(
                exp_dir,
                pool,
                scale,
                seeds,
                eval_dir,
                chosen_tasks(scale, tasks),
                context,
            )
        )
        report_experiment(exp_dir, scale, pool, tasks=chosen_tasks(scale, tasks))
        if with_report:
            report_stage(exp_dir, pool, scale)
        if bad_sets is not None:
            raise bad_sets


def filter_pool(config: Config, command: list[str]) -> None:
    """Choose a subset."""
    scale, pool_dir, pool_seed = scale_and_pool_dir(config)
    choice = _choice(config, config["device"] or "cpu")
    as_workers(config["workers"])
    as_executor(config["executor"])
    if as_flag(config["dry_run"], "dry_run"):
        _say_reads(config, pool_dir, choice, None)
        return
    as_device(config["device"], scale)
    signals_dir = as_signals_dir(config["signals_dir"])
    pool = open_pool(scale, pool_dir, pool_seed, strict=_is_strict(config), signals_dir=signals_dir)
    with mirrored(as_path(config["exp_dir"], "exp_dir") or default_exp_dir(scale, pool, choice)) as exp_dir:
        keep_tracebacks_in(exp_dir / LOGS_NAME)
        _filter(exp_dir, config, command, pool, choice)


def reshard(config: Config, command: list[str]) -> None:
    """Cut a subset out of the pool's tars into new ones."""
    from benchmark.cli.dry_run import resharding_lines
    from benchmark.pool.reshard import reshard as reshard_stage

    _, pool_dir, _ = scale_and_pool_dir(config)
    shard_size = as_positive(config["shard_size"], "shard_size")
    max_missing = as_count(config["max_missing"], "max_missing")
    workers, dry_run = as_workers(config["workers"]), as_flag(config["dry_run"], "dry_run")
    location, given, out = (as_path(config[name], name) for name in ("exp_dir", "subset", "out_dir"))
    if (location is None) == (given is None):
        raise UserError(
            "give exp_dir= of an experiment that has a subset, or subset= of a file and out_dir=", code="option-missing"
        )
    if location is None and out is None:
        raise UserError("subset= goes with out_dir=, the folder to write to", code="option-conflict")
    pool = Pool(pool_dir, strict=_is_strict(config))
    with ExitStack() as held:
        if location is not None:
            exp_dir = held.enter_context(mirrored(location))
            keep_tracebacks_in(exp_dir / LOGS_NAME)
            subset_path, record = open_experiment(exp_dir, pool)
            refuse_changed(subset_path, record.result["sha256"])
            max_missing = max(max_missing, record.result.get("unknown_uids", 0))  # as was allowed when it was chosen
        else:
            assert given is not None
            subset_path = local_copy(given)
        if dry_run:
            if _says_indexing(pool):
                return
            for line in resharding_lines(pool, subset_path):
                say(line)
            return
        if location is not None:
            _log_command(exp_dir, config, command)
        out_dir = exp_dir / SHARDS_NAME if out is None else held.enter_context(mirrored(out))
        reshard_stage(pool, subset_path, out_dir, shard_size=shard_size, max_missing=max_missing, workers=workers)


def train(config: Config, command: list[str]) -> None:
    """Train on an experiment's subset, alone or as one of the ranks that torchrun started."""
    from benchmark.cli.dry_run import training_lines
    from benchmark.training.ranks import joined_ranks

    scale, pool_dir, _ = scale_and_pool_dir(config)
    seeds, device = as_seeds(config["seeds"]), as_device(config["device"], scale)
    workers, wandb = as_workers(config["workers"]), as_wandb(config["wandb"])
    accumulation = as_accumulation(config["accumulation"])
    location = _given_exp_dir(config)
    if is_remote(location) and os.environ.get("LOCAL_WORLD_SIZE", "1") != str(rank_of_process()[1]):
        raise UserError(
            f"exp_dir={location} is worked on in a folder of one machine, and the ranks are on several; "
            "train in a folder that all of them share, and copy it there afterwards",
            code="not-shared",
        )
    dry_run, is_strict = as_flag(config["dry_run"], "dry_run"), _is_strict(config)
    with joined_ranks(device) as ranks, ExitStack() as held:
        exp_dir = ranks.run_on_rank0(lambda: held.enter_context(mirrored(location)))
        keep_tracebacks_in(exp_dir / LOGS_NAME)
        # An experiment with shards of its own is trained without the pool, on a machine that may not have it.
        is_alone = ranks.run_on_rank0(lambda: (exp_dir / SHARDS_NAME).exists() and not pool_dir.exists())
        pool = None if is_alone else Pool(pool_dir, strict=is_strict)
        ranks.run_on_rank0(lambda: open_experiment(exp_dir, pool))
        if dry_run:
            if ranks.run_on_rank0(lambda: _says_indexing(pool)):
                return
            for line in ranks.run_on_rank0(lambda: training_lines(exp_dir, pool, scale)):
                say(line)
            return
        ranks.run_on_rank0(lambda: _log_command(exp_dir, config, command))
        train_stage(
            exp_dir,
            pool,
            scale,
            seeds,
            Context(device=device, workers=workers, wandb=wandb, ranks=ranks),
            accumulation=accumulation,
        )


def evaluate(config: Config, command: list[str]) -> None:
    """Score an experiment's checkpoints or any model, and print the table; several ranks share the tasks."""
    from benchmark.training.ranks import joined_ranks

    load_tasks(config["plugins"])
    as_flag(config["curve"], "curve")
    as_workers(config["workers"])
    if config["model"] is not None or config["checkpoint"] is not None:
        _evaluate_model(config)
        return
    if config["exp_dir"] is None:
        raise UserError(
            "give exp_dir= of an experiment with a trained seed, or model= and checkpoint= of any open_clip model, "
            "eval_dir= and out_dir=",
            code="option-missing",
        )
    if config["out_dir"] is not None:
        raise UserError(
            "out_dir= goes with model=; the results of an experiment go to its seeds' folders", code="option-conflict"
        )
    location = _given_exp_dir(config)
    if not is_remote(location):
        open_experiment(location, None)  # before anything is said of its pool
    config = {**config, "scale": config["scale"] or _scale_of(location)}
    scale, pool_dir, _ = scale_and_pool_dir(config)
    seeds, device = as_seeds(config["seeds"]), as_device(config["device"], scale)
    tasks, wandb = [str(name) for name in as_list(config["tasks"], "tasks")], as_wandb(config["wandb"])
    chosen_tasks(scale, tasks)
    reference = _reference(config)
    strict = _is_strict(config)
    with joined_ranks(device) as ranks, ExitStack() as held:
        exp_dir = ranks.run_on_rank0(lambda: held.enter_context(mirrored(location)))
        keep_tracebacks_in(exp_dir / LOGS_NAME)
        pool = Pool(pool_dir, strict=strict)
        eval_dir = ranks.run_on_rank0(lambda: _eval_dir(config, pool_dir, chosen_tasks(scale, tasks)))
        ranks.run_on_rank0(lambda: open_experiment(exp_dir, pool))
        ranks.run_on_rank0(lambda: _log_command(exp_dir, config, command))
        bad_sets = _bad_sets_of(
            lambda: evaluate_stage(
                exp_dir,
                pool,
                scale,
                seeds,
                eval_dir,
                chosen_tasks(scale, tasks),
                Context(device=device, workers=as_workers(config["workers"]), strict=strict, wandb=wandb, ranks=ranks),
                curve=config["curve"],
            )
        )
        if ranks.is_first:
            report_experiment(exp_dir, scale, pool, tasks=chosen_tasks(scale, tasks), reference=reference)
            if config["curve"]:
                report_curve(exp_dir, scale, seeds)
        _end_with(bad_sets, ranks)


def _bad_sets_of(work: Callable[[], object]) -> BadSetsError | None:
    """Evaluate; return the error about sets that cannot be, which ends the command once the scores are shown."""
    from benchmark.evaluation.eval_sets import BadSetsError

    try:
        work()
    except BadSetsError as error:
        return error
    return None


def _end_with(error: BadSetsError | None, ranks: Ranks) -> None:
    """Raise an error that all ranks have; one of them says it."""
    if error is not None:
        raise error if ranks.is_first else OtherRankFailed


def _scale_of(exp_dir: Path) -> str:
    """Return the scale that an experiment's first seed was trained by, the default one where that is not known."""
    if is_remote(exp_dir):
        return DEFAULT_SCALE
    for path in sorted(exp_dir.glob("seed-*/checkpoint/checkpoint.json")):
        record = read_record(path)
        name = record.inputs["recipe"]["scale"] if record else ""
        if name in SCALES:
            return str(name)
    return DEFAULT_SCALE


def _evaluate_model(config: Config) -> None:
    """Score any open_clip model."""
    from benchmark.evaluation.checkpoints import open_model
    from benchmark.training.ranks import joined_ranks

    for name in ("exp_dir", "wandb", "seeds"):
        usual = {"wandb": "disabled", "seeds": 0}.get(name)
        if config[name] != usual:
            raise UserError(f"{name}= goes with an experiment, not with model=", code="option-conflict")
    if config["model"] is None:
        raise UserError(
            "checkpoint= goes with model=, the name of an open_clip model such as ViT-B-32", code="option-conflict"
        )
    if config["curve"]:
        raise UserError(
            "curve=true goes with exp_dir= of an experiment, which keeps checkpoints", code="option-conflict"
        )
    suite = get_scale(str(config["scale"] or MODEL_SCALE)).suite
    tasks = tasks_named([str(name) for name in as_list(config["tasks"], "tasks")] or [suite], suite)
    device, strict = as_model_device(config["device"]), _is_strict(config)
    given_dir = as_path(config["out_dir"], "out_dir")
    reference = _reference(config)
    if config["eval_dir"] is None and config["pool_dir"] is None:
        raise UserError(
            "eval_dir must be given: the folder of the evaluation sets (scripts/download_evalsets.py)",
            code="option-missing",
        )
    pool_dir = as_path(config["pool_dir"], "pool_dir") or Path()
    checkpoint = None if config["checkpoint"] is None else str(config["checkpoint"])
    with joined_ranks(device) as ranks, ExitStack() as held:
        eval_dir = ranks.run_on_rank0(lambda: _eval_dir(config, pool_dir, tasks))
        out_dir = None if given_dir is None else ranks.run_on_rank0(lambda: held.enter_context(mirrored(given_dir)))
        opened = open_model(str(config["model"]), checkpoint)
        out_dir = out_dir or default_out_dir(opened)
        bad_sets = _bad_sets_of(
            lambda: evaluate_model(
                opened,
                tasks,
                eval_dir,
                out_dir,
                Context(device=device, workers=as_workers(config["workers"]), strict=strict, ranks=ranks),
            )
        )
        has_results = any((out_dir / EVAL_FOLDER).glob("*.json"))
        if ranks.is_first and has_results:
            shown = _shown_suites(tasks, suite)
            for line in [line for each in shown for line in score_lines(str(out_dir), each, reference)]:
                say(line)
            if any(each.name != OWN_CHOICE for each in shown):  # whose table has every task
                say(f"every task: winnow leaderboard compare {out_dir} --tasks")
            say(f"files: {out_dir} (scores: eval_results.jsonl; predictions: eval/*.parquet; times: costs.jsonl)")
        _end_with(bad_sets, ranks)


def report_curve(exp_dir: Path, scale: Scale, seeds: Sequence[int]) -> None:
    """Print the learning curve over the kept checkpoints that are evaluated, and draw it: `curve.png`, `curve.csv`."""
    from leaderboard.curve import curve_frame, plot_curve, render_curve
    from leaderboard.score_folders import read_over_seeds

    points = []
    for step in scale.kept_steps:
        is_last = step == scale.steps
        folders = {seed: exp_dir / f"seed-{seed}" for seed in seeds}
        folders = {seed: folder if is_last else curve_dir(folder, step) for seed, folder in folders.items()}
        there = {seed: folder for seed, folder in folders.items() if any((folder / EVAL_FOLDER).glob("*.json"))}
        if there:
            points.append((step * scale.batch_size, read_over_seeds(exp_dir.name, there)))
    suite = SUITES[scale.suite]
    say("")
    say(render_curve(points, suite).rstrip("\n"))
    plot_curve(points, suite, exp_dir / f"{CURVE_NAME}.png")
    write_bytes(exp_dir / f"{CURVE_NAME}.csv", curve_frame(points, suite).to_csv(index=False).encode())
    say(f"learning curve: {exp_dir / CURVE_NAME}.png, with every task's numbers in {CURVE_NAME}.csv beside it")


def _shown_suites(tasks: Sequence[Task], suite_name: str) -> list[Suite]:
    """Return the suites whose tables show the scores of all these tasks, that of the scale first where it has any.

    That is one suite where one has all of them; what remains makes a suite of the user's choice.
    """
    suites = {suite.name: {*suite.tasks, *suite.unscored} for suite in SUITES.values()}
    own = suites.get(suite_name, set())
    names = [task.name for task in tasks]
    shown = [SUITES[suite_name]] if own & set(names) else []
    others = [task for task in tasks if task.name not in own]
    if not others:
        return shown
    for name, members in suites.items():
        if members >= set(names):
            return [SUITES[name]]
    for name, members in suites.items():
        if members >= {task.name for task in others}:
            return [*shown, SUITES[name]]
    scored = tuple(task.name for task in others if task.is_scored)
    unscored = tuple(task.name for task in others if not task.is_scored)
    return [*shown, Suite(name=OWN_CHOICE, version=1, tasks=scored, unscored=unscored)] if scored else shown


def _reference(config: Config) -> str | None:
    """Return what to compare with; raises where there is nothing of that name, before work begins."""
    if config["reference"] is None:
        return None
    from leaderboard.scores import read_scores

    read_scores(str(config["reference"]))
    return str(config["reference"])


def score_lines(place: str, suite: Suite, reference: str | None) -> list[str]:
    """Return the table of an evaluation's scores, against a reference's where one is named."""
    from leaderboard.score_table import render_evaluation
    from leaderboard.scores import read_scores

    theirs = None if reference is None else read_scores(reference)
    table = render_evaluation(read_scores(place), suite, theirs, with_tasks=suite.name == OWN_CHOICE)
    return ["", *table.rstrip("\n").split("\n")]


def report(config: Config, command: list[str]) -> None:
    """Show what an experiment kept and dropped."""
    scale, pool_dir, _ = scale_and_pool_dir(config)
    location = _given_exp_dir(config)
    pool = Pool(pool_dir, strict=_is_strict(config), signals_dir=as_signals_dir(config["signals_dir"]))
    with mirrored(location) as exp_dir:
        keep_tracebacks_in(exp_dir / LOGS_NAME)
        open_experiment(exp_dir, pool)
        _log_command(exp_dir, config, command)
        report_stage(exp_dir, pool, scale)


FUNCTIONS: dict[str, Callable[[Config, list[str]], None]] = {
    "run": storage_errors()(run),
    "filter": storage_errors()(filter_pool),
    "reshard": storage_errors()(reshard),
    "train": storage_errors()(train),
    "evaluate": storage_errors()(evaluate),
    "report": storage_errors()(report),
}


def open_pool(
    scale: Scale, pool_dir: Path, pool_seed: int, *, strict: bool = True, signals_dir: Path | None = None
) -> Pool:
    """Open the pool; an embedded scale's is drawn first where it is not there yet, into the scale's own folder alone.

    A folder that was named elsewhere is drawn on in only where `winnow pool build` began: it may be mistyped, and hold
    other things. One that is remote or read-only is taken as it is. Raises FileNotFoundError where there is no pool.
    """
    if is_remote(pool_dir) or (pool_dir.is_dir() and not is_writable(pool_dir)):
        if has_file(pool_dir / "building.json") and not has_file(pool_dir / "pool.json"):
            raise UserError(
                f"{pool_dir} is half drawn and cannot be written; draw it with `winnow pool build` first",
                code="pool-half-drawn",
            )
        return Pool(pool_dir, strict=strict, signals_dir=signals_dir)
    is_drawn = any((pool_dir / name).exists() for name in ("pool.json", "building.json"))
    is_own = any((pool_dir / "metadata").glob("*.parquet")) or has_tars(pool_dir)
    is_default = pool_dir.resolve() == default_pool_dir(scale, pool_seed).resolve()
    if scale.is_embedded and (is_drawn or (is_default and not is_own)):
        build_embedded_pool(SCALES[scale.pool_scale], pool_dir, pool_seed, None)
    return Pool(pool_dir, strict=strict, signals_dir=signals_dir)


def _is_strict(config: Config) -> bool:
    return as_flag(config["strict"], "strict")


def _says_indexing(pool: Pool | None) -> bool:
    """Say what making the index would read, where it is not there; tell whether that ends a dry run."""
    from benchmark.cli.dry_run import indexing_lines

    lines = [] if pool is None else indexing_lines(pool)
    for line in lines:
        say(line)
    if lines and pool is not None and is_remote(pool.dir):
        say("make it first (`winnow pool index`); the rest is known then")
        return True
    return False


def _say_reads(config: Config, pool_dir: Path, choice: Choice, scale: Scale | None) -> None:
    """Say what filtering, and with a scale training on what it chooses, would read, and what a pilot of it takes."""
    from benchmark.cli.dry_run import filter_reads, most_training_lines
    from benchmark.selection.pilot import pilot_lines

    pool = Pool(pool_dir, strict=_is_strict(config), signals_dir=as_signals_dir(config["signals_dir"]))
    rules = resolve_rules(pool, choice.rules, device=choice.device)
    needs_index = scale is not None or any(rule.sees_images for rule in rules)
    if needs_index and _says_indexing(pool):
        return
    for reading in filter_reads(pool, rules):
        say(f"filter: {reading}")
    if choice.rules:
        within = load_subset(choice.within_path) if choice.within_path else None
        workers = as_workers(config["workers"]) or 0
        for line in pilot_lines(pool, rules, within=within, workers=workers, device=choice.device):
            say(line)
    if scale is not None:
        for line in most_training_lines(pool, scale):
            say(line)


def build_embedded_pool(scale: Scale, pool_dir: Path, pool_seed: int, workers: int | None) -> None:
    """Draw the embedded pool of a scale, or say that it is there."""
    from benchmark.embedded.pool import build_pool

    if not scale.is_embedded:
        raise UserError(
            f"scale {scale.name!r} has no embedded pool; give pool_dir= of a pool on disk", code="no-embedded-pool"
        )
    if is_remote(pool_dir):
        raise UserError(
            f"an embedded pool is drawn into a local folder, not into {pool_dir}; copy it there afterwards",
            code="option-value",
        )
    build_pool(pool_dir, scale, pool_seed, workers)


def report_experiment(
    exp_dir: Path, scale: Scale, pool: Pool, *, tasks: Sequence[Task] = (), reference: str | None = None
) -> None:
    """Write entry.json and print the run among the board's entries, what may be claimed, and where the files are.

    Where there is no board, or a reference is named, it prints the scores by group, against the reference; and so those
    of `tasks` that are not in the scale's suite.
    """
    from leaderboard.entries import has_board

    entry = write_experiment_entry(exp_dir, scale, pool)
    has_table = entry is not None and has_board(scale.name)
    if has_table:
        say("")
        say(board_table(scale.name, [exp_dir / ENTRY_NAME], "text"))
    if any(exp_dir.glob(f"seed-*/{EVAL_FOLDER}/*.json")):
        for suite in _shown_suites(tasks, scale.suite) if tasks else [SUITES[scale.suite]]:
            if reference is not None or not has_table or suite.name != scale.suite:
                for line in score_lines(str(exp_dir), suite, reference):
                    say(line)
    if entry is None:
        say(
            f"no entry: no seed of {exp_dir} has results for the whole suite {scale.suite!r}, which its average is over"
        )
        return
    if not scale.is_comparable:
        say(
            f"Not comparable: scale {scale.name!r} is your own (it departs from {scale.base!r}; recipe hash "
            f"{scale.hash[:12]})."
        )
    say(f"files: {exp_dir} (scores: {ENTRY_NAME}; predictions: seed-*/eval/*.parquet; times: costs.jsonl)")


def board_table(board_name: str, entry_paths: Sequence[Path], style: str) -> str:
    """Render a board, given by name or folder, with entries among its own; the first is compared with all others."""
    from leaderboard.table import render_markdown, render_table, to_frame

    table = _table(board_name, entry_paths)
    if style == "csv":
        return to_frame(table).to_csv(index=False).rstrip("\n")
    return render_markdown(table) if style == "markdown" else render_table(table)


def board_tasks(board_name: str, entry_paths: Sequence[Path], style: str) -> str:
    """Render what each task of a board can tell apart."""
    from leaderboard.task_table import make_task_table, render_tasks, tasks_to_frame

    tasks = make_task_table(_table(board_name, entry_paths))
    return tasks_to_frame(tasks).to_csv(index=False).rstrip("\n") if style == "csv" else render_tasks(tasks, style)


def board_agreement(board_name: str, style: str) -> str:
    """Render how far a board's order of strategies is the published one."""
    from leaderboard.agreement import agreement_to_frame, make_agreement, read_published, render_agreement

    agreement = make_agreement(_table(board_name, ()), read_published())
    if style == "csv":
        return agreement_to_frame(agreement).to_csv(index=False).rstrip("\n")
    return render_agreement(agreement, style)


def _table(board_name: str, entry_paths: Sequence[Path]) -> Table:
    from leaderboard.entries import board_named, read_entries, read_entry, read_other_pools
    from leaderboard.table import make_table

    board = board_named(board_name)
    given: dict[Path, Entry] = {}
    for path in entry_paths:
        entry = read_entry(path)
        if path.resolve() in given:
            raise UserError(f"--entry {path} is given twice; give each entry once", code="entry-given-twice")
        given[path.resolve()] = entry
    first, *others = given.values() if given else (None,)
    return make_table(read_entries(board), board, first, read_other_pools(board), others)


def _choice(config: Config, device: str) -> Choice:
    subset = as_path(config["subset"], "subset")
    within = as_path(config["within"], "within")
    # The record beside a subset says whether it is a reference's.
    within, subset = (path and local_copy(path, beside=[SUBSET_RECORD_NAME]) for path in (within, subset))
    for path in (within, subset):
        if path is not None and not path.is_file():
            raise NotFoundError(f"there is no subset file {path}", code="subset-not-found")
    if subset is not None:
        if within is not None:
            raise UserError("subset= takes a file as it is; within= goes with filters", code="option-conflict")
        return Choice(subset_path=subset, max_missing=as_count(config["max_missing"], "max_missing"))
    rules = tuple(make_rule(name, options) for name, options in config["filters"].items())
    if not rules:
        raise UserError("no filter is chosen; no_filter keeps the whole pool", code="option-missing")
    return Choice(rules, within, device=device)


def _filter(exp_dir: Path, config: Config, command: list[str], pool: Pool, choice: Choice) -> None:
    record = filter_stage(
        exp_dir,
        pool,
        choice,
        Context(
            workers=as_workers(config["workers"]),
            plugins=tuple(config["plugins"]),
            executor=as_executor(config["executor"]),
        ),
    )
    _log_command(exp_dir, config, command)
    for line in describe_filters(exp_dir, record):
        say(line)


def _given_exp_dir(config: Config) -> Path:
    exp_dir = None if config["exp_dir"] == MISSING else as_path(config["exp_dir"], "exp_dir")
    if exp_dir is None:
        raise UserError(
            "exp_dir must be given: the folder of an experiment with a subset, made by `winnow filter`",
            code="option-missing",
        )
    return exp_dir


def _eval_dir(config: Config, pool_dir: Path, tasks: Sequence[Task]) -> Path:
    """Return the evaluation sets' folder; of a remote one, a local folder with copies of what the tasks need."""
    eval_dir = as_path(config["eval_dir"], "eval_dir") or pool_dir / "eval"
    if not is_remote(eval_dir):
        return eval_dir
    wanted = []
    for task in tasks:
        names = [name for name in task.folder_names if has_file(eval_dir / name / "test" / "nshards.txt")]
        absent = rows_folder(task.hub_rows) if task.hub_rows else task.folder_name  # of which it is said that it lacks
        wanted.append(names[0] if names else absent)
    return local_copy(eval_dir, only=wanted)


def _log_command(exp_dir: Path, config: Config, command: list[str]) -> None:
    """Keep what was asked for, and when, outside every hash."""
    name = time.strftime("%Y%m%dT%H%M%S", time.gmtime()) + f"-{time.time_ns() % 10**9:09d}.yaml"
    text = yaml.safe_dump({"command": command, "options": config}, sort_keys=False)
    write_bytes(exp_dir / LOGS_NAME / name, text.encode())
