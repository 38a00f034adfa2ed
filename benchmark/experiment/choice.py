"""How a subset comes about, and what identifies it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmark.pool.pool import Pool
from benchmark.pool.subset import is_reference_subset
from benchmark.runtime.files import Json, digest, sha256_of
from benchmark.scales import Scale
from benchmark.selection.rules import Rule, without_sources

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
        inputs: dict[str, Json] = {
            "pool": pool.compute_fingerprint(),
            "filters": [rule.as_json(pool) for rule in self.rules],
            "within": sha256_of(self.within_path) if self.within_path else None,
            "subset": sha256_of(self.subset_path) if self.subset_path else None,
        }
        if pool.has_images and any(rule.sees_images(pool) for rule in self.rules):
            inputs["images"] = pool.ensure_index().content_hash  # the fingerprint is of the metadata alone
        if self.device != "cpu" and any(rule.takes_device(pool) for rule in self.rules):
            inputs["device"] = self.device
        return inputs

    @property
    def name(self) -> str:
        """Return the readable part of the folder's name."""
        return "subset" if self.subset_path else "+".join(rule.name for rule in self.rules)


def default_exp_dir(scale: Scale, pool: Pool, choice: Choice) -> Path:
    """Return `experiments/<scale>/<filters>-<hash>`."""
    identity = without_sources(choice.inputs(pool))
    return Path("experiments") / scale.name / f"{choice.name}-{digest(identity)[:8]}"


def is_reference(choice: Choice) -> bool:
    """Tell whether a subset comes about by what no participant may use."""
    return any(rule.strategy.reference for rule in choice.rules) or any(
        is_reference_subset(path) for path in (choice.within_path, choice.subset_path) if path
    )
