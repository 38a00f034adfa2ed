"""What is measured of training, and the tables of it."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmark.runtime.errors import UserError
from benchmark.scales import Augmentation, Scale, get_scale

OPEN_CLIP_AREA = (0.9, 1.0)  # open_clip's default for the share that a random crop keeps
FASTER_THAN_OPEN_CLIP = 3.0  # the targets
SHARE_OF_BARE, SHARE_OF_FLOOR = 0.9, 0.95


@dataclass(frozen=True)
class Job:
    """One measurement, as it is handed to its process."""

    leg: str  # "ours", "bare", "decoding" or "open_clip"
    scale: str
    pool_dir: str
    samples: int
    batch_size: int | None  # None: the recipe's
    device: str
    stream: bool
    threads: int | None  # None: torch's default. Ours and the bare model take the recipe's where it has one
    workers: int
    skip: int = 0  # first steps that are not timed, and no state is saved: what a run of hours comes to

    @property
    def row(self) -> str:
        """Return what tells the rows of open_clip's trainer apart from each other and from the rest."""
        return f"{self.leg}/{self.threads}/{self.workers}"


@dataclass(frozen=True)
class Outcome:
    """What one measurement found."""

    samples: int
    seconds: float  # all of it
    decoding_seconds: float  # the part in which samples were decoded once, to be held in memory
    cpu_seconds: float  # of all its processes and threads
    threads: int


@dataclass(frozen=True)
class Row:
    """A line of the table: samples per second of every round."""

    name: str
    threads: int
    workers: int
    rates: list[float]
    cpu_rates: list[float]  # samples per second of CPU time; empty where it was not measured apart

    @property
    def median(self) -> float:
        """Return the median over the rounds."""
        return statistics.median(self.rates)


def make_rows(jobs: Sequence[Job], rounds: Sequence[Sequence[Outcome]]) -> dict[str, list[Row]]:
    """Return the table's rows by leg; "whole" is ours with the decoding, "held" the decoding."""
    rows: dict[str, list[Row]] = {}
    names = {
        "ours": "our loop",
        "bare": "bare model, one batch in memory",
        "decoding": "decoding alone, on the way",
        "open_clip": "open_clip's trainer",
    }
    for number, job in enumerate(jobs):
        outcomes = [outcomes[number] for outcomes in rounds]
        threads = outcomes[0].threads

        rates = [one.samples / one.seconds for one in outcomes]
        cpu_rates = [one.samples / one.cpu_seconds for one in outcomes]
        if job.leg == "ours" and is_held(job):
            after = [one.samples / (one.seconds - one.decoding_seconds) for one in outcomes]
            before = [one.samples / one.decoding_seconds for one in outcomes]
            rows["whole"] = [Row("our loop, decoding once included", threads, job.workers, rates, cpu_rates)]
            rows["held"] = [Row("the decoding alone, on all cores", threads, job.workers, before, [])]
            rows["ours"] = [Row("our loop without it", threads, job.workers, after, [])]
        else:
            rows.setdefault(job.leg, []).append(Row(names[job.leg], threads, job.workers, rates, cpu_rates))
    return rows


def is_held(job: Job) -> bool:
    """Tell whether our loop holds the samples in memory (its own rule, for pools of any size measured here)."""
    return scale_of(job).augmentation.kind == "shift"


def print_report(jobs: Sequence[Job], rows: dict[str, list[Row]], num_rounds: int) -> None:
    """Print the machine, the table and the ratios beside their targets."""
    job, scale = jobs[0], scale_of(jobs[0])
    whole = rows.get("whole", rows["ours"])[0]
    print(f"{machine(job.device)}\n")
    print(
        f"Scale {scale.name}{' (streamed)' if job.stream else ''}: {scale.samples_seen:,} samples in batches of "
        f"{scale.batch_size}, {scale.precision}, {num_rounds} interleaved rounds; load average "
        f"{os.getloadavg()[0]:.1f} at the end.\n"
    )
    print("| what | threads | workers | samples/s, median | lowest to highest | per CPU second | ours is |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for leg in ("whole", "ours", "held", "bare", "decoding", "open_clip"):
        for row in rows.get(leg, []):
            ratio = "" if leg in ("whole", "held") else f"{whole.median / row.median:.2f} ×"
            print(
                f"| {row.name} | {row.threads} | {row.workers} | {row.median:,.0f} "
                f"| {min(row.rates):,.0f} to {max(row.rates):,.0f} "
                f"| {f'{statistics.median(row.cpu_rates):,.0f}' if row.cpu_rates else ''} | {ratio} |"
            )
    print()
    best = max(rows["open_clip"], key=lambda row: row.median)
    thriftiest = max(rows["open_clip"], key=lambda row: statistics.median(row.cpu_rates))
    say_ratio("our loop, all included, to open_clip's fastest row", whole, best, FASTER_THAN_OPEN_CLIP)
    per_cpu = statistics.median(whole.cpu_rates) / statistics.median(thriftiest.cpu_rates)
    print(f"- the same per second of CPU time, to open_clip's thriftiest row: {per_cpu:.2f}")
    bare = rows["bare"][0]
    if "decoding" in rows:
        floor = min(bare, rows["decoding"][0], key=lambda row: row.median)
        say_ratio(f"our loop to the lower floor ({floor.name})", whole, floor, SHARE_OF_FLOOR)
    else:
        say_ratio("our loop, after decoding, to the bare model", rows["ours"][0], bare, SHARE_OF_BARE)
        say_ratio("our loop, all included, to the bare model", whole, bare, SHARE_OF_BARE)


def say_ratio(what: str, ours: Row, other: Row, target: float) -> None:
    """Print a ratio of medians with the range over the rounds, and whether it reaches its target."""
    ratios = [one / another for one, another in zip(ours.rates, other.rates, strict=True)]
    ratio = ours.median / other.median
    standing = "reached" if ratio >= target else "missed"
    print(f"- {what}: {ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f} by round); target {target:.2f}: {standing}")


def machine(device: str) -> str:
    """Describe where it was measured."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    gpu = f"{torch.cuda.get_device_name()}, " if device.startswith("cuda") else ""
    return (
        f"Machine: {gpu}{os.cpu_count()} cores of {cpu}, Python {platform.python_version()}, torch {torch.__version__}"
    )


def scale_of(job: Job) -> Scale:
    """Return the recipe, shortened to the job's samples."""
    scale = get_scale(job.scale)
    batch_size = job.batch_size or scale.batch_size
    if job.samples < batch_size:
        raise UserError(f"--samples {job.samples} is less than one batch of {batch_size}", code="perf")
    steps = -(-job.samples // batch_size)
    if job.skip >= steps:
        raise UserError(f"--skip {job.skip} leaves nothing of {steps} steps to time", code="perf")
    if job.skip:
        scale = replace(scale, num_checkpoints=1)
    if job.stream:
        scale = replace(scale, augmentation=Augmentation("random_resized_crop", area=OPEN_CLIP_AREA))
    warmup_steps = min(scale.warmup_steps, max(1, steps // 10))
    return replace(scale, samples_seen=steps * batch_size, batch_size=batch_size, warmup_steps=warmup_steps)
