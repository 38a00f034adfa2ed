"""Retrieval: find the caption of an image and the image of a caption (Radford et al. 2021, Sec. 3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa

from benchmark.evaluation import metrics
from benchmark.evaluation.estimators import SampleMean
from benchmark.evaluation.kinds.base import DeclaredChance, Metrics, Task, TaskMetrics
from benchmark.evaluation.predictions import TOP, checked_top5, refuse_repeats
from benchmark.evaluation.samples import EvalSet, Sample, SetError, part_of
from benchmark.runtime.errors import UserError

if TYPE_CHECKING:
    from benchmark.evaluation.encoding import TaskEncoder

IMAGE_TO_TEXT, TEXT_TO_IMAGE = "image_to_text", "text_to_image"
RECALL_AT = (1, 5, 10)
QUERIES_AT_ONCE = 1024  # rows of a similarity matrix that are ranked together, to bound memory

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


@dataclass(frozen=True, kw_only=True)
class Retrieval(Task):
    """Find the caption of an image and the image of a caption (recall@1, 5, 10 in both directions).

    Predictions: first one row per image (sorted by key), then one per caption (in the order of their images):

        key            string        the image's key
        direction      string        "image_to_text" or "text_to_image"
        caption        int32         which of the image's captions asks, from 0; null in image_to_text
        num_positives  int32         how many candidates are right
        rank           int32         the place of the first right candidate, 1 = best
        score          float32       its cosine similarity
        top5           list<int32>   the five nearest candidates, best first, counted from 0 among the rows of the other
                                     direction; all where there are fewer
    """

    main_metric: str = "mean_recall@1"
    kind: ClassVar[str] = "retrieval"
    schema: ClassVar[pa.Schema] = RETRIEVAL_SCHEMA
    set_files: ClassVar[tuple[str, ...]] = ("dataset_type.txt",)
    nullable: ClassVar[frozenset[str]] = frozenset({"caption"})
    row_order: ClassVar[tuple[str, ...]] = ("direction", "key", "caption")
    answer_columns: ClassVar[tuple[str, ...]] = ("key", "direction", "caption", "num_positives")

    def predict(self, eval_set: EvalSet, encoder: TaskEncoder) -> pa.Table:
        samples = eval_set.samples
        of_images = [captions_of(sample) for sample in samples]
        captions = [caption for of_image in of_images for caption in of_image]
        counts = np.array([len(of_image) for of_image in of_images])
        owner = np.repeat(np.arange(len(samples)), counts)  # (captions,)

        texts = encoder.encode_texts(captions)
        # Equal captions get equal scores, whatever the order of sums in a matrix product.
        scores = encoder.similarities(encoder.encode_images(samples), texts.distinct)[:, texts.rows]
        image_rows = _rank(scores, np.arange(len(samples)), owner)
        caption_rows = _rank(scores.T, owner, np.arange(len(samples)))
        keys = [sample.key for sample in samples]
        columns = {
            "key": keys + [keys[image] for image in owner],
            "direction": [IMAGE_TO_TEXT] * len(samples) + [TEXT_TO_IMAGE] * len(captions),
            "caption": [None] * len(samples) + [number for count in counts for number in range(count)],
            "num_positives": np.concatenate([counts, np.ones(len(captions), dtype=counts.dtype)]),
            "rank": np.concatenate([image_rows.rank, caption_rows.rank]),
            "score": np.concatenate([image_rows.score, caption_rows.score]),
            "top5": [*image_rows.top5, *caption_rows.top5],
        }
        return pa.table(columns, schema=self.schema)

    def check_table(self, predictions: pa.Table, where: str) -> None:
        direction = predictions["direction"].to_pylist()
        num_images = direction.count(IMAGE_TO_TEXT)
        num_captions = len(direction) - num_images
        if (
            not num_images
            or not num_captions
            or direction != [IMAGE_TO_TEXT] * num_images + [TEXT_TO_IMAGE] * num_captions
        ):
            raise UserError(
                f"{where}: the rows are not those of {IMAGE_TO_TEXT}, then those of {TEXT_TO_IMAGE}",
                code="results-invalid",
            )
        images, captions = predictions.slice(0, num_images), predictions.slice(num_images)
        keys = images["key"].to_pylist()
        refuse_repeats(keys, where)
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
        top5 = checked_top5(images, num_captions, where)
        _check_ranks(images, owner[top5] == np.arange(num_images)[:, None], num_captions, where)
        _check_ranks(captions, checked_top5(captions, num_images, where) == owner[:, None], num_images, where)

    def metrics(self, predictions: pa.Table) -> TaskMetrics:
        direction = predictions["direction"].to_numpy(zero_copy_only=False)
        rank, num_positives = predictions["rank"].to_numpy(), predictions["num_positives"].to_numpy()
        is_image = direction == IMAGE_TO_TEXT
        num_images, num_captions = int(is_image.sum()), int((~is_image).sum())
        found: Metrics = {}
        chances: dict[str, float] = {}
        # "image retrieval" finds the image of a caption.
        for noun, rows, num_candidates in (("image", ~is_image, num_images), ("text", is_image, num_captions)):
            for k in RECALL_AT:
                name = f"{noun}_retrieval_recall@{k}"
                found[name] = metrics.recall_at_k(rank[rows], k)
                chances[name] = metrics.chance_recall_at_k(num_positives[rows], num_candidates, k)
        image, text = "image_retrieval_recall@1", "text_retrieval_recall@1"
        found["mean_recall@1"] = float(np.mean([found[image], found[text]]))
        chances["mean_recall@1"] = float(np.mean([chances[image], chances[text]]))
        found["num_samples"] = num_images
        return TaskMetrics(found, chances)

    def known_main_metrics(self) -> list[str]:
        return ["mean_recall@1", *(f"{noun}_retrieval_recall@{k}" for noun in ("image", "text") for k in RECALL_AT)]

    @property
    def declared_chance(self) -> DeclaredChance | None:
        return None if not self.size else DeclaredChance(1 / self.size, "approximate")

    def contributions(self, predictions: pa.Table) -> SampleMean:
        names = ["image@1", "text@1"] if self.main_metric == "mean_recall@1" else [self.main_metric]
        return SampleMean(np.mean([_recall_of(predictions, name) for name in names], axis=0))


def captions_of(sample: Sample) -> list[str]:
    """Return an image's captions; raises SetError where there is none."""
    try:
        text = part_of(sample, "txt").decode()
    except UnicodeDecodeError as error:
        raise SetError(f"{sample.tar_path}: {sample.key}.txt is not UTF-8: {error}") from error
    # CLIP_benchmark joins captions by newlines and escapes those inside.
    captions = [caption.replace(r"\n", "\n") for caption in text.split("\n") if caption.strip()]
    if not captions:
        raise SetError(f"{sample.tar_path}: {sample.key}.txt has no caption")
    return captions


