"""Run a command as a whole process and measure it: wall and CPU seconds, and the peak memory of it and its workers."""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
POLL_SECONDS = 0.02
UNREADABLE = (FileNotFoundError, ProcessLookupError, PermissionError)


@dataclass(frozen=True)
class Timing:
    """One measured process."""

    seconds: float
    cpu_seconds: float  # of it and its children
    main_mib: float  # peak resident memory of the process
    worker_mib: float  # of the largest of its children; 0 without

    @property
    def peak_mib(self) -> float:
        return max(self.main_mib, self.worker_mib)


def run_measured(command: Sequence[str], environment: Mapping[str, str] = {}) -> Timing:
    """Run a command to its end; raises RuntimeError with what it said where it fails. Linux only.

    Memory is looked up every 20 ms as the kernel's own high-water mark: what `getrusage` tells of a child counts the
    memory of the process that forked it.
    """
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,  # so that its children are known by their session
    )
    peaks: dict[int, float] = {}
    while process.poll() is None:
        peaks |= {pid: max(mib, peaks.get(pid, 0)) for pid, mib in _peaks_of_session(process.pid).items()}
        time.sleep(POLL_SECONDS)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert process.stderr is not None
    said = process.stderr.read().decode(errors="replace")
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {said}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    workers = [mib for pid, mib in peaks.items() if pid != process.pid]
    return Timing(seconds, cpu, peaks.get(process.pid, 0), max(workers, default=0))


def _peaks_of_session(leader: int) -> dict[int, float]:
    """Return the high-water mark in MiB of every process of the session that has memory of its own."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if os.getsid(int(folder.name)) != leader:
                continue
            lines = (folder / "status").read_text().splitlines()
        except UNREADABLE:  # it has just ended
            continue
        marks = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
        if marks:
            found[int(folder.name)] = int(marks[0]) / 1024
    return found
