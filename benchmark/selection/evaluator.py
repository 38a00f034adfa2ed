"""The evaluation of filters and signals on a pool's metadata shards: what is cached is read, the rest is computed.

A strategy is called once for each row: its earlier values are read from the cache (cache.py). Signals come before the
rules that use them, and rules over images share one pass over the tars (shard_evaluation.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from benchmark.pool.images import ImagePlaces, locate_images
from benchmark.pool.pool import Pool, Shard, planted_path
from benchmark.pool.subset import Subset
from benchmark.runtime.console import warn
from benchmark.runtime.files import digest
from benchmark.runtime.locks import locked
from benchmark.runtime.storage import changed, file_hash, hash_file
from benchmark.runtime.undeclared import spell_undeclared
from benchmark.runtime.watch import Undeclared
from benchmark.selection.cache import begin_caching, end_caching, read_undeclared, write_undeclared
from benchmark.selection.rules import ResolvedRule
from benchmark.selection.shard_evaluation import ShardEvaluation, ShardValues
from benchmark.selection.strategy_calls import forget_if_changed
from benchmark.selection.user_signals import UserSignal, join_user_signal

COLUMN, FEATURE, IMAGE = range(3)  # what a rule reads, the cheapest first
LOCKS_NAME = ".locks"  # in the folder of signals

Result = TypeVar("Result")

_WARNED: set[tuple[str, str]] = set()  # strategies, and which load of them, whose undeclared inputs were reported


class UndeclaredInputError(Exception):
    """A strategy read what it has not declared, after cached values of it were used: begin again without them."""


class RuleEvaluator:
    """Evaluates rules on metadata shards; plain data, so that worker processes can be sent it."""

    def __init__(self, pool: Pool, rules: Sequence[ResolvedRule]) -> None:
        """Number the rules and their signals, and sort users' signals by uid."""
        self.pool = pool
        self.rules = list(rules)
        self.all_rules = list(rules)  # and their registered signals
        self.signals: list[dict[str, int | UserSignal]] = []  # of each rule: by name, the numbers of registered ones
        self.copied: dict[int, str] = {}  # rules whose scores are known to be a column, with its name
        numbers = {rule.key: number for number, rule in enumerate(self.all_rules)}
        for rule in self.all_rules:  # grows while it is walked: signals have signals
            self.signals.append({})
            for name, signal in rule.signals.items():
                if isinstance(signal, UserSignal):
                    join_user_signal(signal)
                    self.signals[-1][name] = signal
                    continue
                if signal.key not in numbers:
                    numbers[signal.key] = len(self.all_rules)
                    self.all_rules.append(signal)
                self.signals[-1][name] = numbers[signal.key]
            for option, hashes in rule.asset_hashes.items():
                forget_if_changed(str(rule.options[option]), str(hashes))
            forget_if_changed(str(rule.strategy.source_path), rule.strategy.version)
        self.labels = _labels(self.all_rules)
        self.model_keys = {
            number: json.dumps([rule.name, rule.device, rule.strategy.setup_options(rule.options)], sort_keys=True)
            for number, rule in enumerate(self.all_rules)
            if rule.strategy.setup is not None
        }
        # What each rule reads undeclared, as far as it is known; and the rules of which cached values are used.
        self.undeclared: dict[int, list[Undeclared]] = {}
        self.uses_cached: set[int] = set()
        for number, rule in enumerate(self.all_rules):
            if inputs := list(dict.fromkeys([*rule.strategy.undeclared(), *read_undeclared(rule.cache_dir)])):
                self.undeclared[number] = inputs
        # Not the sum of the images' hashes: that says nothing of which image is whose.
        self.tars = pool.hash_tar_contents() if any(rule.strategy.images for rule in self.all_rules) else ""

    @property
    def cache_dirs(self) -> list[Path]:
        """Return where each rule's values are cached, their signals' too."""
        return [rule.cache_dir for rule in self.all_rules]

    def inner(self, number: int) -> list[int]:
        """Return the registered signals that a rule uses."""
        return [each for each in self.signals[number].values() if isinstance(each, int)]

    def used_by(self, number: int) -> set[int]:
        """Return a rule and the registered signals that it uses, itself or through others."""
        return {number}.union(*(self.used_by(each) for each in self.inner(number)))

    def may_cache(self, number: int) -> bool:
        """Tell whether a rule's values may be cached for other runs: neither it nor a signal of it reads undeclared."""
        for each in self.used_by(number):
            if each in self.undeclared or read_undeclared(self.all_rules[each].cache_dir):
                return False
        return True

    def tier(self, number: int) -> int:
        """Return what a rule reads, itself or through its signals: COLUMN, FEATURE or IMAGE."""
        strategy = self.all_rules[number].strategy
        own = IMAGE if strategy.images else FEATURE if strategy.features else COLUMN
        return max([own, *(self.tier(each) for each in self.inner(number))])

    def needs_gpu(self, numbers: Sequence[int]) -> bool:
        """Tell whether one of these rules, or a signal that it uses, computes on a GPU."""
        return any(self.all_rules[each].device == "cuda" for number in numbers for each in self.used_by(number))

    def values(
        self,
        shard: Shard,
        numbers: Sequence[int],
        *,
        requested: np.ndarray | None = None,
        places: ImagePlaces | None = None,
    ) -> ShardValues:
        """Return the values of the rules of these numbers for the `requested` rows of a metadata shard, (rows,) bool.

        What is not cached is computed, and cached. Raises ValueError or FileNotFoundError where a strategy fails, or
        where its file, or the shard's, are no longer what they were.
        """
        for rule in self.all_rules:
            if rule.strategy.identity != rule.identity["identity"]:  # a worker loads it anew
                raise changed(rule.strategy.source_path)
        work = ShardEvaluation(self, shard, requested, places)
        work.evaluate(numbers)
        self._look_for_undeclared()
        return ShardValues([work.found[number] for number in numbers], work.copied, work.costs, work.image_cost)

    def table(self, shard: Shard, number: int, *, requested: np.ndarray) -> pd.DataFrame:
        """Return the columns and signals that a selector declared, of all rows of a metadata shard."""
        work = ShardEvaluation(self, shard, requested, None)
        work.evaluate([number])
        return work.table(number)

    def inputs(self, shard: Shard, number: int) -> str:
        """Identify what a rule's values of a metadata shard are computed from, beside its options."""
        strategy = self.all_rules[number].strategy
        found = [file_hash(shard.path, shard.state)]
        if strategy.features:
            assert shard.npz_state is not None  # checked before anything ran
            found.append(file_hash(shard.npz_path, shard.npz_state))
        if strategy.images:
            found.append(self.tars)
        if strategy.planted:
            found.append(hash_file(planted_path(self.pool)))
        return digest([found, [self.inputs(shard, each) for each in self.inner(number)]])

    def warn_of_undeclared(self) -> None:
        """Say once what each strategy reads undeclared, as far as it is known."""
        for rule in self.all_rules:
            inputs = [*rule.strategy.undeclared(), *read_undeclared(rule.cache_dir)]
            if inputs and (rule.name, rule.strategy.version) not in _WARNED:
                _WARNED.add((rule.name, rule.strategy.version))
                warn(spell_undeclared(rule.strategy.label, list(dict.fromkeys(inputs))))

    def _look_for_undeclared(self) -> None:
        """Note in the folders what strategies were seen to read; UndeclaredInputError where cached values are used."""
        for number, rule in enumerate(self.all_rules):
            inputs = rule.strategy.undeclared()
            if inputs and number not in self.undeclared:
                self.undeclared[number] = inputs
                write_undeclared(rule.cache_dir, inputs)
                if any(number in self.used_by(each) for each in self.uses_cached):
                    raise UndeclaredInputError(rule.name)


