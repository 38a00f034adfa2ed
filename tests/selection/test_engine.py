"""The filter engine against a naive one (naive_engine.py), on random pools: 500, or 5,000 with `-m thousands`."""

import tempfile
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import benchmark.selection.cuts
import benchmark.selection.engine
import benchmark.selection.shard_evaluation
from benchmark.pool.pool import Pool
from benchmark.pool.subset import Subset
from benchmark.pool.uids import format_uids, parse_uids
from benchmark.runtime.errors import UserError
from benchmark.selection.engine import run_filters
from benchmark.selection.rules import Cut, Rule
from tests.conftest import THOUSANDS, loaded_plugin, uid
from tests.naive_engine import ConstantScoreError, NaiveRule, naive_subset

PLUGIN = '''"""Filters made for the comparison with a naive engine."""

import numpy as np
import pandas as pd

from benchmark import register_filter, register_selector, register_signal
from benchmark.selection.views import PoolView
from benchmark.pool.subset import Subset


@register_filter(columns=["mask"])
def e_mask(rows: pd.DataFrame) -> pd.Series:
    """Keep by the column, which may be null."""
    return rows["mask"]


@register_filter(columns=["score"], fraction=0.5)
def e_score(rows: pd.DataFrame) -> pd.Series:
    """Score by the column."""
    return rows["score"]


@register_filter(columns=["text", "score"], fraction=0.5)
def e_gap(rows: pd.DataFrame) -> pd.Series:
    """Score by the column where the caption is English."""
    return rows["score"].where(rows["text"].str.startswith("en").fillna(False).astype(bool))


@register_filter(columns=["narrow"], threshold=0.3)
def e_narrow(rows: pd.DataFrame) -> pd.Series:
    """Score by a column of 32 bits."""
    return rows["narrow"]


@register_filter(columns=["whole"], fraction=0.5)
def e_whole(rows: pd.DataFrame) -> pd.Series:
    """Score by whole numbers, some of which are missing."""
    return rows["whole"]


@register_filter(columns=["copies"])
def e_copies(rows: pd.DataFrame) -> pd.Series:
    """Copy by the column."""
    return rows["copies"]


@register_signal(columns=["score", "text"])
def e_twice(rows: pd.DataFrame, *, times: float = 2.0) -> pd.Series:
    """Twice the score, of captions with a word."""
    return (rows["score"] * times).where(rows["text"].notna())


@register_filter(signals=["e_twice"], fraction=0.5)
def e_signal(rows: pd.DataFrame, *, times: float = 2.0) -> pd.Series:
    """Score by a signal."""
    return rows["e_twice"]


@register_selector(columns=["copies"])
def e_select(pool: PoolView, *, seed: int = 0) -> Subset:
    """Take as many copies of each row as its column says."""
    return Subset.of(np.repeat(pool.uids, pool.columns["copies"].to_numpy().astype(int)))
'''


@pytest.fixture(scope="module", autouse=True)
def plugin(tmp_path_factory):
    with loaded_plugin(tmp_path_factory.mktemp("plugins") / "made_for_the_engine.py", PLUGIN) as path:
        yield path


def number(row, name):
    value = row[name]
    return None if value is None or pd.isna(value) else value


def is_english(row):
    return isinstance(row["text"], str) and row["text"].startswith("en")


VALUES = {
    "e_mask": lambda row: None if number(row, "mask") is None else bool(row["mask"]),
    "e_score": lambda row: number(row, "score"),
    "e_gap": lambda row: number(row, "score") if is_english(row) else None,
    "e_narrow": lambda row: None if number(row, "narrow") is None else np.float32(row["narrow"]),
    "e_whole": lambda row: None if number(row, "whole") is None else float(row["whole"]),
    "e_copies": lambda row: int(row["copies"]),
    "e_signal": lambda row: (
        None if number(row, "score") is None or not isinstance(row["text"], str) else row["score"] * 2
    ),
    "e_select": lambda row: int(row["copies"]),
}
UNCUT = {"e_mask", "e_copies", "e_select"}

SCORES = st.sampled_from([np.nan, -np.inf, np.inf, -0.0, 0.0, 0.1, 0.25, 0.25 + 2**-54, 0.3, 1.0, 5e-324, -2.5])
ROW = st.fixed_dictionaries(
    {
        "uid": st.integers(0, 9).map(uid),
        "text": st.sampled_from(["en a", "de b", "en", None]),
        "score": SCORES,
        "narrow": st.sampled_from([np.nan, 0.7, 0.7, 0.3, 0.29999998, -1.0]),
        "whole": st.sampled_from([-2, 0, 0, 1, 3, 2**53, None]),
        "mask": st.sampled_from([True, True, False, None]),
        "copies": st.integers(0, 3),
    }
)
SILENT = {"score": None, "mask": None, "whole": None}
FRACTIONS = st.sampled_from([0.05, 0.1, 0.25, 0.3, 0.5, 0.7, 0.9, 1.0])
# Between values, at them, and where 32 bits are less than 64 (0.7) or more (0.3).
THRESHOLDS = {"e_narrow": [0.3, 0.7], "e_whole": [-2.0, 0.3, 1.0]}
# Several times: what hangs on a rare constellation of shards.
NAMES = [*sorted(VALUES), "e_gap", "e_gap", "e_gap", "e_narrow", "e_whole"]


