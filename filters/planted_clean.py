"""The planted labels of the embedded pool, as a reference: what knowing each pair's noise would keep. No ceiling."""

import pandas as pd

from benchmark import register_filter


@register_filter(planted=["is_clean"], reference=True)
def planted_clean(rows: pd.DataFrame) -> pd.Series:
    """Keep the pairs that were drawn clean."""
    return rows["is_clean"]
