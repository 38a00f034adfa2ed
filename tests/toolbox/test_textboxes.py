"""The text detector: what it finds and leaves alone, and what is left of a picture that was painted over."""

import io
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageDraw

from benchmark.embedded import noise, pictures, world
from benchmark.toolbox.text_boxes import Box, find_text, paint_over

INK, PAPER = (20, 40, 90), (240, 235, 200)


def as_stored(picture):
    """Return a picture's pixels as a JPEG of the embedded pool has them."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    return np.asarray(Image.open(file).convert("RGB"))


def drawings(draw, count, seed):
    return np.stack([as_stored(draw(Random(f"{seed}/{number}"))) for number in range(count)])


def share_with_text(pixels):
    return np.mean([len(boxes) > 0 for boxes in find_text(pixels)])


def write(text, size, *, side=256, at=(20, 30), font="DejaVuSans", picture=None):
    """Draw a text; return the picture and the text's own box as slices."""
    picture = Image.new("RGB", (side, side), PAPER) if picture is None else picture.copy()
    draw, loaded = ImageDraw.Draw(picture), pictures.load_font(font, size)
    draw.text(at, text, fill=INK, font=loaded)
    left, top, right, bottom = (int(value) for value in draw.textbbox(at, text, font=loaded))
    return np.asarray(picture), np.s_[top:bottom, left:right]


def test_words_of_the_embedded_world_are_found():
    assert share_with_text(drawings(lambda rng: noise.draw_word(rng)[0], 400, "words")) > 0.88


@pytest.mark.parametrize("kind", ["scenes", "off domain"])
def test_drawings_without_words_are_left_alone(kind):
    def draw(rng):
        if kind == "scenes":
            return pictures.draw_picture(world.draw_random_scene(rng), rng)
        return noise.draw_off_domain(rng)[0]

    assert share_with_text(drawings(draw, 400, kind)) < 0.05


def test_single_letters_digits_and_pairs_are_left_alone():
    texts = [*"ABCDEFGHIJKLMNOPQRSTUVWXYZ", *"abcdefghijklmnopqrstuvwxyz", *"0123456789", "ok", "17", "x"]
    for size, side in ((24, 32), (60, 128)):
        pixels = np.stack([write(text, size, side=side, at=(3, 2))[0] for text in texts])
        assert share_with_text(pixels) <= 2 / len(texts), (size, side)


@pytest.mark.parametrize("size", [10, 14, 20, 28, 40, 56])
@pytest.mark.parametrize("font", ["DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif"])
def test_lines_of_all_sizes_are_found_and_nothing_is_left_of_them(size, font):
    text = "the quick brown fox jumps"[: 300 // size]
    pixels, _ = write(text, size, font=font)
    masked = paint_over(pixels, find_text(pixels[None])[0])
    left = (np.abs(masked.astype(int) - PAPER).max(axis=2) > 60).sum()
    assert left <= 0.02 * (np.abs(pixels.astype(int) - PAPER).max(axis=2) > 60).sum()


def test_paragraphs_are_found_and_other_parts_stay_as_they_are():
    picture = Image.new("RGB", (256, 256), PAPER)
    ImageDraw.Draw(picture).ellipse((90, 150, 170, 230), fill=(200, 30, 30))
    for line in range(4):
        pixels, _ = write("the quick brown fox", 16, at=(20, 10 + 24 * line), picture=picture)
        picture = Image.fromarray(pixels)
    masked = paint_over(pixels, find_text(pixels[None])[0])
    assert (masked[:120] == PAPER).all()
    assert (masked[140:] == pixels[140:]).all()


def test_stripes_boards_and_plain_pictures_are_left_alone():
    rows, columns = np.mgrid[:64, :64]
    masks = [columns // width % 2 for width in (1, 2, 4)] + [rows // 3 % 2, (rows // 4 + columns // 4) % 2, 0 * rows]
    pixels = np.stack([np.where(mask[..., None], INK, PAPER).astype(np.uint8) for mask in masks])
    assert find_text(pixels) == [[]] * len(masks)


def test_tiny_pictures_have_no_text():
    assert find_text(np.zeros((2, 8, 8, 3), dtype=np.uint8)) == [[], []]
    assert find_text(np.zeros((0, 32, 32, 3), dtype=np.uint8)) == []


def test_a_picture_is_judged_alone():
    """Neither the pictures beside it nor the batches change what is found."""
    pixels = drawings(lambda rng: noise.draw_word(rng)[0], 30, "alone")
    assert find_text(pixels) == [find_text(each[None])[0] for each in pixels]


def test_boxes_take_the_mean_colour_around_them():
    pixels = np.zeros((20, 20, 3), dtype=np.uint8)
    pixels[:, :10] = 100
    pixels[8:12, 8:12] = 255
    masked = paint_over(pixels, [Box(8, 8, 12, 12)])
    assert (masked[8:12, 8:12] == 50).all()
    masked[8:12, 8:12] = pixels[8:12, 8:12]
    assert (masked == pixels).all()
    assert (paint_over(pixels, [Box(0, 0, 20, 20)]) == np.rint(pixels.reshape(-1, 3).mean(axis=0))).all()
    assert paint_over(pixels, []) is not pixels
