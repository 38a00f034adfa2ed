"""`import winnow as wb`: the public names, also where a `benchmark/` or `leaderboard/` of the user's is in the way.

A notebook and a script find modules in their own folder first, so that a `benchmark/` of the user's there hides
Winnow's package. This module loads the packages that it is installed with, by their place beside it; from then on the
program's `import benchmark` and `import leaderboard` mean these two.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmark import Pool as Pool
    from benchmark import PoolView as PoolView
    from benchmark import Subset as Subset
    from benchmark import UserError as UserError
    from benchmark import __version__ as __version__
    from benchmark import compare as compare
    from benchmark import open_experiment as open_experiment
    from benchmark import open_pool as open_pool
    from benchmark import read_board as read_board
    from benchmark import read_subset as read_subset
    from benchmark import register_filter as register_filter
    from benchmark import register_selector as register_selector
    from benchmark import register_signal as register_signal
    from benchmark import register_suite as register_suite
    from benchmark import register_task as register_task
    from benchmark import rule as rule
    from benchmark import score as score
    from benchmark import select as select


def _load(name: str) -> ModuleType:
    """Return the package of this name that lies beside this file; raises ImportError where another is loaded."""
    path = Path(__file__).resolve().parent / name / "__init__.py"
    loaded = sys.modules.get(name)
    if loaded is not None:
        if loaded.__file__ is None or Path(loaded.__file__).resolve() != path:
            where = loaded.__file__ or ", ".join(loaded.__path__)
            raise ImportError(
                f"a package {name!r} of {where} is loaded already, and Winnow's has the same name; import winnow "
                "before it, or rename yours",
                name=name,
            )
        return loaded
    spec = spec_from_file_location(name, path, submodule_search_locations=[str(path.parent)])
    assert spec is not None and spec.loader is not None
    package = sys.modules[name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(package)
    except BaseException:
        del sys.modules[name]
        raise
    return package


def _refuse_foreign(package: ModuleType) -> None:
    """Say in one sentence that another package has written its files over Winnow's, as one of the same name does."""
    if hasattr(package, "_HOME"):
        return
    told = (
        f"{package.__file__} is not Winnow's: another package that is installed has the same name and has written over "
        "it; install winnow-bench into an environment of its own [package-clash]"
    )
    if Path(sys.argv[0]).name == "winnow":  # the command
        print(f"winnow: {told}", file=sys.stderr)
        raise SystemExit(2)
    raise ImportError(told, name="benchmark")


_benchmark = _load("benchmark")
_refuse_foreign(_benchmark)
_load("leaderboard")

__all__ = [*_benchmark.__all__, "__version__"]


def _command() -> None:
    """Run as the installed command `winnow`."""
    from benchmark.cli.main import entry_point

    entry_point()


if not TYPE_CHECKING:  # or every name would be there for type checkers

    def __getattr__(name):
        if name not in __all__:
            raise AttributeError(f"module 'winnow' has no attribute {name!r}")
        value = globals()[name] = getattr(_benchmark, name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
