"""Embeddings of a pool's features: float16 on disk, normalised and compared in float32, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmark.runtime.errors import UserError
from benchmark.toolbox.tensors import open_array

BLOCK_ROWS = 4096
FLOAT32_MARGIN = 1e-5  # of the product of two norms; rounding changes an inner product by far less
UNSURE_ROWS = 64  # that are compared with all centres at once
KMEANS_ITERATIONS = 20


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Normalise rows (n, dimension) in float32; NaN and zero rows become NaN."""
    vectors = vectors.astype(np.float32)
    with np.errstate(invalid="ignore"):
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def has_embedding(vectors: np.ndarray) -> np.ndarray:
    """Tell which rows are neither NaN nor zero: (n,) bool."""
    return np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)


def row_blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the rows, at most BLOCK_ROWS at once."""
    for start in range(0, len(rows), BLOCK_ROWS):
        yield rows[start : start + BLOCK_ROWS]


def row_cosines(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Return the inner product of each row with its partner: (n,) float32.

    Row by row, not by a matrix product, so that equal rows tie to the last bit.
    """
    return np.einsum("ij,ij->i", images, texts)


def pair_similarities(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Return every pair's cosine, NaN where an embedding is NaN or zero: (n,) float32."""
    result = np.empty(len(images), dtype=np.float32)
    for start in range(0, len(images), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        result[rows] = row_cosines(unit_rows(images[rows]), unit_rows(texts[rows]))
    return result


def embedding_blocks(path: str | Path, dimension: int, *, option: str) -> Iterator[np.ndarray]:
    """Yield the rows of a file of embeddings (.npy or .pt), mapped: (at most BLOCK_ROWS, dimension) float32 at once.

    Raises ValueError naming `option`, the option that may give the path, where it holds something else, or a row that
    is NaN or zero.
    """
    try:
        embeddings = open_array(Path(path))
    except ValueError as error:
        raise UserError(f"{option}: {error}", code="asset-invalid") from error
    if embeddings.dtype.kind != "f" or embeddings.ndim != 2 or not len(embeddings) or embeddings.shape[1] != dimension:
        raise UserError(
            f"{option}: {path} has shape {embeddings.shape} of {embeddings.dtype}, not (rows, {dimension}) of floats",
            code="asset-invalid",
        )
    for number, block in enumerate(row_blocks(embeddings)):
        rows = np.asarray(block, dtype=np.float32)
        is_embedding = has_embedding(rows)
        if not is_embedding.all():
            row = number * BLOCK_ROWS + int(is_embedding.argmin())
            raise UserError(
                f"{option}: row {row} of {path} is NaN or zero; leave such images out", code="asset-invalid"
            )
        yield rows


def nearest_rows(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Return for each vector which of the centres (float32) has the highest inner product with it: (n,) int64.

    Ties go to the first. Computed in float32; where that leaves several centres too close to tell, in float64, so that
    a vector's answer does not depend on the vectors beside it.
    """
    nearest = np.zeros(len(vectors), dtype=np.int64)
    longest = np.sqrt(max(row_cosines(block, block).max() for block in row_blocks(centres)))
    for start in range(0, len(vectors), BLOCK_ROWS):
        block = vectors[start : start + BLOCK_ROWS].astype(np.float32)
        at = np.arange(len(block))
        best, second = np.full((2, len(block)), -np.inf, dtype=np.float32)  # the two highest products
        found = nearest[start : start + BLOCK_ROWS]
        for number, others in enumerate(row_blocks(centres)):
            products = block @ others.T  # (block, others)
            winner = products.argmax(axis=1)
            highest = products[at, winner]
            products[at, winner] = -np.inf
            second = np.maximum(np.maximum(second, products.max(axis=1)), np.minimum(best, highest))
            found[highest > best] = winner[highest > best] + number * BLOCK_ROWS
            best = np.maximum(best, highest)
        norms = np.linalg.norm(block, axis=1)
        lowest = best - FLOAT32_MARGIN * longest * norms
        unsure = np.flatnonzero((second >= lowest) & (norms > 0))  # zeros tie with all, and have the first
        for first in range(0, len(unsure), UNSURE_ROWS):
            rows = unsure[first : first + UNSURE_ROWS]
            products = np.concatenate([block[rows] @ others.T for others in row_blocks(centres)], axis=1)
            for row, is_close in zip(rows, products >= lowest[rows, np.newaxis], strict=True):
                close = np.flatnonzero(is_close)
                # Row by row, so that equal centres tie to the last bit.
                exact = np.einsum("ij,j->i", centres[close].astype(np.float64), block[row].astype(np.float64))
                found[row] = close[exact.argmax()]
    return nearest


def cluster_centres(embeddings: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    """Return the centres of k-means as DataComp's image-based filter has them: (num_clusters, dimension) float32.

    L2 distances, 20 iterations over all rows, started from rows drawn by the seed; on one thread, as sums over several
    come out differently from run to run. It depends on the order of the rows, so sort them by uid first.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    kmeans = KMeans(num_clusters, init="random", n_init=1, max_iter=KMEANS_ITERATIONS, tol=0, random_state=seed)
    with threadpool_limits(1):
        return kmeans.fit(embeddings.astype(np.float32)).cluster_centers_.astype(np.float32)
