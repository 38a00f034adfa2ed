"""A remote folder as a local one: fetched first, and what is finished there is carried back."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmark.runtime.console import say, warn
from benchmark.runtime.errors import NotFoundError, UserError, one_line
from benchmark.runtime.files import TEMPORARY_SUFFIX, Json, atomic_path, followed_renames, write_json
from benchmark.runtime.locks import LOCK_NAME, locked
from benchmark.runtime.paths import cache_dir, is_remote, location_key
from benchmark.runtime.storage import (
    FileState,
    files_under,
    filesystem_of,
    has_file,
    inner_path,
    stat_of,
    state_of,
    storage_errors,
)

MANIFEST_NAME = "manifest.json"


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
        mirror.fetch({inner_path(file.path, location): file for file in files_under(location)})
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
    filesystem, name = filesystem_of(folder / f"writable{TEMPORARY_SUFFIX}")
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
                filesystem, remote_name = filesystem_of(file.path)
                with atomic_path(path) as temporary, storage_errors(file.path):
                    filesystem.get_file(remote_name, str(temporary))
                self._know(name, [file.state, state_of(path)])
        finally:
            self._save()
        self.inodes = {name: inode for name, inode in _finished_files(self.folder) if name in self.manifest}

    def follow(self, source: Path, target: Path) -> None:
        """Upload a file that was just renamed, after everything else that is finished, so that records come last.

        New files are recognised by name and inode, which a listing has; what is written into a file in place goes up at
        the end, as does, at the latest, what another process replaces twice between two renames of this one.
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
            filesystem, remote_name = filesystem_of(self.remote / name)
            with storage_errors(self.remote / name):
                filesystem.cp_file(filesystem_of(self.remote / moved)[1], remote_name)
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
        filesystem, remote_name = filesystem_of(target)
        with storage_errors(target):
            filesystem.put_file(str(self.folder / name), remote_name)
        self._note(name, inode)

    def _note(self, name: str, inode: int) -> None:
        self._know(name, [state_of(self.remote / name), state_of(self.folder / name)])
        self.inodes[name] = inode

    def _remove(self, names: set[str]) -> None:
        for name in sorted(names):
            filesystem, remote_name = filesystem_of(self.remote / name)
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
    """Tell whether a file is appended to during the work, and uploaded at the end."""
    return name.name == "costs.jsonl" or "logs" in name.parts


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
        found = {f"{name}/{inner_path(file.path, location)}": file for file in files_under(folder)}
        files |= found
        missing += [] if found else [inner_path(folder, location)]
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
