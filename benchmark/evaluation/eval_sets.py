"""Evaluation sets on disk: what they hold, whether it is all there, and the pixels of an image.

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
import io
import json
import math
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from benchmark.evaluation.predictions import GROUP_RADIX
from benchmark.evaluation.tasks import Association, GroupedClassification, Retrieval, Task, ZeroShotClassification
from benchmark.pool.tars import IMAGE_FORMATS, Member, iter_members
from benchmark.registry import SUITES, TASKS
from benchmark.runtime.errors import NotFoundError, UserError
from benchmark.runtime.files import digest, read_json, sha256_of, write_json
from benchmark.runtime.locks import locked
from benchmark.runtime.paths import cache_dir
from benchmark.runtime.storage import hash_file
from benchmark.scales import SCALES

MAX_IMAGE_BYTES = 64 << 20
MAX_LABEL_BYTES = 1 << 20  # of a .cls, .npy or .txt
MAX_GROUPS = 100_000  # whose accuracies are written one by one
MAX_SHOWN = 60  # files that are missing
MAX_STRANGE = 10  # sets that no task is called by
CONTENTS_VERSION = 1  # of what is kept of a set's contents, raised by hand

LIST_NAMES = ("classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt", "instances.jsonl")
RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class SetError(UserError):
    """An evaluation set that is there and cannot be read; it does not keep other sets from being evaluated."""

    default_code = "eval-set-invalid"


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes a model's input: open_clip's evaluation transform with these settings."""

    image_size: int  # pixels, of both sides
    mean: tuple[float, ...]  # of each channel, where pixels go from 0 to 1
    std: tuple[float, ...]
    interpolation: str = "bicubic"  # or bilinear
    resize_mode: str = "shortest"  # side to image_size, then a centre crop; or squash: both sides; or longest

    def __post_init__(self) -> None:
        if self.interpolation not in RESAMPLING:
            raise UserError(
                f"interpolation {self.interpolation!r} is not one of {', '.join(RESAMPLING)}", code="task-invalid"
            )
        if self.resize_mode not in ("shortest", "squash", "longest"):
            raise UserError(
                f"resize_mode {self.resize_mode!r} is not one of shortest, squash, longest", code="task-invalid"
            )


@dataclass(frozen=True)
class Contents:
    """What a set holds, by the headers of its tars."""

    num_samples: int  # images; of an association task, cues
    num_images: int
    images: str  # a hash of the images' keys and sizes: sets where it is equal may have the same images
    tar_bytes: int


@dataclass(frozen=True)
class Sample:
    """One sample of an evaluation set; its image stays in the tar until it is needed."""

    key: str
    image_name: str  # of the tar's member
    tar_path: Path
    offset: int  # of the image, in bytes
    size: int
    labels: dict[str, bytes]  # extension (cls, npy, txt) -> contents


def check_eval_sets(tasks: Sequence[Task], folders: dict[str, Path], eval_dir: Path) -> None:
    """Raise FileNotFoundError that lists every folder and file that the tasks need and lack, and how to get them.

    `folders` has each task's set, by task name; `eval_dir` is the folder that was looked in. Sets that lie there under
    names that no task has are named.
    """
    missing: list[Path] = []
    lacking: list[Task] = []
    for task in tasks:
        folder = folders[task.name]
        paths = [path for path in _needed_files(task, folder) if not path.exists()] if folder.is_dir() else [folder]
        missing += paths
        lacking += [task] if paths else []
    if (eval_dir / "test" / "nshards.txt").exists():
        raise UserError(
            f"{eval_dir} is an evaluation set itself; eval_dir= is the folder that it lies in", code="option-value"
        )
    if missing:
        shown = [str(path.relative_to(eval_dir)) if path.is_relative_to(eval_dir) else str(path) for path in missing]
        more = f" and {len(shown) - MAX_SHOWN} more" if len(shown) > MAX_SHOWN else ""
        where = eval_dir if eval_dir.is_dir() else f"{eval_dir}, which is no folder"
        there = [task.name for task in tasks if task not in lacking]
        what_is_there = f" There is all of tasks=[{','.join(there)}]." if there else ""
        if strange := _strange_sets(eval_dir):
            others = f" and {len(strange) - MAX_STRANGE} more" if len(strange) > MAX_STRANGE else ""
            what_is_there += (
                f" There are sets under names that no task has: {', '.join(strange[:MAX_STRANGE])}{others}; a task's "
                "set is wds_<name>_test or wds_<name>, with - for each / of its name."
            )
        raise NotFoundError(
            f"evaluation data of {len(lacking)} of {len(tasks)} tasks is missing in {where}: "
            f"{', '.join(shown[:MAX_SHOWN])}{more}. {_how_to_get(lacking, eval_dir)}{what_is_there}",
            code="eval-set-missing",
        )


