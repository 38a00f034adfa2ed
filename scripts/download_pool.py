"""Download a CommonPool: metadata from the Hugging Face hub, then the images from the web by img2dataset.

    python scripts/download_pool.py --scale small --out pools/small --dry-run
    python scripts/download_pool.py --make-venv
    python scripts/download_pool.py --scale small --out pools/small
    python scripts/download_pool.py --out pools/small --retry

Killed and started again it goes on: files and shards that are complete stay. A shard lies in `shards/` only when it is
whole, its `_stats.json` last. Shard numbers follow from the metadata: every metadata file in the order of names, cut
into shards of 10,000 rows, as img2dataset counts them for DataComp. `--retry` tries again what may still succeed, in
shards after the last. Images are kept as DataComp keeps them (longer side at most 512, JPEG, faces blurred, the opt-out
headers noai, noimageai, noindex and noimageindex respected), and only where their sha256 is the metadata's.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a checkout, the package not installed

from benchmark.names import nearest_name
from benchmark.pool import cache_dir
from benchmark.stage import (
    Json,
    describe_differences,
    locked,
    read_json,
    rename,
    say,
    sha256_of,
    write_json,
)
from benchmark.tables import read_parquet
from benchmark.tars import iter_members, write_tar

RECORD_NAME = "download.json"
REPORT_NAME = "download_report.json"
PARTIAL_NAME = ".partial"
IMG2DATASET = "img2dataset>=1.47,<2"
RUNNER_PATH = Path(__file__).resolve().with_name("download_runner.py")

IMAGE_SIZE = 512
SHARD_SIZE = 10_000
SHARD_DIGITS, KEY_DIGITS = 8, 4
# img2dataset's default since 1.42, and DataComp's, which gave none.
OPT_OUT_DIRECTIVES = ["noai", "noimageai", "noindex", "noimageindex"]
USER_AGENT_TOKEN = "img2dataset"  # the name by which sites address such downloads in X-Robots-Tag

DENIED = "on the deny list"
LOST = "img2dataset lost this sample"
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
class ScaleFigures:
    """What DataComp publishes of a scale's size; bytes are decimal."""

    rows: int
    files: int  # of metadata, and as many .npz
    metadata_bytes: int
    feature_bytes: int
    tar_bytes: int  # were every image still there


GB = 10**9
SCALES = {
    "small": ScaleFigures(12_800_000, 26, 3 * GB, 75 * GB, 450 * GB),
    "medium": ScaleFigures(128_000_000, 253, 30 * GB, 750 * GB, 4_500 * GB),
    "large": ScaleFigures(1_280_000_000, 2_530, 300 * GB, 7_500 * GB, 45_000 * GB),
    "xlarge": ScaleFigures(12_800_000_000, 25_300, 3_000 * GB, 75_000 * GB, 450_000 * GB),
}
FULL_BYTES = 64 << 20  # less room than this, and a shard that failed did so for want of it
BYTES_PER_PAIR = SCALES["small"].tar_bytes / SCALES["small"].rows


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
    image_size: int = IMAGE_SIZE


@dataclass(frozen=True)
class Effort:
    """How hard a run tries; may differ from one run to the next."""

    processes: int
    threads: int
    timeout: float  # seconds for one answer of a socket
    deadline: float  # seconds for a url with its redirects and retries
    retries: int


class RunnerError(Exception):
    """The process that runs img2dataset ended in the middle of a shard."""


