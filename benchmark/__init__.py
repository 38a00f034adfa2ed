"""Winnow's fixed part: the public names, each loaded when it is first used; `import winnow as wb` has the same."""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from benchmark.api.results import compare, open_experiment, read_board
    from benchmark.api.selecting import open_pool, read_subset, rule, score, select
    from benchmark.pool.pool import Pool
    from benchmark.pool.subset import Subset
    from benchmark.registry import (
        register_filter,
        register_selector,
        register_signal,
        register_suite,
        register_task,
    )
    from benchmark.runtime.errors import UserError
    from benchmark.selection.views import PoolView

# Where each name stands. Loaded late (PEP 562), so that importing a module of the package costs nothing else.
_HOME = {
    "Pool": "benchmark.pool.pool",
    "PoolView": "benchmark.selection.views",
    "Subset": "benchmark.pool.subset",
    "UserError": "benchmark.runtime.errors",
    "compare": "benchmark.api.results",
    "open_experiment": "benchmark.api.results",
    "open_pool": "benchmark.api.selecting",
    "read_board": "benchmark.api.results",
    "read_subset": "benchmark.api.selecting",
    "register_filter": "benchmark.registry",
    "register_selector": "benchmark.registry",
    "register_signal": "benchmark.registry",
    "register_suite": "benchmark.registry",
    "register_task": "benchmark.registry",
    "rule": "benchmark.api.selecting",
    "score": "benchmark.api.selecting",
    "select": "benchmark.api.selecting",
}

__all__ = [
    "Pool",
    "PoolView",
    "Subset",
    "UserError",
    "compare",
    "open_experiment",
    "open_pool",
    "read_board",
    "read_subset",
    "register_filter",
    "register_selector",
    "register_signal",
    "register_suite",
    "register_task",
    "rule",
    "score",
    "select",
]


if not TYPE_CHECKING:  # or every name would be there for type checkers

    def __getattr__(name):
        if name not in _HOME:
            raise AttributeError(f"module 'benchmark' has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_HOME[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
