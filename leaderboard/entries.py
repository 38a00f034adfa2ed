"""Boards and entries on disk: a board is a folder with its rules (`board.json`) and one JSON per strategy.

An entry holds scores per training seed and task and what they were made from; averages are computed when needed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import pydantic
import pydantic_core
from pydantic.dataclasses import dataclass

from benchmark.evaluation.tasks import Task
from benchmark.registry import SUITES, load_tasks
from benchmark.runtime.errors import NotFoundError, UserError
from benchmark.runtime.files import write_json

BOARDS_DIR = Path(__file__).resolve().parent
RULES_NAME = "board.json"
ENTRIES_NAME = "entries"
OTHER_POOLS_NAME = "other_pools"
ERRORS_SHOWN = 4

_STRICT = pydantic.ConfigDict(strict=True, extra="forbid")

Slug = Annotated[str, pydantic.StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.+-]*$", max_length=80)]
Hash = Annotated[str, pydantic.StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, pydantic.Field(ge=0)]
Score = Annotated[float, pydantic.Field(ge=0, le=1, allow_inf_nan=False)]
Finite = Annotated[float, pydantic.Field(allow_inf_nan=False)]


@dataclass(frozen=True, config=_STRICT)
class SuiteName:
    """Which suite scored an entry."""

    name: str
    version: Count


@dataclass(frozen=True, config=_STRICT)
class StrategyUsed:
    """One filter or selector of an entry, with every option and the cut that applied."""

    name: str
    options: dict[str, pydantic.JsonValue]
    cut: dict[Literal["fraction", "threshold"], Finite] | None
    source: Hash  # sha256 of the file it stands in, as it ran
    identity: Hash | None = None  # what its code is known by (benchmark/runtime/identity.py); older entries do not say
    packages: dict[str, str | None] = field(default_factory=dict)  # versions of optional ones that change what it keeps
    signals: dict[str, pydantic.JsonValue] = field(default_factory=dict)  # a user's file by its sha256, else as a rule


@dataclass(frozen=True, config=_STRICT)
class PoolUsed:
    """The pool an entry was made from: its identity, its pixels and its coverage."""

    fingerprint: Hash
    content_hash: Hash
    rows: Annotated[int, pydantic.Field(ge=1)]  # in the metadata
    present: Count  # with an image in the shards
    damaged_tars: Count = 0  # of which only a part could be read (strict=false)


@dataclass(frozen=True, config=_STRICT)
class SubsetUsed:
    """What an entry's strategy kept."""

    size: Count  # copies counted
    distinct: Count
    sha256: Hash


@dataclass(frozen=True, config=_STRICT)
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
    comparable: bool = True  # False: trained by a scale of one's own
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


@dataclass(frozen=True, config=_STRICT)
class Rules:
    """A board's rules, as `board.json` states them."""

    title: str
    scale: str
    recipe: Count
    suite: SuiteName
    groups: tuple[str, ...]  # of tasks, the table's columns
    pools: tuple[Hash, ...]  # admitted fingerprints; empty while no pool is published: each entry states its own
    min_seeds: Annotated[int, pydantic.Field(ge=2)]  # fewer are enough to run, never to claim
    note: str  # stands under every table


@dataclass(frozen=True, config=pydantic.ConfigDict(arbitrary_types_allowed=True))
class Board:
    """A board: its rules, the tasks of its suite, and which of them make the headline average."""

    rules: Rules
    tasks: tuple[Task, ...]
    entries_dir: Path = field(default_factory=Path)
    reporting: tuple[str, ...] = ()  # as in the suite: empty means all

    @property
    def task_names(self) -> list[str]:
        """Return the tasks of the suite, in its order."""
        return [task.name for task in self.tasks]

    @property
    def headline(self) -> list[str]:
        """Return the tasks of the headline average."""
        return [name for name in self.task_names if not self.reporting or name in self.reporting]

    @property
    def development(self) -> list[str]:
        """Return the tasks of the development half; none where all report."""
        return [name for name in self.task_names if name not in self.headline]

    def tasks_in(self, group: str) -> list[str]:
        """Return the names of a group's tasks."""
        return [task.name for task in self.tasks if group in task.groups]


def board_names() -> list[str]:
    """Return the names of the boards that come with Winnow."""
    return sorted(path.parent.name for path in BOARDS_DIR.glob(f"*/{RULES_NAME}"))


