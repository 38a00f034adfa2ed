"""Strategies (filters, selectors and signals) and tasks: how one file adds one, and how they are found.

`filters/` and `eval_tasks/` stand next to this package and are loaded by path, as are a user's own files
(`plugins=[my_filter.py]`). A file registers what it has with the decorators below; nothing else is edited.
"""

from __future__ import annotations

import multiprocessing
import traceback
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from benchmark.runtime.console import warn
from benchmark.runtime.errors import NotFoundError, UnknownNameError, UserError
from benchmark.runtime.identity import ROOT_DIR, is_packaged, read_own_code
from benchmark.runtime.installed import check_no_clash, installed_plugins
from benchmark.runtime.loading import run_file
from benchmark.runtime.names import nearest_name
from benchmark.runtime.strategies import CUT_OPTIONS, BrokenStrategy, LoadedFile, Strategy, make_strategy
from benchmark.runtime.watch import (
    begin_watching,
    forget_reads,
    not_watching,
    undeclared_reads,
    watching,
)

if TYPE_CHECKING:
    from benchmark.evaluation.tasks import Suite, Task

FILTERS_DIR = ROOT_DIR / "filters"
TASKS_DIR = ROOT_DIR / "eval_tasks"

Function = TypeVar("Function", bound=Callable[..., Any])


STRATEGIES: dict[str, Strategy] = {}
BROKEN: dict[str, BrokenStrategy] = {}
TASKS: dict[str, Task] = {}
SUITES: dict[str, Suite] = {}


def register_filter(
    *,
    columns: Sequence[str] = (),
    features: Sequence[str] = (),
    assets: Mapping[str, str] = types.MappingProxyType({}),
    packages: Mapping[str, str] = types.MappingProxyType({}),
    planted: Sequence[str] = (),
    images: bool = False,
    signals: Sequence[str] = (),
    setup: Callable[..., Any] | None = None,
    fraction: float | None = None,
    threshold: float | None = None,
    reference: bool = False,
) -> Callable[[Function], Function]:
    """Register a function from rows (a DataFrame) to one value per row as a filter of the function's name.

    bool keeps or drops, float scores (declare the paper's cut: `fraction` or `threshold`), int says how many copies.
    Its keyword-only arguments are its options. `columns` are the metadata columns that it reads; `features` are
    arrays of the .npz, handed over as a second argument: a dict of name to array (rows, dimension). With `images`, the
    last argument is a list of RGB `PIL.Image`s, one per row, as stored in the shards; a row without a readable image is
    not handed over and its value is missing. `signals` are per-sample values that stand among the columns of `rows`: of
    a registered signal, which takes the filter's options of the same names, or a column of a parquet of the user's.
    `setup(*, device, ...)` is called once per process, with the options that it names and the device, and what it
    returns (a model, say) is handed over last. `assets` are files that it needs beside the pool: from an option
    (`str | None = None`, or `list[str] | None = None`) to the name of the file that is looked for where the option is
    not given; its path is then that option's value. `{option}` in a name is filled in with that option's value.
    `packages` are optional ones that change what it keeps, with what happens where one is not installed: their versions
    are part of the record.
    """

    def make(function: Callable[..., Any]) -> Strategy:
        if fraction is not None and threshold is not None:
            raise UserError("a filter declares fraction= or threshold=, not both", code="strategy-invalid")
        if planted and not reference:
            raise UserError("planted labels are for filters marked reference=True", code="strategy-invalid")
        strategy = make_strategy(
            function,
            "filter",
            _LOADING,
            columns=columns,
            features=features,
            assets=assets,
            packages=packages,
            planted=planted,
            images=images,
            signals=signals,
            setup=setup,
            fraction=fraction,
            threshold=threshold,
            reference=reference,
        )
        for name in CUT_OPTIONS:
            if name in strategy.options:
                raise UserError(
                    f"filter {strategy.name!r}: {name} is the engine's option; declare it in the decorator",
                    code="strategy-invalid",
                )
        return strategy

    return _registering("filter", make)


