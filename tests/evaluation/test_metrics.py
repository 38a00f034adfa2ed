"""Metrics on matrices whose answer is known by hand, against scikit-learn and against loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, top_k_accuracy_score

from benchmark.evaluation.metrics import (
    accuracy,
    accuracy_per_group,
    chance_recall_at_k,
    chance_worst_group_accuracy,
    first_positive,
    mean_per_class_recall,
    recall_at_k,
    top_k,
    top_k_accuracy,
    worst_group_accuracy,
)

LABELS = np.array([0, 0, 0, 2])
PREDICTIONS = np.array([0, 0, 1, 2])


def test_top_k_gives_the_best_first() -> None:
    assert top_k(np.array([[0.1, 0.9, 0.5], [3.0, 1.0, 2.0]]), 2).tolist() == [[1, 2], [0, 2]]


def test_of_equal_scores_the_smaller_index_comes_first() -> None:
    assert top_k(np.array([[1.0, 2.0, 2.0, 1.0]]), 4).tolist() == [[1, 2, 0, 3]]


def test_top_k_gives_all_candidates_where_there_are_fewer() -> None:
    assert top_k(np.array([[1.0, 2.0]]), 5).tolist() == [[1, 0]]


def test_top_k_leaves_the_scores_alone() -> None:
    scores = np.array([[1.0, 2.0]])
    top_k(scores, 1)
    assert scores.tolist() == [[1.0, 2.0]]


def test_first_positive_is_the_best_of_several() -> None:
    scores = np.array([[0.9, 0.8, 0.7, 0.6]])
    index, rank = first_positive(scores, np.array([[False, False, True, True]]))
    assert (index.tolist(), rank.tolist()) == ([2], [3])


def test_rank_of_a_tie_goes_by_index() -> None:
    scores = np.ones((3, 3))
    assert first_positive(scores, np.eye(3, dtype=bool))[1].tolist() == [1, 2, 3]


def test_rank_agrees_with_a_stable_sort_in_a_loop() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, size=(40, 12)).astype(np.float32)  # many ties
    positives = rng.random((40, 12)) < 0.2
    positives[:, 3] = True
    expected = []
    for row, right in zip(scores, positives, strict=True):
        order = sorted(range(12), key=lambda candidate: (-row[candidate], candidate))
        expected.append(next(place for place, candidate in enumerate(order, start=1) if right[candidate]))
    index, rank = first_positive(scores, positives)
    assert rank.tolist() == expected
    for k in (1, 5, 10):
        is_hit = np.take_along_axis(positives, top_k(scores, k), axis=1).any(axis=1)
        assert recall_at_k(rank, k) == is_hit.mean()
    assert positives[np.arange(40), index].all()


def test_accuracy_by_hand() -> None:
    assert accuracy(LABELS, PREDICTIONS) == 0.75


def test_mean_per_class_recall_ignores_classes_without_samples() -> None:
    assert mean_per_class_recall(LABELS, PREDICTIONS) == pytest.approx((2 / 3 + 1) / 2)


def test_top_k_accuracy_by_hand() -> None:
    assert top_k_accuracy(np.array([0, 1, 2]), np.array([[0, 1], [0, 1], [0, 1]])) == pytest.approx(2 / 3)


def test_classification_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    scores = rng.random((300, 9))
    labels = rng.integers(0, 9, size=300)
    ranked = top_k(scores, 5)
    assert accuracy(labels, ranked[:, 0]) == accuracy_score(labels, scores.argmax(axis=1))
    assert top_k_accuracy(labels, ranked) == top_k_accuracy_score(labels, scores, k=5)
    expected = balanced_accuracy_score(labels, scores.argmax(axis=1))
    assert mean_per_class_recall(labels, ranked[:, 0]) == pytest.approx(expected)


def test_empty_groups_are_skipped() -> None:
    is_hit = np.array([True, False, True, True])
    groups = np.array([0, 0, 7, 7])
    assert accuracy_per_group(is_hit, groups) == {0: 0.5, 7: 1.0}
    assert worst_group_accuracy(is_hit, groups) == 0.5


def test_chance_of_retrieval_by_hand() -> None:
    assert chance_recall_at_k(np.array([1, 1]), 4, 1) == 0.25
    assert chance_recall_at_k(np.array([1]), 4, 10) == 1.0
    # Two right of four, two drawn: missed in 1 of 6.
    assert chance_recall_at_k(np.array([2]), 4, 2) == pytest.approx(5 / 6)
    assert chance_recall_at_k(np.array([2, 1]), 4, 2) == pytest.approx((5 / 6 + 1 / 2) / 2)


@pytest.mark.parametrize("sizes", [(1,), (2, 2), (3, 4), (1, 3, 5)])
@pytest.mark.parametrize("hit_rate", [0.5, 1 / 3, 1.0])
def test_chance_of_the_worst_group_agrees_with_every_outcome(sizes: tuple[int, ...], hit_rate: float) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    expected = 0.0
    for outcome in itertools.product((False, True), repeat=len(groups)):
        probability = math.prod(hit_rate if hit else 1 - hit_rate for hit in outcome)
        expected += probability * worst_group_accuracy(np.array(outcome), groups)
    assert chance_worst_group_accuracy(sizes, hit_rate) == pytest.approx(expected)
