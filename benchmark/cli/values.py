"""From what the command line gives to plain values: each function checks one value, and raises UserError."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmark.cli.options import DEFAULT_SCALE
from benchmark.runtime.errors import UserError
from benchmark.runtime.executor import EXECUTORS
from benchmark.runtime.paths import as_location, is_remote
from benchmark.scales import Scale, get_scale

MAX_SEED = 2**63 - 1
WANDB_MODES = ("disabled", "offline", "online")


def as_list(value: Any, name: str) -> list[Any]:
    """Return a list of single values, where one value is a list of one."""
    if value is None or value == "":
        return []
    values = list(value) if isinstance(value, list | tuple) else [value]
    if any(isinstance(item, list | dict) for item in values):
        raise UserError(f"{name}={value} is not a list of single values", code="option-type")
    return values


def as_names(value: Any, name: str) -> list[str]:
    """Return a list of names, perhaps empty."""
    return [str(each) for each in as_list(value, name)]


def as_seeds(value: Any) -> tuple[int, ...]:
    """Return the training seeds; raises UserError unless they are different non-negative integers."""
    seeds = as_list(value, "seeds")
    if not seeds or any(not isinstance(seed, int) or isinstance(seed, bool) or seed < 0 for seed in seeds):
        raise UserError(f"seeds={value!r} are not non-negative integers, such as 0 or [0,1,2]", code="option-type")
    if max(seeds) > MAX_SEED:
        raise UserError(f"seeds={value!r}: {max(seeds)} is more than {MAX_SEED}", code="option-value")
    if len(set(seeds)) != len(seeds):
        raise UserError(f"seeds={value} names a seed twice", code="option-value")
    return tuple(seeds)


def as_flag(value: Any, name: str) -> bool:
    """Return a yes or no; raises UserError for anything else."""
    if not isinstance(value, bool):
        raise UserError(f"{name}={value} must be true or false", code="option-type")
    return value


def as_count(value: Any, name: str) -> int:
    """Return a non-negative integer."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UserError(f"{name}={value!r} is not a non-negative integer", code="option-type")
    return value


def as_workers(value: Any) -> int | None:
    """Return the number of worker processes, None if it is not given."""
    return None if value is None else as_count(value, "workers")


def as_executor(value: Any) -> str:
    """Return what runs the workers; raises UserError for anything but local or ray."""
    if value not in EXECUTORS:
        raise UserError(f"executor={value} is not one of {', '.join(EXECUTORS)}", code="option-value")
    return str(value)


def as_positive(value: Any, name: str) -> int:
    """Return a positive integer."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{name}={value!r} is not a positive integer", code="option-type")
    return value


def as_accumulation(value: Any) -> int:
    """Return the number of micro-batches of a step."""
    return as_positive(value, "accumulation")


def as_wandb(value: Any) -> str:
    """Return the mode of Weights & Biases; raises UserError for another, or for online without a login."""
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
    """Return the folder of the signals, None if it is not given; raises UserError for a URL."""
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
    """Return the device to compute on; raises UserError if it does not exist here."""
    device = scale.device if value is None else value
    if device not in ("cpu", "cuda"):
        raise UserError(f"device={device} is neither cpu nor cuda", code="option-value")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            wanted = (
                "device=cuda is given" if value else f"scale {scale.name!r} uses a GPU (device=cpu runs without one)"
            )
            raise UserError(f"{wanted}, but torch sees no GPU here", code="no-gpu")
    return str(device)


def as_model_device(value: Any) -> str:
    """Return the device to evaluate a model on: the one named, else a GPU where there is one."""
    import torch

    found = value if value is not None else "cuda" if torch.cuda.is_available() else "cpu"
    return as_device(found, get_scale(DEFAULT_SCALE))