def register_selector(
    *,
    columns: Sequence[str] = (),
    features: Sequence[str] = (),
    assets: Mapping[str, str] = types.MappingProxyType({}),
    signals: Sequence[str] = (),
    reference: bool = False,
) -> Callable[[Function], Function]:
    """Register a function from a `PoolView` (and its `seed`) to a `Subset` as a selector of the function's name."""

    def make(function: Callable[..., Any]) -> Strategy:
        strategy = make_strategy(
            function,
            "selector",
            _LOADING,
            columns=columns,
            features=features,
            assets=assets,
            signals=signals,
            reference=reference,
        )
        if "seed" not in strategy.options:
            raise UserError(
                f"selector {strategy.name!r} needs a keyword-only argument `seed: int = 0`", code="strategy-invalid"
            )
        return strategy

    return _registering("selector", make)


def register_signal(
    *,
    columns: Sequence[str] = (),
    features: Sequence[str] = (),
    assets: Mapping[str, str] = types.MappingProxyType({}),
    images: bool = False,
    signals: Sequence[str] = (),
    setup: Callable[..., Any] | None = None,
    asks_server: bool = False,
) -> Callable[[Function], Function]:
    """Register a function from rows to one value per row as a signal of the function's name.

    As a filter's, but the values are for filters to use (`signals=["language"]`) and may be texts as well. They are
    computed once for each pool and set of options, and cached row by row. Some rows of the first slice are evaluated
    again, to see that a value depends on its own row alone; not of a signal that declares `asks_server`, as every
    answer of a server may cost something, or be another.
    """

    def make(function: Callable[..., Any]) -> Strategy:
        return make_strategy(
            function,
            "signal",
            _LOADING,
            columns=columns,
            features=features,
            assets=assets,
            images=images,
            signals=signals,
            setup=setup,
            asks_server=asks_server,
        )

    return _registering("signal", make)


def register_task(task: Task) -> Task:
    """Register a task under its name; raises ValueError where another has it, or the same result files."""
    others = [name for name, other in TASKS.items() if name != task.name and other.file_stem == task.file_stem]
    if others:
        raise UserError(
            f"the tasks {others[0]!r} and {task.name!r} would share their result files; rename one of them",
            code="name-taken",
        )
    _add(TASKS, task.name, task, "task")
    return task


def register_suite(suite: Suite) -> Suite:
    """Register a named, versioned list of tasks."""
    _add(SUITES, suite.name, suite, "suite")
    return suite


def load_strategies(plugins: Iterable[str | Path] = ()) -> dict[str, Strategy]:
    """Load `filters/`, installed plugins and the given ones, anew where one changed; return every strategy by name."""
    _load_folder(FILTERS_DIR)
    _load_installed()
    load_plugins(plugins)
    return STRATEGIES


def load_tasks(plugins: Iterable[str | Path] = ()) -> dict[str, Task]:
    """Load `eval_tasks/`, installed plugins and the given ones, anew where one changed; return every task by name."""
    _load_folder(TASKS_DIR)
    _load_installed()
    load_plugins(plugins)
    return TASKS


def _load_folder(folder: Path) -> None:
    if is_packaged(folder):
        check_no_clash(folder)
    for path in sorted(folder.glob("*.py")):
        _load_file(path)


def _load_installed() -> None:
    """Load the modules that installed packages name; one that cannot be loaded is named once, and left out."""
    for plugin in installed_plugins():
        try:
            _load_file(plugin.path)
        except UserError as error:
            told = f"{plugin} is left out: {error} [{error.code}]"
            if told not in _LEFT_OUT and multiprocessing.parent_process() is None:
                warn(told)
            _LEFT_OUT.add(told)