def read_board(board_dir: Path) -> Board:
    """Read a board's rules; raises ValueError where they do not fit the suite that is installed."""
    path = board_dir / RULES_NAME
    if not path.is_file():
        raise NotFoundError(
            f"there is no board at {board_dir}: {RULES_NAME} is missing. Boards: {board_names()}",
            code="board-not-found",
        )
    rules = read_strictly(path, Rules, "board")
    tasks = load_tasks()
    suite = SUITES.get(rules.suite.name)
    if suite is None or suite.version != rules.suite.version:
        there = f"version {suite.version}" if suite else "none of that name"
        raise UserError(
            f"{path} is about suite {rules.suite.name!r} version {rules.suite.version}; here is {there}",
            code="entry-foreign",
        )
    board = Board(
        rules=rules,
        tasks=tuple(tasks[name] for name in suite.tasks),
        entries_dir=board_dir / ENTRIES_NAME,
        reporting=suite.reporting,
    )
    for group in rules.groups:
        if not board.tasks_in(group):
            raise UserError(f"{path}: suite {suite.name!r} has no task in group {group!r}", code="entry-invalid")
    return board


def board_named(name: str) -> Board:
    """Read the board that is shipped under this name, else the one in this folder."""
    shipped = BOARDS_DIR / name
    return read_board(shipped if shipped.is_dir() else Path(name))


def read_entries(board: Board) -> list[Entry]:
    """Read every entry of a board, by name; raises ValueError that names the file that breaks a rule."""
    entries = []
    for path in sorted(board.entries_dir.glob("*.json")):
        entry = read_entry(path)
        if entry.name != path.stem:
            raise UserError(
                f"{path} holds the entry {entry.name!r}; its file must be {entry.name}.json", code="entry-invalid"
            )
        if board.rules.pools and entry.pool.fingerprint not in board.rules.pools:
            raise UserError(
                f"{path}: pool {entry.pool.fingerprint[:12]} is not admitted to this board", code="entry-foreign"
            )
        _check_file(path, entry, board)
        entries.append(entry)
    return entries


def read_other_pools(board: Board) -> list[Entry]:
    """Read the entries of other drawings of the embedded pool; raises ValueError that names the file that is wrong.

    They tell how much the pool's seed moves scores and stand in no table. `<name>-pool<seed>.json` holds the entry
    <name>, called as on the board's own pool.
    """
    entries: dict[tuple[str, str], Path] = {}
    found = []
    for path in sorted((board.entries_dir.parent / OTHER_POOLS_NAME).glob("*.json")):
        entry = read_entry(path)
        if not re.fullmatch(re.escape(entry.name) + r"-pool\d+", path.stem):
            raise UserError(
                f"{path} holds the entry {entry.name!r}; its file must be {entry.name}-pool<seed>.json",
                code="entry-invalid",
            )
        twin = entries.setdefault((entry.name, entry.pool.fingerprint), path)
        if twin != path:
            raise UserError(f"{path} and {twin.name} hold the same strategy on the same pool", code="entry-invalid")
        _check_file(path, entry, board)
        found.append(entry)
    return found


def check_entry(entry: Entry, board: Board) -> None:
    """Raise ValueError unless the entry has the board's scale and exactly the tasks of the suite that it names."""
    rules = board.rules
    if entry.scale != rules.scale:
        raise UserError(f"scale {entry.scale!r} is not the board's scale {rules.scale!r}", code="entry-foreign")
    if entry.suite != rules.suite:
        return  # the tasks of another suite are not known here; the table leaves the entry out
    if missing := sorted(set(board.task_names) - entry.tasks):
        raise UserError(f"{len(missing)} of {len(board.tasks)} tasks have no score: {missing}", code="entry-foreign")
    if unknown := sorted(entry.tasks - set(board.task_names)):
        raise UserError(
            f"tasks outside suite {rules.suite.name!r} version {rules.suite.version}: {unknown}", code="entry-foreign"
        )


def _check_file(path: Path, entry: Entry, board: Board) -> None:
    """Check an entry as `check_entry` does; the error names its file."""
    try:
        check_entry(entry, board)
    except ValueError as error:
        raise UserError(f"{path}: {error}", code="entry-invalid") from error


def read_entry(path: Path) -> Entry:
    """Read one entry; raises ValueError that names the file and what is wrong in it."""
    return read_strictly(path, Entry, "entry")


def has_board(name: str) -> bool:
    """Tell whether a board of this name is shipped."""
    return (BOARDS_DIR / name / RULES_NAME).is_file()


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
