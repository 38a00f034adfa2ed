"""Sees what strategies read without declaring it: an audit hook of this process, told apart by strategy and thread.

It is set in every process that loads strategies and lasts as long as the process: what a strategy read once, as its
file was loaded or the first time it was asked, an `lru_cache` may go on answering from. What it does not see stands in
docs/selection.md; benchmark/runtime/undeclared.py looks at the source for some of that.
"""

from __future__ import annotations

import importlib.util
import linecache
import os
import pathlib
import sys
import threading
import tokenize
import zoneinfo
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from benchmark.runtime.identity import is_packaged

SYSTEM_DIRS = ("/proc", "/sys", "/dev", *zoneinfo.TZPATH)
MACHINE_PROGRAMS = ("ldconfig", "lscpu", "nproc", "sysctl", "uname")  # that packages ask how many cores there are, say
IMPORT_FILES = ("<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>")


@dataclass(frozen=True)
class Undeclared:
    """Something that a strategy's values depend on and that it has not declared."""

    kind: str  # file, variable, code, server, process or script
    name: str


@dataclass(frozen=True)
class _Watched:
    source: Path  # the file that the strategy was loaded from
    code: frozenset[Path] = frozenset()  # that is part of its identity
    assets: tuple[Path, ...] = ()  # that are known by their contents; files, or folders of them
    written: set[str] = field(default_factory=set)  # by itself


_LOCAL = threading.local()
_NOBODY = _Watched(Path())
_FOUND: dict[Path, dict[Undeclared, None]] = {}  # by the strategy's file, in order
_WRITTEN: dict[Path, set[str]] = {}
_LAST: dict[str, _Watched] = {}  # by a file of code, whom it worked for the last time
_is_watching = False


def begin_watching() -> None:
    """Set the hook, once in a process; Python has no way to take one out again."""
    global _is_watching
    if not _is_watching:
        _is_watching = True
        sys.addaudithook(_hear)


def undeclared_reads(source: Path) -> list[Undeclared]:
    """Return what the strategies of a file were seen to read in this process."""
    return list(_FOUND.get(source, ()))


def forget_reads(source: Path) -> None:
    """Forget what a file's strategies read, as the file is loaded again."""
    _FOUND.pop(source, None)


@contextmanager
def watching(source: Path, code: Iterable[Path] = (), assets: Iterable[str] = ()) -> Iterator[None]:
    """Take what this thread reads, and other threads that run its code, for reads of the strategies of a file."""
    spelt = [Path(each) for each in assets]
    both = tuple(dict.fromkeys([*(each.absolute() for each in spelt), *(each.resolve() for each in spelt)]))
    written = _WRITTEN.setdefault(source, set())
    watched = _Watched(source, frozenset(code), both, written)
    _LAST.update(dict.fromkeys(map(str, watched.code), watched))
    with _attributed(watched):
        yield


@contextmanager
def not_watching() -> Iterator[None]:
    """Take what this thread reads for reads of Winnow's own."""
    with _attributed(None):
        yield


@contextmanager
def _attributed(watched: _Watched | None) -> Iterator[None]:
    before = getattr(_LOCAL, "watched", _NOBODY)
    _LOCAL.watched = watched
    try:
        yield
    finally:
        _LOCAL.watched = before


def note(found: Undeclared) -> None:
    """Note something for the strategies that this thread works for, if any."""
    watched = _watched()
    if watched is not None:
        _FOUND.setdefault(watched.source, {})[found] = None


def _watched() -> _Watched | None:
    """Return whom this thread works for; of a thread that said nothing, whose code it runs."""
    found: _Watched | None = getattr(_LOCAL, "watched", _NOBODY)
    if found is not _NOBODY:
        return found
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if (last := _LAST.get(frame.f_code.co_filename)) is not None:
            return last
        frame = frame.f_back
    return None


def _hear(event: str, arguments: tuple[object, ...]) -> None:
    if event in _EVENTS and not getattr(_LOCAL, "is_hearing", False):
        watched = _watched()
        if watched is not None:
            _LOCAL.is_hearing = True
            try:
                _EVENTS[event](watched, arguments)
            finally:
                _LOCAL.is_hearing = False


