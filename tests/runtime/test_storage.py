"""Pools, experiments and subsets at URLs, against a real S3 server on localhost, and ranges of files."""

import json
import logging
import multiprocessing
import os
import pickle
import random
import shutil
import urllib.request
from pathlib import Path

import fsspec
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from benchmark.cli.main import main
from benchmark.cli.values import as_path
from benchmark.pool import index
from benchmark.pool.pool import Pool
from benchmark.runtime import mirror, storage
from benchmark.runtime.files import rename, write_bytes
from benchmark.runtime.mirror import local_copy, mirrored
from benchmark.runtime.paths import as_location, index_dir_of, signals_dir_of
from benchmark.runtime.ranges import RangeReader, open_sequential, trim_blocks
from benchmark.runtime.storage import has_file, list_files, state_of
from tests.conftest import uid, user_error, write_pool
from tests.training.test_kill import KILLED, Nursery, same, told, tree


class Server:
    """The server, with a note of every request that reached it: method, path, bytes sent back."""

    def __init__(self):
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.requests = []
        self.threads = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self.threads.start()
        self.app, self.threads._server.app = self.threads._server.app, self.answer
        self.url = "http://127.0.0.1:{1}".format(*self.threads.get_host_and_port())

    def answer(self, environ, start_response):
        def noting(status, headers, *rest):
            size = int(dict(headers).get("Content-Length", 0))
            self.requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"], size))
            return start_response(status, headers, *rest)

        return self.app(environ, noting)

    def since(self, start, method):
        """Return the paths of the requests of a method, from the start-th request on."""
        return [path for each, path, _ in self.requests[start:] if each == method]


@pytest.fixture(scope="module")
def server():
    server = Server()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        s3_files().mkdir("bucket")
        yield server
    server.threads.stop()


@pytest.fixture
def s3(server, request):
    """A location of its own for a test."""
    return as_location(f"s3://bucket/{request.node.name}")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WINNOW_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def s3_files():
    return fsspec.filesystem("s3", use_listings_cache=False)


def put(location, data):
    s3_files().pipe_file(str(location), data)


def upload(folder, location):
    for path in folder.rglob("*"):
        if path.is_file():
            put(location / path.relative_to(folder).as_posix(), path.read_bytes())


def remote_tree(location):
    filesystem = s3_files()
    return {
        name.partition(location.name + "/")[2]: filesystem.cat_file(name) for name in filesystem.find(str(location))
    }


def failing(capsys, *arguments):
    assert main(list(arguments)) == 2
    told = capsys.readouterr().err
    assert told.startswith("winnow: ") and told.count("\n") == 1, told
    return told


# --- Locations and states -------------------------------------------------------------------------------------------


def test_a_location_is_a_path_or_what_its_protocol_says():
    assert as_location("pools/nano") == Path("pools/nano")
    assert as_location("~/pools") == Path.home() / "pools"
    assert as_location("file:///data/pool") == Path("/data/pool")
    remote = as_location("s3://bucket/pool/") / "metadata" / "0.parquet"
    assert (str(remote), remote.name, remote.stem) == ("s3://bucket/pool/metadata/0.parquet", "0.parquet", "0")
    assert str(remote.with_suffix(".npz")) == "s3://bucket/pool/metadata/0.npz"
    assert as_path(3, "exp_dir") == Path("3")


@pytest.mark.parametrize(
    ("text", "code", "value"),
    [
        ("sss://bucket/pool", "unknown-storage", "sss://"),
        ("gs://bucket/pool", "package-missing", "pip install gcsfs"),
    ],
)
def test_an_unknown_protocol_or_a_missing_package_is_told(text, code, value):
    with user_error(code, match=value):
        as_location(text)


