"""Samples: read in place from the pool's tars by offset, and their images decoded, or refused."""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict

import numpy as np
from PIL import Image

from benchmark.index import PoolIndex
from benchmark.tars import IMAGE_FORMATS

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
        self._open[number] = os.open(self.index.tar_paths[number], os.O_RDONLY)
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
