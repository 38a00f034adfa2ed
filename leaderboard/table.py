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

from benchmark.runtime.errors import UserError
from benchmark.runtime.text_tables import (
    averaged_over,
    counted,
    listed,
    listed_some,
    markdown_table,
    page,
    score,
    signed,
    text_table,
)
from leaderboard.entries import Board, Entry, check_entry
from leaderboard.peers import Peers, entries_on, is_on, seed_scores_of
from leaderboard.statistics import (
    CONFIDENCE,
    Difference,
    PoolModel,
    RankRange,
    Run,
    SeedModel,
    fit_pool_model,
    holm,
    least_detectable,
    mean,
    rank_ranges,
    sd,
    unequal_noise,
)

SEEDS_PLANNED = (1, 3, 5)  # for the least detectable differences
UNEQUAL_NOISE_P = 0.01
NAME_WIDTH = 26  # image_based+clip_score-0.3; on a terminal a longer name has a line of its own
HIGHLIGHT_MARK, BESIDE_MARK = ">", "+"
REFERENCE_MARK = "(reference)"


@dataclass(frozen=True)
class Row:
    """One entry's line."""

    entry: Entry
    run: Run  # average over the headline tasks by seed
    development: Run | None  # average over the development half by seed; None where all tasks report
    groups: dict[str, float]  # mean over seeds and the group's tasks
    rank: RankRange | None  # None for references and for too few seeds
    difference: Difference | None  # the highlighted run minus this one, as `leaderboard compare` says it
    dev_difference: Difference | None  # the same on the development half
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


