"""Predictions tables: each sample's prediction, by kind of task; every metric is computed from them alone.

A predictions table has one row per query and, by kind of task, exactly these columns, in this order (a contract:
what was published stays readable, and every metric is computed from the table alone).

Classification, one row per image, sorted by key:

    key          string        the sample's key in the evaluation set
    label        int32         the right class, an index into classnames.txt
    prediction   int32         the class with the highest similarity
    score        float32       cosine similarity of the image and the right class
    top5         list<int32>   the five nearest classes, best first; all classes where there are fewer
    group        int32         the sample's group; null in tasks without groups; where a task groups by two fields, the
                               first one's value and 1000 times the second's
    num_classes  int32         the same in every row

Retrieval, first one row per image (sorted by key), then one per caption (in the order of their images):

    key            string        the image's key
    direction      string        "image_to_text" or "text_to_image"
    caption        int32         which of the image's captions asks, from 0; null in image_to_text
    num_positives  int32         how many candidates are right
    rank           int32         the place of the first right candidate, 1 = best
    score          float32       its cosine similarity
    top5           list<int32>   the five nearest candidates, best first, counted from 0 among the rows of the other
                                 direction; all where there are fewer

Association, one row per cue, in the order of the data set:

    key           string        the instance's number in the data set
    cue           string        the word that asks
    associations  list<int32>   the candidates that are right, indices in ascending order
    ranked        list<int32>   all candidates, best first
    score         float32       mean cosine similarity of the cue and the right candidates

Face attributes, one row per image, sorted by key:

    key                string   the image's key
    age, gender, race  int32    the right classes of these objectives, indices into their class names
    race_binary        int32    1 unless the race is the one that is called White
    predicted_age, predicted_gender, predicted_race, predicted_toxic
                       int32    the class of each objective with the highest similarity
    score              float32  cosine similarity of the image and the right race

Equal similarities rank by index, the smaller first.
"""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmark.evaluation.tasks import (
    Association,
    FaceAttributes,
    GroupedClassification,
    GroupField,
    Retrieval,
    Task,
    ZeroShotClassification,
)
from benchmark.runtime.errors import UserError

TOP = 5  # candidates kept per row


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


RETRIEVAL_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("direction", pa.string()),
        ("caption", pa.int32()),
        ("num_positives", pa.int32()),
        ("rank", pa.int32()),
        ("score", pa.float32()),
        ("top5", pa.list_(pa.int32())),
    ]
)


ASSOCIATION_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("cue", pa.string()),
        ("associations", pa.list_(pa.int32())),
        ("ranked", pa.list_(pa.int32())),
        ("score", pa.float32()),
    ]
)


FACE_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("age", pa.int32()),
        ("gender", pa.int32()),
        ("race", pa.int32()),
        ("race_binary", pa.int32()),
        ("predicted_age", pa.int32()),
        ("predicted_gender", pa.int32()),
        ("predicted_race", pa.int32()),
        ("predicted_toxic", pa.int32()),
        ("score", pa.float32()),
    ]
)


# WinoGAViL's numbers of candidates, grouped as by DataComp: from, to.
CANDIDATE_BUCKETS = {"5": (5, 5), "6": (6, 6), "10": (10, 10), "12": (12, 12), "5-6": (0, 6), "10-12": (10, math.inf)}


GROUP_RADIX = 1000  # of a group by two fields


NULLABLE = frozenset({"group", "caption"})


IMAGE_TO_TEXT, TEXT_TO_IMAGE = "image_to_text", "text_to_image"


def schema_of(task: Task) -> pa.Schema:
    """Return the columns of the task's predictions."""
    if isinstance(task, ZeroShotClassification):
        return CLASSIFICATION_SCHEMA
    if isinstance(task, Retrieval):
        return RETRIEVAL_SCHEMA
    if isinstance(task, Association):
        return ASSOCIATION_SCHEMA
    if isinstance(task, FaceAttributes):
        return FACE_SCHEMA
    raise UserError(
        f"task {task.name!r} is of a kind that has no predictions table: {type(task).__name__}", code="task-invalid"
    )


