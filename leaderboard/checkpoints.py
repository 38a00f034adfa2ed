"""Released checkpoints trained on DataComp's pools: their scores on its tasks, and what these say about the tasks."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pydantic
from pydantic.dataclasses import dataclass

from benchmark.evaluation.tasks import Task
from benchmark.registry import SUITES, load_tasks
from benchmark.runtime.errors import UnknownNameError, UserError
from benchmark.runtime.names import nearest_name
from benchmark.runtime.text_tables import aligned, score
from leaderboard.board import BOARDS_DIR
from leaderboard.entries import Score, read_strictly

CHECKPOINTS_PATH = BOARDS_DIR / "published" / "checkpoints.json"
SUITE = "datacomp"
LINE = 100  # columns of a list
ABOVE = 3  # standard errors by which a task must leave guessing behind
RELIABLE = 0.5  # share of the variance between runs that must not be the sampling of images
# Where a declaration does not say it: on cues of 10 and 12 candidates, as DataComp's list of tasks states it.
GUESSED = {"misc/winogavil": 0.205}

Scale = Literal["small", "medium", "large", "xlarge"]
SCALES: tuple[Scale, ...] = ("small", "medium", "large", "xlarge")

_STRICT = pydantic.ConfigDict(strict=True, extra="forbid")


@dataclass(frozen=True, config=_STRICT)
class Checkpoint:
    """One released model: its names in open_clip, what it was trained on as far as these tell, and its scores."""

    model: str
    pretrained: str
    pool: Scale  # the subset is of this scale's pool
    strategy: Annotated[tuple[str, ...], pydantic.Field(min_length=1)]  # our names of the filters; intersected
    scores: dict[str, Score]  # task -> main metric
    scale: Scale | None = None  # None: another model, or more samples seen, than the pool's scale has
    repeats: str = ""  # the checkpoint whose scores stand here by mistake
    note: str = ""

    @property
    def name(self) -> str:
        """Return model and tag, ViT-B-32/datacomp_m_s128m_b4k: a tag alone may be that of several models."""
        return f"{self.model}/{self.pretrained}"


@dataclass(frozen=True, config=_STRICT)
class Checkpoints:
    """The released checkpoints, with the source of their scores and its known faults."""

    title: str
    source: str
    notes: tuple[str, ...]
    rows: Annotated[tuple[Checkpoint, ...], pydantic.Field(min_length=1)]

    @pydantic.model_validator(mode="after")
    def _rows_fit(self) -> Checkpoints:
        by_name = {row.name: row for row in self.rows}
        if len(by_name) != len(self.rows):
            raise UserError("a checkpoint stands here twice", code="board-invalid")
        for row in self.rows:
            if odd := sorted(set(row.scores) ^ set(self.rows[0].scores)):
                raise UserError(
                    f"{self.rows[0].name} and {row.name} differ in their tasks: {odd}", code="board-invalid"
                )
            if row.repeats and (row.repeats not in by_name or by_name[row.repeats].scores != row.scores):
                raise UserError(f"{row.name} does not repeat the scores of {row.repeats!r}", code="board-invalid")
        return self

    @property
    def names(self) -> list[str]:
        """Return the names of all checkpoints, in the file's order."""
        return [row.name for row in self.rows]

    def find(self, name: str) -> Checkpoint:
        """Return the checkpoint called `<model>/<tag>`, or `<tag>` where only one model has it.

        Raises KeyError: with the names to choose from where a tag is that of several, else with the shortest name that
        begins so, or the nearest one.
        """
        found = [row for row in self.rows if name in (row.name, row.pretrained)]
        if len(found) > 1:
            raise UnknownNameError(
                f"{name!r} is the tag of {len(found)} checkpoints: {', '.join(row.name for row in found)}",
                code="unknown-checkpoint",
            )
        if not found:
            known = [*self.names, *(row.pretrained for row in self.rows)]
            begun = min((each for each in known if name and each.startswith(name)), key=len, default=None)
            hint = nearest_name(name, known) if begun is None else f" Did you mean {begun!r}?"
            raise UnknownNameError(
                f"unknown checkpoint {name!r}.{hint} `winnow list checkpoints` names all.", code="unknown-checkpoint"
            )
        return found[0]

    def of_scale(self, scale: str) -> list[Checkpoint]:
        """Return the runs of a scale (its model, pool and samples seen), repeated ones left out."""
        return [row for row in self.rows if row.scale == scale and not row.repeats]


