"""Tar shards: written small and reproducible, walked member by member, damage found, counted and stepped over."""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmark.runtime.errors import UserError
from benchmark.runtime.files import atomic_path

# By extension, what Pillow may decode: its other decoders are not for a stranger's file.
IMAGE_FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}
BLOCK = 512  # bytes; tars are made of these
ARCHIVE_END = 20 * BLOCK  # tars are padded to a multiple of this
ZEROS = bytes(BLOCK)
READ_AHEAD = 8192  # holds what lies between one picture and the next: the JSON, the caption and three headers
SEARCH_SIZE = 1 << 20  # read at a time where the next sound header is looked for
MAX_DIGITS = 20  # of a number in a pax header
MAX_DAMAGE = 100  # places that are listed for a tar; more are counted
MAX_END = 1 << 20  # bytes of zeros at the end of a tar; more are a download that was not finished
MAX_EXTENDED = 1 << 16  # bytes of a long name or of a pax header

COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
# What else is found where a tar should be: its first bytes in lower case, behind white space.
OTHERS = {
    b"<!doctype": "is a web page (HTML) and no tar: what was asked for was not sent; fetch it again",
    b"<html": "is a web page (HTML) and no tar: what was asked for was not sent; fetch it again",
    b"<?xml": "is an XML document and no tar, as storages send that refuse; fetch it again",
    b'{"': "is a JSON document and no tar, as servers send that refuse; fetch it again",
    b"version https://git-lfs": "is a pointer of Git LFS and not the tar that it stands for; run `git lfs pull`",
    b"par1": "is a parquet file and no tar",
    b"pk\x03\x04": "is a zip archive and no tar; unpack it, and pack its files as a tar",
}

ReadAt = Callable[[int, int], bytes]  # (offset, length) -> bytes there, fewer at the end of the file

_WITHOUT_DATA = b"123456"  # links, devices, folders
_REGULAR, _FOLDER, _LONG_NAME, _LONG_LINK, _PAX, _PAX_OF_SUN, _PAX_GLOBAL = b"0\x007", ord("5"), *b"LKxXg"
_MODULUS = 65521  # of Adler-32


class Member(NamedTuple):
    """A plain file in a tar, its name taken apart as webdataset does: the key ends at the base name's first dot."""

    name: str
    key: str
    extension: str  # lower case
    offset: int  # of the data, in bytes
    size: int


@dataclass
class Damage:
    """What is wrong in a tar: the places, the first `MAX_DAMAGE` of them listed."""

    count: int = 0
    places: list[str] = field(default_factory=list)  # "at byte N ..."

    def add(self, at: int, what: str) -> None:
        """Note one place."""
        self.count += 1
        if len(self.places) < MAX_DAMAGE:
            self.places.append(f"at byte {at} {what}")

    def __str__(self) -> str:
        more = f" (and {self.count - 1} more)" if self.count > 1 else ""
        return f"{self.places[0]}{more}" if self.places else "none"


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Write members (name, bytes) as a plain USTAR archive, atomically; the same members give the same bytes.

    USTAR with fixed owner and time takes half the space of PAX headers on small samples.
    """
    with atomic_path(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def member_header(name: str, size: int) -> bytes:
    """Return the header that `write_tar` gives a member: 512 bytes.

    Raises ValueError where a plain header has no room for the name or the size.
    """
    encoded = name.encode("utf-8", "surrogateescape")
    if len(encoded) > 100:
        info = tarfile.TarInfo(name)
        info.size = size
        return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "surrogateescape")
    if size >= 1 << 33:
        raise UserError(
            f"member {name!r} has {size} bytes; a plain tar header holds less than 8 GiB", code="member-too-large"
        )
    length = b"%011o" % size
    total = _TEMPLATE_SUM + sum(encoded) + sum(length)
    return b"".join(
        (encoded.ljust(100, b"\0"), _TEMPLATE[100:124], length, _TEMPLATE[135:148], b"%06o\0 " % total, _REST)
    )


def padding(size: int) -> int:
    """Return how many zeros follow a member's data."""
    return -size % BLOCK


