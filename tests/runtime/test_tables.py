"""One pool in every Arrow type that writers use: the same subsets; what cannot be read is named with file and type."""

import json
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from benchmark.cli.main import main
from benchmark.pool.check import check_pool
from benchmark.pool.importing import import_pool
from benchmark.pool.pool import Pool
from benchmark.pool.uids import format_uids
from benchmark.runtime.tables import COMMON_FAMILIES, plain_column, plain_frame, without_views
from benchmark.selection.engine import run_filters
from benchmark.selection.rules import Cut, Rule, make_rule
from benchmark.selection.runnable import filters_of
from tests.conftest import loaded_plugin, members, uid, user_error

TEXTS = {
    "string": lambda column: column,
    "large string": lambda column: column.cast(pa.large_string()),
    "string view": lambda column: column.cast(pa.string_view()),
    "dictionary": lambda column: column.dictionary_encode(),
    "bytes": lambda column: column.cast(pa.binary()),
    "view of bytes": lambda column: column.cast(pa.binary_view()),
}
WHOLE = {
    "string": lambda column: column,
    "large string": lambda column: column.cast(pa.uint16()),
    "string view": lambda column: column.cast(pa.float64()),
    "dictionary": lambda column: column.dictionary_encode(),
    "bytes": lambda column: column.cast(pa.decimal128(20, 0)),
    "view of bytes": lambda column: column.cast(pa.int32()),
}
SCORES = {
    "string": lambda column: column,
    "large string": lambda column: column.cast(pa.float64()),
    "string view": lambda column: column.cast(pa.float16()),
    "dictionary": lambda column: column.dictionary_encode(),
    "bytes": lambda column: pa.chunked_array([decimals(column, pa.decimal128(18, 12))]),
    "view of bytes": lambda column: pa.chunked_array([decimals(column, pa.decimal256(40, 12))]),
}
CODE = '''"""Filters that compute something of metadata, so that their values are kept."""

import pandas as pd

from benchmark import register_filter


@register_filter(columns=["clip_l14_similarity_score"], fraction=0.4)
def t_doubled(rows: pd.DataFrame) -> pd.Series:
    """Score by twice the similarity."""
    return rows["clip_l14_similarity_score"] * 2


@register_filter(columns=["url", "sha256"], signals=["mine"], threshold=0.5)
def t_mine(rows: pd.DataFrame) -> pd.Series:
    """Score by what the user brought, where address and hash are text."""
    return rows["mine"].where(rows["url"].str.contains(":") & rows["sha256"].str.len().eq(64))


@register_filter(columns=["extra"])
def t_extra(rows: pd.DataFrame) -> pd.Series:
    """Keep rows by a column of one's own."""
    return rows["extra"].notna()
'''


def decimals(column, kind):
    values = [None if value is None else Decimal(value) for value in column.to_pylist()]
    return pa.array(values, kind)


@pytest.fixture(scope="module", autouse=True)
def _plugin(strategies, tmp_path_factory):
    with loaded_plugin(tmp_path_factory.mktemp("plugin") / "table_rules.py", CODE) as path:
        yield path


def written(table, name):
    """Write the columns of a metadata shard as one of the writers does."""
    makers = {"text": TEXTS, "number": WHOLE}
    for number, field in enumerate(table.schema):
        is_score = field.name.startswith("clip_")
        maker = SCORES[name] if is_score else makers[COMMON_FAMILIES.get(field.name, "text")][name]
        if field.name in COMMON_FAMILIES:
            table = table.set_column(number, field.name, maker(table[field.name]))
    return table


@pytest.fixture(scope="module")
def pools(pico_pool, tmp_path_factory):
    """The first rows of two of pico's metadata shards as each writer would write them; halves hold all its scores."""
    made = {}
    for name in TEXTS:
        pool_dir = tmp_path_factory.mktemp("pools") / "pool"
        (pool_dir / "metadata").mkdir(parents=True)
        (pool_dir / "assets").symlink_to(pico_pool / "assets")
        (pool_dir / "signals").mkdir()
        for path in sorted((pico_pool / "metadata").glob("*.parquet"))[:2]:
            table = pq.read_table(path).slice(0, 250).replace_schema_metadata(None)
            for arch in ("b32", "l14"):
                column = f"clip_{arch}_similarity_score"
                rounded = pc.divide(pc.round(pc.multiply(table[column], 1024.0)), 1024.0).cast(pa.float32())
                rounded = pc.if_else(pc.equal(pa.array(np.arange(250) % 17), 3), None, rounded)
                table = table.set_column(table.schema.get_field_index(column), column, rounded)
            table = written(table, name)
            pq.write_table(table, pool_dir / "metadata" / path.name)
            scores = pa.table(
                {"uid": table["uid"], "mine": SCORES[name](pa.chunked_array([np.arange(250, dtype=np.float32) / 256]))}
            )
            pq.write_table(scores, pool_dir / "signals" / path.name)
        made[name] = pool_dir
    return made


