"""Shipped entries are stamped with the identity of their code where the same subset proves that it is theirs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmark.experiment.choice import Choice
from benchmark.experiment.filter_stage import filter_stage
from benchmark.pool.pool import Pool
from benchmark.registry import STRATEGIES
from benchmark.runtime.context import Context
from benchmark.selection.rules import make_rule
from leaderboard.entries import PoolUsed, StrategyUsed, SubsetUsed, read_entry, write_entry
from scripts import restamp_entries
from scripts.restamp_entries import pool_seed_of, restamped


@pytest.fixture
def entry(strategies, tmp_path, pico_pool):
    return entry_of("clip_score", tmp_path, pico_pool)


def entry_of(name, tmp_path, pico_pool):
    """An entry of a filter on `pico`, as one was written before code had identities."""
    pool = Pool(pico_pool)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "pico-0").symlink_to(pico_pool)
    rule = make_rule(name, {"fraction": 0.25})
    result = filter_stage(tmp_path / "exp", pool, Choice((rule,)), Context()).result
    stated = {key: value for key, value in rule.resolve(pool).as_json().items() if key != "identity"}
    return replace(
        read_entry(Path(__file__).parents[1] / "data" / "entry_v0.json"),
        name=f"{name}-0.25",
        scale="pico",
        strategy=(StrategyUsed(**stated),),
        pool=PoolUsed(**pool.identify().as_json()),
        subset=SubsetUsed(result["size"], result["distinct"], result["sha256"]),
        within=None,
        given_subset=None,
    )


def test_the_same_subset_stamps_an_entry_and_another_does_not(entry, tmp_path):
    stamped = restamped(entry, 0, tmp_path / "work", 0)
    assert stamped.strategy[0].identity == STRATEGIES["clip_score"].identity
    assert replace(stamped, strategy=(replace(stamped.strategy[0], identity=None),)) == entry
    with pytest.raises(ValueError, match="another subset"):
        restamped(replace(entry, subset=replace(entry.subset, sha256="0" * 64)), 0, tmp_path / "work", 0)
    with pytest.raises(ValueError, match="another pool"):
        restamped(replace(entry, pool=replace(entry.pool, fingerprint="0" * 64)), 0, tmp_path / "work", 0)


def test_an_entry_made_with_assets_of_another_processor_is_stamped_by_the_same_subset(strategies, tmp_path, pico_pool):
    """The pool's own embeddings differ in last bits; other options are another rule."""
    entry = entry_of("normsim", tmp_path, pico_pool)
    used = entry.strategy[0]
    elsewhere = replace(used, options={**used.options, "targets": ["0" * 64]})
    stamped = restamped(replace(entry, strategy=(elsewhere,)), 0, tmp_path / "work", 0).strategy[0]
    assert stamped.identity == STRATEGIES["normsim"].identity and stamped.options["targets"] == ["0" * 64]
    other = replace(used, options={**used.options, "arch": "b32"})
    with pytest.raises(ValueError, match="another subset"):
        restamped(replace(entry, strategy=(other,)), 0, tmp_path / "work", 0)


def test_the_script_lists_what_it_cannot_prove_and_goes_on(entry, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "boards" / "mine" / "entries"
    folder.mkdir(parents=True)
    write_entry(folder / "a.json", entry)
    write_entry(folder / "b.json", replace(entry, subset=replace(entry.subset, sha256="0" * 64)))
    monkeypatch.setattr(restamp_entries, "BOARDS_DIR", tmp_path / "boards")
    before = (folder / "b.json").read_bytes()
    arguments = ["--board", "mine", "--work-dir", str(tmp_path / "work"), "--workers", "0"]
    assert restamp_entries.main(arguments) == 1
    said = capsys.readouterr().out
    assert "a.json: stamped" in said and said.endswith("1 of 2 entries are proved\n  not: b.json\n")
    assert (folder / "b.json").read_bytes() == before
    assert len(json.loads((folder / "a.json").read_text())["strategy"][0]["identity"]) == 64
    (folder / "b.json").unlink()
    assert restamp_entries.main(arguments) == 0
    assert "a.json: as it was" in capsys.readouterr().out


def test_an_entry_of_another_drawing_is_told_by_its_name():
    assert pool_seed_of(Path("no_filter-pool2.json")) == 2 and pool_seed_of(Path("clip_score-0.3.json")) == 0
