"""Density-based pruning (DBP, Abbas et al. 2024, arXiv 2401.04578): more pairs from the more complex clusters."""

import numpy as np

from benchmark import PoolView, Subset, register_selector
from benchmark.toolbox.clusters import embedded_rows, fit_centroids, nearest_centroids
from benchmark.toolbox.embeddings import row_blocks

NEIGHBOURS = 20  # nearest centroids that a cluster's distance to the others is the mean of


@register_selector(features=["{arch}_img"])
def density_pruning(
    pool: PoolView,
    *,
    arch: str = "l14",
    keep: float = 0.4,
    clusters: int = 100,
    temperature: float = 0.1,
    min_balance: float = 0.5,
    prefer: str = "hard",
    seed: int = 0,
) -> Subset:
    """Keep `keep` of the pool, by the complexity of its clusters, and of each cluster the farthest from its centroid.

    Image embeddings are normalised, clustered by k-means (the seed starts it) and belong to the centroid of highest
    cosine. A cluster's complexity C is the mean distance (1 - cosine) of its centroid to the 20 nearest others, times
    the mean distance of its images to it. The numbers kept of the clusters, N in all, are those nearest (least squares)
    to N * softmax(C / temperature) of which each is at most its cluster's size and at least `min_balance` of an equal
    share, or all but one image where that is less. Rounded by largest remainder they are N exactly (the original rounds
    each and comes near N). Images go by their distance from the centroid, the farthest first (prefer: hard) or last
    (easy), ties by the smaller uid.

    The paper clusters DINOv2's embeddings, into 100 for DataComp's medium scale and 500 for LAION, after semantic
    de-duplication, of which it keeps 30 to 60 %: run `semdedup` first and filter `within` its subset. (The original's
    code has a temperature of 0.5.) An image with a NaN or zero embedding is never kept.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"filters.density_pruning.keep={keep} is outside (0, 1]; 0.4 keeps 40 % of the pool")
    if temperature <= 0:
        raise ValueError(f"filters.density_pruning.temperature={temperature} must be above 0")
    if not 0 <= min_balance <= 1:
        raise ValueError(f"filters.density_pruning.min_balance={min_balance} is outside [0, 1]; 1 shares out evenly")
    if prefer not in ("hard", "easy"):
        raise ValueError(f"filters.density_pruning.prefer={prefer!r} must be hard or easy")
    images = pool.features[f"{arch}_img"]
    rows, _ = embedded_rows(pool.uids, images)
    if not 1 <= clusters <= len(rows):
        raise ValueError(f"filters.density_pruning.clusters={clusters} must be from 1 to {len(rows)}, the images")
    wanted = min(round(keep * len(pool.uids)), len(rows))
    centroids = fit_centroids(images, rows, clusters, seed)
    labels, cosines = nearest_centroids(images, rows, centroids)
    sizes = np.bincount(labels, minlength=clusters)
    scaled = _complexity(centroids, labels, cosines) / temperature
    shares = np.exp(scaled - scaled.max())
    least = np.clip(np.minimum(int(wanted / clusters * min_balance), sizes - 1), 0, None)
    counts = round_to_sum(share_out(wanted * shares / shares.sum(), least, sizes, wanted), sizes, wanted)
    # Stable, so by uid where they tie.
    order = np.lexsort((cosines if prefer == "hard" else -cosines, labels))
    place = np.arange(len(rows)) - (np.cumsum(sizes) - sizes)[labels[order]]  # within its cluster
    return Subset.of(pool.uids[rows[order[place < counts[labels[order]]]]])


def _complexity(centroids: np.ndarray, labels: np.ndarray, cosines: np.ndarray) -> np.ndarray:
    """Return each cluster's complexity; one without images has the mean of the others': (clusters,) float64."""
    sizes = np.bincount(labels, minlength=len(centroids))
    num_neighbours = min(NEIGHBOURS, len(centroids) - 1)
    between = np.zeros(len(centroids))
    for places in row_blocks(np.arange(len(centroids))) if num_neighbours else ():
        products = centroids[places] @ centroids.T  # (block, clusters)
        products[np.arange(len(places)), places] = -np.inf
        nearest = np.partition(products, -num_neighbours, axis=1)[:, -num_neighbours:]
        between[places] = (1 - nearest.astype(np.float64)).mean(axis=1)
    within = np.bincount(labels, weights=1 - cosines.astype(np.float64), minlength=len(centroids))
    complexity = between * within / np.maximum(sizes, 1)
    complexity[sizes == 0] = complexity[sizes > 0].mean()
    return complexity


def share_out(target: np.ndarray, lower: np.ndarray, upper: np.ndarray, total: int) -> np.ndarray:
    """Return the x nearest to `target` with lower <= x <= upper and the sum `total`, which must be possible: (n,).

    x is clip(target - shift, lower, upper). Its sum falls with the shift, in straight lines between the places where
    an entry meets a bound.
    """
    bends = np.sort(np.concatenate([target - upper, target - lower]))
    low, high = 0, len(bends) - 1  # all are at their upper bounds at the first, at their lower ones at the last
    while high - low > 1:
        middle = (low + high) // 2
        is_enough = np.clip(target - bends[middle], lower, upper).sum() >= total
        low, high = (middle, high) if is_enough else (low, middle)
    most, least = (np.clip(target - bends[at], lower, upper).sum() for at in (low, high))
    part = 0.0 if most == least else (most - total) / (most - least)
    return np.clip(target - (bends[low] + part * (bends[high] - bends[low])), lower, upper)


def round_to_sum(shares: np.ndarray, upper: np.ndarray, total: int) -> np.ndarray:
    """Round shares down, and those of the largest remainders up until the sum is `total`: (n,) int64."""
    counts = np.floor(shares).astype(np.int64)
    remainders = np.where(counts < upper, shares - counts, -1)
    counts[np.argsort(-remainders, kind="stable")[: total - counts.sum()]] += 1
    return counts
