"""Standard errors and intervals: against formulas, scipy, brute-force loops, and by how often they cover the truth."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from benchmark.evaluation.estimators import Uncertainty, wilson
from benchmark.evaluation.kinds.association import ASSOCIATION_SCHEMA
from benchmark.evaluation.kinds.classification import CLASSIFICATION_SCHEMA
from benchmark.evaluation.kinds.faces import FACE_SCHEMA
from benchmark.evaluation.kinds.retrieval import RETRIEVAL_SCHEMA
from benchmark.evaluation.metrics import jaccard_of_top, macro_f1
from benchmark.evaluation.results import metrics_of
from benchmark.evaluation.tasks import (
    Association,
    FaceAttributes,
    GroupedClassification,
    GroupField,
    Retrieval,
    Task,
    ZeroShotClassification,
)
from benchmark.evaluation.uncertainty import difference, error_of_mean, uncertainty
from tests.conftest import user_error

ACCURACY = ZeroShotClassification(name="toy/accuracy", title="Accuracy")
RECALL = ZeroShotClassification(name="toy/recall", title="Recall", main_metric="mean_per_class_recall")
TOP5 = ZeroShotClassification(name="toy/top5", title="Top 5", main_metric="acc5")
MACRO = ZeroShotClassification(name="toy/macro", title="Macro F1", main_metric="F1-macro_all", macro=True)
WORST = GroupedClassification(name="toy/worst", title="Worst group")
NAMED = GroupedClassification(
    name="toy/named",
    title="Worst named region",
    main_metric="acc_worst_named_region",
    group_fields=(GroupField("year", 0), GroupField("region", 1, rest=2)),
)
PAIRS = Retrieval(name="toy/pairs", title="Pairs")
CUES = Association(name="toy/cues", title="Cues")
NUM_CLASSES = 6


def classification(
    labels: np.ndarray, predictions: np.ndarray, groups: np.ndarray | None = None, num_classes: int = NUM_CLASSES
) -> pa.Table:
    """Return a predictions table; the four classes after the predicted one are next nearest."""
    count = len(labels)
    top5 = (predictions[:, None] + np.arange(min(5, num_classes))) % num_classes
    columns = {
        "key": [f"{row:06d}" for row in range(count)],
        "label": labels.astype(np.int32),
        "prediction": predictions.astype(np.int32),
        "score": np.zeros(count, np.float32),
        "top5": pa.array(list(top5.astype(np.int32)), pa.list_(pa.int32())),
        "group": pa.nulls(count, pa.int32()) if groups is None else pa.array(groups.astype(np.int32)),
        "num_classes": np.full(count, num_classes, np.int32),
    }
    return pa.table(columns, schema=CLASSIFICATION_SCHEMA)


def guessed(generator: np.random.Generator, labels: np.ndarray, hit_rates: np.ndarray | float) -> np.ndarray:
    """Return predictions that are right at these rates."""
    is_hit = generator.random(len(labels)) < hit_rates
    return np.where(is_hit, labels, (labels + generator.integers(1, NUM_CLASSES, len(labels))) % NUM_CLASSES)


def with_hits(hits: int, count: int) -> pa.Table:
    labels = np.arange(count) % NUM_CLASSES
    return classification(labels, np.where(np.arange(count) < hits, labels, (labels + 1) % NUM_CLASSES))


def skewed(seed: int, count: int = 240) -> pa.Table:
    """Return samples of unequal classes, known unequally well."""
    generator = np.random.default_rng(seed)
    labels = np.random.default_rng(9).choice(NUM_CLASSES, count, p=[0.4, 0.25, 0.15, 0.1, 0.07, 0.03])
    return classification(labels, guessed(generator, labels, np.linspace(0.8, 0.3, NUM_CLASSES)[labels]))


def grouped(seed: int, sizes: tuple[int, ...] = (80, 70, 50), rates: tuple[float, ...] = (0.5, 0.55, 0.6)) -> pa.Table:
    generator = np.random.default_rng(seed)
    groups = np.repeat(np.arange(len(sizes)), sizes)
    labels = np.arange(len(groups)) % NUM_CLASSES
    return classification(labels, guessed(generator, labels, np.array(rates)[groups]), groups)


def retrieval(seed: int, num_images: int = 120) -> pa.Table:
    """Return images of 1 to 6 captions; an image's captions are found together or not."""
    generator = np.random.default_rng(seed)
    counts = np.random.default_rng(7).integers(1, 7, num_images)
    ease = generator.beta(0.7, 0.7, num_images)
    owner = np.repeat(np.arange(num_images), counts)
    total = int(counts.sum())
    is_hit = np.concatenate([generator.random(num_images) < ease, generator.random(total) < ease[owner]])
    starts = np.cumsum(counts) - counts
    own = np.concatenate([starts, owner])
    limits = np.repeat([total, num_images], [num_images, total])
    sizes = np.concatenate([counts, np.ones(total, int)])
    top5 = []
    for right, step, limit, hit in zip(own.tolist(), sizes.tolist(), limits.tolist(), is_hit.tolist(), strict=True):
        others = [(right + step + place) % limit for place in range(4)]
        top5.append([right, *others] if hit else [others[0], right, *others[1:]])
    keys = [f"{image:04d}" for image in range(num_images)]
    columns = {
        "key": [*keys, *(keys[image] for image in owner)],
        "direction": ["image_to_text"] * num_images + ["text_to_image"] * total,
        "caption": pa.array([None] * num_images + (np.arange(total) - starts[owner]).tolist(), pa.int32()),
        "num_positives": pa.array(sizes.tolist(), pa.int32()),
        "rank": pa.array(np.where(is_hit, 1, 2).tolist(), pa.int32()),
        "score": np.zeros(num_images + total, np.float32),
        "top5": pa.array(top5, pa.list_(pa.int32())),
    }
    return pa.table(columns, schema=RETRIEVAL_SCHEMA)


