"""Where data lies: paths and URLs under one interface, ranges of remote files kept in blocks, folders mirrored.

A location is a pathlib.Path, or a `upath.UPath` for `protocol://...`, which has the parts of pathlib's interface that
we use. Remote files are taken to be replaced whole, as an object store does.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast

from filelock import FileLock

from benchmark.errors import NotFoundError, UserError
from benchmark.stage import (
    LOCK_NAME,
    TEMPORARY_SUFFIX,
    Json,
    atomic_path,
    digest,
    followed_renames,
    locked,
    number_of_environment,
    read_json,
    say,
    sha256_of,
    warn,
    write_bytes,
    write_json,
)

BLOCK_BYTES = 8 << 20
SEQUENTIAL_BLOCK_BYTES = 32 << 20
MAX_CACHE_BYTES = 20 * 10**9  # WINNOW_BLOCK_CACHE_BYTES overrides it
MAX_OPEN_FILES = 64  # a window's blocks lie in about as many tars
NUM_LOCKS = 256  # for blocks; two blocks that share one wait for each other, and that is all
MANIFEST_NAME = "manifest.json"

URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# Packages whose errors have no place in Python's hierarchy.
STORAGE_PACKAGES = {"botocore", "aiobotocore", "boto3", "aiohttp", "gcsfs", "google", "adlfs", "azure", "requests"}
EXTRAS = {"s3": "s3", "s3a": "s3"}  # protocol -> our extra that brings its package


# --- Locations -----------------------------------------------------------------------------------------------------


def as_location(text: str) -> Path:
    """Return a path for a plain path or `file://...`, a UPath for any other `protocol://...`; nothing is looked up.

    Raises ValueError for a protocol that is unknown or whose package is not installed.
    """
    match = URL.match(text)
    if match is None:
        try:
            return Path(text).expanduser()
        except RuntimeError as error:
            raise UserError(f"{text}: {text.partition('/')[0]} is no user of this machine", code="not-found") from error
    protocol = match[1].lower()
    if protocol in ("file", "local"):
        return Path(text[match.end() :])
    import fsspec
    from upath import UPath

    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        package = getattr(error.__cause__, "name", None) or f"another package ({one_line(error)})"
        extra = f"'winnow-bench[{EXTRAS[protocol]}]'" if protocol in EXTRAS else package
        raise UserError(f"{protocol}:// needs {package}: pip install {extra}", code="package-missing") from error
    except ValueError as error:
        raise UserError(
            f"{text}: no storage is known by {protocol}://; s3://bucket/folder is one", code="unknown-storage"
        ) from error
    # Without a cache of listings: what was there a minute ago is no answer to what is there.
    return cast(Path, UPath(text.rstrip("/"), use_listings_cache=False))


def is_remote(location: Path) -> bool:
    """Tell whether a location is a URL's."""
    return not isinstance(location, Path)


def cache_dir() -> Path:
    """Return the user's cache folder: $WINNOW_CACHE_DIR, else the platform's (`~/.cache/winnow`)."""
    base = os.environ.get("WINNOW_CACHE_DIR")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "winnow"


def location_key(location: Path) -> str:
    """Return the sha256 that names a location in the cache folder."""
    spelt = str(location) if is_remote(location) else str(location.resolve())
    return hashlib.sha256(spelt.encode()).hexdigest()


def index_dir_of(pool_dir: Path) -> Path:
    """Return where a pool's index is written: in the pool, or in the cache where it is remote or read-only."""
    return _own_dir(pool_dir, "index")


def signals_dir_of(pool_dir: Path) -> Path:
    """Return where a pool's signals are written: in the pool, or in the cache where it is remote or read-only."""
    return _own_dir(pool_dir, "signals")


def is_writable(folder: Path) -> bool:
    """Tell whether files can be made in a folder; a URL counts as one where they cannot."""
    return not is_remote(folder) and os.access(folder, os.W_OK)


def _own_dir(pool_dir: Path, name: str) -> Path:
    if not is_remote(pool_dir):
        inside = pool_dir / name
        if is_writable(inside if inside.exists() else pool_dir):
            return inside
    return cache_dir() / "pools" / location_key(pool_dir) / name


# --- Errors --------------------------------------------------------------------------------------------------------


def one_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its type's name."""
    return (str(error) or type(error).__name__).splitlines()[0]


@contextmanager
def storage_errors(location: object = "") -> Iterator[None]:
    """Raise what a remote storage's packages raise as an OSError of one line, which names the location."""
    try:
        yield
    except Exception as error:
        told = None if isinstance(location, Path) else _told(error, str(location))
        if told is None:
            raise
        raise told from error


