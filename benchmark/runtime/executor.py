"""The one way work is spread: a function of one item, results in the items' order, by processes here or by Ray."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from benchmark import __version__
from benchmark.registry import FILTERS_DIR, load_strategies
from benchmark.runtime.console import say
from benchmark.runtime.errors import UserError
from benchmark.runtime.files import sha256_of, use_own_temporary_names
from benchmark.runtime.identity import ROOT_DIR
from benchmark.runtime.stopping import ignore_stop_signals

Item = TypeVar("Item")
Result = TypeVar("Result")

EXECUTORS = ("local", "ray")
MAX_RETRIES = 5  # of an item whose node or process died
CONNECT_SECONDS = 10.0


def map_items(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int,
    name: str,
    plugins: Sequence[str] | None = None,
    executor: str = "local",
    num_gpus: float = 0,
) -> Iterator[Result]:
    """Yield function(item) for every item, in order, with a bounded number of results waiting.

    `local`: `workers` processes are spawned; 0 stays in this one. `ray`: tasks of a Ray cluster, at most `workers` at
    once, 0: as many as it has CPUs; each has a CPU and `num_gpus`, and is tried again elsewhere where its node dies.
    Where the function calls strategies, `plugins` is the list of a user's files, perhaps empty, and every worker loads
    them all first. Raises what the function raises, and UserError (`worker-died`) where a worker dies: its item is
    never left out.
    """
    results: Iterable[Result]
    if executor == "ray":
        results = _map_on_ray(function, items, workers, name, plugins, num_gpus)
    elif workers > 0:
        results = _map_in_processes(function, items, workers, name, plugins)
    else:
        results = map(function, items)
    with tqdm(total=len(items), desc=name, disable=None, leave=False) as progress:
        for result in results:
            yield result
            progress.update()


def _map_in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, name: str, plugins: Sequence[str] | None
) -> Iterator[Result]:
    """Work in spawned processes, which hold at most two items each."""
    context = multiprocessing.get_context("spawn")
    begin = partial(_begin, None if plugins is None else tuple(plugins))
    with ProcessPoolExecutor(workers, context, initializer=begin) as pool:
        waiting: deque[Future[Result]] = deque()
        position = 0
        try:
            while waiting or position < len(items):
                while position < len(items) and len(waiting) < 2 * workers:
                    with _own_package_found():
                        waiting.append(pool.submit(function, items[position]))
                    position += 1
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise UserError(
                f"a worker process died while working on {name} (killed, or out of memory?); try fewer workers",
                code="worker-died",
            ) from error
        except BaseException:
            # Not waited for: what they are at may take minutes, and is resumed the next time.
            for worker in list(pool._processes.values()):
                worker.kill()
            raise
        finally:
            for future in waiting:
                future.cancel()


@contextmanager
def _own_package_found() -> Iterator[None]:
    """Let processes that are spawned meanwhile find this package, though a folder of the user's has its name.

    They look along this process's `sys.path`, and are sent functions before any code of ours can run in them.
    """
    found = PathFinder.find_spec("benchmark", sys.path)
    own = ROOT_DIR / "benchmark" / "__init__.py"
    if found is None or (found.origin is not None and Path(found.origin).resolve() == own):
        yield
        return
    sys.path.insert(0, str(ROOT_DIR))
    try:
        yield
    finally:
        sys.path.remove(str(ROOT_DIR))


def _begin(plugins: tuple[str, ...] | None) -> None:
    """Begin a worker: it ends with the process that it works for, however that ends, and leaves stops to it."""
    ignore_stop_signals(0)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if plugins is not None:
        load_strategies(plugins)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@dataclass(frozen=True)
class _Site:
    """What this process's part of the world is like, which a Ray worker has to find the same on its node."""

    folder: str  # where this process runs: relative paths mean the same there
    environment: dict[str, str]  # Winnow's variables
    code: str  # hash of Winnow's own
    plugins: tuple[tuple[str, str], ...] | None  # path and sha256 of each file

    @staticmethod
    def here(plugins: Sequence[str] | None) -> _Site:
        paths = None if plugins is None else [Path(plugin).expanduser().resolve() for plugin in plugins]
        return _Site(
            str(Path.cwd()),
            {key: value for key, value in os.environ.items() if key.startswith("WINNOW_")},
            _hash_code(),
            None if paths is None else tuple((str(path), sha256_of(path)) for path in paths),
        )

    def enter(self) -> None:
        """Begin a Ray worker; raises UserError that names what its node has not."""
        node = f"Ray's node {socket.gethostname()}"
        if _hash_code() != self.code:
            raise UserError(
                f"{node} has another Winnow ({__version__} in {ROOT_DIR}) than the machine that asks it; install the "
                "same on all nodes",
                code="node-differs",
            )
        if not Path(self.folder).is_dir():
            raise UserError(
                f"{node} has no folder {self.folder}; run the command in one that all nodes share", code="node-differs"
            )
        os.chdir(self.folder)
        os.environ.update(self.environment)
        for path, sha256 in self.plugins or ():
            if not Path(path).is_file() or sha256_of(Path(path)) != sha256:
                raise UserError(
                    f"plugins: {node} has no such file {path}; put it in a folder that all nodes share",
                    code="node-differs",
                )
        use_own_temporary_names()  # of two that write one file, Ray may take one for dead
        if self.plugins is not None:
            load_strategies(path for path, _ in self.plugins)


