"""Fixtures: hand-made pools whose answers are known, and the `pico` pool, drawn once per session."""

import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings
from PIL import Image

# The same examples every time, however slow the machine. What a property needs on disk is made inside it, with
# tempfile: a fixture would be made once for all examples.
settings.register_profile(
    "winnow", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("winnow")
# For what is marked `thousands`: other examples with every --hypothesis-seed.
THOUSANDS = settings(settings.get_profile("winnow"), derandomize=False, max_examples=5000)

os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes, each of which has a core
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="session")
def _cache_dir(tmp_path_factory):
    os.environ["WINNOW_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _no_strategy_outlives_its_test():
    """Forget what a test registered, or a later test of the same process finds it among the shipped ones."""
    from benchmark.registry import BROKEN, FILTERS_DIR, STRATEGIES

    before = {*STRATEGIES, *BROKEN}
    yield
    for registered in (STRATEGIES, BROKEN):
        for name in set(registered) - before:
            path = getattr(registered[name], "source_path", None)
            if path is None or not path.is_relative_to(FILTERS_DIR):
                del registered[name]


@pytest.fixture
def own_registry():
    """The registered tasks and suites, as they were again after the test: in place, as modules hold them by name."""
    from benchmark.registry import SUITES, TASKS, load_tasks

    load_tasks()
    before = [(each, dict(each)) for each in (TASKS, SUITES)]
    yield TASKS, SUITES
    for each, of_before in before:
        each.clear()
        each.update(of_before)


# Few tests that take long, of which one alone may keep a process busy while others have nothing left: begun first.
LONG = ("test_pages", "test_kill", "test_ranks", "test_slurm", "test_restamp", "test_executor", "test_webdataset")


def pytest_collection_modifyitems(items):
    """Begin with the files that take longest; the option --no-loadscope-reorder has xdist keep that order."""
    items.sort(key=lambda item: item.path.stem not in LONG)


@pytest.fixture(scope="session")
def strategies():
    """The shipped strategies, loaded."""
    from benchmark.registry import load_strategies

    return load_strategies()


@pytest.fixture(scope="session")
def pico_pool(tmp_path_factory) -> Path:
    """The embedded pool of `pico`, as `winnow pool build --scale pico` draws it; tests must not change it."""
    from benchmark.embedded.pool import build_pool
    from benchmark.scales import SCALES

    base = tmp_path_factory.getbasetemp()
    pool_dir = base / "pools" / "pico"
    if "PYTEST_XDIST_WORKER" not in os.environ:
        build_pool(pool_dir, SCALES["pico"])
        return pool_dir
    drawn_dir = base.parent / "pools" / "pico"  # once for all processes of this session; each has a copy of its own
    with FileLock(base.parent / "pools.lock"):
        build_pool(drawn_dir, SCALES["pico"])
        shutil.copytree(drawn_dir, pool_dir)
    return pool_dir


@contextmanager
def loaded_plugin(path: Path, code: str) -> Iterator[Path]:
    """Write a file of strategies and load it; what it registers is forgotten at the end."""
    from benchmark.registry import STRATEGIES, load_plugins

    path.write_text(code)
    before = set(STRATEGIES)
    load_plugins([path])
    try:
        yield path
    finally:  # also of a test that fails, or those after it would too
        for name in set(STRATEGIES) - before:
            del STRATEGIES[name]


def uid(number: int) -> str:
    """Spell a small number as a uid."""
    return f"{number:032x}"


def write_pool(pool_dir: Path, *shards: dict, features: dict | None = None) -> Path:
    """Write a metadata-only pool: one dict of columns per metadata shard; `features` go to the first shard's .npz."""
    (pool_dir / "metadata").mkdir(parents=True)
    for number, columns in enumerate(shards):
        pd.DataFrame(columns).to_parquet(pool_dir / "metadata" / f"{number:032x}.parquet")
        if features is not None and number == 0:
            np.savez(pool_dir / "metadata" / f"{number:032x}.npz", **features)
    return pool_dir


def jpeg(colour: tuple[int, int, int] = (200, 30, 30), size: int = 8) -> bytes:
    """Encode a one-coloured picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def members(key: str, number: int, image: bytes | None = None, text: str = "a red square", **fields) -> list:
    """Return a sample's tar members."""
    return [
        (f"{key}.jpg", jpeg() if image is None else image),
        (f"{key}.json", json.dumps({"uid": uid(number), **fields}).encode()),
        (f"{key}.txt", text.encode()),
    ]


@contextmanager
def user_error(code: str, match: str | None = None) -> Iterator[pytest.ExceptionInfo]:
    """Expect an error that a user can mend, by its code; `match` is for a value that the sentence must name."""
    from benchmark.runtime.errors import UserError

    with pytest.raises(UserError, match=match) as raised:
        yield raised
    assert raised.value.code == code, f"[{raised.value.code}] {raised.value}"
