"""Paths and URLs under one interface, and the folders of the user: cache, assets, what belongs to a pool."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import cast

from benchmark.runtime.errors import UserError, one_line

URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


EXTRAS = {"s3": "s3", "s3a": "s3"}  # protocol -> our extra that brings its package


def as_location(text: str) -> Path:
    """Return a path for a plain path or `file://...`, a UPath for any other `protocol://...`; nothing is looked up.

    Raises ValueError for a protocol that is unknown or whose package is not installed.
    """
    match = URL.match(text)
    if match is None:
        try:
            return Path(text).expanduser()
        except RuntimeError as error:
            raise UserError(
                f"{text}: {text.partition('/')[0]} is not a user of this machine", code="not-found"
            ) from error
    protocol = match[1].lower()
    if protocol in ("file", "local"):
        return Path(text[match.end() :])
    import fsspec
    from upath import UPath

    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        package = getattr(error.__cause__, "name", None) or f"another package ({one_line(error)})"
        extra = f"'winnow-bench[{EXTRAS[protocol]}]'" if protocol in EXTRAS else package
        raise UserError(f"{protocol}:// needs {package}: pip install {extra}", code="package-missing") from error
    except ValueError as error:
        raise UserError(
            f"{text}: no storage is known by {protocol}://; s3://bucket/folder is one", code="unknown-storage"
        ) from error
    # Without a cache of listings: what was there a minute ago is no answer to what is there.
    return cast(Path, UPath(text.rstrip("/"), use_listings_cache=False))


def is_remote(location: Path) -> bool:
    """Tell whether a location is a URL's."""
    return not isinstance(location, Path)


def cache_dir() -> Path:
    """Return the user's cache folder: $WINNOW_CACHE_DIR, else the platform's (`~/.cache/winnow`)."""
    base = os.environ.get("WINNOW_CACHE_DIR")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "winnow"


def user_assets_dir() -> Path:
    """Return the user's asset folder: $WINNOW_ASSETS_DIR, else `assets` in the cache folder."""
    given = os.environ.get("WINNOW_ASSETS_DIR")
    return Path(given).expanduser() if given else cache_dir() / "assets"


def location_key(location: Path) -> str:
    """Return the sha256 that names a location in the cache folder."""
    spelt = str(location) if is_remote(location) else str(location.resolve())
    return hashlib.sha256(spelt.encode()).hexdigest()


def index_dir_of(pool_dir: Path) -> Path:
    """Return where a pool's index is written: in the pool, or in the cache where it is remote or read-only."""
    return _own_dir(pool_dir, "index")


def signals_dir_of(pool_dir: Path) -> Path:
    """Return where a pool's signals are written: in the pool, or in the cache where it is remote or read-only."""
    return _own_dir(pool_dir, "signals")


def is_writable(folder: Path) -> bool:
    """Tell whether files can be made in a folder; a URL counts as one where they cannot."""
    return not is_remote(folder) and os.access(folder, os.W_OK)


def _own_dir(pool_dir: Path, name: str) -> Path:
    if not is_remote(pool_dir):
        inside = pool_dir / name
        if is_writable(inside if inside.exists() else pool_dir):
            return inside
    return cache_dir() / "pools" / location_key(pool_dir) / name
