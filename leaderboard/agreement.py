"""How far a board puts strategies in the order in which DataComp's published scores put them.

Two numbers: Spearman's rank correlation, and the share of pairs of strategies in the same order (pairs that are equal
on either side are left out). Both have a percentile bootstrap interval (Efron 1979): strategies are drawn with
replacement, and with them, where all have the same training seeds, the seeds of our scores, the same for all
strategies; draws that leave a number undefined are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import pydantic
from pydantic.dataclasses import dataclass
from scipy import stats

from benchmark.registry import STRATEGIES, load_strategies
from benchmark.runtime.errors import UserError
from benchmark.runtime.text_tables import averaged_over, markdown_table, page, score, signed, text_table
from leaderboard.board import BOARDS_DIR
from leaderboard.board_rows import BoardRow
from leaderboard.entries import Entry, Finite, Score, StrategyUsed, read_strictly
from leaderboard.statistics import CONFIDENCE
from leaderboard.table import Table

PUBLISHED_PATH = BOARDS_DIR / "published" / "datacomp.json"
PAPER = "P"  # the source of DataComp's own rules
DRAWS = 10_000
SEED = 0
LEAST = 3  # strategies; two have a single order or its reverse

PublishedScale = Literal["small", "medium"]
Measure = Literal["average", "imagenet"]
PUBLISHED_SCALES: tuple[PublishedScale, ...] = ("small", "medium")
MEASURES: dict[Measure, str] = {"average": "average of 38", "imagenet": "ImageNet"}

_STRICT = pydantic.ConfigDict(strict=True, extra="forbid")


@dataclass(frozen=True, config=_STRICT)
class PublishedScore:
    """What one training at one scale scored, and who says so."""

    imagenet: Score
    average: Score
    source: str


@dataclass(frozen=True, config=_STRICT)
class SameRule:
    """One of our strategies that a published row is about; options not named are at their defaults."""

    filter: str
    options: dict[str, pydantic.JsonValue] = field(default_factory=dict)
    cut: dict[Literal["fraction", "threshold"], Finite] | None = None  # None: the cut that the filter declares
    free: tuple[str, ...] = ()  # options that may have any value

    def is_met_by(self, used: StrategyUsed) -> bool:
        """Tell whether a strategy of an entry is this one."""
        strategy = STRATEGIES.get(used.name)
        if used.name != self.filter or strategy is None or set(self.options) - set(used.options):
            return False
        declared = {"fraction": strategy.fraction, "threshold": strategy.threshold}
        cut = {kind: value for kind, value in (self.cut or declared).items() if value is not None}
        wanted = {name: option.default for name, option in strategy.options.items()} | self.options
        differing = {name for name, value in used.options.items() if name not in wanted or value != wanted[name]}
        # An asset stands in an entry as its hash, which differs from pool to pool.
        return not differing - {*self.free, *strategy.assets} and (used.cut or {}) == cut


@dataclass(frozen=True, config=_STRICT)
class PublishedRow:
    """A published strategy: its scores where there are any, and which of our strategies it is."""

    name: str
    small: PublishedScore | None = None
    medium: PublishedScore | None = None
    winnow: tuple[SameRule, ...] = ()
    random_subset: bool = False
    note: str = ""

    def at(self, scale: PublishedScale) -> PublishedScore | None:
        """Return the scores at a scale."""
        return self.small if scale == "small" else self.medium

    def score_at(self, scale: PublishedScale, measure: Measure) -> float | None:
        """Return one score at a scale, None where there is none."""
        cell = self.at(scale)
        return None if cell is None else cell.average if measure == "average" else cell.imagenet

    def is_rule_of(self, entry: Entry) -> bool:
        """Tell whether an entry's strategies are this row's, in whatever order."""
        if not self.winnow or entry.within or entry.given_subset or len(self.winnow) != len(entry.strategy):
            return False
        used = sorted(entry.strategy, key=lambda strategy: strategy.name)
        wanted = sorted(self.winnow, key=lambda rule: rule.filter)
        return all(rule.is_met_by(strategy) for rule, strategy in zip(wanted, used, strict=True))


@dataclass(frozen=True, config=_STRICT)
class Published:
    """The published scores, with their sources and known faults."""

    title: str
    sources: dict[str, str]
    notes: tuple[str, ...]
    rows: Annotated[tuple[PublishedRow, ...], pydantic.Field(min_length=1)]

    @pydantic.model_validator(mode="after")
    def _sources_are_named(self) -> Published:
        used = {cell.source for row in self.rows for cell in (row.small, row.medium) if cell is not None}
        if unknown := sorted(used - set(self.sources)):
            raise UserError(f"sources {unknown} are not explained in `sources`", code="board-invalid")
        return self

    @property
    def paper_rules(self) -> list[PublishedRow]:
        """Return the DataComp paper's rules that have scores at both scales, random subsets aside."""
        return [
            row
            for row in self.rows
            if not row.random_subset and all(cell and cell.source == PAPER for cell in (row.small, row.medium))
        ]


