"""The order of samples: which sample stands at which position of training, from (scale, subset, seed) only.

P is the list of the subset's present samples in pool order, the copies of a sample directly after each other. P is
cut into blocks; a window is a run of shuffled blocks whose samples are shuffled together. Nothing is stored: the order
from any step on is computed, so workers, ranks, restarts and resharding do not change it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from benchmark.pool.subset import Subset
from benchmark.pool.uids import count_of
from benchmark.runtime.errors import UserError
from benchmark.runtime.keyed import keyed_permutation, keyed_uint64
from benchmark.scales import Scale

# Names of the independent random streams; the values are part of every recipe.
EPOCH_STREAM, DRAW_STREAM, WINDOW_STREAM, AUGMENT_STREAM, REPLACE_STREAM = range(1, 6)
WINDOWS_KEPT = 2  # by a process that walks through the run


def present_samples(index_uids: np.ndarray, subset: Subset) -> np.ndarray:
    """Return P: the places in the index of the subset's present samples, copies side by side, shape (len(P),).

    `index_uids` are the uids of the pool's present samples in pool order. A uid at several places is read at each of
    them, as often as the subset says, as DataComp's resharder writes it.
    """
    return np.repeat(np.arange(len(index_uids)), count_of(index_uids, subset.uids))


@dataclass(frozen=True)
class SampleOrder:
    """The order of one run: `samples[i]` is the place in the index of P's i-th sample."""

    samples: np.ndarray  # P, (len(P),)
    scale: Scale
    seed: int

    def __post_init__(self) -> None:
        if len(self.samples) < self.scale.batch_size:
            raise UserError(
                f"the subset has {len(self.samples):,} samples that are there, fewer than one batch of "
                f"{self.scale.batch_size} at scale {self.scale.name!r}",
                code="subset-too-small",
            )

    def batch(self, step: int) -> np.ndarray:
        """Return the places in P of the samples at `step`, shape (batch_size,)."""
        start, size = step * self.scale.batch_size, self.scale.batch_size
        if self.scale.spread_repeats:
            return self._spread_positions[start : start + size]
        parts: list[np.ndarray] = []
        number, into = self._window_at(start)
        while size:
            window = self._window(number)[into : into + size]
            parts.append(window)
            size -= len(window)
            number, into = number + 1, 0
        return np.concatenate(parts)

    def replacement(self, position: int, attempt: int) -> int:
        """Return the place in P that stands in for an undecodable sample at `position` (attempt 1, 2, ...)."""
        return int(keyed_uint64(REPLACE_STREAM, self.seed, position, attempt) % np.uint64(len(self.samples)))

    @cached_property
    def _spread_positions(self) -> np.ndarray:
        """The place in P at every position of the run, (steps * batch_size,).

        Where a repeat goes depends on all windows before, so these positions are held in memory: 8 bytes for each.
        """
        batch_size = self.scale.batch_size
        positions = np.empty(self.scale.steps * batch_size, dtype=np.int64)
        filled = number = 0
        while filled < len(positions):
            in_batch = positions[filled - filled % batch_size : filled]
            window = spread_repeats(self._window(number), self.samples, in_batch, batch_size)
            taken = min(len(window), len(positions) - filled)
            positions[filled : filled + taken] = window[:taken]
            filled, number = filled + taken, number + 1
        return positions

    @property
    def _num_blocks(self) -> int:
        return -(-len(self.samples) // self.scale.block_size)

    def _window(self, number: int) -> np.ndarray:
        """Return the places in P of a window, numbered through the run; the last ones are cached."""
        if number not in self._windows:
            while len(self._windows) >= WINDOWS_KEPT:
                del self._windows[next(iter(self._windows))]
            size, count = self.scale.block_size, len(self.samples)
            window = np.concatenate([np.arange(b * size, min((b + 1) * size, count)) for b in self._blocks(number)])
            epoch, in_epoch = (number, 0) if self.scale.with_replacement else divmod(number, self._windows_per_epoch)
            permutation = keyed_permutation(len(window), WINDOW_STREAM, self.seed, epoch, in_epoch)
            self._windows[number] = window[permutation]
        return self._windows[number]

    @cached_property
    def _windows(self) -> dict[int, np.ndarray]:
        return {}

    @property
    def _windows_per_epoch(self) -> int:
        return -(-self._num_blocks // self.scale.window_blocks)

    def _blocks(self, number: int) -> np.ndarray:
        """Return the blocks of a window."""
        per_window = self.scale.window_blocks
        if self.scale.with_replacement:
            return self._draw_blocks(np.arange(number * per_window, (number + 1) * per_window))
        epoch, in_epoch = divmod(number, self._windows_per_epoch)
        return self._blocks_of_epoch(epoch)[in_epoch * per_window : (in_epoch + 1) * per_window]

    def _draw_blocks(self, draws: np.ndarray) -> np.ndarray:
        return (keyed_uint64(DRAW_STREAM, self.seed, draws) % np.uint64(self._num_blocks)).astype(np.int64)

    def _blocks_of_epoch(self, epoch: int) -> np.ndarray:
        return keyed_permutation(self._num_blocks, EPOCH_STREAM, self.seed, epoch)

    def _window_at(self, position: int) -> tuple[int, int]:
        """Return the number of the window that a position of the run stands in, and its place there."""
        if self.scale.with_replacement:
            number = int(np.searchsorted(self._window_ends, position, side="right"))
            return number, position - (int(self._window_ends[number - 1]) if number else 0)
        epoch, into = divmod(position, len(self.samples))
        block_ends = np.cumsum(self._block_sizes[self._blocks_of_epoch(epoch)])
        ends = block_ends[self.scale.window_blocks - 1 :: self.scale.window_blocks]
        in_epoch = int(np.searchsorted(ends, into, side="right"))
        return epoch * self._windows_per_epoch + in_epoch, into - (int(ends[in_epoch - 1]) if in_epoch else 0)

    @cached_property
    def _block_sizes(self) -> np.ndarray:
        """The number of samples in each block: (blocks,). The last may be short."""
        sizes = np.full(self._num_blocks, self.scale.block_size)
        sizes[-1] = len(self.samples) - (self._num_blocks - 1) * self.scale.block_size
        return sizes

    @cached_property
    def _window_ends(self) -> np.ndarray:
        """With replacement, the position after each window of the run: (windows,)."""
        per_window, wanted = self.scale.window_blocks, self.scale.steps * self.scale.batch_size
        most = -(-wanted // int(self._block_sizes.max()))
        ends = np.empty(0, dtype=np.int64)
        start = 0
        while not len(ends) or ends[-1] < wanted:
            draws = np.arange(start * per_window, (start + most // per_window + 1) * per_window)
            sizes = self._block_sizes[self._draw_blocks(draws)].reshape(-1, per_window).sum(axis=1)
            ends = np.concatenate([ends, sizes.cumsum() + (ends[-1] if len(ends) else 0)])
            start = len(ends)
        return ends


def count_repeats(samples: np.ndarray) -> int:
    """Return how many of a batch's samples, places in the index, repeat one that stands before them."""
    return len(samples) - len(np.unique(samples))


def spread_repeats(window: np.ndarray, samples: np.ndarray, in_batch: np.ndarray, batch_size: int) -> np.ndarray:
    """Swap each repeat within a batch with the first later position of the window that makes none in either batch.

    `window` and `in_batch` are places in P; `in_batch` is what the window's first batch already holds. A repeat for
    which there is no such position stays.
    """
    batch_of = (np.arange(len(window)) + len(in_batch)) // batch_size
    held = samples[in_batch]
    ids = samples[window].tolist()
    all_batches = np.concatenate([np.zeros(len(held), dtype=np.int64), batch_of])
    all_ids = np.concatenate([held, samples[window]])
    if _num_repeats(all_batches, all_ids) == 0:
        return window

    result = window.copy()
    contents: list[Counter[int]] = [Counter() for _ in range(int(batch_of[-1]) + 1)]
    for batch, sample in zip(all_batches.tolist(), all_ids.tolist(), strict=True):
        contents[batch][sample] += 1
    seen: set[int] = set(held.tolist())
    for here, sample in enumerate(ids):
        batch = int(batch_of[here])
        if here and batch != batch_of[here - 1]:
            seen = set()
        if sample in seen:
            there = _first_place(here, sample, ids, batch_of, contents, batch_size, len(in_batch))
            if there is not None:
                other = ids[there]
                contents[batch][sample] -= 1
                contents[batch][other] += 1
                contents[int(batch_of[there])][other] -= 1
                contents[int(batch_of[there])][sample] += 1
                ids[here], ids[there] = other, sample
                result[here], result[there] = result[there], result[here]
        seen.add(ids[here])
    return result


def _first_place(
    here: int,
    sample: int,
    ids: list[int],
    batch_of: np.ndarray,
    contents: list[Counter[int]],
    batch_size: int,
    offset: int,
) -> int | None:
    batch = int(batch_of[here])
    for later in range(batch + 1, len(contents)):
        if contents[later][sample]:
            continue
        start = later * batch_size - offset
        for there in range(start, min(start + batch_size, len(ids))):
            if not contents[batch][ids[there]]:
                return there
    return None


def _num_repeats(batches: np.ndarray, ids: np.ndarray) -> int:
    pairs = batches * (int(ids.max(initial=0)) + 1) + ids
    return len(pairs) - len(np.unique(pairs))
