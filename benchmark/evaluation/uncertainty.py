"""How well a score is known: standard errors and 95 % intervals of a task's main metric, and of a change of it.

They cover the test samples alone: how the score of the same trained models would vary over other samples of the same
kind. They say nothing about another training seed. Retrieval's candidates, and the samples of each class or group where
a metric goes by class or group, count as given in number. `estimators.py` has the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from benchmark.evaluation.estimators import TaskDifference, Uncertainty
from benchmark.evaluation.kinds.base import Task
from benchmark.runtime.errors import UserError

Predictions: TypeAlias = (
    pa.Table | Sequence[pa.Table]
)  # one model's, or those of several, of whose scores the mean is meant


def uncertainty(task: Task, predictions: Predictions) -> Uncertainty:
    """Return how well the task's main metric is known.

    Of several models' predictions of the same samples the mean score is meant. Raises UserError where the task has no
    main metric, or its kind does not say how one is known, and where samples differ.
    """
    tables = _same_samples(task, _as_list(predictions))
    return task.estimator().uncertainty(tables, np.full(len(tables), 1 / len(tables)))


def difference(task: Task, ours: Predictions, theirs: Predictions) -> TaskDifference:
    """Return the change of the main metric from their predictions to ours, compared sample by sample.

    What makes a sample easy or hard for both cancels, so a change is known better than two scores are. The interval is
    the change ± 1.96 standard errors; for macro F1 and the worst group these are the paired bootstrap's. Either side
    may be several models' predictions, of whose scores the mean counts. Raises UserError where the predictions are not
    of the same samples, and as `uncertainty` does.
    """
    left, right = _as_list(ours), _as_list(theirs)
    tables = _same_samples(task, [*left, *right])
    weights = np.array([1 / len(left)] * len(left) + [-1 / len(right)] * len(right))
    return task.estimator().difference(tables, weights)


def error_of_mean(standard_errors: Sequence[float]) -> float:
    """Return the standard error of a mean over tasks whose test samples are independent: they add in squares.

    Two tasks on the same images (CLEVR's two) count as independent here too.
    """
    return math.sqrt(math.fsum(error**2 for error in standard_errors)) / len(standard_errors)


def _as_list(predictions: Predictions) -> list[pa.Table]:
    return [predictions] if isinstance(predictions, pa.Table) else list(predictions)


def _same_samples(task: Task, tables: Sequence[pa.Table]) -> list[pa.Table]:
    """Return the tables in one order of samples; raises UserError where samples or their right answers differ."""
    if len(tables) < 2:
        return list(tables)
    ordered = [table.sort_by([(name, "ascending") for name in task.row_order]) for table in tables]
    first = ordered[0]
    answers = task.answers(first).combine_chunks()
    for other in ordered[1:]:
        keys, others = set(first["key"].to_pylist()), set(other["key"].to_pylist())
        if odd := sorted(keys ^ others):
            raise UserError(
                f"predictions of {task.name!r} are not of the same samples: {len(odd)} of {len(keys | others)} keys "
                f"are only on one side, such as {odd[0]!r}",
                code="results-differ",
            )
        if first.num_rows != other.num_rows or answers != task.answers(other).combine_chunks():
            raise UserError(
                f"predictions of {task.name!r} have the same keys but not the same right answers: their data differ",
                code="results-differ",
            )
    return ordered
