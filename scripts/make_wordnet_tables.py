"""Make the tables of WordNet 3.0 that the package brings, from a folder of WordNet's own files.

    python scripts/make_wordnet_tables.py DIR

DIR is the `dict` of Princeton's archive, nltk's `corpora/wordnet`, or what Debian's package wordnet-base (3.0) puts
into /usr/share/wordnet. The same files give the same bytes. benchmark/toolbox/wordnet.py says what the tables hold.
"""

from __future__ import annotations

import argparse
import gzip
import re
from pathlib import Path

from benchmark.runtime.files import write_bytes
from benchmark.toolbox.wordnet import (
    FIRST_SYNSETS,
    PARTS_OF_SPEECH,
    SYNSET_NAMES,
    TABLES_DIR,
    find_wordnet,
    hash_wordnet,
    load_wordnet,
    synset_names,
)

LICENCE = "LICENSE"


def write_tables(place: Path, out_dir: Path) -> None:
    """Write both tables and Princeton's licence, which stands at the head of each of WordNet's files."""
    wordnet = load_wordnet(place)
    blocks = [f"sha256 {hash_wordnet(place)}"]
    for part in PARTS_OF_SPEECH:
        blocks.append("\n".join(f"{lemma} {offset}" for lemma, offset in wordnet.first_offsets[part].items()))
        blocks.append("\n".join(" ".join([form, *lemmas]) for form, lemmas in wordnet.exceptions[part].items()))
    write_bytes(out_dir / FIRST_SYNSETS, _zipped("\n\n".join(blocks)))
    write_bytes(out_dir / SYNSET_NAMES, _zipped("".join(f"{name}\n" for name in synset_names(place))))
    write_bytes(out_dir / LICENCE, read_licence(place).encode())


def read_licence(place: Path) -> str:
    """Return the numbered lines at the head of a file of WordNet, without their numbers."""
    lines = (place / "index.noun").read_text(encoding="utf-8").splitlines()
    return "".join(f"{re.sub(r'^ +[0-9]+ ', '', line).rstrip()}\n" for line in lines if line.startswith(" "))


def _zipped(text: str) -> bytes:
    return gzip.compress(text.encode(), compresslevel=9, mtime=0)


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wordnet_dir", metavar="DIR", help="the folder of WordNet 3.0's files")
    parser.add_argument(
        "--out", type=Path, default=TABLES_DIR, help="the folder of the tables (default: the package's)"
    )
    arguments = parser.parse_args()
    write_tables(find_wordnet(arguments.wordnet_dir, option="DIR"), arguments.out)
    for name in (FIRST_SYNSETS, SYNSET_NAMES, LICENCE):
        print(f"{arguments.out / name}: {(arguments.out / name).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
