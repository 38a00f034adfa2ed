"""A process that has imported everything and computed nothing, and forks a child per command line: quick to kill.

Reads one JSON per line from standard input: `argv`, `cwd`, and when to SIGKILL the child: `after` seconds, or at its
`rename`-th rename (before it, or after it where `late`); or which `signal` it gets at its `step`-th training step.
`env` overrides environment variables. Answers each with the child's exit status as JSON.
"""

import json
import os
import pathlib
import signal
import sys
import threading
import time

import fasttext  # noqa: F401
import hydra  # noqa: F401
import open_clip  # noqa: F401
import pandas  # noqa: F401
import pyarrow.parquet  # noqa: F401
import torch  # noqa: F401

import benchmark.cli.main
import benchmark.training.train


def run_child(request):
    os.environ.update(request.get("env", {}))
    os.chdir(request["cwd"])
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if "rename" in request:
        _kill_at_rename(request["rename"], request.get("late", False))
    if "after" in request:
        threading.Thread(target=_kill_after, args=(request["after"],), daemon=True).start()
    if "step" in request:
        # Whoever runs the tests in the background of a shell has SIGINT ignored, and that is inherited.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _signal_at_step(request["step"], request["signal"])
    code = benchmark.cli.main.main(request["argv"])
    sys.stdout.flush()
    os._exit(code)


def _kill_after(seconds):
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_at_rename(number, late):
    original, count = pathlib.Path.replace, 0

    def replace(self, target):
        nonlocal count
        count += 1
        if count == number and not late:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(self, target)
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    pathlib.Path.replace = replace


def _signal_at_step(number, name):
    original, count = benchmark.training.train.train_step, 0

    def train_step(*arguments, **options):
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.Signals[name])
        return original(*arguments, **options)

    benchmark.training.train.train_step = train_step


if __name__ == "__main__":
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            run_child(json.loads(line))
        print(json.dumps({"status": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}), flush=True)
