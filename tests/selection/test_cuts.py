"""Exact cuts in fixed memory: against `top_fraction`, which sorts, whatever the tables' and the shards' sizes."""

from unittest import mock

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from benchmark.pool.pool import Pool
from benchmark.pool.uids import UID_DTYPE, format_uids
from benchmark.selection import cuts
from benchmark.selection.cuts import OpenCut, RowKeys, TopCut, count_digits, gather_words, score_words
from benchmark.selection.engine import run_filters
from benchmark.selection.rules import Cut, Rule
from benchmark.selection.scoring import top_fraction
from tests.conftest import loaded_plugin, uid, write_pool

PLUGIN = '''"""A score for tests."""

import pandas as pd

from benchmark import register_filter


@register_filter(columns=["score"], fraction=0.5)
def c_score(rows: pd.DataFrame) -> pd.Series:
    """Score by the column."""
    return rows["score"]
'''


@pytest.fixture(scope="module", autouse=True)
def plugin(tmp_path_factory, strategies):
    with loaded_plugin(tmp_path_factory.mktemp("plugins") / "scores_for_cuts.py", PLUGIN) as path:
        yield path


def test_words_rise_as_scores_fall():
    scores = np.array([np.inf, 3.5, 1.0, 0.25, 1e-300, 0.0, -1e-300, -0.25, -7.0, -np.inf])
    words = score_words(scores).tolist()
    assert words == sorted(words) and len(set(words)) == len(words)
    narrow = np.array([0.1, 0.2, 0.2], dtype=np.float32)
    assert score_words(narrow).tolist() == score_words(narrow.astype(np.float64)).tolist()


def find_cut(shards, wanted):
    """Find a cut over shards of (scores, uids) as the engine does, with the number of passes."""
    keys = [
        RowKeys(scores, np.arange(len(scores)), number, lambda rows, uids=uids: uids[rows])
        for number, (scores, uids) in enumerate(shards)
    ]
    cut, passes = OpenCut(wanted, sum(len(scores) for scores, _ in shards)), 0
    while isinstance(cut, OpenCut):
        passes += 1
        if cut.is_small:
            cut = cut.with_word(np.concatenate([gather_words(each, cut) for each in keys]))
        else:
            cut = cut.narrowed(sum(count_digits(each, cut) for each in keys))
    return np.concatenate([cut.keeps(each) for each in keys]), passes, cut.ties


SCORES = st.sampled_from([-np.inf, -2.0, -5e-324, 0.0, 5e-324, 0.3, 0.3 + 2**-54, 1.0, np.inf])


@given(
    st.lists(st.lists(st.tuples(SCORES, st.integers(0, 3), st.integers(0, 2)), max_size=12), min_size=1, max_size=4),
    st.integers(1, 50),
    st.sampled_from([1, 3, 1 << 20]),
)
@settings(max_examples=300)
def test_a_cut_keeps_what_sorting_keeps_and_counts_its_ties(drawn, wanted, max_gathered):
    """Sorted by score, uid and place, in Python; the smaller words of uids come first."""
    rows = [(-score, high, low, s, n) for s, part in enumerate(drawn) for n, (score, high, low) in enumerate(part)]
    assume(wanted <= len(rows))
    kept = sorted(rows)[:wanted]
    shards = [
        (np.array([row[0] for row in part]), np.array([row[1:] for row in part], dtype=UID_DTYPE)) for part in drawn
    ]
    with mock.patch.object(cuts, "MAX_GATHERED", max_gathered):
        mask, _, ties = find_cut(shards, wanted)
    places = [(s, n) for s, part in enumerate(drawn) for n in range(len(part))]
    assert [place for place, keep in zip(places, mask, strict=True) if keep] == sorted(row[3:] for row in kept)
    last = kept[-1][0]
    assert (ties.rows, ties.kept) == (sum(r[0] == last for r in rows), sum(r[0] == last for r in kept))


@pytest.mark.parametrize("max_gathered", [1, 7, 10**6])
@pytest.mark.parametrize("levels", [1, 3, 10**9])  # different scores: all tie, many tie, none does
def test_a_cut_by_counting_is_the_cut_by_sorting(monkeypatch, max_gathered, levels):
    monkeypatch.setattr(cuts, "MAX_GATHERED", max_gathered)
    rng = np.random.default_rng(levels % 1000)
    scores = (rng.integers(0, levels, 60) / levels - 0.5).astype(np.float32)
    uids = np.empty(60, dtype=UID_DTYPE)
    uids["f0"], uids["f1"] = rng.integers(0, 2, 60) << 62, rng.integers(0, 6, 60)  # many share a uid
    shards = [(scores[rows], uids[rows]) for rows in (slice(0, 25), slice(25, 25), slice(25, 60))]
    for wanted in (1, 2, 17, 30, 59, 60):
        found, passes, _ = find_cut(shards, wanted)
        assert found.tolist() == top_fraction(scores, uids, wanted / 60, 60).tolist() and found.sum() == wanted
        assert passes <= 4 * (cuts.DIGITS_PER_WORD + 1)


def test_a_cut_between_different_scores_looks_at_no_uid():
    def refuse(rows):
        raise AssertionError("no uid is needed")

    keys = RowKeys(np.array([3.0, 1.0, 1.0, 2.0]), np.arange(4), 0, refuse)
    for wanted, kept in ((1, [0]), (2, [0, 3]), (4, [0, 1, 2, 3])):
        cut = OpenCut(wanted, 4).with_word(gather_words(keys, OpenCut(wanted, 4)))
        assert isinstance(cut, TopCut) and np.flatnonzero(cut.keeps(keys)).tolist() == kept
    assert isinstance(OpenCut(3, 4).with_word(gather_words(keys, OpenCut(3, 4))), OpenCut)


@pytest.mark.parametrize("max_gathered", [1, 10**6])
def test_the_engine_cuts_over_shards_as_one_sort_would(tmp_path, monkeypatch, max_gathered):
    """Float32 here and float64 there, ties over shards, missing scores, a uid on several rows."""
    monkeypatch.setattr(cuts, "MAX_GATHERED", max_gathered)
    rng = np.random.default_rng(3)
    numbers = rng.permutation(90)
    numbers[[5, 40, 80]] = numbers[4]
    scores = np.round(rng.normal(size=90), 1).astype(np.float32)
    scores[[7, 50]] = np.nan
    parts = [slice(0, 30), slice(30, 31), slice(31, 90)]
    kinds = (np.float32, np.float64, np.float32)
    pool_dir = write_pool(
        tmp_path / "pool",
        *(
            pd.DataFrame({"uid": [uid(n) for n in numbers[rows]], "score": scores[rows].astype(kind)})
            for rows, kind in zip(parts, kinds, strict=True)
        ),
    )
    for fraction in (0.01, 0.1, 0.5, 0.97):
        outcome = run_filters(Pool(pool_dir), [Rule("c_score", {}, Cut("fraction", fraction))])
        rows = sorted((r for r in range(90) if not np.isnan(scores[r])), key=lambda r: (-scores[r], numbers[r], r))
        expected = sorted(numbers[rows[: round(fraction * 90)]])
        assert [int(text, 16) for text in format_uids(outcome.subset.uids)] == expected
