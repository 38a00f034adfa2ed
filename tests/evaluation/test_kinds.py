"""Kinds of tasks: each knows all of itself, and a new one is one class in one file, here the one of the docs."""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import save_model

from benchmark import registry
from benchmark.cli.main import main
from benchmark.evaluation.eval_sets import check_eval_sets, hash_eval_set, read_eval_set
from benchmark.evaluation.kinds.base import Task, TaskMetrics
from benchmark.evaluation.results import check_main_metric, metrics_of
from benchmark.evaluation.tasks import ZeroShotClassification
from benchmark.models.build import build_model
from benchmark.pool.tars import write_tar
from benchmark.registry import load_tasks
from benchmark.runtime.failures import EXIT_USER
from tests.conftest import user_error
from tests.evaluation.test_evaluate import encode_png

ROOT = Path(__file__).resolve().parents[2]
KINDS_DIR = ROOT / "benchmark" / "evaluation" / "kinds"
PAGE = (ROOT / "docs" / "evaluation.md").read_text()
CLASSES = ["circle", "square", "star", "moon"]
LABELS = ["0", "1", "0,1", "2,3", "0,2,3", "1,3"]


def shipped_kinds() -> set[str]:
    """Return the names of the classes of `kinds/` that derive from Task."""
    names = {"Task"}
    trees = [ast.parse(path.read_text()) for path in sorted(KINDS_DIR.glob("*.py"))]
    classes = [node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]
    for _ in classes:  # a class may stand before its base
        names |= {each.name for each in classes if {ast.unparse(base) for base in each.bases} & names}
    return names


def test_nothing_outside_the_kinds_asks_which_kind_a_task_is() -> None:
    kinds = shipped_kinds()
    assert kinds >= {"ZeroShotClassification", "GroupedClassification", "FaceAttributes", "Retrieval", "Association"}
    asking = []
    for folder in ("benchmark", "eval_tasks", "filters", "leaderboard", "scripts"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass", "type"):
                    named = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
                    of_task = any(ast.unparse(each) in ("task", "job.task", "row.task") for each in node.args[:1])
                    asking += [f"{path}:{node.lineno}"] if named & kinds or of_task else []
                if isinstance(node, ast.Compare) and ast.unparse(node.left).endswith("task.kind"):
                    asking.append(f"{path}:{node.lineno}")
    assert asking == []


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the plugin of the docs, its evaluation set, and two models."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    (tmp_path / "multi_label.py").write_text(code)
    folder = tmp_path / "my_sets" / "wds_shop-contents_test"
    members = []
    for number, labels in enumerate(LABELS):
        colour = tuple(np.random.default_rng(number).integers(0, 256, 3).tolist())
        members += [(f"s{number}.png", encode_png(colour, (32, 32))), (f"s{number}.cls", labels.encode())]
    write_tar(folder / "test" / "0.tar", members)
    (folder / "test" / "nshards.txt").write_text("1\n")
    (folder / "classnames.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    (folder / "zeroshot_classification_templates.txt").write_text("a {c}\n")
    for seed in (1, 2):
        save_model(build_model("pico_cnn", seed=seed), str(tmp_path / f"{seed}.safetensors"))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    registry._forget(tmp_path / "multi_label.py")


def evaluating(seed: int, *options: str) -> list[str]:
    model = ["model=pico_cnn", f"checkpoint={seed}.safetensors", "eval_dir=my_sets", f"out_dir=out-{seed}"]
    return ["evaluate", *model, "plugins=multi_label.py", "tasks=shop", *options]


def test_a_new_kind_is_one_class_in_one_file(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "tasks", "--plugins", "multi_label.py"]) == 0
    assert "shop/contents" in capsys.readouterr().out
    assert main(evaluating(1)) == 0
    # By hand, from the predictions: as many of the nearest classes as there are labels, against the labels.
    rows = pq.read_table(place / "out-1" / "eval" / "shop-contents.parquet").to_pylist()
    assert [row["labels"] for row in rows] == [[int(each) for each in labels.split(",")] for labels in LABELS]
    top = [set(row["ranked"][: len(row["labels"])]) for row in rows]
    shares = [len(t & {*row["labels"]}) / len(t | {*row["labels"]}) for t, row in zip(top, rows, strict=True)]
    record = json.loads((place / "out-1" / "eval" / "shop-contents.json").read_text())
    found = record["result"]["metrics"]
    assert found["main_metric"] == found["jaccard"] == pytest.approx(np.mean(shares))
    assert found["standard_error"] == pytest.approx(np.std(shares) / 6**0.5) and found["standard_error"] > 0
    assert found["interval_low"] < found["main_metric"] < found["interval_high"] and found["num_samples"] == 6
    # Of one label among four classes a guess has 1/4; of two 1/6 whole, 2/3 a third; of three 3/4 a half, 1/4 whole.
    assert found["chance"] == pytest.approx((2 * 1 / 4 + 3 * (1 / 6 + 2 / 3 / 3) + (3 / 4 / 2 + 1 / 4)) / 6)
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("average"))
    assert f"{found['main_metric']:.3f}"[1:] in row
    # A second model, compared on the same samples.
    assert main(evaluating(2, "reference=out-1")) == 0
    others = pq.read_table(place / "out-2" / "eval" / "shop-contents.parquet").to_pylist()
    assert [row["labels"] for row in others] == [row["labels"] for row in rows]
    assert "sample by sample" in capsys.readouterr().out