def test_every_strategy_chooses_the_same_whatever_types_the_metadata_is_written_in(pools):
    able = {name for name, lacking in filters_of(Pool(pools["string"])).items() if lacking is None}
    assert {"basic", "clip_score", "laion2b", "dedup", "random", "soft_cap_sampling", "t_doubled", "t_mine"} <= able
    chosen = {}
    for writer, pool_dir in pools.items():
        assert {name for name, lacking in filters_of(Pool(pool_dir)).items() if lacking is None} == able, writer
        for name in sorted(able):
            found = format_uids(run_filters(Pool(pool_dir), [make_rule(name, {})]).subset.uids)
            assert found == chosen.setdefault(name, found) and found, (writer, name)
        cut = Rule("clip_score", {"arch": "l14"}, Cut("threshold", 0.25))
        found = format_uids(run_filters(Pool(pool_dir), [cut]).subset.uids)
        assert found == chosen.setdefault("by threshold", found) and found, writer
    assert len({Pool(pool_dir).compute_fingerprint() for pool_dir in pools.values()}) == 1


def test_check_finds_nothing_wrong_with_any_of_these_types(pools):
    for writer, pool_dir in pools.items():
        assert check_pool(pool_dir).problems == [], writer


def test_a_half_passes_the_threshold_that_it_was_rounded_from(tmp_path):
    """0.2 as a half is 0.19995; compared as a single it would fail."""
    pool_dir = tmp_path / "pool"
    (pool_dir / "metadata").mkdir(parents=True)
    scores = pa.array(np.array([0.2, 0.1], dtype=np.float16))
    table = pa.table({"uid": [uid(0), uid(1)], "clip_l14_similarity_score": scores})
    pq.write_table(table, pool_dir / "metadata" / "0.parquet")
    rule = Rule("clip_score", {"arch": "l14"}, Cut("threshold", 0.2))
    assert format_uids(run_filters(Pool(pool_dir), [rule]).subset.uids) == [uid(0)]


def test_text_that_is_importable_in_one_type_is_in_every_type(tmp_path, pools):
    from benchmark.pool.tars import write_tar

    numbers = range(6)
    write_tar(
        tmp_path / "shards" / "0.tar", [member for n in numbers for member in members(f"k{n}", n, text=f"words {n}")]
    )
    expected = None
    for writer in pools:
        rows = pa.table(
            {
                "uid": TEXTS[writer](pa.chunked_array([[uid(n) for n in numbers]])),
                "text": TEXTS[writer](pa.chunked_array([[f"words {n}" for n in numbers]])),
                "key": TEXTS[writer](pa.chunked_array([[f"k{n}" for n in numbers]])),
                "original_width": WHOLE[writer](pa.chunked_array([[100 + n for n in numbers]])),
                "clip_l14_similarity_score": SCORES[writer](pa.chunked_array([np.arange(6, dtype=np.float32) / 8])),
                "lists": pa.array([["a"], None, [], ["b", "c"], [], []], pa.list_(pa.string_view())),
            }
        )
        folder = tmp_path / writer.replace(" ", "_")
        (folder / "meta").mkdir(parents=True)
        pq.write_table(rows, folder / "meta" / "0.parquet")
        for more in ({}, {"uid_column": "uid"}, {"key_column": "key"}):
            out = folder / ("pool" + "".join(more))
            import_pool(out, shards=[tmp_path / "shards"], metadata=[folder / "meta"], workers=0, **more)
            found = pd.read_parquet(out / "metadata" / "0.parquet")
            told = found[["uid", "text", "original_width", "clip_l14_similarity_score"]].to_dict("list")
            expected = expected or told
            assert told == expected and len(found) == 6, (writer, more)
            assert [None if value is None else list(value) for value in found["lists"]][:4] == [
                ["a"], None, [], ["b", "c"],
            ]  # fmt: skip


