"""The embedded pool: pairs generated one by one from (generator version, pool seed, index), written as CommonPool is.

`build_pool` generates tar shards in worker processes, scores all pairs with the two reference models and writes the
metadata, the planted labels, the evaluation sets and the index. Its bytes do not depend on the workers.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib import metadata
from pathlib import Path
from random import Random

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image, features
from pyarrow import feather
from tqdm import tqdm

from benchmark.embedded.assets import write_assets
from benchmark.embedded.evalsets import evaluation_sets, write_evaluation_set
from benchmark.embedded.pairs import GENERATOR_VERSION, KINDS, Pair, generate_pair
from benchmark.embedded.world import IMAGE_SIZE
from benchmark.models.reference import (
    REFERENCE_MODELS,
    encode_pairs,
    reference_path,
)
from benchmark.pool.tars import write_tar
from benchmark.runtime.console import say
from benchmark.runtime.costs import cost
from benchmark.runtime.errors import UserError
from benchmark.runtime.files import TEMPORARY_SUFFIX, Json, atomic_path, remove_temporary, sha256_of
from benchmark.runtime.locks import LOCK_NAME, locked
from benchmark.runtime.records import Record, finished, write_record
from benchmark.scales import Scale

BUILDING_NAME = "building.json"  # says that a pool is being built here, and which
PARTS_NAME = "building"  # what is generated and not yet in the metadata
POOL_NAME = "pool.json"


def build_pool(pool_dir: Path, scale: Scale, pool_seed: int = 0, workers: int | None = None) -> None:
    """Build an embedded scale's pool in `pool_dir`; a finished one is skipped, a killed build goes on.

    `workers` counts processes (0: generate in this one; None: chosen by the pool's size); no byte depends on it.
    Raises ValueError where the folder holds a pool made otherwise, or something else than an embedded pool.
    """
    from benchmark.pool.index import build_index

    if not scale.is_embedded:
        raise UserError(
            f"scale {scale.name!r} has no embedded pool; download its pool from where it is published",
            code="no-embedded-pool",
        )
    if pool_seed < 0:
        raise UserError(f"pool_seed is {pool_seed}; choose 0 or more", code="option-value")
    inputs: dict[str, Json] = {
        "generator_version": GENERATOR_VERSION,
        "scale": scale.name,
        "pool_size": scale.pool_size,
        "pool_seed": pool_seed,
        "reference_models": {name: sha256_of(reference_path(name)) for name in REFERENCE_MODELS},
    }
    _refuse_foreign_folder(pool_dir)
    with locked(pool_dir):
        if (built := finished(pool_dir / POOL_NAME, "pool", GENERATOR_VERSION, inputs)) is not None:
            _refuse_changed_files(pool_dir, built.result["files"])
            _remove_scaffold(pool_dir)
            say(f"pool: up to date, skipping ({pool_dir})")
            return
        if not finished(pool_dir / BUILDING_NAME, "pool building", GENERATOR_VERSION, inputs):
            write_record(pool_dir / BUILDING_NAME, Record("pool building", GENERATOR_VERSION, inputs, {}))
        remove_temporary(pool_dir)
        with cost(pool_dir, "pool build", scale=scale.name, pool_seed=pool_seed):
            _generate_files(pool_dir, scale, pool_seed, workers)
            pairs = pa.concat_tables([feather.read_table(path) for path in sorted((pool_dir / PARTS_NAME).glob("*"))])
            _write_metadata(pool_dir, scale, pool_seed, pairs)
            write_assets(pool_dir, pairs)
            build_index(pool_dir)
        result: dict[str, Json] = {
            "rows": pairs.num_rows,
            "samples": pairs.num_rows - pc.sum(pairs["is_dead_link"]).as_py(),
            "files": _file_sizes(pool_dir),
            "versions": {
                "pillow": PIL.__version__,
                "freetype": features.version("freetype2"),
                **{name: metadata.version(name) for name in ("matplotlib", "qtawesome", "scikit-learn")},
                "numpy": np.__version__,
            },
        }
        write_record(pool_dir / POOL_NAME, Record("pool", GENERATOR_VERSION, inputs, result))
        _remove_scaffold(pool_dir)
        say(f"pool: {result['rows']:,} pairs generated, {result['samples']:,} of them with a picture ({pool_dir})")


def write_shard(pool_dir: Path, pool_seed: int, shard: int, start: int, stop: int) -> None:
    """Generate the pairs from `start` to `stop` into a tar, and store what the metadata needs of them."""
    pairs = [generate_pair(pool_seed, index) for index in range(start, stop)]
    hashes = [hashlib.sha256(pair.image).hexdigest() for pair in pairs]
    write_tar(_tar_path(pool_dir, shard), _members(shard, pairs, hashes))
    columns: dict[str, pa.Array] = {
        "uid": pa.array([pair.uid for pair in pairs]),
        "url": pa.array([pair.url for pair in pairs]),
        "text": pa.array([pair.text for pair in pairs]),
        "original_width": pa.array([pair.original_width for pair in pairs], pa.int64()),
        "original_height": pa.array([pair.original_height for pair in pairs], pa.int64()),
        "sha256": pa.array(hashes),
        "is_dead_link": pa.array([pair.is_dead_link for pair in pairs]),
        "is_clean": pa.array([pair.is_clean for pair in pairs]),
        **{kind: pa.array([kind in pair.kinds for pair in pairs]) for kind in KINDS},
        "pixels": pa.array([_decode(pair.image) for pair in pairs], pa.binary()),
    }
    with atomic_path(_part_path(pool_dir, shard)) as temporary:
        feather.write_feather(pa.table(columns), temporary, compression="uncompressed")


def _members(shard: int, pairs: list[Pair], hashes: list[str]) -> Iterator[tuple[str, bytes]]:
    for place, (pair, sha256) in enumerate(zip(pairs, hashes, strict=True)):
        if pair.is_dead_link:
            continue
        key = f"{shard:08d}{place:04d}"
        about = {
            "uid": pair.uid,
            "caption": pair.text,
            "url": pair.url,
            "key": key,
            "status": "success",
            "error_message": None,
            "width": IMAGE_SIZE,
            "height": IMAGE_SIZE,
            "original_width": pair.original_width,
            "original_height": pair.original_height,
            "sha256": sha256,
        }
        yield f"{key}.jpg", pair.image
        yield f"{key}.json", json.dumps(about).encode()
        yield f"{key}.txt", pair.text.encode()


def _decode(image: bytes) -> bytes:
    with Image.open(io.BytesIO(image)) as picture:
        return picture.tobytes()


def _generate_files(pool_dir: Path, scale: Scale, pool_seed: int, workers: int | None) -> None:
    """Generate the tars and evaluation sets that are not there yet."""
    step = _samples_per_shard(scale)
    tasks: list[tuple[Callable[..., None], tuple[object, ...]]] = [
        (write_shard, (pool_dir, pool_seed, shard, start, min(start + step, scale.pool_size)))
        for shard, start in enumerate(range(0, scale.pool_size, step))
        if not (_tar_path(pool_dir, shard).exists() and _part_path(pool_dir, shard).exists())
    ]
    tasks += [(write_evaluation_set, (pool_dir / "eval", each)) for each in evaluation_sets(scale.suite)]
    if workers is None:
        workers = 0 if scale.pool_size <= 10_000 else (os.cpu_count() or 1)
    with tqdm(total=len(tasks), desc="generating", unit="file", disable=None) as progress:
        if workers == 0:
            for function, arguments in tasks:
                function(*arguments)
                progress.update()
            return
        # Spawned, so that no worker inherits the threads of torch.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context) as executor:
            for future in as_completed([executor.submit(function, *arguments) for function, arguments in tasks]):
                future.result()
                progress.update()


def _write_metadata(pool_dir: Path, scale: Scale, pool_seed: int, pairs: pa.Table) -> None:
    """Score all pairs and write the metadata shards that are not there yet, rows in an order of their own."""
    order = list(range(pairs.num_rows))
    Random(f"winnow/{GENERATOR_VERSION}/{pool_seed}/order").shuffle(order)
    pairs = pairs.take(pa.array(order))
    with atomic_path(pool_dir / "planted.parquet") as temporary:
        pq.write_table(pairs.select(["uid", "is_clean", *KINDS]), temporary)
    step = _rows_per_metadata_shard(scale)
    missing = {
        start: path
        for start in range(0, pairs.num_rows, step)
        if not (path := _metadata_path(pool_dir, scale, pool_seed, start)).exists()
    }
    if not missing:
        return
    pixels = np.frombuffer(b"".join(pairs["pixels"].to_pylist()), np.uint8)
    embeddings = encode_pairs(pixels.reshape(-1, IMAGE_SIZE, IMAGE_SIZE, 3), pairs["text"].to_pylist())
    for start, path in missing.items():
        rows = pairs.slice(start, step)
        arrays = {key: array[start : start + step] for key, array in embeddings.items()}
        with atomic_path(path.with_suffix(".npz")) as temporary, temporary.open("wb") as file:
            halves = {key: array.astype(np.float16) for key, array in arrays.items()}
            np.savez(file, **halves)  # type: ignore[arg-type]
        columns = {key: rows[key] for key in ("uid", "url", "text", "original_width", "original_height")}
        for model in REFERENCE_MODELS:
            scores = (arrays[f"{model}_img"] * arrays[f"{model}_txt"]).sum(axis=1)
            columns[f"clip_{model}_similarity_score"] = pa.array(scores, pa.float32())
        columns["face_bboxes"] = pa.array([[]] * rows.num_rows, pa.list_(pa.list_(pa.float64())))
        columns["sha256"] = rows["sha256"]
        with atomic_path(path) as temporary:
            pq.write_table(pa.table(columns), temporary)


def _refuse_foreign_folder(pool_dir: Path) -> None:
    """Raise ValueError where a folder holds something that is neither a pool of ours nor one half built."""
    if not pool_dir.exists():
        return
    names = {path.name for path in pool_dir.iterdir()} - {LOCK_NAME, BUILDING_NAME + TEMPORARY_SUFFIX}
    if names and not names & {POOL_NAME, BUILDING_NAME}:
        raise UserError(
            f"{pool_dir} is not empty and holds no embedded pool (found {min(names)}); choose a new or empty folder",
            code="folder-not-empty",
        )


def _file_sizes(pool_dir: Path) -> dict[str, Json]:
    """Return the size in bytes of every file that a pool consists of, by its path in the pool."""
    folders = ("metadata", "shards", "eval", "assets")
    paths = sorted(path for folder in folders for path in (pool_dir / folder).rglob("*") if path.is_file())
    return {path.relative_to(pool_dir).as_posix(): path.stat().st_size for path in paths}


def _refuse_changed_files(pool_dir: Path, sizes: dict[str, Json]) -> None:
    """Raise ValueError where files of a finished pool are gone or of another size."""
    now = _file_sizes(pool_dir)
    changed = [name for name, size in sizes.items() if now.get(name) != size]
    if changed:
        raise UserError(
            f"{pool_dir} was changed after it was generated: {changed[0]} is "
            f"{'of another size' if changed[0] in now else 'gone'} ({len(changed)} files in all); "
            "delete the folder to have it generated again",
            code="file-changed",
        )


def _remove_scaffold(pool_dir: Path) -> None:
    shutil.rmtree(pool_dir / PARTS_NAME, ignore_errors=True)
    (pool_dir / BUILDING_NAME).unlink(missing_ok=True)


def _tar_path(pool_dir: Path, shard: int) -> Path:
    return pool_dir / "shards" / f"{shard:08d}.tar"


def _part_path(pool_dir: Path, shard: int) -> Path:
    return pool_dir / PARTS_NAME / f"{shard:08d}.feather"


def _metadata_path(pool_dir: Path, scale: Scale, pool_seed: int, start: int) -> Path:
    name = hashlib.sha256(f"winnow/{GENERATOR_VERSION}/{scale.name}/{pool_seed}/metadata/{start}".encode()).hexdigest()
    return pool_dir / "metadata" / f"{name[:32]}.parquet"


def _samples_per_shard(scale: Scale) -> int:
    return 2000 if scale.pool_size > 10_000 else 1000


def _rows_per_metadata_shard(scale: Scale) -> int:
    return 10_000 if scale.pool_size > 10_000 else 800  # other boundaries than the tars', as in the real pool
