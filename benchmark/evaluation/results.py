"""Results on disk: each sample's prediction, the metrics that follow from them, and the scores of a suite.

Layout below a seed's folder, `out_dir`:

    eval/<task>.parquet    each sample's prediction
    eval/<task>.json       the record: what it was made from, and the metrics; written last
    eval_results.jsonl     one line per task, as DataComp writes it
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmark.evaluation import metrics
from benchmark.evaluation.predictions import (
    CANDIDATE_BUCKETS,
    FACE_SCHEMA,
    IMAGE_TO_TEXT,
    TOP,
    check_predictions,
    group_values,
    top5_of,
)
from benchmark.evaluation.tasks import (
    Association,
    FaceAttributes,
    GroupedClassification,
    GroupField,
    Retrieval,
    Suite,
    Task,
    ZeroShotClassification,
)
from benchmark.evaluation.uncertainty import uncertainty
from benchmark.runtime.errors import NotFoundError, UnknownNameError, UserError
from benchmark.runtime.files import Json, atomic_path, sha256_of, write_bytes
from benchmark.runtime.records import Record, read_record, write_record
from benchmark.runtime.tables import read_parquet

STAGE = "evaluate"
VERSION = 1  # of what an evaluation writes, raised by hand when it changes
METRICS_VERSION = 2  # of the metrics, which follow from the predictions; raised by hand
RECALL_AT = (1, 5, 10)

EVAL_FOLDER = "eval"
LINES_NAME = "eval_results.jsonl"

WHITE = 1  # FairFace's and UTKFace's class of race, as DataComp scores them
NON_HUMAN, CRIME = 14, 18  # where the classes of these slurs begin; crime's go to the end

Metrics = dict[str, float | None]


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
    samples. Raises ValueError where the table contradicts itself.
    """
    check_predictions(task, predictions)
    if isinstance(task, Retrieval):
        found, chances = _retrieval_metrics(predictions)
    elif isinstance(task, Association):
        found, chances = _association_metrics(predictions)
    elif isinstance(task, FaceAttributes):
        none = dict.fromkeys(("chance", "main_metric", "standard_error", "interval_low", "interval_high"))
        return {**_face_metrics(predictions), **none}
    else:
        found, chances = _classification_metrics(task, predictions)
    if task.main_metric not in chances:
        raise UserError(
            f"task {task.name!r}: main_metric={task.main_metric!r} is none of {sorted(chances)}", code="task-invalid"
        )
    known = uncertainty(task, predictions)
    return {
        **found,
        "chance": chances[task.main_metric],
        "main_metric": found[task.main_metric],
        "standard_error": known.standard_error,
        "interval_low": known.low,
        "interval_high": known.high,
    }


def check_main_metric(task: Task) -> None:
    """Raise ValueError where a task's main metric is none that tasks of its kind can have, whatever their data."""
    known = [""]
    if isinstance(task, Retrieval):
        known += ["mean_recall@1", *(f"{n}_retrieval_recall@{k}" for n in ("image", "text") for k in RECALL_AT)]
    elif isinstance(task, Association):
        known += ["avg_jaccard_score", *(f"jaccard_score_{bucket}" for bucket in CANDIDATE_BUCKETS)]
    elif isinstance(task, ZeroShotClassification):
        known += ["acc1", "acc5", "mean_per_class_recall", *(["F1-macro_all"] if task.macro else [])]
        if isinstance(task, GroupedClassification):
            fields = task.group_fields
            known += [_worst_name(task, field) for field in fields]
            known += [f"{task.prefix}_worst_named_{field.name}" for field in fields if field.rest is not None]
    if task.main_metric not in known:
        raise UserError(
            f"task {task.name!r}: main_metric={task.main_metric!r} is none of {sorted(known[1:])}", code="task-invalid"
        )


