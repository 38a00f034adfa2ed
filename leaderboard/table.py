"""A board as a table: ranks with ties, averages with seed noise, differences with intervals, and what may be claimed.

`make_table` decides which entries compare and works everything out (`board_rows.py`, and the sentences:
`board_sentences.py`); the rest only spells it, for a terminal, for Markdown, for a page or as a data frame.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from benchmark.runtime.errors import UserError
from benchmark.runtime.html_pages import render
from benchmark.runtime.text_tables import (
    markdown_table,
    page,
    score,
    signed,
    text_table,
)
from leaderboard.board import Board, check_entry
from leaderboard.board_rows import HIGHLIGHT_MARK, BoardRow, Standings, common_frame, left_out_by_reason
from leaderboard.board_sentences import board_sentences, pool_sentences
from leaderboard.entries import Entry
from leaderboard.peers import Peers, entries_on, is_on
from leaderboard.statistics import (
    RankRange,
    RunDifference,
    mean,
    rank_ranges,
    sd,
)

if TYPE_CHECKING:
    from markupsafe import Markup

TEMPLATES_DIR = Path(__file__).parent / "templates"
NAME_WIDTH = 26  # image_based+clip_score-0.3; on a terminal a longer name has a line of its own


@dataclass(frozen=True)
class Table:
    """A board's comparable entries, best first, and the sentences that belong under them."""

    board: Board
    rows: tuple[BoardRow, ...]
    sentences: tuple[str, ...]
    peers: Peers = Peers()  # the rows that are the board's

    @property
    def has_differences(self) -> bool:
        """Tell whether rows are compared with a highlighted run."""
        return any(row.difference is not None for row in self.rows)

    def to_pandas(self) -> pd.DataFrame:
        """Return a row per entry, best first, with all digits; `to_frame` says what the columns are."""
        return to_frame(self)

    def __str__(self) -> str:
        return render_table(self)


def make_table(
    entries: Sequence[Entry],
    board: Board,
    highlight: Entry | None = None,
    other_pools: Sequence[Entry] = (),
    beside: Sequence[Entry] = (),
) -> Table:
    """Compare the entries that are comparable: with `highlight` where given, else with what most entries state.

    Entries of another suite, recipe or pool are left out and counted. Those of `other_pools` stand in the table of a
    run on their pool; else they tell only how much the pool's seed moves scores. Entries `beside` the highlighted one
    are further runs that are not the board's. How two runs compare depends on the board and these two alone. Raises
    ValueError where an entry, or a run that is given, has not exactly the suite's tasks.
    """
    assert highlight is not None or not beside, "runs beside none are compared with nothing"
    if highlight is not None and highlight.suite != board.rules.suite:
        raise UserError(
            f"{highlight.name} was scored by suite {highlight.suite.name} version {highlight.suite.version}, the board "
            f"by {board.rules.suite.name} version {board.rules.suite.version}: evaluate it again",
            code="entry-foreign",
        )
    recipe_hash, fingerprint = common_frame(entries, board, highlight)
    peers = entries_on(entries, other_pools, board, recipe_hash, fingerprint)
    given = [each for each in beside if is_on(each, board, recipe_hash, fingerprint)]
    given = given if highlight is None else [highlight, *given]
    shown = [*peers, *given]
    for entry in shown:
        check_entry(entry, board)
    standing = Standings(shown, len(peers), board)
    ranks = _ranks(shown, standing, board.rules.min_seeds)
    names = Counter(entry.name for entry in given)
    rows = [
        BoardRow(
            entry=entry,
            run=entry.averages(board.headline),
            development=entry.averages(board.development) if board.development else None,
            groups={group: mean(entry.averages(board.tasks_in(group))) for group in board.rules.groups},
            rank=rank,
            difference=standing.from_highlight(board.headline)[index] if given else None,
            dev_difference=standing.from_highlight(board.development)[index] if given and board.development else None,
            number=index - len(peers) + 1 if index >= len(peers) else None,
            shares_name=index >= len(peers) and names[entry.name] > 1,
        )
        for index, (entry, rank) in enumerate(zip(shown, ranks, strict=True))
    ]
    rows.sort(key=lambda row: (-row.average, row.entry.name))
    left_out = left_out_by_reason(entries, board, recipe_hash, fingerprint)
    not_shown = left_out_by_reason(beside, board, recipe_hash, fingerprint)
    sentences = board_sentences(rows, board, standing, left_out, not_shown)
    on_pools = pool_sentences(entries, board, other_pools)
    return Table(board, tuple(rows), (*sentences, *on_pools, board.rules.note), standing.peers)


