"""Make a board's reference entries: every strategy below, several training seeds each, on the embedded pool.

    python scripts/make_references.py --scale nano --seeds 0 1 2 3 4 --pool-seeds 0 1 2 --jobs 2

The first pool seed is the board's: its entries go to leaderboard/<scale>/entries/. On the others only the strategies
marked `on_all_pools` run; their entries, leaderboard/<scale>/other_pools/<name>-pool<seed>.json, tell how much the
pool's seed moves scores. Experiments go to experiments/<scale>/.

All strategies run at the first training seed, then all at the second and so on (or at the first few, with
`--seeds-per-run`, which saves starts): a run that was stopped leaves a balanced board. What is finished is reused, so
the same command goes on. A strategy that fails stops no other; failures are listed at the end. One training at nano
takes about a minute on one core.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from benchmark.runtime.names import nearest_name
from leaderboard.board import BOARDS_DIR, ENTRIES_NAME, OTHER_POOLS_NAME
from leaderboard.entries import read_entry, write_entry


@dataclass(frozen=True)
class Strategy:
    """Filters with their options, as on `winnow run`'s command line."""

    filters: tuple[str, ...]
    options: tuple[str, ...] = ()
    on_all_pools: bool = False


# On CommonPool 0.28 is about the top 31 % of ViT-B/32's similarities; on the embedded pool that is this one's.
LAION_SIMILARITY = 0.60

# By the name of their experiment's folder; entries are named by `winnow run`, after filters, options and cuts.
STRATEGIES = {
    "no_filter": Strategy(("no_filter",), on_all_pools=True),
    "clip_score": Strategy(("clip_score",), on_all_pools=True),
    "random": Strategy(("random",)),
    "planted_clean": Strategy(("planted_clean",)),
    "basic": Strategy(("basic",)),
    "text_based": Strategy(("text_based",)),
    "image_based": Strategy(("image_based",)),
    "image_based+clip_score": Strategy(("image_based", "clip_score")),
    "laion2b": Strategy(("laion2b",), (f"filters.laion2b.min_similarity={LAION_SIMILARITY}",)),
    "clip_score-b32": Strategy(("clip_score",), ("filters.clip_score.arch=b32",)),
    "metaclip": Strategy(("metaclip",)),
    "text_masked_clip": Strategy(("text_masked_clip",)),
    # By the other reference model: reference_l14 gives the metadata's own scores again.
    "clip_similarity-b32": Strategy(("clip_similarity",), ("filters.clip_similarity.clip_model=reference_b32",)),
    "decontaminated": Strategy(("decontaminated",)),
    # The best that is known here and does not know the planted labels.
    "combination": Strategy(
        ("basic", "near_dedup", "no_text", "clip_score_by_entry"),
        (
            "filters.basic.min_side=125",
            "filters.near_dedup.min_similarity=0.97",
            "filters.clip_score_by_entry.keep=0.6",
        ),
        on_all_pools=True,
    ),
    "near_dedup": Strategy(("near_dedup",)),
    "clip_score_by_entry": Strategy(("clip_score_by_entry",)),
    "no_text": Strategy(("no_text",)),
    "rank_in_negatives": Strategy(("rank_in_negatives",)),
    "normsim": Strategy(("normsim",)),
    "semdedup": Strategy(("semdedup",)),
    "dedup": Strategy(("dedup",)),
    "negcliploss": Strategy(("negcliploss",)),
    "soft_cap_sampling": Strategy(("soft_cap_sampling",)),
    "density_pruning": Strategy(("density_pruning",)),
    # The paper prunes what is left after a cut at the CLIP score.
    "clip_score+density_pruning": Strategy(
        ("clip_score", "density_pruning"), ("filters.clip_score.fraction=0.5", "filters.density_pruning.keep=0.6")
    ),
}


@dataclass(frozen=True)
class Job:
    """One strategy at some training seeds on one generation seed of the pool."""

    name: str
    seeds: tuple[int, ...]
    pool_seed: int


