"""Contact sheets: some of the kept and some of the dropped samples, chosen by a hash of their uid."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from benchmark.pool.index import PoolIndex
from benchmark.pool.pool import Pool
from benchmark.pool.samples import SampleReader, decode_image
from benchmark.pool.subset import Subset
from benchmark.pool.uids import count_of, format_uids, sort_uids
from benchmark.report.row_sample import SHEET_STREAM, RowSample
from benchmark.runtime.keyed import keyed_uint64

SHEET_SAMPLES = 48
THUMBNAIL = 112  # pixels of the longer side


@dataclass(frozen=True)
class SheetSample:
    """One sample of a contact sheet."""

    uid: str
    picture: bytes | None  # a JPEG of our own making; None where the sample's cannot be decoded
    caption: str
    notes: list[str]


@dataclass(frozen=True)
class Sheet:
    """Some of the kept, or of the dropped samples."""

    title: str
    samples: list[SheetSample]
    num_present: int
    num_absent: int  # rows without an image in the pool


@dataclass(frozen=True)
class ChosenRows:
    """The samples that a contact sheet will show, and of how many."""

    title: str
    rows: np.ndarray  # places in the report's rows, (samples,)
    num_present: int
    num_absent: int


def index_of(pool: Pool, sample: RowSample) -> PoolIndex:
    """Return the index of the samples that are there, of those that may be shown."""
    return pool.load_index() if sample.is_whole else pool.load_index(Subset.of(sample.uids))


def choose_rows(index: PoolIndex, sample: RowSample) -> list[ChosenRows]:
    """Choose the samples to show by a hash of their uid, so that neither files nor their order matter."""
    uids = sample.uids
    is_present = count_of(uids, sort_uids(index.uids)) > 0
    chosen = []
    for title, mask in (("Kept", sample.is_kept), ("Dropped", ~sample.is_kept)):
        present = np.flatnonzero(mask & is_present)
        keys = keyed_uint64(SHEET_STREAM, uids["f0"][present], uids["f1"][present])
        rows = present[np.argsort(keys, kind="stable")]
        is_first = np.ones(len(rows), dtype=bool)  # a uid on several rows is shown once
        is_first[1:] = uids[rows[1:]] != uids[rows[:-1]]
        rows = rows[is_first][:SHEET_SAMPLES]
        chosen.append(ChosenRows(title, rows, len(present), int(mask.sum()) - len(present)))
    return chosen


def make_sheet(index: PoolIndex, chosen: ChosenRows, uids: np.ndarray, notes: dict[str, list[str]]) -> Sheet:
    """Read and decode the chosen samples; `notes` by uid stand under their captions."""
    wanted = uids[chosen.rows]
    near = np.flatnonzero(np.isin(index.uids["f0"], wanted["f0"]))  # a few; compared in full below
    places = [int(near[index.uids[near] == uid][0]) for uid in wanted]
    reader = SampleReader(index, np.array(places, dtype=np.int64))
    samples = []
    for number, uid in enumerate(format_uids(wanted)):
        data, text = reader.read(number)
        image = decode_image(data)
        picture = None if image is None else thumbnail(np.asarray(image))
        samples.append(SheetSample(uid, picture, text.decode(errors="replace"), notes[uid]))
    return Sheet(chosen.title, samples, chosen.num_present, chosen.num_absent)


def thumbnail(pixels: np.ndarray) -> bytes:
    """Encode an image (height, width, 3) uint8 as a small JPEG; of the sample's file nothing but the pixels is kept."""
    image = Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
