"""Killed anywhere, started again, same bytes: a whole `pico` run, from drawing the pool to the board entry.

`WINNOW_KILLS=100 pytest tests/test_kill.py` tries more random moments.
"""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [
    "run",
    "scale=pico",
    "seeds=[0,1]",
    "exp_dir=exp",
    "filters=[basic,clip_score]",
    "filters.clip_score.fraction=0.6",
]
OUTSIDE = {"costs.jsonl", ".lock", "output.txt"}
KILLED = -signal.SIGKILL


class Nursery:
    def __init__(self):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "nursery.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(self, folder, **kill):
        self.process.stdin.write(json.dumps({"argv": COMMAND, "cwd": str(folder), **kill}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())["status"]

    def close(self):
        self.process.stdin.close()
        self.process.wait(10)


@pytest.fixture(scope="module")
def nursery():
    nursery = Nursery()
    yield nursery
    nursery.close()


def tree(folder):
    """Return every file's bytes but those outside the promise: costs, logs and locks."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in OUTSIDE and "logs" not in path.relative_to(folder).parts
    }


@pytest.fixture(scope="module")
def undisturbed(nursery, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert nursery.run(folder) == 0, (folder / "output.txt").read_text()
    files = tree(folder)
    assert {"exp/subset.npy", "exp/seed-1/checkpoint/model.safetensors", "exp/entry.json"} <= set(files)
    return files


def same(files, undisturbed):
    assert sorted(files) == sorted(undisturbed)
    assert [name for name in files if files[name] != undisturbed[name]] == []


@pytest.mark.parametrize("late", [False, True])
def test_killed_at_renames(nursery, undisturbed, tmp_path, late):
    """The n-th process dies at its n-th rename times three, before or after it, until one comes through."""
    number, kills = 1, 0
    while (status := nursery.run(tmp_path, rename=number, late=late)) == KILLED:
        number, kills = number + 3, kills + 1
        assert kills < 100
    assert status == 0, (tmp_path / "output.txt").read_text()
    assert kills >= 10
    same(tree(tmp_path), undisturbed)


def test_killed_at_random_moments(nursery, undisturbed, tmp_path):
    moments = random.Random(int(os.environ.get("WINNOW_KILLS_SEED", "0")))
    left = int(os.environ.get("WINNOW_KILLS", "8"))
    kills = 0
    while (status := nursery.run(tmp_path, **({"after": moments.uniform(0.1, 2.0)} if left else {}))) == KILLED:
        left, kills = left - 1, kills + 1
    assert status == 0, (tmp_path / "output.txt").read_text()
    assert kills >= 3
    same(tree(tmp_path), undisturbed)


def test_a_second_run_makes_nothing_anew(nursery, undisturbed, tmp_path):
    assert nursery.run(tmp_path) == 0
    before = {
        path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file() and path.name not in OUTSIDE
    }
    costs = (tmp_path / "exp" / "costs.jsonl").read_text()
    assert nursery.run(tmp_path) == 0
    rewritten = [path.name for path, when in before.items() if path.stat().st_mtime_ns != when]
    assert set(rewritten) <= {"entry.json", "eval_results.jsonl"}
    assert (tmp_path / "exp" / "costs.jsonl").read_text() == costs
    same(tree(tmp_path), undisturbed)
