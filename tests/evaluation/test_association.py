"""Association (WinoGAViL's kind of task): metric, predictions table, and the stage on a toy encoder."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from benchmark.evaluation import metrics
from benchmark.evaluation.evaluate import evaluate
from benchmark.evaluation.kinds.association import ASSOCIATION_SCHEMA
from benchmark.evaluation.preprocess import Preprocess
from benchmark.evaluation.results import metrics_of, read_predictions
from benchmark.evaluation.tasks import Association
from benchmark.pool.tars import write_tar
from tests.conftest import user_error
from tests.evaluation.test_evaluate import COLOURS, ToyEncoder, encode_png, toy_tokenizer

TASK = Association(name="toy/cues", title="Cues", main_metric="avg_jaccard_score")


def test_jaccard_counts_the_best_ranked_of_as_many_as_are_right() -> None:
    assert metrics.jaccard_of_top([4, 0, 2, 1, 3], [0, 4]) == 1.0
    assert metrics.jaccard_of_top([4, 1, 0, 2, 3], [0, 4]) == pytest.approx(1 / 3)
    assert metrics.jaccard_of_top([1, 2, 0, 3, 4], [0, 4]) == 0.0


@pytest.mark.parametrize(("num_right", "num_candidates"), [(1, 3), (2, 5), (3, 6)])
def test_chance_of_jaccard_is_the_mean_over_all_orders(num_right: int, num_candidates: int) -> None:
    orders = list(itertools.permutations(range(num_candidates)))
    expected = sum(metrics.jaccard_of_top(order, range(num_right)) for order in orders) / len(orders)
    assert metrics.chance_jaccard_of_top(num_right, num_candidates) == pytest.approx(expected)


def table(**changes: Any) -> pa.Table:
    ten, six = list(range(10)), [5, 4, 3, 2, 1, 0]
    rows = {"key": ["0", "1"], "cue": ["tool", "party"], "associations": [[0, 9], [4, 5]], "ranked": [ten, six]}
    return pa.table({**rows, "score": [0.5, 0.5], **changes}, schema=ASSOCIATION_SCHEMA)


def test_metrics_go_by_the_number_of_candidates() -> None:
    task = Association(name="toy/cues", title="Cues")
    found = metrics_of(task, table())
    assert found["avg_jaccard_score"] == pytest.approx((1 / 3 + 1) / 2)
    assert found["jaccard_score_10-12"] == found["main_metric"] == pytest.approx(1 / 3)
    assert (found["jaccard_score_6"], found["jaccard_score_5"], found["num_samples"]) == (1.0, None, 2)
    assert found["chance"] == pytest.approx(metrics.chance_jaccard_of_top(2, 10))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ranked": [list(range(10)), [0, 0, 1, 2, 3, 4]]}, "order"),
        ({"associations": [[0, 9], [6]]}, "ascending"),
        ({"associations": [[9, 0], [5]]}, "ascending"),
        ({"associations": [[], [5]]}, "ascending"),
        ({"key": ["0", "0"]}, "key"),
    ],
)
def test_tables_that_contradict_themselves_are_refused(changes: dict[str, Any], message: str) -> None:
    with user_error("results-invalid", match=message):
        metrics_of(TASK, table(**changes))


def write_set(eval_dir: Path, instances: list[str]) -> None:
    folder = eval_dir / TASK.folder_name
    write_tar(folder / "test" / "0.tar", [(f"{name}.png", encode_png(colour)) for name, colour in COLOURS.items()])
    (folder / "test" / "nshards.txt").write_text("1\n")
    (folder / "dataset_type.txt").write_text("association\n")
    (folder / "instances.jsonl").write_text("".join(f"{line}\n" for line in instances))


def run(eval_dir: Path, out_dir: Path) -> dict[str, Any]:
    options: dict[str, Any] = {"preprocess": Preprocess(4, (0, 0, 0), (1, 1, 1)), "inputs": {"checkpoint": "c0"}}
    return evaluate(ToyEncoder(), toy_tokenizer, [TASK], eval_dir, out_dir, **options)[TASK.name].result["metrics"]


def test_the_images_nearest_to_the_cue_are_chosen(tmp_path: Path) -> None:
    # Yellow is half red and half green; blue has nothing of red.
    first = {"cue": "red", "candidates": ["blue", "red", "yellow"], "associations": ["yellow", "red"]}
    second = {"cue": "green", "candidates": ["green", "red", "blue"], "associations": ["blue"]}
    write_set(tmp_path / "sets", [json.dumps(first), json.dumps(second)])
    assert run(tmp_path / "sets", tmp_path / "out")["avg_jaccard_score"] == 0.5
    rows = read_predictions(tmp_path / "out", TASK).to_pylist()
    assert [row["ranked"] for row in rows] == [[1, 2, 0], [0, 1, 2]]  # of equals the earlier
    assert [row["associations"] for row in rows] == [[1, 2], [2]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1"),
        ('{"cue": "red", "candidates": ["red"]}', "line 1"),
        ('{"cue": "red", "candidates": ["pink"], "associations": ["pink"]}', "'pink'"),
        ('{"cue": "red", "candidates": ["red", "blue"], "associations": []}', "cue"),
        ('{"cue": "red", "candidates": ["red", "blue"], "associations": ["green"]}', "associations"),
        ('{"cue": "red", "candidates": ["red", "red"], "associations": ["red"]}', "distinct"),
    ],
)
def test_a_wrong_question_is_named(tmp_path: Path, line: str, message: str) -> None:
    write_set(tmp_path / "sets", [line])
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "sets", tmp_path / "out")
