"""The embedded pool: pairs drawn one by one from (generator version, pool seed, index), written as CommonPool is.

`build_pool` draws tar shards in worker processes, scores all pairs with the two reference models and writes the
metadata, the planted labels, the evaluation sets and the index. Its bytes do not depend on the workers.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import lru_cache
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

from benchmark.embedded import noise
from benchmark.embedded.evalsets import evaluation_sets, write_evaluation_set
from benchmark.embedded.pictograms import PICTOGRAMS, VEHICLES
from benchmark.embedded.world import (
    DIGITS,
    IMAGE_SIZE,
    LETTERS,
    POOL_WORLD,
    SHAPE_NAMES,
    TEXTURES,
    draw_picture,
    draw_random_scene,
    plural,
    write_caption,
)
from benchmark.models.reference import (
    REFERENCE_MODELS,
    encode_images,
    encode_pairs,
    load_reference_model,
    reference_path,
)
from benchmark.pool.tars import write_tar
from benchmark.runtime.console import say
from benchmark.runtime.costs import cost
from benchmark.runtime.errors import UserError
from benchmark.runtime.files import TEMPORARY_SUFFIX, Json, atomic_path, remove_temporary, sha256_of, write_bytes
from benchmark.runtime.locks import LOCK_NAME, locked
from benchmark.runtime.records import Record, finished, write_record
from benchmark.scales import Scale
from benchmark.toolbox.embeddings import cluster_centres

GENERATOR_VERSION = 3  # raised when any pixel or caption changes

KIND_SHARES = {  # what a pair is, before anything else happens to it
    "clean": 0.225,
    "other_language": 0.285,
    "swapped": 0.055,
    "boilerplate": 0.05,
    "off_domain": 0.215,  # aligned, but of nothing that a task asks about
    "text_only": 0.045,  # a word, which the caption repeats: aligned, and no help
    "text_over": 0.025,  # a word over another picture, which the caption repeats: the picture contradicts it
    "partly_wrong": 0.01,
    "corrupt": 0.015,
    "empty": 0.075,  # nothing to learn from
}
OVERLAYS = (
    "small",  # the shorter side had fewer than 200 pixels
    "low_resolution",  # so few that little detail is left
    "extreme_aspect",
    "watermark",
    "blurred",
    "toxic",
    "duplicate",  # of a pair that stands earlier in the pool
    "exact_duplicate",  # with the same bytes
)
KINDS = (*(kind for kind in KIND_SHARES if kind != "clean"), *OVERLAYS)
HARMLESS_KINDS = frozenset({"small"})

FIRST_DUPLICATE = 1000  # the aligned pairs before it are what duplicates repeat, a few of them very often
ALIGNED_KINDS = ("clean", "off_domain", "text_only", "text_over", "empty")  # people copy what fits its caption
DUPLICATE_SHARE, NEAR_SHARE = 0.2, 0.6
DEAD_LINK_SHARE = 0.01
SMALL_SHARE, SMALL_SHARE_OF_CLEAN = 0.65, 0.55  # shorter side under 200 pixels; small pictures tend to be junk
EXTREME_ASPECT_SHARE = 0.07
JPEG_QUALITY = 90
NUM_TARGETS = 450
ROWS_PER_CLUSTER = 128  # DataComp: 100,000 centroids for 12.8 million samples
TARGET_WORLD = replace(POOL_WORLD, kinds={"pictogram": 0.6, "letter": 0.2, "digit": 0.2})

BUILDING_NAME = "building.json"  # says that a pool is being built here, and which
PARTS_NAME = "building"  # what is drawn and not yet in the metadata
POOL_NAME = "pool.json"


@dataclass(frozen=True)
class Pair:
    """One image-text pair of the embedded pool, with what was planted in it."""

    uid: str  # 32 hex characters
    image: bytes  # a 32-px JPEG
    text: str
    url: str
    original_width: int
    original_height: int
    kinds: frozenset[str]  # of KINDS
    is_dead_link: bool  # listed in the metadata, in no shard

    @property
    def is_clean(self) -> bool:
        """Tell whether the pair is useful: aligned, English, of a task's domain, in full detail, not a repeat."""
        return self.kinds <= HARMLESS_KINDS


