"""Training data: samples read in place from the pool's tars by offset, decoded, augmented, batched by step.

The same decoding serves the samples held in memory and those read on the way, so both give the same batches.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from benchmark.models.build import Tokenizer, build_tokenizer
from benchmark.pool.index import PoolIndex
from benchmark.pool.order import AUGMENT_STREAM, SampleOrder, count_repeats, present_samples
from benchmark.pool.samples import SampleReader, decode_pixels
from benchmark.pool.subset import Subset
from benchmark.pool.uids import UidMarks
from benchmark.runtime.errors import UserError
from benchmark.runtime.keyed import keyed_uint64, keyed_uniform
from benchmark.runtime.stopping import ignore_stop_signals
from benchmark.scales import Scale
from benchmark.training.ranks import SINGLE_PROCESS, Ranks

MEMORY_BYTES = 2 << 30  # decoded samples are held in memory up to this size
PART_SIZE = 256  # samples that a worker makes at a time
MAX_ASPECT = 100  # of what a shorter side is resized of; the middle of a longer strip


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch, or a part of that, before normalisation."""

    images: Tensor  # (n, size, size, 3) uint8
    tokens: Tensor  # (n, context length) int32
    undecodable: int  # samples that others stand in for
    repeats: int  # samples that stand in the global batch already, counted in its first part
    failed: tuple[int, ...] = ()  # places in P of the pictures that could not be decoded

    def __len__(self) -> int:
        return len(self.images)

    def pin_memory(self) -> Batch:
        """Return the batch in memory that a GPU can copy from; the loader calls it."""
        return replace(self, images=self.images.pin_memory(), tokens=self.tokens.pin_memory())

    def to(self, device: str) -> Batch:
        """Return the batch on a device."""
        images, tokens = (part.to(device, non_blocking=True) for part in (self.images, self.tokens))
        return replace(self, images=images, tokens=tokens)

    @classmethod
    def joined(cls, parts: Sequence[Batch]) -> Batch:
        """Join parts, in order."""
        if len(parts) == 1:
            return parts[0]
        images, tokens = torch.cat([part.images for part in parts]), torch.cat([part.tokens for part in parts])
        undecodable, repeats = sum(part.undecodable for part in parts), sum(part.repeats for part in parts)
        return cls(images, tokens, undecodable, repeats, tuple(place for part in parts for place in part.failed))


def resize_and_crop(pixels: np.ndarray, size: int) -> np.ndarray:
    """Resize the shorter side to `size` (bicubic, by Pillow) and cut out the centre: (size, size, 3) uint8."""
    if pixels.shape == (size, size, 3):
        return pixels
    shorter = min(pixels.shape[:2])
    if max(pixels.shape[:2]) > MAX_ASPECT * shorter:  # a strip of millions of pixels would grow with its shorter side
        middle = [max(0, (side - MAX_ASPECT * shorter) // 2) for side in pixels.shape[:2]]
        pixels = pixels[middle[0] : middle[0] + MAX_ASPECT * shorter, middle[1] : middle[1] + MAX_ASPECT * shorter]
    height, width = (max(size, round(side * size / shorter)) for side in pixels.shape[:2])
    left, top = (width - size) // 2, (height - size) // 2
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def shift_images(images: np.ndarray, pixels: int, seed: int, positions: np.ndarray) -> np.ndarray:
    """Move each picture by up to `pixels` in both directions, edges repeated: (n, size, size, 3) uint8."""
    span = 2 * pixels + 1
    draws = (keyed_uint64(AUGMENT_STREAM, seed, positions) % np.uint64(span * span)).astype(np.int64)
    padded = np.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)), mode="edge")
    shifted = np.empty_like(images)
    size = images.shape[1]
    for draw in np.unique(draws):
        top, left = divmod(int(draw), span)
        chosen = draws == draw
        shifted[chosen] = padded[chosen, top : top + size, left : left + size]
    return shifted


@dataclass(frozen=True)
class Crop:
    """A part of a picture, in pixels."""

    left: int
    top: int
    width: int
    height: int


