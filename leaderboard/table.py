"""A board as a table: ranks with ties, averages with seed noise, differences with intervals, and what may be claimed.

`make_table` decides which entries compare and works everything out; the rest only spells it, for a terminal, for
Markdown, for a page or as a data frame.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import median_low

import numpy as np
import pandas as pd

from benchmark.errors import UserError
from leaderboard.columns import counted, listed, markdown_table, page, score, shortened, signed, text_table
from leaderboard.entries import Board, Entry, check_entry
from leaderboard.statistics import (
    CONFIDENCE,
    Difference,
    PoolModel,
    RankRange,
    Run,
    SeedModel,
    fit_pool_model,
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
NAME_WIDTH = 26  # image_based+clip_score-0.3
REFERENCE_MARK = "(reference)"


@dataclass(frozen=True)
class Row:
    """One entry's line."""

    entry: Entry
    run: Run  # average over the headline tasks by seed
    development: float | None  # mean over seeds and the development half; None where all tasks report
    groups: dict[str, float]  # mean over seeds and the group's tasks
    rank: RankRange | None  # None for references and for too few seeds
    difference: Difference | None  # this run minus the highlighted one
    is_highlighted: bool

    @property
    def average(self) -> float:
        """Return the mean over seeds and headline tasks."""
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
        return shortened(self.entry.name, room) + self._mark

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


def make_table(
    entries: Sequence[Entry], board: Board, highlight: Entry | None = None, other_pools: Sequence[Entry] = ()
) -> Table:
    """Compare the entries that are comparable: with `highlight` where given, else with what most entries state.

    Entries of another suite, recipe or pool are left out and counted; those of `other_pools` tell only how much the
    pool's seed moves scores. Raises ValueError where an entry, or the
    highlighted run, has not exactly the suite's tasks.
    """
    if highlight is not None and highlight.suite != board.rules.suite:
        raise UserError(
            f"{highlight.name} was scored by suite {highlight.suite.name} version {highlight.suite.version}, the board "
            f"by {board.rules.suite.name} version {board.rules.suite.version}: evaluate it again"
        )
    kept, left_out = _comparable(entries, board, highlight)
    shown = kept if highlight is None else [*kept, highlight]
    for entry in shown:
        check_entry(entry, board)
    runs = [entry.averages(board.headline) for entry in shown]
    model = fit_seed_model(runs)
    ranks = _ranks(shown, model, board.rules.min_seeds)
    own = None if highlight is None else len(shown) - 1
    rows = [
        Row(
            entry=entry,
            run=run,
            development=mean(entry.averages(board.development)) if board.development else None,
            groups={group: mean(entry.averages(board.tasks_in(group))) for group in board.rules.groups},
            rank=rank,
            difference=model.difference(index, own) if model and own is not None and index != own else None,
            is_highlighted=index == own,
        )
        for index, (entry, run, rank) in enumerate(zip(shown, runs, ranks, strict=True))
    ]
    rows.sort(key=lambda row: (-row.average, row.entry.name))
    sentences = _sentences(rows, board, model, left_out)
    on_pools = _about_pools(entries, board, other_pools)
    return Table(board, tuple(rows), (*sentences, *on_pools, board.rules.note))


def render_table(table: Table) -> str:
    """Spell a table for a terminal; the highlighted run is marked `>`."""
    header, cells = _cells(table)
    body = text_table(header, cells, {header.index("name")}) if table.rows else []
    if any(row.is_highlighted for row in table.rows):
        marks = [" ", " ", "-", *(">" if row.is_highlighted else " " for row in table.rows)]
        body = [mark + line for mark, line in zip(marks, body, strict=True)]
    return page(table.board.rules.title, [body], table.sentences, "text")


def render_markdown(table: Table) -> str:
    """Spell a table as GitHub's Markdown; the highlighted run is bold and marked `>`."""
    header, cells = _cells(table)
    column = header.index("name")
    for row, line in zip(table.rows, cells, strict=True):
        if row.is_highlighted:
            line[column] = f"**&gt; {line[column]}**"
    body = markdown_table(header, cells, {column}) if table.rows else []
    return page(table.board.rules.title, [body], table.sentences, "markdown")


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
                **({} if row.development is None else {"dev": row.development}),
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
    recipe_hash, fingerprint = _frame(entries, board, highlight)
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