def test_sets_of_a_new_kind_are_looked_over_like_any_other(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = place / "my_sets" / "wds_shop-contents_test"
    shutil.copytree(place / "my_sets", place / "whole")
    (folder / "classnames.txt").unlink()
    assert main(evaluating(1)) == EXIT_USER
    assert "eval-set-missing" in capsys.readouterr().err
    shutil.rmtree(place / "my_sets")
    shutil.copytree(place / "whole", place / "my_sets")
    write_tar(folder / "test" / "0.tar", [("s0.png", encode_png((9, 9, 9), (32, 32))), ("s0.cls", b"1")])
    assert main(evaluating(1)) == EXIT_USER
    said = capsys.readouterr().err
    assert "eval-set-size" in said and "1 images instead of 6" in said


def test_a_kind_that_lacks_something_says_so_when_its_file_is_loaded(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    path = tmp_path / "lacking.py"
    for gone, told in (
        ("    set_files = (CLASSNAMES, TEMPLATES)\n", "set_files"),
        ('    def known_main_metrics(self):\n        return ["jaccard"]\n', "known_main_metrics"),
    ):
        assert gone in code
        path.write_text(code.replace(gone, ""))
        with user_error("bad-code", match=told):
            load_tasks([path])


@dataclass(frozen=True, kw_only=True)
class _Bare(Task):
    """A kind without a word on how surely its score is known."""

    main_metric: str = "score"
    kind = "bare"
    schema = pa.schema([("key", pa.string()), ("score", pa.float32())])
    set_files = ()

    def predict(self, eval_set, encoder):  # type: ignore[no-untyped-def]
        raise NotImplementedError

    def metrics(self, predictions: pa.Table) -> TaskMetrics:
        return TaskMetrics({"score": 0.5, "num_samples": predictions.num_rows}, {"score": 0.0})

    def known_main_metrics(self) -> list[str]:
        return ["score"]


def test_a_score_of_which_no_error_is_known_is_refused_before_anything_is_encoded() -> None:
    with user_error("task-invalid", match="'score'"):
        check_main_metric(_Bare(name="toy/bare", title="Bare"))


def test_a_task_of_any_kind_may_have_no_score() -> None:
    table = pa.table({"key": ["a", "b"], "score": [0.1, 0.2]}, schema=_Bare.schema)
    task = _Bare(name="toy/bare", title="Bare", main_metric="")
    check_main_metric(task)
    found = metrics_of(task, table)
    assert found["score"] == 0.5 and found["main_metric"] is None and found["chance"] is None


def test_tables_of_a_new_kind_are_checked_by_what_it_declares() -> None:
    task = _Bare(name="toy/bare", title="Bare", main_metric="")
    for columns in ({"key": ["a", "a"], "score": [0.1, 0.2]}, {"key": ["a", "b"], "score": [0.1, float("nan")]}):
        with user_error("results-invalid"):
            metrics_of(task, pa.table(columns, schema=_Bare.schema))


@dataclass(frozen=True, kw_only=True)
class _Own(_Bare):
    """A kind whose set has a list and a label that no shipped kind has."""

    kind = "own"
    set_files = ("boxes.json",)
    label_extensions = ("json",)


def test_the_files_of_a_new_kind_are_needed_hashed_and_read(tmp_path: Path) -> None:
    task = _Own(name="toy/own", title="Own")
    folder = tmp_path / task.folder_name
    write_tar(folder / "test" / "0.tar", [("a.png", b"picture"), ("a.json", b"[3]"), ("a.txt", b"left out")])
    (folder / "test" / "nshards.txt").write_text("1\n")
    with user_error("eval-set-missing", match=r"boxes\.json"):
        check_eval_sets([task], {task.name: folder}, tmp_path)
    hashes = set()
    for text in ("{}", "[]"):
        (folder / "boxes.json").write_text(text)
        hashes.add(hash_eval_set(task, folder))
    assert len(hashes) == 2
    check_eval_sets([task], {task.name: folder}, tmp_path)
    (sample,) = read_eval_set(task, folder).samples
    assert sample.labels == {"json": b"[3]"}


def test_every_shipped_kind_says_what_stands_in_its_predictions() -> None:
    kinds = {type(task) for task in load_tasks().values()}
    assert len(kinds) == 5
    for kind in kinds:
        text = " ".join(str(each.__doc__) for each in kind.__mro__[:2])
        assert all(re.search(rf"\b{name}\b", text) for name in kind.schema.names), kind
        assert {*kind.row_order, *kind.answer_columns, *kind.nullable} <= {*kind.schema.names}
    assert ZeroShotClassification.kind == "classification"
