"""Finished experiments and boards for notebooks: scores, predictions and comparisons as DataFrames."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from benchmark.evaluation.results import read_predictions
from benchmark.experiment import folder as stages
from benchmark.pool.subset import Subset, load_subset
from benchmark.registry import load_tasks
from benchmark.runtime.costs import read_costs
from benchmark.runtime.errors import NotFoundError, UnknownNameError
from benchmark.runtime.names import nearest_name
from leaderboard.board import board_named, read_entries, read_other_pools
from leaderboard.score_rows import Evaluation
from leaderboard.score_sets import ScoreSet
from leaderboard.score_table import evaluation_of, spell_evaluation, to_frame
from leaderboard.scores import read_scores
from leaderboard.table import Table, make_table


@dataclass(frozen=True)
class Experiment:
    """A folder that `winnow run` filled: one choice of samples, and the models trained on it, a seed each."""

    dir: Path

    @property
    def subset(self) -> Subset:
        """Return the samples that it trained on. Raises UserError where the file was changed after it was made."""
        path, record = stages.open_experiment(self.dir, None)
        stages.refuse_changed(path, record.result["sha256"])
        return load_subset(path, known_sorted=True)

    def scores(self) -> pd.DataFrame:
        """Return a row per training seed and task, in that order.

        `score` is the task's main metric, from 0 to 1; `standard_error` and the 95 % interval from `low` to `high` are
        over the choice of test samples; `chance` is what guessing gets. They are missing where they are not known.
        Raises UserError (`results-missing`) where no seed is evaluated.

        >>> experiment.scores().groupby("task").score.mean()
        """
        rows = []
        for seed, found in self._seeds().items():
            for task, value in found.scores.items():
                low, high = found.intervals.get(task, (None, None))
                error = found.errors.get(task)
                rows.append((seed, task, value, error, low, high, found.chance.get(task)))
        frame = pd.DataFrame(rows, columns=["seed", "task", "score", "standard_error", "low", "high", "chance"])
        return frame.astype(dict.fromkeys(["score", "standard_error", "low", "high", "chance"], float))

    def predictions(self, task: str, *, seed: int = 0) -> pd.DataFrame:
        """Return what a seed's model said of each test sample; the columns are those of docs/evaluation.md, by kind.

        Raises UserError where there is no such task or seed, or it is not evaluated.

        >>> found = experiment.predictions("nano/shapes", seed=0)
        >>> (found.label == found.prediction).mean()
        """
        tasks = load_tasks()
        if task not in tasks:
            raise UnknownNameError(f"unknown task {task!r}.{nearest_name(task, tasks)}", code="unknown-task")
        seed_dir = self.dir / f"seed-{seed}"
        if not seed_dir.is_dir():
            there = sorted(path.name for path in self.dir.glob("seed-*"))
            raise NotFoundError(f"{self.dir} has no seed {seed}; it has {there}", code="results-missing")
        return read_predictions(seed_dir, tasks[task]).to_pandas()

    def costs(self) -> pd.DataFrame:
        """Return what its stages took, a row for each time one ran, oldest first.

        Among the columns are `stage`, `seconds`, `cpu_seconds`, `host` and, where they apply, `seed` and `task`.

        >>> experiment.costs().groupby("stage").seconds.sum()
        """
        return pd.DataFrame(read_costs(self.dir))

    def _seeds(self) -> dict[int, ScoreSet]:
        seeds = read_scores(str(self.dir)).seeds
        if not seeds:
            raise NotFoundError(
                f"{self.dir} has results of one model, not of an experiment's seeds", code="results-missing"
            )
        return seeds


@dataclass(frozen=True)
class Comparison:
    """Scores beside a reference's, as `winnow leaderboard compare` has them; `print` shows its table."""

    evaluation: Evaluation

    def to_pandas(self) -> pd.DataFrame:
        """Return a row per group, average and task (`kind`, `name`).

        `change` is the difference of `score` and `reference`, paired by test sample where both sides have predictions
        of the same samples, with its 95 % interval over these samples from `change_low` to `change_high`;
        `change_over_seeds` is the same with the interval over training seeds. Missing where it is not known.
        """
        return to_frame(self.evaluation, with_tasks=True)

    def __str__(self) -> str:
        return spell_evaluation(self.evaluation, with_tasks=True)


def open_experiment(folder: str | Path) -> Experiment:
    """Open an experiment's folder, such as `experiments/nano/clip_score-1a2b3c4d`.

    Raises UserError (`subset-not-found`) where it is none.

    >>> experiment = wb.open_experiment("experiments/nano/clip_score-1a2b3c4d")
    """
    path = Path(folder).expanduser()
    stages.open_experiment(path, None)
    return Experiment(path)


def compare(
    experiment: Experiment | str | Path,
    other: Experiment | str | Path,
    *,
    suite: str | None = None,
    board: str | None = None,
) -> Comparison:
    """Compare the scores of two experiments on the same tasks: the first minus the other.

    Either may also be a folder with results of a model, a file as `eval_results.jsonl`, or the name of a released
    checkpoint. `suite` says which tasks (default: the suite that has most of the first's), `board` whose entries tell
    the noise of training seeds (default: that of their scale). Raises UserError where they share no task, or results
    are damaged.

    >>> print(wb.compare(experiment, "experiments/nano/no_filter-5e6f7a8b"))
    """
    sides = [str(each.dir if isinstance(each, Experiment) else each) for each in (experiment, other)]
    return Comparison(evaluation_of(sides[0], sides[1], suite_name=suite, with_tasks=True, board_name=board))


def read_board(name: str | Path) -> Table:
    """Read a board by its name, or from its folder: its table, as `winnow leaderboard table` prints it.

    Raises UserError (`board-not-found`) where there is none.

    >>> wb.read_board("nano").to_pandas()[["name", "average", "rank_first"]]
    """
    board = board_named(str(name))
    return make_table(read_entries(board), board, other_pools=read_other_pools(board))
