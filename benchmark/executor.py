"""The one way work is spread over processes: a function of one item, results in the items' order."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import TypeVar

from tqdm import tqdm

from benchmark.registry import load_strategies

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_items(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int,
    name: str,
    plugins: Sequence[str] | None = None,
) -> Iterator[Result]:
    """Yield function(item) for every item, in order; `workers` 0 stays in this process.

    Workers are spawned and hold at most two items each. Where the function calls strategies, `plugins` is the list of a
    user's files, perhaps empty, and every worker loads them all first. Raises RuntimeError where a worker dies: its
    item is never silently left out.
    """
    progress = tqdm(total=len(items), desc=name, disable=None, leave=False)
    if workers <= 0:
        for item in items:
            yield function(item)
            progress.update()
    else:
        context = multiprocessing.get_context("spawn")
        begin = partial(_begin, None if plugins is None else tuple(plugins))
        with ProcessPoolExecutor(workers, context, initializer=begin) as pool:
            waiting: list[Future[Result]] = []
            position = 0
            try:
                while waiting or position < len(items):
                    while position < len(items) and len(waiting) < 2 * workers:
                        waiting.append(pool.submit(function, items[position]))
                        position += 1
                    yield waiting.pop(0).result()
                    progress.update()
            except BrokenProcessPool as error:
                raise RuntimeError(
                    f"a worker process died while working on {name} (killed, or out of memory?); try fewer workers"
                ) from error
            finally:
                for future in waiting:
                    future.cancel()
    progress.close()


def _begin(plugins: tuple[str, ...] | None) -> None:
    """Begin a worker: it ends with the process that it works for, however that ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if plugins is not None:
        load_strategies(plugins)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
