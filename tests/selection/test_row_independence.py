"""Rules that look across rows or do not repeat themselves are refused; the shipped ones are asked and pass."""

import inspect

import numpy as np
import pytest

from benchmark.pool.pool import Pool
from benchmark.registry import STRATEGIES
from benchmark.runtime.errors import UserError
from benchmark.selection import row_independence, shard_evaluation
from benchmark.selection.engine import run_filters
from benchmark.selection.rules import Cut, Rule, make_rule
from tests.conftest import loaded_plugin, uid, user_error, write_pool

PLUGIN = '''"""Filters that see more than their own row, and some that do not."""

import numpy as np
import pandas as pd

from benchmark import register_filter, register_signal

CALLS = []


@register_filter(columns=["score"])
def c_median(rows):
    """Keep what is above the slice's median."""
    return rows["score"] > rows["score"].median()


@register_filter(columns=["score"], fraction=0.5)
def c_normed(rows):
    """Score in standard deviations of the slice."""
    return (rows["score"] - rows["score"].mean()) / rows["score"].std()


@register_filter(columns=["score"], threshold=0.5)
def c_rank(rows):
    """Score by the rank in the slice."""
    return rows["score"].rank(pct=True)


@register_filter(columns=["text"])
def c_first(rows):
    """Keep the first row of each caption."""
    return ~rows["text"].duplicated()


@register_filter(columns=["text"])
def c_copies(rows):
    """As many copies as there are rows of the caption."""
    return rows.groupby("text")["text"].transform("size")


@register_filter(columns=["score"], fraction=0.5)
def c_gap(rows):
    """No verdict on what is below the slice's mean."""
    return rows["score"].where(rows["score"] > rows["score"].mean())


@register_signal(columns=["score"])
def c_half(rows):
    """Say in words in which half of the slice it is."""
    return ["high" if is_high else "low" for is_high in rows["score"] > rows["score"].median()]


@register_filter(signals=["c_half"])
def c_high(rows):
    """Keep by a signal that looks across rows."""
    return rows["c_half"] == "high"


@register_filter(columns=["name"])
def c_again(rows):
    """Drop the rows whose name stands further up in the slice."""
    return ~rows["name"].duplicated()


@register_filter(columns=["score"], fraction=0.5)
def c_filled(rows):
    """Give the few rows with a low score the slice's mean."""
    found = rows["score"].where(rows["score"] > 0.004)
    return found.fillna(found.mean())


@register_filter(columns=["score"], fraction=0.5)
def c_clipped(rows):
    """Clip the few scores that are very high to the slice's."""
    return rows["score"].clip(upper=rows["score"].quantile(0.996))


@register_filter(columns=["name", "score"])
def c_squeezed(rows):
    """Keep all but one row by its own name; one row alone is no list, as of a model whose output is squeezed."""
    return (rows["name"] != "name 17").to_numpy().squeeze()


@register_filter(columns=["score"])
def c_random(rows):
    """Keep at random."""
    return np.random.default_rng().random(len(rows)) < 0.5


@register_filter(columns=["score"], fraction=0.5)
def c_counting(rows):
    """Score by how often it was called."""
    CALLS.append(len(rows))
    return rows["score"] + len(CALLS)


@register_filter(columns=["score"], fraction=0.5)
def c_rounded(rows):
    """Score with an error as a model's, which hangs on the size of its batch."""
    return rows["score"] + 1e-6 * len(rows) / 8192


@register_filter(columns=["score"], fraction=0.5)
def c_halves(rows):
    """Score in halves, with such an error: where a score is near the middle of two, it is rounded to another."""
    middle = (np.round(rows["score"] * 1024) + 0.5) / 1024 + 1e-7 * (1 if len(rows) > 200 else -1)
    return (1 + middle).astype(np.float16)


@register_filter(columns=["score"])
def c_own(rows):
    """Keep by a row's own score."""
    return rows["score"] > 0.5


@register_signal(columns=["score"], asks_server=True)
def c_server(rows):
    """Answer anew each time, as a server may."""
    CALLS.append(len(rows))
    return np.full(len(rows), float(len(CALLS)))


@register_filter(columns=["score"], signals=["c_server"])
def c_served(rows):
    """Keep all that the server has answered."""
    return rows["c_server"] > 0
'''
ACROSS = ["c_median", "c_normed", "c_rank", "c_first", "c_copies", "c_gap", "c_high"]


