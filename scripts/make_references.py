"""Make a board's reference entries: every strategy below, several training seeds each, on the embedded pool.

    python scripts/make_references.py --scale nano --seeds 0 1 2 --jobs 2

Experiments go to experiments/<scale>/, their entries to leaderboard/<scale>/entries/. What is finished is reused, so
a stopped run goes on. One training takes about a minute on one core.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from leaderboard.entries import BOARDS_DIR, read_entry, write_entry

STRATEGIES = {
    "no_filter": ["filters=no_filter"],
    "random": ["filters=random"],
    "basic": ["filters=basic"],
    "clip_score": ["filters=clip_score"],
    "planted_clean": ["filters=planted_clean"],
}


def main() -> None:
    """Run every strategy and keep its entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="nano")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once; each uses one core")
    options = parser.parse_args()
    common = [f"scale={options.scale}", f"seeds={options.seeds}".replace(" ", "")]
    subprocess.run([sys.executable, "-m", "benchmark", "pool", "build", "--scale", options.scale], check=True)

    def run(name: str) -> Path:
        exp_dir = Path("experiments") / options.scale / f"reference-{name}"
        command = [sys.executable, "-m", "benchmark", "run", *common, *STRATEGIES[name], f"exp_dir={exp_dir}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return exp_dir / "entry.json"

    with ThreadPoolExecutor(options.jobs) as pool:
        for path in tqdm(pool.map(run, STRATEGIES), total=len(STRATEGIES), desc="references", unit="strategy"):
            entry = read_entry(path)
            write_entry(BOARDS_DIR / options.scale / "entries" / f"{entry.name}.json", entry)


if __name__ == "__main__":
    main()
