"""The synthetic world: pictures of shapes, letters, digits, pictograms and patterns at 32 px, and captions of them.

A `World` says which of them are drawn by whom and how captions are worded: the pool has one, the reference models
another. Captions leave things out (they name the colour one time in four and the background seldom): named always,
these solve the contrastive loss on their own, and shapes stay at chance (measured on the prototype).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random

import numpy as np
from PIL import Image

from benchmark.embedded.frames import POOL_FRAMES, REFERENCE_FRAMES, Frames
from benchmark.embedded.pictograms import (
    PICTOGRAMS,
    POOL_DESIGNERS,
    REFERENCE_DESIGNERS,
    VEHICLES,
    Glyph,
    glyphs_of,
)
from benchmark.embedded.shapes import SHAPE_NAMES

IMAGE_SIZE = 32  # pixels
CANVAS_SIZE = 2 * IMAGE_SIZE  # drawn at twice the size and averaged down, for antialiasing

Rgb = tuple[int, int, int]

COLOURS: dict[str, Rgb] = {
    "red": (215, 30, 35),
    "orange": (245, 135, 20),
    "golden": (245, 215, 40),
    "green": (35, 150, 55),
    "blue": (35, 70, 205),
    "magenta": (165, 30, 150),
    "pink": (250, 145, 190),
    "brown": (120, 75, 40),
    "black": (20, 20, 22),
    "ivory": (248, 248, 240),
    "grey": (128, 128, 130),
    "turquoise": (45, 200, 200),
}
LETTERS = "ABEGHKMRSTXZ"
NUMBERS = ("one", "two", "three", "four", "five")
DIGITS = ("zero", *NUMBERS, "six", "seven", "eight", "nine")
TEXTURES = ("striped", "dotted", "checked", "wavy", "brick", "zigzag", "grid", "speckled")
PLACES = {"top": (32, 15), "bottom": (32, 49), "left": (15, 32), "right": (49, 32), "middle": (32, 32)}

BACKGROUNDS = {"plain": 0.65, "gradient": 0.1, "stripes": 0.1, "dots": 0.08, "noise": 0.07}  # shares in the pool


@dataclass(frozen=True)
class Scene:
    """What a picture shows."""

    kind: str  # "shape", "letter", "digit", "pictogram" or "texture"
    name: str  # of SHAPES, LETTERS, DIGITS, PICTOGRAMS, VEHICLES or TEXTURES
    colour: str
    count: int = 1  # of shapes
    size: str = "large"  # or "small"
    background: str = "plain"
    place: str = ""  # of PLACES, where the caption may say so
    font: str = ""  # of a letter
    drawing: int = 0  # of a digit: its place in scikit-learn's data set
    glyph: Glyph | None = None  # of a pictogram


@dataclass(frozen=True)
class World:
    """Which scenes there are, who draws them, and how captions are worded."""

    kinds: dict[str, float]  # shares
    shapes: tuple[str, ...]
    letters: str
    fonts: tuple[str, ...]
    digits: range  # of DIGIT_ORDER
    textures: tuple[str, ...]
    pictograms: tuple[str, ...]
    designers: tuple[str, ...]
    frames: Frames


def draw_random_scene(rng: Random, world: World | None = None) -> Scene:
    """Choose a scene of a world (by default the pool's)."""
    world = world or POOL_WORLD
    kind = rng.choices(list(world.kinds), list(world.kinds.values()))[0]
    background = random_background(rng)
    scene = Scene(kind, "", rng.choice(list(COLOURS)), size=random_size(rng), background=background)
    match kind:
        case "shape":
            count = rng.randint(2, 5) if rng.random() < 0.35 else 1
            place = rng.choice(list(PLACES)) if count == 1 and rng.random() < 0.25 else ""
            return replace(scene, name=rng.choice(world.shapes), count=count, place=place)
        case "letter":
            return replace(scene, name=rng.choice(world.letters), font=rng.choice(world.fonts))
        case "digit":
            return with_digit(scene, rng.choice(digits_of(world.digits)))
        case "texture":
            return replace(scene, name=rng.choice(world.textures))
    assert kind == "pictogram", kind
    return with_pictogram(scene, rng.choice(world.pictograms), world.designers, rng)


def with_digit(scene: Scene, drawing: int) -> Scene:
    """Return the scene with one of scikit-learn's handwritten digits."""
    return replace(scene, name=DIGITS[load_digit_masks()[1][drawing]], drawing=drawing)


def with_pictogram(scene: Scene, name: str, designers: tuple[str, ...], rng: Random) -> Scene:
    """Return the scene with a pictogram of this name, by one of these designers."""
    return replace(scene, name=name, glyph=rng.choice(glyphs_of(name, designers)))


@lru_cache
def digits_of(part: range, name: str = "") -> tuple[int, ...]:
    """Return the places of a part of scikit-learn's digits, in an order of their own; of one digit where named."""
    labels = load_digit_masks()[1]
    order = list(range(len(labels)))
    Random("winnow/digits").shuffle(order)
    return tuple(place for place in order[part.start : part.stop] if name in ("", DIGITS[labels[place]]))


def random_size(rng: Random) -> str:
    """Choose "large" (three in four) or "small"."""
    return "large" if rng.random() < 0.75 else "small"


def random_background(rng: Random) -> str:
    """Choose a background, with the pool's shares."""
    return rng.choices(list(BACKGROUNDS), list(BACKGROUNDS.values()))[0]


@lru_cache
def load_digit_masks() -> tuple[list[Image.Image], list[int]]:
    """Return scikit-learn's handwritten digits (Alpaydin & Kaynak 1998, UCI) as masks, and what each is."""
    from sklearn.datasets import load_digits

    data = load_digits()
    masks = np.clip(data.images * 16, 0, 255).astype(np.uint8)  # (digits, 8, 8)
    return [Image.fromarray(mask) for mask in masks], data.target.tolist()


POOL_WORLD = World(
    kinds={"pictogram": 0.28, "shape": 0.31, "letter": 0.14, "digit": 0.12, "texture": 0.15},
    shapes=SHAPE_NAMES,
    letters=LETTERS,
    fonts=("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono-Bold"),
    digits=range(300, 1000),
    textures=TEXTURES,
    pictograms=PICTOGRAMS + VEHICLES,
    designers=POOL_DESIGNERS,
    frames=POOL_FRAMES,
)
# Fewer kinds, other fonts and designers, other handwriting, other words.
REFERENCE_WORLD = World(
    kinds={"pictogram": 0.45, "shape": 0.27, "letter": 0.12, "digit": 0.07, "texture": 0.09},
    shapes=SHAPE_NAMES[:15],
    letters=LETTERS[:11],
    fonts=("cmss10", "cmb10", "cmtt10", "STIXGeneralBol"),
    digits=range(300),
    textures=TEXTURES[:7],
    pictograms=tuple(name for name in PICTOGRAMS + VEHICLES if glyphs_of(name, REFERENCE_DESIGNERS)),
    designers=REFERENCE_DESIGNERS,
    frames=REFERENCE_FRAMES,
)
EVALUATION_DIGITS = range(1000, 1797)
