"""Work in this process, in spawned ones and on a Ray cluster of two nodes: the same results, in order, or one sentence.

The second node dies half way through a filter run. Ray is started once for all tests.
"""

import itertools
import json
import operator
import os
import socket
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster

from benchmark.experiment.choice import Choice
from benchmark.experiment.filter_stage import filter_stage
from benchmark.pool.pool import Pool
from benchmark.registry import get_strategy
from benchmark.runtime import executor, files
from benchmark.runtime.context import Context
from benchmark.selection.rules import Cut, Rule
from tests.conftest import loaded_plugin, uid, user_error, write_pool

MIB = 1 << 20

# Half of the shards wait for a file, so that both nodes are at work when one is killed.
PLUGIN = '''"""Scores that need a while."""

import time
from pathlib import Path

import ray

from benchmark import register_filter


@register_filter(columns=["shard", "score"], fraction=0.3)
def patient(rows, *, notes_dir: str):
    """Score by a column."""
    notes, shard = Path(notes_dir), rows["shard"].iloc[0]
    (notes / f"{shard}.{ray.get_runtime_context().get_node_id()}").touch()
    deadline = time.monotonic() + 600
    while shard >= 6 and not (notes / "go").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return rows["score"]
'''


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one CPU each, as RAY_ADDRESS names them; the driver is the first's."""
    ray.shutdown()
    size = {"num_cpus": 1, "object_store_memory": 80 * MIB}
    # A dead node is missed soon, and what it was sending asked for again.
    soon = {"health_check_period_ms": 300, "health_check_failure_threshold": 2, "object_manager_pull_timeout_ms": 500}
    cluster = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False, "_system_config": soon})
    cluster.add_node(**size)
    before = os.environ.get("RAY_ADDRESS")
    os.environ["RAY_ADDRESS"] = cluster.address
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    del os.environ["RAY_ADDRESS"]
    if before is not None:
        os.environ["RAY_ADDRESS"] = before


def mapped(function, items, how):
    workers = 2 if how == "processes" else 0
    kind = "ray" if how == "ray" else "local"
    return list(executor.map_items(function, items, workers=workers, name="test", executor=kind))


@pytest.mark.parametrize("how", ["here", "processes", "ray"])
def test_results_come_in_order_and_can_be_changed(cluster, how):
    assert mapped(partial(operator.mul, 3), list(range(40)), how) == [3 * number for number in range(40)]
    assert mapped(operator.neg, [], how) == []
    for number, result in enumerate(mapped(partial(np.full, 20_000), [0.5, 1.5], how)):
        assert result.shape == (20_000,) and (result == number + 0.5).all()
        result += 1


@pytest.mark.parametrize("how", ["here", "processes", "ray"])
def test_errors_are_those_of_the_function(cluster, how):
    with pytest.raises(json.JSONDecodeError, match=r"^Expecting value: line 1 column 1 \(char 0\)$"):
        mapped(json.loads, ["1", "2", "three", "4"], how)
    with pytest.raises(FileNotFoundError) as raised:
        mapped(os.stat, ["/", "/not/there"], how)
    assert (raised.value.strerror, raised.value.filename) == ("No such file or directory", "/not/there")
    with user_error("unknown-filter", match="'x'"):
        mapped(get_strategy, ["x"], how)


def test_what_is_given_up_is_cancelled(cluster):
    minutes = "[__import__('time').sleep(0.01) for _ in range(100_000)]"
    results = executor.map_items(eval, ["0", minutes, minutes], workers=0, name="test", executor="ray")
    next(results)
    results.close()
    start = time.monotonic()
    assert mapped(operator.neg, [1, 2], "ray") == [-1, -2]
    assert time.monotonic() - start < 500  # of the thousand that each of the others would take


def test_workers_bounds_the_tasks_at_once(cluster):
    clock = "[__import__('time').monotonic(), __import__('time').sleep(0.05), __import__('time').monotonic()]"
    times = list(executor.map_items(eval, [clock] * 4, workers=1, name="test", executor="ray"))
    assert all(later[0] >= earlier[2] for earlier, later in itertools.pairwise(times))


