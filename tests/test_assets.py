"""Assets: where they are looked for, what a strategy is handed, and what records keep of them."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmark import register_filter
from benchmark.cli import EXIT_USER, main
from benchmark.experiment import Choice, entry_name
from benchmark.filtering import run_filters
from benchmark.options import make_rule
from benchmark.pool import Pool
from benchmark.registry import STRATEGIES, load_plugins
from benchmark.report.overlaps import comparables
from benchmark.rules import Rule
from benchmark.stage import Record, sha256_of
from benchmark.uids import format_uids
from tests.conftest import uid, write_pool

PLUGIN = '''"""Strategies with assets, made for tests."""

from pathlib import Path

import pandas as pd

from benchmark import register_filter, register_selector
from benchmark.filtering import PoolView
from benchmark.subset import Subset


@register_filter(columns=["word"], assets={"words": "words_{kind}.txt"})
def a_words(rows: pd.DataFrame, *, kind: str = "good", words: list[str] | None = None) -> pd.Series:
    """Keep what is in one of the lists."""
    return rows["word"].isin(" ".join(Path(path).read_text() for path in words).split())


@register_selector(columns=["word"], assets={"first": "first.txt", "second": "second.txt"})
def a_two(pool: PoolView, *, first: str | None = None, second: str | None = None, seed: int = 0) -> Subset:
    """Take the words of both files."""
    words = Path(first).read_text().split() + Path(second).read_text().split()
    return Subset.of(pool.uids[pool.columns["word"].isin(words).to_numpy()])
'''


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, strategies):
    """Work in an empty folder with a pool of four words and an asset folder of the user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WINNOW_ASSETS_DIR", str(tmp_path / "mine"))
    before = dict(STRATEGIES)
    (tmp_path / "a_words.py").write_text(PLUGIN)
    load_plugins([tmp_path / "a_words.py"])
    write_pool(tmp_path / "pool", {"uid": [uid(n) for n in range(4)], "word": ["a", "b", "c", "d"]})
    yield tmp_path
    STRATEGIES.clear()
    STRATEGIES.update(before)


def put(path, text):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)
    return str(path)


def kept(name="a_words", workers=0, **options):
    outcome = run_filters(Pool("pool"), [make_rule(name, options)], workers=workers, plugins=["a_words.py"])
    return [int(text, 16) for text in format_uids(outcome.subset.uids)]


def made_from(name="a_words", **options):
    return Choice((make_rule(name, options),)).made_from(Pool("pool"))


def test_the_option_comes_before_the_pools_file_and_that_before_the_users():
    put("mine/words_good.txt", "a")
    assert kept() == [0]
    put("pool/assets/words_good.txt", "b")
    assert kept() == [1]
    assert kept(words=[put("given.txt", "c")]) == [2]


def test_options_are_filled_into_the_name():
    put("pool/assets/words_good.txt", "a")
    put("pool/assets/words_bad.txt", "b c")
    assert kept(kind="bad") == [1, 2]


def test_the_users_folder_is_in_the_cache_unless_named(monkeypatch):
    monkeypatch.delenv("WINNOW_ASSETS_DIR")
    monkeypatch.setenv("WINNOW_CACHE_DIR", "cache")
    put("cache/assets/words_good.txt", "d")
    assert kept() == [3]


def test_several_files_may_be_given_where_a_list_is_taken():
    one, other = put("1.txt", "a"), put("2.txt", "d")
    assert kept(words=[one, other]) == [0, 3]
    assert kept(words=one) == [0]
    with pytest.raises(ValueError, match=r"filters.a_two.first=\['a'\] is not of type str"):
        kept("a_two", first=["a"])


def test_selectors_and_worker_processes_are_handed_the_paths():
    put("pool/assets/first.txt", "a")
    put("mine/second.txt", "c")
    assert kept("a_two") == [0, 2]
    put("mine/words_good.txt", "b")
    assert kept(workers=1) == [1]


def test_what_is_nowhere_is_told_in_one_sentence_before_anything_is_made(folder, capsys):
    assert main(["filter", "pool_dir=pool", "filters=a_two", "plugins=[a_words.py]"]) == EXIT_USER
    assert capsys.readouterr().err == (
        "winnow: selector 'a_two' needs first.txt (option filters.a_two.first) and second.txt (option "
        f"filters.a_two.second): neither in pool/assets nor {folder / 'mine'}; put them there, or give the option\n"
    )
    assert not Path("experiments").exists()
    put("mine/second.txt", "c")
    message = r"needs first\.txt \(option filters.a_two.first\): neither in pool/assets nor .*; put it there"
    with pytest.raises(FileNotFoundError, match=message):
        kept("a_two")


