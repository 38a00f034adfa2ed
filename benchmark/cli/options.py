"""The options of the Hydra verbs: names, defaults and help, and their way from the command line into plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from benchmark.registry import STRATEGIES, get_chooser
from benchmark.runtime.errors import UnknownNameError, UserError
from benchmark.runtime.executor import EXECUTORS
from benchmark.runtime.names import nearest_name
from benchmark.runtime.paths import as_location, is_remote
from benchmark.scales import Scale, get_scale
from benchmark.selection.rules import filter_defaults, known_strategies

MISSING = "???"
DEFAULT_SCALE = "nano"
MAX_SEED = 2**63 - 1
MAX_HINTS = 3  # filters named, where an option of theirs stands alone
CLOSE = 0.8  # how near a name must be to be meant although filters have an option of the name given
WANDB_MODES = ("disabled", "offline", "online")


DRY_RUN = "say how many bytes and requests the stage will read; reads footers and the index, which it may make"
SIGNALS_DIR = "where values of filters and signals are kept row by row, and yours are found [<pool_dir>/signals]"
MAX_MISSING = "uids of subset= that a pool of shards alone may lack, where images are missing from it"


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class PoolOptions:
    """What every verb knows: the scale and where the pool is."""

    scale: str = _option(
        DEFAULT_SCALE, "the recipe; `winnow list scales` lists them; or a file of your own: my_scale.yaml"
    )
    pool_dir: Any = _option(
        None, "the pool's folder or URL [pools/<scale>, where an embedded one is drawn when it is not there]"
    )
    pool_seed: Any = _option(0, "which drawing of the embedded pool; others than 0 go to pools/<scale>-<pool_seed>")
    strict: Any = _option(True, "a damaged tar is an error; false goes on with what can be read of it, and counts")


@dataclass
class SeedOptions(PoolOptions):
    seeds: Any = _option(0, "training seeds, such as 0 or [0,1,2]; each has a folder of its own")
    device: Any = _option(None, "cpu or cuda [what the scale's reference runs used]")
    wandb: str = _option("disabled", "disabled, offline or online: curves and scores at Weights & Biases")


@dataclass
class TrainingOptions(SeedOptions):
    workers: Any = _option(None, "loader processes [0 where the samples fit in memory, else one per core and rank]")
    accumulation: Any = _option(1, "micro-batches a step and rank, where memory is short; the same gradients")
    dry_run: Any = _option(False, DRY_RUN)


@dataclass
class ChoiceOptions(PoolOptions):
    exp_dir: Any = _option(None, "the experiment's folder or URL [experiments/<scale>/<filters>-<hash>]")
    within: Any = _option(None, "a subset file: filter inside it, as if its rows were the pool")
    subset: Any = _option(None, "a subset file (.npy, raw or .parquet) to take as it is, instead of filters")
    max_missing: Any = _option(0, MAX_MISSING)
    plugins: Any = _option((), "your own files with filters or tasks: [my_filter.py,...]")
    dry_run: Any = _option(False, DRY_RUN)
    workers: Any = _option(0, "worker processes; 0 works in this one; results do not depend on it")
    signals_dir: Any = _option(None, SIGNALS_DIR)
    executor: Any = _option("local", "local or ray: worker processes here, or tasks of a Ray cluster")


@dataclass
class FilterOptions(ChoiceOptions):
    """winnow filter: choose a subset."""

    device: Any = _option("cpu", "cpu or cuda: what signals and filters that load a model compute on")


@dataclass
class ReshardOptions(PoolOptions):
    """winnow reshard: cut a subset out of the pool's tars into new ones, in DataComp's layout."""

    exp_dir: Any = _option(None, "an experiment with a subset; training then reads its exp_dir/shards")
    subset: Any = _option(None, "or a subset file (.npy, raw or .parquet) of anyone's; goes with out_dir=")
    out_dir: Any = _option(None, "the folder to write to [<exp_dir>/shards]")
    shard_size: Any = _option(10_000, "samples per tar")
    max_missing: Any = _option(0, MAX_MISSING)
    dry_run: Any = _option(False, DRY_RUN)
    workers: Any = _option(None, "processes that copy [one per core]; results do not depend on it")


@dataclass
class RunOptions(ChoiceOptions, TrainingOptions):
    """winnow run: filter, train, evaluate, table."""

    workers: Any = _option(
        None, "processes of each stage [0 to filter and where samples fit in memory, else one per core]"
    )

    eval_dir: Any = _option(None, "the evaluation sets' folder [<pool_dir>/eval]")
    tasks: Any = _option((), "task names or groups [the scale's suite]; `winnow list tasks` lists them")
    report: Any = _option(True, "end with the report; `winnow report` makes it later")


@dataclass
class TrainOptions(TrainingOptions):
    """winnow train: train on an experiment's subset; on several GPUs by `torchrun --no-python winnow train ...`."""

    exp_dir: Any = _option(MISSING, "the experiment's folder; it has a subset")


