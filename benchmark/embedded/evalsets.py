"""The embedded scales' evaluation sets: drawn from a seed of their own, in the webdataset layout of CLIP_benchmark."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np

from benchmark.embedded.world import (
    COLOURS,
    FONTS,
    HELD_OUT_FONTS,
    LETTERS,
    NUMBERS,
    SHAPE_NAMES,
    Scene,
    draw_picture,
    draw_random_scene,
    random_size,
    write_full_caption,
)
from benchmark.stage import write_bytes
from benchmark.tars import write_tar

EVALUATION_SEED = 2024  # the same for every pool; pools draw under other keys
GROUP_NAMES = ("plain and large", "plain and small", "textured and large", "textured and small")

_SHAPE_TEMPLATES = ("a {c}", "a picture of a {c}", "a drawing of a {c}", "this is a {c}", "there is a {c} here")
_COLOUR_TEMPLATES = ("a {c} shape", "a {c} object", "a picture of a {c} shape", "a drawing of a {c} object")
_LETTER_TEMPLATES = ("the letter {c}", "a picture of the letter {c}", "a capital letter {c}", "this is the letter {c}")
_COUNTING_TEMPLATES = ("{c} shapes", "{c} objects", "a picture of {c} shapes", "a drawing of {c} objects")


@dataclass(frozen=True)
class EvaluationSet:
    """One data set: which scenes it shows, and how its classes are called."""

    prefix: str  # the suite: "nano" or "pico"
    name: str
    num_images: int
    classnames: tuple[str, ...] = ()  # empty for retrieval
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

    def one(name: str, num_images: int, classnames: tuple[str, ...], templates: tuple[str, ...]) -> EvaluationSet:
        return EvaluationSet(prefix, name, num_images if prefix == "nano" else 200, classnames, templates)

    letters, colours = tuple(LETTERS), tuple(COLOURS)
    num_grouped = (15 if prefix == "nano" else 3) * len(SHAPE_NAMES) * len(GROUP_NAMES)  # every class in every group
    return [
        one("shapes", 800, SHAPE_NAMES, _SHAPE_TEMPLATES),
        one("colours", 600, colours, _COLOUR_TEMPLATES),
        one("letters", 600, letters, _LETTER_TEMPLATES),
        one("counting", 600, NUMBERS, _COUNTING_TEMPLATES),
        one("shapes_outline", 800, SHAPE_NAMES, _SHAPE_TEMPLATES),
        one("shapes_clutter", 800, SHAPE_NAMES, _SHAPE_TEMPLATES),
        one("letters_font", 600, letters, _LETTER_TEMPLATES),
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
        _write_lines(folder / "dataset_type.txt", ("retrieval",))
    write_tar(folder / "test" / "0.tar", _members(evaluation_set))
    _write_lines(folder / "test" / "nshards.txt", ("1",))


def draw_examples(evaluation_set: EvaluationSet) -> Iterator[Example]:
    """Draw a data set's images in order; labels and groups take turns, so both are balanced."""
    seen: set[tuple[str, str, int, str]] = set()
    for index in range(evaluation_set.num_images):
        rng = Random(f"winnow/evaluation/{EVALUATION_SEED}/{evaluation_set.prefix}/{evaluation_set.name}/{index}")
        label = index % len(evaluation_set.classnames) if evaluation_set.classnames else 0
        group = index // len(SHAPE_NAMES) % len(GROUP_NAMES) if evaluation_set.name == "worst_group" else None
        scene = _draw_scene(evaluation_set.name, label, group, rng)
        captions: tuple[str, ...] = ()
        if evaluation_set.name == "retrieval":
            # No two images share a description, or recall@1 would punish a right answer.
            while (scene.name, scene.colour, scene.count, scene.background) in seen:
                scene = _draw_scene(evaluation_set.name, label, group, rng)
            seen.add((scene.name, scene.colour, scene.count, scene.background))
            captions = (write_full_caption(scene, rng),)
        file = io.BytesIO()
        draw_picture(scene, rng, is_outline=evaluation_set.name == "shapes_outline").save(file, "PNG")
        yield Example(file.getvalue(), label, group, captions)


def _draw_scene(name: str, label: int, group: int | None, rng: Random) -> Scene:
    """Draw a scene of a data set, with the class `label` where the data set has classes."""
    colour, size, background = rng.choice(list(COLOURS)), random_size(rng), draw_random_scene(rng).background
    shape = rng.choice(SHAPE_NAMES)
    match name:
        case "shapes" | "shapes_outline":
            return Scene(SHAPE_NAMES[label], colour, 1, size, background, "")
        case "shapes_clutter":
            return Scene(SHAPE_NAMES[label], colour, 1, size, "clutter", "")
        case "worst_group":
            assert group is not None
            textured = rng.choice(("stripes", "dots", "noise"))
            ground = "plain" if group < 2 else textured
            return Scene(SHAPE_NAMES[label], colour, 1, ("large", "small")[group % 2], ground, "")
        case "colours":
            return Scene(shape, list(COLOURS)[label], 1, size, background, "")
        case "counting":
            return Scene(shape, colour, label + 1, size, background, "")
        case "letters":
            return Scene(LETTERS[label], colour, 1, size, background, rng.choice(FONTS))
        case "letters_font":
            return Scene(LETTERS[label], colour, 1, size, background, rng.choice(HELD_OUT_FONTS))
    assert name == "retrieval", name
    return draw_random_scene(rng)


def _members(evaluation_set: EvaluationSet) -> Iterator[tuple[str, bytes]]:
    for index, example in enumerate(draw_examples(evaluation_set)):
        key = f"s{index:07d}"
        yield f"{key}.png", example.image
        if example.captions:
            yield f"{key}.txt", "\n".join(example.captions).encode()
        else:
            yield f"{key}.cls", str(example.label).encode()
        if example.group is not None:
            file = io.BytesIO()
            np.save(file, np.array([example.group], dtype=np.int64))
            yield f"{key}.npy", file.getvalue()


def _write_lines(path: Path, lines: tuple[str, ...]) -> None:
    write_bytes(path, ("\n".join(lines) + "\n").encode())
