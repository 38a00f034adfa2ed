"""Images of an evaluation set, decoded in batches ahead of their use."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmark.evaluation.preprocess import Preprocess, load_image
from benchmark.evaluation.samples import Sample, SetError

BATCH_SIZE = 64  # images; DataComp's
DECODED_TOGETHER = 16  # images that a thread decodes at a time; it divides BATCH_SIZE
BATCHES_AHEAD = 2
DECODING_THREADS = 2  # or more, beside a model that computes on the same cores


def decoded_batches(
    samples: Sequence[Sample], preprocess: Preprocess, workers: int, *, threads: int = 1
) -> Iterator[Tensor]:
    """Yield decoded images in order, (BATCH_SIZE or fewer, side, side, 3) uint8, a few batches ahead of their use.

    Without `workers`, which are processes, threads of this process decode, beside `threads` that encode.
    """
    if workers:
        images = _Images(samples, preprocess)
        # The generator: else the loader draws from torch's global one.
        for batch in DataLoader(
            images, batch_size=BATCH_SIZE, num_workers=workers, collate_fn=_stacked, generator=torch.Generator()
        ):
            if isinstance(batch, SetError):
                raise batch
            yield batch
        return
    size = min(DECODED_TOGETHER, BATCH_SIZE)
    parts = (samples[start : start + size] for start in range(0, len(samples), size))
    ahead = max(BATCHES_AHEAD, threads) * BATCH_SIZE // size
    waiting: deque[Future[list[np.ndarray]]] = deque()
    with ThreadPoolExecutor(max_workers=max(DECODING_THREADS, threads // 2)) as pool:
        try:
            waiting.extend(pool.submit(_load_images, part, preprocess) for part in islice(parts, ahead))
            while waiting:
                pixels: list[np.ndarray] = []
                while waiting and len(pixels) < BATCH_SIZE:
                    pixels += waiting.popleft().result()
                    waiting.extend(pool.submit(_load_images, part, preprocess) for part in islice(parts, 1))
                yield torch.from_numpy(np.stack(pixels))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _load_images(samples: Sequence[Sample], preprocess: Preprocess) -> list[np.ndarray]:
    return [load_image(sample, preprocess) for sample in samples]


def _stacked(images: list[np.ndarray | SetError]) -> Tensor | SetError:
    """Make a batch of images; where one cannot be decoded, it is why."""
    for image in images:
        if isinstance(image, SetError):
            return image
    return torch.from_numpy(np.stack(cast(list[np.ndarray], images)))


class _Images(Dataset[np.ndarray | SetError]):
    """Decoded images by position, for a DataLoader and its processes; an error is returned, as a value.

    One that is raised in another process would come with that process's traceback for its text.
    """

    def __init__(self, samples: Sequence[Sample], preprocess: Preprocess) -> None:
        self.samples = samples
        self.preprocess = preprocess

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> np.ndarray | SetError:
        try:
            return load_image(self.samples[index], self.preprocess)
        except SetError as error:
            return error
