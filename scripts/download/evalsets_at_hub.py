"""Which files an evaluation set has at the hub, and the way there: errors, address, token."""

from __future__ import annotations

import os
import re
import urllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from benchmark.runtime.errors import UserError
from benchmark.runtime.fetch import TIMEOUT
from scripts.download.evalsets import (
    COMMIT,
    ROWS_NAME,
    SHARD_COUNT,
    TAR_NAME,
    EvalSet,
    SetFile,
    Source,
    is_known,
    read_record,
    record_paths,
)
from scripts.download.metadata import flat_names
from scripts.download.record import HubFile

TEST_SPLIT = re.compile(r"(?<![a-z])test(?![a-z])")
CONVERTED = "refs/convert/parquet"  # the branch with the hub's own conversion of a data set


class UnreachableError(ConnectionError):
    """There is no way to the hub at all."""


def find_set(source: Source, revision: str | None, endpoint: str, *, replacing: bool) -> EvalSet:
    """Return a source's set at the commit that it was begun with, or that `revision` names where one is given.

    Raises ValueError for what is not a set, and UnreachableError.
    """
    records = record_paths(source)
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


def _list_tars(source: Source, revision: str | None, endpoint: str) -> EvalSet:
    revision = revision or "main"
    commit, listed = _list_hub(source.repo, revision, endpoint)
    files = {file.path: file for file in listed if is_known(file.path)}
    if SHARD_COUNT not in files or not any(TAR_NAME.fullmatch(name) for name in files):
        raise UserError(
            f"{source.repo} has no {SHARD_COUNT} or no tar beside it: it is not a set in webdataset form",
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
            raise UserError(f"{commit[:60]!r} is not a commit", code="dataset-invalid")
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
        raise UserError(ask_for_access(repo), code="access-denied") from error
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


def ask_for_access(repo: str) -> str:
    return f"{repo} is not open to all: ask for access on its page at the hub and set HF_TOKEN to your token"


def _squeezed(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


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
