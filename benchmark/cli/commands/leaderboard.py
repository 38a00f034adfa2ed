"""winnow leaderboard: print a board, and compare scores."""

from __future__ import annotations

from pathlib import Path

from benchmark.cli.boards import board_agreement, board_table, board_tasks
from benchmark.cli.parsing import Parser
from benchmark.runtime.errors import NotFoundError


def main(arguments: list[str]) -> int:
    """Run `winnow leaderboard ACTION ...`; return the exit code."""
    parser = Parser(prog="winnow leaderboard", description="Print a board, or scores beside others.")
    actions = parser.add_subparsers(dest="action", required=True, parser_class=Parser)
    table = actions.add_parser("table", help="print a board")
    table.add_argument("--tasks", action="store_true", help="one line per task: range over strategies, noise")
    agreement = actions.add_parser("agreement", help="compare a board's order with DataComp's published scores")
    table.add_argument(
        "--entry",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="an experiment's entry.json, or its folder, to show among the board's (may be repeated: the first is "
        "compared with all others)",
    )
    compare = actions.add_parser("compare", help="print an evaluation's scores, beside a reference's")
    compare.add_argument("scores", metavar="A", help="a folder with results, eval_results.jsonl, a released checkpoint")
    compare.add_argument("reference", metavar="B", nargs="?", help="the same, to compare A with")
    compare.add_argument("--tasks", action="store_true", help="one line per task")
    compare.add_argument("--suite", help="default: the suite that has most of A's tasks")
    compare.add_argument(
        "--plugins", nargs="+", default=[], metavar="FILE", help="files with your own tasks and suites"
    )
    for action in (table, agreement):
        action.add_argument("--board", default="nano", help="a shipped board's name or a folder (default: nano)")
    compare.add_argument(
        "--board",
        help="the board whose entries give the seed noise: a shipped board's name or a folder (default: by A's scale)",
    )
    for action in (table, agreement, compare):
        action.add_argument("--format", default="text", choices=["text", "markdown", "csv"])
    options = parser.parse_args(arguments)
    if options.action == "compare":
        from benchmark.registry import load_tasks
        from leaderboard.score_table import compare_scores

        load_tasks(options.plugins)
        table_of_scores = compare_scores(
            options.scores,
            options.reference,
            suite_name=options.suite,
            style=options.format,
            with_tasks=options.tasks,
            board_name=options.board,
        )
        print(table_of_scores, end="")
    elif options.action == "agreement":
        print(board_agreement(options.board, options.format))
    else:
        show = board_tasks if options.tasks else board_table
        print(show(options.board, [_entry_file(path) for path in options.entry], options.format))
    return 0


def _entry_file(path: Path) -> Path:
    """Return the file of an entry that is named by it or by its experiment's folder."""
    file = path / "entry.json" if path.is_dir() else path
    if not file.is_file():
        raise NotFoundError(
            f"--entry {path}: there is no {file}; `winnow evaluate` writes entry.json into an experiment's folder",
            code="not-found",
        )
    return file
