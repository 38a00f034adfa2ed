"""Locks on folders: a second process waits, then finds what the first one made."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from benchmark.runtime.console import say

LOCK_NAME = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; a second process waits, and says so. The lock goes with the process, however it ends.

    Threads of this process, which work side by side, take turns without a word.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, f"cannot make the folder: {error.strerror}", str(folder)) from error
    path = (folder / LOCK_NAME).resolve()
    lock = FileLock(path)
    with _guard:
        _threads_at[path] += 1
        is_first = _threads_at[path] == 1
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if is_first:
                say(f"{folder}: another process is at work here, waiting for it")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()
    finally:
        with _guard:
            _threads_at[path] -= 1


_threads_at: Counter[Path] = Counter()  # threads of this process that hold a lock or wait for it


_guard = threading.Lock()
