"""Stages on disk: atomic writes, locks, the record of what an output was made from, and its costs.

A stage writes every file under a temporary name and renames it; the record, a small JSON that names the stage's
options and inputs, comes last. A record that fits means "skip"; one that does not fit is an error that names both.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from benchmark import __version__
from benchmark.errors import UserError

Json = Any  # what json.dumps accepts

TEMPORARY_SUFFIX = ".tmp"
LOCK_NAME = ".lock"


@dataclass(frozen=True)
class Record:
    """What a stage's output was made from, and what came out."""

    stage: str
    version: int  # of the stage's code, raised by hand when its output changes
    made_from: dict[str, Json]
    result: dict[str, Json]

    @property
    def hash(self) -> str:
        """Return the sha256 that identifies this output, made from its inputs alone."""
        return digest({"stage": self.stage, "version": self.version, "made_from": self.made_from})


def rank_of_process() -> tuple[int, int]:
    """Return this process's rank, and the number of ranks that torchrun started together: (0, 1) without it."""
    size = number_of_environment("WORLD_SIZE", 1)
    return (number_of_environment("RANK", 0), size) if size > 1 and "RANK" in os.environ else (0, 1)


def number_of_environment(name: str, otherwise: int) -> int:
    """Return the whole number that a variable of the environment holds; raises UserError where it holds another."""
    text = os.environ.get(name, "")
    if text and not (text.isascii() and text.isdecimal()):
        raise UserError(f"the variable {name} of the environment is {text!r}, no whole number", code="environment")
    return int(text) if text else otherwise


def say(message: str) -> None:
    """Tell the user one line of progress; of several ranks only the first speaks."""
    if rank_of_process()[0] == 0:
        print(message, flush=True)


def warn(message: str) -> None:
    """Tell the user something that needs attention but does not stop the work."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, renamed to it when the block ends well.

    The temporary name is fixed, so what a killed process left is overwritten by its successor; but see
    `use_own_temporary_names`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + _writer + TEMPORARY_SUFFIX)
    try:
        yield temporary
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    rename(temporary, path)


_writer = ""


def use_own_temporary_names() -> None:
    """Give what this process writes temporary names that no other has, where two may write one file at one time.

    Under one name, the first to finish would put in place what the other is still writing. What a killed process left
    stays until `remove_temporary`.
    """
    global _writer
    _writer = _writer or f".{uuid.uuid4().hex}"


_followers: list[Callable[[Path, Path], None]] = []


def rename(source: Path, target: Path) -> None:
    """Put a finished file in place; every output of a stage goes through here."""
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        os._exit(1)  # a worker that outlived its process would put this under the feet of a successor
    source.replace(target)
    announce(target, source)


def announce(target: Path, source: Path | None = None) -> None:
    """Tell who follows the renames that a file is finished: after a rename, or for one that another process made."""
    for follow in tuple(_followers):
        follow(source or target.with_name(target.name + TEMPORARY_SUFFIX), target)


@contextmanager
def followed_renames(follow: Callable[[Path, Path], None]) -> Iterator[None]:
    """Have a function called after each rename of this process with its source and target, for a block."""
    _followers.append(follow)
    try:
        yield
    finally:
        _followers.remove(follow)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Json) -> None:
    """Write JSON for people, atomically."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Json:
    """Read a JSON file; raises UserError that names the file when it is damaged."""
    return _read_json(path)