def _frame(entries: Sequence[Entry], board: Board, highlight: Entry | None) -> tuple[str, str]:
    """Return the recipe's hash and the pool's fingerprint that numbers are compared under."""
    frames = Counter(
        (entry.recipe_hash, entry.pool.fingerprint)
        for entry in ([highlight] if highlight else entries)
        if highlight or (entry.suite == board.rules.suite and entry.recipe == board.rules.recipe)
    )
    return min(frames, key=lambda frame: (-frames[frame], frame), default=("", ""))


def _ranks(entries: Sequence[Entry], model: SeedModel | None, min_seeds: int) -> list[RankRange | None]:
    ranked = [i for i, entry in enumerate(entries) if not entry.reference and len(entry.seeds) >= min_seeds]
    ranges = dict(zip(ranked, rank_ranges(model, ranked), strict=True)) if model else {}
    return [ranges.get(i) for i in range(len(entries))]


def _cells(table: Table) -> tuple[list[str], list[list[str]]]:
    """Return the header (its second line after a line break) and one list of texts per row."""
    header = ["rank", "name", "keeps", "average\n± sd (seeds)"]
    header += ["dev"] if table.board.development else []
    header += [group.replace("_", "\n") for group in table.board.rules.groups]
    header += ["minus >\n[95 %]"] if table.has_differences else []
    cells = []
    for row in table.rows:
        line = [str(row.rank or "-"), row.label, f"{100 * row.entry.share_kept:.0f} %", _average(row)]
        line += [] if row.development is None else [score(row.development)]
        line += [score(row.groups[group]) for group in table.board.rules.groups]
        if table.has_differences:
            d = row.difference
            line.append(f"{signed(d.value)} [{signed(d.low)}, {signed(d.high)}]" if d else "")
        cells.append(line)
    return header, cells


def _average(row: Row) -> str:
    spread = "" if row.sd is None else f" ± {score(row.sd)}"
    return f"{score(row.average)}{spread} ({len(row.run)})"


def _sentences(rows: Sequence[Row], board: Board, model: SeedModel | None, left_out: dict[str, list[str]]) -> list[str]:
    """Return what may be said about a table, the most important first."""
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
    if rows and board.development:
        sentences.append(
            f"average is the mean over the reporting half ({counted(len(board.headline), 'task')}), dev over the "
            f"development half ({len(board.development)}), on which alone rules may be tuned; the other columns are "
            "means over all tasks of a group."
        )
    if names := [row.entry.name for row in rows if row.entry.reference]:
        sentences.append(
            f"{listed(names)} (reference: knows the planted labels): not ranked, cannot be submitted, no ceiling."
        )
    if left_out:
        reasons = [f"{len(names)} {reason} ({listed(names)})" for reason, names in left_out.items()]
        sentences.append(f"Left out, because their numbers do not compare: {'; '.join(reasons)}.")
    if warning := _pixel_warning(own, others):
        sentences.append(warning)
    return sentences


def _about_own_run(own: Row, others: Sequence[Row], board: Board, model: SeedModel | None) -> list[str]:
    min_seeds = board.rules.min_seeds
    sentences = []
    if len(own.run) < min_seeds:
        claim = "never enough to claim" if len(own.run) == 1 else f"not enough to claim ({min_seeds} are)"
        warning = f"{counted(len(own.run), 'seed')}: enough to run, {claim}."
        width = max((row.difference.high - row.difference.value for row in others if row.difference), default=None)
        if width is not None:
            warning += f" With these entries a difference under {score(width)} (95 %) may be seed noise alone."
        sentences.append(warning)
    elif model is not None and others:
        sentences += _claims(own, others, min_seeds)
    if twins := [row.entry.name for row in others if row.entry.subset.sha256 == own.entry.subset.sha256]:
        sentences.append(f"{own.entry.name} kept exactly the samples of {listed(twins)}.")
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
    told = "; ".join(f"{verb} {listed(names)}" for verb, names in parts.items() if names)
    sentences = [f"{own.entry.name}: {told} (95 %, not adjusted for the number of comparisons)."]
    adjusted = zip(compared, holm([d.p for _, d in compared]), strict=True)
    lost = [row.full_name for (row, d), p in adjusted if d.is_significant and p >= 1 - CONFIDENCE]
    if lost:
        adjusted_for = f"With Holm's correction for {len(compared)} comparisons"
        sentences.append(f"{adjusted_for} it is not distinguishable from {listed(lost)} either.")
    elif len(compared) > 1 and any(d.is_significant for _, d in compared):
        sentences.append(f"The same holds with Holm's correction for {len(compared)} comparisons.")
    return sentences


