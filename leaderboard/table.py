"""A board as a table: ranks with ties, averages with seed noise, differences with intervals, and what may be claimed.

`make_table` decides which entries compare and works everything out; the rest only spells it, for a terminal, for
Markdown, for a page or as a data frame.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from statistics import median_low

import pandas as pd

from leaderboard.entries import Board, Entry, check_entry
from leaderboard.statistics import (
    CONFIDENCE,
    Difference,
    RankRange,
    Run,
    SeedModel,
    fit_seed_model,
    holm,
    least_detectable,
    mean,
    rank_ranges,
    sd,
    unequal_noise,
)

SEEDS_PLANNED = (1, 3, 5)  # for the least detectable differences
UNEQUAL_NOISE_P = 0.01
NAME_WIDTH = 30
GAP = "  "
REFERENCE_MARK = "(reference)"


@dataclass(frozen=True)
class Row:
    """One entry's line."""

    entry: Entry
    run: Run  # average over the suite's tasks by seed
    groups: dict[str, float]  # mean over seeds and the group's tasks
    rank: RankRange | None  # None for references and for too few seeds
    difference: Difference | None  # this run minus the highlighted one
    is_highlighted: bool

    @property
    def average(self) -> float:
        """Return the mean over seeds and tasks."""
        return mean(self.run)

    @property
    def sd(self) -> float | None:
        """Return the standard deviation of the average over seeds."""
        return sd(self.run)

    @property
    def full_name(self) -> str:
        """Return the name, marked where the entry knows the planted labels."""
        return self.entry.name + self._mark

    @property
    def label(self) -> str:
        """Return the marked name, shortened to fit a column."""
        room = NAME_WIDTH - len(self._mark)
        return (self.entry.name if len(self.entry.name) <= room else self.entry.name[: room - 1] + "…") + self._mark

    @property
    def _mark(self) -> str:
        return f" {REFERENCE_MARK}" if self.entry.reference else ""


@dataclass(frozen=True)
class Table:
    """A board's comparable entries, best first, and the sentences that belong under them."""

    board: Board
    rows: tuple[Row, ...]
    sentences: tuple[str, ...]

    @property
    def has_differences(self) -> bool:
        """Tell whether rows are compared with a highlighted run."""
        return any(row.difference is not None for row in self.rows)


def make_table(entries: Sequence[Entry], board: Board, highlight: Entry | None = None) -> Table:
    """Compare the entries that are comparable: with `highlight` where given, else with what most entries state.

    Entries of another suite, recipe or pool are left out and counted. Raises ValueError where an entry, or the
    highlighted run, has not exactly the suite's tasks.
    """
    if highlight is not None and highlight.suite != board.rules.suite:
        raise ValueError(
            f"{highlight.name} was scored by suite {highlight.suite.name} version {highlight.suite.version}, the board "
            f"by {board.rules.suite.name} version {board.rules.suite.version}: evaluate it again"
        )
    kept, left_out = _comparable(entries, board, highlight)
    shown = kept if highlight is None else [*kept, highlight]
    for entry in shown:
        check_entry(entry, board)
    runs = [entry.averages(board.task_names) for entry in shown]
    model = fit_seed_model(runs)
    ranks = _ranks(shown, model, board.rules.min_seeds)
    own = None if highlight is None else len(shown) - 1
    rows = [
        Row(
            entry=entry,
            run=run,
            groups={group: mean(entry.averages(board.tasks_in(group))) for group in board.rules.groups},
            rank=rank,
            difference=model.difference(index, own) if model and own is not None and index != own else None,
            is_highlighted=index == own,
        )
        for index, (entry, run, rank) in enumerate(zip(shown, runs, ranks, strict=True))
    ]
    rows.sort(key=lambda row: (-row.average, row.entry.name))
    return Table(board, tuple(rows), tuple(_sentences(rows, board, model, left_out)))