@dataclass(frozen=True)
class BootstrapEstimate:
    """A number with its bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Two orders of the same strategies."""

    what: str
    num_strategies: int
    rho: BootstrapEstimate | None  # None for fewer than three strategies, or where one side does not vary
    same_order: BootstrapEstimate | None


@dataclass(frozen=True, config=pydantic.ConfigDict(arbitrary_types_allowed=True))
class Match:
    """One of our runs and the published rows about its strategy, one per scale at most."""

    row: BoardRow
    published: dict[PublishedScale, PublishedRow]

    def score_at(self, scale: PublishedScale, measure: Measure) -> float | None:
        """Return the published score, None where there is none at that scale."""
        return self.published[scale].score_at(scale, measure) if scale in self.published else None

    @property
    def sources(self) -> list[str]:
        """Return who published the scores."""
        cells = (row.at(scale) for scale, row in self.published.items())
        return list(dict.fromkeys(cell.source for cell in cells if cell is not None))


@dataclass(frozen=True, config=pydantic.ConfigDict(arbitrary_types_allowed=True))
class BoardAgreement:
    """A board beside the published scores."""

    title: str
    matches: tuple[Match, ...]  # best of ours first
    comparisons: tuple[Comparison, ...]
    sentences: tuple[str, ...]


def read_published(path: Path = PUBLISHED_PATH) -> Published:
    """Read the published scores; raises ValueError that names the file and what is wrong in it."""
    return read_strictly(path, Published, "list of published scores")


def make_agreement(table: Table, published: Published) -> BoardAgreement:
    """Compare the order of a table's rows with the published order of the same strategies, at each scale."""
    load_strategies()
    matches = _matches(table.rows, published)
    rules = published.paper_rules
    comparisons = []
    for measure, title in MEASURES.items():
        for scale in PUBLISHED_SCALES:
            pairs = [(match.row, value) for match in matches if (value := match.score_at(scale, measure)) is not None]
            what = f"this board to DataComp {scale}, {title}"
            comparisons.append(compare(what, [row.run for row, _ in pairs], [value for _, value in pairs]))
    for measure, title in MEASURES.items():
        groups: dict[str, Sequence[PublishedRow | Match]] = {
            "the paper's rules": rules,
            "the strategies here": matches,
        }
        for name, group in groups.items():
            scores = [(one.score_at("small", measure), one.score_at("medium", measure)) for one in group]
            both = [(small, medium) for small, medium in scores if small is not None and medium is not None]
            what = f"DataComp small to medium, {title}, {name}"
            comparisons.append(compare(what, [{0: small} for small, _ in both], [medium for _, medium in both]))
    notes = sorted({f"{row.name}: {row.note}" for match in matches for row in match.published.values() if row.note})
    average = averaged_over(len(table.board.headline), len(table.board.development))
    sentences = (
        f"average here is the mean over {average.partition(', ')[0]}; of DataComp's scores it is over its 38 tasks.",
        "rho is Spearman's rank correlation; the other number is the share of pairs of strategies in the same order, "
        "pairs that are equal on either side left out. Intervals (95 %) are of a bootstrap over strategies, and over "
        "the training seeds of this board too; with so few strategies, none of them independent, they are rough.",
        f"The paper's rules with scores at both scales, random subsets aside: {'; '.join(row.name for row in rules)}.",
        *published.notes,
        *([f"{'. '.join(notes)}."] if notes else []),
        table.board.rules.note,
    )
    return BoardAgreement(
        f"{table.board.rules.title}: order of strategies", tuple(matches), tuple(comparisons), sentences
    )


def compare(what: str, ours: Sequence[Mapping[int, float]], published: Sequence[float]) -> Comparison:
    """Compare two orders of strategies: our scores by training seed, and one published score each."""
    if len(ours) < LEAST:
        return Comparison(what, len(ours), None, None)
    seeds = sorted(set.intersection(*(set(run) for run in ours)))
    if any(len(run) != len(seeds) for run in ours):
        scores = np.array([[sum(run.values()) / len(run)] for run in ours])
    else:
        scores = np.array([[run[seed] for seed in seeds] for run in ours])
    theirs = np.array(published, dtype=float)
    count, num_seeds = scores.shape
    generator = np.random.default_rng(SEED)
    drawn = generator.integers(count, size=(DRAWS, count))
    weights = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=DRAWS) / num_seeds
    our_draws = np.take_along_axis(weights @ scores.T, drawn, axis=1)  # (draws, strategies)
    everything = np.arange(count)[None]

    def estimate(statistic: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]) -> BootstrapEstimate | None:
        value = float(statistic(scores.mean(axis=1)[None], theirs[None], everything)[0])
        draws = statistic(our_draws, theirs[drawn], drawn)
        tail = (1 - CONFIDENCE) / 2
        low, high = np.nanquantile(draws, [tail, 1 - tail]) if np.isfinite(draws).any() else (np.nan, np.nan)
        return BootstrapEstimate(value, float(low), float(high)) if np.isfinite(value) else None

    return Comparison(what, count, estimate(rank_correlations), estimate(shares_in_the_same_order))


