"""Registering: what a file may declare, how options are read, and how misspelt names are met."""

import pandas as pd
import pytest

from benchmark import register_filter, register_selector
from benchmark.cli.values import as_seeds
from benchmark.registry import STRATEGIES, get_strategy, load_plugins, load_tasks, tasks_named
from benchmark.runtime.strategies import check_options
from benchmark.selection.rules import make_rule
from tests.conftest import user_error


@pytest.fixture
def scratch(strategies):
    before = dict(STRATEGIES)
    yield
    STRATEGIES.clear()
    STRATEGIES.update(before)


def test_options_are_the_keyword_only_arguments(scratch):
    @register_filter(columns=["score_{arch}"], features=["{arch}_img"], threshold=0.5)
    def r_options(rows, features, *, arch: str = "x", power: float, names: list[str] | None = None) -> pd.Series:
        """Say what it does.

        And more."""

    strategy = STRATEGIES["r_options"]
    assert {
        name: (option.type_name, option.default) for name, option in strategy.options.items() if name != "power"
    } == {
        "arch": ("str", "x"),
        "names": ("list[str] | None", None),
    }
    assert strategy.options["power"].is_required
    assert strategy.needed_columns({"arch": "b32"}) == ["score_b32"]
    assert strategy.needed_features({"arch": "b32"}) == ["b32_img"]
    assert strategy.summary == "Say what it does."
    assert check_options(strategy, {"power": 2}) == {"arch": "x", "power": 2.0, "names": None}
    assert check_options(strategy, {"power": 2, "names": ["a"]})["names"] == ["a"]
    for given, code, named in [
        ({}, "option-missing", "filters.r_options.power"),
        ({"power": "high"}, "option-type", "filters.r_options.power='high'"),
        ({"power": True}, "option-type", "power=True"),
        ({"power": 1, "names": [1]}, "option-type", "names=1"),
        ({"power": 1, "names": "a"}, "option-type", "names='a'"),
    ]:
        with user_error(code, match=named):
            check_options(strategy, given)


def test_declarations_that_contradict_themselves_are_refused(scratch):
    with user_error("strategy-invalid", match="fraction=.*threshold="):
        register_filter(fraction=0.3, threshold=0.1)(_renamed("r_cuts"))
    with user_error("strategy-invalid", match="reference"):
        register_filter(planted=["is_clean"])(_renamed("r_planted"))

    def r_fraction(rows, *, fraction: float = 0.1): ...
    def r_two(rows, other): ...
    def r_seedless(pool): ...
    def r_swallow(rows, **options): ...

    with user_error("strategy-invalid", match="fraction"):
        register_filter()(r_fraction)
    with user_error("strategy-invalid", match=r"def r_two\(rows, \*"):
        register_filter()(r_two)
    with user_error("strategy-invalid", match=r"def r_two\(rows, features, \*"):
        register_filter(features=["x"])(_renamed("r_two"))
    with user_error("strategy-invalid", match="'r_swallow'"):
        register_filter()(r_swallow)
    with user_error("strategy-invalid", match="`seed"):
        register_selector()(r_seedless)
    with user_error("strategy-invalid", match=r"'r_arch'.*'\{arch\}_score'.*'arch'"):
        register_filter(columns=["{arch}_score"])(_renamed("r_arch"))
    with user_error("name-taken", match="'basic'"):
        register_filter()(_renamed("basic"))


def _renamed(name):
    def function(rows): ...

    function.__name__ = name
    return function


def test_the_declared_cut_applies_while_both_are_null(strategies):
    assert make_rule("clip_score", {"fraction": None, "threshold": None}).cut.value == 0.3
    rule = make_rule("clip_score", {"threshold": 0.25})
    assert (rule.cut.kind, rule.cut.value) == ("threshold", 0.25)
    assert make_rule("basic", {}).cut is None
    for given, code, named in [
        ({"fraction": 0.3, "threshold": 0.2}, "option-conflict", "fraction=0.3 and threshold=0.2"),
        ({"fraction": 0}, "option-value", "filters.clip_score.fraction=0.0"),
        ({"fraction": 30}, "option-value", "fraction=30.0"),
        ({"fraction": float("nan")}, "option-value", "fraction=nan"),
        ({"fraction": "much"}, "option-type", "fraction='much'"),
    ]:
        with user_error(code, match=named):
            make_rule("clip_score", given)


def test_seeds_may_be_one_or_several():
    assert as_seeds(1) == (1,) and as_seeds([0, 2]) == (0, 2)
    for wrong in ([], [0, 0], "a", -1, 1.5, [[1]]):
        with user_error("option-value" if wrong == [0, 0] else "option-type", match="seeds="):
            as_seeds(wrong)


def test_unknown_names_are_met_with_the_nearest(strategies):
    load_tasks()
    with user_error("unknown-filter", match="'clip_scor'.*'clip_score'"):
        get_strategy("clip_scor")
    with user_error("unknown-task", match="'nano/shape'.*'nano/shapes'"):
        tasks_named(["nano/shape"], "nano")
    chosen = tasks_named(["nano/shapes", "retrieval"], "nano")
    assert [task.name for task in chosen] == ["nano/shapes", "nano/association", "nano/retrieval"]


def test_a_plugin_that_cannot_be_loaded_is_named(tmp_path):
    with user_error("plugin-not-found", match=r"none\.py"):
        load_plugins([tmp_path / "none.py"])
    for text, told in [
        ("\n1 / 0", r"broken\.py .*ZeroDivisionError: .*line 2"),
        ("def f():\n    {}['x']\n\n\nf()", r"broken\.py .*KeyError: 'x' .*line 2"),
        ("x = 1\ny = (", "line 2"),
    ]:
        (tmp_path / "broken.py").write_text(text)
        with user_error("bad-code", match=told):
            load_plugins([tmp_path / "broken.py"])
