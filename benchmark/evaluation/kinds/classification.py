"""Zero-shot classification: choose the class whose prompts are nearest to the image; scored by all or by groups."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa

from benchmark.evaluation import metrics
from benchmark.evaluation.estimators import Estimator, GroupHits, MacroF1, SampleMean, WorstGroup
from benchmark.evaluation.kinds.base import DeclaredChance, Metrics, Task, TaskMetrics
from benchmark.evaluation.predictions import TOP, checked_top5, top5_of
from benchmark.evaluation.samples import (
    CLASSNAMES,
    TEMPLATES,
    EvalSet,
    Sample,
    SetError,
    numbers_of,
    part_of,
    read_lines,
    read_prompts,
)
from benchmark.runtime.errors import UserError
from benchmark.runtime.files import Json

if TYPE_CHECKING:
    from torch import Tensor

    from benchmark.evaluation.encoding import TaskEncoder

Array = np.ndarray

IMAGES_AT_ONCE = 4096  # against all classes, to bound memory
GROUP_RADIX = 1000  # of a group by two fields
MAX_GROUPS = 100_000  # whose accuracies are written one by one
MACRO_F1 = "F1-macro_all"

CLASSIFICATION_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("label", pa.int32()),
        ("prediction", pa.int32()),
        ("score", pa.float32()),
        ("top5", pa.list_(pa.int32())),
        ("group", pa.int32()),
        ("num_classes", pa.int32()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class ZeroShotClassification(Task):
    """Choose the class whose prompts (class names in templates) are nearest to the image (Radford et al. 2021).

    Predictions: one row per image, sorted by key:

        key          string        the sample's key in the evaluation set
        label        int32         the right class, an index into classnames.txt
        prediction   int32         the class with the highest similarity
        score        float32       cosine similarity of the image and the right class
        top5         list<int32>   the five nearest classes, best first; all classes where there are fewer
        group        int32         the sample's group; null in tasks without groups; where a task groups by two fields,
                                   the first one's value and 1000 times the second's
        num_classes  int32         the same in every row
    """

    main_metric: str = "acc1"
    num_classes: int | None = None  # known number of classes; None: any
    macro: bool = False  # also WILDS' macro recall and F1, over the classes that have samples (iWildCam)

    kind: ClassVar[str] = "classification"
    schema: ClassVar[pa.Schema] = CLASSIFICATION_SCHEMA
    set_files: ClassVar[tuple[str, ...]] = (CLASSNAMES, TEMPLATES)
    nullable: ClassVar[frozenset[str]] = frozenset({"group"})
    answer_columns: ClassVar[tuple[str, ...]] = ("key", "label", "group", "num_classes")

    # --- Evaluation set --------------------------------------------------------------------------------------------

    def size_faults(self, folder: Path, num_samples: int) -> list[str]:
        faults = super().size_faults(folder, num_samples)
        if self.num_classes is not None and (found := len(read_lines(folder / CLASSNAMES))) != self.num_classes:
            faults.append(f"{found} classes instead of {self.num_classes}")
        return faults

    def notes(self, folder: Path) -> list[str]:
        """Return what a user should know of the set's lists, where no known number of classes says it."""
        classnames, templates = read_prompts(folder)
        notes = []
        empty = [str(number) for number, name in enumerate(classnames, 1) if not name]
        if empty and self.num_classes != len(classnames):
            notes.append(
                f"{folder / CLASSNAMES}: line {', '.join(empty)} of {len(classnames)} is empty, and counts as a "
                "class without a name, as clip_benchmark counts it"
            )
        if same := sum("{c}" not in template for template in templates):
            notes.append(
                f"{folder / TEMPLATES}: {same} of {len(templates)} lines have no {{c}}, and are the same prompt for "
                "every class"
            )
        return notes

    # --- Predictions -----------------------------------------------------------------------------------------------

    def predict(self, eval_set: EvalSet, encoder: TaskEncoder) -> pa.Table:
        samples = eval_set.samples
        classnames, templates = read_prompts(eval_set.folder)
        labels = np.array([label_of(sample, len(classnames)) for sample in samples])
        groups = [self._group_of(sample) for sample in samples]
        classes = encoder.encode_classes(classnames, templates)
        nearest = nearest_classes(encoder, encoder.encode_images(samples), classes, labels)
        columns = {
            "key": [sample.key for sample in samples],
            "label": labels,
            "prediction": nearest.top5[:, 0],
            "score": nearest.score,
            "top5": list(nearest.top5),
            "group": groups,
            "num_classes": np.full(len(labels), len(classnames)),
        }
        return pa.table(columns, schema=self.schema)

    def _group_of(self, sample: Sample) -> int | None:
        return None

    def check_table(self, predictions: pa.Table, where: str) -> None:
        super().check_table(predictions, where)
        num_classes = predictions["num_classes"].to_numpy()
        if num_classes.min() != num_classes.max() or num_classes[0] < 1:
            raise UserError(f"{where}: num_classes is not one positive number in all rows", code="results-invalid")
        label = predictions["label"].to_numpy()
        if label.min() < 0 or label.max() >= num_classes[0]:
            raise UserError(f"{where}: a label is outside 0..{num_classes[0] - 1}", code="results-invalid")
        top5 = checked_top5(predictions, int(num_classes[0]), where)
        if not np.array_equal(top5[:, 0], predictions["prediction"].to_numpy()):
            raise UserError(f"{where}: a prediction is not the first of its top5", code="results-invalid")
        self._check_groups(predictions, where)

    def _check_groups(self, predictions: pa.Table, where: str) -> None:
        if predictions["group"].null_count != predictions.num_rows:
            raise UserError(f"{where}: the task has no groups, but the column group has values", code="results-invalid")

    def expected_counts(self, predictions: pa.Table) -> dict[str, Json]:
        found = predictions["num_classes"][0].as_py()
        is_other = self.num_classes is not None and self.num_classes != found
        return super().expected_counts(predictions) | ({"expected_classes": self.num_classes} if is_other else {})

    # --- Metrics ---------------------------------------------------------------------------------------------------

    def metrics(self, predictions: pa.Table) -> TaskMetrics:
        found, chances = self._own_metrics(predictions)
        found["num_samples"] = predictions.num_rows
        return TaskMetrics(found, chances)

    def _own_metrics(self, predictions: pa.Table) -> tuple[Metrics, dict[str, float]]:
        label, prediction = predictions["label"].to_numpy(), predictions["prediction"].to_numpy()
        num_classes = num_classes_of(predictions)
        guess = 1 / num_classes
        found: Metrics = {
            "acc1": metrics.accuracy(label, prediction),
            "acc5": metrics.top_k_accuracy(label, top5_of(predictions)) if num_classes >= TOP else None,
            "mean_per_class_recall": metrics.mean_per_class_recall(label, prediction),
        }
        chances = {"acc1": guess, "mean_per_class_recall": guess}
        if num_classes >= TOP:
            chances["acc5"] = TOP / num_classes
        if self.macro:
            found["acc_avg"] = found["acc1"]
            found["recall-macro_all"] = found["mean_per_class_recall"]
            found[MACRO_F1] = metrics.macro_f1(label, prediction)
            class_sizes = np.unique(label, return_counts=True)[1].tolist()
            chances[MACRO_F1] = metrics.chance_macro_f1(class_sizes, num_classes)
        return found, chances

    def known_main_metrics(self) -> list[str]:
        return ["acc1", "acc5", "mean_per_class_recall", *([MACRO_F1] if self.macro else [])]

    @property
    def declared_chance(self) -> DeclaredChance | None:
        if not self.num_classes:
            return None
        is_exact = self.main_metric in ("acc1", "mean_per_class_recall")
        return DeclaredChance(1 / self.num_classes, "exact" if is_exact else "upper bound")

    @property
    def is_share_of_samples(self) -> bool:
        return self.main_metric == "acc1"

    # --- Uncertainty -----------------------------------------------------------------------------------------------

    def estimator(self) -> Estimator:
        return MacroF1() if self.main_metric == MACRO_F1 else super().estimator()

    def contributions(self, predictions: pa.Table) -> SampleMean:
        labels = predictions["label"].to_numpy()
        if self.main_metric == "acc5":
            return SampleMean(is_in_top5(predictions).astype(float))
        is_hit = labels == predictions["prediction"].to_numpy()
        if self.main_metric == "acc1":
            return SampleMean(is_hit.astype(float))
        if self.main_metric != "mean_per_class_recall":
            raise self._without_error()
        _, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
        shares = is_hit * len(labels) / (len(counts) * counts[places])
        return SampleMean(shares, places, float(len(counts) ** 2 / np.sum(1 / counts)))


