"""Metrics: pure functions from arrays to numbers, for what a paper has a formula for.

One rule for ties everywhere: of two equal scores the smaller index counts as higher (a stable sort by descending
score). So an item is in the top k exactly if its rank is at most k, and a model that gives one score to everything
gets what guessing gets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Array = np.ndarray


def top_k(scores: Array, k: int) -> Array:
    """Return the indices of the k highest scores of each row, best first: (n, min(k, candidates)), int32.

    Scores are finite, shape (n, candidates).
    """
    rest = scores.copy()
    rows = np.arange(len(rest))
    best = np.empty((len(rest), min(k, scores.shape[1])), dtype=np.int32)
    for place in range(best.shape[1]):
        best[:, place] = rest.argmax(axis=1)  # the first of equals
        rest[rows, best[:, place]] = -np.inf
    return best


def first_positive(scores: Array, positives: Array) -> tuple[Array, Array]:
    """Return for each query its best-placed positive's index and rank (1 = best), both (queries,), int32.

    `scores` and the booleans `positives` have shape (queries, candidates); every query has a positive.
    """
    assert positives.any(axis=1).all()
    index = np.where(positives, scores, -np.inf).argmax(axis=1)
    score = np.take_along_axis(scores, index[:, None], axis=1)
    is_before = np.arange(scores.shape[1]) < index[:, None]
    rank = 1 + (scores > score).sum(axis=1) + ((scores == score) & is_before).sum(axis=1)
    return index.astype(np.int32), rank.astype(np.int32)


def accuracy(labels: Array, predictions: Array) -> float:
    """Return the share of predictions that equal their label, both (n,)."""
    return float(np.mean(labels == predictions))


def top_k_accuracy(labels: Array, ranked: Array) -> float:
    """Return the share of samples whose label, (n,), is in its row of `ranked`, (n, k)."""
    return float(np.mean((ranked == labels[:, None]).any(axis=1)))


def mean_per_class_recall(labels: Array, predictions: Array) -> float:
    """Return the mean over classes of each class's accuracy; a class without samples is ignored.

    This is scikit-learn's balanced accuracy, as CLIP_benchmark uses it.
    """
    return float(np.mean(list(accuracy_per_group(labels == predictions, labels).values())))


def accuracy_per_group(is_hit: Array, groups: Array) -> dict[int, float]:
    """Return the share of hits, (n,) booleans, in each group, (n,) ints; an empty group is not there."""
    names, places = np.unique(groups, return_inverse=True)
    shares = np.bincount(places, weights=is_hit) / np.bincount(places)
    return dict(zip(names.tolist(), shares.tolist(), strict=True))


def worst_group_accuracy(is_hit: Array, groups: Array) -> float:
    """Return the lowest accuracy of a group that has samples (Sagawa et al. 2020; WILDS)."""
    return min(accuracy_per_group(is_hit, groups).values())


def macro_f1(labels: Array, predictions: Array) -> float:
    """Return the mean F1 over the classes that have samples (WILDS, Koh et al. 2021, Sec. 4.1: iWildCam).

    F1 of a class is 2·hits / (samples + predictions of it). A class without samples is left out, though predictions
    of it cost the others; WILDS hands scikit-learn the labels that occur.
    """
    return f1_of_confusion(confusion_matrix(labels, predictions))


def confusion_matrix(labels: Array, predictions: Array) -> Array:
    """Return how many samples of each class, in rows, got each prediction, in columns: (classes, classes), int64."""
    size = 1 + int(max(labels.max(), predictions.max()))
    return np.bincount(labels.astype(np.int64) * size + predictions, minlength=size * size).reshape(size, size)


def f1_of_confusion(confusion: Array) -> float:
    """Return `macro_f1` of a confusion matrix."""
    samples, predicted, hits = confusion.sum(axis=1), confusion.sum(axis=0), np.diagonal(confusion)
    occurs = samples > 0
    return float(np.mean(2 * hits[occurs] / (samples + predicted)[occurs]))


def recall_at_k(ranks: Array, k: int) -> float:
    """Return the share of queries with a positive in the top k, from the ranks of their first positives.

    So CLIP papers define it (Radford et al. 2021): one hit is enough, also where a query has several positives.
    """
    return float(np.mean(ranks <= k))


def chance_recall_at_k(num_positives: Array, num_candidates: int, k: int) -> float:
    """Return the expected recall@k of a random order, for queries with these numbers of positives."""
    drawn = min(k, num_candidates)
    values, counts = np.unique(num_positives, return_counts=True)
    misses = [math.comb(num_candidates - int(value), drawn) / math.comb(num_candidates, drawn) for value in values]
    return float(1 - np.average(misses, weights=counts))


def jaccard_of_top(ranked: Sequence[int], right: Sequence[int]) -> float:
    """Return the Jaccard index of the right candidates and as many of the best-ranked (Bitton et al. 2022, Sec. 4.1).

    `ranked` are distinct candidates, best first, at least as many as are right.
    """
    chosen, wanted = set(ranked[: len(right)]), set(right)
    return len(chosen & wanted) / len(chosen | wanted)


def chance_jaccard_of_top(num_right: int, num_candidates: int) -> float:
    """Return the expected `jaccard_of_top` of a random order: hits follow the hypergeometric distribution."""
    ways = math.comb(num_candidates, num_right)
    return math.fsum(
        math.comb(num_right, hits)
        * math.comb(num_candidates - num_right, num_right - hits)
        / ways
        * hits
        / (2 * num_right - hits)
        for hits in range(1, num_right + 1)
    )


def chance_macro_f1(class_sizes: Sequence[int], num_classes: int, *, draws: int = 200, seed: int = 0) -> float:
    """Return the expected `macro_f1` of guessing each of `num_classes` classes alike, by drawing guesses.

    `class_sizes` are the numbers of samples of the classes that have some. There is no closed form; 200 draws are
    within a few thousandths of the value itself where there are as many samples as in iWildCam.
    """
    sizes = np.asarray(class_sizes)
    generator = np.random.default_rng(seed)
    total = 0.0
    for _ in range(draws):
        guesses = generator.multinomial(sizes, np.full(num_classes, 1 / num_classes))  # (classes with samples, classes)
        hits, predicted = np.diagonal(guesses), guesses.sum(axis=0)[: len(sizes)]
        total += float(np.mean(2 * hits / (sizes + predicted)))
    return total / draws


def chance_worst_group_accuracy(group_sizes: Sequence[int], hit_rate: float) -> float:
    """Return the expected accuracy of the worst group when every sample is a hit with probability `hit_rate`.

    It is lower than `hit_rate`, as the smallest of several noisy numbers: the integral of P(all groups reach t).
    """
    # P(accuracy of the group >= t) changes at the multiples of 1 / size alone.
    steps = np.unique(np.concatenate([np.arange(1, size + 1) / size for size in group_sizes]))
    reached = np.ones(len(steps))
    for size in group_sizes:
        # Guarded against 3 * (1 / 3) > 1: a step counts as its nearest multiple where it is one.
        needed = np.ceil(steps * size - 1e-9).astype(int)
        reached *= _binomial_tail(size, hit_rate)[needed]
    return float(np.sum(np.diff(steps, prepend=0.0) * reached))


def _binomial_tail(size: int, hit_rate: float) -> Array:
    """Return P(hits >= j) for j = 0..size."""
    if hit_rate in (0.0, 1.0):
        return np.array([1.0] + [hit_rate] * size)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, size + 1)))])
    hits = np.arange(size + 1)
    log_choices = log_factorial[size] - log_factorial - log_factorial[::-1]
    probability = np.exp(log_choices + hits * math.log(hit_rate) + (size - hits) * math.log1p(-hit_rate))
    tail: Array = np.cumsum(probability[::-1])[::-1]
    return tail
