"""The evaluation stage: scores of every seed of an experiment, or of any open_clip model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.experiment.entry import name_of
from benchmark.experiment.folder import curve_dir, open_experiment, refuse_changed, trained_record
from benchmark.pool.pool import Pool
from benchmark.registry import load_tasks, tasks_named
from benchmark.runtime.console import say
from benchmark.runtime.context import Context
from benchmark.runtime.costs import cost
from benchmark.runtime.files import Json
from benchmark.runtime.locks import locked
from benchmark.runtime.records import Record, read_record
from benchmark.scales import Scale

if TYPE_CHECKING:
    from torch import nn

    from benchmark.evaluation.checkpoints import OpenedModel
    from benchmark.evaluation.eval_sets import BadSetsError
    from benchmark.evaluation.tasks import Task


def evaluate_stage(
    exp_dir: Path,
    pool: Pool,
    scale: Scale,
    seeds: Sequence[int],
    eval_dir: Path,
    tasks: Sequence[Task],
    context: Context,
    *,
    curve: bool = False,
) -> None:
    """Evaluate every trained seed on every task that has no result yet; with `curve`, its kept checkpoints too.

    Raises BadSetsError at the end, when all else is evaluated, where the sets of some tasks cannot be.
    """
    from benchmark.evaluation.eval_sets import bad_sets
    from benchmark.evaluation.results import read_results
    from benchmark.models.build import build_model
    from benchmark.training.exact import recipe_threads
    from benchmark.training.health import WandbRun
    from benchmark.training.ranks import SINGLE_PROCESS

    ranks = context.ranks or SINGLE_PROCESS
    _, subset_record = open_experiment(exp_dir, pool)
    name_of(exp_dir, subset_record, pool)  # which an old record may not have, so that its filters must be loaded
    # Of all seeds at first: what one of them lacks is not to be met after hours with another.
    trained = {seed: trained_record(exp_dir, scale, seed, subset_record) for seed in seeds}
    failed: BadSetsError | None = None
    for seed in seeds:
        seed_dir = exp_dir / f"seed-{seed}"
        with recipe_threads(scale), ExitStack() as held:
            ranks.run_on_rank0(partial(held.enter_context, locked(seed_dir)))
            model = build_model(scale.model, image_size=scale.image_size)
            for weights in _weights_of(seed_dir, trained[seed], tasks, with_kept=curve):
                error = _evaluate_weights(model, weights, exp_dir, scale, seed, eval_dir, tasks, context)
                if error is not None:
                    earlier = failed or error
                    unreadable, odd = earlier.unreadable | error.unreadable, earlier.odd | error.odd
                    failed = bad_sets(unreadable, odd, num_tasks=len(tasks))
        if ranks.is_first:
            metrics = {name: record.result["metrics"] for name, record in read_results(seed_dir, tasks).items()}
            scores = {name: each["main_metric"] for name, each in metrics.items() if each["main_metric"] is not None}
            WandbRun(context.wandb, exp_dir, seed).log_scores(scores, {"recipe_hash": scale.hash})
    if failed is not None:
        failed.out_dir = exp_dir
        raise failed


@dataclass(frozen=True)
class _Weights:
    """Weights that a seed left, and the folder of their results."""

    sha256: str
    path: Path
    out_dir: Path


def _weights_of(seed_dir: Path, trained: Record, tasks: Sequence[Task], *, with_kept: bool) -> list[_Weights]:
    """Return the final weights of a seed, and, of its kept checkpoints, those that are there or still to evaluate."""
    from benchmark.training.state import WEIGHTS_NAME, kept_name

    found = [_Weights(trained.result["weights"], seed_dir / "checkpoint" / WEIGHTS_NAME, seed_dir)]
    for step, sha256 in trained.result.get("kept", {}).items() if with_kept else ():
        path, out_dir = seed_dir / "checkpoint" / kept_name(int(step)), curve_dir(seed_dir, int(step))
        # None: training said that it was gone. One that was deleted after its evaluation is not needed again.
        if sha256 is not None and (path.exists() or not _has_results(out_dir, tasks, sha256)):
            found.append(_Weights(sha256, path, out_dir))
    return found


def _evaluate_weights(
    model: nn.Module,
    weights: _Weights,
    exp_dir: Path,
    scale: Scale,
    seed: int,
    eval_dir: Path,
    tasks: Sequence[Task],
    context: Context,
) -> BadSetsError | None:
    """Load the weights into the model and evaluate them; return the error about sets that cannot be evaluated."""
    from benchmark.evaluation.eval_sets import BadSetsError
    from benchmark.evaluation.evaluate import evaluate
    from benchmark.evaluation.preprocess import Preprocess
    from benchmark.evaluation.results import result_path
    from benchmark.models.build import build_tokenizer
    from benchmark.training.ranks import SINGLE_PROCESS
    from benchmark.training.state import load_weights

    refuse_changed(weights.path, weights.sha256)
    load_weights(model, weights.path)
    ranks, out_dir = context.ranks or SINGLE_PROCESS, weights.out_dir
    own: dict[str, Json] = {} if scale.is_comparable else {"recipe": scale.identity}
    missing = [task for task in tasks if not result_path(out_dir, task).exists()]
    is_timed = missing and ranks.is_first
    failure: BadSetsError | None = None
    with cost(exp_dir, "evaluate", seed=seed, tasks=len(missing)) if is_timed else nullcontext():
        try:
            evaluate(
                model,
                build_tokenizer(scale.model),
                tasks,
                eval_dir,
                out_dir,
                inputs={"model": scale.model, "checkpoint": weights.sha256, "device": context.device, **own},
                preprocess=Preprocess(scale.image_size, tuple(scale.mean), tuple(scale.std)),
                device=context.device,
                workers=evaluation_workers(context),
                strict=context.strict,
                ranks=ranks,
                costs_dir=exp_dir,
                seed=seed if out_dir == exp_dir / f"seed-{seed}" else None,
            )
        except BadSetsError as error:
            failure = error
    if done := [task for task in missing if result_path(out_dir, task).exists()]:
        say(f"evaluate: seed {seed}, {len(done)} tasks ({out_dir / 'eval'})")
    return failure


def _has_results(out_dir: Path, tasks: Sequence[Task], weights: str) -> bool:
    """Tell whether all tasks have results of these weights."""
    from benchmark.evaluation.results import predictions_path, result_path

    records = [read_record(result_path(out_dir, task)) for task in tasks if predictions_path(out_dir, task).exists()]
    return len(records) == len(tasks) and all(each and each.inputs["checkpoint"] == weights for each in records)


def default_out_dir(opened: OpenedModel) -> Path:
    """Return `evaluations/<model>-<hash of the weights>`, where the results of a model go that has no other folder."""
    return Path("evaluations") / f"{opened.name}-{opened.checkpoint.split(':')[-1][:12]}"


def evaluate_model(opened: OpenedModel, tasks: Sequence[Task], eval_dir: Path, out_dir: Path, context: Context) -> None:
    """Evaluate any open_clip model (`evaluation.checkpoints.open_model`) on tasks; raises as `evaluate` does."""
    from benchmark.evaluation.evaluate import evaluate
    from benchmark.training.ranks import SINGLE_PROCESS

    evaluate(
        opened.model,
        opened.tokenizer,
        tasks,
        eval_dir,
        out_dir,
        inputs={"model": opened.name, "checkpoint": opened.checkpoint, "device": context.device},
        preprocess=opened.preprocess,
        device=context.device,
        workers=evaluation_workers(context),
        strict=context.strict,
        ranks=context.ranks or SINGLE_PROCESS,
    )


def evaluation_workers(context: Context) -> int:
    """Return how many processes decode images: for a GPU one per core, which alone can feed it; for a CPU none."""
    from benchmark.training.train import default_workers

    if context.workers is not None:
        return context.workers
    return default_workers() if context.device == "cuda" else 0


def check_evaluation_data(tasks: Sequence[Task], eval_dir: Path, *, strict: bool = True) -> None:
    """Raise FileNotFoundError or ValueError that says what the tasks lack, before hours of training are spent."""
    from benchmark.evaluation.evaluate import check_sets

    check_sets(tasks, eval_dir, strict=strict)


def chosen_tasks(scale: Scale, names: Sequence[str]) -> tuple[Task, ...]:
    """Return the named tasks or groups, or the scale's suite where none is named."""
    load_tasks()
    return tuple(tasks_named(names or [scale.suite], scale.suite))
