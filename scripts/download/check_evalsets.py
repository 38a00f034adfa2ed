"""Checking evaluation sets that were fetched: every file is read and compared with its set's record."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from benchmark.runtime.errors import NotFoundError
from benchmark.runtime.files import read_json, sha256_of
from benchmark.toolbox.hub_rows import CACHE_NAME
from scripts.download.evalsets import EvalSet, Source, extra_files, read_record, record_paths
from scripts.download.record import DOWNLOAD_RECORD_NAME


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
    paths = {source: record_paths(source) for source in sources}
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
    return wrong + [f"{each.folder / name}: not of the set" for each in eval_sets for name in extra_files(each)]
