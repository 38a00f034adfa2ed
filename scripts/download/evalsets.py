"""Evaluation sets from the Hugging Face hub: what a set has, what of it is there, and how the rest comes.

A set keeps the commit that it was begun with (`download.json`). Files arrive under `.partial/` and are renamed when
their hash is right; what says that a set is whole comes last: `test/nshards.txt`, or for rows `download.json` itself.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import re
import shutil
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote, urlsplit

from tqdm import tqdm

from benchmark import __version__
from benchmark.evaluation.tasks import Task
from benchmark.runtime.errors import NotFoundError, UserError
from benchmark.runtime.fetch import PARTIAL_SUFFIX, TIMEOUT, fetch_file
from benchmark.runtime.files import Json, read_json, rename, sha256_of, write_bytes, write_json
from benchmark.runtime.storage import file_hash, state_of
from benchmark.toolbox.hub_rows import CACHE_NAME, rows_folder
from scripts.download.metadata import flat_names
from scripts.download.record import DOWNLOAD_RECORD_NAME, PARTIAL_NAME, HubFile

SHARD_COUNT = "test/nshards.txt"
TEXT_NAMES = ("classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt", SHARD_COUNT)
TAR_NAME = re.compile(r"test/(0|[1-9]\d{0,5})\.tar")
ROWS_NAME = re.compile(r"\w[\w.=-]*\.parquet", re.ASCII)
REPO_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
TEST_SPLIT = re.compile(r"(?<![a-z])test(?![a-z])")

CONVERTED = "refs/convert/parquet"  # the branch with the hub's own conversion of a data set
MAX_TEXT_BYTES = 1 << 20
MAX_PLAIN_BYTES = 16 << 20  # of a file in git itself; the hub takes none above 10 MB


@dataclass(frozen=True)
class SetFile:
    """A file of a set, as the hub or the set's record has it."""

    path: str  # in the repository
    size: int  # in bytes
    sha256: str | None  # None: git keeps it, and it was not here yet
    blob: str = ""  # git's hash, where `sha256` is None

    def has_bytes(self, data: bytes) -> bool:
        """Tell whether these are the file's bytes."""
        if self.sha256 is None:
            return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == self.blob
        return hashlib.sha256(data).hexdigest() == self.sha256


@dataclass(frozen=True)
class Source:
    """Where the hub has the data of one task, or of several, and where they go."""

    tasks: tuple[str, ...]
    repo: str
    place: Path  # the set's folder; of rows, the folder of the repository's commits
    has_rows: bool

    @property
    def title(self) -> str:
        return ", ".join(self.tasks)


@dataclass(frozen=True)
class EvalSet:
    """A source at a commit: its files by the names that they get in `folder`."""

    source: Source
    revision: str
    commit: str
    files: dict[str, SetFile]
    num_ignored: int = 0  # files of the repository that are no part of a set

    @property
    def folder(self) -> Path:
        return self.source.place / self.commit if self.source.has_rows else self.source.place

    @property
    def size(self) -> int:
        """Return the set's bytes."""
        return sum(file.size for file in self.files.values())

    def partial_path(self, name: str) -> Path:
        """Return where a file arrives; each in a folder of its own, because a fetch locks the folder."""
        return self.source.place / PARTIAL_NAME / str(self.files[name].sha256)[:32] / Path(name).name


@dataclass(frozen=True)
class Plan:
    """What of a set is there."""

    eval_set: EvalSet
    there: dict[str, str]  # files with the right bytes, and their states
    missing: list[str]
    other: list[str]  # files of these names with other bytes, and files that are not the set's

    @property
    def coming(self) -> list[str]:
        """Return the files to fetch, what says that the set is whole last."""
        names = self.missing + [name for name in self.other if name in self.eval_set.files]
        return sorted(names, key=lambda name: (name == SHARD_COUNT, *_in_order(name)))

    @property
    def needed(self) -> int:
        """Return the bytes still to come, without those of files that broke off."""
        files = self.eval_set.files
        begun = [self.eval_set.partial_path(name) for name in self.coming if files[name].sha256 is not None]
        parts = [path for whole in begun for path in (whole, whole.with_name(whole.name + PARTIAL_SUFFIX))]
        arrived = sum(path.stat().st_size for path in parts if path.exists())
        return sum(files[name].size for name in self.coming) - arrived


@dataclass(frozen=True)
class Outcome:
    """What became of a source; `reason` says why it is not whole, where it is not."""

    source: Source
    plan: Plan | None = None
    reason: str = ""


class UnreachableError(ConnectionError):
    """There is no way to the hub at all."""


# --- What there is -------------------------------------------------------------------------------------------------