def test_a_sample_of_a_pool_of_string_views_is_drawn(pools, tmp_path):
    for writer in ("string", "string view", "view of bytes"):
        out = tmp_path / writer.replace(" ", "_")
        assert main(["pool", "sample", str(pools[writer]), "--size", "90", "--seed", "1", "--out", str(out)]) == 0
        assert Pool(out).count_rows() == 90
    assert len({Pool(path).compute_fingerprint() for path in tmp_path.iterdir() if path.is_dir()}) == 1


def test_rows_stand_where_they_are_whatever_index_pandas_noted(tmp_path):
    """A frame that was cut out of another one is written with its old row numbers, or with a column as its index."""
    whole = pd.DataFrame(
        {"uid": [uid(n) for n in range(20)], "clip_l14_similarity_score": np.arange(20, dtype=np.float32) / 32}
    )
    shards = {
        "every second": whole[::2],
        "the end": whole[10:],
        "some": whole[whole.index % 3 == 1],
        "by uid": whole.set_index("uid"),
        "nullable": whole.convert_dtypes(),
    }
    for name, frame in shards.items():
        pool_dir = tmp_path / name
        (pool_dir / "metadata").mkdir(parents=True)
        frame.to_parquet(pool_dir / "metadata" / "0.parquet")
        rows = Pool(pool_dir).read_columns(pool_dir / "metadata" / "0.parquet", ["uid", "clip_l14_similarity_score"])
        expected = frame.reset_index() if name == "by uid" else frame.reset_index(drop=True)
        assert rows["uid"].tolist() == expected["uid"].tolist(), name
        assert rows.index.equals(pd.RangeIndex(len(frame))) and rows.dtypes.iloc[1] == np.float32, name
        found = run_filters(Pool(pool_dir), [Rule("t_doubled", {}, Cut("threshold", 0.5))]).subset.uids
        above = expected[expected["clip_l14_similarity_score"] >= 0.25]["uid"]
        assert format_uids(found) == sorted(above), name


WRONG = {
    "numbers as text": {"text": pa.array([1.5, 2.5])},
    "a score as words": {"clip_l14_similarity_score": pa.array(["0.3", "0.4"])},
    "a width as a truth": {"original_width": pa.array([True, False])},
    "text as lists": {"text": pa.array([["a"], ["b"]])},
    "a time as a hash": {"sha256": pa.array([1, 2], pa.timestamp("us"))},
}
READ_BY = {"text": "basic", "clip_l14_similarity_score": "clip_score", "original_width": "basic", "sha256": "dedup"}


@pytest.mark.parametrize("case", WRONG)
def test_a_column_that_rules_cannot_read_is_a_problem_of_the_pool_and_not_of_the_filter(tmp_path, capsys, case):
    ((name, wrong),) = WRONG[case].items()
    pool_dir = tmp_path / "pool"
    (pool_dir / "metadata").mkdir(parents=True)
    sound = {
        "text": pa.array(["a", "b"]),
        "original_width": pa.array([1, 2]),
        "original_height": pa.array([1, 2]),
        "clip_l14_similarity_score": pa.array([0.3, 0.4]),
        "sha256": pa.array(["a", "b"]),
    }
    for number, columns in enumerate((sound, {**sound, name: wrong})):
        table = pa.table({"uid": [uid(2 * number), uid(2 * number + 1)], **columns})
        pq.write_table(table, pool_dir / "metadata" / f"{number}.parquet")
    assert main(["pool", "check", str(pool_dir), "--format", "json"]) == 1
    report = json.loads(capsys.readouterr().out)
    path = pool_dir / "metadata" / "1.parquet"
    spelt = str(wrong.type).split("<")[0]  # a list's parts have other names in a file
    problems = [each for each in report["problems"] if str(path) in each and f"{name!r} is {spelt}" in each]
    assert problems and "filter" not in problems[0]
    assert spelt in report["filters"][READ_BY[name]]
    assert report["filters"]["no_filter"] is None
    with pytest.raises(ValueError) as error:
        run_filters(Pool(pool_dir), [make_rule(READ_BY[name], {})])
    assert error.value.code == "column-type" and str(path) in str(error.value)