def _told(error: Exception, location: str) -> OSError | None:
    """Return the error for users, or None where it is one already."""
    where, reason = f"{location}: " if location else "", one_line(error)
    if isinstance(error, NotImplementedError) and location:
        return PermissionError(f"{where}this storage cannot be written to, or not listed ({reason})")
    if type(error).__module__.partition(".")[0] in STORAGE_PACKAGES:
        if "Credentials" in type(error).__name__:
            return PermissionError(
                f"{where}{reason.lower()}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, or "
                "FSSPEC_S3_ANON=true for a public bucket"
            )
        return ConnectionError(f"{where}the storage does not answer as it should ({reason})")
    if not location or not isinstance(error, OSError) or error.errno == errno.ENOSPC or location in reason:
        return None
    if isinstance(error, FileNotFoundError):
        bucket = f" ({reason})" if "bucket does not exist" in reason else ""
        return NotFoundError(f"there is nothing at {location}{bucket}", code="not-found")
    if isinstance(error, PermissionError):
        return PermissionError(f"{where}access is denied ({reason}); check the credentials and the bucket's policy")
    return ConnectionError(f"{where}{reason}")


# --- Files and their states ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FileState:
    """A file of a folder, with what tells that it has changed."""

    path: Path
    size: int  # in bytes
    state: str  # "size/mtime_ns", or "size/etag" where it is remote


def state_of(path: Path) -> str:
    """Return what tells that a file has changed: "size/mtime_ns", or of a remote one "size/etag" (or the like)."""
    return stat_of(path).state


def stat_of(path: Path) -> FileState:
    """Return a file's size and state, in one request where it is remote. Raises FileNotFoundError."""
    if not is_remote(path):
        stat = path.stat()
        return FileState(path, stat.st_size, f"{stat.st_size}/{stat.st_mtime_ns}")
    filesystem, name = _opened(path)
    with storage_errors(path):
        info = filesystem.info(name)
        if info["type"] != "file":
            raise NotFoundError(f"there is no file {path}", code="not-found")
    return FileState(path, int(info["size"]), _state(info))


def has_file(path: Path) -> bool:
    """Tell whether a file is there; raises, as pathlib's methods do not, where the storage does not answer."""
    try:
        stat_of(path)
    except FileNotFoundError:
        return False
    return is_remote(path) or path.is_file()


def file_hash(path: Path, state: str) -> str:
    """Return the sha256 of a file in that state (of a remote one, its state); kept in the user's cache."""
    if is_remote(path):
        return digest(state)
    kept_path = cache_dir() / "hashes" / f"{location_key(path)}.json"
    if kept_path.exists():
        kept: list[str] = read_json(kept_path)
        if kept[0] == state:
            return kept[1]
    found = sha256_of(path)
    if state_of(path) != state:
        raise changed(path)
    with locked(kept_path.parent):
        write_json(kept_path, [state, found])
    return found


def changed(path: Path) -> UserError:
    """Return the error for a file that is no longer what it was when the pool was opened."""
    return UserError(f"{path} was changed while it was used; run it again", code="file-changed")


def list_files(folder: Path, *, recursive: bool = False) -> list[FileState]:
    """Return the files of a folder, by name, with their states; one listing where it is remote, not one per file.

    Raises FileNotFoundError where there is no such folder.
    """
    if not is_remote(folder):
        if not folder.is_dir():
            raise NotFoundError(f"there is nothing at {folder}", code="not-found")
        paths = sorted(folder.rglob("*") if recursive else folder.iterdir())
        found = []
        for path in paths:
            try:
                if not path.is_dir():
                    found.append(stat_of(path))
            except FileNotFoundError as error:
                if path.is_symlink():
                    raise UserError(
                        f"{path} is a link that leads nowhere; mend or remove it", code="link-broken"
                    ) from error
                # else it went while the folder was listed
        return found
    filesystem, name = _opened(folder)
    if recursive:
        files = _files_under(folder)
        if not files:
            raise NotFoundError(f"there is nothing at {folder}", code="not-found")
        return files
    with storage_errors(folder):
        return _files_of(folder, name, filesystem.ls(name, detail=True))


def _files_under(folder: Path) -> list[FileState]:
    """Return all files in and below a remote folder, none where it is not there; a bucket that is not there raises."""
    filesystem, name = _opened(folder)
    with storage_errors(folder):
        return _files_of(folder, name, filesystem.find(name, detail=True).values())


