"""How well a score is known: standard errors and 95 % intervals of a task's main metric, and of a change of it.

They cover the test samples alone: how the score of the same trained models would vary over other samples of the same
kind. They say nothing about another training seed. Retrieval's candidates, and the samples of each class or group where
a metric goes by class or group, count as given in number.

Metrics that are means of independent samples have closed forms. Each such sample (an image; in retrieval an image with
all its captions; a cue of an association task) makes a contribution, and the metric is their mean:

- accuracy, top-5 accuracy, Jaccard index: the sample's value; the variance of an accuracy p is p (1 - p) / n
- mean per-class recall: the sample's hit, weighted so that all classes count alike: a stratified mean (Cochran 1977,
  "Sampling techniques", Sec. 5.3)
- recall@k over captions: a ratio of sums over images, linearised (Cochran 1977, Sec. 6.3), as an image's captions are
  hit or missed together

Macro F1 and the worst group's accuracy are bootstrapped (Efron & Tibshirani 1993), on counts: resampling rows is
drawing the counts of distinct rows from a multinomial distribution. For the worst group, rows are drawn within groups.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmark.evaluation import metrics
from benchmark.evaluation.predictions import CANDIDATE_BUCKETS, IMAGE_TO_TEXT, group_values
from benchmark.evaluation.tasks import Association, GroupedClassification, Retrieval, Task, ZeroShotClassification
from benchmark.runtime.errors import UserError

CONFIDENCE = 0.95
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
RESAMPLES = 1000
ROUNDING = 1e-20  # a variance below it is none; one hit among a million samples has 1e-12
BATCH = 100  # resamples at a time, which bounds memory

Array = np.ndarray
Predictions: TypeAlias = (
    pa.Table | Sequence[pa.Table]
)  # one model's, or those of several, of whose scores the mean is meant

_BUCKETS = {"avg_jaccard_score": (0, math.inf)} | {f"jaccard_score_{b}": ends for b, ends in CANDIDATE_BUCKETS.items()}


@dataclass(frozen=True)
class Uncertainty:
    """The standard error of a score and its 95 % interval, which need not be symmetric."""

    standard_error: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A change of a score (ours less theirs), its standard error and its 95 % interval."""

    difference: float
    standard_error: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class _Mean:
    """A metric as the mean of what its samples contribute."""

    contributions: Array  # (samples,)
    strata: Array | None  # (samples,): each sample's class where the number of samples per class is given
    size: float  # number of samples; with strata, that of a simple sample in which all classes alike do as well

    @property
    def value(self) -> float:
        return float(self.contributions.mean())

    @property
    def variance(self) -> float:
        """Return the mean's variance, zero where it is rounding alone."""
        count = len(self.contributions)
        if self.strata is None:
            variance = float(np.var(self.contributions) / count)
            return variance if variance > ROUNDING else 0.0
        names, places, counts = np.unique(self.strata, return_inverse=True, return_counts=True)
        centres = np.bincount(places, weights=self.contributions) / counts
        # A class of one sample has no spread of its own: its distance from the mean over classes errs upwards.
        single = counts == 1
        centres[single] = self.value * count / len(names)
        factors = np.where(single, 1.0, counts / np.maximum(counts - 1, 1))
        variance = float(np.sum(factors[places] * (self.contributions - centres[places]) ** 2) / count**2)
        return variance if variance > ROUNDING else 0.0