def test_a_state_changes_with_the_contents_and_a_folder_is_listed_in_one_request(server, s3, tmp_path):
    for number in range(5):
        put(s3 / f"{number}.tar", bytes(number))
    put(s3 / "inner" / "6.tar", b"")
    before = len(server.requests)
    files = list_files(s3)
    assert len(server.requests) == before + 1
    assert [(file.path.name, file.size) for file in files] == [(f"{number}.tar", number) for number in range(5)]
    assert [state_of(file.path) for file in files] == [file.state for file in files]
    assert [str(file.path.name) for file in list_files(s3, recursive=True)][-1] == "6.tar"
    assert has_file(s3 / "4.tar") and not has_file(s3 / "inner") and not has_file(s3 / "5.tar")
    put(s3 / "4.tar", b"1234")
    assert state_of(s3 / "4.tar") != files[4].state
    (tmp_path / "a").write_bytes(b"12")
    assert [file.state for file in list_files(tmp_path)] == [f"2/{(tmp_path / 'a').stat().st_mtime_ns}"]


# --- Ranges ---------------------------------------------------------------------------------------------------------

DATA = np.random.default_rng(0).bytes(1000)
SHAPES = "wds_pico-shapes_test"  # the folder of an evaluation set
RANGES = [(0, 10), (95, 10), (100, 100), (250, 400), (999, 1), (0, 1000), (500, 0)]


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_ranges_are_what_slices_are(s3, tmp_path, kind):
    path = s3 / "a.tar" if kind == "remote" else tmp_path / "a.tar"
    put(path, DATA) if kind == "remote" else path.write_bytes(DATA)
    reader = pickle.loads(pickle.dumps(RangeReader(block_bytes=100)))
    with open_sequential(path, block_bytes=100) as sequential:
        for offset, length in RANGES:
            assert reader.read(path, offset, length) == DATA[offset : offset + length]
            assert sequential.read(offset, length) == DATA[offset : offset + length]
        for each in (lambda: reader.read(path, 995, 6), lambda: sequential.read(995, 6)):
            with user_error("file-changed", match=r"a\.tar.*6 bytes at byte 995"):
                each()


def test_a_block_is_fetched_once_for_all_readers_and_a_damaged_one_again(server, s3, cache):
    put(s3 / "a.tar", DATA)
    before = len(server.requests)
    first, second = RangeReader(block_bytes=100), RangeReader(block_bytes=100)
    for reader in (first, second):
        assert reader.read(s3 / "a.tar", 150, 300) == DATA[150:450]
    assert (first.num_requests, first.num_bytes, second.num_requests) == (4, 400, 0)
    assert len(server.since(before, "GET")) == 4
    block = next((cache / "blocks").glob("*/00000002"))
    block.write_bytes(b"half")
    third = RangeReader(block_bytes=100)
    assert third.read(s3 / "a.tar", 150, 300) == DATA[150:450]
    assert third.num_requests == 1
    put(s3 / "a.tar", DATA[::-1])
    assert RangeReader(block_bytes=100).read(s3 / "a.tar", 150, 300) == DATA[::-1][150:450]


def read_all(path, results):
    reader = RangeReader(block_bytes=50)
    results.put([reader.read(path, start, 50) for start in range(0, 1000, 50)])


def test_processes_share_the_blocks_and_ask_for_each_once(server, s3):
    put(s3 / "a.tar", DATA)
    own = RangeReader(block_bytes=50)
    assert own.read(s3 / "a.tar", 0, 10) == DATA[:10]  # so that a fork inherits an open filesystem
    before = len(server.requests)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=read_all, args=(s3 / "a.tar", results)) for _ in range(2)]
    for process in processes:
        process.start()
    for _ in processes:
        assert b"".join(results.get(timeout=600)) == DATA
    for process in processes:
        process.join()
    assert len(server.since(before, "GET")) == 19