def test_a_file_that_is_given_must_be_there():
    put("pool/assets/words_good.txt", "a")
    with pytest.raises(FileNotFoundError, match=r"filters.a_words.words: there is no file no\.txt"):
        kept(words=[put("1.txt", "a"), "no.txt"])


def test_records_know_an_asset_by_its_bytes(capsys):
    command = ["filter", "pool_dir=pool", "filters=a_words", "plugins=[a_words.py]"]
    path = put("pool/assets/words_good.txt", "a b")
    assert main([*command, "exp_dir=e"]) == 0
    rule = json.loads(Path("e/subset.json").read_text())["made_from"]["filters"][0]
    assert rule["options"] == {"kind": "good", "words": [sha256_of(Path(path))]}
    assert main(command) == 0
    copy = put("elsewhere/copy.txt", "a b")
    assert main([*command, f"filters.a_words.words={copy}"]) == 0
    assert "filter: as before" in capsys.readouterr().out
    assert len(list(Path("experiments/nano").glob("a_words-*"))) == 1
    put(path, "a c")
    assert main(command) == 0
    assert len(list(Path("experiments/nano").glob("a_words-*"))) == 2
    assert main([*command, "exp_dir=e"]) == EXIT_USER
    assert "made with other settings (subset.json): filters.0.options.words is" in capsys.readouterr().err


def test_one_file_is_one_hash():
    first, second = put("1.txt", "a"), put("2.txt", "d")
    rule = made_from("a_two", first=first, second=second)["filters"][0]
    assert rule["options"] == {"first": sha256_of(Path(first)), "second": sha256_of(Path(second)), "seed": 0}


def test_an_entry_is_named_after_assets_that_are_not_the_ones_found():
    put("pool/assets/first.txt", "a")
    other = put("other.txt", "d")

    def name(**options):
        return entry_name(Record("filter", 1, {**made_from("a_two", **options)}, {}), Path("pool"))

    assert name(second=other) == f"a_two-second-{sha256_of(Path(other))[:8]}"
    put("mine/second.txt", "b")
    assert name() == "a_two"
    assert name(second=put("copy.txt", "b")) == "a_two"
    made = made_from(words=[other, put("1.txt", "x")])
    hashes = [sha256_of(Path(path))[:8] for path in (other, "1.txt")]
    assert entry_name(Record("filter", 1, made, {}), Path("pool")) == f"a_words-words-{hashes[0]}-{hashes[1]}"


def test_help_tells_the_file_that_is_looked_for(folder, capsys):
    assert main(["filter", "--help", "plugins=[a_words.py]"]) == 0
    shown = capsys.readouterr().out
    where = f"in <pool_dir>/assets or {folder / 'mine'})"
    assert f"filters.a_words.words: file or list of files (default: words_{{kind}}.txt {where}\n" in shown
    assert f"filters.a_two.first: file (default: first.txt {where}\n" in shown


def test_an_asset_needs_an_option_of_its_name():
    def a_filter(rows, *, words: str = "a.txt"):
        """Do nothing."""

    message = r"filter 'a_filter': the asset '{}' needs a keyword-only argument `{}: str \| None = None`"
    for name in ("words", "others"):
        with pytest.raises(ValueError, match=message.format(name, name)):
            register_filter(assets={name: "a.txt"})(a_filter)


def test_a_report_compares_with_shipped_filters_whose_assets_are_there(tmp_path):
    images = np.eye(2, dtype=np.float16)
    pool_dir = write_pool(tmp_path / "p", {"uid": [uid(0), uid(1)]}, features={"l14_img": images})
    found, skipped = comparables(Pool(pool_dir), tmp_path / "exp")
    assert "normsim" not in {each.rule.name for each in found}
    assert skipped["normsim"] == "it needs image_targets_l14.npy"
    (pool_dir / "assets").mkdir()
    np.save(pool_dir / "assets" / "image_targets_l14.npy", images.astype(np.float32))
    found, skipped = comparables(Pool(pool_dir), tmp_path / "exp")
    assert "normsim" in {each.rule.name for each in found} and "normsim" not in skipped


def test_a_rule_without_assets_is_recorded_as_it_was_given():
    rule = Rule("random", {"seed": 3})
    assert rule.as_json(Path("pool")) == {
        "name": "random",
        "options": {"seed": 3},
        "cut": None,
        "source": sha256_of(STRATEGIES["random"].source_path),
    }
