"""How alike images are to those of the evaluation sets: integer descriptors, compared exactly, in bounded memory.

A descriptor is a vector of whole numbers from -127 to 127. Sums of their products are exact in float32, so a similarity
depends neither on the other rows of a call nor on threads, and the sets take a byte per number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from benchmark.pool.images import SLICE_IMAGES
from benchmark.pool.samples import decode_image
from benchmark.pool.tars import IMAGE_FORMATS, iter_members
from benchmark.registry import load_tasks
from benchmark.runtime.errors import NotFoundError, UserError
from benchmark.runtime.files import atomic_path, digest
from benchmark.runtime.locks import locked
from benchmark.runtime.mirror import local_copy
from benchmark.runtime.paths import as_location, cache_dir
from benchmark.runtime.storage import hash_file
from benchmark.toolbox.encoders import hash_weights, load_encoder
from benchmark.toolbox.hub_rows import local_set

VERSION = 1  # raised by hand when descriptors change
SIDE = 32  # pixels that an image is shrunk to
BRIGHTNESS = 12  # lowest frequencies each way that are kept of the brightness
COLOUR = 4  # and of either colour difference
BLOCK_ROWS = 1 << 14  # evaluation images that are compared at once

Describe = Callable[[Sequence[Image.Image]], np.ndarray]  # n images to (n, dimension), float


class EvaluationImages:
    """The descriptors of all evaluation images, and what describes others likewise."""

    def __init__(self, descriptors: np.ndarray, describe: Describe, mirror: np.ndarray | None) -> None:
        self.descriptors = descriptors  # (evaluation images, dimension) int8, memory-mapped
        self.describe = describe
        self.mirror = mirror  # (dimension,) signs that turn a descriptor into its mirrored image's, where known

    def highest_similarity(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Return for each image the highest cosine with any evaluation image: (n,) float32.

        0 for an image that has no descriptor, such as one of a single colour.
        """
        own = quantise(self.describe(images)).astype(np.float32)
        sides = [own] if self.mirror is None else [own, own * self.mirror]
        highest = np.full(len(own), -1, dtype=np.float32)
        for start in range(0, len(self.descriptors), BLOCK_ROWS):
            block = self.descriptors[start : start + BLOCK_ROWS].astype(np.float32)
            lengths = np.sqrt(np.einsum("ij,ij->i", block, block))
            for side in sides:
                np.maximum(highest, (side @ block.T / np.maximum(lengths, 1)).max(axis=1), out=highest)
        lengths = np.sqrt(np.einsum("ij,ij->i", own, own))
        return np.where(lengths > 0, highest / np.maximum(lengths, 1), 0).astype(np.float32)


def quantise(vectors: np.ndarray) -> np.ndarray:
    """Return vectors (n, dimension) as whole numbers, each scaled to its largest: (n, dimension) int8.

    Sums of products of two such vectors stay below 2^24, where float32 has every whole number.
    """
    limit = min(127, int(math.sqrt((1 << 24) / vectors.shape[1])))
    largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0)
    return np.rint(vectors * (limit / np.where(largest > 0, largest, 1))).astype(np.int8)


def describe_pixels(images: Sequence[Image.Image]) -> np.ndarray:
    """Describe images by the low frequencies of their brightness and colours: (n, 173) float64.

    Each image is shrunk to 32 x 32 pixels, whatever its shape. The higher of two frequencies weighs more (by its square
    root), as it tells pictures better apart; the mean brightness and colour are left out.
    """
    small = [image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, reducing_gap=3.0) for image in images]
    pixels = np.stack([np.asarray(each.convert("YCbCr"), dtype=np.float64) for each in small])
    parts = []
    for channel, size in enumerate((BRIGHTNESS, COLOUR, COLOUR)):
        waves, weights = _waves(size)
        spectrum = waves @ pixels[..., channel] @ waves.T * weights
        parts.append(spectrum.reshape(len(images), -1)[:, 1:])
    described = np.concatenate(parts, axis=1)
    described[np.abs(described).max(axis=1) < 1] = 0  # of one colour, but for rounding
    return described