def render_table(table: Table) -> str:
    """Spell a table for a terminal; the highlighted run is marked `>`, those given beside it `+`."""
    header, cells = _cells(table)
    name = header.index("name")
    body = text_table(header, cells, {name}, hanging=(name, NAME_WIDTH)) if table.rows else []
    if any(row.is_given for row in table.rows):
        marks = [" "] * (len(body) - len(table.rows)) + [row.mark or " " for row in table.rows]
        marks[-len(table.rows) - 1] = "-"
        body = [mark + line.replace("\n", "\n ") for mark, line in zip(marks, body, strict=True)]
    return page(table.board.rules.title, [body], table.sentences, "text")


def render_markdown(table: Table) -> str:
    """Spell a table as GitHub's Markdown; runs that were given are bold and marked `>` and `+`."""
    header, cells = _cells(table)
    column = header.index("name")
    for row, line in zip(table.rows, cells, strict=True):
        if row.is_given:
            line[column] = f"**{escape(row.mark)} {line[column]}**"
    body = markdown_table(header, cells, {column}) if table.rows else []
    return page(table.board.rules.title, [body], table.sentences, "markdown")


def render_html(table: Table) -> Markup:
    """Spell a table for a page that brings its own style; rows of runs that were given have the class `own`."""
    header, cells = _cells(table)
    name = header.index("name")
    rows = []
    for row, texts in zip(table.rows, cells, strict=True):
        texts[name] = f"{row.mark} {texts[name]}".strip()
        rows.append({"cells": texts, "is_given": row.is_given})
    return render(
        TEMPLATES_DIR,
        "board_table.html.j2",
        title=table.board.rules.title,
        header=header,
        name_column=name,
        rows=rows,
        sentences=table.sentences,
    )


def to_frame(table: Table) -> pd.DataFrame:
    """Return the rows with all digits, one column per number.

    `highlighted_minus_row` is the highlighted run minus the row, on the headline average and (`dev_...`) on the
    development half; between different seeds it is `SeedModel`'s, not the averages'.
    """

    def interval(name: str, found: RunDifference | None) -> dict[str, float | None]:
        ends = (None, None, None) if found is None else (found.value, found.low, found.high)
        return dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))

    return pd.DataFrame(
        [
            {
                "rank_first": row.rank.first if row.rank else None,
                "rank_last": row.rank.last if row.rank else None,
                "name": row.entry.name,
                "reference": row.entry.reference,
                "highlighted": row.is_highlighted,
                "given": row.is_given,
                "share_kept": row.entry.share_kept,
                "seeds": len(row.run),
                "average": row.average,
                "sd": row.sd,
                **({} if row.development is None else {"dev": mean(row.development), "dev_sd": sd(row.development)}),
                **row.groups,
                **interval("highlighted_minus_row", row.difference),
                **({} if row.development is None else interval("dev_highlighted_minus_row", row.dev_difference)),
            }
            for row in table.rows
        ]
    ).astype({"rank_first": "Int64", "rank_last": "Int64"} if table.rows else {})


def _ranks(entries: Sequence[Entry], standing: Standings, min_seeds: int) -> list[RankRange | None]:
    ranked = [i for i, entry in enumerate(entries) if not entry.reference and len(entry.seeds) >= min_seeds]
    ranges = dict(zip(ranked, rank_ranges(standing.difference, ranked), strict=True))
    return [ranges.get(i) for i in range(len(entries))]


def _cells(table: Table) -> tuple[list[str], list[list[str]]]:
    """Return the header (its second line after a line break) and one list of texts per row."""
    header = ["rank", "name", "keeps", "average\n± sd (seeds)"]
    header += ["dev"] if table.board.development else []
    header += [group.replace("_", "\n") for group in table.board.rules.groups]
    header += [f"{HIGHLIGHT_MARK} minus row\n[95 %]"] if table.has_differences else []
    cells = []
    for row in table.rows:
        line = [str(row.rank or "-"), row.full_name, f"{100 * row.entry.share_kept:.0f} %", _average(row)]
        line += [] if row.development is None else [score(mean(row.development))]
        line += [score(row.groups[group]) for group in table.board.rules.groups]
        if table.has_differences:
            d = row.difference
            line.append(f"{signed(d.value)} [{signed(d.low)}, {signed(d.high)}]" if d else "")
        cells.append(line)
    return header, cells


def _average(row: BoardRow) -> str:
    spread = "" if row.sd is None else f" ± {score(row.sd)}"
    return f"{score(row.average)}{spread} ({len(row.run)})"
