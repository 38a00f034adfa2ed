"""The cells of a score table: which rows are shown, and how each number is spelt."""

from __future__ import annotations

from collections.abc import Sequence

from benchmark.runtime.text_tables import score, signed
from leaderboard.score_rows import ODD_MARK, Evaluation, ScoreEstimate, ScoreRow, TaskScoreRow
from leaderboard.statistics import RunDifference


def seed_change_text(found: RunDifference) -> str:
    return f"{signed(found.value)} [{signed(found.low)}, {signed(found.high)}]"


def shown_rows(evaluation: Evaluation) -> list[ScoreRow]:
    """Return the groups of which some task has a score, and the averages of which all have."""
    return [row for row in evaluation.rows if row.num_scored >= (1 if row.kind == "group" else len(row.tasks))]


def shown_tasks(evaluation: Evaluation, *, with_tasks: bool) -> list[TaskScoreRow]:
    """Return the tasks that get a line; without `with_tasks` those with a score, where groups would show little."""
    has_gaps = any(row.score is None for row in evaluation.tasks)
    return [row for row in evaluation.tasks if with_tasks or (has_gaps and row.score is not None)]


def group_cells(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    header = ["group", "tasks", *titles(evaluation), *_seed_titles(evaluation)]
    cells = []
    rows = shown_rows(evaluation)
    for row, told in zip(rows, _score_column([row.score for row in rows]), strict=True):
        whole = len(row.tasks)
        number = str(whole) if row.num_scored == whole else f"{row.num_scored} of {whole}"
        line = [row.name.replace("_", " ") + (ODD_MARK if row.is_odd else ""), number, told]
        line += [spell_known(row.reference), change_text(row.change)] if evaluation.reference else []
        line += [_seed_cell(row)] if evaluation.has_seed_changes else []
        cells.append(line)
    return header, cells


def task_cells(evaluation: Evaluation, rows: Sequence[TaskScoreRow]) -> tuple[list[str], list[list[str]]]:
    found, *change = titles(evaluation)
    header = ["task", found, "chance", "from\nchance", *change, *_seed_titles(evaluation)]
    cells = []
    for row, told in zip(rows, _score_column([row.score for row in rows]), strict=True):
        share = "-" if row.from_chance is None else f"{round(100 * row.from_chance)} %"
        line = [row.label, told, spell_known(row.chance), share]
        line += [spell_known(row.reference), change_text(row.change)] if evaluation.reference else []
        line += [_seed_cell(row)] if evaluation.has_seed_changes else []
        cells.append(line)
    return header, cells


def _seed_titles(evaluation: Evaluation) -> list[str]:
    return ["change [95 %]\nover seeds"] if evaluation.has_seed_changes else []


def _seed_cell(row: ScoreRow | TaskScoreRow) -> str:
    return "-" if row.over_seeds is None else seed_change_text(row.over_seeds)


def titles(evaluation: Evaluation) -> list[str]:
    """Return the titles of a score and, with a reference, of what it is compared with."""
    found = [row.score for row in evaluation.tasks if row.score is not None]
    titles = ["score ± error" if any(each.error is not None for each in found) else "score"]
    if evaluation.reference is None:
        return titles
    changes = [row.change for row in evaluation.tasks if row.change is not None]
    title = "change [95 %]" if any(each.error is not None for each in changes) else "change"
    return [*titles, "reference", f"{title}\nby test samples" if evaluation.has_seed_changes else title]


def score_text(found: ScoreEstimate | None) -> str:
    if found is None:
        return "-"
    return score(found.value) + (nearer_end(found) or ("" if found.error is None else f" ± {score(found.error)}"))


def nearer_end(found: ScoreEstimate) -> str:
    """Spell the end of the interval of a score without spread at 0 or 1; empty for any other."""
    if found.error != 0 or found.ends is None or found.value not in found.ends:
        return ""
    low, high = found.ends
    return f" (to {score(high)})" if found.value == low else f" (from {score(low)})"


def _score_column(found: Sequence[ScoreEstimate | None]) -> list[str]:
    """Spell a column of scores with their numbers under each other."""
    parts = [score_text(each).partition(" ") for each in found]
    room = max((len(rest) for _, _, rest in parts), default=0)
    return [f"{value} {rest:<{room}}" if room else value for value, _, rest in parts]


def change_text(change: ScoreEstimate | None) -> str:
    if change is None:
        return "-"
    interval = change.interval
    return signed(change.value) + (f" [{signed(interval[0])}, {signed(interval[1])}]" if interval else "")


def spell_known(value: float | None) -> str:
    return "-" if value is None else score(value)
