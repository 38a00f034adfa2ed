"""The filter engine as one would first write it: row by row over pandas' frames, everything in memory.

Nothing of the engine is imported, so that an error of it is not repeated here.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd


@dataclass(frozen=True)
class NaiveRule:
    """How a rule votes on one row, and its cut: ("fraction", f) or ("threshold", t) of what `value` returns."""

    value: object  # from a row to a bool, a number, or None for a missing value
    cut: tuple[str, float] | None = None
    is_selector: bool = False  # its value is the number of copies, of the rows that it is shown


class ConstantScoreError(Exception):
    """All scores are the same, and a fraction of the rows is wanted."""


def naive_subset(metadata_dir: Path, rules: list[NaiveRule], within: Counter | None = None) -> Counter:
    """Return the copies of each chosen uid."""
    frames = [pd.read_parquet(path) for path in sorted(metadata_dir.glob("*.parquet"))]
    rows = [row for frame in frames for row in frame.to_dict("records")]
    copies = [1] * len(rows) if within is None else _spread(within, [row["uid"] for row in rows])
    rows = [(row, given) for row, given in zip(rows, copies, strict=True) if given]
    uids = [row["uid"] for row, _ in rows]
    gates, wanted = [True] * len(rows), None
    for rule in rules:
        values = [rule.value(row) for row, _ in rows]
        if rule.cut is not None:
            votes = _cut(values, uids, rule.cut)
        elif rule.is_selector:
            chosen = Counter()
            for uid, value in zip(uids, values, strict=True):
                chosen[uid] += value
            votes = _spread(chosen, uids)
        else:
            votes = [0 if value is None else value for value in values]
        if (
            rule.cut is None
            and all(not isinstance(vote, bool) for vote in votes)
            and any(v is not None for v in values)
        ):
            wanted = votes if wanted is None else [min(pair) for pair in zip(wanted, votes, strict=True)]
        else:
            gates = [gate and bool(vote) for gate, vote in zip(gates, votes, strict=True)]
    result = Counter()
    for (row, _), gate, vote in zip(rows, gates, wanted or [given for _, given in rows], strict=True):
        result[row["uid"]] += vote if gate else 0
    return +result


def _cut(values: list, uids: list[str], cut: tuple[str, float]) -> list[int]:
    kind, limit = cut
    judged = [number for number, value in enumerate(values) if value is not None]
    if kind == "threshold":
        kept = [number for number in judged if values[number] >= type(values[number])(limit)]
    else:
        num_wanted = round(limit * len(values))
        if 0 < num_wanted < len(judged) and len({values[number] for number in judged}) == 1:
            raise ConstantScoreError
        kept = sorted(judged, key=lambda number: (-values[number], uids[number], number))[:num_wanted]
    return [int(number in set(kept)) for number in range(len(values))]


def _spread(copies: Counter, uids: list[str]) -> list[int]:
    """Deal the copies of each uid out to its rows, one at a time, from the first row on, and again."""
    votes = [0] * len(uids)
    for uid, number in copies.items():
        places = [place for place, each in enumerate(uids) if each == uid]
        for turn in range(number if places else 0):
            votes[places[turn % len(places)]] += 1
    return votes
