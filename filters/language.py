"""The language of a caption (fastText's identification, Joulin et al. 2016), for filters to use."""

import pandas as pd

from benchmark import register_signal
from benchmark.toolbox.language import languages_of, load_language_model


@register_signal(columns=["text"], assets={"language_model": "lid.176.ftz"})
def language(rows: pd.DataFrame, *, language_model: str | None = None) -> pd.Series:
    """Return the code of a caption's most likely language, such as "en"; a null caption has none."""
    model = load_language_model(language_model, option="filters.language.language_model")
    texts = rows["text"]
    return pd.Series(languages_of(model, texts.fillna("")), dtype="str").mask(texts.isna())
