"""Scores of a DataFrame's rows: no pool, nothing on disk; what stands beside the frame is handed over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from benchmark.pool.images import SLICE_IMAGES
from benchmark.registry import STRATEGIES
from benchmark.runtime.errors import UserError
from benchmark.runtime.names import nearest_name
from benchmark.runtime.paths import user_assets_dir
from benchmark.runtime.strategies import check_options
from benchmark.selection.asset_kinds import NO_WEIGHTS
from benchmark.selection.assets import find_assets, find_default
from benchmark.selection.rules import Rule, one_error
from benchmark.selection.shard_evaluation import SLICE_FEATURES, SLICE_ROWS
from benchmark.selection.strategy_calls import call_strategy, failure, file_not_found
from benchmark.selection.values import HAS_VALUE, MISSING, RowValues, joined_values

Images = Sequence["Image.Image | None"]


def score_frame(
    frame: pd.DataFrame,
    rule: Rule,
    *,
    features: Mapping[str, np.ndarray] | None = None,
    images: Images | None = None,
    device: str = "cpu",
) -> pd.Series:
    """Return a filter's or signal's value of every row, with the frame's index; missing where it gives none.

    `features` are arrays of the .npz, each (rows, dimension), `images` one RGB picture per row or None. Signals that
    are registered are computed as well, others are columns of the frame. Raises UserError that lists what is missing.
    """
    if rule.strategy.is_selector:
        raise UserError(
            f"selector {rule.name!r} chooses from a whole pool and scores no rows; use it in select()",
            code="scores-expected",
        )
    work = _FrameScoring(frame, features or {}, images, device)
    work.refuse_missing(rule)
    return work.values(rule).set_axis(frame.index)


class _FrameScoring:
    """The scoring of one frame; signals are computed once."""

    def __init__(
        self, frame: pd.DataFrame, features: Mapping[str, np.ndarray], images: Images | None, device: str
    ) -> None:
        self.frame = frame.reset_index(drop=True)
        self.features = features
        self.images = images
        self.device = device
        self.found: dict[str, pd.Series] = {}
        lengths = {f"features[{name!r}]": len(array) for name, array in features.items()}
        if images is not None:
            lengths["images"] = len(images)
        for what, length in lengths.items():
            if length != len(frame):
                raise UserError(
                    f"{what} has {length:,} rows and the frame {len(frame):,}; hand over one per row, in its order",
                    code="array-shape",
                )

    def refuse_missing(self, rule: Rule) -> None:
        """Raise UserError with all that a rule and its signals need and that is not there."""
        missing = list(dict.fromkeys(need for each in self._with_signals(rule) for need in self._missing(each)))
        if not missing:
            return
        needed = f"{rule.strategy.label} needs {' and '.join(text for _, _, text in missing)}"
        columns = list(map(str, self.frame.columns))
        absent = [name for code, name, _ in missing if code == "column-missing"]
        there = f".{''.join(nearest_name(name, columns) for name in absent)} The frame has the columns {columns}."
        raise UserError(needed + (there if absent else ""), code=missing[0][0])

    def values(self, rule: Rule) -> pd.Series:
        """Return a rule's values: (rows,), by row number."""
        if rule.key not in self.found:
            # Beside a frame lie no assets: only the user's folder is looked through.
            options, errors = find_assets(rule.strategy, rule.options, user_assets_dir())
            if errors:
                raise one_error(errors)
            self.found[rule.key] = self._compute(replace(rule, options=options))
        return self.found[rule.key]

    def _missing(self, rule: Rule) -> list[tuple[str, str, str]]:
        """Return code, name and words of what one rule lacks, whatever its signals do."""
        strategy = rule.strategy
        names = [*strategy.needed_columns(rule.options), *strategy.planted]
        names += [name for name in strategy.signals if not _is_signal(name)]
        found = [("column-missing", n, f"the column {n!r}") for n in names if n not in self.frame.columns]
        for name in strategy.needed_features(rule.options):
            if name not in self.features:
                text = f"the array {name!r} of shape (rows, dimension), as features={{{name!r}: array}}"
                found.append(("array-missing", name, text))
        if strategy.images and self.images is None:
            found.append(("images-missing", "images", "the pictures, as images=[PIL.Image or None, one per row]"))
        for option, name in strategy.needed_assets(rule.options).items():
            if not rule.options[option] and name != NO_WEIGHTS and not find_default(name, user_assets_dir()):
                found.append(("asset-not-found", name, f"{name}, as {option}=PATH"))
        return found

    def _with_signals(self, rule: Rule) -> list[Rule]:
        inner = [each for signal in self._signals(rule).values() for each in self._with_signals(signal)]
        return [rule, *inner]

    def _signals(self, rule: Rule) -> dict[str, Rule]:
        """Return the registered signals that a rule uses; each takes those of its options that it has itself."""
        found = {}
        for name in filter(_is_signal, rule.strategy.signals):
            signal = STRATEGIES[name]
            options = {key: value for key, value in rule.options.items() if key in signal.options}
            found[name] = Rule(name, check_options(signal, options))
        return found

    def _compute(self, rule: Rule) -> pd.Series:
        strategy = rule.strategy
        signals = {name: self.values(signal) for name, signal in self._signals(rule).items()}
        names = [*strategy.needed_columns(rule.options), *strategy.planted, *strategy.signals]
        columns = {name: signals[name] if name in signals else self.frame[name] for name in names}
        table = pd.DataFrame(columns, index=pd.RangeIndex(len(self.frame)))
        rows = np.arange(len(table))
        if strategy.images:
            assert self.images is not None  # refused before
            rows = np.array([row for row, image in enumerate(self.images) if image is not None], dtype=np.int64)
        step = SLICE_IMAGES if strategy.images else SLICE_FEATURES if strategy.features else SLICE_ROWS
        model = self._model(rule) if strategy.setup is not None and len(rows) else None
        parts = [self._call(rule, table, rows[start : start + step], model) for start in range(0, len(rows), step)]
        try:
            return joined_values(parts, len(table)).to_series().rename(rule.name)
        except ValueError as error:
            raise UserError(f"{strategy.label} {error}", code="strategy-result") from error

    def _call(self, rule: Rule, table: pd.DataFrame, rows: np.ndarray, model: Any) -> RowValues:
        strategy = rule.strategy
        given: list[Any] = [table.iloc[rows].reset_index(drop=True)]
        if strategy.features:
            given.append({n: np.array(self.features[n])[rows] for n in strategy.needed_features(rule.options)})
        if strategy.images:
            assert self.images is not None
            given.append([image.convert("RGB") for row in rows if (image := self.images[row]) is not None])
        if strategy.setup is not None:
            given.append(model)
        values, has_value = call_strategy(rule, given, len(rows), f"the frame, rows from {rows[0]}")
        return RowValues(rows, values, np.where(has_value, HAS_VALUE, MISSING).astype(np.uint8))

    def _model(self, rule: Rule) -> Any:
        strategy = rule.strategy
        assert strategy.setup is not None
        device = {"device": self.device} if strategy.takes_device else {}
        try:
            return strategy.setup(**strategy.setup_options(rule.options), **device)
        except FileNotFoundError as error:
            raise file_not_found(rule, error) from error
        except (Exception, SystemExit) as error:
            raise failure(rule, "its setup", error) from error


def _is_signal(name: str) -> bool:
    return name in STRATEGIES and STRATEGIES[name].is_signal
