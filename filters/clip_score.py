"""CLIP score filtering (DataComp, Sec. 3.4 and 4.2): keep the pairs whose image and caption agree most."""

import pandas as pd

from benchmark import register_filter


@register_filter(columns=["clip_{arch}_similarity_score"], fraction=0.3)
def clip_score(rows: pd.DataFrame, *, arch: str = "l14") -> pd.Series:
    """Score a pair by the cosine similarity of its OpenAI CLIP embeddings (arch: b32 or l14)."""
    return rows[f"clip_{arch}_similarity_score"]