def check_predictions(task: Task, predictions: pa.Table) -> None:
    """Raise ValueError that names the task where a predictions table is not what the contract above says."""
    schema = schema_of(task)
    where = f"predictions of {task.name!r}"
    # Names and types: what else a schema says (null or not, how a list's element is called) differs between writers.
    if [(field.name, field.type) for field in predictions.schema] != [(field.name, field.type) for field in schema]:
        raise UserError(
            f"{where} have the columns {_columns(predictions.schema)} instead of {_columns(schema)}",
            code="results-invalid",
        )
    if predictions.num_rows == 0:
        raise UserError(f"{where} are empty", code="results-invalid")
    for name in schema.names:
        if name not in NULLABLE and predictions[name].null_count:
            raise UserError(f"{where}: {name} is null in {predictions[name].null_count} rows", code="results-invalid")
    if not np.isfinite(predictions["score"].to_numpy()).all():
        raise UserError(f"{where}: a score is not finite", code="results-invalid")
    if isinstance(task, Retrieval):
        _check_retrieval(predictions, where)
    elif isinstance(task, Association):
        _check_association(predictions, where)
    elif isinstance(task, FaceAttributes):
        _check_faces(predictions, where)
    else:
        _check_classification(task, predictions, where)


def group_values(task: GroupedClassification, predictions: pa.Table) -> dict[GroupField, np.ndarray]:
    """Return each sample's group, (samples,), for each field of the task, from the column `group`."""
    groups = predictions["group"].to_numpy()
    if len(task.group_fields) == 1:
        return {task.group_fields[0]: groups}
    first, second = task.group_fields
    return {first: groups % GROUP_RADIX, second: groups // GROUP_RADIX}


def _check_association(predictions: pa.Table, where: str) -> None:
    _refuse_repeats(predictions["key"].to_pylist(), where)
    rows = zip(predictions["ranked"].to_pylist(), predictions["associations"].to_pylist(), strict=True)
    for ranked, right in rows:
        if None in ranked or sorted(ranked) != list(range(len(ranked))):
            raise UserError(f"{where}: a ranked list is no order of its candidates", code="results-invalid")
        if not right or None in right or right != sorted(set(right)) or right[0] < 0 or right[-1] >= len(ranked):
            raise UserError(f"{where}: associations are not ascending indices of candidates", code="results-invalid")


def _check_classification(task: Task, predictions: pa.Table, where: str) -> None:
    _refuse_repeats(predictions["key"].to_pylist(), where)
    num_classes = predictions["num_classes"].to_numpy()
    if num_classes.min() != num_classes.max() or num_classes[0] < 1:
        raise UserError(f"{where}: num_classes is not one positive number in all rows", code="results-invalid")
    label = predictions["label"].to_numpy()
    if label.min() < 0 or label.max() >= num_classes[0]:
        raise UserError(f"{where}: a label is outside 0..{num_classes[0] - 1}", code="results-invalid")
    top5 = _checked_top5(predictions, int(num_classes[0]), where)
    if not np.array_equal(top5[:, 0], predictions["prediction"].to_numpy()):
        raise UserError(f"{where}: a prediction is not the first of its top5", code="results-invalid")
    group = predictions["group"]
    if not isinstance(task, GroupedClassification):
        if group.null_count != len(group):
            raise UserError(f"{where}: the task has no groups, but the column group has values", code="results-invalid")
    elif group.null_count or np.min(group.to_numpy()) < 0:
        raise UserError(f"{where}: a group is null or negative", code="results-invalid")
    else:
        for field, values in group_values(task, predictions).items():
            if field.names and np.max(values) >= len(field.names):
                raise UserError(
                    f"{where}: a group is outside 0..{len(field.names) - 1}, the groups that have names",
                    code="results-invalid",
                )


def _check_faces(predictions: pa.Table, where: str) -> None:
    _refuse_repeats(predictions["key"].to_pylist(), where)
    for name in FACE_SCHEMA.names:
        if pa.types.is_integer(FACE_SCHEMA.field(name).type) and np.min(predictions[name].to_numpy()) < 0:
            raise UserError(f"{where}: {name} is negative", code="results-invalid")
    if np.max(predictions["race_binary"].to_numpy()) > 1:
        raise UserError(f"{where}: race_binary is neither 0 nor 1", code="results-invalid")


def _check_retrieval(predictions: pa.Table, where: str) -> None:
    direction = predictions["direction"].to_pylist()
    num_images = direction.count(IMAGE_TO_TEXT)
    num_captions = len(direction) - num_images
    if not num_images or not num_captions or direction != [IMAGE_TO_TEXT] * num_images + [TEXT_TO_IMAGE] * num_captions:
        raise UserError(
            f"{where}: the rows are not those of {IMAGE_TO_TEXT}, then those of {TEXT_TO_IMAGE}", code="results-invalid"
        )
    images, captions = predictions.slice(0, num_images), predictions.slice(num_images)
    keys = images["key"].to_pylist()
    _refuse_repeats(keys, where)
    counts = images["num_positives"].to_numpy()
    if counts.min() < 1 or counts.sum() != num_captions or (captions["num_positives"].to_numpy() != 1).any():
        raise UserError(
            f"{where}: num_positives is not 1 for captions and the number of captions for images",
            code="results-invalid",
        )
    owner = np.repeat(np.arange(num_images), counts)  # (captions,)
    starts = np.cumsum(counts) - counts  # (images,), of each image's captions
    numbers = (np.arange(num_captions) - starts[owner]).tolist()
    if images["caption"].null_count != num_images or captions["caption"].to_pylist() != numbers:
        raise UserError(f"{where}: caption does not count each image's captions from 0", code="results-invalid")
    if captions["key"].to_pylist() != [keys[image] for image in owner]:
        raise UserError(f"{where}: the captions are not in the order of their images", code="results-invalid")
    top5 = _checked_top5(images, num_captions, where)
    _check_ranks(images, owner[top5] == np.arange(num_images)[:, None], num_captions, where)
    _check_ranks(captions, _checked_top5(captions, num_images, where) == owner[:, None], num_images, where)


def _check_ranks(rows: pa.Table, is_right: np.ndarray, num_candidates: int, where: str) -> None:
    """Compare each rank with where the top5, (rows, entries), has its first right candidate."""
    rank = rows["rank"].to_numpy()
    in_top = np.where(is_right.any(axis=1), is_right.argmax(axis=1) + 1, 0)
    expected = np.where(in_top > 0, in_top, np.maximum(rank, is_right.shape[1] + 1))
    if (rank != expected).any() or rank.max() > num_candidates:
        raise UserError(f"{where}: a rank does not agree with its top5", code="results-invalid")


def _refuse_repeats(keys: list[str], where: str) -> None:
    if len(set(keys)) != len(keys):
        raise UserError(f"{where}: {len(keys) - len(set(keys))} keys are repeated", code="results-invalid")


def _checked_top5(predictions: pa.Table, num_candidates: int, where: str) -> np.ndarray:
    size = min(TOP, num_candidates)
    lengths = pc.list_value_length(predictions["top5"]).to_numpy()
    if (lengths != size).any():
        raise UserError(
            f"{where}: a top5 has {lengths[lengths != size][0]} entries instead of {size}", code="results-invalid"
        )
    top5 = top5_of(predictions)
    if top5.min() < 0 or top5.max() >= num_candidates or (np.diff(np.sort(top5, axis=1), axis=1) == 0).any():
        raise UserError(
            f"{where}: a top5 holds an index twice, or one outside 0..{num_candidates - 1}", code="results-invalid"
        )
    return top5


def top5_of(predictions: pa.Table) -> np.ndarray:
    """Return the column as an array, (rows, entries)."""
    # A null inside a list becomes -1, which no candidate has.
    flat: np.ndarray = pc.fill_null(predictions["top5"].combine_chunks().flatten(), -1).to_numpy(zero_copy_only=False)
    return flat.reshape(predictions.num_rows, -1)


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)
