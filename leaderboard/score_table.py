"""The table that closes an evaluation: scores by group, what they differ by from a reference, and what says how surely.

`make_evaluation` works everything out (`score_rows.py`, and the sentences: `score_sentences.py`); the rest only spells
it (`score_cells.py`).
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from benchmark import registry
from benchmark.evaluation.tasks import Suite
from benchmark.runtime.errors import UserError
from benchmark.runtime.text_tables import (
    counted,
    markdown_table,
    page,
    signed,
    text_table,
)
from leaderboard.board import Board, board_named
from leaderboard.score_cells import (
    change_text,
    group_cells,
    score_text,
    shown_rows,
    shown_tasks,
    spell_known,
    task_cells,
    titles,
)
from leaderboard.score_rows import (
    NORMALISED,
    Evaluation,
    ScoreEstimate,
    known_chance,
    largest_parts,
    mean_row,
    normalised_row,
    seed_comparison,
    task_row,
)
from leaderboard.score_sentences import score_sentences, slowest_sentence
from leaderboard.score_sets import ScoreSet
from leaderboard.scores import best_suite, read_scores, suite_named
from leaderboard.statistics import RunDifference

WIDTH = 100


def compare_scores(
    text: str,
    reference_text: str | None = None,
    *,
    suite_name: str | None = None,
    style: str = "text",
    with_tasks: bool = False,
    board_name: str | None = None,
) -> str:
    """Render the scores that a user names, beside a reference's, as `evaluation_of` works them out."""
    evaluation = evaluation_of(
        text, reference_text, suite_name=suite_name, with_tasks=with_tasks, board_name=board_name
    )
    return spell_evaluation(evaluation, style, with_tasks=with_tasks)


def evaluation_of(
    text: str,
    reference_text: str | None = None,
    *,
    suite_name: str | None = None,
    with_tasks: bool = False,
    board_name: str | None = None,
) -> Evaluation:
    """Work out the scores that a user names, beside a reference's; see `read_scores` for what may be named.

    Seed noise is known from the board of that name or folder; without one, from that of the scale they were trained at.
    """
    ours = read_scores(text)
    reference = None if reference_text is None else read_scores(reference_text)
    if reference is not None and reference.name == ours.name:
        ours, reference = replace(ours, name=text), replace(reference, name=str(reference_text))
    suite = best_suite(ours) if suite_name is None else suite_named(suite_name)
    _refuse_nothing_shared(ours, suite, reference)
    board = None if board_name is None else board_named(board_name)
    return make_evaluation(ours, suite, reference, with_tasks=with_tasks, with_costs=False, board=board)


def _refuse_nothing_shared(ours: ScoreSet, suite: Suite, reference: ScoreSet | None) -> None:
    """Raise ValueError where a table would have nothing to show or to compare."""
    if reference is None:
        if not {*ours.scores, *ours.unscored} & {*suite.tasks, *suite.unscored}:
            raise UserError(
                f"{ours.name} has no result of any task of suite {suite.name}; name another with --suite",
                code="results-missing",
            )
        return
    mine, theirs = ([name for name in suite.tasks if name in side.scores] for side in (ours, reference))
    if not set(mine) & set(theirs):
        raise UserError(
            f"{ours.name} and {reference.name} have no task of suite {suite.name} in common to compare: "
            f"{len(mine)} of its {counted(len(suite.tasks), 'task')} {'has' if len(mine) == 1 else 'have'} a score "
            f"in the first, {len(theirs)} in the second; evaluate both on the same tasks",
            code="results-missing",
        )


def make_evaluation(
    ours: ScoreSet,
    suite: Suite,
    reference: ScoreSet | None = None,
    *,
    with_tasks: bool = False,
    with_costs: bool = True,
    board: Board | None = None,
) -> Evaluation:
    """Work out a model's groups and averages on a suite, and how they differ from a reference's.

    Where a task has no score, neither its groups nor the averages over it have one, and a sentence lists it. Changes
    are compared by sample where both sides have predictions of the same samples, and over training seeds where both
    have seeds: with the noise of the entries of `board` (default: that of their scale) on their recipe and pool, as the
    board's table does, else with that of their own seeds. The sentences are those for a table
    with or without a line per task, and with or without what the evaluation took. Raises ValueError where predictions
    are damaged.
    """
    registry.load_tasks()
    chance, bounds = known_chance([ours] if reference is None else [ours, reference])
    seeds = None if reference is None else seed_comparison(ours, reference, suite, board)

    def over_seeds(names: Sequence[str]) -> RunDifference | None:
        return None if seeds is None else seeds.change(names)

    tasks = tuple(
        replace(task_row(registry.TASKS[name], ours, reference, chance), over_seeds=over_seeds([name]))
        for name in suite.tasks
    )
    by_name = {row.task.name: row for row in tasks}
    groups: dict[str, list[str]] = {}
    for row in tasks:
        for group in row.task.groups:
            groups.setdefault(group, []).append(row.task.name)
    rows = [mean_row("group", group, [by_name[name] for name in names]) for group, names in groups.items()]
    headline = [by_name[name] for name in suite.headline]
    rows.append(mean_row("average", "average", headline))
    if suite.development:
        rows.append(mean_row("average", "dev", [by_name[name] for name in suite.development]))
    rows.append(normalised_row(headline))
    for scale, names in suite.informative.items():
        rows.append(mean_row("average", f"informative at {scale}", [by_name[name] for name in names]))
    rows = [row if row.name == NORMALISED else replace(row, over_seeds=over_seeds(row.tasks)) for row in rows]
    change = next(row.change for row in rows if row.name == "average")
    carriers = () if change is None else largest_parts(headline, change)
    found = Evaluation(ours, reference, suite, tuple(rows), tasks, carriers, (), seeds)
    sentences = score_sentences(found, bounds, with_tasks=with_tasks)
    if with_costs and (slowest := slowest_sentence(ours)) is not None:
        sentences.append(slowest)
    return replace(found, sentences=tuple(sentences))


