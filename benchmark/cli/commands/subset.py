"""winnow subset: inspect, combine and compare subset files."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmark.cli.parsing import Parser

SUBSET_HELP = """\
Inspect, combine and compare subset files. A subset is a multiset: a uid may have several copies.

  and A B ...       for each uid, the smallest number of copies in any file
  or A B ...        for each uid, the largest number of copies in any file
  minus A B ...     for each uid, A's copies minus those of every B, never below 0
  restrict A B ...  A with all its copies, only for uids that are in every B
  overlap A B ...   for every pair of files, copies counted: what they share (the smaller number of copies of each uid),
                    what only one has (the rest), and the Jaccard index of copies (sum of the smaller numbers / sum of
                    the larger) and of uids (each counted once, as in a report); for more than two files also what all
                    of them share
  info FILE         how many uids and copies there are

Files are .npy as DataComp writes them, raw pairs of 8-byte integers, or .parquet with a column uid (one copy per row).
The first two are read in blocks, so they may be larger than memory.
"""


def main(arguments: list[str]) -> int:
    """Run `winnow subset ACTION ...`; return the exit code."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="winnow subset", description=SUBSET_HELP, formatter_class=raw)
    actions = parser.add_subparsers(dest="action", required=True, parser_class=Parser, metavar="ACTION")
    actions.add_parser("info").add_argument("file")
    for name in ("and", "or", "minus", "restrict", "overlap"):
        action = actions.add_parser(name, description=SUBSET_HELP, formatter_class=raw)
        action.add_argument("file", metavar="A")
        action.add_argument("others", nargs="+", metavar="B")
        if name == "overlap":
            action.add_argument("--format", default="text", choices=["text", "markdown", "csv"])
        else:
            action.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file to write")
    options = parser.parse_args(arguments)
    from benchmark.pool.subset import SUBSET_RECORD_NAME
    from benchmark.pool.subset_algebra import combine_files, describe_file, overlap_files
    from benchmark.runtime.mirror import local_copy
    from benchmark.runtime.paths import as_location

    given = [options.file, *getattr(options, "others", [])]
    paths = [local_copy(as_location(text), beside=[SUBSET_RECORD_NAME]) for text in given]
    if options.action == "info":
        print("\n".join(describe_file(paths[0])))
    elif options.action == "overlap":
        print(overlap_files(paths, options.format))
    else:
        print("\n".join(combine_files(options.action, paths, options.out)))
    return 0
