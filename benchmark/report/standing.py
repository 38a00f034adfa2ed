"""Where an experiment stands among its board's entries: the table, and every task on its own."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.experiment.folder import ENTRY_NAME
from benchmark.runtime.errors import UserError
from benchmark.runtime.files import Json, digest
from benchmark.runtime.html_pages import render
from benchmark.runtime.records import Record
from benchmark.scales import Scale

if TYPE_CHECKING:
    from markupsafe import Markup

    from leaderboard.board import Board
    from leaderboard.entries import Entry
    from leaderboard.table import Table

TEMPLATES_DIR = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class TaskScore:
    """One run's score on one task: the mean over seeds and half its confidence interval."""

    name: str
    mean: float
    half_width: float | None  # None where no run has two seeds, or seeds that differ
    num_seeds: int
    is_own: bool
    is_reference: bool

    @property
    def interval(self) -> tuple[float, float]:
        """Return the confidence interval, within the scores that there are; without one, the mean twice."""
        half = self.half_width or 0.0
        return max(0.0, self.mean - half), min(1.0, self.mean + half)


@dataclass(frozen=True)
class TaskStanding:
    """How the run and the board's comparable entries do on one task."""

    task: str
    half: str  # "reporting" or "dev"; empty where the suite has no halves
    scores: list[TaskScore]  # by the table's average, best first
    num_better: int | None  # entries that are significantly better than the run; None where noise is not known
    num_worse: int | None

    @property
    def own(self) -> TaskScore:
        """Return the run's own score."""
        return next(score for score in self.scores if score.is_own)


@dataclass(frozen=True)
class Standing:
    """The board's table with the run in it, or what can be said without one."""

    html: Markup
    note: str  # what the board's numbers are good for
    summary: str  # one sentence; empty where nothing is scored
    tasks: list[TaskStanding]

    @property
    def digest(self) -> str:
        """Return a hash of all that a page shows of it."""
        shown: Json = [self.html, self.note, self.summary, [asdict(task) for task in self.tasks]]
        return digest(shown)


def find_standing(exp_dir: Path, record: Record, scale: Scale) -> Standing:
    """Compare the experiment's entry with its board's; entries that do not compare are left out, as in the table.

    Raises ValueError where the entry is about another subset than the experiment's.
    """
    from leaderboard.board import BOARDS_DIR, has_board, read_board, read_entries, read_other_pools
    from leaderboard.entries import read_entry
    from leaderboard.table import make_table, render_html

    entry_path = exp_dir / ENTRY_NAME
    entry: Entry | None = read_entry(entry_path) if entry_path.exists() else None
    if entry is not None and entry.subset.sha256 != record.result["sha256"]:
        raise UserError(
            f"{entry_path} is about another subset than {exp_dir} has; run `winnow evaluate exp_dir={exp_dir}` again",
            code="record-differs",
        )
    name = scale.name if entry is None else entry.scale
    board: Board | None = read_board(BOARDS_DIR / name) if has_board(name) else None
    if board is None:
        return Standing(
            render(TEMPLATES_DIR, "no_table.html.j2", sentences=["There is no board for this scale."]), "", "", []
        )
    if entry is None:
        note = board.rules.note
        return Standing(_sentences("No seed has been scored on the whole suite yet.", note), note, "", [])
    table = make_table(read_entries(board), board, entry, read_other_pools(board))
    return Standing(render_html(table), board.rules.note, _summary(table), task_standings(table))


def task_standings(table: Table) -> list[TaskStanding]:
    """Compare the highlighted run with the table's other entries task by task.

    Seed noise is that of all entries on that task (`leaderboard.statistics`): the interval is where the mean would lie
    with other training seeds. Differences are tested pair by pair, without what a seed does to all runs alike, as
    `winnow leaderboard compare --tasks` does.
    """
    from leaderboard.peers import seed_scores_of
    from leaderboard.statistics import mean

    ours = next(seed_scores_of(row.entry) for row in table.rows if row.is_highlighted)
    board = table.board
    standings = []
    for task in board.task_names:
        runs = [{seed: scores[task] for seed, scores in row.entry.seeds.items()} for row in table.rows]
        model = table.peers.model([task], [ours])
        scores = [
            TaskScore(
                row.entry.name,
                mean(run),
                model.error_of_mean(len(run)).half_width if model is not None and model.rest > 0 else None,
                len(run),
                row.is_highlighted,
                row.entry.reference,
            )
            for row, run in zip(table.rows, runs, strict=True)
        ]
        differences = table.peers.differences(ours, table.peers.runs, [task])
        clear = [difference.value for difference in differences if difference and difference.is_significant]
        is_known = model is not None and model.rest > 0  # no noise at all is noise that was not seen
        standings.append(
            TaskStanding(
                task,
                ("reporting" if task in board.headline else "dev") if board.development else "",
                scores,
                sum(value < 0 for value in clear) if is_known else None,
                sum(value > 0 for value in clear) if is_known else None,
            )
        )
    return standings


def _summary(table: Table) -> str:
    from benchmark.runtime.text_tables import averaged_over, counted
    from leaderboard.statistics import mean

    row = next(row for row in table.rows if row.is_highlighted)
    seeds = "1 seed" if len(row.run) == 1 else f"{len(row.run)} seeds"
    spread = "" if row.sd is None else f" ± {row.sd:.3f}"
    rank = "" if row.rank is None else f", rank {row.rank} of {sum(each.rank is not None for each in table.rows)}"
    told = f"{row.average:.3f}{spread} ({seeds}){rank}."
    average = f"Average over {averaged_over(len(table.board.headline), 0)} of the suite"
    if row.development is None:
        return f"{average} {told}"
    average = f"Average over the suite's reporting half ({counted(len(table.board.headline), 'task')})"
    return f"{average} {told} Over its development half ({len(table.board.development)}) {mean(row.development):.3f}."


def _sentences(*sentences: str) -> Markup:
    return render(TEMPLATES_DIR, "no_table.html.j2", sentences=sentences)
