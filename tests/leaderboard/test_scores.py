"""Scores from wherever they lie, the table that closes an evaluation, and learning curves."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from benchmark.cli.main import main
from benchmark.evaluation.estimators import wilson
from benchmark.evaluation.kinds.classification import CLASSIFICATION_SCHEMA
from benchmark.evaluation.kinds.faces import FACE_SCHEMA
from benchmark.evaluation.results import predictions_path, result_path, write_lines, write_result
from benchmark.evaluation.tasks import FaceAttributes, GroupedClassification, Suite, Task, ZeroShotClassification
from benchmark.evaluation.uncertainty import difference
from benchmark.experiment.entry import finished_seeds
from benchmark.registry import SUITES, TASKS
from benchmark.runtime.records import Record, read_record, write_record
from benchmark.runtime.text_tables import score, signed
from benchmark.scales import SCALES
from benchmark.training.train import CHECKPOINT_RECORD_NAME as TRAINED_NAME
from leaderboard.board import read_board, read_entries
from leaderboard.curve import curve_frame, plot_curve, render_curve
from leaderboard.entries import Entry, PoolUsed, SubsetUsed, SuiteName, read_entry, write_entry
from leaderboard.score_folders import TRAINED_PATH, read_over_seeds
from leaderboard.score_rows import ScoreEstimate
from leaderboard.score_sets import SampleCounts, ScoreSet, TaskCost
from leaderboard.score_table import make_evaluation, render_evaluation
from leaderboard.scores import best_suite, read_scores, suite_named
from tests.conftest import user_error
from tests.leaderboard.test_leaderboard import least_squares

ANIMALS = ZeroShotClassification(name="toy/animals", title="Animals", groups=("plain",), size=100)
PLANTS = ZeroShotClassification(name="toy/plants", title="Plants", groups=("plain",), num_classes=5)
STREETS = GroupedClassification(name="toy/streets", title="Streets", groups=("worst_group",))
FACES = FaceAttributes(name="toy/faces", title="Faces")
TOY_TASKS = (ANIMALS, PLANTS, STREETS)
SUITE = Suite(
    name="toy",
    version=3,
    tasks=tuple(task.name for task in TOY_TASKS),
    unscored=("toy/faces",),
    informative={"small": ("toy/animals", "toy/plants")},
)


@pytest.fixture(autouse=True)
def toy_suite(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for task in (*TOY_TASKS, FACES):
        monkeypatch.setitem(TASKS, task.name, task)
    monkeypatch.setitem(SUITES, "toy", SUITE)
    monkeypatch.setitem(SUITES, "toy-one", Suite(name="toy-one", version=1, tasks=("toy/animals",)))
    yield


def predictions(task: Task, hits: int, *, first: int = 0, count: int = 100) -> pa.Table:
    """Return predictions of which `hits` are right, from row `first` on; every other row is of group 0, then 1."""
    rows = np.arange(count)
    labels = rows % 5
    chosen = np.where((rows >= first) & (rows < first + hits), labels, (labels + 1) % 5)
    columns = {
        "key": [f"{row:04d}" for row in rows],
        "label": labels.astype(np.int32),
        "prediction": chosen.astype(np.int32),
        "score": np.zeros(count, np.float32),
        "top5": pa.array(list(((chosen[:, None] + np.arange(5)) % 5).astype(np.int32)), pa.list_(pa.int32())),
        "group": pa.array((rows % 2).astype(np.int32)) if task is STREETS else pa.nulls(count, pa.int32()),
        "num_classes": np.full(count, 5, np.int32),
    }
    return pa.table(columns, schema=CLASSIFICATION_SCHEMA)


def evaluated(
    folder: Path,
    hits: Mapping[Task, int],
    *,
    first: int = 0,
    model: str = "m0",
    version: int = 1,
    count: int = 100,
    data: str = "",
) -> Path:
    for task, number in hits.items():
        inputs = {"task": task.name, "task_version": version, "data": data or task.name, "checkpoint": model}
        write_result(folder, task, inputs, predictions(task, number, first=first, count=count))
    return folder


def lines_file(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines))
    return path


def line(key: str, score: object, **metrics: object) -> str:
    return json.dumps({"key": key, "dataset": key, "metrics": {**metrics, "main_metric": score}})


ALL = {ANIMALS: 60, PLANTS: 50, STREETS: 40}
ALL_NAMES = frozenset(task.name for task in ALL)


# --- Where scores lie ------------------------------------------------------------------------------------------------


def test_a_folder_of_results_is_read(tmp_path: Path) -> None:
    folder = evaluated(tmp_path / "mine", ALL)
    found = read_scores(str(folder))
    assert found.name == "mine"
    assert found.scores == {"toy/animals": 0.6, "toy/plants": 0.5, "toy/streets": 0.4}
    assert found.chance["toy/animals"] == 0.2
    assert found.errors["toy/animals"] == pytest.approx(math.sqrt(0.6 * 0.4 / 100))
    assert found.predictions["toy/plants"] == (folder,)
    assert not found.seeds and not found.odd_sizes and not found.unknown


def test_records_of_before_errors_were_kept_get_them_from_their_predictions(tmp_path: Path) -> None:
    evaluated(tmp_path, ALL)
    path = result_path(tmp_path, ANIMALS)
    record = read_record(path)
    assert record is not None
    for name in ("standard_error", "interval_low", "interval_high"):
        del record.result["metrics"][name]
    write_record(path, record)
    assert read_scores(str(tmp_path)).errors["toy/animals"] == pytest.approx(math.sqrt(0.6 * 0.4 / 100))


def test_predictions_that_are_not_those_of_their_record_are_refused(tmp_path: Path) -> None:
    ours, other = evaluated(tmp_path / "ours", ALL), evaluated(tmp_path / "other", {ANIMALS: 61})
    predictions_path(ours, ANIMALS).write_bytes(predictions_path(other, ANIMALS).read_bytes())
    with user_error("file-changed", match=r"toy-animals\.parquet"):
        read_scores(str(ours))


def test_an_experiment_is_the_mean_over_its_seeds(tmp_path: Path) -> None:
    evaluated(tmp_path / "seed-0", ALL, model="m0")
    evaluated(tmp_path / "seed-1", {ANIMALS: 40, PLANTS: 50, STREETS: 40}, first=60, model="m1")
    (tmp_path / "seed-2" / "checkpoint").mkdir(parents=True)  # in training
    found = read_scores(str(tmp_path))
    assert list(found.seeds) == [0, 1]
    assert found.scores["toy/animals"] == pytest.approx(0.5)
    # One of the two is right on each sample, so that their mean is 1/2 whichever samples are drawn.
    assert found.errors["toy/animals"] == pytest.approx(0)
    assert found.predictions["toy/animals"] == (tmp_path / "seed-0", tmp_path / "seed-1")


def test_seeds_on_different_data_are_not_joined(tmp_path: Path) -> None:
    evaluated(tmp_path / "seed-0", {ANIMALS: 60})
    evaluated(tmp_path / "seed-1", {ANIMALS: 60}, data="other templates")
    with user_error("seeds-differ", match="0 and 1.*toy/animals"):
        read_scores(str(tmp_path))


def test_a_change_over_other_data_is_said_to_be_one(tmp_path: Path) -> None:
    ours = read_scores(str(evaluated(tmp_path / "ours", {ANIMALS: 60, PLANTS: 50})))
    evaluated(tmp_path / "theirs", {ANIMALS: 50}, data="other templates")
    theirs = read_scores(str(evaluated(tmp_path / "theirs", {PLANTS: 40})))
    text = " ".join(render_evaluation(ours, SUITE, theirs).split())
    assert "Not evaluated on the same files as theirs: Animals. Other images" in text


def test_folders_of_several_seeds_are_joined_under_a_name(tmp_path: Path) -> None:
    folders = {seed: evaluated(tmp_path / f"at-{seed}", {ANIMALS: hits}) for seed, hits in ((1, 60), (0, 40))}
    found = read_over_seeds("step 8", folders)
    assert (found.name, list(found.seeds), found.scores) == ("step 8", [0, 1], {"toy/animals": 0.5})


def test_a_task_that_a_seed_lacks_has_no_mean_and_is_told(tmp_path: Path) -> None:
    evaluated(tmp_path / "seed-0", ALL)
    evaluated(tmp_path / "seed-1", {ANIMALS: 40, PLANTS: 50})
    found = read_scores(str(tmp_path))
    assert set(found.scores) == {"toy/animals", "toy/plants"}
    assert found.notes == ("Seed 1 has no score of toy/streets: there is no mean over seeds of these.",)


def test_seeds_tested_on_other_samples_are_refused(tmp_path: Path) -> None:
    evaluated(tmp_path / "seed-0", {ANIMALS: 60})
    evaluated(tmp_path / "seed-1", {ANIMALS: 60}, count=90)
    with user_error("seeds-differ", match="'toy/animals'"):
        read_scores(str(tmp_path))


def test_a_seeds_folder_is_called_by_its_experiment_and_finds_its_costs_there(tmp_path: Path) -> None:
    folder = evaluated(tmp_path / "clip" / "seed-1", ALL)
    costs = [
        {"stage": "evaluate_task", "task": "toy/animals", "images": 100, "seconds": 9.0, "seed": 0},
        {"stage": "evaluate_task", "task": "toy/animals", "images": 100, "seconds": 2.0, "seed": 1},
        {"stage": "evaluate_task", "task": "toy/animals", "images": 100, "seconds": 4.0, "seed": 1},
        {"stage": "train", "seconds": 50.0, "seed": 1},
    ]
    cut = '{"stage": "evaluate_ta'
    lines_file(tmp_path / "clip" / "costs.jsonl", *(json.dumps(cost) for cost in costs), cut)
    found = read_scores(str(folder))
    assert found.name == "clip/seed-1"
    assert found.costs == {"toy/animals": TaskCost(4.0, 100)}


def test_our_lines_say_what_our_records_say(tmp_path: Path) -> None:
    folder = evaluated(tmp_path / "mine", ALL)
    write_lines(folder)
    of_records, of_lines = read_scores(str(folder)), read_scores(str(folder / "eval_results.jsonl"))
    assert of_lines == replace(of_records, predictions={}, data={}, scores=of_lines.scores)
    assert of_lines.scores == of_records.scores


def test_datacomps_lines_are_read_with_nan_and_without_chance(tmp_path: Path) -> None:
    (tmp_path / "dc").mkdir()
    lines_file(
        tmp_path / "dc" / "eval_results.jsonl",
        '{"key": "toy/plants", "dataset": "Plants", "metrics": {"acc1": 0.5, "acc5": NaN, "main_metric": 0.5}}',
        line("toy/faces", None, acc=0.1),
        '{"key": "toy/streets", "dataset": "Streets", "metrics": {"main_metric": NaN}}',
        line("toy/unheard", 0.25),
    )
    found = read_scores(str(tmp_path / "dc"))
    assert found.name == "dc"
    assert found.scores == {"toy/plants": 0.5, "toy/unheard": 0.25}
    assert found.chance == {"toy/plants": 0.2}  # of the number of classes; of the others it is not known
    assert found.unscored == ("toy/faces", "toy/streets")
    assert found.unknown == ("toy/unheard",)
    assert "dc has results that no task here is called by: toy/unheard." in render_evaluation(found, SUITE)


def test_a_repeated_line_may_not_say_something_else(tmp_path: Path) -> None:
    nan = '{"key": "toy/plants", "dataset": "Plants", "metrics": {"acc5": NaN, "main_metric": 0.5}}'
    same = lines_file(tmp_path / "same.jsonl", nan, nan)
    assert read_scores(str(same)).scores == {"toy/plants": 0.5}
    other = lines_file(tmp_path / "other.jsonl", nan, line("toy/animals", 0.1), nan.replace("0.5", "0.6"))
    with user_error("results-invalid", match=r"other\.jsonl: line 3.*'toy/plants'"):
        read_scores(str(other))


@pytest.mark.parametrize(
    ("text", "code", "value"),
    [
        ('{"key": "toy/plants"', "results-invalid", "line 1 "),
        ('{"key": "toy/plants"}', "results-invalid", "line 1 "),
        ("[1]", "results-invalid", "line 1 "),
        (
            line("toy/animals", 0.5) + '\n{"key": "toy/plants", "dataset": "Plants", "metrics": {"acc1": 0.5}}',
            "results-invalid",
            r"lines\.jsonl: line 2, .*'toy/plants'.*main_metric",
        ),
        ("", "results-missing", r"lines\.jsonl"),
        (line("toy/plants", 79.2), "results-invalid", r"79\.2"),
        (line("toy/plants", "high"), "results-invalid", "'high'"),
    ],
)
def test_lines_that_are_none_are_named(tmp_path: Path, text: str, code: str, value: str) -> None:
    with user_error(code, match=value):
        read_scores(str(lines_file(tmp_path / "lines.jsonl", text)))


def test_a_released_checkpoint_goes_by_its_name() -> None:
    found = read_scores("datacomp_m_s128m_b4k")
    assert found.name == "ViT-B-32/datacomp_m_s128m_b4k"
    assert len(found.scores) == 38
    assert found.errors["imagenet1k"] == pytest.approx((0.297 * 0.703 / 50_000) ** 0.5, rel=1e-2)
    assert "wilds/fmow" not in found.errors and "vtab/pets" not in found.errors  # not accuracies over all images
    assert found.scores["imagenet1k"] == pytest.approx(0.297, abs=5e-4)
    assert found.chance["imagenet1k"] == 0.001
    assert "wilds/fmow" in found.chance_bounds and "imagenet1k" not in found.chance_bounds
    text = render_evaluation(found, best_suite(found))
    assert (
        "suite datacomp" in text
        and "upper bound stands for the chance of\niWildCam, FMoW, Dollar Street and Geo" in text
    )


def test_a_fault_of_a_released_checkpoints_scores_is_told() -> None:
    assert "repeats the scores of datacomp_s" in read_scores("commonpool_s_image_s13m_b4k").notes[0]


def test_what_is_nowhere_is_told_with_the_nearest_names(tmp_path: Path) -> None:
    evaluated(tmp_path / "mine", ALL)
    with user_error("scores-not-found", match="'mine'"):
        read_scores(str(tmp_path / "minne"))
    with user_error("scores-not-found", match="'datacomp_m_s128m_b4k'"):
        read_scores("datacomp_m_s128_b4k")


def test_a_folder_without_results_says_what_is_looked_for(tmp_path: Path) -> None:
    with user_error("results-missing", match=r"eval/\*\.json"):
        read_scores(str(tmp_path))


def test_results_of_another_version_or_of_two_models_are_refused(tmp_path: Path) -> None:
    evaluated(tmp_path / "old", {ANIMALS: 60}, version=7)
    with user_error("results-differ", match="toy/animals: 7 there, 1 now"):
        read_scores(str(tmp_path / "old"))
    evaluated(tmp_path / "two", {ANIMALS: 60})
    evaluated(tmp_path / "two", {PLANTS: 60}, model="m1")
    with user_error("results-differ", match=r"'toy/animals' and \['toy/plants'\]"):
        read_scores(str(tmp_path / "two"))


def test_another_number_of_samples_than_known_is_marked(tmp_path: Path) -> None:
    found = read_scores(str(evaluated(tmp_path, ALL, count=90)))
    assert found.odd_sizes == {"toy/animals": SampleCounts(90, 100)}  # of the others no size is known
    text = render_evaluation(found, SUITE, with_tasks=True)
    assert "Animals* " in text and "plain* " in text and "average* " in text and "worst group " in text
    table = pd.read_csv(io.StringIO(render_evaluation(found, SUITE, style="csv", with_tasks=True)), index_col="name")
    assert table["whole"][["toy/animals", "plain", "average"]].tolist() == [False] * 3
    assert table["whole"][["toy/plants", "worst_group"]].tolist() == [True] * 2
    assert "* Not the number of samples that the task is known to have: Animals 90 of 100." in text


def test_the_suite_is_the_one_with_most_of_the_tasks_and_then_the_smallest() -> None:
    assert best_suite(ScoreSet("a", {"toy/animals": 0.5, "toy/plants": 0.5})).name == "toy"
    assert best_suite(ScoreSet("a", {"toy/animals": 0.5})).name == "toy-one"
    with user_error("unknown-suite", match="--plugins FILE"):
        best_suite(ScoreSet("a", {"unheard": 0.5}))
    with user_error("unknown-suite", match="'toy'.*--plugins FILE"):
        suite_named("toyy")


# --- The table -------------------------------------------------------------------------------------------------------


def made(name: str, animals: float, plants: float, streets: float, error: float | None = 0.03) -> ScoreSet:
    found = {"toy/animals": animals, "toy/plants": plants, "toy/streets": streets}
    chance = dict.fromkeys(found, 0.2)
    return ScoreSet(name, found, chance, {} if error is None else dict.fromkeys(found, error))


def test_the_table_reads_well(tmp_path: Path) -> None:
    ours = read_scores(str(evaluated(tmp_path / "ours", {ANIMALS: 80, PLANTS: 50, STREETS: 40})))
    theirs = read_scores(str(evaluated(tmp_path / "theirs", {ANIMALS: 60, PLANTS: 55, STREETS: 40})))
    ours = replace(ours, costs={"toy/animals": TaskCost(4.0, 100), "toy/plants": TaskCost(2000.0, 100)})
    assert render_evaluation(ours, SUITE, theirs) == (
        """\