def association(seed: int, count: int = 150) -> pa.Table:
    generator = np.random.default_rng(seed)
    sizes = np.where(np.arange(count) % 3, 10, 6)
    ranked = [generator.permutation(int(size)).astype(np.int32) for size in sizes]
    right = [np.arange(2 + row % 3, dtype=np.int32) for row in range(count)]
    columns = {
        "key": [f"{row:04d}" for row in range(count)],
        "cue": ["word"] * count,
        "associations": pa.array(right, pa.list_(pa.int32())),
        "ranked": pa.array(ranked, pa.list_(pa.int32())),
        "score": np.zeros(count, np.float32),
    }
    return pa.table(columns, schema=ASSOCIATION_SCHEMA)


def taken(table: pa.Table, rows: np.ndarray) -> pa.Table:
    return table.take(pa.array(rows))


def columns_of(table: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels, predictions = table["label"].to_numpy(), table["prediction"].to_numpy()
    return labels, labels == predictions, table["group"].to_numpy(zero_copy_only=False)


# --- One score -----------------------------------------------------------------------------------------------------


def test_accuracy_has_the_binomial_error_and_wilsons_interval() -> None:
    found = uncertainty(ACCURACY, with_hits(80, 100))
    assert found.standard_error == pytest.approx(math.sqrt(0.8 * 0.2 / 100))
    exact = stats.binomtest(80, 100).proportion_ci(0.95, "wilson")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high))


def test_no_hit_and_no_miss_still_have_an_interval() -> None:
    none, every = uncertainty(ACCURACY, with_hits(0, 100)), uncertainty(ACCURACY, with_hits(100, 100))
    assert (none.standard_error, none.low) == (0, 0) and none.high == pytest.approx(0.036994, abs=1e-6)
    assert (every.standard_error, every.high) == (0, 1) and every.low == pytest.approx(1 - 0.036994, abs=1e-6)


def test_top5_counts_the_five_nearest() -> None:
    table = with_hits(30, 60)  # of the others the label is the sixth of six
    assert uncertainty(TOP5, table) == uncertainty(ACCURACY, table)
    assert metrics_of(TOP5, table)["main_metric"] == 0.5