@contextmanager
def caching(evaluator: RuleEvaluator) -> Iterator[None]:
    """Hold the folders in which values are cached; one in which nothing is cached is removed at the end."""
    numbers = {rule.cache_dir: number for number, rule in enumerate(evaluator.all_rules)}
    with ExitStack() as held:
        for folder in sorted(numbers):
            number = numbers[folder]
            # The lock lies beside the folder, which goes where nothing is cached.
            held.enter_context(locked(folder.parent / LOCKS_NAME / folder.name))
            identity = evaluator.all_rules[number].cached_identity
            if begin_caching(folder, identity, anew=not evaluator.may_cache(number)):
                evaluator.uses_cached.add(number)
        evaluator.warn_of_undeclared()
        try:
            yield
        finally:
            evaluator.warn_of_undeclared()
            may_cache = {folder: evaluator.may_cache(number) for folder, number in numbers.items()}
            for folder in numbers:
                end_caching(folder, forget=not may_cache[folder])


def repeat_if_undeclared(work: Callable[[], Result]) -> Result:
    """Do some work, and again where cached values were used of a strategy that is then seen to read undeclared.

    Each time one more strategy is known for it, so this ends.
    """
    while True:
        try:
            return work()
        except UndeclaredInputError:
            continue


def image_places(
    evaluator: RuleEvaluator, numbers: Sequence[int], within: Subset | None
) -> Sequence[ImagePlaces | None]:
    """Find the images of every metadata shard where one of these rules, or of their signals, sees images."""
    if all(evaluator.tier(number) != IMAGE for number in numbers):
        return [None] * len(evaluator.pool.metadata_paths)
    return locate_images(evaluator.pool, within)


def _labels(rules: Sequence[ResolvedRule]) -> list[str]:
    """Return what each of a run's rules is called in its costs: by its name, and its options where two share it."""
    labels = []
    for rule in rules:
        others = [each.options for each in rules if each.name == rule.name and each.key != rule.key]
        spelt = [f"{name}={value}" for name, value in rule.options.items() if any(o[name] != value for o in others)]
        labels.append(f"{rule.name} ({', '.join(spelt)})" if spelt else rule.name)
    return labels
