"""Training data: what is read, decoded and augmented, the same for any number of workers and from memory or tars."""

import dataclasses
import io
import os
import pickle
from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional, v2

from benchmark.models.pixels import normalise
from benchmark.pool import samples
from benchmark.pool.index import read_index
from benchmark.pool.order import SampleOrder
from benchmark.pool.samples import SampleReader, decode_image, decode_pixels
from benchmark.pool.tars import write_tar
from benchmark.runtime import ranges
from benchmark.scales import SCALES, Augmentation
from benchmark.training import data
from benchmark.training.data import (
    Crop,
    StepBatches,
    batches_from,
    crop_and_resize,
    draw_crop,
    hold_samples,
    resize_and_crop,
    shift_images,
)
from tests.conftest import jpeg, members

SIZE, COUNT, BATCH = 8, 40, 8


def tokenizer(texts):
    return torch.tensor([[int(text.split()[-1]), len(text)] for text in texts])


def scale(**changes):
    base = {"image_size": SIZE, "samples_seen": 96, "batch_size": BATCH, "warmup_steps": 2}
    return dataclasses.replace(SCALES["pico"], **{**base, **changes})


@pytest.fixture(scope="module")
def pool_dir(tmp_path_factory):
    """40 samples in two tars; sample n is a picture of colour (6n, 0, 0) with the caption "number n"."""
    folder = tmp_path_factory.mktemp("pool")
    drawn = [members(f"{n:09d}", n, image=jpeg((6 * n, 0, 0)), text=f"number {n}") for n in range(COUNT)]
    write_tar(folder / "shards" / "00000000.tar", chain(*drawn[:25]))
    write_tar(folder / "shards" / "00000001.tar", chain(*drawn[25:]))
    return folder


def dataset(pool_dir, recipe, *, held=True, seed=0):
    reader = SampleReader(read_index(pool_dir), np.arange(COUNT))
    memory = hold_samples(reader, tokenizer, recipe) if held else None
    return StepBatches(SampleOrder(reader.samples, recipe, seed), reader, tokenizer, memory)


def same(one, other):
    return (one.images == other.images).all() and (one.tokens == other.tokens).all()


def test_image_and_caption_of_a_position_are_those_of_its_sample(pool_dir):
    batches = dataset(pool_dir, scale())
    for step in (0, 7, 11):
        expected = batches.order.samples[batches.order.batch(step)]
        batch = batches[step]
        assert batch.tokens[:, 0].tolist() == expected.tolist()
        assert np.abs(batch.images[:, 4, 4, 0].numpy().astype(int) - 6 * expected).max() <= 3  # JPEG's loss


def test_memory_and_tars_give_the_same_batches(pool_dir):
    held, read = dataset(pool_dir, scale()), dataset(pool_dir, scale(), held=False)
    assert all(same(held[step], read[step]) for step in range(12))


@pytest.mark.parametrize("held", [True, False])
def test_batches_do_not_depend_on_workers_nor_on_where_one_begins(pool_dir, held):
    batches = dataset(pool_dir, scale(), held=held)
    alone = list(batches_from(batches, 0, workers=0))
    together = list(batches_from(batches, 0, workers=2))
    later = list(batches_from(batches, 5, workers=2))
    assert len(alone) == len(together) == 12 and len(later) == 7
    assert all(map(same, alone, together)) and all(map(same, alone[5:], later))


def test_a_reader_keeps_few_files_open_and_is_sent_to_other_processes(pool_dir, monkeypatch):
    monkeypatch.setattr(ranges, "MAX_OPEN_FILES", 1)
    reader = SampleReader(read_index(pool_dir), np.arange(COUNT))
    captions = [reader.read(place)[1] for place in (0, 39, 1, 38)]
    assert captions == [b"number 0", b"number 39", b"number 1", b"number 38"]
    (file,) = reader.ranges._open.values()
    assert pickle.loads(pickle.dumps(reader)).read(7)[1] == b"number 7"
    os.fstat(file)
    del reader
    with pytest.raises(OSError):
        os.fstat(file)


