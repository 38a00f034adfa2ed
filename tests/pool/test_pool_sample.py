"""`winnow pool sample`: sub-pools that hang on uids alone, nest, are made whole or not at all, and can be used."""

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmark.cli.main import main
from benchmark.pool.check import check_pool
from benchmark.pool.index import build_index
from benchmark.pool.pool import Pool
from benchmark.pool.sampling import find_cut, sample_pool
from benchmark.pool.subset import load_subset
from benchmark.pool.tars import write_tar
from benchmark.pool.uids import format_uids, parse_uids, unique_uids
from benchmark.runtime.keyed import keyed_uint64
from tests.conftest import jpeg, members, uid, user_error, write_pool

ROOT = Path(__file__).resolve().parents[2]


def uids_of(pool_dir):
    return [text for path in Pool(pool_dir).metadata_paths for text in pd.read_parquet(path)["uid"]]


def first_uids(texts, seed):
    """Return uids in the order in which they are drawn, by the definition."""
    return sorted(texts, key=lambda text: (int(keyed_uint64(103, seed, int(text[:16], 16), int(text[16:], 16))), text))


def tree(folder):
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths if p.name not in (".lock", "costs.jsonl")}


@pytest.fixture(scope="module")
def pool_dir(tmp_path_factory):
    """40 rows in two metadata shards with features; 34 samples in two tars, one damaged place in the second."""
    numbers = [n * 0x9E3779B97F4A7C15 for n in range(1, 41)]
    shards = [
        {"uid": [uid(n) for n in part], "text": [f"no {n}" for n in part]} for part in (numbers[:25], numbers[25:])
    ]
    pool_dir = write_pool(
        tmp_path_factory.mktemp("pools") / "pool", *shards, features={"l14_img": np.arange(50.0).reshape(25, 2)}
    )
    for name, part in (("a", numbers[:20]), ("b", numbers[20:34])):
        samples = [members(f"{name}{n}", n, image=jpeg((n % 251, 9, 9))) for n in part]
        write_tar(pool_dir / "shards" / f"{name}.tar", [member for sample in samples for member in sample])
    (pool_dir / "assets").mkdir()
    (pool_dir / "assets" / "words.txt").write_text("red\n")
    return pool_dir


def test_the_rows_with_the_smallest_hashes_are_taken_in_their_order(pool_dir, tmp_path):
    expected = set(first_uids(uids_of(pool_dir), 3)[:17])
    record = sample_pool(pool_dir, tmp_path / "out", size=17, seed=3)
    assert record.result["rows"] == 17
    assert uids_of(tmp_path / "out") == [text for text in uids_of(pool_dir) if text in expected]
    for path in Pool(tmp_path / "out").metadata_paths:
        whole = pd.read_parquet(pool_dir / "metadata" / path.name)
        kept = whole["uid"].isin(expected).to_numpy()
        pd.testing.assert_frame_equal(pd.read_parquet(path), whole[kept].reset_index(drop=True))
        if path.with_suffix(".npz").exists():
            (whole_npz, npz) = (np.load(p.with_suffix(".npz")) for p in (pool_dir / "metadata" / path.name, path))
            np.testing.assert_array_equal(npz["l14_img"], whole_npz["l14_img"][kept])
    assert [p.name for p in (tmp_path / "out" / "metadata").glob("*.npz")] == [f"{0:032x}.npz"]
    assert (tmp_path / "out" / "assets" / "words.txt").read_text() == "red\n"
    assert format_uids(load_subset(tmp_path / "out" / "uids.npy").uids) == sorted(expected)


def test_files_and_their_order_do_not_matter(pool_dir, tmp_path):
    rows = uids_of(pool_dir)
    write_pool(tmp_path / "other", {"uid": rows[::-1][:3]}, {"uid": rows[::-1][3:30]}, {"uid": rows[::-1][30:]})
    sample_pool(pool_dir, tmp_path / "a", size=11)
    sample_pool(tmp_path / "other", tmp_path / "b", size=11)
    assert sorted(uids_of(tmp_path / "a")) == sorted(uids_of(tmp_path / "b"))


