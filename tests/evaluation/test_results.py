"""Results: what follows from a predictions table, which tables are refused, and a suite's scores."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmark.evaluation.kinds.classification import CLASSIFICATION_SCHEMA
from benchmark.evaluation.kinds.retrieval import RETRIEVAL_SCHEMA
from benchmark.evaluation.results import (
    metrics_of,
    predictions_path,
    read_predictions,
    read_results,
    result_path,
    suite_scores,
    write_lines,
    write_result,
)
from benchmark.evaluation.tasks import GroupedClassification, GroupField, Retrieval, Suite, ZeroShotClassification
from benchmark.runtime.records import Record
from tests.conftest import user_error

SHAPES = ZeroShotClassification(name="toy/shapes", title="Shapes", groups=("accuracy",))
GROUPED = GroupedClassification(
    name="toy/grouped",
    title="Grouped",
    groups=("worst_group",),
    group_fields=(GroupField("group", 0, ("day", "night", "fog")),),
)
PAIRS = Retrieval(name="toy/pairs", title="Pairs", groups=("retrieval",))


def classification_rows(num_classes: int = 3, groups: tuple[int | None, ...] = (None,) * 4) -> dict[str, list[Any]]:
    """Four samples of classes 0, 0, 1, 2; the second is taken for class 1."""
    predictions = [0, 1, 1, 2]
    others = [[c for c in range(num_classes) if c != prediction] for prediction in predictions]
    return {
        "key": ["a", "b", "c", "d"],
        "label": [0, 0, 1, 2],
        "prediction": list(predictions),
        "score": [0.9, 0.2, 0.8, 0.7],
        "top5": [([p, *rest])[:5] for p, rest in zip(predictions, others, strict=True)],
        "group": list(groups),
        "num_classes": [num_classes] * 4,
    }


def retrieval_rows() -> dict[str, list[Any]]:
    """Two images with two captions and one; image "b" finds its caption second, caption 1 of "a" its image second."""
    return {
        "key": ["a", "b", "a", "a", "b"],
        "direction": ["image_to_text"] * 2 + ["text_to_image"] * 3,
        "caption": [None, None, 0, 1, 0],
        "num_positives": [2, 1, 1, 1, 1],
        "rank": [1, 2, 1, 2, 1],
        "score": [0.9, 0.5, 0.9, 0.4, 0.5],
        "top5": [[1, 0, 2], [0, 2, 1], [0, 1], [1, 0], [1, 0]],
    }


def classification_table(num_classes: int = 3, groups: tuple[int | None, ...] = (None,) * 4) -> pa.Table:
    return pa.table(classification_rows(num_classes, groups), schema=CLASSIFICATION_SCHEMA)


def retrieval_table() -> pa.Table:
    return pa.table(retrieval_rows(), schema=RETRIEVAL_SCHEMA)


def record_of(task_name: str, score: float, version: int = 1, checkpoint: str = "c0") -> Record:
    inputs = {"task": task_name, "task_version": version, "data": task_name, "checkpoint": checkpoint}
    metrics = {"main_metric": score, "chance": 0.25}
    return Record("evaluate", 1, inputs, {"title": task_name, "metrics": metrics})


def test_classification_metrics_by_hand() -> None:
    assert metrics_of(SHAPES, classification_table()) == {
        "acc1": 0.75,
        "acc5": None,
        "mean_per_class_recall": pytest.approx((0.5 + 1 + 1) / 3),
        "num_samples": 4,
        "chance": pytest.approx(1 / 3),
        "main_metric": 0.75,
        "standard_error": pytest.approx((0.75 * 0.25 / 4) ** 0.5),
        "interval_low": pytest.approx(0.300642, abs=1e-6),
        "interval_high": pytest.approx(0.954413, abs=1e-6),
    }


def test_acc5_is_one_with_exactly_five_classes_and_none_with_fewer() -> None:
    assert metrics_of(SHAPES, classification_table(num_classes=5))["acc5"] == 1.0
    assert metrics_of(SHAPES, classification_table(num_classes=4))["acc5"] is None


def test_main_metric_is_the_tasks() -> None:
    task = ZeroShotClassification(name="toy/pets", title="Pets", main_metric="mean_per_class_recall")
    metrics = metrics_of(task, classification_table())
    assert metrics["main_metric"] == metrics["mean_per_class_recall"] != metrics["acc1"]


def test_unknown_main_metric_is_refused() -> None:
    task = ZeroShotClassification(name="toy/pets", title="Pets", main_metric="acc2")
    with user_error("task-invalid", match="acc2"):
        metrics_of(task, classification_table())


def test_worst_group_metrics_by_hand() -> None:
    metrics = metrics_of(GROUPED, classification_table(groups=(0, 0, 2, 2)))
    assert metrics["acc_group:day"] == 0.5
    assert metrics["acc_group:fog"] == 1.0
    assert metrics["count_group:fog"] == 2
    assert metrics["acc_group:night"] is None and metrics["count_group:night"] == 0
    assert metrics["acc_wg"] == metrics["main_metric"] == 0.5
    # The least of two groups of two, each hit with 1/3: P(both >= 1/2) / 2 + P(both = 1) / 2.
    assert metrics["chance"] == pytest.approx(((5 / 9) ** 2 + (1 / 9) ** 2) / 2)


def test_retrieval_metrics_by_hand() -> None:
    metrics = metrics_of(PAIRS, retrieval_table())
    assert metrics["text_retrieval_recall@1"] == 0.5
    assert metrics["image_retrieval_recall@1"] == pytest.approx(2 / 3)
    assert metrics["text_retrieval_recall@5"] == metrics["image_retrieval_recall@10"] == 1.0
    assert metrics["mean_recall@1"] == metrics["main_metric"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert metrics["chance"] == pytest.approx(((2 / 3 + 1 / 3) / 2 + 1 / 2) / 2)
    assert metrics["num_samples"] == 2


def put(column: str, row: int, value: object) -> Callable[[dict[str, list[Any]]], None]:
    def change(rows: dict[str, list[Any]]) -> None:
        rows[column][row] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("key", 1, "a"), "1 keys are repeated"),
        (put("label", 0, 3), "a label is outside 0..2"),
        (put("label", 0, None), "label is null in 1 rows"),
        (put("prediction", 0, 2), "not the first of its top5"),
        (put("top5", 0, [0, 1]), "2 entries instead of 3"),
        (put("top5", 0, [0, 1, 1]), "an index twice"),
        (put("top5", 0, [0, 1, 3]), "outside 0..2"),
        (put("top5", 0, [0, 1, None]), "outside 0..2"),
        (put("num_classes", 0, 4), "num_classes is not one positive number"),
        (put("score", 0, float("nan")), "a score is not finite"),
        (put("group", 0, 1), "has no groups"),
    ],
)
def test_contradictory_classification_is_refused(change: Callable[[dict[str, list[Any]]], None], message: str) -> None:
    rows = classification_rows()
    change(rows)
    with user_error("results-invalid", match=f"toy/shapes.*{message}"):
        metrics_of(SHAPES, pa.table(rows, schema=CLASSIFICATION_SCHEMA))


@pytest.mark.parametrize("groups", [(0, 0, None, 0), (0, 0, -1, 0), (0, 0, 3, 0)])
def test_a_group_that_cannot_be_is_refused(groups: tuple[int | None, ...]) -> None:
    with user_error("results-invalid", match="group"):
        metrics_of(GROUPED, classification_table(groups=groups))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("rank", 1, 1), "a rank does not agree"),
        (put("rank", 0, 4), "a rank does not agree"),
        (put("rank", 2, 2), "a rank does not agree"),
        (put("direction", 4, "image_to_text"), "the rows are not those of"),
        (put("num_positives", 1, 2), "num_positives"),
        (put("num_positives", 3, 2), "num_positives"),
        (put("caption", 3, 0), "caption does not count"),
        (put("key", 3, "b"), "not in the order of their images"),
        (put("key", 1, "a"), "1 keys are repeated"),
    ],
)
def test_contradictory_retrieval_is_refused(change: Callable[[dict[str, list[Any]]], None], message: str) -> None:
    rows = retrieval_rows()
    change(rows)
    with user_error("results-invalid", match=f"toy/pairs.*{message}"):
        metrics_of(PAIRS, pa.table(rows, schema=RETRIEVAL_SCHEMA))


def test_a_rank_beyond_the_top5_must_not_be_within_it() -> None:
    num = 7  # one caption per image; every query but the first finds its own first
    top5 = [[own, *[other for other in range(num) if other != own][:4]] for own in range(num)]
    top5[6] = [0, 1, 2, 3, 4]
    rows: dict[str, list[Any]] = {
        "key": [str(number) for number in range(num)] * 2,
        "direction": ["image_to_text"] * num + ["text_to_image"] * num,
        "caption": [None] * num + [0] * num,
        "num_positives": [1] * 2 * num,
        "rank": [1] * 6 + [7] + [1] * 6 + [6],
        "score": [0.5] * 2 * num,
        "top5": top5 * 2,
    }
    assert metrics_of(PAIRS, pa.table(rows, schema=RETRIEVAL_SCHEMA))["mean_recall@1"] == pytest.approx(6 / 7)
    for wrong in (5, 8):
        rows["rank"][6] = wrong
        with user_error("results-invalid", match="rank"):
            metrics_of(PAIRS, pa.table(rows, schema=RETRIEVAL_SCHEMA))


def test_other_columns_are_refused_by_name() -> None:
    with user_error("results-invalid", match="key string, direction string"):
        metrics_of(PAIRS, classification_table())


def test_the_columns_are_what_was_promised() -> None:
    # A contract: published predictions stay readable. Do not change this test; add a new kind of task instead.
    int32s = pa.list_(pa.int32())
    assert list(zip(CLASSIFICATION_SCHEMA.names, CLASSIFICATION_SCHEMA.types, strict=True)) == [
        ("key", pa.string()),
        ("label", pa.int32()),
        ("prediction", pa.int32()),
        ("score", pa.float32()),
        ("top5", int32s),
        ("group", pa.int32()),
        ("num_classes", pa.int32()),
    ]
    assert list(zip(RETRIEVAL_SCHEMA.names, RETRIEVAL_SCHEMA.types, strict=True)) == [
        ("key", pa.string()),
        ("direction", pa.string()),
        ("caption", pa.int32()),
        ("num_positives", pa.int32()),
        ("rank", pa.int32()),
        ("score", pa.float32()),
        ("top5", int32s),
    ]


def test_what_is_written_is_read_back_and_gives_the_same_metrics(tmp_path: Path) -> None:
    for task, table in ((SHAPES, classification_table()), (PAIRS, retrieval_table())):
        record = write_result(tmp_path, task, {"task": task.name, "task_version": 1}, table)
        predictions = read_predictions(tmp_path, task)
        assert predictions.to_pydict() == table.to_pydict()
        assert metrics_of(task, predictions) == record.result["metrics"]
        assert read_results(tmp_path, [task]) == {task.name: record}


def test_predictions_written_by_pandas_are_read(tmp_path: Path) -> None:
    path = predictions_path(tmp_path, PAIRS)
    path.parent.mkdir()
    frame = retrieval_table().to_pandas()
    pq.write_table(pa.Table.from_pandas(frame, schema=RETRIEVAL_SCHEMA), path)
    assert metrics_of(PAIRS, read_predictions(tmp_path, PAIRS))["text_retrieval_recall@1"] == 0.5


def test_damaged_predictions_are_named(tmp_path: Path) -> None:
    write_result(tmp_path, SHAPES, {"task": SHAPES.name, "task_version": 1}, classification_table())
    path = predictions_path(tmp_path, SHAPES)
    path.write_bytes(path.read_bytes()[:100])
    with user_error("file-damaged", match=r"toy-shapes\.parquet"):
        read_predictions(tmp_path, SHAPES)


def test_lines_are_datacomps(tmp_path: Path) -> None:
    for task, table in ((SHAPES, classification_table()), (PAIRS, retrieval_table())):
        write_result(tmp_path, task, {"task": task.name, "task_version": 1}, table)
    write_lines(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "eval_results.jsonl").read_text().splitlines()]
    assert [(line["key"], line["dataset"]) for line in lines] == [("toy/pairs", "Pairs"), ("toy/shapes", "Shapes")]
    assert lines[1]["metrics"]["main_metric"] == 0.75
    assert lines[1]["metrics"]["acc5"] is None
    assert sorted(path.name for path in result_path(tmp_path, SHAPES).parent.iterdir()) == [
        "toy-pairs.json",
        "toy-pairs.parquet",
        "toy-shapes.json",
        "toy-shapes.parquet",
    ]


SUITE = Suite(name="toy", version=1, tasks=("toy/shapes", "toy/grouped", "toy/pairs"))
TASKS = {task.name: task for task in (SHAPES, GROUPED, PAIRS)}


def test_average_is_the_mean_of_the_main_metrics() -> None:
    records = {name: record_of(name, score) for name, score in zip(SUITE.tasks, (0.6, 0.2, 0.1), strict=True)}
    scores = suite_scores(SUITE, TASKS, records)
    assert scores.average == pytest.approx(0.3)
    assert scores.groups == {"accuracy": 0.6, "worst_group": 0.2, "retrieval": 0.1}
    assert scores.chance == dict.fromkeys(SUITE.tasks, 0.25)


def test_average_is_over_the_reporting_half_and_needs_every_task() -> None:
    suite = dataclasses.replace(SUITE, reporting=("toy/pairs", "toy/shapes"))
    records = {name: record_of(name, score) for name, score in zip(SUITE.tasks, (0.6, 0.2, 0.1), strict=True)}
    assert suite_scores(suite, TASKS, records).average == pytest.approx(0.35)
    del records["toy/grouped"]
    with user_error("results-missing", match="toy/grouped"):
        suite_scores(suite, TASKS, records)


def test_a_suites_halves_keep_its_order_and_name_its_own_tasks() -> None:
    suite = dataclasses.replace(SUITE, reporting=("toy/pairs", "toy/shapes"))
    assert suite.headline == ("toy/shapes", "toy/pairs") and suite.development == ("toy/grouped",)
    assert SUITE.headline == SUITE.tasks and SUITE.development == ()
    with user_error("task-invalid", match=r"'toy'.*\['x'\]"):
        dataclasses.replace(SUITE, reporting=("x",))


def test_average_with_tasks_missing_lists_them() -> None:
    with user_error("results-missing", match=r"2 of 3.*\['toy/grouped', 'toy/pairs'\]"):
        suite_scores(SUITE, TASKS, {"toy/shapes": record_of("toy/shapes", 0.5)})


def test_average_with_a_stale_task_lists_it() -> None:
    records = {name: record_of(name, 0.5, version=2 if name == "toy/pairs" else 1) for name in SUITE.tasks}
    with user_error("results-differ", match=r"1 of 3.*\['toy/pairs: 2 there, 1 now"):
        suite_scores(SUITE, TASKS, records)


def test_average_over_different_models_is_refused() -> None:
    records = {name: record_of(name, 0.5, checkpoint="c1" if name == "toy/pairs" else "c0") for name in SUITE.tasks}
    with user_error("results-differ", match=r"'toy/shapes'.*\['toy/pairs'\]"):
        suite_scores(SUITE, TASKS, records)
