"""Evaluation sets from the Hugging Face hub: what a set has, what of it is there, and how the rest comes.

A set keeps the commit that it was begun with (`download.json`). Files arrive under `.partial/` and are renamed when
their hash is right; what says that a set is whole comes last: `test/nshards.txt`, or for rows `download.json` itself.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from benchmark.evaluation.tasks import Task
from benchmark.runtime.errors import UserError
from benchmark.runtime.fetch import PARTIAL_SUFFIX
from benchmark.runtime.files import Json, read_json
from benchmark.runtime.storage import file_hash, state_of
from benchmark.toolbox.hub_rows import rows_folder
from scripts.download.record import DOWNLOAD_RECORD_NAME, PARTIAL_NAME

SHARD_COUNT = "test/nshards.txt"
TEXT_NAMES = ("classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt", SHARD_COUNT)
TAR_NAME = re.compile(r"test/(0|[1-9]\d{0,5})\.tar")
ROWS_NAME = re.compile(r"\w[\w.=-]*\.parquet", re.ASCII)
REPO_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")

MAX_PLAIN_BYTES = 16 << 20  # of a file in git itself; the hub takes none above 10 MB


@dataclass(frozen=True)
class SetFile:
    """A file of a set, as the hub or the set's record has it."""

    path: str  # in the repository
    size: int  # in bytes
    sha256: str | None  # None: git keeps it, and it was not here yet
    blob: str = ""  # git's hash, where `sha256` is None

    def has_bytes(self, data: bytes) -> bool:
        """Tell whether these are the file's bytes."""
        if self.sha256 is None:
            return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == self.blob
        return hashlib.sha256(data).hexdigest() == self.sha256


@dataclass(frozen=True)
class Source:
    """Where the hub has the data of one task, or of several, and where they go."""

    tasks: tuple[str, ...]
    repo: str
    place: Path  # the set's folder; of rows, the folder of the repository's commits
    has_rows: bool

    @property
    def title(self) -> str:
        return ", ".join(self.tasks)


@dataclass(frozen=True)
class EvalSet:
    """A source at a commit: its files by the names that they get in `folder`."""

    source: Source
    revision: str
    commit: str
    files: dict[str, SetFile]
    num_ignored: int = 0  # files of the repository that are no part of a set

    @property
    def folder(self) -> Path:
        return self.source.place / self.commit if self.source.has_rows else self.source.place

    @property
    def size(self) -> int:
        """Return the set's bytes."""
        return sum(file.size for file in self.files.values())

    def partial_path(self, name: str) -> Path:
        """Return where a file arrives; each in a folder of its own, because a fetch locks the folder."""
        return self.source.place / PARTIAL_NAME / str(self.files[name].sha256)[:32] / Path(name).name


@dataclass(frozen=True)
class Plan:
    """What of a set is there."""

    eval_set: EvalSet
    there: dict[str, str]  # files with the right bytes, and their states
    missing: list[str]
    other: list[str]  # files of these names with other bytes, and files that are not the set's

    @property
    def coming(self) -> list[str]:
        """Return the files to fetch, what says that the set is whole last."""
        names = self.missing + [name for name in self.other if name in self.eval_set.files]
        return sorted(names, key=lambda name: (name == SHARD_COUNT, *in_order(name)))

    @property
    def needed(self) -> int:
        """Return the bytes still to come, without those of files that broke off."""
        files = self.eval_set.files
        begun = [self.eval_set.partial_path(name) for name in self.coming if files[name].sha256 is not None]
        parts = [path for whole in begun for path in (whole, whole.with_name(whole.name + PARTIAL_SUFFIX))]
        arrived = sum(path.stat().st_size for path in parts if path.exists())
        return sum(files[name].size for name in self.coming) - arrived


