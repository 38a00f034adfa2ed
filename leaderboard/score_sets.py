"""Scores of tasks, with what is known of each: chance, errors, predictions, data and costs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmark import registry
from benchmark.evaluation.estimators import wilson
from benchmark.runtime.errors import UserError
from benchmark.runtime.files import Json
from leaderboard.checkpoints import SUITE as DATACOMP
from leaderboard.checkpoints import guessed_score

SEED_FOLDER = re.compile(r"seed-(\d+)")


@dataclass(frozen=True)
class TaskCost:
    """What the evaluation of one task took."""

    seconds: float
    images: int


@dataclass(frozen=True)
class SampleCounts:
    """A number of samples that is not the one the task is known to have."""

    found: int
    expected: int


@dataclass(frozen=True)
class Training:
    """What all seeds of an experiment were trained from."""

    scale: str
    recipe_hash: str
    pool: str  # fingerprint
    subset: str  # sha256


@dataclass(frozen=True)
class ScoreSet:
    """Scores by task of one model, or of one strategy as means over its training seeds."""

    name: str
    scores: dict[str, float]  # main metrics; a task that a seed has no score of is not there
    chance: dict[str, float] = field(default_factory=dict)  # where known
    errors: dict[str, float] = field(default_factory=dict)  # standard errors from the test samples, where known
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)  # 95 %, of the test samples, where known
    predictions: dict[str, tuple[Path, ...]] = field(default_factory=dict)  # the folders whose `eval/` holds them
    data: dict[str, str] = field(default_factory=dict)  # hashes of the evaluation sets, where known
    costs: dict[str, TaskCost] = field(default_factory=dict)  # of one seed, where known
    odd_sizes: dict[str, SampleCounts] = field(default_factory=dict)
    odd_classes: dict[str, int] = field(default_factory=dict)  # task -> the number of classes that it should have
    unscored: tuple[str, ...] = ()  # there, without a main metric
    metrics_at: dict[str, str] = field(default_factory=dict)  # unscored task -> where its metrics are
    unknown: tuple[str, ...] = ()  # names that no task has here
    seeds: dict[int, ScoreSet] = field(default_factory=dict)  # empty: one model
    training: Training | None = None  # of an experiment all of whose seeds are evaluated at their end
    notes: tuple[str, ...] = ()  # sentences that belong beside the scores
    chance_bounds: frozenset[str] = frozenset()  # tasks of whose chance an upper bound is known


def folder_title(folder: Path) -> str:
    """Return what a folder is called; a seed's folder with its experiment."""
    folder = folder.resolve()
    return f"{folder.parent.name}/{folder.name}" if SEED_FOLDER.fullmatch(folder.name) else folder.name


def checked_score(score: Json, where: str) -> float:
    """Return a score as a number; raises UserError where it is not one from 0 to 1."""
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        raise UserError(f"{where} has the score {score!r}; a score is a number from 0 to 1", code="results-invalid")
    return float(score)


def chances_of(
    names: Iterable[str], metrics: Mapping[str, Mapping[str, Json]]
) -> tuple[dict[str, float], frozenset[str]]:
    """Return what guessing gets by task, as stated with the metrics or else by the task's declaration.

    The second value has the tasks whose declaration gives only an upper bound. Where it gives
    nothing there is no chance.
    """
    chance: dict[str, float] = {}
    bounds = set()
    for name in names:
        if (stated := metrics.get(name, {}).get("chance")) is not None:
            chance[name] = float(stated)
        elif (task := registry.TASKS.get(name)) is None:
            continue
        elif (declared := task.declared_chance) is not None and declared.meaning == "exact":
            chance[name] = declared.value
        elif name in registry.SUITES[DATACOMP].tasks:
            chance[name] = guessed_score(task)
            if declared is not None and declared.meaning == "upper bound":
                bounds.add(name)
    return chance, frozenset(bounds)


def errors_of_accuracies(
    scores: Mapping[str, float],
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Return the binomial standard errors, and Wilson's 95 % intervals, of accuracies over a known number of images."""
    errors, intervals = {}, {}
    for name, score in scores.items():
        task = registry.TASKS.get(name)
        if task is not None and task.is_share_of_samples and task.size:
            errors[name] = math.sqrt(score * (1 - score) / task.size)
            intervals[name] = wilson(score, task.size)
    return errors, intervals


def stated_interval(metrics: Mapping[str, Json]) -> tuple[float, float] | None:
    """Return the 95 % interval of a main metric that stands beside it."""
    low, high = metrics.get("interval_low"), metrics.get("interval_high")
    return None if low is None or high is None else (float(low), float(high))


def known_size(name: str) -> int | None:
    """Return the number of samples that a task declares; None where it declares none."""
    return registry.TASKS[name].size if name in registry.TASKS else None