def test_smaller_samples_are_parts_of_larger_ones_and_of_themselves(pool_dir, tmp_path):
    for size in (5, 6, 30):
        sample_pool(pool_dir, tmp_path / str(size), size=size, seed=1)
    sample_pool(tmp_path / "30", tmp_path / "6 of 30", size=6, seed=1)
    sample_pool(pool_dir, tmp_path / "seed 2", size=6, seed=2)
    five, six, thirty, six_of_thirty, other = (
        set(uids_of(tmp_path / name)) for name in ("5", "6", "30", "6 of 30", "seed 2")
    )
    assert five < six < thirty and six == six_of_thirty and six != other
    one, two = (check_pool(tmp_path / name) for name in ("6", "6 of 30"))
    assert one.content_hash == two.content_hash and one.meeting.present == two.meeting.present


def test_a_uid_is_taken_with_all_its_rows_or_not_at_all(tmp_path, capsys):
    rows = [uid(n << 64 | n) for n in range(1, 7)]
    in_order = first_uids(rows, 0)
    pool_dir = write_pool(tmp_path / "pool", {"uid": [*rows, in_order[2]]}, {"uid": [in_order[2]] * 2})
    for size, expected in ((2, in_order[:2]), (5, in_order[:2]), (6, in_order[:3]), (9, in_order)):
        assert main(["pool", "sample", str(pool_dir), f"--size={size}", f"--out={tmp_path / str(size)}"]) == 0
        assert set(uids_of(tmp_path / str(size))) == set(expected)
        assert ("fewer than requested" in capsys.readouterr().out) == (size == 5)
    assert len(uids_of(tmp_path / "5")) == 2 and len(uids_of(tmp_path / "6")) == 6


def test_a_first_uid_with_too_many_rows_is_an_error(tmp_path):
    pool_dir = write_pool(tmp_path / "pool", {"uid": [uid(1)] * 3})
    with user_error("option-value", match="--size 2 .*3 rows"):
        sample_pool(pool_dir, tmp_path / "out", size=2)


def test_the_cut_is_exact_for_many_uids():
    rng = np.random.default_rng(0)
    uids = parse_uids([f"{int(a):016x}{int(b):016x}" for a, b in rng.integers(0, 2**63, (100_000, 2))])
    for size in (1, 777, 99_999, 100_000):
        cut = find_cut(lambda: iter(np.array_split(uids, 7)), size, 5)
        keys = keyed_uint64(103, 5, uids["f0"], uids["f1"])
        assert cut.holds(uids).sum() == size
        assert keys[cut.holds(uids)].max() == np.sort(keys)[size - 1]


def test_the_index_narrowed_is_the_index_made(pool_dir, tmp_path):
    sample_pool(pool_dir, tmp_path / "made", size=20)  # the pool has no index yet, or has one: no matter
    build_index(pool_dir)
    sample_pool(pool_dir, tmp_path / "narrowed", size=20)
    assert tree(tmp_path / "made") == tree(tmp_path / "narrowed")
    assert {"index/a.parquet", "index/b.parquet"} <= set(tree(tmp_path / "made"))


def test_a_damaged_place_is_known_to_the_sub_pool(pool_dir, tmp_path):
    for name in ("a", "b"):
        data = (pool_dir / "shards" / f"{name}.tar").read_bytes()
        (tmp_path / "cut" / "shards").mkdir(parents=True, exist_ok=True)
        (tmp_path / "cut" / "shards" / f"{name}.tar").write_bytes(data if name == "a" else data[:-9000])
    record = sample_pool(tmp_path / "cut", tmp_path / "out", size=9)
    assert record.result["rows"] == 9 and not (tmp_path / "out" / "metadata").exists()
    assert build_index(tmp_path / "out").damaged[0][0].path.name == "b.tar"


