"""What noise allows to be said: means, intervals for differences, ranks with ties, detectable differences.

Pure functions of scores; a run is a mapping from training seed to its average score.

The model: score(run, seed) = strategy + seed effect, the same for all runs of that seed + rest (two-way, additive; the
rest normal and of equal variance in all runs). Runs are compared as if on the same seeds, by least squares: what a seed
does to all runs alike cancels, and a run of one seed is not taken for better because its seed is a lucky one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmark.runtime.errors import UserError

Run = Mapping[int, float]

CONFIDENCE = 0.95
POWER = 0.8
LEAST_DF = 2  # of noise: with 1 an interval is 25 standard errors wide, each of them hardly known itself


@dataclass(frozen=True)
class StandardError:
    """The standard error of a difference, and the degrees of freedom it is known with."""

    value: float
    df: float

    @property
    def half_width(self) -> float:
        """Return half the width of the confidence interval."""
        from scipy import stats  # here, as it takes most of a second to load

        return float(stats.t.ppf((1 + CONFIDENCE) / 2, self.df)) * self.value


@dataclass(frozen=True)
class RunDifference:
    """A difference of two means with its confidence interval, two-sided p value and degrees of freedom."""

    value: float
    low: float
    high: float
    p: float
    df: float

    @property
    def is_significant(self) -> bool:
        """Tell whether the interval leaves zero out."""
        return self.p < 1 - CONFIDENCE

    @property
    def reversed(self) -> RunDifference:
        """Return the difference the other way round."""
        return RunDifference(-self.value, -self.high, -self.low, self.p, self.df)


@dataclass(frozen=True)
class RankRange:
    """The ranks a run may have: runs that cannot be told apart share them."""

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True, eq=False)
class SeedModel:
    """The two-way model of strategies and seeds, fitted to runs by least squares."""

    runs: tuple[Run, ...]
    effects: np.ndarray  # (runs + seeds): strategies, then seed effects
    covariance: np.ndarray  # of the effects, in units of the rest's variance
    estimable: np.ndarray  # projects onto the contrasts that the data determine
    rest: float  # mean square of what neither strategy nor seed explains
    rest_df: int
    seed: float  # mean square of seeds after strategies
    seed_df: int  # 0 where runs share too few seeds: then all noise counts as each run's own

    @property
    def shared_variance(self) -> float:
        """Return the variance of the seed effect, zero where the estimate is negative.

        Method 3 of Henderson (1953), "Estimation of variance and covariance components".
        """
        return max(0.0, self.seed - self.rest) * self._shared_per_seed

    @property
    def shared_sd(self) -> float:
        """Return the standard deviation of the effect that a seed has on all runs alike."""
        return math.sqrt(self.shared_variance)

    @property
    def sd(self) -> float:
        """Return the pooled standard deviation of one run's score over seeds."""
        return math.sqrt(self.rest + self.shared_variance)

    @property
    def _shared_per_seed(self) -> float:
        return self.seed_df / (self.seed_df + self.rest_df)

    def difference(self, index: int, other: int) -> RunDifference:
        """Return run `index` minus run `other` with its t interval: Fisher's least significant difference.

        Not adjusted for the number of comparisons. The noise is that of all runs, so one seed has an interval too.
        """
        contrast = np.zeros(len(self.effects))
        contrast[index] += 1
        contrast[other] -= 1
        if self.seed_df and np.allclose(self.estimable @ contrast, contrast):
            value = float(contrast @ self.effects)
            error = StandardError(math.sqrt(self.rest * float(contrast @ self.covariance @ contrast)), self.rest_df)
        else:
            value = mean(self.runs[index]) - mean(self.runs[other])
            error = self._error_on_other_seeds(len(self.runs[index]), len(self.runs[other]))
        return _difference(value, error)

    def error_of_plan(self, num_seeds: int, entry_seeds: int) -> StandardError:
        """Return the standard error of a run yet to be made against an entry, on its first seeds or all of them.

        Var = rest * (1/n + 1/m + (1/n - 1/m) / runs): seed effects are known from the runs here, if on m seeds each.
        """
        own = min(num_seeds, entry_seeds) if self.seed_df else num_seeds
        variance = 1 / own + 1 / entry_seeds
        if self.seed_df:
            variance += (1 / own - 1 / entry_seeds) / len(self.runs)
        return StandardError(math.sqrt(self.rest * variance), self.rest_df)

    def error_of_mean(self, num_seeds: int) -> StandardError:
        """Return the standard error of one run's mean over seeds: the seed effect is noise as well."""
        return self._error_with_seed_effect(1 / num_seeds)

    def _error_on_other_seeds(self, num_seeds: int, other_seeds: int) -> StandardError:
        """Return the standard error for runs that no seed connects: here the seed effect is noise as well."""
        return self._error_with_seed_effect(1 / num_seeds + 1 / other_seeds)

    def _error_with_seed_effect(self, scale: float) -> StandardError:
        """Return the root of `scale` times one score's variance over seeds.

        Degrees of freedom of the sum of mean squares after Satterthwaite (1946), "An approximate distribution of
        estimates of variance components".
        """
        if self.seed <= self.rest:
            return StandardError(math.sqrt(scale * self.rest), self.rest_df)
        from_seed = self._shared_per_seed * self.seed
        from_rest = (1 - self._shared_per_seed) * self.rest
        df = (from_seed + from_rest) ** 2 / (from_seed**2 / self.seed_df + from_rest**2 / self.rest_df)
        return StandardError(math.sqrt(scale * (from_seed + from_rest)), df)


