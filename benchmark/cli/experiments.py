"""The experiment that a command works on: where it is, and which scale and pool it belongs to."""

from __future__ import annotations

from pathlib import Path

import yaml

from benchmark.cli.options import DEFAULT_SCALE, MISSING, Config
from benchmark.cli.values import as_path
from benchmark.cli.verb import LOGS_NAME
from benchmark.runtime.errors import UserError
from benchmark.runtime.paths import as_location, is_remote
from benchmark.runtime.records import read_record
from benchmark.scales import SCALES


def given_exp_dir(config: Config) -> Path:
    """Return the folder that exp_dir= names; raises UserError where it is not given."""
    exp_dir = None if config["exp_dir"] == MISSING else as_path(config["exp_dir"], "exp_dir")
    if exp_dir is None:
        raise UserError(
            "exp_dir must be given: the folder of an experiment with a subset, made by `winnow filter`",
            code="option-missing",
        )
    return exp_dir


def with_experiments_own(config: Config) -> Config:
    """Fill in the scale and the pool that are not given: those of the experiment.

    Its scale is the one that its seeds were trained at, else that of the command that chose its subset, as its log
    says; its pool is that command's. Which pool is the right one is checked later, by its fingerprint.
    """
    exp_dir = None if config["exp_dir"] == MISSING else as_path(config["exp_dir"], "exp_dir")
    if exp_dir is None or is_remote(exp_dir):
        return {**config, "scale": config["scale"] or DEFAULT_SCALE}
    made_by = _options_of_log(exp_dir)
    scale = config["scale"] or _trained_scale(exp_dir) or _known_scale(made_by) or DEFAULT_SCALE
    filled = {**config, "scale": scale}
    if config["pool_dir"] is None and config["pool_seed"] == 0 and made_by:
        pool_dir = made_by.get("pool_dir")
        if isinstance(pool_dir, str) and as_location(pool_dir).exists():
            filled["pool_dir"] = pool_dir
        elif pool_dir is None and scale == made_by.get("scale"):
            filled["pool_seed"] = made_by.get("pool_seed", 0)
    return filled


def _trained_scale(exp_dir: Path) -> str | None:
    """Return the scale that an experiment's first seed was trained at; None where there is none, or a custom one."""
    for path in sorted(exp_dir.glob("seed-*/checkpoint/checkpoint.json")):
        record = read_record(path)
        name = record.inputs["recipe"]["scale"] if record else ""
        if name in SCALES:
            return str(name)
    return None


def _known_scale(options: Config) -> str | None:
    scale = options.get("scale")
    is_known = isinstance(scale, str) and (scale in SCALES or Path(scale).is_file())
    return str(scale) if is_known else None


def _options_of_log(exp_dir: Path) -> Config:
    """Return the options of the first command that chose the experiment's subset; empty where no log tells them."""
    for path in sorted((exp_dir / LOGS_NAME).glob("*.yaml")):
        try:
            log = yaml.safe_load(path.read_text())
            verb, options = log["command"][1], log["options"]
        except (yaml.YAMLError, OSError, UnicodeDecodeError, TypeError, KeyError, IndexError):
            continue  # a file of somebody's, which says nothing
        if verb in ("run", "filter") and isinstance(options, dict):
            return options
    return {}
