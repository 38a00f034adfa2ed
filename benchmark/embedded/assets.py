"""Assets of an embedded pool: what image-based filtering, NormSim and MetaCLIP compare with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa

from benchmark.embedded.captions import plural
from benchmark.embedded.pairs import GENERATOR_VERSION
from benchmark.embedded.pictograms import PICTOGRAMS, VEHICLES
from benchmark.embedded.pictures import draw_picture
from benchmark.embedded.shapes import SHAPE_NAMES
from benchmark.embedded.world import DIGITS, LETTERS, POOL_WORLD, TEXTURES, draw_random_scene
from benchmark.models.reference import REFERENCE_MODELS, encode_images, load_reference_model
from benchmark.runtime.files import atomic_path, write_bytes
from benchmark.toolbox.embeddings import cluster_centres

NUM_TARGETS = 450
ROWS_PER_CLUSTER = 128  # DataComp: 100,000 centroids for 12.8 million samples
TARGET_WORLD = replace(POOL_WORLD, kinds={"pictogram": 0.6, "letter": 0.2, "digit": 0.2})


def write_assets(pool_dir: Path, pairs: pa.Table) -> None:
    """Write what image-based filtering and NormSim compare with: cluster centres of the pool's images, and targets.

    Targets stand in for ImageNet's training images: pictures of tasks' classes, generated under keys of their own.
    """
    pixels = np.stack([_make_target(index) for index in range(NUM_TARGETS)])
    features = [np.load(path.with_suffix(".npz")) for path in sorted((pool_dir / "metadata").glob("*.parquet"))]
    num_clusters = max(1, pairs.num_rows // ROWS_PER_CLUSTER)
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


def _make_target(index: int) -> np.ndarray:
    rng = Random(f"winnow/{GENERATOR_VERSION}/target/{index}")
    return np.asarray(draw_picture(draw_random_scene(rng, TARGET_WORLD), rng))
