"""A subset's samples for other people's trainers: a `webdataset` pipeline that reads them where they lie, uncopied.

Each sample is a dict as `webdataset` yields it: `__key__`, `__url__` and the bytes of its members by extension (`jpg`,
`txt`, `json`, ...). It comes in Winnow's order, batch by batch as `winnow train` sees it, or in the order that
`webdataset` has of shuffled shards and a buffer.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from webdataset import FluidWrapper
from webdataset.utils import pytorch_worker_info

from benchmark.pool.index_counts import IndexSummary
from benchmark.pool.index_table import caption_of, index_tables, present_rows, unpack_uids
from benchmark.pool.order import SampleOrder, present_samples
from benchmark.pool.shards_note import read_note
from benchmark.pool.subset import Subset
from benchmark.pool.uids import count_of
from benchmark.runtime.console import warn
from benchmark.runtime.errors import UserError
from benchmark.runtime.keyed import keyed_permutation
from benchmark.runtime.names import nearest_name
from benchmark.runtime.ranges import RangeReader, open_sequential
from benchmark.scales import Scale, get_scale

if TYPE_CHECKING:
    from benchmark.pool.pool import Pool

ORDERS = ("winnow", "webdataset")
TARS_STREAM = 101  # of random numbers, apart from those of training
READ_AT_ONCE = 256  # rows of the index that become Python objects at a time
MEMBER_COLUMNS = (
    "key",
    "image_offset",
    "image_length",
    "image_extension",
    "text_offset",
    "text_length",
    "json_offset",
    "json_length",
    "others",
)

Sample = dict[str, Any]
ReadMember = Callable[[int, int], bytes]  # from offset and length


@dataclass(frozen=True)
class SamplePlaces:
    """Where the members of a subset's samples lie that are there, in pool order; about 100 bytes a sample."""

    summary: IndexSummary
    members: pa.Table  # (samples,): `MEMBER_COLUMNS` of the index
    tar_number: np.ndarray  # (samples,), into summary.tars
    uids: np.ndarray  # (samples,) UID_DTYPE
    caption_field: str | None  # of the JSON that holds the captions; None: the txt does

    def read(self, rows: np.ndarray) -> Iterator[Sample]:
        """Yield samples in any order, each member read by offset."""
        ranges = RangeReader()
        try:
            for start in range(0, len(rows), READ_AT_ONCE):
                part = rows[start : start + READ_AT_ONCE]
                for row, number in zip(self.members.take(part).to_pylist(), self.tar_number[part], strict=True):
                    tar = self.summary.tars[number]

                    def read(offset: int, length: int, tar: Any = tar) -> bytes:
                        return ranges.read(tar.path, offset, length, state=tar.state)

                    yield self._sample(row, str(tar.path), read)
        finally:
            ranges.close()

    def read_along(self, rows: np.ndarray) -> Iterator[Sample]:
        """Yield samples that stand tar by tar, in the order of the tars' bytes: each tar is read from front to back."""
        changes = np.flatnonzero(np.diff(self.tar_number[rows], prepend=-1))  # nothing of no rows
        for start, stop in pairwise([*changes.tolist(), len(rows)]):
            tar = self.summary.tars[self.tar_number[rows[start]]]
            with open_sequential(tar.path, state=tar.state) as file:
                for first in range(start, stop, READ_AT_ONCE):
                    part = rows[first : min(first + READ_AT_ONCE, stop)]
                    for row in self.members.take(part).to_pylist():
                        yield self._sample(row, str(tar.path), file.read)

    def _sample(self, row: dict[str, Any], url: str, read: ReadMember) -> Sample:
        places = {
            row["image_extension"]: (row["image_offset"], row["image_length"]),
            "txt": (row["text_offset"], row["text_length"]),
            **({"json": (row["json_offset"], row["json_length"])} if row["json_offset"] >= 0 else {}),
            **{other["extension"]: (other["offset"], other["length"]) for other in row["others"] or ()},
        }
        members = {name: read(*place) for name, place in sorted(places.items(), key=lambda item: item[1])}
        members["txt"] = caption_of(members["txt"], self.caption_field)
        return {"__key__": row["key"], "__url__": url, **members}


def find_samples(pool: Pool, subset: Subset | None) -> SamplePlaces:
    """Find the samples of a subset (None: of the pool) that have image and caption in the tars."""
    note = read_note(pool.dir)
    tables, uid_parts, numbers = [], [], []
    for number, table in enumerate(index_tables(pool.index_dir, pool.ensure_index().tars, ("uid", *MEMBER_COLUMNS))):
        uids = unpack_uids(table["uid"])
        wanted = present_rows(table)
        if subset is not None:
            wanted &= count_of(uids, subset.uids) > 0
        tables.append(table.select(MEMBER_COLUMNS).filter(pa.array(wanted)))
        uid_parts.append(uids[wanted])
        numbers.append(np.full(int(wanted.sum()), number, dtype=np.int32))
    members = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    caption_field = None if note is None else note.caption_field
    return SamplePlaces(pool.ensure_index(), members, np.concatenate(numbers), np.concatenate(uid_parts), caption_field)


