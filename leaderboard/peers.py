"""Differences of two runs over training seeds, the same wherever they are printed.

Seed noise is known from *peers*: a board's entries of one suite, recipe and pool. A difference of two runs is judged by
the peers and these two, so it does not depend on what else stands in a table, and `winnow leaderboard table` and
`compare` give the same interval. Without peers the two runs' own seeds are all there is, and what prints the interval
says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from leaderboard.board import Board
from leaderboard.entries import Entry
from leaderboard.statistics import Run, RunDifference, SeedModel, fit_seed_model


@dataclass(frozen=True, eq=False)
class SeedScores:
    """A strategy's scores by training seed and task, and the subset that it was trained on."""

    subset: str  # sha256
    seeds: Mapping[int, Mapping[str, float]]

    def averages(self, tasks: Sequence[str]) -> Run:
        """Return the mean score over these tasks for every seed."""
        return {seed: sum(scores[task] for task in tasks) / len(tasks) for seed, scores in sorted(self.seeds.items())}

    def without(self, others: Sequence[SeedScores]) -> SeedScores:
        """Leave out the seeds that another has too: the same subset and seed with the same scores, so one training."""
        repeated = {
            seed
            for other in others
            if other.subset == self.subset
            for seed in self.seeds.keys() & other.seeds.keys()
            if _are_equal(self.seeds[seed], other.seeds[seed])
        }
        if not repeated:
            return self
        return SeedScores(self.subset, {seed: v for seed, v in self.seeds.items() if seed not in repeated})


@dataclass(frozen=True, eq=False)
class Peers:
    """Runs that share suite, recipe and pool; none where nothing is known of their like."""

    runs: tuple[SeedScores, ...] = ()

    def model(self, tasks: Sequence[str], others: Sequence[SeedScores] = ()) -> SeedModel | None:
        """Return the seed model of peers and others, no training twice; None where they do not tell seed noise."""
        peers = [run.without(others) for run in self.runs]
        return fit_seed_model([run.averages(tasks) for run in (*(p for p in peers if p.seeds), *others)])

    def difference(self, ours: SeedScores, theirs: SeedScores, tasks: Sequence[str]) -> RunDifference | None:
        """Return ours minus theirs, of means over tasks; None where nothing tells seed noise. Either may be a peer."""
        (found,) = self.differences(ours, [theirs], tasks)
        return found

    def differences(
        self, ours: SeedScores, others: Sequence[SeedScores], tasks: Sequence[str]
    ) -> list[RunDifference | None]:
        """Return what `difference` does for each of the others."""
        # Peers that hold no training of ours stand in the same model for all of them, which is fitted once.
        rest = {id(run): run for run in self.runs if run is not ours}
        whole = [run for run in rest.values() if run.without([ours]) is run]
        places = {id(run): place for place, run in enumerate(whole)}
        parts = [part for run in rest.values() if (part := run.without([ours])).seeds and part is not run]
        joint: SeedModel | None = None
        if any(id(theirs) in places for theirs in others):
            joint = fit_seed_model([run.averages(tasks) for run in (*whole, *parts, ours)])
        found = []
        for theirs in others:
            model, place, own = joint, places.get(id(theirs)), len(whole) + len(parts)
            if place is None:
                kept = [run.without([ours, theirs]) for run in rest.values() if run is not theirs]
                runs = [*(run for run in kept if run.seeds), ours, theirs]
                model, own, place = fit_seed_model([run.averages(tasks) for run in runs]), len(runs) - 2, len(runs) - 1
            found.append(None if model is None else model.difference(own, place))
        return found


def seed_scores_of(entry: Entry) -> SeedScores:
    """Return an entry's scores by seed and task."""
    return SeedScores(entry.subset.sha256, entry.seeds)


def is_on(entry: Entry, board: Board, recipe_hash: str, fingerprint: str) -> bool:
    """Tell whether an entry was scored by the board's suite and made by this recipe on this pool."""
    return (entry.suite, entry.recipe_hash, entry.pool.fingerprint) == (board.rules.suite, recipe_hash, fingerprint)


def entries_on(
    entries: Sequence[Entry], other_pools: Sequence[Entry], board: Board, recipe_hash: str, fingerprint: str
) -> list[Entry]:
    """Return a board's entries by its suite, this recipe and this pool, be it the board's or another drawing of it."""
    found: dict[str, Entry] = {}
    for entry in (*entries, *other_pools):
        if is_on(entry, board, recipe_hash, fingerprint):
            found.setdefault(entry.name, entry)
    return list(found.values())


def _are_equal(scores: Mapping[str, float], others: Mapping[str, float]) -> bool:
    """Tell whether all tasks that both have, one at least, have the same scores."""
    shared = scores.keys() & others.keys()
    return bool(shared) and all(scores[task] == others[task] for task in shared)
