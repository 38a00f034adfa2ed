"""Copies of evaluation images: found in a pool, against a loop; what changes a record, and what is named."""

import io
from itertools import chain

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageEnhance

from benchmark.pool import images as images_module
from benchmark.pool.pool import Pool
from benchmark.pool.tars import write_tar
from benchmark.pool.uids import format_uids
from benchmark.selection.engine import run_filters
from benchmark.selection.rules import Rule
from benchmark.toolbox import decontamination
from benchmark.toolbox.decontamination import describe_pixels, mirror_signs, quantise
from benchmark.toolbox.encoders import load_encoder
from tests.conftest import members, uid, user_error, write_pool

OPTIONS = {"max_similarity": 0.95, "eval_dir": None, "clip_model": None, "checkpoint": None}
MIRRORED = Image.Transpose.FLIP_LEFT_RIGHT


def picture(seed, size=(96, 80)):
    """Return a picture of soft random spots: coarse noise, enlarged."""
    noise = np.random.default_rng(seed).integers(0, 256, size=(9, 9, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def encoded(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def trimmed(image, share):
    left, top = round(image.width * share), round(image.height * share)
    return image.crop((left, top, image.width, image.height))


EVALUATION = [picture(seed) for seed in range(12)]
COPIES = {
    0: EVALUATION[0],
    1: EVALUATION[1].resize((48, 40)),
    2: EVALUATION[2].transpose(MIRRORED),
    3: trimmed(EVALUATION[3], 0.02),
    4: ImageEnhance.Brightness(EVALUATION[4]).enhance(1.1),
    5: EVALUATION[5].resize((200, 200)),
}
OTHERS = {number: picture(100 + number) for number in range(6, 16)}
ONE_COLOUR = {16: Image.new("RGB", (40, 40), (90, 20, 20))}
IMAGES = COPIES | OTHERS | ONE_COLOUR


def write_set(eval_dir, name, images):
    samples = [(f"{number:03d}.png", encoded(image)) for number, image in enumerate(images)]
    write_tar(eval_dir / f"wds_{name}_test" / "test" / "0.tar", samples)


@pytest.fixture
def pool_dir(tmp_path):
    folder = tmp_path / "pool"
    numbers = list(IMAGES)
    write_pool(folder, {"uid": [uid(n) for n in numbers[:9]]}, {"uid": [uid(n) for n in numbers[9:]]})
    samples = [
        members(f"{number:03d}", number, image=encoded(IMAGES[number], "JPEG", quality=60 if number % 2 else 90))
        for number in numbers
    ]
    write_tar(folder / "shards" / "00000000.tar", chain(*samples))
    write_set(folder / "eval", "a", EVALUATION[:7])
    write_set(folder / "eval", "b", EVALUATION[7:])
    return folder


def similarities(pool_dir):
    paths = sorted((pool_dir / "signals").glob("eval_similarity-*/*.parquet"))
    return {row["uid"]: row["value"] for path in paths for row in pq.read_table(path).to_pylist()}


def as_decoded(number):
    return Image.open(io.BytesIO(encoded(IMAGES[number], "JPEG", quality=60 if number % 2 else 90)))


def test_planted_copies_are_dropped_and_nothing_else(pool_dir, strategies):
    outcome = run_filters(Pool(pool_dir), [Rule("decontaminated", OPTIONS)])
    assert format_uids(outcome.subset.uids) == [uid(number) for number in (*OTHERS, *ONE_COLOUR)]
    assert similarities(pool_dir)[uid(16)] == 0


def test_a_similarity_is_the_highest_cosine_of_a_loop(pool_dir, strategies, monkeypatch):
    monkeypatch.setattr(decontamination, "BLOCK_ROWS", 5)
    run_filters(Pool(pool_dir), [Rule("decontaminated", OPTIONS)])
    found = similarities(pool_dir)
    for number in (*COPIES, *OTHERS):
        sides = [as_decoded(number), as_decoded(number).transpose(MIRRORED)]
        expected = -1.0
        for side in sides:
            mine = quantise(describe_pixels([side]))[0].astype(float)
            for image in EVALUATION:
                theirs = quantise(describe_pixels([image]))[0].astype(float)
                expected = max(expected, mine @ theirs / np.linalg.norm(mine) / np.linalg.norm(theirs))
        assert found[uid(number)] == pytest.approx(expected, abs=2e-3)  # mirrored by signs, which rounds otherwise


def test_a_similarity_depends_on_its_image_alone(pool_dir, strategies, monkeypatch):
    run_filters(Pool(pool_dir), [Rule("decontaminated", OPTIONS)])
    expected = similarities(pool_dir)
    for path in (pool_dir / "signals").glob("*/*.parquet"):
        path.unlink()
    monkeypatch.setattr(images_module, "SLICE_IMAGES", 1)
    monkeypatch.setattr(decontamination, "BLOCK_ROWS", 3)
    run_filters(Pool(pool_dir), [Rule("decontaminated", OPTIONS)])
    assert similarities(pool_dir) == expected


def test_sums_of_products_are_whole_numbers_that_float32_has():
    for dimension in (173, 512, 1024, 1280):
        extreme = quantise(np.ones((1, dimension))).astype(np.int64)
        assert (extreme @ extreme.T).item() <= 2**24 and extreme.max() >= 114
    assert quantise(np.array([[0.5, -2.0, 1.0], [0, 0, 0]])).tolist() == [[32, -127, 64], [0, 0, 0]]


def test_signs_mirror_a_descriptor():
    mirrored = describe_pixels([image.transpose(MIRRORED) for image in EVALUATION])
    np.testing.assert_allclose(describe_pixels(EVALUATION) * mirror_signs(), mirrored, atol=mirrored.max() * 0.02)


def test_embeddings_of_a_model_may_be_compared_instead(pool_dir, strategies):
    options = OPTIONS | {"clip_model": "reference_b32", "max_similarity": 0.99}
    run_filters(Pool(pool_dir), [Rule("decontaminated", options)])
    encoder = load_encoder(clip_model="reference_b32", checkpoint=None, device="cpu")
    theirs = encoder.encode_images(EVALUATION)
    expected = {uid(n): (encoder.encode_images([as_decoded(n)]) @ theirs.T).max() for n in IMAGES}
    assert similarities(pool_dir) == pytest.approx(expected, abs=2e-3)


def test_the_record_holds_what_was_compared_with(pool_dir, strategies, tmp_path):
    first = Rule("decontaminated", OPTIONS).resolve(Pool(pool_dir)).as_json()
    (pool_dir / "eval").rename(tmp_path / "elsewhere")
    moved = OPTIONS | {"eval_dir": str(tmp_path / "elsewhere")}
    assert Rule("decontaminated", moved).resolve(Pool(pool_dir)).as_json() == first
    write_set(tmp_path / "elsewhere", "c", [picture(200)])
    assert Rule("decontaminated", moved).resolve(Pool(pool_dir)).as_json() != first


def test_sets_that_are_missing_or_damaged_are_named(pool_dir, strategies, tmp_path):
    with user_error("asset-not-found", match="filters.decontaminated.eval_dir.*wds_"):
        run_filters(Pool(pool_dir), [Rule("decontaminated", OPTIONS | {"eval_dir": str(tmp_path)})])
    write_tar(pool_dir / "eval" / "wds_d_test" / "test" / "0.tar", [("1.png", b"broken")])
    with user_error("strategy-failed", match="0.tar.*'1.png'"):
        run_filters(Pool(pool_dir), [Rule("decontaminated", OPTIONS)])
