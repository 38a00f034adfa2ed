"""Rules: a strategy with its options and its cut, as plain data, and what identifies it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from benchmark.pool.pool import planted_path
from benchmark.pool.shards_note import shards_dir_of
from benchmark.registry import STRATEGIES, get_chooser, get_strategy
from benchmark.runtime.errors import NotFoundError, UserError
from benchmark.runtime.files import Json, digest
from benchmark.runtime.storage import has_file
from benchmark.runtime.strategies import CUT_OPTIONS, Strategy, check_options
from benchmark.selection.assets import find_assets, hash_assets
from benchmark.selection.cache import CACHE_VERSION
from benchmark.selection.rule_records import without_sources
from benchmark.selection.user_signals import UserSignal, find_user_signal

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
    """A strategy with its options, and its cut where it scores."""

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

    def resolve(self, pool: Pool, *, device: str = "cpu") -> ResolvedRule:
        """Return the rule with what the pool has for it; see `resolve_rules`."""
        (found,) = resolve_rules(pool, [self], device=device)
        return found


@dataclass(frozen=True)
class ResolvedRule:
    """A rule with all that a pool has for it, looked up once. Plain data, so that worker processes can be sent it."""

    rule: Rule  # with the paths of its assets among its options
    columns: tuple[str, ...]  # of the metadata
    features: tuple[str, ...]  # arrays of the .npz
    signals: dict[str, ResolvedRule | UserSignal]  # by name: registered ones, or columns of a user's parquet files
    device: str  # that its own model runs on; "cpu" where it takes none
    description: dict[str, Json]  # what a record states of it, but for its cut
    identity: dict[str, Json]  # what its values depend on beside the pool: without source file and cut, with a GPU
    cache_dir: Path  # of its values on this pool

    @property
    def cached_identity(self) -> dict[str, Json]:
        """Return what cached values depend on beside the pool: `identity`, and the version of how they are cached."""
        return {"version": CACHE_VERSION, **self.identity}

    @property
    def name(self) -> str:
        return self.rule.name

    @property
    def options(self) -> dict[str, Json]:
        return self.rule.options

    @property
    def cut(self) -> Cut | None:
        return self.rule.cut

    @property
    def key(self) -> str:
        return self.rule.key

    @property
    def strategy(self) -> Strategy:
        return self.rule.strategy

    @property
    def asset_hashes(self) -> dict[str, Json]:
        """Return the sha256 of every asset, by its option: one, a list of them, or None."""
        hashes: dict[str, Json] = self.description["options"]
        return {option: hashes[option] for option in self.strategy.assets}

    @property
    def with_signals(self) -> list[ResolvedRule]:
        """Return the rule and every registered signal that it uses, itself or through others, each once."""
        found = {self.key: self}
        waiting = [self]
        while waiting:
            inner = [each for each in waiting.pop().signals.values() if isinstance(each, ResolvedRule)]
            waiting += [each for each in inner if each.key not in found]
            found |= {each.key: each for each in inner}
        return list(found.values())

    @property
    def sees_images(self) -> bool:
        """Tell whether the rule depends on the images, itself or through its signals."""
        return any(each.strategy.images for each in self.with_signals)

    @property
    def takes_device(self) -> bool:
        """Tell whether a model of the rule, or of its signals, runs on the requested device."""
        return any(each.strategy.takes_device for each in self.with_signals)

    @property
    def is_single_process(self) -> bool:
        """Tell whether it, or a signal of it, is known to this process only: of a script or notebook."""
        return any(each.strategy.loaded is None for each in self.with_signals)

    def as_json(self) -> dict[str, Json]:
        """Return what a record says of the rule: name, options, cut, hashes of assets, and of its code (`identity`).

        And its signals, and the versions of optional packages, where it declares any; and as `source` the sha256 of its
        file as it ran, which identifies nothing where there is an `identity`: see `without_sources`.
        """
        return {**self.description, "cut": None if self.cut is None else {self.cut.kind: self.cut.value}}


def resolve_rules(pool: Pool, rules: Sequence[Rule], *, device: str = "cpu") -> list[ResolvedRule]:
    """Look up once what the pool has for the rules: columns, arrays, assets and their hashes, signals, identities.

    `device` is what models run on. Raises UserError, which is also a FileNotFoundError where a file is missing, that
    lists everything that is missing.
    """
    if rules and not pool.metadata_paths:
        raise UserError(
            f"{pool.dir} has shards only, and filters need metadata: `winnow pool import` makes them from the tars; "
            "or give subset= of a file",
            code="metadata-missing",
        )
    found = [_find(pool, rule) for rule in rules]
    if missing := [error for each in found for error in each.missing]:
        raise one_error(missing)
    return [_resolved(pool, each, device) for each in found]


def missing_for(pool: Pool, rule: Rule) -> list[str]:
    """Say what the pool lacks for a rule, without hashing what it has; nothing where the rule can run."""
    if not pool.metadata_paths:
        return ["needs metadata; `winnow pool import` makes it from tars"]
    return list(dict.fromkeys(str(error) for error in _find(pool, rule).missing))


@dataclass(frozen=True)
class _Found:
    """What a pool has for a rule, and what it lacks."""

    rule: Rule  # with the paths of the assets that were found
    columns: tuple[str, ...]
    features: tuple[str, ...]
    signals: dict[str, _Found | UserSignal]
    missing: list[UserError]  # its signals' too


def _find(pool: Pool, rule: Rule) -> _Found:
    strategy = rule.strategy
    columns = tuple(strategy.needed_columns(rule.options))
    features = tuple(strategy.needed_features(rule.options))
    missing = _refused(pool.check_columns, columns, strategy.label)
    missing += _refused(pool.check_features, features, strategy.label)
    options, absent = find_assets(strategy, rule.options, pool.dir)
    missing += absent
    signals: dict[str, _Found | UserSignal] = {}
    inner: list[UserError] = []
    for name in strategy.signals:
        signal = STRATEGIES.get(name)
        if signal is not None and signal.is_signal:
            # It takes those of the rule's options that it has itself.
            own = {key: value for key, value in options.items() if key in signal.options}
            signals[name] = found = _find(pool, Rule(name, check_options(signal, own)))
            inner += found.missing
            continue
        try:
            signals[name] = find_user_signal(pool, name, rule.name)
        except UserError as error:
            missing.append(error)
    if strategy.planted and not has_file(planted_path(pool)):
        missing.append(
            NotFoundError(
                f"{strategy.label} is a reference for embedded pools; {planted_path(pool)} is not there",
                code="no-embedded-pool",
            )
        )
    if strategy.images and not pool.has_images:
        missing.append(
            NotFoundError(
                f"{strategy.label} needs the images, but there is no tar in {shards_dir_of(pool.dir)}",
                code="images-missing",
            )
        )
    return _Found(replace(rule, options=options), columns, features, signals, [*missing, *inner])


def _refused(check: Callable[[Sequence[str], str], None], names: Sequence[str], needed_by: str) -> list[UserError]:
    """Return what a check of names refuses: looked at one by one only where it refuses something."""
    try:
        check(names, needed_by)
    except UserError as first:
        errors = []
        for name in names:
            try:
                check([name], needed_by)
            except UserError as error:
                errors.append(error)
        return errors or [first]  # a damaged file is refused without any name
    return []


def one_error(errors: Sequence[UserError]) -> UserError:
    """Return one error for all of these, of the first one's class and code."""
    sentences = list(dict.fromkeys(str(error) for error in errors))
    if len(sentences) == 1:
        return errors[0]
    lines = "".join(f"\n  - {sentence}" for sentence in sentences)
    return type(errors[0])(f"{len(sentences)} things keep the filters from running:{lines}", code=errors[0].code)


