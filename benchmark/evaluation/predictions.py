"""Predictions tables: each sample's prediction, one row per query, from which alone every metric is computed.

The columns are a contract: what was published stays readable. They stand with each kind of task (`kinds/`).

Equal similarities rank by index, the smaller first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmark.runtime.errors import UserError

if TYPE_CHECKING:
    from benchmark.evaluation.kinds.base import Task

TOP = 5  # candidates stored per row


def check_predictions(task: Task, predictions: pa.Table) -> None:
    """Raise UserError, code results-invalid, where a table is not what the task's kind says of its predictions."""
    schema = task.schema
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
        if name not in task.nullable and predictions[name].null_count:
            raise UserError(f"{where}: {name} is null in {predictions[name].null_count} rows", code="results-invalid")
    for name in schema.names:
        if pa.types.is_floating(schema.field(name).type) and not np.isfinite(predictions[name].to_numpy()).all():
            raise UserError(f"{where}: a {name} is not finite", code="results-invalid")
    task.check_table(predictions, where)


def refuse_repeats(keys: Sequence[str], where: str) -> None:
    """Raise UserError where a key is there twice."""
    if len(set(keys)) != len(keys):
        raise UserError(f"{where}: {len(keys) - len(set(keys))} keys are repeated", code="results-invalid")


def checked_top5(predictions: pa.Table, num_candidates: int, where: str) -> np.ndarray:
    """Return the column `top5`, (rows, entries); raises UserError where it does not name distinct candidates."""
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