def _about_noise(rows: Sequence[Row], others: Sequence[Row], model: SeedModel, min_seeds: int) -> list[str]:
    entry_seeds = median_low(len(row.run) for row in others)
    detectable = [f"{score(least_detectable(model.error_of_plan(n, entry_seeds)))} with {n}" for n in SEEDS_PLANNED]
    sentences = [
        f"Least difference that is found 4 times in 5, against an entry of {counted(entry_seeds, 'seed')}: "
        f"{', '.join(detectable)} seeds.",
        f"Seed noise: sd {score(model.sd)}, of which {score(model.shared_sd)} moves all runs of a seed alike. Runs "
        "that share seeds are compared without that part, so a difference need not be that of the averages. Intervals "
        f"and ranks (95 %) go pair by pair; a rank needs {min_seeds} seeds, and runs that cannot be told apart share "
        "theirs. They cover the training seed alone: another pool or other test samples move scores too.",
    ]
    p = unequal_noise([row.run for row in rows])
    if p is not None and p < UNEQUAL_NOISE_P:
        spreads = [row.sd for row in rows if row.sd is not None and len(row.run) >= 3]
        sentences.append(
            f"warning: the seed noise differs between runs (sd {score(min(spreads))} to {score(max(spreads))}, "
            f"Bartlett's p {p:.1g}): one pooled number is too small for some of them."
        )
    return sentences


def _about_pools(entries: Sequence[Entry], board: Board, other_pools: Sequence[Entry]) -> list[str]:
    """Say how much the pool's seed moves scores, and differences between strategies; nothing without other pools."""
    recipe_hash, fingerprint = _frame(entries, board, None)
    on_own_pool = [entry for entry in entries if entry.pool.fingerprint == fingerprint]
    usable = [e for e in (*on_own_pool, *other_pools) if (e.suite, e.recipe_hash) == (board.rules.suite, recipe_hash)]
    if not other_pools:
        return []
    names, scores = _balanced(
        {(entry.name, entry.pool.fingerprint): entry.averages(board.headline) for entry in usable}
    )
    if min(scores.shape) < 2:
        return [
            "Entries of other pools are there, but not two strategies with the same two seeds on all pools, trained by "
            "the board's recipe and scored by its suite: how much the pool's seed moves scores is not known."
        ]
    return [_pool_sentence(names, fit_pool_model(scores))]


def _pool_sentence(names: Sequence[str], model: PoolModel) -> str:
    strategies, pools, seeds = model.scores.shape
    best_first = np.argsort(-model.scores.mean(axis=(1, 2)), kind="stable")
    differences = []
    for index, other in itertools.pairwise(int(i) for i in best_first):
        d = model.difference(index, other)
        by_pool = model.differences_by_pool(index, other)
        differences.append(
            f"{names[index]} minus {names[other]} {signed(d.value)} [{signed(d.low)}, {signed(d.high)}] "
            f"({signed(by_pool.min())} to {signed(by_pool.max())} on single pools)"
        )
    return (
        f"Over drawings of the pool ({strategies} strategies, {pools} pools, {seeds} training seeds): the sd of a run "
        f"is {score(model.seed_sd)} from the training seed, {score(model.shared_seed_sd)} of it shared by all "
        f"strategies ({model.seed_df} degrees of freedom); from the pool's seed it is {score(model.shared_pool_sd)} "
        f"shared ({model.pool.df}) and {score(model.own_pool_sd)} not shared ({model.strategy_pool.df}). Over pools "
        f"and training seeds (95 %): {'; '.join(differences)}."
    )


def _balanced(runs: Mapping[tuple[str, str], Run]) -> tuple[list[str], np.ndarray]:
    """Return the strategies that are on all pools, and their scores (strategies, pools, seeds) on common seeds.

    `runs` goes by strategy and pool. Strategies of a single pool say nothing here and stand back first.
    """
    pools_of: dict[str, set[str]] = {}
    for name, pool in runs:
        pools_of.setdefault(name, set()).add(pool)
    pools = sorted(set().union(*(found for found in pools_of.values() if len(found) > 1)))
    names = sorted(name for name, found in pools_of.items() if pools and found >= set(pools))
    seeds = sorted(set.intersection(*(set(runs[name, pool]) for name in names for pool in pools))) if names else []
    scores = [[[runs[name, pool][seed] for seed in seeds] for pool in pools] for name in names]
    return names, np.array(scores, dtype=float).reshape(len(names), len(pools), len(seeds))


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
        f"{listed(names)}. Read {'its' if len(names) == 1 else 'their'} differences with care."
    )
