"""The images that filters see: found by uid in the pool's index, read in the order of the tars, decoded in slices."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from benchmark.pool.pool import Pool
from benchmark.pool.samples import decode_image
from benchmark.pool.shards import Tar
from benchmark.pool.subset import Subset
from benchmark.pool.uids import count_of, find_uids, uid_order
from benchmark.runtime.ranges import SequentialReader, open_sequential

SLICE_IMAGES = 256  # a filter is handed at most this many images at once
SLICE_PIXELS = 1 << 26  # and fewer where they are large: a slice ends with the image that reaches this sum


@dataclass(frozen=True)
class ImagePlaces:
    """Where the images of a metadata shard's rows lie, in the order of the tars; arrays have shape (images,)."""

    tars: list[Tar]
    rows: np.ndarray  # of the metadata shard, each at most once
    tar_number: np.ndarray
    offset: np.ndarray  # in bytes
    length: np.ndarray

    def of_rows(self, wanted: np.ndarray) -> ImagePlaces:
        """Return the places of some rows of the shard, a mask over all of them."""
        mine = wanted[self.rows]
        return ImagePlaces(self.tars, *(a[mine] for a in (self.rows, self.tar_number, self.offset, self.length)))


def locate_images(pool: Pool, within: Subset | None = None, paths: Sequence[Path] | None = None) -> list[ImagePlaces]:
    """Find the images of the rows of every metadata shard, or of `paths`; of those in `within` where it is given.

    Rows that share a uid share an image: the first of that uid in pool order.
    """
    index = pool.load_index(within)
    order = uid_order(index.uids)  # stable, so equal uids stay in pool order
    ordered = index.uids[order]
    found = []
    for path in pool.metadata_paths if paths is None else paths:
        uids = pool.read_uids(path)
        is_wanted = np.ones(len(uids), dtype=bool) if within is None else count_of(uids, within.uids) > 0
        wanted = np.flatnonzero(is_wanted)
        places = find_uids(uids[wanted], ordered)
        rows, samples = wanted[places >= 0], order[places[places >= 0]]
        in_order = np.argsort(samples, kind="stable")
        rows, samples = rows[in_order], samples[in_order]
        found.append(
            ImagePlaces(
                index.summary.tars,
                rows,
                index.tar_number[samples],
                index.image_offset[samples],
                index.image_length[samples],
            )
        )
    return found


def read_images(places: ImagePlaces) -> Iterator[tuple[np.ndarray, list[Image.Image], np.ndarray]]:
    """Yield slices of rows, their images in RGB, and the rows whose images, among these in the tars, are undecodable.

    The last slice may be empty. Only one slice's images are held at a time.
    """
    rows: list[int] = []
    undecodable: list[int] = []
    images: list[Image.Image] = []
    pixels = 0
    # Worker processes keep quiet: their bars would overwrite each other, and the engine counts their shards.
    is_worker = multiprocessing.parent_process() is not None
    progress = tqdm(places.rows.tolist(), desc="images", unit="image", disable=True if is_worker else None, leave=False)
    file: SequentialReader | None = None
    tar_number = -1
    try:
        for place, row in enumerate(progress):
            if file is None or places.tar_number[place] != tar_number:
                if file is not None:
                    file.close()
                tar_number = int(places.tar_number[place])
                file = open_sequential(places.tars[tar_number].path, state=places.tars[tar_number].state)
            image = decode_image(file.read(int(places.offset[place]), int(places.length[place])))
            if image is None:
                undecodable.append(row)
                continue
            rows.append(row)
            images.append(image)
            pixels += image.width * image.height
            if len(images) == SLICE_IMAGES or pixels >= SLICE_PIXELS:
                yield np.array(rows, dtype=np.int64), images, np.array(undecodable, dtype=np.int64)
                rows, images, undecodable = [], [], []
                pixels = 0
        yield np.array(rows, dtype=np.int64), images, np.array(undecodable, dtype=np.int64)
    finally:
        if file is not None:
            file.close()
