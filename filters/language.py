"""The language of a caption (fastText's identification, Joulin et al. 2016), for filters to use."""

import pandas as pd

from benchmark import register_signal
from benchmark.language import language_of, load_language_model


@register_signal(columns=["text"], assets={"language_model": "lid.176.ftz"})
def language(rows: pd.DataFrame, *, language_model: str | None = None) -> list[str | None]:
    """Return the code of a caption's most likely language, such as "en"; a null caption has none."""
    model = load_language_model(language_model, option="filters.language.language_model")
    return [None if pd.isna(text) else language_of(model, text) for text in rows["text"]]
