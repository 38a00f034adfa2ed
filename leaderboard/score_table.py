"""The table that closes an evaluation: scores by group, what they differ by from a reference, and what says how surely.

`make_evaluation` works everything out; the rest only spells it. All errors and intervals are those of the test samples,
see `benchmark.evaluation.uncertainty`.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from benchmark import registry
from benchmark.evaluation.results import normalised, read_predictions
from benchmark.evaluation.tasks import Suite, Task
from benchmark.evaluation.uncertainty import difference, difference_of, error_of_mean
from benchmark.runtime.errors import UserError
from benchmark.runtime.text_tables import (
    averaged_over,
    counted,
    listed,
    markdown_table,
    page,
    score,
    shortened,
    signed,
    text_table,
)
from leaderboard.entries import Board, board_named, has_board, read_entries, read_other_pools
from leaderboard.peers import Peers, SeedScores, entries_on, seed_scores_of
from leaderboard.scores import ScoreSet, best_suite, read_scores, suite_named
from leaderboard.statistics import LEAST_DF
from leaderboard.statistics import Difference as SeedDifference

WIDTH = 100
NAME_WIDTH = 28  # Pictograms, unseen designer
SHOWN = 3  # largest parts of a change, slowest tasks
MANY, FIRST = 10, 6  # of more missing tasks than MANY only the first are named
ODD_MARK = "*"
NORMALISED = "chance-normalised"
PAIRED, UNPAIRED, NEITHER = "samples", "errors", ""


@dataclass(frozen=True)
class Estimate:
    """A score or a change of one, with its standard error from the test samples; None where that is not known."""

    value: float
    error: float | None = None
    ends: tuple[float, float] | None = None  # a score's own 95 % interval, kept where the error is 0

    @property
    def interval(self) -> tuple[float, float] | None:
        """Return the 95 % interval."""
        if self.error is None:
            return None
        found = difference_of(self.value, self.error)
        return found.low, found.high


@dataclass(frozen=True)
class Row:
    """A group's line or an average's; a number is None where one of its tasks has none."""

    kind: str  # "group" or "average"
    name: str
    tasks: tuple[str, ...]
    num_scored: int  # of them with a score
    is_odd: bool  # one of them has not the number of samples or classes that it is known to have
    score: Estimate | None
    reference: float | None
    change: Estimate | None
    over_seeds: SeedDifference | None = None  # the change with its interval over training seeds


@dataclass(frozen=True)
class TaskRow:
    """A task's line."""

    task: Task
    score: Estimate | None
    chance: float | None
    reference: float | None
    change: Estimate | None
    compared: str  # PAIRED by sample, UNPAIRED by the two standard errors, NEITHER
    is_odd: bool  # not the number of samples or classes that the task is known to have
    over_seeds: SeedDifference | None = None  # the change with its interval over training seeds

    @property
    def from_chance(self) -> float | None:
        """Return how far the score is from guessing (0) to perfect (1)."""
        return None if self.score is None or self.chance is None else normalised(self.score.value, self.chance)

    @property
    def label(self) -> str:
        """Return the title, marked where the number of samples or classes is odd."""
        return shortened(self.task.title, NAME_WIDTH - len(ODD_MARK)) + (ODD_MARK if self.is_odd else "")


@dataclass(frozen=True)
class SeedComparison:
    """Two strategies with training seeds, and whose seeds tell how noisy a change is."""

    ours: SeedScores
    reference: SeedScores
    peers: Peers
    whose: str  # peers they are; empty without
    why_alone: str  # there are none, and the two runs' own seeds are all that tells noise; empty with peers

    def change(self, tasks: Sequence[str]) -> SeedDifference | None:
        """Return the change of the mean over tasks; None where a seed lacks one, or nothing tells seed noise."""
        runs = (self.ours, self.reference)
        if not tasks or any(name not in scores for run in runs for scores in run.seeds.values() for name in tasks):
            return None
        return self.peers.difference(*runs, tasks)


