"""Finding lines of text in pictures, and painting over them: a small classical detector, without learned parts.

Along a line of text, ink and paper alternate at short steps, in a few rows that lie on top of each other, and the rows
just above and below are quiet. Single letters, digits and shapes alternate too seldom, stripes and boards in too many
rows, bars in every row alike. Only roughly horizontal lines are found.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

MIN_SIDE = 24  # pixels; a picture is halved as long as its shorter side keeps this many, to find larger text
MAX_HEIGHT = 14  # of a line, in pixels, before the next halving
MIN_HEIGHT = 3
MIN_ASPECT = 2.2  # width over height; three capital letters are wider
MIN_SWINGS = 5  # of a row; a letter has two to six, and shapes have two
MAX_GAP = 9  # pixels from swing to swing, within words and between them
MIN_STEP = 10.0  # grey levels between neighbouring pixels that count as an edge
STEP_SHARES = (0.08, 0.25)  # and of the picture's whole contrast: text may be faint, or stand out of a busy picture
MAX_UNREST = 0.2  # swings just above and below, over those of the line
MIN_FILL = 0.75  # of the box by its rows' runs
DENSITY = (1.5, 5.0)  # swings per row, for each piece of a line that is as wide as high
AGREEMENT = (0.36, 0.82)  # of edges with those in the row below: less is grain, more is bars
BATCH_PIXELS = 1 << 20  # looked at in one go


class Box(NamedTuple):
    """A rectangle of pixels; bottom and right are the first outside it."""

    top: int
    left: int
    bottom: int
    right: int


def find_text(pixels: np.ndarray) -> list[list[Box]]:
    """Find the lines of text in pictures of one size, (n, height, width, 3) uint8: each one's boxes.

    A box that lies in another is left out; they stand by size, the largest first.
    """
    count, height, width = pixels.shape[:3]
    boxes: list[list[Box]] = [[] for _ in range(count)]
    batch = max(1, BATCH_PIXELS // max(1, height * width))
    for start in range(0, count, batch):
        grey = _main_contrast(pixels[start : start + batch])
        contrast = grey.max(axis=(1, 2)) - grey.min(axis=(1, 2))
        factor = 1
        while min(grey.shape[1:]) >= MIN_SIDE:
            for share in STEP_SHARES:
                for number, (top, left, bottom, right) in _lines(grey, np.maximum(MIN_STEP, share * contrast)):
                    bottom, right = min(bottom * factor, height), min(right * factor, width)
                    boxes[start + number].append(Box(top * factor, left * factor, bottom, right))
            grey, factor = _halve(grey), 2 * factor
    return [_without_inner(each) for each in boxes]


def find_text_in(images: list[np.ndarray]) -> list[list[Box]]:
    """Find the lines of text in pictures of any sizes, each (height, width, 3) uint8: each one's boxes."""
    boxes: list[list[Box]] = [[] for _ in images]
    by_size: dict[tuple[int, ...], list[int]] = {}
    for place, each in enumerate(images):
        by_size.setdefault(each.shape, []).append(place)
    for places in by_size.values():
        # Large ones one by one: a stack would hold them all a second time.
        step = max(1, BATCH_PIXELS // max(1, images[places[0]].size))
        for start in range(0, len(places), step):
            group = places[start : start + step]
            for place, found in zip(group, find_text(np.stack([images[each] for each in group])), strict=True):
                boxes[place] = found
    return boxes


def paint_over(pixels: np.ndarray, boxes: list[Box]) -> np.ndarray:
    """Return a picture (height, width, 3) with each box filled with the mean colour of the pixels around it."""
    is_text = np.zeros(pixels.shape[:2], dtype=bool)
    for box in boxes:
        is_text[box.top : box.bottom, box.left : box.right] = True
    result = pixels.copy()
    for box in boxes:
        margin = max(1, (box.bottom - box.top) // 4)
        around = np.s_[
            max(0, box.top - margin) : box.bottom + margin,
            max(0, box.left - margin) : box.right + margin,
        ]
        ring = pixels[around][~is_text[around]]
        if len(ring) == 0:  # walled in by other boxes, or the whole picture
            ring = pixels[~is_text] if not is_text.all() else pixels.reshape(-1, 3)
        result[box.top : box.bottom, box.left : box.right] = np.rint(ring.mean(axis=0))
    return result


def _without_inner(boxes: list[Box]) -> list[Box]:
    outer: list[Box] = []
    for box in sorted(boxes, key=lambda box: ((box.top - box.bottom) * (box.right - box.left), box)):
        if not any(
            other.top <= box.top and other.left <= box.left and box.bottom <= other.bottom and box.right <= other.right
            for other in outer
        ):
            outer.append(box)
    return outer


def _main_contrast(pixels: np.ndarray) -> np.ndarray:
    """Return each picture along the line through its colours on which they differ most: (n, height, width) float32."""
    colours = pixels.reshape(len(pixels), -1, 3).astype(np.float32)
    colours -= colours.mean(axis=1, keepdims=True)
    covariance = np.einsum("npi,npj->nij", colours, colours) / colours.shape[1]
    direction = np.linalg.eigh(covariance)[1][:, :, 2]  # of the largest eigenvalue
    return np.einsum("npi,ni->np", colours, direction).reshape(pixels.shape[:3])


def _halve(grey: np.ndarray) -> np.ndarray:
    height, width = (side // 2 * 2 for side in grey.shape[1:])
    even = grey[:, :height, :width]
    return (even[:, ::2, ::2] + even[:, 1::2, ::2] + even[:, ::2, 1::2] + even[:, 1::2, 1::2]) / 4


def _lines(grey: np.ndarray, least_step: np.ndarray) -> Iterator[tuple[int, Box]]:
    """Yield the lines at one resolution: number of the picture, and box."""
    from scipy import ndimage  # here, as listing the filters must not load it

    steps = np.diff(grey, axis=2)  # (n, height, width - 1)
    signs = np.sign(steps).astype(np.int8)
    signs[np.abs(steps) < least_step[:, None, None]] = 0
    swings = _swings(signs)
    in_plane = np.zeros((3, 3, 3), dtype=bool)
    in_plane[1] = ndimage.generate_binary_structure(2, 1)
    runs, _ = ndimage.label(_runs(swings), structure=in_plane)
    height, width = grey.shape[1:]
    for label, (plane, rows, columns) in enumerate(ndimage.find_objects(runs), start=1):
        number = plane.start
        line_height, line_width = rows.stop - rows.start, columns.stop - columns.start
        if not MIN_HEIGHT <= line_height <= MAX_HEIGHT or line_width < MIN_ASPECT * line_height:
            continue
        swings_per_row = swings[number, rows, columns].sum() / line_height
        if not DENSITY[0] <= swings_per_row * line_height / line_width <= DENSITY[1]:
            continue
        if (runs[number, rows, columns] == label).mean() < MIN_FILL:
            continue
        if not AGREEMENT[0] <= _agreement(signs[number, rows, columns]) <= AGREEMENT[1]:
            continue
        reach = line_height // 2 + 1  # beyond ascenders and descenders, or between two lines
        above = swings[number, max(0, rows.start - reach) : rows.start, columns].sum(axis=1)
        below = swings[number, rows.stop : rows.stop + reach, columns].sum(axis=1)
        if max(side.min(initial=height) for side in (above, below) if len(side)) > MAX_UNREST * swings_per_row:
            continue
        across, along = 1 + line_height * 2 // 5, 1 + line_height // 4  # what sticks out, and soft edges
        yield (
            number,
            Box(
                max(0, rows.start - across),
                max(0, columns.start - along),
                min(height, rows.stop + across),
                min(width, columns.stop + 1 + along),
            ),
        )


def _swings(signs: np.ndarray) -> np.ndarray:
    """Tell where an edge follows one of the other sign in its row, or none: (n, height, width - 1) bool."""
    places = np.where(signs != 0, np.arange(signs.shape[2], dtype=np.int32), -1)
    previous = np.full_like(places, -1)
    np.maximum.accumulate(places[:, :, :-1], axis=2, out=previous[:, :, 1:])
    sign_before = np.take_along_axis(signs, np.maximum(previous, 0), axis=2)
    return (signs != 0) & ((previous < 0) | (sign_before != signs))


def _runs(swings: np.ndarray) -> np.ndarray:
    """Fill each row from the first to the last of at least MIN_SWINGS swings that are at most MAX_GAP apart."""
    width = swings.shape[2]
    places = np.flatnonzero(swings)
    row, column = places // width, places % width
    is_first = np.ones(len(places), dtype=bool)
    is_first[1:] = (row[1:] != row[:-1]) | (column[1:] - column[:-1] > MAX_GAP)
    starts = np.flatnonzero(is_first)
    ends = np.append(starts[1:], len(places)) - 1
    is_long = ends - starts >= MIN_SWINGS - 1
    starts, ends = starts[is_long], ends[is_long]
    change = np.zeros(swings.size // width * (width + 1), dtype=np.int8)  # a row has a column more, for ends
    change[row[starts] * (width + 1) + column[starts]] += 1
    change[row[ends] * (width + 1) + column[ends] + 1] -= 1
    return np.cumsum(change, dtype=np.int32).reshape(*swings.shape[:2], width + 1)[:, :, :width] > 0


def _agreement(signs: np.ndarray) -> float:
    """Return how many edges stand above one of the same sign, of all places with an edge in either row."""
    upper, lower = signs[:-1], signs[1:]
    is_edge = (upper != 0) | (lower != 0)
    return float(((upper == lower) & is_edge).sum() / max(1, is_edge.sum()))
