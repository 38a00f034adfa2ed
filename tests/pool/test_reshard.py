"""Resharding: DataComp's layout, the same bytes, nothing lost without a word, and the same training as in place."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.cli.main import main
from benchmark.pool import reshard as reshard_module
from benchmark.pool.index import build_index
from benchmark.pool.pool import Pool
from benchmark.pool.reshard import count_samples, plan_shards, reshard
from benchmark.pool.reshard_tars import write_shard
from benchmark.pool.resharded import read_resharded, resharded_record
from benchmark.pool.samples import SampleReader
from benchmark.pool.subset import Subset, load_subset
from benchmark.pool.tars import member_header, write_tar
from benchmark.pool.uids import UID_DTYPE, count_of, parse_uids
from benchmark.runtime.errors import UserError
from benchmark.runtime.failures import EXIT_USER
from tests.conftest import THOUSANDS, jpeg, members, uid, user_error, write_pool

ROOT = Path(__file__).resolve().parents[2]


def subset_of(path, *numbers):
    Subset.of(parse_uids([uid(number) for number in numbers])).write(path)
    return path


def tar_members(path):
    with tarfile.open(path) as tar:
        return [(each.name, tar.extractfile(each).read()) for each in tar]


@pytest.fixture
def pool_dir(tmp_path):
    """Ten samples in two tars, a sample without caption and one without json among them; row 9's link is dead."""
    pool_dir = write_pool(tmp_path / "pool", {"uid": [uid(n) for n in range(10)]})
    first = [m for n in range(5) for m in members(f"a{n}", n, text=f"text {n}")]
    second = [m for n in range(5, 9) for m in members(f"b{n}", n, text=f"text {n}")]
    second = [m for m in second if m[0] not in ("b6.txt", "b7.json")]
    write_tar(pool_dir / "shards" / "00000000.tar", first)
    write_tar(pool_dir / "shards" / "00000001.tar", second)
    return pool_dir


def test_the_layout_is_datacomps(pool_dir, tmp_path):
    path = subset_of(tmp_path / "s.npy", 3, 1, 1, 5)
    record = reshard(Pool(pool_dir), path, tmp_path / "out", shard_size=3, workers=0)
    names = sorted(each.name for each in (tmp_path / "out").iterdir() if not each.name.startswith("."))
    assert names == [
        "00000000.tar",
        "00000000_stats.json",
        "00000001.tar",
        "00000001_stats.json",
        "costs.jsonl",
        "meta.json",
        "reshard.json",
        "sample_ids.npy",
    ]
    keys = [f"{uid(1)}-0", f"{uid(1)}-1", f"{uid(3)}-0", f"{uid(5)}-0"]
    found = [m for n in range(2) for m in tar_members(tmp_path / "out" / f"{n:08d}.tar")]
    assert [name for name, _ in found] == [f"{key}.{kind}" for key in keys for kind in ("jpg", "json", "txt")]
    assert [data for name, data in found if name.endswith("txt")] == [b"text 1", b"text 1", b"text 3", b"text 5"]
    assert {data for name, data in found if name.endswith("jpg")} == {jpeg()}
    stats = [json.loads((tmp_path / "out" / f"{n:08d}_stats.json").read_text()) for n in range(2)]
    assert stats == [{"successes": 3}, {"successes": 1}]
    assert (tmp_path / "out" / "sample_ids.npy").read_bytes() == path.read_bytes()
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert (meta["output_shard_count"], meta["output_shard_format"].format(1)) == (2, "00000001.tar")
    assert (record.result["samples"], record.result["absent"]) == (4, 0)


def test_the_tar_is_the_one_that_tarfile_would_write(pool_dir, tmp_path):
    reshard(Pool(pool_dir), subset_of(tmp_path / "s.npy", 0, 8), tmp_path / "out", shard_size=10, workers=0)
    expected = [(f"{uid(0)}-0.{name.split('.')[1]}", data) for name, data in members("x", 0, text="text 0")]
    expected += [(f"{uid(8)}-0.{name.split('.')[1]}", data) for name, data in members("x", 8, text="text 8")]
    write_tar(tmp_path / "expected.tar", sorted(expected))
    assert (tmp_path / "out" / "00000000.tar").read_bytes() == (tmp_path / "expected.tar").read_bytes()


