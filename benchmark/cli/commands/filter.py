"""winnow filter: choose a subset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.cli.choices import choose, read_choice, say_reads
from benchmark.cli.options import ChoiceConfig, Config, option
from benchmark.cli.pools import PoolOptions
from benchmark.cli.values import as_device, as_executor, as_flag, as_path, as_workers
from benchmark.cli.verb import LOGS_NAME, CommandLog, Verb
from benchmark.experiment.choice import Choice, default_exp_dir
from benchmark.runtime.context import Context
from benchmark.runtime.failures import keep_tracebacks_in
from benchmark.runtime.mirror import mirrored


@dataclass
class FilterConfig(ChoiceConfig):
    """winnow filter: choose a subset."""

    device: Any = option("cpu", "cpu or cuda: the device for signals and filters that use a model")


@dataclass(frozen=True)
class FilterOptions:
    """The checked options of `winnow filter`."""

    pool: PoolOptions
    choice: Choice
    exp_dir: Path | None  # None: named after the choice
    context: Context
    dry_run: bool


def read(config: Config) -> FilterOptions:
    """Check the configuration; raises UserError."""
    pool = PoolOptions.read(config)
    choice = read_choice(config, config["device"] or "cpu")
    context = Context(
        workers=as_workers(config["workers"]),
        executor=as_executor(config["executor"]),
        plugins=tuple(config["plugins"]),
    )
    dry_run = as_flag(config["dry_run"], "dry_run")
    if not dry_run:  # which says what the filters need on a machine that may have no GPU
        as_device(config["device"], pool.scale)
    return FilterOptions(pool, choice, as_path(config["exp_dir"], "exp_dir"), context, dry_run)


def work(options: FilterOptions, log: CommandLog) -> None:
    """Choose the subset."""
    choice = options.choice
    if options.dry_run:
        say_reads(options.pool, choice, options.context.workers or 0, with_training=False)
        return
    pool = options.pool.open_or_generate()
    with mirrored(options.exp_dir or default_exp_dir(options.pool.scale, pool, choice)) as exp_dir:
        keep_tracebacks_in(exp_dir / LOGS_NAME)
        choose(exp_dir, pool, choice, options.context, log)


VERB = Verb(FilterConfig, read, work)
