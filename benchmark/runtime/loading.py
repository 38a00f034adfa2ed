"""Runs a user's files: each may import what stands beside it, and sees nothing that stands beside another.

The modules of a folder live in a package of ours that is named after the folder, so that two folders may have helpers
of one name, and neither hides an installed package from anybody else. What is run is what was read and hashed before.
"""

from __future__ import annotations

import builtins
import hashlib
import importlib.util
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from benchmark.runtime.identity import OwnCode, SourceFile, is_beside, modules_at
from benchmark.runtime.watch import Undeclared, note

_FOLDERS: dict[str, Path] = {}  # by the name of its package
_CODE: dict[Path, SourceFile] = {}  # as it was read for the file that imports it


def run_file(code: OwnCode) -> types.ModuleType:
    """Run a file, and what it imports from beside itself, as they were read; returns the module.

    Modules that an earlier version of these files left are run again. Raises what the file raises.
    """
    path = code.main.path
    package = _package_of(path.parent)
    for file in (*code.beside, path):
        fresh = next(each for each in code.files if each.path == file)
        if file in _CODE and _CODE[file].data != fresh.data:
            _forget_folder(package)  # a module that did not change may hold on to one that did
            break
    _CODE.update({each.path: each for each in code.files if each.path in code.beside or each is code.main})
    name = f"{package}.{path.stem.replace('.', '_')}"
    spec = importlib.util.spec_from_file_location(name, path, loader=_Loader(path, package))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _package_of(folder: Path) -> str:
    """Return the name of a folder's package, which is made where it is not there."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    stem = "".join(letter if letter.isalnum() else "_" for letter in folder.name)
    name = f"winnow_{stem}_{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"
    if name not in sys.modules:
        _FOLDERS[name] = folder
        package = types.ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    return name


def _forget_folder(package: str) -> None:
    for name in [name for name in sys.modules if name.startswith(f"{package}.")]:
        del sys.modules[name]
    for name in [name for name, value in vars(sys.modules[package]).items() if isinstance(value, types.ModuleType)]:
        delattr(sys.modules[package], name)  # `from . import name` would find it


class _Finder(MetaPathFinder):
    """Finds the modules of folders' packages."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package not in _FOLDERS or not name:
            return None
        folder = _FOLDERS[package]
        for module, file in modules_at(folder, name):
            if module == name:
                places = [str(file.parent)] if file.name == "__init__.py" else None
                loader = _Loader(file, package)
                return importlib.util.spec_from_file_location(
                    fullname, file, loader=loader, submodule_search_locations=places
                )
        place = folder.joinpath(*name.split("."))
        if not place.is_dir():
            return None
        spec = ModuleSpec(fullname, None, is_package=True)
        spec.submodule_search_locations = [str(place)]
        return spec


class _Loader(Loader):
    """Runs a file from the bytes that were hashed, never from a compiled file of an earlier second."""

    def __init__(self, path: Path, package: str) -> None:
        self.path = path
        self.package = package

    def exec_module(self, module: types.ModuleType) -> None:
        source = _CODE.get(self.path)
        if source is None:
            note(Undeclared("code", str(self.path)))
            source = SourceFile(self.path, self.path.read_bytes())
        module.__dict__["__builtins__"] = _builtins_for(self.package, self.path)
        exec(compile(source.data, str(self.path), "exec", dont_inherit=True), module.__dict__)


def _builtins_for(package: str, path: Path) -> dict[str, Any]:
    """Return the builtins of a module whose imports look beside it first, but for the standard library's names."""
    folder, usual = _FOLDERS[package], builtins.__import__

    def import_beside(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> types.ModuleType:
        first = name.partition(".")[0]
        is_own = level == 0 and _is_own(first, folder, path)
        if not is_own:
            return usual(name, globals, locals, fromlist or (), level)
        module = usual(f"{package}.{name}", globals, locals, fromlist or (), 0)
        return module if fromlist else sys.modules[f"{package}.{first}"]

    replaced: dict[str, Callable[..., Any]] = {"__import__": import_beside}
    return {**vars(builtins), **replaced}


def _is_own(first: str, folder: Path, path: Path) -> bool:
    """Tell whether a top-level name means a module beside a file: after the standard library's, before packages'."""
    if first in sys.stdlib_module_names or first == "benchmark" or (first == path.stem and path.parent == folder):
        return False
    if is_beside(first, folder):
        return True
    if not (folder / first).is_dir():
        return False
    try:  # a folder without `__init__` comes last, as Python has it
        return importlib.util.find_spec(first) is None
    except (ImportError, ValueError):
        return False
