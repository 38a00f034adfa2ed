"""Measure `winnow report` on pools of growing size: peak memory and seconds of the whole process.

    python -m scripts.perf.report_size --rows 1000000 4000000

The pool is the metadata that `filter_speed` makes up; the experiment is `clip_score`, beside one of `no_filter` whose
subset is compared with it. Prints a Markdown table. README.md beside this file has figures.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmark.runtime.paths import cache_dir
from scripts.perf.filter_speed import make_pool
from scripts.perf.process import Timing, run_measured

FILTER, BESIDE = "clip_score", "no_filter"


def measure(pool_dir: Path, work_dir: Path) -> Timing:
    """Time one whole `winnow report` of an experiment on the pool; the filters' runs before it do not count."""
    shutil.rmtree(work_dir, ignore_errors=True)
    environment = {"WINNOW_CACHE_DIR": str(work_dir / "cache")}

    def command(verb: str, name: str) -> list[str]:
        where = [f"pool_dir={pool_dir}", f"exp_dir={work_dir / name}"]
        return [sys.executable, "-m", "benchmark", verb, "scale=small", *where]

    for name in (BESIDE, FILTER):
        run_measured([*command("filter", name), f"filters={name}"], environment)
    return run_measured(command("report", FILTER), environment)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the pools and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 4_000_000], help="sizes of pools")
    parser.add_argument("--work-dir", type=Path, default=cache_dir() / "report_size", help="pools are kept here")
    options = parser.parse_args(arguments)
    print("| rows | wall s | CPU s | peak MiB |\n|---:|---:|---:|---:|")
    for rows in options.rows:
        pool_dir = options.work_dir / f"pool-{rows}"
        make_pool(pool_dir, rows)
        found = measure(pool_dir, options.work_dir / "experiments")
        print(f"| {rows:,} | {found.seconds:.1f} | {found.cpu_seconds:.1f} | {found.peak_mib:,.0f} |", flush=True)
    shutil.rmtree(options.work_dir / "experiments", ignore_errors=True)


if __name__ == "__main__":
    main()
