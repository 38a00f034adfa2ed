"""Entries on disk: one JSON per strategy that a board has, or an experiment makes.

An entry holds scores per training seed and task and what they were made from; averages are computed when needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import pydantic
import pydantic_core
from pydantic.dataclasses import dataclass

from benchmark.runtime.errors import UserError
from benchmark.runtime.files import write_json

ERRORS_SHOWN = 4

STRICT = pydantic.ConfigDict(strict=True, extra="forbid")

Slug = Annotated[str, pydantic.StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.+-]*$", max_length=80)]
Hash = Annotated[str, pydantic.StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, pydantic.Field(ge=0)]
Score = Annotated[float, pydantic.Field(ge=0, le=1, allow_inf_nan=False)]
Finite = Annotated[float, pydantic.Field(allow_inf_nan=False)]


@dataclass(frozen=True, config=STRICT)
class SuiteName:
    """Which suite scored an entry."""

    name: str
    version: Count


@dataclass(frozen=True, config=STRICT)
class StrategyUsed:
    """One filter or selector of an entry, with every option and the cut that applied."""

    name: str
    options: dict[str, pydantic.JsonValue]
    cut: dict[Literal["fraction", "threshold"], Finite] | None
    source: Hash  # sha256 of the file it stands in, as it ran
    identity: Hash | None = None  # what its code is known by (benchmark/runtime/identity.py); older entries do not say
    packages: dict[str, str | None] = field(default_factory=dict)  # versions of optional ones that change what it keeps
    signals: dict[str, pydantic.JsonValue] = field(default_factory=dict)  # a user's file by its sha256, else as a rule


@dataclass(frozen=True, config=STRICT)
class PoolUsed:
    """The pool an entry was made from: its identity, its pixels and its coverage."""

    fingerprint: Hash
    content_hash: Hash
    rows: Annotated[int, pydantic.Field(ge=1)]  # in the metadata
    present: Count  # with an image in the shards
    damaged_tars: Count = 0  # of which only a part could be read (strict=false)


@dataclass(frozen=True, config=STRICT)
class SubsetUsed:
    """What an entry's strategy kept."""

    size: Count  # copies counted
    distinct: Count
    sha256: Hash


@dataclass(frozen=True, config=STRICT)
class Entry:
    """One strategy on one pool at one scale: scores per training seed and task."""

    name: Slug
    strategy: tuple[StrategyUsed, ...]
    reference: bool  # knows the planted labels; cannot be submitted
    scale: str
    recipe: Count
    recipe_hash: Hash
    suite: SuiteName
    pool: PoolUsed
    subset: SubsetUsed
    seeds: dict[Count, dict[str, Score]]  # training seed -> task -> main metric
    made_with: dict[str, str]  # package -> version
    within: Hash | None = None  # sha256 of the subset file that the strategy filtered inside
    given_subset: Hash | None = None  # sha256 of a subset file that was taken instead of a strategy
    chance: dict[str, Score] = field(default_factory=dict)  # task -> what guessing gets; older entries do not say
    comparable: bool = True  # False: trained by a custom scale
    format_version: Literal[0] = 0

    @pydantic.field_validator("seeds")
    @classmethod
    def _seeds_agree(cls, seeds: dict[int, dict[str, float]]) -> dict[int, dict[str, float]]:
        if not seeds:
            raise UserError("an entry needs at least one seed", code="entry-invalid")
        first, *others = seeds
        if not seeds[first]:
            raise UserError(f"seed {first} has no task", code="entry-invalid")
        for other in others:
            if odd := sorted(set(seeds[first]) ^ set(seeds[other])):
                raise UserError(f"seeds {first} and {other} differ in their tasks: {odd}", code="entry-invalid")
        return seeds

    @pydantic.model_validator(mode="after")
    def _subset_fits(self) -> Entry:
        if self.subset.distinct > min(self.subset.size, self.pool.rows):
            raise UserError(
                f"subset.distinct {self.subset.distinct} exceeds its size {self.subset.size} "
                f"or the pool's {self.pool.rows} rows",
                code="entry-invalid",
            )
        return self

    @pydantic.model_validator(mode="after")
    def _chance_fits(self) -> Entry:
        if self.chance and set(self.chance) != self.tasks:
            raise UserError(
                f"chance and scores differ in their tasks: {sorted(set(self.chance) ^ self.tasks)}",
                code="entry-invalid",
            )
        return self

    @property
    def tasks(self) -> set[str]:
        """Return the names of the tasks, the same for every seed."""
        return set(next(iter(self.seeds.values())))

    @property
    def share_kept(self) -> float:
        """Return the share of the pool that the subset keeps, copies counted once."""
        return self.subset.distinct / self.pool.rows

    def averages(self, tasks: Sequence[str]) -> dict[int, float]:
        """Return the mean score over these tasks for every seed."""
        return {seed: sum(scores[task] for task in tasks) / len(tasks) for seed, scores in sorted(self.seeds.items())}


def read_entry(path: Path) -> Entry:
    """Read one entry; raises ValueError that names the file and what is wrong in it."""
    return read_strictly(path, Entry, "entry")


def write_entry(path: Path, entry: Entry) -> None:
    """Write an entry atomically."""
    values = pydantic.TypeAdapter(Entry).dump_python(entry, mode="json")
    if not entry.chance:
        del values["chance"]  # an entry made before chance was kept is written as it was read
    if entry.comparable:
        del values["comparable"]  # said where it is not so
    if not entry.pool.damaged_tars:
        del values["pool"]["damaged_tars"]
    for used in values["strategy"]:
        for name in ("identity", "packages", "signals"):  # what it does not state or have
            if not used[name]:
                del used[name]
    write_json(path, values)


T = TypeVar("T")


def read_strictly(path: Path, kind: type[T], noun: str) -> T:
    """Read a JSON file as this type; raises ValueError that names the file and what is wrong in it."""
    try:
        return pydantic.TypeAdapter(kind).validate_json(path.read_bytes())
    except pydantic.ValidationError as error:
        problems = [_spell(problem) for problem in error.errors(include_url=False)]
        more = f"; and {len(problems) - ERRORS_SHOWN} more" if len(problems) > ERRORS_SHOWN else ""
        raise UserError(
            f"{path} is no valid {noun}: {'; '.join(problems[:ERRORS_SHOWN])}{more}", code="entry-invalid"
        ) from error


def _spell(problem: pydantic_core.ErrorDetails) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    given = f" (is {problem['input']!r})" if isinstance(problem["input"], int | float) else ""
    return f"{where}: {message}{given}" if where else f"{message}{given}"