def sources_of(tasks: Iterable[Task], out: Path, owner: str) -> list[Source]:
    """Return where the tasks' data come from, each source once."""
    by_place: dict[tuple[str, Path, bool], list[str]] = defaultdict(list)
    for task in tasks:
        repo = task.hub_rows or f"{owner}/{task.folder_name}"
        if not REPO_NAME.fullmatch(repo) or ".." in repo:
            raise UserError(
                f"task {task.name!r}: {repo!r} is no name of a data set, such as nlphuji/winogavil", code="task-invalid"
            )
        has_rows = bool(task.hub_rows)
        place = out / rows_folder(repo) if has_rows else out / task.folder_name
        by_place[repo, place, has_rows].append(task.name)
    return [Source(tuple(names), repo, place, rows) for (repo, place, rows), names in by_place.items()]


def find_set(source: Source, revision: str | None, endpoint: str, *, replacing: bool) -> EvalSet:
    """Return a source's set at the commit that it was begun with, or that `revision` names where one is given.

    Raises ValueError for what is no set, and UnreachableError.
    """
    records = _record_paths(source)
    recorded = [read_record(source, path) for path in records]
    if revision is None and len(recorded) == 1:
        return recorded[0]
    eval_set = _list_rows(source, revision, endpoint) if source.has_rows else _list_tars(source, revision, endpoint)
    others = [each.commit for each in recorded if source.has_rows and each.commit != eval_set.commit]
    if others and not replacing:
        raise UserError(
            f"{source.place} has the commit {others[0]} and {eval_set.revision} of {source.repo} is now "
            f"{eval_set.commit}; give --replace --revision {eval_set.revision} to have this one instead",
            code="record-differs",
        )
    return eval_set


def read_record(source: Source, path: Path) -> EvalSet:
    """Read which files a set has; raises ValueError where the record names what no set has."""
    value = read_json(path)
    try:
        files = {
            str(name): SetFile(str(file["path"]), int(file["size"]), str(file["sha256"]))
            for name, file in value["files"].items()
        }
        eval_set = EvalSet(replace(source, repo=value["repo"]), value["revision"], value["commit"], files)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{path} is no record of a download ({error!r}); delete it and fetch the set again", code="record-damaged"
        ) from error
    wrong = [name for name in files if not (ROWS_NAME.fullmatch(name) if source.has_rows else _is_known(name))]
    if source.has_rows and path.parent.name != eval_set.commit:
        wrong.append(f"commit {eval_set.commit}")
    if wrong or not COMMIT.fullmatch(str(eval_set.commit)) or not REPO_NAME.fullmatch(str(eval_set.source.repo)):
        said = wrong or [eval_set.source.repo, eval_set.commit]
        raise UserError(
            f"{path} has {said}, which no set has; delete it and fetch the set again", code="record-damaged"
        )
    if eval_set.source.repo != source.repo:
        raise UserError(
            f"{path.parent} came from {eval_set.source.repo} and not from {source.repo}; choose another folder",
            code="record-differs",
        )
    return eval_set


def _record_paths(source: Source) -> list[Path]:
    if source.has_rows:
        return [
            path
            for path in sorted(source.place.glob(f"*/{DOWNLOAD_RECORD_NAME}"))
            if COMMIT.fullmatch(path.parent.name)
        ]
    return [path for path in [source.place / DOWNLOAD_RECORD_NAME] if path.exists()]


def _is_known(name: str) -> bool:
    return name in TEXT_NAMES or TAR_NAME.fullmatch(name) is not None


def _list_tars(source: Source, revision: str | None, endpoint: str) -> EvalSet:
    revision = revision or "main"
    commit, listed = _list_hub(source.repo, revision, endpoint)
    files = {file.path: file for file in listed if _is_known(file.path)}
    if SHARD_COUNT not in files or not any(TAR_NAME.fullmatch(name) for name in files):
        raise UserError(
            f"{source.repo} has no {SHARD_COUNT} or no tar beside it: it is no set in webdataset form",
            code="dataset-invalid",
        )
    return EvalSet(source, revision, commit, files, len(listed) - len(files))


