"""Results on disk: each sample's prediction, the metrics that follow from them, and the scores of a suite.

Layout below a seed's folder, `out_dir`:

    eval/<task>.parquet    each sample's prediction
    eval/<task>.json       the record: what it was made from, and the metrics; written last
    eval_results.jsonl     one line per task, as DataComp writes it
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmark.evaluation.kinds.base import Metrics, Task
from benchmark.evaluation.predictions import check_predictions
from benchmark.evaluation.tasks import Suite
from benchmark.evaluation.uncertainty import uncertainty
from benchmark.runtime.errors import NotFoundError, UnknownNameError, UserError
from benchmark.runtime.files import Json, atomic_path, sha256_of, write_bytes
from benchmark.runtime.records import Record, read_record, write_record
from benchmark.runtime.tables import read_parquet

STAGE = "evaluate"
VERSION = 1  # of what an evaluation writes, raised by hand when it changes
METRICS_VERSION = 2  # of the metrics, which follow from the predictions; raised by hand

EVAL_FOLDER = "eval"
LINES_NAME = "eval_results.jsonl"


@dataclass(frozen=True)
class SuiteScores:
    """One model's main metrics on every task of a suite."""

    suite: Suite
    tasks: tuple[Task, ...]  # in the suite's order
    scores: dict[str, float]  # task -> main metric
    chance: dict[str, float]  # task -> what guessing gets

    @property
    def average(self) -> float:
        """Return the headline average: the mean over the suite's reporting half."""
        return float(np.mean([self.scores[name] for name in self.suite.headline]))

    @property
    def normalised_average(self) -> float:
        """Return the mean over the same tasks of (score - chance) / (1 - chance): 0 is guessing, 1 is perfect."""
        return float(np.mean([normalised(self.scores[name], self.chance[name]) for name in self.suite.headline]))

    def informative_average(self, scale: str) -> float | None:
        """Return the mean over the tasks that tell runs apart at a scale; None where that is not known of it."""
        names = self.suite.informative.get(scale)
        return None if names is None else float(np.mean([self.scores[name] for name in names]))

    @property
    def groups(self) -> dict[str, float]:
        """Return each group's mean over its tasks, groups in the order in which the suite first names them."""
        members: dict[str, list[float]] = {}
        for task in self.tasks:
            for group in task.groups:
                members.setdefault(group, []).append(self.scores[task.name])
        return {group: float(np.mean(scores)) for group, scores in members.items()}


def normalised(score: float, chance: float) -> float:
    """Return how far a score has come from guessing (0) to perfect (1); below 0 it is worse than guessing."""
    return (score - chance) / (1 - chance)


def metrics_of(task: Task, predictions: pa.Table) -> Metrics:
    """Compute every metric of a task from its predictions alone, under DataComp's names.

    Besides there are `num_samples` (images), `chance` (the expected main metric of guessing), `main_metric`, and its
    `standard_error`, `interval_low` and `interval_high` (95 %) from the test samples; all but the first are None where
    the task has no scalar. `acc5` is None where there are fewer than 5 classes, and the accuracy of a group without
    samples. Raises UserError where the table contradicts itself.
    """
    check_predictions(task, predictions)
    found = task.metrics(predictions)
    if not task.is_scored:
        return found.values | dict.fromkeys(
            ("chance", "main_metric", "standard_error", "interval_low", "interval_high")
        )
    if task.main_metric not in found.chance:
        raise _unknown_main_metric(task, found.chance)
    known = uncertainty(task, predictions)
    return {
        **found.values,
        "chance": found.chance[task.main_metric],
        "main_metric": found.values[task.main_metric],
        "standard_error": known.standard_error,
        "interval_low": known.low,
        "interval_high": known.high,
    }


def check_main_metric(task: Task) -> None:
    """Raise UserError where a task's main metric is not one that its kind has, or its kind knows no error of it."""
    if not task.is_scored:
        return
    known = task.known_main_metrics()
    if task.main_metric not in known:
        raise _unknown_main_metric(task, known)
    task.estimator()


def _unknown_main_metric(task: Task, known: Iterable[str]) -> UserError:
    return UserError(
        f"task {task.name!r}: main_metric={task.main_metric!r} is not one of {sorted(known)}", code="task-invalid"
    )


def result_path(out_dir: Path, task: Task) -> Path:
    """Return the place of a task's record."""
    return out_dir / EVAL_FOLDER / f"{task.file_stem}.json"


def predictions_path(out_dir: Path, task: Task) -> Path:
    """Return the place of a task's predictions."""
    return out_dir / EVAL_FOLDER / f"{task.file_stem}.parquet"


