"""Kinds of tasks and suites. A task is data: an instance of one of these in a file of `eval_tasks/`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from benchmark.runtime.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Task:
    """One downstream task, scored zero-shot. Its data lies in `<eval_dir>/wds_<name, / as ->_test`, or without `_test`.

    `folder_names` has both names of the folder.
    """

    name: str  # for DataComp's tasks, DataComp's key
    title: str  # for tables; DataComp's name of the data set
    groups: tuple[str, ...] = ()
    version: int = 1  # raised when a number it gives would change
    main_metric: str = ""  # empty: it has no scalar and is in no average
    size: int | None = None  # known number of samples (images; of an association task, cues); None: any
    hub_rows: str = ""  # the Hugging Face data set whose rows may take the folder's place, such as nlphuji/winogavil

    kind: ClassVar[str] = "task"

    @property
    def is_scored(self) -> bool:
        """Tell whether the task has a scalar."""
        return bool(self.main_metric)

    @property
    def folder_name(self) -> str:
        """Return the data set's folder, as DataComp names it (formats.md: `wds_{key, / to -}_test`)."""
        return f"wds_{self.name.removeprefix('fairness/').replace('/', '-')}_test"

    @property
    def folder_names(self) -> tuple[str, ...]:
        """Return what the data set's folder may be called: by DataComp, or by clip-benchmark on the hub."""
        short = self.folder_name.removesuffix("_test")
        # The short name of "x_test" would be the folder of "x".
        return (self.folder_name,) if short.endswith("_test") else (self.folder_name, short)

    @property
    def file_stem(self) -> str:
        """Return the name of the task's result files."""
        return self.name.replace("/", "-")


@dataclass(frozen=True, kw_only=True)
class ZeroShotClassification(Task):
    """Choose the class whose prompts (class names in templates) are nearest to the image (Radford et al. 2021)."""

    main_metric: str = "acc1"
    num_classes: int | None = None  # known number of classes; None: any
    macro: bool = False  # also WILDS' macro recall and F1, over the classes that have samples (iWildCam)
    kind: ClassVar[str] = "classification"


@dataclass(frozen=True)
class GroupField:
    """One number of the vector in a sample's `.npy`, by which samples are grouped."""

    name: str  # of the group in the metrics' names: acc_region:3
    place: int  # in the vector
    names: tuple[str, ...] = ()  # of its values; empty: they are called by their numbers
    rest: int | None = None  # the value that gathers what belongs to no group ("Other")


@dataclass(frozen=True, kw_only=True)
class GroupedClassification(ZeroShotClassification):
    """Zero-shot classification scored by its worst group; `.npy` members hold each sample's groups.

    Metrics are named as by WILDS: acc_avg, acc_<field>:<value>, count_<field>:<value>, and acc_wg where there is one
    field, acc_worst_<field> where there are several; acc_top5 instead of acc with `top5`.
    """

    main_metric: str = "acc_wg"
    group_fields: tuple[GroupField, ...] = (GroupField("group", 0),)
    top5: bool = False  # a hit is a label among the five nearest classes

    @property
    def prefix(self) -> str:
        """Return what the groups' metrics begin with."""
        return "acc_top5" if self.top5 else "acc"


@dataclass(frozen=True, kw_only=True)
class FaceAttributes(Task):
    """Race, gender and age of faces, and slurs given to them (DataComp, Sec. 3.5); tables of metrics, no scalar.

    Class names and templates carry the objective that they belong to, `race:White`; the `.npy` vector is age, gender,
    race, race_binary.
    """

    kind: ClassVar[str] = "face_attributes"


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