def uncertainty(task: Task, predictions: Predictions) -> Uncertainty:
    """Return how well the task's main metric is known.

    Of a mean of samples the interval is Wilson's (1927) at the effective number of samples, p (1 - p) / variance (Korn
    & Graubard 1998, "Confidence intervals for proportions"), which holds near 0 and 1 too. Of macro F1 it is made of
    the bootstrap's percentiles.

    The lowest of several accuracies is on average too low, its bootstrapped values are so once more, and where groups
    are about equally bad no bootstrap mends that (Fang & Santos 2019, "Inference on directionally differentiable
    functions"). So the worst group's interval is that of the lowest true accuracy: from the lowest of the groups' own
    lower limits to the lowest of their upper limits, these at 97.5 % for all groups at once (Bonferroni). It covers at
    95 % or more whichever group is truly the worst, and is wide where a group is small.

    Of several models' predictions of the same samples the mean score is meant; the ends of its interval are then, for
    the worst group, the means of theirs. Raises ValueError where the task has no main metric, or none that is known
    here, and where samples differ.
    """
    tables = _same_samples(task, [predictions] if isinstance(predictions, pa.Table) else list(predictions))
    weights = np.full(len(tables), 1 / len(tables))
    if (field := _worst_group_of(task)) is not None:
        is_hit, groups = _hits_by_group(task, tables, *field)
        error = float(_worst_group_draws(is_hit, groups, weights).std(ddof=1))
        ends = np.mean([_worst_group_ends(hits, groups) for hits in is_hit.T], axis=0)
        return Uncertainty(error, float(ends[0]), float(ends[1]))
    if task.main_metric == "F1-macro_all":
        draws = _macro_f1_draws(tables, weights)
        error = float(draws.std(ddof=1))
        if error == 0:  # every sample alike
            labels = tables[0]["label"].to_numpy()
            value = metrics.macro_f1(labels, tables[0]["prediction"].to_numpy())
            return Uncertainty(error, *wilson(value, len(labels)))
        tail = 100 * (1 - CONFIDENCE) / 2
        low, high = np.percentile(draws, [tail, 100 - tail])
        return Uncertainty(error, float(low), float(high))
    total = _combined(task, tables, weights)
    value, variance = total.value, total.variance
    size = value * (1 - value) / variance if variance > 0 and 0 < value < 1 else total.size
    return Uncertainty(math.sqrt(variance), *wilson(value, size))


def difference(task: Task, ours: Predictions, theirs: Predictions) -> Difference:
    """Return the change of the main metric from their predictions to ours, compared sample by sample.

    What makes a sample easy or hard for both cancels, so a change is known better than two scores are. The interval is
    the change ± 1.96 standard errors; for macro F1 and the worst group these are the paired bootstrap's. Either side
    may be several models' predictions, of whose scores the mean counts. Raises ValueError where the predictions are not
    of the same samples, and as `uncertainty` does.

    The worst group's change is known less surely: that the lowest of several accuracies is too low cancels only where
    both sides have as many groups near their worst. In simulations of 4 groups of 240 samples the interval covers in 95
    to 98 % of cases; where all groups are equal on one side and one stands apart on the other, in 86 %.
    """
    left, right = ([side] if isinstance(side, pa.Table) else list(side) for side in (ours, theirs))
    tables = _same_samples(task, [*left, *right])
    weights = np.array([1 / len(left)] * len(left) + [-1 / len(right)] * len(right))
    if (field := _worst_group_of(task)) is not None:
        is_hit, groups = _hits_by_group(task, tables, *field)
        value = float(weights @ [metrics.worst_group_accuracy(hits, groups) for hits in is_hit.T])
        error = float(_worst_group_draws(is_hit, groups, weights).std(ddof=1))
    elif task.main_metric == "F1-macro_all":
        scores = [metrics.macro_f1(each["label"].to_numpy(), each["prediction"].to_numpy()) for each in tables]
        value = float(weights @ scores)
        error = float(_macro_f1_draws(tables, weights).std(ddof=1))
    else:
        total = _combined(task, tables, weights)
        value, error = total.value, math.sqrt(total.variance)
    return difference_of(value, error)


def difference_of(value: float, standard_error: float) -> Difference:
    """Return a change with the interval that its standard error gives: ± 1.96 of them."""
    return Difference(value, standard_error, value - Z * standard_error, value + Z * standard_error)


def error_of_mean(standard_errors: Sequence[float]) -> float:
    """Return the standard error of a mean over tasks whose test samples are independent: they add in squares.

    Two tasks on the same images (CLEVR's two) count as independent here too.
    """
    return math.sqrt(math.fsum(error**2 for error in standard_errors)) / len(standard_errors)


def wilson(share: float, size: float, z: float = Z) -> tuple[float, float]:
    """Return the score interval of a share among `size` samples (Wilson 1927), within 0 and 1."""
    centre = (share + z * z / (2 * size)) / (1 + z * z / size)
    half = z / (1 + z * z / size) * math.sqrt(share * (1 - share) / size + z * z / (4 * size * size))
    # An end cannot be within the share itself, but rounding may put it there.
    return min(max(0.0, centre - half), share), max(min(1.0, centre + half), share)


# --- Samples -------------------------------------------------------------------------------------------------------