def test_tasks_write_files_under_names_of_their_own(cluster, tmp_path):
    paths = [tmp_path / "a" / str(number) for number in range(3)]
    assert mapped(partial(files.write_bytes, data=b"bytes"), paths, "ray") == [None] * 3
    assert sorted((tmp_path / "a").iterdir()) == paths and paths[2].read_bytes() == b"bytes"
    (writer,) = mapped(eval, ["__import__('benchmark.runtime.files').runtime.files._writer"], "ray")
    assert files._writer == "" and len(writer) > 30


def test_a_node_with_other_code_is_named(cluster, monkeypatch):
    monkeypatch.setattr(executor, "_hash_code", lambda: "other")
    with user_error("node-differs", match=f"{socket.gethostname()}"):
        mapped(operator.neg, [1], "ray")


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ({"folder": "/not/there"}, "/not/there"),
        ({"plugins": (("/my.py", "ab"),)}, "/my.py"),
        ({"plugins": ((__file__, "ab"),)}, r"test_executor\.py"),
    ],
)
def test_a_node_that_does_not_share_the_folders_is_named(site, message):
    here = {"folder": str(Path.cwd()), "environment": {}, "code": executor._hash_code(), "plugins": None}
    with user_error("node-differs", match=message):
        executor._Site(**{**here, **site}).enter()


def test_a_worker_that_is_killed_is_an_error_that_can_be_mended():
    killing = "__import__('os').kill(__import__('os').getpid(), 9)"
    with user_error("worker-died", match="test"):
        list(executor.map_items(eval, ["1", killing], workers=1, name="test"))


def test_without_ray_or_a_cluster_it_says_what_to_do(monkeypatch):
    with socket.socket() as unanswered:
        unanswered.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unanswered.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        with pytest.raises(ConnectionError, match=f"{address}.*RAY_ADDRESS"):
            mapped(operator.neg, [1], "ray")
    monkeypatch.setitem(sys.modules, "ray", None)
    with user_error("package-missing", match=r"pip install 'winnow-bench\[ray\]'"):
        mapped(operator.neg, [1], "ray")


def test_gpus_that_no_node_has_are_an_error(cluster):
    results = executor.map_items(operator.neg, [1], workers=0, name="scores", executor="ray", num_gpus=1)
    with user_error("no-gpu", match="device=cpu"):
        list(results)


def test_a_node_that_dies_half_way_changes_no_byte(cluster, tmp_path):
    ray.shutdown()  # with the other tests' workers
    notes = tmp_path / "notes"
    notes.mkdir()
    rows = 5000
    scores = np.random.default_rng(0).permutation(12 * rows).reshape(12, rows) / 7.0
    uids = [[uid(shard * rows + row) for row in range(rows)] for shard in range(12)]
    shards = [{"uid": uids[number], "shard": number, "score": scores[number]} for number in range(12)]
    pool = Pool(write_pool(tmp_path / "pool", *shards))
    choice = Choice((Rule("patient", {"notes_dir": str(notes)}, Cut("fraction", 0.3)),))
    (second,) = cluster.worker_nodes

    def kill_second():
        while not (seen := [path for path in notes.glob(f"*.{second.node_id}") if int(path.stem) >= 6]):
            time.sleep(0.01)
        under_way.extend(int(path.stem) for path in seen)
        cluster.remove_node(second, allow_graceful=False)
        (notes / "go").touch()

    under_way = []
    killer = threading.Thread(target=kill_second, daemon=True)
    killer.start()
    with loaded_plugin(tmp_path / "patient.py", PLUGIN) as plugin:
        context = Context(plugins=(str(plugin),))
        on_ray = filter_stage(tmp_path / "ray", pool, choice, replace(context, executor="ray"))
        assert under_way and all((notes / f"{shard}.{cluster.head_node.node_id}").exists() for shard in under_way)
        here = filter_stage(tmp_path / "local", pool, choice, context)
    assert (tmp_path / "ray" / "subset.npy").read_bytes() == (tmp_path / "local" / "subset.npy").read_bytes()
    assert on_ray == here and on_ray.result["size"] == 18_000
    costs = (tmp_path / "ray" / "costs.jsonl").read_text()
    assert json.loads(costs)["executor"] == "ray"
