"""Assets: files that a strategy needs beside the pool, such as centroids; where they are looked for, and their hashes.

In this order: the option of that name, `<pool_dir>/assets`, the user's asset folder.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmark.registry import Strategy
from benchmark.stage import Json, sha256_of
from benchmark.storage import as_location, cache_dir, has_file, local_copy

ASSETS_NAME = "assets"


def user_assets_dir() -> Path:
    """Return the user's asset folder: $WINNOW_ASSETS_DIR, else `assets` in the cache folder."""
    given = os.environ.get("WINNOW_ASSETS_DIR")
    return Path(given).expanduser() if given else cache_dir() / ASSETS_NAME


def find_assets(strategy: Strategy, options: dict[str, Any], pool_dir: Path) -> dict[str, Json]:
    """Return the options with the path, or list of paths, of every asset; what is remote is copied to the cache.

    Raises FileNotFoundError where one is nowhere.
    """
    found = dict(options)
    missing = []
    for option, name in strategy.needed_assets(options).items():
        where = f"filters.{strategy.name}.{option}"
        paths = [local_copy(as_location(path)) for path in as_list(options.get(option))]
        for path in paths:
            if not path.is_file():
                raise FileNotFoundError(f"{where}: there is no file {path}")
        paths = paths or _look_up(name, pool_dir)
        if not paths:
            missing.append(f"{name} (option {where})")
            continue
        spelt = [str(path) for path in paths]
        found[option] = spelt if strategy.options[option].is_list else spelt[0]
    if missing:
        folders = " nor ".join(str(folder) for folder in _folders(pool_dir))
        raise FileNotFoundError(
            f"{strategy.kind} {strategy.name!r} needs {' and '.join(missing)}: neither in {folders}; "
            f"put {'it' if len(missing) == 1 else 'them'} there, or give the option"
        )
    return found


def hash_assets(strategy: Strategy, options: dict[str, Json]) -> dict[str, Json]:
    """Return the options with the sha256 of every asset instead of its path: wherever it lies, it is the same."""
    hashes = {option: [sha256_of(Path(path)) for path in as_list(options[option])] for option in strategy.assets}
    return options | {name: found if strategy.options[name].is_list else found[0] for name, found in hashes.items()}


def hash_default_assets(strategy: Strategy, options: dict[str, Json], pool_dir: Path) -> dict[str, Json]:
    """Return, by option, the hash as in `hash_assets` of the file that is found where none is given; None without."""
    defaults: dict[str, Json] = {}
    for option, name in strategy.needed_assets(options).items():
        hashes = [sha256_of(path) for path in _look_up(name, pool_dir)]
        defaults[option] = None if not hashes else hashes if strategy.options[option].is_list else hashes[0]
    return defaults


def as_list(value: Any) -> list[str]:
    """Take one path or hash for a list of one, and nothing for none."""
    return [] if not value else value if isinstance(value, list) else [value]


def _look_up(name: str, pool_dir: Path) -> list[Path]:
    """Return the first file of that name in the folders, or nothing."""
    # A filter opens its assets itself, so they are local.
    return [local_copy(folder / name) for folder in _folders(pool_dir) if has_file(folder / name)][:1]


def _folders(pool_dir: Path) -> list[Path]:
    return [pool_dir / ASSETS_NAME, user_assets_dir()]
