"""MetaCLIP's matching against the rule of its code, string by string, and its count against a hand-made pool."""

import numpy as np
import pandas as pd

from benchmark.pool.uids import format_uids, parse_uids
from benchmark.selection.views import PoolView
from benchmark.toolbox.concepts import match_entries
from tests.conftest import uid


def spaced(text):
    """Pad a caption as MetaCLIP's code does."""
    for mark in [",", ".", ";", ":", "?", "!", "`"]:
        text = text.replace(mark, f" {mark} ")
    for mark in ["\t", "\n", "\r"]:
        text = text.replace(mark, " ")
    return f" {text} "


def test_matching_is_the_search_for_padded_substrings():
    rng = np.random.default_rng(2)
    pieces = ["a", "b", "A", "ab", "'s", "-", " ", "  ", ",", ".", "!", "`", "\t", "\n", "\r", "\u00a0", "\x0b", ""]
    texts = ["".join(rng.choice(pieces, rng.integers(0, 12))) for _ in range(2000)]
    texts += [" ".join(rng.choice(pieces, rng.integers(0, 6))) for _ in range(2000)]
    entries = [
        "a",
        "b",
        "A",
        "ab",
        "a b",
        "a  b",
        "b 's",
        "a b a",
        ", b",
        ".",
        "a.",
        "a\u00a0b",
        "- a -",
        "b   a",
        "''",
    ]
    rows, matches = match_entries(texts, entries)
    found = list(zip(rows.tolist(), matches.tolist(), strict=True))
    padded = [spaced(text) for text in texts]
    expected = [(r, e) for r, text in enumerate(padded) for e, entry in enumerate(entries) if f" {entry} " in text]
    assert found == expected
    assert len({entry for _, entry in found}) > 10


def test_the_order_of_rows_does_not_move_the_count(strategies, tmp_path):
    """A quarter of these is exactly 50 dogs, 100 cats and 100 stars, so that rounding could decide."""
    path = tmp_path / "entries.txt"
    path.write_text("star\ncat\ndog\n")
    texts = pd.Series(["a star"] * 800 + ["a cat"] * 150 + ["a dog"] * 50, dtype=str)

    def chosen(order, **options):
        uids = parse_uids([uid(int(number)) for number in order])
        view = PoolView(uids, pd.DataFrame({"text": texts.iloc[order].reset_index(drop=True)}), {})
        return format_uids(strategies["metaclip"].function(view, entries=str(path), **options).uids)

    expected = chosen(np.arange(1000), max_count=100)
    for seed in range(20):
        assert chosen(np.random.default_rng(seed).permutation(1000), keep=0.25) == expected
