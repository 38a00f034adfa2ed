"""The tasks of the embedded scales, drawn by `winnow pool build` beside the pool; no evidence about web data.

Filters may be tuned on the development half; the headline average is the reporting half's.
"""

from __future__ import annotations

from benchmark import register_suite, register_task
from benchmark.embedded.evalsets import GROUP_NAMES
from benchmark.evaluation.tasks import (
    Association,
    GroupedClassification,
    GroupField,
    Retrieval,
    Suite,
    Task,
    ZeroShotClassification,
)


def _development_tasks(prefix: str) -> list[Task]:
    return [
        ZeroShotClassification(name=f"{prefix}/shapes", title="Shapes", groups=("accuracy",)),
        ZeroShotClassification(name=f"{prefix}/letters", title="Letters", groups=("accuracy",)),
        ZeroShotClassification(name=f"{prefix}/colours", title="Colours", groups=("accuracy",)),
        ZeroShotClassification(name=f"{prefix}/counting", title="Counting", groups=("accuracy",)),
        ZeroShotClassification(name=f"{prefix}/position", title="Position", groups=("accuracy",)),
        ZeroShotClassification(name=f"{prefix}/shapes_sketch", title="Shapes, sketched", groups=("shift",)),
        ZeroShotClassification(name=f"{prefix}/shapes_background", title="Shapes, new backgrounds", groups=("shift",)),
        Association(name=f"{prefix}/association", title="Association", groups=("retrieval",)),
    ]


def _reporting_tasks(prefix: str) -> list[Task]:
    return [
        ZeroShotClassification(name=f"{prefix}/digits", title="Handwritten digits", groups=("accuracy",)),
        ZeroShotClassification(name=f"{prefix}/pictograms", title="Pictograms", groups=("accuracy",)),
        ZeroShotClassification(name=f"{prefix}/textures", title="Textures", groups=("accuracy",)),
        ZeroShotClassification(name=f"{prefix}/vehicles", title="Vehicles, fine-grained", groups=("accuracy",)),
        ZeroShotClassification(
            name=f"{prefix}/pictograms_designer", title="Pictograms, unseen designer", groups=("shift",)
        ),
        ZeroShotClassification(name=f"{prefix}/shapes_corrupted", title="Shapes, corrupted", groups=("shift",)),
        Retrieval(name=f"{prefix}/retrieval", title="Retrieval", groups=("retrieval",)),
        GroupedClassification(
            name=f"{prefix}/worst_group",
            title="Shapes, worst group",
            groups=("worst_group",),
            group_fields=(GroupField("group", 0, GROUP_NAMES),),
        ),
    ]


for _prefix in ("nano", "pico"):
    _development = tuple(register_task(task).name for task in _development_tasks(_prefix))
    _reporting = tuple(register_task(task).name for task in _reporting_tasks(_prefix))
    register_suite(Suite(name=_prefix, version=2, tasks=_development + _reporting, reporting=_reporting))
