"""Experiments and boards from Python: the numbers are those that the commands print."""

import io
import json
import math

import pandas as pd
import pyarrow.parquet as pq
import pytest

import winnow as wb
from benchmark.cli.main import main
from tests.conftest import user_error


def test_scores_are_those_of_the_records(experiments):
    frame = wb.open_experiment(experiments / "clip_score").scores()
    assert list(frame.columns) == ["seed", "task", "score", "standard_error", "low", "high", "chance"]
    assert sorted(set(frame.seed)) == [0, 1] and len(frame) == 2 * frame.task.nunique() and frame.task.nunique() == 16
    for row in frame.itertuples():
        record = json.loads((experiments / f"clip_score/seed-{row.seed}/eval" / file_of(row.task)).read_text())
        metrics = record["result"]["metrics"]
        assert row.score == metrics["main_metric"] and row.chance == metrics["chance"]
        assert row.standard_error == metrics["standard_error"]
        assert (row.low, row.high) == (metrics["interval_low"], metrics["interval_high"])
    assert frame.dtypes[["score", "standard_error", "low", "high", "chance"]].eq(float).all()


def file_of(task):
    return f"{task.replace('/', '-')}.json"


def test_predictions_are_the_table_on_disk(experiments):
    experiment = wb.open_experiment(str(experiments / "clip_score"))
    found = experiment.predictions("pico/shapes", seed=1)
    path = experiments / "clip_score" / "seed-1" / "eval" / "pico-shapes.parquet"
    pd.testing.assert_frame_equal(found, pq.read_table(path).to_pandas())
    scores = experiment.scores().set_index(["seed", "task"])
    assert (found.label == found.prediction).mean() == scores.score[1, "pico/shapes"]
    with user_error("unknown-task", match="Did you mean 'pico/shapes'"):
        experiment.predictions("pico/shape")
    with user_error("results-missing", match="seed-1"):
        experiment.predictions("pico/shapes", seed=7)
    with user_error("results-missing"):
        experiment.predictions("nano/shapes")


def test_the_subset_and_the_costs_of_an_experiment(experiments):
    experiment = wb.open_experiment(experiments / "clip_score")
    subset = wb.read_subset(experiments / "clip_score" / "subset.npy")
    pd.testing.assert_series_equal(experiment.subset.to_series(), subset.to_series())
    costs = experiment.costs()
    assert {"filter", "train", "evaluate", "evaluate_task"} <= set(costs.stage) and (costs.seconds >= 0).all()
    assert sorted(costs[costs.stage == "train"].seed) == [0, 1]


def test_a_folder_that_is_no_experiment_is_refused(experiments, tmp_path):
    with user_error("subset-not-found"):
        wb.open_experiment(tmp_path)
    (tmp_path / "subset.json").write_bytes((experiments / "clip_score" / "subset.json").read_bytes())
    (tmp_path / "subset.npy").write_bytes((experiments / "no_filter" / "subset.npy").read_bytes())
    with user_error("results-missing"):
        wb.open_experiment(tmp_path).scores()
    with user_error("file-changed"):
        _ = wb.open_experiment(tmp_path).subset


def test_a_comparison_has_the_numbers_that_the_command_prints(experiments, capsys):
    ours, other = wb.open_experiment(experiments / "clip_score"), experiments / "no_filter"
    compared = wb.compare(ours, other)
    command = ["leaderboard", "compare", str(experiments / "clip_score"), str(other), "--tasks"]
    capsys.readouterr()
    assert main(command) == 0
    assert capsys.readouterr().out.strip() == str(compared).strip()
    assert main([*command, "--format", "csv"]) == 0
    printed = pd.read_csv(io.StringIO(capsys.readouterr().out))
    found = compared.to_pandas()
    pd.testing.assert_frame_equal(found.astype(printed.dtypes), printed)
    row = found[found.name == "pico/shapes"].iloc[0]
    means = [wb.open_experiment(each).scores().groupby("task").score.mean() for each in (ours.dir, other)]
    assert math.isclose(row.change, means[0]["pico/shapes"] - means[1]["pico/shapes"], abs_tol=1e-12)
    assert row.change_low < row.change < row.change_high and row.compared_by == "samples"
    assert row.change_over_seeds_low <= row.change_over_seeds <= row.change_over_seeds_high
    mirrored = wb.compare(other, ours).to_pandas()
    assert mirrored.change.to_numpy() == pytest.approx(-found.change.to_numpy())
    with user_error("scores-not-found"):
        wb.compare(ours, "no/such/experiment")
    with user_error("unknown-suite"):
        wb.compare(ours, other, suite="no_such_suite")


def test_a_board_is_the_table_that_the_command_prints(capsys):
    board = wb.read_board("nano")
    capsys.readouterr()
    assert main(["leaderboard", "table", "--board", "nano", "--format", "csv"]) == 0
    printed = pd.read_csv(io.StringIO(capsys.readouterr().out))
    found = board.to_pandas()
    assert found.name.tolist() == printed.name.tolist() and len(found) > 20
    assert found.average.tolist() == printed.average.tolist() and found.sd.tolist() == printed.sd.tolist()
    assert main(["leaderboard", "table", "--board", "nano"]) == 0
    assert capsys.readouterr().out.strip() == str(board).strip()
    with user_error("board-not-found"):
        wb.read_board("no_such_board")
