"""Pictures of scenes at 32 px: shapes, letters, digits, pictograms and patterns on backgrounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from random import Random

from PIL import Image, ImageDraw, ImageFont

from benchmark.embedded.pictograms import load_icon_font
from benchmark.embedded.shapes import SHAPES, Point
from benchmark.embedded.world import CANVAS_SIZE, COLOURS, PLACES, Rgb, Scene, load_digit_masks

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


def draw_picture(scene: Scene, rng: Random, *, is_outline: bool = False) -> Image.Image:
    """Draw a scene at 32 x 32 px, RGB; its shapes as outlines where `is_outline`."""
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
            stroke = load_digit_masks()[0][scene.drawing].resize((side, side), Image.Resampling.BICUBIC)
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


@lru_cache(maxsize=256)
def load_font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """Load one of matplotlib's fonts; the basic layout engine is faster and does not depend on Raqm."""
    return ImageFont.truetype(_fonts_dir() / f"{name}.ttf", size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache
def _fonts_dir() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


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
