"""Samples: read in place from the pool's tars by offset, and their images decoded, or refused."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from benchmark.index import PoolIndex
from benchmark.tars import IMAGE_FORMATS

MAX_PIXELS = 1 << 26  # a larger image counts as undecodable: no decompression bombs


class SampleReader:
    """Reads the samples of P from the tars: image bytes and caption by offset, one open file per tar."""

    def __init__(self, index: PoolIndex, samples: np.ndarray) -> None:
        self.index = index
        self.samples = samples  # P: places in the index

    def read(self, place: int) -> tuple[bytes, bytes]:
        """Return image bytes and caption bytes of P's sample at `place`."""
        row = self.samples[place]
        index = self.index
        with index.tar_paths[index.tar_number[row]].open("rb") as file:
            file.seek(int(index.image_offset[row]))
            image = file.read(int(index.image_length[row]))
            file.seek(int(index.text_offset[row]))
            return image, file.read(int(index.text_length[row]))


def decode_image(data: bytes) -> Image.Image | None:
    """Decode to RGB, or None where the bytes are no picture or too large a one."""
    try:
        image = Image.open(io.BytesIO(data), formats=sorted(set(IMAGE_FORMATS.values())))
        if image.width * image.height > MAX_PIXELS:
            return None
        return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