def test_the_blocks_used_last_are_kept_within_bounds(s3, cache, monkeypatch):
    monkeypatch.setenv("WINNOW_BLOCK_CACHE_BYTES", "500")
    put(s3 / "a.tar", DATA)
    reader = RangeReader(block_bytes=100)
    for number in range(10):
        assert reader.read(s3 / "a.tar", 100 * number, 100) == DATA[100 * number :][:100]
        assert sum(path.stat().st_size for path in (cache / "blocks").glob("*/0000*")) <= 500
    assert sorted(path.name for path in (cache / "blocks").glob("*/0000*")) == [f"{n:08d}" for n in (6, 7, 8, 9)]
    reader.close()
    assert reader.read(s3 / "a.tar", 600, 100) == DATA[600:700]
    trim_blocks(100)
    assert [path.name for path in (cache / "blocks").glob("*/0000*")] == ["00000006"]


def test_a_pass_from_front_to_back_takes_few_requests_and_leaves_nothing_on_disk(server, s3, cache):
    put(s3 / "a.tar", DATA)
    before = len(server.requests)
    with open_sequential(s3 / "a.tar", block_bytes=400) as reader:
        assert (reader.size, reader.state) == (1000, state_of(s3 / "a.tar"))
        assert b"".join(reader.read(start, 10) for start in range(0, 1000, 10)) == DATA
        assert (reader.num_requests, reader.num_bytes) == (3, 1000)
    assert len(server.since(before, "GET")) == 3
    assert not (cache / "blocks").exists()


# --- Pools ----------------------------------------------------------------------------------------------------------


