"""Boards on disk: a folder with its rules (`board.json`), one JSON per strategy, and the same on other pools."""

from __future__ import annotations

import re
from dataclasses import field
from pathlib import Path
from typing import Annotated

import pydantic
from pydantic.dataclasses import dataclass

from benchmark.evaluation.tasks import Task
from benchmark.registry import SUITES, load_tasks
from benchmark.runtime.errors import NotFoundError, UserError
from leaderboard.entries import STRICT, Count, Entry, Hash, SuiteName, read_entry, read_strictly

BOARDS_DIR = Path(__file__).resolve().parent
RULES_NAME = "board.json"
ENTRIES_NAME = "entries"
OTHER_POOLS_NAME = "other_pools"


@dataclass(frozen=True, config=STRICT)
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


def has_board(name: str) -> bool:
    """Tell whether a board of this name is shipped."""
    return (BOARDS_DIR / name / RULES_NAME).is_file()
