"""What an evaluation set's files hold: samples with their labels, lists of class names and templates."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmark.pool.tars import IMAGE_FORMATS, Member, iter_members
from benchmark.runtime.errors import UserError

CLASSNAMES, TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"
MAX_IMAGE_BYTES = 64 << 20
MAX_LABEL_BYTES = 1 << 20  # of a .cls, .npy or .txt
LABEL_EXTENSIONS = ("cls", "npy", "txt")


class SetError(UserError):
    """An evaluation set that is there and cannot be read; other sets are evaluated all the same."""

    default_code = "eval-set-invalid"


@dataclass(frozen=True)
class Sample:
    """One sample of an evaluation set; its image stays in the tar until it is needed."""

    key: str
    image_name: str  # of the tar's member
    tar_path: Path
    offset: int  # of the image, in bytes
    size: int
    labels: dict[str, bytes]  # extension, such as cls -> contents


@dataclass(frozen=True)
class EvalSet:
    """An evaluation set that was read."""

    folder: Path
    samples: list[Sample]  # in key order


def read_samples(folder: Path, extensions: Sequence[str] = LABEL_EXTENSIONS) -> list[Sample]:
    """Read what an evaluation set holds, in key order: labels of these extensions, images left where they are.

    Raises ValueError that names the file for damaged tars, repeated members, and samples without an image.
    """
    members: dict[str, dict[str, tuple[Path, Member]]] = {}
    labels: dict[str, dict[str, bytes]] = {}
    for path in tar_paths(folder):
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
                if kind in extensions:
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


def tar_paths(folder: Path) -> list[Path]:
    """Return the places of the set's tars; raises SetError where `nshards.txt` does not say how many there are."""
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
        text = path.read_text(encoding="utf-8-sig")  # without an editor's mark before the first line
    except UnicodeDecodeError as error:
        raise SetError(f"{path} is not UTF-8: {error}") from error
    return [line.strip() for line in text.splitlines()]


def read_prompts(folder: Path) -> tuple[list[str], list[str]]:
    """Return a set's class names, to which labels are indices, and its templates.

    A class may have the empty text for a name, as one of CLEVR's distance task has. A line of templates without {c} is
    the same prompt for every class. Raises SetError where there are no classes, or no template names its class.
    """
    path = folder / TEMPLATES
    templates, classnames = read_lines(path), read_lines(folder / CLASSNAMES)
    if not any("{c}" in template for template in templates):
        raise SetError(f"{path}: {templates[0]!r} has no {{c}}" if templates else f"{path} is empty")
    if not classnames:
        raise SetError(f"{folder / 'classnames.txt'} is empty")
    return classnames, templates


def part_of(sample: Sample, extension: str) -> bytes:
    """Return the contents of a sample's label file (`cls`, `npy` or `txt`); raises SetError where it has none."""
    if extension not in sample.labels:
        raise SetError(f"{sample.tar_path}: sample {sample.key!r} has no .{extension}")
    return sample.labels[extension]


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
