"""winnow evaluate: score an experiment's checkpoints or any model; several ranks share the tasks."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmark.cli.experiments import given_exp_dir, with_experiments_own
from benchmark.cli.options import Config, ExperimentConfig, SeedConfig, option
from benchmark.cli.pools import PoolOptions
from benchmark.cli.scores import (
    OWN_CHOICE,
    bad_sets_of,
    checked_reference,
    end_with,
    local_eval_dir,
    report_curve,
    report_experiment,
    score_lines,
    shown_suites,
)
from benchmark.cli.values import (
    as_device,
    as_flag,
    as_model_device,
    as_names,
    as_path,
    as_seeds,
    as_wandb,
    as_workers,
)
from benchmark.cli.verb import LOGS_NAME, CommandLog, Verb
from benchmark.evaluation.kinds.base import Task
from benchmark.evaluation.results import EVAL_FOLDER
from benchmark.experiment.evaluate_stage import chosen_tasks, default_out_dir, evaluate_model, evaluate_stage
from benchmark.experiment.folder import open_experiment
from benchmark.registry import load_tasks
from benchmark.runtime.console import say
from benchmark.runtime.context import Context
from benchmark.runtime.errors import UserError
from benchmark.runtime.failures import keep_tracebacks_in
from benchmark.runtime.mirror import mirrored
from benchmark.runtime.paths import is_remote
from benchmark.scales import get_scale

MODEL_SCALE = "small"  # whose suite scores a model that belongs to no experiment


@dataclass
class EvaluateConfig(ExperimentConfig, SeedConfig):
    """winnow evaluate: score an experiment's checkpoints, or any open_clip model; several ranks share the tasks."""

    scale: Any = option(None, "the recipe [the experiment's, else nano]; with model=: whose suite [datacomp's]")
    exp_dir: Any = option(None, "the experiment's folder; its seeds are trained")
    model: Any = option(None, "instead of exp_dir: any open_clip model, or the path of a JSON configuration")
    checkpoint: Any = option(None, "its weights: .pt (state dict), .safetensors, or a name that open_clip has")
    out_dir: Any = option(None, "the folder of a model's results [evaluations/<model>-<hash of the weights>]")
    eval_dir: Any = option(None, "the evaluation sets' folder or URL [<pool_dir>/eval]")
    tasks: Any = option((), "task names or groups [the scale's suite]; `winnow list tasks` lists them")
    plugins: Any = option((), "your own files with tasks: [my_task.py,...]")
    reference: Any = option(None, "compare with: results' folder, eval_results.jsonl, or a released checkpoint's name")
    curve: Any = option(False, "evaluate the kept checkpoints too, and plot the learning curve")
    workers: Any = option(None, "processes that decode images [threads on a CPU, one per core for a GPU]")
    device: Any = option(
        None, "cpu or cuda [the device of the scale's reference runs; for model=, a GPU if there is one]"
    )
    strict: Any = option(True, "a set of unexpected size is an error; false: warn, and mark the score")


@dataclass(frozen=True)
class EvaluateOptions:
    """The checked options of `winnow evaluate exp_dir=...`."""

    pool: PoolOptions
    exp_dir: Path
    seeds: tuple[int, ...]
    tasks: tuple[Task, ...]
    eval_dir: Path
    reference: str | None
    curve: bool
    context: Context


@dataclass(frozen=True)
class ModelOptions:
    """The checked options of `winnow evaluate model=...`."""

    model: str
    checkpoint: str | None
    suite: str
    tasks: tuple[Task, ...]
    eval_dir: Path
    out_dir: Path | None  # None: named after model and weights
    reference: str | None
    context: Context


def complete(config: Config) -> Config:
    """Fill in scale and pool of an experiment."""
    has_experiment = config["model"] is None and config["checkpoint"] is None and config["exp_dir"] is not None
    return with_experiments_own(config) if has_experiment else config


def read(config: Config) -> EvaluateOptions | ModelOptions:
    """Check the configuration; raises UserError."""
    load_tasks(config["plugins"])
    curve, workers = as_flag(config["curve"], "curve"), as_workers(config["workers"])
    if config["model"] is not None or config["checkpoint"] is not None:
        return _read_model(config, workers)
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
    exp_dir = given_exp_dir(config)
    if not is_remote(exp_dir):
        open_experiment(exp_dir, None)  # before anything is said of its pool
    pool = PoolOptions.read(config)
    seeds, device = as_seeds(config["seeds"]), as_device(config["device"], pool.scale)
    tasks = chosen_tasks(pool.scale, as_names(config["tasks"], "tasks"))
    context = Context(device=device, workers=workers, strict=pool.strict, wandb=as_wandb(config["wandb"]))
    eval_dir = as_path(config["eval_dir"], "eval_dir") or pool.dir / "eval"
    return EvaluateOptions(
        pool, exp_dir, seeds, tasks, eval_dir, checked_reference(config["reference"]), curve, context
    )


