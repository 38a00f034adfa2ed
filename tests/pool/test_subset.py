"""Subset files: reading, writing, algebra and overlaps, against counters."""

import csv
import gzip
import json
import pickle
import re
import subprocess
import sys
import tempfile
from collections import Counter
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import feather

from benchmark.cli.main import main
from benchmark.pool.subset import Subset, load_subset, write_subset
from benchmark.pool.subset_algebra import combine_files, combined, overlap_files, overlaps_of
from benchmark.pool.uids import UID_DTYPE, format_uids, parse_uids, sort_uids
from benchmark.runtime.files import sha256_of
from benchmark.runtime.records import Record, write_record
from tests.conftest import THOUSANDS, uid, user_error


def subset_of(*numbers: int) -> np.ndarray:
    """Make sorted uids of small numbers: tens are the upper half, ones the lower."""
    return np.array(sorted(divmod(number, 10) for number in numbers), dtype=UID_DTYPE)


def counter_of(uids: np.ndarray) -> Counter:
    return Counter(uids.tolist())


def drawn(seed: int, count: int, upper: int = 4, lower: int = 4) -> np.ndarray:
    generator = np.random.default_rng(seed)
    halves = zip(
        generator.integers(0, upper, count).tolist(), generator.integers(0, lower, count).tolist(), strict=True
    )
    return np.array(sorted(halves), dtype=UID_DTYPE)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- Files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 999, 12345])
def test_blocks_are_written_as_numpy_would_write_the_whole(tmp_path, count):
    uids = drawn(0, count, 1000, 1000)
    np.save(tmp_path / "whole.npy", uids)
    assert write_subset(tmp_path / "blocks.npy", (uids[start : start + 100] for start in range(0, count, 100))) == count
    Subset(uids).write(tmp_path / "saved.npy")
    expected = (tmp_path / "whole.npy").read_bytes()
    assert (tmp_path / "blocks.npy").read_bytes() == (tmp_path / "saved.npy").read_bytes() == expected
    assert load_subset(tmp_path / "saved.npy").uids.tolist() == uids.tolist()


@pytest.mark.parametrize("blocks", [[(3, 1)], [(1, 2), (), (1,)], [(12, 13), (2, 22)]])
def test_blocks_that_go_backwards_are_refused_and_nothing_is_left(tmp_path, blocks):
    arrays = [np.array([divmod(number, 10) for number in block], dtype=UID_DTYPE) for block in blocks]
    with user_error("subset-invalid", match=r"subset\.npy"):
        write_subset(tmp_path / "subset.npy", arrays)
    assert list(tmp_path.iterdir()) == []


def test_a_raw_file_is_read_as_it_is(tmp_path):
    drawn(0, 50).tofile(tmp_path / "raw")
    assert load_subset(tmp_path / "raw").uids.tolist() == drawn(0, 50).tolist()
    assert isinstance(load_subset(tmp_path / "raw").uids, np.memmap)


def test_an_unsorted_file_is_sorted_with_a_warning(tmp_path, capsys):
    np.save(tmp_path / "backwards.npy", drawn(0, 50)[::-1])
    assert load_subset(tmp_path / "backwards.npy").uids.tolist() == drawn(0, 50).tolist()
    assert "backwards.npy is not sorted" in capsys.readouterr().err


