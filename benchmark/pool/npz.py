"""The .npz beside a metadata shard: the shapes, sizes and values of its arrays."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile

from benchmark.runtime.errors import UserError, one_line
from benchmark.runtime.storage import open_file, storage_errors

NPZ_READ_AHEAD = 4 << 20  # bytes; numpy asks for small pieces of an array
FOOTER_READ_AHEAD = 1 << 16


# What reading a damaged .npz raises: numpy parses the header of an array as Python.
DAMAGE = (zipfile.BadZipFile, zlib.error, tokenize.TokenError, ValueError, SyntaxError, EOFError, KeyError, OSError)


def npz_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Read the shapes of an .npz's arrays from their headers."""
    shapes = {}
    try:
        with (
            storage_errors(path),
            open_file(path, read_ahead=FOOTER_READ_AHEAD) as file,
            zipfile.ZipFile(file) as archive,
        ):
            for name in archive.namelist():
                with archive.open(name) as member:
                    version = np.lib.format.read_magic(member)
                    read = (
                        np.lib.format.read_array_header_1_0
                        if version == (1, 0)
                        else np.lib.format.read_array_header_2_0
                    )
                    shapes[name.removesuffix(".npy")] = read(member)[0]
    except (FileNotFoundError, PermissionError):
        raise
    except DAMAGE as error:
        raise _damaged(path, error) from error
    return shapes


def array_sizes(path: Path) -> dict[str, int]:
    """Return the bytes that each array takes in the file."""
    try:
        with open_file(path) as file, zipfile.ZipFile(file) as archive:
            return {info.filename.removesuffix(".npy"): info.compress_size for info in archive.infolist()}
    except DAMAGE as error:
        raise _damaged(path, error) from error


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Read arrays by their names, each (rows, dimension)."""
    try:
        with (
            storage_errors(path),
            open_file(path, read_ahead=NPZ_READ_AHEAD) as file,
            NpzFile(file, allow_pickle=False) as arrays,  # np.load would read the beginning too
        ):
            return {name: arrays[name] for name in names}
    except (FileNotFoundError, PermissionError):
        raise
    except DAMAGE as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: BaseException) -> UserError:
    return UserError(f"{path} is damaged ({one_line(error)}); fetch or build it again", code="file-damaged")
