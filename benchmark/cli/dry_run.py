"""`dry_run=true`: how much a stage will read, found from footers and the index.

If a remote pool has no index yet, only the cost of the index is reported: making it means reading the pool.

Bytes are those of column chunks, arrays and members as stored on disk; a request is one read of a local file or one
range of a remote one. What the operating system reads ahead or caches is not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmark.experiment.folder import open_experiment, own_shards
from benchmark.pool.index import PoolIndex, unindexed_tars
from benchmark.pool.index_table import index_tables
from benchmark.pool.order import SampleOrder, present_samples
from benchmark.pool.pool import Pool
from benchmark.pool.resharded import read_resharded
from benchmark.pool.subset import load_subset
from benchmark.pool.tars import BLOCK
from benchmark.runtime.errors import UserError
from benchmark.runtime.paths import index_dir_of, is_remote
from benchmark.runtime.ranges import BLOCK_BYTES, SEQUENTIAL_BLOCK_BYTES, max_cache_bytes
from benchmark.runtime.storage import format_bytes
from benchmark.scales import Scale
from benchmark.selection.rules import ResolvedRule


@dataclass(frozen=True)
class Reading:
    """A part of what a stage reads."""

    what: str
    num_bytes: int
    num_requests: int

    def __str__(self) -> str:
        return f"{self.what}: {format_bytes(self.num_bytes)} in {self.num_requests:,} requests"


@dataclass(frozen=True)
class TrainingReads:
    """What training reads of a subset, and what cutting it out first would change."""

    passes: float  # over P
    is_held: bool  # decoded, in memory, so that the bytes are read in the first pass only
    in_place: Reading
    written_bytes: int  # by resharding
    resharding: Reading  # to cut P out, once
    resharded: Reading  # training on what was cut out

    @property
    def resharding_pays(self) -> bool:
        """Tell whether cutting out, its writing included, and training then moves fewer bytes."""
        return self.resharding.num_bytes + self.written_bytes + self.resharded.num_bytes < self.in_place.num_bytes

    def lines(self) -> list[str]:
        """Return the comparison as text."""
        cut = f"{self.resharding}, {format_bytes(self.written_bytes)} written, then {self.resharded}"
        advice = "`winnow reshard` first is cheaper" if self.resharding_pays else "training in place is cheaper"
        return [self.first_line, f"  {self.in_place}", f"  {cut}", f"  {advice}"]

    @property
    def first_line(self) -> str:
        held = ", which is held in memory after the first" if self.is_held else ""
        return f"train: {self.passes:.2f} passes over the subset{held}"


def filter_reads(pool: Pool, rules: Sequence[ResolvedRule]) -> list[Reading]:
    """Return what choosing a subset reads of the metadata, the .npz and the images."""
    rules = [each for rule in rules for each in rule.with_signals]
    columns = {"uid", *(name for rule in rules for name in rule.columns)}
    features = {name for rule in rules for name in rule.features}
    metadata_bytes = metadata_requests = feature_bytes = feature_requests = 0
    for path in pool.metadata_paths:
        footer = pool.footer(path)
        metadata_requests += 1
        for group in range(footer.num_row_groups):
            for number in range(footer.num_columns):
                chunk = footer.row_group(group).column(number)
                if chunk.path_in_schema.split(".")[0] in columns:
                    metadata_bytes += chunk.total_compressed_size
                    metadata_requests += 1
        sizes = pool.feature_sizes(path) if features else {}
        feature_bytes += sum(sizes[name] for name in features)
        feature_requests += len(features) + bool(features)
    readings = [Reading(f"columns {', '.join(sorted(columns))}", metadata_bytes, metadata_requests)]
    if features:
        readings.append(Reading(f"arrays {', '.join(sorted(features))}", feature_bytes, feature_requests))
    if any(rule.strategy.images for rule in rules):
        readings.append(image_reads(pool))
    return readings


def image_reads(pool: Pool) -> Reading:
    """Return what looking at every image of a pool reads: the pictures; of a remote pool, whole tars."""
    tars = pool.ensure_index().tars
    if is_remote(tars[0].path):
        requests = sum(-(-tar.size // SEQUENTIAL_BLOCK_BYTES) for tar in tars)
        return Reading("images", sum(tar.size for tar in tars), requests)
    num_bytes = count = 0
    for table in index_tables(index_dir_of(pool.dir), tars, ["image_length"]):
        lengths = table["image_length"].to_numpy()
        num_bytes += int(lengths[lengths >= 0].sum(dtype=np.int64))
        count += int((lengths >= 0).sum())
    return Reading("images", num_bytes, count)


def indexing_lines(pool: Pool) -> list[str]:
    """Say what making the index will read first, where it is not there; empty where it is."""
    tars = unindexed_tars(pool.dir) if pool.has_images else []
    if not tars:
        return []
    size = sum(tar.size for tar in tars)
    if is_remote(tars[0].path):
        requests = sum(-(-tar.size // SEQUENTIAL_BLOCK_BYTES) for tar in tars)
        return [f"index: {Reading(f'{len(tars):,} tars from front to back', size, requests)}"]
    return [f"index: the headers and JSON of {len(tars):,} tars of {format_bytes(size)}"]


def cutting_reads(index: PoolIndex, samples: np.ndarray) -> Reading:
    """Return what cutting P out of the tars reads; JSON and other members are not counted where the tars are local."""
    places = np.unique(samples)
    if is_remote(index.summary.tars[0].path):
        return Reading("cutting it out", *reversed(_blocks(index, places, SEQUENTIAL_BLOCK_BYTES)))
    return Reading("cutting it out", _bytes_of(index, samples), len(samples))


def training_reads(index: PoolIndex, samples: np.ndarray, scale: Scale, *, is_held: bool) -> TrainingReads:
    """Return what training at a scale reads of P (`samples`, places in the index).

    `is_held`: the decoded samples fit in memory, so that each is read once.
    """
    kept = _bytes_of(index, samples)
    passes = scale.steps * scale.batch_size / len(samples)
    times = 1.0 if is_held else passes
    exactly = round(kept * times), round(2 * len(samples) * times)
    in_place = Reading("in place", *exactly)
    if is_remote(index.summary.tars[0].path):
        blocks, block_bytes = _blocks(index, np.unique(samples), BLOCK_BYTES)
        if block_bytes <= max_cache_bytes():
            times = 1.0
        in_place = Reading("in place", round(block_bytes * times), round(blocks * times))
    written = written_bytes(index, samples)
    cutting = cutting_reads(index, samples)
    return TrainingReads(passes, is_held, in_place, written, cutting, Reading("training there", *exactly))


def _bytes_of(index: PoolIndex, samples: np.ndarray) -> int:
    return int((index.image_length[samples].astype(np.int64) + index.text_length[samples]).sum())


def _blocks(index: PoolIndex, places: np.ndarray, block_bytes: int) -> tuple[int, int]:
    """Return how many blocks of the tars hold the samples at these places, and their bytes."""
    sizes = np.array([tar.size for tar in index.summary.tars])
    tars = index.tar_number[places].astype(np.int64)
    per_tar = int(sizes.max()) // block_bytes + 1
    found = []
    for kind in ("image", "text"):
        offsets = getattr(index, f"{kind}_offset")[places]
        lengths = getattr(index, f"{kind}_length")[places]
        for ends in (offsets, offsets + np.maximum(lengths, 1) - 1):  # a member is smaller than two blocks as a rule
            found.append(np.unique(tars * per_tar + ends // block_bytes))
    blocks = np.unique(np.concatenate(found))
    starts = blocks % per_tar * block_bytes
    return len(blocks), int(np.minimum(sizes[blocks // per_tar] - starts, block_bytes).sum())


def written_bytes(index: PoolIndex, samples: np.ndarray) -> int:
    """Return about how many bytes resharding writes: members and headers, three blocks for each JSON."""
    lengths = np.concatenate([index.image_length[samples], index.text_length[samples]]).astype(np.int64)
    return int((lengths + -lengths % BLOCK + BLOCK).sum()) + 3 * BLOCK * len(samples)


def training_lines(exp_dir: Path, pool: Pool | None, scale: Scale) -> list[str]:
    """Say what training an experiment will read, and whether resharding first is the cheaper way."""
    from benchmark.training.data import fits_memory

    subset_path, record = open_experiment(exp_dir, pool)
    shards = own_shards(exp_dir, record)
    if shards is not None:
        resharded = read_resharded(exp_dir, shards)
        index, samples = resharded.index, resharded.samples
    else:
        assert pool is not None
        subset = load_subset(subset_path)
        index = pool.load_index(subset)
        samples = present_samples(index.uids, subset)
    reads = training_reads(index, samples, scale, is_held=fits_memory(SampleOrder(samples, scale, 0)))
    if shards is not None:
        return [reads.first_line, f"  {reads.resharded}"]
    return reads.lines()


def most_training_lines(pool: Pool, scale: Scale) -> list[str]:
    """Say what training would read if the whole pool were chosen: the most that a subset of it can come to."""
    index = pool.load_index()
    reads = training_reads(index, np.arange(len(index)), scale, is_held=False)
    return [f"train: at most (the whole pool, {reads.passes:.2f} passes)", f"  {reads.in_place}"]


def resharding_lines(pool: Pool, subset_path: Path) -> list[str]:
    """Say what cutting a subset out of the pool will read and write."""
    subset = load_subset(subset_path)
    index = pool.load_index(subset)
    samples = present_samples(index.uids, subset)
    if not len(samples):
        raise UserError(f"no uid of {subset_path} has a sample in {pool.dir}", code="subset-foreign")
    reading = cutting_reads(index, samples)
    return [
        f"reshard: {len(samples):,} samples",
        f"  {reading}",
        f"  about {format_bytes(written_bytes(index, samples))} to write",
    ]
