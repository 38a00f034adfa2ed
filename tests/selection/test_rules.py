"""Rules resolved against a pool: everything looked up once, and one error that lists all that is missing."""

import numpy as np
import pytest

from benchmark.pool.pool import Pool
from benchmark.runtime.errors import NotFoundError, UserError
from benchmark.runtime.files import sha256_of
from benchmark.selection.engine import run_filters
from benchmark.selection.rules import Cut, Rule, resolve_rules
from benchmark.selection.runnable import filters_of
from tests.conftest import loaded_plugin, uid, user_error, write_pool

PLUGIN = '''"""Rules made for resolving."""

import numpy as np
import pandas as pd

from benchmark import PoolView, Subset, register_filter, register_selector, register_signal


@register_signal(columns=["{which}_length"])
def r_length(rows: pd.DataFrame, *, which: str = "long") -> pd.Series:
    """The column."""
    return rows[f"{which}_length"]


@register_filter(columns=["score"], features=["image"], signals=["r_length"], assets={"words": "words.txt"})
def r_needy(
    rows: pd.DataFrame, features: dict[str, np.ndarray], *, which: str = "long", words: str | None = None
) -> pd.Series:
    """Needs one of each."""
    return rows["r_length"] > 0


@register_filter()
def r_by_name(rows: pd.DataFrame) -> pd.Series:
    """Read a column that is not declared."""
    return rows["score"] > 0


@register_filter(columns=["uid"])
def r_by_attribute(rows: pd.DataFrame) -> pd.Series:
    """Read a column that is not declared, as an attribute."""
    return rows.score > 0


@register_filter(features=["image"], threshold=0.5)
def r_by_array(rows: pd.DataFrame, features: dict[str, np.ndarray]) -> np.ndarray:
    """Read an array that is not declared."""
    return features["text"][:, 0]


@register_selector()
def r_by_view(pool: PoolView, *, seed: int = 0) -> Subset:
    """Read a column that is not declared, of the whole pool."""
    return Subset.of(pool.uids[pool.columns["score"] > 0])


@register_filter(columns=["uid"])
def r_own_table(rows: pd.DataFrame) -> pd.Series:
    """Look a key up that is no column of the pool's."""
    return rows["uid"].map(lambda uid: {1: True}[2])
'''


@pytest.fixture(scope="module", autouse=True)
def plugin(tmp_path_factory, strategies):
    with loaded_plugin(tmp_path_factory.mktemp("plugins") / "made_for_resolving.py", PLUGIN) as path:
        yield path


def pool_at(folder, *, complete):
    columns = {"uid": [uid(0), uid(1)], "score": [1.0, 2.0], "long_length": [3, 4]}
    features = {"image": np.ones((2, 3), dtype=np.float16)}
    if not complete:
        columns, features = {"uid": columns["uid"]}, {"other": features["image"]}
    folder = write_pool(folder, columns, features=features)
    if complete:
        (folder / "assets").mkdir()
        (folder / "assets" / "words.txt").write_text("a word")
    return Pool(folder)


def test_one_error_lists_all_that_is_missing_and_has_the_code_of_the_first(tmp_path):
    pool = pool_at(tmp_path / "bare", complete=False)
    with user_error("column-missing") as raised:
        resolve_rules(pool, [Rule("r_needy", {"which": "short", "words": None}), Rule("planted_clean")])
    told = str(raised.value)
    for name in ("'score'", "'image'", "words.txt", "'short_length'", "planted.parquet"):
        assert told.count(name) == 1, name
    assert told.startswith("5 things ")


def test_a_single_missing_thing_is_raised_as_it_is(tmp_path):
    pool = pool_at(tmp_path / "bare", complete=False)
    with user_error("no-embedded-pool") as raised:
        Rule("planted_clean").resolve(pool)
    assert isinstance(raised.value, NotFoundError) and "\n" not in str(raised.value)


def test_a_damaged_file_is_reported_to_a_rule_without_columns_too(tmp_path):
    pool_dir = pool_at(tmp_path / "damaged", complete=True).dir
    (path,) = (pool_dir / "metadata").glob("*.parquet")
    path.write_bytes(b"PAR1" + b"x" * 100 + b"PAR1")
    with user_error("file-damaged"):
        Rule("r_by_name").resolve(Pool(pool_dir))


def test_what_a_pool_lacks_for_a_filter_is_said_whole(tmp_path):
    lacking = filters_of(pool_at(tmp_path / "bare", complete=False))["r_needy"]
    assert all(name in lacking for name in ("'score'", "'image'", "words.txt", "'long_length'"))
    assert filters_of(pool_at(tmp_path / "whole", complete=True))["r_needy"] is None


def test_a_resolved_rule_holds_what_the_pool_has_for_it(tmp_path):
    pool = pool_at(tmp_path / "whole", complete=True)
    found = Rule("r_needy", {"which": "long", "words": None}).resolve(pool, device="cuda")
    words = pool.dir / "assets" / "words.txt"
    assert (found.columns, found.features) == (("score",), ("image",))
    assert found.options["words"] == str(words) and found.asset_hashes == {"words": sha256_of(words)}
    signal = found.signals["r_length"]
    assert (signal.name, signal.columns, signal.options) == ("r_length", ("long_length",), {"which": "long"})
    assert [each.name for each in found.with_signals] == ["r_needy", "r_length"]
    assert (found.sees_images, found.takes_device, found.is_single_process, found.device) == (
        False,
        False,
        False,
        "cpu",
    )
    assert found.cache_dir.parent == pool.signals_dir and found.cache_dir != signal.cache_dir
    stated = found.as_json()
    assert stated["options"]["words"] == sha256_of(words) and str(words) not in str(stated)
    assert stated["signals"]["r_length"]["identity"] and "source" not in found.identity
    # Assets that were found are found again, and give the same.
    assert found.rule.resolve(pool, device="cuda") == found


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        (Rule("r_by_name"), "'score'"),
        (Rule("r_by_attribute"), "'score'"),
        (Rule("r_by_array", {}, Cut("threshold", 0.5)), "'text'"),
        (Rule("r_by_view", {"seed": 0}), "'score'"),
    ],
)
def test_a_column_or_array_that_is_read_but_not_declared_is_named(tmp_path, rule, name):
    pool = pool_at(tmp_path / "whole", complete=True)
    with user_error("strategy-failed") as raised:
        run_filters(pool, [rule])
    told = str(raised.value)
    assert name in told and "columns=[" in told and "features=[" in told and "made_for_resolving.py:" in told


def test_a_key_error_of_a_strategys_own_is_reported_as_it_is(tmp_path):
    with pytest.raises(UserError) as raised:
        run_filters(pool_at(tmp_path / "whole", complete=True), [Rule("r_own_table")])
    assert "KeyError: 2" in str(raised.value)
