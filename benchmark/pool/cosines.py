"""Whether the rows of an .npz are those of the parquet beside it: some cosines of its embeddings against the scores.

Nothing in an .npz says which sample a row is of. Where the parquet has a similarity that was computed from embeddings
which the .npz has, the two agree row by row (to 2e-5 in the embedded pool, to some 1e-3 where a model worked in
halves), unless one of the files was sorted, filtered or written again without the other.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import pyarrow.parquet as pq

from benchmark.runtime.files import read_json, write_json
from benchmark.runtime.locks import locked
from benchmark.runtime.paths import cache_dir, is_remote, location_key
from benchmark.runtime.storage import open_file, state_of, storage_errors
from benchmark.runtime.tables import COMMON_FAMILIES, is_family, plain_column, read_footer, read_parquet

CHECK_VERSION = 1  # raised by hand when another choice of rows, or another limit, would give other answers
RUNS, RUN_ROWS = (
    16,
    16,
)  # so many runs of so many rows are compared, evenly spread, the first and the last row among them
READ_AHEAD = 1 << 16  # bytes
LOCAL_HEADER = struct.Struct("<26xHH")  # of a member of a zip archive: the lengths of its name and of what is more
APART = 0.02  # a cosine and a score that differ by more are of two samples
MAX_APART = 0.05  # share of the compared rows; in another order nearly all are, by .1 to .3


@dataclass(frozen=True)
class Agreement:
    """How cosines of some rows of an .npz meet a score column of the parquet beside it."""

    column: str
    features: tuple[str, str]  # the arrays of images and texts
    compared: int  # rows
    apart: int  # and of these, rows that differ by more than APART
    difference: float  # on average

    @property
    def agrees(self) -> bool:
        return self.apart <= MAX_APART * self.compared


def other_order(path: Path, agreement: Agreement) -> str:
    """Say what is wrong with an .npz whose cosines are not the scores."""
    image, text = agreement.features
    return (
        f"{path.with_suffix('.npz')}: the cosines of {image} and {text} are not the {agreement.column} of {path.name}: "
        f"{agreement.apart:,} of {agreement.compared:,} rows that were compared differ, by {agreement.difference:.2f} "
        "on average; the two files have their rows in different orders, or the scores are another model's: make or "
        "fetch both files again, or rename the column"
    )


_KNOWN: dict[str, tuple[str, list[Agreement]]] = {}  # by path, with the files' states


def compared_once(path: Path) -> list[Agreement]:
    """Return how the scores of a metadata shard and the .npz beside it agree; cached by the files' states.

    Nothing where they cannot be compared, as without a score or one of the embeddings. It reads a score column and some
    hundred rows of two arrays. A damaged .npz raises what numpy and zipfile raise.
    """
    npz_path = path.with_suffix(".npz")
    if is_remote(path) and str(path) in _KNOWN:  # its state would be a request
        return _KNOWN[str(path)][1]
    states = f"{CHECK_VERSION} {state_of(path)} {state_of(npz_path)}"
    known = _KNOWN.get(str(path))
    if known is not None and known[0] == states:
        return known[1]
    kept_path = cache_dir() / "cosines" / f"{location_key(npz_path)}.json"
    found = _kept(kept_path, states)
    if found is None:
        found = compare_cosines(path)
        values = [[each.column, each.features, each.compared, each.apart, each.difference] for each in found]
        with locked(kept_path.parent):
            write_json(kept_path, [states, values])
    _KNOWN[str(path)] = states, found
    return found


def _kept(path: Path, states: str) -> list[Agreement] | None:
    try:
        there = read_json(path)
        if there[0] != states:
            return None
        return [Agreement(column, (image, text), *numbers) for column, (image, text), *numbers in there[1]]
    except (OSError, ValueError, TypeError, KeyError, IndexError):
        return None


def compare_cosines(path: Path, footer: pq.FileMetaData | None = None) -> list[Agreement]:
    """Compare cosines of some rows of the .npz with the score columns of a metadata shard, where both are there.

    The rows are RUNS evenly spread runs of RUN_ROWS; those without a score or with an embedding of zeros or NaN count
    for nothing. An .npz that cannot be read, or has another number of rows, is left to others to complain of.
    """
    footer = footer or read_footer(path)
    schema = footer.schema.to_arrow_schema()
    scored = {
        name.removeprefix("clip_").removesuffix("_similarity_score"): name
        for name, family in COMMON_FAMILIES.items()
        if family == "number" and name.startswith("clip_") and schema.names.count(name) == 1
    }
    scored = {arch: name for arch, name in scored.items() if is_family(schema.field(name).type, "number")}
    rows = sampled_rows(footer.num_rows)
    if not scored or not len(rows):
        return []
    npz_path, found = path.with_suffix(".npz"), []
    with storage_errors(npz_path), open_file(npz_path, read_ahead=READ_AHEAD) as file, zipfile.ZipFile(file) as archive:
        arrays = {info.filename.removesuffix(".npy") for info in archive.infolist()}
        for arch, name in scored.items():
            features = (f"{arch}_img", f"{arch}_txt")
            if not arrays.issuperset(features):
                continue
            images, texts = (_read_rows(file, archive, feature, rows, footer.num_rows) for feature in features)
            if images is None or texts is None or images.shape != texts.shape:
                continue
            column = plain_column(read_parquet(path, [name])[name], f"{path}: the column {name!r}", "number")
            scores = column.to_pandas().to_numpy(dtype=np.float64, na_value=np.nan)[rows]
            found.append(_agreement(name, features, images, texts, scores))
    return [each for each in found if each.compared]


def sampled_rows(num_rows: int) -> np.ndarray:
    """Return the rows that are compared: (at most RUNS * RUN_ROWS,) int64, rising."""
    if num_rows <= RUNS * RUN_ROWS:
        return np.arange(num_rows)
    starts = np.arange(RUNS) * (num_rows - RUN_ROWS) // (RUNS - 1)
    return (starts[:, None] + np.arange(RUN_ROWS)).ravel()


def _agreement(
    column: str, features: tuple[str, str], images: np.ndarray, texts: np.ndarray, scores: np.ndarray
) -> Agreement:
    images, texts = images.astype(np.float64), texts.astype(np.float64)  # (rows, dimension)
    with np.errstate(all="ignore"):
        norms = np.linalg.norm(images, axis=1) * np.linalg.norm(texts, axis=1)
        differences = np.abs((images * texts).sum(axis=1) / norms - scores)
    differences = differences[np.isfinite(differences)]
    mean = float(differences.mean()) if len(differences) else 0.0
    return Agreement(column, features, len(differences), int((differences > APART).sum()), mean)


def _read_rows(
    file: BinaryIO, archive: zipfile.ZipFile, name: str, rows: np.ndarray, num_rows: int
) -> np.ndarray | None:
    """Read some rows of an array of an .npz, (rows, dimension); None where it is not a matrix of that many rows."""
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(member)
        start = member.tell()
        if len(shape) != 2 or shape[0] != num_rows or is_fortran or dtype.kind != "f":
            return None
        size = shape[1] * dtype.itemsize
        source, origin = cast(BinaryIO, member), start
        if info.compress_type == zipfile.ZIP_STORED:  # read where it lies: a member reads all that it seeks over
            file.seek(info.header_offset)
            header = file.read(LOCAL_HEADER.size)
            name_length, extra_length = LOCAL_HEADER.unpack(header)
            source, origin = file, start + info.header_offset + len(header) + name_length + extra_length
        parts = []
        for run in _runs(rows):
            source.seek(origin + int(run[0]) * size)
            parts.append(np.frombuffer(source.read(len(run) * size), dtype=dtype).reshape(len(run), shape[1]))
    return np.concatenate(parts)


def _runs(rows: np.ndarray) -> Sequence[np.ndarray]:
    return np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
