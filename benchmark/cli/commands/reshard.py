"""winnow reshard: copy a subset out of the pool's tars into new ones."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.cli.choices import says_indexing
from benchmark.cli.experiments import with_experiments_own
from benchmark.cli.options import DRY_RUN, MAX_MISSING, Config, ExperimentConfig, option
from benchmark.cli.pools import PoolOptions
from benchmark.cli.values import as_count, as_flag, as_path, as_positive, as_workers
from benchmark.cli.verb import LOGS_NAME, CommandLog, Verb
from benchmark.experiment.folder import open_experiment, refuse_changed
from benchmark.pool.resharded import SHARDS_NAME
from benchmark.runtime.console import say
from benchmark.runtime.errors import UserError
from benchmark.runtime.failures import keep_tracebacks_in
from benchmark.runtime.mirror import local_copy, mirrored


@dataclass
class ReshardConfig(ExperimentConfig):
    """winnow reshard: copy a subset out of the pool's tars into new ones, in DataComp's layout."""

    exp_dir: Any = option(None, "an experiment with a subset; training then reads its exp_dir/shards")
    subset: Any = option(None, "or any subset file (.npy, raw or .parquet); goes with out_dir=")
    out_dir: Any = option(None, "the folder to write to [<exp_dir>/shards]")
    shard_size: Any = option(10_000, "samples per tar")
    max_missing: Any = option(0, MAX_MISSING)
    dry_run: Any = option(False, DRY_RUN)
    workers: Any = option(None, "processes that copy [one per core]; results are the same for any number")


@dataclass(frozen=True)
class ReshardOptions:
    """The checked options of `winnow reshard`: an experiment, or a subset file and a folder to write to."""

    pool: PoolOptions
    exp_dir: Path | None
    subset: Path | None
    out_dir: Path | None  # None: the experiment's own shards
    shard_size: int
    max_missing: int
    workers: int | None
    dry_run: bool


def read(config: Config) -> ReshardOptions:
    """Check the configuration; raises UserError."""
    pool = PoolOptions.read(config)
    shard_size = as_positive(config["shard_size"], "shard_size")
    max_missing = as_count(config["max_missing"], "max_missing")
    workers, dry_run = as_workers(config["workers"]), as_flag(config["dry_run"], "dry_run")
    exp_dir, subset, out_dir = (as_path(config[name], name) for name in ("exp_dir", "subset", "out_dir"))
    if (exp_dir is None) == (subset is None):
        raise UserError(
            "give exp_dir= of an experiment that has a subset, or subset= of a file and out_dir=", code="option-missing"
        )
    if exp_dir is None and out_dir is None:
        raise UserError("subset= goes with out_dir=, the folder to write to", code="option-conflict")
    return ReshardOptions(pool, exp_dir, subset, out_dir, shard_size, max_missing, workers, dry_run)


def work(options: ReshardOptions, log: CommandLog) -> None:
    """Copy the subset's samples, or say what that would read."""
    from benchmark.cli.dry_run import resharding_lines
    from benchmark.pool.reshard import reshard

    pool, max_missing, out_dir = options.pool.open(), options.max_missing, options.out_dir
    exp_dir: Path | None = None
    with ExitStack() as held:
        if options.exp_dir is not None:
            exp_dir = held.enter_context(mirrored(options.exp_dir))
            keep_tracebacks_in(exp_dir / LOGS_NAME)
            subset_path, record = open_experiment(exp_dir, pool)
            refuse_changed(subset_path, record.result["sha256"])
            max_missing = max(max_missing, record.result.get("unknown_uids", 0))  # as permitted when it was chosen
        else:
            assert options.subset is not None
            subset_path = local_copy(options.subset)
        if options.dry_run:
            if not says_indexing(pool):
                for line in resharding_lines(pool, subset_path):
                    say(line)
            return
        if exp_dir is not None:
            log.write(exp_dir)
        if out_dir is not None:
            out_dir = held.enter_context(mirrored(out_dir))
        else:
            assert exp_dir is not None
            out_dir = exp_dir / SHARDS_NAME
        reshard(
            pool,
            subset_path,
            out_dir,
            shard_size=options.shard_size,
            max_missing=max_missing,
            workers=options.workers,
        )


VERB = Verb(ReshardConfig, read, work, with_experiments_own)
