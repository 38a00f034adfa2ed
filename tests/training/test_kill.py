"""Killed anywhere, started again, same bytes: `pool build`, and a run from filtering to the board entry.

`WINNOW_KILLS=100 pytest tests/training/test_kill.py` tries more random moments, `WINNOW_KILLS_SEED` others.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILTERS = ["filters=[basic,clip_score]", "filters.clip_score.fraction=0.6"]
BUILD = ["pool", "build", "--scale", "pico", "--pool-dir", "pool"]
OUTSIDE = {"costs.jsonl", ".lock", "output.txt"}
KILLED = -signal.SIGKILL

pytestmark = pytest.mark.slow


class Nursery:
    """The process of nursery.py, asked over pipes."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "nursery.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def run(self, folder, argv, **kill):
        """Run a command line in a folder; return its exit status."""
        self.process.stdin.write(json.dumps({"argv": argv, "cwd": str(folder), **kill}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())["status"]

    def close(self):
        self.process.stdin.close()
        self.process.wait(600)


@pytest.fixture(scope="module")
def nursery():
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def command(pico_pool):
    return ["run", "scale=pico", f"pool_dir={pico_pool}", "exp_dir=exp", "signals_dir=signals", *FILTERS]


@pytest.fixture(scope="module")
def undisturbed_dir(nursery, command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert nursery.run(folder, command) == 0, told(folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(undisturbed_dir):
    files = tree(undisturbed_dir)
    assert {
        "exp/subset.npy",
        "exp/seed-0/checkpoint/model.safetensors",
        "exp/entry.json",
        "exp/report/index.html",
    } <= set(files)
    return files


def tree(folder):
    """Return every file's bytes but those outside the promise: costs, logs and locks.

    And what the report keeps of the strategies that it compares with, whose subsets it finds in the cache later on.
    """
    names = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name: path.read_bytes()
        for name, path in names.items()
        if path.name not in OUTSIDE
        and "logs" not in path.relative_to(folder).parts
        and (not name.startswith("signals/") or name.startswith("signals/basic-"))
    }


def same(files, undisturbed):
    assert sorted(files) == sorted(undisturbed)
    assert [name for name in files if files[name] != undisturbed[name]] == []


def told(folder):
    return (folder / "output.txt").read_text()


@pytest.mark.parametrize("late", [False, True])
def test_a_run_killed_at_renames(nursery, command, undisturbed, tmp_path, late):
    """A process dies before (or after) its first rename, the next at its fourth, and so on, until one comes through."""
    number, kills = 1, 0
    while (status := nursery.run(tmp_path, command, rename=number, late=late)) == KILLED:
        number, kills = number + 3, kills + 1
        assert kills < 50
    assert status == 0, told(tmp_path)
    assert kills >= 5
    same(tree(tmp_path), undisturbed)


def test_a_run_killed_at_random_moments(nursery, command, undisturbed, tmp_path):
    moments = random.Random(int(os.environ.get("WINNOW_KILLS_SEED", "0")))
    left = int(os.environ.get("WINNOW_KILLS", "8"))
    kills = 0
    while (
        status := nursery.run(tmp_path, command, **({"after": moments.uniform(0.2, 1.5)} if left else {}))
    ) == KILLED:
        left, kills = left - 1, kills + 1
    assert status == 0, told(tmp_path)
    assert kills >= 3
    same(tree(tmp_path), undisturbed)


def test_a_run_that_is_asked_to_stop_saves_its_step(nursery, command, undisturbed, tmp_path):
    """Ctrl-C, Slurm's warnings; with workers and without."""
    done = 0
    for name, steps, workers in (("SIGTERM", 13, 0), ("SIGUSR1", 9, 2), ("SIGINT", 31, 0)):
        status = nursery.run(tmp_path, [*command, f"workers={workers}"], step=steps, signal=name)
        done += steps
        assert status == 128 + signal.Signals[name], told(tmp_path)
        assert f"interrupted by {name}: step {done} of 100 of seed 0 is saved" in told(tmp_path)
    assert nursery.run(tmp_path, command, step=100 - done, signal="SIGTERM") == 128 + signal.SIGTERM
    assert "seed 0 is trained" in told(tmp_path) and "Traceback" not in told(tmp_path)
    assert nursery.run(tmp_path, command) == 0
    same(tree(tmp_path), undisturbed)


def test_pool_build_killed_at_renames(nursery, pico_pool, tmp_path):
    number, kills = 1, 0
    while (status := nursery.run(tmp_path, BUILD, rename=number)) == KILLED:
        number, kills = number + 12, kills + 1
        assert kills < 50
    assert status == 0, told(tmp_path)
    assert kills >= 3
    drawn = tree(pico_pool)
    same(tree(tmp_path / "pool"), {name: drawn[name] for name in drawn if not name.startswith("signals/")})


def test_a_second_run_makes_nothing_anew(nursery, command, undisturbed_dir, undisturbed, tmp_path):
    shutil.copytree(undisturbed_dir, tmp_path, dirs_exist_ok=True)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name not in OUTSIDE}
    costs = (tmp_path / "exp" / "costs.jsonl").read_text()
    assert nursery.run(tmp_path, command) == 0
    rewritten = {path.name for path, when in before.items() if path.is_file() and path.stat().st_mtime_ns != when}
    assert rewritten <= {"entry.json", "eval_results.jsonl"}
    assert (tmp_path / "exp" / "costs.jsonl").read_text() == costs
    same(tree(tmp_path), undisturbed)
