"""Samples: read in place from the pool's tars by offset, and their images decoded, or refused."""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from importlib.metadata import version

import numpy as np
import simplejpeg
from PIL import Image

from benchmark.index import PoolIndex
from benchmark.tars import IMAGE_FORMATS

JPEG_START = b"\xff\xd8\xff"
MAX_OPEN_TARS = 64  # a window's blocks lie in about as many
MAX_PIXELS = 1 << 26  # a larger image counts as undecodable: no decompression bombs


class SampleReader:
    """Reads the samples of P from the tars: image bytes and caption by offset. The tars read last stay open."""

    def __init__(self, index: PoolIndex, samples: np.ndarray) -> None:
        self.index = index
        self.samples = samples  # P: places in the index
        self._open: OrderedDict[int, int] = (
            OrderedDict()
        )  # number of a tar -> file descriptor, the last used at the end
        self._lock = threading.Lock()

    def read(self, place: int) -> tuple[bytes, bytes]:
        """Return image bytes and caption bytes of P's sample at `place`; threads may share the reader."""
        row = self.samples[place]
        index = self.index
        with self._lock:  # else another thread might close the file
            file = self._file(int(index.tar_number[row]))
            image = os.pread(file, int(index.image_length[row]), int(index.image_offset[row]))
            return image, os.pread(file, int(index.text_length[row]), int(index.text_offset[row]))

    def _file(self, number: int) -> int:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        if len(self._open) == MAX_OPEN_TARS:
            os.close(self._open.popitem(last=False)[1])
        self._open[number] = os.open(self.index.summary.tars[number].path, os.O_RDONLY)
        return self._open[number]

    def __reduce__(self) -> tuple[type[SampleReader], tuple[PoolIndex, np.ndarray]]:
        return SampleReader, (self.index, self.samples)  # a process that is not forked opens its own files

    def __del__(self) -> None:
        for file in self._open.values():
            os.close(file)


def decode_image(data: bytes) -> Image.Image | None:
    """Decode to RGB, or None where the bytes are no picture or too large a one."""
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
