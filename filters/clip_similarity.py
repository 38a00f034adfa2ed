"""CLIP similarity by a model of your own (Hessel et al. 2021; as a filter, Fang et al. 2023, arXiv 2309.17425)."""

import numpy as np
import pandas as pd
from PIL import Image

from benchmark import register_filter, register_signal
from benchmark.selection.asset_kinds import CLIP_WEIGHTS
from benchmark.toolbox.embeddings import row_cosines
from benchmark.toolbox.encoders import Encoder, load_encoder

ASSETS = {"checkpoint": CLIP_WEIGHTS}


@register_signal(columns=["text"], images=True, assets=ASSETS, setup=load_encoder)
def clip_cosine(
    rows: pd.DataFrame,
    images: list[Image.Image],
    encoder: Encoder,
    *,
    clip_model: str = "reference_l14",
    checkpoint: str | None = None,
) -> np.ndarray:
    """Return the cosine of caption and image by a CLIP model; a null caption gives a missing value."""
    captions = rows["text"]
    cosines = np.full(len(rows), np.nan, dtype=np.float32)
    chosen = np.flatnonzero(captions.notna())
    if len(chosen):
        pictures = encoder.encode_images([images[row] for row in chosen])
        cosines[chosen] = row_cosines(pictures, encoder.encode_texts(captions.iloc[chosen].tolist()))
    return cosines


@register_filter(signals=["clip_cosine"], assets=ASSETS, fraction=0.3)
def clip_similarity(
    rows: pd.DataFrame, *, clip_model: str = "reference_l14", checkpoint: str | None = None
) -> pd.Series:
    """Score a pair by the cosine of its caption and image by any CLIP model of open_clip's.

    `clip_model` is the name of an open_clip model and `checkpoint` a file of its weights, or the name of weights that
    open_clip knows and fetches (`checkpoint=laion2b_s34b_b79k`); or one of the embedded pool's reference models,
    `reference_l14` or `reference_b32`, which bring theirs. `clip_score` takes the scores that the metadata has.
    """
    return rows["clip_cosine"]