def _strange_sets(eval_dir: Path) -> list[str]:
    """Return the folders that are evaluation sets and that no task's set is called by."""
    known = {name for task in TASKS.values() for name in task.folder_names}
    if not eval_dir.is_dir():
        return []
    folders = (path.parent.parent for path in eval_dir.glob("*/test/nshards.txt"))
    return sorted(folder.name for folder in folders if folder.name not in known)


def _how_to_get(tasks: Sequence[Task], eval_dir: Path) -> str:
    """Say where the sets of these tasks come from."""
    is_drawn = {name: scale.is_embedded for scale in SCALES.values() for name in _tasks_of(scale.suite)}
    ways = []
    if any(is_drawn.get(task.name) for task in tasks):
        ways.append("`winnow pool build` draws the sets of the embedded scales")
    if fetched := [task.name for task in tasks if is_drawn.get(task.name) is False]:
        names = "" if len(fetched) > 6 else f" --tasks {' '.join(fetched)}"
        command = f"python scripts/download_evalsets.py --out {shlex.quote(str(eval_dir))}{names}"
        ways.append(f"`{command}` fetches DataComp's")
    return "; ".join([*ways, "eval_dir=... names another folder, tasks=... narrows"]) + "."


def _tasks_of(suite_name: str) -> tuple[str, ...]:
    return SUITES[suite_name].tasks + SUITES[suite_name].unscored if suite_name in SUITES else ()


def odd_sizes(sets: Sequence[tuple[Task, Path, Contents]]) -> dict[str, str]:
    """Return what is odd about the sets that have not the number of samples or classes that their tasks are known by.

    By task name: `'mnist' has 9,999 images instead of 10,000`.
    """
    told = {}
    for task, folder, contents in sets:
        differences = []
        if task.size is not None and contents.num_samples != task.size:
            noun = "cues" if isinstance(task, Association) else "images"
            differences.append(f"{contents.num_samples:,} {noun} instead of {task.size:,}")
        if isinstance(task, ZeroShotClassification) and task.num_classes is not None:
            found = len(read_lines(folder / "classnames.txt"))
            if found != task.num_classes:
                differences.append(f"{found} classes instead of {task.num_classes}")
        if differences:
            told[task.name] = f"{task.name!r} has {' and '.join(differences)}"
    return told


class BadSetsError(UserError):
    """Some evaluation sets cannot be evaluated, each with the reason; the others are."""

    default_code = "eval-set-invalid"
    unreadable: dict[str, str]
    odd: dict[str, str]
    out_dir: Path | None = None  # where the results of the others are


