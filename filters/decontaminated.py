"""Decontamination (DataComp, Sec. 3.2): drop near-duplicates of the evaluation sets' images."""

import numpy as np
import pandas as pd
from PIL import Image

from benchmark import register_filter, register_signal
from benchmark.selection.asset_kinds import CLIP_WEIGHTS, EVALUATION_SETS
from benchmark.toolbox.decontamination import EvaluationImages, load_evaluation_images

ASSETS = {"eval_dir": EVALUATION_SETS, "checkpoint": CLIP_WEIGHTS}


@register_signal(images=True, assets=ASSETS, setup=load_evaluation_images)
def eval_similarity(
    rows: pd.DataFrame,
    images: list[Image.Image],
    evaluation_images: EvaluationImages,
    *,
    eval_dir: str | None = None,
    clip_model: str | None = None,
    checkpoint: str | None = None,
) -> np.ndarray:
    """Return the highest similarity of a pair's image to any image of the evaluation sets."""
    return evaluation_images.highest_similarity(images)


@register_filter(signals=["eval_similarity"], assets=ASSETS)
def decontaminated(
    rows: pd.DataFrame,
    *,
    max_similarity: float = 0.95,
    eval_dir: str | None = None,
    clip_model: str | None = None,
    checkpoint: str | None = None,
) -> pd.Series:
    """Drop a pair whose image is as similar to an image of the evaluation sets as `max_similarity`, or more.

    `eval_dir` holds the sets as `winnow evaluate` reads them. Images are compared by their pixels: the low frequencies
    of brightness and colours, mirrored too. Of copies of the embedded scales' evaluation images that finds at least
    99.6 % after JPEG of quality 75, half or three times the size, or mirroring, 92 % after the loss of up to 3 % of the
    sides, but 13 % after 10 %, and 60 % of those made grey; it misses what was turned or pasted into something else.
    Of the embedded pools, whose drawings resemble each other more than photographs do, it drops 1.5 to 3 %. Embeddings
    of `clip_model`, with the weights `checkpoint`, need a threshold of their own. DataComp compared descriptors of a
    network (ISC) with 0.604169, a number that means nothing for these.
    """
    similarity = rows["eval_similarity"]
    return (similarity < max_similarity).astype("boolean").mask(similarity.isna())
