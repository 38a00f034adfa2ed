"""Values kept row by row: asked once, gone on with after a kill, anew where anything changed; and what users bring."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmark.pool.pool import Pool
from benchmark.pool.subset import Subset
from benchmark.pool.uids import format_uids, parse_uids
from benchmark.registry import STRATEGIES
from benchmark.runtime.files import sha256_of
from benchmark.selection import row_independence, strategy_calls, user_signals
from benchmark.selection.engine import run_filters
from benchmark.selection.pilot import pilot_lines
from benchmark.selection.rules import Cut, Rule
from benchmark.selection.scoring import score_pool
from benchmark.selection.shard_evaluation import SLICE_ROWS
from tests.conftest import loaded_plugin, uid, user_error, write_pool

ROOT = Path(__file__).resolve().parents[2]

PLUGIN = '''"""Signals and filters made for tests; every call notes how many rows it was handed."""

from pathlib import Path

import numpy as np
import pandas as pd

from benchmark import register_filter, register_selector, register_signal
from benchmark.selection.views import PoolView
from benchmark.pool.subset import Subset

REPLACED = []


def note(name: str, rows: pd.DataFrame) -> None:
    with Path(__file__).with_name("notes").open("a") as file:
        file.write(f"{name} {len(rows)}\\n")


@register_filter(columns=["score"], fraction=0.5)
def s_twice(rows: pd.DataFrame, *, factor: float = 2.0) -> pd.Series:
    """Score by a multiple of the column."""
    note("s_twice", rows)
    return rows["score"] * factor


@register_filter(columns=["score"], fraction=0.5)
def s_copy(rows: pd.DataFrame) -> pd.Series:
    """Score by the column."""
    note("s_copy", rows)
    return rows["score"]


def load(*, base: str, device: str) -> dict:
    note("load", pd.DataFrame())
    return {"base": base, "device": device}


@register_signal(columns=["score"], setup=load)
def s_parity(rows: pd.DataFrame, model: dict, *, base: str = "even") -> list:
    """Say whether the score is even, in words; nothing of a negative one."""
    note("s_parity", rows)
    assert model == {"base": base, "device": "cpu"}
    return [None if score < 0 else base if score % 2 == 0 else "odd" for score in rows["score"]]


@register_filter(signals=["s_parity"])
def s_even(rows: pd.DataFrame, *, base: str = "even") -> pd.Series:
    """Keep what is even."""
    note("s_even", rows)
    return (rows["s_parity"] == base).mask(rows["s_parity"].isna())


@register_filter(signals=["s_parity"])
def s_other(rows: pd.DataFrame, *, base: str = "even") -> pd.Series:
    """Keep what has the word."""
    return rows["s_parity"] == base


@register_filter(signals=["s_parity"])
def s_odd(rows: pd.DataFrame) -> pd.Series:
    """Keep what is odd."""
    return rows["s_parity"] == "odd"


@register_filter(signals=["my_score"], threshold=0.5)
def s_mine(rows: pd.DataFrame) -> pd.Series:
    """Score by what the user brought."""
    return rows["my_score"]


@register_filter(signals=["my_word"])
def s_word(rows: pd.DataFrame) -> pd.Series:
    """Keep by a word of the user's."""
    return (rows["my_word"] == "good").mask(rows["my_word"].isna())


@register_selector(columns=["score"], signals=["my_score", "s_parity"])
def s_best(pool: PoolView, *, seed: int = 0) -> Subset:
    """Take the row with the highest of the user's scores among the odd ones, twice."""
    mine = pool.columns["my_score"].where(pool.columns["s_parity"] == "odd", -1.0).fillna(-1.0).to_numpy()
    best = pool.uids[[int(mine.argmax())]]
    return Subset.of(np.concatenate([best, best]))


@register_signal(columns=["score"])
def s_kind(rows: pd.DataFrame, *, k=1) -> list:
    """Say what kind of number the option is."""
    return [type(k).__name__] * len(rows)