def _worst_name(task: GroupedClassification, field: GroupField) -> str:
    return f"{task.prefix}_wg" if len(task.group_fields) == 1 else f"{task.prefix}_worst_{field.name}"


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

    Where the data was not whole, the record says how many samples, and classes, there should have been.
    """
    scores = metrics_of(task, predictions)
    path = predictions_path(out_dir, task)
    with atomic_path(path) as temporary:
        pq.write_table(predictions, temporary, compression="zstd", row_group_size=1 << 20)
    result: dict[str, Json] = {"title": task.title, "metrics": scores, "predictions": sha256_of(path)}
    result["metrics_version"] = METRICS_VERSION
    if not is_whole:
        result["expected_samples"] = task.size
        known = task.num_classes if isinstance(task, ZeroShotClassification) else None
        if known is not None and known != predictions["num_classes"][0].as_py():
            result["expected_classes"] = known
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
    """Read a task's predictions; raises ValueError where the file is damaged or not as the contract says."""
    path = predictions_path(out_dir, task)
    if not path.exists():
        raise NotFoundError(f"task {task.name!r} has no predictions: there is no {path}", code="results-missing")
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
            line["recipe"] = record.inputs["recipe"]  # of a scale of one's own: it is not comparable
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


def _classification_metrics(task: Task, predictions: pa.Table) -> tuple[Metrics, dict[str, float]]:
    label, prediction = predictions["label"].to_numpy(), predictions["prediction"].to_numpy()
    num_classes = int(predictions["num_classes"][0].as_py())
    top5 = top5_of(predictions)
    guess = 1 / num_classes
    found: Metrics = {
        "acc1": metrics.accuracy(label, prediction),
        "acc5": metrics.top_k_accuracy(label, top5) if num_classes >= TOP else None,
        "mean_per_class_recall": metrics.mean_per_class_recall(label, prediction),
    }
    chances = {"acc1": guess, "mean_per_class_recall": guess}
    if num_classes >= TOP:
        chances["acc5"] = TOP / num_classes
    if isinstance(task, ZeroShotClassification) and task.macro:
        found["acc_avg"] = found["acc1"]
        found["recall-macro_all"] = found["mean_per_class_recall"]
        found["F1-macro_all"] = metrics.macro_f1(label, prediction)
        chances["F1-macro_all"] = metrics.chance_macro_f1(np.unique(label, return_counts=True)[1].tolist(), num_classes)
    if isinstance(task, GroupedClassification):
        is_hit = (top5 == label[:, None]).any(axis=1) if task.top5 else label == prediction
        guess = min(1.0, TOP / num_classes) if task.top5 else guess
        found[f"{task.prefix}_avg"] = float(np.mean(is_hit))
        for field, values in group_values(task, predictions).items():
            found |= _per_group(is_hit, values, task.prefix, field)
            worst = _worst_name(task, field)
            found[worst] = metrics.worst_group_accuracy(is_hit, values)
            chances[worst] = _chance_of_worst(values, guess)
            if field.rest is not None and (named := values != field.rest).any():
                worst = f"{task.prefix}_worst_named_{field.name}"
                found[worst] = metrics.worst_group_accuracy(is_hit[named], values[named])
                chances[worst] = _chance_of_worst(values[named], guess)
    found["num_samples"] = len(label)
    return found, chances


def _per_group(is_hit: np.ndarray, values: np.ndarray, prefix: str, field: GroupField) -> Metrics:
    """Return accuracy and count of each group, 0 to the greatest, under WILDS' names."""
    per_group = metrics.accuracy_per_group(is_hit, values)
    sizes = np.bincount(values)
    names = [field.names[value] if field.names else str(value) for value in range(len(sizes))]
    found: Metrics = {f"{prefix}_{field.name}:{name}": per_group.get(value) for value, name in enumerate(names)}
    return found | {f"count_{field.name}:{name}": int(sizes[value]) for value, name in enumerate(names)}


def _chance_of_worst(values: np.ndarray, guess: float) -> float:
    sizes = np.bincount(values)
    return metrics.chance_worst_group_accuracy(sizes[sizes > 0].tolist(), guess)


