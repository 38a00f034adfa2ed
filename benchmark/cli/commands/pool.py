"""winnow pool: make pools, index them, check them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from benchmark.cli.parsing import Parser
from benchmark.cli.pools import default_pool_dir
from benchmark.cli.values import as_count, as_path
from benchmark.runtime.console import say
from benchmark.runtime.errors import UserError
from benchmark.runtime.failures import EXIT_PROBLEMS
from benchmark.scales import get_scale


def main(arguments: list[str]) -> int:
    parser = Parser(prog="winnow pool", description="Make pools, index them and look them over.")
    actions = parser.add_subparsers(dest="action", required=True, parser_class=Parser)
    build = actions.add_parser("build", help="draw an embedded pool, its evaluation sets and its index")
    build.add_argument("--scale", default="nano", help="nano or pico (default: %(default)s)")
    build.add_argument("--pool-seed", type=int, default=0, help="which drawing (default: %(default)s)")
    build.add_argument("--pool-dir", help="the folder (default: pools/<scale>, for seed 0)")
    index = _pool_action(
        actions,
        "index",
        "find every sample in the tars, and what is damaged; a second call reads what has changed",
        "winnow pool index pools/mine --workers 8",
        "Exit code 0: whole; 1: some tar is damaged, or something is left out: tars in folders, compressed or under "
        "other\nnames, samples whose names hold dots. What can be read is indexed all the same.",
    )
    index.add_argument("pool_dir", metavar="DIR", help="the pool")
    index.add_argument("--hash-images", action="store_true", help="hash images whose json names no sha256")
    index.add_argument(
        "--strict",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="end with 1 where a tar is damaged or something is left out (default), or with 0",
    )
    check = _pool_action(
        actions,
        "check",
        "look a pool over: fingerprint, coverage, columns, damage, which filters can run",
        "winnow pool check pools/mine --format json",
        "Exit code 1: repeated or malformed uids, damage, .npz files or columns that do not fit; else 0.",
    )
    check.add_argument("pool_dir", metavar="DIR", help="the pool")
    check.add_argument("--format", default="text", choices=["text", "json"])
    check.add_argument("--plugins", nargs="+", default=[], metavar="FILE", help="your own files with filters")
    sample = _pool_action(
        actions,
        "sample",
        "cut out a sub-pool: the same rows for the same seed, whatever the pool's files; tars are referred to",
        "winnow pool sample pools/small --size 100000 --seed 0 --out pools/tiny",
        "More rows with the same seed hold fewer. Evaluation sets are not taken along: give eval_dir= later.",
    )
    sample.add_argument("pool_dir", metavar="DIR", help="the pool")
    sample.add_argument("--size", type=int, required=True, metavar="N", help="how many rows")
    sample.add_argument("--seed", type=int, default=0, metavar="S", help="which drawing (default: %(default)s)")
    sample.add_argument("--out", required=True, metavar="DIR", help="the sub-pool, a new folder")
    take = _pool_action(
        actions,
        "import",
        "make a pool of somebody else's tars, and of their parquet files or of the tars alone; nothing is copied",
        "winnow pool import --shards data/tars --metadata data/meta --column text=caption --key-column key --out mine",
        "Uids are the tars' where their json names some, else made from image hash and caption. A row finds its sample "
        "by --uid-column,\nby --key-column, or by its columns sha256 and text. Exit code 2, nothing is made: tars are "
        "damaged or left out,\nor dots in names hide members (go on by --no-strict); or no sample can be used.",
    )
    take.add_argument(
        "--shards",
        required=True,
        nargs="+",
        metavar="PATH",
        help="the tars (jpg, txt, perhaps json): their folder, a folder of such folders, patterns or files, such as "
        "'tars/{0000..0127}.tar' or 'tars/**/*.tar'",
    )
    take.add_argument(
        "--metadata", nargs="+", default=[], metavar="PATH", help="parquet files or folders (default: from the tars)"
    )
    take.add_argument("--out", required=True, metavar="DIR", help="the pool, a new folder")
    take.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="NEW=OLD",
        help="what a column is called there; without --metadata a field of the json (several times); text=FIELD where "
        "the captions stand in the json",
    )
    take.add_argument("--uid-column", metavar="C", help="the column of uids; the tars' json name the same ones")
    take.add_argument("--key-column", metavar="C", help="the column of the samples' keys in the tars")
    take.add_argument(
        "--strict",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="make nothing where tars are damaged or left out or dots in names hide members (default), or go on",
    )
    for action in (build, index, check, take):
        action.add_argument("--workers", type=int, default=None, help="processes (default: one per core)")
    options = parser.parse_args(arguments)
    if getattr(options, "workers", None) is not None and options.workers < 0:
        raise UserError(f"--workers {options.workers} is not a whole number from 0 on", code="option-type")
    act: dict[str, Callable[[argparse.Namespace], int]] = {
        "build": _pool_build,
        "index": _pool_index,
        "check": _pool_check,
        "sample": _pool_sample,
        "import": _pool_import,
    }
    return act[options.action](options)


def _pool_action(actions: Any, name: str, summary: str, example: str, more: str) -> Parser:
    parser: Parser = actions.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.\n\n  {example}",
        epilog=more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def _pool_build(options: argparse.Namespace) -> int:
    from benchmark.cli.pools import build_embedded_pool

    scale, seed = get_scale(options.scale), as_count(options.pool_seed, "pool_seed")
    folder = as_path(options.pool_dir, "pool_dir") or default_pool_dir(scale, seed)
    build_embedded_pool(scale, folder, seed, options.workers)
    return 0


def _pool_index(options: argparse.Namespace) -> int:
    from benchmark.pool.index_report import index_pool
    from benchmark.runtime.paths import as_location

    report = index_pool(as_location(options.pool_dir), workers=options.workers, hash_images=options.hash_images)
    print("\n".join(report.lines()))
    return 0 if report.is_whole or not options.strict else EXIT_PROBLEMS


def _pool_check(options: argparse.Namespace) -> int:
    from benchmark.pool.check import check_pool
    from benchmark.pool.pool import Pool
    from benchmark.registry import load_strategies
    from benchmark.runtime.paths import as_location
    from benchmark.selection.runnable import filter_lines, filters_of

    load_strategies(options.plugins)
    report = check_pool(as_location(options.pool_dir), workers=options.workers)
    filters = filters_of(Pool(as_location(options.pool_dir), strict=False))
    if options.format == "json":
        print(json.dumps({**report.as_json(), "filters": filters}, indent=2, ensure_ascii=False))
    else:
        print("\n".join(report.lines(filter_lines(filters))))
    return EXIT_PROBLEMS if report.problems else 0


def _pool_sample(options: argparse.Namespace) -> int:
    from benchmark.pool.folder import as_out_dir
    from benchmark.pool.sampling import sample_pool
    from benchmark.runtime.paths import as_location

    pool_dir, out_dir = as_location(options.pool_dir), as_out_dir(options.out)
    result = sample_pool(pool_dir, out_dir, size=options.size, seed=options.seed).result
    short = f", {options.size - result['rows']:,} fewer than asked for: a uid is drawn with all its rows"
    say(
        f"{out_dir}: {result['rows']:,} rows{short if result['rows'] < options.size else ''}, "
        f"{result['present']:,} samples with image and caption"
    )
    if (pool_dir / "eval").exists():
        say(f"evaluation sets: eval_dir={pool_dir / 'eval'}")
    return 0


def _pool_import(options: argparse.Namespace) -> int:
    from benchmark.pool.folder import as_out_dir
    from benchmark.pool.importing import import_pool
    from benchmark.pool.pool import Pool
    from benchmark.registry import load_strategies
    from benchmark.runtime.paths import as_location
    from benchmark.selection.runnable import filter_lines, filters_of

    columns: dict[str, str] = {}
    for text in options.column:
        new, equals, old = text.partition("=")
        if not (new and equals and old) or new in columns:
            raise UserError(
                f"--column {text} is not NEW=OLD, such as text=caption, with each NEW once", code="option-syntax"
            )
        columns[new] = old
    load_strategies()
    out_dir = as_out_dir(options.out)
    report = import_pool(
        out_dir,
        shards=[as_location(text) for text in options.shards],
        metadata=[as_location(text) for text in options.metadata],
        columns=columns,
        uid_column=options.uid_column,
        key_column=options.key_column,
        strict=options.strict,
        workers=options.workers,
    )
    print("\n".join([str(out_dir), *report.lines(), *filter_lines(filters_of(Pool(out_dir, strict=False)))]))
    return 0