@dataclass(frozen=True)
class _Ranked:
    """What the predictions say of each query."""

    rank: np.ndarray  # (queries,)
    score: np.ndarray  # (queries,)
    top5: np.ndarray  # (queries, entries)


def _rank(scores: np.ndarray, owner_of_query: np.ndarray, owner_of_candidate: np.ndarray) -> _Ranked:
    """Rank candidates by scores, (queries, candidates); those of a query's own image are right."""
    parts = []
    for start in range(0, len(scores), QUERIES_AT_ONCE):
        rows = np.ascontiguousarray(scores[start : start + QUERIES_AT_ONCE])
        positives = owner_of_query[start : start + QUERIES_AT_ONCE, None] == owner_of_candidate
        index, rank = metrics.first_positive(rows, positives)
        parts.append(_Ranked(rank, rows[np.arange(len(rows)), index], metrics.top_k(rows, TOP)))
    return _Ranked(
        np.concatenate([part.rank for part in parts]),
        np.concatenate([part.score for part in parts]),
        np.concatenate([part.top5 for part in parts]),
    )


def _check_ranks(rows: pa.Table, is_right: np.ndarray, num_candidates: int, where: str) -> None:
    """Compare each rank with where the top5, (rows, entries), has its first right candidate."""
    rank = rows["rank"].to_numpy()
    in_top = np.where(is_right.any(axis=1), is_right.argmax(axis=1) + 1, 0)
    expected = np.where(in_top > 0, in_top, np.maximum(rank, is_right.shape[1] + 1))
    if (rank != expected).any() or rank.max() > num_candidates:
        raise UserError(f"{where}: a rank does not agree with its top5", code="results-invalid")


def _recall_of(table: pa.Table, name: str) -> np.ndarray:
    """Return each image's contribution, (images,), to the recall called `image...@k` or `text...@k`."""
    noun, k = name[:4], int(name.partition("@")[2])
    is_image = table["direction"].to_numpy(zero_copy_only=False) == IMAGE_TO_TEXT
    is_hit = table["rank"].to_numpy() <= k
    if noun == "text":
        contributions: np.ndarray = is_hit[is_image].astype(float)
        return contributions
    captions = table["num_positives"].to_numpy()[is_image]
    owner = np.repeat(np.arange(len(captions)), captions)
    hits = np.bincount(owner, weights=is_hit[~is_image], minlength=len(captions))
    recall = hits.sum() / captions.sum()
    linear: np.ndarray = recall + (hits - recall * captions) / captions.mean()
    return linear
