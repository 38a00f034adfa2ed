"""Assets: files that a strategy needs beside the pool, such as centroids; where they are looked for, and their hashes.

In this order: the option of that name, `<pool_dir>/assets`, the user's asset folder.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmark.registry import Strategy
from benchmark.signals import file_hash
from benchmark.stage import Json, sha256_of
from benchmark.storage import as_location, cache_dir, has_file, local_copy, state_of

ASSETS_NAME = "assets"
EVALUATION_SETS = "evaluation sets"  # a folder of them, <pool_dir>/eval where none is given
CLIP_WEIGHTS = "weights of the CLIP model {clip_model}"  # or none, where clip_model is None


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
        special = _find_special(name, options.get(option), pool_dir, where)
        if special is not None:
            found[option] = str(special[0]) if special else None
            continue
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
    hashes = {
        option: [_hash(name, Path(path)) for path in as_list(options[option])]
        for option, name in strategy.assets.items()
    }
    one = {name: found[0] if found else None for name, found in hashes.items()}
    return options | {name: found if strategy.options[name].is_list else one[name] for name, found in hashes.items()}


def hash_default_assets(strategy: Strategy, options: dict[str, Json], pool_dir: Path) -> dict[str, Json]:
    """Return, by option, the hash as in `hash_assets` of the file that is found where none is given; None without."""
    defaults: dict[str, Json] = {}
    for option, name in strategy.needed_assets(options).items():
        hashes = [_hash(name, path) for path in find_default(name, pool_dir)]
        defaults[option] = None if not hashes else hashes if strategy.options[option].is_list else hashes[0]
    return defaults


def find_default(name: str, pool_dir: Path) -> list[Path]:
    """Return the file or folder that is found where no option names another, or nothing."""
    try:
        special = _find_special(name, None, pool_dir, name)
    except (FileNotFoundError, ValueError):
        return []
    return _look_up(name, pool_dir) if special is None else special


def default_place(name: str) -> str:
    """Say where a strategy's asset is looked for while no option names another."""
    if name == EVALUATION_SETS:
        return "<pool_dir>/eval"
    if name == CLIP_WEIGHTS:
        return "those that clip_model brings, if it does"
    return f"{name} in <pool_dir>/assets or {user_assets_dir()}"


def as_list(value: Any) -> list[str]:
    """Take one path or hash for a list of one, and nothing for none."""
    return [] if not value else value if isinstance(value, list) else [value]


def _find_special(name: str, given: str | None, pool_dir: Path, where: str) -> list[Path] | None:
    """Return what an asset that is no plain file was found as; None where the name is a plain file's."""
    if name == EVALUATION_SETS:
        from benchmark.decontamination import find_evaluation_sets

        return [find_evaluation_sets(given, pool_dir, where)]
    if name.startswith(CLIP_WEIGHTS.format(clip_model="")):
        from benchmark.encoders import find_weights

        weights = find_weights(name.removeprefix(CLIP_WEIGHTS.format(clip_model="")), given, where)
        return [] if weights is None else [weights]
    return None


def _hash(name: str, path: Path) -> str:
    if name == EVALUATION_SETS:
        from benchmark.decontamination import hash_evaluation_images

        return hash_evaluation_images(path)
    return sha256_of(path) if name != CLIP_WEIGHTS else file_hash(path, state_of(path))


def _look_up(name: str, pool_dir: Path) -> list[Path]:
    """Return the first file of that name in the folders, or nothing."""
    # A filter opens its assets itself, so they are local.
    return [local_copy(folder / name) for folder in _folders(pool_dir) if has_file(folder / name)][:1]


def _folders(pool_dir: Path) -> list[Path]:
    return [pool_dir / ASSETS_NAME, user_assets_dir()]