def _same_samples(task: Task, tables: Sequence[pa.Table]) -> list[pa.Table]:
    """Return the tables in one order of samples; raises ValueError where samples or their right answers differ."""
    if len(tables) < 2:
        return list(tables)
    order = ["direction", "key", "caption"] if isinstance(task, Retrieval) else ["key"]
    ordered = [table.sort_by([(name, "ascending") for name in order]) for table in tables]
    first = ordered[0]
    for other in ordered[1:]:
        keys, others = set(first["key"].to_pylist()), set(other["key"].to_pylist())
        if odd := sorted(keys ^ others):
            raise UserError(
                f"predictions of {task.name!r} are not of the same samples: {len(odd)} of {len(keys | others)} keys "
                f"are only on one side, such as {odd[0]!r}",
                code="results-differ",
            )
        if first.num_rows != other.num_rows or _answers(task, first) != _answers(task, other):
            raise UserError(
                f"predictions of {task.name!r} have the same keys but not the same right answers: their data differ",
                code="results-differ",
            )
    return ordered


def _answers(task: Task, table: pa.Table) -> pa.Table:
    """Return what a predictions table says about the samples and not about the model."""
    if isinstance(task, Retrieval):
        return table.select(["key", "direction", "caption", "num_positives"]).combine_chunks()
    if isinstance(task, Association):
        sizes = pc.list_value_length(table["ranked"])
        return table.select(["key", "cue", "associations"]).append_column("candidates", sizes).combine_chunks()
    return table.select(["key", "label", "group", "num_classes"]).combine_chunks()


# --- Means ---------------------------------------------------------------------------------------------------------


def _combined(task: Task, tables: Sequence[pa.Table], weights: Array) -> _Mean:
    """Return the weighted sum of several models' metrics, by sample."""
    means = [_mean_of(task, table) for table in tables]
    together: Array = np.sum([w * each.contributions for w, each in zip(weights, means, strict=True)], axis=0)
    return _Mean(together, means[0].strata, means[0].size)


def _mean_of(task: Task, table: pa.Table) -> _Mean:
    name = task.main_metric
    if isinstance(task, Retrieval):
        recalls = [_recall_of(table, each) for each in (["image@1", "text@1"] if name == "mean_recall@1" else [name])]
        return _simple(np.mean(recalls, axis=0))
    if isinstance(task, Association) and name in _BUCKETS:
        least, most = _BUCKETS[name]
        rows = zip(table["ranked"].to_pylist(), table["associations"].to_pylist(), strict=True)
        asked = [(order, right) for order, right in rows if least <= len(order) <= most]
        return _simple(np.array([metrics.jaccard_of_top(order, right) for order, right in asked]))
    if isinstance(task, ZeroShotClassification):
        labels, predictions = table["label"].to_numpy(), table["prediction"].to_numpy()
        if name in ("acc1", "acc5"):
            return _simple((labels == predictions if name == "acc1" else _in_top5(table)).astype(float))
        if name == "mean_per_class_recall":
            _, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
            contributions = (labels == predictions) * len(labels) / (len(counts) * counts[places])
            return _Mean(contributions, places, float(len(counts) ** 2 / np.sum(1 / counts)))
    raise UserError(f"task {task.name!r}: no standard error is known of its main metric {name!r}", code="task-invalid")


def _simple(contributions: Array) -> _Mean:
    return _Mean(contributions, None, len(contributions))


def _recall_of(table: pa.Table, name: str) -> Array:
    """Return each image's contribution, (images,), to the recall called `image...@k` or `text...@k`."""
    noun, k = name[:4], int(name.partition("@")[2])
    is_image = table["direction"].to_numpy(zero_copy_only=False) == IMAGE_TO_TEXT
    is_hit = table["rank"].to_numpy() <= k
    if noun == "text":
        contributions: Array = is_hit[is_image].astype(float)
        return contributions
    captions = table["num_positives"].to_numpy()[is_image]
    owner = np.repeat(np.arange(len(captions)), captions)
    hits = np.bincount(owner, weights=is_hit[~is_image], minlength=len(captions))
    recall = hits.sum() / captions.sum()
    linear: Array = recall + (hits - recall * captions) / captions.mean()
    return linear


