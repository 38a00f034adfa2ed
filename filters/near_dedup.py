"""Near-duplicate removal by image embeddings (cf. Webster et al. 2023, arXiv 2303.12733, on LAION-2B's duplicates)."""

import numpy as np
from tqdm import tqdm

from benchmark import PoolView, Subset, register_selector
from benchmark.toolbox.clusters import embedded_rows
from benchmark.toolbox.embeddings import unit_rows

BLOCK_ROWS = 1024
MAX_WAITING_PAIRS = 2_000_000


@register_selector(features=["{arch}_img"])
def near_dedup(pool: PoolView, *, arch: str = "l14", min_similarity: float = 0.98, seed: int = 0) -> Subset:
    """Keep of all pairs with nearly the same image one drawn by the seed (0: the smallest uid).

    Two images are nearly the same where their embeddings' cosine similarity, in float32, is at least `min_similarity`,
    or where a chain of such images joins them. Every image is compared with every other, so the time grows with the
    square of the pool; `semdedup` compares within clusters alone.

    An image with a NaN or zero embedding is a duplicate of nothing and is kept.
    """
    if not 0 < min_similarity <= 1:
        raise ValueError(f"filters.near_dedup.min_similarity={min_similarity} is outside (0, 1]; it is a cosine")
    images = pool.features[f"{arch}_img"]
    rows, without_embedding = embedded_rows(pool.uids, images)
    if seed:
        rows = np.random.default_rng(seed).permutation(rows)
    _, first_of_group = np.unique(_group(images, rows, min_similarity), return_index=True)
    return Subset.of(pool.uids[np.concatenate([without_embedding, rows[first_of_group]])])


def _group(images: np.ndarray, rows: np.ndarray, min_similarity: float) -> np.ndarray:
    """Return the connected component of each of `rows`, a number from 0: (len(rows),)."""
    groups = np.arange(len(rows))
    waiting: list[np.ndarray] = []  # pairs of groups to be joined, each (2, pairs)
    num_waiting = 0
    starts = range(0, len(rows), BLOCK_ROWS)
    for top in tqdm(starts, desc="near_dedup", unit="block", disable=None, leave=False):
        block = unit_rows(images[rows[top : top + BLOCK_ROWS]])
        for left in range(top, len(rows), BLOCK_ROWS):
            cosines = block @ unit_rows(images[rows[left : left + BLOCK_ROWS]]).T  # (block, block)
            one, other = np.nonzero(cosines >= np.float32(min_similarity))
            pairs = np.stack([one + top, other + left])
            pairs = pairs[:, groups[pairs[0]] != groups[pairs[1]]]
            waiting.append(pairs)
            num_waiting += pairs.shape[1]
            if num_waiting > MAX_WAITING_PAIRS:
                groups, waiting, num_waiting = _join(groups, waiting), [], 0
    return _join(groups, waiting)


def _join(groups: np.ndarray, pairs: list[np.ndarray]) -> np.ndarray:
    from scipy.sparse import coo_array  # here, as listing the filters must not load it
    from scipy.sparse.csgraph import connected_components

    if not pairs:
        return groups
    one, other = groups[np.concatenate(pairs, axis=1)]
    graph = coo_array((np.ones(len(one), dtype=bool), (one, other)), shape=(len(groups), len(groups)))
    _, group_of = connected_components(graph, directed=False)
    return group_of[groups]
