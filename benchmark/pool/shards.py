"""Which tars are meant: those of a folder, of folders in it, of patterns or named ones; and which files are left out.

A pool's own tars are those at the top of its `shards/`. What an import is given may be any of the four, and becomes a
folder and, where not simply all tars at its top are meant, a list of names below it.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from benchmark.pool.foreign import tell_foreign
from benchmark.pool.tars import BLOCK, is_header, other_than_tar
from benchmark.runtime.errors import NotFoundError, UserError
from benchmark.runtime.files import TEMPORARY_SUFFIX
from benchmark.runtime.paths import as_location, is_remote
from benchmark.runtime.storage import FileState, has_file, list_files, open_file, stat_of

MAX_NAMES = 1_000_000  # that a pattern in braces may stand for
MAX_LOOKED_INTO = 1000  # files of other names, whose first bytes tell whether they are tars
MAX_SHOWN = 3
COMPRESSED = "compressed"  # what a file that is left out may be
PACKED = re.compile(r"\.(tar\.(gz|bz2|xz|zst|zstd|lz4|lzma|br|z)|tgz|tbz2?|txz|tzst|zip|7z|rar)$")
# Ends of names that are no tar's: what lies beside tars, and single pictures.
NO_TARS = re.compile(
    r"\.(jsonl?|parquet|csv|tsv|txt|md|npy|npz|html|ya?ml|log|py|sh|lock|idx|index|sha256|md5|arrow|feather"
    r"|jpe?g|png|webp|gif|bmp|tiff?)$"
)
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True)
class Tar(FileState):
    """A tar of a pool, as it was when it was listed."""

    name: str = ""  # below the folder of the tars, where it does not lie at its top: "17/00017.tar"

    @property
    def stem(self) -> str:
        """Return what its index and its metadata shard are called after: the name without its end, in one piece."""
        return flat_stem(self.name) if self.name else self.path.stem

    @property
    def label(self) -> str:
        """Return the name that people know it by."""
        return self.name or self.path.name


def flat_stem(name: str) -> str:
    """Return a name below a folder without its end and without slashes: "17--00017" of "17/00017.tar"."""
    return str(PurePosixPath(name).with_suffix("")).replace("/", "--")


@dataclass(frozen=True)
class LeftOut:
    """A file that looks like samples, and is not taken."""

    name: str  # below the folder
    what: str  # "compressed", "in folders" and the like


@dataclass(frozen=True)
class Found:
    """What somebody means by a folder, patterns or files: the tars, and what beside them is left out."""

    folder: Path
    names: tuple[str, ...] | None  # below the folder; None: all tars at its top
    tars: tuple[Tar, ...]
    left_out: tuple[LeftOut, ...]


def is_tar_name(name: str) -> bool:
    """Tell whether a file is taken for a tar by its name."""
    return name.lower().endswith(".tar")


def tars_in(folder: Path, names: Sequence[str] | None = None) -> list[Tar]:
    """Return the tars at the top of a folder by name, or those of the given names below it, in that order.

    None where there is no such folder. Raises FileNotFoundError where one of the names is not there.
    """
    try:
        if names is None:
            files = [file for file in list_files(folder) if is_tar_name(file.path.name)]
            return [_tar(file) for file in sorted(files, key=lambda file: file.path.name)]
        found: dict[str, FileState] = {}
        for inner in sorted({str(PurePosixPath(name).parent) for name in names}):
            below = folder if inner == "." else folder / inner
            found |= {_below(file.path, folder): file for file in list_files(below)}
    except FileNotFoundError:
        if names is None:
            return []
        raise
    missing = [name for name in names if name not in found]
    if missing:
        raise NotFoundError(
            f"{len(missing):,} of {len(names):,} tars are not in {folder}, such as {missing[0]}", code="tars-missing"
        )
    return [_tar(found[name], name) for name in names]


def find_tars(given: Sequence[Path]) -> Found:
    """Find the tars that `--shards` means: folders, patterns (`*`, `?`, `[...]`, `{0..9}`, `{a,b}`) and files.

    A folder stands for the tars at its top; one that has tars in folders only, for all of these. Raises
    FileNotFoundError, with what is there instead, where there is no tar.
    """
    if len(given) == 1 and not _is_pattern(given[0]) and not has_file(given[0]):
        return _find_in_folder(given[0])
    files: dict[str, FileState] = {}
    left_out: dict[str, LeftOut] = {}
    for location in given:
        found, left = _find(location)
        files |= {str(file.path): file for file in map(_absolute, found)}
        left_out |= {each.name: each for each in left}
    folder = _common_folder([file.path for file in files.values()])
    named = {_below(file.path, folder): file for file in files.values()}
    names = tuple(sorted(named))
    _refuse_one_name(names)
    return Found(folder, names, tuple(_tar(named[name], name) for name in names), tuple(left_out.values()))


def files_left_out(folder: Path) -> list[LeftOut]:
    """Return what in and below a folder looks like samples beside the tars at its top."""
    try:
        files = list_files(folder, recursive=True)
    except FileNotFoundError:
        return []
    return _left_out(files, folder, lambda name: is_tar_name(name) and "/" not in name)


def is_packed(each: LeftOut) -> bool:
    """Tell whether a file is left out because it is compressed."""
    return each.what == COMPRESSED


def tell_left_out(left_out: Sequence[LeftOut], num_taken: int) -> str:
    """Return how many files are left out, of which kinds, with an example of each."""
    kinds: dict[str, list[str]] = {}
    for each in left_out:
        kinds.setdefault(each.what, []).append(each.name)
    parts = [f"{len(names):,} {what}, such as {names[0]}" for what, names in kinds.items()]
    total = len(left_out) + num_taken
    return f"{len(left_out):,} of {total:,} files that look like samples are not taken: {'; '.join(parts)}"


def tell_contents(folder: Path) -> str:
    """Say what a folder without a usable tar holds instead; empty where there is nothing to say."""
    try:
        files = list_files(folder, recursive=True)
    except FileNotFoundError:
        return "there is no such folder"
    if not files:
        return "it is empty"
    left_out = _left_out(files, folder, lambda _: False)
    if left_out:
        advice = "; unpack what is compressed: tars must be plain" if any(map(is_packed, left_out)) else ""
        return tell_left_out(left_out, 0) + advice
    kinds = Counter(file.path.suffix.lower() or "files without an extension" for file in files)
    what = "it holds " + ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(5))
    foreign = tell_foreign(file.path for file in files)
    return f"{what}: {foreign}" if foreign else what


def _find_in_folder(folder: Path) -> Found:
    try:
        files = list_files(folder, recursive=True)
    except FileNotFoundError as error:
        raise NotFoundError(f"--shards {folder}: there is nothing at {folder}", code="shards-not-found") from error
    by_name = {_below(file.path, folder): file for file in files}
    top = sorted(name for name in by_name if is_tar_name(name) and "/" not in name)
    if top:
        left_out = _left_out(files, folder, set(top).__contains__)
        return Found(folder, None, tuple(_tar(by_name[name]) for name in top), tuple(left_out))
    names = tuple(sorted(name for name in by_name if is_tar_name(name)))
    if not names:
        raise NotFoundError(f"--shards {folder}: there is no tar; {tell_contents(folder)}", code="no-tars")
    _refuse_one_name(names)
    left_out = _left_out(files, folder, set(names).__contains__)
    return Found(folder, names, tuple(_tar(by_name[name], name) for name in names), tuple(left_out))


def _find(location: Path) -> tuple[list[FileState], list[LeftOut]]:
    """Return the tars that one of several arguments means, and what it leaves out."""
    text = str(location)
    if not _is_pattern(location):
        if has_file(location):
            return [_named(stat_of(location))], []
        found = _find_in_folder(location)
        return list(found.tars), list(found.left_out)
    files: dict[str, FileState] = {}
    left_out: list[LeftOut] = []
    others: list[Path] = []
    missing: list[str] = []
    listed: dict[str, list[FileState]] = {}
    for spelt in expand_braces(text):
        pattern = as_location(spelt)
        folder, parts = _split_pattern(pattern)
        key = f"{folder} {len(parts) > 1}"
        if key not in listed:
            try:
                listed[key] = list_files(folder, recursive=len(parts) > 1)
            except FileNotFoundError:
                listed[key] = []
        matching = [file for file in listed[key] if _matches(_below(file.path, folder).split("/"), parts)]
        if not matching:
            missing.append(spelt)
        if parts and not any(_has_magic(part) for part in parts):
            files |= {str(file.path): _named(file) for file in matching}
            continue
        files |= {str(file.path): file for file in matching if is_tar_name(file.path.name)}
        left_out += _left_out(matching, folder, is_tar_name)
        others += [file.path for file in matching if not is_tar_name(file.path.name)]
    if missing and files:
        raise NotFoundError(
            f"--shards {text}: {len(missing):,} of the tars that it names are not there, such as {missing[0]}",
            code="tars-missing",
        )
    if not files:
        what = tell_left_out(left_out, 0) if left_out else tell_foreign(others) or "nothing has such a name"
        raise NotFoundError(f"--shards {text}: there is no tar; {what}", code="no-tars")
    return list(files.values()), left_out


def _named(file: FileState) -> FileState:
    """Return a file that was named; raises ValueError where neither name nor first bytes are a tar's."""
    if not is_tar_name(file.path.name) and not is_header(head := _head_of(file.path)):
        what = other_than_tar(head) or "does not begin as a tar does"
        foreign = tell_foreign([file.path])
        raise UserError(f"--shards {f'{file.path} {what}' if foreign is None else foreign}", code="not-a-tar")
    return file


