"""Rules: a strategy with its options and its cut, as plain data, and what identifies it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from benchmark.registry import CUT_OPTIONS, STRATEGIES, Strategy, check_options, get_chooser, get_strategy
from benchmark.runtime.errors import UserError
from benchmark.runtime.files import Json, digest
from benchmark.runtime.watch import Undeclared
from benchmark.selection.assets import find_assets, hash_assets
from benchmark.selection.signals import KEPT_VERSION, user_signal

if TYPE_CHECKING:
    from pathlib import Path

    from benchmark.pool.pool import Pool


@dataclass(frozen=True)
class Cut:
    """How scores become choices: the top `fraction` of the pool's rows, or scores >= `threshold`."""

    kind: str  # "fraction" or "threshold"
    value: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise UserError(f"{self.kind}={self.value} is not a finite number", code="option-value")
        if self.kind == "fraction" and not 0 < self.value <= 1:
            raise UserError(
                f"fraction={self.value} is outside (0, 1]; 0.3 keeps the top 30 % of the pool", code="option-value"
            )


@dataclass(frozen=True)
class Rule:
    """A strategy with its options, and its cut where it scores. Plain data, so that worker processes can be sent it."""

    name: str
    options: dict[str, Json] = field(default_factory=dict)
    cut: Cut | None = None

    @property
    def strategy(self) -> Strategy:
        return get_strategy(self.name)

    @property
    def key(self) -> str:
        """Return what tells rules apart but for their cuts; 1, 1.0 and true are different options."""
        return json.dumps([self.name, self.options], sort_keys=True)

    def with_assets(self, pool_dir: Path) -> Rule:
        """Return the rule with the paths of its assets among its options; raises FileNotFoundError."""
        return replace(self, options=find_assets(self.strategy, self.options, pool_dir))

    def signal_rules(self, pool: Pool) -> dict[str, Rule | None]:
        """Return the signals that it uses: a registered one with its options, None for a column of a user's parquet.

        A registered signal takes those of the rule's options that it has itself.
        """
        found: dict[str, Rule | None] = {}
        for name in self.strategy.signals:
            signal = STRATEGIES.get(name)
            if signal is None or signal.kind != "signal":
                found[name] = None
                continue
            options = {key: value for key, value in self.options.items() if key in signal.options}
            found[name] = Rule(name, check_options(signal, options)).with_assets(pool.dir)
        return found

    def with_signals(self, pool: Pool) -> list[Rule]:
        """Return the rule and every registered signal that it uses, itself or through others, each once."""
        found = {self.key: self}
        waiting = [self]
        while waiting:
            inner = [each for each in waiting.pop().signal_rules(pool).values() if each is not None]
            waiting += [each for each in inner if each.key not in found]
            found |= {each.key: each for each in inner}
        return list(found.values())

    def sees_images(self, pool: Pool) -> bool:
        """Tell whether the rule hangs on the images, itself or through its signals."""
        return any(rule.strategy.images for rule in self.with_signals(pool))

    def takes_device(self, pool: Pool) -> bool:
        """Tell whether a model of the rule, or of its signals, runs on the device that is asked for."""
        return any(rule.strategy.takes_device for rule in self.with_signals(pool))

    def as_json(self, pool: Pool) -> dict[str, Json]:
        """Return what a record says of the rule: name, options, cut, hashes of assets, and of its code (`identity`).

        And its signals, and the versions of optional packages, where it declares any; and as `source` the sha256 of its
        file as it ran, which identifies nothing where there is an `identity`: see `without_sources`. Raises
        FileNotFoundError where an asset or a signal is nowhere.
        """
        return {**self._described(pool, "cpu"), "cut": None if self.cut is None else {self.cut.kind: self.cut.value}}

    def kept_identity(self, pool: Pool, device: str = "cpu") -> dict[str, Json]:
        """Return what kept values hang on beside the pool: `identity`, and the version of how they are kept."""
        return {"version": KEPT_VERSION, **self.identity(pool, device)}

    def kept_dir(self, pool: Pool, device: str = "cpu") -> Path:
        """Return the folder in which the values of a pool are kept."""
        return kept_dir_of(pool, self.kept_identity(pool, device))

    def identity(self, pool: Pool, device: str = "cpu") -> dict[str, Json]:
        """Return what its values hang on beside the pool: all of `as_json` but cut and source file, and a GPU."""
        found: dict[str, Json] = without_sources(self._described(pool, device))
        return found

    def undeclared(self, pool: Pool) -> dict[str, list[Undeclared]]:
        """Return what its values may hang on that it has not declared, by strategy: itself, and its signals."""
        found = {rule.name: rule.strategy.undeclared() for rule in self.with_signals(pool)}
        return {name: inputs for name, inputs in found.items() if inputs}

    def runs_here_alone(self, pool: Pool) -> bool:
        """Tell whether it, or a signal of it, is known to this process alone: of a script or notebook."""
        return any(rule.strategy.loaded is None for rule in self.with_signals(pool))

    def _described(self, pool: Pool, device: str) -> dict[str, Json]:
        found: dict[str, Json] = {
            "name": self.name,
            "options": hash_assets(self.strategy, self.with_assets(pool.dir).options),
            "source": self.strategy.source_hash,
            "identity": self.strategy.identity,
        }
        if versions := self.strategy.package_versions():
            found["packages"] = versions
        if device != "cpu" and self.strategy.takes_device:
            found["device"] = device  # its rounding is another
        if self.strategy.signals:
            found["signals"] = {
                name: user_signal(pool, name, self.name).sha256 if rule is None else rule._described(pool, device)
                for name, rule in self.signal_rules(pool).items()
            }
        return found


