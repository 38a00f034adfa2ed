"""Metadata from the Hugging Face hub: resumed by file, checked by size and sha256, flat in one folder."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from benchmark.runtime.console import say
from benchmark.runtime.errors import NotFoundError, UserError
from benchmark.runtime.files import rename, sha256_of
from scripts.download.record import DOWNLOAD_RECORD_NAME, Download, HubFile, need_space


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
        raise UserError(
            f"the metadata of {download.out} came by --skip-metadata; put the .npz beside it by hand",
            code="record-differs",
        )
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
        raise UserError(
            f"the dataset {repo} has no metadata: there is no .parquet in revision {revision}", code="dataset-invalid"
        )
    return commit, flat_names(files)


def flat_names(files: Iterable[HubFile]) -> dict[str, HubFile]:
    """Name files of sub-folders in one folder: by their base names, with the folder in front where two share one."""
    files = list(files)
    shared = Counter(Path(file.path).name for file in files)
    stems = {Path(name).stem for name, count in shared.items() if count > 1}  # a parquet and its .npz share a name
    names = {
        file.path.replace("/", "_") if Path(file.path).stem in stems else Path(file.path).name: file for file in files
    }
    if len(names) < len(files):
        raise UserError(
            "two of the repository's metadata files would have one name in one folder; fetch them apart",
            code="dataset-invalid",
        )
    return names


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
    raise UserError(
        f"{file.path} of {repo} arrived with other bytes than the hub says ({size:,} bytes, {file.size:,} expected, "
        f"sha256 {file.sha256}); run again, and without a proxy if there is one",
        code="download-differs",
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
        raise UserError(
            f"metadata comes by huggingface_hub, which cannot be imported ({error}); "
            "install it with: pip install 'winnow-bench[hf]'",
            code="package-missing",
        ) from error
    # Among the bases are the errors of whichever HTTP library the installed version works with.
    unreachable: tuple[type[Exception], ...] = (EntryNotFoundError, OSError, *HfHubHTTPError.__bases__)
    try:
        yield
    except RevisionNotFoundError as error:
        raise UserError(
            f"the dataset {repo} has no such revision at the hub; see its page for those there",
            code="dataset-not-found",
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"the hub has no dataset {repo!r} that you may read; check --repo, or log in", code="dataset-not-found"
        ) from error
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
        raise NotFoundError(
            f"{download.metadata_dir} has no *.parquet; run without --skip-metadata to fetch them",
            code="metadata-missing",
        )
    if not download.files:
        files = {name: asdict(HubFile(name, size, None)) for name, size in sorted(there.items())}
        download.save(repo=repo, revision=revision, commit=None, files=files)
    for name, file in download.files.items():
        if name.endswith(".parquet") and there.get(name) != file.size:
            raise UserError(
                f"{download.metadata_dir / name} has {there.get(name, 0):,} bytes, {file.size:,} by "
                f"{DOWNLOAD_RECORD_NAME}; run without --skip-metadata to fetch it again",
                code="record-differs",
            )
    if extra := {name for name in there if name.endswith(".parquet")} - set(download.files):
        raise UserError(
            f"{download.metadata_dir} has {min(extra)}, which is not in {DOWNLOAD_RECORD_NAME}; take it away",
            code="record-differs",
        )
