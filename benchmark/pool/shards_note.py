"""Where a pool's tars lie: in its `shards/`, or where its shards.json says."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmark.pool import shards
from benchmark.pool.shards import Tar, tell_contents
from benchmark.runtime.errors import NotFoundError, UserError
from benchmark.runtime.files import read_json, write_json
from benchmark.runtime.paths import as_location, is_remote

SHARDS_NOTE = "shards.json"  # in a pool whose tars lie elsewhere


@dataclass(frozen=True)
class ShardsNote:
    """Where a pool's tars lie when they are not its own, and how their samples are taken."""

    shards_dir: str  # a folder or a URL; relative ones from the pool's folder
    only: str | None = None  # a subset file in the pool's folder: other samples are none of this pool's
    assign_uids: bool = False  # from the hashes of image and caption, whatever the JSON says
    hash_images: bool = False  # those whose JSON names no sha256
    names: tuple[str, ...] | None = None  # of the tars below the folder; None: all at its top
    caption_field: str | None = None  # of the JSON, that captions are taken from; None: from the txt


def list_tars(pool_dir: Path) -> list[Tar]:
    """Return the pool's tars in its order; raises FileNotFoundError where it has none."""
    shards_dir, note = shards_dir_of(pool_dir), read_note(pool_dir)
    tars = shards.tars_in(shards_dir, None if note is None else note.names)
    if not tars:
        if not is_remote(pool_dir) and not pool_dir.is_dir():
            raise NotFoundError(f"there is no pool at {pool_dir}", code="pool-not-found")
        hint = import_hint(pool_dir)
        raise NotFoundError(
            f"{pool_dir} has no images: there is no tar in {shards_dir}; {tell_contents(shards_dir)}"
            + (f".{hint}" if hint else ""),
            code="no-tars",
        )
    return tars


def import_hint(folder: Path) -> str:
    """Say how a pool is made of a folder that holds tars itself; empty where it holds none."""
    if is_remote(folder) or not any(shards.is_tar_name(path.name) for path in folder.iterdir()):
        return ""
    return f" It holds tars: `winnow pool import --shards {folder} --out DIR` makes a pool of them."


def tars_left_out(pool_dir: Path) -> list[shards.LeftOut]:
    """Return the files in the folder of the pool's tars that look like more samples, and are not taken."""
    note = read_note(pool_dir)
    return [] if note is not None and note.names is not None else shards.files_left_out(shards_dir_of(pool_dir))


def has_tars(pool_dir: Path) -> bool:
    """Tell whether a pool has any tar; it may be metadata only."""
    note = read_note(pool_dir)
    try:
        return bool(list_tars(pool_dir))
    except FileNotFoundError as error:
        if note is not None:
            raise NotFoundError(
                f"the tars of {pool_dir} are gone: its {SHARDS_NOTE} says that they are in {note.shards_dir} ({error})",
                code="images-missing",
            ) from error
        return False


def shards_dir_of(pool_dir: Path) -> Path:
    """Return the folder of the pool's tars: `shards/`, or the one that its shards.json names."""
    note = read_note(pool_dir)
    return pool_dir / "shards" if note is None else _beside(pool_dir, note.shards_dir)


def read_note(pool_dir: Path) -> ShardsNote | None:
    """Read what a pool says of tars that lie elsewhere, or None where they are its own."""
    path = pool_dir / SHARDS_NOTE
    if not path.exists():
        return None
    value = read_json(path)
    try:
        note = ShardsNote(**value)
    except TypeError as error:
        raise UserError(f"{path} does not say where shards are: {error}", code="record-damaged") from error
    return note if note.names is None else replace(note, names=tuple(note.names))


def only_path(pool_dir: Path) -> Path | None:
    """Return the subset file outside of which the tars' samples are none of this pool's, or None where all are."""
    note = read_note(pool_dir)
    return None if note is None or note.only is None else _beside(pool_dir, note.only)


def write_note(pool_dir: Path, note: ShardsNote) -> None:
    """Write where a pool's tars lie when they are not its own."""
    later = ("names", "caption_field")  # fields; left out where they say nothing, so that notes stay the same bytes
    write_json(
        pool_dir / SHARDS_NOTE,
        {name: value for name, value in asdict(note).items() if value is not None or name not in later},
    )


def _beside(pool_dir: Path, text: str) -> Path:
    """Return a path or URL that stands in a pool's note."""
    location = as_location(text)
    return location if location.is_absolute() else pool_dir / text