def _face_metrics(predictions: pa.Table) -> Metrics:
    """Return the metrics of DataComp's tables of faces (Sec. 3.5 and appendix), under its names.

    The worst group is the one with the lowest share also for slurs, where less is better: so DataComp counts.
    """
    column = {name: predictions[name].to_numpy() for name in FACE_SCHEMA.names if name not in ("key", "score")}
    of_race_binary = {"race_binary": column["race_binary"]}
    gender, toxic = column["predicted_gender"] == column["gender"], column["predicted_toxic"]
    tables = [
        ("acc_race", (column["predicted_race"] != WHITE) == column["race_binary"].astype(bool), of_race_binary),
        ("acc_gender", gender, of_race_binary),
        ("acc_age", column["predicted_age"] == column["age"], of_race_binary),
        ("acc_gender_x", gender, {"race": column["race"], "gender": column["gender"]}),
        ("toxicity_crime", toxic >= CRIME, {"race": column["race"]}),
        ("toxicity_nonhuman", (toxic >= NON_HUMAN) & (toxic < CRIME), {"race": column["race"]}),
    ]
    found: Metrics = {}
    for name, is_hit, fields in tables:
        found |= {f"{name}_avg": float(np.mean(is_hit)), **_per_combination(name, is_hit, fields)}
    found["num_samples"] = predictions.num_rows
    return found


def _per_combination(name: str, is_hit: np.ndarray, fields: dict[str, np.ndarray]) -> Metrics:
    """Return share and count of each combination of values, each from 0 to the greatest, and the lowest share."""
    found: Metrics = {}
    shares = []
    for values in itertools.product(*(range(int(column.max()) + 1) for column in fields.values())):
        rows = np.all([column == value for column, value in zip(fields.values(), values, strict=True)], axis=0)
        group = "_".join(f"{field}:{value}" for field, value in zip(fields, values, strict=True))
        share = float(np.mean(is_hit[rows])) if rows.any() else None
        found[f"{name}_{group}"], found[f"count_{group}"] = share, int(rows.sum())
        shares += [] if share is None else [share]
    return found | {f"{name}_wg": min(shares)}


def _retrieval_metrics(predictions: pa.Table) -> tuple[Metrics, dict[str, float]]:
    direction = predictions["direction"].to_numpy(zero_copy_only=False)
    rank, num_positives = predictions["rank"].to_numpy(), predictions["num_positives"].to_numpy()
    is_image = direction == IMAGE_TO_TEXT
    num_images, num_captions = int(is_image.sum()), int((~is_image).sum())
    found: Metrics = {}
    chances: dict[str, float] = {}
    # "image retrieval" finds the image of a caption.
    for noun, rows, num_candidates in (("image", ~is_image, num_images), ("text", is_image, num_captions)):
        for k in RECALL_AT:
            name = f"{noun}_retrieval_recall@{k}"
            found[name] = metrics.recall_at_k(rank[rows], k)
            chances[name] = metrics.chance_recall_at_k(num_positives[rows], num_candidates, k)
    image, text = "image_retrieval_recall@1", "text_retrieval_recall@1"
    found["mean_recall@1"] = float(np.mean([found[image], found[text]]))
    chances["mean_recall@1"] = float(np.mean([chances[image], chances[text]]))
    found["num_samples"] = num_images
    return found, chances


def _association_metrics(predictions: pa.Table) -> tuple[Metrics, dict[str, float]]:
    ranked, right = predictions["ranked"].to_pylist(), predictions["associations"].to_pylist()
    scores = [metrics.jaccard_of_top(order, wanted) for order, wanted in zip(ranked, right, strict=True)]
    guesses = [metrics.chance_jaccard_of_top(len(w), len(order)) for order, w in zip(ranked, right, strict=True)]
    found: Metrics = {"avg_jaccard_score": float(np.mean(scores))}
    chances = {"avg_jaccard_score": float(np.mean(guesses))}
    for bucket, (least, most) in CANDIDATE_BUCKETS.items():
        rows = [row for row, order in enumerate(ranked) if least <= len(order) <= most]
        found[f"jaccard_score_{bucket}"] = float(np.mean([scores[row] for row in rows])) if rows else None
        if rows:
            chances[f"jaccard_score_{bucket}"] = float(np.mean([guesses[row] for row in rows]))
    found["num_samples"] = len(ranked)
    return found, chances


def _of_tasks(suite: Suite, named: Sequence[str], what: str, details: Sequence[str]) -> str:
    verb = "has" if len(named) == 1 else "have"
    return f"{len(named)} of {len(suite.tasks)} tasks {verb} {what}: {list(details)}"
