"""Write the part of MetaCLIP's entries that comes from WordNet: 86,654 names, for `filters=metaclip` on any pool.

    python scripts/make_metaclip_entries.py

It goes to the user's asset folder, where the filter finds it; the folder of a pool that has its own comes first. The
other 413,346 of MetaCLIP's entries are words and titles of Wikipedia, many of them with capitals: captions that only
those would match are dropped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmark.runtime.files import write_bytes
from benchmark.runtime.paths import user_assets_dir
from benchmark.toolbox.wordnet import find_wordnet, synset_names


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wordnet-dir", help="a folder of WordNet 3.0's files (default: the names that Winnow brings)")
    parser.add_argument("--out", type=Path, default=user_assets_dir() / "metaclip_entries.txt", help="the file")
    arguments = parser.parse_args()
    names = {*synset_names(find_wordnet(arguments.wordnet_dir, option="--wordnet-dir")), *map(str, range(100))}
    write_bytes(arguments.out, "".join(f"{name}\n" for name in sorted(names)).encode())
    print(f"{len(names):,} entries: {arguments.out}")


if __name__ == "__main__":
    main()
