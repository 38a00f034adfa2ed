"""Calls of strategies: their arguments' models, the checks of what they return, and errors that name the file."""

from __future__ import annotations

import multiprocessing
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from benchmark.runtime.errors import NotFoundError, UserError
from benchmark.selection.rules import Rule

if TYPE_CHECKING:
    from benchmark.selection.evaluator import RuleEvaluator


def call_strategy(rule: Rule, given: Sequence[Any], num_rows: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Call a filter or signal; return its values (bool, int64, float or object for texts) and which rows have one.

    Raises ValueError that names the strategy, the rows and what was wrong.
    """
    label = rule.strategy.label
    try:
        result = rule.strategy.function(*given, **rule.options)
    except FileNotFoundError as error:
        raise file_not_found(rule, error) from error
    except (Exception, SystemExit) as error:
        raise failure(rule, where, error) from error
    if np.ndim(result) != 1:
        raise UserError(
            f"{label} must return one value per row, such as a column of rows; it returned {_spell_result(result)} "
            f"({where})",
            code="strategy-result",
        )
    series = result if isinstance(result, pd.Series) else pd.Series(np.asarray(result))
    if len(series) != num_rows or not series.index.equals(pd.RangeIndex(num_rows)):
        raise UserError(
            f"{label} must return one value per row, in the rows' order; it was handed {num_rows} rows "
            f"and returned {len(series)}" + ("" if len(series) != num_rows else " with another index") + f" ({where})",
            code="strategy-result",
        )
    if series.dtype == object:  # a list with None in it
        kinds = {"boolean": "boolean", "floating": "float64", "integer": "Int64", "string": "str"}
        kinds["mixed-integer-float"] = "float64"
        inferred = pd.api.types.infer_dtype(series, skipna=True)
        if inferred == "empty":  # nothing but None
            return np.zeros(num_rows, dtype=bool), np.zeros(num_rows, dtype=bool)
        if inferred in kinds:
            series = pd.Series(series, dtype=kinds[inferred])
    has_value = series.notna().to_numpy(dtype=bool)
    kind = getattr(series.dtype, "kind", "O")
    if kind == "b":
        return series.fillna(False).to_numpy(dtype=bool), has_value
    if kind in "iu":
        wide = series.fillna(0).to_numpy()
        values = wide.astype(np.int64)
        if wide.dtype.kind == "u" and (values < 0).any():
            raise UserError(
                f"{label} returned {wide.max()}; whole numbers go up to {2**63 - 1} ({where})", code="strategy-result"
            )
        is_copies = rule.strategy.is_filter and rule.cut is None and not rule.strategy.has_cut
        if is_copies and (values < 0).any():
            raise UserError(
                f"{label} returned {values.min()} copies; copies are 0 or more ({where})", code="strategy-result"
            )
        return values, has_value
    if kind == "f":
        return np.asarray(series.fillna(0.0).to_numpy()) + 0, has_value  # -0.0 becomes 0.0
    if rule.strategy.is_signal and isinstance(series.dtype, pd.StringDtype):
        return series.to_numpy(dtype=object), has_value
    wanted = "bool (keep), float (score) or int (copies)"
    if rule.strategy.is_signal:
        wanted = "bools, numbers or texts"
    raise UserError(f"{label} returned values of type {series.dtype}; return {wanted}", code="strategy-result")


def failure(rule: Rule, where: str, error: BaseException) -> UserError:
    """Say which strategy failed on what, and in which line of its file; what it says of its own option stands alone."""
    if isinstance(error, ValueError) and str(error).startswith(f"filters.{rule.name}."):
        return UserError(str(error), code=error.code if isinstance(error, UserError) else "option-value")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == rule.strategy.source_path]
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    message = f"{type(error).__name__}: {error}{_undeclared_hint(rule, error)}"
    return UserError(f"{rule.strategy.label} failed on {where}: {message}{place}", code="strategy-failed")


def file_not_found(rule: Rule, error: FileNotFoundError) -> FileNotFoundError:
    """Say which strategy misses a file, unless the sentence says so already."""
    if str(error).startswith(f"filters.{rule.name}.") or (error.errno is None and rule.name in str(error)):
        return error
    message = f"{error.strerror}: {error.filename}" if error.strerror else str(error)
    return NotFoundError(f"{rule.strategy.label} misses a file: {message}", code="asset-not-found")


def _undeclared_hint(rule: Rule, error: BaseException) -> str:
    """Say what the strategy declares, where an error may be of a column or array that it lacks."""
    name: object = None
    if isinstance(error, KeyError) and error.args:
        name = error.args[0]
    elif isinstance(error, AttributeError) and isinstance(error.obj, pd.DataFrame):
        name = error.name
    strategy = rule.strategy
    declared = {*strategy.needed_columns(rule.options), *strategy.needed_features(rule.options)}
    declared |= {*strategy.signals, *strategy.planted}
    if not isinstance(name, str) or name in declared or isinstance(error, UserError):
        return ""
    return (
        f"; it declares {sorted(declared) or 'nothing'}: name each column that it reads in columns=[...] of its "
        "decorator, an array in features=[...], a signal in signals=[...]"
    )


def _spell_result(value: Any) -> str:
    if value is None:
        return "None; does it lack a return?"
    dimensions = np.ndim(value)
    return f"a {type(value).__name__}" + (f" of {dimensions} dimensions" if dimensions else "")


_ASSETS: dict[str, str] = {}  # by path, the hash of what this process has used


def forget_if_changed(path: str, found: str) -> None:
    """Empty what modules remember of files by their paths, where one is no longer what it was."""
    if _ASSETS.setdefault(path, found) != found:
        _ASSETS.clear()
        _MODELS.clear()
        for name, module in list(sys.modules.items()):
            if name.startswith(("benchmark.", "winnow_")):
                for each in list(vars(module).values()):
                    if hasattr(each, "cache_clear"):
                        each.cache_clear()
        _ASSETS[path] = found


_MODELS: dict[str, Any] = {}  # by strategy and what it is made from


def model_of(evaluator: RuleEvaluator, number: int) -> Any:
    """Return what a rule's `setup` makes: once per process, for as long as rules of the same evaluator use it."""
    key = evaluator.model_keys[number]
    if key not in _MODELS:
        for other in set(_MODELS) - set(evaluator.model_keys.values()):
            del _MODELS[other]  # before the next one takes memory
        resolved = evaluator.all_rules[number]
        rule = resolved.rule
        assert rule.strategy.setup is not None
        device = {"device": device_of_worker(resolved.device)} if rule.strategy.takes_device else {}
        try:
            _MODELS[key] = rule.strategy.setup(**rule.strategy.setup_options(rule.options), **device)
        except FileNotFoundError as error:
            raise file_not_found(rule, error) from error
        except (Exception, SystemExit) as error:
            raise failure(rule, "its setup", error) from error
    return _MODELS[key]


def device_of_worker(device: str) -> str:
    """Return the device of this process: of several GPUs, worker processes take turns."""
    identity = multiprocessing.current_process()._identity
    if device != "cuda" or not identity:
        return device
    import torch

    return f"cuda:{(identity[-1] - 1) % torch.cuda.device_count()}"
