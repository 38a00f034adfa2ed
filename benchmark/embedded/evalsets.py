"""The embedded scales' evaluation sets: generated from their own seed, in the webdataset layout of CLIP_benchmark."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageFilter

from benchmark.embedded.captions import write_full_caption
from benchmark.embedded.pictograms import (
    CATEGORIES,
    CATEGORY_OF,
    PICTOGRAMS,
    POOL_DESIGNERS,
    UNSEEN_DESIGNERS,
    VEHICLES,
)
from benchmark.embedded.pictures import draw_picture
from benchmark.embedded.shapes import SHAPE_NAMES
from benchmark.embedded.world import (
    COLOURS,
    DIGITS,
    EVALUATION_DIGITS,
    IMAGE_SIZE,
    LETTERS,
    NUMBERS,
    PLACES,
    POOL_WORLD,
    TEXTURES,
    Scene,
    digits_of,
    draw_random_scene,
    random_background,
    random_size,
    with_digit,
    with_pictogram,
)
from benchmark.pool.tars import write_tar
from benchmark.runtime.files import write_bytes

EVALUATION_SEED = 2024  # the same for every pool; pools use other keys
GROUP_NAMES = ("plain and large", "plain and small", "textured and large", "textured and small")
NUM_INSTANCES = 200  # of association
NUM_ASSOCIATION_IMAGES = 600
CANDIDATES = (10, 12)  # images per instance of association
ASSOCIATED = (3, 4, 5)  # how many of them fit the cue

_SHAPE_TEMPLATES = ("a {c}", "a photo of a {c}", "a drawing of a {c}", "this is a {c}", "there is a {c} here")
_COLOUR_TEMPLATES = ("a {c} shape", "a {c} object", "a photo of a {c} shape", "a drawing of a {c} object")
_LETTER_TEMPLATES = ("the letter {c}", "a photo of the letter {c}", "a capital letter {c}", "this is the letter {c}")
_DIGIT_TEMPLATES = ("the digit {c}", "a handwritten {c}", "the number {c} in handwriting", "this is the number {c}")
_COUNTING_TEMPLATES = ("{c} shapes", "{c} objects", "a photo of {c} shapes", "a drawing of {c} objects")
_PLACE_TEMPLATES = ("a shape at the {c}", "an object at the {c}", "a photo of a shape at the {c}")
_TEXTURE_TEMPLATES = ("a {c} pattern", "a {c} texture", "{c} wallpaper", "a bag with {c} print")
_PICTOGRAM_TEMPLATES = ("a {c}", "a {c} icon", "a drawing of a {c}", "a photo of a {c}", "this is a {c}")


@dataclass(frozen=True)
class EvaluationSet:
    """One data set: which scenes it shows, and how its classes are called."""

    prefix: str  # the suite: "nano" or "pico"
    name: str
    num_images: int
    classnames: tuple[str, ...] = ()  # empty for retrieval and association
    templates: tuple[str, ...] = ()

    @property
    def folder_name(self) -> str:
        return f"wds_{self.prefix}-{self.name}_test"


@dataclass(frozen=True)
class Example:
    """One evaluation image with what is known about it."""

    image: bytes  # PNG
    label: int
    group: int | None
    captions: tuple[str, ...]


def evaluation_sets(prefix: str) -> list[EvaluationSet]:
    """Return the data sets of a suite; `pico` has the tasks of `nano` with fewer images."""
    is_nano = prefix == "nano"

    def one(name: str, num_images: int, classnames: tuple[str, ...], templates: tuple[str, ...]) -> EvaluationSet:
        return EvaluationSet(prefix, name, num_images if is_nano else 200, classnames, templates)

    num_grouped = (15 if is_nano else 3) * len(SHAPE_NAMES) * len(GROUP_NAMES)  # every class in every group
    return [
        one("shapes", 800, SHAPE_NAMES, _SHAPE_TEMPLATES),
        one("letters", 600, tuple(LETTERS), _LETTER_TEMPLATES),
        one("textures", 600, TEXTURES, _TEXTURE_TEMPLATES),
        one("counting", 600, NUMBERS, _COUNTING_TEMPLATES),
        one("vehicles", 600, VEHICLES, _PICTOGRAM_TEMPLATES),
        one("shapes_sketch", 800, SHAPE_NAMES, _SHAPE_TEMPLATES),
        one("shapes_background", 800, SHAPE_NAMES, _SHAPE_TEMPLATES),
        one("association", NUM_ASSOCIATION_IMAGES, (), ()),
        one("digits", 700, DIGITS, _DIGIT_TEMPLATES),
        one("pictograms", 800, PICTOGRAMS, _PICTOGRAM_TEMPLATES),
        one("colours", 600, tuple(COLOURS), _COLOUR_TEMPLATES),
        one("position", 600, tuple(PLACES), _PLACE_TEMPLATES),
        one("pictograms_designer", 800, PICTOGRAMS, _PICTOGRAM_TEMPLATES),
        one("shapes_corrupted", 800, SHAPE_NAMES, _SHAPE_TEMPLATES),
        one("retrieval", 500, (), ()),
        EvaluationSet(prefix, "worst_group", num_grouped, SHAPE_NAMES, _SHAPE_TEMPLATES),
    ]


def write_evaluation_set(eval_dir: Path, evaluation_set: EvaluationSet) -> None:
    """Write a data set's folder, unless it is there; the count of shards comes last."""
    folder = eval_dir / evaluation_set.folder_name
    if (folder / "test" / "nshards.txt").exists():
        return
    if evaluation_set.classnames:
        _write_lines(folder / "classnames.txt", evaluation_set.classnames)
        _write_lines(folder / "zeroshot_classification_templates.txt", evaluation_set.templates)
    else:
        _write_lines(folder / "dataset_type.txt", (evaluation_set.name,))
    if evaluation_set.name == "association":
        _write_lines(folder / "instances.jsonl", tuple(json.dumps(each) for each in _draw_instances(evaluation_set)))
    write_tar(folder / "test" / "0.tar", _members(evaluation_set))
    _write_lines(folder / "test" / "nshards.txt", ("1",))