def _files_of(folder: Path, name: str, infos: Iterable[Mapping[str, Any]]) -> list[FileState]:
    files = []
    for info in infos:
        inner = info["name"].removeprefix(name).strip("/")
        if info["type"] == "file" and inner:  # a folder may be listed as an empty object of its own name
            files.append(FileState(folder / inner, int(info["size"]), _state(info)))
    return sorted(files, key=lambda file: str(file.path))


def open_file(path: Path, *, read_ahead: int = 0) -> BinaryIO:
    """Open a file for reading; of a remote one, every read is a request of `read_ahead` more bytes than asked for."""
    if not is_remote(path):
        return path.open("rb")
    filesystem, name = _opened(path)
    with storage_errors(path):
        if read_ahead:
            return cast(BinaryIO, filesystem.open(name, "rb", cache_type="readahead", block_size=read_ahead))
        return cast(BinaryIO, filesystem.open(name, "rb", cache_type="none"))


def local_copy(location: Path, *, beside: Sequence[str] = (), only: Sequence[str] = ()) -> Path:
    """Return a local path with the contents of a file or folder: itself, or a copy in the cache that is kept current.

    Of a remote folder, `only` names the folders in it that are wanted. Files named `beside` that lie next to a remote
    file are fetched too, where they are there. Raises FileNotFoundError.
    """
    if not is_remote(location):
        return location
    holder = cache_dir() / "copies" / location_key(location)
    name = location.name or "bucket"
    files: dict[str, FileState] = {}
    missing = []
    for folder in [location / inner for inner in only] or [location]:
        found = {f"{name}/{_inner(file.path, location)}": file for file in _files_under(folder)}
        files |= found
        missing += [] if found else [_inner(folder, location)]
    if only and missing:
        raise NotFoundError(f"{location} lacks {', '.join(missing)}", code="not-found")
    if missing:  # no folder, so a file
        files[name] = stat_of(location)
        there = (location.with_name(each) for each in beside)
        files |= {path.name: stat_of(path) for path in there if has_file(path)}
    with locked(holder):
        mirror = _Mirror(location, holder / "files", holder / MANIFEST_NAME)
        mirror.fetch(files, within=[f"{name}/{inner}/" for inner in only] or [""])
    return holder / "files" / name


def _inner(path: Path, folder: Path) -> str:
    """Return a file's name inside a folder, with slashes."""
    return str(path).removeprefix(str(folder)).strip("/")


def _opened(path: Path) -> tuple[Any, str]:
    """Return a remote path's fsspec filesystem, one of this process, and the name that it has there."""
    remote = cast(Any, path)
    with storage_errors(path):
        options = json.dumps(dict(remote.storage_options), sort_keys=True)
        return _filesystem(remote.protocol, options, os.getpid()), remote.path


@lru_cache(maxsize=32)
def _filesystem(protocol: str, options: str, _process: int) -> Any:
    # By process: what a fork inherits has no thread that works for it. fsspec itself makes one per thread.
    import fsspec

    return fsspec.filesystem(protocol, **json.loads(options))


def _state(info: Mapping[str, Any]) -> str:
    tags = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "updated", "mtime", "created")
    tag = next((str(info[name]).strip('"') for name in tags if info.get(name)), "")
    return f"{info['size']}/{tag}"


def format_bytes(count: int) -> str:
    """Spell a number of bytes with the unit that suits it."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


# --- Ranges --------------------------------------------------------------------------------------------------------


class RangeReader:
    """Reads ranges of local and remote files; threads may share it, and other processes make their own of it.

    Remote files are fetched in blocks, one request each, which lie in the cache folder for all processes of the
    machine. A file's state is asked for once in a reader's life.
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

    def _read_local(self, path: Path, told: Path, offset: int, length: int, state: str | None = None) -> bytes:
        with self._lock:  # else another thread might close the file
            data = os.pread(self._descriptor(path, state), length, offset)
            if len(data) < length:
                raise _too_short(told, offset, length, os.fstat(self._descriptor(path)).st_size)
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
    filesystem, name = _opened(file.path)
    with storage_errors(file.path):
        data = cast(bytes, filesystem.cat_file(name, start=start, end=stop))
    if len(data) != stop - start:
        raise _too_short(file.path, start, stop - start, start + len(data))
    _refuse_changed(stat_of(file.path), file.state)  # the bytes may be another object's
    return data


