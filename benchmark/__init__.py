"""Winnow's fixed part: the public names, each loaded when it is first used; `import winnow as wb` has the same."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from benchmark.registry import (
        register_filter,
        register_selector,
        register_signal,
        register_suite,
        register_task,
    )
    from benchmark.runtime.errors import UserError

# Where each name stands. Loaded late (PEP 562), so that importing a module of the package costs nothing else.
_HOME = {
    "UserError": "benchmark.runtime.errors",
    "register_filter": "benchmark.registry",
    "register_selector": "benchmark.registry",
    "register_signal": "benchmark.registry",
    "register_suite": "benchmark.registry",
    "register_task": "benchmark.registry",
}

__all__ = ["UserError", "register_filter", "register_selector", "register_signal", "register_suite", "register_task"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'benchmark' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