def _hear_open(watched: _Watched, arguments: tuple[object, ...]) -> None:
    path, _, flags = arguments
    if not isinstance(path, str | bytes | os.PathLike) or not isinstance(flags, int):
        return  # a number is a file that is open already
    text = os.fsdecode(path)
    if flags & os.O_ACCMODE == os.O_WRONLY or flags & (os.O_TRUNC | os.O_EXCL):
        watched.written.add(str(Path(text).resolve()))
    else:
        _hear_file(watched, text)


def _hear_file(watched: _Watched, text: str) -> None:
    plain, real = Path(text).absolute(), Path(text).resolve()
    if str(real) in watched.written or plain.is_dir():
        return
    for path in (plain, real):
        if any(path.is_relative_to(each) for each in watched.assets) or path in watched.code:
            return
        # Whoever looks for the version of a package asks every place on the path.
        if is_packaged(path) or str(path).startswith(SYSTEM_DIRS) or text in sys.path or _is_of_cache(path):
            return
    source = _source_of(plain)
    caller = _caller()
    if caller == IMPORT_FILES[1] and source is not None:
        # The user's own code is in the identity, but where the name of a module was computed.
        if source not in watched.code:
            note(Undeclared("code", _short(str(source))))
    elif not _is_importing() and not (source is not None and caller == linecache.__file__):
        note(Undeclared("file", _short(text)))


def _is_of_cache(path: Path) -> bool:
    """Tell whether a file is one that Winnow itself keeps for another time; the user's assets are the user's."""
    paths = sys.modules.get("benchmark.runtime.paths")
    if paths is None:
        return False
    cache_dir = Path(paths.cache_dir()).absolute()
    return path.is_relative_to(cache_dir) and not path.is_relative_to(cache_dir / "assets")


def _caller() -> str:
    """Return the file of the code that opens something: of the import system, or of whoever reads lines of code."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name not in (__file__, *_OPENERS):
            return name
        frame = frame.f_back
    return ""


_OPENERS = (tokenize.__file__, pathlib.__file__)  # that open for others


def _is_importing() -> bool:
    """Tell whether it is a package that reads, as it is imported: that may read what it likes."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name in IMPORT_FILES:
            return True
        if not name.startswith("<") and not is_packaged(Path(name)):
            return False  # the user's own code is nearer
        frame = frame.f_back
    return False


def _source_of(path: Path) -> Path | None:
    """Return the Python file that an import reads, itself or compiled; None for anything else."""
    if path.suffix == ".pyc":
        try:
            return Path(importlib.util.source_from_cache(str(path)))
        except ValueError:
            return None
    return path if path.suffix == ".py" else None


def _hear_database(watched: _Watched, arguments: tuple[object, ...]) -> None:
    path = arguments[0]
    if isinstance(path, str | bytes | os.PathLike) and (text := os.fsdecode(path)) not in ("", ":memory:"):
        _hear_file(watched, text)


def _hear_server(watched: _Watched, arguments: tuple[object, ...]) -> None:
    if not _is_importing():
        address = arguments[1]
        spelt = ":".join(str(each) for each in address[:2]) if isinstance(address, tuple) else str(address)
        note(Undeclared("server", spelt))


def _hear_process(watched: _Watched, arguments: tuple[object, ...]) -> None:
    program = os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes | os.PathLike) else str(arguments[0])
    if Path(program).name not in MACHINE_PROGRAMS and not _is_importing():
        note(Undeclared("process", program))


def _short(text: str) -> str:
    """Return a path as it is read best: from here where it lies below."""
    path, here = Path(text).absolute(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


_EVENTS = {
    "open": _hear_open,
    "sqlite3.connect": _hear_database,
    "socket.connect": _hear_server,
    "subprocess.Popen": _hear_process,
    "os.system": _hear_process,
    "os.posix_spawn": _hear_process,
}