def _read_json(path: Path, make_object: Callable[[dict[str, Json]], Json] | None = None) -> Json:
    try:
        return json.loads(path.read_bytes(), object_hook=make_object)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not valid JSON ({error}); restore it, or delete it (a pool: its folder) to have it made again",
            code="json-damaged",
        ) from error


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """Read a text file of a user's; raises UserError that names the file where it is no text."""
    try:
        return path.read_text(encoding=encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8: {error}", code="text-damaged") from error


def digest(value: Json) -> str:
    """Return the sha256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_record(path: Path, record: Record) -> None:
    """Write the small file that says "complete"; call it last."""
    write_json(
        path,
        {
            "stage": record.stage,
            "version": record.version,
            "made_from": record.made_from,
            "result": record.result,
        },
    )


def read_record(path: Path) -> Record | None:
    """Read a record, or None where there is none."""
    if not path.exists():
        return None
    value = _read_json(path, partial(_Entries, path))
    if not isinstance(value, dict) or not all(isinstance(value[name], dict) for name in ("made_from", "result")):
        raise UserError(f"{path} is no record of a stage; delete it, or choose another folder", code="record-damaged")
    return Record(value["stage"], value["version"], value["made_from"], value["result"])


class _Entries(dict[str, Json]):
    """A record's values, at any depth: one that is needed and not there is an error that names the file."""

    def __init__(self, path: Path, values: dict[str, Json]) -> None:
        super().__init__(values)
        self.path = path

    def __missing__(self, name: str) -> Json:
        raise UserError(
            f"{self.path} has no {name!r}, so it is no record of this stage; delete it, or choose another folder",
            code="record-damaged",
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _Entries, (self.path, dict(self))


def finished(path: Path, stage: str, version: int, made_from: dict[str, Json]) -> Record | None:
    """Return the record at `path` if it fits, None if there is none.

    Raises ValueError that names every difference when the output there was made from something else.
    """
    record = read_record(path)
    if record is None:
        return None
    wanted = {"stage": stage, "version": version, **made_from}
    there = {"stage": record.stage, "version": record.version, **record.made_from}
    shown = describe_differences(wanted, there)
    if not shown:
        return record
    raise UserError(
        f"{path.parent} was made with other settings ({path.name}): {shown}. "
        "Choose another folder, repeat those settings, or delete it.",
        code="record-differs",
    )


CODE_TOLD = " (the code of it and of its helpers)"


def describe_differences(wanted: dict[str, Json], there: dict[str, Json]) -> str:
    """Name what two sets of settings differ in, with both values; empty where they are the same."""
    wanted, there = (_flatten(json.loads(json.dumps(values))) for values in (wanted, there))
    differences = [
        f"{key}{CODE_TOLD if key.endswith('.identity') else ''} is "
        f"{_short(there[key]) if key in there else 'absent'} there and "
        f"{_short(wanted[key]) if key in wanted else 'absent'} now"
        for key in dict.fromkeys([*wanted, *there])
        if wanted.get(key) != there.get(key) or (key in wanted) != (key in there)
    ]
    return "; ".join(differences[:4]) + (f"; and {len(differences) - 4} more" if len(differences) > 4 else "")


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # Slurm sends the last two before it kills


class Stopped(BaseException):
    """A signal asked for a stop, and what was under way is saved."""

    def __init__(self, number: int, what: str) -> None:
        super().__init__(what)
        self.number = number  # of the signal


class OtherRankFailed(BaseException):
    """The first of several ranks has said what was wrong; this one ends without a word."""


@contextmanager
def stop_signals(insist: bool = True) -> Iterator[list[int]]:
    """Collect the signals that ask for a stop, so that a step can be ended and saved first.

    A second SIGINT interrupts at once, but where `insist` is False: a launcher passes on the one that its ranks had
    from the terminal already. A signal that was ignored before stays so; outside the main thread nothing is collected.
    """
    received: list[int] = []

    def note(number: int, _: Any) -> None:
        if insist and number == signal.SIGINT and number in received:
            raise KeyboardInterrupt
        received.append(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for each in STOP_SIGNALS:
            if (handler := signal.getsignal(each)) not in (signal.SIG_IGN, None):
                before[each] = handler
                signal.signal(each, note)
    try:
        yield received
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def ignore_stop_signals(_worker: int) -> None:
    """Leave a stop to the process that this worker works for, where a signal goes to all of them."""
    for each in STOP_SIGNALS:
        signal.signal(each, signal.SIG_IGN)


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


def last_cost(folder: Path, stage: str) -> dict[str, Json]:
    """Return what a stage cost the last time, as `cost` wrote it; empty where that is not known."""
    path = folder / "costs.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    for line in reversed(lines):
        try:
            found: dict[str, Json] = json.loads(line)
        except ValueError:  # a kill cut it
            continue
        if found.get("stage") == stage:
            return found
    return {}


def remove_temporary(folder: Path) -> None:
    """Remove what a killed stage left half written in a folder that the caller has locked."""
    for pattern in (
        f"*{TEMPORARY_SUFFIX}",
        ".tmp*",
    ):  # the second are safetensors', which writes under another name too
        for path in folder.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


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


def _flatten(value: Json, prefix: str = "") -> dict[str, Json]:
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        value = dict(enumerate(value))
    if isinstance(value, dict) and value:
        flat: dict[str, Json] = {}
        for key, inner in value.items():
            flat |= _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
        return flat
    return {prefix: value}


def _short(value: Json) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:24] + "…" + text[-8:]