def load_plugins(plugins: Iterable[str | Path]) -> None:
    """Load a user's files, again where one, or a helper that it imports, has changed; each is known by its path."""
    for plugin in plugins:
        path = Path(plugin).expanduser().resolve()
        if not path.is_file():
            raise NotFoundError(f"plugins: there is no file {plugin}", code="plugin-not-found")
        _load_file(path)


def get_strategy(name: str) -> Strategy:
    """Look a strategy up; raises KeyError with the nearest name, and UserError with the reason for a broken one."""
    if name not in STRATEGIES and name in BROKEN:
        broken = BROKEN[name]
        raise UserError(
            f"{broken.kind} {name!r} of {broken.path} cannot be used: {broken.reason}", code="broken-strategy"
        )
    if not name:
        raise UserError("no filter is chosen; no_filter keeps the whole pool", code="option-missing")
    if name not in STRATEGIES:
        known = sorted(each.name for each in STRATEGIES.values() if not each.is_signal)
        raise UnknownNameError(
            f"unknown filter {name!r}.{nearest_name(name, known)} Filters: {', '.join(known)}. Your own is "
            "found where plugins= names its file and the function is decorated with @register_filter.",
            code="unknown-filter",
        )
    return STRATEGIES[name]


def get_chooser(name: str) -> Strategy:
    """Look up a filter or selector; raises KeyError with the nearest name, and for a signal, which chooses nothing."""
    strategy = get_strategy(name)
    if strategy.is_signal:
        raise UnknownNameError(
            f"{name!r} is a signal, a value for filters to use: a filter that declares signals=[{name!r}] finds it "
            "among its columns; filters= takes filters and selectors (`winnow list filters`)",
            code="unknown-filter",
        )
    return strategy


def tasks_named(names: Sequence[str], suite_name: str) -> list[Task]:
    """Return the tasks with these names, in these groups of the suite, or in these suites.

    Raises KeyError with the nearest name, ValueError where a name is, say, a suite's and a group's and they have
    different tasks.
    """
    groups: dict[str, list[str]] = {}
    for task in suite_tasks(SUITES[suite_name]) if suite_name in SUITES else ():
        for group in task.groups:
            groups.setdefault(group, []).append(task.name)
    chosen: dict[str, Task] = {}
    for name in names:
        meanings: dict[str, list[str]] = {}
        if name in TASKS:
            meanings["task"] = [name]
        if name in SUITES:
            meanings["suite"] = [task.name for task in suite_tasks(SUITES[name])]
        if name in groups:
            meanings[f"group of suite {suite_name!r}"] = groups[name]
        if not meanings:
            nearest = nearest_name(name, [*TASKS, *SUITES, *groups])
            raise UnknownNameError(
                f"unknown task or group {name!r}.{nearest} `winnow list tasks` lists them.", code="unknown-task"
            )
        members = next(iter(meanings.values()))
        if any(set(others) != set(members) for others in meanings.values()):
            several = " and a ".join(f"{kind} of {len(found)}" for kind, found in meanings.items())
            raise UserError(
                f"tasks={name} could mean several things, a {several}; rename one that is yours, or name the "
                "tasks themselves",
                code="ambiguous-tasks",
            )
        chosen |= {member: TASKS[member] for member in members}
    return list(chosen.values())


def suite_tasks(suite: Suite) -> list[Task]:
    """Return a suite's tasks, scored or not; raises KeyError, with the nearest name, for one that nothing registers."""
    for name in (*suite.tasks, *suite.unscored):
        if name not in TASKS:
            raise UnknownNameError(
                f"suite {suite.name!r} names the task {name!r}, which no file registers.{nearest_name(name, TASKS)}",
                code="strategy-invalid",
            )
    return [TASKS[name] for name in (*suite.tasks, *suite.unscored)]