@dataclass(frozen=True)
class Table:
    """A board's comparable entries, best first, and the sentences that belong under them."""

    board: Board
    rows: tuple[Row, ...]
    sentences: tuple[str, ...]
    peers: Peers = Peers()  # the rows that are the board's

    @property
    def has_differences(self) -> bool:
        """Tell whether rows are compared with a highlighted run."""
        return any(row.difference is not None for row in self.rows)


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
    recipe_hash, fingerprint = _frame(entries, board, highlight)
    peers = entries_on(entries, other_pools, board, recipe_hash, fingerprint)
    given = [each for each in beside if is_on(each, board, recipe_hash, fingerprint)]
    given = given if highlight is None else [highlight, *given]
    shown = [*peers, *given]
    for entry in shown:
        check_entry(entry, board)
    standing = _Standing(shown, len(peers), board)
    ranks = _ranks(shown, standing, board.rules.min_seeds)
    names = Counter(entry.name for entry in given)
    rows = [
        Row(
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
    left_out = _left_out(entries, board, recipe_hash, fingerprint)
    not_shown = _left_out(beside, board, recipe_hash, fingerprint)
    sentences = _sentences(rows, board, standing, left_out, not_shown)
    on_pools = _about_pools(entries, board, other_pools)
    return Table(board, tuple(rows), (*sentences, *on_pools, board.rules.note), standing.peers)


class _Standing:
    """The runs that a table shows, the board's and then those given, and how any two of them compare."""

    def __init__(self, shown: Sequence[Entry], num_peers: int, board: Board) -> None:
        self.board = board
        self.num_peers = num_peers
        self.runs = [seed_scores_of(entry) for entry in shown]
        self.given = self.runs[num_peers:]
        self.peers = Peers(tuple(self.runs[:num_peers]))
        self._among_peers = self.peers.model(board.headline)
        self._from_given: dict[int, list[Difference | None]] = {}
        self._from_highlight: dict[tuple[str, ...], list[Difference | None]] = {}

    def noise(self, tasks: Sequence[str]) -> SeedModel | None:
        """Return the seed model of all runs; None where they do not tell seed noise."""
        return self.peers.model(tasks, self.given)

    def from_highlight(self, tasks: Sequence[str]) -> list[Difference | None]:
        """Return the first given run minus each run, on the mean of some tasks; None for itself."""
        key = tuple(tasks)
        if key not in self._from_highlight:
            self._from_highlight[key] = self._from(self.num_peers, tasks)
        return self._from_highlight[key]

    def difference(self, index: int, other: int) -> Difference | None:
        """Return one run minus another on the headline tasks; None where nothing tells seed noise."""
        if index >= self.num_peers:
            if index not in self._from_given:
                self._from_given[index] = self._from(index, self.board.headline)
            return self._from_given[index][other]
        if other >= self.num_peers:
            found = self.difference(other, index)
            return found.reversed if found is not None else None
        return self._among_peers.difference(index, other) if self._among_peers is not None else None

    def _from(self, index: int, tasks: Sequence[str]) -> list[Difference | None]:
        others = [run for place, run in enumerate(self.runs) if place != index]
        found = self.peers.differences(self.runs[index], others, tasks)
        return [*found[:index], None, *found[index:]]


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


def render_html(table: Table) -> str:
    """Spell a table for a page that brings its own style; rows of runs that were given have the class `own`."""
    header, cells = _cells(table)
    name = header.index("name")
    for row, texts in zip(table.rows, cells, strict=True):
        texts[name] = f"{row.mark} {texts[name]}".strip()

    def line(tag: str, texts: Sequence[str], style: str = "") -> str:
        marks = [' class="left"' if column == name else "" for column in range(len(texts))]
        inner = "".join(f"<{tag}{mark}>{escape(text)}</{tag}>" for text, mark in zip(texts, marks, strict=True))
        return f"<tr{style}>{inner}</tr>"

    lines = [
        line("td", texts, ' class="own"' if row.is_given else "") for row, texts in zip(table.rows, cells, strict=True)
    ]
    head = line("th", header).replace("\n", "<br>")
    body = ['<div class="wide"><table>', head, *lines, "</table></div>"] if lines else []
    notes = [f"<p>{escape(sentence)}</p>" for sentence in table.sentences]
    return "\n".join([f"<h3>{escape(table.board.rules.title)}</h3>", *body, *notes])


def to_frame(table: Table) -> pd.DataFrame:
    """Return the rows with all digits, one column per number.

    `highlighted_minus_row` is the highlighted run minus the row, on the headline average and (`dev_...`) on the
    development half; between different seeds it is `SeedModel`'s, not the averages'.
    """

    def interval(name: str, found: Difference | None) -> dict[str, float | None]:
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


def _left_out(entries: Sequence[Entry], board: Board, recipe_hash: str, fingerprint: str) -> dict[str, list[str]]:
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


def _frame(entries: Sequence[Entry], board: Board, highlight: Entry | None) -> tuple[str, str]:
    """Return the recipe's hash and the pool's fingerprint that numbers are compared under."""
    frames = Counter(
        (entry.recipe_hash, entry.pool.fingerprint)
        for entry in ([highlight] if highlight else entries)
        if highlight or (entry.suite == board.rules.suite and entry.recipe == board.rules.recipe)
    )
    return min(frames, key=lambda frame: (-frames[frame], frame), default=("", ""))


def _ranks(entries: Sequence[Entry], standing: _Standing, min_seeds: int) -> list[RankRange | None]:
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


def _average(row: Row) -> str:
    spread = "" if row.sd is None else f" ± {score(row.sd)}"
    return f"{score(row.average)}{spread} ({len(row.run)})"


def _sentences(
    rows: Sequence[Row],
    board: Board,
    standing: _Standing,
    left_out: dict[str, list[str]],
    not_shown: dict[str, list[str]],
) -> list[str]:
    """Return what may be said about a table, the most important first."""
    own = next((row for row in rows if row.is_highlighted), None)
    others = [row for row in rows if not row.is_highlighted]
    model = standing.noise(board.headline)
    sentences = []
    if not_shown and own is not None:
        sentences.append(
            f"Given, but not in the table, because their numbers do not compare with {own.full_name}'s: "
            f"{_by_reason(not_shown)}."
        )
    if own is not None:
        sentences += _about_own_run(own, others, board, model)
        sentences += _about_given(own, rows)
    if all(row.is_given for row in rows):
        sentences.append("The board has no entry to compare with." if own else "The board has no entry yet.")
    if model is None and others:
        sentences.append(
            "Too few seeds to know seed noise (one run of three seeds, or two of two, are the least): any difference "
            "here may be nothing else."
        )
    if model is not None and others:
        sentences += _about_noise(rows, others, model, board.rules.min_seeds)
        if board.development and (dev := standing.noise(board.development)) is not None:
            sentences.append(_about_dev(own, rows, dev))
    if rows:
        sentences.append(_about_columns(board))
    if names := [row.entry.name for row in rows if row.entry.reference]:
        sentences.append(
            f"{listed(names)} (reference: knows the planted labels): not ranked, cannot be submitted, no ceiling."
        )
    if left_out:
        sentences.append(f"Left out, because their numbers do not compare: {_by_reason(left_out)}.")
    if warning := _pixel_warning(own, others):
        sentences.append(warning)
    return sentences


def _about_columns(board: Board) -> str:
    """Say what the columns are."""
    average = averaged_over(len(board.headline), len(board.development))
    tuned = ", on which alone rules may be tuned" if board.development else ""
    return (
        f"keeps is the share of the pool that the strategy chose; average is the mean over {average}{tuned}; ± is the "
        "standard deviation over so many (training seeds); the other columns are means over all tasks of a group."
    )


def _by_reason(left_out: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{len(names)} {reason} ({listed_some(names)})" for reason, names in left_out.items())


def _about_given(own: Row, rows: Sequence[Row]) -> list[str]:
    """Say which rows were given, and in which direction they are compared."""
    sentences = []
    given = sorted((row for row in rows if row.is_given), key=lambda row: row.number or 0)
    if beside := [row.full_name for row in given if row is not own]:
        numbered = "; # counts runs in the order in which they were given" if any(r.shares_name for r in given) else ""
        sentences.append(
            f"{HIGHLIGHT_MARK} is {own.full_name}, with which every row is compared; {BESIDE_MARK} {listed(beside)}, "
            f"given beside it and not of the board{numbered}."
        )
    if any(row.difference is not None for row in rows):
        sentences.append(
            f"{HIGHLIGHT_MARK} minus row is the average of the run marked {HIGHLIGHT_MARK} less the row's (positive: "
            f"{HIGHLIGHT_MARK} scored higher), with its 95 % interval over training seeds; `winnow leaderboard "
            "compare` gives the same for two experiments."
        )
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
    if twins := [row.full_name for row in others if row.entry.subset.sha256 == own.entry.subset.sha256]:
        sentences.append(
            f"The run marked {HIGHLIGHT_MARK} ({own.full_name}) kept exactly the samples of {listed(twins)}."
        )
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
        "better than": [row.full_name for row, d in compared if d.is_significant and d.value > 0],
        "not distinguishable from": [row.full_name for row, d in compared if not d.is_significant],
        "worse than": [row.full_name for row, d in compared if d.is_significant and d.value < 0],
    }
    told = "; ".join(f"{verb} {listed(names)}" for verb, names in parts.items() if names)
    sentences = [f"{own.full_name}: {told} (95 %, not adjusted for the number of comparisons)."]
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
    first, *parts = [
        f"of {score(least_detectable(model.error_of_plan(n, entry_seeds)))} with {counted(n, 'seed')}"
        for n in SEEDS_PLANNED
    ]
    sentences = [
        f"Against an entry of {counted(entry_seeds, 'seed')} a true difference {first} is found 4 times in 5, and one "
        f"{listed(parts)}.",
        f"Seed noise, by which an average moves with the training seed: sd {score(model.sd)}, of which "
        f"{score(model.shared_sd)} moves all runs of a seed alike; the rest is known with {model.rest_df} degrees of "
        "freedom. Runs that share seeds are compared without the shared part, so a difference need not be that of the "
        f"averages. Intervals and ranks (95 %) go pair by pair; a rank needs {min_seeds} seeds (else -), and runs that "
        "cannot be told apart share theirs. They cover the training seed alone: another pool or other test samples "
        "move scores too.",
    ]
    if all(row.is_given for row in rows):
        sentences.append(
            "No entry of the board has their recipe and pool, so two runs are compared by the noise of their own seeds "
            "alone."
        )
    p = unequal_noise([row.run for row in rows])
    if p is not None and p < UNEQUAL_NOISE_P:
        spreads = [row.sd for row in rows if row.sd is not None and len(row.run) >= 3]
        sentences.append(
            f"warning: the seed noise differs between runs (sd {score(min(spreads))} to {score(max(spreads))}, "
            f"Bartlett's p {p:.1g}): one pooled number is too small for some of them."
        )
    return sentences


def _about_dev(own: Row | None, rows: Sequence[Row], model: SeedModel) -> str:
    """Say how much seed noise there is on the development half, where rules are tuned."""
    told = f"On the development half (dev) the seed noise is sd {score(model.sd)}"
    if own is not None:
        widths = [row.dev_difference.high - row.dev_difference.value for row in rows if row.dev_difference]
        if not widths:
            return f"{told}."
        under = f"under {score(max(widths))} (95 %)"
        return f"{told}; there a difference of {HIGHLIGHT_MARK} from a row {under} may be seed noise alone."
    num_seeds = median_low(len(row.run) for row in rows)
    width = model.error_of_plan(num_seeds, num_seeds).half_width
    return (
        f"{told}; there a difference under {score(width)} (95 %) between runs of the same {counted(num_seeds, 'seed')} "
        "may be seed noise alone."
    )


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
