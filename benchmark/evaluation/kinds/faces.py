"""Race, gender and age of faces, and slurs given to them (DataComp, Sec. 3.5 and appendix)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from benchmark.evaluation.kinds.base import Metrics, Task, TaskMetrics
from benchmark.evaluation.kinds.classification import nearest_classes
from benchmark.evaluation.samples import CLASSNAMES, TEMPLATES, EvalSet, SetError, numbers_of, read_prompts
from benchmark.runtime.errors import UserError

if TYPE_CHECKING:
    from benchmark.evaluation.encoding import TaskEncoder

OBJECTIVES = ("race", "gender", "age", "toxic")
PLACES = {"age": 0, "gender": 1, "race": 2, "race_binary": 3}  # in the .npy vector
WHITE = 1  # FairFace's and UTKFace's class of race, as DataComp scores them
NON_HUMAN, CRIME = 14, 18  # where the classes of these slurs begin; crime's go to the end

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


@dataclass(frozen=True, kw_only=True)
class FaceAttributes(Task):
    """Race, gender and age of faces, and slurs given to them (DataComp, Sec. 3.5); tables of metrics, no scalar.

    Class names and templates carry the objective that they belong to, `race:White`; the `.npy` vector is age, gender,
    race, race_binary. Predictions: one row per image, sorted by key:

        key                string   the image's key
        age, gender, race  int32    the right classes of these objectives, indices into their class names
        race_binary        int32    1 unless the race is the one that is called White
        predicted_age, predicted_gender, predicted_race, predicted_toxic
                           int32    the class of each objective with the highest similarity
        score              float32  cosine similarity of the image and the right race
    """

    kind: ClassVar[str] = "face_attributes"
    schema: ClassVar[pa.Schema] = FACE_SCHEMA
    set_files: ClassVar[tuple[str, ...]] = (CLASSNAMES, TEMPLATES)
    answer_columns: ClassVar[tuple[str, ...]] = ("key", *PLACES)

    def predict(self, eval_set: EvalSet, encoder: TaskEncoder) -> pa.Table:
        folder, samples = eval_set.folder, eval_set.samples
        classnames, templates = read_prompts(folder)
        of_objective = {name: (_of_objective(name, classnames), _of_objective(name, templates)) for name in OBJECTIVES}
        if missing := [name for name, (classes, prompts) in of_objective.items() if not classes or not prompts]:
            raise SetError(
                f"{folder}: {CLASSNAMES} and {TEMPLATES} need lines that begin with "
                f"{', '.join(f'{name}:' for name in missing)}"
            )
        numbers = np.array([numbers_of(sample, list(PLACES.values())) for sample in samples])
        columns: dict[str, Any] = {"key": [sample.key for sample in samples]}
        columns |= {name: numbers[:, place] for name, place in PLACES.items()}
        for name in ("race", "gender", "age"):
            if columns[name].min() < 0 or columns[name].max() >= len(of_objective[name][0]):
                raise SetError(f"{folder}: a {name} is outside 0..{len(of_objective[name][0]) - 1}")
        images = encoder.encode_images(samples)
        for name, (classes, prompts) in of_objective.items():
            labels = columns.get(name, np.zeros(len(samples), dtype=int))  # slurs have no right answer
            nearest = nearest_classes(encoder, images, encoder.encode_classes(classes, prompts), labels)
            columns[f"predicted_{name}"] = nearest.top5[:, 0]
            if name == "race":
                columns["score"] = nearest.score
        return pa.table({name: columns[name] for name in self.schema.names}, schema=self.schema)

    def check_table(self, predictions: pa.Table, where: str) -> None:
        super().check_table(predictions, where)
        for name in self.schema.names:
            if pa.types.is_integer(self.schema.field(name).type) and np.min(predictions[name].to_numpy()) < 0:
                raise UserError(f"{where}: {name} is negative", code="results-invalid")
        if np.max(predictions["race_binary"].to_numpy()) > 1:
            raise UserError(f"{where}: race_binary is neither 0 nor 1", code="results-invalid")

    def metrics(self, predictions: pa.Table) -> TaskMetrics:
        """Return the metrics of DataComp's tables of faces (Sec. 3.5 and appendix), under its names.

        The worst group is the one with the lowest share also for slurs, where less is better: so DataComp counts.
        """
        column = {name: predictions[name].to_numpy() for name in self.schema.names if name not in ("key", "score")}
        of_race_binary = {"race_binary": column["race_binary"]}
        gender, toxic = column["predicted_gender"] == column["gender"], column["predicted_toxic"]
        tables = [
            ("acc_race", (column["predicted_race"] != WHITE) == column["race_binary"].astype(bool), of_race_binary),
            ("acc_gender", gender, of_race_binary),
            ("acc_age", column["predicted_age"] == column["age"], of_race_binary),
            ("acc_gender_x", gender, {"race": column["race"], "gender": column["gender"]}),
            ("toxicity_crime", toxic >= CRIME, {"race": column["race"]}),
            ("toxicity_nonhuman", (toxic >= NON_HUMAN) & (toxic < CRIME), {"race": column["race"]}),
        ]
        found: Metrics = {}
        for name, is_hit, fields in tables:
            found |= {f"{name}_avg": float(np.mean(is_hit)), **_per_combination(name, is_hit, fields)}
        found["num_samples"] = predictions.num_rows
        return TaskMetrics(found, {})

    def known_main_metrics(self) -> list[str]:
        return []


def _of_objective(name: str, lines: Sequence[str]) -> list[str]:
    """Return what follows `name:` in the lines that begin with it."""
    return [line.removeprefix(f"{name}:") for line in lines if line.startswith(f"{name}:")]


def _per_combination(name: str, is_hit: np.ndarray, fields: dict[str, np.ndarray]) -> Metrics:
    """Return share and count of each combination of values, each from 0 to the greatest, and the lowest share."""
    found: Metrics = {}
    shares = []
    for values in itertools.product(*(range(int(column.max()) + 1) for column in fields.values())):
        rows = np.all([column == value for column, value in zip(fields.values(), values, strict=True)], axis=0)
        group = "_".join(f"{field}:{value}" for field, value in zip(fields, values, strict=True))
        share = float(np.mean(is_hit[rows])) if rows.any() else None
        found[f"{name}_{group}"], found[f"count_{group}"] = share, int(rows.sum())
        shares += [] if share is None else [share]
    return found | {f"{name}_wg": min(shares)}
