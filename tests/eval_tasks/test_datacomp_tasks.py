"""DataComp's 40 tasks, and the released checkpoints' scores on them."""

from __future__ import annotations

import collections
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from benchmark.evaluation.kinds.classification import CLASSIFICATION_SCHEMA
from benchmark.evaluation.results import SuiteScores, metrics_of
from benchmark.evaluation.tasks import Suite, Task, ZeroShotClassification
from benchmark.registry import STRATEGIES, SUITES, load_strategies, load_tasks
from benchmark.scales import SCALES as RECIPES
from leaderboard.checkpoints import (
    SCALES,
    Checkpoint,
    Checkpoints,
    guessed_score,
    informative_tasks,
    read_checkpoints,
)
from tests.conftest import user_error

AVERAGES = json.loads((Path(__file__).parents[1] / "data" / "checkpoint_averages.json").read_text())
GROUPS = {"ImageNet": "imagenet", "ImageNet dist. shifts": "imagenet_shifts", "VTAB": "vtab", "Retrieval": "retrieval"}
# The DataComp paper's Table 3, medium: ImageNet, shifts, VTAB, retrieval, average.
TABLE_3 = {
    "commonpool_m_s128m_b4k": (0.176, 0.152, 0.259, 0.219, 0.258),
    "commonpool_m_basic_s128m_b4k": (0.226, 0.193, 0.284, 0.251, 0.285),
    "commonpool_m_text_s128m_b4k": (0.255, 0.215, 0.328, 0.249, 0.307),
    "commonpool_m_image_s128m_b4k": (0.268, 0.213, 0.319, 0.256, 0.312),
    "commonpool_m_laion_s128m_b4k": (0.230, 0.198, 0.307, 0.233, 0.292),
    "commonpool_m_clip_s128m_b4k": (0.273, 0.230, 0.338, 0.251, 0.328),
    "datacomp_m_s128m_b4k": (0.297, 0.239, 0.346, 0.231, 0.328),
}


@pytest.fixture(scope="module")
def tasks() -> dict[str, Task]:
    return load_tasks()


@pytest.fixture(scope="module")
def suite(tasks) -> Suite:
    return SUITES["datacomp"]


@pytest.fixture(scope="module")
def checkpoints() -> Checkpoints:
    return read_checkpoints()


def averages_of(row: Checkpoint, suite: Suite, tasks: dict[str, Task]) -> dict[str, float]:
    chance = {name: guessed_score(tasks[name]) for name in suite.tasks}
    scores = SuiteScores(suite, tuple(tasks[name] for name in suite.tasks), row.scores, chance)
    return {title: scores.groups[group] for title, group in GROUPS.items()} | {"Average": scores.average}


def with_scores(checkpoints: Checkpoints, scale: str, task: str, values: list[float]) -> Checkpoints:
    """Put these scores in the place of one task's at one scale."""
    new = {row.name: value for row, value in zip(checkpoints.of_scale(scale), values, strict=True)}
    rows = [
        dataclasses.replace(row, scores=row.scores | {task: new.get(row.name, row.scores[task])}, repeats="")
        for row in checkpoints.rows
        if not row.repeats
    ]
    return dataclasses.replace(checkpoints, rows=tuple(rows))


def test_the_suite_has_40_tasks_of_which_38_are_scored(suite, tasks):
    assert len(suite.tasks) == 38 and suite.headline == suite.tasks
    assert suite.unscored == ("fairness/fairface", "fairness/utkface")
    assert all(tasks[name].is_scored for name in suite.tasks) and not any(tasks[n].is_scored for n in suite.unscored)
    groups = collections.Counter(group for name in suite.tasks + suite.unscored for group in tasks[name].groups)
    assert groups == {
        "imagenet": 1, "imagenet_shifts": 6, "vtab": 13, "retrieval": 3, "wilds": 3, "fairness": 4, "other": 10,
    }  # fmt: skip
    assert len({tasks[name].folder_name for name in suite.tasks + suite.unscored}) == 40


def test_sizes_classes_and_folders_are_those_of_datacomp(suite, tasks):
    chosen = [tasks[name] for name in suite.tasks + suite.unscored]
    classified = [task for task in chosen if isinstance(task, ZeroShotClassification)]
    # The sums of the columns `images` and `classes` of DataComp's list.
    assert sum(task.size for task in chosen) == 732_026
    assert len(classified) == 35 and sum(task.num_classes for task in classified) == 5_630
    assert [tasks[name].folder_name for name in ("vtab/clevr_count_all", "wilds/fmow", "fairness/geode")] == [
        "wds_vtab-clevr_count_all_test", "wds_wilds-fmow_test", "wds_geode_test",
    ]  # fmt: skip
    assert {task.hub_rows.split("/")[0] for task in chosen if task.hub_rows} == {"nlphuji"}
    assert [task.name for task in chosen if task.hub_rows] == [n for n in suite.tasks if "retrieval" in tasks[n].groups]


