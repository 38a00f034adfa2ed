"""Random subset (DataComp, Sec. 3.4 and Table 25): what a cut of this size costs without any judgement."""

import hashlib

import numpy as np
import pandas as pd

from benchmark import register_filter


@register_filter(columns=["uid"], fraction=0.3)
def random(rows: pd.DataFrame, *, seed: int = 0) -> np.ndarray:
    """Score a pair by a number in [0, 1) drawn from its uid and the seed alone."""
    digests = [hashlib.sha256(f"{seed}/{uid}".encode()).digest() for uid in rows["uid"]]
    return np.array([int.from_bytes(digest[:6]) for digest in digests], dtype=np.float64) / 2**48
