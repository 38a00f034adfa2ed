"""Experiments: how an entry is named, and that a subset is of the pool as it is."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmark.experiment.choice import Choice, default_exp_dir
from benchmark.experiment.entry import entry_name, name_of
from benchmark.experiment.evaluate_stage import evaluate_stage
from benchmark.experiment.filter_stage import filter_stage
from benchmark.pool.pool import Pool
from benchmark.pool.subset import load_subset
from benchmark.pool.uids import format_uids
from benchmark.registry import load_plugins
from benchmark.runtime.context import Context
from benchmark.runtime.records import Record, write_record
from benchmark.scales import SCALES
from benchmark.selection.rule_records import as_recorded
from benchmark.selection.rules import Cut, Rule, make_rule
from leaderboard.entries import StrategyUsed, read_entry, write_entry
from tests.conftest import loaded_plugin, uid, user_error, write_pool


def record(*rules, within=None, subset=None):
    filters = [{"name": name, "options": options, "cut": cut, "source": "0"} for name, options, cut in rules]
    return Record("filter", 1, {"pool": "a", "filters": filters, "within": within, "subset": subset}, {})


@pytest.mark.parametrize(
    ("made", "name"),
    [
        (record(("no_filter", {}, None)), "no_filter"),
        (record(("clip_score", {"arch": "l14"}, {"fraction": 0.3})), "clip_score-0.3"),
        (record(("clip_score", {"arch": "b32"}, {"threshold": 0.281})), "clip_score-arch-b32-0.281"),
        (
            record(("dedup", {"seed": 1}, None), ("clip_score", {"arch": "l14"}, {"fraction": 0.3}), within="ab" * 32),
            "dedup-seed-1+clip_score-0.3-within-abababab",
        ),
        (record(subset="cd" * 32), "subset-cdcdcdcd"),
        (record(("basic", {"language": "a/b ü"}, None)), "basic-language-a_b__"),
    ],
)
def test_an_entry_is_named_after_what_is_not_the_default(strategies, tmp_path, made, name):
    assert entry_name(made, tmp_path) == name


def test_a_long_name_is_cut_and_stays_unique(strategies, tmp_path):
    names = {entry_name(record(("basic", {"language": "x" * 100 + end}, None)), tmp_path) for end in "ab"}
    assert len(names) == 2 and all(len(name) == 80 for name in names)


def test_a_subset_of_metadata_that_changed_under_the_same_uids_is_not_taken_for_a_new_ones(strategies, tmp_path):
    """The fingerprint is of the uids alone, and so is the experiment's hash."""
    pool_dir = tmp_path / "pool"
    columns = {"uid": [uid(0), uid(1)], "clip_l14_similarity_score": np.array([0.1, 0.9], dtype=np.float32)}
    write_pool(pool_dir, columns)
    choice = Choice((Rule("clip_score", {"arch": "l14"}, Cut("fraction", 0.5)),))

    def chosen(folder):
        filter_stage(tmp_path / folder, Pool(pool_dir), choice, Context())
        return format_uids(load_subset(tmp_path / folder / "subset.npy").uids)

    assert chosen("exp") == chosen("exp") == [uid(1)]
    path = next((pool_dir / "metadata").glob("*.parquet"))
    pd.DataFrame(columns | {"clip_l14_similarity_score": [0.9, 0.1]}).to_parquet(path)
    with user_error("pool-differs"):
        chosen("exp")
    assert chosen("other") == [uid(0)]


BEFORE = Path(__file__).parent / "data" / "experiment_before_identity"  # made at 68a8a63


def opened_again(tmp_path, edit=lambda text: text):
    """Filter into a folder that was made before code had identities, by its file or an edited one."""
    columns = {"uid": [uid(n) for n in range(8)], "score": [float(n % 5) for n in range(8)]}
    pool = Pool(write_pool(tmp_path / "pool", columns))
    shutil.copytree(BEFORE, tmp_path / "exp")
    with loaded_plugin(tmp_path / "marked.py", edit((BEFORE / "marked.py").read_text())):
        choice = Choice((make_rule("golden_top", {"scale": 0.25}),))
        return filter_stage(tmp_path / "exp", pool, choice, Context())


def test_an_experiment_made_before_code_had_identities_still_opens(tmp_path, capsys):
    before = (BEFORE / "subset.json").read_bytes()
    assert opened_again(tmp_path).result["sha256"] == json.loads(before)["result"]["sha256"]
    assert "filter: up to date, skipping (4 of 8 rows" in capsys.readouterr().out
    assert (tmp_path / "exp" / "subset.json").read_bytes() == before


def test_one_of_another_file_does_not(tmp_path):
    """Nobody knows what the words were, so that the whole file has to be the same, as it had before."""
    with user_error("record-differs", match="source"):
        opened_again(tmp_path, lambda text: text.replace("a little more", "a bit more"))


