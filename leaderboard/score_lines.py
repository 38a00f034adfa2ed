"""Scores of tasks from `eval_results.jsonl`, ours or DataComp's."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from benchmark import registry
from benchmark.evaluation.results import LINES_NAME
from benchmark.runtime.errors import UserError
from benchmark.runtime.files import Json, read_text
from leaderboard.score_sets import (
    SampleCounts,
    ScoreSet,
    chances_of,
    checked_score,
    errors_of_accuracies,
    folder_title,
    known_size,
    stated_interval,
)


@dataclass(frozen=True)
class _Line:
    """A line of a task's result."""

    metrics: dict[str, Json]
    expected_samples: int | None
    expected_classes: int | None  # where it was another number


def scores_of_lines(path: Path) -> ScoreSet:
    """Read `eval_results.jsonl`, ours or DataComp's, which may hold NaN and may repeat a line."""
    lines = _read_lines(path)
    metrics = {name: line.metrics for name, line in lines.items()}
    scores: dict[str, float] = {}
    for name, found in metrics.items():
        score = found["main_metric"]
        if score is not None and not (isinstance(score, float) and math.isnan(score)):
            scores[name] = checked_score(score, f"{path}: {name!r}")
    chance, bounds = chances_of(scores, metrics)
    errors, intervals = errors_of_accuracies(scores)
    for name in scores:
        if metrics[name].get("standard_error") is not None:
            errors[name] = metrics[name]["standard_error"]
            intervals.pop(name, None)  # of another error
        if (interval := stated_interval(metrics[name])) is not None:
            intervals[name] = interval
    sizes = {name: (metrics[name].get("num_samples"), lines[name].expected_samples) for name in scores}
    return ScoreSet(
        name=folder_title(path.parent) if path.name == LINES_NAME else path.stem,
        scores=scores,
        chance=chance,
        chance_bounds=bounds,
        errors=errors,
        intervals=intervals,
        odd_sizes={
            name: SampleCounts(found, expected)
            for name, (found, expected) in sizes.items()
            if found is not None and expected is not None and found != expected
        },
        odd_classes={n: line.expected_classes for n, line in lines.items() if line.expected_classes is not None},
        unscored=tuple(name for name in lines if name not in scores),
        metrics_at={name: path.name for name in lines if name not in scores},
        unknown=tuple(name for name in lines if name not in registry.TASKS),
    )


def _read_lines(path: Path) -> dict[str, _Line]:
    """Return the lines by task, the last where a line is repeated; raises UserError that names what is wrong."""
    lines: dict[str, _Line] = {}
    for number, text in enumerate(read_text(path).splitlines(), 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            key, metrics = line["key"], dict(line["metrics"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f'{path}: line {number} is not a task result, {{"key": ..., "dataset": ..., "metrics": {{...}}}}',
                code="results-invalid",
            ) from error
        if "main_metric" not in metrics:
            raise UserError(
                f"{path}: line {number}, task {key!r}, has no main_metric; add it to the line's metrics: the task's "
                "score from 0 to 1, or null where the task has none",
                code="results-invalid",
            )
        # As text, since NaN is not equal to itself.
        if key in lines and json.dumps(lines[key].metrics, sort_keys=True) != json.dumps(metrics, sort_keys=True):
            raise UserError(
                f"{path}: line {number} repeats {key!r} with other numbers; keep one of its lines",
                code="results-invalid",
            )
        expected_samples = line.get("expected_samples", known_size(key))
        lines[key] = _Line(metrics, expected_samples, line.get("expected_classes"))
    if not lines:
        raise UserError(f"{path} has no result of a task", code="results-missing")
    return lines
