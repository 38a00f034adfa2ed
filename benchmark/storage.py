"""Where files are: on this machine, or behind any fsspec URL."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class FileState:
    path: Path
    size: int
    state: str


def as_location(text: str) -> Path:
    return Path(text).expanduser()


def index_dir_of(pool_dir: Path) -> Path:
    return pool_dir / "index"


def list_files(folder: Path) -> list[FileState]:
    found = []
    if folder.is_dir():
        for path in folder.iterdir():
            stat = path.stat()
            found.append(FileState(path, stat.st_size, f"{stat.st_size}/{stat.st_mtime_ns}"))
    return found


class SequentialReader:
    def __init__(self, file: int) -> None:
        self.file = file

    def read_up_to(self, offset: int, length: int) -> bytes:
        return os.pread(self.file, length, offset)

    def readinto(self, offset: int, buffer: memoryview) -> int:
        return os.preadv(self.file, [buffer], offset)


@contextmanager
def open_sequential(path: Path) -> Iterator[SequentialReader]:
    file = os.open(path, os.O_RDONLY)
    try:
        yield SequentialReader(file)
    finally:
        os.close(file)
