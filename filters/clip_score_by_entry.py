"""CLIP score with a bar of its own for every concept (ours; entries are matched as MetaCLIP does)."""

import numpy as np

from benchmark import PoolView, Subset, register_selector
from benchmark.toolbox.concepts import match_entries, read_entries


@register_selector(columns=["text", "clip_{arch}_similarity_score"], assets={"entries": "metaclip_entries.txt"})
def clip_score_by_entry(
    pool: PoolView, *, entries: str | None = None, arch: str = "l14", keep: float = 0.5, seed: int = 0
) -> Subset:
    """Keep of the captions that name an entry those whose pairs have the highest CLIP score: a part `keep` per entry.

    CLIP knows some concepts less well than others and gives right pairs of them low scores; one bar for the whole pool
    loses them. `entries` is a text file of names, one a line, as for `metaclip`. A caption that names several entries
    is kept where it is within the part of any; one that names none is dropped, and so is a pair without a score.
    Ties go to the smaller uid. The seed has no use.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"filters.clip_score_by_entry.keep={keep} is outside (0, 1]; 0.5 keeps half of each entry's")
    assert entries is not None  # the engine has found it
    scores = pool.columns[f"clip_{arch}_similarity_score"].to_numpy(dtype=np.float64, na_value=np.nan)
    rows, matches = match_entries(pool.columns["text"].fillna("").tolist(), read_entries(entries))
    has_score = ~np.isnan(scores[rows])
    rows, matches = rows[has_score], matches[has_score]
    order = np.lexsort((pool.uids["f1"][rows], pool.uids["f0"][rows], -scores[rows], matches))
    rows, matches = rows[order], matches[order]
    counts = np.bincount(matches)  # (entries,)
    rank = np.arange(len(rows)) - (np.cumsum(counts) - counts)[matches]  # among its entry's, from 0
    chosen = rank < np.ceil(keep * counts[matches])
    return Subset.of(pool.uids[np.unique(rows[chosen])])