class Download:
    """A pool's folder while it is being downloaded, with its record."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.record_path = out / RECORD_NAME
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
            raise FileNotFoundError(
                f"{self.metadata_dir} lacks {len(missing)} of {len(paths)} metadata files ({missing[0]}); "
                "run without --skip-metadata and --report to fetch them"
            )
        return paths

    @cached_property
    def rows_per_file(self) -> list[int]:
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


# Metadata


def check_origin(download: Download, repo: str | None, revision: str | None, skip_metadata: bool) -> tuple[str, str]:
    """Return repository and revision of this pool; raises ValueError where the folder holds another."""
    out, record = download.out, download.record
    if not record:
        there = next((path for path in (*out.glob("metadata/*.parquet"), *out.glob("shards/*.tar"))), None)
        if there and (not skip_metadata or there.suffix == ".tar"):
            raise ValueError(
                f"{out} holds {there.relative_to(out)} but no {RECORD_NAME}, so it was not downloaded by this program; "
                "choose another folder" + ("" if there.suffix == ".tar" else ", or give --skip-metadata to use it")
            )
        if repo is None:
            raise ValueError(f"nothing says what {out} is to hold; give --scale or --repo")
        return repo, revision or "main"
    wanted = {"repo": repo or record["repo"], "revision": revision or record["revision"]}
    if wanted["revision"] == record.get("commit"):
        wanted["revision"] = record["revision"]
    if shown := describe_differences(wanted, {name: record[name] for name in wanted}):
        raise ValueError(f"{out} is another pool ({RECORD_NAME}): {shown}; choose another folder")
    return record["repo"], record["revision"]


def fetch_metadata(download: Download, repo: str, revision: str, *, features: bool) -> None:
    """Bring every metadata file of the repository (and every .npz) that is not there in its full size.

    Each is checked against the hub's size and sha256 before it gets its name.
    """
    if not download.files:
        commit, files = list_hub(repo, revision)
        download.save(
            repo=repo,
            revision=revision,
            commit=commit,
            files={name: asdict(file) for name, file in sorted(files.items())},
        )
    commit = download.record["commit"]
    if features and commit is None:
        raise ValueError(f"the metadata of {download.out} came by --skip-metadata; put the .npz beside it by hand")
    wanted = {name: file for name, file in download.files.items() if features or name.endswith(".parquet")}
    missing = {
        name: file
        for name, file in wanted.items()
        if not (path := download.metadata_dir / name).exists() or path.stat().st_size != file.size
    }
    there = len(wanted) - len(missing)
    say(f"metadata: {there:,} of {len(wanted):,} files are there" + (", fetching the others" if missing else ""))
    if not missing:
        return
    need_space(download.out, sum(file.size for file in missing.values()), "the metadata")
    download.metadata_dir.mkdir(parents=True, exist_ok=True)

    def fetch(item: tuple[str, HubFile]) -> None:
        fetch_file(repo, commit, item[1], download.partial_dir / "hub", download.metadata_dir / item[0])

    with (
        hub_errors(repo),
        tqdm(total=len(missing), desc="metadata", unit="file", disable=None) as bar,
        ThreadPoolExecutor(8) as pool,
    ):
        for _ in pool.map(fetch, missing.items()):
            bar.update()


def list_hub(repo: str, revision: str) -> tuple[str, dict[str, HubFile]]:
    """Return the commit that a revision names, and its .parquet and .npz files by the names that they get here."""
    with hub_errors(repo):
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        hub = HfApi()
        commit = str(hub.dataset_info(repo, revision=revision).sha)
        entries = hub.list_repo_tree(repo, recursive=True, revision=commit, repo_type="dataset")
        files = [
            HubFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else None)
            for entry in entries
            if isinstance(entry, RepoFile) and entry.path.endswith((".parquet", ".npz"))
        ]
    if not any(file.path.endswith(".parquet") for file in files):
        raise ValueError(f"the dataset {repo} has no metadata: there is no .parquet in revision {revision}")
    return commit, flat_names(files)


def flat_names(files: Iterable[HubFile]) -> dict[str, HubFile]:
    """Name files of sub-folders in one folder: by their base names, with the folder in front where two share one."""
    files = list(files)
    shared = Counter(Path(file.path).name for file in files)
    stems = {Path(name).stem for name, count in shared.items() if count > 1}  # a parquet and its .npz share a name
    return {
        file.path.replace("/", "_") if Path(file.path).stem in stems else Path(file.path).name: file for file in files
    }


def fetch_file(repo: str, commit: str, file: HubFile, partial_dir: Path, target: Path) -> None:
    """Fetch one file; raises ValueError where it arrives twice with other bytes than the hub has."""
    from huggingface_hub import hf_hub_download

    for attempt in range(2):
        got = Path(
            hf_hub_download(
                repo,
                file.path,
                repo_type="dataset",
                revision=commit,
                local_dir=partial_dir,
                force_download=attempt > 0,
            )
        )
        size = got.stat().st_size
        if size == file.size and (file.sha256 is None or sha256_of(got) == file.sha256):
            rename(got, target)
            return
    raise ValueError(
        f"{file.path} of {repo} arrived with other bytes than the hub says ({size:,} bytes, {file.size:,} expected, "
        f"sha256 {file.sha256}); run again, and without a proxy if there is one"
    )


@contextmanager
def hub_errors(repo: str) -> Iterator[None]:
    """Say in one sentence what the hub or the way to it refuses."""
    try:
        from huggingface_hub.errors import (
            EntryNotFoundError,
            HfHubHTTPError,
            HFValidationError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError as error:
        raise ValueError(
            f"metadata comes by huggingface_hub, which cannot be imported ({error}); "
            "install it with: pip install 'winnow-bench[hf]'"
        ) from error
    # Among the bases are the errors of whichever HTTP library the installed version works with.
    unreachable: tuple[type[Exception], ...] = (EntryNotFoundError, OSError, *HfHubHTTPError.__bases__)
    try:
        yield
    except RevisionNotFoundError as error:
        raise ValueError(f"the dataset {repo} has no such revision at the hub; see its page for those there") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ValueError(f"the hub has no dataset {repo!r} that you may read; check --repo, or log in") from error
    except unreachable as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        text = " ".join(str(error).split())[:200]
        raise ConnectionError(f"the hub did not give {repo} ({text}); run again, and what is there stays") from error


def adopt_metadata(download: Download, repo: str, revision: str) -> None:
    """Take the metadata that lies there as it is; raises where there is none or it has changed since."""
    there = {
        path.name: path.stat().st_size
        for pattern in ("*.parquet", "*.npz")
        for path in download.metadata_dir.glob(pattern)
    }
    if not any(name.endswith(".parquet") for name in there):
        raise FileNotFoundError(f"{download.metadata_dir} has no *.parquet; run without --skip-metadata to fetch them")
    if not download.files:
        files = {name: asdict(HubFile(name, size, None)) for name, size in sorted(there.items())}
        download.save(repo=repo, revision=revision, commit=None, files=files)
    for name, file in download.files.items():
        if name.endswith(".parquet") and there.get(name) != file.size:
            raise ValueError(
                f"{download.metadata_dir / name} has {there.get(name, 0):,} bytes, {file.size:,} by {RECORD_NAME}; "
                "run without --skip-metadata to fetch it anew"
            )
    if extra := {name for name in there if name.endswith(".parquet")} - set(download.files):
        raise ValueError(f"{download.metadata_dir} has {min(extra)}, which is not in {RECORD_NAME}; take it away")


# Images


def plan_images(download: Download, settings: ImageSettings) -> None:
    """Fix the settings and the first round's shards; raises ValueError where others are recorded."""
    now = asdict(settings)
    if recorded := download.record.get("settings"):
        if shown := describe_differences(now, recorded):
            raise ValueError(
                f"{download.out} was begun with other settings ({RECORD_NAME}): {shown}; "
                "repeat those, or choose another folder"
            )
        return
    needed = ["uid", "url", "text"]
    needed += [] if settings.keep_faces else ["face_bboxes"]
    needed += [] if settings.keep_changed else ["sha256"]
    remedies = {"face_bboxes": "; --keep-faces does without", "sha256": "; --keep-changed does without"}
    for path in download.metadata_paths:
        names = pq.read_schema(path).names
        for column in needed:
            if column not in names:
                raise ValueError(f"{path} has no column {column!r}{remedies.get(column, '')}; it has {names}")
    rows = download.rows_per_file
    shards = sum(-(-each // settings.shard_size) for each in rows)
    download.save(settings=now, rounds=[asdict(Round(0, shards, sum(rows)))])


def plan_retry(download: Download, deny: DenyList) -> bool:
    """Plan a round over what failed in the last one and may succeed; tell whether there is anything to do."""
    last = download.rounds[-1]
    rows, allowed = 0, 0
    for number in last.numbers:
        table = failed_rows(download.read_side(number, ["url", "status", "error_message"]))
        rows += len(table)
        allowed += len(table) - sum(map(deny.covers, table["url"].to_pylist()))
    if not allowed:
        say(f"nothing to retry: of {last.rows:,} pairs none failed that may succeed")
        return False
    shards = -(-rows // download.record["settings"]["shard_size"])
    # Denied ones go along, so that the last round alone knows all that is left, also with another deny list.
    download.add_round(Round(last.first_shard + last.shards, shards, rows))
    say(f"retry: {allowed:,} pairs that failed, in shards from {last.first_shard + last.shards:08d}")
    return True


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


class DenyList:
    """Hosts (with all below them) and url prefixes that are not asked."""

    def __init__(self, lines: Iterable[str] = ()) -> None:
        entries = [entry for line in lines if (entry := line.partition("#")[0].strip())]
        self.prefixes = tuple(entry for entry in entries if "://" in entry)
        self.hosts = {entry.lower().strip(".") for entry in entries if "://" not in entry}
        for host in self.hosts:
            if "/" in host or " " in host:
                raise ValueError(f"deny list: {host!r} is neither a host nor a url; write example.com or http://…")

    def covers(self, url: str | None) -> bool:
        """Tell whether this url is not to be asked."""
        if url and self.prefixes and url.startswith(self.prefixes):
            return True
        parts = host_of(url).split(".")
        return bool(self.hosts) and any(".".join(parts[first:]) in self.hosts for first in range(len(parts)))


def host_of(url: str | None) -> str:
    """Return a url's host in lower case, or "" where it has none."""
    try:
        return urlsplit(url or "").hostname or ""
    except ValueError:
        return ""


def iter_jobs(download: Download, number: int) -> Iterator[tuple[int, pa.Table]]:
    """Yield the shards of a round that are not done: (number, rows with uid, face_bboxes, caption, url, sha256)."""
    round_ = download.rounds[number]
    shard_size = download.record["settings"]["shard_size"]
    if number > 0:
        tables = retry_tables(download, download.rounds[number - 1], shard_size)
        for shard, table in zip(round_.numbers, tables, strict=True):
            if not download.is_done(shard):
                yield shard, table
        return
    shard = 0
    for path, rows in zip(download.metadata_paths, download.rows_per_file, strict=True):
        shards = range(shard, shard + -(-rows // shard_size))
        shard = shards.stop
        if all(map(download.is_done, shards)):
            continue
        table = read_wanted(path)
        for place, each in enumerate(shards):
            if not download.is_done(each):
                yield each, table.slice(place * shard_size, shard_size)


def read_wanted(path: Path) -> pa.Table:
    """Read a metadata file's columns for the download, null where it lacks one."""
    names = pq.read_schema(path).names
    columns = {"uid": "uid", "face_bboxes": "face_bboxes", "caption": "text", "url": "url", "sha256": "sha256"}
    table = read_parquet(path, [source for source in columns.values() if source in names])
    return pa.table(
        {
            name: table[source].cast(SIDE_SCHEMA.field(name).type)
            if source in names
            else pa.nulls(len(table), SIDE_SCHEMA.field(name).type)
            for name, source in columns.items()
        }
    )


def retry_tables(download: Download, last: Round, shard_size: int) -> Iterator[pa.Table]:
    """Yield what failed in a finished round and may succeed, in its order, in tables of one shard each."""
    waiting: list[pa.Table] = []
    for shard in last.numbers:
        table = failed_rows(download.read_side(shard))
        if "face_bboxes" not in table.column_names:
            table = table.append_column("face_bboxes", pa.nulls(len(table), SIDE_SCHEMA.field("face_bboxes").type))
        waiting.append(table.select(["uid", "face_bboxes", "caption", "url", "sha256"]))
        while sum(map(len, waiting)) >= shard_size:
            together = pa.concat_tables(waiting)
            yield together.slice(0, shard_size)
            waiting = [together.slice(shard_size)]
    if sum(map(len, waiting)):
        yield pa.concat_tables(waiting)


class Runner:
    """A process of img2dataset's own Python that downloads one shard after another."""

    def __init__(self, python: Path, settings: dict[str, Json], log_path: Path) -> None:
        self.log_path = log_path
        # Not in the terminal's process group: Ctrl-C is this program's business, and a runner ends with its input.
        with log_path.open("w") as log:
            self.process = subprocess.Popen(
                [str(python), str(RUNNER_PATH)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self.version = str(self.ask(settings)["version"])

    def ask(self, message: dict[str, Json]) -> dict[str, Json]:
        """Send a line and wait for the answer; raises RunnerError with its last words."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None and stdout is not None
        try:
            stdin.write(json.dumps(message) + "\n")
            stdin.flush()
        except (OSError, ValueError) as error:
            raise RunnerError(self.last_words()) from error
        line = stdout.readline()
        if not line:
            raise RunnerError(self.last_words())
        return json.loads(line)

    def last_words(self) -> str:
        lines = self.log_path.read_text(errors="replace").split("\n") if self.log_path.exists() else []
        said = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        return f"exit status {self.process.poll()}, {said[:300]}"

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        streams: list[IO[str] | None] = [self.process.stdin, self.process.stdout]
        for stream in streams:
            if stream is not None:
                with suppress(OSError):  # a line that the dead process did not read
                    stream.close()


class Crew:
    """Runners that share the shards of a round."""

    def __init__(self, download: Download, python: Path, effort: Effort, deny: DenyList) -> None:
        self.download = download
        self.python = python
        self.effort = effort
        self.deny = deny
        settings = download.record["settings"]
        self.blur, self.verify = not settings["keep_faces"], not settings["keep_changed"]
        self.settings = {
            "image_size": settings["image_size"],
            "user_agent_token": settings["user_agent_token"],
            "disallowed_header_directives": settings["disallowed_header_directives"] or None,
            "blur": self.blur,
            "verify": self.verify,
            **asdict(effort),
        }
        self.lock = threading.Lock()
        self.runners: set[Runner] = set()
        self.is_stopped = False
        self.error: BaseException | None = None

    def work(self, jobs: Iterator[tuple[int, pa.Table]], total: int, done: int) -> None:
        """Download all shards of an iterator; the first error ends it, with what is complete in place."""
        bar = tqdm(total=total, initial=done, desc="images", unit="shard", disable=None)

        def member(number: int) -> None:
            runner: Runner | None = None
            try:
                while True:
                    with self.lock:
                        job = None if self.is_stopped else next(jobs, None)
                    if job is None:
                        return
                    runner = self.download_shard(*job, runner, number)
                    with self.lock:
                        bar.update()
            except BaseException as error:
                with self.lock:
                    self.error = self.error or error  # the others end because of the first
                self.stop()

        with bar, ThreadPoolExecutor(self.effort.processes) as pool:
            futures = [pool.submit(member, number) for number in range(min(self.effort.processes, total - done))]
            try:
                for future in futures:
                    future.result()
            finally:
                self.stop()
        if self.error:
            raise self.error

    def stop(self) -> None:
        with self.lock:
            self.is_stopped = True
            runners, self.runners = self.runners, set()
        for runner in runners:
            runner.close()

    def start(self, number: int) -> Runner:
        log_path = self.download.partial_dir / f"runner-{number}.log"
        try:
            runner = Runner(self.python, self.settings, log_path)
        except RunnerError as error:
            raise ChildProcessError(f"img2dataset does not start with {self.python}: {error}") from error
        if not (1, 47) <= tuple(map(int, runner.version.split(".")[:2])) < (2,):
            runner.close()
            raise ValueError(
                f"{self.python} has img2dataset {runner.version}, and 1.47 or later is needed; "
                "install that there, or make an environment with --make-venv"
            )
        with self.lock:
            is_stopped = self.is_stopped
            self.runners.add(runner)
        if is_stopped:
            runner.close()
        return runner

    def download_shard(self, shard: int, rows: pa.Table, runner: Runner | None, number: int) -> Runner | None:
        """Bring one shard into place; return the runner for the next one."""
        staging_dir = self.download.partial_dir / f"{shard:08d}"
        denied = [self.deny.covers(url) for url in rows["url"].to_pylist()]
        asked = [place for place, is_denied in enumerate(denied) if not is_denied]
        for attempt in range(2):
            shutil.rmtree(staging_dir, ignore_errors=True)
            staging_dir.mkdir(parents=True)
            if not asked:
                break
            input_path = staging_dir / "rows.arrow"
            with pa.OSFile(str(input_path), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
                writer.write_table(rows.take(asked))
            try:
                runner = runner or self.start(number)
                paths = {"input_path": str(input_path), "out_dir": str(staging_dir)}
                # Far more than all deadlines together: img2dataset itself is known to stand still at times.
                patience = 600 + len(asked) * (self.effort.deadline / self.effort.threads + 0.5)
                guard = threading.Timer(patience, runner.process.kill)
                guard.daemon = True
                guard.start()
                try:
                    runner.ask({"shard": shard, "places": asked, **paths})
                finally:
                    guard.cancel()
                break
            except RunnerError as error:
                if runner and not self.is_stopped:
                    with self.lock:
                        self.runners.discard(runner)
                    runner.close()
                runner = None
                if attempt or self.is_stopped:
                    self.refuse_full_disk(shard)
                    raise ChildProcessError(
                        f"img2dataset died twice at shard {shard:08d} ({error}); run the same line again to go on"
                    ) from error
        self.finish_shard(shard, rows, asked, staging_dir)
        return runner

    def refuse_full_disk(self, shard: int) -> None:
        """Raise OSError where a shard failed on a disk that is as good as full."""
        if shutil.disk_usage(self.download.out).free < FULL_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.download.partial_dir / f"{shard:08d}"))

    def finish_shard(self, shard: int, rows: pa.Table, asked: list[int], staging_dir: Path) -> None:
        """Check a shard, complete its side parquet and statistics, and move it in place, the statistics last."""
        names = {suffix: f"{shard:08d}{suffix}" for suffix in (".tar", ".parquet", "_stats.json")}
        tar_path, side_path = staging_dir / names[".tar"], staging_dir / names[".parquet"]
        first_key = shard * 10**KEY_DIGITS
        results: dict[int, dict[str, Json]] = {}
        expected = set(asked)
        if asked:
            for row in pq.read_table(side_path).to_pylist():
                results[int(row["key"]) - first_key] = row
        else:
            write_tar(tar_path, [])
        # img2dataset takes an error while writing, such as a full disk, for a failed sample: count what is there.
        written = {member.key for member in iter_members(tar_path) if member.extension == "jpg"}
        succeeded = {row["key"] for row in results.values() if row["status"] == "success"}
        if written != succeeded:
            self.refuse_full_disk(shard)
            raise ChildProcessError(
                f"shard {shard:08d}: img2dataset counts {len(succeeded)} images, its tar holds {len(written)}; "
                "run the same line again to download it anew"
            )
        for place, row in enumerate(rows.to_pylist()):
            if place in results:
                # img2dataset leaves the sha256 of what failed empty; a retry needs it.
                results[place]["sha256"] = results[place]["sha256"] or row["sha256"]
            else:
                reason = LOST if place in expected else DENIED
                key = f"{first_key + place:0{SHARD_DIGITS + KEY_DIGITS}d}"
                results[place] = {**row, "key": key, "status": "failed_to_download", "error_message": reason}
        whole = [results[place] for place in range(len(rows))]
        schema = SIDE_SCHEMA if self.blur else SIDE_SCHEMA.remove(SIDE_SCHEMA.get_field_index("face_bboxes"))
        pq.write_table(pa.Table.from_pylist(whole, schema=schema), side_path)
        write_json(staging_dir / names["_stats.json"], self.stats(whole, staging_dir / names["_stats.json"]))
        self.download.shards_dir.mkdir(exist_ok=True)
        for name in names.values():
            rename(staging_dir / name, self.download.shards_dir / name)
        shutil.rmtree(staging_dir)

    @staticmethod
    def stats(rows: list[dict[str, Json]], path: Path) -> dict[str, Json]:
        """Return img2dataset's statistics of a shard, counted over all its rows."""
        timing = read_json(path) if path.exists() else {}
        counts = Counter(row["status"] for row in rows)
        return {
            "count": len(rows),
            "successes": counts["success"],
            "failed_to_download": counts["failed_to_download"],
            "failed_to_resize": counts["failed_to_resize"],
            "duration": timing.get("duration", 0.0),
            "start_time": timing.get("start_time"),
            "end_time": timing.get("end_time"),
            "status_dict": dict(Counter(row["error_message"] or row["status"] for row in rows).most_common()),
        }


def download_images(download: Download, python: Path, effort: Effort, deny: DenyList, *, retry: bool) -> None:
    """Finish the round that is under way, or with `retry` plan and do another where all are done."""
    unfinished = [number for number, each in enumerate(download.rounds) if not all(map(download.is_done, each.numbers))]
    if not unfinished:
        if not retry:
            say("images: every shard is there; --retry tries again what failed")
            return
        if not plan_retry(download, deny):
            return
        unfinished = [len(download.rounds) - 1]
    elif retry:
        say("images: going on with what was under way; give --retry once more when it is done")
    for number in unfinished:
        round_ = download.rounds[number]
        done = sum(map(download.is_done, round_.numbers))
        say(f"images: {done:,} of {round_.shards:,} shards are there, {round_.rows:,} pairs in all")
        Crew(download, python, effort, deny).work(iter_jobs(download, number), round_.shards, done)


def python_of(img2dataset: Path) -> Path:
    """Return the Python beside img2dataset's command; raises FileNotFoundError that says how to get one."""
    for folder in (img2dataset.expanduser().absolute().parent, img2dataset.expanduser().resolve().parent):
        if img2dataset.expanduser().exists() and (folder / "python").exists():
            return folder / "python"
    raise FileNotFoundError(
        f"there is no img2dataset at {img2dataset} in an environment of its own; make one with: "
        "python scripts/download_pool.py --make-venv"
    )


def make_venv(venv_dir: Path) -> Path:
    """Make a virtual environment with img2dataset; return its command's path."""
    command = venv_dir / "bin" / "img2dataset"
    if not command.exists():
        say(f"installing img2dataset into {venv_dir}")
        # img2dataset uses a module that Python 3.13 took out of its library.
        packages = [IMG2DATASET, "standard-imghdr; python_version >= '3.13'"]
        for step in (
            [sys.executable, "-m", "venv", str(venv_dir)],
            [str(venv_dir / "bin" / "python"), "-m", "pip", "install", "--quiet", *packages],
        ):
            if code := subprocess.run(step, stdout=sys.stderr).returncode:
                raise ChildProcessError(f"{' '.join(step)} failed with exit status {code}; see above")
    return command


def need_space(folder: Path, needed: float, what: str, remedy: str = "") -> None:
    """Raise OSError where the disk has less room than `needed` bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"{what} may need {needed / GB:,.1f} GB and the disk of {folder} has {free / GB:,.1f} GB left; "
            f"make room or choose another disk{remedy}"
        )


# Report


def report(download: Download) -> dict[str, Json]:
    """Count what arrived, from the side parquets: each pair once, by its last try."""
    statuses: Counter[str] = Counter()
    failures: Counter[tuple[str, str]] = Counter()  # by host and message
    tar_bytes = shards_done = left = 0
    rounds = download.rounds
    for number, round_ in enumerate(rounds):
        tried = 0
        for shard in filter(download.is_done, round_.numbers):
            table = download.read_side(shard, ["url", "status", "error_message"])
            tried += len(table)
            shards_done += 1
            tar_bytes += download.shard_path(shard, ".tar").stat().st_size
            if number + 1 < len(rounds):  # what may succeed stands in the next round again
                table = table.filter(pc.or_(pc.equal(table["status"], "success"), is_permanent(table)))
            statuses["success"] += pc.sum(pc.equal(table["status"], "success")).as_py() or 0
            failed = table.filter(pc.not_equal(table["status"], "success"))
            messages = pc.coalesce(failed["error_message"], failed["status"]).to_pylist()
            failures.update(zip(map(host_of, failed["url"].to_pylist()), messages, strict=True))
        left += round_.rows - tried
    rows = sum(download.rows_per_file)
    left += rows if not rounds else 0
    present = statuses["success"]
    hosts: Counter[str] = Counter()
    mostly: dict[str, str] = {}
    for (host, message), count in failures.most_common():
        statuses[message] += count
        hosts[host] += count
        mostly.setdefault(host, message)
    return {
        "repo": download.record["repo"],
        "commit": download.record["commit"],
        "metadata": {
            "files": len(download.metadata_paths),
            "bytes": sum(path.stat().st_size for path in download.metadata_paths),
        },
        "pairs": rows,
        "present": present,
        "share": share(present, rows),
        "still_to_try": left,
        "bytes": tar_bytes,
        "shards": shards_done,
        "shards_planned": sum(each.shards for each in rounds),
        "rounds": len(rounds),
        "statuses": [
            {"status": status, "pairs": count, "share": share(count, rows)} for status, count in top(statuses, 50)
        ],
        "failing_hosts": [
            {"host": host, "pairs": count, "mostly": mostly[host]} for host, count in hosts.most_common(20)
        ],
    }


def share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0


def top(counts: Counter[str], number: int) -> list[tuple[str, int]]:
    """Return the most frequent, the others together as "other"."""
    first = counts.most_common(number)
    rest = counts.total() - sum(count for _, count in first)
    return first + ([("other", rest)] if rest else [])


def print_report(values: dict[str, Json]) -> None:
    """Print a report; the last line says the coverage."""
    say(f"{values['repo']} at {values['commit'] or 'an unknown commit'}")
    for each in values["statuses"][:12]:
        say(f"  {each['pairs']:>14,}  {100 * each['share']:6.2f} %  {each['status']}")
    if left := values["still_to_try"]:
        say(f"  {left:>14,}  {100 * share(left, values['pairs']):6.2f} %  to be tried")
    for each in values["failing_hosts"][:5]:
        say(f"  fails: {each['host'] or 'no host'} ({each['pairs']:,} pairs, mostly: {each['mostly']})")
    say(f"  {values['shards']:,} of {values['shards_planned']:,} shards, {values['bytes'] / GB:,.3f} GB")
    say(f"{values['present']:,} of {values['pairs']:,} pairs ({100 * values['share']:.1f} %)")


def print_plan(scale: str, *, features: bool, images: bool, rate: float) -> None:
    """Print what a download of a scale brings, from DataComp's published figures."""
    figures = SCALES[scale]
    total = figures.metadata_bytes + features * figures.feature_bytes + images * figures.tar_bytes
    say(f"{scale}: {figures.rows:,} pairs, from https://huggingface.co/datasets/{repo_of(scale)}")
    say(f"  metadata  {figures.metadata_bytes / GB:>11,.0f} GB in about {figures.files:,} files")
    if features:
        say(f"  features  {figures.feature_bytes / GB:>11,.0f} GB in about {figures.files:,} files")
    if images:
        say(f"  images    {figures.tar_bytes / GB:>11,.0f} GB in {figures.rows // SHARD_SIZE:,} shards, were all there")
    say(f"  disk      {total / GB:>11,.0f} GB at most")
    if images:
        say(f"  time      {figures.rows / rate / 3600:>11,.1f} hours at {rate:,.0f} pairs a second")


def repo_of(scale: str) -> str:
    return f"mlfoundations/datacomp_{scale}"


# Command line


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; raises ValueError where options do not go together."""
    parser = argparse.ArgumentParser(
        description="Download a CommonPool: its metadata from the Hugging Face hub, its images from the web.",
        epilog="Started again it goes on where it was. Others than the scales: --repo mlfoundations/datacomp_1b.",
    )
    parser.add_argument("--scale", help=f"{', '.join(SCALES)}: the repository mlfoundations/datacomp_<scale>")
    parser.add_argument("--repo", help="another dataset of the hub with such metadata")
    parser.add_argument("--revision", help="branch, tag or commit (default: main; a begun pool keeps its commit)")
    parser.add_argument("--out", type=Path, help="the pool's folder: metadata/ and shards/ come below it")
    what = parser.add_argument_group("what")
    what.add_argument("--features", action="store_true", help="the .npz with CLIP features too (25 times as large)")
    what.add_argument("--metadata-only", action="store_true", help="no images")
    what.add_argument("--skip-metadata", action="store_true", help="use the metadata that lies there; ask no hub")
    what.add_argument("--retry", action="store_true", help="try again what failed and may succeed, in further shards")
    what.add_argument("--report", action="store_true", help=f"only count what is there ({REPORT_NAME})")
    what.add_argument("--dry-run", action="store_true", help="only say how large a scale is and how long it takes")
    what.add_argument(
        "--pairs-per-second", type=float, default=500.0, metavar="N", help="for --dry-run (default: %(default)g)"
    )
    images = parser.add_argument_group("images (fixed with a pool's first shard)")
    images.add_argument("--keep-faces", action="store_true", help="do not blur faces")
    images.add_argument(
        "--keep-changed", action="store_true", help="do not compare sha256 with the metadata's (DataComp did not)"
    )
    images.add_argument("--shard-size", type=int, default=SHARD_SIZE, help="rows a shard, at most 10,000 (the default)")
    images.add_argument(
        "--user-agent-token", default=USER_AGENT_TOKEN, help="the name that sites may address (default: %(default)s)"
    )
    effort = parser.add_argument_group("how")
    effort.add_argument("--deny", type=Path, metavar="FILE", help="hosts or url prefixes not to ask, one a line")
    effort.add_argument(
        "--processes", type=int, default=os.cpu_count(), help="shards at once (default: one a core, %(default)s)"
    )
    effort.add_argument("--threads", type=int, default=128, help="urls at once, per process (default: %(default)s)")
    effort.add_argument("--timeout", type=float, default=10.0, help="seconds of silence of a server (default: 10)")
    effort.add_argument(
        "--deadline", type=float, default=30.0, help="seconds for a url in all, however it drips (default: 30)"
    )
    effort.add_argument("--retries", type=int, default=0, help="further tries at once (default: 0, as DataComp)")
    effort.add_argument("--ignore-space", action="store_true", help="begin though the disk may become full")
    effort.add_argument("--img2dataset", type=Path, metavar="PATH", help="its command (default: that of --make-venv)")
    effort.add_argument("--make-venv", action="store_true", help="install img2dataset in an environment of its own")
    options = parser.parse_args(arguments)
    if options.scale is not None and options.scale not in SCALES:
        raise ValueError(
            f"unknown scale {options.scale!r}.{nearest_name(options.scale, SCALES)} Scales: {', '.join(SCALES)}; "
            "--repo takes any other dataset"
        )
    if options.scale and options.repo:
        raise ValueError("--scale and --repo both name a repository; give one")
    for first, second in (
        ("metadata_only", "skip_metadata"),
        ("metadata_only", "retry"),
        ("report", "retry"),
        ("features", "skip_metadata"),
    ):
        if getattr(options, first) and getattr(options, second):
            raise ValueError(f"--{first.replace('_', '-')} and --{second.replace('_', '-')} do not go together")
    if not 1 <= options.shard_size <= 10**KEY_DIGITS:
        raise ValueError(f"--shard-size is {options.shard_size}; it goes from 1 to {10**KEY_DIGITS:,}")
    for name in ("processes", "threads", "timeout", "deadline", "pairs_per_second"):
        if not getattr(options, name) > 0:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(options, name)}; it must be above 0")
    if options.retries < 0:
        raise ValueError(f"--retries is {options.retries}; it must be 0 or more")
    if options.dry_run and not options.scale:
        raise ValueError("--dry-run knows the figures of the scales; give --scale")
    if options.out is None and not options.dry_run and not options.make_venv:
        raise ValueError("no folder for the pool; give --out")
    return options


def run(options: argparse.Namespace) -> None:
    """Do what the options ask."""
    if options.dry_run:
        rate = options.pairs_per_second
        print_plan(options.scale, features=options.features, images=not options.metadata_only, rate=rate)
        return
    command = options.img2dataset or cache_dir() / "img2dataset-venv" / "bin" / "img2dataset"
    if options.make_venv:
        say(f"img2dataset: {make_venv(command.parent.parent)}")
        if options.out is None:
            return
    deny = DenyList(options.deny.read_text().splitlines()) if options.deny else DenyList()
    repo = options.repo or (repo_of(options.scale) if options.scale else None)
    if options.report and not (options.out / RECORD_NAME).exists():
        raise FileNotFoundError(f"{options.out} has no {RECORD_NAME}: nothing was downloaded there")
    check_origin(Download(options.out), repo, options.revision, options.skip_metadata)  # before a folder is made
    python = None if options.report or options.metadata_only else python_of(command)
    with locked(options.out):
        download = Download(options.out)
        repo, revision = check_origin(download, repo, options.revision, options.skip_metadata)
        shutil.rmtree(download.partial_dir, ignore_errors=True)
        if not options.report:
            download.partial_dir.mkdir()
            if options.skip_metadata:
                adopt_metadata(download, repo, revision)
            else:
                fetch_metadata(download, repo, revision, features=options.features)
        if python is not None:
            settings = ImageSettings(
                shard_size=options.shard_size,
                keep_faces=options.keep_faces,
                keep_changed=options.keep_changed,
                user_agent_token=options.user_agent_token,
                disallowed_header_directives=OPT_OUT_DIRECTIVES,
            )
            plan_images(download, settings)
            if not options.ignore_space and not options.retry:
                missing = sum(not download.is_done(number) for number in download.rounds[0].numbers)
                needed = min(missing * settings.shard_size, download.rounds[0].rows) * BYTES_PER_PAIR
                need_space(download.out, needed, "the images", ", or give --ignore-space: dead links need none")
            effort = Effort(options.processes, options.threads, options.timeout, options.deadline, options.retries)
            download_images(download, python, effort, deny, retry=options.retry)
        values = report(download)
        write_json(download.out / REPORT_NAME, values)
        print_report(values)
        shutil.rmtree(download.partial_dir, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status, after one sentence where it is not 0."""
    try:
        run(parse(arguments))
    except KeyboardInterrupt:
        print("interrupted; what is complete stays, and the same line goes on", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        text = f"the disk is full ({error}); make room and run the same line again" if full else str(error)
        print(f"error: {text}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
