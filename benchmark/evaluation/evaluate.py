"""The evaluate stage: score a model zero-shot on tasks, with each sample's prediction (Radford et al. 2021, Sec. 3.1).

`encoding.py` turns images and texts into embeddings, a task's kind makes predictions of them, `results.py` writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from benchmark.evaluation.batch_encoder import batch_encoder, inference
from benchmark.evaluation.encoding import ImageCache, ModelEncoder, TaskEncoder, Tokenizer
from benchmark.evaluation.eval_sets import (
    Contents,
    bad_sets,
    check_eval_sets,
    hash_eval_set,
    read_contents,
    read_eval_set,
    reason_of,
    unexpected_sizes,
)
from benchmark.evaluation.kinds.base import Task
from benchmark.evaluation.preprocess import Preprocess
from benchmark.evaluation.results import (
    EVAL_FOLDER,
    STAGE,
    VERSION,
    check_main_metric,
    model_of,
    predictions_path,
    read_results,
    result_path,
    update_metrics,
    write_lines,
    write_result,
)
from benchmark.evaluation.samples import SetError
from benchmark.runtime.console import say, warn
from benchmark.runtime.costs import cost
from benchmark.runtime.errors import UserError
from benchmark.runtime.files import Json, remove_temporary, sha256_of
from benchmark.runtime.locks import locked
from benchmark.runtime.records import Record, describe_differences, finished, read_record
from benchmark.toolbox.hub_rows import local_set
from benchmark.training.ranks import SINGLE_PROCESS, Ranks

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import nn


@dataclass(frozen=True)
class _TaskJob:
    """A task that has no result yet."""

    task: Task
    folder: Path
    contents: Contents
    inputs: dict[str, Json]
    is_whole: bool = True  # has the number of samples that it is known to have

    def costs(self, seed: int | None) -> dict[str, Json]:
        """Return what a line of `costs.jsonl` says of it."""
        numbers: dict[str, Json] = {} if seed is None else {"seed": seed}
        return numbers | {"task": self.task.name, "images": self.contents.num_images}

    def predict(self, encoder: ModelEncoder) -> pa.Table:
        """Return the predictions of the encoder's model. Raises SetError, OSError."""
        eval_set = read_eval_set(self.task, self.folder)
        return self.task.predict(eval_set, TaskEncoder(encoder, self.task.name, self.contents.images))


def evaluate(
    model: nn.Module,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    eval_dir: Path,
    out_dir: Path,
    *,
    inputs: dict[str, Json],
    preprocess: Preprocess,
    device: str = "cpu",
    workers: int = 0,
    strict: bool = True,
    ranks: Ranks = SINGLE_PROCESS,
    costs_dir: Path | None = None,
    seed: int | None = None,
) -> dict[str, Record]:
    """Evaluate `model` (open_clip's `encode_image` and `encode_text`) and return the tasks' records, by task name.

    Writes what `results.py` describes below `out_dir`. `inputs` says which model this is; each record adds
    its task, the hash of its data, and the preprocessing. A task that has its result is skipped; `ranks` share the
    others. `workers` processes decode images (threads of this one where it is 0); they do not change the result. A set
    of another size than its task is known to have is an error, or a warning without `strict`. What a task took is
    appended to `costs.jsonl` in `costs_dir` (`out_dir`), with the training `seed` if there is one.

    Raises FileNotFoundError that lists everything missing before any work begins, UserError where a result there comes
    from something else; and at the end, when all other tasks have their results, BadSetsError that lists the sets
    that cannot be read or have another size.
    """
    model.to(device)
    with ExitStack() as held:
        found = ranks.run_on_rank0(lambda: find_sets(tasks, eval_dir))  # before anything is written
        ranks.run_on_rank0(lambda: held.enter_context(locked(out_dir / EVAL_FOLDER)))
        plan = ranks.run_on_rank0(lambda: _plan(tasks, found, out_dir, inputs, preprocess, strict=strict))
        mine = _share(plan.jobs, ranks)
        images = sum(job.contents.num_images for job in mine)
        bar = held.enter_context(tqdm(total=images, desc="evaluate", unit="image", disable=None, leave=False))
        held.enter_context(inference(model))
        batches = held.enter_context(batch_encoder(model, device))
        cache = ImageCache(job.contents.images for job in mine)
        encoder = ModelEncoder(batches, tokenizer, preprocess, device=device, workers=workers, cache=cache, bar=bar)
        unreadable: dict[str, str] = {}
        for job in mine:
            bar.set_description(job.task.title)
            try:
                with cost(costs_dir or out_dir, "evaluate_task", **job.costs(seed)):
                    write_result(out_dir, job.task, job.inputs, job.predict(encoder), is_whole=job.is_whole)
            except (SetError, OSError) as error:
                unreadable[job.task.name] = reason_of(error, job.folder)
                warn(f"{job.task.name!r} cannot be evaluated: {unreadable[job.task.name]}")
        num_truncated = int(ranks.sums(encoder.num_truncated)[0])  # which waits for every rank
        of_all = [plan.unreadable, *ranks.collect(unreadable)]
        if ranks.is_first:
            write_lines(out_dir)
            if num_truncated:
                noun = "prompt or caption fills" if num_truncated == 1 else "prompts or captions fill"
                warn(f"{num_truncated} {noun} the model's whole context; longer ones were truncated")
    reasons = {name: of_rank[name] for task in tasks for of_rank in of_all if (name := task.name) in of_rank}
    if (refusal := bad_sets(reasons, plan.odd, len(tasks))) is not None:
        refusal.out_dir = out_dir
        raise refusal
    return read_results(out_dir, tasks)


