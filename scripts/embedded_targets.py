"""Print how far the embedded benchmark meets its design targets, from a board's reference entries only.

    python scripts/embedded_targets.py [--board nano]

- Shares: what DataComp's baselines keep of CommonPool at small scale, and what they keep here (aim: within 4 points).
- Gap: clip_score's gain over no_filter in units of the seeds' standard deviation (aim: 15).
- Headroom: the best strategy's gain over clip_score in units of that gap (aim: 0.8), oracles aside.
"""

from __future__ import annotations

import argparse
import math

from leaderboard.board import BOARDS_DIR, read_board, read_entries
from leaderboard.entries import Entry
from leaderboard.statistics import mean, sd

PUBLISHED_SHARES = {  # size over 12.8 million (DataComp, Table 3)
    "basic": 0.23,
    "text_based": 0.25,
    "image_based": 0.23,
    "image_based+clip_score": 0.11,
    "laion2b": 0.10,
}
NOTHING, CLIP = "no_filter", "clip_score-0.3"


def main() -> None:
    """Read the entries and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--board", default="nano", help="a board of leaderboard/")
    board = read_board(BOARDS_DIR / parser.parse_args().board)
    entries = {entry.name: entry for entry in read_entries(board)}
    print(f"{'share kept':28} DataComp   here")
    for strategy, published in PUBLISHED_SHARES.items():
        for entry in entries.values():
            if "+".join(used.name for used in entry.strategy) == strategy:
                print(f"{entry.name[:28]:28} {published:8.0%} {entry.share_kept:6.1%}")
    missing = [name for name in (NOTHING, CLIP) if name not in entries]
    if missing:
        raise SystemExit(f"the board has no entry {' and '.join(missing)}; scripts/make_references.py makes them")
    headline = list(board.headline)

    def average(entry: Entry) -> float:
        return mean(entry.averages(headline))

    gap = average(entries[CLIP]) - average(entries[NOTHING])
    spreads = [sd(entries[name].averages(headline)) for name in (NOTHING, CLIP)]
    if None not in spreads:
        noise = math.sqrt(sum(spread**2 for spread in spreads if spread is not None) / 2)
        print(f"\ngap {CLIP} - {NOTHING}: {gap:.3f}, {gap / noise:.1f} seed standard deviations of {noise:.4f}")
    for title, reference in (("best strategy", False), ("oracle", True)):
        chosen = [entry for entry in entries.values() if entry.reference == reference]
        if chosen:
            best = max(chosen, key=average)
            room = (average(best) - average(entries[CLIP])) / gap
            print(f"{title}: {best.name} {average(best):.3f}, {room:+.2f} of the gap above {CLIP}")


if __name__ == "__main__":
    main()