@dataclass(frozen=True)
class _Drawing:
    """What a pair is drawn as, before it is encoded."""

    picture: Image.Image
    text: str
    width: int
    height: int
    kinds: frozenset[str]


def draw_pair(pool_seed: int, index: int) -> Pair:
    """Draw the pair at `index` of a pool: the same wherever and in whatever order it is drawn."""
    key = f"winnow/{GENERATOR_VERSION}/{pool_seed}/{index}"
    rng = Random(f"{key}/pair")
    is_duplicate = rng.random() < DUPLICATE_SHARE and index >= FIRST_DUPLICATE
    drawing = _draw_duplicate(pool_seed, rng) if is_duplicate else _draw_original(pool_seed, index)
    file = io.BytesIO()
    drawing.picture.save(file, "JPEG", quality=JPEG_QUALITY)
    uid = hashlib.sha256(key.encode()).hexdigest()[:32]
    return Pair(
        uid=uid,
        image=file.getvalue(),
        text=drawing.text,
        url=f"https://{_SITES[int(len(_SITES) * rng.random() ** 2)]}/{uid[:2]}/{uid[2:12]}.jpg",
        original_width=drawing.width,
        original_height=drawing.height,
        kinds=drawing.kinds,
        is_dead_link=rng.random() < DEAD_LINK_SHARE,
    )