def read_checkpoints(path: Path = CHECKPOINTS_PATH) -> Checkpoints:
    """Read the released checkpoints' scores; raises ValueError that names the file and what is wrong in it."""
    return read_strictly(path, Checkpoints, "list of checkpoints")


def checkpoint_lines(checkpoints: Checkpoints) -> list[str]:
    """Return a line per checkpoint: name, scale, pool, strategy and average, under a line of titles."""
    load_tasks()
    headline = SUITES[SUITE].headline
    cells = [["checkpoint", "scale", "pool", "strategy", "average"]]
    for row in checkpoints.rows:
        average = math.fsum(row.scores[name] for name in headline) / len(headline)
        mark = "*" if row.note else ""
        cells.append([row.name, row.scale or "-", row.pool, "+".join(row.strategy), score(average) + mark])
    notes = [f"* {row.name}: {row.note}." for row in checkpoints.rows if row.note]
    about = "scale: the pool's, where model and samples seen are the scale's too. strategy: filters, + intersects them."
    lines = [line for sentence in (about, *notes) for line in textwrap.wrap(sentence, LINE, break_on_hyphens=False)]
    return [*aligned(cells, {0, 1, 2, 3, 4}), "", *lines]


def informative_tasks(checkpoints: Checkpoints, scale: Scale) -> tuple[str, ...]:
    """Return the scored tasks that tell runs of a scale apart, in the suite's order.

    A task does if all three hold at that scale:

    1. Its lowest run is above what guessing gets (`guessed_score`) by 3 standard errors of a guesser's score.
    2. Its median run is above every run of the smaller scales at which the task was left out by 1 or 2. What models
       without the skill score is measured there: one answer to every image of a data set with uneven classes is
       above 1 / classes (CLEVR Distance stays near .23 from small to xlarge).
    3. More than half of the variance between runs is more than drawing other images would give; with the mean over
       runs of p (1 - p) / images as the variance of that, this is a reliability above .5.

    That a task orders the runs as the others do is not required: it would leave out WinoGAViL, which at every scale
    but small prefers other strategies, and with it the reason to have several tasks.

    What the rule cannot do: there are 4 to 7 runs per scale, one seed each, of DataComp's own baselines only, so
    luck in training passes for a difference between strategies, and a task may tell other strategies apart that does
    not tell these. A standard error is that of an accuracy over all images: for F1, Jaccard, recall by class and
    worst groups it is a stand-in, too small for worst groups, whose guessing level is in turn an upper bound. That an
    average over these tasks ranks runs better across scales is not shown (6 runs are too few to see it).
    """
    tasks = load_tasks()
    by_scale = [checkpoints.of_scale(one) for one in SCALES[: SCALES.index(scale) + 1]]
    if min(map(len, by_scale)) < 2:
        counts = dict(zip(SCALES, map(len, by_scale), strict=False))
        raise UserError(
            f"which tasks are informative takes two runs of each scale up to {scale}; there are {counts}",
            code="board-invalid",
        )
    return tuple(
        name
        for name in SUITES[SUITE].tasks
        if _is_informative(tasks[name], [np.array([row.scores[name] for row in rows]) for rows in by_scale])
    )


def guessed_score(task: Task) -> float:
    """Return what guessing gets by the task's declaration alone, for worst groups and F1 an upper bound.

    An evaluation computes it from the labels instead (`metrics_of`); here there are none. Raises ValueError where the
    declaration does not say.
    """
    if task.name in GUESSED:
        return GUESSED[task.name]
    if task.declared_chance is not None:
        return task.declared_chance.value
    raise UserError(f"task {task.name!r} does not declare how many there are to guess among", code="board-invalid")


def _is_informative(task: Task, scores_by_scale: Sequence[np.ndarray]) -> bool:
    """Apply the rule above at the last of the scales, the smallest first; each array has its runs' scores."""
    assert task.size
    guessed = guessed_score(task)
    floor = guessed + ABOVE * np.sqrt(guessed * (1 - guessed) / task.size)
    without_skill = guessed
    for scores in scores_by_scale:
        has_skill = bool(scores.min() > floor and np.median(scores) > without_skill)
        if not has_skill:
            without_skill = max(without_skill, float(scores.max()))
    sampling = np.mean(scores * (1 - scores)) / task.size
    return has_skill and bool(sampling < (1 - RELIABLE) * scores.var(ddof=1))
