"""Rules that look across rows, or do not repeat themselves: some rows are asked again in other company.

A filter or signal is handed some thousand rows at once, and the engine decides which: an answer that depends on the
others of its slice, such as `score > score.median()`, is the slice's and not the pool's. So some rows of the first
slice are asked again, rare answers first: those with low answers by themselves and those with high ones by themselves.
That changes the answers of nearly every rule that looks across rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from benchmark.runtime.errors import UserError
from benchmark.selection.rules import Rule

MAX_SHIFT = 1e-4  # of a score, in standard deviations: a model's sums may hang on the size of its batch
MAX_SHIFT_GPU = 1e-2  # in half precision, with other kernels for other sizes
MAX_CHANGED = 1  # rows whose mask, copies, text or verdict may be another


@dataclass(frozen=True)
class Answers:
    """What a strategy said of some rows."""

    values: np.ndarray  # (rows,) bool, int64, float or object for texts
    is_judged: np.ndarray  # (rows,) bool

    def of(self, rows: np.ndarray) -> Answers:
        return Answers(self.values[rows], self.is_judged[rows])


def spread(num_rows: int, wanted: int) -> np.ndarray:
    """Return places of rows, evenly spread over so many: (at most wanted,) int64, rising."""
    return np.unique(np.linspace(0, num_rows - 1, wanted).astype(np.int64))


def telling_rows(answers: Answers, wanted: int) -> np.ndarray:
    """Choose the rows of a slice that are asked again: (wanted,) int64, rising; all where there are fewer.

    Half of them evenly spread; the others by their answers, as what only a few rows got (a duplicate's "drop", a cap's
    or an outlier's) may be all that hangs on the others: the rarest masks, copies or texts, and of scores the one that
    most rows share, the lowest and the highest.
    """
    num_rows = len(answers.values)
    if wanted >= num_rows:
        return np.arange(num_rows)
    even = spread(num_rows, wanted - wanted // 2)
    judged = np.flatnonzero(answers.is_judged)
    values, inverse, counts = np.unique(
        pd.factorize(answers.values[judged])[0] if answers.values.dtype == object else answers.values[judged],
        return_inverse=True,
        return_counts=True,
    )
    if answers.values.dtype.kind == "f":
        order = np.argsort(inverse, kind="stable")  # by score
        shared = np.flatnonzero(inverse == counts.argmax())[: wanted // 4] if len(values) < len(judged) else order[:0]
        ends = max(1, (wanted // 2 - len(shared)) // 2)
        some = np.concatenate([shared, order[:ends], order[-ends:]])
    else:
        some = np.argsort(counts[inverse], kind="stable")[: wanted // 2]
    order = np.concatenate([even, judged[some], np.arange(num_rows)])  # some are in both: others stand in for them
    first = np.sort(np.unique(order, return_index=True)[1])
    return np.sort(order[first[:wanted]])


def refuse_company(
    rule: Rule,
    answers: Answers,
    rows: np.ndarray,
    ask: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    *,
    is_exact: bool = True,
) -> None:
    """Raise UserError where a rule says something else of some rows when it is asked of them alone.

    `answers` are of a whole slice, `rows` (m,) the places in it that are asked again, `ask` asks of such places. A GPU
    (`is_exact` false) may round more.
    """
    told = f"{rule.strategy.kind} {rule.name!r}"
    judged = answers.values[answers.is_judged]
    scores = judged[np.isfinite(judged)] if judged.dtype.kind == "f" else judged[:0]
    max_shift = (
        (MAX_SHIFT if is_exact else MAX_SHIFT_GPU) * float(np.std(scores.astype(np.float64))) if len(scores) else 0
    )
    for group in _companies(answers.of(rows), rows):
        again = Answers(*ask(group))
        if not _differ(answers.of(group), again, max_shift):
            continue
        if _differ(again, Answers(*ask(group)), max_shift):
            raise UserError(
                f"{told} is not deterministic: called twice with the same {len(group)} rows it returned different "
                "values; derive what is random from the uid, or from an option such as seed",
                code="not-deterministic",
            )
        remedy = "write a selector, which sees the whole pool"
        if rule.strategy.kind == "filter":
            remedy += ", or return a score and cut it with fraction="
        raise UserError(
            f"{told} looks across rows: it returns other values for {len(group)} rows by themselves than for the same "
            f"rows among {len(answers.values):,}, and the pool is handed to it in slices; {remedy}",
            code="looks-across-rows",
        )


def _companies(answers: Answers, rows: np.ndarray) -> list[np.ndarray]:
    """Split places into those with lower and those with higher answers, without a verdict first: each not empty."""
    values = answers.values if answers.values.dtype != object else pd.factorize(answers.values)[0]  # of texts
    order = np.lexsort((np.arange(len(rows)), values, answers.is_judged))
    values, is_judged = values[order], answers.is_judged[order]
    cut = len(rows) // 2
    changes = np.flatnonzero((values[1:] != values[:-1]) | (is_judged[1:] != is_judged[:-1])) + 1
    if len(rows) >= 4:  # one row alone tells nothing, as one may change, and models drop a dimension
        changes = changes[(changes > 1) & (changes < len(rows) - 1)]
    if len(changes):  # equal answers stay together, where they can
        cut = int(changes[np.abs(changes - cut).argmin()])
    return [np.sort(rows[part]) for part in (order[:cut], order[cut:]) if len(part)]


def _differ(one: Answers, other: Answers, max_shift: float) -> bool:
    """Tell whether answers on the same rows differ by more than rounding can explain."""
    changed = one.is_judged != other.is_judged
    both = one.is_judged & other.is_judged
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