def _in_top5(table: pa.Table) -> Array:
    top5 = table["top5"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
    is_hit: Array = (top5 == table["label"].to_numpy()[:, None]).any(axis=1)
    return is_hit


# --- Bootstrap -----------------------------------------------------------------------------------------------------


def _worst_group_of(task: Task) -> tuple[str, bool] | None:
    """Return the field whose worst group is the main metric, and whether only groups with a name count; None if not."""
    if not isinstance(task, GroupedClassification):
        return None
    names = {f"{task.prefix}_wg": (task.group_fields[0].name, False)} if len(task.group_fields) == 1 else {}
    for field in task.group_fields:
        names[f"{task.prefix}_worst_{field.name}"] = (field.name, False)
        names[f"{task.prefix}_worst_named_{field.name}"] = (field.name, True)
    return names.get(task.main_metric)


def _hits_by_group(task: Task, tables: Sequence[pa.Table], name: str, only_named: bool) -> tuple[Array, Array]:
    """Return the hits of each model, (samples, models), and each sample's group, (samples,)."""
    assert isinstance(task, GroupedClassification)
    field, groups = next((f, values) for f, values in group_values(task, tables[0]).items() if f.name == name)
    hits = [
        _in_top5(table) if task.top5 else table["label"].to_numpy() == table["prediction"].to_numpy()
        for table in tables
    ]
    is_hit = np.stack(hits, axis=1)
    if not only_named:
        return is_hit, groups
    named = groups != field.rest
    return is_hit[named], groups[named]


def _worst_group_draws(is_hit: Array, groups: Array, weights: Array) -> Array:
    """Return the weighted sum of the models' worst groups in each resample, (resamples,); groups keep their sizes."""
    generator = np.random.default_rng(0)
    worst = np.ones((RESAMPLES, len(weights)))
    for group in np.unique(groups):
        patterns, counts = np.unique(is_hit[groups == group], axis=0, return_counts=True)  # (patterns, models)
        size = counts.sum()
        worst = np.minimum(worst, generator.multinomial(size, counts / size, RESAMPLES) @ patterns / size)
    return worst @ weights


def _worst_group_ends(is_hit: Array, groups: Array) -> tuple[float, float]:
    """Return the interval of the lowest true accuracy; see `uncertainty`."""
    _, places = np.unique(groups, return_inverse=True)
    sizes = np.bincount(places)
    shares = np.bincount(places, weights=is_hit) / sizes
    all_at_once = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / 2 / len(sizes))
    lows = [wilson(share, size)[0] for share, size in zip(shares.tolist(), sizes.tolist(), strict=True)]
    highs = [wilson(share, size, all_at_once)[1] for share, size in zip(shares.tolist(), sizes.tolist(), strict=True)]
    return min(lows), min(highs)


def _macro_f1_draws(tables: Sequence[pa.Table], weights: Array) -> Array:
    """Return the weighted sum of the models' macro F1 in each resample, (resamples,)."""
    labels = tables[0]["label"].to_numpy().astype(np.int64)
    predictions = [table["prediction"].to_numpy().astype(np.int64) for table in tables]
    size = 1 + max(int(column.max()) for column in (labels, *predictions))
    cells = labels
    for column in predictions:  # renumbered at each step, so that the numbers stay small
        cells = np.unique(cells * size + column, return_inverse=True)[1].astype(np.int64)
    _, first, counts = np.unique(cells, return_index=True, return_counts=True)
    of_cells = [column[first] for column in predictions]
    return np.concatenate(
        [
            np.sum([w * _macro_f1(drawn, labels[first], p) for w, p in zip(weights, of_cells, strict=True)], axis=0)
            for drawn in _drawn_counts(counts)
        ]
    )


def _drawn_counts(counts: Array) -> Iterator[Array]:
    """Yield resampled counts of the cells, (batch, cells)."""
    generator = np.random.default_rng(0)
    for start in range(0, RESAMPLES, BATCH):
        yield generator.multinomial(counts.sum(), counts / counts.sum(), min(BATCH, RESAMPLES - start))


def _macro_f1(drawn: Array, labels: Array, predictions: Array) -> Array:
    """Return `metrics.macro_f1` of each resample, (batch,), from its counts, (batch, cells)."""
    classes = np.unique(labels)
    samples = _sums_by(drawn, labels, classes)
    predicted = _sums_by(drawn, predictions, classes)
    hits = _sums_by(drawn * (labels == predictions), labels, classes)
    f1 = 2 * hits / np.maximum(samples + predicted, 1)
    occurs = samples > 0
    shares: Array = (f1 * occurs).sum(axis=1) / occurs.sum(axis=1)
    return shares


def _sums_by(drawn: Array, names: Array, classes: Array) -> Array:
    """Return the counts of the cells with each name, (batch, classes)."""
    order = np.argsort(names, kind="stable")
    present, starts = np.unique(names[order], return_index=True)
    sums = np.add.reduceat(drawn[:, order], starts, axis=1)  # (batch, names that are there)
    found = np.zeros((len(drawn), len(classes)), dtype=sums.dtype)
    wanted = np.isin(present, classes)
    found[:, np.searchsorted(classes, present[wanted])] = sums[:, wanted]
    return found