def test_mean_per_class_recall_by_hand() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1])
    found = uncertainty(RECALL, classification(labels, np.array([0, 0, 5, 5, 1, 5])))
    # Two classes with recall 1/2, of 4 samples and of 2: (1/2)^2 (.25 / 3 + .25 / 1).
    assert found.standard_error == pytest.approx(math.sqrt(0.25 * (0.25 / 3 + 0.25)))
    assert found.low < 0.5 < found.high


def test_a_class_of_one_sample_counts_by_its_distance_from_the_mean() -> None:
    labels = np.array([0, 0, 1])
    # Recalls 1 and 0; only the second class adds, by (1/2 * (0 - 1/2))^2.
    assert uncertainty(RECALL, classification(labels, np.array([0, 0, 5]))).standard_error == pytest.approx(0.25)


def test_association_is_a_mean_over_the_cues_of_the_bucket() -> None:
    table = association(0)
    rows = zip(table["ranked"].to_pylist(), table["associations"].to_pylist(), strict=True)
    values = np.array([jaccard_of_top(order, right) for order, right in rows if len(order) == 10])
    found = uncertainty(CUES, table)
    oracle = stats.bootstrap((values,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(0))
    assert found.standard_error == pytest.approx(values.std() / math.sqrt(len(values)))
    assert found.standard_error == pytest.approx(oracle.standard_error, rel=0.06)
    assert (found.low, found.high) == pytest.approx(tuple(oracle.confidence_interval), abs=0.012)


def test_retrieval_takes_an_image_with_all_its_captions() -> None:
    table = retrieval(0)
    found = uncertainty(PAIRS, table)
    is_image = np.array(table["direction"].to_pylist()) == "image_to_text"
    is_hit, captions = table["rank"].to_numpy() == 1, table["num_positives"].to_numpy()[is_image]
    owner = np.repeat(np.arange(120), captions)
    hits = np.bincount(owner, weights=is_hit[~is_image])
    generator = np.random.default_rng(0)
    drawn = generator.integers(0, 120, (4000, 120))
    scores = (is_hit[is_image][drawn].mean(axis=1) + hits[drawn].sum(axis=1) / captions[drawn].sum(axis=1)) / 2
    assert found.standard_error == pytest.approx(scores.std(), rel=0.05)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(scores, [2.5, 97.5])), abs=0.012)
    # Captions of an image go together, so that captions alone would promise too much.
    share = is_hit[~is_image].mean()
    assert found.standard_error > 1.1 * math.sqrt(share * (1 - share) / (len(owner) + 120))


@pytest.mark.parametrize("noun", ["image", "text"])
def test_recall_of_one_direction_has_an_error_too(noun: str) -> None:
    task = Retrieval(name="toy/one", title="One", main_metric=f"{noun}_retrieval_recall@5")
    found = metrics_of(task, retrieval(0))
    assert found["main_metric"] == 1 and found["standard_error"] == 0 and 0.95 < found["interval_low"] < 1


def test_macro_f1_agrees_with_scipys_bootstrap_of_rows() -> None:
    table = skewed(0)
    labels, predictions = table["label"].to_numpy(), table["prediction"].to_numpy()
    oracle = stats.bootstrap(
        (labels, predictions),
        macro_f1,
        paired=True,
        vectorized=False,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(1),
    )
    found = uncertainty(MACRO, table)
    assert found.standard_error == pytest.approx(oracle.standard_error, rel=0.08)
    assert (found.low, found.high) == pytest.approx(tuple(oracle.confidence_interval), abs=0.015)
    assert uncertainty(MACRO, table) == found


def test_a_prediction_outside_the_labels_costs_the_others_in_the_bootstrap_too() -> None:
    labels = np.repeat([0, 1], 50)
    table = classification(labels, np.where(np.arange(100) % 4, labels, 5))
    expected = f1_score(labels, table["prediction"].to_numpy(), labels=[0, 1], average="macro")
    found = uncertainty(MACRO, table)
    assert found.low < expected < found.high
    assert (found.low + found.high) / 2 == pytest.approx(expected, abs=0.01)