def mirror_signs() -> np.ndarray:
    """Return what turns `describe_pixels` of an image into that of the mirrored one: (173,) float32 of 1 and -1."""
    signs = [np.tile((-1.0) ** np.arange(size), size)[1:] for size in (BRIGHTNESS, COLOUR, COLOUR)]
    return np.concatenate(signs).astype(np.float32)


def load_evaluation_images(
    *, eval_dir: str, clip_model: str | None, checkpoint: str | None, device: str
) -> EvaluationImages:
    """Describe the evaluation sets' images, by their pixels or by an open_clip model; cached in the user's folder.

    The first process does it, and others wait. Raises ValueError where an image cannot be decoded.
    """
    described_by: list[str] = ["pixels"]
    describe: Describe = describe_pixels
    mirror: np.ndarray | None = mirror_signs()
    if clip_model is not None:
        assert checkpoint is not None
        encoder = load_encoder(clip_model=clip_model, checkpoint=checkpoint, device=device)
        describe, mirror = encoder.encode_images, None
        weights = hash_weights(clip_model, Path(checkpoint), hash_file)
        described_by = [clip_model, weights, device.split(":")[0]]
    key = digest([VERSION, hash_evaluation_images(Path(eval_dir)), described_by])
    path = cache_dir() / "evaluation_images" / f"{key}.npy"
    if not path.exists():
        with locked(path.parent):
            if not path.exists():
                slices = _evaluation_slices(Path(eval_dir))
                parts = [quantise(describe(images)) for images in tqdm(slices, desc="evaluation images", disable=None)]
                with atomic_path(path) as temporary, temporary.open("wb") as file:
                    np.save(file, np.concatenate(parts))
    return EvaluationImages(np.load(path, mmap_mode="r"), describe, mirror)


def find_evaluation_sets(given: str | None, pool_dir: Path, where: str) -> Path:
    """Return the local folder of evaluation sets, `<pool_dir>/eval` where none is given.

    Raises FileNotFoundError naming `where`, the option, where it holds no set.
    """
    folder = local_copy(as_location(given)) if given is not None else local_copy(pool_dir / "eval")
    if not evaluation_tars(folder):
        raise NotFoundError(
            f"{where}: there are no evaluation sets (wds_<task>_test/test/*.tar) in {folder}", code="asset-not-found"
        )
    return folder


def evaluation_tars(eval_dir: Path) -> dict[str, Path]:
    """Return the tars of all evaluation sets in a folder, in order, by their names below it.

    Sets that lie there as rows of the Hugging Face hub are unpacked first.
    """
    tars = {path.relative_to(eval_dir).as_posix(): path for path in eval_dir.glob("wds_*/test/*.tar")}
    for task in load_tasks().values():
        if task.hub_rows and not any((eval_dir / name).exists() for name in task.folder_names):
            folder = local_set(task, eval_dir)
            tars |= {f"{task.folder_name}/test/{path.name}": path for path in folder.glob("test/*.tar")}
    return dict(sorted(tars.items()))


def hash_evaluation_images(eval_dir: Path) -> str:
    """Return a hash of the tars of all evaluation sets in a folder."""
    return digest([[name, hash_file(path)] for name, path in evaluation_tars(eval_dir).items()])


def _evaluation_slices(eval_dir: Path) -> Iterator[list[Image.Image]]:
    images: list[Image.Image] = []
    for path in evaluation_tars(eval_dir).values():
        with path.open("rb") as file:
            for member in iter_members(path):
                if member.extension not in IMAGE_FORMATS:
                    continue
                file.seek(member.offset)
                image = decode_image(file.read(member.size))
                if image is None:
                    raise UserError(
                        f"{path}: the evaluation image {member.name!r} cannot be decoded", code="image-undecodable"
                    )
                images.append(image)
                if len(images) == SLICE_IMAGES:
                    yield images
                    images = []
    if images:
        yield images


@lru_cache
def _waves(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the cosine waves (size, SIDE) of the discrete cosine transform, and their weights (size, size)."""
    numbers = np.arange(size)
    waves = np.cos(np.pi * np.outer(numbers, 2 * np.arange(SIDE) + 1) / (2 * SIDE))
    waves *= np.sqrt(np.where(numbers == 0, 1, 2) / SIDE)[:, None]
    return waves, np.sqrt(np.hypot(numbers[:, None], numbers))