def iter_members(path: Path) -> Iterator[Member]:
    """Yield the files of a whole, uncompressed tar in its order, reading headers only.

    Raises ValueError, with the tar and the place, where it is damaged or cut off or holds links and the like.
    """
    damage = Damage()
    with path.open("rb") as file:

        def read(offset: int, length: int) -> bytes:
            file.seek(offset)
            return file.read(length)

        for member in scan_tar(reading_ahead(read), path.stat().st_size, damage):
            if damage.count:
                break
            yield member
    if damage.count:
        raise UserError(f"{path} is damaged: {damage}", code="tar-damaged")


def reading_ahead(read: ReadAt) -> ReadAt:
    """Return a reader that reads a little more than requested, and keeps the last piece.

    One request then serves all that lies between one picture and the next.
    """
    start, piece = 0, b""

    def read_ahead(offset: int, length: int) -> bytes:
        nonlocal start, piece
        into = offset - start
        if into < 0 or into + length > len(piece):
            start, into = offset, 0
            piece = read(offset, max(length, READ_AHEAD))
        return piece[into : into + length]

    return read_ahead


def scan_tar(read: ReadAt, size: int, damage: Damage) -> Iterator[Member]:
    """Yield the plain files of an uncompressed tar of `size` bytes in its order; what is wrong goes into `damage`.

    Behind a damaged header the walk resumes at the next sound one, so a damaged place loses only what stands
    there. A tar is whole where zeros end it, and nothing follows them. `read` is best one that reads ahead.
    """
    position = 0
    name_given: str | None = None  # by a header of its own, for the next member
    size_given: int | None = None
    while True:
        header = read(position, BLOCK)
        if header == ZEROS:
            after = _after_zeros(read, position, size)
            if after == size and size - position > MAX_END:
                damage.add(position, f"{size - position:,} zeros end the tar; was it not written to its end?")
            if after == size:
                return
            found = _next_header(read, after // BLOCK * BLOCK, size)
            damage.add(position, _skipping("zeros stand before the tar's end", position, found, size))
            if found == size:
                return
            position, name_given, size_given = found, None, None
            continue
        if len(header) < BLOCK:
            if position == 0 and (what := other_than_tar(header)):
                damage.add(0, f"the file {what}")
                return
            where = "inside a header" if header else "between two members, or before its end"
            damage.add(position, f"the tar is cut off {where}")
            return
        if not is_header(header):
            what = other_than_tar(header) if position == 0 else None
            is_compressed = position == 0 and header.startswith(tuple(COMPRESSED))
            found = size if is_compressed else _next_header(read, position + BLOCK, size)
            if what and found == size:
                damage.add(0, f"the file {what}")
                return
            damage.add(position, _skipping("stands no header of a member", position, found, size))
            if found == size:
                return
            position, name_given, size_given = found, None, None
            continue
        kind, data = header[156], position + BLOCK
        length = _number(header[124:136]) if size_given is None else size_given
        if kind in _WITHOUT_DATA:
            length = 0  # whatever it says, as in tarfile
        if length < 0 or data + length > size:
            damage.add(position, f"the member {_name(header)!r} is cut off: {size - data:,} of {length:,} bytes")
            return
        position = data + length + (-length % BLOCK)
        if kind in _REGULAR:
            name = _name(header) if name_given is None else name_given
            name_given = size_given = None
            if not name.endswith("/"):  # a folder, in very old tars
                folder, slash, base = name.removeprefix("./").rpartition("/")
                stem, dot, extension = base.partition(".")
                if not stem or not dot:
                    continue  # no member of a sample, in webdataset's eyes either, such as ._0.jpg of macOS
                yield Member(name, folder + slash + stem, extension.lower(), data, length)
        elif kind in (_LONG_NAME, _PAX, _PAX_OF_SUN):
            if length > MAX_EXTENDED:
                damage.add(data, f"a member's name takes {length:,} bytes")
                continue
            content = read(data, length)
            if kind == _LONG_NAME:
                name_given = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
            else:
                fields = _pax_fields(content)
                name_given, size_given = fields.get("path", name_given), _whole(fields.get("size"))
        elif kind in (_FOLDER, _LONG_LINK, _PAX_GLOBAL):
            if kind == _FOLDER:
                name_given = size_given = None
        else:
            damage.add(data - BLOCK, f"the member {name_given or _name(header)!r} is not a plain file")
            name_given = size_given = None


def other_than_tar(head: bytes) -> str | None:
    """Say what a file's first bytes are where they are known to begin something else than a tar: "is ...", or None."""
    if not head:
        return "is empty"
    for begins, program in COMPRESSED.items():
        if head.startswith(begins):
            return f"is compressed; tars must be plain, so that their members have a place: {program} it"
    start = head.lstrip().lower()
    return next((what for begins, what in OTHERS.items() if start.startswith(begins)), None)


def is_header(header: bytes) -> bool:
    """Tell whether 512 bytes are a member's header: whether its checksum is right.

    It is the sum of the bytes, its own field taken for spaces. Adler-32's lower half is that sum plus 1, modulo 65521,
    and eleven times as quick as Python's.
    """
    if len(header) < BLOCK:
        return False
    stored = _number(header[148:155])  # six digits and a NUL as a rule
    if stored < 0 or _number(header[124:136]) < 0:
        return False
    plain = (zlib.adler32(header) & 0xFFFF) - 1 - sum(header[148:156]) + 8 * ord(" ")
    if (stored - plain) % _MODULUS == 0:
        return True
    signed = sum(byte - 256 if byte > 127 else byte for byte in header[:148] + header[156:]) + 8 * ord(" ")
    return stored == signed  # some old programs add up signed bytes


def _number(text: bytes) -> int:
    """Read a header's number, octal or binary; -1 where it is none."""
    try:
        return max(int(text[:-1], 8), -1)
    except ValueError:
        pass
    if text[0] == 0x80:
        return int.from_bytes(text[1:])
    try:
        return max(int(text.split(b"\0", 1)[0].strip() or b"0", 8), -1)
    except ValueError:
        return -1


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    if header[345] and header[257:263] == b"ustar\0":
        name = header[345:500].split(b"\0", 1)[0] + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def _pax_fields(content: bytes) -> dict[str, str]:
    """Read the records "length key=value" of an extended header, as far as they are well formed."""
    fields: dict[str, str] = {}
    while content:
        digits, _, _ = content.partition(b" ")
        if not digits.isdigit() or len(digits) > MAX_DIGITS or not len(digits) + 1 < int(digits) <= len(content):
            break
        key, _, value = content[len(digits) + 1 : int(digits) - 1].partition(b"=")
        fields[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        content = content[int(digits) :]
    return fields


def _whole(text: str | None) -> int | None:
    if text is None or not text.isascii() or not text.isdigit() or len(text) > MAX_DIGITS:
        return None
    return int(text)


def _after_zeros(read: ReadAt, position: int, size: int) -> int:
    """Return where the zeros end that begin at a place: at the first other byte, or at the end of the file."""
    while position < size:
        rest = read(position, SEARCH_SIZE)
        if not rest:
            return size
        other = rest.lstrip(b"\0")
        if other:
            return position + len(rest) - len(other)
        position += len(rest)
    return size


def _skipping(what: str, position: int, found: int, size: int) -> str:
    return f"{what}; {found - position:,} bytes are skipped" if found < size else f"{what}, nor a header after it"


def _next_header(read: ReadAt, position: int, size: int) -> int:
    """Return where the next sound header stands, or `size`."""
    while position < size:
        piece = read(position, SEARCH_SIZE)
        blocks = np.frombuffer(piece, np.uint8)[: len(piece) // BLOCK * BLOCK].reshape(-1, BLOCK)
        if not len(blocks):
            break
        for number in np.flatnonzero((blocks[:, 257:262] == np.frombuffer(b"ustar", np.uint8)).all(axis=1)).tolist():
            if is_header(blocks[number].tobytes()):
                return position + int(number) * BLOCK
        position += len(blocks) * BLOCK
    return size


_TEMPLATE = tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT)
_REST = _TEMPLATE[156:]
_TEMPLATE_SUM = sum(_TEMPLATE[:124]) + sum(_TEMPLATE[135:148]) + 8 * ord(" ") + sum(_REST)
