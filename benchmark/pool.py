"""Pools: a folder in CommonPool's layout, with its fingerprint, coverage and the columns that filters read."""

from __future__ import annotations

import hashlib
import json
import os
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from benchmark.index import IndexSummary, PoolIndex, build_index, has_tars, read_index
from benchmark.names import nearest_name
from benchmark.stage import Json, locked, write_json
from benchmark.subset import Subset
from benchmark.tables import one_line, read_parquet
from benchmark.uids import fingerprint_of, parse_uids

FINGERPRINT_VERSION = 1

# What reading a damaged .npz raises: numpy parses the header of an array as Python.
DAMAGE = (zipfile.BadZipFile, zlib.error, tokenize.TokenError, ValueError, SyntaxError, EOFError, KeyError, OSError)


@dataclass(frozen=True)
class PoolIdentity:
    """What tells pools apart: stages compare the fingerprint, boards all of it."""

    fingerprint: str  # of the metadata's uids
    content_hash: str  # of the images
    rows: int  # in the metadata
    present: int  # samples with image and caption in the tars

    def as_json(self) -> dict[str, Json]:
        return {
            "fingerprint": self.fingerprint,
            "content_hash": self.content_hash,
            "rows": self.rows,
            "present": self.present,
        }


class Pool:
    """A pool on disk, opened for reading; nothing but its footers is read at first."""

    def __init__(self, pool_dir: str | Path, *, strict: bool = True) -> None:
        """Open the pool; raises FileNotFoundError where there is none. `strict`: a damaged tar is an error."""
        self.dir = Path(pool_dir)
        self.strict = strict
        self.metadata_paths = sorted((self.dir / "metadata").glob("*.parquet"))
        if not self.dir.is_dir():
            raise FileNotFoundError(
                f"there is no pool at {self.dir}; give pool_dir=, or scale= (and pool_seed=) of an embedded one, which "
                "`winnow pool build` draws"
            )
        if not self.metadata_paths and not self.has_images:
            raise FileNotFoundError(f"{self.dir} is no pool: it has neither metadata/*.parquet nor shards/*.tar")
        for path in self.metadata_paths:
            if "uid" not in self._schema(path).names:
                raise ValueError(f"{path} has no column 'uid'; it has {self._schema(path).names}")

    @cached_property
    def has_images(self) -> bool:
        """Tell whether any shard is there; a pool may be metadata alone."""
        return has_tars(self.dir)

    @cached_property
    def summary(self) -> IndexSummary:
        """Return what the index counts, tar by tar; raises ValueError where a tar is damaged and the pool is strict."""
        summary = build_index(self.dir)
        summary.refuse_damage(self.strict)
        return summary

    @cached_property
    def index(self) -> PoolIndex:
        """Return the index of the samples that are there, in pool order."""
        return read_index(self.dir, self.summary)

    def index_within(self, subset: Subset) -> PoolIndex:
        """Return the index of those of the subset's samples that are there, in pool order."""
        return read_index(self.dir, self.summary, subset)

    @cached_property
    def identity(self) -> PoolIdentity:
        """Return fingerprint, content hash and coverage."""
        return PoolIdentity(self.fingerprint, self.summary.content_hash, self.num_rows, self.summary.num_present)

    @cached_property
    def num_rows(self) -> int:
        """Return the number of metadata rows; of samples with a uid where the pool has shards alone."""
        if not self.metadata_paths:
            return self.summary.num_rows
        return sum(pq.read_metadata(path).num_rows for path in self.metadata_paths)

    @cached_property
    def fingerprint(self) -> str:
        """Return the sum modulo 2^256 of the sha256 of every uid, as 64 hex characters.

        Kept per metadata shard in the user's cache; a shard is read again when its size or time changed. The uids of
        a pool that has shards alone are those of its index.
        """
        if not self.metadata_paths:
            return self.summary.fingerprint
        cache_path = (
            cache_dir() / "fingerprints" / f"{hashlib.sha256(str(self.dir.resolve()).encode()).hexdigest()}.json"
        )
        known: dict[str, list[Json]] = _read_cache(cache_path)
        sums: dict[str, list[Json]] = {}
        for path in self.metadata_paths:
            stat = path.stat()
            state = [FINGERPRINT_VERSION, stat.st_size, stat.st_mtime_ns]
            if path.name in known and known[path.name][:3] == state:
                sums[path.name] = known[path.name]
            else:
                sums[path.name] = [*state, f"{fingerprint_of(self.read_uids(path)):064x}"]
        if sums != known:
            with locked(cache_path.parent):
                write_json(cache_path, sums)
        return f"{sum(int(entry[3], 16) for entry in sums.values()) % 2**256:064x}"

    def read_uids(self, path: Path) -> np.ndarray:
        """Read the uids of one metadata shard, shape (rows,)."""
        return parse_uids(read_parquet(path, ["uid"])["uid"], str(path))

    def read_columns(self, path: Path, columns: Sequence[str]) -> pd.DataFrame:
        """Read columns of one metadata shard with pandas' default types."""
        table = read_parquet(path, columns)
        # A plain RangeIndex even where no column is asked for.
        return table.to_pandas() if columns else pd.DataFrame(index=pd.RangeIndex(pq.read_metadata(path).num_rows))

    def read_features(self, path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Read arrays of the .npz beside a metadata shard, each (rows, dimension)."""
        features = {}
        if names:
            npz_path = path.with_suffix(".npz")
            try:
                with np.load(npz_path, allow_pickle=False) as arrays:
                    features = {name: arrays[name] for name in names}
            except DAMAGE as error:
                raise ValueError(f"{npz_path} is damaged ({one_line(error)}); fetch or build it again") from error
        return features

    def check_columns(self, columns: Sequence[str], needed_by: str) -> None:
        """Raise ValueError where a metadata shard lacks one of the columns."""
        for path in self.metadata_paths:
            names = self._schema(path).names
            for column in columns:
                if column not in names:
                    raise ValueError(
                        f"{needed_by} needs the column {column!r}, which {path} lacks."
                        f"{nearest_name(column, names)} It has {names}."
                    )

    def check_features(self, features: Sequence[str], needed_by: str) -> None:
        """Raise ValueError or FileNotFoundError where an .npz is missing, lacks an array or has another length."""
        for path in self.metadata_paths if features else []:
            npz_path = path.with_suffix(".npz")
            if not npz_path.exists():
                raise FileNotFoundError(f"{needed_by} needs {npz_path}, which is not there")
            shapes = npz_shapes(npz_path)
            rows = pq.read_metadata(path).num_rows
            for feature in features:
                if feature not in shapes:
                    raise ValueError(
                        f"{needed_by} needs the array {feature!r}, which {npz_path} lacks; it has {list(shapes)}"
                    )
                if shapes[feature][:1] != (rows,):
                    raise ValueError(
                        f"{npz_path}: {feature} has shape {shapes[feature]}, but {path.name} has {rows} rows"
                    )

    def _schema(self, path: Path) -> pa.Schema:
        if path not in self._schemas:
            try:
                self._schemas[path] = pq.read_schema(path)
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"{path} is not a parquet file ({one_line(error)})") from error
        return self._schemas[path]

    @cached_property
    def _schemas(self) -> dict[Path, pa.Schema]:
        return {}


def cache_dir() -> Path:
    """Return the user's cache folder: $WINNOW_CACHE_DIR, else the platform's (`~/.cache/winnow`)."""
    base = os.environ.get("WINNOW_CACHE_DIR")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "winnow"


def _read_cache(path: Path) -> dict[str, list[Json]]:
    try:
        known = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def npz_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Read the shapes of an .npz's arrays from their headers."""
    shapes = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as member:
                    version = np.lib.format.read_magic(member)
                    read = (
                        np.lib.format.read_array_header_1_0
                        if version == (1, 0)
                        else np.lib.format.read_array_header_2_0
                    )
                    shapes[name.removesuffix(".npy")] = read(member)[0]
    except DAMAGE as error:
        raise ValueError(f"{path} is damaged ({one_line(error)}); fetch or build it again") from error
    return shapes