@dataclass(frozen=True)
class FoundSets:
    """Where the sets of tasks are, by task name."""

    folders: dict[str, Path]
    unreadable: dict[str, str]  # why rows of a data set of the hub cannot be unpacked


def find_sets(tasks: Sequence[Task], eval_dir: Path) -> FoundSets:
    """Find the set of each task; raises FileNotFoundError that lists all that is missing."""
    folders: dict[str, Path] = {}
    unreadable: dict[str, str] = {}
    for task in tasks:
        try:
            folders[task.name] = local_set(task, eval_dir)
        except UserError as error:
            unreadable[task.name] = str(error)
    check_eval_sets([task for task in tasks if task.name in folders], folders, eval_dir)
    for task in tasks:
        both = [name for name in task.folder_names if (eval_dir / name).is_dir()]
        if len(both) > 1:
            warn(f"{eval_dir} has {both[0]} and {both[1]}; {task.name!r} is evaluated on {both[0]}")
    return FoundSets(folders, unreadable)


def check_sets(tasks: Sequence[Task], eval_dir: Path, *, strict: bool) -> None:
    """Raise FileNotFoundError where files of sets are missing, BadSetsError that lists those that cannot be evaluated.

    The headers of all tars are read, not the images. Without `strict` a set of an unexpected size is a warning.
    """
    found = find_sets(tasks, eval_dir)
    unreadable, sets = dict(found.unreadable), []
    for task in tasks:
        if (folder := found.folders.get(task.name)) is not None:
            try:
                sets.append((task, folder, read_contents(task, folder, hash_eval_set(task, folder))))
            except (SetError, OSError) as error:
                unreadable[task.name] = reason_of(error, folder)
    if (refusal := bad_sets(unreadable, _unexpected_sets(sets, strict=strict), len(tasks))) is not None:
        raise refusal


def _unexpected_sets(sets: Sequence[tuple[Task, Path, Contents]], *, strict: bool) -> dict[str, str]:
    """Return which sizes are unexpected; without `strict` they are a warning, and nothing is returned."""
    odd = unexpected_sizes(sets)
    if odd and not strict:
        text = f"{len(odd)} of {len(sets)} evaluation sets have an unexpected size: {'; '.join(odd.values())}"
        warn(f"{text}; their scores are not comparable")
    return odd if strict else {}


@dataclass(frozen=True)
class _Plan:
    """What an evaluation will do, and which sets it cannot evaluate."""

    jobs: list[_TaskJob]
    unreadable: dict[str, str]
    odd: dict[str, str]