def run_pickled(work: bytes, item: bytes) -> bytes:
    """Return function(item) pickled, where `work` holds the function and what it needs; runs in Ray's workers."""
    return pickle.dumps(_load_function(work)(pickle.loads(item)), pickle.HIGHEST_PROTOCOL)


@lru_cache(maxsize=1)
def _load_function(work: bytes) -> Callable[[Any], Any]:
    site, function = pickle.loads(work)
    site.enter()
    return pickle.loads(function)  # after the strategies that it may name


@lru_cache
def _hash_code() -> str:
    sums = hashlib.sha256()
    for path in sorted([*(ROOT_DIR / "benchmark").rglob("*.py"), *FILTERS_DIR.glob("*.py")]):
        sums.update(f"{path.relative_to(ROOT_DIR)} {sha256_of(path)}\n".encode())
    return sums.hexdigest()


def _map_on_ray(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    name: str,
    plugins: Sequence[str] | None,
    num_gpus: float,
) -> Iterator[Result]:
    """Work in Ray's tasks; what they are handed and return is pickled here, as processes would have it."""
    ray = _connected_ray()
    if num_gpus and ray.cluster_resources().get("GPU", 0) < num_gpus:
        raise UserError(
            f"{name} computes on GPUs and the Ray cluster has none; add nodes with one, or use device=cpu",
            code="no-gpu",
        )

    def run(work: bytes, item: bytes) -> bytes:
        # Pickled by value, as it stands in a function: it can say that a node lacks Winnow.
        import socket

        try:
            from benchmark.runtime.executor import run_pickled
        except ImportError as error:
            raise ImportError(
                f"Ray's node {socket.gethostname()} cannot import Winnow ({error}); install the same on all nodes"
            ) from error
        return run_pickled(work, item)

    task = ray.remote(num_cpus=1, num_gpus=num_gpus, max_retries=MAX_RETRIES)(run)
    work = ray.put(pickle.dumps((_Site.here(plugins), pickle.dumps(function))))
    waiting: deque[Any] = deque()  # in the items' order
    running: list[Any] = []
    position = 0
    try:
        while waiting or position < len(items):
            # Two for each CPU, so that a node never waits for its next; nodes may come and go.
            most = workers or max(1, 2 * int(ray.cluster_resources().get("CPU", 0)))
            while position < len(items) and len(running) < most and len(waiting) < 2 * most:
                waiting.append(task.remote(work, pickle.dumps(items[position], pickle.HIGHEST_PROTOCOL)))
                running.append(waiting[-1])
                position += 1
            _, running = ray.wait(running)
            while waiting and waiting[0] not in running:
                yield pickle.loads(ray.get(waiting.popleft()))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ImportError):
            raise UserError(str(error.cause), code="node-differs") from error
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise UserError(
            f"Ray could not finish {name}: {str(error).strip().splitlines()[0]} (an item is tried {MAX_RETRIES + 1} "
            "times; killed, or out of memory?)",
            code="worker-died",
        ) from error
    finally:
        for reference in running:
            ray.cancel(reference, force=True)  # with its worker: one that is just beginning does not heed the other way


def _connected_ray() -> Any:
    """Return the module ray, connected to a cluster: RAY_ADDRESS's, this machine's `ray start`, or one of its own."""
    try:
        import ray
    except ImportError as error:
        raise UserError("executor=ray needs Ray: pip install 'winnow-bench[ray]'", code="package-missing") from error
    if ray.is_initialized():
        return ray
    address = os.environ.get("RAY_ADDRESS")
    started = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"  # by `ray start`
    if not address and started.exists():
        address = started.read_text().strip()
    if not address:
        say("ray: RAY_ADDRESS is not set and `ray start` was not run here; a cluster of this machine only is started")
    elif address != "local" and "://" not in address:
        _check_answers(address)  # Ray itself would wait for minutes
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address or "local", include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    except (RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"Ray cannot be used at {address or 'local'}: {why}", code="unreachable") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray puts its own in its place
    return ray


def _check_answers(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"no Ray cluster answers at {address} ({error}); set RAY_ADDRESS to one that does, or to `local` for "
            "one of this machine only"
        ) from error