def _refuse_changed(file: FileState, state: str | None) -> None:
    if state is not None and file.state != state:
        raise UserError(
            f"{file.path} has changed since it was indexed; run the same command again to have it indexed anew",
            code="file-changed",
        )


def _too_short(path: Path, offset: int, length: int, size: int) -> UserError:
    return UserError(
        f"{path} is too short: {length:,} bytes at byte {offset:,} are asked for, it ends at {size:,}; "
        "was it changed or cut off after it was indexed?",
        code="file-changed",
    )


def max_cache_bytes() -> int:
    """Return how many bytes of remote files are kept in blocks: $WINNOW_BLOCK_CACHE_BYTES, else 20 GB."""
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


# --- Folders -------------------------------------------------------------------------------------------------------


@contextmanager
def mirrored(location: Path) -> Iterator[Path]:
    """Give a local folder to work in for a folder that may be remote; what is finished goes there at once.

    Of a remote folder this is a mirror in the cache. At the start the remote is the truth. Then each file is uploaded
    right after its rename, everything else that is finished before it; logs and costs at the end, however that comes.
    """
    if not is_remote(location):
        yield location
        return
    holder = cache_dir() / "experiments" / location_key(location)
    # The whole time: a second process on this machine would take this one's files for left-overs.
    with locked(holder):
        mirror = _Mirror(location, holder / (location.name or "bucket"), holder / MANIFEST_NAME)
        _check_writable(location)
        mirror.fetch({_inner(file.path, location): file for file in _files_under(location)})
        say(f"{location} is worked on in {mirror.folder}")
        try:
            with followed_renames(mirror.follow):
                yield mirror.folder
        except BaseException:
            try:
                mirror.push()
            except OSError as error:
                warn(f"{one_line(error)}; what is not uploaded is lost")
            raise
        mirror.push()


def _check_writable(folder: Path) -> None:
    """Raise PermissionError before hours of work where nothing can be written to a remote folder."""
    filesystem, name = _opened(folder / f"writable{TEMPORARY_SUFFIX}")
    with storage_errors(folder):
        filesystem.pipe_file(name, b"")
        filesystem.rm_file(name)