@dataclass(frozen=True)
class GroupField:
    """One number of the vector in a sample's `.npy`, by which samples are grouped."""

    name: str  # of the group in the metrics' names: acc_region:3
    place: int  # in the vector
    names: tuple[str, ...] = ()  # of its values; empty: they are called by their numbers
    rest: int | None = None  # the value that gathers what belongs to no group ("Other")


@dataclass(frozen=True, kw_only=True)
class GroupedClassification(ZeroShotClassification):
    """Zero-shot classification scored by its worst group; `.npy` members hold each sample's groups.

    Metrics are named as by WILDS: acc_avg, acc_<field>:<value>, count_<field>:<value>, and acc_wg where there is one
    field, acc_worst_<field> where there are several; acc_top5 instead of acc with `top5`.
    """

    main_metric: str = "acc_wg"
    group_fields: tuple[GroupField, ...] = (GroupField("group", 0),)
    top5: bool = False  # a hit is a label among the five nearest classes

    @property
    def prefix(self) -> str:
        """Return what the groups' metrics begin with."""
        return "acc_top5" if self.top5 else "acc"

    def _worst_name(self, field: GroupField) -> str:
        return f"{self.prefix}_wg" if len(self.group_fields) == 1 else f"{self.prefix}_worst_{field.name}"

    def _worst_named_name(self, field: GroupField) -> str:
        """Return the metric of the worst group but for `rest`."""
        return f"{self.prefix}_worst_named_{field.name}"

    def _group_of(self, sample: Sample) -> int:
        fields = self.group_fields
        values = numbers_of(sample, [field.place for field in fields])
        for field, value in zip(fields, values, strict=True):
            limit = len(field.names) or (MAX_GROUPS if len(fields) == 1 else GROUP_RADIX)
            if not 0 <= value < limit:
                raise SetError(
                    f"{sample.tar_path}: {sample.key}.npy: there is no {field.name} {value}; "
                    f"values: {list(field.names) or f'0 to {limit - 1}'}"
                )
        return values[0] + (GROUP_RADIX * values[1] if len(values) == 2 else 0)

    def group_values(self, predictions: pa.Table) -> dict[GroupField, Array]:
        """Return each sample's group, (samples,), for each of the fields, from the column `group`."""
        groups = predictions["group"].to_numpy()
        if len(self.group_fields) == 1:
            return {self.group_fields[0]: groups}
        first, second = self.group_fields
        return {first: groups % GROUP_RADIX, second: groups // GROUP_RADIX}

    def _check_groups(self, predictions: pa.Table, where: str) -> None:
        group = predictions["group"]
        if group.null_count or np.min(group.to_numpy()) < 0:
            raise UserError(f"{where}: a group is null or negative", code="results-invalid")
        for field, values in self.group_values(predictions).items():
            if field.names and np.max(values) >= len(field.names):
                raise UserError(
                    f"{where}: a group is outside 0..{len(field.names) - 1}, the groups that have names",
                    code="results-invalid",
                )

    def is_hit(self, predictions: pa.Table) -> Array:
        """Return which samples are right, (samples,): their label is the nearest class, or among the nearest five."""
        if self.top5:
            return is_in_top5(predictions)
        is_hit: Array = predictions["label"].to_numpy() == predictions["prediction"].to_numpy()
        return is_hit

    def _own_metrics(self, predictions: pa.Table) -> tuple[Metrics, dict[str, float]]:
        found, chances = super()._own_metrics(predictions)
        num_classes, is_hit = num_classes_of(predictions), self.is_hit(predictions)
        guess = min(1.0, TOP / num_classes) if self.top5 else 1 / num_classes
        found[f"{self.prefix}_avg"] = float(np.mean(is_hit))
        for field, values in self.group_values(predictions).items():
            found |= _per_group(is_hit, values, self.prefix, field)
            worst = self._worst_name(field)
            found[worst] = metrics.worst_group_accuracy(is_hit, values)
            chances[worst] = _chance_of_worst(values, guess)
            if field.rest is not None and (named := values != field.rest).any():
                worst = self._worst_named_name(field)
                found[worst] = metrics.worst_group_accuracy(is_hit[named], values[named])
                chances[worst] = _chance_of_worst(values[named], guess)
        return found, chances

    def known_main_metrics(self) -> list[str]:
        fields = self.group_fields
        worst = [self._worst_name(field) for field in fields]
        worst_named = [self._worst_named_name(field) for field in fields if field.rest is not None]
        return [*super().known_main_metrics(), *worst, *worst_named]

    @property
    def declared_chance(self) -> DeclaredChance | None:
        found = super().declared_chance
        if found is None or found.meaning == "exact" or not self.top5:
            return found
        return DeclaredChance(min(1.0, TOP * found.value), found.meaning)

    def estimator(self) -> Estimator:
        for field in self.group_fields:
            if self.main_metric == self._worst_name(field):
                return WorstGroup(partial(self._hits_by, field))
            if self.main_metric == self._worst_named_name(field):
                return WorstGroup(partial(self._hits_by, field, only_named=True))
        return super().estimator()

    def _hits_by(self, field: GroupField, predictions: pa.Table, *, only_named: bool = False) -> GroupHits:
        is_hit, groups = self.is_hit(predictions), self.group_values(predictions)[field]
        counted = groups != field.rest if only_named else np.ones(len(groups), dtype=bool)
        return GroupHits(is_hit[counted], groups[counted])


@dataclass(frozen=True)
class Nearest:
    """The classes that are nearest to images, and how near each one's right class is."""

    top5: Array  # (images, 5 or fewer), best first
    score: Array  # (images,)


def nearest_classes(encoder: TaskEncoder, images: Tensor, classes: Tensor, labels: Array) -> Nearest:
    """Return the classes that are nearest to each image; `labels`, (images,), are the right ones."""
    top5, scores = [], []
    for start in range(0, len(images), IMAGES_AT_ONCE):
        block = encoder.similarities(images[start : start + IMAGES_AT_ONCE], classes)
        top5.append(metrics.top_k(block, TOP))
        scores.append(block[np.arange(len(block)), labels[start : start + IMAGES_AT_ONCE]])
    return Nearest(np.concatenate(top5), np.concatenate(scores))


def label_of(sample: Sample, num_classes: int) -> int:
    """Return a sample's class, from its `.cls`; raises SetError where it holds none."""
    text = part_of(sample, "cls").decode(errors="replace").strip()
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) < num_classes):
        raise SetError(
            f"{sample.tar_path}: {sample.key}.cls holds {text[:40]!r}; classnames.txt has classes 0..{num_classes - 1}"
        )
    return int(text)


def num_classes_of(predictions: pa.Table) -> int:
    """Return the number of classes, which stands in every row."""
    return int(predictions["num_classes"][0].as_py())


def is_in_top5(predictions: pa.Table) -> Array:
    """Return whether each sample's label is among its nearest five classes, (samples,)."""
    is_hit: Array = (top5_of(predictions) == predictions["label"].to_numpy()[:, None]).any(axis=1)
    return is_hit


def _per_group(is_hit: Array, values: Array, prefix: str, field: GroupField) -> Metrics:
    """Return accuracy and count of each group, 0 to the greatest, under WILDS' names."""
    per_group = metrics.accuracy_per_group(is_hit, values)
    sizes = np.bincount(values)
    names = [field.names[value] if field.names else str(value) for value in range(len(sizes))]
    found: Metrics = {f"{prefix}_{field.name}:{name}": per_group.get(value) for value, name in enumerate(names)}
    return found | {f"count_{field.name}:{name}": int(sizes[value]) for value, name in enumerate(names)}


def _chance_of_worst(values: Array, guess: float) -> float:
    sizes = np.bincount(values)
    return metrics.chance_worst_group_accuracy(sizes[sizes > 0].tolist(), guess)
