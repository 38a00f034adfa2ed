"""Tar shards: written small and reproducible, walked member by member, damage found."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmark.stage import atomic_path

# By extension, what Pillow may decode: its other decoders are no business of a stranger's file.
IMAGE_FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}
BLOCK = 512  # bytes; tars are made of these


@dataclass(frozen=True)
class Member:
    """A plain file in a tar, its name taken apart as webdataset does: the key ends at the base name's first dot."""

    name: str
    key: str
    extension: str  # lower case
    offset: int  # of the data, in bytes
    size: int


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Write members (name, bytes) as a plain USTAR archive, atomically; the same members give the same bytes.

    USTAR with fixed owner and time takes half the space of PAX headers on small samples.
    """
    with atomic_path(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def iter_members(path: Path) -> Iterator[Member]:
    """Yield the files of a whole, uncompressed tar in its order, reading headers only.

    Raises ValueError, with the tar and the place, where it is damaged or cut off or holds links and the like.
    """
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                if info.isdir():
                    continue
                if not info.isreg() or info.issparse():
                    raise ValueError(f"{path}: member {info.name!r} is not a plain file")
                if info.offset_data + info.size > size:
                    raise ValueError(f"{path} is damaged: member {info.name!r} is cut off at byte {size}")
                folder, _, base = info.name.removeprefix("./").rpartition("/")
                stem, _, extension = base.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                yield Member(info.name, key, extension.lower(), info.offset_data, info.size)
            end = tar.offset
    except tarfile.TarError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    # tarfile stops quietly at a header that it cannot read and at a cut between members; zeros end a whole archive.
    with path.open("rb") as file:
        file.seek(end)
        if file.read(BLOCK) != bytes(BLOCK):
            raise ValueError(f"{path} is damaged: at byte {end} stands neither a member nor the end of the archive")
