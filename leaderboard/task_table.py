"""What each task of a board can tell apart: its range over strategies, and its noise over training seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from benchmark.runtime.text_tables import listed, markdown_table, page, score, shortened, text_table
from leaderboard.board_rows import BoardRow
from leaderboard.peers import seed_scores_of
from leaderboard.statistics import mean, pooled_sd
from leaderboard.table import Table

LABEL_WIDTH = 18


@dataclass(frozen=True)
class GivenScore:
    """The mean over seeds of a run that was given, and its 95 % interval over training seeds."""

    mark: str  # ">" the highlighted run, "+" one beside it, "+2" the second of several
    name: str
    mean: float
    interval: tuple[float, float] | None  # within 0 and 1; None where seed noise is not known


@dataclass(frozen=True)
class BoardTaskRow:
    """One task's line; strategies that know the planted labels count nowhere in it."""

    name: str
    half: str  # "reporting" or "dev"
    groups: tuple[str, ...]
    chance: float | None  # None where no entry states it
    lowest: float  # mean over seeds of the strategy below
    lowest_name: str
    highest: float
    highest_name: str
    sd: float | None  # of one run over seeds, pooled over strategies; None where none has two seeds
    given: tuple[GivenScore, ...]  # the highlighted run's, then those of runs beside it

    @property
    def range_in_sds(self) -> float | None:
        """Return the range over strategies in units of the seed noise; None where that is not known or zero."""
        return (self.highest - self.lowest) / self.sd if self.sd else None


@dataclass(frozen=True)
class TaskTable:
    """A board's tasks, in the suite's order, and what is to be said under them."""

    title: str
    rows: tuple[BoardTaskRow, ...]
    has_halves: bool
    sentences: tuple[str, ...]


def make_task_table(table: Table) -> TaskTable:
    """Work out a line per task from the entries of a table, oracles aside."""
    board = table.board
    shown = sorted((row for row in table.rows if not row.entry.reference), key=lambda row: row.entry.name)
    given = sorted((row for row in table.rows if row.is_given), key=lambda row: row.number or 0)
    rows = []
    for task in board.tasks if shown else ():
        runs = [row.entry.averages([task.name]) for row in shown]
        means = [mean(run) for run in runs]
        lowest, highest = means.index(min(means)), means.index(max(means))
        chances = [row.entry.chance[task.name] for row in table.rows if row.entry.chance]
        rows.append(
            BoardTaskRow(
                name=task.name,
                half="reporting" if task.name in board.headline else "dev",
                groups=task.groups,
                chance=chances[0] if chances else None,
                lowest=means[lowest],
                lowest_name=shown[lowest].entry.name,
                highest=means[highest],
                highest_name=shown[highest].entry.name,
                sd=pooled_sd(runs),
                given=_given_scores(table, given, task.name),
            )
        )
    sentences = ["The board has no entry yet."]
    if rows:
        references = sum(row.entry.reference for row in table.rows)
        aside = ", without the oracles, which know the planted labels" if references else ""
        sentences = [
            f"lowest and highest are means over training seeds, over {len(shown)} strategies{aside}; seed sd is one "
            "run's, pooled over them. A task whose range is only a few seed sds separates few strategies."
        ]
        if told := [f"{each.mark} is {each.name}" for each in rows[0].given]:
            sentences.insert(
                0,
                f"{listed(told)}: the mean over training seeds"
                + (", [ ] where it would lie with other seeds (95 %)." if _is_noise_known(rows) else "."),
            )
    return TaskTable(
        f"{board.rules.title}: its tasks", tuple(rows), bool(board.development), (*sentences, board.rules.note)
    )


def _given_scores(table: Table, given: Sequence[BoardRow], task: str) -> tuple[GivenScore, ...]:
    model = table.peers.model([task], [seed_scores_of(row.entry) for row in given])
    scores = []
    for place, row in enumerate(given):
        mark = f"{row.mark}{place}" if place and len(given) > 2 else row.mark
        run = row.entry.averages([task])
        interval = None
        if model is not None and model.rest > 0:
            half = model.error_of_mean(len(run)).half_width
            interval = max(0.0, mean(run) - half), min(1.0, mean(run) + half)
        scores.append(GivenScore(mark, row.full_name, mean(run), interval))
    return tuple(scores)


def render_tasks(tasks: TaskTable, style: str) -> str:
    """Spell the tasks' lines as text or, with style="markdown", as GitHub's Markdown."""
    columns: dict[str, list[str]] = {"task": [row.name for row in tasks.rows]}
    if tasks.has_halves:
        columns["half"] = [row.half for row in tasks.rows]
    columns["group"] = [", ".join(row.groups) for row in tasks.rows]
    left = set(range(len(columns)))
    if any(row.chance is not None for row in tasks.rows):
        columns["chance"] = [_known(row.chance) for row in tasks.rows]
    for title in ("lowest", "highest"):
        left.add(len(columns))
        columns[title] = [
            f"{score(getattr(row, title))} {shortened(getattr(row, f'{title}_name'), LABEL_WIDTH)}"
            for row in tasks.rows
        ]
    for place, run in enumerate(tasks.rows[0].given if tasks.rows else ()):
        title = f"{run.mark} [95 %]" if _is_noise_known(tasks.rows) else run.mark
        columns[title] = [_given_text(row.given[place]) for row in tasks.rows]
    columns["seed sd"] = [_known(row.sd) for row in tasks.rows]
    columns["range/sd"] = ["-" if row.range_in_sds is None else f"{row.range_in_sds:.1f}" for row in tasks.rows]
    cells = list(zip(*columns.values(), strict=True))
    spell = markdown_table if style == "markdown" else text_table
    titles = [title.replace(">", "&gt;") if style == "markdown" else title for title in columns]
    return page(tasks.title, [spell(titles, cells, left)] if cells else [], tasks.sentences, style)


def tasks_to_frame(tasks: TaskTable) -> pd.DataFrame:
    """Return the lines with all digits."""
    return pd.DataFrame(
        [
            {
                "task": row.name,
                "half": row.half,
                "groups": "+".join(row.groups),
                "chance": row.chance,
                "lowest": row.lowest,
                "lowest_name": row.lowest_name,
                "highest": row.highest,
                "highest_name": row.highest_name,
                "seed_sd": row.sd,
                "range_in_sds": row.range_in_sds,
                **{name: value for place, run in enumerate(row.given) for name, value in _as_columns(place, run)},
            }
            for row in tasks.rows
        ]
    )


def _is_noise_known(rows: Sequence[BoardTaskRow]) -> bool:
    return any(run.interval is not None for row in rows for run in row.given)


def _given_text(run: GivenScore) -> str:
    interval = "" if run.interval is None else f" [{score(run.interval[0])}, {score(run.interval[1])}]"
    return score(run.mean) + interval


def _as_columns(place: int, run: GivenScore) -> list[tuple[str, float | None]]:
    name = f"beside_{place}" if place else "highlighted"
    low, high = run.interval or (None, None)
    return [(name, run.mean), (f"{name}_low", low), (f"{name}_high", high)]


def _known(value: float | None) -> str:
    return "-" if value is None else score(value)