def filter_defaults(strategy: Strategy) -> dict[str, Any]:
    """Return the strategy's part of the configuration: its options, and both cuts null where it scores."""
    options = {name: MISSING if option.is_required else option.default for name, option in strategy.options.items()}
    return {**(dict.fromkeys(CUT_OPTIONS) if strategy.has_cut else {}), **options}


def make_rule(name: str, given: dict[str, Any]) -> Rule:
    """Make a rule from its part of the configuration; the declared cut applies while both cuts are null."""
    strategy = get_chooser(name)
    cuts = {}
    for kind in CUT_OPTIONS:
        value = given.get(kind)
        if value is not None and (not isinstance(value, int | float) or isinstance(value, bool)):
            raise UserError(f"filters.{name}.{kind}={value!r} is not a number", code="option-type")
        if value is not None:
            cuts[kind] = float(value)
    if len(cuts) == 2:
        raise UserError(
            f"filters.{name}: fraction={cuts['fraction']:g} and threshold={cuts['threshold']:g} are both given; "
            "give one of them",
            code="option-conflict",
        )
    declared = {"fraction": strategy.fraction, "threshold": strategy.threshold}
    cut = None
    for kind, value in (cuts or declared).items():
        if value is not None:
            try:
                cut = Cut(kind, value)
            except ValueError as error:
                raise UserError(f"filters.{name}.{error}", code="option-value") from error
    return Rule(name, check_options(strategy, given), cut)


def known_strategies() -> Sequence[Strategy]:
    """Return the loaded filters and selectors, by name."""
    return [STRATEGIES[name] for name in sorted(STRATEGIES) if STRATEGIES[name].kind != "signal"]


def known_signals() -> Sequence[Strategy]:
    """Return the loaded signals, by name."""
    return [STRATEGIES[name] for name in sorted(STRATEGIES) if STRATEGIES[name].kind == "signal"]


def kept_dir_of(pool: Pool, kept_identity: dict[str, Json]) -> Path:
    """Return the folder in which the values of a rule with this `kept_identity` are kept."""
    return pool.signals_dir / f"{kept_identity['name']}-{digest(kept_identity)[:16]}"


def without_sources(value: Any) -> Any:
    """Return rules, as they stand in records, by what identifies them: `source` goes where there is an `identity`."""
    return _changed_rules(value, lambda rule: {k: v for k, v in rule.items() if k != "source" or not rule["identity"]})


def as_recorded(now: Any, there: Any) -> Any:
    """Return rules as a record would state them that fits, so that the two can be compared value by value.

    Of the same `identity` the file may be another (its comments). A record made before there was an `identity` states
    the whole file's hash alone, and fits a rule of the same file: what a helper was then is known to nobody.
    """
    if isinstance(now, list) and isinstance(there, list) and len(now) == len(there):
        return [as_recorded(*pair) for pair in zip(now, there, strict=True)]
    if not (isinstance(now, dict) and isinstance(there, dict)):
        return now
    found = {key: as_recorded(value, there.get(key)) for key, value in now.items()}
    if _is_rule(now) and now["identity"] and now["identity"] == there.get("identity"):
        found["source"] = there.get("source")
    elif _is_rule(now) and "identity" not in there:
        del found["identity"]
        # Then only declared packages were stated, by a rule that declared any.
        stated = {name: found.get("packages", {}).get(name) for name in there.get("packages", {})}
        found = {
            **{key: value for key, value in found.items() if key != "packages"},
            **({"packages": stated} if stated else {}),
        }
    return found


def _is_rule(value: dict[str, Any]) -> bool:
    return {"name", "options", "source", "identity"} <= set(value)


def _changed_rules(value: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """Return a JSON value with every rule in it changed."""
    if isinstance(value, list):
        return [_changed_rules(each, change) for each in value]
    if isinstance(value, dict):
        inner = {key: _changed_rules(each, change) for key, each in value.items()}
        return change(inner) if _is_rule(inner) else inner
    return value
