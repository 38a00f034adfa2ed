"""What a command prints of scores: the run among a board's entries, tables by group, learning curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.cli.boards import board_table
from benchmark.cli.pools import is_embedded_pool
from benchmark.evaluation.kinds.base import Task
from benchmark.evaluation.results import EVAL_FOLDER
from benchmark.evaluation.tasks import Suite
from benchmark.experiment.entry import write_experiment_entry
from benchmark.experiment.folder import ENTRY_NAME, curve_dir
from benchmark.pool.pool import Pool
from benchmark.registry import SUITES
from benchmark.runtime.console import say
from benchmark.runtime.files import write_bytes
from benchmark.runtime.mirror import local_copy
from benchmark.runtime.paths import is_remote
from benchmark.runtime.stopping import OtherRankFailed
from benchmark.runtime.storage import has_file
from benchmark.scales import Scale
from benchmark.toolbox.hub_rows import rows_folder

if TYPE_CHECKING:
    from benchmark.evaluation.eval_sets import BadSetsError
    from benchmark.training.ranks import Ranks

CURVE_NAME = "curve"
OWN_CHOICE = "of your choice"  # a suite of tasks that no registered suite has together


def bad_sets_of(work: Callable[[], object]) -> BadSetsError | None:
    """Evaluate; return the error about sets that cannot be, which ends the command once the scores are shown."""
    from benchmark.evaluation.eval_sets import BadSetsError

    try:
        work()
    except BadSetsError as error:
        return error
    return None


def end_with(error: BadSetsError | None, ranks: Ranks) -> None:
    """Raise an error that all ranks have; one of them says it."""
    if error is not None:
        raise error if ranks.is_first else OtherRankFailed


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


def shown_suites(tasks: Sequence[Task], suite_name: str) -> list[Suite]:
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


def checked_reference(value: Any) -> str | None:
    """Return what to compare with; raises where there is nothing of that name, before work begins."""
    if value is None:
        return None
    from leaderboard.scores import read_scores

    read_scores(str(value))
    return str(value)


def score_lines(place: str, suite: Suite, reference: str | None) -> list[str]:
    """Return the table of an evaluation's scores, against a reference's where one is named."""
    from leaderboard.score_table import render_evaluation
    from leaderboard.scores import read_scores

    theirs = None if reference is None else read_scores(reference)
    table = render_evaluation(read_scores(place), suite, theirs, with_tasks=suite.name == OWN_CHOICE)
    return ["", *table.rstrip("\n").split("\n")]


def report_experiment(
    exp_dir: Path, scale: Scale, pool: Pool, *, tasks: Sequence[Task] = (), reference: str | None = None
) -> None:
    """Write entry.json and print the run among the board's entries, what may be claimed, and where the files are.

    Where there is no board, or a reference is named, it prints the scores by group, against the reference; and so those
    of `tasks` that are not in the scale's suite.
    """
    from leaderboard.board import has_board

    entry = write_experiment_entry(exp_dir, scale, pool)
    has_table = entry is not None and has_board(scale.name)
    if has_table:
        say("")
        if scale.is_embedded and not is_embedded_pool(pool.dir):
            say(
                f"This run used {pool.dir}, which is not a pool of the board below; scores of different pools do not "
                "compare."
            )
        say(board_table(scale.name, [exp_dir / ENTRY_NAME], "text"))
    if any(exp_dir.glob(f"seed-*/{EVAL_FOLDER}/*.json")):
        for suite in shown_suites(tasks, scale.suite) if tasks else [SUITES[scale.suite]]:
            if reference is not None or not has_table or suite.name != scale.suite:
                for line in score_lines(str(exp_dir), suite, reference):
                    say(line)
    if entry is None:
        say(f"no entry: no seed of {exp_dir} has results for the whole suite {scale.suite!r}, which its average needs")
        return
    if not scale.is_comparable:
        say(
            f"Not comparable: scale {scale.name!r} is a custom scale (it differs from {scale.base!r}; recipe hash "
            f"{scale.hash[:12]})."
        )
    say(f"files: {exp_dir} (scores: {ENTRY_NAME}; predictions: seed-*/eval/*.parquet; times: costs.jsonl)")


def local_eval_dir(eval_dir: Path, tasks: Sequence[Task]) -> Path:
    """Return the evaluation sets' folder; of a remote one, a local folder with copies of what the tasks need."""
    if not is_remote(eval_dir):
        return eval_dir
    wanted = []
    for task in tasks:
        names = [name for name in task.folder_names if has_file(eval_dir / name / "test" / "nshards.txt")]
        absent = rows_folder(task.hub_rows) if task.hub_rows else task.folder_name  # of which it is said that it lacks
        wanted.append(names[0] if names else absent)
    return local_copy(eval_dir, only=wanted)
