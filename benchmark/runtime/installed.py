"""What is installed beside Winnow: packages that bring strategies or tasks, and packages that are in its way."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.metadata import Distribution, EntryPoint, PackageNotFoundError, distribution, distributions, entry_points
from pathlib import Path

from benchmark.runtime.errors import UserError

GROUP = "winnow.plugins"
DISTRIBUTION = "winnow-bench"


@dataclass(frozen=True)
class InstalledPlugin:
    """An entry point of the group `winnow.plugins`: it names a module, whose file is loaded as a plugin is."""

    entry_point: EntryPoint

    def __str__(self) -> str:
        package = self.entry_point.dist.name if self.entry_point.dist is not None else "an unknown package"
        return f"the plugin {self.entry_point.name!r} of the package {package}"

    @cached_property
    def path(self) -> Path:
        """The module's file; raises UserError where there is none. Packages that the module is in are imported."""
        module = self.entry_point.module
        place = module.replace(".", "/")
        if self.entry_point.dist is not None:
            for name in (f"{place}/__init__.py", f"{place}.py"):
                file = Path(str(self.entry_point.dist.locate_file(name)))
                if file.is_file():
                    return file.resolve()
        try:  # one that is installed to be edited stands elsewhere
            spec = importlib.util.find_spec(module)
        except Exception as error:
            raise UserError(f"{module} cannot be found: {type(error).__name__}: {error}", code="bad-code") from error
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            raise UserError(f"there is no module {module}", code="plugin-not-found")
        return Path(spec.origin).resolve()


def installed_plugins() -> tuple[InstalledPlugin, ...]:
    """Return what the installed packages name, in the order of their names."""
    return _plugins_on(tuple(sys.path))


@lru_cache(maxsize=4)
def _plugins_on(_: tuple[str, ...]) -> tuple[InstalledPlugin, ...]:
    found = sorted(entry_points(group=GROUP), key=lambda each: (each.dist.name if each.dist else "", each.name))
    return tuple(InstalledPlugin(each) for each in found)


def check_no_clash(folder: Path) -> None:
    """Raise UserError where another package has put files into a folder of Winnow's, as one of the same name does."""
    try:
        ours = distribution(DISTRIBUTION)
    except PackageNotFoundError:
        return
    listed = _listed(ours, folder)
    if not listed:
        return  # installed to be edited, or run from a checkout
    strange = {path for path in folder.glob("*.py") if path not in listed}
    if not strange:
        return
    for other in distributions():
        if other.name != ours.name and (shared := sorted(strange & _listed(other, folder))):
            raise UserError(
                f"the package {other.name} has put {shared[0].name} into Winnow's own folder {folder}, as both call "
                f"one of their folders {folder.name!r}; install {DISTRIBUTION} into an environment without "
                f"{other.name}, and reinstall it there",
                code="package-clash",
            )


def _listed(package: Distribution, folder: Path) -> set[Path]:
    """Return the files in a folder that a distribution lists as its own."""
    files: Iterable[Path] = (Path(str(each)) for each in package.files or ())
    inside = [each for each in files if each.parent.name == folder.name and len(each.parts) == 2]
    return {path for each in inside if (path := Path(str(package.locate_file(each))).resolve()).parent == folder}
