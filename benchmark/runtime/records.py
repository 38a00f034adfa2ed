"""Records: the small JSON, written last, that says what a stage made and from what.

A record that fits means "skip"; one that does not fit is an error that names both.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmark.runtime.errors import UserError
from benchmark.runtime.files import Json, _read_json, digest, write_json


@dataclass(frozen=True)
class Record:
    """What a stage's output was made from, and what came out."""

    stage: str
    version: int  # of the stage's code, raised by hand when its output changes
    inputs: dict[str, Json]
    result: dict[str, Json]

    @property
    def hash(self) -> str:
        """Return the sha256 that identifies this output, made from its inputs only."""
        return digest({"stage": self.stage, "version": self.version, "made_from": self.inputs})


def write_record(path: Path, record: Record) -> None:
    """Write the small file that says "complete"; call it last."""
    write_json(
        path,
        {
            "stage": record.stage,
            "version": record.version,
            "made_from": record.inputs,
            "result": record.result,
        },
    )


def read_record(path: Path) -> Record | None:
    """Read a record, or None where there is none."""
    if not path.exists():
        return None
    value = _read_json(path, partial(_Entries, path))
    if not isinstance(value, dict) or not all(isinstance(value[name], dict) for name in ("made_from", "result")):
        raise UserError(
            f"{path} is not a record of a stage; delete it, or choose another folder", code="record-damaged"
        )
    return Record(value["stage"], value["version"], value["made_from"], value["result"])


class _Entries(dict[str, Json]):
    """A record's values, at any depth: one that is needed and not there is an error that names the file."""

    def __init__(self, path: Path, values: dict[str, Json]) -> None:
        super().__init__(values)
        self.path = path

    def __missing__(self, name: str) -> Json:
        raise UserError(
            f"{self.path} has no {name!r}, so it is not a record of this stage; delete it, or choose another folder",
            code="record-damaged",
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _Entries, (self.path, dict(self))


def finished(path: Path, stage: str, version: int, inputs: dict[str, Json]) -> Record | None:
    """Return the record at `path` if it fits, None if there is none.

    Raises ValueError that names every difference when the output there was made from something else.
    """
    record = read_record(path)
    if record is None:
        return None
    wanted = {"stage": stage, "version": version, **inputs}
    there = {"stage": record.stage, "version": record.version, **record.inputs}
    shown = describe_differences(wanted, there)
    if not shown:
        return record
    raise UserError(
        f"{path.parent} was made with other settings ({path.name}): {shown}. "
        "Choose another folder, repeat those settings, or delete it.",
        code="record-differs",
    )


CODE_NOTE = " (the code of it and of its helpers)"


def describe_differences(wanted: dict[str, Json], there: dict[str, Json]) -> str:
    """Name what two sets of settings differ in, with both values; empty where they are the same."""
    wanted, there = (_flatten(json.loads(json.dumps(values))) for values in (wanted, there))
    differences = [
        f"{key}{CODE_NOTE if key.endswith('.identity') else ''} is "
        f"{_short(there[key]) if key in there else 'absent'} there and "
        f"{_short(wanted[key]) if key in wanted else 'absent'} now"
        for key in dict.fromkeys([*wanted, *there])
        if wanted.get(key) != there.get(key) or (key in wanted) != (key in there)
    ]
    return "; ".join(differences[:4]) + (f"; and {len(differences) - 4} more" if len(differences) > 4 else "")


def _flatten(value: Json, prefix: str = "") -> dict[str, Json]:
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        value = dict(enumerate(value))
    if isinstance(value, dict) and value:
        flat: dict[str, Json] = {}
        for key, inner in value.items():
            flat |= _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
        return flat
    return {prefix: value}


def _short(value: Json) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:24] + "…" + text[-8:]