def render_evaluation(
    ours: ScoreSet,
    suite: Suite,
    reference: ScoreSet | None = None,
    style: str = "text",
    *,
    with_tasks: bool = False,
    with_costs: bool = True,
    board: Board | None = None,
) -> str:
    """Spell a model's scores for a terminal, as GitHub's Markdown (`markdown`) or with all digits (`csv`).

    `with_tasks` adds a line per task, `with_costs` a sentence about the slowest tasks; `board` as in `make_evaluation`.
    """
    evaluation = make_evaluation(ours, suite, reference, with_tasks=with_tasks, with_costs=with_costs, board=board)
    return spell_evaluation(evaluation, style, with_tasks=with_tasks)


def spell_evaluation(evaluation: Evaluation, style: str = "text", *, with_tasks: bool = False) -> str:
    """Spell an evaluation that was worked out, in the styles of `render_evaluation`."""
    suite = evaluation.suite
    if style == "csv":
        return to_frame(evaluation, with_tasks=with_tasks).to_csv(index=False)
    spell = markdown_table if style == "markdown" else text_table
    blocks = [spell(*group_cells(evaluation), {0})] if shown_rows(evaluation) else []
    if shown := shown_tasks(evaluation, with_tasks=with_tasks):
        blocks.append(spell(*task_cells(evaluation, shown), {0}))
    if evaluation.carriers:
        change = evaluation.average.change
        assert change is not None
        header = [f"largest parts of\nthe change {signed(change.value)}", *titles(evaluation), "of the average"]
        cells = [
            [
                row.label,
                score_text(row.score),
                spell_known(row.reference),
                change_text(row.change),
                signed(row.change.value / len(suite.headline)),
            ]
            for row in evaluation.carriers
            if row.change is not None
        ]
        blocks.append(spell(header, cells, {0}))
    if style == "markdown":
        return page(evaluation.title, blocks, evaluation.sentences, style)
    told = [textwrap.fill(sentence, WIDTH, break_on_hyphens=False) for sentence in evaluation.sentences]
    title = evaluation.title
    if len(title) > WIDTH:
        title = title.replace(" against ", "\nagainst ")
    return page(title, [*blocks, told], (), style).rstrip("\n") + "\n"


def to_frame(evaluation: Evaluation, *, with_tasks: bool) -> pd.DataFrame:
    """Return the lines with all digits: groups, averages and, with `with_tasks`, tasks."""
    lines = [
        {
            "kind": row.kind,
            "name": row.name,
            "tasks": len(row.tasks),
            "scored": row.num_scored,
            "whole": not row.is_odd,
            **_numbers(row.score, row.reference, row.change, row.over_seeds),
        }
        for row in evaluation.rows
    ]
    for task in evaluation.tasks if with_tasks else ():
        name = task.task.name
        cost = evaluation.ours.costs.get(name)
        lines.append(
            {
                "kind": "task",
                "name": name,
                "tasks": 1,
                "scored": int(task.score is not None),
                "whole": not task.is_odd,
                **_numbers(task.score, task.reference, task.change, task.over_seeds),
                "chance": task.chance,
                "from_chance": task.from_chance,
                "compared_by": task.compared,
                "seconds": cost.seconds if cost else None,
                "images": cost.images if cost else None,
            }
        )
    return pd.DataFrame(lines)


def _numbers(
    found: ScoreEstimate | None, reference: float | None, change: ScoreEstimate | None, over_seeds: RunDifference | None
) -> dict[str, float | None]:
    low, high = (change.interval if change else None) or (None, None)
    return {
        "score": found.value if found else None,
        "standard_error": found.error if found else None,
        "reference": reference,
        "change": change.value if change else None,
        "change_low": low,
        "change_high": high,
        "change_over_seeds": over_seeds.value if over_seeds else None,
        "change_over_seeds_low": over_seeds.low if over_seeds else None,
        "change_over_seeds_high": over_seeds.high if over_seeds else None,
    }
