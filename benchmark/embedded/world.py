"""The drawn world: pictures of shapes, letters, digits, pictograms and patterns at 32 px, and captions of them.

A `World` says which of them are drawn by whom and how captions are worded: the pool has one, the reference models
another. Captions leave things out (they name the colour one time in four and the background seldom): named always,
these solve the contrastive loss alone and shapes stay at chance (measured on the prototype).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmark.embedded.pictograms import (
    CATEGORY_OF,
    PICTOGRAMS,
    POOL_DESIGNERS,
    REFERENCE_DESIGNERS,
    VEHICLES,
    Glyph,
    glyphs_of,
    load_icon_font,
)

IMAGE_SIZE = 32  # pixels
CANVAS_SIZE = 2 * IMAGE_SIZE  # drawn at twice the size and averaged down, for antialiasing

Rgb = tuple[int, int, int]
Point = tuple[float, float]
Frames = dict[str, tuple[str, ...]]

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
BACKGROUND_COLOURS: tuple[Rgb, ...] = (
    (240, 240, 235),
    (215, 225, 235),
    (235, 220, 200),
    (200, 215, 190),
    (225, 205, 220),
    (170, 175, 185),
    (95, 105, 120),
    (85, 70, 75),
    (60, 80, 75),
    (35, 40, 60),
    (45, 30, 35),
    (190, 165, 140),
)


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
    """Draw a scene of a world (by default the pool's)."""
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
    return replace(scene, name=DIGITS[_digits()[1][drawing]], drawing=drawing)


def with_pictogram(scene: Scene, name: str, designers: tuple[str, ...], rng: Random) -> Scene:
    """Return the scene with a pictogram of this name, by one of these designers."""
    return replace(scene, name=name, glyph=rng.choice(glyphs_of(name, designers)))


@lru_cache
def digits_of(part: range, name: str = "") -> tuple[int, ...]:
    """Return the places of a part of scikit-learn's digits, in an order of their own; of one digit where named."""
    labels = _digits()[1]
    order = list(range(len(labels)))
    Random("winnow/digits").shuffle(order)
    return tuple(place for place in order[part.start : part.stop] if name in ("", DIGITS[labels[place]]))


def random_size(rng: Random) -> str:
    """Draw "large" (three in four) or "small"."""
    return "large" if rng.random() < 0.75 else "small"


def random_background(rng: Random) -> str:
    """Draw a background, with the pool's shares."""
    return rng.choices(list(BACKGROUNDS), list(BACKGROUNDS.values()))[0]


def draw_picture(scene: Scene, rng: Random, *, is_outline: bool = False) -> Image.Image:
    """Draw a scene at 32 x 32 px, RGB; its shapes as outlines only where asked."""
    ink = _jitter(COLOURS[scene.colour], rng)
    paper = _contrasting(ink, rng)
    if scene.kind == "texture":
        return _paint_texture(scene.name, ink, paper, rng).reduce(2)
    canvas = _draw_background(scene.background, ink, paper, rng)
    draw = ImageDraw.Draw(canvas)
    match scene.kind:
        case "letter":
            size = rng.randint(46, 58) if scene.size == "large" else rng.randint(32, 42)
            draw.text(_centre(size, rng), scene.name, fill=ink, font=load_font(scene.font, size), anchor="mm")
        case "digit":
            side = rng.randint(50, 62) if scene.size == "large" else rng.randint(34, 44)
            stroke = _digits()[0][scene.drawing].resize((side, side), Image.Resampling.BICUBIC)
            x, y = _centre(side, rng)
            canvas.paste(ink, (x - side // 2, y - side // 2), stroke)
        case "pictogram":
            assert scene.glyph is not None
            size = rng.choice((46, 50, 54)) if scene.size == "large" else rng.choice((32, 36, 40))
            font = load_icon_font(scene.glyph.file, size)
            left, top, right, bottom = font.getbbox(scene.glyph.character)
            x, y = _centre(size, rng)
            corner = (x - (left + right) / 2, y - (top + bottom) / 2)
            draw.text(corner, scene.glyph.character, fill=ink, font=font)
        case _:
            for middle, radius in _layout(scene, rng):
                points = _place(SHAPES[scene.name], middle, radius, rng.uniform(-0.25, 0.25))
                if is_outline:
                    draw.line([*points, points[0], points[1]], fill=ink, width=4, joint="curve")
                else:
                    draw.polygon(points, fill=ink)
    return canvas.reduce(2)


def draw_empty(colour: str, background: str, rng: Random) -> Image.Image:
    """Draw a background with nothing on it, in about this colour."""
    paper = _jitter(COLOURS[colour], rng)
    return _draw_background(background, _contrasting(paper, rng), paper, rng).reduce(2)


def write_caption(scene: Scene, rng: Random, world: World | None = None) -> str:
    """Write an English caption of at least three words, in one of several styles, that leaves attributes out."""
    frames = (world or POOL_WORLD).frames
    colour = f"{scene.colour} " if rng.random() < 0.25 else ""
    size = "" if rng.random() < 0.85 else ("big " if scene.size == "large" else "little ")
    ending = f" on a {_GROUND_WORDS[scene.background]} background" if rng.random() < 0.1 else ""
    noun = scene.name
    style = scene.kind
    if scene.kind == "texture":
        size = ending = ""
    elif scene.kind == "pictogram":
        if rng.random() < 0.15:
            noun = f"{noun} {rng.choice(frames['icon words'])}"
        if scene.name in CATEGORY_OF and rng.random() < 0.5:
            style = "category"
    elif scene.kind == "shape":
        noun = rng.choice(("shape", "object")) if rng.random() < 0.1 else noun
        if scene.place and rng.random() < 0.5:
            ending = rng.choice(frames["places"]).format(scene.place) + ending
        if scene.count > 1:
            number = NUMBERS[scene.count - 1] if rng.random() < 0.85 else "some"
            noun, size, style = plural(noun), f"{number} {size}", "shapes"
    phrase = f"{size}{colour}{noun}"
    values = {
        "p": phrase,
        "a": _article(phrase),
        "n": scene.name,
        "c": colour.strip() or rng.choice(frames["no colour"]),
        "k": CATEGORY_OF.get(scene.name, ""),
        "d": str(DIGITS.index(scene.name)) if scene.kind == "digit" else "",
        "s": size + colour,
    }
    text = " ".join((rng.choice(frames[style]).format(**values) + ending).split())
    return text if text.count(" ") >= 2 else f"{rng.choice(frames['longer'])} {text}"


def write_full_caption(scene: Scene, rng: Random) -> str:
    """Write a caption that names everything a caption ever names."""
    size = "big" if scene.size == "large" else "little"
    ground = "" if scene.kind == "texture" else f" on a {_GROUND_WORDS[scene.background]} background"
    match scene.kind:
        case "letter":
            return f"a {size} {scene.colour} letter {scene.name}{ground}"
        case "digit":
            return f"the {scene.colour} handwritten digit {scene.name}{ground}"
        case "texture":
            return f"a {scene.colour} {scene.name} pattern"
        case "pictogram":
            return f"a {size} {scene.colour} {scene.name} icon{ground}"
    what = scene.name if scene.count == 1 else plural(scene.name)
    number = NUMBERS[scene.count - 1] if scene.count > 1 else "a"
    place = f" at the {scene.place}" if scene.place else ""
    frame = rng.choice(("{}", "a photo of {}"))
    return frame.format(f"{number} {size} {scene.colour} {what}{place}{ground}")


def plural(noun: str) -> str:
    """Return the plural of a noun of this world."""
    if noun in ("fish",):
        return noun
    return noun + ("es" if noun.endswith(("s", "x")) else "s")


@lru_cache(maxsize=256)
def load_font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """Load one of matplotlib's fonts; the basic layout engine is faster and does not depend on Raqm."""
    return ImageFont.truetype(_fonts_dir() / f"{name}.ttf", size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache
def _fonts_dir() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@lru_cache
def _digits() -> tuple[list[Image.Image], list[int]]:
    """Return scikit-learn's handwritten digits (Alpaydin & Kaynak 1998, UCI) as masks, and what each is."""
    from sklearn.datasets import load_digits

    data = load_digits()
    masks = np.clip(data.images * 16, 0, 255).astype(np.uint8)  # (digits, 8, 8)
    return [Image.fromarray(mask) for mask in masks], data.target.tolist()


_POOL_FRAMES: Frames = {
    "icon words": ("icon", "icon", "sign", "symbol"),
    "no colour": ("colour", "print", "two sizes"),
    "places": (" at the {}", " at the {}", " on the {} side", ", {}"),
    "longer": ("a photo of", "a drawing of", "here is", "look at"),
    "shape": (
        "{a} {p}",
        "{a} {p}",
        "a photo of {a} {p}",
        "a drawing of {a} {p}",
        "this is {a} {p}",
        "there is {a} {p} here",
        "the {p} that I made yesterday",
        "look at this {p}",
        "simple {p} design for anyone",
        "my favourite {p} sticker",
        "{a} {p} to print and colour",
        "how to make {a} {p}",
        "{n}, {c}, clip art",
    ),
    "shapes": (
        "{p}",
        "{p}",
        "a photo of {p}",
        "a drawing of {p}",
        "there are {p} here",
        "I made {p} today",
        "look at these {p}",
        "a group of {p}",
    ),
    "letter": (
        "{a} {s}letter {n}",
        "the {s}letter {n}",
        "a photo of the {s}letter {n}",
        "{s}capital letter {n}",
        "a sign with the {s}letter {n}",
        "this is the {s}letter {n}",
        "learn to write the letter {n}",
        "letter {n} poster in {c}",
    ),
    "digit": (
        "the {s}digit {n}",
        "a {s}handwritten {n}",
        "{s}number {n} in handwriting",
        "who wrote the number {n}",
        "number {d}, {n}, written by hand",
        "the digit {d} ({n}) in {c}",
        "this is the number {n}",
    ),
    "pictogram": (
        "{a} {p}",
        "{a} {p}",
        "{a} {p} icon",
        "{p} symbol for your app",
        "a drawing of {a} {p}",
        "a photo of {a} {p}",
        "this is {a} {p}",
        "look at this {p}",
        "{n} icon in {c}",
        "free {p} vector",
        "my new {p} sticker",
        "{n}, {c}, icon",
    ),
    "category": (
        "{n}, {k}, icon",
        "{k} icon: {p}",
        "{a} {p} from our {k} set",
        "{k} stickers, {p}",
        "{n} and more of the {k} kind",
    ),
    "texture": (
        "a {p} pattern",
        "{p} wallpaper for the hall",
        "a {p} texture",
        "{p} seamless gift paper",
        "seamless {p} background",
        "a bag with {p} print",
        "{n} pattern in {c}",
    ),
}
_REFERENCE_FRAMES: Frames = {
    "icon words": ("icon", "pictogram"),
    "no colour": ("one colour", "ink"),
    "places": (" at the {}", " near the {}", " in the {} part"),
    "longer": ("an image of", "we see"),
    "shape": (
        "{a} {p}",
        "an image of {a} {p}",
        "{a} {p} on paper",
        "here you see {a} {p}",
        "{p} cut out of cardboard",
        "we drew {a} {p}",
        "somebody painted this {p}",
        "{n} in {c}",
    ),
    "shapes": ("{p}", "an image of {p}", "here you see {p}", "we drew {p}", "{p} on paper"),
    "letter": (
        "the {s}letter {n}",
        "{a} {s}letter {n}",
        "an image of the {s}letter {n}",
        "{s}letter {n} on paper",
        "here you see a {s}letter {n}",
        "capital {n} in {c}",
    ),
    "digit": (
        "the {s}digit {n}",
        "an image of the number {n}",
        "a {s}number {n} on paper",
        "here you see the digit {d}, {n}",
    ),
    "pictogram": (
        "{a} {p}",
        "an image of {a} {p}",
        "{a} {p} icon",
        "here you see {a} {p}",
        "{p} on paper",
        "{n} in {c}",
    ),
    "category": ("{a} {p}, {k}", "{n}, some kind of {k}", "an image of {a} {p} ({k})"),
    "texture": ("a {p} pattern", "an image of {p} paper", "here you see {a} {p} surface", "{n} texture in {c}"),
}
_GROUND_WORDS = {
    "plain": "plain",
    "gradient": "shaded",
    "stripes": "striped",
    "dots": "dotted",
    "noise": "grainy",
    "clutter": "messy",
}


def _article(phrase: str) -> str:
    if phrase.endswith("s") and not phrase.endswith(("ss", "bus", "compass")):
        return "some"
    return "an" if phrase[0] in "aeiou" else "a"


def _centre(size: int, rng: Random) -> tuple[int, int]:
    slack = max(1, (CANVAS_SIZE - size) // 3)
    return 32 + rng.randint(-slack, slack), 32 + rng.randint(-slack, slack)


def _jitter(colour: Rgb, rng: Random) -> Rgb:
    shift = rng.randint(-12, 12)
    red, green, blue = (min(255, max(0, value + shift + rng.randint(-10, 10))) for value in colour)
    return red, green, blue


def _contrasting(ink: Rgb, rng: Random) -> Rgb:
    far = [paper for paper in BACKGROUND_COLOURS if sum(abs(a - b) for a, b in zip(ink, paper, strict=True)) > 170]
    return _jitter(rng.choice(far), rng)


def _layout(scene: Scene, rng: Random) -> list[tuple[Point, float]]:
    """Return centre and radius of each object, in canvas pixels, without overlaps."""
    if scene.place:
        x, y = PLACES[scene.place]
        return [((x + rng.uniform(-3, 3), y + rng.uniform(-3, 3)), rng.uniform(10, 15))]
    if scene.count == 1:
        radius = rng.uniform(20, 28) if scene.size == "large" else rng.uniform(12, 17)
        slack = max(1.0, 30 - radius)
        return [((32 + rng.uniform(-slack, slack), 32 + rng.uniform(-slack, slack)), radius)]
    per_side = 2 if scene.count <= 4 and scene.size == "large" else 3
    cell = CANVAS_SIZE / per_side
    radius = cell * rng.uniform(0.38, 0.47)
    slack = cell / 2 - radius
    cells = rng.sample(range(per_side * per_side), scene.count)
    return [
        (
            (
                (place % per_side + 0.5) * cell + rng.uniform(-slack, slack),
                (place // per_side + 0.5) * cell + rng.uniform(-slack, slack),
            ),
            radius,
        )
        for place in cells
    ]


def _place(shape: Sequence[Point], centre: Point, radius: float, angle: float) -> list[Point]:
    cos, sin = math.cos(angle) * radius, math.sin(angle) * radius
    return [(centre[0] + x * cos - y * sin, centre[1] + x * sin + y * cos) for x, y in shape]


def _draw_background(name: str, ink: Rgb, paper: Rgb, rng: Random) -> Image.Image:
    canvas = Image.new("RGB", (CANVAS_SIZE, CANVAS_SIZE), paper)
    return _BACKGROUND_PAINTERS[name](canvas, paper, ink, rng)


def _paint_texture(name: str, ink: Rgb, paper: Rgb, rng: Random) -> Image.Image:
    """Fill a canvas with a pattern in two colours."""
    canvas = Image.new("RGB", (CANVAS_SIZE, CANVAS_SIZE), paper)
    draw = ImageDraw.Draw(canvas)
    step, shift = rng.randint(10, 18), rng.randint(0, 9)
    starts = range(-CANVAS_SIZE - shift, 2 * CANVAS_SIZE, step)
    across = range(-shift, CANVAS_SIZE + step, step)
    match name:
        case "striped":
            slope = rng.choice((-40, 0, 40, None))
            for start in starts:
                ends = [(-2, start), (66, start)] if slope is None else [(start, -2), (start + slope, 66)]
                draw.line(ends, fill=ink, width=step // 2)
        case "dotted" | "checked":
            for row, y in enumerate(across):
                for column, x in enumerate(across):
                    if name == "dotted":
                        draw.ellipse((x, y, x + step // 2, y + step // 2), fill=ink)
                    elif (row + column) % 2:
                        draw.rectangle((x, y, x + step - 1, y + step - 1), fill=ink)
        case "wavy" | "zigzag":
            width, height = rng.randint(10, 14), rng.randint(4, 6)
            for start in across:
                if name == "zigzag":
                    line = [(x, start + height * (-1) ** place) for place, x in enumerate(range(-6, 76, width))]
                else:
                    line = [(x, round(start + height * math.sin(x * math.pi / width))) for x in range(-2, 68, 2)]
                draw.line(line, fill=ink, width=4)
        case "brick":
            for row, y in enumerate(range(-shift, CANVAS_SIZE, 12)):
                for x in range(-shift - 11 * (row % 2), CANVAS_SIZE, 22):
                    draw.rectangle((x, y, x + 18, y + 8), fill=ink)
        case "grid":
            for start in across:
                draw.line([(start, -2), (start, 66)], fill=ink, width=3)
                draw.line([(-2, start), (66, start)], fill=ink, width=3)
        case _:
            assert name == "speckled", name
            for _ in range(rng.randint(70, 110)):
                x, y, radius = rng.randint(-2, 64), rng.randint(-2, 64), rng.randint(1, 2)
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)
    return canvas


def _paint_plain(canvas: Image.Image, paper: Rgb, ink: Rgb, rng: Random) -> Image.Image:
    return canvas


def _paint_gradient(canvas: Image.Image, paper: Rgb, ink: Rgb, rng: Random) -> Image.Image:
    corners = Image.new("RGB", (2, 2))
    for x, y in ((0, 0), (0, 1), (1, 0), (1, 1)):
        corners.putpixel((x, y), _contrasting(ink, rng))
    return corners.resize(canvas.size, Image.Resampling.BILINEAR)


def _paint_stripes(canvas: Image.Image, paper: Rgb, ink: Rgb, rng: Random) -> Image.Image:
    draw, other = ImageDraw.Draw(canvas), _contrasting(ink, rng)
    step, slope = rng.randint(8, 16), rng.choice((-32, 0, 32))
    is_across = rng.random() < 0.5
    for start in range(-64, 128, step):
        ends = [(start, -2), (start + slope, 66)] if is_across else [(-2, start), (66, start + slope)]
        draw.line(ends, fill=other, width=step // 2)
    return canvas


def _paint_dots(canvas: Image.Image, paper: Rgb, ink: Rgb, rng: Random) -> Image.Image:
    draw, other = ImageDraw.Draw(canvas), _contrasting(ink, rng)
    step = rng.randint(10, 16)
    radius = step // 4
    for x in range(rng.randint(0, step), CANVAS_SIZE, step):
        for y in range(step // 2, CANVAS_SIZE, step):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=other)
    return canvas


def _paint_noise(canvas: Image.Image, paper: Rgb, ink: Rgb, rng: Random) -> Image.Image:
    grain = Image.frombytes("RGB", (16, 16), rng.randbytes(768)).resize(canvas.size, Image.Resampling.NEAREST)
    return Image.blend(canvas, grain, 0.22)


def _paint_clutter(canvas: Image.Image, paper: Rgb, ink: Rgb, rng: Random) -> Image.Image:
    """Scribble; the pool has no such background."""
    draw = ImageDraw.Draw(canvas)
    for _ in range(rng.randint(10, 16)):
        ends = [(rng.randint(-8, 72), rng.randint(-8, 72)) for _ in range(3)]
        draw.line(ends, fill=_contrasting(ink, rng), width=rng.randint(2, 5), joint="curve")
    return canvas


_BACKGROUND_PAINTERS: dict[str, Callable[[Image.Image, Rgb, Rgb, Random], Image.Image]] = {
    "plain": _paint_plain,
    "gradient": _paint_gradient,
    "stripes": _paint_stripes,
    "dots": _paint_dots,
    "noise": _paint_noise,
    "clutter": _paint_clutter,
}


def _arc(radius: float, start: float, stop: float, steps: int, centre: Point = (0.0, 0.0)) -> list[Point]:
    """Return points on a circle between two angles in degrees."""
    angles = [math.radians(start + (stop - start) * step / steps) for step in range(steps + 1)]
    return [(centre[0] + radius * math.cos(angle), centre[1] + radius * math.sin(angle)) for angle in angles]


def _star(points: int, inner: float) -> list[Point]:
    radii = [1.0 if index % 2 == 0 else inner for index in range(2 * points)]
    angles = [math.pi * (index / points - 0.5) for index in range(2 * points)]
    return [(radius * math.cos(angle), radius * math.sin(angle)) for radius, angle in zip(radii, angles, strict=True)]


def _heart() -> list[Point]:
    angles = [2 * math.pi * index / 28 for index in range(28)]
    return [
        (
            math.sin(angle) ** 3,
            -(13 * math.cos(angle) - 5 * math.cos(2 * angle) - 2 * math.cos(3 * angle) - math.cos(4 * angle)) / 16,
        )
        for angle in angles
    ]


SHAPES: dict[str, list[Point]] = {  # closed outlines within the unit circle, y downwards
    "circle": _arc(0.9, 0, 348, 29),
    "square": [(-0.78, -0.78), (0.78, -0.78), (0.78, 0.78), (-0.78, 0.78)],
    "triangle": [(0.0, -1.0), (0.9, 0.65), (-0.9, 0.65)],
    "star": _star(5, 0.42),
    "heart": _heart(),
    "diamond": [(0.0, -1.0), (0.62, 0.0), (0.0, 1.0), (-0.62, 0.0)],
    "cross": [
        (-0.3, -0.95), (0.3, -0.95), (0.3, -0.3), (0.95, -0.3), (0.95, 0.3), (0.3, 0.3),
        (0.3, 0.95), (-0.3, 0.95), (-0.3, 0.3), (-0.95, 0.3), (-0.95, -0.3), (-0.3, -0.3),
    ],
    "arrow": [(-1.0, -0.25), (0.15, -0.25), (0.15, -0.75), (1.0, 0.0), (0.15, 0.75), (0.15, 0.25), (-1.0, 0.25)],
    "moon": [*_arc(0.95, 50, 310, 22), *_arc(0.8, 295, 65, 18, (0.35, 0.0))],
    "ring": [*_arc(0.95, 0, 360, 28), *_arc(0.5, 360, 0, 20)],
    "hexagon": _arc(0.95, 0, 300, 5),
    "cloud": [
        (-0.75, 0.5), *_arc(0.38, 130, 280, 6, (-0.6, 0.12)), *_arc(0.45, 190, 330, 7, (-0.1, -0.25)),
        *_arc(0.36, 250, 410, 7, (0.58, 0.14)), (0.75, 0.5),
    ],
    "house": [(-0.7, 0.85), (-0.7, -0.05), (-0.98, -0.05), (0.0, -0.95), (0.98, -0.05), (0.7, -0.05), (0.7, 0.85),
              (0.2, 0.85), (0.2, 0.3), (-0.2, 0.3), (-0.2, 0.85)],
    "tree": [
        (-0.15, 1.0), (-0.15, 0.55), (-0.75, 0.55), (-0.3, 0.05), (-0.6, 0.05), (0.0, -1.0),
        (0.6, 0.05), (0.3, 0.05), (0.75, 0.55), (0.15, 0.55), (0.15, 1.0),
    ],
    "fish": [
        *[(0.62 * x + 0.3, 0.5 * y) for x, y in _arc(1.0, -160, 160, 20)],
        (-0.95, 0.55), (-0.75, 0.0), (-0.95, -0.55),
    ],
    "bolt": [(0.3, -1.0), (-0.6, 0.15), (-0.05, 0.15), (-0.3, 1.0), (0.6, -0.25), (0.08, -0.25), (0.55, -1.0)],
}  # fmt: skip
SHAPE_NAMES = tuple(SHAPES)

POOL_WORLD = World(
    kinds={"pictogram": 0.28, "shape": 0.31, "letter": 0.14, "digit": 0.12, "texture": 0.15},
    shapes=SHAPE_NAMES,
    letters=LETTERS,
    fonts=("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono-Bold"),
    digits=range(300, 1000),
    textures=TEXTURES,
    pictograms=PICTOGRAMS + VEHICLES,
    designers=POOL_DESIGNERS,
    frames=_POOL_FRAMES,
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
    frames=_REFERENCE_FRAMES,
)
EVALUATION_DIGITS = range(1000, 1797)
