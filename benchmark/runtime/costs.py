"""What stages cost: one line each in `costs.jsonl`, outside every hash."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmark import __version__
from benchmark.runtime.files import Json


def last_cost(folder: Path, stage: str) -> dict[str, Json]:
    """Return what a stage cost the last time, as `cost` wrote it; empty where that is not known."""
    found = [line for line in read_costs(folder) if line.get("stage") == stage]
    return found[-1] if found else {}


def read_costs(folder: Path) -> list[dict[str, Json]]:
    """Return all lines of a folder's `costs.jsonl`, oldest first; none where there is no such file."""
    path = folder / "costs.jsonl"
    found: list[dict[str, Json]] = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with suppress(ValueError):  # a kill truncated it
            found.append(json.loads(line))
    return found


@contextmanager
def cost(folder: Path, stage: str, **numbers: Json) -> Iterator[dict[str, Json]]:
    """Time a stage and append what it cost to `costs.jsonl`, which is outside every hash.

    The yielded dict takes further numbers.
    """
    start_wall, start_cpu = time.time(), time.process_time()
    more: dict[str, Json] = {}
    yield more
    line = {
        "stage": stage,
        "seconds": round(time.time() - start_wall, 3),
        "cpu_seconds": round(time.process_time() - start_cpu, 3),
        "host": socket.gethostname(),
        "cores": os.cpu_count(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "winnow": __version__,
        **numbers,
        **more,
    }
    with (folder / "costs.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
