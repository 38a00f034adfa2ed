"""Random numbers that are functions of their keys: the same whatever was generated before, and on every machine."""

from __future__ import annotations

import numpy as np


def keyed_uint64(*keys: int | np.ndarray) -> np.ndarray:
    """Hash integer keys, broadcast together, to uniform uint64: a random number that is a function of its key.

    SplitMix64's finaliser (Steele, Lea, Flood 2014, Fig. 15) folded over the keys. Written out here, so that no
    library's change of generator can change a recipe's order.
    """
    state = np.zeros(np.broadcast_shapes(*(np.shape(key) for key in keys)), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for key in keys:
            state = state ^ np.asarray(key).astype(np.uint64)
            state = state + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def keyed_permutation(count: int, *keys: int) -> np.ndarray:
    """Return the permutation of `count` items that belongs to the keys."""
    return np.argsort(keyed_uint64(*keys, np.arange(count)), kind="stable")


def keyed_uniform(*keys: int | np.ndarray) -> np.ndarray:
    """Return numbers in [0, 1) that belong to the keys, float64."""
    return (keyed_uint64(*keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53