ours against theirs: suite toy, version 3

group                 tasks  score ± error  reference         change [95 %]
---------------------------------------------------------------------------
plain                     2    .650 ± .032       .575  +.075 [+.030, +.120]
worst group               1    .400 ± .058       .400  +.000 [+.000, +.000]
average                   3    .567 ± .029       .517  +.050 [+.020, +.080]
chance-normalised         3    .468 ± .035       .405  +.062 [+.025, +.100]
informative at small      2    .650 ± .032       .575  +.075 [+.030, +.120]

largest parts of  score ± error  reference         change [95 %]  of the average
the change +.050
--------------------------------------------------------------------------------
Animals             .800 ± .040       .600  +.200 [+.122, +.278]           +.067

The average is +.050 from theirs: more than the choice of test samples explains; another training
seed may move it as much or more. Most against it: Plants -.050 [-.093, -.007].
Compared: 3 tasks sample by sample.
± is the standard error, [ ] the 95 % interval, of one training seed over the choice of test samples
alone; it says nothing about another training seed.
average is the mean over all 3 tasks; chance-normalised the mean over the same of (score - chance) /
(1 - chance): 0 is guessing, 1 is perfect; informative at a scale the mean over the tasks, fixed
beforehand, that tell its runs apart.
Slowest: Plants 2,000 s, 0 images/s; Animals 4.0 s, 25 images/s. 2 tasks took 2,004 s.
"""
    )


def test_errors_of_a_mean_add_in_squares_and_changes_are_paired(tmp_path: Path) -> None:
    ours = read_scores(str(evaluated(tmp_path / "ours", ALL)))
    theirs = read_scores(str(evaluated(tmp_path / "theirs", {ANIMALS: 50, PLANTS: 45, STREETS: 30}, first=5)))
    found = make_evaluation(ours, SUITE, theirs)
    rows = {row.name: row for row in found.rows}
    paired = [
        difference(task, predictions(task, ALL[task]), predictions(task, hits, first=5)).standard_error
        for task, hits in ((ANIMALS, 50), (PLANTS, 45))
    ]
    assert rows["plain"].change is not None and rows["plain"].score is not None
    assert rows["plain"].score == ScoreEstimate(
        pytest.approx(0.55), pytest.approx(math.hypot(math.sqrt(0.24 / 100), math.sqrt(0.25 / 100)) / 2)
    )
    assert rows["plain"].change.value == pytest.approx(0.075)
    assert rows["plain"].change.error == pytest.approx(math.hypot(*paired) / 2)


def test_without_predictions_changes_go_by_standard_errors() -> None:
    found = make_evaluation(made("a", 0.5, 0.6, 0.7), SUITE, made("b", 0.5, 0.5, 0.5, error=0.04))
    assert found.average.change is not None
    assert found.average.change.error == pytest.approx(0.05 * math.sqrt(3) / 3)
    assert any("3 tasks by both standard errors" in sentence for sentence in found.sentences)
    assert [row.task.title for row in found.carriers] == ["Streets", "Plants"]


def test_other_samples_under_one_task_are_compared_by_standard_errors(tmp_path: Path) -> None:
    ours = read_scores(str(evaluated(tmp_path / "ours", ALL)))
    theirs = read_scores(str(evaluated(tmp_path / "theirs", ALL, count=90)))
    found = make_evaluation(ours, SUITE, theirs)
    assert {row.compared for row in found.tasks} == {"errors"}
    change = found.tasks[0].change
    assert change is not None
    assert change.error == pytest.approx(math.hypot(ours.errors["toy/animals"], theirs.errors["toy/animals"]))


def test_without_standard_errors_a_change_has_no_interval_and_that_is_said() -> None:
    text = render_evaluation(made("a", 0.5, 0.6, 0.7), SUITE, made("b", 0.5, 0.5, 0.5, error=None))
    assert "3 tasks without an interval, as a standard error is missing" in text
    assert "whether that is more than the choice of test samples is not known" in text
    assert "[+" not in text and "+.100" in text


def test_damaged_predictions_are_an_error_and_no_other_way_of_comparing(tmp_path: Path) -> None:
    ours = read_scores(str(evaluated(tmp_path / "ours", ALL)))
    theirs = read_scores(str(evaluated(tmp_path / "theirs", ALL)))
    path = tmp_path / "theirs" / "eval" / "toy-plants.parquet"
    path.write_bytes(path.read_bytes()[:50])
    with user_error("file-damaged", match=r"toy-plants\.parquet"):
        make_evaluation(ours, SUITE, theirs)


def test_a_missing_task_leaves_averages_out_and_is_listed(tmp_path: Path) -> None:
    ours = read_scores(str(evaluated(tmp_path, {ANIMALS: 60, STREETS: 40})))
    found = make_evaluation(ours, SUITE)
    values = {row.name: row.score for row in found.rows}
    assert values["average"] is values["plain"] is values["chance-normalised"] is values["informative at small"] is None
    assert values["worst_group"] is not None and values["worst_group"].value == 0.4
    text = render_evaluation(ours, SUITE)
    assert "1 of 3 tasks has no score of" in text and "toy/plants" in text
    assert "1 of 2" in text and "Animals" in text  # what is there is shown


def test_the_halves_of_a_suite_are_averaged_apart() -> None:
    halves = replace(SUITE, reporting=("toy/plants", "toy/streets"), informative={})
    rows = {row.name: row.score for row in make_evaluation(made("a", 0.4, 0.6, 0.7), halves).rows}
    assert {name: round(row.value, 6) for name, row in rows.items() if row} == {
        "plain": 0.5,
        "worst_group": 0.7,
        "average": 0.65,
        "dev": 0.4,
        "chance-normalised": pytest.approx((0.5 + 0.625) / 2, abs=1e-6),
    }


def test_chance_that_one_side_does_not_know_is_taken_from_the_other() -> None:
    released = replace(made("b", 0.5, 0.5, 0.5, error=None), chance={})
    found = {row.name: row for row in make_evaluation(made("a", 0.5, 0.6, 0.7), SUITE, released).rows}
    assert found["chance-normalised"].reference == pytest.approx(0.375)
    alone = {row.name: row for row in make_evaluation(released, SUITE).rows}
    assert alone["chance-normalised"].score is None
    assert "Chance is not known, or 1, of Animals, Plants and Streets" in render_evaluation(released, SUITE)


def test_chance_computed_from_labels_goes_before_an_upper_bound() -> None:
    bounded = replace(made("b", 0.5, 0.5, 0.5), chance=dict.fromkeys(ALL_NAMES, 0.25), chance_bounds=ALL_NAMES)
    for ours, theirs in ((made("a", 0.5, 0.6, 0.7), bounded), (bounded, made("a", 0.5, 0.6, 0.7))):
        found = make_evaluation(ours, SUITE, theirs)
        assert {row.chance for row in found.tasks} == {0.2}
        assert not any("upper bound" in sentence for sentence in found.sentences)


def test_a_task_in_which_guessing_is_perfect_has_no_place_on_the_scale_from_chance() -> None:
    ours = made("a", 0.5, 0.6, 1.0)
    ours = replace(ours, chance={**ours.chance, "toy/streets": 1.0})
    rows = {row.name: row for row in make_evaluation(ours, SUITE).rows}
    assert rows["chance-normalised"].score is None
    average = rows["average"].score
    assert average is not None and average.value == pytest.approx(0.7)
    assert "Chance is not known, or 1, of Streets" in " ".join(render_evaluation(ours, SUITE, with_tasks=True).split())


def test_a_curve_says_which_tasks_were_not_whole(tmp_path: Path) -> None:
    points = [(step, read_scores(str(evaluated(tmp_path / str(step), ALL, count=90)))) for step in (8, 16)]
    text = " ".join(render_curve(points, SUITE).split())
    assert "Not evaluated on all samples or classes that the task is known to have: toy/animals." in text


def test_another_number_of_classes_than_known_is_marked_wherever_it_is_read(tmp_path: Path) -> None:
    wide = replace(PLANTS, num_classes=7)  # its predictions are of 5 classes
    inputs = {"task": wide.name, "task_version": 1, "data": "d", "checkpoint": "m0"}
    write_result(tmp_path, wide, inputs, predictions(wide, 50), is_whole=False)
    write_lines(tmp_path)
    for place in (tmp_path, tmp_path / "eval_results.jsonl"):
        found = read_scores(str(place))
        assert (found.odd_sizes, found.odd_classes) == ({}, {"toy/plants": 7})
        text = render_evaluation(found, SUITE, with_tasks=True)
        assert "Plants* " in text
        assert "* Not the number of classes that the task is known to have: Plants has 7." in text
    assert read_over_seeds("both", {0: tmp_path, 1: tmp_path}).odd_classes == {"toy/plants": 7}


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_seed_evaluated_on_part_of_a_set_is_in_no_entry(
    tmp_path: Path, is_whole: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    scale = replace(SCALES["pico"], suite="toy-one")
    trained = Record("train", 1, {"recipe": {"hash": scale.hash}, "seed": 3}, {"weights": "m0"})
    write_record(tmp_path / "seed-3" / "checkpoint" / TRAINED_NAME, trained)
    inputs = {"task": ANIMALS.name, "task_version": 1, "data": "d", "checkpoint": "m0"}
    table = predictions(ANIMALS, 60, count=100 if is_whole else 90)
    write_result(tmp_path / "seed-3", ANIMALS, inputs, table, is_whole=is_whole)
    assert [each.seed for each in finished_seeds(tmp_path, scale)] == ([3] if is_whole else [])
    assert ("strict=false" in capsys.readouterr().err) == (not is_whole)


def test_with_seeds_on_both_sides_the_table_says_what_they_allow() -> None:
    def over_seeds(name: str, averages: list[float]) -> ScoreSet:
        seeds = {seed: made(f"{name}/{seed}", value, value, value) for seed, value in enumerate(averages)}
        mean = sum(averages) / len(averages)
        return replace(made(name, mean, mean, mean), seeds=seeds)

    text = " ".join(
        render_evaluation(over_seeds("a", [0.5, 0.54, 0.58]), SUITE, over_seeds("b", [0.4, 0.42, 0.47])).split()
    )
    # Differences .10, .12 and .11: mean .11, standard error .01 / sqrt(3), t(2, .975) = 4.303.
    assert (
        "(3 seeds against 3) the change of the average is +.110 [+.085, +.135] (95 %), by the noise of these two runs' "
        "own seeds alone (2 degrees of freedom), as no record says by what recipe and on what pool all seeds of a were "
        "trained."
    ) in text
    assert "of the mean over these 3 training seeds" in text
    assert "more than the choice of test samples explains, and more than training seeds do." in text
    unsure = render_evaluation(over_seeds("a", [0.5, 0.54, 0.78]), SUITE, over_seeds("b", [0.5, 0.42, 0.40]))
    assert "test samples explains, but no more than another training seed may." in " ".join(unsure.split())
    few = " ".join(render_evaluation(over_seeds("a", [0.5, 0.54]), SUITE, over_seeds("b", [0.4])).split())
    assert "(2 seeds against 1) no interval of the change is known:" in few and "over seeds" not in few


def test_no_line_of_the_text_is_longer_than_100() -> None:
    ours, theirs = made("a" * 40, 0.51, 0.61, 0.71), made("b" * 60, 0.5, 0.5, 0.5)
    ours = replace(ours, odd_sizes={"toy/animals": SampleCounts(90_000, 100_000)}, notes=("word " * 50,))
    for text in (
        render_evaluation(ours, SUITE, theirs, with_tasks=True),
        render_curve([(1_000_000, theirs), (12_800_000, ours)], SUITE),
    ):
        assert max(map(len, text.splitlines())) <= 100


def test_markdown_and_csv_say_the_same(tmp_path: Path) -> None:
    ours, theirs = made("a", 0.5, 0.6, 0.7), made("b", 0.5, 0.5, 0.5)
    markdown = render_evaluation(ours, SUITE, theirs, "markdown")
    assert markdown.startswith("## a against b: suite toy, version 3\n")
    assert "| plain | 2 | .550 ± .021 | .500 | +.050 [-.009, +.109] |" in markdown
    (tmp_path / "table.csv").write_text(render_evaluation(ours, SUITE, theirs, "csv", with_tasks=True))
    frame = pd.read_csv(tmp_path / "table.csv").set_index("name")
    assert frame.loc["average", "change"] == pytest.approx(0.1)
    assert frame.loc["toy/streets", "from_chance"] == pytest.approx(0.625)
    assert frame.loc["toy/streets", "change_low"] == pytest.approx(0.2 - 1.959964 * 0.03 * math.sqrt(2), abs=1e-6)


def test_the_command_compares_what_it_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluated(tmp_path / "x" / "seed-0", ALL)
    evaluated(tmp_path / "y" / "seed-0", {ANIMALS: 50, PLANTS: 45, STREETS: 30})
    assert main(["leaderboard", "compare", str(tmp_path / "x"), str(tmp_path / "y"), "--tasks"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("x against y: suite toy, version 3\n") and "Streets " in text
    assert main(["leaderboard", "compare", str(tmp_path / "x"), "--suite", "toy-one", "--format", "csv"]) == 0
    assert capsys.readouterr().out.startswith("kind,name,tasks,scored,whole,score,")
    assert main(["leaderboard", "compare", str(tmp_path / "x"), str(tmp_path / "z")]) == 2
    assert capsys.readouterr().err.startswith(f"winnow: '{tmp_path / 'z'}' is neither a folder nor a file.")


def test_numbers_are_spelt_alike_below_zero_too() -> None:
    values = [-0.0026, -0.0004, 0.0, 0.0004, 0.079, -0.5, 1.0, -1.0]
    assert [score(value) for value in values] == ["-.003", ".000", ".000", ".000", ".079", "-.500", "1.000", "-1.000"]
    assert [signed(value) for value in values[:5]] == ["-.003", "+.000", "+.000", "+.000", "+.079"]
    ours = made("a", 0.1976, 0.1976, 0.1997)  # of which guessing gets .2
    text = render_evaluation(ours, SUITE, with_tasks=True)
    assert "chance-normalised 3 -.002 ± " in " ".join(text.split()) and "-0" not in text
    assert "Streets .200 ± .030 .200 0 %" in " ".join(text.split())


def test_no_hit_and_nothing_but_hits_are_no_certainty(tmp_path: Path) -> None:
    folder = evaluated(tmp_path / "mine", {ANIMALS: 0, PLANTS: 40, STREETS: 20}, count=40)
    write_lines(folder)
    high = wilson(0, 40)[1]
    for place in (folder, folder / "eval_results.jsonl"):
        found = read_scores(str(place))
        assert found.intervals["toy/animals"] == pytest.approx((0, high))
        lines = render_evaluation(found, SUITE, with_tasks=True).splitlines()
        rows = {row.split()[0]: row for row in lines if row.startswith(("Animals", "Plants", "Streets"))}
        assert " .000 (to .088) " in rows["Animals*"] and "±" not in rows["Animals*"]
        assert "1.000 (from .912) " in rows["Plants"]
        points = {
            row.index(number) + len(number)
            for row, number in zip(rows.values(), (" .000 ", "1.000 ", ".500 "), strict=True)
        }
        assert len(points) == 1  # their numbers stand under each other
        assert "worst group 1 .500 ± .0" in " ".join(" ".join(lines).split())
    evaluated(tmp_path / "seed-0", {ANIMALS: 0})
    evaluated(tmp_path / "seed-1", {ANIMALS: 0})
    over_seeds = render_evaluation(read_scores(str(tmp_path)), SUITES["toy-one"])
    assert f".000 (to .0{1000 * wilson(0, 100)[1]:.0f})" in over_seeds


def test_tasks_without_a_score_are_named_with_the_place_of_their_metrics(tmp_path: Path) -> None:
    folder = evaluated(tmp_path / "seed-0", ALL)
    assert "Without a score" not in render_evaluation(read_scores(str(folder)), SUITE)
    columns = {name: [0, 1] for name in FACE_SCHEMA.names} | {"key": ["a", "b"]}
    inputs = {"task": FACES.name, "task_version": 1, "data": FACES.name, "checkpoint": "m0"}
    write_result(folder, FACES, inputs, pa.table(columns, schema=FACE_SCHEMA))
    write_lines(folder)
    for place, there in (
        (folder, "eval/toy-faces.json"),
        (folder / "eval_results.jsonl", "eval_results.jsonl"),
        (tmp_path, "seed-0/eval/toy-faces.json"),
    ):
        text = render_evaluation(read_scores(str(place)), SUITE)
        assert f"\nWithout a score: Faces (their metrics: {there}).\n" in text


def test_of_an_evaluation_of_few_tasks_only_what_is_known_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [replace(ANIMALS, name=f"toy/{n}", title=f"Toy {n}", groups=("many",)) for n in range(11)]
    for task in many:
        monkeypatch.setitem(TASKS, task.name, task)
    suite = Suite(name="wide", version=1, tasks=(*SUITE.tasks, *(task.name for task in many)))
    ours = ScoreSet("a", {"toy/streets": 0.4}, {"toy/streets": 0.2})
    text = render_evaluation(ours, suite)
    assert "0 of" not in text and "\nworst group      1   .400\n" in text
    told = " ".join(text.split())
    assert "13 of 14 tasks have no score of a, " in told
    assert "are left out: toy/animals, toy/plants, toy/0, toy/1, toy/2, toy/3 and 7 more." in told
    assert "average is" not in told and "chance-normalised" not in told
    assert "from chance is (score - chance) / (1 - chance): 0 % is guessing, 100 % is perfect." in told
    curve = render_curve([(1_000, ours)], suite)
    assert "plain" not in curve and "many" not in curve and "13 of 14 tasks: toy/animals, " in curve
    whole = render_evaluation(made("a", 0.5, 0.6, 0.7), SUITE, with_tasks=True)
    assert "which is a task's from chance: 0 % is guessing" in " ".join(whole.split())
    one = render_evaluation(made("a", 0.5, 0.6, 0.7), SUITES["toy-one"])
    assert "average is the mean over the 1 task;" in one


def test_what_took_longest_is_said_after_an_evaluation_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = evaluated(tmp_path / "x", ALL)
    cost = {"stage": "evaluate_task", "task": "toy/animals", "images": 100, "seconds": 9.0}
    lines_file(folder / "costs.jsonl", json.dumps(cost))
    assert "Slowest: Animals 9.0 s" in render_evaluation(read_scores(str(folder)), SUITE)
    assert main(["leaderboard", "compare", str(folder)]) == 0
    assert "Slowest" not in capsys.readouterr().out


def test_what_has_nothing_in_common_is_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left, right = (str(evaluated(tmp_path / name, {task: 50})) for name, task in (("x", ANIMALS), ("y", PLANTS)))
    for arguments in ([left, right, "--suite", "toy"], [left, "ViT-B-32/datacomp_m_s128m_b4k"]):
        assert main(["leaderboard", "compare", *arguments]) == 2
        told = capsys.readouterr().err
        assert "have no task of suite toy" in told and "in common to compare" in told and told.count("\n") == 1
    assert main(["leaderboard", "compare", left, "--suite", "datacomp"]) == 2
    assert "x has no result of any task of suite datacomp; name another with --suite" in capsys.readouterr().err


# --- Over training seeds ---------------------------------------------------------------------------------------------

RECIPE, POOL = "c" * 64, "a" * 64


def experiment(
    folder: Path, hits: Mapping[int, int], *, subset: str = "0", pool: str = POOL, recipe: str = RECIPE
) -> Path:
    """Write an experiment of the scale `toy`: of seed s, `hits[s]` hits in one task, 8 s more in the others."""
    for seed, number in hits.items():
        seed_dir = folder / f"seed-{seed}"
        evaluated(seed_dir, {ANIMALS: number, PLANTS: number + 3 * seed, STREETS: number + 8 * seed}, model=f"m{seed}")
        inputs = {
            "recipe": {"scale": "toy", "version": 0, "hash": recipe},
            "pool": {"fingerprint": pool, "content_hash": "b" * 64, "rows": 1000, "present": 900},
            "subset": subset * 64,
            "seed": seed,
        }
        write_record(seed_dir / TRAINED_PATH, Record("train", 1, inputs, {"weights": f"m{seed}"}))
    return folder


def entry_of(folder: Path, name: str, *, pool: str = POOL, recipe: str = RECIPE) -> Entry:
    """Return the entry that the experiment's scores make."""
    found = read_scores(str(folder))
    assert found.training is not None
    return Entry(
        name=name,
        strategy=(),
        reference=False,
        scale="toy",
        recipe=0,
        recipe_hash=recipe,
        suite=SuiteName("halves", 1),
        pool=PoolUsed(fingerprint=pool, content_hash="b" * 64, rows=1000, present=900),
        subset=SubsetUsed(size=300, distinct=300, sha256=found.training.subset),
        seeds={seed: each.scores for seed, each in found.seeds.items()},
        made_with={},
    )


