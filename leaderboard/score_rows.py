"""A model's scores on a suite as rows: tasks, groups and averages, and their changes from a reference's.

All errors and intervals are those of the test samples, see `benchmark.evaluation.uncertainty`; over training seeds
changes have those of `leaderboard.peers`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmark.evaluation.estimators import difference_of
from benchmark.evaluation.results import normalised, read_predictions
from benchmark.evaluation.tasks import Suite, Task
from benchmark.evaluation.uncertainty import difference, error_of_mean
from benchmark.runtime.text_tables import shortened
from leaderboard.board import Board, board_named, has_board, read_entries, read_other_pools
from leaderboard.peers import Peers, SeedScores, entries_on, seed_scores_of
from leaderboard.score_sets import ScoreSet
from leaderboard.statistics import RunDifference

NAME_WIDTH = 28  # Pictograms, unseen designer
SHOWN = 3  # largest parts of a change, slowest tasks
ODD_MARK = "*"
NORMALISED = "chance-normalised"
PAIRED, UNPAIRED, NEITHER = "samples", "errors", ""


@dataclass(frozen=True)
class ScoreEstimate:
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
class ScoreRow:
    """A group's line or an average's; a number is None where one of its tasks has none."""

    kind: str  # "group" or "average"
    name: str
    tasks: tuple[str, ...]
    num_scored: int  # of them with a score
    is_odd: bool  # one of them has not the number of samples or classes that it is known to have
    score: ScoreEstimate | None
    reference: float | None
    change: ScoreEstimate | None
    over_seeds: RunDifference | None = None  # the change with its interval over training seeds


@dataclass(frozen=True)
class TaskScoreRow:
    """A task's line."""

    task: Task
    score: ScoreEstimate | None
    chance: float | None
    reference: float | None
    change: ScoreEstimate | None
    compared: str  # PAIRED by sample, UNPAIRED by the two standard errors, NEITHER
    is_odd: bool  # not the number of samples or classes that the task is known to have
    over_seeds: RunDifference | None = None  # the change with its interval over training seeds

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

    def change(self, tasks: Sequence[str]) -> RunDifference | None:
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
    rows: tuple[ScoreRow, ...]  # groups, then averages
    tasks: tuple[TaskScoreRow, ...]  # in the suite's order
    carriers: tuple[TaskScoreRow, ...]  # the tasks with the largest parts of the average's change, largest first
    sentences: tuple[str, ...]
    seeds: SeedComparison | None = None  # None where a side has no training seeds

    @property
    def title(self) -> str:
        """Return the heading."""
        against = f" against {self.reference.name}" if self.reference else ""
        return f"{self.ours.name}{against}: suite {self.suite.name}, version {self.suite.version}"

    @property
    def average(self) -> ScoreRow:
        """Return the headline average's line."""
        return next(row for row in self.rows if row.kind == "average")

    @property
    def has_seed_changes(self) -> bool:
        """Tell whether changes have intervals over training seeds."""
        return any(row.over_seeds is not None for row in self.rows) or any(row.over_seeds for row in self.tasks)


def known_chance(sides: Sequence[ScoreSet]) -> tuple[dict[str, float], frozenset[str]]:
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


def task_row(task: Task, ours: ScoreSet, reference: ScoreSet | None, chance: Mapping[str, float]) -> TaskScoreRow:
    name = task.name
    found = None
    if name in ours.scores:
        error = ours.errors.get(name)
        found = ScoreEstimate(ours.scores[name], error, ours.intervals.get(name) if error == 0 else None)
    theirs = reference.scores.get(name) if reference else None
    change, compared = None, NEITHER
    if found is not None and theirs is not None and reference is not None:
        change, compared = _change(task, ours, reference)
    return TaskScoreRow(
        task, found, chance.get(name), theirs, change, compared, name in ours.odd_sizes or name in ours.odd_classes
    )


def _change(task: Task, ours: ScoreSet, reference: ScoreSet) -> tuple[ScoreEstimate, str]:
    """Return the change of a task's score, and by what it was compared."""
    name = task.name
    value = ours.scores[name] - reference.scores[name]
    if name in ours.predictions and name in reference.predictions:
        left, right = (
            [read_predictions(folder, task) for folder in side.predictions[name]] for side in (ours, reference)
        )
        try:
            return ScoreEstimate(value, difference(task, left, right).standard_error), PAIRED
        except ValueError:  # not the same samples
            pass
    if name in ours.errors and name in reference.errors:
        return ScoreEstimate(value, math.hypot(ours.errors[name], reference.errors[name])), UNPAIRED
    return ScoreEstimate(value), NEITHER


def mean_row(kind: str, name: str, members: Sequence[TaskScoreRow]) -> ScoreRow:
    return ScoreRow(
        kind=kind,
        name=name,
        tasks=tuple(row.task.name for row in members),
        num_scored=sum(row.score is not None for row in members),
        is_odd=any(row.is_odd for row in members),
        score=_mean([row.score for row in members]),
        reference=_plain_mean([row.reference for row in members]),
        change=_mean([row.change for row in members]),
    )


def normalised_row(members: Sequence[TaskScoreRow]) -> ScoreRow:
    """Return the mean over tasks of how far each is from guessing (0) to perfect (1)."""
    chances = [row.chance for row in members]

    def scaled(found: ScoreEstimate | None, chance: float | None, *, shift: bool) -> ScoreEstimate | None:
        if found is None or chance is None:
            return None
        value = normalised(found.value, chance) if shift else found.value / (1 - chance)
        return ScoreEstimate(value, None if found.error is None else found.error / (1 - chance))

    pairs = list(zip(members, chances, strict=True))
    return ScoreRow(
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


def _mean(members: Sequence[ScoreEstimate | None]) -> ScoreEstimate | None:
    """Return the mean over tasks, None where one is missing, without an error where one has none."""
    known = [each for each in members if each is not None]
    if not known or len(known) < len(members):
        return None
    if len(known) == 1:
        return known[0]
    errors = [each.error for each in known if each.error is not None]
    error = error_of_mean(errors) if len(errors) == len(known) else None
    return ScoreEstimate(math.fsum(each.value for each in known) / len(known), error)


def _plain_mean(members: Sequence[float | None]) -> float | None:
    mean = _mean([None if value is None else ScoreEstimate(value) for value in members])
    return None if mean is None else mean.value


def largest_parts(headline: Sequence[TaskScoreRow], change: ScoreEstimate) -> tuple[TaskScoreRow, ...]:
    """Return the tasks with the largest changes in the direction of the average's, largest first."""
    sign = math.copysign(1, change.value)
    moved = [row for row in headline if row.change is not None and sign * row.change.value > 0]
    moved.sort(key=lambda row: (-abs(row.change.value) if row.change else 0.0, row.task.name))
    return tuple(moved[:SHOWN])


def seed_comparison(ours: ScoreSet, reference: ScoreSet, suite: Suite, board: Board | None) -> SeedComparison | None:
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
