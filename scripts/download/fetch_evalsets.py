"""Fetching evaluation sets: several files side by side, each checked by its hash before it gets its name."""

from __future__ import annotations

import errno
import hashlib
import http.client
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from urllib.parse import quote

from tqdm import tqdm

from benchmark import __version__
from benchmark.runtime.errors import UserError
from benchmark.runtime.fetch import TIMEOUT, fetch_file
from benchmark.runtime.files import Json, read_json, rename, sha256_of, write_bytes, write_json
from benchmark.runtime.storage import state_of
from scripts.download.evalsets import (
    COMMIT,
    MAX_PLAIN_BYTES,
    SHARD_COUNT,
    TAR_NAME,
    EvalSet,
    Plan,
    SetFile,
    Source,
    in_order,
)
from scripts.download.evalsets_at_hub import ask_for_access
from scripts.download.record import DOWNLOAD_RECORD_NAME, PARTIAL_NAME

MAX_TEXT_BYTES = 1 << 20


@dataclass(frozen=True)
class Outcome:
    """What became of a source; `reason` says why it is not whole, where it is not."""

    source: Source
    plan: Plan | None = None
    reason: str = ""


@dataclass
class _Work:
    """A set that is being fetched."""

    plan: Plan
    eval_set: EvalSet  # with every sha256, once it is begun
    states: dict[str, str] = field(default_factory=dict)
    num_coming: int = 0
    shard_count: bytes = b""


def fetch_sets(plans: Sequence[Plan], endpoint: str, workers: int) -> list[Outcome]:
    """Bring what the sets lack, several files side by side; a set that fails stops no other.

    What has other bytes is replaced. Raises OSError where the disk is full.
    """
    outcomes: dict[Source, Outcome] = {}
    pool = ThreadPoolExecutor(workers)
    pending: dict[Future[None], tuple[_Work, str]] = {}
    for plan in plans:
        work = _Work(plan, plan.eval_set)
        pending[pool.submit(_begin, work, endpoint)] = (work, "")
    total = sum(plan.eval_set.files[name].size for plan in plans for name in plan.coming)
    bar = tqdm(total=total, desc="all", unit="B", unit_scale=True, disable=None)
    try:
        while pending:
            done, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                work, name = pending.pop(future)
                source = work.plan.eval_set.source
                if source in outcomes or future.cancelled():
                    continue
                try:
                    future.result()
                    if name:
                        work.num_coming -= 1
                        work.states[name] = state_of(work.eval_set.folder / name)
                        bar.update(work.eval_set.files[name].size)
                    else:
                        coming = [each for each in work.plan.coming if _is_large(work, each)]
                        work.num_coming = len(coming)
                        for each in coming:
                            pending[pool.submit(_fetch, work.eval_set, each, endpoint)] = (work, each)
                    if work.num_coming == 0:
                        _finish(work)
                        outcomes[source] = Outcome(source, work.plan)
                        if work.plan.coming:
                            tqdm.write(f"{source.title}: whole")
                except (ValueError, OSError) as error:
                    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                        raise
                    reason = str(error)
                    if re.search(r" answers 40[13] ", reason):
                        reason = f"{ask_for_access(source.repo)} ({reason})"
                    outcomes[source] = Outcome(source, work.plan, reason)
                    for other, (its, _name) in pending.items():
                        if its is work:
                            other.cancel()
    except BaseException as error:
        pool.shutdown(wait=not isinstance(error, KeyboardInterrupt), cancel_futures=True)
        raise
    finally:
        bar.close()
    pool.shutdown()
    return [outcomes[plan.eval_set.source] for plan in plans]


def _is_large(work: _Work, name: str) -> bool:
    """Tell whether a file is fetched on its own, after the set is begun."""
    return work.plan.eval_set.files[name].sha256 is not None and not name.endswith(".txt")