def rules_called(name):
    limits = st.sampled_from(THRESHOLDS.get(name, [-3.0, 0.0, 0.25, 1.0]))
    cuts = st.one_of(st.tuples(st.just("fraction"), FRACTIONS), st.tuples(st.just("threshold"), limits))
    return st.tuples(st.just(name), st.none() if name in UNCUT else cuts)


RULE = st.sampled_from(NAMES).flatmap(rules_called)


@st.composite
def worlds(draw):
    """Draw metadata shards, of which some say nothing, and what is asked of them, once or several times."""
    shards = []
    for rows in draw(st.lists(st.lists(ROW, max_size=7), min_size=1, max_size=4)):
        same = draw(
            st.sampled_from(
                [{}, {"text": "en", "whole": 0}, {"text": "en", "narrow": 0.7}, {"text": "de"}, {"text": "de"}, SILENT]
            )
        )
        shards.append([{**row, **same} for row in rows])
    uids = sorted({row["uid"] for rows in shards for row in rows})
    within = st.none()
    if uids:
        some = st.dictionaries(st.sampled_from(uids), st.integers(1, 3), min_size=1)
        within = st.one_of(within, some.map(Counter))
    asked = st.tuples(st.lists(RULE, min_size=1, max_size=2, unique_by=lambda rule: rule[0]), within)
    sizes = {"SLICE_ROWS": draw(st.sampled_from([1, 2, 8192])), "MAX_GATHERED": draw(st.sampled_from([1, 3, 1 << 20]))}
    sizes["MAX_SORTED"] = draw(st.sampled_from([4, 1 << 20]))
    return shards, draw(st.lists(asked, min_size=1, max_size=2)), draw(st.integers(0, 3)), sizes


def write_metadata(folder, shards):
    folder.mkdir(parents=True)
    for place, rows in enumerate(shards):
        frame = pd.DataFrame(rows, columns=["uid", "text", "score", "narrow", "whole", "mask", "copies"])
        types = {
            "uid": "str",
            "text": "str",
            "score": "float64",
            "narrow": "float32",
            "whole": "Int64",
            "copies": "int64",
        }
        if place % 2 == 0:  # the others' masks have the type that their values suggest
            types["mask"] = "boolean"
        frame.astype(types).to_parquet(folder / f"{place:032x}.parquet")


def copies_by_engine(pool_dir, rules, within):
    made = [
        Rule(
            name, {"times": 2.0} if name == "e_signal" else {"seed": 0} if name == "e_select" else {}, cut and Cut(*cut)
        )
        for name, cut in rules
    ]
    given = None if within is None else Subset.of(parse_uids(list(within.elements())))
    return Counter(format_uids(run_filters(Pool(pool_dir), made, within=given).subset.uids))


def compare_engines(world):
    shards, runs, damage, sizes = world
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(benchmark.selection.shard_evaluation, "SLICE_ROWS", sizes["SLICE_ROWS"]),
        mock.patch.object(benchmark.selection.cuts, "MAX_GATHERED", sizes["MAX_GATHERED"]),
        mock.patch.object(benchmark.selection.engine, "MAX_SORTED", sizes["MAX_SORTED"]),
    ):
        pool_dir = Path(folder) / "pool"
        write_metadata(pool_dir / "metadata", shards)
        for rules, within in runs:  # one after the other, with what was computed before
            naive = [NaiveRule(VALUES[name], cut, name == "e_select") for name, cut in rules]
            try:
                expected = naive_subset(pool_dir / "metadata", naive, within) or "nothing-left"
            except ConstantScoreError:
                expected = "constant-score"
            try:
                found = copies_by_engine(pool_dir, rules, within)
            except UserError as error:
                found = error.code
            assert found == expected, (rules, within)
            cached = sorted((pool_dir / "signals").glob("*/*.parquet"))
            for path in cached[damage - 1 :: 2] if damage else []:  # of some shards they are gone
                path.unlink()


@given(worlds())
@settings(max_examples=500)
def test_the_engine_chooses_what_a_naive_one_chooses(world):
    compare_engines(world)


@pytest.mark.thousands
@given(worlds())
@settings(THOUSANDS)
def test_the_engine_chooses_what_a_naive_one_chooses_of_thousands_of_pools(world):
    compare_engines(world)
