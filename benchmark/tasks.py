"""Kinds of tasks and suites. A task is data: an instance of one of these in a file of `eval_tasks/`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class Task:
    """One downstream task, scored zero-shot. Its data lies in `<eval_dir>/wds_<name, / as ->_test`."""

    name: str  # for DataComp's tasks, DataComp's key
    title: str  # for tables
    groups: tuple[str, ...] = ()
    version: int = 1  # raised when a number it gives would change
    main_metric: str = ""

    kind: ClassVar[str] = "task"

    @property
    def folder_name(self) -> str:
        """Return the data set's folder, as DataComp names it (formats.md: `wds_{key, / to -}_test`)."""
        return f"wds_{self.name.removeprefix('fairness/').replace('/', '-')}_test"

    @property
    def file_stem(self) -> str:
        """Return the name of the task's result files."""
        return self.name.replace("/", "-")


@dataclass(frozen=True, kw_only=True)
class ZeroShotClassification(Task):
    """Choose the class whose prompts (class names in templates) are nearest to the image (Radford et al. 2021)."""

    main_metric: str = "acc1"
    kind: ClassVar[str] = "classification"


@dataclass(frozen=True, kw_only=True)
class WorstGroup(ZeroShotClassification):
    """Zero-shot classification scored by its worst group; `.npy` members hold each sample's group at `group_field`."""

    main_metric: str = "acc_wg"
    group_field: int = 0
    group_names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Retrieval(Task):
    """Find the caption of an image and the image of a caption (recall@1, 5, 10 in both directions)."""

    main_metric: str = "mean_recall@1"
    kind: ClassVar[str] = "retrieval"


@dataclass(frozen=True, kw_only=True)
class Association(Task):
    """Choose the images that a cue word goes with, among candidates (WinoGAViL, Bitton et al. 2022)."""

    main_metric: str = "jaccard_score_10-12"
    kind: ClassVar[str] = "association"


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A named, versioned list of tasks; its headline average is the mean main metric of its reporting half.

    The other tasks are the development half: a benchmark and its strategies are tuned on these alone.
    """

    name: str
    version: int
    tasks: tuple[str, ...]
    reporting: tuple[str, ...] = ()  # the tasks of the headline average; empty: all

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.reporting) - set(self.tasks)):
            raise ValueError(f"suite {self.name!r} reports tasks that it does not have: {unknown}")

    @property
    def headline(self) -> tuple[str, ...]:
        """Return the tasks of the headline average, in the suite's order."""
        return tuple(name for name in self.tasks if not self.reporting or name in self.reporting)

    @property
    def development(self) -> tuple[str, ...]:
        """Return the other tasks, in the suite's order; none where all report."""
        return tuple(name for name in self.tasks if name not in self.headline)
