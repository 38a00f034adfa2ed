"""Strategies (filters, selectors and signals) and tasks: how one file adds one, and how they are found.

`filters/` and `eval_tasks/` stand next to this package and are loaded by path, as are a user's own files
(`plugins=[my_filter.py]`). A file registers what it has with the decorators below; nothing else is edited.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import itertools
import math
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any, TypeVar

from benchmark.runtime.errors import NotFoundError, UnknownNameError, UserError
from benchmark.runtime.identity import ROOT_DIR, OwnCode, distribution_of, package_version, read_own_code
from benchmark.runtime.loading import run_file
from benchmark.runtime.names import nearest_name
from benchmark.runtime.undeclared import is_of_server, named_in_source
from benchmark.runtime.watch import (
    Undeclared,
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


@dataclass(frozen=True)
class Option:
    """One keyword argument of a strategy."""

    name: str
    type: Any  # an annotation such as int, float, str, bool, list[str] or `str | None`
    default: Any  # `inspect.Parameter.empty` where the user must give it

    @property
    def type_name(self) -> str:
        """Spell the type as it stands in the file."""
        return self.type.__name__ if isinstance(self.type, type) else str(self.type)

    @property
    def is_required(self) -> bool:
        return self.default is inspect.Parameter.empty

    @property
    def is_list(self) -> bool:
        """Tell whether it takes a list, as `list[str] | None` does."""
        return list in {typing.get_origin(part) or part for part in (self.type, *typing.get_args(self.type))}


@dataclass(frozen=True)
class Strategy:
    """A filter judges each sample alone, a selector sees the whole pool, a signal is a value for filters to use."""

    name: str
    kind: str  # "filter", "selector" or "signal"
    function: Callable[..., Any]
    options: dict[str, Option]
    columns: tuple[str, ...] = ()  # of the metadata; `{option}` is filled in
    features: tuple[str, ...] = ()  # arrays of the .npz
    assets: dict[str, str] = field(default_factory=dict)  # option -> file name, `{option}` filled in (assets.py)
    packages: dict[str, str] = field(default_factory=dict)  # optional ones -> what happens without
    planted: tuple[str, ...] = ()  # of planted.parquet; references only
    images: bool = False  # sees the decoded images
    signals: tuple[str, ...] = ()  # other per-sample values: registered ones, or columns of a user's parquet
    setup: Callable[..., Any] | None = None  # makes what the function is handed last, once per process
    fraction: float | None = None  # the declared cut
    threshold: float | None = None
    reference: bool = False  # uses what no participant may use
    asks_server: bool = False  # a signal whose values come from elsewhere, and are not asked twice
    paper: str = ""  # first line of the module
    summary: str = ""  # first line of the function's docstring
    source_path: Path = field(default_factory=Path)
    source_hash: str = ""  # sha256 of the file's bytes as they were run; of a script's, of the function's text
    loaded: LoadedFile | None = None  # the file that was loaded for it; None: a script's or notebook's
    line: int = 0  # of the function

    @property
    def identity(self) -> str | None:
        """Return what its code is known by (benchmark/runtime/identity.py); None where that cannot be known."""
        return None if self.loaded is None else self.loaded.identity

    @property
    def version(self) -> str:
        """Return what tells a load of its code from an earlier or later one in this process."""
        return f"loaded {self.loaded.number}" if self.loaded is not None else f"cell {id(self.function)}"

    def undeclared(self) -> list[Undeclared]:
        """Return what its values may hang on that is in no identity, as far as it is known by now.

        Of a strategy of a script or notebook that is all the rest of it: helpers and globals stand in other cells.
        """
        if self.loaded is None:
            return [Undeclared("script", str(self.source_path))]
        return self.loaded.undeclared()

    @property
    def label(self) -> str:
        """Return what messages call it, such as `filter 'basic'`."""
        return f"{self.kind} {self.name!r}"

    @property
    def is_filter(self) -> bool:
        return self.kind == "filter"

    @property
    def is_selector(self) -> bool:
        return self.kind == "selector"

    @property
    def is_signal(self) -> bool:
        return self.kind == "signal"

    @property
    def has_cut(self) -> bool:
        """Tell whether the filter scores, and a cut turns its scores into choices."""
        return self.fraction is not None or self.threshold is not None

    @property
    def takes_device(self) -> bool:
        """Tell whether its `setup` takes the device to compute on."""
        return self.setup is not None and "device" in inspect.signature(self.setup).parameters

    def needed_columns(self, options: dict[str, Any]) -> list[str]:
        """Return the metadata columns needed with these options."""
        return [column.format(**options) for column in self.columns]

    def needed_features(self, options: dict[str, Any]) -> list[str]:
        """Return the .npz arrays needed with these options."""
        return [feature.format(**options) for feature in self.features]

    def setup_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return those of the options that `setup` takes."""
        assert self.setup is not None
        return {name: options[name] for name in inspect.signature(self.setup).parameters if name != "device"}

    def needed_assets(self, options: dict[str, Any]) -> dict[str, str]:
        """Return the names of the asset files looked for with these options, by the option that may name another."""
        return {option: name.format(**options) for option, name in self.assets.items()}

    def package_versions(self) -> dict[str, str | None]:
        """Return the installed version of each optional package, None where it is not installed.

        And of every package that its file imports and that Winnow does not need itself: it may bring data.
        """
        modules = () if self.loaded is None else self.loaded.code.packages
        imported = {each for module in sorted(modules) if (each := distribution_of(module)) is not None}
        return {name: package_version(name) for name in (*self.packages, *sorted(imported - set(self.packages)))}