class _Mirror:
    """A remote folder and the local folder that holds its files, with a manifest of both sides' states.

    A file that is not as the manifest says, here or there, is one that was not carried over. What the manifest learns
    is appended to a journal beside it, one line each, and both are put together at the start and at the end.
    """

    def __init__(self, remote: Path, folder: Path, manifest_path: Path) -> None:
        self.remote = remote
        self.folder = folder
        self.manifest_path = manifest_path
        self.journal_path = manifest_path.with_suffix(".jsonl")
        self.process, self.lock = os.getpid(), threading.Lock()
        self.manifest: dict[str, list[str]] = _read_manifest(manifest_path, self.journal_path)
        self.inodes: dict[str, int] = {}  # of the local files that are as the manifest says; a rename brings another

    def fetch(self, files: Mapping[str, FileState], *, within: Sequence[str] = ("",)) -> None:
        """Make the local folder hold exactly these files, of those whose names begin as `within` says."""
        prefixes = tuple(within)
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(self.folder.rglob("*"), reverse=True):
            name = path.relative_to(self.folder).as_posix()
            if path.is_dir() and not path.is_symlink():
                if not any(path.iterdir()):
                    path.rmdir()
            elif name not in files and name.startswith(prefixes):
                path.unlink()
        gone = {name for name in self.manifest if name not in files and name.startswith(prefixes)}
        self.manifest = {name: states for name, states in self.manifest.items() if name not in gone}
        try:
            for name, file in files.items():
                path = _inside(self.folder, name)
                if path.is_file() and self.manifest.get(name) == [file.state, state_of(path)]:
                    continue
                filesystem, remote_name = _opened(file.path)
                with atomic_path(path) as temporary, storage_errors(file.path):
                    filesystem.get_file(remote_name, str(temporary))
                self._know(name, [file.state, state_of(path)])
        finally:
            self._save()
        self.inodes = {name: inode for name, inode in _finished_files(self.folder) if name in self.manifest}

    def follow(self, source: Path, target: Path) -> None:
        """Upload a file that was just renamed, after everything else that is finished, so that records come last.

        New files are told by name and inode, which a listing has; what is written into a file in place goes up at the
        end, as does, at the latest, what another process replaces twice between two renames of this one.
        """
        # What a forked worker renames goes up with what this process renames next.
        if not target.is_relative_to(self.folder) or os.getpid() != self.process:
            return
        with self.lock:
            self._follow(source, target)

    def _follow(self, source: Path, target: Path) -> None:
        name = target.relative_to(self.folder).as_posix()
        moved = source.relative_to(self.folder).as_posix() if source.is_relative_to(self.folder) else ""
        found = dict(_finished_files(self.folder))
        self._remove({known for known in self.manifest if known != moved and known not in found})
        for other in sorted(found):
            if other != name and found[other] != self.inodes.get(other) and not _is_log(Path(other)):
                self._carry(other, found[other])
        if name not in found:  # replaced or removed by another process in the meantime
            return
        if self.manifest.get(moved, [""])[-1] == state_of(target):  # there already, under another name: large, perhaps
            filesystem, remote_name = _opened(self.remote / name)
            with storage_errors(self.remote / name):
                filesystem.cp_file(_opened(self.remote / moved)[1], remote_name)
            self._note(name, found[name])
            self._remove({moved})
        else:
            self._upload(name, found[name])

    def push(self) -> None:
        """Upload what has changed and remove what is gone; here all files are looked at, whatever followed them."""
        found = dict(_finished_files(self.folder))
        try:
            self._remove({known for known in self.manifest if known not in found})
            for name in sorted(found):
                self._carry(name, found[name])
        finally:
            self._save()

    def _carry(self, name: str, inode: int) -> None:
        """Upload a file where it is not as the manifest says."""
        known = self.manifest.get(name)
        if known is None or known[1] != state_of(self.folder / name):
            self._upload(name, inode)
        self.inodes[name] = inode

    def _upload(self, name: str, inode: int) -> None:
        target = self.remote / name
        filesystem, remote_name = _opened(target)
        with storage_errors(target):
            filesystem.put_file(str(self.folder / name), remote_name)
        self._note(name, inode)

    def _note(self, name: str, inode: int) -> None:
        self._know(name, [state_of(self.remote / name), state_of(self.folder / name)])
        self.inodes[name] = inode

    def _remove(self, names: set[str]) -> None:
        for name in sorted(names):
            filesystem, remote_name = _opened(self.remote / name)
            with storage_errors(self.remote / name):
                if filesystem.exists(remote_name):
                    filesystem.rm_file(remote_name)
            self.inodes.pop(name, None)
            self._know(name, None)

    def _know(self, name: str, states: list[str] | None) -> None:
        if states is None:
            del self.manifest[name]
        else:
            self.manifest[name] = states
        with self.journal_path.open("a") as file:
            file.write(json.dumps([name, states]) + "\n")

    def _save(self) -> None:
        value: dict[str, Json] = dict(sorted(self.manifest.items()))
        write_json(self.manifest_path, value)
        self.journal_path.unlink(missing_ok=True)


def _read_manifest(path: Path, journal_path: Path) -> dict[str, list[str]]:
    """Return the states that were noted, by name; of what cannot be read nothing is known, so that it is fetched."""
    try:
        manifest = {name: [there, here] for name, (there, here) in json.loads(path.read_bytes()).items()}
    except (FileNotFoundError, ValueError, AttributeError, TypeError):
        manifest = {}
    if not journal_path.exists():
        return manifest
    for line in journal_path.read_text(errors="replace").splitlines():
        try:
            name, states = json.loads(line)
            if states is None:
                manifest.pop(name, None)
            else:
                there, here = states
                manifest[name] = [there, here]
        except (ValueError, TypeError):
            continue  # a kill cut it
    return manifest


def _finished_files(folder: Path, inside: str = "") -> Iterator[tuple[str, int]]:
    """Yield name and inode of every finished file in and below a folder, without looking at any of the files."""
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return  # it went while it was listed
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _finished_files(Path(entry.path), f"{inside}{entry.name}/")
        elif entry.is_file(follow_symlinks=False) and not _is_unfinished(entry.name):
            yield f"{inside}{entry.name}", entry.inode()


def _inside(folder: Path, name: str) -> Path:
    """Return the path of a name in a folder; raises ValueError where it leads out of it."""
    if ".." in name.split("/"):
        raise UserError(f"the remote name {name!r} leads out of its folder; rename it there", code="name-refused")
    return folder / name


def _is_unfinished(name: str) -> bool:
    return name.endswith(TEMPORARY_SUFFIX) or name.startswith(".tmp") or name == LOCK_NAME


def _is_log(name: Path) -> bool:
    """Tell whether a file is appended to as the work goes on, and uploaded at the end."""
    return name.name == "costs.jsonl" or "logs" in name.parts
