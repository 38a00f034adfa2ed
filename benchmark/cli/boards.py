"""Boards as text: their entries, their tasks, and how far they agree with published scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.runtime.errors import UserError

if TYPE_CHECKING:
    from leaderboard.entries import Entry
    from leaderboard.table import Table


def board_table(board_name: str, entry_paths: Sequence[Path], style: str) -> str:
    """Render a board, given by name or folder, with entries among its own; the first is compared with all others."""
    from leaderboard.table import render_markdown, render_table, to_frame

    table = _table(board_name, entry_paths)
    if style == "csv":
        return to_frame(table).to_csv(index=False).rstrip("\n")
    return render_markdown(table) if style == "markdown" else render_table(table)


def board_tasks(board_name: str, entry_paths: Sequence[Path], style: str) -> str:
    """Render what each task of a board can tell apart."""
    from leaderboard.task_table import make_task_table, render_tasks, tasks_to_frame

    tasks = make_task_table(_table(board_name, entry_paths))
    return tasks_to_frame(tasks).to_csv(index=False).rstrip("\n") if style == "csv" else render_tasks(tasks, style)


def board_agreement(board_name: str, style: str) -> str:
    """Render how far a board's order of strategies is the published one."""
    from leaderboard.agreement import agreement_to_frame, make_agreement, read_published, render_agreement

    agreement = make_agreement(_table(board_name, ()), read_published())
    if style == "csv":
        return agreement_to_frame(agreement).to_csv(index=False).rstrip("\n")
    return render_agreement(agreement, style)


def _table(board_name: str, entry_paths: Sequence[Path]) -> Table:
    from leaderboard.board import board_named, read_entries, read_other_pools
    from leaderboard.entries import read_entry
    from leaderboard.table import make_table

    board = board_named(board_name)
    given: dict[Path, Entry] = {}
    for path in entry_paths:
        entry = read_entry(path)
        if path.resolve() in given:
            raise UserError(f"--entry {path} is given twice; give each entry once", code="entry-given-twice")
        given[path.resolve()] = entry
    first, *others = given.values() if given else (None,)
    return make_table(read_entries(board), board, first, read_other_pools(board), others)