def _list_rows(source: Source, revision: str | None, endpoint: str) -> EvalSet:
    revision, chosen = revision or "main", []
    if revision != CONVERTED:
        commit, listed = _list_hub(source.repo, revision, endpoint)
        chosen = _parquet_of(listed)
    if not chosen:
        revision = CONVERTED
        try:
            commit, listed = _list_hub(source.repo, revision, endpoint)
        except ValueError as error:
            raise UserError(
                f"{source.repo} has no parquet, and the hub has not converted it ({error})", code="dataset-invalid"
            ) from error
        chosen = _parquet_of(listed, converted=True)
        folders = sorted({Path(file.path).parent.as_posix() for file in chosen})
        if len(folders) != 1:
            found = f"several splits ({', '.join(folders)})" if folders else "no whole split in parquet"
            raise UserError(
                f"{CONVERTED} of {source.repo} has {found}; one is needed, called test", code="dataset-invalid"
            )
    by_path = {file.path: file for file in chosen}
    names = flat_names(HubFile(file.path, file.size, file.sha256) for file in chosen)
    for name, file in names.items():
        if not ROWS_NAME.fullmatch(name) or ".." in Path(file.path).parts or file.path.startswith("/"):
            raise UserError(
                f"{source.repo} has a file {file.path!r}, a name that is not accepted", code="dataset-invalid"
            )
    files = {name: by_path[file.path] for name, file in sorted(names.items())}
    return EvalSet(source, revision, commit, files, len(listed) - len(files))


def _parquet_of(listed: Sequence[SetFile], *, converted: bool = False) -> list[SetFile]:
    """Return the parquet files of the split test, or all where none is called so."""
    parquet = [file for file in listed if file.path.endswith(".parquet")]
    if converted:  # <configuration>/<split>/0000.parquet; of a large split only the beginning, as partial-<split>
        parquet = [file for file in parquet if not Path(file.path).parent.name.startswith("partial-")]
        return [file for file in parquet if Path(file.path).parent.name == "test"] or parquet
    return [file for file in parquet if TEST_SPLIT.search(file.path.lower())] or parquet


def _list_hub(repo: str, revision: str, endpoint: str) -> tuple[str, list[SetFile]]:
    """Return the commit that a revision names, and all its files."""
    with _hub_errors(repo, revision):
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        hub = HfApi(endpoint=endpoint)
        commit = str(hub.dataset_info(repo, revision=revision, timeout=TIMEOUT).sha)
        if not COMMIT.fullmatch(commit):
            raise UserError(f"{commit[:60]!r} is no commit", code="dataset-invalid")
        entries = hub.list_repo_tree(repo, recursive=True, revision=commit, repo_type="dataset")
        return commit, [
            SetFile(entry.path, int(entry.size), entry.lfs.sha256 if entry.lfs else None, entry.blob_id)
            for entry in entries
            if isinstance(entry, RepoFile)
        ]


def need_hub_client() -> None:
    """Raise ValueError where huggingface_hub is not installed."""
    try:
        import huggingface_hub.errors  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"the lists of files come by huggingface_hub, which cannot be imported ({error}); "
            "install it with: pip install 'winnow-bench[hf]'",
            code="package-missing",
        ) from error


@contextmanager
def _hub_errors(repo: str, revision: str) -> Iterator[None]:
    """Say in one sentence what the hub or the way to it refuses."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # Among the bases are the errors of whichever HTTP library the installed version works with.
    no_way: tuple[type[Exception], ...] = (OSError, *HfHubHTTPError.__bases__)
    try:
        yield
    except RevisionNotFoundError as error:
        raise UserError(
            f"the data set {repo} has no revision {revision!r} at the hub", code="dataset-not-found"
        ) from error
    except GatedRepoError as error:
        raise UserError(_ask_for_access(repo), code="access-denied") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"the hub has no data set {repo!r} that you may read; --owner names another owner, and HF_TOKEN a token "
            "where it is not open to all",
            code="dataset-not-found",
        ) from error
    except HfHubHTTPError as error:
        raise ConnectionError(f"the hub did not list {repo} ({_squeezed(error)}); run again") from error
    except no_way as error:
        raise UnreachableError(
            f"the hub cannot be reached ({_squeezed(error)}); what is there stays, and the same line goes on"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"the hub's answer about {repo} cannot be read ({_squeezed(error)}); HF_ENDPOINT names it",
            code="unreachable",
        ) from error


def _ask_for_access(repo: str) -> str:
    return f"{repo} is not open to all: ask for access on its page at the hub and set HF_TOKEN to your token"


def _squeezed(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


# --- What is there -------------------------------------------------------------------------------------------------


def make_plan(eval_set: EvalSet) -> Plan:
    """Compare a set with its folder; a file is hashed only where size and time are not those of a verified one."""
    record_path = eval_set.folder / DOWNLOAD_RECORD_NAME
    recorded: Mapping[str, Json] = read_json(record_path).get("files", {}) if record_path.exists() else {}
    there: dict[str, str] = {}
    missing, other = [], []
    for name, file in eval_set.files.items():
        path = eval_set.folder / name
        if not path.exists():
            missing.append(name)
        elif _is_right(path, file, recorded.get(name, {})):
            there[name] = state_of(path)
        else:
            other.append(name)
    other += _extra_files(eval_set)
    if (missing or other) and SHARD_COUNT in there:
        del there[SHARD_COUNT]
        missing.append(SHARD_COUNT)  # else the set would be taken for a whole one while the others come
    return Plan(eval_set, there, missing, other)


def _is_right(path: Path, file: SetFile, recorded: Mapping[str, Json]) -> bool:
    if path.stat().st_size != file.size:
        return False
    if file.sha256 is None:
        return file.size <= MAX_PLAIN_BYTES and file.has_bytes(path.read_bytes())
    state = state_of(path)
    if recorded.get("state") == state and recorded.get("sha256") == file.sha256:
        return True
    return file_hash(path, state) == file.sha256


def _extra_files(eval_set: EvalSet) -> list[str]:
    """Name the files that an evaluation would read and that are not the set's."""
    pattern = "*.parquet" if eval_set.source.has_rows else "test/*.tar"
    names = [path.relative_to(eval_set.folder).as_posix() for path in eval_set.folder.glob(pattern)]
    return sorted(set(names) - set(eval_set.files))


