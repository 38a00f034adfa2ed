"""Embeddings of a pool's features: float16 on disk, normalised and compared in float32, block by block."""

from __future__ import annotations

import numpy as np

BLOCK_ROWS = 4096


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Normalise rows (n, dimension) in float32; NaN and zero rows become NaN."""
    vectors = vectors.astype(np.float32)
    with np.errstate(invalid="ignore"):
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


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