@register_filter(columns=["score"], signals=["s_kind"])
def s_whole(rows: pd.DataFrame, *, k: int = 1) -> pd.Series:
    """Keep odd scores where the option is a whole number."""
    return (rows["score"] % 2 == 1) & (rows["s_kind"] == "int")


@register_filter(columns=["score"], signals=["s_kind"])
def s_part(rows: pd.DataFrame, *, k: float = 1.0) -> pd.Series:
    """Keep odd scores where the option is none."""
    return (rows["score"] % 2 == 1) & (rows["s_kind"] == "float")


@register_filter(columns=["score"], fraction=0.5)
def s_replaces(rows: pd.DataFrame) -> pd.Series:
    """Replace the metadata shard while it is judged."""
    for path in REPLACED:
        uids = [f"{number:032x}" for number in (7, 8, 9, 10)]
        pd.DataFrame({"uid": uids, "score": [0.0, 5.0, 6.0, 1.0]}).to_parquet(path)
    return rows["score"] * 3


@register_selector(columns=["score"])
def s_high(pool: PoolView, *, seed: int = 0) -> Subset:
    """Take what is above 0.3."""
    return Subset.of(pool.uids[(pool.columns["score"] > 0.3).to_numpy()])
'''

EDITED = '''"""A filter that is edited."""

from benchmark import register_filter


@register_filter(columns=["score"], fraction=0.5)
def s_edited(rows):
    """Score by the column."""
    score = rows["score"] * 2
    return {}