def expand_braces(text: str) -> list[str]:
    """Return what a pattern in braces stands for, as a shell and webdataset read it: `{00..12}`, `{a,b}`."""
    match = next((m for m in BRACES.finditer(text) if RANGE.fullmatch(m[1]) or "," in m[1]), None)
    if match is None:
        return [text]
    bounds = RANGE.fullmatch(match[1])
    if bounds:
        first, last = int(bounds[1]), int(bounds[2])
        if abs(last - first) >= MAX_NAMES:
            raise UserError(f"--shards {text} stands for more than {MAX_NAMES:,} names", code="too-many-names")
        is_padded = any(number != "0" and number.startswith("0") for number in bounds.groups())
        width = max(map(len, bounds.groups())) if is_padded else 0
        numbers = range(first, last + 1) if first <= last else range(first, last - 1, -1)
        parts = [f"{number:0{width}d}" for number in numbers]
    else:
        parts = match[1].split(",")
    return [done for part in parts for done in expand_braces(text[: match.start()] + part + text[match.end() :])]


def _is_pattern(location: Path) -> bool:
    """Tell whether a location is a pattern; a file or folder of just that name is none."""
    text = str(location)
    has_braces = any(RANGE.fullmatch(inner) or "," in inner for inner in BRACES.findall(text))
    if not has_braces and not _has_magic(text):
        return False
    return is_remote(location) or not location.exists()


