"""Which captions name which things: MetaCLIP's substring matching (Xu et al. 2023, arXiv 2309.16671, Algorithm 1)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from benchmark.runtime.errors import UserError
from benchmark.runtime.files import read_text

PUNCTUATION = ",.;:?!`"


def match_entries(texts: list[str], entries: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return which row matches which entry, two arrays (matches,): each pair once, entries numbered in their order.

    A text names an entry that stands in it between spaces, case kept, punctuation set apart.
    """
    numbers: dict[str, int] = {}
    for entry in entries:
        numbers.setdefault(entry, len(numbers))
    lengths = sorted({entry.count(" ") + 1 for entry in numbers})
    table = str.maketrans(dict.fromkeys("\t\n\r", " ") | {sign: f" {sign} " for sign in PUNCTUATION})
    found: dict[str, list[int]] = defaultdict(list)  # by text, as many captions are repeated
    rows: list[int] = []
    matches: list[int] = []
    for row, text in enumerate(texts):
        if text not in found:
            # Between single spaces, so an entry of n words is n consecutive pieces.
            pieces = text.translate(table).split(" ")
            spans = (" ".join(pieces[i : i + n]) for n in lengths for i in range(len(pieces) - n + 1))
            found[text] = sorted({numbers[span] for span in spans if span in numbers})
        rows += [row] * len(found[text])
        matches += found[text]
    return np.array(rows, dtype=np.int64), np.array(matches, dtype=np.int64)


def read_entries(path: str) -> list[str]:
    """Return the names in a text file, one a line; raises ValueError where there is none."""
    lines = [line.strip() for line in read_text(Path(path)).split("\n")]
    names = [line for line in lines if line]
    if not names:
        raise UserError(f"{path}: this file of entries holds no name", code="asset-invalid")
    return names