def test_main_metrics_are_those_of_datacomp(suite, tasks):
    per_class = ["vtab/caltech101", "vtab/flowers", "vtab/pets", "fgvc_aircraft"]
    assert {name: tasks[name].main_metric for name in suite.tasks if tasks[name].main_metric != "acc1"} == {
        **dict.fromkeys(per_class, "mean_per_class_recall"),
        "retrieval/flickr_1k_test_image_text_retrieval": "mean_recall@1",
        "retrieval/mscoco_2014_5k_test_image_text_retrieval": "mean_recall@1",
        "misc/winogavil": "jaccard_score_10-12",
        "wilds/iwildcam": "F1-macro_all",
        "wilds/fmow": "acc_worst_region",
        "fairness/dollar_street": "acc_top5_wg",
        "fairness/geode": "acc_wg",
    }


def test_every_classification_task_declares_what_its_main_metric_needs(suite, tasks):
    for task in (tasks[name] for name in suite.tasks):
        if isinstance(task, ZeroShotClassification):
            found = metrics_of(task, predictions_of(task, label=[0, 1], top=[0, 0], group=[3, 4]))
            assert found["main_metric"] == found[task.main_metric] is not None, task.name


def predictions_of(task: ZeroShotClassification, label: list[int], top: list[int], group: list[int]) -> pa.Table:
    """Make predictions of so many samples; after `top` come the smallest of the other classes."""
    assert task.num_classes
    rest = [[one for one in range(min(6, task.num_classes)) if one != first] for first in top]
    columns = {
        "key": [f"s{row}" for row in range(len(label))],
        "label": label,
        "prediction": top,
        "score": [0.5] * len(label),
        "top5": [[first, *others][:5] for first, others in zip(top, rest, strict=True)],
        "group": group if hasattr(task, "group_fields") else [None] * len(label),
        "num_classes": [task.num_classes] * len(label),
    }
    return pa.table(columns, schema=CLASSIFICATION_SCHEMA)


def test_the_worst_region_of_fmow_may_be_other_and_years_are_the_first_field(tasks):
    # Regions 0 (2 of 2 right), 1 (1 of 2), 5 = Other (0 of 1); years 15 and 16.
    groups = [15, 16, 1015, 1016, 5016]
    task = tasks["wilds/fmow"]
    found = metrics_of(task, predictions_of(task, label=[7, 7, 7, 7, 7], top=[7, 7, 7, 8, 8], group=groups))
    assert found["acc_worst_region"] == found["main_metric"] == 0 and found["acc_worst_named_region"] == 0.5
    assert found["acc_year:15"] == 1 and found["acc_worst_year"] == pytest.approx(1 / 3)


def test_groups_of_dollar_street_geode_and_camelyon_have_the_names_of_datacomp(tasks):
    for name, metric, worst in (
        ("fairness/dollar_street", "acc_top5_income_ds:1", "acc_top5_wg"),
        ("fairness/geode", "acc_region:1", "acc_wg"),
        ("wilds/camelyon17", "acc_slide:1", "acc_wg"),
    ):
        found = metrics_of(tasks[name], predictions_of(tasks[name], label=[0, 1, 1], top=[0, 1, 0], group=[0, 1, 1]))
        expected = 1.0 if name == "fairness/dollar_street" else 0.5  # the right class is among five there
        assert found[metric] == found[worst] == expected, name


