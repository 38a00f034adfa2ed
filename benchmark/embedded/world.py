"""The drawn world: scenes of shapes and letters, pictures of them at 32 px, and captions that leave things out.

Captions name the colour half of the time and the background seldom: named always, they solve the contrastive loss
alone and shapes stay at chance (measured on the prototype).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random

from PIL import Image, ImageDraw, ImageFont

IMAGE_SIZE = 32  # pixels
CANVAS_SIZE = 2 * IMAGE_SIZE  # drawn at twice the size and averaged down, for antialiasing

Rgb = tuple[int, int, int]
Point = tuple[float, float]

COLOURS: dict[str, Rgb] = {
    "red": (215, 30, 35),
    "orange": (245, 135, 20),
    "yellow": (245, 220, 40),
    "green": (35, 150, 55),
    "blue": (35, 70, 205),
    "purple": (125, 45, 165),
    "pink": (250, 145, 190),
    "brown": (120, 75, 40),
    "black": (20, 20, 22),
    "white": (248, 248, 248),
    "gray": (128, 128, 130),
    "turquoise": (45, 200, 200),
}
LETTERS = "ABEGHKMRSTXZ"
NUMBERS = ("one", "two", "three", "four", "five")

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
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono-Bold")
HELD_OUT_FONTS = ("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic")  # a family that the pool never draws


@dataclass(frozen=True)
class Scene:
    """What a picture shows: `count` objects of one shape and colour, or one letter."""

    name: str  # a shape, or a letter of LETTERS
    colour: str
    count: int
    size: str  # "large" or "small"
    background: str
    font: str  # of a letter; "" for shapes

    @property
    def is_letter(self) -> bool:
        return self.font != ""


def draw_random_scene(rng: Random) -> Scene:
    """Draw a scene as the pool holds them."""
    background = rng.choices(list(BACKGROUNDS), list(BACKGROUNDS.values()))[0]
    colour = rng.choice(list(COLOURS))
    kind = rng.random()
    if kind < 0.27:
        return Scene(rng.choice(LETTERS), colour, 1, random_size(rng), background, rng.choice(FONTS))
    count = rng.randint(2, 5) if kind < 0.45 else 1
    return Scene(rng.choice(SHAPE_NAMES), colour, count, random_size(rng), background, "")


def random_size(rng: Random) -> str:
    """Draw "large" (three in four) or "small"."""
    return "large" if rng.random() < 0.75 else "small"


def draw_picture(scene: Scene, rng: Random, *, is_outline: bool = False) -> Image.Image:
    """Draw a scene at 32 x 32 px, RGB; as outlines only where asked."""
    ink = _jitter(COLOURS[scene.colour], rng)
    paper = _contrasting(ink, rng)
    canvas = Image.new("RGB", (CANVAS_SIZE, CANVAS_SIZE), paper)
    canvas = _BACKGROUND_PAINTERS[scene.background](canvas, paper, ink, rng)
    draw = ImageDraw.Draw(canvas)
    if scene.is_letter:
        size = rng.randint(46, 58) if scene.size == "large" else rng.randint(32, 42)
        slack = max(1, (CANVAS_SIZE - size) // 3)
        centre = (32 + rng.randint(-slack, slack), 32 + rng.randint(-slack, slack))
        draw.text(centre, scene.name, fill=ink, font=load_font(scene.font, size), anchor="mm")
        return canvas.reduce(2)
    for middle, radius in _layout(scene, rng):
        points = _place(SHAPES[scene.name], middle, radius, rng.uniform(-0.25, 0.25))
        if is_outline:
            draw.line([*points, points[0], points[1]], fill=ink, width=4, joint="curve")
        else:
            draw.polygon(points, fill=ink)
    return canvas.reduce(2)


def write_caption(scene: Scene, rng: Random) -> str:
    """Write an English caption of at least three words, in one of several styles, that leaves attributes out."""
    colour = f"{scene.colour} " if rng.random() < 0.5 else ""
    size = "" if rng.random() < 0.85 else ("big " if scene.size == "large" else "little ")
    ground = f" on a {_GROUND_WORDS[scene.background]} background" if rng.random() < 0.1 else ""
    if scene.is_letter:
        frames = _LETTER_FRAMES if colour else _PLAIN_LETTER_FRAMES
        return rng.choice(frames).format(c=colour.strip(), s=size, l=scene.name) + ground
    noun = rng.choice(("shape", "object")) if rng.random() < 0.1 else scene.name
    if scene.count > 1:
        number = NUMBERS[scene.count - 1] if rng.random() < 0.85 else "some"
        return _long_enough(rng.choice(_PLURAL_FRAMES).format(f"{number} {size}{colour}{plural(noun)}") + ground)
    phrase = f"{size}{colour}{noun}"
    if rng.random() < 0.08:
        return _long_enough(f"one {phrase}{ground}")
    return _long_enough(rng.choice(_SINGULAR_FRAMES).format(p=phrase, a=_article(phrase)) + ground)


def write_full_caption(scene: Scene, rng: Random) -> str:
    """Write a caption that names everything a caption ever names."""
    size = "big" if scene.size == "large" else "little"
    ground = _GROUND_WORDS[scene.background]
    if scene.is_letter:
        frame = rng.choice(("a {} {} letter {} on a {} background", "{} {} capital letter {} on a {} background"))
        return frame.format(size, scene.colour, scene.name, ground)
    what = scene.name if scene.count == 1 else plural(scene.name)
    number = NUMBERS[scene.count - 1] if scene.count > 1 else "a"
    frame = rng.choice(("{} on a {} background", "a picture of {} on a {} background"))
    return frame.format(f"{number} {size} {scene.colour} {what}", ground)


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


_SINGULAR_FRAMES = (
    "{a} {p}",
    "{a} {p}",
    "a picture of {a} {p}",
    "a drawing of {a} {p}",
    "this is {a} {p}",
    "there is {a} {p} here",
    "the {p} that I drew yesterday",
    "look at this {p}",
    "simple {p} icon for children",
    "my favourite {p} sticker",
    "{a} {p} to print and colour",
    "how to draw {a} {p}",
)
_PLURAL_FRAMES = (
    "{}",
    "{}",
    "a picture of {}",
    "a drawing of {}",
    "there are {} here",
    "I drew {} today",
    "look at these {}",
    "a group of {}",
)
_LETTER_FRAMES = (
    "a {s}{c} letter {l}",
    "the {s}letter {l} in {c}",
    "a picture of the {c} letter {l}",
    "{c} capital letter {l}",
    "the letter {l} is {c}",
)
_PLAIN_LETTER_FRAMES = (
    "the {s}letter {l}",
    "a picture of the letter {l}",
    "a {s}capital letter {l}",
    "a sign with the letter {l}",
    "this is the letter {l}",
    "learn to write the letter {l}",
)
_GROUND_WORDS = {
    "plain": "plain",
    "gradient": "shaded",
    "stripes": "striped",
    "dots": "dotted",
    "noise": "grainy",
    "clutter": "messy",
}


def _article(phrase: str) -> str:
    return "an" if phrase[0] in "aeiou" else "a"


def _long_enough(caption: str) -> str:
    return caption if caption.count(" ") >= 2 else f"a picture of {caption}"


def _jitter(colour: Rgb, rng: Random) -> Rgb:
    shift = rng.randint(-12, 12)
    red, green, blue = (min(255, max(0, value + shift + rng.randint(-10, 10))) for value in colour)
    return red, green, blue


def _contrasting(ink: Rgb, rng: Random) -> Rgb:
    far = [paper for paper in BACKGROUND_COLOURS if sum(abs(a - b) for a, b in zip(ink, paper, strict=True)) > 170]
    return _jitter(rng.choice(far), rng)


def _layout(scene: Scene, rng: Random) -> list[tuple[Point, float]]:
    """Return centre and radius of each object, in canvas pixels, without overlaps."""
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
