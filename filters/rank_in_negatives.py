"""Rank among random negatives (mOSCAR, Futeral et al. 2024, arXiv 2406.08707, joint filtering): no absolute score."""

import numpy as np
from tqdm import tqdm

from benchmark import PoolView, Subset, register_selector
from benchmark.toolbox.embeddings import pair_similarities, row_cosines, unit_rows

BLOCK_ROWS = 4096


@register_selector(features=["{arch}_img", "{arch}_txt"])
def rank_in_negatives(pool: PoolView, *, arch: str = "l14", negatives: int = 63, top: int = 8, seed: int = 0) -> Subset:
    """Keep a pair whose caption is among the `top` for its image, and whose image is among the `top` for its caption.

    The caption is ranked by cosine similarity to the image, together with the captions of `negatives` other pairs of
    the pool; likewise the image, with the images of the same other pairs. A negative that ties with the pair's own
    does not push it down, so equal captions do not count against each other. By chance 1 pair in 8 passes each side.
    mOSCAR ranks by NLLB-SigLIP; here it is the CLIP of the pool's features (arch: b32 or l14).

    The seed draws the negatives: the pairs, sorted by uid, are put in a random order, and every pair's negatives stand
    at the same random distances behind it. They are different pairs, and each set of them is as likely as any other.
    A pair with a NaN or zero embedding is nobody's negative and never kept.
    """
    images, texts = pool.features[f"{arch}_img"], pool.features[f"{arch}_txt"]
    similarity = pair_similarities(images, texts)
    # By uid; rows that share one stand by what they hold, so that the order of files decides nothing.
    order = np.lexsort((similarity, pool.uids["f1"], pool.uids["f0"]))
    scored = order[np.isfinite(similarity[order])]
    count = len(scored)
    if not 1 <= negatives < count:
        raise ValueError(
            f"filters.rank_in_negatives.negatives={negatives} must be from 1 to {count - 1}: "
            f"{count} of the pool's pairs have embeddings"
        )
    if not 1 <= top <= negatives:
        raise ValueError(f"filters.rank_in_negatives.top={top} must be from 1 to negatives={negatives}")
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(scored)
    distances = 1 + rng.choice(count - 1, negatives, replace=False)
    is_kept = np.zeros(count, dtype=bool)
    starts = range(0, count, BLOCK_ROWS)
    for start in tqdm(starts, desc="rank_in_negatives", unit="block", disable=None, leave=False):
        places = np.arange(start, min(start + BLOCK_ROWS, count))
        own_images, own_texts = unit_rows(images[drawn[places]]), unit_rows(texts[drawn[places]])
        own = row_cosines(own_images, own_texts)
        better_texts, better_images = np.zeros(len(places), dtype=int), np.zeros(len(places), dtype=int)
        for distance in distances:
            others = drawn[(places + distance) % count]
            better_texts += row_cosines(own_images, unit_rows(texts[others])) > own
            better_images += row_cosines(unit_rows(images[others]), own_texts) > own
        is_kept[places] = (better_texts < top) & (better_images < top)
    return Subset.of(pool.uids[drawn[is_kept]])