@dataclass
class EvaluateOptions(SeedOptions):
    """winnow evaluate: score an experiment's checkpoints, or any open_clip model; several ranks share the tasks."""

    scale: Any = _option(None, "the experiment's recipe [nano]; with model=, whose suite scores it [datacomp's]")
    exp_dir: Any = _option(None, "the experiment's folder; its seeds are trained")
    model: Any = _option(None, "instead of exp_dir: any open_clip model, or the path of a JSON configuration")
    checkpoint: Any = _option(None, "its weights: .pt (state dict), .safetensors, or a name that open_clip has")
    out_dir: Any = _option(None, "the folder of a model's results [evaluations/<model>-<hash of the weights>]")
    eval_dir: Any = _option(None, "the evaluation sets' folder or URL [<pool_dir>/eval]")
    tasks: Any = _option((), "task names or groups [the scale's suite]; `winnow list tasks` lists them")
    plugins: Any = _option((), "your own files with tasks: [my_task.py,...]")
    reference: Any = _option(None, "compare with: results' folder, eval_results.jsonl, or a released checkpoint's name")
    curve: Any = _option(False, "evaluate the kept checkpoints too, and draw the learning curve")
    workers: Any = _option(None, "processes that decode images [threads on a CPU, one per core for a GPU]")
    device: Any = _option(None, "cpu or cuda [what the scale's reference runs used; for model=, a GPU if there is one]")
    strict: Any = _option(True, "a set of another size than its task's is an error; false warns, and marks the score")


@dataclass
class ReportOptions(PoolOptions):
    """winnow report: show what an experiment kept and dropped, as a page."""

    exp_dir: Any = _option(MISSING, "the experiment's folder; it has a subset")
    plugins: Any = _option((), "your own files with the experiment's filters: [my_filter.py,...]")
    signals_dir: Any = _option(None, SIGNALS_DIR)


VERBS: dict[str, type[PoolOptions]] = {
    "run": RunOptions,
    "filter": FilterOptions,
    "train": TrainOptions,
    "reshard": ReshardOptions,
    "evaluate": EvaluateOptions,
    "report": ReportOptions,
}


def option_names(verb: str) -> list[str]:
    """Return the verb's option names."""
    return [option.name for option in fields(VERBS[verb])]


def takes_filters(verb: str) -> bool:
    """Tell whether the verb chooses samples."""
    return issubclass(VERBS[verb], ChoiceOptions)


def as_list(value: Any, name: str) -> list[Any]:
    """Take one value for a list of one."""
    if value is None or value == "":
        return []
    values = list(value) if isinstance(value, list | tuple) else [value]
    if any(isinstance(item, list | dict) for item in values):
        raise UserError(f"{name}={value} is not a list of single values", code="option-type")
    return values


def as_seeds(value: Any) -> list[int]:
    """Return the training seeds; raises ValueError where they are not different non-negative whole numbers."""
    seeds = as_list(value, "seeds")
    if not seeds or any(not isinstance(seed, int) or isinstance(seed, bool) or seed < 0 for seed in seeds):
        raise UserError(f"seeds={value!r} are not whole numbers from 0 on, such as 0 or [0,1,2]", code="option-type")
    if max(seeds) > MAX_SEED:
        raise UserError(f"seeds={value!r}: {max(seeds)} is more than {MAX_SEED}", code="option-value")
    if len(set(seeds)) != len(seeds):
        raise UserError(f"seeds={value} names a seed twice", code="option-value")
    return seeds


def as_flag(value: Any, name: str) -> bool:
    """Return a yes or no; raises ValueError for anything else."""
    if not isinstance(value, bool):
        raise UserError(f"{name}={value} must be true or false", code="option-type")
    return value


def as_count(value: Any, name: str) -> int:
    """Return a whole number from 0 on."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UserError(f"{name}={value!r} is not a whole number from 0 on", code="option-type")
    return value


def as_workers(value: Any) -> int | None:
    """Return the number of worker processes, None where it is left open."""
    return None if value is None else as_count(value, "workers")


def as_executor(value: Any) -> str:
    """Return who does the work; raises ValueError for another than local or ray."""
    if value not in EXECUTORS:
        raise UserError(f"executor={value} is not one of {', '.join(EXECUTORS)}", code="option-value")
    return str(value)


def as_positive(value: Any, name: str) -> int:
    """Return a whole number from 1 on."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{name}={value!r} is not a whole number from 1 on", code="option-type")
    return value


def as_accumulation(value: Any) -> int:
    """Return the number of micro-batches of a step."""
    return as_positive(value, "accumulation")


def as_wandb(value: Any) -> str:
    """Return the mode of Weights & Biases; raises ValueError for another, or online where nobody is logged in."""
    if value not in WANDB_MODES:
        raise UserError(f"wandb={value} is not one of {', '.join(WANDB_MODES)}", code="option-value")
    if value == "online":
        import wandb

        try:
            has_login = wandb.login(prompt=False)
        except wandb.errors.Error as error:
            raise UserError(f"wandb=online does not work ({' '.join(str(error).split())})", code="wandb") from error
        if not has_login:
            raise UserError(
                "wandb=online needs a login: run `wandb login`, or use wandb=offline and `wandb sync` later",
                code="wandb",
            )
    return str(value)


