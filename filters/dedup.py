"""Exact de-duplication: keep one pair per image, by the sha256 of its bytes (cf. LAION-5B's removal of repeats)."""

import numpy as np

from benchmark import PoolView, Subset, register_selector
from benchmark.pool.uids import uid_order


@register_selector(columns=["sha256"])
def dedup(pool: PoolView, *, seed: int = 0) -> Subset:
    """Keep of all pairs with the same image one drawn by the seed (0: the smallest uid); a null hash is unique."""
    order = uid_order(pool.uids)  # whatever the order of files
    if seed:
        order = np.random.default_rng(seed).permutation(order)
    hashes = pool.columns["sha256"].iloc[order]
    is_repeat = hashes.duplicated().to_numpy() & hashes.notna().to_numpy()
    return Subset.of(pool.uids[order[~is_repeat]])
