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
    """Run `winnow pool ACTION ...`; return the exit code."""
    parser = Parser(prog="winnow pool", description="Make pools, index them and check them.")
    actions = parser.add_subparsers(dest="action", required=True, parser_class=Parser)
    for declare in (_declare_build, _declare_index, _declare_check, _declare_sample, _declare_import):
        declare(actions)
    options = parser.parse_args(arguments)
    if getattr(options, "workers", None) is not None and options.workers < 0:
        raise UserError(f"--workers {options.workers} is not a non-negative integer", code="option-type")
    act: Callable[[argparse.Namespace], int] = options.act
    return act(options)


def _declare(
    actions: Any, act: Callable[[argparse.Namespace], int], name: str, summary: str, example: str, more: str
) -> Parser:
    """Add an action; `act` is called with its options, and returns the exit code."""
    parser: Parser = actions.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.\n\n  {example}",
        epilog=more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(act=act)
    return parser


def _add_workers(parser: Parser) -> None:
    parser.add_argument("--workers", type=int, default=None, help="processes (default: one per core)")


def _declare_build(actions: Any) -> None:
    parser = _declare(
        actions,
        _pool_build,
        "build",
        "generate an embedded pool, its evaluation sets and its index",
        "winnow pool build --scale pico",
        "If it is killed, the same command continues.",
    )
    parser.add_argument("--scale", default="nano", help="nano or pico (default: %(default)s)")
    parser.add_argument("--pool-seed", type=int, default=0, help="the generation seed (default: %(default)s)")
    parser.add_argument("--pool-dir", help="the folder (default: pools/<scale>, or pools/<scale>-<seed>)")
    _add_workers(parser)


def _declare_index(actions: Any) -> None:
    parser = _declare(
        actions,
        _pool_index,
        "index",
        "find every sample in the tars, and what is damaged; a second call reads what has changed",
        "winnow pool index pools/mine --workers 8",
        "Exit code 0: no damage; 1: a tar is damaged, or something is left out: tars in folders, compressed or under "
        "other\nnames, samples whose names contain dots. Everything that can be read is indexed in either case.",
    )
    parser.add_argument("pool_dir", metavar="DIR", help="the pool")
    parser.add_argument("--hash-images", action="store_true", help="hash images whose json has no sha256")
    parser.add_argument(
        "--strict",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="exit with 1 if a tar is damaged or something is left out (default), or with 0",
    )
    _add_workers(parser)


def _declare_check(actions: Any) -> None:
    parser = _declare(
        actions,
        _pool_check,
        "check",
        "check a pool: fingerprint, coverage, columns, damage, which filters can run",
        "winnow pool check pools/mine --format json",
        "Exit code 1: repeated or malformed uids, damage, .npz files or columns that do not fit; else 0.",
    )
    parser.add_argument("pool_dir", metavar="DIR", help="the pool")
    parser.add_argument("--format", default="text", choices=["text", "json"])
    parser.add_argument("--plugins", nargs="+", default=[], metavar="FILE", help="your own files with filters")
    _add_workers(parser)


def _declare_sample(actions: Any) -> None:
    parser = _declare(
        actions,
        _pool_sample,
        "sample",
        "make a smaller pool of some rows: the same rows for the same seed, however the pool is split into files",
        "winnow pool sample pools/small --size 100000 --seed 0 --out pools/tiny",
        "A larger sample with the same seed contains the smaller one. Tars are referenced, not copied. Evaluation sets "
        "are not\nincluded: give eval_dir= later.",
    )
    parser.add_argument("pool_dir", metavar="DIR", help="the pool")
    parser.add_argument("--size", type=int, required=True, metavar="N", help="how many rows")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="the sampling seed (default: %(default)s)")
    parser.add_argument("--out", required=True, metavar="DIR", help="the smaller pool, a new folder")


def _declare_import(actions: Any) -> None:
    parser = _declare(
        actions,
        _pool_import,
        "import",
        "make a pool of existing tars, with parquet files or from the tars only; nothing is copied",
        "winnow pool import --shards data/tars --metadata data/meta --column text=caption --key-column key --out mine",
        "Uids are those in the tars' json, if any, else computed from image hash and caption. A row is matched to its "
        "sample\nby --uid-column, by --key-column, or by its columns sha256 and text. Exit code 2 and no pool, if tars "
        "are damaged\nor left out or dots in names hide members (--no-strict continues), or if no sample can be used.",
    )
    parser.add_argument(
        "--shards",
        required=True,
        nargs="+",
        metavar="PATH",
        help="the tars (jpg, txt, optionally json): their folder, a folder of such folders, patterns or files, such as "
        "'tars/{0000..0127}.tar' or 'tars/**/*.tar'",
    )
    parser.add_argument(
        "--metadata", nargs="+", default=[], metavar="PATH", help="parquet files or folders (default: from the tars)"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the pool, a new folder")
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="NEW=OLD",
        help="rename column OLD to NEW; without --metadata OLD is a field of the json (may be repeated); text=FIELD if "
        "the captions are in the json",
    )
    parser.add_argument("--uid-column", metavar="C", help="the column of uids, which the tars' json has too")
    parser.add_argument("--key-column", metavar="C", help="the column of the samples' keys in the tars")
    parser.add_argument(
        "--strict",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="stop if tars are damaged or left out or dots in names hide members (default), or continue",
    )
    _add_workers(parser)


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
    short = f", {options.size - result['rows']:,} fewer than requested: a uid is sampled with all its rows"
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