def _registering(kind: str, make: Callable[[Callable[..., Any]], Strategy]) -> Callable[[Function], Function]:
    """Return the decorator that registers what `make` makes of a function.

    Of a file that is being loaded, one that cannot be made is put aside with its reason, and the others are registered.
    """

    def register(function: Function) -> Function:
        try:
            strategy = make(function)
        except UserError as error:
            if _LOADING is None:
                raise
            BROKEN[function.__name__] = BrokenStrategy(function.__name__, kind, _LOADING.path, str(error))
            return function
        BROKEN.pop(strategy.name, None)
        _add_strategy(strategy)
        return function

    return register


def _add_strategy(strategy: Strategy) -> None:
    before = STRATEGIES.get(strategy.name)
    if before is not None and not _is_again(before, strategy):
        if before.source_path == strategy.source_path and strategy.loaded is not None:
            raise UserError(
                f"{strategy.source_path} registers {strategy.name!r} twice, in lines {before.line} and "
                f"{strategy.line}; rename one of them",
                code="name-taken",
            )
        raise UserError(
            f"two files register the strategy {strategy.name!r}, {before.source_path} and {strategy.source_path}; "
            "rename one of them",
            code="name-taken",
        )
    STRATEGIES[strategy.name] = strategy
    if strategy.loaded is not None:
        strategy.loaded.assets |= set(strategy.assets)
        strategy.loaded.asks_server |= strategy.asks_server


def _is_again(before: Strategy, now: Strategy) -> bool:
    """Tell whether a strategy is one that stood there, registered again: by a cell that is run again, or a new load."""
    if before.loaded is None and now.loaded is None:
        return True
    return before.source_path == now.source_path and before.loaded is not now.loaded and now.loaded is not None


def _add(table: dict[str, Any], name: str, item: Any, noun: str) -> None:
    if name in table and not (_LOADING is None and _ADDED_BY.get((noun, name)) is None):
        raise UserError(f"two files register the {noun} {name!r}; rename one of them", code="name-taken")
    table[name] = item
    _ADDED_BY[noun, name] = None if _LOADING is None else _LOADING.path


_LOADED: dict[Path, LoadedFile] = {}
_LEFT_OUT: set[str] = set()  # what was said of installed packages
_LOADING: LoadedFile | None = None
_ADDED_BY: dict[tuple[str, str], Path | None] = {}  # by "task" or "suite" and name, the file; None: a script


def _load_file(path: Path) -> None:
    global _LOADING
    begin_watching()
    with not_watching():
        before = _LOADED.get(path)
        # What it read as it was loaded may have changed unseen, so such a file is always run again.
        if before is not None and before.code.is_unchanged() and not undeclared_reads(path):
            return
        code = read_own_code(path)
        _forget(path)
        loaded, outer = LoadedFile(code), _LOADING
        try:
            _LOADING = loaded
            with watching(path, [each.path for each in code.files]):
                run_file(code)
        except (Exception, SystemExit) as error:
            _forget(path)
            told = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            raise UserError(f"{path} cannot be loaded: {told}{_line_of(error, path)}", code="bad-code") from error
        finally:
            _LOADING = outer
    _LOADED[path] = loaded


def _line_of(error: BaseException, path: Path) -> str:
    """Return " (line N)" of the user's file that is to blame, empty where none is known."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f" (line {lines[-1]})" if lines else ""


def _forget(path: Path) -> None:
    """Forget all that a file registered, and what it read."""
    _LOADED.pop(path, None)
    forget_reads(path)
    for name in [name for name, each in STRATEGIES.items() if each.loaded is not None and each.loaded.path == path]:
        del STRATEGIES[name]
    for name in [name for name, each in BROKEN.items() if each.path == path]:
        del BROKEN[name]
    tables: dict[str, dict[str, Any]] = {"task": TASKS, "suite": SUITES}
    for noun, name in [key for key, added_by in _ADDED_BY.items() if added_by == path]:
        tables[noun].pop(name, None)
        del _ADDED_BY[noun, name]