def build_pool(pool_dir: Path, scale: Scale, pool_seed: int = 0, workers: int | None = None) -> None:
    """Build an embedded scale's pool in `pool_dir`; a finished one is skipped, a killed build goes on.

    `workers` counts drawing processes (0: draw in this one; None: chosen by the pool's size); no byte depends on it.
    Raises ValueError where the folder holds a pool made otherwise, or something that is no pool of ours.
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
            say(f"pool: as before ({pool_dir})")
            return
        if not finished(pool_dir / BUILDING_NAME, "pool building", GENERATOR_VERSION, inputs):
            write_record(pool_dir / BUILDING_NAME, Record("pool building", GENERATOR_VERSION, inputs, {}))
        remove_temporary(pool_dir)
        with cost(pool_dir, "pool build", scale=scale.name, pool_seed=pool_seed):
            _draw_everything(pool_dir, scale, pool_seed, workers)
            drawn = pa.concat_tables([feather.read_table(path) for path in sorted((pool_dir / PARTS_NAME).glob("*"))])
            _write_metadata(pool_dir, scale, pool_seed, drawn)
            _write_assets(pool_dir, drawn)
            build_index(pool_dir)
        result: dict[str, Json] = {
            "rows": drawn.num_rows,
            "samples": drawn.num_rows - pc.sum(drawn["is_dead_link"]).as_py(),
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
        say(f"pool: {result['rows']:,} pairs drawn, {result['samples']:,} of them with a picture ({pool_dir})")


def write_shard(pool_dir: Path, pool_seed: int, shard: int, start: int, stop: int) -> None:
    """Draw the pairs from `start` to `stop` into a tar, and keep what the metadata needs of them."""
    pairs = [draw_pair(pool_seed, index) for index in range(start, stop)]
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


@lru_cache
def _sources(pool_seed: int) -> list[int]:
    """Return the indices of the pairs that are repeated."""
    return [i for i in range(FIRST_DUPLICATE) if _draw_kind(_random_of_original(pool_seed, i)) in ALIGNED_KINDS]


@lru_cache(maxsize=FIRST_DUPLICATE)
def _draw_source(pool_seed: int, index: int) -> _Drawing:
    return _draw_original(pool_seed, index)


def _draw_original(pool_seed: int, index: int) -> _Drawing:
    """Draw a pair that repeats no other."""
    rng = _random_of_original(pool_seed, index)
    kind = _draw_kind(rng)
    kinds = set() if kind == "clean" else {kind}
    picture, text = _draw_pair_of(kind, rng)
    if rng.random() < 0.07:
        picture = noise.add_watermark(picture, rng)
        kinds.add("watermark")
    if rng.random() < 0.04:
        picture = noise.blur(picture, rng)
        kinds.add("blurred")
    if rng.random() < 0.015:
        text = noise.add_toxic_word(text, rng)
        kinds.add("toxic")
    aspect = math.exp(min(abs(rng.gauss(0, 0.35)), 1.0))
    is_wide = rng.random() < 0.6
    if rng.random() < EXTREME_ASPECT_SHARE:
        aspect = rng.uniform(3.2, 6)
        picture = noise.squash(picture, aspect, is_wide, rng)
        kinds.add("extreme_aspect")
    is_small = rng.random() < (SMALL_SHARE_OF_CLEAN if kind == "clean" else SMALL_SHARE)
    shorter = _log_uniform(rng, 80, 199) if is_small else _log_uniform(rng, 200, 1600)
    picture, more_kinds = _fit_detail(picture, shorter)
    longer = round(shorter * aspect)
    width, height = (longer, shorter) if is_wide else (shorter, longer)
    return _Drawing(picture, text, width, height, frozenset(kinds | more_kinds))


def _random_of_original(pool_seed: int, index: int) -> Random:
    return Random(f"winnow/{GENERATOR_VERSION}/{pool_seed}/{index}/original")


def _draw_kind(rng: Random) -> str:
    return rng.choices(list(KIND_SHARES), list(KIND_SHARES.values()))[0]


def _draw_pair_of(kind: str, rng: Random) -> tuple[Image.Image, str]:
    if kind == "off_domain":
        return noise.draw_off_domain(rng)
    if kind == "text_only":
        return noise.draw_word(rng)
    if kind == "text_over":
        return noise.draw_word_over(rng)
    if kind == "empty":
        return noise.draw_nothing(rng)
    scene = draw_random_scene(rng)
    picture = draw_picture(scene, rng)
    match kind:
        case "clean":
            return picture, write_caption(scene, rng)
        case "other_language":
            shown = scene if rng.random() < 0.6 else draw_random_scene(rng)
            return picture, noise.write_foreign_caption(shown, rng)
        case "swapped":
            return picture, noise.write_swapped_caption(scene, rng)
        case "boilerplate":
            return picture, noise.write_boilerplate(rng)
        case "partly_wrong":
            return picture, noise.write_partly_wrong_caption(scene, rng)
    assert kind == "corrupt", kind
    text = write_caption(scene, rng)
    return (noise.draw_corrupt(rng), text) if rng.random() < 0.5 else (picture, noise.garble(text, rng))


def _draw_duplicate(pool_seed: int, rng: Random) -> _Drawing:
    """Draw a repeat of one of the pool's first pairs, some of which are repeated much more often than others."""
    sources = _sources(pool_seed)
    source = _draw_source(pool_seed, sources[int(len(sources) * rng.random() ** 2)])
    if rng.random() >= NEAR_SHARE:
        return replace(source, kinds=source.kinds | {"duplicate", "exact_duplicate"})
    shrink = rng.uniform(0.4, 1.0)
    width, height = max(48, round(source.width * shrink)), max(48, round(source.height * shrink))
    picture, more_kinds = _fit_detail(noise.change_slightly(source.picture, rng), min(width, height))
    return _Drawing(picture, source.text, width, height, source.kinds | more_kinds | {"duplicate"})


def _fit_detail(picture: Image.Image, shorter: int) -> tuple[Image.Image, set[str]]:
    """Return a picture with the detail that its shorter side (in pixels) leaves, and the kinds that this makes it."""
    if shorter >= 200:
        return picture, set()
    resolution = max(6, round(IMAGE_SIZE * shorter / 200))
    kinds = {"small"} if resolution >= 20 else {"small", "low_resolution"}
    return noise.lose_detail(picture, resolution), kinds


def _log_uniform(rng: Random, low: float, high: float) -> int:
    return round(math.exp(rng.uniform(math.log(low), math.log(high))))


