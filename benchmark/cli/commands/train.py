"""winnow train: train on an experiment's subset, alone or as one of the ranks that torchrun started."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmark.cli.choices import says_indexing
from benchmark.cli.experiments import given_exp_dir, with_experiments_own
from benchmark.cli.options import MISSING, Config, ExperimentConfig, TrainingConfig, option
from benchmark.cli.pools import PoolOptions
from benchmark.cli.values import as_accumulation, as_device, as_flag, as_seeds, as_wandb, as_workers
from benchmark.cli.verb import LOGS_NAME, CommandLog, Verb
from benchmark.experiment.folder import open_experiment
from benchmark.experiment.train_stage import train_stage
from benchmark.pool.resharded import SHARDS_NAME
from benchmark.runtime.console import rank_of_process, say
from benchmark.runtime.context import Context
from benchmark.runtime.errors import UserError
from benchmark.runtime.failures import keep_tracebacks_in
from benchmark.runtime.mirror import mirrored
from benchmark.runtime.paths import is_remote


@dataclass
class TrainConfig(ExperimentConfig, TrainingConfig):
    """winnow train: train on an experiment's subset; on several GPUs by `torchrun --no-python winnow train ...`."""

    exp_dir: Any = option(MISSING, "the experiment's folder; it has a subset")


@dataclass(frozen=True)
class TrainOptions:
    """The checked options of `winnow train`."""

    pool: PoolOptions
    exp_dir: Path
    seeds: tuple[int, ...]
    context: Context
    accumulation: int
    dry_run: bool


def read(config: Config) -> TrainOptions:
    """Check the configuration; raises UserError."""
    pool = PoolOptions.read(config)
    seeds, device = as_seeds(config["seeds"]), as_device(config["device"], pool.scale)
    workers, wandb = as_workers(config["workers"]), as_wandb(config["wandb"])
    accumulation = as_accumulation(config["accumulation"])
    exp_dir = given_exp_dir(config)
    if is_remote(exp_dir) and os.environ.get("LOCAL_WORLD_SIZE", "1") != str(rank_of_process()[1]):
        raise UserError(
            f"exp_dir={exp_dir} is mirrored in a folder of one machine, and the ranks are on several; "
            "train in a folder that all of them share, and copy it there afterwards",
            code="not-shared",
        )
    context = Context(device=device, workers=workers, strict=pool.strict, wandb=wandb)
    return TrainOptions(pool, exp_dir, seeds, context, accumulation, as_flag(config["dry_run"], "dry_run"))


def work(options: TrainOptions, log: CommandLog) -> None:
    """Train the seeds that are not trained yet."""
    from benchmark.cli.dry_run import training_lines
    from benchmark.training.ranks import joined_ranks

    scale = options.pool.scale
    with joined_ranks(options.context.device) as ranks, ExitStack() as held:
        exp_dir = ranks.run_on_rank0(lambda: held.enter_context(mirrored(options.exp_dir)))
        keep_tracebacks_in(exp_dir / LOGS_NAME)
        # An experiment with its own shards is trained without the pool, on a machine that may not have it.
        is_alone = ranks.run_on_rank0(lambda: (exp_dir / SHARDS_NAME).exists() and not options.pool.dir.exists())
        pool = None if is_alone else options.pool.open()
        ranks.run_on_rank0(lambda: open_experiment(exp_dir, pool))
        if options.dry_run:
            if ranks.run_on_rank0(lambda: says_indexing(pool)):
                return
            for line in ranks.run_on_rank0(lambda: training_lines(exp_dir, pool, scale)):
                say(line)
            return
        ranks.run_on_rank0(lambda: log.write(exp_dir))
        context = replace(options.context, ranks=ranks)
        train_stage(exp_dir, pool, scale, options.seeds, context, accumulation=options.accumulation)


VERB = Verb(TrainConfig, read, work, with_experiments_own)