def test_perfect_macro_f1_still_has_an_interval() -> None:
    found = uncertainty(MACRO, with_hits(60, 60))
    assert found.standard_error == 0 and found.high == 1 and found.low == pytest.approx(wilson(1, 60)[0])


def test_worst_group_is_resampled_within_groups() -> None:
    table = grouped(0)
    _, is_hit, groups = columns_of(table)
    generator = np.random.default_rng(0)
    worst = [
        min(generator.choice(is_hit[groups == g], (groups == g).sum()).mean() for g in range(3)) for _ in range(2000)
    ]
    assert uncertainty(WORST, table).standard_error == pytest.approx(np.std(worst), rel=0.08)


def test_interval_of_the_worst_group_is_from_the_lowest_lower_to_the_lowest_upper_limit() -> None:
    labels = np.zeros(110, int)
    groups = np.repeat([0, 1], [100, 10])
    is_hit = np.concatenate([np.arange(100) < 50, np.arange(10) < 6])
    found = uncertainty(WORST, classification(labels, np.where(is_hit, 0, 1), groups))
    assert found.low == pytest.approx(wilson(0.6, 10)[0])  # the small group may be the worst one
    assert found.high == pytest.approx(wilson(0.5, 100, stats.norm.ppf(1 - 0.025 / 2))[1])


def test_only_groups_with_a_name_count_where_the_metric_says_so() -> None:
    labels = np.zeros(90, int)
    regions = np.repeat([0, 1, 2], 30)
    is_hit = np.concatenate([np.arange(30) < 20, np.arange(30) < 15, np.arange(30) < 3])
    table = classification(labels, np.where(is_hit, 0, 1), 1000 * regions + 4)
    found = metrics_of(NAMED, table)
    assert found["main_metric"] == 0.5
    assert 0.3 < found["interval_low"] < 0.5 < found["interval_high"] < 0.72


BY_METRIC: list[tuple[Task, Callable[[int], pa.Table], str]] = [
    *((MACRO, skewed, name) for name in ("acc1", "acc5", "mean_per_class_recall", "F1-macro_all")),
    *((CUES, association, name) for name in ("avg_jaccard_score", "jaccard_score_6", "jaccard_score_5-6")),
    *((PAIRS, retrieval, f"{noun}_retrieval_recall@{k}") for noun in ("image", "text") for k in (1, 5, 10)),
    *((NAMED, grouped, f"acc_worst_{field}") for field in ("year", "region", "named_region")),
    (replace(WORST, top5=True), grouped, "acc_top5_wg"),
]


@pytest.mark.parametrize(("task", "make", "name"), BY_METRIC, ids=lambda each: each if isinstance(each, str) else "")
def test_every_metric_that_can_be_the_main_one_has_an_interval(
    task: Task, make: Callable[[int], pa.Table], name: str
) -> None:
    found = metrics_of(replace(task, main_metric=name), make(0))
    assert found["main_metric"] == found[name]
    assert found["interval_low"] <= found["main_metric"] <= found["interval_high"]
    assert found["interval_low"] < found["interval_high"]


# --- Coverage ------------------------------------------------------------------------------------------------------


def coverage(found: Callable[[np.random.Generator], Uncertainty], truth: float, tables: int = 300) -> float:
    generator = np.random.default_rng(11)
    inside = 0
    for _ in range(tables):
        interval = found(generator)
        inside += interval.low <= truth <= interval.high
    return inside / tables


@pytest.mark.parametrize(("count", "rate"), [(200, 0.5), (200, 0.06)])
def test_intervals_of_accuracy_cover_the_truth(count: int, rate: float) -> None:
    labels = np.arange(count) % NUM_CLASSES
    share = coverage(lambda g: uncertainty(ACCURACY, classification(labels, guessed(g, labels, rate))), rate)
    assert 0.91 <= share <= 0.98