def test_listing_the_tasks_loads_no_torch():
    code = (
        "import sys\nfrom benchmark.registry import load_tasks\nload_tasks()\n"
        "import leaderboard.checkpoints\nassert not {'torch', 'open_clip'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_averages_of_28_checkpoints_are_those_of_datacomps_aggregation(checkpoints, suite, tasks):
    assert checkpoints.names == list(AVERAGES) and len(AVERAGES) == 28
    for row in checkpoints.rows:
        assert set(row.scores) == set(suite.tasks)
        assert averages_of(row, suite, tasks) == pytest.approx(AVERAGES[row.name], abs=1e-9), row.name


def test_the_averages_at_medium_are_those_of_the_papers_table(checkpoints, suite, tasks):
    for tag, published in TABLE_3.items():
        found = averages_of(checkpoints.find(tag), suite, tasks)
        assert list(found.values()) == pytest.approx(list(published), abs=6e-4), tag


def test_the_known_faults_are_marked_and_no_other(checkpoints, suite, tasks):
    wrong = {row.pretrained: row for row in checkpoints.rows if row.note}
    assert list(wrong) == ["commonpool_s_image_s13m_b4k", "commonpool_s_s13m_b4k"]
    image, unfiltered = wrong.values()
    assert image.repeats == "ViT-B-32/datacomp_s_s13m_b4k" and not unfiltered.repeats
    assert image not in checkpoints.of_scale("small") and unfiltered in checkpoints.of_scale("small")
    # In the paper's Table 3: averages .159 and .132.
    assert averages_of(image, suite, tasks)["Average"] == pytest.approx(0.145, abs=6e-4)
    assert averages_of(unfiltered, suite, tasks)["Average"] == pytest.approx(0.142, abs=6e-4)


def test_runs_of_a_scale_have_its_model_and_strategies_that_are_there(checkpoints):
    load_strategies()
    for row in checkpoints.rows:
        assert set(row.strategy) <= set(STRATEGIES), row.name
        assert row.scale in (None, row.pool)
        assert row.scale is None or row.model == RECIPES[row.scale].model, row.name
    assert [len(checkpoints.of_scale(scale)) for scale in SCALES] == [6, 7, 7, 4]
    assert [row.name for row in checkpoints.rows if row.scale is None] == [
        "ViT-B-16/datacomp_xl_s13b_b90k", "ViT-B-32-256/datacomp_s34b_b86k", "ViT-B-32/datacomp_xl_s13b_b90k",
    ]  # fmt: skip


def test_a_checkpoint_is_found_by_its_name_or_by_a_tag_that_is_its_own(checkpoints):
    assert checkpoints.find("datacomp_s34b_b86k").model == "ViT-B-32-256"
    assert checkpoints.find("ViT-B-32/datacomp_xl_s13b_b90k").model == "ViT-B-32"
    with user_error("unknown-checkpoint", match="ViT-L-14/datacomp_xl_s13b_b90k, ViT-B-16/"):
        checkpoints.find("datacomp_xl_s13b_b90k")
    with user_error("unknown-checkpoint", match="'comonpool_m_clip'.*'commonpool_m_clip_s128m"):
        checkpoints.find("comonpool_m_clip")


@pytest.mark.parametrize(
    ("begun", "meant"),
    [
        ("ViT-B-32/commonpool_m", "ViT-B-32/commonpool_m_s128m_b4k"),
        ("commonpool_l_t", "commonpool_l_text_s1b_b8k"),
        ("datacomp_m", "datacomp_m_s128m_b4k"),
    ],
)
def test_of_unknown_checkpoints_the_one_that_begins_so_is_suggested(checkpoints, begun, meant):
    with pytest.raises(KeyError) as raised:
        checkpoints.find(begun)
    assert f"{begun!r}. Did you mean {meant!r}? `winnow list checkpoints` names all." in raised.value.args[0]


@pytest.mark.parametrize("scale", SCALES)
def test_the_informative_tasks_are_what_the_rule_chooses(checkpoints, suite, scale):
    assert suite.informative[scale] == informative_tasks(checkpoints, scale)
    assert len(suite.informative[scale]) == {"small": 25, "medium": 27, "large": 32, "xlarge": 31}[scale]


def test_a_task_near_guessing_or_without_spread_is_not_informative(checkpoints):
    good = [0.20, 0.22, 0.24, 0.26, 0.28, 0.30, 0.32]
    # Guessing gets .001 with a standard error of .00014.
    for values, expected in (
        (good, True),
        ([0.0013, *good[1:]], False),
        ([0.0016, *good[1:]], True),
        ([0.3] * 7, False),
        ([0.300, 0.301, 0.302, 0.303, 0.300, 0.301, 0.302], False),  # a standard deviation of half a standard error
    ):
        changed = with_scores(checkpoints, "medium", "imagenet1k", values)
        assert ("imagenet1k" in informative_tasks(changed, "medium")) == expected, values


def test_a_task_must_leave_behind_what_models_without_the_skill_scored(checkpoints):
    # At small, ImageNet at chance in one run and .25 in another: at medium the median must be above .25.
    without = with_scores(checkpoints, "small", "imagenet1k", [0.001, 0.25, 0.1, 0.1, 0.1, 0.1])
    assert np.median([row.scores["imagenet1k"] for row in without.of_scale("medium")]) == 0.2548
    assert "imagenet1k" in informative_tasks(without, "medium")
    without = with_scores(checkpoints, "small", "imagenet1k", [0.001, 0.26, 0.1, 0.1, 0.1, 0.1])
    assert "imagenet1k" not in informative_tasks(without, "medium")


def test_a_list_of_checkpoints_that_contradicts_itself_is_refused(checkpoints, tmp_path):
    row = {"model": "m", "pretrained": "a", "pool": "small", "strategy": ["basic"], "scores": {"cars": 0.5}}
    for rows, message in (
        ([row, row], "twice"),
        ([row, row | {"pretrained": "b", "scores": {"cifar10": 0.5}}], r"m/a and m/b .*\['cars'"),
        ([row | {"repeats": "m/b"}], "m/a .*'m/b'"),
        ([row | {"scores": {"cars": 50.0}}], r"rows\.0\.scores\.cars.*50\.0"),
    ):
        path = tmp_path / "checkpoints.json"
        path.write_text(json.dumps({"title": "t", "source": "s", "notes": [], "rows": rows}))
        with user_error("entry-invalid", match=rf"checkpoints\.json.*{message}"):
            read_checkpoints(path)
    few = dataclasses.replace(checkpoints, rows=checkpoints.rows[:3])
    with user_error("board-invalid", match="{'small': 0}"):
        informative_tasks(few, "small")
