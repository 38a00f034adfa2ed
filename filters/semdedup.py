"""SemDeDup (Abbas et al. 2023, arXiv 2303.09540): drop semantic duplicates within clusters of images."""

import numpy as np
from tqdm import tqdm

from benchmark import PoolView, Subset, register_selector
from benchmark.toolbox.clusters import embedded_rows, fit_centroids, members_of, nearest_centroids
from benchmark.toolbox.embeddings import unit_rows

BLOCK_ROWS = 1024
ROWS_PER_CLUSTER = 1000


@register_selector(features=["{arch}_img"])
def semdedup(
    pool: PoolView,
    *,
    arch: str = "l14",
    clusters: int | None = None,
    epsilon: float = 0.05,
    keep: str = "hard",
    seed: int = 0,
) -> Subset:
    """Drop an image whose cosine similarity to one that comes before it in its cluster exceeds 1 - epsilon.

    Image embeddings are normalised and clustered by k-means, and belong to the centroid of highest cosine. Within a
    cluster those farthest from its mean come first and so are kept (keep: hard), or those nearest (easy); ties go to
    the smaller uid. As in the original, what is itself dropped also drops what comes after it. `clusters` is by
    default a thousandth of the images, at least 1 (the paper: 50,000 for LAION-440M); the original's k-means takes all
    images at every step, this one (scikit-learn's MiniBatchKMeans, started by the seed) 4,096 of at most 262,144, or 40
    a cluster. Memory holds those, and one cluster at a time.

    An image with a NaN or zero embedding is a duplicate of nothing and is kept.
    """
    if keep not in ("hard", "easy"):
        raise ValueError(f"filters.semdedup.keep={keep!r} must be hard or easy")
    if not 0 <= epsilon <= 2:
        raise ValueError(f"filters.semdedup.epsilon={epsilon} is outside [0, 2]; 0.05 drops cosines above 0.95")
    images = pool.features[f"{arch}_img"]
    rows, _ = embedded_rows(pool.uids, images)
    is_kept = np.ones(len(pool.uids), dtype=bool)
    if len(rows):
        num_clusters = max(1, round(len(rows) / ROWS_PER_CLUSTER)) if clusters is None else clusters
        if not 1 <= num_clusters <= len(rows):
            raise ValueError(f"filters.semdedup.clusters={clusters} must be from 1 to {len(rows)}, the images")
        labels, _ = nearest_centroids(images, rows, fit_centroids(images, rows, num_clusters, seed))
        parts = members_of(labels, num_clusters)
        for places in tqdm(parts, desc="semdedup", unit="cluster", disable=None, leave=False):
            members = unit_rows(images[rows[places]])
            closeness = _closeness(members)
            order = np.argsort(closeness if keep == "hard" else -closeness, kind="stable")
            is_kept[rows[places[order[_highest_before(members[order]) > 1 - epsilon]]]] = False
    return Subset.of(pool.uids[is_kept])


def _closeness(images: np.ndarray) -> np.ndarray:
    """Return each row's similarity to the rows' mean, up to a common factor: (rows,) float32."""
    if len(images) == 0:
        return np.empty(0, dtype=np.float32)
    mean = images.mean(axis=0, dtype=np.float64).astype(np.float32)
    # Row by row, not by a matrix product: equal images must tie to the last bit.
    return np.einsum("ij,j->i", images, mean)


def _highest_before(images: np.ndarray) -> np.ndarray:
    """Return each row's highest cosine to an earlier row, -inf for the first: (rows,) float32."""
    highest = np.full(len(images), -np.inf, dtype=np.float32)
    for start in range(0, len(images), BLOCK_ROWS):
        rows = np.arange(start, min(start + BLOCK_ROWS, len(images)))
        for left in range(0, start + 1, BLOCK_ROWS):
            earlier = np.arange(left, min(left + BLOCK_ROWS, len(images)))
            cosines = images[rows] @ images[earlier].T  # (block, block)
            if left == start:
                cosines[earlier[None, :] >= rows[:, None]] = -np.inf
            highest[rows] = np.maximum(highest[rows], cosines.max(axis=1))
    return highest