NAMED = '''"""Words."""
from benchmark import register_filter
from level_of_it import LEVEL

@register_filter(columns=["score"], fraction=0.5)
def x_named(rows, *, power: float = 1.0):
    """Words."""
    return rows["score"] ** power + LEVEL
'''


@pytest.fixture
def small_pool(tmp_path):
    (tmp_path / "level_of_it.py").write_text("LEVEL = 1\n")
    return Pool(
        write_pool(tmp_path / "pool", {"uid": [uid(n) for n in range(8)], "score": [float(n) for n in range(8)]})
    )


def test_a_changed_helper_is_another_experiment_and_changed_words_are_the_same(tmp_path, small_pool):
    helper = tmp_path / "level_of_it.py"
    with loaded_plugin(tmp_path / "x_named.py", NAMED) as path:
        choice = Choice((make_rule("x_named", {}),))
        places = []
        for words, level in (("Words", 1), ("Other words", 1), ("Words", 2)):
            path.write_text(NAMED.replace("Words", words))
            helper.write_text(f"# {words}\nLEVEL = {level}\n")
            load_plugins([path])
            places.append(
                (default_exp_dir(SCALES["small"], small_pool, choice), choice.rules[0].resolve(small_pool).cache_dir)
            )
            if level == 1:
                filter_stage(tmp_path / "exp", small_pool, choice, Context())
        assert places[0] == places[1] and places[0][0] != places[2][0] and places[0][1] != places[2][1]
        with user_error("record-differs", match="identity"):
            filter_stage(tmp_path / "exp", small_pool, choice, Context())


def test_an_entry_is_named_without_the_file_of_its_filter(tmp_path, small_pool):
    with loaded_plugin(tmp_path / "x_named.py", NAMED):
        choice = Choice((make_rule("x_named", {"power": 2.0, "fraction": 0.25}),))
        made = filter_stage(tmp_path / "exp", small_pool, choice, Context())
    assert made.result["name"] == "x_named-power-2.0-0.25"
    assert name_of(tmp_path / "exp", made, small_pool) == "x_named-power-2.0-0.25"


def test_one_that_is_named_by_a_file_that_is_not_loaded_is_refused_before_it_is_evaluated(tmp_path, small_pool):
    """An experiment made before names were kept."""
    with loaded_plugin(tmp_path / "x_named.py", NAMED):
        made = filter_stage(tmp_path / "exp", small_pool, Choice((make_rule("x_named", {}),)), Context())
    result = {key: value for key, value in made.result.items() if key != "name"}
    write_record(tmp_path / "exp" / "subset.json", Record(made.stage, made.version, made.inputs, result))
    with user_error("filter-not-loaded", match="plugins="):
        evaluate_stage(tmp_path / "exp", small_pool, SCALES["pico"], [0], tmp_path / "eval", [], Context())


def test_an_entry_states_the_identity_of_its_filters_and_older_ones_are_written_as_they_were(tmp_path, small_pool):
    with loaded_plugin(tmp_path / "x_named.py", NAMED):
        (stated,) = Choice((make_rule("x_named", {}),)).inputs(small_pool)["filters"]
    assert StrategyUsed(**stated).identity == stated["identity"] != stated["source"]
    path = Path(__file__).parent / "data" / "entry_v0.json"
    entry = read_entry(path)
    write_entry(tmp_path / "entry.json", entry)
    assert "identity" not in (tmp_path / "entry.json").read_text()
    stamped = replace(entry, strategy=tuple(replace(each, identity="a" * 64) for each in entry.strategy))
    write_entry(tmp_path / "entry.json", stamped)
    assert read_entry(tmp_path / "entry.json") == stamped


@pytest.mark.parametrize(
    ("now", "there", "fits"),
    [
        ({"identity": "a", "source": "1"}, {"identity": "a", "source": "2"}, True),
        ({"identity": "a", "source": "1"}, {"identity": "b", "source": "1"}, False),
        ({"identity": "a", "source": "1"}, {"source": "1"}, True),
        ({"identity": "a", "source": "1"}, {"source": "2"}, False),
        ({"identity": None, "source": "1"}, {"identity": None, "source": "2"}, False),
        ({"identity": None, "source": "1"}, {"identity": None, "source": "1"}, True),
        ({"identity": "a", "source": "1", "packages": {"nltk": "3"}}, {"source": "1"}, True),
        ({"identity": "a", "source": "1", "packages": {"x": "1"}}, {"source": "1", "packages": {"x": "2"}}, False),
        (
            {"identity": "a", "source": "1", "packages": {"x": "1"}},
            {"identity": "a", "source": "1", "packages": {"x": "2"}},
            False,
        ),
    ],
)
def test_rules_fit_a_record_by_what_identifies_them(now, there, fits):
    rule = {"name": "n", "options": {"a": 1}}
    now, there = {"filters": [{**rule, **now, "signals": {"s": {**rule, **now}}}]}, {**rule, **there}
    there = {"filters": [{**there, "signals": {"s": there}}]}
    assert (as_recorded(now, there) == there) == fits
