"""Evaluation sets on disk: where they lie, whether all is there, and what they hold.

A set lies in the webdataset layout of CLIP_benchmark and DataComp:

    wds_<task>_test/classnames.txt                          one class a line, an empty one too (classification)
    wds_<task>_test/zeroshot_classification_templates.txt   one prompt a line, {c} stands for the class
    wds_<task>_test/dataset_type.txt                        "retrieval" or "association"
    wds_<task>_test/instances.jsonl                         one cue a line, with keys of images (association)
    wds_<task>_test/test/nshards.txt                        how many tars there are
    wds_<task>_test/test/0.tar, 1.tar, ...                  <key>.{webp,png,jpg}, <key>.cls, <key>.npy, <key>.txt

The folder may also be called `wds_<task>`.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmark.evaluation.kinds.base import Task
from benchmark.evaluation.samples import (
    CLASSNAMES,
    TEMPLATES,
    EvalSet,
    Sample,
    SetError,
    read_image,
    read_samples,
    tar_paths,
)
from benchmark.registry import SUITES, TASKS
from benchmark.runtime.errors import NotFoundError, UserError
from benchmark.runtime.files import digest, read_json, sha256_of, write_json
from benchmark.runtime.locks import locked
from benchmark.runtime.paths import cache_dir
from benchmark.runtime.storage import hash_file
from benchmark.scales import SCALES

MAX_SHOWN = 60  # missing files that are listed
MAX_UNMATCHED = 10  # sets that are shown
CONTENTS_VERSION = 1  # of what is cached of a set's contents, raised by hand

LIST_NAMES = (CLASSNAMES, TEMPLATES, "dataset_type.txt", "instances.jsonl")  # hashed where they are there


@dataclass(frozen=True)
class Contents:
    """What a set holds, by the headers of its tars."""

    num_samples: int  # as the task counts them
    num_images: int
    images: str  # a hash of the images' keys and sizes: sets where it is equal may have the same images
    tar_bytes: int


def check_eval_sets(tasks: Sequence[Task], folders: dict[str, Path], eval_dir: Path) -> None:
    """Raise FileNotFoundError that lists all missing folders and files of the tasks, and how to get them.

    `folders` has each task's set, by task name; `eval_dir` is the folder that was looked in. Sets that lie there and
    that no task is named after are listed too.
    """
    missing: list[Path] = []
    incomplete: list[Task] = []
    for task in tasks:
        folder = folders[task.name]
        paths = [path for path in _needed_files(task, folder) if not path.exists()] if folder.is_dir() else [folder]
        missing += paths
        incomplete += [task] if paths else []
    if (eval_dir / "test" / "nshards.txt").exists():
        raise UserError(
            f"{eval_dir} is an evaluation set itself; eval_dir= must be the folder that contains it",
            code="option-value",
        )
    if missing:
        shown = [str(path.relative_to(eval_dir)) if path.is_relative_to(eval_dir) else str(path) for path in missing]
        more = f" and {len(shown) - MAX_SHOWN} more" if len(shown) > MAX_SHOWN else ""
        where = eval_dir if eval_dir.is_dir() else f"{eval_dir}, which is not a folder"
        there = [task.name for task in tasks if task not in incomplete]
        beside = f" Complete: tasks=[{','.join(there)}]." if there else ""
        if unmatched := _unmatched_sets(eval_dir):
            others = f" and {len(unmatched) - MAX_UNMATCHED} more" if len(unmatched) > MAX_UNMATCHED else ""
            beside += (
                f" Sets that no task is named after: {', '.join(unmatched[:MAX_UNMATCHED])}{others}; a task's set is "
                "called wds_<name>_test or wds_<name>, with - for each / of its name."
            )
        raise NotFoundError(
            f"evaluation data of {len(incomplete)} of {len(tasks)} tasks is missing in {where}: "
            f"{', '.join(shown[:MAX_SHOWN])}{more}. {_how_to_get(incomplete, eval_dir)}{beside}",
            code="eval-set-missing",
        )


def _unmatched_sets(eval_dir: Path) -> list[str]:
    """Return the folders that are evaluation sets and that no task is named after."""
    known = {name for task in TASKS.values() for name in task.folder_names}
    if not eval_dir.is_dir():
        return []
    folders = (path.parent.parent for path in eval_dir.glob("*/test/nshards.txt"))
    return sorted(folder.name for folder in folders if folder.name not in known)


def _how_to_get(tasks: Sequence[Task], eval_dir: Path) -> str:
    """Say where the sets of these tasks come from."""
    is_generated = {name: scale.is_embedded for scale in SCALES.values() for name in _tasks_of(scale.suite)}
    ways = []
    if any(is_generated.get(task.name) for task in tasks):
        ways.append("`winnow pool build` generates the sets of the embedded scales")
    if fetched := [task.name for task in tasks if is_generated.get(task.name) is False]:
        names = "" if len(fetched) > 6 else f" --tasks {' '.join(fetched)}"
        command = f"python scripts/download_evalsets.py --out {shlex.quote(str(eval_dir))}{names}"
        ways.append(f"`{command}` fetches DataComp's")
    return "; ".join([*ways, "eval_dir=... chooses another folder, tasks=... fewer tasks"]) + "."


def _tasks_of(suite_name: str) -> tuple[str, ...]:
    return SUITES[suite_name].tasks + SUITES[suite_name].unscored if suite_name in SUITES else ()


def unexpected_sizes(sets: Sequence[tuple[Task, Path, Contents]]) -> dict[str, str]:
    """Return what is unexpected about sets with other numbers of samples or classes than their tasks declare.

    By task name: `'mnist' has 9,999 images instead of 10,000`.
    """
    faults = {task.name: task.size_faults(folder, contents.num_samples) for task, folder, contents in sets}
    return {name: f"{name!r} has {' and '.join(found)}" for name, found in faults.items() if found}


class BadSetsError(UserError):
    """Some evaluation sets cannot be evaluated, each with the reason; the others are."""

    default_code = "eval-set-invalid"
    unreadable: dict[str, str]
    odd: dict[str, str]
    out_dir: Path | None = None  # where the results of the others are


def bad_sets(unreadable: dict[str, str], odd: dict[str, str], num_tasks: int) -> BadSetsError | None:
    """Return the error about sets that cannot be read or have an unexpected size; None without any."""
    parts = []
    if unreadable:
        count = f"{len(unreadable)} of {num_tasks} evaluation sets cannot be read"
        parts.append(f"{count}: {'; '.join(f'{name!r}: {reason}' for name, reason in unreadable.items())}")
    if odd:
        parts.append(
            f"{len(odd)} of {num_tasks} evaluation sets have an unexpected size: {'; '.join(odd.values())}. Fetch them "
            "again; strict=false evaluates what is there, and its scores are not comparable"
        )
    if not parts:
        return None
    error = BadSetsError(". ".join(parts), code=None if unreadable else "eval-set-size")
    error.unreadable, error.odd = dict(unreadable), dict(odd)
    return error


def reason_of(error: SetError | OSError, folder: Path) -> str:
    """Return why a set in this folder cannot be read; raises the error again where it is of another file."""
    if isinstance(error, SetError):
        return str(error)
    if error.filename is None or not Path(os.fsdecode(error.filename)).is_relative_to(folder):
        raise error
    return f"{error.filename}: {error.strerror or error}"


def hash_eval_set(task: Task, folder: Path) -> str:
    """Return the sha256 over relative names and sha256s of the files that an evaluation reads.

    A file is read again only when its size or time changed.
    """
    paths = [folder / name for name in dict.fromkeys((*LIST_NAMES, *task.set_files))]
    paths += [folder / "test" / "nshards.txt", *tar_paths(folder)]
    lines = sorted(f"{path.relative_to(folder).as_posix()} {_hash_of(path)}\n" for path in paths if path.exists())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _hash_of(path: Path) -> str:
    return hash_file(path) if path.suffix == ".tar" else sha256_of(path)


def read_contents(task: Task, folder: Path, data_hash: str) -> Contents:
    """Return what a set with this hash holds, from the user's cache where it was read before. Raises SetError."""
    cached_path = cache_dir() / "evalsets" / f"{digest([CONTENTS_VERSION, data_hash, task.kind])}.json"
    if cached_path.exists():
        try:
            return Contents(**read_json(cached_path))
        except TypeError:  # of another version of Winnow, or damaged: it is made again
            pass
    task.check_lists(folder)
    eval_set = read_eval_set(task, folder)
    contents = Contents(
        num_samples=task.count_samples(eval_set),
        num_images=len(eval_set.samples),
        images=digest([[sample.key, sample.size] for sample in eval_set.samples]),
        tar_bytes=sum(path.stat().st_size for path in tar_paths(folder)),
    )
    with locked(cached_path.parent):  # evaluations side by side write the same files
        write_json(cached_path, contents.__dict__)
    return contents


def read_eval_set(task: Task, folder: Path) -> EvalSet:
    """Read a task's set. Raises SetError."""
    return EvalSet(folder, read_samples(folder, task.label_extensions))


def hash_images(samples: Sequence[Sample]) -> str:
    """Return a hash of the bytes of all images, in order."""
    found = hashlib.sha256()
    for sample in samples:
        found.update(hashlib.sha256(read_image(sample)).digest())
    return found.hexdigest()


def _needed_files(task: Task, folder: Path) -> list[Path]:
    files = [folder / name for name in task.set_files]
    count_path = folder / "test" / "nshards.txt"
    try:
        tars = tar_paths(folder) if count_path.exists() else []
    except SetError:  # which is reported once the set is read
        tars = []
    return [*files, count_path, *tars]