def damaged(name: str) -> bytes:
    """Return the bytes of a file that is no subset."""
    np.save("good.npy", subset_of(1, 2, 3))
    good = Path("good.npy").read_bytes()
    if name == "swapped":
        np.save("x.npy", subset_of(1).astype(">u8,>u8"))
    elif name == "flat":
        np.save("x.npy", np.arange(4))
    elif name == "square":
        np.save("x.npy", subset_of(1, 2, 3, 4).reshape(2, 2))
    elif name == "pickled":
        np.save("x.npy", np.array([{}], dtype=object), allow_pickle=True)
    else:
        return {
            "empty": b"",
            "odd": b"\x07" * 33,
            "short": good[:-16],
            "long": good + b"x",
            "header": good[:60],
            "broken": good[:20] + b"\n" + good[21:],
            "garbled": good.replace(b"'<u8'", b"'<08)", 1),
        }[name]
    return Path("x.npy").read_bytes()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "bad.npy is an empty file"),
        ("odd", "neither .npy nor raw pairs of 8-byte integers, as its 33 bytes are not a multiple of 16"),
        ("short", "is cut short: its header says 3 uids, that is 48 bytes, and 32 bytes follow"),
        ("long", "has bytes after its end: its header says 3 uids, that is 48 bytes, and 49 bytes follow"),
        ("header", "its header is damaged"),
        ("broken", "its header is damaged"),
        ("garbled", "its header is damaged"),
        ("swapped", "in the other byte order; a subset file holds"),
        ("flat", "holds int64 of shape (4,); a subset file holds"),
        ("square", "of shape (2, 2); a subset file holds"),
        ("pickled", "holds pickled objects, which are never read"),
    ],
)
def test_a_file_that_is_no_subset_is_named_in_one_sentence(folder, capsys, name, message):
    Path("bad.npy").write_bytes(damaged(name))
    assert main(["subset", "info", "bad.npy"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("winnow: bad.npy ") and message in error and error.count("\n") == 1


# --- Algebra -------------------------------------------------------------------------------------------------------

BY_COUNTER = {
    "and": lambda first, *others: Counter({uid: min(n, *(other[uid] for other in others)) for uid, n in first.items()}),
    "or": lambda first, *others: first | others[0] | others[-1],
    "minus": lambda first, *others: first - sum(others, Counter()),
    "restrict": lambda first, *others: Counter({u: n for u, n in first.items() if all(u in other for other in others)}),
}


@pytest.mark.parametrize("block_size", [1, 2, 3, 7, 50, 1000])
@pytest.mark.parametrize("operation", BY_COUNTER)
def test_operations_agree_with_counters_wherever_blocks_end(operation, block_size):
    for seed, sizes in enumerate(product([0, 5, 60], [0, 40], [5, 200])):
        for subsets in (
            [drawn(seed + 9 * each, size) for each, size in enumerate(sizes[:number])] for number in (2, 3)
        ):
            blocks = list(combined(operation, subsets, block_size))
            assert all(0 < len(block) <= block_size for block in blocks)
            result = [uid for block in blocks for uid in block.tolist()]
            expected = BY_COUNTER[operation](*map(counter_of, subsets))
            assert result == sorted(expected.elements())


# Few different uids, so that they meet, at both ends of what 128 bits hold.
SOME_UIDS = st.lists(st.tuples(*[st.sampled_from([0, 1, 2**63, 2**64 - 1])] * 2), max_size=25)


@st.composite
def several_subsets(draw):
    """Return subsets as lists in any order, how each is written, and the places of the ones that are asked for."""
    subsets = draw(st.lists(st.tuples(SOME_UIDS, st.sampled_from(["npy", "raw", "unsorted"])), min_size=1, max_size=4))
    asked = draw(st.lists(st.integers(0, len(subsets) - 1), min_size=2, max_size=5))  # a file may be named twice
    return [(uids if style == "unsorted" else sorted(uids), style) for uids, style in subsets], asked


def write_uids(path: Path, uids: list[tuple[int, int]], style: str) -> Path:
    array = np.array(uids, dtype=UID_DTYPE)
    if style == "raw" and uids:  # an empty file is none
        array.tofile(path)
    else:
        with path.open("wb") as file:
            np.save(file, array)
    return path


def by_counting(operation: str, counters: list[Counter]) -> Counter:
    first, others = counters[0], counters[1:]
    result = Counter(first)
    for other in others:
        if operation == "and":
            result &= other
        elif operation == "or":
            result |= other
        elif operation == "minus":
            result -= other
        else:
            result = Counter({uid: copies for uid, copies in result.items() if other[uid]})
    return result


def agree_with_counters(drawn_subsets, block_size: int) -> None:
    subsets, asked = drawn_subsets
    with tempfile.TemporaryDirectory() as name:
        paths = [write_uids(Path(name, f"{n}.npy"), *each) for n, each in enumerate(subsets)]
        counters = [Counter(subsets[place][0]) for place in asked]
        chosen = [paths[place] for place in asked]
        for operation in BY_COUNTER:
            expected = sorted(by_counting(operation, counters).elements())
            out_path = Path(name, "out", operation)
            combine_files(operation, chosen, out_path)
            assert np.load(out_path).tolist() == expected, operation
            blocks = list(combined(operation, [load_subset(path).uids for path in chosen], block_size))
            assert all(0 < len(block) <= block_size for block in blocks)
            assert [uid for block in blocks for uid in block.tolist()] == expected, operation
        rows = list(csv.reader(overlap_files(chosen, "csv").splitlines()))[1:]
        for row, (a, b) in zip(rows, combinations(range(len(asked)), 2), strict=len(asked) == 2):
            one, other = counters[a], counters[b]
            shared, either = (one & other).total(), (one | other).total()
            assert row[:2] == [str(chosen[a]), str(chosen[b])]
            assert [int(cell) for cell in row[2:5]] == [shared, one.total() - shared, other.total() - shared]
            uids = len(one.keys() & other.keys()), len(one.keys() | other.keys())
            assert row[5:] == ([str(shared / either), str(uids[0] / uids[1])] if either else ["", ""])
        if len(asked) > 2:
            least, most = by_counting("and", counters), by_counting("or", counters)
            shares = [str(least.total() / most.total()), str(len(least) / len(most))] if most else ["", ""]
            assert rows[-1] == [f"all {len(asked)} files", "", str(least.total()), "", "", *shares]


@given(several_subsets(), st.integers(1, 30))
def test_algebra_of_any_files_agrees_with_counters(subsets, block_size):
    agree_with_counters(subsets, block_size)


@pytest.mark.thousands
@THOUSANDS
@given(several_subsets(), st.integers(1, 30))
def test_algebra_of_thousands_of_files_agrees_with_counters(subsets, block_size):
    agree_with_counters(subsets, block_size)


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("and", [1, 1, 12]),
        ("or", [1, 1, 1, 2, 12, 12, 13]),
        ("minus", [1, 2, 12]),
        ("restrict", [1, 1, 1, 12, 12]),
    ],
)
def test_operations_on_copies(folder, capsys, operation, expected):
    np.save("a.npy", subset_of(1, 1, 1, 2, 12, 12))
    subset_of(1, 1, 12, 13).tofile("b.raw")
    assert main(["subset", operation, "a.npy", "b.raw", "--out", "new/c.npy"]) == 0
    np.save("expected.npy", subset_of(*expected))
    assert Path("new/c.npy").read_bytes() == Path("expected.npy").read_bytes()
    assert [path.name for path in Path("new").iterdir()] == ["c.npy"]
    said = capsys.readouterr().out
    assert f"samples        {len(expected)} " in said and f"distinct uids  {len(set(expected))}\n" in said
    assert sha256_of(Path("expected.npy")) in said