def test_a_remote_pool_gives_the_same_subset_as_a_local_one(server, s3, pico_pool, tmp_path):
    upload(pico_pool / "metadata", s3 / "metadata")
    upload(pico_pool / "assets", s3 / "assets")
    options = ["scale=pico", "filters=[basic,clip_score,image_based]", "filters.clip_score.fraction=0.6"]
    for pool_dir, exp_dir, workers in ((pico_pool, "local", 0), (s3, "remote", 1)):
        exp_dir = tmp_path / exp_dir
        assert main(["filter", *options, f"pool_dir={pool_dir}", f"exp_dir={exp_dir}", f"workers={workers}"]) == 0
    for name in ("subset.npy", "subset.json"):
        assert (tmp_path / "remote" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
    before = len(server.requests)
    assert Pool(s3).compute_fingerprint() == Pool(pico_pool).compute_fingerprint()
    assert server.since(before, "PUT") == []
    opened = len(server.requests)
    assert Pool(str(s3)).compute_fingerprint() == Pool(pico_pool).compute_fingerprint()
    shards = len(Pool(pico_pool).metadata_paths)
    assert len(server.requests) - opened == 1 + 2 * shards  # a listing, and each footer


def test_a_remote_pool_is_read_in_ranges(server, s3, tmp_path):
    rows = 20_000
    noise = np.random.default_rng(0)
    columns = {"uid": [uid(number) for number in range(rows)], "text": [noise.bytes(60).hex() for _ in range(rows)]}
    features = {"large": noise.random((rows, 60)), "small": np.arange(rows)}  # 10 MB and 160 kB
    write_pool(tmp_path / "pool", columns, features=features)
    upload(tmp_path / "pool", s3)
    pool = Pool(s3)

    def bytes_of(read):
        before = len(server.requests)
        read()
        return sum(size for method, _, size in server.requests[before:] if method == "GET")

    uids, small = [], []
    assert bytes_of(lambda: uids.append(pool.read_uids(pool.metadata_paths[0]))) < 1_000_000  # of 3.5 MB
    assert bytes_of(lambda: small.append(pool.read_features(pool.metadata_paths[0], ["small"])["small"])) < 1_000_000
    assert len(uids[0]) == rows and (small[0] == np.arange(rows)).all()


def test_a_read_only_pool_is_left_as_it_is(pico_pool, tmp_path, monkeypatch, cache):
    pool_dir = tmp_path / "pool"
    shutil.copytree(pico_pool, pool_dir)
    assert (index_dir_of(pool_dir), signals_dir_of(pool_dir)) == (pool_dir / "index", pool_dir / "signals")
    access = os.access
    # As root may write anywhere, what the mode says is played here.
    monkeypatch.setattr(os, "access", lambda path, mode: pool_dir not in (Path(path), *Path(path).parents) and access)
    assert index_dir_of(pool_dir).is_relative_to(cache / "pools") and Pool(pool_dir).index_dir.name == "index"
    before = {path: path.stat().st_mtime_ns for path in pool_dir.rglob("*")}
    assert main(["filter", "scale=pico", f"pool_dir={pool_dir}", f"exp_dir={tmp_path / 'exp'}"]) == 0
    assert {path: path.stat().st_mtime_ns for path in pool_dir.rglob("*")} == before
    monkeypatch.setattr(index, "index_tar", None)
    shutil.copytree(pico_pool, tmp_path / "other")  # with its times, so that the index in it fits
    monkeypatch.setattr(os, "access", lambda path, mode: tmp_path / "other" not in (Path(path), *Path(path).parents))
    assert Pool(tmp_path / "other").ensure_index().num_rows and not index_dir_of(tmp_path / "other").is_relative_to(
        tmp_path / "other"
    )


# --- Experiments ----------------------------------------------------------------------------------------------------


def test_what_is_finished_goes_up_at_once_and_in_order(server, s3):
    before = len(server.requests)
    with mirrored(s3) as folder:
        write_bytes(folder / "state", b"1")
        rename(folder / "state", folder / "before")
        (folder / "made_by_a_worker").write_bytes(b"2")
        (folder / "costs.jsonl").write_bytes(b"{}")
        (folder / "half.tmp").write_bytes(b"3")
        write_bytes(folder / "record.json", b"4")
        (folder / "record.json").unlink()
        assert set(remote_tree(s3)) == {"before", "made_by_a_worker", "record.json"}
        write_bytes(folder / "picture.png", b"5")
        assert set(remote_tree(s3)) == {"before", "made_by_a_worker", "picture.png"}
    assert remote_tree(s3) == {"before": b"1", "made_by_a_worker": b"2", "picture.png": b"5", "costs.jsonl": b"{}"}
    puts = [path.rpartition("/")[2] for path in server.since(before, "PUT")]
    assert puts[1:] == ["state", "before", "made_by_a_worker", "record.json", "picture.png", "costs.jsonl"]


@pytest.fixture
def memory(request):
    """A location of its own in this process's memory, which answers at once."""
    return as_location(f"memory://bucket/{request.node.name.replace('[', '-').rstrip(']')}")


def memory_tree(location):
    filesystem = fsspec.filesystem("memory")
    root = "/" + str(location).partition("://")[2].strip("/") + "/"
    return {name.removeprefix(root): filesystem.cat_file(name) for name in filesystem.find(root)}


def test_a_rename_looks_at_what_it_brought_and_not_at_every_file(memory, monkeypatch):
    """400 files were 81,400 looks and 400 manifests of up to 400 lines; what a file costs must not grow with them."""
    stats, manifests = [], []
    for name in ("stat", "lstat"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, _f=original, **kw: stats.append(1) or _f(*args, **kw))
    write = mirror.write_json
    monkeypatch.setattr(mirror, "write_json", lambda path, value: manifests.append(path) or write(path, value))
    counts = []
    with mirrored(memory) as folder:
        started = len(manifests)
        for number in range(400):
            before = len(stats)
            write_bytes(folder / f"shard-{number % 3}" / f"{number:04d}.tar", b"%d" % number)
            counts.append(len(stats) - before)
        assert max(counts[-20:]) <= max(counts[:20]) and sum(counts) < 20 * 400
        assert len(manifests) == started and len(memory_tree(memory)) == 400
    assert len(manifests) == started + 1


def test_after_a_kill_what_was_uploaded_is_known(server, s3, monkeypatch):
    """The journal says it, though the manifest was not written since the start; a line that a kill cut is no matter."""
    push = mirror._Mirror.push
    monkeypatch.setattr(mirror._Mirror, "push", lambda self: None)  # a kill leaves no time for it
    with pytest.raises(RuntimeError), mirrored(s3) as folder:
        for name in ("a", "b", "c"):
            write_bytes(folder / name, name.encode())
        raise RuntimeError
    monkeypatch.setattr(mirror._Mirror, "push", push)
    journal = folder.parent / "manifest.jsonl"
    lines = journal.read_text().splitlines()
    assert len(lines) == 3
    journal.write_text("\n".join(lines)[:-10])
    before = len(server.requests)
    with mirrored(s3) as folder:
        assert tree(folder) == {"a": b"a", "b": b"b", "c": b"c"}
        fetched = {path.rpartition("/")[2] for path in server.since(before, "GET")} - {"bucket"}
        assert fetched == {"c"} and not journal.exists()
        assert set(json.loads((folder.parent / "manifest.json").read_text())) == {"a", "b", "c"}


def all_files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("seed", range(30))
def test_whatever_is_done_in_the_folder_the_remote_follows(memory, seed):
    """Files are written, replaced, renamed and removed, by this process and by others; logs grow.

    After each write of this process the remote has all that is finished but the logs, at the end these too.
    """
    draw = random.Random(seed)
    names = [f"{folder}{name}" for folder in ("", "inner/", "inner/deep/") for name in ("a", "b", "c.json")]
    with mirrored(memory) as folder:
        for number in range(40):
            path, other, data = folder / draw.choice(names), folder / draw.choice(names), b"%d" % number
            for each in (path, other, folder / "logs" / "a.txt"):
                each.parent.mkdir(parents=True, exist_ok=True)
            kind = draw.choice(["write", "write", "rename", "remove", "worker", "log", "half"])
            if kind == "write":
                write_bytes(path, data)
                finished = {n: d for n, d in all_files(folder).items() if not n.endswith(".tmp") and "logs/" not in n}
                assert memory_tree(memory) == finished
            elif kind == "rename" and path.exists():
                rename(path, other)
            elif kind == "remove":
                path.unlink(missing_ok=True)
            elif kind == "worker":  # another process puts a file in place
                path.with_name(f"worker-{number}").write_bytes(data)
            elif kind == "log":
                with (folder / "logs" / "a.txt").open("ab") as file:
                    file.write(data)
            elif kind == "half":
                path.with_name(path.name + ".tmp").write_bytes(data)
        expected = {name: data for name, data in all_files(folder).items() if not name.endswith(".tmp")}
    assert memory_tree(memory) == expected


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_logs_and_costs_go_up_after_an_error_or_a_stop(s3, error):
    with pytest.raises(error), mirrored(s3) as folder:
        (folder / "logs").mkdir()
        (folder / "logs" / "a.yaml").write_text("b")
        (folder / "costs.jsonl").write_text("c")
        raise error
    assert remote_tree(s3) == {"logs/a.yaml": b"b", "costs.jsonl": b"c"}


def test_at_the_start_the_remote_is_the_truth(server, s3):
    with mirrored(s3) as folder:
        for name in ("same", "changed_there", "changed_here", "gone_there"):
            write_bytes(folder / "inner" / name, name.encode())
    put(s3 / "inner" / "changed_there", b"new")
    put(s3 / "new_there", b"also new")
    s3_files().rm(str(s3 / "inner" / "gone_there"))
    (folder / "inner" / "changed_here").write_bytes(b"never uploaded")
    (folder / "new_here").write_bytes(b"never uploaded")
    before = len(server.requests)
    with mirrored(s3) as folder:
        assert tree(folder) == {
            "inner/same": b"same",
            "inner/changed_there": b"new",
            "inner/changed_here": b"changed_here",
            "new_there": b"also new",
        }
    fetched = {path.rpartition("/")[2] for path in server.since(before, "GET")} - {"bucket"}
    assert fetched == {"changed_there", "changed_here", "new_there"}


def test_killed_and_started_again_on_other_machines_an_experiment_ends_with_the_same_bytes(s3, pico_pool, tmp_path):
    upload(pico_pool / "eval" / SHAPES, s3 / "eval" / SHAPES)
    options = ["scale=pico", f"pool_dir={pico_pool}"]
    evaluate = ["evaluate", *options, "tasks=pico/shapes"]
    exp_dir = f"exp_dir={s3 / 'exp'}"
    nursery = Nursery()

    def run(verb, machine, **kill):
        env = {"WINNOW_CACHE_DIR": str(tmp_path / machine)}
        return nursery.run(tmp_path, verb, env=env, **kill)

    try:
        for verb in (["filter", *options], ["train", *options], evaluate):
            assert run([*verb, "exp_dir=exp"], "local") == 0, told(tmp_path)
        assert run(["filter", *options, exp_dir], "first", rename=3) == KILLED
        assert run(["filter", *options, exp_dir], "second") == 0, told(tmp_path)
        train = ["train", *options, exp_dir]
        for machine, number, late in (("third", 14, True), ("fourth", 9, False)):
            assert run(train, machine, rename=number, late=late) == KILLED, told(tmp_path)
        assert run(train, "fifth") == 0, told(tmp_path)
        assert run([*evaluate, exp_dir, f"eval_dir={s3 / 'eval'}"], "sixth") == 0, told(tmp_path)
    finally:
        nursery.close()
    there = remote_tree(s3 / "exp")
    assert "costs.jsonl" in there
    outside = {name for name in there if name.endswith("costs.jsonl") or "logs" in name.split("/")}
    same({name: data for name, data in there.items() if name not in outside}, tree(tmp_path / "exp"))


def test_several_machines_cannot_work_in_one_mirror(capsys, monkeypatch, pico_pool):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert main(["train", "scale=pico", f"pool_dir={pico_pool}", "exp_dir=s3://bucket/exp"]) == 2
    assert "the ranks are on several; train in a folder that all of them share" in capsys.readouterr().err


# --- Copies ---------------------------------------------------------------------------------------------------------


def test_a_subset_and_the_record_beside_it_are_fetched_when_they_have_changed(server, s3):
    put(s3 / "subset.npy", b"1")
    put(s3 / "subset.json", b"{}")
    path = local_copy(s3 / "subset.npy", beside=["subset.json", "missing.json"])
    assert tree(path.parent) == {"subset.npy": b"1", "subset.json": b"{}"}
    before = len(server.requests)
    assert local_copy(s3 / "subset.npy", beside=["subset.json"]) == path
    assert not [each for each in server.since(before, "GET") if each.endswith((".npy", ".json"))]
    put(s3 / "subset.npy", b"2")
    assert local_copy(s3 / "subset.npy").read_bytes() == b"2"
    with user_error("not-found", match=r"s3://bucket/[a-z_]+/other\.npy$"):
        local_copy(s3 / "other.npy")


def test_of_a_folder_only_what_is_wanted_is_fetched_and_the_rest_stays(s3):
    for name in ("a/1", "a/b/2", "c/3"):
        put(s3 / name, name.encode())
    assert tree(local_copy(s3, only=["a"])) == {"a/1": b"a/1", "a/b/2": b"a/b/2"}
    s3_files().rm(str(s3 / "a/1"))
    assert tree(local_copy(s3, only=["c"])) == {"a/1": b"a/1", "a/b/2": b"a/b/2", "c/3": b"c/3"}
    assert tree(local_copy(s3)) == {"a/b/2": b"a/b/2", "c/3": b"c/3"}
    with user_error("not-found", match="d, e"):
        local_copy(s3, only=["a", "d", "e"])


# --- Errors ---------------------------------------------------------------------------------------------------------


def test_what_is_not_there_is_told_in_a_sentence(server, capsys, pico_pool):
    pool = ["filter", "scale=pico", f"pool_dir={pico_pool}"]
    assert (
        "is not a pool: there is nothing at s3://nobody/pool/metadata (The specified bucket does not exist)"
        in failing(capsys, "filter", "scale=pico", "pool_dir=s3://nobody/pool")
    )
    assert "s3://bucket/nothing is not a pool: there is nothing at s3://bucket/nothing/metadata" in failing(
        capsys, "filter", "scale=pico", "pool_dir=s3://bucket/nothing"
    )
    assert "there is nothing at s3://nobody/exp (The specified bucket" in failing(
        capsys, *pool, "exp_dir=s3://nobody/exp"
    )
    assert "there is nothing at s3://bucket/none.npy" in failing(capsys, *pool, "subset=s3://bucket/none.npy")
    put("s3://bucket/half/building.json", b"{}")
    assert "s3://bucket/half is half generated" in failing(capsys, "filter", "scale=pico", "pool_dir=s3://bucket/half")
    assert "gs:// needs gcsfs" in failing(capsys, *pool, "exp_dir=gs://bucket/exp")
    assert "s3://bucket/pool" in failing(capsys, "pool", "build", "--scale=pico", "--pool-dir=s3://bucket/pool")


def test_a_dead_endpoint_and_missing_credentials_are_told_in_a_sentence(server, capsys, monkeypatch, pico_pool):
    command = ["filter", "scale=pico", f"pool_dir={pico_pool}"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")

    def fresh():  # a process reads its settings once
        s3_files().clear_instance_cache()
        storage._filesystem.cache_clear()

    fresh()
    assert "s3://bucket/exp: the storage does not answer as it should (Could not connect" in failing(
        capsys, *command, "exp_dir=s3://bucket/exp"
    )
    assert 'Could not connect to the endpoint URL: "http://127.0.0.1:9' in failing(
        capsys, *command, "subset=s3://bucket/subset.npy"
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    fresh()
    assert "unable to locate credentials; set AWS_ACCESS_KEY_ID" in failing(capsys, *command, "exp_dir=s3://bucket/exp")
    monkeypatch.undo()
    fresh()


def test_denied_access_is_told_in_a_sentence(server, capsys, pico_pool):
    def enforce(number):
        headers = {"Content-Type": "text/plain"}
        request = urllib.request.Request(f"{server.url}/moto-api/reset-auth", str(number).encode(), headers)
        urllib.request.urlopen(request).close()

    enforce(0)
    try:
        message = failing(capsys, "filter", "scale=pico", f"pool_dir={pico_pool}", "exp_dir=s3://bucket/exp")
    finally:
        enforce("inf")
    assert "s3://bucket/exp: access is denied" in message


@pytest.fixture
def remote_pool(s3, pico_pool):
    for folder in ("metadata", "shards"):
        upload(pico_pool / folder, s3 / "pool" / folder)
    return s3 / "pool"


def test_a_remote_pool_is_indexed_trained_on_and_cut_out_like_a_local_one(remote_pool, pico_pool, tmp_path, cache):
    """In place by blocks that the whole machine shares, resharded from front to back: the same bytes as locally."""
    at = {"local": pico_pool, "remote": remote_pool}
    for name, pool_dir in at.items():
        common = ["scale=pico", f"pool_dir={pool_dir}", f"exp_dir={tmp_path / name}"]
        assert main(["filter", *common, "filters=random"]) == 0
        assert main(["train", *common]) == 0
        assert main(["reshard", *common, "shard_size=500", "workers=0"]) == 0
    for name in ("subset.json", "seed-0/checkpoint/checkpoint.json", "seed-0/checkpoint/model.safetensors"):
        assert (tmp_path / "local" / name).read_bytes() == (tmp_path / "remote" / name).read_bytes(), name
    for path in (tmp_path / "local" / "shards").glob("*.tar"):
        assert path.read_bytes() == (tmp_path / "remote" / "shards" / path.name).read_bytes()
    assert list((cache / "blocks").glob("*/0*")), "training read blocks"
    assert set(remote_tree(remote_pool)) == {
        path.relative_to(pico_pool).as_posix()
        for name in ("metadata", "shards")
        for path in (pico_pool / name).iterdir()
    }, "nothing is written into the pool"


def test_filters_see_the_images_of_a_remote_pool(remote_pool, pico_pool, tmp_path):
    for name, pool_dir in (("local", pico_pool), ("remote", remote_pool)):
        command = [
            "filter",
            "scale=pico",
            f"pool_dir={pool_dir}",
            f"exp_dir={tmp_path / name}",
            "filters=text_masked_clip",
        ]
        assert main(command) == 0
    assert (tmp_path / "local" / "subset.npy").read_bytes() == (tmp_path / "remote" / "subset.npy").read_bytes()


def test_a_pilot_of_a_remote_pool_waits_for_its_index_and_reads_its_own_rows(remote_pool, pico_pool, tmp_path, capsys):
    more = [f"filters.decontaminated.eval_dir={pico_pool / 'eval'}", "signals_dir=" + str(tmp_path / "signals")]
    at = ["filter", "scale=pico", f"pool_dir={remote_pool}", "filters=[decontaminated,basic]", *more, "dry_run=true"]
    before = remote_tree(remote_pool)
    assert main(at) == 0
    assert "make it first (`winnow pool index`)" in capsys.readouterr().out
    assert main(["pool", "index", str(remote_pool)]) == 0
    capsys.readouterr()
    assert main(at) == 0
    out = capsys.readouterr().out
    assert "pilot: 800 rows of " in out and "signal 'eval_similarity': 4,000 rows to evaluate" in out
    assert remote_tree(remote_pool) == before and not (tmp_path / "signals").exists()


def test_an_experiment_with_shards_is_kept_at_a_url(s3, pico_pool, tmp_path):
    at = ["scale=pico", f"pool_dir={pico_pool}", f"exp_dir={s3 / 'exp'}"]
    assert main(["filter", *at, "filters=random"]) == 0
    assert main(["reshard", *at, "shard_size=500", "workers=2"]) == 0
    assert "shards/reshard.json" in remote_tree(s3 / "exp")
    assert len([name for name in remote_tree(s3 / "exp") if name.endswith(".tar")]) == 3


def test_a_dry_run_counts_the_blocks_of_a_remote_pool(remote_pool, tmp_path, capsys):
    at = ["scale=pico", f"pool_dir={remote_pool}", f"exp_dir={tmp_path / 'exp'}"]
    assert main(["filter", *at, "filters=random"]) == 0
    capsys.readouterr()
    assert main(["train", *at, "dry_run=true"]) == 0
    out = capsys.readouterr().out
    assert "index: 4 tars from front to back" in out and "in place" not in out, "the index is not made for a dry run"
    assert main(["pool", "index", str(remote_pool), "--workers", "0"]) == 0
    assert main(["train", *at, "dry_run=true"]) == 0
    out = capsys.readouterr().out
    tars = [size for name, size in sizes_of(remote_pool) if name.endswith(".tar")]
    assert f"in place: {sum(tars) / 1e6:.1f} MB in {len(tars)} requests" in out


def sizes_of(location):
    return [(name, len(data)) for name, data in remote_tree(location).items()]


def test_the_tools_work_on_remote_pools_and_files(remote_pool, pico_pool, tmp_path, capsys):
    assert main(["pool", "index", str(remote_pool), "--workers", "0"]) == 0
    assert main(["pool", "check", str(remote_pool)]) == 0
    told = capsys.readouterr().out
    for name, pool_dir in (("local", pico_pool), ("remote", remote_pool)):
        assert (
            main(["pool", "sample", str(pool_dir), "--size", "300", "--seed", "1", "--out", str(tmp_path / name)]) == 0
        )
    assert Pool(tmp_path / "local").identify() == Pool(tmp_path / "remote").identify()
    assert Pool(pico_pool).compute_fingerprint() in told
    put(remote_pool / "subset.npy", (tmp_path / "local" / "uids.npy").read_bytes())
    assert main(["subset", "info", str(remote_pool / "subset.npy")]) == 0
    assert "300 (copies counted)" in capsys.readouterr().out