@dataclass(frozen=True)
class StepSource:
    """Yields samples in Winnow's order: a rank its part of every batch, a worker every batch of so many.

    A `DataLoader` with batch_size = scale.batch_size / ranks thus gives the steps in order, whatever its workers.
    """

    places: SamplePlaces
    order: SampleOrder
    first_step: int

    def __call__(self) -> Iterator[Sample]:
        rank, num_ranks, worker, num_workers = pytorch_worker_info()
        batch_size = self.order.scale.batch_size
        if batch_size % num_ranks:
            raise UserError(
                f"batches of {batch_size} do not divide over {num_ranks} ranks; use a number of ranks that divides it, "
                'or order="webdataset"',
                code="option-value",
            )
        size = batch_size // num_ranks
        for step in range(self.first_step + worker, self.order.scale.steps, num_workers):
            yield from self.places.read(self.order.samples[self.order.batch(step)[rank * size : (rank + 1) * size]])


@dataclass(frozen=True)
class ShuffledSource:
    """Yields every sample once an epoch, copies counted: tars in a random order, samples through a buffer.

    Ranks and workers share an epoch's samples evenly, up to one, however few tars there are.
    """

    places: SamplePlaces
    samples: np.ndarray  # P: rows of `places`
    seed: int
    buffer: int  # samples
    epoch: Any  # a number that all workers of this process share

    def __call__(self) -> Iterator[Sample]:
        rank, num_ranks, worker, num_workers = pytorch_worker_info()
        epoch = self.epoch.value
        rows = _part(_part(self._epoch_rows(epoch), rank, num_ranks), worker, num_workers)
        draw = np.random.default_rng([self.seed, epoch, rank, worker])
        held: list[Sample] = []
        for sample in self.places.read_along(rows):
            if len(held) < self.buffer:
                held.append(sample)
                continue
            if held:
                place = int(draw.integers(len(held)))
                held[place], sample = sample, held[place]
            yield sample
        yield from (held[place] for place in draw.permutation(len(held)))

    def _epoch_rows(self, epoch: int) -> np.ndarray:
        """Return an epoch's samples, tar by tar in the epoch's order of tars: (len(P),)."""
        num_tars = len(self.places.summary.tars)
        starts = np.searchsorted(self.places.tar_number[self.samples], np.arange(num_tars + 1))
        tars = keyed_permutation(num_tars, TARS_STREAM, self.seed, epoch)
        return np.concatenate([self.samples[starts[tar] : starts[tar + 1]] for tar in tars])


def _part(rows: np.ndarray, number: int, of: int) -> np.ndarray:
    return rows[len(rows) * number // of : len(rows) * (number + 1) // of]


class SubsetPipeline(FluidWrapper):  # type: ignore[misc]  # webdataset has no types
    """A `webdataset` pipeline (an `IterableDataset` of torch) over a subset's samples, with `.decode` and the like."""

    def __init__(self, source: StepSource | ShuffledSource) -> None:
        super().__init__(source)
        self.source = source

    @property
    def num_samples(self) -> int:
        """Return how many samples an epoch has, or all steps together, over all ranks and workers."""
        if isinstance(self.source, StepSource):
            scale = self.source.order.scale
            return (scale.steps - self.source.first_step) * scale.batch_size
        return len(self.source.samples)

    def set_epoch(self, epoch: int) -> None:
        """Shuffle in another way from the next pass on, as torch's `DistributedSampler` does; workers see it too."""
        if isinstance(self.source, ShuffledSource):
            self.source.epoch.value = epoch


def make_pipeline(
    pool: Pool,
    subset: Subset | None,
    *,
    order: str,
    scale: str | Scale | None,
    seed: int,
    first_step: int,
    shuffle_buffer: int,
) -> SubsetPipeline:
    """Make the pipeline of `Pool.to_webdataset`, which says what the arguments are."""
    if order not in ORDERS:
        raise UserError(
            f"order={order!r} is unknown; use {' or '.join(map(repr, ORDERS))}.{nearest_name(order, ORDERS)}",
            code="option-value",
        )
    if order == "winnow" and scale is None:
        raise UserError(
            "order='winnow' is the order of training at a scale: give scale=, such as scale='nano'; or "
            "order='webdataset'",
            code="option-missing",
        )
    if order != "winnow" and scale is not None:
        raise UserError(f"scale= has no part in order={order!r}; leave it out", code="option-conflict")
    places = find_samples(pool, subset)
    samples = np.arange(len(places.uids)) if subset is None else present_samples(places.uids, subset)
    if not len(samples):
        raise UserError(f"no sample of the subset is in the tars of {pool.dir}", code="no-samples")
    if subset is not None and (absent := subset.num_distinct - len(np.unique(places.uids))):
        warn(f"{absent:,} uids of the subset have no image in {pool.dir}; {len(samples):,} samples are there")
    if scale is None:
        return SubsetPipeline(ShuffledSource(places, samples, seed, shuffle_buffer, multiprocessing.Value("q", 0)))
    recipe = get_scale(scale) if isinstance(scale, str) else scale
    if not 0 <= first_step < recipe.steps:
        raise UserError(
            f"first_step={first_step} is outside the {recipe.steps:,} steps of {recipe.name!r}", code="option-value"
        )
    steps = SampleOrder(samples, recipe, seed)
    steps.batch(first_step)  # what the order remembers is computed once, before workers are forked
    return SubsetPipeline(StepSource(places, steps, first_step))