def test_info_counts_copies(folder, capsys):
    np.save("a.npy", subset_of(1, 1, 1, 2, 12, 12))
    assert main(["subset", "info", "a.npy"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "a.npy",
        "  samples        6 (copies counted)",
        "  distinct uids  3",
        "  most copies    3",
        f"  sha256         {sha256_of(Path('a.npy'))}",
        f"  first uid      {1:032x}",
        f"  last uid       {(1 << 64) + 2:032x}",
    ]


def test_an_empty_result_is_written_with_a_warning(folder, capsys):
    np.save("a.npy", subset_of(1))
    np.save("none.npy", subset_of())
    assert main(["subset", "and", "a.npy", "none.npy", "--out", "c.npy"]) == 0
    assert Path("c.npy").read_bytes() == Path("none.npy").read_bytes()
    assert "warning: c.npy is empty" in capsys.readouterr().err
    assert main(["subset", "info", "c.npy"]) == 0 and main(["subset", "overlap", "none.npy", "c.npy"]) == 0


def test_an_output_that_is_there_is_kept_if_it_is_the_same_and_never_replaced(folder, capsys):
    np.save("a.npy", subset_of(1, 2))
    np.save("b.npy", subset_of(2, 3))
    command = ["subset", "and", "a.npy", "b.npy", "--out", "c.npy"]
    assert main(command) == 0 and main(command) == 0
    assert "c.npy (was there already, with the same bytes)" in capsys.readouterr().out
    assert main(["subset", "or", "a.npy", "b.npy", "--out", "c.npy"]) == 2
    assert "winnow: c.npy is there and has other bytes" in capsys.readouterr().err
    assert load_subset("c.npy").uids.tolist() == [(0, 2)]
    assert sorted(path.name for path in folder.iterdir()) == ["a.npy", "b.npy", "c.npy"]


def test_what_comes_from_a_reference_is_warned_of(folder, capsys):
    for name, reference in (("clean", True), ("honest", False)):
        Path(name).mkdir()
        np.save(f"{name}/subset.npy", subset_of(1, 2))
        write_record(Path(name, "subset.json"), Record("filter", 1, {}, {"reference": reference}))
    command = ["subset", "and", "honest/subset.npy"]
    assert main([*command, "honest/subset.npy", "--out", "c.npy"]) == 0
    assert capsys.readouterr().err == ""
    assert main([*command, "clean/subset.npy", "--out", "d.npy"]) == 0
    warning = capsys.readouterr().err
    assert "clean/subset.npy is the choice of a reference" in warning and "cannot be submitted" in warning


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary()])
def test_a_parquet_of_uids_is_a_subset_and_every_row_a_copy(folder, capsys, kind):
    """It was read as raw pairs of numbers wherever its size was a multiple of 16."""
    texts = format_uids(subset_of(3, 1, 1, 12)[::-1])
    for more in range(16):
        table = pa.table({"uid": pa.array(texts).cast(kind), "note": ["x" * more] * 4})
        pq.write_table(table, f"{more}.parquet", compression="none")
        assert format_uids(load_subset(f"{more}.parquet").uids) == sorted(texts)
    assert 0 in {Path(f"{more}.parquet").stat().st_size % 16 for more in range(16)}
    np.save("same.npy", subset_of(1, 1, 3, 12))
    assert main(["subset", "minus", "0.parquet", "same.npy", "--out", "none.npy"]) == 0
    assert len(load_subset("none.npy")) == 0


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("uids.csv", lambda path: path.write_text("uid\n" + f"{uid(1)}\n" * 32)),
        ("uids.json", lambda path: path.write_text(json.dumps([uid(n) for n in range(200)]))),
        ("uids.npz", lambda path: np.savez(path.open("wb"), uids=subset_of(1, 2))),
        ("uids.gz", lambda path: path.write_bytes(gzip.compress(subset_of(1, 2).tobytes()))),
        ("uids.pickle", lambda path: path.write_bytes(pickle.dumps([uid(n) for n in range(20)], protocol=4))),
        ("uids.arrow", lambda path: feather.write_feather(pa.table({"uid": [uid(1)]}), str(path))),
        ("other.parquet", lambda path: pq.write_table(pa.table({"id": [uid(1)]}), path)),
    ],
)
def test_a_file_of_another_format_is_never_read_as_raw_uids(folder, capsys, name, write):
    path = folder / name
    write(path)
    if not name.endswith(".parquet"):
        path.write_bytes(path.read_bytes() + b" " * (-path.stat().st_size % 16))  # what raw pairs would be
    with pytest.raises(ValueError) as error:
        load_subset(path)
    assert error.value.code in ("subset-invalid", "column-missing") and name in str(error.value)
    assert main(["subset", "info", name]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_raw_uids_of_any_beginning_are_read(tmp_path):
    for seed in range(300):
        uids = sort_uids(
            np.random.default_rng(seed)
            .integers(0, 2**64, size=(1 + seed % 5, 2), dtype=np.uint64)
            .view(UID_DTYPE)
            .reshape(-1)
        )
        uids.tofile(tmp_path / "raw")
        assert load_subset(tmp_path / "raw").uids.tolist() == uids.tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "nowhere.npy"], "there is no subset file nowhere.npy"),
        (["and", "a.npy", "nowhere.npy", "--out", "c.npy"], "there is no subset file nowhere.npy"),
        (["and", "a.npy", "--out", "c.npy"], "the following arguments are required: B"),
        (["overlap", "a.npy"], "the following arguments are required: B"),
        (["and", "a.npy", "a.npy"], "the following arguments are required: --out"),
        (["and", "a.npy", "a.npy", "--out", "."], "--out . is a folder"),
        (["and", "a.npy", "text", "--out", "c.npy"], "text is not a subset file"),
        (["overlap", "a.npy", "a.npy", "--format", "html"], "invalid choice: 'html'"),
        (["xor", "a.npy", "a.npy"], "invalid choice: 'xor'"),
    ],
)
def test_mistakes_are_one_sentence(folder, capsys, arguments, message):
    np.save("a.npy", subset_of(1))
    Path("text").write_text("no uids")
    assert main(["subset", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and error.startswith("winnow: ")
    assert not Path("c.npy").exists()


def test_help_defines_the_operations(capsys):
    for arguments in (["subset", "--help"], ["subset", "and", "--help"]):
        with pytest.raises(SystemExit):
            main(arguments)
        assert "never below 0" in capsys.readouterr().out


# --- Overlaps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_size", [1, 3, 50, 1000])
def test_overlaps_agree_with_counters_wherever_blocks_end(block_size):
    subsets = [drawn(seed, count) for seed, count in ((0, 60), (1, 7), (2, 0), (3, 200))]
    overlaps = overlaps_of(list("abcd"), subsets, block_size)
    counters = dict(zip("abcd", map(counter_of, subsets), strict=True))
    assert ["".join(each.names) for each in overlaps] == ["ab", "ac", "ad", "bc", "bd", "cd", "abcd"]
    for each in overlaps:
        least = most = counters[each.names[0]]
        for name in each.names[1:]:
            least, most = least & counters[name], most | counters[name]
        assert (each.shared, each.largest) == (least.total(), most.total())
        assert (each.shared_uids, each.uids) == (len(least), len(most))
        assert each.sizes == tuple(counters[name].total() for name in each.names)


def test_overlap_tables(folder, capsys):
    np.save("a.npy", subset_of(1, 1, 1, 2))
    np.save("b.npy", subset_of(1, 1, 3))
    np.save("c|c.npy", subset_of(1))
    assert main(["subset", "overlap", "a.npy", "b.npy"]) == 0
    header, rule, row, *_ = capsys.readouterr().out.splitlines()
    titles = ["a", "b", "shared", "only a", "only b", "Jaccard of copies", "Jaccard of uids"]
    assert re.split(r"  +", header) == titles and set(rule) == {"-"}
    assert row.split() == ["a.npy", "b.npy", "2", "2", "1", "0.4000", "0.3333"]
    assert main(["subset", "overlap", "a.npy", "b.npy", "c|c.npy", "--format", "csv"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "a,b,shared,only a,only b,Jaccard of copies,Jaccard of uids",
        "a.npy,b.npy,2,2,1,0.4,0.3333333333333333",
        "a.npy,c|c.npy,1,3,0,0.25,0.5",
        "b.npy,c|c.npy,1,2,0,0.3333333333333333,0.5",
        "all 3 files,,1,,,0.2,0.3333333333333333",
    ]
    assert main(["subset", "overlap", "a.npy", "c|c.npy", "--format", "markdown"]) == 0
    assert "| a.npy | c\\|c.npy | 1 | 3 | 0 | 0.2500 | 0.5000 |" in capsys.readouterr().out


MEASURED = """
import re, sys
from pathlib import Path
from benchmark.pool.subset_algebra import combine_files, overlap_files
paths = [Path(name) for name in sys.argv[1:3]]
combine_files("or", paths, Path(sys.argv[3]))
overlap_files(paths, "csv")
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


def test_memory_does_not_grow_with_the_files(folder):
    peaks = []
    for count in (1_500_000, 4_500_000):
        for name, low in (("a", 0), ("b", 1)):
            uids = np.zeros(count, dtype=UID_DTYPE)
            uids["f0"] = np.arange(low, count + low, dtype=np.uint64) * np.uint64(4_000_000_000_000)
            uids.tofile(f"{name}{count}")
        command = [sys.executable, "-c", MEASURED, f"a{count}", f"b{count}", f"out{count}"]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks.append(int(result.stdout.splitlines()[-1]) / 1024)  # MiB
    assert peaks[1] - peaks[0] < 24, peaks  # the three files alone are 137 MiB larger


def test_a_subset_as_a_series_has_the_copies_of_each_uid():
    found = Subset.of(parse_uids([uid(7), uid(3), uid(7)])).to_series()
    assert found.to_dict() == {uid(3): 1, uid(7): 2} and found.dtype == np.int64
    assert list(found.index) == [uid(3), uid(7)] and (found.name, found.index.name) == ("copies", "uid")
    assert len(Subset.of(parse_uids([])).to_series()) == 0
