"""T-MARS (Maini et al. 2023, arXiv 2307.03132): CLIP score of the picture once the text in it is painted over."""

import numpy as np
import pandas as pd
from PIL import Image

from benchmark import register_filter
from benchmark.selection.asset_kinds import CLIP_WEIGHTS
from benchmark.toolbox.embeddings import row_cosines
from benchmark.toolbox.encoders import Encoder, load_encoder
from benchmark.toolbox.text_boxes import find_text_in, paint_over


@register_filter(columns=["text"], images=True, assets={"checkpoint": CLIP_WEIGHTS}, setup=load_encoder, fraction=0.3)
def text_masked_clip(
    rows: pd.DataFrame,
    images: list[Image.Image],
    encoder: Encoder,
    *,
    clip_model: str = "reference_l14",
    checkpoint: str | None = None,
) -> np.ndarray:
    """Score a pair by the CLIP cosine of its caption and its picture without the text in it.

    A picture that shows nothing but the words of its caption thus loses its score, and one that shows the thing too
    keeps it. Lines of text are filled with the mean colour around them. `clip_model` is one of the embedded pool's
    reference models, `reference_l14` or `reference_b32` (they see 32 x 32 pixels), or an open_clip model with its
    weights as `checkpoint`: a file, or a name that open_clip has. A null caption gives a missing value.

    The cut is `clip_score`'s, so that the two differ by the masking alone. T-MARS keeps the top 50 % on LAION, and at
    DataComp's medium scale scores of at least 0.281 by OpenAI's ViT-B/32, a number that means nothing for another
    model. T-MARS finds text with FAST, a neural detector trained on scene text; the classical one here finds level
    lines of at least three letters that stand out of a quiet surrounding. It misses slanted and vertical text, much of
    the text on busy photographs, and faint watermarks, so more such pairs keep their CLIP score than with T-MARS.
    """
    captions = rows["text"]
    has_value = captions.notna().to_numpy(dtype=bool)
    scores = np.full(len(rows), np.nan, dtype=np.float32)
    chosen = np.flatnonzero(has_value)
    if len(chosen):
        pictures = encoder.encode_images(mask_text([images[row] for row in chosen]))
        scores[chosen] = row_cosines(pictures, encoder.encode_texts(captions.iloc[chosen].tolist()))
    return scores


def mask_text(images: list[Image.Image]) -> list[Image.Image]:
    """Return the images with their lines of text painted over."""
    pixels = [np.asarray(image) for image in images]
    return [
        Image.fromarray(paint_over(each, boxes)) if boxes else image
        for image, each, boxes in zip(images, pixels, find_text_in(pixels), strict=True)
    ]