def rank_correlations(ours: np.ndarray, theirs: np.ndarray, identity: np.ndarray) -> np.ndarray:
    """Return Spearman's rho of every line (draws, strategies), ties at their mean rank; NaN if a side is constant."""
    ranks = [stats.rankdata(values, axis=1) for values in (ours, theirs)]
    first, second = (rank - rank.mean(axis=1, keepdims=True) for rank in ranks)
    spread = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    return np.divide((first * second).sum(axis=1), spread, out=np.full(len(spread), np.nan), where=spread > 0)


def shares_in_the_same_order(ours: np.ndarray, theirs: np.ndarray, identity: np.ndarray) -> np.ndarray:
    """Return, for every line (draws, strategies), the share of pairs in the same order; NaN where no pair counts.

    `identity` says which strategy stands at each place: a strategy drawn twice makes no pair with itself.
    """
    first, second = np.triu_indices(ours.shape[1], k=1)
    signs = np.sign(ours[:, first] - ours[:, second]) * np.sign(theirs[:, first] - theirs[:, second])
    signs[np.broadcast_to(identity[:, first] == identity[:, second], signs.shape)] = 0
    counted = (signs != 0).sum(axis=1)
    same = (signs > 0).sum(axis=1)
    return np.divide(same, counted, out=np.full(len(signs), np.nan), where=counted > 0)


def render_agreement(agreement: BoardAgreement, style: str) -> str:
    """Spell the comparisons, and the scores they come from, as text or, with style="markdown", as GitHub's Markdown."""
    spell = markdown_table if style == "markdown" else text_table
    header = ["compared", "strategies", "rho [95 %]", "same order [95 %]"]
    cells = [
        [
            comparison.what,
            str(comparison.num_strategies),
            _interval(comparison.rho, signed),
            _interval(comparison.same_order, lambda share: f"{100 * share:.0f} %"),
        ]
        for comparison in agreement.comparisons
    ]
    titles = ["strategy", "average\nhere", "small\naverage", "medium\naverage", "small\nImageNet", "medium\nImageNet"]
    lines = [
        [
            match.row.entry.name,
            score(match.row.average),
            *(
                "-" if (value := match.score_at(scale, measure)) is None else score(value)
                for measure in MEASURES
                for scale in PUBLISHED_SCALES
            ),
            ", ".join(match.sources),
        ]
        for match in agreement.matches
    ]
    blocks = [spell(header, cells, {0})]
    if lines:
        blocks.append(spell([*titles, "source"], lines, {0}))
    return page(agreement.title, blocks, agreement.sentences, style)


def agreement_to_frame(agreement: BoardAgreement) -> pd.DataFrame:
    """Return the comparisons with all digits."""
    lines = []
    for comparison in agreement.comparisons:
        line: dict[str, str | int | float | None] = {
            "compared": comparison.what,
            "strategies": comparison.num_strategies,
        }
        for name, estimate in (("rho", comparison.rho), ("same_order", comparison.same_order)):
            line[name] = estimate.value if estimate else None
            line[f"{name}_low"] = estimate.low if estimate else None
            line[f"{name}_high"] = estimate.high if estimate else None
        lines.append(line)
    return pd.DataFrame(lines)


def _matches(rows: Sequence[BoardRow], published: Published) -> list[Match]:
    """Return our runs that published rows are about; raises ValueError where it is not one row to one run."""
    matches = []
    taken: dict[str, str] = {}
    for row in rows:
        found: dict[PublishedScale, PublishedRow] = {}
        for theirs in published.rows:
            if not theirs.is_rule_of(row.entry):
                continue
            other = taken.setdefault(theirs.name, row.entry.name)
            if other != row.entry.name:
                raise UserError(
                    f"{other} and {row.entry.name} are both the published {theirs.name!r}", code="board-invalid"
                )
            for scale in PUBLISHED_SCALES:
                if theirs.at(scale) is None:
                    continue
                if scale in found:
                    names = [found[scale].name, theirs.name]
                    raise UserError(
                        f"{row.entry.name} is two published rows at scale {scale}: {names}", code="board-invalid"
                    )
                found[scale] = theirs
        if found:
            matches.append(Match(row, found))
    return matches


def _interval(estimate: BootstrapEstimate | None, spell: Callable[[float], str]) -> str:
    return "-" if estimate is None else f"{spell(estimate.value)} [{spell(estimate.low)}, {spell(estimate.high)}]"
