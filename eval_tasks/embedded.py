"""The tasks of the embedded scales, drawn by `winnow pool build` beside the pool; no evidence about web data."""

from __future__ import annotations

from benchmark import register_suite, register_task
from benchmark.embedded.evalsets import GROUP_NAMES
from benchmark.tasks import Retrieval, Suite, Task, WorstGroup, ZeroShotClassification


def _tasks(prefix: str) -> list[Task]:
    return [
        ZeroShotClassification(name=f"{prefix}/shapes", title="Shapes", groups=("accuracy",)),
        ZeroShotClassification(name=f"{prefix}/colours", title="Colours", groups=("accuracy",)),
        ZeroShotClassification(name=f"{prefix}/letters", title="Letters", groups=("accuracy",)),
        ZeroShotClassification(name=f"{prefix}/counting", title="Counting", groups=("accuracy",)),
        ZeroShotClassification(name=f"{prefix}/shapes_outline", title="Shapes, outlined", groups=("shift",)),
        ZeroShotClassification(name=f"{prefix}/shapes_clutter", title="Shapes in clutter", groups=("shift",)),
        ZeroShotClassification(name=f"{prefix}/letters_font", title="Letters, other fonts", groups=("shift",)),
        Retrieval(name=f"{prefix}/retrieval", title="Retrieval", groups=("retrieval",)),
        WorstGroup(
            name=f"{prefix}/worst_group",
            title="Shapes, worst group",
            groups=("worst_group",),
            group_names=GROUP_NAMES,
        ),
    ]


for _prefix in ("nano", "pico"):
    _names = tuple(register_task(task).name for task in _tasks(_prefix))
    register_suite(Suite(name=_prefix, version=0, tasks=_names))  # version 1 when the benchmark is frozen
