"""A pool that is being downloaded: its record on disk, its shards and what is known of each row."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmark.runtime.errors import NotFoundError, UserError
from benchmark.runtime.files import Json, read_json, write_json
from benchmark.runtime.records import describe_differences
from benchmark.runtime.tables import read_parquet

DOWNLOAD_RECORD_NAME = "download.json"
PARTIAL_NAME = ".partial"
GB = 10**9
SHARD_DIGITS, KEY_DIGITS = 8, 4

# No further try changes these: other bytes than the crawl's, a site that says no, a page that is not there. An image
# of the right sha256 that cannot be decoded will not be decodable either.
PERMANENT = (
    "hash mismatch",
    "Use of image disallowed",
    "HTTP Error 404",
    "HTTP Error 410",
    "unknown url type",
    "'ascii' codec can't encode",
    "URL can't contain",
    "no host given",
)

SIDE_SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("face_bboxes", pa.list_(pa.list_(pa.float64()))),
        ("caption", pa.string()),
        ("url", pa.string()),
        ("key", pa.string()),
        ("status", pa.string()),
        ("error_message", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("exif", pa.string()),
        ("sha256", pa.string()),  # of a sample that failed: the one that was expected
    ]
)


@dataclass(frozen=True)
class HubFile:
    """A file of the dataset repository; size and sha256 as the hub or, with --skip-metadata, the disk has them."""

    path: str
    size: int
    sha256: str | None


@dataclass(frozen=True)
class Round:
    """Shards that were planned together: the first round tries every row, a later one what failed in the one before."""

    first_shard: int
    shards: int
    rows: int

    @property
    def numbers(self) -> range:
        return range(self.first_shard, self.first_shard + self.shards)


@dataclass(frozen=True)
class ImageSettings:
    """What decides which images a pool holds: recorded, and the same for all its shards."""

    shard_size: int
    keep_faces: bool
    keep_changed: bool
    user_agent_token: str
    disallowed_header_directives: list[str]
    image_size: int = 512


class Download:
    """A pool's folder while it is being downloaded, with its record."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.record_path = out / DOWNLOAD_RECORD_NAME
        self.record: dict[str, Json] = read_json(self.record_path) if self.record_path.exists() else {}

    @property
    def metadata_dir(self) -> Path:
        return self.out / "metadata"

    @property
    def shards_dir(self) -> Path:
        return self.out / "shards"

    @property
    def partial_dir(self) -> Path:
        return self.out / PARTIAL_NAME

    @property
    def files(self) -> dict[str, HubFile]:
        """Return the metadata files and .npz of the record by their names here."""
        return {name: HubFile(**value) for name, value in self.record.get("files", {}).items()}

    @property
    def rounds(self) -> list[Round]:
        return [Round(**value) for value in self.record.get("rounds", [])]

    @cached_property
    def metadata_paths(self) -> list[Path]:
        """Return the metadata files in the order of names; raises FileNotFoundError where one is missing."""
        paths = [self.metadata_dir / name for name in sorted(self.files) if name.endswith(".parquet")]
        if missing := [path.name for path in paths if not path.exists()]:
            raise NotFoundError(
                f"{self.metadata_dir} lacks {len(missing)} of {len(paths)} metadata files ({missing[0]}); "
                "run without --skip-metadata and --report to fetch them",
                code="metadata-missing",
            )
        return paths

    def count_rows(self) -> list[int]:
        """Return the rows of each metadata file, from their footers."""
        return self._rows

    @cached_property
    def _rows(self) -> list[int]:
        return [pq.read_metadata(path).num_rows for path in self.metadata_paths]

    def save(self, **changes: Json) -> None:
        """Change the record, on disk as well."""
        self.record = {**self.record, **changes}
        write_json(self.record_path, self.record)

    def add_round(self, new: Round) -> None:
        self.save(rounds=[*self.record.get("rounds", []), asdict(new)])

    def shard_path(self, number: int, suffix: str) -> Path:
        return self.shards_dir / f"{number:08d}{suffix}"

    def is_done(self, number: int) -> bool:
        return self.shard_path(number, "_stats.json").exists()

    def read_side(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        return read_parquet(self.shard_path(number, ".parquet"), columns)


def check_origin(download: Download, repo: str | None, revision: str | None, skip_metadata: bool) -> tuple[str, str]:
    """Return repository and revision of this pool; raises ValueError where the folder holds another."""
    out, record = download.out, download.record
    if not record:
        there = next((path for path in (*out.glob("metadata/*.parquet"), *out.glob("shards/*.tar"))), None)
        if there and (not skip_metadata or there.suffix == ".tar"):
            raise UserError(
                f"{out} holds {there.relative_to(out)} but no {DOWNLOAD_RECORD_NAME}: it was not downloaded by this "
                "program; choose another folder"
                + ("" if there.suffix == ".tar" else ", or give --skip-metadata to use it"),
                code="folder-not-empty",
            )
        if repo is None:
            raise UserError(f"nothing says what {out} is to hold; give --scale or --repo", code="option-missing")
        return repo, revision or "main"
    wanted = {"repo": repo or record["repo"], "revision": revision or record["revision"]}
    if wanted["revision"] == record.get("commit"):
        wanted["revision"] = record["revision"]
    if shown := describe_differences(wanted, {name: record[name] for name in wanted}):
        raise UserError(
            f"{out} is another pool ({DOWNLOAD_RECORD_NAME}): {shown}; choose another folder", code="record-differs"
        )
    return record["repo"], record["revision"]


def failed_rows(table: pa.Table) -> pa.Table:
    """Return the rows of a side parquet that failed and may succeed in another try."""
    return table.filter(pc.and_(pc.not_equal(table["status"], "success"), pc.invert(is_permanent(table))))


def is_permanent(table: pa.Table) -> pa.ChunkedArray:
    """Tell for each row of a side parquet whether it failed for good."""
    permanent = pc.equal(table["status"], "failed_to_resize")
    message = pc.fill_null(table["error_message"], "")
    for part in PERMANENT:
        permanent = pc.or_(permanent, pc.match_substring(message, part))
    return permanent


def host_of(url: str | None) -> str:
    """Return a url's host in lower case, or "" where it has none."""
    try:
        return urlsplit(url or "").hostname or ""
    except ValueError:
        return ""


def need_space(folder: Path, needed: float, what: str, remedy: str = "") -> None:
    """Raise OSError where the disk has less room than `needed` bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"{what} may need {needed / GB:,.1f} GB and the disk of {folder} has {free / GB:,.1f} GB left; "
            f"make room or choose another disk{remedy}",
        )