def write_result(
    out_dir: Path, task: Task, inputs: dict[str, Json], predictions: pa.Table, *, is_whole: bool = True
) -> Record:
    """Write a task's predictions, then its record with the metrics; the same predictions give the same bytes.

    Without `is_whole` the record says how many samples, and classes, were expected.
    """
    scores = metrics_of(task, predictions)
    path = predictions_path(out_dir, task)
    with atomic_path(path) as temporary:
        pq.write_table(predictions, temporary, compression="zstd", row_group_size=1 << 20)
    result: dict[str, Json] = {"title": task.title, "metrics": scores, "predictions": sha256_of(path)}
    result["metrics_version"] = METRICS_VERSION
    if not is_whole:
        result |= task.expected_counts(predictions)
    record = Record(STAGE, VERSION, inputs, result)
    write_record(result_path(out_dir, task), record)
    return record


def update_metrics(out_dir: Path, task: Task, record: Record) -> None:
    """Bring the metrics of an older record, or with another main metric, up to date from its predictions.

    Nothing is evaluated.
    """
    there = record.result["metrics"]
    is_main = not task.is_scored or there.get("main_metric") == there.get(task.main_metric)
    if record.result.get("metrics_version") == METRICS_VERSION and is_main:
        return
    found = metrics_of(task, read_predictions(out_dir, task))
    result = {**record.result, "metrics": found, "metrics_version": METRICS_VERSION}
    write_record(result_path(out_dir, task), Record(record.stage, record.version, record.inputs, result))


def read_predictions(out_dir: Path, task: Task) -> pa.Table:
    """Read a task's predictions; raises UserError where the file is damaged or breaks the contract of its kind."""
    path = predictions_path(out_dir, task)
    if not path.exists():
        raise NotFoundError(f"task {task.name!r} has no predictions: {path} is missing", code="results-missing")
    predictions = read_parquet(path, remedy="evaluate the task again")
    # What others wrote may carry notes of their library (pandas does); they are not ours to read.
    predictions = predictions.replace_schema_metadata(None)
    check_predictions(task, predictions)
    return predictions


def read_results(out_dir: Path, tasks: Sequence[Task]) -> dict[str, Record]:
    """Read the records that are there, by task name; a missing one is left out."""
    records = {task.name: read_record(result_path(out_dir, task)) for task in tasks}
    return {name: record for name, record in records.items() if record is not None}


def write_lines(out_dir: Path) -> None:
    """Write `eval_results.jsonl` from the records in `out_dir/eval`, sorted by file name."""
    lines = []
    for path in sorted((out_dir / EVAL_FOLDER).glob("*.json")):
        record = read_record(path)
        assert record is not None
        name, result = record.inputs["task"], record.result
        line = {"key": name, "dataset": result["title"], "metrics": result["metrics"]}
        if "recipe" in record.inputs:
            line["recipe"] = record.inputs["recipe"]  # of a custom scale, whose scores are not comparable
        line |= {name: result[name] for name in ("expected_samples", "expected_classes") if name in result}
        lines.append(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
    write_bytes(out_dir / LINES_NAME, "".join(lines).encode())


def model_of(inputs: dict[str, Json]) -> dict[str, Json]:
    """Return what all results of one model were made from: its weights and how images are prepared."""
    return {key: value for key, value in inputs.items() if key not in ("task", "task_version", "data")}


def suite_scores(suite: Suite, tasks: Mapping[str, Task], records: Mapping[str, Record]) -> SuiteScores:
    """Collect a suite's scores; both mappings go by task name.

    Raises KeyError that lists the tasks without a result, ValueError for results of another version of their task
    and for results of different models.
    """
    missing = [name for name in suite.tasks if name not in records]
    if missing:
        raise UnknownNameError(_of_tasks(suite, missing, "no result", missing), code="results-missing")
    stale = [name for name in suite.tasks if records[name].inputs["task_version"] != tasks[name].version]
    if stale:
        details = [f"{n}: {records[n].inputs['task_version']} there, {tasks[n].version} now" for n in stale]
        raise UserError(_of_tasks(suite, stale, "a result of another version", details), code="results-differ")
    first = suite.tasks[0]
    others = [name for name in suite.tasks if model_of(records[name].inputs) != model_of(records[first].inputs)]
    if others:
        raise UserError(
            _of_tasks(suite, others, f"a result of another model or setting than {first!r}", others),
            code="results-differ",
        )
    found = {name: records[name].result["metrics"] for name in suite.tasks}
    return SuiteScores(
        suite=suite,
        tasks=tuple(tasks[name] for name in suite.tasks),
        scores={name: float(values["main_metric"]) for name, values in found.items()},
        chance={name: float(values["chance"]) for name, values in found.items()},
    )


def _of_tasks(suite: Suite, named: Sequence[str], what: str, details: Sequence[str]) -> str:
    verb = "has" if len(named) == 1 else "have"
    return f"{len(named)} of {len(suite.tasks)} tasks {verb} {what}: {list(details)}"