def bad_sets(unreadable: dict[str, str], odd: dict[str, str], num_tasks: int) -> BadSetsError | None:
    """Return the error about sets that cannot be read or are not whole, of those of so many tasks; None without any."""
    parts = []
    if unreadable:
        count = f"{len(unreadable)} of {num_tasks} evaluation sets cannot be read"
        parts.append(f"{count}: {'; '.join(f'{name!r}: {reason}' for name, reason in unreadable.items())}")
    if odd:
        parts.append(
            f"{len(odd)} of {num_tasks} evaluation sets are not whole: {'; '.join(odd.values())}. Fetch them again; "
            "strict=false evaluates what is there, which is not comparable"
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


def prompt_notes(task: Task, folder: Path) -> list[str]:
    """Return what a user should know of a classification set's lists, where no known number of classes tells it."""
    classnames, templates = read_prompts(folder)
    notes = []
    empty = [str(number) for number, name in enumerate(classnames, 1) if not name]
    if empty and getattr(task, "num_classes", None) != len(classnames):
        notes.append(
            f"{folder / 'classnames.txt'}: line {', '.join(empty)} of {len(classnames)} is empty, and counts as a "
            "class without a name, as clip_benchmark counts it"
        )
    if same := sum("{c}" not in template for template in templates):
        notes.append(
            f"{folder / 'zeroshot_classification_templates.txt'}: {same} of {len(templates)} lines have no {{c}}, and "
            "are the same prompt for every class"
        )
    return notes


def hash_eval_set(folder: Path) -> str:
    """Return the sha256 over relative names and sha256s of the files that an evaluation reads.

    A file is read again only when its size or time changed.
    """
    paths = [folder / name for name in LIST_NAMES]
    paths += [folder / "test" / "nshards.txt", *_tar_paths(folder)]
    lines = sorted(f"{path.relative_to(folder).as_posix()} {_hash_of(path)}\n" for path in paths if path.exists())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _hash_of(path: Path) -> str:
    return hash_file(path) if path.suffix == ".tar" else sha256_of(path)


def read_contents(task: Task, folder: Path, data_hash: str) -> Contents:
    """Return what a set with this hash holds; kept in the user's cache. Raises SetError where it cannot be read."""
    kept_path = cache_dir() / "evalsets" / f"{digest([CONTENTS_VERSION, data_hash, task.kind])}.json"
    if kept_path.exists():
        try:
            return Contents(**read_json(kept_path))
        except TypeError:  # of another version of Winnow, or damaged: it is made again
            pass
    if not isinstance(task, Retrieval | Association):
        read_prompts(folder)
    samples = read_samples(folder)
    instances = folder / "instances.jsonl"
    contents = Contents(
        num_samples=len(read_instances(instances, {each.key for each in samples}))
        if isinstance(task, Association)
        else len(samples),
        num_images=len(samples),
        images=digest([[sample.key, sample.size] for sample in samples]),
        tar_bytes=sum(path.stat().st_size for path in _tar_paths(folder)),
    )
    with locked(kept_path.parent):  # evaluations side by side write the same files
        write_json(kept_path, contents.__dict__)
    return contents


def hash_images(samples: Sequence[Sample]) -> str:
    """Return a hash of the bytes of all images, in order."""
    found = hashlib.sha256()
    for sample in samples:
        found.update(hashlib.sha256(read_image(sample)).digest())
    return found.hexdigest()


def read_samples(folder: Path) -> list[Sample]:
    """Read what an evaluation set holds, in key order, images left where they are.

    Raises ValueError that names the file for damaged tars, repeated members, and samples without an image.
    """
    members: dict[str, dict[str, tuple[Path, Member]]] = {}
    labels: dict[str, dict[str, bytes]] = {}
    for path in _tar_paths(folder):
        with path.open("rb") as file:
            for member in _whole_members(path):
                key = member.key
                of_sample = members.setdefault(key, {})
                kind = "image" if member.extension in IMAGE_FORMATS else member.extension
                if kind in of_sample:
                    other = of_sample[kind][1].name
                    raise SetError(f"{path}: key {key!r} is repeated ({member.name!r} after {other!r})")
                limit = MAX_IMAGE_BYTES if kind == "image" else MAX_LABEL_BYTES
                if member.size > limit:
                    raise SetError(f"{path}: {member.name!r} has {member.size} bytes, more than {limit}")
                of_sample[kind] = path, member
                if kind in ("cls", "npy", "txt"):
                    file.seek(member.offset)
                    labels.setdefault(key, {})[kind] = file.read(member.size)
    if not members:
        raise SetError(f"{folder / 'test'}: the tars hold no samples")
    samples = []
    for key in sorted(members):
        if "image" not in members[key]:
            path, member = next(iter(members[key].values()))
            raise SetError(f"{path}: sample {key!r} has {member.name!r} but no image ({', '.join(IMAGE_FORMATS)})")
        path, member = members[key]["image"]
        samples.append(Sample(key, member.name, path, member.offset, member.size, labels.get(key, {})))
    return samples


def _whole_members(path: Path) -> Iterator[Member]:
    """Yield a tar's members; raises ValueError, with what to do, where it is damaged."""
    try:
        yield from iter_members(path)
    except ValueError as error:
        raise SetError(f"{error}; fetch the set again") from error


def read_image(sample: Sample) -> bytes:
    """Return the encoded image."""
    with sample.tar_path.open("rb") as file:
        file.seek(sample.offset)
        return file.read(sample.size)


def load_image(sample: Sample, preprocess: Preprocess) -> np.ndarray:
    """Decode a sample's image as RGB and bring it to (image_size, image_size, 3), uint8.

    As open_clip's evaluation transform does: resized with antialiasing, the shorter side first and a centre crop where
    `resize_mode` says so. Alpha is dropped and EXIF orientation not applied, as in DataComp. Raises ValueError that
    names the image.
    """
    where = f"{sample.tar_path}: image {sample.image_name!r}"
    side, most = preprocess.image_size, Image.MAX_IMAGE_PIXELS or math.inf
    try:
        with Image.open(io.BytesIO(read_image(sample)), formats=sorted(set(IMAGE_FORMATS.values()))) as opened:
            if opened.width * opened.height > most:
                raise SetError(f"{where} is too large to be an evaluation image: {opened.width} x {opened.height}")
            image = opened.convert("RGB")
    except Image.DecompressionBombError as error:
        raise SetError(f"{where} is too large to be an evaluation image: {error}") from error
    except UnidentifiedImageError as error:  # whose text names an object in memory
        raise SetError(
            f"{where} cannot be decoded: it is no {', '.join(IMAGE_FORMATS)}; fetch the set again"
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        if str(error).startswith(where):
            raise
        raise SetError(f"{where} cannot be decoded: {error}; fetch the set again") from error
    resampling = RESAMPLING[preprocess.interpolation]
    if preprocess.resize_mode == "squash":
        return np.array(image.resize((side, side), resampling) if image.size != (side, side) else image)
    fit = max if preprocess.resize_mode == "longest" else min
    if fit(image.size) != side:
        if preprocess.resize_mode == "longest":
            width, height = (round(length * side / max(image.size)) for length in image.size)
        else:
            width, height = (int(side * length / min(image.size)) for length in image.size)
        if width * height > most:
            raise SetError(f"{where} is too large to be an evaluation image: {width} x {height} when resized")
        image = image.resize((max(width, 1), max(height, 1)), resampling)
    if preprocess.resize_mode == "longest":  # what lacks on the shorter side is black
        canvas = Image.new("RGB", (side, side))
        canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return np.array(canvas)
    left, top = (round((length - side) / 2) for length in image.size)  # torchvision rounds halves to even, as here
    return np.array(image)[top : top + side, left : left + side]


def _tar_paths(folder: Path) -> list[Path]:
    path = folder / "test" / "nshards.txt"
    text = path.read_bytes().decode(errors="replace").strip()
    if not text.isdecimal() or not 1 <= int(text) <= 100_000:
        raise SetError(f"{path} holds {text[:40]!r} instead of the number of tars")
    return [folder / "test" / f"{number}.tar" for number in range(int(text))]


def read_lines(path: Path) -> list[str]:
    """Return a file's lines as clip_benchmark's loader does: without space around them, and empty ones count.

    A newline at the end of the file begins no further line. Raises SetError where the file is not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # an editor's mark before the first line is no part of it
    except UnicodeDecodeError as error:
        raise SetError(f"{path} is not UTF-8: {error}") from error
    return [line.strip() for line in text.splitlines()]


def read_prompts(folder: Path) -> tuple[list[str], list[str]]:
    """Return a set's class names, to which labels are indices, and its templates.

    A class may have the empty text for a name, as one of CLEVR's distance task has. A line of templates without {c} is
    the same prompt for every class. Raises SetError where there are no classes, or no template names its class.
    """
    path = folder / "zeroshot_classification_templates.txt"
    templates, classnames = read_lines(path), read_lines(folder / "classnames.txt")
    if not any("{c}" in template for template in templates):
        raise SetError(f"{path}: {templates[0]!r} has no {{c}}" if templates else f"{path} is empty")
    if not classnames:
        raise SetError(f"{folder / 'classnames.txt'} is empty")
    return classnames, templates


def part_of(sample: Sample, extension: str) -> bytes:
    if extension not in sample.labels:
        raise SetError(f"{sample.tar_path}: sample {sample.key!r} has no .{extension}")
    return sample.labels[extension]


def label_of(sample: Sample, num_classes: int) -> int:
    text = part_of(sample, "cls").decode(errors="replace").strip()
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) < num_classes):
        raise SetError(
            f"{sample.tar_path}: {sample.key}.cls holds {text[:40]!r}; classnames.txt has classes 0..{num_classes - 1}"
        )
    return int(text)


def numbers_of(sample: Sample, places: Sequence[int]) -> list[int]:
    """Return the numbers at these places of a sample's `.npy` vector; raises ValueError that names the sample."""
    where = f"{sample.tar_path}: {sample.key}.npy"
    try:
        values = np.lib.format.read_array(io.BytesIO(part_of(sample, "npy")), allow_pickle=False).reshape(-1)
    except (ValueError, EOFError, MemoryError, OverflowError) as error:
        raise SetError(f"{where} cannot be read: {error}") from error
    if not np.issubdtype(values.dtype, np.integer) or len(values) <= max(places):
        raise SetError(f"{where} holds {len(values)} of {values.dtype}; integer number {max(places)} is needed")
    return [int(values[place]) for place in places]


def group_of(sample: Sample, task: GroupedClassification) -> int:
    fields = task.group_fields
    values = numbers_of(sample, [field.place for field in fields])
    for field, value in zip(fields, values, strict=True):
        limit = len(field.names) or (MAX_GROUPS if len(fields) == 1 else GROUP_RADIX)
        if not 0 <= value < limit:
            raise SetError(
                f"{sample.tar_path}: {sample.key}.npy: there is no {field.name} {value}; "
                f"values: {list(field.names) or f'0 to {limit - 1}'}"
            )
    return values[0] + (GROUP_RADIX * values[1] if len(values) == 2 else 0)


def captions_of(sample: Sample) -> list[str]:
    try:
        text = part_of(sample, "txt").decode()
    except UnicodeDecodeError as error:
        raise SetError(f"{sample.tar_path}: {sample.key}.txt is not UTF-8: {error}") from error
    # CLIP_benchmark joins captions by newlines and escapes those inside.
    captions = [caption.replace(r"\n", "\n") for caption in text.split("\n") if caption.strip()]
    if not captions:
        raise SetError(f"{sample.tar_path}: {sample.key}.txt has no caption")
    return captions


@dataclass(frozen=True)
class Instance:
    """One question of an association task."""

    cue: str
    candidates: list[str]  # keys of images
    right: list[int]  # ascending indices of candidates


def read_instances(path: Path, keys: set[str]) -> list[Instance]:
    """Read an association task's questions; raises ValueError that names the line that is wrong."""
    instances = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise SetError(f"{path} is not UTF-8: {error}") from error
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
            cue, candidates, associations = row["cue"], row["candidates"], row["associations"]
        except (ValueError, KeyError, TypeError) as error:
            raise SetError(f'{where} must be {{"cue": ..., "candidates": [...], "associations": [...]}}') from error
        are_lists = isinstance(cue, str) and isinstance(candidates, list) and isinstance(associations, list)
        if not are_lists or not cue or not associations:
            raise SetError(f"{where}: a cue is a word, candidates and associations are lists of keys")
        if strange := [key for key in [*candidates, *associations] if not isinstance(key, str)]:
            raise SetError(f"{where}: {strange[0]!r} is no key of an image, which is a text")
        if unknown := [key for key in candidates if key not in keys]:
            raise SetError(f"{where}: there is no image {unknown[0]!r}")
        if len(set(candidates)) != len(candidates) or not set(associations) <= set(candidates):
            raise SetError(f"{where}: candidates must be distinct and hold all associations")
        instances.append(Instance(cue, candidates, sorted(candidates.index(key) for key in set(associations))))
    if not instances:
        raise SetError(f"{path} is empty")
    return instances


def _needed_files(task: Task, folder: Path) -> list[Path]:
    if isinstance(task, Retrieval):
        files = [folder / "dataset_type.txt"]
    elif isinstance(task, Association):
        files = [folder / "dataset_type.txt", folder / "instances.jsonl"]
    else:
        files = [folder / "classnames.txt", folder / "zeroshot_classification_templates.txt"]
    count_path = folder / "test" / "nshards.txt"
    try:
        tars = _tar_paths(folder) if count_path.exists() else []
    except SetError:  # which is said once the set is read
        tars = []
    return [*files, count_path, *tars]
