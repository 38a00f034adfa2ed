"""Fetch the public files that DataComp's baselines need into the user's asset folder.

    python scripts/download_assets.py
    python scripts/download_assets.py lid.176.bin small_centroids_l14.pt
    python scripts/download_assets.py datacomp_small

Without names it lists what there is and what lies there. `datacomp_small`, and likewise for the other scales, is all
that DataComp's code fetches for a pool of that scale. Killed, the same line goes on; a file is put in place when its
sha256 is right. $WINNOW_ASSETS_URL names a mirror: a folder's url with files of these names.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a checkout, the package not installed

from benchmark.runtime.console import say
from benchmark.runtime.errors import UnknownNameError
from benchmark.runtime.failures import end_of_script
from benchmark.runtime.names import nearest_name
from benchmark.runtime.paths import user_assets_dir
from benchmark.selection.assets import KNOWN_ASSETS, asset_url, fetch_asset

TARGETS = [f"in1k_clip_vit_l14_{number}.pt" for number in range(5)]
GROUPS = {
    f"datacomp_{scale}": ["lid.176.bin", "imagenet21k_wordnet_ids.txt", *TARGETS, f"{scale}_centroids_l14.pt"]
    for scale in ("small", "medium", "large", "xlarge")
}


def names_of(words: Sequence[str]) -> list[str]:
    """Return the files of names and groups, each once; raises KeyError with the nearest name."""
    names = []
    for word in words:
        if word not in KNOWN_ASSETS and word not in GROUPS:
            known = [*KNOWN_ASSETS, *GROUPS]
            raise UnknownNameError(
                f"unknown asset {word!r}.{nearest_name(word, known)} Assets: {', '.join(known)}.", code="unknown-asset"
            )
        names += GROUPS.get(word, [word])
    return list(dict.fromkeys(names))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status, after one sentence where it is not 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"a file, or {', '.join(GROUPS)}")
    parser.add_argument("--out", type=Path, default=user_assets_dir(), help="the folder (default: %(default)s)")
    options = parser.parse_args(arguments)

    def work() -> int:
        for name in names_of(options.names):
            say(f"{fetch_asset(name, options.out)}: as it should be")
        if not options.names:
            for name in KNOWN_ASSETS:
                say(f"{'there' if (options.out / name).exists() else '-':6} {name:27} {asset_url(name)}")
            say(f"groups: {', '.join(GROUPS)}; folder: {options.out}")
        return 0

    return end_of_script(__file__, work, arguments)


if __name__ == "__main__":
    sys.exit(main())
