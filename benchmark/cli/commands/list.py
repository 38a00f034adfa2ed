"""winnow list: filters, tasks, scales and released checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchmark.cli.help import strategy_lines
from benchmark.cli.parsing import Parser
from benchmark.registry import BROKEN, SUITES, load_strategies, load_tasks, suite_tasks
from benchmark.scales import SCALES

if TYPE_CHECKING:
    from benchmark.evaluation.kinds.base import Task


def main(arguments: list[str]) -> int:
    """Run `winnow list WHAT`; return the exit code."""
    parser = Parser(
        prog="winnow list", description="List filters and signals, tasks and suites, scales, or released checkpoints."
    )
    parser.add_argument("what", choices=["filters", "tasks", "scales", "checkpoints"])
    parser.add_argument("--plugins", nargs="+", default=[], metavar="FILE", help="your own files")
    options = parser.parse_args(arguments)
    if options.what == "checkpoints":
        from leaderboard.checkpoints import checkpoint_lines, read_checkpoints

        print("\n".join(checkpoint_lines(read_checkpoints())))
    elif options.what == "filters":
        _list_filters(options.plugins)
    elif options.what == "tasks":
        _list_tasks(options.plugins)
    else:
        for scale in SCALES.values():
            print(
                f"{scale.name:<8} recipe {scale.recipe}: {scale.model}, {scale.samples_seen:,} samples seen in "
                f"{scale.steps:,} steps of {scale.batch_size}, pool of {scale.pool_size:,}, suite {scale.suite}"
            )
    return 0


def _list_filters(plugins: Sequence[str]) -> None:
    """Print filters and selectors, then signals, then what is broken."""
    from benchmark.selection.rules import known_signals, known_strategies

    load_strategies(plugins)
    print("\n".join(strategy_lines(known_strategies())))
    print("\nSignals. Filters use them by signals=[...], and pass on their own options of the same names:")
    print("\n".join(strategy_lines(known_signals())))
    for broken in BROKEN.values():
        print(f"\ncannot be used: {broken.kind} {broken.name!r} in {broken.path}: {broken.reason}")


def _list_tasks(plugins: Sequence[str]) -> None:
    """Print every suite with its tasks, then the tasks that are in none."""
    tasks = load_tasks(plugins)
    shown: set[str] = set()  # a task may be in several suites
    for suite in SUITES.values():
        number, verb = len(suite.headline), "makes" if len(suite.headline) == 1 else "make"
        half = f", of which {number} {verb} the average" if suite.development else ""
        total = f"{len(suite.tasks)} task{'' if len(suite.tasks) == 1 else 's'}"
        more = f", and {len(suite.unscored)} without a score" if suite.unscored else ""
        print(f"suite {suite.name} (version {suite.version}): {total}{half}{more}")
        print("\n".join(_task_lines(suite_tasks(suite))))
        shown |= {*suite.tasks, *suite.unscored}
    if others := [task for name, task in tasks.items() if name not in shown]:
        print("in no suite:\n" + "\n".join(_task_lines(others)))
    print("\ntasks= takes names of tasks, of groups (last column) of the scale's suite, and of suites.")


def _task_lines(tasks: Sequence[Task]) -> list[str]:
    """Return a line per task: name, title, main metric, groups."""
    rows = [(task.name, task.title, task.main_metric or "-", ", ".join(task.groups)) for task in tasks]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return ["  " + "  ".join(f"{text:<{width}}" for text, width in zip(row, [*widths, 0], strict=True)) for row in rows]
