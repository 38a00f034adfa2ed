"""Clusters of a pool's embeddings by spherical k-means, read block by block: a pool may be larger than memory."""

from __future__ import annotations

import numpy as np

from benchmark.toolbox.embeddings import BLOCK_ROWS, nearest_rows, row_blocks, row_cosines, unit_rows

MAX_FITTED = 2**18  # rows that k-means sees, or FITTED_PER_CLUSTER a cluster where those are more
FITTED_PER_CLUSTER = 40
MAX_PASSES = 100  # over those rows; mini-batch k-means mostly stops long before


def embedded_rows(uids: np.ndarray, embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows with an embedding, and those whose embedding is NaN or zero, both in the order of their uids.

    Rows that share a uid stand by what they hold, so that the order of files decides nothing.
    """
    embeddings = np.asarray(embeddings)  # of a map, the plain array
    content = np.empty(len(uids), dtype=np.float32)
    is_embedded = np.empty(len(uids), dtype=bool)
    for start in range(0, len(uids), BLOCK_ROWS):
        block = embeddings[start : start + BLOCK_ROWS].astype(np.float32)
        with np.errstate(invalid="ignore"):
            content[start : start + BLOCK_ROWS] = block.sum(axis=1)
        is_embedded[start : start + BLOCK_ROWS] = np.isfinite(unit_rows(block)).all(axis=1)
    order = np.lexsort((content, uids["f1"], uids["f0"]))
    return order[is_embedded[order]], order[~is_embedded[order]]


def fit_centroids(embeddings: np.ndarray, rows: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    """Return the centroids of the rows' normalised embeddings, of length 1: (num_clusters, dimension) float32.

    scikit-learn's MiniBatchKMeans, 4,096 rows at every step, started by the seed. It sees all rows, or of many a sample
    drawn by the seed. It depends on the order of the rows, so sort them by uid first.
    """
    from sklearn.cluster import MiniBatchKMeans

    most = max(MAX_FITTED, FITTED_PER_CLUSTER * num_clusters)
    if len(rows) > most:
        rows = rows[np.sort(np.random.default_rng(seed).choice(len(rows), most, replace=False))]
    embeddings = np.asarray(embeddings)
    images = np.empty((len(rows), embeddings.shape[1]), dtype=np.float32)
    for start in range(0, len(rows), BLOCK_ROWS):
        images[start : start + BLOCK_ROWS] = unit_rows(embeddings[rows[start : start + BLOCK_ROWS]])
    kmeans = MiniBatchKMeans(num_clusters, batch_size=4096, max_iter=MAX_PASSES, n_init=1, random_state=seed)
    centroids = kmeans.fit(images).cluster_centers_.astype(np.float32)
    return centroids / np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def nearest_centroids(embeddings: np.ndarray, rows: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each of `rows` the centroid of highest cosine, and that cosine: (len(rows),) int64 and float32."""
    embeddings = np.asarray(embeddings)
    labels = np.empty(len(rows), dtype=np.int64)
    cosines = np.empty(len(rows), dtype=np.float32)
    for places in row_blocks(np.argsort(rows)):  # in the order of the file
        block = embeddings[rows[places]]
        labels[places] = nearest_rows(block, centroids)
        cosines[places] = row_cosines(unit_rows(block), centroids[labels[places]])
    return labels, cosines


def members_of(labels: np.ndarray, num_clusters: int) -> list[np.ndarray]:
    """Return the places of each cluster's members in `labels`, rising."""
    ends = np.cumsum(np.bincount(labels, minlength=num_clusters))
    return np.split(np.argsort(labels, kind="stable"), ends[:-1])