@dataclass(frozen=True)
class MeanSquare:
    """A line of an analysis of variance."""

    value: float
    df: int


@dataclass(frozen=True, eq=False)
class PoolModel:
    """The three-way model of strategies (fixed), pools and training seeds (random), on balanced scores.

    score = strategy + pool + seed + strategy x pool + strategy x seed + pool x seed + rest. The seed stands in it with
    its interactions, as what a seed does to all strategies alike would else be taken for the pool's doing. Variances
    are those that make the mean squares equal their expectations, zero where negative: Searle, Casella & McCulloch
    (1992), "Variance components", ch. 4.
    """

    scores: np.ndarray  # (strategies, pools, seeds)
    pool: MeanSquare
    strategy_pool: MeanSquare
    seed: MeanSquare
    strategy_seed: MeanSquare
    pool_seed: MeanSquare
    rest: MeanSquare

    @property
    def shared_pool_sd(self) -> float:
        """Return the standard deviation of what a pool's seed does to all strategies alike."""
        square = self.pool.value - self.strategy_pool.value - self.pool_seed.value + self.rest.value
        strategies, _, seeds = self.scores.shape
        return math.sqrt(max(0.0, square) / (strategies * seeds))

    @property
    def own_pool_sd(self) -> float:
        """Return the standard deviation of what a pool's seed does to one strategy and not to the others."""
        return math.sqrt(max(0.0, self.strategy_pool.value - self.rest.value) / self.scores.shape[2])

    @property
    def shared_seed_sd(self) -> float:
        """Return the standard deviation of what a training seed does to all strategies of a pool alike."""
        strategies, pools, _ = self.scores.shape
        everywhere = self.seed.value - self.strategy_seed.value - self.pool_seed.value + self.rest.value
        on_a_pool = self.pool_seed.value - self.rest.value
        return math.sqrt(max(0.0, everywhere) / (strategies * pools) + max(0.0, on_a_pool) / strategies)

    @property
    def seed_sd(self) -> float:
        """Return the standard deviation of one run's score over training seeds, pooled over strategies and pools."""
        return math.sqrt(float(self.scores.var(axis=2, ddof=1).mean()))

    @property
    def seed_df(self) -> int:
        """Return the degrees of freedom of `seed_sd`."""
        strategies, pools, seeds = self.scores.shape
        return strategies * pools * (seeds - 1)

    def difference(self, index: int, other: int) -> RunDifference:
        """Return strategy `index` minus strategy `other` over pools and training seeds, with its t interval.

        Var = 2 / (pools * seeds) * (MS strategy x pool + MS strategy x seed - MS rest), the latter two left out where
        they add less than nothing. Degrees of freedom after Satterthwaite (1946), but no fewer than those of the first
        two mean squares: with one subtracted the approximation goes astray where there are few.
        """
        squares = [self.strategy_pool]
        if self.strategy_seed.value > self.rest.value:
            squares += [self.strategy_seed, MeanSquare(-self.rest.value, self.rest.df)]
        total = math.fsum(square.value for square in squares)
        spread = math.fsum(square.value**2 / square.df for square in squares)
        _, pools, seeds = self.scores.shape
        value = float(self.scores[index].mean() - self.scores[other].mean())
        least_df = min(square.df for square in squares[:2])
        df = max(total**2 / spread, least_df) if spread > 0 else least_df
        return _difference(value, StandardError(math.sqrt(2 * total / (pools * seeds)), df))

    def differences_by_pool(self, index: int, other: int) -> np.ndarray:
        """Return strategy `index` minus strategy `other` on each pool, means over training seeds."""
        difference: np.ndarray = (self.scores[index] - self.scores[other]).mean(axis=1)
        return difference


def mean(run: Run) -> float:
    """Return the mean over seeds."""
    return math.fsum(run.values()) / len(run)


def sd(run: Run) -> float | None:
    """Return the standard deviation over seeds (n - 1 in the denominator), None for one seed."""
    if len(run) < 2:
        return None
    centre = mean(run)
    return math.sqrt(math.fsum((score - centre) ** 2 for score in run.values()) / (len(run) - 1))


def pooled_sd(runs: Sequence[Run]) -> float | None:
    """Return one run's standard deviation over seeds, pooled over runs; None where no run has two seeds."""
    df = sum(len(run) - 1 for run in runs)
    if df == 0:
        return None
    return math.sqrt(math.fsum((score - mean(run)) ** 2 for run in runs for score in run.values()) / df)


