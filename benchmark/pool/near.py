"""Which pool may be meant by a folder that is not one: one in it, above it, beside it, or one with a similar name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmark.pool.shards_note import import_hint
from benchmark.runtime.names import nearest_name
from benchmark.runtime.paths import is_remote

MAX_NEAR = 5  # other pools that an error names


def spell_near(pool_dir: Path) -> str:
    """Say which folder may be meant by one that is not a pool: a pool in it, or one with a similar name beside it."""
    if is_remote(pool_dir):
        return ""
    if inside := _pools_in(pool_dir):
        return f" It holds {_listed(inside)}."
    if pool_dir.name in ("metadata", "shards") and pool_dir.is_dir():
        return f" Did you mean {pool_dir.parent}, which it is in?"
    if pool_dir.is_dir() and (hint := import_hint(pool_dir)):
        return hint
    spelt = pool_dir.absolute()
    while not spelt.parent.is_dir():  # the part of the path that is not there
        spelt = spelt.parent
    try:
        beside = [path for path in spelt.parent.iterdir() if path.is_dir() and path != spelt]
    except OSError:
        return ""  # a folder that may not be listed
    nearest = nearest_name(spelt.name, [path.name for path in beside])
    if nearest and spelt.name != pool_dir.name:  # a folder above it is mistyped
        return f"{nearest.removesuffix('?')} in {spelt.parent}?"
    pools = _pools_in(spelt.parent)
    return nearest or (f" Beside it are {_listed(pools)}." if pools else "")


def _pools_in(folder: Path) -> list[Path]:
    found = folder.iterdir() if folder.is_dir() else []
    return sorted(path for path in found if any((path / name).is_dir() for name in ("metadata", "shards")))


def _listed(paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - MAX_NEAR} more" if len(paths) > MAX_NEAR else ""
    return ", ".join(map(str, paths[:MAX_NEAR])) + more