def _in_order(name: str) -> tuple[bool, int, str]:
    tar = TAR_NAME.fullmatch(name)
    return (not name.endswith(".txt"), int(tar[1]) if tar else 0, name)


# --- Fetching ------------------------------------------------------------------------------------------------------


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
                        reason = f"{_ask_for_access(source.repo)} ({reason})"
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
    """Bring one large file; what broke off is gone on with."""
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
    for name in sorted(eval_set.files, key=_in_order):
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


def endpoint_of_hub() -> str:
    """Return the hub's address: $HF_ENDPOINT, else Hugging Face's."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


@contextmanager
def token_shown(endpoint: str) -> Iterator[None]:
    """Show the user's token ($HF_TOKEN, or that of a login) to the hub, for a block; to nobody it redirects to."""
    from huggingface_hub import get_token

    token = get_token()
    if token:
        urllib.request.install_opener(urllib.request.build_opener(_ShowToken(endpoint, token)))
    try:
        yield
    finally:
        if token:
            urllib.request.install_opener(urllib.request.build_opener())


class _ShowToken(urllib.request.BaseHandler):
    def __init__(self, endpoint: str, token: str) -> None:
        self.origin = urlsplit(endpoint)[:2]
        self.token = token

    def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
        if urlsplit(request.full_url)[:2] == self.origin:
            request.add_unredirected_header("Authorization", f"Bearer {self.token}")
        return request

    https_request = http_request


# --- Checking ------------------------------------------------------------------------------------------------------


def recorded_sets(out: Path) -> list[EvalSet]:
    """Return the sets whose records lie in a folder; raises FileNotFoundError where there are none."""
    found = []
    for pattern, has_rows in ((f"*/{DOWNLOAD_RECORD_NAME}", False), (f"{CACHE_NAME}/*/*/{DOWNLOAD_RECORD_NAME}", True)):
        for path in sorted(out.glob(pattern)):
            place = path.parent.parent if has_rows else path.parent
            value = read_json(path)
            repo = str(value.get("repo")) if isinstance(value, dict) else ""
            found.append(read_record(Source((place.name,), repo, place, has_rows), path))
    if not found:
        raise NotFoundError(f"{out} has no set with a {DOWNLOAD_RECORD_NAME}; fetch one first", code="not-found")
    return found


def chosen_sets(sources: Sequence[Source]) -> tuple[list[EvalSet], list[str]]:
    """Return the sets of these sources whose records are there, and a line for each of which there is none."""
    paths = {source: _record_paths(source) for source in sources}
    found = [read_record(source, path) for source in sources for path in paths[source]]
    return found, [f"{source.place}: not there ({source.title})" for source in sources if not paths[source]]


def check_sets(eval_sets: Sequence[EvalSet], workers: int) -> list[str]:
    """Read every file of the sets; return a line for each that is missing, damaged or not the set's."""
    files = [(each, name) for each in eval_sets for name in each.files]
    with (
        tqdm(total=sum(each.size for each in eval_sets), desc="check", unit="B", unit_scale=True, disable=None) as bar,
        ThreadPoolExecutor(workers) as pool,
    ):

        def check(item: tuple[EvalSet, str]) -> str:
            eval_set, name = item
            path, file = eval_set.folder / name, eval_set.files[name]
            if not path.exists():
                return f"{path}: missing"
            size = path.stat().st_size
            if size != file.size:
                return f"{path}: {size:,} bytes instead of {file.size:,}"
            found = sha256_of(path)
            bar.update(size)
            return "" if found == file.sha256 else f"{path}: sha256 {found} instead of {file.sha256}"

        wrong = [line for line in pool.map(check, files) if line]
    return wrong + [f"{each.folder / name}: not of the set" for each in eval_sets for name in _extra_files(each)]