def test_an_undecodable_sample_is_replaced_by_a_keyed_draw_and_nothing_moves(tmp_path, pool_dir):
    bad = [members(f"{n:09d}", n, image=jpeg((6 * n, 0, 0)), text=f"number {n}") for n in range(COUNT)]
    bad[3][0] = ("000000003.jpg", b"no picture")
    write_tar(tmp_path / "shards" / "a.tar", chain(*bad))
    whole = list(batches_from(dataset(pool_dir, scale()), 0, 0))
    for held in (True, False):
        damaged = list(batches_from(dataset(tmp_path, scale(), held=held), 0, 0))
        replaced = 0
        for one, other in zip(whole, damaged, strict=True):
            differs = one.tokens[:, 0] != other.tokens[:, 0]
            assert (one.tokens[differs, 0] == 3).all()
            assert other.undecodable == (one.tokens[:, 0] == 3).sum()
            assert set(other.failed) == ({3} if other.undecodable else set()) and len(other.failed) >= other.undecodable
            assert (other.tokens[:, 0] != 3).all()
            replaced += other.undecodable
        assert replaced == sum(int((batch.tokens[:, 0] == 3).sum()) for batch in whole) > 0


@pytest.mark.parametrize("data", [b"", b"GIF89a", jpeg()[:40]])
def test_bytes_that_are_no_picture_are_undecodable(data):
    assert decode_image(data) is None and decode_pixels(data) is None


def test_an_image_bomb_is_undecodable(monkeypatch):
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    assert decode_image(buffer.getvalue()) is None and decode_pixels(buffer.getvalue()) is None
    whole = encoded(PHOTO)
    monkeypatch.setattr(samples, "MAX_PIXELS", 201 * 123 - 1)
    assert decode_pixels(whole) is None


def test_shifts_move_by_at_most_the_pixels_with_edges_repeated():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (200, 5, 6, 3), dtype=np.uint8).repeat(1, axis=0)[:, :, :5]
    shifted = shift_images(images, 1, 0, np.arange(200))
    moves = set()
    for image, moved in zip(images, shifted, strict=True):
        padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
        found = [
            (down, right)
            for down in range(3)
            for right in range(3)
            if (padded[down : down + 5, right : right + 5] == moved).all()
        ]
        assert found
        moves.add(found[0])
    assert len(moves) == 9
    assert (shift_images(images[7:8], 1, 0, np.array([7])) == shifted[7:8]).all()  # keyed by position alone


def test_resize_and_crop_is_open_clips_evaluation_transform():
    pixels = np.random.default_rng(0).integers(0, 256, (30, 47, 3), dtype=np.uint8)
    resized = functional.resize(Image.fromarray(pixels), 16, functional.InterpolationMode.BICUBIC)
    expected = functional.center_crop(resized, [16, 16])
    assert (resize_and_crop(pixels, 16) == np.asarray(expected)).all()


def test_of_a_strip_the_middle_is_resized():
    """One pixel high and 16 million wide, it would be made 32 times as high and as wide."""
    strip = np.zeros((1, 1 << 24, 3), dtype=np.uint8)
    strip[0, (1 << 23) - 50 : (1 << 23) + 50] = 200
    assert (resize_and_crop(strip, 32) == 200).all()
    assert (resize_and_crop(strip.transpose(1, 0, 2), 32) == 200).all()


def test_a_crop_is_drawn_as_torchvision_draws_one(monkeypatch):
    """With every draw a half: of 75 % of the area a square does not fit, and the middle is taken; a fifth does."""
    monkeypatch.setattr(data, "keyed_uniform", lambda *keys: np.full(40, 0.5))
    assert draw_crop(90, 60, (0.5, 1.0), 0, 0) == Crop(left=5, top=0, width=80, height=60)
    assert draw_crop(90, 60, (0.1, 0.3), 0, 0) == Crop(left=29, top=14, width=33, height=33)