_NUMBERS = itertools.count()


class LoadedFile:
    """A file of strategies or tasks as it was run."""

    def __init__(self, code: OwnCode) -> None:
        self.code = code
        self.path = code.main.path
        self.number = next(_NUMBERS)  # tells loads of a file apart
        self.assets: set[str] = set()  # options of its strategies that are assets
        self.asks_server = False  # one of them declares so

    @functools.cached_property
    def identity(self) -> str:
        """Return what its code is known by."""
        return self.code.identity()

    @functools.cached_property
    def _named(self) -> list[Undeclared]:
        return named_in_source(self.code, self.assets)

    def undeclared(self) -> list[Undeclared]:
        """Return what its source names, and what it was seen to read, and is no asset of its strategies."""
        found = dict.fromkeys([*undeclared_reads(self.path), *self._named])
        return [each for each in found if not (self.asks_server and is_of_server(each))]


@dataclass(frozen=True)
class BrokenStrategy:
    """A function that was registered in a way that cannot work; its file's others can."""

    name: str
    kind: str
    path: Path
    reason: str


STRATEGIES: dict[str, Strategy] = {}
BROKEN: dict[str, BrokenStrategy] = {}
TASKS: dict[str, Task] = {}
SUITES: dict[str, Suite] = {}

CUT_OPTIONS = ("fraction", "threshold")
ASSET_TYPES = (str | None, list[str] | None)


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
    not handed over and gets no verdict. `signals` are per-sample values that stand among the columns of `rows`: of a
    registered signal, which takes the filter's options of the same names, or a column of a parquet of the user's.
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
        strategy = _make_strategy(
            function,
            "filter",
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
        strategy = _make_strategy(
            function,
            "selector",
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
    computed once for each pool and set of options, and kept row by row. Some rows of the first slice are asked again,
    to see that a value depends on its own row alone; not of a signal that declares `asks_server`, as every answer of
    a server may cost something, or be another.
    """

    def make(function: Callable[..., Any]) -> Strategy:
        return _make_strategy(
            function,
            "signal",
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
    """Load `filters/` and the plugins, anew where one changed; return every strategy by name."""
    for path in sorted(FILTERS_DIR.glob("*.py")):
        _load_file(path)
    load_plugins(plugins)
    return STRATEGIES


def load_tasks(plugins: Iterable[str | Path] = ()) -> dict[str, Task]:
    """Load `eval_tasks/` and the plugins, anew where one changed; return every task by name."""
    for path in sorted(TASKS_DIR.glob("*.py")):
        _load_file(path)
    load_plugins(plugins)
    return TASKS


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
        known = sorted(each.name for each in STRATEGIES.values() if each.kind != "signal")
        raise UnknownNameError(
            f"unknown filter {name!r}.{nearest_name(name, known)} Filters: {', '.join(known)}. One of your own is "
            "found where plugins= names its file and the function is decorated with @register_filter.",
            code="unknown-filter",
        )
    return STRATEGIES[name]


def get_chooser(name: str) -> Strategy:
    """Look up a filter or selector; raises KeyError with the nearest name, and for a signal, which chooses nothing."""
    strategy = get_strategy(name)
    if strategy.kind == "signal":
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


def check_options(strategy: Strategy, given: dict[str, Any]) -> dict[str, Any]:
    """Return the strategy's options with defaults filled in, the cut's left out.

    Raises ValueError where a value has the wrong type, or an option without a default is missing.
    """
    options: dict[str, Any] = {}
    for option in strategy.options.values():
        value = given.get(option.name, option.default)
        if option.name in strategy.assets and option.is_list and isinstance(value, str):
            value = [value]
        if option.is_required and value in (inspect.Parameter.empty, "???"):
            raise UserError(
                f"filters.{strategy.name}.{option.name} ({option.type_name}) must be given", code="option-missing"
            )
        options[option.name] = _as_type(value, option.type, f"filters.{strategy.name}.{option.name}")
        if option.name == "seed" and isinstance(options["seed"], int) and options["seed"] < 0:
            raise UserError(f"filters.{strategy.name}.seed={options['seed']} is below 0", code="option-value")
    return options


def _make_strategy(
    function: Callable[..., Any],
    kind: str,
    *,
    columns: Sequence[str],
    features: Sequence[str],
    assets: Mapping[str, str],
    packages: Mapping[str, str] = types.MappingProxyType({}),
    planted: Sequence[str] = (),
    images: bool = False,
    signals: Sequence[str] = (),
    setup: Callable[..., Any] | None = None,
    fraction: float | None = None,
    threshold: float | None = None,
    reference: bool = False,
    asks_server: bool = False,
) -> Strategy:
    name = function.__name__
    parameters = list(inspect.signature(function).parameters.values())
    hints = typing.get_type_hints(function)
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    others = [p for p in parameters if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    if kind == "selector":
        wanted = ["pool"]
    else:
        given = {"features": features, "images": images, "model": setup}
        wanted = ["rows", *(name for name, is_given in given.items() if is_given)]
    if len(positional) != len(wanted) or others:
        raise UserError(
            f"write {kind} {name!r} as def {name}({', '.join(wanted)}, *, option: type = default)",
            code="strategy-invalid",
        )
    options = {
        p.name: Option(p.name, hints.get(p.name, typing.Any), p.default) for p in parameters if p.kind is p.KEYWORD_ONLY
    }
    for asset in assets:
        if asset not in options or options[asset].type not in ASSET_TYPES or options[asset].default is not None:
            raise UserError(
                f"{kind} {name!r}: the asset {asset!r} needs a keyword-only argument `{asset}: str | None = None` "
                "(or list[str] | None, for several files)",
                code="strategy-invalid",
            )
    for p in inspect.signature(setup).parameters.values() if setup else ():
        if p.name not in options and p.name != "device":
            raise UserError(
                f"{kind} {name!r}: setup takes {p.name!r}, which is neither an option of it nor `device`",
                code="strategy-invalid",
            )
    for text in (*columns, *features, *assets.values()):
        for _, placeholder, _, _ in Formatter().parse(text):
            if placeholder is not None and placeholder not in options:
                raise UserError(
                    f"{kind} {name!r} declares {text!r} but has no option {placeholder!r}", code="strategy-invalid"
                )
    module, loaded = sys.modules.get(function.__module__), _LOADING
    return Strategy(
        name=name,
        kind=kind,
        function=function if loaded is None else _watched(function, loaded, assets),
        options=options,
        columns=tuple(columns),
        features=tuple(features),
        assets=dict(assets),
        packages=dict(packages),
        planted=tuple(planted),
        images=images,
        signals=tuple(signals),
        setup=setup if loaded is None or setup is None else _watched(setup, loaded, assets),
        fraction=fraction,
        threshold=threshold,
        reference=reference,
        asks_server=asks_server,
        paper=_first_line(module.__doc__ if module else None),
        summary=_first_line(function.__doc__),
        source_path=_source_of(function),
        source_hash=_text_hash(function) if loaded is None else loaded.code.main.sha256,
        loaded=loaded,
        line=getattr(getattr(function, "__code__", None), "co_firstlineno", 0),
    )


def _source_of(function: Callable[..., Any]) -> Path:
    try:
        return Path(inspect.getsourcefile(function) or "")
    except TypeError:  # of a prompt, or compiled
        return Path()


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


def _watched(function: Callable[..., Any], loaded: LoadedFile, assets: Iterable[str]) -> Callable[..., Any]:
    """Return a function whose reads are taken for those of the file that it stands in, but for its assets."""

    @functools.wraps(function)
    def watched(*arguments: Any, **options: Any) -> Any:
        given = [options[name] for name in assets if options.get(name) is not None]
        paths = [path for each in given for path in ([each] if isinstance(each, str) else each)]
        with watching(loaded.path, [each.path for each in loaded.code.files], paths):
            return function(*arguments, **options)

    return watched


def _text_hash(function: Callable[..., Any]) -> str:
    """Return the sha256 of a function's text, of its name where a prompt has no text."""
    try:
        text = inspect.getsource(function)
    except (OSError, TypeError):
        text = function.__name__
    return hashlib.sha256(text.encode()).hexdigest()


def _first_line(docstring: str | None) -> str:
    return (docstring or "").strip().split("\n")[0].strip()


def _as_type(value: Any, annotation: Any, where: str) -> Any:
    if annotation is typing.Any:
        return value
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _as_type(value, next(a for a in arguments if a is not type(None)), where)
    if origin is not None or annotation in (list, tuple, Sequence):
        if not isinstance(value, list | tuple):
            raise UserError(f"{where}={value!r} is not a list", code="option-type")
        inner = arguments[0] if arguments else typing.Any
        return [_as_type(item, inner, where) for item in value]
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if (
        not isinstance(annotation, type)
        or not isinstance(value, annotation)
        or (annotation is int and isinstance(value, bool))
    ):
        raise UserError(
            f"{where}={value!r} is not of type {getattr(annotation, '__name__', annotation)}", code="option-type"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(
            f"{where}={value} is not a finite number; for no limit, give a very large one", code="option-value"
        )
    return value