def test_intervals_of_mean_per_class_recall_cover_the_truth() -> None:
    labels = np.repeat(np.arange(NUM_CLASSES), [90, 50, 30, 20, 10, 5])
    rates = np.linspace(0.8, 0.2, NUM_CLASSES)
    share = coverage(lambda g: uncertainty(RECALL, classification(labels, guessed(g, labels, rates[labels]))), 0.5)
    assert 0.91 <= share <= 0.98


def test_intervals_of_the_worst_group_cover_the_truth_where_percentiles_of_a_bootstrap_do_not() -> None:
    groups = np.repeat(np.arange(4), 60)
    labels = np.arange(240) % NUM_CLASSES

    def of_percentiles(generator: np.random.Generator) -> Uncertainty:
        shares = [np.mean(generator.random(60) < 0.5) for _ in range(4)]
        worst = np.min([generator.binomial(60, share, 400) / 60 for share in shares], axis=0)
        return Uncertainty(0, *np.percentile(worst, [2.5, 97.5]))

    ours = coverage(lambda g: uncertainty(WORST, classification(labels, guessed(g, labels, 0.5), groups)), 0.5)
    assert ours >= 0.94
    assert coverage(of_percentiles, 0.5) < 0.75


# --- Differences ---------------------------------------------------------------------------------------------------


def test_paired_accuracy_by_hand() -> None:
    labels = np.zeros(100, int)
    ours, theirs = np.arange(100) < 60, (np.arange(100) >= 10) & (np.arange(100) < 55)
    # 15 samples that only we have, none that only they have.
    found = difference(
        ACCURACY, classification(labels, np.where(ours, 0, 1)), classification(labels, np.where(theirs, 0, 1))
    )
    assert found.difference == pytest.approx(0.15)
    assert found.standard_error == pytest.approx(math.sqrt((0.15 - 0.15**2) / 100))
    assert (found.low, found.high) == pytest.approx((0.0800153, 0.2199847), abs=1e-7)


MAKERS: list[tuple[Task, Callable[[int], pa.Table]]] = [
    (ACCURACY, skewed),
    (RECALL, skewed),
    (TOP5, skewed),
    (MACRO, skewed),
    (WORST, grouped),
    (PAIRS, retrieval),
    (CUES, association),
]


@pytest.mark.parametrize(("task", "make"), MAKERS, ids=lambda each: getattr(each, "title", ""))
def test_a_change_is_the_difference_of_the_scores_and_of_nothing_it_is_zero(
    task: Task, make: Callable[[int], pa.Table]
) -> None:
    ours, theirs = make(1), make(2)
    scores = [metrics_of(task, table)["main_metric"] for table in (ours, theirs)]
    found = difference(task, ours, theirs)
    assert found.difference == pytest.approx(scores[0] - scores[1])
    assert found.low < found.difference < found.high
    back = difference(task, theirs, ours)
    assert (back.difference, back.standard_error) == pytest.approx((-found.difference, found.standard_error), rel=0.1)
    same = difference(task, ours, ours)
    assert (same.difference, same.standard_error) == pytest.approx((0, 0), abs=1e-12)


@pytest.mark.parametrize(("task", "make"), MAKERS, ids=lambda each: getattr(each, "title", ""))
def test_the_order_of_rows_does_not_matter(task: Task, make: Callable[[int], pa.Table]) -> None:
    ours, theirs = make(1), make(2)
    ours = taken(ours, np.random.default_rng(0).permutation(ours.num_rows))
    assert difference(task, ours, theirs).standard_error == pytest.approx(
        difference(task, make(1), theirs).standard_error
    )


