"""The rows of a board's table: which entries compare, and how any two of them do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from leaderboard.board import Board
from leaderboard.entries import Entry
from leaderboard.peers import Peers, seed_scores_of
from leaderboard.statistics import RankRange, Run, RunDifference, SeedModel, mean, sd

HIGHLIGHT_MARK, BESIDE_MARK = ">", "+"
REFERENCE_MARK = "(reference)"


@dataclass(frozen=True)
class BoardRow:
    """One entry's line."""

    entry: Entry
    run: Run  # average over the headline tasks by seed
    development: Run | None  # average over the development half by seed; None where all tasks report
    groups: dict[str, float]  # mean over seeds and the group's tasks
    rank: RankRange | None  # None for references and for too few seeds
    difference: RunDifference | None  # the highlighted run minus this one, as `leaderboard compare` says it
    dev_difference: RunDifference | None  # the same on the development half
    number: int | None = None  # which of the given runs it is, 1 the highlighted one; None for the board's own
    shares_name: bool = False  # with another of the given runs

    @property
    def average(self) -> float:
        """Return the mean over seeds and headline tasks."""
        return mean(self.run)

    @property
    def sd(self) -> float | None:
        """Return the standard deviation of the average over seeds."""
        return sd(self.run)

    @property
    def is_highlighted(self) -> bool:
        """Tell whether the other rows are compared with this one."""
        return self.number == 1

    @property
    def is_given(self) -> bool:
        """Tell whether it is a run that was given, and not the board's."""
        return self.number is not None

    @property
    def full_name(self) -> str:
        """Return the name, numbered where several given runs have it, marked where the entry knows planted labels."""
        number = f" #{self.number}" if self.shares_name else ""
        return self.entry.name + number + (f" {REFERENCE_MARK}" if self.entry.reference else "")

    @property
    def mark(self) -> str:
        """Return what marks a run that was given; empty for the board's own."""
        return HIGHLIGHT_MARK if self.is_highlighted else BESIDE_MARK if self.is_given else ""


class Standings:
    """The runs that a table shows, the board's and then those given, and how any two of them compare."""

    def __init__(self, shown: Sequence[Entry], num_peers: int, board: Board) -> None:
        self.board = board
        self.num_peers = num_peers
        self.runs = [seed_scores_of(entry) for entry in shown]
        self.given = self.runs[num_peers:]
        self.peers = Peers(tuple(self.runs[:num_peers]))
        self._among_peers = self.peers.model(board.headline)
        self._from_given: dict[int, list[RunDifference | None]] = {}
        self._from_highlight: dict[tuple[str, ...], list[RunDifference | None]] = {}

    def noise(self, tasks: Sequence[str]) -> SeedModel | None:
        """Return the seed model of all runs; None where they do not tell seed noise."""
        return self.peers.model(tasks, self.given)

    def from_highlight(self, tasks: Sequence[str]) -> list[RunDifference | None]:
        """Return the first given run minus each run, on the mean of some tasks; None for itself."""
        key = tuple(tasks)
        if key not in self._from_highlight:
            self._from_highlight[key] = self._from(self.num_peers, tasks)
        return self._from_highlight[key]

    def difference(self, index: int, other: int) -> RunDifference | None:
        """Return one run minus another on the headline tasks; None where nothing tells seed noise."""
        if index >= self.num_peers:
            if index not in self._from_given:
                self._from_given[index] = self._from(index, self.board.headline)
            return self._from_given[index][other]
        if other >= self.num_peers:
            found = self.difference(other, index)
            return found.reversed if found is not None else None
        return self._among_peers.difference(index, other) if self._among_peers is not None else None

    def _from(self, index: int, tasks: Sequence[str]) -> list[RunDifference | None]:
        others = [run for place, run in enumerate(self.runs) if place != index]
        found = self.peers.differences(self.runs[index], others, tasks)
        return [*found[:index], None, *found[index:]]


def left_out_by_reason(
    entries: Sequence[Entry], board: Board, recipe_hash: str, fingerprint: str
) -> dict[str, list[str]]:
    """Return the names of entries whose numbers do not compare, by the reason."""
    left_out: dict[str, list[str]] = {}
    for entry in entries:
        if entry.suite != board.rules.suite:
            left_out.setdefault("scored by another suite or version of it", []).append(entry.name)
        elif entry.recipe_hash != recipe_hash:
            left_out.setdefault("trained by another recipe", []).append(entry.name)
        elif entry.pool.fingerprint != fingerprint:
            left_out.setdefault("on another pool", []).append(entry.name)
    return left_out


def common_frame(entries: Sequence[Entry], board: Board, highlight: Entry | None) -> tuple[str, str]:
    """Return the recipe's hash and the pool's fingerprint that numbers are compared under."""
    frames = Counter(
        (entry.recipe_hash, entry.pool.fingerprint)
        for entry in ([highlight] if highlight else entries)
        if highlight or (entry.suite == board.rules.suite and entry.recipe == board.rules.recipe)
    )
    return min(frames, key=lambda frame: (-frames[frame], frame), default=("", ""))
