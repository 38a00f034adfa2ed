"""Files that are written whole or not at all, and what they hold: JSON, text, hashes."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmark.runtime.errors import UserError

Json = Any  # what json.dumps accepts


TEMPORARY_SUFFIX = ".tmp"


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
    """Read a text file of a user's; raises UserError that names the file where it is not text."""
    try:
        return path.read_text(encoding=encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}", code="text-damaged") from error


def digest(value: Json) -> str:
    """Return the sha256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
