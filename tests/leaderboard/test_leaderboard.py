"""The board: entries read strictly, statistics against scipy and simulation, and tables that claim no more."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from benchmark.cli.boards import board_table
from benchmark.cli.main import main
from benchmark.evaluation.tasks import Retrieval, ZeroShotClassification
from benchmark.registry import SUITES
from benchmark.runtime.errors import UserError
from benchmark.scales import SCALES
from leaderboard.board import BOARDS_DIR, Board, Rules, board_names, read_board, read_entries, read_other_pools
from leaderboard.entries import Entry, PoolUsed, StrategyUsed, SubsetUsed, SuiteName, read_entry, write_entry
from leaderboard.peers import Peers, SeedScores
from leaderboard.statistics import (
    RankRange,
    RunDifference,
    StandardError,
    fit_pool_model,
    fit_seed_model,
    holm,
    least_detectable,
    mean,
    pooled_sd,
    rank_ranges,
    sd,
    unequal_noise,
)
from leaderboard.table import make_table, render_html, render_markdown, render_table, to_frame
from leaderboard.task_table import make_task_table, render_tasks, tasks_to_frame
from tests.conftest import user_error

GOLDEN_PATH = Path(__file__).parents[1] / "data" / "entry_v0.json"
NOTE = "No evidence about anything else."
A, B = "toy/a", "toy/b"


def toy_board(**rules: Any) -> Board:
    defaults: dict[str, Any] = {
        "title": "Toy board",
        "scale": "toy",
        "recipe": 0,
        "suite": SuiteName("toy", 0),
        "groups": ("accuracy", "retrieval"),
        "pools": (),
        "min_seeds": 3,
        "note": NOTE,
    }
    tasks = (
        ZeroShotClassification(name=A, title="A", groups=("accuracy",)),
        Retrieval(name=B, title="B", groups=("retrieval",)),
    )
    return Board(rules=Rules(**{**defaults, **rules}), tasks=tasks)


def toy_entry(name: str, scores: list[float], *, first_seed: int = 0, **fields: Any) -> Entry:
    """Make an entry whose average is `scores` by seed: task A is .1 above it and task B .1 below."""
    pool = PoolUsed(fingerprint="a" * 64, content_hash="b" * 64, rows=1000, present=900)
    defaults: dict[str, Any] = {
        "name": name,
        "strategy": (StrategyUsed(name="clip_score", options={"arch": "l14"}, cut={"fraction": 0.3}, source="e" * 64),),
        "reference": False,
        "scale": "toy",
        "recipe": 0,
        "recipe_hash": "c" * 64,
        "suite": SuiteName("toy", 0),
        "pool": pool,
        "subset": SubsetUsed(size=300, distinct=300, sha256=name.encode().hex().ljust(64, "0")[:64]),
        "seeds": {first_seed + i: {A: score + 0.1, B: score - 0.1} for i, score in enumerate(scores)},
        "made_with": {"winnow": "0.1.0"},
    }
    return Entry(**{**defaults, **fields})


CLIP = toy_entry("clip", [0.40, 0.41, 0.42])
SAME = toy_entry("same", [0.405, 0.410, 0.424])
NONE = toy_entry("none", [0.20, 0.21, 0.23])
PLANTED = toy_entry("planted", [0.50, 0.51, 0.53], reference=True)


def test_a_golden_entry_of_version_0_still_loads() -> None:
    entry = read_entry(GOLDEN_PATH)
    assert entry.name == "clip_score"
    assert entry.strategy[0].cut == {"fraction": 0.3}
    assert entry.seeds == {0: {A: 0.5, B: 0.25}, 1: {A: 0.75, B: 0.25}}
    assert entry.averages([A, B]) == {0: 0.375, 1: 0.5}
    assert entry.share_kept == 0.3


def test_an_entry_is_written_as_it_is_read(tmp_path: Path) -> None:
    write_entry(tmp_path / "clip_score.json", read_entry(GOLDEN_PATH))
    assert json.loads((tmp_path / "clip_score.json").read_text()) == json.loads(GOLDEN_PATH.read_text())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 1}, "rank: "),
        ({"recipe": "0"}, "recipe: "),
        ({"name": "../x"}, "name: "),
        ({"format_version": 1}, "format_version: "),
        ({"seeds": {}}, "seeds: "),
        ({"seeds": {"0": {A: float("nan")}}}, "seeds.0.toy/a: "),
        ({"seeds": {"0": {A: 1.5}}}, "seeds.0.toy/a: .*1.5"),
        ({"seeds": {"0": {A: 0.5, B: 0.5}, "1": {A: 0.5}}}, r"0 and 1 .*\['toy/b'\]"),
        ({"subset": {"size": 10, "distinct": 11, "sha256": "d" * 64}}, "subset.distinct 11 .*10"),
    ],
)
def test_a_bad_entry_is_one_error_that_names_the_file(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "clip_score.json"
    path.write_text(json.dumps({**json.loads(GOLDEN_PATH.read_text()), **change}))
    with user_error("entry-invalid", match=message) as caught:
        read_entry(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_no_json_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with user_error("entry-invalid", match=r"x\.json.*JSON"):
        read_entry(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("file_name", "entry", "rules", "message"),
    [
        ("clip", toy_entry("clip", [0.4], seeds={0: {A: 0.4}}), {}, r"1 of 2 .*\['toy/b'\]"),
        ("clip", toy_entry("clip", [0.4], seeds={0: {A: 0.4, B: 0.4, "x": 0.4}}), {}, r"\['x'\]"),
        ("clip", toy_entry("clip", [0.4], scale="small"), {}, "'small' .*'toy'"),
        ("other", CLIP, {}, r"clip\.json"),
        ("clip", CLIP, {"pools": ("f" * 64,)}, "aaaaaaaaaaaa"),
    ],
)
def test_an_entry_that_breaks_a_rule_of_the_board_is_refused(
    tmp_path: Path, file_name: str, entry: Entry, rules: dict[str, Any], message: str
) -> None:
    write_entry(tmp_path / f"{file_name}.json", entry)
    board = dataclasses.replace(toy_board(**rules), entries_dir=tmp_path)
    with user_error("entry-foreign" if rules else "entry-invalid", match=message) as caught:
        read_entries(board)
    assert f"{file_name}.json" in str(caught.value)


def test_entries_of_another_suite_version_are_read_though_their_tasks_are_unknown(tmp_path: Path) -> None:
    write_entry(tmp_path / "clip.json", toy_entry("clip", [], seeds={0: {"old": 0.5}}, suite=SuiteName("toy", 9)))
    assert [entry.name for entry in read_entries(dataclasses.replace(toy_board(), entries_dir=tmp_path))] == ["clip"]


def test_the_boards_that_ship_fit_their_scales_suites_and_entries() -> None:
    assert "nano" in board_names()
    for name in board_names():
        board = read_board(BOARDS_DIR / name)
        assert board.rules.recipe == SCALES[board.rules.scale].recipe
        assert SCALES[board.rules.scale].suite == board.rules.suite.name
        assert set(SUITES[board.rules.suite.name].tasks) == set(board.task_names)
        read_entries(board)
        read_other_pools(board)


def test_a_board_takes_its_halves_from_the_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = read_board(BOARDS_DIR / "nano").task_names
    monkeypatch.setitem(SUITES, "nano", dataclasses.replace(SUITES["nano"], reporting=(tasks[2], tasks[0])))
    board = read_board(BOARDS_DIR / "nano")
    assert board.headline == [tasks[0], tasks[2]]
    assert sorted(board.development) == sorted(set(tasks) - {tasks[0], tasks[2]})


def test_embedded_boards_say_that_they_are_no_evidence_about_web_data() -> None:
    notes = {read_board(BOARDS_DIR / name).rules.note for name in board_names() if SCALES[name].is_embedded}
    assert notes == {
        "The embedded scale finds bugs, shows which planted noise a rule removes and ranks large effects; "
        "it is no evidence about web data."
    }


def test_a_missing_board_is_an_error_that_lists_the_boards(tmp_path: Path) -> None:
    with user_error("board-not-found", match="nano"):
        read_board(tmp_path)


def test_one_seed_has_a_mean_and_no_standard_deviation() -> None:
    assert mean({3: 0.4}) == 0.4
    assert sd({3: 0.4}) is None
    assert fit_seed_model([{3: 0.4}, {3: 0.5}]) is None
    assert sd({0: 1.0, 1: 2.0, 2: 3.0}) == 1.0


def test_seed_noise_is_the_two_way_analysis_of_variance() -> None:
    # Means 2, 4 and 3; seed effects -1, 0 and 1; the rest is a third of [[-1, 2, -1], [2, -1, -1], [-1, -1, 2]].
    runs = [
        {0: 2 - 4 / 3, 1: 2 + 2 / 3, 2: 2 + 2 / 3},
        {0: 4 - 1 / 3, 1: 4 - 1 / 3, 2: 4 + 2 / 3},
        {0: 3 - 4 / 3, 1: 3 - 1 / 3, 2: 3 + 5 / 3},
    ]
    model = fit_seed_model(runs)
    assert model is not None
    assert (model.rest_df, model.seed_df) == (4, 2)
    assert model.rest == pytest.approx(2 / 4)
    assert model.seed == pytest.approx(3 * 2 / 2)
    assert model.shared_variance == pytest.approx((3 - 0.5) / 3)
    assert model.sd == pytest.approx(math.sqrt(0.5 + 2.5 / 3))


RUN, SAME_SEEDS = {0: 0.41, 1: 0.45, 2: 0.40, 3: 0.44}, {0: 0.40, 1: 0.43, 2: 0.39, 3: 0.41}
OTHER_SEEDS = {7: 0.40, 8: 0.43, 9: 0.39}


@pytest.mark.parametrize(("other", "oracle"), [(SAME_SEEDS, stats.ttest_rel), (OTHER_SEEDS, stats.ttest_ind)])
def test_two_runs_alone_give_the_paired_or_the_unpaired_t_test(other: dict[int, float], oracle: Any) -> None:
    model = fit_seed_model([RUN, other])
    assert model is not None
    ours, scipys = model.difference(0, 1), oracle(list(RUN.values()), list(other.values()))
    assert ours.p == pytest.approx(scipys.pvalue)
    assert (ours.low, ours.high) == pytest.approx(tuple(scipys.confidence_interval(0.95)))


def test_a_lucky_seed_makes_no_run_better() -> None:
    # Seed 0 adds .05 to every run; the two entries differ by .2 and, but for .001, by nothing else.
    entries = [{0: 0.45, 1: 0.40, 2: 0.40}, {0: 0.251, 1: 0.20, 2: 0.20}]
    model = fit_seed_model([*entries, {0: 0.45}])
    assert model is not None
    assert model.difference(2, 0).value == pytest.approx(0, abs=0.001)
    assert not model.difference(2, 0).is_significant
    assert model.difference(2, 1).is_significant


@pytest.mark.parametrize("shared", [0.0, 3.0])
@pytest.mark.parametrize("seeds", [[0], [0, 1, 2], [7, 8, 9], [0, 7]])
def test_intervals_cover_the_true_difference_95_times_in_100(seeds: list[int], shared: float) -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        effects = shared * generator.normal(size=10)
        runs = [{s: effects[s] + generator.normal() for s in range(5)} for _ in range(5)]
        mine = {s: 1.0 + effects[s] + generator.normal() for s in seeds}
        model = fit_seed_model([*runs, mine])
        assert model is not None
        d = model.difference(5, 0)
        covered += d.low <= 1.0 <= d.high
    assert 0.92 <= covered / 400 <= 0.98


@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_a_plan_has_the_standard_error_that_the_run_will_have(seeds: int) -> None:
    generator = np.random.default_rng(0)
    entries = [{s: generator.normal() for s in range(5)} for _ in range(4)]
    before = fit_seed_model(entries)
    after = fit_seed_model([*entries, {s: generator.normal() for s in range(seeds)}])
    assert before is not None and after is not None
    contrast = np.array([-1, 0, 0, 0, 1, 0, 0, 0, 0, 0])
    planned = before.error_of_plan(seeds, 5).value / math.sqrt(before.rest)
    assert planned == pytest.approx(math.sqrt(contrast @ after.covariance @ contrast))


def test_runs_without_any_noise_differ_or_are_equal() -> None:
    model = fit_seed_model([{0: 0.5, 1: 0.5}, {7: 0.25, 8: 0.25}, {9: 0.5}])
    assert model is not None
    assert model.difference(0, 1).is_significant
    assert not model.difference(0, 2).is_significant


@pytest.mark.parametrize(("seeds", "expected"), [(3, 3.07), (5, 2.02)])
def test_two_runs_of_3_seeds_find_3_standard_deviations_and_of_5_seeds_2(seeds: int, expected: float) -> None:
    error = StandardError(math.sqrt(2 / seeds), 2 * seeds - 2)
    assert least_detectable(error) == pytest.approx(expected, abs=0.01)


def test_runs_that_cannot_be_told_apart_share_their_ranks() -> None:
    pattern = [(0.0, 0.01, -0.01), (0.01, -0.01, 0.0), (-0.01, 0.0, 0.01), (0.0, 0.01, -0.01)]
    centres = [0.30, 0.50, 0.501, 0.40]
    model = fit_seed_model([{s: c + d for s, d in enumerate(ds)} for c, ds in zip(centres, pattern, strict=True)])
    assert model is not None
    assert [str(ranks) for ranks in rank_ranges(model.difference, range(4))] == ["4", "1-2", "1-2", "3"]
    assert rank_ranges(model.difference, [0, 3]) == [RankRange(2, 2), RankRange(1, 1)]


def test_holm_multiplies_the_smallest_p_by_all_and_never_reorders() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_unequal_noise_is_found_and_needs_two_runs_of_three_seeds() -> None:
    quiet, loud = {i: 0.5 + 0.001 * (i % 2) for i in range(6)}, {i: 0.5 + 0.1 * (i % 2) for i in range(6)}
    p = unequal_noise([quiet, loud, {0: 0.5}])
    assert p is not None and p < 1e-4
    assert unequal_noise([quiet, {0: 0.5, 1: 0.6}]) is None


def test_a_table_in_full() -> None:
    mine = toy_entry("mine", [0.42, 0.43, 0.45])
    text = render_table(make_table([NONE, SAME, CLIP, PLANTED], toy_board(), mine))
    assert text == EXPECTED_TABLE


def text_under(entries: list[Entry], highlight: Entry | None = None, **rules: Any) -> str:
    """Return the sentences under a table as one line."""
    return " ".join(make_table(entries, toy_board(**rules), highlight).sentences)


def test_one_seed_is_never_ranked_and_claims_nothing() -> None:
    mine = toy_entry("mine", [0.9])
    table = make_table([CLIP, NONE], toy_board(), mine)
    assert table.rows[0].is_highlighted and table.rows[0].rank is None
    assert [str(row.rank) for row in table.rows[1:]] == ["1", "2"]
    assert "1 seed: enough to run, never enough to claim. With these entries a difference under ." in table.sentences[0]
    assert "better" not in " ".join(table.sentences)


def test_two_seeds_are_told_how_many_a_claim_needs() -> None:
    assert "2 seeds: enough to run, not enough to claim (3 are)." in text_under([CLIP], toy_entry("mine", [0.4, 0.5]))


def test_entries_of_one_seed_are_not_claimed_against() -> None:
    text = text_under([toy_entry("once", [0.2])], toy_entry("mine", [0.4, 0.41, 0.42]))
    assert "No entry here has the 3 seeds that a claim needs." in text and "better" not in text


def test_a_claim_that_holms_correction_undoes_is_said() -> None:
    near = [toy_entry(f"near{i}", [0.4048, 0.4152, 0.42]) for i in range(3)]
    mine = toy_entry("mine", [0.41, 0.41, 0.423])
    just = toy_entry("just", [0.4, 0.4104, 0.4152])
    text = text_under([*near, just], mine)
    assert "mine: better than just; not distinguishable from near0, near1 and near2 (95 %, not adjusted" in text
    assert "With Holm's correction for 4 comparisons it is not distinguishable from just either." in text


def test_what_does_not_compare_is_left_out_and_counted() -> None:
    pool = dataclasses.replace(CLIP.pool, fingerprint="f" * 64)
    others = [
        dataclasses.replace(CLIP, name="pool", pool=pool),
        dataclasses.replace(CLIP, name="recipe", recipe_hash="f" * 64),
        dataclasses.replace(CLIP, name="suite", suite=SuiteName("toy", 9)),
    ]
    table = make_table([CLIP, NONE, *others], toy_board(), toy_entry("mine", [0.4]))
    assert [row.entry.name for row in table.rows] == ["clip", "mine", "none"]
    assert (
        "Left out, because their numbers do not compare: 1 on another pool (pool); 1 trained by another recipe "
        "(recipe); 1 scored by another suite or version of it (suite)."
    ) in table.sentences
    elsewhere = make_table([CLIP, NONE], toy_board(), dataclasses.replace(CLIP, name="mine", pool=pool))
    assert [row.entry.name for row in elsewhere.rows] == ["mine"]
    assert "The board has no entry to compare with." in elsewhere.sentences
    assert "Left out, because their numbers do not compare: 2 on another pool (clip and none)." in elsewhere.sentences


def test_without_a_run_the_pool_of_most_entries_is_shown() -> None:
    pool = dataclasses.replace(CLIP.pool, fingerprint="0" * 64)
    table = make_table([dataclasses.replace(CLIP, name="other", pool=pool), CLIP, NONE], toy_board())
    assert [row.entry.name for row in table.rows] == ["clip", "none"]
    assert not table.has_differences


def test_other_pixels_are_kept_with_a_warning() -> None:
    pool = dataclasses.replace(CLIP.pool, content_hash="f" * 64)
    table = make_table([CLIP, dataclasses.replace(NONE, pool=pool)], toy_board(), toy_entry("mine", [0.4]))
    assert len(table.rows) == 3
    warning = next(sentence for sentence in table.sentences if "other pixels" in sentence)
    assert warning.startswith("warning: ") and "none" in warning and "clip" not in warning


def test_a_run_that_kept_the_same_samples_is_told() -> None:
    twin = toy_entry("mine", [0.4], subset=CLIP.subset)
    assert "The run marked > (mine) kept exactly the samples of clip." in text_under([CLIP, NONE], twin)


def test_a_run_on_a_pool_that_is_not_admitted_is_told() -> None:
    text = text_under([], toy_entry("mine", [0.4]), pools=("f" * 64,))
    assert "Pool aaaaaaaaaaaa is not one that this board admits." in text


def test_a_run_without_any_entry_stands_alone() -> None:
    table = make_table([], toy_board(), toy_entry("mine", [0.4]))
    assert table.sentences == (
        "1 seed: enough to run, never enough to claim.",
        "The board has no entry to compare with.",
        "keeps is the share of the pool that the strategy chose; average is the mean over all 2 tasks; ± is the "
        "standard deviation over so many (training seeds); the other columns are means over all tasks of a group.",
        NOTE,
    )
    assert ">   -  mine   30 %      .400 (1)      .500       .300\n" in render_table(table)


def test_an_empty_board_is_a_title_and_its_note() -> None:
    table = make_table([], toy_board())
    assert render_table(table) == f"Toy board\n\nThe board has no entry yet.\n{NOTE}\n"
    assert to_frame(table).empty


def test_a_run_scored_by_another_suite_is_refused() -> None:
    with user_error("entry-foreign"):
        make_table([CLIP], toy_board(), toy_entry("mine", [0.4], suite=SuiteName("toy", 1)))


def test_markdown_has_the_same_cells_and_the_note() -> None:
    text = render_markdown(make_table([CLIP, NONE], toy_board(), toy_entry("mine", [0.4])))
    assert "| rank | name | keeps | average ± sd (seeds) | accuracy | retrieval | > minus row [95 %] |" in text
    assert "| - | **&gt; mine** | 30 % | .400 (1) | .500 | .300 |  |" in text
    assert text.endswith(f"- {NOTE}\n")


def test_a_frame_has_every_digit_and_empty_cells_where_nothing_is_known() -> None:
    frame = to_frame(make_table([CLIP, NONE], toy_board(), toy_entry("mine", [0.25]))).set_index("name")
    assert frame.loc["clip", "average"] == pytest.approx(0.41)
    assert frame.loc["clip", "sd"] == pytest.approx(0.01)
    # Seed 0 is .01 and .04 / 3 below the average of the two entries.
    assert frame.loc["clip", "highlighted_minus_row"] == pytest.approx(0.25 + (0.01 + 0.04 / 3) / 2 - 0.41)
    assert frame["rank_first"].isna().to_dict() == {"clip": False, "mine": True, "none": False}
    assert frame["sd"].isna().to_dict() == {"clip": False, "mine": True, "none": False}


def test_nano_tables_fit_120_columns_however_long_a_name_is() -> None:
    board = read_board(BOARDS_DIR / "nano")
    fields: dict[str, Any] = {"scale": "nano", "recipe": board.rules.recipe, "suite": board.rules.suite}
    entries = [
        toy_entry(name, [], seeds={s: dict.fromkeys(board.task_names, 0.3 + s / 10) for s in range(3)}, **fields)
        for name in ("x" * 80, "y")
    ]
    long = dataclasses.replace(entries[0], reference=True)
    text = render_table(make_table([long], board, entries[1]))
    assert f"  {'x' * 80} (reference)\n" in text  # in full, on a line of its own
    assert max(map(len, text.splitlines())) <= 120
    highlighted = render_table(make_table([entries[1]], board, entries[0])).splitlines()
    (place,) = [number for number, line in enumerate(highlighted) if line == f"> 1-2  {'x' * 80}"]
    other = next(line for line in highlighted if "  y  " in line)
    numbers = highlighted[place + 1]
    assert numbers.split() == other.replace("+.000 [+.000, +.000]", "").split()[2:]
    assert numbers.index("30 %") == other.index("30 %")  # under the same titles


def halved_board() -> Board:
    """The toy board with task B as its reporting half."""
    return dataclasses.replace(toy_board(), reporting=(B,))


def test_the_average_is_the_reporting_half_and_dev_the_other() -> None:
    table = make_table([CLIP, NONE], halved_board(), toy_entry("mine", [0.25]))
    frame = to_frame(table).set_index("name")
    assert frame.loc["clip", ["average", "dev"]].tolist() == pytest.approx([0.31, 0.51])
    assert frame.loc["clip", ["accuracy", "retrieval"]].tolist() == pytest.approx([0.51, 0.31])
    assert (
        "average is the mean over the suite's reporting half (1 task), dev the mean over its development half (1), "
        in (" ".join(table.sentences))
    )
    for text in (render_table(table), render_markdown(table), render_html(table)):
        assert "dev" in text and ".510" in text
    assert "dev" not in to_frame(make_table([CLIP], toy_board()))


def test_statistics_are_of_the_reporting_half() -> None:
    # The development task alone tells the runs apart.
    runs = [
        toy_entry(name, [], seeds={s: {A: top, B: 0.4 + d} for s, d in enumerate(noise)})
        for name, top, noise in (("x", 0.9, (0.0, 0.01, 0.02)), ("y", 0.1, (0.01, 0.0, 0.021)))
    ]
    assert [str(row.rank) for row in make_table(runs, halved_board()).rows] == ["1-2", "1-2"]
    assert [str(row.rank) for row in make_table(runs, toy_board()).rows] == ["1", "2"]


def test_a_task_of_the_development_half_may_not_be_missing_either() -> None:
    with user_error("entry-foreign", match=r"1 of 2.*\['toy/a'\]"):
        make_table([toy_entry("clip", [], seeds={0: {B: 0.4}})], halved_board())


@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_the_least_detectable_difference_is_found_4_times_in_5_against_5_seed_entries(seeds: int) -> None:
    generator = np.random.default_rng(1)
    found = 0
    for _ in range(400):
        effects = 3 * generator.normal(size=5)
        entries = [{s: effects[s] + generator.normal() for s in range(5)} for _ in range(4)]
        before = fit_seed_model(entries)
        assert before is not None
        # The noise is known here, so that the plan is judged and not its estimate of the noise.
        plan = before.error_of_plan(seeds, 5)
        shift = least_detectable(dataclasses.replace(plan, value=plan.value / math.sqrt(before.rest)))
        model = fit_seed_model([*entries, {s: shift + effects[s] + generator.normal() for s in range(seeds)}])
        assert model is not None
        difference = model.difference(4, 0)
        found += difference.is_significant and difference.value > 0
    assert 0.75 <= found / 400 <= 0.87


def test_the_sd_over_seeds_is_pooled_by_degrees_of_freedom() -> None:
    assert pooled_sd([{0: 1.0, 1: 3.0}, {0: 1.0, 1: 2.0, 2: 3.0}, {0: 9.0}]) == pytest.approx(math.sqrt((2 + 2) / 3))
    assert pooled_sd([{0: 1.0}]) is None


def test_the_mean_squares_of_pools_are_those_of_nested_least_squares() -> None:
    scores = np.random.default_rng(0).normal(size=(3, 4, 2))
    strategy, pool, seed = (axis.ravel() for axis in np.indices(scores.shape))
    one_hot = {key: np.eye(values.max() + 1)[values] for key, values in (("s", strategy), ("p", pool), ("k", seed))}

    def left_over(*terms: str) -> float:
        """Return the sum of squares that a model of these terms does not explain."""
        blocks = [np.ones((scores.size, 1))]
        for term in terms:
            block = np.ones((scores.size, 1))
            for key in term:
                block = np.einsum("ij,ik->ijk", block, one_hot[key]).reshape(scores.size, -1)
            blocks.append(block)
        design = np.hstack(blocks)
        return float(np.sum((scores.ravel() - design @ np.linalg.lstsq(design, scores.ravel(), rcond=None)[0]) ** 2))

    model = fit_pool_model(scores)
    everything = ["sp", "sk", "pk"]
    squares = {
        "pool": (left_over("s", "k") - left_over("s", "k", "p"), 3),
        "seed": (left_over("s", "p") - left_over("s", "k", "p"), 1),
        "strategy_pool": (left_over("sk", "pk") - left_over(*everything), 6),
        "strategy_seed": (left_over("sp", "pk") - left_over(*everything), 2),
        "pool_seed": (left_over("sp", "sk") - left_over(*everything), 3),
        "rest": (left_over(*everything), 6),
    }
    for name, (square, df) in squares.items():
        assert getattr(model, name).df == df
        assert getattr(model, name).value == pytest.approx(square / df), name


def drawn_scores(generator: np.random.Generator, shape: tuple[int, int, int], sds: dict[str, float]) -> np.ndarray:
    """Draw scores whose effects have these standard deviations: p(ool), k (seed), s(trategy) and their interactions."""
    scores = np.zeros(shape)
    for effect, size in sds.items():
        axes = [length if key in effect else 1 for key, length in zip("spk", shape, strict=True)]
        scores = scores + size * generator.normal(size=axes)
    return scores


def test_pool_and_seed_noise_are_told_apart() -> None:
    sds = {"p": 2.0, "sp": 1.0, "k": 1.5, "pk": 2.0, "sk": 0.5, "spk": 1.0}
    model = fit_pool_model(drawn_scores(np.random.default_rng(0), (60, 300, 20), sds))
    assert model.shared_pool_sd == pytest.approx(2.0, rel=0.1)
    assert model.own_pool_sd == pytest.approx(1.0, rel=0.03)
    assert model.shared_seed_sd == pytest.approx(2.5, rel=0.15)
    assert model.seed_sd == pytest.approx(math.sqrt(1.5**2 + 4 + 0.25 + 1), rel=0.15)


def test_seed_noise_that_strategies_share_is_not_taken_for_the_pools() -> None:
    generator = np.random.default_rng(0)
    squares = [fit_pool_model(drawn_scores(generator, (3, 3, 5), {"pk": 1.0, "spk": 0.3})) for _ in range(300)]
    unbiased = [m.pool.value - m.strategy_pool.value - m.pool_seed.value + m.rest.value for m in squares]
    assert np.mean(unbiased) / 15 == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("sds", [{"p": 3.0, "sp": 1.0, "k": 2.0, "spk": 0.5}, {"sp": 0.3, "sk": 1.0, "spk": 0.5}])
def test_intervals_over_pools_cover_the_true_difference(sds: dict[str, float]) -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(500):
        difference = fit_pool_model(drawn_scores(generator, (3, 3, 5), sds)).difference(0, 1)
        covered += difference.low <= 0 <= difference.high
    assert 0.92 <= covered / 500 <= 0.985


def pool_entries(names: tuple[str, ...] = ("clip", "none"), pools: str = "123") -> list[Entry]:
    """Make entries of other pools: each pool adds .01 per number to all strategies."""
    return [
        dataclasses.replace(
            toy_entry(name, [start + 0.01 * int(key) + noise for noise in (0.0, 0.002, 0.004)]),
            pool=PoolUsed(fingerprint=key * 64, content_hash="b" * 64, rows=1000, present=900),
        )
        for key in pools
        for name, start in zip(names, (0.4, 0.2), strict=True)
    ]


def test_other_pools_tell_how_differences_hold_on_them() -> None:
    own = pool_entries(pools="0")
    table = make_table([*own, PLANTED], toy_board(), None, pool_entries())
    assert [row.entry.name for row in table.rows] == ["clip", "none"]
    # Pools at 0, .01, .02 and .03 have a standard deviation of .0129.
    assert (
        "Over generation seeds of the pool (2 strategies, 4 pools, 3 training seeds): the sd of a run is .002 from the "
        "training seed, .002 of it shared by all strategies (16 degrees of freedom); from the generation seed it is "
        ".013 shared (3) and .000 not shared (3). Over pools and training seeds (95 %): clip minus none +.200 "
        "[+.200, +.200] (+.200 to +.200 on single pools)."
    ) in table.sentences


def test_nothing_is_said_of_pools_where_there_is_one() -> None:
    assert "generation" not in text_under([CLIP, NONE]) and "pools" not in text_under([CLIP, NONE])


def test_too_few_entries_of_other_pools_are_told() -> None:
    sentences = make_table([CLIP, NONE], toy_board(), None, pool_entries()[:1]).sentences
    assert any(
        sentence.startswith("Entries of other pools are there, but not two strategies") for sentence in sentences
    )


@pytest.mark.parametrize(
    ("file_name", "entry", "message"),
    [
        ("clip", CLIP, "clip-pool<seed>.json"),
        ("clip-pool2", CLIP, "clip-pool2.json and clip-pool1.json"),
        ("none-pool2", toy_entry("none", [0.4], scale="small"), "'small'"),
    ],
)
def test_a_wrong_entry_of_another_pool_is_refused(tmp_path: Path, file_name: str, entry: Entry, message: str) -> None:
    board = dataclasses.replace(toy_board(), entries_dir=tmp_path / "entries")
    write_entry(tmp_path / "other_pools" / "clip-pool1.json", CLIP)
    assert [found.name for found in read_other_pools(board)] == ["clip"]
    write_entry(tmp_path / "other_pools" / f"{file_name}.json", entry)
    with user_error("entry-invalid", match=message):
        read_other_pools(board)


def test_a_line_per_task_has_its_range_without_references_and_its_noise() -> None:
    clip = dataclasses.replace(CLIP, chance={A: 0.25, B: 0.05})
    table = make_table([clip, NONE, PLANTED], halved_board())
    first, second = make_task_table(table).rows
    assert (first.name, first.half, first.chance) == (A, "dev", 0.25)
    assert (second.name, second.half, second.chance) == (B, "reporting", 0.05)
    assert (first.lowest_name, first.highest_name) == ("none", "clip")
    assert (first.lowest, first.highest) == pytest.approx((0.3 + 0.04 / 3, 0.51))
    noise = math.sqrt((2 * 0.01**2 + 14e-4 / 3) / 4)
    assert first.sd == pytest.approx(noise)
    assert first.range_in_sds == pytest.approx((0.21 - 0.04 / 3) / noise)


def test_tasks_are_spelt_as_text_markdown_and_a_frame() -> None:
    tasks = make_task_table(make_table([CLIP, NONE], halved_board(), toy_entry("mine", [0.25])))
    # One seed's sd is the pooled .0129 here (clip and none on the same three seeds), of 2.21 degrees of freedom.
    half = stats.t.ppf(0.975, 2.20994) * math.sqrt((2 * 0.01**2 + 14e-4 / 3) / 4)
    assert (round(0.35 - half, 3), round(0.35 + half, 3)) == (0.299, 0.401)
    line = "toy/a  dev        accuracy   .313 none  .510 clip  .350 [.299, .401]     .013      15.2\n"
    assert line in render_tasks(tasks, "text")
    cells = "| toy/a | dev | accuracy | .313 none | .510 clip | .350 [.299, .401] | .013 | 15.2 |"
    assert cells in render_tasks(tasks, "markdown")
    assert "> is mine: the mean over training seeds, [ ] where it would lie with other seeds (95 %)." in tasks.sentences
    assert render_tasks(tasks, "text").endswith(f"{NOTE}\n") and "chance" not in render_tasks(tasks, "text")
    assert tasks_to_frame(tasks)["lowest_name"].tolist() == ["none", "none"]


def test_tasks_of_single_seeds_have_no_noise_and_an_empty_board_no_task() -> None:
    once = make_task_table(make_table([toy_entry("clip", [0.4])], toy_board()))
    assert once.rows[0].sd is None and once.rows[0].range_in_sds is None
    assert "The board has no entry yet." in render_tasks(make_task_table(make_table([], toy_board())), "text")


def test_chance_must_be_of_the_same_tasks() -> None:
    with pytest.raises(ValueError, match=r"\['toy/b'\]"):
        toy_entry("clip", [0.4], chance={A: 0.5})


# --- Differences over training seeds, wherever they are printed ------------------------------------------------------


def least_squares(runs: list[dict[int, float]], index: int, other: int) -> tuple[float, float, float]:
    """Return one run minus another with its 95 % interval, by ordinary regression on dummies of runs and seeds."""
    seeds = sorted({seed for run in runs for seed in run})
    cells = [(place, seed, score) for place, run in enumerate(runs) for seed, score in run.items()]
    design = np.array(
        [[*(place == p for p in range(len(runs))), *(seed == s for s in seeds[1:])] for place, seed, _ in cells], float
    )
    scores = np.array([score for _, _, score in cells])
    effects, squares, rank, _ = np.linalg.lstsq(design, scores)
    assert rank == design.shape[1]
    df = len(scores) - rank
    contrast = np.zeros(design.shape[1])
    contrast[index], contrast[other] = 1, -1
    error = math.sqrt(float(squares[0]) / df * contrast @ np.linalg.inv(design.T @ design) @ contrast)
    value = float(contrast @ effects)
    half = float(stats.t.ppf(0.975, df)) * error
    return value, value - half, value + half


def drawn_entry(name: str, generator: np.random.Generator, seeds: tuple[int, ...], centre: float = 0.4) -> Entry:
    """Draw an entry whose tasks have noise of their own; seed s adds .02 s to every score."""
    scores = {s: {task: centre + 0.02 * s + 0.01 * float(generator.normal()) for task in (A, B)} for s in seeds}
    return toy_entry(name, [], seeds=scores)


def spelt(found: RunDifference | None) -> tuple[float, float, float]:
    assert found is not None
    return found.value, found.low, found.high


@pytest.mark.parametrize("mine", [(0,), (0, 1), (0, 1, 2, 3, 4), (1, 7)])
@pytest.mark.parametrize("theirs", [(0,), (1, 2, 3)])
def test_an_interval_is_the_regressions_of_the_boards_entries_and_the_two_runs(
    mine: tuple[int, ...], theirs: tuple[int, ...]
) -> None:
    generator = np.random.default_rng(3)
    board = [drawn_entry(f"e{n}", generator, (0, 1, 2, 3, 4), 0.3 + n / 50) for n in range(4)]
    ours, other = drawn_entry("mine", generator, mine), drawn_entry("other", generator, theirs, 0.45)
    table = make_table(board, toy_board(), ours, (), [other])
    runs = [entry.averages([A, B]) for entry in (*board, ours)]
    for row in table.rows:
        if row.is_highlighted:
            assert row.difference is None
        elif row.is_given:
            assert spelt(row.difference) == pytest.approx(
                least_squares([*runs, other.averages([A, B])], len(board), len(board) + 1)
            )
        else:
            assert spelt(row.difference) == pytest.approx(
                least_squares(runs, len(board), [e.name for e in board].index(row.entry.name))
            )


def test_an_interval_does_not_depend_on_what_else_stands_in_the_table() -> None:
    generator = np.random.default_rng(0)
    board = [drawn_entry(f"e{n}", generator, (0, 1, 2), 0.3 + n / 50) for n in range(3)]
    first, second = drawn_entry("first", generator, (0, 1, 2)), drawn_entry("second", generator, (0,))
    loud = toy_entry("loud", [0.1, 0.9, 0.2, 0.8])

    def differences(*beside: Entry) -> dict[str, tuple[float, float, float]]:
        rows = make_table(board, toy_board(), first, (), list(beside)).rows
        return {row.entry.name: spelt(row.difference) for row in rows if row.entry is not first}

    alone, both, crowded = differences(), differences(second), differences(loud, second)
    assert set(crowded) == {"e0", "e1", "e2", "second", "loud"}
    for name, found in both.items():
        assert found == pytest.approx(crowded[name])
        if name in alone:
            assert found == pytest.approx(alone[name])
    turned = make_table(board, toy_board(), second, (), [first, loud])
    (back,) = (row.difference for row in turned.rows if row.entry is first)
    assert spelt(back) == pytest.approx((-both["second"][0], -both["second"][2], -both["second"][1]))
    # Nor do the ranks of the board's entries among each other.
    for extra in ([], [loud]):
        ranges = {row.entry.name: row.rank for row in make_table(board, toy_board(), second, (), extra).rows}
        plain = {row.entry.name: row.rank for row in make_table(board, toy_board()).rows}
        assert extra or all(ranges[name] == rank for name, rank in plain.items())


def test_a_training_that_stands_on_the_board_too_counts_once() -> None:
    generator = np.random.default_rng(1)
    board = [drawn_entry(f"e{n}", generator, (0, 1, 2, 3, 4), 0.3 + n / 50) for n in range(3)]
    mine = drawn_entry("mine", generator, (0, 1))
    again = dataclasses.replace(board[0], name="again")  # the same subset, seeds and scores: made anew elsewhere
    rows = {row.full_name: row for row in make_table(board, toy_board(), mine, (), [again]).rows}
    assert spelt(rows["again"].difference) == pytest.approx(spelt(rows["e0"].difference))
    part = dataclasses.replace(again, seeds={s: board[0].seeds[s] for s in (0, 1)})
    rows = {row.full_name: row for row in make_table(board, toy_board(), mine, (), [part]).rows}
    runs = [{s: v for s, v in board[0].averages([A, B]).items() if s > 1}, *(e.averages([A, B]) for e in board[1:])]
    expected = least_squares([*runs, mine.averages([A, B]), part.averages([A, B])], 3, 4)
    assert spelt(rows["again"].difference) == pytest.approx(expected)
    # And of a run that is itself the board's, against the entry that it repeats and another.
    rows = {row.full_name: row for row in make_table(board, toy_board(), again).rows}
    assert rows["e0"].difference is not None and rows["e0"].difference.value == pytest.approx(0)
    whole = [entry.averages([A, B]) for entry in board]
    assert spelt(rows["e1"].difference) == pytest.approx(least_squares(whole, 0, 1))


def test_seeds_that_leave_noise_one_degree_of_freedom_give_no_interval() -> None:
    assert fit_seed_model([{0: 0.4, 1: 0.5}, {0: 0.45}]) is None
    assert fit_seed_model([{0: 0.4, 1: 0.5}]) is None
    two = fit_seed_model([{0: 0.40, 1: 0.50}, {0: 0.42, 1: 0.46}])  # paired they would have one; as two samples two
    assert two is not None and (two.rest_df, two.seed_df) == (2, 0)
    found = stats.ttest_ind([0.40, 0.50], [0.42, 0.46])
    assert two.difference(0, 1).p == pytest.approx(found.pvalue)
    text = text_under([], toy_entry("mine", [0.4, 0.5]))
    assert "noise" not in text
    table = make_table([], toy_board(), toy_entry("mine", [0.4, 0.5]), (), [toy_entry("other", [0.45])])
    assert not table.has_differences and "minus row" not in render_table(table)
    assert any(sentence.startswith("Too few seeds to know seed noise") for sentence in table.sentences)


@pytest.mark.parametrize("shared", [0.0, 3.0])
@pytest.mark.parametrize(
    ("mine", "theirs", "peers"),
    [
        ([0, 1], [0, 1], 0),
        ([0, 1], [0, 5], 0),
        ([0, 1, 2], [0], 0),
        ([0, 1], [0], 5),
        ([0], [1], 5),
        ([0, 7], [7], 5),
    ],
)
def test_intervals_of_few_seeds_cover_the_true_difference_95_times_in_100_or_more(
    mine: list[int], theirs: list[int], peers: int, shared: float
) -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        effects = shared * generator.normal(size=10)

        def scores(name: str, seeds: list[int], shift: float, effects: np.ndarray = effects) -> SeedScores:
            return SeedScores(name, {s: {A: shift + float(effects[s] + generator.normal())} for s in seeds})

        others = Peers(tuple(scores(f"e{n}", [0, 1, 2], 0.0) for n in range(peers)))
        found = others.difference(scores("mine", mine, 1.0), scores("theirs", theirs, 0.0), [A])
        assert found is not None and found.df >= 2
        covered += found.low <= 1.0 <= found.high
    assert covered / 400 >= 0.925
    assert covered / 400 <= (0.98 if peers else 1.0)  # what runs alone cannot tell apart is counted as noise


def test_what_a_row_differs_by_is_the_highlighted_run_minus_the_row() -> None:
    table = make_table([NONE], toy_board(), toy_entry("mine", [0.42, 0.43, 0.45]))
    (row,) = (row for row in table.rows if not row.is_highlighted)
    assert row.difference is not None and row.difference.value == pytest.approx(0.22)
    assert "better than none" in " ".join(table.sentences)
    told = "> minus row is the average of the run marked > less the row's (positive: > scored higher), with its 95 %"
    assert any(sentence.startswith(told) for sentence in table.sentences)
    assert "&gt; minus row<br>[95 %]" in render_html(table) and "&gt; mine" in render_html(table)


def test_several_runs_stand_in_the_table_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    board = read_board(BOARDS_DIR / "pico")
    fields: dict[str, Any] = {"scale": "pico", "recipe": board.rules.recipe, "suite": board.rules.suite}

    def written(file_name: str, name: str, scores: list[float], **more: Any) -> str:
        seeds = {seed: dict.fromkeys(board.task_names, score) for seed, score in enumerate(scores)}
        write_entry(tmp_path / file_name, toy_entry(name, [], seeds=seeds, **fields, **more))
        return str(tmp_path / file_name)

    elsewhere = dataclasses.replace(CLIP.pool, fingerprint="f" * 64)
    paths = [
        written("one.json", "one", [0.40, 0.42, 0.43]),
        written("two.json", "two", [0.30, 0.32, 0.34]),
        written("again.json", "two", [0.31, 0.33, 0.32]),
        written("far.json", "far", [0.5], pool=elsewhere),
    ]
    options = [option for path in paths for option in ("--entry", path)]
    assert main(["leaderboard", "table", "--board", "pico", *options]) == 0
    text = capsys.readouterr().out
    assert re.findall(r"^([>+]) *\S+ +(\w+(?: #\d)?)  ", text, re.M) == [(">", "one"), ("+", "two #2"), ("+", "two #3")]
    told = " ".join(text.split())
    assert "> is one, with which every row is compared; + two #2 and two #3, given beside it" in told
    assert "do not compare with one's: 1 on another pool (far)." in told
    assert main(["leaderboard", "table", "--board", "pico", "--format", "csv", *options]) == 0
    frame = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert frame["given"].tolist() == [True] * 3 and frame["highlighted"].tolist() == [True, False, False]
    assert main(["leaderboard", "table", "--board", "pico", "--tasks", *options]) == 0
    tasks = capsys.readouterr().out
    assert "> is one, +1 is two #2 and +2 is two #3: the mean" in " ".join(tasks.split())
    with pytest.raises(UserError) as caught:
        board_table("pico", [Path(paths[0]), tmp_path / "." / "one.json"], "text")
    assert caught.value.code == "entry-given-twice"


def test_a_run_on_another_drawing_of_the_pool_stands_among_the_entries_of_that_drawing() -> None:
    others = pool_entries(pools="12")
    mine = dataclasses.replace(toy_entry("mine", [0.41]), pool=others[0].pool)
    table = make_table([CLIP, NONE], toy_board(), mine, others)
    assert [row.entry.name for row in table.rows] == ["clip", "mine", "none"]
    assert {row.entry.pool.fingerprint for row in table.rows} == {"1" * 64}
    assert all(row.difference is not None for row in table.rows if not row.is_highlighted)
    text = " ".join(table.sentences)
    assert "no entry to compare with" not in text and "2 on another pool (clip and none)" in text
    # Without a run the board's own pool is shown, and it alone.
    assert {row.entry.pool.fingerprint for row in make_table([CLIP, NONE], toy_board(), None, others).rows} == {
        "a" * 64
    }


def test_the_shipped_entries_of_other_pools_are_found_by_a_run_on_their_pool() -> None:
    board = read_board(BOARDS_DIR / "nano")
    others = read_other_pools(board)
    mine = dataclasses.replace(others[0], name="mine", seeds={0: others[0].seeds[0]}, subset=CLIP.subset)
    table = make_table(read_entries(board), board, mine, others)
    there = [entry for entry in others if entry.pool.fingerprint == mine.pool.fingerprint]
    assert len(table.rows) == 1 + len(there) >= 4


def test_the_development_half_has_noise_and_intervals_too() -> None:
    mine = toy_entry("mine", [], seeds={s: {A: 0.5 + d, B: 0.3} for s, d in enumerate((0.0, 0.03, 0.01))})
    table = make_table([CLIP, NONE], halved_board(), mine)
    frame = to_frame(table).set_index("name")
    runs = [entry.averages([A]) for entry in (CLIP, NONE, mine)]
    columns = ["dev_highlighted_minus_row", "dev_highlighted_minus_row_low", "dev_highlighted_minus_row_high"]
    assert tuple(frame.loc["clip", columns]) == pytest.approx(least_squares(runs, 2, 0))
    assert frame.loc["mine", "dev_sd"] == pytest.approx(sd(runs[2]))
    model = fit_seed_model(runs)
    assert model is not None
    half = (least_squares(runs, 2, 0)[2] - least_squares(runs, 2, 0)[1]) / 2
    told = (
        f"On the development half (dev) the seed noise is sd {model.sd:.3f}; there a difference of > from a row "
        f"under {half:.3f} (95 %) may be mere seed noise."
    )
    assert told.replace("0.", ".") in table.sentences
    assert any("the same 3 seeds may be" in each for each in make_table([CLIP, NONE], halved_board()).sentences)


EXPECTED_TABLE = """\
Toy board

 rank  name                 keeps          average  accuracy  retrieval           > minus row
                                      ± sd (seeds)                                     [95 %]