def as_signals_dir(value: Any) -> Path | None:
    """Return the folder of the signals, None where it is left open; raises ValueError for a URL."""
    found = as_path(value, "signals_dir")
    if found is not None and is_remote(found):
        raise UserError(
            f"signals_dir={value} is not a local folder; values are written there while they are computed",
            code="option-value",
        )
    return found


def as_path(value: Any, name: str) -> Path | None:
    """Return a path or a URL's location, or None where none is given."""
    if value is None:
        return None
    if not isinstance(value, str | int):
        raise UserError(f"{name}={value} is not a path", code="option-type")
    return as_location(str(value))


def as_device(value: Any, scale: Scale) -> str:
    """Return the device to compute on; raises ValueError where there is none such."""
    device = scale.device if value is None else value
    if device not in ("cpu", "cuda"):
        raise UserError(f"device={device} is neither cpu nor cuda", code="option-value")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            asked = "device=cuda" if value else f"scale {scale.name!r} computes on a GPU (device=cpu does without)"
            raise UserError(f"{asked}, but torch sees no GPU here", code="no-gpu")
    return str(device)


def as_model_device(value: Any) -> str:
    """Return the device to evaluate a model on: the one named, else a GPU where there is one."""
    import torch

    found = value if value is not None else "cuda" if torch.cuda.is_available() else "cpu"
    return as_device(found, get_scale(DEFAULT_SCALE))


def scale_and_pool_dir(config: dict[str, Any]) -> tuple[Scale, Path, int]:
    """Return scale, pool folder and pool seed."""
    scale = get_scale(str(config["scale"]))
    seed = as_count(config["pool_seed"], "pool_seed")
    pool_dir = as_path(config["pool_dir"], "pool_dir")
    return scale, pool_dir or default_pool_dir(scale, seed), seed


def default_pool_dir(scale: Scale, pool_seed: int) -> Path:
    """Return where a scale's pool is where `pool_dir` is not given: `pools/<scale>`, or `pools/<scale>-<pool_seed>`."""
    name = scale.pool_scale
    return Path("pools") / (name if pool_seed == 0 else f"{name}-{pool_seed}")


def check_override_name(verb: str, key: str, filters: Sequence[str] = ()) -> None:
    """Raise UnknownNameError, with the nearest name, where a command-line option is not one of the verb's.

    `filters` are the chosen ones: an option of theirs is named with its filter.
    """
    first, *rest = key.split(".")
    if first == "hydra" or key.startswith("hydra/"):
        return
    known = [*option_names(verb), *(["filters"] if takes_filters(verb) else [])]
    if first not in known:
        hint = _hint_of_filters(verb, key, filters, close=get_close_matches(first, known, 1, CLOSE))
        hint = hint or nearest_name(first, known)
        raise UnknownNameError(
            f"winnow {verb} has no option {key!r}.{hint} Options: {', '.join(known)}.", code="unknown-option"
        )
    if first != "filters" and rest:
        raise UnknownNameError(f"winnow {verb} has no option {key!r}; {first} has no parts", code="unknown-option")
    if first == "filters" and rest:
        strategy = get_chooser(rest[0])
        options = list(filter_defaults(strategy))
        if len(rest) == 1:
            raise UnknownNameError(
                f"{key}= needs an option of the filter: {', '.join(f'{key}.{o}=' for o in options) or 'none'}",
                code="unknown-option",
            )
        if len(rest) != 2 or rest[1] not in options:
            name = ".".join(rest[1:])
            raise UnknownNameError(
                f"filter {strategy.name!r} has no option {name!r}.{nearest_name(name, options)} "
                f"Options: {', '.join(options) or 'none'}.",
                code="unknown-option",
            )


def _hint_of_filters(verb: str, key: str, filters: Sequence[str], close: Sequence[str]) -> str:
    """Say which filter's option is meant: a chosen filter's, else, where no name is close, anyone's; perhaps empty."""
    if not takes_filters(verb):
        return ""
    first, *rest = key.split(".")
    if first in STRATEGIES and STRATEGIES[first].kind != "signal":  # the word `filters` was left out
        return f" Did you mean 'filters.{key}'?"
    holders = {s.name: f"filters.{s.name}.{key}" for s in known_strategies() if not rest and key in filter_defaults(s)}
    shown = [text for name, text in holders.items() if name in filters]
    if not shown and not close:
        shown = list(holders.values())
    if not shown:
        return ""
    more = f" ({len(shown) - MAX_HINTS} more filters have one)" if len(shown) > MAX_HINTS else ""
    return f" It is an option of filters: {' or '.join(shown[:MAX_HINTS])}{more}."


def describe_options(verb: str) -> list[tuple[str, str, str]]:
    """Return (name, default, help) of every option of a verb."""
    described = []
    for option in fields(VERBS[verb]):
        default = (
            "" if option.default in (None, ()) else "required" if option.default == MISSING else str(option.default)
        )
        described.append((option.name, default, option.metadata["help"]))
    return described
