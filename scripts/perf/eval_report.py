"""The tables of what was measured of evaluation."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

NUM_TASKS = 10
NUM_SHARING = 3  # tasks with the same classes and templates; DataComp has three of ImageNet's 1,000
FASTER_THAN_THEIRS, SHARE_OF_BARE, FASTER_TEXTS = 3.0, 0.9, 5.0
Timings = dict[str, list[float]]  # row -> what was measured in each round


def report_tasks(timings: Timings, images: int) -> list[str]:
    """Return the table of whole commands."""
    ours = timings["`winnow evaluate`"]
    lines = ["| what | s, median | lowest to highest | images/s | ours is |", "|---|---:|---:|---:|---:|"]
    for row, seconds in timings.items():
        median = statistics.median(seconds)
        ratio = "" if seconds is ours else f"{median / statistics.median(ours):.2f} ×"
        lines.append(f"| {row} | {median:.1f} | {spread(seconds, 1)} | {NUM_TASKS * images / median:,.0f} | {ratio} |")
    for call in ("one call", "a call for each"):
        rows = [seconds for row, seconds in timings.items() if call in row]
        if rows:
            best = min(rows, key=statistics.median)
            lines += ["", ratio_line(f"to clip_benchmark's fastest, {call}", best, ours, FASTER_THAN_THEIRS)]
    return lines


def report_images(timings: Timings) -> list[str]:
    """Return the table of images a second."""
    bare = timings["bare encoder"]
    lines = ["| what | images/s, median | lowest to highest | of the bare encoder |", "|---|---:|---:|---:|"]
    for row, rates in timings.items():
        share = statistics.median(rates) / statistics.median(bare)
        lines.append(f"| {row} | {statistics.median(rates):.1f} | {spread(rates, 1)} | {share:.0%} |")
    return [*lines, "", ratio_line("images alone, to the bare encoder", timings["ours"], bare, SHARE_OF_BARE)]


def report_texts(timings: Timings, prompts: int) -> list[str]:
    """Return the table of text classifiers; three tasks are clip_benchmark's one, three times."""
    lines = ["| what | s, median | lowest to highest | prompts/s | ours is |", "|---|---:|---:|---:|---:|"]
    ours = timings["ours"]
    for row, seconds in timings.items():
        median = statistics.median(seconds)
        ratio = "" if row.startswith("ours, three") or row == "ours" else f"{median / statistics.median(ours):.2f} ×"
        encoded = prompts * (NUM_SHARING if "three" in row else 1)
        lines.append(f"| {row} | {median:.2f} | {spread(seconds, 2)} | {encoded / median:,.0f} | {ratio} |")
    theirs, whole = timings["clip_benchmark"], timings["ours, not cut"]
    thrice = [NUM_SHARING * seconds for seconds in theirs]
    return [
        *lines,
        "",
        ratio_line("one task, to clip_benchmark", theirs, ours, FASTER_TEXTS),
        ratio_line(
            "three tasks of one classifier, to clip_benchmark", thrice, timings["ours, three tasks"], FASTER_TEXTS
        ),
        f"- of the first by cutting: {statistics.median(whole) / statistics.median(ours):.2f}; by batches and threads: "
        f"{statistics.median(theirs) / statistics.median(whole):.2f}",
    ]


def spread(values: Sequence[float], digits: int) -> str:
    return f"{min(values):,.{digits}f} to {max(values):,.{digits}f}"


def ratio_line(what: str, above: Sequence[float], below: Sequence[float], target: float) -> str:
    """Say a ratio of medians with its range over the rounds, and whether it reaches its target."""
    ratio = statistics.median(above) / statistics.median(below)
    by_round = [one / another for one, another in zip(above, below, strict=True)]
    outcome = "reached" if ratio >= target else "**missed**"
    return f"- {what}: {ratio:.2f} ({spread(by_round, 2)} by round); target {target:.2f}: {outcome}"