def test_killed_at_every_rename_it_ends_with_the_same_bytes(pool_dir, tmp_path):
    sample_pool(pool_dir, tmp_path / "whole", size=20)
    code = (
        "import os, pathlib, signal, sys\nfrom benchmark.pool.sampling import sample_pool\nfrom pathlib import Path\n"
        "original = pathlib.Path.replace\ncount = 0\n"
        "def replace(self, target):\n    global count\n    count += 1\n"
        "    if count == number:\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return original(self, target)\n"
        "pathlib.Path.replace = replace\n"
        "number = 0\n"
        "while True:\n"
        "    number += 1\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        sample_pool(Path(sys.argv[1]), Path(sys.argv[2]), size=20)\n        os._exit(0)\n"
        "    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
        "    print(status, flush=True)\n"
        "    if status != -signal.SIGKILL:\n        break\n"
    )
    arguments = [sys.executable, "-c", code, str(pool_dir), str(tmp_path / "killed")]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=600)
    statuses = done.stdout.split()
    assert statuses[-1] == "0", done.stderr
    assert statuses.count(str(-signal.SIGKILL)) >= 3
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")


def test_a_finished_sample_is_left_alone_and_another_is_refused(pool_dir, tmp_path, capsys):
    command = ["pool", "sample", str(pool_dir), "--out", str(tmp_path / "out"), "--size"]
    assert main([*command, "7"]) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.name != ".lock"}
    assert main([*command, "7"]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    capsys.readouterr()
    assert main([*command, "8"]) == 2
    assert "size is 7 there and 8 now" in capsys.readouterr().err
    (tmp_path / "stuff").mkdir()
    (tmp_path / "stuff" / "letter.txt").write_text("dear")
    assert main([*command, "7", "--out", str(tmp_path / "stuff")]) == 2
    assert "is not empty (found letter.txt)" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "stuff").iterdir()] == ["letter.txt"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["pool", "--size", "41"], "--size 41 is not from 1 to 40, the rows of"),
        (["pool", "--size", "0"], "--size 0 is not from 1 to 40"),
        (["pool", "--size", "4", "--seed", "-1"], "--seed -1 is not a whole number"),
        (["nowhere", "--size", "4"], "there is no pool at"),
        (["pool", "--size", "4", "--out", "s3://bucket/out"], "is not a local folder"),
        (["pool"], "the following arguments are required: --size"),
    ],
)
def test_what_cannot_be_sampled_is_met_by_one_sentence(pool_dir, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(pool_dir.parent)
    assert main(["pool", "sample", "--out", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_sub_pool_of_the_embedded_pool_is_filtered_and_trained_on(pico_pool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["pool", "sample", str(pico_pool), "--size", "1000", "--out", "pool"]) == 0
    common = ["scale=pico", "pool_dir=pool", "exp_dir=exp"]
    assert main(["filter", *common, "filters=planted_clean"]) == 0
    assert main(["train", *common]) == 0
    pool = json.loads(Path("exp/seed-0/checkpoint/checkpoint.json").read_text())["made_from"]["pool"]
    planted = pd.read_parquet("pool/planted.parquet")
    rows = pd.concat([pd.read_parquet(path) for path in Path("pool/metadata").glob("*.parquet")])
    assert sorted(planted["uid"]) == sorted(rows["uid"]) and pool["rows"] == len(rows) == 1000
    index = pd.concat([pd.read_parquet(path) for path in (pico_pool / "index").glob("*.parquet")])
    there = index[[text.hex() in set(rows["uid"]) for text in index["uid"]]]
    assert pool["present"] == len(there) < 1000
    expected = sum(int.from_bytes(value) for value in there["image_sha256"]) % 2**256
    assert pool["content_hash"] == f"{expected:064x}"
    assert pool["fingerprint"] == (
        f"{sum(int(hashlib.sha256(bytes.fromhex(text)).hexdigest(), 16) for text in rows['uid']) % 2**256:064x}"
    )
    chosen, _ = unique_uids(load_subset("exp/subset.npy").uids)
    assert set(format_uids(chosen)) <= set(rows["uid"])


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit):
        main(["pool", "sample", "--help"])
    assert "  winnow pool sample pools/small --size 100000" in capsys.readouterr().out
