"""The planted labels of the embedded pool, an oracle: what knowing each pair's noise would keep; not an upper bound."""

import pandas as pd

from benchmark import register_filter


@register_filter(planted=["is_clean"], reference=True)
def planted_clean(rows: pd.DataFrame) -> pd.Series:
    """Keep the pairs that were generated clean."""
    return rows["is_clean"]