def render_table(table: Table, *, width: int = 118) -> str:
    """Spell a table for a terminal; the highlighted run is marked `>`."""
    header, cells = _cells(table)
    top = [[title.partition("\n")[part] for title in header] for part in (0, 2)]
    marks = ["", "", *(">" if row.is_highlighted else "" for row in table.rows)]
    lines = [[mark, *line] for mark, line in zip(marks, [*top, *cells], strict=True)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    name = 1 + header.index("name")
    spelt = [
        GAP.join(
            text.ljust(space) if column == name else text.rjust(space)
            for column, (text, space) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    body = [*spelt[:2], "-" * max(map(len, spelt)), *spelt[2:]] if table.rows else []
    notes = [textwrap.fill(sentence, width, break_on_hyphens=False) for sentence in table.sentences]
    return "\n".join([table.board.rules.title, "", *body, *([""] if body else []), *notes]) + "\n"


def render_markdown(table: Table) -> str:
    """Spell a table as GitHub's Markdown; the highlighted run is bold and marked `>`."""
    header, cells = _cells(table)
    lines = []
    if table.rows:
        titles = [title.replace("\n", " ") for title in header]
        lines = [titles, ["---" if title == "name" else "---:" for title in titles]]
        column = header.index("name")
        for row, line in zip(table.rows, cells, strict=True):
            label = f"**&gt; {line[column]}**" if row.is_highlighted else line[column]
            lines.append([*line[:column], label, *line[column + 1 :]])
    body = ["| " + " | ".join(line) + " |" for line in lines]
    notes = [f"- {sentence.replace('>', '&gt;')}" for sentence in table.sentences]
    return "\n".join([f"## {table.board.rules.title}", "", *body, *([""] if body else []), *notes]) + "\n"


def render_html(table: Table) -> str:
    """Spell a table for a page that brings its own style; the highlighted run's row has the class `own`."""
    header, cells = _cells(table)
    name = header.index("name")

    def line(tag: str, texts: Sequence[str], style: str = "") -> str:
        marks = [' class="left"' if column == name else "" for column in range(len(texts))]
        inner = "".join(f"<{tag}{mark}>{escape(text)}</{tag}>" for text, mark in zip(texts, marks, strict=True))
        return f"<tr{style}>{inner}</tr>"

    lines = [
        line("td", texts, ' class="own"' if row.is_highlighted else "")
        for row, texts in zip(table.rows, cells, strict=True)
    ]
    head = line("th", header).replace("\n", "<br>")
    body = ['<div class="wide"><table>', head, *lines, "</table></div>"] if lines else []
    notes = [f"<p>{escape(sentence)}</p>" for sentence in table.sentences]
    return "\n".join([f"<h3>{escape(table.board.rules.title)}</h3>", *body, *notes])


def to_frame(table: Table) -> pd.DataFrame:
    """Return the rows with all digits, one column per number.

    `difference` is the row minus the highlighted run; between different seeds it is `SeedModel`'s, not the averages'.
    """
    return pd.DataFrame(
        [
            {
                "rank_first": row.rank.first if row.rank else None,
                "rank_last": row.rank.last if row.rank else None,
                "name": row.entry.name,
                "reference": row.entry.reference,
                "highlighted": row.is_highlighted,
                "share_kept": row.entry.share_kept,
                "seeds": len(row.run),
                "average": row.average,
                "sd": row.sd,
                **row.groups,
                "difference": row.difference.value if row.difference else None,
                "difference_low": row.difference.low if row.difference else None,
                "difference_high": row.difference.high if row.difference else None,
            }
            for row in table.rows
        ]
    ).astype({"rank_first": "Int64", "rank_last": "Int64"} if table.rows else {})


def _comparable(
    entries: Sequence[Entry], board: Board, highlight: Entry | None
) -> tuple[list[Entry], dict[str, list[str]]]:
    """Return the entries whose numbers compare, and the names of the others by the reason."""
    frames = Counter(
        (entry.recipe_hash, entry.pool.fingerprint)
        for entry in ([highlight] if highlight else entries)
        if highlight or (entry.suite == board.rules.suite and entry.recipe == board.rules.recipe)
    )
    recipe_hash, fingerprint = min(frames, key=lambda frame: (-frames[frame], frame), default=("", ""))
    kept = []
    left_out: dict[str, list[str]] = {}
    for entry in entries:
        if entry.suite != board.rules.suite:
            left_out.setdefault("scored by another suite or version of it", []).append(entry.name)
        elif entry.recipe_hash != recipe_hash:
            left_out.setdefault("trained by another recipe", []).append(entry.name)
        elif entry.pool.fingerprint != fingerprint:
            left_out.setdefault("on another pool", []).append(entry.name)
        else:
            kept.append(entry)
    return kept, left_out


def _ranks(entries: Sequence[Entry], model: SeedModel | None, min_seeds: int) -> list[RankRange | None]:
    ranked = [i for i, entry in enumerate(entries) if not entry.reference and len(entry.seeds) >= min_seeds]
    ranges = dict(zip(ranked, rank_ranges(model, ranked), strict=True)) if model else {}
    return [ranges.get(i) for i in range(len(entries))]


def _cells(table: Table) -> tuple[list[str], list[list[str]]]:
    """Return the header (its second line after a line break) and one list of texts per row."""
    header = ["rank", "name", "keeps", "average\n± sd (seeds)"]
    header += [group.replace("_", "\n") for group in table.board.rules.groups]
    header += ["minus >\n[95 %]"] if table.has_differences else []
    cells = []
    for row in table.rows:
        line = [str(row.rank or "-"), row.label, f"{100 * row.entry.share_kept:.0f} %", _average(row)]
        line += [_score(row.groups[group]) for group in table.board.rules.groups]
        if table.has_differences:
            d = row.difference
            line.append(f"{_signed(d.value)} [{_signed(d.low)}, {_signed(d.high)}]" if d else "")
        cells.append(line)
    return header, cells


def _average(row: Row) -> str:
    spread = "" if row.sd is None else f" ± {_score(row.sd)}"
    return f"{_score(row.average)}{spread} ({len(row.run)})"


def _score(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def _signed(value: float) -> str:
    return f"{'-' if value < 0 else '+'}{_score(abs(value))}"


def _sentences(rows: Sequence[Row], board: Board, model: SeedModel | None, left_out: dict[str, list[str]]) -> list[str]:
    """Return what may be said about a table, the most important first and the board's note last."""
    own = next((row for row in rows if row.is_highlighted), None)
    others = [row for row in rows if not row.is_highlighted]
    sentences = []
    if own is not None:
        sentences += _about_own_run(own, others, board, model)
    if not others:
        sentences.append("The board has no entry to compare with." if own else "The board has no entry yet.")
    if model is None and others:
        sentences.append("No run here has two seeds: seed noise is unknown, and any difference may be nothing else.")
    if model is not None and others:
        sentences += _about_noise(rows, others, model, board.rules.min_seeds)
    if names := [row.entry.name for row in rows if row.entry.reference]:
        sentences.append(
            f"{_listed(names)} (reference: knows the planted labels): not ranked, cannot be submitted, no ceiling."
        )
    if left_out:
        reasons = [f"{len(names)} {reason} ({_listed(names)})" for reason, names in left_out.items()]
        sentences.append(f"Left out, because their numbers do not compare: {'; '.join(reasons)}.")
    if warning := _pixel_warning(own, others):
        sentences.append(warning)
    return [*sentences, board.rules.note]


def _about_own_run(own: Row, others: Sequence[Row], board: Board, model: SeedModel | None) -> list[str]:
    min_seeds = board.rules.min_seeds
    sentences = []
    if len(own.run) < min_seeds:
        claim = "never enough to claim" if len(own.run) == 1 else f"not enough to claim ({min_seeds} are)"
        warning = f"{_counted(len(own.run), 'seed')}: enough to run, {claim}."
        width = max((row.difference.high - row.difference.value for row in others if row.difference), default=None)
        if width is not None:
            warning += f" With these entries a difference under {_score(width)} (95 %) may be seed noise alone."
        sentences.append(warning)
    elif model is not None and others:
        sentences += _claims(own, others, min_seeds)
    if twins := [row.entry.name for row in others if row.entry.subset.sha256 == own.entry.subset.sha256]:
        sentences.append(f"{own.entry.name} kept exactly the samples of {_listed(twins)}.")
    if own.entry.recipe != board.rules.recipe:
        sentences.append(f"Recipe {own.entry.recipe} is not the board's recipe {board.rules.recipe}.")
    if board.rules.pools and own.entry.pool.fingerprint not in board.rules.pools:
        sentences.append(f"Pool {own.entry.pool.fingerprint[:12]} is not one that this board admits.")
    return sentences


def _claims(own: Row, others: Sequence[Row], min_seeds: int) -> list[str]:
    """Say which entries the run beats, pair by pair and after Holm's correction."""
    compared = [(row, row.difference) for row in others if row.difference and len(row.run) >= min_seeds]
    if not compared:
        return [f"No entry here has the {min_seeds} seeds that a claim needs."]
    parts = {
        "better than": [row.full_name for row, d in compared if d.is_significant and d.value < 0],
        "not distinguishable from": [row.full_name for row, d in compared if not d.is_significant],
        "worse than": [row.full_name for row, d in compared if d.is_significant and d.value > 0],
    }
    told = "; ".join(f"{verb} {_listed(names)}" for verb, names in parts.items() if names)
    sentences = [f"{own.entry.name}: {told} (95 %, not adjusted for the number of comparisons)."]
    adjusted = zip(compared, holm([d.p for _, d in compared]), strict=True)
    lost = [row.full_name for (row, d), p in adjusted if d.is_significant and p >= 1 - CONFIDENCE]
    if lost:
        adjusted_for = f"With Holm's correction for {len(compared)} comparisons"
        sentences.append(f"{adjusted_for} it is not distinguishable from {_listed(lost)} either.")
    elif len(compared) > 1 and any(d.is_significant for _, d in compared):
        sentences.append(f"The same holds with Holm's correction for {len(compared)} comparisons.")
    return sentences


def _about_noise(rows: Sequence[Row], others: Sequence[Row], model: SeedModel, min_seeds: int) -> list[str]:
    entry_seeds = median_low(len(row.run) for row in others)
    detectable = [f"{_score(least_detectable(model.error_of_plan(n, entry_seeds)))} with {n}" for n in SEEDS_PLANNED]
    sentences = [
        f"Least difference that is found 4 times in 5, against an entry of {_counted(entry_seeds, 'seed')}: "
        f"{', '.join(detectable)} seeds.",
        f"Seed noise: sd {_score(model.sd)}, of which {_score(model.shared_sd)} moves all runs of a seed alike. Runs "
        "that share seeds are compared without that part, so a difference need not be that of the averages. Intervals "
        f"and ranks (95 %) go pair by pair; a rank needs {min_seeds} seeds, and runs that cannot be told apart share "
        "theirs. They cover the training seed alone: another pool or other test samples move scores too.",
    ]
    p = unequal_noise([row.run for row in rows])
    if p is not None and p < UNEQUAL_NOISE_P:
        spreads = [row.sd for row in rows if row.sd is not None and len(row.run) >= 3]
        sentences.append(
            f"warning: the seed noise differs between runs (sd {_score(min(spreads))} to {_score(max(spreads))}, "
            f"Bartlett's p {p:.1g}): one pooled number is too small for some of them."
        )
    return sentences


def _pixel_warning(own: Row | None, others: Sequence[Row]) -> str | None:
    contents = Counter(row.entry.pool.content_hash for row in others)
    if own is not None:
        content = own.entry.pool.content_hash
    elif contents:
        content = min(contents, key=lambda key: (-contents[key], key))
    names = [row.entry.name for row in others if row.entry.pool.content_hash != content]
    if not names:
        return None
    return (
        f"warning: the same pool but other pixels (another version of Pillow or FreeType, or other images missing): "
        f"{_listed(names)}. Read {'its' if len(names) == 1 else 'their'} differences with care."
    )


def _listed(names: Sequence[str]) -> str:
    shown = list(names)
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _counted(number: int, noun: str) -> str:
    return f"1 {noun}" if number == 1 else f"{number} {noun}s"