def generate_examples(evaluation_set: EvaluationSet) -> Iterator[Example]:
    """Generate a data set's images in order; labels and groups take turns, so both are balanced."""
    seen: set[str] = set()
    for index in range(evaluation_set.num_images):
        rng = _random_of(evaluation_set, index)
        label = index % len(evaluation_set.classnames) if evaluation_set.classnames else 0
        group = index // len(SHAPE_NAMES) % len(GROUP_NAMES) if evaluation_set.name == "worst_group" else None
        scene = _draw_scene(evaluation_set, index, group, rng)
        captions: tuple[str, ...] = ()
        if evaluation_set.name == "retrieval":
            # No two images share a description, or recall@1 would punish a right answer.
            while (caption := write_full_caption(scene, Random(0))) in seen:
                scene = _draw_scene(evaluation_set, index, group, rng)
            seen.add(caption)
            captions = (write_full_caption(scene, rng),)
        picture = draw_picture(scene, rng, is_outline=evaluation_set.name == "shapes_sketch")
        if evaluation_set.name == "shapes_corrupted":
            picture = _corrupt(picture, rng)
        file = io.BytesIO()
        picture.save(file, "PNG")
        yield Example(file.getvalue(), label, group, captions)


def _draw_scene(evaluation_set: EvaluationSet, index: int, group: int | None, rng: Random) -> Scene:
    """Choose the scene of a data set's image, of the class whose turn it is where the data set has classes."""
    name = evaluation_set.name
    classnames = evaluation_set.classnames
    classname = classnames[index % len(classnames)] if classnames else ""
    shape = Scene(
        "shape", rng.choice(SHAPE_NAMES), rng.choice(list(COLOURS)), 1, random_size(rng), random_background(rng)
    )
    match name:
        case "shapes" | "shapes_sketch" | "shapes_corrupted":
            return replace(shape, name=classname)
        case "shapes_background":
            return replace(shape, name=classname, background="clutter")
        case "worst_group":
            assert group is not None
            ground = "plain" if group < 2 else rng.choice(("stripes", "dots", "noise"))
            return replace(shape, name=classname, size=("large", "small")[group % 2], background=ground)
        case "colours":
            return replace(shape, colour=classname)
        case "counting":
            return replace(shape, count=index % len(classnames) + 1)
        case "position":
            return replace(shape, place=classname)
        case "textures":
            return replace(shape, kind="texture", name=classname)
        case "letters":
            return replace(shape, kind="letter", name=classname, font=rng.choice(POOL_WORLD.fonts))
        case "digits":
            drawings = digits_of(EVALUATION_DIGITS, classname)
            return with_digit(replace(shape, kind="digit"), drawings[index // len(classnames) % len(drawings)])
        case "pictograms" | "vehicles":
            return with_pictogram(replace(shape, kind="pictogram"), classname, POOL_DESIGNERS, rng)
        case "pictograms_designer":
            return with_pictogram(replace(shape, kind="pictogram"), classname, UNSEEN_DESIGNERS, rng)
        case "association":
            concepts = list(CATEGORY_OF)
            return with_pictogram(
                replace(shape, kind="pictogram"), concepts[index % len(concepts)], POOL_DESIGNERS, rng
            )
    assert name == "retrieval", name
    return draw_random_scene(rng, POOL_WORLD)


def _draw_instances(evaluation_set: EvaluationSet) -> Iterator[dict[str, object]]:
    """Generate association's instances: a cue, candidate images, and which belong to it; categories take turns."""
    concepts = list(CATEGORY_OF)
    categories = [*CATEGORIES, "vehicle"]
    of_image = [CATEGORY_OF[concepts[index % len(concepts)]] for index in range(evaluation_set.num_images)]
    for number in range(NUM_INSTANCES if evaluation_set.prefix == "nano" else NUM_INSTANCES // 4):
        rng = _random_of(evaluation_set, f"instance/{number}")
        cue = categories[number % len(categories)]
        right = rng.sample([index for index, each in enumerate(of_image) if each == cue], rng.choice(ASSOCIATED))
        count = rng.choice(CANDIDATES) - len(right)
        candidates = right + rng.sample([index for index, each in enumerate(of_image) if each != cue], count)
        rng.shuffle(candidates)
        yield {
            "cue": cue,
            "candidates": [_key(index) for index in candidates],
            "associations": [_key(index) for index in sorted(right)],
        }


def _corrupt(picture: Image.Image, rng: Random) -> Image.Image:
    """Spoil a picture in one of four ways that no pool has (Hendrycks & Dietterich 2019: kinds, not strengths)."""
    match rng.choice(("noise", "contrast", "blur", "pixels")):
        case "noise":
            static = np.random.default_rng(rng.getrandbits(32)).normal(0, 28, (IMAGE_SIZE, IMAGE_SIZE, 3))
            return Image.fromarray(np.clip(np.asarray(picture) + static, 0, 255).astype(np.uint8))
        case "contrast":
            return picture.point([round(128 + 0.35 * (value - 128)) for value in range(256)] * 3)
        case "blur":
            return picture.filter(ImageFilter.GaussianBlur(1.2))
    return picture.resize((14, 14), Image.Resampling.BOX).resize(picture.size, Image.Resampling.NEAREST)


def _members(evaluation_set: EvaluationSet) -> Iterator[tuple[str, bytes]]:
    for index, example in enumerate(generate_examples(evaluation_set)):
        key = _key(index)
        yield f"{key}.png", example.image
        if example.captions:
            yield f"{key}.txt", "\n".join(example.captions).encode()
        elif evaluation_set.classnames:
            yield f"{key}.cls", str(example.label).encode()
        if example.group is not None:
            file = io.BytesIO()
            np.save(file, np.array([example.group], dtype=np.int64))
            yield f"{key}.npy", file.getvalue()


def _random_of(evaluation_set: EvaluationSet, what: object) -> Random:
    return Random(f"winnow/evaluation/{EVALUATION_SEED}/{evaluation_set.prefix}/{evaluation_set.name}/{what}")


def _key(index: int) -> str:
    return f"s{index:07d}"


def _write_lines(path: Path, lines: tuple[str, ...]) -> None:
    write_bytes(path, ("\n".join(lines) + "\n").encode())
