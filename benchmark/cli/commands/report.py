"""winnow report: show what an experiment kept and dropped, as a page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.cli.experiments import given_exp_dir, with_experiments_own
from benchmark.cli.options import MISSING, SIGNALS_DIR, Config, ExperimentConfig, option
from benchmark.cli.pools import PoolOptions
from benchmark.cli.verb import LOGS_NAME, CommandLog, Verb
from benchmark.experiment.folder import open_experiment
from benchmark.report.make import report_stage
from benchmark.runtime.failures import keep_tracebacks_in
from benchmark.runtime.mirror import mirrored


@dataclass
class ReportConfig(ExperimentConfig):
    """winnow report: show what an experiment kept and dropped, as a page."""

    exp_dir: Any = option(MISSING, "the experiment's folder; it has a subset")
    plugins: Any = option((), "your own files with the experiment's filters: [my_filter.py,...]")
    signals_dir: Any = option(None, SIGNALS_DIR)


@dataclass(frozen=True)
class ReportOptions:
    """The checked options of `winnow report`."""

    pool: PoolOptions
    exp_dir: Path


def read(config: Config) -> ReportOptions:
    """Check the configuration; raises UserError."""
    return ReportOptions(PoolOptions.read(config), given_exp_dir(config))


def work(options: ReportOptions, log: CommandLog) -> None:
    """Make the report, or reuse the one that is up to date."""
    pool = options.pool.open()
    with mirrored(options.exp_dir) as exp_dir:
        keep_tracebacks_in(exp_dir / LOGS_NAME)
        open_experiment(exp_dir, pool)
        log.write(exp_dir)
        report_stage(exp_dir, pool, options.pool.scale)


VERB = Verb(ReportConfig, read, work, with_experiments_own)
