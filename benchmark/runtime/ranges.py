"""Ranges of files, local and remote: what is far away is cached in blocks on disk, the least recently used go first."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import cast

from filelock import FileLock

from benchmark.runtime.console import number_of_environment
from benchmark.runtime.errors import UserError
from benchmark.runtime.files import TEMPORARY_SUFFIX, write_bytes
from benchmark.runtime.paths import cache_dir, is_remote
from benchmark.runtime.storage import FileState, filesystem_of, stat_of, storage_errors

BLOCK_BYTES = 8 << 20


SEQUENTIAL_BLOCK_BYTES = 32 << 20


MAX_CACHE_BYTES = 20 * 10**9  # WINNOW_BLOCK_CACHE_BYTES overrides it


MAX_OPEN_FILES = 64  # a window's blocks lie in about as many tars


NUM_LOCKS = 256  # for blocks; two blocks that share one wait for each other, and that is all


class RangeReader:
    """Reads ranges of local and remote files; threads may share it, and other processes make their own of it.

    Remote files are fetched in blocks, one request each, which lie in the cache folder for all processes of the
    machine. A file's state is looked up once in a reader's life.
    """

    def __init__(self, *, block_bytes: int = BLOCK_BYTES) -> None:
        self.block_bytes = block_bytes
        self.num_requests = 0  # of this reader, for data
        self.num_bytes = 0
        self._open: OrderedDict[Path, int] = OrderedDict()  # path -> file descriptor, the last used at the end
        self._known: dict[Path, tuple[FileState, Path]] = {}  # a remote file, and its blocks' folder
        self._lock, self._process = threading.Lock(), os.getpid()
        self._untrimmed: int | None = None  # bytes fetched since the cache was trimmed; None before the first time

    def read(self, path: Path, offset: int, length: int, *, state: str | None = None) -> bytes:
        """Return `length` bytes from `offset` on.

        Raises ValueError that names the file where it ends before, or is not in the `state` that is given.
        """
        if self._process != os.getpid():
            self._lock, self._process = threading.Lock(), os.getpid()  # a fork may inherit one that nobody releases
        if not is_remote(path):
            return self._read_local(path, path, offset, length, state)
        file, folder = self._look_up(path)
        _refuse_changed(file, state)
        if offset + length > file.size:
            raise _too_short(path, offset, length, file.size)
        parts = []
        for number in range(offset // self.block_bytes, -(-(offset + length) // self.block_bytes)):
            start = number * self.block_bytes
            first, last = max(offset, start), min(offset + length, start + self.block_bytes)
            parts.append(self._read_block(file, folder / f"{number:08d}", start, first, last))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Close what is open; the reader can still be used."""
        with self._lock:
            while self._open:
                os.close(self._open.popitem()[1])

    def _read_block(self, file: FileState, block_path: Path, start: int, first: int, last: int) -> bytes:
        while True:
            self._fetch(file, block_path, start)
            try:
                return self._read_local(block_path, file.path, first - start, last - first)
            except FileNotFoundError:
                continue  # another thread closed it and another process removed it, in that moment

    def _read_local(self, path: Path, shown: Path, offset: int, length: int, state: str | None = None) -> bytes:
        with self._lock:  # else another thread might close the file
            data = os.pread(self._descriptor(path, state), length, offset)
            if len(data) < length:
                raise _too_short(shown, offset, length, os.fstat(self._descriptor(path)).st_size)
        return data

    def _descriptor(self, path: Path, state: str | None = None) -> int:
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path]
        if len(self._open) >= MAX_OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        if state is not None:
            _refuse_changed(stat_of(path), state)
        self._open[path] = os.open(path, os.O_RDONLY)
        return self._open[path]

    def _look_up(self, path: Path) -> tuple[FileState, Path]:
        if path not in self._known:
            file = stat_of(path)
            key = hashlib.sha256(f"{path}\n{file.state}\n{self.block_bytes}".encode()).hexdigest()
            self._known[path] = (file, blocks_dir() / key)
        return self._known[path]

    def _fetch(self, file: FileState, block_path: Path, start: int) -> None:
        """See to it that a block is there and open; of all processes one asks for it."""
        stop = min(file.size, start + self.block_bytes)
        with self._lock:
            if block_path in self._open or self._open_block(block_path, stop - start):
                return
        lock_number = int(hashlib.sha256(str(block_path).encode()).hexdigest()[:8], 16) % NUM_LOCKS
        lock_path = blocks_dir() / "locks" / f"{lock_number:03d}"
        lock_path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock_path):
            with self._lock:
                if self._open_block(block_path, stop - start):
                    return
            data = fetch_range(file, start, stop)
            write_bytes(block_path, data)
            with self._lock:
                self._open_block(block_path, stop - start)
                self.num_requests += 1
                self.num_bytes += len(data)
        self._trim(len(data))

    def _open_block(self, path: Path, size: int) -> bool:
        """Open a block, which makes it the one used last; tell whether it is there and whole."""
        if path in self._open:
            return True
        try:
            os.utime(path)
            is_whole = os.fstat(self._descriptor(path)).st_size == size
        except FileNotFoundError:
            return False
        if not is_whole:  # a power cut may leave an empty file
            os.close(self._open.pop(path))
        return is_whole

    def _trim(self, fetched: int) -> None:
        most = max_cache_bytes()
        with self._lock:
            self._untrimmed = most if self._untrimmed is None else self._untrimmed + fetched
            if self._untrimmed < most // 256:
                return
            self._untrimmed = 0
        trim_blocks(most - most // 16)

    def __reduce__(self) -> tuple[Callable[..., RangeReader], tuple[int]]:
        return _make_reader, (self.block_bytes,)  # a process that is not forked opens its own files

    def __del__(self) -> None:  # without the lock: a thread that holds it may be interrupted by this
        for descriptor in self._open.values():
            os.close(descriptor)


def _make_reader(block_bytes: int) -> RangeReader:
    return RangeReader(block_bytes=block_bytes)


class SequentialReader:
    """Reads one file from front to back by ranges: few large requests, nothing on disk, two blocks in memory."""

    def __init__(self, path: Path, *, state: str | None = None, block_bytes: int = SEQUENTIAL_BLOCK_BYTES) -> None:
        """Open a file; raises FileNotFoundError, and ValueError where it is not in the `state` that is given."""
        self.file = stat_of(path)
        _refuse_changed(self.file, state)
        self.block_bytes = block_bytes
        self.num_requests = 0
        self.num_bytes = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._descriptor = None if is_remote(path) else os.open(path, os.O_RDONLY)

    @property
    def size(self) -> int:
        """Return the file's size in bytes."""
        return self.file.size

    @property
    def state(self) -> str:
        """Return the file's state when it was opened, as `state_of` spells it."""
        return self.file.state

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on; raises ValueError that names the file where it ends before."""
        if offset + length > self.size:
            raise _too_short(self.file.path, offset, length, self.size)
        if self._descriptor is not None:
            data = os.pread(self._descriptor, length, offset)
            if len(data) < length:
                raise _too_short(self.file.path, offset, length, offset + len(data))
            return data
        parts = []
        for number in range(offset // self.block_bytes, -(-(offset + length) // self.block_bytes)):
            start = number * self.block_bytes
            block = self._block(number)
            parts.append(block[max(offset - start, 0) : offset + length - start])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_up_to(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on, or what the file has of them."""
        return self.read(offset, min(length, self.size - offset)) if offset < self.size else b""

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes from `offset` on; raises ValueError that names the file where it ends before."""
        if self._descriptor is None:
            buffer[:] = self.read(offset, len(buffer))
        elif os.preadv(self._descriptor, [buffer], offset) < len(buffer):
            raise _too_short(self.file.path, offset, len(buffer), os.fstat(self._descriptor).st_size)

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            if len(self._blocks) == 2:
                self._blocks.popitem(last=False)
            start = number * self.block_bytes
            self._blocks[number] = fetch_range(self.file, start, min(self.size, start + self.block_bytes))
            self.num_requests += 1
            self.num_bytes += len(self._blocks[number])
        return self._blocks[number]

    def close(self) -> None:
        """Let go of the file."""
        self._blocks.clear()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> SequentialReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_sequential(
    path: Path, *, state: str | None = None, block_bytes: int = SEQUENTIAL_BLOCK_BYTES
) -> SequentialReader:
    """Open a local or remote file for one pass from front to back.

    Raises FileNotFoundError, and ValueError where it is not in the `state` that is given.
    """
    return SequentialReader(path, state=state, block_bytes=block_bytes)


def fetch_range(file: FileState, start: int, stop: int) -> bytes:
    """Fetch bytes of a remote file in one request; raises ValueError where fewer come."""
    filesystem, name = filesystem_of(file.path)
    with storage_errors(file.path):
        data = cast(bytes, filesystem.cat_file(name, start=start, end=stop))
    if len(data) != stop - start:
        raise _too_short(file.path, start, stop - start, start + len(data))
    _refuse_changed(stat_of(file.path), file.state)  # the bytes may be another object's
    return data


def _refuse_changed(file: FileState, state: str | None) -> None:
    if state is not None and file.state != state:
        raise UserError(
            f"{file.path} has changed since it was indexed; run the same command again to have it indexed again",
            code="file-changed",
        )


def _too_short(path: Path, offset: int, length: int, size: int) -> UserError:
    return UserError(
        f"{path} is too short: {length:,} bytes at byte {offset:,} are needed, it ends at {size:,}; "
        "was it changed or cut off after it was indexed?",
        code="file-changed",
    )


def max_cache_bytes() -> int:
    """Return how many bytes of remote files are cached in blocks: $WINNOW_BLOCK_CACHE_BYTES, else 20 GB."""
    return number_of_environment("WINNOW_BLOCK_CACHE_BYTES", MAX_CACHE_BYTES)


def blocks_dir() -> Path:
    """Return the folder of the blocks of remote files."""
    return cache_dir() / "blocks"


def trim_blocks(max_bytes: int) -> None:
    """Remove the blocks that were not used for longest until `max_bytes` are left; they can be fetched again."""
    blocks = []
    for folder in os.scandir(blocks_dir()):
        if folder.is_dir() and folder.name != "locks":
            try:
                for entry in os.scandir(folder):
                    if not entry.name.endswith(TEMPORARY_SUFFIX):
                        stat = entry.stat()
                        blocks.append((stat.st_mtime_ns, stat.st_size, Path(entry.path)))
            except FileNotFoundError:
                continue  # another process trims
    left = sum(size for _, size, _ in blocks)
    for _, size, path in sorted(blocks):
        if left <= max_bytes:
            break
        path.unlink(missing_ok=True)  # who has it open reads on
        left -= size