@pytest.mark.parametrize("name", ["0" * 32 + "-0.jpg", "ü" * 40 + ".txt", "f" * 99 + "/" + "g" * 50])
@pytest.mark.parametrize("size", [0, 1, 511, 512, 70_000, 2**33 - 1])
def test_headers_are_tarfiles(name, size):
    info = tarfile.TarInfo(name)
    info.size = size
    assert member_header(name, size) == info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "surrogateescape")


def test_what_was_never_there_is_counted_and_needs_no_permission(pool_dir, tmp_path):
    """6 has no caption, 7 no json, 9 no image at all."""
    record = reshard(
        Pool(pool_dir), subset_of(tmp_path / "s.npy", 4, 6, 6, 7, 9), tmp_path / "out", shard_size=9, workers=0
    )
    assert record.result == {
        "samples": 1,
        "shards": 1,
        "requested": 5,
        "distinct": 4,
        "absent": 3,
        "unknown": 0,
        "repeated": 0,
        "damaged_tars": 0,
        "tar_sizes": [10240],
    }


def test_a_uid_that_the_pool_does_not_know_is_an_error_that_names_it(pool_dir, tmp_path, capsys):
    path = subset_of(tmp_path / "s.npy", 4, 77)
    command = ["reshard", f"pool_dir={pool_dir}", f"subset={path}", f"out_dir={tmp_path / 'out'}"]
    assert main(command) == EXIT_USER
    assert f"1 of 2 uids are not in {pool_dir}, such as {uid(77)}; is it a subset of" in capsys.readouterr().err
    assert main([*command, "max_missing=1"]) == EXIT_USER, "only for pools of shards alone"
    assert not list((tmp_path / "out").glob("*.tar"))


def test_a_pool_of_shards_alone_may_lack_as_many_as_is_said(pool_dir, tmp_path, capsys):
    (pool_dir / "metadata" / f"{uid(0)}.parquet").unlink()
    path = subset_of(tmp_path / "s.npy", 4, 77)
    command = ["reshard", f"pool_dir={pool_dir}", f"subset={path}", f"out_dir={tmp_path / 'out'}", "workers=0"]
    assert main(command) == EXIT_USER
    assert "allow for it with max_missing=1" in capsys.readouterr().err
    assert main([*command, "max_missing=1"]) == 0
    assert "1 of 2 uids are there; 1 have no sample" in capsys.readouterr().out


def test_a_raw_subset_and_an_unsorted_one_are_taken(pool_dir, tmp_path, capsys):
    uids = parse_uids([uid(n) for n in (8, 2, 5)])
    np.save(tmp_path / "unsorted.npy", uids)
    Subset.of(uids).uids.tofile(tmp_path / "raw")
    assert Subset.of(uids).uids.dtype == UID_DTYPE
    for name in ("unsorted.npy", "raw"):
        reshard(Pool(pool_dir), tmp_path / name, tmp_path / f"out {name}", shard_size=9, workers=0)
    assert "is not sorted" in capsys.readouterr().err
    one, other = (tmp_path / f"out {name}" for name in ("unsorted.npy", "raw"))
    assert (one / "00000000.tar").read_bytes() == (other / "00000000.tar").read_bytes()
    assert (one / "sample_ids.npy").read_bytes() == (other / "sample_ids.npy").read_bytes()


def test_a_uid_at_several_places_is_written_from_all_of_them_and_counted(pool_dir, tmp_path):
    write_tar(pool_dir / "shards" / "00000002.tar", members("c", 3, text="again"))
    record = reshard(Pool(pool_dir), subset_of(tmp_path / "s.npy", 3, 3), tmp_path / "out", shard_size=9, workers=0)
    found = tar_members(tmp_path / "out" / "00000000.tar")
    assert [(name[-5:-4], data) for name, data in found if name.endswith("txt")] == [
        ("0", b"text 3"),
        ("1", b"text 3"),
        ("0", b"again"),
        ("1", b"again"),
    ]
    assert (record.result["samples"], record.result["repeated"]) == (4, 1)


