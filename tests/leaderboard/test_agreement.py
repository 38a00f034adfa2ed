"""Agreement with published scores: known orders, brute force, and which entries a published row is about."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from benchmark.registry import STRATEGIES, load_strategies
from leaderboard.agreement import (
    PUBLISHED_PATH,
    SameRule,
    agreement_to_frame,
    compare,
    make_agreement,
    rank_correlations,
    read_published,
    render_agreement,
    shares_in_the_same_order,
)
from leaderboard.board import BOARDS_DIR, read_board, read_entries
from leaderboard.entries import StrategyUsed
from leaderboard.table import make_table
from tests.conftest import user_error


def used(name: str = "clip_score", *, cut: float | None = 0.3, **options: Any) -> StrategyUsed:
    return StrategyUsed(name=name, options=options, cut=None if cut is None else {"fraction": cut}, source="e" * 64)


def test_datacomps_own_rules_keep_82_percent_of_pairs_from_small_to_medium() -> None:
    rules = read_published().paper_rules
    small = [{0: row.small.average} for row in rules if row.small]
    medium = [row.medium.average for row in rules if row.medium]
    comparison = compare("", small, medium)
    assert comparison.num_strategies == 10 and comparison.rho is not None and comparison.same_order is not None
    assert comparison.rho.value == pytest.approx(0.81, abs=0.005)
    assert comparison.same_order.value == pytest.approx(36 / 44)
    assert comparison.rho.low < 0.81 < comparison.rho.high


def test_lines_are_compared_as_scipy_and_a_loop_do() -> None:
    generator = np.random.default_rng(0)
    ours, theirs = generator.integers(4, size=(2, 20, 6)).astype(float)
    identity = generator.integers(5, size=(20, 6))
    assert rank_correlations(ours, theirs, identity) == pytest.approx(
        [stats.spearmanr(a, b).statistic for a, b in zip(ours, theirs, strict=True)]
    )
    for a, b, who, share in zip(ours, theirs, identity, shares_in_the_same_order(ours, theirs, identity), strict=True):
        pairs = [(i, j) for i, j in itertools.combinations(range(6), 2) if who[i] != who[j]]
        products = [(a[i] - a[j]) * (b[i] - b[j]) for i, j in pairs]
        assert share == pytest.approx(sum(p > 0 for p in products) / sum(p != 0 for p in products))


def test_equal_orders_agree_and_reversed_ones_do_not() -> None:
    ours = [{0: 0.1}, {0: 0.2}, {0: 0.3}, {0: 0.4}]
    for published, rho, share in ([1, 2, 3, 4], 1.0, 1.0), ([4, 3, 2, 1], -1.0, 0.0):
        comparison = compare("", ours, published)
        assert comparison.rho is not None and comparison.same_order is not None
        assert (comparison.rho.value, comparison.rho.low, comparison.rho.high) == pytest.approx((rho,) * 3)
        assert (comparison.same_order.low, comparison.same_order.high) == (share, share)


def test_two_strategies_or_a_constant_side_have_no_agreement() -> None:
    assert compare("", [{0: 0.1}, {0: 0.2}], [1, 2]).rho is None
    constant = compare("", [{0: 0.1}, {0: 0.2}, {0: 0.3}], [1, 1, 1])
    assert constant.rho is None and constant.same_order is None


def test_noise_of_our_seeds_widens_the_interval() -> None:
    means = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    quiet = compare("", [{0: m, 1: m} for m in means], means).rho
    loud = compare("", [{0: m + (-1) ** i * 0.3, 1: m - (-1) ** i * 0.3} for i, m in enumerate(means)], means).rho
    assert quiet is not None and loud is not None
    assert quiet.value == loud.value == pytest.approx(1)
    assert quiet.low == pytest.approx(1) and loud.low < 0.9


@pytest.mark.parametrize(
    ("rule", "strategy", "is_met"),
    [
        (SameRule("clip_score", {"arch": "l14"}, {"fraction": 0.3}), used(arch="l14"), True),
        (SameRule("clip_score"), used(arch="l14"), True),
        (SameRule("clip_score"), used(arch="l14", cut=0.2), False),
        (SameRule("clip_score", cut={"fraction": 0.2}), used(arch="l14", cut=0.2), True),
        (SameRule("clip_score"), used(arch="b32"), False),
        (SameRule("clip_score", {"arch": "b32"}), used(arch="b32"), True),
        (SameRule("laion2b"), used("laion2b", cut=None, min_similarity=0.25, language_model=None), False),
        (
            SameRule("laion2b", free=("min_similarity",)),
            used("laion2b", cut=None, min_similarity=0.25, language_model=None),
            True,
        ),
        (SameRule("mine"), used("mine", cut=None), False),
        (SameRule("normsim"), used("normsim", cut=0.2, arch="l14", norm="max", targets=["0" * 64]), True),
        (SameRule("normsim"), used("normsim", cut=0.2, arch="b32", norm="max", targets=["0" * 64]), False),
    ],
)
def test_a_strategy_is_a_published_rule_where_options_and_cut_are(
    rule: SameRule, strategy: StrategyUsed, is_met: bool
) -> None:
    load_strategies()
    assert rule.is_met_by(strategy) == is_met


def test_the_shipped_mapping_names_options_that_there_are() -> None:
    load_strategies()
    for row in read_published().rows:
        for rule in row.winnow:
            if rule.filter in STRATEGIES:
                strategy = STRATEGIES[rule.filter]
                assert {*rule.options, *rule.free} <= set(strategy.options), row.name
                assert strategy.has_cut or rule.cut is None, row.name


def test_the_shipped_board_is_compared_and_one_entry_is_one_row() -> None:
    board = read_board(BOARDS_DIR / "nano")
    entries = read_entries(board)
    agreement = make_agreement(make_table(entries, board), read_published())
    published = {match.row.entry.name: match.score_at("small", "average") for match in agreement.matches}
    assert published["clip_score-0.3"] == 0.173 and published["no_filter"] == 0.132
    assert "planted_clean" not in published
    assert len(agreement_to_frame(agreement)) == len(agreement.comparisons) == 8
    for style in ("text", "markdown"):
        assert board.rules.note in render_agreement(agreement, style).replace("\n", " ")
        average = (
            "average here is the mean over the suite's reporting half (8 tasks); of DataComp's scores it is over its 38"
        )
        assert average in render_agreement(agreement, style).replace("\n", " ")
    twin = dataclasses.replace(next(e for e in entries if e.name == "no_filter"), name="twin")
    with user_error("board-invalid", match="'No filtering'"):
        make_agreement(make_table([*entries, twin], board), read_published())


def test_a_source_that_is_not_explained_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "published.json"
    path.write_text(PUBLISHED_PATH.read_text().replace('"LB": "', '"XX": "'))
    assert "LB" not in json.loads(path.read_text())["sources"]
    with user_error("entry-invalid", match=r"published.json.*\['LB'\]"):
        read_published(path)
