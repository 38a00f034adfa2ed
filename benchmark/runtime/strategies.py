"""What a strategy is: the options and needs that its decorator declares, checked, and the file that it came from."""

from __future__ import annotations

import functools
import hashlib
import inspect
import itertools
import math
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter
from typing import Any

from benchmark.runtime.errors import UserError
from benchmark.runtime.identity import OwnCode, distribution_of, package_version
from benchmark.runtime.undeclared import is_of_server, named_in_source
from benchmark.runtime.watch import Undeclared, undeclared_reads, watching


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
    """A filter scores each sample alone, a selector sees the whole pool, a signal is a value for filters to use."""

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
    asks_server: bool = False  # a signal whose values come from elsewhere, and are not requested twice
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
        """Return what its values may depend on that is in no identity, as far as it is known by now.

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


CUT_OPTIONS = ("fraction", "threshold")


ASSET_TYPES = (str | None, list[str] | None)


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


def make_strategy(
    function: Callable[..., Any],
    kind: str,
    loaded: LoadedFile | None,
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
    _check_declared(f"{kind} {name!r}", options, assets, setup, (*columns, *features))
    module = sys.modules.get(function.__module__)
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


def _check_declared(
    label: str,
    options: Mapping[str, Option],
    assets: Mapping[str, str],
    setup: Callable[..., Any] | None,
    texts: Sequence[str],
) -> None:
    """Raise UserError where assets, `setup` or placeholders in names have no option of the function to go with."""
    for asset in assets:
        if asset not in options or options[asset].type not in ASSET_TYPES or options[asset].default is not None:
            raise UserError(
                f"{label}: the asset {asset!r} needs a keyword-only argument `{asset}: str | None = None` "
                "(or list[str] | None, for several files)",
                code="strategy-invalid",
            )
    for p in inspect.signature(setup).parameters.values() if setup else ():
        if p.name not in options and p.name != "device":
            raise UserError(
                f"{label}: setup takes {p.name!r}, which is neither an option of it nor `device`",
                code="strategy-invalid",
            )
    for text in (*texts, *assets.values()):
        for _, placeholder, _, _ in Formatter().parse(text):
            if placeholder is not None and placeholder not in options:
                raise UserError(f"{label} declares {text!r} but has no option {placeholder!r}", code="strategy-invalid")


def _source_of(function: Callable[..., Any]) -> Path:
    try:
        return Path(inspect.getsourcefile(function) or "")
    except TypeError:  # of a prompt, or compiled
        return Path()


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
