"""Scores of tasks from wherever a user has them: a folder with results, an experiment, `eval_results.jsonl`, a name."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmark import registry
from benchmark.evaluation.estimators import wilson
from benchmark.evaluation.results import EVAL_FOLDER, LINES_NAME, model_of, predictions_path, read_predictions
from benchmark.evaluation.tasks import Suite
from benchmark.evaluation.uncertainty import uncertainty
from benchmark.runtime.errors import NotFoundError, UnknownNameError, UserError
from benchmark.runtime.files import Json, read_text, sha256_of
from benchmark.runtime.names import nearest_name
from benchmark.runtime.records import Record, read_record
from leaderboard.checkpoints import SUITE as DATACOMP
from leaderboard.checkpoints import guessed_score, read_checkpoints

COSTS_NAME, COST_STAGE = "costs.jsonl", "evaluate_task"
TRAINED_PATH = "checkpoint/checkpoint.json"  # in a seed's folder
OWN_SUITES = "To load your own tasks and suites: --plugins FILE."
SEED_FOLDER = re.compile(r"seed-(\d+)")


@dataclass(frozen=True)
class TaskCost:
    """What the evaluation of one task took."""

    seconds: float
    images: int


@dataclass(frozen=True)
class Samples:
    """A number of samples that is not the one the task is known to have."""

    found: int
    expected: int


@dataclass(frozen=True)
class Training:
    """What all seeds of an experiment were trained from."""

    scale: str
    recipe_hash: str
    pool: str  # fingerprint
    subset: str  # sha256


@dataclass(frozen=True)
class ScoreSet:
    """Scores by task of one model, or of one strategy as means over its training seeds."""

    name: str
    scores: dict[str, float]  # main metrics; a task that a seed has no score of is not there
    chance: dict[str, float] = field(default_factory=dict)  # where known
    errors: dict[str, float] = field(default_factory=dict)  # standard errors from the test samples, where known
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)  # 95 %, of the test samples, where known
    predictions: dict[str, tuple[Path, ...]] = field(default_factory=dict)  # the folders whose `eval/` holds them
    data: dict[str, str] = field(default_factory=dict)  # hashes of the evaluation sets, where known
    costs: dict[str, TaskCost] = field(default_factory=dict)  # of one seed, where known
    odd_sizes: dict[str, Samples] = field(default_factory=dict)
    odd_classes: dict[str, int] = field(default_factory=dict)  # task -> the number of classes that it should have
    unscored: tuple[str, ...] = ()  # there, without a main metric
    metrics_at: dict[str, str] = field(default_factory=dict)  # unscored task -> where its metrics are
    unknown: tuple[str, ...] = ()  # names that no task has here
    seeds: dict[int, ScoreSet] = field(default_factory=dict)  # empty: one model
    training: Training | None = None  # of an experiment all of whose seeds are evaluated at their end
    notes: tuple[str, ...] = ()  # sentences that belong beside the scores
    chance_bounds: frozenset[str] = frozenset()  # tasks of whose chance an upper bound is known


def read_scores(text: str) -> ScoreSet:
    """Read the scores that a user names.

    `text` is a folder that `winnow evaluate` filled, or a seed's folder; an experiment, whose seeds' mean counts; a
    file as `eval_results.jsonl`, ours or DataComp's (or the folder it lies in); or the name of a released checkpoint.
    Raises FileNotFoundError where a folder holds no results, KeyError with the nearest name where nothing is called so,
    ValueError where results contradict each other or are damaged.
    """
    registry.load_tasks()
    path = Path(text).expanduser()
    if path.is_dir():
        return _of_folder(path)
    if path.is_file():
        return _of_lines(path)
    beside = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    try:
        return _of_checkpoint(text)
    except KeyError as error:
        nearest = nearest_name(path.name, beside)
        raise UnknownNameError(
            f"{text!r} is no folder and no file.{nearest} As a released checkpoint: {error.args[0]}",
            code="scores-not-found",
        ) from None


def best_suite(scores: ScoreSet) -> Suite:
    """Return the suite that has most of the tasks, of equal ones the smaller; KeyError where none has any."""
    registry.load_tasks()
    known = {*scores.scores, *scores.unscored}
    shared = {name: len(known & {*suite.tasks, *suite.unscored}) for name, suite in registry.SUITES.items()}
    best = min(registry.SUITES, key=lambda name: (-shared[name], len(registry.SUITES[name].tasks), name), default=None)
    if best is None or not shared[best]:
        raise UnknownNameError(
            f"no suite has the tasks of {scores.name}, {sorted(known)}; there are {sorted(registry.SUITES)}. "
            f"{OWN_SUITES}",
            code="unknown-suite",
        )
    return registry.SUITES[best]


def suite_named(name: str) -> Suite:
    """Return the suite of this name; raises KeyError with the nearest one."""
    registry.load_tasks()
    known = sorted(registry.SUITES)
    if name not in known:
        raise UnknownNameError(
            f"unknown suite {name!r}.{nearest_name(name, known)} Suites: {', '.join(known)}. {OWN_SUITES}",
            code="unknown-suite",
        )
    return registry.SUITES[name]


# --- Folders -------------------------------------------------------------------------------------------------------


def _of_folder(folder: Path) -> ScoreSet:
    if any((folder / EVAL_FOLDER).glob("*.json")):
        return _of_records(folder)
    if (folder / LINES_NAME).is_file():
        return _of_lines(folder / LINES_NAME)
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
    found = _over_seeds(_name_of(folder), dict(sorted(seeds.items())))
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
    odd_sizes: dict[str, Samples] = {}
    odd_classes: dict[str, int] = {}
    for name, record in records.items():
        metrics = record.result["metrics"]
        if (score := metrics["main_metric"]) is None:
            continue
        scores[name] = _checked_score(score, f"{folder / EVAL_FOLDER}: {name!r}")
        found, expected = metrics.get("num_samples"), record.result.get("expected_samples", _size(name))
        if (classes := record.result.get("expected_classes")) is not None:
            odd_classes[name] = classes
        if found is not None and expected is not None and found != expected:
            odd_sizes[name] = Samples(found, expected)
        if name in registry.TASKS and (path := predictions_path(folder, registry.TASKS[name])).is_file():
            if sha256_of(path) != record.result["predictions"]:
                raise UserError(
                    f"{path} was changed after it was made; delete it and evaluate again", code="file-changed"
                )
            predictions[name] = (folder,)
        if metrics.get("standard_error") is not None:
            errors[name] = metrics["standard_error"]
            if (interval := _stated_interval(metrics)) is not None:
                intervals[name] = interval
        elif name in predictions:  # a record of before these were kept
            known = uncertainty(registry.TASKS[name], read_predictions(folder, registry.TASKS[name]))
            errors[name], intervals[name] = known.standard_error, (known.low, known.high)
    chance, bounds = _chances(scores, {name: record.result["metrics"] for name, record in records.items()})
    return ScoreSet(
        name=_name_of(folder),
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
        except ValueError:  # a kill cut it
            continue
        if line.get("stage") == COST_STAGE and (seed is None or line.get("seed") == seed):
            costs[line["task"]] = TaskCost(float(line["seconds"]), int(line["images"]))
    return costs


# --- Lines ---------------------------------------------------------------------------------------------------------


def _of_lines(path: Path) -> ScoreSet:
    """Read `eval_results.jsonl`, ours or DataComp's, which may hold NaN and may repeat a line."""
    lines: dict[str, dict[str, Json]] = {}
    expected_sizes: dict[str, int | None] = {}
    odd_classes: dict[str, int] = {}
    for number, text in enumerate(read_text(path).splitlines(), 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            key, metrics = line["key"], dict(line["metrics"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f'{path}: line {number} is no result of a task, {{"key": ..., "dataset": ..., "metrics": {{...}}}}',
                code="results-invalid",
            ) from error
        if "main_metric" not in metrics:
            raise UserError(
                f"{path}: line {number}, task {key!r}, has no main_metric; add it to the line's metrics: the task's "
                "score from 0 to 1, or null where the task has none",
                code="results-invalid",
            )
        # As text, since NaN is not equal to itself.
        if key in lines and json.dumps(lines[key], sort_keys=True) != json.dumps(metrics, sort_keys=True):
            raise UserError(
                f"{path}: line {number} repeats {key!r} with other numbers; keep one of its lines",
                code="results-invalid",
            )
        lines[key] = metrics
        expected_sizes[key] = line.get("expected_samples", _size(key))
        if line.get("expected_classes") is not None:
            odd_classes[key] = line["expected_classes"]
    if not lines:
        raise UserError(f"{path} has no result of a task", code="results-missing")
    scores: dict[str, float] = {}
    for name, metrics in lines.items():
        score = metrics["main_metric"]
        if score is not None and not (isinstance(score, float) and math.isnan(score)):
            scores[name] = _checked_score(score, f"{path}: {name!r}")
    chance, bounds = _chances(scores, lines)
    errors, intervals = _errors_of_accuracies(scores)
    for name in scores:
        if lines[name].get("standard_error") is not None:
            errors[name] = lines[name]["standard_error"]
            intervals.pop(name, None)  # of another error
        if (interval := _stated_interval(lines[name])) is not None:
            intervals[name] = interval
    sizes = {name: (lines[name].get("num_samples"), expected_sizes[name]) for name in scores}
    return ScoreSet(
        name=_name_of(path.parent) if path.name == LINES_NAME else path.stem,
        scores=scores,
        chance=chance,
        chance_bounds=bounds,
        errors=errors,
        intervals=intervals,
        odd_sizes={
            name: Samples(found, expected)
            for name, (found, expected) in sizes.items()
            if found is not None and expected is not None and found != expected
        },
        odd_classes=odd_classes,
        unscored=tuple(name for name in lines if name not in scores),
        metrics_at={name: path.name for name in lines if name not in scores},
        unknown=tuple(name for name in lines if name not in registry.TASKS),
    )


# --- Released checkpoints --------------------------------------------------------------------------------------------


def _of_checkpoint(name: str) -> ScoreSet:
    found = read_checkpoints().find(name)
    chance, bounds = _chances(found.scores, {})
    errors, intervals = _errors_of_accuracies(found.scores)
    return ScoreSet(
        name=found.name,
        scores=dict(found.scores),
        chance=chance,
        chance_bounds=bounds,
        errors=errors,
        intervals=intervals,
        notes=(f"{found.name}: {found.note}.",) if found.note else (),
    )


# --- What all of them need -------------------------------------------------------------------------------------------


def _name_of(folder: Path) -> str:
    """Return what a folder is called; a seed's folder with its experiment."""
    folder = folder.resolve()
    return f"{folder.parent.name}/{folder.name}" if SEED_FOLDER.fullmatch(folder.name) else folder.name


def _checked_score(score: Json, where: str) -> float:
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        raise UserError(f"{where} has the score {score!r}; a score is a number from 0 to 1", code="results-invalid")
    return float(score)


def _chances(
    names: Iterable[str], metrics: Mapping[str, Mapping[str, Json]]
) -> tuple[dict[str, float], frozenset[str]]:
    """Return what guessing gets by task, as stated with the metrics or else by the task's declaration.

    The second are those tasks of which a declaration tells an upper bound alone. Where it tells nothing there is none.
    """
    chance: dict[str, float] = {}
    bounds = set()
    for name in names:
        if (stated := metrics.get(name, {}).get("chance")) is not None:
            chance[name] = float(stated)
        elif (task := registry.TASKS.get(name)) is None:
            continue
        elif (declared := task.declared_chance) is not None and declared.meaning == "exact":
            chance[name] = declared.value
        elif name in registry.SUITES[DATACOMP].tasks:
            chance[name] = guessed_score(task)
            if declared is not None and declared.meaning == "upper bound":
                bounds.add(name)
    return chance, frozenset(bounds)


def _errors_of_accuracies(
    scores: Mapping[str, float],
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Return the binomial standard errors, and Wilson's 95 % intervals, of accuracies over a known number of images."""
    errors, intervals = {}, {}
    for name, score in scores.items():
        task = registry.TASKS.get(name)
        if task is not None and task.is_share_of_samples and task.size:
            errors[name] = math.sqrt(score * (1 - score) / task.size)
            intervals[name] = wilson(score, task.size)
    return errors, intervals


def _stated_interval(metrics: Mapping[str, Json]) -> tuple[float, float] | None:
    """Return the 95 % interval of a main metric that stands beside it."""
    low, high = metrics.get("interval_low"), metrics.get("interval_high")
    return None if low is None or high is None else (float(low), float(high))


def _size(name: str) -> int | None:
    return registry.TASKS[name].size if name in registry.TASKS else None
