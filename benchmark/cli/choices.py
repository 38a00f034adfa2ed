"""How a command's options choose a subset: by filters, inside an earlier subset perhaps, or by a file."""

from __future__ import annotations

from pathlib import Path

from benchmark.cli.options import Config
from benchmark.cli.pools import PoolOptions
from benchmark.cli.values import as_count, as_path
from benchmark.cli.verb import CommandLog
from benchmark.experiment.choice import Choice
from benchmark.experiment.filter_lines import describe_filters
from benchmark.experiment.filter_stage import filter_stage
from benchmark.pool.pool import Pool
from benchmark.pool.subset import SUBSET_RECORD_NAME, load_subset
from benchmark.runtime.console import say
from benchmark.runtime.context import Context
from benchmark.runtime.errors import NotFoundError, UserError
from benchmark.runtime.mirror import local_copy
from benchmark.runtime.paths import is_remote
from benchmark.selection.rules import make_rule, resolve_rules


def read_choice(config: Config, device: str) -> Choice:
    """Check the options that choose a subset; raises UserError."""
    subset = as_path(config["subset"], "subset")
    within = as_path(config["within"], "within")
    # The record beside a subset says whether it is a reference's.
    within, subset = (path and local_copy(path, beside=[SUBSET_RECORD_NAME]) for path in (within, subset))
    for path in (within, subset):
        if path is not None and not path.is_file():
            raise NotFoundError(f"there is no subset file {path}", code="subset-not-found")
    if subset is not None:
        if within is not None:
            raise UserError("subset= uses a file as it is; within= goes with filters", code="option-conflict")
        return Choice(subset_path=subset, max_missing=as_count(config["max_missing"], "max_missing"))
    rules = tuple(make_rule(name, options) for name, options in config["filters"].items())
    if not rules:
        raise UserError("no filter is chosen; no_filter keeps the whole pool", code="option-missing")
    return Choice(rules, within, device=device)


def choose(exp_dir: Path, pool: Pool, choice: Choice, context: Context, log: CommandLog) -> None:
    """Run the filter stage, and print what each rule did."""
    record = filter_stage(exp_dir, pool, choice, context)
    log.write(exp_dir)
    for line in describe_filters(exp_dir, record):
        say(line)


def says_indexing(pool: Pool | None) -> bool:
    """Say what making the index would read, if it does not exist; tell whether that ends a dry run."""
    from benchmark.cli.dry_run import indexing_lines

    lines = [] if pool is None else indexing_lines(pool)
    for line in lines:
        say(line)
    if lines and pool is not None and is_remote(pool.dir):
        say("make it first (`winnow pool index`); the rest is known then")
        return True
    return False


def say_reads(options: PoolOptions, choice: Choice, workers: int, *, with_training: bool) -> None:
    """Say what filtering, and perhaps training on what it chooses, would read, and what a pilot of it takes."""
    from benchmark.cli.dry_run import filter_reads, most_training_lines
    from benchmark.selection.pilot import pilot_lines

    pool = options.open()
    rules = resolve_rules(pool, choice.rules, device=choice.device)
    needs_index = with_training or any(rule.sees_images for rule in rules)
    if needs_index and says_indexing(pool):
        return
    for reading in filter_reads(pool, rules):
        say(f"filter: {reading}")
    if choice.rules:
        within = load_subset(choice.within_path) if choice.within_path else None
        for line in pilot_lines(pool, rules, within=within, workers=workers, device=choice.device):
            say(line)
    if with_training:
        for line in most_training_lines(pool, options.scale):
            say(line)