def main() -> int:
    """Run every job and keep its entry; returns 1 where a strategy failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="nano")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="training seeds")
    parser.add_argument("--pool-seeds", type=int, nargs="+", default=[0, 1, 2], help="the board's own first")
    parser.add_argument("--seeds-per-run", type=int, default=1, help="seeds of a strategy that one process trains")
    parser.add_argument("--only", nargs="+", default=list(STRATEGIES), metavar="NAME", help="strategies, of those here")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once; each uses one core")
    options = parser.parse_args()
    for name in options.only:
        if name not in STRATEGIES:
            parser.error(f"unknown strategy {name!r}.{nearest_name(name, STRATEGIES)} Strategies: {list(STRATEGIES)}")
    if options.seeds_per_run < 1:
        parser.error(f"--seeds-per-run {options.seeds_per_run} is below 1")
    jobs = make_jobs(options.only, options.seeds, options.pool_seeds, options.seeds_per_run)
    for pool_seed in dict.fromkeys(job.pool_seed for job in jobs):
        build = ["pool", "build", "--scale", options.scale, "--pool-seed", str(pool_seed)]
        subprocess.run([sys.executable, "-m", "benchmark", *build], check=True)
    failures: dict[tuple[str, int], str] = {}

    def run(job: Job) -> None:
        strategy = job.name, job.pool_seed
        if strategy in failures:
            return
        done = subprocess.run(command_of(job, options.scale), capture_output=True, text=True)
        if done.returncode:
            failures[strategy] = (done.stderr.strip() or "no message").splitlines()[-1]
        else:
            keep_entry(job, options.scale, own_pool=options.pool_seeds[0])

    with ThreadPoolExecutor(options.jobs) as pool:
        for _ in tqdm(pool.map(run, jobs), total=len(jobs), desc="references", unit="run"):
            pass
    for (name, pool_seed), message in failures.items():
        print(f"{name} on pool seed {pool_seed} failed: {message}", file=sys.stderr)
    return 1 if failures else 0


def make_jobs(
    names: Sequence[str], seeds: Sequence[int], pool_seeds: Sequence[int], seeds_per_run: int = 1
) -> list[Job]:
    """Return all jobs, `seeds_per_run` training seeds after the other, the board's own pool before the others."""
    own_pool, *others = dict.fromkeys(pool_seeds)
    jobs = []
    distinct = list(dict.fromkeys(seeds))
    for start in range(0, len(distinct), seeds_per_run):
        some = tuple(distinct[start : start + seeds_per_run])
        jobs += [Job(name, some, own_pool) for name in names]
        jobs += [Job(name, some, other) for other in others for name in names if STRATEGIES[name].on_all_pools]
    return jobs


def exp_dir_of(job: Job, scale: str) -> Path:
    """Return the experiment's folder, the same for all training seeds."""
    return Path("experiments") / scale / f"reference-{job.name}-pool{job.pool_seed}"


def command_of(job: Job, scale: str) -> list[str]:
    """Return the command of a job; seeds that are in its folder already stay there and in its entry."""
    strategy = STRATEGIES[job.name]
    return [
        *(sys.executable, "-m", "benchmark", "run"),
        f"scale={scale}",
        f"pool_seed={job.pool_seed}",
        f"seeds=[{','.join(map(str, job.seeds))}]",
        f"filters=[{','.join(strategy.filters)}]",
        *strategy.options,
        "report=false",
        f"exp_dir={exp_dir_of(job, scale)}",
    ]


def keep_entry(job: Job, scale: str, own_pool: int) -> None:
    """Copy the entry of a job's experiment to its place on the board."""
    entry = read_entry(exp_dir_of(job, scale) / "entry.json")
    if job.pool_seed == own_pool:
        path = BOARDS_DIR / scale / ENTRIES_NAME / f"{entry.name}.json"
    else:
        path = BOARDS_DIR / scale / OTHER_POOLS_NAME / f"{entry.name}-pool{job.pool_seed}.json"
    write_entry(path, entry)


if __name__ == "__main__":
    sys.exit(main())
