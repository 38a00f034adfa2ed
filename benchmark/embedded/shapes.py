"""The shapes of the embedded world: closed outlines within the unit circle."""

from __future__ import annotations

import math

Point = tuple[float, float]


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
