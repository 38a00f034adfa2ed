"""The order of samples: which sample stands at which position of training, from (scale, subset, seed) alone.

P is the list of the subset's present samples in pool order, the copies of a sample directly after each other. P is
cut into blocks; a window is a run of shuffled blocks whose samples are shuffled together. Nothing is stored: the order
from any step on is computed, so workers, ranks, restarts and resharding do not change it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from benchmark.scales import Scale
from benchmark.subset import Subset
from benchmark.uids import count_of

# Names of the independent random streams; the values are part of every recipe.
EPOCH_STREAM, DRAW_STREAM, WINDOW_STREAM, AUGMENT_STREAM, REPLACE_STREAM = range(1, 6)


def keyed_uint64(*keys: int | np.ndarray) -> np.ndarray:
    """Hash integer keys, broadcast together, to uniform uint64: a random number that is a function of its key.

    SplitMix64's finaliser (Steele, Lea, Flood 2014, Fig. 15) folded over the keys. Written out here, so that no
    library's change of generator can change a recipe's order.
    """
    state = np.zeros(np.broadcast_shapes(*(np.shape(key) for key in keys)), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for key in keys:
            state = state ^ np.asarray(key).astype(np.uint64)
            state = state + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def keyed_permutation(count: int, *keys: int) -> np.ndarray:
    """Return the permutation of `count` items that belongs to the keys."""
    return np.argsort(keyed_uint64(*keys, np.arange(count)), kind="stable")


def keyed_uniform(*keys: int | np.ndarray) -> np.ndarray:
    """Return numbers in [0, 1) that belong to the keys, float64."""
    return (keyed_uint64(*keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53


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
            raise ValueError(
                f"the subset has {len(self.samples):,} samples that are there, fewer than one batch of "
                f"{self.scale.batch_size} at scale {self.scale.name!r}"
            )

    def batch(self, step: int) -> np.ndarray:
        """Return the places in P of the samples at `step`, shape (batch_size,)."""
        start = step * self.scale.batch_size
        return self._positions[start : start + self.scale.batch_size]

    def replacement(self, position: int, attempt: int) -> int:
        """Return the place in P that stands in for an undecodable sample at `position` (attempt 1, 2, ...)."""
        return int(keyed_uint64(REPLACE_STREAM, self.seed, position, attempt) % np.uint64(len(self.samples)))

    @cached_property
    def num_repeats(self) -> int:
        """Return how many positions of the run repeat a sample that already stands in their batch."""
        batches = np.arange(len(self._positions)) // self.scale.batch_size
        return _num_repeats(batches, self.samples[self._positions])

    @cached_property
    def _positions(self) -> np.ndarray:
        """The place in P at every position of the run, (steps * batch_size,)."""
        wanted = self.scale.steps * self.scale.batch_size
        positions = np.empty(wanted, dtype=np.int64)
        filled = 0
        for window in self._windows():
            if filled >= wanted:
                break
            if self.scale.spread_repeats:
                in_batch = positions[filled - filled % self.scale.batch_size : filled]
                window = spread_repeats(window, self.samples, in_batch, self.scale.batch_size)
            taken = min(len(window), wanted - filled)
            positions[filled : filled + taken] = window[:taken]
            filled += taken
        return positions

    def _windows(self) -> Iterator[np.ndarray]:
        """Yield places in P, one window after the other, without end."""
        size, per_window = self.scale.block_size, self.scale.window_blocks
        count = len(self.samples)
        num_blocks = -(-count // size)
        epoch = 0
        while True:
            if self.scale.with_replacement:
                draws = np.arange(epoch * per_window, (epoch + 1) * per_window)
                drawn = keyed_uint64(DRAW_STREAM, self.seed, draws) % np.uint64(num_blocks)
                windows = [drawn.astype(np.int64)]
            else:
                blocks = keyed_permutation(num_blocks, EPOCH_STREAM, self.seed, epoch)
                windows = [blocks[start : start + per_window] for start in range(0, num_blocks, per_window)]
            for number, blocks in enumerate(windows):
                window = np.concatenate([np.arange(b * size, min((b + 1) * size, count)) for b in blocks])
                yield window[keyed_permutation(len(window), WINDOW_STREAM, self.seed, epoch, number)]
            epoch += 1


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
