"""Row independence: some rows of a slice are evaluated again in other batches, and must come out the same.

A filter or signal is handed some thousand rows at once, and the engine decides which: a value that depends on the
others of its slice, such as `score > score.median()`, is the slice's and not the pool's. So some rows of the first
slices are evaluated again, those with rare values first: those with low values by themselves and those with high ones
by themselves. That changes the values of nearly every rule that looks across rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from benchmark.runtime.errors import UserError
from benchmark.selection.rules import ResolvedRule

MAX_SHIFT = 1e-4  # of a score, in standard deviations: a model's sums may depend on the size of its batch
MAX_SHIFT_GPU = 1e-2  # in half precision, with other kernels for other sizes
MAX_CHANGED = 1  # rows whose mask, copies, text or missing value may be another
NUM_REPEATED = 256  # rows of a rule that each process evaluates again
NUM_REPEATED_COSTLY = 32  # where images or a model are involved

_REPEATED: dict[str, int] = {}  # rows that this process has evaluated again and found the same, by rule


@dataclass(frozen=True)
class Answers:
    """What a strategy returned for some rows."""

    values: np.ndarray  # (rows,) bool, int64, float or object for texts
    has_value: np.ndarray  # (rows,) bool

    @cached_property
    def keys(self) -> np.ndarray:
        """Return the values as what can be sorted: texts as numbers, in the order in which they first appear."""
        return pd.factorize(self.values)[0] if self.values.dtype == object else self.values

    def of(self, rows: np.ndarray) -> Answers:
        return Answers(self.values[rows], self.has_value[rows])


def num_to_repeat(rule: ResolvedRule, num_rows: int) -> int:
    """Return how many rows of a slice are to be evaluated again.

    None once this process has repeated enough of the rule's, and none of a signal whose answers may cost something.
    """
    strategy = rule.strategy
    wanted = NUM_REPEATED_COSTLY if strategy.images or strategy.setup else NUM_REPEATED
    wanted = min(wanted - _REPEATED.get(_key(rule), 0), num_rows)
    return 0 if strategy.asks_server or num_rows < 2 or wanted < 2 else wanted


def note_repeated(rule: ResolvedRule, num_rows: int) -> None:
    """Note that so many rows of a rule's came out the same; of one that is refused, nothing is noted."""
    _REPEATED[_key(rule)] = _REPEATED.get(_key(rule), 0) + num_rows


def spread(num_rows: int, wanted: int) -> np.ndarray:
    """Return places of rows, evenly spread over so many: (at most wanted,) int64, rising."""
    return np.unique(np.linspace(0, num_rows - 1, wanted).astype(np.int64))


def telling_rows(answers: Answers, wanted: int) -> np.ndarray:
    """Choose the rows of a slice that are evaluated again: (wanted,) int64, rising; all where there are fewer.

    Half of them evenly spread; the others by their values, as what only a few rows got (a duplicate's "drop", a cap's
    or an outlier's) may be all that depends on the others: the rarest masks, copies or texts, and of scores the one
    that most rows share, the lowest and the highest.
    """
    num_rows = len(answers.values)
    if wanted >= num_rows:
        return np.arange(num_rows)
    even = spread(num_rows, wanted - wanted // 2)
    valued = np.flatnonzero(answers.has_value)
    keys, inverse, counts = np.unique(answers.keys[valued], return_inverse=True, return_counts=True)
    if answers.values.dtype.kind == "f":
        order = np.argsort(inverse, kind="stable")  # by score
        shared = np.flatnonzero(inverse == counts.argmax())[: wanted // 4] if len(keys) < len(valued) else order[:0]
        ends = max(1, (wanted // 2 - len(shared)) // 2)
        some = np.concatenate([shared, order[:ends], order[-ends:]])
    else:
        some = np.argsort(counts[inverse], kind="stable")[: wanted // 2]
    order = np.concatenate([even, valued[some], np.arange(num_rows)])  # some are in both: others stand in for them
    first = np.sort(np.unique(order, return_index=True)[1])
    return np.sort(order[first[:wanted]])


def refuse_dependence(
    rule: ResolvedRule,
    answers: Answers,
    rows: np.ndarray,
    call_again: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
) -> None:
    """Raise UserError where a rule returns something else for some rows when they are handed to it without the others.

    `answers` are of a whole slice, `rows` (m,) the places in it that are repeated, `call_again` calls the rule on such
    places. A GPU may round more than a CPU.
    """
    valued = answers.values[answers.has_value]
    scores = valued[np.isfinite(valued)] if valued.dtype.kind == "f" else valued[:0]
    shift = MAX_SHIFT if rule.device == "cpu" else MAX_SHIFT_GPU
    max_shift = shift * float(np.std(scores.astype(np.float64))) if len(scores) else 0
    for batch in _batches(answers, rows):
        again = Answers(*call_again(batch))
        if not _differ(answers.of(batch), again, max_shift):
            continue
        if _differ(again, Answers(*call_again(batch)), max_shift):
            raise UserError(
                f"{rule.strategy.label} is not deterministic: called twice with the same {len(batch)} rows it returned "
                "different values; derive what is random from the uid, or from an option such as seed",
                code="not-deterministic",
            )
        remedy = "write a selector, which sees the whole pool"
        if rule.strategy.is_filter:
            remedy += ", or return a score and cut it with fraction="
        raise UserError(
            f"{rule.strategy.label} looks across rows: it returns other values for {len(batch)} rows by themselves "
            f"than for the same rows among {len(answers.values):,}, and the pool is handed to it in slices; {remedy}",
            code="looks-across-rows",
        )


def _key(rule: ResolvedRule) -> str:
    return json.dumps([rule.identity, rule.device])


def _batches(answers: Answers, rows: np.ndarray) -> list[np.ndarray]:
    """Split places into those with lower and those with higher values, missing ones first: each not empty."""
    keys, has_value = answers.keys[rows], answers.has_value[rows]
    order = np.lexsort((np.arange(len(rows)), keys, has_value))
    keys, has_value = keys[order], has_value[order]
    cut = len(rows) // 2
    changes = np.flatnonzero((keys[1:] != keys[:-1]) | (has_value[1:] != has_value[:-1])) + 1
    if len(rows) >= 4:  # one row alone tells nothing, as one may change, and models drop a dimension
        changes = changes[(changes > 1) & (changes < len(rows) - 1)]
    if len(changes):  # equal values stay together, where they can
        cut = int(changes[np.abs(changes - cut).argmin()])
    return [np.sort(rows[part]) for part in (order[:cut], order[cut:]) if len(part)]


def _differ(one: Answers, other: Answers, max_shift: float) -> bool:
    """Tell whether answers on the same rows differ by more than rounding can explain."""
    changed = one.has_value != other.has_value
    both = one.has_value & other.has_value
    if one.values.dtype.kind == "f" and other.values.dtype.kind == "f":
        first, second = one.values[both].astype(np.float64), other.values[both].astype(np.float64)
        step = np.zeros(len(first))
        if np.float16 in (one.values.dtype, other.values.dtype):  # the least error may round to the next half
            step = np.abs(np.spacing(one.values[both].astype(np.float16))).astype(np.float64)
        with np.errstate(invalid="ignore"):
            near = (first == second) | (np.abs(first - second) <= max_shift + 1e-6 * np.abs(first) + step)
        return bool((~near).any()) or int(changed.sum()) > MAX_CHANGED
    changed[both] = one.values[both] != other.values[both]
    return int(changed.sum()) > MAX_CHANGED