@pytest.fixture
def board_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A board of four entries on three seeds, scored by a suite of two reporting tasks and one for development."""
    names = SUITE.tasks
    monkeypatch.setitem(SUITES, "halves", Suite(name="halves", version=1, tasks=names, reporting=names[1:]))
    folder = tmp_path / "a-board"
    rules = {
        "title": "Toy",
        "scale": "toy",
        "recipe": 0,
        "suite": {"name": "halves", "version": 1},
        "groups": ["plain"],
        "pools": [],
        "min_seeds": 3,
        "note": "Nothing.",
    }
    (folder / "entries").mkdir(parents=True)
    (folder / "board.json").write_text(json.dumps(rules))
    for number, hits in enumerate(([30, 33, 29], [50, 55, 49], [41, 40, 44], [20, 27, 21])):
        made = experiment(tmp_path / "made" / str(number), dict(enumerate(hits)), subset=str(number + 1))
        write_entry(folder / "entries" / f"e{number}.json", entry_of(made, f"e{number}"))
    return folder


def compared(*arguments: object, capsys: pytest.CaptureFixture[str]) -> pd.DataFrame:
    capsys.readouterr()
    assert (
        main(["leaderboard", "compare", *map(str, arguments), "--suite", "halves", "--format", "csv", "--tasks"]) == 0
    )
    return pd.read_csv(io.StringIO(capsys.readouterr().out)).set_index("name")


OVER_SEEDS = ["change_over_seeds", "change_over_seeds_low", "change_over_seeds_high"]
MINUS_ROW = [f"highlighted_minus_row{end}" for end in ("", "_low", "_high")]


@pytest.mark.parametrize(("mine", "theirs"), [((60, 62), (55,)), ((60,), (55,)), ((60, 61, 66), (55, 51, 60))])
def test_the_board_and_compare_give_a_difference_the_same_interval(
    mine: tuple[int, ...],
    theirs: tuple[int, ...],
    tmp_path: Path,
    board_dir: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folders = [
        experiment(tmp_path / name, dict(enumerate(hits)), subset=letter)
        for name, hits, letter in (("mine", mine, "d"), ("theirs", theirs, "e"))
    ]
    paths = [str(folder / "entry.json") for folder in folders]
    for folder, path in zip(folders, paths, strict=True):
        write_entry(Path(path), entry_of(folder, folder.name))
    found = compared(*folders, "--board", board_dir, capsys=capsys)
    arguments = ["--board", str(board_dir), "--format", "csv", "--entry", paths[0], "--entry", paths[1]]
    assert main(["leaderboard", "table", *arguments]) == 0
    row = pd.read_csv(io.StringIO(capsys.readouterr().out)).set_index("name").loc["theirs"]
    assert found.loc["average", OVER_SEEDS].tolist() == pytest.approx(row[MINUS_ROW].tolist(), abs=1e-12)
    of_dev = [f"dev_{name}" for name in MINUS_ROW]
    assert found.loc["dev", OVER_SEEDS].tolist() == pytest.approx(row[of_dev].tolist(), abs=1e-12)
    # The development half is one task here, whose own line says the same.
    assert found.loc["toy/animals", OVER_SEEDS].tolist() == pytest.approx(row[of_dev].tolist(), abs=1e-12)
    assert found.loc[["toy/plants", "toy/streets", "plain"], OVER_SEEDS].notna().all(axis=None)
    # And it is what the regression of all runs gives.
    runs = [entry.averages(SUITES["halves"].headline) for entry in read_entries(read_board(board_dir))]
    runs += [read_entry(Path(path)).averages(SUITES["halves"].headline) for path in paths]
    assert found.loc["average", OVER_SEEDS].tolist() == pytest.approx(least_squares(runs, 4, 5))

    assert main(["leaderboard", "compare", *map(str, folders), "--suite", "halves", "--board", str(board_dir)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"Over training seeds ({len(mine)} seed{'s' * (len(mine) > 1)} against {len(theirs)}) the change of" in text
    assert (
        "by the noise of the 4 entries of board a-board on their recipe and pool and of these two runs, as in" in text
    )
    assert ("as if both were on the same seeds" in text) == (len(mine) != len(theirs))
    assert "change [95 %] change [95 %] by test samples over seeds" in text


def test_a_board_entry_made_again_is_compared_as_its_row(
    tmp_path: Path, board_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = experiment(tmp_path / "mine", {0: 60, 1: 62}, subset="d")
    write_entry(mine / "entry.json", entry_of(mine, "mine"))
    found = compared(mine, tmp_path / "made" / "1", "--board", board_dir, capsys=capsys)
    arguments = ["--board", str(board_dir), "--format", "csv", "--entry", str(mine / "entry.json")]
    assert main(["leaderboard", "table", *arguments]) == 0
    row = pd.read_csv(io.StringIO(capsys.readouterr().out)).set_index("name").loc["e1"]
    assert found.loc["average", OVER_SEEDS].tolist() == pytest.approx(row[MINUS_ROW].tolist(), abs=1e-12)


def test_where_no_board_tells_the_noise_it_is_that_of_the_two_runs_and_is_called_so(
    tmp_path: Path, board_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hits = {0: 60, 1: 62, 2: 57}
    mine = experiment(tmp_path / "mine", hits)

    def told(other: Path, first: Path = mine, *more: str) -> str:
        assert main(["leaderboard", "compare", str(first), str(other), "--suite", "halves", *more]) == 0
        (found,) = re.findall(r"Over training seeds .*?\.(?= |$)(?=.* ±)", " ".join(capsys.readouterr().out.split()))
        return str(found)

    board = ("--board", str(board_dir))
    other_seeds = {0: 55, 1: 52, 2: 58}
    there = experiment(tmp_path / "there", other_seeds, subset="e")
    assert "by the noise of the 4 entries of board a-board" in told(there, mine, *board)
    alone = "(95 %), by the noise of these two runs' own seeds alone (2 degrees of freedom), as "
    assert told(there).endswith(f"{alone}there is no board of scale toy.")
    elsewhere = experiment(tmp_path / "elsewhere", other_seeds, pool="f" * 64)
    assert told(elsewhere, mine, *board).endswith(f"{alone}they were not trained by one recipe on one pool.")
    far = experiment(tmp_path / "far", hits, pool="f" * 64, subset="d")
    assert told(elsewhere, far, *board).endswith(f"{alone}no entry of board a-board has their recipe and pool.")
    unknown = experiment(tmp_path / "unknown", other_seeds)
    (unknown / "seed-1" / TRAINED_PATH).unlink()
    assert told(unknown, mine, *board).endswith("on what pool all seeds of unknown were trained.")
    retrained = experiment(tmp_path / "retrained", other_seeds)
    evaluated(retrained / "seed-1", {ANIMALS: 50, PLANTS: 55, STREETS: 60}, model="before")
    assert told(retrained, mine, *board).endswith("on what pool all seeds of retrained were trained.")
    once = experiment(tmp_path / "once", {0: 55})
    twice = experiment(tmp_path / "twice", {0: 60, 1: 62})
    assert "no interval of the change is known: there is no board of scale toy, and these seeds" in told(once, twice)
    assert compared(twice, once, capsys=capsys)[OVER_SEEDS].isna().all(axis=None)


def test_the_path_of_a_checkpoints_record_is_where_training_puts_it() -> None:
    assert f"checkpoint/{TRAINED_NAME}" == TRAINED_PATH


# --- Learning curves -------------------------------------------------------------------------------------------------


def test_a_learning_curve_goes_by_samples_seen() -> None:
    late, early = made("a", 0.5, 0.6, 0.7), made("a", 0.3, 0.3, 0.3)
    text = render_curve([(2_000, late), (1_000, early)], SUITE)
    lines = text.splitlines()
    assert lines[0] == "a: suite toy, version 3, over samples seen"
    assert lines[5].split() == ["1,000", ".300", "±", ".017", ".300", ".300", ".125", ".300"]
    assert lines[6].split() == ["2,000", ".600", "±", ".017", ".550", ".700", ".500", ".550"]
    assert "From 1,000 to 2,000 samples the average changed by +.300 [+.252, +.348]." in text


def test_every_table_says_what_its_average_is_over() -> None:
    halves = replace(SUITE, reporting=("toy/plants", "toy/streets"), informative={})
    scores = made("a", 0.3, 0.3, 0.3)
    told = "average is the mean over the suite's reporting half (2 tasks), dev the mean over its development half (1)"
    for text in (render_evaluation(scores, halves), render_curve([(1_000, scores)], halves)):
        assert told in " ".join(text.split())
    assert "average is the mean over all 3 tasks." in render_curve([(1_000, scores)], SUITE)


def test_a_learning_curve_names_what_a_checkpoint_lacks() -> None:
    early = made("a", 0.3, 0.3, 0.3)
    del early.scores["toy/plants"]
    text = render_curve([(1_000, early), (2_000, made("a", 0.5, 0.6, 0.7))], SUITE)
    assert "After 1,000 samples there is no score of toy/plants." in text


def test_a_learning_curve_says_where_seeds_are_lacking() -> None:
    one, two = ({seed: made("a", 0.5, 0.5, 0.5) for seed in range(count)} for count in (1, 2))
    points = [
        (1_000, replace(made("a", 0.3, 0.3, 0.3), seeds=one)),
        (2_000, replace(made("a", 0.5, 0.6, 0.7), seeds=two)),
    ]
    assert "After 1,000 samples the seeds are 0 alone." in render_curve(points, SUITE)


def test_a_curves_frame_has_every_group_average_and_task_of_each_checkpoint() -> None:
    frame = curve_frame([(2_000, made("a", 0.5, 0.6, 0.7)), (1_000, made("a", 0.3, 0.3, 0.3))], SUITE)
    of_task = frame[frame["name"] == "toy/streets"]
    assert of_task["samples_seen"].tolist() == [1_000, 2_000] and of_task["score"].tolist() == [0.3, 0.7]
    assert frame[frame["name"] == "average"]["score"].tolist() == pytest.approx([0.3, 0.6])


def test_two_points_of_the_same_samples_are_refused() -> None:
    with user_error("results-differ", match=r"\[1000\]"):
        render_curve([(1_000, made("a", 0.3, 0.3, 0.3)), (1_000, made("a", 0.4, 0.3, 0.3))], SUITE)
    with user_error("results-missing"):
        render_curve([], SUITE)


def test_the_plot_depends_on_its_points_alone(tmp_path: Path) -> None:
    seeds = {seed: made("a", 0.5, 0.6, 0.6 + seed / 10) for seed in range(3)}
    points = [(1_000, made("a", 0.3, 0.3, 0.3)), (2_000, replace(made("a", 0.5, 0.6, 0.7), seeds=seeds))]
    plot_curve(points, SUITE, tmp_path / "one.png")
    plot_curve(points[::-1], SUITE, tmp_path / "two.png")
    plot_curve([points[0], (2_000, made("a", 0.5, 0.6, 0.7))], SUITE, tmp_path / "without_seeds.png")
    one, two, other = ((tmp_path / name).read_bytes() for name in ("one.png", "two.png", "without_seeds.png"))
    assert one[:8] == b"\x89PNG\r\n\x1a\n" and len(one) > 10_000
    assert one == two != other