def _resolved(pool: Pool, found: _Found, device: str) -> ResolvedRule:
    strategy, rule = found.rule.strategy, found.rule
    signals = {
        name: each if isinstance(each, UserSignal) else _resolved(pool, each, device)
        for name, each in found.signals.items()
    }
    description: dict[str, Json] = {
        "name": rule.name,
        "options": hash_assets(strategy, rule.options),
        "source": strategy.source_hash,
        "identity": strategy.identity,
    }
    if versions := strategy.package_versions():
        description["packages"] = versions
    own_device = device if strategy.takes_device else "cpu"
    # Records state the device apart; a GPU's rounding is another.
    identity = description if own_device == "cpu" else {**description, "device": own_device}
    identity = without_sources(identity)
    if signals:
        hashes = {name: each.sha256 for name, each in signals.items() if isinstance(each, UserSignal)}
        inner = {name: each for name, each in signals.items() if isinstance(each, ResolvedRule)}
        description["signals"] = {n: hashes[n] if n in hashes else inner[n].description for n in signals}
        identity["signals"] = {n: hashes[n] if n in hashes else inner[n].identity for n in signals}
    return ResolvedRule(
        rule,
        found.columns,
        found.features,
        signals,
        own_device,
        description,
        identity,
        pool.signals_dir / f"{rule.name}-{digest({'version': CACHE_VERSION, **identity})[:16]}",
    )


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
    return [STRATEGIES[name] for name in sorted(STRATEGIES) if not STRATEGIES[name].is_signal]


def known_signals() -> Sequence[Strategy]:
    """Return the loaded signals, by name."""
    return [STRATEGIES[name] for name in sorted(STRATEGIES) if STRATEGIES[name].is_signal]