def test_paired_macro_f1_and_worst_group_agree_with_loops_over_rows() -> None:
    generator = np.random.default_rng(0)
    for task, make in ((MACRO, skewed), (WORST, grouped)):
        ours, theirs = make(1), make(2)
        labels, _, groups = columns_of(ours)
        predictions = [table["prediction"].to_numpy() for table in (ours, theirs)]
        changes = []
        for _ in range(1500):
            if task is MACRO:
                rows = generator.integers(0, len(labels), len(labels))
                one, other = (macro_f1(labels[rows], each[rows]) for each in predictions)
            else:
                drawn = [generator.choice(np.flatnonzero(groups == g), (groups == g).sum()) for g in range(3)]
                one, other = (min((each == labels)[rows].mean() for rows in drawn) for each in predictions)
            changes.append(one - other)
        assert difference(task, ours, theirs).standard_error == pytest.approx(np.std(changes), rel=0.08)


def test_what_is_hard_for_both_makes_a_change_better_known() -> None:
    ours = grouped(1)
    labels, is_hit, groups = columns_of(ours)
    flipped = is_hit ^ (np.arange(len(labels)) % 20 == 0)
    theirs = classification(labels, np.where(flipped, labels, (labels + 1) % NUM_CLASSES), groups)
    for task in (ACCURACY, RECALL, MACRO, WORST):
        table = theirs if task is WORST else theirs.set_column(5, "group", pa.nulls(len(labels), pa.int32()))
        own = ours if task is WORST else ours.set_column(5, "group", pa.nulls(len(labels), pa.int32()))
        apart = math.hypot(uncertainty(task, own).standard_error, uncertainty(task, table).standard_error)
        assert difference(task, own, table).standard_error < 0.6 * apart


def test_other_samples_are_refused() -> None:
    with user_error("results-differ", match="'toy/accuracy'.*10 of 100.*'000090'"):
        difference(ACCURACY, with_hits(50, 100), with_hits(50, 90))


def test_other_right_answers_under_the_same_keys_are_refused() -> None:
    ours, theirs = with_hits(50, 100), with_hits(50, 100)
    labels = theirs["label"].to_numpy().copy()
    labels[3] = 0
    theirs = theirs.set_column(1, CLASSIFICATION_SCHEMA.field("label"), pa.array(labels))
    with user_error("results-differ", match="answers"):
        difference(ACCURACY, ours, theirs)


# --- Several models and tasks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "make"), MAKERS, ids=lambda each: getattr(each, "title", ""))
def test_the_mean_of_one_model_twice_is_known_as_well_as_the_model(task: Task, make: Callable[[int], pa.Table]) -> None:
    table = make(1)
    once, twice = uncertainty(task, table), uncertainty(task, [table, table])
    assert (twice.standard_error, twice.low, twice.high) == pytest.approx((once.standard_error, once.low, once.high))


@pytest.mark.parametrize(("task", "make"), MAKERS, ids=lambda each: getattr(each, "title", ""))
def test_the_mean_of_two_models_is_known_better_than_either(task: Task, make: Callable[[int], pa.Table]) -> None:
    tables = [make(1), make(2)]
    mean = uncertainty(task, tables).standard_error
    assert 0 < mean < max(uncertainty(task, table).standard_error for table in tables)
    assert difference(task, tables, tables).standard_error == pytest.approx(0, abs=1e-12)


def test_errors_of_independent_tasks_add_in_squares() -> None:
    assert error_of_mean([0.03, 0.04]) == pytest.approx(0.025)


def test_metrics_state_error_and_interval_of_the_main_metric() -> None:
    found = metrics_of(ACCURACY, with_hits(80, 100))
    assert found["standard_error"] == pytest.approx(0.04)
    assert (found["interval_low"], found["interval_high"]) == pytest.approx(wilson(0.8, 100))


def test_metrics_without_a_scalar_have_no_error() -> None:
    row = {name: [0.5 if name == "score" else "a" if name == "key" else 0] for name in FACE_SCHEMA.names}
    task = FaceAttributes(name="toy/faces", title="Faces")
    found = metrics_of(task, pa.table(row, schema=FACE_SCHEMA))
    assert [found[name] for name in ("main_metric", "standard_error", "interval_low", "interval_high")] == [None] * 4
    with user_error("task-invalid"):
        uncertainty(task, pa.table(row, schema=FACE_SCHEMA))
