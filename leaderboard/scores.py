"""Scores of tasks from wherever a user has them: a folder with results, an experiment, `eval_results.jsonl`, a name."""

from __future__ import annotations

from pathlib import Path

from benchmark import registry
from benchmark.evaluation.tasks import Suite
from benchmark.runtime.errors import UnknownNameError
from benchmark.runtime.names import nearest_name
from leaderboard.checkpoints import read_checkpoints
from leaderboard.score_folders import scores_of_folder
from leaderboard.score_lines import scores_of_lines
from leaderboard.score_sets import ScoreSet, chances_of, errors_of_accuracies

CUSTOM_SUITES = "To load your own tasks and suites: --plugins FILE."


def read_scores(text: str) -> ScoreSet:
    """Read the scores that a user names.

    `text` is a folder that `winnow evaluate` filled, or a seed's folder; an experiment, whose seeds' mean counts; a
    file as `eval_results.jsonl`, ours or DataComp's (or the folder it lies in); or the name of a released checkpoint.
    Raises FileNotFoundError where a folder holds no results, KeyError with the nearest name where nothing is called so,
    ValueError where results contradict each other or are damaged.
    """
    registry.load_tasks()
    path = Path(text).expanduser()
    if path.is_dir():
        return scores_of_folder(path)
    if path.is_file():
        return scores_of_lines(path)
    beside = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    try:
        return scores_of_checkpoint(text)
    except KeyError as error:
        nearest = nearest_name(path.name, beside)
        raise UnknownNameError(
            f"{text!r} is neither a folder nor a file.{nearest} As a released checkpoint: {error.args[0]}",
            code="scores-not-found",
        ) from None


def best_suite(scores: ScoreSet) -> Suite:
    """Return the suite that has most of the tasks, of equal ones the smaller; KeyError where none has any."""
    registry.load_tasks()
    known = {*scores.scores, *scores.unscored}
    shared = {name: len(known & {*suite.tasks, *suite.unscored}) for name, suite in registry.SUITES.items()}
    best = min(registry.SUITES, key=lambda name: (-shared[name], len(registry.SUITES[name].tasks), name), default=None)
    if best is None or not shared[best]:
        raise UnknownNameError(
            f"no suite has the tasks of {scores.name}, {sorted(known)}; there are {sorted(registry.SUITES)}. "
            f"{CUSTOM_SUITES}",
            code="unknown-suite",
        )
    return registry.SUITES[best]


def suite_named(name: str) -> Suite:
    """Return the suite of this name; raises KeyError with the nearest one."""
    registry.load_tasks()
    known = sorted(registry.SUITES)
    if name not in known:
        raise UnknownNameError(
            f"unknown suite {name!r}.{nearest_name(name, known)} Suites: {', '.join(known)}. {CUSTOM_SUITES}",
            code="unknown-suite",
        )
    return registry.SUITES[name]


def scores_of_checkpoint(name: str) -> ScoreSet:
    """Return the published scores of a released checkpoint; raises KeyError with the nearest name."""
    found = read_checkpoints().find(name)
    chance, bounds = chances_of(found.scores, {})
    errors, intervals = errors_of_accuracies(found.scores)
    return ScoreSet(
        name=found.name,
        scores=dict(found.scores),
        chance=chance,
        chance_bounds=bounds,
        errors=errors,
        intervals=intervals,
        notes=(f"{found.name}: {found.note}.",) if found.note else (),
    )
