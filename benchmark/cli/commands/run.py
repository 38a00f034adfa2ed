"""winnow run: filter, train, evaluate, print the run's table, and make its report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.cli.choices import choose, read_choice, say_reads
from benchmark.cli.options import ChoiceConfig, Config, TrainingConfig, option
from benchmark.cli.pools import PoolOptions
from benchmark.cli.scores import bad_sets_of, local_eval_dir, report_experiment
from benchmark.cli.values import (
    as_accumulation,
    as_device,
    as_executor,
    as_flag,
    as_names,
    as_path,
    as_seeds,
    as_wandb,
    as_workers,
)
from benchmark.cli.verb import LOGS_NAME, CommandLog, Verb
from benchmark.evaluation.kinds.base import Task
from benchmark.experiment.choice import Choice, default_exp_dir
from benchmark.experiment.evaluate_stage import check_evaluation_data, chosen_tasks, evaluate_stage
from benchmark.experiment.train_stage import train_stage
from benchmark.registry import load_tasks
from benchmark.report.make import report_stage
from benchmark.runtime.context import Context
from benchmark.runtime.failures import keep_tracebacks_in
from benchmark.runtime.mirror import mirrored
from benchmark.runtime.paths import is_remote


@dataclass
class RunConfig(ChoiceConfig, TrainingConfig):
    """winnow run: filter, train, evaluate, table."""

    workers: Any = option(
        None, "processes of each stage [0 to filter and where samples fit in memory, else one per core]"
    )

    eval_dir: Any = option(None, "the evaluation sets' folder [<pool_dir>/eval]")
    tasks: Any = option((), "task names or groups [the scale's suite]; `winnow list tasks` lists them")
    report: Any = option(True, "end with the report; `winnow report` makes it later")


@dataclass(frozen=True)
class RunOptions:
    """The checked options of `winnow run`."""

    pool: PoolOptions
    choice: Choice
    exp_dir: Path | None  # None: named after the choice
    seeds: tuple[int, ...]
    tasks: tuple[Task, ...]
    eval_dir: Path
    context: Context
    accumulation: int
    report: bool
    dry_run: bool


def read(config: Config) -> RunOptions:
    """Check the configuration; raises UserError."""
    pool = PoolOptions.read(config)
    if not pool.scale.is_embedded and not is_remote(pool.dir) and not pool.dir.exists():
        pool.open()  # which says how to get one, before it is said that this machine has no GPU
    seeds, device = as_seeds(config["seeds"]), as_device(config["device"], pool.scale)
    # What strategies compute with a model is computed where training is.
    choice = read_choice(config, device)
    context = Context(
        device=device,
        workers=as_workers(config["workers"]),
        executor=as_executor(config["executor"]),
        plugins=tuple(config["plugins"]),
        strict=pool.strict,
        wandb=as_wandb(config["wandb"]),
    )
    load_tasks(config["plugins"])
    return RunOptions(
        pool,
        choice,
        as_path(config["exp_dir"], "exp_dir"),
        seeds,
        chosen_tasks(pool.scale, as_names(config["tasks"], "tasks")),
        as_path(config["eval_dir"], "eval_dir") or pool.dir / "eval",
        context,
        as_accumulation(config["accumulation"]),
        as_flag(config["report"], "report"),
        as_flag(config["dry_run"], "dry_run"),
    )


def work(options: RunOptions, log: CommandLog) -> None:
    """Do the stages in order; end with the error about evaluation sets that cannot be used, if there are any."""
    scale, tasks, context = options.pool.scale, options.tasks, options.context
    if options.dry_run:
        say_reads(options.pool, options.choice, context.workers or 0, with_training=True)
        return
    pool = options.pool.open_or_generate()
    eval_dir = local_eval_dir(options.eval_dir, tasks)
    check_evaluation_data(tasks, eval_dir, strict=context.strict)
    with mirrored(options.exp_dir or default_exp_dir(scale, pool, options.choice)) as exp_dir:
        keep_tracebacks_in(exp_dir / LOGS_NAME)
        choose(exp_dir, pool, options.choice, context, log)
        train_stage(exp_dir, pool, scale, options.seeds, context, accumulation=options.accumulation)
        bad_sets = bad_sets_of(lambda: evaluate_stage(exp_dir, pool, scale, options.seeds, eval_dir, tasks, context))
        report_experiment(exp_dir, scale, pool, tasks=tasks)
        if options.report:
            report_stage(exp_dir, pool, scale)
        if bad_sets is not None:
            raise bad_sets


VERB = Verb(RunConfig, read, work)
