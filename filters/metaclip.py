"""MetaCLIP's balance (Xu et al. 2023, arXiv 2309.16671, Algorithm 1): captions that name many things alike often."""

import hashlib
import math

import numpy as np

from benchmark import PoolView, Subset, register_selector
from benchmark.pool.uids import format_uids
from benchmark.toolbox.concepts import match_entries, read_entries

ROUNDING = 1e-12  # of a probability that should be a simple fraction


@register_selector(columns=["text"], assets={"entries": "metaclip_entries.txt"})
def metaclip(
    pool: PoolView, *, entries: str | None = None, max_count: int | None = None, keep: float = 0.25, seed: int = 0
) -> Subset:
    """Keep a pair with the probability that one of its caption's entries draws it; rare entries always do.

    `entries` is a text file of names, one a line (MetaCLIP: 500,000 from WordNet and Wikipedia; the embedded pool has
    its own; scripts/make_metaclip_entries.py writes those from WordNet). A caption matches an entry that stands in it
    between spaces, case kept, punctuation set apart. An entry matched by c captions draws each of them with probability
    t / max(c, t), and a pair is kept with probability 1 - prod(1 - t / max(c, t)) over its entries; without an entry it
    is dropped. t is `max_count` where given (MetaCLIP: 20,000 for 400 million pairs); else it is the smallest with
    which `keep` of the matching pairs are expected (MetaCLIP kept 400 million of 1.6 billion), and at least 1: where
    many entries are matched once, more are kept. The seed draws; the number of a pair depends only on its uid.

    A null caption is dropped.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"filters.metaclip.keep={keep} is outside (0, 1]; 0.25 keeps a quarter of the matching pairs")
    if max_count is not None and max_count < 1:
        raise ValueError(f"filters.metaclip.max_count={max_count} is below 1")
    assert entries is not None  # the engine has found it
    matched_row, matched_entry = match_entries(pool.columns["text"].fillna("").tolist(), read_entries(entries))
    counts = np.bincount(matched_entry)  # (entries,)
    rows = np.unique(matched_row)

    def probabilities(most: int) -> np.ndarray:
        """Return each matching row's probability: (matching rows,)."""
        drawn = most / np.maximum(counts, most)
        with np.errstate(divide="ignore"):
            log_missed = np.log1p(-drawn)[matched_entry]
        return -np.expm1(np.bincount(matched_row, weights=log_missed)[rows]) if len(rows) else np.empty(0)

    if max_count is None:
        wanted = keep * len(rows) * (1 - ROUNDING)
        low, high = 1, max(1, int(counts.max(initial=1)))
        while low < high:
            middle = (low + high) // 2
            # fsum rounds once, so the order of rows cannot move the count.
            low, high = (low, middle) if math.fsum(probabilities(middle)) >= wanted else (middle + 1, high)
        max_count = low
    draws = np.array([_draw(uid, seed) for uid in format_uids(pool.uids[rows])])
    return Subset.of(pool.uids[rows[draws < probabilities(max_count)]])


def _draw(uid: str, seed: int) -> float:
    """Return a number in [0, 1) that depends only on the uid and the seed."""
    return int.from_bytes(hashlib.sha256(f"metaclip/{seed}/{uid}".encode()).digest()[:6]) / 2**48