'''


@pytest.fixture(scope="module", autouse=True)
def plugin(tmp_path_factory, strategies):
    with loaded_plugin(tmp_path_factory.mktemp("plugins") / "made_for_signals.py", PLUGIN) as path:
        yield path


@pytest.fixture
def notes(plugin, monkeypatch):
    """Return what was called since the last time it was asked; no rows are asked again in other company."""
    monkeypatch.setattr(row_independence, "NUM_REPEATED", 0)
    monkeypatch.setattr(row_independence, "NUM_REPEATED_COSTLY", 0)
    path = plugin.with_name("notes")
    path.write_text("")
    strategy_calls._MODELS.clear()  # of other tests

    def read():
        found = [(name, int(rows)) for name, rows in (line.split() for line in path.read_text().splitlines())]
        path.write_text("")
        return found

    return read


def make_pool(folder, *shards):
    return write_pool(
        folder,
        *({"uid": [uid(n % 10**6) for n in numbers], "score": [float(n) for n in numbers]} for numbers in shards),
    )


def kept(pool_dir, *rules, **options):
    outcome = run_filters(Pool(pool_dir, signals_dir=options.pop("signals_dir", None)), rules, **options)
    return [int(text, 16) for text in format_uids(outcome.subset.uids)]


def twice(fraction, factor=2.0):
    return Rule("s_twice", {"factor": factor}, Cut("fraction", fraction))


def test_a_new_cut_asks_no_row_again(tmp_path, notes):
    pool = make_pool(tmp_path / "pool", [0, 1, 2], [3])
    assert kept(pool, twice(0.5)) == [2, 3] and notes() == [("s_twice", 3), ("s_twice", 1)]
    assert kept(pool, twice(0.25)) == [3] and notes() == []
    assert kept(pool, Rule("s_twice", {"factor": 2.0}, Cut("threshold", 1.0))) == [1, 2, 3] and notes() == []
    assert kept(pool, twice(0.5, factor=-1.0)) == [0, 1] and notes() == [("s_twice", 3), ("s_twice", 1)]
    scores, has_value = score_pool(Pool(pool), twice(0.5).resolve(Pool(pool)))
    assert scores.tolist() == [0, 2, 4, 6] and has_value.all() and notes() == []


def test_scores_that_copy_a_column_are_not_kept(tmp_path, notes):
    pool = make_pool(tmp_path / "pool", [0, 1, 2, 3])
    rule = Rule("s_copy", {}, Cut("fraction", 0.5))
    assert kept(pool, rule) == kept(pool, rule) == [2, 3]
    assert notes() == [("s_copy", 4)] * 2  # once for each run: its passes read the column
    assert list((pool / "signals").glob("s_copy*")) == []


def test_a_changed_shard_is_asked_again_and_others_are_not(tmp_path, notes):
    pool = make_pool(tmp_path / "pool", [0, 1, 2], [3])
    kept(pool, twice(0.5))
    notes()
    path = sorted((pool / "metadata").glob("*.parquet"))[1]
    pd.DataFrame({"uid": [uid(3)], "score": [-3.0]}).to_parquet(path)
    assert kept(pool, twice(0.5)) == [1, 2] and notes() == [("s_twice", 1)]
    copied = tmp_path / "elsewhere"
    (pool / "metadata").rename(tmp_path / "metadata")
    copied.mkdir()
    (tmp_path / "metadata").rename(copied / "metadata")
    for each in (copied / "metadata").iterdir():
        os.utime(each)
    assert kept(copied, twice(0.5), signals_dir=pool / "signals") == [1, 2] and notes() == []  # by content, not by time


def test_within_only_its_rows_are_asked_and_others_later(tmp_path, notes):
    pool = make_pool(tmp_path / "pool", [0, 1, 2], [3])
    within = Subset.of(parse_uids([uid(0), uid(2)]))
    assert kept(pool, twice(0.5), within=within) == [2] and notes() == [("s_twice", 2)]
    assert kept(pool, twice(0.5)) == [2, 3] and notes() == [("s_twice", 1), ("s_twice", 1)]
    assert kept(pool, twice(0.5), within=within) == [2] and notes() == []


def test_options_that_python_takes_for_equal_are_different_signals(tmp_path, notes):
    pool = make_pool(tmp_path / "pool", [0, 1, 2])
    whole, part = Rule("s_whole", {"k": 1}), Rule("s_part", {"k": 1.0})
    assert kept(pool, whole, part) == [1] and kept(pool, part) == [1]
    assert len(list((pool / "signals").glob("s_kind-*"))) == 2


def test_a_file_changed_while_it_is_read_is_an_error_and_nothing_is_kept(tmp_path, notes):
    pool = make_pool(tmp_path / "pool", [0, 1, 2])
    path = next((pool / "metadata").glob("*.parquet"))
    replaced = STRATEGIES["s_replaces"].function.__wrapped__.__globals__["REPLACED"]
    replaced.append(str(path))
    with user_error("file-changed", match=r"\.parquet"):
        kept(pool, Rule("s_replaces", {}, Cut("fraction", 0.5)))
    replaced.clear()
    assert kept(pool, Rule("s_replaces", {}, Cut("fraction", 0.5))) == [8, 9]


def test_a_plugin_edited_while_it_is_in_use_is_an_error(tmp_path, notes):
    """The process has run the file as it was; its workers would run it as it is."""
    with loaded_plugin(tmp_path / "edited_later.py", EDITED.format("score")) as path:
        pool = make_pool(tmp_path / "pool", [0, 1, 2])
        assert kept(pool, Rule("s_edited", {}, Cut("fraction", 0.4))) == [2]
        path.write_text(EDITED.format("-score"))
        with user_error("file-changed", match=r"edited_later\.py"):
            kept(pool, Rule("s_edited", {}, Cut("fraction", 0.7)), workers=1, plugins=[str(path)])


def test_a_module_beside_the_plugin_belongs_to_what_is_kept(tmp_path):
    code = (
        "import sys\nsys.path.insert(0, '.')\nfrom benchmark.selection.engine import run_filters\n"
        "from benchmark.pool.pool import Pool\nfrom benchmark.registry import load_strategies\n"
        "from benchmark.selection.rules import Rule\nload_strategies(['uses.py'])\n"
        "print(len(run_filters(Pool('pool'), [Rule('s_uses')]).subset))\n"
    )
    make_pool(tmp_path / "pool", [0, 1, 2])
    (tmp_path / "uses.py").write_text(
        '"""Uses a module of its own."""\nimport limits\nfrom benchmark import register_filter\n\n\n'
        "@register_filter(columns=['score'])\ndef s_uses(rows):\n    return rows['score'] < limits.MOST\n"
    )
    found = []
    for most in (1, 3):
        (tmp_path / "limits.py").write_text(f"MOST = {most}\n")
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        run = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        found.append(run.stdout.strip())
    assert found == ["1", "3"]


def test_two_rules_that_keep_the_same_values_wait_for_nobody(tmp_path, notes):
    pool = make_pool(tmp_path / "pool", [0, 1, 2])
    outcome = run_filters(Pool(pool), [twice(0.5), Rule("s_twice", {"factor": 2.0}, Cut("threshold", 3.0))])
    assert format_uids(outcome.subset.uids) == [uid(2)]


def test_several_processes_at_once_ask_every_row_once(tmp_path, notes, plugin):
    pool = make_pool(tmp_path / "pool", range(40), range(40, 60))
    code = (
        "from benchmark.selection import row_independence\nfrom benchmark.selection.engine import run_filters\n"
        "from benchmark.pool.pool import Pool\n"
        "from benchmark.registry import load_strategies\nfrom benchmark.selection.rules import Cut, Rule\n"
        f"load_strategies([{str(plugin)!r}])\nrow_independence.NUM_REPEATED = 0\n"
        f"for name, options in (('s_twice', {{'factor': 2.0}}), ('s_copy', {{}})):\n"
        f"    assert len(run_filters(Pool({str(pool)!r}), [Rule(name, options, Cut('fraction', 0.5))]).subset) == 30\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = [subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=ROOT) for _ in range(3)]
    assert [each.wait(600) for each in running] == [0, 0, 0]
    assert sorted(rows for name, rows in notes() if name == "s_twice") == [20, 40]


def test_nothing_but_none_on_a_slice_or_in_a_shard_is_missing(tmp_path, notes):
    numbers = [*range(SLICE_ROWS), -1]
    pool = make_pool(tmp_path / "pool", numbers, [-1])
    outcome = run_filters(Pool(pool), [Rule("s_even", {"base": "even"})])
    assert len(outcome.subset) == SLICE_ROWS // 2 and outcome.reports[0].missing == 2
    empty = pd.DataFrame({"uid": pd.Series([], dtype=str), "score": pd.Series([], dtype=object)})
    nothing = {"uid": [uid(7)], "score": [None]}
    other = write_pool(tmp_path / "other", empty, {"uid": [uid(3), uid(4)], "score": [1.0, 2.0]}, nothing)
    outcome = run_filters(Pool(other), [Rule("s_copy", {}, Cut("fraction", 0.34))])
    assert format_uids(outcome.subset.uids) == [uid(4)] and outcome.reports[0].missing == 1


def test_a_selectors_columns_have_the_widest_type_of_all_shards(tmp_path, notes):
    shards = [
        {"uid": [uid(0), uid(1)], "score": np.array([0.1, 0.3], dtype=np.float32)},
        {"uid": [uid(2)], "score": np.array([0.3])},
        {"uid": [uid(3)], "score": [7]},
        {"uid": [uid(4)], "score": [None]},
    ]
    for number, order in enumerate((shards, shards[::-1])):
        pool = write_pool(tmp_path / f"{number}", *order)
        assert kept(pool, Rule("s_high", {"seed": 0})) == [1, 3]  # float32's .3 is above .3


def test_numbers_beyond_64_bits_with_a_sign_are_refused(tmp_path, notes):
    pool = make_pool(tmp_path / "pool", [0, 1])
    (pool / "signals").mkdir()
    frame = pd.DataFrame({"uid": [uid(0)], "my_score": np.array([2**63], dtype=np.uint64)})
    frame.to_parquet(pool / "signals" / "mine.parquet")
    with user_error("number-too-large", match="'my_score'"):
        kept(pool, Rule("s_mine", {}, Cut("threshold", 0.5)))


def test_a_damaged_file_of_values_is_named(tmp_path, notes):
    pool = make_pool(tmp_path / "pool", [0, 1])
    kept(pool, twice(0.5))
    path = next((pool / "signals").glob("s_twice-*/*.parquet"))
    data = path.read_bytes()
    path.write_bytes(data[:20] + b"x" * 40 + data[60:])
    with user_error("file-damaged", match=f"{path}"):
        kept(pool, twice(0.5))
    path.unlink()
    assert kept(pool, twice(0.5)) == [1]


def test_a_signal_is_computed_once_for_all_filters_that_use_it(tmp_path, notes):
    pool = make_pool(tmp_path / "pool", [0, 1, -1], [4])
    assert kept(pool, Rule("s_even", {"base": "even"})) == [0, 4]
    assert notes() == [("load", 0), ("s_parity", 3), ("s_even", 3), ("s_parity", 1), ("s_even", 1)]
    table = pq.read_table(next((pool / "signals").glob("s_parity-*/*0.parquet"))).to_pylist()
    assert [(row["uid"], row["value"]) for row in table] == [(uid(0), "even"), (uid(1), "odd"), (uid(10**6 - 1), None)]
    outcome = run_filters(Pool(pool), [Rule("s_odd")])
    assert format_uids(outcome.subset.uids) == [uid(1)] and notes() == []
    assert kept(pool, Rule("s_even", {"base": "zero"})) == [0, 4]  # the signal takes the filter's option of that name
    assert [name for name, _ in notes()].count("s_parity") == 2


def test_rows_without_the_signal_are_missing_to_the_filter(tmp_path, notes):
    pool = make_pool(tmp_path / "pool", [0, 1, -1])
    outcome = run_filters(Pool(pool), [Rule("s_even", {"base": "even"})])
    assert outcome.reports[0].missing == 1 and outcome.costs["s_parity"].rows == 3


def test_a_users_parquet_is_joined_by_uid(tmp_path, notes):
    pool = make_pool(tmp_path / "pool", [0, 1, 2], [3])
    (pool / "signals").mkdir()
    mine = {"uid": [uid(3).upper(), uid(9), uid(1), uid(0)], "my_score": [0.9, 1.0, 0.7, None], "my_word": list("gbgg")}
    frame = pd.DataFrame(mine).replace({"my_word": {"g": "good", "b": "bad"}})
    frame.to_parquet(pool / "signals" / "mine.parquet")
    outcome = run_filters(Pool(pool), [Rule("s_mine", {}, Cut("threshold", 0.5))])
    assert format_uids(outcome.subset.uids) == [uid(1), uid(3)] and outcome.reports[0].missing == 2
    assert kept(pool, Rule("s_word")) == [0, 1, 3]
    assert kept(pool, Rule("s_best", {"seed": 0})) == [3, 3]
    first = Rule("s_mine", {}, Cut("threshold", 0.5)).resolve(Pool(pool)).as_json()
    frame.assign(my_score=[0.1, 0.1, 0.1, 0.9]).to_parquet(pool / "signals" / "mine.parquet")
    assert kept(pool, Rule("s_mine", {}, Cut("threshold", 0.5))) == [0]
    assert Rule("s_mine", {}, Cut("threshold", 0.5)).resolve(Pool(pool)).as_json() != first


def test_joining_in_files_is_joining_in_memory(tmp_path, notes, monkeypatch):
    pool = make_pool(tmp_path / "pool", range(0, 100, 3), range(1, 100, 3))
    (pool / "signals").mkdir()
    numbers = np.random.default_rng(0).permutation(100)
    pd.DataFrame({"uid": [uid(n) for n in numbers], "my_score": numbers / 100}).to_parquet(
        pool / "signals" / "m.parquet"
    )
    sort = user_signals.sorted_blocks
    monkeypatch.setattr(user_signals, "sorted_blocks", lambda parts, folder: sort(parts, folder, max_held=10))
    expected = sorted(n for n in [*range(0, 100, 3), *range(1, 100, 3)] if n >= 50)
    assert kept(pool, Rule("s_mine", {}, Cut("threshold", 0.5))) == expected


@pytest.mark.parametrize(
    ("frame", "code", "value"),
    [
        ({"uid": [uid(0), uid(0)], "my_score": [1.0, 2.0]}, "uid-twice-in-signal", "0{32}"),
        ({"id": [uid(0)], "my_score": [1.0]}, "column-missing", "'uid'"),
        ({"uid": ["abc"], "my_score": [1.0]}, "uid-invalid", "row 0 .*'abc'"),
        ({"uid": [uid(0)], "my_score": [[1.0]]}, "column-type", "'my_score' .*list<"),
    ],
)
def test_a_users_parquet_that_cannot_be_used_is_named(tmp_path, notes, frame, code, value):
    pool = make_pool(tmp_path / "pool", [0, 1])
    (pool / "signals").mkdir()
    pd.DataFrame(frame).to_parquet(pool / "signals" / "mine.parquet")
    with user_error(code, match=value):
        kept(pool, Rule("s_mine", {}, Cut("threshold", 0.5)))


def test_a_signal_that_is_nowhere_is_named_with_the_nearest(tmp_path, notes):
    pool = make_pool(tmp_path / "pool", [0, 1])
    (pool / "signals").mkdir()
    pd.DataFrame({"uid": [uid(0)], "my_scor": [1.0]}).to_parquet(pool / "signals" / "mine.parquet")
    with user_error("signal-not-found", match="'s_mine'.*'my_score'.*'my_scor'"):
        kept(pool, Rule("s_mine", {}, Cut("threshold", 0.5)))


def test_scores_in_a_file_per_shard_are_one_signal(tmp_path, notes):
    """As every scoring program writes them; what one file says and several say together is the same."""
    mine = {0: 0.9, 1: 0.2, 2: 0.5, 3: 0.7, 4: 0.1, 5: None}
    whole, parts = (make_pool(tmp_path / name, [0, 1, 2], [3, 4, 5]) for name in ("whole", "parts"))
    for pool, files in ((whole, [range(6)]), (parts, [(5, 3), (0,), (), (2, 4, 1)])):
        (pool / "signals").mkdir()
        for number, numbers in enumerate(files):
            frame = pd.DataFrame({"uid": [uid(n) for n in numbers], "my_score": [mine[n] for n in numbers]})
            frame.to_parquet(pool / "signals" / f"{number:05d}.parquet")
    cut = Rule("s_mine", {}, Cut("threshold", 0.5))
    assert kept(whole, cut) == kept(parts, cut) == [0, 2, 3]
    before = cut.resolve(Pool(parts)).as_json()
    assert before["signals"]["my_score"] != cut.resolve(Pool(whole)).as_json()["signals"]["my_score"]
    (parts / "signals" / "00001.parquet").rename(parts / "signals" / "99999.parquet")
    assert cut.resolve(Pool(parts)).as_json() == before  # by contents, not by names
    pd.DataFrame({"uid": [uid(0)], "my_score": [0.1]}).to_parquet(parts / "signals" / "99999.parquet")
    assert kept(parts, cut) == [2, 3] and cut.resolve(Pool(parts)).as_json() != before
    (hashed,) = {sha256_of(whole / "signals" / "00000.parquet")}
    assert cut.resolve(Pool(whole)).as_json()["signals"]["my_score"] == hashed  # of one file, as ever


def test_a_pilot_takes_scores_of_several_files(tmp_path, notes):
    pool = make_pool(tmp_path / "pool", [0, 1, 2], [3])
    (pool / "signals").mkdir()
    for number in range(4):
        table = pa.table({"uid": pa.array([uid(number)], pa.string_view()), "my_score": [number / 4]})
        pq.write_table(table, pool / "signals" / f"{number}.parquet")
    lines = pilot_lines(Pool(pool), [Rule("s_mine", {}, Cut("threshold", 0.5)).resolve(Pool(pool))])
    assert any("'s_mine'" in line for line in lines)


def test_a_uid_in_two_score_files_is_an_error(tmp_path, notes):
    pool = make_pool(tmp_path / "pool", [0, 1])
    (pool / "signals").mkdir()
    for name in "ab":
        pd.DataFrame({"uid": [uid(0)], "my_score": [1.0]}).to_parquet(pool / "signals" / f"{name}.parquet")
    with user_error("uid-twice-in-signal", match=r"a\.parquet.*b\.parquet.*'my_score'.*0{32}") as error:
        kept(pool, Rule("s_mine", {}, Cut("threshold", 0.5)))
    assert error.value.code == "uid-twice-in-signal"


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        ([1.0], ["good"], "signal-types"),
        ([True], [1], "signal-types"),
        ([[1.0]], [1.0], "column-type"),
        ([1], [2.5], None),
        (["a"], [None], None),
    ],
)
def test_score_files_of_one_name_must_hold_one_kind(tmp_path, notes, first, second, code):
    pool = make_pool(tmp_path / "pool", [0, 1])
    (pool / "signals").mkdir()
    for name, number, values in (("a", 0, first), ("b", 1, second)):
        pd.DataFrame({"uid": [uid(number)], "my_score": values}).to_parquet(pool / "signals" / f"{name}.parquet")
    if code is None:
        signal_found = user_signals.find_user_signal(Pool(pool), "my_score", "x")
        user_signals.join_user_signal(signal_found)
        found = user_signals.read_user_signal(signal_found, parse_uids([uid(0), uid(1)]))
        told = [value if valued else None for value, valued in zip(found.values.tolist(), found.has_value, strict=True)]
        assert told == [*first, *second]
        return
    with pytest.raises(ValueError) as error:
        kept(pool, Rule("s_mine", {}, Cut("threshold", 0.5)))
    assert error.value.code == code and ".parquet" in str(error.value)


@pytest.mark.parametrize(
    "kind", [pa.float16(), pa.float32(), pa.float64(), pa.decimal128(10, 4), pa.int8(), pa.uint64()]
)
@pytest.mark.parametrize("text", [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), "dictionary"])
def test_scores_and_their_uids_may_be_of_any_arrow_type(tmp_path, notes, kind, text):
    pool = make_pool(tmp_path / "pool", [0, 1, 2], [3])
    (pool / "signals").mkdir()

    def texts(values):
        array = pa.array(values)
        return array.dictionary_encode() if text == "dictionary" else array.cast(text)

    scores = pa.array([1, 0, None, 1]) if pa.types.is_integer(kind) else pa.array([0.75, 0.25, None, 0.5])
    table = pa.table(
        {
            "uid": texts([uid(n) for n in (3, 1, 2, 0)]),
            "my_score": scores.cast(kind),
            "my_word": texts(["good", "bad", None, "good"]),
        }
    )
    pq.write_table(table, pool / "signals" / "mine.parquet")
    assert kept(pool, Rule("s_word")) == [0, 3]
    if not pa.types.is_integer(kind):  # the filter declares a cut, and whole numbers are copies
        assert kept(pool, Rule("s_mine", {}, Cut("threshold", 0.5))) == [0, 3]
    assert kept(pool, Rule("s_best", {"seed": 0})) == [3, 3]


def test_a_damaged_score_file_is_named(tmp_path, notes):
    pool = make_pool(tmp_path / "pool", [0, 1])
    (pool / "signals").mkdir()
    path = pool / "signals" / "mine.parquet"
    pd.DataFrame({"uid": [uid(n) for n in range(500)], "my_score": np.random.default_rng(0).random(500)}).to_parquet(
        path
    )
    data = bytearray(path.read_bytes())
    data[4:400] = bytes(396)
    path.write_bytes(data)
    with user_error("file-damaged", match=r"mine\.parquet") as error:
        kept(pool, Rule("s_mine", {}, Cut("threshold", 0.5)))
    assert error.value.code == "file-damaged"


def test_workers_keep_the_same_bytes(tmp_path, notes, plugin):
    found = {}
    for workers in (0, 2):
        pool = make_pool(tmp_path / f"{workers}", [0, 1, -1], [4], [7, 8, 9])
        rules = [twice(0.5), Rule("s_even", {"base": "even"})]
        assert kept(pool, *rules, workers=workers, plugins=[str(plugin)]) == [4, 8]
        files = sorted((pool / "signals").glob("*/*.parquet"))
        found[workers] = [(path.relative_to(pool), path.read_bytes()) for path in files]
    assert found[0] == found[2] and len(found[0]) == 9


def test_killed_inside_a_shard_it_goes_on_where_it_was_and_keeps_the_same_bytes(tmp_path, notes, plugin):
    """The third slice of the only shard kills the process; the next run asks for that slice and the last."""
    numbers = range(3 * SLICE_ROWS + 5)
    pool, other = make_pool(tmp_path / "killed", numbers), make_pool(tmp_path / "whole", numbers)
    code = (
        "import os, signal\nfrom benchmark.selection import cache, row_independence, shard_evaluation\n"
        "from benchmark.selection.engine import run_filters\n"
        "from benchmark.pool.pool import Pool\nfrom benchmark.registry import load_strategies\n"
        "from benchmark.selection.rules import Cut, Rule\n"
        f"load_strategies([{str(plugin)!r}])\ncache.PART_SECONDS = row_independence.NUM_REPEATED = 0\n"
        "call, calls = shard_evaluation.call_strategy, []\n"
        "def dying(*arguments):\n    calls.append(1)\n"
        "    if len(calls) == 3:\n        os.kill(os.getpid(), signal.SIGKILL)\n    return call(*arguments)\n"
        "shard_evaluation.call_strategy = dying\n"
        f"run_filters(Pool({str(pool)!r}), [Rule('s_twice', {{'factor': 2.0}}, Cut('fraction', 0.5))])\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert ended.returncode == -signal.SIGKILL and notes() == [("s_twice", SLICE_ROWS)] * 2
    assert kept(pool, twice(0.5)) == kept(other, twice(0.5))
    assert notes() == [("s_twice", SLICE_ROWS), ("s_twice", 5), *[("s_twice", SLICE_ROWS)] * 3, ("s_twice", 5)]
    (first,), (second,) = (sorted((each / "signals").glob("s_twice-*/*.parquet")) for each in (pool, other))
    assert first.read_bytes() == second.read_bytes() and not first.with_suffix(".parts").exists()


def test_an_interrupt_of_the_whole_group_ends_workers_at_once(tmp_path, notes):
    """As Ctrl-C in a terminal does; a worker that waits for its filter is not waited for."""
    plugin = tmp_path / "sleeps.py"
    plugin.write_text(
        '"""Sleeps."""\nimport time\nfrom pathlib import Path\n\nfrom benchmark import register_filter\n\n\n'
        '@register_filter(columns=["score"])\ndef s_sleeps(rows):\n    """Sleep."""\n'
        '    Path("awake").touch()\n    time.sleep(300)\n    return rows["score"] > 0\n'
    )
    pool = make_pool(tmp_path / "pool", [0, 1], [2, 3], [4, 5])
    # Where the tests run in the background, a shell has them ignore the signal.
    code = "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from benchmark.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "filter", "scale=small", f"pool_dir={pool}", f"plugins={plugin}"]
    process = subprocess.Popen(
        [*command, "filters=s_sleeps", "workers=2", "exp_dir=exp"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
        stderr=subprocess.PIPE,
    )
    for _ in range(600):
        if (tmp_path / "awake").exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=600)
    assert process.returncode == 130 and b"interrupted by SIGINT" in told
    assert not (tmp_path / "exp").exists()


def test_two_models_of_one_signal_are_each_loaded_once_and_their_rows_counted_apart(tmp_path, notes, plugin):
    pool = make_pool(tmp_path / "pool", range(3 * SLICE_ROWS + 5), range(7))
    rules = [Rule("s_even", {"base": "even"}), Rule("s_other", {"base": "equal"})]
    costs = run_filters(Pool(pool), rules).costs
    assert [name for name, _ in notes()].count("load") == 2
    counted = {name: cost.rows for name, cost in costs.items()}
    assert counted == {**dict.fromkeys(["s_even", "s_other"], 3 * SLICE_ROWS + 12)} | {
        f"s_parity (base={base})": 3 * SLICE_ROWS + 12 for base in ("even", "equal")
    }