def _begin(work: _Work, endpoint: str) -> None:
    """Bring the small files, compare the count of tars with the list, and write down commit and files."""
    plan, eval_set = work.plan, work.plan.eval_set
    arrived: dict[str, bytes] = {}
    for name in plan.coming:
        path = eval_set.folder / name
        if not _is_large(work, name):
            file = eval_set.files[name]
            is_here = name not in plan.other and path.exists()
            arrived[name] = path.read_bytes() if is_here else _read_plain(_url(eval_set, name, endpoint), file)
    if not eval_set.source.has_rows:
        count_path = eval_set.folder / SHARD_COUNT
        _check_count(eval_set, arrived[SHARD_COUNT] if SHARD_COUNT in arrived else count_path.read_bytes())
        work.shard_count = arrived.pop(SHARD_COUNT, b"")
        if work.shard_count:
            count_path.unlink(missing_ok=True)
    for name in set(plan.other) - set(eval_set.files):
        (eval_set.folder / name).unlink()
    for name, data in arrived.items():
        write_bytes(eval_set.folder / name, data)
    hashes = {SHARD_COUNT: hashlib.sha256(work.shard_count).hexdigest()} if work.shard_count else {}
    work.eval_set = replace(
        eval_set,
        files={
            name: file if file.sha256 else replace(file, sha256=hashes.get(name) or sha256_of(eval_set.folder / name))
            for name, file in eval_set.files.items()
        },
    )
    work.states = dict(plan.there)
    if not eval_set.source.has_rows:
        _write_record(work)


def _check_count(eval_set: EvalSet, data: bytes) -> None:
    """Raise ValueError where the count of tars is not that of the tars listed."""
    said = data.decode("ascii", "replace").strip()
    tars = [name for name in eval_set.files if TAR_NAME.fullmatch(name)]
    expected = {f"test/{number}.tar" for number in range(len(tars))}
    if said != str(len(tars)) or set(tars) != expected:
        lacking = "" if set(tars) == expected else f", without {min(expected - set(tars))}"
        raise UserError(
            f"{SHARD_COUNT} of {eval_set.source.repo} says {said[:20]!r} and the repository has {len(tars)} tars"
            f"{lacking}: the set is damaged at the hub; --revision names another commit",
            code="dataset-invalid",
        )


def _fetch(eval_set: EvalSet, name: str, endpoint: str) -> None:
    """Bring one large file; what broke off is resumed."""
    # Not by hf_hub_download: that of huggingface_hub 2.4 deletes what a killed download has fetched, and starts again.
    partial, target = eval_set.partial_path(name), eval_set.folder / name
    fetch_file(_url(eval_set, name, endpoint), partial, str(eval_set.files[name].sha256))
    target.parent.mkdir(parents=True, exist_ok=True)
    rename(partial, target)


def _finish(work: _Work) -> None:
    """Write down what was verified, then what says that the set is whole."""
    _write_record(work)
    if work.shard_count:
        write_bytes(work.eval_set.folder / SHARD_COUNT, work.shard_count)
    place = work.eval_set.source.place
    shutil.rmtree(place / PARTIAL_NAME, ignore_errors=True)
    if work.eval_set.source.has_rows:  # others are there only where they were to be replaced
        for path in place.iterdir():
            if COMMIT.fullmatch(path.name) and path.name != work.eval_set.commit:
                shutil.rmtree(path)


def _write_record(work: _Work) -> None:
    """Write which files the set has, and of the large ones in which state each was verified."""
    eval_set = work.eval_set
    files: dict[str, Json] = {}
    for name in sorted(eval_set.files, key=in_order):
        file = eval_set.files[name]
        files[name] = {"path": file.path, "size": file.size, "sha256": file.sha256}
        if name in work.states and not name.endswith(".txt"):
            files[name]["state"] = work.states[name]
    value = {
        "repo": eval_set.source.repo,
        "revision": eval_set.revision,
        "commit": eval_set.commit,
        "files": files,
    }
    path = eval_set.folder / DOWNLOAD_RECORD_NAME
    if not path.exists() or read_json(path) != value:
        write_json(path, value)


def _url(eval_set: EvalSet, name: str, endpoint: str) -> str:
    path = quote(eval_set.files[name].path)
    return f"{endpoint}/datasets/{eval_set.source.repo}/resolve/{eval_set.commit}/{path}"


def _read_plain(url: str, file: SetFile) -> bytes:
    """Return a small file's bytes; raises ValueError where they are others than the hub lists."""
    limit = MAX_TEXT_BYTES if file.path.endswith(".txt") else MAX_PLAIN_BYTES
    if file.size > limit:
        raise UserError(
            f"{url} has {file.size:,} bytes; at most {limit:,} are taken of such a file", code="dataset-invalid"
        )
    request = urllib.request.Request(url, headers={"User-Agent": f"winnow/{__version__}"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            data: bytes = response.read(file.size + 1)
    except urllib.error.HTTPError as error:
        raise ConnectionError(f"{url} answers {error.code} ({error.reason})") from error
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise ConnectionError(f"{url} cannot be read: {getattr(error, 'reason', error)}") from error
    if not file.has_bytes(data):
        raise UserError(
            f"{url} has other bytes than the hub lists ({file.size:,} bytes): run again, without a proxy",
            code="download-differs",
        )
    return data