def test_members_beside_image_caption_and_json_go_along_in_the_order_of_extensions(pool_dir, tmp_path):
    extra = [("k.txt", b"t"), ("k.NPY", b"n"), ("k.json", json.dumps({"uid": uid(20)}).encode()), ("k.PNG", b"p")]
    write_tar(pool_dir / "shards" / "00000003.tar", [*extra, ("k.jpg", b"j")])
    write_pool(tmp_path / "more", {"uid": [uid(20)]})
    (tmp_path / "more" / "metadata" / f"{uid(0)}.parquet").rename(pool_dir / "metadata" / "more.parquet")
    reshard(Pool(pool_dir), subset_of(tmp_path / "s.npy", 20), tmp_path / "out", shard_size=9, workers=0)
    found = tar_members(tmp_path / "out" / "00000000.tar")
    assert [(name.split(".")[1], data) for name, data in found] == [
        ("jpg", b"j"),
        ("json", extra[2][1]),
        ("npy", b"n"),
        ("png", b"p"),
        ("txt", b"t"),
    ]


def test_a_damaged_tar_is_an_error_and_with_strict_false_a_counted_loss(pool_dir, tmp_path, capsys):
    path = pool_dir / "shards" / "00000000.tar"
    with tarfile.open(path) as tar:
        header = tar.getmembers()[6].offset  # a2.jpg
    data = bytearray(path.read_bytes())
    data[header + 3] ^= 1
    path.write_bytes(data)
    subset_path = subset_of(tmp_path / "s.npy", 1, 2, 3)
    command = ["reshard", f"pool_dir={pool_dir}", f"subset={subset_path}", f"out_dir={tmp_path / 'out'}", "workers=0"]
    assert main(command) == EXIT_USER
    assert "1 of 2 tars are damaged" in capsys.readouterr().err
    assert main([*command, "strict=false"]) == 0
    captured = capsys.readouterr()
    assert "going on with what can be read" in captured.err and "2 of 3 uids are there" in captured.out
    record = json.loads((tmp_path / "out" / "reshard.json").read_text())
    assert (record["result"]["samples"], record["result"]["damaged_tars"]) == (2, 1)


def test_a_tar_that_changes_after_it_was_indexed_is_an_error(pool_dir, tmp_path):
    """By one of the same size too, whose samples stand elsewhere: under the old uids they would look right."""
    pool = Pool(pool_dir)
    index = pool.load_index()
    path = pool_dir / "shards" / "00000001.tar"
    write_tar(path, [m for n in (8, 5, 6, 7) for m in members(f"b{n}", n, text=f"text {n}") if m[0] != "b6.txt"][:-1])
    with user_error("file-changed", match=r"00000001\.tar"):
        reshard(pool, subset_of(tmp_path / "s.npy", 8), tmp_path / "out", shard_size=9, workers=0)
    assert not (tmp_path / "out" / "00000000.tar").exists()
    with user_error("file-changed", match=r"00000001\.tar"):
        SampleReader(index, np.arange(len(index))).read(len(index) - 1)


def test_other_settings_and_other_tars_are_refused(pool_dir, tmp_path):
    path, out_dir = subset_of(tmp_path / "s.npy", 1, 2, 3), tmp_path / "out"
    reshard(Pool(pool_dir), path, out_dir, shard_size=2, workers=0)
    with user_error("record-differs", match="shard_size"):
        reshard(Pool(pool_dir), path, out_dir, shard_size=3, workers=0)
    for folder in (pool_dir, pool_dir / "shards", tmp_path):
        before = sorted(folder.rglob("*"))
        with user_error("folder-not-empty"):
            reshard(Pool(pool_dir), path, folder, shard_size=2, workers=0)
        assert sorted(folder.rglob("*")) == before


