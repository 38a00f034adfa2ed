"""Files and their states, local and remote: listed, hashed, opened; errors of storage in one line.

A location is a pathlib.Path, or a `upath.UPath` for `protocol://...`, which has the parts of pathlib's interface that
we use. Remote files are taken to be replaced whole, as an object store does.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast

from benchmark.runtime.errors import NotFoundError, UserError, one_line
from benchmark.runtime.files import (
    digest,
    read_json,
    sha256_of,
    write_json,
)
from benchmark.runtime.locks import locked
from benchmark.runtime.paths import cache_dir, is_remote, location_key

# Packages whose errors have no place in Python's hierarchy.
STORAGE_PACKAGES = {"botocore", "aiobotocore", "boto3", "aiohttp", "gcsfs", "google", "adlfs", "azure", "requests"}


# --- Locations -----------------------------------------------------------------------------------------------------


# --- Errors --------------------------------------------------------------------------------------------------------


@contextmanager
def storage_errors(location: object = "") -> Iterator[None]:
    """Raise what a remote storage's packages raise as an OSError of one line, which names the location."""
    try:
        yield
    except Exception as error:
        translated = None if isinstance(location, Path) else _translated(error, str(location))
        if translated is None:
            raise
        raise translated from error


def _translated(error: Exception, location: str) -> OSError | None:
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
    """A file of a folder, with what shows that it has changed."""

    path: Path
    size: int  # in bytes
    state: str  # "size/mtime_ns", or "size/etag" where it is remote


def state_of(path: Path) -> str:
    """Return what shows that a file has changed: "size/mtime_ns", or of a remote one "size/etag" (or the like)."""
    return stat_of(path).state


def stat_of(path: Path) -> FileState:
    """Return a file's size and state, in one request where it is remote. Raises FileNotFoundError."""
    if not is_remote(path):
        stat = path.stat()
        return FileState(path, stat.st_size, f"{stat.st_size}/{stat.st_mtime_ns}")
    filesystem, name = filesystem_of(path)
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
    """Return the sha256 of a file in that state (of a remote one, its state); cached for the user."""
    if is_remote(path):
        return digest(state)
    cached_path = cache_dir() / "hashes" / f"{location_key(path)}.json"
    if cached_path.exists():
        cached: list[str] = read_json(cached_path)
        if cached[0] == state:
            return cached[1]
    found = sha256_of(path)
    if state_of(path) != state:
        raise changed(path)
    with locked(cached_path.parent):
        write_json(cached_path, [state, found])
    return found


def hash_file(path: Path) -> str:
    """Return a file's sha256; it is read again only when its size or time changed."""
    return file_hash(path, state_of(path))


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
    filesystem, name = filesystem_of(folder)
    if recursive:
        files = files_under(folder)
        if not files:
            raise NotFoundError(f"there is nothing at {folder}", code="not-found")
        return files
    with storage_errors(folder):
        return _files_of(folder, name, filesystem.ls(name, detail=True))


def files_under(folder: Path) -> list[FileState]:
    """Return all files in and below a remote folder, none where it is not there; a bucket that is not there raises."""
    filesystem, name = filesystem_of(folder)
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
    """Open a file for reading; of a remote one, every read is a request of `read_ahead` more bytes than requested."""
    if not is_remote(path):
        return path.open("rb")
    filesystem, name = filesystem_of(path)
    with storage_errors(path):
        if read_ahead:
            return cast(BinaryIO, filesystem.open(name, "rb", cache_type="readahead", block_size=read_ahead))
        return cast(BinaryIO, filesystem.open(name, "rb", cache_type="none"))


def inner_path(path: Path, folder: Path) -> str:
    """Return a file's name inside a folder, with slashes."""
    return str(path).removeprefix(str(folder)).strip("/")


def filesystem_of(path: Path) -> tuple[Any, str]:
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


# --- Folders -------------------------------------------------------------------------------------------------------
