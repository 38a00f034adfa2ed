"""What a kind of task knows: its evaluation set, its predictions, its metrics, and how surely they are known.

A new kind is one class in one file, a user's own too (`plugins=my_kind.py`): a frozen dataclass that derives from
`Task`, declares `kind`, `schema` and `set_files`, and defines `predict`, `metrics` and `known_main_metrics`. For the
standard error of its score it defines `contributions`, or `estimator` where the score is not a mean over samples.
Everything else has a default here. `eval_tasks/` registers instances.

torch is not imported by a kind: the encoder that `predict` is handed returns embeddings, which a kind passes on to
`encoder.similarities`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

import pyarrow as pa

from benchmark.evaluation.estimators import Estimator, MeanOfSamples, SampleMean
from benchmark.evaluation.predictions import refuse_repeats
from benchmark.evaluation.samples import CLASSNAMES, LABEL_EXTENSIONS, TEMPLATES, EvalSet, read_prompts
from benchmark.runtime.errors import UserError
from benchmark.runtime.files import Json

if TYPE_CHECKING:
    from benchmark.evaluation.encoding import TaskEncoder

Metrics: TypeAlias = dict[str, float | None]


@dataclass(frozen=True)
class TaskMetrics:
    """What follows from a task's predictions."""

    values: Metrics  # by name; None where the data does not define one
    chance: dict[str, float]  # the expected value of guessing, of the metrics that may be a main metric


@dataclass(frozen=True)
class DeclaredChance:
    """What guessing gets, by a task's declaration alone."""

    value: float
    meaning: Literal["exact", "approximate", "upper bound"]


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """One downstream task, scored zero-shot. Its data lies in `<eval_dir>/wds_<name, / as ->_test`, or without `_test`.

    `folder_names` has both names of the folder.
    """

    name: str  # for DataComp's tasks, DataComp's key
    title: str  # for tables; DataComp's name of the data set
    groups: tuple[str, ...] = ()
    version: int = 1  # raised when a number it gives would change
    main_metric: str = ""  # a score from 0 to 1; empty: the task has no scalar and is in no average
    size: int | None = None  # known number of samples (`sample_noun` says of what); None: any
    hub_rows: str = ""  # the Hugging Face data set whose rows may take the folder's place, such as nlphuji/winogavil

    kind: ClassVar[str]
    schema: ClassVar[pa.Schema]  # columns of the predictions, in order; one is `key`, a string
    set_files: ClassVar[tuple[str, ...]]  # what lies in the set's folder beside the tars
    nullable: ClassVar[frozenset[str]] = frozenset()  # columns of the predictions that may hold nulls
    row_order: ClassVar[tuple[str, ...]] = ("key",)  # columns that tell the rows of the predictions apart
    answer_columns: ClassVar[tuple[str, ...]] = ("key",)  # columns that say something of the samples, not of the model
    label_extensions: ClassVar[tuple[str, ...]] = LABEL_EXTENSIONS  # members of a sample that are read whole
    sample_noun: ClassVar[str] = "images"  # what `size` and `count_samples` count

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        if missing := [name for name in ("kind", "schema", "set_files") if not hasattr(cls, name)]:
            raise UserError(
                f"the kind of task {cls.__name__} does not declare {', '.join(missing)}", code="task-invalid"
            )

    # --- Names -----------------------------------------------------------------------------------------------------

    @property
    def is_scored(self) -> bool:
        """Tell whether the task has a scalar."""
        return bool(self.main_metric)

    @property
    def folder_name(self) -> str:
        """Return the data set's folder, as DataComp names it: `wds_{key, / to -}_test`."""
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

    # --- Evaluation set --------------------------------------------------------------------------------------------

    def check_lists(self, folder: Path) -> None:
        """Raise SetError where the set's lists cannot be read; called before the tars are read."""
        if {CLASSNAMES, TEMPLATES} <= {*self.set_files}:
            read_prompts(folder)

    def count_samples(self, eval_set: EvalSet) -> int:
        """Return the number of samples, of which `size` is the known one. Raises SetError."""
        return len(eval_set.samples)

    def size_faults(self, folder: Path, num_samples: int) -> list[str]:
        """Return in what the set's counts are not those that are declared: `9,999 images instead of 10,000`."""
        if self.size is None or num_samples == self.size:
            return []
        return [f"{num_samples:,} {self.sample_noun} instead of {self.size:,}"]

    def notes(self, folder: Path) -> list[str]:
        """Return sentences about the set that a user should read before it is evaluated."""
        return []

    # --- Predictions -----------------------------------------------------------------------------------------------

    @abstractmethod
    def predict(self, eval_set: EvalSet, encoder: TaskEncoder) -> pa.Table:
        """Return the predictions of the encoder's model, of the type `schema`. Raises SetError."""

    def check_table(self, predictions: pa.Table, where: str) -> None:
        """Raise UserError, code results-invalid, where a table contradicts itself; `where` begins the sentence.

        Columns, types and nulls were checked, and that floats are finite (`check_predictions`).
        """
        refuse_repeats(predictions["key"].to_pylist(), where)

    def answers(self, predictions: pa.Table) -> pa.Table:
        """Return what a table says about the samples and not about the model: equal where the samples are the same."""
        return predictions.select(list(self.answer_columns))

    def expected_counts(self, predictions: pa.Table) -> dict[str, Json]:
        """Return what the record of a set of another size says of the counts that were expected."""
        return {"expected_samples": self.size}

    # --- Metrics ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def metrics(self, predictions: pa.Table) -> TaskMetrics:
        """Return all metrics of a table that `check_predictions` accepts; one of them is `num_samples`."""

    @abstractmethod
    def known_main_metrics(self) -> list[str]:
        """Return the metrics that `main_metric` may name, whatever the data."""

    @property
    def declared_chance(self) -> DeclaredChance | None:
        """Return what guessing gets in the main metric by the declaration alone; None where it does not say."""
        return None

    @property
    def is_share_of_samples(self) -> bool:
        """Tell whether the main metric is the share of samples that are right: score and `size` give its error."""
        return False

    # --- Uncertainty -----------------------------------------------------------------------------------------------

    def contributions(self, predictions: pa.Table) -> SampleMean:
        """Return what each independent sample contributes to the main metric, which is the mean of that."""
        raise self._without_error()

    def estimator(self) -> Estimator:
        """Return how the main metric's uncertainty follows from predictions: by default of a mean over samples.

        Raises UserError where the kind defines neither this nor `contributions`.
        """
        if type(self).contributions is Task.contributions:
            raise self._without_error()
        return MeanOfSamples(self.contributions)

    def _without_error(self) -> UserError:
        return UserError(
            f"task {self.name!r}: no standard error is known of its main metric {self.main_metric!r}",
            code="task-invalid",
        )