def test_lost_tars_are_made_again_and_a_plan_that_a_kill_left_is_removed(pool_dir, tmp_path):
    path, out_dir = subset_of(tmp_path / "s.npy", 1, 2, 3), tmp_path / "out"
    reshard(Pool(pool_dir), path, out_dir, shard_size=2, workers=0)
    before = {each.name: each.read_bytes() for each in out_dir.iterdir() if each.name != "costs.jsonl"}
    (out_dir / "00000001.tar").unlink()
    reshard(Pool(pool_dir), path, out_dir, shard_size=2, workers=0)
    (out_dir / "00000000.tar").write_bytes(b"cut")
    (out_dir / "00000001_stats.json").unlink()
    reshard(Pool(pool_dir), path, out_dir, shard_size=2, workers=0)
    (out_dir / "resharding.json").write_text("{}")
    reshard(Pool(pool_dir), path, out_dir, shard_size=2, workers=0)
    assert {each.name: each.read_bytes() for each in out_dir.iterdir() if each.name != "costs.jsonl"} == before


def test_tars_finished_in_another_order_of_the_pool_are_not_taken_over(pool_dir, tmp_path, monkeypatch):
    path, out_dir = subset_of(tmp_path / "s.npy", *range(9)), tmp_path / "out"

    def killed(plan, **more):
        if plan.number:
            raise KeyboardInterrupt
        return write_shard(plan, **more)

    monkeypatch.setattr(reshard_module, "write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        reshard(Pool(pool_dir), path, out_dir, shard_size=4, workers=0)
    monkeypatch.undo()
    (pool_dir / "shards" / "00000000.tar").rename(pool_dir / "shards" / "00000005.tar")
    with user_error("record-differs", match="order of tars"):
        reshard(Pool(pool_dir), path, out_dir, shard_size=4, workers=0)


def test_a_subset_of_which_nothing_is_there_is_an_error(pool_dir, tmp_path):
    with user_error("subset-foreign", match="2 uids"):
        reshard(Pool(pool_dir), subset_of(tmp_path / "s.npy", 7, 9), tmp_path / "out", shard_size=2, workers=0)


@pytest.mark.parametrize("wrong", [["shard_size=0"], ["max_missing=-1"], ["subset=nowhere.npy"], ["exp_dir=e"], []])
def test_what_a_person_does_wrong_is_one_sentence(pool_dir, tmp_path, capsys, wrong):
    given = [] if any("subset" in each for each in wrong) else [f"subset={subset_of(tmp_path / 's.npy', 1)}"]
    out = [f"out_dir={tmp_path / 'out'}"] if wrong else []
    assert main(["reshard", f"pool_dir={pool_dir}", *given, *out, *wrong]) == EXIT_USER
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_shards_cover_the_samples_whatever_their_size(tmp_path):
    class FakeTar(str):
        pass

    rng = np.random.default_rng(0)
    for _ in range(50):
        counts = rng.integers(0, 5, rng.integers(1, 9))
        tars = [FakeTar(n) for n in range(len(counts))]
        of_sample = np.repeat(np.arange(len(counts)), counts)
        size = int(rng.integers(1, 7))
        plans = plan_shards(tars, counts, size)
        assert [plan.start for plan in plans] == list(range(0, int(counts.sum()), size))
        for plan in plans:
            assert plan.first == int(counts[: int(plan.tars[0])].sum())
            needed = {str(n) for n in of_sample[plan.start : plan.stop]}
            assert needed <= set(plan.tars) and {plan.tars[0], plan.tars[-1]} <= needed


@pytest.fixture(scope="module")
def chosen(pico_pool, tmp_path_factory):
    """An experiment on the pico pool whose subset has copies, and a second one for its shards."""
    folder = tmp_path_factory.mktemp("chosen")
    uids = np.concatenate(list(Pool(pico_pool).uid_parts()))
    rng = np.random.default_rng(0)
    Subset.of(np.repeat(uids, rng.choice(3, len(uids), p=[0.5, 0.4, 0.1]))).write(folder / "s.npy")
    for name in ("in_place", "cut_out"):
        command = ["filter", "scale=pico", f"pool_dir={pico_pool}", f"subset={folder / 's.npy'}"]
        assert main([*command, f"exp_dir={folder / name}"]) == 0
    return folder


def test_training_on_shards_gives_the_bytes_of_training_in_place_and_needs_no_pool(chosen, pico_pool, capsys):
    at = ["scale=pico", f"pool_dir={pico_pool}"]
    assert main(["reshard", *at, f"exp_dir={chosen / 'cut_out'}", "shard_size=300"]) == 0
    assert main(["train", *at, f"exp_dir={chosen / 'in_place'}"]) == 0
    capsys.readouterr()
    assert main(["train", "scale=pico", "pool_dir=nowhere", f"exp_dir={chosen / 'cut_out'}"]) == 0
    assert f"train: reading {chosen / 'cut_out' / 'shards'}" in capsys.readouterr().out
    for name in ("model.safetensors", "checkpoint.json"):
        one, other = (chosen / folder / "seed-0" / "checkpoint" / name for folder in ("in_place", "cut_out"))
        assert one.read_bytes() == other.read_bytes(), name


def test_the_samples_are_those_of_a_loop_over_the_tars(chosen, pico_pool, tmp_path):
    """Brute force: webdataset reads both the pool and the shards."""
    subset = load_subset(chosen / "s.npy")
    wanted = Counter((int(high), int(low)) for high, low in subset.uids)
    expected = []
    paths = sorted((pico_pool / "shards").glob("*.tar"))
    for sample in webdataset.WebDataset([str(p) for p in paths], shardshuffle=False):
        spelt = json.loads(sample["json"])["uid"]
        copies = wanted[(int(spelt[:16], 16), int(spelt[16:], 16))]
        expected += [(f"{spelt}-{n}", sample["jpg"], sample["txt"], sample["json"]) for n in range(copies)]
    reshard(Pool(pico_pool), chosen / "s.npy", tmp_path / "out", shard_size=250, workers=2)
    paths = sorted((tmp_path / "out").glob("*.tar"))
    found = [
        (each["__key__"], each["jpg"], each["txt"], each["json"])
        for each in webdataset.WebDataset([str(p) for p in paths], shardshuffle=False)
    ]
    assert len(paths) == -(-len(expected) // 250) and found == expected


def test_open_clips_loader_reads_the_shards(chosen, pico_pool, tmp_path):
    from open_clip_train.data import tarfile_to_samples_nothrow

    reshard(Pool(pico_pool), chosen / "s.npy", tmp_path / "out", shard_size=5000, workers=0)
    samples = list(tarfile_to_samples_nothrow([{"url": str(tmp_path / "out" / "00000000.tar")}]))
    stats = json.loads((tmp_path / "out" / "00000000_stats.json").read_text())
    assert len(samples) == stats["successes"] and {"jpg", "txt", "json"} <= set(samples[0])


def test_killed_anywhere_it_goes_on_to_the_same_bytes(chosen, pico_pool, tmp_path):
    arguments = ["reshard", f"pool_dir={pico_pool}", f"subset={chosen / 's.npy'}", "shard_size=40", "workers=0"]
    command = [sys.executable, "-m", "benchmark", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert main([*arguments, f"out_dir={tmp_path / 'whole'}"]) == 0
    killed = tmp_path / "killed"
    process = subprocess.Popen([*command, f"out_dir={killed}"], env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while len(list(killed.glob("*_stats.json"))) < 3 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    process.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in killed.glob("*_stats.json")}
    assert kept and not (killed / "reshard.json").exists(), "killed too late to show anything"
    assert resharded_is_refused(killed)
    assert main([*arguments, f"out_dir={killed}"]) == 0
    assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in killed.glob("*_stats.json")}.items()
    for path in (tmp_path / "whole").iterdir():
        if path.name not in (".lock", "costs.jsonl", "meta.json"):
            assert (killed / path.name).read_bytes() == path.read_bytes(), path.name


def test_workers_end_with_the_process_that_they_work_for(chosen, pico_pool, tmp_path):
    arguments = ["reshard", f"pool_dir={pico_pool}", f"subset={chosen / 's.npy'}", "shard_size=20", "workers=2"]
    command = [sys.executable, "-m", "benchmark", *arguments, f"out_dir={tmp_path / 'out'}"]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while not list((tmp_path / "out").glob("*_stats.json")) and time.monotonic() < deadline:
        time.sleep(0.002)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    assert len(children) >= 2
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def resharded_is_refused(folder):
    """Tell whether training refuses shards that are not finished."""
    (folder.parent / "exp").mkdir()
    (folder.parent / "exp" / "shards").symlink_to(folder)
    with user_error("shards-unfinished"):
        resharded_record(folder.parent / "exp")
    return True


def test_shards_that_are_not_the_records_are_refused(chosen, pico_pool, tmp_path):
    exp_dir = tmp_path / "exp"
    reshard(Pool(pico_pool), chosen / "s.npy", exp_dir / "shards", shard_size=300, workers=0)
    shutil.copy(chosen / "s.npy", exp_dir / "subset.npy")
    record = resharded_record(exp_dir)
    assert len(read_resharded(exp_dir, record).samples) == record.result["samples"]
    shards = [exp_dir / "shards" / f"{n:08d}.tar" for n in range(3)]
    data = shards[1].read_bytes()
    shards[1].write_bytes(data[: len(data) // 2])
    with user_error("tar-damaged", match=r"00000001\.tar.*at byte"):
        read_resharded(exp_dir, record)
    uids = np.concatenate(list(Pool(pico_pool).uid_parts()))
    foreign = Subset.of(uids[count_of(uids, load_subset(chosen / "s.npy").uids) == 0][:330])
    foreign.write(tmp_path / "f.npy")
    reshard(Pool(pico_pool), tmp_path / "f.npy", tmp_path / "f", shard_size=300, workers=0)
    shards[1].write_bytes((tmp_path / "f" / "00000000.tar").read_bytes())
    with user_error("record-differs", match=r"300 .*subset\.npy"):
        read_resharded(exp_dir, record)
    shards[1].unlink()
    with user_error("record-differs", match=r"reshard\.json"):
        read_resharded(exp_dir, record)


def test_a_pool_whose_uids_are_made_up_is_cut_out_and_read_back(tmp_path):
    """Its JSON names no uid, so the shards' keys are what tells."""
    samples = [m for n in range(6) for m in ((f"k{n}.jpg", jpeg((n, 0, 0))), (f"k{n}.txt", f"text {n}".encode()))]
    write_tar(tmp_path / "tars" / "0.tar", samples)
    assert main(["pool", "import", "--shards", str(tmp_path / "tars"), "--out", str(tmp_path / "pool")]) == 0
    pool, exp_dir = Pool(tmp_path / "pool"), tmp_path / "exp"
    Subset.of(np.repeat(next(pool.uid_parts())[:3], 2)).write(tmp_path / "exp" / "subset.npy")
    record = reshard(pool, exp_dir / "subset.npy", exp_dir / "shards", shard_size=4, workers=0)
    resharded = read_resharded(exp_dir, record)
    reader = SampleReader(resharded.index, resharded.samples)
    assert [reader.read(n)[1] for n in range(6)] == [b"text 0"] * 2 + [b"text 1"] * 2 + [b"text 2"] * 2
    assert resharded.samples.tolist() == [0, 0, 2, 2, 4, 4]


def test_of_two_pictures_the_same_one_is_seen_in_place_and_on_shards(tmp_path):
    sample = [("k.png", b"png"), ("k.jpg", b"jpg!"), ("k.txt", b"t"), ("k.json", json.dumps({"uid": uid(1)}).encode())]
    write_tar(tmp_path / "pool" / "shards" / "0.tar", sample)
    pool = Pool(tmp_path / "pool")
    path = subset_of(tmp_path / "exp" / "subset.npy", 1)
    record = reshard(pool, path, tmp_path / "exp" / "shards", shard_size=4, workers=0)
    resharded = read_resharded(tmp_path / "exp", record)
    assert SampleReader(pool.load_index(), np.arange(1)).read(0) == (b"jpg!", b"t")
    assert SampleReader(resharded.index, resharded.samples).read(0) == (b"jpg!", b"t")


def test_the_shards_of_another_subset_are_not_trained_on(chosen, pico_pool, tmp_path, capsys):
    exp_dir = tmp_path / "exp"
    assert main(["filter", "scale=pico", f"pool_dir={pico_pool}", f"exp_dir={exp_dir}", "filters=no_filter"]) == 0
    reshard(Pool(pico_pool), chosen / "s.npy", exp_dir / "shards", shard_size=1000, workers=0)
    assert main(["train", "scale=pico", f"pool_dir={pico_pool}", f"exp_dir={exp_dir}"]) == EXIT_USER
    assert "was cut out by another subset" in capsys.readouterr().err


def test_counts_are_those_of_a_brute_force_loop(chosen, pico_pool):
    pool, subset = Pool(pico_pool), load_subset(chosen / "s.npy")
    counts, coverage = count_samples(pool, subset, chosen / "s.npy", 0)
    wanted, there = Counter(subset.uids.tolist()), Counter(pool.load_index().uids.tolist())
    assert int(counts.sum()) == sum(copies * there[each] for each, copies in wanted.items())
    assert coverage.absent == sum(each not in there for each in wanted)
    assert build_index(pico_pool).num_present == sum(there.values())


# Resharding once more, by tarfile alone.

CONTENT = st.binary(max_size=3) | st.integers(0, 1300).map(lambda size: bytes(n % 251 for n in range(size)))


@st.composite
def samples(draw, number: int):
    """Return a sample's members in any order; its image, caption or JSON may not be there."""
    kinds = draw(st.lists(st.sampled_from(["jpg", "png", "JPEG", "webp"]), max_size=2, unique=True))
    kinds += draw(st.lists(st.sampled_from(["npy", "cls", "a_b"]), max_size=2, unique=True))
    kinds += ["txt"] * draw(st.sampled_from([1, 1, 1, 0])) + ["json"] * draw(st.sampled_from([1, 1, 1, 0]))
    if draw(st.sampled_from([True, True, False])) and not {"jpg", "png", "JPEG", "webp"} & set(kinds):
        kinds.append("jpg")
    folder = draw(st.sampled_from(["", "some/folder/"]))
    found = []
    for kind in draw(st.permutations(kinds)):
        data = json.dumps({"uid": uid(draw(st.integers(0, 9)))}).encode() if kind == "json" else draw(CONTENT)
        found.append((f"{folder}k{number}.{kind}", data))
    return found


@st.composite
def small_pools(draw):
    """Return tars, each with its damage; the copies of each uid that are asked for; a shard's and the buffer's size."""
    tars = []
    for _ in range(draw(st.integers(1, 3))):
        tar = [draw(samples(number)) for number in range(draw(st.integers(0, 5)))]
        damage = draw(st.none() | st.floats(0, 0.999))
        tars.append(([member for sample in tar for member in sample], damage, draw(st.booleans())))
    asked = draw(st.dictionaries(st.integers(0, 10), st.integers(1, 3), min_size=1, max_size=10))
    if draw(st.sampled_from([False] * 5 + [True])):
        asked[11] = 1
    return tars, asked, draw(st.integers(1, 5)), draw(st.sampled_from([1, 700, 4000, 1 << 20]))


def write_damaged(path: Path, found: list, damage: float | None, is_cut: bool) -> list:
    """Write a tar that is cut off somewhere, or of which a header is spoilt; return the members that are left of it."""
    write_tar(path, found)
    if damage is None or not found:
        return found
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        places = [(each.offset, each.offset_data, each.offset_data + each.size) for each in tar]
    if is_cut:
        size = int(damage * places[-1][2])
        path.write_bytes(data[:size])
        return [member for member, (_, _, end) in zip(found, places, strict=True) if end <= size]
    number = int(damage * len(found))
    data[places[number][0] + 3] ^= 1
    path.write_bytes(data)
    return found[:number] + found[number + 1 :]


def resharded_by_tarfile(tars: list[list], asked: dict[int, int], shard_size: int) -> tuple[list[bytes], list[str]]:
    """Return the bytes of the shards, and the uid of each of their samples."""
    written, uids = [], []
    for tar in tars:
        of_sample: dict[str, dict[str, bytes]] = {}
        for name, data in tar:
            key, extension = name.split(".")
            of_sample.setdefault(key, {})[extension.lower()] = data
        for sample in of_sample.values():
            if "json" not in sample or "txt" not in sample or not {"jpg", "png", "jpeg", "webp"} & set(sample):
                continue
            spelt = json.loads(sample["json"])["uid"]
            for copy in range(asked.get(int(spelt, 16), 0)):
                written.append([(f"{spelt}-{copy}.{extension}", sample[extension]) for extension in sorted(sample)])
                uids.append(spelt)
    shards = []
    for start in range(0, len(written), shard_size):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for name, data in (member for sample in written[start : start + shard_size] for member in sample):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        shards.append(buffer.getvalue())
    return shards, uids


def agree_with_tarfile(small_pool) -> None:
    tars, asked, shard_size, write_bytes = small_pool
    with (
        tempfile.TemporaryDirectory() as name,
        mock.patch("benchmark.pool.index.MANY_TARS", 100),  # a process for each takes longer than all the rest
        mock.patch("benchmark.pool.reshard_tars.WRITE_BYTES", write_bytes),
    ):
        # The metadata knows 0 to 10; 10 has no link that works. 11 is not known at all.
        pool_dir, exp_dir = write_pool(Path(name, "pool"), {"uid": [uid(n) for n in range(11)]}), Path(name, "exp")
        left = [write_damaged(pool_dir / "shards" / f"{n:03d}.tar", *tar) for n, tar in enumerate(tars)]
        subset_path = subset_of(exp_dir / "subset.npy", *(n for n, copies in asked.items() for _ in range(copies)))
        expected, uids = resharded_by_tarfile(left, asked, shard_size)
        pool = Pool(pool_dir, strict=False)
        if max(asked) > 10 or not expected:
            with pytest.raises(UserError):
                reshard(pool, subset_path, exp_dir / "shards", shard_size=shard_size, workers=0)
            assert not list(exp_dir.rglob("*.tar"))
            return
        record = reshard(pool, subset_path, exp_dir / "shards", shard_size=shard_size, workers=0)
        assert [path.read_bytes() for path in sorted((exp_dir / "shards").glob("*.tar"))] == expected
        assert record.result["samples"] == len(uids)
        assert record.result["absent"] == len(asked) - len(set(uids))
        # Training reads the same from the shards as in place.
        resharded, chosen = read_resharded(exp_dir, record), load_subset(subset_path)
        in_place = SampleReader(pool.load_index(), np.arange(len(pool.load_index())))
        cut_out = SampleReader(resharded.index, resharded.samples)
        copies = count_of(pool.load_index().uids, chosen.uids)
        of_pool = [in_place.read(row) for row in np.repeat(np.arange(len(copies)), copies).tolist()]
        assert [cut_out.read(number) for number in range(len(resharded.samples))] == of_pool


@settings(max_examples=60)
@given(small_pools())
def test_the_shards_are_those_that_tarfile_would_make(small_pool):
    agree_with_tarfile(small_pool)


@pytest.mark.thousands
@THOUSANDS
@given(small_pools())
def test_thousands_of_pools_give_the_shards_that_tarfile_would_make(small_pool):
    agree_with_tarfile(small_pool)