@pytest.fixture(scope="module", autouse=True)
def plugin(tmp_path_factory, strategies):
    with loaded_plugin(tmp_path_factory.mktemp("plugins") / "made_for_company.py", PLUGIN) as path:
        yield path


@pytest.fixture(autouse=True)
def _nothing_asked_yet(monkeypatch):
    monkeypatch.setattr(row_independence, "_REPEATED", {})


def pool_of(tmp_path, num_rows):
    scores = np.random.default_rng(0).random(num_rows)
    texts = [f"caption {number % (num_rows // 2)}" for number in range(num_rows)]
    # Two rows in three thousand share one.
    names = [f"name {number}" if number % 1500 else f"twin {number // 3000}" for number in range(num_rows)]
    columns = {"uid": [uid(n) for n in range(num_rows)], "score": scores, "text": texts, "name": names}
    return Pool(write_pool(tmp_path / "p", columns))


def rule(name):
    return make_rule(name, {})


@pytest.mark.parametrize("num_rows", [10, 300, 9000])
@pytest.mark.parametrize("name", ACROSS)
def test_a_rule_that_looks_across_rows_is_refused(tmp_path, name, num_rows):
    pool = pool_of(tmp_path, num_rows)
    with user_error("looks-across-rows", match=f"{'c_half' if name == 'c_high' else name}") as caught:
        run_filters(pool, [rule(name)])
    assert caught.value.code == "looks-across-rows"
    assert not list(pool.signals_dir.glob("*/*.parquet"))  # nothing of it is kept


@pytest.mark.parametrize("name", ["c_again", "c_filled", "c_clipped"])
def test_a_rule_that_gives_only_a_few_rows_what_hangs_on_others_is_refused(tmp_path, name):
    with pytest.raises(UserError) as caught:
        run_filters(pool_of(tmp_path, 9000), [rule(name)])
    assert caught.value.code == "looks-across-rows"


@pytest.mark.parametrize("name", ["c_median", "c_high", "c_random"])
def test_what_is_refused_once_is_refused_again_by_the_same_process(tmp_path, name):
    pool = pool_of(tmp_path, 300)
    for _ in range(3):  # as a notebook tries again, or a sweep goes on
        with pytest.raises(UserError) as caught:
            run_filters(pool, [rule(name)])
        assert caught.value.code in ("looks-across-rows", "not-deterministic")


@pytest.mark.parametrize("name", ["c_random", "c_counting"])
def test_a_rule_that_does_not_repeat_itself_is_refused_as_such(tmp_path, name):
    with user_error("not-deterministic") as caught:
        run_filters(pool_of(tmp_path, 300), [rule(name)])
    assert caught.value.code == "not-deterministic"


@pytest.mark.parametrize("name", ["c_rounded", "c_halves", "c_own", "c_squeezed", "c_served"])
def test_rules_of_their_own_row_pass_and_a_server_is_not_asked_twice(tmp_path, name, plugin):
    calls = inspect.unwrap(STRATEGIES["c_server"].function).__globals__["CALLS"]
    calls.clear()
    run_filters(pool_of(tmp_path, 300), [rule(name)])
    assert calls == ([300] if name == "c_served" else [])


def test_no_more_rows_are_asked_again_than_a_process_needs(tmp_path):
    shards = [{"uid": [uid(100 * s + n) for n in range(60)], "score": np.linspace(0, 1, 60)} for s in range(9)]
    pool = Pool(write_pool(tmp_path / "p", *shards))
    run_filters(pool, [rule("c_own")])
    assert sum(row_independence._REPEATED.values()) == row_independence.NUM_REPEATED


def test_every_shipped_strategy_is_asked_again_and_passes(pico_pool, monkeypatch, tmp_path):
    asked = []
    original = shard_evaluation.refuse_dependence

    def noting(rule, *arguments, **options):
        asked.append(rule.name)
        original(rule, *arguments, **options)

    monkeypatch.setattr(shard_evaluation, "refuse_dependence", noting)
    pool = Pool(pico_pool, signals_dir=tmp_path)
    shipped = [each for each in STRATEGIES.values() if each.source_path.parent.name == "filters"]
    for strategy in shipped:
        if strategy.kind == "filter":
            cut = Cut("fraction", 0.5) if strategy.has_cut else None
            run_filters(pool, [Rule(strategy.name, rule(strategy.name).options, cut)])
    signals = {name for each in shipped for name in each.signals}
    assert set(asked) >= {each.name for each in shipped if each.kind == "filter"} | signals
