"""negCLIPLoss (Wang et al. 2024, arXiv 2405.19547): CLIP score less what pair and batch have in common."""

import math

import numpy as np
from tqdm import tqdm

from benchmark import PoolView, Subset, register_selector
from benchmark.selection.scoring import top_fraction
from benchmark.toolbox.embeddings import pair_similarities, unit_rows

BLOCK_ROWS = 1024  # a block of logits is at most this many rows and columns
MIN_TAU = 0.003  # below, exp(2 / tau) leaves float64
FLOAT32_RANGE = 150.0  # exp of +-75 fits float32, sums over a block included


@register_selector(features=["{arch}_img", "{arch}_txt"])
def negcliploss(
    pool: PoolView,
    *,
    arch: str = "l14",
    keep: float = 0.3,
    batch_size: int = 32768,
    partitions: int = 10,
    tau: float = 0.01,
    seed: int = 0,
) -> Subset:
    """Keep exactly round(keep * rows) of the highest negCLIPLoss; ties go to the smaller uid.

    The score is s_i - (tau / 2) [log sum_j exp(f_i.g_j / tau) + log sum_j exp(f_j.g_i / tau)]: f are image and g text
    embeddings (normalised here), s_i = f_i.g_i their cosine, and j runs over the random batch that pair i is in, itself
    among it. It is averaged over `partitions` divisions of the pool into batches of `batch_size` pairs. The last batch
    of a division is filled up with pairs of others, so that every sum has as many terms; a pool of no more than
    `batch_size` pairs is one batch. The seed draws the batches from the whole pool; the original draws them within one
    metadata file (about 500,000 pairs).

    A pair with a NaN or zero embedding is in no batch and never kept, though it counts in `rows`.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"filters.negcliploss.keep={keep} is outside (0, 1]; 0.3 keeps the top 30 % of the pool")
    if tau < MIN_TAU:
        raise ValueError(f"filters.negcliploss.tau={tau} is below {MIN_TAU}; OpenAI's CLIP has 0.01")
    for name, value in [("batch_size", batch_size), ("partitions", partitions)]:
        if value < 1:
            raise ValueError(f"filters.negcliploss.{name}={value} is below 1")
    images, texts = pool.features[f"{arch}_img"], pool.features[f"{arch}_txt"]
    similarity = pair_similarities(images, texts)
    # By uid; rows that share one stand by what they hold, so that the order of files decides nothing.
    order = np.lexsort((similarity, pool.uids["f1"], pool.uids["f0"]))
    scored = order[np.isfinite(similarity[order])]
    if len(scored) <= batch_size:
        partitions = 1  # all would be the same
    rng = np.random.default_rng(seed)
    scores = np.zeros(len(scored))
    starts = range(0, len(scored), batch_size)
    with tqdm(total=partitions * len(starts), desc="negcliploss", unit="batch", disable=None, leave=False) as progress:
        for _ in range(partitions):
            drawn = rng.permutation(len(scored))
            for start in starts:
                batch = drawn[start : start + batch_size]
                filler = drawn[: min(start, batch_size - len(batch))]
                rows = scored[np.concatenate([batch, filler])]
                scores[batch] += _batch_scores(unit_rows(images[rows]), unit_rows(texts[rows]), tau)[: len(batch)]
                progress.update()
    is_kept = top_fraction(scores / partitions, pool.uids[scored], keep, len(pool.uids))
    return Subset.of(pool.uids[scored[is_kept]])


def _batch_scores(images: np.ndarray, texts: np.ndarray, tau: float) -> np.ndarray:
    """Score a batch of unit embeddings (pairs, dimension): (pairs,) float64."""
    image_sums, text_sums = np.zeros(len(images)), np.zeros(len(images))
    for top in range(0, len(images), BLOCK_ROWS):
        rows = slice(top, top + BLOCK_ROWS)
        scaled = images[rows] / np.float32(tau)
        for left in range(0, len(texts), BLOCK_ROWS):
            columns = slice(left, left + BLOCK_ROWS)
            logits = scaled @ texts[columns].T  # (block images, block texts)
            low, high = float(logits.min()), float(logits.max())
            middle = (low + high) / 2
            if high - low > FLOAT32_RANGE:
                logits = logits.astype(np.float64)
            logits -= logits.dtype.type(middle)
            np.exp(logits, out=logits)
            ones = np.ones(BLOCK_ROWS, dtype=logits.dtype)
            # exp(middle) may exceed float32.
            image_sums[rows] += math.exp(middle) * (logits @ ones[: logits.shape[1]]).astype(np.float64)
            text_sums[columns] += math.exp(middle) * (ones[: logits.shape[0]] @ logits).astype(np.float64)
    similarity = np.einsum("ij,ij->i", images, texts).astype(np.float64)
    return similarity - tau / 2 * (np.log(image_sums) + np.log(text_sums))
