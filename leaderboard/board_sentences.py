"""The sentences under a board's table: what may be claimed, how large the noise is, what was left out."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median_low

import numpy as np

from benchmark.runtime.text_tables import averaged_over, counted, listed, listed_some, score, signed
from leaderboard.board import Board
from leaderboard.board_rows import BESIDE_MARK, HIGHLIGHT_MARK, BoardRow, Standings, common_frame
from leaderboard.entries import Entry
from leaderboard.statistics import (
    CONFIDENCE,
    PoolModel,
    Run,
    SeedModel,
    fit_pool_model,
    holm,
    least_detectable,
    unequal_noise,
)

SEEDS_PLANNED = (1, 3, 5)  # for the least detectable differences
UNEQUAL_NOISE_P = 0.01


def board_sentences(
    rows: Sequence[BoardRow],
    board: Board,
    standing: Standings,
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
            f"{listed(names)} (reference): an oracle, which knows the planted labels; not ranked, cannot be submitted, "
            "not an upper bound."
        )
    if left_out:
        sentences.append(f"Left out, because their numbers do not compare: {_by_reason(left_out)}.")
    if warning := _pixel_warning(own, others):
        sentences.append(warning)
    return sentences


def _about_columns(board: Board) -> str:
    """Say what the columns are."""
    average = averaged_over(len(board.headline), len(board.development))
    tuned = ", the only one that rules may be tuned on" if board.development else ""
    return (
        f"keeps is the share of the pool that the strategy chose; average is the mean over {average}{tuned}; ± is the "
        "standard deviation over so many (training seeds); the other columns are means over all tasks of a group."
    )


def _by_reason(left_out: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{len(names)} {reason} ({listed_some(names)})" for reason, names in left_out.items())


def _about_given(own: BoardRow, rows: Sequence[BoardRow]) -> list[str]:
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


def _about_own_run(own: BoardRow, others: Sequence[BoardRow], board: Board, model: SeedModel | None) -> list[str]:
    min_seeds = board.rules.min_seeds
    sentences = []
    if len(own.run) < min_seeds:
        claim = "never enough to claim" if len(own.run) == 1 else f"not enough to claim ({min_seeds} are)"
        warning = f"{counted(len(own.run), 'seed')}: enough to run, {claim}."
        width = max((row.difference.high - row.difference.value for row in others if row.difference), default=None)
        if width is not None:
            warning += f" With these entries a difference under {score(width)} (95 %) may be mere seed noise."
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


def _claims(own: BoardRow, others: Sequence[BoardRow], min_seeds: int) -> list[str]:
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


def _about_noise(rows: Sequence[BoardRow], others: Sequence[BoardRow], model: SeedModel, min_seeds: int) -> list[str]:
    entry_seeds = median_low(len(row.run) for row in others)
    detectable = [
        f"{score(least_detectable(model.error_of_plan(n, entry_seeds)))} with {counted(n, 'seed')}"
        for n in SEEDS_PLANNED
    ]
    sentences = [
        f"Minimum detectable difference (80 % power) from an entry of {counted(entry_seeds, 'seed')}: "
        f"{listed(detectable)}.",
        f"Seed noise, by which an average moves with the training seed: sd {score(model.sd)}, of which "
        f"{score(model.shared_sd)} moves all runs of a seed alike; the rest is known with {model.rest_df} degrees of "
        "freedom. Runs that share seeds are compared without the shared part, so a difference need not be that of the "
        f"averages. Intervals and ranks (95 %) go pair by pair; a rank needs {min_seeds} seeds (else -), and runs that "
        "cannot be told apart share theirs. They cover the training seed only: another pool or other test samples "
        "move scores too.",
    ]
    if all(row.is_given for row in rows):
        sentences.append(
            "No entry of the board has their recipe and pool, so two runs are compared by the noise of their own "
            "seeds only."
        )
    p = unequal_noise([row.run for row in rows])
    if p is not None and p < UNEQUAL_NOISE_P:
        spreads = [row.sd for row in rows if row.sd is not None and len(row.run) >= 3]
        sentences.append(
            f"warning: the seed noise differs between runs (sd {score(min(spreads))} to {score(max(spreads))}, "
            f"Bartlett's p {p:.1g}): one pooled number is too small for some of them."
        )
    return sentences


def _about_dev(own: BoardRow | None, rows: Sequence[BoardRow], model: SeedModel) -> str:
    """Say how much seed noise there is on the development half, where rules are tuned."""
    told = f"On the development half (dev) the seed noise is sd {score(model.sd)}"
    if own is not None:
        widths = [row.dev_difference.high - row.dev_difference.value for row in rows if row.dev_difference]
        if not widths:
            return f"{told}."
        under = f"under {score(max(widths))} (95 %)"
        return f"{told}; there a difference of {HIGHLIGHT_MARK} from a row {under} may be mere seed noise."
    num_seeds = median_low(len(row.run) for row in rows)
    width = model.error_of_plan(num_seeds, num_seeds).half_width
    return (
        f"{told}; there a difference under {score(width)} (95 %) between runs of the same {counted(num_seeds, 'seed')} "
        "may be mere seed noise."
    )


def pool_sentences(entries: Sequence[Entry], board: Board, other_pools: Sequence[Entry]) -> list[str]:
    """Say how much the pool's seed moves scores, and differences between strategies; nothing without other pools."""
    recipe_hash, fingerprint = common_frame(entries, board, None)
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
        f"Over generation seeds of the pool ({strategies} strategies, {pools} pools, {seeds} training seeds): the sd "
        f"of a run is {score(model.seed_sd)} from the training seed, {score(model.shared_seed_sd)} of it shared by all "
        f"strategies ({model.seed_df} degrees of freedom); from the generation seed it is "
        f"{score(model.shared_pool_sd)} shared ({model.pool.df}) and {score(model.own_pool_sd)} not shared "
        f"({model.strategy_pool.df}). Over pools and training seeds (95 %): {'; '.join(differences)}."
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


def _pixel_warning(own: BoardRow | None, others: Sequence[BoardRow]) -> str | None:
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