def _has_magic(text: str) -> bool:
    return any(sign in text for sign in "*?[")


def _split_pattern(pattern: Path) -> tuple[Path, list[str]]:
    """Return the folder that a pattern begins with, and what is left of it, part by part."""
    parts: list[str] = []
    folder = pattern
    while _has_magic(str(folder)) or not parts:
        parts.insert(0, folder.name)
        folder = folder.parent
    return folder, parts


def _matches(names: Sequence[str], parts: Sequence[str]) -> bool:
    """Tell whether a path, part by part, is one that a pattern means; `**` stands for any number of folders."""
    if not parts:
        return not names
    if parts[0] == "**":
        return any(_matches(names[start:], parts[1:]) for start in range(len(names) + 1))
    return bool(names) and fnmatchcase(names[0], parts[0]) and _matches(names[1:], parts[1:])


def _left_out(files: Sequence[FileState], folder: Path, is_taken: Callable[[str], bool]) -> list[LeftOut]:
    left_out = []
    looked_into = 0
    for file in files:
        name = _below(file.path, folder)
        lower = name.lower()
        if is_taken(name) or lower.endswith(TEMPORARY_SUFFIX) or any(part.startswith(".") for part in name.split("/")):
            continue
        if lower.endswith(".tar"):
            left_out.append(LeftOut(name, "in folders"))
        elif PACKED.search(lower):
            left_out.append(LeftOut(name, COMPRESSED))
        elif not NO_TARS.search(lower) and file.size >= BLOCK and looked_into < MAX_LOOKED_INTO:
            looked_into += 1
            if is_header(_head_of(file.path)):
                left_out.append(LeftOut(name, "under other names than *.tar"))
    return left_out


def _head_of(path: Path) -> bytes:
    with open_file(path) as file:
        return file.read(BLOCK)


def _absolute(file: FileState) -> FileState:
    return file if is_remote(file.path) else FileState(file.path.absolute(), file.size, file.state)


def _tar(file: FileState, name: str = "") -> Tar:
    return Tar(file.path, file.size, file.state, name)


def _below(path: Path, folder: Path) -> str:
    """Return a file's name below a folder, with slashes."""
    return str(path).removeprefix("" if str(folder) == "." else str(folder)).strip("/")


def _common_folder(paths: Sequence[Path]) -> Path:
    folders = [path.parent for path in paths]
    first = folders[0]
    if is_remote(first):
        while any(folder != first and first not in folder.parents for folder in folders):
            first = first.parent
        return first
    return Path(os.path.commonpath([folder.absolute() for folder in folders]))


def _refuse_one_name(names: Sequence[str]) -> None:
    """Raise ValueError where two tars would have one index."""
    known: dict[str, str] = {}
    for name in names:
        stem = flat_stem(name)
        if stem in known:
            raise UserError(
                f"--shards: {known[stem]} and {name} would have one name; rename one of them", code="one-name"
            )
        known[stem] = name
