"""Text spotting (cf. Radenovic et al. 2023, arXiv 2301.02280, the T of their CAT filter): no pictures with writing."""

import numpy as np
import pandas as pd
from PIL import Image

from benchmark import register_filter
from benchmark.toolbox.text_boxes import find_text_in


@register_filter(images=True)
def no_text(rows: pd.DataFrame, images: list[Image.Image]) -> np.ndarray:
    """Keep the pictures in which no line of text is found.

    CAT drops a picture with writing where the caption repeats it; this drops all of them. What the detector finds and
    misses stands at `text_masked_clip`, which keeps such pairs where the rest of the picture fits the caption.
    """
    return np.array([not boxes for boxes in find_text_in([np.asarray(image) for image in images])], dtype=bool)