---------------------------------------------------------------------------------------------
    -  planted (reference)   30 %  .513 ± .015 (3)      .613       .413  -.080 [-.086, -.074]
>   1  mine                  30 %  .433 ± .015 (3)      .533       .333
  2-3  same                  30 %  .413 ± .010 (3)      .513       .313  +.020 [+.014, +.026]
  2-3  clip                  30 %  .410 ± .010 (3)      .510       .310  +.023 [+.017, +.029]
    4  none                  30 %  .213 ± .015 (3)      .313       .113  +.220 [+.214, +.226]

mine: better than same, clip and none; worse than planted (reference) (95 %, not adjusted for the number of
comparisons).
The same holds with Holm's correction for 4 comparisons.
> minus row is the average of the run marked > less the row's (positive: > scored higher), with its 95 % interval over
training seeds; `winnow leaderboard compare` gives the same for two experiments.
Minimum detectable difference (80 % power) from an entry of 3 seeds: .012 with 1 seed, .008 with 3 seeds and .008 with
5 seeds.
Seed noise, by which an average moves with the training seed: sd .013, of which .013 moves all runs of a seed alike;
the rest is known with 8 degrees of freedom. Runs that share seeds are compared without the shared part, so a
difference need not be that of the averages. Intervals and ranks (95 %) go pair by pair; a rank needs 3 seeds (else
-), and runs that cannot be told apart share theirs. They cover the training seed only: another pool or other test
samples move scores too.
keeps is the share of the pool that the strategy chose; average is the mean over all 2 tasks; ± is the standard
deviation over so many (training seeds); the other columns are means over all tasks of a group.
planted (reference): an oracle, which knows the planted labels; not ranked, cannot be submitted, not an upper bound.
No evidence about anything else.
"""


def test_an_entry_is_named_by_its_file_or_its_experiments_folder(tmp_path, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    assert main(["leaderboard", "table", "--entry", str(folder)]) == 2
    assert "there is no " in capsys.readouterr().err
    shipped = sorted((Path("leaderboard/nano/entries")).glob("*.json"))[0]
    (folder / "entry.json").write_bytes(shipped.read_bytes())
    tables = []
    for path in (folder, folder / "entry.json"):
        assert main(["leaderboard", "table", "--entry", str(path)]) == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1] and "The run marked >" in tables[0]