def fit_pool_model(scores: np.ndarray) -> PoolModel:
    """Fit the three-way model to scores (strategies, pools, seeds), at least two of each."""
    strategies, pools, seeds = scores.shape
    if min(scores.shape) < 2:
        raise UserError(
            f"{strategies} strategies, {pools} pools and {seeds} seeds: two of each are the least", code="board-invalid"
        )

    def effect(*axes: int) -> np.ndarray:
        """Return the means over all but these axes less every effect of a lower order."""
        means: np.ndarray = scores.mean(axis=tuple({0, 1, 2} - set(axes)), keepdims=True)
        lower = (part for order in range(len(axes)) for part in itertools.combinations(axes, order))
        return means - sum(effect(*part) for part in lower)

    def mean_square(*axes: int) -> MeanSquare:
        df = math.prod(scores.shape[axis] - 1 for axis in axes)
        square = float(np.sum(np.broadcast_to(effect(*axes), scores.shape) ** 2))
        return MeanSquare(square / df, df)

    return PoolModel(
        scores=scores,
        pool=mean_square(1),
        strategy_pool=mean_square(0, 1),
        seed=mean_square(2),
        strategy_seed=mean_square(0, 2),
        pool_seed=mean_square(1, 2),
        rest=mean_square(0, 1, 2),
    )


def fit_seed_model(runs: Sequence[Run]) -> SeedModel | None:
    """Fit the two-way model; None if seeds within runs leave noise fewer than LEAST_DF degrees of freedom.

    With the same seeds in all runs it is the two-way analysis of variance without interaction. Where runs share so few
    seeds that telling their effects apart would leave fewer, all noise counts as each run's own, which is no less than
    it is.
    """
    seeds = sorted({seed for run in runs for seed in run})
    scores = np.array([score for run in runs for score in run.values()])
    is_run = np.repeat(np.eye(len(runs)), [len(run) for run in runs], axis=0)  # (scores, runs)
    is_seed = np.array([[seed == other for other in seeds] for run in runs for seed in run], dtype=float)
    within_df = len(scores) - len(runs)
    if within_df < LEAST_DF:
        return None
    design = np.hstack([is_run, is_seed])
    inverse = np.linalg.pinv(design)
    effects = inverse @ scores
    within = math.fsum((score - mean(run)) ** 2 for run in runs for score in run.values())
    rest = float(np.sum((scores - design @ effects) ** 2))
    rest_df = len(scores) - int(np.linalg.matrix_rank(design))
    seed_df = within_df - rest_df
    if rest_df < LEAST_DF:
        rest, rest_df, seed_df = within, within_df, 0
    return SeedModel(
        runs=tuple(runs),
        effects=effects,
        covariance=inverse @ inverse.T,
        estimable=inverse @ design,
        rest=rest / rest_df,
        rest_df=rest_df,
        seed=(within - rest) / seed_df if seed_df else 0.0,
        seed_df=seed_df,
    )


def least_detectable(error: StandardError) -> float:
    """Return the true difference that is found significant, and of the right sign, with probability .8.

    Power of the t test by the noncentral t distribution (Cohen 1988, "Statistical power analysis", ch. 2).
    """
    from scipy import optimize, stats  # here, as it takes most of a second to load

    critical = float(stats.t.ppf((1 + CONFIDENCE) / 2, error.df))

    def missing_power(shift: float) -> float:
        return float(stats.nct.sf(critical, error.df, shift)) - POWER

    return float(optimize.brentq(missing_power, 0.1, 2 * critical + 2)) * error.value


def rank_ranges(difference: Callable[[int, int], RunDifference | None], indices: Sequence[int]) -> list[RankRange]:
    """Return the possible ranks of these runs among each other: those clearly better stand before, those worse behind.

    `difference` gives one run minus another, None where nothing is known of their noise. Pair by pair, not adjusted:
    Goldstein & Spiegelhalter (1996), "League tables and their limitations".
    """
    ranges = []
    for index in indices:
        found = [difference(other, index) for other in indices if other != index]
        others = [each for each in found if each is not None]
        better = sum(d.is_significant and d.value > 0 for d in others)
        worse = sum(d.is_significant and d.value < 0 for d in others)
        ranges.append(RankRange(1 + better, len(indices) - worse))
    return ranges


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values adjusted for their number (Holm 1979, "A simple sequentially rejective procedure")."""
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for position, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - position) * p_values[index]))
        adjusted[index] = running
    return adjusted


def unequal_noise(runs: Sequence[Run]) -> float | None:
    """Return Bartlett's p value against "all runs have the same seed noise"; None where it cannot be tested.

    Runs of fewer than three seeds, or whose scores do not vary, are left aside.
    """
    from scipy import stats  # here, as it takes most of a second to load

    samples = [list(run.values()) for run in runs if len(run) >= 3 and (sd(run) or 0) > 0]
    return float(stats.bartlett(*samples).pvalue) if len(samples) >= 2 else None


def _difference(value: float, error: StandardError) -> RunDifference:
    """Return a difference with its t interval and p value."""
    from scipy import stats  # here, as it takes most of a second to load

    if error.value == 0:
        return RunDifference(value, value, value, float(value == 0), error.df)
    p = 2 * float(stats.t.sf(abs(value) / error.value, error.df))
    return RunDifference(value, value - error.half_width, value + error.half_width, p, error.df)
