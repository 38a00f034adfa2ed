"""No filtering (DataComp, Sec. 3.4): train on the whole pool."""

import pandas as pd

from benchmark import register_filter


@register_filter(columns=["uid"])
def no_filter(rows: pd.DataFrame) -> pd.Series:
    """Keep every pair."""
    return pd.Series(True, index=rows.index)