def test_a_crop_is_resized_as_torchvision_does_and_nearly_as_pillow_does():
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((400, 300), Image.Resampling.BICUBIC)  # smooth, as photographs are
    pixels = np.array(image)
    ours = crop_and_resize(pixels, 224, Crop(left=20, top=10, width=350, height=280))
    bicubic = transforms.InterpolationMode.BICUBIC
    box = (10, 20, 280, 350, [224, 224], bicubic)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    assert (ours == v2.functional.resized_crop(tensor, *box, antialias=True).permute(1, 2, 0).numpy()).all()
    gap = np.abs(ours.astype(int) - np.asarray(functional.resized_crop(image, *box)))
    assert gap.max() <= 4 and gap.mean() < 0.1


def encoded(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, options.pop("format", "JPEG"), **options)
    return buffer.getvalue()


PHOTO = Image.fromarray(np.random.default_rng(1).integers(0, 256, (24, 40, 3), dtype=np.uint8)).resize((201, 123))


@pytest.mark.parametrize(
    "encoded_image",
    [
        *[encoded(PHOTO, subsampling=subsampling) for subsampling in ("4:4:4", "4:2:2", "4:2:0")],
        encoded(PHOTO, progressive=True),
        encoded(PHOTO.convert("L")),
        encoded(PHOTO.convert("CMYK")),
        encoded(PHOTO, format="PNG"),
        encoded(PHOTO, format="WEBP"),
        encoded(PHOTO)[:900] + bytes(20) + encoded(PHOTO)[920:],
    ],
)
def test_both_decoders_give_the_same_pixels(encoded_image):
    assert np.array_equal(decode_pixels(encoded_image), np.asarray(decode_image(encoded_image)))


def test_random_crops_have_the_areas_and_aspects_of_the_recipe():
    """A picture whose colour tells the place: the crop's corners give its area and aspect."""
    across, down = np.meshgrid(np.arange(200), np.arange(150))
    pixels = np.stack([across, down, 0 * down], axis=2).astype(np.uint8)
    areas, aspects = [], []
    for position in range(300):
        crop = crop_and_resize(pixels, 32, draw_crop(200, 150, (0.3, 1.0), 0, position)).astype(float)
        width = (crop[16, -1, 0] - crop[16, 0, 0]) * 32 / 31
        height = (crop[-1, 16, 1] - crop[0, 16, 1]) * 32 / 31
        areas.append(width * height / 30_000)
        aspects.append(width / height)
    assert 0.27 < min(areas) < 0.4 and 0.85 < max(areas) < 1.1
    assert 0.7 < min(aspects) < 0.8 and 1.2 < max(aspects) < 1.45
    assert draw_crop(200, 150, (1.0, 1.0), 0, 5) == draw_crop(200, 150, (1.0, 1.0), 0, 5)


def test_normalise_matches_the_formula():
    images = torch.arange(2 * SIZE * SIZE * 3, dtype=torch.uint8).reshape(2, SIZE, SIZE, 3)
    recipe = scale(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    expected = (images.numpy() / 255 - np.array([0.1, 0.2, 0.3])) / np.array([0.4, 0.5, 0.6])
    result = normalise(images, recipe)
    assert result.shape == (2, 3, SIZE, SIZE)
    np.testing.assert_allclose(result.numpy(), expected.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-6)


def test_crops_need_fresh_pixels_and_so_no_memory():
    from benchmark.training.data import fits_memory

    crop = Augmentation("random_resized_crop", area=(0.9, 1.0))
    assert fits_memory(SampleOrder(np.arange(COUNT), scale(), 0))
    assert not fits_memory(SampleOrder(np.arange(COUNT), scale(augmentation=crop), 0))
