"""Strategies (filters, selectors and signals) and tasks: how one file adds one, and how they are found.

`filters/` and `eval_tasks/` stand next to this package and are loaded by path, as are a user's own files
(`plugins=[my_filter.py]`). A file registers what it has with the decorators below; nothing else is edited.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import inspect
import math
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any, TypeVar

from benchmark.errors import NotFoundError, UnknownNameError, UserError
from benchmark.names import nearest_name

if TYPE_CHECKING:
    from benchmark.tasks import Suite, Task

ROOT_DIR = Path(__file__).resolve().parent.parent
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
    source_hash: str = ""  # sha256 of the file's bytes as they were run
    import_hashes: dict[str, str] = field(default_factory=dict)  # of what the file imports of ours, or from beside it

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
        """Return the installed version of each optional package, None where it is not installed."""
        return {name: _version_of(name) for name in self.packages}


STRATEGIES: dict[str, Strategy] = {}
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
    if fraction is not None and threshold is not None:
        raise UserError("a filter declares fraction= or threshold=, not both")
    if planted and not reference:
        raise UserError("planted labels are for filters marked reference=True")

    def register(function: Function) -> Function:
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
                raise UserError(f"filter {strategy.name!r}: {name} is the engine's option; declare it in the decorator")
        _add(STRATEGIES, strategy.name, strategy, "strategy")
        return function

    return register


def register_selector(
    *,
    columns: Sequence[str] = (),
    features: Sequence[str] = (),
    assets: Mapping[str, str] = types.MappingProxyType({}),
    signals: Sequence[str] = (),
    reference: bool = False,
) -> Callable[[Function], Function]:
    """Register a function from a `PoolView` (and its `seed`) to a `Subset` as a selector of the function's name."""

    def register(function: Function) -> Function:
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
            raise UserError(f"selector {strategy.name!r} needs a keyword-only argument `seed: int = 0`")
        _add(STRATEGIES, strategy.name, strategy, "strategy")
        return function

    return register


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

    def register(function: Function) -> Function:
        strategy = _make_strategy(
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
        _add(STRATEGIES, strategy.name, strategy, "strategy")
        return function

    return register


def register_task(task: Task) -> Task:
    """Register a task under its name; raises ValueError where another has it, or the same result files."""
    others = [name for name, other in TASKS.items() if name != task.name and other.file_stem == task.file_stem]
    if others:
        raise UserError(f"the tasks {others[0]!r} and {task.name!r} would share their result files; rename one of them")
    _add(TASKS, task.name, task, "task")
    return task


def register_suite(suite: Suite) -> Suite:
    """Register a named, versioned list of tasks."""
    _add(SUITES, suite.name, suite, "suite")
    return suite


def load_strategies(plugins: Iterable[str | Path] = ()) -> dict[str, Strategy]:
    """Load `filters/` and the plugins, once; return every strategy by name."""
    for path in sorted(FILTERS_DIR.glob("*.py")):
        _load_file(path)
    load_plugins(plugins)
    return STRATEGIES


def load_tasks(plugins: Iterable[str | Path] = ()) -> dict[str, Task]:
    """Load `eval_tasks/` and the plugins, once; return every task by name."""
    for path in sorted(TASKS_DIR.glob("*.py")):
        _load_file(path)
    load_plugins(plugins)
    return TASKS


def load_plugins(plugins: Iterable[str | Path]) -> None:
    """Load a user's files, each once; what they register is theirs by its path."""
    for plugin in plugins:
        path = Path(plugin).expanduser().resolve()
        if not path.is_file():
            raise NotFoundError(f"plugins: there is no file {plugin}")
        _load_file(path)


def get_strategy(name: str) -> Strategy:
    """Look a strategy up; raises KeyError with the nearest name."""
    if name not in STRATEGIES:
        known = sorted(each.name for each in STRATEGIES.values() if each.kind != "signal")
        raise UnknownNameError(f"unknown filter {name!r}.{nearest_name(name, known)} Filters: {', '.join(known)}.")
    return STRATEGIES[name]


def get_chooser(name: str) -> Strategy:
    """Look up a filter or selector; raises KeyError with the nearest name, and for a signal, which chooses nothing."""
    strategy = get_strategy(name)
    if strategy.kind == "signal":
        raise UnknownNameError(
            f"{name!r} is a signal, a value for filters to use: a filter that declares signals=[{name!r}] finds it "
            "among its columns; filters= takes filters and selectors (`winnow list filters`)"
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
            raise UnknownNameError(f"unknown task or group {name!r}.{nearest} `winnow list tasks` lists them.")
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
                f"suite {suite.name!r} names the task {name!r}, which no file registers.{nearest_name(name, TASKS)}"
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
            raise UserError(f"filters.{strategy.name}.{option.name} ({option.type_name}) must be given")
        options[option.name] = _as_type(value, option.type, f"filters.{strategy.name}.{option.name}")
        if option.name == "seed" and isinstance(options["seed"], int) and options["seed"] < 0:
            raise UserError(f"filters.{strategy.name}.seed={options['seed']} is below 0")
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
        raise UserError(f"write {kind} {name!r} as def {name}({', '.join(wanted)}, *, option: type = default)")
    options = {
        p.name: Option(p.name, hints.get(p.name, typing.Any), p.default) for p in parameters if p.kind is p.KEYWORD_ONLY
    }
    for asset in assets:
        if asset not in options or options[asset].type not in ASSET_TYPES or options[asset].default is not None:
            raise UserError(
                f"{kind} {name!r}: the asset {asset!r} needs a keyword-only argument `{asset}: str | None = None` "
                "(or list[str] | None, for several files)"
            )
    for p in inspect.signature(setup).parameters.values() if setup else ():
        if p.name not in options and p.name != "device":
            raise UserError(f"{kind} {name!r}: setup takes {p.name!r}, which is neither an option of it nor `device`")
    for text in (*columns, *features, *assets.values()):
        for _, placeholder, _, _ in Formatter().parse(text):
            if placeholder is not None and placeholder not in options:
                raise UserError(f"{kind} {name!r} declares {text!r} but has no option {placeholder!r}")
    module = sys.modules.get(function.__module__)
    return Strategy(
        name=name,
        kind=kind,
        function=function,
        options=options,
        columns=tuple(columns),
        features=tuple(features),
        assets=dict(assets),
        packages=dict(packages),
        planted=tuple(planted),
        images=images,
        signals=tuple(signals),
        setup=setup,
        fraction=fraction,
        threshold=threshold,
        reference=reference,
        asks_server=asks_server,
        paper=_first_line(module.__doc__ if module else None),
        summary=_first_line(function.__doc__),
        source_path=Path(inspect.getsourcefile(function) or ""),
        source_hash=_LOADING.source_hash if _LOADING else "",
        import_hashes=_LOADING.import_hashes if _LOADING else {},
    )


def _add(table: dict[str, Any], name: str, item: Any, noun: str) -> None:
    if name in table:
        raise UserError(f"two files register the {noun} {name!r}; rename one of them")
    table[name] = item


@dataclass(frozen=True)
class _Source:
    """A file of strategies or tasks as it was run."""

    source_hash: str
    import_hashes: dict[str, str]


_LOADED: set[Path] = set()
_LOADING: _Source | None = None

# What every strategy may import, and what says nothing of its values.
_PLUMBING = {"filtering", "pool", "registry", "rules", "subset", "tasks", "uids"}


def _load_file(path: Path) -> None:
    global _LOADING
    if path in _LOADED:
        return
    module_name = f"winnow_{path.parent.name}_{path.stem}".replace("-", "_")
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    data = path.read_bytes()  # once: what is run is what is hashed
    try:
        _LOADING = _Source(hashlib.sha256(data).hexdigest(), _import_hashes(data, path))
        exec(compile(data, str(path), "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise UserError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
    finally:
        _LOADING = None
    _LOADED.add(path)


def _import_hashes(data: bytes, path: Path) -> dict[str, str]:
    """Return the sha256 of the modules that a file imports from `benchmark` or from its own folder, by name."""
    names = set()
    for node in ast.walk(ast.parse(data)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    hashes = {}
    for name in sorted(names):
        first, _, rest = name.partition(".")
        folder = ROOT_DIR / "benchmark" if first == "benchmark" else path.parent
        place = folder / (rest if first == "benchmark" else name).replace(".", "/")
        if first == "benchmark" and (not rest or rest.partition(".")[0] in _PLUMBING):
            continue
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.is_file():
                hashes[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return hashes


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


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
            raise UserError(f"{where}={value!r} is not a list")
        inner = arguments[0] if arguments else typing.Any
        return [_as_type(item, inner, where) for item in value]
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if (
        not isinstance(annotation, type)
        or not isinstance(value, annotation)
        or (annotation is int and isinstance(value, bool))
    ):
        raise UserError(f"{where}={value!r} is not of type {getattr(annotation, '__name__', annotation)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where}={value} is not a finite number; for no limit, give a very large one")
    return value
