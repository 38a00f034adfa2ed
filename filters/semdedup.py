"""SemDeDup (Abbas et al. 2023, arXiv 2303.09540): drop semantic duplicates within clusters of images."""

import numpy as np
from tqdm import tqdm

from benchmark import register_selector
from benchmark.embeddings import unit_rows
from benchmark.filtering import PoolView
from benchmark.subset import Subset

BLOCK_ROWS = 1024
ROWS_PER_CLUSTER = 1000
MAX_PASSES = 100  # over the pool, as the original; mini-batch k-means mostly stops long before


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
    images at every step, this one (scikit-learn's MiniBatchKMeans, started by the seed) 4,096.

    An image with a NaN or zero embedding is a duplicate of nothing and is kept.
    """
    if keep not in ("hard", "easy"):
        raise ValueError(f"filters.semdedup.keep={keep!r} must be hard or easy")
    if not 0 <= epsilon <= 2:
        raise ValueError(f"filters.semdedup.epsilon={epsilon} is outside [0, 2]; 0.05 drops cosines above 0.95")
    features = pool.features[f"{arch}_img"]
    with np.errstate(invalid="ignore"):
        content = features.sum(axis=1, dtype=np.float32)
    # By uid; rows that share one stand by what they hold, so that the order of files decides nothing.
    order = np.lexsort((content, pool.uids["f1"], pool.uids["f0"]))
    images = unit_rows(features[order])
    has_embedding = np.isfinite(images).all(axis=1)
    rows, images = order[has_embedding], images[has_embedding]  # images: (rows, dimension)
    is_kept = np.ones(len(pool.uids), dtype=bool)
    if len(images):
        num_clusters = max(1, round(len(images) / ROWS_PER_CLUSTER)) if clusters is None else clusters
        if not 1 <= num_clusters <= len(images):
            raise ValueError(f"filters.semdedup.clusters={clusters} must be from 1 to {len(images)}, the images")
        labels = _cluster(images, num_clusters, seed)
        ends = np.cumsum(np.bincount(labels, minlength=num_clusters))
        parts = np.split(np.argsort(labels, kind="stable"), ends[:-1])  # within a cluster by uid
        for members in tqdm(parts, desc="semdedup", unit="cluster", disable=None, leave=False):
            closeness = _closeness(images[members])
            members = members[np.argsort(closeness if keep == "hard" else -closeness, kind="stable")]
            is_kept[rows[members[_highest_before(images[members]) > 1 - epsilon]]] = False
    return Subset.of(pool.uids[is_kept])


def _cluster(images: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    """Return each image's cluster: (rows,)."""
    from sklearn.cluster import MiniBatchKMeans

    kmeans = MiniBatchKMeans(num_clusters, batch_size=4096, max_iter=MAX_PASSES, n_init=1, random_state=seed)
    centroids = kmeans.fit(images).cluster_centers_.astype(np.float32)  # (clusters, dimension)
    centroids /= np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    starts = range(0, len(images), BLOCK_ROWS)
    return np.concatenate([(images[start : start + BLOCK_ROWS] @ centroids.T).argmax(axis=1) for start in starts])


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