def test_a_shard_without_values_may_have_any_type(tmp_path):
    """Writers give such a column a type of nothing, or of numbers."""
    pool_dir = tmp_path / "pool"
    (pool_dir / "metadata").mkdir(parents=True)
    for number, texts in enumerate((["a", "b"], pa.nulls(2), pa.nulls(2, pa.float64()), pa.array([], pa.float64()))):
        table = pa.table({"uid": [uid(2 * number + n) for n in range(len(texts))], "text": texts})
        pq.write_table(table, pool_dir / "metadata" / f"{number}.parquet")
    pool = Pool(pool_dir)
    pool.check_columns(["text", "uid"], "a filter")
    for path in pool.metadata_paths:
        rows = pool.read_columns(path, ["text"])
        assert rows["text"].str.len().isna().all() or len(rows["text"].dropna()) == 2


def wrongly_text(kind):
    """Return three texts as a careless writer makes them: the second is no UTF-8."""
    data = pa.array([b"words", b"\xff\xfe", b"more"])
    return data if kind == pa.binary() else pa.Array.from_buffers(pa.string(), 3, data.buffers())


@pytest.mark.parametrize("kind", [pa.binary(), pa.string()])
def test_bytes_that_are_no_text_are_named_with_their_row_and_no_filter_is_blamed(tmp_path, kind):
    pool_dir = tmp_path / "pool"
    (pool_dir / "metadata").mkdir(parents=True)
    table = pa.table({"uid": [uid(n) for n in range(3)], "text": wrongly_text(kind)})
    pq.write_table(table, pool_dir / "metadata" / "0.parquet")
    with user_error("column-type", match=r"0\.parquet.*'text'.*row 1") as error:
        run_filters(Pool(pool_dir), [make_rule("metaclip", {"entries": str(words(tmp_path))})])
    assert error.value.code == "column-type" and "metaclip" not in str(error.value)


def words(folder):
    (folder / "entries.txt").write_text("words\n")
    return folder / "entries.txt"


def test_bytes_in_a_column_of_ones_own_stay_bytes():
    mine = pa.table({"fingerprint": pa.array([b"words", b"\xff\xfe"])})
    assert plain_frame(mine, Path("0.parquet"))["fingerprint"].tolist() == [b"words", b"\xff\xfe"]


def test_a_type_that_pandas_cannot_hold_is_named_with_its_column(tmp_path):
    pool_dir = tmp_path / "pool"
    (pool_dir / "metadata").mkdir(parents=True)
    table = pa.table({"uid": [uid(0)], "extra": pa.array([1], pa.time64("ns"))})
    pq.write_table(table, pool_dir / "metadata" / "0.parquet")
    with user_error("column-type", match=r"0\.parquet.*'extra'.*time64\[ns\]") as error:
        run_filters(Pool(pool_dir), [Rule("t_extra")])
    assert error.value.code == "column-type" and "t_extra" not in str(error.value)


def test_two_columns_of_one_name_are_refused(tmp_path):
    pool_dir = tmp_path / "pool"
    (pool_dir / "metadata").mkdir(parents=True)
    arrays = [pa.array([uid(0)]), pa.array(["a"]), pa.array(["b"])]
    pq.write_table(pa.Table.from_arrays(arrays, ["uid", "text", "text"]), pool_dir / "metadata" / "0.parquet")
    assert any("2 columns 'text'" in problem for problem in check_pool(pool_dir).problems)
    with pytest.raises(ValueError) as error:
        run_filters(Pool(pool_dir), [make_rule("metaclip", {})])
    assert error.value.code == "column-type"


def test_a_pool_of_plain_types_is_read_as_it_always_was(pico_pool):
    """The same arrays, untouched: what was kept of a sound pool before stands."""
    path = sorted((pico_pool / "metadata").glob("*.parquet"))[0]
    table = pq.read_table(path)
    for name in table.column_names:
        column = table[name]
        assert plain_column(column, "x", COMMON_FAMILIES.get(name)) is column, name
    assert without_views(table) is table
    frame = plain_frame(table, path)
    pd.testing.assert_frame_equal(frame, pd.read_parquet(path))


def test_whole_numbers_that_gaps_would_round_are_refused_by_name():
    hashes = [2**60 + 1, 2**60 + 2, None]
    with user_error("column-type", "'phash'.*2\\^53"):
        plain_frame(pa.table({"phash": pa.array(hashes, pa.int64())}), Path("0.parquet"))
    without_gaps = plain_frame(pa.table({"phash": pa.array(hashes[:2], pa.int64())}), Path("0.parquet"))
    assert without_gaps["phash"].tolist() == hashes[:2]
    small = plain_frame(pa.table({"side": pa.array([2**53, None], pa.uint64())}), Path("0.parquet"))
    assert small["side"].tolist()[0] == 2**53
