"""Scores of tasks from folders that `winnow evaluate` or `winnow run` filled, a folder per training seed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmark import registry
from benchmark.evaluation.results import EVAL_FOLDER, LINES_NAME, model_of, predictions_path, read_predictions
from benchmark.evaluation.uncertainty import uncertainty
from benchmark.runtime.errors import NotFoundError, UserError
from benchmark.runtime.files import read_text, sha256_of
from benchmark.runtime.records import Record, read_record
from leaderboard.score_lines import scores_of_lines
from leaderboard.score_sets import (
    SEED_FOLDER,
    SampleCounts,
    ScoreSet,
    TaskCost,
    Training,
    chances_of,
    checked_score,
    folder_title,
    known_size,
    stated_interval,
)

COSTS_NAME, COST_STAGE = "costs.jsonl", "evaluate_task"


TRAINED_PATH = "checkpoint/checkpoint.json"  # in a seed's folder


def scores_of_folder(folder: Path) -> ScoreSet:
    """Read an evaluation's folder, or an experiment's with one per seed; raises UserError where results are missing."""
    if any((folder / EVAL_FOLDER).glob("*.json")):
        return _of_records(folder)
    if (folder / LINES_NAME).is_file():
        return scores_of_lines(folder / LINES_NAME)
    seeds = {}
    for seed_dir in folder.glob("seed-*"):
        matched = SEED_FOLDER.fullmatch(seed_dir.name)
        if matched and any((seed_dir / EVAL_FOLDER).glob("*.json")):
            seeds[int(matched[1])] = _of_records(seed_dir)
    if not seeds:
        raise NotFoundError(
            f"{folder} holds no results: neither {EVAL_FOLDER}/*.json, {LINES_NAME} nor seed-*/{EVAL_FOLDER}/*.json; "
            "`winnow evaluate` makes them",
            code="results-missing",
        )
    found = _over_seeds(folder_title(folder), dict(sorted(seeds.items())))
    return replace(found, training=_training_of({seed: folder / f"seed-{seed}" for seed in seeds}))


def _training_of(seed_dirs: Mapping[int, Path]) -> Training | None:
    """Return what the evaluated weights of all seeds were trained from; None where one does not say, or they differ."""
    found: set[Training] = set()
    for seed, seed_dir in seed_dirs.items():
        trained = read_record(seed_dir / TRAINED_PATH)
        if trained is None or trained.inputs.get("seed") != seed:
            return None
        evaluated = [read_record(path) for path in sorted((seed_dir / EVAL_FOLDER).glob("*.json"))]
        if any(each is None or each.inputs.get("checkpoint") != trained.result.get("weights") for each in evaluated):
            return None
        recipe, pool = trained.inputs.get("recipe", {}), trained.inputs.get("pool", {})
        stated = [recipe.get("scale"), recipe.get("hash"), pool.get("fingerprint"), trained.inputs.get("subset")]
        texts = [each for each in stated if isinstance(each, str)]
        if len(texts) < len(stated):
            return None
        found.add(Training(*texts))
    return found.pop() if len(found) == 1 else None


def read_over_seeds(name: str, folders: Mapping[int, Path]) -> ScoreSet:
    """Read one folder of results per training seed; their mean counts. Raises as `read_scores` does."""
    registry.load_tasks()
    return _over_seeds(name, {seed: _of_records(folder) for seed, folder in sorted(folders.items())})


def _of_records(folder: Path) -> ScoreSet:
    """Read the records of `folder/eval`, and what stands beside them."""
    records: dict[str, Record] = {}
    places: dict[str, str] = {}
    for path in sorted((folder / EVAL_FOLDER).glob("*.json")):
        record = read_record(path)
        assert record is not None
        records[record.inputs["task"]] = record
        places[record.inputs["task"]] = f"{EVAL_FOLDER}/{path.name}"
    _refuse_mixed(folder, records)
    scores: dict[str, float] = {}
    errors: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    predictions: dict[str, tuple[Path, ...]] = {}
    odd_sizes: dict[str, SampleCounts] = {}
    odd_classes: dict[str, int] = {}
    for name, record in records.items():
        metrics = record.result["metrics"]
        if (score := metrics["main_metric"]) is None:
            continue
        scores[name] = checked_score(score, f"{folder / EVAL_FOLDER}: {name!r}")
        found, expected = metrics.get("num_samples"), record.result.get("expected_samples", known_size(name))
        if (classes := record.result.get("expected_classes")) is not None:
            odd_classes[name] = classes
        if found is not None and expected is not None and found != expected:
            odd_sizes[name] = SampleCounts(found, expected)
        if name in registry.TASKS and (path := predictions_path(folder, registry.TASKS[name])).is_file():
            if sha256_of(path) != record.result["predictions"]:
                raise UserError(
                    f"{path} was changed after it was made; delete it and evaluate again", code="file-changed"
                )
            predictions[name] = (folder,)
        if metrics.get("standard_error") is not None:
            errors[name] = metrics["standard_error"]
            if (interval := stated_interval(metrics)) is not None:
                intervals[name] = interval
        elif name in predictions:  # an older record, without these
            known = uncertainty(registry.TASKS[name], read_predictions(folder, registry.TASKS[name]))
            errors[name], intervals[name] = known.standard_error, (known.low, known.high)
    chance, bounds = chances_of(scores, {name: record.result["metrics"] for name, record in records.items()})
    return ScoreSet(
        name=folder_title(folder),
        scores=scores,
        chance=chance,
        chance_bounds=bounds,
        errors=errors,
        intervals=intervals,
        predictions=predictions,
        data={name: records[name].inputs["data"] for name in scores},
        costs=_costs(folder),
        odd_sizes=odd_sizes,
        odd_classes=odd_classes,
        unscored=tuple(name for name in records if name not in scores),
        metrics_at={name: places[name] for name in records if name not in scores},
        unknown=tuple(name for name in records if name not in registry.TASKS),
    )


def _refuse_mixed(folder: Path, records: Mapping[str, Record]) -> None:
    """Raise ValueError where records are of another version of their task, or of several models."""
    stale = [
        f"{name}: {record.inputs['task_version']} there, {registry.TASKS[name].version} now"
        for name, record in records.items()
        if name in registry.TASKS and record.inputs.get("task_version") != registry.TASKS[name].version
    ]
    if stale:
        raise UserError(
            f"{folder} has results of other versions of their tasks, evaluate again: {stale}", code="results-differ"
        )
    made = {name: model_of(record.inputs) for name, record in records.items()}
    first = next(iter(made))
    if others := [name for name in made if made[name] != made[first]]:
        raise UserError(
            f"{folder} has results of several models or settings: {first!r} and {others} were not made from the same; "
            f"delete {folder / EVAL_FOLDER} and evaluate again",
            code="results-differ",
        )


def _over_seeds(name_of_all: str, seeds: dict[int, ScoreSet]) -> ScoreSet:
    """Join the seeds of an experiment: the mean of each task that all of them have.

    Raises ValueError where they were evaluated on different data.
    """
    members = list(seeds.values())
    names = list(dict.fromkeys(name for each in members for name in each.scores))
    shared = [name for name in names if all(name in each.scores for each in members)]
    for seed, each in seeds.items():
        if odd := [name for name in shared if each.data.get(name) != members[0].data.get(name)]:
            raise UserError(
                f"{name_of_all}: its seeds cannot be joined, as seeds {next(iter(seeds))} and {seed} were evaluated on "
                f"different data of {', '.join(odd)}; evaluate one of them again in another folder",
                code="seeds-differ",
            )
    notes = []
    for seed, each in seeds.items():
        if missing := [name for name in names if name not in each.scores]:
            notes.append(f"Seed {seed} has no score of {', '.join(missing)}: there is no mean over seeds of these.")
    predictions = {
        name: tuple(each.predictions[name][0] for each in members)
        for name in shared
        if all(name in each.predictions for each in members)
    }
    errors, intervals = _errors_over_seeds(name_of_all, members, shared, predictions)
    costs = {}
    for name in shared:
        known = [each.costs[name] for each in members if name in each.costs]
        if known:
            seconds = math.fsum(cost.seconds for cost in known) / len(known)
            costs[name] = TaskCost(seconds, known[-1].images)
    return ScoreSet(
        name=name_of_all,
        scores={name: math.fsum(each.scores[name] for each in members) / len(members) for name in shared},
        chance={name: each.chance[name] for each in members for name in shared if name in each.chance},
        chance_bounds=frozenset().union(*(each.chance_bounds for each in members)),
        errors=errors,
        intervals=intervals,
        predictions=predictions,
        data={name: value for name, value in members[0].data.items() if name in shared},
        costs=costs,
        odd_sizes={name: size for each in members for name, size in each.odd_sizes.items()},
        odd_classes={name: classes for each in members for name, classes in each.odd_classes.items()},
        unscored=tuple(dict.fromkeys(name for each in members for name in each.unscored)),
        metrics_at={
            name: f"seed-{seed if len(seeds) == 1 else '*'}/{place}"
            for seed, each in seeds.items()
            for name, place in each.metrics_at.items()
        },
        unknown=tuple(dict.fromkeys(name for each in members for name in each.unknown)),
        seeds=seeds,
        notes=tuple(notes),
    )


def _errors_over_seeds(
    name_of_all: str, members: Sequence[ScoreSet], names: Sequence[str], predictions: Mapping[str, tuple[Path, ...]]
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Return the standard error of the mean over models tested on the same samples, and its interval, by task."""
    errors: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    for name in names:
        if len(members) > 1 and name in predictions:
            tables = [read_predictions(seed_dir, registry.TASKS[name]) for seed_dir in predictions[name]]
            try:
                known = uncertainty(registry.TASKS[name], tables)
            except ValueError as error:
                raise UserError(
                    f"{name_of_all}: its seeds cannot be joined, as the {error}", code="seeds-differ"
                ) from error
            errors[name], intervals[name] = known.standard_error, (known.low, known.high)
        elif all(name in each.errors for each in members):
            # As if the models erred on the same samples alike: no smaller than it is.
            errors[name] = math.fsum(each.errors[name] for each in members) / len(members)
            if all(name in each.intervals for each in members):
                low, high = (math.fsum(each.intervals[name][end] for each in members) / len(members) for end in (0, 1))
                intervals[name] = low, high
    return errors, intervals


def _costs(folder: Path) -> dict[str, TaskCost]:
    """Return what each task last took, by the `costs.jsonl` of the folder or of the experiment that a seed is of."""
    matched = SEED_FOLDER.fullmatch(folder.resolve().name)
    own, parent = folder / COSTS_NAME, folder.resolve().parent / COSTS_NAME
    path, seed = (parent, int(matched[1])) if matched and not own.exists() else (own, None)
    costs = {}
    for text in read_text(path).splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:  # a kill truncated it
            continue
        if line.get("stage") == COST_STAGE and (seed is None or line.get("seed") == seed):
            costs[line["task"]] = TaskCost(float(line["seconds"]), int(line["images"]))
    return costs
