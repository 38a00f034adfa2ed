"""Association: choose the images that a cue word goes with, among candidates (WinoGAViL, Bitton et al. 2022)."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmark.evaluation import metrics
from benchmark.evaluation.estimators import SampleMean
from benchmark.evaluation.kinds.base import Metrics, Task, TaskMetrics
from benchmark.evaluation.samples import EvalSet, SetError
from benchmark.runtime.errors import UserError

if TYPE_CHECKING:
    from benchmark.evaluation.encoding import TaskEncoder

INSTANCES = "instances.jsonl"
# WinoGAViL's numbers of candidates, grouped as by DataComp: from, to.
CANDIDATE_BUCKETS = {"5": (5, 5), "6": (6, 6), "10": (10, 10), "12": (12, 12), "5-6": (0, 6), "10-12": (10, math.inf)}

ASSOCIATION_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("cue", pa.string()),
        ("associations", pa.list_(pa.int32())),
        ("ranked", pa.list_(pa.int32())),
        ("score", pa.float32()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Association(Task):
    """Choose the images that a cue word goes with, among candidates (WinoGAViL, Bitton et al. 2022).

    Predictions: one row per cue, in the order of the data set:

        key           string        the instance's number in the data set
        cue           string        the word that asks
        associations  list<int32>   the candidates that are right, indices in ascending order
        ranked        list<int32>   all candidates, best first
        score         float32       mean cosine similarity of the cue and the right candidates
    """

    main_metric: str = "jaccard_score_10-12"
    kind: ClassVar[str] = "association"
    schema: ClassVar[pa.Schema] = ASSOCIATION_SCHEMA
    set_files: ClassVar[tuple[str, ...]] = ("dataset_type.txt", INSTANCES)
    answer_columns: ClassVar[tuple[str, ...]] = ("key", "cue", "associations")
    sample_noun: ClassVar[str] = "cues"

    def count_samples(self, eval_set: EvalSet) -> int:
        return len(_instances_of(eval_set))

    def predict(self, eval_set: EvalSet, encoder: TaskEncoder) -> pa.Table:
        instances = _instances_of(eval_set)
        place_of = {sample.key: place for place, sample in enumerate(eval_set.samples)}
        # WinoGAViL's prompt, as DataComp words it.
        prompts = [f"{'An' if each.cue[0].lower() in 'aeiou' else 'A'} {each.cue.lower()}" for each in instances]
        texts = encoder.encode_texts(prompts)
        scores = encoder.similarities(encoder.encode_images(eval_set.samples), texts.distinct)  # (images, prompts)
        ranked, means = [], []
        for instance, prompt in zip(instances, texts.rows, strict=True):
            of_candidates = scores[[place_of[key] for key in instance.candidates], prompt]
            ranked.append(np.argsort(-of_candidates, kind="stable").astype(np.int32))
            means.append(of_candidates[instance.right].mean())
        columns = {
            "key": [str(number) for number in range(len(instances))],
            "cue": [instance.cue for instance in instances],
            "associations": [instance.right for instance in instances],
            "ranked": ranked,
            "score": means,
        }
        return pa.table(columns, schema=self.schema)

    def check_table(self, predictions: pa.Table, where: str) -> None:
        super().check_table(predictions, where)
        rows = zip(predictions["ranked"].to_pylist(), predictions["associations"].to_pylist(), strict=True)
        for ranked, right in rows:
            if None in ranked or sorted(ranked) != list(range(len(ranked))):
                raise UserError(f"{where}: a ranked list is not an order of its candidates", code="results-invalid")
            if not right or None in right or right != sorted(set(right)) or right[0] < 0 or right[-1] >= len(ranked):
                raise UserError(
                    f"{where}: associations are not ascending indices of candidates", code="results-invalid"
                )

    def answers(self, predictions: pa.Table) -> pa.Table:
        candidates = pc.list_value_length(predictions["ranked"])
        return super().answers(predictions).append_column("candidates", candidates)

    def metrics(self, predictions: pa.Table) -> TaskMetrics:
        ranked, right = predictions["ranked"].to_pylist(), predictions["associations"].to_pylist()
        scores = [metrics.jaccard_of_top(order, wanted) for order, wanted in zip(ranked, right, strict=True)]
        guesses = [metrics.chance_jaccard_of_top(len(w), len(order)) for order, w in zip(ranked, right, strict=True)]
        found: Metrics = {"avg_jaccard_score": float(np.mean(scores))}
        chances = {"avg_jaccard_score": float(np.mean(guesses))}
        for bucket, (least, most) in CANDIDATE_BUCKETS.items():
            rows = [row for row, order in enumerate(ranked) if least <= len(order) <= most]
            found[f"jaccard_score_{bucket}"] = float(np.mean([scores[row] for row in rows])) if rows else None
            if rows:
                chances[f"jaccard_score_{bucket}"] = float(np.mean([guesses[row] for row in rows]))
        found["num_samples"] = len(ranked)
        return TaskMetrics(found, chances)

    def known_main_metrics(self) -> list[str]:
        return ["avg_jaccard_score", *(f"jaccard_score_{bucket}" for bucket in CANDIDATE_BUCKETS)]

    def contributions(self, predictions: pa.Table) -> SampleMean:
        buckets = {f"jaccard_score_{name}": ends for name, ends in CANDIDATE_BUCKETS.items()}
        least, most = buckets.get(self.main_metric, (0, math.inf))
        rows = zip(predictions["ranked"].to_pylist(), predictions["associations"].to_pylist(), strict=True)
        counted = [(order, right) for order, right in rows if least <= len(order) <= most]
        return SampleMean(np.array([metrics.jaccard_of_top(order, right) for order, right in counted]))


@dataclass(frozen=True)
class Instance:
    """One question of an association task."""

    cue: str
    candidates: list[str]  # keys of images
    right: list[int]  # ascending indices of candidates


def read_instances(path: Path, keys: set[str]) -> list[Instance]:
    """Read an association task's questions; raises ValueError that names the line that is wrong."""
    instances = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise SetError(f"{path} is not UTF-8: {error}") from error
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
            cue, candidates, associations = row["cue"], row["candidates"], row["associations"]
        except (ValueError, KeyError, TypeError) as error:
            raise SetError(f'{where} must be {{"cue": ..., "candidates": [...], "associations": [...]}}') from error
        are_lists = isinstance(cue, str) and isinstance(candidates, list) and isinstance(associations, list)
        if not are_lists or not cue or not associations:
            raise SetError(f"{where}: a cue is a word, candidates and associations are lists of keys")
        if wrong := [key for key in [*candidates, *associations] if not isinstance(key, str)]:
            raise SetError(f"{where}: {wrong[0]!r} is not the key of an image: keys are texts")
        if unknown := [key for key in candidates if key not in keys]:
            raise SetError(f"{where}: there is no image {unknown[0]!r}")
        if len(set(candidates)) != len(candidates) or not set(associations) <= set(candidates):
            raise SetError(f"{where}: candidates must be distinct and hold all associations")
        instances.append(Instance(cue, candidates, sorted(candidates.index(key) for key in set(associations))))
    if not instances:
        raise SetError(f"{path} is empty")
    return instances


def _instances_of(eval_set: EvalSet) -> list[Instance]:
    return read_instances(eval_set.folder / INSTANCES, {sample.key for sample in eval_set.samples})
