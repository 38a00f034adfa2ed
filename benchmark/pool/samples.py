"""Samples: read in place from the pool's tars by offset, and their images decoded, or refused."""

from __future__ import annotations

import io
from importlib.metadata import version

import numpy as np
import simplejpeg
from PIL import Image

from benchmark.pool.index import PoolIndex
from benchmark.pool.index_table import caption_of
from benchmark.pool.tars import IMAGE_FORMATS
from benchmark.runtime.ranges import RangeReader

JPEG_START = b"\xff\xd8\xff"
MAX_UNDECODABLE = 0.01  # of the samples that training sees; more stops the run
MAX_PIXELS = 1 << 26  # a larger image counts as undecodable: no decompression bombs


class SampleReader:
    """Reads the samples of P where they lie, image bytes and caption by offset, local or remote."""

    def __init__(self, index: PoolIndex, samples: np.ndarray) -> None:
        self.index = index
        self.samples = samples  # P: places in the index
        self.ranges = RangeReader()

    def read(self, place: int) -> tuple[bytes, bytes]:
        """Return image bytes and caption bytes of P's sample at `place`; threads may share the reader.

        Raises ValueError that names the tar where it has changed since it was indexed.
        """
        row, index = self.samples[place], self.index
        tar = index.summary.tars[index.tar_number[row]]
        image = self.ranges.read(tar.path, int(index.image_offset[row]), int(index.image_length[row]), state=tar.state)
        text = self.ranges.read(tar.path, int(index.text_offset[row]), int(index.text_length[row]), state=tar.state)
        return image, caption_of(text, index.caption_field)


def decode_image(data: bytes) -> Image.Image | None:
    """Decode to RGB, or None where the bytes are not a picture, or one that is too large."""
    try:
        image = Image.open(io.BytesIO(data), formats=sorted(set(IMAGE_FORMATS.values())))
        if image.width * image.height > MAX_PIXELS:
            return None
        return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def decode_pixels(data: bytes) -> np.ndarray | None:
    """Decode to (height, width, 3) uint8, to the same pixels as `decode_image`, JPEGs about twice as fast.

    Both use libjpeg-turbo with its exact inverse transform; simplejpeg has less around it. What it does not take
    (another format, CMYK, damage) goes to Pillow, so that both refuse the same pictures.
    """
    if data.startswith(JPEG_START):
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            if colours in ("YCbCr", "Gray") and width * height <= MAX_PIXELS:
                return simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)
        except ValueError:
            pass
    image = decode_image(data)
    return None if image is None else np.array(image)


def decoder_name() -> str:
    """Return which decoders and resizers training's pixels come from, for records."""
    return (
        f"simplejpeg {version('simplejpeg')}, else Pillow {version('pillow')}; crops resized by torch "
        f"{version('torch')}, else by Pillow"
    )
