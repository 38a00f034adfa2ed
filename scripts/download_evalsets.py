"""Download evaluation sets from the Hugging Face hub: DataComp's, or those of your own tasks.

    python scripts/download_evalsets.py --out evalsets --dry-run
    python scripts/download_evalsets.py --out evalsets
    python scripts/download_evalsets.py --out evalsets --tasks vtab imagenet1k
    python scripts/download_evalsets.py --out evalsets --check

Killed and started again it resumes: files that are there stay, those that broke off are resumed. Each is
checked by the hash that the hub lists for one commit, which `download.json` beside it names and keeps. A set counts as
whole by `test/nshards.txt`, which comes last; rows (Flickr, COCO, WinoGAViL) come as parquet to
`hf_cache/<owner>___<name>/<commit>/`, with `download.json` last. Gated sets need HF_TOKEN; HF_ENDPOINT names a mirror.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a checkout, the package not installed

from benchmark.registry import load_tasks, tasks_named
from benchmark.runtime.console import say
from benchmark.runtime.errors import UserError
from benchmark.runtime.failures import EXIT_PARTS, EXIT_PROBLEMS, end_of_script
from benchmark.runtime.locks import locked
from scripts.download.check_evalsets import check_sets, chosen_sets, recorded_sets
from scripts.download.evalsets import EvalSet, Source, make_plan, sources_of
from scripts.download.evalsets_at_hub import UnreachableError, endpoint_of_hub, find_set, need_hub_client, token_shown
from scripts.download.fetch_evalsets import Outcome, fetch_sets
from scripts.download.record import GB, need_space

SUITE = "datacomp"
SOME_FAILED = EXIT_PARTS  # where sets are not whole


def run(options: argparse.Namespace) -> int:
    """Do what the options ask; return the exit status."""
    load_tasks(options.plugins)
    words = options.tasks or ([] if options.check else [SUITE])
    sources = sources_of(tasks_named(words, SUITE), options.out, options.owner)
    if options.check:
        return check(options.out, sources, options.workers)
    need_hub_client()
    if options.dry_run:
        outcomes = look(sources, options)
        print_table(outcomes, coming="to fetch")
        say(f"{sum(each.plan.needed for each in outcomes if each.plan and not each.reason) / GB:,.3f} GB to fetch")
        print_problems(outcomes)
        return SOME_FAILED if any(each.reason for each in outcomes) else 0
    with locked(options.out):
        outcomes = look(sources, options)
        plans = [each.plan for each in outcomes if each.plan and not each.reason]
        needed = sum(plan.needed for plan in plans)
        need_space(options.out, needed, "the evaluation sets", ", or name fewer --tasks")
        endpoint = endpoint_of_hub()
        with token_shown(endpoint):
            fetched = {each.source: each for each in fetch_sets(plans, endpoint, options.workers)}
    outcomes = [fetched.get(each.source, each) for each in outcomes]
    print_table(outcomes, coming="fetched")
    print_problems(outcomes)
    names = f" tasks=[{','.join(words)}]"
    plugins = f" plugins=[{','.join(map(str, options.plugins))}]" if options.plugins else ""
    say(f"winnow evaluate model=... checkpoint=... eval_dir={options.out} out_dir=...{names}{plugins}")
    return SOME_FAILED if any(each.reason for each in outcomes) else 0


def look(sources: Sequence[Source], options: argparse.Namespace) -> list[Outcome]:
    """List the sets and compare them with what is there.

    Raises UnreachableError where the hub is needed and cannot be reached.
    """
    endpoint = endpoint_of_hub()

    def find(source: Source) -> EvalSet | str:
        try:
            return find_set(source, options.revision, endpoint, replacing=options.replace)
        except UnreachableError:
            raise
        except (ValueError, OSError) as error:
            return str(error)

    pool = ThreadPoolExecutor(options.workers)
    try:
        found = list(pool.map(find, sources))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    pairs = zip(sources, found, strict=True)
    return [compare(*pair, options.replace) for pair in tqdm(pairs, "compared", len(found), unit="set", disable=None)]


def compare(source: Source, found: EvalSet | str, replacing: bool) -> Outcome:
    """Compare a set with what is there; a text is the reason why there is no set."""
    if isinstance(found, str):
        return Outcome(source, reason=found)
    try:
        plan = make_plan(found)
    except (ValueError, OSError) as error:
        return Outcome(source, reason=str(error))
    if not plan.other or replacing:
        return Outcome(source, plan)
    more = f" (and {len(plan.other) - 1} more)" if len(plan.other) > 1 else ""
    return Outcome(
        source,
        plan,
        f"{found.folder / plan.other[0]}{more} is not what {source.repo} has at the commit {found.commit}; "
        "give --replace to have it fetched again, or choose another folder",
    )


def check(out: Path, sources: Sequence[Source], workers: int) -> int:
    """Read all that is there, or all of these sources, and say what is wrong with it; return the exit status."""
    eval_sets, absent = chosen_sets(sources) if sources else (recorded_sets(out), [])
    wrong = check_sets(eval_sets, workers) + absent
    for line in wrong:
        say(line)
    count, size = sum(len(each.files) for each in eval_sets), sum(each.size for each in eval_sets)
    say(f"{len(eval_sets):,} sets of {count:,} files, {size / GB:,.3f} GB: {len(wrong) or 'nothing'} wrong")
    return EXIT_PROBLEMS if wrong else 0


def print_table(outcomes: Sequence[Outcome], *, coming: str) -> None:
    """Print how much each source has, and of that how many files came (or are to come) and were there."""
    width = max(4, *(len(each.source.title) for each in outcomes))
    say(f"{'task':{width}}  {'files':>6}  {'GB':>8}  {coming:>8}  {'was there':>9}")
    sums = [0, 0, 0, 0]
    for each in outcomes:
        if each.plan is None or each.reason:
            say(f"{each.source.title:{width}}  {'-':>6}  {'-':>8}  {'-':>8}  {'-':>9}  failed")
            continue
        eval_set, count = each.plan.eval_set, len(each.plan.coming)
        numbers = [len(eval_set.files), eval_set.size, count, len(eval_set.files) - count]
        note = f"  ({eval_set.num_ignored} other files left out)" if eval_set.num_ignored else ""
        say(f"{each.source.title:{width}}  {_columns(numbers)}{note}")
        sums = [total + number for total, number in zip(sums, numbers, strict=True)]
    say(f"{'all':{width}}  {_columns(sums)}")


def _columns(numbers: Sequence[int]) -> str:
    files, size, coming, there = numbers
    return f"{files:>6,}  {size / GB:>8,.3f}  {coming:>8,}  {there:>9,}"


def print_problems(outcomes: Sequence[Outcome]) -> None:
    """Name the sources that are not whole, with the reasons."""
    failed = [each for each in outcomes if each.reason]
    if failed:
        print(f"error: {len(failed)} of {len(outcomes)} sets failed; the same line goes on with them", file=sys.stderr)
    for each in failed:
        print(f"  {each.source.title}: {each.reason}", file=sys.stderr)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; raises ValueError where options do not go together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder of the sets: eval_dir= of winnow evaluate")
    parser.add_argument("--tasks", nargs="+", metavar="NAME", help=f"tasks, groups or suites (default: {SUITE})")
    parser.add_argument("--plugins", nargs="+", type=Path, default=[], metavar="FILE", help="files with further tasks")
    parser.add_argument("--owner", default="djghosh", help="who has the sets at the hub (default: %(default)s)")
    parser.add_argument("--revision", help="branch, tag or commit (default: main; a begun set keeps its commit)")
    parser.add_argument("--replace", action="store_true", help="fetch again what has other bytes than the hub's")
    parser.add_argument("--workers", type=int, default=4, help="files side by side (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="only list what there is and what is there already")
    parser.add_argument("--check", action="store_true", help="only read what is there and compare it with its records")
    options = parser.parse_args(arguments)
    if options.workers < 1:
        raise UserError(f"--workers is {options.workers}; it must be 1 or more", code="option-value")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(options.out)):
        raise UserError(f"--out is {options.out}; fetch the sets to a local folder and copy that", code="option-value")
    for name in ("dry_run", "replace", "revision"):
        if options.check and getattr(options, name):
            raise UserError(f"--check and --{name.replace('_', '-')} do not go together", code="option-conflict")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 1 where a check finds problems, 3 where sets failed.

    2 after one sentence of what can be mended, as every command of Winnow's.
    """
    return end_of_script(__file__, lambda: run(parse(arguments)), arguments)


if __name__ == "__main__":
    code = main()
    if code == 130:
        os._exit(code)  # else the interpreter would wait for what the threads are fetching
    sys.exit(code)
