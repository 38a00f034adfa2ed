"""Tasks and suites by the names that a file of `eval_tasks/` imports. A task is data: an instance of a kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmark.evaluation.kinds.association import Association
from benchmark.evaluation.kinds.base import Task
from benchmark.evaluation.kinds.classification import GroupedClassification, GroupField, ZeroShotClassification
from benchmark.evaluation.kinds.faces import FaceAttributes
from benchmark.evaluation.kinds.retrieval import Retrieval
from benchmark.runtime.errors import UserError

__all__ = [
    "Association",
    "FaceAttributes",
    "GroupField",
    "GroupedClassification",
    "Retrieval",
    "Suite",
    "Task",
    "ZeroShotClassification",
]


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A named, versioned list of tasks; its headline average is the mean main metric of its reporting half.

    The other tasks are the development half: a benchmark and its strategies are tuned on these alone.
    """

    name: str
    version: int
    tasks: tuple[str, ...]  # those with a scalar
    reporting: tuple[str, ...] = ()  # the tasks of the headline average; empty: all
    unscored: tuple[str, ...] = ()  # evaluated with them, in no average
    informative: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # scale -> tasks that tell runs apart

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.reporting) - set(self.tasks)):
            raise UserError(f"suite {self.name!r} reports tasks that it does not have: {unknown}", code="task-invalid")
        for scale, names in self.informative.items():
            if unknown := sorted(set(names) - set(self.tasks)):
                raise UserError(
                    f"suite {self.name!r} has no tasks {unknown}, informative at scale {scale!r}", code="task-invalid"
                )

    @property
    def headline(self) -> tuple[str, ...]:
        """Return the tasks of the headline average, in the suite's order."""
        return tuple(name for name in self.tasks if not self.reporting or name in self.reporting)

    @property
    def development(self) -> tuple[str, ...]:
        """Return the other tasks, in the suite's order; none where all report."""
        return tuple(name for name in self.tasks if name not in self.headline)