def _read_model(config: Config, workers: int | None) -> ModelOptions:
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
    scale = get_scale(str(config["scale"] or MODEL_SCALE))
    tasks = chosen_tasks(scale, as_names(config["tasks"], "tasks"))
    device, strict = as_model_device(config["device"]), as_flag(config["strict"], "strict")
    out_dir, reference = as_path(config["out_dir"], "out_dir"), checked_reference(config["reference"])
    if config["eval_dir"] is None and config["pool_dir"] is None:
        raise UserError(
            "eval_dir must be given: the folder of the evaluation sets (scripts/download_evalsets.py)",
            code="option-missing",
        )
    pool_dir = as_path(config["pool_dir"], "pool_dir") or Path()
    eval_dir = as_path(config["eval_dir"], "eval_dir") or pool_dir / "eval"
    checkpoint = None if config["checkpoint"] is None else str(config["checkpoint"])
    context = Context(device=device, workers=workers, strict=strict)
    return ModelOptions(str(config["model"]), checkpoint, scale.suite, tasks, eval_dir, out_dir, reference, context)


def work(options: EvaluateOptions | ModelOptions, log: CommandLog) -> None:
    """Evaluate, and print the table."""
    if isinstance(options, ModelOptions):
        _evaluate_model(options)
    else:
        _evaluate_experiment(options, log)


def _evaluate_experiment(options: EvaluateOptions, log: CommandLog) -> None:
    from benchmark.training.ranks import joined_ranks

    scale, seeds, tasks = options.pool.scale, options.seeds, options.tasks
    with joined_ranks(options.context.device) as ranks, ExitStack() as held:
        exp_dir = ranks.run_on_rank0(lambda: held.enter_context(mirrored(options.exp_dir)))
        keep_tracebacks_in(exp_dir / LOGS_NAME)
        pool = options.pool.open()
        eval_dir = ranks.run_on_rank0(lambda: local_eval_dir(options.eval_dir, tasks))
        ranks.run_on_rank0(lambda: open_experiment(exp_dir, pool))
        ranks.run_on_rank0(lambda: log.write(exp_dir))
        context = replace(options.context, ranks=ranks)
        bad_sets = bad_sets_of(
            lambda: evaluate_stage(exp_dir, pool, scale, seeds, eval_dir, tasks, context, curve=options.curve)
        )
        if ranks.is_first:
            report_experiment(exp_dir, scale, pool, tasks=tasks, reference=options.reference)
            if options.curve:
                report_curve(exp_dir, scale, seeds)
        end_with(bad_sets, ranks)


def _evaluate_model(options: ModelOptions) -> None:
    from benchmark.evaluation.checkpoints import open_model
    from benchmark.training.ranks import joined_ranks

    tasks, given_dir = options.tasks, options.out_dir
    with joined_ranks(options.context.device) as ranks, ExitStack() as held:
        eval_dir = ranks.run_on_rank0(lambda: local_eval_dir(options.eval_dir, tasks))
        out_dir = None if given_dir is None else ranks.run_on_rank0(lambda: held.enter_context(mirrored(given_dir)))
        opened = open_model(options.model, options.checkpoint)
        out_dir = out_dir or default_out_dir(opened)
        context = replace(options.context, ranks=ranks)
        bad_sets = bad_sets_of(lambda: evaluate_model(opened, tasks, eval_dir, out_dir, context))
        has_results = any((out_dir / EVAL_FOLDER).glob("*.json"))
        if ranks.is_first and has_results:
            shown = shown_suites(tasks, options.suite)
            for line in [line for each in shown for line in score_lines(str(out_dir), each, options.reference)]:
                say(line)
            if any(each.name != OWN_CHOICE for each in shown):  # whose table has every task
                say(f"every task: winnow leaderboard compare {out_dir} --tasks")
            say(f"files: {out_dir} (scores: eval_results.jsonl; predictions: eval/*.parquet; times: costs.jsonl)")
        end_with(bad_sets, ranks)


VERB = Verb(EvaluateConfig, read, work, complete)