def _plan(
    tasks: Sequence[Task],
    found: FoundSets,
    out_dir: Path,
    inputs: dict[str, Json],
    preprocess: Preprocess,
    *,
    strict: bool,
) -> _Plan:
    """Return the tasks that have no result yet and can be evaluated; report which are up to date, and which cannot."""
    remove_temporary(out_dir / EVAL_FOLDER)
    for task in tasks:
        check_main_metric(task)
    jobs, unreadable = [], dict(found.unreadable)
    for task in tqdm(tasks, desc="check data", unit="task", disable=None, leave=False):
        if task.name in unreadable:
            continue
        folder = found.folders[task.name]
        try:
            data_hash = hash_eval_set(task, folder)
        except (SetError, OSError) as error:
            unreadable[task.name] = reason_of(error, folder)
            continue
        source = _inputs_of(task, data_hash, inputs, preprocess)
        record = finished(result_path(out_dir, task), STAGE, VERSION, source)
        path = predictions_path(out_dir, task)
        if record is None or not path.exists():
            try:
                jobs.append(_TaskJob(task, folder, read_contents(task, folder, data_hash), source))
            except (SetError, OSError) as error:
                unreadable[task.name] = reason_of(error, folder)
            continue
        if sha256_of(path) != record.result["predictions"]:
            raise UserError(
                f"{path} was changed after it was made; delete it to have it made again", code="file-changed"
            )
        if strict and "expected_samples" in record.result:
            raise UserError(
                f"{result_path(out_dir, task)} comes from data of an unexpected size (strict=false); delete it and "
                "evaluate complete data, or repeat strict=false",
                code="record-differs",
            )
        update_metrics(out_dir, task, record)
    if tasks:
        _refuse_other_models(out_dir, _inputs_of(tasks[0], "", inputs, preprocess))
    num_done = len(tasks) - len(jobs) - len(unreadable)
    sets = [(job.task, job.folder, job.contents) for job in jobs]
    partial, odd = set(unexpected_sizes(sets)), _unexpected_sets(sets, strict=strict)
    jobs = [replace(job, is_whole=job.task.name not in partial) for job in jobs if job.task.name not in odd]
    for note in [note for job in jobs for note in job.task.notes(job.folder)]:
        warn(note)
    if num_done:
        say(f"evaluate: up to date, skipping {num_done} of {len(tasks)} tasks ({out_dir / EVAL_FOLDER})")
    if jobs and (refusal := bad_sets(unreadable, odd, len(tasks))) is not None:
        warn(f"{refusal}. The others are evaluated")
    return _Plan(jobs, unreadable, odd)


def _refuse_other_models(out_dir: Path, source: dict[str, Json]) -> None:
    """Raise ValueError where a result of any task there is another model's: `eval_results.jsonl` is one model's."""
    for path in sorted((out_dir / EVAL_FOLDER).glob("*.json")):
        record = read_record(path)
        if record and (shown := describe_differences(model_of(source), model_of(record.inputs))):
            raise UserError(
                f"{out_dir} has a result of another model or setting ({path.name}): {shown}. Choose another folder, "
                f"repeat those settings, or delete {path.parent}.",
                code="record-differs",
            )


def _share(jobs: Sequence[_TaskJob], ranks: Ranks) -> list[_TaskJob]:
    """Return this rank's jobs: the largest go first, each to the rank with least to do; shared images stay together."""
    together: dict[str, list[_TaskJob]] = {}
    for job in jobs:
        together.setdefault(job.contents.images, []).append(job)
    loads = [0] * ranks.size
    mine: list[_TaskJob] = []
    for group in sorted(together.values(), key=lambda group: -group[0].contents.tar_bytes):
        rank = loads.index(min(loads))
        loads[rank] += group[0].contents.tar_bytes
        mine += group if rank == ranks.rank else []
    return sorted(mine, key=jobs.index)


def _inputs_of(task: Task, data_hash: str, inputs: dict[str, Json], preprocess: Preprocess) -> dict[str, Json]:
    ours = {
        "task": task.name,
        "task_version": task.version,
        "data": data_hash,
        "image_size": preprocess.image_size,
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
    }
    usual = Preprocess(preprocess.image_size, preprocess.mean, preprocess.std)
    for name in ("interpolation", "resize_mode"):  # records of the embedded scales are older than these
        if getattr(preprocess, name) != getattr(usual, name):
            ours[name] = getattr(preprocess, name)
    assert not ours.keys() & inputs.keys()
    return ours | inputs
