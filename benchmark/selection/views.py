"""What a selector sees of a pool: written to files metadata shard by metadata shard, and mapped into memory."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from benchmark.pool.uids import UID_DTYPE
from benchmark.runtime.errors import UserError
from benchmark.selection.copies import Copies
from benchmark.selection.evaluator import RuleEvaluator
from benchmark.selection.shard_evaluation import refuse_changed_shard


@dataclass(frozen=True)
class PoolView:
    """What a selector sees: every row of the pool, with the columns and features that it declared."""

    uids: np.ndarray  # (rows,) UID_DTYPE
    columns: pd.DataFrame  # (rows, declared columns and signals)
    features: dict[str, np.ndarray]  # each (rows, dimension), memory-mapped


def write_view(evaluator: RuleEvaluator, number: int, within: Copies | None, folder: Path) -> PoolView:
    """Write what the selector of this number declared to files in a new folder, and map them into memory.

    Of the rows with copies of `within`, where it is given.
    """
    folder.mkdir()
    pool, rule = evaluator.pool, evaluator.rules[number]
    has_columns = bool(rule.columns or rule.signals)
    total = 0
    tables: list[pa.Table] = []
    shapes: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
    with ExitStack() as stack:
        uid_file = stack.enter_context((folder / "uids").open("wb"))
        files = {name: stack.enter_context((folder / f"feature-{name}").open("wb")) for name in rule.features}
        for shard in pool.shards:
            uids = pool.read_uids(shard.path)
            rows = np.ones(len(uids), dtype=bool)
            if within is not None:
                rows = within.of(shard.number, uids) > 0
            uid_file.write(np.ascontiguousarray(uids[rows]).data)
            total += int(rows.sum())
            for name, array in pool.read_features(shard.path, list(rule.features)).items():
                shape = array.shape[1:], array.dtype
                if shapes.setdefault(name, shape) != shape:
                    raise UserError(
                        f"{shard.npz_path}: {name} has rows {shape[0]} of {shape[1]}, those of the shards before "
                        f"it are {shapes[name][0]} of {shapes[name][1]}",
                        code="array-shape",
                    )
                files[name].write(np.ascontiguousarray(array[rows]).data)
            if has_columns:
                table = evaluator.table(shard, number, requested=rows)
                path = folder / f"columns-{shard.number}"
                batch = pa.Table.from_pandas(table[rows], preserve_index=False)
                with pa.ipc.new_file(path, batch.schema) as writer:
                    writer.write_table(batch)
                tables.append(pa.ipc.open_file(pa.memory_map(str(path))).read_all())
            refuse_changed_shard(shard)
    frame = pd.DataFrame(index=pd.RangeIndex(total))
    if has_columns:  # of types that differ from shard to shard, the wider
        frame = pa.concat_tables(tables, promote_options="permissive").to_pandas()
    return PoolView(
        # Mapped copy on write: a selector may change what it is handed.
        _map_file(folder / "uids", UID_DTYPE, (total,)),
        frame,
        {name: _map_file(folder / f"feature-{name}", dtype, (total, *s)) for name, (s, dtype) in shapes.items()},
    )


def _map_file(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    return np.memmap(path, dtype=dtype, mode="c", shape=shape) if 0 not in shape else np.empty(shape, dtype=dtype)
