"""Which of the registered filters and selectors a pool can run, and what it lacks for the others."""

from __future__ import annotations

from benchmark.pool.pool import Pool
from benchmark.runtime.errors import one_line
from benchmark.runtime.strategies import Strategy
from benchmark.selection.rules import known_strategies, make_rule, missing_for


def filters_of(pool: Pool) -> dict[str, str | None]:
    """Say of every registered strategy with default options what the pool lacks for it; None where it can run."""
    return {strategy.name: _lacking(pool, strategy) for strategy in known_strategies()}


def filter_lines(filters: dict[str, str | None]) -> list[str]:
    """Return the lines that say which filters can run, and what the others lack."""
    can = [name for name, lacking in filters.items() if lacking is None]
    lines = [f"filters       {len(can)} of {len(filters)} can run with default options: {', '.join(can) or 'none'}"]
    return lines + [f"  {name} {lacking}" for name, lacking in filters.items() if lacking is not None]


def _lacking(pool: Pool, strategy: Strategy) -> str | None:
    try:
        sentences = missing_for(pool, make_rule(strategy.name, {}))
    except (ValueError, FileNotFoundError) as error:
        sentences = [str(error)]
    short = [
        one_line(ValueError(each)).removeprefix(f"{strategy.label} ").split(" It has [")[0].split("; the two files")[0]
        for each in sentences
    ]
    return "; ".join(each.rstrip(".") for each in short) or None
