"""Pools: a folder in CommonPool's layout, with its fingerprint, coverage and the columns that filters read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from benchmark.pool.cosines import Agreement, compared_once, other_order
from benchmark.pool.index import PoolIndex, build_index, read_index
from benchmark.pool.index_counts import IndexSummary
from benchmark.pool.index_table import index_path, index_tables, knows_all_images, unpack_uids
from benchmark.pool.near import spell_near
from benchmark.pool.npz import DAMAGE, array_sizes, npz_shapes, read_arrays
from benchmark.pool.shards_note import has_tars
from benchmark.pool.subset import Subset
from benchmark.pool.uids import fingerprint_of, parse_uids
from benchmark.runtime.errors import NotFoundError, UserError, one_line
from benchmark.runtime.executor import map_items
from benchmark.runtime.files import Json, digest, write_json
from benchmark.runtime.locks import locked
from benchmark.runtime.names import nearest_name
from benchmark.runtime.paths import as_location, cache_dir, index_dir_of, is_remote, location_key, signals_dir_of
from benchmark.runtime.storage import file_hash, list_files, state_of
from benchmark.runtime.tables import column_problem, plain_column, plain_frame, read_footer, read_parquet

if TYPE_CHECKING:
    from benchmark.pool.streaming import SubsetPipeline
    from benchmark.scales import Scale

FINGERPRINT_VERSION = 1
MANY_ROWS = 10_000_000  # from here on several processes hash their uids
MAX_FRAME_ROWS = 10_000_000  # of a pool that becomes one DataFrame unless more are permitted


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


@dataclass(frozen=True)
class Shard:
    """A metadata shard as it was when the pool was opened."""

    number: int  # in the order of names
    path: Path  # of the parquet file
    state: str  # of it
    npz_state: str | None  # of the .npz beside it, where there is one

    @property
    def npz_path(self) -> Path:
        return self.path.with_suffix(".npz")


ASSETS_NAME = "assets"  # the folder of a pool's own


def planted_path(pool: Pool) -> Path:
    """Return where an embedded pool keeps the labels that were planted when it was generated."""
    return pool.dir / "planted.parquet"


class Pool:
    """A pool on disk or at a URL, opened for reading; nothing but its footers is read at first.

    Nothing is written into a pool that is remote or read-only: its index and signals go to the user's cache.
    """

    def __init__(self, pool_dir: str | Path, *, strict: bool = True, signals_dir: Path | None = None) -> None:
        """Open the pool; raises FileNotFoundError where there is none.

        `strict`: a damaged tar is an error. `signals_dir`: where signals are stored, instead of the pool or the cache.
        """
        self.dir = as_location(pool_dir) if isinstance(pool_dir, str) else pool_dir
        self.strict = strict
        self._signals_dir = signals_dir
        self._why_no_metadata = ""  # such as a bucket that is not there
        if not is_remote(self.dir) and not self.dir.is_dir():
            raise NotFoundError(
                f"there is no pool at {self.dir}.{spell_near(self.dir)} `winnow pool build --pool-dir DIR` generates "
                "an embedded one, as `winnow run` without pool_dir= does; `python scripts/download_pool.py --scale "
                "small --out pools/small` fetches DataComp's",
                code="pool-not-found",
            )
        if not self.metadata_paths and not self.has_images:
            why = self._why_no_metadata or "it has neither metadata/*.parquet nor shards/*.tar"
            raise NotFoundError(f"{self.dir} is not a pool: {why}.{spell_near(self.dir)}", code="pool-not-found")
        # A request or two each where the pool is remote, so some at once.
        with ThreadPoolExecutor(16 if is_remote(self.dir) else 1) as threads:
            self._footers = dict(zip(self.metadata_paths, threads.map(read_footer, self.metadata_paths), strict=True))
        for path in self.metadata_paths:
            names = self.schema(path).names
            if "uid" not in names:
                raise UserError(f"{path} has no column 'uid'; it has {names}", code="column-missing")

    def __getstate__(self) -> dict[str, object]:
        # A process that is handed a pool does without what was looked up.
        return {"dir": self.dir, "strict": self.strict, "_signals_dir": self._signals_dir, "_footers": {}}

    @cached_property
    def metadata_states(self) -> dict[Path, str]:
        """Return every file of the metadata (parquet and npz) with its state, in order."""
        try:
            return {file.path: file.state for file in list_files(self.dir / "metadata")}
        except FileNotFoundError as error:
            self._why_no_metadata = one_line(error) if is_remote(self.dir) else ""
            return {}  # a pool of shards only

    @cached_property
    def metadata_paths(self) -> list[Path]:
        """Return the metadata shards, by name."""
        return [path for path in self.metadata_states if path.suffix == ".parquet"]

    @cached_property
    def shards(self) -> list[Shard]:
        """Return the metadata shards, by name."""
        states = self.metadata_states
        return [
            Shard(number, path, states[path], states.get(path.with_suffix(".npz")))
            for number, path in enumerate(self.metadata_paths)
        ]

    @property
    def index_dir(self) -> Path:
        """Return where the index is written: `<pool_dir>/index`, or a cache where the pool is remote or read-only."""
        return index_dir_of(self.dir)

    @property
    def signals_dir(self) -> Path:
        """Return where signals are stored: as given, else `<pool_dir>/signals`, or a cache if that is read-only."""
        return self._signals_dir or signals_dir_of(self.dir)

    def with_signals_dir(self, folder: Path) -> Pool:
        """Return the same pool, what was read of it included, with its signals in another folder."""
        other = Pool.__new__(Pool)
        other.__dict__ = {**self.__dict__, "_signals_dir": folder}
        return other

    @cached_property
    def has_images(self) -> bool:
        """Tell whether any shard is there; a pool may be metadata only."""
        return has_tars(self.dir)

    # What follows may read the whole pool and write its index or a cache the first time; the answers are remembered.

    def ensure_index(self) -> IndexSummary:
        """Index the tars that have no index yet, and return what the index counts, tar by tar.

        Raises ValueError where a tar is damaged and the pool is strict.
        """
        return self._summary

    @cached_property
    def _summary(self) -> IndexSummary:
        summary = build_index(self.dir)
        summary.refuse_damage(self.strict)
        return summary

    def load_index(self, subset: Subset | None = None) -> PoolIndex:
        """Return the index of the present samples (all, or the subset's) in pool order; builds it where it is missing.

        The index of all samples stays in memory with the pool.
        """
        return self._index if subset is None else read_index(self.dir, self.ensure_index(), subset)

    @cached_property
    def _index(self) -> PoolIndex:
        return read_index(self.dir, self.ensure_index())

    def identify(self) -> PoolIdentity:
        """Return fingerprint, content hash and coverage; computes the fingerprint and builds the index as needed."""
        fingerprint, summary = self.compute_fingerprint(), self.ensure_index()
        return PoolIdentity(fingerprint, summary.content_hash, self.count_rows(), summary.num_present)

    def count_rows(self) -> int:
        """Return the number of metadata rows; of samples with a uid where the pool has shards only."""
        if not self.metadata_paths:
            return self.ensure_index().num_rows
        return sum(self.footer(path).num_rows for path in self.metadata_paths)

    def hash_tar_contents(self) -> str:
        """Return a hash of which image is whose, in the order of the tars: of a tar's index, and where that does not
        know the hashes of all images, of the tar's size and time."""
        return self._tar_contents

    @cached_property
    def _tar_contents(self) -> str:
        found = []
        for tar in self.ensure_index().tars:
            path = index_path(self.index_dir, tar)
            found.append([tar.label, file_hash(path, state_of(path))])
            if not knows_all_images(path):
                found[-1].append(tar.state)
        return digest(found)

    def compute_fingerprint(self) -> str:
        """Return the sum modulo 2^256 of the sha256 of every uid, as 64 hex characters.

        Cached per metadata shard in the user's cache; a shard is read again when its size or time changed. The uids of
        a pool that has shards only are those of its index.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        if not self.metadata_paths:
            return self.ensure_index().fingerprint
        cache_path = cache_dir() / "fingerprints" / f"{location_key(self.dir)}.json"
        known: dict[str, list[Json]] = _read_cache(cache_path)
        states = {path: [FINGERPRINT_VERSION, self.metadata_states[path]] for path in self.metadata_paths}
        new = [path for path, state in states.items() if known.get(path.name, [])[:2] != state]
        is_large = sum(self.footer(path).num_rows for path in new) >= MANY_ROWS
        workers = min(os.cpu_count() or 1, len(new)) if is_large else 0
        found = dict(zip(new, map_items(self._uid_sum, new, workers=workers, name="fingerprint"), strict=True))
        sums: dict[str, list[Json]] = {}
        for path, state in states.items():
            sums[path.name] = [*state, f"{found[path]:064x}"] if path in found else known[path.name]
        if sums != known:
            with locked(cache_path.parent):
                write_json(cache_path, sums)
        return f"{sum(int(entry[2], 16) for entry in sums.values()) % 2**256:064x}"

    def _uid_sum(self, path: Path) -> int:
        return fingerprint_of(self.read_uids(path))

    def read_uids(self, path: Path, rows: np.ndarray | None = None) -> np.ndarray:
        """Read the uids of one metadata shard, or of some of its rows (a mask, or numbers): shape (rows,)."""
        column = plain_column(read_parquet(path, ["uid"])["uid"], f"{path}: the column 'uid'", "text")
        if rows is not None:
            column = column.filter(pa.array(rows)) if rows.dtype == bool else column.take(pa.array(rows))
        return parse_uids(column, str(path))

    def uid_parts(self) -> Iterator[np.ndarray]:
        """Yield the uids of all rows in file order, file by file: of the index where the pool has shards only."""
        if self.metadata_paths:
            yield from (self.read_uids(path) for path in self.metadata_paths)
        else:
            tables = index_tables(self.index_dir, self.ensure_index().tars, ["uid"])
            yield from (unpack_uids(table["uid"]) for table in tables)

    def read_columns(self, path: Path, columns: Sequence[str]) -> pd.DataFrame:
        """Read columns of one metadata shard with pandas' default types."""
        table = read_parquet(path, columns)
        # A plain RangeIndex even where no column is requested.
        return plain_frame(table, path) if columns else pd.DataFrame(index=pd.RangeIndex(self.footer(path).num_rows))

    def to_pandas(self, columns: Sequence[str] | None = None, *, max_rows: int | None = MAX_FRAME_ROWS) -> pd.DataFrame:
        """Return columns of the metadata (None: all) as one DataFrame: all shards in order, a row per metadata row.

        It is held in memory whole: about 100 bytes a row for the uid, 150 for a caption, 8 for a number. Raises
        UserError where a column is missing, and where the pool has more than `max_rows` rows (None: no limit);
        filters see a large pool shard by shard.

        >>> pool.to_pandas(["uid", "text"]).shape
        (60000, 2)
        """
        if not self.metadata_paths:
            raise UserError(
                f"{self.dir} has shards only, and a DataFrame is made of metadata: `winnow pool import` makes it",
                code="metadata-missing",
            )
        num_rows = self.count_rows()
        if max_rows is not None and num_rows > max_rows:
            raise UserError(
                f"{self.dir} has {num_rows:,} rows, more than max_rows={max_rows:,} for one DataFrame; name few "
                f"columns and give max_rows={num_rows}, or None for no limit",
                code="pool-too-large",
            )
        names = list(self.schema(self.metadata_paths[0]).names if columns is None else columns)
        self.check_columns(names, "to_pandas()")
        frames = [self.read_columns(path, names) for path in self.metadata_paths]
        filled = [frame for frame in frames if len(frame)] or frames[:1]  # an empty shard's columns have any type
        return pd.concat(filled, ignore_index=True)

    def to_webdataset(
        self,
        subset: Subset | None = None,
        *,
        seed: int = 0,
        scale: str | Scale | None = None,
        order: str = "winnow",
        first_step: int = 0,
        shuffle_buffer: int = 1000,
    ) -> SubsetPipeline:
        """Return a `webdataset` pipeline over the samples of a subset (None: of the pool), read in place, uncopied.

        It yields dicts as `webdataset` does (`__key__`, `__url__`, and bytes by extension: `jpg`, `txt`, `json`, ...),
        a sample as often as the subset has copies of it, and takes `.decode`, `.to_tuple`, `.batched` and so on. Give
        it to a `DataLoader` or `webdataset.WebLoader` with any number of workers; ranks are those of `torchrun`.

        `order="winnow"`: the samples of all steps of `scale` as `winnow train` sees them with this seed, from
        `first_step` on. A rank has its part of each batch, so that a loader with batch_size = scale.batch_size / ranks
        gives the same batches. A picture that cannot be decoded is yielded as well; training puts another in its
        place. `order="webdataset"`: every sample once, tars in random order, then a buffer of `shuffle_buffer` samples
        (0: none); `set_epoch(n)` of the pipeline before each epoch shuffles anew. Ranks differ by one sample at most.

        Raises UserError where the tars are damaged, no sample is there, or ranks do not divide the scale's batch.

        >>> pipeline = pool.to_webdataset(subset, scale="nano", seed=0).decode("pil").to_tuple("jpg", "txt")
        """
        from benchmark.pool.streaming import make_pipeline

        return make_pipeline(
            self,
            subset,
            order=order,
            scale=scale,
            seed=seed,
            first_step=first_step,
            shuffle_buffer=shuffle_buffer,
        )

    def read_features(self, path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Read arrays of the .npz beside a metadata shard, each (rows, dimension).

        Raises ValueError where it is damaged, or where its rows are in another order than the parquet's.
        """
        features = {}
        if names:
            self._refuse_other_order(path)
            features = read_arrays(path.with_suffix(".npz"), names)
        return features

    def check_columns(self, columns: Sequence[str], needed_by: str) -> None:
        """Raise ValueError where a metadata shard lacks one of the columns, or has it in a type that cannot be read."""
        for path in self.metadata_paths:
            schema = self.schema(path)
            for column in columns:
                if column not in schema.names:
                    raise UserError(
                        f"{needed_by} needs the column {column!r}, which {path} lacks."
                        f"{nearest_name(column, schema.names)} It has {schema.names}.",
                        code="column-missing",
                    )
                problem = column_problem(self.footer(path), column)
                if problem is not None:
                    raise UserError(f"{needed_by} needs the column {column!r}: {path}: {problem}", code="column-type")

    def check_features(self, features: Sequence[str], needed_by: str) -> None:
        """Raise ValueError or FileNotFoundError where an .npz is missing, lacks an array or has other rows."""
        for path in self.metadata_paths if features else []:
            npz_path = path.with_suffix(".npz")
            if npz_path not in self.metadata_states:
                raise NotFoundError(f"{needed_by} needs {npz_path}, which is not there", code="array-missing")
            shapes = npz_shapes(npz_path)
            rows = self.footer(path).num_rows
            for feature in features:
                if feature not in shapes:
                    raise UserError(
                        f"{needed_by} needs the array {feature!r}, which {npz_path} lacks; it has {list(shapes)}",
                        code="array-missing",
                    )
                if shapes[feature][:1] != (rows,):
                    raise UserError(
                        f"{npz_path}: {feature} has shape {shapes[feature]}, but {path.name} has {rows} rows",
                        code="array-shape",
                    )
            if not is_remote(path):  # of a remote one when it is read: some requests for each file
                self._refuse_other_order(path)

    def cosines(self, path: Path) -> list[Agreement]:
        """Compare some cosines of the .npz beside a metadata shard with its scores; nothing where it is damaged."""
        try:
            return compared_once(path)
        except UserError:
            raise
        except DAMAGE:
            return []  # who reads it says so

    def _refuse_other_order(self, path: Path) -> None:
        for agreement in self.cosines(path):
            if not agreement.agrees:
                raise UserError(other_order(path, agreement), code="npz-order")

    def schema(self, path: Path) -> pa.Schema:
        """Return the columns of a metadata shard with their types."""
        return self.footer(path).schema.to_arrow_schema()

    def feature_sizes(self, path: Path) -> dict[str, int]:
        """Return the bytes of each array of the .npz beside a metadata shard."""
        return array_sizes(path.with_suffix(".npz"))

    def footer(self, path: Path) -> pq.FileMetaData:
        """Return what a metadata shard's parquet file says of itself; read once."""
        return self._footers[path] if path in self._footers else read_footer(path)


def _read_cache(path: Path) -> dict[str, list[Json]]:
    try:
        known = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