def sources_of(tasks: Iterable[Task], out: Path, owner: str) -> list[Source]:
    """Return where the tasks' data come from, each source once."""
    by_place: dict[tuple[str, Path, bool], list[str]] = defaultdict(list)
    for task in tasks:
        repo = task.hub_rows or f"{owner}/{task.folder_name}"
        if not REPO_NAME.fullmatch(repo) or ".." in repo:
            raise UserError(
                f"task {task.name!r}: {repo!r} is not the name of a data set, such as nlphuji/winogavil",
                code="task-invalid",
            )
        has_rows = bool(task.hub_rows)
        place = out / rows_folder(repo) if has_rows else out / task.folder_name
        by_place[repo, place, has_rows].append(task.name)
    return [Source(tuple(names), repo, place, rows) for (repo, place, rows), names in by_place.items()]


def read_record(source: Source, path: Path) -> EvalSet:
    """Read which files a set has; raises ValueError where the record names what no set has."""
    value = read_json(path)
    try:
        files = {
            str(name): SetFile(str(file["path"]), int(file["size"]), str(file["sha256"]))
            for name, file in value["files"].items()
        }
        eval_set = EvalSet(replace(source, repo=value["repo"]), value["revision"], value["commit"], files)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{path} is not a record of a download ({error!r}); delete it and fetch the set again",
            code="record-damaged",
        ) from error
    wrong = [name for name in files if not (ROWS_NAME.fullmatch(name) if source.has_rows else is_known(name))]
    if source.has_rows and path.parent.name != eval_set.commit:
        wrong.append(f"commit {eval_set.commit}")
    if wrong or not COMMIT.fullmatch(str(eval_set.commit)) or not REPO_NAME.fullmatch(str(eval_set.source.repo)):
        said = wrong or [eval_set.source.repo, eval_set.commit]
        raise UserError(
            f"{path} has {said}, which no set has; delete it and fetch the set again", code="record-damaged"
        )
    if eval_set.source.repo != source.repo:
        raise UserError(
            f"{path.parent} came from {eval_set.source.repo} and not from {source.repo}; choose another folder",
            code="record-differs",
        )
    return eval_set


def record_paths(source: Source) -> list[Path]:
    if source.has_rows:
        return [
            path
            for path in sorted(source.place.glob(f"*/{DOWNLOAD_RECORD_NAME}"))
            if COMMIT.fullmatch(path.parent.name)
        ]
    return [path for path in [source.place / DOWNLOAD_RECORD_NAME] if path.exists()]


def is_known(name: str) -> bool:
    return name in TEXT_NAMES or TAR_NAME.fullmatch(name) is not None


def make_plan(eval_set: EvalSet) -> Plan:
    """Compare a set with its folder; a file is hashed only where size and time are not those of a verified one."""
    record_path = eval_set.folder / DOWNLOAD_RECORD_NAME
    recorded: Mapping[str, Json] = read_json(record_path).get("files", {}) if record_path.exists() else {}
    there: dict[str, str] = {}
    missing, other = [], []
    for name, file in eval_set.files.items():
        path = eval_set.folder / name
        if not path.exists():
            missing.append(name)
        elif _is_right(path, file, recorded.get(name, {})):
            there[name] = state_of(path)
        else:
            other.append(name)
    other += extra_files(eval_set)
    if (missing or other) and SHARD_COUNT in there:
        del there[SHARD_COUNT]
        missing.append(SHARD_COUNT)  # else the set would be taken for a whole one while the others come
    return Plan(eval_set, there, missing, other)


def _is_right(path: Path, file: SetFile, recorded: Mapping[str, Json]) -> bool:
    if path.stat().st_size != file.size:
        return False
    if file.sha256 is None:
        return file.size <= MAX_PLAIN_BYTES and file.has_bytes(path.read_bytes())
    state = state_of(path)
    if recorded.get("state") == state and recorded.get("sha256") == file.sha256:
        return True
    return file_hash(path, state) == file.sha256


def extra_files(eval_set: EvalSet) -> list[str]:
    """Name the files that an evaluation would read and that are not the set's."""
    pattern = "*.parquet" if eval_set.source.has_rows else "test/*.tar"
    names = [path.relative_to(eval_set.folder).as_posix() for path in eval_set.folder.glob(pattern)]
    return sorted(set(names) - set(eval_set.files))


def in_order(name: str) -> tuple[bool, int, str]:
    tar = TAR_NAME.fullmatch(name)
    return (not name.endswith(".txt"), int(tar[1]) if tar else 0, name)