@dataclass(frozen=True)
class Evaluation:
    """A model's scores on a suite, beside a reference's where there is one."""

    ours: ScoreSet
    reference: ScoreSet | None
    suite: Suite
    rows: tuple[Row, ...]  # groups, then averages
    tasks: tuple[TaskRow, ...]  # in the suite's order
    carriers: tuple[TaskRow, ...]  # the tasks with the largest parts of the average's change, largest first
    sentences: tuple[str, ...]
    seeds: SeedComparison | None = None  # None where a side has no training seeds

    @property
    def title(self) -> str:
        """Return the heading."""
        against = f" against {self.reference.name}" if self.reference else ""
        return f"{self.ours.name}{against}: suite {self.suite.name}, version {self.suite.version}"

    @property
    def average(self) -> Row:
        """Return the headline average's line."""
        return next(row for row in self.rows if row.kind == "average")

    @property
    def has_seed_changes(self) -> bool:
        """Tell whether changes have intervals over training seeds."""
        return any(row.over_seeds is not None for row in self.rows) or any(row.over_seeds for row in self.tasks)


def compare_scores(
    text: str,
    reference_text: str | None = None,
    *,
    suite_name: str | None = None,
    style: str = "text",
    with_tasks: bool = False,
    board_name: str | None = None,
) -> str:
    """Render the scores that a user names, beside a reference's; see `read_scores` for what may be named.

    Seed noise is known from the board of that name or folder; without one, from that of the scale they were trained at.
    """
    ours = read_scores(text)
    reference = None if reference_text is None else read_scores(reference_text)
    if reference is not None and reference.name == ours.name:
        ours, reference = replace(ours, name=text), replace(reference, name=str(reference_text))
    suite = best_suite(ours) if suite_name is None else suite_named(suite_name)
    _refuse_nothing_shared(ours, suite, reference)
    board = None if board_name is None else board_named(board_name)
    return render_evaluation(ours, suite, reference, style, with_tasks=with_tasks, with_costs=False, board=board)


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
    chance, bounds = _known_chance([ours] if reference is None else [ours, reference])
    seeds = None if reference is None else _seed_comparison(ours, reference, suite, board)

    def over_seeds(names: Sequence[str]) -> SeedDifference | None:
        return None if seeds is None else seeds.change(names)

    tasks = tuple(
        replace(_task_row(registry.TASKS[name], ours, reference, chance), over_seeds=over_seeds([name]))
        for name in suite.tasks
    )
    by_name = {row.task.name: row for row in tasks}
    groups: dict[str, list[str]] = {}
    for row in tasks:
        for group in row.task.groups:
            groups.setdefault(group, []).append(row.task.name)
    rows = [_mean_row("group", group, [by_name[name] for name in names]) for group, names in groups.items()]
    headline = [by_name[name] for name in suite.headline]
    rows.append(_mean_row("average", "average", headline))
    if suite.development:
        rows.append(_mean_row("average", "dev", [by_name[name] for name in suite.development]))
    rows.append(_normalised_row(headline))
    for scale, names in suite.informative.items():
        rows.append(_mean_row("average", f"informative at {scale}", [by_name[name] for name in names]))
    rows = [row if row.name == NORMALISED else replace(row, over_seeds=over_seeds(row.tasks)) for row in rows]
    change = next(row.change for row in rows if row.name == "average")
    carriers = () if change is None else _carriers(headline, change)
    found = Evaluation(ours, reference, suite, tuple(rows), tasks, carriers, (), seeds)
    sentences = _sentences(found, bounds, with_tasks=with_tasks)
    if with_costs and (slowest := _slowest(ours)) is not None:
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
    if style == "csv":
        return to_frame(evaluation, with_tasks=with_tasks).to_csv(index=False)
    spell = markdown_table if style == "markdown" else text_table
    blocks = [spell(*_group_cells(evaluation), {0})] if _shown_rows(evaluation) else []
    if shown := _shown_tasks(evaluation, with_tasks=with_tasks):
        blocks.append(spell(*_task_cells(evaluation, shown), {0}))
    if evaluation.carriers:
        change = evaluation.average.change
        assert change is not None
        header = [f"largest parts of\nthe change {signed(change.value)}", *_titles(evaluation), "of the average"]
        cells = [
            [
                row.label,
                _score_text(row.score),
                _known(row.reference),
                _change_text(row.change),
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
    found: Estimate | None, reference: float | None, change: Estimate | None, over_seeds: SeedDifference | None
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


# --- Numbers -------------------------------------------------------------------------------------------------------


def _known_chance(sides: Sequence[ScoreSet]) -> tuple[dict[str, float], frozenset[str]]:
    """Return what guessing gets by task, computed from labels where one side has it so, and which are upper bounds.

    A chance of 1 is left out: with one class, say, there is nothing between guessing and perfect.
    """
    chance: dict[str, float] = {}
    bounds: set[str] = set()
    for side in sides:
        for name, value in side.chance.items():
            if value < 1 and (name not in chance or (name in bounds and name not in side.chance_bounds)):
                chance[name] = value
                bounds = bounds | {name} if name in side.chance_bounds else bounds - {name}
    return chance, frozenset(bounds)


def _task_row(task: Task, ours: ScoreSet, reference: ScoreSet | None, chance: Mapping[str, float]) -> TaskRow:
    name = task.name
    found = None
    if name in ours.scores:
        error = ours.errors.get(name)
        found = Estimate(ours.scores[name], error, ours.intervals.get(name) if error == 0 else None)
    theirs = reference.scores.get(name) if reference else None
    change, compared = None, NEITHER
    if found is not None and theirs is not None and reference is not None:
        change, compared = _change(task, ours, reference)
    return TaskRow(
        task, found, chance.get(name), theirs, change, compared, name in ours.odd_sizes or name in ours.odd_classes
    )


def _change(task: Task, ours: ScoreSet, reference: ScoreSet) -> tuple[Estimate, str]:
    """Return the change of a task's score, and by what it was compared."""
    name = task.name
    value = ours.scores[name] - reference.scores[name]
    if name in ours.predictions and name in reference.predictions:
        left, right = (
            [read_predictions(folder, task) for folder in side.predictions[name]] for side in (ours, reference)
        )
        try:
            return Estimate(value, difference(task, left, right).standard_error), PAIRED
        except ValueError:  # not the same samples
            pass
    if name in ours.errors and name in reference.errors:
        return Estimate(value, math.hypot(ours.errors[name], reference.errors[name])), UNPAIRED
    return Estimate(value), NEITHER


def _mean_row(kind: str, name: str, members: Sequence[TaskRow]) -> Row:
    return Row(
        kind=kind,
        name=name,
        tasks=tuple(row.task.name for row in members),
        num_scored=sum(row.score is not None for row in members),
        is_odd=any(row.is_odd for row in members),
        score=_mean([row.score for row in members]),
        reference=_plain_mean([row.reference for row in members]),
        change=_mean([row.change for row in members]),
    )


def _normalised_row(members: Sequence[TaskRow]) -> Row:
    """Return the mean over tasks of how far each is from guessing (0) to perfect (1)."""
    chances = [row.chance for row in members]

    def scaled(found: Estimate | None, chance: float | None, *, shift: bool) -> Estimate | None:
        if found is None or chance is None:
            return None
        value = normalised(found.value, chance) if shift else found.value / (1 - chance)
        return Estimate(value, None if found.error is None else found.error / (1 - chance))

    pairs = list(zip(members, chances, strict=True))
    return Row(
        kind="average",
        name=NORMALISED,
        tasks=tuple(row.task.name for row in members),
        num_scored=sum(row.score is not None for row in members),
        is_odd=any(row.is_odd for row in members),
        score=_mean([scaled(row.score, chance, shift=True) for row, chance in pairs]),
        reference=_plain_mean(
            [None if row.reference is None or c is None else normalised(row.reference, c) for row, c in pairs]
        ),
        change=_mean([scaled(row.change, chance, shift=False) for row, chance in pairs]),
    )


def _mean(members: Sequence[Estimate | None]) -> Estimate | None:
    """Return the mean over tasks, None where one is missing, without an error where one has none."""
    known = [each for each in members if each is not None]
    if not known or len(known) < len(members):
        return None
    if len(known) == 1:
        return known[0]
    errors = [each.error for each in known if each.error is not None]
    error = error_of_mean(errors) if len(errors) == len(known) else None
    return Estimate(math.fsum(each.value for each in known) / len(known), error)


def _plain_mean(members: Sequence[float | None]) -> float | None:
    mean = _mean([None if value is None else Estimate(value) for value in members])
    return None if mean is None else mean.value


def _carriers(headline: Sequence[TaskRow], change: Estimate) -> tuple[TaskRow, ...]:
    """Return the tasks with the largest changes in the direction of the average's, largest first."""
    sign = math.copysign(1, change.value)
    moved = [row for row in headline if row.change is not None and sign * row.change.value > 0]
    moved.sort(key=lambda row: (-abs(row.change.value) if row.change else 0.0, row.task.name))
    return tuple(moved[:SHOWN])


# --- Sentences -----------------------------------------------------------------------------------------------------


def _sentences(evaluation: Evaluation, bounds: frozenset[str], *, with_tasks: bool) -> list[str]:
    """Return what is to be said under the table, the most important first."""
    ours, reference, suite, tasks = evaluation.ours, evaluation.reference, evaluation.suite, evaluation.tasks
    change = evaluation.average.change
    sentences = _about_missing(ours, reference, suite)
    if reference is not None:
        sentences += _about_change(ours, reference, suite, tasks, change, evaluation.average.over_seeds)
        if (over_seeds := _about_seeds(evaluation)) is not None:
            sentences.append(over_seeds)
    if ours.scores:
        sentences.append(_about_errors(evaluation))
    if about_averages := _about_averages(evaluation, bounds, with_tasks=with_tasks):
        sentences.append(about_averages)
    if unscored := [name for name in ours.unscored if name in registry.TASKS and name not in suite.tasks]:
        titles = ", ".join(registry.TASKS[name].title for name in unscored)
        places = ", ".join(dict.fromkeys(ours.metrics_at[name] for name in unscored if name in ours.metrics_at))
        sentences.append(f"Without a score: {titles}{f' (their metrics: {places})' if places else ''}.")
    for side in (ours, reference) if reference else (ours,):
        sentences += side.notes
        mark = f"{ODD_MARK} " if side is ours else f"{side.name}: "
        if odd := [name for name in suite.tasks if name in side.odd_sizes]:
            told = ", ".join(
                f"{registry.TASKS[name].title} {side.odd_sizes[name].found:,} of {side.odd_sizes[name].expected:,}"
                for name in odd
            )
            sentences.append(f"{mark}Not the number of samples that the task is known to have: {told}.")
        if odd := [name for name in suite.tasks if name in side.odd_classes]:
            told = ", ".join(f"{registry.TASKS[name].title} has {side.odd_classes[name]:,}" for name in odd)
            sentences.append(f"{mark}Not the number of classes that the task is known to have: {told}.")
        if side.unknown:
            sentences.append(f"{side.name} has results that no task here is called by: {', '.join(side.unknown)}.")
    return sentences


def _about_missing(ours: ScoreSet, reference: ScoreSet | None, suite: Suite) -> list[str]:
    sentences = []
    for side in (ours, reference) if reference else (ours,):
        missing = [name for name in suite.tasks if name not in side.scores]
        if len(missing) == len(suite.tasks):
            sentences.append(f"{side.name} has no score of any task of suite {suite.name}.")
        elif missing:
            verb = "has" if len(missing) == 1 else "have"
            sentences.append(
                f"{len(missing)} of {len(suite.tasks)} tasks {verb} no score of {side.name}, and averages over them "
                f"are left out: {first_of(missing)}."
            )
    return sentences


def first_of(names: Sequence[str]) -> str:
    """Spell a list of missing tasks, of a long one the first and how many more there are."""
    if len(names) <= MANY:
        return ", ".join(names)
    return f"{', '.join(names[:FIRST])} and {len(names) - FIRST} more"


def _about_change(
    ours: ScoreSet,
    reference: ScoreSet,
    suite: Suite,
    tasks: Sequence[TaskRow],
    change: Estimate | None,
    over_seeds: SeedDifference | None,
) -> list[str]:
    sentences = []
    if change is not None:
        interval = change.interval
        if interval is None:
            told = "whether that is more than the choice of test samples is not known"
        elif interval[0] > 0 or interval[1] < 0:
            told = f"more than the choice of test samples explains{_beside_seeds(over_seeds)}"
        else:
            told = "no more than the choice of test samples may explain"
        sentence = f"The average is {signed(change.value)} from {reference.name}: {told}."
        sign = math.copysign(1, change.value)
        against = [r for r in tasks if r.task.name in suite.headline and r.change and sign * r.change.value < 0]
        if against:
            most = max(against, key=lambda row: abs(row.change.value) if row.change else 0.0)
            assert most.change is not None
            sentence += f" Most against it: {most.task.title} {_change_text(most.change)}."
        sentences.append(sentence)
    by = {how: [row.task.title for row in tasks if row.change and row.compared == how] for how in _HOW}
    parts = [f"{counted(len(titles), 'task')} {_HOW[how]}" for how, titles in by.items() if titles]
    if parts:
        sentence = f"Compared: {'; '.join(parts)}."
        if by[PAIRED] and (others := [*by[UNPAIRED], *by[NEITHER]]):
            sentence += f" Not sample by sample: {', '.join(others)}."
        sentences.append(sentence)
    if other_data := [r.task.title for r in tasks if r.change and _has_other_data(r.task.name, ours, reference)]:
        sentences.append(
            f"Not evaluated on the same files as {reference.name}: {', '.join(other_data)}. Other images, class names "
            "or templates change a score too."
        )
    return sentences


def _beside_seeds(over_seeds: SeedDifference | None) -> str:
    if over_seeds is None:
        return "; another training seed may move it as much or more"
    if over_seeds.is_significant:
        return ", and more than training seeds do"
    return ", but no more than another training seed may"


def _has_other_data(name: str, ours: ScoreSet, reference: ScoreSet) -> bool:
    return name in ours.data and name in reference.data and ours.data[name] != reference.data[name]


_HOW = {
    PAIRED: "sample by sample",
    UNPAIRED: "by both standard errors, as if of different samples, since not both have predictions of the same ones",
    NEITHER: "without an interval, as a standard error is missing",
}


def _about_seeds(evaluation: Evaluation) -> str | None:
    """Say what training seeds allow to be said of the average, and by whose noise; None without seeds."""
    seeds = evaluation.seeds
    if seeds is None or evaluation.average.change is None:
        return None
    ours, theirs = seeds.ours.seeds, seeds.reference.seeds
    told = f"Over training seeds ({counted(len(ours), 'seed')} against {len(theirs)})"
    found = evaluation.average.over_seeds
    if found is None:
        return (
            f"{told} no interval of the change is known: {seeds.why_alone}, and these seeds alone tell noise by fewer "
            f"than {LEAST_DF} degrees of freedom (one run of three seeds, or two of two, are the least). Train more "
            "seeds."
        )
    dev = next((row.over_seeds for row in evaluation.rows if row.name == "dev"), None)
    change = _seed_change_text(found) + (f", of dev {_seed_change_text(dev)}" if dev is not None else "")
    alike = "" if set(ours) == set(theirs) else ", as if both were on the same seeds"
    if seeds.why_alone:
        by = f"the noise of these two runs' own seeds alone ({found.df:.0f} degrees of freedom), as {seeds.why_alone}"
    else:
        by = f"the noise of {seeds.whose} and of these two runs, as in `winnow leaderboard table`"
    return f"{told} the change of the average is {change} (95 %{alike}), by {by}."


def _seed_comparison(ours: ScoreSet, reference: ScoreSet, suite: Suite, board: Board | None) -> SeedComparison | None:
    """Return what compares two strategies over training seeds; None where one has none."""
    sides = (ours, reference)
    if not all(side.seeds for side in sides):
        return None
    runs = [
        SeedScores(side.training.subset if side.training else "", {s: each.scores for s, each in side.seeds.items()})
        for side in sides
    ]
    board, why_not = _board_of(ours, reference, suite, board)
    if board is None or ours.training is None:
        return SeedComparison(runs[0], runs[1], Peers(), "", why_not)
    name = board.entries_dir.parent.name
    on = (board, ours.training.recipe_hash, ours.training.pool)
    entries = entries_on(read_entries(board), read_other_pools(board), *on)
    if not entries:
        return SeedComparison(runs[0], runs[1], Peers(), "", f"no entry of board {name} has their recipe and pool")
    number = "1 entry" if len(entries) == 1 else f"{len(entries)} entries"
    whose = f"the {number} of board {name} on their recipe and pool"
    return SeedComparison(runs[0], runs[1], Peers(tuple(map(seed_scores_of, entries))), whose, "")


def _board_of(ours: ScoreSet, reference: ScoreSet, suite: Suite, board: Board | None) -> tuple[Board | None, str]:
    """Return the board whose entries may tell the noise of two experiments, else why there is none."""
    training, other = ours.training, reference.training
    if training is None or other is None:
        side = ours if training is None else reference
        return None, f"no record says by what recipe and on what pool all seeds of {side.name} were trained"
    if (training.recipe_hash, training.pool) != (other.recipe_hash, other.pool):
        return None, "they were not trained by one recipe on one pool"
    if board is None and not has_board(training.scale):
        return None, f"there is no board of scale {training.scale}"
    board = board or board_named(training.scale)
    if not set(suite.tasks) <= set(board.task_names):
        return None, f"board {board.entries_dir.parent.name} is not scored by suite {suite.name}"
    if odd := [name for side in (ours, reference) for name in suite.tasks if name in side.odd_sizes]:
        return None, f"{odd[0]} was not evaluated on all its samples"
    return board, ""


def _seed_change_text(found: SeedDifference) -> str:
    return f"{signed(found.value)} [{signed(found.low)}, {signed(found.high)}]"


def _about_errors(evaluation: Evaluation) -> str:
    ours, reference, tasks = evaluation.ours, evaluation.reference, evaluation.tasks
    if not any(row.score is not None and row.score.error is not None for row in tasks):
        return f"No standard errors: {ours.name} has neither predictions nor records that state them."
    where = " in the column of test samples" if evaluation.has_seed_changes else ""
    what = "± is the standard error" + (f", [ ]{where} the 95 % interval" if reference else "")
    if len(ours.seeds) < 2:
        whose, but = "one training seed", "it says nothing about another training seed"
    else:
        whose, but = f"the mean over these {len(ours.seeds)} training seeds", "it says nothing about other seeds"
    sentence = f"{what}, of {whose} over the choice of test samples alone; {but}."
    if any(row.score is not None and _nearer_end(row.score) for row in tasks):
        sentence += (
            " Where all samples of a task came out alike it would be 0, which it counts as in averages; in its place "
            "stands how far the 95 % interval goes, as (to ...) or (from ...)."
        )
    if lacking := [row.task.title for row in tasks if row.score is not None and row.score.error is None]:
        sentence += f" Not known of {listed(lacking)}, nor of averages over {'it' if len(lacking) == 1 else 'them'}."
    return sentence


def _about_averages(evaluation: Evaluation, bounds: frozenset[str], *, with_tasks: bool) -> str:
    """Say what the averages and the column "from chance" are, as far as they are shown; empty where none is."""
    suite, tasks = evaluation.suite, evaluation.tasks
    shown = {row.name for row in _shown_rows(evaluation) if row.kind == "average"}
    has_column = bool(_shown_tasks(evaluation, with_tasks=with_tasks))
    parts = []
    if "average" in shown:
        parts.append(f"average is the mean over {averaged_over(len(suite.headline), len(suite.development))}")
        parts.append(
            f"chance-normalised the mean over the {'reporting half' if suite.development else 'same'} of "
            "(score - chance) / (1 - chance)"
            + (", which is a task's from chance: 0 % is guessing, 100 % is perfect" if has_column else "")
            + ("" if has_column else ": 0 is guessing, 1 is perfect")
        )
    if any(f"informative at {scale}" in shown for scale in suite.informative):
        verb = "" if parts else "is "
        parts.append(
            f"informative at a scale {verb}the mean over the tasks, fixed beforehand, that tell its runs apart"
        )
    if has_column and "average" not in shown:
        parts.append("from chance is (score - chance) / (1 - chance): 0 % is guessing, 100 % is perfect")
    if not parts:
        return ""
    sentence = "; ".join(parts)
    if unknown := [row.task.title for row in tasks if row.score is not None and row.chance is None]:
        sentence += f". Chance is not known, or 1, of {listed(unknown)}"
    if bounded := [row.task.title for row in tasks if row.score is not None and row.task.name in bounds]:
        sentence += f". Without predictions an upper bound stands for the chance of {listed(bounded)}"
    return sentence + "."


def _slowest(ours: ScoreSet) -> str | None:
    """Say which tasks took longest; None where no times are known."""
    if not ours.costs:
        return None
    costs = sorted(ours.costs.items(), key=lambda item: (-item[1].seconds, item[0]))
    told = []
    for name, cost in costs[:SHOWN]:
        speed = f", {cost.images / cost.seconds:,.0f} images/s" if cost.seconds > 0 else ""
        told.append(
            f"{registry.TASKS[name].title if name in registry.TASKS else name} {_seconds(cost.seconds)} s{speed}"
        )
    total = math.fsum(cost.seconds for cost in ours.costs.values())
    return f"Slowest: {'; '.join(told)}. {counted(len(costs), 'task')} took {_seconds(total)} s."


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f}" if seconds < 100 else f"{seconds:,.0f}"


# --- Cells ---------------------------------------------------------------------------------------------------------


def _shown_rows(evaluation: Evaluation) -> list[Row]:
    """Return the groups of which some task has a score, and the averages of which all have."""
    return [row for row in evaluation.rows if row.num_scored >= (1 if row.kind == "group" else len(row.tasks))]


def _shown_tasks(evaluation: Evaluation, *, with_tasks: bool) -> list[TaskRow]:
    """Return the tasks that get a line; without `with_tasks` those with a score, where groups would show little."""
    has_gaps = any(row.score is None for row in evaluation.tasks)
    return [row for row in evaluation.tasks if with_tasks or (has_gaps and row.score is not None)]


def _group_cells(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    header = ["group", "tasks", *_titles(evaluation), *_seed_titles(evaluation)]
    cells = []
    rows = _shown_rows(evaluation)
    for row, told in zip(rows, _score_column([row.score for row in rows]), strict=True):
        whole = len(row.tasks)
        number = str(whole) if row.num_scored == whole else f"{row.num_scored} of {whole}"
        line = [row.name.replace("_", " ") + (ODD_MARK if row.is_odd else ""), number, told]
        line += [_known(row.reference), _change_text(row.change)] if evaluation.reference else []
        line += [_seed_cell(row)] if evaluation.has_seed_changes else []
        cells.append(line)
    return header, cells


def _task_cells(evaluation: Evaluation, rows: Sequence[TaskRow]) -> tuple[list[str], list[list[str]]]:
    found, *change = _titles(evaluation)
    header = ["task", found, "chance", "from\nchance", *change, *_seed_titles(evaluation)]
    cells = []
    for row, told in zip(rows, _score_column([row.score for row in rows]), strict=True):
        share = "-" if row.from_chance is None else f"{round(100 * row.from_chance)} %"
        line = [row.label, told, _known(row.chance), share]
        line += [_known(row.reference), _change_text(row.change)] if evaluation.reference else []
        line += [_seed_cell(row)] if evaluation.has_seed_changes else []
        cells.append(line)
    return header, cells


def _seed_titles(evaluation: Evaluation) -> list[str]:
    return ["change [95 %]\nover seeds"] if evaluation.has_seed_changes else []


def _seed_cell(row: Row | TaskRow) -> str:
    return "-" if row.over_seeds is None else _seed_change_text(row.over_seeds)


def _titles(evaluation: Evaluation) -> list[str]:
    """Return the titles of a score and, with a reference, of what it is compared with."""
    found = [row.score for row in evaluation.tasks if row.score is not None]
    titles = ["score ± error" if any(each.error is not None for each in found) else "score"]
    if evaluation.reference is None:
        return titles
    changes = [row.change for row in evaluation.tasks if row.change is not None]
    title = "change [95 %]" if any(each.error is not None for each in changes) else "change"
    return [*titles, "reference", f"{title}\nby test samples" if evaluation.has_seed_changes else title]


def _score_text(found: Estimate | None) -> str:
    if found is None:
        return "-"
    return score(found.value) + (_nearer_end(found) or ("" if found.error is None else f" ± {score(found.error)}"))


def _nearer_end(found: Estimate) -> str:
    """Spell the end of the interval of a score without spread at 0 or 1; empty for any other."""
    if found.error != 0 or found.ends is None or found.value not in found.ends:
        return ""
    low, high = found.ends
    return f" (to {score(high)})" if found.value == low else f" (from {score(low)})"


def _score_column(found: Sequence[Estimate | None]) -> list[str]:
    """Spell a column of scores with their numbers under each other."""
    parts = [_score_text(each).partition(" ") for each in found]
    room = max((len(rest) for _, _, rest in parts), default=0)
    return [f"{value} {rest:<{room}}" if room else value for value, _, rest in parts]


def _change_text(change: Estimate | None) -> str:
    if change is None:
        return "-"
    interval = change.interval
    return signed(change.value) + (f" [{signed(interval[0])}, {signed(interval[1])}]" if interval else "")


def _known(value: float | None) -> str:
    return "-" if value is None else score(value)
