"""What options a command declares, with defaults and help, for Hydra to compose and for `--help` to show.

A command that takes key=value options has two types: its configuration, declared here or from these parts in its own
file, whose fields take any value; and its options, a frozen dataclass of the plain values that they are checked to be.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

Config = dict[str, Any]  # a composed configuration: the values of all options, and `filters` with theirs by name

MISSING = "???"
DEFAULT_SCALE = "nano"

DRY_RUN = "only report how many bytes and requests the stage will read; reads footers and the index, which it may make"
SIGNALS_DIR = "folder where values of filters and signals are cached per row, and where yours are found "
SIGNALS_DIR += "[<pool_dir>/signals]"
MAX_MISSING = "how many uids of subset= a pool of shards only may lack (where images are missing from it)"


def option(default: Any, text: str) -> Any:
    """Declare an option: its default, and its help, with what a default of None means in brackets."""
    return field(default=default, metadata={"help": text})


@dataclass
class PoolConfig:
    """What every command knows: the scale and where the pool is."""

    scale: str = option(
        DEFAULT_SCALE, "the recipe: a name (`winnow list scales`), or the path of a custom scale: my_scale.yaml"
    )
    pool_dir: Any = option(
        None, "the pool's folder or URL [pools/<scale>; an embedded pool is generated there if it does not exist]"
    )
    pool_seed: Any = option(
        0, "generation seed of the embedded pool; pools of seeds other than 0 are in pools/<scale>-<pool_seed>"
    )
    strict: Any = option(True, "treat a damaged tar as an error; false: use what can be read of it, and count the rest")


@dataclass
class ExperimentConfig(PoolConfig):
    """What a command knows that works on an experiment whose subset is there."""

    scale: Any = option(None, "the recipe: a name or the path of a custom scale [the experiment's, else nano]")
    pool_dir: Any = option(None, "the pool's folder or URL [the experiment's, else pools/<scale>]")


@dataclass
class SeedConfig(PoolConfig):
    """What a command knows that trains or evaluates."""

    seeds: Any = option(0, "training seeds, such as 0 or [0,1,2]; each has a folder of its own")
    device: Any = option(None, "cpu or cuda [the device of the scale's reference runs]")
    wandb: str = option("disabled", "disabled, offline or online: log curves and scores to Weights & Biases")


@dataclass
class TrainingConfig(SeedConfig):
    """What a command knows that trains."""

    workers: Any = option(None, "loader processes [0 if the samples fit in memory, else one per core and rank]")
    accumulation: Any = option(1, "micro-batches per step and rank, to save memory; the gradients are the same")
    dry_run: Any = option(False, DRY_RUN)


@dataclass
class ChoiceConfig(PoolConfig):
    """What a command knows that chooses a subset."""

    exp_dir: Any = option(None, "the experiment's folder or URL [experiments/<scale>/<filters>-<hash>]")
    within: Any = option(None, "a subset file: filter inside it, as if its rows were the pool")
    subset: Any = option(None, "a subset file (.npy, raw or .parquet) to use as it is, instead of filters")
    max_missing: Any = option(0, MAX_MISSING)
    plugins: Any = option((), "your own files with filters or tasks: [my_filter.py,...]")
    dry_run: Any = option(False, DRY_RUN)
    workers: Any = option(0, "worker processes; 0: use this process; results are the same for any number")
    signals_dir: Any = option(None, SIGNALS_DIR)
    executor: Any = option("local", "what runs the workers: local (processes here) or ray (tasks of a Ray cluster)")


def option_names(config: type[PoolConfig]) -> list[str]:
    """Return the names of a configuration's options."""
    return [each.name for each in fields(config)]


def takes_filters(config: type[PoolConfig]) -> bool:
    """Tell whether a command of this configuration chooses samples."""
    return issubclass(config, ChoiceConfig)


def describe_options(config: type[PoolConfig]) -> list[tuple[str, str, str]]:
    """Return (name, default, help) of every option."""
    described = []
    for each in fields(config):
        default = "" if each.default in (None, ()) else "required" if each.default == MISSING else str(each.default)
        described.append((each.name, default, each.metadata["help"]))
    return described