def draw_crop(width: int, height: int, area: tuple[float, float], seed: int, position: int) -> Crop:
    """Draw a crop that holds a share of the picture's area within `area`.

    torchvision's RandomResizedCrop with open_clip's defaults (aspect 3/4 to 4/3, ten attempts, then the centre), its
    random numbers keyed by (seed, position).
    """
    draws = keyed_uniform(AUGMENT_STREAM, seed, position, np.arange(40)).reshape(10, 4)
    for share, shape, across, down in draws.tolist():
        target = width * height * (area[0] + (area[1] - area[0]) * share)
        aspect = (3 / 4) * (16 / 9) ** shape  # log-uniform between 3/4 and 4/3
        crop_width, crop_height = round((target * aspect) ** 0.5), round((target / aspect) ** 0.5)
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left, top = int(across * (width - crop_width + 1)), int(down * (height - crop_height + 1))
            return Crop(left, top, crop_width, crop_height)
    crop_width, crop_height = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return Crop((width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height)


def crop_and_resize(pixels: np.ndarray, size: int, crop: Crop) -> np.ndarray:
    """Cut a crop out and resize it (bicubic, antialiased) to (size, size, 3) uint8.

    By torch, on bytes: Pillow's resizing, whose pixels differ in a fiftieth of all at most, and hardly, takes two
    thirds of the time that a sample takes (docs/performance.md).
    """
    cut = pixels[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    image = torch.from_numpy(cut).permute(2, 0, 1)[None]
    resized = functional.interpolate(image, (size, size), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


@dataclass(frozen=True)
class HeldSamples:
    """Every distinct sample of a run, decoded once: what `StepBatches` takes from memory."""

    images: np.ndarray  # (distinct, size, size, 3) uint8
    tokens: np.ndarray  # (distinct, context length) int32
    is_decodable: np.ndarray  # (distinct,) bool
    row_of: np.ndarray  # (len(P),): which of them P's sample is


def fits_memory(order: SampleOrder) -> bool:
    """Tell whether the run's samples are held in memory; only pictures that need no fresh crop can be."""
    size = order.scale.image_size
    return order.scale.augmentation.kind == "shift" and len(np.unique(order.samples)) * size * size * 3 <= MEMORY_BYTES


def hold_samples(reader: SampleReader, tokenizer: Tokenizer, scale: Scale) -> HeldSamples:
    """Read and decode every distinct sample of P once, on all cores."""
    _, first, row_of = np.unique(reader.samples, return_index=True, return_inverse=True)
    size = scale.image_size
    images = np.zeros((len(first), size, size, 3), dtype=np.uint8)
    is_decodable = np.zeros(len(first), dtype=bool)
    captions = [""] * len(first)

    def hold(start: int) -> int:
        rows = range(start, min(start + PART_SIZE, len(first)))
        for row in rows:
            data, text = reader.read(int(first[row]))
            captions[row] = text.decode(errors="replace")
            pixels = decode_pixels(data)
            if pixels is not None:
                images[row], is_decodable[row] = resize_and_crop(pixels, size), True
        return len(rows)

    progress = tqdm(total=len(first), desc="read samples", unit="sample", disable=None, leave=False)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for count in pool.map(hold, range(0, len(first), PART_SIZE)):
            progress.update(count)
    progress.set_description("tokenize")
    tokens = tokenize(tokenizer, captions)
    progress.close()
    return HeldSamples(images, tokens, is_decodable, row_of)


def tokenize(tokenizer: Tokenizer, captions: Sequence[str]) -> np.ndarray:
    """Tokenize captions, each different one once: (n, context length) int32."""
    distinct = list(dict.fromkeys(captions))
    number = {caption: row for row, caption in enumerate(distinct)}
    tokens = tokenizer(distinct).numpy().astype(np.int32)
    return tokens[[number[caption] for caption in captions]]


class StepBatches(Dataset[Batch]):
    """The batch of every step, in parts; each a function of (order, part) only: any worker may make any of them.

    A rank makes its own contiguous slice of each global batch.
    """

    def __init__(
        self,
        order: SampleOrder,
        reader: SampleReader,
        tokenizer: Tokenizer,
        held: HeldSamples | None,
        ranks: Ranks = SINGLE_PROCESS,
    ) -> None:
        self.order = order
        self.reader = reader
        self.tokenizer = tokenizer
        self.held = held
        self.slice = ranks.slice_of(order.scale.batch_size)
        self.parts = -(-(self.slice.stop - self.slice.start) // PART_SIZE)  # of a step

    def __len__(self) -> int:
        return self.order.scale.steps * self.parts

    def __getitem__(self, number: int) -> Batch:
        """Return a part: number // parts is the step."""
        scale, seed = self.order.scale, self.order.seed
        step, part = divmod(number, self.parts)
        start = self.slice.start + part * PART_SIZE
        stop = min(start + PART_SIZE, self.slice.stop)
        whole = self.order.batch(step)
        repeats = count_repeats(self.order.samples[whole]) if start == 0 else 0
        places, positions = whole[start:stop], step * scale.batch_size + np.arange(start, stop)
        if self.held is not None:
            return self._from_memory(self.held, places, positions, repeats)
        images = np.empty((len(places), scale.image_size, scale.image_size, 3), dtype=np.uint8)
        captions, undecodable = [], 0
        failed: list[int] = []
        for row, (place, position) in enumerate(zip(places.tolist(), positions.tolist(), strict=True)):
            pixels, caption, passed_over = self._read(place, position)
            undecodable += len(passed_over) > 0
            failed += passed_over
            captions.append(caption)
            if scale.augmentation.kind == "shift":
                images[row] = resize_and_crop(pixels, scale.image_size)
            else:
                height, width, _ = pixels.shape
                crop = draw_crop(width, height, scale.augmentation.area, seed, position)
                images[row] = crop_and_resize(pixels, scale.image_size, crop)
        if scale.augmentation.kind == "shift":
            images = shift_images(images, scale.augmentation.pixels, seed, positions)
        return _batch(images, tokenize(self.tokenizer, captions), undecodable, repeats, failed)

    def _from_memory(self, held: HeldSamples, places: np.ndarray, positions: np.ndarray, repeats: int) -> Batch:
        rows = held.row_of[places]
        undecodable = 0
        failed: list[int] = []
        for slot in np.flatnonzero(~held.is_decodable[rows]):
            undecodable += 1
            failed.append(int(places[slot]))
            for attempt in range(1, 1 + len(held.row_of)):
                place = self.order.replacement(int(positions[slot]), attempt)
                rows[slot] = held.row_of[place]
                if held.is_decodable[rows[slot]]:
                    break
                failed.append(int(place))
        images = shift_images(held.images[rows], self.order.scale.augmentation.pixels, self.order.seed, positions)
        return _batch(images, held.tokens[rows], undecodable, repeats, failed)

    def _read(self, place: int, position: int) -> tuple[np.ndarray, str, list[int]]:
        """Return pixels and caption of the sample at a place in P or of what stands in, and the places passed over."""
        passed_over: list[int] = []
        for attempt in range(1 + len(self.order.samples)):
            tried = int(self.order.replacement(position, attempt)) if attempt else place
            data, text = self.reader.read(tried)
            pixels = decode_pixels(data)
            if pixels is not None:
                return pixels, text.decode(errors="replace"), passed_over
            passed_over.append(tried)
        raise UserError("no sample of the subset can be decoded", code="image-undecodable")


def _batch(images: np.ndarray, tokens: np.ndarray, undecodable: int, repeats: int, failed: Sequence[int] = ()) -> Batch:
    return Batch(torch.from_numpy(images), torch.from_numpy(tokens), undecodable, repeats, tuple(failed))


def batches_from(dataset: StepBatches, first_step: int, workers: int, device: str = "cpu") -> Iterator[Batch]:
    """Yield the batches of the steps from `first_step` on, on a device, made in `workers` processes (0: in this one).

    About two steps' parts are made ahead.
    """
    dataset.order.batch(first_step)  # what the order keeps is computed before the workers are forked, and so shared
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=range(first_step * dataset.parts, len(dataset)),
        num_workers=workers,
        collate_fn=_as_it_is,
        prefetch_factor=max(2, -(-2 * dataset.parts // workers)) if workers else None,
        worker_init_fn=ignore_stop_signals,
        # Forked, where that works: index and samples held in memory are shared, not sent to every worker.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        pin_memory=device == "cuda",
    )
    parts = iter(loader)
    for _ in range(first_step, dataset.order.scale.steps):
        yield Batch.joined([next(parts).to(device) for _ in range(dataset.parts)])


def _as_it_is(batch: Any) -> Any:
    return batch


class TrainingData:
    """What the seeds of one experiment share: P, the reader, the tokenizer, and the samples if they fit in memory."""

    def __init__(
        self, index: PoolIndex, samples: np.ndarray, scale: Scale, *, num_absent: int = 0, num_damaged: int = 0
    ) -> None:
        """Take P as places in the index, copies side by side and alike.

        `num_absent` uids have no sample there, and `num_damaged` of the pool's tars are damaged.
        """
        self.scale = scale
        self.num_absent, self.num_damaged = num_absent, num_damaged
        self.samples = samples
        self.reader = SampleReader(index, samples)
        self._tokenizer: Tokenizer | None = None
        self._held: HeldSamples | None = None

    def hash_order(self) -> str:
        """Return the sha256 of P's uids in their order; of what is recorded only this depends on the tars' names."""
        return self._order_hash

    @cached_property
    def _order_hash(self) -> str:
        state = hashlib.sha256()
        for start in range(0, len(self.samples), 1 << 20):
            state.update(self.reader.index.uids[self.samples[start : start + (1 << 20)]].tobytes())
        return state.hexdigest()

    @classmethod
    def of(cls, index: PoolIndex, subset: Subset, scale: Scale) -> TrainingData:
        """Take the subset's samples where they lie in the pool; the index need hold no others."""
        found = UidMarks(subset.uids)
        found.mark(index.uids)
        return cls(
            index,
            present_samples(index.uids, subset),
            scale,
            num_absent=found.num_distinct - found.num_marked,
            num_damaged=len(index.summary.damaged),
        )

    def batches(self, seed: int, ranks: Ranks = SINGLE_PROCESS) -> StepBatches:
        """Return the run's batches; the first call decodes the samples."""
        order = SampleOrder(self.samples, self.scale, seed)
        if self._tokenizer is None:
            self._tokenizer = build_tokenizer(self.scale.model)
            if fits_memory(order):
                self._held = hold_samples(self.reader, self._tokenizer, self.scale)
        return StepBatches(order, self.reader, self._tokenizer, self._held, ranks)