def _draw_everything(pool_dir: Path, scale: Scale, pool_seed: int, workers: int | None) -> None:
    """Draw the tars and evaluation sets that are not there yet."""
    step = _samples_per_shard(scale)
    tasks: list[tuple[Callable[..., None], tuple[object, ...]]] = [
        (write_shard, (pool_dir, pool_seed, shard, start, min(start + step, scale.pool_size)))
        for shard, start in enumerate(range(0, scale.pool_size, step))
        if not (_tar_path(pool_dir, shard).exists() and _part_path(pool_dir, shard).exists())
    ]
    tasks += [(write_evaluation_set, (pool_dir / "eval", each)) for each in evaluation_sets(scale.suite)]
    if workers is None:
        workers = 0 if scale.pool_size <= 10_000 else (os.cpu_count() or 1)
    with tqdm(total=len(tasks), desc="drawing", unit="file", disable=None) as progress:
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


def _write_metadata(pool_dir: Path, scale: Scale, pool_seed: int, drawn: pa.Table) -> None:
    """Score all pairs and write the metadata shards that are not there yet, rows in an order of their own."""
    order = list(range(drawn.num_rows))
    Random(f"winnow/{GENERATOR_VERSION}/{pool_seed}/order").shuffle(order)
    drawn = drawn.take(pa.array(order))
    with atomic_path(pool_dir / "planted.parquet") as temporary:
        pq.write_table(drawn.select(["uid", "is_clean", *KINDS]), temporary)
    step = _rows_per_metadata_shard(scale)
    missing = {
        start: path
        for start in range(0, drawn.num_rows, step)
        if not (path := _metadata_path(pool_dir, scale, pool_seed, start)).exists()
    }
    if not missing:
        return
    pixels = np.frombuffer(b"".join(drawn["pixels"].to_pylist()), np.uint8)
    embeddings = encode_pairs(pixels.reshape(-1, IMAGE_SIZE, IMAGE_SIZE, 3), drawn["text"].to_pylist())
    for start, path in missing.items():
        rows = drawn.slice(start, step)
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


def _write_assets(pool_dir: Path, drawn: pa.Table) -> None:
    """Write what image-based filtering and NormSim compare with: cluster centres of the pool's images, and targets.

    Targets stand in for ImageNet's training images: pictures of tasks' classes, drawn under keys of their own.
    """
    pixels = np.stack([_draw_target(index) for index in range(NUM_TARGETS)])
    features = [np.load(path.with_suffix(".npz")) for path in sorted((pool_dir / "metadata").glob("*.parquet"))]
    num_clusters = max(1, drawn.num_rows // ROWS_PER_CLUSTER)
    for name in REFERENCE_MODELS:
        images = np.concatenate([part[f"{name}_img"] for part in features]).astype(np.float32)
        for what, array in (
            ("targets", encode_images(load_reference_model(name), pixels)),
            ("centroids", cluster_centres(images, num_clusters, seed=0)),
        ):
            path = pool_dir / "assets" / f"image_{what}_{name}.npy"
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                np.save(file, array)
    write_bytes(pool_dir / "assets" / "metaclip_entries.txt", "".join(f"{name}\n" for name in _entries()).encode())


def _entries() -> list[str]:
    """Return what MetaCLIP balances over here: the names of the tasks' classes, which filters may know."""
    plurals = [plural(name) for name in SHAPE_NAMES]
    letters = [f"letter {letter}" for letter in LETTERS]
    names = {*SHAPE_NAMES, *plurals, *letters, *DIGITS, *TEXTURES, *PICTOGRAMS, *VEHICLES}
    return sorted(names)


def _draw_target(index: int) -> np.ndarray:
    rng = Random(f"winnow/{GENERATOR_VERSION}/target/{index}")
    return np.asarray(draw_picture(draw_random_scene(rng, TARGET_WORLD), rng))


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
            f"{pool_dir} was changed after it was drawn: {changed[0]} is "
            f"{'of another size' if changed[0] in now else 'gone'} ({len(changed)} files in all); "
            "delete the folder to have it drawn again",
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


_SITES = ("pictures.example", "shop.example", "blog.example", "news.example", "stickers.example", "school.example")
