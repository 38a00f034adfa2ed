"""How a subset comes about, and what identifies it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmark.pool.pool import Pool
from benchmark.pool.subset import is_reference_subset
from benchmark.runtime.files import Json, digest, sha256_of
from benchmark.scales import Scale
from benchmark.selection.rule_records import without_sources
from benchmark.selection.rules import ResolvedRule, Rule, resolve_rules

FILTER_VERSION = 2  # 2: `repeated_uids` counts chosen rows


@dataclass(frozen=True)
class Choice:
    """How the subset comes about: rules (within an earlier subset, perhaps), or a file of somebody else's."""

    rules: tuple[Rule, ...] = ()
    within_path: Path | None = None
    subset_path: Path | None = None
    max_missing: int = 0  # uids of subset_path that a pool of shards alone may lack
    device: str = "cpu"  # that models of filters and signals run on

    def inputs(self, pool: Pool) -> dict[str, Json]:
        """Return what identifies the subset; its hash names the experiment's folder."""
        return self.resolve(pool).inputs

    def resolve(self, pool: Pool) -> ResolvedChoice:
        """Return the choice with what the pool has for its rules; raises UserError that lists all that is missing."""
        rules = tuple(resolve_rules(pool, self.rules, device=self.device))
        return ResolvedChoice(self, rules, subset_inputs(pool, rules, self))

    @property
    def name(self) -> str:
        """Return the readable part of the folder's name."""
        return "subset" if self.subset_path else "+".join(rule.name for rule in self.rules)


@dataclass(frozen=True)
class ResolvedChoice:
    """A choice with what a pool has for its rules, looked up once."""

    choice: Choice
    rules: tuple[ResolvedRule, ...]
    inputs: dict[str, Json]  # what identifies the subset


def subset_inputs(pool: Pool, rules: Sequence[ResolvedRule], choice: Choice = Choice()) -> dict[str, Json]:
    """Return what identifies the subset that resolved rules choose of a pool, within or instead of a file's."""
    inputs: dict[str, Json] = {
        "pool": pool.compute_fingerprint(),
        "filters": [rule.as_json() for rule in rules],
        "within": sha256_of(choice.within_path) if choice.within_path else None,
        "subset": sha256_of(choice.subset_path) if choice.subset_path else None,
    }
    if pool.has_images and any(rule.sees_images for rule in rules):
        inputs["images"] = pool.ensure_index().content_hash  # the fingerprint is of the metadata alone
    if choice.device != "cpu" and any(rule.takes_device for rule in rules):
        inputs["device"] = choice.device
    return inputs


def default_exp_dir(scale: Scale, pool: Pool, choice: Choice) -> Path:
    """Return `experiments/<scale>/<filters>-<hash>`."""
    identity = without_sources(choice.inputs(pool))
    return Path("experiments") / scale.name / f"{choice.name}-{digest(identity)[:8]}"


def is_reference(choice: Choice) -> bool:
    """Tell whether a subset comes about by what no participant may use."""
    return any(rule.strategy.reference for rule in choice.rules) or any(
        is_reference_subset(path) for path in (choice.within_path, choice.subset_path) if path
    )
