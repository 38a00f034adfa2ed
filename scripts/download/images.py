"""Images by img2dataset, shard by shard: planned, denied, downloaded beside the pool, checked and moved in place."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from benchmark.pool.tars import iter_members, write_tar
from benchmark.runtime.console import say
from benchmark.runtime.errors import UserError
from benchmark.runtime.files import Json, read_json, rename, write_json
from benchmark.runtime.records import describe_differences
from benchmark.runtime.tables import read_parquet
from scripts.download.record import (
    DOWNLOAD_RECORD_NAME,
    KEY_DIGITS,
    SHARD_DIGITS,
    SIDE_SCHEMA,
    Download,
    ImageSettings,
    Round,
    failed_rows,
    host_of,
)

RUNNER_PATH = Path(__file__).resolve().with_name("runner.py")
DENIED = "on the deny list"
LOST = "img2dataset lost this sample"
FULL_BYTES = 64 << 20  # less room than this, and a shard that failed did so for want of it


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


def plan_images(download: Download, settings: ImageSettings) -> None:
    """Fix the settings and the first round's shards; raises ValueError where others are recorded."""
    now = asdict(settings)
    if recorded := download.record.get("settings"):
        if shown := describe_differences(now, recorded):
            raise UserError(
                f"{download.out} was begun with other settings ({DOWNLOAD_RECORD_NAME}): {shown}; "
                "repeat those, or choose another folder",
                code="record-differs",
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
                raise UserError(
                    f"{path} has no column {column!r}{remedies.get(column, '')}; it has {names}", code="column-missing"
                )
    rows = download.count_rows()
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
    # Denied ones go along, so that the last round knows all that is left on its own, also with another deny list.
    download.add_round(Round(last.first_shard + last.shards, shards, rows))
    say(f"retry: {allowed:,} pairs that failed, in shards from {last.first_shard + last.shards:08d}")
    return True


class DenyList:
    """Hosts (with all below them) and url prefixes that are never requested."""

    def __init__(self, lines: Iterable[str] = ()) -> None:
        entries = [entry for line in lines if (entry := line.partition("#")[0].strip())]
        self.prefixes = tuple(entry for entry in entries if "://" in entry)
        self.hosts = {entry.lower().strip(".") for entry in entries if "://" not in entry}
        for host in self.hosts:
            if "/" in host or " " in host:
                raise UserError(
                    f"deny list: {host!r} is neither a host nor a url; write example.com or http://…",
                    code="option-value",
                )

    def covers(self, url: str | None) -> bool:
        """Tell whether this url must not be requested."""
        if url and self.prefixes and url.startswith(self.prefixes):
            return True
        parts = host_of(url).split(".")
        return bool(self.hosts) and any(".".join(parts[first:]) in self.hosts for first in range(len(parts)))


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
    for path, rows in zip(download.metadata_paths, download.count_rows(), strict=True):
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
        # Isolated: neither the folder of the runner nor a PYTHONPATH is that environment's business.
        # Not in the terminal's process group: Ctrl-C is this program's business, and a runner ends with its input.
        with log_path.open("w") as log:
            self.process = subprocess.Popen(
                [str(python), "-I", str(RUNNER_PATH)],
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
        # In img2dataset's order, and no others: it takes every column of its input for one that it has to fill.
        faces, hashes = (["face_bboxes"] if self.blur else []), (["sha256"] if self.verify else [])
        self.columns = ["uid", *faces, "caption", *hashes, "url"]
        self.settings = {
            "columns": self.columns,
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
            raise UserError(
                f"img2dataset does not start with {self.python}: {error}", code="downloader-failed"
            ) from error
        if not (1, 47) <= tuple(map(int, runner.version.split(".")[:2])) < (2,):
            runner.close()
            raise UserError(
                f"{self.python} has img2dataset {runner.version}, and 1.47 or later is needed; "
                "install that there, or make an environment with --make-venv",
                code="package-missing",
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
        wanted = [place for place, is_denied in enumerate(denied) if not is_denied]
        for attempt in range(2):
            shutil.rmtree(staging_dir, ignore_errors=True)
            staging_dir.mkdir(parents=True)
            if not wanted:
                break
            input_path = staging_dir / "rows.arrow"
            table = rows.select(self.columns).take(wanted)
            with pa.OSFile(str(input_path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
            try:
                runner = runner or self.start(number)
                paths = {"input_path": str(input_path), "out_dir": str(staging_dir)}
                # Far more than all deadlines together: img2dataset itself is known to stand still at times.
                patience = 600 + len(wanted) * (self.effort.deadline / self.effort.threads + 0.5)
                guard = threading.Timer(patience, runner.process.kill)
                guard.daemon = True
                guard.start()
                try:
                    runner.ask({"shard": shard, "places": wanted, **paths})
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
                    raise UserError(
                        f"img2dataset died twice at shard {shard:08d} ({error}); run the same line again to go on",
                        code="downloader-failed",
                    ) from error
        self.finish_shard(shard, rows, wanted, staging_dir)
        return runner

    def refuse_full_disk(self, shard: int) -> None:
        """Raise OSError where a shard failed on a disk that is as good as full."""
        if shutil.disk_usage(self.download.out).free < FULL_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.download.partial_dir / f"{shard:08d}"))

    def finish_shard(self, shard: int, rows: pa.Table, wanted: list[int], staging_dir: Path) -> None:
        """Check a shard, complete its side parquet and statistics, and move it in place, the statistics last."""
        names = {suffix: f"{shard:08d}{suffix}" for suffix in (".tar", ".parquet", "_stats.json")}
        tar_path, side_path = staging_dir / names[".tar"], staging_dir / names[".parquet"]
        first_key = shard * 10**KEY_DIGITS
        results: dict[int, dict[str, Json]] = {}
        expected = set(wanted)
        if wanted:
            for row in pq.read_table(side_path).to_pylist():
                results[int(row["key"]) - first_key] = row
        else:
            write_tar(tar_path, [])
        # img2dataset takes an error while writing, such as a full disk, for a failed sample: count what is there.
        written = {member.key for member in iter_members(tar_path) if member.extension == "jpg"}
        succeeded = {row["key"] for row in results.values() if row["status"] == "success"}
        if written != succeeded:
            self.refuse_full_disk(shard)
            raise UserError(
                f"shard {shard:08d}: img2dataset counts {len(succeeded)} images, its tar holds {len(written)}; "
                "run the same line again to download it again",
                code="downloader-failed",
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
